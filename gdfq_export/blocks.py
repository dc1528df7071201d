"""Cuts a graph into blocks that can be trained one after the other.

A block is a run of consecutive nodes. It begins and ends where as few tensors as possible are alive: in a residual
network that is after each sum, because only there one tensor carries everything. Nothing depends on names.

- A tensor whose activation is absorbed into a later quantizer is on no boundary, nor is a constant.
- Single layers in a row are taken `TOGETHER` at a time, and layers without weights go with what follows them.
- A stretch without a single-tensor boundary (a dense block) that has more than `LARGEST` layers is cut where the
  fewest tensors cross.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gdfq_export.graph import Graph, Node
from gdfq_export.ops import LAYERS
from gdfq_export.plan import Plan

TOGETHER = 3
LARGEST = 8


@dataclass(frozen=True)
class Block:
    """Consecutive nodes, the tensors they read from before, and those that later nodes read."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def layers(self) -> int:
        """How many of the nodes have weights."""
        return _layers(self.nodes)


def find_blocks(graph: Graph, plan: Plan) -> list[Block]:
    """Blocks that together are the whole graph, in order."""
    crossing = _crossing(graph)
    fixed = plan.absorbed.keys() | {node.name for node in graph.of("constant")}
    allowed = [fixed.isdisjoint(alive) for alive in crossing]
    ends = [i for i, alive in enumerate(crossing) if len(alive) == 1 and allowed[i]]
    pieces: list[tuple[int, int]] = []
    start = 0
    for end in _together(graph.nodes, ends):
        pieces += _split(graph.nodes, crossing, allowed, start, end + 1)
        start = end + 1
    return [_block(graph, crossing, first, stop) for first, stop in pieces]


def _layers(nodes: Sequence[Node]) -> int:
    return sum(node.op in LAYERS for node in nodes)


def _crossing(graph: Graph) -> list[tuple[str, ...]]:
    """For each node, the tensors made by it or before it that are read after it; the logits are read at the end."""
    last = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    last[graph.output] = len(graph.nodes)
    made: list[str] = []
    alive = []
    for index, node in enumerate(graph.nodes):
        made = [name for name in (*made, node.name) if last.get(name, -1) > index]
        alive.append(tuple(made))
    return alive


def _together(nodes: Sequence[Node], ends: Sequence[int]) -> list[int]:
    """Drops ends so that short pieces are joined; a piece with several layers (a residual block) stays alone."""
    kept: list[int] = []
    start, previous = 0, None
    for position, end in enumerate(ends):
        here = _layers(nodes[(0 if previous is None else previous + 1) : end + 1])
        if previous is not None and here > 1 and _layers(nodes[start : previous + 1]) > 0:
            kept.append(previous)
            start = previous + 1
        final = position == len(ends) - 1
        waiting = _layers(nodes[start : end + 1])
        rest = _layers(nodes[end + 1 :])
        if final or (waiting and rest and (here > 1 or waiting >= TOGETHER)):
            kept.append(end)
            start = end + 1
        previous = end
    return kept


def _split(
    nodes: Sequence[Node], crossing: Sequence[tuple[str, ...]], allowed: Sequence[bool], start: int, stop: int
) -> list[tuple[int, int]]:
    """Pieces of nodes[start:stop] of at most about `LARGEST` layers, cut where the fewest tensors cross."""
    pieces = []
    while _layers(nodes[start:stop]) > LARGEST:
        window = [
            i
            for i in range(start, stop - 1)
            if allowed[i] and LARGEST // 2 <= _layers(nodes[start : i + 1]) <= LARGEST and _layers(nodes[i + 1 : stop])
        ]
        if not window:
            break
        cut = min(window, key=lambda i: (len(crossing[i]), -i))
        pieces.append((start, cut + 1))
        start = cut + 1
    return [*pieces, (start, stop)]


def _block(graph: Graph, crossing: Sequence[tuple[str, ...]], start: int, stop: int) -> Block:
    nodes = graph.nodes[start:stop]
    read = {name for node in nodes for name in node.inputs}
    made = {node.name for node in nodes}
    before = crossing[start - 1] if start else ()
    inputs = tuple(name for name in before if name in read)
    return Block(nodes, inputs, tuple(name for name in crossing[stop - 1] if name in made))
