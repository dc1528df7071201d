"""Reconstruction: images are optimised against the frozen network, each block learns to return what it returned, and
then the network as a whole does."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from gdfq_export.costs import LEAST_IMAGES
from gdfq_export.dead_leaves import with_leaves
from gdfq_export.distilled import IMAGES_STAGE, Images, distil_images, fit_to_time, time_a_step
from gdfq_export.distributed import agreed
from gdfq_export.end_to_end import tune
from gdfq_export.graph import Graph
from gdfq_export.image_store import facts_of
from gdfq_export.lower import Quantized
from gdfq_export.memory import hand_back_freed_memory
from gdfq_export.methods.calibrate import quantize_to_nearest
from gdfq_export.methods.kept import least
from gdfq_export.methods.task import UNTRAINED, Outcome, Task
from gdfq_export.reconstruct import reconstruct
from gdfq_export.score import error_of
from gdfq_export.settings import Distillation
from gdfq_export.stopwatch import Stopwatch
from gdfq_export.synthesis import HELD_BACK_SEED, Teacher
from gdfq_export.views import with_views

HELD_BACK = 8  # one image of so many is fitted to by nothing
PLAN_STAGE = "plan"
IMAGES_SHARE = 0.3  # of the budget
BLOCKS_SHARE = 0.65  # ... is used up when all blocks have learned
SCORES = 2  # for which there must be time behind the images


def recon(task: Task) -> Outcome:
    """Optimised images, ranges, then reconstruction; keeps the state that agrees better on held-back images."""
    settings = task.settings
    stopwatch, costs = task.stopwatch, task.costs
    teacher = Teacher(task.captured, settings.device)
    made = make_images(task, teacher, stopwatch)
    images, held_back = seen_and_held_back(task, made)
    judging = judges(task, held_back)
    calibrated = quantize_to_nearest(task, torch.split(images, settings.reconstruction.batch))
    states = {"calibrated": calibrated}
    with stopwatch.keeping(costs.score(3 * len(judging))):
        if stopwatch.fits(costs.steps(2, settings.reconstruction.batch) + costs.score(4 * len(images))):
            states["reconstructed"] = learn_blocks(task, calibrated, images, stopwatch)
        if "reconstructed" in states and has_time_to_tune(task, len(images), stopwatch):
            states["tuned"] = learn_as_a_whole(task, states["reconstructed"], task.folded, images, stopwatch)
    errors = {name: error_of(state, teacher, judging) for name, state in states.items()}
    figures = {"images": len(made.pixels), **{f"error_{name}": error for name, error in errors.items()}}
    kept, notes = least(errors), () if "reconstructed" in states else (UNTRAINED,)
    return Outcome(states[kept.state], held_back, figures, kept=kept, notes=notes)


def learn_blocks(task: Task, start: Quantized, images: Tensor, stopwatch: Stopwatch) -> Quantized:
    """Block-by-block reconstruction, with its share of the budget."""
    settings, share = task.settings, BLOCKS_SHARE
    schedule = settings.reconstruction
    return reconstruct(start, images, schedule, settings.seed, task.progress, stopwatch, task.checkpoint, share)


def has_time_to_tune(task: Task, images: int, stopwatch: Stopwatch) -> bool:
    """Whether the dead leaves beside the images fit, and a step or two."""
    costs, tuning = task.costs, task.settings.tuning
    return stopwatch.fits(costs.score(round(tuning.leaves * images)) + costs.steps(2, tuning.batch))


def learn_as_a_whole(task: Task, start: Quantized, exact: Graph, images: Tensor, stopwatch: Stopwatch) -> Quantized:
    """End-to-end tuning towards the float network `exact`, with what is left of the budget."""
    settings = task.settings
    images = with_leaves(images.to(settings.device), task.image, settings.tuning.leaves, settings.seed)
    return tune(start, exact, images, settings.tuning, settings.seed, task.progress, stopwatch, task.checkpoint)


def make_images(task: Task, teacher: Teacher, stopwatch: Stopwatch) -> Images:
    """Optimised images, from the user's file if they are there; a budget decides how many, and that is saved so that a
    resumed run makes the same."""
    settings, schedule = task.settings, task.settings.distillation
    if settings.schedule.budget_seconds is not None:
        saved = task.checkpoint.load(PLAN_STAGE)
        if saved is None:
            seconds_per_image = time_a_step(teacher, task.image, schedule, stopwatch)
            seconds = stopwatch.left(IMAGES_SHARE)
            most = images_worth(task, stopwatch)
            schedule = fit_to_time(schedule, seconds, seconds_per_image, most)
            if schedule.images <= LEAST_IMAGES:
                schedule = dataclasses.replace(schedule, views=0)
            saved = dataclasses.asdict(schedule)
            task.checkpoint.save(PLAN_STAGE, saved)
        schedule = Distillation(**saved)
    task = dataclasses.replace(task, settings=dataclasses.replace(settings, distillation=schedule))
    seen, held_back = counts_of(task)
    stopwatch.reserve(task.costs.ending(held_back))
    facts = facts_of(task.captured, task.image, schedule, settings.seed)
    begun = agreed(task.checkpoint.has(IMAGES_STAGE))  # by the run that is resumed
    made = None if begun else task.store.load(facts)
    if made is None:
        with stopwatch.keeping(task.costs.state(seen) + SCORES * task.costs.score(2 * held_back)):
            work = (task.progress, task.checkpoint, stopwatch)
            made = distil_images(teacher, task.image, schedule, settings.seed, *work)
        hand_back_freed_memory()
        task.store.save(made, facts)
    else:
        task.checkpoint.save(IMAGES_STAGE, {"pixels": made.pixels, "labels": made.labels})
    return made


def counts_of(task: Task) -> tuple[int, int]:
    """How many images will be fitted to, and how many held back, with their views."""
    schedule = task.settings.distillation
    back = schedule.images // HELD_BACK
    return (schedule.images - back) * (1 + schedule.views), back * (1 + schedule.views)


def images_worth(task: Task, stopwatch: Stopwatch) -> int | None:
    """As many images as there is time to find ranges and to judge with, in half of the time that is left."""
    costs, views = task.costs, 1 + task.settings.distillation.views
    fixed = costs.state(0) + costs.ending(0)
    each = views * (costs.state(1) - costs.state(0))
    each += views * (costs.ending(1) - costs.ending(0) + SCORES * costs.score(2)) / HELD_BACK
    return max(int((stopwatch.left() - fixed) / 2 / each), 0) if each else None


def seen_and_held_back(task: Task, made: Images) -> tuple[Tensor, Tensor]:
    """What is fitted to and what judges it, each with its views."""
    views, seeds = task.settings.distillation.views, (2 * task.settings.seed, 2 * task.settings.seed + 1)
    seen, held_back = (with_views(part, task.image, views, seed) for part, seed in zip(split(made), seeds, strict=True))
    return seen, held_back


def judges(task: Task, held_back: Tensor) -> Tensor:
    """What chooses between states: where tuning sees dead leaves, others of them beside the held-back images.

    Those alone prefer what learned nothing but their likes. The forecast was fitted to them alone, and stays theirs.
    """
    return with_leaves(held_back, task.image, task.settings.tuning.leaves, task.settings.seed + HELD_BACK_SEED)


def split(made: Images) -> tuple[Tensor, Tensor]:
    """Images to fit to, and those that are held back."""
    back = torch.arange(len(made.pixels)) % HELD_BACK == HELD_BACK - 1
    return made.pixels[~back], made.pixels[back]
