"""A canary that is worse is found, one that is not is left alone, and units count, not requests."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.rollout import BUDGET, FAULTS, Traffic, same, until_noticed
from common.clock import DAY, HOUR, MILLISECOND, MINUTE
from common.lifecycle.evidence import TESTS, WEIGHTS, Evidence, Observation, Round, Seen, _bets, bets

EVIDENCE = Evidence(settle=0)
WHOLE = [(0, 0.1)]  # a timetable


def asked(unit: str, canary: bool, at: int, **said: Any) -> Observation:
    usual = {"failed": False, "missing": False, "took": 20 * MILLISECOND, "gap": 0.0, "loss": 1.0}
    return Observation(unit=unit, canary=canary, at=at, **{**usual, **said})


def crowd(day: int = 0, canaries: int = 20, champions: int = 180, each: int = 5) -> list[Observation]:
    """Units that are fine, each asking so often, spread over a day."""
    units = [(f"c{i}", True) for i in range(canaries)] + [(f"h{i}", False) for i in range(champions)]
    random.Random(0).shuffle(units)
    gap = DAY // (each * len(units) + 1)
    places = itertools.product(range(each), units)
    return [asked(unit, canary, day * DAY + (1 + i) * gap) for i, (_, (unit, canary)) in enumerate(places)]


def broken(seen: Sequence[Observation], units: set[str], **said: Any) -> list[Observation]:
    return [replace(o, **said) if o.unit in units else o for o in seen]


TROUBLE: dict[str, dict[str, Any]] = {
    "errors": {"failed": True},
    "missing": {"missing": True},
    "latency": {"took": 5_000 * MILLISECOND},
    "gap": {"gap": 0.1},
    "loss": {"loss": 1e6},
}
CANARIES = {f"c{i}" for i in range(20)}


@pytest.mark.parametrize("test", TESTS)
def test_a_canary_that_is_worse_for_all_units_is_found_by_the_test_that_is_meant(test: str) -> None:
    said: dict[str, Any] = {"loss": 9.0} if test == "loss" else TROUBLE[test]
    seen = crowd(canaries=100, champions=900)
    verdict = EVIDENCE.judge(broken(seen, {f"c{i}" for i in range(100)}, **said), WHOLE, DAY)
    assert verdict.bad == test
    assert (verdict.canary_units, verdict.canary_requests) == (100, 500)
    assert verdict.tests[test] == pytest.approx(max(e or 0 for e in verdict.tests.values()))
    assert all((verdict.tests[other] or 0) < EVIDENCE.enough for other in TESTS if other != test)
    assert EVIDENCE.judge(seen, WHOLE, DAY).bad is None


@pytest.mark.parametrize("test", TESTS)
def test_a_champion_that_is_worse_is_no_evidence_against_the_canary(test: str) -> None:
    seen = broken(crowd(), {f"h{i}" for i in range(180)}, **TROUBLE[test])
    verdict = EVIDENCE.judge(seen, WHOLE, DAY)
    assert (verdict.tests[test] or 0) < 1 == WEIGHTS[test] + (1 - WEIGHTS[test])
    assert verdict.bad is None


@pytest.mark.parametrize("arm", ["c0", "h0"])
def test_one_broken_unit_never_takes_a_canary_out_however_often_and_long_it_asks(arm: str) -> None:
    """It has all kinds of trouble at once, a thousand times a day, for a month."""
    seen = [o for day in range(30) for o in crowd(day, each=1)]
    often = [asked(arm, arm == "c0", at) for at in range(1, 30 * DAY, DAY // 1000)]
    every: dict[str, Any] = {key: value for said in TROUBLE.values() for key, value in said.items()}
    verdict = EVIDENCE.judge(broken([*seen, *often], {arm}, **every), WHOLE, 30 * DAY)
    assert verdict.bad is None
    assert max(e or 0 for e in verdict.tests.values()) < 3


def test_a_unit_with_100_requests_does_not_count_100_times() -> None:
    seen = crowd()
    once = replace(seen[0], unit="c0", canary=True, failed=True)
    again = [replace(once, at=once.at + i) for i in range(1, 100)]
    few, many = (EVIDENCE.judge([once, *seen[1:], *more], WHOLE, DAY).tests["errors"] for more in ([], again))
    assert few == many
    two = EVIDENCE.judge([once, replace(seen[1], unit="c1", canary=True, failed=True), *seen[2:]], WHOLE, DAY).tests[
        "errors"
    ]
    assert two is not None
    assert few is not None
    assert two > few


def test_the_same_unfortunate_units_do_not_add_up_over_days() -> None:
    days = [broken(crowd(day), {"c0", "c1", "h0"}, failed=True) for day in range(30)]
    assert EVIDENCE.judge([o for day in days for o in day], WHOLE, 30 * DAY).bad is None


def test_a_version_that_breaks_on_its_third_day_is_found_on_that_day() -> None:
    days = [crowd(0), crowd(1), broken(crowd(2), CANARIES, failed=True)]
    assert EVIDENCE.judge([o for day in days for o in day], WHOLE, 2 * DAY + 12 * HOUR).bad == "errors"


def test_what_was_bad_once_stays_bad() -> None:
    early = broken([o for o in crowd() if o.at < DAY // 5], CANARIES, failed=True)
    late = broken([o for o in crowd() if o.at >= DAY // 5], {f"h{i}" for i in range(180)}, failed=True)
    assert EVIDENCE.judge(early, WHOLE, DAY // 5).bad == "errors"
    assert EVIDENCE.judge([*early, *late], WHOLE, DAY).bad == "errors"


@pytest.mark.parametrize(("more", "bad"), [(1, None), (19, None), (100, "latency")])
def test_a_canary_may_be_a_little_slower(more: int, bad: str | None) -> None:
    rng = random.Random(0)
    seen = [replace(o, took=int(1_000 * rng.lognormvariate(3, 0.4))) for o in crowd(canaries=100, champions=900)]
    slow = [replace(o, took=o.took + more * MILLISECOND * o.canary) for o in seen]
    assert EVIDENCE.judge(slow, WHOLE, DAY).bad == bad


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_a_slow_canary_is_found_whatever_part_of_the_answers_is_its_own(share: float) -> None:
    seen = crowd(canaries=int(400 * share), champions=400 - int(400 * share))
    slow = [replace(o, took=o.took + 100 * MILLISECOND * o.canary) for o in seen]
    assert EVIDENCE.judge(slow, [(0, share)], DAY).bad == "latency"


def test_a_gap_within_the_tolerance_is_none() -> None:
    assert EVIDENCE.judge(broken(crowd(), CANARIES, gap=1e-6), WHOLE, DAY).tests["gap"] == WEIGHTS["gap"] / 2


def test_what_was_not_checked_is_shown_as_not_known() -> None:
    seen = [replace(o, gap=None, loss=None) for o in crowd()]
    tests = EVIDENCE.judge(seen, WHOLE, DAY).tests
    assert {test for test in TESTS if tests[test] is None} == {"gap", "loss"}
    one_arm = [replace(o, gap=0.0, loss=1.0) if o.canary else o for o in seen]
    tests = EVIDENCE.judge(one_arm, WHOLE, DAY).tests
    assert {test for test in TESTS if tests[test] is None} == {"gap", "loss"}


@pytest.mark.parametrize("arm", [True, False])
def test_of_one_arm_alone_nothing_can_be_told(arm: bool) -> None:
    seen = broken([o for o in crowd() if o.canary == arm], CANARIES, failed=True)
    for given_ in (seen, []):
        verdict = EVIDENCE.judge(given_, WHOLE, DAY)
        assert (verdict.bad, set(verdict.tests.values())) == (None, {None})


def test_trouble_of_the_canary_counts_only_while_the_champion_is_heard_of() -> None:
    """Where the champion's metrics are gone, all trouble that there is seems to be the canary's."""
    seen = crowd(each=50)
    heard = [o for o in seen if o.canary or o.at < 2 * HOUR]
    late = [replace(o, failed=o.canary and o.at > 4 * HOUR) for o in heard]
    assert EVIDENCE.judge(late, WHOLE, DAY).bad is None
    assert EVIDENCE.judge([*late, *(o for o in seen if not o.canary)], WHOLE, DAY).bad == "errors"


def test_what_servers_answer_before_they_have_heard_of_a_change_does_not_count() -> None:
    seen = [asked(f"{arm}{i}", arm == "c", 100 * i, failed=arm == "c") for arm in "ch" for i in range(100)]
    assert Evidence(settle=MINUTE).judge(seen, WHOLE, DAY).bad is None
    assert Evidence(settle=0).judge(seen, WHOLE, DAY).bad == "errors"


def test_a_unit_that_is_seen_in_both_arms_counts_in_the_first() -> None:
    moved = [replace(o, canary=True, at=o.at + 1, failed=True) for o in crowd() if not o.canary]
    assert EVIDENCE.judge([*crowd(), *moved], WHOLE, DAY).tests["errors"] == pytest.approx(
        EVIDENCE.judge(crowd(), WHOLE, DAY).tests["errors"]
    )


def test_without_a_champion_to_compare_with_nothing_is_judged() -> None:
    for share in (0.0, 1.0):
        assert set(EVIDENCE.judge(crowd(), [(0, share)], DAY).tests.values()) == {None}


def test_losses_are_looked_at_when_a_day_is_over() -> None:
    seen = broken(crowd(canaries=100, champions=900), {f"c{i}" for i in range(100)}, loss=9.0)
    assert EVIDENCE.judge(seen, WHOLE, DAY - 1).tests["loss"] is None
    assert EVIDENCE.judge(seen, WHOLE, DAY).bad == "loss"


def test_a_single_loss_counts_no_more_than_the_clip() -> None:
    found = [EVIDENCE.judge(broken(crowd(), {"c0"}, loss=loss), WHOLE, DAY).tests["loss"] for loss in (1e6, 1e9)]
    assert found[0] == pytest.approx(found[1], rel=0.01)
    assert found[0] is not None
    assert found[0] < 2


def test_weights_share_out_the_rate() -> None:
    assert set(WEIGHTS) == set(TESTS)
    assert sum(WEIGHTS.values()) == pytest.approx(1)
    assert Evidence(rate=0.01).enough == 100


@given(st.randoms(use_true_random=False), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_the_order_in_which_observations_come_does_not_matter(rng: random.Random, tied: int) -> None:
    seen = [replace(o, at=o.at // (tied * HOUR) * tied * HOUR) for o in broken(crowd(), {"c1", "h5"}, failed=True)]
    shuffled = rng.sample(seen, len(seen))
    assert EVIDENCE.judge(shuffled, WHOLE, DAY) == EVIDENCE.judge(seen, WHOLE, DAY)


def columns(units: Sequence[int], canary: Sequence[bool], loss: Sequence[float] | None = None) -> Seen:
    n = len(units)
    no, zero = np.zeros(n, np.bool_), np.zeros(n)
    who, arm = np.array(units, np.uint64), np.array(canary, np.bool_)
    at = np.arange(n, dtype=np.int64)
    return Seen(who, arm, at, no, no, at, zero, zero if loss is None else np.array(loss))


def lots(n: int, *shares: float) -> Iterator[tuple[float, list[int]]]:
    """All that the lot may say of n units, and how likely it is: in which of the steps each one becomes a canary."""
    chances = [b - a for a, b in itertools.pairwise((0.0, *shares, 1.0))]
    for drawn in itertools.product(range(len(chances)), repeat=n):
        yield float(np.prod([chances[i] for i in drawn])), list(drawn)


def test_a_margin_is_charged_for_each_good_answer_of_a_champion_unit_until_it_has_trouble() -> None:
    """By hand: shares of a half, so that a bet on a ratio r multiplies by 2 r / (1 + r) or by 2 / (1 + r)."""
    ratios, canary, bad = [2, 4, 12, 50], [False, False, True], np.array([False, False, True])
    expected = np.mean([2 * r / (1 + r) * (2 / (1 + r) + (1 - 2 / (1 + r)) * 0.9**2) for r in ratios])
    assert bets(columns([0, 0, 1], canary), bad, 0.5, 0.1) == pytest.approx(expected)
    known = [True, *[False] * 2, *[True] * 6]  # a champion's unit with trouble, its later answers, and six canaries
    asked_, arms = [0, 0, 0, *range(1, 7)], [*[False] * 3, *[True] * 6]
    expected = np.mean([(2 * r / (1 + r)) ** 6 * 2 / (1 + r) for r in ratios])
    assert bets(columns(asked_, arms), np.array(known), 0.5, 0.1) == pytest.approx(expected)


@given(
    st.lists(st.tuples(st.integers(0, 7), st.booleans()), min_size=1, max_size=40),
    st.sampled_from([0.1, 0.25, 0.5]),
    st.sampled_from([0.0, 0.05]),
)
@settings(max_examples=25, deadline=None)
def test_of_a_version_that_makes_no_difference_no_stake_grows_more_often_than_it_may(
    requests: list[tuple[int, bool]], share: float, margin: float
) -> None:
    """Exactly: over all that the lot may say. Ville's inequality is the whole guarantee."""
    units, bad = [unit for unit, _ in requests], np.array([b for _, b in requests])
    found = [
        (chance, bets(columns(units, [drawn[unit] == 0 for unit in units]), bad, share, margin))
        for chance, drawn in lots(8, share)
    ]
    for limit in (1.2, 2.0, 5.0, 20.0, 100.0):
        assert sum(chance for chance, stake in found if stake >= limit) <= 1 / limit + 1e-9


@pytest.mark.parametrize("margin", [0.1, 0.4])
def test_a_canary_that_is_worse_by_the_margin_is_within_the_guarantee(margin: float) -> None:
    """Exactly: over all that the lot and the canary's luck may say; one request of each unit, two of them broken."""
    n, share, found = 6, 0.5, list[tuple[float, float]]()
    for chance, drawn in lots(n, share):
        canaries = [i for i in range(n) if drawn[i] == 0]
        for luck in itertools.product([False, True], repeat=len(canaries)):
            likely = np.prod([margin if bad else 1 - margin for bad in luck])
            bad = np.array([i < 2 or (i in canaries and luck[canaries.index(i)]) for i in range(n)])
            stake = bets(columns(range(n), [d == 0 for d in drawn]), bad, share, margin)
            found.append((chance * float(likely), stake))
    assert sum(chance for chance, _ in found) == pytest.approx(1)
    for limit in (1.05, 1.2, 1.5, 2.0, 5.0, 20.0):
        assert sum(chance for chance, stake in found if stake >= limit) <= 1 / limit + 1e-9


@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=8),
)
@settings(max_examples=50, deadline=None)
def test_of_a_version_that_makes_no_difference_a_stake_over_two_steps_is_one_in_the_mean(
    first: list[tuple[int, bool]], second: list[tuple[int, bool]]
) -> None:
    """Exactly, over all that the lot may say: a unit that was the champion's and had no trouble may be the canary's."""
    shares, steps, mean = (0.1, 0.25), (first, second), 0.0
    by_request = np.repeat(shares, [len(step) for step in steps])
    for chance, drawn in lots(4, *shares):
        asked = [(unit, drawn[unit] <= i, bad) for i, step in enumerate(steps) for unit, bad in step]
        seen = columns([unit for unit, _, _ in asked], [canary for _, canary, _ in asked])
        gained, _, _ = _bets(seen, np.array([bad for _, _, bad in asked]), by_request, 0.0)
        mean += chance * float(np.exp(gained.sum(axis=0)).mean())
    assert mean == pytest.approx(1)


def test_a_unit_of_the_champion_that_becomes_the_canarys_is_charged_for_what_it_was() -> None:
    """With the margin: some of the champion's good answers count as trouble, and the rest may still be a canary's."""
    seen, bad = columns([0, 0, 0], [False, False, True]), np.array([False, False, True])
    q = [[s * r / (s * r + 1 - s) for r in (2, 4, 12, 50)] for s in (0.1, 0.25)]
    expected = [(1 - 0.9**2) * (1 - first) / 0.9 + 0.9**2 * second / 0.25 for first, second in zip(*q, strict=True)]
    assert bets(seen, bad, np.array([0.1, 0.1, 0.25]), 0.1) == pytest.approx(np.mean(expected))


def test_what_steps_show_adds_up_over_the_life_of_a_canary() -> None:
    """Two failures in each of three steps: no step by itself is evidence."""
    asked, timetable = [], [(0, 0.1), (DAY, 0.25), (2 * DAY, 0.5)]
    for day in range(3):
        for k in range(20):
            asked.append(Observation(f"old {k}", False, day * DAY + HOUR + k, False, False, 1, None, None))
        for k in range(2):
            asked.append(Observation(f"new {day} {k}", True, day * DAY + 2 * HOUR + k, True, False, 1, None, None))
    patient = Evidence(silence=DAY, rate=0.1)
    for day in range(3):
        alone = patient.judge([o for o in asked if day * DAY <= o.at < (day + 1) * DAY], timetable, 3 * DAY)
        assert alone.bad is None, day
    assert patient.judge(asked, timetable, 3 * DAY).bad == "errors"


@pytest.mark.parametrize("per_day", [700, 2_000])
def test_of_bad_canaries_as_many_are_noticed_as_power_says(per_day: int) -> None:
    evidence, start = Evidence(silence=DAY), [(0, 0.1)]
    for test in ("errors", "missing"):
        noticed, power = [], []
        for seed in range(60):
            same, bad = (Traffic(seed, per_day).day(0, 0.1, fault) for fault in (None, test))
            power.append(evidence.power(same, start, DAY)[test])
            noticed.append(evidence.judge(bad, start, DAY).bad == test)
        assert np.mean(power) - 0.1 < np.mean(noticed) < np.mean(power) + 0.25, "it may have been higher on the way"


def test_beside_a_champion_that_fails_often_or_is_slow_trouble_can_be_noticed_too() -> None:
    """Else whoever cures it could never be promoted."""
    day, evidence = Traffic(0, 20_000).day(0, 0.5, None), Evidence(silence=DAY)
    often = (np.arange(len(day.at)) % 20 == 0) & ~day.canary
    slow = day.took + 150_000 * ~day.canary
    power = evidence.power(replace(day, failed=day.failed | often, took=slow), [(0, 0.5)], DAY)
    assert power["errors"] > 0.95
    assert power["latency"] == 1.0


def test_power_grows_with_what_is_seen_and_there_is_none_without_both_arms() -> None:
    day, evidence = Traffic(0, 2_000).day(0, 0.1, None), Evidence(silence=DAY)
    assert evidence.power(day.where(day.canary), [(0, 0.1)], DAY) == {}
    powers = [evidence.power(day.where(day.at < part * DAY), [(0, 0.1)], DAY) for part in (0.1, 0.4, 1.0)]
    assert set(powers[0]) == {"errors", "missing", "latency", "gap"}
    assert powers[0]["errors"] < powers[1]["errors"] < powers[2]["errors"]
    assert [p["latency"] for p in powers] == [0.0, 1.0, 1.0]


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 100)), min_size=1, max_size=10), min_size=1, max_size=3)
)
@settings(max_examples=25, deadline=None)
def test_of_a_version_that_makes_no_difference_losses_yield_one_in_the_mean(
    steps: list[list[tuple[int, float]]],
) -> None:
    """Exactly, over all that the lot may say, over steps in which units move."""
    shares, mean = (0.1, 0.25, 0.5)[: len(steps)], 0.0
    for chance, drawn in lots(4, *shares):
        rounds = [
            Round(i, i, share, True, columns([u for u, _ in s], [drawn[u] <= i for u, _ in s], [x for _, x in s]))
            for i, (s, share) in enumerate(zip(steps, shares, strict=True))
        ]
        mean += chance * (Evidence(dearer=0.0).lost(rounds) or 0.0)
    assert mean <= 1 + 1e-9


def test_losses_grow_evidence_over_steps_and_units_that_were_canaries_before_are_no_news() -> None:
    units = range(400)
    rng = np.random.default_rng(0)
    lot, base = rng.random(400), rng.lognormal(0, 0.5, 400)
    rounds = []
    for i, share in enumerate((0.1, 0.25, 0.5)):
        canary = lot < share
        rounds.append(
            Round(i, i, share, True, columns(units, canary.tolist(), (base * np.where(canary, 4, 1)).tolist()))
        )
    found = [EVIDENCE.lost(rounds[:n]) or 0.0 for n in (1, 2, 3)]
    assert found[0] < found[1] < found[2]
    again = [*rounds, Round(3, 3, 0.5, True, rounds[-1].seen)]
    assert EVIDENCE.lost(again) == found[2]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_canary_is_noticed_before_it_has_answered_500_requests(fault: str) -> None:
    noticed = [until_noticed(seed, fault) for seed in range(12)]
    assert sum(bad == fault for bad, _ in noticed) >= 10
    assert all(n <= BUDGET for _, n in noticed)


def test_a_canary_that_is_no_different_is_left_alone() -> None:
    lives = [same(20_000 + seed) for seed in range(25)]
    assert sum(bad is not None for bad, _, _ in lives) == 0
