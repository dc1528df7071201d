"""Verification inputs: stored images first, the same from the same seed, and really hard for the first layer."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto
from qdq_builder import Builder, small_network

from gdfq_export.runtime_checks.input_spec import input_spec
from gdfq_export.runtime_checks.inputs import extreme_image, tie_image, verification_inputs
from gdfq_export.runtime_checks.layers import layers_of
from gdfq_export.runtime_checks.linear import convolve, window_from_attributes
from gdfq_export.runtime_checks.reference import reference_graph, run_reference


def made(model: onnx.ModelProto, samples: int, golden: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    graph = reference_graph(model)
    return verification_inputs(input_spec(graph, {}), graph, layers_of(model, graph), golden, samples, seed)


def test_the_same_seed_gives_the_same_images() -> None:
    model = small_network()
    assert np.array_equal(made(model, 12), made(model, 12))
    assert not np.array_equal(made(model, 12), made(model, 12, seed=1))


def test_stored_images_come_first_as_the_numbers_of_their_codes() -> None:
    golden = np.random.default_rng(0).integers(0, 256, (2, 3, 12, 12)).astype(np.uint8)
    feeds = made(small_network(), 5, golden)
    assert feeds.shape == (5, 3, 12, 12)
    assert np.array_equal(feeds[:2], (golden.astype(np.float32) - 128) * np.float32(0.02))


def test_float_inputs_reach_all_codes_and_lie_between_codes() -> None:
    model = small_network()
    seen: dict[str, np.ndarray] = {}
    feeds = made(model, 16)
    run_reference(reference_graph(model), feeds, lambda name, array: seen.setdefault(name, array))
    assert np.unique(seen["input_quantizer.codes"]).size == 256
    between = np.abs(feeds / np.float32(0.02) % 1 - 0.5) < 1e-3
    assert between.any()


def test_most_patches_of_a_tie_image_lie_on_the_nearest_tie() -> None:
    model = small_network()
    graph = reference_graph(model)
    layer = layers_of(model, graph)[0]
    window = window_from_attributes(layer.node.attributes, layer.kernel, (12, 12))
    codes = tie_image(np.random.default_rng(0), layer, window, (3, 12, 12), graph)
    weight = np.moveaxis(layer.centred_weight.reshape(8, 3, 3, 3), -1, 1)
    accumulators = convolve((codes - 128)[None].astype(np.int16), weight, layer.bias, layer.node.attributes)
    scale = (layer.source.scale * layer.weight_params.scale / np.float32(1 / 32)).reshape(1, -1, 1, 1)
    distance = np.abs(accumulators * scale % 1 - 0.5)
    random = np.random.default_rng(1).integers(0, 256, (1, 3, 12, 12)).astype(np.int16) - 128
    usual = np.abs(convolve(random, weight, layer.bias, layer.node.attributes) * scale % 1 - 0.5)
    assert (distance < 1e-3).sum() >= 8
    assert (distance < 1e-3).sum() > 3 * (usual < 1e-3).sum()


def test_extreme_images_reach_the_bounds_of_their_filters() -> None:
    model = small_network()
    graph = reference_graph(model)
    layer = layers_of(model, graph)[0]
    window = window_from_attributes(layer.node.attributes, layer.kernel, (12, 12))
    weight = np.moveaxis(layer.centred_weight.reshape(8, 3, 3, 3), -1, 1)
    positive, negative = np.maximum(weight, 0).sum((1, 2, 3)), np.minimum(weight, 0).sum((1, 2, 3))
    for largest, bound in ((True, 127 * positive - 128 * negative), (False, -128 * positive + 127 * negative)):
        codes = extreme_image(np.random.default_rng(0), layer, window, (3, 12, 12), largest=largest)
        accumulators = convolve((codes - 128)[None].astype(np.int16), weight, None, layer.node.attributes)[0]
        found = accumulators.max((1, 2)) if largest else accumulators.min((1, 2))
        assert (found == bound).sum() >= 4  # of eight filters: patches choose theirs at random


def squares_network() -> onnx.ModelProto:
    """Pixels become channels before they are quantized."""
    net = Builder()
    x = net.quantize(net.node("SpaceToDepth", ["input"], "squares", blocksize=2), "in", 0.02, 128)
    y = net.conv(x, "conv", (12, 8))
    return net.model(y.codes, (3, 12, 16), output_type=TensorProto.UINT8, output_rank=4)


def test_an_image_whose_pixels_are_moved_first_is_still_fed_by_its_codes() -> None:
    graph = reference_graph(squares_network())
    spec = input_spec(graph, {})
    assert (spec.code_shape, spec.read_shape) == ((3, 12, 16), (12, 6, 8))
    codes = np.random.default_rng(0).integers(0, 256, (1, 12, 6, 8)).astype(np.uint8)
    feed = spec.feed(spec.image_from_read(codes[0])[None])
    seen: dict[str, np.ndarray] = {}
    run_reference(graph, feed, lambda name, array: seen.setdefault(name, array))
    assert np.array_equal(seen["in.codes"], codes)


def test_extreme_images_are_found_behind_pixels_that_are_moved() -> None:
    model = squares_network()
    graph = reference_graph(model)
    layer = layers_of(model, graph)[0]
    seen: list[np.ndarray] = []
    run_reference(graph, made(model, 7), lambda name, array: seen.append(array) or array)
    weight = np.moveaxis(layer.centred_weight.reshape(8, 3, 3, 12), -1, 1)
    codes = seen[0].astype(np.int16) - 128
    found = convolve(codes, weight, None, layer.node.attributes)
    positive, negative = np.maximum(weight, 0).sum((1, 2, 3)), np.minimum(weight, 0).sum((1, 2, 3))
    highest, lowest = found.max((0, 2, 3)), found.min((0, 2, 3))
    assert (highest == 127 * positive - 128 * negative).any()
    assert (lowest == -128 * positive + 127 * negative).any()


def test_bytes_channels_last_are_fed_as_they_are() -> None:
    net = Builder()
    net.constant("in/scale", np.float32(1 / 64))
    net.constant("in/zero_point", np.uint8(120))
    codes = net.node("Transpose", ["input"], "channels first", perm=[0, 3, 1, 2])
    y = net.conv(net.dequantize(codes, "in", 1 / 64), "conv", (3, 8))
    model = net.model(y.codes, (12, 10, 3), input_type=TensorProto.UINT8, output_type=TensorProto.UINT8, output_rank=4)
    golden = np.random.default_rng(0).integers(0, 256, (1, 3, 12, 10)).astype(np.uint8)
    feeds = made(model, 9, golden)
    assert feeds.dtype == np.uint8
    assert feeds.shape == (9, 12, 10, 3)
    assert np.array_equal(feeds[0], golden[0].transpose(1, 2, 0))


def test_a_network_without_a_first_convolution_still_gets_inputs() -> None:
    net = Builder()
    x = net.unary("GlobalAveragePool", net.quantize("input", "in", 0.02, 3), "average", 0.013)
    model = net.model(x.codes, output_type=TensorProto.UINT8, output_rank=4)
    assert made(model, 7).shape == (7, 3, 12, 12)
