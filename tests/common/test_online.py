"""A store is a view of the log: it says how far it reaches, catches up, and never passes for fresher than it is."""

import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from common.clock import SimulatedClock
from common.data.log import EventLog
from common.errors import BadDefinition, BadSetting, Conflict, MissingExtra, Stale, Unavailable
from common.features import online, reference
from common.features.online import OnlineStore, catch_up, open_store
from common.features.online import sqlite as file
from common.features.online.sqlite import SqliteStore
from common.features.view import Aggregation, FeatureView
from common.schema import Event, logged_table
from tests.servers import REDIS_URL, private_redis, redis_names


class Sale(Event):
    shop: str
    amount: float


class Visit(Event):
    shop: str


def view(source: type[Event], window: int = 10**9, name: str = "") -> FeatureView:
    aggregations = [Aggregation(name="n", kind="count", window=window)]
    if source is Sale:
        aggregations.append(Aggregation(name="spent", kind="mean", column="amount", window=window, tile=100))
    return FeatureView(name=name or source.__name__, source=source, entity=("shop",), aggregations=tuple(aggregations))


VIEWS = (view(Sale), view(Visit))
KINDS = (Sale, Visit)


def write(log: EventLog, n: int, seed: int = 0) -> None:
    """Sales and visits in turn, of a few shops."""
    rng, start = random.Random(seed), log.head().position
    events: list[Event] = []
    for i in range(start, start + n):
        said = {"event_id": str(i), "event_timestamp": 1_000 + i, "shop": rng.choice("abcdefgh")}
        events.append(Sale(**said, amount=rng.uniform(0, 9)) if i % 2 else Visit(**said))
    log.append(events, [1_000 + start + i for i in range(n)])


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    with EventLog(tmp_path / "log" / "log.db", SimulatedClock(0), KINDS) as opened:
        yield opened


Opener = Callable[..., OnlineStore]


@pytest.fixture(params=["sqlite", "redis"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens the same store again and again, as the workers of a service do."""
    with ExitStack() as stack:
        url, name = None, "test"
        if request.param == "redis":
            url, name = REDIS_URL, stack.enter_context(redis_names())()

        def open_one(views: Sequence[FeatureView] = VIEWS) -> OnlineStore:
            return stack.enter_context(closing(open_store(url, tmp_path / "online.db", name, views)))

        yield open_one


def logged(log: EventLog, after: int, until: int) -> dict[type[Event], pa.Table]:
    return {kind: log.read(kind, after, until) for kind in KINDS}


def push(store: OnlineStore, log: EventLog, after: int, until: int) -> None:
    store.push(logged(log, after, until), after, until)


def share(store: OnlineStore) -> None:
    """Others see what it pushed."""
    if isinstance(store, SqliteStore):
        store.flush()


SHOPS = pa.table({"shop": list("abcdefghz")})


def asked(log: EventLog, at: int | None = None) -> pa.Table:
    """Every shop, at a position of the log and its time."""
    at = log.head().position if at is None else at
    position = pa.array([at + 1] * SHOPS.num_rows, pa.int64())
    now = pa.array([999 + at] * SHOPS.num_rows, pa.int64())
    return SHOPS.append_column("created_timestamp", now).append_column("position", position)


def knows(store: OnlineStore, log: EventLog, views: Sequence[FeatureView] = VIEWS) -> bool:
    """Whether the store answers as the reference does of all that is in the log."""
    rows = asked(log)
    got = store.read(rows, rows["created_timestamp"].to_numpy(), log.head().position)
    wanted = [reference.compute(v, log.read(v.source), rows) for v in views]
    return all(np.allclose(a, b, rtol=1e-9, equal_nan=True) for a, b in zip(got.values, wanted, strict=True))


def read(store: OnlineStore, at_least: int = 0) -> online.Reading:
    return store.read(SHOPS, np.full(SHOPS.num_rows, 10_000), at_least)


def is_exact(reading: online.Reading, log: EventLog) -> bool:
    """Whether the values are those of the events through each view's head, and of no others."""
    found = []
    for v, head, values in zip(VIEWS, reading.heads, reading.values, strict=True):
        now = pa.array([10_000] * SHOPS.num_rows, pa.int64())
        rows = asked(log, head).set_column(1, "created_timestamp", now)
        wanted = reference.compute(v, log.read(v.source, 0, head), rows)
        found.append(np.allclose(values, wanted, rtol=1e-9, equal_nan=True))
    return all(found)


def test_a_store_catches_up_from_the_log_in_spans(
    opener: Opener, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(log, 100)
    monkeypatch.setattr(online, "SPAN", 7)
    store = opener()
    assert store.head() == 0
    assert catch_up(store, log) == store.head() == 100
    assert knows(store, log)
    write(log, 5)
    assert catch_up(store, log) == 105
    assert knows(store, log)


def test_rows_with_equal_entities_and_times_are_read_once_and_are_as_each_read_alone(
    opener: Opener, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(log, 100)
    store = opener()
    catch_up(store, log)
    again = np.repeat([0, 1, 1, 0, 8], 5)
    rows, as_of = SHOPS.take(pa.array(again)), np.repeat([1_050, 1_100, 1_120, 1_120, 1_120], 5)
    each, seen, plain = store.read(rows, as_of, 100), list[int](), store.read
    monkeypatch.setattr(store, "read", lambda rows, *said: seen.append(rows.num_rows) or plain(rows, *said))
    once = online.read(store, ["shop"], rows, as_of, 100)
    assert (seen, once.heads) == ([5], each.heads)
    for a, b in zip(once.values, each.values, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(Stale):
        online.read(store, ["shop"], rows, as_of, 101)


def test_a_gap_is_refused_and_catching_up_heals_it(opener: Opener, log: EventLog) -> None:
    write(log, 30)
    store = opener()
    push(store, log, 0, 10)
    with pytest.raises(Stale, match="must be >= 20, got 10"):
        push(store, log, 20, 30)
    assert store.head() == 10
    catch_up(store, log)
    assert knows(store, log)


def test_who_asks_for_more_than_is_known_is_told_so(opener: Opener, log: EventLog) -> None:
    write(log, 10)
    store = opener()
    push(store, log, 0, 9)
    assert read(store, at_least=9).head == 9
    with pytest.raises(Stale, match="must be >= 10, got 9"):
        read(store, at_least=10)


def test_what_lies_behind_the_end_of_a_push_waits_for_the_next_one(opener: Opener, log: EventLog) -> None:
    write(log, 20)
    store = opener()
    store.push(logged(log, 0, 20), 0, 11)
    assert store.head() == 11
    assert read(store).heads == (11, 11)
    push(store, log, 11, 20)
    assert knows(store, log)


def test_a_late_push_of_what_is_known_changes_nothing_and_the_head_stays(opener: Opener, log: EventLog) -> None:
    write(log, 20)
    store = opener()
    push(store, log, 0, 20)
    push(store, log, 3, 8)
    assert store.head() == 20
    assert knows(store, log)


def test_a_push_that_forgets_a_kind_is_refused(opener: Opener, log: EventLog) -> None:
    write(log, 4)
    with pytest.raises(BadDefinition, match="got none of Visit"):
        opener().push({Sale: log.read(Sale)}, 0, 4)


def test_the_head_moves_over_events_that_are_of_no_view(opener: Opener, log: EventLog) -> None:
    write(log, 4)
    store = opener([view(Sale)])
    store.push({Sale: log.read(Sale, 0, 1)}, 0, 1)
    assert store.head() == 1


def test_a_new_definition_starts_empty_and_what_did_not_change_is_shared(opener: Opener, log: EventLog) -> None:
    write(log, 40)
    old = opener()
    push(old, log, 0, 30)
    views = (view(Sale), view(Visit, window=7))
    new = opener(views)
    assert new.head() == 0
    with pytest.raises(Stale):
        read(new, at_least=30)
    catch_up(new, log)
    assert knows(new, log, views)
    assert old.head() == 30  # of the shared view all is known, of its other one not
    catch_up(old, log)
    assert knows(old, log)


def test_workers_that_share_a_store_end_in_the_same_features(opener: Opener, log: EventLog) -> None:
    write(log, 400)
    workers, rng, gaps = [opener() for _ in range(3)], random.Random(1), 0
    for start in range(0, 400, 10):
        one, other = rng.sample(workers, 2)
        read(one)
        if rng.random() < 0.3:  # it hears of the next part before the other one hears of this
            try:
                push(other, log, start + 5, start + 10)
            except Stale:
                gaps += 1
        push(one, log, start, start + 5)
        push(other, log, start, start + 10)
        share(other)
        assert read(one, at_least=start + 10).head == start + 10
    assert gaps > 3
    assert all(knows(worker, log) for worker in workers)


def test_workers_that_push_at_the_same_time_lose_nothing(opener: Opener, log: EventLog) -> None:
    write(log, 300)
    workers, wrong = [opener() for _ in range(4)], []

    def work(store: OnlineStore, seed: int) -> None:
        rng, at = random.Random(seed), 0
        while at < 300:
            until = min(300, at + rng.randint(1, 20))
            try:
                push(store, log, at, until)
            except Conflict:
                continue
            except Exception as error:
                wrong.append(error)
                return
            at = until

    threads = [threading.Thread(target=work, args=(store, i)) for i, store in enumerate(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all(knows(worker, log) for worker in workers)


def test_while_others_push_a_reading_is_exactly_of_its_heads(
    opener: Opener, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "LAG", 0.001)
    write(log, 300)
    parts = [logged(log, at, at + 1) for at in range(300)]
    store, other, ahead = opener(), opener(), opener([view(Sale)])  # one view may be ahead of the other

    def work() -> None:
        for at, part in enumerate(parts):
            for one in (ahead, other):
                with suppress(Conflict):
                    one.push(part, at, at + 1)
                share(one)

    pushing, readings, interval = threading.Thread(target=work), [], sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # s; threads that take turns rarely would hardly meet
    try:
        pushing.start()
        while pushing.is_alive():
            readings.append(read(store))
        pushing.join()
    finally:
        sys.setswitchinterval(interval)
    readings.append(read(store))
    assert readings[-1].heads == (300, 300)
    assert len({reading.heads for reading in readings}) > 20
    assert all(is_exact(reading, log) for reading in readings)


def test_what_was_just_logged_is_the_table_that_the_log_gives_back(log: EventLog) -> None:
    events = [Sale(event_id=str(i), event_timestamp=7 * i, shop="é\x1f", amount=i / 3) for i in range(4)]
    other = [Visit(event_id=f"v{i}", event_timestamp=i, shop="b") for i in range(3)]
    places = log.append([*events[:2], *other, *events[2:]])
    sold = logged_table(Sale, events, [*places[:2], *places[5:]])
    assert sold.schema.equals(log.read(Sale).schema, check_metadata=True)
    assert sold.equals(log.read(Sale))
    assert logged_table(Visit, other, places[2:5]).equals(log.read(Visit))
    assert logged_table(Visit, [], []).equals(log.read(Visit, 7))


def test_a_cleared_store_forgets_other_definitions_too_and_is_made_again(opener: Opener, log: EventLog) -> None:
    write(log, 20)
    store, other = opener(), opener([view(Sale, window=5)])
    catch_up(store, log)
    catch_up(other, log)
    other.clear()
    assert (store.head(), other.head()) == (0, 0)
    catch_up(store, log)
    assert knows(store, log)


def test_a_worker_that_knows_a_store_from_before_it_was_cleared_writes_nothing_of_that(
    opener: Opener, log: EventLog, tmp_path: Path
) -> None:
    """As after an erasure: the same positions, other events."""
    write(log, 20)
    mine, other = opener(), opener()
    catch_up(mine, log)
    read(mine)
    other.clear()
    with EventLog(tmp_path / "another" / "log.db", SimulatedClock(0), KINDS) as erased:
        write(erased, 20, seed=1)
        catch_up(other, erased)
        share(other)
        write(erased, 10, seed=2)
        push(mine, erased, 20, 30)
        assert knows(mine, erased)


def test_a_store_that_is_ahead_of_its_log_belongs_to_another_one(opener: Opener, log: EventLog, tmp_path: Path) -> None:
    write(log, 20)
    store = opener()
    catch_up(store, log)
    with EventLog(tmp_path / "another" / "log.db", SimulatedClock(0), KINDS) as younger:
        write(younger, 10, seed=1)
        assert catch_up(store, younger) == 10
        assert knows(store, younger)


def test_a_store_without_views_is_never_behind(opener: Opener, log: EventLog) -> None:
    write(log, 3)
    store = opener([])
    catch_up(store, log)
    assert read(store, at_least=3).values == []


def test_without_the_client_a_url_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.delitem(sys.modules, "common.features.online.redis", raising=False)
    with pytest.raises(MissingExtra, match=r"needs redis; install it with: pip install -e '.\[redis\]'"):
        open_store("redis://nowhere", tmp_path / "online.db", "test", VIEWS)


# In a file


def filled(path: Path, log: EventLog, *, close: bool = True) -> SqliteStore:
    store = SqliteStore(path, VIEWS)
    for start in range(0, log.head().position, 50):
        push(store, log, start, start + 50)
    if close:
        store.close()
    return store


def flip(path: Path, at: int, bit: int = 0) -> None:
    body = bytearray(path.read_bytes())
    body[at] ^= 1 << bit
    path.write_bytes(bytes(body))


def is_sound_or_said(path: Path, log: EventLog) -> str:
    """Opens what may be damaged: either it is as it was at some position, or it is empty and says why."""
    with closing(SqliteStore(path, VIEWS)) as store:
        head = store.head()
        rows = asked(log, head)
        got = read_at(store, rows)
        if store.notes:
            assert head == 0
            assert "removed, the log can make it again" in store.notes[0]
        for values, v in zip(got, VIEWS, strict=True):
            np.testing.assert_allclose(values, reference.compute(v, log.read(v.source, 0, head), rows), rtol=1e-9)
        catch_up(store, log)
        assert knows(store, log)
        return "said" if store.notes else "whole" if head == log.head().position else "older"


def read_at(store: OnlineStore, rows: pa.Table) -> list[np.ndarray]:
    return store.read(rows, rows["created_timestamp"].to_numpy()).values


def test_no_flipped_zeroed_or_torn_byte_of_a_file_is_served(log: EventLog, tmp_path: Path) -> None:
    write(log, 300)
    whole = tmp_path / "whole.db"
    filled(whole, log)
    size, rng = whole.stat().st_size, random.Random(0)
    path, found = tmp_path / "online.db", []
    body = whole.read_bytes()
    written = [i for i in range(size) if body[i]]
    for at in (*range(100), *rng.sample(written, 150)):
        shutil.copy(whole, path)
        flip(path, at, rng.randrange(8))
        found.append(is_sound_or_said(path, log))
    assert found.count("said") > 150  # the rest hit what means nothing: free space, counters of the header
    for length in (1, 1_000, 4_096, size // 2):
        for tail in (b"", bytes(length)):
            path.write_bytes(body[: size - length] + tail)
            assert is_sound_or_said(path, log) == "said" or length == 1  # the last byte may be of no row
    for nothing in (b"not a database" * 1_000, bytes(size)):
        path.write_bytes(nothing)
        assert is_sound_or_said(path, log) == "said"


def test_a_damaged_write_ahead_log_leaves_an_older_store_that_says_so(log: EventLog, tmp_path: Path) -> None:
    write(log, 600)
    path, wal = tmp_path / "online.db", tmp_path / "online.db-wal"
    store = filled(path, log, close=False)  # as after a kill: nothing was moved from the log to the file at the end
    files = {p: p.read_bytes() for p in (path, wal)}
    store.close()
    size, found = len(files[wal]), []
    for at in (0, 40, size // 3, size // 2, size - 10):
        for damaged in (
            files[wal][:at],
            files[wal][:at] + bytes(size - at),
            files[wal][:at] + bytes([files[wal][at] ^ 1]) + files[wal][at + 1 :],
        ):
            path.write_bytes(files[path])
            wal.write_bytes(damaged)
            found.append(is_sound_or_said(path, log))
    assert found.count("older") > len(found) // 2


def test_sound_halves_of_different_moments_do_not_pass_for_one(log: EventLog, tmp_path: Path) -> None:
    """What a power loss leaves: some pages are new, others are those of before, and each is what was written."""
    write(log, 300)
    path = tmp_path / "online.db"
    store = SqliteStore(path, VIEWS)
    push(store, log, 0, 200)
    store.flush()
    with closing(sqlite3.connect(path)) as db:
        before = db.execute("SELECT checksum, body, key FROM state LIMIT 1").fetchall()
    push(store, log, 200, 300)
    store.close()
    with closing(sqlite3.connect(path)) as db, db:
        db.executemany("UPDATE state SET checksum = ?, body = ? WHERE key = ?", before)
    assert is_sound_or_said(path, log) == "said"


def test_a_state_that_goes_bad_while_the_store_is_open_is_found_when_it_is_read(log: EventLog, tmp_path: Path) -> None:
    write(log, 300)
    path = tmp_path / "online.db"
    filled(path, log)
    with closing(SqliteStore(path, VIEWS)) as store:
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE state SET body = zeroblob(length(body)) WHERE key LIKE 'Sale%a'")
        with pytest.raises(Stale, match="its checksum must be that of its bytes; opened anew"):
            read(store)
        assert store.head() == 0
        assert len(store.notes) == 1
        catch_up(store, log)
        assert knows(store, log)


def test_who_still_has_a_removed_file_open_goes_on_and_harms_no_one(log: EventLog, tmp_path: Path) -> None:
    write(log, 100)
    path = tmp_path / "online.db"
    with closing(SqliteStore(path, VIEWS)) as late:
        push(late, log, 0, 60)
        with closing(SqliteStore(path, VIEWS)) as store:
            for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
                name.unlink()
            store._open()
            catch_up(store, log)
            push(late, log, 60, 100)
            assert knows(late, log)
            late.close()
            assert knows(store, log)
        assert is_sound_or_said(path, log) == "whole"


def heads_in(path: Path) -> dict[str, int]:
    """By view, what another process would find."""
    with closing(sqlite3.connect(path)) as db:
        return {view.partition("@")[0]: head.position for view, head in file._heads(db).items()}


def write_large(log: EventLog) -> None:
    start = log.head().position
    said = [{"event_id": str(i), "event_timestamp": 1_000 + i, "shop": f"{i}" * 4_000} for i in range(start, start + 9)]
    log.append([Sale(**one, amount=1.0) for one in said], [1_000 + start + i for i in range(9)])


def fill_disk(store: SqliteStore, full: bool = True) -> None:
    store._writer.execute(f"PRAGMA max_page_count = {1 if full else 10**6}")


def test_what_cannot_be_written_is_kept_and_written_later(log: EventLog, tmp_path: Path) -> None:
    write(log, 10)
    path = tmp_path / "online.db"
    with closing(SqliteStore(path, VIEWS)) as store:
        catch_up(store, log)
        store.flush()
        write_large(log)
        catch_up(store, log)
        write(log, 10)
        fill_disk(store)
        for _ in range(2):
            with pytest.raises(Unavailable, match="full"):
                store.flush()
            assert heads_in(path) == {"Sale": 10, "Visit": 10}
        push(store, log, 19, 29)
        assert knows(store, log)
        fill_disk(store, full=False)
        store.flush()
        assert heads_in(path) == {"Sale": 29, "Visit": 29}
        with closing(SqliteStore(path, VIEWS)) as other:
            assert knows(other, log)
        write_large(log)
        catch_up(store, log)
        fill_disk(store)
        store.close()
    assert is_sound_or_said(path, log) == "older"
    with pytest.raises(Unavailable, match="online.db"):
        SqliteStore(path / "online.db", VIEWS)


def test_what_waits_to_be_written_is_bounded(log: EventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "online.db"
    with closing(SqliteStore(path, VIEWS)) as store:
        monkeypatch.setattr(file, "KNOWN", 5)
        write_large(log)
        fill_disk(store)
        with pytest.raises(Unavailable, match="full"):  # it has room for these, but says that they wait
            catch_up(store, log)
        write(log, 5)
        for _ in range(2):
            with pytest.raises(Unavailable, match="full"):
                catch_up(store, log)
            assert store.head() == 9
        fill_disk(store, full=False)
        catch_up(store, log)
        assert knows(store, log)
        assert heads_in(path)["Sale"] >= 9


def test_what_waits_is_written_by_itself_and_at_the_end(
    log: EventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(log, 20)
    path = tmp_path / "online.db"
    monkeypatch.setattr(file, "LAG", 0.001)
    with closing(SqliteStore(path, VIEWS)) as store:
        push(store, log, 0, 10)
        for _ in range(10_000):
            if heads_in(path):
                break
            time.sleep(0.001)
        assert heads_in(path) == {"Sale": 10, "Visit": 10}
    monkeypatch.setattr(file, "LAG", 1_000.0)
    with closing(SqliteStore(path, VIEWS)) as store:
        push(store, log, 10, 20)
        assert heads_in(path) == {"Sale": 10, "Visit": 10}
    assert is_sound_or_said(path, log) == "whole"


def test_a_process_killed_before_it_wrote_leaves_an_older_store_that_says_so(log: EventLog, tmp_path: Path) -> None:
    write(log, 60)
    path = tmp_path / "online.db"
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from common.clock import SimulatedClock\n"
        "from common.features.online import sqlite\n"
        "from tests.common.test_online import KINDS, VIEWS, EventLog, push\n"
        "sqlite.LAG = 1_000.0\n"
        "log = EventLog(Path(sys.argv[1]), SimulatedClock(0), KINDS)\n"
        "store = sqlite.SqliteStore(Path(sys.argv[2]), VIEWS)\n"
        "push(store, log, 0, 40)\n"
        "store.flush()\n"
        "push(store, log, 40, 60)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log" / "log.db"), str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert heads_in(path) == {"Sale": 40, "Visit": 40}
    assert is_sound_or_said(path, log) == "older"


def test_what_waited_when_the_store_was_cleared_is_never_written(log: EventLog, tmp_path: Path) -> None:
    write(log, 20)
    path = tmp_path / "online.db"
    with EventLog(tmp_path / "another" / "log.db", SimulatedClock(0), KINDS) as erased:
        write(erased, 20, seed=1)
        for start, again in ((0, 0), (5, 0), (0, 10), (5, 10), (0, 20), (0, 0)):
            with closing(SqliteStore(path, VIEWS)) as late, closing(SqliteStore(path, VIEWS)) as other:
                catch_up(other, log)
                other.clear()
                late.head()
                push(late, log, 0, start)
                late.flush()
                push(late, log, start, 20)
                other.clear()
                push(other, erased, 0, again)
                other.flush()
                late.flush()
                assert late.head() == other.head() == again
                assert max(heads_in(path).values(), default=0) == again
                catch_up(late, erased)
                assert knows(late, erased)


def test_a_file_that_somebody_emptied_is_not_filled_with_what_came_later(log: EventLog, tmp_path: Path) -> None:
    write(log, 20)
    path = tmp_path / "online.db"
    with closing(SqliteStore(path, VIEWS)) as store:
        push(store, log, 0, 10)
        store.flush()
        push(store, log, 10, 20)
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("DELETE FROM state")
            db.execute("DELETE FROM head")
        store.flush()
        assert heads_in(path) == {}
        assert store.head() == 0
        catch_up(store, log)
        assert knows(store, log)


def test_who_writes_late_writes_nothing_over_what_is_newer(log: EventLog, tmp_path: Path) -> None:
    write(log, 30)
    path = tmp_path / "online.db"
    with (
        closing(SqliteStore(path, VIEWS)) as late,
        closing(SqliteStore(path, VIEWS)) as other,
        closing(SqliteStore(path, VIEWS[:1])) as sales,
    ):
        push(late, log, 0, 10)
        push(other, log, 0, 20)
        push(sales, log, 0, 25)
        for store, wanted in (
            (sales, {"Sale": 25}),
            (other, {"Sale": 25, "Visit": 20}),
            (late, {"Sale": 25, "Visit": 20}),
        ):
            store.flush()
            assert heads_in(path) == wanted
            assert store is sales or is_exact(read(store), log)
        assert read(late).heads == (25, 20)
        catch_up(late, log)
        late.flush()
    assert is_sound_or_said(path, log) == "whole"


def test_a_read_that_fails_midway_learns_nothing(
    log: EventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(log, 20)
    filled(tmp_path / "online.db", log)
    with closing(SqliteStore(tmp_path / "online.db", VIEWS)) as store:
        store.head()
        with monkeypatch.context() as patch:
            patch.setattr(file, "_whole", no_memory)
            with pytest.raises(MemoryError):
                read(store)
        assert knows(store, log)


def no_memory(*_: object) -> bytes:
    raise MemoryError


LOGS, LENGTH = 2, 40


class Workers(RuleBasedStateMachine):
    """Three on one file, the last of only one view: whatever they do, a reading is exactly of the heads it names."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(file, "LAG", 1_000.0)
        self.stack = ExitStack()
        folder = Path(self.stack.enter_context(TemporaryDirectory()))
        self.path, self.which = folder / "online.db", 0
        self.logs = [
            self.stack.enter_context(EventLog(folder / f"{i}" / "log.db", SimulatedClock(0), KINDS))
            for i in range(LOGS)
        ]
        for i, one in enumerate(self.logs):
            write(one, LENGTH, seed=i)
        self.stores = [self.opened(i) for i in range(3)]

    def opened(self, i: int) -> SqliteStore:
        return SqliteStore(self.path, VIEWS[:1] if i == 2 else VIEWS)

    @property
    def log(self) -> EventLog:
        return self.logs[self.which]

    @rule(i=st.integers(0, 2), n=st.integers(1, 12), back=st.integers(0, 6))
    def push(self, i: int, n: int, back: int) -> None:
        after = self.stores[i].head()
        push(self.stores[i], self.log, max(0, after - back), min(after + n, LENGTH))
        assert self.stores[i].head() >= min(after + n, LENGTH)

    @rule(i=st.integers(0, 2), after=st.integers(0, LENGTH), n=st.integers(1, 12))
    def push_what_it_may_not(self, i: int, after: int, n: int) -> None:
        with suppress(Stale):
            push(self.stores[i], self.log, after, min(after + n, LENGTH))

    @rule(i=st.integers(0, 2), shops=st.lists(st.sampled_from("abcdefghz"), min_size=1))
    def read(self, i: int, shops: list[str]) -> None:
        got = self.stores[i].read(pa.table({"shop": shops}), np.full(len(shops), 10_000))
        for v, head, values in zip(VIEWS, got.heads, got.values, strict=False):
            wanted = self.wanted(self.which, v, head)
            np.testing.assert_allclose(values, [wanted[shop] for shop in shops], rtol=1e-9)

    def wanted(self, which: int, v: FeatureView, head: int) -> dict[str, Any]:
        if (which, v.name, head) not in WANTED:
            now = pa.array([10_000] * SHOPS.num_rows, pa.int64())
            rows = asked(self.log, head).set_column(1, "created_timestamp", now)
            values = reference.compute(v, self.log.read(v.source, 0, head), rows)
            WANTED[which, v.name, head] = dict(zip("abcdefghz", values, strict=True))
        return WANTED[which, v.name, head]

    @rule(i=st.integers(0, 2))
    def flush(self, i: int) -> None:
        before = heads_in(self.path)
        self.stores[i].flush()
        after = heads_in(self.path)
        assert all(after[name] >= head for name, head in before.items())
        self.stores[i].head()  # it hears of what the others wrote
        assert all(after.get(view.plan.view.name, 0) == view.head for view in self.stores[i]._views)
        self.is_whole()

    @rule(i=st.integers(0, 2))
    def fail_to_flush(self, i: int) -> None:
        self.stores[i]._writer.execute("PRAGMA query_only = ON")
        with suppress(Unavailable):
            self.stores[i].flush()
        self.stores[i]._writer.execute("PRAGMA query_only = OFF")

    @rule(i=st.integers(0, 2))
    def forget_what_can_be_read_again(self, i: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(file, "KNOWN", -1_000)
            self.stores[i]._trim()

    @rule(i=st.integers(0, 2), which=st.integers(0, LOGS - 1))
    def clear(self, i: int, which: int) -> None:
        self.stores[i].clear()
        self.which = which
        assert self.stores[i].head() == 0

    @rule(i=st.integers(0, 2), kills=st.booleans())
    def restart(self, i: int, kills: bool) -> None:
        if kills:
            kill(self.stores[i])
        self.stores[i].close()
        self.stores[i] = self.opened(i)
        assert self.stores[i].notes == []

    def teardown(self) -> None:
        for store, views in zip(self.stores, (VIEWS, VIEWS, VIEWS[:1]), strict=True):
            catch_up(store, self.log)
            assert knows(store, self.log, views)
            store.close()
        self.is_whole()
        self.stack.close()
        self.patch.undo()

    def is_whole(self) -> None:
        file._sound(self.path).close()


def kill(store: SqliteStore) -> None:
    """It writes nothing more."""
    store._closed.set()
    store._behind.join()


WANTED: dict[tuple[int, str, int], dict[str, Any]] = {}
TestWorkers = Workers.TestCase
TestWorkers.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_reading_is_of_one_moment_whatever_is_pushed_between_its_statements(log: EventLog, tmp_path: Path) -> None:
    write(log, 100)
    path, at, seen = tmp_path / "online.db", [0], []
    with closing(SqliteStore(path, VIEWS)) as store, closing(SqliteStore(path, VIEWS)) as other:

        def push_one(statement: str) -> None:
            seen.append(statement)
            push(other, log, at[0], at[0] + 2)  # one event of each view
            other.flush()
            at[0] += 2

        store._db.set_trace_callback(push_one)
        readings = [read(store) for _ in range(5)]
        store._db.set_trace_callback(None)
    assert any(statement.startswith("SELECT key, checksum, body FROM state") for statement in seen)
    assert len({reading.heads for reading in readings}) == 5
    assert all(is_exact(reading, log) for reading in readings)


# In Redis


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    pytest.importorskip("redis")
    (tmp_path / "redis").mkdir()
    with private_redis(tmp_path / "redis", "--save", "") as started:
        yield started


def in_redis(url: str, name: str = "test") -> Any:
    from common.features.online.redis import RedisStore

    return closing(RedisStore(url, name, VIEWS))


def test_a_micro_batch_is_one_round_trip_to_read_and_one_to_push(server: Any, log: EventLog) -> None:
    write(log, 40)
    with in_redis(server.url) as store, store._redis.client() as watcher:
        push(store, log, 0, 20)
        with Watching(store) as sent:
            read(store, at_least=20)
        assert len(sent) == 1
        assert sent[0].count(b"HMGET") == len(VIEWS)
        with Watching(store) as sent:
            push(store, log, 20, 36)
        assert len(sent) == 1
        assert sent[0].count(b"EVALSHA") == 1
        watcher.script_flush()  # a restarted server knows no script
        push(store, log, 36, 40)
        assert knows(store, log)


class Watching:
    """What a store sends, one item for each time that it waits for an answer."""

    def __init__(self, store: Any) -> None:
        self._pool = store._redis.connection_pool

    def __enter__(self) -> list[bytes]:
        connection = self._pool.get_connection()
        self._pool.release(connection)
        self._connection, self._send, sent = connection, connection.send_packed_command, []

        def send(command: Any, *args: Any, **kwargs: Any) -> None:
            sent.append(command if isinstance(command, bytes) else b"".join(command))
            self._send(command, *args, **kwargs)

        connection.send_packed_command = send
        return sent

    def __exit__(self, *_: object) -> None:
        self._connection.send_packed_command = self._send


def test_a_lost_redis_is_never_fresh_and_is_made_again_from_the_log(server: Any, log: EventLog) -> None:
    write(log, 40)
    with in_redis(server.url) as store:
        catch_up(store, log)
        assert knows(store, log)
        server.kill()
        with pytest.raises(Unavailable, match="127.0.0.1"):
            read(store, at_least=40)
        with pytest.raises(Unavailable):
            push(store, log, 40, 40)
        server.start("--save", "")
        with pytest.raises(Stale, match="must be >= 40, got 0"):
            read(store, at_least=40)
        write(log, 10)
        with pytest.raises(Stale):
            push(store, log, 40, 50)
        catch_up(store, log)
        assert knows(store, log)
        store._redis.flushall()
        with pytest.raises(Stale):
            push(store, log, 49, 50)
        push(store, log, 0, 50)
        assert knows(store, log)


def test_a_failover_to_an_older_copy_is_seen_and_what_is_missing_is_pushed_again(
    server: Any, log: EventLog, tmp_path: Path
) -> None:
    write(log, 40)
    with in_redis(server.url) as store:
        push(store, log, 0, 25)
        store._redis.save()  # the copy
        push(store, log, 25, 40)
        read(store)  # it knows the states of 40
        server.kill()
        server.start("--save", "")
        with pytest.raises(Stale, match="must be >= 40, got 25"):
            read(store, at_least=40)
        catch_up(store, log)
        assert knows(store, log)


def test_a_view_that_was_evicted_or_deleted_is_lost_as_a_whole(server: Any, log: EventLog) -> None:
    write(log, 40)
    with in_redis(server.url) as store:
        catch_up(store, log)
        store._redis.delete(store._names[1])
        with pytest.raises(Stale):
            read(store, at_least=40)
        catch_up(store, log)
        assert knows(store, log)


def test_a_damaged_state_in_redis_is_not_served(server: Any, log: EventLog) -> None:
    write(log, 40)
    with in_redis(server.url) as store:
        catch_up(store, log)
        for field, wrong in (("\x1fa", b"x"), ("head", b"40")):
            store._redis.hset(store._names[0], field, wrong)
            with pytest.raises(Stale, match="the view is removed"):
                read(store)
            assert store.head() == 0
            catch_up(store, log)
            assert knows(store, log)


@pytest.mark.parametrize(("policy", "refused"), [("allkeys-lru", True), ("noeviction", False), ("volatile-lru", False)])
def test_a_redis_that_would_evict_is_refused(server: Any, policy: str, refused: bool) -> None:
    with in_redis(server.url) as store:
        store._redis.config_set("maxmemory-policy", policy)
        in_redis(server.url).thing.close()  # without a limit nothing is ever evicted
        store._redis.config_set("maxmemory", "100mb")
    if refused:
        with pytest.raises(BadSetting, match=f"maxmemory-policy: must not evict, as noeviction does, got {policy}"):
            in_redis(server.url)
    else:
        in_redis(server.url).thing.close()


def test_a_redis_without_room_takes_nothing_of_a_push(server: Any, log: EventLog) -> None:
    write(log, 40)
    with in_redis(server.url) as store:
        push(store, log, 0, 20)
        store._redis.config_set("maxmemory", "1")
        with pytest.raises(Unavailable, match="maxmemory"):
            push(store, log, 20, 40)
        assert read(store).heads == (20, 20)
        store._redis.config_set("maxmemory", "0")
        push(store, log, 20, 40)
        assert knows(store, log)


@pytest.mark.parametrize("is_sent", [False, True])
def test_a_connection_that_breaks_in_the_middle_of_a_push_leaves_all_or_nothing(
    server: Any, log: EventLog, is_sent: bool
) -> None:
    redis = pytest.importorskip("redis")
    write(log, 40)
    with in_redis(server.url) as store, in_redis(server.url) as other:
        push(store, log, 0, 20)
        read(store)
        pool = store._redis.connection_pool
        connection = pool.get_connection()
        pool.release(connection)
        send = connection.send_packed_command

        def breaks(command: Any, *args: Any, **kwargs: Any) -> None:
            body = command if isinstance(command, bytes) else b"".join(command)
            if b"EVALSHA" not in body:
                return send(command, *args, **kwargs)
            connection.connect()  # does nothing where it is
            connection._sock.sendall(body if is_sent else body[: len(body) // 2])
            if is_sent:
                connection._sock.recv(1)  # it was done, but the answer does not arrive
            connection.disconnect()
            raise redis.ConnectionError("broken")

        connection.send_packed_command = breaks
        with pytest.raises(Unavailable, match="broken"):
            push(store, log, 20, 40)
        assert other.head() == (40 if is_sent else 20)
        del connection.send_packed_command
        push(store, log, 20, 40)
        assert knows(other, log)


def test_a_push_that_always_comes_second_gives_up_and_changes_nothing(server: Any, log: EventLog) -> None:
    write(log, 100)
    with in_redis(server.url) as store, in_redis(server.url) as other:
        push(store, log, 0, 10)
        script, at = store._script, [10]

        def second(*args: Any) -> Any:
            push(other, log, at[0], at[0] + 1)
            at[0] += 1
            return script(*args)

        store._script = second
        with pytest.raises(Conflict, match="others were faster 20 times; push again"):
            push(store, log, 10, 100)
        store._script = script
        assert store.head() == 30
        push(store, log, 10, 100)
        assert knows(store, log)


def test_a_push_that_is_too_large_for_one_command_goes_in_parts(
    server: Any, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    from common.features.online import redis

    monkeypatch.setattr(redis, "STATES", 20)
    write(log, 101)
    with in_redis(server.url) as store:
        calls, script = [], store._script
        store._script = lambda *args: calls.append(args) or script(*args)
        push(store, log, 0, 101)
        assert len(calls) == 11
        assert knows(store, log)


def test_a_redis_that_does_not_answer_is_unavailable_within_seconds_and_no_password_is_told() -> None:
    pytest.importorskip("redis")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        with pytest.raises(Unavailable, match=f"redis at 127.0.0.1:{port}: ") as caught:
            in_redis(f"redis://user:secret@127.0.0.1:{port}/0")
        assert "secret" not in str(caught.value)
    with pytest.raises(Unavailable):
        in_redis(f"redis://:secret@127.0.0.1:{port}/0")
    with pytest.raises(BadSetting, match="MLSYS_REDIS_URL: must be") as bad:
        in_redis("redis://user:sec/ret@127.0.0.1:1/0")
    assert "sec" not in str(bad.value)
    assert bad.value.__suppress_context__


def test_a_wrong_password_is_a_bad_setting(server: Any) -> None:
    with in_redis(server.url) as store:
        store._redis.config_set("requirepass", "right")
    for url in (server.url, server.url.replace("://", "://:wrong@")):
        with pytest.raises(BadSetting, match="must know the user and password") as caught:
            in_redis(url)
        assert ":wrong" not in str(caught.value)
