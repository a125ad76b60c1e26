"""The time, as int64 microseconds since the epoch, UTC. No other file asks for it."""

import time
from typing import Protocol

MILLISECOND = 1_000  # us
SECOND = 1_000 * MILLISECOND
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR


class Clock(Protocol):
    def now(self) -> int:
        """Microseconds since the epoch, UTC."""


class WallClock:
    def now(self) -> int:
        return time.time_ns() // 1_000


class SimulatedClock:
    """Stands still until it is told to move; it never goes back.

    >>> clock = SimulatedClock(0)
    >>> clock.advance(DAY)
    >>> clock.now() // HOUR
    24
    """

    def __init__(self, start: int) -> None:
        self._now = start

    def now(self) -> int:
        return self._now

    def advance(self, to: int) -> None:
        self._now = max(self._now, to)


def stopwatch() -> int:
    """Monotonic microseconds, for measuring how long work took and for nothing else."""
    return time.perf_counter_ns() // 1_000
