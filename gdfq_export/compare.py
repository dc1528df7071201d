"""Compares the PyTorch program beside an ONNX file with what ONNX Runtime computed on the same images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gdfq_export.errors import InputFileError

ALLOWED_SHARE = 1e-3
BATCH = 8


@dataclass(frozen=True)
class TorchComparison:
    """How far two programs are apart; a step is the smallest distance between two logits of the file."""

    outputs: int
    mismatches: int
    max_steps: int
    top1_agreement: float  # percent

    @property
    def passed(self) -> bool:
        """Equal, but for single steps on at most one output in a thousand; never another class."""
        few = self.mismatches <= ALLOWED_SHARE * self.outputs and self.max_steps <= 1
        return bool(few and self.top1_agreement == 100.0)

    def to_json(self) -> dict[str, Any]:
        """The keys of the command line's contract."""
        return {
            "outputs": self.outputs,
            "mismatches": self.mismatches,
            "max_steps": self.max_steps,
            "top1_agreement": self.top1_agreement,
        }


def check_companion(path: Path, checksum: str) -> None:
    """Refuses a program that was not written together with the ONNX file."""
    if hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
        raise InputFileError(
            f"{path} does not belong to this ONNX file (its checksum differs): remove it, or quantize again"
        )


def compare_with_torch(
    path: Path, images: npt.NDArray[np.float32], outputs: npt.NDArray[np.float32], step: float, tolerance: float = 0.0
) -> TorchComparison:
    """Runs the `.pt2` program on `images` and counts where it differs from `outputs`.

    The tolerance is 0 for logits; behind a float softmax it is what two implementations of exp may differ by.
    """
    import torch

    try:
        program = torch.export.load(path).module()
    except Exception as error:
        raise InputFileError(f"{path} cannot be read as a PyTorch program: remove it, or quantize again") from error
    with torch.no_grad():
        parts = [program(torch.from_numpy(images[i : i + BATCH])).numpy() for i in range(0, len(images), BATCH)]
    expected = np.concatenate(parts)
    difference = np.abs(expected.astype(np.float64) - outputs)
    different = difference > tolerance
    steps = int(np.ceil(difference.max() / step - 1e-6)) if different.any() else 0
    same_class = expected.argmax(1) == outputs.argmax(1)
    return TorchComparison(
        outputs.size, int(different.sum()), max(steps, int(different.any())), 100 * float(same_class.mean())
    )
