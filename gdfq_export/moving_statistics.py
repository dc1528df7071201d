"""A student whose batch norms are re-estimated in training: GDFQ without fixed statistics ("w/o FBNS", Table 4).

The plan quantizes folded weights, and what a folded layer returns is what its batch norm would: values of mean beta
and standard deviation |gamma|. Batch norm does not see an affine map of its input, so a batch norm put *behind* the
folded layer is the one that was folded, free to move again:

    y = scale * (x - mean) / sqrt(variance + eps) + shift       mean, variance: of the batch; running in the file
    at the start  mean = shift = beta,  variance = gamma^2,  scale = sqrt(gamma^2 + eps):  y = x

Afterwards it is folded once more, into the layer's weights and their scales alike, so that no code changes:

    k = scale / sqrt(variance + eps);   w <- k * w,   s_w <- |k| * s_w,   b <- k * (b - mean) + shift
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.graph import Graph, derived
from gdfq_export.lower import Quantized
from gdfq_export.ops import LAYERS
from gdfq_export.quantizers import over_channels

EPS = 1e-5


class MovingNorm(nn.Module):
    """A batch norm that starts as the identity."""

    def __init__(self, gamma: Tensor, beta: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", beta.float().clone())
        self.register_buffer("variance", gamma.float().square())
        self.scale = nn.Parameter((gamma.float().square() + EPS).sqrt())
        self.shift = nn.Parameter(beta.float().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) -> (N, C, ...); moves the running statistics in training."""
        mean, variance = self.get_buffer("mean"), self.get_buffer("variance")
        return F.batch_norm(x, mean, variance, self.scale, self.shift, self.training, 0.1, EPS)

    @torch.no_grad()
    def affine(self) -> tuple[Tensor, Tensor]:
        """y = k * x + offset with the running statistics."""
        factor = self.scale * torch.rsqrt(self.get_buffer("variance") + EPS)
        return factor, self.shift - factor * self.get_buffer("mean")


def normalised_layers(captured: Graph, folded: Graph) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer of the folded graph -> gamma and beta of the batch norm that was folded into it."""
    layers = {node.name: node.parameters["weight"] for node in folded.nodes if node.op in LAYERS}
    found = {}
    for node in captured.of("batch_norm"):
        gamma, beta = captured.parameter(node, "weight"), captured.parameter(node, "bias")
        for layer in (node.name, derived(node.name, "affine"), node.inputs[0]):
            if layers.get(layer) == f"{layer}/weight":  # the name that folding gives
                channels = node.shape[0]
                found[layer] = (
                    torch.ones(channels) if gamma is None else gamma,
                    torch.zeros(channels) if beta is None else beta,
                )
                break
    return found


class MovingStatisticsProgram(FakeQuantProgram):
    """The trainable simulation with a moving batch norm behind each layer that had one."""

    def __init__(self, quantized: Quantized, captured: Graph, *, learned_steps: bool) -> None:
        super().__init__(quantized, learned_steps=learned_steps)
        self.slots = {}
        self.norms = nn.ModuleDict()
        for index, (layer, (gamma, beta)) in enumerate(normalised_layers(captured, quantized.graph).items()):
            self.slots[layer] = f"n{index}"
            self.norms[f"n{index}"] = MovingNorm(gamma, beta)

    def finish_layer(self, name: str, value: Tensor) -> Tensor:
        """Normalises what a layer returns."""
        return torch.as_tensor(self.norms[self.slots[name]](value)) if name in self.slots else value

    def quantized(self) -> Quantized:
        """The trained values, with the batch norms folded in."""
        plain = super().quantized()
        parameters, scales = dict(plain.graph.parameters), dict(plain.weight_scales)
        for layer, slot in self.slots.items():
            norm = self.norms[slot]
            assert isinstance(norm, MovingNorm)
            factor, offset = (value.cpu() for value in norm.affine())
            keys = plain.graph[layer].parameters
            weight = parameters[keys["weight"]]
            parameters[keys["weight"]] = weight * over_channels(factor, weight)
            parameters[keys["bias"]] = parameters[keys["bias"]] * factor + offset
            scales[layer] = scales[layer] * factor.abs()
        graph = Graph(plain.graph.nodes, parameters, plain.graph.output)
        return dataclasses.replace(plain, graph=graph, weight_scales=scales)
