"""`gdfq-export verify` from the command line, on small files made by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from qdq_builder import seal, small_network

from gdfq_export.cli import main

SIMULATION = {"images": 4, "elements": 1000, "differing": 20, "share": 0.02, "max_steps": 3, "top1_agreement": 75.0}


def saved(path: Path, **facts: Any) -> Path:
    """A sealed file whose provenance says `facts` as well."""
    onnx.save(seal(small_network(), **facts), path)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return saved(tmp_path / "model.onnx", simulation=SIMULATION)


def report_of(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    main(["verify", *map(str, words), "--json"])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_another_runtime_is_reported_and_nothing_fails_by_it(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(capsys, path, "--samples", "3", "--runtime", "reference")
    other = report["other_runtimes"]["reference"]
    assert report["passed"]
    assert (other["version"], other["images"], other["elements"]) == (onnx.__version__, 3, 30)
    assert {"mismatches", "max_steps", "top1_agreement"} <= other.keys()
    assert main(["verify", str(path), "--samples", "3", "--runtime", "reference"]) == 0
    assert f"reference {onnx.__version__} (one operator at a time): " in capsys.readouterr().out


def test_without_the_option_no_other_runtime_is_asked(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_of(capsys, path, "--samples", "1")["other_runtimes"] == {}


def test_a_runtime_that_is_not_installed_ends_with_4_and_how_to_get_it(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert main(["verify", str(path), "--runtime", "openvino"]) == 4
    assert "pip install 'gdfq-export[openvino]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--runtime", "tflite"), "--runtime 'tflite' is none of openvino, ort-web, reference"),
        (("--level", "fast"), "--level 'fast' is none of all, extended, basic, disabled"),
        (("--max-memory", "0"), "--max-memory 0 is no size"),
        (("--max-memory", "nan"), "--max-memory nan is no size"),
        (("--samples", "0"), "--samples 0 compares nothing"),
    ],
)
def test_wrong_values_of_options_end_with_2(
    words: tuple[str, ...], text: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(path), *words]) == 2
    assert text in capsys.readouterr().err


def test_a_file_above_max_memory_is_refused_and_told_what_it_takes(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(path), "--max-memory", "0.00001"]) == 4
    assert "raise --max-memory" in capsys.readouterr().err


def test_the_float_simulation_is_reported_as_quantize_measured_it(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_of(capsys, path, "--samples", "1")["simulation"] == SIMULATION
    main(["verify", str(path), "--samples", "1"])
    out = capsys.readouterr().out
    assert "2.00 % of 1,000 elements differ from the integers, by up to 3 steps; top-1 agreement 75.0 %" in out


def test_a_damaged_simulation_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(saved(tmp_path / "m.onnx", simulation={"images": "many"}))]) == 4
    assert "its simulation lacks a number" in capsys.readouterr().err


def test_what_is_missing_is_a_note_and_fails_strictly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = seal(small_network())
    model.metadata_props.remove(next(item for item in model.metadata_props if item.key == "gdfq_export.golden"))
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    assert main(["verify", str(path), "--samples", "1"]) == 0
    assert "note  says that it was made by this tool and lacks the golden vectors" in capsys.readouterr().out
    assert main(["verify", str(path), "--samples", "1", "--strict"]) == 1
    assert "FAIL  says that it was made by this tool and lacks the golden vectors" in capsys.readouterr().out


def test_activations_and_findings_are_in_the_report(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(capsys, path, "--samples", "5")
    assert report["findings"] == []
    stem = next(item for item in report["activations"] if item["layer"] == "stem")
    assert stem["possible"] == [0, 255]
    assert 0 < stem["used"] <= 1
    main(["verify", str(path), "--samples", "5"])
    assert "activation ranges: half of the tensors use " in capsys.readouterr().out


def test_a_wrapping_accumulator_is_found_bisected_and_written_beside_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_network()
    bias = next(item for item in model.graph.initializer if item.name == "block.conv1/bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(8, 2**31 - 9, np.int32), bias.name))
    onnx.save(model, tmp_path / "m.onnx")
    assert main(["verify", str(tmp_path / "m.onnx"), "--samples", "4", "--bisect", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    first = report["bisect"]
    assert (first["layer"], first["cause"], report["overflow_safe"]) == ("block.conv1", "overflow", False)
    assert {"layer": "block.conv1", "cause": "overflow", "detail": first["detail"]} in report["findings"]
    onnx.checker.check_model(onnx.load(first["model"]))
    with np.load(first["arrays"]) as arrays:
        assert (arrays["expected"] != arrays["found"]).any()


def test_bisect_of_an_exact_file_finds_nothing_and_writes_nothing(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_of(capsys, path, "--samples", "2", "--bisect")["bisect"] is None
    assert [item.name for item in path.parent.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_scale_that_is_not_finite_is_named(value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_network()
    scale = next(item for item in model.graph.initializer if item.name == "block.add/scale")
    scale.CopyFrom(numpy_helper.from_array(np.float32(value), scale.name))
    onnx.save(model, tmp_path / "m.onnx")
    for command in ("verify", "inspect", "bench"):
        assert main([command, str(tmp_path / "m.onnx")]) == 4
        assert "the scale 'block.add/scale' is not finite (QuantizeLinear 'block.add.codes')" in capsys.readouterr().err


def test_a_program_beside_a_file_that_was_written_without_one_is_left_alone(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.with_name("model.fakequant.pt2").write_bytes(b"of another file")
    report = report_of(capsys, path, "--samples", "1")
    assert report["passed"]
    assert report["torch"] is None


@pytest.mark.parametrize("command", ["inspect", "bench"])
def test_the_other_commands_have_the_limit_that_they_name(
    command: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(path), "--max-memory", "0.00001"]) == 4
    assert "raise --max-memory" in capsys.readouterr().err
