"""Bias correction: the mean output of a rounded layer becomes that of the float one."""

from __future__ import annotations

import pytest
import torch
from small_networks import NETWORKS, shape_of
from stages import calibrated, folded, folded_from, images
from torch import nn

from gdfq_export.bias_correction import correct_by_images, correct_by_moments
from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.lower import Quantized
from gdfq_export.moments import Moments
from gdfq_export.plan import BitWidths
from gdfq_export.program import FloatProgram, run_taps


def layer_means(quantized: Quantized, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean output of each layer of the simulated network, before rounding."""

    class Noting(FakeQuantProgram):
        def finish_layer(self, name: str, value: torch.Tensor) -> torch.Tensor:
            found[name] = value.detach().mean((0, *range(2, value.ndim)))
            return value

    found: dict[str, torch.Tensor] = {}
    Noting(quantized, learned_steps=False)(x)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_has_the_mean_of_the_float_network_on_the_images(name: str) -> None:
    quantized, x = calibrated(folded(name), BitWidths(3, 4)), images(shape_of(name))
    wanted = {
        layer: value.mean((0, *range(2, value.ndim)))
        for layer, value in run_taps(FloatProgram(folded(name)), x, quantized.plan.weights).items()
    }
    before, after = layer_means(quantized, x), layer_means(correct_by_images(quantized, x), x)
    assert max(float((before[layer] - wanted[layer]).abs().max()) for layer in wanted) > 1e-3
    for layer in wanted:
        # 1e-4 of values near 1: a bias is rounded to float32, and the next layers' inputs are rounded anew
        assert torch.allclose(after[layer], wanted[layer], atol=1e-4), layer


def one_layer(**options: int) -> Quantized:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, **options)
    return calibrated(folded_from(nn.Sequential(layer, nn.Flatten()), (4, 3, 3)), BitWidths(2, 8))


@pytest.mark.parametrize("options", [{}, {"groups": 2}], ids=["dense", "grouped"])
def test_analytic_correction_is_exact_where_the_input_has_the_stated_mean(options: dict[str, int]) -> None:
    quantized = one_layer(**options)
    mean = torch.tensor([0.5, -0.25, 1.0, 0.0], dtype=torch.float64)
    moments = {"input": Moments(mean, torch.ones(4, dtype=torch.float64))}
    corrected = correct_by_moments(quantized, moments)
    (layer,) = quantized.plan.weights
    x = mean.float().view(1, 4, 1, 1).expand(2, 4, 3, 3)
    scale = quantized.weight_scales[layer]

    def outputs(network: Quantized, *, rounded: bool) -> torch.Tensor:
        graph = network.graph
        weight, bias = graph.parameters[graph[layer].parameters["weight"]], graph.parameter(graph[layer], "bias")
        if rounded:
            weight = (weight / scale.view(-1, 1, 1, 1)).round().clamp(-1, 1) * scale.view(-1, 1, 1, 1)
        return nn.functional.conv2d(x, weight, bias, groups=options.get("groups", 1))

    wanted = outputs(quantized, rounded=False)
    assert not torch.allclose(outputs(quantized, rounded=True), wanted, atol=1e-3)
    assert torch.allclose(outputs(corrected, rounded=True), wanted, atol=1e-5)  # float32


def test_correction_leaves_the_network_that_it_was_given() -> None:
    quantized = one_layer()
    before = {key: value.clone() for key, value in quantized.graph.parameters.items()}
    correct_by_images(quantized, images((4, 3, 3)))
    assert all(torch.equal(quantized.graph.parameters[key], value) for key, value in before.items())
