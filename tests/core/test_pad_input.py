"""A wider image changes no integer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from small_networks import shape_of
from stages import calibrated, captured, folded, images, integer_logits, quantize_graph, run_onnx

from gdfq_export.emit import onnx_from_integer_model
from gdfq_export.exact import IntegerProgram
from gdfq_export.graph import INPUT, rebuild
from gdfq_export.lower import TARGETS, integer_model_from_quantized, with_pixel_input
from gdfq_export.moving_statistics import normalised_layers
from gdfq_export.passes import pad_input
from gdfq_export.passes.pad_input import PADDED
from gdfq_export.plan import BitWidths, make_plan
from gdfq_export.program import FloatProgram


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["plain", "asymmetric_padding", "same_padding"])
def test_every_tensor_keeps_its_integers(name: str, bits: int) -> None:
    quantized, x = calibrated(folded(name), BitWidths(bits, bits)), images(shape_of(name), 8)
    graph = pad_input(quantized.graph)
    wider = dataclasses.replace(quantized, graph=graph, plan=make_plan(graph, BitWidths(bits, bits), (-2.0, 2.0)))
    target = TARGETS["x86-vnni"]  # portable repairs pairs of weights, and the pairs are others
    models = [integer_model_from_quantized(each, target) for each in (quantized, wider)]
    seen: list[dict[str, torch.Tensor]] = [{}, {}]
    for found, model in zip(seen, models, strict=True):
        IntegerProgram(model).eval().run_codes(x, found.__setitem__)
    assert seen[1].keys() - seen[0].keys() == {PADDED}
    assert all(torch.equal(seen[1][key], value) for key, value in seen[0].items())


@pytest.mark.parametrize("bits", [8, 4])
def test_the_runtime_computes_them(bits: int) -> None:
    model, x = quantize_graph(pad_input(folded("plain")), BitWidths(bits, bits)), images(count=8)
    assert model.layers[model.graph.users()[PADDED][0].name].q_weight.shape[1] == 4
    assert np.array_equal(run_onnx(onnx_from_integer_model(model), x).outputs, integer_logits(model, x))


def test_bytes_are_padded_after_their_normalisation() -> None:
    model = quantize_graph(pad_input(folded("plain")), BitWidths(8, 8))
    model = with_pixel_input(model, (0.5,) * 3, (0.25,) * 3)
    x = torch.randint(0, 256, (4, 8, 8, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert np.array_equal(run_onnx(onnx_from_integer_model(model), x).outputs, integer_logits(model, x))


def test_the_float_function_stays_the_same() -> None:
    x = images()
    assert torch.equal(FloatProgram(pad_input(folded("residual")))(x), FloatProgram(folded("residual"))(x))


def test_the_first_layer_still_has_the_weights_of_its_batch_norm() -> None:
    network = captured("plain")
    plain = normalised_layers(network, folded("plain"))
    assert normalised_layers(network, pad_input(folded("plain"))).keys() == plain.keys()


def test_gray_images_stay_as_they_are() -> None:
    assert pad_input(folded("gray")) is folded("gray")


def test_large_windows_are_left_alone_where_asked() -> None:
    graph = folded("plain")
    (first,) = graph.users()[INPUT]
    key = first.parameters["weight"]
    large = rebuild(graph, graph.nodes, parameters={key: torch.zeros(8, 3, 7, 7)})
    assert pad_input(large, large_windows=False) is large
    assert pad_input(large).of("pad_channels")
    assert pad_input(graph, large_windows=False).of("pad_channels")
