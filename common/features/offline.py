"""The features of a whole table, each row as of its own time. Agrees with reference.py on any history.

Every event is live for an interval of requests. Requests are numbered 0, 1, ... by entity, then by log
order, so that interval is a pair of numbers [first, last), found by binary search whether the event came in
time, late or twice. What remains is to add, at each request, the events whose interval covers it:

- count, distinct: +1 at `first`, -1 at `last`, running sum;
- sum, mean: differences of two prefix sums, by start and by end, in double-double arithmetic, so that a
  large value that has left the window leaves no rounding error behind;
- last, time_since: the newest event that has started; when it has expired, all older ones have too;
- min, max, std: a segment tree over the requests; each event is noted at O(log n) nodes and each request
  gathers the nodes above it. No subtraction, hence no cancellation.

All is O(n log n) whatever the windows hold. Source of the arithmetic: Knuth, TAOCP 2, 4.2.2 (two-sum);
Chan, Golub and LeVeque 1983 (merging of variances).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.clock import SECOND
from common.errors import OutOfOrder
from common.features.view import Aggregation, Array, FeatureView, ints, numbers, runs

Index = NDArray[np.int64]


def compute(view: FeatureView, events: pa.Table, requests: pa.Table) -> Array:
    """The view's aggregations for each request, (n_requests, n_aggregations).

    Events need the columns of their schema, `position` and `created_timestamp`; requests need the
    entity columns, `position` and `created_timestamp`, which is their as_of. Rows that follow each other and are equal
    in these, as the days of a forecast are, are computed once.
    """
    first, of = runs([requests[name] for name in ("position", "created_timestamp", *view.entity)])
    if len(first) < len(of):
        return compute(view, events, requests.take(pa.array(first)))[of]
    timeline = _Timeline(view, events, requests)
    out = np.empty((requests.num_rows, len(view.aggregations)), order="F")
    for i, a in enumerate(view.aggregations):
        out[timeline.requests, i] = timeline.value(a)
    return out


@dataclass(frozen=True, eq=False)
class _Intervals:
    """Event `event[k]` is live for the requests first[k] <= q < last[k]; in order of entity, then log."""

    event: Index
    first: Index
    last: Index
    n_requests: int

    @cached_property
    def started(self) -> Index:
        """How many intervals have begun at each request, those of earlier entities included."""
        return np.cumsum(np.bincount(self.first, minlength=self.n_requests)[: self.n_requests])

    @cached_property
    def ended(self) -> Index:
        return np.cumsum(np.bincount(self.last, minlength=self.n_requests)[: self.n_requests])

    @cached_property
    def by_first(self) -> Index:
        return np.argsort(self.first, kind="stable")

    @cached_property
    def by_last(self) -> Index:
        return np.argsort(self.last, kind="stable")

    @cached_property
    def count(self) -> Array:
        return (self.started - self.ended).astype(np.float64)


class _Timeline:
    def __init__(self, view: FeatureView, events: pa.Table, requests: pa.Table) -> None:
        self.view, self.events = view, events
        entity, asked = entities(view.entity, events, requests)
        position, as_of = ints(requests["position"]), ints(requests["created_timestamp"])
        log = _order(position)
        self.log_position, self.log_as_of = position[log], as_of[log]
        if np.any(np.diff(self.log_as_of) < 0):
            raise OutOfOrder("requests: created_timestamp must not decrease with position")
        by_entity = _order(asked[log])
        self.requests: Index = log[by_entity]  # entity by entity, in log order
        self.as_of = as_of[self.requests]
        self.n = len(log)
        self.key = asked[self.requests] * (self.n + 1) + by_entity  # increasing
        self.asked = asked[self.requests]

        self.event_position = ints(events["position"])
        self.event_timestamp = ints(events["event_timestamp"])
        in_log = _order(self.event_position)
        self.order: Index = in_log[_order(entity[in_log])]  # events: entity by entity, in log order
        self.base = entity * (self.n + 1)
        self.after = np.searchsorted(self.log_position, self.event_position, side="right")  # requests logged later
        self._newest: dict[_Intervals, Index] = {}
        self._first: dict[int, Index] = {}
        self._intervals: dict[tuple[str | None, int, int, int], _Intervals] = {}

    def value(self, a: Aggregation) -> Array:
        """(n_requests,), in the order of `self.requests`."""
        live = self.intervals(a)
        if a.kind == "count":
            return live.count
        if a.kind == "distinct":
            return self.distinct(a, live)
        if a.kind == "time_since":
            return (self.as_of - _pick(self.event_timestamp.astype(np.float64), self.newest(live))) / SECOND
        x = self.column(a)
        if a.kind == "last":
            return _pick(x, self.newest(live))
        if a.kind in ("sum", "mean"):
            total = _running_difference(x[live.event], live)
            with np.errstate(invalid="ignore"):
                return total if a.kind == "sum" else total / live.count  # 0 / 0 is NaN, as it should be
        if a.kind == "std":
            return _std(x[live.event], live)
        return _extreme(x[live.event], live, np.fmin if a.kind == "min" else np.fmax)

    def column(self, a: Aggregation) -> Array:
        assert a.column is not None  # Aggregation has checked it
        return numbers(self.events[a.column])

    def intervals(self, a: Aggregation) -> _Intervals:
        there = self.there(a)
        key = (a.column if there is not None else None, a.window, a.delay, a.tile)
        if key not in self._intervals:
            first = self.first(a.delay)
            end = self.event_timestamp + (a.delay + a.window)
            if a.tile:
                end = -(-end // a.tile) * a.tile
            last = self.place(np.searchsorted(self.log_as_of, end))
            live = (first < last)[self.order]
            if there is not None:
                live &= there[self.order]
            event = self.order if live.all() else self.order[live]
            self._intervals[key] = _Intervals(event, first[event], last[event], self.n)
        return self._intervals[key]

    def first(self, delay: int) -> Index:
        if delay not in self._first:
            started = np.searchsorted(self.log_as_of, self.event_timestamp + delay)
            self._first[delay] = self.place(np.maximum(self.after, started))
        return self._first[delay]

    def place(self, rank: Index) -> Index:
        """From a place in the log to a place among the requests of the event's own entity."""
        out = np.empty_like(rank)
        out[self.order] = np.searchsorted(self.key, (self.base + rank)[self.order])  # sorted needles are much faster
        return out

    def there(self, a: Aggregation) -> NDArray[np.bool_] | None:
        """Which events have a value in the column; None when all have."""
        if a.column is None:
            return None
        column = self.events[a.column]
        if pa.types.is_floating(column.type):
            there = np.isfinite(numbers(column))
        elif column.null_count:
            there = np.asarray(column.is_valid())
        else:
            return None
        return None if there.all() else there

    def newest(self, live: _Intervals) -> Index:
        """The event that is the newest live one at each request, (n,); -1 where there is none."""
        if live not in self._newest:
            self._newest[live] = self._find_newest(live)
        return self._newest[live]

    def _find_newest(self, live: _Intervals) -> Index:
        if not len(live.event):
            return np.full(self.n, -1)
        event = live.event[live.by_first]
        entity, at = self.base[event], self.event_timestamp[event]
        if np.all((entity[1:] > entity[:-1]) | (at[1:] >= at[:-1])):  # nobody was late
            newest = np.arange(len(event))
        else:
            age = np.lexsort((self.event_position[event], at, entity))
            rank = np.empty_like(age)
            rank[age] = np.arange(len(age))  # by entity, then time: a later entity outranks all earlier ones
            newest = age[np.maximum.accumulate(rank)]  # of the first k + 1 that started
        place = newest[np.maximum(live.started - 1, 0)]  # (n,)
        is_live = live.last[live.by_first][place] > np.arange(self.n)  # when it has expired, all older ones have too
        is_live &= (entity[place] == self.asked * (self.n + 1)) & (live.started > 0)
        return np.where(is_live, event[place], -1)

    def distinct(self, a: Aggregation, live: _Intervals) -> Array:
        """A value is live as long as one of its events is: join overlapping intervals, then count them."""
        column = self.events[a.column]
        if pa.types.is_floating(column.type):
            column = pc.add(column, 0.0)  # -0.0 is 0.0
        values = column.combine_chunks().dictionary_encode().indices
        value = np.asarray(pc.fill_null(values, -1))[live.event]
        order = np.lexsort((live.first, value, self.base[live.event]))
        first, last, value, base = live.first[order], live.last[order], value[order], self.base[live.event][order]
        new = np.ones(len(order), bool)
        new[1:] = (value[1:] != value[:-1]) | (base[1:] != base[:-1])
        lift = np.cumsum(new) * (self.n + 1)  # so that the running maximum starts afresh with each value
        reach = np.maximum.accumulate(last + lift) - lift
        new[1:] |= first[1:] > reach[:-1]
        ends = np.append(new[1:], True)[: len(order)]
        change = np.bincount(first[new], minlength=self.n + 1) - np.bincount(reach[ends], minlength=self.n + 1)
        return np.cumsum(change)[: self.n].astype(np.float64)


def _pick(x: Array, event: Index) -> Array:
    """x of each event; NaN for -1."""
    return np.append(x, np.nan)[event]


def _order(key: Index) -> Index:
    """A stable argsort; free when sorted, radix when the keys are few."""
    if np.all(key[1:] >= key[:-1]):
        return np.arange(len(key))
    if len(key) and key.min() >= 0 and key.max() < 2**16:
        key = key.astype(np.uint16)
    return np.argsort(key, kind="stable")


def entities(columns: tuple[str, ...], events: pa.Table, requests: pa.Table) -> tuple[Index, Index]:
    """One number per entity, 0, 1, ..., the same in both tables."""
    code = np.zeros(events.num_rows + requests.num_rows, np.int64)
    for name in columns:
        both = pa.chunked_array([*events[name].chunks, *requests[name].chunks], events[name].type)
        encoded = both.combine_chunks().dictionary_encode()
        code = code * len(encoded.dictionary) + np.asarray(encoded.indices)
        if len(columns) > 1:
            code = np.unique(code, return_inverse=True)[1]  # stays small, however many columns
    return code[: events.num_rows], code[events.num_rows :]


def _running_difference(x: Array, live: _Intervals) -> Array:
    """Sum of x over the intervals that cover each request."""
    began, began_rest = _prefix_sums(x[live.by_first])
    over, over_rest = _prefix_sums(x[live.by_last])
    a, b = began[live.started], over[live.ended]
    return (a - b) + (_rounding(a, -b) + (began_rest[live.started] - over_rest[live.ended]))


def _prefix_sums(x: Array) -> tuple[Array, Array]:
    """Of the first 0, 1, ..., n values: the sum, and what rounding took from it. (n + 1,) each."""
    total = np.concatenate([[0.0], np.cumsum(x)])
    return total, np.concatenate([[0.0], np.cumsum(_rounding(total[:-1], x))])


def _rounding(a: Array, b: Array) -> Array:
    """a + b exactly is fl(a + b) + this."""
    total = a + b
    b_part = total - a
    return (a - (total - b_part)) + (b - b_part)


def _cover(live: _Intervals) -> Iterator[tuple[slice, Index, Index]]:
    """Level by level, leaves first: the level's slice of the tree, and (node in the slice, interval) to note there."""
    first, last = live.first.copy(), live.last.copy()
    index = np.arange(len(first))
    size = _tree_size(live)
    while size:
        left, right = (first & 1).astype(bool), (last & 1).astype(bool)
        yield (
            slice(size, 2 * size),
            np.concatenate([first[left], last[right] - 1]),
            np.concatenate([index[left], index[right]]),
        )
        first, last = (first + 1) >> 1, last >> 1
        going = first < last
        first, last, index = first[going], last[going], index[going]
        size //= 2


def _tree_size(live: _Intervals) -> int:
    return 1 << max(0, live.n_requests - 1).bit_length()


def _extreme(x: Array, live: _Intervals, pick: np.ufunc) -> Array:
    """The least (np.fmin) or greatest (np.fmax) x of the intervals that cover each request; both pass over NaN."""
    size = _tree_size(live)
    tree = np.full((2 * size, 1), np.nan)
    for level, node, interval in _cover(live):
        pick.at(tree[level, 0], node, x[interval])
    return np.asarray(_gather(size, tree, pick)[: live.n_requests, 0])


def _std(x: Array, live: _Intervals) -> Array:
    """The population standard deviation of the intervals that cover each request."""
    size = _tree_size(live)
    tree = np.zeros((2 * size, 3))  # n, mean, M2
    for level, node, interval in _cover(live):
        n = np.bincount(node, minlength=level.start)
        mean = np.bincount(node, x[interval], level.start) / np.maximum(n, 1)
        m2 = np.bincount(node, (x[interval] - mean[node]) ** 2, level.start)
        tree[level] = np.column_stack([n, mean, m2])
    n, _, m2 = _gather(size, tree, _merge_moments)[: live.n_requests].T
    with np.errstate(invalid="ignore"):
        return np.asarray(np.sqrt(m2 / n))


def _merge_moments(a: Array, b: Array) -> Array:
    """(n, mean, M2) of two disjoint sets as one, each (k, 3)."""
    n = a[:, 0] + b[:, 0]
    share = b[:, 0] / np.maximum(n, 1)
    gap = b[:, 1] - a[:, 1]
    return np.column_stack([n, a[:, 1] + gap * share, a[:, 2] + b[:, 2] + gap**2 * a[:, 0] * share])


def _gather(size: int, tree: Array, merge: Callable[[Array, Array], Array]) -> Array:
    """What each leaf has above it and in it: (2 * size, k) -> (size, k)."""
    down = tree[1:2]
    while len(down) < size:
        n = 2 * len(down)
        down = merge(np.repeat(down, 2, axis=0), tree[n : 2 * n])
    return down
