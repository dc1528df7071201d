"""What is said of the accuracy: never more than the figures behind it bear."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gdfq_export.forecast import FURTHEST, LOW_AGREEMENT, Forecast, forecast, warning_of

STATES = Path(__file__).parents[2] / "benchmarks" / "forecast_states.jsonl"


def made(error: float, classes: int) -> Forecast:
    found = forecast(error, classes)
    assert found is not None
    return found


def test_the_forecast_grows_with_the_error_and_stays_within_its_bounds() -> None:
    drops = [made(error, 10).drop for error in (0.0, 0.001, 0.03, FURTHEST)]
    assert drops == sorted(drops)
    assert drops[0] == 0.0
    for error in (0.0, 0.003, FURTHEST):
        for classes in (2, 10, 1000):
            bounds = made(error, classes)
            assert bounds.low <= bounds.drop <= bounds.high <= 100.0


def test_chance_alone_moves_more_images_where_more_classes_are_close() -> None:
    few, many = made(0.004, 10), made(0.004, 1000)
    assert many.high - many.low > few.high - few.low > 0.0


def test_there_is_no_forecast_where_the_logits_are_far_from_the_float_network() -> None:
    assert forecast(FURTHEST * 1.01, 10) is None
    assert forecast(1.0, 1000) is None


@pytest.mark.parametrize(
    ("agreement", "error", "warned"),
    [
        (100.0, 0.001, False),
        (LOW_AGREEMENT, 0.001, False),
        (45.8, 0.001, True),
        (100.0, 0.29, True),  # some points lost, though the few images that judge keep their class
        (100.0, FURTHEST * 1.01, True),
    ],
)
def test_a_network_far_from_the_float_one_is_warned_of_with_what_to_do(
    agreement: float, error: float, warned: bool
) -> None:
    text = warning_of(agreement, 48, error, 10)
    assert (text is not None) == warned
    if text is not None:
        assert f"{agreement:.1f} % agreement on 48 held-back images" in text
        assert all(word in text for word in ("--preset standard", "--budget", "--first-last", "--method"))


def test_the_bounds_hold_for_nine_of_ten_of_the_recorded_states() -> None:
    states = [json.loads(line) for line in STATES.read_text().splitlines()]
    assert len({state["network"] for state in states}) >= 5
    inside = []
    for state in states:
        found = forecast(state["error"], state["classes"])
        if found is not None:
            inside.append(found.low <= state["drop"] <= found.high)
    assert len(inside) > 50
    assert sum(inside) >= 0.9 * len(inside)
