"""Where to clip a tensor, from the histogram of its values (GDFQ, Table 5).

mse         least  sum |f(x) - f(x_hat)|^p,  f the function that alone reads the tensor, if there is one
aciq        the minimum of the expected squared error of a Gaussian or a Laplacian, in closed form
kl          least  KL(P || Q), P the histogram with its tails in the outermost bins, Q what its codes tell of it
percentile  all but one value in ten thousand at either end
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gdfq_export.quantizers import affine_from_range

PERCENTILE = 0.9999
LOWS = (1.0, 0.85, 0.7, 0.55, 0.4)  # of the lower end, beside the upper one
FURTHER_LOWS = (0.3, 0.2, 0.1, 0.05)
GAUSSIAN_RATIO, LAPLACIAN_RATIO = math.sqrt(2 / math.pi), math.sqrt(0.5)  # mean |x - mu| / sigma


@dataclass(frozen=True)
class Range:
    """What a group of tensors spans."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often the values of a tensor fall into equal bins from low to high."""

    counts: Tensor  # (bins,) float64
    low: float
    high: float

    def centres(self) -> Tensor:
        """The middle of each bin."""
        width = (self.high - self.low) / len(self.counts)
        return self.low + width * (torch.arange(len(self.counts), dtype=torch.float64) + 0.5)


def _candidates(histogram: Histogram, unsigned: bool, lows: Sequence[float]) -> Iterable[Range]:
    """Clipped ranges to choose from: both ends together, and the lower one on its own."""
    lows = [1.0] if unsigned or histogram.low == 0 else lows
    for ratio in torch.linspace(1.0, 0.2, 65, dtype=torch.float64).tolist():
        for low in lows:
            yield Range(histogram.low * low * ratio, histogram.high * ratio)


def _codes(centres: Tensor, candidate: Range, qmax: int, unsigned: bool) -> tuple[Tensor, Tensor]:
    """The code of each bin, and the value that it stands for."""
    affine = affine_from_range(candidate.low, candidate.high, qmax, unsigned=unsigned)
    q = torch.clamp(torch.round(centres / affine.scale) + affine.zero_point, 0, qmax)
    return q, (q - affine.zero_point) * affine.scale


def _least(histogram: Histogram, unsigned: bool, cost: Callable[[Range], float], lows: Sequence[float] = LOWS) -> Range:
    """The cheapest candidate; the first of equals."""
    best, lowest = Range(histogram.low, histogram.high), float("inf")
    for candidate in _candidates(histogram, unsigned, lows):
        found = cost(candidate)
        if found < lowest:
            best, lowest = candidate, found
    return best


def least_error(
    histogram: Histogram, qmax: int, unsigned: bool, power: float, function: Callable[[Tensor], Tensor] | None = None
) -> Range:
    """The clipped range with the least sum of |f(x) - f(x_hat)|^power.

    Below a LeakyReLU or a sigmoid negative values hardly count, so that the positive ones can have more codes.
    """
    f = function or (lambda x: x)
    centres = histogram.centres()
    exact = f(centres)

    def cost(candidate: Range) -> float:
        _, values = _codes(centres, candidate, qmax, unsigned)
        return float((histogram.counts * (exact - f(values)).abs().pow(power)).sum())

    return _least(histogram, unsigned, cost, LOWS if function is None else (*LOWS, *FURTHER_LOWS))


def least_divergence(histogram: Histogram, qmax: int, unsigned: bool) -> Range:
    """The clipped range whose codes tell most about the distribution."""
    centres, counts = histogram.centres(), histogram.counts

    def cost(candidate: Range) -> float:
        kept = (centres >= candidate.low) & (centres <= candidate.high)
        inside = torch.where(kept, counts, 0.0)
        places = kept.nonzero().flatten()
        if len(places) == 0:
            return float("inf")
        reference = inside.clone()  # P: what is clipped lands in the outermost bins
        reference[places[0]] += counts[: int(places[0])].sum()
        reference[places[-1]] += counts[int(places[-1]) + 1 :].sum()
        codes = _codes(centres, candidate, qmax, unsigned)[0].long()
        filled = (inside > 0).double()
        sums = torch.zeros(qmax + 1, dtype=torch.float64).index_add_(0, codes, inside)
        bins = torch.zeros(qmax + 1, dtype=torch.float64).index_add_(0, codes, filled).clamp_min(1)
        spread = (sums / bins)[codes] * filled  # Q: each code's mass, even over its bins that have any
        p, q = reference / reference.sum(), spread / spread.sum().clamp_min(1e-300)
        where = p > 0
        return float((p[where] * (p[where] / q[where].clamp_min(1e-9)).log()).sum())

    return _least(histogram, unsigned, cost)


def laplacian_clip(qmax: int, one_sided: bool) -> float:
    """alpha / b with  2 exp(-alpha / b) = alpha / b * 2 / (3 * levels^2);  half the step where one side is empty."""
    levels = (qmax + 1) * (2 if one_sided else 1)
    return _root(lambda x: x * 2 / (3 * levels**2) - 2 * math.exp(-x))


def gaussian_clip(qmax: int, one_sided: bool) -> float:
    """alpha / sigma where the derivative of the expected squared error of a standard Gaussian is zero."""
    levels = (qmax + 1) * (2 if one_sided else 1)

    def slope(x: float) -> float:
        tail = 2 * x * math.erfc(x / math.sqrt(2)) - 2 * math.sqrt(2 / math.pi) * math.exp(-(x**2) / 2)
        return tail + 2 * x / (3 * levels**2)

    return _root(slope)


def _root(slope: Callable[[float], float]) -> float:
    """Where an increasing function of (0, 40) is zero, by bisection."""
    low, high = 1e-3, 40.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return (low + high) / 2


def analytic_clip(histogram: Histogram, qmax: int, unsigned: bool) -> Range:
    """ACIQ: clips at the best multiple of the spread of the distribution that fits better.

    What follows a ReLU is one half of a distribution around zero; its zeros are exact and do not count.
    """
    centres, counts = histogram.centres(), histogram.counts.clone()
    width = (histogram.high - histogram.low) / len(counts)
    if unsigned:
        counts[centres.abs() <= width] = 0.0
    total = float(counts.sum())
    if total == 0.0:
        return Range(histogram.low, histogram.high)
    middle = 0.0 if unsigned else float((counts * centres).sum()) / total
    spread = float((counts * (centres - middle).abs()).sum()) / total
    deviation = math.sqrt(float((counts * (centres - middle).square()).sum()) / total)
    if deviation == 0.0:  # one value, about which there is nothing to fit
        return Range(histogram.low, histogram.high)
    ratio = spread / deviation
    if abs(ratio - GAUSSIAN_RATIO) < abs(ratio - LAPLACIAN_RATIO):
        reach = deviation * gaussian_clip(qmax, unsigned)
    else:
        reach = spread * laplacian_clip(qmax, unsigned)
    reach = max(reach, width)  # nothing is known of how values lie within a bin
    low = histogram.low if unsigned else max(histogram.low, middle - reach)
    return Range(low, min(histogram.high, middle + reach))


def percentile(histogram: Histogram) -> Range:
    """Leaves out one value in ten thousand at either end."""
    share = histogram.counts.cumsum(0) / histogram.counts.sum()
    width = (histogram.high - histogram.low) / len(share)
    first = int((share > 1 - PERCENTILE).nonzero()[0]) if histogram.low < 0 else 0
    last = int((share >= PERCENTILE).nonzero()[0])
    return Range(min(histogram.low + width * first, 0.0), max(histogram.low + width * (last + 1), 0.0))
