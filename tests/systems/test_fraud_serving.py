"""The fraud system as a server, with a champion, a history and real faults: what it saw is what training computes."""

import http.client
import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from common.checks import Bench
from common.cli import main
from common.clock import WallClock
from common.registry.registry import Registry
from tests.servers import private_redis
from tests.serving import Serving, serving

PATIENCE = 60  # s


@pytest.fixture(scope="module")
def lived(benches: Callable[[str, str], Bench]) -> Bench:
    """The small world, and a model that was learned from it."""
    made = benches("systems", "fraud")
    assert made.trained
    return made


@dataclass
class Home:
    """A home of a test's own: the champion, and a log with the world's history."""

    folder: Path
    keys: Path
    payments: list[dict[str, Any]]
    number: Iterator[int] = field(default_factory=count)
    key: str = ""

    def serve(self, **said: Any) -> Any:
        environment = {"MLSYS_KEYS": str(self.keys), "MLSYS_RATE_LIMIT": "1000000/second", "MLSYS_DEADLINE_MS": "1000"}
        return serving(self.folder, "fraud", workers=said.pop("workers", 1), **{**environment, **said})

    def score(self, server: Serving, n: int) -> Counter[str]:
        """So many payments, one after the other: how often each status, or a lost connection; and how many degraded."""
        self.key = self.key or server.said["key"]
        found: Counter[str] = Counter()
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        for _ in range(n):
            i = next(self.number)
            now = WallClock().now()
            payment = {**self.payments[i % len(self.payments)], "event_id": f"served-{i}", "event_timestamp": now}
            try:
                headers = {"authorization": f"Bearer {self.key}"}
                connection.request("POST", "/v1/fraud/score", json.dumps(payment), headers)
                answer = connection.getresponse()
                said = json.loads(answer.read())
                found["degraded" if said.get("degraded") else str(answer.status)] += 1
            except (OSError, http.client.HTTPException):
                found["lost"] += 1
                connection.close()
        connection.close()
        return found

    def until_full(self, server: Serving) -> None:
        until = time.monotonic() + PATIENCE
        while self.score(server, 1) != {"200": 1}:
            assert time.monotonic() < until
            time.sleep(0.05)

    def parity(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
        monkeypatch.setenv("MLSYS_HOME", str(self.folder))
        monkeypatch.setenv("MLSYS_KEYS", str(self.keys))
        capsys.readouterr()
        assert main(["parity", "fraud", "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found


@pytest.fixture
def home(lived: Bench, tmp_path: Path) -> Home:
    folder = tmp_path / "home"
    shutil.copytree(lived.home / "registry", folder)
    (folder / "fraud").mkdir()
    for file in lived.home.glob("log.*"):
        shutil.copy(file, folder / "fraud" / file.name)
    with closing(Registry(folder, WallClock(), lived.keys)) as registry:
        registry.promote("fraud", lived.trained.version.name, who="ada", why="it is the first")
    payments = lived.snapshot.of(lived.system.request).slice(0, 500)
    return Home(folder, lived.keys.folder, payments.drop(["position", "created_timestamp"]).to_pylist())


def test_a_killed_worker_and_a_restart_change_no_feature(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with home.serve(workers=2) as server:
        assert home.score(server, 60) == {"200": 60}
        os.kill(server.workers[0], signal.SIGKILL)
        after = home.score(server, 60)
        assert after["200"] >= 59
        assert after["lost"] <= 1, "only what was in flight"
    with home.serve() as server:
        assert home.score(server, 30) == {"200": 30}
    found = home.parity(monkeypatch, capsys)
    assert found["answers"] >= 149
    assert found["gap"] <= 1e-9
    assert set(found["left_out"]) == {"answered by the rule"}, "of the world's history"


def test_a_redis_that_is_killed_and_comes_back_empty_costs_full_answers_but_none(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with private_redis(tmp_path, "--save", "", "--appendonly", "no") as redis:
        with home.serve(MLSYS_REDIS_URL=redis.url) as server:
            assert home.score(server, 30) == {"200": 30}
            redis.kill()
            assert home.score(server, 60) == {"degraded": 60}
            redis.start("--save", "", "--appendonly", "no")
            home.until_full(server)
            assert home.score(server, 30) == {"200": 30}
    found = home.parity(monkeypatch, capsys)
    assert found["answers"] >= 60
    assert found["gap"] <= 1e-9
    assert found["left_out"]["default features"] >= 60


def test_a_frozen_redis_degrades_answers_and_fails_none(home: Home, tmp_path: Path) -> None:
    with private_redis(tmp_path, "--save", "", "--appendonly", "no") as redis:
        with home.serve(MLSYS_REDIS_URL=redis.url) as server:
            assert home.score(server, 10) == {"200": 10}
            os.kill(redis._process.pid, signal.SIGSTOP)
            assert home.score(server, 60) == {"degraded": 60}
            os.kill(redis._process.pid, signal.SIGCONT)
            home.until_full(server)
