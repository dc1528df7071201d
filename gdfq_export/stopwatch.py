"""The time that a run has spent, over all the processes that worked on it."""

from __future__ import annotations

import math
import time

from gdfq_export.distributed import agreed


class Stopwatch:
    """Its seconds are saved with a state and added when that is loaded: a resumed run uses the rest of its budget.

    Work that was lost between the last saved state and a kill is not counted: it is done again.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = math.inf if limit is None else limit
        self._start = time.monotonic()

    def add(self, seconds: float) -> None:
        """Counts what an earlier process spent."""
        self._start -= seconds

    def at_least(self, seconds: float) -> None:
        """Like `add`, for a count that may include what was added before."""
        self._start = min(self._start, time.monotonic() - seconds)

    @property
    def seconds(self) -> float:
        """Spent so far."""
        return agreed(time.monotonic() - self._start)

    def is_over(self, share: float = 1.0) -> bool:
        """Whether this share of the budget is used up."""
        return self.limit < math.inf and self.seconds > share * self.limit

    def left(self, share: float = 1.0) -> float:
        """Seconds until this share of the budget is used up; infinite without a budget."""
        return max(share * self.limit - self.seconds, 0.0)
