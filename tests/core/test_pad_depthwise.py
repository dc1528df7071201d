"""Channels of zeros around depthwise convolutions change no code that was there before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from network_parts import Net, conv_bn, head, pooled, randomize
from stages import calibrated, folded_from, images, integer_logits, quantize_graph, run_onnx
from test_pipeline import SETTINGS, loaded
from torch import Tensor, nn
from torch.nn import functional as F

from gdfq_export.emit import onnx_from_integer_model
from gdfq_export.exact import IntegerProgram
from gdfq_export.integer import IntegerModel
from gdfq_export.lower import lower, with_pixel_input
from gdfq_export.pad_depthwise import pad_depthwise
from gdfq_export.pipeline import lower_outcome, prepare, quantize_model, write_files
from gdfq_export.plan import BitWidths
from gdfq_export.runtime_checks.inspect import inspect_model
from gdfq_export.runtime_checks.verify import verify_model
from gdfq_export.saturation import breaking_channels
from gdfq_export.settings import Distillation
from gdfq_export.simulation import compare_simulation

Activation = Callable[[Tensor], Tensor]
CHANNELS = 18  # of the depthwise layers, which become 32


def bottleneck(activation: Activation, channels: int = CHANNELS, *, depth: int = 1, window: int = 1) -> nn.Module:
    """Inverted residual: expand, `depth` depthwise layers, project with windows of `window`, and a sum."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = activation(m.stem(x))
        y = activation(m.expand(x))
        for layer in m.depthwise:
            y = activation(layer(y))
        return m.fc(pooled(activation(m.project(y) + x)))

    torch.manual_seed(0)
    layers = [conv_bn(channels, channels, 3 + 2 * index, groups=channels) for index in range(depth)]
    parts = {"stem": conv_bn(3, 6), "expand": conv_bn(6, channels, 1), "project": conv_bn(channels, 6, window)}
    return randomize(Net(forward, **parts, depthwise=nn.ModuleList(layers), fc=head(6)))


def between(middle: Callable[[nn.Module, Tensor], Tensor], read: int = CHANNELS) -> nn.Module:
    """Expand, whatever `middle` does with its depthwise layer, and a convolution that reads `read` channels."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.fc(pooled(F.relu(m.project(middle(m, F.relu6(m.expand(x)))))))

    torch.manual_seed(0)
    return randomize(
        Net(
            forward,
            expand=conv_bn(3, CHANNELS),
            depthwise=conv_bn(CHANNELS, CHANNELS, groups=CHANNELS),
            twice=conv_bn(CHANNELS, 2 * CHANNELS, groups=CHANNELS),
            grouped=conv_bn(CHANNELS, CHANNELS, groups=2),
            squeeze=nn.Conv2d(CHANNELS, 4, 1),
            excite=nn.Conv2d(4, CHANNELS, 1),
            project=conv_bn(read, 6, 1),
            fc=head(6),
        )
    )


def excited(m: nn.Module, x: Tensor) -> Tensor:
    x = F.relu6(m.depthwise(x))
    factor = torch.sigmoid(m.excite(F.relu(m.squeeze(F.adaptive_avg_pool2d(x, 1)))))
    return F.avg_pool2d(F.pad(x * factor, (0, 1, 0, 1)), 2, 1)


def shuffled(x: Tensor) -> Tensor:
    count, channels, *space = x.shape
    return x.view(count, 3, channels // 3, *space).transpose(1, 2).reshape(count, channels, *space)


WIDENED: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ReLU6": (lambda: bottleneck(F.relu6), 1),
    "ReLU": (lambda: bottleneck(F.relu, 8), 1),
    "no activation": (lambda: bottleneck(lambda x: x), 1),
    "hard swish": (lambda: bottleneck(F.hardswish), 1),
    "SiLU": (lambda: bottleneck(F.silu), 1),
    "GELU": (lambda: bottleneck(F.gelu, 20), 1),
    "two in a chain": (lambda: bottleneck(F.relu6, 24, depth=2), 2),
    "an odd number": (lambda: bottleneck(F.relu6, 17), 1),
    "squeeze and excitation": (lambda: between(excited), 2),  # and the pooling, which is depthwise too
}


@cache
def lowered(name: str, bits: int) -> IntegerModel:
    """What stands in the file without the pass."""
    quantized = calibrated(folded_from(WIDENED[name][0]()), BitWidths(bits, bits))
    return lower(quantized, "x86-avx2", ("pad_depthwise",))  # which looks for no scales that fit other processors


def codes_of(model: IntegerModel, x: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    IntegerProgram(model).eval().run_codes(x, seen.__setitem__)
    return seen


def groups_of(model: IntegerModel) -> list[int]:
    return [node.attributes["groups"] for node in model.graph.of("conv") if node.attributes["groups"] > 1]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", WIDENED)
def test_every_old_channel_keeps_its_integers_in_the_runtime_too(name: str, bits: int) -> None:
    plain, x = lowered(name, bits), images(count=8)
    model = pad_depthwise(plain)
    assert len(groups_of(model)) == WIDENED[name][1]
    assert all(groups % 16 == 0 for groups in groups_of(model))
    before, after = codes_of(plain, x), codes_of(model, x)
    assert before.keys() == after.keys()
    for tensor, codes in before.items():
        assert torch.equal(after[tensor][tuple(map(slice, codes.shape))], codes)
    assert any(after[tensor].shape != codes.shape for tensor, codes in before.items())
    expected = integer_logits(plain, x)
    assert np.array_equal(integer_logits(model, x), expected)
    assert np.array_equal(run_onnx(onnx_from_integer_model(model), x).outputs, expected)


@given(st.integers(8, 40), st.sampled_from([8, 4, 3, 2]), st.integers(0, 2**31))
@settings(max_examples=5)
def test_any_number_of_channels_and_bits_can_be_widened(channels: int, bits: int, seed: int) -> None:
    plain = quantize_graph(folded_from(bottleneck(F.relu6, channels)), BitWidths(bits, 8), target="x86-avx2")
    model, x = pad_depthwise(plain), images(count=2, seed=seed)
    assert groups_of(model) == [-(-channels // 16) * 16]
    assert np.array_equal(run_onnx(onnx_from_integer_model(model), x).outputs, integer_logits(plain, x))


@pytest.mark.parametrize("name", WIDENED)
def test_new_weights_are_zeros_and_no_pair_saturates(name: str) -> None:
    plain = lowered(name, 8)
    model = pad_depthwise(plain)
    for layer, wide in model.layers.items():
        narrow, source = plain.layers[layer], model.tensors[model.graph[layer].inputs[0]]
        old = tuple(map(slice, narrow.q_weight.shape))
        assert np.array_equal(wide.q_weight[old], narrow.q_weight)
        assert np.abs(wide.q_weight).sum(dtype=np.int64) == np.abs(narrow.q_weight).sum(dtype=np.int64)
        assert np.array_equal(wide.scale[old[0]], narrow.scale)
        assert set(wide.scale) == set(narrow.scale)
        assert not wide.q_bias[len(narrow.q_bias) :].any()
        if model.graph[layer].attributes.get("groups", 1) == 1:
            assert not breaking_channels(wide.q_weight, source.qmax).any()


LEFT: dict[str, Callable[[], nn.Module]] = {
    "16 channels": lambda: bottleneck(F.relu6, 16),
    "less than half of the next multiple": lambda: bottleneck(F.relu6, 7),
    "a window of 3x3 reads": lambda: bottleneck(F.relu6, window=3),
    "a sum in between": lambda: between(lambda m, x: F.relu6(m.depthwise(x)) + x),
    "a concat in between": lambda: between(lambda m, x: torch.cat([m.depthwise(x), x], 1), 2 * CHANNELS),
    "a concat reads too": lambda: between(lambda m, x: torch.cat([F.relu(m.depthwise(x)), x], 1), 2 * CHANNELS),
    "a slice in between": lambda: between(lambda m, x: F.relu(m.depthwise(x))[:, 2:], CHANNELS - 2),
    "a slice reads too": lambda: between(lambda m, x: F.relu(m.depthwise(x)) * x[:, :1]),
    "a shuffle in between": lambda: between(lambda m, x: shuffled(F.relu(m.depthwise(x)))),
    "a grouped convolution in between": lambda: between(lambda m, x: m.grouped(F.relu(m.depthwise(x)))),
    "two filters a channel": lambda: between(lambda m, x: F.relu(m.twice(x)), 2 * CHANNELS),
    "no depthwise convolution": lambda: between(lambda m, x: x),
}


@pytest.mark.parametrize("name", LEFT)
def test_others_stay(name: str) -> None:
    model = quantize_graph(folded_from(LEFT[name]()), BitWidths(8, 8), target="x86-avx2")
    assert pad_depthwise(model) is model


def test_a_depthwise_layer_on_the_image_or_before_the_head_stays() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.fc(pooled(F.relu(m.last(F.relu(m.middle(F.relu(m.first(x))))))))

    layers = {"first": conv_bn(9, 9, groups=9), "middle": conv_bn(9, 20, 1), "last": conv_bn(20, 20, groups=20)}
    graph = folded_from(randomize(Net(forward, **layers, fc=head(20))), (9, 8, 8))
    model = quantize_graph(graph, BitWidths(8, 8), target="x86-avx2")
    assert pad_depthwise(model) is model


def test_the_simulation_is_compared_on_the_old_channels() -> None:
    quantized = calibrated(folded_from(bottleneck(F.relu6)), BitWidths(8, 8))
    programs = [IntegerProgram(lower(quantized, "portable", without)).eval() for without in ((), ("pad_depthwise",))]
    gaps = [compare_simulation(quantized, program, images()) for program in programs]
    assert groups_of(programs[0].model) != groups_of(programs[1].model)
    assert gaps[0] == gaps[1]


@pytest.mark.parametrize("bits", [8, 4])
def test_files_with_and_without_it_return_the_same_and_verify(bits: int, tmp_path: Path) -> None:
    wide = dataclasses.replace(SETTINGS, bits=BitWidths(bits, 8))
    plain = dataclasses.replace(wide, without=("pad_depthwise",))
    prepared, x = prepare(loaded(bottleneck(F.relu6)), wide), images(count=8)
    outcome = quantize_model(prepared, wide).outcome
    outputs, groups = [], []
    for chosen in (wide, plain):
        path = tmp_path / f"{len(outputs)}.onnx"
        exported = lower_outcome(prepared, chosen, outcome)
        write_files(exported, chosen, path, companions=True)
        groups.append(groups_of(exported.integer))
        outputs.append(run_onnx(onnx.load(path), x).outputs)
        program = torch.export.load(path.with_suffix(".fakequant.pt2")).module()
        assert np.array_equal(program(x).numpy(), outputs[-1])
        assert verify_model(path, samples=6).passed
        assert not inspect_model(path).float_operators
    assert groups == [[32], [CHANNELS]]
    assert np.array_equal(*outputs)


def test_bytes_as_input_return_the_same() -> None:
    plain = with_pixel_input(lowered("ReLU6", 8), (0.5,) * 3, (0.25,) * 3)
    wide = with_pixel_input(pad_depthwise(lowered("ReLU6", 8)), (0.5,) * 3, (0.25,) * 3)
    x = torch.randint(0, 256, (4, 8, 8, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert np.array_equal(run_onnx(onnx_from_integer_model(wide), x).outputs, integer_logits(plain, x))


def test_a_budget_in_bytes_counts_the_zeros(tmp_path: Path) -> None:
    few = Distillation(images=32, batch=32, steps=2, shift=1)
    asked = dataclasses.replace(SETTINGS, method="zeroq", ranges="ema", distillation=few, size_budget=10**9)
    prepared = prepare(loaded(bottleneck(F.relu6, 136)), asked)
    curve = quantize_model(prepared, asked).outcome.curve
    assert curve is not None
    middle = curve.front[len(curve.front) // 2][0]
    for budget in (curve.front[0][0], middle):
        chosen = dataclasses.replace(asked, size_budget=budget)
        exported = quantize_model(prepared, chosen)
        assert groups_of(exported.integer) == [144]
        assert write_files(exported, chosen, tmp_path / "m.onnx", companions=False)["file_bytes"] <= budget
