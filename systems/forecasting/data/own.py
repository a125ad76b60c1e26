"""A chain's own data, or any series: one table, long or wide, of any frequency that pandas knows.

Long: `timestamp` (or `ds`, `date`) and `units` (or `y`), whose series is `series` (or `unique_id`), or `store_id` and
`product_id`, either of which may be left out; optional `category`, `price`, `promoted`, `sold_out`. Wide: the stamps,
and a column per series, its header the series' name. The frequency is found in the stamps, or named in their header:
`timestamp[W-SUN]`.

Prices and promotions of a past review are those that were later seen: they had been planned. A row without units is not
known yet, and its price and promotion are a plan. A missing price or category is the one before it in its series.

The platform counts days. One step of the data stands for one day, the last one for the day that it was over with, those
before it for the days before that; steps of daily data are their own days. `Calendar` leads back.

| what a table may hold | what becomes of it |
|---|---|
| stamps next to a regular grid (15 % of a step) | taken to it and counted; further away: set aside |
| stamps of no frequency | refused: name the frequency in the header, or resample |
| a gap, an empty value, NaN, NA, null | not known, which is not zero; with a price or promotion it is a plan |
| negative units | set aside: what comes back is no demand |
| a number with a decimal comma, or words | set aside |
| a constant or all-zero series | kept |
| a series of one observation | kept and said: its group's profile forecasts it |
| the same step of a series twice | the same row: once; another row: set aside, with the line of the first |
| stamps with offsets | UTC; steps of a day and more count by the date that is written |
| stamps with and without an offset | refused |
| local stamps when clocks are set back | the hour that comes twice, as above; the one that is skipped is a gap |
| stamps before 1970, from 2200 on, or of a step that is not over | set aside |
| steps that would lie before 1970, counted in days | left out and said: the newest 20,000 or so remain |
| steps 2**31 apart and more | refused |
| a wide table in which stamps come again and again | refused: a long one needs its units |
| a series or column without a name, or twice the same | refused |
| spaces around a value or name | taken off |
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from common.clock import DAY, SECOND
from common.data.folder import Derived, Fault, Layout, Shaped, UserTable
from common.errors import BadData
from common.schema import Record, arrow_schema
from systems.forecasting.config import SMALL
from systems.forecasting.data.events import HORIZON, LAST_DAY, MOST, PRINTABLE, Actual, Review
from systems.forecasting.data.steps import (
    OFF,
    Calendar,
    Flags,
    Floats,
    Ints,
    Steps,
    Times,
    locate,
    of_days,
    offset,
    times,
)

STAMP: Final = ("timestamp", "ds", "date")
UNITS: Final = ("units", "y")
SERIES: Final = ("series", "unique_id")
PLACE: Final = ("store_id", "product_id")
FLAGS: Final = ("promoted", "sold_out")
ONLY_LONG: Final = (*SERIES, *PLACE, "category", "price", *FLAGS)
ALL: Final = "all"  # the store, product or category of a table that tells none apart
MISSING: Final = ("", "nan", "na", "n/a", "null", "none", "<na>", "nat")
NUMBER: Final = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"

READABLE: Final = "must be ISO 8601, such as 2024-05-31, 2024-05-31 13:00, 2024-05-31T13:00:00+02:00, or be 2024Q2"
IN_RANGE: Final = "must be from 1970 on and before 2200"
IS_OVER: Final = "must be of a step that is over"
IS_NUMBER: Final = "must be a number with a decimal point, such as 12.5"
NO_RETURN: Final = "must be 0 or more: what comes back is no demand, leave returns out"
END: Final = 7_258_118_400 * SECOND  # us, 2200-01-01
FARTHEST: Final = 2**31  # steps

REVIEW_DAYS: Final = 400  # of the data, the last ones, on which past reviews are made
REVIEW_EVERY: Final = 7  # days between two of a series
REVIEWS: Final = 300_000  # about as many at most, and the newest one of each series
AT_ONCE: Final = 4_096  # series


class Sold(Record):
    """A step of a series."""

    store_id: str = Field(min_length=1, max_length=60, pattern=PRINTABLE)
    product_id: str = Field(min_length=1, max_length=60, pattern=PRINTABLE)
    category: str = Field(min_length=1, max_length=60, pattern=PRINTABLE)
    timestamp: str  # of the step
    frequency: str
    day: int = Field(ge=0, lt=LAST_DAY)  # that the step stands for
    units: float = Field(ge=0, le=MOST)  # 0 where not known
    known: bool
    price: float = Field(gt=0, le=MOST)
    promoted: bool = False
    sold_out: bool = False
    told_timestamp: int  # us, when the service heard of it


# A table as it stands


@dataclass(frozen=True)
class _Header:
    timestamp: str
    frequency: Any  # an offset of pandas, if it is named
    units: str | None  # None: wide
    series: str | None
    used: Sequence[str]


def _header(names: Sequence[str], file: str) -> _Header:
    got = "got " + ", ".join(repr(name[:40]) for name in names[:20])
    if "" in names:
        raise BadData(f"{file}: header: each column must have a name, column {names.index('') + 1} has none, {got}")
    stamp = _one(STAMP, {name.partition("[")[0]: name for name in names}, file)
    units, series = (_one(known, {name: name for name in names}, file) for known in (UNITS, SERIES))
    long = [name for name in names if name in ONLY_LONG]
    if stamp is None:
        wanted = f"{' or '.join(STAMP)}, and {' or '.join(UNITS)} or a column per series"
        raise BadData(f"{file}: header: must have {wanted}, commas between them, {got}")
    if units is None and (long or len(names) == 1):
        raise BadData(f"{file}: header: must have {' or '.join(UNITS)} beside {', '.join(long) or stamp}, {got}")
    if series is not None and (both := [name for name in PLACE if name in names]):
        raise BadData(f"{file}: header: must have {series} or {' and '.join(PLACE)}, got {series} and {both[0]}")
    named = re.fullmatch(r"[a-z]+\[(.*)\]", stamp)
    try:
        frequency = offset(named[1]) if named else None
    except ValueError:
        raise BadData(
            f"{file}: header: a frequency must be one of pandas, such as h, D, W-SUN or MS, got {stamp[:60]!r}"
        ) from None
    return _Header(stamp, frequency, units, series, [stamp, units, *long] if units else names)


def _one(known: Sequence[str], names: Mapping[str, str], file: str) -> str | None:
    found = [name for name in known if name in names]
    if len(found) > 1:
        raise BadData(f"{file}: header: must have one of {', '.join(known)}, got {' and '.join(found)}")
    return names[found[0]] if found else None


@dataclass(frozen=True)
class _Cells:
    """A value per row, (n,) each."""

    places: Ints  # rows of the file
    stamps: Sequence[str]  # those that differ
    stamp: Ints  # which of them
    store: pa.Array  # text
    product: pa.Array
    category: pa.Array
    units: Floats  # NaN where not known
    price: Floats
    flags: Mapping[str, pa.Array]
    unread: Mapping[int, Fault]
    planned: bool  # a value that is not known may have a plan


def _long(raw: pa.Table, header: _Header) -> _Cells:
    n, there = raw.num_rows, [name for name in ONLY_LONG if name in raw.column_names]
    unknown: tuple[Floats, dict[int, Fault]] = (np.full(n, np.nan), {})
    units, unread = _numbers(raw[header.units], "units")
    price, unread_too = _numbers(raw["price"], "price") if "price" in there else unknown
    text = {name: _text(raw[name]) for name in there if name in (*SERIES, *PLACE, "category")}
    stamp, stamps = _codes(_text(raw[header.timestamp]))
    return _Cells(
        np.arange(n), stamps, stamp, text.get("store_id", pa.repeat(ALL, n)),
        text.get(header.series or "product_id", pa.repeat(ALL, n)), text.get("category", pa.repeat("", n)),
        units, price, {name: _flag(raw[name]) if name in there else pa.repeat("", n) for name in FLAGS},
        unread_too | unread, "price" in there or "promoted" in there,
    )  # fmt: skip


def _wide(raw: pa.Table, header: _Header) -> _Cells:
    names = [name for name in raw.column_names if name != header.timestamp]
    n, m = raw.num_rows, len(names)
    read = [_numbers(raw[name], "units", f" in {name[:60]!r}") for name in names]
    unread = {i * n + row: fault for i, (_, faults) in enumerate(read) for row, fault in faults.items()}
    stamp, stamps = _codes(_text(raw[header.timestamp]))
    return _Cells(
        np.tile(np.arange(n), m), stamps, np.tile(stamp, m), pa.repeat(ALL, n * m),
        pa.array(names).take(pa.array(np.repeat(np.arange(m), n))), pa.repeat("", n * m),
        np.concatenate([units for units, _ in read]), np.full(n * m, np.nan),
        {name: pa.repeat("", n * m) for name in FLAGS}, unread, False,
    )  # fmt: skip


def _text(column: pa.ChunkedArray) -> pa.Array:
    """As one would type it, without spaces around it; "" for nothing."""
    return pc.utf8_trim_whitespace(column.cast(pa.string())).fill_null("").combine_chunks()


def _codes(text: pa.Array) -> tuple[Ints, list[str]]:
    coded = text.dictionary_encode()
    return coded.indices.to_numpy().astype(np.int64), coded.dictionary.to_pylist()


def _numbers(column: pa.ChunkedArray, name: str, where: str = "") -> tuple[Floats, dict[int, Fault]]:
    """NaN where there is none; what is no number is a fault."""
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64), {}
    text = _text(column)
    right = pc.match_substring_regex(text, NUMBER)
    missing = pc.is_in(pc.utf8_lower(text), pa.array(MISSING))
    values = pc.if_else(right, text, None).cast(pa.float64()).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(pc.invert(pc.or_(missing, right)).to_numpy(zero_copy_only=False)).tolist()
    return np.asarray(values, np.float64), {i: Fault(name, IS_NUMBER, _said(text[i].as_py()) + where) for i in wrong}


def _flag(column: pa.ChunkedArray) -> pa.Array:
    """As text, "" where missing."""
    text = _text(column)
    return pc.if_else(pc.is_in(pc.utf8_lower(text), pa.array(MISSING)), "", text)


def _said(value: object) -> str:
    return repr(str(value)[:80])


# From stamps to steps, and from steps to days


def shape(raw: pa.Table, file: str, now: int) -> Shaped:
    """A table, long or wide, as rows of `Sold`."""
    header = _header(raw.column_names, file)
    cells = _long(raw, header) if header.units else _wide(raw, header)
    if header.units is None and 2 * len(cells.stamps) <= raw.num_rows > 2:
        raise BadData(
            f"{file}: header: must have {' or '.join(UNITS)} where stamps come again and again, as in a long table, "
            f"got {', '.join(map(repr, raw.column_names[:20]))}"
        )
    ignored = tuple(name for name in raw.column_names if name not in header.used)
    series = _series(cells.store, cells.product)
    known, faults = ~np.isnan(cells.units), dict(cells.unread)

    def refuse(wrong: Flags, column: str, rule: str, value: Callable[[int], object]) -> None:
        for i in np.flatnonzero(wrong).tolist():
            faults.setdefault(i, Fault(column, rule, _said(value(i))))

    def stamp(i: int) -> object:
        return cells.stamps[cells.stamp[i]]

    at = times(cells.stamps)
    in_range = at.read & (at.utc >= 0) & (at.utc < END)
    refuse(~at.read[cells.stamp], "timestamp", READABLE, stamp)
    refuse(~in_range[cells.stamp], "timestamp", IN_RANGE, stamp)
    refuse(cells.units < 0, "units", NO_RETURN, lambda i: cells.units[i])
    steps = _steps(cells, series, at, in_range, header, file)
    if steps is None:  # no stamp is one
        return Shaped(
            rows=_rows(cells, series, np.arange(len(series)), np.full(len(series), -1), None, now), places=cells.places,
            faults=faults, ignored=ignored, notes=(),
        )  # fmt: skip
    beside = f"must be within {OFF:.0%} of a step of its grid, which is {steps.frequency}"
    refuse((in_range & (steps.beside > OFF))[cells.stamp], "timestamp", beside, stamp)
    refuse(known & (steps.end > now)[cells.stamp], "timestamp", IS_OVER, stamp)

    faulty = np.zeros(len(known), bool)
    faulty[list(faults)] = True
    right = known & ~faulty
    step = steps.step[cells.stamp]
    last, first = (int(step[right].max()), int(step[right].min())) if right.any() else (0, 0)
    if not faults and not right.any():
        raise BadData(f"{file}: units: must have values, has none")
    if last - first >= FARTHEST:
        raise BadData(
            f"{file}: timestamp: must be fewer than 2**31 steps ({steps.frequency}) apart, got {last - first:,}"
        )
    end = steps.end[steps.step == last].max() if right.any() else 0
    day = np.where(faulty, -1, step - last + end // DAY - 1)
    planned = ~known & ~faulty & cells.planned & (day <= end // DAY - 1 + HORIZON)
    kept = faulty | ((right | planned) & (day >= 0))
    order = np.lexsort((day, series))
    order = order[kept[order]]
    place = {i: k for k, i in enumerate(order.tolist())} if faults else {}
    return Shaped(
        rows=_rows(cells, series[order], order, day[order], steps, now), places=cells.places[order],
        faults={place[i]: fault for i, fault in faults.items()}, ignored=ignored,
        notes=_notes(cells, series, at, steps, header, right, known, day) if right.any() else (),
    )  # fmt: skip


def _series(store: pa.Array, product: pa.Array) -> Ints:
    """A number for each store and product, (n,)."""
    (stores, _), (products, names) = _codes(store), _codes(product)
    return np.asarray(np.unique(stores * len(names) + products, return_inverse=True)[1], np.int64)


def _steps(cells: _Cells, series: Ints, at: Times, in_range: Flags, header: _Header, file: str) -> Steps | None:
    """Of each of the stamps. Those that are read have all an offset, or none has."""
    if (at.aware & at.read).any() and (~at.aware & at.read).any():
        with_one, without = (cells.stamps[int(np.argmax(at.read & which))] for which in (at.aware, ~at.aware))
        raise BadData(f"{file}: timestamp: all must have an offset, or none, got {with_one!r} and {without!r}")
    rows = in_range[cells.stamp]
    if not rows.any():
        return None
    series, stamp = series[rows], cells.stamp[rows]
    by_date = of_days(series, at.utc[stamp], header.frequency)
    us = np.where(in_range, at.written if by_date else at.utc, at.utc[stamp[0]])
    steps = locate(series, us[stamp], us, header.frequency)
    if steps is None:
        most = series == np.argmax(np.bincount(series))
        name = "/".join(
            str(column.filter(pa.array(rows)).filter(pa.array(most))[0]) for column in (cells.store, cells.product)
        )
        some = [cells.stamps[i] for i in dict.fromkeys(stamp[most].tolist())][:4]
        raise BadData(
            f"{file}: timestamp: must have a frequency, none fits those of series {name!r}: {', '.join(some)}, ...; "
            f"name it in the header, such as timestamp[D], or resample to one"
        )
    return steps


def _notes(
    cells: _Cells, series: Ints, at: Times, steps: Steps, header: _Header, right: Flags, known: Flags, day: Ints
) -> tuple[str, ...]:
    """What people should hear of a table."""
    last = int(np.argmax(np.where(right, day, -1)))
    seen = np.bincount(series[right & (day >= 0)])
    moved, old = int((right & steps.moved[cells.stamp]).sum()), int((right & (day < 0)).sum())
    single, missing = int((seen == 1).sum()), int((~known).sum())
    form = "long" if header.units else "wide"
    label = steps.labels()[int(cells.stamp[last])].as_py()
    notes = [f"{int((seen > 0).sum()):,} series, {form}, frequency {steps.frequency}, the last step is {label}"]
    if steps.frequency != "D":
        notes.append(f"each step stands for one day, the last one for {np.datetime64(int(day[last]), 'D')}")
    if at.aware.any():
        notes.append("stamps have offsets: steps shorter than a day are in UTC, others go by the date that is written")
    if moved:
        notes.append(f"{moved:,} stamps do not lie on the grid and are taken to it")
    if missing:
        notes.append(f"{missing:,} values are missing: not known, which is not zero")
    if old:
        notes.append(f"{old:,} values are left out: days begin in 1970, so the newest {int(day[last]) + 1:,} steps fit")
    if single:
        notes.append(f"{single:,} series have one observation: the profile of their group will forecast them")
    return tuple(notes)


def _rows(cells: _Cells, series: Ints, order: Ints, day: Ints, steps: Steps | None, now: int) -> pa.Table:
    """Those in this order, by series and day; day -1: wrong, as it stands."""
    where, wrong = pa.array(order), day < 0
    stamp = pa.array(cells.stamp[order])
    timestamp = pa.array(cells.stamps, pa.string()).take(stamp)
    if steps is not None:
        timestamp = pc.if_else(pa.array(wrong), timestamp, steps.labels().take(stamp))
    units, price = cells.units[order], cells.price[order]
    usual = _filled(pd.Series(np.where((price > 0) & ~wrong, price, np.nan)), series)
    category = cells.category.take(where)
    category = _filled(pd.Series(category.to_numpy(zero_copy_only=False)).where(lambda said: said != ""), series)
    columns = {
        "store_id": cells.store.take(where),
        "product_id": cells.product.take(where),
        "category": pa.array(category, pa.string(), from_pandas=True).fill_null(ALL),
        "timestamp": timestamp,
        "frequency": pa.repeat("" if steps is None else steps.frequency, len(order)),
        "day": pa.array(day),
        "units": pa.array(np.where(np.isnan(units), 0.0, units)),
        "known": pa.array(~np.isnan(units)),
        "price": pa.array(np.where(np.isnan(price), usual.fillna(1.0), price)),
        **{name: flag.take(where) for name, flag in cells.flags.items()},
        "told_timestamp": pa.array(np.minimum((day + 1) * DAY + SMALL.told, now)),
    }
    return pa.table(columns).select(arrow_schema(Sold).names)


def _filled(column: Any, series: Ints) -> Any:
    """What is missing is as it was before in its series, or as it is first."""
    return column.groupby(series).ffill().groupby(series).bfill()


# Rows become events


def actuals(rows: pa.Table) -> pa.Table:
    ids = pc.binary_join_element_wise(rows["store_id"], rows["product_id"], rows["day"].cast(pa.string()), "/")
    columns = {
        **{name: rows[name] for name in arrow_schema(Actual).names if name in rows.column_names},
        "event_id": pc.if_else(rows["known"], ids, pa.scalar(None, pa.string())),
        "event_timestamp": pc.multiply(rows["day"], DAY),
    }
    return pa.table({name: columns[name] for name in arrow_schema(Actual).names})


def reviews(rows: pa.Table, now: int) -> pa.Table:
    """Of each series with a history: past ones, whose first days are known by now, and one after the last step.

    What was planned is what was seen later. More series than can be reviewed so often are reviewed more seldom.
    """
    rows = rows.sort_by("day")
    series = _series(*(rows[name].combine_chunks() for name in PLACE))
    day, known = _numpy(rows["day"]), _numpy(rows["known"])
    if not known.any():
        return arrow_schema(Review).empty_table()
    n, last = int(series.max()) + 1, int(day[known].max())
    every = REVIEW_EVERY * -(-n * REVIEW_DAYS // (REVIEW_EVERY * REVIEWS))
    past = np.arange(max(0, last + 1 - REVIEW_DAYS), last + 1)
    days = np.append(past[past % every == 0], last + 1)
    made = [
        _reviewed(rows.filter(pa.array(mine)), series[mine] - start, days, last)
        for start in range(0, n, AT_ONCE)
        if (mine := (series >= start) & (series < start + AT_ONCE)).any()
    ]
    table = pa.concat_tables(made)
    told = np.minimum(_numpy(table["day"]) * DAY + SMALL.reviewed, now)
    return table.set_column(1, "event_timestamp", pa.array(told)).cast(arrow_schema(Review))


def _reviewed(rows: pa.Table, series: Ints, days: Ints, last: int) -> pa.Table:
    """Of some series, numbered from 0; event_timestamp is not known yet. Columns of the matrices are days from `start`
    on, the first one for all that was before."""
    n, start, day = int(series.max()) + 1, int(days[0]), _numpy(rows["day"])
    columns = np.maximum(day - start + 1, 0)
    price = np.full((n, last + HORIZON - start + 2), np.nan)
    price[series, columns] = _numpy(rows["price"])
    at = np.maximum.accumulate(np.where(np.isnan(price), -1, np.arange(price.shape[1])), axis=1)
    price = np.take_along_axis(price, np.where(at < 0, np.argmax(at >= 0, axis=1)[:, None], at), axis=1)
    promoted, known = np.zeros(price.shape, bool), np.zeros(price.shape, bool)
    promoted[series, columns] = _numpy(rows["promoted"])
    known[series, columns] |= _numpy(rows["known"])
    first = np.full(n, LAST_DAY)
    np.minimum.at(first, series[_numpy(rows["known"])], day[_numpy(rows["known"])])
    newest = np.zeros(n, np.int64)
    newest[series] = np.arange(len(series))  # the last row of each

    total = np.cumsum(known, axis=1)
    after = total[:, days - start + HORIZON] - total[:, days - start]
    which, when = np.nonzero((first[:, None] < days) & ((after > 0) | (days == last + 1)))
    window = days[when, None] - start + 1 + np.arange(HORIZON)
    prices, promotions = price[which[:, None], window], promoted[which[:, None], window]
    changes = prices[:, :-1] != prices[:, 1:]
    lengths = np.where(changes.any(1), HORIZON - np.argmax(changes[:, ::-1], axis=1), 1)  # the last price stays
    planned = np.where(promotions.any(1), HORIZON - np.argmax(promotions[:, ::-1], axis=1), 0)

    frequency, stamp = rows["frequency"][0].as_py(), rows["timestamp"][rows.num_rows - 1].as_py()
    calendar = None if frequency == "D" else Calendar(frequency, int(day[-1]), stamp)
    said = {d: f"{d}.review" + (f" {calendar.label(d)} {frequency}" if calendar else "") for d in days.tolist()}
    of = rows.take(pa.array(newest[which]))
    made = {
        "event_id": pc.binary_join_element_wise(
            of["store_id"], of["product_id"], pa.array([said[d] for d in days[when].tolist()], pa.string()), "/"
        ),
        "event_timestamp": pa.repeat(0, len(which)),
        **{name: of[name] for name in ("store_id", "product_id", "category")},
        "day": pa.array(days[when]),
        "prices": _lists(prices, lengths),
        "promoted": _lists(promotions, planned),
    }
    fields = arrow_schema(Review)
    defaults = {
        name: pa.repeat(pa.scalar(Review.model_fields[name].default, fields.field(name).type), len(which))
        for name in fields.names
        if name not in made
    }
    return pa.table({name: (made | defaults)[name] for name in fields.names})


def _lists(values: Any, lengths: Ints) -> pa.Array:
    """The beginning of each row, (n, width) and (n,)."""
    ends = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    return pa.ListArray.from_arrays(ends, pa.array(values[np.arange(values.shape[1]) < lengths[:, None]]))


def _numpy(column: Any) -> Any:
    return column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()


REVIEWED: Final = re.compile(r"/(\d+)\.review (.+) (\S+)$")


def calendar(reviews: pa.Table) -> Calendar | None:
    """What the days of these reviews stand for, as the newest one's id says; None: days."""
    if not reviews.num_rows:
        return None
    newest = reviews["event_id"][int(np.argmax(reviews["day"].to_numpy()))].as_py()
    said = REVIEWED.search(newest)
    return None if said is None else Calendar(said[3], int(said[1]), said[2])


LAYOUT: Layout = (
    UserTable(
        name="series", row=Sold, event=Actual, make=actuals, heard="told_timestamp", shape=shape,
        derive=(Derived(event=Review, make=reviews),),
    ),
)  # fmt: skip
