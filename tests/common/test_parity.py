"""What the service saw is what training computes: proven answer by answer, and a difference is found."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.clock import MINUTE, SimulatedClock
from common.data.log import EventLog
from common.features.online import catch_up
from common.features.online.sqlite import SqliteStore
from common.lifecycle.parity import Parity, parity, rescored
from common.monitoring.metrics import Metrics
from common.schema import Logged, logged_table, to_table
from common.serving.pipeline import Call, Pipeline
from common.serving.service import Service
from common.system import Answered
from tests.common.test_pipeline import DEADLINE, Scene, scene
from tests.common.test_service import VIEW, Counter, Visit, live, visit


def compared(stage: Scene) -> Parity:
    return parity(stage.system, stage.log, {"v1": Counter()})


def test_features_that_were_served_are_made_again_exactly(tmp_path: Path) -> None:
    with scene(tmp_path, live(Counter("v1"))) as stage:
        for at in range(1, 9):
            stage.ask("ann", "bob", "ann", "bad", at=at)
        found = compared(stage)
    assert found.holds
    assert (found.answers, found.values) == (16, 16)
    assert found.left_out == {"answered by the rule": 8}


def test_a_value_that_was_changed_is_found_and_named(tmp_path: Path) -> None:
    with scene(tmp_path, live(Counter("v1"))) as stage:
        stage.ask("ann", at=1)
        (said,) = stage.log.find(Answered, ["ann1\x1fanswer"]).values()
        wrong = {"event_id": "x", "request_id": "ann1", "features": (7.0,)}
        stage.log.append([said.model_copy(update=wrong)])
        found = compared(stage)
    assert not found.holds
    assert (found.answers, found.differing, found.gap) == (2, 1, 7.0)
    assert found.examples == ["ann1: user.n: logged 7.0, offline 0.0"]


def test_a_value_known_on_one_side_only_is_a_difference(tmp_path: Path) -> None:
    with scene(tmp_path, live(Counter("v1"))) as stage:
        stage.ask("ann", at=1)
        (said,) = stage.log.find(Answered, ["ann1\x1fanswer"]).values()
        stage.log.append([said.model_copy(update={"event_id": "x", "features": (None,)})])
        assert compared(stage).gap == float("inf")


def test_it_holds_after_a_lost_store_and_a_restart_and_says_what_it_left_out(tmp_path: Path) -> None:
    with scene(tmp_path, live(Counter("v1"))) as stage:
        stage.ask("ann", at=1)
        stage.store.clear()
        stage.ask("ann", at=2)
        stage.healed()
        stage.ask("ann", at=3)
    with scene(tmp_path, live(Counter("v1"))) as stage:
        stage.ask("ann", at=4)
        found = compared(stage)
    assert found.holds
    assert (found.answers, found.left_out) == (3, {"default features": 1})


def test_it_holds_when_two_workers_share_log_and_features(tmp_path: Path) -> None:
    """Each reads while the other appends and pushes, so that a read may be older than one that came before it."""
    with scene(tmp_path, live(Counter("v1"))) as stage:
        with EventLog(tmp_path / "log.db", SimulatedClock(50), stage.system.logged) as log:
            store = SqliteStore(tmp_path / "online.db", [VIEW])
            service: Service[Any, Any, Any] = Service(stage.system, live(Counter("v1")), store)
            other = Pipeline(
                service, log, SimulatedClock(50), deadline=100 * DEADLINE, metrics=Metrics(), say=lambda line: None
            )

            def work(pipeline: Pipeline, users: Sequence[str]) -> None:
                for at in range(40):
                    pipeline.run([Call([visit(user, at) for user in users])])
                    pipeline.settle()

            threads = [
                threading.Thread(target=work, args=said)
                for said in ((stage.pipeline, ["ann", "bob"]), (other, ["ann.", "ann"]))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            other.close()
            catch_up(store, log)
            store.close()
        found = compared(stage)
    assert found.holds, found.examples
    assert found.answers > 20


def test_it_holds_when_the_clock_is_set_back(tmp_path: Path) -> None:
    with scene(tmp_path, live(Counter("v1"))) as stage:
        later = 2 * MINUTE  # by then the store has forgotten the first one
        for now, at in ((1_000, 920), (1_050 + later, 1_049 + later), (1_010, 1_005)):
            stage.pipeline._clock = stage.log._clock = SimulatedClock(now)
            stage.ask("ann", at=at)
        found = compared(stage)
    assert found.holds, found.examples
    assert found.answers == 3


def test_who_reads_a_moment_later_than_another_pushed_finds_what_was_live_then(tmp_path: Path) -> None:
    """One worker takes the time, another pushes what came after it, then the first one reads."""
    store = SqliteStore(tmp_path / "online.db", [VIEW])
    came = [visit("ann", 920), visit("ann", 1_049)]
    places = [Logged(position=1, created_timestamp=1_000), Logged(position=2, created_timestamp=1_101)]
    store.push({Visit: logged_table(Visit, came, places)}, 0, 2)
    reading = store.read(to_table(Visit, [visit("ann", 1_005)]), np.array([1_010]))
    store.close()
    assert reading.values[0].tolist() == [[1.0]]


def test_a_request_that_is_scored_again_offline_has_the_features_of_the_positions_it_saw(tmp_path: Path) -> None:
    with scene(tmp_path, live(Counter("v1"))) as stage:
        for at in range(1, 5):
            stage.ask("ann", "bad", "bob", at=at)
        asked = stage.log.read(Visit)
        said = stage.log.read(Answered)
        place = {name: i for i, name in enumerate(asked["event_id"].to_pylist())}
        asked = asked.take([place[name] for name in said["request_id"].to_pylist()])
        positions = said["positions"].to_pylist()
        again = rescored(stage.system, Counter("v1"), asked, positions, {Visit: stage.log.read(Visit)})
        np.testing.assert_array_equal(again, said["score"].to_numpy())
        assert np.isnan(again).sum() == 4, "the bad user has none"
        assert set(again[np.isfinite(again)]) == {0, 1, 2, 3}
        head = [[stage.log.head().position]] * len(positions)
        newest = rescored(stage.system, Counter("v1"), asked, head, {Visit: stage.log.read(Visit)})
        assert (newest[np.isfinite(newest)] >= again[np.isfinite(again)]).all()
        assert not np.array_equal(newest, again, equal_nan=True)
