"""Algorithm 1 on a small network, and the schedules."""

from __future__ import annotations

import dataclasses
import importlib
import itertools

import pytest
import torch
from torch import nn

from gdfq_export.ablations import Ablations
from gdfq_export.errors import DivergedError, UnsupportedModelError
from gdfq_export.losses import generator_cross_entropy
from gdfq_export.methods import METHODS, Task
from gdfq_export.methods.calibrate import quantize_to_nearest
from gdfq_export.methods.gdfq import start_training
from gdfq_export.methods.kept import Kept
from gdfq_export.methods.supply import Generated
from gdfq_export.models.random_weights import set_batch_norm_statistics
from gdfq_export.models.sources import LoadedModel
from gdfq_export.pipeline import prepare, quantize_model
from gdfq_export.plan import BitWidths
from gdfq_export.progress import silent
from gdfq_export.settings import Distillation, Schedule, Settings, Tuning, is_large, schedule_for
from gdfq_export.synthesis import Teacher, look, start_generator, train_generator

SHORT = Schedule(batch=16, warmup_steps=4, steps=4, steps_per_epoch=2, calibration_images=32)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def loaded(module: nn.Module) -> LoadedModel:
    half = (0.5, 0.5, 0.5)
    return LoadedModel("small", module.eval(), (3, 16, 16), half, half, 5, None, "random", None)


def settings(method: str, schedule: Schedule = SHORT) -> Settings:
    few = Distillation(images=32, batch=16, steps=4)
    return Settings(method, BitWidths(4, 4), schedule, "mse", "portable", seed=0, distillation=few, tuning=Tuning(2, 8))


@pytest.fixture(scope="module")
def network() -> LoadedModel:
    module = small_network()
    set_batch_norm_statistics(module, (3, 16, 16), 0)
    return loaded(module)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_gives_the_same_integers_for_the_same_seed(method: str, network: LoadedModel) -> None:
    runs = [quantize_model(prepare(network, settings(method)), settings(method)) for _ in range(2)]
    for name, layer in runs[0].integer.layers.items():
        assert (layer.q_weight == runs[1].integer.layers[name].q_weight).all()
    assert runs[0].integer.tensors == runs[1].integer.tensors
    assert torch.equal(runs[0].outcome.held_back, runs[1].outcome.held_back)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("ending", [[nn.Linear(8, 1)], [nn.Linear(8, 3), nn.Sigmoid()]], ids=["one logit", "sigmoids"])
def test_every_method_quantizes_a_network_that_decides(ending: list[nn.Module], method: str) -> None:
    module = nn.Sequential(*small_network()[:-1], *ending)
    set_batch_norm_statistics(module, (3, 16, 16), 0)
    asked = settings(method)
    prepared = prepare(dataclasses.replace(loaded(module), num_classes=None), asked)
    exported = quantize_model(prepared, asked)
    assert prepared.meaning.decides
    assert 0.0 < exported.error < 0.5
    assert 0.0 <= exported.agreement <= 100.0


def test_a_generator_learns_to_make_images_of_both_answers_of_one_logit() -> None:
    module = nn.Sequential(*small_network()[:-1], nn.Linear(8, 1))
    set_batch_norm_statistics(module, (3, 16, 16), 0)
    asked = settings("gdfq", dataclasses.replace(SHORT, warmup_steps=60, generator_lr=1e-2))
    prepared = prepare(dataclasses.replace(loaded(module), num_classes=None), asked)
    teacher = Teacher(prepared.captured, "cpu")
    state = start_generator(teacher, prepared.image, asked.schedule, 0)
    before = look(state, teacher, 64)
    train_generator(state, teacher, asked.schedule, silent)
    after = look(state, teacher, 64)
    assert set(after.labels.tolist()) == {0, 1}
    losses = [float(generator_cross_entropy(x.teacher_logits, x.labels, x.meaning)) for x in (before, after)]
    assert losses[1] < 0.9 * losses[0]


def test_gdfq_trains_generator_and_student_in_turns_and_keeps_the_better_state(network: LoadedModel) -> None:
    task = settings("gdfq", dataclasses.replace(SHORT, student_lr=1e-2))
    figures = quantize_model(prepare(network, task), task).outcome.figures
    assert figures["generator_steps"] == 8
    assert figures["student_steps"] == 4
    assert figures["error_trained"] != figures["error_calibrated"]


def kept_of(method: str, schedule: Schedule, network: LoadedModel) -> Kept:
    task = settings(method, schedule)
    return quantize_model(prepare(network, task), task).outcome.kept


@pytest.mark.parametrize(
    ("method", "errors", "kept", "why"),
    [
        ("gdfq", [0.2, 0.3], "calibrated", "least error of the logits: calibrated 0.2, trained 0.3"),
        ("gdfq", [0.3, 0.2], "trained", "least error of the logits: calibrated 0.3, trained 0.2"),
        ("dfqf", [0.2, 0.3], "calibrated", "least error of the logits: calibrated 0.2, trained 0.3"),
        ("dfqf", [0.3, 0.2], "trained", "least error of the logits: calibrated 0.3, trained 0.2"),
        ("recon", [0.3, 0.1, 0.2], "reconstructed", "calibrated 0.3, reconstructed 0.1, tuned 0.2"),
        ("dfq", [0.1, 0.3, 0.2], "plain", "plain 0.1, analytic 0.3, empirical 0.2"),
        ("auto", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "nearest", "nearest 0.1, corrected 0.2, equalized 0.4"),
        ("calibrate", [], "calibrated", "no other"),
        ("zeroq", [], "calibrated", "no other"),
    ],
)
def test_the_state_that_is_kept_is_named_with_the_errors_that_decided(
    method: str, errors: list[float], kept: str, why: str, network: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter(errors)
    module = importlib.import_module(f"gdfq_export.methods.{method}")
    for name in ("error_of", "logit_error"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, lambda *asked: next(told))
    found = kept_of(method, SHORT, network)
    assert (found.state, why in found.why) == (kept, True), found


def test_a_trained_state_that_was_asked_for_is_kept_and_says_so(
    network: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("gdfq_export.methods.gdfq")
    monkeypatch.setattr(module, "error_of", lambda *asked: 0.1)
    monkeypatch.setattr(module, "logit_error", lambda *asked: 0.2)
    found = kept_of("gdfq", dataclasses.replace(SHORT, ablations=Ablations(keep_better=False)), network)
    assert found == Kept("trained", "--keep-trained asks for it; error of the logits: calibrated 0.1, trained 0.2")


def test_a_budget_ends_training_early(network: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count(step=0.01)  # a clock that goes on by itself, whatever else the machine does
    monkeypatch.setattr("gdfq_export.stopwatch.time.monotonic", lambda: next(now))
    task = settings("gdfq", dataclasses.replace(SHORT, warmup_steps=10_000, steps=10_000, budget_seconds=10.0))
    figures = quantize_model(prepare(network, task), task).outcome.figures
    assert 1 <= figures["student_steps"] < 10_000
    assert figures["generator_steps"] < 20_000


def test_a_network_without_batch_norm_is_refused_with_what_to_do() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    prepared = prepare(loaded(module), settings("calibrate"))
    with pytest.raises(UnsupportedModelError, match="no batch norm"):
        quantize_model(prepared, settings("calibrate"))


def test_divergence_stops_with_the_step_and_what_to_change(network: LoadedModel) -> None:
    task = settings("gdfq", dataclasses.replace(SHORT, student_lr=1e30, steps=20))
    with pytest.raises(DivergedError, match="learning rate"):
        quantize_model(prepare(network, task), task)


def test_the_paper_preset_is_section_5_1() -> None:
    cifar, imagenet = schedule_for("paper", (3, 32, 32)), schedule_for("paper", (3, 224, 224))
    assert (cifar.batch, cifar.steps, cifar.warmup_steps, cifar.student_lr) == (200, 80_000, 800, 1e-4)
    assert (imagenet.batch, imagenet.steps, imagenet.student_lr) == (16, 80_000, 1e-6)
    for schedule in (cifar, imagenet):
        assert (schedule.beta, schedule.gamma, schedule.generator_lr) == (0.1, 1.0, 1e-3)
        assert (schedule.decay_epochs, schedule.steps_per_epoch, schedule.reading) == (100, 200, "paper")
        assert (schedule.statistics, schedule.student_optimizer) == ("paper", "sgd")


def test_the_student_has_the_optimizer_that_is_asked_for(network: LoadedModel) -> None:
    kinds = {}
    for name in ("sgd", "adam"):
        task = settings("gdfq", dataclasses.replace(SHORT, student_optimizer=name))
        prepared = prepare(network, task)
        asked = Task(prepared.captured, prepared.folded, prepared.plan, prepared.image, task, silent)
        supply = Generated(asked, Teacher(prepared.captured, "cpu"))
        kinds[name] = start_training(asked, quantize_to_nearest(asked, supply.calibration()), supply).optimizer
    assert isinstance(kinds["sgd"], torch.optim.SGD)
    assert isinstance(kinds["adam"], torch.optim.Adam)
    assert all(group["nesterov"] for group in kinds["sgd"].param_groups)
    assert all(group["weight_decay"] == 0.0 for group in kinds["adam"].param_groups)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("side", [16, 96])  # images of CIFAR's kind and of ImageNet's
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_runs_on_a_gpu(method: str, side: int, network: LoadedModel) -> None:
    large = dataclasses.replace(network, input_size=(3, side, side))
    tuning = Tuning(2, 8, leaves=1.0 if is_large(large.input_size) else 0.0)
    task = dataclasses.replace(settings(method), device="cuda", tuning=tuning, weighing=2)
    exported = quantize_model(prepare(large, task), task)
    assert exported.outcome.held_back.device.type == "cpu"
    assert 0 <= exported.error < 1
