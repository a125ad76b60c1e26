"""What a log becomes: labels that were known in time, weights, and micro-batches in the order of hearing."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from common.clock import DAY, HOUR, SimulatedClock
from common.data.log import EventLog
from common.errors import BadSetting, Damaged, NotFound
from common.lifecycle import simulation, training
from common.lifecycle.training import Snapshot, trials
from common.progress import Progress
from common.schema import Event, Logged, arrow_schema
from common.serving.service import NOTHING, Reply
from common.system import ANSWERED, Answer, Answered, AnySystem, Arrival, Outcome, find, names


class Visit(Event):
    user: str


class Verdict(Event):
    visit: str
    bad: bool


@pytest.fixture(scope="module")
def system() -> AnySystem:
    """Any system, of which labels and simulation read only these fields."""
    return replace(
        find("systems", names("systems")[0]),
        request=Visit, events=(Visit, Verdict), views=(), on_demand=(), label_delay=10 * DAY, many=None, before=None,
        outcome=Outcome(source=Verdict, request="visit", value="bad", silence=0.0),
        hides=lambda answer: False, redact=lambda visit: visit.model_copy(update={"user": "somebody"}),
        unit=lambda visit: visit.user,
    )  # fmt: skip


def table(kind: type[Event], rows: Sequence[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), pa.schema([*arrow_schema(kind), *arrow_schema(Logged)]))


def visit(name: str, at: int) -> dict[str, Any]:
    return {"event_id": name, "event_timestamp": at, "user": "u", "position": 1, "created_timestamp": at}


def answered(name: str, hidden: bool = False, propensity: float = 1.0) -> dict[str, Any]:
    return {
        "event_id": f"{name}{ANSWERED}", "event_timestamp": 0, "request_id": name, "version": "v", "role": "champion",
        "share": 1.0, "degraded": None, "propensity": propensity, "hidden": hidden, "answer": "{}", "features": [],
        "positions": [],
        "position": 1, "created_timestamp": 0,
    }  # fmt: skip


def verdict(name: str, at: int, bad: bool = True) -> dict[str, Any]:
    return {
        "event_id": f"{name}.{at}", "event_timestamp": 0, "visit": name, "bad": bad,
        "position": 1, "created_timestamp": at,
    }  # fmt: skip


def labels(system: AnySystem, **tables: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    kinds = {"Visit": Visit, "Verdict": Verdict, "Answered": Answered}
    snapshot = Snapshot({name: table(kind, tables.get(name, [])) for name, kind in kinds.items()}, {}, 9, 100 * DAY)
    found, weights = training._labels(system, snapshot, snapshot.of(Visit))
    return found.tolist(), weights.tolist()


def test_a_label_counts_if_it_was_told_within_the_label_delay(system: AnySystem) -> None:
    visits = [visit(name, DAY) for name in ("in time", "late", "silent", "let through", "hidden")]
    said = [answered(v["event_id"]) for v in visits[:3]]
    said += [answered("let through", propensity=0.01), answered("hidden", hidden=True, propensity=0.99)]
    told = [verdict("in time", 11 * DAY), verdict("late", 11 * DAY + 1), verdict("let through", 2 * DAY)]
    found, weights = labels(system, Visit=visits, Answered=said, Verdict=told)
    np.testing.assert_array_equal(found, [1, 0, 0, 1, np.nan])
    np.testing.assert_allclose(weights, [1, 1, 1, 100, 0])


def test_a_young_request_has_no_label_although_one_came(system: AnySystem) -> None:
    found, weights = labels(
        system, Visit=[visit("young", 91 * DAY)], Answered=[answered("young")], Verdict=[verdict("young", 92 * DAY)]
    )
    np.testing.assert_array_equal(found, [np.nan])
    assert weights == [0]


def test_the_last_word_counts(system: AnySystem) -> None:
    told = [verdict("v", 2 * DAY, bad=True), verdict("v", 3 * DAY, bad=False)]
    assert labels(system, Visit=[visit("v", DAY)], Answered=[answered("v")], Verdict=told) == ([0], [1])


def test_where_silence_says_nothing_a_request_without_a_label_is_unknown(system: AnySystem) -> None:
    quiet = replace(system, outcome=replace(system.outcome, silence=None))
    found, weights = labels(quiet, Visit=[visit("v", DAY)], Answered=[answered("v")])
    assert np.isnan(found).all()
    assert weights == [0]


class Script:
    """A world that tells what is written."""

    def __init__(self, arrivals: Sequence[Arrival]) -> None:
        self._arrivals = arrivals
        self.reactions: list[Any] = []

    def arrivals(self, until: int) -> Sequence[Arrival]:
        now, self._arrivals = (
            [a for a in self._arrivals if a.at < until],
            [a for a in self._arrivals if a.at >= until],
        )
        return now

    def react(self, answered: Any) -> None:
        self.reactions += answered

    def ceiling(self, requests: Any) -> Any:
        raise AssertionError

    segments = ceiling


class Witness:
    """Answers, and writes down what it had heard before each request."""

    version = "witness"

    def __init__(self) -> None:
        self.heard_before: list[int] = []
        self._heard = 0

    def answer(self, requests: Sequence[Any], as_of: Any) -> Sequence[Reply[Any]]:
        self.heard_before += [self._heard] * len(requests)
        return [Reply(Answer(), "v", "champion", 1.0, None, NOTHING, ()) for _ in requests]

    def heard(self, events: Sequence[Event], logged: Sequence[Logged]) -> None:
        self._heard = logged[-1].position


def told(world: Script, system: AnySystem, folder: Path, batch: int) -> tuple[Witness, pa.Table]:
    witness = Witness()
    with EventLog(folder / "log.db", SimulatedClock(0), (Visit, Verdict, Answered)) as log:
        for _ in simulation.live(system, world, log, witness, (0, HOUR), batch=batch, progress=Progress(quiet=True)):
            pass
        return witness, log.read(Visit)


def arrival(at: int, kind: type[Event], **said: Any) -> Arrival:
    return Arrival(at, kind(event_id=f"{kind.__name__}{at}", event_timestamp=at, **said))


def test_what_an_earlier_micro_batch_heard_is_known_when_the_next_one_is_answered(
    system: AnySystem, tmp_path: Path
) -> None:
    world = Script([arrival(1, Verdict, visit="x", bad=True), arrival(2, Visit, user="a"), arrival(3, Visit, user="b")])
    witness, _ = told(world, system, tmp_path, batch=1)
    assert witness.heard_before == [0, 3]  # nothing; a verdict, a visit and its answer
    assert [request.user for request, _ in world.reactions] == ["a", "b"]


def test_requests_are_redacted_before_they_are_logged(system: AnySystem, tmp_path: Path) -> None:
    _, visits = told(Script([arrival(1, Visit, user="a")]), system, tmp_path, batch=9)
    assert visits["user"].to_pylist() == ["somebody"]


def test_a_history_too_short_to_learn_from_is_refused_with_its_length(system: AnySystem) -> None:
    snapshot = Snapshot({"Visit": table(Visit, [visit("v", DAY)])}, {}, 1, 5 * DAY)
    with pytest.raises(BadSetting, match="history: must be longer than"):
        training.spans(system, snapshot)


def test_an_empty_log_is_refused(system: AnySystem, tmp_path: Path) -> None:
    with EventLog(tmp_path / "log.db", SimulatedClock(0), (Visit, Verdict, Answered)) as log:
        with pytest.raises(NotFound, match="the log is empty"):
            training.take(system, log, training.Snapshots(tmp_path))


@pytest.mark.parametrize("damage", [lambda c: c[:-9], lambda c: c[:-9] + bytes(9), lambda c: c[:-9] + b"\xff" + c[-8:]])
def test_a_damaged_end_of_the_trials_is_said_and_not_passed_over(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "trials.log"
    study = optuna.create_study(storage=JournalStorage(JournalFileBackend(str(path))))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert len(trials(path)) == 2
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Damaged, match=r"trials.log: line \d+ is not what was written"):
        trials(path)
