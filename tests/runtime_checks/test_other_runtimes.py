"""Comparisons with other runtimes: the numbers where the difference is known, and what is said when one is missing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from qdq_builder import Builder, seal, small_network

from gdfq_export.runtime_checks import other_runtimes
from gdfq_export.runtime_checks.errors import CheckError, UnsupportedGraphError
from gdfq_export.runtime_checks.graph import Array
from gdfq_export.runtime_checks.layers import layers_of
from gdfq_export.runtime_checks.other_runtimes import RUNTIMES, compare_runtime, output_step
from gdfq_export.runtime_checks.reference import reference_graph
from gdfq_export.runtime_checks.runtimes.answer import Answer, joined
from gdfq_export.runtime_checks.sessions import Session


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("sealed") / "net.onnx"
    onnx.save(seal(small_network()), file)
    return file


def has_ort_web() -> bool:
    node = shutil.which("node")
    command = [node or "", "-e", "require.resolve('onnxruntime-web', {paths: [process.cwd()]})"]
    return node is not None and subprocess.run(command, capture_output=True).returncode == 0


def with_answer(monkeypatch: pytest.MonkeyPatch, change: tuple[int, int, float] | None) -> None:
    """A runtime `fake` that is ONNX Runtime itself, but for (image, output, difference)."""

    def run(model: onnx.ModelProto, feeds: Array) -> Answer:
        session = Session(model)
        outputs = joined([session.run(feed[None]) for feed in feeds])
        if change is not None:
            image, index, difference = change
            outputs["logits"][image, index] += np.float32(difference)
        return Answer("1", "as is", outputs)

    monkeypatch.setattr(other_runtimes, "RUNTIMES", {"fake": run})


def test_a_runtime_that_agrees_has_no_mismatch_and_full_agreement(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_answer(monkeypatch, None)
    result = compare_runtime(path, "fake", 5)
    assert (result.images, result.elements) == (5, 50)
    assert (result.mismatches, result.max_steps, result.max_difference) == (0, 0, 0.0)
    assert result.top1_agreement == 100.0


def test_one_output_moved_by_three_steps_is_one_mismatch_of_three_steps(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_answer(monkeypatch, None)
    step = compare_runtime(path, "fake", 1).step
    with_answer(monkeypatch, (2, 4, 3 * step))
    result = compare_runtime(path, "fake", 5)
    assert (result.mismatches, result.max_steps) == (1, 3)
    assert result.max_difference == pytest.approx(3 * step, rel=0.01)  # float32 sums round


def test_one_class_changed_in_four_images_is_an_agreement_of_75_percent(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(model: onnx.ModelProto, feeds: Array) -> Answer:
        logits = np.concatenate([Session(model).run(feed[None])["logits"] for feed in feeds])
        logits[3, (logits[3].argmax() + 1) % 10] += 1e4
        return Answer("1", "as is", {"logits": logits})

    monkeypatch.setattr(other_runtimes, "RUNTIMES", {"fake": run})
    assert compare_runtime(path, "fake", 4).top1_agreement == 75.0


def test_a_step_is_one_unit_of_the_last_accumulator_or_one_code() -> None:
    gemm = reference_graph(small_network())
    layers = layers_of(small_network(), gemm)
    last = layers[-1]
    expected = float((last.source.scale * last.weight_params.scale).min())
    assert output_step(gemm, layers, "logits", np.zeros(1, np.float32)) == expected
    net = Builder()
    x = net.conv(net.quantize("input", "input_quantizer", 0.02, 128), "stem", (3, 4), scale=0.25)
    model = net.model(x.name, output_rank=4)
    graph = reference_graph(model)
    assert output_step(graph, layers_of(model, graph), x.name, np.zeros(1, np.float32)) == 0.25
    assert output_step(graph, [], x.codes, np.zeros(1, np.uint8)) == 1.0


def test_the_reference_evaluator_runs_the_file_and_stays_within_a_few_codes(path: Path) -> None:
    result = compare_runtime(path, "reference", 3)
    assert result.version == onnx.__version__
    assert result.images == 3
    assert result.max_difference < 0.1 * result.spread  # it rounds once more for each operator than the fused kernels
    assert result.to_json().keys() >= {"mismatches", "max_steps", "top1_agreement", "version"}


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_runs_all_layers_of_the_file_on_8_bits(path: Path) -> None:
    result = compare_runtime(path, "openvino", 3)
    assert "5 of 5 layers on 8 bits" in result.settings
    assert result.max_difference < 0.1 * result.spread


@pytest.mark.skipif(not has_ort_web(), reason="onnxruntime-web is not installed for Node")
def test_onnxruntime_web_gives_the_same_outputs(path: Path) -> None:
    result = compare_runtime(path, "ort-web", 3)
    assert result.mismatches == 0


def test_an_unknown_runtime_is_refused_with_the_known_ones(path: Path) -> None:
    with pytest.raises(CheckError, match="openvino, ort-web, reference"):
        compare_runtime(path, "tflite")
    assert list(RUNTIMES) == ["openvino", "ort-web", "reference"]


def test_a_missing_runtime_says_how_to_install_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(CheckError, match=r"pip install 'gdfq-export\[openvino\]'"):
        compare_runtime(path, "openvino", 1)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CheckError, match="npm install onnxruntime-web"):
        compare_runtime(path, "ort-web", 1)


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_node_without_the_package_says_where_it_was_looked_for(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NODE_PATH", str(tmp_path))
    with pytest.raises(CheckError, match=r"run npm install onnxruntime-web in the current folder"):
        compare_runtime(path, "ort-web", 1)


def test_a_float_file_is_refused(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3, 4, 4]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "float.onnx")
    with pytest.raises(UnsupportedGraphError, match="not quantized"):
        compare_runtime(tmp_path / "float.onnx", "reference", 1)
