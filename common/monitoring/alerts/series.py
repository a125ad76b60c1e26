"""Samples of metrics over time, as long as a rule looks back, read as Prometheus reads its own."""

import math
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

from common.clock import MINUTE, SECOND
from common.errors import BadDefinition, OutOfOrder

Labels: TypeAlias = tuple[tuple[str, str], ...]  # sorted by name
NEAR = 1.1  # a window's edge is bridged when it is no further than so many mean distances of samples


class Signal(NamedTuple):
    """A metric and labels: a series by all of its labels, or all series that have these."""

    metric: str
    labels: Labels = ()

    def __str__(self) -> str:
        said = ",".join(f'{name}="{_escaped(value)}"' for name, value in self.labels)
        return f"{self.metric}{{{said}}}" if said else self.metric

    def matches(self, labels: Labels) -> bool:
        return set(self.labels) <= set(labels)


def signal(metric: str, /, **labels: str) -> Signal:
    """A signal; raises BadDefinition for names and values that Prometheus would not take."""
    for name in (metric, *labels):
        if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name):
            raise BadDefinition(f"signal: names must be letters, digits and _, got {name!r}")
    for name, value in labels.items():
        if not value or not value.isprintable():
            raise BadDefinition(f"signal: {name} must be printable text, got {value!r}")
    return Signal(metric, tuple(sorted(labels.items())))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


class Samples(NamedTuple):
    """Of one series, oldest first."""

    times: "array[int]"  # us
    values: "array[float]"


class Series:
    """The last samples of each series that a rule needs; all others are not kept. NaN is no sample.

    Windows are open at their older end, as they are in Prometheus 3.
    """

    def __init__(self, windows: Mapping[str, int], lookback: int = 5 * MINUTE) -> None:
        """`windows` are the us for which samples of each metric are needed; `lookback`, us, is how old the last
        sample of a series may be that is still there."""
        self.lookback = lookback
        self._windows = {metric: max(window, lookback) for metric, window in windows.items()}
        self._kept: dict[str, dict[Labels, Samples]] = {metric: {} for metric in windows}
        self._last: int | None = None

    def __len__(self) -> int:
        """How many samples are held."""
        return sum(len(samples.times) for kept in self._kept.values() for samples in kept.values())

    def add(self, at: int, values: Mapping[tuple[str, Labels], float]) -> None:
        """What was measured at this time; raises OutOfOrder when it is not later than the last."""
        if self._last is not None and at <= self._last:
            raise OutOfOrder(f"at: must be after {self._last}, got {at}")
        self._last = at
        for (metric, labels), value in values.items():
            if metric in self._kept and not math.isnan(value):
                samples = self._kept[metric].setdefault(tuple(sorted(labels)), Samples(array("q"), array("d")))
                samples.times.append(at)
                samples.values.append(value)
        for metric, kept in self._kept.items():
            for labels in list(kept):
                self._forget(kept, labels, at - self._windows[metric])

    @staticmethod
    def _forget(kept: dict[Labels, Samples], labels: Labels, until: int) -> None:
        times, values = kept[labels]
        old = bisect_right(times, until)
        if old == len(times):
            del kept[labels]
        elif 2 * old > len(times):  # rarely enough that a sample is moved once
            del times[:old], values[:old]

    def last(self, of: Signal, within: int, at: int) -> Iterator[tuple[Labels, int, float]]:
        """Labels, time and value of each series' newest sample in (at - within, at], sorted by labels."""
        for labels, (times, values) in sorted(self._kept[of.metric].items()):
            newest = bisect_right(times, at) - 1
            if of.matches(labels) and newest >= 0 and times[newest] > at - within:
                yield labels, times[newest], values[newest]

    def increase(self, of: Signal, over: int, at: int) -> float | None:
        """By how much the counters grew in (at - over, at], together; None where no series has two samples in it."""
        grown = [
            increase(Samples(times[i:j], values[i:j]), over, at)
            for labels, (times, values) in sorted(self._kept[of.metric].items())
            if of.matches(labels)
            for i, j in [(bisect_right(times, at - over), bisect_right(times, at))]
            if j - i > 1
        ]
        return sum(grown) if grown else None


def increase(samples: Samples, over: int, at: int) -> float:
    """Growth of a counter in (at - over, at] from at least two samples of it, extrapolated to the window's edges.

    As increase() of Prometheus 3 (extrapolatedRate in promql/functions.go): a counter that fell was reset to zero, and
    it is not extrapolated to before it was zero. Prometheus 2 looks up to 0.6 of a sample's distance further back where
    a counter begins inside the window at more than zero.
    """
    times, values = samples
    grown = values[-1] - values[0]
    for before, after in zip(values, values[1:], strict=False):
        if after < before:
            grown += before
    to_start, to_end = (times[0] - (at - over)) / SECOND, (at - times[-1]) / SECOND
    sampled = (times[-1] - times[0]) / SECOND
    apart = sampled / (len(times) - 1)
    if to_start >= apart * NEAR:
        to_start = apart / 2
    if grown > 0 and values[0] >= 0:
        to_start = min(to_start, sampled * (values[0] / grown))
    if to_end >= apart * NEAR:
        to_end = apart / 2
    return grown * ((sampled + to_start + to_end) / sampled)
