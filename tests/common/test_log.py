import errno
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, create_model
from pydantic_core import to_json

from common.clock import SimulatedClock, WallClock
from common.data.log import EventLog
from common.data.log.rows import encode
from common.errors import BadDefinition, BadRecord, Damaged, DeadlineExceeded, OutOfOrder, Unavailable
from common.schema import Event, Logged, arrow_schema, from_table


class Payment(Event):
    amount: float
    note: str | None = None
    tags: tuple[int, ...] = ()
    weight: float = Field(default=1.0, allow_inf_nan=True)


class Refund(Event):
    payment: str


KINDS = (Payment, Refund)


def payment(event_id: str, amount: float = 1.0, event_timestamp: int = 0) -> Payment:
    return Payment(event_id=event_id, event_timestamp=event_timestamp, amount=amount)


def row(event: Payment) -> str:
    # repr, for a NaN is not equal to itself, and 0.0 is equal to -0.0
    return repr({**event.model_dump(), "tags": list(event.tags)})


def rows(table: pa.Table) -> list[str]:
    return [repr(row) for row in table.select(arrow_schema(Payment).names).to_pylist()]


def ids(log: EventLog, after: int = 0, until: int | None = None) -> list[str]:
    found: list[str] = log.read(Payment, after, until)["event_id"].to_pylist()
    return found


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock(100)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "log.db"


@pytest.fixture
def log(path: Path, clock: SimulatedClock, database_url: str | None) -> Iterator[EventLog]:
    with EventLog(path, clock, KINDS, url=database_url) as log:
        yield log


def test_positions_count_from_one_and_the_clock_gives_the_time(log: EventLog, clock: SimulatedClock) -> None:
    assert log.head() == Logged(position=0, created_timestamp=0)
    assert log.append([payment("a"), payment("b")]) == [
        Logged(position=1, created_timestamp=100),
        Logged(position=2, created_timestamp=100),
    ]
    clock.advance(107)
    assert log.append([payment("c")]) == [Logged(position=3, created_timestamp=107)]
    assert log.head() == Logged(position=3, created_timestamp=107)


def test_created_timestamp_never_decreases_when_the_clock_does(path: Path) -> None:
    with EventLog(path, SimulatedClock(100), KINDS) as log:
        log.append([payment("a")])
    with EventLog(path, SimulatedClock(40), KINDS) as log:
        assert log.append([payment("b")])[0].created_timestamp == 100


def test_a_retry_gets_the_first_place_and_changes_nothing(log: EventLog, clock: SimulatedClock) -> None:
    (first,) = log.append([payment("a")])
    clock.advance(200)
    again, new, twice = log.append([payment("a"), payment("b"), payment("b")])
    assert again == first
    assert new == twice == Logged(position=2, created_timestamp=200)
    assert ids(log) == ["a", "b"]


@pytest.mark.parametrize("other", [payment("a", 2.0), Refund(event_id="a", event_timestamp=0, payment="x")])
def test_an_id_that_stands_for_another_event_is_refused_with_all_of_its_call(log: EventLog, other: Event) -> None:
    log.append([payment("a")])
    with pytest.raises(BadRecord, match="'a' must stay the Payment at position 1"):
        log.append([payment("b"), other])
    assert ids(log) == ["a"]
    with pytest.raises(BadRecord, match="'c' must stay the Payment at position 2"):
        log.append([payment("c"), payment("c", 2.0)])
    assert ids(log) == ["a"]


def test_an_event_of_another_kind_is_refused(log: EventLog) -> None:
    class Special(Payment):
        pass

    with pytest.raises(BadRecord, match="s: kind: must be one of Payment, Refund, got Special"):
        log.append([payment("a"), Special(event_id="s", event_timestamp=0, amount=1.0)])
    with pytest.raises(BadRecord, match="got Special"):
        log.read(Special)
    assert log.head().position == 0


def test_kinds_that_cannot_be_stored_are_refused(path: Path) -> None:
    class Image(Event):
        pixels: bytes

    with pytest.raises(BadDefinition, match="Image.pixels: bytes lie beside the log"):
        EventLog(path, WallClock(), [Image])
    with pytest.raises(BadDefinition, match="names must differ, got Refund, Refund"):
        EventLog(path, WallClock(), [Refund, Refund])


def test_an_import_keeps_the_times_of_first_acknowledgement(log: EventLog, clock: SimulatedClock) -> None:
    events = [payment("a"), payment("b")]
    imported = log.append(events, created=[150, 160])
    assert [at.created_timestamp for at in imported] == [150, 160]
    assert log.append(events, created=[150, 160]) == imported
    assert log.append([payment("c")])[0].created_timestamp == 160


@pytest.mark.parametrize(
    ("created", "message"),
    [
        ([50, 60], r"created\[0\]: must be >= 100, .* got 50"),
        ([120, 110], r"created\[1\]: must be >= 120, .* got 110"),
        ([120], "one time per event, got 1 for 2"),
    ],
)
def test_an_import_that_runs_backwards_is_refused_whole(log: EventLog, created: list[int], message: str) -> None:
    log.append([payment("a")])
    with pytest.raises(OutOfOrder, match=message):
        log.append([payment("b"), payment("c")], created)
    assert ids(log) == ["a"]


def test_read_gives_one_kind_between_two_positions_in_order(log: EventLog) -> None:
    refund = Refund(event_id="r", event_timestamp=0, payment="a")
    log.append([payment("a"), refund, payment("b"), payment("c")])
    assert ids(log) == ["a", "b", "c"]
    assert ids(log, after=1, until=3) == ["b"]
    table = log.read(Refund)
    assert table["position"].to_pylist() == [2]
    assert from_table(Refund, table) == [refund]


def test_an_empty_read_has_all_columns(log: EventLog) -> None:
    table = log.read(Payment)
    assert table.num_rows == 0
    assert table.column_names == [*arrow_schema(Payment).names, "position", "created_timestamp"]
    log.append([])
    log.append([payment("a")])
    assert log.read(Payment).schema == table.schema


def test_events_longer_than_a_block_and_more_than_a_batch_are_read(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.data.log.BATCH", 2)
    events = [Payment(event_id=str(i), event_timestamp=i, amount=1.0, note="€" * 1_000_000) for i in range(3)]
    log.append([*events, payment("short")])
    assert rows(log.read(Payment)) == list(map(row, [*events, payment("short")]))


payments = st.lists(
    st.builds(
        Payment,
        event_id=st.text(st.characters(min_codepoint=0x20, exclude_categories=["Cs"]), min_size=1, max_size=20),
        event_timestamp=st.integers(0, 2**62 - 1),
        amount=st.floats(allow_nan=False, allow_infinity=False),
        note=st.none()
        | st.text(st.characters(exclude_categories=["Cs"]))
        | st.sampled_from(["NaN", "null", "\n{}", "\0"]),
        tags=st.lists(st.integers(-(2**63), 2**63 - 1)).map(tuple),
        weight=st.floats(),
    ),
    unique_by=lambda event: event.event_id,
)


@settings(deadline=None)  # it waits for the disk
@given(payments)
def test_what_is_read_is_what_was_appended(tmp_path_factory: pytest.TempPathFactory, events: Sequence[Payment]) -> None:
    with EventLog(tmp_path_factory.mktemp("log") / "log.db", WallClock(), [Payment]) as log:
        first = log.append(events)
        assert log.append(events) == first
        table = log.read(Payment)
    assert rows(table) == list(map(row, events))
    assert table["position"].to_pylist() == list(range(1, len(events) + 1))


@settings(deadline=None)  # it waits for the disk
@given(payments)
def test_what_is_found_by_its_id_is_what_was_appended(
    tmp_path_factory: pytest.TempPathFactory, events: Sequence[Payment]
) -> None:
    with EventLog(tmp_path_factory.mktemp("log") / "log.db", WallClock(), [Payment]) as log:
        log.append(events)
        found = log.find(Payment, [*(event.event_id for event in events), "nobody"])
    assert {name: repr(event) for name, event in found.items()} == {event.event_id: repr(event) for event in events}


@given(payments)
def test_an_event_has_the_body_that_it_always_had(events: Sequence[Payment]) -> None:
    # by it a retry is told from another event with the same id, after any upgrade
    for event in events:
        body = to_json(event).decode()
        if '"NaN"' in body or 'Infinity"' in body:
            body = json.dumps(event.model_dump(), separators=(",", ":"), ensure_ascii=False)
        assert encode(event) == body


class Answered(Event):
    degraded: str | None
    propensity: float
    hidden: bool
    answer: str
    features: tuple[float | None, ...]


def test_an_answer_is_found_with_what_the_model_saw(path: Path, database_url: str | None) -> None:
    seen: list[tuple[float | None, ...]] = [(), (None,), (1.0, None, -0.0, 1e-300, 0.1 + 0.2)]
    answers = [
        Answered(
            event_id=f"answer-€-{i}",
            event_timestamp=2**62 - 1,
            degraded=None if i else "",
            propensity=1e-9,
            hidden=bool(i),
            answer='{"why":["zażółć \U0001f98a\\n\\""]}\n',
            features=features,
        )
        for i, features in enumerate(seen)
    ]
    with EventLog(path, WallClock(), [Payment, Answered], url=database_url) as log:
        log.append([*answers, payment("p")])
        found = log.find(Answered, [*(answer.event_id for answer in answers), "p", "nobody"])
        assert found == {answer.event_id: answer for answer in answers}
        assert repr([found[answer.event_id].features for answer in answers]) == repr(seen)  # -0.0 is not 0.0
        assert log.find(Answered, []) == {}


def test_more_ids_than_one_statement_takes_are_found(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.data.log.LOOKUP", 2)
    events = [payment(str(i)) for i in range(5)]
    log.append(events)
    assert log.find(Payment, ["3", "x", "0", "4", "3"]) == {name: events[int(name)] for name in ("3", "0", "4")}
    with pytest.raises(BadRecord, match="kind: must be one of Payment, Refund, got Answered"):
        log.find(Answered, ["3"])


def test_an_event_stored_by_an_earlier_definition_is_found_or_named(path: Path) -> None:
    old = create_model("Payment", __base__=Event, amount=(float, 2.5), dropped=(str, "x"))
    older = create_model("Refund", __base__=Event, reason=(str, "none"))
    with EventLog(path, WallClock(), [old, older]) as log:
        log.append([old(event_id="p", event_timestamp=0), older(event_id="r", event_timestamp=0)])
    with EventLog(path, WallClock(), KINDS) as log:
        assert log.find(Payment, ["p"]) == {"p": payment("p", 2.5)}
        with pytest.raises(BadRecord, match="payment: field required"):
            log.find(Refund, ["r"])


def test_an_event_that_is_not_what_was_acknowledged_is_not_found_but_reported(path: Path) -> None:
    with EventLog(path, WallClock(), KINDS) as log:
        log.append([payment("a"), payment("b", 7.5)])
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE payload SET body = replace(body, '7.5', '8.5')")
        assert set(log.find(Payment, ["a"])) == {"a"}
        with pytest.raises(Damaged, match="Payment at 2 is not what was acknowledged"):
            log.find(Payment, ["a", "b"])


def test_nobody_who_looks_for_an_event_waits_for_a_writer(path: Path) -> None:
    with EventLog(path, WallClock(), KINDS) as log:
        log.append([payment("a")])
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waits = log.submit([payment("b")])
            assert set(log.find(Payment, ["a", "b"])) == {"a"}
            assert not waits.done()
            other.execute("ROLLBACK")
        waits.result(30)
        assert set(log.find(Payment, ["a", "b"])) == {"a", "b"}


def test_each_of_many_calls_is_kept_or_refused_on_its_own(log: EventLog) -> None:
    log.append([payment("a")])
    before, other, new, twice, wrong, mixed, empty = log.append_each(
        [
            [payment("a")],
            [payment("b"), payment("a", 2.0)],
            [payment("c"), payment("d")],
            [payment("d"), payment("c")],
            [payment("e"), Answered.model_construct(event_id="x")],
            [payment("a"), payment("b", 3.0), payment("c")],
            [],
        ]
    )
    assert before == [Logged(position=1, created_timestamp=100)]
    assert isinstance(other, BadRecord)
    assert "'a' must stay the Payment at position 1" in str(other)
    assert isinstance(wrong, BadRecord)
    assert "x: kind: must be one of" in str(wrong)
    places = [[at.position for at in answer] for answer in (new, twice, mixed, empty) if isinstance(answer, list)]
    assert places == [[2, 3], [3, 2], [1, 4, 2], []]
    assert ids(log) == ["a", "c", "d", "b"]
    assert log.append_each([]) == []
    log.check()


few = st.builds(payment, st.sampled_from("abcdef"), st.sampled_from([1.0, 2.0]))


@settings(deadline=None, max_examples=50)  # it waits for the disk
@given(st.lists(st.lists(st.lists(few, max_size=4), max_size=5), max_size=4))
def test_appending_many_calls_is_appending_them_one_after_the_other(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[list[Payment]]]
) -> None:
    kept: dict[str, Payment] = {}  # in order
    with EventLog(tmp_path_factory.mktemp("log") / "log.db", WallClock(), [Payment]) as log:
        for calls in groups:
            for call, answer in zip(calls, log.append_each(calls), strict=True):
                after = dict(kept)
                if any(after.setdefault(event.event_id, event) != event for event in call):
                    assert isinstance(answer, BadRecord)
                    continue
                kept, places = after, list(after)
                assert isinstance(answer, list)
                assert [at.position for at in answer] == [places.index(event.event_id) + 1 for event in call]
        assert ids(log) == list(kept)
        assert log.find(Payment, "abcdef") == kept
        log.check()


class Disk:
    """Syncs, or waits until it may, or fails."""

    def __init__(self) -> None:
        self.syncs, self.fails = 0, False
        self.asked, self.works = threading.Event(), threading.Event()
        self.works.set()

    def __call__(self, file: int) -> None:
        self.syncs += 1
        self.asked.set()
        assert self.works.wait(30)
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fdatasync(file)


def test_many_calls_share_one_sync_and_its_failure(path: Path) -> None:
    disk = Disk()
    with EventLog(path, WallClock(), KINDS, sync=disk) as log:
        before = disk.syncs
        log.append_each([[payment(str(i))] for i in range(20)])
        assert disk.syncs == before + 1
        disk.fails = True
        with pytest.raises(Unavailable, match="not acknowledged: retry"):
            log.append_each([[payment("a")], [payment("0", 2.0)]])
        assert log.find(Payment, ["0", "a"]) == {"0": payment("0")}
        disk.fails = False
        first, refused = log.append_each([[payment("a")], [payment("0", 2.0)]])
        assert isinstance(refused, BadRecord)
        assert isinstance(first, list)
        assert [at.position for at in first] == [21]


def test_who_gives_up_leaves_nothing_in_line_and_may_ask_again(path: Path) -> None:
    disk = Disk()
    with EventLog(path, WallClock(), KINDS, sync=disk) as log:
        disk.works.clear()
        disk.asked.clear()
        begun = log.submit([payment("submitted")])
        assert disk.asked.wait(30)
        waits: list[Callable[[], object]] = [
            lambda: log.append([payment("a")], timeout=0.01),
            lambda: log.append_each([[payment("b")], [payment("c")]], timeout=0),
            lambda: log.append([payment("d")], timeout=-1.5),
        ]
        for wait in waits:
            with pytest.raises(DeadlineExceeded, match="log: no answer within .* s; .* retry"):
                wait()
        assert not log.find(Payment, ["submitted", "a"])
        last = log.submit([payment("last")])
        disk.works.set()
        begun.result(30)
        last.result(30)
        assert ids(log) == ["submitted", "last"]
        assert log.append([payment("a")], timeout=30)[0].position == 3


def test_a_call_that_was_begun_when_its_caller_gave_up_is_kept_and_its_retry_finds_it(path: Path) -> None:
    disk = Disk()
    with EventLog(path, WallClock(), KINDS, sync=disk) as log:
        disk.works.clear()
        disk.asked.clear()
        gave_up = threading.Event()

        def call() -> None:
            with pytest.raises(DeadlineExceeded):
                log.append([payment("a")], timeout=1)
            gave_up.set()

        caller = threading.Thread(target=call)
        caller.start()
        assert disk.asked.wait(30)
        assert gave_up.wait(30)
        caller.join()
        disk.works.set()
        assert log.append([payment("a"), payment("b")])[0].position == 1
        assert ids(log) == ["a", "b"]


def test_whoever_gives_up_just_when_the_writer_begins_is_dropped_whole_or_kept_whole(path: Path) -> None:
    answered: dict[str, int] = {}
    given_up: list[str] = []

    def write(who: int, log: EventLog) -> None:
        chance = random.Random(who)
        for i in range(400):
            events = [payment(f"{who}-{i}-{j}") for j in range(1 + i % 3)]
            try:
                places = log.append(events, timeout=chance.choice([0.0, 0.0005, 0.002, 30.0]))
            except DeadlineExceeded:
                given_up.append(f"{who}-{i}")
            else:
                answered.update((event.event_id, at.position) for event, at in zip(events, places, strict=True))

    with EventLog(path, WallClock(), KINDS) as log:
        writers = [threading.Thread(target=write, args=(who, log)) for who in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        log.append([payment("last")])
        found = {event_id: at for at, event_id in enumerate(ids(log), 1)}
    assert answered
    assert given_up
    assert answered.items() <= found.items()
    for call in given_up:
        parts = [f"{call}-{j}" in found for j in range(1 + int(call.split("-")[1]) % 3)]
        assert len(set(parts)) == 1, call


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"reason": (str, "none")}, r"Refund\.payment: required, but absent"),
        ({"payment": (int, 7)}, r"Refund: an event of this log does not fit: .*/payment.* from string to number"),
    ],
)
def test_an_event_stored_by_a_definition_that_no_longer_fits_is_named(
    path: Path, columns: dict[str, Any], message: str
) -> None:
    old = create_model("Refund", __base__=Event, **columns)
    with EventLog(path, WallClock(), [old]) as log:
        log.append([old(event_id="r", event_timestamp=0)])
    with EventLog(path, WallClock(), [Refund]) as log, pytest.raises(BadRecord, match=message):
        log.read(Refund)


def test_a_definition_may_drop_a_column_and_gain_an_optional_one(path: Path) -> None:
    old = create_model("Payment", __base__=Event, amount=(float, 2.5), tags=(tuple[int, ...], ()), weight=(float, 1.0))
    old = create_model("Payment", __base__=old, dropped=(str, "x"))
    with EventLog(path, WallClock(), [old]) as log:
        log.append([old(event_id="r", event_timestamp=0)])
    with EventLog(path, WallClock(), [Payment]) as log:
        table = log.read(Payment)
    assert table["amount"].to_pylist() == [2.5]
    assert table["note"].to_pylist() == [None]


def test_a_payload_lies_apart_from_its_header(path: Path) -> None:
    with EventLog(path, WallClock(), KINDS) as log:
        log.append([payment("a", 12345.5)])
    with closing(sqlite3.connect(path)) as db:
        assert "12345.5" not in repr(db.execute("SELECT * FROM header").fetchall())
        assert "12345.5" in repr(db.execute("SELECT * FROM payload").fetchall())


WRITER = """
import sys
from contextlib import closing
from pathlib import Path
from common.clock import WallClock
from common.data.log import EventLog
from common.schema import Event

class Refund(Event):
    payment: str

_, path, name, count, size = sys.argv
with EventLog(Path(path), WallClock(), [Refund]) as log:
    for i in range(int(count)):
        log.append([Refund(event_id=f"{name}-{i}-{j}", event_timestamp=0, payment="") for j in range(int(size))])
        print(i, flush=True)
"""


def writer(path: Path, name: str, count: int, size: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(count), str(size)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_processes_share_a_log_that_none_has_made_yet(path: Path) -> None:
    writers = [writer(path, str(i), 30, 2) for i in range(4)]
    assert [w.communicate()[1] for w in writers] == [""] * 4
    with EventLog(path, WallClock(), KINDS) as log:
        table = log.read(Refund)
    assert table["position"].to_pylist() == list(range(1, 241))
    created = table["created_timestamp"].to_pylist()
    assert created == sorted(created)
    assert len(set(table["event_id"].to_pylist())) == 240


def test_what_was_acknowledged_survives_kill_9_and_no_call_is_there_in_part(path: Path) -> None:
    child = writer(path, "w", 100_000, 5)
    assert child.stdout is not None
    acknowledged = [int(child.stdout.readline()) for _ in range(20)][-1]
    child.send_signal(signal.SIGKILL)
    child.communicate()
    with EventLog(path, WallClock(), KINDS) as log:
        found = log.read(Refund)["event_id"].to_pylist()
    calls = len(found) // 5
    assert calls > acknowledged
    assert found == [f"w-{i}-{j}" for i in range(calls) for j in range(5)]
