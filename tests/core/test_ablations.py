"""The switches: each takes away what it says, and contradictions are refused."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import pytest
import torch
from stages import network
from torch import Tensor

from gdfq_export.ablations import Ablations
from gdfq_export.errors import InputFileError, UsageError
from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.losses import generator_loss, student_loss
from gdfq_export.methods import METHODS, Outcome, Task
from gdfq_export.methods.gdfq import decay_at
from gdfq_export.models.sources import LoadedModel
from gdfq_export.pipeline import Prepared, prepare
from gdfq_export.plan import BitWidths
from gdfq_export.progress import silent
from gdfq_export.real_images import RealImages
from gdfq_export.settings import Schedule, Settings, schedule_for, with_budget, with_reading
from gdfq_export.stopwatch import Stopwatch
from gdfq_export.synthesis import Teacher, start_generator, update_generator

SCHEDULE = Schedule(batch=8, warmup_steps=3, steps=4, steps_per_epoch=2, calibration_images=16, student_lr=1e-2)
SETTINGS = Settings("gdfq", BitWidths(4, 4), SCHEDULE, "mse", "portable", seed=0)
HALF = (0.5, 0.5, 0.5)


class Images:
    """Noise with labels, as a user's folder would give it."""

    def __init__(self, count: int = 40, num_classes: int = 5) -> None:
        randomness = torch.Generator().manual_seed(3)
        self.name, self.num_classes = "folder", num_classes
        self.pixels = torch.randn(count, 3, 8, 8, generator=randomness).clamp(-1, 1)
        self.labels = torch.arange(count) % num_classes
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def for_classes(self, classes: int) -> Images:
        if self.num_classes > classes:
            raise InputFileError(f"{self.num_classes} folders for {classes} classes")
        return self

    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        self.reads += indices
        return self.pixels[list(indices)], self.labels[list(indices)]


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(LoadedModel("small", network("residual"), (3, 8, 8), HALF, HALF, None, None, "x", None), SETTINGS)


def outcome(prepared: Prepared, real: RealImages | None = None, method: str = "gdfq", **changes: object) -> Outcome:
    """One short run with some settings or switches changed."""
    names = {field.name for field in dataclasses.fields(Ablations)}
    parts = Ablations(**{name: value for name, value in changes.items() if name in names})
    rest = {name: value for name, value in changes.items() if name not in names}
    ranges = rest.pop("ranges", "mse")
    schedule = dataclasses.replace(SCHEDULE, ablations=parts, **rest)
    settings = dataclasses.replace(SETTINGS, method=method, schedule=schedule, ranges=ranges)
    torch.manual_seed(0)
    kept = (prepared.captured, prepared.folded, prepared.plan, prepared.image, settings, silent)
    return METHODS[method](Task(*kept, real=real or RealImages()))


def weights(found: Outcome) -> Tensor:
    return torch.cat([value.flatten() for value in found.quantized.graph.parameters.values()])


def test_a_loss_that_is_switched_off_is_no_part_of_the_sum() -> None:
    one, three = torch.tensor(1.0), torch.tensor(3.0)
    for loss in (generator_loss, student_loss):
        assert loss(one, None, 0.5).item() == 1.0
        assert loss(None, three, 0.5).item() == 1.5
        with pytest.raises(ValueError, match="no loss"):
            loss(None, None, 0.5)


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"student_cross_entropy": False, "distillation": False}, "calibrate"),
        ({"stop_threshold": 95.0, "alternating": False}, "--separate"),
        ({"stop_threshold": 120.0}, "up to 100"),
        (
            {"stop_threshold": 95.0, "generator_cross_entropy": False, "generator_statistics": False},
            "untrained",
        ),
    ],
)
def test_contradicting_switches_are_refused(changes: dict[str, object], hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        Ablations(**changes)


def test_a_generator_without_losses_stays_as_it_starts(prepared: Prepared) -> None:
    parts = Ablations(generator_cross_entropy=False, generator_statistics=False)
    teacher, schedule = Teacher(prepared.captured, "cpu"), dataclasses.replace(SCHEDULE, ablations=parts)
    state = start_generator(teacher, prepared.image, schedule, 0)
    before = [value.clone() for value in state.model.parameters()]
    first, second = update_generator(state, teacher, schedule), update_generator(state, teacher, schedule)
    assert all(torch.equal(old, new) for old, new in zip(before, state.model.parameters(), strict=True))
    assert not torch.equal(first.images, second.images)  # new noise every time
    assert outcome(prepared, generator_cross_entropy=False, generator_statistics=False).figures["generator_steps"] == 0
    parts = {"generator_cross_entropy": False, "generator_statistics": False, "alternating": False}
    assert outcome(prepared, **parts).figures["generator_steps"] == 0  # and it ends


@pytest.mark.parametrize(
    "part", ["generator_cross_entropy", "generator_statistics", "student_cross_entropy", "distillation"]
)
def test_each_loss_changes_what_is_learned(part: str, prepared: Prepared) -> None:
    assert not torch.equal(
        weights(outcome(prepared, keep_better=False)), weights(outcome(prepared, keep_better=False, **{part: False}))
    )


def test_separate_training_gives_the_generator_all_of_its_steps_first(prepared: Prepared) -> None:
    calls: list[str] = []
    schedule = dataclasses.replace(SCHEDULE, ablations=Ablations(alternating=False))
    task = Task(
        prepared.captured,
        prepared.folded,
        prepared.plan,
        prepared.image,
        dataclasses.replace(SETTINGS, schedule=schedule),
        lambda what, done, total: calls.append(what.split()[-1]),
    )
    figures = METHODS["gdfq"](task).figures
    assert (figures["generator_steps"], figures["student_steps"]) == (3 + 4, 4)
    assert [call for call in calls if call != "ranges"] == ["generator"] * 7 + ["turns"] * 4


def test_a_generator_stops_after_the_first_epoch_that_is_recognised(prepared: Prepared) -> None:
    # any share of the labels is above 1e-9 percent
    stopped = outcome(prepared, stop_threshold=1e-9, steps=6, batch=32).figures
    assert (stopped["generator_steps"], stopped["student_steps"]) == (3 + 2, 6)
    assert outcome(prepared, stop_threshold=100.0, steps=6).figures["generator_steps"] == 3 + 6


def test_learned_ranges_move_and_others_do_not(prepared: Prepared) -> None:
    fixed, learned = (outcome(prepared, ranges=ranges, keep_better=False).quantized for ranges in ("mse", "learned"))
    start = outcome(prepared, ranges="mse", steps=1, student_lr=1e-30, keep_better=False).quantized
    assert {g: a.zero_point for g, a in learned.affines.items()} == {g: a.zero_point for g, a in fixed.affines.items()}
    assert all(fixed.affines[group] == affine for group, affine in start.affines.items())
    assert any(learned.affines[group].scale != affine.scale for group, affine in start.affines.items())
    assert any(not torch.equal(learned.weight_scales[k], v) for k, v in start.weight_scales.items())


def test_the_trained_student_is_kept_on_request_even_where_it_agrees_less(prepared: Prepared) -> None:
    found = outcome(prepared, student_lr=1.0, keep_better=False)
    assert found.figures["kept_trained"] == 1.0
    assert found.figures["error_trained"] > found.figures["error_calibrated"]
    assert outcome(prepared, student_lr=1.0).figures["kept_trained"] == 0.0


def test_real_images_take_the_generators_place(prepared: Prepared) -> None:
    images = Images()
    found = outcome(prepared, RealImages(training=images), steps=10)
    assert "generator_steps" not in found.figures
    held_back = {tuple(image.flatten().tolist()) for image in found.held_back}
    assert len(held_back) == len(images) // 4
    trained = {tuple(images.pixels[index].flatten().tolist()) for index in images.reads[:-10]}
    assert not held_back & trained


@pytest.mark.parametrize("method", ["calibrate", "gdfq"])
def test_ranges_can_come_from_real_images(method: str, prepared: Prepared) -> None:
    images = Images()
    with_data = outcome(prepared, RealImages(calibration=images), method, student_lr=1e-30)
    assert images.reads
    assert with_data.quantized.affines != outcome(prepared, None, method, student_lr=1e-30).quantized.affines


def test_real_images_that_do_not_fit_are_refused(prepared: Prepared) -> None:
    with pytest.raises(InputFileError, match="6 folders for 5 classes"):
        outcome(prepared, RealImages(training=Images(num_classes=6)))
    with pytest.raises(InputFileError, match="at least"):
        outcome(prepared, RealImages(training=Images(count=2)))


def test_the_readings_are_the_papers_and_the_codes() -> None:
    base = schedule_for("fast", (3, 32, 32))
    paper, code = with_reading(base, "paper"), with_reading(base, "code")
    assert (paper.beta, paper.gamma, paper.temperature) == (0.1, 1.0, 1.0)
    assert (code.beta, code.gamma, code.temperature) == (0.1, 1.0, 20.0)
    assert (paper.reading, code.reading) == (paper.statistics, code.statistics) == ("paper", "code")


def test_rates_decay_in_steps_or_along_a_cosine() -> None:
    paper = schedule_for("paper", (3, 32, 32))
    epochs = [decay_at(paper, 200 * epoch, 80_000) for epoch in (0, 99, 100, 200, 399)]
    assert epochs == pytest.approx([1, 1, 0.1, 0.01, 0.001], rel=1e-12)  # float64 powers
    cosine = dataclasses.replace(paper, decay_epochs=None)
    assert [decay_at(cosine, done, 100) for done in (0, 50, 100)] == pytest.approx([1, 0.5, 0], abs=1e-12)


def test_a_budget_is_filled_with_turns(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count(step=0.01)  # a clock that goes on by itself, whatever else the machine does
    monkeypatch.setattr("gdfq_export.stopwatch.time.monotonic", lambda: next(now))
    schedule = with_budget(SCHEDULE, 1.0)
    task = Task(
        prepared.captured,
        prepared.folded,
        prepared.plan,
        prepared.image,
        dataclasses.replace(SETTINGS, schedule=dataclasses.replace(schedule, warmup_steps=3)),
        silent,
        stopwatch=Stopwatch(schedule.budget_seconds),
    )
    assert METHODS["gdfq"](task).figures["student_steps"] > schedule.steps


def test_evaluation_does_not_train(prepared: Prepared) -> None:
    found = outcome(prepared, student_lr=1e-30)
    again = FakeQuantProgram(found.quantized, learned_steps=False)
    with torch.no_grad():
        assert torch.equal(again(found.held_back), again.eval()(found.held_back))
