"""Functional ATen program -> graph in our vocabulary.

A rule (`aten_rules.py`) gets the FX node and says what it means. Operators without a rule are one error that names all
of them and their places in the user's module (`reasons.py`); nothing is skipped silently.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from gdfq_export.aten_rules import ROLES, RULES
from gdfq_export.errors import Reason, UnsupportedModelError
from gdfq_export.fx_nodes import Arguments, module_path, operator_name, place_of, shape_of, unsupported, value_of
from gdfq_export.graph import INPUT, OUTPUT, Graph, Node, rebuild, unused_name, without_clashes
from gdfq_export.ops import STAND_IN
from gdfq_export.precision import float32
from gdfq_export.reasons import output_reasons, refusal, stand_in_reasons

FILLED = {"zeros_like": 0.0, "new_zeros": 0.0, "zeros": 0.0, "ones_like": 1.0, "new_ones": 1.0, "ones": 1.0}


Check = Callable[[Graph], Iterable[Reason]]
"""What else stands against a graph, which may have stand-ins."""


def graph_from_program(program: ExportedProgram, check: Check = lambda graph: ()) -> Graph:
    """Translates a functional program; the only result must be one batch of logits.

    All reasons against it are one error, those that `check` finds included.
    """
    count = len(program.graph_signature.user_inputs)
    if count != 1:
        raise UnsupportedModelError(f"the model takes {count} inputs, but a classifier takes one batch of images")
    translation = _Translation(program)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            translation.read_placeholder(node)
        elif node.op == "output":
            graph = translation.finish(node)
            if reasons := [*stand_in_reasons(graph), *check(graph)]:
                raise refusal([*output_reasons(graph), *reasons])
            return graph
        else:
            translation.read_call(node)
    raise AssertionError("a program without output")


class _Translation:
    """The graph as far as the program has been read."""

    def __init__(self, program: ExportedProgram) -> None:
        signature = program.graph_signature
        self.state = {**program.state_dict, **program.constants}
        self.targets = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self.nodes: list[Node] = []
        self.parameters: dict[str, torch.Tensor] = {}
        self.keys: dict[str, str] = {}  # FX name of what is constant -> key of the parameter
        self.tensors: dict[str, str] = {}  # FX name -> tensor name
        self.splits: dict[str, tuple[fx.Node, list[int], int]] = {}  # FX name -> data, sizes and axis
        self.stand_ins: set[str] = set()  # FX names
        self.names = {INPUT, OUTPUT}
        self.batch: Any = None

    def read_placeholder(self, node: fx.Node) -> None:
        """The images, or a parameter."""
        if node.name not in self.targets:
            self.tensors[node.name] = INPUT
            self.batch = value_of(node).shape[0]
            self.nodes.append(Node(INPUT, "input", (), shape_of(node)))
        elif self.targets[node.name] in self.state:  # all but num_batches_tracked and the like, never read
            self._hold(node, self.targets[node.name], self.state[self.targets[node.name]])

    def read_call(self, node: fx.Node) -> None:
        """A node, or what stands for it where it cannot be."""
        try:
            self._read(node)
        except UnsupportedModelError as error:
            if not error.reasons:
                raise
            self._stand_in(node, error.reasons)

    def _read(self, node: fx.Node) -> None:
        """An operator, one of several results of one, or arithmetic on the batch size, which leaves nothing."""
        fixed = self._constant_value(node)
        if fixed is not None:
            self._hold(node, f"{place_of(node).split(' ')[0]}.{node.name}", fixed)
        elif node.target is operator.getitem:
            self._read_result(node)
        elif isinstance(value_of(node), (torch.Tensor, tuple, list)):
            self._read_operator(node)

    def finish(self, node: fx.Node) -> Graph:
        """The graph whose only result is what `node`, the program's output, returns."""
        results = [value for value in node.args[0] if isinstance(value, fx.Node)]  # type: ignore[union-attr]
        if len(results) != 1:
            problem = f"returns {len(results)} tensors, but a classifier returns one batch of logits"
            several = Reason("output", "the model", problem, "wrap it in a module that returns only those")
            raise refusal([several, *stand_in_reasons(Graph(tuple(self.nodes), {}, ""))])
        if results[0].name not in self.tensors:
            raise UnsupportedModelError("the model returns a parameter, which does not depend on its input")
        inputs = [node for node in self.nodes if node.op == INPUT]
        if not inputs:
            raise UnsupportedModelError("the model does not use its input")
        last = self.tensors[results[0].name]
        ordered = inputs + [node for node in self.nodes if node.op != INPUT]
        place = next(index for index, node in enumerate(ordered) if node.name == last)
        clear = without_clashes(ordered)
        return rebuild(Graph(tuple(clear), self.parameters, clear[place].name), clear)

    def _read_operator(self, node: fx.Node) -> None:
        aten = operator_name(node)
        if aten not in RULES:
            raise unsupported(node)
        arguments = Arguments(node)
        try:
            op, attributes = RULES[aten](arguments)
        except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
            raise unsupported(node, "these arguments") from error
        if op == "identity":
            self.tensors[node.name] = self._tensor_name(node.all_input_nodes[0])
            return
        if op == "split":
            axis = attributes["dim"] % (len(arguments.in_shape) + 1)
            sizes = [int(part.shape[axis]) for part in value_of(node)]
            self.splits[node.name] = (node.all_input_nodes[0], sizes, axis)
            return
        data, roles = ROLES.get(op, (None, {}))
        if data is None:
            inputs, parameters = [self._tensor_name(value) for value in _tensor_arguments(node)], {}
        else:
            inputs = [self._tensor_name(arguments[data])]
            held = {role: arguments[name] for role, name in roles.items() if arguments[name] is not None}
            if any(value.name not in self.keys for value in held.values()):
                raise unsupported(node, "weights that are computed by the model")
            parameters = {role: self.keys[value.name] for role, value in held.items()}
        if not _has_batch(node, self.batch):
            if any(source.name in self.stand_ins for source in node.all_input_nodes):
                return self._stand_in(node)  # what is lost before is said there
            raise unsupported(node, f"a result of shape {_whole_shape(node)}, whose first axis is not the batch")
        self._add(node, op, inputs, attributes, parameters, place_of(node))

    def _read_result(self, node: fx.Node) -> None:
        """One of several results of an operator: a slice of what was split, or the first."""
        source, index = node.args
        assert isinstance(source, fx.Node)
        assert isinstance(index, int)
        if source.name in self.stand_ins:
            self._stand_in(node)
        elif source.name in self.splits:
            origin, sizes, axis = self.splits[source.name]
            start = sum(sizes[:index])
            attributes = {"axis": axis, "start": start, "end": start + sizes[index], "step": 1}
            self._add(node, "slice", [self._tensor_name(origin)], attributes, {}, place_of(source))
        elif index == 0:
            self.tensors[node.name] = self.tensors[source.name]
        else:
            raise unsupported(source, f"its result number {index} in use")

    def _stand_in(self, node: fx.Node, reasons: Sequence[Reason] = ()) -> None:
        """Something with the inputs and the shape of what cannot be, so that what reads it can be read too."""
        inputs = [self._tensor_name(value) for value in node.all_input_nodes if self._is_tensor(value)]
        self.stand_ins.add(node.name)
        self._add(node, STAND_IN, inputs, {"reasons": tuple(reasons)}, {}, place_of(node))

    def _is_tensor(self, node: fx.Node) -> bool:
        return node.name in self.tensors or node.name in self.keys

    def _add(
        self,
        node: fx.Node,
        op: str,
        inputs: Sequence[str],
        attributes: Mapping[str, Any],
        parameters: Mapping[str, str],
        place: str,
    ) -> None:
        name = self._unused_name(node, op)
        self.nodes.append(Node(name, op, tuple(inputs), shape_of(node), attributes, parameters, place))
        self.tensors[node.name] = name

    def _unused_name(self, node: fx.Node, op: str) -> str:
        """The module's path where there is one, made unique."""
        path = module_path(node)
        name = unused_name(path if op in ROLES and path else f"{path}.{op}" if path else op, self.names)
        self.names.add(name)
        return name

    def _hold(self, node: fx.Node, wanted: str, value: torch.Tensor) -> None:
        """Keeps a parameter, or what the model computes from its parameters alone.

        Passes store theirs under `<node>/<role>`, so that no key of the user's may hold a slash.
        """
        key = unused_name(wanted.replace("/", "_"), self.parameters)
        self.parameters[key], self.keys[node.name] = float32(value.detach().clone()), key

    def _tensor_name(self, argument: fx.Node) -> str:
        """The tensor's name; a parameter used as data becomes a constant node."""
        if argument.name not in self.tensors:
            key = self.keys[argument.name]
            name = unused_name(f"{key}.value", self.names)
            self.names.add(name)
            shape = tuple(self.parameters[key].shape)
            self.nodes.append(Node(name, "constant", (), shape, {}, {"value": key}, key))
            self.tensors[argument.name] = name
        return self.tensors[argument.name]

    def _constant_value(self, node: fx.Node) -> torch.Tensor | None:
        """What a node computes from parameters, or of the batch's size (as a batch of one), alone; None otherwise."""
        value = value_of(node)
        if node.op != "call_function" or not isinstance(value, torch.Tensor):
            return None
        name = operator_name(node)
        if name in FILLED and value.ndim and not isinstance(value.shape[0], int):
            return torch.full((1, *shape_of(node)), FILLED[name])
        if any(source.name not in self.keys for source in node.all_input_nodes) or node.target is operator.getitem:
            return None

        def look_up(argument: fx.Node) -> torch.Tensor:
            return self.parameters[self.keys[argument.name]]

        arguments, options = fx.map_arg(node.args, look_up), fx.map_arg(node.kwargs, look_up)
        result = node.target(*arguments, **options)  # type: ignore[operator]
        return result if isinstance(result, torch.Tensor) else None


def _tensor_arguments(node: fx.Node) -> list[fx.Node]:
    """The tensors among the arguments, in order and with repetitions (x + x, cat([x, x]))."""
    flat = [
        part for argument in node.args for part in (argument if isinstance(argument, (list, tuple)) else [argument])
    ]
    return [part for part in flat if isinstance(part, fx.Node) and isinstance(value_of(part), torch.Tensor)]


def _has_batch(node: fx.Node, batch: Any) -> bool:
    """Whether the first axis is the batch, unmerged and unsplit, as that of every tensor must be."""
    shape = _whole_shape(node)
    return bool(shape) and not isinstance(shape[0], int) and str(shape[0]) == str(batch)


def _whole_shape(node: fx.Node) -> list[Any]:
    """The shape of the (first) result with its batch."""
    value = value_of(node)
    return list((value[0] if isinstance(value, (tuple, list)) else value).shape)
