"""What the runtime fuses: the statements of docs/ort-arithmetic.md, and the reasons that are told where it does not."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from qdq_builder import Builder, small_network

from gdfq_export.runtime_checks.coverage import Coverage, coverage_of
from gdfq_export.runtime_checks.errors import UnsupportedGraphError

UINT8 = TensorProto.UINT8
RUNTIME = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])


def reasons(coverage: Coverage) -> dict[str, str]:
    return {operator.op: operator.reason for operator in coverage.float_operators}


def classifier(op: str, *, zero_point: bool, quantized: bool) -> onnx.ModelProto:
    net = Builder()
    x = net.unary("GlobalAveragePool", net.quantize("input", "in", 0.02, 3), "average", 0.013)
    x = net.unary("Flatten", x, "flat")
    net.constant("w", net.rng.integers(-9, 10, (3, 4)).astype(np.int8))
    net.constant("sw", np.full(4, 0.01, np.float32))
    net.constant("zw", np.zeros(4, np.int8))
    weight = net.node("DequantizeLinear", ["w", "sw", "zw"][: 3 if zero_point else 2], "weight", axis=1)
    y = net.node(op, [x.name, weight], "sum", "layer")
    if not quantized:
        return net.model(y)
    return net.model(net.quantize(y, "out", 0.05).codes, output_type=UINT8)


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize(
    ("op", "zero_point", "fused"), [("Gemm", True, True), ("Gemm", False, False), ("MatMul", False, True)]
)
def test_a_gemm_needs_the_zero_point_of_its_weight(op: str, zero_point: bool, fused: bool, quantized: bool) -> None:
    coverage = coverage_of(classifier(op, zero_point=zero_point, quantized=quantized))
    assert (coverage.float_operators == ()) is fused
    if not fused:
        assert "no zero point, which QGemm needs" in reasons(coverage)["Gemm"]


@pytest.mark.parametrize("op", ["MaxPool", "Flatten", "Transpose"])
def test_moving_codes_needs_both_zero_points(op: str) -> None:
    net = Builder()
    x = net.quantize("input", "in", 0.02, 0)
    y = net.unary(op, x, "layer", **({"kernel_shape": [2, 2]} if op == "MaxPool" else {}))
    model = net.model(y.codes, output_type=UINT8, output_rank=2 if op == "Flatten" else 4)
    assert not coverage_of(model).float_operators
    next(node for node in model.graph.node if node.output[0] == x.name).input.pop()
    assert "has no zero point" in reasons(coverage_of(model))[op]


def test_a_bias_added_in_float_behind_a_matmul_makes_a_float_gemm() -> None:
    model = classifier("MatMul", zero_point=True, quantized=False)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "bias"))
    model.graph.node.append(helper.make_node("Add", ["sum", "bias"], ["shifted"], name="shift"))
    model.graph.output[0].name = "shifted"
    assert "merges it with the operator before it into a float Gemm" in reasons(coverage_of(model))["Add"]


@pytest.mark.parametrize(
    ("low", "high", "fused"),
    [(0.0, None, True), (0.0, 1e30, True), (-1.0, 8.0, True), (0.0, 3.0, False), (0.5, None, False)],
)
def test_a_clip_fuses_where_the_codes_saturate_first(low: float, high: float | None, fused: bool) -> None:
    net = Builder()
    y = net.conv(net.quantize("input", "in", 0.02, 128), "layer", (3, 8), scale=1 / 32)  # codes reach 0 to 7.97
    clip = next(node for node in net.nodes if node.op_type == "Relu")
    clip.op_type = "Clip"
    clip.input.append(net.constant("low", np.float32(low)))
    if high is not None:
        clip.input.append(net.constant("high", np.float32(high)))
    coverage = coverage_of(net.model(y.codes, output_type=UINT8, output_rank=4))
    assert (coverage.float_operators == ()) is fused
    if not fused:
        assert "cuts inside the range" in reasons(coverage)["Conv"]


@pytest.mark.parametrize(("size", "reason"), [(1, r"has the shape [1]"), (8, "a scale for each channel")])
def test_an_add_whose_scale_is_no_scalar_is_refused_or_told(size: int, reason: str) -> None:
    """Up to 1.31 the runtime does not load such a file; from 1.32 on it loads it and adds in float."""
    model = small_network()
    for name in ("block.add/scale", "block.add/zero_point"):
        tensor = next(item for item in model.graph.initializer if item.name == name)
        array = np.repeat(onnx.numpy_helper.to_array(tensor), size)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))
    if RUNTIME < (1, 32):
        with pytest.raises(UnsupportedGraphError, match="does not load the model"):
            coverage_of(model)
    else:
        assert reason in reasons(coverage_of(model))["Add"]


def test_rescaling_codes_without_an_operator_runs_in_float() -> None:
    net = Builder()
    x = net.conv(net.quantize("input", "in", 0.02, 128), "layer", (3, 8))
    y = net.quantize(x.name, "other", 0.04)
    coverage = coverage_of(net.model(y.codes, output_type=UINT8, output_rank=4))
    assert "differs from that of the QuantizeLinear behind it" in reasons(coverage)["DequantizeLinear"]


def test_space_to_depth_has_no_integer_kernel_and_depth_to_space_has() -> None:
    found = {}
    for op in ("SpaceToDepth", "DepthToSpace"):
        net = Builder()
        y = net.unary(op, net.quantize("input", "in", 0.02, 3), "layer", zero=3, blocksize=2)
        coverage = coverage_of(net.model(y.codes, (4, 8, 8), output_type=UINT8, output_rank=4))
        found[op] = coverage.float_operators == ()
    assert found == {"SpaceToDepth": False, "DepthToSpace": True}
