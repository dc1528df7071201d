"""Whole networks from PyTorch to ONNX Runtime: the file computes what the PyTorch program computes, bit by bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_networks import NETWORKS, shape_of
from stages import images, integer_logits, integer_model, run_onnx

from gdfq_export.emit import onnx_from_integer_model

WIDTHS = [(8, 8), (4, 4), (5, 3)]
FLOAT_KERNELS = {
    *("Add", "AveragePool", "Conv", "FusedConv", "FusedGemm", "Gemm", "GlobalAveragePool", "HardSigmoid", "HardSwish"),
    *("LeakyRelu", "MatMul", "MatMulIntegerToFloat", "Mul", "Neg", "QuickGelu", "Relu", "Sigmoid", "Softplus", "Sub"),
    "Tanh",
}
FLOAT_ENDING = {"softmax_end": {"Softmax"}}
INTEGER_KERNELS = {
    "plain": {"QLinearConv": 2, "QGemm": 1},
    "residual": {"QLinearConv": 6, "QLinearAdd": 2, "QGemm": 1},
    "linear_bottleneck": {"QLinearConv": 4, "QLinearAdd": 1},
    "mixed_concat": {"QLinearConcat": 1, "QLinearSigmoid": 1},
    "leaky": {"QLinearLeakyRelu": 2},
    "squeeze_excite": {"QLinearConv": 4, "QLinearMul": 1, "QLinearSigmoid": 1},
    "silu": {"QLinearSigmoid": 2, "QLinearMul": 2},
    "hard_swish": {"QLinearAdd": 3, "QLinearMul": 3, "QGemm": 2},
    "average_pools": {"QLinearAveragePool": 3},
    "shuffle": {"Gather": 1},
    "pointwise_end": {"QGemm": 1},
}


@pytest.mark.parametrize("bits", WIDTHS, ids=lambda bits: f"W{bits[0]}A{bits[1]}")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_computes_the_integers_of_the_program(name: str, bits: tuple[int, int]) -> None:
    x, model = images(shape_of(name), 16), integer_model(name, *bits)
    expected, found = integer_logits(model, x), run_onnx(onnx_from_integer_model(model), x).outputs
    if name == "softmax_end":
        # 1e-6: a softmax of equal logits, which two libraries compute in float
        assert np.allclose(found, expected, atol=1e-6)
    else:
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("bits", WIDTHS, ids=lambda bits: f"W{bits[0]}A{bits[1]}")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_passes_the_full_check(name: str, bits: tuple[int, int]) -> None:
    onnx.checker.check_model(onnx_from_integer_model(integer_model(name, *bits)), full_check=True)


@pytest.mark.parametrize("bits", WIDTHS[:2], ids=lambda bits: f"W{bits[0]}A{bits[1]}")
@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_runs_in_float(name: str, bits: tuple[int, int], tmp_path: Path) -> None:
    model = onnx_from_integer_model(integer_model(name, *bits))
    kernels = run_onnx(model, images(shape_of(name), 1), tmp_path).kernels
    assert FLOAT_KERNELS.isdisjoint(kernels)
    assert kernels.count("QuantizeLinear") == 1
    assert kernels.count("DequantizeLinear") <= 1  # of logits that a convolution or a mean rounded
    assert {"Softmax"} & set(kernels) == FLOAT_ENDING.get(name, set())


@pytest.mark.parametrize("name", INTEGER_KERNELS)
def test_the_runtime_finds_its_integer_kernels(name: str, tmp_path: Path) -> None:
    kernels = run_onnx(onnx_from_integer_model(integer_model(name, 8, 8)), images(count=1), tmp_path).kernels
    assert {kernel: kernels.count(kernel) for kernel in INTEGER_KERNELS[name]} == INTEGER_KERNELS[name]


@pytest.mark.parametrize("count", [1, 3])
def test_the_file_takes_batches_of_any_size(count: int) -> None:
    x, model = images(count=count), integer_model("shuffle", 8, 8)
    assert np.array_equal(run_onnx(onnx_from_integer_model(model), x).outputs, integer_logits(model, x))


def test_saturated_images_are_exact_too() -> None:
    x, model = images(count=4) * 100, integer_model("residual", 8, 8)
    assert np.array_equal(run_onnx(onnx_from_integer_model(model), x).outputs, integer_logits(model, x))
