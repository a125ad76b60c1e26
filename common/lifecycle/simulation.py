"""A world lives, somebody answers, the log remembers."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from common.clock import HOUR
from common.data.log import EventLog
from common.features.online import catch_up
from common.features.view import Times
from common.progress import Progress
from common.schema import Event
from common.serving.routing import uniform
from common.serving.service import LUCK, NOTHING, RULE, AnyService, Reply, remember
from common.system import Answer, AnySystem, Arrival, World


class Answers(Protocol):
    """Whoever answers, and is told of what happened."""

    def answer(self, requests: Sequence[Any], as_of: Times) -> Sequence[Reply[Any]]: ...
    def heard(self, after: int, until: int) -> None:
        """There are new events in the log, behind the one position, up to the other."""


class ByRule:
    """What answers before there is a model."""

    def __init__(self, rule: Callable[[Any, float], Answer]) -> None:
        self._rule = rule

    def answer(self, requests: Sequence[Any], as_of: Times) -> Sequence[Reply[Any]]:
        answers = [self._rule(request, uniform(b"", LUCK, request.event_id)) for request in requests]
        return [Reply(answer, RULE, "rule", 1.0, None, NOTHING, ()) for answer in answers]

    def heard(self, after: int, until: int) -> None:
        pass


class ByService:
    """The live versions and their online features, which keep up with the log."""

    def __init__(self, service: AnyService, log: EventLog) -> None:
        self._service, self._log = service, log

    def answer(self, requests: Sequence[Any], as_of: Times) -> Sequence[Reply[Any]]:
        return self._service.answer(requests, as_of, catch_up(self._service.store, self._log))

    def heard(self, after: int, until: int) -> None:
        catch_up(self._service.store, self._log)


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
                    events.append((at, remember(system, event, reply, at)))
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
