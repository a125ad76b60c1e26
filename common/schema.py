"""Records and events. One declaration gives the request model, the table contract and the column types."""

import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Generic, Literal, Self, TypeVar, Union, get_args, get_origin, overload

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from common.errors import BadRecord

R = TypeVar("R", bound="Record")
CHUNK = 10_000  # records made at a time
EXPLAINED = 5  # mistakes named in one message


class Record(BaseModel):
    """A frozen row with declared types; no NaN or infinity unless a field allows it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, ser_json_inf_nan="strings")

    @classmethod
    def parse(cls, body: str | bytes) -> Self:
        """A record from JSON; raises BadRecord with field, rule and value."""
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise BadRecord(explain(cls, error)) from None


class Event(Record):
    """Something that happened. Its id makes a retry harmless."""

    event_id: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")  # PostgreSQL stores no NUL
    event_timestamp: int = Field(ge=0, lt=2**62)  # us since the epoch, UTC; when it happened, says the client


class Logged(Record):
    """What the log adds to an event."""

    position: int  # 1, 2, 3, ... in the order of acknowledgement
    created_timestamp: int  # us since the epoch, UTC, by the log's clock; never decreases


def explain(record: type[Record], error: ValidationError) -> str:
    """What is wrong with a record, or with rows of them, in one line: field, rule, value."""
    found = [
        f"{'.'.join(map(str, e['loc'])) or record.__name__}: {e['msg'].lower()}, got {str(e.get('input'))[:80]!r}"
        for e in error.errors(include_url=False, include_context=False)
    ]
    more = [f"and {len(found) - EXPLAINED} more"] if len(found) > EXPLAINED else []
    return "; ".join((*found[:EXPLAINED], *more))


@cache
def arrow_schema(record: type[Record]) -> pa.Schema:
    """The columns of a table of such records."""
    fields = []
    for name, field in record.model_fields.items():
        kind, nullable = _arrow_type(field.annotation)
        fields.append(pa.field(name, kind, nullable))
    return pa.schema(fields)


@cache
def is_required(record: type[Record], column: str) -> bool:
    """Whether every record has a value there: neither null nor, for a float, NaN or infinity."""
    allows_nan = any(getattr(m, "allow_inf_nan", False) for m in record.model_fields[column].metadata)
    return not (arrow_schema(record).field(column).nullable or allows_nan)


def _arrow_type(annotation: Any) -> tuple[pa.DataType, bool]:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        (inner,) = (a for a in get_args(annotation) if a is not type(None))
        return _arrow_type(inner)[0], True
    if origin is Literal:
        return pa.string(), False
    if origin is tuple:
        return pa.list_(_arrow_type(get_args(annotation)[0])[0]), False
    return {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string(), bytes: pa.binary()}[
        annotation
    ], False


@cache
def choices(record: type[Record], column: str) -> tuple[str, ...]:
    """What a Literal field may be, in the order of its declaration; () for any other field."""
    field = record.model_fields.get(column)
    return tuple(get_args(field.annotation)) if field and get_origin(field.annotation) is Literal else ()


class Records(Sequence[R], Generic[R]):
    """A table seen as a sequence of records: a record is made only when it is asked for."""

    def __init__(self, record: type[R], table: pa.Table) -> None:
        self.record, self.table = record, table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[R]:
        for start in range(0, len(self), CHUNK):
            yield from from_table(self.record, self.table.slice(start, CHUNK))

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> "Records[R]": ...
    def __getitem__(self, index: int | slice) -> "R | Records[R]":
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return Records(self.record, self.table.take(pa.array(range(start, stop, step), pa.int64())))
            return Records(self.record, self.table.slice(start, max(0, stop - start)))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return from_table(self.record, self.table.slice(index % len(self), 1))[0]


def to_table(record: type[R], records: Iterable[R]) -> pa.Table:
    """Records as columns; no copy is made of `Records`."""
    if isinstance(records, Records):
        return records.table.select(arrow_schema(record).names)
    return pa.Table.from_pylist([r.model_dump() for r in records], arrow_schema(record))


def from_table(record: type[R], table: pa.Table) -> list[R]:
    """Columns as records, each validated; raises BadRecord with the row, field, rule and value."""
    schema = arrow_schema(record)
    rows = table.select(schema.names).to_pylist()
    for name in (field.name for field in schema if pa.types.is_list(field.type)):  # Arrow gives lists
        for row in rows:
            row[name] = tuple(row[name])
    return from_rows(record, rows)


def from_rows(record: type[R], rows: Sequence[Mapping[str, Any]]) -> list[R]:
    try:
        return _adapter(record).validate_python(rows)
    except ValidationError as error:
        raise BadRecord(explain(record, error)) from None


@cache
def _adapter(record: type[R]) -> TypeAdapter[list[R]]:
    return TypeAdapter(list[record])  # type: ignore[valid-type]
