"""Single accumulators of a layer, recomputed pair by pair: exact, as int32 wraps, and as int16 saturation clips.

    exact      sum_k x[k] * w[k]
    wrapped    the same in 32 bits
    saturated  sum_j clip16(x[2j] * w[2j] + x[2j+1] * w[2j+1]) in 32 bits      (vpmaddubsw on x86 without VNNI)

All on raw codes, K in the order kernel positions, then channels; the zero points are taken off afterwards, as the
kernels do:  acc = sum - zx * sum(w) - zw * sum(x) + K * zx * zw + b.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gdfq_export.runtime_checks.graph import Array
from gdfq_export.runtime_checks.layers import Layer
from gdfq_export.runtime_checks.linear import window_from_attributes


@dataclass(frozen=True, eq=False)
class Accumulators:
    """The accumulators at some positions of a layer's result, under each model."""

    exact: Array
    wrapped: Array
    saturated: Array


def accumulators_at(layer: Layer, codes: Array, positions: tuple[Array, ...]) -> Accumulators:
    """Accumulators for the elements at `positions` (as numpy.nonzero gives them) of the result on `codes`."""
    outputs = positions[1] if layer.node.op == "Conv" else positions[-1]
    gather = _patches if layer.node.op == "Conv" else _rows
    x = gather(layer, codes, positions).astype(np.int64)
    weight = layer.weight.astype(np.int64)[outputs]  # (positions, K)
    products = x * weight
    exact = products.sum(axis=1)
    if products.shape[1] % 2:
        products = np.pad(products, ((0, 0), (0, 1)))
    paired = products.reshape(len(products), -1, 2).sum(axis=2)
    saturated = np.clip(paired, -32768, 32767).sum(axis=1)
    offset = _offset(layer, x, weight, outputs)
    return Accumulators(exact + offset, _wrap(exact + offset), _wrap(saturated + offset))


def _offset(layer: Layer, x: Array, weight: Array, outputs: Array) -> Array:
    """What zero points and bias add to the sum of raw products."""
    zx = int(layer.source.zero_point)
    zw = np.broadcast_to(layer.weight_params.zero_point.astype(np.int64).reshape(-1), len(layer.weight))[outputs]
    offset = -zx * weight.sum(axis=1) - zw * x.sum(axis=1) + x.shape[1] * zx * zw
    if layer.bias is not None:
        offset = offset + layer.bias.astype(np.int64).reshape(-1)[outputs]
    return np.asarray(offset)


def _wrap(values: Array) -> Array:
    """As a 32-bit register keeps them."""
    return np.asarray((values + (1 << 31)) % (1 << 32) - (1 << 31))


def _rows(layer: Layer, codes: Array, positions: tuple[Array, ...]) -> Array:
    """The left operand's rows for Gemm and MatMul."""
    if layer.node.attributes.get("transA", 0):
        codes = codes.T
    return np.asarray(codes[positions[:-1]])


def _patches(layer: Layer, codes: Array, positions: tuple[Array, ...]) -> Array:
    """The pixels under the kernel at each position of a Conv, (positions, kernel * channels); padding is zx."""
    groups = int(layer.node.attributes.get("group", 1))
    per_group = codes.shape[1] // groups
    kernel = layer.kernel
    window = window_from_attributes(layer.node.attributes, kernel, codes.shape[2:])
    padding = [(0, 0), (0, 0), *zip(window.pads_begin, window.pads_end, strict=True)]
    padded = np.pad(codes, padding, constant_values=int(layer.source.zero_point))
    group = positions[1] // (len(layer.weight) // groups)
    channels = group[:, None] * per_group + np.arange(per_group)
    taps = np.stack(np.meshgrid(*map(np.arange, kernel), indexing="ij"), axis=-1).reshape(-1, len(kernel))
    where = [
        (position * window.strides[axis])[:, None] + taps[:, axis] * window.dilations[axis]
        for axis, position in enumerate(positions[2:])
    ]
    image = positions[0][:, None, None]
    patches = padded[(image, channels[:, None, :], *(axis[:, :, None] for axis in where))]
    return np.asarray(patches.reshape(len(patches), -1))
