"""Writes fused quantized operators out as QDQ, so that files in QOperator form are checked by the same reference.

    QLinearConv(x, sx, zx, w, sw, zw, sy, zy, b) = QuantizeLinear(Conv(DQ(x), DQ(w), DQ(b, sx*sw)), sy, zy)

Such files come from quantize_static(quant_format=QOperator) and from the runtime's own optimized models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx

from gdfq_export.runtime_checks.errors import UnsupportedGraphError
from gdfq_export.runtime_checks.graph import Array, Graph, Node, make_graph


@dataclass(frozen=True, eq=False)
class _Rewrite:
    """The nodes and constants that take the place of one fused operator."""

    node: Node
    graph: Graph
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)

    def dequantized(self, codes: str, scale: str, zero_point: str, axis: int | None = None) -> str:
        """The name of DequantizeLinear(codes, scale, zero_point)."""
        name = f"{self.node.name}/dequantized{len(self.nodes)}"
        attributes = {} if axis is None else {"axis": axis}
        self.nodes.append(Node(name, "DequantizeLinear", "", (codes, scale, zero_point), (name,), attributes))
        return name

    def bias(self, codes: str, scale_x: str, scale_w: str) -> str:
        """The int32 bias under the scale sx * sw."""
        scale = f"{self.node.name}/bias_scale"
        self.constants[scale] = self._constant(scale_x) * self._constant(scale_w)
        return self.dequantized(codes, scale, "", 0)

    def finish(self, op: str, inputs: tuple[str, ...], attributes: dict[str, object], *quantization: str) -> None:
        """The float operator, and the QuantizeLinear behind it where there are parameters for one."""
        scale = quantization[0] if quantization else ""
        result = f"{self.node.name}/{op}" if scale else self.node.outputs[0]
        self.nodes.append(Node(self.node.name, op, "", inputs, (result,), attributes))
        if scale:
            name = f"{self.node.name}/QuantizeLinear"
            self.nodes.append(Node(name, "QuantizeLinear", "", (result, *quantization), self.node.outputs, {}))

    def _constant(self, name: str) -> Array:
        if name not in self.graph.constants:
            raise UnsupportedGraphError(f"{self.node.op} '{self.node.name}': scale '{name}' must be a constant")
        return self.graph.constants[name]


def _conv(rewrite: _Rewrite) -> None:
    x, sx, zx, w, sw, zw, sy, zy = rewrite.node.inputs[:8]
    inputs = [rewrite.dequantized(x, sx, zx), rewrite.dequantized(w, sw, zw, 0)]
    if bias := rewrite.node.input(8):
        inputs.append(rewrite.bias(bias, sx, sw))
    attributes = {key: value for key, value in rewrite.node.attributes.items() if key != "channels_last"}
    rewrite.finish("Conv", tuple(inputs), attributes, sy, zy)


def _gemm(rewrite: _Rewrite) -> None:
    node = rewrite.node
    a, sa, za, b, sb, zb = node.inputs[:6]
    axis = 0 if node.attributes.get("transB", 0) else 1
    inputs = [rewrite.dequantized(a, sa, za), rewrite.dequantized(b, sb, zb, axis)]
    if bias := node.input(6):
        inputs.append(rewrite.bias(bias, sa, sb))
    rewrite.finish("Gemm", tuple(inputs), dict(node.attributes), node.input(7), node.input(8))


def _matmul(rewrite: _Rewrite) -> None:
    a, sa, za, b, sb, zb, sy, zy = rewrite.node.inputs[:8]
    rewrite.finish("MatMul", (rewrite.dequantized(a, sa, za), rewrite.dequantized(b, sb, zb, 1)), {}, sy, zy)


def _binary(op: str) -> Callable[[_Rewrite], None]:
    def rewrite_binary(rewrite: _Rewrite) -> None:
        a, sa, za, b, sb, zb, sc = rewrite.node.inputs[:7]
        inputs = (rewrite.dequantized(a, sa, za), rewrite.dequantized(b, sb, zb))
        rewrite.finish(op, inputs, {}, sc, rewrite.node.input(7))

    return rewrite_binary


def _unary(op: str) -> Callable[[_Rewrite], None]:
    def rewrite_unary(rewrite: _Rewrite) -> None:
        x, sx, zx, sy = rewrite.node.inputs[:4]
        attributes = {k: v for k, v in rewrite.node.attributes.items() if k not in ("channels_last", "opset")}
        rewrite.finish(op, (rewrite.dequantized(x, sx, zx),), attributes, sy, rewrite.node.input(4))

    return rewrite_unary


def _concat(rewrite: _Rewrite) -> None:
    inputs = rewrite.node.inputs
    triples = zip(inputs[2::3], inputs[3::3], inputs[4::3], strict=True)
    parts = tuple(rewrite.dequantized(codes, scale, zero_point) for codes, scale, zero_point in triples)
    rewrite.finish("Concat", parts, dict(rewrite.node.attributes), inputs[0], inputs[1])


_REWRITES: dict[str, Callable[[_Rewrite], None]] = {
    "QGemm": _gemm,
    "QLinearAdd": _binary("Add"),
    "QLinearAveragePool": _unary("AveragePool"),
    "QLinearConcat": _concat,
    "QLinearConv": _conv,
    "QLinearGlobalAveragePool": _unary("GlobalAveragePool"),
    "QLinearLeakyRelu": _unary("LeakyRelu"),
    "QLinearMatMul": _matmul,
    "QLinearMul": _binary("Mul"),
    "QLinearSigmoid": _unary("Sigmoid"),
    "QLinearSoftmax": _unary("Softmax"),
}


def lower_qoperators(graph: Graph) -> Graph:
    """The same network with every fused quantized operator written out."""
    nodes: list[Node] = []
    constants, types = dict(graph.constants), dict(graph.constant_types)
    for node in graph.nodes:
        if node.op not in _REWRITES:
            nodes.append(_in_standard_domain(node))
            continue
        if node.attributes.get("channels_last", 0):
            raise UnsupportedGraphError(f"{node.op} '{node.name}' is laid out channels-last: check the file before ORT")
        rewrite = _Rewrite(node, graph)
        _REWRITES[node.op](rewrite)
        nodes += rewrite.nodes
        for name, array in rewrite.constants.items():
            constants[name], types[name] = np.asarray(array, np.float32), onnx.TensorProto.FLOAT
    return make_graph(nodes, constants, types, graph.input, graph.outputs, graph.opset)


def _in_standard_domain(node: Node) -> Node:
    """The runtime's own QuantizeLinear and DequantizeLinear mean the same as the standard ones."""
    if node.domain and node.op in ("QuantizeLinear", "DequantizeLinear"):
        return Node(node.name, node.op, "", node.inputs, node.outputs, node.attributes)
    return node
