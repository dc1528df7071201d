"""Tensors that a model keeps in a second file: only beside it, complete, and with the right checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx

from gdfq_export.runtime_checks.errors import CheckError, MemoryLimitError


def attach_external_data(model: onnx.ModelProto, folder: Path, max_memory: int) -> None:
    """Moves the external tensors of `model` into it; refuses whatever does not lie inside `folder`."""
    checked: set[Path] = set()
    for tensor in _external_tensors(model.graph):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        file = _file_inside(folder, entries.get("location", ""), tensor.name)
        size = file.stat().st_size
        if size > max_memory:
            raise MemoryLimitError(
                f"{file}: the external data has {size / 2**20:.0f} MiB, more than the memory limit of "
                f"{max_memory / 2**20:.0f} MiB; raise --max-memory to check it"
            )
        if "checksum" in entries and file not in checked:
            _require_checksum(file, entries["checksum"])
            checked.add(file)
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(size - offset)))
        if offset < 0 or length < 0 or offset + length > size:
            raise CheckError(f"{file}: too short for tensor '{tensor.name}': truncated, or of another model")
        with file.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _external_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.t.data_location == onnx.TensorProto.EXTERNAL:
                yield attribute.t
            if attribute.HasField("g"):
                yield from _external_tensors(attribute.g)


def _file_inside(folder: Path, location: str, name: str) -> Path:
    """The file at `location`, with links followed, which must lie under `folder`."""
    if not location:
        raise CheckError(f"tensor '{name}' is stored in another file, and the model does not say in which")
    root = folder.resolve()
    file = (root / location).resolve()
    if Path(location).is_absolute() or not file.is_relative_to(root):
        raise CheckError(f"tensor '{name}' lies in '{location}', outside the model's folder: refused")
    if not file.is_file():
        raise CheckError(f"tensor '{name}' lies in '{location}', which is missing beside the model")
    return file


def _require_checksum(file: Path, expected: str) -> None:
    """The ONNX specification stores a SHA-1 of the whole external file."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha1").hexdigest()
    if found != expected.lower():
        raise CheckError(f"{file}: belongs to another model (its SHA-1 is {found[:16]}, the model expects {expected})")
