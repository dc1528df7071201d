"""Hand-computed steps of the integer program; whole networks are compared with the runtime in test_small_networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stages import folded, images, integer_model

from gdfq_export.exact import (
    IntegerProgram,
    _add,
    _global_mean,
    _mul,
    code_limits,
    dequantize,
    quantize,
    requantize_table,
)
from gdfq_export.graph import Node
from gdfq_export.integer import QTensor
from gdfq_export.program import FloatProgram


def tensor(scale: float, zero_point: int = 0, qmax: int = 255) -> QTensor:
    return QTensor(np.float32(scale), zero_point, qmax)


def test_quantizing_rounds_half_to_even_before_the_zero_point() -> None:
    x = torch.tensor([0.25, 0.75, 1.25, -0.25])
    assert quantize(x, tensor(0.5, 3)).tolist() == [3.0, 5.0, 5.0, 3.0]


def test_quantizing_saturates_at_the_width_of_the_tensor() -> None:
    assert quantize(torch.tensor([-9.0, 9.0]), tensor(0.5, 3, 15)).tolist() == [0.0, 15.0]


def test_dequantizing_takes_the_zero_point_off() -> None:
    assert dequantize(torch.tensor([0.0, 255.0]), tensor(0.5, 3)).tolist() == [-1.5, 126.0]


def test_a_sum_adds_in_the_scale_of_its_result() -> None:
    total = _add(torch.tensor([10.0]), torch.tensor([20.0]), tensor(0.5, 2), tensor(0.25, 4), tensor(1.0, 7))
    assert total.tolist() == [0.5 * 8 + 0.25 * 16 + 7]


def test_a_product_multiplies_in_the_scale_of_its_result() -> None:
    product = _mul(torch.tensor([10.0]), torch.tensor([20.0]), tensor(0.5, 2), tensor(0.25, 4), tensor(1.0, 7))
    assert product.tolist() == [0.5 * 8 * 0.25 * 16 + 7]


def test_a_product_rounds_after_its_zero_point() -> None:
    product = _mul(torch.tensor([1.0]), torch.tensor([1.0]), tensor(0.5), tensor(1.0), tensor(1.0, 1))
    assert product.tolist() == [2.0]  # 0.5 + 1 rounds to 2; rounding 0.5 first would give 1


def test_a_mean_counts_the_zero_point_of_every_pixel() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 6.0]).reshape(1, 1, 2, 2)
    assert _global_mean(x, tensor(1.0, 1), tensor(0.5, 10)).item() == 14.0  # mean 3 - 1 = 2, in steps of 0.5


def test_a_table_maps_each_code_to_the_nearest_code_of_another_scale() -> None:
    table = requantize_table(tensor(0.5, 10), tensor(0.25, 3, 15))
    assert table[[9, 10, 11, 20]].tolist() == [1.0, 3.0, 5.0, 15.0]


@pytest.mark.parametrize(
    ("op", "attributes", "expected"),
    [
        ("relu", {}, (10, 255)),
        ("clip", {"low": -1.0, "high": 6.0}, (8, 22)),
        ("clip", {"low": 0.0, "high": 1e9}, (10, 255)),
    ],
)
def test_limits_of_an_activation_are_codes(op: str, attributes: dict[str, float], expected: tuple[int, int]) -> None:
    assert code_limits(Node("n", op, ("x",), (1,), attributes), tensor(0.5, 10)) == expected


@pytest.mark.parametrize("name", ["residual", "mixed_concat", "hard_swish", "average_pools"])
def test_every_tensor_holds_codes_of_its_width(name: str) -> None:
    model = integer_model(name, 8, 8)
    seen = {}
    with torch.no_grad():
        IntegerProgram(model).run_codes(images(), lambda tensor, codes: seen.__setitem__(tensor, codes))
    for tensor_name, codes in seen.items():
        if tensor_name in model.tensors:
            assert torch.equal(codes, codes.round())
            assert codes.min() >= 0
            assert codes.max() <= model.tensors[tensor_name].qmax


def test_visit_sees_every_planned_tensor() -> None:
    model, seen = integer_model("concat", 8, 8), []
    with torch.no_grad():
        IntegerProgram(model).run_codes(images(count=1), lambda name, codes: seen.append(name))
    assert set(model.tensors) <= set(seen)


def test_the_program_has_no_parameters() -> None:
    assert not list(IntegerProgram(integer_model("plain", 8, 8)).parameters())


def test_an_image_does_not_depend_on_its_batch() -> None:
    program, x = IntegerProgram(integer_model("residual", 8, 8)), images(count=4)
    with torch.no_grad():
        assert torch.equal(program(x)[2:3], program(x[2:3]))


def test_a_wide_accumulator_is_summed_in_float64() -> None:
    program = IntegerProgram(integer_model("plain", 8, 8))
    layer = next(iter(program.layers.values()))
    assert layer.kind == (torch.float64 if layer.wide else torch.float32)


def test_the_integer_network_is_near_the_float_network() -> None:
    x = images()
    with torch.no_grad():
        expected, found = FloatProgram(folded("silu"))(x), IntegerProgram(integer_model("silu", 8, 8))(x)
    # 0.05 of logits near 0.5: a few of 255 steps in each of a dozen tensors
    assert (expected - found).abs().max() < 0.05
