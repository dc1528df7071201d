"""The runtime's own profile: every kernel is there by its name in the file, and float islands are marked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from qdq_builder import seal, small_network

from gdfq_export.cli import main
from gdfq_export.runtime_checks.profile import SLOWEST, profile_model
from gdfq_export.runtime_checks.session_memory import session_memory_mb


def with_island(path: Path) -> Path:
    """A network whose stem ends in an operator that has no 8-bit kernel."""
    model = small_network()
    next(node for node in model.graph.node if node.name == "stem.relu").op_type = "Elu"
    onnx.save(model, path)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(seal(small_network()), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_kernels_have_their_names_in_the_file_and_shares_add_up(path: Path) -> None:
    profile = profile_model(path)
    names = {kernel.name for kernel in profile.kernels}
    assert {"stem", "block.conv1", "block.conv2", "block.add", "depthwise", "classifier"} <= names
    assert sum(kernel.share for kernel in profile.kernels) == pytest.approx(1)  # a sum of floats
    times = [kernel.median_us for kernel in profile.kernels]
    assert times == sorted(times, reverse=True)
    assert profile.float_operators == ()
    assert not any(kernel.in_float for kernel in profile.kernels)


def test_a_float_island_is_marked_and_named_with_its_reason(tmp_path: Path) -> None:
    profile = profile_model(with_island(tmp_path / "m.onnx"))
    assert [kernel.op for kernel in profile.kernels if kernel.in_float and kernel.name == "stem.relu"] == ["Elu"]
    assert any("no 8-bit Elu kernel" in operator.reason for operator in profile.float_operators)


def test_a_float_network_has_kernels_and_no_islands(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], name="only")], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "f.onnx")
    profile = profile_model(tmp_path / "f.onnx")
    assert [(kernel.name, kernel.op, kernel.share) for kernel in profile.kernels] == [("only", "Relu", 1.0)]
    assert profile.float_operators == ()


def test_bench_prints_the_slowest_kernels_and_the_islands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = with_island(tmp_path / "m.onnx")
    words = ["bench", str(path), "--threads", "1", "--runs", "3", "--profile"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert f"the slowest {SLOWEST} of " in out
    assert "float: Elu 'stem.relu': " in out
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["profile"]["slowest"]) == SLOWEST
    assert "stem.relu" in [operator["name"] for operator in report["profile"]["float_ops"]]
    assert "profile" not in json.loads(_without_profile(words, capsys))


def _without_profile(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([word for word in words if word != "--profile"] + ["--json"]) == 0
    return capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_session_with_more_weights_takes_more_memory(tmp_path: Path) -> None:
    sizes = []
    for count in (1, 8):
        weights = np.random.default_rng(0).normal(size=(512, 512 * count)).astype(np.float32)  # 1 MB and 8 MB
        values = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 512]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 512 * count]),
        ]
        constant = onnx.numpy_helper.from_array(weights, "w")
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [constant]
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.save(model, tmp_path / "m.onnx")
        memory = session_memory_mb(tmp_path / "m.onnx", "x", np.ones((1, 512), np.float32), 1)
        assert memory is not None
        sizes.append(memory)
    assert sizes[1] > sizes[0] + 7


def test_memory_that_cannot_be_measured_is_none(tmp_path: Path) -> None:
    assert session_memory_mb(tmp_path / "none.onnx", "x", np.ones(1, np.float32), 1) is None
