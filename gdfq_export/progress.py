"""How long work reports where it is: a callable that the library calls and the command line draws."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Called with what is being done, how much of it is done, and how much there is."""

    def __call__(self, what: str, done: float, total: float) -> None:
        """Reports one step."""


def silent(what: str, done: float, total: float) -> None:
    """Reports nothing."""


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Bars with an ETA on stderr when it is a terminal; otherwise a line when each kind of work ends."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        finished: set[str] = set()

        def line(what: str, done: float, total: float) -> None:
            if done >= total and what not in finished:
                finished.add(what)
                print(f"{what}: done", file=sys.stderr)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), "ETA", TimeRemainingColumn())
    with Bars(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def draw(what: str, done: float, total: float) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield draw
