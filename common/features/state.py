"""What an online store keeps per view and entity, how a push changes it and how a read reduces it. No storage here.

Events are rows of numbers, oldest first. For aggregations with a tile, all live events of one expiry are one cell,
so that the state is bounded by window / tile cells and the rows of one delay. A row is a cell of one event, so one
reduction serves both. An event is folded into its cells as soon as it is live, and dropped once it has expired.
Everything works on a whole batch of entities at once: `owner` says to which of them a row or a cell belongs.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.clock import SECOND
from common.errors import OutOfOrder
from common.features.view import Array, FeatureView, Times, ints, numbers
from common.schema import Event, is_required

Index = NDArray[np.int64]
Mask = NDArray[np.bool_]
Table = NDArray[np.void]  # structured

AT = "@"  # the event_timestamp of a row; "#" before a column's name: hashes of its values
SEPARATOR = "\x1f"  # between a view and its entity, in a key
FORMAT = 1  # of the bytes of a state: raise it with any change to them, and to what they mean
LONG_AGO = -(2**61)  # us; older than any event, and far enough from the edge of int64 to be added to
CELL = np.dtype(
    [("span", "i8"), ("key", "u8"), ("expiry", "i8"), ("event_timestamp", "i8"),
     ("n", "f8"), ("mean", "f8"), ("m2", "f8"), ("min", "f8"), ("max", "f8"), ("last", "f8")]
)  # fmt: skip


class State(NamedTuple):
    """Of one entity in one view."""

    position: int = 0  # of the last event applied
    applied: int = LONG_AGO  # us, its created_timestamp: what was live by then is in the cells
    rows: bytes = b""
    cells: bytes = b""


EMPTY = State()
FIRST = np.zeros(1, np.int64)
NO_CELLS, NO_OWNER = np.empty(0, CELL), np.empty(0, np.int64)
TIMESTAMP = struct.Struct("=q")  # the head of a row
HEADER = struct.Struct("<qqI")  # position, applied, bytes of rows


class Arrived(NamedTuple):
    """Logged events of one kind, on their way into the views."""

    table: pa.Table
    position: list[int]
    created: list[int]

    @classmethod
    def of(cls, table: pa.Table) -> "Arrived":
        return cls(table, ints(table["position"]).tolist(), ints(table["created_timestamp"]).tolist())


def checksum(key: str, body: bytes) -> int:
    """CRC-32 of a body and of whose it is."""
    return zlib.crc32(body, zlib.crc32(key.encode()))


def pack(state: State) -> bytes:
    """A state as it is stored."""
    return HEADER.pack(state.position, state.applied, len(state.rows)) + state.rows + state.cells


def unpack(body: bytes) -> State:
    position, applied, rows = HEADER.unpack_from(body)
    middle = HEADER.size + rows
    return State(position, applied, body[HEADER.size : middle], body[middle:])


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


class Plan:
    """A view, compiled to arrays: the layout of a row, the spans of time it is reduced over."""

    def __init__(self, view: FeatureView) -> None:
        self.view = view
        self.prefix = f"{view.name}@{view.digest[:16]}.{FORMAT}"  # the state of another definition is another state
        spans: dict[_Span, int] = {}
        span_of: dict[str, int] = {}
        for a in sorted(view.aggregations, key=lambda a: a.column is None):  # those without a column come last
            span = _Span(a.column, a.kind == "distinct", a.window, a.delay, a.tile)
            same = [s for s in spans if a.column is None and s.covers(view.source, span)]
            span_of[a.name] = spans.setdefault(same[0] if same else span, len(spans))
        self.spans, self.span_of = list(spans), [span_of[a.name] for a in view.aggregations]
        self.may_miss = any(s.column and not is_required(view.source, s.column) for s in self.spans)
        self.kinds: set[str] = {a.kind for a in view.aggregations if a.kind != "distinct"}
        self.delay = np.array([s.delay for s in self.spans], np.int64)[:, None]  # (spans, 1)
        self.length = np.array([s.delay + s.window for s in self.spans], np.int64)[:, None]
        self.tile = np.array([s.tile for s in self.spans], np.int64)[:, None]
        self.has_cells = bool(self.tile.any())
        self.keep = max(s.delay if s.tile else s.delay + s.window for s in self.spans)  # us that a row may matter
        self.columns = [None if s.is_distinct else s.column for s in self.spans]
        self.column = self.columns[0] if len(set(self.columns)) == 1 else None
        names = dict.fromkeys(("#" if s.is_distinct else "") + s.column for s in self.spans if s.column)
        self.row = np.dtype([(AT, "i8"), *((name, "u8" if name[0] == "#" else "f8") for name in names)])
        blank = np.zeros(1, self.row)
        blank[AT] = LONG_AGO
        self.blank = blank.tobytes()  # before each entity's rows, so that no reduction is over nothing

    def keys(self, rows: pa.Table) -> list[str]:
        """The name of each row's entity, unambiguous also for composite ones."""
        columns = [rows[name].to_pylist() for name in self.view.entity]
        if len(columns) == 1:
            return [f"{self.prefix}{SEPARATOR}{value}" for value in columns[0]]
        return [f"{self.prefix}{SEPARATOR}{json.dumps(values)}" for values in zip(*columns, strict=True)]

    def rows(self, events: pa.Table) -> Table:
        """Events as rows of the state."""
        out = np.empty(events.num_rows, self.row)
        for name in self.row.names or ():
            if name == AT:
                out[AT] = events["event_timestamp"].to_numpy()
            elif name[0] == "#":
                out[name] = _hashes(events[name[1:]])
            else:
                out[name] = numbers(events[name])
        return out

    def expiry(self, event_timestamp: Times) -> Index:
        """(spans, rows) us"""
        expiry = event_timestamp + self.length
        if self.has_cells:
            expiry = np.where(self.tile > 0, -(-expiry // np.maximum(self.tile, 1)) * self.tile, expiry)
        return expiry

    def read(self, states: Sequence[State], as_of: Times) -> Array:
        """The aggregations of each state at its as_of, (n, n_aggregations)."""
        n = len(states)
        rows = np.frombuffer(b"".join([part for s in states for part in (self.blank, s.rows)]), self.row)
        counts = [1 + len(s.rows) // self.row.itemsize for s in states]
        owner = np.zeros(len(rows), np.int64) if n == 1 else np.repeat(np.arange(n), counts)
        at = np.ascontiguousarray(rows[AT])
        age = (as_of if n == 1 else as_of[owner]) - at
        live = (age >= self.delay) & (age < self.length)  # (spans, rows)
        cells, cell_owner = NO_CELLS, NO_OWNER
        if self.has_cells:
            applied = np.array([s.applied for s in states])[owner]
            in_time = (at > applied - self.delay) & (as_of[owner] < self.expiry(at))  # else it is in a cell, or over
            live = np.where(self.tile > 0, (age >= self.delay) & in_time, live)
            cells = np.frombuffer(b"".join([s.cells for s in states]), CELL)
            cell_owner = np.repeat(np.arange(n), [len(s.cells) // CELL.itemsize for s in states])
            fresh = cells["expiry"] > as_of[cell_owner]
            cells, cell_owner = cells[fresh], cell_owner[fresh]

        reduced = self._items(rows, at, owner, live, cells, cell_owner).reduce(self.kinds, as_of) if self.kinds else {}
        out = np.empty((n, len(self.span_of)))
        for i, (a, span) in enumerate(zip(self.view.aggregations, self.span_of, strict=True)):
            if a.kind == "distinct":
                mine = cells["span"] == span
                value = np.concatenate([rows[f"#{a.column}"][live[span]], cells["key"][mine]])
                out[:, i] = _distinct(np.concatenate([owner[live[span]], cell_owner[mine]]), value, n)
            else:
                out[:, i] = reduced[a.kind][span]
        return out

    def _items(self, rows: Table, at: Times, owner: Index, live: Mask, cells: Table, cell_owner: Index) -> "_Items":
        if self.column:
            x = np.ascontiguousarray(rows[self.column])[None, :]  # (1, rows), the same for all spans
        else:
            x = np.array([rows[c] if c else np.zeros(len(rows)) for c in self.columns])  # (spans, rows)
        if self.may_miss:
            live = live & (x == x)  # NaN: this event has no value in this column
        if not len(cells):
            return _Items(owner, at, live, 1.0, x, 0.0, x, x, x)
        at, owner = np.concatenate([at, cells["event_timestamp"]]), np.concatenate([owner, cell_owner])
        order = np.lexsort((at, owner))

        def joined(of_rows: Any, of_cells: Any) -> Any:
            shape = (len(self.spans), len(cells))
            both = (np.broadcast_to(of_rows, live.shape), np.broadcast_to(of_cells, shape))
            return np.concatenate(both, axis=1)[:, order]

        mine = cells["span"] == np.arange(len(self.spans))[:, None]
        moments = [
            joined(a, cells[b]) for a, b in ((1.0, "n"), (x, "mean"), (0.0, "m2"), (x, "min"), (x, "max"), (x, "last"))
        ]
        return _Items(owner[order], at[order], joined(live, mine), *moments)

    def push(self, keys: Sequence[str], events: Arrived, states: Mapping[str, State]) -> dict[str, State]:
        """The new states of those entities that get an event, given their old ones.

        Raises OutOfOrder for events that are not in the order of the log: their positions could not be told apart
        from those of events applied before.
        """
        table, position, created = events
        if any(b <= a for a, b in pairwise(position)):
            raise OutOfOrder(f"{self.view.name}: events must be pushed in the order of the log, position must increase")
        events_of: dict[str, list[int]] = {}
        for i, key in enumerate(keys):
            if position[i] > states.get(key, EMPTY).position:  # else it was applied before
                events_of.setdefault(key, []).append(i)
        if not events_of:
            return {}
        rows = self.rows(table)
        body, size = rows.tobytes(), self.row.itemsize
        parts = [body[i * size : (i + 1) * size] for i in range(len(keys))]
        out: dict[str, State] = {}
        for key, new in events_of.items():
            old = states.get(key, EMPTY)
            applied = max(old.applied, created[new[-1]])
            kept = self._kept(old.rows, [parts[i] for i in new], applied - self.keep)
            out[key] = State(position[new[-1]], applied, kept, b"")
        if self.has_cells:
            cells = self._folded(rows, events_of, states, [state.applied for state in out.values()])
            out = {key: state._replace(cells=part) for (key, state), part in zip(out.items(), cells, strict=True)}
        return out

    def _kept(self, old: bytes, new: Sequence[bytes], expired: int) -> bytes:
        """Old and new rows together, oldest first, without those at or before `expired`, us."""
        size = self.row.itemsize
        times = [TIMESTAMP.unpack_from(row)[0] for row in ([old[-size:], *new] if old else new)]
        rows = b"".join((old, *new))
        if any(b < a for a, b in pairwise(times)):  # somebody was late; of two at one time the log decides
            table = np.frombuffer(rows, self.row)
            rows = table[np.argsort(table[AT], kind="stable")].tobytes()
        start = 0
        while start < len(rows) and TIMESTAMP.unpack_from(rows, start)[0] <= expired:
            start += size
        return rows[start:]

    def _folded(
        self, rows: Table, events_of: Mapping[str, list[int]], states: Mapping[str, State], applied: Sequence[int]
    ) -> list[bytes]:
        """The cells of each entity once all that was live by `applied` is in them."""
        old = [states.get(key, EMPTY) for key in events_of]
        new = [i for some in events_of.values() for i in some]
        old_rows = np.frombuffer(b"".join([s.rows for s in old]), self.row)
        n = np.arange(len(old))
        counts = [len(s.rows) // self.row.itemsize for s in old], [len(some) for some in events_of.values()]
        owner = np.concatenate([np.repeat(n, count) for count in counts])
        folded_until = np.array([s.applied for s in old], np.int64)[owner]
        folded_until[len(old_rows) :] = LONG_AGO
        rows, now = np.concatenate([old_rows, rows[new]]), np.array(applied, np.int64)
        at = rows[AT]
        fold = (self.tile > 0) & (at <= now[owner] - self.delay) & (at > folded_until - self.delay)  # (spans, rows)
        cells, cell_owner = self._cells(rows, owner, fold)
        cells = np.concatenate([np.frombuffer(b"".join([s.cells for s in old]), CELL), cells])
        cell_owner = np.concatenate([np.repeat(n, [len(s.cells) // CELL.itemsize for s in old]), cell_owner])
        fresh = cells["expiry"] > now[cell_owner]
        return _split(*_merged(cells[fresh], cell_owner[fresh]), len(old))

    def _cells(self, rows: Table, owner: Index, fold: Mask) -> tuple[Table, Index]:
        """Each row that is to be folded, as a cell of one event, and its owner."""
        span, row = np.nonzero(fold)
        cells = np.zeros(len(span), CELL)
        cells["span"], cells["event_timestamp"], cells["n"] = span, rows[AT][row], 1
        cells["expiry"] = self.expiry(rows[AT])[span, row]
        there = np.ones(len(span), bool)
        for i, s in enumerate(self.spans):
            of_span = span == i
            if s.is_distinct:
                cells["key"][of_span] = rows[f"#{s.column}"][row[of_span]]
                there[of_span] = cells["key"][of_span] != 0
            elif s.column:
                x = rows[s.column][row[of_span]]
                for name in ("mean", "min", "max", "last"):
                    cells[name][of_span] = x
                there[of_span] = x == x
        return cells[there], owner[row[there]]


class _Items(NamedTuple):
    """Rows and cells as one table, by owner, then time; each owner has at least one. All but two: (spans, items)."""

    owner: Index  # (items,)
    event_timestamp: Times  # (items,)
    live: Mask
    n: Any
    mean: Any
    m2: Any
    least: Any
    greatest: Any
    last: Any

    def reduce(self, kinds: set[str], as_of: Times) -> dict[str, Array]:
        """By kind: (spans, n)."""
        live = self.live
        starts = FIRST if len(as_of) == 1 else np.searchsorted(self.owner, np.arange(len(as_of)))
        n = np.add.reduceat(np.where(live, self.n, 0.0), starts, axis=1)
        out = {"count": n}
        with np.errstate(invalid="ignore", divide="ignore"):
            if kinds & {"sum", "mean", "std"}:
                out["sum"] = np.add.reduceat(np.where(live, self.n * self.mean, 0.0), starts, axis=1)
                out["mean"] = out["sum"] / n
            if "std" in kinds:
                m2 = self.m2 + self.n * (self.mean - out["mean"][:, self.owner]) ** 2
                out["std"] = np.sqrt(np.add.reduceat(np.where(live, m2, 0.0), starts, axis=1) / n)
        if "min" in kinds:
            out["min"] = np.fmin.reduceat(np.where(live, self.least, np.nan), starts, axis=1)
        if "max" in kinds:
            out["max"] = np.fmax.reduceat(np.where(live, self.greatest, np.nan), starts, axis=1)
        if kinds & {"last", "time_since"}:
            newest = np.maximum.reduceat(np.where(live, np.arange(len(self.owner)), -1), starts, axis=1)
            out["time_since"] = np.where(newest >= 0, (as_of - self.event_timestamp[newest]) / SECOND, np.nan)
            values = np.take_along_axis(np.broadcast_to(self.last, live.shape), newest, axis=1)
            out["last"] = np.where(newest >= 0, values, np.nan)
        return out


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


def _distinct(owner: Index, value: NDArray[np.uint64], n: int) -> Array:
    """How many different values each owner has, (n,); 0 stands for no value."""
    owner, value = owner[value != 0], value[value != 0]
    order = np.lexsort((value, owner))
    owner, value = owner[order], value[order]
    new = np.ones(len(owner), bool)
    new[1:] = (owner[1:] != owner[:-1]) | (value[1:] != value[:-1])
    return np.bincount(owner[new], minlength=n).astype(np.float64)


def _hashes(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    """64 bits per value, the same in every process; 0 for a value that is not there. Two of a million values
    collide once in 37 million trials."""
    if pa.types.is_floating(column.type):
        column = pc.add(column, 0.0)  # -0.0 is 0.0
    encoded = column.combine_chunks().dictionary_encode()
    hashes = [
        0 if value is None or value != value or value in (float("inf"), -float("inf"))
        else int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=8).digest(), "little") or 1
        for value in encoded.dictionary.to_pylist()
    ]  # fmt: skip
    indices = encoded.indices.fill_null(len(hashes)) if encoded.indices.null_count else encoded.indices
    return np.take(np.array([*hashes, 0], np.uint64), np.asarray(indices))


def _split(table: Table, owner: Index, n: int) -> list[bytes]:
    """Each owner's part, as bytes; `owner` is sorted."""
    ends = np.cumsum(np.bincount(owner, minlength=n)).tolist()
    body, size = table.tobytes(), table.dtype.itemsize
    return [body[start * size : end * size] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
