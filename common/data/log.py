"""The truth: every event once, in the order of acknowledgement, durable before its sender hears of it."""

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self

import pyarrow as pa
from pyarrow import json as arrow_json
from pydantic_core import to_json

from common.clock import Clock
from common.errors import BadDefinition, BadRecord, OutOfOrder
from common.schema import Event, Logged, arrow_schema

# Header and payload are stored apart, so that a payload can be erased and its event still be known to have happened.
TABLES = """
CREATE TABLE IF NOT EXISTS header (
    position INTEGER PRIMARY KEY,
    event_id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    event_timestamp INTEGER NOT NULL,
    created_timestamp INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS payload (position INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;
"""
LOOKUP = 1_000  # ids asked for in one statement
BATCH = 20_000  # events decoded at a time
BLOCK = 1 << 20  # bytes parsed at a time, as long as an event fits
PLACE = [pa.field(name, pa.int64(), nullable=False) for name in ("position", "created_timestamp")]


class EventLog:
    """An append-only log in one SQLite file; threads and processes may share it."""

    def __init__(self, path: Path, clock: Clock, kinds: Sequence[type[Event]]) -> None:
        """Raises BadDefinition for kinds that cannot be told apart or hold bytes."""
        self._kinds = {kind.__name__: kind for kind in kinds}
        if len(self._kinds) != len(kinds):
            raise BadDefinition(f"kinds: names must differ, got {', '.join(kind.__name__ for kind in kinds)}")
        for kind in kinds:
            for field in arrow_schema(kind):
                if pa.types.is_binary(field.type):
                    raise BadDefinition(f"{kind.__name__}.{field.name}: bytes lie beside the log, by digest, not in it")
        self._path, self._clock = path, clock
        self._lock = threading.Lock()
        self._db = connect(path, TABLES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def head(self) -> Logged:
        """The newest event's place; position 0 when there is none."""
        with self._lock:
            return self._head()

    def append(self, events: Sequence[Event], created: Sequence[int] | None = None) -> list[Logged]:
        """Make events durable, all or none, and say where each one is.

        An event that is already there keeps its place, and nothing changes. `created` is for events that were
        acknowledged elsewhere; otherwise the clock gives one time to all. Raises BadRecord for an event that the log
        does not hold or whose id has another event, OutOfOrder where `created` runs backwards.
        """
        if created is not None and len(created) != len(events):
            raise OutOfOrder(f"created: must have one time per event, got {len(created)} for {len(events)}")
        kinds = [self._kind(event) for event in events]
        bodies = [_body(event) for event in events]
        with self._lock, transaction(self._db) as db:
            known = self._known([event.event_id for event in events])
            head = self._head()
            position, last = head.position, head.created_timestamp
            now = max(self._clock.now(), last)
            headers, payloads, logged = [], [], []
            for i, (event, kind, body) in enumerate(zip(events, kinds, bodies, strict=True)):
                there = known.get(event.event_id)
                if there is None:
                    at = now if created is None else created[i]
                    if at < last:
                        raise OutOfOrder(f"created[{i}]: must be >= {last}, the time of the event before it, got {at}")
                    position, last = position + 1, at
                    there = known[event.event_id] = (position, at, kind, body)
                    headers.append((position, event.event_id, kind, event.event_timestamp, at))
                    payloads.append((position, body))
                elif there[2:] != (kind, body):
                    raise BadRecord(
                        f"event_id: {event.event_id!r} must stay the {there[2]} at position {there[0]}, "
                        f"got another {kind}: {body[:80]}"
                    )
                logged.append(Logged(position=there[0], created_timestamp=there[1]))
            db.executemany("INSERT INTO header VALUES (?, ?, ?, ?, ?)", headers)
            db.executemany("INSERT INTO payload VALUES (?, ?)", payloads)
        return logged

    def read(self, kind: type[Event], after: int = 0, until: int | None = None) -> pa.Table:
        """Events of a kind with after < position <= until, in order: its columns, `position`, `created_timestamp`.

        Raises BadRecord where an event stored by an earlier definition of the kind does not fit this one.
        """
        if self._kinds.get(kind.__name__) is not kind:
            raise BadRecord(f"kind: must be one of {', '.join(self._kinds)}, got {kind.__name__}")
        schema = pa.schema([*arrow_schema(kind), *PLACE])
        batches = [schema.empty_table()]
        with closing(connect(self._path)) as db:  # a connection of its own: a long read holds up no append
            rows = db.execute(
                "SELECT position, created_timestamp, body FROM header JOIN payload USING (position)"
                " WHERE position > ? AND position <= ? AND kind = ? ORDER BY position",
                (after, 2**62 if until is None else until, kind.__name__),
            )
            while batch := rows.fetchmany(BATCH):
                position, created, bodies = zip(*batch, strict=True)
                table = _decode(kind, bodies)
                batches.append(pa.table([*table.columns, pa.array(position), pa.array(created)], schema))
        return pa.concat_tables(batches)

    def _kind(self, event: Event) -> str:
        name = type(event).__name__
        if self._kinds.get(name) is not type(event):
            raise BadRecord(f"{event.event_id}: kind: must be one of {', '.join(self._kinds)}, got {name}")
        return name

    def _head(self) -> Logged:
        newest = "SELECT position, created_timestamp FROM header ORDER BY position DESC LIMIT 1"
        position, created = self._db.execute(newest).fetchone() or (0, 0)
        return Logged(position=position, created_timestamp=created)

    def _known(self, ids: Sequence[str]) -> dict[str, tuple[int, int, str, str]]:
        """Those that are there: position, created_timestamp, kind, body."""
        known = {}
        for i in range(0, len(ids), LOOKUP):
            some = ids[i : i + LOOKUP]
            query = (
                "SELECT event_id, position, created_timestamp, kind, body FROM header JOIN payload USING (position)"
                f" WHERE event_id IN ({', '.join('?' * len(some))})"
            )
            known.update({event_id: (*there,) for event_id, *there in self._db.execute(query, some)})
        return known


def _body(event: Event) -> str:
    body = to_json(event).decode()
    if '"NaN"' in body or 'Infinity"' in body:  # a float column is read faster when it holds no strings
        return json.dumps(event.model_dump(), separators=(",", ":"), ensure_ascii=False)
    return body


def _decode(kind: type[Event], bodies: Sequence[str]) -> pa.Table:
    columns = arrow_schema(kind)
    block = max(BLOCK, 4 * max(map(len, bodies)) + 1)  # bytes; UTF-8 needs at most 4 per character
    lenient = pa.schema([field.with_nullable(True) for field in columns])  # so that what is absent can be named
    try:
        table = arrow_json.read_json(
            pa.BufferReader("\n".join(bodies).encode()),
            arrow_json.ReadOptions(block_size=block),
            arrow_json.ParseOptions(explicit_schema=lenient, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid as error:
        raise BadRecord(f"{kind.__name__}: an event of this log does not fit: {error}") from None
    for field in columns:
        if not field.nullable and table[field.name].null_count:
            raise BadRecord(f"{kind.__name__}.{field.name}: required, but absent in an event of this log")
    return table


def connect(path: Path, tables: str = "") -> sqlite3.Connection:
    """A SQLite file whose committed transactions survive kill -9 and power loss; waits for other writers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)  # timeout in s
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA cache_size = -65536")  # KiB; ids come in no order, so their index is written all over
    db.executescript(tables)
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All or nothing, and one writer at a time; durable on leaving."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite has already taken back one that found the disk full
            db.execute("ROLLBACK")
        raise
