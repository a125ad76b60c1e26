"""What an online store keeps per view and entity, how a push changes it and how a read reduces it. No storage here.

Events lie in series, oldest first, column after column: so the events of a window are one slice of a column, found by
binary search. A column that may miss values has a series of its own, of those events that have one. For aggregations
with a tile, all live events of one expiry are one cell, so that the state is bounded by window / tile cells and the
events of one delay. An event is folded into its cells as soon as it is live, and dropped once it has expired.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.clock import MINUTE, SECOND
from common.errors import OutOfOrder
from common.features.view import Array, FeatureView, Times, ints, numbers
from common.schema import Event, is_required

Index = NDArray[np.int64]
Table = NDArray[np.void]  # structured

AT = "@"  # the event_timestamp of an event; "#" before a column's name: hashes of its values
SEPARATOR = "\x1f"  # between a view and its entity, in a key
FORMAT = 2  # of keys and states: raise it with any change to their bytes, and to what they mean
SLACK = MINUTE  # a reader may be behind who pushed: another worker, or a clock that was set back
LONG_AGO = -(2**61)  # us; older than any event, and far enough from the edge of int64 to be added to
WORD = 8  # bytes; every number of a series
PAD = bytes(WORD)
CELL = np.dtype(
    [("span", "i8"), ("key", "u8"), ("expiry", "i8"), ("event_timestamp", "i8"),
     ("n", "f8"), ("mean", "f8"), ("m2", "f8"), ("min", "f8"), ("max", "f8"), ("last", "f8")]
)  # fmt: skip
NO_CELLS, NO_OWNER = np.empty(0, CELL), np.empty(0, np.int64)
TIMESTAMP = struct.Struct("=q")
GROUP = {"sum": "sum", "mean": "sum", "std": "sum", "last": "newest", "time_since": "newest"}  # made together


class State(NamedTuple):
    """Of one entity in one view."""

    position: int  # of the last event applied
    applied: int  # us, its created_timestamp: what was live by then is in the cells
    series: tuple[bytes, ...]
    cells: bytes


class Entities:
    """Who the rows of a table are about; a column that several views need is converted once."""

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows
        self._values: dict[str, list[str]] = {}
        self._sized: dict[str, list[str]] = {}

    def names(self, columns: tuple[str, ...]) -> Iterable[str]:
        """Unambiguous also where several columns make one name."""
        if len(columns) == 1:
            return self._of(columns[0])
        for column in columns:
            if column not in self._sized:
                self._sized[column] = [f"{len(value)}:{value}" for value in self._of(column)]
        return map("".join, zip(*(self._sized[column] for column in columns), strict=True))

    def _of(self, column: str) -> list[str]:
        if column not in self._values:
            self._values[column] = [str(value) for value in self._rows[column].to_pylist()]
        return self._values[column]


class Arrived:
    """Logged events of one kind, on their way into the views; a column that several views need is converted once."""

    def __init__(self, table: pa.Table) -> None:
        """Raises OutOfOrder: positions that do not increase could not be told apart from those applied before."""
        self.table, self.entities = table, Entities(table)
        self.position: list[int] = table["position"].to_pylist()
        if any(b <= a for a, b in pairwise(self.position)):
            raise OutOfOrder("position: events must be pushed in the order of the log, it must increase")
        self.created: list[int] = table["created_timestamp"].to_pylist()
        self.at: list[int] = table["event_timestamp"].to_pylist()
        self._words: dict[str, Index] = {}
        self._bodies: dict[str, bytes] = {}
        self._there: dict[str, list[bool]] = {}

    def words(self, name: str) -> Index:
        """A column of a series, its numbers seen as integers."""
        if name not in self._words:
            found: NDArray[Any]
            if name == AT:
                found = ints(self.table["event_timestamp"])
            elif name[0] == "#":
                found = _hashes(self.table[name[1:]])
            else:
                found = numbers(self.table[name])
            self._words[name] = np.ascontiguousarray(found).view(np.int64)
        return self._words[name]

    def body(self, name: str) -> bytes:
        if name not in self._bodies:
            self._bodies[name] = self.words(name).tobytes()
        return self._bodies[name]

    def there(self, name: str) -> list[bool]:
        """Which events have a value."""
        if name not in self._there:
            words = self.words(name)
            self._there[name] = (words != 0 if name[0] == "#" else np.isfinite(words.view(np.float64))).tolist()
        return self._there[name]


def checksum(key: str, body: bytes) -> int:
    """CRC-32 of a body and of whose it is."""
    return zlib.crc32(body, zlib.crc32(key.encode()))


@dataclass(frozen=True)
class _Span:
    """What aggregations of the same events share."""

    column: str | None
    is_distinct: bool
    window: int
    delay: int
    tile: int

    def covers(self, source: type[Event], other: "_Span") -> bool:
        """Whether the same events count for both: a column that is always there leaves none out."""
        times = (self.window, self.delay, self.tile) == (other.window, other.delay, other.tile)
        return times and (self.column is None or (not self.is_distinct and is_required(source, self.column)))

    @property
    def name(self) -> str:
        """Of its column in a series."""
        return AT if self.column is None else f"#{self.column}" if self.is_distinct else self.column


class Plan:
    """A view, compiled: the layout of its series, the spans of time they are reduced over."""

    def __init__(self, view: FeatureView) -> None:
        self.view = view
        self.prefix = f"{view.name}@{view.digest[:16]}.{FORMAT}"  # the state of another definition is another state
        self._start = self.prefix + SEPARATOR
        spans: dict[_Span, int] = {}
        span_of: dict[str, int] = {}
        for a in sorted(view.aggregations, key=lambda a: a.column is None):  # those without a column come last
            span = _Span(a.column, a.kind == "distinct", a.window, a.delay, a.tile)
            same = [s for s in spans if a.column is None and s.covers(view.source, span)]
            span_of[a.name] = spans.setdefault(same[0] if same else span, len(spans))
        self.spans, self.span_of = list(spans), [span_of[a.name] for a in view.aggregations]
        self.length = [s.delay + s.window for s in self.spans]
        self.has_cells = any(s.tile for s in self.spans)
        # us that an event may matter
        self.keep = max(s.delay if s.tile else s.delay + s.window + SLACK for s in self.spans)

        series: dict[str | None, list[str]] = {}  # by the column that may miss values
        self.place: list[tuple[int, int]] = []  # of each span: its series, its column there
        for s in self.spans:
            names = series.setdefault(None if not s.column or is_required(view.source, s.column) else s.column, [AT])
            if s.name not in names:
                names.append(s.name)
            self.place.append((list(series.values()).index(names), names.index(s.name)))
        self.series = [tuple(names) for names in series.values()]
        self.may_miss = [column is not None for column in series]
        self.empty = State(0, LONG_AGO, (b"",) * len(self.series), b"")
        self._header = struct.Struct(f"<qq{len(self.series)}I")  # position, applied, bytes of each series

    def keys(self, entities: Entities) -> list[str]:
        start = self._start
        return [start + name for name in entities.names(self.view.entity)]

    def pack(self, state: State) -> bytes:
        """A state as it is stored."""
        header = self._header.pack(state.position, state.applied, *map(len, state.series))
        return b"".join((header, *state.series, state.cells))

    def unpack(self, body: bytes) -> State:
        position, applied, *sizes = self._header.unpack_from(body)
        start, series = self._header.size, []
        for size in sizes:
            series.append(body[start : start + size])
            start += size
        return State(position, applied, tuple(series), body[start:])

    def expiry(self, span: int, event_timestamp: Times) -> Times:
        """us, of events that are in a span with a tile"""
        tile = self.spans[span].tile
        return -(-(event_timestamp + self.length[span]) // tile) * tile

    def push(self, keys: Sequence[str], events: Arrived, states: Mapping[str, State]) -> dict[str, State]:
        """The new states of those entities that get an event, given their old ones."""
        position, created = events.position, events.created
        events_of: dict[str, list[int]] = {}
        for i, key in enumerate(keys):
            if position[i] > states.get(key, self.empty).position:  # else it was applied before
                events_of.setdefault(key, []).append(i)
        if not events_of:
            return {}
        there = [
            events.there(names[-1]) if miss else None for names, miss in zip(self.series, self.may_miss, strict=True)
        ]
        columns = [[(events.words(name), events.body(name)) for name in names] for names in self.series]
        out: dict[str, State] = {}
        for key, new in events_of.items():
            old = states.get(key, self.empty)
            applied = max(old.applied, created[new[-1]])
            series = tuple([
                _grown(body, part, events.at, new if mask is None else [i for i in new if mask[i]], applied - self.keep)
                for body, part, mask in zip(old.series, columns, there, strict=True)
            ])  # fmt: skip
            out[key] = State(position[new[-1]], applied, series, b"")
        if self.has_cells:
            cells = self._folded(events, there, events_of, states, [state.applied for state in out.values()])
            out = {key: state._replace(cells=part) for (key, state), part in zip(out.items(), cells, strict=True)}
        return out

    def _folded(
        self,
        events: Arrived,
        there: Sequence[list[bool] | None],
        events_of: Mapping[str, list[int]],
        states: Mapping[str, State],
        applied: Sequence[int],
    ) -> list[bytes]:
        """The cells of each entity once all that was live by `applied` is in them."""
        old = [states.get(key, self.empty) for key in events_of]
        n, now, until = np.arange(len(old)), np.array(applied, np.int64), np.array([s.applied for s in old], np.int64)
        new = np.array([i for some in events_of.values() for i in some])
        new_owner = np.repeat(n, [len(some) for some in events_of.values()])
        cells = [np.frombuffer(b"".join([s.cells for s in old]), CELL)]
        cell_owner = [np.repeat(n, [len(s.cells) // CELL.itemsize for s in old])]
        for g, (names, mask) in enumerate(zip(self.series, there, strict=True)):
            came = np.ones(len(new), bool) if mask is None else np.array(mask, bool)[new]
            known = [np.frombuffer(s.series[g], np.int64).reshape(len(names), -1) for s in old]
            table = np.concatenate([*known, np.array([events.words(name)[new[came]] for name in names])], axis=1)
            owner = np.concatenate([np.repeat(n, [part.shape[1] for part in known]), new_owner[came]])
            folded_until = until[owner]
            folded_until[len(owner) - came.sum() :] = LONG_AGO
            for i, (span, (series, column)) in enumerate(zip(self.spans, self.place, strict=True)):
                if series == g and span.tile:
                    fold = (table[0] <= now[owner] - span.delay) & (table[0] > folded_until - span.delay)
                    cells.append(self._cells(i, table[0, fold], table[column, fold]))
                    cell_owner.append(owner[fold])
        table, owner = np.concatenate(cells), np.concatenate(cell_owner)
        fresh = table["expiry"] > now[owner]
        return _split(*_merged(table[fresh], owner[fresh]), len(old))

    def _cells(self, span: int, at: Times, words: Index) -> Table:
        """Each event as a cell of its own."""
        cells = np.zeros(len(at), CELL)
        cells["span"], cells["event_timestamp"], cells["n"], cells["expiry"] = span, at, 1, self.expiry(span, at)
        if self.spans[span].is_distinct:
            cells["key"] = words.view(np.uint64)
        elif self.spans[span].column:
            for name in ("mean", "min", "max", "last"):
                cells[name] = words.view(np.float64)
        return cells


class Reader:
    """Views compiled into one reduction over all of them: a call of NumPy costs as much as a thousand numbers."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        self._plans = plans
        self._blocks = [(v, g) for v, plan in enumerate(plans) for g in range(len(plan.series))]
        self._columns = np.array([len(plans[v].series[g]) for v, g in self._blocks], np.int64)[:, None]
        block_of = {block: i for i, block in enumerate(self._blocks)}
        self._first_span: list[int] = []
        block: list[int] = []  # of each span of each view, as the next ones
        column, low, high = [], [], []
        bounds: dict[tuple[int, int, int, int], int] = {}  # block, length, tile, delay
        aggregations: dict[str, list[tuple[int, int]]] = {}  # by kind: where its value goes, its span
        for v, plan in enumerate(plans):
            at, start = sum(len(p.span_of) for p in plans[:v]), len(block)
            self._first_span.append(start)
            for s, length, (g, c) in zip(plan.spans, plan.length, plan.place, strict=True):
                b = block_of[v, g]
                block.append(b)
                column.append(c)
                low.append(bounds.setdefault((b, length, s.tile, s.delay if s.tile else 0), len(bounds)))
                high.append(bounds.setdefault((b, s.delay, 0, 0), len(bounds)))
            for i, (a, s_) in enumerate(zip(plan.view.aggregations, plan.span_of, strict=True)):
                aggregations.setdefault(a.kind, []).append((at + i, start + s_))
        self._block, self._column = np.array(block, np.int64), np.array(column, np.int64)[:, None]
        self._low, self._high = np.array(low, np.int64), np.array(high, np.int64)
        self._bounds = [*bounds]
        self._bound_block = np.array([b for b, *_ in bounds], np.int64)
        self._bound_length = np.array([length for _, length, *_ in bounds], np.int64)[:, None]
        self._tiled = [(i, self._blocks[b][0], *rest) for i, (b, *rest) in enumerate(bounds) if rest[1]]
        self._reach = max((length + tile for _, length, tile, _ in bounds), default=0)  # us
        self._ends = np.cumsum([0, *(len(plan.span_of) for plan in plans)]).tolist()
        self._has_cells = any(plan.has_cells for plan in plans)
        self._spans: dict[str, Index] = {}  # by group: those that it is asked of
        for kind, pairs in aggregations.items():
            group = GROUP.get(kind, kind)
            self._spans[group] = np.union1d(self._spans.get(group, NO_OWNER), [span for _, span in pairs])
        if "std" in aggregations:
            self._spans["std"] = np.unique([span for _, span in aggregations["std"]])
            self._std = np.searchsorted(self._spans["sum"], self._spans["std"])
        self._spans["count"] = np.arange(len(block))
        self._out: dict[str, tuple[Index, Index]] = {}  # by kind: where its values go, where its group has them
        for kind, pairs in aggregations.items():
            to, span = np.array(pairs, np.int64).T
            self._out[kind] = to, np.searchsorted(self._spans["std" if kind == "std" else GROUP.get(kind, kind)], span)

    def read(self, states: Sequence[Sequence[State]], as_of: Times) -> list[Array]:
        """From the states of each view's rows, at the as_of of the row: (n, n_aggregations) each."""
        if not len(as_of) or not self._plans:
            return [np.empty((len(as_of), len(plan.span_of))) for plan in self._plans]
        reach = min(self._reach, max(0, int(as_of.max()))) + 1  # no event is before the epoch
        most = max(1, 2**62 // (len(self._blocks) * (reach + 2)))  # rows whose times fit into one order, see _ranks
        parts = [
            self._read([of_view[i : i + most] for of_view in states], as_of[i : i + most], reach)
            for i in range(0, len(as_of), most)
        ]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return [values[:, a:b] for a, b in pairwise(self._ends)]

    def _read(self, states: Sequence[Sequence[State]], as_of: Times, reach: int) -> Array:
        bodies = [s.series[g] for v, g in self._blocks for s in states[v]]
        words = np.frombuffer(b"".join((*bodies, PAD)), np.int64)  # the end of the last slice is still an index
        size = np.array([len(body) for body in bodies], np.int64).reshape(len(self._blocks), -1) // WORD
        start = (np.cumsum(size) - size.ravel()).reshape(size.shape)
        count = size // self._columns
        rank = self._ranks(words, start, count, states, as_of, reach)
        low = rank[self._low]
        n = np.maximum(rank[self._high] - low, 0)  # (spans, rows): events that are live
        first_at = start[self._block] + low
        slices = _Slices(words, first_at, first_at + self._column * count[self._block], n)
        return self._reduced(slices, self._live_cells(states, as_of) if self._has_cells else None, as_of)

    def _ranks(
        self, words: Index, start: Index, count: Index, states: Sequence[Sequence[State]], as_of: Times, reach: int
    ) -> Index:
        """How many events of its series are not after each bound, (bounds, rows).

        One search for all: each series has numbers of its own, `reach` us before as_of is its 1.
        """
        counts = count.ravel()
        before = np.cumsum(counts) - counts
        base = np.arange(counts.size) * (reach + 2)
        at = words[np.repeat(start.ravel() - before, counts) + np.arange(counts.sum())]
        at -= np.repeat(np.tile(as_of - reach, len(count)), counts)
        np.maximum(at, 0, out=at)
        order = np.minimum(at, reach + 1, out=at)
        order += np.repeat(base, counts)
        bound = np.broadcast_to(reach - self._bound_length, (len(self._bounds), len(as_of)))
        if self._tiled:
            bound = bound.copy()
            for i, v, length, tile, delay in self._tiled:
                applied = np.array([s.applied for s in states[v]], np.int64)  # up to then it is in a cell
                bound[i] = np.maximum(as_of // tile * tile - length, applied - delay) - as_of + reach
        wanted = base.reshape(count.shape)[self._bound_block] + np.clip(bound, 0, reach + 1)
        return np.searchsorted(order, wanted, side="right") - before.reshape(count.shape)[self._bound_block]

    def _live_cells(self, states: Sequence[Sequence[State]], as_of: Times) -> "_Cells":
        parts = [np.frombuffer(b"".join([s.cells for s in of_view]), CELL) for of_view in states]
        span = np.concatenate([part["span"] + i for part, i in zip(parts, self._first_span, strict=True)])
        size = [len(s.cells) // CELL.itemsize for of_view in states for s in of_view]
        row = np.repeat(np.tile(np.arange(len(as_of)), len(states)), size)
        cells = np.concatenate(parts)
        live = cells["expiry"] > as_of[row]
        return _Cells(cells[live], span[live], row[live])

    def _reduced(self, slices: "_Slices", cells: "_Cells | None", as_of: Times) -> Array:
        """Every aggregation of every view, (rows, n)."""
        out = np.empty((self._ends[-1], len(as_of)))

        def put(kind: str, value: Array) -> None:
            if kind in self._out:
                to, slot = self._out[kind]
                out[to] = value[slot]

        n = slices.size.astype(np.float64)  # (spans, rows)
        if cells:
            np.add.at(n, (cells.span, cells.row), cells.table["n"])
        put("count", n)
        if "sum" in self._spans:
            spans = self._spans["sum"]
            total = slices.over(np.add, spans, 0.0)
            if cells:
                table, where = cells.of(spans)
                np.add.at(total, where, table["n"] * table["mean"])
            put("sum", total)
            with np.errstate(invalid="ignore"):
                mean = total / n[spans]  # 0 / 0 is NaN, as it should be
            put("mean", mean)
            if "std" in self._spans:
                mean, spans = mean[self._std], self._spans["std"]
                m2 = slices.squares(spans, mean)
                if cells:
                    table, where = cells.of(spans)
                    np.add.at(m2, where, table["m2"] + table["n"] * (table["mean"] - mean[where]) ** 2)
                with np.errstate(invalid="ignore"):
                    put("std", np.sqrt(m2 / n[spans]))
        for kind, least in (("min", np.fmin), ("max", np.fmax)):
            if kind in self._spans:
                value = slices.over(least, self._spans[kind], np.nan)
                if cells:
                    table, where = cells.of(self._spans[kind])
                    least.at(value, where, table[kind])
                put(kind, value)
        if "newest" in self._spans:
            spans = self._spans["newest"]
            empty = slices.size[spans] == 0
            value, at = slices.newest(spans)
            value, age = np.where(empty, np.nan, value), np.where(empty, np.nan, (as_of - at) / SECOND)
            if cells:  # all of them are older than what is not yet in one
                table, (slot, row) = cells.of(spans)
                mine = empty[slot, row]
                table, slot, row = table[mine], slot[mine], row[mine]
                value[slot, row], age[slot, row] = table["last"], (as_of[row] - table["event_timestamp"]) / SECOND
            put("last", value)
            put("time_since", age)
        if "distinct" in self._spans:
            put("distinct", slices.distinct(self._spans["distinct"], cells))
        return out.T


class _Slices(NamedTuple):
    """Of each span and row the live events, oldest first; all but the first: (spans, rows)."""

    words: Index
    first_at: Index  # where their times begin
    first: Index  # where their values begin
    size: Index

    def over(self, least: np.ufunc, spans: Index, empty: float) -> Array:
        """A function of two numbers, over the values of each slice."""
        first, size = self.first[spans], self.size[spans]
        starts, sizes = first.ravel(), size.ravel()
        order = np.argsort(starts)[::-1]  # backwards, so that there is nothing to reduce between two slices
        ends = np.empty(2 * len(order), np.int64)
        ends[::2] = starts[order]
        ends[1::2] = ends[::2] + sizes[order]
        out = np.empty(len(order))
        values = self.words.view(np.float64)[: int(ends.max()) + 1]
        with np.errstate(all="ignore"):  # the last end is reduced too, with all that follows
            out[order] = least.reduceat(values, ends)[::2]
        out[sizes == 0] = empty
        return out.reshape(first.shape)

    def squares(self, spans: Index, mean: Array) -> Array:
        """Sum of squared deviations."""
        first, size = self.first[spans].ravel(), self.size[spans].ravel()
        ends = np.cumsum(size)
        index = np.arange(ends[-1]) + np.repeat(first - ends + size, size)
        gap = self.words.view(np.float64)[index] - np.repeat(mean.ravel(), size)
        there = size > 0
        out = np.zeros(len(size))
        if there.any():
            out[there] = np.add.reduceat(gap * gap, (ends - size)[there])
        return out.reshape(mean.shape)

    def newest(self, spans: Index) -> tuple[Array, Times]:
        """Value and time of the last one; anything where there is none."""
        newest = self.size[spans] - 1
        return self.words.view(np.float64)[self.first[spans] + newest], self.words[self.first_at[spans] + newest]

    def distinct(self, spans: Index, cells: "_Cells | None") -> Array:
        """How many different values."""
        words, first, size = self.words.view(np.uint64).data, self.first[spans], self.size[spans]
        found = [set(words[a : a + n]) for a, n in zip(first.ravel().tolist(), size.ravel().tolist(), strict=True)]
        if cells:
            table, (slot, row) = cells.of(spans)
            for i, key in zip((slot * size.shape[1] + row).tolist(), table["key"].tolist(), strict=True):
                found[i].add(key)
        return np.array([len(values) for values in found], np.float64).reshape(size.shape)


class _Cells(NamedTuple):
    """Live ones; of one span and row the newest comes last."""

    table: Table
    span: Index
    row: Index

    def of(self, spans: Index) -> tuple[Table, tuple[Index, Index]]:
        """Those of some spans, and where they belong in an array of (spans, rows)."""
        mine = np.isin(self.span, spans)
        return self.table[mine], (np.searchsorted(spans, self.span[mine]), self.row[mine])


def _grown(
    old: bytes, columns: Sequence[tuple[Index, bytes]], at: Sequence[int], new: Sequence[int], expired: int
) -> bytes:
    """A series with new events, oldest first, without those at or before `expired`, us."""
    size = len(old) // len(columns)  # bytes of a column
    last = TIMESTAMP.unpack_from(old, size - WORD)[0] if size else LONG_AGO
    if new and (at[new[0]] < last or (len(new) > 1 and any(at[b] < at[a] for a, b in pairwise(new)))):
        known = np.frombuffer(old, np.int64).reshape(len(columns), -1)  # somebody was late
        table = np.concatenate([known, np.array([words[new] for words, _ in columns])], axis=1)
        table = table[:, np.argsort(table[0], kind="stable")]  # of two at one time the log decides
        return table[:, np.searchsorted(table[0], expired, side="right") :].tobytes()
    start = 0
    while start < size and TIMESTAMP.unpack_from(old, start)[0] <= expired:
        start += WORD
    if start == size:
        new = [i for i in new if at[i] > expired]
    parts, end = [], 0
    for words, body in columns:
        parts.append(old[end + start : end + size])
        end += size
        if len(new) == 1:
            parts.append(body[WORD * new[0] : WORD * new[0] + WORD])
        else:
            parts.append(words[new].tobytes())
    return b"".join(parts)


def _merged(cells: Table, owner: Index) -> tuple[Table, Index]:
    """One cell per owner, span and expiry; for distinct, per value: it is live as long as its last event."""
    if not len(cells):
        return cells, owner
    group = np.where(cells["key"] == 0, cells["expiry"], 0)
    order = np.lexsort((cells["event_timestamp"], group, cells["key"], cells["span"], owner))
    cells, owner, group = cells[order], owner[order], group[order]
    new = np.zeros(len(cells), bool)
    new[0] = True
    for part in (owner, cells["span"], cells["key"], group):
        new[1:] |= part[1:] != part[:-1]
    starts = np.flatnonzero(new)
    out = cells[np.append(starts[1:], len(cells)) - 1]  # the newest: its `last` and time hold for all
    out["expiry"] = np.maximum.reduceat(cells["expiry"], starts)
    out["n"] = np.add.reduceat(cells["n"], starts)
    out["mean"] = np.add.reduceat(cells["n"] * cells["mean"], starts) / out["n"]
    gap = cells["mean"] - out["mean"][np.cumsum(new) - 1]
    out["m2"] = np.add.reduceat(cells["m2"] + cells["n"] * gap**2, starts)
    out["min"] = np.minimum.reduceat(cells["min"], starts)
    out["max"] = np.maximum.reduceat(cells["max"], starts)
    return out, owner[starts]


def _hashes(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    """64 bits per value, the same in every process; 0 for a value that is not there. Two of a million values
    collide once in 37 million trials."""
    if pa.types.is_floating(column.type):
        column = pc.add(column, 0.0)  # -0.0 is 0.0
    encoded = column.combine_chunks().dictionary_encode()
    hashes = [_hash(value) for value in encoded.dictionary.to_pylist()]
    indices = encoded.indices.fill_null(len(hashes)) if encoded.indices.null_count else encoded.indices
    return np.take(np.array([*hashes, 0], np.uint64), np.asarray(indices))


@lru_cache(maxsize=100_000, typed=True)
def _hash(value: Any) -> int:
    if value is None or value != value or value in (float("inf"), -float("inf")):
        return 0
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=8).digest(), "little") or 1


def _split(table: Table, owner: Index, n: int) -> list[bytes]:
    """Each owner's part, as bytes; `owner` is sorted."""
    ends = np.cumsum(np.bincount(owner, minlength=n)).tolist()
    body, size = table.tobytes(), table.dtype.itemsize
    return [body[start * size : end * size] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
