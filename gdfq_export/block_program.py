"""A block of the network whose rounding can be learned: weights, scales and biases, with activations rounded at random.

What the letters stand for is in `reconstruct.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gdfq_export.blocks import Block
from gdfq_export.fakequant import fake_quantize, laid_out_like
from gdfq_export.graph import INPUT, Graph, Node
from gdfq_export.lower import Quantized
from gdfq_export.ops import KERNELS, LAYERS
from gdfq_export.plan import TensorSpec, holds_pixels
from gdfq_export.quantizers import Affine

POOL = 1 << 22
STRETCH = 0.1  # h reaches 0 and 1 at finite v


class LearnedRounding(nn.Module):
    """One layer's weights: codes that are rounded down or up as `v` says, times a scale for each output channel."""

    def __init__(self, weight: Tensor, scale: Tensor, qmax: int) -> None:
        super().__init__()
        shape = (-1, *[1] * (weight.ndim - 1))
        scale = scale.to(weight).view(shape)
        ratio = weight / scale
        self.qmax = qmax
        self.register_buffer("scale", scale)
        self.register_buffer("down", torch.floor(ratio))
        share = ((ratio - torch.floor(ratio)).clamp(0, 1) + STRETCH) / (1 + 2 * STRETCH)
        self.v = nn.Parameter(torch.logit(share))
        self.t = nn.Parameter(torch.zeros_like(scale))

    def up(self) -> Tensor:
        """h(v): the share of a step that is added to the code below."""
        return ((1 + 2 * STRETCH) * torch.sigmoid(self.v) - STRETCH).clamp(0, 1)

    def scales(self) -> Tensor:
        """The trained scales, (O, 1, ...)."""
        return self.get_buffer("scale") * self.t.exp()

    def forward(self, hard: bool = False) -> Tensor:
        """The weights; `hard` as they will stand in the file."""
        up = (self.v >= 0).to(self.v) if hard else self.up()
        return self.scales() * (self.get_buffer("down") + up).clamp(-self.qmax, self.qmax)

    def undecided(self, beta: float) -> Tensor:
        """sum(1 - |2h - 1|^beta): zero when every h is 0 or 1."""
        return (1 - (2 * self.up() - 1).abs().pow(beta)).sum()


def largest_step(members: Sequence[TensorSpec], affine: Affine) -> float:
    """The largest scale whose codes stay inside the tensors' bounds, which the quantizer's saturation stands for.

    The scale at the start may be beyond it by the rounding of the zero point.
    """
    z = affine.zero_point
    above = [s.high / (s.qmax - z) / s.factor for s in members if s.qmax > z]
    below = [-s.low / z / s.factor for s in members if z > 0]
    return max(affine.scale, min([*above, *below], default=math.inf))


def noise_behind(quantized: Quantized, node: Node) -> float:
    """One step of the activation that a layer reads, as large as it is behind the layer's weights."""
    spec = quantized.plan.tensors[node.inputs[0]]
    weight = quantized.graph.parameters[node.parameters["weight"]].detach()
    return quantized.affines[spec.group].scale * spec.factor * float(weight.flatten(1).norm(dim=1).mean())


class Dropping:
    """Decides at random which values are rounded: windows into one pool of zeros and ones, laid out like the values.

    Numbers instead of booleans, and `lerp` instead of `where`: those are vectorized.
    """

    def __init__(self, keep: float, randomness: torch.Generator) -> None:
        self.randomness = randomness
        self.pool = torch.rand(POOL, generator=randomness).lt_(keep)

    def kept(self, like: Tensor) -> Tensor:
        """Of the shape and memory layout of a dense tensor, each 1 with probability `keep`."""
        size = like.numel()
        pool = self.pool if size <= POOL // 2 else self.pool.repeat(2 * size // POOL + 1)
        offset = int(torch.randint(0, len(pool) - size + 1, (1,), generator=self.randomness))
        return pool[offset : offset + size].as_strided(like.shape, like.stride(), offset)

    def mix(self, rounded: Tensor, exact: Tensor) -> Tensor:
        """Each element from `rounded` where it is kept, from `exact` otherwise."""
        return torch.lerp(exact, rounded, self.kept(rounded))


class _RoundKept(torch.autograd.Function):
    """Fake quantization of the values that are kept; the others pass. Gradients as in `fakequant`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: int, qmax: int, kept: Tensor) -> Tensor:
        """`scale` is a scalar."""
        ratio = x / scale
        codes = torch.round(ratio).clamp_(-zero_point, qmax - zero_point)
        inside = (codes - ratio).abs_().le_(0.5)  # 0 or 1
        slope = torch.addcmul(codes, ratio, inside, value=-1).mul_(kept)
        ctx.save_for_backward(inside.sub_(1).mul_(kept).add_(1), slope)
        return torch.lerp(x, codes.mul_(scale), kept)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for x and the scale."""
        passes, slope = ctx.saved_tensors
        gradient = laid_out_like(gradients[0], passes)
        return gradient * passes, (gradient * slope).sum(), None, None, None


class BlockProgram(nn.Module):
    """A block whose rounding is learned."""

    def __init__(self, block: Block, quantized: Quantized) -> None:
        super().__init__()
        self.block, self.plan = block, quantized.plan
        graph, plan = quantized.graph, quantized.plan
        self.held = {  # parameters that are not weights or biases of layers: slopes, constants
            node.name: {role: graph.parameters[key] for role, key in node.parameters.items()} for node in block.nodes
        }
        layers = [node for node in block.nodes if node.op in LAYERS]
        self.slots = {node.name: f"l{index}" for index, node in enumerate(layers)}
        self.weights = nn.ModuleDict()
        self.biases = nn.ParameterDict()  # what is added, in units of the noise that it meets
        self.stated: dict[str, tuple[Tensor, float]] = {}  # the biases before, and those units
        self.affines = quantized.affines
        for node in layers:
            weight = graph.parameters[node.parameters["weight"]].float()
            rounding = LearnedRounding(weight, quantized.weight_scales[node.name], plan.weights[node.name].qmax)
            self.weights[self.slots[node.name]] = rounding
            if "bias" in node.parameters:
                bias = graph.parameters[node.parameters["bias"]].detach().float()
                self.biases[self.slots[node.name]] = nn.Parameter(torch.zeros_like(bias))
                self.stated[self.slots[node.name]] = (bias, noise_behind(quantized, node))
        inside = {node.name for node in block.nodes}
        groups = plan.groups()
        here = {plan.tensors[node.name].group for node in block.nodes if node.name in plan.sources}
        own = [  # a scale that other blocks share stays as it is
            group
            for group in groups
            if group in here
            and all(spec.name in inside for spec in groups[group] if spec.name in plan.observed)
            and not holds_pixels(groups[group])
        ]
        self.steps = nn.ParameterDict({f"u{index}": nn.Parameter(torch.zeros(())) for index, _ in enumerate(own)})
        self.own = {group: f"u{index}" for index, group in enumerate(own)}
        self.limits = {group: largest_step(groups[group], self.affines[group]) for group in here}

    def bias(self, slot: str) -> Tensor:
        """A layer's bias."""
        before, unit = self.stated[slot]
        return torch.add(before, self.biases[slot], alpha=unit)

    def step(self, group: str) -> Tensor:
        """The scale of a group of activations."""
        scale = torch.tensor(self.affines[group].scale)
        if group in self.own:
            scale = (scale * self.steps[self.own[group]].exp()).clamp(max=self.limits[group])
        return scale

    def own_steps(self) -> list[tuple[str, Tensor]]:
        """The trained steps of activations by group."""
        return [(group, self.steps[slot]) for group, slot in self.own.items()]

    def half_range(self, group: str) -> float:
        """Half the largest code: how many steps, about, a value is from the middle."""
        return max(spec.qmax for spec in self.plan.groups()[group]) / 2

    def _round(self, spec: TensorSpec, value: Tensor, dropping: Dropping | None) -> Tensor:
        scale, zero_point = self.step(spec.group) * spec.factor, self.affines[spec.group].zero_point
        if dropping is None:
            return fake_quantize(value, scale, zero_point, 0, spec.qmax)
        value = value if value.is_contiguous() else value.contiguous(memory_format=torch.channels_last)
        kept = dropping.kept(value)
        return torch.as_tensor(_RoundKept.apply(value, scale, zero_point, spec.qmax, kept))  # type: ignore[no-untyped-call]

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        *,
        dropping: Dropping | None = None,
        hard: bool = False,
    ) -> dict[str, Tensor]:
        """The block's outputs; `dropping` decides which activations are rounded, without it all of them are."""
        values = dict(inputs)
        for node in self.block.nodes:
            held = dict(self.held[node.name])
            if node.name in self.slots:
                slot = self.slots[node.name]
                held["weight"] = self.weights[slot](hard)
                if slot in self.biases:
                    held["bias"] = self.bias(slot)
            arguments = [values[name] for name in node.inputs]
            value = values[INPUT] if node.op == INPUT else KERNELS[node.op](node, arguments, held)
            if node.name in self.plan.sources:
                value = self._round(self.plan.tensors[node.name], value, dropping)
            values[node.name] = value
        return {name: values[name] for name in self.block.outputs}

    def undecided(self, beta: float) -> Tensor:
        """The regulariser over all layers."""
        terms = [rounding.undecided(beta) for rounding in self.roundings()]
        return torch.stack(terms).sum() if terms else torch.zeros(())

    def roundings(self) -> list[LearnedRounding]:
        """The layers' weights in order."""
        return [self.rounding(layer) for layer in self.slots]

    def rounding(self, layer: str) -> LearnedRounding:
        """One layer's weights."""
        found = self.weights[self.slots[layer]]
        assert isinstance(found, LearnedRounding)
        return found

    @torch.no_grad()
    def learned(self, quantized: Quantized) -> Quantized:
        """`quantized` with what this block learned."""
        parameters, scales = dict(quantized.graph.parameters), dict(quantized.weight_scales)
        for node in self.block.nodes:
            if node.name not in self.slots:
                continue
            slot = self.slots[node.name]
            rounding = self.rounding(node.name)
            parameters[node.parameters["weight"]] = rounding(hard=True).clone()
            scales[node.name] = rounding.scales().flatten().clone()
            if slot in self.biases:
                parameters[node.parameters["bias"]] = self.bias(slot).detach().clone()
        affines = {
            group: Affine(float(self.step(group)), affine.zero_point) if group in self.own else affine
            for group, affine in quantized.affines.items()
        }
        graph = quantized.graph
        return dataclasses.replace(
            quantized,
            graph=Graph(graph.nodes, parameters, graph.output),
            affines=affines,
            weight_scales=scales,
        )
