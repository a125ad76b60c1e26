"""Whether rows keep their contract: the record's own rules, applied to whole columns first.

The bounds are read off the record, so there is one place where a rule is written. They only pick the rows that may be
wrong; what is wrong with them, and whether anything is, the record says.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import annotated_types as at
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from common.errors import BadData
from common.schema import WHOLE, Record, arrow_schema, choices

Flags = NDArray[np.bool_]
CHUNK = 50_000  # rows that the record itself looks at, at a time
TIME = "must be ISO 8601 with Z or an offset, or whole microseconds since 1970 in UTC"
NOT_YET = "must not be in the future"
DIALECT = r"\\[a-wyzA-Z]"  # classes that Arrow's regular expressions may read otherwise; \x00 is the same everywhere
LIMITS: Mapping[type, Callable[[pa.Array, Any], pa.Array]] = {
    at.Gt: lambda x, m: pc.greater(x, m.gt),
    at.Ge: lambda x, m: pc.greater_equal(x, m.ge),
    at.Lt: lambda x, m: pc.less(x, m.lt),
    at.Le: lambda x, m: pc.less_equal(x, m.le),
    at.MinLen: lambda x, m: pc.greater_equal(pc.utf8_length(x), m.min_length),
    at.MaxLen: lambda x, m: pc.less_equal(pc.utf8_length(x), m.max_length),
}


class Fault(NamedTuple):
    column: str
    rule: str
    value: str


@dataclass(frozen=True)
class Checked:
    rows: pa.Table  # those that keep the contract
    kept: Flags  # (n,) which ones these are
    faults: Mapping[int, Fault]  # of the others, by place


def is_time(record: type[Record], column: str) -> bool:
    return column.endswith("_timestamp") and bool(pa.types.is_integer(arrow_schema(record).field(column).type))


def default(record: type[Record], column: str) -> Any:
    """What stands for an absent value; PydanticUndefined where it must be given."""
    return record.model_fields[column].default


def typed(record: type[Record], column: str, raw: pa.Array, file: str) -> pa.Array:
    """A column in the contract's type, null where a value cannot be read so.

    Raises BadData where the type of a Parquet column can hold no such values at all.
    """
    kind, found = arrow_schema(record).field(column).type, raw.type
    if pa.types.is_dictionary(found):
        raw = raw.dictionary_decode()
        found = raw.type
    if _is_text(found):
        return _from_text(raw.cast(pa.string()), kind, is_time(record, column))
    if pa.types.is_null(found):
        return pa.nulls(len(raw), kind)
    if is_time(record, column) and pa.types.is_timestamp(found):
        if found.tz is None:
            raise BadData(f"{file}: {column}: must have a time zone, got {found}")
        return raw.cast(pa.timestamp("us", found.tz), safe=found.unit != "ns").cast(pa.int64())
    number = pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_decimal(found)
    if pa.types.is_floating(kind) and number:
        return raw.cast(kind, safe=False)
    if pa.types.is_integer(found) and (pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        return _from_text(raw.cast(pa.string()), kind, False)
    if found != kind:
        raise BadData(f"{file}: {column}: must be {kind}, got {found}")
    return raw


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _from_text(text: pa.Array, kind: pa.DataType, time: bool) -> pa.Array:
    if pa.types.is_string(kind):
        return text
    if pa.types.is_boolean(kind):
        place = pc.index_in(pc.utf8_lower(text), pa.array(["false", "0", "true", "1"]))
        return pc.greater(place, 1)
    if not time:
        return _cast(text, kind)
    digits = pc.ascii_is_decimal(text)
    if pc.all(digits).as_py():
        return _cast(text, kind)
    stamps = _cast(pc.if_else(digits, None, text), pa.timestamp("us", "UTC")).cast(kind)
    return pc.coalesce(stamps, _cast(pc.if_else(digits, text, None), kind)) if pc.any(digits).as_py() else stamps


def _cast(text: pa.Array, kind: pa.DataType) -> pa.Array:
    """Null where Arrow cannot read a value: what fails is halved until the culprits stand alone."""
    try:
        return text.cast(kind)
    except pa.ArrowInvalid:
        if len(text) == 1:
            return pa.nulls(1, kind)
        half = len(text) // 2
        return pa.concat_arrays([_cast(text.slice(0, half), kind), _cast(text.slice(half), kind)])


def check(record: type[Record], raw: Mapping[str, pa.Array], file: str, now: int) -> Checked:
    """Which rows keep the contract. `raw`: columns as they stand in the file, or of the contract's types already."""
    n = len(next(iter(raw.values())))
    columns = {}
    for field in arrow_schema(record):
        if field.name not in raw:
            columns[field.name] = pa.array([default(record, field.name)] * n, field.type)
            continue
        column = (
            raw[field.name] if raw[field.name].type == field.type else typed(record, field.name, raw[field.name], file)
        )
        if default(record, field.name) is not PydanticUndefined:
            column = pc.if_else(_absent(raw[field.name]), pa.scalar(default(record, field.name), field.type), column)
        columns[field.name] = column
        if not _is_text(raw[field.name].type):  # Python has no type for every stamp and number of Arrow's
            raw = {**raw, field.name: column}
    table = pa.table(columns)  # without the schema: it forbids the nulls that stand for what could not be read
    faults: dict[int, Fault] = {}
    wrong = np.zeros(n, bool)
    for name, column in columns.items():
        if is_time(record, name):
            unread = _flags(pc.is_null(column))
            _note(faults, unread, lambda i, name=name: Fault(name, TIME, _said(raw[name][i])))  # type: ignore[misc]
            early = _flags(pc.greater(column, now))
            _note(faults, early, lambda i, name=name: Fault(name, NOT_YET, _said(raw[name][i])))  # type: ignore[misc]
            wrong |= unread | early
    doubtful = np.flatnonzero(_doubtful(record, table) & ~wrong)
    for start in range(0, len(doubtful), CHUNK):
        some = doubtful[start : start + CHUNK]
        rows = table.take(pa.array(some)).to_pylist()
        given = {name: column.take(pa.array(some)).to_pylist() for name, column in raw.items() if name in columns}
        for k, (i, row) in enumerate(zip(some.tolist(), rows, strict=True)):
            said = {name: given[name][k] if value is None and name in given else value for name, value in row.items()}
            said = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
            try:
                record.model_validate(said)
            except ValidationError as error:
                first = error.errors(include_url=False, include_context=False)[0]
                name = str(first["loc"][0]) if first["loc"] else record.__name__
                faults[i] = Fault(name, first["msg"].lower(), repr(str(first.get("input"))[:80]))
    kept = np.ones(n, bool)
    kept[list(faults)] = False
    if faults:
        table = table.filter(pa.array(kept))
    return Checked(table.cast(arrow_schema(record)), kept, faults)


def _absent(raw: pa.Array) -> pa.Array:
    empty = pc.is_null(raw)
    return pc.or_(empty, pc.equal(raw, "").fill_null(True)) if pa.types.is_string(raw.type) else empty


def _note(faults: dict[int, Fault], found: Flags, fault: Callable[[int], Fault]) -> None:
    for i in np.flatnonzero(found).tolist():
        faults.setdefault(i, fault(i))


def _said(value: pa.Scalar) -> str:
    return repr(str(value.as_py())[:80])


def _flags(column: pa.Array | pa.ChunkedArray) -> Flags:
    return np.asarray(column.fill_null(False).to_numpy(zero_copy_only=False), bool)


def _doubtful(record: type[Record], table: pa.Table) -> Flags:
    """Rows that may break a rule: all that do are among them."""
    doubt = np.full(table.num_rows, _has_own_rules(record))
    for name, field in record.model_fields.items():
        column = table[name]
        if not arrow_schema(record).field(name).nullable:
            doubt |= _flags(pc.is_null(column))
        if pa.types.is_floating(column.type):
            doubt |= ~_flags(pc.is_finite(column))
        if choices(record, name):
            doubt |= ~_flags(pc.is_in(column, pa.array(choices(record, name), pa.string())))
        for limit in field.metadata:
            pattern = getattr(limit, "pattern", None)
            if limit is WHOLE:  # refuses nothing, and a column of integers has nothing for it to do
                continue
            if type(limit) in LIMITS:
                doubt |= ~_flags(LIMITS[type(limit)](column, limit))
            elif isinstance(pattern, str) and not re.search(DIALECT, pattern):
                doubt |= ~_flags(pc.match_substring_regex(column, pattern))
            else:  # a rule that only the record can apply
                doubt[:] = True
    return doubt


@cache
def _has_own_rules(record: type[Record]) -> bool:
    own = record.__pydantic_decorators__
    return bool(own.field_validators or own.model_validators or own.validators or own.root_validators)
