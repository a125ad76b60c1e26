"""What everybody knows of a day ahead of time: its place in the week and the year, and the holidays around it.

Days are counted from 1970-01-01, a Thursday; every function takes an array of them of any shape.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Array = NDArray[np.float64]

HOLIDAYS: Final = ("new year", "easter", "may day", "pentecost", "black friday", "christmas")
YEAR: Final = 365.2425  # days


class Around(NamedTuple):
    """The holidays around each day; on a holiday both distances are 0."""

    until: Ints  # days to the next one
    since: Ints  # days from the last one
    next: Ints  # its place in HOLIDAYS
    last: Ints


def weekday(days: Ints) -> Ints:
    """0 on a Monday, 6 on a Sunday."""
    return (np.asarray(days, np.int64) + 3) % 7


def year_day(days: Ints) -> Ints:
    """0 on the first of January, 364 or 365 on the last of December."""
    days = np.asarray(days, np.int64)
    return days - _first(_year(days), 1)


def easter(years: Ints) -> Ints:
    """The day of each year's Easter Sunday in the Gregorian calendar (Butcher 1877; Meeus 1991, chapter 8)."""
    y = np.asarray(years, np.int64)
    a, b, c = y % 19, y // 100, y % 100
    h = (19 * a + b - b // 4 - (b - (b + 8) // 25 + 1) // 3 + 15) % 30
    k = (32 + 2 * (b % 4) + 2 * (c // 4) - h - c % 4) % 7
    m = (a + 11 * h + 22 * k) // 451
    return np.asarray(_first(y, 3) + h + k - 7 * m + 21)  # 22 March at the earliest


def holidays(years: Ints) -> Ints:
    """The days of HOLIDAYS in each of the years, (n, 6)."""
    years = np.asarray(years, np.int64)
    sunday, november = easter(years), _first(years, 11)
    fourth_thursday = november + (3 - weekday(november)) % 7 + 21
    return np.stack(
        [_first(years, 1), sunday, _first(years, 5), sunday + 49, fourth_thursday + 1, _first(years, 12) + 24], axis=-1
    )


def holiday(days: Ints) -> Around:
    """How far away the next and the last holiday are, and which they are; each has the shape of `days`."""
    days = np.asarray(days, np.int64)
    years = _year(days).ravel()
    years = np.unique(np.concatenate([years - 1, years, years + 1]))
    dates = holidays(years).ravel()
    order = np.argsort(dates)
    dates, which = dates[order], order % len(HOLIDAYS)
    upcoming = np.searchsorted(dates, days, side="left")
    last = np.searchsorted(dates, days, side="right") - 1
    return Around(dates[upcoming] - days, days - dates[last], which[upcoming], which[last])


def _year(days: Ints) -> Ints:
    return days.astype("datetime64[D]").astype("datetime64[Y]").astype(np.int64) + 1970


def _first(years: Ints, month: int) -> Ints:
    """The first day of a month."""
    months = (years - 1970) * 12 + month - 1
    return months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
