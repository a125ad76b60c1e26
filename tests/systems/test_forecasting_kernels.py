"""The arithmetic of forecasts: series, hierarchies, honest intervals, whole distributions and what to order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("statsmodels", reason="statsmodels is not installed: pip install -e '.[forecasting]'")

from statsmodels.tsa.forecasting.theta import ThetaModel

from common.features.view import Array
from systems.forecasting.model import local

NAN = np.nan
EVERY_FORECAST = {
    "naive": local.naive,
    "seasonal_naive": lambda y, h: local.seasonal_naive(y, h, 7),
    "theta": lambda y, h: local.theta(y, h, 7),
    "croston": local.croston,
    "tsb": local.tsb,
    "profile": lambda y, h: local.profile(y, np.zeros(len(y), np.int64), h, 7),
}


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


def test_naive_forecasts_are_the_last_known_day_and_season() -> None:
    y = np.array([[1.0, 2.0, 3.0, 4.0, NAN, 6.0, NAN], [NAN, NAN, NAN, NAN, NAN, 9.0, NAN], [NAN] * 7])
    assert local.naive(y, 2).tolist() == [[6, 6], [9, 9], [0, 0]]
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
    for forecast in (EVERY_FORECAST["theta"], EVERY_FORECAST["croston"], EVERY_FORECAST["tsb"]):
        np.testing.assert_allclose(forecast(later, 14), forecast(y, 14), rtol=1e-9)


@pytest.mark.parametrize("name", EVERY_FORECAST)
@given(seed=st.integers(0, 2**32 - 1), days=st.integers(0, 60), n=st.integers(0, 5), share=st.floats(0, 1))
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
    assert local.tsb(y, 1).mean() == pytest.approx(0.9, rel=0.03)
    y[:, 200:] = 0  # nobody buys it any more
    assert local.croston(y, 1).mean() > 0.8
    assert local.tsb(y, 1).mean() < 0.001


def test_demand_is_intermittent_when_it_comes_on_fewer_than_three_days_of_four() -> None:
    y = np.array([[1.0] * 75 + [0.0] * 25, [1.0] * 77 + [0.0] * 23, [0.0] * 100, [NAN] * 60 + [1.0] * 40, [NAN] * 100])
    assert local.is_intermittent(y).tolist() == [True, False, True, False, False]


def test_a_new_series_takes_its_groups_season_and_its_own_level() -> None:
    season = np.array([0.5, 0.5, 1.0, 1.0, 1.0, 1.5, 1.5])
    days = np.tile(season, 10)
    y = np.full((5, 70), NAN)
    y[0], y[1] = 10 * days, 40 * days
    y[2, -2:] = 8 * days[-2:]  # known on its two best days only
    groups = np.array([3, 3, 3, 3, 9])
    out = local.profile(y, groups, 9, 7)
    np.testing.assert_allclose(out[2], 8 * np.resize(season, 9), rtol=0.1)  # its own two days are in the season too
    np.testing.assert_allclose(out[3], out[0], rtol=0.1)  # the median of three
    np.testing.assert_allclose(out[4], 10, rtol=0.1)  # of a group of which nothing is known


def test_level_and_scale_are_of_what_is_known() -> None:
    y = np.array([[9.0, NAN, 2.0, 4.0], [9.0, 7.0, NAN, NAN], [NAN] * 4, [0.0] * 4, [5.0] * 4])
    assert local.level(y, 2).tolist() == [3, 8, 0, 0, 5]
    assert local.scale(y, 1).tolist() == pytest.approx([2, 2, 1, 1, 0.25])
    assert local.scale(y, 4).tolist() == pytest.approx([0.25, 0.4, 1, 1, 0.25])  # no two days are so far apart
