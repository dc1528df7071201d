"""benchmarks/cross_isa.py on small networks: here, and under QEMU where that is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from qdq_builder import Builder, seal, small_network

ROOT = Path(__file__).parents[2]
NEEDS_QEMU = pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="qemu-user is not installed")


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "benchmarks" / "cross_isa.py", *words]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


def rows(done: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of the JSON output by file and machine."""
    return {(row["file"], row["machine"]): row for row in json.loads(done.stdout)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "net.onnx"
    onnx.save(seal(small_network()), file)
    return file


def test_every_tensor_of_a_portable_file_is_replayed_here(path: Path) -> None:
    done = run("--machines", "native", "--samples", 3, "--json", path)
    assert done.returncode == 0, done.stderr
    row = rows(done)["net.onnx", "native"]
    assert row["target"] == "portable"
    assert row["mismatches"] == row["output_mismatches"] == 0
    assert (row["images"], row["same_kernels"]) == (3, True)
    assert row["tensors"] >= 9
    assert row["elements"] > 3 * 5 * 8 * 12 * 12  # five maps of 8 channels, and the rest


def test_outputs_that_a_float_operator_computes_are_left_out(tmp_path: Path) -> None:
    net = Builder()
    x = net.conv(net.quantize("input", "input_quantizer", 0.02, 128), "stem", (3, 8))
    net.node("ReduceSum", [x.name], "sums", keepdims=0)
    onnx.save(net.model("sums", output_rank=0), tmp_path / "float_end.onnx")
    done = run("--machines", "native", "--samples", 1, "--json", tmp_path / "float_end.onnx")
    assert done.returncode == 0, done.stderr
    assert rows(done)["float_end.onnx", "native"]["tensors"] == 2  # the input's codes and the convolution's
    assert "float_end.onnx: 1 tensors of float operators are left out" in done.stderr


@NEEDS_QEMU
def test_without_vnni_the_portable_file_stays_exact_and_the_known_bad_one_does_not(path: Path) -> None:
    done = run("--machines", "haswell", "--samples", 1, "--json", path)
    assert done.returncode == 0, done.stderr
    found = rows(done)
    assert found["net.onnx", "haswell"]["mismatches"] == 0
    assert found["known_bad_range.onnx", "haswell"]["mismatches"] > 1000
    assert found["known_bad_add.onnx", "haswell"]["mismatches"] == 0  # it has fused multiply-add
    assert "AVX512_ICL" not in found["net.onnx", "haswell"]["features"]


@NEEDS_QEMU
def test_a_file_that_wrongly_calls_itself_portable_fails(tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    onnx.save(seal(small_network(largest=127)), bad)
    done = run("--machines", "haswell", "--samples", 3, bad)
    assert done.returncode == 1
    assert "FAIL: bad.onnx on haswell:" in done.stderr


def test_unknown_machines_and_missing_files_are_refused(path: Path, tmp_path: Path) -> None:
    done = run("--machines", "z80", path)
    assert done.returncode == 2
    assert "no machine 'z80'; there are native, haswell, westmere" in done.stderr
    done = run(tmp_path / "none.onnx")
    assert done.returncode == 2
    assert "none.onnx: no such file" in done.stderr


def test_the_script_says_what_is_missing(path: Path, tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "cross_isa.sh"
    done = subprocess.run([script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "cross_isa.sh: give one or more ONNX files\n")
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(tmp_path / "python"), "HOME": str(tmp_path)}
    done = subprocess.run([script, path], capture_output=True, text=True, env=environment)
    assert done.returncode == 4
    assert "run scripts/test once, or set PYTHON" in done.stderr
