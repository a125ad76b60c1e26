"""The truth: every event once, in the order of acknowledgement, durable before its sender hears of it."""

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from functools import partial
from os import fdatasync
from pathlib import Path
from typing import Protocol, Self, TypeAlias

import pyarrow as pa

from common.clock import MILLISECOND, SECOND, Clock, stopwatch
from common.data.database import Found, Values
from common.data.log.postgres import PostgresStorage
from common.data.log.rows import COPIED, END, NEWEST, checked, checksum, decode, encode
from common.data.log.sqlite import SqliteStorage, Sync
from common.errors import BadDefinition, BadRecord, Conflict, Damaged, OutOfOrder, Unavailable
from common.schema import Event, Logged, arrow_schema

LOOKUP = 1_000  # ids asked for in one statement
BATCH = 20_000  # events decoded at a time
GROUP = 10_000  # events made durable together, about
PATIENCE = 5 * MILLISECOND  # at most, with those who were answered last
PLACE = [pa.field(name, pa.int64(), nullable=False) for name in ("position", "created_timestamp")]


_Future: TypeAlias = Future[list[Logged]]


class Storage(Protocol):
    """Where the events lie. One writer at a time is inside a transaction, and a group is durable once it is settled."""

    notes: list[str]  # what was found at the start, and mended

    def was_replaced(self) -> bool: ...
    def transaction(self) -> AbstractContextManager[None]: ...
    def execute(self, statement: str, values: Values = ()) -> Found: ...
    def executemany(self, statement: str, rows: Sequence[Values]) -> None: ...
    def settle(self, position: int, created: int) -> None: ...
    def head(self) -> tuple[int, int]: ...
    def stream(self, statement: str, values: Values, size: int) -> Iterator[Found]: ...
    def check(self) -> None: ...
    def close(self) -> None: ...


def open_storage(path: Path, url: str | None, sync: Sync = fdatasync) -> Storage:
    """The SQLite file, or in PostgreSQL the tables that are named after its folder."""
    return SqliteStorage(path, sync) if url is None else PostgresStorage(url, path.parent.name)


def copy(source: Storage, target: Storage) -> str:
    """All events of one storage into another, which is empty, in one transaction; returns their digest.

    Raises Damaged at an event that is not what was acknowledged, Conflict when the target holds events.
    """
    if target.head()[0]:
        raise Conflict(f"log: must be empty to be copied into, it holds {target.head()[0]:,} events")
    found = hashlib.sha256()
    head, created = source.head()
    with target.transaction():
        for part in checked(source.stream(COPIED, (head,), BATCH), "log"):
            target.executemany("INSERT INTO header VALUES (?, ?, ?, ?, ?, ?)", [row[:-1] for row in part])
            target.executemany("INSERT INTO payload VALUES (?, ?)", [(row[0], row[-1]) for row in part])
            for row in part:
                found.update(repr(row).encode())
    target.settle(head, created)
    return found.hexdigest()


class _Call:
    """One call of append or submit, which is kept or refused as a whole."""

    __slots__ = ("answer", "bodies", "created", "done", "events", "future", "kinds")

    def __init__(
        self, events: Sequence[Event], kinds: Sequence[str], created: Sequence[int] | None, future: _Future | None
    ) -> None:
        self.events, self.kinds, self.created, self.future = events, kinds, created, future
        self.bodies = [encode(event) for event in events]
        self.answer: list[Logged] | Exception = []
        self.done = threading.Lock()  # held until there is an answer; a tenth of what a Future costs
        self.done.acquire()

    def finish(self, answer: list[Logged] | Exception) -> None:
        self.answer = answer
        self.done.release()
        if self.future is None:
            return
        if isinstance(answer, Exception):
            self.future.set_exception(answer)
        else:
            self.future.set_result(answer)


class EventLog:
    """An append-only log; threads and processes may share it.

    Calls that come while the disk works are made durable together, by one sync (group commit).
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        kinds: Sequence[type[Event]],
        *,
        url: str | None = None,
        sync: Sync = fdatasync,
    ) -> None:
        """In a SQLite file, or with a url in PostgreSQL, in tables named after the file's folder.

        `sync` makes the content of a file descriptor durable, or raises OSError. Raises BadDefinition for kinds that
        cannot be told apart or hold bytes, Damaged for a log that is not whole.
        """
        self._kinds = {kind.__name__: kind for kind in kinds}
        if len(self._kinds) != len(kinds):
            raise BadDefinition(f"kinds: names must differ, got {', '.join(kind.__name__ for kind in kinds)}")
        for kind in kinds:
            for column in arrow_schema(kind):
                if pa.types.is_binary(column.type):
                    raise BadDefinition(
                        f"{kind.__name__}.{column.name}: bytes lie beside the log, by digest, not in it"
                    )
        self._clock = clock
        self._open: Callable[[], Storage] = partial(open_storage, path, url, sync)
        self._storage = self._open()
        self._replaced: list[Storage] = []  # a reader may still be in the middle of one
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._submitting = threading.Lock()
        self._closed = False

    @property
    def notes(self) -> Sequence[str]:
        """What was found broken when the log was opened, and mended."""
        return self._storage.notes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """What was submitted is made durable first."""
        with self._submitting:
            if self._closed:
                return
            self._closed = True
            self._calls.put(None)
        if self._writer is not None:
            self._writer.join()
        for storage in (*self._replaced, self._storage):
            storage.close()

    def head(self) -> Logged:
        """The newest event's place; position 0 when there is none."""
        position, created = self._storage.head()
        return Logged(position=position, created_timestamp=created)

    def append(self, events: Sequence[Event], created: Sequence[int] | None = None) -> list[Logged]:
        """Make events durable, all or none, and say where each one is.

        An event that is already there keeps its place, and nothing changes. `created` is for events that were
        acknowledged elsewhere; otherwise the clock gives one time to all. Raises BadRecord for an event that the log
        does not hold or whose id has another event, OutOfOrder where `created` runs backwards, Unavailable when the
        storage cannot be written: then a retry is harmless, whatever became of this call.
        """
        if threading.current_thread() is self._writer:
            raise Unavailable("log: who is called when a future is done must not wait for the log: submit instead")
        call = self._submit(events, created, None)
        call.done.acquire()
        if isinstance(call.answer, Exception):
            raise call.answer
        return call.answer

    def submit(self, events: Sequence[Event], created: Sequence[int] | None = None) -> _Future:
        """As `append`, but do not wait: the future is done once the events are durable, or refused."""
        future: _Future = Future()
        self._submit(events, created, future)
        return future

    def _submit(self, events: Sequence[Event], created: Sequence[int] | None, future: _Future | None) -> _Call:
        if created is not None and len(created) != len(events):
            raise OutOfOrder(f"created: must have one time per event, got {len(created)} for {len(events)}")
        for i, at in enumerate(created or ()):
            if not isinstance(at, int) or not 0 <= at < END:
                raise OutOfOrder(f"created[{i}]: must be whole us, from 0 to 2**62, got {at!r}")
        call = _Call(events, [self._kind(event) for event in events], created, future)
        with self._submitting:  # nobody is left behind a writer that has gone
            if self._closed:
                raise Unavailable("log: it is closed")
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="event log", daemon=True)
                self._writer.start()
            if not self._writer.is_alive():
                raise Unavailable("log: its writer is gone; after a fork, open the log again")
            self._calls.put(call)
        return call

    def read(self, kind: type[Event], after: int = 0, until: int | None = None) -> pa.Table:
        """Events of a kind with after < position <= until, in order: its columns, `position`, `created_timestamp`.

        Raises BadRecord where an event stored by an earlier definition of the kind does not fit this one, Damaged
        where an event is not what was acknowledged.
        """
        if self._kinds.get(kind.__name__) is not kind:
            raise BadRecord(f"kind: must be one of {', '.join(self._kinds)}, got {kind.__name__}")
        schema = pa.schema([*arrow_schema(kind), *PLACE])
        head = self._storage.head()[0]  # what is behind it is not durable yet
        rows = self._storage.stream(
            "SELECT position, created_timestamp, checksum, body FROM header JOIN payload USING (position)"
            " WHERE position > ? AND position <= ? AND kind = ? ORDER BY position",
            (after, head if until is None else min(until, head), kind.__name__),
            BATCH,
        )
        batches = [schema.empty_table()]
        for part in rows:
            for at, when, written, body in part:
                if written != checksum(at, when, kind.__name__, body):
                    raise Damaged(f"log: {kind.__name__} at {at} is not what was acknowledged; restore a backup")
            position, created, _, bodies = zip(*part, strict=True)
            table = decode(kind, bodies)
            batches.append(pa.table([*table.columns, pa.array(position), pa.array(created)], schema))
        return pa.concat_tables(batches)

    def check(self) -> None:
        """Read every event; raises Damaged at the first that is not what was acknowledged."""
        self._storage.check()

    def _kind(self, event: Event) -> str:
        name = type(event).__name__
        if self._kinds.get(name) is not type(event):
            raise BadRecord(f"{event.event_id}: kind: must be one of {', '.join(self._kinds)}, got {name}")
        return name

    def _write(self) -> None:
        """The only thread that writes: gathers calls, makes them durable together, answers each."""
        expected, took, is_last = 1, 0, False
        while not is_last:
            calls, is_last = self._gather(expected, took)
            start = stopwatch()
            answers: Sequence[list[Logged] | Exception]
            try:
                answers = self._commit(calls) if calls else []
            except Exception as error:
                answers = [error] * len(calls)
            except BaseException as error:  # without its only writer, nobody would ever be answered again
                answers = [Unavailable(f"log: {error!r}; not acknowledged: retry")] * len(calls)
            took = min(stopwatch() - start, PATIENCE)
            expected = len(calls) + self._calls.qsize()
            for call, answer in zip(calls, answers, strict=True):
                with suppress(BaseException):  # of whoever wants to be called when a future is done
                    call.finish(answer)

    def _gather(self, expected: int, patience: int) -> tuple[list[_Call], bool]:
        """Those that wait, and those who were answered last, if they call again before `patience` us are over.

        Without that, the quickest of them would have a sync of its own, and all others wait for two. Also whether
        these are the last.
        """
        calls: list[_Call] = []
        events, deadline = 0, 0
        while events < GROUP:
            if calls and len(calls) >= expected and self._calls.empty():
                break
            try:
                call = self._calls.get(timeout=max(0, deadline - stopwatch()) / SECOND if calls else None)
            except queue.Empty:
                break
            if call is None:
                return calls, True
            if call.future is None or call.future.set_running_or_notify_cancel():
                deadline = deadline or stopwatch() + patience
                calls.append(call)
                events += len(call.events)
        return calls, False

    def _commit(self, calls: Sequence[_Call]) -> list[list[Logged] | Exception]:
        """One transaction and one sync for all; a call that must be refused leaves nothing, its neighbours stay."""
        if self._storage.was_replaced():
            self._replaced.append(self._storage)
            self._storage = self._open()
        answers: list[list[Logged] | Exception] = []
        new: dict[str, _Place] = {}
        with self._storage.transaction():
            known = self._known([event.event_id for call in calls for event in call.events])
            position, last = (self._storage.execute(NEWEST) or [(0, 0)])[0]
            now = self._clock.now()
            for call in calls:
                try:
                    placed, fresh = _place(call, known, position, last, now)
                except (BadRecord, OutOfOrder) as error:
                    answers.append(error)
                    continue
                if fresh:
                    known.update(fresh)
                    new.update(fresh)
                    position, last, *_ = next(reversed(fresh.values()))
                answers.append(placed)
            self._storage.executemany(
                "INSERT INTO header VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (at, event_id, kind, happened, created, checksum(at, created, kind, body))
                    for event_id, (at, created, kind, body, happened) in new.items()
                ],
            )
            self._storage.executemany("INSERT INTO payload VALUES (?, ?)", [(p[0], p[3]) for p in new.values()])
        self._storage.settle(position, last)
        return answers

    def _known(self, ids: Sequence[str]) -> "dict[str, _Place]":
        """Those that are there."""
        known: dict[str, _Place] = {}
        for i in range(0, len(ids), LOOKUP):
            some = ids[i : i + LOOKUP]
            query = (
                "SELECT event_id, position, created_timestamp, kind, body, event_timestamp"
                f" FROM header JOIN payload USING (position) WHERE event_id IN ({', '.join('?' * len(some))})"
            )
            for event_id, at, created, kind, body, happened in self._storage.execute(query, some):
                known[event_id] = (at, created, kind, body, happened)
        return known


_Place: TypeAlias = tuple[int, int, str, str, int]  # position, created_timestamp, kind, body, event_timestamp


def _place(
    call: _Call, known: Mapping[str, _Place], position: int, last: int, now: int
) -> tuple[list[Logged], dict[str, _Place]]:
    """Where each event of a call is, and those of them that are new."""
    placed: list[Logged] = []
    fresh: dict[str, _Place] = {}
    for i, (event, kind, body) in enumerate(zip(call.events, call.kinds, call.bodies, strict=True)):
        there = fresh.get(event.event_id) or known.get(event.event_id)
        if there is None:
            at = max(now, last) if call.created is None else call.created[i]
            if at < last:
                raise OutOfOrder(f"created[{i}]: must be >= {last}, the time of the event before it, got {at}")
            position, last = position + 1, at
            there = fresh[event.event_id] = (position, at, kind, body, event.event_timestamp)
        elif there[2:4] != (kind, body):
            raise BadRecord(
                f"event_id: {event.event_id!r} must stay the {there[2]} at position {there[0]},"
                f" got another {kind}: {body[:80]}"
            )
        placed.append(Logged(position=there[0], created_timestamp=there[1]))
    return placed, fresh
