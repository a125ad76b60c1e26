"""Sinks against a real server: what is posted, what happens when it is refused, and what a restart keeps."""

import base64
import hashlib
import hmac
import io
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from common.clock import MINUTE, SECOND, SimulatedClock
from common.errors import BadSetting, Damaged
from common.monitoring.alerts import Alert
from common.monitoring.logs import Logs
from common.monitoring.sinks import LONGEST_WAIT, Alertmanager, LogSink, Sink, Webhook

START = 1_700_000_000 * SECOND
HOT = Alert(
    rule="Hot", severity="page", summary="It is hot.", look_at="the oven", labels=(("system", "shop"),), value=2.5,
    state="firing", since=START - MINUTE, fired=START, at=START,
)  # fmt: skip
COOL = replace(HOT, state="resolved", at=START + MINUTE)
Reply = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    server: "Server"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append((self.path, dict(self.headers), body))
        self.server.reply(self)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.heard: list[tuple[str, dict[str, str], bytes]] = []
        self.reply: Reply = status(200)
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """The caller left early; that is what some tests are about."""

    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, _, body in self.heard]


def status(code: int, **headers: str) -> Reply:
    def reply(handler: Handler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return reply


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.over.set()
        made.shutdown()
        thread.join()


@dataclass
class Desk:
    """The clock and the log of a sink."""

    clock: SimulatedClock = field(default_factory=lambda: SimulatedClock(START))
    out: io.StringIO = field(default_factory=io.StringIO)

    def __post_init__(self) -> None:
        self.logs = Logs(self.clock, self.out)

    def said(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.getvalue().splitlines()]

    def later(self, us: int) -> None:
        self.clock.advance(self.clock.now() + us)


@pytest.fixture
def desk() -> Desk:
    return Desk()


MAKES = [Webhook, Alertmanager]


def test_a_log_line_says_what_where_and_what_to_look_at(desk: Desk) -> None:
    sink: Sink = LogSink(desk.logs)
    sink.send([HOT])
    assert desk.said() == [
        {
            "timestamp": START, "event": "alert", "state": "firing", "rule": "Hot", "severity": "page",
            "labels": "system=shop", "value": 2.5, "since": START - MINUTE, "summary": "It is hot.",
            "look_at": "the oven",
        }
    ]  # fmt: skip


def test_a_webhook_is_told_what_fires_and_what_is_resolved(server: Server, desk: Desk) -> None:
    Webhook(server.url + "/in?token=a", desk.clock, desk.logs).send(
        [replace(HOT, state="pending", fired=None), HOT, COOL, replace(COOL, state="inactive", fired=None)]
    )
    assert [path for path, _, _ in server.heard] == ["/in?token=a"] * 2
    first, second = server.bodies()
    assert first == {
        "type": "alert.firing",
        "timestamp": "2023-11-14T22:13:20.000000Z",
        "data": HOT.to_json(),
    }
    assert second["type"] == "alert.resolved"
    assert Alert.from_json(second["data"]) == COOL


def test_a_webhook_with_a_key_is_signed(server: Server, desk: Desk) -> None:
    Webhook(server.url, desk.clock, desk.logs, key=b"sesame").send([HOT])
    ((_, headers, body),) = server.heard
    said = {name.lower(): value for name, value in headers.items()}
    signed = f"{said['webhook-id']}.{START // SECOND}.".encode() + body
    digest = base64.b64encode(hmac.new(b"sesame", signed, hashlib.sha256).digest()).decode()
    assert said["webhook-timestamp"] == str(START // SECOND)
    assert said["webhook-signature"] == f"v1,{digest}"
    assert b"sesame" not in body


def test_a_repeated_webhook_has_the_id_of_the_first_try(server: Server, desk: Desk) -> None:
    sink = Webhook(server.url, desk.clock, desk.logs)
    server.reply = status(500)
    sink.send([HOT])
    server.reply = status(200)
    desk.later(SECOND)
    sink.send([COOL])
    ids = [headers["webhook-id"] for _, headers, _ in server.heard]
    assert ids[0] == ids[1] != ids[2]


def postable(alert: dict[str, Any]) -> None:
    """The rules of postableAlert in Alertmanager's api/v2/openapi.yaml, and those that it checks beyond it."""
    assert set(alert) <= {"labels", "annotations", "startsAt", "endsAt", "generatorURL"}
    for kind in ("labels", "annotations"):
        assert all(re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", name) for name in alert[kind])
        assert all(isinstance(value, str) and value for value in alert[kind].values())
    assert alert["labels"]["alertname"]
    assert datetime.fromisoformat(alert["startsAt"]) <= datetime.fromisoformat(alert["endsAt"])
    for time in (alert["startsAt"], alert["endsAt"]):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", time)


def test_alertmanager_gets_what_its_api_takes(server: Server, desk: Desk) -> None:
    sink = Alertmanager(server.url + "/am/", desk.clock, desk.logs, generator_url="https://shop.example/metrics")
    sink.send([HOT])
    ((path, headers, _),) = server.heard
    assert path == "/am/api/v2/alerts"
    assert headers["Content-Type"] == "application/json"
    ((alert,),) = server.bodies()
    postable(alert)
    assert alert == {
        "labels": {"alertname": "Hot", "severity": "page", "system": "shop"},
        "annotations": {"summary": "It is hot.", "look_at": "the oven", "value": "2.5"},
        "startsAt": "2023-11-14T22:13:20.000000Z",
        "endsAt": "2023-11-14T22:17:20.000000Z",  # four times the minute after which it is said again
        "generatorURL": "https://shop.example/metrics",
    }


def test_alertmanager_hears_again_while_it_fires_and_once_that_it_ended(server: Server, desk: Desk) -> None:
    sink = Alertmanager(server.url, desk.clock, desk.logs, every=MINUTE)
    sink.send([HOT])
    for _ in range(6):
        desk.later(MINUTE // 2)
        sink.send([])
    assert [alerts[0]["endsAt"][14:19] for alerts in server.bodies()] == ["17:20", "18:20", "19:20", "20:20"]
    sink.send([COOL])
    for _ in range(6):
        desk.later(MINUTE)
        sink.send([])
    assert len(server.heard) == 5
    (last,) = server.bodies()[-1]
    postable(last)
    assert (last["startsAt"], last["endsAt"]) == ("2023-11-14T22:13:20.000000Z", "2023-11-14T22:14:20.000000Z")


def test_alertmanager_hears_how_it_stands_and_not_how_it_stood(server: Server, desk: Desk) -> None:
    sink = Alertmanager(server.url, desk.clock, desk.logs)
    server.reply = status(503)
    sink.send([HOT])
    server.reply = status(200)
    desk.later(MINUTE)
    sink.send([COOL])
    assert [len(alerts) for alerts in server.bodies()] == [1, 1]
    assert server.bodies()[1][0]["endsAt"] == "2023-11-14T22:14:20.000000Z"


def test_many_alerts_go_in_requests_of_64(server: Server, desk: Desk) -> None:
    Alertmanager(server.url, desk.clock, desk.logs).send([replace(HOT, labels=(("n", str(i)),)) for i in range(100)])
    assert [len(alerts) for alerts in server.bodies()] == [64, 36]


def slow(handler: Handler) -> None:
    handler.server.over.wait(5)  # then it would be a success
    status(200)(handler)


def dripping(handler: Handler) -> None:
    """A byte at a time, each well within the timeout; a success in the end."""
    for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 50 + b"\r\n\r\n":
        handler.wfile.write(bytes([byte]))
        if handler.server.over.wait(0.05):
            return


def garbage(handler: Handler) -> None:
    handler.wfile.write(b"\x00\xff" * 100 + b"\r\n\r\n")


def too_many_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 10_000 + b"\r\n")


def long_line(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 " + b"a" * 100_000 + b"\r\n\r\n")


def nothing(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


FAULTS: dict[str, Reply] = {
    "500": status(500), "503": status(503), "429": status(429), "401": status(401), "404": status(404),
    "redirect": status(307, Location="/elsewhere"), "slow": slow, "dripping": dripping, "garbage": garbage,
    "headers": too_many_headers, "line": long_line, "nothing": nothing,
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("make", MAKES)
def test_what_fails_is_said_kept_and_sent_later(
    server: Server, desk: Desk, make: type[Webhook] | type[Alertmanager], fault: str
) -> None:
    sink = make(server.url + "/secret", desk.clock, desk.logs, timeout=0.3)
    server.reply = FAULTS[fault]
    sink.send([HOT])
    assert (sink.failures, sink.waiting, sink.sent) == (1, 1, 0)
    assert len(server.heard) == 1
    (line,) = desk.said()
    assert (line["event"], line["waiting"], line["total"]) == ("alert_not_sent", 1, 1)
    assert "secret" not in desk.out.getvalue()
    server.reply = status(200)
    desk.later(SECOND)
    sink.send([])
    assert (sink.failures, sink.waiting, sink.sent) == (1, 0, 1)
    assert [path for path, _, _ in server.heard][0] == [path for path, _, _ in server.heard][1]


@pytest.mark.parametrize("make", MAKES)
def test_nobody_there_is_no_reason_to_stop(desk: Desk, make: type[Webhook] | type[Alertmanager]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and nobody listens
        sink = make(f"http://127.0.0.1:{free.getsockname()[1]}", desk.clock, desk.logs)
        sink.send([HOT])
    assert desk.said()[0]["why"] == "ConnectionRefusedError"
    assert sink.waiting == 1


def test_a_large_answer_is_not_read(server: Server, desk: Desk) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        handler.server.over.wait(5)

    server.reply = endless
    sink = Webhook(server.url, desk.clock, desk.logs, timeout=0.5)
    sink.send([HOT])
    assert (sink.sent, sink.failures) == (1, 0)


def test_a_failure_is_waited_after_twice_as_long_each_time(server: Server, desk: Desk) -> None:
    sink = Webhook(server.url, desk.clock, desk.logs)
    server.reply = status(500)
    sink.send([HOT])
    tried = []
    for second in range(1, 700):
        desk.later(SECOND)
        sink.send([])
        if len(server.heard) > len(tried) + 1:
            tried.append(second)
    assert tried == [1, 3, 7, 15, 31, 63, 127, 255, 511]
    desk.later(LONGEST_WAIT)
    sink.send([])
    before = len(server.heard)
    desk.later(LONGEST_WAIT - 1)
    sink.send([])
    assert len(server.heard) == before
    desk.later(1)
    sink.send([])
    assert len(server.heard) == before + 1
    server.reply = status(200)
    desk.later(LONGEST_WAIT)
    sink.send([])
    server.reply = status(500)
    sink.send([COOL])
    desk.later(SECOND)
    sink.send([])
    assert len(server.heard) == before + 4  # after a success the first wait is short again


@pytest.mark.parametrize("make", MAKES)
def test_the_queue_is_bounded_and_loses_the_oldest(
    server: Server, desk: Desk, make: type[Webhook] | type[Alertmanager]
) -> None:
    sink = make(server.url, desk.clock, desk.logs, kept=3)
    server.reply = status(500)
    sink.send([replace(HOT, rule=f"Hot{i}") for i in range(5)])
    assert (sink.waiting, sink.dropped) == (3, 2)
    assert [line["event"] for line in desk.said()] == ["alert_dropped", "alert_dropped", "alert_not_sent"]
    server.heard.clear()
    server.reply = status(200)
    desk.later(SECOND)
    sink.send([])
    assert re.findall(r"Hot\d", " ".join(str(body) for body in server.bodies())) == ["Hot2", "Hot3", "Hot4"]


def test_a_slow_receiver_holds_the_loop_for_about_one_timeout(server: Server, desk: Desk) -> None:
    def late(handler: Handler) -> None:
        handler.server.over.wait(0.2)
        status(200)(handler)

    server.reply = late
    sink = Webhook(server.url, desk.clock, desk.logs, timeout=0.5)
    sink.send([replace(HOT, rule=f"Hot{i}") for i in range(5)])  # would take a second
    assert 0 < sink.waiting < 5 or sink.failures
    assert sink.waiting + sink.sent == 5


def test_what_is_refused_for_good_does_not_block_the_rest(server: Server, desk: Desk) -> None:
    sink = Webhook(server.url, desk.clock, desk.logs)
    server.reply = lambda handler: status(400 if len(server.heard) == 1 else 200)(handler)
    sink.send([HOT, COOL])
    assert (sink.refused, sink.sent, sink.waiting, sink.failures) == (1, 1, 0, 0)
    assert desk.said()[0]["event"] == "alert_refused"


@pytest.mark.parametrize("make", MAKES)
def test_a_restart_says_nothing_twice_and_loses_nothing(
    server: Server, desk: Desk, make: type[Webhook] | type[Alertmanager]
) -> None:
    sink = make(server.url, desk.clock, desk.logs)
    sink.send([HOT])
    server.reply = status(500)
    sink.send([replace(HOT, rule="Wet")])
    server.heard.clear()
    again = make(server.url, desk.clock, desk.logs)
    again.restore(sink.state())
    assert again.state() == sink.state()
    server.reply = status(200)
    again.send([])
    again.send([])
    assert [re.findall("Hot|Wet", str(body)) for body in server.bodies()] == [["Wet"]]


def test_alertmanager_hears_again_after_a_restart_of_what_fires(server: Server, desk: Desk) -> None:
    sink = Alertmanager(server.url, desk.clock, desk.logs)
    sink.send([HOT])
    again = Alertmanager(server.url, desk.clock, desk.logs)
    again.restore(sink.state())
    desk.later(MINUTE - 1)
    again.send([])
    assert len(server.heard) == 1
    desk.later(1)
    again.send([])
    again.send([COOL])
    again.send([])
    assert len(server.heard) == 3


@pytest.mark.parametrize(
    "state", ["", "{}", "[]", '{"waiting": [1], "firing": []}', '{"waiting": [], "firing": [{}]}', "[" * 100_000]
)
def test_a_damaged_state_is_refused_in_one_line(desk: Desk, state: str) -> None:
    sink = Webhook("http://shop.example", desk.clock, desk.logs)
    with pytest.raises(Damaged, match="webhook: must be the state that was saved") as raised:
        sink.restore(state)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize(
    "url",
    [
        "ftp://secret.example", "file:///secret", "secret", "http://", "http:///secret", "http://a:secret@b", "http://secret@b",
        "http://b/\nsecret",
        "http://b/\r\nsecret: 1", "http://b/secret path", "http://b:99999/secret", "http://b:0/secret", "http://b/#secret",
        "http://[secret", "http://" + "secret" * 20 + ".example", "http://b/sécret", "javascript:secret", "",
    ],
)  # fmt: skip
def test_only_plain_web_addresses_are_taken_and_never_repeated(
    desk: Desk, make: type[Webhook] | type[Alertmanager], url: str
) -> None:
    with pytest.raises(BadSetting) as raised:
        make(url, desk.clock, desk.logs)
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None
