"""What training sees are the weights of the file: the target changes them before, and nothing afterwards."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_networks import NETWORKS, shape_of
from stages import calibrated, folded, folded_from, images
from torch import nn

from gdfq_export.bias_correction import correct_by_images
from gdfq_export.exact import IntegerProgram
from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.fit import fit_to_target
from gdfq_export.lower import TARGETS, Quantized, integer_model_from_quantized
from gdfq_export.plan import BitWidths
from gdfq_export.quantizers import quantize_weight
from gdfq_export.saturation import breaking_channels
from gdfq_export.simulation import compare_simulation

PORTABLE = TARGETS["portable"]


def quantized_network(name: str, bits: int = 8) -> Quantized:
    return calibrated(folded(name), BitWidths(bits, 8))


def codes(quantized: Quantized, layer: str) -> torch.Tensor:
    weight = quantized.graph.parameters[quantized.graph[layer].parameters["weight"]].double()
    return quantize_weight(weight, quantized.weight_scales[layer].double(), quantized.plan.weights[layer].qmax)


@pytest.mark.parametrize("name", NETWORKS)
def test_lowering_changes_no_weight_that_was_fitted(name: str) -> None:
    fitted = fit_to_target(quantized_network(name), PORTABLE)
    model = integer_model_from_quantized(fitted, PORTABLE)
    assert model.report.weights_changed == 0
    for layer, made in model.layers.items():
        assert torch.equal(torch.from_numpy(made.q_weight).double(), codes(fitted, layer))


def test_without_fitting_lowering_changes_weights() -> None:
    assert integer_model_from_quantized(quantized_network("plain"), PORTABLE).report.weights_changed > 0


def test_channels_with_larger_scales_are_counted_for_the_report() -> None:
    before = quantized_network("residual")
    fitted = fit_to_target(before, PORTABLE)
    grown = {layer: int((scale > before.weight_scales[layer]).sum()) for layer, scale in fitted.weight_scales.items()}
    assert sum(grown.values()) > 0
    assert dict(fitted.coarser) == {layer: count for layer, count in grown.items() if count}
    report = integer_model_from_quantized(correct_by_images(fitted, images()), PORTABLE).report
    assert report.channels_coarser == sum(grown.values())
    assert report.channels_total == sum(len(scale) for scale in before.weight_scales.values())


def test_training_keeps_the_count() -> None:
    fitted = fit_to_target(quantized_network("plain"), PORTABLE)
    assert FakeQuantProgram(fitted, learned_steps=True).quantized().coarser == fitted.coarser


def test_fitting_twice_is_fitting_once() -> None:
    once = fit_to_target(quantized_network("residual"), PORTABLE)
    twice = fit_to_target(once, PORTABLE)
    assert all(torch.equal(once.weight_scales[layer], twice.weight_scales[layer]) for layer in once.weight_scales)
    assert all(torch.equal(value, twice.graph.parameters[key]) for key, value in once.graph.parameters.items())
    assert twice.coarser == once.coarser


@pytest.mark.parametrize(("target", "bits"), [("x86-vnni", 8), ("arm64", 8), ("portable", 7), ("portable", 4)])
def test_what_cannot_saturate_stays_as_it_is(target: str, bits: int) -> None:
    before = quantized_network("plain", bits)
    after = fit_to_target(before, TARGETS[target])
    assert all(after.graph.parameters[key] is value for key, value in before.graph.parameters.items())
    assert all(after.weight_scales[layer] is scale for layer, scale in before.weight_scales.items())
    assert not after.coarser


def test_a_depthwise_layer_stays_as_it_is() -> None:
    torch.manual_seed(0)
    graph = folded_from(nn.Sequential(nn.Conv2d(3, 3, 3, groups=3, bias=False), nn.Conv2d(3, 16, 1)))
    before = calibrated(graph, BitWidths(8, 8))
    depthwise, pointwise = before.plan.weights
    after = fit_to_target(before, PORTABLE)
    assert after.weight_scales[depthwise] is before.weight_scales[depthwise]
    assert breaking_channels(codes(before, pointwise).numpy(), 255).any()
    assert not breaking_channels(codes(after, pointwise).numpy(), 255).any()


def test_the_simulation_is_much_closer_to_the_file() -> None:
    before, x = quantized_network("residual"), images(shape_of("residual"), 8)
    fitted = fit_to_target(before, PORTABLE)

    def differing(quantized: Quantized) -> int:
        program = IntegerProgram(integer_model_from_quantized(quantized, PORTABLE)).eval()
        return compare_simulation(quantized, program, x).differing

    assert differing(fitted) < 0.5 * differing(before)


def test_a_scale_that_is_large_enough_leaves_the_weights() -> None:
    before = quantized_network("plain")
    wide = dataclasses.replace(before, weight_scales={k: 2 * v for k, v in before.weight_scales.items()})
    assert not fit_to_target(wide, PORTABLE).coarser
