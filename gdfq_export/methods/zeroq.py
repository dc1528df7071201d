"""ZeroQ (Cai et al. 2020): distilled images give the ranges and, within a budget, each layer its own width.

Without a budget every layer has the asked width. With one, each layer's sensitivity at each width is measured on the
images, and the widths with the least sum of sensitivities within the budget are found exactly.

Deviation: only widths that differ in the file's size (or in bit operations) are asked for, not 2, 4 and 8 always.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from gdfq_export.allocation import Allocation, Curve, pareto_front, within
from gdfq_export.errors import UsageError
from gdfq_export.file_size import FileSize, bytes_beside_weights
from gdfq_export.graph import Node
from gdfq_export.lower import Quantized, lower
from gdfq_export.methods.calibrate import quantize_to_nearest
from gdfq_export.methods.kept import Kept
from gdfq_export.methods.recon import make_images, split
from gdfq_export.methods.task import Outcome, Task
from gdfq_export.ops import LAYERS
from gdfq_export.packing import weight_bytes
from gdfq_export.plan import with_weight_bits
from gdfq_export.sensitivity import WIDTHS, Sensitivity, bit_operations_of, measure, widths_worth_asking
from gdfq_export.synthesis import Teacher

SENSITIVITY_IMAGES = 64


def zeroq(task: Task) -> Outcome:
    """Images by batch norm's statistics alone; ranges from them; widths by the budget."""
    settings = task.settings
    teacher = Teacher(task.captured, settings.device)
    unlabelled = dataclasses.replace(settings.distillation, label_weight=0.0)
    asked = dataclasses.replace(task, settings=dataclasses.replace(settings, distillation=unlabelled))
    images, held_back = split(make_images(asked, teacher, task.stopwatch))
    batches = torch.split(images, settings.schedule.batch)
    quantized = quantize_to_nearest(task, batches)
    figures: dict[str, float] = {"images": len(images) + len(held_back)}
    if settings.size_budget is None and settings.bit_operations_budget is None:
        return Outcome(quantized, held_back, figures)
    curve, chosen = allocate(task, quantized, images[:SENSITIVITY_IMAGES], held_back)
    figures |= {"sensitivity": chosen.sensitivity, "mean_weight_bits": mean_bits(task, chosen)}
    mixed = dataclasses.replace(task, plan=with_weight_bits(task.plan, chosen.bits))
    kept = Kept("mixed", "least sum of the layers' sensitivities within the budget")
    return Outcome(quantize_to_nearest(mixed, batches), held_back, figures, curve, kept=kept)


def allocate(task: Task, quantized: Quantized, images: Tensor, held_back: Tensor) -> tuple[Curve, Allocation]:
    """The Pareto front of the network, and its point for the budget; the file will hold some of `held_back`."""
    by_size = task.settings.size_budget is not None
    budget = task.settings.size_budget if by_size else task.settings.bit_operations_budget
    assert budget is not None  # the caller asked
    size, counts = FileSize(0, {}, 0), dict[str, int]()
    if by_size:
        widths = {*WIDTHS, *(spec.bits for spec in task.plan.weights.values())}
        integer = lower(quantized, task.settings.target, task.settings.without)
        size = bytes_beside_weights(integer, widths, held_back)
        counts = {name: layer.q_weight.size for name, layer in integer.layers.items()}
    costs = {}
    for node in task.folded.of(*LAYERS):
        asked = [task.plan.weights[node.name].bits] if _is_fixed(task, node.name) else WIDTHS
        options = [(bits, _cost(task, node, bits, counts) + size.each.get(bits, 0)) for bits in asked]
        costs[node.name] = widths_worth_asking(options)
    choices = measure(Sensitivity(task.folded, images, task.settings.device), costs, task.progress)
    front = [
        dataclasses.replace(point, cost=point.cost + size.beside(point.bits.values()))
        for point in pareto_front(choices)
    ]
    chosen = within(front, budget)
    if chosen is None:
        raise UsageError(_too_small(front[0], budget, by_size))
    uniform = []
    for bits in WIDTHS:
        if all(any(choice.bits == bits for choice in options) for options in choices.values()):
            picked = [next(c for c in options if c.bits == bits) for options in choices.values()]
            uniform.append(
                (bits, sum(c.cost for c in picked) + size.beside([bits]), sum(c.sensitivity for c in picked))
            )
    unit = "bytes of the file" if by_size else "bit operations"
    points = [(point.cost, point.sensitivity) for point in front]
    return Curve(unit, budget, points, (chosen.cost, chosen.sensitivity), uniform), chosen


def _too_small(least: Allocation, budget: int, by_size: bool) -> str:
    """The refusal of a budget that no widths keep."""
    if by_size:
        return (
            f"--size-budget {budget / 1000:g}kB is less than the network takes at the narrowest widths: "
            f"give at least {math.ceil(least.cost / 1000)}kB"
        )
    return (
        f"--bitops-budget {budget / 1e9:g}G is less than the network takes at the narrowest widths: "
        f"give at least {math.ceil(least.cost / 1e7) / 100:g}G"
    )


def _is_fixed(task: Task, layer: str) -> bool:
    """Whether --first-last has decided this layer's width."""
    layers = [node.name for node in task.folded.of(*LAYERS)]
    return task.settings.bits.first_last is not None and layer in (layers[0], layers[-1])


def _cost(task: Task, node: Node, bits: int, counts: Mapping[str, int]) -> int:
    """Bytes of a layer's weights, `counts` being how many of them the file holds; without these, bit operations."""
    if counts:
        return weight_bytes(counts[node.name], bits)
    return bit_operations_of(task.folded, task.plan, node, bits)


def mean_bits(task: Task, chosen: Allocation) -> float:
    """Bits of a weight on average."""
    counts = {name: task.folded.parameters[task.folded[name].parameters["weight"]].numel() for name in chosen.bits}
    return sum(counts[name] * bits for name, bits in chosen.bits.items()) / sum(counts.values())
