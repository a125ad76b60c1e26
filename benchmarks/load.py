"""An HTTP/1.1 load generator for servers on this machine, cheap enough to share two cores with what it measures.

Run: python -m benchmarks.load URL [--connections 16] [--seconds 10] [--rate R ...] [--key KEY] [--json], see --help

Closed loop: each connection asks again when it was answered. Open loop (--rate): requests come at a rate of their own,
whatever becomes of them, and latency counts from when each was meant to be sent (Tene 2013: no coordinated omission).
"""

import argparse
import asyncio
import gc
import json
import math
import os
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np
import uvloop

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TICK = 0.001  # s, between two looks at who is due; timers of uvloop are no finer
SWEEP = 0.05  # s, between two looks at who has waited too long
MOST_CONNECTIONS, MOST_SECONDS, MOST_REQUESTS = 1_024, 600.0, 5_000_000
SHED = (429, 503)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to send where."""

    url: str
    payloads: Sequence[dict[str, Any]]  # sent in turn; an event_id in it is new and an event_timestamp now, each time
    connections: int = 16
    seconds: float = 10.0  # of a closed loop
    steps: tuple[tuple[float, float], ...] = ()  # of an open loop: requests/s, s; (): closed
    obeys: bool = False  # a connection that was shed waits for as long as Retry-After says
    deadline: float = 0.25  # s, for goodput, and after which an open loop gives up what it could not send
    timeout: float = 5.0  # s, after which a connection is given up
    waiting: int = 1_000  # requests of an open loop that wait for a free connection; more are late at once
    key: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme != "http" or parts.hostname not in LOOPBACK or not parts.port:
            raise ValueError(f"url: must be http://127.0.0.1:PORT/PATH, got {self.url!r}")
        if not self.payloads:
            raise ValueError("payloads: must have at least one")
        if not 1 <= self.connections <= MOST_CONNECTIONS:
            raise ValueError(f"connections: must be 1 to {MOST_CONNECTIONS}, got {self.connections}")
        if not 0 < self.length <= MOST_SECONDS:
            raise ValueError(f"seconds: must be above 0, to {MOST_SECONDS:.0f}, got {self.length}")
        if sum(rate * seconds for rate, seconds in self.steps) > MOST_REQUESTS:
            raise ValueError(f"rate: must make at most {MOST_REQUESTS} requests")

    @property
    def length(self) -> float:
        """s"""
        return sum(seconds for _, seconds in self.steps) if self.steps else self.seconds


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of it: offered = sent + late, sent = answered + failed, answered = the sum of `status`."""

    offered: int
    sent: int
    late: int  # never sent: no connection was free in time
    ok: int  # 2xx
    status: dict[str, int]
    failed: int  # the connection was lost or given up
    degraded: int  # ok, but less than it could be
    elapsed: float  # s, to the end of the plan or the last ok
    throughput: float  # ok/s
    goodput: float  # ok/s within the deadline
    p50: float  # s, of the ok, from when each was meant to be sent
    p99: float
    max: float
    cpu: float  # s of processor time that this took here
    timeline: list[dict[str, int]] = field(repr=False)  # for each second: sent, ok, good (ok in time), shed


def together(results: Sequence[Result]) -> Result:
    """Of generators that ran at the same time; quantiles are the worst of them."""

    def total(name: str) -> Any:
        return sum(getattr(result, name) for result in results)

    status: Counter[str] = Counter()
    timeline = [
        {"sent": 0, "ok": 0, "good": 0, "shed": 0} for _ in range(max(len(result.timeline) for result in results))
    ]
    for result in results:
        status.update(result.status)
        for second, mine in zip(timeline, result.timeline, strict=False):
            for name in second:
                second[name] += mine[name]
    return Result(
        **{name: total(name) for name in ("offered", "sent", "late", "ok", "failed", "degraded")},
        **{name: total(name) for name in ("throughput", "goodput", "cpu")},
        **{name: max(getattr(result, name) for result in results) for name in ("elapsed", "p50", "p99", "max")},
        status=dict(sorted(status.items())), timeline=timeline,
    )  # fmt: skip


class _Connection(asyncio.Protocol):
    """One request at a time; reads of an answer what is counted."""

    def __init__(self, run: "_Run") -> None:
        self.run = run
        self.buffer = b""
        self.intended: float | None = None  # of the request that is under way
        self.sent = 0.0
        self.pause = 0.0  # s, before it may be used again

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.buffer:
            data = self.buffer + data
        end = data.find(b"\r\n\r\n")
        head = data[:end].lower()
        at = head.find(b"content-length:")
        if end < 0 or at < 0 or self.intended is None:
            if end >= 0:  # neither of a server that is meant to be measured
                print(f"connection given up: {head[:200]!r}", file=sys.stderr)
                self.transport.abort()
            self.buffer = data
            return
        if len(data) < end + 4 + int(head[at + 15 :].partition(b"\r")[0]):
            self.buffer = data
            return
        self.buffer = b""
        self.run.answered(self, int(head[9:12]), head, data)

    def connection_lost(self, error: Exception | None) -> None:
        self.run.lost(self)


class _Run:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.loop = asyncio.get_running_loop()
        self.requests = [_prepare(plan, payload) for payload in plan.payloads]
        self.random = Random(plan.seed)
        self.prefix = os.urandom(8).hex().encode()
        self.first = int(self.prefix, 16) % len(self.requests)  # another run goes on elsewhere
        self.number = self.sent = self.late = self.ok = self.good = self.failed = self.degraded = 0
        self.status: Counter[int] = Counter()
        self.latencies = array("d")
        self.timeline: list[dict[str, int]] = []
        self.all: set[_Connection] = set()
        self.idle: list[_Connection] = []
        self.queue: deque[float] = deque()  # intended times
        self.opening: set[asyncio.Task[None]] = set()
        self.in_flight = 0
        self.is_over = False

    async def go(self) -> Result:
        plan = self.plan
        await asyncio.gather(*(self.open(_raise=True) for _ in range(plan.connections)))
        cpu = time.process_time()
        self.start = self.last = time.perf_counter()
        self.stop = self.start + plan.length
        sweeping = asyncio.create_task(self.sweep())
        if plan.steps:
            await self.arrive()
        else:
            for connection in list(self.idle):
                self.next(connection)
            await asyncio.sleep(plan.length)
        while (self.in_flight or self.queue) and time.perf_counter() < self.stop + plan.timeout + 2 * SWEEP:
            await asyncio.sleep(TICK)
        self.is_over = True
        sweeping.cancel()
        for opening in self.opening:
            opening.cancel()
        for connection in list(self.all):
            connection.transport.abort()
        while self.all:
            await asyncio.sleep(TICK)
        self.late += len(self.queue)
        elapsed = max(self.last, self.stop) - self.start
        p50, p99, most = np.quantile(self.latencies, [0.5, 0.99, 1.0]).tolist() if self.latencies else (math.nan,) * 3
        return Result(
            offered=self.sent + self.late, sent=self.sent, late=self.late, ok=self.ok,
            status={str(status): n for status, n in sorted(self.status.items())}, failed=self.failed,
            degraded=self.degraded, elapsed=elapsed, throughput=self.ok / elapsed, goodput=self.good / elapsed,
            p50=p50, p99=p99, max=most, cpu=time.process_time() - cpu, timeline=self.timeline,
        )  # fmt: skip

    async def arrive(self) -> None:
        """Poisson: the pauses between requests are exponential."""
        begin = self.start
        for rate, seconds in self.plan.steps:
            end, due = begin + seconds, begin
            while (due := due + self.random.expovariate(rate)) < end:
                while (now := time.perf_counter()) < due:
                    await asyncio.sleep(max(TICK, due - now))
                if self.idle:
                    self.send(self.idle.pop(), due)
                elif len(self.queue) < self.plan.waiting:
                    self.queue.append(due)
                else:
                    self.late += 1
                if now - due > 10 * TICK:  # behind: the answers must be heard all the same
                    await asyncio.sleep(0)
            begin = end
            await asyncio.sleep(max(0.0, end - time.perf_counter()))

    async def open(self, pause: float = 0.0, _raise: bool = False) -> None:
        """A connection that is lost is replaced as soon as the server can be reached."""
        await asyncio.sleep(pause)
        parts = urlsplit(self.plan.url)
        while not self.is_over:
            try:
                _, connection = await self.loop.create_connection(
                    lambda: _Connection(self), str(parts.hostname), parts.port or 0
                )
            except OSError:
                if _raise:
                    raise
                await asyncio.sleep(SWEEP)
            else:
                self.all.add(connection)
                if _raise:
                    self.idle.append(connection)
                else:
                    self.next(connection)
                return

    def next(self, connection: _Connection) -> None:
        """A connection is free."""
        if connection not in self.all:  # lost while it paused; its replacement is under way
            return
        now = time.perf_counter()
        if self.plan.steps:
            while self.queue:
                due = self.queue.popleft()
                if now - due <= self.plan.deadline:
                    self.send(connection, due)
                    return
                self.late += 1
            self.idle.append(connection)
        elif now < self.stop:
            self.send(connection, now)

    def send(self, connection: _Connection, intended: float) -> None:
        parts = self.requests[(self.first + self.number) % len(self.requests)]
        self.number += 1
        connection.intended, connection.sent = intended, time.perf_counter()
        self.sent += 1
        self.second(connection.sent)["sent"] += 1
        self.in_flight += 1
        connection.transport.write(
            parts[0]
            if len(parts) == 1
            else b"%b%b%012d%b%016d%b"
            % (parts[0], self.prefix, self.number, parts[1], time.time_ns() // 1_000, parts[2])
        )

    def answered(self, connection: _Connection, status: int, head: bytes, answer: bytes) -> None:
        now = time.perf_counter()
        latency = now - cast(float, connection.intended)
        connection.intended = None
        self.in_flight -= 1
        self.status[status] += 1
        second = self.second(now)
        pause = 0.0
        if 200 <= status < 300:
            self.ok += 1
            self.last = now
            second["ok"] += 1
            self.latencies.append(latency)
            if latency <= self.plan.deadline:
                self.good += 1
                second["good"] += 1
            if b'"degraded":' in answer and b'"degraded":null' not in answer:
                self.degraded += 1
        elif status in SHED:
            second["shed"] += 1
            if self.plan.obeys and (at := head.find(b"retry-after:")) >= 0:
                pause = float(head[at + 12 :].partition(b"\r")[0])
        if b"connection: close" in head:
            connection.pause = pause
            connection.transport.close()
        elif pause:
            self.loop.call_later(pause, self.next, connection)
        else:
            self.next(connection)

    def lost(self, connection: _Connection) -> None:
        self.all.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        if connection.intended is not None:
            connection.intended = None
            self.in_flight -= 1
            self.failed += 1
        if not self.is_over:
            opening = self.loop.create_task(self.open(connection.pause))
            self.opening.add(opening)
            opening.add_done_callback(self.opening.discard)

    def second(self, now: float) -> dict[str, int]:
        while len(self.timeline) <= now - self.start:
            self.timeline.append({"sent": 0, "ok": 0, "good": 0, "shed": 0})
        return self.timeline[int(now - self.start)]

    async def sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            oldest = time.perf_counter() - self.plan.timeout
            for connection in list(self.all):
                if connection.intended is not None and connection.sent < oldest:
                    connection.transport.abort()


def _prepare(plan: Plan, payload: dict[str, Any]) -> list[bytes]:
    """A request, or what stands before, between and after its id, of 28 characters, and its time, of 16."""
    body = [json.dumps(payload, separators=(",", ":")).encode()]
    length = len(body[0])
    if "event_id" in payload:
        rest = {name: value for name, value in payload.items() if name not in ("event_id", "event_timestamp")}
        after = "," + json.dumps(rest, separators=(",", ":"))[1:] if rest else "}"
        body = [b'{"event_id":"', b'","event_timestamp":', after.encode()]
        length = sum(map(len, body)) + 28 + 16
    parts = urlsplit(plan.url)
    key = f"authorization: Bearer {plan.key}\r\n" if plan.key else ""
    head = (
        f"POST {parts.path or '/'} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
        f"{key}content-length: {length}\r\n\r\n"
    )
    return [head.encode() + body[0], *body[1:]]


async def generate(plan: Plan) -> Result:
    """Raises OSError for a server that cannot be reached at the start."""
    return await _Run(plan).go()


def payments(n: int = 1_000) -> list[dict[str, Any]]:
    """The first of the small fraud world."""
    from systems.fraud.system import SYSTEM

    system = SYSTEM.small()
    arrivals = system.world(0, None, None).arrivals(system.history[0] + 7 * 86_400_000_000)
    return [a.event.model_dump() for a in arrivals if isinstance(a.event, system.request)][:n]


def _step(text: str) -> tuple[float, float]:
    rate, _, seconds = text.partition("x")
    try:
        return float(rate), float(seconds or 10)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be RATE or RATExSECONDS, such as 500x10, got {text[:40]!r}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", metavar="URL", help="http://127.0.0.1:PORT/PATH")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a closed loop")
    parser.add_argument(
        "--rate", type=_step, action="append", default=[], metavar="RATE[xSECONDS]",
        help="requests/s of an open loop, for 10 seconds or as said; repeat it for one after the other",
    )  # fmt: skip
    parser.add_argument("--obeys", action="store_true", help="wait for as long as Retry-After says")
    parser.add_argument("--deadline", type=float, default=0.25, help="seconds, for goodput")
    parser.add_argument("--key", help="an API key")
    parser.add_argument("--payloads", type=Path, help="a JSON array of records (default: payments of a small world)")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = json.loads(arguments.payloads.read_text()) if arguments.payloads else payments()
    gc.disable()  # a pause here would be taken for one of the server
    try:
        plan = Plan(
            url=arguments.url, payloads=found, connections=arguments.connections, seconds=arguments.seconds,
            steps=tuple(arguments.rate), obeys=arguments.obeys, deadline=arguments.deadline, key=arguments.key,
            seed=arguments.seed,
        )  # fmt: skip
        result = asdict(uvloop.run(generate(plan)))
    except (ValueError, OSError) as error:
        sys.exit(f"load: {error}")
    gc.enable()
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:12} {value:,.4f}" if isinstance(value, float) else f"{name:12} {value}")


if __name__ == "__main__":
    main()
