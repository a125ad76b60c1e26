"""A Ray cluster of a test's own, on this machine, whose workers and nodes it may kill."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAST = {
    "RAY_health_check_period_ms": "300",
    "RAY_health_check_initial_delay_ms": "0",
}  # a killed node is found out sooner
PATIENCE = 120  # s, for what takes a second on an idle machine
NODE = ["--num-cpus", "1", "--object-store-memory", "80000000", "--include-log-monitor", "false"]


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
