"""Where alerts go. A sink never raises into the loop that feeds it: what it could not send it counts, says and keeps.

Sending is at least once: save `state` beside that of the alarms, after `send`.
"""

import base64
import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit

from common.clock import MINUTE, SECOND, Clock, stopwatch
from common.errors import BadSetting, Damaged
from common.monitoring.alerts import Alert
from common.monitoring.logs import Logs

TIMEOUT = 5.0  # s, for a whole request; no other is begun after that in one send
FIRST_WAIT, LONGEST_WAIT = 1 * SECOND, 5 * MINUTE  # us; doubled after each failure
KEPT = 1_000  # alerts that wait
REFUSED = frozenset({400, 413, 414, 415, 422})  # the same request would be refused again


class Sink(Protocol):
    def send(self, alerts: Sequence[Alert]) -> None:
        """What changed. Called after every evaluation, with nothing too: then what waits is tried again."""


class LogSink:
    """A line for each change."""

    def __init__(self, logs: Logs) -> None:
        self._logs = logs

    def send(self, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            labels = ",".join(f"{name}={value}" for name, value in alert.labels)
            self._logs.say(
                "alert", state=alert.state, rule=alert.rule, severity=alert.severity, labels=labels,
                value=alert.value, since=alert.since, summary=alert.summary, look_at=alert.look_at,
            )  # fmt: skip


class _Http:
    """Posts JSON to one place, waits longer after each failure, and keeps what waits, by a key, oldest first."""

    at_once = 1  # alerts in a request

    def __init__(self, kind: str, url: str, clock: Clock, logs: Logs, *, timeout: float, kept: int) -> None:
        self._kind, self._url, self._clock, self._logs = kind, _checked(kind, url), clock, logs
        self._timeout, self._most = timeout, kept
        self._waiting: dict[str, Alert] = {}
        self._firing: dict[str, tuple[Alert, int]] = {}  # with when it was said last, us
        self._wait, self._next = 0, 0  # us
        self.failures, self.dropped, self.refused, self.sent = 0, 0, 0, 0  # requests; alerts; alerts; alerts

    @property
    def waiting(self) -> int:
        """How many alerts are not delivered yet."""
        return len(self._waiting)

    def _keep(self, key: str, alert: Alert) -> None:
        self._waiting.pop(key, None)
        self._waiting[key] = alert
        lost = list(self._waiting)[: max(0, len(self._waiting) - self._most)]
        for oldest in lost:
            del self._waiting[oldest]
        if lost:
            self.dropped += len(lost)
            self._logs.say("alert_dropped", sink=self._kind, alerts=len(lost), total=self.dropped)

    def _flush(self) -> list[Alert]:
        """Try what waits, in order, until something fails; what was delivered."""
        delivered: list[Alert] = []
        if self._clock.now() < self._next:
            return delivered
        until = stopwatch() + self._timeout * SECOND
        while self._waiting and stopwatch() < until:
            keys = list(self._waiting)[: self.at_once]
            alerts = [self._waiting[key] for key in keys]
            try:
                status = self._post(keys, alerts)
                why = f"status {status}"
            except (OSError, HTTPException) as error:  # the text of either may repeat what was sent or received
                status, why = 0, type(error).__name__
            if 200 <= status < 300:
                delivered += alerts
                self.sent += len(alerts)
            elif status in REFUSED:
                self.refused += len(alerts)
                self._logs.say("alert_refused", sink=self._kind, why=why, alerts=len(alerts), total=self.refused)
            else:
                self._wait = min(2 * self._wait or FIRST_WAIT, LONGEST_WAIT)
                self._next = self._clock.now() + self._wait
                self.failures += 1
                self._logs.say("alert_not_sent", sink=self._kind, why=why, waiting=self.waiting, total=self.failures)
                return delivered
            for key in keys:
                del self._waiting[key]
            self._wait = self._next = 0
        return delivered

    def _post(self, keys: Sequence[str], alerts: Sequence[Alert]) -> int:
        body = json.dumps(self._body(alerts), allow_nan=False).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "mlsys", **self._headers(keys, body)}
        kind = HTTPSConnection if self._url.scheme == "https" else HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=self._timeout)
        # a timeout of the socket begins again with every byte that comes
        timer = threading.Timer(self._timeout, _cut, [connection])
        timer.daemon = True
        try:
            timer.start()
            connection.connect()
            if timer.finished.is_set():
                raise TimeoutError
            path = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
            connection.request("POST", path, body, headers)
            return connection.getresponse().status  # no redirect is followed, and no body read
        finally:
            timer.cancel()
            connection.close()

    def _body(self, alerts: Sequence[Alert]) -> Any:
        raise NotImplementedError

    def _headers(self, keys: Sequence[str], body: bytes) -> dict[str, str]:
        return {}

    def state(self) -> str:
        """What waits and what is said again, as one JSON document."""
        firing = [{"alert": alert.to_json(), "said": said} for alert, said in self._firing.values()]
        waiting = [{"key": key, "alert": alert.to_json()} for key, alert in self._waiting.items()]
        return json.dumps({"waiting": waiting, "firing": firing}, allow_nan=False)

    def restore(self, state: str) -> None:
        """Go on from what `state` said; raises Damaged."""
        try:
            told = json.loads(state)
            waiting = [(str(one["key"]), Alert.from_json(one["alert"])) for one in told["waiting"]]
            firing = [(Alert.from_json(one["alert"]), int(one["said"])) for one in told["firing"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise Damaged(f"{self._kind}: must be the state that was saved, got {state[:100]!r}") from None
        self._waiting, self._firing = {}, {_name(alert): (alert, said) for alert, said in firing}
        for key, alert in waiting:
            self._keep(key, alert)


class Webhook(_Http):
    """Posts {"type": "alert.firing" | "alert.resolved", "timestamp", "data": the alert}, each by itself.

    As https://www.standardwebhooks.com says: webhook-id is the same for each try of an alert, so that a receiver can
    drop what it has; with a key, webhook-signature is "v1," and the base64 of the HMAC-SHA256 of
    "webhook-id.webhook-timestamp.body".
    """

    def __init__(
        self,
        url: str,
        clock: Clock,
        logs: Logs,
        *,
        key: bytes | None = None,
        timeout: float = TIMEOUT,
        kept: int = KEPT,
    ) -> None:
        """Raises BadSetting. `timeout` is in seconds; `kept` is how many alerts may wait."""
        super().__init__("webhook", url, clock, logs, timeout=timeout, kept=kept)
        self._key = key

    def send(self, alerts: Sequence[Alert]) -> None:
        for alert in _told(alerts):
            self._keep(f"{_name(alert)} {alert.state} {alert.at}", alert)
        self._flush()

    def _body(self, alerts: Sequence[Alert]) -> dict[str, Any]:
        (alert,) = alerts
        return {"type": f"alert.{alert.state}", "timestamp": _rfc3339(alert.at), "data": alert.to_json()}

    def _headers(self, keys: Sequence[str], body: bytes) -> dict[str, str]:
        known = "msg_" + hashlib.sha256(keys[0].encode()).hexdigest()[:32]
        said = {"webhook-id": known, "webhook-timestamp": str(self._clock.now() // SECOND)}
        if self._key is not None:
            signed = f"{known}.{said['webhook-timestamp']}.".encode() + body
            digest = hmac.new(self._key, signed, hashlib.sha256).digest()
            said["webhook-signature"] = "v1," + base64.b64encode(digest).decode()
        return said


class Alertmanager(_Http):
    """Posts to Alertmanager's API v2, and again every so often while an alarm fires, as Prometheus does.

    An alarm that is not said again ends there by itself after four times as long.
    """

    at_once = 64

    def __init__(
        self,
        url: str,
        clock: Clock,
        logs: Logs,
        *,
        every: int = MINUTE,
        generator_url: str | None = None,
        timeout: float = TIMEOUT,
        kept: int = KEPT,
    ) -> None:
        """`url` is what /api/v2/alerts is appended to; `every`, us, is when a firing alarm is said again;
        `generator_url` leads from an alert to this service. Raises BadSetting."""
        super().__init__("alertmanager", url, clock, logs, timeout=timeout, kept=kept)
        self._url = self._url._replace(path=self._url.path.rstrip("/") + "/api/v2/alerts")
        self._every = every
        self._generator = None if generator_url is None else _checked("generator", generator_url).geturl()

    def send(self, alerts: Sequence[Alert]) -> None:
        now = self._clock.now()
        for alert in _told(alerts):
            self._firing.pop(_name(alert), None)
            if alert.state == "firing":
                self._firing[_name(alert)] = alert, now
            self._keep(_name(alert), alert)  # only how it stands now
        for name, (alert, said) in self._firing.items():
            if now - said >= self._every and name not in self._waiting:
                self._keep(name, alert)
        for alert in self._flush():
            if alert.state == "firing":
                self._firing[_name(alert)] = alert, now

    def _body(self, alerts: Sequence[Alert]) -> list[dict[str, Any]]:
        return [self._posted(alert) for alert in alerts]

    def _posted(self, alert: Alert) -> dict[str, Any]:
        until = alert.at if alert.state == "resolved" else self._clock.now() + 4 * self._every
        said: dict[str, Any] = {
            "labels": {**dict(alert.labels), "alertname": alert.rule, "severity": alert.severity},
            "annotations": {"summary": alert.summary, "look_at": alert.look_at, "value": f"{alert.value:g}"},
            "startsAt": _rfc3339(alert.since if alert.fired is None else alert.fired),
            "endsAt": _rfc3339(until),
        }
        return said if self._generator is None else {**said, "generatorURL": self._generator}


def _told(alerts: Iterable[Alert]) -> list[Alert]:
    return [alert for alert in alerts if alert.state in ("firing", "resolved")]


def _name(alert: Alert) -> str:
    return f"{alert.rule} {json.dumps(dict(alert.labels), sort_keys=True)}"


def _rfc3339(us: int) -> str:
    return f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us):%Y-%m-%dT%H:%M:%S.%fZ}"


def _cut(connection: HTTPConnection) -> None:
    with suppress(OSError, AttributeError):  # it ended at this very moment
        connection.sock.shutdown(socket.SHUT_RDWR)


def _checked(kind: str, url: str) -> SplitResult:
    """Its parts; raises BadSetting without repeating the address: its path may be a secret."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        right = parts.scheme in ("http", "https") and bool(host) and parts.port != 0
    except ValueError:
        right = False
    if not right or not url.isascii() or not url.isprintable() or " " in url:
        raise BadSetting(f"{kind}: url must be http or https, a host and printable ASCII, got something else")
    if "@" in parts.netloc or parts.fragment:
        raise BadSetting(f"{kind}: url must have no user, password or fragment, got one")
    return parts
