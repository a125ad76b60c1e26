"""Whether the features that the service saw are those that training computes: each logged value, made again offline."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.data.log import EventLog
from common.errors import PlatformError
from common.features import offline
from common.features.view import Array, FeatureView, assemble, feature_names, ints, numbers
from common.registry.registry import Registry
from common.schema import Event, from_table
from common.system import Answered, AnySystem, Model, RowError, Rows

TOLERANCE = 1e-9  # relative to the size of a value: two orders of summing differ by so much, and no more
POSITIONS = pa.list_(pa.int64())
EXAMPLES = 5  # of what differs, shown

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Parity:
    answers: int  # with features of their own, compared
    values: int
    gap: float  # the largest difference, relative to the value's size; infinite where one is known, the other not
    differing: int  # values
    examples: Sequence[str] = ()  # request and feature, with both values
    left_out: Mapping[str, int] = field(default_factory=dict)  # answers without features that were read, by reason

    @property
    def holds(self) -> bool:
        return self.gap <= TOLERANCE


def parity(system: AnySystem, log: EventLog, models: Mapping[str, Model[Any, Any]], after: int = 0) -> Parity:
    """Compare what was logged behind a position, by versions whose models are given.

    Each answer says when its features were read and which log positions they are of, so they can be had again exactly.
    """
    said = log.read(Answered, after)
    seen_by = zip(said["version"].to_pylist(), said["positions"].to_pylist(), said["role"].to_pylist(), strict=True)
    reason = pa.array([_left_out(*row, models) for row in seen_by], pa.string())
    left_out = Counter(r for r in reason.to_pylist() if r is not None)
    said = said.filter(pc.is_null(reason))
    requests = log.read(system.request)
    place = dict(zip(requests["event_id"].to_pylist(), range(requests.num_rows), strict=True))
    events = {view.source: log.read(view.source) for view in system.views}
    names = feature_names(system.views, system.on_demand)
    total, differing, gap, examples = 0, 0, 0.0, list[str]()
    for version in said["version"].unique().to_pylist():
        mine = said.filter(pc.equal(said["version"], version))
        asked = requests.take(pa.array([place[i] for i in mine["request_id"].to_pylist()], pa.int64()))
        rows = _rows(system, models[version], asked, mine["rows"].to_pylist())
        wanted, owner = _again(system, rows, mine, events), rows.owner
        seen = numbers(pc.list_flatten(mine["features"])).reshape(wanted.shape)
        wanted = np.where(np.isfinite(wanted), wanted, np.nan)  # JSON knows no infinity
        apart = np.abs(seen - wanted) / np.maximum(1, np.abs(wanted))
        apart[np.isnan(seen) & np.isnan(wanted)] = 0
        apart[np.isnan(apart)] = np.inf
        total += apart.size
        gap = max(gap, float(apart.max(initial=0)))
        wrong = np.argwhere(apart > TOLERANCE)
        differing += len(wrong)
        for row, column in wrong[: EXAMPLES - len(examples)].tolist():
            which = asked["event_id"][int(owner[row])].as_py()
            examples.append(f"{which}: {names[column]}: logged {seen[row, column]}, offline {wanted[row, column]}")
    return Parity(said.num_rows, total, gap, differing, examples, dict(left_out))


def models(system: AnySystem, registry: Registry) -> dict[str, Model[Any, Any]]:
    """Every version that was published and can still be loaded; another one's answers are left out."""
    found = {}
    for version in registry.versions(system.name):
        with suppress(PlatformError), registry.private(version) as folder:
            found[version.name] = system.load(folder)
    return found


def rescored(
    system: AnySystem,
    model: Model[Any, Any],
    asked: pa.Table,
    positions: Sequence[Sequence[int]],
    events: Mapping[type[Event], pa.Table],
    rows: Rows | None = None,
) -> Array:
    """What a model scores logged requests, from features that are computed anew as of each one's time and of the log
    positions that it saw, (n,); NaN: no number. `rows`: those that were logged; None: each request is its own."""
    said = pa.table({"event_timestamp": asked["created_timestamp"], "positions": pa.array(positions, POSITIONS)})
    requests = from_table(system.request, asked)
    rows = model.rows(requests) if rows is None else rows
    near = {}
    for kind in events:
        # only what shares an entity with a request is in its features
        shares = [
            pc.is_in(events[kind][column], rows.columns[column].combine_chunks().unique())
            for column in {view.entity[0] for view in system.views if view.source is kind}
        ]
        near[kind] = events[kind].filter(reduce(pc.or_, shares)) if shares else events[kind]
    predicted = model.predict(requests, rows, _again(system, rows, said, near))
    return np.array([np.nan if isinstance(p, RowError) else system.score(p) for p in predicted])


def _left_out(version: str, positions: Sequence[int], role: str, models: Mapping[str, Any]) -> str | None:
    """Why an answer cannot be compared."""
    if role == "rule":
        return "answered by the rule"
    if not positions:
        return "default features"
    return None if version in models else "version is not there any more"


def logged_rows(said: Sequence[str | None]) -> Rows:
    """From what answers say of their rows."""
    found = [json.loads(text) if text else {} for text in said]
    names = dict.fromkeys(name for columns in found for name in columns)
    columns = pa.table({name: [value for one in found for value in one.get(name, ())] for name in names})
    counts = [len(next(iter(one.values()), ())) for one in found]
    return Rows(columns, np.append(0, np.cumsum(counts)))


def _rows(system: AnySystem, model: Model[Any, Any], asked: pa.Table, said: Sequence[str | None]) -> Rows:
    return model.rows(from_table(system.request, asked)) if system.many is None else logged_rows(said)


def _again(system: AnySystem, rows: Rows, said: pa.Table, events: Mapping[type[Event], pa.Table]) -> Array:
    """The features of each row, (n_rows, n_features)."""
    owner = rows.owner
    as_of = ints(said["event_timestamp"])[owner]
    heads = [row if len(row) == len(system.views) else row * len(system.views) for row in said["positions"].to_pylist()]
    positions = np.array(heads, np.int64).reshape(len(heads), len(system.views))[owner]
    values = [
        _values(view, events[view.source], rows.columns, positions[:, i], as_of) for i, view in enumerate(system.views)
    ]
    return assemble(system.request, system.views, system.on_demand, rows.columns, values)


def _values(view: FeatureView, events: pa.Table, rows: pa.Table, head: Index, as_of: Index) -> Array:
    """A view's values as of a time each, from the events up to a position each, (n, n_aggregations)."""
    out = np.empty((len(head), len(view.aggregations)))
    left = np.lexsort((as_of, head))
    keys = rows.select(view.entity)
    while len(left):  # several workers: who read later may have read an older state
        newest = np.maximum.accumulate(as_of[left])
        in_order = as_of[left] == newest
        chain, left = left[in_order], left[~in_order]
        requests = keys.take(pa.array(chain)).append_column("position", pa.array(head[chain] + 1))
        requests = requests.append_column("created_timestamp", pa.array(as_of[chain]))
        out[chain] = offline.compute(view, events, requests)
    return out
