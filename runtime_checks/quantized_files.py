"""Tells a statically quantized network from the other kinds of ONNX files."""

from __future__ import annotations

from collections import Counter

import onnx

from gdfq_export.runtime_checks.errors import UnsupportedGraphError
from gdfq_export.runtime_checks.graph import Graph

_FUSED = ("QGemm",)


def require_quantized(graph: Graph, name: str) -> str:
    """Tells "QDQ" from "QOperator"; raises with what the file is where it is neither."""
    operators = Counter(node.op for node in graph.nodes)
    if any(op.startswith("QLinear") or op in _FUSED for op in operators):
        return "QOperator"
    quantizers = [node for node in graph.nodes if node.op == "QuantizeLinear"]
    activations = any(not graph.is_constant(node.inputs[0]) for node in quantizers)
    if activations or (operators["DequantizeLinear"] and _reads_codes(graph)):
        return "QDQ"
    text = f"{name}: {_describe(graph, operators)}; quantize it statically (QDQ) to have it checked"
    raise UnsupportedGraphError(text)


def _reads_codes(graph: Graph) -> bool:
    """A network whose input is already made of codes."""
    return bool(graph.input.type.tensor_type.elem_type in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8))


def _describe(graph: Graph, operators: Counter[str]) -> str:
    dynamic = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul")
    if any(operators[op] for op in dynamic):
        return "a dynamically quantized network, whose scales depend on each input"
    if operators["DequantizeLinear"] or operators["MatMulNBits"]:
        return "a network with quantized weights and float activations"
    kind = onnx.TensorProto.DataType.Name(graph.input.type.tensor_type.elem_type).lower()
    common = ", ".join(f"{count} {op}" for op, count in operators.most_common(3))
    return f"a {kind} network that is not quantized ({common})"
