"""The same features for a batch of requests, now. Agrees with reference.py on any history.

The log is the truth. The state says which position of it was applied, per view and entity: pushing an event
again does nothing, and what a crash took is pushed again from the log. So SQLite need not sync.
"""

import sqlite3
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.features.state import EMPTY, Plan, State
from common.features.view import Array, FeatureView, Times
from common.schema import Event

PARAMETERS = 30_000  # of one statement; SQLite allows 32,766
KNOWN = 50_000  # states kept in memory, about 1 kB each


@dataclass(frozen=True)
class Reading:
    """What the store knew: per view a block of values, and the log position that each row of it includes."""

    values: list[Array]  # (n, n_aggregations) each
    positions: list[NDArray[np.int64]]  # (n,) each; 0: nothing yet


class OnlineStore:
    """Online features in one SQLite file; threads and processes may share it.

    An entity's events must be pushed in the order of the log.
    """

    def __init__(self, path: Path, views: Sequence[FeatureView]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._plans = [Plan(view) for view in views]
        self._db = sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS state"
            " (id INTEGER PRIMARY KEY, key TEXT UNIQUE, position INTEGER, applied INTEGER, rows BLOB, cells BLOB)"
        )
        self._known: dict[
            str, tuple[int, State]
        ] = {}  # what was read or written last: true until another process writes
        self._version = -1
        self._lock = threading.Lock()

    def read(self, rows: pa.Table, as_of: Times) -> Reading:
        """The features of each row at its as_of, us, (n,); the rows need the entity columns."""
        keys = [plan.keys(rows) for plan in self._plans]
        with self._lock:
            known = self._look_up({key for of_view in keys for key in of_view})
        states = [[known[key][1] if key in known else EMPTY for key in of_view] for of_view in keys]
        return Reading(
            [plan.read(of_view, as_of) for plan, of_view in zip(self._plans, states, strict=True)],
            [np.array([state.position for state in of_view], np.int64) for of_view in states],
        )

    def push(self, source: type[Event], events: pa.Table) -> None:
        """Apply logged events of one kind; those that were applied before change nothing."""
        plans = [plan for plan in self._plans if plan.view.source is source]
        if not plans or not events.num_rows:
            return
        keys = [plan.keys(events) for plan in plans]
        with self._lock:
            self._push(plans, keys, events)

    def _push(self, plans: Sequence[Plan], keys: Sequence[Sequence[str]], events: pa.Table) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            known = self._look_up({key for of_view in keys for key in of_view})
            changed = {
                key: state
                for plan, of_view in zip(plans, keys, strict=True)
                for key, state in plan.push(of_view, events, {k: known[k][1] for k in of_view if k in known}).items()
            }
            self._db.executemany(
                "UPDATE state SET position = ?, applied = ?, rows = ?, cells = ? WHERE id = ?",
                [(*state, known[key][0]) for key, state in changed.items() if key in known],
            )
            if new := [(*state, key) for key, state in changed.items() if key not in known]:
                insert = "INSERT INTO state (position, applied, rows, cells, key) VALUES (?, ?, ?, ?, ?)"
                self._db.executemany(insert, new)
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._known.update((key, (known[key][0], state)) for key, state in changed.items() if key in known)

    def close(self) -> None:
        self._db.close()

    def _look_up(self, keys: Collection[str]) -> dict[str, tuple[int, State]]:
        """Row id and state of those keys that have one."""
        (version,) = self._db.execute("PRAGMA data_version").fetchone()  # changes when another connection commits
        if version != self._version or len(self._known) > KNOWN:
            self._known.clear()
            self._version = version
        missing = [key for key in keys if key not in self._known]
        for i in range(0, len(missing), PARAMETERS):
            some = missing[i : i + PARAMETERS]
            marks = "?" + ",?" * (len(some) - 1)
            for row, key, *state in self._db.execute(f"SELECT * FROM state WHERE key IN ({marks})", some):
                self._known[key] = row, State(*state)
        return {key: self._known[key] for key in keys if key in self._known}
