"""What the parts of a run cost on this machine, known before they begin: so that a budget is kept.

    state(n)      a rounded network with the ranges of n images     fit + ranges + OBSERVED n forward
    score(n)      how far its answers are from the float ones       SCORED n forward
    ending(n)     lowering, comparing on n images, writing          EXPORTED preparing + LOWERED fit + n forward ...

`forward` (of the float network, for one image), `fit` (making weights fit the target, `fit.py`) and `ranges` (finding
where to clip, `clipping.py`) are timed on a small part of the network each; the factors were measured on networks of
several kinds, on one thread, and are rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from gdfq_export.clipping import Histogram, least_error
from gdfq_export.distributed import agreed
from gdfq_export.errors import UsageError
from gdfq_export.graph import Graph
from gdfq_export.lower import TARGETS, is_depthwise
from gdfq_export.plan import Plan
from gdfq_export.program import FloatProgram
from gdfq_export.quantizers import over_channels, weight_scales
from gdfq_export.ranges import BINS
from gdfq_export.saturation import make_safe
from gdfq_export.settings import Settings
from gdfq_export.stopwatch import Stopwatch

TRIED_WEIGHTS = 1 << 18
LARGER = 1.25  # times what a small piece takes for its size, which stays in the processor's cache
TRIED_IMAGES = 2
OBSERVED, SCORED, CORRECTED = 4.0, 3.0, 3.0  # passes of the float network that the work on one image takes
COMPARED, SIMULATED, SIMULATED_IMAGES = 4.0, 5.0, 32  # ... and behind the method
EXPORTED, LOWERED, WRITTEN = 0.5, 0.1, 1.0  # of the seconds for preparing, of those for fitting, and seconds
ROUNDED = 4.0  # passes of second-order rounding, without the rounding
LEARNED = 10.0  # passes that a training step takes for each of its images
LEAST_IMAGES = 16
LEAST_SEEN, LEAST_HELD_BACK = 14, 2  # of these, see `recon.split`
MARGIN = 1.15  # what is named as the least must be enough on a machine with other work


@dataclass(frozen=True)
class Costs:
    """Seconds; without a budget nothing is measured, and nothing costs anything."""

    forward: float = 0.0
    fit: float = 0.0
    ranges: float = 0.0
    preparing: float = 0.0

    def state(self, images: int) -> float:
        """Ranges, and weights rounded to nearest."""
        return self.fit + self.ranges + OBSERVED * images * self.forward

    def score(self, images: int) -> float:
        """How far a state is from the float network."""
        return SCORED * images * self.forward

    def correction(self, images: int) -> float:
        """Biases that bring means back."""
        return CORRECTED * images * self.forward

    def second_order(self, images: int) -> float:
        """What must be done of it: the rest is done as far as there is time."""
        return ROUNDED * images * self.forward

    def steps(self, count: int, batch: int) -> float:
        """Training the whole network."""
        return LEARNED * count * batch * self.forward

    def ending(self, held_back: int) -> float:
        """Everything behind the method."""
        passes = COMPARED * held_back + SIMULATED * min(held_back, SIMULATED_IMAGES) + COMPARED
        written = WRITTEN if self.forward else 0.0
        return EXPORTED * self.preparing + LOWERED * self.fit + passes * self.forward + written

    def least(self, states: int) -> float:
        """The least that works: images that nothing was spent on, their ranges, and so many scores."""
        return self.state(LEAST_SEEN) + states * self.score(2 * LEAST_HELD_BACK) + self.ending(LEAST_HELD_BACK)


def measure_costs(graph: Graph, plan: Plan, settings: Settings, stopwatch: Stopwatch, preparing: float) -> Costs:
    """Tries a part of each; as process 0 sees it."""
    clock = stopwatch.clock
    channels, height, width = graph.input_shape
    program = FloatProgram(graph).to(settings.device)
    image = torch.zeros(TRIED_IMAGES, channels, height, width, device=settings.device)

    def run() -> None:
        with torch.no_grad():
            float(program(image).sum())

    forward = min(_timed(run, clock) for _ in range(2)) / TRIED_IMAGES
    ranges = len(plan.groups()) * (_timed(_find_a_range, clock) if settings.ranges != "ema" else 0.0)
    return agreed(Costs(forward, _time_to_fit(graph, plan, settings, clock), ranges, preparing))


def refuse_less_than_the_least(costs: Costs, states: int, stopwatch: Stopwatch) -> None:
    """Says at once what the least is, instead of overrunning the budget."""
    spent = stopwatch.seconds
    whole = spent + costs.least(states)
    if whole > stopwatch.limit and not stopwatch.is_resumed:
        raise UsageError(
            f"--budget of {stopwatch.limit:g} s is too small for this network here: starting took {spent:.1f} s, and "
            f"the least that works (ranges of {LEAST_IMAGES} images, rounding to nearest, writing) takes about "
            f"{whole - spent:.1f} s more, so give at least {math.ceil(MARGIN * whole)}s"
        )


def _timed(work: Callable[[], object], clock: Callable[[], float]) -> float:
    begun = clock()
    work()
    return clock() - begun


def _find_a_range() -> None:
    """As for one tensor of normal values."""
    values = torch.linspace(-4.0, 4.0, BINS, dtype=torch.float64)
    least_error(Histogram(torch.exp(-values.square() / 2), -4.0, 4.0), 255, False, 2.4, None)


def _time_to_fit(graph: Graph, plan: Plan, settings: Settings, clock: Callable[[], float]) -> float:
    """All weights' time, from some output channels of the largest layer."""
    if not TARGETS[settings.target].pair_sums:
        return 0.0
    weights = {
        name: graph.parameters[graph[name].parameters["weight"]]
        for name in plan.weights
        if not is_depthwise(graph, graph[name])
    }
    if not weights:
        return 0.0
    name = max(weights, key=lambda layer: weights[layer].numel())
    whole, qmax = weights[name].detach().double().cpu(), plan.weights[name].qmax
    some = whole[: max(TRIED_WEIGHTS // whole[0].numel(), 1)]
    scale = weight_scales(some, qmax).double()
    codes = torch.round(some / over_channels(scale, some)).numpy().astype(np.int64)
    amax = plan.tensors[graph[name].inputs[0]].qmax
    seconds = _timed(lambda: make_safe(some.numpy(), scale.numpy(), codes, amax, qmax), clock)
    return LARGER * seconds * sum(weight.numel() for weight in weights.values()) / some.numel()
