"""The specification: every feature as a plain fold over the log. Slow and obvious; the kernels must agree with it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from common.clock import SECOND
from common.features.view import Aggregation, Array, FeatureView

Row = Mapping[str, Any]


def compute(view: FeatureView, events: pa.Table, requests: pa.Table) -> Array:
    """The view's aggregations for each request, (n_requests, n_aggregations).

    Events need the columns of their schema, `position` and `created_timestamp`; requests need the
    entity columns, `position` and `created_timestamp`, which is their as_of.
    """
    log = sorted(events.to_pylist(), key=lambda e: int(e["position"]))
    return np.array(
        [
            [_value(a, _seen(view, a, log, request), request) for a in view.aggregations]
            for request in requests.to_pylist()
        ]
    ).reshape(requests.num_rows, len(view.aggregations))


def _seen(view: FeatureView, a: Aggregation, log: Sequence[Row], request: Row) -> list[Row]:
    """The events that count, oldest first; of two at the same time the one logged later comes last."""
    seen = [
        e
        for e in log
        if e["position"] < request["position"]
        and all(e[c] == request[c] for c in view.entity)
        and (a.column is None or is_there(e[a.column]))
        and e["event_timestamp"] + a.delay <= request["created_timestamp"] < _expiry(a, e["event_timestamp"])
    ]
    return sorted(seen, key=lambda e: int(e["event_timestamp"]))


def _expiry(a: Aggregation, event_timestamp: int) -> int:
    end = event_timestamp + a.delay + a.window
    return end if a.tile == 0 else -(-end // a.tile) * a.tile


def is_there(value: Any) -> bool:
    """A null, NaN or infinite value is not there: its event does not count."""
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _value(a: Aggregation, seen: Sequence[Row], request: Row) -> float:
    if a.kind == "count":
        return len(seen)
    if a.kind == "time_since":
        return (request["created_timestamp"] - seen[-1]["event_timestamp"]) / SECOND if seen else math.nan
    values = [e[str(a.column)] for e in seen]
    if a.kind == "distinct":
        return len(set(values))
    if a.kind == "sum":
        return math.fsum(values)
    if not values:
        return math.nan
    if a.kind == "min":
        return float(min(values))
    if a.kind == "max":
        return float(max(values))
    if a.kind == "last":
        return float(values[-1])
    mean = math.fsum(values) / len(values)
    if a.kind == "mean":
        return mean
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))  # std, ddof = 0
