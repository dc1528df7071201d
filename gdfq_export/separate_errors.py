"""What each rounding does to the answers while nothing else is rounded, and what that decides.

    error(g) = 1 - r^2 of the logits,  with the tensors of group g alone on their grid              (`score.py`)

A range that keeps a tensor's values best need not keep the answers best: in the first layers of mobile networks a
few large values widen a range of which the answers need the small ones, and the answers are kept twice as well by a
grid that clips. And scaling the channels between two layers to equal ranges helps some pairs and ruins others, where
what the activation gains the weights behind it lose. Both are decided here one by one, by what the network answers.

Means that rounding moves are put back behind it, because that is what the correction of biases will do.
"""

from __future__ import annotations

import dataclasses
import math
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gdfq_export.block_program import largest_step
from gdfq_export.distributed import agreed
from gdfq_export.fakequant import fake_quantize
from gdfq_export.graph import INPUT, Graph, Node, map_parameters
from gdfq_export.lower import Quantized
from gdfq_export.meaning import meaning_of
from gdfq_export.ops import KERNELS
from gdfq_export.passes.equalize import Pair
from gdfq_export.plan import holds_pixels
from gdfq_export.progress import Progress, silent
from gdfq_export.quantizers import Affine, over_channels, quantize_weight
from gdfq_export.score import LogitError
from gdfq_export.stopwatch import Stopwatch

FACTOR = 1.25  # by which a range grows or shrinks at a time
NARROWEST, WIDEST = -4, 3  # times
LARGER = 0.5  # weight of the error with values that are `FACTOR` times as large
EVIDENCE = 0.005  # share of all error that a step must save for a range to become narrower than all images have it
COVERED = 0.98  # of all error: the rest is spread over groups too small to be worth a search
WEIGHTS_SHARE = 0.5  # of the error of weights rounded to nearest is left by better rounding
RANGES_STAGE, PAIRS_STAGE = "weighing ranges", "weighing scaled channels"


class SeparateErrors:
    """Answers what one rounding alone does to the logits of some images, from the float values of all tensors.

    It computes where the images are.
    """

    @torch.no_grad()
    def __init__(self, quantized: Quantized, images: Tensor) -> None:
        self.quantized, self.plan = quantized, quantized.plan
        self.graph = map_parameters(quantized.graph, lambda value: value.to(images.device))
        self.members: dict[str, set[str]] = {
            group: {spec.name for spec in specs if spec.name in self.plan.sources}
            for group, specs in self.plan.groups().items()
            if not holds_pixels(specs)  # pixels use all of their range
        }
        self.answers = self.plan.tensors[self.graph.output].group if self.graph.output in self.plan.tensors else None
        self.exact: dict[str, Tensor] = {}
        for node in self.graph.nodes:
            self.exact[node.name] = images if node.op == INPUT else self._compute(node, self.exact, {})

    def of_group(self, group: str, affine: Affine) -> float:
        """The error with a group's tensors rounded to a grid."""
        return self._error({group: affine}, {})

    def of_groups(self, groups: Iterable[str]) -> float:
        """The error with the tensors of several groups rounded to their own grids."""
        return self._error({group: self.quantized.affines[group] for group in groups}, {})

    def of_weights(self, *layers: str) -> float:
        """The error with the weights of some layers rounded to nearest."""
        return self._error({}, {layer: self._rounded(layer) for layer in layers})

    def _rounded(self, layer: str) -> Tensor:
        weight = self.graph.parameters[self.graph[layer].parameters["weight"]]
        scale = self.quantized.weight_scales[layer].to(weight.device)
        codes = quantize_weight(weight, scale, self.plan.weights[layer].qmax)
        return codes * over_channels(scale, weight)

    @torch.no_grad()
    def _error(self, affines: Mapping[str, Affine], weights: Mapping[str, Tensor]) -> float:
        """Computes again only what the rounding reaches."""
        grids = {name: affine for group, affine in affines.items() for name in self.members[group]}
        changed: dict[str, Tensor] = {}
        values = ChainMap(changed, self.exact)
        for node in self.graph.nodes:
            reached = node.name in weights or any(name in changed for name in node.inputs)
            if not reached and node.name not in grids:
                continue
            value = self._compute(node, values, weights) if reached else self.exact[node.name]
            if node.name in weights:
                value = _with_mean_of(self.exact[node.name], value)
            if node.name in grids:
                spec, affine = self.plan.tensors[node.name], grids[node.name]
                scale = torch.tensor(affine.scale * spec.factor)
                value = _with_mean_of(value, fake_quantize(value, scale, affine.zero_point, 0, spec.qmax))
            changed[node.name] = value
        error, output = LogitError(meaning_of(self.graph)), self.graph.output
        error.add(changed.get(output, self.exact[output]), self.exact[output])
        return agreed(error.value)

    def _compute(self, node: Node, values: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        held = {role: self.graph.parameters[key] for role, key in node.parameters.items()}
        if node.name in weights:
            held["weight"] = weights[node.name]
        return KERNELS[node.op](node, [values[name] for name in node.inputs], held)


def _with_mean_of(exact: Tensor, value: Tensor) -> Tensor:
    """The value, with each channel's mean where it was."""
    return value + (exact - value).mean([0, *range(2, value.ndim)], keepdim=True)


def fit_ranges(
    quantized: Quantized, images: Tensor, progress: Progress = silent, stopwatch: Stopwatch | None = None
) -> Quantized:
    """Scales of activations with which the answers are kept best, each for itself, as far as there is time.

    But not those of answers that are themselves rounded: a finer grid that clips the largest of them may be nearer to
    all, and makes equals of the classes that matter.
    """
    errors, affines = SeparateErrors(quantized, images), dict(quantized.affines)
    groups = [group for group in errors.members if group != errors.answers]
    found: dict[str, float] = {}
    stopwatch = stopwatch or Stopwatch(None)
    for group in groups:
        if stopwatch.is_over():
            break
        found[group] = errors.of_group(group, affines[group])
        progress(RANGES_STAGE, len(found), 2 * len(groups))
    worth, evidence = _largest(found, COVERED), EVIDENCE * sum(found.values())
    for done, group in enumerate(worth, 1):
        if stopwatch.is_over():
            break
        affines[group] = _best_range(errors, group, affines[group], found[group], evidence)
        progress(RANGES_STAGE, len(found) + done * len(found) / len(worth), 2 * len(found))
    return dataclasses.replace(quantized, affines=affines)


def _best_range(errors: SeparateErrors, group: str, affine: Affine, error: float, evidence: float) -> Affine:
    """Shrinks the range while that saves enough; where it never did, lets it grow, within a clip that it stands for.

        error(r) + LARGER * error(r / FACTOR),   r the range

    The second term is the error with values that are FACTOR times as large, which other images than these few have:
    by the first alone ranges come out too narrow, and clipping costs far more than coarser steps. For the same reason
    a range shrinks only by steps that save the answers `evidence`: behind many layers, where a channel stands for few
    classes, these images hardly use the range that others need, and what a narrower one saves on them is nothing.
    """
    limit, known = largest_step(errors.plan.groups()[group], affine), {0: error}

    def moved(steps: int) -> Affine:
        return Affine(min(affine.scale * FACTOR**steps, limit), affine.zero_point) if steps else affine

    def cost(steps: int) -> float:
        for needed in (steps, steps - 1):
            if needed not in known:
                known[needed] = errors.of_group(group, moved(needed))
        return known[steps] + LARGER * known[steps - 1]

    best = 0
    for direction, last, saved in ((-1, NARROWEST, evidence), (1, WIDEST, 0.0)):
        while best != last and cost(best + direction) < cost(best) - saved:
            best += direction
        if best:
            break
    return moved(best)


def _largest(errors: Mapping[str, float], share: float) -> list[str]:
    """The names with the largest errors that together make this share of all."""
    names, total, kept = sorted(errors, key=errors.__getitem__, reverse=True), sum(errors.values()), 0.0
    for count, name in enumerate(names):
        if kept >= share * total:
            return names[:count]
        kept += errors[name]
    return names


@dataclass(frozen=True)
class Touched:
    """What a change of the network that keeps its answers moves: nothing outside of it."""

    tensors: frozenset[str]
    layers: tuple[str, ...]  # whose weights are rounded differently


def pairs_worth_scaling(
    plain: Quantized,
    scaled: Quantized,
    pairs: Sequence[Pair],
    images: Tensor,
    progress: Progress = silent,
    stopwatch: Stopwatch | None = None,
) -> list[Pair]:
    """The pairs whose channels are better scaled, from the network with none and with all of them scaled."""
    touched = [Touched(frozenset({pair.first, *pair.path}), (pair.second,)) for pair in pairs]
    gain = which_gain(plain, scaled, touched, images, PAIRS_STAGE, progress, stopwatch)
    return [pair for pair, gains in zip(pairs, gain, strict=True) if gains]


def which_gain(
    plain: Quantized,
    changed: Quantized,
    touched: Sequence[Touched],
    images: Tensor,
    stage: str,
    progress: Progress = silent,
    stopwatch: Stopwatch | None = None,
) -> list[bool]:
    """Which changes the answers gain by, from the network with none and with all of them.

    Each is judged for itself; what there is no time for does not gain.
    """
    total, stopwatch = 2 * len(touched), stopwatch or Stopwatch(None)
    before = _costs(plain, touched, images, stopwatch, lambda done: progress(stage, done, total))
    after = _costs(changed, touched, images, stopwatch, lambda done: progress(stage, len(touched) + done, total))
    found = [new < old for old, new in zip(before, after, strict=False)]
    return found + [False] * (len(touched) - len(found))


def _costs(
    quantized: Quantized,
    touched: Sequence[Touched],
    images: Tensor,
    stopwatch: Stopwatch,
    report: Callable[[int], None],
) -> list[float]:
    """What each part costs in one state, as far as there is time; the values of all tensors are freed at the end."""
    errors, costs = SeparateErrors(quantized, images), list[float]()
    for part in touched:
        if stopwatch.is_over():
            break
        costs.append(_cost(errors, part))
        report(len(costs))
    return costs


def _cost(errors: SeparateErrors, touched: Touched) -> float:
    """What the tensors and the weights of a part do to the answers."""
    groups = [group for group, members in errors.members.items() if members & touched.tensors]
    return errors.of_groups(groups) + WEIGHTS_SHARE * errors.of_weights(*touched.layers)


def values_in(graph: Graph) -> int:
    """How many numbers `SeparateErrors` keeps of one image."""
    return sum(math.prod(node.shape) for node in graph.nodes)
