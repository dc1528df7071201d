"""An anytime ladder: each rung costs more than the one before, and the state that agrees best is kept.

nearest        ranges from optimised images, weights rounded to nearest
corrected      ... and biases that bring each layer's mean back (DFQ), unless `fitted` follows
equalized      channels of equal range first, then ranges and biases
fitted         ... where images are of ImageNet's kind, channels of equal range only where the answers gain by it, and
               ranges as the answers want them; there all rungs have streams of channels rotated (`fitting.py`)
second order   each weight makes good what the ones before it cost (`second_order.py`), from the fitted rounding to
               nearest, or the better of the two others
tuned          the network as a whole learns on (`end_to_end.py`); at 8 bits only for images of ImageNet's kind, whose
               networks still have something to learn there

The score (`score.py`) is how far the logits are from the float network's on images that nothing is fitted to; it needs
no data. The state with the best score is kept, but the tuned one also where it is a little behind: few images judge,
and between states as near as that chance would decide. The ladder ends when the score is as good as `ENOUGH`, when
nothing is left, or when the budget is used up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from gdfq_export.bias_correction import correct_by_images
from gdfq_export.distributed import agreed
from gdfq_export.lower import TARGETS, Quantized
from gdfq_export.memory import hand_back_freed_memory
from gdfq_export.methods.calibrate import quantize_to_nearest
from gdfq_export.methods.dfq import equalized_network
from gdfq_export.methods.fitting import start_fitting
from gdfq_export.methods.kept import Kept, least, listed
from gdfq_export.methods.recon import has_time_to_tune, judges, learn_as_a_whole, make_images, seen_and_held_back
from gdfq_export.methods.task import UNTRAINED, Outcome, Task
from gdfq_export.score import error_of
from gdfq_export.second_order import round_by_second_order
from gdfq_export.settings import is_large
from gdfq_export.stopwatch import Stopwatch
from gdfq_export.synthesis import Teacher

ENOUGH = 5e-4  # of the logits' variance: what W8A8 usually reaches
TRUSTED = 1.2  # times the best score before it, with which a network that learned as a whole is still kept


def auto(task: Task) -> Outcome:
    """Climbs the ladder and returns the best state."""
    settings = task.settings
    stopwatch = task.stopwatch
    teacher = Teacher(task.captured, settings.device)
    made = make_images(task, teacher, stopwatch)
    images, held_back = seen_and_held_back(task, made)
    judging = judges(task, held_back)
    ladder = Ladder(lambda state: error_of(state, teacher, judging))
    tuned = climb(task, ladder, images, stopwatch, task.costs.score(len(judging)))
    assert ladder.best is not None
    errors = {**ladder.scores, "kept": ladder.scores[ladder.kept]}  # not always the least
    figures = {"images": len(made.pixels), **{f"error_{k}": v for k, v in errors.items()}}
    return Outcome(ladder.best, held_back, figures, kept=what_to_keep(ladder), notes=() if tuned else (UNTRAINED,))


def what_to_keep(ladder: Ladder) -> Kept:
    """What the ladder decided, in words."""
    best = least(ladder.scores)
    if best.state == ladder.kept:
        return best
    trusted = f"it learned as a whole and has at most {TRUSTED} times the least"
    return Kept(ladder.kept, f"{trusted} {listed(ladder.scores)}")


class Ladder:
    """The states so far, by their score."""

    def __init__(self, score: Callable[[Quantized], float]) -> None:
        self.score = score
        self.scores: dict[str, float] = {}
        self.kept = ""  # the name of `best`
        self.best: Quantized | None = None

    def add(self, name: str, state: Quantized, trusted: float = 1.0) -> float:
        """Scores a state and keeps it where its score is below the best one, times `trusted`."""
        hand_back_freed_memory()
        value = agreed(self.score(state))
        if value < trusted * min(self.scores.values(), default=float("inf")):
            self.kept, self.best = name, state
        self.scores[name] = value
        hand_back_freed_memory()
        return value

    def is_good(self) -> bool:
        """Whether climbing on is not worth the time."""
        return min(self.scores.values(), default=float("inf")) <= ENOUGH


def climb(task: Task, ladder: Ladder, images: Tensor, stopwatch: Stopwatch, score: float = 0.0) -> bool:
    """One rung after the other, as long as the next one and its score (so many seconds) fit into the budget.

    False where the budget ended before the network was tuned that should have been.
    """
    settings, costs, count = task.settings, task.costs, len(images)
    images = images.to(settings.device)
    batches = torch.split(images, settings.reconstruction.batch)
    fitting = None
    with stopwatch.keeping(costs.state(count) + score):
        if settings.weighing and not stopwatch.is_over() and stopwatch.fits(time_to_fit(task, count) + score):
            fitting = start_fitting(task, images, stopwatch)
    task = fitting.task if fitting else task
    nearest = quantize_to_nearest(task, batches)
    plain = ladder.add("nearest", nearest)
    if ladder.is_good():
        return True
    corrected = costs.correction(count) + score
    fitted = costs.state(0) + (costs.state(count) if fitting else costs.state(count) + score) + corrected
    goes_on = not stopwatch.is_over() and stopwatch.fits(fitted)
    if not (fitting and goes_on) and stopwatch.fits(corrected):  # `fitted` will have it too
        ladder.add("corrected", correct_by_images(nearest, images))
    if ladder.is_good():
        return True
    if stopwatch.is_over() or not stopwatch.fits(fitted):
        return not worth_tuning(task)
    if fitting:
        with stopwatch.keeping(costs.state(0) + corrected):
            start, exact = fitting.finish(nearest, batches, stopwatch)
        ladder.add("fitted", correct_by_images(start, images))
    else:
        graph, _ = equalized_network(task, absorb=False)  # absorbing is exact only where no value leaves what is usual
        equalized = quantize_to_nearest(dataclasses.replace(task, folded=graph), batches)
        even = agreed(ladder.score(equalized))
        start, exact = (equalized, graph) if even < plain else (nearest, task.folded)
        ladder.add("equalized", correct_by_images(equalized, images))
    if ladder.is_good():
        return True
    if stopwatch.is_over() or not stopwatch.fits(costs.second_order(count) + score):
        return not worth_tuning(task)
    with stopwatch.keeping(costs.second_order(count) + score):
        compensated = round_by_second_order(start, images.cpu(), TARGETS[settings.target], task.progress, stopwatch)
    ladder.add("second_order", compensated)
    if ladder.is_good() or not worth_tuning(task):
        return True
    with stopwatch.keeping(score):
        if stopwatch.is_over() or not has_time_to_tune(task, count, stopwatch):
            return False
        tuned = learn_as_a_whole(task, compensated, exact, images, stopwatch)
    ladder.add("tuned", tuned, TRUSTED)
    return True


def time_to_fit(task: Task, images: int) -> float:
    """Seconds that fitting takes at least: two states before `nearest`, two behind it."""
    weighed = 2 * task.settings.weighing
    return 3 * task.costs.state(weighed) + task.costs.state(images) + task.costs.correction(images)


def worth_tuning(task: Task) -> bool:
    """Whether anything is rounded to less than 8 bits, or the network is of a kind that loses something at 8."""
    return task.settings.bits.narrow or is_large(task.image.shape)
