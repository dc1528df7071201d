"""A budget holds from the start of the command to the last file, with a clock that only work moves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stages import calibrated, folded, images, network

from gdfq_export import checkpoint as checkpoint_module
from gdfq_export import costs as costs_module
from gdfq_export import pipeline
from gdfq_export.block_program import BlockProgram
from gdfq_export.checkpoint import WorkDirectory
from gdfq_export.costs import Costs
from gdfq_export.errors import UsageError
from gdfq_export.exact import IntegerProgram
from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.lower import TARGETS
from gdfq_export.methods import METHODS
from gdfq_export.methods.task import UNTRAINED
from gdfq_export.models.sources import LoadedModel
from gdfq_export.pipeline import run
from gdfq_export.plan import BitWidths
from gdfq_export.progress import Progress, silent
from gdfq_export.quantizers import over_channels, quantize_weight
from gdfq_export.second_order import round_by_second_order
from gdfq_export.settings import Distillation, Reconstruction, Settings, Tuning, schedule_for, with_budget
from gdfq_export.stopwatch import Stopwatch

HALF = (0.5, 0.5, 0.5)
LOADED = LoadedModel("small", network("residual"), (3, 8, 8), HALF, HALF, None, None, "factory", None)
PREPARED = pipeline.prepare(
    LOADED, Settings("auto", BitWidths(4, 4), schedule_for("fast", (3, 8, 8)), "mse", "portable", 0)
)
START, PREPARING, WRITING = 9.0, 6.0, 2.5  # seconds
FORWARD = {pipeline.FloatProgram: 0.04, FakeQuantProgram: 0.08, IntegerProgram: 0.08}  # seconds an image
BLOCK = 0.02
SHORTEST, LEEWAY = 10.0, 1.15  # what a run may take longer


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Moved by preparing, by each image that a network computes, and by exporting."""
    clock = Clock()

    def slowed(work: Callable[..., Any], seconds: Callable[..., float]) -> Callable[..., Any]:
        def slow(*given: Any, **named: Any) -> Any:
            clock.now += seconds(*given)
            return work(*given, **named)

        return slow

    monkeypatch.setattr(pipeline, "prepare", slowed(lambda *_: PREPARED, lambda *_: PREPARING))
    monkeypatch.setattr(pipeline, "program_bytes", slowed(lambda program: b"", lambda program: WRITING))
    for program, each in FORWARD.items():
        forward = slowed(program.forward, lambda self, x, *_, each=each: each * len(x))
        monkeypatch.setattr(program, "forward", forward)
    block = slowed(BlockProgram.forward, lambda self, inputs, *_: BLOCK * len(next(iter(inputs.values()))))
    monkeypatch.setattr(BlockProgram, "forward", block)
    return clock


def settings(method: str, budget: float | None, *, large: bool = False) -> Settings:
    """As for images of CIFAR's kind, or with all that those of ImageNet's kind have."""
    schedule = schedule_for("fast", (3, 8, 8))
    views, leaves, weighing = (2, 1.0, 4) if large else (0, 0.0, 0)
    return Settings(
        *(method, BitWidths(4, 4), schedule if budget is None else with_budget(schedule, budget), "mse", "portable", 0),
        distillation=Distillation(images=256, batch=64, steps=150, shift=1, views=views),
        reconstruction=Reconstruction(steps=1000, batch=8),
        tuning=Tuning(steps=1500, batch=8, leaves=leaves),
        weighing=weighing,
        size_budget=10**6 if method == "zeroq" else None,
    )


def start(out: Path, asked: Settings, clock: Clock, progress: Progress = silent, **work: Any) -> dict[str, Any]:
    """A run whose process has begun some seconds ago."""
    begun = clock.now
    clock.now += START
    stopwatch = Stopwatch(asked.schedule.budget_seconds, begun, clock)
    directory = WorkDirectory(out.with_suffix(".work"), **work)
    return run(LOADED, asked, out, progress=progress, work=directory, stopwatch=stopwatch)


def least_of(asked: Settings, out: Path, clock: Clock) -> float:
    """What the refusal of a budget says that would do, after nothing but a trial."""
    begun = clock.now
    with pytest.raises(UsageError, match=r"too small.*give at least \d+s") as refused:
        start(out, dataclasses.replace(asked, schedule=with_budget(asked.schedule, 1.0)), clock)
    assert clock.now - begun < START + PREPARING + 1.0
    return float(str(refused.value).rsplit(maxsplit=1)[1].removesuffix("s"))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("times", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_run_ends_within_its_budget(method: str, times: float, large: bool, clock: Clock, tmp_path: Path) -> None:
    least = least_of(settings(method, 1.0, large=large), tmp_path / "m.onnx", clock)
    budget, begun = times * least, clock.now
    result = start(tmp_path / "m.onnx", settings(method, budget, large=large), clock)
    assert clock.now - begun <= max(LEEWAY * budget, budget + SHORTEST)
    assert result["seconds"] == pytest.approx(clock.now - begun, abs=0.06)
    assert (tmp_path / "m.onnx").exists()
    assert not (tmp_path / "m.work").exists()


def test_a_longer_budget_is_used(clock: Clock, tmp_path: Path) -> None:
    begun = clock.now
    result = start(tmp_path / "m.onnx", settings("auto", 600.0), clock)
    assert clock.now - begun > 0.8 * 600.0
    assert "error_tuned" in result["figures"]
    assert result["notes"] == []


@pytest.mark.parametrize("method", ["auto", "recon", "gdfq", "dfqf"])
def test_a_budget_that_ends_before_training_is_said(method: str, clock: Clock, tmp_path: Path) -> None:
    least = least_of(settings(method, 1.0), tmp_path / "m.onnx", clock)
    assert start(tmp_path / "m.onnx", settings(method, least), clock)["notes"] == [UNTRAINED]


class KilledError(Exception):
    """What ends a run in the middle."""


def test_what_images_took_before_a_kill_counts_after_it(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_module, "FEWEST_SECONDS", 0.0)
    asked = settings("auto", 200.0)

    def kill(what: str, done: float, total: float) -> None:
        if what == "finding ranges":
            raise KilledError

    with pytest.raises(KilledError):
        start(tmp_path / "m.onnx", asked, clock, kill)
    before = clock.now
    assert before > 50.0
    clock.now += 1e6  # nobody works
    again = clock.now
    result = start(tmp_path / "m.onnx", asked, clock, resume=True)
    whole = before + clock.now - again
    assert result["seconds"] == pytest.approx(whole, abs=1.0)
    assert whole <= LEEWAY * 200.0


def test_a_resumed_run_is_not_refused_for_what_is_left(clock: Clock, tmp_path: Path) -> None:
    stopwatch = Stopwatch(100.0, 0.0, clock)
    costs_module.refuse_less_than_the_least(Costs(forward=0.1), 1, stopwatch)
    clock.now = 99.0
    with pytest.raises(UsageError):
        costs_module.refuse_less_than_the_least(Costs(forward=0.1), 1, stopwatch)
    stopwatch.carry(1.0)
    costs_module.refuse_less_than_the_least(Costs(forward=0.1), 1, stopwatch)


def test_shares_of_a_budget_are_of_what_the_method_has(clock: Clock) -> None:
    stopwatch = Stopwatch(100.0, 0.0, clock)
    clock.now = 20.0
    stopwatch.open()
    stopwatch.reserve(10.0)
    assert (stopwatch.left(), stopwatch.left(0.5)) == (70.0, 35.0)
    assert stopwatch.fits(70.0)
    with stopwatch.keeping(30.0):
        assert stopwatch.left() == 40.0
        assert not stopwatch.fits(41.0)
    clock.now = 60.0
    assert stopwatch.is_over(0.5)
    assert not stopwatch.is_over()
    stopwatch.carry(25.0)
    stopwatch.carry(20.0)  # counted by the state that was saved later
    assert (stopwatch.seconds, stopwatch.left()) == (85.0, 5.0)


def test_without_a_budget_nothing_is_ever_over(clock: Clock) -> None:
    stopwatch = Stopwatch(None, 0.0, clock)
    clock.now = 1e9
    assert stopwatch.left(0.1) == math.inf
    assert stopwatch.fits(1e12)
    assert not stopwatch.is_over()


def test_layers_for_which_there_is_no_time_are_rounded_to_nearest(clock: Clock) -> None:
    state, x, target = calibrated(folded("residual"), BitWidths(4, 4)), images(count=8), TARGETS["portable"]
    whole = round_by_second_order(state, x, target, silent, Stopwatch(None, 0.0, clock))
    none = round_by_second_order(state, x, target, silent, Stopwatch(0.0, 0.0, clock))
    differing = 0
    for name, spec in state.plan.weights.items():
        before, found, other = (value.graph.parameter(value.graph[name], "weight") for value in (state, none, whole))
        scale = over_channels(state.weight_scales[name], before)
        assert torch.allclose(found, quantize_weight(before, state.weight_scales[name], spec.qmax) * scale)
        differing += not torch.equal(found, other)
    assert differing
