"""The formulas of sums and products for each instruction set, as the exporter knows them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdfq_export.arithmetic import add_fma, add_neon, add_sse, is_invariant, mul_fused, mul_unfused
from gdfq_export.integer import QTensor

SUMS = [add_fma, add_sse, add_neon]
PRODUCTS = [mul_unfused, mul_fused]


def tensor(scale: float, zero_point: int = 0, qmax: int = 255) -> QTensor:
    return QTensor(np.float32(scale), zero_point, qmax)


@pytest.mark.parametrize("add", SUMS)
def test_sums_of_equal_scales_add_codes(add) -> None:
    a, b = np.arange(256)[:, None], np.arange(256)[None, :]
    expected = np.clip(a - 3 + b - 7 + 100, 0, 255)
    assert np.array_equal(add(tensor(0.1, 3), tensor(0.1, 7), tensor(0.1, 100)), expected)


@pytest.mark.parametrize("multiply", PRODUCTS)
def test_products_of_powers_of_two_multiply_codes(multiply) -> None:
    a, b = np.arange(256)[:, None] - 3, np.arange(256)[None, :] - 7
    expected = np.clip(np.rint(a * b / 64) + 100, 0, 255)
    tensors = tensor(0.25, 3), tensor(0.125, 7), tensor(2.0, 100)
    assert np.abs(multiply(*tensors) - expected).max() == 0 or ties_only(multiply(*tensors), expected, a * b)


def ties_only(found: np.ndarray, expected: np.ndarray, products: np.ndarray) -> bool:
    """Where the zero point is added before rounding, ties go to an even code, not to an even distance."""
    return bool((products % 64 == 32)[found != expected].all())


scales = st.floats(2.0**-10, 1.0, width=32)
codes = st.integers(0, 255)


@settings(max_examples=25)
@given(scales, codes, scales, codes, scales, codes)
def test_every_formula_is_within_one_step_of_the_exact_sum(
    sa: float, za: int, sb: float, zb: int, sc: float, zc: int
) -> None:
    tensors = tensor(sa, za), tensor(sb, zb), tensor(sc, zc)
    found = [add(*tensors) for add in SUMS]
    for i, j in ((0, 0), (255, 255), (za, zb), (17, 202)):
        exact = (Fraction(sa) * (i - za) + Fraction(sb) * (j - zb)) / Fraction(sc) + zc
        nearest = min(max(round(exact), 0), 255)
        assert all(abs(int(table[i, j]) - nearest) <= 1 for table in found)


@settings(max_examples=15)
@given(scales, codes, codes, codes)
def test_powers_of_two_are_always_invariant(scale: float, za: int, zb: int, zc: int) -> None:
    a, b, c = tensor(scale, za), tensor(scale / 2, zb), tensor(scale * 2, zc)
    assert (add_fma(a, b, c) == add_sse(a, b, c)).all()


def test_some_scales_differ_between_instruction_sets() -> None:
    rng = np.random.default_rng(0)
    draws = [rng.uniform(0.01, 0.1, 3) for _ in range(40)]
    found = [is_invariant("add", tensor(a, 131), tensor(b, 77), tensor(c, 128)) for a, b, c in draws]
    assert not all(found)


def test_narrow_codes_are_compared_only_as_far_as_they_reach() -> None:
    assert add_fma(tensor(0.1, 0, 7), tensor(0.1, 0, 15), tensor(0.1)).shape == (8, 16)
