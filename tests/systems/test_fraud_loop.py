"""A bank through its weeks: what fraudsters change is noticed and learned; what is broken is not learned."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from common.clock import DAY
from common.lifecycle.parity import models, parity
from common.lifecycle.simulation import Simulation
from common.lifecycle.story import story
from common.progress import Progress
from common.report import page
from systems.fraud.config import SMALL, Config
from systems.fraud.system import build
from tests.little.fraud.system import TINY

DRIFT_DAY, DAYS = 16, 40


@contextmanager
def lived(folder: Path, config: Config, days: int, drift: str | None) -> Iterator[Simulation]:
    with Simulation(build(config), folder, seed=0, days=days, drift=drift, progress=Progress(quiet=True)) as made:
        made.history()
        made.train()
        made.watch()
        for _ in made.serve(days):
            pass
        yield made


def told(simulation: Simulation) -> list[tuple[float, str, str]]:
    assert simulation.loop is not None
    return [((h.at - simulation.start) / DAY, h.kind, h.what) for h in simulation.loop.happened]


@pytest.fixture(scope="module")
def drifted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    with lived(tmp_path_factory.mktemp("drifted"), SMALL, DAYS, f"tactics@{DRIFT_DAY}") as made:
        yield made


def test_new_tactics_are_a_surprise_within_days_of_the_label_delay_and_nothing_alarms_before(
    drifted: Simulation,
) -> None:
    day, kind, what = told(drifted)[0]
    assert kind == "alarm"
    assert what.startswith("LabelSurprise: ")
    assert DRIFT_DAY < day <= DRIFT_DAY + SMALL.label_delay / DAY + 5
    said = story(drifted, "small", None)
    assert (said["detection_delay"], said["false_alarms"]) == (day - DRIFT_DAY, 0)


def test_a_model_that_learned_the_new_tactics_becomes_champion_by_way_of_a_canary(drifted: Simulation) -> None:
    happened = told(drifted)
    kinds = [kind for _, kind, _ in happened]
    assert kinds.index("alarm") < kinds.index("retrained") < kinds.index("canary") < kinds.index("promoted")
    assert "rolled back" not in kinds
    surprise = [kind for _, kind, what in happened if what.startswith("LabelSurprise: ")]
    assert surprise[-1] == "cleared"


def test_what_the_drift_cost_falls_once_that_model_answers(drifted: Simulation) -> None:
    regret, promoted = drifted.regret(), [day for day, kind, _ in told(drifted) if kind == "promoted"]
    lost = regret.paid - regret.least

    def mean(days: slice) -> float:
        return float(lost[days].sum() / regret.requests[days].sum())

    before, without = mean(slice(0, DRIFT_DAY)), mean(slice(DRIFT_DAY + 2, int(promoted[0])))
    within = mean(slice(int(promoted[-1]) + 1, None))
    assert without > 1.2 * before
    assert within < without


def test_the_story_of_the_bank_is_a_page(drifted: Simulation) -> None:
    said = story(drifted, "small", drifted.regret())
    assert page(json.loads(json.dumps(said, allow_nan=False))).startswith("<!doctype html>")
    assert all(week["regret"] >= 0 for week in said["weeks"])
    assert set(said["reasons"]["before"]) == set(said["reasons"]["after"])


def test_the_same_seed_is_the_same_story_byte_for_byte(tmp_path: Path) -> None:
    said = []
    for name in ("one", "other"):
        with lived(tmp_path / name, TINY, 8, "tactics@4") as made:
            said.append(json.dumps(story(made, "small", None), sort_keys=True))
            found = parity(made.system, made.log, models(made.system, made.registry))
    assert said[0] == said[1]
    assert found.holds, found.examples
    assert found.answers > 500


@pytest.mark.parametrize(
    ("fault", "columns"),
    [("wrong_unit", {"log_amount", "amount_to_card"}), ("missing_feature", {"card_device.count_90d"})],
)
def test_a_fault_of_the_data_is_found_on_its_first_day_and_no_request_goes_without_an_answer(
    tmp_path: Path, fault: str, columns: set[str]
) -> None:
    with lived(tmp_path, TINY, 5, f"{fault}@3") as made:
        flawed = [(day, what.split("(")[1].split(",")[0]) for day, kind, what in told(made) if kind == "alarm"]
        assert {day for day, _ in flawed} == {4.0}
        assert {column for _, column in flawed} == columns
        assert "retrained" not in [kind for _, kind, _ in told(made)]
        rows = made.journal.rows(made.start, made.clock.now())
        assert np.isfinite(made.journal.columns.score[rows]).all()
        assert not made.journal.columns.is_degraded[rows].any()


def test_fewer_days_of_a_world_that_is_drawn_for_as_many_are_its_first_ones(tmp_path: Path) -> None:
    found = []
    for days in (3, 5):
        quiet = Progress(quiet=True)
        with Simulation(build(TINY), tmp_path / str(days), seed=0, days=days, lasts=90, progress=quiet) as made:
            until = made.start + 3 * DAY
            found.append([(a.at, a.event.event_id) for a in made.world.arrivals(until)])
    assert found[0] == found[1] != []
