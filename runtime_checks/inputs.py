"""Inputs for verification: stored images, random ones, and ones made to hurt; the same from the same seed.

The adversarial ones put the first layer where rounding is hardest: accumulators on or next to a tie of the
requantization, and at the extremes that its filters can reach; and the input's own quantization between two codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gdfq_export.runtime_checks.graph import Array, Graph
from gdfq_export.runtime_checks.input_spec import InputSpec
from gdfq_export.runtime_checks.layers import Layer
from gdfq_export.runtime_checks.linear import Window, window_from_attributes
from gdfq_export.runtime_checks.quantizer_of import quantizer_behind

_PASSES = 4  # over the pixels of a patch, to reach its target accumulator


def verification_inputs(
    spec: InputSpec, graph: Graph, layers: Sequence[Layer], golden: Array | None, samples: int, seed: int = 0
) -> Array:
    """`samples` model inputs: `golden` codes first, then the generated kinds in turn."""
    rng = np.random.default_rng(seed)
    stored = [] if golden is None else [spec.feed(golden[index : index + 1])[0] for index in range(len(golden))]
    makers = _makers(spec, graph, layers)
    feeds = stored[:samples]
    while len(feeds) < samples:
        feeds.append(makers[(len(feeds) - len(stored)) % len(makers)](rng).astype(spec.dtype))
    return np.stack(feeds)


def _makers(spec: InputSpec, graph: Graph, layers: Sequence[Layer]) -> list[Callable[[np.random.Generator], Array]]:
    """One function for each kind of input, each of which makes one image."""

    def from_codes(make: Callable[[np.random.Generator], Array]) -> Callable[[np.random.Generator], Array]:
        return lambda rng: spec.feed(make(rng)[None])[0]

    def from_read(make: Callable[[np.random.Generator], Array]) -> Callable[[np.random.Generator], Array]:
        return from_codes(lambda rng: spec.image_from_read(make(rng)))

    low, high = spec.params.qmin, spec.params.qmax
    shape, read = spec.code_shape, spec.read_shape
    makers = [
        from_codes(lambda rng: _uniform(rng, shape, low, high)),
        from_codes(lambda rng: _smooth(rng, shape, low, high)),
    ]
    first = _first_convolution(spec, graph, layers)
    if first is not None:
        window = window_from_attributes(first.node.attributes, first.kernel, read[1:])
        makers += [
            from_read(lambda rng: tie_image(rng, first, window, read, graph)),
            from_read(lambda rng: extreme_image(rng, first, window, read, largest=True)),
            from_read(lambda rng: extreme_image(rng, first, window, read, largest=False)),
        ]
    if not np.issubdtype(spec.dtype, np.integer):
        makers.append(lambda rng: _between_codes(rng, spec))
    makers += [
        from_codes(lambda rng: np.where(rng.random(shape) < 0.5, low, high).astype(spec.params.dtype)),
        from_codes(lambda rng: np.full(shape, high if rng.random() < 0.5 else low, spec.params.dtype)),
    ]
    return makers


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], low: int, high: int) -> Array:
    return rng.integers(low, high + 1, shape)


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], low: int, high: int) -> Array:
    """Large patches of similar values with noise on top, closer to a photograph than noise alone."""
    coarse = rng.uniform(low, high, (shape[0], *(-(-size // 8) for size in shape[1:])))
    for axis in range(1, len(shape)):
        coarse = np.repeat(coarse, 8, axis)
    inside = coarse[tuple(slice(0, size) for size in shape)]
    return np.clip(np.rint(inside + rng.normal(0, 6, shape)), low, high)


def _between_codes(rng: np.random.Generator, spec: InputSpec) -> Array:
    """Floats halfway between two codes, on codes, and outside their range."""
    params = spec.params
    codes = rng.integers(params.qmin - 2, params.qmax + 3, spec.code_shape) + rng.choice([0.0, 0.5], spec.code_shape)
    values = ((codes - float(params.zero_point)) * float(params.scale)).astype(np.float32)
    return np.moveaxis(values, 0, -1) if spec.channels_last else values


def _first_convolution(spec: InputSpec, graph: Graph, layers: Sequence[Layer]) -> Layer | None:
    """The convolution that reads the input's own codes, if there is one without groups over the whole input."""
    first = layers[0] if layers else None
    if first is None or first.node.op != "Conv" or first.node.attributes.get("group", 1) != 1:
        return None
    if not first.source.same_as(spec.params) and not np.issubdtype(spec.dtype, np.integer):
        return None
    channels = first.weight.shape[1] // int(np.prod(first.kernel))
    return first if channels == spec.read_shape[0] else None


def tie_image(rng: np.random.Generator, layer: Layer, window: Window, shape: tuple[int, ...], graph: Graph) -> Array:
    """Codes whose accumulators lie as near to a rounding tie as their channel allows.

    For each patch (patches do not overlap) one output channel is chosen, the integer T with f32(T) * s closest to a
    half is looked up, and pixels are moved, those with the largest weights first, until the accumulator is T.
    """
    low, high = layer.codes.low, layer.codes.high
    weight = layer.centred_weight  # (O, K), K = (kernel..., channels)
    patches, place = _patches(window, shape)
    codes = rng.integers(low, high + 1, (patches, weight.shape[1]))
    channel = rng.integers(0, len(weight), patches)
    rows = weight[channel]
    bias = np.zeros(len(weight), np.int64) if layer.bias is None else layer.bias.astype(np.int64)
    accumulators = (rows * (codes - int(layer.source.zero_point))).sum(axis=1) + bias[channel]
    missing = _nearest_tie(layer, graph, channel, accumulators) - accumulators
    order = np.argsort(-np.abs(rows), axis=1)
    everyone = np.arange(patches)
    for column in [*order.T] * _PASSES:
        factor = rows[everyone, column]
        wanted = np.where(factor == 0, 0, np.trunc(missing / np.where(factor == 0, 1, factor))).astype(np.int64)
        old = codes[everyone, column]
        new = np.clip(old + wanted, low, high)
        codes[everyone, column] = new
        missing -= factor * (new - old)
    return place(codes, rng.integers(low, high + 1, shape))


def _nearest_tie(layer: Layer, graph: Graph, channel: Array, accumulators: Array) -> Array:
    """The integer near each accumulator whose product with its channel's scale is closest to a half."""
    result = quantizer_behind(graph, layer.node)
    scale = np.broadcast_to(layer.source.scale * layer.weight_params.scale, len(layer.weight))
    if result is not None:
        scale = scale / result.scale
    offsets = np.arange(-512, 513)
    candidates = accumulators[:, None] + offsets
    scaled = candidates.astype(np.float64) * scale[channel][:, None]
    distance = np.abs(scaled - np.floor(scaled) - 0.5)
    return np.asarray(candidates[np.arange(len(candidates)), np.argmin(distance, axis=1)])


def extreme_image(
    rng: np.random.Generator, layer: Layer, window: Window, shape: tuple[int, ...], *, largest: bool
) -> Array:
    """Patches that drive one channel's accumulator as high (or as low) as it goes."""
    patches, place = _patches(window, shape)
    channel = rng.integers(0, len(layer.weight), patches)
    positive = layer.centred_weight[channel] > 0
    codes = np.where(positive == largest, layer.codes.high, layer.codes.low)
    return place(codes, np.full(shape, int(layer.source.zero_point)))


def _patches(window: Window, shape: tuple[int, ...]) -> tuple[int, Callable[[Array, Array], Array]]:
    """How many windows fit beside each other, and a function that writes their pixels into an image.

    The function takes codes (patches, kernel * channels), the order of Layer.weight, and the image (C, *spatial).
    """
    positions = []
    for axis, size in enumerate(shape[1:]):
        reach = window.dilations[axis] * (window.kernel[axis] - 1) + 1
        step = -(-reach // window.strides[axis]) * window.strides[axis]
        first = -window.pads_begin[axis] % window.strides[axis]
        positions.append(np.arange(first, max(size - reach + 1, first), step))
    starts = np.stack(np.meshgrid(*positions, indexing="ij"), axis=-1).reshape(-1, len(shape) - 1)
    taps = np.stack(
        np.meshgrid(*(np.arange(k) * d for k, d in zip(window.kernel, window.dilations, strict=True)), indexing="ij"),
        axis=-1,
    ).reshape(-1, len(shape) - 1)
    where = starts[:, None, :] + taps[None]  # (patches, kernel, spatial)
    inside = (where < np.array(shape[1:])).all(axis=(1, 2))
    where = where[inside]

    def place(codes: Array, image: Array) -> Array:
        pixels = codes.reshape(len(where), len(taps), shape[0])
        image[(slice(None), *np.moveaxis(where, -1, 0))] = np.moveaxis(pixels, -1, 0)
        return image

    return len(where), place
