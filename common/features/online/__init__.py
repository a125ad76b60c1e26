"""The same features for a batch of requests, now. Agrees with reference.py on any history.

The log is the truth, a store is a view of it. Its head is the position of the log through which every event of every
view is in the states, and it moves in one step with them. So a store that lost something, or everything, cannot pass
for a fresh one: its head says how old it is, and what is missing is pushed again from the log.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from common.data.log import EventLog
from common.errors import BadDefinition, MissingExtra, Stale
from common.features.state import Arrived, Plan
from common.features.view import Array, FeatureView, Times, runs
from common.schema import Event

SPAN = 1_000_000  # positions of the log that are pushed at a time: all that changed is written each time
END = 2**62  # the head of a store without views: it misses nothing


@dataclass(frozen=True)
class Reading:
    """What the store knew: per view a block of values, which are exactly those of the log through its head."""

    values: list[Array]  # (n, n_aggregations) each
    heads: tuple[int, ...]  # of each view: the events through this log position are in its values, and no others

    @property
    def head(self) -> int:
        """Every event through this log position is in the values, for some views later ones as well."""
        return min(self.heads, default=END)


class OnlineStore(Protocol):
    """States by view and entity. Threads, processes and stores for other views may share what lies beneath."""

    kinds: frozenset[type[Event]]  # the sources of its views
    notes: Sequence[str]  # what was found damaged, and removed
    is_remote: bool  # a call may hang, as the network does

    def head(self) -> int:
        """The log position through which all events are in the states; 0: none, or they were lost."""

    def read(self, rows: pa.Table, as_of: Times, at_least: int = 0) -> Reading:
        """The features of each row at its as_of, us, (n,); the rows need the entity columns.

        Raises Stale for a head < at_least, Unavailable.
        """

    def push(self, logged: Mapping[type[Event], pa.Table], after: int, until: int) -> None:
        """Apply the logged events with after < position <= until, of all kinds; the head is then at least `until`.

        What was applied before changes nothing. Raises Stale for a head < after, since what lies between would be
        lost, OutOfOrder for events that are not in the order of the log, Unavailable.
        """

    def clear(self) -> None:
        """Forget every state, also those for other definitions of views: for an erasure, or another log."""

    def close(self) -> None: ...


def read(store: OnlineStore, entities: Sequence[str], rows: pa.Table, as_of: Times, at_least: int = 0) -> Reading:
    """As the store does; rows that follow each other with equal entities and times, as the days of a forecast, are
    read once. `entities`: the columns of all its views."""
    first, of = runs([pa.chunked_array([as_of]), *(rows[name] for name in entities)])
    if len(first) == len(of):
        return store.read(rows, as_of, at_least)
    found = store.read(rows.take(pa.array(first)), as_of[first], at_least)
    return Reading([block[of] for block in found.values], found.heads)


def open_store(url: str | None, path: Path, name: str, views: Sequence[FeatureView]) -> OnlineStore:
    """Redis where a url is given, its keys under the name; otherwise a file."""
    if url is None:
        from common.features.online.sqlite import SqliteStore

        return SqliteStore(path, views)
    try:
        from common.features.online.redis import RedisStore
    except ModuleNotFoundError as error:
        raise MissingExtra(f"MLSYS_REDIS_URL: needs {error.name}; install it with: pip install -e '.[redis]'") from None
    return RedisStore(url, name, views)


def catch_up(store: OnlineStore, log: EventLog) -> int:
    """Push what the log holds behind the store's head, in spans that fit into memory, and return the new head.

    A store that knows more than the log belongs to another one, and is cleared. It cannot tell a log that has
    outgrown the one before: clear the store when a log is restored or erased from.
    """
    head = store.head()  # before the log's: others may append and push meanwhile
    end = log.head().position
    if not store.kinds:
        return head
    if head > end:
        store.clear()
    while (head := store.head()) < end:
        until = min(head + SPAN, end)
        store.push({kind: log.read(kind, head, until) for kind in store.kinds}, head, until)
    return head


class Arrivals(NamedTuple):
    """Events on their way into one view."""

    plan: Plan
    keys: list[str]
    events: Arrived


def arrivals(plans: Sequence[Plan], logged: Mapping[type[Event], pa.Table], until: int) -> list[Arrivals]:
    """What a push brings for each view; raises BadDefinition where nothing is said of a kind."""
    arrived: dict[type[Event], Arrived] = {}
    out = []
    for plan in plans:
        kind = plan.view.source
        if kind not in logged:
            raise BadDefinition(f"logged: must have a table of every source of the views, got none of {kind.__name__}")
        events = arrived.get(kind)
        if events is None:
            events = Arrived(logged[kind])
            if events.position and events.position[-1] > until:
                events = Arrived(events.table.filter(pc.less_equal(events.table["position"], until)))
            arrived[kind] = events
        out.append(Arrivals(plan, plan.keys(events.entities), events))
    return out


def require(head: int, at_least: int) -> None:
    if head < at_least:
        raise Stale(f"head of the online features: must be >= {at_least}, got {head}: catch up from the log")
