"""A folder of somebody's own files: what is good is taken once, what is broken is set aside, nothing is lost."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from common.clock import DAY, SECOND, SimulatedClock
from common.data import folder
from common.data.folder import Derived, Layout, Part, Shaped, UserTable, files
from common.data.folder.contract import check
from common.data.log import EventLog
from common.errors import BadData, PlatformError
from common.progress import Progress
from common.schema import Event, Record, arrow_schema, from_table

NOW = 1_700_000_000 * SECOND


class Visit(Event):
    user: str = Field(min_length=1, max_length=5)
    page: Literal["home", "shop"]
    spent: float = Field(ge=0)
    seconds: int = Field(gt=0)
    new: bool


class Verdict(Event):
    visit: str
    user: str
    bad: bool


class Told(Record):
    visit: str
    bad: bool
    told_timestamp: int = Field(ge=0)
    by: Literal["man", "machine"] = "man"


def verdicts(told: pa.Table, visits: pa.Table) -> pa.Table:
    return pa.table(
        {
            "event_id": pc.binary_join_element_wise(told["visit"], told["told_timestamp"].cast(pa.string()), "."),
            "event_timestamp": visits["event_timestamp"],
            "visit": told["visit"],
            "user": visits["user"],
            "bad": told["bad"],
        }
    )


LAYOUT: Layout = (
    UserTable(name="visits", row=Visit, event=Visit),
    UserTable(name="told", row=Told, event=Verdict, make=verdicts, about={"visit": ("visits", "event_id")},
              heard="told_timestamp",
              required=False),
)  # fmt: skip
HEADER = "event_id,event_timestamp,user,page,spent,seconds,new\n"


def line(name: str, at: object = SECOND, user: str = "ann", spent: object = 1.5, new: object = "true") -> str:
    return f"{name},{at},{user},shop,{spent},3,{new}\n"


class Folder:
    def __init__(self, root: Path) -> None:
        self.root, self.said = root / "own", list[str]()
        self.quarantine = root / "quarantine"
        self.root.mkdir(exist_ok=True)

    def write(self, text: str | bytes, name: str = "visits.csv") -> "Folder":
        (self.root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return self

    def read(self, most: float = 1.0, layout: Layout = LAYOUT) -> list[Part]:
        return folder.read(layout, self.root, self.quarantine, most=most, now=NOW, say=self.said.append)

    def aside(self) -> list[list[str]]:
        files = [path.read_bytes().decode() for path in sorted(self.quarantine.glob("*.csv"))]
        return [row for text in files for row in csv.reader(io.StringIO(text, newline=""))]


@pytest.fixture
def own(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def counts(part: Part) -> tuple[int, int, int, int]:
    return part.rows, part.events.num_rows, part.duplicates, part.quarantined


@pytest.mark.parametrize(
    ("stamp", "us"),
    [
        ("1704067200000001", 1_704_067_200_000_001),
        ("0001", 1),
        ("2023-01-01T00:00:00Z", 1_672_531_200 * SECOND),
        ("2023-01-01 02:00:00+02:00", 1_672_531_200 * SECOND),
        ("2022-12-31T18:30:00.25-0530", 1_672_531_200 * SECOND + 250_000),
        ("2023-01-01T00:00:00", None),
        ("2023-01-01", None),
        ("2023-02-30T00:00:00Z", None),
        ("2023-01-01T00:00:00.123456789Z", None),
        ("1672531200.0", None),
        ("0x10", None),
        ("-5", None),
        ("1969-12-31T23:59:59Z", None),
        ("2023-11-14T22:13:20.000001Z", None),  # a moment after NOW
        ("9" * 30, None),
        ("", None),
    ],
)
def test_a_time_is_iso_with_an_offset_or_whole_microseconds(own: Folder, stamp: str, us: int | None) -> None:
    (part,) = own.write(HEADER + line("other", "2022-01-01T00:00:00+01:00") + line("v", stamp)).read()
    times = dict(zip(part.events["event_id"].to_pylist(), part.events["event_timestamp"].to_pylist(), strict=True))
    assert times.get("v") == (None if us is not None and us > NOW else us)


def test_rows_are_sorted_by_the_hearing_and_ties_stay_as_they_were(own: Folder) -> None:
    rows = [("c", 30), ("b", 10), ("a", 10), ("d", 20)]
    (part,) = own.write(HEADER + "".join(line(name, at) for name, at in rows)).read()
    assert part.events["event_id"].to_pylist() == ["b", "a", "d", "c"]
    assert part.heard.tolist() == [10, 10, 20, 30]


def test_the_same_row_twice_is_taken_once_and_another_row_of_that_id_is_set_aside(own: Folder) -> None:
    text = HEADER + line("v") + line("w") + line("v") + line("v", spent=2) + line("v", spent="1.50")
    (part,) = own.write(text).read()
    assert counts(part) == (5, 2, 2, 1)
    assert part.events["spent"].to_pylist() == [1.5, 1.5]
    assert own.aside()[1][:2] == ["5", "event_id: must stand for one row, another one has it, got 'v', as in line 2"]
    assert own.said[0] == "  visits.csv: 2 rows are there twice, dropped once"


@pytest.mark.parametrize(
    "text",
    [
        HEADER.replace("\n", "\r\n") + line("v").replace("\n", "\r\n") + line("w").replace("\n", "\r\n"),
        "\ufeff" + HEADER + line("v") + line("w"),
        HEADER + "\n" + line("v") + "\n\r\n" + line("w"),
        HEADER.replace("\n", "\r") + line("v").replace("\n", "\r") + line("w"),
        HEADER + line("v") + line("w").strip(),
        HEADER + '"v",1000000,"ann","shop","1.5","3","true"\n' + line("w", new="1"),
        "new,more,event_id,event_timestamp,user,page,spent,seconds\n"
        "TRUE,x,v,1000000,ann,shop,15e-1,3\n1,,w,1000000,ann,shop,+1.5,3\n",
    ],
)
def test_ways_to_write_the_same_table(own: Folder, text: str) -> None:
    (part,) = own.write(text).read()
    assert counts(part) == (2, 2, 0, 0)
    assert part.events.to_pylist() == [
        {"event_id": name, "event_timestamp": SECOND, "user": "ann", "page": "shop", "spent": 1.5, "seconds": 3,
         "new": True} for name in ("v", "w")
    ]  # fmt: skip


def test_a_stray_quote_spoils_one_row(own: Folder) -> None:
    (part,) = own.write(HEADER + line("u") + line('"v') + line('"w"x') + line("x", user='"a"') + line("y")).read()
    assert part.events["event_id"].to_pylist() == ["u", "x", "y"]
    assert [row[:2] for row in own.aside()[1:]] == [
        ["3", "row: quotes must be closed, got '\"v,1000000,ann,shop,1.5,3,true'"],
        ["4", "row: quotes must be closed, got '\"w\"x,1000000,ann,shop,1.5,3,true'"],
    ]


def test_a_value_holds_no_line_break(own: Folder) -> None:
    (part,) = own.write(HEADER + line("u") + line('"v\nv"') + line("w")).read()
    assert part.events["event_id"].to_pylist() == ["u", "w"]
    assert [row[0] for row in own.aside()[1:]] == ["3", "4"]


def test_what_is_set_aside_can_be_found_and_runs_in_no_spreadsheet(own: Folder) -> None:
    text = HEADER + line("u") + line("v", user="=1+cmd|x") + line("w", spent="-5") + line("@x", at="+SUM(A1)")
    (part,) = own.write(text).read()
    assert own.aside() == [
        ["line", "reason", *HEADER.strip().split(",")],
        ["3", "user: string should have at most 5 characters, got '=1+cmd|x'",
         "v", "1000000", "'=1+cmd|x", "shop", "1.5", "3", "true"],
        ["4", "spent: input should be greater than or equal to 0, got '-5.0'",
         "w", "1000000", "ann", "shop", "-5", "3", "true"],
        ["5", "event_timestamp: must be ISO 8601 with Z or an offset, or whole microseconds since 1970 in UTC, "
              "got '+SUM(A1)'", "'@x", "'+SUM(A1)", "ann", "shop", "1.5", "3", "true"],
    ]  # fmt: skip
    assert (own.quarantine / f"visits-{part.digest[:12]}.csv").exists()
    assert own.said[-1].startswith("  visits.csv: 3 of 4 rows set aside: user: string should have at most 5 characters")


def test_a_folder_without_faults_leaves_no_quarantine(own: Folder) -> None:
    own.write(HEADER + line("v")).read()
    assert own.aside() == []


def test_a_run_stops_above_the_share_and_has_set_aside_all_the_same(own: Folder) -> None:
    own.write(HEADER + "".join(line(f"v{i}") for i in range(98)) + line("x", spent="x") + line("y", spent=-1))
    assert counts(own.read(most=0.02)[0]) == (100, 98, 0, 2)
    with pytest.raises(BadData, match=r"2 of 100 rows are broken, MLSYS_MAX_QUARANTINED=0.019 allows fewer"):
        own.read(most=0.019)
    assert len(own.aside()) == 3


def test_what_is_not_in_the_layout_is_ignored_and_said(own: Folder) -> None:
    own.write(HEADER.replace("\n", ",iban\n") + line("v").replace("\n", ",x\n")).write("", "telled.csv")
    (part,) = own.read()
    assert part.ignored == ("iban",)
    assert own.said == [
        "  not in the layout, ignored: 'telled.csv'",
        "  visits.csv: columns not in the layout, ignored: 'iban'",
    ]


def test_a_row_is_joined_with_what_it_is_about(own: Folder) -> None:
    own.write(HEADER + line("v", 10, "ann") + line("w", 20, "bob") + line("x", NOW + 1))
    own.write("visit,bad,told_timestamp,by\nw,1,30,\nv,0,40,machine\nx,1,50,man\ny,1,50,man\nw,1,19,man\n", "told.csv")
    visits, told = own.read()
    assert told.events.select(["event_id", "event_timestamp", "user", "bad"]).to_pylist() == [
        {"event_id": "w.30", "event_timestamp": 20, "user": "bob", "bad": True},
        {"event_id": "v.40", "event_timestamp": 10, "user": "ann", "bad": False},
    ]
    assert told.heard.tolist() == [30, 40]
    assert [row[1] for row in own.aside()[1:4]] == [
        "visit: must be the event_id of a row of visits.csv, got 'x'",
        "visit: must be the event_id of a row of visits.csv, got 'y'",
        "told_timestamp: must not be before the time of what it is about, got '19'",
    ]


def test_a_derived_id_may_not_be_that_of_another_row(own: Folder) -> None:
    own.write(HEADER + line("v", 10) + line("v.30", 20))
    own.write("visit,bad,told_timestamp\nv,1,30\n", "told.csv")
    assert counts(own.read()[1]) == (1, 0, 0, 1)


def test_parquet_in_types_of_its_own_says_the_same_as_csv(own: Folder) -> None:
    stamps = pa.array([SECOND * 7, SECOND * 5], pa.timestamp("us", "UTC"))
    rows = {
        "event_id": pa.array(["v", "w"], pa.large_string()),
        "event_timestamp": stamps.cast(pa.timestamp("s", "Europe/Berlin")),
        "user": pa.array(["ann", "bob"]).dictionary_encode(),
        "page": ["shop", "home"],
        "spent": pa.array([1, 2], pa.int8()),
        "seconds": pa.array([3, 4], pa.uint16()),
        "new": pa.array([1, 0], pa.int32()),
    }
    pq.write_table(pa.table(rows), own.root / "visits.parquet")
    (parquet,) = own.read()
    (own.root / "visits.parquet").unlink()
    (text,) = own.write(HEADER + "v,7000000,ann,shop,1,3,true\nw,1970-01-01T00:00:05Z,bob,home,2.0,4,False\n").read()
    assert parquet.events.equals(text.events)
    assert parquet.events["event_id"].to_pylist() == ["w", "v"]


def test_text_in_parquet_that_is_not_utf8_is_one_line(own: Folder) -> None:
    (part,) = own.write(HEADER + line("v")).read()
    table = part.events
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe")]
    )
    pq.write_table(table.set_column(2, "user", bad), own.root / "visits.parquet")
    (own.root / "visits.csv").unlink()
    with pytest.raises(BadData, match="^visits.parquet: cannot be read as PARQUET: .*UTF8"):
        own.read()


# The columns' check is a sieve for the record's own rules

values = {
    "user": st.text(max_size=7),
    "page": st.sampled_from(["home", "shop", "Shop", ""]),
    "spent": st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 100.0, 100.00000000000001])),
    "seconds": st.integers(-(2**63), 2**63 - 1),
    "new": st.booleans(),
}


@given(st.lists(st.fixed_dictionaries(values), min_size=1, max_size=20))
def test_whole_columns_keep_the_contract_exactly_where_the_record_does(said: list[dict[str, Any]]) -> None:
    rows = [{"event_id": f"v{i}\0"[: 2 + i % 3], "event_timestamp": i, **row} for i, row in enumerate(said)]
    table = pa.Table.from_pylist(rows, pa.schema([f.with_nullable(True) for f in arrow_schema(Visit)]))
    checked = check(Visit, {name: table[name].combine_chunks() for name in table.column_names}, "f", NOW)

    def keeps(row: dict[str, Any]) -> bool:
        try:
            Visit.model_validate(row)
        except ValidationError:
            return False
        return True

    assert checked.kept.tolist() == [keeps(row) for row in rows]
    assert set(checked.faults) == set(np.flatnonzero(~checked.kept).tolist())


class Odd(Record):
    word: str = Field(pattern=r"^\D+$")  # Arrow knows ten digits only


def test_a_rule_that_columns_cannot_apply_is_left_to_the_record() -> None:
    assert check(Odd, {"word": pa.array(["12", "x", "٣"])}, "f", NOW).kept.tolist() == [False, True, False]


# Into the log


@contextmanager
def opened(path: Path) -> Iterator[EventLog]:
    with EventLog(path / "log.db", SimulatedClock(NOW), (Visit, Verdict)) as log:
        yield log


def quiet() -> Progress:
    return Progress(quiet=True)


def test_a_folder_enters_the_log_once_in_the_order_of_hearing(own: Folder, tmp_path: Path) -> None:
    own.write(HEADER + line("v", 10) + line("w", 30)).write("visit,bad,told_timestamp\nv,1,30\nv,0,20\n", "told.csv")
    with opened(tmp_path) as log:
        assert folder.append(log, own.read(), quiet()) == (4, 0)
        assert log.read(Visit)["position"].to_pylist() == [1, 3]
        assert log.read(Verdict)["position"].to_pylist() == [2, 4]
        assert log.read(Verdict)["created_timestamp"].to_pylist() == [20, 30]
        assert folder.append(log, own.read(), quiet()) == (0, 4)
        own.write(HEADER + line("v", 10) + line("w", 30) + line("x", 30) + line("y", 40))
        assert folder.append(log, own.read(), quiet()) == (2, 4)
        assert log.head().position == 6


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (line("v", 10, spent=9), r"^visits.csv: spent: must stay as it is in the log, which does not change: 'v' has "
         r"'1.5' there, got '9.0'; use another MLSYS_HOME to start anew$"),
        (line("late", 20), r"^visits.csv: 1 rows are new but older than the log's newest event, and a log only grows "
         r"at its end; the first is 'late'; use another MLSYS_HOME to start anew$"),
    ],
)  # fmt: skip
def test_the_log_does_not_change(own: Folder, tmp_path: Path, row: str, message: str) -> None:
    with opened(tmp_path) as log:
        folder.append(log, own.write(HEADER + line("v", 10) + line("w", 30)).read(), quiet())
        with pytest.raises(BadData, match=message):
            folder.append(log, own.write(HEADER + row + line("w", 30) + line("x", 40)).read(), quiet())
        assert log.head().position == 2


# Whatever a folder holds

ODD = ["", " ", "\0", '"', '""', "'", ",", "\n", "\r", "\r\n", "=1", "-", "nan", "inf", "-0", "1e999", "9" * 40, "ü",
       "\ufeff", "\u2028", "NULL", "2024-01-01", "2024-01-01T00:00:00Z", "x" * 300]  # fmt: skip
VALID = (HEADER + "".join(line(f"v{i}", i * DAY, new=i % 2) for i in range(12))).encode()
TOLD = b"visit,bad,told_timestamp\n" + b"".join(b"v%d,1,%d\n" % (i, (i + 1) * DAY) for i in range(12))


def read_or_refused(own: Folder, most: float) -> list[Part] | str:
    try:
        return own.read(most)
    except PlatformError as error:
        return str(error)


@st.composite
def mutated(draw: st.DrawFn, valid: bytes) -> bytes:
    """A valid file that somebody or something has touched a few times."""
    text = valid
    for _ in range(draw(st.integers(1, 4))):
        how = draw(st.sampled_from(["flip", "cut", "insert", "repeat", "column", "order", "ends", "value", "wrap"]))
        if how == "flip" and text:
            i = draw(st.integers(0, len(text) - 1))
            text = text[:i] + bytes([text[i] ^ draw(st.integers(1, 255))]) + text[i + 1 :]
        elif how == "cut":
            text = text[draw(st.sampled_from([0, 0, 3])) : draw(st.integers(0, len(text)))]
        elif how == "insert":
            i = draw(st.integers(0, len(text)))
            text = text[:i] + draw(st.one_of(st.binary(max_size=5), st.sampled_from(ODD).map(str.encode))) + text[i:]
        elif how == "ends":
            text = text.replace(
                b"\n", draw(st.sampled_from([b"\r\n", b"\r", b"\n\n", b"\n\r"])), draw(st.integers(0, 20))
            )
        elif how == "wrap":
            text = draw(st.sampled_from([b"\xef\xbb\xbf", b"\xff\xfe", b"\n", b'"'])) + text
        else:
            rows = [row.split(b",") for row in text.split(b"\n")]
            r = draw(st.integers(0, len(rows) - 1))
            c = draw(st.integers(0, max(map(len, rows)) - 1))
            if how == "repeat":
                rows.insert(r, rows[draw(st.integers(0, len(rows) - 1))])
            elif how == "order":
                rows[1:] = draw(st.permutations(rows[1:]))
            elif how == "value" and c < len(rows[r]):
                rows[r][c] = draw(st.sampled_from(ODD)).encode()
            elif how == "column":
                drop = draw(st.booleans())
                rows = [row[:c] + ([] if drop else row[c : c + 1] * 2) + row[c + 1 :] for row in rows]
            text = b"\n".join(b",".join(row) for row in rows)
    return text


def lines_of(text: bytes) -> int:
    """How many rows a CSV has: lines that are not empty, but for the header."""
    return sum(line != "\n" for line in list(io.TextIOWrapper(io.BytesIO(text), "utf-8-sig"))[1:])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(visits=mutated(VALID), told=mutated(TOLD), most=st.sampled_from([0.0, 0.2, 1.0]))
@example(visits=b"", told=TOLD, most=1.0)
@example(visits=VALID.replace(b"v1,", b'"v1,'), told=TOLD, most=1.0)
@example(visits=VALID.replace(b"v1,", b"v\0,"), told=TOLD, most=1.0)
def test_a_mutated_csv_is_read_or_refused_in_one_line_and_no_row_is_lost(
    visits: bytes, told: bytes, most: float
) -> None:
    with TemporaryDirectory() as root:
        own = Folder(Path(root)).write(visits).write(told, "told.csv")
        parts = read_or_refused(own, most)
        if isinstance(parts, str):
            assert re.match(r"(visits|told)\.csv: .*\Z", parts)
            return
        for part, text in zip(parts, (visits, told), strict=True):
            assert part.rows == lines_of(text) == part.events.num_rows + part.duplicates + part.quarantined
            assert part.quarantined <= most * part.rows
            assert np.all(np.diff(part.heard) >= 0)
            assert part.heard.max(initial=0) <= NOW
        assert len(own.aside()) == sum(p.quarantined + 1 for p in parts if p.quarantined)
        with opened(Path(root)) as log:
            new, there = folder.append(log, parts, quiet())
            assert (new, there) == (sum(p.events.num_rows for p in parts), 0)
            assert folder.append(log, parts, quiet()) == (0, new)


@given(st.lists(st.text(alphabet="ab,\0 \t'=\u2028ü", max_size=6), max_size=8), st.booleans())
def test_lines_read_at_once_are_those_read_one_by_one(said: list[str], ended: bool) -> None:
    lines = [line + "\n" for line in said]
    if not ended and said and said[-1]:
        lines[-1] = said[-1]
    width = lines[0].count(",") + 1 if lines else 1
    fast, slow = files._plain(lines, 2, width), files._quoted(lines, 2, width)
    if fast is None:
        assert slow.ragged or not lines
        return
    assert [column.to_pylist() for column in fast.columns] == [column.to_pylist() for column in slow.columns]
    assert fast.numbers.tolist() == slow.numbers.tolist()
    assert not slow.ragged


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


VISITS = pa.Table.from_pylist(
    [
        {
            "event_id": f"v{i}", "event_timestamp": i, "user": "ann", "page": "shop", "spent": 1.5, "seconds": 3,
            "new": True,
        }
        for i in range(12)
    ]
)  # fmt: skip
FOREIGN: Sequence[pa.Array] = [
    pa.nulls(12), pa.array([[1]] * 12), pa.array([{"a": 1}] * 12), pa.array([b"\xff"] * 12), pa.array([2.5] * 12),
    pa.array([float("nan")] * 12), pa.array([None, "x"] * 6), pa.array([2**64 - 1] * 12, pa.uint64()),
    pa.array([0] * 12, pa.date32()), pa.array([2**62] * 12, pa.timestamp("ms", "UTC")),
    pa.array([1] * 12, pa.timestamp("ns", "UTC")), pa.array([1] * 12, pa.duration("s")), pa.array([True, None] * 6),
    pa.array([1] * 12, pa.decimal128(30, 2)), pa.array(["x", None] * 6).dictionary_encode(),
    pa.array([-(2**63)] * 12, pa.timestamp("us", "+05:30")), pa.array([1] * 12, pa.timestamp("us", "Nowhere/At_all")),
]  # fmt: skip


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    column=st.sampled_from(VISITS.column_names),
    foreign=st.one_of(st.none(), st.sampled_from(FOREIGN)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=3),
    cut=st.one_of(st.none(), st.floats(0, 1)),
)
def test_a_mutated_parquet_file_is_read_or_refused_in_one_line_and_no_row_is_lost(
    column: str, foreign: pa.Array | None, flips: list[tuple[float, int]], cut: float | None
) -> None:
    table = VISITS if foreign is None else VISITS.set_column(VISITS.column_names.index(column), column, foreign)
    content = bytearray(parquet(table))
    for place, mask in flips:
        content[int(place * len(content))] ^= mask
    with TemporaryDirectory() as root:
        own = Folder(Path(root)).write(
            bytes(content[: None if cut is None else int(cut * len(content))]), "visits.parquet"
        )
        parts = read_or_refused(own, 1.0)
        if isinstance(parts, str):
            assert re.match(r"visits\.parquet: .*\Z", parts)
            return
        (part,) = parts
        assert part.rows == part.events.num_rows + part.duplicates + part.quarantined
        assert len(own.aside()) == part.quarantined + bool(part.quarantined)


# A table of another form, and what follows from it


class Night(Event):
    user: str
    visits: int


def tall(raw: pa.Table, file: str, now: int) -> Shaped:
    """A column per user: the page where each was at a time."""
    if "at" not in raw.column_names:
        raise BadData(f"{file}: header: must have at")
    users = [name for name in raw.column_names if name not in ("at", "weather")]
    n, m = raw.num_rows, len(users)
    at = pa.chunked_array([raw["at"].combine_chunks()] * m)
    columns = {
        "event_id": pc.binary_join_element_wise(pa.array(np.repeat(users, n)), at.combine_chunks(), "@"),
        "event_timestamp": at,
        "user": pa.array(np.repeat(users, n)),
        "page": pa.chunked_array([raw[user].combine_chunks() for user in users]),
        "spent": pa.repeat(1.5, n * m),
        "seconds": pa.repeat(1, n * m),
        "new": pa.repeat(False, n * m),
    }
    lost = np.flatnonzero(pc.equal(columns["page"], "nowhere").to_numpy(zero_copy_only=False))
    faults = {int(i): folder.Fault("page", "must be a place", "'nowhere'") for i in lost}
    return Shaped(
        rows=pa.table(columns), places=np.tile(np.arange(n), m), faults=faults, ignored=("weather",),
        notes=(f"{m} users",),
    )  # fmt: skip


def arrived(rows: pa.Table) -> pa.Table:
    """Who is at home is no visitor yet."""
    at_home = pc.equal(rows["page"], "home")
    return rows.set_column(0, "event_id", pc.if_else(at_home, pa.scalar(None, pa.string()), rows["event_id"]))


def nights(rows: pa.Table, now: int) -> pa.Table:
    """How many were seen of each user on a day, home or not, heard on the next."""
    days = pc.add(pc.divide(rows["event_timestamp"], DAY), 1)
    counts = rows.append_column("day", days).group_by(["user", "day"], use_threads=False).aggregate([("page", "count")])
    name = pc.binary_join_element_wise(counts["user"], counts["day"].cast(pa.string()), ".night.")
    return pa.table(
        {"event_id": name, "event_timestamp": pc.multiply(counts["day"], DAY), "user": counts["user"],
         "visits": counts["page_count"]}
    )  # fmt: skip


TALL: Layout = (
    UserTable(
        name="visits", row=Visit, event=Visit, make=arrived, shape=tall, derive=(Derived(event=Night, make=nights),)
    ),
)


def test_a_table_of_another_form_is_read_row_by_row_and_none_is_lost(own: Folder) -> None:
    own.write(
        "at,ann,bob,weather\n1,shop,home,sun\n2,nowhere,shop,sun\n3,shop,moon,sun\n"
        f"{NOW + 1},shop,shop,rain\n3,shop,x\n"
    )
    visits, seen = own.read(layout=TALL)
    assert visits.events["event_id"].to_pylist() == ["ann@1", "bob@2", "ann@3"]
    assert counts(visits) == (9, 3, 0, 5)
    assert (visits.silent, visits.ignored, visits.notes) == (1, ("weather",), ("2 users",))
    assert sorted(tuple(row[:2]) for row in own.aside()[1:]) == [
        ("3", "page: must be a place, got 'nowhere'"),
        ("4", "page: input should be 'home' or 'shop', got 'moon'"),
        ("5", f"event_timestamp: must not be in the future, got '{NOW + 1}'"),
        ("5", f"event_timestamp: must not be in the future, got '{NOW + 1}'"),
        ("6", "row: must have 4 values, got '3,shop,x'"),
    ]
    assert own.aside()[0] == ["line", "reason", *Visit.model_fields]
    assert own.said[0] == "  visits.csv: 2 users"
    assert own.said[1] == "  visits.csv: columns not in the layout, ignored: 'weather'"
    assert (seen.file, seen.kind, seen.derived) == ("visits.csv (Night)", Night, True)
    assert [(n.user, n.visits) for n in from_table(Night, seen.events)] == [("ann", 2), ("bob", 2)]
    with pytest.raises(BadData, match=r"^visits.csv: header: must have at$"):
        own.write("when,ann\n1,shop\n").read(layout=TALL)
    with pytest.raises(BadData, match=r"^visits.csv: must have rows, has only a header$"):
        own.write("at,ann\n").read(layout=TALL)


def test_what_follows_from_a_table_stays_as_it_is_in_the_log_and_none_is_made_of_the_past(
    own: Folder, tmp_path: Path
) -> None:
    with EventLog(tmp_path / "log.db", SimulatedClock(NOW), (Visit, Night)) as log:
        own.write(f"at,ann\n1,shop\n{2 * DAY},shop\n")
        assert folder.append(log, own.read(layout=TALL), quiet()) == (4, 0)
        assert log.read(Night)["event_timestamp"].to_pylist() == [DAY, 3 * DAY]
        own.write(f"at,ann,bob\n1,shop,home\n2,home,home\n{2 * DAY},shop,home\n{3 * DAY},shop,home\n")
        parts = own.read(layout=TALL)
        assert {n.event_id: n.visits for n in from_table(Night, parts[1].events)} == {
            "ann.night.1": 2, "ann.night.3": 1, "ann.night.4": 1, "bob.night.1": 2, "bob.night.3": 1, "bob.night.4": 1,
        }  # fmt: skip
        assert folder.append(log, parts, quiet()).new == 4  # of bob's first night nobody thought then
        assert [(n.event_id, n.visits) for n in from_table(Night, log.read(Night))] == [
            ("ann.night.1", 1), ("ann.night.3", 1), ("bob.night.3", 1), ("ann.night.4", 1), ("bob.night.4", 1),
        ]  # fmt: skip
        assert folder.append(log, own.read(layout=TALL), quiet()).new == 0
