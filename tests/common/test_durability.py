"""What the log promises when disks, processes and files fail: a fault injected for each promise."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.crash import run
from common.clock import WallClock
from common.data.log import EventLog
from common.data.log.sqlite import SqliteStorage
from common.errors import BadRecord, Damaged, OutOfOrder, Unavailable
from common.schema import Event
from tests.cluster import cluster

ROOT = Path(__file__).parents[2]
EVENTS = 250  # of one call each: all of them still lie in the WAL


class Payment(Event):
    amount: float


def payment(event_id: object, amount: float = 1.0) -> Payment:
    return Payment(event_id=str(event_id), event_timestamp=0, amount=amount)


class Disk:
    """A sync that waits until it is told what came of it."""

    def __init__(self) -> None:
        self.entered, self.may_return = threading.Semaphore(0), threading.Semaphore(0)
        self.error: OSError | None = None
        self.syncs = 0

    def __call__(self, file: int) -> None:
        self.syncs += 1
        self.entered.release()
        assert self.may_return.acquire(timeout=30)
        if self.error is not None:
            raise self.error
        os.fdatasync(file)

    def works(self, times: int = 1) -> None:
        self.error = None
        self.may_return.release(times)

    def fails(self) -> None:
        self.error = OSError(errno.EIO, os.strerror(errno.EIO))
        self.may_return.release()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "log.db"


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def log(path: Path, disk: Disk) -> Iterator[EventLog]:
    disk.works()  # the empty log itself
    with EventLog(path, WallClock(), [Payment], sync=disk) as log:
        assert disk.entered.acquire(timeout=30)
        yield log
        disk.works(100)


def ids(log: EventLog) -> list[str]:
    found: list[str] = log.read(Payment)["event_id"].to_pylist()
    return found


def test_nothing_is_acknowledged_or_seen_before_the_sync_returns(log: EventLog, disk: Disk) -> None:
    answer = log.submit([payment("a")])
    assert disk.entered.acquire(timeout=30)
    assert not answer.done()
    assert log.head().position == 0
    assert ids(log) == []
    disk.works()
    assert [at.position for at in answer.result(30)] == [1]
    assert ids(log) == ["a"]


def test_a_retry_is_not_acknowledged_before_the_sync_of_the_first_try_returns(path: Path, disk: Disk) -> None:
    with EventLog(path, WallClock(), [Payment]) as first, EventLog(path, WallClock(), [Payment], sync=disk) as second:
        first.append([payment("a")])
        answer = second.submit([payment("a")])
        assert disk.entered.acquire(timeout=30)
        assert not answer.done()
        disk.works(10)
        assert answer.result(30)[0].position == 1


def test_a_sync_that_fails_acknowledges_nothing_and_a_retry_is_harmless(log: EventLog, disk: Disk) -> None:
    answers = [log.submit([payment(i)]) for i in range(3)]
    for _ in range(3):  # one group or several
        disk.fails()
    wait(answers, 30)
    for answer in answers:
        with pytest.raises(Unavailable, match="Input/output error; not durable, so not acknowledged: retry"):
            answer.result()
    assert ids(log) == []
    disk.works(10)
    again = [log.append([payment(i)])[0].position for i in range(3)]
    assert sorted(again) == [1, 2, 3]
    assert sorted(ids(log)) == ["0", "1", "2"]


def test_calls_that_come_while_the_disk_works_share_one_sync(log: EventLog, disk: Disk) -> None:
    first = log.submit([payment("first")])
    assert disk.entered.acquire(timeout=30)
    others = [log.submit([payment(i)]) for i in range(50)]
    before = disk.syncs
    disk.works(2)
    wait([first, *others], 30)
    assert disk.syncs == before + 1
    assert [other.result()[0].position for other in others] == list(range(2, 52))


def test_a_call_that_is_refused_leaves_its_neighbours_alone(log: EventLog, disk: Disk) -> None:
    disk.works(100)
    log.append([payment("a")])
    hold = log.submit([payment("hold")])
    good, bad, late = (
        log.submit([payment("b")]),
        log.submit([payment("c"), payment("a", 2.0)]),
        log.submit([payment("c")]),
    )
    wait([hold, good, bad, late], 30)
    assert isinstance(bad.exception(), BadRecord)
    assert ids(log) == ["a", "hold", "b", "c"]
    assert (good.result()[0].position, late.result()[0].position) == (3, 4)


def test_a_failed_sync_of_another_process_is_made_good_before_anything_is_acknowledged(path: Path) -> None:
    failing = Disk()
    failing.works()
    with EventLog(path, WallClock(), [Payment], sync=failing) as first:
        failing.fails()
        with pytest.raises(Unavailable):
            first.append([payment("a")])
        wal = Path(f"{path}-wal")
        assert wal.stat().st_size
        with EventLog(path, WallClock(), [Payment]) as second:
            assert second.append([payment("a")])[0].position == 1
            content = wal.read_bytes()
            assert b'"event_id":"a"' not in content, "it was copied into the file, and synced there"
        failing.works(10)


def test_a_writer_outlives_whatever_is_thrown_at_it(path: Path) -> None:
    class Clock(WallClock):
        broken = False

        def now(self) -> int:
            if self.broken:
                raise KeyboardInterrupt
            return super().now()

    clock = Clock()
    with EventLog(path, clock, [Payment]) as log:
        clock.broken = True
        with pytest.raises(Unavailable, match="KeyboardInterrupt"):
            log.append([payment("a")])
        clock.broken = False
        said: list[str] = []

        def called(_: object) -> None:
            try:
                log.append([payment("c")])
            except Unavailable as error:
                said.append(str(error))
            raise SystemExit

        answer = log.submit([payment("b")])
        answer.add_done_callback(called)
        answer.result(30)
        log.append([payment("d")])
        assert said in ([], ["log: who is called when a future is done must not wait for the log: submit instead"])
        assert set(ids(log)) >= {"b", "d"}


def test_times_that_are_none_are_refused_before_they_meet_a_neighbour(path: Path) -> None:
    with EventLog(path, WallClock(), [Payment]) as log:
        for at in (2**63, -1, "x"):
            with pytest.raises(OutOfOrder, match=r"created\[0\]: must be whole us"):
                log.append([payment("a")], [at])  # type: ignore[list-item]


def test_a_log_that_is_closed_makes_durable_what_was_submitted_and_takes_no_more(path: Path) -> None:
    log = EventLog(path, WallClock(), [Payment])
    answers = [log.submit([payment(i)]) for i in range(100)]
    log.close()
    assert sorted(answer.result(0)[0].position for answer in answers) == list(range(1, 101))
    log.close()
    with pytest.raises(Unavailable, match="closed"):
        log.append([payment("late")])


def test_whoever_submits_while_the_log_is_closed_is_answered(path: Path) -> None:
    for round in range(20):
        log = EventLog(path, WallClock(), [Payment])
        answered: list[str] = []

        def write(log: EventLog = log, who: str = str(round), answered: list[str] = answered) -> None:
            try:
                for i in range(1_000):
                    log.append([payment(f"{who}-{i}")])
            except Unavailable as error:
                answered.append(str(error))

        writers = [threading.Thread(target=write, daemon=True) for _ in range(4)]
        for writer in writers:
            writer.start()
        log.close()
        for writer in writers:
            writer.join(30)
        assert answered == ["log: it is closed"] * 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # newer Pythons warn of what is tested here
def test_after_a_fork_a_log_says_that_it_must_be_opened_again(path: Path) -> None:
    with EventLog(path, WallClock(), [Payment]) as log:
        log.append([payment("a")])
        child = os.fork()
        if child == 0:
            try:
                log.append([payment("b")])
            except Unavailable:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace")
def test_the_kernel_has_synced_the_log_before_the_acknowledgement_is_written(path: Path, tmp_path: Path) -> None:
    program = (
        "import os, sys; from tests.common.test_durability import *\n"
        "log = EventLog(Path(sys.argv[1]), WallClock(), [Payment])\n"
        "for i in range(20):\n"
        "    os.write(1, b'calls '); log.append([payment(i)]); os.write(1, b'acknowledged ')\n"
    )
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-o", str(trace), "-e", "trace=write,pwrite64,fdatasync", sys.executable, "-c"]
    done = subprocess.run([*command, program, str(path)], cwd=ROOT, capture_output=True)
    if b"ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    written = synced = False
    acknowledged = 0
    for line in trace.read_text().splitlines():
        if "calls " in line:
            written = synced = False
        elif "pwrite64" in line and "log.db-wal" in line:
            written, synced = True, False
        elif "fdatasync" in line and "log.db-wal" in line:
            synced = True
        elif "acknowledged " in line:
            assert written
            assert synced, line
            acknowledged += 1
    assert acknowledged == 20


@pytest.mark.parametrize("kills", [20])
def test_no_acknowledged_event_is_lost_or_doubled_by_kill_9(path: Path, kills: int) -> None:
    found = run(kills, path, None)
    assert found["acknowledged"] > kills
    assert (found["lost"], found["duplicates"]) == (0, 0)


def test_no_acknowledged_event_is_lost_or_doubled_by_kill_9_on_any_backend(
    path: Path, database_url: str | None
) -> None:
    found = run(3, path, database_url, seed=1)
    assert found["acknowledged"] > 3
    assert (found["lost"], found["duplicates"]) == (0, 0)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a log whose process was killed, with much in the file and much in the WAL."""
    folder = tmp_path_factory.mktemp("killed")
    program = (
        "import os, signal, sys; from tests.common.test_durability import *\n"
        "log = EventLog(Path(sys.argv[1]), WallClock(), [Payment])\n"
        "for i in range(EVENTS):\n"
        "    log.append([payment(i)])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder / "log.db")], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert (folder / "log.db-wal").stat().st_size > 100_000
    return folder


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("closed")
    with EventLog(folder / "log.db", WallClock(), [Payment]) as log:
        log.append([payment(i) for i in range(EVENTS)])
    assert not (folder / "log.db-wal").exists()
    return folder


def torn(content: bytes, length: int) -> bytes:
    return content[:-length]


def zeroed(content: bytes, length: int) -> bytes:
    return content[:-length] + bytes(length)


def flipped(content: bytes, length: int) -> bytes:
    return content[:-length] + bytes([content[-length] ^ 0x10]) + content[len(content) - length + 1 :]


DAMAGES = st.sampled_from([torn, zeroed, flipped])


def outcome(folder: Path, name: str, damage: object, length: int, to: Path) -> str:
    """Open a damaged copy: whole, or refused; anything else fails the test."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    content = (to / name).read_bytes()
    (to / name).write_bytes(damage(content, min(length, len(content))))  # type: ignore[operator]
    try:
        with EventLog(to / "log.db", WallClock(), [Payment]) as log:
            found, said = ids(log), " ".join(log.notes)
    except Damaged as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert "\n" not in message
        assert str(to) in message
        return "refused"
    assert found == [str(i) for i in range(EVENTS)], f"{name}: {len(found)} events, and nobody was told"
    return f"whole, {said}" if said else "whole"


@pytest.mark.parametrize("name", ["log.db", "log.mark"])
@given(damage=DAMAGES, length=st.integers(1, 60_000))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_end_of_a_closed_log_is_mended_or_refused(
    closed: Path, tmp_path: Path, name: str, damage: object, length: int
) -> None:
    outcome(closed, name, damage, length, tmp_path / "copy")


@pytest.mark.parametrize("name", ["log.db", "log.db-wal", "log.db-shm", "log.mark"])
@given(damage=DAMAGES, length=st.integers(1, 60_000))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_end_of_a_killed_log_is_mended_or_refused(
    killed: Path, tmp_path: Path, name: str, damage: object, length: int
) -> None:
    outcome(killed, name, damage, length, tmp_path / "copy")


@pytest.mark.parametrize("damage", [torn, zeroed, flipped])
def test_events_that_went_with_the_end_of_the_wal_are_missed(killed: Path, tmp_path: Path, damage: object) -> None:
    assert outcome(killed, "log.db-wal", damage, 2_000, tmp_path / "copy") == "refused"
    with pytest.raises(Damaged, match=rf"{EVENTS} events were acknowledged, and \d+ are there; restore a backup"):
        EventLog(tmp_path / "copy" / "log.db", WallClock(), [Payment])


def test_a_log_that_one_process_refuses_is_not_let_through_to_the_next(
    killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(killed, copy)
    wal = copy / "log.db-wal"
    wal.write_bytes(torn(wal.read_bytes(), 2_000))
    checking, go_on, check = threading.Event(), threading.Event(), SqliteStorage.check

    def slow_check(storage: SqliteStorage) -> None:
        checking.set()
        assert go_on.wait(30)
        check(storage)

    monkeypatch.setattr(SqliteStorage, "check", slow_check)
    refused: list[str] = []

    def start() -> None:
        try:
            EventLog(copy / "log.db", WallClock(), [Payment]).close()
        except Damaged as error:
            refused.append(str(error))

    starts = [threading.Thread(target=start) for _ in range(3)]
    starts[0].start()
    assert checking.wait(30)
    for other in starts[1:]:
        other.start()
    starts[1].join(0.2)  # the others are waiting for the first one's verdict
    go_on.set()
    for each in starts:
        each.join(30)
    assert len(refused) == 3


@pytest.mark.parametrize("name", ["log.db", "log.db-wal"])
def test_a_log_whose_file_is_gone_or_empty_is_not_taken_for_a_new_one(killed: Path, tmp_path: Path, name: str) -> None:
    for content in (b"", None):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(killed, copy)
        (copy / name).unlink()
        if content is not None:
            (copy / name).write_bytes(content)
        with pytest.raises(Damaged):
            EventLog(copy / "log.db", WallClock(), [Payment])


def test_a_mark_that_was_damaged_is_made_anew_and_that_is_said(closed: Path, tmp_path: Path) -> None:
    said = outcome(closed, "log.mark", flipped, 30, tmp_path / "copy")
    assert re.match("whole, .*log.mark: was not what was written; made anew from the log", said)


def test_a_flipped_bit_in_the_middle_is_found_when_the_event_is_read(closed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(closed, copy)
    content = (copy / "log.db").read_bytes()
    at = content.index(b'"event_id":"7"')
    with EventLog(copy / "log.db", WallClock(), [Payment]) as log:
        (copy / "log.db").write_bytes(content[:at] + content[at:].replace(b'"7"', b'"8"', 1))
        with pytest.raises(Damaged, match="is not what was acknowledged"):
            log.read(Payment)
        with pytest.raises(Damaged):
            log.check()


def test_a_full_disk_refuses_writes_keeps_reads_and_takes_writes_again_once_there_is_room(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("no small tmpfs can be mounted here: needs root")
    try:
        with EventLog(small / "home" / "log.db", WallClock(), [Payment]) as log:
            log.append([payment("first")])
            ballast = small / "ballast"
            ballast.write_bytes(bytes(1 << 20))
            kept = ["first"]

            def fill() -> None:
                for i in range(10_000):
                    log.append([payment(f"{i}-{j}") for j in range(20)])
                    kept.extend(f"{i}-{j}" for j in range(20))

            with pytest.raises(Unavailable, match="no room on its disk; nothing of this call was kept"):
                fill()
            assert ids(log) == kept
            ballast.unlink()
            log.append([payment("room again")])  # at once, not after some seconds
            assert ids(log) == [*kept, "room again"]
            log.check()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_server_that_stops_loses_nothing_acknowledged_and_the_log_goes_on_when_it_is_back(path: Path) -> None:
    with cluster() as server, EventLog(path, WallClock(), [Payment], url=server.url) as log:
        acknowledged: list[int] = []
        refused: list[str] = []
        enough, over = threading.Event(), threading.Event()

        def write() -> None:
            number = 0
            while not over.is_set():
                try:
                    log.append([payment(number)])
                except Unavailable as error:
                    refused.append(str(error))
                    over.wait(0.05)  # and then the same event again
                    continue
                acknowledged.append(number)
                number += 1
                if number == 50:
                    enough.set()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            assert enough.wait(30)
            server.stop()
            with pytest.raises(Unavailable, match="PostgreSQL at 127.0.0.1/postgres: .* nothing of this call was kept"):
                log.read(Payment)
            server.start()
            before = len(acknowledged)
            for _ in range(600):
                if len(acknowledged) > before + 50:
                    break
                over.wait(0.05)
        finally:
            over.set()
            writer.join()
        assert refused
        assert all("\n" not in line for line in refused)
        assert len(acknowledged) > before + 50
        assert set(map(str, acknowledged)) <= set(ids(log))
        assert len(ids(log)) == len(set(ids(log)))
        log.check()
