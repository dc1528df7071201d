"""How much of its codes each activation was seen to use: a range far too wide wastes bits, a dead tensor does nothing.

    used = (largest code seen - smallest code seen) / (largest code possible - smallest code possible)

Possible is what the file allows, as behind a Clip to fewer bits. Seen is what ran, images made to hurt among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gdfq_export.runtime_checks.code_ranges import CodeRange, code_ranges
from gdfq_export.runtime_checks.comparison import LevelResult
from gdfq_export.runtime_checks.graph import Graph
from gdfq_export.runtime_checks.quantizer_of import operator_of


@dataclass(frozen=True)
class RangeUse:
    """One activation tensor: the codes seen, and those that can be."""

    layer: str
    tensor: str
    seen: CodeRange
    possible: CodeRange

    @property
    def used(self) -> float:
        """The share of the range, 0 where the tensor never changed."""
        return (self.seen.high - self.seen.low) / max(self.possible.high - self.possible.low, 1)

    def to_json(self) -> dict[str, Any]:
        """One entry of `activations`."""
        return {
            "layer": self.layer,
            "tensor": self.tensor,
            "seen": [self.seen.low, self.seen.high],
            "possible": [self.possible.low, self.possible.high],
            "used": round(self.used, 4),
        }


def range_use(graph: Graph, level: LevelResult) -> tuple[RangeUse, ...]:
    """Every tensor of codes of `level`, in topological order; before a Clip on codes only the one behind it."""
    possible = code_ranges(graph)
    found = []
    for item in level.tensors:
        reader = graph.only_consumer(item.name)
        if item.name in possible and item.name in graph.producers and (reader is None or reader.op != "Clip"):
            layer = operator_of(graph, item.name).name
            seen = CodeRange(int(item.low), int(item.high))
            found.append(RangeUse(layer, item.name, seen, possible[item.name]))
    return tuple(found)
