"""Why an operator of a QDQ graph stays in float, told from the file.

The rules are those by which ONNX Runtime's QDQ transformer selects groups (DequantizeLinear -> operator ->
QuantizeLinear); the first one that is broken is the answer.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from gdfq_export.runtime_checks.folding import quantization_from_constants
from gdfq_export.runtime_checks.graph import Graph, Node
from gdfq_export.runtime_checks.movement import MOVES
from gdfq_export.runtime_checks.tensor_types import element_types
from gdfq_export.runtime_checks.values import Clamp

_WITH_WEIGHTS = ("Conv", "Gemm", "MatMul")
_ELEMENTWISE = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu", "Softmax")
_SAME_PARAMETERS = (*MOVES, "MaxPool", "ReduceMax", "ReduceMin", "Resize")
_NO_INTEGER_MOVE = ("DepthToSpace", "SpaceToDepth")


def reason_for_float(graph: Graph, node: Node) -> str:
    """One clause that says why `node` did not become an integer kernel."""
    types = element_types(graph)
    if node.op == "DequantizeLinear":
        return "its scale or zero point differs from that of the QuantizeLinear behind it"
    if node.op in ("Relu", "Clip"):
        return _reason_for_clamp(graph, node)
    if node.op in _WITH_WEIGHTS:
        return _reason_for_weighted(graph, node, types)
    if node.op in _ELEMENTWISE:
        reason = _reason_for_inputs(graph, node, types) or _reason_for_output(graph, node, types)
        return reason or _reason_for_dimensions(graph, node) or _UNKNOWN
    if node.op in _SAME_PARAMETERS:
        return _reason_for_move(graph, node, types)
    return f"ONNX Runtime has no 8-bit {node.op} kernel"


_UNKNOWN = "ONNX Runtime did not fuse it, for a reason that the file does not show"


def _reason_for_weighted(graph: Graph, node: Node, types: Mapping[str, int]) -> str:
    attributes = node.attributes
    if node.op == "Gemm" and (attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0):
        return "alpha or beta is not 1"
    for index, what in ((0, "input"), (1, "weight")):
        if reason := _reason_for_operand(graph, node.input(index), what):
            return reason
    if node.op == "Gemm" and not graph.producers[node.input(1)].input(2):
        return "the weight's DequantizeLinear has no zero point, which QGemm needs"
    x_type = types[graph.producers[node.input(0)].input(0)]
    w_type = types[graph.producers[node.input(1)].input(0)]
    if x_type not in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8):
        return f"{_type_name(x_type)} activations"
    if w_type not in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8):
        return f"{_type_name(w_type)} weights without a Cast to INT8"
    if bias := node.input(2):
        producer = graph.producers.get(bias)
        if producer is None or producer.op != "DequantizeLinear":
            return "float bias"
        if types[producer.input(0)] != onnx.TensorProto.INT32:
            return f"the bias is {_type_name(types[producer.input(0)])}, not INT32"
    if node.op == "Conv" and x_type == onnx.TensorProto.INT8:
        return "signed activations (INT8): x86 has no such convolution kernel"
    if reason := _reason_for_output(graph, node, types):
        return reason
    if x_type == onnx.TensorProto.INT8:
        return "signed activations (INT8)"
    return _UNKNOWN


def _reason_for_operand(graph: Graph, name: str, what: str) -> str | None:
    """Why tensor `name` does not count as dequantized."""
    producer = graph.producers.get(name)
    if graph.is_constant(name):
        return f"float {what}"
    if producer is None:
        return f"its {what} '{name}' is the graph's float input"
    if producer.op != "DequantizeLinear":
        return f"its {what} comes from {producer.op} '{producer.name}' in float"
    scale = graph.constants.get(producer.input(1))
    if scale is None:
        return f"the scale of its {what} is not a constant"
    if what == "input" and scale.size > 1:
        return "its input has a scale for each channel"
    return None


def _reason_for_inputs(graph: Graph, node: Node, types: Mapping[str, int]) -> str | None:
    found = []
    for name in node.inputs:
        if name and (reason := _reason_for_operand(graph, name, "input")):
            return reason
        if name:
            found.append(types[graph.producers[name].input(0)])
    if len(set(found)) > 1:
        return "its inputs have different integer types (" + ", ".join(map(_type_name, found)) + ")"
    if found and found[0] not in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8):
        return f"{_type_name(found[0])} activations"
    if onnx.TensorProto.INT8 in found and len(found) > 1:
        return "signed activations (INT8): the runtime makes only some of them UINT8, and its inputs no longer match"
    return None


def _reason_for_output(graph: Graph, node: Node, types: Mapping[str, int]) -> str | None:
    """Why the operator's result does not reach exactly one QuantizeLinear of the same type."""
    name = node.outputs[0]
    reader = graph.only_consumer(name)
    if reader is not None and reader.op in ("Relu", "Clip"):
        clamp, name = reader, reader.outputs[0]
        reader = graph.only_consumer(name)
        if reader is not None and reader.op == "QuantizeLinear" and not _is_redundant(graph, clamp, reader):
            if reason := _reason_for_parameters(graph, reader):
                return reason
            return f"the {clamp.op} behind it stays: {_reason_for_clamp(graph, clamp)}"
    if reader is None:
        return _reason_for_readers(graph, name)
    if reader.op != "QuantizeLinear":
        return f"its float result goes to {reader.op} '{reader.name}' instead of a QuantizeLinear"
    if reason := _reason_for_parameters(graph, reader):
        return reason
    source = types[graph.producers[node.input(0)].input(0)]
    result = types[reader.outputs[0]]
    if source != result:
        return f"input and output have different integer types ({_type_name(source)}, {_type_name(result)})"
    return None


def _reason_for_dimensions(graph: Graph, node: Node) -> str | None:
    """Elementwise kernels read scales of rank 0; convolutions take one number in a list as well."""
    around = [("its input", graph.producers.get(name)) for name in node.inputs]
    around.append(("its output", graph.only_consumer(node.outputs[0])))
    for whose, neighbour in around:
        if neighbour is not None and neighbour.op in ("QuantizeLinear", "DequantizeLinear"):
            scale = graph.constants.get(neighbour.input(1))
            if scale is not None and scale.ndim:
                return f"the scale of {whose} has the shape {list(scale.shape)} instead of none"
    return None


def _reason_for_readers(graph: Graph, name: str) -> str:
    readers = graph.consumers.get(name, ())
    if name in graph.outputs:
        return "its float result is an output of the graph"
    quantizers = [reader for reader in readers if reader.op == "QuantizeLinear"]
    if len(quantizers) > 1:
        return f"{len(quantizers)} QuantizeLinear read its result"
    listed = ", ".join(f"{reader.op} '{reader.name}'" for reader in readers)
    return f"its float result has {len(readers)} consumers ({listed})"


def _reason_for_parameters(graph: Graph, reader: Node) -> str | None:
    scale = graph.constants.get(reader.input(1))
    if scale is None:
        return "the output scale is not a constant"
    if scale.size > 1:
        return "the output has a scale for each channel"
    return None


def _reason_for_clamp(graph: Graph, node: Node) -> str:
    reader = graph.only_consumer(node.outputs[0])
    if reader is None or reader.op != "QuantizeLinear":
        return "it is not directly followed by one QuantizeLinear"
    if not _is_redundant(graph, node, reader):
        zero_point = graph.constants.get(reader.input(2), np.zeros(1, np.uint8))
        if node.op == "Relu":
            return f"the zero point behind it is {int(zero_point.ravel()[0])}, not the smallest code"
        return "it cuts inside the range of the codes behind it"
    return "it follows no operator that could take it in"


def _is_redundant(graph: Graph, node: Node, quantizer: Node) -> bool:
    scale = graph.constants.get(quantizer.input(1))
    if scale is None:
        return False
    params = quantization_from_constants(scale, graph.constants.get(quantizer.input(2)), quantizer)
    if node.op == "Relu":
        return Clamp(0.0, np.inf).redundant_before(params)
    bounds = [-np.inf, np.inf]
    for index, name in enumerate(("min", "max")):
        constant = graph.constants.get(node.input(index + 1))
        value = node.attributes.get(name) if constant is None else float(constant.reshape(()))
        bounds[index] = bounds[index] if value is None else float(value)
    return Clamp(bounds[0], bounds[1]).redundant_before(params)


def _reason_for_move(graph: Graph, node: Node, types: Mapping[str, int]) -> str:
    if node.op in _NO_INTEGER_MOVE:
        return f"ONNX Runtime has no 8-bit {node.op} kernel"
    if reason := _reason_for_operand(graph, node.input(0), "input"):
        return reason
    source = graph.producers[node.input(0)]
    for name in node.outputs:
        reader = graph.only_consumer(name)
        if reader is None:
            return _reason_for_readers(graph, name)
        if reader.op != "QuantizeLinear":
            return f"its float result goes to {reader.op} '{reader.name}' instead of a QuantizeLinear"
        if not source.input(2) or not reader.input(2):
            return "a DequantizeLinear or QuantizeLinear beside it has no zero point"
        for index, what in ((1, "scale"), (2, "zero point")):
            before, after = graph.constants.get(source.input(index)), graph.constants.get(reader.input(index))
            if before is None or after is None or not np.array_equal(before, after):
                return f"the {what} before and behind it differs"
    return _UNKNOWN


def _type_name(element_type: int) -> str:
    return str(onnx.TensorProto.DataType.Name(element_type))
