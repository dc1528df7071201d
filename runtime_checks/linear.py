"""Exact integer accumulators of convolutions and matrix products, computed by BLAS.

    acc[o] = sum_k (x[k] - zx) * (w[o, k] - zw[o]) + b[o]

A float32 sum of integers is exact as long as no partial sum can reach 2^24, and a float64 sum below 2^53. The bound
sum|w| * max|x| + |b| chooses between them, so that the result is an exact integer either way. Padding adds zeros,
because the zero point is subtracted first.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gdfq_export.runtime_checks.graph import Array

_EXACT_IN_FLOAT32 = 1 << 24
_BLOCK_ELEMENTS = 1 << 24  # of the matrix that a convolution is unfolded into: 64 MiB of float32


@dataclass(frozen=True)
class Window:
    """How a kernel slides over the spatial dimensions."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads_begin: tuple[int, ...]
    pads_end: tuple[int, ...]

    def output_size(self, spatial: Sequence[int], ceil: bool = False) -> tuple[int, ...]:
        """floor((size + pads - (dilation * (k - 1) + 1)) / stride) + 1, or with ceil, as ONNX defines it."""
        sizes = []
        for index, size in enumerate(spatial):
            reach = self.dilations[index] * (self.kernel[index] - 1) + 1
            free = size + self.pads_begin[index] + self.pads_end[index] - reach
            steps = -(-free // self.strides[index]) if ceil else free // self.strides[index]
            if ceil and steps * self.strides[index] >= size + self.pads_begin[index]:
                steps -= 1  # a window must not start in the padding at the end
            sizes.append(steps + 1)
        return tuple(sizes)


def window_from_attributes(attributes: Mapping[str, Any], kernel: Sequence[int], spatial: Sequence[int]) -> Window:
    """The window of a Conv or pooling node over `spatial` sizes; `auto_pad` is resolved."""
    rank = len(spatial)
    kernel = tuple(int(size) for size in kernel)
    strides = tuple(attributes.get("strides") or [1] * rank)
    dilations = tuple(attributes.get("dilations") or [1] * rank)
    pads = tuple(attributes.get("pads") or [0] * (2 * rank))
    auto_pad = bytes(attributes.get("auto_pad", b"NOTSET")).decode()
    if auto_pad == "VALID":
        pads = (0,) * (2 * rank)
    elif auto_pad.startswith("SAME"):
        totals = [
            max((-(-size // stride) - 1) * stride + dilation * (k - 1) + 1 - size, 0)
            for size, stride, dilation, k in zip(spatial, strides, dilations, kernel, strict=True)
        ]
        small = [total // 2 for total in totals]
        large = [total - half for total, half in zip(totals, small, strict=True)]
        pads = (*small, *large) if auto_pad == "SAME_UPPER" else (*large, *small)
    return Window(kernel, strides, dilations, tuple(pads[:rank]), tuple(pads[rank:]))


def exact_dtype(bound: float) -> type[np.floating[Any]]:
    """The cheapest float type in which sums up to `bound` are exact."""
    return np.float32 if bound < _EXACT_IN_FLOAT32 else np.float64


def accumulator_bound(x: Array, weight: Array, bias: Array | None, output_axis: int) -> float:
    """sum|w| * max|x| + |b|, the largest over the outputs."""
    others = tuple(axis for axis in range(weight.ndim) if axis != output_axis % weight.ndim)
    weight_sums = np.abs(weight.astype(np.int64)).sum(axis=others)
    largest = max(int(x.max(initial=0)), -int(x.min(initial=0)))
    offsets = 0 if bias is None else np.abs(bias.astype(np.int64))
    return float(np.max(weight_sums * largest + offsets, initial=0))


def convolve(x: Array, weight: Array, bias: Array | None, attributes: Mapping[str, Any]) -> Array:
    """The accumulator of Conv: x (N, C, *spatial) and weight (O, C/groups, *kernel), zero points subtracted."""
    groups = int(attributes.get("group", 1))
    window = window_from_attributes(attributes, weight.shape[2:], x.shape[2:])
    if np.issubdtype(x.dtype, np.integer):
        dtype = exact_dtype(accumulator_bound(x, weight, bias, output_axis=0))
        x, weight = x.astype(dtype), weight.astype(dtype)
    padding = [(0, 0), (0, 0), *zip(window.pads_begin, window.pads_end, strict=True)]
    padded = np.pad(x, padding) if any(map(any, padding)) else x
    size = window.output_size(x.shape[2:])
    if weight.shape[1] == 1 and groups > 1:
        out = _convolve_depthwise(padded, weight, window, size)
    else:
        parts = [
            _convolve_dense(part, kernels, window, size)
            for part, kernels in zip(np.split(padded, groups, 1), np.split(weight, groups, 0), strict=True)
        ]
        out = parts[0] if groups == 1 else np.concatenate(parts, axis=1)
    if bias is not None:
        out += bias.astype(out.dtype).reshape(1, -1, *[1] * len(size))
    return out


def _taps(window: Window, size: Sequence[int], first_row: int = 0) -> list[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """For each kernel position the slices of the padded input that it meets, from output row `first_row` on."""
    taps = []
    for position in itertools.product(*map(range, window.kernel)):
        slices = []
        for axis, index in enumerate(position):
            stride = window.strides[axis]
            start = index * window.dilations[axis] + (first_row * stride if axis == 0 else 0)
            slices.append(slice(start, start + (size[axis] - 1) * stride + 1, stride))
        taps.append((position, tuple(slices)))
    return taps


def _convolve_depthwise(padded: Array, weight: Array, window: Window, size: tuple[int, ...]) -> Array:
    """One input channel per group: a sum over kernel positions."""
    multiplier = weight.shape[0] // padded.shape[1]
    source = np.repeat(padded, multiplier, axis=1) if multiplier > 1 else padded
    out = np.zeros((source.shape[0], source.shape[1], *size), padded.dtype)
    for position, slices in _taps(window, size):
        tap: tuple[Any, ...] = (slice(None), 0, *position)
        column = weight[tap].reshape(1, -1, *[1] * len(size))
        out += source[(slice(None), slice(None), *slices)] * column
    return out


def _convolve_dense(padded: Array, weight: Array, window: Window, size: tuple[int, ...]) -> Array:
    """Unfolds a block of output rows into a matrix (C * kernel, pixels) and multiplies."""
    outputs, channels = weight.shape[:2]
    flat = weight.reshape(outputs, -1)
    out = np.empty((padded.shape[0], outputs, *size), padded.dtype)
    per_row = flat.shape[1] * int(np.prod(size[1:], dtype=np.int64))
    step = max(1, min(size[0], _BLOCK_ELEMENTS // max(per_row, 1)))
    for image in range(padded.shape[0]):
        for first in range(0, size[0], step):
            block = (min(step, size[0] - first), *size[1:])
            columns = np.empty((channels, *window.kernel, *block), padded.dtype)
            for position, slices in _taps(window, block, first):
                source: tuple[Any, ...] = (image, slice(None), *slices)
                target: tuple[Any, ...] = (slice(None), *position)
                columns[target] = padded[source]
            product = flat @ columns.reshape(flat.shape[1], -1)
            out[image, :, first : first + block[0]] = product.reshape(outputs, *block)
    return out


def multiply(a: Array, b: Array, bias: Array | None) -> Array:
    """The accumulator of MatMul and Gemm: a (..., K) @ b (..., K, N) + bias (N) or (1, N)."""
    if np.issubdtype(a.dtype, np.integer):
        dtype = exact_dtype(accumulator_bound(a, b, bias, output_axis=-1))
        a, b = a.astype(dtype), b.astype(dtype)
    out = np.matmul(a, b)
    if bias is not None:
        out += bias.astype(out.dtype)
    return np.asarray(out)
