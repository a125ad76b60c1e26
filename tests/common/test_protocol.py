"""What a client may cost before the application hears of it; real sockets, and a client who means no good."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Serving, answer, serving

uvloop = pytest.importorskip("uvloop")
protocol = pytest.importorskip("common.serving.protocol")

MEGABYTE = 1 << 20
LIVE = b"GET /health/live HTTP/1.1\r\nhost: test\r\n\r\n"
SCORE = "POST /v1/fraud/score"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("home"), "fraud") as server:
        yield server


def rss(pid: int) -> int:
    """Bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


@asynccontextmanager
async def unharmed(server: Serving) -> AsyncIterator[None]:
    """Health is answered all the time, and the server needs no more memory afterwards."""
    (pid,) = server.workers
    before, is_over = rss(pid), False

    async def look() -> int:
        most = 0
        while not is_over:
            assert b"200 OK" in await asyncio.wait_for(said(server, LIVE, is_last=False), 5)
            most = max(most, rss(pid))
            await asyncio.sleep(0.05)
        return most

    looking = asyncio.create_task(look())
    await asyncio.sleep(0.1)
    yield
    is_over = True
    assert await looking < before + 100 * MEGABYTE
    assert server.workers == [pid]


async def said(server: Serving, *parts: bytes, is_last: bool = True, every: float = 0.0) -> bytes:
    """All that comes back until the server closes, or, if it is not to be the last, the first answer's head."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)

    async def send() -> None:
        with suppress(OSError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(every)

    sending = asyncio.create_task(send())
    back = b""
    with suppress(ConnectionError):  # it was closed while more was being sent
        while more := await asyncio.wait_for(reader.read(1 << 16), 30):
            back += more
            if not is_last:
                break
    sending.cancel()
    writer.close()
    return back


def key(server: Serving) -> bytes:
    return f"host: test\r\nauthorization: Bearer {server.said['key']}\r\n".encode()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /health/live HTTP/1.1\r\nhost: test\r\nx: " + b"a" * (65 << 10) + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * (65 << 10) + b" HTTP/1.1\r\nhost: test\r\n\r\n", 431),
        (b"GET /health/live HTTP/1.1\r\nhost: test\r\n" + b"x: 1\r\n" * 100 + b"\r\n", 431),
        (b"POST /health/live HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /health/live HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n", 400),
        (b"POST /health/live HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef", 400),
        (b"POST /health/live HTTP/1.1\r\ncontent-length: 5, 6\r\n\r\nabcdef", 400),
        (b"POST /health/live HTTP/1.1\r\ncontent-length: -5\r\n\r\nabcdef", 400),
        (b"POST /health/live HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\nabcdef", 400),
        (b"G\x00T / HTTP/1.1\r\n\r\n", 400),
        (b"NONSENSE / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx\x00y: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx : 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nx: 1\r\n folded\r\n\r\n", 400),
        (b"GET [ HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT test:80 HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: 3\r\n\r\nabc", 400),
        (os.urandom(4096).replace(b"\r", b"").replace(b"\n", b""), 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
    ],
)
def test_a_bad_head_is_refused_and_the_connection_closed(one: Serving, head: bytes, status: int) -> None:
    back = asyncio.run(said(one, head))
    assert back.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close\r\n" in back
    assert back.count(b"HTTP/1.1") == 1


def test_a_head_just_below_the_bounds_is_answered(one: Serving) -> None:
    head = b"GET /health/live HTTP/1.1\r\nhost: test\r\n" + b"x: 1\r\n" * 98 + b"y: " + b"a" * (62 << 10) + b"\r\n\r\n"
    pieces = [head[i : i + 5_000] for i in range(0, len(head), 5_000)]
    assert b"200 OK" in asyncio.run(said(one, *pieces, is_last=False))


def test_a_head_that_never_ends_is_refused(one: Serving) -> None:
    async def run() -> None:
        async with unharmed(one):
            endless = [b"GET / HTTP/1.1\r\nx: ", *[b"a" * MEGABYTE] * 100]
            back = await said(one, *endless)
            assert back == b"" or back.startswith(b"HTTP/1.1 431 ")

    asyncio.run(run())


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_huge_body_is_refused_and_the_connection_closed(one: Serving, is_chunked: bool) -> None:
    size = b"transfer-encoding: chunked" if is_chunked else b"content-length: %d" % (200 * MEGABYTE)
    piece = b"%x\r\n%s\r\n" % (MEGABYTE, b" " * MEGABYTE) if is_chunked else b" " * MEGABYTE

    async def run() -> None:
        async with unharmed(one):
            back = await said(one, b"%s HTTP/1.1\r\n%s%s\r\n\r\n" % (SCORE.encode(), key(one), size), *[piece] * 200)
            assert back.startswith(b"HTTP/1.1 413 ")
            assert back.count(b"HTTP/1.1") == 1

    asyncio.run(run())


def test_what_follows_an_early_answer_is_no_request(one: Serving) -> None:
    """Nobody smuggles one in a body that was not read."""
    smuggled = LIVE * 100_000
    head = b"POST /nowhere HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n" % len(smuggled)
    assert asyncio.run(said(one, head, smuggled)).count(b"HTTP/1.1") == 1


def test_an_early_answer_to_a_small_body_keeps_the_connection(one: Serving) -> None:
    async def run() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
        for _ in range(3):
            writer.write(b"POST /nowhere HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n")
            assert (await answer(reader))[0] == 404
            writer.write(b"0123456789")
        writer.write(LIVE)
        assert (await answer(reader))[0] == 200
        writer.close()

    asyncio.run(run())


def test_trailers_are_no_headers_and_bounded(one: Serving) -> None:
    async def run() -> None:
        head = b"%s HTTP/1.1\r\n%stransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" % (SCORE.encode(), key(one))
        async with unharmed(one):
            back = await said(one, head + b"x-deadline-ms: nonsense\r\n\r\n", is_last=False)
            assert b"422" in back
            assert b"x-deadline-ms" not in back
            endless = await said(one, head, b"x: ", *[b"a" * MEGABYTE] * 100)
            assert endless == b"" or endless.startswith(b"HTTP/1.1 400 ")

    asyncio.run(run())


def test_requests_far_ahead_of_their_answers_are_refused(one: Serving) -> None:
    async def run() -> None:
        async with unharmed(one):
            assert (await said(one, LIVE * 100_000)).count(b"HTTP/1.1") <= protocol.AHEAD
            few = await said(one, LIVE * 10 + b"G\x00T")
            assert few.count(b"HTTP/1.1 200 ") == few.count(b"HTTP/1.1")  # no refusal in the place of an answer

    asyncio.run(run())


def test_slow_clients_are_cut_off(one: Serving) -> None:
    """All at once: each takes the 5 or 10 seconds that it is given."""
    drip = b"%s HTTP/1.1\r\n%scontent-length: 100\r\n\r\n" % (SCORE.encode(), key(one))

    async def slow_body() -> None:
        back = await said(one, drip, *[b"a"] * 20, every=1.0)
        assert back.startswith(b"HTTP/1.1 408 ")

    async def slow_head() -> None:
        back = await said(one, *[bytes([c]) for c in LIVE], every=0.5)
        assert back.startswith(b"HTTP/1.1 408 ")

    async def no_reader() -> None:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", one.port))
        request = b"GET /openapi.json HTTP/1.1\r\nhost: test\r\n\r\n"

        async def ask() -> None:
            while True:
                await loop.sock_sendall(client, request)
                await asyncio.sleep(0.002)

        with client, pytest.raises(ConnectionError):
            await asyncio.wait_for(ask(), 30)

    async def run() -> None:
        async with unharmed(one):
            bodies, heads = [slow_body() for _ in range(20)], [slow_head() for _ in range(20)]
            await asyncio.gather(*bodies, *heads, no_reader(), no_reader())

    asyncio.run(run())


async def cheap(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def here() -> AsyncIterator[tuple[Any, int, "asyncio.Task[None]"]]:
    """A server in this process."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = protocol.Server(cheap, listener, ready=lambda: None, drain=lambda: None, is_next=lambda count: True)
    task = asyncio.create_task(server.serve())
    try:
        yield server, port, task
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, 30)


def test_a_connection_that_is_silent_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "IDLE", 1.0)

    async def run() -> None:
        async with here() as (_, port, _task):
            new, a = await asyncio.open_connection("127.0.0.1", port)
            used, b = await asyncio.open_connection("127.0.0.1", port)
            b.write(LIVE)
            assert (await answer(used))[2] == b"ok"
            async with asyncio.timeout(20):
                assert await new.read() == await used.read() == b""
            a.close()
            b.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def test_a_drain_answers_the_next_request_of_an_idle_connection() -> None:
    async def run() -> None:
        async with here() as (server, port, task):
            pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
            for reader, writer in pairs:
                writer.write(LIVE)
                assert "connection" not in (await answer(reader))[1]
            server.should_exit = True
            while not server.server_state.is_draining:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            for reader, writer in pairs:
                writer.write(LIVE)
                status, headers, body = await answer(reader)
                assert (status, headers["connection"], body) == (200, "close", b"ok")
                assert await reader.read() == b""
                writer.close()
            await asyncio.wait_for(task, protocol.GRACE / 2)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def test_more_connections_than_a_worker_takes_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "CONNECTIONS", 2)

    async def run() -> None:
        async with here() as (_, port, _task):
            pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            assert (await answer(pairs[2][0]))[0] == 503
            pairs[2][1].close()
            for reader, writer in pairs[:2]:
                writer.write(LIVE)
                assert (await answer(reader))[0] == 200
                writer.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
