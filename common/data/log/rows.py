"""Events as rows of a log: their tables, their bodies in JSON, and back to columns."""

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
from pyarrow import json as arrow_json

from common.data.database import Found
from common.errors import BadRecord, Damaged
from common.schema import Event, arrow_schema

# Header and payload are stored apart, so that a payload can be erased and its event still be known to have happened.
TABLES = """
CREATE TABLE IF NOT EXISTS header (
    position INTEGER PRIMARY KEY,
    event_id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    event_timestamp INTEGER NOT NULL,
    created_timestamp INTEGER NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS payload (position INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;
"""
NEWEST = "SELECT position, created_timestamp FROM header ORDER BY position DESC LIMIT 1"
COPIED = (
    "SELECT position, event_id, kind, event_timestamp, created_timestamp, checksum, body"
    " FROM header LEFT JOIN payload USING (position) WHERE position <= ? ORDER BY position"
)
END = 2**62  # a position behind all others
CHECKED = 10_000  # events looked at together
BLOCK = 1 << 20  # bytes parsed at a time, as long as an event fits


def checksum(position: int, created: int, kind: str, body: str) -> int:
    """CRC-32 of an event as it was acknowledged: a disk that changes it later is found out."""
    return zlib.crc32(f"{position} {created} {kind} {body}".encode())


def checked(events: Iterable[Found], name: str) -> Iterator[Found]:
    """What COPIED found, part by part; raises Damaged at the first event that is not what was acknowledged."""
    position, last = 0, 0
    for part in events:
        for at, _, kind, _, created, written, body in part:
            if at != position + 1 or created < last or written != checksum(at, created, kind, body or ""):
                raise Damaged(f"{name}: event {position + 1} is not what was written; restore a backup")
            position, last = at, created
        yield part


def encode(event: Event) -> str:
    body: str = event.__pydantic_serializer__.to_json(event).decode()  # of model_dump_json, without what it is around
    if '"NaN"' in body or 'Infinity"' in body:  # a float column is read faster when it holds no strings
        return json.dumps(event.model_dump(), separators=(",", ":"), ensure_ascii=False)
    return body


def decode(kind: type[Event], bodies: Sequence[str]) -> pa.Table:
    """The columns of a kind; raises BadRecord where an event was stored by a definition that does not fit."""
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
