"""Activation ranges from images: moving average of the extremes (GDFQ, section 5.1) or a clipped histogram.

    ema:  low, high <- m * low + (1 - m) * min(x), m * high + (1 - m) * max(x)      divided by 1 - m^t
    the others choose where to clip a histogram of all values, see `clipping.py`

Deviation: the authors' code divides the stored average by its correction at every step, which overshoots; here the
correction is applied once, to what is read out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from gdfq_export.clipping import Histogram, Range, analytic_clip, least_divergence, least_error, percentile
from gdfq_export.errors import UnsupportedModelError
from gdfq_export.graph import Graph
from gdfq_export.names import Ranges
from gdfq_export.ops import FUNCTIONS, KERNELS
from gdfq_export.plan import Plan, TensorSpec, holds_pixels
from gdfq_export.program import FloatProgram
from gdfq_export.quantizers import Affine, affine_from_range

BINS = 4096
MOMENTUM = 0.9


class _Observer:
    """Histogram and moving extremes of one group, over all its members and batches."""

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.low, self.high = 0.0, 0.0
        self.average = torch.zeros(2, dtype=torch.float64)
        self.batches = 0

    def widen(self, low: float, high: float) -> None:
        """First pass: the span that the histogram will have to cover."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.average = MOMENTUM * self.average + (1 - MOMENTUM) * torch.tensor([low, high], dtype=torch.float64)
        self.batches += 1

    def count(self, x: Tensor) -> None:
        """Second pass: fill the histogram."""
        if self.high > self.low:
            self.counts += torch.histc(x.float(), BINS, self.low, self.high).double().cpu()

    def moving_average(self) -> Range:
        """The averaged extremes, corrected for the start at zero."""
        low, high = (self.average / (1 - MOMENTUM**self.batches)).tolist() if self.batches else (0.0, 0.0)
        return Range(low, high)

    def clipped(
        self, method: Ranges, qmax: int, unsigned: bool, power: float, function: Callable[[Tensor], Tensor] | None
    ) -> Range:
        """The range of the histogram by one of the criteria."""
        if self.high <= self.low:
            return Range(self.low, self.high)
        histogram = Histogram(self.counts, self.low, self.high)
        if method == "aciq":
            return analytic_clip(histogram, qmax, unsigned)
        if method == "kl":
            return least_divergence(histogram, qmax, unsigned)
        if method == "percentile":
            return percentile(histogram)
        return least_error(histogram, qmax, unsigned, power, function)


def _clip_to(spec: TensorSpec, x: Tensor) -> Tensor:
    return x.clamp(spec.low, spec.high) if spec.low > -float("inf") or spec.high < float("inf") else x


def observe(
    program: FloatProgram, plan: Plan, batches: Iterable[Tensor], *, method: Ranges, power: float = 2.4
) -> dict[str, Range]:
    """Group -> range, from the float activations of `program` on the given images (passed over twice)."""
    observers = {group: _Observer() for group in plan.groups()}
    batches = list(batches)
    for counting in (False,) if method == "ema" else (False, True):
        for batch in batches:
            _observe_batch(program, plan, batch, observers, counting)
    ranges = {}
    for group, members in plan.groups().items():
        spec, observer = members[0], observers[group]
        if holds_pixels(members):
            found = Range(spec.low, spec.high)  # pixels use all of their range
        elif method == "ema":
            found = observer.moving_average()
        else:
            function = function_behind(program.graph, members)
            found = observer.clipped(method, spec.qmax, spec.symmetry == "unsigned", power, function)
        low, high = max(found.low, spec.low), min(found.high, spec.high)
        ranges[group] = Range(low, high)
    return ranges


def function_behind(graph: Graph, members: Sequence[TensorSpec]) -> Callable[[Tensor], Tensor] | None:
    """The function of one number that is the only reader of a group, if there is one."""
    users, names = graph.users(), {spec.name for spec in members}
    readers = [user for name in sorted(names) for user in users[name] if user.name not in names]
    if len(readers) != 1 or readers[0].op not in FUNCTIONS or any(spec.factor != 1.0 for spec in members):
        return None
    (reader,) = readers
    return lambda x: KERNELS[reader.op](reader, [x], {})


@torch.no_grad()
def _observe_batch(
    program: FloatProgram, plan: Plan, batch: Tensor, observers: Mapping[str, _Observer], counting: bool
) -> None:
    """Shows one batch's activations to the observers of their groups."""
    extremes: dict[str, list[tuple[float, float]]] = {}

    def visit(name: str, value: Tensor) -> None:
        spec = plan.tensors.get(name)
        if spec is None or name not in plan.observed:
            return
        value = _clip_to(spec, value) / spec.factor
        if counting:
            observers[spec.group].count(value)
            return
        low, high = float(value.amin()), float(value.amax())
        if not math.isfinite(high - low) and bool(batch.isfinite().all()):
            place = program.graph[name].place or name
            raise UnsupportedModelError(
                f"the values of {name} at {place} are not finite for finite images: "
                "look for infinite or very large weights there and before"
            )
        extremes.setdefault(spec.group, []).append((low, high))

    program(batch, visit)
    for group, pairs in extremes.items():
        observers[group].widen(min(low for low, _ in pairs), max(high for _, high in pairs))


def affines_from_ranges(plan: Plan, ranges: Mapping[str, Range]) -> dict[str, Affine]:
    """Group -> scale and zero point of its representative."""
    return {
        group: affine_from_range(
            ranges[group].low, ranges[group].high, members[0].qmax, unsigned=members[0].symmetry == "unsigned"
        )
        for group, members in plan.groups().items()
    }
