"""What a feature is: definitions as data, and how their values become one row of numbers for a model."""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.errors import BadDefinition
from common.schema import Event, Record, arrow_schema, choices

Array = NDArray[np.float64]
Times = NDArray[np.int64]  # us since the epoch, UTC
Kind = Literal["count", "sum", "mean", "min", "max", "std", "last", "distinct", "time_since"]


@dataclass(frozen=True, kw_only=True)
class Aggregation:
    """One number about the events of an entity inside a window of time.

    A request made at `as_of` sees the events with as_of - delay - window < event_timestamp <= as_of - delay.
    `time_since` is in seconds from the newest of them. Empty: count, sum and distinct are 0, all else NaN.
    """

    name: str
    kind: Kind
    window: int  # us
    delay: int = 0  # us; how late the world is known to tell, as with labels
    tile: int = 0  # us; an event's expiry is rounded up to its next multiple, so that state is bounded; 0: exact
    column: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise BadDefinition(f"{self.name}: kind: must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if self.window <= 0 or self.delay < 0 or self.tile < 0:
            raise BadDefinition(
                f"{self.name}: window must be > 0, delay and tile >= 0 us, got {self.window}, {self.delay}, {self.tile}"
            )
        if (self.column is None) != (self.kind in ("count", "time_since")):
            raise BadDefinition(
                f"{self.name}: column: {self.kind} takes {'none' if self.column else 'one'}, got {self.column!r}"
            )


@dataclass(frozen=True, kw_only=True)
class FeatureView:
    """Aggregations over one kind of event, grouped by the same entity."""

    name: str
    source: type[Event]
    entity: tuple[str, ...]  # the columns, in events and requests alike, that name it
    aggregations: tuple[Aggregation, ...]

    def __post_init__(self) -> None:
        columns = arrow_schema(self.source)
        for column in self.entity:
            if column not in columns.names:
                raise BadDefinition(f"{self.name}: entity: {self.source.__name__} has no column {column!r}")
            if columns.field(column).nullable or pa.types.is_floating(columns.field(column).type):
                raise BadDefinition(f"{self.name}: entity: {column!r} must be required and no float")
        for a in self.aggregations:
            if a.column is None:
                continue
            if a.column not in columns.names:
                raise BadDefinition(f"{self.name}.{a.name}: column: {self.source.__name__} has no column {a.column!r}")
            if a.kind != "distinct" and not is_number(columns.field(a.column).type):
                raise BadDefinition(f"{self.name}.{a.name}: column: {a.kind} needs a number, {a.column!r} is none")
        if len({a.name for a in self.aggregations}) != len(self.aggregations):
            raise BadDefinition(f"{self.name}: two aggregations have the same name")

    @cached_property
    def digest(self) -> str:
        """Of all that decides what its values mean."""
        said = (self.name, str(arrow_schema(self.source)), self.entity, [asdict(a) for a in self.aggregations])
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(f"{self.name}.{a.name}" for a in self.aggregations)


@dataclass(frozen=True, kw_only=True)
class OnDemand:
    """A plain function of columns, the same one everywhere; raise `version` when its meaning changes."""

    name: str
    inputs: tuple[str, ...]  # columns of the request, features ("view.aggregation"), or on-demand features before it
    version: int
    compute: Callable[[Mapping[str, Array]], Array]  # (n,) each -> (n,)


def is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def numbers(column: pa.ChunkedArray) -> Array:
    """A column as float64; a null is NaN."""
    return np.asarray(column.to_numpy(), np.float64)


def ints(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.asarray(column.to_numpy(), np.int64)


def runs(columns: Sequence[pa.ChunkedArray]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where rows begin that differ from the one before, and to which of these each row belongs, (n,)."""
    n = len(columns[0])
    new = np.arange(n) < 1
    for column in columns:
        if new.all():
            break
        new[1:] |= pc.not_equal(column.slice(1), column.slice(0, n - 1)).fill_null(True).to_numpy()
    return np.flatnonzero(new), np.cumsum(new) - 1


def feature_names(views: Sequence[FeatureView], on_demand: Sequence[OnDemand]) -> tuple[str, ...]:
    """The columns of x, in order."""
    return (*(name for view in views for name in view.features), *(f.name for f in on_demand))


class Assembler:
    """Makes the x of one system; what does not depend on the rows is found out once."""

    def __init__(self, request: type[Record], views: Sequence[FeatureView], on_demand: Sequence[OnDemand]) -> None:
        self.names = feature_names(views, on_demand)
        self._request, self._on_demand = request, on_demand
        self._needed = {name for f in on_demand for name in f.inputs}
        self._used = [[(name, i) for i, name in enumerate(view.features) if name in self._needed] for view in views]

    def __call__(self, rows: pa.Table, values: Sequence[Array]) -> Array:
        """x of shape (n, n_features): the values of each view (n, n_aggregations), then the on-demand features.

        A column of a few declared choices enters a function as their number, 0, 1, ...; an input that is neither
        a column of the rows nor a feature raises BadDefinition.
        """
        x = np.empty((rows.num_rows, len(self.names)))
        known: dict[str, Array] = {}
        at = 0
        for used, block in zip(self._used, values, strict=True):
            x[:, at : at + block.shape[1]] = block
            at += block.shape[1]
            for name, i in used:
                known[name] = block[:, i]
        for f in self._on_demand:
            for name in f.inputs:
                if name not in known:
                    known[name] = self._column(f, name, rows)
            x[:, at] = value = np.asarray(f.compute({name: known[name] for name in f.inputs}), np.float64)
            if f.name in self._needed:
                known[f.name] = value
            at += 1
        return x

    def _column(self, f: OnDemand, name: str, rows: pa.Table) -> Array:
        if name not in rows.column_names:
            raise BadDefinition(f"{f.name}: inputs: no column or feature {name!r}")
        known = choices(self._request, name)
        return numbers(pc.index_in(rows[name], _values(known))) if known else numbers(rows[name])


def assemble(
    request: type[Record],
    views: Sequence[FeatureView],
    on_demand: Sequence[OnDemand],
    rows: pa.Table,
    values: Sequence[Array],
) -> Array:
    """As an Assembler does, once."""
    return Assembler(request, views, on_demand)(rows, values)


@cache
def _values(known: tuple[str, ...]) -> pa.Array:
    return pa.array(known)


def definition_digest(request: type[Record], views: Sequence[FeatureView], on_demand: Sequence[OnDemand]) -> str:
    """Changes with definitions, versions, declared choices and the code of functions.

    A constant or a helper that a function uses is not seen: raise the function's version when one changes.
    """
    said = [
        [view.digest for view in views],
        [(f.name, f.inputs, f.version, inspect.getsource(f.compute)) for f in on_demand],
        [(name, choices(request, name)) for f in on_demand for name in f.inputs],
    ]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
