"""GDFQ, Algorithm 1: generator and quantized network learn in turns.

warm up G;  quantize;  batch-norm statistics stay fixed, because they are folded
for t = 1 .. T:
    x = G(z | y);  update G by L1 (eq. 9);  update Q by L2 (eq. 10) on the same x
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from gdfq_export.errors import DivergedError
from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.losses import distillation_loss, student_cross_entropy, student_loss
from gdfq_export.methods.calibrate import hold_back, quantize_with_images
from gdfq_export.methods.task import Outcome, Task
from gdfq_export.settings import Schedule
from gdfq_export.synthesis import GeneratorStep, Teacher, start_generator, train_generator, update_generator

DECAY = 0.1


def gdfq(task: Task) -> Outcome:
    """Calibrates on warmed-up images, then trains in turns and keeps the student that agrees best."""
    settings, schedule = task.settings, task.settings.schedule
    teacher = Teacher(task.captured, settings.device)
    state = start_generator(teacher, task.image, schedule, settings.seed)
    start = time.monotonic()
    warmup = train_generator(state, teacher, schedule, task.progress)
    calibrated = quantize_with_images(task, teacher, state.model)
    student = FakeQuantProgram(calibrated, learned_steps=False).to(settings.device)
    optimizer = torch.optim.SGD(
        [p for p in student.parameters() if p.requires_grad],
        lr=schedule.student_lr,
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
    )
    limit = math.inf if schedule.budget_seconds is None else schedule.budget_seconds
    done = 0
    for step in range(schedule.steps):
        decay = DECAY ** (step // (schedule.steps_per_epoch * schedule.decay_epochs))
        state.optimizer.param_groups[0]["lr"] = schedule.generator_lr * decay
        optimizer.param_groups[0]["lr"] = schedule.student_lr * decay
        seen = update_generator(state, teacher, schedule)
        update_student(student, optimizer, seen, schedule, step)
        done = step + 1
        task.progress("training generator and student in turns", done, schedule.steps)
        if time.monotonic() - start > limit:
            task.progress("training generator and student in turns", schedule.steps, schedule.steps)
            break
    held_back = hold_back(task, teacher, state.model)
    before = divergence(FakeQuantProgram(calibrated, learned_steps=False), teacher, held_back)
    after = divergence(student, teacher, held_back)
    figures = {
        "generator_steps": warmup + done,
        "student_steps": done,
        "divergence_calibrated": before,
        "divergence_trained": after,
    }
    return Outcome(student.quantized() if after < before else calibrated, held_back, figures)


@torch.no_grad()
def divergence(student: FakeQuantProgram, teacher: Teacher, images: Tensor) -> float:
    """Mean KL of the student's classes from the teacher's on held-back images: the data-free choice of a state."""
    student = student.to(teacher.device)
    total = 0.0
    for batch in torch.split(images, 32):
        batch = batch.to(teacher.device)
        total += float(distillation_loss(student(batch), teacher.program(batch))) * len(batch)
    return total / len(images)


def update_student(
    student: FakeQuantProgram, optimizer: torch.optim.SGD, seen: GeneratorStep, schedule: Schedule, step: int
) -> float:
    """One step of L2(Q) (eq. 10) on the images that the generator was just updated with."""
    logits = student(seen.images)
    loss = student_loss(
        student_cross_entropy(logits, seen.labels),
        distillation_loss(logits, seen.teacher_logits, schedule.temperature, schedule.reading),
        schedule.gamma,
    )
    value = float(loss.detach())
    if not math.isfinite(value):
        raise DivergedError(
            f"the student's loss became {value} at step {step + 1}: lower its learning rate "
            f"({optimizer.param_groups[0]['lr']:g})"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return value
