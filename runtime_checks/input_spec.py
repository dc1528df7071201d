"""What a model takes: shape, layout and type of its input, and how an image or codes become it.

    metadata_props["gdfq_export"] = {"input": {"format": "float-nchw" | "uint8-nhwc", "shape": [C, H, W],
                                               "mean": [...], "std": [...], "resize": int | null,
                                               "range": [low, high], "values": "pixels" | "features"}, ...}

What the exporter wrote is believed. Files of other tools say nothing of the kind, and files of older versions lack some
keys: then the layout is guessed from the sizes, mean and std are unknown, and the values are pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from gdfq_export.runtime_checks.arithmetic import Quantization, dequantize
from gdfq_export.runtime_checks.errors import CheckError, UnsupportedGraphError
from gdfq_export.runtime_checks.folding import quantization_from_constants
from gdfq_export.runtime_checks.graph import Array, Graph, Node
from gdfq_export.runtime_checks.movement import MOVES

IMAGE_CHANNELS = (1, 3)
CHANNELS_LAST = {"float-nchw": False, "uint8-nhwc": True}
PIXELS, FEATURES = "pixels", "features"

_UNKNOWN_SIZE = 224  # of an image whose size neither the file nor its metadata states
_UNKNOWN_CHANNELS = 3
_REARRANGING = ("SpaceToDepth",)  # a permutation of the elements, given by attributes alone
_FLOAT_CODES = Quantization(np.full((), 1 / 64, np.float32), np.full((), 128, np.uint8), np.dtype(np.uint8))


@dataclass(frozen=True)
class Preprocessing:
    """From an image file to a network's input."""

    height: int
    width: int
    channels: int  # 1 (grey) or 3 (RGB)
    resize: int | None  # shorter side before the centre crop; None: the smallest that covers the crop
    mean: tuple[float, ...]  # of pixels in [0, 1], one a channel
    std: tuple[float, ...]
    raw: bool  # uint8 (H, W, C) as it is, normalised inside the network, instead of float (C, H, W)


@dataclass(frozen=True)
class ImageFacts:
    """What the metadata says of the images behind the input; None where it does not."""

    mean: tuple[float, ...] | None = None  # of pixels in [0, 1]
    std: tuple[float, ...] | None = None
    resize: int | None = None  # shorter side before the centre crop
    accepted: tuple[float, float] | None = None  # values of the input that are not clipped
    values: str = PIXELS


@dataclass(frozen=True, eq=False)
class InputSpec:
    """The model's input for one image, and the batch that it insists on (None where any will do)."""

    name: str
    sizes: tuple[int | None, ...]  # without the batch; None where neither graph nor metadata says
    dtype: np.dtype[Any]
    batch: int | None = None
    channels_last: bool = False
    image: ImageFacts = ImageFacts()
    params: Quantization = _FLOAT_CODES  # of the first quantized tensor; a guess of [-2, 2) where nothing quantizes it
    moves: tuple[Node, ...] = ()  # what rearranges the pixels before they are quantized

    @property
    def image_size(self) -> tuple[int | None, ...]:
        """The sizes of one image, channels first."""
        return (self.sizes[-1], *self.sizes[:-1]) if self.channels_last else self.sizes

    @property
    def code_shape(self) -> tuple[int, ...]:
        """The shape of one image's codes, channels first; sizes that nothing states are guessed."""
        guesses = (_UNKNOWN_CHANNELS, *[_UNKNOWN_SIZE] * len(self.sizes))
        return tuple(guess if size is None else size for size, guess in zip(self.image_size, guesses, strict=False))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the input for one image, likewise."""
        channels_first = self.code_shape
        return (*channels_first[1:], channels_first[0]) if self.channels_last else channels_first

    @property
    def read_shape(self) -> tuple[int, ...]:
        """The shape of the first quantized tensor for one image."""
        return self._order().shape

    def _order(self) -> Array:
        """Where each element of the first quantized tensor stands among the image's codes."""
        order = np.arange(math.prod(self.code_shape)).reshape(1, *self.code_shape)
        for node in self.moves:
            (order,) = MOVES[node.op](node, order, (), 1)
        return np.asarray(order[0])

    def image_from_read(self, codes: Array) -> Array:
        """The image's codes that become `codes` where the first quantized tensor is made, both of one image."""
        image = np.empty(codes.size, codes.dtype)
        image[self._order().reshape(-1)] = codes.reshape(-1)
        return image.reshape(self.code_shape)

    def feed(self, codes: Array) -> Array:
        """The model's input whose pixels are quantized to `codes` (N, C, H, W)."""
        if self.channels_last:
            codes = np.ascontiguousarray(np.moveaxis(codes, 1, -1))
        if np.issubdtype(self.dtype, np.integer):
            return codes.astype(self.dtype)
        return dequantize(codes, self.params).astype(self.dtype)


def input_spec(graph: Graph, provenance: Mapping[str, Any]) -> InputSpec:
    """Read from the metadata where the file is ours, and from the graph."""
    tensor = graph.input.type.tensor_type
    sizes = [item.dim_value if item.HasField("dim_value") and item.dim_value > 0 else None for item in tensor.shape.dim]
    if not sizes:
        raise UnsupportedGraphError(f"input '{graph.input.name}' has no shape: it cannot be fed")
    stated = _Stated(provenance.get("input"))
    channels_last = guess_channels_last(sizes) if stated.channels_last is None else stated.channels_last
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    moves = () if channels_last else _moves_before_quantizer(graph)
    return InputSpec(
        name=graph.input.name,
        sizes=_filled(graph.input.name, sizes[1:], stated.shape, channels_last=channels_last),
        dtype=dtype,
        batch=sizes[0],
        channels_last=channels_last,
        image=stated.image,
        params=_first_params(graph, moves[-1].outputs[0] if moves else graph.input.name, dtype),
        moves=moves,
    )


def guess_channels_last(sizes: Sequence[int | None]) -> bool:
    """Whether an input (N, ...) is (N, H, W, C), for files that do not say.

    ONNX's own order is (N, C, H, W): only what cannot be channels there, while the last axis can, is another.
    """
    return len(sizes) == 4 and sizes[3] in IMAGE_CHANNELS and sizes[1] not in IMAGE_CHANNELS


def random_batch(spec: InputSpec, batch: int, generator: np.random.Generator) -> Array:
    """A batch of noise that the model takes; one that insists on its own batch gets that."""
    shape = (spec.batch or batch, *spec.shape)
    if spec.dtype.kind == "f":
        return generator.standard_normal(shape, dtype=np.float32).astype(spec.dtype, copy=False)
    if spec.dtype.kind in "iu" and spec.dtype.itemsize == 1:
        limits = np.iinfo(spec.dtype)
        return generator.integers(limits.min, limits.max + 1, shape, dtype=spec.dtype)
    raise _wrong_type(spec, "")


def preprocessing_of(
    spec: InputSpec, file: str, mean: Sequence[float] | None, std: Sequence[float] | None, resize: int | None
) -> tuple[Preprocessing, tuple[str, ...]]:
    """How images are prepared for the model in `file`, and what was assumed because nothing says it."""
    if len(spec.sizes) != 3:
        raise UnsupportedGraphError(f"{file}: input {spec.name} has {len(spec.sizes) + 1} dimensions; images need 4")
    channels, height, width = spec.image_size
    if channels not in IMAGE_CHANNELS or height is None or width is None:
        raise UnsupportedGraphError(f"{file}: input {spec.name} is {spec.sizes}, which is no image of one size")
    if spec.dtype not in (np.float32, np.uint8):
        raise _wrong_type(spec, f"{file}: ")
    raw = spec.dtype == np.uint8
    if spec.channels_last != raw:
        raise UnsupportedGraphError(f"{file}: input {spec.name} must be float (N, C, H, W) or uint8 (N, H, W, C)")
    if spec.image.values == FEATURES and not (mean and std):
        raise CheckError(
            f"{file} takes features, not the pixels of image files: give --mean and --std if pixels become its "
            "features that way"
        )
    made = Preprocessing(
        height=height,
        width=width,
        channels=channels,
        resize=resize or spec.image.resize,
        mean=_per_channel("mean", mean or spec.image.mean or (0.0,), channels),
        std=_per_channel("std", std or spec.image.std or (1.0,), channels),
        raw=raw,
    )
    return made, tuple(_notes(spec, file, made, mean, std))


def _notes(
    spec: InputSpec, file: str, made: Preprocessing, mean: Sequence[float] | None, std: Sequence[float] | None
) -> list[str]:
    """What a user has to know about figures that rest on this preprocessing."""
    if made.raw:
        ignored = "mean and std are ignored: the model takes pixels and normalises them itself"
        return [ignored] if mean or std else []
    notes = [
        f"{file} does not say its {name}: assuming {default} for pixels in [0, 1]"
        for name, given, default in (("mean", mean or spec.image.mean, 0), ("std", std or spec.image.std, 1))
        if given is None
    ]
    pairs = list(zip(made.mean, made.std, strict=True))
    low, high = min(-m / s for m, s in pairs), max((1 - m) / s for m, s in pairs)
    if spec.image.accepted is not None:
        accepted = spec.image.accepted
        slack = (high - low) / 255  # half a step of pixels on either side, and the rounding of the bounds
        if low < accepted[0] - slack or high > accepted[1] + slack:
            notes.append(
                f"pixels become {low:.4g} to {high:.4g}, but {file} accepts {accepted[0]:.4g} to {accepted[1]:.4g} "
                "and clips the rest: its --mean and --std are others"
            )
    return notes


def _per_channel(name: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    values = tuple(values) * channels if len(values) == 1 else tuple(values)
    if len(values) != channels:
        raise CheckError(f"{name} has {len(values)} values where the model has {channels} channels")
    if name == "std" and min(values) <= 0:
        raise CheckError(f"std must be positive, not {min(values)}")
    return values


def _wrong_type(spec: InputSpec, where: str) -> UnsupportedGraphError:
    return UnsupportedGraphError(f"{where}input {spec.name} is {spec.dtype.name}, and only float and uint8 can be fed")


class _Stated:
    """The metadata's `input`, each fact of which may be missing."""

    def __init__(self, written: object) -> None:
        if written is not None and not isinstance(written, Mapping):
            raise _damaged("is no object")
        self._written: Mapping[str, Any] = written or {}
        size = self._numbers("shape", 3)
        self.shape = None if size is None else tuple(int(value) for value in size)
        if self.shape is not None and (min(self.shape) < 1 or self.shape != size):
            raise _damaged(f"has a shape of {self._written['shape']}")
        form = self._written.get("format")
        if form is not None and form not in CHANNELS_LAST:
            raise _damaged(f"has a format of {form!r}, and this version knows {', '.join(CHANNELS_LAST)}")
        self.channels_last = None if form is None else CHANNELS_LAST[form]
        resize, values, accepted = self._numbers("resize"), self._written.get("values"), self._numbers("range", 2)
        self.image = ImageFacts(
            mean=self._numbers("mean"),
            std=self._numbers("std"),
            resize=None if resize is None else int(resize[0]),
            accepted=None if accepted is None else (accepted[0], accepted[1]),
            values=FEATURES if values == FEATURES else PIXELS,
        )

    def _numbers(self, key: str, count: int | None = None) -> tuple[float, ...] | None:
        """The number or numbers at `key`."""
        value = self._written.get(key)
        if value is None:
            return None
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(x, int | float) and math.isfinite(x) for x in values):
            raise _damaged(f"has a {key} of {value!r}")
        if count is not None and len(values) != count:
            raise _damaged(f"has a {key} of {value!r}, and {count} numbers are expected")
        return tuple(float(x) for x in values)


def _damaged(what: str) -> CheckError:
    return CheckError(f"metadata 'gdfq_export' is damaged: its input {what}")


def _filled(
    name: str, sizes: Sequence[int | None], shape: tuple[int, ...] | None, *, channels_last: bool
) -> tuple[int | None, ...]:
    """The graph's sizes, the open ones from the metadata's (C, H, W)."""
    if shape is None:
        return tuple(sizes)
    known = (*shape[1:], shape[0]) if channels_last else shape
    if len(known) != len(sizes) or any(size not in (None, other) for size, other in zip(sizes, known, strict=True)):
        raise CheckError(f"input '{name}' is {tuple(sizes)}, but the metadata says {known}: another tool changed one")
    return known


def _moves_before_quantizer(graph: Graph) -> tuple[Node, ...]:
    """The operators that rearrange the whole image, one after the other, before anything else reads it."""
    moves: list[Node] = []
    name = graph.input.name
    while (reader := graph.only_consumer(name)) is not None and reader.op in _REARRANGING:
        moves.append(reader)
        name = reader.outputs[0]
    return tuple(moves)


def _first_params(graph: Graph, name: str, dtype: np.dtype[Any]) -> Quantization:
    """How the float tensor `name` is quantized."""
    if np.issubdtype(dtype, np.integer):
        return Quantization(np.ones((), np.float32), np.zeros((), np.uint8), np.dtype(np.uint8))
    for node in graph.consumers.get(name, ()):
        if node.op == "QuantizeLinear" and node.input(1) in graph.constants:
            zero_point = graph.constants.get(node.input(2))
            params = quantization_from_constants(graph.constants[node.input(1)], zero_point, node)
            if params.axis is None and params.dtype.itemsize == 1:
                return params
    return _FLOAT_CODES
