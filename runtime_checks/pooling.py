"""Pooling of 8-bit codes.

GlobalAveragePool   s = f32(sx / f32(sy * N));  rint(clamp(f32(sum - zx * N) * s)) + zy
                    (the same on x86 and arm64: benchmarks/ort_arithmetic.py)
AveragePool         f32 sum of dequantized values in (h, w) order, divided by the count;  rint(f32(x/sy) + zy)
                    (a window that covers the whole map without padding takes the GlobalAveragePool route)
MaxPool             the largest code; padding never wins
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from gdfq_export.runtime_checks.arithmetic import Quantization, dequantize, requantize
from gdfq_export.runtime_checks.graph import Array
from gdfq_export.runtime_checks.linear import Window, window_from_attributes


def global_average(codes: Array, source: Quantization, result: Quantization) -> Array:
    """QLinearGlobalAveragePool over all spatial dimensions."""
    axes = tuple(range(2, codes.ndim))
    count = int(np.prod(codes.shape[2:], dtype=np.int64))
    total = codes.sum(axis=axes, keepdims=True, dtype=np.int64) - int(source.zero_point) * count
    unit = Quantization(np.ones((), np.float32), result.zero_point, result.dtype)
    return requantize(total, source.scale / np.float32(result.scale * np.float32(count)), unit)


def covers_map(attributes: Mapping[str, Any], spatial: tuple[int, ...]) -> bool:
    """Whether an AveragePool takes the GlobalAveragePool route."""
    window = window_from_attributes(attributes, attributes["kernel_shape"], spatial)
    return window.kernel == spatial and not any(window.pads_begin + window.pads_end)


def average(codes: Array, attributes: Mapping[str, Any], source: Quantization, result: Quantization) -> Array:
    """QLinearAveragePool."""
    if covers_map(attributes, codes.shape[2:]):
        return global_average(codes, source, result)
    values = float_average(dequantize(codes, source), attributes) / result.scale + np.float32(result.zero_point)
    return np.asarray(np.clip(np.rint(values), result.qmin, result.qmax).astype(result.dtype))


def float_average(values: Array, attributes: Mapping[str, Any]) -> Array:
    """AveragePool in float32, added one by one in (h, w) order."""
    window = window_from_attributes(attributes, attributes["kernel_shape"], values.shape[2:])
    size = window.output_size(values.shape[2:], bool(attributes.get("ceil_mode", 0)))
    total = np.zeros((*values.shape[:2], *size), np.float32)
    count = np.zeros(size, np.float32)
    for part, target in _parts(values, window, size):
        total[(slice(None), slice(None), *target)] += part
        count[target] += 1
    if attributes.get("count_include_pad", 0):
        count = np.full(size, np.prod(window.kernel), np.float32)
    return np.asarray(total / count)


def maximum(codes: Array, attributes: Mapping[str, Any]) -> Array:
    """MaxPool of integers or floats."""
    window = window_from_attributes(attributes, attributes["kernel_shape"], codes.shape[2:])
    size = window.output_size(codes.shape[2:], bool(attributes.get("ceil_mode", 0)))
    lowest = np.iinfo(codes.dtype).min if np.issubdtype(codes.dtype, np.integer) else -np.inf
    out = np.full((*codes.shape[:2], *size), lowest, codes.dtype)
    for part, target in _parts(codes, window, size):
        view = out[(slice(None), slice(None), *target)]
        np.maximum(view, part, out=view)
    return out


def _parts(values: Array, window: Window, size: tuple[int, ...]) -> list[tuple[Array, tuple[slice, ...]]]:
    """For each kernel position: the inputs that it meets, and the outputs that they belong to."""
    parts = []
    for position in itertools.product(*map(range, window.kernel)):
        source, target = [], []
        for axis, index in enumerate(position):
            stride = window.strides[axis]
            offset = index * window.dilations[axis] - window.pads_begin[axis]
            first = max(0, -(offset // stride))  # the first output whose input at this position is inside
            last = min(size[axis] - 1, (values.shape[2 + axis] - 1 - offset) // stride)
            target.append(slice(first, max(last + 1, first)))
            source.append(slice(first * stride + offset, max(last, first - 1) * stride + offset + 1, stride))
        if all(part.stop > part.start for part in target):
            parts.append((values[(slice(None), slice(None), *source)], tuple(target)))
    return parts
