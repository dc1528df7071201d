"""What every operator becomes, from PyTorch to the proof of the file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from stages import network
from test_pipeline import SETTINGS, loaded

from gdfq_export.pipeline import run
from gdfq_export.plan import BitWidths
from gdfq_export.runtime_checks.verify import verify_model


@pytest.mark.parametrize(("method", "bits"), [("calibrate", 8), ("dfq", 4)])
@pytest.mark.parametrize("name", ["rearranged", "mirrored", "mish", "greatest"])
def test_the_file_is_proved_and_nothing_in_it_runs_in_float(name: str, method: str, bits: int, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, method=method, bits=BitWidths(bits, bits))
    run(loaded(network(name)), settings, tmp_path / "model.onnx")
    result = verify_model(tmp_path / "model.onnx", samples=4)
    assert result.passed
    assert result.levels["all"].total.mismatches == 0
    assert result.coverage.float_operators == ()
