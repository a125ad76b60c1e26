"""Several processes on one listening socket: started, watched, replaced one by one, and stopped without a failure.

Each worker is this module, run as a program. It is told what to serve through its stdin, which it also learns from that
its parent is gone, and says on its stdout that it is ready.
"""

import asyncio
import gc
import json
import os
import resource
import signal
import socket
import sys
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import uvloop
from prometheus_client.multiprocess import mark_process_dead

from common.clock import SECOND, WallClock, stopwatch
from common.errors import PlatformError, Unavailable
from common.monitoring.logs import Logs
from common.serving.protocol import CONNECTIONS, GRACE, LAST, Server
from common.serving.server import application
from common.settings import Settings
from common.system import find

T = TypeVar("T")
BACKLOG = 2_048  # connections that wait to be accepted
START = 120.0  # s, for a worker to get ready
END = GRACE + LAST + 5.0  # s, for one to drain; then it is killed
QUICK = 10.0  # s; a worker that lives no longer has failed to start
TRIES = 5
PAUSE = 0.1  # s, before the second try; then twice as long each time
FILES = CONNECTIONS + 1_000
PLACES = 1_024
TURN = 0.0005  # s, that a thread may work while another waits: features that are made again must not hold up answers
NOBODY, AWAY = 2**31 - 1, 2**31 - 2  # connections, of a place that is free, of a worker that accepts none


def listen(host: str, port: int) -> socket.socket:
    """Raises Unavailable when the port is taken; port 0 takes any that is free."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise Unavailable(f"{host}:{port}: cannot be listened on: {str(error.strerror).partition(' (')[0]}") from None


def serve(
    settings: Settings, systems: Sequence[str], preset: str, listener: socket.socket, workers: int,
    ready: Callable[[], None],
) -> None:  # fmt: skip
    """Serve until SIGTERM or SIGINT; SIGHUP replaces every worker. `ready` is called when all accept connections.

    Raises Unavailable when workers keep dying.
    """
    with TemporaryDirectory(prefix="mlsys-metrics-") as folder:
        # a micro-batch is too small for two threads, which would only wait for each other
        environment = {
            "OMP_NUM_THREADS": "1",
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        environment.pop("PROMETHEUS_MULTIPROC_DIR", None)
        if workers > 1:
            environment["PROMETHEUS_MULTIPROC_DIR"] = folder
        told = {
            "settings": settings.model_dump(mode="json"), "systems": list(systems), "preset": preset,
            "listener": listener.fileno(), "shares": str(Path(folder) / "shares"),
        }  # fmt: skip
        asyncio.run(_Supervisor(told, environment, Path(folder), listener, workers).run(ready))


class _Shares:
    """How many connections each worker has, in a file that they share."""

    def __init__(self, path: Path, place: int = 0) -> None:
        if not path.exists():
            np.full(PLACES, NOBODY, np.int32).tofile(path)
        self._counts = np.memmap(path, np.int32, "r+")
        self._place = place

    def claim(self) -> int:
        """A place that is free, for a new worker."""
        place = int(np.argmax(self._counts == NOBODY))
        self._counts[place] = AWAY
        return place

    def leave(self) -> None:
        self._counts[self._place] = AWAY

    def free(self, place: int) -> None:
        self._counts[place] = NOBODY

    def is_next(self, mine: int) -> bool:
        """Whether no other worker has fewer connections."""
        self._counts[self._place] = mine
        return mine <= int(self._counts.min())


class _Supervisor:
    def __init__(
        self, told: dict[str, Any], environment: dict[str, str], metrics: Path, listener: socket.socket, workers: int
    ) -> None:
        self._told, self._environment, self._metrics, self._listener = told, environment, metrics, listener
        self._logs = Logs(WallClock())
        self._shares = _Shares(metrics / "shares")
        self._alive: dict[Process, int] = {}  # and the place of each
        self._slots: list[Process] = []
        self._locks = [asyncio.Lock() for _ in range(workers)]  # of the slots
        self._stop, self._renew = asyncio.Event(), asyncio.Event()

    async def run(self, ready: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        for stop in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(stop, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._renew.set)
        stopping = asyncio.create_task(self._stop.wait())
        working = asyncio.create_task(self._work(ready))
        try:
            await asyncio.wait((stopping, working), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()  # raises
        finally:
            working.cancel()
            self._listener.close()  # with the last worker's, so that who comes now is refused at once
            await asyncio.gather(
                *(self._end(process) for process in list(self._alive)), working, return_exceptions=True
            )

    async def _work(self, ready: Callable[[], None]) -> None:
        self._slots += await _together([self._launch() for _ in self._locks])
        ready()
        await _together([self._replace(), *(self._keep(slot) for slot in range(len(self._slots)))])

    async def _keep(self, slot: int) -> None:
        """Start another worker when one dies."""
        quick = 0
        while True:
            process, since = self._slots[slot], stopwatch()
            await process.wait()
            async with self._locks[slot]:
                if process is not self._slots[slot]:
                    continue  # it was replaced
                self._bury(process)
                self._logs.say("worker died", pid=process.pid, status=process.returncode)
                quick = quick + 1 if stopwatch() - since < QUICK * SECOND else 1
                if quick == TRIES:
                    raise Unavailable(
                        f"workers: died {TRIES} times within {QUICK:.0f} s of their start, the last with status "
                        f"{process.returncode}"
                    )
                if quick > 1:
                    await asyncio.sleep(PAUSE * 2**quick)
                self._slots[slot] = await self._launch()

    async def _replace(self) -> None:
        """One after the other, each when its successor is ready."""
        while await self._renew.wait():
            self._renew.clear()
            try:
                for slot, lock in enumerate(self._locks):
                    async with lock:
                        new = await self._start()
                        old, self._slots[slot] = self._slots[slot], new
                    self._logs.say("worker replaced", pid=old.pid, by=new.pid)
                    await self._end(old)
            except Unavailable as error:
                self._logs.say("worker not replaced", reason=str(error))

    async def _launch(self) -> Process:
        for attempt in count(1):
            try:
                return await self._start()
            except Unavailable as error:
                reason = str(error)
                if not self._slots or (attempt >= TRIES and len(self._alive) == 0):
                    break  # who starts a server wants to hear at once what is wrong; the others go on answering
                self._logs.say("worker did not start", reason=reason)
                await asyncio.sleep(PAUSE * 2 ** min(attempt, 6))
        raise Unavailable(f"workers: did not start: {reason}")

    async def _start(self) -> Process:
        """A worker that accepts connections; raises Unavailable."""
        place = self._shares.claim()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "common.serving.workers", stdin=PIPE, stdout=PIPE, env=self._environment,
            pass_fds=(self._listener.fileno(),), start_new_session=True,  # a terminal's signals are the parent's
        )  # fmt: skip
        self._alive[process] = place
        if process.stdin is None or process.stdout is None:
            raise Unavailable("worker: has no pipes")
        process.stdin.write(json.dumps({**self._told, "place": place}).encode() + b"\n")
        said = b""
        with suppress(TimeoutError):
            said = await asyncio.wait_for(process.stdout.readline(), START)
        if said == b"\n":
            return process
        _signal(process, signal.SIGKILL)
        status = await process.wait()
        self._bury(process)
        raise Unavailable(said.decode().strip() or f"worker: ended with status {status}")

    async def _end(self, process: Process) -> None:
        """Drain."""
        _signal(process, signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), END)
        except TimeoutError:
            self._logs.say("worker killed", pid=process.pid)
            _signal(process, signal.SIGKILL)
            await process.wait()
        self._bury(process)

    def _bury(self, process: Process) -> None:
        self._shares.free(self._alive.pop(process))
        mark_process_dead(process.pid, str(self._metrics))  # type: ignore[no-untyped-call]


async def _together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Where one raises, the others are cancelled."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _signal(process: Process, number: int) -> None:
    """Not by its own method, which takes the exit status of a dead one away from whoever waits for it."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def main() -> int:
    """One worker."""
    report = os.dup(1)
    os.dup2(2, 1)  # whatever prints must not be taken for a report
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        told = json.loads(stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, hard) if hard > 0 else FILES, hard))
    sys.setswitchinterval(TURN)
    try:
        settings = Settings(**told["settings"])
        systems = [find(settings.systems, name, told["preset"]) for name in told["systems"]]
        app = application(settings, systems)
        shares = _Shares(Path(told["shares"]), told["place"])

        def drain() -> None:
            app.state.runtime.is_draining = True
            shares.leave()

        listener = socket.socket(fileno=told["listener"])

        def ready() -> None:
            gc.collect()
            gc.freeze()  # what is there now stays: to look through it again and again would hold up answers
            _say(report, "")

        server = Server(app, listener, ready=ready, drain=drain, is_next=shares.is_next)

        async def run() -> None:
            async with app.router.lifespan_context(app):
                await server.serve()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
    except (PlatformError, OSError) as error:
        _say(report, f"{error}")
        return 1
    return 0


def _say(report: int, line: str) -> None:
    with suppress(BrokenPipeError):
        os.write(report, " ".join(line.split()).encode() + b"\n")


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(END)
    os._exit(1)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # all is closed; libraries that take themselves apart have more to say than anybody wants to read
