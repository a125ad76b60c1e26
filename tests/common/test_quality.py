import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from common.clock import DAY, HOUR
from common.errors import BadData, BadDefinition, BadSetting
from common.monitoring.quality import (
    RATIOS,
    Flaw,
    Habit,
    LabelHabits,
    Surprise,
    Told,
    _log_ratio,
    estimate,
    flaws,
    labels_health,
    realised,
    stale,
)
from common.monitoring.sketches import Categorical, Numeric, Sketch

Array = NDArray[np.float64]
shares = st.sampled_from([0.0, 0.1, 0.3, 0.3, 0.7, 1.0]) | st.floats(0, 1)

# --- estimated before labels


def trusting(score: Sequence[float] | Array) -> dict[str, float]:
    return dict(estimate(np.asarray(score, float), surprised=False, outside=0.0).metrics)


@settings(deadline=None, max_examples=60)
@given(st.lists(shares, min_size=1, max_size=7))
def test_estimates_are_expectations_over_all_labels(scores: list[float]) -> None:
    p = np.array(scores)
    expected = dict.fromkeys(["positives", "brier", "log_loss", "hits", "ordered", "pairs"], 0.0)
    for labels in product([0.0, 1.0], repeat=len(p)):
        y = np.array(labels)
        chance = float(np.prod(np.where(y == 1, p, 1 - p)))
        if chance == 0:
            continue
        above = p[None, :] >= p[:, None]
        better = (p[:, None] > p) + 0.5 * (p[:, None] == p)
        expected["positives"] += chance * y.sum()
        expected["brier"] += chance * np.square(p - y).mean()
        expected["log_loss"] -= chance * np.log(np.where(y == 1, p, 1 - p)).mean()
        expected["hits"] += chance * (y * (above @ y) / above.sum(axis=1)).sum()  # AP times positives
        expected["ordered"] += chance * (y[:, None] * (1 - y) * better).sum()  # AUC times pairs
        expected["pairs"] += chance * y.sum() * (1 - y).sum()
    found = trusting(p)
    for name in ("positives", "brier", "log_loss"):
        assert found[name] == pytest.approx(expected[name], abs=1e-9)
    if expected["positives"] > 1e-6:
        assert found["average_precision"] == pytest.approx(expected["hits"] / expected["positives"])
    if expected["pairs"] > 1e-6:
        assert found["auc_roc"] == pytest.approx(expected["ordered"] / expected["pairs"])


def test_estimates_meet_what_calibrated_scores_then_realise() -> None:
    rng = np.random.default_rng(1)
    p = rng.beta(0.2, 10, 20_000)
    estimated = trusting(p)
    y = [(rng.random(len(p)) < p).astype(float) for _ in range(20)]
    assert estimated["average_precision"] == pytest.approx(
        np.mean([average_precision_score(label, p) for label in y]), abs=0.01
    )
    assert estimated["auc_roc"] == pytest.approx(np.mean([roc_auc_score(label, p) for label in y]), abs=0.005)


def test_what_cannot_be_estimated_is_absent_and_not_zero() -> None:
    assert set(trusting([0.0, 0.0])) == {"positives", "brier", "log_loss"}
    assert set(trusting([1.0])) == {"positives", "brier", "log_loss", "average_precision"}
    empty = estimate(np.array([]), surprised=False, outside=0.0)
    assert (dict(empty.metrics), empty.rows, empty.trusted) == ({}, 0, False)


def test_rows_without_a_score_are_left_out_and_many_of_them_break_trust() -> None:
    some = estimate(np.array([0.2, np.nan, 0.4]), surprised=False, outside=0.0)
    assert (some.rows, some.metrics["positives"]) == (2, pytest.approx(0.6))
    assert some.why == "33.3% of scores are missing"
    few = estimate(np.append(np.full(99, 0.1), np.nan), surprised=False, outside=0.0)
    assert few.trusted


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"surprised": True}, "matured labels contradict the probabilities"),
        ({"surprised": None}, "no matured labels confirm the probabilities"),
        ({"outside": 0.2}, "20.0% of rows are outside the reference's range, at most 5.0% may be"),
        ({"outside": None}, "not known how many rows are outside the reference's range"),
        ({"drifted": ["pace", "amount"]}, "drift alarmed: amount, pace"),
    ],
)
def test_an_estimate_whose_assumptions_fail_is_not_trusted_and_says_why(said: dict[str, Any], why: str) -> None:
    found = estimate(np.array([0.1, 0.2]), **{"surprised": False, "outside": 0.05, **said})
    assert (found.trusted, found.why) == (False, why)
    assert found.metrics == trusting([0.1, 0.2])


def test_all_doubts_are_said_and_a_nan_is_one() -> None:
    found = estimate(np.array([0.1]), surprised=True, outside=math.nan, drifted=["pace"])
    assert (found.why or "").count("; ") == 2
    assert estimate(np.array([0.1]), surprised=False, outside=0.05).trusted


# --- realised with labels


def chunk(rng: np.random.Generator, n: int, units: int) -> tuple[Array, Array, Array, NDArray[np.str_]]:
    p = rng.beta(0.5, 5, n).round(2)  # with ties
    return p, (rng.random(n) < p).astype(float), rng.choice([1.0, 100.0], n), rng.integers(0, units, n).astype(str)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_realised_values_are_the_weighted_ones_of_the_reference_implementation(seed: int) -> None:
    p, y, w, unit = chunk(np.random.default_rng(seed), 200, 60)
    y[:2], unit[:2] = (1, 1), ("1", "2")
    found = realised(p, y, w, unit, repeats=20)
    wanted = {
        "average_precision": average_precision_score(y, p, sample_weight=w),
        "auc_roc": roc_auc_score(y, p, sample_weight=w),
        "brier": brier_score_loss(y, p, sample_weight=w),
        "log_loss": log_loss(y, p, sample_weight=w, labels=[0, 1]),
        "calibration_ratio": (w * y).sum() / (w * p).sum(),
    }
    assert {name: interval.value for name, interval in found.items()} == pytest.approx(wanted, rel=1e-6)
    assert all(interval.low < interval.high for interval in found.values())


def test_rows_of_one_unit_are_no_new_evidence() -> None:
    p, y, w, unit = chunk(np.random.default_rng(0), 300, 100)
    once = realised(p, y, w, unit)
    many = realised(*(np.repeat(column, 7) for column in (p, y, w, unit)))
    for name, interval in once.items():
        assert asdict(many[name]) == pytest.approx(asdict(interval))


def test_a_weight_counts_as_so_many_rows() -> None:
    p, y, _, unit = chunk(np.random.default_rng(0), 300, 100)
    times = np.arange(300) % 3 + 1
    weighted = realised(p, y, times.astype(float), unit)
    rows = realised(*(np.repeat(column, times) for column in (p, y, np.ones(300), unit)))
    for name, interval in weighted.items():
        assert asdict(rows[name]) == pytest.approx(asdict(interval))


def test_intervals_cover_the_truth_though_labels_come_in_clusters() -> None:
    rng = np.random.default_rng(2)
    covered = rows_only = 0
    for _ in range(100):
        unit = np.repeat(np.arange(150), 6)
        p = np.repeat(rng.beta(1, 6, 150), 6)
        y = np.repeat(rng.random(150) < p[::6], 6).astype(float)  # all of a unit or none
        ones = np.ones(len(p))
        by_unit = realised(p, y, ones, unit, repeats=100)["calibration_ratio"]
        by_row = realised(p, y, ones, np.arange(len(p)), repeats=100)["calibration_ratio"]
        covered += by_unit.low <= 1 <= by_unit.high
        rows_only += by_row.low <= 1 <= by_row.high
    assert covered >= 86  # 95 nominal; below it with a chance of 1 in 1,000
    assert rows_only < 75


def test_with_one_class_only_a_metric_is_absent() -> None:
    p, unit, ones = np.array([0.1, 0.2, 0.3]), np.array(["a", "b", "c"]), np.ones(3)
    assert set(realised(p, np.zeros(3), ones, unit)) == {"brier", "log_loss"}
    assert set(realised(p, np.ones(3), ones, unit)) == {"brier", "log_loss"}
    one_campaign = realised(np.tile(p, 2), np.array([1.0, 0, 0, 1.0, 0, 0]), np.ones(6), np.tile(unit, 2))
    assert set(one_campaign) == {"brier", "log_loss"}
    assert realised(p, np.array([0.0, 1.0, 1.0]), ones, np.array(["a", "a", "a"])) == {}
    assert realised(np.array([]), np.array([]), np.array([]), np.array([])) == {}


def test_rows_whose_outcome_is_not_known_are_left_out() -> None:
    p, y, w, unit = chunk(np.random.default_rng(3), 300, 100)
    known = np.arange(300) % 3 > 0
    wanted = realised(p[known], y[known], w[known], unit[known])
    assert realised(p, np.where(known, y, np.nan), w, unit) == wanted
    assert realised(p, y, np.where(known, w, 0.0), unit) == wanted
    assert realised(np.where(known, p, np.nan), y, w, unit) == wanted


def test_the_same_seed_gives_the_same_interval_and_another_one_another() -> None:
    columns = chunk(np.random.default_rng(3), 300, 100)
    assert realised(*columns, seed=1) == realised(*columns, seed=1) != realised(*columns, seed=2)


def test_a_sure_mistake_costs_much_and_not_infinitely() -> None:
    found = realised(np.array([0.0, 1.0]), np.array([1.0, 0.0]), np.ones(2), np.array([1, 2]))
    assert found["log_loss"].value == pytest.approx(-math.log(np.finfo(float).eps))


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        (0, 1.5, "score: must be from 0 to 1, got 1.5"),
        (0, -0.1, "score: must be from 0 to 1"),
        (0, math.inf, "score: must be from 0 to 1"),
        (1, 0.5, "label: must be 0 or 1, got 0.5"),
        (2, -1.0, "weight: must be finite and >= 0, got -1.0"),
        (2, math.nan, "weight: must be finite"),
    ],
)
def test_columns_that_mean_nothing_are_refused(column: int, value: float, rule: str) -> None:
    columns = [np.array([0.1, 0.2]), np.array([0.0, 1.0]), np.ones(2), np.array([1, 2])]
    columns[column][1] = value
    with pytest.raises(BadData, match=rule):
        realised(*columns)


def test_columns_are_of_one_length() -> None:
    with pytest.raises(BadData, match="must be of one length, got 2, 2, 2, 1"):
        realised(np.full(2, 0.1), np.zeros(2), np.ones(2), np.array([1]))


# --- surprise

MEAN = 8.0  # positives expected a day
WIDE = 3.0  # variance over mean


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(RATIOS), st.floats(1.05, 10), st.floats(0.1, 30), st.floats(0.3, 1), st.floats(0.3, 1))
def test_a_days_factor_is_one_on_average_and_less_for_fewer_or_evener_positives(
    ratio: float, dispersion: float, mean: float, fewer: float, evener: float
) -> None:
    def average(true_mean: float, true_dispersion: float) -> float:
        k = np.arange(1_500)
        chance = stats.nbinom.logpmf(k, true_mean / (true_dispersion - 1), 1 / true_dispersion)
        return float(np.exp(chance + [_log_ratio(ratio, dispersion, x, mean) for x in k.tolist()]).sum())

    assert average(mean, dispersion) == pytest.approx(1, abs=1e-6)
    assert average(mean * fewer, dispersion) <= 1 + 1e-6
    assert average(mean, 1 + (dispersion - 1) * evener) <= 1 + 1e-6


def test_without_dispersion_the_law_is_poissons() -> None:
    k = np.arange(200)
    factors = np.exp([_log_ratio(2.0, 1.0, x, 5.0) for x in k])
    np.testing.assert_allclose(factors, stats.poisson.pmf(k, 10.0) / stats.poisson.pmf(k, 5.0))
    assert _log_ratio(2.0, 1 + 1e-5, 7, 5.0) == pytest.approx(_log_ratio(2.0, 1.0, 7, 5.0), abs=1e-3)


def test_evidence_is_one_on_average_and_the_detector_the_number_of_days() -> None:
    """Exactly so at the boundary, over all that two days can bring."""
    start = Surprise(dispersion=2.0, slack=0.1)
    days = [(k, stats.nbinom.pmf(k, 1.1 * 2.0, 0.5)) for k in range(80)]
    evidence = detection = 0.0
    for (a, first), (b, second) in product(days, repeat=2):
        then = start.after(a, 2.0).after(b, 2.0)
        evidence += first * second * math.exp(then.evidence)
        detection += first * second * math.exp(then.detection)
    assert (evidence, detection) == (pytest.approx(1, abs=1e-4), pytest.approx(2, abs=1e-4))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 60), st.floats(0.5, 20)), min_size=1, max_size=15))
def test_the_detector_sums_the_evidence_since_every_day(days: list[tuple[int, float]]) -> None:
    surprise = Surprise(dispersion=2.5)
    for observed, expected in days:
        surprise = surprise.after(observed, expected)
    logs = [[_log_ratio(r, 2.5, o, 1.1 * e) for o, e in days] for r in RATIOS]
    since = [[sum(of_ratio[j:]) for j in range(len(days))] for of_ratio in logs]
    assert surprise.detection == pytest.approx(np.logaddexp.reduce(since, axis=None) - math.log(len(RATIOS)))
    assert surprise.evidence == pytest.approx(np.logaddexp.reduce([s[0] for s in since]) - math.log(len(RATIOS)))


def negative_binomial(rng: np.random.Generator, mean: float) -> float:
    return float(rng.negative_binomial(mean / (WIDE - 1), 1 / WIDE))


def campaigns(rng: np.random.Generator, mean: float) -> float:
    """Geometric sizes of 2 on average: variance over mean 3."""
    return float(rng.geometric(0.5, rng.poisson(mean / 2)).sum())


def threes(rng: np.random.Generator, mean: float) -> float:
    return 3.0 * rng.poisson(mean / 3)


LAWS = [negative_binomial, campaigns, threes]
Law = Callable[[np.random.Generator, float], float]


def first(surprise: Surprise, law: Law, rng: np.random.Generator, mean: float, days: int, rate: float) -> int:
    """The day on which the detector alarms, or the last one."""
    for day in range(1, days + 1):
        surprise = surprise.after(law(rng, mean), MEAN)
        if surprise.detects(rate):
            return day
    return days


@pytest.mark.parametrize("law", LAWS)
def test_the_mean_run_without_a_false_alarm_is_at_least_one_over_the_rate(law: Law) -> None:
    """At the boundary of what is no alarm: 10 % more than said. Runs are cut at 200 days, which only shortens them."""
    rng = np.random.default_rng(4)
    surprise = Surprise(dispersion=WIDE)
    runs = [first(surprise, law, rng, 1.1 * MEAN, 200, 1 / 50) for _ in range(80)]
    assert np.mean(runs) >= 50


@pytest.mark.parametrize("law", LAWS)
def test_evidence_that_is_looked_at_every_day_seldom_misleads(law: Law) -> None:
    rng = np.random.default_rng(5)
    false = 0
    for _ in range(100):
        surprise, ever = Surprise(dispersion=WIDE), False
        for _ in range(100):
            surprise = surprise.after(law(rng, 1.1 * MEAN), MEAN)
            ever |= surprise.alarms(0.05)
        false += ever
    assert false <= stats.binom.ppf(0.999, 100, 0.05)


@pytest.mark.parametrize(("ratio", "within"), [(1.5, 32), (2.0, 12), (3.0, 5)])
def test_more_positives_than_said_are_found_within_days(ratio: float, within: int) -> None:
    """After 60 quiet days, at one false alarm a year: in the mean over 40 runs."""
    rng = np.random.default_rng(6)
    delays = []
    for _ in range(40):
        surprise = Surprise(dispersion=WIDE)
        for _ in range(60):
            surprise = surprise.after(campaigns(rng, MEAN), MEAN)
        surprise = surprise if not surprise.detects(1 / 365) else Surprise(dispersion=WIDE)
        delays.append(first(surprise, campaigns, rng, ratio * MEAN, 200, 1 / 365))
    assert np.mean(delays) <= within


def test_fewer_positives_than_said_are_no_surprise() -> None:
    surprise = Surprise(dispersion=WIDE)
    for _ in range(200):
        surprise = surprise.after(0.5 * MEAN, MEAN)
    assert not surprise.alarms(0.5)
    assert not surprise.detects(0.5)
    assert surprise.evidence < -10


def test_a_long_quiet_past_tires_the_martingale_and_not_the_detector() -> None:
    surprise = Surprise(dispersion=WIDE)
    for _ in range(300):
        surprise = surprise.after(MEAN, MEAN)
    for _ in range(10):
        surprise = surprise.after(3 * MEAN, MEAN)
    assert surprise.detects(1 / 365)
    assert surprise.evidence < surprise.detection - 20


def reference(
    rng: np.random.Generator, days: int, campaign: Callable[[int], NDArray[np.int64]], wave: float = 0.0
) -> tuple[Array, Array, NDArray[np.int64], NDArray[np.int64]]:
    """Rows: 8 positives are expected a day; a unit's campaign of a day has so many. `wave`: sd of a day's log rate."""
    label, unit, day = [], [], []
    for today in range(days):
        shift = wave * rng.normal() - wave**2 / 2
        sizes = campaign(rng.poisson(MEAN * math.exp(shift) / 2))
        for of, size in enumerate(sizes.tolist()):
            label += [1.0] * size
            unit += [today * 1_000 + of] * size
            day += [today] * size
        label += [0.0] * 192
        unit += list(range(today * 1_000 + 500, today * 1_000 + 692))
        day += [today] * 192
    n = np.bincount(day)
    return (MEAN / n)[day], np.array(label), np.array(unit), np.array(day)


def test_dispersion_is_learnt_from_campaigns_and_from_days() -> None:
    rng = np.random.default_rng(7)
    alone = Surprise.fit(*reference(rng, 400, lambda k: np.full(2 * k, 1)))
    assert alone.dispersion == pytest.approx(2, abs=0.35)  # they come in pairs, seen by day only
    pairs = Surprise.fit(*reference(rng, 400, lambda k: rng.geometric(0.5, k)))
    assert pairs.dispersion == pytest.approx(3, abs=0.6)
    waves = Surprise.fit(*reference(rng, 400, lambda k: rng.geometric(0.5, k), wave=0.5))
    assert waves.dispersion > 4
    even_days = Surprise.fit(*reference(np.random.default_rng(8), 60, lambda k: np.full(4, 2)))
    assert even_days.dispersion == pytest.approx(2, abs=0.2)


def test_a_fitted_surprise_stays_quiet_on_days_like_its_reference_and_wakes_when_they_double() -> None:
    runs, delays = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)

        def sizes(k: int, rng: np.random.Generator = rng) -> NDArray[np.int64]:
            return rng.geometric(0.5, k)

        surprise = Surprise.fit(*reference(rng, 60, sizes))
        later = surprise.sums(*reference(rng, 100, sizes))
        assert list(later[0]) == list(range(100))
        runs.append(next((d for d in range(100) if _after(surprise, later, d).detects(1 / 100)), 100))
        double = surprise.sums(*reference(rng, 40, lambda k: sizes(2 * k)))
        delays.append(next((d for d in range(40) if _after(surprise, double, d).detects(1 / 365)), 40))
    assert np.mean(runs) >= 70
    assert np.mean(delays) <= 14


def _after(surprise: Surprise, sums: tuple[Any, Array, Array], last: int) -> Surprise:
    for observed, expected in zip(*sums[1:], strict=True):
        if last < 0:
            break
        surprise, last = surprise.after(observed, expected), last - 1
    return surprise


def test_one_huge_campaign_is_one_unit_and_no_change() -> None:
    score, label, unit, day = reference(np.random.default_rng(9), 60, lambda k: np.full(k, 2))
    surprise = Surprise.fit(score, label, unit, day)
    assert surprise.largest == 2
    now = [np.full(100, 0.08), np.repeat([1.0, 0.0], 50), np.repeat([1, 2], 50), np.zeros(100, np.int64)]
    days, observed, expected = surprise.sums(*now)
    assert (days.tolist(), observed.tolist(), expected.tolist()) == ([0], [2.0], [pytest.approx(8.0)])
    assert not surprise.after(observed[0], expected[0]).detects(0.5)
    assert replace(surprise, largest=math.inf).after(50, 8).detects(1 / 365)


def test_sums_are_by_day_over_rows_whose_label_is_known() -> None:
    sums = Surprise(dispersion=1.0).sums(
        np.array([0.5, 0.25, 0.125, 0.5, np.nan]), np.array([1.0, 1.0, 0.0, np.nan, 1.0]),
        np.array(["a", "b", "a", "c", "d"]), np.array([7, 7, 3, 9, 7]),
    )  # fmt: skip
    assert [column.tolist() for column in sums] == [[3, 7], [0.0, 2.0], [0.125, 0.75]]


def test_a_period_without_labels_is_no_period() -> None:
    surprise = Surprise(dispersion=2.0).after(9, 8)
    assert surprise.after(0, 0) == surprise
    assert surprise.after(0, 8) != surprise
    assert Surprise(dispersion=2.0).detection == -math.inf
    assert Surprise(dispersion=2.0).evidence == 0


def test_a_surprise_survives_as_json_and_huge_sums_do_not_overflow() -> None:
    surprise = Surprise(dispersion=2.0, largest=4.0).after(1e6, 8).after(1e6, 8)
    said = json.loads(json.dumps(asdict(surprise), allow_nan=False))
    again = Surprise(**{name: tuple(v) if isinstance(v, list) else v for name, v in said.items()})
    assert again == surprise
    assert surprise.detects(1e-9)
    assert math.isfinite(surprise.detection)


def test_a_surprise_of_nonsense_is_refused() -> None:
    for broken in ({"dispersion": 0.5}, {"dispersion": math.nan}, {"dispersion": 1.0, "slack": -1.0}):
        with pytest.raises(BadSetting, match="must have dispersion >= 1, slack >= 0"):
            Surprise(**broken)
    for sums in ((-1, 1), (math.nan, 1), (1, math.inf)):
        with pytest.raises(BadData, match="sums must be finite and >= 0"):
            Surprise(dispersion=1.0).after(*sums)
    score, label, unit, day = reference(np.random.default_rng(0), 7, lambda k: np.full(k, 2))
    for columns in ((score, label * 0, unit, day), (score, label, unit, day // 2)):
        with pytest.raises(BadData, match="reference: must have >= 7 days and a positive"):
            Surprise.fit(*columns)


# --- data


def table(rng: np.random.Generator, n: int) -> dict[str, Sketch]:
    """The reference of five columns."""
    amount = rng.lognormal(size=n)
    amount[rng.random(n) < 0.02] = np.nan
    return {
        "amount": Numeric.of(amount),
        "flag": Numeric.of((rng.random(n) < 0.001).astype(float)),
        "hour": Numeric.of(rng.integers(0, 24, n).astype(float)),
        "constant": Numeric.of(np.full(n, 3.0)),
        "country": Categorical.of(rng.choice(["fr", "de", "it"], n, p=[0.6, 0.39, 0.01]).tolist()),
    }


def like(reference: dict[str, Sketch], rng: np.random.Generator, n: int, **instead: Any) -> dict[str, Sketch]:
    amount = rng.lognormal(size=n)
    amount[rng.random(n) < 0.02] = np.nan
    columns: dict[str, Any] = {
        "amount": amount,
        "flag": (rng.random(n) < 0.001).astype(float),
        "hour": rng.integers(0, 24, n).astype(float),
        "constant": np.full(n, 3.0),
        "country": rng.choice(["fr", "de", "it"], n, p=[0.6, 0.39, 0.01]).tolist(),
        **instead,
    }
    return {name: reference[name].empty_like().update(values) for name, values in columns.items()}


def exceeding(found: tuple[Flaw, ...]) -> set[tuple[str, str]]:
    return {(flaw.column, flaw.kind) for flaw in found if flaw.exceeds}


REFERENCE = table(np.random.default_rng(10), 20_000)


def test_every_column_is_asked_what_it_can_be_asked() -> None:
    found = flaws(REFERENCE, like(REFERENCE, np.random.default_rng(11), 1_000))
    assert [(flaw.column, flaw.kind) for flaw in found] == [
        ("amount", "missing"), ("amount", "out_of_range"), ("amount", "constant"),
        ("flag", "missing"), ("flag", "out_of_range"), ("flag", "constant"),
        ("hour", "missing"), ("hour", "out_of_range"), ("hour", "constant"),
        ("constant", "missing"), ("constant", "out_of_range"),
        ("country", "missing"), ("country", "unseen"), ("country", "constant"),
    ]  # fmt: skip
    assert exceeding(found) == set()
    missing = found[0]
    assert missing.usual == pytest.approx(0.02, abs=0.003)
    assert missing.ratio is not None
    assert 0 < missing.ratio < 1


@pytest.mark.parametrize(
    ("instead", "flaw"),
    [
        ({"amount": np.full(1_000, np.nan)}, ("amount", "missing")),
        ({"hour": np.where(np.arange(1_000) % 20 == 0, np.nan, 3.0 + np.arange(1_000) % 2)}, ("hour", "missing")),
        ({"hour": np.arange(1_000) % 30.0}, ("hour", "out_of_range")),
        ({"hour": np.arange(1_000) % 25.0 - 1}, ("hour", "out_of_range")),
        ({"constant": np.full(1_000, 4.0)}, ("constant", "out_of_range")),
        ({"country": ["fr", "de"] * 450 + ["xx"] * 100}, ("country", "unseen")),
        ({"country": ["fr"] * 1_000}, ("country", "constant")),
        ({"amount": np.full(1_000, 1.0)}, ("amount", "constant")),
    ],
)
def test_a_flaw_is_found_and_nothing_else(instead: dict[str, Any], flaw: tuple[str, str]) -> None:
    found = flaws(REFERENCE, like(REFERENCE, np.random.default_rng(12), 1_000, **instead))
    assert exceeding(found) == {flaw}


def test_chance_makes_any_column_exceed_at_most_at_the_stated_rate() -> None:
    """With references of their own, small chunks, and no margin to help."""
    rng = np.random.default_rng(13)
    alarms = 0
    for _ in range(200):
        reference = table(rng, 1_000)
        alarms += bool(exceeding(flaws(reference, like(reference, rng, 150), rate=0.05, margin=0.0)))
    assert alarms <= stats.binom.ppf(0.999, 200, 0.05)


def test_the_more_columns_are_asked_the_more_each_must_show() -> None:
    now = like(REFERENCE, np.random.default_rng(11), 100)
    alone = flaws({"amount": REFERENCE["amount"]}, now)[0]
    among = flaws(REFERENCE, now)[0]
    assert (alone.column, alone.kind, alone.share) == (among.column, among.kind, among.share)
    assert (among.threshold or 0) > (alone.threshold or 0) * 1.05


def test_a_change_that_does_not_matter_is_no_flaw_however_sure() -> None:
    rng = np.random.default_rng(14)
    amount = rng.lognormal(size=200_000)
    amount[rng.random(len(amount)) < 0.03] = np.nan
    now = {"amount": REFERENCE["amount"].empty_like().update(amount)}
    before = {"amount": REFERENCE["amount"]}
    assert ("amount", "missing") not in exceeding(flaws(before, now))
    assert ("amount", "missing") in exceeding(flaws(before, now, margin=0.0))


def test_a_column_that_varies_rarely_may_be_constant_in_a_small_chunk() -> None:
    zeros = np.zeros(20_000)
    small = {"flag": REFERENCE["flag"].empty_like().update(zeros[:1_000])}
    large = {"flag": REFERENCE["flag"].empty_like().update(zeros)}
    before = {"flag": REFERENCE["flag"]}
    assert exceeding(flaws(before, small)) == set()
    assert exceeding(flaws(before, large)) == {("flag", "constant")}


def test_no_rows_are_a_missing_signal_and_not_a_quiet_one() -> None:
    empty = {name: sketch.empty_like() for name, sketch in REFERENCE.items()}
    for chunk_ in ({}, empty):
        found = flaws(REFERENCE, chunk_)
        assert len(found) == 14
        assert {(flaw.share, flaw.ratio, flaw.exceeds) for flaw in found} == {(None, None, False)}


def test_what_no_reference_had_cannot_be_compared() -> None:
    nothing = Numeric.of(np.full(100, np.nan))
    found = flaws({"new": nothing}, {"new": nothing.empty_like().update(np.arange(50.0))})
    assert [(flaw.kind, flaw.share) for flaw in found] == [("missing", 0.0), ("out_of_range", None)]


def test_sketches_with_other_bins_are_refused() -> None:
    for other in (Numeric.of(np.arange(9.0)), Categorical.of(["a"])):
        with pytest.raises(BadDefinition, match="amount: must be sketched with the reference's bins"):
            flaws(REFERENCE, {"amount": other})


@settings(deadline=None, max_examples=80)
@given(
    st.just(0.0) | st.floats(1e-4, 0.5), st.integers(1, 5_000), st.integers(10, 5_000), st.sampled_from([0.05, 0.001])
)
def test_a_habits_bound_is_passed_at_most_at_its_rate(share: float, n: int, before: int, rate: float) -> None:
    seen = np.arange(before + 1)
    chances = stats.binom.pmf(seen, before, share)
    bounds = [Habit(k / before, before).most(n, rate) * n for k in seen[chances > 1e-9].tolist()]
    above = stats.binom.sf(np.ceil(np.array(bounds) - 1e-9) - 1, n, share)
    assert float(chances[chances > 1e-9] @ above) <= rate
    uneven = Habit(share, 1e12, 5.0).most(n, rate) * n
    if share:
        assert stats.nbinom.sf(math.ceil(uneven) - 1, share * n / 4, 0.2) <= rate


def test_a_habits_bound_is_not_far_above_what_is_usual() -> None:
    assert Habit(0.02, 100_000).most(10_000, 0.001) < 0.03
    assert Habit(0.0, 100_000).most(10_000, 0.001) < 0.002


def test_features_are_stale_that_are_old_missing_or_of_the_future() -> None:
    age = np.array([0.0, HOUR, HOUR + 1, np.nan, -1.0, 5.0, 5.0, 5.0, 5.0, 5.0])
    found = stale(age, HOUR)
    assert found == Flaw("features", "stale", pytest.approx(0.3), 0.0, 0.01)
    assert found.exceeds
    assert not stale(age, HOUR, most=0.5).exceeds
    assert not stale(np.full(10, HOUR, np.int64), HOUR).exceeds
    none = stale(np.array([]), HOUR)
    assert (none.share, none.exceeds) == (None, False)


# --- labels

POSITIVE = 0.3
DUE = 400  # requests a day


def day(
    rng: np.random.Generator, *, auc: float = 0.95, per_request: float = 0.1, due: int = DUE, uneven: float = 2.0
) -> Told:
    """Labels of a day: negative binomial in number; scores tell the classes apart by so much."""
    mean = per_request * due
    n = int(rng.negative_binomial(mean / (uneven - 1), 1 / uneven)) if mean else 0
    value = (rng.random(n) < POSITIVE).astype(float)
    logit = rng.normal(size=n) + value * math.sqrt(2) * stats.norm.ppf(auc)
    asked = rng.integers(0, DAY, n)
    request = rng.integers(0, 2**62, n)
    return Told(
        request, np.ones(n, np.bool_), asked, asked, asked + rng.integers(1, 10 * DAY, n), value,
        1 / (1 + np.exp(-logit)), np.ones(n, np.bool_), due,
    )  # fmt: skip


def join(days: Sequence[Told]) -> Told:
    columns = [np.concatenate(column) for column in zip(*[list(vars(d).values())[:-1] for d in days], strict=True)]
    return Told(*columns, due=sum(d.due for d in days))


def week(seed: int, **how: Any) -> Told:
    rng = np.random.default_rng(seed)
    return join([day(rng, **how) for _ in range(7)])


def kinds(found: tuple[Flaw, ...]) -> set[str]:
    return {flaw.kind for flaw in found if flaw.exceeds}


def one(found: tuple[Flaw, ...], column: str) -> Flaw:
    (flaw,) = [flaw for flaw in found if flaw.column == column]
    return flaw


HABITS = LabelHabits.fit([day(np.random.default_rng(seed)) for seed in range(60)])


def test_habits_are_those_of_the_reference() -> None:
    assert HABITS.heard.usual == pytest.approx(0.1, abs=0.01)
    assert HABITS.heard.dispersion == pytest.approx(2, abs=0.8)
    assert HABITS.positive.usual == pytest.approx(POSITIVE, abs=0.03)
    assert HABITS.agreement == pytest.approx(0.95, abs=0.01)
    assert HABITS.delay == pytest.approx(5 * DAY, rel=0.05)
    assert (HABITS.unknown.usual, HABITS.early.usual) == (0, 0)
    assert HABITS.uneven < 2


def test_usual_labels_have_no_flaw_at_the_stated_rate() -> None:
    """Weeks and single days."""
    alarms = sum(bool(kinds(labels_health(HABITS, week(seed)))) for seed in range(1_000, 1_150))
    alarms += sum(bool(kinds(labels_health(HABITS, day(np.random.default_rng(seed))))) for seed in range(2_000, 2_150))
    assert alarms <= stats.binom.ppf(0.999, 300, HABITS.rate)


def test_a_quiet_week_answers_every_question() -> None:
    found = labels_health(HABITS, week(100))
    assert [(flaw.column, flaw.kind) for flaw in found] == [
        ("labels", "flood"), ("repeated", "flood"), ("unknown", "flood"), ("labels", "frozen"), ("clock", "early"),
        ("value", "frozen"), ("agreement", "random"),
    ]  # fmt: skip
    assert all(flaw.ratio is not None and flaw.ratio < 1 for flaw in found)


def test_many_more_labels_are_a_flood_and_somewhat_more_are_not() -> None:
    assert kinds(labels_health(HABITS, week(1, per_request=0.5))) == {"flood"}
    assert kinds(labels_health(HABITS, week(1, per_request=0.16))) == set()


def test_several_labels_for_a_request_are_a_flood() -> None:
    told = week(2)
    again = np.arange(len(told.value)) % 5 == 0
    request = np.where(again, np.roll(told.request, 1), told.request)
    assert exceeding(labels_health(HABITS, replace(told, request=request))) == {("repeated", "flood")}


def test_labels_for_requests_that_nobody_made_are_a_flood() -> None:
    told = week(3)
    known = np.arange(len(told.value)) % 5 > 0
    asked = np.where(known, told.asked, np.iinfo(np.int64).max)  # of an unknown request nothing is known
    assert exceeding(labels_health(HABITS, replace(told, known=known, asked=asked))) == {("unknown", "flood")}


def test_no_labels_are_frozen_when_many_were_due_and_unknown_when_few_were() -> None:
    none = week(4, per_request=0.0)
    assert exceeding(labels_health(HABITS, none)) == {("labels", "frozen")}
    few = labels_health(HABITS, replace(none, due=50))
    assert kinds(few) == set()
    assert one(tuple(f for f in few if f.kind == "frozen"), "value").share is None
    assert next(f for f in few if (f.column, f.kind) == ("labels", "frozen")).share is None


def test_one_value_only_is_frozen_when_there_are_many_labels() -> None:
    told = week(5)
    for value in (0.0, 1.0):
        same = replace(told, value=np.full(len(told.value), value))
        assert exceeding(labels_health(HABITS, same)) == {("value", "frozen")}
    few = day(np.random.default_rng(5), due=60)
    found = labels_health(HABITS, replace(few, value=np.zeros(len(few.value))))
    assert len(few.value) > 1
    assert one(found, "value").share is None
    both = labels_health(HABITS, replace(few, value=np.append(np.zeros(len(few.value) - 1), 1.0)))
    assert one(both, "value").share == pytest.approx(1 - 1 / len(few.value))


def test_random_labels_are_told_from_a_drift_that_leaves_some_agreement() -> None:
    """In a fortnight of about 560 labels; at 0.65 a third of the reference's lead over 0.5 is left."""

    def fired(auc: float, seed: int) -> bool:
        return "random" in kinds(labels_health(HABITS, join([week(seed, auc=auc), week(seed + 50, auc=auc)])))

    times = {auc: sum(fired(auc, seed) for seed in range(50)) for auc in (0.5, 0.65, 0.75, 0.95)}
    assert times[0.5] >= 48
    assert times[0.65] <= 2
    assert times[0.75] == times[0.95] == 0


def test_labels_that_were_turned_round_are_no_better_than_random() -> None:
    told = week(6)
    assert "random" in kinds(labels_health(HABITS, replace(told, value=1 - told.value)))


def test_too_few_labels_cannot_tell_random_from_usual() -> None:
    found = labels_health(HABITS, day(np.random.default_rng(7), auc=0.5))
    assert one(found, "agreement").share is None
    unscored = week(8)
    found = labels_health(HABITS, replace(unscored, score=np.full(len(unscored.score), np.nan)))
    assert one(found, "agreement").share is None


def test_labels_that_depend_on_each_other_must_show_more() -> None:
    told = week(5)
    same = replace(told, value=np.zeros(len(told.value)))
    clustered = replace(HABITS, uneven=4.0, positive=replace(HABITS.positive, dispersion=1_000.0))
    assert one(labels_health(HABITS, same), "value").share == 1
    assert one(labels_health(clustered, same), "value").share is None
    usual, more = (one(labels_health(h, told), "agreement").threshold or 0 for h in (HABITS, clustered))
    assert more - 0.35 == pytest.approx(2 * (usual - 0.35), rel=0.1)


def test_what_is_told_of_unknown_requests_has_no_delay() -> None:
    days = [day(np.random.default_rng(seed)) for seed in range(7)]
    unknown = [replace(d, known=d.heard > 8 * DAY, asked=np.where(d.heard > 8 * DAY, d.asked, -(2**60))) for d in days]
    assert 0 < LabelHabits.fit(unknown).delay < 11 * DAY
    assert LabelHabits.fit(unknown).unknown.usual > 0.2


def test_where_scores_and_labels_never_agreed_randomness_is_not_asked() -> None:
    weak = LabelHabits.fit([day(np.random.default_rng(seed), auc=0.6) for seed in range(20)])
    assert weak.agreement is None
    assert "random" not in {flaw.kind for flaw in labels_health(weak, week(9, auc=0.5))}


def test_where_labels_only_say_yes_one_value_is_not_frozen() -> None:
    chargebacks = [replace(d, value=np.ones(len(d.value))) for d in (day(np.random.default_rng(s)) for s in range(20))]
    habits = LabelHabits.fit(chargebacks)
    found = labels_health(habits, join(chargebacks[:7]))
    assert [(flaw.column, flaw.kind) for flaw in found if flaw.kind == "frozen"] == [("labels", "frozen")]
    assert kinds(found) == set()


@pytest.mark.parametrize(
    ("column", "shift"),
    [("dated", -1), ("dated", 30 * DAY), ("heard", -30 * DAY)],
)
def test_labels_of_the_future_or_from_before_their_requests_are_early(column: str, shift: int) -> None:
    told = week(10)
    some = np.arange(len(told.value)) % 5 == 0
    shifted = replace(told, **{column: np.where(some, vars(told)[column] + shift, vars(told)[column])})
    assert exceeding(labels_health(HABITS, shifted)) == {("clock", "early")}


def test_what_is_usual_is_no_flaw() -> None:
    """A tenth of labels repeat one (an inspection, then a chargeback)."""

    def doubled(told: Told) -> Told:
        again = np.arange(len(told.value)) % 10 == 1
        return replace(told, request=np.where(again, np.roll(told.request, 1), told.request))

    habits = LabelHabits.fit([doubled(day(np.random.default_rng(seed))) for seed in range(30)])
    assert habits.repeated.usual == pytest.approx(0.1, abs=0.01)
    assert exceeding(labels_health(habits, doubled(week(11)))) == set()
    assert exceeding(labels_health(HABITS, doubled(week(11)))) == {("repeated", "flood")}


def test_days_that_differ_widely_make_no_flood_of_a_busy_one() -> None:
    busy = [day(np.random.default_rng(seed), per_request=0.3 if seed % 7 == 0 else 0.05) for seed in range(56)]
    habits = LabelHabits.fit(busy)
    assert habits.heard.dispersion > 5
    assert "flood" not in kinds(labels_health(habits, day(np.random.default_rng(99), per_request=0.3)))
    even = LabelHabits.fit([day(np.random.default_rng(seed), per_request=0.08) for seed in range(56)])
    assert "flood" in kinds(labels_health(even, day(np.random.default_rng(99), per_request=0.3)))


def test_nothing_due_says_nothing_of_floods_and_silence() -> None:
    found = labels_health(HABITS, week(12, due=0))
    assert {flaw.share for flaw in found} == {None}


def test_a_reference_needs_days_labels_and_requests() -> None:
    days = [day(np.random.default_rng(seed)) for seed in range(7)]
    LabelHabits.fit(days)
    for broken in (days[:6], [replace(d, due=0) for d in days], [day(np.random.default_rng(0), per_request=0)] * 7):
        with pytest.raises(BadData, match="reference: must have >= 7 days, labels and requests due"):
            LabelHabits.fit(broken)


def test_a_label_is_zero_or_one() -> None:
    told = week(13)
    with pytest.raises(BadData, match="label: must be 0 or 1, got"):
        labels_health(HABITS, replace(told, value=told.value + 2))


def test_days_that_differ_more_than_rows_by_chance_allow_more_of_a_flaw() -> None:
    rng = np.random.default_rng(0)
    usual = Numeric.of(rng.normal(size=42_000))
    rate = np.repeat([0.0, 0.06], 21)  # share of rows outside, by day
    blocks = [
        {"x": usual.empty_like().update(np.where(rng.random(1_000) < q, 100.0, rng.normal(size=1_000)))} for q in rate
    ]
    whole = blocks[0]["x"]
    for block in blocks[1:]:
        whole = whole.merge(block["x"])
    today = {"x": usual.empty_like().update(np.where(rng.random(1_000) < 0.09, 100.0, rng.normal(size=1_000)))}

    def fires(some: Sequence[dict[str, Numeric]]) -> bool:
        found = flaws({"x": whole}, today, rate=0.01, blocks=some)
        return next(f for f in found if f.kind == "out_of_range").exceeds

    assert fires(())
    assert not fires(blocks)


def test_what_a_detector_has_seen_is_over_soon_if_it_forgets_what_is_more_than_enough() -> None:
    def quiet_days(most: float) -> int:
        found = Surprise(dispersion=1.0)
        for _ in range(100):
            found = found.after(20, 1)
            found = found.forgetting(max(found.detection - most, 0.0))
        assert found.detects(1e-4)
        days = 0
        while found.detects(1e-4):
            found, days = found.after(1, 1), days + 1
        return days

    assert quiet_days(-1.2 * math.log(1e-4)) <= 14 < 400 < quiet_days(math.inf)


def test_a_day_without_values_in_the_reference_does_not_hide_that_all_are_missing() -> None:
    rng = np.random.default_rng(0)
    usual = Numeric.of(rng.normal(size=1_000)).empty_like()
    blocks = [{"x": usual.update(np.full(800, np.nan) if d == 20 else rng.normal(size=800))} for d in range(42)]
    whole = blocks[0]["x"]
    for block in blocks[1:]:
        whole = whole.merge(block["x"])
    found = flaws({"x": whole}, {"x": usual.update(np.full(800, np.nan))}, rate=1e-6, blocks=blocks)
    assert next(f for f in found if f.kind == "missing").exceeds
