"""The rotation in which a stream of channels is rounded best (`passes/mix_channels.py`), from images.

A tensor of a stream has one scale, which its widest channel decides, and each channel is rounded by as much. With an
orthogonal R the rounding of R x is as large a noise on x as the rounding of x would be on the same grid, but the range
of R x is smaller where few channels are wide: what they hold is spread over all of them. And sums of many channels have
no long tails.

    minimise over R   sum over the stream's tensors of  log range(R x)

Rotations are drawn at random, of which nearly all do well, and the best is taken (Ashkboos et al. 2024 and Liu et al.
2025 rotate the residual streams of language models so). What a rotation is worth is measured in docs/accuracy.md.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from gdfq_export.graph import Graph
from gdfq_export.program import FloatProgram, run_taps

BATCH = 8  # images at once
POSITIONS = 4096  # of a tensor that its range is found on
TRIES = 24
TINY = 1e-30  # the range of a tensor that is zero


def values_of(graph: Graph, images: Tensor, names: Collection[str], seed: int) -> dict[str, Tensor]:
    """The tensors at random positions, (C, P) each."""
    randomness, program = torch.Generator().manual_seed(seed), FloatProgram(graph).to(images.device)
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for part in torch.split(images, BATCH):
        for name, value in run_taps(program, part, names).items():
            columns = value.transpose(0, 1).flatten(1)
            some = torch.randperm(columns.shape[1], generator=randomness)[: POSITIONS * len(part) // len(images)]
            found[name].append(columns[:, some.to(columns.device)].cpu())
    return {name: torch.cat(parts, 1) for name, parts in found.items()}


def best_rotation(tensors: Sequence[Tensor], seed: int) -> Tensor:
    """The orthogonal matrix (C, C) with which the tensors (C, P) have the smallest ranges."""
    channels, randomness = len(tensors[0]), torch.Generator().manual_seed(seed)
    best = torch.eye(channels)
    least = _ranges(best, tensors)
    for _ in range(TRIES):
        drawn = torch.randn(channels, channels, generator=randomness, dtype=torch.float64)
        tried = torch.linalg.qr(drawn).Q.float()
        ranges = _ranges(tried, tensors)
        if ranges < least:
            best, least = tried, ranges
    return best


def _ranges(rotation: Tensor, tensors: Sequence[Tensor]) -> float:
    """The logarithm of the product of all ranges, which contain zero."""
    ranges = 0.0
    for tensor in tensors:
        changed = rotation @ tensor
        ranges += math.log(max(float(changed.max()), 0.0) - min(float(changed.min()), 0.0) + TINY)
    return ranges
