"""The way of one micro-batch: answer, log, reply, push. What is acknowledged is durable, and the next batch sees it."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np

from common.clock import MILLISECOND, SECOND, Clock
from common.data.log import EventLog
from common.errors import Conflict, PlatformError, Unavailable
from common.features.online import catch_up
from common.monitoring.metrics import Metrics
from common.monitoring.tracing import NoTracing, Tracing
from common.schema import Event, Logged, logged_table
from common.serving.resilience import Breaker, Bulkhead, Deadline, RetryBudget, retry
from common.serving.service import NOTHING, AnyService, Reply, remember
from common.system import ANSWERED, Answered

FEATURES = 0.4  # of the deadline, that features may take: a batch may have to wait for the one before it
MEND = 200 * MILLISECOND  # between two tries to bring the features back
SHADOWS = 8  # batches that wait for the shadow versions; more are dropped
T = TypeVar("T")
NO_TRACING = NoTracing()
TAKEN = "event_id: must be new, this one is that of another event"

Replies: TypeAlias = Sequence[Reply[Any]]


@dataclass(frozen=True)
class Call:
    """What one caller sent: requests to be answered, or events to be remembered."""

    requests: Sequence[Event] = ()
    events: Sequence[Event] = ()
    pinned: str | None = None  # the version that has to answer; None: as routed
    span: Any = None  # of a trace


class Pipeline:
    """A service, the log of what it heard and said, and features that keep up with that log.

    One thread at a time runs micro-batches. Where the features fail, answers are degraded until a thread beside has
    brought them back; where the log fails, there is no answer, since it would not be durable.
    """

    def __init__(
        self,
        service: AnyService,
        log: EventLog,
        clock: Clock,
        *,
        deadline: int,
        metrics: Metrics,
        say: Callable[[str], None],
        tracing: Tracing | NoTracing = NO_TRACING,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        """`deadline` in us, of a call. Brings the features up to the log; raises as that does.

        `told` is called when the log holds what live models hear of.
        """
        self.service, self._log, self._clock, self._metrics, self._say = service, log, clock, metrics, say
        self._deadline, self._name, self._tracing, self._told = deadline, service.system.name, tracing, told
        self._retries, self._reused = RetryBudget(), 0
        self._unsettled = deque[tuple[Sequence[Call], Sequence[Replies | Exception], Sequence[tuple[Event, Logged]]]]()
        self._wall = Bulkhead("online features")
        self._features = Breaker(
            "online features", failures=1, pause=MEND, longest=MEND, catch=(PlatformError,),
            on_change=partial(self._gauge, "online features"),
        )  # fmt: skip
        self._disk = Breaker("log", on_change=partial(self._gauge, "log"))
        for dependency in ("online features", "log"):
            self._gauge(dependency, "closed")
        self._head = catch_up(service.store, log)  # all up to it is in the features
        self._as_of = log.head().created_timestamp
        self._behind = threading.Event()
        self._closed = threading.Event()
        self._shadows: queue.Queue[tuple[Sequence[Event], Replies] | None] = queue.Queue(SHADOWS)
        self._threads = [
            threading.Thread(target=run, name=f"{self._name} {name}", daemon=True)
            for name, run in (("features", self._mend), ("shadows", self._shadow))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_behind(self) -> bool:
        """Whether the features are being brought back."""
        return self._behind.is_set()

    def close(self) -> None:
        self._closed.set()
        self._behind.set()
        self._shadows.put(None)
        for thread in self._threads:
            thread.join()
        self._wall.close()

    def run(self, calls: Sequence[Call]) -> list[Replies | Exception]:
        """The answers of each call, none for events that are only remembered, or why it was refused as a whole.

        A request that was answered before gets that answer again. To be followed by `settle`.
        """
        rows = sum(len(call.requests) + len(call.events) for call in calls)
        with self._tracing.batch(self._name, rows, [call.span for call in calls]):
            with self._tracing.step("answer"):
                as_of = self._as_of = max(self._clock.now(), self._as_of)  # a store forgets what time has passed
                out = self._answer(calls, as_of)
            with self._tracing.step("log"):
                said = [i for i, answered in enumerate(out) if not isinstance(answered, Exception)]
                logged = self._remember([(calls[i], out[i]) for i in said], as_of)  # type: ignore[misc]
            new: list[tuple[Event, Logged]] = []
            for i, found in zip(said, logged, strict=True):
                if isinstance(found, Exception):
                    out[i] = found
                else:
                    out[i], events = found
                    new += events
            self._as_of = max([self._as_of, *(at.created_timestamp for _, at in new)])
        self._unsettled.append((calls, out, new))
        return out

    def settle(self) -> None:
        """Push what the batches before have logged, once their callers have their answers: they need not wait for it.

        The next batch of this process sees it; one of another process may be a moment early, and its answers say of
        which log positions their features are.
        """
        while self._unsettled:
            calls, out, new = self._unsettled.popleft()
            with self._tracing.step("push"):
                self._push(new)
            self._count(calls, out)

    def _answer(self, calls: Sequence[Call], as_of: int) -> list[Replies | Exception]:
        out: list[Replies | Exception] = [()] * len(calls)
        for pinned in dict.fromkeys(call.pinned for call in calls if call.requests):
            mine = [i for i, call in enumerate(calls) if call.pinned == pinned and call.requests]
            requests = [request for i in mine for request in calls[i].requests]
            times = np.full(len(requests), as_of)
            try:
                replies = iter(self.service.answer(requests, times, self._head, self._guard, pinned))
            except Exception as error:  # such as a pinned version that is not there any more
                for i in mine:
                    out[i] = error
                continue
            for i in mine:
                out[i] = [next(replies) for _ in calls[i].requests]
        return out

    def _guard(self, read: Callable[[], Any]) -> Any:
        """The features, or an error within the time that they may take."""
        if self._behind.is_set():
            raise Unavailable("online features: being brought back from the log")
        try:
            return self._features.call(lambda: self._in_time(read))
        except PlatformError as error:
            self._lose(error)
            raise

    def _remember(
        self, calls: Sequence[tuple[Call, Replies]], as_of: int
    ) -> Sequence[tuple[Replies, list[tuple[Event, Logged]]] | Exception]:
        """Append what each call heard and was told; all are durable on return."""
        redact = self.service.system.redact
        events: list[list[Event]] = []
        for call, replies in calls:
            heard: list[Event] = []
            for request, reply in zip(call.requests, replies, strict=True):
                kept = redact(request)
                heard += (kept, remember(self.service.system, kept, reply, as_of))
            events.append([*heard, *call.events])
        if not events:
            return []
        try:
            logged = self._disk.call(partial(self._append, events))
        except PlatformError as error:
            return [error] * len(calls)
        out: list[tuple[Replies, list[tuple[Event, Logged]]] | Exception] = []
        for (call, replies), heard, places in zip(calls, events, logged, strict=True):
            if isinstance(places, Exception):
                out.append(self._again(call, replies, heard))
            else:
                out.append((replies, list(zip(heard, places, strict=True))))
        return out

    def _append(self, calls: Sequence[Sequence[Event]]) -> Sequence[list[Logged] | PlatformError]:
        """Tried again, within the deadline and a budget: ids make that harmless."""
        limit = Deadline.after(self._deadline)
        return retry(
            lambda: self._log.append_each(calls, timeout=limit.left() / SECOND), limit, self._retries, attempts=2
        )

    def _again(
        self, call: Call, replies: Replies, heard: Sequence[Event]
    ) -> tuple[Replies, list[tuple[Event, Logged]]] | Exception:
        """Requests that were answered before get those answers; the others are appended without them."""
        try:
            for _ in range(2):  # between looking and appending, another process may have answered
                final, rest = self._known(call, replies, heard)
                places = self._append([rest])[0] if rest else []
                if not isinstance(places, Exception):
                    return final, list(zip(rest, places, strict=True))
        except ValueError:  # it was stored by an earlier definition, and cannot be given again
            pass
        except Exception as error:  # it must harm no other call
            return error
        return Conflict(TAKEN)

    def _known(self, call: Call, replies: Replies, heard: Sequence[Event]) -> tuple[Replies, list[Event]]:
        system = self.service.system
        ids = [request.event_id for request in call.requests]
        wait = int(FEATURES * self._deadline)
        known = self._wall.run(partial(self._log.find, system.request, ids), wait)
        answers = self._wall.run(partial(self._log.find, Answered, [f"{i}{ANSWERED}" for i in ids]), wait)
        final, rest = list(replies), list(call.events)
        for i, request in enumerate(call.requests):
            before = answers.get(f"{request.event_id}{ANSWERED}")
            if before is None:
                rest += heard[2 * i : 2 * i + 2]
            elif known.get(request.event_id) != heard[2 * i]:
                raise Conflict(TAKEN)
            else:
                final[i] = Reply(
                    system.answer.model_validate_json(before.answer), before.version, before.role, before.share,
                    before.degraded, NOTHING, before.positions,
                )  # fmt: skip
        return final, rest

    def _push(self, logged: Sequence[tuple[Event, Logged]]) -> None:
        """Into the features; where that fails, they are brought back beside the next batches."""
        places = {at.position: (event, at) for event, at in logged if at.position > self._head}  # a retry has no other
        new = [places[position] for position in sorted(places)]
        if not new:
            return
        until = new[-1][1].position
        if not self._behind.is_set():
            try:
                reads_log = until - self._head > len(new)
                self._features.call(lambda: self._in_time(partial(self._bring, new, until), reads_log))
                self._head = until
                return
            except Exception as error:  # whatever it is, the features can be made again
                self._lose(error)
        self._head = until  # no read may miss them

    def _lose(self, error: Exception) -> None:
        self._say(f"{self._name}: {error}; answers are degraded until the features are back")
        self._behind.set()

    def _in_time(self, work: Callable[[], T], reads_log: bool = False) -> T:
        """What could hang is done by a thread that may be left behind."""
        if not (reads_log or self.service.store.is_remote):
            return work()
        return self._wall.run(work, int(FEATURES * self._deadline))

    def _bring(self, new: Sequence[tuple[Event, Logged]], until: int) -> None:
        store, after = self.service.store, self._head
        if until - after == len(new):
            logged = {}
            for kind in store.kinds:
                mine = [pair for pair in new if type(pair[0]) is kind]
                logged[kind] = logged_table(kind, [event for event, _ in mine], [at for _, at in mine])
        else:  # another process has appended, too
            after = store.head()
            logged = {kind: self._log.read(kind, after, until) for kind in store.kinds}
        if after < until:
            self.service.push(logged, after, until)

    def _mend(self) -> None:
        """Bring the features back, as often as they are lost."""
        while self._behind.wait() and not self._closed.is_set():
            try:
                while (head := self._features.call(lambda: catch_up(self.service.store, self._log))) < self._head:
                    pass  # more was heard meanwhile
                self._behind.clear()
                self._say(f"{self._name}: features are back, up to event {head:,}")
            except Exception as error:  # whatever it is, without this thread they would never come back
                if not isinstance(error, PlatformError):
                    self._say(f"{self._name}: features: {error!r}")
                self._closed.wait(MEND / SECOND)

    def _shadow(self) -> None:
        """Let the shadow versions answer what was answered; slower than the callers, they miss some."""
        while (batch := self._shadows.get()) is not None:
            for version in self.service.live().shadow:
                if self._closed.is_set():
                    return
                try:
                    said = self.service.shadow(version, *batch)
                    self._log.append(said, timeout=1.0)
                    self._metrics.shadows.labels(self._name, "logged").inc(len(said))
                except Exception:  # a shadow must not be able to do harm
                    self._metrics.shadows.labels(self._name, "failed").inc(len(batch[0]))

    def _count(self, calls: Sequence[Call], out: Sequence[Replies | Exception]) -> None:
        predictions = self._metrics.predictions
        rows, seen = 0, list[tuple[Event, Reply[Any]]]()
        for call, said in zip(calls, out, strict=True):
            rows += len(call.requests)
            if isinstance(said, Exception):
                self._metrics.errors.labels(self._name, type(said).__name__).inc()
                self._metrics.answers.labels(self._name, "failed").inc(len(call.requests))
                continue
            if call.events and isinstance(call.events[0], self.service.system.outcome.source):
                self._metrics.labels.labels(self._name).inc(len(call.events))
            elif call.events:
                self._told()
            for request, reply in zip(call.requests, said, strict=True):
                rung = (reply.degraded or "full").partition(":")[0]
                predictions.labels(self._name, reply.version, reply.role, rung).inc()
                self._metrics.answers.labels(self._name, "full" if rung == "full" else "degraded").inc()
                if len(reply.features):
                    seen.append((request, reply))
        if reused := self.service.reused - self._reused:
            self._metrics.reused.labels(self._name).inc(reused)
            self._reused += reused
        if rows:
            self._metrics.batches.labels(self._name).observe(rows)
        if seen and self.service.live().shadow:
            try:
                self._shadows.put_nowait(([request for request, _ in seen], [reply for _, reply in seen]))
            except queue.Full:
                self._metrics.shadows.labels(self._name, "dropped").inc(len(seen))

    def _gauge(self, dependency: str, state: str) -> None:
        self._metrics.breaker.labels(self._name, dependency).set(state != "closed")
