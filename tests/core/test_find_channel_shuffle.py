from __future__ import annotations

import torch
from stages import captured, images

from gdfq_export.graph import INPUT, Graph, Node
from gdfq_export.passes import canonicalize, find_channel_shuffle
from gdfq_export.program import FloatProgram

SHAPE = (6, 4, 4)


def chain(axes: tuple[int, ...] = (0, 2, 1, 3, 4), groups: int = 2, end: tuple[int, ...] = SHAPE) -> Graph:
    split = (groups, 6 // groups, 4, 4)
    swapped = tuple(split[axis - 1] for axis in axes[1:])
    nodes = (
        Node(INPUT, INPUT, (), SHAPE),
        Node("split", "reshape", (INPUT,), split),
        Node("swap", "transpose", ("split",), swapped, {"axes": axes}),
        Node("join", "reshape", ("swap",), end),
        Node("act", "relu", ("join",), end),
    )
    return Graph(nodes, {}, "act")


def test_the_chain_becomes_one_shuffle_with_the_name_of_its_last_node() -> None:
    graph = find_channel_shuffle(chain())
    assert [(node.name, node.op) for node in graph.nodes[1:]] == [("join", "channel_shuffle"), ("act", "relu")]
    assert graph["join"].attributes == {"groups": 2}


def test_the_shuffle_moves_channels_as_the_chain_did() -> None:
    x = images(SHAPE)
    for groups in (1, 2, 3, 6):
        graph = chain(groups=groups)
        assert torch.equal(FloatProgram(find_channel_shuffle(graph))(x), FloatProgram(graph)(x))


def test_another_transpose_stays() -> None:
    assert not find_channel_shuffle(chain((0, 1, 2, 4, 3))).of("channel_shuffle")


def test_a_chain_that_ends_in_another_shape_stays() -> None:
    assert not find_channel_shuffle(chain(end=(96,))).of("channel_shuffle")


def test_a_chain_with_another_reader_inside_stays() -> None:
    graph = chain()
    nodes = (*graph.nodes, Node("flat", "reshape", ("swap",), SHAPE), Node("sum", "add", ("act", "flat"), SHAPE))
    assert not find_channel_shuffle(Graph(nodes, {}, "sum")).of("channel_shuffle")


def test_a_shuffle_is_found_in_a_captured_network() -> None:
    (found,) = find_channel_shuffle(canonicalize(captured("shuffle"))).of("channel_shuffle")
    assert found.attributes == {"groups": 3}
