"""What kind of file a user has, told from its bytes alone: nothing in it is run.

safetensors    eight bytes of length, then JSON
program        a zip archive of torch.export.save
torchscript    a zip archive with a folder of code
tensors        torch.save of a state dict or a checkpoint that holds nothing but tensors, numbers and text
pickle         torch.save of objects of other classes, a whole module for example
other          something else, or damaged
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

LEGACY_HEADS = 3  # pickles before the object in files of torch before 1.6: a magic number, a version, the system
PLAIN_MODULES = ("torch", "torch._utils", "torch._tensor", "torch.storage", "torch.nn.parameter", "torch.serialization")
PLAIN_PACKAGES = ("collections", "numpy", "_codecs", "builtins")

Kind = Literal["safetensors", "program", "torchscript", "tensors", "pickle", "other"]


@dataclass(frozen=True)
class FileKind:
    """A kind of file, and for a pickle the class of the object in it."""

    kind: Kind
    pickled: str = ""


def kind_of(path: Path) -> FileKind:
    """The kind of an existing file."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        return FileKind("safetensors")
    try:
        return _kind_of_zip(path) if zipfile.is_zipfile(path) else _kind_of_legacy(path)
    except Exception:  # a damaged file fails in as many ways as it has parts
        return FileKind("other")


def torchscript_advice(path: Path) -> str:
    """What works in place of a TorchScript archive."""
    return (
        "a TorchScript archive, which holds no Python module: pass the module's source as --model FILE.py:FACTORY, and "
        f"its weights, saved by torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pt'), as --weights "
        "weights.pt"
    )


def _kind_of_zip(path: Path) -> FileKind:
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
        if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in members):
            return FileKind("program")
        if any("/code/" in name or name.endswith("/constants.pkl") for name in members):
            return FileKind("torchscript")
        if len(members) == 1 and members[0].endswith(".pth"):  # as pytorchcv publishes them
            return FileKind("tensors")
        data = next((name for name in members if name.endswith("/data.pkl")), None)
        if data is None:
            return FileKind("other")
        with archive.open(data) as file:
            return _kind_of_pickle(file)


def _kind_of_legacy(path: Path) -> FileKind:
    with path.open("rb") as file:
        if file.read(1) != b"\x80":
            return FileKind("other")
        file.seek(0)
        for _ in range(LEGACY_HEADS):
            for _ in pickletools.genops(file):
                pass
        return _kind_of_pickle(file)


def _kind_of_pickle(file: IO[bytes]) -> FileKind:
    """A pickle of plain data, or of objects: the first class that is no plain data names it."""
    foreign = next((name for name in _classes(file) if not _is_plain(name)), None)
    return FileKind("tensors") if foreign is None else FileKind("pickle", foreign)


def _classes(file: IO[bytes]) -> Iterator[str]:
    """The classes and functions that a pickle names, in order."""
    texts: list[str] = []
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        elif isinstance(argument, str):
            texts.append(argument)


def _is_plain(name: str) -> bool:
    module = name.rpartition(".")[0]
    return module in PLAIN_MODULES or module.split(".")[0] in PLAIN_PACKAGES
