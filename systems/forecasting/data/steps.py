"""Stamps as steps of a regular grid, of any frequency that pandas knows: found, or named."""

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from common.clock import DAY, HOUR, SECOND

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

OFFSET: Final = r"([T ].*)(?:Z|[+-]\d\d(?::?\d\d)?)$"  # a time of day with an offset from UTC after it
QUARTER: Final = re.compile(r"\d{4}-?Q[1-4]")
UNREAD: Final = np.iinfo(np.int64).min  # us
OFF: Final = 0.15  # of a step, that a stamp may lie beside its grid
ODD: Final = 0.05  # share of stamps that a frequency need not explain
APART: Final = 0.8  # steps between two stamps of a series, at least
SPARSE: Final = 50  # steps from one that has a stamp to the next one that has, usually, at most
USUAL: Final = 0.2  # share of the gaps that are as long as the usual one, at least
ABOUT_A_DAY: Final = 5 * DAY // 6  # us, the shortest day when clocks are set, and some jitter
TRIED: Final = 50_000  # stamps by which a frequency is chosen
WEEKDAYS: Final = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
CLOCK: Final = [(3_600 * n, f"{n}h") for n in (12, 8, 6, 4, 3, 2, 1)] + [
    (unit * n, f"{n}{name}") for unit, name in ((60, "min"), (1, "s")) for n in (30, 20, 15, 10, 5, 2, 1)
]  # s


def offset(frequency: Any) -> Any:
    """Of pandas; raises ValueError for what is none."""
    found = pd.tseries.frequencies.to_offset(frequency)
    if found is None or found.n < 1 or (isinstance(found, pd.tseries.offsets.Tick) and found.nanos < 1_000):
        raise ValueError("must go forward, by a microsecond or more")
    return found


def label(stamp: Any) -> str:
    return str(stamp).removesuffix(" 00:00:00").removesuffix(":00")


@dataclass(frozen=True)
class Calendar:
    """What days stand for where they are not days: `day` for the step at `stamp`, each other one for another step."""

    frequency: str  # of pandas
    day: int  # since 1970-01-01
    stamp: str

    def label(self, day: int) -> str:
        return label(pd.Timestamp(self.stamp) + (day - self.day) * offset(self.frequency))


@dataclass(frozen=True)
class Times:
    utc: Ints  # (n,) us; UNREAD where a stamp is none
    written: Ints  # (n,) us; without the offset
    aware: Flags  # (n,) has an offset

    @property
    def read(self) -> Flags:
        return np.asarray(self.utc != UNREAD)


def times(stamps: Sequence[str]) -> Times:
    """ISO 8601, or a quarter."""
    text = pd.Series(list(stamps), dtype="str")
    quarters = text.str.fullmatch(QUARTER.pattern)
    if quarters.any():
        text[quarters] = pd.PeriodIndex(text[quarters], freq="Q").start_time.strftime("%Y-%m-%d")
    written = text.str.replace(OFFSET, r"\1", regex=True)
    return Times(_us(text), _us(written), (written != text).to_numpy(bool))


def _us(text: Any) -> Ints:
    read = pd.to_datetime(text, format="ISO8601", errors="coerce", utc=True)
    return np.asarray(read.dt.tz_localize(None).to_numpy("datetime64[us]").astype(np.int64), np.int64)


@dataclass(frozen=True)
class Steps:
    """Where stamps lie on a regular grid."""

    frequency: str
    step: Ints  # (n,) consecutive numbers
    start: Ints  # (n,) us, of the step
    end: Ints  # (n,) us: it is over, or its day is where it is a day or longer
    beside: Floats  # (n,) steps, from where the stamps of this grid lie
    moved: Flags  # (n,) a step of one length, and the stamp does not lie there exactly

    def labels(self) -> pa.Array:
        starts, place = np.unique(self.start, return_inverse=True)
        return pa.array([label(stamp) for stamp in pd.DatetimeIndex(starts.astype("datetime64[us]"))]).take(
            pa.array(place)
        )


@dataclass(frozen=True)
class _Grid:
    offset: Any
    points: Ints | None  # us; None: of equal steps
    length: int  # us, of a step; of a calendar's, if it is shorter than a day
    phase: float  # of a step, where the stamps lie in it

    def places(self, at: Ints) -> tuple[Ints, Floats]:
        """Whole steps, and what is left of one."""
        if self.points is None:
            whole, left = np.divmod(at, self.length)
            return whole, left / self.length
        whole = np.searchsorted(self.points, at, side="right") - 1
        return whole, (at - self.points[whole]) / (self.points[whole + 1] - self.points[whole])

    def steps(self, at: Ints) -> Steps:
        whole, left = self.places(at)
        more = np.round(left - self.phase)
        step = whole + more.astype(np.int64)
        start = step * self.length + round(self.phase * self.length) if self.points is None else self.points[step]
        end = start + self.length if self.length < DAY else start // DAY * DAY + DAY
        beside = np.abs(left - self.phase - more)
        offsets = pd.tseries.offsets
        fixed = isinstance(self.offset, (offsets.Tick, offsets.Day, offsets.Week))
        return Steps(self.offset.freqstr, step, start, end, beside, (beside > 1e-9) & fixed)


def _grid(found: Any, at: Ints) -> _Grid:
    """Of an offset, so that it holds all these stamps, and where they lie in its steps."""
    if isinstance(found, pd.tseries.offsets.Tick):
        grid = _Grid(found, None, found.nanos // 1_000, 0.0)
    else:
        first, last = (pd.Timestamp(int(t), unit="us") for t in (at.min(), at.max()))
        hours = isinstance(found, pd.tseries.offsets.BusinessHour)
        start = (first if hours else found.base.rollback(first.normalize())) - found
        points = pd.date_range(start, last + 3 * found, freq=found).as_unit("us").asi8
        grid = _Grid(found, points, found.n * HOUR if hours else DAY, 0.0)
    return _Grid(found, grid.points, grid.length, _phase(grid.places(at)[1]))


def _phase(left: Floats) -> float:
    """Where in its step a stamp usually is: below 0 only if stamps lie on both sides of the grid."""
    values, counts = np.unique(left, return_counts=True)
    if counts.max() > len(left) / 2:
        return float(values[np.argmax(counts)])
    mean = round(float(np.angle(np.mean(np.exp(2j * np.pi * left)))) / (2 * np.pi) * 60) / 60
    return mean + 1 if mean < 0 and not (left <= OFF).any() else mean


def locate(series: Ints, at: Ints, of: Ints, named: Any | None) -> Steps | None:
    """The steps of times `of`, by the named frequency or one that explains times `at` of series; None: none does."""
    found = named
    if found is None:
        s, t = _pairs(series, at)
        found = next((candidate for candidate in _candidates(s, t) if _explains(candidate, s, t)), None)
    return None if found is None else _grid(found, of).steps(of)


def of_days(series: Ints, at: Ints, named: Any | None) -> bool:
    """Whether steps are a day long, or longer: named so, or most times of a series are about a day apart."""
    if named is not None:
        tick = isinstance(named, pd.tseries.offsets.Tick)
        return bool(named.nanos >= DAY * 1_000) if tick else not isinstance(named, pd.tseries.offsets.BusinessHour)
    s, t = _pairs(series, at)
    gaps = np.diff(t)[np.diff(s) == 0]
    return bool(len(gaps) and np.median(gaps) >= ABOUT_A_DAY)


def _pairs(series: Ints, at: Ints) -> tuple[Ints, Ints]:
    """Different times of some series, in order; all as of one series where none has two."""
    some = series % max(1, len(series) // TRIED) == 0
    pairs = np.unique(np.stack([series[some], at[some]]), axis=1)
    if (np.diff(pairs[0]) != 0).all():
        pairs = np.unique(np.stack([np.zeros_like(series), at]), axis=1)
    return pairs[0, :TRIED], pairs[1, :TRIED]


def _candidates(s: Ints, t: Ints) -> Iterator[Any]:
    """What pandas finds in all stamps, or in the longest series; then the longest steps first."""
    everything = np.unique(t)
    for stamps in (everything, t[s == np.argmax(np.bincount(s))]):
        if len(stamps) > 2:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what infer_freq will return: either will do here
                found = pd.infer_freq(pd.DatetimeIndex(stamps.astype("datetime64[us]")))
            if found is not None:
                yield pd.tseries.frequencies.to_offset(found)
    gaps = np.diff(t)[np.diff(s) == 0]
    if not len(gaps):
        return
    values, counts = np.unique(gaps, return_counts=True)
    usual = int(values[np.argmax(counts)])
    day = (everything // DAY + 3) % 7  # 0: Monday
    weekday = WEEKDAYS[np.argmax(np.bincount(day))]
    no_weekends = day.max() < 5 and everything[-1] - everything[0] >= 14 * DAY
    lengths: list[tuple[int, Any]] = [
        (366 * DAY, "YS"), (92 * DAY, "QS"), (31 * DAY, "MS"), (7 * DAY, f"W-{weekday}"),
        *([(DAY + 1, "B")] if no_weekends else []), (DAY, "D"), *((n * SECOND, name) for n, name in CLOCK),
    ]  # fmt: skip
    if counts.max() >= USUAL * len(gaps):
        lengths.append((usual, f"{usual // DAY}D" if usual % DAY == 0 else pd.Timedelta(usual, "us")))
    for _, name in sorted(lengths, key=lambda of: -of[0]):
        yield offset(name)


def _explains(candidate: Any, s: Ints, t: Ints) -> bool:
    grid = _grid(candidate, t)
    whole, left = grid.places(t)
    near = (np.diff(s) == 0) & (np.diff(whole) + np.diff(left) < APART)
    steps = grid.steps(t)
    odd, far = steps.beside > OFF, np.diff(np.unique(steps.step))
    odd[1:] |= near
    return bool(odd.mean() <= ODD and len(far) and np.median(far) <= SPARSE)
