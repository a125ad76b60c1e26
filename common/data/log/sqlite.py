"""The log in one SQLite file, and beside it a mark that says how far it is durable.

SQLite commits without a sync (in WAL mode that leaves the file sound, whatever happens). Then the log itself syncs
the WAL, once for a whole group, and moves the mark. Readers read up to the mark, so that nobody sees an event which
power loss could still take, and no lock is held while the disk works. The mark is never ahead of the disk: a log that
ends before its mark has lost events, and is refused.
"""

import fcntl
import os
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from common.data.database import Found, Sqlite, Values, connect, said
from common.data.log.rows import CHECKED, COPIED, END, NEWEST, TABLES, checked
from common.data.snapshots import sync as sync_names
from common.errors import Damaged, Unavailable

MARK = struct.Struct("<qqI")  # position, created_timestamp, CRC-32 of both
SEAL = struct.Struct("<qI")  # size of the file, bytes; CRC-32 of its end: written when the last process closes it
FAILED = MARK.size + SEAL.size  # where in the mark's file a byte says that a sync failed: all processes have to know
TAIL = 1 << 20  # bytes of that end

Sync = Callable[[int], None]


class SqliteStorage:
    def __init__(self, path: Path, sync: Sync = os.fdatasync) -> None:
        """Raises Damaged, and says what is wrong, for a log that is not whole."""
        self._path, self._sync = path, sync
        self.notes: list[str] = []  # what was found and mended
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:

            def opened(name: Path, flags: int) -> int:
                file = os.open(name, flags, 0o644)
                stack.callback(os.close, file)
                return file

            self._mark = opened(path.with_suffix(".mark"), os.O_RDWR | os.O_CREAT)
            self._lock = opened(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT)  # closed before the mark is
            fcntl.flock(self._mark, fcntl.LOCK_EX)  # one at a time opens or closes: who finds another has seen it pass
            first = self._is_alone()
            if not first:
                fcntl.flock(self._lock, fcntl.LOCK_SH)
            sealed = first and self._is_sealed()
            self._db = Sqlite(path, TABLES, synchronous="NORMAL")
            stack.callback(self._db.close)
            self._reader = Sqlite(path, "")
            stack.callback(self._reader.close)
            self._db.execute(NEWEST)  # now there is a WAL
            self._wal = opened(Path(f"{path}-wal"), os.O_RDONLY)
            if first:
                self._recover(sealed)
                fcntl.flock(self._lock, fcntl.LOCK_SH)
            for folder in (path.parent, path.parent.parent):
                sync_names(folder)
            fcntl.flock(self._mark, fcntl.LOCK_UN)
            self._files = stack.pop_all()

    def transaction(self) -> AbstractContextManager[None]:
        if self._has_failed():
            self._mend()
        return self._db.transaction()

    def was_replaced(self) -> bool:
        """Whether there is another file in its place: a backup that was restored."""
        return not self._db.is_there() and self._path.exists()

    def execute(self, statement: str, values: Values = ()) -> Found:
        return self._db.execute(statement, values)

    def executemany(self, statement: str, rows: Sequence[Values]) -> None:
        self._db.executemany(statement, rows)

    def settle(self, position: int, created: int) -> None:
        """Make durable what was committed, up to this place; raises Unavailable when the disk could not."""
        try:
            self._sync(self._wal)
        except OSError as error:
            # the kernel may call these pages clean now: only another copy of them can be trusted
            os.pwrite(self._mark, b"\1", FAILED)
            raise Unavailable(f"{self._path}: {error.strerror}; not durable, so not acknowledged: retry") from None
        fcntl.flock(self._mark, fcntl.LOCK_EX)
        try:
            marked = self._marked()
            if marked is None or marked[0] < position:
                self._move_mark(position, created)
        finally:
            fcntl.flock(self._mark, fcntl.LOCK_UN)

    def head(self) -> tuple[int, int]:
        """Position and created_timestamp of the newest durable event."""
        for _ in range(1_000):  # it may be in the middle of being moved
            if (found := self._marked()) is not None:
                return found
        raise Damaged(f"{self._mark_name}: is not what was written; open the log again to have it mended")

    def look(self, statement: str, values: Values) -> Found:
        """As `execute`, over a connection that no writer waits for."""
        return self._reader.execute(statement, values)

    def stream(self, statement: str, values: Values, size: int) -> Iterator[Found]:
        """Found rows in parts, over a connection of its own: a long read holds up no append."""
        try:
            db = connect(self._path)
            try:
                rows = db.execute(statement, values)
                while part := rows.fetchmany(size):
                    yield part
            finally:
                db.close()
        except sqlite3.Error as error:
            raise said(self._path, error) from None

    def check(self) -> None:
        """Read all of it; raises Damaged at the first event that is not what was acknowledged."""
        self._db.check()
        for _ in checked(self.stream(COPIED, (END,), CHECKED), str(self._path)):
            pass

    def close(self) -> None:
        fcntl.flock(self._mark, fcntl.LOCK_EX)
        self._reader.close()
        self._db.close()
        if self._is_alone() and not Path(f"{self._path}-wal").exists() and not self._has_failed():
            os.pwrite(self._mark, self._seal(), MARK.size)
        self._files.close()

    def _recover(self, sealed: bool) -> None:
        """Find out what the last process left behind, alone."""
        marked = self._marked()
        position, created = (self._db.execute(NEWEST) or [(0, 0)])[0]
        if position and not (sealed and marked):
            self.check()
        if marked and position < marked[0]:
            raise Damaged(
                f"{self._path}: {marked[0]} events were acknowledged, and {position} are there; restore a backup, or"
                f" remove {self._mark_name} to go on without the others"
            )
        if marked is None and position:
            self.notes.append(f"{self._mark_name}: was not what was written; made anew from the log, which is whole")
        failed = self._has_failed()
        os.ftruncate(self._mark, MARK.size)  # the seal is broken from now on
        if marked != (position, created) or failed:  # committed, and perhaps never synced
            self._mend()

    def _mend(self) -> None:
        """What the WAL holds goes into the file itself, which SQLite syncs on its own: a failed sync is made good."""
        ((busy, _, _),) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if busy:
            raise Unavailable(f"{self._path}: a failed write cannot be mended while somebody reads: retry")
        os.pwrite(self._mark, b"\0", FAILED)
        self.settle(*(self._db.execute(NEWEST) or [(0, 0)])[0])

    @property
    def _mark_name(self) -> Path:
        return self._path.with_suffix(".mark")

    def _has_failed(self) -> bool:
        return os.pread(self._mark, 1, FAILED) == b"\1"

    def _marked(self) -> tuple[int, int] | None:
        """What the mark says; (0, 0) when there never was one, None when it is not what was written."""
        mark = os.pread(self._mark, MARK.size, 0)
        if not mark and not os.fstat(self._mark).st_size:
            return None if self._path.stat().st_size else (0, 0)
        if len(mark) < MARK.size:
            return None
        position, created, crc = MARK.unpack(mark)
        return (position, created) if crc == zlib.crc32(mark[:-4]) else None

    def _move_mark(self, position: int, created: int) -> None:
        mark = MARK.pack(position, created, 0)[:-4]
        os.pwrite(self._mark, mark + struct.pack("<I", zlib.crc32(mark)), 0)

    def _is_alone(self) -> bool:
        """Whether no other process, and no other thread by a handle of its own, has this log open."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _seal(self) -> bytes:
        """Of a file that no connection has open: to close another handle on it would drop the locks of SQLite."""
        with self._path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            return SEAL.pack(size, zlib.crc32(file.read()))

    def _is_sealed(self) -> bool:
        seal = os.pread(self._mark, SEAL.size, MARK.size)
        return self._path.exists() and not Path(f"{self._path}-wal").exists() and seal == self._seal()
