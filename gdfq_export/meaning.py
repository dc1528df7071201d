"""What a network's outputs mean: how its answers are compared, and what an image can be made for.

    one class      the largest output; neither a constant nor a factor of an image's outputs changes it
    decisions      each output is a yes above its threshold: a single logit (0), or each output of a sigmoid (0.5);
                   a factor of the distance from the threshold changes none, a constant does

The labels of a network that decides are answers, not classes: label 2k asks for a no of output k, 2k + 1 for a yes, and
leaves the other outputs as they are. Of a single output these are the classes 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gdfq_export.errors import UnsupportedModelError
from gdfq_export.graph import Graph
from gdfq_export.ops import MOVEMENT

HALF_A_CODE = 1 / 512  # of a probability: what lies nearer to 0 or 1 cannot be told from it


@dataclass(frozen=True)
class Meaning:
    """Of all outputs of a network; `name` is what the file's metadata says."""

    name: Literal["logits", "probabilities", "log-probabilities", "decisions"]
    threshold: float = 0.0  # of decisions

    @property
    def decides(self) -> bool:
        """Whether each output is a decision of its own."""
        return self.name == "decisions"

    def classes(self, outputs: int) -> int:
        """How many classes so many outputs tell apart."""
        return 2 if self.decides and outputs == 1 else outputs

    def labels(self, outputs: int) -> int:
        """How many different labels an image can be made for."""
        return 2 * outputs if self.decides else outputs

    def label_of(self, classes: Tensor, outputs: int) -> Tensor:
        """The label of an image of a class: of several decisions, a yes of the one that has the class's number."""
        return 2 * classes + 1 if self.decides and outputs > 1 else classes

    def recognised(self, values: Tensor, labels: Tensor) -> Tensor:
        """Whether outputs (N, C) are what labels (N,) ask for, (N,)."""
        if not self.decides:
            return values.argmax(1) == labels
        asked = values.gather(1, (labels // 2)[:, None])[:, 0]
        return (asked > self.threshold) == (labels % 2 == 1)

    def same_answers(self, found: Tensor, wanted: Tensor) -> tuple[int, int]:
        """How many answers of two networks (N, C) are the same, and of how many: images, or decisions of all images."""
        if not self.decides:
            return int((found.argmax(1) == wanted.argmax(1)).sum()), len(found)
        return int(((found > self.threshold) == (wanted > self.threshold)).sum()), found.numel()

    def centred(self, values: Tensor) -> Tensor:
        """Outputs (N, C) without what decides nothing: the mean of an image's classes, or the threshold."""
        return values - self.threshold if self.decides else values - values.mean(-1, keepdim=True)

    def log_probabilities(self, values: Tensor, temperature: float = 1.0) -> Tensor:
        """Of each label (N, labels): they add up to one over the classes, or over the no and the yes of each output."""
        if not self.decides:
            return F.log_softmax(values / temperature, 1)
        logits = (values if self.threshold == 0.0 else _logits(values)) / temperature
        return torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], 2).flatten(1)


ONE_CLASS = Meaning("logits")


def _logits(probabilities: Tensor) -> Tensor:
    """What the sigmoid has read; where it is as good as 0 or 1 the gradient is that at the nearest other code."""
    inside = probabilities.clamp(HALF_A_CODE, 1 - HALF_A_CODE)
    return torch.logit(probabilities + (inside - probabilities).detach())


def meaning_of(graph: Graph) -> Meaning:
    """Read off the end of a graph, with its softmax or without."""
    last = graph[graph.output]
    if last.op in ("softmax", "log_softmax"):
        if graph.num_outputs == 1:
            raise UnsupportedModelError(
                f"the {last.op} at {last.place} is over one class, which is always certain: end the network in its "
                "logit or in a sigmoid"
            )
        return Meaning("probabilities" if last.op == "softmax" else "log-probabilities")
    if _is_sigmoid(graph, graph.output):
        return Meaning("decisions", 0.5)
    return Meaning("decisions") if graph.num_outputs == 1 else ONE_CLASS


def _is_sigmoid(graph: Graph, name: str) -> bool:
    """Whether a tensor holds sigmoids and nothing else, however they are moved."""
    node = graph[name]
    if node.op in MOVEMENT:
        return all(_is_sigmoid(graph, source) for source in node.inputs)
    return node.op == "sigmoid"
