"""fine-tuned graph -> integer model: weights, biases, scales and zero points as they will stand in the file.

    q_w = clamp(round(w / s_w), -qmax, qmax)         per output channel, zero point 0
    q_b = round(b / (s_x * s_w))                     int32

Scales grow where kernels need it (`kernel_ratios.py`). A target may then change what its processors need (see
`saturation.py` and `agreement.py`): `portable` is exact on all of them, the others give up what their processor does
not need.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from gdfq_export.agreement import agree
from gdfq_export.errors import UnsupportedModelError, UsageError
from gdfq_export.graph import Graph, Node, unused_name
from gdfq_export.integer import IntegerModel, PixelInput, QLayer, QTensor, TargetReport, tensors_from_scales
from gdfq_export.kernel_ratios import grow_scales
from gdfq_export.ops import TABLE
from gdfq_export.pad_depthwise import pad_depthwise
from gdfq_export.plan import Plan
from gdfq_export.pool_as_conv import pool_as_conv
from gdfq_export.quantizers import Affine, quantize_weight
from gdfq_export.saturation import make_safe

INT32_MAX = 2**31 - 1
TINY = np.finfo(np.float32).tiny


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
    tables = grow_scales(graph, plan, quantized.affines, scales)
    before = dict(scales)
    if target.invariant:
        agree(graph, plan, quantized.affines, scales, tables)
    tensors = tensors_from_scales(plan, quantized.affines, scales)
    _check_scales(graph, tensors)
    graph = _with_tables(graph, tables)
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
    name = unused_name("pixels", {node.name for node in model.graph.nodes})
    node = Node(name, "conv", ("bytes",), (channels, height, width), attributes, place="the input")
    source = QTensor(np.float32(1 / 255), 0, 255)
    full = np.full((channels, 1, 1, 1), 127, np.int8)  # the weight itself is in the scale
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # refused below
        scale = (1 / (np.asarray(std, np.float64) * 127)).astype(np.float32)
        product = (source.scale * scale).astype(np.float32).astype(np.float64)
        q_bias = np.rint(-np.asarray(mean, np.float64) / np.asarray(std, np.float64) / product)
    reach = np.abs(q_bias) + 127 * source.qmax
    if not bool((np.isfinite(scale) & (scale > 0) & (reach <= INT32_MAX)).all()):
        raise UsageError(
            f"a mean of {_listed(mean)} and a std of {_listed(std)} do not fit a layer of 32-bit integers in front of "
            "the network: give those of pixels in 0..1"
        )
    q_bias = q_bias.astype(np.int32)
    return dataclasses.replace(model, pixels=PixelInput(node, QLayer(full, scale, q_bias, 8), source))


def _check_scales(graph: Graph, tensors: Mapping[str, QTensor]) -> None:
    """Refuses scales that float32 does not hold as normal numbers."""
    for name, tensor in tensors.items():
        if not TINY <= tensor.scale < np.inf:
            raise UnsupportedModelError(
                f"the values of {name} at {graph[name].place or name} need a scale of {float(tensor.scale):.3g}, which "
                "is no normal number of float32: look for very large or very small weights there and before"
            )


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _with_tables(graph: Graph, tables: Collection[str]) -> Graph:
    """The same network with these nodes marked to be looked up (see `ops.is_lookup`)."""
    nodes = [
        node.replace(attributes={**node.attributes, TABLE: True}) if node.name in tables else node
        for node in graph.nodes
    ]
    return Graph(tuple(nodes), graph.parameters, graph.output) if tables else graph


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
