from __future__ import annotations

from typing import Any

import pytest
import torch
from stages import captured, images

from gdfq_export.graph import INPUT, Graph, Node
from gdfq_export.passes import canonicalize, find_channel_shuffle, hoist_activations
from gdfq_export.plan import BitWidths, make_plan
from gdfq_export.program import FloatProgram

SHAPE = (4, 4, 4)
CONV = {"stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
POOL = {"kernel": (2, 2), "stride": (2, 2), "pads": (0, 0, 0, 0), "dilation": (1, 1), "ceil": False}


def layer(name: str, source: str = INPUT) -> Node:
    return Node(name, "conv", (source,), SHAPE, CONV, {"weight": f"{name}.weight"})


def graph_of(*nodes: Node) -> Graph:
    generator = torch.Generator().manual_seed(0)
    parameters = {
        key: torch.randn(4, 4, 1, 1, generator=generator) for node in nodes for key in node.parameters.values()
    }
    return Graph((Node(INPUT, INPUT, (), SHAPE), *nodes), parameters, nodes[-1].name)


def act(source: str, shape: tuple[int, ...], op: str = "relu", **attributes: float) -> Node:
    return Node("act", op, (source,), shape, attributes)


JOINED = (
    *(layer("a"), layer("b"), Node("cat", "concat", ("a", "b"), (8, 4, 4), {"axis": 1})),
    act("cat", (8, 4, 4)),
)


def operations(graph: Graph) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(node.name, node.op, node.inputs) for node in graph.nodes[1:]]


def test_a_relu_behind_a_concat_stands_behind_each_operand() -> None:
    graph = graph_of(*JOINED)
    hoisted = hoist_activations(graph)
    assert operations(hoisted)[2:] == [
        ("act.hoisted.0", "relu", ("a",)),
        ("act.hoisted.1", "relu", ("b",)),
        ("act", "concat", ("act.hoisted.0", "act.hoisted.1")),
    ]
    assert hoisted["act.hoisted.0"].shape == SHAPE
    x = images(SHAPE)
    assert torch.equal(FloatProgram(hoisted)(x), FloatProgram(graph)(x))


def test_behind_the_layers_it_is_part_of_their_quantizers() -> None:
    graph = graph_of(*JOINED)
    before, after = (make_plan(g, BitWidths(8, 8)) for g in (graph, hoist_activations(graph)))
    assert before.tensors["cat"].symmetry == "affine"
    assert after.absorbed == {"a": "act.hoisted.0", "b": "act.hoisted.1"}
    assert {spec.symmetry for name, spec in after.tensors.items() if name != INPUT} == {"unsigned"}


def test_an_operand_without_negative_values_needs_no_relu() -> None:
    relu = Node("b.relu", "relu", ("b",), SHAPE)
    mean = Node("b.mean", "avg_pool", ("b.relu",), SHAPE, {**POOL, "count_include_pad": True})
    cat = Node("cat", "concat", ("a", "b.mean"), (8, 4, 4), {"axis": 1})
    hoisted = hoist_activations(graph_of(layer("a"), layer("b"), relu, mean, cat, act("cat", (8, 4, 4))))
    assert hoisted["act"].inputs == ("act.hoisted.0", "b.mean")
    assert len(hoisted.of("relu")) == 2


MOVED = [
    ("max_pool", (4, 2, 2), POOL),
    ("reshape", (64,), {}),
    ("transpose", SHAPE, {"axes": (0, 2, 3, 1)}),
    ("channel_shuffle", SHAPE, {"groups": 2}),
    ("upsample", (4, 8, 8), {"scale": (2, 2)}),
]


@pytest.mark.parametrize(("op", "attributes"), [("relu", {}), ("clip", {"low": -0.5, "high": 0.25})])
@pytest.mark.parametrize(("mover", "shape", "how"), MOVED, ids=[name for name, *_ in MOVED])
def test_movement_and_activation_change_places(
    mover: str, shape: tuple[int, ...], how: dict[str, Any], op: str, attributes: dict[str, float]
) -> None:
    graph = graph_of(layer("a"), Node("moved", mover, ("a",), shape, how), act("moved", shape, op, **attributes))
    hoisted = hoist_activations(graph)
    assert operations(hoisted)[1:] == [("act.hoisted", op, ("a",)), ("act", mover, ("act.hoisted",))]
    x = images(SHAPE)
    assert torch.equal(FloatProgram(hoisted)(x), FloatProgram(graph)(x))


def test_it_goes_on_to_the_layer() -> None:
    shuffle = Node("shuffled", "channel_shuffle", ("a",), SHAPE, {"groups": 2})
    graph = graph_of(layer("a"), shuffle, Node("flat", "reshape", ("shuffled",), (64,)), act("flat", (64,)))
    assert [op for _, op, _ in operations(hoist_activations(graph))] == ["conv", "relu", "channel_shuffle", "reshape"]


@pytest.mark.parametrize("read", ["a", "cat"])
def test_what_something_else_reads_stays_as_it_is(read: str) -> None:
    other = Node("other", "global_avg_pool", (read,), (8 if read == "cat" else 4, 1, 1))
    mean = Node("mean", "global_avg_pool", ("act",), (8, 1, 1))
    end = Node("end", "concat", ("other", "mean"), (other.shape[0] + 8, 1, 1))
    graph = graph_of(*JOINED, other, mean, end)
    assert operations(hoist_activations(graph)) == operations(graph)


def test_other_functions_stay() -> None:
    graph = graph_of(layer("a"), Node("moved", "reshape", ("a",), (64,)), act("moved", (64,), "tanh"))
    assert operations(hoist_activations(graph)) == operations(graph)


def test_a_sum_in_between_stays() -> None:
    graph = graph_of(layer("a"), layer("b"), Node("sum", "add", ("a", "b"), SHAPE), act("sum", SHAPE))
    assert operations(hoist_activations(graph)) == operations(graph)


def test_a_captured_network_keeps_its_function() -> None:
    graph = find_channel_shuffle(canonicalize(captured("channel_wise")))
    hoisted = hoist_activations(graph)
    assert operations(hoisted) != operations(graph)
    x = images(graph.input_shape)
    assert torch.allclose(FloatProgram(hoisted)(x), FloatProgram(graph)(x), atol=1e-6)
