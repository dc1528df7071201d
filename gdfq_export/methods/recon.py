"""Reconstruction: images optimised against the frozen network, then each block learns to return what it returned."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from gdfq_export.distilled import Images, distil_images, fit_to_time, time_a_step
from gdfq_export.methods.calibrate import quantize_to_nearest
from gdfq_export.methods.task import Outcome, Task
from gdfq_export.reconstruct import reconstruct
from gdfq_export.score import error_of
from gdfq_export.settings import Distillation
from gdfq_export.stopwatch import Stopwatch
from gdfq_export.synthesis import Teacher
from gdfq_export.views import with_views

HELD_BACK = 8  # one image of so many is fitted to by nothing
PLAN_STAGE = "plan"
IMAGES_SHARE = 0.45  # of the budget


def recon(task: Task) -> Outcome:
    """Optimised images, ranges, then reconstruction; keeps the state that agrees better on held-back images."""
    settings = task.settings
    stopwatch = Stopwatch(settings.schedule.budget_seconds)
    teacher = Teacher(task.captured, settings.device)
    made = make_images(task, teacher, stopwatch)
    images, held_back = seen_and_held_back(task, made)
    calibrated = quantize_to_nearest(task, torch.split(images, settings.reconstruction.batch))
    trained = reconstruct(
        calibrated, images, settings.reconstruction, settings.seed, task.progress, stopwatch, task.checkpoint
    )
    before = error_of(calibrated, teacher, held_back)
    after = error_of(trained, teacher, held_back)
    figures = {"images": len(made.pixels), "error_calibrated": before, "error_trained": after}
    return Outcome(trained if after < before else calibrated, held_back, figures)


def make_images(task: Task, teacher: Teacher, stopwatch: Stopwatch) -> Images:
    """Optimised images; a budget decides how many, and that is saved so that a resumed run makes the same."""
    settings, schedule = task.settings, task.settings.distillation
    if settings.schedule.budget_seconds is not None:
        saved = task.checkpoint.load(PLAN_STAGE)
        if saved is None:
            seconds = stopwatch.left(IMAGES_SHARE)
            schedule = fit_to_time(schedule, seconds, time_a_step(teacher, task.image, schedule))
            saved = dataclasses.asdict(schedule)
            task.checkpoint.save(PLAN_STAGE, saved)
        schedule = Distillation(**saved)
    return distil_images(teacher, task.image, schedule, settings.seed, task.progress, task.checkpoint)


def seen_and_held_back(task: Task, made: Images) -> tuple[Tensor, Tensor]:
    """What is fitted to and what judges it, each with its views."""
    views, seeds = task.settings.distillation.views, (2 * task.settings.seed, 2 * task.settings.seed + 1)
    seen, held_back = (with_views(part, task.image, views, seed) for part, seed in zip(split(made), seeds, strict=True))
    return seen, held_back


def split(made: Images) -> tuple[Tensor, Tensor]:
    """Images to fit to, and those that are held back."""
    back = torch.arange(len(made.pixels)) % HELD_BACK == HELD_BACK - 1
    return made.pixels[~back], made.pixels[back]
