"""A store is a view of the log: it says how far it reaches, catches up, and never passes for fresher than it is."""

import random
import shutil
import socket
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from common.clock import SimulatedClock
from common.data.log import EventLog
from common.errors import BadDefinition, BadSetting, Conflict, MissingExtra, Stale, Unavailable
from common.features import online, reference
from common.features.online import OnlineStore, catch_up, open_store
from common.features.online.sqlite import SqliteStore
from common.features.view import Aggregation, FeatureView
from common.schema import Event
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
    assert max(p.max() for p in read(store).positions) == 11
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


def test_a_file_that_cannot_be_written_is_unavailable_and_keeps_what_it_had(log: EventLog, tmp_path: Path) -> None:
    write(log, 20)
    path = tmp_path / "online.db"
    with closing(SqliteStore(path, VIEWS)) as store:
        push(store, log, 0, 10)
        store._db.execute("PRAGMA max_page_count = 1")  # the disk is full
        more = {kind: log.read(kind, 10, 20) for kind in KINDS}
        new = [f"shop{i}" * 400 for i in range(more[Sale].num_rows)]
        more[Sale] = more[Sale].set_column(more[Sale].column_names.index("shop"), "shop", pa.array(new))
        with pytest.raises(Unavailable, match="full"):
            store.push(more, 10, 20)
        assert store.head() == 10
        store._db.execute("PRAGMA max_page_count = 1000000")
        catch_up(store, log)
        assert knows(store, log)
    with pytest.raises(Unavailable, match="online.db"):
        SqliteStore(path / "online.db", VIEWS)


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
        assert read(store).head == 20
        assert max(p.max() for p in read(store).positions) == 20
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
