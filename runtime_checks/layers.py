"""The layers with weights, as the integer kernels see them: codes, scales, bias and the range of the input codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from gdfq_export.runtime_checks.arithmetic import Quantization, quantize_bias
from gdfq_export.runtime_checks.code_ranges import CodeRange, code_ranges
from gdfq_export.runtime_checks.folding import quantization_from_constants
from gdfq_export.runtime_checks.graph import Array, Graph, Node, graph_from_model


@dataclass(frozen=True, eq=False)
class Layer:
    """A Conv, Gemm or MatMul with constant quantized weights."""

    name: str
    node: Node
    input: str  # the tensor of codes that it reads
    source: Quantization
    codes: CodeRange  # of the input
    weight: Array  # codes (outputs, K), K in the order in which the kernels pair it: kernel positions, then channels
    weight_params: Quantization
    bias: Array | None  # int32 codes; of a float bias those that the runtime makes of it
    bias_scale: Array | None  # as the file states it
    kernel: tuple[int, ...]  # spatial sizes, empty for matrix products
    depthwise: bool

    @property
    def centred_weight(self) -> Array:
        """Weight codes less their zero point, (outputs, K)."""
        zero_point = self.weight_params.zero_point.astype(np.int64).reshape(-1, 1)
        return np.asarray(self.weight.astype(np.int64) - zero_point)


def layers_of(model: onnx.ModelProto, graph: Graph) -> list[Layer]:
    """The layers of `model`, whose folded graph is `graph`, in topological order."""
    unfolded = graph_from_model(model)
    ranges = code_ranges(graph)
    found = []
    for node in graph.nodes:
        if node.op in ("Conv", "Gemm", "MatMul"):
            layer = _layer(node, graph, unfolded, ranges)
            if layer is not None:
                found.append(layer)
    return found


def group_of(unfolded: Graph, node: Node) -> str:
    """The layer's name: `<group>` where its constants are named `<group>/<role>`, the node's name otherwise."""
    groups = {name.rpartition("/")[0] for name in _constants_behind(unfolded, node.input(1))}
    group = groups.pop() if len(groups) == 1 else ""
    return group or node.name


def _constants_behind(graph: Graph, name: str) -> list[str]:
    """The stored constants that tensor `name` is computed from."""
    if graph.is_constant(name):
        return [name]
    producer = graph.producers.get(name)
    if producer is None:
        return []
    return [constant for item in producer.inputs if item for constant in _constants_behind(graph, item)]


def dequantized_constant(graph: Graph, name: str) -> tuple[Array, Quantization] | None:
    """Codes and parameters of a constant that reaches an operator through DequantizeLinear."""
    producer = graph.producers.get(name)
    if producer is None or producer.op != "DequantizeLinear" or not graph.is_constant(producer.input(0)):
        return None
    if producer.attributes.get("block_size", 0) or not all(map(graph.is_constant, filter(None, producer.inputs))):
        return None
    codes, scale = graph.constants[producer.input(0)], graph.constants[producer.input(1)]
    zero_point = graph.constants.get(producer.input(2), np.zeros_like(scale, codes.dtype))
    return codes, quantization_from_constants(scale, zero_point, producer)


def dequantized_tensor(graph: Graph, name: str) -> tuple[str, Quantization] | None:
    """The tensor of codes behind a DequantizeLinear with one scale, and its parameters."""
    producer = graph.producers.get(name)
    if producer is None or producer.op != "DequantizeLinear" or producer.input(1) not in graph.constants:
        return None
    scale = graph.constants[producer.input(1)]
    zero_point = graph.constants.get(producer.input(2))
    params = quantization_from_constants(scale, zero_point, producer)
    return None if params.axis is not None else (producer.input(0), params)


def _layer(node: Node, graph: Graph, unfolded: Graph, ranges: dict[str, CodeRange]) -> Layer | None:
    source, weight = dequantized_tensor(graph, node.input(0)), dequantized_constant(graph, node.input(1))
    if source is None or weight is None:
        return None
    tensor, params = source
    codes, weight_params = weight
    bias, bias_scale = _bias(node, graph, params.scale * weight_params.scale)
    groups = int(node.attributes.get("group", 1))
    return Layer(
        name=group_of(unfolded, node),
        node=node,
        input=tensor,
        source=params,
        codes=ranges.get(tensor, CodeRange(params.qmin, params.qmax)),
        weight=_pairing_order(node, codes),
        weight_params=weight_params,
        bias=bias,
        bias_scale=bias_scale,
        kernel=codes.shape[2:] if node.op == "Conv" else (),
        depthwise=node.op == "Conv" and codes.shape[1] == 1 and codes.shape[0] == groups,
    )


def _bias(node: Node, graph: Graph, product: Array) -> tuple[Array | None, Array | None]:
    """The bias in units of the accumulator, and the scale that the file states for it."""
    quantized = dequantized_constant(graph, node.input(2)) if node.input(2) else None
    if quantized is not None:
        return quantized[0], quantized[1].scale
    constant = graph.constants.get(node.input(2))
    if constant is not None and constant.dtype == np.float32 and constant.ndim == 1:
        with np.errstate(all="ignore"):
            return quantize_bias(constant, product), None
    return None, None


def _pairing_order(node: Node, codes: Array) -> Array:
    """Weights as (outputs, K): Conv K is (kernel..., channels), Gemm and MatMul K is the shared dimension."""
    if node.op == "Conv":
        return np.moveaxis(codes, 1, -1).reshape(codes.shape[0], -1)
    if node.op == "Gemm" and node.attributes.get("transB", 0):
        return codes
    return np.moveaxis(codes, -2, -1).reshape(-1, codes.shape[-2])
