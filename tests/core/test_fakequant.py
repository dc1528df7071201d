from __future__ import annotations

import math

import pytest
import torch
from stages import calibrated, folded, images
from torch import nn

from gdfq_export.exact import IntegerProgram
from gdfq_export.fakequant import FakeQuantProgram, fake_quantize
from gdfq_export.lower import TARGETS, integer_model_from_quantized
from gdfq_export.plan import BitWidths
from gdfq_export.program import FloatProgram

W8A8, W4A4 = BitWidths(8, 8), BitWidths(4, 4)


def gradients(x: list[float], scale: float, zero_point: int = 2, qmax: int = 7) -> tuple[list[float], float]:
    """Of the sum of the results, for the values and for the scale, before LSQ's normalisation by sqrt(N)."""
    values, step = torch.tensor(x, requires_grad=True), torch.tensor(scale, requires_grad=True)
    fake_quantize(values, step, zero_point, 0, qmax).sum().backward()
    assert values.grad is not None
    assert step.grad is not None
    return values.grad.tolist(), step.grad.item() * math.sqrt(len(x))


def test_values_are_rounded_like_the_exported_ones() -> None:
    x, scale = torch.linspace(-3, 5, 101), torch.tensor(0.3)
    codes = torch.clamp(torch.round(x / scale) + 4, 0, 15)
    assert torch.equal(fake_quantize(x, scale, 4, 0, 15), (codes - 4) * scale)


def test_the_gradient_of_a_value_is_one_inside_and_zero_where_it_is_clipped() -> None:
    assert gradients([0.4, -1.9, 4.9, -9.0, 9.0], 1.0)[0] == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_the_gradient_of_the_scale_is_the_rounding_error_inside() -> None:
    # 1e-6: float32
    assert gradients([1.3], 1.0)[1] == pytest.approx(1.0 - 1.3, abs=1e-6)


def test_the_gradient_of_the_scale_is_the_clipped_code_outside() -> None:
    assert gradients([99.0], 1.0)[1] == 7 - 2
    assert gradients([-99.0], 1.0)[1] == 0 - 2


def test_the_gradient_of_the_scale_is_divided_by_the_root_of_the_count() -> None:
    step = torch.tensor(1.0, requires_grad=True)
    fake_quantize(torch.full((4,), 99.0), step, 2, 0, 7).sum().backward()
    assert step.grad is not None
    assert step.grad.item() == 4 * 5 / math.sqrt(4)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_gradient_of_the_scale_is_exact_where_most_of_it_cancels(bits: int) -> None:
    """A gradient of one sign behind a ReLU: the codes add up to thousands of times what their rounding does."""
    qmax, size = 2**bits - 1, (8, 16, 32, 32)
    x = torch.rand(size, generator=torch.Generator().manual_seed(0)) - 0.05
    x = x.contiguous(memory_format=torch.channels_last)
    step = torch.tensor(1.1 / qmax, requires_grad=True)
    fake_quantize(x, step, 0, 0, qmax, floor=0.0).sum().backward()
    assert step.grad is not None
    ratio = x / step.detach()
    slope = torch.where(ratio > 0, torch.round(ratio) - ratio, 0.0).double().sum()
    # 1e-3: sums in float32
    assert step.grad.item() == pytest.approx(float(slope) / math.sqrt(x.numel()), rel=1e-3)


def test_a_gradient_comes_in_the_memory_layout_of_its_value() -> None:
    x = torch.rand(2, 4, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_(True)
    gradient = torch.ones(2, 4, 1, 1).expand(2, 4, 3, 3)  # as a mean over space gives it: dense in no layout
    (found,) = torch.autograd.grad(fake_quantize(x, torch.tensor(0.1), 0, 0, 15), x, gradient)
    assert found.stride() == x.stride()
    assert torch.equal(found, torch.ones_like(x))


def test_each_channel_of_a_weight_has_a_gradient_for_its_scale() -> None:
    weight, step = torch.randn(3, 2, 1, 1), torch.rand(3, 1, 1, 1, requires_grad=True)
    fake_quantize(weight, step, 0, -7, 7).sum().backward()
    assert step.grad is not None
    assert step.grad.shape == (3, 1, 1, 1)


@pytest.mark.parametrize("name", ["plain", "residual", "squeeze_excite", "concat", "hard_swish", "softmax_end"])
def test_the_simulation_is_the_integer_network_to_a_few_steps(name: str) -> None:
    quantized, x = calibrated(folded(name), W8A8), images()
    with torch.no_grad():
        simulated = FakeQuantProgram(quantized, learned_steps=False)(x)
        integer = IntegerProgram(integer_model_from_quantized(quantized, TARGETS["x86-vnni"]))(x)
    # 0.02 of logits near 0.5: a tie or a rounded bias moves single codes by one of 255 steps
    assert (simulated - integer).abs().max() < 0.02


def test_nothing_changes_on_the_way_through_an_untrained_simulation() -> None:
    quantized = calibrated(folded("residual"), W4A4)
    back = FakeQuantProgram(quantized, learned_steps=True).quantized()
    assert back.plan is quantized.plan
    assert all(torch.equal(back.graph.parameters[key], value) for key, value in quantized.graph.parameters.items())
    assert all(torch.equal(back.weight_scales[key], value) for key, value in quantized.weight_scales.items())
    for group, affine in quantized.affines.items():
        assert back.affines[group].zero_point == affine.zero_point
        assert back.affines[group].scale == pytest.approx(affine.scale, rel=1e-7)  # held in float32


def test_training_does_not_touch_the_network_it_started_from() -> None:
    quantized = calibrated(folded("plain"), W4A4)
    before = {key: value.clone() for key, value in quantized.graph.parameters.items()}
    program = FakeQuantProgram(quantized, learned_steps=True)
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    program(images()).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(quantized.graph.parameters[key], value) for key, value in before.items())
    changed = program.quantized().graph.parameters
    assert any(not torch.equal(changed[key], value) for key, value in before.items())


@pytest.mark.parametrize("learned", [True, False])
def test_steps_are_trained_only_where_they_are_learned(learned: bool) -> None:
    program = FakeQuantProgram(calibrated(folded("plain"), W4A4), learned_steps=learned)
    program(images()).sum().backward()
    steps: list[nn.Parameter] = [*program.steps.values(), *program.weight_steps.values()]
    assert all((step.grad is not None) == learned for step in steps)


def test_every_weight_and_bias_gets_a_gradient() -> None:
    program = FakeQuantProgram(calibrated(folded("residual"), W4A4), learned_steps=False)
    program(images()).sum().backward()
    assert all(value.grad is not None for value in program.values.values())


def test_training_lowers_the_distance_to_the_float_network() -> None:
    graph, x = folded("plain"), images()
    program, expected = FakeQuantProgram(calibrated(graph, W4A4), learned_steps=False), FloatProgram(graph)(x)
    optimizer = torch.optim.SGD([p for p in program.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(20):
        loss = (program(x) - expected).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < losses[0]


def test_a_relu_that_its_quantizer_saturates_is_the_same_without_an_operator() -> None:
    x, step = torch.linspace(-2, 3, 51, requires_grad=True), torch.tensor(0.3)
    plain = fake_quantize(torch.relu(x), step, 0, 0, 7)
    (expected,) = torch.autograd.grad(plain.square().sum(), x)
    fused = fake_quantize(x, step, 0, 0, 7, floor=0.0)
    (found,) = torch.autograd.grad(fused.square().sum(), x)
    assert torch.equal(fused, plain)
    assert torch.equal(found, expected)
