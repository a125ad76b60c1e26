"""A world lives, somebody answers, the log remembers."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from common.clock import HOUR
from common.data.log import EventLog
from common.errors import Stale
from common.features.online import catch_up
from common.features.view import Times
from common.progress import Progress
from common.schema import Event
from common.serving.service import AnyService, Reply
from common.system import Answer, Answered, AnySystem, Arrival, World


class Answers(Protocol):
    """Whoever answers, and is told of what happened."""

    version: str

    def answer(self, requests: Sequence[Any], as_of: Times) -> Sequence[Reply[Any]]: ...
    def heard(self, after: int, until: int) -> None:
        """There are new events in the log, behind the one position, up to the other."""


class ByRule:
    """What answers before there is a model."""

    version = "rule"

    def __init__(self, rule: Callable[[Any], Answer]) -> None:
        self._rule = rule

    def answer(self, requests: Sequence[Any], as_of: Times) -> Sequence[Reply[Any]]:
        return [Reply(self._rule(request), np.empty((0, 0)), None) for request in requests]

    def heard(self, after: int, until: int) -> None:
        pass


class ByService:
    """A version and its online features, which keep up with the log."""

    def __init__(self, service: AnyService, log: EventLog) -> None:
        self._service, self._log, self.version = service, log, service.version
        self._head = catch_up(service.store, log)

    def answer(self, requests: Sequence[Any], as_of: Times) -> Sequence[Reply[Any]]:
        try:
            return self._service.answer(requests, as_of, self._head)
        except Stale:
            self._head = catch_up(self._service.store, self._log)
            return self._service.answer(requests, as_of, self._head)

    def heard(self, after: int, until: int) -> None:
        try:
            self._service.push(
                {kind: self._log.read(kind, after, until) for kind in self._service.store.kinds}, after, until
            )
            self._head = until
        except Stale:
            self._head = catch_up(self._service.store, self._log)


def live(
    system: AnySystem,
    world: World[Any, Any],
    log: EventLog,
    answers: Answers,
    span: tuple[int, int],
    *,
    batch: int,
    progress: Progress,
) -> Iterator[list[tuple[Any, Answer]]]:
    """Let the world go on over a span of time, us, hour by hour: it asks, somebody answers, outcomes come.

    At most `batch` requests are answered at once. Each is logged as it arrives, and its answer beside it. Yields what
    was answered, batch by batch; nothing happens unless somebody asks for the next one.
    """
    for hour in progress.over(range(span[0], span[1], HOUR), "the world lives"):
        for part in _batches(system, world.arrivals(min(hour + HOUR, span[1])), batch):
            asked = [(at, event) for at, event in part if isinstance(event, system.request)]
            as_of = np.array([at for at, _ in asked], np.int64)
            replies = answers.answer([event for _, event in asked], as_of) if asked else []
            reply_to = {event.event_id: reply for (_, event), reply in zip(asked, replies, strict=True)}
            answered = [(event, reply_to[event.event_id].answer) for _, event in asked]
            events: list[tuple[int, Event]] = []
            for at, event in part:
                events.append((at, system.redact(event) if isinstance(event, system.request) else event))
                if reply := reply_to.get(event.event_id):
                    events.append((at, remember(system, event, reply, answers.version, at)))
            after = log.head().position
            log.append([event for _, event in events], [at for at, _ in events])
            answers.heard(after, log.head().position)
            world.react(answered)
            yield answered


def _batches(system: AnySystem, arrivals: Sequence[Arrival], batch: int) -> Iterator[list[Arrival]]:
    part: list[Arrival] = []
    requests = 0
    for arrival in arrivals:
        if isinstance(arrival.event, system.request):
            if requests == batch or (part and not requests):  # what was heard before a request is part of its features
                yield part
                part, requests = [], 0
            requests += 1
        part.append(arrival)
    if part:
        yield part


def remember(system: AnySystem, request: Event, reply: Reply[Any], version: str, at: int) -> Answered:
    """The answer as an event."""
    return Answered(
        event_id=f"{request.event_id}.answer",
        event_timestamp=at,
        request_id=request.event_id,
        version=version,
        degraded=reply.degraded,
        propensity=reply.answer.propensity,
        hidden=system.hides(reply.answer),
        answer=reply.answer.model_dump_json(),
        features=tuple(value if math.isfinite(value) else None for value in reply.features.ravel().tolist()),
    )
