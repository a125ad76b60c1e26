"""The feature store at the size of the public fraud benchmark: 1,754,155 payments of half a year.

Run: make bench, or python -m benchmarks.features [--json]. Redis is measured where MLSYS_REDIS_URL says, or a server
answers on this machine.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from common.clock import DAY, SimulatedClock
from common.data.log import EventLog
from common.errors import MissingExtra, Unavailable
from common.features import offline
from common.features.online import OnlineStore, catch_up, open_store
from common.features.online.sqlite import SqliteStore
from common.features.view import Aggregation, FeatureView
from common.schema import Event

ROWS, CUSTOMERS, TERMINALS, DAYS = 1_754_155, 4_990, 10_000, 183
FEAST = 73_000  # rows/s, Feast 0.67's point-in-time join of the latest values below, on a machine like this
HISTORY = 1_000_000  # events behind the online store
MICRO_BATCH = 16
CHUNK = 10_000  # events appended at a time


class Payment(Event):
    customer_id: int
    terminal_id: int
    amount: float
    fraud: int


class Profile(Event):
    """A version of what is known about an entity: ten numbers."""

    entity_id: int
    v0: float
    v1: float
    v2: float
    v3: float
    v4: float
    v5: float
    v6: float
    v7: float
    v8: float
    v9: float


def _view(name: str, entity: str, column: str, delay: int) -> FeatureView:
    """Count and mean over 1, 7 and 30 days."""
    return FeatureView(
        name=name,
        source=Payment,
        entity=(entity,),
        aggregations=tuple(
            Aggregation(name=f"{kind}_{w}d", kind=kind, window=w * DAY, delay=delay, column=c)
            for w in (1, 7, 30)
            for kind, c in (("count", None), ("mean", column))
        ),
    )


VIEWS = (_view("customer", "customer_id", "amount", 0), _view("terminal", "terminal_id", "fraud", 7 * DAY))


def payments(n: int = ROWS) -> pa.Table:
    """As many payments, customers and terminals as in the public set, evenly spread."""
    rng = np.random.default_rng(0)
    at = np.sort(rng.integers(0, DAYS * DAY, n))
    return pa.table({
        "event_timestamp": at, "created_timestamp": at, "position": np.arange(1, n + 1),
        "customer_id": rng.integers(0, CUSTOMERS, n), "terminal_id": rng.integers(0, TERMINALS, n),
        "amount": rng.lognormal(3.5, 0.8, n), "fraud": (rng.uniform(size=n) < 0.0084).astype(np.int64),
    })  # fmt: skip


def by_pandas(events: pa.Table) -> np.ndarray:
    """The same twelve aggregates as one writes them in pandas."""
    frame = events.select(["event_timestamp", "customer_id", "terminal_id", "amount", "fraud"]).to_pandas()
    frame["at"] = pd.to_datetime(frame["event_timestamp"], unit="us")
    out = []
    for entity, column, delay in (("customer_id", "amount", 0), ("terminal_id", "fraud", 7)):
        groups = frame.set_index("at").groupby(entity)[column]

        def rolling(days: int, groups: pd.core.groupby.SeriesGroupBy = groups) -> pd.DataFrame:
            return groups.rolling(f"{days}D").agg(["count", "sum"])

        recent = rolling(delay) if delay else None
        own = groups.apply(lambda s: s).to_numpy() if not delay else 0  # in the order of `rolling`
        for w in (1, 7, 30):
            found = rolling(delay + w)
            count = found["count"] - (recent["count"] if delay else 1)
            total = found["sum"] - (recent["sum"] if delay else own)
            out += [count.to_numpy(), (total / count.where(count > 0)).to_numpy()]
    return np.column_stack(out)


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """The best of several runs."""
    return min(_once(work) for _ in range(times))


def _once(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def windowed() -> dict[str, float]:
    events = payments()
    found = [np.nansum(offline.compute(view, events, events), axis=0) for view in VIEWS]
    np.testing.assert_allclose(np.concatenate(found), np.nansum(by_pandas(events), axis=0), rtol=1e-6)  # the same work
    ours = seconds(lambda: [offline.compute(view, events, events) for view in VIEWS], 2)
    plain = seconds(lambda: by_pandas(events), 2)
    return {
        "rows": events.num_rows,
        "seconds": ours,
        "pandas_seconds": plain,
        "times_pandas": plain / ours,
        "target_seconds": 12,
    }


def latest() -> dict[str, float]:
    """Ten latest values for 200,000 rows out of 50,000 entities with 4 versions each."""
    rng = np.random.default_rng(1)
    entities, versions, rows = 50_000, 4, 200_000
    at = np.sort(rng.integers(0, 100 * DAY, entities * versions + rows))
    is_row = np.zeros(len(at), bool)
    is_row[rng.permutation(len(at))[:rows]] = True
    position = np.arange(1, len(at) + 1)
    values = {f"v{i}": rng.normal(size=entities * versions) for i in range(10)}
    profiles = pa.table({
        "event_timestamp": at[~is_row], "created_timestamp": at[~is_row], "position": position[~is_row],
        "entity_id": np.tile(np.arange(entities), versions), **values,
    })  # fmt: skip
    requests = pa.table({
        "created_timestamp": at[is_row], "position": position[is_row], "entity_id": rng.integers(0, entities, rows),
    })  # fmt: skip
    view = FeatureView(
        name="profile", source=Profile, entity=("entity_id",),
        aggregations=tuple(Aggregation(name=v, kind="last", column=v, window=1000 * DAY) for v in values),
    )  # fmt: skip
    ours = seconds(lambda: offline.compute(view, profiles, requests), 5)
    left, right = requests.to_pandas(), profiles.to_pandas().drop(columns=["position", "event_timestamp"])
    plain = seconds(
        lambda: pd.merge_asof(left, right, on="created_timestamp", by="entity_id", allow_exact_matches=False), 3
    )
    return {
        "rows": rows, "seconds": ours, "rows_per_second": rows / ours, "times_feast": rows / ours / FEAST,
        "pandas_merge_asof_seconds": plain, "target_times_feast": 10, "aim_times_feast": 20,
    }  # fmt: skip


def online() -> dict[str, float]:
    """Twelve aggregates, read then pushed, one payment and sixteen at a time, with a million events behind them."""
    events = payments()
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "online.db", VIEWS)

        def materialise() -> None:
            store.push({Payment: events.slice(0, HISTORY)}, 0, HISTORY)
            store.flush()

        load = seconds(materialise)
        out = {"events": HISTORY, "materialise_seconds": load, "target_materialise_seconds": 20.0}
        at = HISTORY
        for batch, times in ((MICRO_BATCH, 1_500), (1, 5_000)):
            took = []
            for _ in range(times):
                part = events.slice(at, batch).combine_chunks()
                start = time.perf_counter()
                store.read(part, part["created_timestamp"].to_numpy(), at)
                store.push({Payment: part}, at, at + batch)
                at += batch
                took.append((time.perf_counter() - start) / batch * 1e6)
            out[f"batch_{batch}_us_per_event_p50"] = float(np.median(took))
            out[f"batch_{batch}_us_per_event_mean"] = float(np.mean(took))
        store.close()
    return out | {f"target_batch_{MICRO_BATCH}_us": 60.0, "target_batch_1_us_p50": 200.0}


def redis() -> dict[str, float] | None:
    """The same in Redis, sixteen at a time, behind a million events that it was given by the log; None: no server."""
    url = os.environ.get("MLSYS_REDIS_URL", "redis://127.0.0.1:6379/0")
    events = payments()
    with (
        tempfile.TemporaryDirectory() as folder,
        EventLog(Path(folder) / "log.db", SimulatedClock(0), [Payment]) as log,
    ):
        try:
            store = open_store(url, Path(folder), f"benchmark.{Path(folder).name}", VIEWS)
        except (MissingExtra, Unavailable) as error:
            print(f"redis is left out: {error}", file=sys.stderr)
            return None
        with closing(store):
            try:
                return _redis(store, log, events)
            finally:
                store.clear()


def _redis(store: OnlineStore, log: EventLog, events: pa.Table) -> dict[str, float]:
    columns = [name for name in Payment.model_fields if name != "event_id"]
    for start in range(0, HISTORY, CHUNK):
        part = events.slice(start, CHUNK).select(columns).to_pylist()
        log.append(
            [Payment.model_construct(event_id=str(start + i), **row) for i, row in enumerate(part)],
            [row["event_timestamp"] for row in part],
        )
    rebuild = seconds(lambda: catch_up(store, log))
    at, reads, pushes = HISTORY, [], []
    for _ in range(1_500):
        part = events.slice(at, MICRO_BATCH).combine_chunks()
        reads.append(seconds(lambda part=part, at=at: store.read(part, part["created_timestamp"].to_numpy(), at)))
        pushes.append(seconds(lambda part=part, at=at: store.push({Payment: part}, at, at + MICRO_BATCH)))
        at += MICRO_BATCH
    return {
        "events": HISTORY, "rebuild_seconds": rebuild, "target_rebuild_seconds": 30.0,
        f"read_{MICRO_BATCH}_us_p50": float(np.median(reads)) * 1e6, f"target_read_{MICRO_BATCH}_us_p50": 500.0,
        f"push_{MICRO_BATCH}_us_p50": float(np.median(pushes)) * 1e6,
    }  # fmt: skip


def main() -> None:
    found = {"windowed": windowed(), "latest": latest(), "online": online()}
    if in_redis := redis():
        found["redis"] = in_redis
    if "--json" in sys.argv:
        print(json.dumps(found, indent=2))
        return
    for name, figures in found.items():
        print(name)
        for key, value in figures.items():
            print(f"  {key:32} {value:14,.3f}")


if __name__ == "__main__":
    main()
