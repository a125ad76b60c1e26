"""Several processes behind one address: replaced, killed and stopped, and nobody notices who need not."""

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from common.cli import main
from common.system import find
from tests.serving import WAIT, Serving, answer, serving

PACE = 0.004  # s, between two requests of a client: new workers need a processor to start
AWAY = pytest.importorskip("common.serving.workers").AWAY


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def two(place: Path) -> Iterator[Serving]:
    with serving(place, "fraud", workers=2, TMPDIR=str(place)) as server:
        yield server


def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(WAIT * 20):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(what)


@dataclass
class Load:
    """Keep-alive clients, each with one request at a time, until all are told to stop."""

    server: Serving
    answered: int = 0
    failed: list[str] = field(default_factory=list)
    connections: int = 0
    is_over: bool = False

    async def client(self, request: Callable[[], bytes]) -> None:
        writer: asyncio.StreamWriter | None = None
        while not self.is_over:
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
                    self.connections += 1
                writer.write(request())
                status, headers, _ = await asyncio.wait_for(answer(reader), WAIT)
                if status == 200:
                    self.answered += 1
                else:
                    self.failed.append(f"status {status}")
                is_last = headers.get("connection") == "close"
            except (OSError, EOFError, TimeoutError) as error:
                self.failed.append(repr(error))
                is_last = True
            await asyncio.sleep(PACE)
            if is_last and writer is not None:
                writer.close()
                writer = None
        if writer is not None:
            writer.close()


def score(server: Serving) -> Callable[[], bytes]:
    """A payment that is new each time."""
    example = find("systems", "fraud").examples[0].model_dump()
    count = iter(range(10**9))

    def request() -> bytes:
        body = json.dumps({**example, "event_id": f"{os.getpid()}-{id(count)}-{next(count)}"}).encode()
        return server.request("POST", "/v1/fraud/score", body)

    return request


def test_connections_that_come_together_are_shared(two: Serving) -> None:
    def sockets(pid: int) -> int:
        return sum(os.readlink(link).startswith("socket:") for link in Path(f"/proc/{pid}/fd").iterdir())

    async def run() -> list[int]:
        live = two.request("GET", "/health/live")
        before = [sockets(pid) for pid in two.workers]
        pairs = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", two.port) for _ in range(16)))
        for reader, writer in pairs:
            writer.write(live)
            await answer(reader)
        after = [sockets(pid) for pid in two.workers]
        for _, writer in pairs:
            writer.close()
        for _ in range(500):  # the next try begins with none
            if [sockets(pid) for pid in two.workers] == before:
                break
            await asyncio.sleep(0.01)
        return [b - a for a, b in zip(before, after, strict=True)]

    tries = [asyncio.run(run()) for _ in range(3)]
    assert all(sum(shares) == 16 for shares in tries)
    assert max(map(min, tries)) >= 4  # exactly half, where both can run: a busy machine may not let them at once


def test_replacing_every_worker_fails_no_request(two: Serving) -> None:
    before = two.workers
    probe, real = Load(two), Load(two)

    async def run() -> None:
        live, scored = two.request("GET", "/health/live"), score(two)
        clients = [probe.client(lambda: live) for _ in range(12)] + [real.client(scored) for _ in range(4)]
        tasks = [asyncio.create_task(client) for client in clients]
        await asyncio.sleep(0.2)
        two.process.send_signal(signal.SIGHUP)
        for _ in range(WAIT * 20):
            await asyncio.sleep(0.05)
            replaced = len(two.workers) == 2 and not set(before) & set(two.workers)
            if replaced and probe.answered >= 20_000 and real.answered >= 2_000:
                break
        probe.is_over = real.is_over = True
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert not set(before) & set(two.workers)
    assert probe.failed == real.failed == []
    assert probe.answered >= 20_000
    assert real.answered >= 2_000


def accepting(place: Path) -> int:
    """How many workers accept connections."""
    (shares,) = place.glob("mlsys-metrics-*/shares")
    return int((np.fromfile(shares, np.int32) < AWAY).sum())


def test_a_killed_worker_fails_only_what_it_was_doing_and_is_back(two: Serving, place: Path) -> None:
    load, (killed, other) = Load(two), two.workers

    async def run() -> None:
        live = two.request("GET", "/health/live")
        tasks = [asyncio.create_task(load.client(lambda: live)) for _ in range(16)]
        await asyncio.sleep(0.5)
        os.kill(killed, signal.SIGKILL)
        for _ in range(WAIT * 20):
            await asyncio.sleep(0.05)
            if len(two.workers) == 2 and killed not in two.workers and accepting(place) == 2:
                break
        before = load.answered
        while load.answered < before + 1_000:
            await asyncio.sleep(0.05)
        load.is_over = True
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert 1 <= len(load.failed) <= 16  # at most one for each connection
    assert load.connections == 16 + len(load.failed)  # whoever came again, was answered
    assert other in two.workers
    assert killed not in two.workers
    assert accepting(place) == 2


def test_a_port_that_is_taken_is_one_clear_line(two: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "fraud", "--port", str(two.port)]) == 1
    assert capsys.readouterr() == (
        "", f"mlsys: 127.0.0.1:{two.port}: cannot be listened on: Address already in use\n",
    )  # fmt: skip


def test_workers_that_cannot_start_are_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLSYS_HOME", str(tmp_path))
    (tmp_path / "fraud").mkdir()
    (tmp_path / "fraud" / "log.db").write_text("not a database, but long enough to be taken for one" * 50)
    assert main(["serve", "fraud", "--port", "0"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "mlsys: workers: did not start: " in err
    assert "mlsys: API key, shown only now: mlsys_" in err
    assert "Traceback" not in err


def test_a_stopped_server_leaves_nothing_behind(two: Serving, place: Path) -> None:
    """The last use of that server."""
    assert list(place.glob("mlsys-metrics-*/*.db"))
    assert two.stop() == 0
    assert not list(place.glob("mlsys-metrics-*"))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", two.port), timeout=1)


def test_only_a_first_start_makes_a_key_and_workers_do_not_outlive_their_parent(two: Serving, place: Path) -> None:
    assert two.said["key"].startswith("mlsys_")
    with serving(place, "fraud", TMPDIR=str(place)) as again:
        assert again.said["key"] is None
        assert again.said["systems"] == ["fraud"]
        assert again.said["pid"] == again.process.pid
        orphans = again.workers
        assert len(orphans) == 1
        again.process.kill()
        again.process.wait(WAIT)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans), "the workers end")
