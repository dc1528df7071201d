"""GDFQ, Algorithm 1: generator and quantized network learn in turns.

warm up G;  quantize;  batch-norm statistics stay fixed, because they are folded
for t = 1 .. T:
    x = G(z | y);  update G by L1 (eq. 9);  update Q by L2 (eq. 10) on the same x

Each part has its switch (`ablations.py`), and real images can take the generator's place as an upper bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gdfq_export.ablations import Ablations
from gdfq_export.distributed import agreed, shared, size
from gdfq_export.errors import DivergedError, UsageError
from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.graph import Graph
from gdfq_export.losses import distillation_loss, student_cross_entropy, student_loss
from gdfq_export.lower import Quantized
from gdfq_export.methods.calibrate import quantize_to_nearest, real_calibration
from gdfq_export.methods.kept import Kept, least, listed
from gdfq_export.methods.supply import Generated, Real, Supply
from gdfq_export.methods.task import UNTRAINED, Outcome, Task
from gdfq_export.moving_statistics import MovingStatisticsProgram
from gdfq_export.quantizers import Affine
from gdfq_export.score import error_of, logit_error
from gdfq_export.settings import Schedule
from gdfq_export.steps import half_cosine
from gdfq_export.stopwatch import Stopwatch
from gdfq_export.synthesis import GENERATOR_STAGE, GeneratorStep, Teacher

DECAY = 0.1
TRAINING_STAGE = "training"
LARGEST_LOSS = 1e6
MEASURED_TURNS = 5  # before a budget becomes a number of steps
SHORTEST = 1e-9  # seconds, that a coarse clock may not see
SHARE_OF_TURNS = 0.95  # of what is left of the budget by then


@dataclass(eq=False)
class Training:
    """Everything that one step changes: what a checkpoint holds."""

    supply: Supply
    student: FakeQuantProgram
    forward: nn.Module  # the same, with gradients averaged over processes
    optimizer: torch.optim.Optimizer
    steps: int  # planned
    done: int = 0

    def to_save(self) -> dict[str, Any]:
        """The state as plain values and tensors."""
        return {
            "supply": self.supply.to_save(),
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "done": self.done,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continues where `to_save` was called."""
        self.supply.restore(saved["supply"])
        self.student.load_state_dict(saved["student"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.steps, self.done = saved["steps"], saved["done"]


def gdfq(task: Task) -> Outcome:
    """Calibrates on warmed-up images, then trains in turns and keeps the student that agrees best."""
    stopwatch, costs = task.stopwatch, task.costs
    teacher = Teacher(task.captured, task.settings.device)
    real = task.real.training
    supply: Supply = Generated(task, teacher) if real is None else Real(task, teacher, real)
    scores = 2 * costs.score(supply.count)
    stopwatch.reserve(scores + costs.ending(supply.count))
    saved = task.checkpoint.load(TRAINING_STAGE)
    if saved is None:
        with stopwatch.keeping(costs.state(supply.count)):
            supply.warm_up(stopwatch)
        shown = task.real.calibration
        images = supply.calibration() if shown is None else real_calibration(task, shown)[0]
        found = agreed(calibrated_to_save(task, quantize_to_nearest(task, images)))
        calibrated = calibrated_from_saved(task, found)
        training = start_training(task, calibrated, supply)
    else:
        calibrated = calibrated_from_saved(task, saved["calibrated"])
        training = start_training(task, calibrated, supply)
        training.restore(saved)
    train(task, training, calibrated, stopwatch)
    held_back = supply.held_back()
    before = error_of(calibrated, teacher, held_back)
    after = logit_error(training.student.eval(), teacher, held_back)
    kept = what_to_keep({"calibrated": before, "trained": after}, task.settings.schedule.ablations)
    keep = kept.state == "trained"
    figures = {
        **supply.figures(),
        "student_steps": training.done,
        "error_calibrated": before,
        "error_trained": after,
        "kept_trained": float(keep),
    }
    state = training.student.quantized() if keep else calibrated
    return Outcome(state, held_back, figures, kept=kept, notes=() if training.done else (UNTRAINED,))


def what_to_keep(errors: Mapping[str, float], parts: Ablations) -> Kept:
    """The better of both states, unless the trained one is asked for as the paper has it."""
    if not parts.keep_better:
        return Kept("trained", f"--keep-trained asks for it; {listed(errors)}")
    return least(errors)


def start_training(task: Task, calibrated: Quantized, supply: Supply) -> Training:
    """Student and optimizer before the first step."""
    schedule, learned = task.settings.schedule, task.settings.ranges == "learned"
    if size() > 1 and not schedule.ablations.fixed_statistics:
        raise UsageError("--moving-statistics needs the whole batch in one process: start it without torchrun")
    student = (
        FakeQuantProgram(calibrated, learned_steps=learned)
        if schedule.ablations.fixed_statistics
        else MovingStatisticsProgram(calibrated, task.captured, learned_steps=learned)
    ).to(task.settings.device)
    steps = {id(step) for step in [*student.steps.parameters(), *student.weight_steps.parameters()]}
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in steps], "weight_decay": 1e-4},
        {"params": [p for p in trained if id(p) in steps], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer: torch.optim.Optimizer
    if schedule.student_optimizer == "adam":
        optimizer = torch.optim.Adam([{**group, "weight_decay": 0.0} for group in groups], lr=schedule.student_lr)
    else:
        optimizer = torch.optim.SGD(groups, lr=schedule.student_lr, momentum=0.9, nesterov=True)
    return Training(supply, student.train(), shared(student), optimizer, schedule.steps)


def train(task: Task, training: Training, calibrated: Quantized, stopwatch: Stopwatch) -> None:
    """The loop of Algorithm 1. A budget becomes a number of steps once their cost is known, so that rates can decay."""
    schedule, checkpoint, start_state = task.settings.schedule, task.checkpoint, calibrated_to_save(task, calibrated)
    start, first = stopwatch.seconds, training.done
    if not training.done and not stopwatch.fits(task.costs.steps(2, schedule.batch)):
        training.steps = 0
    while training.done < training.steps:
        seen = take_turn(training, schedule)
        if schedule.budget_seconds is not None and training.done == MEASURED_TURNS:
            cost = max(stopwatch.seconds - start, SHORTEST) / (training.done - first)
            training.steps = training.done + int(SHARE_OF_TURNS * stopwatch.left() / cost)
        if stopwatch.is_over():
            training.steps = training.done
        task.progress("training generator and student in turns", training.done, training.steps)
        if training.done == training.steps or checkpoint.is_due():
            refuse_diverged(loss_of_saved(training, seen, schedule), training.done, schedule.student_lr)
            checkpoint.save(TRAINING_STAGE, {**training.to_save(), "calibrated": start_state})
            checkpoint.drop(GENERATOR_STAGE)


def decay_at(schedule: Schedule, done: int, planned: int) -> float:
    """What learning rates are multiplied by: 0.1 after every so many epochs (section 5.1), or half a cosine."""
    if schedule.decay_epochs is None:
        return half_cosine(min(done / planned, 1.0))
    return DECAY ** (done // (schedule.steps_per_epoch * schedule.decay_epochs))


def take_turn(training: Training, schedule: Schedule) -> GeneratorStep:
    """One iteration of Algorithm 1."""
    decay = decay_at(schedule, training.done, training.steps)
    for group in training.optimizer.param_groups:
        group["lr"] = schedule.student_lr * decay
    seen = training.supply.next(training.done, decay)
    update_student(training.forward, training.optimizer, seen, schedule, training.done)
    training.done += 1
    return seen


def calibrated_to_save(task: Task, quantized: Quantized) -> dict[str, Any]:
    """Scales and zero points, and the weights that are not those of the folded network."""
    own = {k: v for k, v in quantized.graph.parameters.items() if v is not task.folded.parameters[k]}
    return {
        "affines": {group: [affine.scale, affine.zero_point] for group, affine in quantized.affines.items()},
        "weight_scales": dict(quantized.weight_scales),
        "weights": own,
        "coarser": dict(quantized.coarser),
    }


def calibrated_from_saved(task: Task, saved: Mapping[str, Any]) -> Quantized:
    """The inverse of `calibrated_to_save`."""
    affines = {group: Affine(scale, zero_point) for group, (scale, zero_point) in saved["affines"].items()}
    graph = Graph(task.folded.nodes, {**task.folded.parameters, **saved["weights"]}, task.folded.output)
    return Quantized(graph, task.plan, affines, saved["weight_scales"], saved["coarser"])


def loss_of_student(student: nn.Module, seen: GeneratorStep, schedule: Schedule) -> Tensor:
    """L2(Q) (eq. 10) on generated images, or what the switches leave of it."""
    logits, parts = student(seen.images), schedule.ablations
    distillation = distillation_loss(logits, seen.teacher_logits, schedule.temperature, schedule.reading, seen.meaning)
    return student_loss(
        student_cross_entropy(logits, seen.labels, seen.meaning) if parts.student_cross_entropy else None,
        distillation if parts.distillation else None,
        schedule.gamma,
    )


@torch.no_grad()
def loss_of_saved(training: Training, seen: GeneratorStep, schedule: Schedule) -> float:
    """The loss of a state that is about to be saved, which may be one step too far; changes nothing."""
    loss = float(loss_of_student(training.student.eval(), seen, schedule))
    training.student.train()
    return loss


def refuse_diverged(loss: float, step: int, rate: float) -> None:
    """A loss that is no number, or beyond all measure, ends the training before anything is saved."""
    if not loss < LARGEST_LOSS:
        raise DivergedError(
            f"the student's loss became {loss:g} at step {step}: lower its learning rate with --student-lr "
            f"(it was {rate:g})"
        )


def update_student(
    student: nn.Module, optimizer: torch.optim.Optimizer, seen: GeneratorStep, schedule: Schedule, step: int
) -> None:
    """One step of L2(Q) on the images that the generator was just updated with."""
    loss = loss_of_student(student, seen, schedule)
    refuse_diverged(float(loss.detach()), step + 1, optimizer.param_groups[0]["lr"])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
