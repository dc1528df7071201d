"""Makes the network fit to be rounded, where images are of ImageNet's kind, as its answers want it.

Streams of channels are rotated (`rotations.py`), channels of other tensors get equal ranges (`passes/equalize.py`),
both only where a measurement says that the answers gain. Then each tensor gets the range that keeps the answers best
(`separate_errors.py`). The network stays the same function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from gdfq_export.dead_leaves import with_leaves
from gdfq_export.graph import Graph
from gdfq_export.lower import Quantized
from gdfq_export.memory import hand_back_freed_memory
from gdfq_export.methods.calibrate import quantize_to_nearest, round_to_nearest
from gdfq_export.methods.dfq import equalized_network
from gdfq_export.methods.task import Task
from gdfq_export.moments import batch_norm_outputs
from gdfq_export.ops import LAYERS
from gdfq_export.passes.equalize import find_pairs
from gdfq_export.passes.mix_channels import Stream, find_streams, mix_channels
from gdfq_export.rotations import best_rotation, values_of
from gdfq_export.separate_errors import Touched, fit_ranges, pairs_worth_scaling, values_in, which_gain
from gdfq_export.stopwatch import Stopwatch

MOST_VALUES = 1 << 28  # of all tensors over the images on which roundings are weighed
WEIGHING_SEED = 2_000_003  # apart from the seeds of other dead leaves
ROTATIONS_STAGE = "weighing rotated channels"


def images_to_weigh(task: Task, images: Tensor) -> Tensor:
    """A few of the images, and dead leaves beside them."""
    settings = task.settings
    most = int(MOST_VALUES / values_in(task.folded) / (1 + settings.tuning.leaves))
    few = max(min(settings.weighing, most, len(images)), 1)
    strided = images[:: len(images) // few][:few]
    return with_leaves(strided, task.image, settings.tuning.leaves, settings.seed + WEIGHING_SEED)


@dataclass(frozen=True, eq=False)
class Fitting:
    """A network whose streams are rotated, and what the rest of it will be fitted on."""

    task: Task
    weighed: Tensor
    free: frozenset[str]  # layers whose channels are what batch norm says that they are

    def finish(
        self, plain: Quantized, images: Sequence[Tensor], stopwatch: Stopwatch | None = None
    ) -> tuple[Quantized, Graph]:
        """Channels scaled pair by pair and ranges tensor by tensor; and that network in float.

        It begins with the plain network, which has the ranges of all images.
        """
        task = self.task
        graph, _ = equalized_network(task, absorb=False, only=self.free)  # absorbing is exact for usual values only
        scaled = quantize_to_nearest(dataclasses.replace(task, folded=graph), images)
        stated = batch_norm_outputs(task.captured, task.folded)
        pairs = [pair for pair in find_pairs(task.folded) if pair.first in stated and pair.first in self.free]
        worth = pairs_worth_scaling(plain, scaled, pairs, self.weighed, task.progress, stopwatch)
        graph, _ = equalized_network(task, absorb=False, only={pair.first for pair in worth})
        moved = {name for pair in worth for name in (pair.first, *pair.path)}
        affines = {
            group: (scaled if any(spec.name in moved for spec in specs) else plain).affines[group]
            for group, specs in task.plan.groups().items()
        }
        nearest = round_to_nearest(dataclasses.replace(task, folded=graph), affines)
        fitted = fit_ranges(nearest, self.weighed, task.progress, stopwatch)
        hand_back_freed_memory()
        return fitted, graph


def start_fitting(task: Task, images: Tensor, stopwatch: Stopwatch | None = None, *, rotate: bool = True) -> Fitting:
    """Rotates streams where the answers gain by it."""
    layers, weighed = {node.name for node in task.folded.of(*LAYERS)}, images_to_weigh(task, images)
    streams = find_streams(task.folded) if rotate else []
    if not streams:
        return Fitting(task, weighed, frozenset(layers))
    seed = task.settings.seed
    values = values_of(task.folded, weighed, [name for stream in streams for name in stream.tensors], seed)
    bases = {stream: best_rotation([values[name] for name in stream.tensors], seed) for stream in streams}
    before, after = quantize_to_nearest(task, [weighed]), quantize_to_nearest(_mixed(task, bases), [weighed])
    touched = [Touched(frozenset(stream.tensors), (*stream.makers, *stream.readers)) for stream in streams]
    gain = which_gain(before, after, touched, weighed, ROTATIONS_STAGE, task.progress, stopwatch)
    chosen = {stream: bases[stream] for stream, gains in zip(streams, gain, strict=True) if gains}
    makers = {name for stream in chosen for name in stream.makers}
    return Fitting(_mixed(task, chosen), weighed, frozenset(layers - makers))


def _mixed(task: Task, bases: Mapping[Stream, Tensor]) -> Task:
    graph = task.folded
    for stream, basis in bases.items():
        graph = mix_channels(graph, stream, basis)
    return dataclasses.replace(task, folded=graph)
