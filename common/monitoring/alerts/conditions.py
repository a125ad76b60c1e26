"""When a rule holds: each condition is one expression of PromQL and the same thing computed here.

A missing signal keeps what was: a gauge's last value counts for `keep`, a ratio that cannot be computed leaves its
alarm as it is. The Absent rule of that signal speaks meanwhile.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from common.clock import DAY, HOUR, MILLISECOND, MINUTE, SECOND
from common.errors import BadDefinition
from common.monitoring.alerts.series import Labels, Series, Signal

FACTOR = 14.4  # times the allowed share: in an hour, 2 % of the error budget of 30 days
KEEP = 2 * DAY  # us that the last value of a gauge counts when no newer one comes
UNITS = (("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", SECOND), ("ms", MILLISECOND))


class Reading(NamedTuple):
    """What a condition says of one set of labels."""

    value: float
    holds: bool | None  # None: the signal is missing
    at: int  # us; of the newest sample that it comes from


class Condition(Protocol):
    @property
    def signals(self) -> tuple[Signal, ...]:
        """What has to be there for it to be judged."""

    @property
    def windows(self) -> Mapping[str, int]:
        """Metric -> us of samples that it needs."""

    @property
    def keep(self) -> int:
        """us that an alarm stays as it is when its series is gone."""

    def expr(self) -> str:
        """PromQL; it has a result where the condition holds."""

    def known(self) -> str | None:
        """PromQL; it has a result where the condition can be judged. None: `expr` looks after missing signals."""

    def value(self, series: Series, at: int) -> Mapping[Labels, Reading]:
        """By the labels of the result, now; labels that are left out are as unknown as a series that never was."""


def duration(us: int) -> str:
    """In Prometheus' notation; raises BadDefinition below a millisecond's precision.

    >>> duration(DAY + 30 * MINUTE)
    '1d30m'
    """
    if us < 0 or us % MILLISECOND:
        raise BadDefinition(f"duration: must be whole milliseconds, got {us} us")
    said = ""
    for unit, size in UNITS:
        if us >= size:
            said, us = f"{said}{us // size}{unit}", us % size
    return said or "0s"


@dataclass(frozen=True)
class _Gauge:
    signal: Signal
    limit: float
    keep: int = KEEP

    @property
    def signals(self) -> tuple[Signal, ...]:
        return (self.signal,)

    @property
    def windows(self) -> Mapping[str, int]:
        return {self.signal.metric: self.keep}

    def expr(self) -> str:
        return f"{self._left()} {self._sign()} {self.limit!r}"

    def known(self) -> None:
        return None

    def value(self, series: Series, at: int) -> Mapping[Labels, Reading]:
        return {
            labels: Reading(value := self._seen(raw, at), self._holds(value), when)
            for labels, when, raw in series.last(self.signal, self.keep, at)
        }

    def _left(self) -> str:
        return f"last_over_time({self.signal}[{duration(self.keep)}])"

    def _sign(self) -> str:
        return ">"

    def _seen(self, value: float, at: int) -> float:
        return value

    def _holds(self, value: float) -> bool:
        return value > self.limit


class Above(_Gauge):
    """A gauge is above a limit."""


class Below(_Gauge):
    """A gauge is below a limit."""

    def _sign(self) -> str:
        return "<"

    def _holds(self, value: float) -> bool:
        return value < self.limit


class Older(_Gauge):
    """A gauge that holds a time, in seconds since the epoch, is further back than a limit, in seconds."""

    def _left(self) -> str:
        return f"time() - {super()._left()}"

    def _seen(self, value: float, at: int) -> float:
        return at / SECOND - value


@dataclass(frozen=True)
class Absent:
    """Of each of these signals, whether no series is there; its value is 1."""

    signals: tuple[Signal, ...]
    keep: int = 0

    @property
    def windows(self) -> Mapping[str, int]:
        return {signal.metric: 0 for signal in self.signals}  # the store keeps its lookback at least

    def expr(self) -> str:
        return " or ".join(f"absent({signal})" for signal in self.signals)

    def known(self) -> None:
        return None

    def value(self, series: Series, at: int) -> Mapping[Labels, Reading]:
        found: dict[Labels, Reading] = {}
        for signal in self.signals:
            gone = not any(True for _ in series.last(signal, series.lookback, at))
            if gone or signal.labels not in found:
                found[signal.labels] = Reading(1.0, gone, at)
        return found


@dataclass(frozen=True, kw_only=True)
class Burning:
    """The share of bad events is `factor` times what the target allows, in a long window and in a short one still.

    One of `bad` and `good` says what is counted beside `total`. Beyer et al. 2018, The Site Reliability Workbook,
    chapter 5.
    """

    total: Signal
    bad: Signal | None = None
    good: Signal | None = None
    target: float  # the share that has to be good
    windows_us: tuple[int, ...] = (HOUR, 5 * MINUTE)  # the longest first
    factor: float = FACTOR
    keep: int = 0

    def __post_init__(self) -> None:
        if (self.bad is None) == (self.good is None):
            raise BadDefinition(f"burning: one of bad and good must be given, got {self.bad} and {self.good}")
        if not 0 < self.target < 1:
            raise BadDefinition(f"burning: target must be between 0 and 1, got {self.target}")
        if not self.windows_us or list(self.windows_us) != sorted(self.windows_us, reverse=True):
            raise BadDefinition(f"burning: windows must be given, the longest first, got {self.windows_us}")

    @property
    def limit(self) -> float:
        return round(self.factor * (1 - self.target), 12)

    @property
    def _part(self) -> Signal:
        return self.bad or self.good or self.total

    @property
    def signals(self) -> tuple[Signal, ...]:
        return (self.total,) if self.good is None else (self.total, self.good)  # no bad event is no missing signal

    @property
    def windows(self) -> Mapping[str, int]:
        return {signal.metric: self.windows_us[0] for signal in (self._part, self.total)}

    def expr(self) -> str:
        return " and ".join(f"{self._ratio(over)} > {self.limit!r}" for over in self.windows_us)

    def known(self) -> str:
        return f"{self._ratio(self.windows_us[-1])} > -Inf"  # NaN is not: there was nothing to answer

    def _ratio(self, over: int) -> str:
        total, part = (_increase(signal, self.total, over) for signal in (self.total, self._part))
        return f"1 - {part} / {total}" if self.bad is None else f"({part} or 0 * {total}) / {total}"

    def value(self, series: Series, at: int) -> Mapping[Labels, Reading]:
        ratios = [self._share(series, over, at) for over in self.windows_us]
        known = ratios[-1] > -math.inf
        return {
            self.total.labels: Reading(ratios[0], all(r > self.limit for r in ratios) if known else None, at),
        }

    def _share(self, series: Series, over: int, at: int) -> float:
        """NaN where there is nothing to divide, or nothing to divide by."""
        total, part = series.increase(self.total, over, at), series.increase(self._part, over, at)
        if part is None and self.bad is not None:
            part = 0.0
        if total is None or part is None:
            return math.nan
        share = part / total if total else (math.inf if part else math.nan)
        return share if self.bad is not None else 1 - share


@dataclass(frozen=True, kw_only=True)
class Silent:
    """A counter did not move, though the one `against` which it is held did."""

    counter: Signal
    against: Signal | None = None
    over: int = HOUR  # us
    keep: int = 0

    def __post_init__(self) -> None:
        if self.against is not None and self.against.labels != self.counter.labels:
            raise BadDefinition(f"silent: labels of both must be the same, got {self.counter} and {self.against}")

    @property
    def signals(self) -> tuple[Signal, ...]:
        return (self.counter,) if self.against is None else (self.counter, self.against)

    @property
    def windows(self) -> Mapping[str, int]:
        return {signal.metric: self.over for signal in self.signals}

    def expr(self) -> str:
        return f"{_increase(self.counter, self.counter, self.over)} == 0{self._moving()}"

    def known(self) -> str:
        return f"{_increase(self.counter, self.counter, self.over)}{self._moving()}"

    def _moving(self) -> str:
        return "" if self.against is None else f" and {_increase(self.against, self.counter, self.over)} > 0"

    def value(self, series: Series, at: int) -> Mapping[Labels, Reading]:
        grown = series.increase(self.counter, self.over, at)
        due = self.against is None or (series.increase(self.against, self.over, at) or 0) > 0
        holds = grown == 0 if grown is not None and due else None
        return {self.counter.labels: Reading(math.nan if grown is None else grown, holds, at)}


def _increase(signal: Signal, by: Signal, over: int) -> str:
    return f"sum by ({', '.join(name for name, _ in by.labels)}) (increase({signal}[{duration(over)}]))"
