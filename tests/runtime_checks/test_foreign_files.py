"""Files of other quantizers: which operators run in float and why, and that their integers are verified."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from gdfq_export.cli import main
from gdfq_export.runtime_checks.inspect import inspect_model
from gdfq_export.runtime_checks.verify import verify_model

UINT8 = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
SHAPE = (3, 12, 12)
SAFE = {"reduce_range": True}  # weights of 7 bits: with 8 these files saturate on x86 without VNNI


def images() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"input": rng.normal(0, 1, (1, *SHAPE)).astype(np.float32)} for _ in range(4)]


class Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.feeds = iter(images())

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stem -> two convolutions added to their input -> average -> classifier, with biases."""
    rng = np.random.default_rng(0)
    constants: dict[str, np.ndarray] = {}

    def conv(x: str, name: str, inputs: int, outputs: int) -> onnx.NodeProto:
        constants[f"{name}.weight"] = rng.normal(0, 0.2, (outputs, inputs, 3, 3)).astype(np.float32)
        constants[f"{name}.bias"] = rng.normal(0, 0.2, outputs).astype(np.float32)
        return helper.make_node(
            "Conv", [x, f"{name}.weight", f"{name}.bias"], [f"{name}.sum"], name=name, kernel_shape=[3, 3], pads=[1] * 4
        )

    constants["head.weight"] = rng.normal(0, 0.3, (10, 8)).astype(np.float32)
    constants["head.bias"] = rng.normal(0, 0.3, 10).astype(np.float32)
    nodes = [
        conv("input", "stem", 3, 8),
        helper.make_node("Relu", ["stem.sum"], ["stem.relu"], name="stem.activation"),
        conv("stem.relu", "conv1", 8, 8),
        helper.make_node("Relu", ["conv1.sum"], ["conv1.relu"], name="conv1.activation"),
        conv("conv1.relu", "conv2", 8, 8),
        helper.make_node("Add", ["conv2.sum", "stem.relu"], ["added"], name="add"),
        helper.make_node("Relu", ["added"], ["block"], name="block.activation"),
        helper.make_node("GlobalAveragePool", ["block"], ["average"], name="average_pool"),
        helper.make_node("Flatten", ["average"], ["features"], name="flatten"),
        helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["logits"], name="head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "float",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    path = tmp_path_factory.mktemp("float") / "fp32.onnx"
    onnx.save(model, path)
    return path


def quantized(fp32: Path, out: Path, **options: Any) -> Path:
    quantize_static(str(fp32), str(out), Images(), **options)
    return out


def test_the_default_of_quantize_static_leaves_convolutions_in_float_because_activations_are_signed(
    fp32: Path, tmp_path: Path
) -> None:
    result = inspect_model(quantized(fp32, tmp_path / "default.onnx"))
    found = {operator.name: operator.reason for operator in result.float_operators}
    assert found.keys() >= {"stem", "add"}
    assert all("signed activations (INT8)" in reason for reason in found.values()), found


def test_with_uint8_activations_every_operator_of_quantize_static_runs_on_integers(fp32: Path, tmp_path: Path) -> None:
    result = inspect_model(quantized(fp32, tmp_path / "uint8.onnx", **UINT8))
    assert result.kind == "QDQ"
    assert result.float_operators == ()
    kernels = Counter(node.kernel for node in result.nodes)
    assert kernels["QLinearConv"] == 3
    assert kernels["QLinearAdd"] == 1


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_files_of_quantize_static_with_uint8_are_verified_on_every_tensor(
    fp32: Path, tmp_path: Path, form: QuantFormat, per_channel: bool
) -> None:
    path = quantized(fp32, tmp_path / "q.onnx", quant_format=form, per_channel=per_channel, **SAFE, **UINT8)
    result = verify_model(path, samples=6)
    level = result.levels["all"]
    assert result.passed
    assert result.same_kernels
    assert level.total.mismatches == 0
    assert level.total.elements > 6 * 4 * 8 * 12 * 12  # the input and four maps of 8 channels
    assert not result.portable


def test_what_runs_on_integers_in_the_default_of_quantize_static_is_verified(fp32: Path, tmp_path: Path) -> None:
    result = verify_model(quantized(fp32, tmp_path / "default.onnx", **SAFE), samples=4)
    assert result.levels["all"].total.mismatches == 0
    assert result.to_json()["float_ops"]


def test_assert_integer_exits_with_1_for_the_default_and_0_for_uint8(
    fp32: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    default = quantized(fp32, tmp_path / "default.onnx")
    assert main(["inspect", str(default), "--assert-integer"]) == 1
    assert "signed activations" in capsys.readouterr().out
    assert main(["inspect", str(quantized(fp32, tmp_path / "uint8.onnx", **UINT8)), "--assert-integer"]) == 0


def test_inspect_warns_that_the_runtime_quantizes_the_float_biases_of_nncf(fp32: Path, tmp_path: Path) -> None:
    nncf = pytest.importorskip("nncf")
    model = nncf.quantize(onnx.load(fp32), nncf.Dataset(images()), subset_size=4)
    onnx.save(model, tmp_path / "nncf.onnx")
    result = inspect_model(tmp_path / "nncf.onnx")
    assert sum("float bias" in warning for warning in result.warnings) == 3
    assert [operator.name for operator in result.float_operators] == ["head"]
