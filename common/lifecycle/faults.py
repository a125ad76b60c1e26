"""What goes wrong in production, on purpose: in the events that a world tells, in features, and in versions."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from common.clock import DAY, MILLISECOND
from common.errors import BadSetting
from common.features.online import OnlineStore, Reading
from common.features.view import Array, Times
from common.schema import Event
from common.serving.routing import uniform
from common.system import AnySystem, Arrival, Model, RowError, Rows, World

KINDS = ("random_labels", "frozen_labels", "label_flood", "missing_feature", "wrong_unit", "wrong_clock")
FLOOD = 0.2  # of the requests are said to be positive; of joined outcomes, that so many are told twice
KEPT = 1_000  # values that joined outcomes at random are drawn from
JUMP = 3 * DAY  # us that clients' clocks go ahead
VERSIONS = ("errors", "slow", "nothing", "unlike")
FILE = "fault.json"  # in a bundle: how its version misbehaves once it is served
SHARE = 0.05  # of the requests that a version with errors fails, or has no answer for
SLOWER = 100 * MILLISECOND  # us


class FaultyWorld:
    """A world of which something is told wrongly from a day on."""

    def __init__(self, system: AnySystem, world: World[Any, Any], kind: str, since: int) -> None:
        self._system, self._world, self._kind, self._since = system, world, kind, since
        self._asked: set[tuple[Any, ...]] = set()  # of joined outcomes, those that will be told twice
        self._values = deque[Any](maxlen=KEPT)  # of the last of them
        self._field = next((n for n, f in system.request.model_fields.items() if f.annotation is float), None)
        if kind == "wrong_unit" and self._field is None:
            raise BadSetting(f"drift: {kind} needs a number in each request, {system.name} has none")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    def arrivals(self, until: int) -> Sequence[Arrival]:
        told = [new for arrival in self._world.arrivals(until) for new in self._told(arrival)]
        return sorted(told, key=lambda arrival: arrival.at)

    def _told(self, arrival: Arrival) -> Iterator[Arrival]:
        at, event = arrival
        outcome, kind = self._system.outcome, self._kind
        if at < self._since:
            yield arrival
        elif isinstance(event, outcome.source):
            if kind == "random_labels" and outcome.value is not None and self._joined:
                yield Arrival(at, event.model_copy(update={outcome.value: self._another(event, outcome.value)}))
            elif kind == "random_labels" and outcome.value is not None:
                value = uniform(b"", "fault", event.event_id) < 0.5
                yield Arrival(at, event.model_copy(update={outcome.value: value}))
            elif kind == "random_labels":  # they say nothing but that they came: the real ones do not
                return
            elif kind != "frozen_labels":
                yield arrival
                if self._joining(event) in self._asked:
                    self._asked.discard(self._joining(event))
                    yield Arrival(at, event.model_copy(update={"event_id": f"flood-{event.event_id}"}))
        elif isinstance(event, self._system.request):
            if kind == "wrong_unit" and self._field is not None:
                wrong = {**event.model_dump(), self._field: 100 * getattr(event, self._field)}
                try:
                    event = self._system.request.model_validate(wrong)
                except ValidationError:  # refused at the door
                    return
            elif kind == "wrong_clock":
                event = event.model_copy(update={"event_timestamp": event.event_timestamp + JUMP})
            yield Arrival(at, event)
            share = {"label_flood": FLOOD, "random_labels": 0.5 if outcome.value is None else 0.0}.get(kind, 0.0)
            if uniform(b"", "fault", event.event_id) >= share:
                return
            if kind == "label_flood" and self._joined:  # nobody could tell today what will be true of that day
                self._asked.add(self._joining(event))
            else:
                yield Arrival(at, self._alleged(event))
        else:
            yield arrival

    @property
    def _joined(self) -> tuple[str, ...]:
        return () if self._system.many is None else self._system.many.joined

    def _joining(self, event: Event) -> tuple[Any, ...]:
        return tuple(getattr(event, name) for name in self._joined)

    def _another(self, event: Event, name: str) -> Any:
        """The value of an earlier outcome, at random: each is as usual, and says nothing of what it is about."""
        self._values.append(getattr(event, name))
        return self._values[int(uniform(b"", "fault", event.event_id) * len(self._values))]

    def _alleged(self, request: Event) -> Event:
        """A positive label out of nowhere, with as much of the request as labels carry."""
        outcome = self._system.outcome
        example = next(e for e in self._system.examples if isinstance(e, outcome.source))
        said = request.model_dump().items()
        shared = {n: v for n, v in said if n in outcome.source.model_fields and v is not None}
        shared["event_id"] = f"flood-{request.event_id}"
        if outcome.request is not None:
            shared[outcome.request] = request.event_id
        if outcome.value is not None:
            shared[outcome.value] = True
        return example.model_copy(update=shared)


class FaultyStore:
    """Online features of which one view has lost its values from a time on."""

    def __init__(self, store: OnlineStore, column: int, since: int) -> None:
        self._store, self._view, self._since = store, column, since

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, rows: pa.Table, as_of: Times, at_least: int = 0) -> Reading:
        found = self._store.read(rows, as_of, at_least)
        found.values[self._view][as_of >= self._since] = np.nan
        return found


@dataclass(frozen=True)
class FaultyModel:
    """A version that misbehaves once it is served; loaded from its bundle elsewhere, it does not."""

    model: Model[Any, Any]
    kind: str
    wait: Callable[[int], None]  # us

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def rows(self, requests: Sequence[Any]) -> Rows:
        return self.model.rows(requests)

    def predict(self, requests: Sequence[Any], rows: Rows, x: Array) -> Sequence[Any]:
        hit = [uniform(b"", "fault", request.event_id) < SHARE for request in requests]
        if self.kind == "errors" and any(hit):
            raise ArithmeticError("injected")
        if self.kind == "slow":
            self.wait(SLOWER)
        if self.kind == "unlike":
            return self.model.predict(requests, rows, x[:, ::-1])
        said = self.model.predict(requests, rows, x)
        if self.kind == "nothing":
            return [RowError("injected: no number") if bad else p for p, bad in zip(said, hit, strict=True)]
        return said

    def save(self, folder: Path) -> None:
        self.model.save(folder)


def loading(load: Callable[[Path], Model[Any, Any]], wait: Callable[[int], None]) -> Callable[[Path], Model[Any, Any]]:
    """A system's `load` that heeds what a bundle says of how its version misbehaves."""

    def loaded(folder: Path) -> Model[Any, Any]:
        model, path = load(folder), folder / FILE
        return FaultyModel(model, json.loads(path.read_text())["kind"], wait) if path.exists() else model

    return loaded


def spoil(folder: Path, kind: str) -> None:
    """Make a version out of a good one that misbehaves."""
    (folder / FILE).write_text(json.dumps({"kind": kind}))


def parse(system: AnySystem, drift: str) -> tuple[str, int]:
    """The kind and the day of "kind@day"; raises BadSetting."""
    kind, _, day = drift.partition("@")
    if kind not in (kinds := (*system.drifts, *KINDS)) or not day.isascii() or not day.isdigit():
        raise BadSetting(f"drift: must be KIND@DAY with one of {', '.join(kinds)}, got {drift!r}")
    return kind, int(day)


SAYS: Mapping[str, str] = {
    "random_labels": "outcomes are told at random",
    "frozen_labels": "no outcomes are told any more",
    "label_flood": f"{FLOOD:.0%} of the requests are said to be positive, or what became of them is told twice",
    "missing_feature": "one view of the online features has lost its values",
    "wrong_unit": "a number arrives a hundred times too large",
    "wrong_clock": "clients' clocks go three days ahead",
}
