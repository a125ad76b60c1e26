"""Processes that promote at once, also while the database goes away."""

import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.clock import WallClock
from common.errors import Unavailable
from common.registry.keys import Keys
from common.registry.registry import Registry
from tests.cluster import cluster
from tests.promoter import SYSTEM, look

PROMOTERS, READERS = 8, 2
PATIENCE = 60  # s

Running = list[tuple[str, "subprocess.Popen[str]"]]
Said = list[tuple[str, list[str]]]


@dataclass
class House:
    """A registry with three versions, and those who fight over it."""

    home: Path
    keys: Keys
    url: str | None

    def open(self) -> Registry:
        return Registry(self.home, WallClock(), self.keys, self.url)

    def publish(self) -> list[str]:
        names = []
        with self.open() as registry:
            for content in "abc":
                folder = self.home.parent / content
                folder.mkdir()
                (folder / "trees.txt").write_text(f"tree\n{content}\n")
                names.append(registry.publish(SYSTEM, folder, {}, {}, []).name)
        return names

    def compete(self, until: int, names: list[str]) -> "Running":
        """Promoters and readers that start at one moment, when all of them are ready."""
        whos = [*(f"promoter-{i}" for i in range(PROMOTERS)), *["reader"] * READERS]
        running = [(who, self._start(who, until, names)) for who in whos]
        for _, process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate()
        for _, process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return running

    def _start(self, who: str, until: int, names: list[str]) -> "subprocess.Popen[str]":
        place = (str(self.home), str(self.keys.folder), self.url or "", who, str(until))
        command = [sys.executable, "-m", "tests.promoter", *place, *names]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def house(tmp_path: Path, database_url: str | None) -> House:
    return House(tmp_path / "home", Keys(tmp_path / "keys"), database_url)


def finished(running: Running) -> Said:
    """What each one said; all must have ended well."""
    said = []
    for who, process in running:
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (0, ""), who
        said.append((who, out.splitlines()))
    return said


def judged(house: House, said: Said) -> Counter[str]:
    """Each revision has one winner, all that was acknowledged is there; returns how often each thing was said."""
    counts = Counter(line.partition(" ")[0] if "acknow" in line else line for _, lines in said for line in lines)
    with house.open() as registry:
        rows = registry.audit(SYSTEM)
        head = registry.verify_audit()
        assert head is not None
        assert head.row == len(rows) == look(registry)
    acknowledged = {}
    for who, lines in said:
        for _, revision, name in (line.split() for line in lines if line.startswith("acknowledged")):
            assert revision not in acknowledged, "two winners"
            acknowledged[revision] = who, name
    for revision, (who, name) in acknowledged.items():
        row = rows[int(revision) - 1]
        assert (row.who, row.became) == (who, name)
    assert len(rows) - len(acknowledged) <= counts["unavailable, outcome unknown"]
    return counts


def test_of_eight_processes_one_wins_each_revision_and_nobody_sees_half_a_promotion(house: House) -> None:
    names, until = house.publish(), 100
    said = finished(house.compete(until, names))
    counts = judged(house, said)
    assert counts["acknowledged"] == until
    assert counts["conflict"] > 0
    assert sum(any("acknowledged" in line for line in lines) for _, lines in said) > 1


def test_a_database_that_dies_amid_promotions_loses_none_and_keeps_no_half(tmp_path: Path) -> None:
    with cluster() as server:
        house = House(tmp_path / "home", Keys(tmp_path / "keys"), server.url)
        names, until = house.publish(), 120
        running = house.compete(until, names)
        with house.open() as registry:
            wait_for(registry, 30)
            server.stop()
            with pytest.raises(Unavailable, match="PostgreSQL at 127.0.0.1"):
                registry.promote(SYSTEM, names[0], who="me", why="it is away")
            with pytest.raises(Unavailable):
                registry.aliases(SYSTEM)
            server.start()
            wait_for(registry, 60)
            server.stop()
            server.start()
            wait_for(registry, 90)
        counts = judged(house, finished(running))
    assert counts["unavailable, outcome nothing kept"] + counts["unavailable, outcome unknown"] >= len(running)


def wait_for(registry: Registry, revision: int) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if look(registry) >= revision:
                return
        except Unavailable:
            pass
        time.sleep(0.01)
    pytest.fail(f"nobody brought the aliases to revision {revision} in {PATIENCE} s")
