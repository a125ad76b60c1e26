"""HTTP/1.1 with bounds on what a client can cost before the application hears of it, and an end that fails nobody."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

HEAD = 64 << 10  # bytes of a request line with its headers, and of what frames a body
HEADERS = 100
AHEAD = 16  # requests that may be sent before the first of them is answered
LEFTOVER = 2 << 20  # bytes of a body that are dropped after an early answer; with more the connection ends
CONNECTIONS = 2_000  # of one worker
ARRIVAL = 10.0  # s, for the head of a request from its first byte, and for the rest of a body that is dropped
IDLE = 75.0  # s, between requests, and before the first
STUCK = 10.0  # s, that a client may leave what was answered unread
GRACE = 10.0  # s, in which a drain waits for the next request of each connection
LAST = 5.0  # s, for what is being answered then
TURN = 0.002  # s, in which another process may accept a connection first
SHORT = 0.1  # s, after which accepting is tried again where it failed

BETWEEN, IN_HEAD, IN_BODY = range(3)


class _State(ServerState):
    def __init__(self) -> None:
        super().__init__()
        self.is_draining = False


class Protocol(HttpToolsProtocol):
    """One connection. `sweep` is called about every second: a timer for each request would cost more.

    The parser refuses, with 400, malformed requests, a length beside chunks, and two lengths.
    """

    server_state: _State

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._phase = BETWEEN
        self._since = self._moved = self.loop.time()
        self._framing = 0  # bytes since the message began that are not its body
        self._dropped = 0
        self._unsent = 0
        self._status = HTTPStatus.BAD_REQUEST  # of the next refusal

    @property
    def is_idle(self) -> bool:
        return self._phase == BETWEEN and (self.cycle is None or self.cycle.response_complete)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)

    def data_received(self, data: bytes) -> None:
        self._framing += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._phase != BETWEEN and self._framing > HEAD:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if self._phase == IN_HEAD else self._status)
        elif self._phase == IN_BODY and self.cycle.response_complete:
            self._dropped += len(data)
            if self._dropped > LEFTOVER:
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase, self._since = IN_HEAD, self.loop.time()
        self._framing = self._dropped = 0

    def on_headers_complete(self) -> None:
        size, length = len(self.url), 0
        for name, value in self.headers:
            size += len(name) + len(value) + 4  # with ": " and the end of the line
            if name == b"content-length":
                length = int(value)
        if size > HEAD or len(self.headers) > HEADERS:
            self._status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise ValueError("head: is too large")
        if self.parser.should_upgrade():  # the parser skips its body, which would pass for the next request
            raise ValueError("upgrade: must not be asked for")
        if len(self.pipeline) >= AHEAD:
            raise ValueError("requests: too many are ahead of their answers")
        super().on_headers_complete()
        self._phase = IN_BODY
        if length > LEFTOVER or self.server_state.is_draining:
            self.cycle.keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase == IN_HEAD:  # what stands behind a chunked body must not pass for a header
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._framing -= 2 * len(body)  # the more body, the more may frame it
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._phase = BETWEEN
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._status)

    def _refuse(self, status: HTTPStatus) -> None:
        """Say so, unless it would be taken for the answer to an earlier request, and close."""
        is_first = self.cycle is None or self.cycle.response_complete
        if is_first or (self._phase == IN_BODY and not self.pipeline and not self.cycle.response_started):
            body = b'{"title":"%s","status":%d}' % (status.phrase.encode(), status)
            self.transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%s" % (status, status.phrase.encode(), len(body), body)
            )
        self.transport.close()

    def sweep(self, now: float) -> None:
        """Close what has taken too long; `now` by the clock of the loop."""
        unsent = self.transport.get_write_buffer_size()
        if unsent < self._unsent or not self._unsent:
            self._moved = now
        self._unsent = unsent
        if unsent and now - self._moved > STUCK:
            self.transport.abort()
        if self.transport.is_closing() or unsent:
            return
        waited = now - self._since
        if self._phase == IN_HEAD and waited > ARRIVAL:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        elif (self._phase == IN_BODY and self.cycle.response_complete and waited > ARRIVAL) or (
            self.is_idle and waited > IDLE
        ):
            self.transport.close()

    def drain(self) -> None:
        """The next answer is the last; so is the one that is being made."""
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False


class Server(uvicorn.Server):
    """An application on a listening socket that is there already, until SIGTERM; then it drains.

    No more connections are accepted. One that is kept alive is not closed when it is idle, since a request may be on
    its way: its next answer says that it was the last. SIGINT is left to whoever started this process.
    """

    server_state: _State

    def __init__(
        self, app: Any, listener: socket.socket, *, ready: Callable[[], None], drain: Callable[[], None],
        is_next: Callable[[int], bool],
    ) -> None:  # fmt: skip
        """`ready` is called when connections are accepted, `drain` when no more are.

        `is_next`, given how many connections there are, says whether the next should be accepted here rather than by
        another process: the kernel would wake the same one again and again.
        """
        super().__init__(
            uvicorn.Config(
                app, loop="uvloop", http=Protocol, ws="none", lifespan="off", interface="asgi3", log_config=None,
                log_level="error", access_log=False, proxy_headers=False, server_header=False,
                timeout_keep_alive=int(IDLE),
            )
        )  # fmt: skip
        self.server_state = _State()
        self._listener, self._ready, self._drain, self._is_next = listener, ready, drain, is_next
        self._opening: set[asyncio.Task[Any]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        self._loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept)
        self._ready()

    def _accept(self) -> None:
        """One connection, now or, where it is another's turn, soon, in case that one does not take it."""
        if self._is_next(len(self.server_state.connections) + len(self._opening)):
            self._take()
        else:
            self._pause(TURN)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if not self.server_state.is_draining:
            self._loop.add_reader(self._listener, self._accept)
            self._take()

    def _take(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # another has it, or it is gone
        except OSError:  # such as too many open files
            self._pause(SHORT)
            return
        protocol = Protocol(self.config, self.server_state, {}, self._loop)
        opening = self._loop.create_task(self._loop.connect_accepted_socket(lambda: protocol, accepted))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)

    async def on_tick(self, counter: int) -> bool:
        self._is_next(len(self.server_state.connections))
        if counter % 10 == 0:
            self._sweep()
        return await super().on_tick(counter)

    def _sweep(self) -> None:
        now = self._loop.time()
        for connection in self._connections:
            connection.sweep(now)

    @property
    def _connections(self) -> list[Protocol]:
        return list(self.server_state.connections)  # type: ignore[arg-type]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        self.server_state.is_draining = True
        self._drain()
        for connection in self._connections:
            connection.drain()
        await self._until_gone(GRACE)
        for connection in self._connections:
            connection.shutdown()
        await self._until_gone(LAST)
        for connection in self._connections:
            connection.transport.abort()

    async def _until_gone(self, seconds: float) -> None:
        state, until = self.server_state, self._loop.time() + seconds
        while (state.connections or state.tasks or self._opening) and self._loop.time() < until:
            self._sweep()
            await asyncio.sleep(0.02)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = signal.signal(signal.SIGTERM, self.handle_exit), signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before[0])
            signal.signal(signal.SIGINT, before[1])
