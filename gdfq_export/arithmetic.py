"""ONNX Runtime's requantization of two operands, as each instruction set computes it.

    multiply-add (FMA)   rint(fma(a, ra, fma(b, rb, f)))      f = zc - fma(ra, za, rb*zb),  ra = sa/sc, rb = sb/sc
    SSE                  rint((f + a*ra) + b*rb)              f unfused
    NEON (add)           fixed point: multipliers rint(r * 2^n), n = 21 - floor(log2(max(ra, rb))), ties away from 0
    product              rint(s*p + zc), p = (a-za)(b-zb), s = sa*sb/sc; fused on arm64, unfused on x86

All values are float32; a fused multiply-add is exact in float64 before its one rounding, because codes have 8 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gdfq_export.integer import QTensor

Codes = npt.NDArray[np.int64]
F32 = np.float32
LOGISTIC_LIMIT = 18.0
LEAST_FIXED, MOST_FIXED = 2.0**-14, 2.0**8  # ratios of scales that arm64 adds in fixed point
LOGISTIC_P = (  # highest power first
    *(4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03, 2.48287947061529e-01),
)
LOGISTIC_Q = (
    *(6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06, 1.70198817374094e-03, 1.16817656904453e-01),
    9.93151921023180e-01,
)


def _fma(a: npt.NDArray[np.float64], b: np.float32, c: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """float32(a * b + c) with one rounding; a holds small integers."""
    return (a * np.float64(b) + np.asarray(c, np.float64)).astype(F32).astype(np.float64)


def _grid(a: QTensor, b: QTensor) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Every pair of codes."""
    return np.arange(a.qmax + 1, dtype=np.float64)[:, None], np.arange(b.qmax + 1, dtype=np.float64)[None, :]


def _saturate(values: npt.NDArray[Any]) -> Codes:
    """Codes 0..255 of rounded values."""
    codes: Codes = np.clip(values, 0, 255).astype(np.int64)
    return codes


def add_fma(a: QTensor, b: QTensor, c: QTensor) -> Codes:
    """The sum's codes for every pair, on x86 with FMA."""
    x, y = _grid(a, b)
    ra, rb = F32(a.scale / c.scale), F32(b.scale / c.scale)
    inner = _fma(np.float64(a.zero_point), ra, np.float64(F32(rb * F32(b.zero_point))))  # type: ignore[arg-type]
    fixed = F32(F32(c.zero_point) - F32(inner))
    total = _fma(x, ra, _fma(y, rb, fixed))
    return _saturate(np.rint(total))


def add_sse(a: QTensor, b: QTensor, c: QTensor) -> Codes:
    """The same without fused operations."""
    x, y = (grid.astype(F32) for grid in _grid(a, b))
    ra, rb = F32(a.scale / c.scale), F32(b.scale / c.scale)
    fixed = F32(F32(c.zero_point) - F32(F32(ra * F32(a.zero_point)) + F32(rb * F32(b.zero_point))))
    total = F32(fixed + F32(x * ra)) + (y * rb).astype(F32)
    return _saturate(np.rint(total))


def add_neon(a: QTensor, b: QTensor, c: QTensor) -> Codes:
    """The same in arm64's fixed point."""
    x, y = _grid(a, b)
    ra, rb = F32(a.scale / c.scale), F32(b.scale / c.scale)
    shift = 21 - int(np.floor(np.log2(max(ra, rb))))
    ma, mb = (np.int64(np.rint(np.float64(r) * 2.0**shift)) for r in (ra, rb))
    total = ma * (x.astype(np.int64) - a.zero_point) + mb * (y.astype(np.int64) - b.zero_point)
    magnitude = (np.abs(total) + (np.int64(1) << (shift - 1))) >> shift  # ties away from zero
    return _saturate(np.sign(total) * magnitude + c.zero_point)


def add_neon_in_float(a: QTensor, b: QTensor, c: QTensor) -> Codes:
    """The same where a ratio leaves arm64's fixed point: the sum of values, in float, divided.

    A compiler may fuse either product with the sum. Codes on which the three ways differ are -1, equal to no code.
    """
    x, y = _grid(a, b)
    x, y = x - a.zero_point, y - b.zero_point
    plain = F32(F32(x * a.scale) + F32(y * b.scale)).astype(np.float64)
    first, second = _fma(x, a.scale, F32(y * b.scale)), _fma(y, b.scale, F32(x * a.scale))
    codes = [
        _saturate(np.rint(np.clip(F32(total) / c.scale, -c.zero_point, 255 - c.zero_point) + F32(c.zero_point)))
        for total in (plain, first, second)
    ]
    return np.where((codes[0] == codes[1]) & (codes[0] == codes[2]), codes[0], -1)


def mean_is_clear_of_ties(source: QTensor, result: QTensor, count: int) -> bool:
    """Whether float rounding cannot move the mean of `count` codes across the middle between two codes.

    Bounds the sum of `count` dequantized values, in whatever order, and the one product of an integer sum.
    """
    totals = np.arange(-source.zero_point * count, (source.qmax - source.zero_point) * count + 1)
    ratio = float(source.scale) / float(result.scale)
    codes = totals * (ratio / count)
    codes = codes[(codes > -result.zero_point - 1) & (codes < result.qmax - result.zero_point + 1)]
    largest = max(source.zero_point, source.qmax - source.zero_point) * ratio
    error = ((count + 4) * largest + 256) * np.finfo(F32).eps / 2
    return bool((np.abs(codes - np.floor(codes) - 0.5) > error).all())


def mul_unfused(a: QTensor, b: QTensor, c: QTensor) -> Codes:
    """The product's codes for every pair, on x86."""
    x, y = _grid(a, b)
    scale = F32(F32(a.scale * b.scale) / c.scale)
    product = ((x - a.zero_point) * (y - b.zero_point)).astype(F32)
    return _saturate(np.rint(F32(product * scale) + F32(c.zero_point)))


def mul_fused(a: QTensor, b: QTensor, c: QTensor) -> Codes:
    """The product's codes on arm64."""
    x, y = _grid(a, b)
    scale = F32(F32(a.scale * b.scale) / c.scale)
    total = _fma((x - a.zero_point) * (y - b.zero_point), scale, F32(c.zero_point))
    return _saturate(np.rint(total))


def _add_sse_repeated(a: QTensor, b: QTensor, c: QTensor) -> Codes:
    """The sum without fused operations where one element of b is repeated: it is added first."""
    x, y = (grid.astype(F32) for grid in _grid(a, b))
    ra, rb = F32(a.scale / c.scale), F32(b.scale / c.scale)
    fixed = F32(F32(c.zero_point) - F32(F32(ra * F32(a.zero_point)) + F32(rb * F32(b.zero_point))))
    return _saturate(np.rint(F32(fixed + F32(y * rb)) + (x * ra).astype(F32)))


def logistic(values: npt.NDArray[np.float32], *, fused: bool) -> npt.NDArray[np.float32]:
    """The runtime's sigmoid, Eigen's rational approximation by Horner's rule: x p(x^2) / q(x^2) + 1/2."""
    x = np.clip(values, F32(-LOGISTIC_LIMIT), F32(LOGISTIC_LIMIT))
    square = (x * x).astype(np.float64)

    def horner(coefficients: tuple[float, ...]) -> npt.NDArray[np.float32]:
        value = np.full(x.shape, coefficients[0], F32)
        for coefficient in coefficients[1:]:
            product = value * square  # exact in float64
            value = ((product if fused else product.astype(F32)) + np.float64(F32(coefficient))).astype(F32)
        return value

    quotient = (horner(LOGISTIC_P) * x) / horner(LOGISTIC_Q)
    found: npt.NDArray[np.float32] = np.clip(quotient + F32(0.5), F32(0), F32(1)).astype(F32)
    return found


def sigmoid_codes(source: QTensor, result: QTensor, *, fused: bool = True) -> Codes:
    """Q(sigmoid(DQ(code))) for each of the 256 codes."""
    values = ((np.arange(256) - source.zero_point).astype(F32) * source.scale).astype(F32)
    return _saturate(np.rint(logistic(values, fused=fused) / result.scale) + result.zero_point)


def is_invariant(op: str, a: QTensor, b: QTensor, c: QTensor, *, broadcast: bool = False) -> bool:
    """Whether every instruction set computes the same code for all pairs of a sum or product.

    Where one operand is `broadcast`, the kernel may exchange the two, and takes them in another order.
    """
    if op == "mul":
        return bool((mul_unfused(a, b, c) == mul_fused(a, b, c)).all())
    reference = add_fma(a, b, c)
    fixed = all(LEAST_FIXED <= F32(operand.scale / c.scale) < MOST_FIXED for operand in (a, b))
    formulas = (add_sse, add_neon) if fixed else (add_sse, add_neon, add_neon_in_float)
    if not all(bool((reference == formula(a, b, c)).all()) for formula in formulas):
        return False
    if not broadcast:
        return True
    exchanged = (add_fma, *formulas, _add_sse_repeated)
    if not all(bool((reference == formula(b, a, c).T).all()) for formula in exchanged):
        return False
    return bool((reference == _add_sse_repeated(a, b, c)).all())


def is_sigmoid_invariant(source: QTensor, result: QTensor) -> bool:
    """Whether a sigmoid's table is the same with and without fused operations."""
    return bool((sigmoid_codes(source, result) == sigmoid_codes(source, result, fused=False)).all())
