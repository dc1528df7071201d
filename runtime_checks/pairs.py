"""Add and Mul on 8-bit codes: all 65,536 pairs of codes under each instruction set's formula.

    Add, FMA    fixed = f32(zc - fma(ra, za, f32(rb*zb)));  rint(fma(a, ra, fma(b, rb, fixed)))
    Add, SSE    fixed = f32(zc - f32(f32(ra*za) + f32(rb*zb)));  rint(f32(f32(fixed + f32(a*ra)) + f32(b*rb)))
    Add, NEON   sh = 21 - floor(log2(max(ra, rb))), m = rint(r * 2^sh);  round_half_away((a-za)*ma + (b-zb)*mb, sh) + zc
    Mul         s = f32(f32(sa*sb) / sc);  rint(f32(f32(p*s) + zc)),  p = (a-za)*(b-zb);  NEON: rint(fma(p, s, zc))

with ra = f32(sa/sc), rb = f32(sb/sc), all saturated. A result is a table indexed by the two codes, so the reference
looks pairs up and the proofs compare whole tables.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gdfq_export.runtime_checks.arithmetic import Quantization, fma
from gdfq_export.runtime_checks.graph import Array

PairFormula = Callable[[Quantization, Quantization, Quantization], Array]
"""(a, b, result) -> codes of the result, indexed [code of a - qmin, code of b - qmin]."""

_NEON_SMALLEST_RATIO = np.float32(2.0**-14)
_NEON_LARGEST_RATIO = np.float32(256.0)


def all_codes(params: Quantization) -> Array:
    """Every code of the type, ascending, as float32."""
    return np.arange(params.qmin, params.qmax + 1, dtype=np.float32)


def add_fma(a: Quantization, b: Quantization, result: Quantization) -> Array:
    """QLinearAdd on x86 with FMA (all since 2013)."""
    ratio_a, ratio_b = a.scale / result.scale, b.scale / result.scale
    za, zb, zc = _zero_points(a, b, result)
    fixed = zc - fma(ratio_a, za, ratio_b * zb)
    inner = fma(all_codes(b), ratio_b, fixed)  # (256,)
    return _saturate(np.rint(fma(all_codes(a)[:, None], ratio_a, inner[None, :])), result)


def add_sse(a: Quantization, b: Quantization, result: Quantization) -> Array:
    """QLinearAdd on x86 without FMA."""
    ratio_a, ratio_b = a.scale / result.scale, b.scale / result.scale
    za, zb, zc = _zero_points(a, b, result)
    fixed = zc - (ratio_a * za + ratio_b * zb)
    left = fixed + all_codes(a) * ratio_a
    return _saturate(np.rint(left[:, None] + (all_codes(b) * ratio_b)[None, :]), result)


def add_sse_scalar(a: Quantization, b: Quantization, result: Quantization) -> Array:
    """The same where `b` is one element that the innermost loop repeats: it is added first."""
    ratio_a, ratio_b = a.scale / result.scale, b.scale / result.scale
    za, zb, zc = _zero_points(a, b, result)
    fixed = zc - (ratio_a * za + ratio_b * zb)
    right = fixed + all_codes(b) * ratio_b
    return _saturate(np.rint(right[None, :] + (all_codes(a) * ratio_a)[:, None]), result)


def add_neon(a: Quantization, b: Quantization, result: Quantization) -> Array:
    """QLinearAdd on arm64: fixed point, ties away from zero; plain float32 where a ratio is out of its range."""
    ratio_a, ratio_b = a.scale / result.scale, b.scale / result.scale
    da = (all_codes(a) - np.float32(a.zero_point)).astype(np.int64)
    db = (all_codes(b) - np.float32(b.zero_point)).astype(np.int64)
    zc = int(result.zero_point)
    shift = 21 - (int(np.frexp(max(ratio_a, ratio_b))[1]) - 1)
    in_range = all(_NEON_SMALLEST_RATIO <= ratio < _NEON_LARGEST_RATIO for ratio in (ratio_a, ratio_b))
    multipliers = [int(np.rint(np.float64(ratio) * 2.0**shift)) for ratio in (ratio_a, ratio_b)]
    if not in_range or not 13 <= shift <= 31 or max(multipliers) >= 1 << 22:
        return _add_plain(a, b, result)
    total = da[:, None] * multipliers[0] + db[None, :] * multipliers[1]
    total -= total < 0  # with the rounding shift below: half away from zero
    rounded = (total + (1 << (shift - 1))) >> shift
    return _saturate(np.clip(rounded, -32768, 32767) + zc, result)


def _add_plain(a: Quantization, b: Quantization, result: Quantization) -> Array:
    """rint(clamp(f32(f32(va + vb) / sc)) + zc): the route for ratios that fixed point cannot hold."""
    va = a.scale * (all_codes(a) - np.float32(a.zero_point))
    vb = b.scale * (all_codes(b) - np.float32(b.zero_point))
    zc = np.float32(result.zero_point)
    scaled = np.clip((va[:, None] + vb[None, :]) / result.scale, result.qmin - zc, result.qmax - zc)
    return _saturate(np.rint(scaled + zc), result)


def mul_x86(a: Quantization, b: Quantization, result: Quantization) -> Array:
    """QLinearMul on x86, and on arm64 where the compiler does not fuse."""
    products, factor, zc = _products(a, b, result)
    return _saturate(np.rint(products * factor + zc), result)


def mul_neon(a: Quantization, b: Quantization, result: Quantization) -> Array:
    """QLinearMul on arm64: multiply and add are one instruction."""
    products, factor, zc = _products(a, b, result)
    return _saturate(np.rint(fma(products, factor, zc)), result)


ADD_FORMULAS: dict[str, PairFormula] = {"FMA": add_fma, "SSE": add_sse, "NEON": add_neon}
MUL_FORMULAS: dict[str, PairFormula] = {"x86": mul_x86, "NEON": mul_neon}


def swapped(formula: PairFormula) -> PairFormula:
    """The same kernel with its operands exchanged, as the runtime calls it when the first one is a broadcast scalar."""

    def exchanged(a: Quantization, b: Quantization, result: Quantization) -> Array:
        return np.ascontiguousarray(formula(b, a, result).T)

    return exchanged


def look_up(table: Array, a: Array, b: Array, qmin: int) -> Array:
    """table[a - qmin, b - qmin] for broadcast code tensors."""
    index_a = a.astype(np.int32) - qmin
    index_b = b.astype(np.int32) - qmin
    return np.asarray(np.take(table.ravel(), index_a * table.shape[1] + index_b))


def _products(a: Quantization, b: Quantization, result: Quantization) -> tuple[Array, Array, Array]:
    da = all_codes(a) - np.float32(a.zero_point)
    db = all_codes(b) - np.float32(b.zero_point)
    factor = (a.scale * b.scale) / result.scale
    return da[:, None] * db[None, :], np.asarray(factor), result.zero_point.astype(np.float32)


def _zero_points(*params: Quantization) -> tuple[Array, ...]:
    return tuple(param.zero_point.astype(np.float32) for param in params)


def _saturate(values: Array, result: Quantization) -> Array:
    return np.asarray(np.clip(values, result.qmin, result.qmax).astype(result.dtype))
