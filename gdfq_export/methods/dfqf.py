"""DFQF (Li et al. 2020): the generator seeks images on which the student is wrong, the student learns from the teacher.

    L(G) = IS + beta * BNS - ADV                              L(S) = KL(M(x) || S(x))
    IS   = mean H(M(x)) - H(mean M(x))                        each image sure, all classes alike: minus the log of
                                                              the inception score
    BNS  = distance from the statistics of batch norm
    ADV  = log(1 + KL(M(x) || S(x)))                          disagreement of teacher and student

warm up G without ADV;  quantize S;  then for t = 1 .. T:  update G by L(G),  update S by L(S) on the same images

Reading: only the paper's abstract is public with its losses named but not spelled out. The logarithm keeps the
disagreement from outgrowing the other two; G and S learn in turns, because images against a student that has moved on
are no longer hard.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gdfq_export.errors import DivergedError
from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.losses import distillation_loss, run_with_statistics, statistics_loss
from gdfq_export.meaning import ONE_CLASS, Meaning, meaning_of
from gdfq_export.methods.calibrate import quantize_to_nearest
from gdfq_export.methods.kept import least
from gdfq_export.methods.task import Outcome, Task
from gdfq_export.score import error_of, logit_error
from gdfq_export.settings import Schedule
from gdfq_export.stopwatch import Stopwatch
from gdfq_export.synthesis import (
    HELD_BACK_SEED,
    GeneratorState,
    Teacher,
    autocast,
    draw,
    make_images,
    start_generator,
)

WARMUP_SHARE = 0.4  # of a budget


def inception_loss(logits: Tensor, meaning: Meaning = ONE_CLASS) -> Tensor:
    """Minus the logarithm of the inception score: mean entropy less the entropy of the mean."""
    logs = meaning.log_probabilities(logits)
    each = -(logs.exp() * logs).sum(1).mean()
    mean = logs.exp().mean(0)
    whole: Tensor = torch.special.entr(mean).sum()
    return each - whole


def disagreement(student_logits: Tensor, teacher_logits: Tensor, meaning: Meaning = ONE_CLASS) -> Tensor:
    """log(1 + KL): what the generator raises and the student lowers."""
    return torch.log1p(distillation_loss(student_logits, teacher_logits, meaning=meaning))


def dfqf(task: Task) -> Outcome:
    """Calibrates on the warmed-up generator's images, then trains in turns and keeps the better student."""
    settings, schedule = task.settings, task.settings.schedule
    stopwatch = Stopwatch(schedule.budget_seconds)
    teacher = Teacher(task.captured, settings.device)
    generator = start_generator(teacher, task.image, schedule, settings.seed)
    warmup = 0
    while warmup < schedule.warmup_steps and not (warmup and stopwatch.is_over(WARMUP_SHARE)):
        update_generator(generator, teacher, None, schedule)
        warmup += 1
        task.progress("training the generator", warmup, schedule.warmup_steps)
    task.progress("training the generator", 1, 1)

    def images(seed: int) -> list[Tensor]:
        made = make_images(generator.model, teacher, schedule.calibration_images, schedule.batch, seed)
        return [x for x, _ in made]

    calibrated = quantize_to_nearest(task, images(settings.seed + 1))
    student = FakeQuantProgram(calibrated, learned_steps=False).to(settings.device)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=schedule.student_lr, momentum=0.9, nesterov=True)
    losses: list[float] = []
    while (done := len(losses)) < schedule.steps and not (done and stopwatch.is_over()):
        seen, wanted = update_generator(generator, teacher, student, schedule)
        losses.append(update_student(student, optimizer, seen, wanted, done))
        task.progress("training generator and student against each other", done + 1, schedule.steps)
    task.progress("training generator and student against each other", 1, 1)
    held_back = torch.cat(images(settings.seed + HELD_BACK_SEED)).cpu()
    before = error_of(calibrated, teacher, held_back)
    after = logit_error(student, teacher, held_back)
    figures = {
        "generator_steps": warmup + done,
        "student_steps": done,
        "error_calibrated": before,
        "error_trained": after,
    }
    kept = least({"calibrated": before, "trained": after})
    state = student.quantized() if kept.state == "trained" else calibrated
    return Outcome(state, held_back, figures, traces={"divergence of the student from the teacher": losses}, kept=kept)


def update_generator(
    state: GeneratorState, teacher: Teacher, student: FakeQuantProgram | None, schedule: Schedule
) -> tuple[Tensor, Tensor]:
    """One step of L(G), without ADV where there is no student yet; the images and what the teacher says of them."""
    batch = draw(state, teacher, schedule.batch)
    with autocast(teacher.device):
        images = state.model(batch.noise, batch.labels)
        channels_last = images.contiguous(memory_format=torch.channels_last)
        logits, found = run_with_statistics(teacher.program, channels_last, teacher.names)
    logits = logits.float()
    statistics = statistics_loss(found, teacher.statistics, schedule.statistics)
    loss = inception_loss(logits, teacher.meaning) + schedule.beta * statistics
    if student is not None:
        loss = loss - disagreement(student(images.float()), logits, teacher.meaning)
    if not math.isfinite(float(loss.detach())):
        raise DivergedError(
            f"the generator's loss became {float(loss.detach())}: lower its learning rate "
            f"({schedule.generator_lr:g}) with --generator-lr"
        )
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    return images.detach().float(), logits.detach()


def update_student(
    student: FakeQuantProgram, optimizer: torch.optim.SGD, images: Tensor, wanted: Tensor, step: int
) -> float:
    """One step of L(S) on the images that the generator was just updated with."""
    loss = distillation_loss(student(images), wanted, meaning=meaning_of(student.graph))
    value = float(loss.detach())
    if not math.isfinite(value):
        raise DivergedError(
            f"the student's loss became {value} at step {step + 1}: lower its learning rate "
            f"({optimizer.param_groups[0]['lr']:g}) with --student-lr"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return value
