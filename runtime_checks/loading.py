"""Reads an ONNX file, or says in one sentence why it cannot be checked.

Nothing here trusts the file: its length, its external data, its operators and the memory that it would take are looked
at before the runtime sees it. What comes back has all its tensors in memory and no local functions.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from gdfq_export.runtime_checks.errors import CheckError, UnsupportedGraphError
from gdfq_export.runtime_checks.external_data import attach_external_data
from gdfq_export.runtime_checks.graph import graph_from_model
from gdfq_export.runtime_checks.memory import require_memory
from gdfq_export.runtime_checks.soundness import require_sound_quantizers

DEFAULT_MAX_MEMORY = 4 << 30  # bytes; whole networks at 224x224 take a few hundred megabytes
OLDEST_OPSET = 10  # QuantizeLinear came with opset 10
STANDARD_DOMAINS = ("", "ai.onnx")
CONTRIB_DOMAIN = "com.microsoft"

_MAGIC = (
    (0, b"PK\x03\x04", "a zip archive (a PyTorch program or checkpoint?)"),
    (4, b"TFL3", "a TensorFlow Lite file"),
    (4, b"ORTM", "a file in ONNX Runtime's own format"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x80\x02", "a pickle (a PyTorch checkpoint?)"),
    (0, b"\x7fELF", "a program"),
    (0, b"version https://git-lfs", "a Git LFS pointer: fetch the file itself"),
)


def load_model(path: str | Path, max_memory: int = DEFAULT_MAX_MEMORY) -> onnx.ModelProto:
    """The model at `path`, complete and in memory; raises CheckError with one sentence otherwise."""
    path = Path(path)
    model = _parse(_read(path, max_memory), path)
    _require_opset(model, path)
    _require_standard_operators(model, path)
    _require_single_input(model, path)
    attach_external_data(model, path.absolute().parent, max_memory)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _require_valid(model, path)
    _require_decodable(model, path)
    require_memory(model, max_memory, path.name)
    return model


def _read(path: Path, max_memory: int) -> bytes:
    if not path.exists():
        raise CheckError(f"{path}: no such file")
    if not path.is_file():
        raise CheckError(f"{path}: not a file")
    size = path.stat().st_size
    if size == 0:
        raise CheckError(f"{path}: the file is empty")
    if size > max_memory:
        raise CheckError(
            f"{path}: the file alone has {size / 2**20:.0f} MiB, more than the memory limit of "
            f"{max_memory / 2**20:.0f} MiB; raise --max-memory to check it"
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckError(f"{path}: cannot be read ({error.strerror})") from error


def _parse(data: bytes, path: Path) -> onnx.ModelProto:
    for offset, magic, kind in _MAGIC:
        if data[offset : offset + len(magic)] == magic:
            raise CheckError(f"{path}: not an ONNX file but {kind}")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise CheckError(f"{path}: not an ONNX file, or a truncated or damaged one ({error})") from error
    if not model.HasField("graph") or not model.graph.node or not model.opset_import:
        raise CheckError(f"{path}: not an ONNX file, or a truncated one: it has no graph")
    return model


def _require_opset(model: onnx.ModelProto, path: Path) -> None:
    """The standard operators' version must be one with QuantizeLinear, and one that the checker knows."""
    newest = onnx.defs.onnx_opset_version()
    versions = [entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS]
    if not versions:
        raise CheckError(f"{path}: the file names no version of the standard operators")
    if versions[0] < OLDEST_OPSET:
        raise UnsupportedGraphError(
            f"{path}: opset {versions[0]} is too old (QuantizeLinear needs {OLDEST_OPSET}); "
            "convert it with onnx.version_converter"
        )
    if versions[0] > newest:
        raise UnsupportedGraphError(
            f"{path}: opset {versions[0]} is newer than the {newest} of the installed onnx package; update onnx"
        )


def _require_standard_operators(model: onnx.ModelProto, path: Path) -> None:
    local = {(function.domain, function.name) for function in model.functions}
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    for node in nodes:
        if node.domain in (*STANDARD_DOMAINS, CONTRIB_DOMAIN) or (node.domain, node.op_type) in local:
            continue
        raise UnsupportedGraphError(
            f"{path}: custom operator {node.domain}.{node.op_type} (node '{node.name or node.output[0]}'); "
            "only standard operators and those of com.microsoft can be checked"
        )


def _require_single_input(model: onnx.ModelProto, path: Path) -> None:
    constant = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in constant]
    if len(names) != 1:
        listed = ", ".join(names) or "none"
        raise UnsupportedGraphError(f"{path}: one input is needed, this model has {len(names)} ({listed})")


def _require_valid(model: onnx.ModelProto, path: Path) -> None:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        text = str(error).strip()
        raise CheckError(f"{path}: a damaged ONNX file: {text.splitlines()[0] if text else error!r}") from error
    except (ValueError, RuntimeError) as error:  # what the checker raises for values that no model can have
        raise CheckError(f"{path}: a damaged ONNX file: {error}") from error


def _require_decodable(model: onnx.ModelProto, path: Path) -> None:
    """Names, attributes and constants can be read, which the checker does not look at."""
    try:
        graph = graph_from_model(model)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckError(f"{path}: a damaged ONNX file: {type(error).__name__}: {error}") from error
    require_sound_quantizers(graph, str(path))
