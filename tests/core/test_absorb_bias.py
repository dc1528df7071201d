"""Bias absorption: what a channel always exceeds moves into the next layer, and only where nothing else changes."""

from __future__ import annotations

import torch
from network_parts import Net, head, pooled
from stages import folded_from, images
from torch import nn
from torch.nn import functional as F

from gdfq_export.graph import Graph
from gdfq_export.moments import Moments, shifted
from gdfq_export.passes import absorb_bias
from gdfq_export.program import FloatProgram, run_taps


def network(*, kernel: int = 1, padding: int = 0, activation=F.relu) -> Graph:
    """The first channel lies far above zero for every image, the others around it."""
    torch.manual_seed(0)
    model = Net(
        lambda m, x: m.fc(pooled(m.b(activation(m.a(x))))),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(4, 4, kernel, padding=padding, bias=False),
        fc=head(4),
    )
    model.a.bias.data.copy_(torch.tensor([60.0, 0.1, 0.0, -5.0]))
    return folded_from(model)


STATED = {
    "a": Moments(torch.tensor([60.0, 0.1, 0.0, -5.0], dtype=torch.float64), torch.tensor([5.0, 1.0, 1.0, 1.0]).double())
}


def test_the_shift_is_the_mean_less_three_deviations_where_that_is_positive() -> None:
    assert absorb_bias(network(), STATED).shifts["a"].tolist() == [45.0, 0.0, 0.0, 0.0]


def test_the_network_computes_what_it_did_on_images_within_the_deviations() -> None:
    graph = network()
    done = absorb_bias(graph, STATED)
    x = images()
    before = run_taps(FloatProgram(graph), x, ["a"])["a"]
    assert before[:, 0].min() > 45.0  # no value is below the three deviations
    after = run_taps(FloatProgram(done.graph), x, ["a"])["a"]
    # 1e-4: values near 60 in float32
    assert torch.allclose(after[:, 0], before[:, 0] - 45.0, atol=1e-4)
    assert torch.allclose(FloatProgram(done.graph)(x), FloatProgram(graph)(x), atol=1e-4)


def test_a_leaky_relu_passes_a_shift_too() -> None:
    graph = network(activation=lambda x: F.leaky_relu(x, 0.1))
    done = absorb_bias(graph, STATED)
    assert "a" in done.shifts
    x = images()
    assert torch.allclose(FloatProgram(done.graph)(x), FloatProgram(graph)(x), atol=1e-4)  # values near 60 in float32


def test_a_layer_that_pads_or_a_cap_keeps_its_biases() -> None:
    assert absorb_bias(network(kernel=3, padding=1), STATED).shifts == {}
    assert absorb_bias(network(activation=F.relu6), STATED).shifts == {}
    assert "a" in absorb_bias(network(kernel=3), STATED).shifts


def test_moments_follow_the_shift() -> None:
    after = shifted(STATED, absorb_bias(network(), STATED).shifts)["a"]
    assert after.mean.tolist() == [15.0, 0.1, 0.0, -5.0]
