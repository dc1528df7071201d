"""A large window of stride 2 on squares of pixels computes the same integers."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from network_parts import Net, head, pooled, randomize
from stages import calibrated, folded_from, images, integer_logits, quantize_graph, run_onnx
from test_pipeline import SETTINGS, loaded
from torch import Tensor, nn
from torch.nn import functional as F

from gdfq_export.assumed_activations import propagate
from gdfq_export.emit import onnx_from_integer_model
from gdfq_export.exact import IntegerProgram
from gdfq_export.generator import image_spec
from gdfq_export.graph import INPUT, Graph, Node
from gdfq_export.lower import TARGETS, Quantized, integer_model_from_quantized, with_pixel_input
from gdfq_export.methods import Outcome
from gdfq_export.moments import Moments
from gdfq_export.moving_statistics import normalised_layers
from gdfq_export.ops import KERNELS
from gdfq_export.passes import pad_input, space_to_depth
from gdfq_export.passes.space_to_depth import DEEP
from gdfq_export.pipeline import Prepared, lower_outcome, prepare, run, write_files
from gdfq_export.plan import BitWidths, holds_pixels, make_plan
from gdfq_export.program import FloatProgram
from gdfq_export.runtime_checks.inspect import inspect_model
from gdfq_export.runtime_checks.verify import verify_model
from gdfq_export.saturation import breaking_channels
from gdfq_export.settings import Distillation, Reconstruction, Settings, Tuning

SHAPE = (3, 16, 18)
WINDOWS = [
    (5, (0, 0, 0, 0)),
    (5, (1, 2, 2, 3)),
    (7, (3, 3, 3, 3)),
    (7, (2, 3, 3, 2)),
    (7, (1, 0, 1, 0)),
    (11, (3, 3, 3, 3)),
    (11, (0, 2, 1, 3)),
]


def stem(
    kernel: int | tuple[int, int], pads: tuple[int, ...] = (0, 0, 0, 0), channels: int = 3, **options: int
) -> nn.Module:
    """A first convolution with pads (top, left, bottom, right), then a small one."""
    top, left, bottom, right = pads

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.norm(m.first(F.pad(x, (left, right, top, bottom)))))
        return m.fc(pooled(F.relu(m.next(x))))

    torch.manual_seed(0)
    first = nn.Conv2d(channels, 6, kernel, bias=False, **{"stride": 2, **options})
    return randomize(Net(forward, first=first, norm=nn.BatchNorm2d(6), next=nn.Conv2d(6, 8, 1), fc=head(8)))


@cache
def graph_of(kernel: int | tuple[int, int], pads: tuple[int, ...] = (0, 0, 0, 0), **options: int) -> Graph:
    channels = options.get("channels", 3)
    return folded_from(stem(kernel, pads, **options), (channels, *SHAPE[1:]))


def both(graph: Graph, bits: int) -> tuple[Quantized, Quantized]:
    """The same weights, scales and ranges in the old and the new form; no pair of weights can saturate in either."""
    widths = BitWidths(bits, bits)
    quantized = calibrated(graph, widths)
    if bits == 8:
        wider = {layer: scale * 2 for layer, scale in quantized.weight_scales.items()}
        quantized = dataclasses.replace(quantized, weight_scales=wider)
    deep = space_to_depth(graph)
    return quantized, dataclasses.replace(quantized, graph=deep, plan=make_plan(deep, widths, (-2.0, 2.0)))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("kernel", "pads"), WINDOWS)
def test_every_tensor_keeps_its_integers(kernel: int, pads: tuple[int, ...], bits: int) -> None:
    x = images(SHAPE, 6)
    models = [integer_model_from_quantized(each, TARGETS["portable"]) for each in both(graph_of(kernel, pads), bits)]
    seen: list[dict[str, torch.Tensor]] = [{}, {}]
    for found, model in zip(seen, models, strict=True):
        IntegerProgram(model).eval().run_codes(x, found.__setitem__)
    assert seen[1].keys() - seen[0].keys() == {DEEP}
    assert all(torch.equal(seen[1][key], value) for key, value in seen[0].items())
    ran = [run_onnx(onnx_from_integer_model(model), x).outputs for model in models]
    assert np.array_equal(ran[0], ran[1])
    assert np.array_equal(ran[1], integer_logits(models[1], x))


def single_convolution(shape: tuple[int, ...], kernel: tuple[int, int], pads: tuple[int, ...]) -> Graph:
    """A convolution of stride 2 with integer weights."""
    sizes = [(side + pads[i] + pads[i + 2] - kernel[i]) // 2 + 1 for i, side in enumerate(shape[1:])]
    attributes = {"stride": (2, 2), "pads": pads, "dilation": (1, 1), "groups": 1}
    nodes = (
        Node(INPUT, INPUT, (), shape),
        Node("first", "conv", (INPUT,), (6, *sizes), attributes, {"weight": "first/weight"}),
    )
    weight = torch.randint(-127, 128, (6, shape[0], *kernel), generator=torch.Generator().manual_seed(0)).double()
    return Graph(nodes, {"first/weight": weight}, "first")


@settings(max_examples=200)
@given(
    channels=st.integers(1, 4),
    kernel=st.tuples(st.integers(3, 12), st.integers(4, 12)),
    pads=st.tuples(*[st.integers(0, 5)] * 4),
    halves=st.tuples(st.integers(6, 9), st.integers(6, 9)),
)
def test_any_window_adds_up_the_same_products(
    channels: int, kernel: tuple[int, int], pads: tuple[int, ...], halves: tuple[int, int]
) -> None:
    shape = (channels, 2 * halves[0], 2 * halves[1])
    graph = single_convolution(shape, kernel, pads)
    deep = space_to_depth(graph)
    assume(deep is not graph)
    x = torch.randint(-255, 256, (2, *shape), generator=torch.Generator().manual_seed(1)).double()
    assert torch.equal(FloatProgram(deep)(x), FloatProgram(graph)(x))  # integers in double
    assert deep["first"].attributes["stride"] == (1, 1)
    assert min(deep["first"].attributes["pads"]) >= 0


def test_the_order_of_channels_is_that_of_the_operator() -> None:
    move = space_to_depth(graph_of(7, (3, 3, 3, 3)))[DEEP]
    x = images(SHAPE, 2)
    node = onnx.helper.make_node("SpaceToDepth", ["input"], ["y"], blocksize=2)
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("input", "y")]
    value[0] = onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [2, *SHAPE])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", value[:1], value[1:]),
        opset_imports=[onnx.helper.make_opsetid("", 21)],
        ir_version=10,
    )
    assert np.array_equal(run_onnx(model, x).outputs, KERNELS["space_to_depth"](move, [x], {}).numpy())


def test_pixels_are_moved_before_they_are_quantized(tmp_path: Path) -> None:
    model = quantize_graph(space_to_depth(graph_of(7, (3, 3, 3, 3))), BitWidths(8, 8))
    proto, x = onnx_from_integer_model(model), images(SHAPE)
    assert [node.op_type for node in proto.graph.node[:3]] == ["SpaceToDepth", "QuantizeLinear", "DequantizeLinear"]
    ran = run_onnx(proto, x, tmp_path)
    assert np.array_equal(ran.outputs, integer_logits(model, x))
    assert ran.kernels[:2] == ("SpaceToDepth", "QuantizeLinear")
    assert "Conv" not in ran.kernels


def test_an_image_of_fewer_bits_is_clipped_behind_its_quantizer() -> None:
    widths = BitWidths(8, 8, image=4)
    model = quantize_graph(space_to_depth(graph_of(7, (3, 3, 3, 3))), widths)
    assert np.array_equal(
        run_onnx(onnx_from_integer_model(model), images(SHAPE)).outputs, integer_logits(model, images(SHAPE))
    )
    assert model.tensors[DEEP].qmax == 15


def test_the_moved_image_shares_the_range_of_its_pixels() -> None:
    plan = make_plan(space_to_depth(graph_of(7)), BitWidths(4, 4), (-2.0, 2.0))
    assert plan.tensors[DEEP].group == INPUT
    assert plan.tensors[DEEP].bits == 8
    assert holds_pixels(plan.groups()[INPUT])
    assert DEEP not in plan.sources


def test_the_pairs_of_the_new_layout_cannot_saturate() -> None:
    model = quantize_graph(space_to_depth(graph_of(7, (3, 3, 3, 3))), BitWidths(8, 8))
    (first,) = model.graph.users()[DEEP]
    assert model.layers[first.name].q_weight.shape == (6, 12, 4, 4)
    assert not breaking_channels(model.layers[first.name].q_weight, 255).any()


def test_moments_of_channels_are_those_of_the_pixels() -> None:
    graph = space_to_depth(graph_of(7, (3, 3, 3, 3)))
    found = propagate(graph, {}, image_spec(SHAPE, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)))
    pixels: Moments = found[INPUT]
    assert torch.equal(found[DEEP].mean.view(4, 3), pixels.mean.expand(4, 3))
    assert torch.equal(found[DEEP].std.view(4, 3), pixels.std.expand(4, 3))


def test_the_float_function_stays_the_same() -> None:
    graph, x = graph_of(7, (3, 3, 3, 3)), images(SHAPE)
    # Sums of 147 products in another order: their rounding differs, far less than the logits.
    torch.testing.assert_close(FloatProgram(space_to_depth(graph))(x), FloatProgram(graph)(x), atol=1e-4, rtol=1e-4)


def test_padding_the_image_has_nothing_left_to_do() -> None:
    deep = space_to_depth(graph_of(7))
    assert pad_input(deep) is deep


def test_bytes_can_be_moved_after_their_normalisation() -> None:
    model = with_pixel_input(quantize_graph(space_to_depth(graph_of(7)), BitWidths(8, 8)), (0.5,) * 3, (0.25,) * 3)
    x = torch.randint(0, 256, (2, *SHAPE[1:], 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert integer_logits(model, x).shape == (2, 5)
    ops = [node.op_type for node in onnx_from_integer_model(model).graph.node]
    assert ops.index("QuantizeLinear") < ops.index("SpaceToDepth")


@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(lambda: graph_of(3), id="a small window"),
        pytest.param(lambda: graph_of(7, stride=1), id="stride 1"),
        pytest.param(lambda: graph_of(7, stride=4), id="stride 4"),
        pytest.param(lambda: graph_of(5, dilation=2), id="dilation"),
        pytest.param(lambda: graph_of(7, channels=3, groups=3), id="groups"),
        pytest.param(lambda: graph_of(7, channels=6), id="many channels"),
        pytest.param(lambda: graph_of(4, (1, 1, 1, 1)), id="a window that would more than double"),
        pytest.param(lambda: folded_from(stem(7), (3, 16, 17)), id="an odd side"),
    ],
)
def test_others_are_left_alone(graph: object) -> None:
    assert callable(graph)
    before = graph()
    assert space_to_depth(before) is before


def test_a_moving_batch_norm_still_finds_its_layer() -> None:
    module = stem(7, (3, 3, 3, 3))
    prepared = prepare(loaded(module, input_size=SHAPE), SETTINGS)
    (first,) = prepared.folded.users()[DEEP]
    assert first.name in normalised_layers(prepared.captured, prepared.folded)


def test_an_image_with_a_second_reader_is_left_alone() -> None:
    torch.manual_seed(0)
    module = Net(
        lambda m, x: m.fc(pooled(torch.cat([m.a(x), F.max_pool2d(x, 2)], 1))),
        a=nn.Conv2d(3, 5, 7, stride=2, padding=3),
        fc=head(8),
    )
    graph = folded_from(module, SHAPE)
    assert space_to_depth(graph) is graph


def prepared_with(chosen: Settings) -> Prepared:
    return prepare(loaded(stem(7, (3, 3, 3, 3)), input_size=SHAPE), chosen)


@pytest.mark.parametrize("bits", [8, 4])
def test_files_with_and_without_it_return_the_same_and_verify(bits: int, tmp_path: Path) -> None:
    wide = dataclasses.replace(SETTINGS, bits=BitWidths(bits, bits), without=("space_to_depth",))
    deep = dataclasses.replace(wide, without=())
    plain, moved = prepared_with(wide), prepared_with(deep)
    assert not plain.folded.of("space_to_depth")
    quantized = both(plain.folded, bits)[0]
    quantized = dataclasses.replace(quantized, plan=plain.plan)
    x = images(SHAPE, 8)
    outputs = []
    for prepared, chosen in ((plain, wide), (moved, deep)):
        own = dataclasses.replace(quantized, graph=prepared.folded, plan=prepared.plan)
        path = tmp_path / f"{len(outputs)}.onnx"
        write_files(lower_outcome(prepared, chosen, Outcome(own, x)), chosen, path, companions=True)
        outputs.append(run_onnx(onnx.load(path), x).outputs)
        program = torch.export.load(path.with_suffix(".fakequant.pt2")).module()
        assert np.array_equal(program(x).numpy(), outputs[-1])
        assert verify_model(path, samples=12).passed
        assert not inspect_model(path).float_operators
    assert np.array_equal(outputs[0], outputs[1])
    float_plain, float_moved = (onnx.load(tmp_path / f"{index}.fp32.onnx") for index in (0, 1))
    assert float_plain.graph == float_moved.graph


@pytest.mark.parametrize("method", ["gdfq", "dfq", "auto"])
def test_what_is_learned_on_squares_verifies(method: str, tmp_path: Path) -> None:
    short = dataclasses.replace(
        SETTINGS,
        method=method,
        bits=BitWidths(4, 4),
        distillation=Distillation(images=32, batch=32, steps=2),
        reconstruction=Reconstruction(steps=6, batch=8),
        tuning=Tuning(steps=6, batch=8),
    )
    out = tmp_path / "m.onnx"
    run(loaded(stem(7, (3, 3, 3, 3)), input_size=SHAPE), short, out)
    assert "SpaceToDepth" in {node.op_type for node in onnx.load(out).graph.node}
    assert verify_model(out, samples=8).passed


def test_bytes_keep_the_form_that_all_versions_of_the_runtime_have() -> None:
    assert not prepared_with(dataclasses.replace(SETTINGS, input_format="uint8-nhwc")).folded.of("space_to_depth")


def test_processors_with_vnni_get_it_too() -> None:
    graph = prepared_with(dataclasses.replace(SETTINGS, target="x86-vnni")).folded
    assert graph.of("space_to_depth")
    assert not graph.of("pad_channels")
