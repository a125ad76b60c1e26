"""One micro-batch: routing, features, prediction, decision. No HTTP and no log in it, so a simulation uses it too."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
from pydantic_core import to_json

from common.clock import stopwatch
from common.errors import NotFound, PlatformError, Stale
from common.features.online import OnlineStore, Reading, read
from common.features.view import Array, Assembler, Times
from common.registry.registry import Traffic
from common.schema import Event
from common.serving import cache
from common.serving.live import Loaded, View
from common.serving.routing import Choice, Routing, uniform
from common.system import (
    ANSWERED,
    SHADOWED,
    A,
    Answer,
    Answered,
    AnySystem,
    Fault,
    Model,
    P,
    Q,
    Role,
    RowError,
    Rows,
    Shadowed,
    System,
)

T = TypeVar("T")
RULE, LUCK = "rule", "let through"
# Why there are no features, to a caller: whose address it is that does not answer is for the log
BEHIND, AWAY = "online features are behind the log", "online features cannot be had in time"
KEPT = 10_000  # predictions
NOTHING = np.empty((0, 0))
Guard: TypeAlias = Callable[[Callable[[], Any]], Any]  # calls what it is given, or raises in time


@dataclass(frozen=True)
class Reply(Generic[A]):
    answer: A
    version: str
    role: Role
    share: float  # of the units that routing gives to this version
    degraded: str | None  # the rung of the ladder that answered, and why
    features: Array  # (rows of the request, n_features) that it is based on
    positions: tuple[int, ...]  # of the log, that each view's values are of; one stands for all
    routed: str | None = None  # the version that was to answer; None: it did
    fault: Fault | None = None  # of that version
    took: int = 0  # us that it worked on the batch
    score: float | None = None
    rows: pa.Table | None = None  # those of the features; None: the request is its only row


@dataclass(frozen=True)
class _Part(Generic[Q]):
    """The requests of a batch that one version answers."""

    choice: Choice
    loaded: Loaded
    places: list[int]  # in the batch
    requests: Sequence[Q]
    rows: Rows
    took: int  # us, to name them


def fixed(name: str, model: Model[Any, Any]) -> Callable[[], View]:
    """One version, always."""
    loaded = Loaded(name, model, digest="")
    view = View(routing=Routing(name, Traffic(), b""), models={name: loaded})
    return lambda: view


def plainly(work: Callable[[], T]) -> T:
    return work()


class Service(Generic[Q, P, A]):
    """The versions that are live and the features they read. One thread at a time answers.

    The ladder: a model with its features; with default features where they cannot be had; the previous version where
    it fails; a rule that cannot.
    """

    def __init__(
        self,
        system: System[Q, P, A],
        live: Callable[[], View],
        store: OnlineStore,
        key: bytes = b"",
        now: Callable[[], int] = stopwatch,
    ) -> None:
        """`key` makes draws that nobody can foresee; without one they are those of a simulation.

        `now`, us, measures how long each version works.
        """
        self.system, self.live, self.store, self._key, self._now = system, live, store, key, now
        self._said: cache.AnswerCache[P | RowError] = cache.AnswerCache(KEPT, system.reuse)
        self._view = View()
        self._entities = sorted({name for view in system.views for name in view.entity})
        self._assemble = Assembler(system.request, system.views, system.on_demand)

    def answer(
        self, requests: Sequence[Q], as_of: Times, at_least: int = 0, guard: Guard = plainly, pinned: str | None = None
    ) -> list[Reply[A]]:
        """An answer for each request, by the version that routing gives its unit, or by the one that is pinned.

        `guard` reads the features: where it raises a PlatformError, such as Stale for features that do not reach the
        log position `at_least`, default features take their place. Raises NotFound for a version that is not live.
        """
        view = self._current()
        if pinned is not None:
            if pinned not in view.answering:
                raise NotFound(f"version: must be one of {', '.join(view.answering) or 'none'}")
            choices = [Choice(pinned, "pinned", 1.0)] * len(requests)
        elif view.routing is None:
            return [self._rule(request, "no version is live") for request in requests]
        else:
            choices = [view.routing.route(self.system.unit(request)) for request in requests]
        return self._each(view, requests, choices, as_of, at_least, guard)

    @property
    def reused(self) -> int:
        """Predictions that were taken from the cache."""
        return self._said.hits

    def _current(self) -> View:
        view = self.live()
        if view is not self._view:
            for gone in self._view.models.keys() - view.models.keys():
                self._said.drop(gone)
            self._view = view
        return view

    def _each(
        self,
        view: View,
        requests: Sequence[Q],
        choices: Sequence[Choice],
        as_of: Times,
        at_least: int,
        guard: Guard,
        before: str | None = None,
    ) -> list[Reply[A]]:
        """All together; where that fails, by halves, until what is poisoned stands alone and takes the next rung."""
        try:
            return self._together(view, requests, choices, as_of, at_least, guard, before)
        except Exception as error:
            if len(requests) > 1:
                half = len(requests) // 2
                parts = slice(0, half), slice(half, None)
                return [
                    reply
                    for part in parts
                    for reply in self._each(view, requests[part], choices[part], as_of[part], at_least, guard, before)
                ]
            failed = choices[0].version
            reason = f"{failed} failed: {type(error).__name__}"
            if before is None and view.previous is not None and view.previous.name != failed:
                back = [Choice(view.previous.name, "previous", 1.0)]
                instead = self._each(view, requests, back, as_of, at_least, guard, f"previous model: {reason}")
            else:
                instead = [self._rule(requests[0], reason)]
            return [replace(reply, routed=failed, fault="failed") for reply in instead]

    def _together(
        self,
        view: View,
        requests: Sequence[Q],
        choices: Sequence[Choice],
        as_of: Times,
        at_least: int,
        guard: Guard,
        before: str | None,
    ) -> list[Reply[A]]:
        parts = [self._part(view, choice, requests, choices) for choice in dict.fromkeys(choices)]
        counts = [np.diff(part.rows.offsets) for part in parts]
        rows = pa.concat_tables([part.rows.columns for part in parts]) if len(parts) > 1 else parts[0].rows.columns
        when = np.concatenate([np.repeat(as_of[p.places], n) for p, n in zip(parts, counts, strict=True)])
        try:
            reading: Reading | None = guard(lambda: self._read(rows, when, at_least))
            degraded = before
        except PlatformError as error:
            reading, degraded = None, f"default features: {BEHIND if isinstance(error, Stale) else AWAY}"
        positions = () if reading is None else _short(reading.heads)
        replies: list[Reply[A] | None] = [None] * len(requests)
        start = 0
        for part, n in zip(parts, counts, strict=True):
            stop = start + int(n.sum())
            table = part.rows.columns
            if reading is None:
                values = self._usual(part.loaded, table.num_rows)
            else:
                values = [block[start:stop] for block in reading.values]
            x = self._assemble(table, values)
            began = self._now()
            said = self._predict(part, x)
            took = part.took + self._now() - began
            offsets = part.rows.offsets.tolist()
            for i, (place, request, p) in enumerate(zip(part.places, part.requests, said, strict=True)):
                seen, kept = x[offsets[i] : offsets[i + 1]], None
                if self.system.many is not None:
                    which = np.array(() if isinstance(p, RowError) else self.system.many.kept(p), np.int64)
                    seen, kept = seen[which], part.rows.of(i).take(pa.array(which))
                choice = part.choice
                score = math.nan if isinstance(p, RowError) else self.system.score(p)
                if isinstance(p, RowError) or not math.isfinite(score):
                    reason = p.reason if isinstance(p, RowError) else f"{choice.version} answered with no number"
                    replies[place] = replace(
                        self._rule(request, reason), features=seen, positions=positions,
                        routed=choice.version, fault="missing", took=took, rows=kept,
                    )  # fmt: skip
                else:
                    answer = self.system.decide(request, p, self._luck(request))
                    replies[place] = Reply(
                        answer, choice.version, choice.role, choice.propensity, degraded, seen, positions,
                        took=took, score=score, rows=kept,
                    )  # fmt: skip
            start = stop
        return replies  # type: ignore[return-value]

    def _read(self, rows: pa.Table, when: Times, at_least: int) -> Reading:
        if self.system.many is None:
            return self.store.read(rows, when, at_least)
        return read(self.store, self._entities, rows, when, at_least)

    def _part(self, view: View, choice: Choice, requests: Sequence[Q], choices: Sequence[Choice]) -> _Part[Q]:
        places = [i for i, of in enumerate(choices) if of == choice]
        mine = requests if len(places) == len(requests) else [requests[i] for i in places]
        loaded, began = view.models[choice.version], self._now()
        rows = loaded.model.rows(mine)
        return _Part(choice, loaded, places, mine, rows, self._now() - began)

    def _predict(self, part: _Part[Q], x: Array) -> Sequence[P | RowError]:
        """By the model, or what it said before to the same, where the system allows that."""
        model, offsets = part.loaded.model, part.rows.offsets
        if not self.system.reuse:
            return model.predict(part.requests, part.rows, x)
        keys = [
            cache.key(part.choice.version, request, x[offsets[i] : offsets[i + 1]])
            for i, request in enumerate(part.requests)
        ]
        known = {i: p for i, key in enumerate(keys) if (p := self._said.get(key)) is not None}
        new = [i for i in range(len(keys)) if i not in known]
        if new:
            of_new = np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in new])
            notes = None if part.rows.notes is None else [part.rows.notes[i] for i in new]
            counts = np.append(0, np.cumsum(np.diff(offsets)[new]))
            rows = Rows(part.rows.columns.take(pa.array(of_new)), counts, notes)
            for i, p in zip(new, model.predict([part.requests[i] for i in new], rows, x[of_new]), strict=True):
                known[i] = p
                if not isinstance(p, RowError):
                    self._said.put(keys[i], p)
        return [known[i] for i in range(len(keys))]

    def _rule(self, request: Q, reason: str) -> Reply[A]:
        """The last rung, which needs nothing."""
        answer = self.system.degraded[-1](request, self._luck(request))
        return Reply(answer, RULE, "rule", 1.0, f"rule: {reason}", NOTHING, ())

    def _luck(self, request: Q) -> float:
        """The same for a retry."""
        return uniform(self._key, LUCK, request.event_id)

    def _usual(self, loaded: Loaded, n: int) -> list[Array]:
        """What was usual when the version learned. As if everything were new, fraud would be approved, all of it."""
        return [
            np.tile([loaded.usual.get(name, np.nan) for name in view.features], (n, 1)) for view in self.system.views
        ]

    def shadow(self, version: Loaded, requests: Sequence[Q], replies: Sequence[Reply[A]]) -> list[Shadowed]:
        """What another version says to requests that have their answers, from the same features of the same rows."""
        if self.system.many is None:
            rows = version.model.rows(requests)
        else:
            counts = [len(reply.features) for reply in replies]
            columns = pa.concat_tables([reply.rows for reply in replies if reply.rows is not None])
            rows = Rows(columns, np.append(0, np.cumsum(counts)))
        said = version.model.predict(requests, rows, np.concatenate([reply.features for reply in replies]))
        return [
            Shadowed(
                event_id=f"{request.event_id}{SHADOWED}{version.name}",
                event_timestamp=request.event_timestamp,
                request_id=request.event_id,
                version=version.name,
                answer=self.system.decide(request, p, self._luck(request)).model_dump_json(),
            )
            for request, p in zip(requests, said, strict=True)
            if not isinstance(p, RowError)
        ]

    def push(self, logged: Mapping[type[Event], pa.Table], after: int, until: int) -> None:
        """What the log holds between two positions, by kind, becomes part of the features; raises as a store does."""
        self.store.push(logged, after, until)


AnyService = Service[Any, Any, Any]


def _short(heads: tuple[int, ...]) -> tuple[int, ...]:
    return heads[:1] if len(set(heads)) == 1 else heads


def remember(system: AnySystem, request: Event, reply: Reply[Any], at: int) -> Answered:
    """The answer as an event; `at` is the time of which its features are."""
    seen = reply.features.ravel()
    known: list[float | None] = list(seen.tolist())
    for i in np.flatnonzero(~np.isfinite(seen)).tolist():
        known[i] = None
    answer: Answer = reply.answer
    return Answered.model_construct(
        event_id=f"{request.event_id}{ANSWERED}",
        event_timestamp=at,
        request_id=request.event_id,
        version=reply.version,
        role=reply.role,
        share=reply.share,
        routed=reply.routed or reply.version,
        fault=reply.fault,
        took=reply.took,
        score=reply.score,
        degraded=reply.degraded,
        propensity=answer.propensity,
        hidden=system.hides(answer),
        answer=answer.model_dump_json(),
        features=tuple(known),
        positions=reply.positions,
        rows=None if reply.rows is None else to_json(reply.rows.to_pydict()).decode(),
    )
