"""Short names for files of packed weights, where module paths would take more room than the layers' weights.

    features.stage1.unit1.conv1/weight  ->  1f/weight        a group of initializers, with its roles
    features.stage1.unit1.conv1.q       ->  1g               what one operator hands to the next

The operators that compute keep the module's path as their name, so that a report still says where they stand; those
around them (quantize, dequantize, clip, and what unpacks weights) have none. Input and output keep their names.
A table of the others goes into the metadata (`provenance.py`).
"""

from __future__ import annotations

import string

import onnx

DIGITS = string.digits + string.ascii_lowercase
UNNAMED = frozenset({"QuantizeLinear", "DequantizeLinear", "Clip"})


def compact_names(model: onnx.ModelProto) -> dict[str, str]:
    """Renames in place; what the model computes stays the same. Returns short name -> name of groups and tensors."""
    graph = model.graph
    kept = {value.name for value in (*graph.input, *graph.output)}
    short: dict[str, str] = {"": "", **{name: name for name in kept}}
    groups: dict[str, str] = {}
    constants: set[str] = set()
    names: dict[str, str] = {}
    count = 0

    def next_name() -> str:
        nonlocal count
        while True:
            count += 1
            if (name := _base36(count)) not in kept:
                return name

    for tensor in graph.initializer:
        group, _, role = tensor.name.rpartition("/")
        if group not in groups:
            groups[group] = next_name()
            names[groups[group]] = group
        constants.add(tensor.name)
        short[tensor.name] = tensor.name = f"{groups[group]}/{role}"
    for node in graph.node:
        folds = all(name in constants for name in node.input)
        if folds:
            constants.update(node.output)
        node.name = "" if folds or node.op_type in UNNAMED else node.name.rpartition(":")[0]
        for tensors in (node.input, node.output):
            for index, name in enumerate(tensors):
                if name not in short:
                    short[name] = next_name()
                    if not folds and node.op_type != "DequantizeLinear":  # what is reported
                        names[short[name]] = name
                tensors[index] = short[name]
    return names


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, last = divmod(number, len(DIGITS))
        digits = DIGITS[last] + digits
    return digits
