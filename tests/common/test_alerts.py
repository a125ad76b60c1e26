"""Alerts: what each condition says, what a missing signal does, restarts, and the same verdicts as Prometheus'."""

import json
import math
import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.clock import HOUR, MINUTE, SECOND, SimulatedClock
from common.errors import BadDefinition, Damaged, OutOfOrder
from common.monitoring.alerts import (
    Above,
    Absent,
    Alarms,
    Alert,
    Below,
    Burning,
    Condition,
    Older,
    Rule,
    Series,
    Signal,
    Silent,
    prometheus,
    rules,
    signal,
    windows,
)
from common.system import Monitor, find, names

ROOT = Path(__file__).parents[2]
PROMTOOL = os.environ.get("MLSYS_TEST_PROMTOOL") or shutil.which("promtool") or ""
needs_promtool = pytest.mark.skipif(
    not PROMTOOL, reason="no promtool: put Prometheus' promtool on PATH, or its path into MLSYS_TEST_PROMTOOL"
)
STEP = 55 * SECOND  # no window is a multiple: Prometheus 2 and 3 disagree on a sample at a window's older edge
HEAT = signal("ml_heat", system="shop")
BAD, ALL = signal("ml_answers_total", system="shop", outcome="failed"), signal("ml_answers_total", system="shop")
MONITORS = (
    Monitor(name="price", column="price", look_at="the currency; a {{ brace }} and a 'quote' are text"),
    Monitor(name="place", column='odd "name"\\', look_at="the shops"),
)
Tick = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def rule(condition: Condition, name: str = "Hot", holds_for: int = 0) -> Rule:
    return Rule(
        name=name, summary="It is hot.", look_at="the oven", severity="ticket", condition=condition, holds_for=holds_for
    )


def guarded(*speaking: Rule) -> tuple[Rule, ...]:
    signals = tuple(dict.fromkeys(s for one in speaking for s in one.condition.signals))
    return (*speaking, *(rule(Absent((s,)), f"Missing{i}") for i, s in enumerate(signals)))


class Watch:
    """Rules, what they see and the clock, which a tick moves on."""

    def __init__(self, *speaking: Rule, lookback: int = 5 * MINUTE, step: int = MINUTE) -> None:
        self.rules = guarded(*speaking)
        self.clock, self.step = SimulatedClock(0), step
        self.series = Series(windows(self.rules), lookback)
        self.alarms = Alarms(self.rules, self.clock)

    def tick(self, **values: float | None) -> list[tuple[str, str]]:
        """By metric, of the system shop; None: missing."""
        return self.see({signal(m, system="shop"): v for m, v in values.items() if v is not None})

    def see(self, values: Tick) -> list[tuple[str, str]]:
        self.clock.advance(self.clock.now() + self.step)
        self.series.add(self.clock.now(), values)
        return [(a.rule, a.state) for a in self.alarms.step(self.series)]

    def firing(self) -> list[str]:
        return [a.rule for a in self.alarms.active() if a.state == "firing"]


def test_a_gauge_above_its_limit_fires_and_is_resolved() -> None:
    watch = Watch(rule(Above(HEAT, 1.0)))
    assert watch.tick(ml_heat=1.0) == []
    assert watch.tick(ml_heat=1.5) == [("Hot", "firing")]
    assert watch.tick(ml_heat=1.6) == []
    assert watch.tick(ml_heat=0.5) == [("Hot", "resolved")]


def test_an_alert_says_since_when_and_how_much() -> None:
    watch = Watch(rule(Above(HEAT, 1.0), holds_for=2 * MINUTE))
    for value in (2.0, 3.0, 4.0):
        watch.tick(ml_heat=value)
    (alert,) = watch.alarms.active()
    assert (alert.since, alert.fired, alert.at, alert.value) == (MINUTE, 3 * MINUTE, 3 * MINUTE, 4.0)
    assert (alert.labels, alert.look_at, alert.severity) == ((("system", "shop"),), "the oven", "ticket")


def test_a_gauge_below_its_limit_fires() -> None:
    watch = Watch(rule(Below(HEAT, 1.0)))
    assert watch.tick(ml_heat=1.0) == []
    assert watch.tick(ml_heat=0.9) == [("Hot", "firing")]


def test_a_time_too_far_back_fires() -> None:
    watch = Watch(rule(Older(HEAT, 120.0)))
    assert watch.tick(ml_heat=0.0) == []
    assert watch.tick(ml_heat=0.0) == []
    assert watch.tick(ml_heat=0.0) == [("Hot", "firing")]
    assert watch.tick(ml_heat=239.0) == [("Hot", "resolved")]


def test_an_alarm_waits_until_its_condition_held_long_enough() -> None:
    watch = Watch(rule(Above(HEAT, 1.0), holds_for=2 * MINUTE))
    assert watch.tick(ml_heat=2.0) == [("Hot", "pending")]
    assert watch.tick(ml_heat=2.0) == []
    assert watch.tick(ml_heat=0.0) == [("Hot", "inactive")]
    assert watch.tick(ml_heat=2.0) == [("Hot", "pending")]
    assert watch.tick(ml_heat=2.0) == []
    assert watch.tick(ml_heat=2.0) == [("Hot", "firing")]


def test_a_missing_gauge_keeps_its_alarm_and_raises_the_absence() -> None:
    watch = Watch(rule(Above(HEAT, 1.0, HOUR)))
    watch.tick(ml_heat=2.0)
    said = [watch.tick(ml_heat=None) for _ in range(59)]
    assert watch.firing() == ["Hot", "Missing0"]
    assert [change for changes in said for change in changes] == [("Missing0", "firing")]
    assert said[4] == [("Missing0", "firing")]  # the lookback of 5 minutes is over
    assert watch.tick(ml_heat=None) == [("Hot", "resolved")]  # the last value is as old as it may be
    assert watch.firing() == ["Missing0"]


def test_nan_is_a_missing_signal_and_not_a_quiet_one() -> None:
    watch = Watch(rule(Above(HEAT, 1.0)))
    watch.tick(ml_heat=2.0)
    for _ in range(6):
        watch.tick(ml_heat=math.nan)
    assert watch.firing() == ["Hot", "Missing0"]


def test_a_signal_that_never_was_is_absent() -> None:
    assert Watch(rule(Above(HEAT, 1.0))).tick() == [("Missing0", "firing")]


def answers(failed: float | None, full: float) -> Tick:
    said = {signal("ml_answers_total", system="shop", outcome="full"): full}
    return said if failed is None else {**said, BAD: failed}


def burning(**said: Any) -> Rule:
    return rule(Burning(**{"total": ALL, "bad": BAD, "target": 0.999, **said}))


def test_a_burning_budget_must_burn_in_both_windows() -> None:
    watch = Watch(burning())
    for minute in range(60):
        assert watch.see(answers(0, 100 * minute)) == []
    for minute in range(60, 64):  # 14.4 * 0.1 % of an hour's 6,000 answers are 86
        assert watch.see(answers(20 * (minute - 59), 100 * minute)) == [], minute
    assert watch.see(answers(100, 6_400)) == [("Hot", "firing")]
    for minute in range(65, 68):  # five minutes still have failures in them
        assert watch.see(answers(100, 100 * minute)) == []
    assert watch.see(answers(100, 6_800)) == [("Hot", "resolved")]  # the hour alone burns on


def test_a_failure_counter_that_nobody_has_used_is_no_missing_signal() -> None:
    watch = Watch(burning())
    for minute in range(10):
        assert watch.see(answers(None, 100 * minute)) == []


def test_no_traffic_keeps_a_burning_alarm() -> None:
    watch = Watch(burning())
    for minute in range(10):
        watch.see(answers(50 * minute, 100 * minute))
    assert watch.firing() == ["Hot"]
    assert [watch.see(answers(450, 900)) for _ in range(200)] == [[]] * 200
    assert watch.see(answers(450, 1_900)) == [("Hot", "resolved")]


def test_a_failure_counter_that_is_gone_ends_the_burning() -> None:
    watch = Watch(burning())
    for minute in range(10):
        watch.see(answers(50 * minute, 100 * minute))
    said = [watch.see(answers(None, 100 * minute)) for minute in range(10, 20)]
    assert said.count([("Hot", "resolved")]) == 1


def test_a_restarted_process_is_no_failure() -> None:
    watch = Watch(burning())
    for minute in range(10):
        watch.see(answers(0, 1_000 * minute))
    assert watch.see(answers(0, 5)) == []
    assert watch.see(answers(1, 15)) == []  # of the 7,015 answers that 5 minutes had
    assert watch.see(answers(0, 1_000)) == []


def test_late_answers_burn_by_what_was_in_time() -> None:
    count, fast = signal("ml_s_count", system="shop"), signal("ml_s_bucket", system="shop", le="0.25")
    watch = Watch(rule(Burning(total=count, good=fast, target=0.99)))
    said = [watch.see({count: 100.0 * i, fast: 100.0 * i - 30 * max(0, i - 3)}) for i in range(12)]
    assert said.index([("Hot", "firing")]) == 6  # 90 late of 600; the limit is 14.4 %


def test_a_burn_without_its_good_counter_says_so() -> None:
    count, fast = signal("ml_s_count", system="shop"), signal("ml_s_bucket", system="shop", le="0.25")
    watch = Watch(rule(Burning(total=count, good=fast, target=0.99)))
    assert watch.see({count: 1.0}) == [("Missing1", "firing")]


def test_a_counter_that_stands_still_is_silent_only_against_one_that_moves() -> None:
    labels, asked = signal("ml_labels_total", system="shop"), signal("ml_asked_total", system="shop")
    watch = Watch(rule(Silent(counter=labels, against=asked, over=5 * MINUTE), holds_for=10 * MINUTE))
    for minute in range(30):  # nobody asks
        assert watch.see({labels: 7.0, asked: 0.0}) == [], minute
    assert watch.see({labels: 7.0, asked: 1.0}) == [("Hot", "pending")]
    said = [watch.see({labels: 7.0, asked: 2.0 + i}) for i in range(10)]
    assert said == [[]] * 9 + [[("Hot", "firing")]]
    assert watch.see({labels: 8.0, asked: 12.0}) == [("Hot", "resolved")]


def test_growth_is_that_of_prometheus() -> None:
    """10 a minute, seen from 1 to 4 minutes of a window of 5, is 50 in the window."""
    series = Series({"ml_asked_total": HOUR})
    asked = signal("ml_asked_total", system="shop")
    for minute in range(1, 5):
        series.add(minute * MINUTE, {asked: 100.0 + 10 * minute})
    assert series.increase(asked, 5 * MINUTE, 5 * MINUTE) == pytest.approx(50)
    # half a sample's distance beyond one that is the last for long
    assert series.increase(asked, 10 * MINUTE, 10 * MINUTE) == pytest.approx(10 * (1 + 3 + 0.5))
    series.add(6 * MINUTE, {asked: 3.0})  # reset, then 3
    assert series.increase(asked, 2 * MINUTE + 1, 6 * MINUTE) == pytest.approx(3.0, rel=1e-6)
    assert series.increase(asked, MINUTE, 6 * MINUTE) is None  # one sample says nothing of growth


def test_windows_are_open_at_the_older_end() -> None:
    series = Series({"ml_heat": MINUTE}, lookback=MINUTE)
    series.add(MINUTE, {HEAT: 1.0})
    assert [value for _, _, value in series.last(HEAT, MINUTE, 2 * MINUTE - 1)] == [1.0]
    assert list(series.last(HEAT, MINUTE, 2 * MINUTE)) == []


def test_a_store_forgets_what_no_window_reaches() -> None:
    series = Series({"ml_heat": 10 * MINUTE})
    for minute in range(1, 1_001):
        series.add(minute * MINUTE, {HEAT: 1.0, signal("ml_other", system="shop"): 1.0})
    assert 10 <= len(series) <= 21
    for minute in range(1_001, 1_020):
        series.add(minute * MINUTE, {})
    assert len(series) == 0


def test_a_store_refuses_time_that_runs_backwards() -> None:
    series = Series({"ml_heat": MINUTE})
    series.add(MINUTE, {})
    with pytest.raises(OutOfOrder, match="at: must be after 60000000, got 60000000"):
        series.add(MINUTE, {HEAT: 1.0})


def test_each_series_has_its_own_alarm_in_a_fixed_order() -> None:
    watch = Watch(rule(Above(HEAT, 1.0)))
    parts = [signal("ml_heat", system="shop", part=part) for part in ("c", "a", "b")]
    watch.clock.advance(MINUTE)
    watch.series.add(MINUTE, dict.fromkeys(parts, 2.0))
    assert [dict(a.labels)["part"] for a in watch.alarms.step(watch.series)] == ["a", "b", "c"]


def test_what_is_pending_of_some_labels_begins_anew_and_nothing_else_does() -> None:
    watch = Watch(rule(Above(HEAT, 1.0), holds_for=2 * MINUTE), rule(Above(HEAT, 5.0), "Burnt"), lookback=HOUR)
    a, b = (signal("ml_heat", system="shop", part=part) for part in ("a", "b"))
    watch.see({a: 2.0, b: 9.0})
    watch.alarms.anew("Hot", part="a")
    watch.alarms.anew("Burnt")  # it fires: it stays
    assert [(alert.rule, dict(alert.labels)["part"]) for alert in watch.alarms.active()] == [
        ("Burnt", "b"),
        ("Hot", "b"),
    ]
    watch.see({a: 2.0, b: 9.0})
    assert watch.see({a: 2.0, b: 9.0}) == [("Hot", "firing")], "that of b, which has held for two minutes"
    assert watch.see({a: 2.0, b: 9.0}) == [("Hot", "firing")]


def test_a_restart_neither_says_again_nor_loses() -> None:
    watch = Watch(rule(Above(HEAT, 1.0), holds_for=MINUTE), rule(burning().condition, "Burn"))
    for minute in range(10):
        watch.see({**answers(50 * minute, 100 * minute), HEAT: 2.0})
    assert watch.firing() == ["Burn", "Hot"]
    before = watch.alarms.active()
    again = Alarms(watch.rules, watch.clock)
    again.restore(watch.alarms.state())
    assert again.active() == before
    watch.alarms, watch.series = again, Series(windows(watch.rules))  # the samples are gone
    said = watch.see(answers(500, 1_000))
    assert [change for change in said if change[0] in ("Hot", "Burn")] == []
    assert watch.firing()[:2] == ["Burn", "Hot"]
    assert ("Hot", "resolved") in watch.see({**answers(500, 2_000), HEAT: 0.0})


@given(
    st.lists(st.sampled_from([None, 0.5, 2.0]), min_size=1, max_size=30),
    st.sets(st.integers(0, 29)),
    st.sampled_from([0, 2 * MINUTE]),
)
@settings(max_examples=60, deadline=None)
def test_restarts_at_any_time_change_nothing(values: list[float | None], restarts: set[int], holds_for: int) -> None:
    whole, broken = (Watch(rule(Above(HEAT, 1.0, 7 * MINUTE), holds_for=holds_for)) for _ in range(2))
    for i, value in enumerate(values):
        if i in restarts:
            state = broken.alarms.state()
            broken.alarms = Alarms(broken.rules, broken.clock)
            broken.alarms.restore(state)
        assert whole.tick(ml_heat=value) == broken.tick(ml_heat=value)


def test_the_alarm_of_a_rule_that_is_gone_is_resolved() -> None:
    watch = Watch(rule(Above(HEAT, 1.0)))
    watch.tick(ml_heat=2.0)
    again = Alarms((), watch.clock)
    again.restore(watch.alarms.state())
    assert [(a.rule, a.state) for a in again.step(watch.series)] == [("Hot", "resolved")]
    assert again.step(watch.series) == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s[:-5], lambda s: "[" * 100_000, lambda s: "null", lambda s: "[1]",
        lambda s: s.replace('"firing"', '"resolved"'), lambda s: s.replace('"firing"', '"hot"'),
        lambda s: s.replace('"seen": 60000000', '"seen": "then"'),
        lambda s: s.replace('"fired": 60000000', '"fired": 1.5'),
        lambda s: s.replace('"rule"', '"role"'), lambda s: s.replace('"value": 2.0', '"value": "2"'),
    ],
)  # fmt: skip
def test_a_damaged_state_is_refused_in_one_line(change: Any) -> None:
    watch = Watch(rule(Above(HEAT, 1.0)))
    watch.tick(ml_heat=2.0)
    state = watch.alarms.state()
    assert change(state) != state
    with pytest.raises(Damaged) as raised:
        watch.alarms.restore(change(state))
    assert "\n" not in str(raised.value)
    assert watch.firing() == ["Hot"]


def test_an_infinite_value_can_be_saved() -> None:
    watch = Watch(rule(Above(HEAT, 1.0)))
    watch.tick(ml_heat=math.inf)
    assert json.loads(watch.alarms.state())[0]["alert"]["value"] > 1e308


def test_no_rule_is_taken_whose_signal_could_vanish_unseen() -> None:
    with pytest.raises(BadDefinition, match="Hot: its signals must each have an Absent rule"):
        Alarms((rule(Above(HEAT, 1.0)),), SimulatedClock(0))
    other = rule(Absent((signal("ml_heat", system="other"),)), "Missing")
    with pytest.raises(BadDefinition, match="must each have an Absent rule"):
        Alarms((rule(Above(HEAT, 1.0)), other), SimulatedClock(0))


def test_rules_of_one_name_differ_in_a_label() -> None:
    hot = rule(Above(HEAT, 1.0))
    with pytest.raises(BadDefinition, match="Hot: rules of one name must differ in a label"):
        Alarms(guarded(hot, rule(Above(signal("ml_heat", system="shop", part="a"), 2.0))), SimulatedClock(0))
    Alarms(guarded(hot, rule(Above(signal("ml_heat", system="bank"), 2.0))), SimulatedClock(0))


@pytest.mark.parametrize(
    "declare",
    [
        lambda: rule(Above(HEAT, 1.0), "hot"), lambda: rule(Above(HEAT, 1.0), holds_for=5),
        lambda: rule(Above(HEAT, 1.0), holds_for=-MINUTE), lambda: signal("ml-heat"),
        lambda: signal("ml_heat", system=""),
        lambda: signal("ml_heat", system="a\nb"), lambda: burning(bad=None), lambda: burning(good=BAD),
        lambda: burning(target=1.0), lambda: burning(windows_us=(MINUTE, HOUR)), lambda: burning(windows_us=()),
        lambda: Silent(counter=ALL, against=BAD),
        lambda: Rule(name="A", summary="a\nb", look_at="c", severity="page", condition=Above(HEAT, 1.0)),
        lambda: Rule(name="A", summary="a", look_at="c", severity="loud", condition=Above(HEAT, 1.0)),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_a_rule_that_cannot_work_is_refused_where_it_is_declared(declare: Any) -> None:
    with pytest.raises(BadDefinition):
        declare()


def standard() -> tuple[Rule, ...]:
    """With short times, so that a few hours show everything."""
    return rules(
        "shop", MONITORS, floors={"auc_roc": 0.8}, ceilings={"log_loss": 0.5}, chunk=20 * MINUTE, keep=40 * MINUTE,
        grace=4 * MINUTE, windows=(30 * MINUTE, 5 * MINUTE), quiet=35 * MINUTE, stuck=50 * MINUTE,
    )  # fmt: skip


def test_the_standard_rules_watch_every_signal_and_its_absence() -> None:
    taken = standard()
    Alarms(taken, SimulatedClock(0))
    assert {s.metric for one in taken for s in one.condition.signals} == {
        "ml_feature_drift_ratio", "ml_model_quality", "ml_label_surprise", "ml_data_flaw_ratio", "ml_label_flaw_ratio",
        "ml_answers_total", "ml_prediction_latency_seconds_count", "ml_prediction_latency_seconds_bucket",
        "ml_labels_total", "ml_canary_share", "ml_monitoring_last_run_timestamp_seconds",
    }  # fmt: skip
    drifts = {dict(one.labels)["column"]: one.look_at for one in taken if one.name == "FeatureDrift"}
    assert drifts == {monitor.column: monitor.look_at for monitor in MONITORS}


@pytest.mark.parametrize(("second", "fires"), [(2.0, True), (0.5, False)])
def test_drift_needs_two_chunks_in_a_row_though_the_second_comes_late(second: float, fires: bool) -> None:
    drift = next(one for one in rules("shop", MONITORS) if one.name == "FeatureDrift")
    watch = Watch(drift, step=HOUR, lookback=2 * HOUR)
    said: list[tuple[str, str]] = []
    for hour in range(60):
        value = 0.5 if hour < 4 else 2.0 if hour < 4 + 25 else second if hour < 4 + 50 else 0.5
        said += watch.see({drift.condition.signals[0]: value})
    assert (("FeatureDrift", "firing") in said) == fires


def test_a_rules_file_reads_like_one() -> None:
    text = prometheus([rule(Above(signal("ml_heat", system="it's"), 1.0, HOUR), holds_for=90 * MINUTE)])
    assert text == "\n".join(
        [
            "# Generated from common/monitoring/alerts. Do not edit.",
            "groups:",
            '  - name: "it\'s"',
            "    rules:",
            "      - alert: Hot",
            "        expr: 'last_over_time(ml_heat{system=\"it''s\"}[1h]) > 1.0'",
            "        for: 1h30m",
            "        labels:",
            '          "severity": "ticket"',
            '          "system": "it\'s"',
            "        annotations:",
            '          summary: "It is hot."',
            '          look_at: "the oven"',
            "",
        ]
    )


@pytest.mark.parametrize("name", names("systems"))
def test_the_rules_file_of_each_system_is_the_generated_one(name: str) -> None:
    committed = ROOT / "docs" / "alerts" / f"{name}.rules.yml"
    assert committed.read_text() == prometheus(rules(name, find("systems", name).monitors))


# --- the same series, judged here and by Prometheus


def signals(random: Random, ticks: int) -> list[dict[Signal, float]]:
    """Series of every metric that is sometimes fine, sometimes not, sometimes gone; counters are reset now and then."""
    shop = {"system": "shop"}
    gauges = [
        *(
            signal("ml_feature_drift_ratio", **shop, column=monitor.column, distance=distance)
            for monitor in MONITORS
            for distance in ("js", "psi")
        ),
        *(signal("ml_model_quality", **shop, version="a", metric=m, kind="realised") for m in ("auc_roc", "log_loss")),
        signal("ml_label_surprise", **shop),
        signal("ml_data_flaw_ratio", **shop, column="price", kind="missing"),
        signal("ml_label_flaw_ratio", **shop, kind="frozen"),
        signal("ml_canary_share", **shop),
    ]
    phases = {key: _phases(random, ticks) for key in (*map(str, gauges), "answers", "labels", "latency", "ran")}
    counted: dict[Signal, float] = defaultdict(float)
    made, ran = [], 0.0
    first = random.randint(0, 40)  # the tick that shows a counter of failures, at zero
    for i in range(ticks):
        values: dict[Signal, float] = {}
        for gauge in gauges:
            if (phase := phases[str(gauge)][i]) != "gone":
                fine = 0.0 if gauge.metric == "ml_canary_share" else random.uniform(0, 0.99)
                values[gauge] = random.uniform(1.01, 3) if phase == "bad" else fine
        if phases["ran"][i] == "fine":
            ran = i * STEP / SECOND
        if phases["ran"][i] != "gone":
            values[signal("ml_monitoring_last_run_timestamp_seconds", **shop)] = ran
        count, fast = (
            signal("ml_prediction_latency_seconds_count", **shop),
            signal("ml_prediction_latency_seconds_bucket", **shop, le="0.25"),
        )
        groups = {
            "answers": [
                signal("ml_answers_total", **shop, outcome=outcome) for outcome in ("full", "degraded", "failed")
            ],
            "labels": [signal("ml_labels_total", **shop)],
            "latency": [count, fast],
        }
        for name, group in groups.items():
            phase = phases[name][i]
            if random.random() < 0.01:
                counted.update(dict.fromkeys(group, 0.0))
            if phase in ("fine", "bad"):
                grown = random.randint(50, 150) if i else 0
                share = random.uniform(0.1, 0.6) if phase == "bad" else random.uniform(0, 0.0005)
                parts = {
                    "answers": [grown, grown // 10, round(grown * share) * (i > first)],
                    "labels": [grown],
                    "latency": [grown, round(grown * (1 - share))],
                }[name]
                for one, part in zip(group, parts, strict=True):
                    counted[one] += part
            if phase != "gone":
                values.update({one: counted[one] for one in group if one != BAD or i >= first})
        made.append(values)
    return made


def _phases(random: Random, ticks: int) -> list[str]:
    """fine, bad, still (a counter does not move) or gone, for a while each; fine at the start."""
    told = ["fine"] * random.randint(2, 30)
    while len(told) < ticks:
        told += [random.choice(["fine", "bad", "still", "gone"])] * random.choice([1, 3, 8, 30, 70])
    return told[:ticks]


def judged(taken: Sequence[Rule], ticks: Sequence[Tick]) -> list[dict[str, list[Alert]]]:
    """What fires here after each tick, by the name of the rule."""
    clock, series = SimulatedClock(0), Series(windows(taken))
    alarms = Alarms(taken, clock)
    found = []
    for i, values in enumerate(ticks):
        clock.advance(i * STEP)
        series.add(i * STEP, values)
        alarms.step(series)
        firing: dict[str, list[Alert]] = {one.name: [] for one in taken}
        for alert in alarms.active():
            if alert.state == "firing":
                firing[alert.rule].append(alert)
        found.append(firing)
    return found


def case(ticks: Sequence[Tick], firing: Sequence[Mapping[str, Sequence[Alert]]]) -> dict[str, Any]:
    """A test group of promtool: these series, and what has to fire after each tick, no more and no less."""
    step = f"{STEP // SECOND}s"
    every = sorted({one for values in ticks for one in values})
    return {
        "interval": step,
        "input_series": [
            {
                "series": str(Signal(*one)),
                "values": " ".join(repr(values[one]) if one in values else "_" for values in ticks),
            }
            for one in every
        ],
        "alert_rule_test": [
            {
                "eval_time": f"{i * STEP // SECOND}s",
                "alertname": name,
                "exp_alerts": [
                    {
                        "exp_labels": {**dict(alert.labels), "severity": alert.severity},
                        "exp_annotations": {"summary": alert.summary, "look_at": alert.look_at},
                    }
                    for alert in alerts
                ],
            }
            for i, said in enumerate(firing)
            for name, alerts in said.items()
        ],
    }


def promtool(folder: Path, taken: Sequence[Rule], groups: Sequence[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    (folder / "rules.yml").write_text(prometheus(taken))
    tests = {"rule_files": ["rules.yml"], "evaluation_interval": f"{STEP // SECOND}s", "tests": groups}
    (folder / "tests.yml").write_text(json.dumps(tests))  # JSON is YAML
    return subprocess.run(
        [PROMTOOL, "test", "rules", "tests.yml"], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


TICKS = 400


@needs_promtool
@pytest.mark.parametrize("name", ["shop", *names("systems")])
def test_prometheus_takes_the_rules(tmp_path: Path, name: str) -> None:
    (tmp_path / "rules.yml").write_text(prometheus(rules(name, MONITORS, floors={"auc_roc": 0.8})))
    done = subprocess.run(
        [PROMTOOL, "check", "rules", "--lint-fatal", "rules.yml"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules(name, MONITORS, floors={'auc_roc': 0.8}))} rules found" in done.stdout


@needs_promtool
def test_prometheus_fires_when_we_do_sample_by_sample(tmp_path: Path) -> None:
    taken = standard()
    groups, seen = [], []
    for seed in range(6):
        ticks = signals(Random(seed), TICKS)
        seen.append(judged(taken, ticks))
        groups.append(case(ticks, seen[-1]))
    done = promtool(tmp_path, taken, groups)
    assert done.returncode == 0, (done.stdout + done.stderr)[:4_000]
    for one in taken:  # each rule fired and was resolved, so agreeing on it says something
        ever = [bool(said[one.name]) for run in seen for said in run]
        ends = [before and not after for before, after in zip(ever, ever[1:], strict=False)]
        assert any(ever), one.name
        assert any(ends), one.name


@needs_promtool
def test_prometheus_disagrees_with_a_tick_too_early(tmp_path: Path) -> None:
    """So the test above can fail, for each rule."""
    taken = standard()
    ticks = signals(Random(0), TICKS)
    firing = judged(taken, ticks)
    done = promtool(tmp_path, taken, [case(ticks, [*firing[1:], firing[-1]])])
    changing = {one.name for one in taken if any(bool(a[one.name]) != bool(firing[0][one.name]) for a in firing)}
    assert len(changing) > 15
    assert changing <= set(re.findall(r"alertname: (\w+)", done.stdout + done.stderr))
