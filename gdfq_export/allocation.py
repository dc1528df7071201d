"""Mixed precision: one width for each layer, so that the sum of sensitivities is least within a budget (ZeroQ).

    min over widths   sum_l sensitivity_l(width_l)       subject to   sum_l cost_l(width_l) <= budget

Solved exactly by dynamic programming over layers. After each layer only the undominated sums are kept: of two with
the same cost or less, the one with the smaller sensitivity. What is left after the last layer is the Pareto front,
which answers every budget at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Choice:
    """One width of one layer: what it costs, and how far it takes the network from the float one."""

    bits: int
    cost: int
    sensitivity: float


@dataclass(frozen=True)
class Allocation:
    """A width for each layer, with their sums."""

    cost: int
    sensitivity: float
    bits: Mapping[str, int]


@dataclass(frozen=True)
class Curve:
    """The Pareto front for a report: what can be had for which cost, what was asked, and what was taken."""

    unit: str
    budget: int
    front: Sequence[tuple[int, float]]  # cost, sensitivity
    chosen: tuple[int, float]
    uniform: Sequence[tuple[int, int, float]]  # bits, cost, sensitivity: all layers at one width


def pareto_front(choices: Mapping[str, Sequence[Choice]]) -> list[Allocation]:
    """Every undominated allocation, by rising cost and falling sensitivity."""
    costs, sums = np.zeros(1, np.int64), np.zeros(1, np.float64)
    trail: list[tuple[np.ndarray, np.ndarray]] = []  # for each layer: where each sum came from, and the choice
    for options in choices.values():
        table = np.array([option.cost for option in options], np.int64)
        losses = np.array([option.sensitivity for option in options], np.float64)
        all_costs, all_sums = (costs[:, None] + table).reshape(-1), (sums[:, None] + losses).reshape(-1)
        kept = _undominated(all_costs, all_sums)
        costs, sums = all_costs[kept], all_sums[kept]
        trail.append((kept // len(options), kept % len(options)))
    return [Allocation(int(costs[end]), float(sums[end]), _follow(choices, trail, end)) for end in range(len(costs))]


def _undominated(costs: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Indices of the points that no other point beats in both, by rising cost."""
    order = np.lexsort((sums, costs))
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(sums[order])[:-1]])
    kept: np.ndarray = order[sums[order] < best_before]
    return kept


def _follow(
    choices: Mapping[str, Sequence[Choice]], trail: Sequence[tuple[np.ndarray, np.ndarray]], end: int
) -> dict[str, int]:
    """The widths of one point of the front, found backwards."""
    bits = {}
    for (layer, options), (origin, picked) in reversed(list(zip(choices.items(), trail, strict=True))):
        bits[layer] = options[picked[end]].bits
        end = int(origin[end])
    return {layer: bits[layer] for layer in choices}


def within(front: Sequence[Allocation], budget: int) -> Allocation | None:
    """The least sensitive allocation that costs no more than the budget, if there is one."""
    fitting = [allocation for allocation in front if allocation.cost <= budget]
    return fitting[-1] if fitting else None
