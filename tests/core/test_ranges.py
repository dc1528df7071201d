from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stages import folded, images

from gdfq_export.errors import UnsupportedModelError
from gdfq_export.graph import INPUT, Graph, Node
from gdfq_export.plan import BitWidths, make_plan
from gdfq_export.program import FloatProgram
from gdfq_export.quantizers import SMALLEST_SCALE, Affine
from gdfq_export.ranges import MOMENTUM, Range, affines_from_ranges, observe

SHAPE = (1, 2, 2)
W8A8 = BitWidths(8, 8)
METHODS = ["mse", "aciq", "kl", "ema", "percentile", "learned"]


def graph_of(*steps: tuple[str, str, tuple[str, ...], dict[str, object]], weight: float = 1.0) -> Graph:
    """One 1x1 convolution called conv of the given weight, then the steps."""
    window = {"stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
    nodes = [Node(INPUT, INPUT, (), SHAPE), Node("conv", "conv", (INPUT,), SHAPE, window, {"weight": "w"})]
    nodes += [Node(name, op, inputs, SHAPE, attributes) for name, op, inputs, attributes in steps]
    return Graph(tuple(nodes), {"w": torch.full((1, 1, 1, 1), weight)}, nodes[-1].name)


def observed(graph: Graph, *batches: torch.Tensor, method: str = "ema", bits: BitWidths = W8A8) -> dict[str, Range]:
    return observe(FloatProgram(graph), make_plan(graph, bits), batches, method=method)


def batch(low: float, high: float) -> torch.Tensor:
    return torch.tensor([low, high, 0.0, 0.0]).reshape(1, *SHAPE)


def test_the_moving_average_of_one_batch_is_that_batch() -> None:
    found = observed(graph_of(), batch(-1.0, 2.0))["conv"]
    # float64 arithmetic
    assert (found.low, found.high) == pytest.approx((-1.0, 2.0), rel=1e-12)


def test_the_moving_average_weighs_later_batches_more() -> None:
    found = observed(graph_of(), batch(-1.0, 2.0), batch(-3.0, 4.0))["conv"]
    m = MOMENTUM
    expected = [(m * (1 - m) * a + (1 - m) * b) / (1 - m**2) for a, b in ((-1.0, -3.0), (2.0, 4.0))]
    # float64 arithmetic
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-12)


def test_least_error_keeps_the_whole_range_where_nothing_is_gained_by_clipping() -> None:
    x = torch.linspace(-1, 1, 4000).reshape(1000, *SHAPE)
    found = observed(graph_of(), x, method="mse")["conv"]
    assert found.low < -0.95
    assert found.high > 0.95


def test_least_error_clips_a_lonely_outlier() -> None:
    x = torch.cat([torch.linspace(-1, 1, 39_999), torch.tensor([3.0])]).reshape(10_000, *SHAPE)
    found = observed(graph_of(), x, method="mse", bits=BitWidths(8, 2, image=2))
    assert found[INPUT].high < 2.5


def test_pixels_use_all_of_their_range_at_8_bits() -> None:
    graph = graph_of()
    plan = make_plan(graph, W8A8, (-2.0, 3.0))
    assert observe(FloatProgram(graph), plan, [batch(-0.1, 0.1)], method="mse")[INPUT] == Range(-2.0, 3.0)


def test_a_found_range_never_exceeds_its_bounds() -> None:
    graph = graph_of(("act", "clip", ("conv",), {"low": 0.0, "high": 6.0}), weight=100.0)
    found = observed(graph, batch(-1.0, 1.0))["act"]
    assert (found.low, found.high) == (0.0, 6.0)


def test_an_absorbed_activation_is_observed_behind_its_clipping() -> None:
    graph = graph_of(("act", "relu", ("conv",), {}))
    assert observed(graph, batch(-5.0, 2.0))["act"].low == 0.0


def test_joined_operands_share_the_widest_of_their_ranges() -> None:
    graph = graph_of(
        ("small", "relu", ("conv",), {}),
        ("sum", "add", ("small", "small"), {}),
        ("large", "relu", ("sum",), {}),
        ("cat", "concat", ("small", "large"), {"axis": 1}),
    )
    assert observed(graph, batch(0.0, 2.0))["small"].high == pytest.approx(4.0, rel=1e-12)  # float64 arithmetic


def test_a_derived_tensor_is_measured_in_the_scale_of_its_group() -> None:
    graph = graph_of(("half", "mul_scalar", ("conv",), {"value": 0.5}))
    assert observed(graph, batch(-4.0, 2.0)).keys() == {INPUT, "conv"}


@pytest.mark.parametrize("method", METHODS)
def test_an_activation_of_zeros_has_an_empty_range(method: str) -> None:
    assert observed(graph_of(weight=0.0), batch(-4.0, 2.0), method=method)["conv"] == Range(0.0, 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_batches_may_come_from_a_generator(method: str) -> None:
    graph = graph_of()
    plan = make_plan(graph, W8A8)
    once = observe(FloatProgram(graph), plan, (batch(-1.0, 2.0) for _ in range(2)), method=method)
    assert once == observe(FloatProgram(graph), plan, [batch(-1.0, 2.0)] * 2, method=method)


def test_every_group_of_a_network_gets_a_range() -> None:
    graph = folded("hard_swish")
    plan = make_plan(graph, W8A8)
    assert observed(graph, images(count=2)).keys() == plan.groups().keys()


def test_ranges_become_scales_of_the_widths_in_the_plan() -> None:
    graph = graph_of(("act", "relu", ("conv",), {}), ("end", "conv", ("act",), {}))
    graph = Graph((*graph.nodes[:-1], dataclasses.replace(graph["conv"], name="end", inputs=("act",))), *vars_of(graph))
    plan = make_plan(graph, BitWidths(4, 4, image=4))
    ranges = {INPUT: Range(-1.0, 2.0), "act": Range(0.0, 3.0), "end": Range(-1.0, 4.1)}
    affines = affines_from_ranges(plan, ranges)
    assert affines[INPUT] == Affine(3 / 15, 5)
    assert affines["act"] == Affine(3 / 15, 0)
    assert affines["end"] == Affine(5.1 / 255, 50)


def vars_of(graph: Graph) -> tuple[object, str]:
    return graph.parameters, "end"


def test_a_range_is_judged_behind_the_function_that_alone_reads_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(2000, *SHAPE)
    plain = observed(graph_of(), x, method="mse")["conv"]
    slope = ("act", "leaky_relu", ("conv",), {"slope": 0.01})
    assert observed(graph_of(slope), x, method="mse")["conv"].low > 0.5 * plain.low
    both = observed(graph_of(slope, ("sum", "add", ("conv", "act"), {})), x, method="mse")["conv"]
    assert both == plain  # the sum reads the negative values as they are


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [1.0, -1.0, 1e-30, 1e30])
def test_a_signed_tensor_of_one_value_is_covered(method: str, value: float) -> None:
    found = observed(graph_of(), torch.full((2, *SHAPE), value), method=method)["conv"]
    affine = affines_from_ranges(make_plan(graph_of(), W8A8), {INPUT: found, "conv": found})["conv"]
    code = min(max(round(value / affine.scale) + affine.zero_point, 0), 255)
    # half a step of 255, or the smallest scale there is
    assert abs((code - affine.zero_point) * affine.scale - value) <= max(abs(value) / 255, SMALLEST_SCALE)


finite = st.floats(-(2.0**127), 2.0**127, width=32)
near = st.floats(1.0, 1.0 + 2.0**-20, width=32)
tensors = st.one_of(
    st.lists(finite, min_size=4, max_size=4),
    st.lists(near, min_size=4, max_size=4),
    st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -3e-39, 1e38]), min_size=4, max_size=4),
)


@settings(max_examples=60)
@given(tensors, st.sampled_from(METHODS), st.sampled_from(["none", "relu", "leaky_relu", "clip"]))
def test_every_method_finds_a_range_within_what_any_tensor_spans(values: list[float], method: str, act: str) -> None:
    attributes = {"slope": 0.01} if act == "leaky_relu" else {"low": -1.0, "high": 1.0} if act == "clip" else {}
    graph = graph_of() if act == "none" else graph_of(("act", act, ("conv",), attributes))
    x = torch.tensor(values).reshape(1, *SHAPE)
    program, plan = FloatProgram(graph), make_plan(graph, W8A8)
    for group, found in observed(graph, x, method=method).items():
        seen = program(x) if group == plan.tensors[graph.output].group else x
        # float64 arithmetic on float32 values
        assert min(0.0, float(seen.min())) * (1 + 1e-12) <= found.low <= found.high
        assert found.high <= max(0.0, float(seen.max())) * (1 + 1e-12) or found.high <= 0.0
    for affine in affines_from_ranges(plan, observed(graph, x, method=method)).values():
        assert 0.0 < affine.scale < float("inf")
        assert 0 <= affine.zero_point <= 255


@pytest.mark.parametrize("method", METHODS)
def test_values_that_are_not_finite_are_refused_by_the_name_of_their_tensor(method: str) -> None:
    with pytest.raises(UnsupportedModelError, match="conv"):
        observed(graph_of(weight=3e38), batch(-4.0, 2.0), method=method)
