"""Mean and standard deviation of each channel, as batch norm states them: what is known of activations without data.

y = gamma * (x - mu) / sqrt(var + eps) + beta        mean(y) = beta,  std(y) = |gamma| * sqrt(var / (var + eps))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gdfq_export.graph import Graph
from gdfq_export.passes.fold_batch_norm import affine_of


@dataclass(frozen=True, eq=False)
class Moments:
    """First two moments of each channel of a tensor, over images and positions."""

    mean: Tensor  # (C,)
    std: Tensor  # (C,)

    def divided(self, factor: Tensor) -> Moments:
        """The moments of the tensor divided by a positive factor for each channel."""
        return Moments(self.mean / factor, self.std / factor)


def batch_norm_outputs(captured: Graph, folded: Graph) -> dict[str, Moments]:
    """Tensor of the folded graph -> its moments, for every tensor that a batch norm made."""
    names = {node.name for node in folded.nodes}
    found = {}
    for node in captured.of("batch_norm"):
        name = node.name if node.name in names else node.inputs[0]  # folded into its layer, it has the layer's name
        scale, shift = affine_of(captured, node)
        mean, variance = (captured.parameters[node.parameters[role]].double() for role in ("mean", "variance"))
        found[name] = Moments(scale * mean + shift, scale.abs() * variance.sqrt())
    return found


def peak(moments: Moments, deviations: float) -> Tensor:
    """The largest magnitude that a channel takes within so many standard deviations."""
    return torch.maximum(
        (moments.mean + deviations * moments.std).abs(), (moments.mean - deviations * moments.std).abs()
    )


def rescaled(moments: Mapping[str, Moments], factors: Mapping[str, Tensor]) -> dict[str, Moments]:
    """Moments after equalization, which divided some tensors by a factor for each channel."""
    return {name: m.divided(factors[name]) if name in factors else m for name, m in moments.items()}
