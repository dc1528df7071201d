"""Bounds on the codes of each tensor, from the file alone: narrower than the type behind a Clip on integers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from gdfq_export.runtime_checks.folding import quantization_from_constants
from gdfq_export.runtime_checks.graph import Graph, Node
from gdfq_export.runtime_checks.movement import MOVES
from gdfq_export.runtime_checks.tensor_types import CODE_TYPES, element_types

_WITHIN = (*MOVES, "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "AveragePool", "GlobalAveragePool", "Resize")
"""Operators whose result lies between the smallest and the largest element of their first input."""

_EXTRAPOLATE = (b"tf_crop_and_resize",)  # by a value that may be any
_TYPE_RANGES = {2: (0, 255), 3: (-128, 127), 4: (0, 65535), 5: (-32768, 32767)}


@dataclass(frozen=True)
class CodeRange:
    """The smallest and largest code that can occur."""

    low: int
    high: int

    def union(self, other: CodeRange) -> CodeRange:
        """The range that holds both."""
        return CodeRange(min(self.low, other.low), max(self.high, other.high))

    def largest(self, other: CodeRange) -> CodeRange:
        """The range of the larger of two codes."""
        return CodeRange(max(self.low, other.low), max(self.high, other.high))

    def smallest(self, other: CodeRange) -> CodeRange:
        """The range of the smaller of two codes."""
        return CodeRange(min(self.low, other.low), min(self.high, other.high))


_AMONG: Mapping[str, Callable[[CodeRange, CodeRange], CodeRange]] = {
    "Concat": CodeRange.union,
    "Max": CodeRange.largest,
    "Min": CodeRange.smallest,
}
"""Operators whose result is one of their inputs at each place, and the range that two inputs give."""


def code_ranges(graph: Graph) -> dict[str, CodeRange]:
    """The range of every tensor of integer codes."""
    types = element_types(graph)
    ranges: dict[str, CodeRange] = {}
    for name, array in graph.constants.items():
        if types.get(name) in CODE_TYPES and array.size:
            ranges[name] = CodeRange(int(array.min()), int(array.max()))
    if types[graph.input.name] in CODE_TYPES:
        ranges[graph.input.name] = CodeRange(*_TYPE_RANGES[types[graph.input.name]])
    for node in graph.nodes:
        for name in node.outputs:
            if types.get(name) in CODE_TYPES:
                ranges[name] = _range(node, graph, ranges, CodeRange(*_TYPE_RANGES[types[name]]))
    return ranges


def _range(node: Node, graph: Graph, ranges: dict[str, CodeRange], whole: CodeRange) -> CodeRange:
    if node.op == "QuantizeLinear":
        return _quantized_range(node, graph, ranges) or whole
    source = ranges.get(node.input(0))
    if source is None:
        return whole
    if node.op == "Clip":
        low, high = (graph.constants.get(node.input(index)) for index in (1, 2))
        at_least = source.low if low is None else max(source.low, int(low.reshape(())))
        at_most = source.high if high is None else min(source.high, int(high.reshape(())))
        return CodeRange(min(at_least, at_most), at_most)
    if node.op == "Pad":
        filled = ranges.get(node.input(2)) if node.input(2) else CodeRange(0, 0)  # other modes repeat what is there
        return whole if filled is None else source.union(filled)
    inputs = _inputs_that_bound(node)
    known = [ranges[name] for name in inputs if name in ranges]
    return _joined(node, known) if inputs and len(known) == len(inputs) else whole


def _inputs_that_bound(node: Node) -> tuple[str, ...]:
    """The inputs between whose smallest and largest element the result lies; none where it may leave them."""
    if node.op == "Resize" and bytes(node.attributes.get("mode", b"nearest")) == b"cubic":
        return ()  # which overshoots
    if node.op == "Resize" and bytes(node.attributes.get("coordinate_transformation_mode", b"")) in _EXTRAPOLATE:
        return ()
    if node.op == "AveragePool" and node.attributes.get("count_include_pad", 0):
        return ()  # the padding's zeros are among what is averaged
    return node.inputs if node.op in _AMONG else node.inputs[:1] if node.op in _WITHIN else ()


def _joined(node: Node, ranges: list[CodeRange]) -> CodeRange:
    return functools.reduce(_AMONG.get(node.op, CodeRange.union), ranges)


def _quantized_range(node: Node, graph: Graph, ranges: dict[str, CodeRange]) -> CodeRange | None:
    """Behind DequantizeLinear -> (an operator that stays within its inputs) -> QuantizeLinear of equal parameters."""
    operator = graph.producers.get(node.input(0))
    if operator is None:
        return None
    names = (node.input(0),) if operator.op == "DequantizeLinear" else _inputs_that_bound(operator)
    wanted = quantization_from_constants(graph.constants.get(node.input(1)), graph.constants.get(node.input(2)), node)
    found = []
    for name in names:
        source = graph.producers.get(name)
        if source is None or source.op != "DequantizeLinear" or source.input(0) not in ranges:
            return None
        scale, zero_point = graph.constants.get(source.input(1)), graph.constants.get(source.input(2))
        if scale is None or not np.array_equal(scale.reshape(-1), wanted.scale.reshape(-1)):
            return None
        if zero_point is None or not np.array_equal(zero_point.reshape(-1), wanted.zero_point.reshape(-1)):
            return None
        found.append(ranges[source.input(0)])
    return _joined(operator, found) if found else None
