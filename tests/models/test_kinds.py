"""What kind of file a user has, without running anything in it."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gdfq_export.models.kinds import FileKind, kind_of


class Own(nn.Sequential):
    """A class of the user's own."""


def network() -> nn.Module:
    return Own(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def zipped(path: Path) -> None:
    torch.save(network().state_dict(), path.with_suffix(".pth"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.with_suffix(".pth"), "w.pth")


def legacy(content: object) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path, _use_new_zipfile_serialization=False)


FILES: dict[str, tuple[FileKind, Callable[[Path], None]]] = {
    "safetensors": (FileKind("safetensors"), lambda path: save_file(network().state_dict(), path)),
    "state dict": (FileKind("tensors"), lambda path: torch.save(network().state_dict(), path)),
    "legacy state dict": (FileKind("tensors"), legacy(network().state_dict())),
    "checkpoint": (FileKind("tensors"), lambda path: torch.save({"model": network().state_dict(), "epoch": 3}, path)),
    "zipped once more": (FileKind("tensors"), zipped),
    "module": (FileKind("pickle", "test_kinds.Own"), lambda path: torch.save(network(), path)),
    "legacy module": (FileKind("pickle", "test_kinds.Own"), legacy(network())),
    "torch's own module": (
        FileKind("pickle", "torch.nn.modules.conv.Conv2d"),
        lambda path: torch.save(nn.Conv2d(3, 4, 3), path),
    ),
    "module of protocol 4": (
        FileKind("pickle", "test_kinds.Own"),
        lambda path: torch.save(network(), path, pickle_protocol=4),
    ),
    "module in a checkpoint": (
        FileKind("pickle", "test_kinds.Own"),
        lambda path: torch.save({"epoch": 3, "model": network()}, path),
    ),
    "torchscript": (FileKind("torchscript"), lambda path: torch.jit.script(network()).save(str(path))),
    "traced": (FileKind("torchscript"), lambda path: torch.jit.trace(nn.ReLU(), torch.ones(1)).save(str(path))),
    "program": (
        FileKind("program"),
        lambda path: torch.export.save(torch.export.export(nn.ReLU(), (torch.zeros(1, 3, 4, 4),)), path),
    ),
    "pickle without torch": (FileKind("other"), lambda path: path.write_bytes(pickle.dumps({"a": 1}))),
    "text": (FileKind("other"), lambda path: path.write_text("not a network")),
    "nothing": (FileKind("other"), lambda path: path.write_bytes(b"")),
    "damaged": (FileKind("other"), lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100))),
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_is_told_apart_by_its_bytes(what: str, tmp_path: Path) -> None:
    kind, write = FILES[what]
    write(tmp_path / "file.pt")
    assert kind_of(tmp_path / "file.pt") == kind


def test_nothing_in_a_file_runs(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"model": Bomb()}, tmp_path / "file.pt")
    assert kind_of(tmp_path / "file.pt").kind == "pickle"
    assert not (tmp_path / "ran").exists()
