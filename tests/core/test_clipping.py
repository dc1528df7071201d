"""Where each criterion clips, against values worked out by hand or published."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from gdfq_export.clipping import (
    Histogram,
    Range,
    analytic_clip,
    gaussian_clip,
    laplacian_clip,
    least_divergence,
    least_error,
    percentile,
)
from gdfq_export.quantizers import affine_from_range


def histogram(x: torch.Tensor, bins: int = 4096) -> Histogram:
    low, high = min(float(x.min()), 0.0), float(x.max())
    return Histogram(torch.histc(x.float(), bins, low, high).double(), low, high)


@pytest.mark.parametrize(("bits", "published"), [(2, 1.71), (3, 2.15), (4, 2.55), (5, 2.93), (8, 3.92)])
def test_the_gaussian_clip_is_the_published_multiple_of_sigma(bits: int, published: float) -> None:
    assert gaussian_clip(2**bits - 1, one_sided=False) == pytest.approx(published, abs=0.01)  # published to 0.01


@pytest.mark.parametrize(("bits", "published"), [(2, 2.83), (3, 3.89), (4, 5.03), (5, 6.20), (8, 9.89)])
def test_the_laplacian_clip_is_the_published_multiple_of_b(bits: int, published: float) -> None:
    assert laplacian_clip(2**bits - 1, one_sided=False) == pytest.approx(published, abs=0.015)


def test_what_follows_a_relu_has_twice_the_levels_for_its_half() -> None:
    assert laplacian_clip(15, one_sided=True) == laplacian_clip(31, one_sided=False)


def test_a_gaussian_is_clipped_by_sigma_and_a_laplacian_by_b() -> None:
    torch.manual_seed(0)
    normal = torch.randn(200_000) * 2
    laplace = torch.distributions.Laplace(0.0, 2.0).sample((200_000,))
    # 2 %: the spread of 200,000 samples
    assert analytic_clip(histogram(normal), 15, False).high == pytest.approx(2 * 2.55, rel=0.02)
    assert analytic_clip(histogram(laplace), 15, False).high == pytest.approx(2 * 5.03, rel=0.02)


def test_an_analytic_clip_is_near_the_least_squared_error() -> None:
    torch.manual_seed(0)
    x = histogram(torch.randn(200_000).relu())
    # 10 %: the candidates of the search lie 1.25 % apart, and the error is flat at its minimum
    assert analytic_clip(x, 15, True).high == pytest.approx(least_error(x, 15, True, 2.0).high, rel=0.1)


def test_what_a_leaky_relu_shrinks_gets_few_codes() -> None:
    """With slope 0.1 an error of a negative value counts a hundredth: the positive ones get nearly all codes."""
    torch.manual_seed(0)
    x = histogram(torch.randn(200_000))
    alone = least_error(x, 255, False, 2.0)
    behind = least_error(x, 255, False, 2.0, lambda v: F.leaky_relu(v, 0.1))
    assert behind.low > 0.8 * alone.low
    assert behind.high > alone.high

    def error(found: Range) -> float:
        affine = affine_from_range(found.low, found.high, 255, unsigned=False)
        values = x.centres()
        codes = (torch.round(values / affine.scale) + affine.zero_point).clamp(0, 255)
        read = F.leaky_relu((codes - affine.zero_point) * affine.scale, 0.1)
        return float((x.counts * (read - F.leaky_relu(values, 0.1)).square()).sum())

    assert error(behind) < 0.9 * error(alone)


def test_a_divergence_keeps_what_is_even_and_clips_a_long_tail() -> None:
    even = histogram(torch.linspace(0, 1, 40_000))
    assert least_divergence(even, 15, True).high > 0.95
    tailed = histogram(torch.cat([torch.linspace(0, 1, 40_000), torch.tensor([4.0])]))
    assert least_divergence(tailed, 15, True).high < 2.0


def test_a_percentile_leaves_out_one_in_ten_thousand() -> None:
    x = torch.cat([torch.linspace(-1, 1, 99_995), torch.tensor([-50.0, 50.0, 50.0, 50.0, 50.0])])
    found = percentile(histogram(x))
    # one bin of 100 / 4096
    assert found.low == pytest.approx(-1.0, abs=0.03)
    assert found.high == pytest.approx(1.0, abs=0.03)


def test_values_that_are_all_zero_keep_their_empty_range() -> None:
    nothing = Histogram(torch.zeros(16, dtype=torch.float64), 0.0, 1.0)
    assert analytic_clip(nothing, 15, True) == Range(0.0, 1.0)
    assert math.isfinite(least_divergence(histogram(torch.ones(10)), 15, True).high)
