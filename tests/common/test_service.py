"""One micro-batch: each request gets its own answer, from what was known of it, whatever befalls its neighbours."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from common.features.online.sqlite import SqliteStore
from common.features.view import Aggregation, FeatureView
from common.schema import Event, Logged, arrow_schema, to_table
from common.serving.service import Service
from common.system import Answer, AnySystem, RowError, Rows, find, names


class Visit(Event):
    user: str


class Said(Answer):
    count: float
    by: str


VIEW = FeatureView(
    name="user", source=Visit, entity=("user",), aggregations=(Aggregation(name="n", kind="count", window=100),)
)


class Counter:
    """Says how often a user came before; cannot say it of a user named bad."""

    def rows(self, requests: Sequence[Visit]) -> Rows:
        return Rows(to_table(Visit, requests), np.arange(len(requests) + 1))

    def predict(self, requests: Sequence[Visit], rows: Rows, x: np.ndarray) -> Sequence[float | RowError]:
        return [RowError("a bad user") if r.user == "bad" else float(v[0]) for r, v in zip(requests, x, strict=True)]

    def save(self, folder: Path) -> None:
        raise AssertionError


def system() -> AnySystem:
    return replace(
        find("systems", names("systems")[0]),
        request=Visit, answer=Said, events=(Visit,), views=(VIEW,), on_demand=(),
        decide=lambda visit, count: Said(count=count, by="model"), degraded=(lambda visit: Said(count=0.0, by="rule"),),
    )  # fmt: skip


def visit(user: str, at: int) -> Visit:
    return Visit(event_id=f"{user}{at}", event_timestamp=at, user=user)


def test_a_row_that_cannot_be_scored_fails_alone_and_says_why(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "online.db", [VIEW])
    service: Service[Any, Any, Any] = Service(system(), Counter(), "v1", store)
    schema = pa.schema([*arrow_schema(Visit), *arrow_schema(Logged)])
    past = [{**visit("ann", at).model_dump(), "position": at, "created_timestamp": at} for at in (1, 2)]
    service.push({Visit: pa.Table.from_pylist(past, schema)}, 0, 2)
    replies = service.answer([visit("bob", 3), visit("bad", 3), visit("ann", 3)], np.array([3, 3, 3]))
    store.close()
    assert [(r.answer.count, r.answer.by, r.degraded) for r in replies] == [
        (0.0, "model", None),
        (0.0, "rule", "a bad user"),
        (2.0, "model", None),
    ]
    assert [r.features.tolist() for r in replies] == [[[0.0]], [[0.0]], [[2.0]]]
