"""integer model -> PyTorch program that computes with the same integers as ONNX Runtime's fused kernels.

Codes travel as integers held in float32, where sums below 2^24 are exact in any order; a layer whose accumulator
could pass that runs in float64 (exact below 2^53). The requantization is the kernels' own, in float32:

    layer        acc = sum (q_x - z_x) * q_w + q_b;   q = round(clamp(f32(acc) * s, -z, 255 - z)) + z,  s = sx*sw/sy
    logits       f32(acc) * f32(sx * sw)
    sum          fma(a, ra, fma(b, rb, f)),  product  round(p * s + z)
    mean         round(f32(sum - z_x * N) * s) + z,   s = sx / (sy * N)
    table        Q(f(DQ(code))) for each of the 256 codes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gdfq_export.arithmetic import sigmoid_codes
from gdfq_export.graph import INPUT, Graph, Node
from gdfq_export.integer import IntegerModel, QLayer, QTensor, operands_of
from gdfq_export.ops import KERNELS, LAYERS, MOVEMENT, avg_pool, convolve, is_lookup, max_pool
from gdfq_export.plan import CODE_CLIPS, quantized_part

F32 = np.float32
EXACT_FLOAT32 = 2**24
TABLES = frozenset({"leaky_relu", "sigmoid"})


def dequantize(codes: Tensor, tensor: QTensor) -> Tensor:
    """x_hat = (q - z) * s in float32."""
    return (codes - tensor.zero_point) * float(tensor.scale)


def quantize(x: Tensor, tensor: QTensor) -> Tensor:
    """q = clamp(round(x / s) + z, 0, qmax)."""
    return torch.clamp(torch.round(x / float(tensor.scale)) + tensor.zero_point, 0, tensor.qmax)


def _multiply_add(a: Tensor, b: float, c: Tensor | float) -> Tensor:
    """float32(a * b + c) with one rounding: exact in float64, because a is a small integer."""
    return (a.double() * b + (c.double() if isinstance(c, Tensor) else c)).float()


def _add(a: Tensor, b: Tensor, qa: QTensor, qb: QTensor, qc: QTensor) -> Tensor:
    ra, rb = F32(qa.scale / qc.scale), F32(qb.scale / qc.scale)
    inner = F32(np.float64(ra) * qa.zero_point + np.float64(F32(rb * F32(qb.zero_point))))
    fixed = float(F32(F32(qc.zero_point) - inner))
    total = _multiply_add(a, float(ra), _multiply_add(b, float(rb), fixed))
    return torch.clamp(torch.round(total), 0, qc.qmax)


def _mul(a: Tensor, b: Tensor, qa: QTensor, qb: QTensor, qc: QTensor) -> Tensor:
    scale = float(F32(F32(qa.scale * qb.scale) / qc.scale))
    product = (a - qa.zero_point) * (b - qb.zero_point)
    return torch.clamp(torch.round(product * scale + qc.zero_point), 0, qc.qmax)


def _global_mean(x: Tensor, qx: QTensor, qy: QTensor) -> Tensor:
    space = list(range(2, x.ndim))
    count = int(np.prod([x.shape[axis] for axis in space]))
    scale = float(F32(qx.scale / F32(qy.scale * F32(count))))
    total = x.double().sum(space, keepdim=True) - qx.zero_point * count
    return torch.clamp(torch.round(total.float() * scale) + qy.zero_point, 0, qy.qmax)


class _Layer(nn.Module):
    """Convolution or linear layer on codes; without `result` it returns float logits."""

    def __init__(self, layer: QLayer, node: Node, source: QTensor, result: QTensor | None) -> None:
        super().__init__()
        self.node, self.source, self.result = node, source, result
        reach = np.abs(layer.q_weight.astype(np.int64)).reshape(len(layer.q_bias), -1).sum(1) * source.qmax
        reach = reach + np.abs(layer.q_bias.astype(np.int64))
        self.wide = bool(reach.max() >= EXACT_FLOAT32)
        kind = torch.float64 if self.wide else torch.float32
        self.register_buffer("weight", torch.from_numpy(layer.q_weight.copy()))
        self.register_buffer("bias", torch.from_numpy(layer.q_bias.copy()).to(kind))  # exact, see `reach`
        product = (source.scale * layer.scale).astype(F32)
        scale = product if result is None else (product / result.scale).astype(F32)
        shape = (-1,) if node.op == "linear" else (-1, *[1] * (layer.q_weight.ndim - 2))
        self.register_buffer("scale", torch.from_numpy(scale.copy()).view(shape))
        self.kind = kind

    def forward(self, codes: Tensor) -> Tensor:
        """Codes of the input -> codes of the output; what would change nothing is left out, `torch.export` is slow."""
        x = codes - self.source.zero_point if self.source.zero_point else codes
        x = x.to(self.kind) if self.wide else x
        weight, bias = self.get_buffer("weight").to(self.kind), self.get_buffer("bias")
        accumulator = F.linear(x, weight, bias) if self.node.op == "linear" else convolve(self.node, x, weight, bias)
        value = (accumulator.float() if self.wide else accumulator) * self.get_buffer("scale")
        if self.result is None:
            return value
        # Limits are whole numbers, so it is all the same what comes first; these are the same in all layers, whose
        # clamps `torch.export` then looks up instead of tracing them anew.
        zero = self.result.zero_point
        return torch.clamp(torch.round(value) + zero if zero else torch.round(value), 0, self.result.qmax)


class IntegerProgram(nn.Module):
    """Float images -> float logits, with integers in between; exportable with `torch.export`."""

    def __init__(self, model: IntegerModel) -> None:
        super().__init__()
        self.model = model
        self.layers = nn.ModuleDict()
        self.pixels: _Layer | None = None
        if model.pixels is not None:
            first = model.pixels
            self.pixels = _Layer(first.layer, first.node, first.source, model.tensors[INPUT])
        nodes, self.integer_output = quantized_part(model.graph)
        self.steps: list[tuple[Node, Callable[[Sequence[Tensor]], Tensor]]] = []
        for node in nodes:
            if node.op != INPUT and not model.is_absorbed(node):
                self.steps.append((node, self._step(node)))
        self.endings = [node for node in model.graph.nodes if node not in nodes]

    def _result(self, node: Node) -> QTensor | None:
        """Parameters of the tensor that a kernel writes, the absorbed activation's where there is one."""
        return self.model.tensors.get(self.model.plan.absorbed.get(node.name, node.name))

    def _step(self, node: Node) -> Callable[[Sequence[Tensor]], Tensor]:
        tensors, result = self.model.tensors, self._result(node)
        if node.op in LAYERS:
            layer = _Layer(self.model.layers[node.name], node, tensors[node.inputs[0]], result)
            self.layers[f"layer{len(self.layers)}"] = layer
            return lambda x: layer(x[0])
        if result is None:
            raise AssertionError(f"{node.name} has no quantized result")
        inputs = [tensors[name] for name in node.inputs]
        if node.op == "constant":
            value = self.model.graph.parameters[node.parameters["value"]]
            codes = quantize(value.float(), result)
            return lambda x: codes
        if self.model.moves_codes(node.name):
            return _movement(node, inputs[0], result)
        if node.op == "add":
            return lambda x: _add(x[0], x[1], inputs[0], inputs[1], result)
        if node.op == "add_scalar" and not is_lookup(node):
            pair = operands_of(node, tensors)
            assert pair is not None
            code = 255.0 if node.attributes["value"] >= 0 else 0.0
            return lambda x: _add(x[0], torch.tensor(code), pair[0], pair[1], result)
        if node.op == "mul":
            return lambda x: _mul(x[0], x[1], inputs[0], inputs[1], result)
        if node.op == "global_avg_pool":
            return lambda x: _global_mean(x[0], inputs[0], result)
        if node.op == "avg_pool":
            return self._mean_step(node, inputs[0], result)
        if node.op == "concat":
            tables = [requantize_table(tensor, result) for tensor in inputs]
            axis = node.attributes["axis"]
            return lambda x: torch.cat([table[v.long()] for table, v in zip(tables, x, strict=True)], axis)
        if node.op == "max":
            first, second = (requantize_table(tensor, result) for tensor in inputs)
            return lambda x: torch.maximum(first[x[0].long()], second[x[1].long()])
        if node.op in TABLES or is_lookup(node):
            table = function_table(node, inputs[0], result)
            return lambda x: table[x[0].long()]
        return self._float_step(node, inputs, result)

    def _mean_step(self, node: Node, source: QTensor, result: QTensor) -> Callable[[Sequence[Tensor]], Tensor]:
        """Average pooling in float; its kernel adds the zero point before it rounds."""

        def step(x: Sequence[Tensor]) -> Tensor:
            mean = avg_pool(node, dequantize(x[0], source)) / float(result.scale)
            return torch.clamp(torch.round(mean + result.zero_point), 0, result.qmax)

        return step

    def _float_step(
        self, node: Node, inputs: Sequence[QTensor], result: QTensor
    ) -> Callable[[Sequence[Tensor]], Tensor]:
        """What ONNX Runtime computes in float between a dequantize and a quantize."""
        held = {role: self.model.graph.parameters[key] for role, key in node.parameters.items()}

        def step(x: Sequence[Tensor]) -> Tensor:
            floats = [dequantize(value, tensor) for value, tensor in zip(x, inputs, strict=True)]
            return quantize(KERNELS[node.op](node, floats, held), result)

        return step

    def input_codes(self, images: Tensor) -> Tensor:
        """Codes (N, C, H, W) of normalised images (N, C, H, W), or of bytes (N, H, W, C)."""
        if self.pixels is None:
            return quantize(images, self.model.tensors[INPUT])
        return torch.as_tensor(self.pixels(images.permute(0, 3, 1, 2).float()))

    def run_codes(self, images: Tensor, visit: Callable[[str, Tensor], None] | None = None) -> Tensor:
        """Codes (or, of a linear layer, floats) of the last tensor; `visit` sees every tensor of codes."""
        graph = self.model.graph
        values = {INPUT: self.input_codes(images)}
        last = last_uses(graph)
        if visit:
            visit(INPUT, values[INPUT])
        for node, step in self.steps:
            name = self.model.plan.absorbed.get(node.name, node.name)
            values[name] = step([values[source] for source in node.inputs])
            if visit:
                visit(name, values[name])
            for source in node.inputs:
                if last[source] == node.name and source != self.integer_output:
                    values.pop(source, None)
        return values[self.model.plan.absorbed.get(self.integer_output, self.integer_output)]

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W), or bytes (N, H, W, C) -> logits (N, classes)."""
        output = self.run_codes(images)
        tensor = self.model.tensors.get(self.integer_output)
        value = output if tensor is None else dequantize(output, tensor)
        for node in self.endings:
            value = KERNELS[node.op](node, [value], {})
        return value


def last_uses(graph: Graph) -> dict[str, str]:
    """Tensor -> name of the last node that reads it."""
    return {name: node.name for node in graph.nodes for name in node.inputs}


def requantize_table(source: QTensor, result: QTensor) -> Tensor:
    """code -> code with another scale, for each of the 256 codes."""
    return quantize(dequantize(torch.arange(256.0), source), result)


def function_table(node: Node, source: QTensor, result: QTensor) -> Tensor:
    """Q(f(DQ(code))) for each of the 256 codes."""
    if node.op == "sigmoid":  # the runtime's own approximation, not PyTorch's
        return torch.from_numpy(sigmoid_codes(source, result)).float().clamp(0, result.qmax)
    return quantize(KERNELS[node.op](node, [dequantize(torch.arange(256.0), source)], {}), result)


def _movement(node: Node, source: QTensor, result: QTensor) -> Callable[[Sequence[Tensor]], Tensor]:
    """Operations that keep codes: the float kernel works on codes as it does on values."""
    if node.op == "mul_scalar":
        return lambda x: x[0]
    if node.op in CODE_CLIPS:
        low, high = code_limits(node, result)
        return lambda x: torch.clamp(x[0], low, high)
    if node.op == "pad_channels":
        return lambda x: F.pad(x[0], (0, 0, 0, 0, 0, node.attributes["count"]), value=float(source.zero_point))
    if node.op == "max_pool":
        return lambda x: max_pool(node, x[0], 0.0)
    if node.op == "pad":
        code = float(np.clip(np.rint(node.attributes["value"] / source.scale) + source.zero_point, 0, source.qmax))
        padded = node.replace(attributes={**node.attributes, "value": code})
        return lambda x: KERNELS["pad"](padded, x, {})
    if node.op in MOVEMENT or node.op == "max":
        return lambda x: KERNELS[node.op](node, x, {})
    raise AssertionError(f"{node.op} does not move codes")


def code_limits(node: Node, tensor: QTensor) -> tuple[int, int]:
    """The codes between which a ReLU or Clip keeps its input."""
    low = 0.0 if node.op == "relu" else node.attributes["low"]
    high = np.inf if node.op == "relu" else node.attributes["high"]
    limits = [
        np.clip(np.rint(np.float64(v) / np.float64(tensor.scale)) + tensor.zero_point, 0, tensor.qmax)
        for v in (low, high)
    ]
    return int(limits[0]), int(limits[1])
