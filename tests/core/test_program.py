from __future__ import annotations

import math

import pytest
import torch
from stages import captured, folded, images, network

from gdfq_export.program import FloatProgram, as_many_as_fit, run_taps


def test_visit_sees_every_tensor_once_and_in_order() -> None:
    graph, seen = folded("residual"), []
    FloatProgram(graph)(images(count=1), lambda name, value: seen.append(name))
    assert seen == [node.name for node in graph.nodes]


def test_taps_are_the_tensors_that_the_program_computes() -> None:
    graph = folded("plain")
    x = images()
    taps = run_taps(FloatProgram(graph), x, [graph.output, "input"])
    assert torch.equal(taps["input"], x)
    assert torch.equal(taps[graph.output], FloatProgram(graph)(x))


def test_a_tap_of_an_inner_tensor_has_the_shape_that_the_graph_says() -> None:
    graph = folded("shuffle")
    taps = run_taps(FloatProgram(graph), images(count=3), [node.name for node in graph.nodes])
    assert {name: tuple(value.shape[1:]) for name, value in taps.items()} == {n.name: n.shape for n in graph.nodes}


def test_nothing_in_the_program_is_trainable_but_its_input_is() -> None:
    program = FloatProgram(folded("plain"))
    x = images(count=2).requires_grad_()
    program(x).sum().backward()
    assert not list(program.parameters())
    assert x.grad is not None
    assert x.grad.abs().max() > 0


def test_the_program_does_not_share_memory_with_the_network_it_came_from() -> None:
    graph = folded("pointwise_end")
    FloatProgram(graph).p0.add_(1.0)
    x = images()
    # 1e-6: folding rounds weights to float32 once more than the network does
    assert torch.allclose(FloatProgram(graph)(x), network("pointwise_end")(x), atol=1e-6)


def test_no_tensor_of_a_pass_has_too_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = captured("plain"), images(count=16)
    largest = max(math.prod(node.shape) for node in graph.nodes)
    for values, count in ((10 * largest, 10), (largest - 1, 1), (100 * largest, 16)):
        monkeypatch.setattr("gdfq_export.program.MOST_VALUES", values)
        assert torch.equal(as_many_as_fit(graph, x), x[:count])
