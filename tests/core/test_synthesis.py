from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from stages import captured, folded

from gdfq_export.errors import DivergedError, UnsupportedModelError
from gdfq_export.generator import ImageSpec, image_spec
from gdfq_export.losses import run_with_statistics, statistics_loss
from gdfq_export.passes import canonicalize
from gdfq_export.progress import silent
from gdfq_export.settings import Schedule, schedule_for
from gdfq_export.synthesis import Teacher, make_images, start_generator, train_generator, update_generator

SCHEDULE = Schedule(batch=16, warmup_steps=3, steps=2, steps_per_epoch=2, reading="code", beta=1.0)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher(canonicalize(captured("plain")), "cpu")


@pytest.fixture(scope="module")
def spec() -> ImageSpec:
    return image_spec((3, 8, 8), (0.5,) * 3, (0.25,) * 3)


def test_a_network_without_batch_norm_is_refused_with_what_to_do() -> None:
    with pytest.raises(UnsupportedModelError, match="no batch norm") as caught:
        Teacher(folded("plain"), "cpu")
    assert caught.value.exit_code == 3
    assert "--method calibrate --calibration-data" in str(caught.value)


def test_a_generator_depends_on_its_seed_alone(teacher: Teacher, spec: ImageSpec) -> None:
    torch.manual_seed(5)
    first = start_generator(teacher, spec, SCHEDULE, 1).model.state_dict()
    torch.manual_seed(6)
    second = start_generator(teacher, spec, SCHEDULE, 1).model.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_starting_a_generator_leaves_the_global_random_numbers_alone(teacher: Teacher, spec: ImageSpec) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    start_generator(teacher, spec, SCHEDULE, 1)
    assert torch.equal(torch.rand(3), expected)


def test_a_step_returns_the_images_from_before_it(teacher: Teacher, spec: ImageSpec) -> None:
    first, second = (start_generator(teacher, spec, SCHEDULE, 1) for _ in range(2))
    fast = dataclasses.replace(SCHEDULE, generator_lr=1.0)
    second.optimizer.param_groups[0]["lr"] = fast.generator_lr
    one, other = update_generator(first, teacher, SCHEDULE), update_generator(second, teacher, fast)
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.labels, other.labels)


def test_a_step_changes_the_generator_and_not_the_teacher(teacher: Teacher, spec: ImageSpec) -> None:
    state = start_generator(teacher, spec, SCHEDULE, 1)
    before = {key: value.clone() for key, value in state.model.state_dict().items()}
    weights = [value.clone() for value in teacher.program.buffers()]
    update_generator(state, teacher, SCHEDULE)
    assert any(not torch.equal(value, before[key]) for key, value in state.model.state_dict().items())
    assert all(torch.equal(value, weight) for value, weight in zip(teacher.program.buffers(), weights, strict=True))


def test_training_brings_the_statistics_nearer_to_the_teachers(teacher: Teacher, spec: ImageSpec) -> None:
    state = start_generator(teacher, spec, SCHEDULE, 1)

    def distance() -> float:
        images = torch.cat([x for x, _ in make_images(state.model, teacher, 64, 16, seed=9)])
        with torch.no_grad():
            _, found = run_with_statistics(teacher.program, images, teacher.names)
        return float(statistics_loss(found, teacher.statistics, "code"))

    before = distance()
    train_generator(state, teacher, dataclasses.replace(SCHEDULE, warmup_steps=25), silent)
    assert distance() < before


def test_training_reports_each_step(teacher: Teacher, spec: ImageSpec) -> None:
    state, calls = start_generator(teacher, spec, SCHEDULE, 1), []
    done = train_generator(state, teacher, SCHEDULE, lambda what, done, total: calls.append((done, total)))
    assert done == 3
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_a_budget_ends_the_training(teacher: Teacher, spec: ImageSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count(step=0.01)  # a clock that goes on by itself, whatever else the machine does
    monkeypatch.setattr("gdfq_export.stopwatch.time.monotonic", lambda: next(now))
    short = dataclasses.replace(SCHEDULE, warmup_steps=10_000, budget_seconds=0.5)
    assert 1 <= train_generator(start_generator(teacher, spec, short, 1), teacher, short, silent) < 10_000


def test_a_loss_that_is_not_finite_is_one_sentence(teacher: Teacher, spec: ImageSpec) -> None:
    state = start_generator(teacher, spec, SCHEDULE, 1)
    state.model.last.weight.data.fill_(float("nan"))
    with pytest.raises(DivergedError, match="step 1: lower its learning rate"):
        update_generator(state, teacher, SCHEDULE)


def test_as_many_images_are_made_as_were_asked_for(teacher: Teacher, spec: ImageSpec) -> None:
    model = start_generator(teacher, spec, SCHEDULE, 1).model
    batches = list(make_images(model, teacher, 37, 16, seed=0))
    assert [len(x) for x, _ in batches] == [16, 16, 5]
    assert [len(labels) for _, labels in batches] == [16, 16, 5]


def test_images_depend_on_their_seed_alone(teacher: Teacher, spec: ImageSpec) -> None:
    model = start_generator(teacher, spec, SCHEDULE, 1).model
    first, again, other = (next(iter(make_images(model, teacher, 8, 8, seed)))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_made_images_have_no_gradient(teacher: Teacher, spec: ImageSpec) -> None:
    model = start_generator(teacher, spec, SCHEDULE, 1).model
    assert not next(iter(make_images(model, teacher, 8, 8, 0)))[0].requires_grad


@pytest.mark.parametrize(
    ("shape", "batch", "warmup", "rate"), [((3, 32, 32), 200, 800, 1e-4), ((3, 224, 224), 16, 10_000, 1e-6)]
)
def test_the_paper_preset_is_section_5_1(shape: tuple[int, ...], batch: int, warmup: int, rate: float) -> None:
    schedule = schedule_for("paper", shape)
    assert (schedule.batch, schedule.warmup_steps, schedule.steps) == (batch, warmup, 80_000)
    assert (schedule.student_lr, schedule.generator_lr) == (rate, 1e-3)
    assert (schedule.beta, schedule.gamma, schedule.reading, schedule.doublings) == (0.1, 1.0, "paper", 2)
