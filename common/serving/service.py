"""One micro-batch: features, prediction, decision. No HTTP in it, so a simulation can use it too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
import pyarrow as pa

from common.features.online import OnlineStore
from common.features.view import Array, Times, assemble
from common.schema import Event
from common.system import A, Model, P, Q, RowError, System


@dataclass(frozen=True)
class Reply(Generic[A]):
    answer: A
    features: Array  # (rows of the request, n_features) that it was based on
    degraded: str | None  # why it is less than it could be


class Service(Generic[Q, P, A]):
    """A version and the features it reads. The caller logs what it answers, then pushes what was logged."""

    def __init__(self, system: System[Q, P, A], model: Model[Q, P], version: str, store: OnlineStore) -> None:
        self.system, self.model, self.version, self.store = system, model, version, store

    def answer(self, requests: Sequence[Q], as_of: Times, at_least: int = 0) -> list[Reply[A]]:
        """An answer for each request; one that cannot be scored gets the first degraded answer, and says why.

        Raises Stale where the features do not reach the log position `at_least`, Unavailable.
        """
        rows = self.model.rows(requests)
        x = self.features(rows.columns, np.repeat(as_of, np.diff(rows.offsets)), at_least)
        replies = []
        for i, (request, p) in enumerate(zip(requests, self.model.predict(requests, rows, x), strict=True)):
            seen = x[rows.offsets[i] : rows.offsets[i + 1]]
            if isinstance(p, RowError):
                replies.append(Reply(self.system.degraded[0](request), seen, p.reason))
            else:
                replies.append(Reply(self.system.decide(request, p), seen, None))
        return replies

    def features(self, rows: pa.Table, as_of: Times, at_least: int = 0) -> Array:
        """(n_rows, n_features) as the store knows them now; raises Stale, Unavailable."""
        values = self.store.read(rows, as_of, at_least).values
        return assemble(self.system.request, self.system.views, self.system.on_demand, rows, values)

    def push(self, logged: Mapping[type[Event], pa.Table], after: int, until: int) -> None:
        """What the log holds between two positions, by kind, becomes part of the features; raises as a store does."""
        self.store.push(logged, after, until)


AnyService = Service[Any, Any, Any]
