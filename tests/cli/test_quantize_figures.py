"""The figures that `quantize` prints say what they rest on, and a gate can be set on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from user_folder import build, fails

from gdfq_export.cli import main

FAR = ["--weight-bits", "2", "--act-bits", "2", "--method", "calibrate"]


def test_an_agreement_names_the_images_behind_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*build(folder), "--out", str(tmp_path / "m.onnx"), "--no-companions"]) == 0
    result = json.loads((folder / "result.json").read_text())
    images, percent = result["agreement_images"], result["teacher_agreement"]
    assert images > 1
    printed = capsys.readouterr().out
    assert f"agreement with the float network: {percent:.1f} % on {images} held-back" in printed
    assert f"from the logits of {images} images" in printed


def test_too_little_agreement_is_exit_code_1_and_the_files_are_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.onnx"
    words = [*build(folder), *FAR, "--out", str(out), "--no-companions", "--min-agreement", "100"]
    assert main(words) == 1
    printed = capsys.readouterr()
    assert "FAIL: agreement with the float network" in printed.err
    assert "--min-agreement asks for 100 %" in printed.err
    assert out.is_file()
    assert main([*words, "--force", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["enough_agreement"] is False
    assert result["teacher_agreement"] < 100


def test_a_run_that_ended_badly_says_so_and_forecasts_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gdfq_export.forecast.FURTHEST", 0.1)  # which a network that never learned reaches
    words = [*build(folder), *FAR, "--out", str(tmp_path / "m.onnx"), "--no-companions"]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["logit_error"] > 0.1
    assert result["forecast"] is None
    assert result["enough_agreement"] is True
    assert len(result["warnings"]) == 1
    assert main([*words, "--force"]) == 0
    printed = capsys.readouterr()
    assert "no forecast of the accuracy" in printed.out
    assert f"warning: {result['warnings'][0]}" in printed.err


@pytest.mark.parametrize("percent", ["-1", "101"])
def test_an_agreement_that_is_no_percentage_is_refused(
    percent: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = fails([*build(folder), "--out", str(tmp_path / "m.onnx"), f"--min-agreement={percent}"], capsys)
    assert (code, "--min-agreement" in text) == (2, True)
