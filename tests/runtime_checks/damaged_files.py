"""Files damaged on purpose: a sound one with one thing in it changed, the same from the same seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from qdq_builder import seal, small_network

Damage = Callable[[np.random.Generator, onnx.ModelProto], str]
"""Changes a model in place and says what it did."""

SCALES = (0.0, -0.02, 1e-45, 1e-38, 1e-30, 1e30, 1e38, 3e38, np.inf, -np.inf, np.nan)
NUMBERS: tuple[Any, ...] = (None, 0, -1, 1e308, 2**40, "", "x", [], [0], {}, True, [[]])


def scale(rng: np.random.Generator, model: onnx.ModelProto) -> str:
    """A scale, or one element of it, becomes an extreme number."""
    tensor = pick(rng, [item for item in model.graph.initializer if item.name.endswith("scale")])
    array, value = numpy_helper.to_array(tensor).copy(), pick(rng, SCALES)
    array.reshape(-1)[rng.integers(array.size) if rng.random() < 0.5 else slice(None)] = value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return f"{tensor.name} = {value}"


def merged_dimensions(rng: np.random.Generator, model: onnx.ModelProto) -> str:
    """A tensor of the same bytes has other dimensions."""
    tensor = pick(rng, model.graph.initializer)
    dims = list(tensor.dims)
    if len(dims) > 1:
        index = int(rng.integers(len(dims) - 1))
        dims[index : index + 2] = [dims[index] * dims[index + 1]]
    else:
        dims = pick(rng, ([*dims, 1], [1, *dims], [0], [2, 2], []))
    tensor.ClearField("dims")
    tensor.dims.extend(dims)
    return f"{tensor.name} has {dims}"


def other_type(rng: np.random.Generator, model: onnx.ModelProto) -> str:
    """A tensor's values in another type."""
    tensor = pick(rng, model.graph.initializer)
    dtype = pick(rng, (np.uint8, np.int8, np.int32, np.float32, np.float16, np.int64, np.bool_))
    with np.errstate(all="ignore"):
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    return f"{tensor.name} is {dtype.__name__}"


def rewired(rng: np.random.Generator, model: onnx.ModelProto) -> str:
    """A node reads another tensor."""
    node = pick(rng, [item for item in model.graph.node if item.input])
    names = [item.name for item in model.graph.initializer]
    names += [name for item in model.graph.node for name in item.output] + ["", "input", "nothing"]
    index, name = int(rng.integers(len(node.input))), pick(rng, names)
    node.input[index] = name
    return f"input {index} of {node.name} = {name!r}"


def rewired_constant(rng: np.random.Generator, model: onnx.ModelProto) -> str:
    """A scale, zero point, weight or bias is that of another node."""
    constants = [item.name for item in model.graph.initializer]
    node = pick(rng, [item for item in model.graph.node if set(item.input) & set(constants)])
    index = pick(rng, [index for index, name in enumerate(node.input) if name in constants])
    node.input[index] = pick(rng, constants)
    return f"input {index} of {node.name} = {node.input[index]}"


def swapped_inputs(rng: np.random.Generator, model: onnx.ModelProto) -> str:
    node = pick(rng, [item for item in model.graph.node if len(item.input) > 1])
    first, second = rng.choice(len(node.input), 2, replace=False)
    node.input[first], node.input[second] = node.input[second], node.input[first]
    return f"inputs {first} and {second} of {node.name}"


def dropped_input(rng: np.random.Generator, model: onnx.ModelProto) -> str:
    node = pick(rng, [item for item in model.graph.node if item.input])
    node.input.pop(int(rng.integers(len(node.input))))
    return f"an input less for {node.name}"


def attribute(rng: np.random.Generator, model: onnx.ModelProto) -> str:
    """An attribute has another value, or is new or gone."""
    node = pick(rng, model.graph.node)
    held = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    name = pick(rng, [*held, "axis", "block_size", "output_dtype"])
    value = held.get(name, 1)
    numbers = (0, 1, -1, 2, 5, -7, 1000)
    held[name] = [pick(rng, numbers) for _ in value] if isinstance(value, list) else pick(rng, numbers)
    if rng.random() < 0.2:
        del held[name]
    elif isinstance(held[name], list) and rng.random() < 0.3:
        held[name] = held[name][1:] or [1, 1]
    del node.attribute[:]
    node.attribute.extend(helper.make_attribute(key, item) for key, item in held.items())
    return f"{name} of {node.name} = {held.get(name)}"


def other_operator(rng: np.random.Generator, model: onnx.ModelProto) -> str:
    node = pick(rng, model.graph.node)
    operators = ("Relu", "Clip", "Conv", "Add", "Mul", "Concat", "MaxPool", "Reshape", "Gather", "Softmax", "MatMul")
    node.op_type = pick(rng, operators)
    return f"{node.name} is {node.op_type}"


def moved_or_dropped_node(rng: np.random.Generator, model: onnx.ModelProto) -> str:
    nodes = list(model.graph.node)
    node = nodes.pop(int(rng.integers(len(nodes))))
    if rng.random() < 0.5:
        nodes.insert(int(rng.integers(len(nodes))), node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return f"{node.name} moved or dropped"


def graph_input(rng: np.random.Generator, model: onnx.ModelProto) -> str:
    """The input's (or output's) shape or type."""
    value = pick(rng, [*model.graph.input, *model.graph.output])
    shapes: tuple[Any, ...] = (
        [0],
        [],
        [1],
        ["n", 3],
        ["n", 0, 12, 12],
        ["n", 3, 12],
        ["n", 4, 12, 12],
        ["n"] * 5,
        None,
    )
    kind, shape = pick(rng, (1, 1, 1, 2, 3, 7, 10, 16, 0)), pick(rng, shapes)
    value.CopyFrom(helper.make_tensor_value_info(value.name, kind, shape))
    return f"{value.name} is {kind} {shape}"


def fact(rng: np.random.Generator, model: onnx.ModelProto) -> str:
    """A value in the metadata, at any depth."""
    entry = pick(rng, model.metadata_props)
    whole = json.loads(entry.value)
    holder: Any = whole
    while True:
        key = pick(rng, list(holder) if isinstance(holder, dict) else range(len(holder)))
        below = holder[key]
        if not (isinstance(below, dict | list) and below and rng.random() < 0.7):
            break
        holder = below
    holder[key] = value = pick(rng, NUMBERS)
    entry.value = json.dumps(whole)
    return f"{entry.key}: {key} = {value!r}"


KINDS: tuple[Damage, ...] = (
    scale,
    scale,
    merged_dimensions,
    other_type,
    rewired,
    rewired_constant,
    swapped_inputs,
    dropped_input,
    attribute,
    attribute,
    other_operator,
    moved_or_dropped_node,
    graph_input,
    fact,
    fact,
)


def pick(rng: np.random.Generator, items: Any) -> Any:
    return items[int(rng.integers(len(items)))]


def mutations(count: int, seed: int = 0) -> Iterator[tuple[str, onnx.ModelProto]]:
    """`count` damaged copies of a small sealed file, each with what was done to it; every kind in turn."""
    rng = np.random.default_rng(seed)
    sound = seal(small_network(), names={"a": "b"})
    for index in range(count):
        model = onnx.ModelProto()
        model.CopyFrom(sound)
        yield KINDS[index % len(KINDS)](rng, model), model
