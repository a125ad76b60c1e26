"""A copy of the state, made while others write, and the way back."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from common.clock import SimulatedClock, WallClock
from common.data.log import EventLog
from common.data.snapshots import Snapshots
from common.errors import BadSetting, Conflict, Damaged, NotFound, Unavailable
from common.lifecycle.backup import CONTENTS, Contents, backup, restore
from common.registry.keys import Keys
from common.registry.registry import Registry
from common.schema import Event
from tests.servers import schema


class Payment(Event):
    amount: float


def payments(start: int, count: int) -> list[Payment]:
    return [Payment(event_id=str(i), event_timestamp=i, amount=i / 7) for i in range(start, start + count)]


class State:
    """Of one system, "shop", with a version, an alias, a snapshot, a log."""

    def __init__(self, root: Path, url: str | None) -> None:
        self.root, self.home, self.url, self.clock = root, root / "home", url, SimulatedClock(1)
        self.keys = Keys(root / "keys")

    def log(self) -> EventLog:
        return EventLog(self.home / "shop" / "log.db", WallClock(), [Payment], url=self.url)

    def registry(self) -> Registry:
        return Registry(self.home, self.clock, self.keys, self.url)

    def fill(self) -> None:
        with self.log() as log, self.registry() as registry:
            log.append(payments(0, 1_000))
            made = self.root / "made"
            made.mkdir()
            for name in ("model.json", "world-model.json", "online.json", "log.json"):
                (made / name).write_text("{}")
            snapshot = Snapshots(self.home / "snapshots").publish(log.read(Payment))
            lineage = {"snapshots": {"Payment": snapshot}}
            version = registry.publish("shop", made, {"metrics": {}}, lineage, [])
            registry.promote("shop", version.name, who="ann", why="first")
        (self.home / "shop").mkdir(exist_ok=True)
        (self.home / "shop" / "trials.log").write_text("{}\n")
        (self.home / "shop" / "online.db").write_text("derived")

    def said(self) -> object:
        """All that a backup must bring back."""
        with self.log() as log, self.registry() as registry:
            log.check()
            registry.verify_audit()
            version = registry.get("shop", str(registry.alias("shop", "champion")))
            registry.path(version)
            Snapshots(self.home / "snapshots").read(version.lineage["snapshots"]["Payment"])
            return log.read(Payment).to_pylist(), version, registry.audit(), log.head()

    def backup(self, name: str = "backup") -> Contents:
        return backup(
            self.home, self.url, ["shop", "no such log"][: 1 if self.url else 2], self.clock, self.root / name
        )


@pytest.fixture
def state(tmp_path: Path, database_url: str | None) -> State:
    state = State(tmp_path, database_url)
    state.fill()
    return state


@pytest.fixture(params=["sqlite", "postgresql"])
def elsewhere(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """Where a backup is restored to."""
    if request.param == "sqlite":
        yield None
    else:
        with schema() as url:
            yield url


def test_what_was_deleted_comes_back_with_equal_digests_and_the_log_goes_on(
    state: State, elsewhere: str | None
) -> None:
    before, contents = state.said(), state.backup()
    shutil.rmtree(state.home)
    state.url = elsewhere
    assert restore(state.root / "backup", state.home, state.url) == contents
    assert state.said() == before
    with state.log() as log:
        assert log.append(payments(999, 2)) == [log.append(payments(999, 1))[0], log.head()]
        assert log.head().position == 1_001
    shutil.rmtree(state.root / "backup")
    again = state.backup()
    assert again.registry == contents.registry
    assert again.logs["shop"] != contents.logs["shop"]


def test_a_backup_while_writers_run_holds_all_that_was_acknowledged_before(state: State) -> None:
    stop, acknowledged = threading.Event(), [1_000]
    with state.log() as log:

        def write() -> None:
            while not stop.is_set():
                log.append(payments(acknowledged[0], 3))
                acknowledged[0] += 3

        writer = threading.Thread(target=write)
        writer.start()
        try:
            heads = []
            for i in range(5):
                before = acknowledged[0]
                contents = state.backup(f"backup-{i}")
                assert before <= contents.logs["shop"].rows <= acknowledged[0] + 3
                heads.append(contents.logs["shop"].rows)
        finally:
            stop.set()
            writer.join()
    shutil.rmtree(state.home)
    restore(state.root / "backup-4", state.home, None)
    state.url = None
    with state.log() as log:
        log.check()
        found = log.read(Payment)["event_id"].to_pylist()
    assert found == [str(i) for i in range(heads[-1])]


def test_a_writer_whose_state_was_deleted_is_refused_and_goes_on_once_it_is_restored(tmp_path: Path) -> None:
    state = State(tmp_path, None)
    state.fill()
    contents = state.backup()
    with state.log() as log:
        shutil.rmtree(state.home)
        with pytest.raises(Unavailable, match="was removed or replaced; nothing of this call was kept"):
            log.append(payments(1_000, 1))
        assert restore(tmp_path / "backup", state.home, None) == contents
        assert log.append(payments(1_000, 1))[0].position == 1_001
        assert log.read(Payment).num_rows == 1_001
    with state.log() as log:
        assert log.head().position == 1_001


def test_only_what_cannot_be_made_again_is_copied_and_no_key(state: State) -> None:
    files = set(state.backup().files)
    assert not {name for name in files if "online.db" in name or name.endswith((".pem", "-wal", "-shm"))}
    assert {"shop/trials.log", "shop/log.db", "registry.db"} < files


def test_what_comes_and_goes_meanwhile_is_no_part_of_a_backup(tmp_path: Path) -> None:
    state, stop = State(tmp_path, None), threading.Event()
    state.fill()
    (state.home / "shop" / "trials.log").write_text("{}\n{cut of")

    def come_and_go() -> None:
        while not stop.is_set():
            for name in ("world-1", "bundles/.temporary", ".hidden"):
                (state.home / name / "inside").mkdir(parents=True, exist_ok=True)
                (state.home / name / "inside" / "file").write_text("x")
                shutil.rmtree(state.home / name)

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        backups = [set(state.backup(f"backup-{i}").files) for i in range(30)]
    finally:
        stop.set()
        other.join()
    assert all(files == backups[0] for files in backups)
    assert not [name for name in backups[0] if "inside" in name]
    assert (tmp_path / "backup-0" / "shop" / "trials.log").read_text() == "{}\n"


def test_the_log_of_a_system_that_is_not_installed_any_more_is_copied_too(tmp_path: Path) -> None:
    state = State(tmp_path, None)
    state.fill()
    with EventLog(state.home / "old" / "log.db", WallClock(), [Payment]) as log:
        log.append(payments(0, 3))
    assert state.backup().logs["old"].rows == 3


def test_a_state_is_never_overwritten(state: State) -> None:
    state.backup()
    with pytest.raises(Conflict, match="MLSYS_HOME: must be empty or absent"):
        restore(state.root / "backup", state.home, state.url)
    with pytest.raises(BadSetting, match="DIR: must not exist"):
        state.backup()
    with pytest.raises(BadSetting, match="must lie outside MLSYS_HOME"):
        state.backup("home/inside")


def test_tables_that_hold_rows_are_never_mixed_with_those_of_a_backup(tmp_path: Path) -> None:
    with schema() as url:
        state = State(tmp_path, url)
        state.fill()
        state.backup()
        shutil.rmtree(state.home)
        with pytest.raises(Conflict, match="log: must be empty to be copied into, that of shop holds 1,000 events"):
            restore(tmp_path / "backup", state.home, url)
        assert not state.home.exists()


@pytest.mark.parametrize("name", ["shop/log.db", "registry.db", "shop/trials.log", CONTENTS])
def test_a_backup_that_is_not_what_was_written_is_refused_whole(tmp_path: Path, name: str) -> None:
    state = State(tmp_path, None)
    state.fill()
    state.backup()
    shutil.rmtree(state.home)
    path = tmp_path / "backup" / name
    content = path.read_bytes()
    for damaged in (content[:-1] + b"\x00", content[: len(content) // 2], b""):
        path.write_bytes(damaged)
        with pytest.raises(Damaged) as refused:
            restore(tmp_path / "backup", state.home, None)
        assert name in str(refused.value)
        assert not state.home.exists()
    path.unlink()
    with pytest.raises((Damaged, NotFound)):
        restore(tmp_path / "backup", state.home, None)
    assert not state.home.exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "shop/../../outside", "link"])
def test_a_backup_writes_nowhere_but_into_the_state(tmp_path: Path, name: str) -> None:
    state = State(tmp_path, None)
    state.fill()
    state.backup()
    shutil.rmtree(state.home)
    (tmp_path / "outside").write_text("")
    (tmp_path / "backup" / "link").symlink_to(tmp_path / "outside")
    contents = json.loads((tmp_path / "backup" / CONTENTS).read_text())
    contents["files"][name] = "0" * 64
    (tmp_path / "backup" / CONTENTS).write_text(json.dumps(contents))
    with pytest.raises(Damaged, match="must be a plain file of this backup"):
        restore(tmp_path / "backup", state.home, None)


def test_where_there_is_no_state_no_empty_backup_is_made(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="MLSYS_HOME: there is no state in"):
        State(tmp_path, None).backup()
    assert not (tmp_path / "backup").exists()


def test_a_folder_without_a_backup_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="DIR: no backup in"):
        restore(tmp_path / "nothing", tmp_path / "home", None)


def test_a_log_that_is_not_whole_is_not_backed_up(tmp_path: Path) -> None:
    state = State(tmp_path, None)
    state.fill()
    with closing(state.log()) as log:
        log._storage.execute("UPDATE payload SET body = replace(body, '\"7\"', '\"8\"') WHERE position = 8")
    with pytest.raises(Damaged, match="event 8 is not what was written"):
        state.backup()
    assert not (tmp_path / "backup").exists()
