"""Scales for which all instruction sets compute the same sums, products and sigmoids of all codes.

A scale grows in steps of 0.02 % until they agree: a step moves all values away from the ties between two codes, and few
are needed (eight were the most on real networks). Where so many steps were in vain that it cannot be chance, scales are
chosen for which no rounding is left:

    product    sa sb / sc = 2^-k              a product of codes times a power of two is exact
    sum        sa = 2^j sc,  sb = 2^k sc      j, k >= 0: sums of whole numbers
    sum with a constant                       a table

Each operator has its own steps, so that the number of pairs of scales that are tried is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from gdfq_export.arithmetic import is_invariant, is_sigmoid_invariant, mean_is_clear_of_ties
from gdfq_export.errors import UnsupportedModelError
from gdfq_export.graph import Graph, Node
from gdfq_export.integer import QTensor, operands_of, tensors_from_scales
from gdfq_export.kernel_ratios import SLACK, ceilings_of
from gdfq_export.plan import Plan
from gdfq_export.pool_as_conv import window_of
from gdfq_export.quantizers import Affine

NUDGE = 1.0002
MAX_NUDGES = 200  # of one operator, or sweeps over all of them
MAX_JUMPS = 3  # of one operator: the scales of its operands may grow afterwards
MAX_SHIFT = 14  # of j and k: beyond, whole numbers leave float32's 24 bits
SMALL_WINDOW = 9
INT32_MAX = 2**31 - 1


def agree(
    graph: Graph, plan: Plan, affines: Mapping[str, Affine], scales: dict[str, np.float32], tables: set[str]
) -> None:
    """Grows scales of groups, in place, until all operators agree; adds sums that must become tables.

    A group may hold several sums, and a scale that changes is an operand of later ones, so this repeats until
    nothing changes.
    """
    search = _Search(graph, plan, affines, scales, tables)
    for _ in range(MAX_NUDGES):
        grown = [search.settle(node) for node in search.operators]
        if not any(grown):
            return
    raise _disagreement("the network")


class _Search:
    """The scales so far, and what has been tried."""

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        affines: Mapping[str, Affine],
        scales: dict[str, np.float32],
        tables: set[str],
    ) -> None:
        self.graph, self.plan, self.affines, self.scales, self.tables = graph, plan, affines, scales, tables
        self.ceilings = ceilings_of(graph, plan, affines)
        self.operators = [
            node
            for node in graph.nodes
            if node.op in ("add", "mul", "add_scalar", "sigmoid") or _is_free_mean(node, plan)
        ]
        self.steps = {node.name: MAX_NUDGES for node in self.operators}
        self.jumps = {node.name: MAX_JUMPS for node in self.operators}
        self.known: dict[tuple[object, ...], bool] = {}

    def settle(self, node: Node) -> bool:
        """Grows scales until the instruction sets agree about `node`; returns whether any did."""
        tensors = self._tensors()
        made = _result_of(node, self.plan)
        if node.name in self.tables or made is None or any(name not in tensors for name in node.inputs):
            return False
        group = self.plan.tensors[made].group
        before = self.scales[group]
        while not self._agrees(node, tensors, self._tensors()[made]):
            if self.steps[node.name]:
                self.steps[node.name] -= 1
                self.scales[group] = np.float32(self.scales[group] * np.float32(NUDGE))
                continue
            self.scales[group] = before
            if node.op == "avg_pool":  # it is computed one by one then, which is slower and exact
                return False
            self._jump(node, made)
            return True
        return bool(self.scales[group] != before)

    def _tensors(self) -> dict[str, QTensor]:
        return tensors_from_scales(self.plan, self.affines, self.scales)

    def _agrees(self, node: Node, tensors: Mapping[str, QTensor], result: QTensor) -> bool:
        key = (node.name, *(tensors[name] for name in node.inputs), result)
        if key not in self.known:
            self.known[key] = _is_invariant(self.graph, node, tensors, result)
        return self.known[key]

    def _jump(self, node: Node, made: str) -> None:
        """Scales without rounding."""
        if node.op == "add_scalar":
            self.tables.add(node.name)
            return
        self.jumps[node.name] -= 1
        if node.op not in ("add", "mul") or self.jumps[node.name] < 0:
            raise _disagreement(node.place or node.name)
        tensors = self._tensors()
        sources, result = [tensors[name].scale for name in node.inputs], tensors[made].scale
        if node.op == "mul":
            product = np.float32(sources[0] * sources[1])
            self._grow(node, made, float(product) * 2.0 ** -math.floor(math.log2(product / result)))
            return
        for name, source in zip(node.inputs, sources, strict=True):
            shift = max(0, math.ceil(math.log2(source / result)))
            if shift > MAX_SHIFT:
                raise _disagreement(node.place or node.name)
            self._grow(node, name, float(result) * 2.0**shift)

    def _grow(self, node: Node, name: str, scale: float) -> None:
        spec = self.plan.tensors[name]
        wanted = np.float32(scale / spec.factor)
        if wanted > self.scales[spec.group] and wanted > self.ceilings.get(spec.group, math.inf) * SLACK:
            raise _disagreement(node.place or node.name)
        self.scales[spec.group] = wanted


def _disagreement(place: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"no scales were found for which all processors compute the same integers at {place}: "
        "use --target x86-vnni or another, or look for very large weights there"
    )


def _is_invariant(graph: Graph, node: Node, tensors: Mapping[str, QTensor], result: QTensor) -> bool:
    if node.op == "sigmoid":
        return is_sigmoid_invariant(tensors[node.inputs[0]], result)
    if node.op == "avg_pool":
        return mean_is_clear_of_ties(tensors[node.inputs[0]], result, window_of(node) or 1)
    operands = operands_of(node, tensors)
    assert operands is not None
    broadcast = node.op == "add_scalar" or len({graph[name].shape for name in node.inputs}) > 1
    return is_invariant("mul" if node.op == "mul" else "add", *operands, result, broadcast=broadcast)


def _is_free_mean(node: Node, plan: Plan) -> bool:
    """Average pooling for which a few nudges find a scale without ties; larger windows have too many sums."""
    small = node.op == "avg_pool" and (window_of(node) or INT32_MAX) <= SMALL_WINDOW
    names = [node.inputs[0], node.name] if small else []
    return len({plan.tensors[name].group for name in names if name in plan.tensors}) == 2


def _result_of(node: Node, plan: Plan) -> str | None:
    """The quantized tensor that a kernel writes: its own, or the activation's that absorbed it."""
    name = plan.absorbed.get(node.name, node.name)
    return name if name in plan.tensors else None
