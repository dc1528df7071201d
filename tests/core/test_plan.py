from __future__ import annotations

import math

import pytest
import torch
from small_networks import NETWORKS
from stages import folded

from gdfq_export.errors import UnsupportedModelError, UsageError
from gdfq_export.graph import INPUT, Graph, Node
from gdfq_export.plan import BitWidths, Plan, find_absorbed, make_plan, non_negative_tensors, quantized_part

W8A8, W4A4 = BitWidths(8, 8), BitWidths(4, 4)
SHAPE = (2, 4, 4)
CONV = {"stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}


def graph_of(*steps: tuple[str, str, tuple[str, ...]], **attributes: dict[str, object]) -> Graph:
    """Steps are name, operation and inputs; the last is the output."""
    nodes = [Node(INPUT, INPUT, (), SHAPE)]
    parameters = {}
    for name, op, inputs in steps:
        held = {}
        if op in ("conv", "linear"):
            held = {"weight": f"{name}.weight"}
            parameters[f"{name}.weight"] = torch.ones(2, 2, 1, 1)
        nodes.append(Node(name, op, inputs, SHAPE, attributes.get(name, CONV if op == "conv" else {}), held))
    return Graph(tuple(nodes), parameters, steps[-1][0])


def plan_of(*steps: tuple[str, str, tuple[str, ...]], bits: BitWidths = W8A8, **attributes: dict[str, object]) -> Plan:
    return make_plan(graph_of(*steps, **attributes), bits, (-2.0, 2.0))


@pytest.mark.parametrize("bits", [1, 9, 0, -4])
def test_widths_outside_two_to_eight_are_refused(bits: int) -> None:
    for widths in ({"weight": bits, "activation": 8}, {"weight": 8, "activation": bits}):
        with pytest.raises(UsageError, match="2 to 8") as caught:
            BitWidths(**widths)
        assert caught.value.exit_code == 2


def test_eight_bit_codes_reach_255_and_weights_127() -> None:
    plan = plan_of(("conv", "conv", (INPUT,)))
    assert plan.tensors["conv"].qmax == 255
    assert plan.weights["conv"].qmax == 127


def test_three_bit_weights_reach_3() -> None:
    plan = plan_of(("a", "conv", (INPUT,)), ("b", "conv", ("a",)), bits=BitWidths(3, 5))
    assert plan.weights["a"].qmax == 3
    assert plan.tensors["a"].qmax == 31


def test_a_relu_costs_nothing_because_the_quantizer_saturates() -> None:
    plan = plan_of(("conv", "conv", (INPUT,)), ("act", "relu", ("conv",)))
    assert plan.absorbed == {"conv": "act"}
    assert "conv" not in plan.tensors
    assert plan.tensors["act"].symmetry == "unsigned"


def test_a_clip_bounds_the_range_of_its_quantizer() -> None:
    limits = {"low": 0.0, "high": 6.0}
    plan = plan_of(("conv", "conv", (INPUT,)), ("act", "clip", ("conv",)), act=limits)
    assert (plan.tensors["act"].low, plan.tensors["act"].high) == (0.0, 6.0)


def test_an_activation_of_a_tensor_with_another_reader_is_not_absorbed() -> None:
    plan = plan_of(("conv", "conv", (INPUT,)), ("act", "relu", ("conv",)), ("sum", "add", ("conv", "act")))
    assert plan.absorbed == {}
    assert plan.tensors["act"].group == "conv"
    assert "act" not in plan.sources


@pytest.mark.parametrize("op", ["reshape", "max_pool", "mul_scalar"])
def test_an_activation_behind_moved_codes_is_not_absorbed(op: str) -> None:
    graph = graph_of(
        ("conv", "conv", (INPUT,)), ("move", op, ("conv",)), ("act", "relu", ("move",)), move={"value": 2.0}
    )
    assert find_absorbed(graph) == {}


def test_the_activation_of_the_image_itself_is_not_absorbed() -> None:
    assert find_absorbed(graph_of(("act", "relu", (INPUT,)), ("conv", "conv", ("act",)))) == {}


def test_moved_codes_share_the_range_of_their_source() -> None:
    plan = plan_of(("conv", "conv", (INPUT,)), ("pool", "max_pool", ("conv",)), ("flat", "reshape", ("pool",)))
    assert {plan.tensors[name].group for name in ("conv", "pool", "flat")} == {"conv"}
    assert plan.sources == {INPUT, "conv"}


def test_a_concat_of_unsigned_operands_joins_their_ranges() -> None:
    plan = plan_of(
        ("a", "conv", (INPUT,)),
        ("ra", "relu", ("a",)),
        ("b", "conv", (INPUT,)),
        ("rb", "relu", ("b",)),
        ("cat", "concat", ("ra", "rb")),
    )
    assert {plan.tensors[name].group for name in ("ra", "rb", "cat")} == {"ra"}
    assert "cat" not in plan.sources


def test_a_concat_of_both_signs_is_rounded_on_its_own() -> None:
    plan = plan_of(
        ("a", "conv", (INPUT,)), ("b", "conv", (INPUT,)), ("rb", "relu", ("b",)), ("cat", "concat", ("a", "rb"))
    )
    assert plan.tensors["cat"].group == "cat"
    assert "cat" in plan.sources


def test_a_concat_of_different_bounds_is_rounded_on_its_own() -> None:
    plan = plan_of(
        ("a", "conv", (INPUT,)),
        ("ra", "relu", ("a",)),
        ("b", "conv", (INPUT,)),
        ("sb", "sigmoid", ("b",)),
        ("cat", "concat", ("ra", "sb")),
    )
    assert "cat" in plan.sources


def test_a_positive_product_reads_the_same_codes_with_another_scale() -> None:
    plan = plan_of(("conv", "conv", (INPUT,)), ("half", "mul_scalar", ("conv",)), half={"value": 0.5})
    assert plan.tensors["half"].group == "conv"
    assert plan.tensors["half"].factor == 0.5
    assert "half" not in plan.sources


def test_factors_multiply_along_moved_codes() -> None:
    plan = plan_of(
        ("conv", "conv", (INPUT,)),
        ("half", "mul_scalar", ("conv",)),
        ("pool", "max_pool", ("half",)),
        ("third", "mul_scalar", ("pool",)),
        half={"value": 0.5},
        third={"value": 3.0},
    )
    assert plan.tensors["pool"].factor == 0.5
    assert plan.tensors["third"].factor == 1.5


def test_a_negative_product_is_rounded_on_its_own() -> None:
    plan = plan_of(("conv", "conv", (INPUT,)), ("turned", "mul_scalar", ("conv",)), turned={"value": -0.5})
    assert "turned" in plan.sources
    assert plan.tensors["turned"].factor == 1.0


def test_a_residual_sum_has_a_range_of_its_own() -> None:
    plan = plan_of(("a", "conv", (INPUT,)), ("b", "conv", ("a",)), ("sum", "add", ("a", "b")))
    assert len({plan.tensors[name].group for name in ("a", "b", "sum")}) == 3


def test_a_sigmoid_lies_between_0_and_1() -> None:
    spec = plan_of(("conv", "conv", (INPUT,)), ("gate", "sigmoid", ("conv",))).tensors["gate"]
    assert (spec.low, spec.high, spec.symmetry) == (0.0, 1.0, "unsigned")


def test_the_image_lies_between_black_and_white() -> None:
    spec = plan_of(("conv", "conv", (INPUT,))).tensors[INPUT]
    assert (spec.low, spec.high, spec.symmetry) == (-2.0, 2.0, "affine")


def test_logits_of_a_linear_layer_are_not_rounded() -> None:
    plan = plan_of(("conv", "conv", (INPUT,)), ("fc", "linear", ("conv",)))
    assert "fc" not in plan.tensors
    assert "fc" in plan.weights


def test_logits_that_are_rounded_keep_8_bits() -> None:
    plan = plan_of(("a", "conv", (INPUT,)), ("b", "conv", ("a",)), ("mean", "global_avg_pool", ("b",)), bits=W4A4)
    assert [plan.tensors[name].bits for name in (INPUT, "a", "b", "mean")] == [8, 4, 4, 8]


def test_the_image_keeps_the_8_bits_of_its_pixels_unless_told_otherwise() -> None:
    steps = (("a", "conv", (INPUT,)), ("b", "conv", ("a",)))
    assert plan_of(*steps, bits=W4A4).tensors[INPUT].bits == 8
    assert plan_of(*steps, bits=BitWidths(4, 4, image=4)).tensors[INPUT].bits == 4


def test_residual_sums_take_their_own_width() -> None:
    steps = (
        ("a", "conv", (INPUT,)),
        ("b", "conv", ("a",)),
        ("first", "add", ("a", "b")),
        ("relu", "relu", ("first",)),
        ("second", "add", ("relu", "a")),
        ("mean", "global_avg_pool", ("second",)),
        ("fc", "linear", ("mean",)),
    )
    plan = plan_of(*steps, bits=BitWidths(4, 3, sums=8))
    assert [plan.tensors[name].bits for name in ("a", "b", "relu", "second", "mean")] == [3, 3, 8, 8, 3]


def test_a_step_inside_an_activation_keeps_8_bits_and_what_layers_read_does_not() -> None:
    steps = (
        ("a", "conv", (INPUT,)),
        ("leaky", "leaky_relu", ("a",)),
        ("b", "conv", ("leaky",)),
        ("gate", "sigmoid", ("b",)),
        ("silu", "mul", ("b", "gate")),
        ("c", "conv", ("silu",)),
        ("mean", "global_avg_pool", ("c",)),
        ("other", "sigmoid", ("c",)),
        ("sum", "add", ("mean", "other")),
        ("fc", "linear", ("sum",)),
    )
    plan = plan_of(*steps, bits=BitWidths(4, 4))
    inside, read = ("a", "b", "gate"), ("leaky", "silu", "c", "other", "mean", "sum")
    assert [plan.tensors[name].bits for name in inside] == [8, 8, 8]
    assert [plan.tensors[name].bits for name in read] == [4] * len(read)
    assert "no layer reads it" in plan.tensors["a"].reason
    assert "no layer reads it" not in plan.tensors["c"].reason


def test_codes_that_move_to_a_layer_are_not_inside_an_activation() -> None:
    steps = (
        ("a", "conv", (INPUT,)),
        ("pool", "max_pool", ("a",)),
        ("leaky", "leaky_relu", ("a",)),
        ("b", "conv", ("pool",)),
        ("c", "conv", ("leaky",)),
        ("sum", "add", ("b", "c")),
        ("fc", "linear", ("sum",)),
    )
    plan = plan_of(*steps, bits=BitWidths(4, 4))
    assert [plan.tensors[name].bits for name in ("a", "pool", "b", "c")] == [4, 4, 4, 4]


def test_first_and_last_layer_take_their_own_width() -> None:
    steps = (("a", "conv", (INPUT,)), ("b", "conv", ("a",)), ("c", "conv", ("b",)), ("fc", "linear", ("c",)))
    plan = plan_of(*steps, bits=BitWidths(4, 3, first_last=8))
    assert [plan.weights[name].bits for name in ("a", "b", "c", "fc")] == [8, 4, 4, 8]
    assert [plan.tensors[name].bits for name in (INPUT, "a", "b", "c")] == [8, 3, 3, 8]


def test_a_softmax_behind_the_logits_is_not_quantized() -> None:
    graph = folded("softmax_end")
    nodes, last = quantized_part(graph)
    assert graph[last].op == "linear"
    assert "softmax" not in {node.op for node in nodes}
    assert graph.output not in make_plan(graph, W8A8).tensors


def test_non_negative_tensors_stay_so_through_sums_and_means() -> None:
    graph = graph_of(
        ("a", "conv", (INPUT,)),
        ("ra", "relu", ("a",)),
        ("sum", "add", ("ra", "ra")),
        ("mean", "global_avg_pool", ("sum",)),
        ("less", "add_scalar", ("mean",)),
        less={"value": -1.0},
    )
    assert non_negative_tensors(graph) == {"ra", "sum", "mean"}


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="nothing to quantize"):
        plan_of(("act", "relu", (INPUT,)))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_is_planned_absorbed_or_the_logits(name: str) -> None:
    graph = folded(name)
    plan = make_plan(graph, W8A8, (-2.0, 2.0))
    nodes, last = quantized_part(graph)
    left = {node.name for node in nodes} - plan.tensors.keys() - plan.absorbed.keys()
    assert left <= {last}


@pytest.mark.parametrize("name", NETWORKS)
def test_members_of_a_group_agree_on_bits_and_sign(name: str) -> None:
    for members in make_plan(folded(name), W4A4, (-2.0, 2.0)).groups().values():
        assert len({(spec.bits, spec.symmetry) for spec in members}) == 1


@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_member_of_a_group_is_its_name(name: str) -> None:
    for group, members in make_plan(folded(name), W8A8).groups().items():
        assert members[0].name == group


@pytest.mark.parametrize("name", NETWORKS)
def test_what_moves_codes_has_a_source_in_its_group(name: str) -> None:
    plan = make_plan(folded(name), W8A8)
    for group, members in plan.groups().items():
        assert group in plan.sources, [spec.name for spec in members]


def test_the_table_has_a_row_for_each_tensor_and_two_for_each_layer() -> None:
    plan = plan_of(("conv", "conv", (INPUT,)), ("act", "relu", ("conv",)), bits=W4A4)
    kinds = [row[:3] for row in plan.rows()]
    expected = [(INPUT, "tensor", 8), ("act", "tensor", 8), ("conv", "weight", 4), ("conv", "bias", 32)]
    assert kinds == expected


def test_every_row_of_the_table_has_a_reason() -> None:
    assert all(row[-1] for name in NETWORKS for row in make_plan(folded(name), W8A8).rows())


def test_without_pixels_the_image_has_no_bounds() -> None:
    assert make_plan(folded("plain"), W8A8).tensors[INPUT].high == math.inf
