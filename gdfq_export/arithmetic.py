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


def is_invariant(op: str, a: QTensor, b: QTensor, c: QTensor) -> bool:
    """Whether every instruction set computes the same code for all pairs of a sum or product."""
    if op == "mul":
        return bool((mul_unfused(a, b, c) == mul_fused(a, b, c)).all())
    reference = add_fma(a, b, c)
    return bool((reference == add_sse(a, b, c)).all() and (reference == add_neon(a, b, c)).all())
