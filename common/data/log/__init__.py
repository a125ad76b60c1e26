"""The truth: every event once, in the order of acknowledgement, durable before its sender hears of it."""

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from os import fdatasync
from pathlib import Path
from typing import Protocol, Self, TypeAlias, TypeVar

import pyarrow as pa
from pydantic import ValidationError

from common.clock import MILLISECOND, SECOND, Clock, stopwatch
from common.data.database import Found, Values
from common.data.log.postgres import PostgresStorage
from common.data.log.rows import COPIED, END, NEWEST, checked, checksum, decode, encode
from common.data.log.sqlite import SqliteStorage, Sync
from common.errors import (
    BadDefinition,
    BadRecord,
    Conflict,
    Damaged,
    DeadlineExceeded,
    OutOfOrder,
    PlatformError,
    Unavailable,
)
from common.schema import Event, Logged, arrow_schema, explain

LOOKUP = 1_000  # ids asked for in one statement
BATCH = 20_000  # events decoded at a time
GROUP = 10_000  # events made durable together, about
PATIENCE = 5 * MILLISECOND  # at most, with those who were answered last
PLACE = [pa.field(name, pa.int64(), nullable=False) for name in ("position", "created_timestamp")]

K = TypeVar("K", bound=Event)
_Answer: TypeAlias = list[Logged] | PlatformError  # to one call

_Future: TypeAlias = Future[list[Logged]]


class Storage(Protocol):
    """Where the events lie. One writer at a time is inside a transaction, and a group is durable once it is settled."""

    notes: list[str]  # what was found at the start, and mended

    def was_replaced(self) -> bool: ...
    def transaction(self) -> AbstractContextManager[None]: ...
    def execute(self, statement: str, values: Values = ()) -> Found: ...
    def executemany(self, statement: str, rows: Sequence[Values]) -> None: ...
    def settle(self, position: int, created: int) -> None: ...
    def look(self, statement: str, values: Values) -> Found: ...
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


_Row: TypeAlias = tuple[str, str, int, str]  # event_id, kind, event_timestamp, body


@dataclass(frozen=True, slots=True)
class _Call:
    """Events that are kept or refused as a whole."""

    rows: Sequence[_Row]
    created: Sequence[int] | None = None


class _Turn:
    """Calls that one thread, or one future, waits for."""

    __slots__ = ("answer", "begun", "calls", "done", "future")

    def __init__(self, calls: Sequence[_Call], future: _Future | None) -> None:
        self.calls, self.future = calls, future
        self.answer: Sequence[_Answer] | Exception = []
        self.begun = threading.Lock()  # of who takes it first: the writer who begins, or the caller who gives up
        self.done = threading.Lock()  # held until there is an answer; a tenth of what a Future costs
        self.done.acquire()

    def begin(self) -> bool:
        """Whether anybody still waits."""
        if self.future is not None:
            return self.future.set_running_or_notify_cancel()
        return self.begun.acquire(blocking=False)

    def wait(self, timeout: float | None) -> Sequence[_Answer]:
        """`timeout` is in seconds."""
        if not self.done.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            if self.begun.acquire(blocking=False):
                self.calls = ()  # the writer drops it when it comes by; nobody knows when that will be
            raise DeadlineExceeded(
                f"log: no answer within {timeout} s; what was asked for may become durable all the same: retry"
            )
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def finish(self, answer: Sequence[_Answer] | Exception) -> None:
        self.answer = answer
        self.done.release()
        if self.future is None:
            return
        outcome = answer if isinstance(answer, Exception) else answer[0]
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


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
        self._turns: queue.SimpleQueue[_Turn | None] = queue.SimpleQueue()
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
            self._turns.put(None)
        if self._writer is not None:
            self._writer.join()
        for storage in (*self._replaced, self._storage):
            storage.close()

    def head(self) -> Logged:
        """The newest event's place; position 0 when there is none."""
        position, created = self._storage.head()
        return Logged(position=position, created_timestamp=created)

    def append(
        self, events: Sequence[Event], created: Sequence[int] | None = None, *, timeout: float | None = None
    ) -> list[Logged]:
        """Make events durable, all or none, and say where each one is.

        An event that is already there keeps its place, and nothing changes. `created` is for events that were
        acknowledged elsewhere; otherwise the clock gives one time to all. Raises BadRecord for an event that the log
        does not hold or whose id has another event, OutOfOrder where `created` runs backwards, Unavailable when the
        storage cannot be written, DeadlineExceeded when there is no answer within `timeout` seconds. After the last
        two a retry is harmless, whatever became of this call: it may be durable, or still become so, unless the
        writer had not begun it when the time was over: then it is dropped.
        """
        (answer,) = self._wait([self._call(events, created)], timeout)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def append_each(
        self, calls: Sequence[Sequence[Event]], *, timeout: float | None = None
    ) -> list[list[Logged] | PlatformError]:
        """As `append` of each, made durable together; where one is refused, its error stands in its place.

        Raises Unavailable and DeadlineExceeded as `append` does, for all of them.
        """
        prepared: list[_Call | BadRecord] = []
        for events in calls:
            try:
                prepared.append(self._call(events, None))
            except BadRecord as error:
                prepared.append(error)
        answers = iter(self._wait([call for call in prepared if isinstance(call, _Call)], timeout))
        return [next(answers) if isinstance(call, _Call) else call for call in prepared]

    def submit(self, events: Sequence[Event], created: Sequence[int] | None = None) -> _Future:
        """As `append`, but do not wait: the future is done once the events are durable, or refused."""
        future: _Future = Future()
        self._submit(_Turn([self._call(events, created)], future))
        return future

    def _call(self, events: Sequence[Event], created: Sequence[int] | None) -> _Call:
        if created is not None and len(created) != len(events):
            raise OutOfOrder(f"created: must have one time per event, got {len(created)} for {len(events)}")
        for i, at in enumerate(created or ()):
            if not isinstance(at, int) or not 0 <= at < END:
                raise OutOfOrder(f"created[{i}]: must be whole us, from 0 to 2**62, got {at!r}")
        rows = [(event.event_id, self._kind(event), event.event_timestamp, encode(event)) for event in events]
        return _Call(rows, created)

    def _wait(self, calls: Sequence[_Call], timeout: float | None) -> Sequence[_Answer]:
        if threading.current_thread() is self._writer:
            raise Unavailable("log: who is called when a future is done must not wait for the log: submit instead")
        turn = _Turn(calls, None)
        self._submit(turn)
        return turn.wait(timeout)

    def _submit(self, turn: _Turn) -> None:
        with self._submitting:  # nobody is left behind a writer that has gone
            if self._closed:
                raise Unavailable("log: it is closed")
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="event log", daemon=True)
                self._writer.start()
            if not self._writer.is_alive():
                raise Unavailable("log: its writer is gone; after a fork, open the log again")
            self._turns.put(turn)

    def find(self, kind: type[K], ids: Sequence[str]) -> dict[str, K]:
        """Those events of a kind that are there, by event_id, over a connection that no writer waits for.

        Raises BadRecord and Damaged as `read` does.
        """
        self._check_kind(kind)
        storage = self._storage
        head = storage.head()[0]  # what is behind it is not durable yet
        found: dict[str, K] = {}
        for i in range(0, len(ids), LOOKUP):
            some = ids[i : i + LOOKUP]
            rows = storage.look(
                "SELECT event_id, position, created_timestamp, checksum, body FROM header JOIN payload USING (position)"
                f" WHERE event_id IN ({', '.join('?' * len(some))}) AND kind = ? AND position <= ?",
                [*some, kind.__name__, head],
            )
            for event_id, *row in rows:
                body = _verified(kind, *row)
                try:
                    found[event_id] = kind.model_validate_json(body, extra="ignore")  # as read: a column may be dropped
                except ValidationError as error:
                    raise BadRecord(explain(kind, error)) from None
        return found

    def read(self, kind: type[Event], after: int = 0, until: int | None = None) -> pa.Table:
        """Events of a kind with after < position <= until, in order: its columns, `position`, `created_timestamp`.

        Raises BadRecord where an event stored by an earlier definition of the kind does not fit this one, Damaged
        where an event is not what was acknowledged.
        """
        self._check_kind(kind)
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
            position, created, _, _ = zip(*part, strict=True)
            table = decode(kind, [_verified(kind, *row) for row in part])
            batches.append(pa.table([*table.columns, pa.array(position), pa.array(created)], schema))
        return pa.concat_tables(batches)

    def check(self) -> None:
        """Read every event; raises Damaged at the first that is not what was acknowledged."""
        self._storage.check()

    def _check_kind(self, kind: type[Event]) -> None:
        if self._kinds.get(kind.__name__) is not kind:
            raise BadRecord(f"kind: must be one of {', '.join(self._kinds)}, got {kind.__name__}")

    def _kind(self, event: Event) -> str:
        name = type(event).__name__
        if self._kinds.get(name) is not type(event):
            raise BadRecord(f"{event.event_id}: kind: must be one of {', '.join(self._kinds)}, got {name}")
        return name

    def _write(self) -> None:
        """The only thread that writes: gathers calls, makes them durable together, answers each."""
        expected, took, is_last = 1, 0, False
        while not is_last:
            turns, is_last = self._gather(expected, took)
            calls = [call for turn in turns for call in turn.calls]
            start = stopwatch()
            answers: Sequence[_Answer] = []
            failed: Exception | None = None
            try:
                answers = self._commit(calls) if calls else []
            except Exception as error:
                failed = error
            except BaseException as error:  # without its only writer, nobody would ever be answered again
                failed = Unavailable(f"log: {error!r}; not acknowledged: retry")
            took = min(stopwatch() - start, PATIENCE)
            expected = len(turns) + self._turns.qsize()
            done = 0
            for turn in turns:
                start_of, done = done, done + len(turn.calls)
                with suppress(BaseException):  # of whoever wants to be called when a future is done
                    turn.finish(failed or answers[start_of:done])

    def _gather(self, expected: int, patience: int) -> tuple[list[_Turn], bool]:
        """Those that wait, and those who were answered last, if they call again before `patience` us are over.

        Without that, the quickest of them would have a sync of its own, and all others wait for two. Also whether
        these are the last.
        """
        turns: list[_Turn] = []
        events, deadline = 0, 0
        while events < GROUP:
            if turns and len(turns) >= expected and self._turns.empty():
                break
            try:
                turn = self._turns.get(timeout=max(0, deadline - stopwatch()) / SECOND if turns else None)
            except queue.Empty:
                break
            if turn is None:
                return turns, True
            if turn.begin():
                deadline = deadline or stopwatch() + patience
                turns.append(turn)
                events += sum(len(call.rows) for call in turn.calls)
        return turns, False

    def _commit(self, calls: Sequence[_Call]) -> list[_Answer]:
        """One transaction and one sync for all; a call that must be refused leaves nothing, its neighbours stay."""
        if self._storage.was_replaced():
            self._replaced.append(self._storage)
            self._storage = self._open()
        with self._storage.transaction():
            newest: tuple[int, int] = (self._storage.execute(NEWEST) or [(0, 0)])[0]
            now = self._clock.now()
            answers, new = _place_all(calls, {}, newest, now)
            # nearly always all of them are new: they are looked up only if that turns out to be wrong
            if not self._inserted(new, newest[0]) or any(isinstance(answer, Exception) for answer in answers):
                self._storage.execute("DELETE FROM header WHERE position > ?", [newest[0]])
                answers, new = _place_all(
                    calls, self._known([row[0] for call in calls for row in call.rows]), newest, now
                )
                self._inserted(new, newest[0])
            self._storage.executemany("INSERT INTO payload VALUES (?, ?)", [(p[0], p[3]) for p in new.values()])
        self._storage.settle(*(next(reversed(new.values()))[:2] if new else newest))
        return answers

    def _inserted(self, new: "Mapping[str, _Place]", position: int) -> bool:
        """Whether none of their ids was there: no other header is behind this position."""
        self._storage.executemany(
            "INSERT INTO header VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING",
            [
                (at, event_id, kind, happened, created, checksum(at, created, kind, body))
                for event_id, (at, created, kind, body, happened) in new.items()
            ],
        )
        found = self._storage.execute("SELECT count(*) FROM header WHERE position > ?", [position])
        return found == [(len(new),)]

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


def _verified(kind: type[Event], position: int, created: int, written: int, body: str) -> str:
    """The body; raises Damaged where it is not what was acknowledged."""
    if written != checksum(position, created, kind.__name__, body):
        raise Damaged(f"log: {kind.__name__} at {position} is not what was acknowledged; restore a backup")
    return body


def _place_all(
    calls: Sequence[_Call], known: dict[str, _Place], newest: tuple[int, int], now: int
) -> tuple[list[_Answer], dict[str, _Place]]:
    """The answer to each call, and where each new event goes, in order; they are added to those known."""
    answers: list[_Answer] = []
    new: dict[str, _Place] = {}
    position, last = newest
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
    return answers, new


def _place(
    call: _Call, known: Mapping[str, _Place], position: int, last: int, now: int
) -> tuple[list[Logged], dict[str, _Place]]:
    """Where each event of a call is, and those of them that are new."""
    placed: list[Logged] = []
    fresh: dict[str, _Place] = {}
    for i, (event_id, kind, happened, body) in enumerate(call.rows):
        there = fresh.get(event_id) or known.get(event_id)
        if there is None:
            at = max(now, last) if call.created is None else call.created[i]
            if at < last:
                raise OutOfOrder(f"created[{i}]: must be >= {last}, the time of the event before it, got {at}")
            position, last = position + 1, at
            there = fresh[event_id] = (position, at, kind, body, happened)
        elif there[2:4] != (kind, body):
            raise BadRecord(
                f"event_id: {event_id!r} must stay the {there[2]} at position {there[0]},"
                f" got another {kind}: {body[:80]}"
            )
        placed.append(Logged(position=there[0], created_timestamp=there[1]))
    return placed, fresh
