from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stages import calibrated, folded, integer_model

from gdfq_export.arithmetic import is_invariant
from gdfq_export.errors import UsageError
from gdfq_export.graph import INPUT, Graph, Node
from gdfq_export.integer import IntegerModel, constant_tensor, operands_of
from gdfq_export.lower import TARGETS, Quantized, integer_model_from_quantized, with_pixel_input
from gdfq_export.plan import BitWidths, make_plan
from gdfq_export.quantizers import Affine
from gdfq_export.saturation import breaking_channels

SHAPE = (2, 3, 3)
W8A8 = BitWidths(8, 8)
WINDOW = {"stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}


def one_layer(weight: list[float], bias: float | None = None, *, bits: BitWidths = W8A8, **changes: float) -> Quantized:
    """A 1x1 convolution of two channels to one; input scale 0.5, weight scale 0.25 unless changed."""
    parameters = {"w": torch.tensor(weight).view(1, 2, 1, 1)}
    if bias is not None:
        parameters["b"] = torch.tensor([bias])
    roles = {"weight": "w"} | ({"bias": "b"} if bias is not None else {})
    nodes = (Node(INPUT, INPUT, (), SHAPE), Node("conv", "conv", (INPUT,), (1, 3, 3), WINDOW, roles))
    graph = Graph(nodes, parameters, "conv")
    affines = {INPUT: Affine(changes.get("source", 0.5), 3), "conv": Affine(1.0, 10)}
    scales = {"conv": torch.tensor([changes.get("scale", 0.25)])}
    return Quantized(graph, make_plan(graph, bits), affines, scales)


def lower(quantized: Quantized, target: str = "arm64") -> IntegerModel:
    return integer_model_from_quantized(quantized, TARGETS[target])


def operator(op: str, affines: tuple[Affine, Affine, Affine], value: float = 0.0) -> Quantized:
    """Two layers a and b, and a sum or product c of them."""
    nodes = [Node(INPUT, INPUT, (), SHAPE)]
    for name in "ab":
        nodes.append(Node(name, "conv", (INPUT,), SHAPE, WINDOW, {"weight": "w"}))
    inputs = ("a",) if op == "add_scalar" else ("a", "b")
    nodes.append(Node("c", op, inputs, SHAPE, {"value": value}))
    graph = Graph(tuple(nodes), {"w": torch.full((2, 2, 1, 1), 64.0)}, "c")
    plan = make_plan(graph, W8A8)
    groups = dict(zip("abc", affines, strict=True)) | {INPUT: Affine(0.5, 0)}
    return Quantized(graph, plan, groups, {name: torch.ones(2) for name in "ab"})


def test_weights_are_rounded_by_their_scale() -> None:
    layer = lower(one_layer([1.0, -0.7])).layers["conv"]
    assert layer.q_weight.flatten().tolist() == [4, -3]
    assert layer.q_weight.dtype == np.int8


def test_the_bias_is_rounded_by_the_product_of_both_scales() -> None:
    assert lower(one_layer([1.0, 0.5], 1.1)).layers["conv"].q_bias.tolist() == [9]


def test_a_layer_without_bias_has_a_bias_of_0() -> None:
    assert lower(one_layer([1.0, 0.5])).layers["conv"].q_bias.tolist() == [0]


def test_tensors_take_the_scale_and_zero_point_of_their_group() -> None:
    tensor = lower(one_layer([1.0, 0.5])).tensors["conv"]
    assert (float(tensor.scale), tensor.zero_point, tensor.qmax) == (1.0, 10, 255)


@pytest.mark.parametrize("target", ["portable", "x86-avx2"])
def test_targets_that_add_in_pairs_get_weights_that_cannot_saturate(target: str) -> None:
    model = lower(one_layer([30.0, 30.0]), target)
    assert not breaking_channels(model.layers["conv"].q_weight, 255).any()
    assert model.report.weights_changed == 2


@pytest.mark.parametrize("target", ["x86-vnni", "arm64"])
def test_other_targets_keep_full_weights(target: str) -> None:
    model = lower(one_layer([30.0, 30.0]), target)
    assert model.layers["conv"].q_weight.flatten().tolist() == [120, 120]
    assert model.report.weights_changed == 0


def test_a_changed_scale_changes_the_bias_with_it() -> None:
    layer = lower(one_layer([30.0, 30.0], 1000.0), "portable").layers["conv"]
    real = float(layer.q_bias[0]) * 0.5 * float(layer.scale[0])
    assert layer.scale[0] > 0.25
    assert abs(real - 1000.0) <= 0.5 * 0.5 * float(layer.scale[0])  # half a unit of the bias


def test_a_bias_that_passes_int32_raises_the_scale_of_its_channel() -> None:
    layer = lower(one_layer([2e-6, -1e-6], 100.0, scale=2e-8)).layers["conv"]
    real = float(layer.q_bias[0]) * 0.5 * float(layer.scale[0])
    assert abs(int(layer.q_bias[0])) < 2**31 - 1
    assert real == pytest.approx(100.0, rel=1e-6)  # the scale is a float32


def test_a_channel_of_zeros_keeps_its_bias() -> None:
    layer = lower(one_layer([0.0, 0.0], 3.0, scale=1e-8)).layers["conv"]
    assert float(layer.q_bias[0]) * 0.5 * float(layer.scale[0]) == pytest.approx(3.0, rel=1e-6)  # float32 scale


def test_accumulators_never_pass_int32() -> None:
    for bias in (1e3, -1e5, 1e8):
        layer = lower(one_layer([2e-6, -1e-6], bias, scale=2e-8)).layers["conv"]
        reach = np.abs(layer.q_weight.astype(np.int64)).sum() * 255 + abs(int(layer.q_bias[0]))
        assert reach <= 2**31 - 1


positive = st.floats(2.0**-9, 0.25, width=32)
code = st.integers(0, 255)


@settings(max_examples=8)
@given(positive, code, positive, code, st.floats(0.5, 4.0), code, st.sampled_from(["add", "mul"]))
def test_nudged_scales_are_the_same_on_all_instruction_sets(
    sa: float, za: int, sb: float, zb: int, ratio: float, zc: int, op: str
) -> None:
    sc = ratio * (max(sa, sb) if op == "add" else sa * sb * 100)
    model = lower(operator(op, (Affine(sa, za), Affine(sb, zb), Affine(sc, zc))))
    assert is_invariant(op, *(model.tensors[name] for name in "abc"))


@settings(max_examples=5)
@given(positive, code, st.floats(-3.0, 3.0), st.floats(0.8, 3.0), code)
def test_sums_with_a_constant_are_nudged_too(sa: float, za: int, value: float, ratio: float, zc: int) -> None:
    quantized = operator("add_scalar", (Affine(sa, za), Affine(sa, za), Affine(sa * ratio, zc)), value)
    model = lower(quantized)
    operands = operands_of(model.graph["c"], model.tensors)
    assert operands is not None
    assert is_invariant("add", *operands, model.tensors["c"])


def test_only_targets_that_need_it_are_nudged() -> None:
    rng = np.random.default_rng(3)
    draws = [tuple(Affine(float(s), 100) for s in rng.uniform(0.01, 0.1, 3)) for _ in range(10)]
    assert sum(lower(operator("add", affines)).report.scales_nudged for affines in draws) > 0
    assert sum(lower(operator("add", affines), "x86-vnni").report.scales_nudged for affines in draws) == 0


def test_a_nudge_is_small() -> None:
    rng = np.random.default_rng(4)
    draws = [tuple(Affine(float(s), 100) for s in rng.uniform(0.01, 0.1, 3)) for _ in range(10)]
    # 2 %: a hundred steps of 0.02 %; eight were the most ever seen on real networks
    assert max(lower(operator("add", affines)).report.largest_nudge for affines in draws) < 0.02


def test_a_network_whose_scales_were_nudged_has_no_sum_left_that_differs() -> None:
    model = lower(calibrated(folded("residual"), W8A8))
    for node in model.graph.of("add"):
        result = model.tensors[model.plan.absorbed.get(node.name, node.name)]
        operands = operands_of(node, model.tensors)
        assert operands is not None
        assert is_invariant("add", *operands, result)


@pytest.mark.parametrize("value", [0.1, 3.0, -0.7, 1e-3, -128.0])
def test_a_constant_is_one_code_behind_a_scale_of_its_own(value: float) -> None:
    tensor = constant_tensor(value)
    code = 255 if value >= 0 else 0
    # one rounding of the scale to float32
    assert float(tensor.scale) * (code - tensor.zero_point) == pytest.approx(value, rel=1e-7)


def test_members_of_a_group_keep_one_scale() -> None:
    model = lower(calibrated(folded("concat"), W8A8))
    for members in model.plan.groups().values():
        tensors = [model.tensors[member.name] for member in members]
        assert len({(float(tensor.scale), tensor.zero_point) for tensor in tensors}) == 1


def test_a_derived_tensor_has_the_scale_of_its_group_times_its_factor() -> None:
    model = lower(calibrated(folded("hard_swish"), W8A8))
    derived = [spec for spec in model.plan.tensors.values() if spec.factor != 1.0]
    assert derived
    for spec in derived:
        expected = np.float32(model.tensors[spec.group].scale * np.float32(spec.factor))
        assert model.tensors[spec.name].scale == expected


def test_lowering_leaves_what_it_was_given_as_it_was() -> None:
    quantized = one_layer([30.0, 30.0], 1.0)
    before = dataclasses.replace(quantized)
    lower(quantized)
    assert quantized.affines == before.affines
    assert quantized.weight_scales["conv"].tolist() == [0.25]


@pytest.mark.parametrize(("mean", "std"), [(-1e6, 1.0), (float("nan"), 1.0), (0.0, 1e-45), (0.0, 1e60)])
def test_a_normalisation_that_no_integer_layer_holds_is_refused(mean: float, std: float) -> None:
    model = integer_model("plain", 8, 8)
    with pytest.raises(UsageError, match="32-bit integers in front of the network"):
        with_pixel_input(model, (mean,) * 3, (std,) * 3)
    with_pixel_input(model, (0.5,) * 3, (1e-6,) * 3)
