"""The dynamic program against every allocation that there is."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from gdfq_export.allocation import Choice, pareto_front, within

PROBLEMS = st.lists(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 64)), min_size=1, max_size=4), min_size=1, max_size=5
)


def problem(table: list[list[tuple[int, int]]]) -> dict[str, list[Choice]]:
    """Sensitivities are multiples of 1/64, so that sums are exact in any order."""
    return {
        f"layer{index}": [Choice(bits + 2, cost, loss / 64) for bits, (cost, loss) in enumerate(options)]
        for index, options in enumerate(table)
    }


def every_allocation(choices: dict[str, list[Choice]]) -> list[tuple[int, float]]:
    return [
        (sum(choice.cost for choice in picked), sum(choice.sensitivity for choice in picked))
        for picked in itertools.product(*choices.values())
    ]


@given(PROBLEMS, st.integers(-1, 60))
@settings(max_examples=150)
def test_no_allocation_within_the_budget_is_better(table: list[list[tuple[int, int]]], budget: int) -> None:
    choices = problem(table)
    best = min((loss for cost, loss in every_allocation(choices) if cost <= budget), default=None)
    found = within(pareto_front(choices), budget)
    assert (None if found is None else found.sensitivity) == best


@given(PROBLEMS)
@settings(max_examples=150)
def test_the_front_is_every_undominated_point_and_no_other(table: list[list[tuple[int, int]]]) -> None:
    choices = problem(table)
    points = set(every_allocation(choices))
    undominated = {
        (cost, loss) for cost, loss in points if not any(c <= cost and s <= loss for c, s in points - {(cost, loss)})
    }
    front = pareto_front(choices)
    assert [(a.cost, a.sensitivity) for a in front] == sorted(undominated)


@given(PROBLEMS)
@settings(max_examples=50)
def test_the_widths_of_an_allocation_add_up_to_what_it_says(table: list[list[tuple[int, int]]]) -> None:
    choices = problem(table)
    for allocation in pareto_front(choices):
        picked = [next(c for c in choices[layer] if c.bits == bits) for layer, bits in allocation.bits.items()]
        assert list(allocation.bits) == list(choices)
        assert (sum(c.cost for c in picked), sum(c.sensitivity for c in picked)) == (
            allocation.cost,
            allocation.sensitivity,
        )


def test_a_network_of_fifty_layers_is_solved() -> None:
    choices = {
        f"layer{i}": [Choice(b, (i % 7 + 1) * 64 * b, (i % 5 + 1) * 2.0 ** (-2 * b)) for b in range(2, 9)]
        for i in range(50)
    }
    front = pareto_front(choices)
    middle = within(front, (front[0].cost + front[-1].cost) // 2)
    assert middle is not None
    assert {2, 8} != set(middle.bits.values())
    assert front[0].bits.keys() == choices.keys()
