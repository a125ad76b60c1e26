"""Service-level objectives, and how fast their error budgets burn (Google, Site Reliability Workbook, chapter 5)."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from common.clock import DAY, HOUR, MINUTE
from common.errors import BadData, BadDefinition

FACTOR = 14.4  # over an hour: 2 % of the budget of 30 days
WINDOWS = (HOUR, 5 * MINUTE)  # us; the long one says that it matters, the short one that it goes on
PERIOD = 30 * DAY  # us, that a budget is for


class Sample(NamedTuple):
    """What two counters of a process said: they only grow, except that a restart sets them back to 0."""

    at: int  # us
    bad: float
    total: float


@dataclass(frozen=True)
class Objective:
    """The share of events that must be good: 0.999 of answers are no errors, 0.99 come within 250 ms."""

    name: str
    target: float

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise BadDefinition(f"objective {self.name}: target: must be above 0 and below 1, got {self.target}")

    def burn(self, bad: float, total: float) -> float | None:
        """How many times faster than allowed errors come: at 1 the budget lasts exactly its period.

        None: there was no traffic, of which nothing can be said. Raises BadData where bad is no part of total.
        """
        if not (0 <= bad <= total and math.isfinite(total)):
            raise BadData(f"objective {self.name}: bad must be from 0 to total, got {bad} of {total}")
        return bad / total / (1 - self.target) if total else None

    def over(self, samples: Sequence[Sample], now: int, window: int) -> float | None:
        """The burn rate in the last `window` us; None: no traffic, or fewer than two samples in it."""
        grown = increase(samples, now - window, now)
        if grown is None:
            return None
        bad, total = grown
        return self.burn(min(bad, total), total)  # the two may have been read at different moments

    def left(self, samples: Sequence[Sample], now: int, period: int = PERIOD) -> float | None:
        """The share of the error budget that is left, below 0 when it is overspent; None: no traffic."""
        burnt = self.over(samples, now, period)
        return None if burnt is None else 1 - burnt

    def judge(self, samples: Sequence[Sample], now: int) -> "Burning":
        """Of one process's samples in order of time. Raises BadData when they run backwards or are no counters."""
        return Burning(self, {window: self.over(samples, now, window) for window in WINDOWS})


@dataclass(frozen=True)
class Burning:
    objective: Objective
    rates: Mapping[int, float | None]  # by window in us

    @property
    def alarms(self) -> bool | None:
        """Whether the budget burns above 14.4 over 1 h and over 5 min; None: one of them is missing, so nobody knows.

        A short outage does not alarm, and an alarm ends some minutes after its cause did.
        """
        rates = [rate for rate in self.rates.values() if rate is not None]
        return all(rate > FACTOR for rate in rates) if len(rates) == len(self.rates) else None


def increase(samples: Sequence[Sample], start: int, end: int) -> tuple[float, float] | None:
    """By how much bad and total grew from the first to the last sample in (start, end]; None: fewer than two samples.

    As Prometheus' increase(): a counter that fell was set back, and has grown by what it shows since. It is not
    extrapolated to the ends of the window as there; in a ratio of two counters sampled together that cancels.
    """
    times = [sample.at for sample in samples]
    if any(a > b for a, b in zip(times, times[1:], strict=False)):
        raise BadData("samples: at must not run backwards")
    within = samples[bisect_right(times, start) : bisect_right(times, end)]
    for sample in within:
        if not all(math.isfinite(count) and count >= 0 for count in (sample.bad, sample.total)):
            raise BadData(f"samples: counts must be >= 0, got {sample.bad} of {sample.total} at {sample.at}")
    if len(within) < 2:
        return None
    bad = _grown([sample.bad for sample in within])
    return bad, _grown([sample.total for sample in within])


def _grown(counts: Sequence[float]) -> float:
    return sum(b - a if b >= a else b for a, b in zip(counts, counts[1:], strict=False))
