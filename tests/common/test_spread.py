import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_info

from common import spread as room
from common.errors import BadData, BadSetting, MissingExtra, Unavailable
from common.settings import Settings
from common.spread import WAITING, spread

Array = NDArray[np.float64]
ROOT = Path(__file__).parents[2]
FAST = {
    "RAY_health_check_period_ms": "300",
    "RAY_health_check_initial_delay_ms": "0",
}  # a killed node is found out sooner
PATIENCE = 120  # s, for what takes a second on an idle machine
CHUNKS, WORKER_DIES, NODE_DIES = 14, 2, 6
NODE = ["--num-cpus", "1", "--object-store-memory", "80000000", "--include-log-monitor", "false"]
NOBODY = "127.0.0.1:9"


def panel() -> Iterator[tuple[int, Array]]:
    for number in range(CHUNKS):
        yield number, np.random.default_rng(number).gamma(2.0, 5.0, (40, 120))


def forecast(chunk: tuple[int, Array]) -> Array:
    """Each series' level, smoothed by what served it best, and a regression on the other series' lags."""
    _, y = chunk
    best, error = np.zeros(len(y)), np.full(len(y), np.inf)
    for alpha in np.linspace(0.1, 0.9, 9):
        level, squares = y[:, 0], np.zeros(len(y))
        for now in y.T[1:]:
            squares += (now - level) ** 2
            level = level + alpha * (now - level)
        best, error = np.where(squares < error, level, best), np.minimum(squares, error)
    weights, *_ = np.linalg.lstsq(y.T[:-1], y.T[1:], rcond=None)
    return np.stack([best, y.T[-1] @ weights])


def forecast_among_the_dying(folder: Path, second: int, chunk: tuple[int, Array]) -> Array:
    """The same, but one chunk waits for the end of its worker, and one on the second node for that node's."""
    if chunk[0] == WORKER_DIES:
        wait_for_the_end(folder / "worker", os.getpid())
    if chunk[0] >= NODE_DIES:
        if os.getsid(0) == second:
            wait_for_the_end(folder / "node", os.getppid())
        until((folder / "node").exists)  # so that the first node does not do it all
    return forecast(chunk)


def wait_for_the_end(marker: Path, victim: int) -> None:
    """Says whom to kill; whoever comes again, because that was done, goes on."""
    try:
        with marker.open("x") as file:
            file.write(f"{victim}\n")
    except FileExistsError:
        marker.with_suffix(".again").touch()
        return
    time.sleep(PATIENCE)
    raise RuntimeError("nobody was killed")


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "too late"
        time.sleep(0.05)


def drive(address: str, folder: str, second: int) -> None:
    """What the test runs in a process of its own: Ray leaves traces in whoever speaks to it."""
    work = partial(forecast_among_the_dying, Path(folder), second)
    np.save(Path(folder) / "forecasts.npy", np.stack(list(spread(work, panel(), address=address))))


def threads(_: int) -> int:
    np.ones((2, 2)) @ np.ones((2, 2))
    return max(pool["num_threads"] for pool in threadpool_info())


def break_down(chunk: int) -> int:
    if chunk == 3:
        raise BadData(f"chunk: must not be 3, got {chunk}")
    return chunk


def die(chunk: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return chunk


def test_forecasts_are_the_same_bit_by_bit_in_this_process_and_in_others() -> None:
    here, there = (np.stack(list(spread(forecast, panel(), address=None, workers=n))) for n in (1, 2))
    assert np.array_equal(here, there)
    assert {n for w in (1, 2) for n in spread(threads, range(3), address=None, workers=w)} == {1}


@pytest.mark.parametrize("workers", [1, 2])
def test_chunks_are_taken_as_results_are(workers: int) -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = spread(abs, endless(), address=None, workers=workers)
    for done in range(1, 20):
        assert next(results) == done
        assert taken <= done + WAITING * workers
    results.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_the_work_raises_is_raised_in_its_place(workers: int) -> None:
    results = spread(break_down, range(5), address=None, workers=workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(BadData, match="^chunk: must not be 3, got 3$"):
        next(results)


def test_a_killed_process_of_this_machine_is_one_line() -> None:
    with pytest.raises(Unavailable, match="^a worker process was killed"):
        list(spread(die, range(4), address=None, workers=2))


def test_without_its_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"^MLSYS_RAY_ADDRESS: needs ray; pip install -e '.\[ray\]'$"):
        next(spread(abs, [1], address=NOBODY))


@contextmanager
def cluster(token: str | None, nodes: int) -> Iterator[tuple[str, list[int]]]:
    """A Ray of the test's own: its address, and the session of each node; all of them end with the block."""
    pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    auth = {"RAY_AUTH_MODE": "disabled"} if token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {**auth, **FAST, "PYTHONPATH": str(ROOT)}
    sessions: list[int] = []
    with ExitStack() as over, tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        first = [
            "--head", "--port", str(port), "--include-dashboard", "false", "--disable-usage-stats",
            "--temp-dir", folder,  # a socket's path may have 107 bytes
        ]  # fmt: skip
        for which in [first, *[["--address", f"127.0.0.1:{port}"]] * (nodes - 1)]:
            start = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", *NODE, *which], env=env,
                start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            over.callback(end_session, start)
            assert start.wait(PATIENCE) == 0
            sessions.append(start.pid)
        yield f"127.0.0.1:{port}", sessions


def end_session(leader: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # all of it is gone
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()


def known(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)


def test_a_killed_worker_and_a_lost_node_of_a_cluster_change_no_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    token = secrets.token_hex(32)
    with cluster(token, 2) as (address, (_, second)), tempfile.TemporaryDirectory() as name:
        known(monkeypatch, token)
        folder = Path(name)
        call = f"from tests.common.test_spread import drive; drive({address!r}, {name!r}, {second})"
        driver = subprocess.Popen([sys.executable, "-c", call], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        try:
            for victim in (folder / "worker", folder / "node"):
                until(lambda at=victim: driver.poll() is not None or at.exists() and at.read_text().endswith("\n"))
                assert driver.poll() is None, driver.stderr and driver.stderr.read()
                os.kill(int(victim.read_text()), signal.SIGKILL)
            _, said = driver.communicate(timeout=PATIENCE)
        finally:
            driver.kill()
        assert driver.returncode == 0, said
        assert (folder / "worker.again").exists()
        assert np.array_equal(
            np.load(folder / "forecasts.npy"), np.stack(list(spread(forecast, panel(), address=None)))
        )

        monkeypatch.setenv("RAY_AUTH_TOKEN", "guessed")
        with pytest.raises(BadSetting, match=f"^RAY_AUTH_TOKEN: must be the token of the cluster at {address}, or"):
            next(spread(abs, [1], address=address))
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        monkeypatch.setenv("HOME", name)  # where it might lie, too
        with pytest.raises(BadSetting, match="^RAY_AUTH_TOKEN: must be"):
            next(spread(abs, [1], address=address))


def test_a_cluster_that_lets_everybody_in_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, "any")
    with cluster(None, 1) as (address, _):
        with pytest.raises(BadSetting, match=f"^MLSYS_RAY_ADDRESS: {address} must ask for a token"):
            next(spread(abs, [1], address=address))


@pytest.mark.parametrize("address", ["auto", "ray://head:10001", "http://head:8265", "head", "head:6379/0", ":6379"])
def test_an_address_is_a_host_and_a_port(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("MLSYS_RAY_ADDRESS", address)
    with pytest.raises(BadSetting, match="^MLSYS_RAY_ADDRESS: string should match"):
        Settings()
    monkeypatch.setenv("MLSYS_RAY_ADDRESS", "head-0.ray.svc:6379")
    assert Settings().ray_address == "head-0.ray.svc:6379"


def test_without_a_token_nobody_is_even_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(BadSetting, match="^RAY_AUTH_MODE: must be token"):
        next(spread(abs, [1], address=NOBODY))


def test_an_address_where_nobody_answers_is_named_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
    known(monkeypatch, "any")
    monkeypatch.setattr(room, "DEADLINE", 2)
    with pytest.raises(Unavailable, match=f"^MLSYS_RAY_ADDRESS: no Ray cluster answers at {NOBODY} within 2 s$"):
        next(spread(abs, [1], address=NOBODY))
