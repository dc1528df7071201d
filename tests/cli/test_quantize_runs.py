"""What two runs of `gdfq-export quantize` do to each other, and what a run says while it works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from user_folder import build, fails

from gdfq_export import distilled
from gdfq_export.cli import main
from gdfq_export.lock import alone

LITTLE = ["--method", "zeroq", "--no-companions"]


@pytest.mark.parametrize("option", [[], ["--force"], ["--resume"]])
def test_a_second_run_on_one_output_is_refused(
    option: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.onnx"
    with alone([out]):
        code, text = fails([*build(folder), *option, "--out", str(out)], capsys)
    assert code == 4
    assert "another run (process" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [[], ["--force"], ["--resume"]])
def test_a_second_run_on_one_work_directory_is_refused(
    option: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    with alone([work]):
        words = [*build(folder), *option, "--work-dir", str(work), "--out", str(tmp_path / "m.onnx")]
        code, text = fails(words, capsys)
    assert (code, "is writing" in text) == (4, True)


def test_a_refused_size_budget_does_not_block_its_own_retry(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*build(folder), *LITTLE, "--out", str(tmp_path / "m.onnx")]
    code, text = fails([*words, "--size-budget", "1kB"], capsys)
    assert (code, "give at least" in text) == (2, True)
    monkeypatch.setattr(distilled, "distil_batch", None)  # the images of the refused run serve
    assert main([*words, "--size-budget", "30kB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file_bytes"] <= 30_000
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(("option", "speaks"), [([], True), (["--quiet"], False)])
def test_with_json_progress_goes_to_stderr_unless_quiet_is_asked_for(
    option: list[str], speaks: bool, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*build(folder), *LITTLE, *option, "--json", "--out", str(tmp_path / "m.onnx")]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["out"] == str(tmp_path / "m.onnx")
    assert ("optimising images: done" in printed.err) is speaks
    assert speaks or printed.err == ""
