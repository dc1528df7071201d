"""fine-tuned graph -> integer model: weights, biases, scales and zero points as they will stand in the file.

    q_w = clamp(round(w / s_w), -qmax, qmax)         per output channel, zero point 0
    q_b = round(b / (s_x * s_w))                     int32

A target may then change what its processors need (see `saturation.py` and `arithmetic.py`): `portable` is exact on
all of them, the others give up what their processor does not need.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from gdfq_export.arithmetic import is_invariant, is_sigmoid_invariant, mean_is_clear_of_ties
from gdfq_export.errors import UnsupportedModelError
from gdfq_export.graph import Graph, Node
from gdfq_export.integer import IntegerModel, PixelInput, QLayer, QTensor, TargetReport
from gdfq_export.pad_depthwise import pad_depthwise
from gdfq_export.plan import Plan
from gdfq_export.pool_as_conv import pool_as_conv, window_of
from gdfq_export.quantizers import Affine, quantize_weight
from gdfq_export.saturation import make_safe

NUDGE = 1.0002
MAX_NUDGES = 200
INT32_MAX = 2**31 - 1
SMALL_WINDOW = 9


@dataclass(frozen=True)
class Target:
    """What a family of processors needs for the same integers everywhere."""

    name: str
    pair_sums: bool  # kernels may add products in a saturating int16
    invariant: bool  # sums and products must not depend on the instruction set


TARGETS = {
    "portable": Target("portable", pair_sums=True, invariant=True),
    "x86-vnni": Target("x86-vnni", pair_sums=False, invariant=False),
    "x86-avx2": Target("x86-avx2", pair_sums=True, invariant=False),
    "arm64": Target("arm64", pair_sums=False, invariant=True),
}


@dataclass(frozen=True, eq=False)
class Quantized:
    """What training hands over: float weights with their scales, and each group's scale and zero point."""

    graph: Graph
    plan: Plan
    affines: Mapping[str, Affine]
    weight_scales: Mapping[str, torch.Tensor]
    coarser: Mapping[str, int] = field(default_factory=dict)  # layer -> channels with larger scales for the target


def integer_model_from_quantized(quantized: Quantized, target: Target) -> IntegerModel:
    """Rounds everything once and for all, then makes it fit the target."""
    graph, plan = quantized.graph, quantized.plan
    scales = {group: np.float32(affine.scale) for group, affine in quantized.affines.items()}
    before = dict(scales)
    if target.invariant:
        _nudge(quantized, scales)
    tensors = _tensors(quantized, scales)
    layers, changed, total = {}, 0, 0
    for name in plan.weights:
        layer, weights_changed = _layer(quantized, tensors, graph[name], target)
        layers[name] = layer
        changed += weights_changed
        total += layer.q_weight.size
    nudges = [float(scales[group] / before[group]) - 1 for group in scales if scales[group] != before[group]]
    channels = sum(len(layer.scale) for layer in layers.values())
    coarser = sum(quantized.coarser.values())
    report = TargetReport(target.name, coarser, channels, changed, total, len(nudges), max(nudges, default=0.0))
    return IntegerModel(graph, plan, tensors, layers, report)


def lower(quantized: Quantized, target: str, without: Collection[str] = ()) -> IntegerModel:
    """The integer model as the file will hold it, for a target and without some passes for speed."""
    model = integer_model_from_quantized(quantized, TARGETS[target])
    if "pool_as_conv" not in without:
        model = pool_as_conv(model)
    return model if "pad_depthwise" in without else pad_depthwise(model)


def with_pixel_input(model: IntegerModel, mean: Sequence[float], std: Sequence[float]) -> IntegerModel:
    """The same model for bytes (N, H, W, C): normalisation becomes an exact integer layer in front."""
    channels, height, width = model.graph.input_shape
    attributes = {"stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1), "groups": channels}
    node = Node("pixels", "conv", ("bytes",), (channels, height, width), attributes, place="the input")
    source = QTensor(np.float32(1 / 255), 0, 255)
    full = np.full((channels, 1, 1, 1), 127, np.int8)  # the weight itself is in the scale
    scale = (1 / (np.asarray(std, np.float64) * 127)).astype(np.float32)
    product = (source.scale * scale).astype(np.float32).astype(np.float64)
    q_bias = np.rint(-np.asarray(mean, np.float64) / np.asarray(std, np.float64) / product).astype(np.int32)
    return dataclasses.replace(model, pixels=PixelInput(node, QLayer(full, scale, q_bias, 8), source))


def _tensors(quantized: Quantized, scales: Mapping[str, np.float32]) -> dict[str, QTensor]:
    tensors = {}
    for name, spec in quantized.plan.tensors.items():
        scale = np.float32(scales[spec.group] * np.float32(spec.factor))
        tensors[name] = QTensor(scale, quantized.affines[spec.group].zero_point, spec.qmax)
    return tensors


def _nudge(quantized: Quantized, scales: dict[str, np.float32]) -> None:
    """Grows the scale of a sum or product in small steps until all instruction sets agree on all pairs.

    A group may hold several sums, and a scale that changes is an operand of later ones, so this repeats until
    nothing changes.
    """
    graph = quantized.graph
    operators = [
        node
        for node in graph.nodes
        if node.op in ("add", "mul", "add_scalar", "sigmoid") or _is_free_mean(node, quantized.plan)
    ]
    for _ in range(MAX_NUDGES):
        stable = True
        for node in operators:
            tensors = _tensors(quantized, scales)
            made = _result_of(node, quantized.plan)
            if made is None or any(name not in tensors for name in node.inputs):
                continue
            group = quantized.plan.tensors[made].group
            for _ in range(MAX_NUDGES):
                result = dataclasses.replace(tensors[made], scale=_tensors(quantized, scales)[made].scale)
                if _is_invariant(graph, node, tensors, result):
                    break
                scales[group] = np.float32(scales[group] * np.float32(NUDGE))
                stable = False
        if stable:
            return
    raise UnsupportedModelError(
        "no scale was found for which all processors add the same integers: use --target x86-vnni or another"
    )


def _is_invariant(graph: Graph, node: Node, tensors: Mapping[str, QTensor], result: QTensor) -> bool:
    if node.op == "sigmoid":
        return is_sigmoid_invariant(tensors[node.inputs[0]], result)
    if node.op == "avg_pool":
        return mean_is_clear_of_ties(tensors[node.inputs[0]], result, window_of(node) or 1)
    operands = operands_of(node, tensors)
    assert operands is not None
    broadcast = node.op == "add_scalar" or len({graph[name].shape for name in node.inputs}) > 1
    return is_invariant("mul" if node.op == "mul" else "add", *operands, result, broadcast=broadcast)


def _is_free_mean(node: Node, plan: Plan) -> bool:
    """Average pooling for which a few nudges find a scale without ties; larger windows have too many sums."""
    small = node.op == "avg_pool" and (window_of(node) or INT32_MAX) <= SMALL_WINDOW
    names = [node.inputs[0], node.name] if small else []
    return len({plan.tensors[name].group for name in names if name in plan.tensors}) == 2


def _result_of(node: Node, plan: Plan) -> str | None:
    """The quantized tensor that a kernel writes: its own, or the activation's that absorbed it."""
    name = plan.absorbed.get(node.name, node.name)
    return name if name in plan.tensors else None


def operands_of(node: Node, tensors: Mapping[str, QTensor]) -> tuple[QTensor, QTensor] | None:
    """The two operands of a sum or product; the constant of `add_scalar` is one code with a scale of its own."""
    if node.op == "add_scalar":
        return tensors[node.inputs[0]], constant_tensor(node.attributes["value"])
    if any(name not in tensors for name in node.inputs):
        return None
    return tensors[node.inputs[0]], tensors[node.inputs[1]]


def constant_tensor(value: float) -> QTensor:
    """A constant c as a code of its own: c = (255 - 0) * c/255, or (0 - 255) * |c|/255 for a negative c."""
    return QTensor(np.float32(abs(value) / 255), 0 if value >= 0 else 255, 255)


def _layer(quantized: Quantized, tensors: Mapping[str, QTensor], node: Node, target: Target) -> tuple[QLayer, int]:
    """One layer's integers, and how many weights the target changed now, after training."""
    graph, spec = quantized.graph, quantized.plan.weights[node.name]
    weight = graph.parameters[node.parameters["weight"]].detach().cpu().double()
    scale = quantized.weight_scales[node.name].detach().cpu().double()
    q_weight = quantize_weight(weight, scale, spec.qmax).numpy().astype(np.int64)
    float_scale, weights_changed = scale.numpy(), 0
    source = tensors[node.inputs[0]]
    bias = graph.parameter(node, "bias")
    float_bias = np.zeros(len(weight)) if bias is None else bias.detach().cpu().double().numpy()
    # A channel whose weights are all but zero: its scale must be as large as its bias asks for.
    reach = np.abs(q_weight).reshape(len(q_weight), -1).sum(1) * source.qmax
    least = np.abs(float_bias) / ((INT32_MAX - reach) * float(source.scale)) * (1 + 1e-6)
    small = float_scale < least
    if small.any():
        float_scale = np.maximum(float_scale, least)
        rounded = quantize_weight(weight, torch.from_numpy(float_scale), spec.qmax).numpy().astype(np.int64)
        q_weight = np.where(small.reshape(-1, *[1] * (weight.ndim - 1)), rounded, q_weight)
    if target.pair_sums and not is_depthwise(graph, node):
        before = q_weight
        q_weight, float_scale, _ = make_safe(weight.numpy(), float_scale, q_weight, source.qmax, spec.qmax)
        weights_changed = int((before != q_weight).sum())
    scale32 = float_scale.astype(np.float32)
    product = (source.scale * scale32).astype(np.float32).astype(np.float64)
    q_bias = np.clip(np.rint(float_bias / product), -INT32_MAX, INT32_MAX)
    layer = QLayer(q_weight.astype(np.int8), scale32, q_bias.astype(np.int32), spec.bits)
    return layer, weights_changed


def is_depthwise(graph: Graph, node: Node) -> bool:
    """One filter for each of several channels: the kernels for these do not add products in pairs."""
    channels = graph[node.inputs[0]].shape[0]
    return node.op == "conv" and node.attributes["groups"] == channels == node.shape[0] and channels > 1
