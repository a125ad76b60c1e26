"""Online features in one SQLite file."""

import fcntl
import sqlite3
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from common.errors import Damaged, PlatformError, Stale, Unavailable
from common.features.online import END, Reading, arrivals, require
from common.features.state import SEPARATOR, Entities, Plan, Reader, State, checksum
from common.features.view import FeatureView, Times
from common.schema import Event

VERSION = "PRAGMA data_version"  # changes when another connection commits
TABLES = """
CREATE TABLE IF NOT EXISTS head (
    view TEXT PRIMARY KEY, checksum INTEGER NOT NULL, body BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, checksum INTEGER NOT NULL, body BLOB NOT NULL
) STRICT;
"""
WRITE = """
INSERT INTO state (key, checksum, body) VALUES (?, ?, ?)
ON CONFLICT (key) DO UPDATE SET checksum = excluded.checksum, body = excluded.body
"""
MOVE = """
INSERT INTO head VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET checksum = excluded.checksum, body = excluded.body
"""
PARAMETERS = 30_000  # of one statement; SQLite allows 32,766
KNOWN = 50_000  # states kept in memory, about 1 kB each; as many again may wait to be written
LAG = 1.0  # s, that they wait
HEAD = struct.Struct("<qq")
PASSING = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL,
}  # fmt: skip


class _Head(NamedTuple):
    """Of one view, in the file."""

    position: int = 0
    total: int = 0  # of the checksums of its states


class _View:
    """What this process knows of a view: states of exactly the events through `head`.

    In one life of the file (from one clear to the next) its heads only rise, from one moment of the same log to a
    later one. `waiting` and `leaving` hold every entity that got an event in (base, head], and base <= file <= head
    whenever `known` is added to. So an entity that is in neither got none in (file, head]: its state in the file is
    also its state at `head`. And to write all that wait over any file with base <= file < head makes it the file of
    `head`, whoever wrote what lies between.
    """

    def __init__(self, plan: Plan, head: int) -> None:
        self.plan, self.head = plan, head
        self.base = head  # a head that the file had, since when all changes are waiting or leaving
        self.known: dict[str, State] = {}
        self.waiting: dict[str, State] = {}  # known, to be written
        self.leaving: dict[str, State] = {}  # known, being written


class _Batch(NamedTuple):
    """What a view has to write."""

    view: _View
    base: int
    head: int
    states: Mapping[str, State]


class SqliteStore:
    """Threads, processes and stores for other views may share the file.

    The log can make it again, so SQLite need not sync, and a push changes memory only. What changed is written behind,
    within about a second, with the heads and in one transaction: by a thread, by `flush`, and at the end by `close`.
    Until then no other process sees it; a process that is killed leaves a file that is that much older and says so.
    The whole file is read whenever it is opened: beside a view's head lies the sum of its states' checksums, so that
    two sound halves of different moments, as a power loss leaves them, do not pass for one. A damaged file is
    removed, `notes` say so, and the head is 0.
    """

    is_remote = False

    def __init__(self, path: Path, views: Sequence[FeatureView], lag: float = LAG) -> None:
        """`lag`, s, is how long states wait; raises Unavailable where the file can be neither used nor removed."""
        self.kinds = frozenset(view.source for view in views)
        self.notes: Sequence[str] = []
        self._path, self._plans = path, [Plan(view) for view in views]
        self._reader = Reader(self._plans)
        self._lock = threading.Lock()
        self._flushing = threading.Lock()  # is taken before the other one
        self._retired: list[sqlite3.Connection] = []  # writers of files that were given up, maybe still at work
        self._open()
        self._closed = threading.Event()
        self._lag = lag
        self._behind = threading.Thread(target=self._write_behind, name="online features", daemon=True)
        self._behind.start()

    def head(self) -> int:
        with self._lock, self._guarded():
            self._look_up([[] for _ in self._plans])
            return self._head()

    def read(self, rows: pa.Table, as_of: Times, at_least: int = 0) -> Reading:
        entities = Entities(rows)
        keys = [plan.keys(entities) for plan in self._plans]
        with self._lock, self._guarded():
            self._look_up(keys)
            require(self._head(), at_least)
            heads = tuple(view.head for view in self._views)
            known = [view.known for view in self._views]
            states = [[of_view[key] for key in asked] for of_view, asked in zip(known, keys, strict=True)]
            self._trim()
        return Reading(self._reader.read(states, as_of), heads)

    def push(self, logged: Mapping[type[Event], pa.Table], after: int, until: int) -> None:
        coming = arrivals(self._plans, logged, until)
        self._bound()
        with self._lock, self._guarded():
            self._look_up([part.keys for part in coming])
            require(self._head(), after)
            changes = [
                (view, view.plan.push(part.keys, part.events, view.known))
                for view, part in zip(self._views, coming, strict=True)
                if view.head < until
            ]
            for view, changed in changes:
                view.known.update(changed)
                view.waiting.update(changed)
                view.head = until
            self._trim()
        self._bound()

    def flush(self) -> None:
        """Write what was pushed, so that other processes see it; what cannot be written goes on waiting.

        Raises Unavailable, Stale for a file that was found damaged.
        """
        with self._flushing:
            with self._lock, self._guarded():
                while self._retired:
                    self._retired.pop().close()
                batches = []
                for view in self._views:
                    if view.head > view.base:
                        view.leaving |= view.waiting  # what failed to leave is still there
                        view.waiting = {}
                        batches.append(_Batch(view, view.base, view.head, view.leaving))
                db, life = self._writer, self._life
            if not batches:
                return
            failed: Exception | None = None
            try:
                _write(db, life, batches)  # without the lock: reads and pushes go on
            except Exception as error:
                failed = error
            with self._lock, self._guarded():
                if failed:
                    raise failed
                for view, _, head, _ in batches:  # one that is not of self._views any more was given up meanwhile
                    view.base, view.leaving = max(view.base, head), {}
                self._look_up([[] for _ in self._plans])

    def clear(self) -> None:
        with self._flushing, self._lock, self._guarded():
            self._db.execute("PRAGMA secure_delete = ON")  # what is forgotten does not stay in free pages
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM state")
            self._db.execute("DELETE FROM head")
            self._db.execute(f"PRAGMA user_version = {_life(self._db) % (2**31 - 1) + 1}")
            self._db.execute("COMMIT")
            self._db.execute("PRAGMA secure_delete = OFF")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._forget()

    def close(self) -> None:
        """What cannot be written now is lost, and pushed again from the log."""
        if not self._closed.is_set():
            self._closed.set()
            self._behind.join()
            with suppress(PlatformError):
                self.flush()
        with self._flushing, self._lock:
            for db in (self._db, self._writer, *self._retired):
                db.close()

    def _open(self) -> None:
        """Afresh; removes a damaged file."""
        self._forget()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(f"{self._path}.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # nobody opens a file that another is about to remove
                try:
                    self._db = _sound(self._path)
                except Damaged as error:
                    self.notes = [*self.notes, f"{self._path}: {error}; removed, the log can make it again"]
                    for suffix in ("", "-wal", "-shm"):
                        Path(f"{self._path}{suffix}").unlink(missing_ok=True)
                    self._db = _sound(self._path)
                self._writer = _connected(self._path)  # of the same file, while nobody may remove it
        except (OSError, Damaged, sqlite3.DatabaseError) as error:
            raise Unavailable(f"{self._path}: {error}") from None
        self._is_lost = False

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """One piece of work with the file; a transaction that it leaves open is taken back."""
        if self._is_lost:  # the last attempt to open it anew found no room, say
            self._open()
        try:
            yield
        except sqlite3.DatabaseError as error:
            self._roll_back()
            code = getattr(error, "sqlite_errorcode", None)
            if code is None:
                raise  # not said by SQLite: the store was closed, or is misused
            if code & 0xFF in PASSING | {sqlite3.SQLITE_READONLY}:
                raise Unavailable(f"{self._path}: {error}") from None
            self._reopen(error)
        except (UnicodeDecodeError, Damaged) as error:
            self._roll_back()
            self._reopen(error)
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._db.in_transaction:  # SQLite has already taken back one that found the disk full
            self._db.execute("ROLLBACK")

    def _reopen(self, error: Exception) -> None:
        self._db.close()
        self._retired.append(self._writer)
        self._is_lost = True
        self._open()
        raise Stale(f"{self._path}: {error}; opened anew: catch up from the log") from None

    def _forget(self) -> None:
        self._views = [_View(plan, 0) for plan in self._plans]
        self._life = self._version = -1

    def _look_up(self, keys: Sequence[Sequence[str]]) -> None:
        """Of each view; they are then known, also those that have no state. Raises Damaged."""
        (version,) = self._db.execute(VERSION).fetchone()
        if version == self._version and not any(map(_missing, self._views, keys)):
            return
        self._db.execute("BEGIN")  # one moment for heads and states
        self._refresh()
        for view, of_view in zip(self._views, keys, strict=True):
            missing = _missing(view, of_view)
            for i in range(0, len(missing), PARAMETERS):
                some = missing[i : i + PARAMETERS]
                rows = self._db.execute(f"SELECT key, checksum, body FROM state WHERE key IN ({_marks(some)})", some)
                found = {key: view.plan.unpack(_whole(key, check, body)) for key, check, body in rows}
                view.known.update(dict.fromkeys(some, view.plan.empty) | found)
        self._db.execute("COMMIT")

    def _refresh(self) -> None:
        """Go along with what others have made of the file."""
        (version,) = self._db.execute(VERSION).fetchone()
        if version == self._version:
            return
        life, heads = _life(self._db), _heads(self._db)
        for i, view in enumerate(self._views):
            there = heads.get(view.plan.prefix, _Head()).position
            if life != self._life or not view.base <= there <= view.head:
                self._views[i] = _View(view.plan, there)
            else:
                view.base = there
        self._life, self._version = life, version

    def _head(self) -> int:
        return min((view.head for view in self._views), default=END)

    def _trim(self) -> None:
        if sum(len(view.known) - len(view.waiting) - len(view.leaving) for view in self._views) > KNOWN:
            for view in self._views:
                view.known = {**view.leaving, **view.waiting}

    def _bound(self) -> None:
        if sum(len(view.waiting) + len(view.leaving) for view in self._views) > KNOWN:
            self.flush()

    def _write_behind(self) -> None:
        while not self._closed.wait(self._lag):
            with suppress(PlatformError):  # it goes on waiting
                self.flush()


def _connected(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)  # timeout in s
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")
    except BaseException:
        db.close()
        raise
    return db


def _sound(path: Path) -> sqlite3.Connection:
    """A file of which everything has been read and found to be what was written; raises Damaged, Unavailable."""
    db = None
    try:
        db = _connected(path)
        db.executescript(TABLES)
        db.execute("BEGIN")  # one moment for all that is read
        (said,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        if said != "ok":
            raise Damaged(str(said).partition("\n")[0])
        heads = _heads(db)
        totals = dict.fromkeys(heads, 0)
        for name, check, body in db.execute("SELECT CAST(key AS BLOB), checksum, body FROM state"):
            key = name.decode(errors="replace")  # it may not be UTF-8 any more
            _whole(key, check, body)
            view = key.partition(SEPARATOR)[0]
            totals[view] = totals.get(view, 0) + check
        if totals != {view: head.total for view, head in heads.items()}:
            raise Damaged("states: must be of the moment that their head is of")
        db.execute("COMMIT")
        return db
    except (sqlite3.DatabaseError, UnicodeDecodeError, Damaged) as error:  # even a message may be damaged
        if db:
            db.close()
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in PASSING:
            raise Unavailable(f"{path}: {error}") from None
        raise Damaged(str(error)) from None


def _heads(db: sqlite3.Connection) -> dict[str, _Head]:
    found = db.execute("SELECT CAST(view AS BLOB), checksum, body FROM head").fetchall()
    named = [(view.decode(errors="replace"), check, body) for view, check, body in found]
    return {view: _Head(*HEAD.unpack(_whole(view, check, body))) for view, check, body in named}


def _life(db: sqlite3.Connection) -> int:
    """Which one of the file this is, for those that have it open: nothing of the one before may be written to it."""
    (life,) = db.execute("PRAGMA user_version").fetchone()
    return int(life)


def _write(db: sqlite3.Connection, life: int, batches: Sequence[_Batch]) -> None:
    """All, or nothing; leaves out a view for which the file is not as _View says."""
    try:
        db.execute("BEGIN IMMEDIATE")
        there = _heads(db)
        for view, base, head, states in batches if _life(db) == life else ():
            before = there.get(view.plan.prefix, _Head())
            if base <= before.position < head:
                total = before.total + _replaced(db, view.plan, states)
                body = HEAD.pack(head, total)
                db.execute(MOVE, (view.plan.prefix, checksum(view.plan.prefix, body), body))
        db.execute("COMMIT")
    finally:
        if db.in_transaction:  # SQLite has already taken back one that found the disk full
            db.execute("ROLLBACK")


def _replaced(db: sqlite3.Connection, plan: Plan, states: Mapping[str, State]) -> int:
    """Write states, and return what that adds to the sum of the checksums."""
    keys, added = list(states), 0
    for i in range(0, len(keys), PARAMETERS):
        some = keys[i : i + PARAMETERS]
        asked = f"SELECT coalesce(sum(checksum), 0) FROM state WHERE key IN ({_marks(some)})"
        added -= db.execute(asked, some).fetchone()[0]
    checks = []

    def rows() -> Iterator[tuple[str, int, bytes]]:
        for key, state in states.items():
            body = plan.pack(state)
            checks.append(checksum(key, body))
            yield key, checks[-1], body

    db.executemany(WRITE, rows())  # one by one: other threads run in between
    return added + sum(checks)


def _missing(view: _View, keys: Sequence[str]) -> list[str]:
    known = view.known
    return [key for key in dict.fromkeys(keys) if key not in known]


def _marks(some: Sequence[str]) -> str:
    return "?" + ",?" * (len(some) - 1)


def _whole(key: str, check: int, body: bytes) -> bytes:
    """Raises Damaged for what is not as it was written under this key."""
    if check != checksum(key, body):
        raise Damaged(f"{key!r}: its checksum must be that of its bytes")
    return body
