"""Ranges only: the generator makes images, the images give the ranges, the weights are rounded to nearest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gdfq_export.generator import Generator
from gdfq_export.lower import Quantized
from gdfq_export.methods.task import Outcome, Task
from gdfq_export.program import FloatProgram
from gdfq_export.quantizers import weight_scales
from gdfq_export.ranges import affines_from_ranges, observe
from gdfq_export.synthesis import HELD_BACK_SEED, Teacher, make_images, start_generator, train_generator


def calibrate(task: Task) -> Outcome:
    """Trains the generator, then quantizes with the ranges of its images."""
    settings = task.settings
    teacher = Teacher(task.captured, settings.device)
    state = start_generator(teacher, task.image, settings.schedule, settings.seed)
    steps = train_generator(state, teacher, settings.schedule, task.progress, share=0.9, checkpoint=task.checkpoint)
    quantized = quantize_with_images(task, teacher, state.model)
    return Outcome(quantized, hold_back(task, teacher, state.model), {"generator_steps": steps})


def quantize_with_images(task: Task, teacher: Teacher, model: Generator) -> Quantized:
    """Post-training quantization of the folded network on generated images."""
    settings = task.settings
    count, batch = settings.schedule.calibration_images, settings.schedule.batch
    return quantize_to_nearest(task, [x for x, _ in make_images(model, teacher, count, batch, settings.seed + 1)])


def quantize_to_nearest(task: Task, images: Sequence[Tensor]) -> Quantized:
    """Post-training quantization with the ranges of the given batches, wherever they come from."""
    settings = task.settings
    program = FloatProgram(task.folded).to(settings.device)
    task.progress("finding ranges", 0, 1)
    ranges = observe(program, task.plan, images, method=settings.ranges)
    task.progress("finding ranges", 1, 1)
    scales = {
        layer: weight_scales(task.folded.parameters[task.folded[layer].parameters["weight"]], spec.qmax)
        for layer, spec in task.plan.weights.items()
    }
    return Quantized(task.folded, task.plan, affines_from_ranges(task.plan, ranges), scales)


def hold_back(task: Task, teacher: Teacher, model: Generator) -> Tensor:
    """Images from a seed that neither ranges nor training use."""
    settings = task.settings
    count, batch = settings.schedule.calibration_images, settings.schedule.batch
    images = make_images(model, teacher, count, batch, settings.seed + HELD_BACK_SEED)
    return torch.cat([x for x, _ in images]).cpu()
