"""`FILE.pt2`: a network saved with `torch.export.save`."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export import ExportedProgram

from gdfq_export.errors import InputFileError, UnsupportedModelError
from gdfq_export.refusals import QUANTIZED_CLASS, QUANTIZED_OPERATOR, already_quantized


def read_program(path: Path) -> ExportedProgram:
    """The program in a .pt2 file."""
    if not path.is_file():
        raise InputFileError(f"model file {path} does not exist")
    if not zipfile.is_zipfile(path):
        raise InputFileError(f"model file {path} is damaged, or was not written by torch.export.save")
    try:
        with _quiet():
            return torch.export.load(path)
    except Exception as error:  # a damaged archive fails in as many ways as it has parts
        library = _quantization_library(path, error)
        if library is not None:
            raise already_quantized(library, str(path)) from error
        raise InputFileError(
            f"model file {path} is damaged, or was not written by torch.export.save of a matching version"
        ) from error


def _quantization_library(path: Path, error: Exception) -> str | None:
    """What of a quantization library the file needs, if any: PyTorch does not know it, and so cannot load the file."""
    if isinstance(error, ModuleNotFoundError) and QUANTIZED_CLASS.match(f"{error.name}."):
        return error.name
    try:
        with zipfile.ZipFile(path) as archive:
            graphs = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".json")]
    except Exception:  # damaged, then
        return None
    operators = [name for graph in graphs for name in re.findall(r'"target": "torch\.ops\.([\w.]+)"', graph)]
    return next((name.split(".")[1] for name in operators if QUANTIZED_OPERATOR.search(name)), None)


def program_input_size(program: ExportedProgram, path: Path) -> tuple[int, int, int]:
    """(C, H, W) of the program's one image input."""
    shapes = [_shape(program, name) for name in program.graph_signature.user_inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        found = ", ".join(str(shape) for shape in shapes) or "none"
        raise UnsupportedModelError(f"{path} must take one batch of images (N, C, H, W), but its inputs are: {found}")
    channels, height, width = shapes[0][1:]
    if not (isinstance(channels, int) and isinstance(height, int) and isinstance(width, int)):
        raise UnsupportedModelError(f"{path} has images of dynamic size {shapes[0]}: export it with only N dynamic")
    return channels, height, width


def program_num_classes(program: ExportedProgram) -> int | None:
    """Columns of the program's first output where that is a (N, classes) tensor."""
    outputs = [_shape(program, name) for name in program.graph_signature.user_outputs]
    if outputs and len(outputs[0]) == 2 and isinstance(outputs[0][1], int):
        return outputs[0][1]
    return None


def _shape(program: ExportedProgram, name: object) -> tuple[object, ...]:
    """The shape of a value in the program's graph; () for what is no tensor."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.name == name and isinstance(value, torch.Tensor):
            return tuple(value.shape)
    return ()


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs the traceback of a failure that it then raises as well."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
