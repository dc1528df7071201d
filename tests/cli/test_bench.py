"""`gdfq-export bench`, run as a program, and the parts of it that need no program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from gdfq_export.cli.bench import find_baseline, parse_threads, shown_names
from gdfq_export.errors import UsageError

TIMES = {"p50_ms", "p90_ms", "p99_ms", "mean_ms", "runs"}


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gdfq_export", "bench", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def network(path: Path) -> Path:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8]) for name in ("image", "out")]
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["out"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_json_has_times_by_threads_the_same_for_the_companion_and_the_speedup(tmp_path: Path) -> None:
    path, companion = network(tmp_path / "net.onnx"), network(tmp_path / "net.fp32.onnx")
    done = run(path, "--threads", "1,2", "--runs", 25, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["baseline_file"] == str(companion)
    assert list(result["threads"]) == list(result["baseline"]) == ["1", "2"]
    for times in (*result["threads"].values(), *result["baseline"].values()):
        assert times.keys() >= TIMES
        assert times["runs"] == 25
    assert result["speedup"] == result["threads"]["1"]["speedup"] > 0


def test_without_a_companion_baseline_and_speedup_are_null_and_the_option_is_named(tmp_path: Path) -> None:
    done = run(network(tmp_path / "net.onnx"), "--threads", 1, "--runs", 5, "--json")
    result = json.loads(done.stdout)
    assert (result["baseline"], result["speedup"]) == (None, None)
    assert "no net.fp32.onnx to compare with: pass --baseline FILE" in done.stderr


def test_the_table_goes_to_stdout(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx")
    done = run(path, "--baseline", path, "--threads", 1, "--runs", 5)
    assert done.returncode == 0
    assert "p99" in done.stdout
    assert "1 thread: speedup " in done.stdout


@pytest.mark.parametrize("width", [9, 12, 22, 60])
@pytest.mark.parametrize(
    ("model", "baseline"),
    [
        ("model.onnx", "model.fp32.onnx"),
        ("mobilenetv2_w1_w4a4_gdfq_seed_0.onnx", "mobilenetv2_w1_w4a4_gdfq_seed_0.fp32.onnx"),
        (f"{'a' * 40}x{'b' * 40}.onnx", f"{'a' * 40}y{'b' * 40}.onnx"),
        ("one/model.onnx", "two/model.onnx"),
        (f"{'a' * 40}/x/{'b' * 40}.onnx", f"{'a' * 40}/y/{'b' * 40}.onnx"),
        ("model.onnx", "model.onnx"),
    ],
)
def test_names_in_the_table_are_cut_in_the_middle_and_never_the_same(model: str, baseline: str, width: int) -> None:
    shown = shown_names([Path(model), Path(baseline)], width)
    assert len(set(shown)) == 2
    assert all(len(name) <= width for name in shown)
    if width == 60 and model == "model.onnx":
        assert shown[0] == model


def test_at_80_columns_both_files_can_be_told_apart_with_all_their_figures(tmp_path: Path) -> None:
    path = network(tmp_path / "resnet20_cifar10_at_4_bits.onnx")
    network(path.with_suffix(".fp32.onnx"))
    done = subprocess.run(
        [sys.executable, "-m", "gdfq_export", "bench", path, "--threads", "1,2", "--runs", "5"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    rows = [line.split() for line in done.stdout.splitlines() if ".onnx" in line]
    assert len({row[1] for row in rows}) == 2
    assert {len(row) for row in rows} == {9}
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 a zip", b"text, not a model" * 20])
def test_a_file_that_is_no_model_ends_in_one_sentence_and_code_four(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    done = run(path, "--json")
    assert done.returncode == 4
    assert done.stderr.startswith("gdfq-export: ")
    assert done.stderr.count("\n") == 1
    assert json.loads(done.stdout)["exit_code"] == 4


def test_a_truncated_model_ends_in_code_four(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx")
    path.write_bytes(path.read_bytes()[:-9])
    assert run(path).returncode == 4


def test_a_missing_baseline_ends_in_code_four(tmp_path: Path) -> None:
    done = run(network(tmp_path / "net.onnx"), "--baseline", tmp_path / "none.onnx")
    assert done.returncode == 4
    assert "none.onnx: no such file" in done.stderr


@pytest.mark.parametrize("text", ["0", "-1", "two", "1,", "", "99999"])
def test_threads_that_are_no_numbers_end_in_code_two(text: str) -> None:
    with pytest.raises(UsageError, match="--threads takes numbers"):
        parse_threads(text)


def test_threads_keep_their_order_and_each_counts_once() -> None:
    assert parse_threads("2,1,2") == [2, 1]


def test_the_companion_is_found_by_its_name(tmp_path: Path) -> None:
    assert find_baseline(tmp_path / "a.b.onnx") is None
    (tmp_path / "a.b.fp32.onnx").touch()
    assert find_baseline(tmp_path / "a.b.onnx") == tmp_path / "a.b.fp32.onnx"
