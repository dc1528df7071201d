"""Replays what `quantize` stored in the file: golden vectors, and a hash of each layer's parameters.

    gdfq_export          JSON provenance: format, target, input {format, shape, mean, std}, fakequant_sha256, ...
    gdfq_export.hashes   {group: first 16 hex digits of sha256}; key "" is the graph's hash
    gdfq_export.golden   {codes, shape, repeat, outputs, output_dtype, output_shape}; arrays are base64(zlib(bytes))

Initializers are named `<group>/<role>`. A group's hash runs over its initializers sorted by name, each as
name \\0 data_type \\0 dims \\0 raw little-endian bytes; the graph's hash over its serialized nodes in order.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from gdfq_export.runtime_checks.errors import CheckError
from gdfq_export.runtime_checks.graph import Array

PROVENANCE_KEY = "gdfq_export"
HASHES_KEY = "gdfq_export.hashes"
GOLDEN_KEY = "gdfq_export.golden"
GRAPH_GROUP = ""
FORMAT = 1

_HASH_DIGITS = 16
_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "uint8": np.dtype("u1")}
_SIMULATION = ("images", "elements", "differing", "share", "max_steps", "top1_agreement")
_MAX_BYTES = 1 << 28  # of one stored array; a small file cannot blow up into gigabytes


@dataclass(frozen=True, eq=False)
class Golden:
    """Images as codes (N, C, H, W), and the outputs that they must give."""

    codes: Array
    outputs: Array


def read_provenance(model: onnx.ModelProto) -> dict[str, Any]:
    """The provenance; empty for files that other tools made."""
    provenance = _read_json(model, PROVENANCE_KEY)
    version = provenance.get("format", FORMAT)
    if version != FORMAT:
        raise CheckError(f"metadata '{PROVENANCE_KEY}' has format {version!r}, this version reads {FORMAT}; update it")
    return provenance


def read_simulation(provenance: Mapping[str, Any]) -> dict[str, Any] | None:
    """How far the float simulation of training was from the integers when the file was made; None where it is not said.

    {images, elements, differing, share, max_steps, top1_agreement}
    """
    stated = provenance.get("simulation")
    if stated is None:
        return None
    if not isinstance(stated, dict) or not all(isinstance(stated.get(key), int | float) for key in _SIMULATION):
        raise CheckError(f"metadata '{PROVENANCE_KEY}' is damaged: its simulation lacks a number")
    return {key: stated[key] for key in _SIMULATION}


def changed_groups(model: onnx.ModelProto) -> list[str] | None:
    """Groups whose parameters are not those that were hashed ("" for the graph itself); None without hashes."""
    stored = _read_json(model, HASHES_KEY)
    if not stored and "target" in _read_json(model, PROVENANCE_KEY):
        raise CheckError(f"metadata '{HASHES_KEY}' is missing from a file of this tool: the metadata is damaged")
    if not stored:
        return None
    current = group_hashes(model)
    return sorted(group for group in stored.keys() | current.keys() if stored.get(group) != current.get(group))


def group_hashes(model: onnx.ModelProto) -> dict[str, str]:
    """The hash of each group of initializers, and of the graph."""
    groups: dict[str, list[onnx.TensorProto]] = {}
    for tensor in model.graph.initializer:
        groups.setdefault(tensor.name.rpartition("/")[0] or tensor.name, []).append(tensor)
    hashes = {group: _digest(map(_tensor_bytes, sorted(items, key=_name))) for group, items in groups.items()}
    hashes[GRAPH_GROUP] = _digest(node.SerializeToString(deterministic=True) for node in model.graph.node)
    return hashes


def read_golden(model: onnx.ModelProto) -> Golden | None:
    """The stored vectors, with the codes enlarged and cut to the input's size; None where the file has none."""
    stored = _read_json(model, GOLDEN_KEY)
    if not stored:
        return None
    try:
        codes = _unpack(stored["codes"], np.dtype("u1"), stored["shape"])
        outputs = _unpack(stored["outputs"], _DTYPES[stored["output_dtype"]], stored["output_shape"])
        repeat = int(stored["repeat"])
    except (KeyError, TypeError, ValueError, zlib.error, binascii.Error) as error:
        raise CheckError(f"metadata '{GOLDEN_KEY}' is damaged ({error!r})") from error
    provenance = read_provenance(model)
    spec = provenance.get("input", {})
    if not isinstance(spec, Mapping) or "shape" not in spec:
        raise CheckError(f"metadata '{PROVENANCE_KEY}' does not describe the input that the golden vectors are for")
    height, width = (int(size) for size in spec["shape"][-2:])
    if codes.ndim != 4 or not 1 <= repeat <= max(height, width):
        raise CheckError(f"metadata '{GOLDEN_KEY}' is damaged: {codes.ndim} dimensions, repeat {repeat}")
    if spec.get("format") == "uint8-nhwc":
        codes = codes.transpose(0, 3, 1, 2)
    enlarged = np.repeat(np.repeat(codes, repeat, axis=2), repeat, axis=3)[:, :, :height, :width]
    if enlarged.shape[2:] != (height, width) or len(outputs) != len(enlarged):
        raise CheckError(f"metadata '{GOLDEN_KEY}' does not fit the input {height}x{width} that the file states")
    return Golden(np.ascontiguousarray(enlarged), outputs)


def _read_json(model: onnx.ModelProto, key: str) -> dict[str, Any]:
    try:
        text = next((entry.value for entry in model.metadata_props if entry.key == key), None)
        value = {} if text is None else json.loads(text)
    except ValueError as error:  # neither UTF-8 nor JSON
        raise CheckError(f"metadata '{key}' is damaged ({error})") from error
    if not isinstance(value, dict):
        raise CheckError(f"metadata '{key}' is damaged: an object is expected")
    return value


def _unpack(text: str, dtype: np.dtype[Any], shape: list[int]) -> Array:
    size = math.prod(shape) * dtype.itemsize
    if not 0 < size <= _MAX_BYTES:
        raise ValueError(f"{size} bytes")
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(base64.b64decode(text, validate=True), size + 1)
    return np.frombuffer(data, dtype).reshape(shape)


def _tensor_bytes(tensor: onnx.TensorProto) -> bytes:
    raw = tensor.raw_data
    if not tensor.HasField("raw_data"):
        raw = numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
    dims = ",".join(map(str, tensor.dims))
    return b"\0".join((tensor.name.encode(), str(tensor.data_type).encode(), dims.encode(), raw))


def _digest(parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:_HASH_DIGITS]


def _name(tensor: onnx.TensorProto) -> str:
    return str(tensor.name)
