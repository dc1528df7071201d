"""The integer reference: runs a QDQ graph on integers, without the runtime.

    DequantizeLinear -> codes that wait;  Conv, Add, ... -> a result that waits;  QuantizeLinear -> codes

The graph is read by data flow only. Operators without an integer kernel run in float32; the tensors that depend on
how a float sum is ordered cannot be promised to the last bit, so a caller that compares with the runtime names them
(`float_tensors`) and may replace each tensor as it is made (`observe`), to check everything behind it exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import onnx

from gdfq_export.runtime_checks.arithmetic import Quantization, quantize
from gdfq_export.runtime_checks.errors import UnsupportedGraphError
from gdfq_export.runtime_checks.folding import cast, fold_constants, quantization_from_constants
from gdfq_export.runtime_checks.graph import Array, Graph, Node, graph_from_model
from gdfq_export.runtime_checks.islands import evaluate_node
from gdfq_export.runtime_checks.kernels import KERNELS
from gdfq_export.runtime_checks.linear import convolve
from gdfq_export.runtime_checks.movement import MOVES, resize_nearest
from gdfq_export.runtime_checks.qoperators import lower_qoperators
from gdfq_export.runtime_checks.values import Pending, Quantized, Value, as_array, as_codes

Observer = Callable[[str, Array], Array]
"""(tensor name, what the reference computed) -> what to go on with."""


def reference_graph(model: onnx.ModelProto) -> Graph:
    """The graph that `run_reference` executes: constants folded, fused operators written out as QDQ."""
    return fold_constants(lower_qoperators(fold_constants(graph_from_model(model))))


def run_reference(
    graph: Graph,
    feed: Array,
    observe: Observer | None = None,
    float_tensors: frozenset[str] = frozenset(),
) -> dict[str, Array]:
    """The graph's outputs on `feed`; `observe` sees every integer tensor and every output in topological order."""
    values: dict[str, Value] = dict(graph.constants)
    values[graph.input.name] = feed
    uses = Counter(name for node in graph.nodes for name in node.inputs)
    uses.update(graph.outputs)
    for node in graph.nodes:
        inputs = [values[name] if name else None for name in node.inputs]
        for name, value in zip(node.outputs, _execute(node, inputs, graph, float_tensors), strict=False):
            if name in graph.outputs:
                value = as_array(value)
            if observe is not None and _is_observed(name, value, graph):
                value = observe(name, as_array(value))
            values[name] = value
        for name in node.inputs:
            uses[name] -= 1
            if name and uses[name] == 0 and name not in graph.constants:
                del values[name]
    return {name: as_array(values[name]) for name in graph.outputs}


def _is_observed(name: str, value: Value, graph: Graph) -> bool:
    if name in graph.outputs:
        return True
    return isinstance(value, np.ndarray) and value.dtype in (np.uint8, np.int8, np.uint16, np.int16)


def _execute(node: Node, inputs: Sequence[Value | None], graph: Graph, float_tensors: frozenset[str]) -> list[Value]:
    if node.op == "QuantizeLinear":
        return [_quantize(node, inputs, node.outputs[0] in float_tensors)]
    if node.op == "DequantizeLinear":
        return [_dequantize(node, inputs)]
    if node.op == "Cast" and isinstance(inputs[0], np.ndarray):
        return [cast(inputs[0], int(node.attributes["to"]))[0]]
    if node.op in MOVES or node.op == "Resize":
        moved = _move(node, inputs, graph.opset)
        if moved is not None:
            return moved
    kernel = KERNELS.get(node.op)
    result = kernel(node, inputs) if kernel else None
    return _in_float(node, inputs, graph.opset) if result is None else result


def _parameters(node: Node, inputs: Sequence[Value | None]) -> Quantization:
    scale, zero_point = inputs[1], inputs[2] if len(inputs) > 2 else None
    if not isinstance(scale, np.ndarray) or not (zero_point is None or isinstance(zero_point, np.ndarray)):
        raise UnsupportedGraphError(f"{node.op} '{node.name}': scale and zero point must be constants")
    if node.op == "DequantizeLinear" and zero_point is None and isinstance(inputs[0], np.ndarray):
        zero_point = np.zeros_like(scale, inputs[0].dtype)
    return quantization_from_constants(scale, zero_point, node)


def _quantize(node: Node, inputs: Sequence[Value | None], in_float: bool) -> Array:
    params = _parameters(node, inputs)
    value = inputs[0]
    assert value is not None
    return quantize(as_array(value), params) if in_float else as_codes(value, params)


def _dequantize(node: Node, inputs: Sequence[Value | None]) -> Value:
    codes = inputs[0]
    if not isinstance(codes, np.ndarray):
        raise UnsupportedGraphError(f"DequantizeLinear '{node.name}' reads a tensor that is not of integers")
    params = _parameters(node, inputs)
    block = int(node.attributes.get("block_size", 0))
    if not block:
        return Quantized(codes, params)
    axis = int(node.attributes.get("axis", 1))
    length = codes.shape[axis]
    scale, zero_point = (
        np.repeat(item, block, axis).take(range(length), axis) for item in (params.scale, params.zero_point)
    )
    return np.asarray((codes.astype(np.int32) - zero_point).astype(np.float32) * scale)


def _move(node: Node, inputs: Sequence[Value | None], opset: int) -> list[Value] | None:
    """A movement of codes, of a tensor, or of a result that waits."""
    value = inputs[0]
    parameters = [None if item is None else as_array(item) for item in inputs[1:]]
    count = len(node.outputs)
    if node.op == "Gather" and isinstance(value, Quantized) and not isinstance(inputs[1], np.ndarray):
        return None

    def move(array: Array) -> list[Array]:
        if node.op == "Resize":
            resized = resize_nearest(node, array, parameters)
            return [evaluate_node(node, [array, *parameters], opset)[0] if resized is None else resized]
        return MOVES[node.op](node, array, parameters, count)

    if node.op == "Resize" and bytes(node.attributes.get("mode", b"nearest")) != b"nearest":
        return None
    if isinstance(value, np.ndarray):
        return list(move(value))
    if isinstance(value, Quantized):
        if value.params.axis is not None:
            return list(move(value.to_float()))
        return [Quantized(codes, value.params) for codes in move(value.codes)]
    assert value is not None
    return [
        Pending(
            lambda result, index=index: move(value.to_codes(result))[index],  # type: ignore[misc]
            lambda index=index: move(value.to_float())[index],  # type: ignore[misc]
        )
        for index in range(count)
    ]


def _in_float(node: Node, inputs: Sequence[Value | None], opset: int) -> list[Value]:
    """The operator in float32; the heavy ones by our own convolution, which is much faster."""
    arrays = [None if value is None else as_array(value) for value in inputs]
    if node.op == "Conv" and arrays[0] is not None and arrays[1] is not None:
        bias = arrays[2] if len(arrays) > 2 else None
        return [convolve(arrays[0], arrays[1], bias, node.attributes)]
    return list(evaluate_node(node, arrays, opset))
