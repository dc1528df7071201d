from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gdfq_export.compare import TorchComparison, check_companion, compare_with_torch
from gdfq_export.errors import InputFileError


class Sums(nn.Module):
    """Two logits: the sum of the image, and zero."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = x.sum((1, 2, 3))
        return torch.stack([total, torch.zeros_like(total)], 1)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "sums.pt2"
    shapes = ({0: torch.export.Dim("n", min=1)},)
    torch.export.save(torch.export.export(Sums(), (torch.zeros(2, 1, 2, 2),), dynamic_shapes=shapes), path)
    return path


def images(*values: float) -> np.ndarray:
    return np.stack([np.full((1, 2, 2), value / 4, np.float32) for value in values])


def test_equal_outputs_have_no_mismatch(program: Path) -> None:
    found = compare_with_torch(program, images(1, 2), np.float32([[1, 0], [2, 0]]), 0.5)
    assert found == TorchComparison(4, 0, 0, 100.0)
    assert found.passed


def test_differences_are_counted_in_steps(program: Path) -> None:
    found = compare_with_torch(program, images(1, 2), np.float32([[1.5, 0], [1, 0]]), 0.5)
    assert (found.mismatches, found.max_steps, found.top1_agreement) == (2, 2, 100.0)


def test_the_least_difference_is_a_step(program: Path) -> None:
    found = compare_with_torch(program, images(1), np.float32([[np.nextafter(np.float32(1), np.float32(2)), 0]]), 0.5)
    assert (found.mismatches, found.max_steps) == (1, 1)


def test_another_class_is_a_disagreement(program: Path) -> None:
    found = compare_with_torch(program, images(1, 2), np.float32([[-1, 0], [2, 0]]), 0.5)
    assert found.top1_agreement == 50.0
    assert not found.passed


def test_outputs_that_decide_are_compared_by_their_threshold(program: Path) -> None:
    found = compare_with_torch(program, images(1, 2), np.float32([[-1, 0], [1, 0]]), 0.5, threshold=0.5)
    assert found.top1_agreement == 75.0  # one of four decisions, though one of two classes


def test_more_images_than_a_batch_are_all_compared(program: Path) -> None:
    x = images(*range(1, 12))
    outputs = np.stack([np.float32([value, 0]) for value in range(1, 12)])
    outputs[10, 1] = -3
    assert compare_with_torch(program, x, outputs, 1.0).mismatches == 1


def test_one_difference_among_a_million_outputs_fails() -> None:
    assert TorchComparison(1_000_000, 0, 0, 100.0).passed
    assert not TorchComparison(1_000_000, 1, 1, 100.0).passed
    assert TorchComparison(1_000_000, 1, 1, 100.0).row().state == "FAIL"


def test_before_an_ending_the_logits_are_compared(tmp_path: Path) -> None:
    path, module = tmp_path / "soft.pt2", nn.Sequential(Sums(), nn.Softmax(1), nn.LogSoftmax(1))
    shapes = ({0: torch.export.Dim("n", min=1)},)
    torch.export.save(torch.export.export(module, (torch.zeros(2, 1, 2, 2),), dynamic_shapes=shapes), path)
    found = compare_with_torch(path, images(1, 2), np.float32([[1, 0], [2, 0]]), 0.5, before_ending=True)
    assert found == TorchComparison(4, 0, 0, 100.0)
    above = np.nextafter(np.float32(1), np.float32(2))
    assert compare_with_torch(path, images(1), np.float32([[above, 0]]), 0.5, before_ending=True).mismatches == 1


def test_the_report_has_the_keys_of_the_contract() -> None:
    report = TorchComparison(10, 1, 1, 100.0).to_json()
    assert report == {"outputs": 10, "mismatches": 1, "max_steps": 1, "top1_agreement": 100.0}


def test_a_program_that_belongs_to_the_file_is_accepted(program: Path) -> None:
    check_companion(program, hashlib.sha256(program.read_bytes()).hexdigest())


def test_a_program_of_another_file_is_refused(program: Path) -> None:
    with pytest.raises(InputFileError, match="does not belong"):
        check_companion(program, "0" * 64)


def test_a_damaged_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.pt2"
    path.write_bytes(b"not a program")
    with pytest.raises(InputFileError, match="cannot be read"):
        compare_with_torch(path, images(1), np.float32([[1, 0]]), 1.0)
