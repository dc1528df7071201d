"""Tuning the whole network: what is trained, in which units, and that what it returns is what the file will hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from small_networks import NETWORKS
from stages import calibrated, folded, images
from torch import Tensor

from gdfq_export import end_to_end
from gdfq_export.block_program import largest_step
from gdfq_export.checkpoint import Checkpoint
from gdfq_export.end_to_end import LOST, TUNING_STAGE, TunedProgram, block_outputs, loss_of, relative_distance, tune
from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.graph import INPUT, Graph, unshared
from gdfq_export.lower import Quantized
from gdfq_export.plan import BitWidths, without_endings
from gdfq_export.program import FloatProgram
from gdfq_export.progress import silent
from gdfq_export.quantizers import quantize_weight
from gdfq_export.settings import Tuning
from gdfq_export.stopwatch import Stopwatch

W4A4 = BitWidths(4, 4)
SHORT = Tuning(steps=4, batch=4, shift=1)


def exact(name: str) -> Graph:
    return unshared(without_endings(folded(name))[0])


def start(name: str, bits: BitWidths = W4A4) -> Quantized:
    return calibrated(exact(name), bits)


def codes(quantized: Quantized, layer: str) -> Tensor:
    weight = quantized.graph.parameters[quantized.graph[layer].parameters["weight"]]
    return quantize_weight(weight, quantized.weight_scales[layer], quantized.plan.weights[layer].qmax)


def logits(quantized: Quantized, x: Tensor) -> Tensor:
    with torch.no_grad():
        return FakeQuantProgram(quantized, learned_steps=False)(x)


def some(name: str, count: int = 8) -> Tensor:
    return images(folded(name).input_shape, count=count)


@pytest.mark.parametrize("name", NETWORKS)
def test_before_training_it_computes_what_the_quantized_network_computes(name: str) -> None:
    quantized, x = start(name), some(name, 4)
    with torch.no_grad():
        found = TunedProgram(quantized)(x)
    # a weight is a code times its scale in both, and a tie may fall the other way
    torch.testing.assert_close(found, logits(quantized, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_trained_is_returned_on_the_grid(name: str) -> None:
    quantized, x = start(name), some(name)
    program = TunedProgram(quantized)
    randomness = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for values in (program.codes, program.rows, program.moves, program.shifts):
            for value in values.values():
                value += 0.3 * torch.randn(value.shape, generator=randomness)
        expected = program(x)
    found = program.quantized()
    torch.testing.assert_close(logits(found, x), expected, rtol=1e-4, atol=1e-4)
    for layer in found.plan.weights:
        weight = found.graph.parameters[found.graph[layer].parameters["weight"]]
        ratio = weight / found.weight_scales[layer].view(-1, *[1] * (weight.ndim - 1))
        torch.testing.assert_close(ratio, ratio.round(), rtol=0, atol=1e-4)  # 1e-4: float32 division


def test_training_brings_the_logits_closer_to_the_float_ones_of_unseen_images() -> None:
    quantized, x = start("residual", BitWidths(3, 4)), some("residual", 128)
    schedule = Tuning(steps=150, batch=32, hurried_lr=0.003, scale_lr=0.005, shift=0)
    tuned = tune(quantized, exact("residual"), x[:96], schedule, 0, silent)
    wanted = FloatProgram(exact("residual"))(x[96:])
    before, after = (relative_distance(logits(state, x[96:]), wanted) for state in (quantized, tuned))
    assert after < 0.7 * before
    assert any(not torch.equal(codes(tuned, layer), codes(quantized, layer)) for layer in quantized.plan.weights)


def test_the_loss_is_the_distance_of_centred_logits_and_of_what_blocks_hand_on() -> None:
    quantized, x = start("residual"), some("residual", 4)
    points = block_outputs(quantized)
    assert points
    assert set(points) <= set(quantized.plan.sources)
    wanted: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    float_logits = FloatProgram(exact("residual"))(x, wanted.__setitem__)
    rounded_logits = FakeQuantProgram(quantized, learned_steps=False)(x, found.__setitem__).detach()
    squares = [((found[name] - wanted[name]) ** 2).sum() / (wanted[name] ** 2).sum() for name in points]
    a, b = (value - value.mean(1, keepdim=True) for value in (rounded_logits, float_logits))
    by_hand = ((a - b) ** 2).sum() / (b**2).sum() + sum(squares) / len(squares)
    made = loss_of(TunedProgram(quantized), FloatProgram(exact("residual")), x, points)
    torch.testing.assert_close(made.detach(), by_hand.detach(), rtol=1e-4, atol=0)


def test_the_size_of_a_layers_values_does_not_matter() -> None:
    """Weights move by shares of a code: a layer with tiny scales learns the same codes."""
    x, before = some("plain", 16), start("plain")
    (layer,) = before.graph.of("linear")
    keys = layer.parameters.values()

    def scaled(graph: Graph) -> Graph:
        parameters = {key: value * 2.0**-12 if key in keys else value for key, value in graph.parameters.items()}
        return Graph(graph.nodes, parameters, graph.output)

    scales = {name: v * 2.0**-12 if name == layer.name else v for name, v in before.weight_scales.items()}
    small = dataclasses.replace(before, graph=scaled(before.graph), weight_scales=scales)
    schedule = Tuning(steps=20, batch=8, hurried_lr=0.1)
    one = tune(before, exact("plain"), x, schedule, 0, silent)
    two = tune(small, scaled(exact("plain")), x, schedule, 0, silent)
    assert torch.equal(codes(one, layer.name), codes(two, layer.name))
    assert not torch.equal(codes(one, layer.name), codes(before, layer.name))


def test_scales_stay_below_what_the_clip_they_stand_for_allows() -> None:
    name = "linear_bottleneck"
    schedule = dataclasses.replace(SHORT, steps=12, scale_lr=3.0)  # far too large: the limit must hold
    quantized = tune(start(name), exact(name), some(name), schedule, 0, silent)
    bounded = [spec for spec in quantized.plan.tensors.values() if spec.high == 6.0]
    assert bounded
    for spec in bounded:
        affine = quantized.affines[spec.group]
        assert affine.scale <= largest_step([spec], affine)


def test_pixels_keep_their_scale() -> None:
    before = start("plain", BitWidths(4, 4))
    spec = dataclasses.replace(before.plan.tensors[INPUT], bits=8, low=-2.0, high=2.0)
    plan = dataclasses.replace(before.plan, tensors={**before.plan.tensors, INPUT: spec})
    program = TunedProgram(dataclasses.replace(before, plan=plan))
    assert program.groups[spec.group] not in program.moves
    assert len(program.moves) == len(program.groups) - 1


def test_the_same_seed_learns_the_same_and_another_seed_does_not() -> None:
    fast = dataclasses.replace(SHORT, hurried_lr=0.5)
    runs = [tune(start("residual"), exact("residual"), some("residual"), fast, seed, silent) for seed in (0, 0, 1)]
    same = [run.graph.parameters for run in runs]
    assert all(torch.equal(same[0][key], same[1][key]) for key in same[0])
    assert any(not torch.equal(same[0][key], same[2][key]) for key in same[0])


def test_without_time_there_is_only_the_step_that_shows_it() -> None:
    seen: list[float] = []
    long = dataclasses.replace(SHORT, steps=1000)
    tune(
        start("plain"),
        exact("plain"),
        some("plain"),
        long,
        0,
        lambda what, done, total: seen.append(done),
        Stopwatch(0.0),
    )
    assert seen == [1]


def test_a_loss_that_is_no_number_leaves_the_network_as_it_was() -> None:
    before = start("plain")
    assert tune(before, exact("plain"), some("plain") * float("nan"), SHORT, 0, silent) is before


class KilledError(Exception):
    pass


def test_a_run_that_was_killed_ends_with_the_same_values(tmp_path: Path) -> None:
    schedule, x = dataclasses.replace(SHORT, steps=8, hurried_lr=0.3), some("residual")
    whole = tune(start("residual"), exact("residual"), x, schedule, 0, silent)
    checkpoint = Checkpoint(tmp_path / "work")
    checkpoint.is_due = lambda: True  # type: ignore[method-assign]

    def kill(what: str, done: float, total: float) -> None:
        if done == 5:
            raise KilledError

    with pytest.raises(KilledError):
        tune(start("residual"), exact("residual"), x, schedule, 0, kill, checkpoint=checkpoint)
    saved = checkpoint.load(TUNING_STAGE)
    assert saved is not None
    assert saved["done"] == 4
    resumed = tune(start("residual"), exact("residual"), x, schedule, 0, silent, checkpoint=checkpoint)
    assert resumed.affines == whole.affines
    assert all(torch.equal(resumed.graph.parameters[k], v) for k, v in whole.graph.parameters.items())


def test_weights_move_faster_where_a_budget_leaves_few_steps() -> None:
    schedule = Tuning(steps=1000, weight_lr=0.01, hurried_lr=0.04)
    assert schedule.weight_rate(1000) == 0.01
    assert schedule.weight_rate(100) == 0.04


def test_where_the_loss_leaps_up_it_begins_again_at_half_the_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    quantized, moved = start("residual"), []

    def leaping(program: TunedProgram, teacher: FloatProgram, x: Tensor, points: list[str], guidance: float) -> Tensor:
        moved.append(max(float((codes - first).abs().max()) for codes, first in _codes(program, quantized)))
        return loss_of(program, teacher, x, points, guidance) * (2 * LOST if len(moved) == 3 else 1.0)

    monkeypatch.setattr(end_to_end, "loss_of", leaping)
    schedule = Tuning(steps=6, batch=4, shift=1, hurried_lr=0.01)
    tune(quantized, exact("residual"), some("residual"), schedule, 0, silent)
    assert moved[2] > 0.01  # two steps of Adam, each of about its rate
    assert moved[3] == 0.0
    assert 0.0 < moved[4] < 0.006


@pytest.mark.parametrize(("release", "expected"), [(0.0, [1.0] * 4), (1.0, [1.0, 0.75, 0.5, 0.25])])
def test_the_blocks_let_go_as_the_schedule_says(
    release: float, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def recording(
        program: TunedProgram, teacher: FloatProgram, x: Tensor, points: list[str], guidance: float
    ) -> Tensor:
        found.append(guidance)
        return loss_of(program, teacher, x, points, guidance)

    monkeypatch.setattr(end_to_end, "loss_of", recording)
    schedule = dataclasses.replace(SHORT, release=release)
    tune(start("plain"), exact("plain"), some("plain"), schedule, 0, silent)
    assert found == expected


def test_without_guidance_the_logits_alone_count() -> None:
    quantized, x = start("residual"), some("residual", 4)
    program, teacher, points = TunedProgram(quantized), FloatProgram(exact("residual")), block_outputs(quantized)
    with torch.no_grad():
        alone = loss_of(program, teacher, x, points, guidance=0.0)
        logits_only = loss_of(program, teacher, x, [])
        guided = loss_of(program, teacher, x, points)
    torch.testing.assert_close(alone, logits_only)
    assert guided > alone


def _codes(program: TunedProgram, quantized: Quantized) -> list[tuple[Tensor, Tensor]]:
    first = TunedProgram(quantized)
    return [(program.codes[slot].detach(), first.codes[slot].detach()) for slot in program.codes]
