"""Versioned offline tables: immutable Parquet, named by the SHA-256 of its bytes."""

import hashlib
import os
import re
import uuid
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import BadBundle, NotFound


class Snapshots:
    """A folder of tables. A training run names the digest it used; whoever reads it gets those bytes or an error."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def publish(self, table: pa.Table) -> str:
        """Store a table and return its digest. Durable on return; publishing it again, or at once, does no harm."""
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = self.root / f".{uuid.uuid4().hex}"
        pq.write_table(table, temporary, compression="zstd")  # leaves no file when it fails
        sync(temporary)
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.replace(temporary, self.path(digest))
        sync(self.root)
        return digest

    def read(self, digest: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The table, or some of its columns; raises NotFound, or BadBundle when its bytes have changed."""
        path = self.path(digest)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise NotFound(f"snapshot: no {digest} in {self.root}") from None
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            raise BadBundle(f"{path}: SHA-256 must be {digest}, got {found}")
        return pq.read_table(pa.BufferReader(content), columns=None if columns is None else list(columns))

    def path(self, digest: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise NotFound(f"snapshot: a digest has 64 hex digits, got {digest!r}")
        return self.root / f"{digest}.parquet"


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive power loss."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
