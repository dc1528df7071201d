"""Golden vectors: a few images as codes, and what the file computed from them when it was made.

gdfq_export.golden   {codes, shape, repeat, outputs, output_dtype, output_shape, tensor}; arrays are
                     base64(zlib(bytes)); `tensor` is there where an ending stands behind what is stored
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from gdfq_export.runtime_checks.errors import CheckError
from gdfq_export.runtime_checks.graph import Array
from gdfq_export.runtime_checks.metadata import GOLDEN_KEY, PROVENANCE_KEY, read_entry, read_provenance

_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "uint8": np.dtype("u1")}
_MAX_BYTES = 1 << 28  # of one stored array; a small file cannot blow up into gigabytes


@dataclass(frozen=True, eq=False)
class Golden:
    """Images as codes (N, C, H, W), and what they must give."""

    codes: Array
    outputs: Array
    tensor: str | None = None  # of which `outputs` are; None for the graph's output


def read_golden(model: onnx.ModelProto) -> Golden | None:
    """The stored vectors, with the codes enlarged and cut to the input's size; None where the file has none."""
    stored = read_entry(model, GOLDEN_KEY)
    if not stored:
        return None
    try:
        codes = _unpack(stored["codes"], np.dtype("u1"), stored["shape"])
        outputs = _unpack(stored["outputs"], _DTYPES[stored["output_dtype"]], stored["output_shape"])
        repeat, tensor = int(stored["repeat"]), stored.get("tensor")
    except (KeyError, TypeError, ValueError, OverflowError, zlib.error, binascii.Error) as error:
        raise CheckError(f"metadata '{GOLDEN_KEY}' is damaged ({error!r})") from error
    spec = read_provenance(model).get("input", {})
    if len(spec.get("shape", ())) < 2:
        raise CheckError(f"metadata '{PROVENANCE_KEY}' does not describe the input that the golden vectors are for")
    height, width = spec["shape"][-2:]
    if codes.ndim != 4 or not 1 <= repeat <= max(height, width):
        raise CheckError(f"metadata '{GOLDEN_KEY}' is damaged: {codes.ndim} dimensions, repeat {repeat}")
    if not (tensor is None or isinstance(tensor, str)):
        raise CheckError(f"metadata '{GOLDEN_KEY}' is damaged: its tensor is no name")
    if spec.get("format") == "uint8-nhwc":
        codes = codes.transpose(0, 3, 1, 2)
    enlarged = np.repeat(np.repeat(codes, repeat, axis=2), repeat, axis=3)[:, :, :height, :width]
    if enlarged.shape[2:] != (height, width) or outputs.ndim < 1 or len(outputs) != len(enlarged):
        raise CheckError(f"metadata '{GOLDEN_KEY}' does not fit the input {height}x{width} that the file states")
    return Golden(np.ascontiguousarray(enlarged), outputs, tensor)


def _unpack(text: str, dtype: np.dtype[Any], shape: list[int]) -> Array:
    size = math.prod(shape) * dtype.itemsize
    if not 0 < size <= _MAX_BYTES:
        raise ValueError(f"{size} bytes")
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(base64.b64decode(text, validate=True), size + 1)
    return np.frombuffer(data, dtype).reshape(shape)
