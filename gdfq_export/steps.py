"""What every training loop of ours needs at each of its steps."""

from __future__ import annotations

import math

import torch

SEEDS = 1_000_003  # between the seeds of two runs lie those of their parts


def half_cosine(share: float) -> float:
    """1 at the beginning, 0 when all (a share of 1) is done."""
    return 0.5 * (1 + math.cos(math.pi * share))


def randomness_of(seed: int, part: int) -> torch.Generator:
    """The random numbers of one part of a run: the same whether or not the parts before it ran in this process."""
    return torch.Generator().manual_seed(seed * SEEDS + part)
