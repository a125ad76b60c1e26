"""Both kernels equal the reference on any history; each property was seen to fail on a broken kernel."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from common.features import offline, online, reference
from common.features.view import Aggregation, FeatureView
from common.schema import Event, Logged, arrow_schema


class Sale(Event):
    shop: str
    till: int
    amount: float | None = Field(allow_inf_nan=True)
    goods: str | None
    returned: bool


KINDS = ("count", "sum", "mean", "min", "max", "std", "last", "distinct", "time_since")
COLUMNS = {"distinct": ("goods", "amount", "till"), "count": (None,), "time_since": (None,)}
NUMBERS = ("amount", "till", "returned", "event_timestamp")

times = st.integers(0, 60)
sales = st.fixed_dictionaries(
    {
        "late": st.sampled_from([0, 0, 0, 0, 1, 5, 30, -3]),  # us between event_timestamp and its log entry
        "gap": st.sampled_from([0, 0, 1, 1, 2, 7, 1000]),  # us since the last log entry: equal times, long silences
        "shop": st.sampled_from("ab"),
        "till": st.integers(0, 1),
        "amount": st.one_of(
            st.sampled_from([None, float("nan"), 0.0, 1e-3]), st.floats(-1e9, 1e9), st.integers(0, 3).map(float)
        ),
        "goods": st.sampled_from([None, "x", "y", "z"]),
        "returned": st.booleans(),
        "twice": st.sampled_from([False, False, False, True]),  # the same again, under another id
    }
)


@st.composite
def aggregations(draw: Any) -> Aggregation:
    kind = draw(st.sampled_from(KINDS))
    return Aggregation(
        name=f"f{draw(st.integers(0, 10**9))}",
        kind=kind,
        column=draw(st.sampled_from(COLUMNS.get(kind, NUMBERS))),
        window=draw(st.sampled_from([1, 3, 10, 100, 10**6])),
        delay=draw(st.sampled_from([0, 0, 2, 10])),
        tile=draw(st.sampled_from([0, 0, 1, 4, 50])),
    )


views = st.builds(
    lambda entity, found: FeatureView(name="v", source=Sale, entity=entity, aggregations=tuple(found)),
    st.sampled_from([("shop",), ("shop", "till"), ("till",)]),
    st.lists(aggregations(), min_size=1, max_size=4, unique_by=lambda a: a.name),
)
histories = st.lists(sales, max_size=25)
SCHEMA = pa.unify_schemas([arrow_schema(Sale), arrow_schema(Logged)])


def log(history: list[dict[str, Any]]) -> pa.Table:
    """What the log would hold: every event is also the request that came with it."""
    rows, now = [], 1_000
    for sale in history:
        now += sale["gap"]
        for _ in range(1 + sale["twice"]):
            fields = {k: v for k, v in sale.items() if k in Sale.model_fields}
            stamps = {"event_timestamp": now - sale["late"], "created_timestamp": now, "position": 2 * len(rows) + 1}
            rows.append({**fields, **stamps, "event_id": str(len(rows))})
    return pa.Table.from_pylist(rows, SCHEMA)


def tolerance(events: pa.Table) -> float:
    return 1e-9 * max(1.0, float(np.nansum(np.abs(events["amount"].to_numpy().astype(float)))))


def agree(got: np.ndarray, wanted: np.ndarray, events: pa.Table) -> bool:
    close = np.abs(got - wanted) <= tolerance(events)
    return bool(np.all(close | (np.isnan(got) & np.isnan(wanted))))


@contextmanager
def store(view: FeatureView) -> Iterator[online.OnlineStore]:
    opened = online.OnlineStore(Path(":memory:"), [view])
    try:
        yield opened
    finally:
        opened.close()


def replayed(view: FeatureView, events: pa.Table, batch: int = 1) -> np.ndarray:
    """Read then push, a batch at a time, each batch delivered twice."""
    out = []
    with store(view) as s:
        for i in range(0, events.num_rows, batch):
            part = events.slice(i, batch)
            out.append(s.read(part, part["created_timestamp"].to_numpy()).values[0])
            s.push(Sale, part)
            s.push(Sale, part)
    return np.concatenate(out) if out else np.empty((0, len(view.aggregations)))


def offline_agrees(view: FeatureView, events: pa.Table) -> bool:
    return agree(offline.compute(view, events, events), reference.compute(view, events, events), events)


def online_agrees(view: FeatureView, events: pa.Table) -> bool:
    return agree(replayed(view, events), reference.compute(view, events, events), events)


@given(views, histories)
@settings(max_examples=500, deadline=None)
def test_offline_equals_the_reference(view: FeatureView, history: list[dict[str, Any]]) -> None:
    assert offline_agrees(view, log(history))


@given(views, histories)
@settings(max_examples=300, deadline=None)
def test_online_equals_the_reference(view: FeatureView, history: list[dict[str, Any]]) -> None:
    assert online_agrees(view, log(history))
