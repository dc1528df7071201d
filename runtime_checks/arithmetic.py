"""The rounding formulas of ONNX Runtime's fused 8-bit kernels, element by element, in float32.

    requantize (Conv, Gemm, MatMul)   rint(clamp(f32(acc) * s, qmin - zy, qmax - zy)) + zy,  s = f32(f32(sx*sw) / sy)
    QuantizeLinear                    rint(clamp(f32(x / s), qmin - z, qmax - z)) + z
    DequantizeLinear                  f32(q - z) * s

`rint` rounds half to even. Each operation rounds to float32 once, which NumPy does too, so that these agree with the
runtime to the last bit; docs/ort-arithmetic.md has the experiments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gdfq_export.runtime_checks.graph import Array

Float = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Quantization:
    """How codes stand for numbers: value = (code - zero_point) * scale; `axis` is None for one scale per tensor."""

    scale: Float
    zero_point: Array
    dtype: np.dtype[Any]
    axis: int | None = None

    @property
    def qmin(self) -> int:
        """The smallest code."""
        return int(np.iinfo(self.dtype).min)

    @property
    def qmax(self) -> int:
        """The largest code."""
        return int(np.iinfo(self.dtype).max)

    def same_as(self, other: Quantization) -> bool:
        """Whether codes mean the same numbers under both."""
        return (
            self.dtype == other.dtype
            and self.axis == other.axis
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def along(self, rank: int) -> tuple[Float, Array]:
        """Scale and zero point (as int32), shaped to broadcast over a tensor of `rank` dimensions."""
        zero_point = self.zero_point.astype(np.int32)
        if self.axis is None:
            return self.scale.reshape(()), zero_point.reshape(())
        shape = [1] * rank
        shape[self.axis % rank] = -1
        return self.scale.reshape(shape), zero_point.reshape(shape)


def dequantize(codes: Array, params: Quantization) -> Float:
    """f32(q - z) * s."""
    scale, zero_point = params.along(codes.ndim)
    return (codes.astype(np.int32) - zero_point).astype(np.float32) * scale


def quantize(values: Array, params: Quantization) -> Array:
    """rint(clamp(f32(x / s), qmin - z, qmax - z)) + z."""
    scale, zero_point = params.along(values.ndim)
    return _round(np.divide(values, scale, dtype=np.float32), zero_point, params)


def requantize(accumulator: Array, accumulator_scale: ArrayLike, params: Quantization) -> Array:
    """rint(clamp(f32(acc) * f32(f32(sx*sw) / sy), qmin - zy, qmax - zy)) + zy.

    `accumulator` holds exact integers (in float32 or float64) and `accumulator_scale`, which is f32(sx*sw), broadcasts
    over it.
    """
    factor = np.asarray(accumulator_scale, np.float32) / params.scale.reshape(())
    scaled = accumulator.astype(np.float32)
    scaled *= factor
    return _round(scaled, params.zero_point.astype(np.int32).reshape(()), params)


def _round(scaled: Float, zero_point: Array, params: Quantization) -> Array:
    """rint(clamp(x, qmin - z, qmax - z)) + z, in place."""
    offset = zero_point.astype(np.float32)
    np.clip(scaled, params.qmin - offset, params.qmax - offset, out=scaled)
    np.rint(scaled, out=scaled)
    scaled += offset
    return scaled.astype(params.dtype)


def fma(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> Float:
    """float32 fused multiply-add: a*b + c, rounded once.

    The product of two float32 is exact in float64; their sum with `c` is rounded to odd there, which makes the second
    rounding to float32 correct (Boldo and Melquiond, 2008).
    """
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    addend = np.asarray(c, np.float64)
    total = np.asarray(product + addend)
    virtual = total - product
    error = (product - (total - virtual)) + (addend - virtual)  # TwoSum (Knuth): total + error is exact
    even = (total.view(np.int64) & 1) == 0
    towards = np.where(error > 0, np.inf, -np.inf)
    odd = np.where((error != 0) & even, np.nextafter(total, towards), total)
    result: Float = odd.astype(np.float32)
    return result


def quantize_bias(bias: Array, scale: Array) -> Array:
    """A constant float bias as the runtime quantizes it on loading: rint(f32(b / f32(sx * sw)))."""
    return np.asarray(np.rint(bias / scale.astype(np.float32)).astype(np.int32))
