"""One micro-batch: each request gets its own answer, from what was known of it, whatever befalls its neighbours."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import NotFound, Unavailable
from common.features.online import OnlineStore
from common.features.online.sqlite import SqliteStore
from common.features.view import Aggregation, FeatureView
from common.registry.registry import Traffic
from common.schema import Event, Logged, logged_table, to_table
from common.serving.live import Loaded, View
from common.serving.routing import Routing, uniform
from common.serving.service import Service, fixed, remember
from common.system import ANSWERED, Answer, AnySystem, Outcome, RowError, Rows, find, names

Stage = Literal["rows", "predict", "decide"]


class Visit(Event):
    user: str


class Said(Answer):
    count: float
    by: str


VIEW = FeatureView(
    name="user", source=Visit, entity=("user",), aggregations=(Aggregation(name="n", kind="count", window=100),)
)


class Counter:
    """Says how often a user came before; cannot say it of a user named bad, and stumbles over poison."""

    def __init__(self, by: str = "model", stage: Stage | None = None) -> None:
        self.by, self.stage, self.asked = by, stage, list[str]()

    def rows(self, requests: Sequence[Visit]) -> Rows:
        self._stumble("rows", requests)
        return Rows(to_table(Visit, requests), np.arange(len(requests) + 1))

    def predict(self, requests: Sequence[Visit], rows: Rows, x: np.ndarray) -> Sequence[tuple[str, float] | RowError]:
        self._stumble("predict", requests)
        self.asked += [request.user for request in requests]
        return [
            RowError("a bad user") if r.user == "bad" else (self.by, float(v[0]))
            for r, v in zip(requests, x, strict=True)
        ]

    def save(self, folder: Path) -> None:
        raise AssertionError

    def _stumble(self, stage: Stage, requests: Sequence[Visit]) -> None:
        if self.stage == stage and any("poison" in request.user for request in requests):
            raise ZeroDivisionError


def system(**changed: Any) -> AnySystem:
    return replace(
        find("systems", names("systems")[0]),
        request=Visit, answer=Said, events=(Visit,), views=(VIEW,), on_demand=(),
        decide=lambda visit, p, luck: Said(count=p[1], by=p[0]),
        degraded=(lambda visit, luck: Said(count=0.0, by="rule"),), unit=lambda visit: visit.user,
        score=lambda p: p[1], many=None,
        outcome=Outcome(source=Visit, request="event_id", value=None, silence=None), **changed,
    )  # fmt: skip


def visit(user: str, at: int) -> Visit:
    return Visit(event_id=f"{user}{at}", event_timestamp=at, user=user)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnlineStore]:
    """Ann came twice."""
    store = SqliteStore(tmp_path_factory.mktemp("online") / "online.db", [VIEW])
    past = [visit("ann", at) for at in (1, 2)]
    places = [Logged(position=at, created_timestamp=at) for at in (1, 2)]
    store.push({Visit: logged_table(Visit, past, places)}, 0, 2)
    yield store
    store.close()


def live(champion: Counter, *others: Counter, **said: Any) -> Callable[[], View]:
    """Versions named after their models."""
    models = {m.by: Loaded(m.by, m, "", {"user.n": 7.0}) for m in (champion, *others)}
    routing = Routing(champion.by, said.pop("traffic", Traffic()), b"")
    view = View(routing=routing, models=models, **{k: models[v] for k, v in said.items()})
    return lambda: view


def ask(service: Service[Any, Any, Any], *users: str, **said: Any) -> list[Any]:
    return service.answer([visit(user, 3) for user in users], np.full(len(users), 3), **said)


def test_a_row_that_cannot_be_scored_fails_alone_and_says_why(store: OnlineStore) -> None:
    replies = ask(Service(system(), fixed("v1", Counter()), store), "bob", "bad", "ann")
    assert [(r.answer.count, r.answer.by, r.version, r.degraded) for r in replies] == [
        (0.0, "model", "v1", None),
        (0.0, "rule", "rule", "rule: a bad user"),
        (2.0, "model", "v1", None),
    ]
    assert [r.features.tolist() for r in replies] == [[[0.0]], [[0.0]], [[2.0]]]
    assert {r.positions for r in replies} == {(2,)}


@given(poisoned=st.lists(st.booleans(), min_size=1, max_size=9), stage=st.sampled_from(["rows", "predict", "decide"]))
def test_one_poisoned_row_fails_alone(store: OnlineStore, poisoned: list[bool], stage: Stage) -> None:
    def decide(visit: Visit, p: tuple[str, float], luck: float) -> Said:
        if stage == "decide" and "poison" in visit.user:
            raise ZeroDivisionError
        return Said(count=p[1], by=p[0])

    of = replace(system(), decide=decide)
    users = [f"poison{i}" if bad else f"user{i}" for i, bad in enumerate(poisoned)]
    replies = ask(Service(of, fixed("v1", Counter(stage=stage)), store), *users)
    assert [r.answer.by for r in replies] == ["rule" if bad else "model" for bad in poisoned]
    assert all(r.degraded == "rule: v1 failed: ZeroDivisionError" for r in replies if r.version == "rule")


def test_where_the_champion_fails_the_previous_version_answers(store: OnlineStore) -> None:
    versions = live(Counter("new", "predict"), Counter("old"), previous="old")
    bad, good = ask(Service(system(), versions, store), "poison", "ann")
    assert (bad.version, bad.role, bad.degraded) == ("old", "previous", "previous model: new failed: ZeroDivisionError")
    assert (good.version, good.role, good.degraded, good.answer.count) == ("new", "champion", None, 2.0)


def test_without_its_features_a_model_answers_from_what_was_usual(store: OnlineStore) -> None:
    def away(read: Callable[[], Any]) -> Any:
        raise Unavailable("redis: is away")

    (reply,) = ask(Service(system(), live(Counter()), store), "ann", guard=away)
    assert (reply.answer.count, reply.answer.by, reply.positions) == (7.0, "model", ())
    assert reply.degraded == "default features: online features cannot be had in time"


def test_features_that_are_older_than_they_may_be_are_not_used(store: OnlineStore) -> None:
    (reply,) = ask(Service(system(), live(Counter()), store), "ann", at_least=3)
    assert reply.answer.count == 7.0
    assert reply.degraded == "default features: online features are behind the log"


def test_without_a_version_the_rule_answers(store: OnlineStore) -> None:
    (reply,) = ask(Service(system(), View, store), "ann")
    assert (reply.version, reply.role, reply.degraded) == ("rule", "rule", "rule: no version is live")


def test_each_unit_is_answered_by_its_version_from_one_reading(store: OnlineStore) -> None:
    traffic = Traffic(arms={"a": 0.3, "b": 0.3})
    service = Service(system(), live(Counter("c"), Counter("a"), Counter("b"), traffic=traffic), store)
    reads = list[int]()

    def once(read: Callable[[], Any]) -> Any:
        reads.append(1)
        return read()

    users = [f"user{i}" for i in range(60)] + ["ann"]
    replies = ask(service, *users, guard=once)
    routing = Routing("c", traffic, b"")
    assert [r.answer.by for r in replies] == [routing.route(user).version for user in users]
    assert {r.answer.by for r in replies} == {"a", "b", "c"}
    assert len(reads) == 1
    assert replies[-1].answer.count == 2.0
    assert {(r.version, round(r.share, 9)) for r in replies} == {("a", 0.3), ("b", 0.3), ("c", 0.4)}


def test_a_pinned_version_answers_and_one_that_is_not_live_is_refused(store: OnlineStore) -> None:
    service = Service(system(), live(Counter("c"), Counter("old"), previous="old"), store)
    (reply,) = ask(service, "ann", pinned="old")
    assert (reply.version, reply.role, reply.degraded) == ("old", "pinned", None)
    with pytest.raises(NotFound, match="version: must be one of c, old"):
        ask(service, "ann", pinned="gone")


def test_a_shadow_answers_nobody_who_asks_for_it_by_name(store: OnlineStore) -> None:
    view = live(Counter("c"), Counter("s"))()
    service = Service(system(), lambda: replace(view, shadow=(view.models["s"],)), store)
    with pytest.raises(NotFound, match="version: must be one of c$"):
        ask(service, "ann", pinned="s")


def test_an_equal_request_with_equal_features_is_not_predicted_again(store: OnlineStore) -> None:
    model, other = Counter("model"), Counter("other")
    now = live(model)()
    service = Service(system(reuse=1_000_000_000), lambda: now, store)
    first = ask(service, "ann", "bob", "bad")
    again = ask(service, "bob", "bad", "new", "ann")
    assert model.asked == ["ann", "bob", "bad", "bad", "new"]  # an error is not kept
    assert [again[3].answer, again[0].answer] == [first[0].answer, first[1].answer]
    now = live(other)()
    assert ask(service, "ann")[0].answer.by == "other"
    now = live(model)()
    ask(service, "ann")
    assert model.asked[-1] == "ann", "dropped with its version"


def test_a_system_that_does_not_allow_it_reuses_nothing(store: OnlineStore) -> None:
    model = Counter()
    service = Service(system(), live(model), store)
    ask(service, "ann")
    ask(service, "ann")
    assert model.asked == ["ann", "ann"]


def test_a_shadow_sees_the_features_of_the_answer_and_nobody_hears_of_it(store: OnlineStore) -> None:
    champion, shadow = Counter("champion"), Counter("shadow")
    service = Service(system(), live(champion), store)
    replies = ask(service, "ann", "bad")
    said = service.shadow(Loaded("s", shadow, "", {}), [visit("ann", 3), visit("bad", 3)], replies)
    assert [(s.request_id, s.version, s.answer) for s in said] == [
        ("ann3", "s", Said(count=2.0, by="shadow").model_dump_json())
    ]
    assert [r.answer.by for r in replies] == ["champion", "rule"]


def test_the_draw_of_a_request_is_the_same_for_a_retry_and_unknown_without_the_key(store: OnlineStore) -> None:
    drawn = list[float]()

    def decide(visit: Visit, p: tuple[str, float], luck: float) -> Said:
        drawn.append(luck)
        return Said(count=0.0, by="model")

    of = replace(system(), decide=decide)
    for key in (b"secret", b"secret", b""):
        ask(Service(of, live(Counter()), store, key), "ann")
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[2] == uniform(b"", "let through", "ann3")


def test_an_answer_is_remembered_with_its_version_share_features_and_their_positions(store: OnlineStore) -> None:
    (reply,) = ask(Service(system(hides=lambda answer: True), live(Counter()), store), "ann")
    kept = remember(system(hides=lambda answer: True), visit("ann", 3), replace(reply, share=0.1), 9)
    assert kept == type(kept).model_validate(kept.model_dump())
    assert (kept.event_id, kept.event_timestamp, kept.request_id) == (f"ann3{ANSWERED}", 9, "ann3")
    assert (kept.version, kept.role, kept.share, kept.hidden) == ("model", "champion", 0.1, True)
    assert (kept.features, kept.positions) == ((2.0,), (2,))


def test_what_no_number_can_say_is_remembered_as_not_known(store: OnlineStore) -> None:
    (reply,) = ask(Service(system(), live(Counter()), store), "ann")
    kept = remember(system(hides=bool), visit("ann", 3), replace(reply, features=np.array([[np.nan, np.inf, 1.0]])), 9)
    assert kept.features == (None, None, 1.0)


def test_an_answer_says_what_its_version_scored_and_how_long_that_took(store: OnlineStore) -> None:
    ticks = iter(range(0, 1_000, 10))
    service = Service(system(), live(Counter()), store, now=lambda: next(ticks))
    (reply,) = ask(service, "ann")
    assert (reply.routed, reply.fault, reply.score) == (None, None, 2.0)
    assert reply.took == 20, "to name its rows, and to predict"
    kept = remember(system(hides=lambda answer: False), visit("ann", 3), reply, 9)
    assert (kept.routed, kept.fault, kept.took, kept.score) == ("model", None, 20, 2.0)


def test_of_a_version_that_fails_it_is_said_that_it_was_to_answer_and_did_not(store: OnlineStore) -> None:
    view = live(Counter("c", "predict"), Counter("old"), previous="old")
    good, bad = ask(Service(system(), view, store), "ann", "poison")
    assert (good.version, good.routed, good.fault) == ("c", None, None)
    assert (bad.version, bad.routed, bad.fault, bad.score) == ("old", "c", "failed", 0.0)
    kept = remember(system(hides=lambda answer: False), visit("poison", 3), bad, 9)
    assert (kept.version, kept.routed, kept.fault) == ("old", "c", "failed")
    alone = live(Counter("c", "predict"), Counter("old", "predict"), previous="old")
    (last,) = ask(Service(system(), alone, store), "poison")
    assert (last.version, last.routed, last.fault, last.score) == ("rule", "c", "failed", None)


def test_a_version_that_has_no_answer_or_one_without_a_number_misses_it_and_the_rule_answers(
    store: OnlineStore,
) -> None:
    class Unsure(Counter):
        def predict(self, requests: Any, rows: Rows, x: np.ndarray) -> Any:
            said = super().predict(requests, rows, x)
            return [(self.by, np.nan) if r.user == "ann" else p for r, p in zip(requests, said, strict=True)]

    ann, bad, bob = ask(Service(system(), live(Unsure("c")), store), "ann", "bad", "bob")
    for reply, why in ((ann, "rule: c answered with no number"), (bad, "rule: a bad user")):
        assert (reply.version, reply.routed, reply.fault, reply.score) == ("rule", "c", "missing", None)
        assert (reply.degraded, reply.answer.by) == (why, "rule")
        assert reply.features.size == 1
    assert (bob.version, bob.fault, bob.score) == ("c", None, 0.0)
