"""Records and events. One declaration gives the request model, the table contract and the column types."""

import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Generic, Literal, Self, TypeAlias, TypeVar, Union, get_args, get_origin, overload

import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from common.errors import BadRecord

R = TypeVar("R", bound="Record")
CHUNK = 10_000  # records made at a time
EXPLAINED = 5  # mistakes named in one message
COUNTED = 1_000  # more of them are only counted: each costs memory


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


def _whole(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
Whole: TypeAlias = Annotated[int, WHOLE]  # JSON makes no difference between 2 and 2.0


class Event(Record):
    """Something that happened. Its id makes a retry harmless."""

    event_id: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]*$")  # control characters are ours
    event_timestamp: Whole = Field(ge=0, lt=2**62)  # us since the epoch, UTC; when it happened, says the client


class Logged(Record):
    """What the log adds to an event."""

    position: int  # 1, 2, 3, ... in the order of acknowledgement
    created_timestamp: int  # us since the epoch, UTC, by the log's clock; never decreases


def json_schema(record: type[BaseModel], mode: Literal["validation", "serialization"] = "validation") -> dict[str, Any]:
    """Of such a record, without references: these would point outside of what it becomes a part of."""
    schema = record.model_json_schema(mode=mode)
    parts = schema.pop("$defs", {})

    def resolved(node: Any) -> Any:
        if isinstance(node, list):
            return [resolved(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return resolved(parts[node["$ref"].rpartition("/")[2]])
        return {key: resolved(value) for key, value in node.items() if key != "discriminator"}

    return {key: resolved(value) for key, value in schema.items()}


def explain(record: type[Record], error: ValidationError) -> str:
    """What is wrong with a record, or with rows of them, in one line: field, rule, value."""
    found = [
        f"{'.'.join(map(str, e['loc'])) or record.__name__}: {e['msg'].lower()}, got {str(e.get('input'))[:80]!r}"
        for e in error.errors(include_url=False, include_context=False)
    ]
    more = [f"and {len(found) - EXPLAINED} more"] if len(found) > EXPLAINED else []
    return "; ".join((*found[:EXPLAINED], *more))


def masked(record: type[Record], error: ValidationError) -> str:
    """What is wrong with a record from outside, in one line: field and rule, no value, which may be a secret."""
    if error.error_count() > COUNTED:
        return f"{record.__name__}: fields must be those of the schema, {error.error_count()} mistakes"
    found = []
    for e in error.errors(include_url=False, include_context=False, include_input=False):
        where = [str(part) for part in e["loc"] if isinstance(part, int) or part in record.model_fields]
        known = len(where) == len(e["loc"])
        found.append(f"{'.'.join((*where, *(() if known else ('(unknown)',)))) or record.__name__}: {e['msg'].lower()}")
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
    if origin is Annotated:
        return _arrow_type(get_args(annotation)[0])
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
    rows, schema = list(records), arrow_schema(record)
    return pa.Table.from_arrays([_column(rows, name, schema) for name in schema.names], schema=schema)


def logged_table(record: type[R], events: Iterable[R], logged: Sequence[Logged]) -> pa.Table:
    """Events of one kind with their places, as the log gives them."""
    rows, schema = list(events), logged_schema(record)
    columns = [_column(rows, name, schema) for name in record.model_fields]
    columns += [_column(logged, name, schema) for name in Logged.model_fields]
    return pa.Table.from_arrays(columns, schema=schema)


@cache
def logged_schema(record: type[Record]) -> pa.Schema:
    """The columns of a table of logged events."""
    return pa.schema([*arrow_schema(record), *arrow_schema(Logged)])


def _column(records: Sequence[Record], name: str, schema: pa.Schema) -> pa.Array:
    return pa.array([getattr(r, name) for r in records], schema.field(name).type)


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
