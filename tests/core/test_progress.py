"""What a run says where no bars can be drawn."""

from __future__ import annotations

import pytest

from gdfq_export.progress import RAREST, SOONEST, Lines, minutes, progress_bars


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def said(clock: Clock, steps: list[tuple[float, str, float, float]]) -> list[str]:
    """The lines of work that reports (seconds passed before, what, done, total)."""
    found: list[str] = []
    lines = Lines(found.append, clock)
    for seconds, *step in steps:
        clock.now += seconds
        lines(*step)
    return found


def test_a_line_says_what_is_done_how_much_of_it_and_how_long_it_takes(clock: Clock) -> None:
    steps = [(0.0, "optimising images", 0.0, 8.0), *((4.0, "optimising images", float(n), 8.0) for n in range(1, 4))]
    assert said(clock, steps) == ["optimising images: 25 %, 0:08 so far, about 0:24 left"]


def test_work_that_goes_on_in_the_middle_is_measured_from_there(clock: Clock) -> None:
    steps = [(0.0, "training", 50.0, 100.0), (10.0, "training", 75.0, 100.0)]
    assert said(clock, steps) == ["training: 75 %, 0:10 so far, about 0:10 left"]


def test_the_end_of_each_kind_of_work_is_said_once(clock: Clock) -> None:
    steps = [(1.0, "finding ranges", 1.0, 1.0), (1.0, "finding ranges", 1.0, 1.0), (1.0, "training", 2.0, 2.0)]
    assert said(clock, steps) == ["finding ranges: done", "training: done"]


def test_a_line_comes_every_few_seconds_and_less_often_in_a_long_run(clock: Clock) -> None:
    steps = 20_000
    found = said(clock, [(1.0, "training", float(n), steps) for n in range(steps)])
    assert said(Clock(), [(1.0, "training", float(n), steps) for n in range(31)]) == found[:6]
    assert steps / RAREST < len(found) < 1.3 * steps / RAREST


def test_work_that_reports_nothing_is_said_to_go_on(clock: Clock) -> None:
    found: list[str] = []
    lines = Lines(found.append, clock)
    lines.beat()
    clock.now += SOONEST
    lines.beat()
    lines("training", 1.0, 1.0)
    clock.now += 70.0
    lines.beat()
    assert found == ["starting: still at work after 0:05", "training: done", "after training: still at work after 1:15"]


def test_without_a_terminal_lines_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars() as progress:
        progress("training", 2.0, 2.0)
    assert capsys.readouterr() == ("", "training: done\n")


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "0:00"), (59.6, "1:00"), (83.4, "1:23"), (6000.0, "100:00")])
def test_times_are_minutes_and_seconds(seconds: float, text: str) -> None:
    assert minutes(seconds) == text
