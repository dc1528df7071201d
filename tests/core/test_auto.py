"""The ladder keeps the best state, and climbs no further than it must."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import pytest
import torch
from stages import calibrated, captured, folded, images

from gdfq_export.checkpoint import Checkpoint
from gdfq_export.dead_leaves import dead_leaves
from gdfq_export.distilled import Images
from gdfq_export.generator import ImageSpec
from gdfq_export.graph import Graph
from gdfq_export.lower import Quantized
from gdfq_export.methods.auto import ENOUGH, TRUSTED, Ladder, climb
from gdfq_export.methods.calibrate import quantize_to_nearest
from gdfq_export.methods.fitting import Fitting, start_fitting
from gdfq_export.methods.recon import judges, learn_as_a_whole, seen_and_held_back
from gdfq_export.methods.task import Task
from gdfq_export.plan import BitWidths, holds_pixels, make_plan
from gdfq_export.program import FloatProgram
from gdfq_export.progress import silent
from gdfq_export.settings import Reconstruction, Settings, Tuning, schedule_for, tuning_for
from gdfq_export.stopwatch import Stopwatch

W4A4 = BitWidths(4, 4)
RUNGS = ["nearest", "corrected", "equalized", "second_order", "tuned"]


def task(bits: BitWidths = W4A4, side: int = 8) -> Task:
    asked = task_of(folded("residual"), bits)
    spec = ImageSpec((3, side, side), (-2.0,) * 3, (2.0,) * 3)
    return dataclasses.replace(asked, captured=captured("residual"), image=spec)


def task_of(graph: Graph, bits: BitWidths) -> Task:
    settings = Settings(
        *("auto", bits, schedule_for("fast", (3, 8, 8)), "mse", "portable", 0),
        reconstruction=Reconstruction(2, batch=4),  # whose batch is that of all passes over the images
        tuning=Tuning(2, batch=4),
    )
    spec = ImageSpec(graph.input_shape, (-2.0,) * 3, (2.0,) * 3)
    return Task(graph, graph, make_plan(graph, bits, (-2.0, 2.0)), spec, settings, silent, Checkpoint())


def scoring(values: list[float]) -> Ladder:
    """A ladder that is told its scores."""
    given = iter(values)
    return Ladder(lambda state: next(given))


def test_the_best_state_is_kept_and_not_the_last() -> None:
    ladder = scoring([0.5, 0.2, 0.3])
    states = [calibrated(folded("plain"), BitWidths(8, bits)) for bits in (6, 7, 8)]
    for name, state in zip("abc", states, strict=True):
        ladder.add(name, state)
    assert ladder.best is states[1]
    assert ladder.scores == {"a": 0.5, "b": 0.2, "c": 0.3}


@pytest.mark.parametrize(
    ("tuned", "kept"), [(0.1, "tuned"), (0.6 * TRUSTED * 0.99, "tuned"), (0.6 * TRUSTED * 1.01, "second_order")]
)
def test_the_tuned_state_is_kept_unless_its_score_is_clearly_worse(tuned: float, kept: str) -> None:
    ladder = scoring([1.0, 0.9, 0.8, 0.7, 0.6, tuned])
    climb(task(), ladder, images(count=8), Stopwatch(None))
    assert ladder.kept == kept


def test_the_figures_name_the_error_of_the_state_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("gdfq_export.methods.auto")
    scores = iter([1.0, 0.9, 0.8, 0.7, 0.6, 0.6 * TRUSTED * 0.99])
    monkeypatch.setattr(module, "error_of", lambda *asked: next(scores))
    monkeypatch.setattr(module, "make_images", lambda *asked: Images(images(count=8), torch.zeros(8)))
    outcome = module.auto(task())
    figures = outcome.figures
    assert figures["error_kept"] == figures["error_tuned"] > figures["error_second_order"]
    assert outcome.kept.state == "tuned"
    assert f"at most {TRUSTED} times the least error of the logits" in outcome.kept.why
    assert "second_order 0.6, tuned 0.7128" in outcome.kept.why


def test_no_other_state_is_kept_with_a_worse_score() -> None:
    ladder = scoring([0.6, 0.61, 0.8, 0.61, 0.61, 0.8])
    climb(task(), ladder, images(count=8), Stopwatch(None))
    assert ladder.kept == "nearest"


@pytest.mark.parametrize(
    ("scores", "rungs"),
    [
        ([ENOUGH / 2], 1),  # the first rung is good enough
        ([1.0, ENOUGH], 2),
        ([1.0, 0.9, 0.8, ENOUGH / 2], 3),  # the equalized network is scored before and after correction
        ([1.0, 0.9, 0.8, 0.7, ENOUGH / 2], 4),
        ([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], 5),
    ],
)
def test_the_ladder_ends_when_a_state_is_good_enough(scores: list[float], rungs: int) -> None:
    ladder = scoring(scores)
    climb(task(), ladder, images(count=8), Stopwatch(None))
    assert list(ladder.scores) == RUNGS[:rungs]
    assert isinstance(ladder.best, Quantized)


@pytest.mark.parametrize(("bits", "rungs"), [(BitWidths(8, 8), 4), (BitWidths(8, 7), 5), (BitWidths(7, 8), 5)])
def test_a_network_for_small_images_is_tuned_only_below_8_bits(bits: BitWidths, rungs: int) -> None:
    ladder = scoring([1.0] * 6)
    climb(task(bits), ladder, images(count=8), Stopwatch(None))
    assert list(ladder.scores) == RUNGS[:rungs]


def test_a_network_for_large_images_is_tuned_at_8_bits_too() -> None:
    ladder = scoring([1.0] * 6)
    climb(task(BitWidths(8, 8), side=96), ladder, images(count=8), Stopwatch(None))
    assert list(ladder.scores) == RUNGS


@pytest.mark.parametrize(
    ("bits", "narrow"),
    [
        (BitWidths(8, 8), False),
        (BitWidths(8, 8, first_last=8, sums=8), False),
        (BitWidths(8, 8, image=4), True),
        (BitWidths(7, 8), True),
        (BitWidths(8, 7), True),
        (BitWidths(8, 8, first_last=4), True),
        (BitWidths(8, 8, sums=6), True),
    ],
)
def test_a_fast_run_tunes_longer_below_8_bits(bits: BitWidths, narrow: bool) -> None:
    assert bits.narrow is narrow
    large, at_8 = (3, 224, 224), BitWidths(8, 8)
    assert (tuning_for("fast", large, bits).steps > tuning_for("fast", large, at_8).steps) is narrow
    assert tuning_for("paper", large, bits) == tuning_for("paper", large, at_8)
    assert tuning_for("fast", (3, 32, 32), bits) == tuning_for("fast", (3, 32, 32), at_8)


def weighing(asked: Task, count: int) -> Task:
    return dataclasses.replace(asked, settings=dataclasses.replace(asked.settings, weighing=count))


@pytest.mark.parametrize(("scores", "rungs"), [([1.0, 0.8, 0.7, 0.6], 4), ([1.0, ENOUGH / 2], 2)])
def test_where_roundings_are_weighed_fitting_comes_at_once(scores: list[float], rungs: int) -> None:
    ladder = scoring(scores)
    climb(weighing(task(), 4), ladder, images(count=8), Stopwatch(None))
    assert list(ladder.scores) == ["nearest", "fitted", *RUNGS[3:]][:rungs]


def test_biases_are_corrected_where_no_time_is_left_for_weighing() -> None:
    ladder = scoring([1.0, 0.9])
    climb(weighing(task(), 4), ladder, images(count=8), Stopwatch(0.0))
    assert list(ladder.scores) == RUNGS[:2]


def test_second_order_rounding_starts_from_the_fitted_state(monkeypatch: pytest.MonkeyPatch) -> None:
    module, finish = importlib.import_module("gdfq_export.methods.auto"), Fitting.finish
    fitted: list[Quantized] = []
    begun: list[Quantized] = []

    def kept(self: Fitting, *rest: Any) -> tuple[Quantized, Graph]:
        found = finish(self, *rest)
        fitted.append(found[0])
        return found

    monkeypatch.setattr(Fitting, "finish", kept)
    monkeypatch.setattr(module, "round_by_second_order", lambda state, *rest: begun.append(state) or state)
    climb(weighing(task(), 4), scoring([1.0, 2.0, 0.6, 0.5]), images(count=8), Stopwatch(None))
    assert begun == fitted


@pytest.mark.parametrize("count", [1, 4, 100])
def test_fitting_scales_pairs_and_ranges_but_not_the_function(count: int) -> None:
    asked, given = weighing(task(), count), images(count=8)
    plain = quantize_to_nearest(asked, [given])
    fitting = start_fitting(asked, given)
    assert len(fitting.weighed) == min(count, 8)
    assert fitting.task is asked  # nothing to rotate
    state, exact = fitting.finish(plain, [given])
    assert state.affines != plain.affines
    assert torch.allclose(FloatProgram(exact)(given), FloatProgram(asked.folded)(given), atol=1e-4)
    groups = asked.plan.groups()
    pixels = [group for group in groups if holds_pixels(groups[group])]
    assert pixels
    assert all(state.affines[group] == plain.affines[group] for group in pixels)


@pytest.mark.parametrize(("share", "leaves"), [(0.0, 0), (0.5, 4), (2.0, 16)])
def test_tuning_sees_dead_leaves_beside_the_images(monkeypatch: pytest.MonkeyPatch, share: float, leaves: int) -> None:
    asked, given = task(), images(count=8)
    asked = dataclasses.replace(asked, settings=dataclasses.replace(asked.settings, tuning=Tuning(2, leaves=share)))
    start, seen = calibrated(asked.folded, W4A4), []
    module = importlib.import_module("gdfq_export.methods.recon")  # the package has a function of this name
    monkeypatch.setattr(module, "tune", lambda start, exact, images, *rest: seen.append(images) or start)
    assert learn_as_a_whole(asked, start, asked.folded, given, Stopwatch(None)) is start
    assert torch.equal(seen[0], torch.cat([given, dead_leaves(asked.image, leaves, 0)]) if leaves else given)


@pytest.mark.parametrize(("share", "leaves"), [(0.0, 0), (1.0, 2)])
def test_other_dead_leaves_judge_beside_the_images(share: float, leaves: int) -> None:
    asked = task()
    asked = dataclasses.replace(asked, settings=dataclasses.replace(asked.settings, tuning=Tuning(2, leaves=share)))
    made = Images(images(count=16), torch.zeros(16))
    seen, held_back = seen_and_held_back(asked, made)
    assert torch.equal(seen, torch.cat([made.pixels[:7], made.pixels[8:15]]))
    assert torch.equal(held_back, made.pixels[7::8])  # what agreement and forecast are measured on
    judging = judges(asked, held_back)
    assert torch.equal(judging[:2], held_back)
    assert len(judging) == 2 + leaves
    assert not leaves or not torch.equal(judging[2:], dead_leaves(asked.image, leaves, 0))  # none that tuning sees


def test_without_time_left_the_cheap_rungs_remain() -> None:
    ladder = scoring([1.0, 0.9])
    climb(task(), ladder, images(count=8), Stopwatch(0.0))
    assert list(ladder.scores) == RUNGS[:2]
