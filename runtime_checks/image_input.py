"""What a model takes: the input of the graph, and the preprocessing that the exporter wrote into the metadata.

    metadata_props["gdfq_export"] = {"input": {"format": "float-nchw" | "uint8-nhwc", "shape": [C, H, W],
                                               "mean": [...], "std": [...], "resize": int | null}, ...}

Files of other tools have no such entry: then everything is read off the graph, and mean and std are unknown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from gdfq_export.runtime_checks.errors import CheckError, UnsupportedGraphError

METADATA_KEY = "gdfq_export"
IMAGE_CHANNELS = (1, 3)
DTYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.UINT8: "uint8"}


@dataclass(frozen=True)
class ImageInput:
    """The one input of a model; a dimension of None is dynamic."""

    name: str
    dtype: str  # "float32" or "uint8"
    shape: tuple[int | None, ...]
    mean: tuple[float, ...] | None  # of pixels in [0, 1]; None where the file does not say
    std: tuple[float, ...] | None
    resize: int | None  # shorter side before the centre crop

    @property
    def channels_last(self) -> bool:
        """Whether images are (H, W, C)."""
        return len(self.shape) == 4 and self.shape[3] in IMAGE_CHANNELS and self.shape[1] not in IMAGE_CHANNELS

    @property
    def image_size(self) -> tuple[int | None, int | None, int | None]:
        """(C, H, W) of one image."""
        first, second, third = self.shape[1:]
        return (third, first, second) if self.channels_last else (first, second, third)


def image_input(model: onnx.ModelProto, path: Path) -> ImageInput:
    """The input of `model`, dynamic dimensions filled in from the metadata where they can be."""
    constants = {tensor.name for tensor in model.graph.initializer}
    value = next(value for value in model.graph.input if value.name not in constants)
    kind = value.type.tensor_type.elem_type
    if kind not in DTYPES:
        name = onnx.TensorProto.DataType.Name(kind)
        raise UnsupportedGraphError(f"{path}: input {value.name} is {name}, and only FLOAT and UINT8 can be fed")
    written = _metadata_input(model, path)
    shape = tuple(dim.dim_value or None for dim in value.type.tensor_type.shape.dim)
    return ImageInput(
        name=value.name,
        dtype=DTYPES[kind],
        shape=_filled(shape, written),
        mean=_floats(written.get("mean")),
        std=_floats(written.get("std")),
        resize=written.get("resize"),
    )


def random_batch(spec: ImageInput, batch: int, generator: np.random.Generator) -> npt.NDArray[Any]:
    """A batch of noise that the model takes; unknown dimensions are 1."""
    shape = tuple(batch if axis == 0 and dim is None else dim or 1 for axis, dim in enumerate(spec.shape))
    if spec.dtype == "uint8":
        return generator.integers(0, 256, shape, dtype=np.uint8)
    return generator.standard_normal(shape, dtype=np.float32)


def _metadata_input(model: onnx.ModelProto, path: Path) -> dict[str, Any]:
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            try:
                written = json.loads(entry.value).get("input", {})
            except (ValueError, AttributeError) as error:
                raise CheckError(f"{path}: the metadata entry {METADATA_KEY} is damaged: {error}") from error
            if not isinstance(written, dict):
                raise CheckError(f"{path}: the metadata entry {METADATA_KEY} is damaged: its input is no object")
            return written
    return {}


def _filled(shape: tuple[int | None, ...], written: dict[str, Any]) -> tuple[int | None, ...]:
    """Dynamic dimensions of an image from the metadata's (C, H, W)."""
    image = written.get("shape")
    if not (isinstance(image, list) and len(image) == 3 and len(shape) == 4):
        return shape
    channels, height, width = image
    layout = (height, width, channels) if written.get("format") == "uint8-nhwc" else (channels, height, width)
    return (shape[0], *(dim or int(known) for dim, known in zip(shape[1:], layout, strict=True)))


def _floats(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return tuple(float(value) for value in values) if values else None
