"""What keeps a model good: it watches, alarms, retrains, tries by canary, and learns from nothing that is not right.

The world is a shop that is asked a few hundred times a day; who is bad can be seen by the amount, until it drifts.
"""

import atexit
import copy
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import pytest
from numpy.typing import NDArray

from common.clock import DAY, HOUR
from common.errors import BadSetting
from common.features.view import Aggregation, Array, FeatureView, OnDemand
from common.lifecycle import faults
from common.lifecycle.evidence import Observation
from common.lifecycle.loop import Loop, Policy
from common.lifecycle.rollout import Steps
from common.lifecycle.simulation import Simulation
from common.lifecycle.story import story
from common.lifecycle.watch import Watching
from common.monitoring.alerts import Alert
from common.monitoring.quality import LabelHabits
from common.progress import Progress
from common.registry.gates import CHAMPION, Gate
from common.registry.registry import Traffic
from common.schema import Event, to_table
from common.serving.routing import uniform
from common.serving.service import Reply
from common.system import (
    Answer,
    AnySystem,
    Arrival,
    BenchmarkResult,
    Examples,
    Losses,
    Monitor,
    Outcome,
    Params,
    Report,
    RowError,
    Rows,
    System,
)

START = 1_767_225_600_000_000  # us, a midnight
HISTORY = 56  # days
USERS, EACH = 500, 1  # requests of a user and day
BUCKETS = 8  # of amounts from 0 to 8
USUAL = np.array([0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.2, 0.5])  # P(bad) by bucket
DRIFTED = np.array([0.3, 0.3, 0.01, 0.01, 0.01, 0.01, 0.2, 0.5])
STOPPED = 0.35  # probability from which a request is stopped
CHECKED = 0.08  # and checked, which tells the truth
LET_THROUGH = 0.25
COST, TURNED_AWAY, CHECK = 10.0, 5.0, 1.0


class Order(Event):
    user: str
    amount: float


class Verdict(Event):
    order: str
    user: str
    bad: bool
    checked: bool = False


class Done(Answer):
    action: Literal["take", "check", "stop"]
    reasons: tuple[str, ...] = ()


def buckets(amount: Array) -> NDArray[np.int64]:
    return np.clip(np.nan_to_num(amount), 0, BUCKETS - 1).astype(np.int64)


class Shop:
    """A world: who asks and how much is drawn by hashing, so that nothing depends on how it is cut."""

    def __init__(self, seed: int, drift: str | None, days: int | None) -> None:
        self._seed, self._days = seed, HISTORY + 60 if days is None else days
        self.drift_at = START + int(drift.partition("@")[2]) * DAY if drift else START + 10_000 * DAY
        self._until = START
        self._pending: list[Arrival] = []

    def arrivals(self, until: int) -> Sequence[Arrival]:
        until = min(until, START + self._days * DAY)
        found = [self._order(slot) for slot in range(self._slot(self._until), self._slot(until))]
        told = [arrival for arrival in self._pending if arrival.at < until]
        self._pending = [arrival for arrival in self._pending if arrival.at >= until]
        self._until = until
        return sorted(found + told, key=lambda arrival: (arrival.at, arrival.event.event_id))

    def _slot(self, at: int) -> int:
        return -((START - at) * USERS * EACH // DAY)

    def _order(self, slot: int) -> Arrival:
        at = START + (slot * DAY) // (USERS * EACH)
        user, amount = self._draw(slot, "user"), self._draw(slot, "amount")
        order = Order(
            event_id=f"order-{slot}", event_timestamp=at, user=f"u{int(user * USERS)}", amount=BUCKETS * amount**2
        )
        return Arrival(at, order)

    def _draw(self, slot: int | str, what: str) -> float:
        return uniform(b"", f"{self._seed} {what}", str(slot))

    def _chances(self, orders: Sequence[Order]) -> Array:
        after = np.array([order.event_timestamp >= self.drift_at for order in orders], bool)
        at = buckets(np.array([order.amount for order in orders]))
        return np.where(after, DRIFTED[at], USUAL[at])

    def is_bad(self, orders: Sequence[Order]) -> NDArray[np.bool_]:
        drawn = np.array([self._draw(order.event_id, "bad") for order in orders])
        return drawn < self._chances(orders)

    def react(self, answered: Sequence[tuple[Order, Done]]) -> None:
        orders = [order for order, _ in answered]
        for (order, done), bad in zip(answered, self.is_bad(orders).tolist() if orders else (), strict=True):
            wait = self._draw(order.event_id, "wait")
            if done.action == "check":
                self._tell(order, bad, int((1 + 10 * wait) * HOUR), True)
            elif done.action == "take" and bad:
                self._tell(order, True, int((6 + 100 * wait**2) * HOUR), False)

    def _tell(self, order: Order, bad: bool, wait: int, checked: bool) -> None:
        verdict = Verdict(
            event_id=f"verdict-{order.event_id}", event_timestamp=order.event_timestamp, order=order.event_id,
            user=order.user, bad=bad, checked=checked,
        )  # fmt: skip
        self._pending.append(Arrival(max(order.event_timestamp + wait, self._until), verdict))

    def ceiling(self, requests: Sequence[Order]) -> Array:
        return self._chances(requests)

    def truth(self, requests: Sequence[Order], rows: Rows) -> Mapping[str, Array]:
        return {}

    def segments(self, requests: Sequence[Order]) -> Mapping[str, NDArray[np.bool_]]:
        return {}


VIEW = FeatureView(
    name="user", source=Order, entity=("user",),
    aggregations=(
        Aggregation(name="n", kind="count", window=7 * DAY),
        Aggregation(name="spent", kind="sum", column="amount", window=7 * DAY),
    ),
)  # fmt: skip
AMOUNT = OnDemand(name="size", inputs=("amount",), version=1, compute=lambda c: np.sqrt(c["amount"]))


@dataclass(frozen=True)
class Table:
    """P(bad) by bucket of the amount."""

    chances: tuple[float, ...]

    def rows(self, requests: Sequence[Order]) -> Rows:
        return Rows(to_table(Order, requests), np.arange(len(requests) + 1))

    def probability(self, x: Array) -> Array:
        """By the amount, and a trace of what is remembered, so that features matter to the score."""
        known = np.array(self.chances)[buckets(x[:, 2] ** 2)]
        return np.where(np.isnan(x[:, 2]), np.nan, known + 1e-6 * np.nan_to_num(x[:, 0]))

    def predict(self, requests: Sequence[Order], rows: Rows, x: Array) -> Sequence[float | RowError]:
        return [float(p) if np.isfinite(p) else RowError("no amount") for p in self.probability(x)]

    def save(self, folder: Path) -> None:
        (folder / "table.json").write_text(json.dumps(self.chances))


def fit(examples: Examples[Order], params: Params) -> Table:
    """On the newest two weeks: what is older is of the old ways."""
    known = (examples.weights > 0) & (examples.as_of >= examples.as_of[-1] - 14 * DAY)
    at = buckets(examples.x[known, 2] ** 2)
    n = np.bincount(at, examples.weights[known], BUCKETS)
    bad = np.bincount(at, examples.weights[known] * examples.labels[known], BUCKETS)
    return Table(tuple(((bad + 0.02) / (n + 1)).tolist()))


def load(folder: Path) -> Table:
    return Table(tuple(json.loads((folder / "table.json").read_text())))


def chosen(p: Array) -> NDArray[np.int64]:
    """0 take, 1 check, 2 stop."""
    return np.select([p >= STOPPED, p >= CHECKED], [2, 1], 0)


def prices(p: Array) -> Array:
    return np.stack([COST * p, np.full(len(p), CHECK), TURNED_AWAY * (1 - p)])


def evaluate(model: Table, examples: Examples[Order]) -> Report:
    known = examples.weights > 0
    p, y, w = model.probability(examples.x[known]), examples.labels[known], examples.weights[known]
    paid = prices(y)[chosen(p), np.arange(len(y))]
    sure = np.clip(p, 1e-6, 1 - 1e-6)
    loss = -np.where(y == 1, np.log(sure), np.log1p(-sure))
    found = {"cost": float(w @ paid / w.sum()), "log_loss": float(w @ loss / w.sum())}
    return Report(metrics=found, baselines={}, rows=int(known.sum()))


def decide(order: Order, p: float, luck: float) -> Done:
    action = ("take", "check", "stop")[int(chosen(np.array([p]))[0])]
    if action == "stop":
        lucky = luck < LET_THROUGH
        return Done(action="take" if lucky else "stop", propensity=LET_THROUGH if lucky else 1 - LET_THROUGH)
    return Done.model_validate({"action": action, "reasons": ("LARGE",) if action == "check" else ()})


def losses(orders: Sequence[Order], answers: Sequence[Done], p: Array) -> Losses:
    cost = prices(p)
    meant = [2 if a.propensity == LET_THROUGH else ("take", "check", "stop").index(a.action) for a in answers]
    return Losses(cost[meant, np.arange(len(p))], cost.min(axis=0))


def space(trial: optuna.Trial) -> Params:
    return {}


def benchmark(folder: Path | None) -> BenchmarkResult:
    raise NotImplementedError


def shop(**changed: Any) -> AnySystem:
    made: System[Order, float, Done] = System(
        name="shop", summary="stop bad orders", request=Order, answer=Done, events=(Order, Verdict), views=(VIEW,),
        on_demand=(AMOUNT,), world=Shop, drifts=("ways",), history=(START, START + HISTORY * DAY),
        validation_span=10 * DAY, test_span=14 * DAY, retrain_span=3 * DAY,
        outcome=Outcome(source=Verdict, request="order", value="bad", silence=0.0, is_even=lambda told: told.checked),
        hides=lambda done: done.action == "stop", label_delay=5 * DAY, early_delay=2 * DAY,
        space=space, params={}, objective="log_loss", fit=fit, load=load, score=lambda p: p, decide=decide,
        degraded=(lambda order, luck: Done(action="take"),), unit_of_loss="EUR", losses=losses,
        regret=lambda world, orders, answers: losses(orders, answers, world.ceiling(orders)),
        unit=lambda order: order.user, redact=lambda order: order, evaluate=evaluate,
        gates=(Gate("log_loss", 0.5, better="lower"),),
        retrain_gates=(Gate("log_loss", 1.0, better="lower", against=CHAMPION),),
        monitors=(
            Monitor(name="score", column="score", look_at="the model"),
            Monitor(name="orders", column="user.n", look_at="the shop"),
            Monitor(name="size", column="size", look_at="the prices"),
        ),
        routes=(),
        examples=(
            Order(event_id="o", event_timestamp=0, user="u", amount=1.0),
            Verdict(event_id="v", event_timestamp=0, order="o", user="u", bad=True),
        ),
        benchmark=benchmark,
    )  # fmt: skip
    return replace(made, **changed)


QUICK = Policy(watching=Watching(settle=10 * DAY))


@cache
def past() -> Simulation:
    """A shop to the end of its history, in a folder that is copied: it is the same whatever comes later."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    with Simulation(shop(), Path(folder.name), seed=0, days=1, progress=Progress(quiet=True)) as made:
        made.history()
    return made


@cache
def usual() -> LabelHabits:
    """How labels come in a shop in which nothing is wrong."""
    with tempfile.TemporaryDirectory() as folder, lived(Path(folder), days=10, policy=QUICK, is_known=False) as made:
        served(made, 10)
        habits = loop_of(made)._watch.habits
    assert habits is not None
    return replace(habits, heard=replace(habits.heard, usual=2 * habits.heard.usual))  # its drift brings many more


@contextmanager
def lived(
    folder: Path,
    *,
    days: int,
    drift: str | None = None,
    policy: Policy | None = None,
    is_known: bool = True,
    **changed: Any,
) -> Iterator[Simulation]:
    """A shop that has its first champion, which is watched, and if `is_known` how labels usually come."""
    before = past()
    shutil.copytree(before.folder, folder, dirs_exist_ok=True)
    with Simulation(shop(**changed), folder, seed=0, days=days, drift=drift, progress=Progress(quiet=True)) as made:
        world: Any = made.world._world if isinstance(made.world, faults.FaultyWorld) else made.world
        world._until, world._pending = before.world._until, list(before.world._pending)
        for name, value in vars(before.journal).items():
            if name != "system":
                setattr(made.journal, name, copy.copy(value))
        made.clock.advance(before.clock.now())
        made.train()
        made.watch()
        if policy is not None:
            of = made.loop
            assert of is not None
            made.loop = Loop(
                of.system, of.registry, of.live, of.log, of.journal, of.clock,
                policy=policy, say=lambda happened: None, progress=Progress(quiet=True),
            )  # fmt: skip
        if is_known:
            loop_of(made)._watch.habits = usual()
        yield made


def served(simulation: Simulation, until: int) -> list[Reply[Any]]:
    return [reply for batch in simulation.serve(until) for _, reply in batch]


def loop_of(simulation: Simulation) -> Loop:
    assert simulation.loop is not None
    return simulation.loop


def told(simulation: Simulation) -> list[tuple[float, str, str]]:
    return [((h.at - simulation.start) / DAY, h.kind, h.what) for h in loop_of(simulation).happened]


def kinds(simulation: Simulation) -> list[str]:
    return [kind for _, kind, _ in told(simulation)]


# A drift


@pytest.fixture(scope="module")
def drifted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    with lived(tmp_path_factory.mktemp("drifted"), days=23, drift="ways@2") as made:
        served(made, 23)
        yield made


def test_an_alarm_sets_off_retraining_and_what_clears_its_gates_becomes_a_canary_and_then_the_champion(
    drifted: Simulation,
) -> None:
    happened = told(drifted)
    assert [kind for _, kind, _ in happened][:2] == ["alarm", "retrained"]
    day, _, what = happened[0]
    assert what.startswith("LabelSurprise: ")
    assert 4 < day <= 2 + 5 + 2, "not before labels can tell"
    first = next(i for i, (_, kind, _) in enumerate(happened) if kind == "canary")
    rest = [kind for _, kind, _ in happened[first:] if kind != "cleared"]
    assert rest[:4] == ["canary", "advanced", "advanced", "promoted"]
    name = loop_of(drifted).happened[first].version
    promoted = next(h for h in loop_of(drifted).happened if h.kind == "promoted")
    assert promoted.version == name
    assert name in [row.became for row in drifted.registry.audit("shop") if row.what == "promote"]


def test_retraining_comes_again_every_week_since_the_labels_of_the_new_days_come_late(drifted: Simulation) -> None:
    days = [day for day, kind, _ in told(drifted) if kind == "retrained"]
    assert len(days) >= 2
    assert np.diff(days[:4]).tolist() == [7.0] * (len(days[:4]) - 1)


def test_the_alarm_is_cleared_by_the_champion_that_knows_the_new_ways(drifted: Simulation) -> None:
    happened = told(drifted)
    promoted = next(day for day, kind, _ in happened if kind == "promoted")
    cleared = next(day for day, kind, what in happened if kind == "cleared" and what.startswith("LabelSurprise"))
    assert promoted <= cleared <= promoted + 2
    regret = drifted.regret()
    by_day = (regret.paid - regret.least) / regret.requests
    assert by_day[-3:].mean() < 0.7 * by_day[3 : int(promoted)].mean()


def test_nothing_of_an_honest_canary_scores_otherwise_than_its_bundle(drifted: Simulation) -> None:
    assert "rolled back" not in kinds(drifted)


def test_a_candidate_is_judged_on_days_that_it_did_not_learn_from(drifted: Simulation) -> None:
    versions = {version.name: version for version in drifted.registry.versions("shop")}
    for h in loop_of(drifted).happened:
        if h.kind == "retrained" and h.version is not None:
            (_, learned), (judged, end) = (versions[h.version].lineage[part] for part in ("train", "test"))
            assert learned == judged
            assert end == h.at - drifted.system.early_delay


def test_the_same_seed_is_the_same_story_byte_for_byte(drifted: Simulation, tmp_path: Path) -> None:
    with lived(tmp_path, days=23, drift="ways@2") as again:
        served(again, 23)
        one, other = (json.dumps(story(s, "small", None), sort_keys=True) for s in (drifted, again))
    assert one == other


def test_a_candidate_that_misses_a_gate_is_rejected_and_never_answers(tmp_path: Path) -> None:
    impossible = (Gate("log_loss", 0.0, better="lower"),)
    with lived(tmp_path, days=9, drift="ways@1", retrain_gates=impossible) as made:
        replies = served(made, 9)
        assert [kind for kind in kinds(made) if kind in ("retrained", "rejected", "canary")] == [
            "retrained",
            "rejected",
        ]
        reason = next(what for _, kind, what in told(made) if kind == "rejected")
        assert reason.startswith("log_loss: must be <= 0, got ")
        assert len({reply.version for reply in replies}) == 1


def test_after_the_last_retraining_that_was_rejected_the_next_one_is_a_week_later(tmp_path: Path) -> None:
    impossible = (Gate("log_loss", 0.0, better="lower"),)
    with lived(tmp_path, days=16, drift="ways@1", policy=Policy(retrainings=1), retrain_gates=impossible) as made:
        served(made, 16)
        days = [day for day, kind, _ in told(made) if kind == "retrained"]
        assert len(days) == 2
        assert np.diff(days) == [7]


def test_an_alarm_about_the_champion_before_sets_off_no_retraining_of_the_new_one(tmp_path: Path) -> None:
    with lived(tmp_path, days=14, drift="ways@2", policy=Policy(retrainings=1)) as made:
        served(made, 14)
        happened = kinds(made)
        assert happened[-1] in ("promoted", "cleared")
        assert loop_of(made)._due == []
        assert happened.count("retrained") == 1


# Candidates


def candidate(simulation: Simulation, kind: str | None) -> str:
    """The champion again, which misbehaves once it is served."""
    registry = simulation.registry
    champion = registry.get("shop", registry.alias("shop", CHAMPION) or "")

    def change(folder: Path) -> None:
        if kind is None:
            (folder / "note.json").write_text("{}")  # another digest
        else:
            faults.spoil(folder, kind)

    name: str = simulation._publish(registry, champion, champion.name, change, champion.verdicts).name
    return name


@dataclass(frozen=True)
class Tried:
    kind: str | None
    ends: list[tuple[float, str, str]]
    gaps: list[float]
    routed: int  # requests
    replies: list[Reply[Any]]


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, Tried]:
    """One candidate after another, each of its kind; two days of each, and a week of an honest one."""
    found: dict[str | None, Tried] = {}
    with pytest.MonkeyPatch.context() as patch, lived(tmp_path_factory.mktemp("tried"), days=16) as made:
        patch.setattr(faults, "SHARE", 0.3)  # the shop is too small to see fewer in two days
        loop, day = loop_of(made), 1
        served(made, day)
        for kind in (*faults.VERSIONS, None):
            since, name = len(loop.happened), candidate(made, kind)
            loop.canary(name, "to see")
            held = loop._canary
            assert held is not None
            day += 2 if kind else 7
            replies = served(made, day)
            ends = [((h.at - made.start) / DAY, h.kind, h.what) for h in loop.happened[since:] if h.version == name]
            mine = [reply for reply in replies if name in (reply.routed, reply.version)]
            found[kind] = Tried(kind, ends, list(held.gaps.values()), len(mine), replies)
    return found


@pytest.mark.parametrize(
    ("kind", "test"), [("errors", "errors"), ("slow", "latency"), ("nothing", "missing"), ("unlike", "gap")]
)
def test_a_bad_canary_is_rolled_back_by_what_is_wrong_with_it(
    tried: dict[str | None, Tried], kind: str, test: str
) -> None:
    (_, first, _), (_, last, why) = tried[kind].ends[0], tried[kind].ends[-1]
    assert (first, last) == ("canary", "rolled back")
    assert why.startswith(f"{test}: e-value ")


@pytest.mark.parametrize("kind", faults.VERSIONS)
def test_while_a_bad_canary_answers_no_request_fails(tried: dict[str | None, Tried], kind: str) -> None:
    assert tried[kind].routed > 0
    assert all(isinstance(reply.answer, Done) for reply in tried[kind].replies)
    wrong = Counter(reply.fault for reply in tried[kind].replies if reply.fault)
    assert set(wrong) == {"errors": {"failed"}, "nothing": {"missing"}}.get(kind, set())


def test_an_honest_canary_scores_as_its_bundle_does_offline_and_one_that_is_unlike_it_does_not(
    tried: dict[str | None, Tried],
) -> None:
    assert len(tried[None].gaps) > 50
    assert max(tried[None].gaps) < 1e-12
    assert len(tried["unlike"].gaps) > 5
    assert np.mean(np.array(tried["unlike"].gaps) > 1e-6) > 0.5


def test_an_honest_canary_goes_on_to_its_promotion(tried: dict[str | None, Tried]) -> None:
    assert [kind for _, kind, _ in tried[None].ends] == ["canary", "advanced", "advanced", "promoted"]


def test_a_canary_that_fails_after_another_version_answered_in_its_place_is_not_compared_with_that_ones_score(
    tmp_path: Path,
) -> None:
    with lived(tmp_path, days=2) as made:
        loop = loop_of(made)
        made.registry.promote("shop", candidate(made, None), who="ann", why="so that there is a previous one")
        loop._begin(made.registry.alias("shop", CHAMPION) or "")
        loop.live.refresh()
        loop.canary(candidate(made, "errors"), "to see")
        held = loop._canary
        assert held is not None
        replies = served(made, 2)
        instead = [reply for reply in replies if reply.fault == "failed"]
        assert instead
        assert all(reply.score is not None and reply.role == "previous" for reply in instead)
        assert held.gaps
        assert max(held.gaps.values()) < 1e-12


def events(simulation: Simulation, version: str) -> list[tuple[str, str]]:
    return [(h.kind, h.what) for h in loop_of(simulation).happened if h.version == version]


def test_a_version_that_fails_one_request_in_twenty_is_not_promoted(tmp_path: Path) -> None:
    with lived(tmp_path, days=12) as made:
        name = candidate(made, "errors")
        loop_of(made).canary(name, "to see")
        served(made, 12)
        assert events(made, name)[-1][0] == "rolled back"


def test_a_canary_that_somebody_promotes_is_told_so_and_is_watched(tmp_path: Path) -> None:
    with lived(tmp_path, days=3) as made:
        loop, name, first = loop_of(made), candidate(made, None), made.registry.alias("shop", CHAMPION)
        loop.canary(name, "to see")
        made.registry.promote("shop", name, who="ann", why="I know it")
        replies = served(made, 1)
        assert events(made, name)[1:] == [("promoted", "by ann: I know it")]
        assert (loop._watch.champion, loop._champion, loop._canary) == (name, name, None)
        assert replies[-1].version == name
        made.registry.rollback("shop", who="bob", why="I know better")
        served(made, 2)
        assert told(made)[-1][1:] == ("promoted", "by bob: I know better")
        assert loop._watch.champion == first


def test_a_canary_beside_which_somebody_promotes_another_version_is_removed(tmp_path: Path) -> None:
    with lived(tmp_path, days=2) as made:
        loop, name = loop_of(made), candidate(made, None)
        other = candidate(made, "slow")
        loop.canary(name, "to see")
        made.registry.promote("shop", other, who="ann", why="I know it")
        served(made, 1)
        assert events(made, name)[1:] == [("removed", f"{other} was promoted by ann: I know it")]
        assert events(made, other) == [("promoted", "by ann: I know it")]
        assert loop._watch.champion == other


def test_a_canary_that_somebody_takes_out_is_told_so(tmp_path: Path) -> None:
    with lived(tmp_path, days=2) as made:
        loop, name = loop_of(made), candidate(made, None)
        loop.canary(name, "to see")
        made.registry.set_traffic("shop", Traffic(), who="ann", why="not today")
        served(made, 1)
        assert events(made, name)[1:] == [("removed", "by ann: not today")]
        assert loop._canary is None
        said = story(made, "small", None)
        assert next(c for c in said["canaries"] if c["version"] == name)["end"] == "removed"
        assert next(v for v in said["versions"] if v["name"] == name)["fate"] == "removed: by ann: not today"


def test_a_candidate_waits_while_another_one_is_tried_and_the_newest_comes_next(tmp_path: Path) -> None:
    with lived(tmp_path, days=2) as made:
        loop, (first, second, third) = loop_of(made), (candidate(made, kind) for kind in (None, "slow", "unlike"))
        for name in (first, second, third):
            loop.canary(name, "to see")
        assert events(made, second) == [("waiting", f"{first} must end first"), ("rejected", f"{third} is newer")]
        served(made, 1)
        assert events(made, third) == [("waiting", f"{first} must end first")], "told once"
        made.registry.set_traffic("shop", Traffic(), who="ann", why="not today")
        served(made, 2)
        assert [kind for kind, _ in events(made, third)][:2] == ["waiting", "canary"]


def test_a_candidate_that_was_judged_against_another_champion_is_rejected_when_its_turn_comes(tmp_path: Path) -> None:
    with lived(tmp_path, days=1) as made:
        loop, first, second = loop_of(made), candidate(made, None), candidate(made, "slow")
        for name in (first, second):
            loop.canary(name, "to see")
        made.registry.promote("shop", first, who="ann", why="I know it")
        served(made, 1)
        kind, why = events(made, second)[-1]
        assert (kind, "was judged against" in why) == ("rejected", True)
        assert loop._waiting is None


def test_a_policy_without_canaries_promotes_at_once_and_watches_what_it_promoted(tmp_path: Path) -> None:
    with lived(tmp_path, days=1, policy=Policy(steps=Steps(shares=(1.0,)))) as made:
        loop, name = loop_of(made), candidate(made, None)
        loop.canary(name, "it is better")
        assert events(made, name) == [("promoted", "it is better")]
        assert (loop._watch.champion, loop._champion, loop._canary) == (name, name, None)


def test_a_bad_candidate_of_a_champion_that_missed_a_gate_is_tried(tmp_path: Path) -> None:
    with lived(tmp_path, days=2, gates=(Gate("log_loss", 0.0, better="lower"),)) as made:
        made.watch((1, "slow"))
        served(made, 2)
        assert kinds(made) == ["canary", "rolled back"]


# What is not learned from


def suspect(loop: Loop, rule: str, since: int) -> None:
    """From now on it fires."""
    alert = Alert(
        rule=rule, severity="ticket", summary="It is.", look_at="it", labels=(), value=2.0, state="firing",
        since=since, fired=since, at=since,
    )  # fmt: skip
    loop._alarms.active = lambda: (alert,)  # type: ignore[method-assign]


def test_a_bad_canary_is_taken_out_while_data_are_suspect(tmp_path: Path) -> None:
    with lived(tmp_path, days=2) as made:
        loop, name = loop_of(made), candidate(made, "slow")
        suspect(loop, "DataFlaw", made.clock.now())
        loop.canary(name, "to see")
        served(made, 2)
        assert events(made, name)[-1][0] == "rolled back"


def test_while_data_are_suspect_a_canary_goes_no_further(tmp_path: Path) -> None:
    with lived(tmp_path, days=6) as made:
        loop, name = loop_of(made), candidate(made, None)
        loop.canary(name, "to see")
        usual = loop._alarms.active
        suspect(loop, "DataFlaw", made.clock.now())
        served(made, 3)
        assert [kind for kind, _ in events(made, name)] == ["canary", "held"]
        assert events(made, name)[1][1] == "it goes no further while DataFlaw says: It is."
        loop._alarms.active = usual  # type: ignore[method-assign]
        served(made, 4)
        assert [kind for kind, _ in events(made, name)] == ["canary", "held", "advanced", "advanced"]
        suspect(loop, "DataFlaw", made.clock.now())
        served(made, 6)
        assert [kind for kind, _ in events(made, name)].count("held") == 2, "told once each time"
        assert made.registry.traffic("shop").canary == name


def test_labels_that_were_heard_while_they_were_suspect_are_not_learned_from_whatever_they_are_about(
    tmp_path: Path,
) -> None:
    """One comes on day 8 about a request of four days before, another one about a request so old that it is done."""
    policy = Policy(watching=Watching(label_window=1))
    with lived(tmp_path, days=8, policy=policy) as made:
        served(made, 8)
        loop, journal, now = loop_of(made), made.journal, made.clock.now()
        rows = journal.rows(now - 5 * DAY + HOUR, now - 4 * DAY)
        row = next(r for r in range(rows.start, rows.stop) if not journal.columns.is_hidden[r])
        before = journal.examples(now, made.system.early_delay)
        assert before.weights[row] > 0
        journal.told_at[row], journal.told[row] = now - HOUR, 1.0
        suspect(loop, "LabelFlaw", now)
        loop._decide(now)
        known = journal.examples(now, made.system.early_delay, loop._spans, loop._unheard)
        assert known.weights[row] == 0
        assert np.isnan(known.labels[row])
        old = known.as_of < now - 5 * DAY
        heard = np.array(journal.told_at) >= now - 2 * DAY
        np.testing.assert_array_equal(known.weights[old & ~heard], before.weights[old & ~heard])
        early = (known.as_of >= now - 2 * DAY - made.system.early_delay) & (known.as_of < now)
        assert not known.weights[early].any()


def test_what_was_asked_while_labels_were_wrong_is_left_out_for_good_and_nothing_is_trained_meanwhile(
    tmp_path: Path,
) -> None:
    learned = list[Examples[Order]]()

    def recording(examples: Examples[Order], params: Params) -> Table:
        learned.append(examples)
        return fit(examples, params)

    with lived(tmp_path, days=31, drift="label_flood@12", policy=QUICK, fit=recording) as made:
        served(made, 18)
        assert "held" in kinds(made)
        assert "retrained" not in kinds(made)
        made.world = made.world._world  # somebody has mended it
        del learned[:]
        served(made, 31)
        happened = told(made)
        cleared = next(day for day, kind, what in happened if kind == "cleared" and what.startswith("LabelFlaw"))
        retrained = next(day for day, kind, _ in happened if kind == "retrained")
        assert 18 < cleared <= retrained
        for examples in learned:
            wrong = (examples.as_of >= made.since) & (examples.as_of < made.start + 18 * DAY)
            assert wrong.any()
            assert not examples.weights[wrong].any()
            assert np.isnan(examples.labels[wrong]).all()
            right = examples.as_of < made.start - 10 * DAY
            assert examples.weights[right].any() or not right.any()


def test_while_features_are_missing_nothing_is_trained_and_what_was_seen_then_is_no_example(tmp_path: Path) -> None:
    policy = Policy(watching=Watching(chunk=4))
    with lived(tmp_path, days=12, drift="missing_feature@2", policy=policy) as made:
        replies = served(made, 12)
        loop = loop_of(made)
        assert told(made)[0][:2] == (3.0, "alarm")
        assert told(made)[0][2].startswith("DataFlaw (user.n, missing)")
        held = [what for _, kind, what in told(made) if kind == "held"]
        assert held[0].startswith("nothing is trained while DataFlaw says: "), "the drift that follows from it"
        assert "retrained" not in kinds(made)
        known = loop.journal.examples(made.clock.now(), made.system.early_delay, loop._spans)
        assert not known.weights[known.as_of >= made.since].any()
        assert known.weights[known.as_of < made.since - DAY].any()
    assert np.isnan([r.features[0, 0] for r in replies[-400:]]).all()


def test_what_is_usual_is_not_learned_while_something_is_wrong(tmp_path: Path) -> None:
    policy = Policy(watching=Watching(settle=4 * DAY))
    with lived(tmp_path, days=9, drift="missing_feature@2", policy=policy, is_known=False) as made:
        served(made, 9)
        assert loop_of(made)._watch.habits is None


def test_a_quiet_world_is_left_alone(tmp_path: Path) -> None:
    with lived(tmp_path, days=16, policy=QUICK) as made:
        served(made, 16)
        assert told(made) == []
        last = loop_of(made).findings[-1][1]
        assert last.labels, "judged by then"
        assert all(flaw.ratio is None or flaw.ratio < 1 for flaw in (*last.data, *last.labels))


def test_there_must_be_a_champion_to_watch(tmp_path: Path) -> None:
    with Simulation(shop(), tmp_path, seed=0, days=2, progress=Progress(quiet=True)) as made:
        with pytest.raises(BadSetting, match="shop: must have a champion to watch, has none"):
            made.watch()


def test_before_it_is_known_how_labels_come_nothing_is_trained(tmp_path: Path) -> None:
    with lived(tmp_path, days=15, drift="label_flood@3", is_known=False) as made:
        served(made, 15)
        assert "retrained" not in kinds(made)
        assert ("held", "nothing is trained before it is known how labels usually come") in [
            (kind, what) for _, kind, what in told(made)
        ]


def test_a_surprise_that_came_of_labels_that_were_wrong_is_over_when_they_are_right_again(tmp_path: Path) -> None:
    with lived(tmp_path, days=34, drift="label_flood@12", policy=QUICK, is_known=False) as made:
        served(made, 18)
        assert loop_of(made).findings[-1][1].surprise > 1
        made.world = made.world._world
        served(made, 34)
        assert (loop_of(made).findings[-1][1].surprise or 0) < 1
        assert "LabelSurprise" not in [alert.rule for alert in loop_of(made)._alarms.active()]


def test_the_score_of_a_new_champion_is_not_called_missing_before_it_can_have_a_reference(tmp_path: Path) -> None:
    policy = Policy(watching=Watching(reference=35 * DAY, chunk=4))
    with lived(tmp_path, days=45, policy=policy) as made:
        loop = loop_of(made)
        served(made, 10)
        loop._begin(loop._champion)
        served(made, 45)
        assert kinds(made) == []


def test_a_drift_in_the_first_weeks_is_trained_on_as_soon_as_it_is_known_how_labels_come(tmp_path: Path) -> None:
    with lived(tmp_path, days=16, drift="ways@1", policy=QUICK, is_known=False) as made:
        served(made, 16)
        days = [day for day, kind, _ in told(made) if kind == "retrained"]
        assert days
        assert min(days) >= 10


def test_a_version_that_waits_does_not_begin_while_data_are_suspect(tmp_path: Path) -> None:
    with lived(tmp_path, days=3) as made:
        loop, one, other = loop_of(made), candidate(made, None), candidate(made, "slow")
        loop.canary(one, "to see")
        loop.canary(other, "to see")
        suspect(loop, "DataFlaw", made.clock.now())
        made.registry.set_traffic("shop", Traffic(), who="ann", why="not today")
        served(made, 1)
        assert [kind for kind, _ in events(made, other)] == ["waiting"]


def test_what_the_last_step_of_a_canary_cost_is_looked_at_before_it_is_promoted() -> None:
    rng, lot = np.random.default_rng(0), np.random.default_rng(1).random(400)
    asked = []
    for day in range(1, 8):
        for unit, drawn in enumerate(lot.tolist()):
            canary = drawn < 0.5
            at = day * DAY + int(rng.integers(DAY))
            asked.append(Observation(str(unit), canary, at, False, False, 1, None, 8.0 if canary else 1.0))
    verdict = Policy().steps.evidence.judge(asked, [(0, 0.1), (DAY // 2, 0.25), (DAY, 0.5)], 8 * DAY)
    assert verdict.bad == "loss"
