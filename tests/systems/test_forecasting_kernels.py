"""The arithmetic of forecasts: series, hierarchies, honest intervals, whole distributions and what to order."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("statsmodels", reason="statsmodels is not installed: pip install -e '.[forecasting]'")

from scipy import stats
from statsmodels.tsa.forecasting.theta import ThetaModel

from common.errors import BadSetting
from common.features.view import Array
from systems.forecasting.data.events import LEVELS
from systems.forecasting.model import aggregates, conformal, distribution, local, ordering
from systems.forecasting.model.aggregates import Hierarchy, reconcile
from systems.forecasting.model.conformal import Shifts

NAN = np.nan
EVERY_FORECAST = {
    "seasonal_naive": lambda y, h: local.seasonal_naive(y, h, 7),
    "theta": lambda y, h: local.theta(y, h, 7),
    "croston": local.croston,
}
SEEDS = st.integers(0, 2**32 - 1)


def sales(n: int, days: int, seed: int = 0, season: int = 7, lowest: float = 0.0) -> Array:
    """Poisson counts with a season and a trend, (n, days)."""
    source, t = np.random.default_rng(seed), np.arange(days)
    wave = 1 + 0.5 * np.sin(2 * np.pi * (t / season + source.random((n, 1))))
    return source.poisson(source.uniform(5, 60, (n, 1)) * wave * (1 + source.normal(0, 5e-4, (n, 1)) * t)) + lowest


def with_gaps(y: Array, seed: int = 0) -> Array:
    """New series, sold-out days, and the newest days not yet reported."""
    source = np.random.default_rng(seed)
    out = np.where(source.random(y.shape) < 0.05, NAN, y)
    for i in range(len(y)):
        out[i, : source.integers(0, y.shape[1] // 2)] = NAN
        out[i, y.shape[1] - source.integers(0, 5) :] = NAN
    return out


# One series


def test_a_gap_becomes_the_day_one_season_before_else_after_else_the_mean() -> None:
    y = np.array([[NAN, NAN, 1.0, 2.0, NAN, NAN, NAN, 4.0, NAN]])
    assert np.array_equal(local.filled(y, 2), [[NAN, NAN, 1, 2, 1, 2, 1, 4, 1]], equal_nan=True)
    later = np.array([[5.0, NAN, 6.0, 7.0]])
    assert local.filled(later, 2).tolist() == [[5, 7, 6, 7]]
    never = np.array([[NAN, 3.0, NAN, NAN, 5.0, NAN]])  # of phases 0 and 1 of three nothing is known
    assert np.array_equal(local.filled(never, 3), [[NAN, 3, 4, 4, 5, 4]], equal_nan=True)
    assert np.isnan(local.filled(np.full((1, 5), NAN), 2)).all()


def test_the_seasonal_naive_forecast_is_the_last_known_day_of_the_phase() -> None:
    y = np.array([[1.0, 2.0, 3.0, 4.0, NAN, 6.0, NAN], [NAN, NAN, NAN, NAN, NAN, 9.0, NAN], [NAN] * 7])
    # day 7 has the phase of days 1 and 4, day 8 that of 2 and 5, day 9 that of 0, 3 and 6
    assert local.seasonal_naive(y, 4, 3).tolist() == [[2, 6, 4, 2], [9, 9, 9, 9], [0, 0, 0, 0]]


@pytest.mark.parametrize("season", [7, 12])
@pytest.mark.parametrize("lowest", [20.0, -20.0])
def test_theta_is_that_of_statsmodels(season: int, lowest: float) -> None:
    y = sales(8, 200, seed=3, season=season, lowest=lowest)
    y += np.cumsum(np.random.default_rng(3).normal(0, 1.5, y.shape), axis=1)
    theirs = [ThetaModel(row, period=season, method="mul" if row.min() > 0 else "add").fit().forecast(28) for row in y]
    apart = np.abs(local.theta(y, 28, season) - np.array(theirs)).max(axis=1)
    assert (apart <= 5e-4 * np.abs(y).mean(axis=1)).all()  # alpha is found in steps of 0.0006


def test_a_series_is_forecast_as_if_the_days_before_it_were_not_there() -> None:
    y = sales(6, 200, seed=4)
    later = np.concatenate((np.full((6, 60), NAN), y), axis=1)
    for forecast in (EVERY_FORECAST["theta"], EVERY_FORECAST["croston"]):
        np.testing.assert_allclose(forecast(later, 14), forecast(y, 14), rtol=1e-9)


@pytest.mark.parametrize("name", EVERY_FORECAST)
@given(seed=SEEDS, days=st.integers(0, 60), n=st.integers(0, 5), share=st.floats(0, 1))
@settings(max_examples=25)
def test_whatever_is_known_there_is_a_forecast(name: str, seed: int, days: int, n: int, share: float) -> None:
    source = np.random.default_rng(seed)
    y = source.poisson(source.choice([0.05, 1.0, 50.0], (n, 1)), (n, days)).astype(float)
    y[source.random(y.shape) < share] = NAN
    out = EVERY_FORECAST[name](y, 9)
    assert out.shape == (n, 9)
    assert np.isfinite(out).all()
    assert (out >= 0).all()
    nothing = ~(y > 0).any(axis=1)
    if name != "profile":  # which asks the others then
        assert (out[nothing] == 0).all()
    order = source.permutation(n)  # and no series hears of another
    if name != "profile":
        np.testing.assert_allclose(EVERY_FORECAST[name](y[order], 9), out[order], rtol=1e-12)
    np.testing.assert_allclose(EVERY_FORECAST[name](4 * y, 9), 4 * out, rtol=1e-9)


def crostons(row: list[float], alpha: float) -> float:
    """The published recursion, one day at a time."""
    size, interval, since = None, 0.0, 0
    for value in row:
        if np.isnan(value):
            continue
        since += 1
        if value > 0:
            size = value if size is None else size + alpha * (value - size)
            interval = since if interval == 0 else interval + alpha * (since - interval)
            since = 0
    return 0.0 if size is None else (1 - alpha / 2) * size / interval


@given(st.lists(st.sampled_from([NAN, 0.0, 0.0, 0.0, 1.0, 2.0, 7.0]), min_size=1, max_size=40))
@settings(max_examples=50)
def test_croston_is_the_published_recursion(row: list[float]) -> None:
    assert local.croston(np.array([row]), 1)[0, 0] == pytest.approx(crostons(row, 0.1))


def test_intermittent_demand_is_forecast_without_bias() -> None:
    source = np.random.default_rng(0)
    y = source.binomial(1, 0.2, (400, 400)) * source.integers(1, 9, (400, 400)).astype(float)  # 0.9 a day
    assert local.croston(y, 1).mean() == pytest.approx(0.9, rel=0.03)


def test_a_scale_is_of_what_is_known() -> None:
    y = np.array([[9.0, NAN, 2.0, 4.0], [9.0, 7.0, NAN, NAN], [NAN] * 4, [0.0] * 4, [5.0] * 4])
    assert local.scale(y, 1).tolist() == pytest.approx([2, 2, 1, 1, 0.25])
    assert local.scale(y, 4).tolist() == pytest.approx([0.25, 0.4, 1, 1, 0.25])  # no two days are so far apart


# Sums of series


def chain(seed: int = 0, n: int = 12) -> Hierarchy:
    source = np.random.default_rng(seed)
    labels = {"store": source.choice(["a", "b"], n), "category": source.choice(["x", "y", "z"], n)}
    return Hierarchy.of({level: values.tolist() for level, values in labels.items()})


def test_sums_stand_above_their_series() -> None:
    hierarchy = Hierarchy.of({"store": ["b", "a", "b"], "category": ["x", "x", "y"]})
    assert hierarchy.names == (
        ("total", ""), ("store", "a"), ("store", "b"), ("category", "x"), ("category", "y"),
    )  # fmt: skip
    assert hierarchy.add(np.array([[1.0], [2.0], [4.0]]))[:, 0].tolist() == [7, 2, 5, 3, 4, 1, 2, 4]


@given(seed=SEEDS)
@settings(max_examples=25)
def test_reconciled_forecasts_add_up_and_stay_as_they_are(seed: int) -> None:
    source, hierarchy = np.random.default_rng(seed), chain(seed)
    base = source.gamma(0.5, 100.0, (len(hierarchy.names) + 12, 5))
    weights = source.lognormal(0, 3, len(base))
    out = reconcile(base, hierarchy, weights)
    assert (out >= 0).all()
    np.testing.assert_allclose(hierarchy.add(out[-12:]), out, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(reconcile(out, hierarchy, weights), out, rtol=1e-7, atol=1e-7)


@given(seed=SEEDS)
@settings(max_examples=25)
def test_reconciliation_is_the_weighted_least_squares_fit_and_keeps_forecasts_unbiased(seed: int) -> None:
    source, hierarchy = np.random.default_rng(seed), chain(seed)
    truth = hierarchy.add(source.uniform(500, 900, (12, 3)))
    errors, weights = source.normal(0, 1, truth.shape), source.uniform(0.1, 10, len(truth))
    out = reconcile(truth + errors, hierarchy, weights)
    np.testing.assert_allclose((out + reconcile(truth - errors, hierarchy, weights)) / 2, truth, rtol=1e-9)
    S = hierarchy.add(np.eye(12))
    fit = np.linalg.lstsq(S / np.sqrt(weights)[:, None], (truth + errors) / np.sqrt(weights)[:, None])[0]
    np.testing.assert_allclose(out, S @ fit, rtol=1e-9)


def test_a_forecast_gives_way_as_much_as_it_errs() -> None:
    hierarchy = Hierarchy.of({"store": ["a", "a"]})
    base = np.array([[12.0], [12.0], [4.0], [4.0]])  # the sums say 12, the series 4 + 4
    sure = reconcile(base, hierarchy, np.array([1e-6, 1e-6, 1.0, 3.0]))
    np.testing.assert_allclose(sure[:, 0], [12, 12, 5, 7], rtol=1e-4)
    unsure = reconcile(base, hierarchy, np.array([1e6, 1e6, 1.0, 3.0]))
    np.testing.assert_allclose(unsure[:, 0], [8, 8, 4, 4], rtol=1e-4)


def test_what_cannot_be_reconciled_is_refused() -> None:
    hierarchy = Hierarchy.of({"store": ["a", "a"]})
    with pytest.raises(BadSetting, match=r"base, weights: must have 2 sums and 2 series, got \(3, 1\)"):
        reconcile(np.ones((3, 1)), hierarchy, np.ones(3))
    with pytest.raises(BadSetting, match="weights: must be above 0 and finite, got 0.0 to 1.0"):
        reconcile(np.ones((4, 1)), hierarchy, np.array([0.0, 1, 1, 1]))
    with pytest.raises(BadSetting, match="labels: each level must have one per series"):
        Hierarchy.of({"store": ["a"], "category": ["x", "y"]})


def test_smoothing_follows_a_season_and_a_trend_that_fades() -> None:
    t = np.arange(400)
    wave = np.sin(2 * np.pi * t / 7)
    y = np.stack((1e6 * (2 + wave) * (1 + t / 400), 50 * wave + t / 4, np.full(400, 3.0), np.zeros(400)))
    y += np.random.default_rng(0).normal(0, 1, y.shape) * np.array([[1e4], [1.0], [0.0], [0.0]])
    y[1, :300], y[0, 50], y[:, -1] = NAN, NAN, NAN
    out = aggregates.ets(y, 7, 7)
    ahead = np.arange(400, 407)
    wave = np.sin(2 * np.pi * ahead / 7)
    np.testing.assert_allclose(out[0], 1e6 * (2 + wave) * (1 + ahead / 400), rtol=0.015)
    np.testing.assert_allclose(out[1], 50 * wave + ahead / 4, atol=8)
    np.testing.assert_allclose(out[2:], [[3.0] * 7, [0.0] * 7], rtol=1e-9)


def test_the_season_of_what_is_always_sold_shrinks_with_its_level() -> None:
    t = np.arange(217)
    true = 100 * (2 + np.sin(2 * np.pi * t / 7)) * np.where(t < 200, 1.0, 0.2)
    y = true[:210] * np.random.default_rng(0).normal(1, 0.02, 210)
    out = aggregates.ets(np.stack((y, np.where(t[:210] == 100, 0.0, y))), 7, 7)
    np.testing.assert_allclose(out[0], true[210:], rtol=0.2)
    assert np.ptp(out[1]) > 3 * np.ptp(true[210:])  # with a day of nothing it adds, whatever the level


def test_a_sum_too_short_for_smoothing_is_forecast_by_theta() -> None:
    y = np.full((2, 30), NAN)
    y[0, -19:] = sales(1, 19)
    assert np.array_equal(aggregates.ets(y, 5, 7), local.theta(y, 5, 7))


def test_a_forecast_that_runs_away_is_not_believed() -> None:
    y = np.where(np.random.default_rng(0).random((12, 40)) < 0.5, 1e8, 1e-3)
    assert aggregates.ets(y, 28, 12).max() <= 1e9
    assert local.theta(y, 28, 12).max() <= 1e9


# Honest quantiles


@pytest.mark.parametrize("n", [39, 100])
def test_moved_quantiles_cover_what_is_exchangeable_as_theory_says(n: int) -> None:
    source, runs = np.random.default_rng(n), 1500
    below, least, most = np.zeros(len(LEVELS)), [], []
    for _ in range(runs):
        z, scale = source.gamma(2, 1.0, n + 20), source.uniform(1, 5, n + 20)
        q = np.zeros((n + 20, len(LEVELS)))  # as wrong as can be
        nothing = np.zeros(n + 20, np.int64)
        shifts = Shifts.fit((z * scale)[:n], q[:n], scale[:n], nothing[:n], LEVELS)
        moved = shifts.apply(q[n:], scale[n:], nothing[n:])
        below += ((z * scale)[n:, None] <= moved).mean(axis=0) / runs
    for level in LEVELS:
        least.append(level - (level < 0.5) / (n + 1) - 0.008)  # and of chance three standard deviations
        most.append(level + (level > 0.4) / (n + 1) + 0.008)
    assert (least <= below).all()
    assert (below <= most).all()


def test_each_bucket_has_its_own_shifts_and_a_small_one_those_of_all() -> None:
    z = np.concatenate((np.arange(40.0), 1000 + np.arange(38.0), [NAN]))
    bucket = np.repeat([7, 3], [40, 39])
    shifts = Shifts.fit(z, np.zeros((79, 3)), np.ones(79), bucket, (0.025, 0.5, 0.975))
    assert shifts.buckets.tolist() == [7]  # 38 outcomes cannot tell where the last 2.5 % begin
    moved = shifts.apply(np.zeros((3, 3)), np.array([1.0, 2.0, 1.0]), np.array([7, 7, 3]))
    assert moved.tolist() == [[0, 20, 39], [0, 40, 78], [0, 39, 1037]]
    same = Shifts.from_dict(json.loads(json.dumps(shifts.to_dict())))
    assert same.to_dict() == shifts.to_dict()


def test_too_few_outcomes_leave_every_bucket_to_all_of_them() -> None:
    shifts = Shifts.fit(np.array([2.0, 4.0]), np.zeros((2, 2)), np.full(2, 2.0), np.arange(2), (0.1, 0.9))
    assert shifts.apply(np.ones((1, 2)), np.ones(1), np.array([1])).tolist() == [[2, 3]]
    again = Shifts.from_dict(json.loads(json.dumps(shifts.to_dict())))
    assert again.apply(np.ones((1, 2)), np.ones(1), np.array([1])).tolist() == [[2, 3]]
    with pytest.raises(BadSetting, match="z: must hold a known outcome, got 1 rows"):
        Shifts.fit(np.array([NAN]), np.zeros((1, 2)), np.ones(1), np.zeros(1, np.int64), (0.1, 0.9))


@given(seed=SEEDS)
@settings(max_examples=25)
def test_moved_quantiles_never_cross(seed: int) -> None:
    source = np.random.default_rng(seed)
    q, bucket = source.normal(size=(120, len(LEVELS))), source.integers(0, 3, 120)
    shifts = Shifts.fit(source.normal(size=120), q, np.ones(120), bucket, LEVELS)
    assert (np.diff(shifts.apply(q, source.uniform(0, 2, 120), bucket), axis=1) >= 0).all()


def test_jitter_is_uniform_and_the_same_for_the_same_series_and_day() -> None:
    series, day = np.arange(200)[:, None], np.arange(20_000, 20_300)[None]
    u = conformal.jitter(np.zeros((200, 300)), series, day)
    assert stats.kstest(u.ravel(), "uniform").pvalue > 0.01
    for other in (u[1:, :], u[:, 1:]):  # nor do neighbours tell of each other
        assert abs(np.corrcoef(u[: other.shape[0], : other.shape[1]].ravel(), other.ravel())[0, 1]) < 0.02
    assert len(np.unique(u)) == u.size
    assert conformal.jitter(np.array([3.0]), np.array([5]), np.array([20_007]))[0] == 3 + u[5, 7]
    assert u[0, 0] == pytest.approx(0.7547773116882761, abs=1e-15)  # a model that was saved relies on it


@given(st.floats(0, 2**52, allow_nan=False).map(np.floor), st.integers(), st.integers(-10, 10))
@settings(max_examples=50)
def test_a_jittered_count_does_not_reach_the_next_one(count: float, series: int, day: int) -> None:
    number = np.array([series % 2**63])
    z = conformal.jitter(np.array([count]), number, np.array([day]))
    assert np.floor(z).tolist() == [count]
    assert conformal.is_count(np.floor(z))


def test_quantiles_of_counts_come_back_from_jittered_ones() -> None:
    y = np.random.default_rng(0).poisson(2.0, 200_000).astype(float)
    z = conformal.jitter(y, np.arange(len(y)), np.array(0))
    assert conformal.whole(np.quantile(z, LEVELS)).tolist() == stats.poisson.ppf(LEVELS, 2.0).tolist()


def test_counts_are_whole_and_not_below_zero() -> None:
    rows = np.array([[1.0, 0.0, NAN], [1.5, 0.0, NAN], [-1.0, 0.0, 1.0], [NAN, NAN, NAN]])
    assert conformal.is_count(rows).tolist() == [True, False, False, True]


# Whole distributions


@given(seed=SEEDS, equal=st.booleans())
@settings(max_examples=50)
def test_quantiles_and_probabilities_are_each_others_inverse(seed: int, equal: bool) -> None:
    source = np.random.default_rng(seed)
    q = 3 + np.sort(source.integers(0, 4, (20, 7)) if equal else source.gamma(2, 3, (20, 7)), axis=1)
    p = source.uniform(0.002, 0.998, 20)
    v = distribution.ppf(q, LEVELS, p)
    over, under = distribution.cdf(q, LEVELS, v * (1 + 1e-9)), distribution.cdf(q, LEVELS, v * (1 - 1e-9))
    assert (over >= p - 1e-6).all()
    assert ((under <= p + 1e-6) | (v == 0)).all()
    for i, level in enumerate(LEVELS):
        np.testing.assert_allclose(distribution.ppf(q, LEVELS, level), q[:, i])
    assert (distribution.cdf(q, LEVELS, np.full(20, -1e-9)) == 0).all()


def test_moments_are_those_of_the_distribution_itself() -> None:
    q = np.sort(np.random.default_rng(0).gamma(2, 10, (8, 7)), axis=1)
    p = (np.arange(50_000) + 0.5) / 50_000
    for row in q:
        values = distribution.ppf(row[None], LEVELS, p)
        mean, variance = distribution.moments(row, LEVELS)
        assert mean == pytest.approx(values.mean(), rel=2e-3)
        assert variance == pytest.approx(values.var(), rel=0.02)
        assert distribution.mean(row, LEVELS) == mean


@pytest.mark.parametrize("family", [stats.norm(100, 10), stats.gamma(4, scale=5), stats.lognorm(0.5, scale=20)])
def test_seven_quantiles_tell_the_distribution(family: Any) -> None:
    q = family.ppf(LEVELS)
    mean, variance = distribution.moments(q, LEVELS)
    assert mean == pytest.approx(family.mean(), rel=0.005)
    assert variance == pytest.approx(family.var(), rel=0.03)
    p = np.linspace(0.005, 0.995, 100)
    np.testing.assert_allclose(distribution.cdf(q[None], LEVELS, family.ppf(p)), p, atol=0.015)


def of_counts(mean: float, r: float, days: int) -> Array:
    """Quantiles of jittered negative binomial counts, a request with so many days: (1, days, L)."""
    k = np.arange(10_000)
    below = np.concatenate(([0.0], stats.nbinom.cdf(k, r, r / (r + mean))))
    one = np.interp(LEVELS, below, np.arange(len(below)))  # P(y + u <= k + 1) = P(y <= k), and straight in between
    return np.tile(one, (1, days, 1))


@pytest.mark.parametrize(("mean", "r"), [(0.1, 0.5), (0.5, 1.0), (3.0, 2.0), (20.0, 5.0), (400.0, 10.0)])
@pytest.mark.parametrize("days", [2, 7, 28])
def test_the_sum_of_days_has_the_quantiles_of_negative_binomial_demand(mean: float, r: float, days: int) -> None:
    q, p = of_counts(mean, r, 28), np.array([0.1, 0.5, 0.8, 0.9, 0.99])
    found = distribution.total(np.repeat(q, 5, axis=0), np.full(5, days), LEVELS, p, True)
    true = stats.nbinom.ppf(p, r * days, r / (r + mean))
    assert (np.abs(found - true) <= np.maximum(1, 0.02 * true)).all()


def test_the_sum_of_unlike_days_has_the_quantiles_of_simulated_demand() -> None:
    means, rs, p = (1.0, 8.0, 2.0, 25.0, 0.2), (1.0, 3.0, 5.0, 8.0, 0.5), np.array([0.1, 0.5, 0.8, 0.9, 0.99])
    q = np.concatenate([of_counts(mean, r, 1) for mean, r in zip(means, rs, strict=True)], axis=1)
    rates = np.array(rs) / (np.array(rs) + means)
    simulated = np.random.default_rng(0).negative_binomial(rs, rates, (100_000, 5)).sum(axis=1)
    found = distribution.total(np.repeat(q, 5, axis=0), np.full(5, 5), LEVELS, p, True)
    assert (np.abs(found - np.quantile(simulated, p)) <= 1.5).all()


def test_sums_of_what_is_not_counted_and_of_steady_sales_are_near_the_truth() -> None:
    p = np.array([0.1, 0.5, 0.9, 0.99])
    weights = np.tile(stats.gamma(2, scale=1.5).ppf(LEVELS), (4, 5, 1))
    np.testing.assert_allclose(
        distribution.total(weights, np.full(4, 5), LEVELS, p), stats.gamma(10, scale=1.5).ppf(p), rtol=0.02
    )
    k = np.arange(200)
    steady = np.interp(LEVELS, np.concatenate(([0.0], stats.binom.cdf(k, 100, 0.5))), np.arange(201))
    p = np.linspace(0.05, 0.95, 19)
    apart = distribution.total(np.tile(steady, (19, 5, 1)), np.full(19, 5), LEVELS, p, True)
    apart -= stats.binom.ppf(p, 500, 0.5)
    assert np.abs(apart).max() <= 1
    assert np.abs(apart.mean()) <= 0.2
    assert distribution.total(np.zeros((1, 3, 7)), np.array([3]), LEVELS, 0.9, True).tolist() == [0]
    assert distribution.total(np.zeros((1, 3, 7)), np.array([3]), LEVELS, 0.9).tolist() == [0]
    odd = np.array([[[0, 0, 0, 0, 0, 0.9, 1.6]]])  # jittered counts never are like that, forecasts may be
    assert distribution.total(odd, np.array([1]), LEVELS, 0.9, True).tolist() == [0]


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6, 1e12])
@pytest.mark.parametrize("counts", [False, True])
def test_sums_of_any_size_are_finite_and_grow_with_the_level(size: float, counts: bool) -> None:
    q, p = np.sort(np.random.default_rng(0).gamma(1, size, (40, 28, 7)), axis=-1), (1e-6, 0.1, 0.5, 0.9, 1 - 1e-6)
    found = np.array([distribution.total(q, np.arange(40) % 28 + 1, LEVELS, level, counts) for level in p])
    assert np.isfinite(found).all()
    assert (np.diff(found, axis=0) >= 0).all()
    near = np.array([0, 0, 0, 1e-300, 1e-299, 1.0, 1e13])
    assert np.isfinite(distribution.cdf(near, LEVELS, np.array([0.0, 1e-320, 0.5, 1e13]))).all()


def test_errors_that_come_together_widen_the_sum() -> None:
    q = np.tile(stats.norm(100, 10).ppf(LEVELS), (1, 4, 1))
    days, deviation = np.array([4]), np.sqrt(distribution.moments(q, LEVELS)[1][0, 0])
    for correlation, wider in ((0.0, 2.0), (0.5, np.sqrt(10)), (1.0, 4.0)):
        mean, variance = distribution.total_moments(q, days, LEVELS, False, correlation)
        assert mean == pytest.approx(400)
        assert np.sqrt(variance) == pytest.approx(wider * deviation)


@given(seed=SEEDS)
@settings(max_examples=25)
def test_the_true_quantiles_lose_least(seed: int) -> None:
    z = np.random.default_rng(seed).gamma(2, 3, 4001)
    best = np.quantile(z, LEVELS)
    for other in (best * 1.1, best * 0.9, best + 0.3, best - 0.3):
        lost = distribution.pinball(z, other, LEVELS).mean(axis=0)
        assert (lost >= distribution.pinball(z, best, LEVELS).mean(axis=0) - 1e-9).all()


# Orders


@pytest.mark.parametrize(("mean", "r"), [(0.3, 1.0), (4.0, 2.0), (30.0, 6.0)])
@pytest.mark.parametrize(("short", "over"), [(0.6, 0.1), (0.2, 0.4), (3.0, 0.1)])
def test_no_quantity_costs_less_than_the_newsvendors(mean: float, r: float, short: float, over: float) -> None:
    days, demand = 3, np.arange(2000)
    found = ordering.order_up_to(
        of_counts(mean, r, 28), np.array([days]), LEVELS, np.array([short]), np.array([over]), True
    )[0]
    chance = stats.nbinom.pmf(demand, r * days, r / (r + mean))
    grid = np.arange(400)[:, None]
    cost = (chance * (short * np.maximum(demand - grid, 0) + over * np.maximum(grid - demand, 0))).sum(axis=1)
    assert found == np.floor(found)
    assert abs(found - cost.argmin()) <= max(1, 0.02 * cost.argmin())
    assert cost[int(found)] <= 1.01 * cost.min()


def test_orders_that_cost_something_are_fewer_and_larger() -> None:
    q, days = np.repeat(of_counts(5.0, 3.0, 28), 3, axis=0), np.full(3, 3)
    short, over, per_order = np.full(3, 0.6), np.full(3, 0.1), np.array([0.0, 0.5, 8.0])
    s, S = ordering.reorder(q, days, LEVELS, short, over, per_order, True)
    up_to = ordering.order_up_to(q, days, LEVELS, short, over, True)
    assert s[0] == S[0] == up_to[0]
    assert (np.diff(s) < 0).all()
    assert (S - s).tolist() == [0, 12, 49]  # sqrt(2 K 5 / (0.1 / 3))
    nothing = ordering.reorder(np.zeros((1, 28, 7)), days[:1], LEVELS, short[:1], over[:1], per_order[2:], True)
    assert [v.tolist() for v in nothing] == [[0], [0]]


def daily_cost(low: float, up_to: float, per_order: float) -> float:
    """Simulated, of sales that are lost when the shelf is empty: demand of 5 a day, 2 days of lead time."""
    source, stores, cost = np.random.default_rng(0), 100, 0.0
    demand = source.negative_binomial(3, 3 / 8, (200, stores))
    shelf, coming = np.full(stores, up_to), np.zeros((2, stores))
    for wanted in demand:
        shelf = shelf + coming[0]
        new = ordering.order(shelf + coming[1], np.array(low), np.array(up_to), True)
        coming = np.stack((coming[1], new))
        cost += per_order * (new > 0).mean() + 0.6 * np.maximum(wanted - shelf, 0).mean()
        shelf = np.maximum(shelf - wanted, 0)
        cost += 0.1 / 3 * shelf.mean()
    return cost / len(demand)


@pytest.mark.parametrize("per_order", [0.0, 0.5, 2.0, 8.0])
def test_few_other_rules_of_when_and_how_much_cost_less(per_order: float) -> None:
    one = np.ones(1)
    s, S = ordering.reorder(of_counts(5.0, 3.0, 28), np.array([3]), LEVELS, 0.6 * one, 0.1 * one, per_order * one, True)
    others = [daily_cost(low, low + lot, per_order) for low in range(6, 27, 5) for lot in (0, 12, 24, 48)]
    assert daily_cost(s[0], S[0], per_order) <= 1.06 * min(others)


def test_an_order_fills_the_shelf_once_it_is_low() -> None:
    position, s, S = np.array([3.0, 4.0, 5.0, 9.5, 3.2]), np.full(5, 4.0), np.full(5, 9.0)
    assert ordering.order(position, s, S, True).tolist() == [6, 5, 0, 0, 6]
    assert ordering.order(position, s, S).tolist() == pytest.approx([6, 5, 0, 0, 5.8])
    assert ordering.critical_ratio(0.6, 0.2) == pytest.approx(0.75)
    assert ordering.critical_ratio(1e12, 1e-9) < 1  # which no distribution has a quantile for
