"""DFQ (Nagel et al. 2019): equalize, absorb high biases, ranges from batch norm's statistics, correct the biases.

Neither weights nor ranges see an image. A few distilled images give the empirical correction its means, and decide
which correction (none, analytic, empirical) agrees best with the float network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import torch

from gdfq_export.assumed_activations import AssumedActivations, propagate
from gdfq_export.bias_correction import correct_by_images, correct_by_moments
from gdfq_export.fit import fit_to_target
from gdfq_export.graph import Graph
from gdfq_export.lower import TARGETS, Quantized
from gdfq_export.methods.kept import least
from gdfq_export.methods.recon import make_images
from gdfq_export.methods.task import Outcome, Task
from gdfq_export.moments import Moments, batch_norm_outputs, divided, peak, shifted
from gdfq_export.passes import absorb_bias, equalize
from gdfq_export.quantizers import weight_scales
from gdfq_export.ranges import affines_from_ranges, observe
from gdfq_export.score import error_of
from gdfq_export.synthesis import Teacher

SPAN = 3.0  # deviations that count as the range of a channel
IMAGES = 128  # distilled, half of them held back


def dfq(task: Task) -> Outcome:
    """Quantizes the equalized network without images, then picks the bias correction with the least error."""
    settings = task.settings
    teacher = Teacher(task.captured, settings.device)
    graph, stated = equalized_network(task)
    moments = propagate(graph, stated, task.image)
    plain = quantize_by_moments(task, graph, moments)
    few = dataclasses.replace(settings.distillation, images=min(IMAGES, settings.distillation.images))
    asked = dataclasses.replace(task, settings=dataclasses.replace(settings, distillation=few))
    made = make_images(asked, teacher, task.stopwatch).pixels
    images, held_back = made[::2], made[1::2]
    candidates = {
        "plain": plain,
        "analytic": correct_by_moments(plain, moments),
        "empirical": correct_by_images(plain, images.cpu()),
    }
    errors = {name: error_of(candidate, teacher, held_back) for name, candidate in candidates.items()}
    figures, kept = {f"error_{name}": error for name, error in errors.items()}, least(errors)
    return Outcome(candidates[kept.state], held_back.cpu(), figures, kept=kept)


def equalized_network(
    task: Task, *, absorb: bool = True, only: Collection[str] | None = None
) -> tuple[Graph, dict[str, Moments]]:
    """The folded network with equal ranges and small biases, and the moments that batch norm states for it.

    With `only`, of the pairs that these layers begin.

    Deviation: channels are equalized by their activations, not by the weights that make them, because our weights
    have a scale for each output channel.
    """
    stated = batch_norm_outputs(task.captured, task.folded)
    spans = {name: peak(m, SPAN) for name, m in stated.items() if only is None or name in only}
    equalized = equalize(task.folded, stated, spans)
    stated = divided(stated, equalized.factors)
    if not absorb:
        return equalized.graph, stated
    absorbed = absorb_bias(equalized.graph, stated)
    return absorbed.graph, shifted(stated, absorbed.shifts)


def quantize_by_moments(task: Task, graph: Graph, moments: dict[str, Moments]) -> Quantized:
    """Rounds to nearest, with the ranges of normal activations instead of images."""
    no_images = torch.empty(0)
    assumed = AssumedActivations(graph, moments)
    ranges = observe(assumed, task.plan, [no_images], method=task.settings.ranges)
    scales = {
        layer: weight_scales(graph.parameters[graph[layer].parameters["weight"]], spec.qmax)
        for layer, spec in task.plan.weights.items()
    }
    nearest = Quantized(graph, task.plan, affines_from_ranges(task.plan, ranges), scales)
    return fit_to_target(nearest, TARGETS[task.settings.target])
