"""Element types of the tensors of a graph, by data flow: which of them hold integer codes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from gdfq_export.runtime_checks.graph import Graph, Node

CODE_TYPES = (
    onnx.TensorProto.UINT8,
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT16,
    onnx.TensorProto.INT16,
)
FLOAT_TYPES = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
)
INDEX_TYPES = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)

_OUTPUT_ZERO_POINT = {  # input that holds the zero point of the result, and so its type
    "QLinearConv": 7,
    "QLinearMatMul": 7,
    "QLinearAdd": 7,
    "QLinearMul": 7,
    "QGemm": 8,
    "QLinearConcat": 1,
}
_FLOAT_RESULT = ("DequantizeLinear", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits")
_INDEX_RESULT = ("Shape", "Size", "ArgMax", "ArgMin", "NonZero")
_INT32_RESULT = ("ConvInteger", "MatMulInteger")


def element_types(graph: Graph) -> dict[str, int]:
    """The element type of every tensor of `graph`."""
    types = dict(graph.constant_types)
    types[graph.input.name] = graph.input.type.tensor_type.elem_type
    for node in graph.nodes:
        result = _result_type(node, types)
        types.update((name, result) for name in node.outputs if name)
    return types


def code_tensors(graph: Graph) -> dict[str, int]:
    """The computed tensors that hold integer codes, in topological order, with their types."""
    types = element_types(graph)
    names: Iterable[str] = (name for node in graph.nodes for name in node.outputs if name)
    return {name: types[name] for name in names if types[name] in CODE_TYPES}


def _result_type(node: Node, types: Mapping[str, int]) -> int:
    if node.op == "QuantizeLinear":
        if zero_point := node.input(2):
            return types[zero_point]
        return int(node.attributes.get("output_dtype", 0)) or onnx.TensorProto.UINT8
    if node.op == "Cast":
        return int(node.attributes["to"])
    if node.op in _FLOAT_RESULT:
        return int(onnx.TensorProto.FLOAT)
    if node.op in _INDEX_RESULT:
        return int(onnx.TensorProto.INT64)
    if node.op in _INT32_RESULT:
        return int(onnx.TensorProto.INT32)
    if node.op == "DynamicQuantizeLinear":
        return int(onnx.TensorProto.UINT8)
    if node.op in _OUTPUT_ZERO_POINT:
        zero_point = node.input(_OUTPUT_ZERO_POINT[node.op])
        return types.get(zero_point, onnx.TensorProto.FLOAT if node.op == "QGemm" else onnx.TensorProto.UINT8)
    known = (types[name] for name in node.inputs if name in types)
    return int(next(known, onnx.TensorProto.FLOAT))
