from __future__ import annotations

import pytest
import torch

from gdfq_export.graph import INPUT, Graph, Node, map_parameters, rebuild, unshared


def node(name: str, op: str, *inputs: str, **parameters: str) -> Node:
    return Node(name, op, inputs, (2, 4, 4), parameters=parameters)


@pytest.fixture
def graph() -> Graph:
    nodes = (
        Node(INPUT, INPUT, (), (3, 4, 4)),
        node("a", "conv", INPUT, weight="a.weight"),
        node("b", "relu", "a"),
        node("c", "add", "b", "b"),
        node("d", "conv", "b", weight="d.weight"),
    )
    return Graph(nodes, {"a.weight": torch.ones(1), "d.weight": torch.ones(2)}, "c")


def test_a_node_is_found_by_its_name(graph: Graph) -> None:
    assert graph["b"].inputs == ("a",)


def test_the_input_shape_leaves_the_batch_out(graph: Graph) -> None:
    assert graph.input_shape == (3, 4, 4)


def test_a_node_that_reads_a_tensor_twice_is_one_user(graph: Graph) -> None:
    assert [user.name for user in graph.users()["b"]] == ["c", "d"]


def test_nodes_of_some_operations_come_in_order(graph: Graph) -> None:
    assert [found.name for found in graph.of("conv", "relu")] == ["a", "b", "d"]


def test_a_missing_parameter_is_none(graph: Graph) -> None:
    assert graph.parameter(graph["a"], "bias") is None


def test_rebuild_drops_what_nothing_reads(graph: Graph) -> None:
    assert [kept.name for kept in rebuild(graph, graph.nodes).nodes] == [INPUT, "a", "b", "c"]


def test_rebuild_drops_the_parameters_of_what_it_drops(graph: Graph) -> None:
    assert set(rebuild(graph, graph.nodes).parameters) == {"a.weight"}


def test_rebuild_keeps_the_input_even_where_nothing_reads_it() -> None:
    graph = Graph((Node(INPUT, INPUT, (), (3,)), node("x", "constant", value="x")), {"x": torch.ones(1)}, "x")
    assert rebuild(graph, graph.nodes).nodes[0].name == INPUT


def test_aliases_are_followed_to_their_end(graph: Graph) -> None:
    rest = [found for found in graph.nodes if found.name not in ("b", "a")]
    assert rebuild(graph, rest, aliases={"b": "a", "a": INPUT})["c"].inputs == (INPUT, INPUT)


def test_an_alias_of_the_output_moves_the_output(graph: Graph) -> None:
    rest = [found for found in graph.nodes if found.name != "c"]
    assert rebuild(graph, rest, aliases={"c": "b"}).output == "b"


def test_rebuild_leaves_the_old_graph_as_it_was(graph: Graph) -> None:
    rebuild(graph, graph.nodes[:-1], aliases={"b": "a"})
    assert graph["c"].inputs == ("b", "b")
    assert len(graph.nodes) == 5


def test_new_parameters_replace_old_ones_of_the_same_key(graph: Graph) -> None:
    assert rebuild(graph, graph.nodes, parameters={"a.weight": torch.zeros(3)}).parameters["a.weight"].shape == (3,)


def test_map_parameters_changes_each_of_them(graph: Graph) -> None:
    doubled = map_parameters(graph, lambda value: value * 2)
    assert doubled.parameters["d.weight"].tolist() == [2.0, 2.0]
    assert graph.parameters["d.weight"].tolist() == [1.0, 1.0]


def test_what_two_nodes_share_becomes_two_parameters(graph: Graph) -> None:
    (first, a, b, c, d) = graph.nodes
    tied = Graph((first, a, b, c.replace(inputs=("b", "d")), d), graph.parameters, "c")
    nodes = [first, a, b, d.replace(parameters={"weight": "a.weight"}), tied.nodes[3]]
    apart = unshared(Graph(tuple(nodes), {"a.weight": torch.ones(1)}, "c"))
    assert apart["a"].parameters["weight"] != apart["d"].parameters["weight"]
    assert {float(value) for value in apart.parameters.values()} == {1.0}
    assert len(apart.parameters) == 2


def test_parameters_of_one_node_keep_their_names(graph: Graph) -> None:
    assert unshared(graph).parameters.keys() == {"a.weight"}  # d is read by nothing
