"""Systems whose requests have rows of their own, and models that hear of events: a stall that offers fruit."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from common.clock import DAY, SimulatedClock
from common.data.log import EventLog
from common.data.snapshots import Snapshots
from common.features.online.sqlite import SqliteStore
from common.features.view import Aggregation, FeatureView, OnDemand
from common.lifecycle import training
from common.lifecycle.journal import Journal
from common.lifecycle.parity import parity, rescored
from common.lifecycle.simulation import ByModel, ByService, live
from common.progress import Progress
from common.registry.registry import Traffic
from common.schema import Event, Logged
from common.serving import following
from common.serving.live import Loaded, View
from common.serving.routing import Routing
from common.serving.service import Service, fixed
from common.system import Answer, AnySystem, Arrival, ManyRows, Outcome, RowError, Rows, find, names

FRUIT = ("apple", "banana", "cherry", "date")
SHOWN = 3  # of the fruit


class Ask(Event):
    user: str


class Bite(Event):
    ask: str
    fruit: str


class Delivery(Event):
    fruit: str


class Offer(Answer):
    fruit: tuple[str, ...]


BITTEN = FeatureView(
    name="fruit", source=Bite, entity=("fruit",), aggregations=(Aggregation(name="n", kind="count", window=99 * DAY),)
)
LETTERS = OnDemand(name="letters", inputs=("length",), version=1, compute=lambda c: c["length"])


def rows_of(asks: Sequence[tuple[str, str]], stock: Sequence[str], shown: Mapping[str, Sequence[str]]) -> Rows:
    """asks: (id, user). A user named nobody is offered nothing."""
    pairs = [(event_id, name) for event_id, user in asks for name in stock if user != "nobody"]
    columns = {
        "event_id": pa.array([event_id for event_id, _ in pairs], pa.string()),
        "fruit": pa.array([name for _, name in pairs], pa.string()),
        "length": pa.array([float(len(name)) for _, name in pairs], pa.float64()),
        "shown": pa.array([float(name in shown.get(event_id, ())) for event_id, name in pairs], pa.float64()),
    }
    counts = [0 if user == "nobody" else len(stock) for _, user in asks]
    return Rows(pa.table(columns), np.append(0, np.cumsum(counts)))


class Stall:
    """Offers the most bitten of the fruit that it has heard of, of equal ones the longest name."""

    def __init__(self, stock: Sequence[str] = FRUIT) -> None:
        self.stock = list(stock)

    def rows(self, requests: Sequence[Ask]) -> Rows:
        return rows_of([(ask.event_id, ask.user) for ask in requests], self.stock, {})

    def predict(self, requests: Sequence[Ask], rows: Rows, x: np.ndarray) -> Sequence[Any]:
        said: list[Any] = []
        for i, ask in enumerate(requests):
            mine = slice(*rows.offsets[i : i + 2].tolist())
            order = np.lexsort((-x[mine, -1], -x[mine, 0])) if x.shape[1] else np.arange(rows.of(i).num_rows)
            if ask.user == "bad":
                said.append(RowError("a bad user"))
                continue
            names_ = rows.of(i)["fruit"].to_pylist() if len(order) else []
            said.append([(j, names_[j]) for j in order[:SHOWN].tolist()])
        return said

    def save(self, folder: Path) -> None:
        raise AssertionError

    def hear(self, events: pa.Table) -> None:
        self.stock += [name for name in events["fruit"].to_pylist() if name not in self.stock]


def replay(asked: pa.Table, tables: Mapping[str, pa.Table]) -> Rows:
    said = tables["Answered"]
    shown = {
        request: json.loads(answer)["fruit"]
        for request, answer in zip(said["request_id"].to_pylist(), said["answer"].to_pylist(), strict=True)
    }
    return rows_of(list(zip(asked["event_id"].to_pylist(), asked["user"].to_pylist(), strict=True)), FRUIT, shown)


def stall(**changed: Any) -> AnySystem:
    return replace(
        find("systems", names("systems")[0]),
        request=Ask, answer=Offer, events=(Ask, Bite, Delivery), views=(BITTEN,), on_demand=(LETTERS,), monitors=(),
        outcome=Outcome(source=Bite, request="ask", value=None, silence=0.0, is_even=lambda told: False),
        label_delay=2 * DAY, early_delay=DAY, hides=lambda offer: False, redact=lambda ask: ask,
        unit=lambda ask: ask.user, score=lambda p: float(len(p)), hears=Delivery, before=lambda: Stall(()),
        decide=lambda ask, p, luck: Offer(fruit=tuple(name for _, name in p)),
        degraded=(lambda ask, luck: Offer(fruit=()),),
        many=ManyRows(key="fruit", seen="shown", replay=replay, kept=lambda p: tuple(j for j, _ in p)), **changed,
    )  # fmt: skip


class Market:
    """A world that is told what happens: all is delivered at first, and whoever is offered a cherry bites it."""

    def __init__(self, asks: Sequence[tuple[int, str]]) -> None:
        delivered = [Arrival(0, Delivery(event_id=f"delivery-{f}", event_timestamp=0, fruit=f)) for f in FRUIT]
        asked = [Arrival(at, Ask(event_id=f"ask-{at}", event_timestamp=at, user=user)) for at, user in asks]
        self._waiting, self._now = [*delivered, *asked], 0

    def arrivals(self, until: int) -> list[Arrival]:
        now = sorted((a for a in self._waiting if a.at < until), key=lambda a: a.at)
        self._waiting, self._now = [a for a in self._waiting if a.at >= until], until
        return now

    def react(self, answered: Sequence[tuple[Ask, Offer]]) -> None:
        for ask, offer in answered:
            if "cherry" in offer.fruit:
                at = ask.event_timestamp
                bite = Bite(event_id=f"bite-{ask.event_id}", event_timestamp=at, ask=ask.event_id, fruit="cherry")
                self._waiting.append(Arrival(max(self._now, at + 1), bite))


def lived(folder: Path, system: AnySystem, days: int = 10) -> tuple[EventLog, Journal]:
    """Asked by ann each morning, by nobody each noon, by bad each evening."""
    asks = [(day * DAY + hour, user) for day in range(days) for hour, user in ((8, "ann"), (12, "nobody"), (18, "bad"))]
    world, journal = Market([(at * 1 + 3_600_000_000, user) for at, user in asks]), Journal(system)
    log = EventLog(folder / "log.db", SimulatedClock(0), system.logged, sync=lambda file: None)
    model = Stall(FRUIT)
    store = SqliteStore(folder / "online.db", system.views)
    answers = ByService(Service(system, fixed("v1", model), store, now=lambda: 0), log)
    for _ in live(
        system, world, log, answers, (0, days * DAY), batch=1, progress=Progress(quiet=True), journal=journal
    ):  # fmt: skip
        pass
    store.close()
    return log, journal


@pytest.fixture
def system() -> AnySystem:
    return stall()


def test_an_answer_is_logged_with_the_rows_that_it_shows_and_their_features(tmp_path: Path, system: AnySystem) -> None:
    log, _ = lived(tmp_path, system)
    with log:
        said = log.read(system.logged[-2])
        first, nothing, bad = (said.slice(i, 1).to_pylist()[0] for i in range(3))
        assert json.loads(first["rows"])["fruit"] == ["banana", "cherry", "apple"]
        assert first["features"] == [0.0, 6.0, 0.0, 6.0, 0.0, 5.0]
        assert (nothing["features"], json.loads(nothing["rows"])["fruit"]) == ([], [])
        assert (bad["version"], bad["fault"], json.loads(bad["rows"])["fruit"]) == ("rule", "missing", [])
        later = json.loads(said.slice(3, 1)["rows"][0].as_py())["fruit"]
        assert later == ["cherry", "banana", "apple"]  # it was bitten since


def test_served_rows_are_made_again_exactly_from_the_log(tmp_path: Path, system: AnySystem) -> None:
    log, journal = lived(tmp_path, system)
    with log:
        found = parity(system, log, {"v1": Stall()})
        assert (found.holds, found.answers) == (True, 20)
        assert found.values == 10 * SHOWN * 2
        which = [0, 1, 3, 6]
        rows, x = journal.seen(which)
        assert np.diff(rows.offsets).tolist() == [3, 0, 3, 3]
        asked = journal.table.take(pa.array(which))
        events = {Bite: log.read(Bite)}
        again = rescored(system, Stall(), asked, [journal.positions[i] for i in which], events, rows)
        np.testing.assert_array_equal(again, journal.columns.score[which])
        assert x.shape == (9, 2)


def test_a_changed_row_is_found(tmp_path: Path, system: AnySystem) -> None:
    log, _ = lived(tmp_path, system, days=2)
    with log:
        kind = system.logged[-2]
        (said,) = log.find(kind, [f"ask-{3_600_000_008}\x1fanswer"]).values()
        told = {**json.loads(said.rows), "length": [1.0, 6.0, 5.0]}
        log.append([said.model_copy(update={"event_id": "x", "rows": json.dumps(told)})])
        found = parity(system, log, {"v1": Stall()})
        assert (found.differing, found.gap) == (1, 5.0)


def test_labels_are_of_rows_and_known_only_of_what_was_shown(tmp_path: Path, system: AnySystem) -> None:
    log, journal = lived(tmp_path, system)
    with log:
        snapshot = training.take(system, log, Snapshots(tmp_path / "snapshots"))
        known = training.examples(system, snapshot)
    assert np.diff(known.rows.offsets).tolist() == [4, 0, 4] * 10
    ann = known.labels.reshape(10, 2, 4)[:, 0]
    np.testing.assert_array_equal(ann[:7], np.tile([0, 0, 1, np.nan], (7, 1)))
    young = known.as_of[known.rows.owner] > snapshot.at - system.label_delay
    assert young.any()
    assert np.isnan(known.labels[young]).all()
    np.testing.assert_array_equal(known.weights == 0, np.isnan(known.labels))
    part = known.between(DAY, 3 * DAY)
    assert (len(part), len(part.labels), len(part.x), part.rows.columns.num_rows) == (6, 16, 16, 16)
    np.testing.assert_array_equal(part.labels, known.labels[8:24])
    bites = part.x[part.rows.columns["fruit"].to_numpy() == "cherry", 0]
    assert bites.tolist() == [1, 1, 2, 2]  # those before


def test_a_request_is_as_good_as_its_best_row(tmp_path: Path, system: AnySystem) -> None:
    log, journal = lived(tmp_path, system)
    log.close()
    labels, _ = journal.labels(10 * DAY, system.label_delay)
    np.testing.assert_array_equal(labels[:24], [1, 0, 0] * 8)
    told = Bite(event_id="b", event_timestamp=0, ask=f"ask-{9 * DAY + 3_600_000_012}", fruit="date")
    journal.tell([told, told], [Logged(position=99, created_timestamp=10 * DAY + i) for i in range(2)])
    assert (journal.told[28], journal.told_at[28]) == (1.0, 10 * DAY)


def test_a_journal_can_be_read_back(tmp_path: Path, system: AnySystem) -> None:
    log, kept = lived(tmp_path, system)
    with log:
        read = Journal.read(system, log, 0)
    np.testing.assert_array_equal(read.x, kept.x)
    for which in ([0], [3, 4, 5], [27]):
        (rows, x), (again, same) = kept.seen(which), read.seen(which)
        assert rows.columns.to_pydict() == again.columns.to_pydict()
        np.testing.assert_array_equal(x, same)


def test_before_there_is_a_model_another_one_answers_and_hears(tmp_path: Path, system: AnySystem) -> None:
    world = Market([(DAY, "ann")])
    with EventLog(tmp_path / "log.db", SimulatedClock(0), system.logged, sync=lambda file: None) as log:
        answers = ByModel(system, Stall(()))
        said = [
            reply.answer.fruit
            for batch in live(system, world, log, answers, (0, 2 * DAY), batch=None, progress=Progress(quiet=True))
            for _, reply in batch
        ]
    assert said == [("apple", "banana", "cherry")]


def test_live_models_hear_what_the_log_is_told_and_a_new_one_all_of_it(tmp_path: Path, system: AnySystem) -> None:
    def delivery(name: str) -> Delivery:
        return Delivery(event_id=f"d-{name}", event_timestamp=0, fruit=name)

    said: list[str] = []
    first, second = Stall(()), Stall(())

    class Now:
        current = View(routing=Routing("a", Traffic(), b""), models={"a": Loaded("a", first, "")})

    with EventLog(tmp_path / "log.db", SimulatedClock(0), system.logged, sync=lambda file: None) as log:
        log.append([delivery("apple")])
        follower = following.Follower(system, log, said.append)
        follower.adopt(first)
        assert first.stock == ["apple"]
        log.append([delivery("banana")])
        follower.step(Now)  # type: ignore[arg-type]
        assert first.stock == ["apple", "banana"]
        follower.adopt(second)
        assert second.stock == ["apple", "banana"]


def test_one_model_that_cannot_hear_is_said_once_and_told_again(tmp_path: Path, system: AnySystem) -> None:
    said: list[str] = []

    class Deaf(Stall):
        is_deaf = True

        def hear(self, events: pa.Table) -> None:
            if self.is_deaf:
                raise ValueError("too loud")
            super().hear(events)

    model = Deaf(())

    class Now:
        current = View(routing=Routing("a", Traffic(), b""), models={"a": Loaded("a", model, "")})

    with EventLog(tmp_path / "log.db", SimulatedClock(0), system.logged, sync=lambda file: None) as log:
        log.append([Delivery(event_id="d", event_timestamp=0, fruit="apple")])
        follower = following.Follower(system, log, said.append)
        for _ in range(3):
            follower.try_step(Now)  # type: ignore[arg-type]
        model.is_deaf = False
        follower.try_step(Now)  # type: ignore[arg-type]
    assert model.stock == ["apple"]
    assert said == [
        f"{system.name}: ValueError('too loud')",
        f"{system.name}: versions hear what is new again",
    ]
