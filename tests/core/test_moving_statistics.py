"""Batch norms that move behind folded layers: the identity at first, folded back without changing a code."""

from __future__ import annotations

import pytest
import torch
from small_networks import shape_of
from stages import calibrated, captured, folded, images

from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.moving_statistics import MovingStatisticsProgram, normalised_layers
from gdfq_export.passes import canonicalize
from gdfq_export.plan import BitWidths

W4A4 = BitWidths(4, 4)


def moving(name: str) -> MovingStatisticsProgram:
    return MovingStatisticsProgram(calibrated(folded(name), W4A4), canonicalize(captured(name)), learned_steps=False)


@pytest.mark.parametrize("name", ["plain", "residual", "dense", "dropout_and_view"])
def test_every_batch_norm_has_its_layer(name: str) -> None:
    graph = canonicalize(captured(name))
    assert len(normalised_layers(graph, folded(name))) == len(graph.of("batch_norm"))


@pytest.mark.parametrize("name", ["plain", "residual", "dropout_and_view"])
def test_it_starts_as_the_student_with_fixed_statistics(name: str) -> None:
    x = images(shape_of(name))
    program = moving(name).eval()
    with torch.no_grad():
        # 1e-5: one more multiplication and addition in float32; no value stands that near to a rounding boundary
        assert torch.allclose(program(x), FakeQuantProgram(program.quantized(), learned_steps=False)(x), atol=1e-5)


def test_statistics_move_in_training_and_stay_in_evaluation() -> None:
    program, x = moving("plain"), images()
    norm = program.norms["n0"]
    start = norm.get_buffer("mean").clone()
    program.eval()(x)
    assert torch.equal(norm.get_buffer("mean"), start)
    program.train()(x)
    assert not torch.equal(norm.get_buffer("mean"), start)


def test_a_batch_is_normalised_to_the_shift_and_scale() -> None:
    program = moving("plain").train()
    x = torch.randn(64, 1, 1, 1) * torch.ones(1, len(program.norms["n0"].scale), 1, 1)
    y = program.norms["n0"](5 * x + 3)
    gamma = normalised_layers(canonicalize(captured("plain")), folded("plain"))["a.0"]
    # 1e-3: eps of the batch norm against a variance of 25
    assert torch.allclose(y.mean((0, 2, 3)), gamma[1], atol=1e-3)
    assert torch.allclose(y.std((0, 2, 3), correction=0), gamma[0].abs(), atol=1e-2)


def test_folding_back_changes_no_code_of_a_weight() -> None:
    program, x = moving("residual").train(), images(count=16)
    before = program.plan.weights
    for _ in range(3):
        program(3 * x)
    plain, folded_back = FakeQuantProgram.quantized(program), program.quantized()
    for layer in before:
        key = plain.graph[layer].parameters["weight"]
        shape = (-1, *[1] * (plain.graph.parameters[key].ndim - 1))
        old, new = (
            torch.round(q.graph.parameters[key] / q.weight_scales[layer].view(shape)) for q in (plain, folded_back)
        )
        assert torch.equal(old, new)


def test_after_training_the_folded_student_computes_what_was_trained() -> None:
    program, x = moving("residual").train(), images(count=16)
    optimizer = torch.optim.SGD([p for p in program.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        program(x).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        trained = program.eval()(x)
        exported = FakeQuantProgram(program.quantized(), learned_steps=False)(x)
    # 0.05 of logits near 0.5: a value at a rounding boundary moves by one step of 15
    assert (trained - exported).abs().mean() < 0.05
