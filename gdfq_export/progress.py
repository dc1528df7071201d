"""How long work reports where it is: a callable that the library calls and the command line draws."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

SOONEST, RAREST = 5.0, 60.0  # seconds between two lines
SHARE = 0.1  # of the time so far passes between two lines of a long run


class Progress(Protocol):
    """Called with what is being done, how much of it is done, and how much there is."""

    def __call__(self, what: str, done: float, total: float) -> None:
        """Reports one step."""


def silent(what: str, done: float, total: float) -> None:
    """Reports nothing."""


class Lines:
    """Where no bars can be drawn: a line every few seconds, and one when each kind of work ends.

        optimising images: 35 %, 0:42 so far, about 1:18 left

    Lines come less often the longer it takes. Work that reports nothing is said to go on all the same, where `beat` is
    called.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.write, self.clock = write, clock
        self.begun = self.said = clock()
        self.finished: set[str] = set()
        self.what, self.share = "starting", 0.0
        self.first, self.start = 0.0, self.begun  # of this work: its share and the time when it began
        self.lock = threading.RLock()

    def __call__(self, what: str, done: float, total: float) -> None:
        """One step of some work."""
        with self.lock:
            share = done / total if total else 1.0
            if what != self.what:
                self.what, self.first, self.start = what, share, self.clock()
            self.share = share
            if done < total:
                self.beat()
            elif what not in self.finished:
                self.finished.add(what)
                self._say("done")

    def beat(self) -> None:
        """Says where the work is, if that was long ago."""
        with self.lock:
            now = self.clock()
            if now - self.said < min(max(SOONEST, SHARE * (now - self.begun)), RAREST):
                return
            elapsed, gained = now - self.start, self.share - self.first
            if self.what in self.finished or self.what == "starting":
                self._say(f"still at work after {minutes(now - self.begun)}")
            elif gained > 0:
                left = elapsed * (1 - self.share) / gained
                self._say(f"{100 * self.share:.0f} %, {minutes(elapsed)} so far, about {minutes(left)} left")
            else:
                self._say(f"{100 * self.share:.0f} %, {minutes(elapsed)} so far")

    def _say(self, text: str) -> None:
        self.said = self.clock()
        after = "after " if self.what in self.finished and text != "done" else ""
        self.write(f"{after}{self.what}: {text}")


def minutes(seconds: float) -> str:
    """83.4 -> 1:23"""
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"


@contextmanager
def _lines() -> Iterator[Progress]:
    """Lines on stderr, and a thread that has them go on while nothing is reported."""
    lines = Lines(lambda text: print(text, file=sys.stderr, flush=True))
    ended = threading.Event()

    def keep_beating() -> None:
        while not ended.wait(SOONEST / 5):
            lines.beat()

    thread = threading.Thread(target=keep_beating, daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        ended.set()
        thread.join()


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Bars with an ETA on stderr when it is a terminal; otherwise a line every few seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        with _lines() as lines:
            yield lines
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), "ETA", TimeRemainingColumn())
    with Bars(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def draw(what: str, done: float, total: float) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield draw
