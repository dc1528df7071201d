from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdfq_export.fakequant import fake_quantize
from gdfq_export.quantizers import (
    SMALLEST_SCALE,
    Affine,
    affine_from_range,
    quantize_weight,
    weight_scales,
)

ranges = st.floats(-1e4, 1e4, width=32)
qmaxes = st.sampled_from([3, 7, 15, 31, 63, 127, 255])


def test_an_unsigned_range_puts_zero_at_code_0() -> None:
    assert affine_from_range(0.0, 5.1, 255, unsigned=True) == Affine(5.1 / 255, 0)


def test_an_affine_range_is_divided_into_equal_steps() -> None:
    assert affine_from_range(-1.0, 3.0, 15, unsigned=False) == Affine(4 / 15, 4)


def test_a_range_above_zero_is_widened_to_zero() -> None:
    assert affine_from_range(2.0, 3.0, 255, unsigned=False) == Affine(3 / 255, 0)


def test_a_range_below_zero_is_widened_to_zero() -> None:
    assert affine_from_range(-3.0, -2.0, 255, unsigned=False) == Affine(3 / 255, 255)


@pytest.mark.parametrize("unsigned", [True, False])
def test_an_empty_range_has_the_smallest_scale(unsigned: bool) -> None:
    assert affine_from_range(0.0, 0.0, 255, unsigned=unsigned) == Affine(SMALLEST_SCALE, 0)


@settings(max_examples=100)
@given(ranges, ranges, qmaxes, st.booleans())
def test_zero_is_represented_exactly(a: float, b: float, qmax: int, unsigned: bool) -> None:
    affine = affine_from_range(min(a, b), max(a, b), qmax, unsigned=unsigned)
    zero = torch.zeros(())
    x = fake_quantize(zero, torch.tensor(affine.scale), affine.zero_point, 0, qmax)
    assert 0 <= affine.zero_point <= qmax
    assert x.item() == 0.0


@settings(max_examples=100)
@given(ranges, ranges, qmaxes)
def test_both_ends_of_a_range_are_at_most_one_step_away(a: float, b: float, qmax: int) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    affine = affine_from_range(low, high, qmax, unsigned=False)
    # 0.5 for the rounded zero point, 1e-6 for the division
    assert affine.scale * (0 - affine.zero_point) <= low + affine.scale * 0.500001
    assert affine.scale * (qmax - affine.zero_point) >= high - affine.scale * 0.500001


def test_rounding_is_half_to_even() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    rounded = fake_quantize(x, torch.tensor(1.0), 10, 0, 255)
    assert rounded.tolist() == [0.0, 2.0, 2.0, 0.0, -2.0]


def test_values_outside_saturate_at_the_ends() -> None:
    x = torch.tensor([-100.0, 100.0])
    assert fake_quantize(x, torch.tensor(0.5), 2, 0, 15).tolist() == [-1.0, 6.5]


@settings(max_examples=50)
@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=20), qmaxes)
def test_quantizing_twice_changes_nothing(values: list[float], qmax: int) -> None:
    scale, zero = torch.tensor(0.125), qmax // 2
    once = fake_quantize(torch.tensor(values), scale, zero, 0, qmax)
    assert torch.equal(fake_quantize(once, scale, zero, 0, qmax), once)


def test_weight_codes_are_rounded_by_channel_and_clipped_on_both_sides() -> None:
    weight = torch.tensor([[[[0.5, -2.0]]], [[[0.05, 0.024]]]])
    codes = quantize_weight(weight, torch.tensor([0.25, 0.01]), 3)
    assert codes.flatten().tolist() == [2.0, -3.0, 3.0, 2.0]


def test_a_weight_that_fits_its_grid_keeps_the_full_range() -> None:
    weight = torch.tensor([[-7.0, 3.0, 7.0, 1.0]]) * 0.25
    assert weight_scales(weight, 7).tolist() == [0.25]


def test_an_outlier_is_clipped_where_that_costs_less() -> None:
    weight = torch.cat([torch.linspace(-1, 1, 999), torch.tensor([2.0])])[None]
    scale = weight_scales(weight, 1).item()
    assert scale < 2.0


def test_each_channel_has_a_scale_of_its_own() -> None:
    weight = torch.randn(5, 3, 3, 3)
    alone = torch.cat([weight_scales(channel[None], 7) for channel in weight])
    assert torch.equal(weight_scales(weight, 7), alone)


def test_a_channel_of_zeros_has_a_positive_scale() -> None:
    assert weight_scales(torch.zeros(1, 4), 127).item() == pytest.approx(SMALLEST_SCALE)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([1, 3, 7, 127]))
def test_the_found_scale_is_no_worse_than_the_full_range(seed: int, qmax: int) -> None:
    weight = torch.randn(1, 40, generator=torch.Generator().manual_seed(seed))

    def error(scale: torch.Tensor) -> float:
        return float((weight - quantize_weight(weight, scale, qmax) * scale).abs().pow(2.4).sum())

    assert error(weight_scales(weight, qmax)) <= error(weight.abs().amax(1) / qmax) * (1 + 1e-6)  # float32 sums
