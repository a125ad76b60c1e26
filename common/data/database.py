"""SQLite or PostgreSQL behind one small face: all or nothing, one writer at a time, durable on leaving."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from common.errors import BadSetting, Damaged, MissingExtra, Unavailable

Values: TypeAlias = Sequence[Any]
Found: TypeAlias = list[tuple[Any, ...]]
PATIENCE = 60  # s, for another writer or for a server
# A server that was cut off says nothing: without these, a connection to it would be waited for as long as TCP does
LIVELY = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 10_000}  # s; ms
NOTHING_KEPT = "nothing of this call was kept: retry when it is back"


class Database(Protocol):
    """Threads may share it. Statements use `?` for values and what both dialects know.

    Raises Unavailable when the disk is full or the server is away: nothing of the transaction was kept, unless the
    message says that this is not known.
    """

    def transaction(self) -> AbstractContextManager[None]: ...
    def execute(self, statement: str, values: Values = ()) -> Found: ...
    def executemany(self, statement: str, rows: Sequence[Values]) -> None: ...
    def close(self) -> None: ...


def open_database(url: str | None, path: Path, name: str, tables: str) -> Database:
    """PostgreSQL where there is a url, else the file, all of which is looked at now: it has to be a small one.

    `name` is that of the lock among writers. Raises Damaged, Unavailable.
    """
    if url is not None:
        return Postgres(url, name, tables)
    database = Sqlite(path, tables)
    try:
        database.check()
    except BaseException:
        database.close()
        raise
    return database


class Sqlite:
    """One file. What was committed survives kill -9 and power loss; waits for other writers."""

    def __init__(self, path: Path, tables: str, synchronous: str = "FULL") -> None:
        """Raises Damaged for a file that cannot be used."""
        self.path = path
        self._lock = threading.RLock()
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._said():
            self.connection = connect(path, synchronous)
            self.connection.executescript(tables)
            self._file = _identity(path)

    def is_there(self) -> bool:
        """Whether the file that was opened still has its name: what is written to another one would be lost."""
        return _identity(self.path) == self._file

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._lock, self._said():
            if not self.is_there():
                raise Unavailable(
                    f"{self.path}: was removed or replaced; nothing of this call was kept: restore a backup"
                )
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # SQLite has already taken back one that found the disk full
                    self.connection.execute("ROLLBACK")
                raise

    def execute(self, statement: str, values: Values = ()) -> Found:
        with self._lock, self._said():
            return self.connection.execute(statement, values).fetchall()

    def executemany(self, statement: str, rows: Sequence[Values]) -> None:
        with self._lock, self._said():
            self.connection.executemany(statement, rows)

    def check(self) -> None:
        """Read all of it; raises Damaged."""
        found = " ".join(str(self.execute("PRAGMA integrity_check(1)")[0][0]).split())
        if found != "ok":
            raise Damaged(f"{self.path}: is damaged: {found}; restore a backup")

    def close(self) -> None:
        self.connection.close()

    @contextmanager
    def _said(self) -> Iterator[None]:
        """In words that a user can act on."""
        try:
            yield
        except sqlite3.Error as error:
            raise said(self.path, error) from None


def connect(path: Path, synchronous: str = "FULL") -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {synchronous}")
        db.execute("PRAGMA cache_size = -65536")  # KiB; ids come in no order, so their index is written all over
    except sqlite3.Error:
        db.close()
        raise
    return db


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def said(path: Path, error: sqlite3.Error) -> Exception:
    """What an error of SQLite means to whoever called."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_BUSY", "SQLITE_LOCKED")):
        why = "no room on its disk" if name == "SQLITE_FULL" else str(error)
        return Unavailable(f"{path}: {why}; nothing of this call was kept: mend it, then retry")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return Damaged(f"{path}: is damaged: {error}; restore a backup")
    if isinstance(error, sqlite3.OperationalError):  # a table or a text is not what it was
        why = str(error).encode("ascii", "replace").decode()
        return Damaged(f"{path}: is damaged, or of another version of this program: {why}; restore a backup")
    return error


class Postgres:
    """Tables in the search_path of a url. A server that was away is found again by the next call."""

    def __init__(self, url: str, name: str, tables: str) -> None:
        """Raises Unavailable, and BadSetting for a server that does not wait for its disk."""
        self._url, self._name, self._driver = url, name, _driver()
        self._place = _place(self._driver, url)
        self._lock = threading.RLock()
        self._connection: Any = None
        self._depth, self._closed = 0, False
        with self.transaction():
            for table in tables.replace("INTEGER", "BIGINT").replace(" STRICT", "").split(";"):
                if table.strip():
                    self.execute(table)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._lock:
            with self._said(NOTHING_KEPT):
                db = self._connected()
                db.execute("BEGIN")
                db.execute(
                    "SELECT pg_advisory_xact_lock(hashtextextended(current_schema() || '.' || %s, 0))", [self._name]
                )
            self._depth += 1
            try:
                yield
            except BaseException:
                with self._said(NOTHING_KEPT):
                    if not db.closed:
                        db.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1
            with self._said("whether this call was kept is not known: look, or retry with the same ids"):
                db.execute("COMMIT")

    def execute(self, statement: str, values: Values = ()) -> Found:
        with self._lock, self._said(NOTHING_KEPT):
            cursor = self._connected().execute(_dialect(statement), values)
            return cursor.fetchall() if cursor.description else []

    def executemany(self, statement: str, rows: Sequence[Values]) -> None:
        with self._lock, self._said(NOTHING_KEPT), self._connected().cursor() as cursor:
            cursor.executemany(_dialect(statement), rows)

    def stream(self, statement: str, values: Values, size: int) -> Iterator[Found]:
        """Found rows in parts, as they are now, over a connection of its own: a long read holds up no writer."""
        with self._said(NOTHING_KEPT), self._connect() as db, db.cursor(name="stream") as cursor:
            cursor.execute(_dialect(statement), values)
            while part := cursor.fetchmany(size):
                yield part

    def close(self) -> None:
        self._closed = True
        if self._connection is not None:
            self._connection.close()

    def _connected(self) -> Any:
        if self._closed:
            raise Unavailable(f"{self._place}: was closed here")
        if self._connection is None or (self._connection.closed and not self._depth):
            self._connection = self._connect(autocommit=True)
        return self._connection

    def _connect(self, autocommit: bool = False) -> Any:
        db = self._driver.connect(self._url, autocommit=True, connect_timeout=5, application_name="mlsys", **LIVELY)
        for name, wanted in (("fsync", "on"), ("full_page_writes", "on")):
            (found,) = db.execute(f"SHOW {name}").fetchone() or ("",)
            if found != wanted:
                db.close()
                raise BadSetting(f"MLSYS_DATABASE_URL: the server must have {name} = {wanted}, it has {found}")
        db.execute("SET synchronous_commit = on")
        db.execute(f"SET lock_timeout = '{PATIENCE}s'")
        db.autocommit = autocommit
        return db

    @contextmanager
    def _said(self, outcome: str) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as error:
            if self._connection is not None and not self._depth:
                self._connection.close()
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if not isinstance(error, self._driver.OperationalError):
                raise BadSetting(f"MLSYS_DATABASE_URL: {reason}") from None
            raise Unavailable(f"{self._place}: {reason}; {outcome}") from None


def _place(driver: Any, url: str) -> str:
    """Of a server, for people, without user and password; raises BadSetting, which does not repeat the url either."""
    try:
        parts = driver.conninfo.conninfo_to_dict(url)
    except driver.Error:
        raise BadSetting(
            "MLSYS_DATABASE_URL: must be postgresql://[user[:password]@][host][:port][/database]"
        ) from None
    host = str(parts.get("host") or "its socket")
    if "@" in host:
        raise BadSetting("MLSYS_DATABASE_URL: an @ in a password must be written %40")
    return f"PostgreSQL at {host}/{parts.get('dbname') or ''}"


def _dialect(statement: str) -> Any:
    return statement.replace("?", "%s")


def _driver() -> Any:
    try:
        import psycopg
        import psycopg.conninfo
    except ModuleNotFoundError:
        raise MissingExtra("MLSYS_DATABASE_URL: needs psycopg; pip install -e '.[postgres]'") from None
    return psycopg
