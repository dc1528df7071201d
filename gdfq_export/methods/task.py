"""What every method gets, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from gdfq_export.allocation import Curve
from gdfq_export.checkpoint import Checkpoint
from gdfq_export.costs import Costs
from gdfq_export.generator import ImageSpec
from gdfq_export.graph import Graph
from gdfq_export.image_store import ImageStore
from gdfq_export.lower import Quantized
from gdfq_export.methods.kept import ONLY_STATE, Kept
from gdfq_export.plan import Plan
from gdfq_export.progress import Progress
from gdfq_export.real_images import RealImages
from gdfq_export.settings import Settings
from gdfq_export.stopwatch import Stopwatch

UNTRAINED = "the budget ended before training began: give a longer --budget"


@dataclass(frozen=True, eq=False)
class Task:
    """A frozen network, what it is to become, and how."""

    captured: Graph  # canonical, with its batch norms
    folded: Graph
    plan: Plan
    image: ImageSpec
    settings: Settings
    progress: Progress
    checkpoint: Checkpoint = field(default_factory=Checkpoint)  # saves nothing unless there is a work directory
    real: RealImages = field(default_factory=RealImages)  # nothing, in a data-free run
    store: ImageStore = field(default_factory=ImageStore)  # where optimised images of an earlier run may be
    stopwatch: Stopwatch = field(default_factory=lambda: Stopwatch(None))
    costs: Costs = field(default_factory=Costs)  # of the parts of the run, where there is a budget


@dataclass(frozen=True, eq=False)
class Outcome:
    """A quantized network, images that nothing was fitted to, and figures about the run."""

    quantized: Quantized
    held_back: Tensor  # (N, C, H, W)
    figures: Mapping[str, float] = field(default_factory=dict)
    curve: Curve | None = None  # of mixed precision
    traces: Mapping[str, Sequence[float]] = field(default_factory=dict)  # a quantity -> its value at every step
    kept: Kept = ONLY_STATE  # which state of the method it is
    notes: tuple[str, ...] = ()  # what the user should know of how it went, a sentence each
