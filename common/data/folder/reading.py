"""A folder becomes events: checked, without duplicates, in the order of hearing. What is broken is set aside."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic_core import PydanticUndefined

from common.data.folder.contract import Fault, check, default
from common.data.folder.files import FORMATS, Batch, UserFile, find, named
from common.data.folder.layout import Derived, Layout, UserTable
from common.data.folder.quarantine import Quarantine
from common.errors import BadData, BadSetting
from common.schema import Event, arrow_schema

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """What one file held."""

    file: str
    digest: str  # SHA-256 of the file
    rows: int  # kept, dropped, set aside, or no event yet: each row is one of these
    duplicates: int
    quarantined: int
    ignored: tuple[str, ...]  # columns
    kind: type[Event]
    events: pa.Table  # in the order of hearing
    heard: Ints  # (n,) us
    silent: int = 0  # rows that are no event yet
    notes: tuple[str, ...] = ()
    derived: bool = False  # made of the other rows

    def document(self) -> dict[str, Any]:
        names = ("file", "digest", "rows", "duplicates", "quarantined", "ignored", "silent", "notes")
        return {name: getattr(self, name) for name in names} | {"kept": self.events.num_rows}


def read(
    layout: Layout, folder: Path, quarantine: Path, *, most: float, now: int, say: Callable[[str], None]
) -> list[Part]:
    """Every file of a folder; `most` is the share of a table's rows that may be broken, `now` in us.

    Broken rows go to files in `quarantine`. Raises BadSetting for what is no folder, BadData with one line for a file
    that cannot be read or has too many broken rows.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise BadSetting(f"--data: must be a folder that can be read, got {str(folder)!r}: {why}") from None
    files = [(table, file) for table in layout if (file := find(folder, table.name, required=table.required))]
    for table, file in files:
        if table.shape is None:
            _check_header(table, file)
    known = {f"{table.name}.{suffix}" for table in layout for suffix in FORMATS}
    if strangers := [name for name in names if name not in known]:
        say(f"  not in the layout, ignored: {', '.join(map(repr, strangers[:5]))}{', ...' * (len(strangers) > 5)}")
    parts: list[Part] = []
    for table, file in files:
        aside_name = f"{table.name}-{file.digest[:12]}.csv"
        with named(file.path), Quarantine(quarantine / aside_name, file.unit, _shown(table, file)) as aside:
            reader = _Reader(table, file, aside, most, now)
            part = reader.part(parts)
            parts += [part, *(reader.derived(derived) for derived in table.derive)]
        for note in part.notes:
            say(f"  {part.file}: {note}")
        if file.unfinished:
            say(f"  {part.file}: the last line has no end; if the file was cut off, its last value may be short")
        if part.ignored:
            say(f"  {part.file}: columns not in the layout, ignored: {', '.join(map(repr, part.ignored))}")
        if part.duplicates:
            say(f"  {part.file}: {part.duplicates:,} rows are there twice, dropped once")
        if aside.rows:
            count = f"{aside.rows:,} of {part.rows:,} rows set aside"
            say(f"  {part.file}: {count}: {aside.most_broken()}; see {aside.path}")
    return parts


def _shown(table: UserTable, file: UserFile) -> list[str]:
    """The columns in which a row that is set aside is shown: as it stands in a text, or as it was read."""
    if table.shape is not None:
        return list(arrow_schema(table.row).names)
    return file.columns if file.unit == "line" else [c for c in file.columns if c in arrow_schema(table.row).names]


def _check_header(table: UserTable, file: UserFile) -> None:
    wanted = [c for c in table.row.model_fields if default(table.row, c) is PydanticUndefined]
    if missing := [column for column in wanted if column not in file.columns]:
        got = ", ".join(repr(column[:40]) for column in file.columns[:20])
        raise BadData(f"{file.path.name}: header: must have {', '.join(missing)}, got {got}")


@dataclass
class _Reader:
    table: UserTable
    file: UserFile
    aside: Quarantine
    most: float
    now: int
    rows: int = 0
    silent: pa.Table = None  # rows that are no event yet
    whole: pa.Table = None  # rows that kept the contract
    ignored: tuple[str, ...] = field(init=False)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.ignored = tuple(c for c in self.file.columns if c not in arrow_schema(self.table.row).names)
        self.silent = arrow_schema(self.table.row).empty_table()

    def part(self, parts: Sequence[Part]) -> Part:
        rows, numbers = self._checked()
        events, heard, rows, numbers = self._made(rows, numbers, parts)
        for part in parts:
            taken = _flags(pc.is_in(events["event_id"], part.events["event_id"]))
            events, heard, rows, numbers = self._without(
                taken, "event_id", f"must not be that of a row of {part.file}", events["event_id"],
                events, heard, rows, numbers,
            )  # fmt: skip
        before = len(numbers)
        events, heard, rows, broken = self._without_duplicates(events, heard, rows, numbers)
        self._stop_if_too_many()
        if np.any(np.diff(heard) < 0):
            order = np.argsort(heard, kind="stable")
            events, heard = events.take(pa.array(order)), heard[order]
        self.whole = pa.concat_tables([rows, self.silent]) if self.table.derive else None
        return Part(
            self.file.path.name, self.file.digest, self.rows, before - broken - len(heard), self.aside.rows,
            self.ignored, self.table.event, events, heard, self.silent.num_rows, self.notes,
        )  # fmt: skip

    def derived(self, derived: Derived) -> Part:
        events = derived.make(self.whole, self.now).sort_by("event_timestamp")
        name = f"{self.file.path.name} ({derived.event.__name__})"
        heard, n = _ints(events["event_timestamp"]), events.num_rows
        return Part(name, self.file.digest, n, 0, 0, (), derived.event, events, heard, derived=True)

    def _checked(self) -> tuple[pa.Table, Ints]:
        """The rows that keep their contract, and their numbers in the file."""
        kept, all_numbers = [arrow_schema(self.table.row).empty_table()], [np.empty(0, np.int64)]
        for raw, numbers, shown in self._in_file() if self.table.shape is None else self._in_shape():
            checked = check(self.table.row, raw, self.file.path.name, self.now)
            self._set_aside(checked.faults, shown, numbers)
            kept.append(checked.rows)
            all_numbers.append(numbers[checked.kept])
        self._stop_if_too_many()
        return pa.concat_tables(kept), np.concatenate(all_numbers)

    def _in_file(self) -> Iterator[tuple[Mapping[str, pa.Array], Ints, Sequence[pa.Array]]]:
        """Raw columns by name, the rows' numbers, and the columns in which they are shown; a batch each."""
        known = [column for column in self.file.columns if column in arrow_schema(self.table.row).names]
        for batch in self._batches():
            self.rows += len(batch.numbers)
            raw = {column: batch.columns[self.file.columns.index(column)] for column in known}
            if len(batch.numbers):
                yield raw, batch.numbers, batch.columns if self.file.unit == "line" else list(raw.values())
        if not self.rows:
            raise BadData(f"{self.file.path.name}: must have rows, has only a header")

    def _in_shape(self) -> Iterator[tuple[Mapping[str, pa.Array], Ints, Sequence[pa.Array]]]:
        """The whole file at once, but for what is known to be wrong."""
        assert self.table.shape is not None
        name, batches = self.file.path.name, [batch for batch in self._batches() if len(batch.numbers)]
        if not batches and not self.rows:
            raise BadData(f"{name}: must have rows, has only a header")
        if not batches:
            return
        columns = [pa.chunked_array(chunks) for chunks in zip(*(batch.columns for batch in batches), strict=True)]
        shaped = self.table.shape(pa.table(columns, self.file.columns), name, self.now)
        rows, numbers = shaped.rows, np.concatenate([batch.numbers for batch in batches])[shaped.places]
        del batches, columns
        self.rows += len(numbers)
        self.ignored, self.notes = shaped.ignored, shaped.notes
        self._set_aside(shaped.faults, [rows[column] for column in _shown(self.table, self.file)], numbers)
        if shaped.faults:
            right = np.ones(len(numbers), bool)
            right[list(shaped.faults)] = False
            rows, numbers = _filter(rows, right), numbers[right]
        if len(numbers):
            rows = rows.combine_chunks()
            raw = {column: rows[column].chunk(0) for column in rows.column_names}
            yield raw, numbers, [raw[column] for column in _shown(self.table, self.file)]

    def _batches(self) -> Iterator[Batch]:
        """Of the file, without the lines that are no rows."""
        for batch in self.file.batches():
            self.rows += len(batch.ragged)
            for line in batch.ragged:
                self.aside.add(line.number, Fault("row", line.rule, repr(",".join(line.cells)[:80])), line.cells)
            yield batch

    def _set_aside(self, faults: Mapping[int, Fault], shown: Sequence[Any], numbers: Ints) -> None:
        if not faults:
            return
        places = sorted(faults)
        cells = [_text(column.take(pa.array(places))) for column in shown]
        for place, row in zip(places, zip(*cells, strict=True), strict=True):
            self.aside.add(int(numbers[place]), faults[place], row)

    def _made(self, rows: pa.Table, numbers: Ints, parts: Sequence[Part]) -> tuple[pa.Table, Ints, pa.Table, Ints]:
        """The events that rows become, and when each was heard of."""
        table = self.table
        if table.make is None:
            return rows, _ints(rows[table.heard or "event_timestamp"]), rows, numbers
        of = {part.file.rpartition(".")[0]: part for part in parts}
        for column, (name, key) in table.about.items():
            lost = ~_flags(pc.is_in(rows[column], of[name].events[key]))
            rule = f"must be the {key} of a row of {of[name].file}"
            rows, numbers = self._without(lost, column, rule, rows[column], rows, numbers)
        abouts = [(rows[column], of[name].events, key) for column, (name, key) in table.about.items()]
        events = table.make(rows, *(told.take(pc.index_in(column, told[key])) for column, told, key in abouts))
        happened = _flags(pc.is_valid(events["event_id"]))
        self.silent = _filter(rows, ~happened)
        events, numbers, rows = _filter(events, happened), numbers[happened], _filter(rows, happened)
        columns = {name: events[name] for name in arrow_schema(table.event).names}
        checked = check(table.event, columns, self.file.path.name, self.now)
        for i, fault in sorted(checked.faults.items()):
            self.aside.add(int(numbers[i]), fault, self._cells(rows, i))
        events, numbers, rows = checked.rows, numbers[checked.kept], _filter(rows, checked.kept)
        heard = _ints((rows if table.heard in rows.column_names else events)[table.heard or "event_timestamp"])
        early = heard < _ints(events["event_timestamp"])
        name, rule = table.heard or "event_timestamp", "must not be before the time of what it is about"
        events, heard, rows, numbers = self._without(early, name, rule, heard, events, heard, rows, numbers)
        return events, heard, rows, numbers

    def _without(self, wrong: NDArray[np.bool_], column: str, rule: str, values: Any, *all_: Any) -> Any:
        """Tables and arrays without the wrong rows, set aside; the last two are the rows, their numbers."""
        if not wrong.any():
            return all_
        rows, numbers = all_[-2:]
        for i in np.flatnonzero(wrong).tolist():
            value = values[i].as_py() if isinstance(values, pa.ChunkedArray) else int(values[i])
            self.aside.add(int(numbers[i]), Fault(column, rule, repr(str(value)[:80])), self._cells(rows, i))
        return tuple(_filter(x, ~wrong) for x in all_)

    def _without_duplicates(
        self, events: pa.Table, heard: Ints, rows: pa.Table, numbers: Ints
    ) -> tuple[pa.Table, Ints, pa.Table, int]:
        """The first of each event_id, its row, and how many of the others say something else than it does."""
        ids = events["event_id"].cast(pa.large_string()).combine_chunks()
        code = _ints((ids.chunk(0) if isinstance(ids, pa.ChunkedArray) else ids).dictionary_encode().indices)
        newest = np.maximum.accumulate(code) if len(code) else code
        first = np.diff(newest, prepend=-1) > 0  # codes are given in the order of appearance
        again = np.flatnonzero(~first)
        if not len(again):
            return events, heard, rows, 0
        origin = np.flatnonzero(first)[code[again]]
        mine, theirs = rows.take(pa.array(again)), rows.take(pa.array(origin))
        other = np.zeros(len(again), bool)
        for name in rows.column_names:
            other |= _flags(pc.not_equal(mine[name], theirs[name]))
        for i, n in zip(again[other].tolist(), numbers[origin[other]].tolist(), strict=True):
            rule = "must stand for one row, another one has it"
            value = f"{str(events['event_id'][i].as_py())[:80]!r}, as in {self.file.unit} {n}"
            self.aside.add(int(numbers[i]), Fault("event_id", rule, value), self._cells(rows, i))
        return _filter(events, first), heard[first], _filter(rows, first), int(other.sum())

    def _cells(self, rows: pa.Table, i: int) -> list[str]:
        """What was read of a row, in the order of the file."""
        row = rows.slice(i, 1).to_pylist()[0]
        return [str(row.get(column, "")) for column in _shown(self.table, self.file)]

    def _stop_if_too_many(self) -> None:
        broken = self.aside.rows
        if broken > self.most * self.rows:
            raise BadData(
                f"{self.file.path.name}: {self.aside.most_broken()}: {broken} of {self.rows} rows are broken, "
                f"MLSYS_MAX_QUARANTINED={self.most:g} allows fewer; nothing was taken over; see {self.aside.path}"
            )


def _filter(x: Any, keep: NDArray[np.bool_]) -> Any:
    return x[keep] if isinstance(x, np.ndarray) else x.filter(pa.array(keep))


def _flags(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.asarray(column.to_numpy(zero_copy_only=False), bool)


def _ints(column: Any) -> Ints:
    return np.asarray(column.to_numpy(zero_copy_only=False), np.int64)


def _text(column: pa.Array) -> list[str]:
    """As one would type it; Arrow writes what Python has no type for."""
    try:
        return ["" if value is None else value for value in column.cast(pa.string()).to_pylist()]
    except pa.ArrowException:
        return [str(value) for value in column]
