"""The time that a run has spent, over all the processes that worked on it, and what is left of its budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gdfq_export.distributed import agreed


class Stopwatch:
    """Begins with the command and ends with the last file: what comes after the method is kept free for it.

        begin of the process | preparing | the method: shares of a budget are shares of this | reserved | end

    A saved state holds what was spent until then, and a run that goes on from it counts that as well: a resumed run
    uses the rest of its budget. Work that was lost between the last saved state and a kill is not counted: it is done
    again.
    """

    def __init__(
        self, limit: float | None, start: float | None = None, clock: Callable[[], float] | None = None
    ) -> None:
        self.limit = math.inf if limit is None else limit
        self.clock = clock or time.monotonic
        self.reserved = 0.0
        self._start = self.clock() if start is None else start
        self._carried = 0.0
        self._opened = 0.0

    def carry(self, seconds: float) -> None:
        """Counts what earlier processes have spent."""
        self._carried = max(self._carried, seconds)

    @property
    def is_resumed(self) -> bool:
        """Whether earlier processes have worked on this run."""
        return self._carried > 0.0

    @property
    def own_seconds(self) -> float:
        """Spent so far, as this process alone knows."""
        return self._carried + self.clock() - self._start

    @property
    def seconds(self) -> float:
        """Spent so far, as all processes that train together see it."""
        return agreed(self.own_seconds)

    def open(self) -> None:
        """The method begins: what was spent until now belongs to no share."""
        self._opened = min(agreed(self.clock() - self._start), self.limit)

    def reserve(self, seconds: float) -> None:
        """Keeps the last seconds free for what follows the method."""
        self.reserved = seconds

    @contextmanager
    def keeping(self, seconds: float) -> Iterator[None]:
        """Keeps more seconds free while some work goes on, for what must follow it."""
        before = self.reserved
        self.reserved += seconds
        try:
            yield
        finally:
            self.reserved = before

    def is_over(self, share: float = 1.0) -> bool:
        """Whether this share of the budget is used up."""
        return self.limit < math.inf and self.left(share) <= 0.0

    def left(self, share: float = 1.0) -> float:
        """Seconds until this share of the budget is used up; infinite without a budget."""
        if self.limit == math.inf:
            return math.inf
        whole = max(self.limit - self.reserved - self._opened, 0.0)
        return max(self._opened + share * whole - self.seconds, 0.0)

    def fits(self, seconds: float) -> bool:
        """Whether work that takes so long can still be done."""
        return self.limit == math.inf or seconds <= self.left()
