"""`gdfq-export quantize` and `verify` as a user runs them, with good and with bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from gdfq_export.cli import main

HEAD = "import torch\nfrom torch import nn\n"
GOOD = """
def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )
"""
SOFTMAX = """
def soft():
    return nn.Sequential(build(), nn.Softmax(1))
"""
NO_NORM = """
def no_norm():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
"""
ODD = """
class Sorts(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    def forward(self, x):
        return torch.sort(self.stem(x).mean((2, 3)))[0]

def odd():
    return Sorts()

class Two(nn.Module):
    def forward(self, x, y):
        return x + y

def two():
    return Two()
"""
SIZE = ["--input-size", "3x16x16", "--mean", "0.5", "--std", "0.5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a model file and one quantized model."""
    path = tmp_path_factory.mktemp("user")
    (path / "net.py").write_text(HEAD + GOOD + SOFTMAX + NO_NORM + ODD)
    words = ["quantize", "--model", f"{path}/net.py:build", *SIZE, "--bits", "8", "--out", str(path / "model.onnx")]
    done = subprocess.run(
        [sys.executable, "-m", "gdfq_export", *words, "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path / "result.json").write_text(done.stdout)
    return path


def fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and the one sentence on stderr."""
    capsys.readouterr()
    code = main(words)
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("gdfq-export: ")]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return code, lines[0]


def build(folder: Path, factory: str = "build") -> list[str]:
    return ["quantize", "--model", f"{folder}/net.py:{factory}", *SIZE]


def test_quantize_prints_one_json_object_with_the_promised_keys(folder: Path) -> None:
    result = json.loads((folder / "result.json").read_text())
    assert result["bits"] == {"weight": 8, "activation": 8}
    assert result["method"] == "gdfq"
    assert result["file_bytes"] == (folder / "model.onnx").stat().st_size
    assert result["fp32_bytes"] == (folder / "model.fp32.onnx").stat().st_size
    assert 0 <= result["teacher_agreement"] <= 100
    assert {"out", "seconds", "sha256"} <= result.keys()


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


def test_a_network_that_ends_in_softmax_is_quantized_up_to_its_logits(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "soft.v1")  # a name without .onnx has its companions beside it too
    assert main([*build(folder, "soft"), "--method", "calibrate", "--out", out]) == 0
    capsys.readouterr()
    assert main(["verify", out, "--json", "--samples", "4"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["torch"]["top1_agreement"] == 100.0
    assert report["float_ops"] == []


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
    assert main([*build(folder), *words, "--budget", "1s", "--out", str(out), "--report", str(page), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert page.read_text().rstrip().endswith("</html>")
    if "--size-budget" in words:
        assert made["file_bytes"] <= 12_000
    assert main(["verify", str(out), "--json", "--samples", "4"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["passed"], report["float_ops"]) == (True, [])


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--method", "zeroq", "--size-budget", "1kB"], "give at least"),
        (["--method", "zeroq", "--bitops-budget", "10"], "give at least"),
        (["--method", "zeroq", "--size-budget", "9kB", "--bitops-budget", "1G"], "leave one of them out"),
        (["--method", "zeroq", "--size-budget", "9kB", "--weight-bits", "4"], "leave --weight-bits out"),
        (["--method", "zeroq", "--size-budget", "9kB", "--dry-run"], "leave --dry-run out"),
        (["--method", "dfq", "--size-budget", "9kB"], "--method zeroq"),
        (["--report", "{out}"], "another name"),
    ],
)
def test_a_budget_of_widths_that_cannot_be_is_a_usage_error(
    words: list[str], hint: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "x.onnx")
    words = [word.format(out=out) for word in words]
    code, text = fails([*build(folder), "--budget", "1s", *words, "--out", out], capsys)
    assert (code, hint in text) == (2, True), text
    assert not list(tmp_path.glob("*.onnx"))


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
    plan = json.loads(capsys.readouterr().out)["plan"]
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
        (["--seed", "-1"], "0 or more"),
        (["--threads", "0"], "1 or more"),
        (["--ranges", "guess"], "aciq"),
        (["--reading", "slides"], "paper, code"),
        (["--no-student-ce", "--no-student-kd"], "without a loss"),
        (["--separate", "--stop-threshold", "95"], "leave one of them out"),
        (["--stop-threshold", "0"], "up to 100"),
        (["--method", "calibrate", "--separate"], "use it with gdfq"),
        (["--method", "calibrate", "--ranges", "learned"], "use it with gdfq"),
        (["--method", "recon", "--no-generator-ce"], "gdfq or calibrate"),
        (["--real-data", ".", "--no-generator-bns"], "replaces"),
        (["--student-lr", "0"], "like 1e-4"),
        (["--generator-lr", "nan"], "like 1e-4"),
        (["--resume", "--dry-run"], "leave one of them out"),
        (["--budget", "0.001s"], "too small"),
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
    code, text = fails([*build(folder, "two"), "--out", str(tmp_path / "x.onnx")], capsys)
    assert code in (2, 3)
    assert "input" in text


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
        assert main([*build(folder), *words, "--out", out, "--no-companions", "--json"]) == 0
        figures = json.loads(capsys.readouterr().out)["figures"]
        assert figures["student_steps"] > 0
        assert ("real_images" in figures) == ("--real-data" in words)


def test_images_that_are_missing_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--method", "calibrate", "--calibration-data", str(tmp_path / "none")]
    code, text = fails([*build(folder), *words, "--out", str(tmp_path / "x.onnx")], capsys)
    assert (code, "none" in text) == (4, True)


@pytest.mark.slow
def test_torchrun_trains_in_two_processes_and_one_of_them_writes(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "gdfq_export"]
    words = [*build(folder), "--bits", "4", "--device", "cpu", "--out", str(out), "--json"]
    done = subprocess.run([*run, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["figures"]["student_steps"] == 60
    assert main(["verify", str(out), "--json", "--samples", "4"]) == 0


def test_json_errors_are_one_object_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path / "none.onnx"), "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["exit_code"] == 4


def test_a_flipped_bit_fails_verification_with_exit_code_1(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(folder / "model.onnx")
    tensor = next(t for t in model.graph.initializer if t.name.endswith("/weight"))
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
    onnx.save(model, tmp_path / "m.onnx")
    assert main(["verify", str(tmp_path / "m.onnx"), "--json", "--samples", "4"]) == 1
    assert json.loads(capsys.readouterr().out)["hashes"]["changed"] == [tensor.name.rpartition("/")[0]]
