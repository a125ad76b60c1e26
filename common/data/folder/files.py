"""The files of a folder, batch by batch: CSV as text, Parquet in its own types. What cannot be read is one line."""

import codecs
import csv
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv as csv_of_arrow

from common.errors import BadData, PlatformError

FORMATS = ("csv", "parquet")
BLOCK = 1 << 20  # bytes looked through at a time; no line of a CSV is that long
LINES = 1 << 22  # characters of lines split at a time
ROWS = 100_000  # of Parquet, at a time


@dataclass(frozen=True)
class Ragged:
    """A line of a CSV that is no row of its columns."""

    number: int
    cells: Sequence[str]
    rule: str


@dataclass(frozen=True)
class Batch:
    columns: Sequence[pa.Array]  # in the order of the file
    numbers: NDArray[np.int64]  # of the rows: CSV, the line in the file; Parquet, 1, 2, ...
    ragged: Sequence[Ragged]


class UserFile(Protocol):
    path: Path
    digest: str  # SHA-256 of its bytes
    unit: str  # what is numbered
    columns: list[str]
    unfinished: bool  # ends without a line end, as if it had been cut off

    def batches(self) -> Iterator[Batch]: ...


def find(folder: Path, name: str, *, required: bool) -> UserFile | None:
    """NAME.csv or NAME.parquet, looked at but not read; None where it is absent and need not be there."""
    with _opened(folder / name):
        there = [path for suffix in FORMATS if (path := folder / f"{name}.{suffix}").exists() or path.is_symlink()]
        if len(there) > 1:
            raise BadData(f"{name}: must be {name}.csv or {name}.parquet, got both")
        if not there and required:
            raise BadData(f"{name}.csv: must be in the folder, or {name}.parquet; neither is")
        if not there:
            return None
    with _opened(there[0]):
        if not there[0].is_file():  # a pipe would make us wait
            raise BadData(f"{there[0].name}: must be a regular file")
        if not there[0].stat().st_size:
            raise BadData(f"{there[0].name}: must not be empty, got 0 bytes")
        file: _Csv | _Parquet = (_Csv if there[0].suffix == ".csv" else _Parquet)(there[0])
    twice = sorted({column for column in file.columns if file.columns.count(column) > 1})
    if twice:
        raise BadData(f"{file.path.name}: header: columns must differ, got {twice[0]!r} twice")
    return file


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Whatever is wrong with the content of a file is said of that file."""
    try:
        yield
    except PlatformError:
        raise
    except (pa.ArrowException, ValueError, MemoryError, OverflowError) as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadData(f"{path.name}: cannot be read as {path.suffix[1:].upper()}: {said}") from None


@contextmanager
def _opened(path: Path) -> Iterator[None]:
    with named(path):
        try:
            yield
        except OSError as error:
            said = " ".join((error.strerror or str(error)).split())[:200]
            raise BadData(f"{path.name}: cannot be read: {said}") from None


class _Csv:
    """A line is a row: a value may stand in quotes but holds no line break, so a stray quote spoils one row only."""

    unit = "line"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digest, self.unfinished = _look_through(path)
        with self._lines() as file:
            header = file.readline().rstrip("\n")
        (cells,) = _split([header])
        if cells is None:
            raise BadData(f"{path.name}: header: quotes must be closed, got {header[:80]!r}")
        self.columns = [cell.strip() for cell in cells]

    @contextmanager
    def _lines(self) -> Iterator[codecs.StreamReaderWriter]:
        with self.path.open(encoding="utf-8-sig", newline=None) as file:  # any line end; a byte order mark is no text
            yield file  # type: ignore[misc]

    def batches(self) -> Iterator[Batch]:
        with _opened(self.path), self._lines() as file:
            next(file)
            start = 2
            while lines := file.readlines(LINES):
                yield _plain(lines, start, len(self.columns)) or _quoted(lines, start, len(self.columns))
                start += len(lines)


def _plain(lines: Sequence[str], start: int, width: int) -> Batch | None:
    """Lines without quotes, at once; None where there are some, or a line does not have so many values."""
    content = "".join(lines)
    if '"' in content:
        return None
    names = [str(i) for i in range(width)]
    try:
        table = csv_of_arrow.read_csv(
            pa.BufferReader(content.encode()),
            csv_of_arrow.ReadOptions(column_names=names, use_threads=False, block_size=len(content) * 4 + 1),  # bytes
            csv_of_arrow.ParseOptions(quote_char=False),
            csv_of_arrow.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
    except pa.ArrowInvalid:
        return None
    numbers = np.flatnonzero([line != "\n" for line in lines]) + start
    if table.num_rows != len(numbers):
        return None
    return Batch([column.combine_chunks() for column in table.columns], numbers, ())


def _quoted(lines: Sequence[str], start: int, width: int) -> Batch:
    rows: list[Sequence[str]] = []
    numbers, ragged = [], []
    for number, (line, cells) in enumerate(zip(lines, _split(lines), strict=True), start):
        if line == "\n":
            continue
        if cells is not None and len(cells) == width:
            rows.append(cells)
            numbers.append(number)
        elif cells is None:
            ragged.append(Ragged(number, [line.removesuffix("\n")], "quotes must be closed"))
        else:
            ragged.append(Ragged(number, cells, f"must have {width} values"))
    columns = list(zip(*rows, strict=True)) or [()] * width
    return Batch([pa.array(c, pa.string()) for c in columns], np.array(numbers, np.int64), ragged)


def _split(lines: Sequence[str]) -> list[list[str] | None]:
    """The cells of each line; None where its quotes are not closed or have something after them."""
    try:
        cells: list[list[str] | None] = list(csv.reader(lines, strict=True))
        if len(cells) == len(lines) and not any(map(_odd, lines)):  # no quotes went over a line's end
            return cells
    except csv.Error:
        pass
    return [_split_one(line) for line in lines]


def _odd(line: str) -> bool:
    return line.count('"') % 2 == 1


def _split_one(line: str) -> list[str] | None:
    if _odd(line):
        return None
    try:
        (cells,) = csv.reader([line], strict=True)
    except csv.Error:
        return None
    return cells


def _look_through(path: Path) -> tuple[str, bool]:
    """The digest of a text file, and whether its last line has no end.

    Raises BadData at the first byte that is not UTF-8, and for a line that does not end.
    """
    digest, decoder, at, last = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")(), 0, b""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            try:
                pending = len(decoder.getstate()[0])
                decoder.decode(block, final=len(block) < BLOCK)
            except UnicodeDecodeError as error:
                byte, where = error.object[error.start], at - pending + error.start
                place = f"offset {where}, in line {_line_of(path, where)}"
                raise BadData(f"{path.name}: must be UTF-8, got byte 0x{byte:02x} at {place}") from None
            if len(block) == BLOCK and b"\n" not in block and b"\r" not in block:
                raise BadData(
                    f"{path.name}: a line must be shorter than {BLOCK} bytes, got a longer one at offset {at}"
                )
            at, last = at + len(block), block[-1:]
    return digest.hexdigest(), last not in b"\r\n"


def _line_of(path: Path, offset: int) -> int:
    ends = [0, 0]
    with path.open("rb") as file:
        while block := file.read(min(BLOCK, offset)):
            ends = [n + block.count(end) for n, end in zip(ends, (b"\n", b"\r"), strict=True)]
            offset -= len(block)
    return max(ends) + 1


class _Parquet:
    unit, unfinished = "row", False

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()
        with pq.ParquetFile(path) as file:
            self.columns = list(file.schema_arrow.names)

    def batches(self) -> Iterator[Batch]:
        with _opened(self.path), pq.ParquetFile(self.path, page_checksum_verification=True) as file:
            number = 0
            for batch in file.iter_batches(ROWS):
                batch.validate(full=True)  # text that is not UTF-8 shows here, not where it is used
                numbers = np.arange(number + 1, number + 1 + batch.num_rows)
                number += batch.num_rows
                yield Batch(batch.columns, numbers, ())
            if number != file.metadata.num_rows:
                raise BadData(f"{self.path.name}: must hold {file.metadata.num_rows} rows as it says, got {number}")
