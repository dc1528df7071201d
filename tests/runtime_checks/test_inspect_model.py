"""inspect: bits, parameters and kernels of each operator; the command's streams and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from qdq_builder import seal, small_network

from gdfq_export.cli.app import main
from gdfq_export.runtime_checks.inspect import inspect_model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(seal(small_network(bits=4, largest=7)), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def in_float(tmp_path: Path) -> Path:
    """The same network with a classifier that stays in float."""
    model = small_network()
    model.graph.node.remove(next(node for node in model.graph.node if node.name == "classifier.bias"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(10, np.float32), "classifier.bias"))
    onnx.save(model, tmp_path / "float.onnx")
    return tmp_path / "float.onnx"


def test_each_operator_is_listed_with_its_bits_parameters_and_kernel(path: Path) -> None:
    nodes = {node["name"]: node for node in inspect_model(path).to_json()["nodes"]}
    assert nodes["block.conv1"] == {
        "name": "block.conv1",
        "op": "Conv",
        "kernel": "QLinearConv",
        "integer": True,
        "bits": {"weight": 4, "activation": 4},
        "scale": 0.03125,
        "zero_point": 0,
    }
    assert nodes["block.add"]["kernel"] == "QLinearAdd"
    assert nodes["block.add"]["bits"] == {"weight": None, "activation": 8}
    assert nodes["classifier"]["kernel"] == "QGemm"


def test_the_report_has_the_keys_of_the_contract(path: Path) -> None:
    report = inspect_model(path).to_json()
    assert {"nodes", "integer_ops", "float_ops", "file_bytes"} <= set(report)
    assert report["float_ops"] == []
    assert report["file_bytes"] == path.stat().st_size
    assert {"stem", "block.conv1", "block.conv2", "block.add", "depthwise", "classifier"} <= set(report["integer_ops"])
    assert report["provenance"]["target"] == "portable"


def test_a_float_bias_that_the_runtime_quantizes_is_a_warning(tmp_path: Path) -> None:
    model = small_network()
    model.graph.node.remove(next(node for node in model.graph.node if node.name == "stem.bias"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(8, np.float32), "stem.bias"))
    onnx.save(model, tmp_path / "model.onnx")
    assert inspect_model(tmp_path / "model.onnx").warnings == (
        "Conv 'stem': ONNX Runtime quantizes its float bias when it loads the file",
    )


def test_assert_integer_passes_for_integers_and_exits_with_1_for_floats(path: Path, in_float: Path) -> None:
    assert main(["inspect", str(path), "--assert-integer"]) == 0
    assert main(["inspect", str(in_float), "--assert-integer"]) == 1
    assert main(["inspect", str(in_float)]) == 0


def test_json_is_exactly_one_object(in_float: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(in_float), "--json", "--assert-integer"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["float_ops"] == [{"name": "classifier", "op": "Gemm", "tensor": "logits", "reason": "float bias"}]


def test_the_table_names_the_float_operator_and_why(in_float: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", str(in_float)])
    assert "float: Gemm 'classifier': float bias" in capsys.readouterr().out


def test_a_missing_file_is_one_sentence_and_exit_code_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "nothing.onnx")]) == 4
    assert capsys.readouterr().err.strip().endswith("nothing.onnx: no such file")
