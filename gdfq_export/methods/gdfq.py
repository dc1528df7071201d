"""GDFQ, Algorithm 1: generator and quantized network learn in turns.

warm up G;  quantize;  batch-norm statistics stay fixed, because they are folded
for t = 1 .. T:
    x = G(z | y);  update G by L1 (eq. 9);  update Q by L2 (eq. 10) on the same x
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gdfq_export.errors import DivergedError
from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.losses import distillation_loss, student_cross_entropy, student_loss
from gdfq_export.lower import Quantized
from gdfq_export.methods.calibrate import hold_back, quantize_with_images
from gdfq_export.methods.task import Outcome, Task
from gdfq_export.quantizers import Affine
from gdfq_export.settings import Schedule
from gdfq_export.stopwatch import Stopwatch
from gdfq_export.synthesis import (
    GENERATOR_STAGE,
    GeneratorState,
    GeneratorStep,
    Teacher,
    generator_to_save,
    restore_generator,
    start_generator,
    train_generator,
    update_generator,
)

DECAY = 0.1
TRAINING_STAGE = "training"
LARGEST_LOSS = 1e6


@dataclass(eq=False)
class Training:
    """Everything that one step changes: what a checkpoint holds."""

    generator: GeneratorState
    student: FakeQuantProgram
    optimizer: torch.optim.SGD
    steps: int  # planned
    done: int = 0

    def to_save(self) -> dict[str, Any]:
        """The state as plain values and tensors."""
        return {
            "generator": generator_to_save(self.generator),
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "done": self.done,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continues where `to_save` was called."""
        restore_generator(self.generator, saved["generator"])
        self.student.load_state_dict(saved["student"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.steps, self.done = saved["steps"], saved["done"]


def gdfq(task: Task) -> Outcome:
    """Calibrates on warmed-up images, then trains in turns and keeps the student that agrees best."""
    settings, schedule, checkpoint = task.settings, task.settings.schedule, task.checkpoint
    stopwatch = Stopwatch(schedule.budget_seconds)
    teacher = Teacher(task.captured, settings.device)
    generator = start_generator(teacher, task.image, schedule, settings.seed)
    saved = checkpoint.load(TRAINING_STAGE)
    if saved is None:
        train_generator(generator, teacher, schedule, task.progress, stopwatch=stopwatch, checkpoint=checkpoint)
        calibrated = quantize_with_images(task, teacher, generator.model)
    else:
        calibrated = calibrated_from_saved(task, saved["calibrated"])
        stopwatch.add(saved["seconds"])
    training = start_training(generator, calibrated, schedule, settings.device)
    if saved is not None:
        training.restore(saved)
    ranges = calibrated_to_save(calibrated)
    while training.done < training.steps:
        seen = take_turn(training, teacher, schedule)
        if stopwatch.is_over():
            training.steps = training.done
        task.progress("training generator and student in turns", training.done, training.steps)
        if training.done == training.steps or checkpoint.is_due():
            with torch.no_grad():  # of the state that is saved, which may be one step too far
                loss = float(loss_of_student(training.student, seen, schedule))
            refuse_diverged(loss, training.done, schedule.student_lr)
            entry = {"calibrated": ranges, "seconds": stopwatch.seconds}
            checkpoint.save(TRAINING_STAGE, {**training.to_save(), **entry})
            checkpoint.drop(GENERATOR_STAGE)
    held_back = hold_back(task, teacher, generator.model)
    before = divergence(FakeQuantProgram(calibrated, learned_steps=False), teacher, held_back)
    after = divergence(training.student, teacher, held_back)
    figures = {
        "generator_steps": generator.steps,
        "student_steps": training.done,
        "divergence_calibrated": before,
        "divergence_trained": after,
    }
    return Outcome(training.student.quantized() if after < before else calibrated, held_back, figures)


def start_training(generator: GeneratorState, calibrated: Quantized, schedule: Schedule, device: str) -> Training:
    """Student and optimizer before the first step."""
    student = FakeQuantProgram(calibrated, learned_steps=False).to(device)
    optimizer = torch.optim.SGD(
        [p for p in student.parameters() if p.requires_grad],
        lr=schedule.student_lr,
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
    )
    return Training(generator, student, optimizer, schedule.steps)


def take_turn(training: Training, teacher: Teacher, schedule: Schedule) -> GeneratorStep:
    """One iteration of Algorithm 1."""
    decay = DECAY ** (training.done // (schedule.steps_per_epoch * schedule.decay_epochs))
    training.generator.optimizer.param_groups[0]["lr"] = schedule.generator_lr * decay
    training.optimizer.param_groups[0]["lr"] = schedule.student_lr * decay
    seen = update_generator(training.generator, teacher, schedule)
    update_student(training.student, training.optimizer, seen, schedule, training.done)
    training.done += 1
    return seen


def calibrated_to_save(quantized: Quantized) -> dict[str, Any]:
    """Scales and zero points; the weights are those of the folded network."""
    affines = {group: [affine.scale, affine.zero_point] for group, affine in quantized.affines.items()}
    return {"affines": affines, "weight_scales": dict(quantized.weight_scales)}


def calibrated_from_saved(task: Task, saved: Mapping[str, Any]) -> Quantized:
    """The inverse of `calibrated_to_save`."""
    affines = {group: Affine(scale, zero_point) for group, (scale, zero_point) in saved["affines"].items()}
    return Quantized(task.folded, task.plan, affines, saved["weight_scales"])


@torch.no_grad()
def divergence(student: FakeQuantProgram, teacher: Teacher, images: Tensor) -> float:
    """Mean KL of the student's classes from the teacher's on held-back images: the data-free choice of a state."""
    student = student.to(teacher.device)
    total = 0.0
    for batch in torch.split(images, 32):
        batch = batch.to(teacher.device)
        total += float(distillation_loss(student(batch), teacher.program(batch))) * len(batch)
    return total / len(images)


def loss_of_student(student: FakeQuantProgram, seen: GeneratorStep, schedule: Schedule) -> Tensor:
    """L2(Q) (eq. 10) on generated images."""
    logits = student(seen.images)
    return student_loss(
        student_cross_entropy(logits, seen.labels),
        distillation_loss(logits, seen.teacher_logits, schedule.temperature, schedule.reading),
        schedule.gamma,
    )


def refuse_diverged(loss: float, step: int, rate: float) -> None:
    """A loss that is no number, or beyond all measure, ends the training before anything is saved."""
    if not loss < LARGEST_LOSS:
        raise DivergedError(
            f"the student's loss became {loss:g} at step {step}: lower its learning rate with --student-lr "
            f"(it was {rate:g})"
        )


def update_student(
    student: FakeQuantProgram, optimizer: torch.optim.SGD, seen: GeneratorStep, schedule: Schedule, step: int
) -> None:
    """One step of L2(Q) on the images that the generator was just updated with."""
    loss = loss_of_student(student, seen, schedule)
    refuse_diverged(float(loss.detach()), step + 1, optimizer.param_groups[0]["lr"])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
