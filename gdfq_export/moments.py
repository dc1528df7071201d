"""Mean and standard deviation of each channel, as batch norm states them: what is known of activations without data.

y = gamma * (x - mu) / sqrt(var + eps) + beta        mean(y) = beta,  std(y) = |gamma| * sqrt(var / (var + eps))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gdfq_export.graph import Graph, Node


@dataclass(frozen=True, eq=False)
class Moments:
    """First two moments of each channel of a tensor, over images and positions."""

    mean: Tensor  # (C,)
    std: Tensor  # (C,)


def batch_norm_outputs(captured: Graph, folded: Graph) -> dict[str, Moments]:
    """Tensor of the folded graph -> its moments, for every tensor that a batch norm made."""
    names = {node.name for node in folded.nodes}
    found = {}
    for node in captured.of("batch_norm"):
        name = node.name if node.name in names else node.inputs[0]  # folded into its layer, it has the layer's name
        variance = captured.parameters[node.parameters["variance"]].double()
        gamma, beta = captured.parameter(node, "weight"), captured.parameter(node, "bias")
        std = (variance / (variance + node.attributes["eps"])).sqrt()
        std = std if gamma is None else std * gamma.double().abs()
        found[name] = Moments(torch.zeros_like(variance) if beta is None else beta.double(), std)
    return found


def peak(moments: Moments, deviations: float) -> Tensor:
    """The largest magnitude that a channel takes within so many standard deviations."""
    return moments.mean.abs() + deviations * moments.std


def divided(moments: Mapping[str, Moments], factors: Mapping[str, Tensor]) -> dict[str, Moments]:
    """Moments after equalization, which divided some tensors by a positive factor for each channel."""
    return {
        name: Moments(m.mean / factors[name], m.std / factors[name]) if name in factors else m
        for name, m in moments.items()
    }


def shifted(moments: Mapping[str, Moments], shifts: Mapping[str, Tensor]) -> dict[str, Moments]:
    """Moments after absorption, which took a constant off each channel of some tensors."""
    return {name: Moments(m.mean - shifts[name], m.std) if name in shifts else m for name, m in moments.items()}


def reads(node: Node, weight: Tensor, channels: Tensor) -> Tensor:
    """What a layer makes of an image that is constant in each channel, away from its edges: (I,) -> (O,)."""
    groups = node.attributes["groups"] if node.op == "conv" else 1
    total = weight.flatten(2).sum(2) if weight.ndim > 2 else weight  # (O, I / groups)
    inputs = channels.view(groups, 1, -1)
    return (total.view(groups, -1, total.shape[1]) * inputs).sum(2).reshape(-1)
