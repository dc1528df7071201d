"""Keeps u8 x s8 products inside int16 where the processor adds them in pairs (x86 without VNNI).

Such kernels multiply codes 2j and 2j+1 of the reduction axis (ordered kernel height, kernel width, input channel)
and add the two products in a saturating int16. With amax the largest activation code, a pair is safe when

    amax * (sum of its positive weights) <= 32767    and    amax * (sum of its negative weights) >= -32768

Only channels that break the bound are changed: their scale grows by a factor f and what still breaks is clipped,
with f the least squared error among 1 .. 2. Depthwise kernels do not add in pairs and need nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
FACTORS = np.linspace(1.0, 2.0, 26)


def pairs(q_weight: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Weights (O, I, *kernel) in the kernel's order as (O, ceil(K / 2), 2), the last pair filled with 0."""
    channels = q_weight.shape[0]
    flat = np.moveaxis(q_weight, 1, -1).reshape(channels, -1)  # kh, kw, cin
    if flat.shape[1] % 2:
        flat = np.concatenate([flat, np.zeros((channels, 1), flat.dtype)], axis=1)
    return flat.reshape(channels, -1, 2)


def from_pairs(paired: npt.NDArray[np.generic], shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
    """The inverse of `pairs` for weights of the given shape."""
    moved = (shape[0], *shape[2:], shape[1])
    size = int(np.prod(moved[1:]))
    return np.moveaxis(paired.reshape(shape[0], -1)[:, :size].reshape(moved), -1, 1)


def partners(shape: tuple[int, ...]) -> Int:
    """For each weight of an output channel (I, *kernel), flat, which other one is added to it; -1 where none is."""
    index = np.arange(1, int(np.prod(shape[1:])) + 1).reshape(1, *shape[1:])
    found: Int = from_pairs(pairs(index)[..., ::-1], (1, *shape[1:])).reshape(-1).astype(np.int64) - 1
    return found


def breaking_channels(q_weight: npt.NDArray[np.generic], amax: int) -> npt.NDArray[np.bool_]:
    """Output channels (O,) with a pair that can saturate."""
    paired = pairs(q_weight.astype(np.int64))
    positive, negative = np.clip(paired, 0, None).sum(2), np.clip(paired, None, 0).sum(2)
    broken: npt.NDArray[np.bool_] = ((amax * positive > 32767) | (amax * negative < -32768)).any(1)
    return broken


def make_safe(weight: F64, scale: F64, q_weight: Int, amax: int, qmax: int) -> tuple[Int, F64, npt.NDArray[np.bool_]]:
    """Codes and scales without a breaking pair, and which channels were changed.

    weight: float weights (O, I, *kernel); scale: (O,); q_weight: codes of the same shape as weight.
    """
    broken = breaking_channels(q_weight, amax)
    rows = np.flatnonzero(broken)
    if not len(rows):
        return q_weight, scale, broken
    target = pairs(weight[rows])  # (B, P, 2)
    first, second = target[..., 0].copy(), target[..., 1].copy()  # (B, P): reducing an axis of two is slow
    best, steps = np.zeros(target.shape, np.int64), np.zeros(len(rows))
    lowest = np.full(len(rows), np.inf)
    for factor in FACTORS:
        step = (scale[rows] * factor)[:, None]
        codes = [np.clip(np.rint(side / step), -qmax, qmax) for side in (first, second)]
        _clip_pairs(codes[0], codes[1], amax)
        error = sum(((side - code * step) ** 2).sum(1) for side, code in zip((first, second), codes, strict=True))
        better = error < lowest
        lowest[better], steps[better] = error[better], step[better, 0]
        best[better] = np.stack([code[better] for code in codes], axis=-1)
    q_safe, new_scale = q_weight.copy(), scale.copy()
    q_safe[rows], new_scale[rows] = from_pairs(best, (len(rows), *weight.shape[1:])), steps
    return q_safe, new_scale, broken


def _clip_pairs(first: F64, second: F64, amax: int) -> None:
    """Takes what a pair of codes exceeds the bound by from both of its weights, half each; in place."""
    for sign, limit in ((1, 32767 // amax), (-1, 32768 // amax)):
        over = np.nonzero((first * sign > 0) & (second * sign > 0) & ((first + second) * sign > limit))
        a, b = first[over] * sign, second[over] * sign
        excess = a + b - limit
        from_small = np.minimum(np.floor(excess / 2), np.minimum(a, b))
        from_second = np.where(b > a, excess - from_small, from_small)
        first[over] = sign * (a - (excess - from_second))
        second[over] = sign * (b - from_second)
