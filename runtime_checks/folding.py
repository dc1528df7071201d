"""Computes what a graph derives from its constants alone, as the runtime does when it loads the file.

Weights below 8 bits are stored packed and unpacked by Cast, BitShift, BitwiseAnd and Sub: those nodes disappear here
and leave int8 constants. DequantizeLinear stays, because it carries scale and zero point to the integer kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from gdfq_export.runtime_checks.arithmetic import Quantization, quantize
from gdfq_export.runtime_checks.graph import Array, Graph, Node, make_graph
from gdfq_export.runtime_checks.islands import evaluate_node

_NARROW: dict[int, tuple[int, int, np.dtype[Any]]] = {
    onnx.TensorProto.INT4: (-8, 7, np.dtype(np.int8)),
    onnx.TensorProto.UINT4: (0, 15, np.dtype(np.uint8)),
    onnx.TensorProto.INT2: (-2, 1, np.dtype(np.int8)),
    onnx.TensorProto.UINT2: (0, 3, np.dtype(np.uint8)),
}
_KEPT = ("DequantizeLinear", "RandomNormal", "RandomUniform", "If", "Loop", "Scan")
_LIMIT = 1 << 28  # elements; a constant beyond that is left to the runtime


def fold_constants(graph: Graph) -> Graph:
    """The same graph without the nodes that read constants only."""
    constants, types = dict(graph.constants), dict(graph.constant_types)
    nodes = []
    for node in graph.nodes:
        foldable = node.op not in _KEPT and node.inputs and all(not name or name in constants for name in node.inputs)
        if not foldable or any(name in graph.outputs for name in node.outputs) or _too_large(node, constants):
            nodes.append(node)
            continue
        values = [constants[name] if name else None for name in node.inputs]
        for name, (value, element_type) in zip(node.outputs, _evaluate(node, values, graph.opset), strict=False):
            constants[name], types[name] = value, element_type
    return make_graph(nodes, constants, types, graph.input, graph.outputs, graph.opset)


def _too_large(node: Node, constants: dict[str, Array]) -> bool:
    if node.op not in ("Expand", "Tile", "ConstantOfShape"):
        return False
    requested = constants[node.inputs[-1]]
    return bool(np.prod(requested.astype(np.float64)) > _LIMIT)


def _evaluate(node: Node, values: list[Array | None], opset: int) -> list[tuple[Array, int]]:
    if node.op == "Cast" and values[0] is not None:
        return [cast(values[0], int(node.attributes["to"]))]
    if node.op == "QuantizeLinear":
        params = quantization_from_constants(values[1], values[2] if len(values) > 2 else None, node)
        assert values[0] is not None
        codes = quantize(values[0], params)
        return [(codes, helper.np_dtype_to_tensor_dtype(codes.dtype))]
    results = evaluate_node(node, values, opset)
    return [(result, helper.np_dtype_to_tensor_dtype(result.dtype)) for result in results]


def cast(array: Array, element_type: int) -> tuple[Array, int]:
    """ONNX Cast; 2- and 4-bit results wrap into their range and are kept in 8 bits."""
    if element_type in _NARROW:
        low, high, dtype = _NARROW[element_type]
        wrapped = (array.astype(np.int64) - low) % (high - low + 1) + low
        return wrapped.astype(dtype), element_type
    return array.astype(helper.tensor_dtype_to_np_dtype(element_type)), element_type


def quantization_from_constants(scale: Array | None, zero_point: Array | None, node: Node) -> Quantization:
    """The parameters of a QuantizeLinear or DequantizeLinear node; the zero point's type is the type of the codes."""
    assert scale is not None
    if zero_point is None:
        wanted = int(node.attributes.get("output_dtype", 0)) or onnx.TensorProto.UINT8
        dtype = _NARROW[wanted][2] if wanted in _NARROW else np.dtype(helper.tensor_dtype_to_np_dtype(wanted))
        zero_point = np.zeros_like(scale, dtype)
    scale = scale.astype(np.float32)
    if scale.size == 1:
        return Quantization(scale.reshape(()), zero_point.reshape(()), zero_point.dtype)
    return Quantization(scale, zero_point, zero_point.dtype, int(node.attributes.get("axis", 1)))
