"""What was asked, answered and told, in columns: what a loop watches and learns from. It grows with the log."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.data.log import EventLog
from common.errors import NotFound
from common.features import offline
from common.features.view import Array, Times, assemble, feature_names, ints, numbers
from common.lifecycle.parity import logged_rows
from common.schema import Event, Logged, Records, logged_table
from common.serving.service import Reply
from common.system import Answer, Answered, AnySystem, Examples, Rows

NEVER = np.iinfo(np.int64).max
SCORE = "score"
FAULTS = (None, "failed", "missing")

Texts = NDArray[np.object_]


@dataclass(frozen=True)
class Columns:
    """Requests in log order, of length n."""

    as_of: Times  # us, when each was logged
    asked: Times  # us, when it happened, says the client
    unit: Texts
    version: Texts  # that answered
    routed: Texts  # that was to answer
    fault: NDArray[np.int64]  # of that one, index in FAULTS
    took: NDArray[np.int64]  # us
    score: Array  # NaN: none
    is_hidden: NDArray[np.bool_]
    propensity: Array
    is_degraded: NDArray[np.bool_]
    watched: Array  # (n, columns that the monitors name)


class Heard(NamedTuple):
    """A label as it was heard."""

    row: int  # of the request; -1: nobody made it
    dated: int  # us, when that happened, says the label
    at: int  # us
    value: float  # NaN: it says nothing of an answer, see `ManyRows.watched`
    is_even: bool  # it would have been heard whatever it says


class Journal:
    """Kept in memory by whoever answers, so that nothing has to be read back.

    A request has one row of features; where it has many, the first one is watched.
    """

    def __init__(self, system: AnySystem) -> None:
        self.system = system
        self.names = feature_names(system.views, system.on_demand)
        self.watched = tuple(m.column for m in system.monitors if m.column != SCORE)
        self._watched = [self.names.index(column) for column in self.watched]
        self.answers: list[Answer] = []
        self.positions: list[tuple[int, ...]] = []  # of the log, that each request's features are of
        self.told_at: list[int] = []  # us, when the last word on each request was heard; NEVER: not yet
        self.told: list[float] = []  # NaN: nothing yet, or nothing of the answer
        self.heard: list[Heard] = []
        self.outcomes: dict[int, Event] = {}  # by row, the last word itself, of outcomes that meet requests by columns
        self._parts: list[Columns] = []
        self._tables: list[pa.Table] = []
        self._x: list[Array] = []
        self._seen: list[tuple[pa.Table | None, Array]] = []  # of requests with many rows
        self._new: list[tuple[Any, Logged, Reply[Any]]] = []
        self._place: dict[str, int] = {}  # by the id of a request
        self._met: dict[tuple[Any, ...], list[int]] = {}  # by the joined columns, those who asked for them
        self._logged_at: list[int] = []  # position of each request
        self._as_of: list[int] = []

    @classmethod
    def read(cls, system: AnySystem, log: EventLog, since: int) -> Self:
        """What a log holds of the requests that were answered since a time, us; raises NotFound for none."""
        journal, width = cls(system), len(feature_names(system.views, system.on_demand))
        said = log.read(Answered)
        said = said.filter(pc.greater_equal(said["created_timestamp"], since))
        asked, outcomes = log.read(system.request), log.read(system.outcome.source)
        place = {event_id: i for i, event_id in enumerate(asked["event_id"].to_pylist())}
        if not said.num_rows:
            raise NotFound(f"{system.name}: no request was answered that long")
        table = asked.take(pa.array([place[i] for i in said["request_id"].to_pylist()], pa.int64()))
        requests = Records(system.request, table)
        unknown = [np.nan] * width
        features = said["features"].to_pylist()
        x = np.array([row[:width] if len(row) >= width else unknown for row in features], float)
        unseen = pa.array([len(row) < width for row in features])
        if system.many is not None:
            rows = logged_rows(said["rows"].to_pylist())
            journal._seen = [
                (rows.of(i), np.array(row, float).reshape(-1, width)) for i, row in enumerate(features)
            ]  # fmt: skip
        elif pc.any(unseen).as_py():  # answered by a rule: the features are what they would have been
            those = table.filter(unseen)
            values = [offline.compute(view, log.read(view.source), those) for view in system.views]
            x[unseen.to_numpy(False)] = assemble(system.request, system.views, system.on_demand, those, values)
        journal._as_of = said["created_timestamp"].to_pylist()
        journal._parts = [
            Columns(
                as_of=np.array(journal._as_of, np.int64),
                asked=ints(table["event_timestamp"]),
                unit=np.array([system.unit(request) for request in requests], object),
                version=said["version"].to_numpy().astype(object),
                routed=said["routed"].to_numpy().astype(object),
                fault=np.array([FAULTS.index(fault) for fault in said["fault"].to_pylist()], np.int64),
                took=ints(said["took"]),
                score=numbers(said["score"]),
                is_hidden=np.array(said["hidden"].to_pylist(), bool),
                propensity=numbers(said["propensity"]),
                is_degraded=np.array([why is not None for why in said["degraded"].to_pylist()], bool),
                watched=x[:, journal._watched],
            )
        ]
        journal._tables, journal._x = [table], [x]
        journal.answers = [system.answer.model_validate_json(answer) for answer in said["answer"].to_pylist()]
        journal.positions = [tuple(positions) for positions in said["positions"].to_pylist()]
        journal.told_at, journal.told = [NEVER] * len(journal), [np.nan] * len(journal)
        joining = zip(*(table[name].to_pylist() for name in journal._joined), strict=True)
        journal._placed(said["request_id"].to_pylist(), joining, table["position"].to_pylist())
        if journal._joined:  # what was said before the first of them is about none of them
            outcomes = outcomes.filter(pc.greater(outcomes["position"], table["position"][0]))
        at = outcomes.select(list(Logged.model_fields)).to_pylist()
        journal.tell(list(Records(system.outcome.source, outcomes)), [Logged.model_construct(**row) for row in at])
        return journal

    def __len__(self) -> int:
        return len(self._as_of)

    def ask(self, requests: Sequence[Event], logged: Sequence[Logged], replies: Sequence[Reply[Any]]) -> None:
        """Requests with their places in the log, and what was answered."""
        ids, positions = [request.event_id for request in requests], [at.position for at in logged]
        self._placed(ids, map(self._joining, requests), positions)
        self._new += zip(requests, logged, replies, strict=True)
        self._as_of += [at.created_timestamp for at in logged]
        self.answers += [reply.answer for reply in replies]
        self.positions += [reply.positions for reply in replies]
        self.told_at += [NEVER] * len(requests)
        self.told += [np.nan] * len(requests)

    def _placed(self, ids: Iterable[str], joining: Iterable[tuple[Any, ...]], positions: Sequence[int]) -> None:
        """Where outcomes find these requests."""
        first = len(self._logged_at)
        self._place.update((event_id, row) for row, event_id in enumerate(ids, first))
        if self._joined:
            for row, values in enumerate(joining, first):
                self._met.setdefault(values, []).append(row)
        self._logged_at += positions

    @property
    def _joined(self) -> tuple[str, ...]:
        return () if self.system.many is None else self.system.many.joined

    def _joining(self, event: Event) -> tuple[Any, ...]:
        return tuple(getattr(event, name) for name in self._joined)

    def _said(self, event: Event, position: int) -> tuple[int, float]:
        """The request that an outcome is about, -1 for none, and its label, NaN where it says nothing of an answer."""
        outcome, many = self.system.outcome, self.system.many
        if outcome.request is not None:
            return self._place.get(getattr(event, outcome.request), -1), outcome.label(event)
        rows = self._met.get(self._joining(event), [])
        asked = bisect_left(rows, position, key=self._logged_at.__getitem__)
        if not asked:  # sales of a day that nobody asked for are no label, and nothing is wrong with them
            return -1, np.nan
        row = rows[asked - 1]  # the newest one
        assert many is not None  # System has checked it
        value = outcome.label(event) if many.watched is None else many.watched(self.answers[row], event)
        return row, np.nan if value is None else value

    def _gather(self) -> None:
        """What is new becomes columns, all at once: of each micro-batch alone that would take longer than to answer."""
        if not self._new:
            return
        requests, logged, replies = zip(*self._new, strict=True)
        self._new = []
        system, unknown = self.system, np.full((1, len(self.names)), np.nan)
        x = np.concatenate([reply.features[:1] if reply.features.size else unknown for reply in replies])
        if system.many is not None:
            self._seen += [(reply.rows, reply.features) for reply in replies]
        self._parts.append(
            Columns(
                as_of=np.array([at.created_timestamp for at in logged], np.int64),
                asked=np.array([request.event_timestamp for request in requests], np.int64),
                unit=np.array([system.unit(request) for request in requests], object),
                version=np.array([reply.version for reply in replies], object),
                routed=np.array([reply.routed or reply.version for reply in replies], object),
                fault=np.array([FAULTS.index(reply.fault) for reply in replies], np.int64),
                took=np.array([reply.took for reply in replies], np.int64),
                score=np.array([np.nan if reply.score is None else reply.score for reply in replies]),
                is_hidden=np.array([system.hides(reply.answer) for reply in replies], bool),
                propensity=np.array([reply.answer.propensity for reply in replies]),
                is_degraded=np.array([reply.degraded is not None for reply in replies], bool),
                watched=x[:, self._watched],
            )
        )
        self._tables.append(logged_table(system.request, requests, logged))
        self._x.append(x)

    def tell(self, outcomes: Sequence[Event], logged: Sequence[Logged]) -> None:
        """Labels as they are heard; of several for one request within the label delay the last one counts."""
        is_last_word = self.system.many is None or bool(self._joined)
        for event, at in zip(outcomes, logged, strict=True):
            row, value = self._said(event, at.position)
            is_even = self.system.outcome.is_even(event)
            self.heard.append(Heard(row, event.event_timestamp, at.created_timestamp, value, is_even))
            if row < 0 or at.created_timestamp > self._as_of[row] + self.system.label_delay:
                continue
            if is_last_word or not value <= self.told[row]:  # of many rows the largest counts
                self.told_at[row], self.told[row] = at.created_timestamp, value
                if self._joined:
                    self.outcomes[row] = event

    def retold(self, rows: slice, answers: Sequence[Any]) -> Array:
        """What the outcomes would have said of other answers to requests, (n,); NaN: nothing."""
        many = self.system.many
        assert many is not None
        assert many.watched is not None  # whoever asks has looked
        said = [
            None if (told := self.outcomes.get(row)) is None or answer is None else many.watched(answer, told)
            for row, answer in enumerate(answers, rows.start)
        ]
        return np.array([np.nan if value is None else value for value in said])

    def fill(self, known: Examples[Any]) -> None:
        """The features of all requests so far, where they were answered without any."""
        columns, x = self.columns, known.x
        if self.system.many is not None:
            rows = known.rows
            self._seen = [(rows.of(i), x[a:b]) for i, (a, b) in enumerate(pairwise(rows.offsets.tolist()))]
            unknown = np.full((1, len(self.names)), np.nan)
            x = np.concatenate([seen[:1] if len(seen) else unknown for _, seen in self._seen])
        self._x = [x]
        self._parts = [replace(columns, watched=x[:, self._watched])]

    @property
    def columns(self) -> Columns:
        self._gather()
        if len(self._parts) > 1:
            fields = Columns.__dataclass_fields__
            whole = {name: np.concatenate([getattr(part, name) for part in self._parts]) for name in fields}
            self._parts = [Columns(**whole)]
        return self._parts[0]

    @property
    def x(self) -> Array:
        """The features that each request was answered by, (n, n_features); NaN: without any."""
        self._gather()
        if len(self._x) > 1:
            self._x = [np.concatenate(self._x)]
        return self._x[0]

    @property
    def table(self) -> pa.Table:
        """The requests as logged."""
        self._gather()
        if len(self._tables) > 1:
            self._tables = [pa.concat_tables(self._tables).combine_chunks()]
        return self._tables[0]

    def seen(self, which: Sequence[int]) -> tuple[Rows, Array]:
        """The rows and the features of requests, by which they can be scored again."""
        if self.system.many is None:
            return Rows(self.table.take(pa.array(which, pa.int64())), np.arange(len(which) + 1)), self.x[list(which)]
        self._gather()
        found = [self._seen[i] for i in which]
        tables = [rows for rows, _ in found if rows is not None]
        columns = pa.concat_tables(tables, promote_options="default") if tables else pa.table({})
        counts = [0 if rows is None else rows.num_rows for rows, _ in found]
        x = [np.empty((0, len(self.names))), *(x for rows, x in found if rows is not None)]
        return Rows(columns, np.append(0, np.cumsum(counts))), np.concatenate(x)

    def requests(self, rows: slice) -> Records[Any]:
        return Records(self.system.request, self.table.slice(rows.start, rows.stop - rows.start))

    def heard_between(self, start: int, end: int) -> list[Heard]:
        """The labels that were heard with start <= at < end, us."""
        a, b = (bisect_left(self.heard, at, key=lambda label: label.at) for at in (start, end))
        return self.heard[a:b]

    def rows(self, start: int, end: int) -> slice:
        """The requests with start <= as_of < end, us."""
        a, b = np.searchsorted(self.columns.as_of, [start, end]).tolist()
        return slice(a, b)

    def labels(self, now: int, delay: int) -> tuple[Array, Array]:
        """Of all requests, as known now, (n,) each: labels, NaN where not known, and 1 / propensity of knowing them.

        Where nothing was told, silence speaks once a request is older than `delay`; told labels count from then on,
        too, for those that come early are not like the others.
        """
        c, silence = self.columns, self.system.outcome.silence
        labels = np.where(np.array(self.told_at) <= now, self.told, np.nan if silence is None else silence)
        labels[(c.as_of > now - delay) | c.is_hidden] = np.nan
        return labels, np.where(np.isnan(labels), 0.0, 1 / c.propensity)

    def examples(
        self, now: int, delay: int, without: Sequence[tuple[int, int]] = (), unheard: Sequence[tuple[int, int]] = ()
    ) -> Examples[Any]:
        """All requests, to learn from and to judge on.

        Spans of time, us, count nothing: `without` those in which requests were asked, `unheard` those in which the
        last word on them was heard.
        They come with the features that were seen when they were answered. Training computes them anew, as of each
        request's place in the log: then a request also sees those of other units that were answered with it, in one
        micro-batch, and did not see each other.
        """
        c = self.columns
        labels, weights = self.labels(now, delay)
        for start, end in without:
            weights[(start <= c.as_of) & (c.as_of < end)] = 0
        told_at = np.array(self.told_at)
        for start, end in unheard:
            weights[(start <= told_at) & (told_at < end)] = 0
        labels[weights == 0] = np.nan
        table = self.table
        return Examples(
            requests=Records(self.system.request, table),
            rows=Rows(table, np.arange(len(self) + 1)),
            x=self.x,
            names=self.names,
            as_of=c.as_of,
            labels=labels,
            weights=weights,
        )
