"""The way of a micro-batch: answered, durable, in the features; and what it does when a part of it fails."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.clock import MILLISECOND, SimulatedClock
from common.data.log import EventLog
from common.errors import Conflict, NotFound, Unavailable
from common.features.online import Reading, catch_up
from common.features.online.sqlite import SqliteStore
from common.features.view import Times
from common.monitoring.metrics import Metrics
from common.registry.registry import Traffic
from common.serving.live import Loaded, View
from common.serving.pipeline import Call, Pipeline
from common.serving.routing import Routing
from common.serving.service import Reply, Service
from common.system import Answered, Shadowed
from tests.common.test_service import VIEW, Counter, Visit, live, system, visit

DEADLINE = 100 * MILLISECOND
PATIENCE = 10  # s, for threads


class Store(SqliteStore):
    """Can be taken away, and frozen."""

    away = False
    asked = 0
    is_remote = True

    def __init__(self, path: Path) -> None:
        super().__init__(path, [VIEW])
        self.thawed = threading.Event()
        self.thawed.set()

    def read(self, rows: Any, as_of: Times, at_least: int = 0) -> Reading:
        self._suffer()
        return super().read(rows, as_of, at_least)

    def push(self, logged: Any, after: int, until: int) -> None:
        self._suffer()
        super().push(logged, after, until)

    def head(self) -> int:
        self._suffer()
        return super().head()

    def _suffer(self) -> None:
        self.asked += 1
        assert self.thawed.wait(PATIENCE)
        if self.away:
            raise Unavailable("store: is away")


class Scene:
    def __init__(self, folder: Path, of: Callable[[], View], **changed: Any) -> None:
        self.system = system(hides=lambda answer: False, redact=lambda visit: visit, **changed)
        self.log = EventLog(folder / "log.db", SimulatedClock(50), self.system.logged)
        self.store = Store(folder / "online.db")
        self.said: list[str] = []
        self.metrics = Metrics()
        service: Service[Any, Any, Any] = Service(self.system, of, self.store)
        self.pipeline = Pipeline(
            service, self.log, SimulatedClock(50), deadline=DEADLINE, metrics=self.metrics, say=self.said.append
        )

    def run(self, *calls: Call) -> list[Any]:
        answers = self.pipeline.run(calls)
        self.pipeline.settle()
        return answers

    def ask(self, *users: str, at: int = 5) -> list[Reply[Any]]:
        (replies,) = self.run(Call([visit(user, at) for user in users]))
        assert not isinstance(replies, Exception), replies
        return list(replies)

    def healed(self) -> None:
        """The features are back."""
        until = time.monotonic() + PATIENCE
        while self.pipeline.is_behind:
            assert time.monotonic() < until
            time.sleep(0.005)


@contextmanager
def scene(folder: Path, of: Callable[[], View], **changed: Any) -> Iterator[Scene]:
    made = Scene(folder, of, **changed)
    try:
        yield made
    finally:
        made.store.thawed.set()
        made.pipeline.close()
        made.log.close()
        made.store.close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path, live(Counter("v1"))) as made:
        yield made


def test_what_is_answered_is_durable_and_the_next_batch_sees_it(stage: Scene) -> None:
    assert [stage.ask("ann", at=at)[0].answer.count for at in (1, 2, 3)] == [0.0, 1.0, 2.0]
    said = stage.log.read(Answered)
    assert stage.log.read(Visit)["event_id"].to_pylist() == ["ann1", "ann2", "ann3"]
    assert said["request_id"].to_pylist() == ["ann1", "ann2", "ann3"]
    assert said["positions"].to_pylist() == [[0], [2], [4]]
    assert said["features"].to_pylist() == [[0.0], [1.0], [2.0]]


def test_a_retry_gets_the_first_answer_and_changes_nothing(stage: Scene) -> None:
    first = stage.ask("ann", at=1)[0]
    stage.ask("ann", at=2)
    again = stage.ask("ann", at=1)[0]
    assert (again.answer, again.version, again.positions) == (first.answer, first.version, first.positions)
    assert stage.log.head().position == 4
    assert stage.ask("ann", at=3)[0].answer.count == 2.0


def test_a_call_with_requests_old_and_new_gets_old_answers_and_new_ones(stage: Scene) -> None:
    stage.ask("ann", at=1)
    stage.ask("ann", at=2)
    (mixed,) = stage.run(Call([visit("ann", 1), visit("ann", 3)]))
    assert [reply.answer.count for reply in mixed] == [0.0, 2.0]  # type: ignore[union-attr]
    assert stage.ask("ann", at=4)[0].answer.count == 3.0


def test_an_id_that_is_taken_refuses_its_call_alone_and_repeats_nothing(stage: Scene) -> None:
    stage.ask("ann", at=1)
    other = visit("secret", 9).model_copy(update={"event_id": "ann1"})
    refused, fine = stage.run(Call([other]), Call([visit("bob", 2)]))
    assert isinstance(refused, Conflict)
    assert str(refused) == "event_id: must be new, this one is that of another event"
    assert not isinstance(fine, Exception)
    assert fine[0].answer.by == "v1"


def test_events_that_are_only_remembered_become_features(stage: Scene) -> None:
    assert stage.run(Call(events=[visit("ann", 1), visit("ann", 2)])) == [()]
    assert stage.ask("ann")[0].answer.count == 2.0


def test_a_version_that_is_not_live_refuses_its_call_alone(stage: Scene) -> None:
    refused, fine = stage.run(Call([visit("ann", 1)], pinned="gone"), Call([visit("bob", 1)]))
    assert isinstance(refused, NotFound)
    assert not isinstance(fine, Exception)
    assert stage.log.read(Visit)["event_id"].to_pylist() == ["bob1"]


def test_without_its_store_answers_are_degraded_until_it_is_back_with_all_that_was_missed(stage: Scene) -> None:
    stage.ask("ann", at=1)
    stage.store.away = True
    first, second = stage.ask("ann", at=2)[0], stage.ask("ann", at=3)[0]
    assert first.degraded == second.degraded == "default features: online features cannot be had in time"
    assert any("store: is away; answers are degraded" in line for line in stage.said)
    stage.store.away = False
    stage.healed()
    back = stage.ask("ann", at=4)[0]
    assert (back.degraded, back.answer.count) == (None, 3.0)


def test_a_store_that_lost_everything_is_filled_again_from_the_log(stage: Scene) -> None:
    stage.ask("ann", at=1)
    stage.ask("ann", at=2)
    stage.store.clear()
    assert stage.ask("ann", at=3)[0].degraded is not None
    stage.healed()
    assert stage.ask("ann", at=4)[0].answer.count == 3.0


def test_a_frozen_store_costs_one_wait_and_the_others_none(stage: Scene) -> None:
    stage.ask("ann", at=1)
    stage.store.thawed.clear()
    first = stage.ask("ann", at=2)[0]
    assert first.degraded == "default features: online features cannot be had in time"
    asked = stage.store.asked
    assert all(stage.ask("ann", at=at)[0].degraded == first.degraded for at in range(3, 30))
    assert stage.store.asked <= asked + 1, "by who brings the features back"
    text = stage.metrics.text().decode()
    name = stage.system.name
    assert f'ml_breaker_open{{dependency="online features",system="{name}"}} 1.0' in text
    stage.store.thawed.set()
    stage.healed()
    assert stage.ask("ann", at=30)[0].answer.count == 29.0


def test_a_failed_push_is_made_good(stage: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = [True]
    push = stage.store.push

    def once(*said: Any) -> None:
        if failing:
            failing.pop()
            raise Unavailable("store: is away")
        push(*said)

    monkeypatch.setattr(stage.store, "push", once)
    assert stage.ask("ann", at=1)[0].degraded is None
    stage.healed()
    assert stage.ask("ann", at=2)[0].answer.count == 1.0


def test_what_another_process_appends_is_in_the_features_too(stage: Scene, tmp_path: Path) -> None:
    stage.ask("ann", at=1)
    with EventLog(tmp_path / "log.db", SimulatedClock(50), stage.system.logged) as other:
        other.append([visit("ann", 2), visit("ann", 3)])
        stage.ask("bob", at=4)
        assert stage.ask("ann", at=5)[0].answer.count == 3.0


def test_without_its_log_there_is_no_answer_and_soon_no_waiting(stage: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def away(*said: Any, **more: Any) -> Any:
        asked.append(1)
        raise Unavailable("log: no room on its disk")

    with monkeypatch.context() as patch:
        patch.setattr(stage.log, "append_each", away)
        refused = [stage.run(Call([visit("ann", at)]))[0] for at in range(10)]
    assert all(isinstance(error, Unavailable) for error in refused)
    assert len(asked) == 6, "three calls, each tried twice"
    assert "circuit open" in str(refused[-1])
    assert stage.log.head().position == 0


def test_every_answer_is_counted_by_version_role_and_rung(stage: Scene) -> None:
    stage.ask("ann", "bad")
    text, name = stage.metrics.text().decode(), stage.system.name
    assert f'ml_predictions_total{{role="champion",rung="full",system="{name}",version="v1"}} 1.0' in text
    assert f'ml_predictions_total{{role="rule",rung="rule",system="{name}",version="rule"}} 1.0' in text
    assert f'ml_batch_rows_count{{system="{name}"}} 1.0' in text


def test_shadow_answers_are_logged_and_never_returned(tmp_path: Path) -> None:
    champion, shadow = Counter("champion"), Counter("shadow")
    view = View(
        routing=Routing("champion", Traffic(), b""), models={"champion": Loaded("champion", champion, "")},
        shadow=(Loaded("shadow", shadow, ""),),
    )  # fmt: skip
    with scene(tmp_path, lambda: view) as stage:
        stage.ask("ann", at=1)
        assert [reply.answer.by for reply in stage.ask("ann", "bob", at=2)] == ["champion", "champion"]
        until = time.monotonic() + PATIENCE
        while stage.log.read(Shadowed).num_rows < 3:
            assert time.monotonic() < until
            time.sleep(0.005)
        said = stage.log.read(Shadowed)
    assert said["request_id"].to_pylist() == ["ann1", "ann2", "bob2"]
    assert all('"by":"shadow"' in answer for answer in said["answer"].to_pylist())


def test_a_shadow_that_fails_or_is_slow_harms_nobody(tmp_path: Path) -> None:
    hold = threading.Event()

    class Slow(Counter):
        def rows(self, requests: Any) -> Any:
            assert hold.wait(PATIENCE)
            raise ZeroDivisionError

    view = View(
        routing=Routing("champion", Traffic(), b""), models={"champion": Loaded("champion", Counter("champion"), "")},
        shadow=(Loaded("shadow", Slow("shadow"), ""),),
    )  # fmt: skip
    with scene(tmp_path, lambda: view) as stage:
        for at in range(20):
            assert stage.ask("ann", at=at)[0].degraded is None
        text, name = stage.metrics.text().decode(), stage.system.name
        dropped = f'ml_shadow_answers_total{{fate="dropped",system="{name}"}}'
        assert dropped in text, "eight batches wait, the others are dropped"
        hold.set()


def test_an_answer_given_before_a_swap_names_the_version_that_was_live(tmp_path: Path) -> None:
    now = live(Counter("a"))()
    with scene(tmp_path, lambda: now) as stage:
        first = stage.ask("ann", at=1)[0]
        now = live(Counter("b"))()
        second = stage.ask("ann", at=2)[0]
    assert (first.version, second.version) == ("a", "b")


def test_features_are_the_same_after_a_restart(tmp_path: Path) -> None:
    with scene(tmp_path, live(Counter("v1"))) as stage:
        stage.ask("ann", at=1)
    with scene(tmp_path, live(Counter("v1"))) as stage:
        assert stage.ask("ann", at=2)[0].answer.count == 1.0
        assert catch_up(stage.store, stage.log) == stage.log.head().position


def test_the_same_event_twice_in_one_call_hides_no_event_of_another_process(stage: Scene, tmp_path: Path) -> None:
    stage.ask("ann", at=1)
    with EventLog(tmp_path / "log.db", SimulatedClock(50), stage.system.logged) as other:
        other.append([visit("ann", 2)])
        stage.run(Call(events=[visit("ann", 4), visit("ann", 4)]))
    assert not stage.pipeline.is_behind
    assert stage.ask("ann", at=5)[0].answer.count == 3.0


def test_who_asks_two_processes_at_once_gets_the_same_answers_from_both(stage: Scene, tmp_path: Path) -> None:
    """The other one answers between this one's look at the log and its append."""
    with scene(tmp_path, live(Counter("v1"))) as other:
        stage.ask("ann", at=1)
        call = Call([visit("ann", 1), visit("bob", 2)])
        theirs: list[Any] = []
        find = stage.log.find

        def late(kind: Any, ids: Any) -> Any:
            found = find(kind, ids)
            if kind is Answered and not theirs:
                theirs.extend(other.run(call)[0])
            return found

        stage.log.find = late  # type: ignore[method-assign]
        (ours,) = stage.run(call)
    assert [reply.answer for reply in ours] == [reply.answer for reply in theirs]


def test_retries_write_nothing(stage: Scene) -> None:
    calls = [Call([visit(f"user{i}", i)]) for i in range(50)]
    stage.run(*calls)
    asked: list[int] = []
    append = stage.log.append_each

    def counted(events: Any, **said: Any) -> Any:
        asked.append(len(events))
        return append(events, **said)

    stage.log.append_each = counted  # type: ignore[method-assign]
    assert not any(isinstance(answer, Exception) for answer in stage.run(*calls))
    assert asked == [50], "once, to find that they are all there"


def test_an_answer_that_cannot_be_given_again_harms_only_who_asks_for_it(stage: Scene) -> None:
    stage.ask("ann", at=1)
    stage.pipeline.service.system = replace(stage.system, answer=Visit)  # an earlier definition said something else
    old, fine = stage.run(Call([visit("ann", 1)]), Call([visit("bob", 2)]))
    assert isinstance(old, Conflict)
    assert fine[0].answer.by == "v1"


def test_a_retry_does_not_keep_its_neighbours_from_the_shadow(tmp_path: Path) -> None:
    view = View(
        routing=Routing("champion", Traffic(), b""), models={"champion": Loaded("champion", Counter("champion"), "")},
        shadow=(Loaded("shadow", Counter("shadow"), ""),),
    )  # fmt: skip
    with scene(tmp_path, lambda: view) as stage:
        stage.ask("ann", at=1)
        stage.run(Call([visit("ann", 1)]), Call([visit("bob", 2)]))
        until = time.monotonic() + PATIENCE
        while stage.log.read(Shadowed).num_rows < 2:
            assert time.monotonic() < until
            time.sleep(0.005)


def test_closing_does_not_wait_for_all_that_a_slow_shadow_has_before_it(tmp_path: Path) -> None:
    asked: list[int] = []

    class Slow(Counter):
        def rows(self, requests: Any) -> Any:
            asked.append(1)
            time.sleep(0.2)
            return super().rows(requests)

    view = View(
        routing=Routing("champion", Traffic(), b""), models={"champion": Loaded("champion", Counter("champion"), "")},
        shadow=(Loaded("shadow", Slow("shadow"), ""),),
    )  # fmt: skip
    with scene(tmp_path, lambda: view) as stage:
        for at in range(6):
            stage.ask("ann", at=at)
    assert len(asked) <= 2


def test_predictions_that_are_used_again_are_counted(tmp_path: Path) -> None:
    with scene(tmp_path, live(Counter("v1")), reuse=10**9) as stage:
        for at in (1, 2):  # without the log, so that the features stay what they are
            stage.pipeline.service.answer([visit("ann", at)], np.array([at]))
        stage.ask("bob", at=3)
        text, name = stage.metrics.text().decode(), stage.system.name
    assert f'ml_reused_predictions_total{{system="{name}"}} 1.0' in text
