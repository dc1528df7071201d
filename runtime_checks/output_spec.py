"""What a model's outputs mean: one class by the largest of them, or a decision each.

    metadata_props["gdfq_export"] = {"output": {"labels": [...] | null,
                                                "meaning": "logits" | "probabilities" | "log-probabilities" |
                                                           "decisions"}, ...}

Files of other tools and of older versions do not say it. One output can only be a decision, and so is each of several
behind a sigmoid: above 0.5 there, above 0 where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gdfq_export.runtime_checks.errors import CheckError
from gdfq_export.runtime_checks.graph import Array, Graph

DECISIONS = "decisions"
_SIGMOIDS = ("Sigmoid", "HardSigmoid", "QLinearSigmoid")
_KEEPING = (  # operators behind which a value is what it was
    *("QuantizeLinear", "DequantizeLinear", "Identity", "Cast"),
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather"),
)


@dataclass(frozen=True)
class OutputSpec:
    """The outputs for one image, and the names of the classes where the file has them."""

    count: int
    threshold: float | None  # of decisions: what is above it is a yes; None where the largest output is the class
    labels: tuple[str, ...] | None = None

    @property
    def classes(self) -> int:
        """How many classes the outputs tell apart: a single decision tells two."""
        return 2 if self.count == 1 else self.count


def answers(outputs: Array, threshold: float | None) -> Array:
    """The class of each image (N,), or the decisions of all of them (N, outputs)."""
    flat = outputs.reshape(len(outputs), -1)
    return np.asarray(flat.argmax(1) if threshold is None else flat > threshold)


def output_spec(graph: Graph, provenance: Mapping[str, Any], count: int) -> OutputSpec:
    """Read from the graph and the metadata; `count` numbers come out for each image."""
    stated = provenance.get("output")
    if stated is not None and not isinstance(stated, Mapping):
        raise CheckError("metadata 'gdfq_export' is damaged: its output is no object")
    stated = stated or {}
    labels = stated.get("labels")
    if labels is not None and not (isinstance(labels, list) and all(isinstance(name, str) for name in labels)):
        raise CheckError("metadata 'gdfq_export' is damaged: the labels of its output are no list of names")
    behind_sigmoid = _is_sigmoid(graph, graph.outputs[0])
    decides = behind_sigmoid or count == 1 or stated.get("meaning") == DECISIONS
    threshold = (0.5 if behind_sigmoid else 0.0) if decides else None
    return OutputSpec(count, threshold, tuple(labels) if labels else None)


def _is_sigmoid(graph: Graph, name: str) -> bool:
    """Whether a tensor holds sigmoids and nothing else, however they are rounded and moved."""
    node = graph.producers.get(name)
    if node is not None and node.op in _KEEPING:
        return _is_sigmoid(graph, node.input(0))
    if node is not None and node.op == "Concat":
        return all(_is_sigmoid(graph, source) for source in node.inputs)
    return node is not None and node.op in _SIGMOIDS
