"""Ranges only: the generator makes images, the images give the ranges, the weights are rounded to nearest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from gdfq_export.fit import fit_to_target
from gdfq_export.lower import TARGETS, Quantized
from gdfq_export.methods.supply import Generated
from gdfq_export.methods.task import Outcome, Task
from gdfq_export.program import FloatProgram
from gdfq_export.quantizers import Affine, weight_scales
from gdfq_export.ranges import affines_from_ranges, observe
from gdfq_export.real_images import ImageSource, read_batches, split
from gdfq_export.synthesis import Teacher


def calibrate(task: Task) -> Outcome:
    """Trains the generator, then quantizes with the ranges of its images; or with those of the user's images."""
    if task.real.calibration is not None:
        images, held_back = real_calibration(task, task.real.calibration)
        return Outcome(quantize_to_nearest(task, images), held_back, {"real_images": sum(map(len, images))})
    supply = Generated(task, Teacher(task.captured, task.settings.device))
    task.stopwatch.reserve(task.costs.state(supply.count) + task.costs.ending(supply.count))
    supply.warm_up(task.stopwatch, share=0.9)
    return Outcome(quantize_to_nearest(task, supply.calibration()), supply.held_back(), supply.figures())


def real_calibration(task: Task, source: ImageSource) -> tuple[list[Tensor], Tensor]:
    """Batches of the user's images for ranges, and others for the record of agreement."""
    count, batch = task.settings.schedule.calibration_images, task.settings.schedule.batch
    parts = split(source, count, task.settings.seed)
    return read_batches(source, parts.fitted[:count], batch), source.read(parts.held_back)[0]


def quantize_to_nearest(task: Task, images: Sequence[Tensor]) -> Quantized:
    """Post-training quantization with the ranges of the given batches, wherever they come from."""
    settings = task.settings
    program = FloatProgram(task.folded).to(settings.device)
    task.progress("finding ranges", 0, 1)
    batches = [batch.to(settings.device) for batch in images]
    ranges = observe(program, task.plan, batches, method=settings.ranges)
    task.progress("finding ranges", 1, 1)
    return round_to_nearest(task, affines_from_ranges(task.plan, ranges))


def round_to_nearest(task: Task, affines: Mapping[str, Affine]) -> Quantized:
    """Weights on the finest grid that holds them, activations on the given ones."""
    scales = {
        layer: weight_scales(task.folded.parameters[task.folded[layer].parameters["weight"]], spec.qmax)
        for layer, spec in task.plan.weights.items()
    }
    nearest = Quantized(task.folded, task.plan, affines, scales)
    return fit_to_target(nearest, TARGETS[task.settings.target])
