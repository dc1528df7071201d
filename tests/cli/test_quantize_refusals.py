"""`gdfq-export quantize` with bad input: one sentence that says what is right, the exit code, and nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from user_folder import build, fails

from gdfq_export.cli import main


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--method", "zeroq", "--size-budget", "1kB"], "give at least"),
        (["--method", "zeroq", "--bitops-budget", "10"], "give at least"),
        (["--method", "zeroq", "--size-budget", "9kB", "--bitops-budget", "1G"], "leave one of them out"),
        (["--method", "zeroq", "--size-budget", "9kB", "--weight-bits", "4"], "leave --weight-bits out"),
        (["--method", "zeroq", "--size-budget", "9kB", "--dry-run"], "leave --dry-run out"),
        (["--method", "dfq", "--size-budget", "9kB"], "use it with zeroq"),
        (["--report", "{out}"], "another name"),
    ],
)
def test_a_budget_of_widths_that_cannot_be_is_a_usage_error(
    words: list[str], hint: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "x.onnx")
    words = [word.format(out=out) for word in words]
    code, text = fails([*build(folder), *words, "--out", out], capsys)
    assert (code, hint in text) == (2, True), text
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--method", "gdfq"], "recon or auto"),
        (["--method", "auto", "--budget", "9s"], "--preset"),
        (["--method", "auto", "--report", "{images}"], "another name"),
    ],
)
def test_a_file_of_images_where_none_fits_is_a_usage_error(
    words: list[str], hint: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = str(tmp_path / "images.safetensors"), str(tmp_path / "x.onnx")
    words = [word.format(images=images) for word in words]
    code, text = fails([*build(folder), *words, "--images", images, "--out", out], capsys)
    assert (code, hint in text) == (2, True), text
    assert not list(tmp_path.iterdir())


def test_a_report_that_exists_or_cannot_be_written_is_refused_before_any_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.html").write_text("kept")
    for page in (tmp_path / "page.html", tmp_path / "none" / "page.html"):
        code, text = fails([*build(folder), "--out", str(tmp_path / "x.onnx"), "--report", str(page)], capsys)
        assert (code, "--report" in text) == (4, True)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text() == "kept"


def test_verify_refuses_the_program_of_another_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / "model.onnx", tmp_path / "model.onnx")
    (tmp_path / "model.fakequant.pt2").write_bytes(b"not the same")
    code, text = fails(["verify", str(tmp_path / "model.onnx")], capsys)
    assert code == 4
    assert "does not belong" in text


@pytest.mark.parametrize("bits", ["1", "9", "0", "-4"])
def test_a_width_that_cannot_be_had_is_a_usage_error(
    bits: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = fails([*build(folder), "--bits", bits, "--out", str(tmp_path / "x.onnx")], capsys)
    assert code == 2
    assert "2 to 8" in text


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--method", "magic"], "gdfq, calibrate"),
        (["--preset", "slow"], "fast, standard, paper"),
        (["--target", "riscv"], "portable"),
        (["--budget", "soon"], "10m"),
        (["--input-size", "16"], "3x224x224"),
        (["--mean", "grey"], "0.485"),
        (["--mean", "nan"], "0.485"),
        (["--mean", "-1e6"], "0..255"),
        (["--std", "100"], "both for 0..255"),
        (["--input-range", "wide"], "LOW,HIGH"),
        (["--input-range", "2,-2"], "LOW,HIGH"),
        (["--input-range", "0,1"], "leave --input-range out"),
        (["--input-range", "-2,2", "--input-format", "uint8-nhwc"], "leave --input-range out"),
        (["--seed", "-1"], "0 or more"),
        (["--threads", "0"], "1 or more"),
        (["--ranges", "guess"], "aciq"),
        (["--reading", "slides"], "paper, code"),
        (["--no-student-ce", "--no-student-kd"], "without a loss"),
        (["--separate", "--stop-threshold", "95"], "leave one of them out"),
        (["--stop-threshold", "0"], "up to 100"),
        (["--method", "calibrate", "--keep-trained"], "use it with gdfq"),
        (["--method", "calibrate", "--ranges", "learned"], "use it with gdfq"),
        (["--method", "recon", "--no-generator-ce"], "gdfq or calibrate"),
        (["--no-generator-ce"], "--method auto: use it with gdfq or calibrate"),
        (["--method", "gdfq", "--real-data", ".", "--no-generator-bns"], "replaces"),
        (["--method", "gdfq", "--student-lr", "0"], "like 1e-4"),
        (["--method", "gdfq", "--generator-lr", "nan"], "like 1e-4"),
        (["--resume", "--dry-run"], "leave one of them out"),
        (["--method", "gdfq", "--budget", "0.001s"], "too small"),
        (["--bits", "8", "--weight-bits", "4", "--act-bits", "4"], "leave one of them out"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_a_wrong_option_is_a_usage_error_that_says_what_is_right(
    words: list[str], hint: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = fails([*build(folder), *words, "--out", str(tmp_path / "x.onnx")], capsys)
    assert code == 2
    assert hint in text


def test_an_unknown_model_is_a_usage_error_that_suggests_the_nearest_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = fails(["quantize", "--model", "mobilenetv22", "--out", str(tmp_path / "x.onnx")], capsys)
    assert code == 2
    assert "mobilenetv2" in text.replace("mobilenetv22", "")


def test_an_output_that_is_in_the_way_or_has_no_folder_is_refused_before_any_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = fails([*build(folder), "--out", str(folder / "model.onnx")], capsys)
    assert (code, "--force" in text) == (4, True)
    code, text = fails([*build(folder), "--out", str(tmp_path / "nowhere" / "x.onnx")], capsys)
    assert (code, "does not exist" in text) == (4, True)
    code, text = fails([*build(folder), "--out", "/proc/x.onnx"], capsys)
    assert (code, "cannot write" in text) == (4, True)
    code, text = fails([*build(folder), "--out", str(tmp_path)], capsys)
    assert (code, "is a folder" in text) == (4, True)


def test_weights_that_are_missing_damaged_or_of_another_network_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quantize", "--model", "resnet20_cifar10", "--out", str(tmp_path / "x.onnx"), "--weights"]
    assert fails([*words, str(tmp_path / "none.safetensors")], capsys)[0] == 4
    (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 100)
    assert fails([*words, str(tmp_path / "bad.safetensors")], capsys)[0] == 4
    save_file({"fc.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    code, text = fails([*words, str(tmp_path / "other.safetensors")], capsys)
    assert code == 4
    assert "features.init_block.conv.weight" in text
    assert not (tmp_path / "x.onnx").exists()


def test_without_a_network_a_download_ends_in_one_sentence_that_names_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GDFQ_EXPORT_WEIGHTS_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("GDFQ_EXPORT_CACHE", str(tmp_path / "cache"))
    words = ["quantize", "--model", "mobilenetv2", "--bits", "8", "--out", str(tmp_path / "model.onnx")]
    code, text = fails(words, capsys)
    assert code == 4
    assert "--weights" in text
    assert not (tmp_path / "model.onnx").exists()


def test_a_network_without_batch_norm_is_not_supported_and_the_message_says_what_to_do(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = fails([*build(folder, "no_norm"), "--out", str(tmp_path / "x.onnx")], capsys)
    assert code == 3
    assert "batch norm" in text
    assert list(tmp_path.iterdir()) == []


def test_an_unsupported_operator_is_named_with_its_place(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = fails([*build(folder, "odd"), "--out", str(tmp_path / "x.onnx")], capsys)
    assert code == 3
    assert "sort" in text
    assert "net.py" in text


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("two", "takes more than one input"),
        ("shape", "a shape or a branch at the model (net.py:"),
        ("branch", "a shape or a branch at the model (net.py:"),
        ("quantized", "already quantized, or prepared for it (torch.ao.nn.quantized.modules.conv.Conv2d at 0)"),
    ],
)
def test_a_network_that_cannot_be_captured_is_not_supported(
    factory: str, words: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = fails([*build(folder, factory), "--out", str(tmp_path / "x.onnx")], capsys)
    assert (code, words in text) == (3, True), text
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_is_already_quantized_is_not_supported(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quantize", "--model", str(folder / "model.fakequant.pt2"), "--out", str(tmp_path / "x.onnx")]
    code, text = fails(words, capsys)
    assert (code, "already quantized" in text) == (3, True), text


def test_cuda_without_a_gpu_is_a_usage_error(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        return
    code, text = fails([*build(folder), "--device", "cuda", "--out", str(tmp_path / "x.onnx")], capsys)
    assert code == 2
    assert "--device cpu" in text


@pytest.mark.parametrize("command", ["verify", "inspect", "bench"])
def test_files_that_are_missing_truncated_or_not_onnx_are_refused(
    command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "cut.onnx").write_bytes((folder / "model.onnx").read_bytes()[:5000])
    for name in ("none.onnx", "text.onnx", "cut.onnx"):
        assert fails([command, str(tmp_path / name)], capsys)[0] == 4


def test_a_folder_of_another_purpose_is_no_work_directory(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*build(folder), "--work-dir", str(folder), "--out", str(tmp_path / "x.onnx")]
    code, text = fails(words, capsys)
    assert (code, "--work-dir" in text) == (4, True)
    assert list(tmp_path.iterdir()) == []


def test_images_that_are_missing_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--method", "calibrate", "--calibration-data", str(tmp_path / "none")]
    code, text = fails([*build(folder), *words, "--out", str(tmp_path / "x.onnx")], capsys)
    assert (code, "none" in text) == (4, True)


def test_json_errors_are_one_object_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path / "none.onnx"), "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["exit_code"] == 4


@pytest.mark.parametrize("words", [["--mean", "0.5"], ["--std", "0.5"]])
def test_half_a_normalisation_is_a_usage_error(
    words: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", f"{folder}/net.py:build", "--out", str(tmp_path / "x.onnx")]
    code, text = fails(["quantize", *model, *words], capsys)
    assert code == 2
    assert "give both" in text


@pytest.mark.parametrize(
    ("content", "hint"),
    [(b"a\nb\n", "2 lines, but the network tells 5"), (b"a\n\nb\nc\nd", "line 2 is empty"), (b"\xff", "UTF-8")],
)
def test_labels_that_do_not_fit_are_an_input_error(
    content: bytes, hint: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    words = ["--labels", str(tmp_path / "labels.txt"), "--out", str(tmp_path / "x.onnx")]
    code, text = fails([*build(folder), *words], capsys)
    assert code == 4
    assert hint in text


def test_images_for_a_network_that_is_fed_features_are_a_usage_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", f"{folder}/net.py:build", "--input-size", "3x16x16", "--input-range", "-2,2"]
    words = ["--method", "calibrate", "--calibration-data", str(folder), "--out", str(tmp_path / "x.onnx")]
    code, text = fails(["quantize", *model, *words], capsys)
    assert code == 2
    assert "hold images" in text


def test_a_dry_run_says_which_values_the_file_will_accept(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", f"{folder}/net.py:build", "--input-size", "3x16x16", "--dry-run"]
    assert main(["quantize", *model, "--input-range", "-2,3", "--out", str(tmp_path / "x.onnx")]) == 0
    assert "input: float 3x16x16 (NCHW), -2 to 3; values beyond are clipped" in capsys.readouterr().out


def test_json_lists_the_reasons_against_a_network(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*build(folder, "odd"), "--out", str(tmp_path / "x.onnx"), "--json"]) == 3
    said = json.loads(capsys.readouterr().out)
    (reason,) = said["reasons"]
    assert (reason["operator"], reason["place"].split(":")[0]) == ("sort", "the model (net.py")
    assert reason["advice"] in said["error"]
