"""`FILE.pt2`: programs of torch.export.save."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from gdfq_export.errors import InputFileError, UnsupportedModelError
from gdfq_export.models.programs import program_input_size, program_num_classes, read_program


class Add(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b


def classifier() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))


def test_size_and_classes_are_read_from_the_program(tmp_path: Path) -> None:
    shapes = ({0: torch.export.Dim("n")},)
    program = torch.export.export(classifier(), (torch.zeros(2, 3, 8, 10),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = read_program(tmp_path / "net.pt2")
    assert program_input_size(loaded, tmp_path) == (3, 8, 10)
    assert program_num_classes(loaded) == 6


def test_two_inputs_are_not_supported(tmp_path: Path) -> None:
    program = torch.export.export(Add(), (torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)))
    with pytest.raises(UnsupportedModelError, match=r"must take one batch of images .* \(1, 3, 4, 4\), \(1, 3, 4, 4\)"):
        program_input_size(program, tmp_path)


def test_images_of_dynamic_size_are_not_supported(tmp_path: Path) -> None:
    shapes = ({2: torch.export.Dim("h", min=4, max=64)},)
    program = torch.export.export(classifier(), (torch.zeros(1, 3, 8, 8),), dynamic_shapes=shapes)
    with pytest.raises(UnsupportedModelError, match="images of dynamic size"):
        program_input_size(program, tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "text", "state dict"])
def test_a_damaged_file_is_one_sentence_and_no_traceback_is_shown(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(classifier(), (torch.zeros(1, 3, 8, 8),)), path)
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "overwritten":
        content[100:-3000] = bytes(len(content) - 3100)
    elif damage == "text":
        content = bytearray(b"not a program")
    path.write_bytes(content)
    if damage == "state dict":
        torch.save(classifier().state_dict(), path)
    logger = logging.getLogger("torch.export")
    logger.addHandler(caplog.handler)  # torch's loggers do not propagate
    caplog.clear()
    with pytest.raises(InputFileError, match=r"net\.pt2 is damaged"):
        read_program(path)
    logger.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_program_with_operators_of_a_quantization_library_is_named_as_quantized(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(classifier(), (torch.zeros(1, 3, 8, 8),)), tmp_path / "net.pt2")
    with zipfile.ZipFile(tmp_path / "net.pt2") as source, zipfile.ZipFile(tmp_path / "other.pt2", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(
                name, content.replace(b"ops.aten.conv2d.default", b"ops.unknown.quantize_per_tensor.default")
            )
    with pytest.raises(UnsupportedModelError, match=r"already quantized.* \(quantize_per_tensor at .*other\.pt2\)"):
        read_program(tmp_path / "other.pt2")


def test_a_program_that_needs_a_quantization_library_is_named_as_quantized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path) -> None:
        raise ModuleNotFoundError("No module named 'torchao'", name="torchao")

    torch.export.save(torch.export.export(classifier(), (torch.zeros(1, 3, 8, 8),)), tmp_path / "net.pt2")
    monkeypatch.setattr("torch.export.load", load)
    with pytest.raises(UnsupportedModelError, match=r"already quantized.* \(torchao at .*net\.pt2\)"):
        read_program(tmp_path / "net.pt2")


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="does not exist"):
        read_program(tmp_path / "none.pt2")
