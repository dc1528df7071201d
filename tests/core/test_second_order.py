"""Rounding that makes good what each weight costs, against brute force and against rounding to nearest."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import NETWORKS, shape_of
from stages import calibrated, folded, folded_from, images
from torch import Tensor, nn
from torch.nn import functional as F

from gdfq_export.bias_correction import correct_by_images
from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.fit import fit_to_target
from gdfq_export.lower import TARGETS, Quantized, integer_model_from_quantized
from gdfq_export.plan import BitWidths
from gdfq_export.program import FloatProgram, run_taps
from gdfq_export.quantizers import quantize_weight
from gdfq_export.saturation import breaking_channels, partners
from gdfq_export.second_order import DAMPING, PairLimits, compensated_codes, covariance_of, round_by_second_order

PORTABLE = TARGETS["portable"]


def covariance(size: int, seed: int, groups: int = 1) -> Tensor:
    """Of correlated inputs."""
    randomness = torch.Generator().manual_seed(seed)
    mix = torch.randn(groups, size, size, generator=randomness, dtype=torch.float64)
    return mix @ mix.transpose(1, 2) / size


def cost(weight: Tensor, codes: Tensor, scale: Tensor, h: Tensor) -> Tensor:
    """(w - w_hat) H (w - w_hat)^T for each output channel (G, O), with the damping that rounding uses."""
    damped = h + DAMPING * h.diagonal(dim1=1, dim2=2).mean() * torch.eye(h.shape[1], dtype=h.dtype)
    error = weight - codes * scale[:, :, None]
    return torch.einsum("gok,gkl,gol->go", error, damped, error)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(2, 5))
def test_it_finds_nearly_the_best_codes(seed: int, size: int) -> None:
    """Against all codes next to the weights; greedy as it is, it may miss the best by a little."""
    randomness = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, 64, size, generator=randomness, dtype=torch.float64)
    scale, h = torch.full((1, 64), 0.7, dtype=torch.float64), covariance(size, seed + 1)
    around = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=size)), dtype=torch.float64)
    nearest = torch.round(weight / scale[:, :, None])
    best = torch.stack([cost(weight, nearest + move, scale, h) for move in around]).amin(0)
    assert cost(weight, compensated_codes(weight, scale, h, qmax=7), scale, h).mean() <= 1.25 * best.mean()


def test_it_costs_much_less_than_nearest_where_inputs_are_correlated() -> None:
    weight = torch.randn(1, 64, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mix = torch.randn(40, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scale, h = torch.full((1, 64), 0.7, dtype=torch.float64), (mix @ mix.t() / 4)[None]
    codes, nearest = compensated_codes(weight, scale, h, qmax=7), torch.round(weight / 0.7)
    assert cost(weight, codes, scale, h).mean() < 0.6 * cost(weight, nearest, scale, h).mean()


def test_uncorrelated_inputs_are_rounded_to_nearest() -> None:
    weight = torch.linspace(-3.0, 3.0, 24, dtype=torch.float64).view(2, 3, 4)
    scale = torch.full((2, 3), 0.4, dtype=torch.float64)
    codes = compensated_codes(weight, scale, torch.eye(4, dtype=torch.float64).repeat(2, 1, 1), qmax=7)
    assert torch.equal(codes, torch.round(weight / 0.4).clamp(-7, 7))


def test_two_inputs_that_are_the_same_share_one_error() -> None:
    """w = (0.4, 0.4) and steps of 1: with x1 = x2 the sum 0.8 is what matters, so one of them becomes 1."""
    weight, scale = torch.full((1, 1, 2), 0.4, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    same = torch.ones(1, 2, 2, dtype=torch.float64)
    assert compensated_codes(weight, scale, same, qmax=7).sum() == 1
    assert torch.round(weight).sum() == 0


def test_long_rows_are_rounded_in_blocks_like_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(1, 5, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale, h = torch.full((1, 5), 0.3, dtype=torch.float64), covariance(50, 1)
    whole = compensated_codes(weight, scale, h, qmax=7)
    monkeypatch.setattr("gdfq_export.second_order.BLOCK", 7)
    assert torch.equal(compensated_codes(weight, scale, h, qmax=7), whole)


def test_codes_keep_their_bounds_and_the_bounds_of_pairs() -> None:
    weight = torch.randn(2, 16, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    limits = PairLimits(torch.from_numpy(partners((32, 3, 3))), 255)
    scale = weight.flatten(2).abs().amax(2) / 127
    codes = compensated_codes(weight.flatten(2), scale, covariance(9, 3, groups=2), 127, limits)
    assert codes.abs().max() <= 127
    assert not breaking_channels(codes.view(32, 3, 3).numpy(), 255).any()
    free = compensated_codes(weight.flatten(2), scale, covariance(9, 3, groups=2), 127)
    assert breaking_channels(free.view(32, 3, 3).numpy(), 255).any()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False), (4, 9, 8)),
        (nn.Conv2d(3, 3, (1, 2), dilation=(1, 2), groups=3, bias=False), (3, 5, 6)),
        (nn.Conv1d(2, 3, 3, bias=False), (2, 11)),
    ],
)
def test_the_covariance_is_that_of_what_a_convolution_reads(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """v^T H v is the variance of the output of a filter v, here of every filter of the layer."""
    graph = folded_from(layer, shape)
    (node,) = graph.of("conv")
    weight = graph.parameters[node.parameters["weight"]]
    x = images(graph[node.inputs[0]].shape, 16)
    groups = node.attributes["groups"]
    h = covariance_of(node, x, weight.shape[2:], torch.Generator().manual_seed(0))
    filters = weight.double().reshape(groups, -1, weight[0].numel())
    stated = torch.einsum("gok,gkl,gol->go", filters, h, filters).flatten()
    outputs = FloatProgram(graph)(x) if graph.output == node.name else run_taps(FloatProgram(graph), x, [node.name])
    outputs = outputs if isinstance(outputs, Tensor) else outputs[node.name]
    wanted = outputs.double().transpose(0, 1).flatten(1).var(1, correction=0)
    assert torch.allclose(stated, wanted, rtol=1e-4)


def test_inputs_that_never_change_are_no_obstacle() -> None:
    """Dead channels return a constant, whose variance must not come out as a negative one by rounding."""
    graph = folded_from(nn.Conv2d(8, 4, 1, bias=False), (8, 6, 6))
    (node,) = graph.of("conv")
    for seed in range(20):
        randomness = torch.Generator().manual_seed(seed)
        x = (3 * torch.randn(1, 8, 1, 1, generator=randomness)).expand(16, -1, 6, 6).clone()
        h = covariance_of(node, x, torch.Size((1, 1)), randomness)
        assert h.abs().max() < 1e-6
        weight, scale = torch.randn(1, 4, 8, dtype=torch.float64), torch.full((1, 4), 0.3, dtype=torch.float64)
        assert compensated_codes(weight, scale, h, qmax=7).abs().max() <= 7


def test_small_variances_beside_large_means_are_right() -> None:
    graph = folded_from(nn.Conv2d(2, 4, 1, bias=False), (2, 8, 8))
    (node,) = graph.of("conv")
    x = 3 + 1e-3 * torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    h = covariance_of(node, x, torch.Size((1, 1)), torch.Generator().manual_seed(0))
    assert torch.allclose(h[0].diagonal(), x.transpose(0, 1).flatten(1).double().var(1, correction=0), rtol=1e-2)


def test_rows_that_are_too_long_are_rounded_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gdfq_export.second_order.MOST_WEIGHTS", 8)
    quantized = calibrated(folded("plain"), BitWidths(4, 8))
    rounded = round_by_second_order(quantized, images(), PORTABLE)
    for layer, spec in quantized.plan.weights.items():
        before, after = (s.graph.parameters[s.graph[layer].parameters["weight"]] for s in (quantized, rounded))
        scale = quantized.weight_scales[layer]
        nearest = quantize_weight(before, scale, spec.qmax) * scale.view(-1, *[1] * (before.ndim - 1))
        assert torch.allclose(after, nearest, atol=1e-6)


@pytest.mark.parametrize("inputs", [1, 12])
def test_the_covariance_of_a_linear_layer(inputs: int) -> None:
    graph = folded_from(nn.Sequential(nn.Flatten(), nn.Linear(inputs, 5)), (inputs, 1, 1))
    (node,) = graph.of("linear")
    x = torch.randn(50, inputs, generator=torch.Generator().manual_seed(0))
    h = covariance_of(node, x, torch.Size(), torch.Generator())
    assert torch.allclose(h[0], torch.cov(x.t().double(), correction=0).reshape(inputs, inputs))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_rounded_to_codes_that_lowering_keeps(name: str) -> None:
    quantized = fit_to_target(calibrated(folded(name), BitWidths(8, 8)), PORTABLE)
    rounded = round_by_second_order(quantized, images(shape_of(name), 8), PORTABLE)
    for layer in rounded.plan.weights:
        weight = rounded.graph.parameters[rounded.graph[layer].parameters["weight"]]
        codes = weight / rounded.weight_scales[layer].view(-1, *[1] * (weight.ndim - 1))
        assert torch.allclose(codes, codes.round(), atol=1e-4)
    assert integer_model_from_quantized(rounded, PORTABLE).report.weights_changed == 0


def smooth_images(seed: int) -> Tensor:
    """Neighbouring pixels are alike, as in photographs: noise that was enlarged."""
    return F.interpolate(images((3, 4, 4), 64, seed=seed), size=(16, 16), mode="bilinear")


def test_on_smooth_images_logits_are_much_closer_than_with_corrected_biases_alone() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 5), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(800, 5))
    graph = folded_from(module, (3, 16, 16))
    quantized, x, unseen = calibrated(graph, BitWidths(3, 8)), smooth_images(0), smooth_images(1)
    wanted = FloatProgram(graph)(unseen)

    def error(candidate: Quantized) -> float:
        return float(F.mse_loss(FakeQuantProgram(candidate, learned_steps=False)(unseen), wanted).detach())

    assert error(round_by_second_order(quantized, x, PORTABLE)) < 0.6 * error(correct_by_images(quantized, x))


def test_the_mean_of_every_layer_is_that_of_the_float_network() -> None:
    quantized, x = calibrated(folded("residual"), BitWidths(3, 4)), images()
    rounded = round_by_second_order(quantized, x, PORTABLE)
    wanted = run_taps(FloatProgram(quantized.graph), x, rounded.plan.weights)

    class Comparing(FakeQuantProgram):
        def finish_layer(self, name: str, value: Tensor) -> Tensor:
            axes = (0, *range(2, value.ndim))
            assert torch.allclose(value.mean(axes), wanted[name].mean(axes), atol=1e-4)
            return value

    Comparing(rounded, learned_steps=False)(x)


def test_progress_counts_layers() -> None:
    seen: list[tuple[float, float]] = []
    quantized = calibrated(folded("residual"), BitWidths(4, 4))
    round_by_second_order(quantized, images(), PORTABLE, lambda stage, done, total: seen.append((done, total)))
    layers = len(quantized.plan.weights)
    assert seen == [(index + 1, layers) for index in range(layers)]
