"""`mlsys train fraud --data DIR`: each fault is one line, and what is learned is what the world's own log teaches."""

import argparse
import csv
import io
import json
import os
import re
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.checks import Bench
from common.cli import main, making
from common.cli.desk import Desk
from common.clock import HOUR, SECOND, SimulatedClock
from common.errors import NotFound
from common.lifecycle import training
from common.schema import arrow_schema
from common.settings import Settings
from common.system import Answered
from systems.fraud.data import Outcome, Payment

START = 1_704_067_200 * SECOND  # 2024-01-01
N = 300  # payments, one an hour


def payments() -> list[dict[str, Any]]:
    return [
        {
            "event_id": f"p{i}", "event_timestamp": START + i * HOUR, "card_id": f"c{i % 7}", "device_id": "unknown",
            "merchant_id": f"m{i % 5}", "terminal_id": f"t{i % 5}", "category": "fuel", "channel": "terminal",
            "amount": 10.5 + i, "x_km": 0.0, "y_km": -1.5, "card_age_days": 30.0,
        }
        for i in range(N)
    ]  # fmt: skip


def outcomes() -> list[dict[str, Any]]:
    return [
        {"payment_id": f"p{i}", "fraud": "true", "reported_timestamp": START + i * HOUR + 1} for i in range(0, N, 50)
    ]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A valid one; state lies beside it, and nothing is trained."""
    monkeypatch.setenv("MLSYS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLSYS_KEYS", str(tmp_path / "keys"))
    monkeypatch.delenv("MLSYS_DATABASE_URL", raising=False)
    monkeypatch.delenv("MLSYS_MAX_QUARANTINED", raising=False)
    write(tmp_path / "own", "payments", payments())
    write(tmp_path / "own", "outcomes", outcomes())
    return tmp_path / "own"


def rewrite(folder: Path, name: str, change: Callable[[list[dict[str, Any]]], object]) -> None:
    with (folder / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    write(folder, name, rows)


def put(column: str, value: object, n: int = 4, name: str = "payments") -> Callable[[Path], None]:
    """The first n rows say something else."""

    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows[:n]:
            row[column] = value

    return lambda folder: rewrite(folder, name, change)


def to_parquet(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        pq.write_table(change(pa.Table.from_pylist(payments())), folder / "payments.parquet")
        (folder / "payments.csv").unlink()

    return do


def drop(column: str) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, "payments", lambda rows: [row.pop(column) for row in rows])


def append(folder: Path, text: bytes) -> None:
    with (folder / "payments.csv").open("ab") as file:
        file.write(text)


def cut(folder: Path) -> None:
    to_parquet(lambda table: table)(folder)
    path = folder / "payments.parquet"
    path.write_bytes(path.read_bytes()[:-40])


def renamed_column(column: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda t: t.set_column(t.column_names.index(column), column, t[column].cast(kind))


ISO = "must be ISO 8601 with Z or an offset, or whole microseconds since 1970 in UTC"
OVER = "{} of 300 rows are broken, MLSYS_MAX_QUARANTINED=0.01 allows fewer; nothing was taken over; see FILE"
BROKEN: list[tuple[str, Callable[[Path], object], int, str]] = [
    ("a missing column", drop("amount"), 1,
     "payments.csv: header: must have amount, got 'event_id', 'event_timestamp', 'card_id', 'device_id', "
     "'merchant_id', 'terminal_id', 'category', 'channel', 'x_km', 'y_km', 'card_age_days'"),
    ("a wrong type", put("amount", "ten"), 1,
     "payments.csv: amount: input should be a valid number (4 rows, first in line 2: got 'ten'): " + OVER.format(4)),
    ("NaN", put("amount", "NaN"), 1,
     "payments.csv: amount: input should be a finite number (4 rows, first in line 2: got 'nan'): " + OVER.format(4)),
    ("infinity", put("x_km", "-inf", 5), 1,
     "payments.csv: x_km: input should be a finite number (5 rows, first in line 2: got '-inf'): " + OVER.format(5)),
    ("a negative amount", put("amount", "-5"), 1,
     "payments.csv: amount: input should be greater than 0 (4 rows, first in line 2: got '-5.0'): " + OVER.format(4)),
    ("an amount beyond all bounds", put("amount", "1e999"), 1,
     "payments.csv: amount: input should be a finite number (4 rows, first in line 2: got 'inf'): " + OVER.format(4)),
    ("a name that is too long", put("card_id", "c" * 101), 1,
     "payments.csv: card_id: string should have at most 100 characters (4 rows, first in line 2: got "
     f"'{'c' * 80}'): " + OVER.format(4)),
    ("an empty name", put("card_id", ""), 1,
     "payments.csv: card_id: string should have at least 1 character (4 rows, first in line 2: got ''): "
     + OVER.format(4)),
    ("an unknown category", put("category", "boats"), 1,
     "payments.csv: category: input should be 'groceries', 'fuel', 'restaurants', 'health', 'fashion', 'electronics', "
     "'travel' or 'digital' (4 rows, first in line 2: got 'boats'): " + OVER.format(4)),
    ("a future stamp", put("event_timestamp", "9999-12-31T00:00:00Z"), 1,
     "payments.csv: event_timestamp: must not be in the future (4 rows, first in line 2: got '9999-12-31T00:00:00Z'): "
     + OVER.format(4)),
    ("a stamp without an offset", put("event_timestamp", "2024-01-01T00:00:00"), 1,
     f"payments.csv: event_timestamp: {ISO} (4 rows, first in line 2: got '2024-01-01T00:00:00'): " + OVER.format(4)),
    ("one id for several payments", put("event_id", "p9", 5), 1,
     "payments.csv: event_id: must stand for one row, another one has it (5 rows, first in line 3: got 'p9', as in "
     "line 2): " + OVER.format(5)),
    ("a row with too few values", lambda folder: append(folder, b"p,1,c\n" * 4), 1,
     "payments.csv: row: must have 12 values (4 rows, first in line 302: got 'p,1,c'): "
     + OVER.format(4).replace("300", "304")),
    ("a quote that is not closed", lambda folder: append(folder, b'"p,1,c\n' * 4), 1,
     "payments.csv: row: quotes must be closed (4 rows, first in line 302: got '\"p,1,c'): "
     + OVER.format(4).replace("300", "304")),
    ("several rules at once", lambda folder: (put("amount", "-5")(folder), put("category", "boats", 3)(folder),
                                              rewrite(folder, "payments", lambda rows: rows[9].update(x_km="")))[0], 1,
     "payments.csv: category: input should be 'groceries', 'fuel', 'restaurants', 'health', 'fashion', 'electronics', "
     "'travel' or 'digital' (3 rows, first in line 2: got 'boats'); 2 other rules broken: "
     + OVER.format(5)),
    ("an empty file", lambda folder: (folder / "payments.csv").write_bytes(b""), 1,
     "payments.csv: must not be empty, got 0 bytes"),
    ("only a header", lambda folder: rewrite(folder, "payments", lambda rows: None) or (folder / "payments.csv")
     .write_text((folder / "payments.csv").read_text().splitlines()[0] + "\n"), 1,
     "payments.csv: must have rows, has only a header"),
    ("a truncated Parquet file", cut, 1,
     "payments.parquet: cannot be read as PARQUET: Parquet magic bytes not found in footer. Either the file is "
     "corrupted or this is not a parquet file."),
    ("a Parquet file that is none", lambda folder: (folder / "payments.csv").rename(folder / "payments.parquet"), 1,
     "payments.parquet: cannot be read as PARQUET: Parquet magic bytes not found in footer. Either the file is "
     "corrupted or this is not a parquet file."),
    ("another encoding", lambda folder: append(folder, "p,Müller".encode("latin-1")), 1,
     "payments.csv: must be UTF-8, got byte 0xfc at offset OFFSET, in line 302"),
    ("UTF-16", lambda folder: (folder / "payments.csv").write_bytes("event_id,amount".encode("utf-16")), 1,
     "payments.csv: must be UTF-8, got byte 0xff at offset OFFSET, in line 1"),
    ("a column twice", lambda folder: (folder / "payments.csv").write_text("event_id,event_id\np,p\n"), 1,
     "payments.csv: header: columns must differ, got 'event_id' twice"),
    ("a folder in its place",
     lambda folder: ((folder / "payments.csv").unlink(), (folder / "payments.csv").mkdir())[0], 1,
     "payments.csv: must be a regular file"),
    ("a pipe in its place",
     lambda folder: ((folder / "payments.csv").unlink(), os.mkfifo(folder / "payments.csv"))[0], 1,
     "payments.csv: must be a regular file"),
    ("both formats", lambda folder: pq.write_table(pa.table({"a": [1]}), folder / "payments.parquet"), 1,
     "payments: must be payments.csv or payments.parquet, got both"),
    ("an absent file", lambda folder: (folder / "outcomes.csv").unlink(), 1,
     "outcomes.csv: must be in the folder, or outcomes.parquet; neither is"),
    ("an outcome of no payment", put("payment_id", "p999", name="outcomes"), 1,
     "outcomes.csv: payment_id: must be the event_id of a row of payments.csv (4 rows, first in line 2: got 'p999'): "
     + OVER.format(4).replace("300", "6")),
    ("an outcome heard before its payment", put("reported_timestamp", START - 1, 1, name="outcomes"), 1,
     "outcomes.csv: reported_timestamp: must not be before the time of what it is about (1 row, first in line 2: got "
     f"'{START - 1}'): " + OVER.format(1).replace("300", "6")),
    ("a Parquet stamp without a time zone", to_parquet(renamed_column("event_timestamp", pa.timestamp("us"))), 1,
     "payments.parquet: event_timestamp: must have a time zone, got timestamp[us]"),
    ("a Parquet column of another type", to_parquet(renamed_column("event_timestamp", pa.float64())), 1,
     "payments.parquet: event_timestamp: must be int64, got double"),
    ("a Parquet null", to_parquet(lambda t: t.set_column(8, "amount", pa.array([None] * 4 + [1.0] * (N - 4)))), 1,
     "payments.parquet: amount: input should be a valid number (4 rows, first in row 1: got 'None'): "
     + OVER.format(4)),
]  # fmt: skip


@pytest.mark.parametrize(("change", "status", "line"), [c[1:] for c in BROKEN], ids=[c[0] for c in BROKEN])
def test_a_broken_folder_is_one_line_and_leaves_no_log(
    folder: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], object], status: int, line: str
) -> None:
    change(folder)
    assert main(["train", "fraud", "--data", str(folder)]) == status
    out, err = capsys.readouterr()
    said = re.sub(r"see \S+", "see FILE", re.sub(r"offset \d+", "offset OFFSET", err.splitlines()[-1]))
    assert (out, said) == ("", f"mlsys: {line}")
    assert "Traceback" not in err
    assert not (folder.parent / "home" / "fraud" / "log.db").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--data", "absent"], "--data: must be a folder that can be read, got 'absent': No such file or directory"),
        (["--data", os.devnull], "--data: must be a folder that can be read, got '/dev/null': Not a directory"),
        (["--data", "a\0b"], "--data: must be a folder that can be read, got 'a\\x00b': embedded null byte"),
        (["--data", ".", "--seed", "0"], "argument --seed: not allowed with argument --data; see mlsys train --help"),
        (["--data"], "argument --data: expected one argument; see mlsys train --help"),
    ],
)
def test_a_wrong_call_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    assert main(["train", "fraud", *arguments]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"mlsys: {line}"


def test_a_valid_folder_says_what_it_set_aside_and_trains_on_the_rest(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put("amount", "-5", 2)(folder)
    rewrite(folder, "payments", lambda rows: rows.append(rows[9]))
    monkeypatch.setattr(training, "train", stop)
    monkeypatch.setenv("MLSYS_MAX_QUARANTINED", "0.2")  # of six outcomes, one is of a payment that is set aside
    for new, there in ((298 + 5, 0), (0, 298 + 5)):
        assert main(["train", "fraud", "--data", str(folder)]) == 1
        err = capsys.readouterr().err
        assert "  payments.csv: 1 rows are there twice, dropped once\n" in err
        assert "  payments.csv: 2 of 301 rows set aside: amount: input should be greater than 0 (2 rows, " in err
        assert f"  {new} events are new, {there} were in the log already\n" in err
        assert err.splitlines()[-1] == "mlsys: trained"
    assert len(list((folder.parent / "home" / "fraud" / "quarantine").iterdir())) == 2


def stop(*_: object, **__: object) -> None:
    raise NotFound("trained")


def test_too_short_a_history_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "fraud", "--data", str(folder)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("mlsys: history: must be longer than test_span + ")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(["payments", "outcomes", "decisions"]),
    place=st.floats(0, 1, exclude_max=True),
    odd=st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from([b"\n", b"\r\n", b'"', b",", b"\0", b"nan"])),
    how=st.sampled_from(["insert", "overwrite", "cut"]),
    share=st.sampled_from(["0", "0.01", "1"]),
)  # fmt: skip
def test_whatever_a_folder_holds_the_command_ends_in_one_line(
    name: str, place: float, odd: bytes, how: str, share: str
) -> None:
    with TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        folder = Path(root) / "own"
        write(folder, "payments", payments()[:40])
        write(folder, "outcomes", outcomes()[:1])
        write(folder, "decisions", [{"payment_id": f"p{i}", "action": "block"} for i in range(9)])
        path = folder / f"{name}.csv"
        text = path.read_bytes()
        i = int(place * len(text))
        rest = {"insert": text[i:], "overwrite": text[i + len(odd) :], "cut": b""}[how]
        path.write_bytes(text[:i] + odd + rest)
        patch.setenv("MLSYS_HOME", f"{root}/home")
        patch.setenv("MLSYS_MAX_QUARANTINED", share)
        patch.delenv("MLSYS_DATABASE_URL", raising=False)
        patch.setattr(training, "train", stop)
        with redirect_stderr(io.StringIO()) as err, redirect_stdout(io.StringIO()) as out:
            assert main(["train", "fraud", "--data", str(folder)]) == 1
        last = err.getvalue().splitlines()[-1]
        assert out.getvalue() == ""
        assert last == "mlsys: trained" or re.match(r"mlsys: (payments|outcomes|decisions)\.csv: ", last)
        assert "Traceback" not in err.getvalue()


# A world's own log, written to files, is the same to learn from


@pytest.fixture(scope="module")
def world(benches: Callable[[str, str], Bench]) -> Bench:
    return benches("tests.little", "fraud")


def tables(b: Bench) -> dict[str, pa.Table]:
    payments, outcomes, said = (b.snapshot.of(kind) for kind in (Payment, Outcome, Answered))
    return {
        "payments": payments.select(arrow_schema(Payment).names),
        "outcomes": outcomes.select(["payment_id", "fraud", "source"]).append_column(
            "reported_timestamp", outcomes["created_timestamp"]
        ),
        "decisions": pa.table(
            {
                "payment_id": said["request_id"],
                "action": [json.loads(answer)["action"] for answer in said["answer"].to_pylist()],
                "propensity": said["propensity"],
            }
        ),
    }


def trained(b: Bench, root: Path, data: Path) -> tuple[dict[str, Any], Desk]:
    options = {"system": "fraud", "preset": "small", "data": data, "tune": 0, "json": True}
    arguments = argparse.Namespace(**options, seed=0)
    desk = Desk(Settings(home=root / "home", keys=root / "keys", systems="tests.little"), arguments)
    desk.clock = SimulatedClock(b.snapshot.at)  # type: ignore[assignment]
    return dict(making.train(desk, arguments)), desk


def test_a_worlds_log_written_to_csv_or_parquet_trains_the_same_version(world: Bench, tmp_path: Path) -> None:
    for name, table in tables(world).items():
        for kind, store in (("csv", pyarrow.csv.write_csv), ("parquet", pq.write_table)):
            (tmp_path / kind).mkdir(exist_ok=True)
            shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
            store(shuffled, tmp_path / kind / f"{name}.{kind}")
    said, desk = trained(world, tmp_path / "a", tmp_path / "csv")
    again, _ = trained(world, tmp_path / "b", tmp_path / "parquet")
    assert said["digest"] == again["digest"]
    assert [part["kept"] for part in said["data"].values()] == [t.num_rows for t in tables(world).values()]
    assert {part["quarantined"] + part["duplicates"] for part in said["data"].values()} == {0}
    assert [gate["message"] for gate in said["gates"]][-1] == "above_ceiling: not asked; no ceiling: not a world"
    assert str(tmp_path) not in json.dumps(said)

    with desk.log(world.system) as log:
        own = training.examples(world.system, training.take(world.system, log, desk.snapshots))
    assert own.rows.columns.drop(["position"]).equals(world.examples.rows.columns.drop(["position"]))
    for column in ("x", "as_of", "labels", "weights"):
        np.testing.assert_array_equal(getattr(own, column), getattr(world.examples, column), column)


def test_of_more_payments_than_fit_the_newest_are_learned_from_with_all_that_came_before(
    world: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "MOST", 1_000)
    whole = training.spans(world.system, world.snapshot).final
    cut = training._newest(world.system, world.snapshot, whole)
    few = training.examples(world.system, world.snapshot, wanted=cut)
    for span, wider in zip(cut, whole, strict=True):
        part, full = few.between(*span), world.examples.between(*wider)
        assert len(part) == 1_000 < len(full)
        np.testing.assert_array_equal(part.as_of, full.as_of[-1_000:])
        np.testing.assert_array_equal(part.labels, full.labels[-1_000:])
        np.testing.assert_allclose(part.x, full.x[-1_000:], rtol=1e-9, atol=1e-9)
