"""verify_model as a whole: what passes, what it reports, and how it treats batches, levels and memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from qdq_builder import Builder, seal, small_network

from gdfq_export.runtime_checks.compare import Difference, compare
from gdfq_export.runtime_checks.errors import CheckError
from gdfq_export.runtime_checks.profile import profiled_kernels
from gdfq_export.runtime_checks.verify import verify_model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(seal(small_network()), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_a_sound_portable_file_passes_with_every_key_of_the_contract(path: Path) -> None:
    report = verify_model(path, samples=5, levels=("all", "basic", "disabled")).to_json()
    assert json.loads(json.dumps(report)) == report
    assert report["passed"]
    assert set(report["levels"]) == {"all", "basic", "disabled"}
    for level in report["levels"].values():
        assert {"tensors", "elements", "mismatches", "max_steps"} <= set(level)
    assert report["levels"]["all"]["mismatches"] == report["levels"]["all"]["max_steps"] == 0
    assert report["float_ops"] == []
    assert all(report[key] for key in ("saturation_safe", "overflow_safe", "isa_invariant"))
    assert report["samples"] == 5
    assert report["runtime"]["level"] == "all"
    assert report["golden"] == {"elements": 20, "mismatches": 0, "max_steps": 0}


def test_other_levels_drift_and_do_not_fail_the_file(path: Path) -> None:
    result = verify_model(path, samples=24, levels=("basic",))
    assert set(result.levels) == {"all", "basic"}
    assert result.levels["basic"].total.mismatches > 0
    assert result.passed


def test_every_quantized_tensor_and_the_output_are_compared(path: Path) -> None:
    result = verify_model(path, samples=3)
    model = onnx.load(path)
    quantized = {node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert {item.name for item in result.levels["all"].tensors} == quantized | {"logits"}


def test_inputs_and_outputs_are_those_of_the_plain_model(path: Path) -> None:
    result = verify_model(path, samples=11)
    assert result.inputs.shape == (11, 3, 12, 12)
    assert result.outputs["logits"].shape == (11, 10)
    again = verify_model(path, samples=11)
    assert np.array_equal(result.outputs["logits"], again.outputs["logits"])


def test_only_portable_files_need_the_proofs(tmp_path: Path) -> None:
    model = small_network()
    scale = next(item for item in model.graph.initializer if item.name == "stem/bias_scale")
    scale.CopyFrom(numpy_helper.from_array(1.01 * numpy_helper.to_array(scale), scale.name))  # no kernel looks at it
    onnx.save(seal(model, target="x86-vnni"), tmp_path / "vnni.onnx")
    onnx.save(seal(model), tmp_path / "portable.onnx")
    onnx.save(model, tmp_path / "unknown.onnx")
    verdicts = [verify_model(tmp_path / f"{name}.onnx", samples=2) for name in ("vnni", "portable", "unknown")]
    assert [result.passed for result in verdicts] == [True, False, True]
    assert not any(result.to_json()["overflow_safe"] for result in verdicts)


def test_progress_counts_images(path: Path) -> None:
    seen: list[tuple[int, int]] = []
    verify_model(path, samples=10, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(8, 10), (10, 10)]


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_is_filled_up(batch: int, tmp_path: Path) -> None:
    model = small_network()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(model, tmp_path / "model.onnx")
    result = verify_model(tmp_path / "model.onnx", samples=6)
    assert result.passed
    assert result.outputs["logits"].shape == (6, 10)


def test_an_unknown_level_is_named(path: Path) -> None:
    with pytest.raises(CheckError, match="'most'"):
        verify_model(path, levels=("most",))


def test_the_optimized_graph_is_what_the_profile_shows(path: Path) -> None:
    model = onnx.load(path)
    result = verify_model(path, samples=1)
    ran = profiled_kernels(model, result.inputs)
    kernels = [kernel.op for kernel in result.coverage.kernels]
    assert sum(ran.values()) == len(kernels)
    assert all(kernels.count(op) == count for op, count in ran.items())


def test_a_float_bias_is_quantized_by_the_runtime_and_its_integers_still_match(tmp_path: Path) -> None:
    model = small_network()
    bias = next(node for node in model.graph.node if node.name == "stem.bias")
    model.graph.node.remove(bias)
    values = np.random.default_rng(0).normal(0, 0.3, 8).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(values, "stem.bias"))
    onnx.save(model, tmp_path / "model.onnx")
    result = verify_model(tmp_path / "model.onnx", samples=6)
    assert result.levels["all"].total.mismatches == 0
    assert not result.coverage.float_operators


def test_normalisation_before_the_network_and_softmax_behind_it_are_no_float_operators(tmp_path: Path) -> None:
    net = Builder()
    net.constant("mean", np.full((1, 3, 1, 1), 120, np.float32))
    net.constant("deviation", np.full((1, 3, 1, 1), 60, np.float32))
    pixels = net.node("Cast", ["input"], "pixels", to=TensorProto.FLOAT)
    centred = net.node("Sub", [pixels, "mean"], "centred")
    x = net.quantize(net.node("Div", [centred, "deviation"], "normalised"), "in", 0.02, 100)
    x = net.unary("GlobalAveragePool", net.conv(x, "conv", (3, 8)), "average", 0.0137)
    net.gemm(net.unary("Flatten", x, "flat"), "classifier", (8, 10))
    net.node("Softmax", ["logits"], "probabilities")
    model = net.model("probabilities", input_type=TensorProto.UINT8)
    onnx.save(model, tmp_path / "model.onnx")
    result = verify_model(tmp_path / "model.onnx", samples=9)
    assert result.passed
    assert not result.coverage.float_operators
    assert {item.name for item in result.levels["all"].tensors if item.in_float} == {"in.codes", "probabilities"}


def test_files_in_qoperator_form_are_verified_as_well(tmp_path: Path) -> None:
    constants = {
        "sx": np.float32(0.02),
        "zx": np.uint8(128),
        "w": np.random.default_rng(0).integers(-60, 61, (8, 3, 3, 3)).astype(np.int8),
        "sw": np.random.default_rng(1).uniform(0.001, 0.003, 8).astype(np.float32),
        "zw": np.zeros(8, np.int8),
        "sy": np.float32(0.03),
        "zy": np.uint8(10),
        "b": np.arange(8, dtype=np.int32) * 50,
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "sx", "zx"], ["x"]),
        helper.make_node("QLinearConv", ["x", "sx", "zx", "w", "sw", "zw", "sy", "zy", "b"], ["y"], pads=[1] * 4),
        helper.make_node("DequantizeLinear", ["y", "sy", "zy"], ["output"]),
    ]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 9, 9])]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 8, 9, 9])]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, initializers), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    onnx.save(model, tmp_path / "model.onnx")
    result = verify_model(tmp_path / "model.onnx", samples=6)
    assert result.kind == "QOperator"
    assert result.passed
    assert {item.name for item in result.levels["all"].tensors} == {"x", "y", "output"}


def test_differences_count_codes_and_units_in_the_last_place() -> None:
    assert compare(np.array([1, 2, 255], np.uint8), np.array([1, 5, 0], np.uint8)) == Difference(3, 2, 255)
    one = np.array([1.0, 0.0, np.nan], np.float32)
    assert compare(one, one.copy()) == Difference(3)
    assert compare(one[:2], np.nextafter(one[:2], np.float32(2))) == Difference(2, 2, 1)
    assert compare(np.zeros(3, np.float32), np.zeros(4, np.float32)).mismatches == 4


@pytest.mark.parametrize("shape", [(3, 9, 3), (3, 3, 3), (3, 12, 1)])
def test_images_as_narrow_as_they_have_channels_are_verified(shape: tuple[int, int, int], tmp_path: Path) -> None:
    net = Builder()
    x = net.conv(net.quantize("input", "input_quantizer", 0.02, 128), "stem", (3, 8))
    x = net.unary("Flatten", net.unary("GlobalAveragePool", x, "average", scale=float(x.scale) * 0.7137), "flatten")
    onnx.save(seal(net.model(net.gemm(x, "classifier", (8, 10)), shape), shape), tmp_path / "narrow.onnx")
    result = verify_model(tmp_path / "narrow.onnx", samples=8)
    assert result.passed
    assert result.inputs.shape == (8, *shape)
