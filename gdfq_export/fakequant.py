"""The trainable simulation of the integer network: float weights, rounded on the way.

Every tensor that the plan rounds is rounded here, with the same grid, from the first step on: what is trained is
what is exported. Weights and biases are trained; with `learned` steps so are the scales of activations and weights.

    forward   x_hat = s * (clamp(round(x / s) + z, 0, qmax) - z)
    d/dx      1 inside the range, 0 where clipped
    d/ds      (x_hat - x) / s inside, the clipped code's distance to z outside           (LSQ, Esser et al. 2020)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gdfq_export.distributed import size
from gdfq_export.graph import INPUT, Graph, Node
from gdfq_export.lower import Quantized
from gdfq_export.ops import KERNELS, LAYERS, convolve
from gdfq_export.plan import Plan
from gdfq_export.quantizers import Affine, over_channels


class _Round(torch.autograd.Function):
    """Fake quantization with a straight-through gradient for x and LSQ's for the scale."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: float, qmin: float, qmax: float, floor: float | None, parts: int
    ) -> Tensor:
        """`scale` broadcasts against x; below `floor`, in units of it, there is no gradient."""
        low, high = qmin - zero_point, qmax - zero_point
        ratio = x / scale
        rounded = torch.round(ratio).clamp_(low, high).mul_(scale)
        ctx.limits = (low - 0.5 if floor is None else floor, high + 0.5)
        ctx.parts = parts
        ctx.save_for_backward(ratio, rounded if ctx.needs_input_grad[1] else None, scale)
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for x and, where it is trained, the scale."""
        ratio, rounded, scale = ctx.saved_tensors
        gradient = laid_out_like(gradients[0], ratio)
        to_x = torch.ops.aten.hardtanh_backward(gradient, ratio, *ctx.limits)  # one pass, no mask kept
        to_scale = None
        if ctx.needs_input_grad[1]:
            inside = torch.ops.aten.hardtanh_backward(ratio, ratio, *ctx.limits)  # the ratio, or 0 where it is clipped
            to_scale = _sum_of_products(gradient, (rounded / scale).sub_(inside), scale)
            to_scale = to_scale / (ctx.parts * gradient.numel() / max(to_scale.numel(), 1)) ** 0.5
        return to_x, to_scale, None, None, None, None, None


def laid_out_like(x: Tensor, other: Tensor) -> Tensor:
    """x in the memory layout of `other`, so that everything behind it runs in that layout too.

    A mean over space gives its gradient in none; a whole backward pass with channels first among activations with
    channels last would follow from it.
    """
    return x if x.stride() == other.stride() else torch.empty_like(other).copy_(x)


def _sum_of_products(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """sum(a b), to the shape of `like`; of all of them in one pass, without the products in memory."""
    if like.ndim or a.stride() != b.stride() or not torch.ops.aten.is_non_overlapping_and_dense(a):
        return (a * b).sum_to_size(like.shape)
    return torch.dot(*(value.as_strided((value.numel(),), (1,)) for value in (a, b)))


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: float, qmin: float, qmax: float, floor: float | None = None, parts: int = 1
) -> Tensor:
    """x on the grid, with gradients; with `floor` 0 and a zero point of 0 the ReLU of x is part of it.

    `parts` processes hold tensors like x, of one whole batch.
    """
    rounded = _Round.apply(x, scale, zero_point, qmin, qmax, floor, parts)  # type: ignore[no-untyped-call]
    return torch.as_tensor(rounded)


class FakeQuantProgram(nn.Module):
    """A quantized network that can be trained and turned back into `Quantized`."""

    def __init__(self, quantized: Quantized, *, learned_steps: bool) -> None:
        super().__init__()
        self.graph: Graph = quantized.graph
        self.plan: Plan = quantized.plan
        self.coarser = quantized.coarser
        self.keys = {key: f"p{index}" for index, key in enumerate(self.graph.parameters)}
        self.values = nn.ParameterDict(
            {slot: nn.Parameter(self.graph.parameters[key].detach().clone()) for key, slot in self.keys.items()}
        )
        self.groups = {group: f"g{index}" for index, group in enumerate(self.plan.groups())}
        self.steps = nn.ParameterDict(
            {
                slot: nn.Parameter(torch.tensor(quantized.affines[group].scale), requires_grad=learned_steps)
                for group, slot in self.groups.items()
            }
        )
        self.zero_points = {group: quantized.affines[group].zero_point for group in self.groups}
        self.layers = {layer: f"w{index}" for index, layer in enumerate(self.plan.weights)}
        self.weight_steps = nn.ParameterDict(
            {
                slot: nn.Parameter(quantized.weight_scales[layer].detach().clone(), requires_grad=learned_steps)
                for layer, slot in self.layers.items()
            }
        )
        self.last_use = {name: index for index, node in enumerate(self.graph.nodes) for name in node.inputs}

    def _held(self, node: Node) -> dict[str, Tensor]:
        return {role: self.values[self.keys[key]] for role, key in node.parameters.items()}

    def step(self, group: str) -> Tensor:
        """The scale of a group of activations."""
        return torch.as_tensor(self.steps[self.groups[group]])

    def _round(self, name: str, value: Tensor) -> Tensor:
        spec = self.plan.tensors[name]
        step = self.step(spec.group)
        floor = 0.0 if self._is_saturation(self.graph[name]) else None
        return fake_quantize(value, step * spec.factor, self.zero_points[spec.group], 0, spec.qmax, floor, size())

    def _is_saturation(self, node: Node) -> bool:
        """Whether a ReLU is the lower end of its own quantizer, and needs no operator."""
        absorbed = bool(node.inputs) and self.plan.absorbed.get(node.inputs[0]) == node.name
        return node.op == "relu" and absorbed and self.plan.tensors[node.name].symmetry == "unsigned"

    def _weight(self, node: Node, held: Mapping[str, Tensor]) -> Tensor:
        qmax = self.plan.weights[node.name].qmax
        step = self.weight_steps[self.layers[node.name]]
        weight = held["weight"]
        return fake_quantize(weight, over_channels(step, weight), 0, -qmax, qmax)

    def finish_layer(self, name: str, value: Tensor) -> Tensor:
        """What happens to a layer's result before it is rounded: nothing, while batch norm is folded."""
        return value

    def forward(self, x: Tensor, visit: Callable[[str, Tensor], None] | None = None) -> Tensor:
        """Normalised images -> logits of the simulated integer network; `visit` sees every rounded tensor by name."""
        values: dict[str, Tensor] = {}
        for index, node in enumerate(self.graph.nodes):
            held = self._held(node)
            if node.op == INPUT:
                value = x
            elif node.op in LAYERS:
                weight, source = self._weight(node, held), values[node.inputs[0]]
                if node.op == "linear":
                    value = nn.functional.linear(source, weight, held.get("bias"))
                else:
                    value = convolve(node, source, weight, held.get("bias"))
                value = self.finish_layer(node.name, value)
            elif self._is_saturation(node):
                value = values[node.inputs[0]]
            else:
                value = KERNELS[node.op](node, [values[name] for name in node.inputs], held)
            if node.name in self.plan.sources:
                value = self._round(node.name, value)
                if visit is not None:
                    visit(node.name, value)
            values[node.name] = value
            for name in node.inputs:
                if self.last_use[name] == index and name != self.graph.output:
                    values.pop(name, None)
        return values[self.graph.output]

    def quantized(self) -> Quantized:
        """The trained values, for lowering."""
        parameters = {key: self.values[slot].detach().cpu() for key, slot in self.keys.items()}
        affines = {
            group: Affine(float(self.steps[slot].detach()), self.zero_points[group])
            for group, slot in self.groups.items()
        }
        scales = {layer: self.weight_steps[slot].detach().cpu() for layer, slot in self.layers.items()}
        graph = Graph(self.graph.nodes, parameters, self.graph.output)
        return Quantized(graph, self.plan, affines, scales, self.coarser)
