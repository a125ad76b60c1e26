"""Outcomes that name no request: what was sold in a shop on a day meets every forecast of that shop and day."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.clock import DAY, HOUR, SimulatedClock
from common.data.log import EventLog
from common.data.snapshots import Snapshots
from common.errors import BadDefinition
from common.features.online.sqlite import SqliteStore
from common.features.view import Aggregation, FeatureView
from common.lifecycle import faults, training
from common.lifecycle.journal import NEVER, Journal
from common.lifecycle.parity import parity
from common.lifecycle.simulation import ByService, live
from common.lifecycle.training import Snapshot
from common.lifecycle.watch import Watch, Watching
from common.monitoring.quality import LabelHabits, Told, labels_health
from common.progress import Progress
from common.schema import Event, Logged, arrow_schema
from common.serving.service import NOTHING, Reply, Service, fixed
from common.system import Answer, AnySystem, Arrival, ManyRows, Outcome, Rows, Surprising, find, names

AHEAD = 3  # days
DAYS = 12
KNOWN = np.array([True, True, False])  # the third day ahead is not to be learned from


class Check(Event):
    shop: str
    day: int


class Sold(Event):
    shop: str
    day: int
    units: float


class Plan(Answer):
    most: float | None = None  # units; None: nothing was forecast


RECENT = FeatureView(
    name="recent", source=Sold, entity=("shop",),
    aggregations=tuple(
        Aggregation(name=f"{kind}{delay}", kind=kind, column="units", window=4 * DAY, delay=delay * DAY)
        for kind in ("sum", "mean", "last") for delay in (1, 2)
    ),
)  # fmt: skip


def rows_of(ids: Sequence[str], shops: Sequence[str], days: Sequence[int]) -> Rows:
    n = len(ids)
    columns = {
        "event_id": pa.array(np.repeat(np.array(ids, object), AHEAD), pa.string()),
        "shop": pa.array(np.repeat(np.array(shops, object), AHEAD), pa.string()),
        "day": pa.array(np.repeat(np.array(days, np.int64), AHEAD) + np.tile(np.arange(AHEAD), n)),
        "ahead": pa.array(np.tile(np.arange(AHEAD), n)),
        "known": pa.array(np.tile(KNOWN.astype(float), n)),
    }
    return Rows(pa.table(columns), AHEAD * np.arange(n + 1))


class Planner:
    """Forecasts what was sold last."""

    def rows(self, requests: Sequence[Check]) -> Rows:
        return rows_of(*zip(*[(r.event_id, r.shop, r.day) for r in requests], strict=True))

    def predict(self, requests: Sequence[Check], rows: Rows, x: np.ndarray) -> Sequence[float]:
        return np.nan_to_num(x[rows.offsets[:-1], -2]).tolist()  # type: ignore[no-any-return]

    def save(self, folder: Path) -> None:
        raise AssertionError


def replay(asked: pa.Table, tables: Mapping[str, pa.Table]) -> Rows:
    return rows_of(*(asked[name].to_pylist() for name in ("event_id", "shop", "day")))


def was_above(plan: Plan, sold: Sold) -> float | None:
    return None if plan.most is None else float(sold.units > plan.most)


def chain(silence: float | None = None) -> AnySystem:
    many: ManyRows[float] = ManyRows(
        key="ahead", seen="known", replay=replay, kept=lambda p: range(AHEAD), joined=("shop", "day"), watched=was_above
    )
    return replace(
        find("systems", names("systems")[0]),
        request=Check, answer=Plan, events=(Check, Sold), views=(RECENT,), on_demand=(), monitors=(),
        outcome=Outcome(source=Sold, request=None, value="units", silence=silence), label_delay=4 * DAY,
        early_delay=2 * DAY, hides=lambda plan: plan.most == 66.0, redact=lambda check: check,
        unit=lambda check: check.shop, score=lambda p: 0.1, hears=None, before=None, reuse=0,
        decide=lambda check, p, luck: Plan(most=p + 1.0), degraded=(lambda check, luck: Plan(),),
        many=many,
    )  # fmt: skip


@pytest.fixture
def system() -> AnySystem:
    return chain()


def check(shop: str, day: int, at: int | None = None) -> Arrival:
    at = day * DAY + 8 * HOUR if at is None else at
    return Arrival(at, Check(event_id=f"{shop}{day}@{at}", event_timestamp=at, shop=shop, day=day))


def sold(shop: str, day: int, units: float, at: int | None = None) -> Arrival:
    """Told the next morning."""
    at = (day + 1) * DAY + 6 * HOUR if at is None else at
    return Arrival(at, Sold(event_id=f"{shop}{day}@{at}", event_timestamp=day * DAY, shop=shop, day=day, units=units))


class Script:
    """A world that tells what is written."""

    def __init__(self, arrivals: Sequence[Arrival]) -> None:
        self._waiting = sorted(arrivals, key=lambda arrival: arrival.at)

    def arrivals(self, until: int) -> list[Arrival]:
        now = [a for a in self._waiting if a.at < until]
        self._waiting = [a for a in self._waiting if a.at >= until]
        return now

    def react(self, answered: Any) -> None: ...


HAPPENED = [
    *(check(shop, day) for shop in "ab" for day in range(DAYS)),
    *(sold(shop, day, (day * 7 + ord(shop)) % 10) for shop in "abc" for day in range(DAYS) if (shop, day) != ("a", 3)),
    check("a", 5, 5 * DAY + 12 * HOUR),  # looked at twice
    sold("a", 3, 50.0, 6 * DAY),  # late
    sold("b", 2, 70.0, 5 * DAY),  # corrected
    sold("b", 4, 80.0, 11 * DAY),  # corrected too late
    sold("a", 7, 1.0, 7 * DAY),  # told before anybody asked
]


def lived(folder: Path, system: AnySystem) -> tuple[EventLog, Journal]:
    world: Any = Script(HAPPENED)
    journal = Journal(system)
    log = EventLog(folder / "log.db", SimulatedClock(0), system.logged, sync=lambda file: None)
    store = SqliteStore(folder / "online.db", system.views)
    answers = ByService(Service(system, fixed("v1", Planner()), store, now=lambda: 0), log)
    span = (0, (DAYS + 1) * DAY)
    for _ in live(system, world, log, answers, span, batch=64, progress=Progress(quiet=True), journal=journal):
        pass
    store.close()
    return log, journal


def test_a_system_says_either_how_outcomes_name_requests_or_how_they_meet_rows(system: AnySystem) -> None:
    with pytest.raises(BadDefinition, match="request: must be None where many.joined is given, and only there"):
        replace(system, many=None)
    with pytest.raises(BadDefinition, match="request: must be None"):
        replace(system, outcome=replace(system.outcome, request="event_id"))


def test_an_outcome_labels_the_rows_of_its_shop_and_day_whoever_asked(tmp_path: Path, system: AnySystem) -> None:
    log, _ = lived(tmp_path, system)
    with log:
        snapshot = training.take(system, log, Snapshots(tmp_path / "snapshots"))
        known = training.examples(system, snapshot)
        assert parity(system, log, {"v1": Planner()}).holds
    told = {(e.shop, e.day): e.units for _, e in sorted(HAPPENED, key=lambda a: a.at) if isinstance(e, Sold)}
    rows, young = known.rows.columns, known.as_of > snapshot.at - system.label_delay
    keys = zip(rows["shop"].to_pylist(), rows["day"].to_pylist(), strict=True)
    wanted = np.array([told.get(key, np.nan) for key in keys])
    wanted[np.repeat(young, AHEAD) | ~np.tile(KNOWN, len(known))] = np.nan
    np.testing.assert_array_equal(known.labels, wanted)
    assert 30 < np.isfinite(wanted).sum() < 60
    np.testing.assert_array_equal(known.weights, np.isfinite(wanted))
    assert told["b", 4] == 80.0, "the last word counts, however late"


def logged(kind: type[Event], rows: Sequence[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), pa.schema([*arrow_schema(kind), *arrow_schema(Logged)]))


outcomes = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 6), st.floats(0, 9)), max_size=12)
checks = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.integers(0, 9)), max_size=8)


@settings(max_examples=40, deadline=None)
@given(checks, outcomes, st.sampled_from([None, 0.0]))
def test_labels_are_those_of_a_plain_loop_over_rows(
    asked: list[tuple[str, int, int]], said: list[tuple[str, int, float]], silence: float | None
) -> None:
    """asked: shop, day, day on which it was logged; some answers hide what becomes of it."""
    system = chain(silence)
    asked = sorted(asked, key=lambda one: one[2])
    table = logged(Check, [
        {"event_id": str(i), "event_timestamp": 0, "shop": shop, "day": day, "position": i,
         "created_timestamp": at * DAY}
        for i, (shop, day, at) in enumerate(asked)
    ])  # fmt: skip
    told = logged(Sold, [
        {"event_id": str(i), "event_timestamp": 0, "shop": shop, "day": day, "units": units, "position": 99 + i,
         "created_timestamp": 9 * DAY}
        for i, (shop, day, units) in enumerate(said)
    ])  # fmt: skip
    answered = pa.table({
        "request_id": [str(i) for i in range(len(asked))], "hidden": [i % 3 == 2 for i in range(len(asked))],
        "propensity": [0.5] * len(asked),
    })  # fmt: skip
    snapshot = Snapshot({"Check": table, "Sold": told, "Answered": answered}, {}, 999, 10 * DAY)
    rows = replay(table, {})
    labels, weights = training._each(system, snapshot, table, rows)
    keys = zip(rows.owner.tolist(), *(rows.columns[name].to_pylist() for name in ("shop", "day")), strict=True)
    for row, (i, shop, day) in enumerate(keys):
        mine = [units for of, at, units in said if (of, at) == (shop, day)]
        label = mine[-1] if mine else np.nan if silence is None else silence
        if asked[i][2] > 6 or i % 3 == 2 or not KNOWN[row % AHEAD]:
            label = np.nan
        np.testing.assert_array_equal(labels[row], label)
        assert weights[row] == (0.0 if np.isnan(label) else 2.0)


def test_a_request_is_watched_by_what_an_outcome_of_its_own_day_says_of_its_answer(
    tmp_path: Path, system: AnySystem
) -> None:
    log, journal = lived(tmp_path, system)
    log.close()
    place = {event_id: row for row, event_id in enumerate(journal.table["event_id"].to_pylist())}

    def told(event_id: str) -> tuple[float, int]:
        return journal.told[place[event_id]], journal.told_at[place[event_id]]

    most = {name: journal.answers[row].most for name, row in place.items()}  # type: ignore[attr-defined]
    name = f"b1@{DAY + 8 * HOUR}"
    assert told(name) == (float((7 + ord("b")) % 10 > most[name]), 2 * DAY + 6 * HOUR)
    assert told(f"a3@{3 * DAY + 8 * HOUR}") == (1.0, 6 * DAY), "late"
    assert told(f"b2@{2 * DAY + 8 * HOUR}") == (1.0, 5 * DAY), "corrected in time"
    assert told(f"b4@{4 * DAY + 8 * HOUR}")[1] == 5 * DAY + 6 * HOUR, "corrected too late"
    assert told(f"a5@{5 * DAY + 8 * HOUR}")[1] == NEVER, "somebody looked again"
    assert told(f"a5@{5 * DAY + 12 * HOUR}")[1] == 6 * DAY + 6 * HOUR
    assert told(f"a7@{7 * DAY + 8 * HOUR}")[1] == 8 * DAY + 6 * HOUR, "not what was said before"
    assert len(journal.heard) == sum(isinstance(e, Sold) for _, e in HAPPENED), "each of them was heard"
    strangers = [h for h in journal.heard if h.row < 0]
    assert len(strangers) == DAYS + 1, "nobody asked for shop c, nor yet for the seventh day"
    assert all(np.isnan(h.value) for h in strangers)


def test_a_journal_that_is_read_back_has_heard_the_same(tmp_path: Path, system: AnySystem) -> None:
    log, kept = lived(tmp_path, system)
    with log:
        read = Journal.read(system, log, 0)
        part = Journal.read(system, log, 4 * DAY)
    assert (read.told_at, [h for h in read.heard if h.row >= 0]) == (
        kept.told_at,
        [h for h in kept.heard if h.row >= 0],
    )
    np.testing.assert_array_equal(read.told, kept.told)
    np.testing.assert_array_equal(part.told, kept.told[8:])
    assert part.told_at == kept.told_at[8:]


def test_without_watched_an_outcome_says_it_itself(system: AnySystem) -> None:
    many: Any = system.many
    journal = Journal(replace(system, many=replace(many, watched=None)))
    asked(journal, Plan(), 1)
    for units in (1.0, 0.0):
        tell(journal, [(1, units)])
        assert journal.told == [units], "the last word"


def asked(journal: Journal, plan: Plan, *days: int) -> None:
    for day in days:
        at = day * DAY
        reply = Reply(plan, "v", "champion", 1.0, None, NOTHING, (), score=0.1, rows=rows_of([], [], []).columns)
        event = Check(event_id=f"{day}", event_timestamp=at, shop="a", day=day)
        journal.ask([event], [Logged(position=10 * day, created_timestamp=at)], [reply])


def tell(journal: Journal, said: Sequence[tuple[int, float]], later: int = 1) -> None:
    for day, units in said:
        event = sold("a", day, units).event
        journal.tell([event], [Logged(position=10 * (day + later) + 5, created_timestamp=(day + later) * DAY)])


def test_what_says_nothing_of_an_answer_is_no_label_although_silence_would_be_one() -> None:
    journal = Journal(chain(silence=0.0))
    asked(journal, Plan(), 1)
    asked(journal, Plan(most=5.0), 2, 3)
    tell(journal, [(1, 9.0), (2, 9.0)])
    labels, weights = journal.labels(20 * DAY, 4 * DAY)
    np.testing.assert_array_equal(labels, [np.nan, 1.0, 0.0])
    assert weights.tolist() == [0.0, 1.0, 1.0]


def test_outcomes_that_say_nothing_are_heard_and_neither_silence_nor_a_flood(system: AnySystem) -> None:
    """A fortnight of forecasts, then a week in which a rule answered: nothing is wrong with the outcomes."""
    journal, rng = Journal(system), np.random.default_rng(0)
    for day in range(1, 22):
        asked(journal, Plan(most=5.0) if day < 15 else Plan(), day)
        if day > 1:
            tell(journal, [(day - 1, float(rng.choice([3.0, 9.0])))])
        for i in range(9):  # shops that nobody asks for
            event = sold("z", 100 * day + i, 1.0).event
            journal.tell([event], [Logged(position=10 * day + 6, created_timestamp=day * DAY + 1)])
    watch = Watch(journal, 2 * DAY, "v", slice(0, 0), np.empty(0), Watching())
    days = [watch._told(day * DAY, (day + 1) * DAY) for day in range(2, 15)]
    assert [len(told.value) for told in days] == [1] * 13
    assert all(told.known.all() and told.due == 1 for told in days)
    habits = LabelHabits.fit(days)
    week = watch._told(16 * DAY, 21 * DAY + 2)
    assert np.isnan(week.value).all()
    assert np.isnan(week.score).all()
    assert [flaw for flaw in labels_health(habits, week) if flaw.exceeds] == []
    assert watch._random(20 * DAY)[0].ratio is not None
    assert LabelHabits.fit([week] * 7).positive.n == 0, "of what only such outcomes are known of"


def test_what_was_sold_says_of_another_answer_what_it_would_have_said(system: AnySystem) -> None:
    journal = Journal(system)
    asked(journal, Plan(most=5.0), 1, 2, 3, 4)
    tell(journal, [(1, 9.0), (2, 9.0), (3, 3.0)])
    others = [Plan(most=10.0), Plan(most=1.0), None, Plan(most=1.0)]
    np.testing.assert_array_equal(journal.retold(slice(0, 4), others), [0.0, 1.0, np.nan, np.nan])


def test_surprise_is_measured_against_what_the_champion_would_have_answered(system: AnySystem) -> None:
    """In the weeks before it something else answered, which was wrong every day; the champion would have been right."""
    journal = Journal(replace(system, surprise=Surprising(below=(1.0,), dispersion=1.0)))
    for day in range(1, 61):
        asked(journal, Plan(most=5.0), day)
        if day > 1:
            tell(journal, [(day - 1, 9.0)])
    rows, scores = slice(0, len(journal)), np.full(len(journal), 0.1)
    would = (np.arange(len(journal)) % 10 == 0).astype(float)
    taken, retold = (
        Watch(journal, 62 * DAY, "v", rows, scores, Watching(), told=told)._below for told in (None, would)
    )  # fmt: skip
    assert taken[0].ratio > 9 > 3 > retold[0].ratio
    unknown = np.where(np.arange(len(journal)) < 30, np.nan, would)
    half = Watch(journal, 62 * DAY, "v", rows, scores, Watching(), told=unknown)._below
    assert half[0].ratio > retold[0].ratio / 2, "days of which nothing is known are not days without a positive"


def test_values_that_are_missing_are_left_out_where_values_are_judged() -> None:
    def told(*values: float) -> Told:
        n, zero = len(values), np.zeros(len(values), np.int64)
        value = np.array(values)
        return Told(
            request=np.arange(n), known=np.ones(n, bool), asked=zero, dated=zero, heard=zero, value=value,
            score=np.full(n, np.nan), is_even=np.ones(n, bool), due=n,
        )  # fmt: skip

    nan = np.nan
    habits = LabelHabits.fit([told(1, 0, nan, nan)] * 10)
    assert (habits.positive.usual, habits.positive.n, habits.heard.usual) == (0.5, 20, 1.0)
    frozen = {flaw.column: flaw.share for flaw in labels_health(habits, told(*[1] * 40, *[nan] * 40))}
    assert (frozen["value"], frozen["labels"]) == (1.0, 0.0)


def faulty(system: AnySystem, kind: str) -> list[Event]:
    world: Any = faults.FaultyWorld(system, Script(HAPPENED), kind, 4 * DAY)
    return [arrival.event for day in range(DAYS + 2) for arrival in world.arrivals(day * DAY)]


def test_outcomes_at_random_are_values_of_other_outcomes(system: AnySystem) -> None:
    right, wrong = faulty(system, "missing_feature"), faulty(system, "random_labels")
    assert [e.event_id for e in right] == [e.event_id for e in wrong]
    since = [(a, b) for a, b in zip(right, wrong, strict=True) if isinstance(a, Sold) and a.day >= 4]
    assert all(b.model_copy(update={"units": a.units}) == a for a, b in since)  # type: ignore[attr-defined]
    assert {b.units for _, b in since} <= {a.units for a in right if isinstance(a, Sold)}  # type: ignore[attr-defined]
    assert np.mean([a != b for a, b in since]) > 0.5
    assert len({b.units for _, b in since}) > 3  # type: ignore[attr-defined]


def test_a_flood_tells_twice_what_became_of_a_share_of_the_requests(
    system: AnySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "FLOOD", 0.5)
    right, wrong = faulty(system, "missing_feature"), faulty(system, "label_flood")
    twice = [e for e in wrong if e.event_id.startswith("flood-")]
    assert [e for e in wrong if e not in twice] == right
    for event in twice:
        original = next(e for e in right if f"flood-{e.event_id}" == event.event_id)
        assert Sold.model_validate(event.model_dump()) == original.model_copy(update={"event_id": event.event_id})
        assert (original.shop, original.day) != ("c", original.day)  # type: ignore[attr-defined]
    looked_at = [(e.shop, e.day) for e in right if isinstance(e, Check) and e.day >= 4]
    assert 0.2 < len(twice) / len(looked_at) < 0.8
    monkeypatch.setattr(faults, "FLOOD", 1.0)
    twice = [e for e in faulty(system, "label_flood") if e.event_id.startswith("flood-")]
    assert sorted((e.shop, e.day) for e in twice) == sorted(set(looked_at)), "not thrice"  # type: ignore[attr-defined]


def test_where_that_it_came_is_what_an_outcome_says_random_ones_are_about_a_day_somebody_asked_for() -> None:
    examples = (HAPPENED[0].event, next(e for _, e in HAPPENED if isinstance(e, Sold)))
    bare = Outcome(source=Sold, request=None, value=None, silence=0.0)
    said = faulty(replace(chain(), outcome=bare, examples=examples), "random_labels")
    alleged = [e for e in said if isinstance(e, Sold) and e.event_id.startswith("flood-")]
    looked_at = {(e.shop, e.day) for e in said if isinstance(e, Check)}
    assert alleged
    assert {(e.shop, e.day) for e in alleged} <= looked_at
    assert all(Sold.model_validate(vars(e)) == e for e in alleged)
