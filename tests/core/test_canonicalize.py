from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_networks import NETWORKS
from stages import captured, images

from gdfq_export.graph import INPUT, Graph, Node
from gdfq_export.passes import canonicalize
from gdfq_export.program import FloatProgram

SHAPE = (2, 4, 4)


def chain(*steps: tuple[str, dict[str, object]], shapes: dict[int, tuple[int, ...]] | None = None) -> Graph:
    """Operations one after the other: n0, n1, ... behind the input."""
    nodes, last = [Node(INPUT, INPUT, (), SHAPE)], INPUT
    for index, (op, attributes) in enumerate(steps):
        shape = (shapes or {}).get(index, SHAPE)
        nodes.append(Node(f"n{index}", op, (last,), shape, attributes))
        last = f"n{index}"
    return Graph(tuple(nodes), {}, last)


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes[1:]]


def test_silu_is_a_product_with_a_sigmoid() -> None:
    graph = canonicalize(chain(("silu", {})))
    assert ops(graph) == ["sigmoid", "mul"]
    assert graph["n0"].inputs == (INPUT, "n0.sigmoid")


def test_hard_sigmoid_is_a_clip_divided_by_six() -> None:
    assert ops(canonicalize(chain(("hard_sigmoid", {})))) == ["add_scalar", "clip", "mul_scalar"]


def test_hard_swish_is_a_product_with_a_hard_sigmoid() -> None:
    assert ops(canonicalize(chain(("hard_swish", {})))) == ["add_scalar", "clip", "mul_scalar", "mul"]


@pytest.mark.parametrize("op", ["hard_sigmoid", "hard_swish"])
def test_hard_activations_compute_the_same_beyond_their_bends(op: str) -> None:
    x = torch.linspace(-5, 5, 32).reshape(1, *SHAPE)
    reference = {"hard_sigmoid": torch.nn.functional.hardsigmoid, "hard_swish": torch.nn.functional.hardswish}[op]
    # 1e-6: a product by 1/6 stands for a division by 6
    assert torch.allclose(FloatProgram(canonicalize(chain((op, {}))))(x), reference(x), atol=1e-6)


def test_the_last_node_keeps_its_name() -> None:
    assert canonicalize(chain(("silu", {}), ("hard_swish", {}))).output == "n1"


def test_the_last_of_two_reshapes_reads_what_the_first_read() -> None:
    graph = canonicalize(chain(("reshape", {}), ("reshape", {}), shapes={0: (8, 4), 1: (32,)}))
    assert ops(graph) == ["reshape"]
    assert graph["n1"].inputs == (INPUT,)


def test_reshapes_that_cancel_vanish() -> None:
    graph = canonicalize(chain(("reshape", {}), ("reshape", {}), ("relu", {}), shapes={0: (32,)}))
    assert ops(graph) == ["relu"]


def test_a_reshape_with_another_reader_stays() -> None:
    nodes = (
        Node(INPUT, INPUT, (), SHAPE),
        Node("flat", "reshape", (INPUT,), (32,)),
        Node("act", "relu", ("flat",), (32,)),
        Node("back", "reshape", ("flat",), (32, 1)),
        Node("end", "reshape", ("back",), (32,)),
        Node("sum", "add", ("act", "end"), (32,)),
    )
    graph = canonicalize(Graph(nodes, {}, "sum"))
    x = images(SHAPE)
    assert torch.equal(FloatProgram(graph)(x), FloatProgram(Graph(nodes, {}, "sum"))(x))
    assert "flat" in {node.name for node in graph.nodes}


def test_products_with_numbers_multiply() -> None:
    graph = canonicalize(chain(("mul_scalar", {"value": 3.0}), ("mul_scalar", {"value": 0.5})))
    assert ops(graph) == ["mul_scalar"]
    assert graph["n1"].attributes["value"] == 1.5


def test_products_with_numbers_stay_apart_where_the_first_has_another_reader() -> None:
    nodes = (
        Node(INPUT, INPUT, (), SHAPE),
        Node("a", "mul_scalar", (INPUT,), SHAPE, {"value": 3.0}),
        Node("b", "mul_scalar", ("a",), SHAPE, {"value": 2.0}),
        Node("c", "add", ("a", "b"), SHAPE),
    )
    graph = canonicalize(Graph(nodes, {}, "c"))
    assert FloatProgram(graph)(torch.ones(1, *SHAPE)).unique().tolist() == [9.0]


def test_a_clip_without_limits_vanishes() -> None:
    graph = canonicalize(chain(("clip", {"low": -math.inf, "high": math.inf}), ("relu", {})))
    assert ops(graph) == ["relu"]


def padded_convolution(value: float) -> Graph:
    window = {"stride": (1, 1), "pads": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
    nodes = (
        Node(INPUT, INPUT, (), SHAPE),
        Node("pad", "pad", (INPUT,), (2, 5, 6), {"pads": (0, 1, 1, 1), "value": value}),
        Node("conv", "conv", ("pad",), (3, 5, 6), window, {"weight": "w"}),
    )
    return Graph(nodes, {"w": torch.randn(3, 2, 3, 3)}, "conv")


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-42])
def test_a_sum_with_nothing_vanishes(value: float) -> None:
    """Its scale would be 0, which no kernel divides by."""
    assert ops(canonicalize(chain(("add_scalar", {"value": value}), ("relu", {})))) == ["relu"]


def test_a_sum_with_a_small_number_stays() -> None:
    assert ops(canonicalize(chain(("add_scalar", {"value": 1e-12}), ("relu", {})))) == ["add_scalar", "relu"]


def test_zero_padding_moves_into_the_convolution() -> None:
    graph = canonicalize(padded_convolution(0.0))
    assert ops(graph) == ["conv"]
    assert graph["conv"].attributes["pads"] == (1, 2, 2, 2)


def test_zero_padding_inside_the_convolution_computes_the_same() -> None:
    graph, x = padded_convolution(0.0), images(SHAPE)
    # 1e-5: the sums are the same but may run in another order
    assert torch.allclose(FloatProgram(canonicalize(graph))(x), FloatProgram(graph)(x), atol=1e-5)


def test_padding_with_another_value_stays() -> None:
    assert ops(canonicalize(padded_convolution(1.0))) == ["pad", "conv"]


def test_a_pointwise_convolution_that_ends_the_network_is_a_linear_layer() -> None:
    graph = canonicalize(captured("pointwise_end"))
    assert graph[graph.output].op == "linear"
    assert [node.name for node in graph.of("conv")] == ["a.0"]


def test_a_pointwise_convolution_before_the_last_pooling_is_a_linear_layer_behind_it() -> None:
    graph = canonicalize(captured("conv_end"))
    assert ops(graph) == ["conv", "batch_norm", "relu", "global_avg_pool", "reshape", "linear"]
    assert graph["global_avg_pool"].shape == (8, 1, 1)


def convolution_before_pooling(kernel: int = 1, **change: object) -> Graph:
    window = {"stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1, **change}
    nodes = (
        Node(INPUT, INPUT, (), SHAPE),
        Node("conv", "conv", (INPUT,), (4, 4, 4), window, {"weight": "w"}),
        Node("pool", "global_avg_pool", ("conv",), (4, 1, 1)),
        Node("flat", "reshape", ("pool",), (4,)),
        Node("probabilities", "softmax", ("flat",), (4,), {"axis": 1}),
    )
    return Graph(nodes, {"w": torch.randn(4, 2 // int(window["groups"]), kernel, kernel)}, "probabilities")


def test_what_a_softmax_reads_is_a_linear_layer_too() -> None:
    graph = canonicalize(convolution_before_pooling())
    assert ops(graph) == ["global_avg_pool", "reshape", "linear", "softmax"]


@pytest.mark.parametrize(
    "change",
    [{"stride": (2, 2)}, {"pads": (1, 0, 0, 0)}, {"groups": 2}, {"kernel": 3, "pads": (1, 1, 1, 1)}],
)
def test_a_convolution_that_is_not_pointwise_stays_before_the_last_pooling(change: dict[str, Any]) -> None:
    assert ops(canonicalize(convolution_before_pooling(**change)))[0] == "conv"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_second_pass_changes_nothing(name: str) -> None:
    once = canonicalize(captured(name))
    assert canonicalize(once).nodes == once.nodes


def test_a_shuffle_of_one_group_or_of_single_channels_is_nothing() -> None:
    for groups in (1, 6):
        split = (groups, 6 // groups, 4, 4)
        nodes = (
            Node(INPUT, INPUT, (), (6, 4, 4)),
            Node("split", "reshape", (INPUT,), split),
            Node("swap", "transpose", ("split",), (split[1], split[0], 4, 4), {"axes": (0, 2, 1, 3, 4)}),
            Node("join", "reshape", ("swap",), (6, 4, 4)),
            Node("act", "relu", ("join",), (6, 4, 4)),
        )
        assert [node.op for node in canonicalize(Graph(nodes, {}, "act")).nodes] == [INPUT, "relu"]
