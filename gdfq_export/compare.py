"""Compares the PyTorch program beside an ONNX file with what ONNX Runtime computed on the same images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gdfq_export.errors import InputFileError
from gdfq_export.runtime_checks.output_spec import answers
from gdfq_export.runtime_checks.rows import Row, promise

if TYPE_CHECKING:
    from torch.fx import GraphModule

BATCH = 8
ENDINGS = ("aten.softmax.int", "aten.log_softmax.int")


@dataclass(frozen=True)
class TorchComparison:
    """How far two programs are apart; a step is the smallest distance between two logits of the file."""

    outputs: int
    mismatches: int
    max_steps: int
    top1_agreement: float  # percent

    @property
    def passed(self) -> bool:
        """Equal, to the last bit."""
        return self.mismatches == 0

    def row(self) -> Row:
        """The check in one line."""
        text = f"PyTorch program: {self.mismatches} of {self.outputs:,} outputs differ"
        return promise(self.passed, f"{text}, top-1 agreement {self.top1_agreement:.1f} %")

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
    path: Path,
    images: npt.NDArray[np.float32],
    outputs: npt.NDArray[np.float32],
    step: float,
    threshold: float | None = None,
    *,
    before_ending: bool = False,
) -> TorchComparison:
    """Runs the `.pt2` program on `images` and counts where it differs from `outputs`.

    With `before_ending` these are what a softmax behind them reads: two libraries round that differently. Where each
    output is a decision, `threshold` is what decides it (`runtime_checks/output_spec.py`).
    """
    import torch

    try:
        program = torch.export.load(path).module()
    except Exception as error:
        raise InputFileError(f"{path} cannot be read as a PyTorch program: remove it, or quantize again") from error
    if before_ending:
        _cut_ending(program)
    with torch.no_grad():
        parts = [program(torch.from_numpy(images[i : i + BATCH])).numpy() for i in range(0, len(images), BATCH)]
    expected = np.concatenate(parts)
    difference = np.abs(expected.astype(np.float64) - outputs)
    different = expected != outputs
    steps = int(np.ceil(difference.max() / step - 1e-6)) if different.any() else 0
    same_class = answers(expected, threshold) == answers(outputs, threshold)
    return TorchComparison(
        outputs.size, int(different.sum()), max(steps, int(different.any())), 100 * float(same_class.mean())
    )


def _cut_ending(program: GraphModule) -> None:
    """Lets the program return what its last softmax reads."""
    (output,) = program.graph.find_nodes(op="output")
    while str((last := output.all_input_nodes[0]).target) in ENDINGS:
        output.replace_input_with(last, last.all_input_nodes[0])
    program.graph.eliminate_dead_code()
    program.recompile()
