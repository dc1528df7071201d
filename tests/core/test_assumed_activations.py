"""Moments that batch norm states, carried through a network, against samples of the same distributions."""

from __future__ import annotations

import pytest
import torch
from small_networks import NETWORKS
from stages import captured, folded, folded_from
from torch import nn

from gdfq_export.assumed_activations import TAIL, AssumedActivations, propagate, quantiles
from gdfq_export.capture import capture
from gdfq_export.generator import image_spec
from gdfq_export.graph import Graph
from gdfq_export.moments import Moments, batch_norm_outputs
from gdfq_export.passes import canonicalize
from gdfq_export.plan import BitWidths, make_plan
from gdfq_export.program import FloatProgram, run_taps
from gdfq_export.ranges import observe


def moments_of(graph: Graph, known: dict[str, Moments]) -> dict[str, Moments]:
    channels = graph.input_shape[0]
    return propagate(graph, known, image_spec(graph.input_shape, [0.5] * channels, [0.5] * channels))


def of(mean: list[float], std: list[float]) -> Moments:
    return Moments(torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))


ACTIVATIONS = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "leaky": nn.LeakyReLU(0.2),
    "prelu": nn.PReLU(init=0.3),
    "sigmoid": nn.Sigmoid(),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_pointwise_function_has_the_moments_of_its_values(name: str) -> None:
    function = ACTIVATIONS[name]
    graph = folded_from(nn.Sequential(nn.Conv2d(3, 3, 1), function, nn.Conv2d(3, 2, 1), nn.Flatten()), (3, 1, 1))
    first = graph.nodes[1].name
    known = {first: of([0.5, -1.0, 5.0], [1.0, 0.5, 2.0])}
    found = moments_of(graph, known)[graph.nodes[2].name]
    generator = torch.Generator().manual_seed(0)
    samples = known[first].mean + torch.randn(400_000, 3, generator=generator, dtype=torch.float64) * known[first].std
    values = function.double()(samples)
    function.float()
    # 0.01: the error of 400,000 samples (0.003 of a deviation of up to 2), and of 1,024 quantiles
    assert torch.allclose(found.mean, values.mean(0), atol=0.01)
    assert torch.allclose(found.std, values.std(0), atol=0.01)


def test_a_sum_adds_means_and_variances() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.a(x) + self.b(x)).flatten(1)

    graph = folded_from(Sum(), (2, 1, 1))
    found = moments_of(graph, {"a": of([1.0, 2.0], [3.0, 5.0]), "b": of([4.0, -1.0], [4.0, 12.0])})
    (node,) = graph.of("add")
    assert found[node.name].mean.tolist() == [5.0, 1.0]
    assert found[node.name].std.tolist() == [5.0, 13.0]


def test_a_layer_without_batch_norm_sums_its_inputs() -> None:
    layer = nn.Linear(2, 1)
    layer.weight.data = torch.tensor([[3.0, -4.0]])
    layer.bias.data = torch.tensor([0.5])
    graph = folded_from(nn.Sequential(nn.Conv2d(2, 2, 1), nn.Flatten(), layer), (2, 1, 1))
    found = moments_of(graph, {graph.nodes[1].name: of([1.0, 2.0], [1.0, 1.0])})[graph.output]
    assert found.mean.tolist() == [3.0 - 8.0 + 0.5]
    assert found.std.tolist() == [5.0]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_has_one_moment_for_each_channel(name: str) -> None:
    graph = folded(name)
    for tensor, moments in moments_of(graph, batch_norm_outputs(canonicalize(captured(name)), graph)).items():
        if graph[tensor].op != "constant":  # whose shape has the batch axis too
            assert moments.mean.shape == moments.std.shape == (graph[tensor].shape[0],), tensor
        assert bool(torch.isfinite(moments.mean).all() and (moments.std >= 0).all()), tensor


def test_quantiles_are_standard_normal() -> None:
    points = quantiles()
    assert abs(float(points.mean())) < 1e-12
    assert abs(float(points.std()) - 1) < 0.01


def test_extremes_are_the_papers_six_deviations_cut_by_the_activation() -> None:
    graph = folded_from(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.Flatten()), (3, 1, 1))
    moments = moments_of(graph, {graph.nodes[1].name: of([1.0, -2.0], [0.5, 2.0])})
    plan = make_plan(graph, BitWidths(8, 8))
    ranges = observe(AssumedActivations(graph, moments), plan, [torch.empty(0)], method="ema")
    (relu,) = graph.of("relu")
    assert ranges[relu.name].low == 0.0
    # 1e-4: the moving average is read in float32
    assert abs(ranges[relu.name].high - (-2.0 + TAIL * 2.0)) < 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_ranges_are_found_without_images_for_every_network(name: str) -> None:
    graph = folded(name)
    moments = moments_of(graph, batch_norm_outputs(canonicalize(captured(name)), graph))
    plan = make_plan(graph, BitWidths(4, 4), (-1.0, 1.0))
    ranges = observe(AssumedActivations(graph, moments), plan, [torch.empty(0)], method="mse")
    assert ranges.keys() == plan.groups().keys()
    assert all(found.high > found.low for found in ranges.values())


def test_ranges_without_images_are_near_those_of_images_that_match_the_statistics() -> None:
    """A layer whose batch norm was trained on N(0, 1) images; the assumed range is that of such images."""
    torch.manual_seed(0)
    layer, norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
    norm.weight.data.uniform_(0.5, 2.0)
    norm.bias.data.normal_()
    images = torch.randn(256, 3, 8, 8)
    with torch.no_grad():
        norm.momentum = 1.0
        norm(layer(images))
    module = nn.Sequential(layer, norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    source = canonicalize(capture(module.requires_grad_(False), (3, 8, 8)))
    graph = folded_from(module)
    plan = make_plan(graph, BitWidths(4, 4))
    moments = moments_of(graph, batch_norm_outputs(source, graph))
    (relu,) = graph.of("relu")
    assumed = observe(AssumedActivations(graph, moments), plan, [torch.empty(0)], method="mse")[relu.name]
    measured = observe(FloatProgram(graph), plan, [images], method="mse")[relu.name]
    # a fifth: the points at six deviations, which 74,000 normal values do not reach, draw the range out
    assert abs(assumed.high / measured.high - 1) < 0.2
    found = run_taps(FloatProgram(graph), images, [relu.name])[relu.name].transpose(0, 1).flatten(1)
    assert torch.allclose(moments[relu.name].mean.float(), found.mean(1), atol=0.05)
