"""The rounding formulas, against exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from gdfq_export.runtime_checks.arithmetic import Quantization, dequantize, fma, quantize, requantize

FLOATS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
CODES = Quantization(np.full((), 0.5, np.float32), np.full((), 10, np.uint8), np.dtype(np.uint8))


def nearest_float32(value: Fraction) -> np.float32:
    """The float32 nearest to `value`, half to even, without rounding twice."""
    guess = np.float32(float(value))
    candidates = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return min(candidates, key=lambda item: (abs(Fraction(float(item)) - value), item.view(np.uint32) & 1))


@given(FLOATS, FLOATS, FLOATS)
@example(1.0, 1.0 + 2.0**-23, 2.0**-25)
@example(2.0**-12 + 2.0**-35, 2.0**-12, 1.0 + 2.0**-23)
def test_fma_rounds_once(a: float, b: float, c: float) -> None:
    a, b, c = (np.float32(item) for item in (a, b, c))
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if exact != 0 and abs(exact) < Fraction(1, 2**100):
        return  # subnormal results do not occur in the kernels
    assert fma(a, b, c) == nearest_float32(exact)


def test_quantize_rounds_half_to_even_and_saturates() -> None:
    values = np.array([0.25, 0.75, 1.25, -0.25, -100, 1000], np.float32)
    assert quantize(values, CODES).tolist() == [10, 12, 12, 10, 0, 255]


def test_quantize_inverts_dequantize() -> None:
    codes = np.arange(256).astype(np.uint8)
    for scale in np.random.default_rng(0).uniform(1e-4, 10, 50).astype(np.float32):
        params = Quantization(np.asarray(scale), np.full((), 77, np.uint8), np.dtype(np.uint8))
        assert np.array_equal(quantize(dequantize(codes, params), params), codes)


def test_requantize_multiplies_by_the_rounded_quotient_of_scales() -> None:
    accumulator = np.array([[1], [2], [3], [-5], [10**6]])
    result = requantize(accumulator, np.float32(0.25), CODES)
    assert result.ravel().tolist() == [10, 11, 12, 8, 255]


def test_parameters_apply_along_their_axis() -> None:
    params = Quantization(np.array([1, 2], np.float32), np.array([0, 1], np.int8), np.dtype(np.int8), axis=1)
    codes = np.ones((1, 2, 1, 1), np.int8)
    assert dequantize(codes, params).ravel().tolist() == [1.0, 0.0]
