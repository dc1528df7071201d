"""Functions of one 8-bit code: the runtime tabulates Q(f(DQ(code))) for all 256 codes, and so do we.

LeakyRelu   x >= 0 ? x : f32(alpha * x)
Sigmoid     p(x^2) * x / q(x^2) + 1/2 on [-18, 18], Eigen's rational approximation, Horner's rule with fma
Concat      the identity; a part whose parameters equal the result's is copied
Softmax     table of exp((i - 255 + shift) * s);  floor(1/sy) * e_i / sum(e), rounded, plus the zero point
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gdfq_export.runtime_checks.arithmetic import Float, Quantization, dequantize, fma, quantize
from gdfq_export.runtime_checks.graph import Array

Function = Callable[[Float], Float]
MultiplyAdd = Callable[[Any, Any, Any], Float]

_LOGISTIC_LIMIT = np.float32(18.0)
_LOGISTIC_P = (  # Eigen's coefficients, highest power first
    4.37031012579801e-11,
    1.15627324459942e-07,
    6.08574864600143e-05,
    8.51377133304701e-03,
    2.48287947061529e-01,
)
_LOGISTIC_Q = (
    6.10247389755681e-13,
    5.76102136993427e-09,
    6.29106785017040e-06,
    1.70198817374094e-03,
    1.16817656904453e-01,
    9.93151921023180e-01,
)
_SOFTMAX_RESERVED_BITS = 5


def tabulate(function: Function, source: Quantization, result: Quantization) -> Array:
    """Q(f(DQ(code))) for every code of `source`, ascending."""
    codes = np.arange(source.qmin, source.qmax + 1).astype(source.dtype)
    return quantize(function(dequantize(codes, source)), result)


def apply_table(table: Array, codes: Array, source: Quantization) -> Array:
    """table[code - qmin]."""
    return np.take(table, codes.astype(np.int32) - source.qmin)


def rescale(codes: Array, source: Quantization, result: Quantization) -> Array:
    """The codes of the same numbers under other parameters."""
    if source.same_as(result):
        return codes
    if source.axis is not None or result.axis is not None or source.dtype.itemsize > 1:
        return quantize(dequantize(codes, source), result)
    return apply_table(tabulate(lambda values: values, source, result), codes, source)


def leaky_relu(alpha: float) -> Function:
    """x >= 0 ? x : f32(alpha * x)."""
    return lambda values: np.where(values >= 0, values, np.float32(alpha) * values).astype(np.float32)


def logistic(values: Float) -> Float:
    """The logistic function as the runtime approximates it on x86 with FMA, and on arm64."""
    return _logistic(values, fma)


def logistic_without_fma(values: Float) -> Float:
    """The same on x86 without FMA."""
    return _logistic(values, lambda a, b, c: np.asarray(a * b + c, np.float32))


def _logistic(values: Float, multiply_add: MultiplyAdd) -> Float:
    x = np.clip(values, -_LOGISTIC_LIMIT, _LOGISTIC_LIMIT)
    square = x * x
    numerator = _horner(square, _LOGISTIC_P, multiply_add) * x
    denominator = _horner(square, _LOGISTIC_Q, multiply_add)
    return np.asarray(np.clip(numerator / denominator + np.float32(0.5), 0, 1), np.float32)


def _horner(x: Float, coefficients: tuple[float, ...], multiply_add: MultiplyAdd) -> Float:
    value: Float = np.full_like(x, np.float32(coefficients[0]))
    for coefficient in coefficients[1:]:
        value = multiply_add(value, x, np.float32(coefficient))
    return value


def softmax(codes: Array, axis: int, source: Quantization, result: Quantization) -> Array:
    """QLinearSoftmax of opset 13 and later: the exponentials come from a table, sums run in float32 along `axis`."""
    moved = np.moveaxis(codes, axis, -1)
    length = moved.shape[-1]
    shifted = moved.astype(np.int32) - moved.max(axis=-1, keepdims=True).astype(np.int32) + 255
    exponentials = _exponentials(float(source.scale), length)[shifted]
    total = np.zeros(moved.shape[:-1], np.float32)
    for index in range(length):  # the runtime adds one by one
        total += exponentials[..., index]
    factor = np.floor(np.float32(1) / result.scale.reshape(()))
    rounded = np.rint(exponentials * factor / total[..., None]) + np.float32(result.zero_point)
    out: Any = np.clip(rounded, result.qmin, result.qmax).astype(result.dtype)
    return np.moveaxis(out, -1, axis)


def _exponentials(scale: float, length: int) -> Float:
    """exp((i - 255 + shift) * s), with the shift that keeps `length` of them from overflowing float32."""
    largest_log = float(np.log(np.finfo(np.float32).max / np.float32(length)))  # a float32 logarithm
    shift = max(0.0, largest_log - _SOFTMAX_RESERVED_BITS) / scale
    table: Float = np.exp((np.arange(256, dtype=np.float64) - 255 + shift) * scale).astype(np.float32)
    return table
