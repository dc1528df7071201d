"""`gdfq-export quantize` and `verify` as a user runs them."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from PIL import Image
from user_folder import build, fails

from gdfq_export.cli import main


def test_quantize_prints_one_json_object_with_the_promised_keys(folder: Path) -> None:
    result = json.loads((folder / "result.json").read_text())
    assert result["bits"] == {"weight": 8, "activation": 8}
    assert result["method"] == "auto"
    assert result["file_bytes"] == (folder / "model.onnx").stat().st_size
    assert result["fp32_bytes"] == (folder / "model.fp32.onnx").stat().st_size
    assert 0 <= result["teacher_agreement"] <= 100
    assert {"out", "seconds", "sha256"} <= result.keys()
    assert 0 <= result["logit_error"] <= 1
    guess = result["forecast"]
    assert guess["low"] <= guess["drop"] <= guess["high"] <= 100


def test_the_file_passes_the_full_onnx_checks_and_has_a_dynamic_batch(folder: Path) -> None:
    for name in ("model.onnx", "model.fp32.onnx"):
        model = onnx.load(folder / name)
        onnx.checker.check_model(model, full_check=True)
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_verify_passes_with_no_float_operator_and_no_mismatch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder / "model.onnx"), "--json", "--samples", "6"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is True
    assert report["float_ops"] == []
    assert report["levels"]["all"]["mismatches"] == 0
    assert report["torch"]["mismatches"] == 0
    assert report["torch"]["top1_agreement"] == 100.0
    assert report["saturation_safe"]
    assert report["overflow_safe"]
    assert report["isa_invariant"]
    assert {"samples", "runtime"} <= report.keys()


def test_verify_works_without_the_companions(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(folder / "model.onnx", tmp_path / "alone.onnx")
    assert main(["verify", str(tmp_path / "alone.onnx"), "--json", "--samples", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["torch"] is None


def test_images_from_a_file_give_the_bytes_that_images_made_anew_give(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gdfq_export")
    images = ["--images", str(tmp_path / "images.safetensors")]
    for name, words in (("none", []), ("made", images), ("read", images)):
        out = str(tmp_path / f"{name}.onnx")
        assert main([*build(folder), "--method", "dfq", *words, "--no-companions", "--out", out]) == 0
    assert f"images read from {images[1]}" in caplog.messages
    assert (tmp_path / "images.safetensors").exists()
    assert len({(tmp_path / f"{name}.onnx").read_bytes() for name in ("none", "made", "read")}) == 1


def test_a_network_that_ends_in_softmax_is_quantized_up_to_its_logits(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "soft.v1")  # a name without .onnx has its companions beside it too
    assert main([*build(folder, "soft"), "--method", "calibrate", "--out", out]) == 0
    capsys.readouterr()
    assert main(["verify", out, "--json", "--samples", "4", "--strict"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["torch"]["mismatches"], report["torch"]["top1_agreement"]) == (0, 100.0)
    assert (report["golden"]["mismatches"], report["missing"]) == (0, [])
    assert (report["float_ops"], len(report["endings"])) == ([], 1)


def test_bytes_from_a_camera_are_normalised_inside_the_graph_in_integers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "bytes.onnx")
    assert main([*build(folder), "--method", "calibrate", "--input-format", "uint8-nhwc", "--out", out]) == 0
    source = onnx.load(out).graph.input[0].type.tensor_type
    assert source.elem_type == onnx.TensorProto.UINT8
    assert [size.dim_value for size in source.shape.dim][1:] == [16, 16, 3]
    capsys.readouterr()
    assert main(["verify", out, "--json", "--samples", "4"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["float_ops"] == []
    assert report["torch"]["mismatches"] == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--method", "dfq", "--bits", "8"],
        ["--method", "dfq", "--bits", "4"],
        ["--method", "zeroq", "--bits", "4"],
        ["--method", "zeroq", "--size-budget", "12kB"],
        ["--method", "dfqf", "--bits", "8"],
        ["--method", "dfqf", "--bits", "4"],
    ],
    ids=" ".join,
)
def test_every_other_method_makes_a_file_that_verifies_without_float_operators(
    words: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "m.onnx", tmp_path / "m.html"
    assert main([*build(folder), *words, "--out", str(out), "--report", str(page), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert page.read_text().rstrip().endswith("</html>")
    if "--size-budget" in words:
        assert made["file_bytes"] <= 12_000
    assert main(["verify", str(out), "--json", "--samples", "4"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["passed"], report["float_ops"]) == (True, [])


def test_a_result_names_the_state_that_was_kept_and_the_next_command_can_be_pasted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my models" / "it's.onnx"
    out.parent.mkdir()
    assert main([*build(folder), "--method", "calibrate", "--no-companions", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " by calibrate (calibrated state), " in lines[0]
    assert lines[1] == "kept: the calibrated state (the method makes no other)"
    (command,) = [line.removeprefix("next: ") for line in lines if line.startswith("next: ")]
    assert shlex.split(command) == ["gdfq-export", "verify", str(out)]


def test_the_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        words = ["--method", "calibrate", "--weight-bits", "4", "--act-bits", "4", "--no-companions"]
        assert main([*build(folder), *words, "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*build(folder), "--bits", "4", "--out", str(tmp_path / "x.onnx"), "--dry-run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    plan = report["plan"]
    assert report["bits"] == {"weight": 4, "activation": 4}
    assert {row["bits"] for row in plan if row["kind"] == "weight"} == {4}
    assert {row["bits"] for row in plan if row["kind"] == "tensor"} == {4, 8}  # the image and the logits have 8
    assert {row["kind"] for row in plan} == {"tensor", "weight", "bias"}
    assert all(row["reason"] for row in plan)
    assert list(tmp_path.iterdir()) == []


def test_options_can_stand_in_a_toml_file_and_the_command_line_overrides_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.toml").write_text('weight-bits = 3\nact-bits = 5\nmethod = "calibrate"\n')
    words = [*build(folder), "--config", str(tmp_path / "run.toml"), "--weight-bits", "4"]
    assert main([*words, "--out", str(tmp_path / "x.onnx"), "--no-companions", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits"] == {"weight": 4, "activation": 5}


def test_an_interrupted_run_ends_with_130_and_can_be_resumed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.onnx"

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gdfq_export.pipeline.lower_outcome", interrupt)
        code, text = fails([*build(folder), "--bits", "8", "--out", str(out)], capsys)
    assert (code, "--resume" in text) == (130, True)
    code, text = fails([*build(folder), "--bits", "8", "--out", str(out)], capsys)
    assert (code, "--resume" in text) == (4, True)
    code, text = fails([*build(folder), "--bits", "4", "--out", str(out), "--resume"], capsys)
    assert (code, "bits.weight = 8, and now it is 4" in text) == (4, True)
    assert main([*build(folder), "--bits", "8", "--out", str(out), "--resume"]) == 0
    assert out.read_bytes() == (folder / "model.onnx").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.fakequant.pt2", "model.fp32.onnx", "model.onnx"]


def test_every_switch_of_gdfq_is_taken(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in range(5):
        (tmp_path / "images" / f"{label}").mkdir(parents=True)
        for index in range(4):
            pixels = Image.new("RGB", (16, 16), (50 * label, 60 * index, 99))
            pixels.save(tmp_path / "images" / f"{label}" / f"{index}.png")
    data = str(tmp_path / "images")
    runs = [
        ["--no-generator-ce", "--no-student-ce", "--moving-statistics", "--reading", "code", "--ranges", "ema"],
        ["--no-generator-bns", "--no-student-kd", "--separate", "--keep-trained", "--calibration-data", data],
        ["--real-data", data, "--ranges", "learned", "--reading", "paper"],
    ]
    for index, words in enumerate(runs):
        out = str(tmp_path / f"{index}.onnx")
        capsys.readouterr()
        assert main([*build(folder), "--method", "gdfq", *words, "--out", out, "--no-companions", "--json"]) == 0
        figures = json.loads(capsys.readouterr().out)["figures"]
        assert figures["student_steps"] > 0
        assert ("real_images" in figures) == ("--real-data" in words)


@pytest.mark.slow
def test_torchrun_trains_in_two_processes_and_one_of_them_writes(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "gdfq_export"]
    words = [*build(folder), "--method", "gdfq", "--bits", "4", "--device", "cpu", "--out", str(out), "--json"]
    done = subprocess.run([*run, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["figures"]["student_steps"] == 60
    assert main(["verify", str(out), "--json", "--samples", "4"]) == 0


def test_a_flipped_bit_fails_verification_with_exit_code_1(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(folder / "model.onnx")
    tensor = next(t for t in model.graph.initializer if t.name.endswith("/weight"))
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
    onnx.save(model, tmp_path / "m.onnx")
    assert main(["verify", str(tmp_path / "m.onnx"), "--json", "--samples", "4"]) == 1
    assert json.loads(capsys.readouterr().out)["hashes"]["changed"] == [tensor.name.rpartition("/")[0]]
