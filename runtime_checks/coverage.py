"""What ONNX Runtime really runs: which operators became integer kernels, which stayed in float, and why.

The optimized graph at level `all` is the evidence. An operator counts as float when it computes in float32 between
the first QuantizeLinear and the last DequantizeLinear; convolutions and matrix products count wherever they stand.
The quantization of the input, the final DequantizeLinear, and what lies before or behind them do not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from gdfq_export.runtime_checks.folding import fold_constants
from gdfq_export.runtime_checks.graph import Graph, Node, graph_from_model, with_unique_names
from gdfq_export.runtime_checks.movement import MOVES
from gdfq_export.runtime_checks.reasons import reason_for_float
from gdfq_export.runtime_checks.sessions import optimized_model
from gdfq_export.runtime_checks.tensor_types import CODE_TYPES, FLOAT_TYPES, INDEX_TYPES, element_types

_INTEGER_KERNELS = ("QGemm", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul")
_LINEAR = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose", "MatMulNBits")
_ENDING = "it stands behind the last DequantizeLinear, where the integers end"
_RENAMED = re.compile(r"(_token_\d+|/duplicated\w*|_nchwc)+$")  # what the runtime appends to names


@dataclass(frozen=True)
class Kernel:
    """One operator of the graph that the runtime executes."""

    op: str
    name: str  # of the operator in the file that it came from, or the runtime's own name
    tensor: str  # what it computes, as the file names it where possible
    integer: bool


@dataclass(frozen=True)
class FloatOperator:
    """An operator that runs in float32 although it stands between quantized tensors."""

    name: str
    op: str
    tensor: str
    reason: str


@dataclass(frozen=True)
class Coverage:
    """The kernels that run, and the float operators among them."""

    kernels: tuple[Kernel, ...]
    float_operators: tuple[FloatOperator, ...]
    endings: tuple[FloatOperator, ...]  # what computes in float behind the last DequantizeLinear, as a softmax does
    float_tensors: frozenset[str]  # quantized tensors and outputs whose value depends on a float operator's rounding


def with_names(operators: Sequence[FloatOperator], names: Mapping[str, str]) -> tuple[FloatOperator, ...]:
    """The same operators by other names of theirs and of their tensors, where there are any."""
    return tuple(
        replace(item, name=names.get(item.name, item.name), tensor=names.get(item.tensor, item.tensor))
        for item in operators
    )


def name_in_file(name: str) -> str:
    """The name that a node of the optimized graph had before the runtime appended to it."""
    return _RENAMED.sub("", name)


def coverage_of(model: onnx.ModelProto, level: str = "all") -> Coverage:
    """Reads the graph that the runtime executes for `model`."""
    named = with_unique_names(model)
    return coverage_from_optimized(named, optimized_model(named, level))


def coverage_from_optimized(model: onnx.ModelProto, optimized: onnx.ModelProto) -> Coverage:
    """The coverage of `model` (with unique node names), given what the runtime made of it."""
    source = fold_constants(graph_from_model(model))
    by_name = {node.name: node for node in source.nodes}
    graph = graph_from_model(optimized)
    types = element_types(graph)
    behind, ahead = _behind_quantize(graph), _ahead_of_quantize(graph)
    kernels, float_operators, endings = [], [], []
    for node in graph.nodes:
        origin = _origin(node, by_name, source)
        integer = _is_integer(node, types)
        tensor = _tensor_name(node, origin)
        if not integer and _is_float_operator(node, graph, behind, ahead):
            if origin is None:
                origin = _decomposed_from(node, graph, by_name, source)
                tensor = _tensor_name(node, origin)
            reason = _reason(source, node, origin)
            name, op = (origin.name, origin.op) if origin else (node.name or node.outputs[0], node.op)
            float_operators.append(FloatOperator(name, op, tensor, reason))
        elif not integer and _is_ending(node, graph, behind, types):
            name, op = (origin.name, origin.op) if origin else (node.name or node.outputs[0], node.op)
            endings.append(FloatOperator(name, op, tensor, _ENDING))
        kernels.append(Kernel(node.op, origin.name if origin else node.name, tensor, integer))
    float_tensors = _float_tensors(graph, types, by_name, source)
    in_float, behind_all = tuple(dict.fromkeys(float_operators)), tuple(dict.fromkeys(endings))
    return Coverage(tuple(kernels), in_float, behind_all, float_tensors)


def _reason(source: Graph, node: Node, origin: Node | None) -> str:
    if origin is None:
        return "the runtime added it"
    if node.op in _LINEAR and origin.op not in _LINEAR:
        return f"ONNX Runtime merges it with the operator before it into a float {node.op}"
    return reason_for_float(source, origin)


def _origin(node: Node, by_name: Mapping[str, Node], source: Graph) -> Node | None:
    """The file's operator that `node` came from: the one of the same name, or that computes the same tensor."""
    name = name_in_file(node.name)
    if node.op == "Transpose" and name not in by_name:
        return None  # a change of layout that the runtime put there
    candidates = (source.producers.get(tensor) for tensor in (name, *node.outputs))
    return by_name.get(name) or next((candidate for candidate in candidates if candidate), None)


def _decomposed_from(node: Node, graph: Graph, by_name: Mapping[str, Node], source: Graph) -> Node | None:
    """The file's operator whose parts the runtime runs one by one: the one before the next QuantizeLinear."""
    readers = graph.consumers.get(node.outputs[0], ())
    while len(readers) == 1:
        quantizer = by_name.get(name_in_file(readers[0].name))
        if quantizer is not None:
            return source.producers.get(quantizer.input(0))
        readers = graph.consumers.get(readers[0].outputs[0], ())
    return None


def _tensor_name(node: Node, origin: Node | None) -> str:
    if origin is None or not origin.outputs:
        return node.outputs[0]
    return origin.outputs[0]


def _is_integer(node: Node, types: Mapping[str, int]) -> bool:
    """A kernel on codes: one of the fused ones, or any that writes codes, or makes them the index into a table."""
    if node.op.startswith("QLinear") or node.op in _INTEGER_KERNELS:
        return True
    if node.op in ("QuantizeLinear", "DequantizeLinear"):
        return False
    result = types.get(node.outputs[0]) if node.outputs else None
    indexes = node.op == "Cast" and result in INDEX_TYPES and types.get(node.inputs[0]) in CODE_TYPES
    return result in CODE_TYPES or indexes


def _is_float_operator(node: Node, graph: Graph, behind: set[str], ahead: set[str]) -> bool:
    if node.op == "QuantizeLinear":
        return False
    if node.op == "DequantizeLinear":  # between two QuantizeLinear with nothing else it changes the scale, in float
        if graph.is_constant(node.inputs[0]):
            return False
        readers = graph.consumers.get(node.outputs[0], ())
        return any(reader.op == "QuantizeLinear" for reader in readers)
    computed = any(name in behind for name in node.inputs)
    if node.op in _LINEAR:
        return computed or not all(graph.is_constant(name) for name in node.inputs if name)
    return computed and any(name in ahead for name in node.outputs)


def _is_ending(node: Node, graph: Graph, behind: set[str], types: Mapping[str, int]) -> bool:
    """Whether `node`, which is no float operator between quantized tensors, computes floats behind the last of them."""
    if node.op in ("QuantizeLinear", "DequantizeLinear", *MOVES) or not any(name in behind for name in node.inputs):
        return False
    return types.get(node.outputs[0]) in FLOAT_TYPES


def _behind_quantize(graph: Graph) -> set[str]:
    """Tensors that depend on a quantized activation."""
    found: set[str] = set()
    for node in graph.nodes:
        from_codes = node.op == "DequantizeLinear" and not graph.is_constant(node.inputs[0])
        if node.op == "QuantizeLinear" or from_codes or any(name in found for name in node.inputs):
            found.update(node.outputs)
    return found


def _ahead_of_quantize(graph: Graph) -> set[str]:
    """Tensors from which a quantized tensor is computed."""
    found: set[str] = set()
    for node in reversed(graph.nodes):
        quantizes = node.op.startswith("QLinear") or node.op in ("QuantizeLinear", *_INTEGER_KERNELS)
        if quantizes or any(name in found for name in node.outputs):
            found.update(name for name in node.inputs if name)
    return found


def _float_tensors(
    graph: Graph, types: Mapping[str, int], by_name: Mapping[str, Node], source: Graph
) -> frozenset[str]:
    """Codes and outputs that a float operator computed, by their names in the file."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.op != "QuantizeLinear":
            continue
        if _is_exact(graph, node.inputs[0]):
            continue
        if origin := _origin(node, by_name, source):
            found.update(origin.outputs)
    found.update(name for name in graph.outputs if types[name] not in CODE_TYPES and not _is_exact(graph, name))
    return frozenset(found)


def _is_exact(graph: Graph, name: str) -> bool:
    """Whether float tensor `name` is the graph's input, dequantized codes, or an integer kernel's float result."""
    while (node := graph.producers.get(name)) is not None and node.op in MOVES:
        name = node.inputs[0]
    return node is None or node.op == "DequantizeLinear" or node.op in _INTEGER_KERNELS
