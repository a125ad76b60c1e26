"""Online features in one SQLite file."""

import fcntl
import sqlite3
import struct
import threading
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pyarrow as pa

from common.errors import Damaged, Stale, Unavailable
from common.features.online import END, Reading, arrivals, reading, require
from common.features.state import EMPTY, SEPARATOR, Plan, State, checksum, pack, unpack
from common.features.view import FeatureView, Times
from common.schema import Event

TABLES = """
CREATE TABLE IF NOT EXISTS head (
    view TEXT PRIMARY KEY, checksum INTEGER NOT NULL, body BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, checksum INTEGER NOT NULL, body BLOB NOT NULL
) STRICT;
"""
MOVE = """
INSERT INTO head VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET checksum = excluded.checksum, body = excluded.body
"""
PARAMETERS = 30_000  # of one statement; SQLite allows 32,766
KNOWN = 50_000  # states kept in memory, about 1 kB each
HEAD = struct.Struct("<qq")
PASSING = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL,
}  # fmt: skip


class _Head(NamedTuple):
    """Of one view."""

    position: int = 0
    total: int = 0  # of the checksums of its states


_Known: TypeAlias = tuple[int, int, State]  # row id, checksum, state


class SqliteStore:
    """Threads, processes and stores for other views may share the file.

    The log can make it again, so SQLite need not sync. Instead, the whole file is read whenever it is opened: beside
    a view's head lies the sum of its states' checksums, so that two sound halves of different moments, as a power
    loss leaves them, do not pass for one. A damaged file is removed, `notes` say so, and the head is 0.
    """

    def __init__(self, path: Path, views: Sequence[FeatureView]) -> None:
        """Raises Unavailable where the file can be neither used nor removed."""
        self.kinds = frozenset(view.source for view in views)
        self.notes: Sequence[str] = []
        self._path, self._plans = path, [Plan(view) for view in views]
        self._lock = threading.Lock()
        self._open()

    def head(self) -> int:
        with self._lock, self._guarded():
            self._refresh()
            return self._head()

    def read(self, rows: pa.Table, as_of: Times, at_least: int = 0) -> Reading:
        keys = [plan.keys(rows) for plan in self._plans]
        with self._lock, self._guarded():
            self._refresh()  # before the states: they may be newer than the head, never older
            head = self._head()
            require(head, at_least)
            known = self._look_up({key for of_view in keys for key in of_view})
        states = [[known[key][2] if key in known else EMPTY for key in of_view] for of_view in keys]
        return reading(self._plans, states, as_of, head)

    def push(self, logged: Mapping[type[Event], pa.Table], after: int, until: int) -> None:
        coming = arrivals(self._plans, logged, until)
        with self._lock, self._guarded():
            self._db.execute("BEGIN IMMEDIATE")
            self._refresh()
            require(self._head(), after)
            known = self._look_up({key for part in coming for key in part.keys})
            heads: dict[str, _Head] = {}
            update: list[tuple[int, bytes, int]] = []
            insert: list[tuple[str, int, bytes]] = []
            learned: dict[str, _Known] = {}
            for plan, keys, events in coming:
                position, total = self._heads[plan.prefix]
                if position < until:
                    old = {key: known[key][2] for key in keys if key in known}
                    for key, state in plan.push(keys, events, old).items():
                        body = pack(state)
                        total += (check := checksum(key, body))
                        if key in known:
                            row, before, _ = known[key]
                            total -= before
                            update.append((check, body, row))
                            learned[key] = row, check, state
                        else:
                            insert.append((key, check, body))
                    heads[plan.prefix] = _Head(until, total)
            self._db.executemany("UPDATE state SET checksum = ?, body = ? WHERE id = ?", update)
            if insert:
                self._db.executemany("INSERT INTO state (key, checksum, body) VALUES (?, ?, ?)", insert)
            bodies = [(view, HEAD.pack(*head)) for view, head in heads.items()]
            self._db.executemany(MOVE, [(view, checksum(view, body), body) for view, body in bodies])
            self._db.execute("COMMIT")
            self._heads.update(heads)
            self._known.update(learned)

    def clear(self) -> None:
        with self._lock, self._guarded():
            self._db.execute("PRAGMA secure_delete = ON")  # what is forgotten does not stay in free pages
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM state")
            self._db.execute("DELETE FROM head")
            self._db.execute("COMMIT")
            self._db.execute("PRAGMA secure_delete = OFF")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._forget()

    def close(self) -> None:
        self._db.close()

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
        except (OSError, Damaged) as error:
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
        self._is_lost = True
        self._open()
        raise Stale(f"{self._path}: {error}; opened anew: catch up from the log") from None

    def _forget(self) -> None:
        """What was read or written last is true until another connection commits."""
        self._known: dict[str, _Known] = {}
        self._heads: dict[str, _Head] = {}
        self._version = -1

    def _refresh(self) -> None:
        (version,) = self._db.execute("PRAGMA data_version").fetchone()  # changes when another connection commits
        if version != self._version:
            self._known.clear()
            self._heads = defaultdict(_Head, _heads(self._db))
            self._version = version

    def _head(self) -> int:
        return min((self._heads[plan.prefix].position for plan in self._plans), default=END)

    def _look_up(self, keys: Collection[str]) -> dict[str, _Known]:
        """Those keys that have a state; raises Damaged."""
        if len(self._known) > KNOWN:
            self._known.clear()
        missing = [key for key in keys if key not in self._known]
        for i in range(0, len(missing), PARAMETERS):
            some = missing[i : i + PARAMETERS]
            marks = "?" + ",?" * (len(some) - 1)
            for row, key, check, body in self._db.execute(f"SELECT * FROM state WHERE key IN ({marks})", some):
                self._known[key] = row, check, unpack(_whole(key, check, body))
        return {key: self._known[key] for key in keys if key in self._known}


def _sound(path: Path) -> sqlite3.Connection:
    """A file of which everything has been read and found to be what was written; raises Damaged, Unavailable."""
    db = None
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)  # timeout in s
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")
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


def _whole(key: str, check: int, body: bytes) -> bytes:
    """Raises Damaged for what is not as it was written under this key."""
    if check != checksum(key, body):
        raise Damaged(f"{key!r}: its checksum must be that of its bytes")
    return body
