"""What the file says about itself: how it was made, a hash for each layer, and golden vectors.

A checker without PyTorch and without this package can replay the golden vectors and name a damaged layer.

    gdfq_export          JSON: format, method, bits, seed, versions, input normalisation, checksums; `names` where the
                         file has short ones: {short name: name by the path of the module}, or base64(zlib(JSON)) of it
    gdfq_export.hashes   JSON: group of initializers (the name up to the last "/") -> 16 hex digits of sha256;
                         the key "" is the graph's own hash, "gdfq_export/input" and "gdfq_export/facts" are those
                         of what the first entry says of the input and of everything else
    gdfq_export.golden   JSON: input codes and the outputs that the PyTorch program computes from them; where a softmax
                         stands behind the logits, `tensor` names the logits, and the outputs are theirs
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from gdfq_export.exact import IntegerProgram
from gdfq_export.graph import INPUT
from gdfq_export.integer import PixelInput
from gdfq_export.plan import without_endings

Array = npt.NDArray[Any]
FORMAT = 1
ENDINGS = frozenset({"Softmax", "LogSoftmax"})
GOLDEN_SIDE = 32
GOLDEN_COUNT = 4
HASH_DIGITS = 16
PLAIN_NAMES = 400  # bytes; a longer table is compressed


def _pack(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode()


def layer_hashes(model: onnx.ModelProto) -> dict[str, str]:
    """Hash of each group of initializers, and under "" of the nodes."""
    groups: dict[str, Any] = {}
    for tensor in sorted(model.graph.initializer, key=lambda t: t.name):
        digest = groups.setdefault(tensor.name.rpartition("/")[0], hashlib.sha256())
        head = (tensor.name, str(tensor.data_type), ",".join(map(str, tensor.dims)))
        digest.update(b"".join(part.encode() + b"\0" for part in head))
        digest.update(tensor.raw_data or numpy_helper.to_array(tensor).tobytes())
    hashes = {name: digest.hexdigest()[:HASH_DIGITS] for name, digest in sorted(groups.items())}
    nodes = hashlib.sha256()
    for node in model.graph.node:
        nodes.update(node.SerializeToString(deterministic=True))
    return {"": nodes.hexdigest()[:HASH_DIGITS], **hashes}


def fact_hashes(facts: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of what the file says of its input, and of everything else that it says."""
    rest = {key: value for key, value in facts.items() if key != "input"}
    groups = {"gdfq_export/input": facts.get("input"), "gdfq_export/facts": rest}
    texts = {key: json.dumps(value, sort_keys=True, separators=(",", ":")) for key, value in groups.items()}
    return {key: hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS] for key, text in texts.items()}


@torch.no_grad()
def golden_vectors(program: IntegerProgram, images: Tensor) -> dict[str, Any]:
    """Input codes at low resolution, repeated to full size, and the program's outputs for them, or its logits.

    What a softmax makes of the logits is not the same to the last bit everywhere.
    """
    if program.endings:
        bare, _ = without_endings(program.model.graph)
        program = IntegerProgram(dataclasses.replace(program.model, graph=bare)).eval()
    model = program.model
    tensor = model.tensors[INPUT]
    height, width = images.shape[-2:]
    repeat = max(1, -(-max(height, width) // GOLDEN_SIDE))
    small = images[:GOLDEN_COUNT, :, ::repeat, ::repeat].numpy().astype(np.float32)
    codes = np.clip(np.rint(small / tensor.scale) + tensor.zero_point, 0, tensor.qmax).astype(np.uint8)
    if model.pixels is None:
        full = codes.repeat(repeat, 2).repeat(repeat, 3)[:, :, :height, :width].astype(np.float32)
        inputs: Array = ((full - np.float32(tensor.zero_point)) * tensor.scale).astype(np.float32)
    else:  # bytes themselves, channels last
        codes = _bytes_of(small, model.pixels)
        inputs = codes.repeat(repeat, 1).repeat(repeat, 2)[:, :height, :width]
    outputs = program(torch.from_numpy(inputs)).numpy().astype("<f4")
    return {
        "codes": _pack(codes.tobytes()),
        "shape": list(codes.shape),
        "repeat": repeat,
        "outputs": _pack(outputs.tobytes()),
        "output_dtype": "float32",
        "output_shape": list(outputs.shape),
    }


def _bytes_of(images: Array, pixels: PixelInput) -> Array:
    """Normalised images (N, C, H, W) back as bytes (N, H, W, C)."""
    product = (pixels.source.scale * pixels.layer.scale)[:, None, None]
    values = (images - pixels.layer.q_bias[:, None, None] * product) / (product * 127)
    codes: Array = np.moveaxis(np.clip(np.rint(values), 0, 255).astype(np.uint8), 1, -1)
    return np.ascontiguousarray(codes)


def names_fact(names: Mapping[str, str]) -> dict[str, Any]:
    """The entry `names`: short name in the file -> name by the path of the user's module; packed where it is long."""
    if not names:
        return {}
    text = json.dumps(names, separators=(",", ":"))
    return {"names": dict(names) if len(text) <= PLAIN_NAMES else _pack(text.encode())}


def stamp(model: onnx.ModelProto, facts: Mapping[str, Any], golden: Mapping[str, Any] | None) -> None:
    """Writes the entries into the model's metadata; without golden vectors where nothing that they hold is exact."""
    stated = {"format": FORMAT, **facts}
    _write(model, "gdfq_export", stated)
    _write(model, "gdfq_export.hashes", {**layer_hashes(model), **fact_hashes(stated)})
    if golden is not None:
        logits = tensor_before_ending(model)
        _write(model, "gdfq_export.golden", {**golden, "tensor": logits} if logits else golden)


def tensor_before_ending(model: onnx.ModelProto) -> str | None:
    """What the softmax behind the logits reads; None where the logits are the output."""
    producers = {name: node for node in model.graph.node for name in node.output}
    name = output = model.graph.output[0].name
    while name in producers and producers[name].op_type in ENDINGS:
        name = producers[name].input[0]
    return None if name == output else name


def stamp_input(model: onnx.ModelProto, interface: Mapping[str, Any]) -> None:
    """Writes how an image becomes an input, and what the outputs mean, into the float network's metadata."""
    _write(model, "gdfq_export", {"format": FORMAT, **interface})


def _write(model: onnx.ModelProto, key: str, value: Mapping[str, Any]) -> None:
    entry = model.metadata_props.add()
    entry.key, entry.value = key, json.dumps(value, separators=(",", ":"))
