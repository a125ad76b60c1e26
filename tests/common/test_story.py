"""A run as one document: what was found, when, and what it was worth; what is not known is None."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from common.clock import DAY, HOUR
from common.lifecycle import faults
from common.lifecycle.fans import BEFORE, fans
from common.lifecycle.journal import Journal
from common.lifecycle.loop import Happened
from common.lifecycle.simulation import Regret, Simulation
from common.lifecycle.story import _alarmed, _alarms, _canaries, _closed, _events, _mean, _week, story
from common.monitoring.alerts import Alert
from common.report import page
from common.schema import Logged
from common.serving.service import NOTHING, Reply
from common.system import Answer
from tests.common.test_joined_outcomes import chain, check, rows_of, sold
from tests.common.test_loop import lived, served

START = 1_767_225_600_000_000


def alert(rule: str, day: float, state: str = "firing", **labels: str) -> Alert:
    at = START + int(day * DAY)
    return Alert(
        rule=rule, severity="ticket", summary="It is.", look_at="it", labels=tuple(sorted(labels.items())), value=2.0,
        state=state, since=at, fired=at, at=at,  # type: ignore[arg-type]
    )  # fmt: skip


def run(drift: str | None, *alerts: Alert, happened: tuple[Happened, ...] = ()) -> Any:
    kind, _, day = (drift or "").partition("@")
    shares = SimpleNamespace(steps=SimpleNamespace(shares=(0.1, 0.25, 0.5, 1.0)))
    return SimpleNamespace(
        start=START, drift=drift, kind=kind or None, drift_day=int(day) if day else None, days=90,
        loop=SimpleNamespace(alerts=list(alerts), happened=list(happened), policy=shares),
    )  # fmt: skip


def test_a_signal_that_is_missing_is_no_alarm_and_neither_is_one_that_ends() -> None:
    quiet = run(
        None, alert("LabelSurpriseMissing", 3), alert("DataFlaw", 4, "resolved"), alert("DataFlaw", 4, "pending")
    )
    assert _alarmed(quiet) == []
    assert _alarmed(run(None, alert("NoAnswers", 3.5))) == [3.5]


def test_a_change_of_the_world_is_found_by_what_can_see_it() -> None:
    found = run("ways@30", alert("DataFlaw", 12), alert("DataFlaw", 33), alert("LabelSurprise", 37))
    assert _alarmed(found) == [12, 37]


def test_a_fault_is_found_by_whatever_speaks_first() -> None:
    assert _alarmed(run("random_labels@30", alert("DataFlaw", 33), alert("LabelFlaw", 37))) == [33, 37]


def regret(paid: list[float], least: float = 1.0, requests: float = 100.0) -> Regret:
    n = np.array([requests] * len(paid))
    return Regret(n, np.array(paid), np.full(len(paid), least))


def test_regret_is_per_1000_requests_and_of_a_week_without_any_there_is_none() -> None:
    said = _week(0, regret([2.0] * 7), regret([4.0] * 7))
    assert (said["requests"], said["loss"], said["ceiling"]) == (700, 20.0, 10.0)
    assert (said["regret"], said["regret_without"]) == (10.0, 30.0)
    assert _week(0, regret([2.0] * 7), None)["regret_without"] is None
    nobody = _week(0, regret([0.0] * 7, 0.0, 0.0), None)
    assert (nobody["requests"], nobody["regret"], nobody["loss"]) == (0, None, None)
    assert _week(1, regret([2.0] * 8), None)["requests"] == 100, "the last week is as long as it is"


def test_what_the_loop_closed_is_the_share_of_the_drifts_regret_that_is_gone_three_weeks_after_the_alarm() -> None:
    alone = regret([2.0] * 10 + [6.0] * 40)  # 1 before, 5 after: the drift adds 4
    within = regret([2.0] * 10 + [6.0] * 24 + [3.0] * 16)  # from day 34 on, 2 are left
    assert _closed(within, alone, 10, 13.0) == pytest.approx(0.75)
    assert _closed(within, alone, 10, 12.2) == pytest.approx(0.75)
    early = _closed(within, alone, 10, 12.0)
    assert early is not None
    assert early < 0.75, "a day in which nothing was gained yet counts"
    assert _closed(alone, alone, 10, 13.0) == 0
    assert _mean(alone, slice(10)) == 10.0


@pytest.mark.parametrize(
    ("without", "day", "alarm"),
    [(None, 10, 13.0), ([2.0] * 50, 10, 13.0), ([6.0] * 50, 10, None), ([6.0] * 50, None, 13.0), ([6.0] * 50, 0, 13.0)],
    ids=["nothing to compare with", "the drift cost nothing", "not noticed", "no drift", "nothing before"],
)
def test_where_nothing_can_be_compared_nothing_is_said_to_be_closed(
    without: list[float] | None, day: int | None, alarm: float | None
) -> None:
    other = None if without is None else regret(without)
    assert _closed(regret([2.0] * 50), other, day, alarm) is None


def test_an_alarm_so_late_that_nothing_came_after_it_closed_nothing_that_is_known() -> None:
    assert _closed(regret([2.0] * 30), regret([2.0] * 10 + [6.0] * 20), 10, 12.0) is None


def happened(day: float, kind: str, version: str | None = "v", what: str = "so") -> Happened:
    return Happened(START + int(day * DAY), kind, what, version)


def test_a_canary_is_told_from_its_first_share_to_its_end() -> None:
    events = (
        happened(1, "canary"), happened(2, "advanced"), happened(3, "promoted", what="good"),
        happened(4, "canary", "w"), happened(5, "rolled back", "w", "bad"), happened(6, "canary", "u"),
    )  # fmt: skip
    v, w, u = _canaries(run(None, happened=events))
    assert v == {
        "version": "v", "began": 1, "ended": 3, "steps": [[1, 0.1], [2, 0.25], [3, 1.0]], "end": "promoted",
        "why": "good",
    }  # fmt: skip
    assert (w["end"], w["ended"], w["steps"], w["why"]) == ("rolled back", 5, [[4, 0.1]], "bad")
    assert (u["end"], u["ended"]) == ("running", None)


def test_events_come_by_day_and_say_what_the_drift_was() -> None:
    said = _events(run("wrong_unit@2", happened=(happened(1, "alarm", None), happened(3, "cleared", None))))
    assert [(event["day"], event["kind"]) for event in said] == [(1, "alarm"), (2, "drift"), (3, "cleared")]
    assert said[1]["what"] == faults.SAYS["wrong_unit"]


def test_an_alarm_ends_when_it_is_resolved_and_may_ring_again() -> None:
    rang = _alarms(
        run(
            None, alert("DataFlaw", 1, column="n", system="shop"),
            alert("DataFlaw", 2, "resolved", column="n", system="shop"),
            alert("DataFlaw", 3, column="n", system="shop"), alert("Other", 4, "resolved", system="shop"),
        )
    )  # fmt: skip
    assert [(a["name"], a["began"], a["ended"]) for a in rang] == [("DataFlaw (n)", 1, 2), ("DataFlaw (n)", 3, None)]


class Ahead(Answer):
    """A forecast of some days; of none: a rule answered."""

    first_day: int = 0
    median: tuple[float, ...] = ()
    lower_80: tuple[float, ...] = ()
    upper_80: tuple[float, ...] = ()
    lower_95: tuple[float, ...] = ()
    upper_95: tuple[float, ...] = ()


AHEAD = 10  # days
FIRST = START // DAY


def forecast(day: int) -> Ahead:
    edges = {name: tuple(float(day + k) for k in range(AHEAD)) for name in Ahead.model_fields if "_8" in name}
    edges |= {name: edges[name.replace("95", "80")] for name in Ahead.model_fields if "_95" in name}
    return Ahead(first_day=day, median=tuple(float(day + k) for k in range(AHEAD)), **edges)  # type: ignore[arg-type]


def chained(drift_day: int | None, sells: Mapping[str, tuple[int, Any]], days: int = 60, silent: str = "") -> Any:
    """Shops that are looked at every day from their first one on: (first day, what it sells by day, None: not told)."""
    system = chain()
    many: Any = system.many
    many = replace(many, key="day", watched=None, fan=lambda said: said if said.median else None)
    system = replace(system, answer=Ahead, hides=lambda said: False, many=many)
    journal, position = Journal(system), 0
    for day in range(-40, days):
        for shop, (first, _) in sells.items():
            if day < first:
                continue
            said = Ahead() if shop == silent else forecast(FIRST + day)
            reply = Reply(said, "v", "champion", 1.0, None, NOTHING, (), rows=rows_of([], [], []).columns)
            event, position = check(shop, FIRST + day).event, position + 1
            journal.ask([event], [Logged(position=position, created_timestamp=event.event_timestamp)], [reply])
        for shop, (first, units) in sells.items():
            if day >= first and units(day) is not None:
                told, position = sold(shop, FIRST + day, float(units(day))), position + 1
                journal.tell([told.event], [Logged(position=position, created_timestamp=told.at - HOUR)])
    return SimpleNamespace(start=START, days=days, drift_day=drift_day, journal=journal, system=system)


SHOPS: dict[str, tuple[int, Any]] = {
    "small": (-40, lambda day: 2), "middle": (-40, lambda day: 5), "never": (-40, lambda day: 0),
    "rare": (-40, lambda day: day % 3 == 0), "large": (-40, lambda day: None if day == 25 else day + 40),
    "new": (13, lambda day: 1),
}  # fmt: skip


def test_units_that_differ_are_shown_a_week_before_the_drift_and_a_week_after_it() -> None:
    said: Any = fans(chained(30, SHOPS))
    assert [(fan["unit"], fan["why"], int(fan["asked"])) for fan in said["shown"]] == [
        (unit, why, day)
        for unit, why in (
            ("large", "the largest"), ("small", "the median"), ("rare", "mostly zero"), ("new", "the newest"),
        )
        for day in (23, 37)
    ]  # fmt: skip
    assert said["value"] == "units"
    large = said["shown"][0]
    assert large["days"] == list(range(23 - BEFORE, 23 + AHEAD))
    assert large["observed"] == [None if day == 25 else day + 40 for day in large["days"]], (
        "what was not told is missing"
    )
    assert large["median"] == [None] * BEFORE + [FIRST + 23 + k for k in range(AHEAD)]
    new = said["shown"][-2]
    assert new["observed"] == [None] * 18 + [1] * 20


def test_without_a_drift_the_forecast_is_the_last_one_whose_days_were_lived() -> None:
    said: Any = fans(chained(None, SHOPS))
    assert {fan["asked"] // 1 for fan in said["shown"]} == {60 - AHEAD}
    assert said["shown"][0]["days"][-1] == 59


def test_a_unit_without_a_forecast_on_one_of_the_days_is_not_shown() -> None:
    said: Any = fans(chained(12, SHOPS, silent="large"))
    assert {fan["unit"] for fan in said["shown"]} == {"middle", "small", "rare"}
    assert fans(chained(12, {"large": SHOPS["large"]}, silent="large")) == {"value": "units", "shown": []}
    assert fans(chained(None, {"large": SHOPS["large"]}, silent="large")) == {"value": "units", "shown": []}


# A real one


@pytest.fixture(scope="module")
def shop_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    with lived(tmp_path_factory.mktemp("story"), days=15, drift="ways@1") as made:
        served(made, 15)
        yield made


def test_a_run_is_a_document_that_is_valid_for_the_page_with_and_without_a_comparison(shop_run: Simulation) -> None:
    mine = shop_run.regret()
    for without in (None, replace(mine, paid=mine.paid * 2)):
        said = story(shop_run, "small", without)
        again = json.loads(json.dumps(said, allow_nan=False))
        assert page(again).startswith("<!doctype html>")
        assert said["requests"] == 15 * 500 == sum(week["requests"] for week in said["weeks"])
        assert len(said["weeks"]) == 3
        assert said["detection_delay"] > 3
        assert said["false_alarms"] == 0
        assert said["closed"] is None
        assert "fans" not in said, "it forecasts no days ahead"
    assert all(week["regret"] >= 0 for week in said["weeks"])


def test_every_version_of_a_run_has_a_reason_and_a_fate(shop_run: Simulation) -> None:
    said = story(shop_run, "small", None)["versions"]
    assert [v["name"] for v in said] == [v.name for v in shop_run.registry.versions("shop")]
    first = next(v for v in said if v["day"] == 0)
    assert (first["why"], first["fate"]) == ("the first one", "promoted: the first one")
    assert all(v["fate"] for v in said)
    assert len(said) >= 2


def test_quality_that_has_had_no_time_to_be_known_is_missing(shop_run: Simulation) -> None:
    said = story(shop_run, "small", None)["quality"]
    assert said["days"] == [7, 14]
    assert said["realised"][0] is not None
    assert said["realised"][1] is None, "the labels of its last days are to come"
    assert said["low"][0] < said["realised"][0] < said["high"][0]
    assert all(value is not None for value in said["estimated"])
    assert "matured labels contradict the probabilities" in (said["doubts"][1] or ""), "for the world has drifted"


def test_drift_is_told_of_the_columns_that_are_watched_and_of_none_before_its_chunk_is_whole(
    shop_run: Simulation,
) -> None:
    said = story(shop_run, "small", None)["drift_by_feature"]
    assert set(said["columns"]) == {"score", "user.n", "size"}
    assert said["days"] == list(range(1, 16))
    assert said["columns"]["size"][:6] == [None] * 6
    assert said["columns"]["size"][6] > 0
    assert said["columns"]["score"] == [None] * 15, "its usual law is not known so early"


def test_reasons_are_shares_of_what_was_given_any(shop_run: Simulation) -> None:
    said = story(shop_run, "small", None)["reasons"]
    assert set(said) == {"before", "after"}
    assert said["before"] == said["after"] == {"LARGE": 1.0}
