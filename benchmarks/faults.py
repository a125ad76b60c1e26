"""What callers notice when Redis, which holds the features, is killed, frozen, slow or resetting.

Run: python -m benchmarks.faults. Its Redis is its own, behind a proxy that can misbehave; 200 payments a second, and
20 more watch.
"""

import http.client
import itertools
import json
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.serving import Load, Stage, free_port, stage
from common.clock import WallClock

RATE, WATCHED = 200, 20  # payments a second
DEADLINE = 0.25  # s, the default of mlsys serve
BEFORE, FAULT, AFTER = 2.0, 4.0, 14.0  # s


class Redis:
    """A server that can be killed and frozen. Nothing of it is kept on disk: it comes back empty."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._command = ["redis-server", "--port", str(self.port), "--dir", str(folder), "--bind", "127.0.0.1"]
        self._command += ["--save", "", "--appendonly", "no"]

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)


class Proxy:
    """Between the service and Redis: passes on, waits before each answer, or resets connections."""

    def __init__(self, to: int) -> None:
        self.delay, self.resets, self._to = 0.0, False, to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._to), 1)
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                for source, target, is_answer in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pump, args=(source, target, is_answer), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if is_answer and self.delay:
                    time.sleep(self.delay)
                if self.resets:
                    for end in (source, target):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@dataclass
class Watcher:
    """Asks again and again, and writes down when an answer was full, degraded or none; and when a breaker is open."""

    port: int
    key: str
    read_key: str
    payload: dict[str, Any]
    seen: list[tuple[float, int, bool]] = field(default_factory=list)  # s, status, degraded
    opened: list[tuple[float, bool]] = field(default_factory=list)

    @contextmanager
    def watching(self) -> Iterator[None]:
        over = threading.Event()
        threads = [threading.Thread(target=self._ask, args=(over,)), threading.Thread(target=self._look, args=(over,))]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()

    def _ask(self, over: threading.Event) -> None:
        for i in itertools.count():
            if over.wait(1 / WATCHED):
                return
            now = WallClock().now()
            body = {**self.payload, "event_id": f"watched-{now}-{i}", "event_timestamp": now}
            status, said = self._call("POST", "/v1/fraud/score", self.key, json.dumps(body))
            self.seen.append((time.monotonic(), status, b'"degraded":null' not in said))

    def _look(self, over: threading.Event) -> None:
        while not over.wait(1 / WATCHED):
            _, said = self._call("GET", "/metrics", self.read_key)
            is_open = b'ml_breaker_open{dependency="online features",system="fraud"} 1.0' in said
            self.opened.append((time.monotonic(), is_open))

    def _call(self, method: str, path: str, key: str, body: str | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, {"authorization": f"Bearer {key}"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()


def suffer(
    here: Stage, url: str, read_key: str, break_: Callable[[], None], mend: Callable[[], None]
) -> dict[str, Any]:
    """200 payments a second before, during and after a fault."""
    port = int(url.split(":")[2].split("/")[0])
    watcher = Watcher(port, here.keys["bench"], read_key, json.loads(here.payloads.read_text())[0])
    seconds = BEFORE + FAULT + AFTER
    load = Load(url, here.payloads, "--rate", f"{RATE}x{seconds}", "--deadline", DEADLINE, key=here.keys["bench"])
    with watcher.watching():
        time.sleep(BEFORE)
        broken = time.monotonic()
        break_()
        time.sleep(FAULT)
        mended = time.monotonic()
        mend()
        result = load.result()
    degraded = [at for at, status, is_degraded in watcher.seen if status == 200 and is_degraded]
    opened = [at for at, is_open in watcher.opened if is_open and at >= broken]
    return {
        "offered": result.offered,
        "answered_5xx": sum(n for status, n in result.status.items() if str(status)[0] == "5"),
        "not_answered": result.failed + result.late,
        "status": result.status,
        "degraded": result.degraded,
        "p50_ms": result.p50 * 1e3,
        "p99_ms": result.p99 * 1e3,
        "max_ms": result.max * 1e3,
        "breaker_open_after_s": opened[0] - broken if opened else None,
        "full_again_after_s": max((at - mended for at in degraded), default=0.0),
    }


def main() -> None:
    if shutil.which("redis-server") is None:
        sys.exit("benchmarks.faults: no redis-server is installed")
    out: dict[str, Any] = {}
    with stage() as here:
        redis = Redis(here.folder)
        redis.start()
        proxy = Proxy(redis.port)
        try:
            with here.ours(MLSYS_REDIS_URL=f"redis://127.0.0.1:{proxy.port}/0") as url:
                faults: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
                    "killed": (redis.kill, redis.start),
                    "frozen": (redis.freeze, redis.thaw),
                    "slow": (lambda: setattr(proxy, "delay", 0.5), lambda: setattr(proxy, "delay", 0.0)),
                    "resetting": (lambda: setattr(proxy, "resets", True), lambda: setattr(proxy, "resets", False)),
                }
                for name, (break_, mend) in faults.items():
                    if name not in (sys.argv[1:] or faults):
                        continue
                    out[name] = suffer(here, url, here.keys["read"], break_, mend)
        finally:
            proxy.close()
            redis.thaw()
            redis.kill()
        out["events_of_state"] = here.events
    out |= {"target_5xx": 0, "target_full_again_s": 10, "target_p99_ms": 1.1 * DEADLINE * 1e3, "target_breaker_s": 1}
    print(json.dumps(out, indent=2))


if __name__ == "__main__":
    main()
