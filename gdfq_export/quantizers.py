"""Scales, zero points and the rounding that training simulates.

    q = clamp(round(x / s) + z, qmin, qmax)        x_hat = s * (q - z)

Rounding is half to even, as in ONNX Runtime. Gradients pass straight through the rounding; where a value is
clipped its gradient is zero, and the scale gets the learned-step-size gradient (Esser et al., 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_SCALE = 1e-8


@dataclass(frozen=True)
class Affine:
    """One tensor's scale and zero point."""

    scale: float
    zero_point: int


def affine_from_range(low: float, high: float, qmax: int, *, unsigned: bool) -> Affine:
    """The scale and zero point whose codes 0..qmax cover [low, high] and hit zero exactly."""
    if unsigned:
        return Affine(max(high / qmax, SMALLEST_SCALE), 0)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / qmax, SMALLEST_SCALE)
    return Affine(scale, int(min(max(round(-low / scale), 0), qmax)))


def weight_scales(weight: Tensor, qmax: int, *, power: float = 2.4, steps: int = 40) -> Tensor:
    """Per-channel scales (C,) that minimise sum |w - w_hat|^power over clipping ratios 1.0 down to 0.4."""
    flat = weight.detach().flatten(1)  # (C, K)
    peak = flat.abs().amax(1).clamp_min(SMALLEST_SCALE * qmax)  # (C,)
    best = peak / qmax
    lowest = torch.full_like(peak, float("inf"))
    for step in range(steps):
        scale = peak * (1.0 - 0.6 * step / steps) / qmax
        q = torch.clamp(torch.round(flat / scale[:, None]), -qmax, qmax)
        error = (flat - q * scale[:, None]).abs().pow(power).sum(1)
        best = torch.where(error < lowest, scale, best)
        lowest = torch.minimum(error, lowest)
    return best


def over_channels(scale: Tensor, weight: Tensor) -> Tensor:
    """Per-channel values (O,) that multiply or divide a weight (O, ...)."""
    return scale.view(-1, *[1] * (weight.ndim - 1))


def quantize_weight(weight: Tensor, scale: Tensor, qmax: int) -> Tensor:
    """Integer codes -qmax..qmax of a weight (O, ...) with per-channel scales (O,)."""
    return torch.clamp(torch.round(weight / over_channels(scale, weight)), -qmax, qmax)
