"""Functional ATen program -> graph in our vocabulary.

A rule (`aten_rules.py`) gets the FX node and says what it means. An operator without a rule is an error that names it
and its place in the user's module; nothing is skipped silently.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from gdfq_export.aten_rules import ROLES, RULES
from gdfq_export.errors import UnsupportedModelError
from gdfq_export.fx_nodes import Arguments, operator_name, place_of, shape_of, unsupported, value_of
from gdfq_export.graph import INPUT, OUTPUT, Graph, Node, rebuild


class _Names:
    """Names of tensors: the module's path where there is one, made unique."""

    def __init__(self) -> None:
        self.taken: set[str] = {INPUT, OUTPUT}

    def __call__(self, node: fx.Node, op: str) -> str:
        stack = node.meta.get("nn_module_stack") or {}
        path = list(stack.values())[-1][0] if stack else ""
        base = path if op in ROLES and path else f"{path}.{op}" if path else op
        name, count = base, 1
        while name in self.taken:
            name, count = f"{base}_{count}", count + 1
        self.taken.add(name)
        return name


def graph_from_program(program: ExportedProgram) -> Graph:
    """Translates a functional program; the only result must be one batch of logits."""
    signature = program.graph_signature
    parameters: dict[str, torch.Tensor] = {}
    tensors: dict[str, str] = {}  # FX name -> tensor name
    keys: dict[str, str] = {}  # FX name of a placeholder -> key of the parameter
    nodes: list[Node] = []
    names = _Names()
    state = {**program.state_dict, **program.constants}
    targets = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    if len(signature.user_inputs) != 1:
        raise UnsupportedModelError(
            f"the model takes {len(signature.user_inputs)} inputs, but a classifier takes one batch of images"
        )

    def hold(node: fx.Node, value: torch.Tensor) -> None:
        """Keeps what the model computes from its parameters alone as a parameter of its own."""
        key = f"{place_of(node).split(' ')[0]}.{node.name}"
        parameters[key], keys[node.name] = value.detach().clone(), key

    def tensor_name(argument: fx.Node) -> str:
        """The tensor's name; a parameter used as data becomes a constant node."""
        if argument.name not in tensors:
            key = keys[argument.name]
            value = parameters[key]
            name = f"{key}.value"
            nodes.append(Node(name, "constant", (), tuple(value.shape), {}, {"value": key}, key))
            tensors[argument.name] = name
        return tensors[argument.name]

    batch: Any = None
    splits: dict[str, tuple[fx.Node, list[int], int]] = {}
    for fx_node in program.graph.nodes:
        if fx_node.op == "placeholder":
            if fx_node.name in targets:
                key = targets[fx_node.name]
                if key not in state:
                    continue  # num_batches_tracked and the like, never read
                parameters[key] = state[key].detach().clone()
                keys[fx_node.name] = key
            else:
                tensors[fx_node.name] = INPUT
                batch = value_of(fx_node).shape[0]
                nodes.append(Node(INPUT, "input", (), shape_of(fx_node)))
            continue
        if fx_node.op == "output":
            results = [value for value in fx_node.args[0] if isinstance(value, fx.Node)]
            if len(results) != 1:
                raise UnsupportedModelError(
                    f"the model returns {len(results)} tensors, but a classifier returns one batch of logits: "
                    "wrap it in a module that returns only those"
                )
            if results[0].name not in tensors:
                raise UnsupportedModelError("the model returns a parameter, which does not depend on its input")
            return _finish(nodes, parameters, tensors[results[0].name])
        fixed = _constant_value(fx_node, {name: parameters[key] for name, key in keys.items()})
        if fixed is not None:
            hold(fx_node, fixed)
            continue
        if not isinstance(value_of(fx_node), torch.Tensor) or fx_node.target is operator.getitem:
            if fx_node.target is operator.getitem:
                source, index = fx_node.args
                if source.name in splits:
                    origin, sizes, axis = splits[source.name]
                    start = sum(sizes[:index])
                    attributes = {"axis": axis, "start": start, "end": start + sizes[index], "step": 1}
                    name = names(fx_node, "slice")
                    nodes.append(
                        Node(name, "slice", (tensor_name(origin),), shape_of(fx_node), attributes, {}, place_of(source))
                    )
                    tensors[fx_node.name] = name
                elif index == 0:  # the first result of an operator that returns several
                    tensors[fx_node.name] = tensors[source.name]
                else:
                    raise unsupported(source, f"its result number {index} in use")
                continue
            if not isinstance(value_of(fx_node), (tuple, list)):
                continue  # arithmetic on the batch size
        op_name = operator_name(fx_node)
        if op_name not in RULES:
            raise UnsupportedModelError(
                f"operator {op_name} at {place_of(fx_node)} is not supported: "
                "replace it in the model, or open an issue with the model's code"
            )
        arguments = Arguments(fx_node)
        try:
            op, attributes = RULES[op_name](arguments)
        except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
            raise unsupported(fx_node, "these arguments") from error
        if op == "identity":
            tensors[fx_node.name] = tensor_name(fx_node.all_input_nodes[0])
            continue
        if op == "split":
            axis = attributes["dim"] % (len(arguments.in_shape) + 1)
            sizes = [int(part.shape[axis]) for part in fx_node.meta["val"]]
            splits[fx_node.name] = (fx_node.all_input_nodes[0], sizes, axis)
            continue
        data, roles = ROLES.get(op, (None, {}))
        if data is not None:
            inputs = [tensor_name(arguments[data])]
            held = {role: arguments[name] for role, name in roles.items() if arguments[name] is not None}
            if any(value.name not in keys for value in held.values()):
                raise unsupported(fx_node, "weights that are computed by the model")
            roles_to_keys = {role: keys[value.name] for role, value in held.items()}
        else:
            values = _tensor_arguments(fx_node)
            inputs, roles_to_keys = [tensor_name(value) for value in values], {}
        _check_batch(fx_node, batch)
        name = names(fx_node, op)
        nodes.append(Node(name, op, tuple(inputs), shape_of(fx_node), attributes, roles_to_keys, place_of(fx_node)))
        tensors[fx_node.name] = name
    raise AssertionError("a program without output")


FILLED = {"zeros_like": 0.0, "new_zeros": 0.0, "zeros": 0.0, "ones_like": 1.0, "new_ones": 1.0, "ones": 1.0}


def _constant_value(node: fx.Node, known: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """What a node computes from parameters alone, or of the batch's size alone (as a batch of one); None otherwise."""
    value = value_of(node)
    if node.op != "call_function" or not isinstance(value, torch.Tensor):
        return None
    name = operator_name(node)
    if name in FILLED and value.ndim and not isinstance(value.shape[0], int):
        return torch.full((1, *shape_of(node)), FILLED[name])
    if any(source.name not in known for source in node.all_input_nodes) or node.target is operator.getitem:
        return None

    def look_up(argument: fx.Node) -> torch.Tensor:
        return known[argument.name]

    result = node.target(*fx.map_arg(node.args, look_up), **fx.map_arg(node.kwargs, look_up))  # type: ignore[operator]
    return result if isinstance(result, torch.Tensor) else None


def _tensor_arguments(node: fx.Node) -> list[fx.Node]:
    """The tensors among the arguments, in order and with repetitions (x + x, cat([x, x]))."""
    flat = [
        part for argument in node.args for part in (argument if isinstance(argument, (list, tuple)) else [argument])
    ]
    return [part for part in flat if isinstance(part, fx.Node) and isinstance(value_of(part), torch.Tensor)]


def _check_batch(node: fx.Node, batch: Any) -> None:
    """The first axis of every tensor must be the batch, unmerged and unsplit."""
    value = value_of(node)
    value = value[0] if isinstance(value, (tuple, list)) else value
    if value.ndim == 0 or isinstance(value.shape[0], int) or str(value.shape[0]) != str(batch):
        raise unsupported(node, f"a result of shape {list(value.shape)}, whose first axis is not the batch")


def _finish(nodes: list[Node], parameters: dict[str, torch.Tensor], output: str) -> Graph:
    inputs = [node for node in nodes if node.op == INPUT]
    if not inputs:
        raise UnsupportedModelError("the model does not use its input")
    ordered = inputs + [node for node in nodes if node.op != INPUT]
    return rebuild(Graph(tuple(ordered), parameters, output), ordered)
