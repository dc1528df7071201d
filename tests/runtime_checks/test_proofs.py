"""The static proofs: their bounds are met exactly, one step further they fail."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from qdq_builder import Builder, small_network

from gdfq_export.runtime_checks.proofs import Proof, holds, pair_extremes, prove
from gdfq_export.runtime_checks.reference import reference_graph
from gdfq_export.runtime_checks.shapes import known_shapes


def proofs_of(model: onnx.ModelProto) -> list[Proof]:
    return prove(model, reference_graph(model), known_shapes(model))


def row(rows: list[Proof], layer: str, name: str) -> Proof:
    return next(item for item in rows if (item.layer, item.property) == (layer, name))


def sum_of(bits: int, scale: float) -> onnx.ModelProto:
    """Two convolutions of `bits` wide codes, added; zero points of 0, as behind ReLU."""
    net = Builder()
    x = net.quantize("input", "input_quantizer", 0.02, 128)
    a = net.conv(x, "a", (3, 8), bits=bits, scale=0.0378)
    b = net.conv(x, "b", (3, 8), bits=bits, scale=0.0411)
    total = net.binary("Add", a, b, "sum", scale)
    x = net.unary("GlobalAveragePool", total, "average")
    return net.model(net.gemm(net.unary("Flatten", x, "flatten"), "classifier", (8, 10)))


def with_constant(model: onnx.ModelProto, name: str, array: np.ndarray) -> onnx.ModelProto:
    tensor = next(item for item in model.graph.initializer if item.name == name)
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    return model


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(item for item in model.graph.initializer if item.name == name)).copy()


def test_a_sound_network_is_proved_in_every_layer() -> None:
    rows = proofs_of(small_network())
    assert holds(rows, "saturation", "overflow", "bias", "bias_scale", "isa")
    layers = {"stem", "block.conv1", "block.conv2", "depthwise", "classifier"}
    assert {item.layer for item in rows if item.property == "saturation"} == layers
    assert {item.layer for item in rows if item.property == "isa"} == {"block.add"}


@pytest.mark.parametrize(
    ("pair", "proved"), [((64, 64), True), ((127, 1), True), ((127, 2), False), ((-127, -2), False)]
)
def test_full_codes_allow_pair_sums_up_to_128(pair: tuple[int, int], proved: bool) -> None:
    """255 * 128 = 32640 fits int16, 255 * 129 = 32895 does not; the bound is on pairs, not on single weights."""
    model = small_network()
    weight = np.zeros_like(constant(model, "block.conv1/weight"))
    weight[3, 2:4, 1, 1] = pair  # channels 2 and 3 of one kernel position are neighbours in K
    assert (
        row(proofs_of(with_constant(model, "block.conv1/weight", weight)), "block.conv1", "saturation").proved is proved
    )


def test_weights_in_different_pairs_do_not_add() -> None:
    model = small_network()
    weight = np.zeros_like(constant(model, "block.conv1/weight"))
    weight[0, 1:3, 0, 0] = 127  # channels 1 and 2: the second of one pair and the first of the next
    weight[0, 0, 0, 1] = 127  # the next kernel position begins a new pair, because 8 channels are even
    assert row(proofs_of(with_constant(model, "block.conv1/weight", weight)), "block.conv1", "saturation").proved


def test_narrow_activations_are_safe_with_any_weights() -> None:
    rows = proofs_of(small_network(bits=7, largest=127))
    assert row(rows, "block.conv1", "saturation").proved  # 127 * 254 = 32258
    assert not row(rows, "stem", "saturation").proved  # the input has 8 bits


@settings(max_examples=50)
@given(st.lists(st.integers(-128, 127), min_size=1, max_size=9), st.integers(1, 255))
def test_pair_extremes_are_reached_by_some_codes(weights: list[int], largest: int) -> None:
    row = [*weights, *[0] * (len(weights) % 2)]
    sums = [
        x * first + y * second
        for first, second in zip(row[::2], row[1::2], strict=True)
        for x, y in itertools.product((0, largest), repeat=2)
    ]
    assert pair_extremes(np.array([weights], np.int8), largest) == (max(sums), min(sums))


@settings(max_examples=20)
@given(st.integers(0, 255), st.integers(0, 10**6))
def test_the_overflow_bound_is_the_extreme_over_all_codes(zero_point: int, seed: int) -> None:
    model = small_network(seed % 7)
    model = with_constant(model, "input_quantizer/zero_point", np.array(zero_point, np.uint8))
    found = row(proofs_of(model), "stem", "overflow").number
    weight, bias = constant(model, "stem/weight").astype(int), constant(model, "stem/bias").astype(int)
    extremes = [
        int((np.where(kernel > 0, high, low) * kernel).sum()) + int(b)
        for kernel, b in zip(weight, bias, strict=True)
        for low, high in ((-zero_point, 255 - zero_point), (255 - zero_point, -zero_point))
    ]
    assert abs(found) == max(map(abs, extremes))


def test_a_sum_of_narrow_codes_is_judged_on_the_codes_that_can_occur() -> None:
    """Pairs on which the instruction sets differ need codes above 15, which a Clip to 4 bits keeps away."""
    scales = np.linspace(0.04, 0.06, 20)
    verdicts = {
        bits: [row(proofs_of(sum_of(bits, float(scale))), "sum", "isa").number for scale in scales] for bits in (4, 8)
    }
    differing = [(narrow, wide) for narrow, wide in zip(verdicts[4], verdicts[8], strict=True) if wide]
    assert differing
    assert any(narrow == 0 for narrow, _ in differing)
    assert all(narrow < wide for narrow, wide in differing)
