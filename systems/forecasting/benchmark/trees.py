"""One LightGBM for all series of a frequency and all steps ahead, and what it sees of a series.

A series is told by differences to a base forecast, in units of its own recent changes, so that all look alike to the
trees; the error of a unit is weighted by what it costs in OWA, or in MSIS.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import lightgbm
import numpy as np

from systems.forecasting.benchmark import local, protocol
from systems.forecasting.benchmark.dataset import HOURLY, WEEKLY, Frequency, Values

DAY, WEEK, YEAR = 24, 168, 52  # hours, hours, weeks
DAILY_LAGS: Final = (1, 2, 3, 23, 24, 25, 26, 47, 48, 49, 167, 168, 169, 170)
WEEKLY_LAGS: Final = (1, 2, 3, 23, 24, 25, 26, 47, 48, 49, 144, 145, 167, 168, 169, 170)
THREADS: Final = 2


@dataclass(frozen=True)
class Rows:
    """What is known of n series at an origin, one row for each step ahead."""

    x: Values  # (n, h, n_features)
    base: Values  # (n, h), in logarithms where the recipe is
    unit: Values  # (n, 1), likewise


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the trees of a frequency learn. Chosen by backtests on the training part."""

    frequency: Frequency
    log: bool
    rows: Callable[[Values, int], Rows]
    spans: tuple[tuple[int, int], ...]  # steps between origins, and from the oldest to the newest; all are averaged
    needs: int  # steps of history that a series must have at an origin
    rounds: int
    params: Mapping[str, Any]
    quantile_rounds: int
    quantile_params: Mapping[str, Any]


def hourly_base(y: Values) -> Values:
    """The geometric mean of two autoregressions."""
    found = [local.autoregression(y, HOURLY.horizon, lags, r) for lags, r in ((DAILY_LAGS, 0.01), (WEEKLY_LAGS, 0.03))]
    return np.asarray(np.sqrt(found[0] * found[1]))


def hourly_rows(y: Values, horizon: int) -> Rows:
    """At the end of y; the base is an autoregression that knows nothing later either."""
    t = y.shape[1] - 1
    ahead = np.arange(1, horizon + 1)
    at = t + ahead
    same_hour = at - DAY * ((ahead - 1) // DAY + 1)  # the newest value of that hour
    base = hourly_base(y)
    unit = _mean(np.abs(y[:, -2 * WEEK :] - y[:, -2 * WEEK - DAY : -DAY])) + 1e-9
    level = _mean(y[:, -WEEK:])

    def of(place: Values) -> Values:
        return np.where(place >= 0, y[:, np.maximum(place, 0)], np.nan)

    def mean(start: int, end: int) -> Values:
        return _mean(y[:, t - end + 1 : t - start + 1])

    def changed(since: int, ago: int = 0) -> Values:
        return np.asarray(y[:, t - ago, None] - y[:, t - ago - since, None]) / unit

    days = np.stack([of(same_hour - DAY * j) for j in range(7)])
    weeks = np.stack([of(at - WEEK * j) for j in (1, 2, 3, 4)])
    past, before = mean(0, DAY), mean(WEEK, WEEK + DAY)
    absolute = [
        *days, *weeks, days.mean(0), _mean(weeks[:3], 0),
        *(of(at - WEEK + e) for e in (-1, 1, DAY, -DAY)), *(of(at - 2 * WEEK + e) for e in (-1, 1)),
        of(same_hour - 1), of(np.minimum(same_hour + 1, t)), weeks[0] + past - before, weeks[0] * past / before,
        local.autoregression(y, horizon, DAILY_LAGS, 0.01),
    ]  # fmt: skip
    relative = [
        *(changed(DAY, ago) for ago in (0, 1, 2, 3, 5, 8, 12, 18, 23)),
        *(changed(WEEK, ago) for ago in (0, 1, 3, 8, 16)),
        changed(1), changed(1, 1),
        (past - mean(DAY, 2 * DAY)) / unit, (mean(DAY, 2 * DAY) - mean(2 * DAY, 3 * DAY)) / unit,
        (past - before) / unit, (past - mean(WEEK - DAY, WEEK)) / unit, (mean(0, WEEK) - mean(WEEK, 2 * WEEK)) / unit,
        level / unit, np.std(y[:, -WEEK:], 1, keepdims=True) / unit, (base - past) / unit, base / level,
        _mean(np.abs(y[:, -WEEK:] - y[:, -2 * WEEK : -WEEK])) / unit,
        ahead[None], (at % DAY)[None], (at % WEEK // DAY)[None],
    ]  # fmt: skip
    return Rows(_features([*((value - base) / unit for value in absolute), *relative], base.shape), base, unit)


def weekly_rows(y: Values, horizon: int) -> Rows:
    """At the end of y, in logarithms; the base is the newest value."""
    z = np.log(y)
    t = y.shape[1] - 1
    ahead = np.arange(1, horizon + 1)
    newest = z[:, -1:]
    change = np.diff(z[:, -2 * YEAR - 1 :], axis=1)
    year = change[:, -YEAR:]
    unit = _mean(np.abs(year)) + 1e-4

    def of(place: Values) -> Values:
        return np.where(place >= 0, z[:, np.maximum(place, 0)], np.nan)

    def ago(lag: int) -> Values:
        return of(np.array([t - lag]))

    lags = (1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 21, 26, 32, 39, 45, 50, 51, 52, 53, 54, 65, 78, 91, 104)
    around = np.stack([of(t + ahead - YEAR + e) for e in (-1, 0, 1)]).mean(0)
    in_units = [
        *(ago(lag) - newest for lag in lags), *(_mean(z[:, -w:]) - newest for w in (4, 13, 26, 52)),
        *(of(t + ahead - years * YEAR) - ago(years * YEAR) for years in (1, 2, 3)),
        around - ago(YEAR), around - newest, _mean(year), np.asarray(_std(year)), _mean(np.abs(change[:, -8:])),
    ]  # fmt: skip
    centred = year - _mean(year)
    other = [
        np.log(unit), _mean(centred[:, 1:] * centred[:, :-1]) / (_std(year) ** 2 + 1e-9),
        np.minimum((~np.isnan(y)).sum(1, keepdims=True), 300), newest, ahead[None],
    ]  # fmt: skip
    base = np.repeat(newest, horizon, 1)
    return Rows(_features([*(value / unit for value in in_units), *other], base.shape), base, unit)


def _mean(x: Values, axis: int = 1) -> Values:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nothing but NaN, it is NaN
        return np.asarray(np.nanmean(x, axis, keepdims=axis == 1))


def _std(x: Values) -> Values:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanstd(x, 1, keepdims=True))


def _features(values: list[Values], shape: tuple[int, ...]) -> Values:
    return np.stack([np.broadcast_to(value, shape) for value in values], 2)


class Trees:
    """Of the series y, (n, T): learns at origins before its end, forecasts what comes after it."""

    def __init__(self, y: Values, recipe: Recipe, every: int, span: int) -> None:
        self.recipe = recipe
        h, season = recipe.frequency.horizon, recipe.frequency.season
        scale = protocol.scale(y, season)
        last = y.shape[1] - h
        naive2 = protocol.naive2(y[:, :last], h, season)  # what OWA is relative to, as far as it can be known here
        smape = protocol.smape(y[:, last:], naive2).mean()
        mase = protocol.mase(y[:, last:], naive2, scale).mean()
        x, target, cost, width = [], [], [], []
        for end in range(last, max(last - span, recipe.needs), -every):
            some = ~np.isnan(y[:, end - recipe.needs])
            if not some.any():
                continue
            rows = recipe.rows(y[some, :end], h)
            actual, scales = y[some, end : end + h], scale[some, None]
            step = rows.unit * (actual if recipe.log else np.ones_like(actual))  # of the series, for one of the target
            x.append(rows.x.reshape(-1, rows.x.shape[2]))
            target.append((((np.log(actual) if recipe.log else actual) - rows.base) / rows.unit).ravel())
            cost.append((step * (100 / actual / smape + 1 / scales / mase)).ravel())
            width.append((step / scales).ravel())
        self.x, self.target = np.concatenate(x), np.concatenate(target)
        self.cost, self.width = np.concatenate(cost), np.concatenate(width)
        self.asked = recipe.rows(y, h)

    def point(self, seed: int = 0) -> Values:
        """By the least absolute error."""
        params = {"objective": "l1", **self.recipe.params, "seed": seed}
        return self._forecast(params, self.recipe.rounds, self.cost)

    def quantile(self, level: float) -> Values:
        params = {"objective": "quantile", "alpha": level, **self.recipe.quantile_params, "seed": 0}
        return self._forecast(params, self.recipe.quantile_rounds, self.width)

    def _forecast(self, params: Mapping[str, Any], rounds: int, weight: Values) -> Values:
        settings = {**params, "num_threads": THREADS, "deterministic": True, "force_row_wise": True, "verbosity": -1}
        most = np.quantile(weight, 0.99)  # a few series, nearly constant until lately, would be all that counts
        data = lightgbm.Dataset(self.x, self.target, weight=np.minimum(weight, most), params=settings)
        model = lightgbm.train(settings, data, rounds)
        asked = self.asked
        found = model.predict(asked.x.reshape(-1, asked.x.shape[2]), num_threads=THREADS)
        values = asked.base + asked.unit * np.asarray(found).reshape(asked.base.shape)
        return np.asarray(np.exp(values) if self.recipe.log else values)


def recipes() -> tuple[Recipe, Recipe]:
    common = {"feature_fraction": 0.4, "bagging_freq": 1}
    hourly = Recipe(
        frequency=HOURLY, log=False, rows=hourly_rows, spans=((DAY, 25 * DAY),), needs=2 * WEEK + DAY,
        rounds=300,
        params={**common, "learning_rate": 0.05, "num_leaves": 63, "min_data_in_leaf": 50, "lambda_l2": 2,
                "bagging_fraction": 0.6, "max_bin": 63},
        quantile_rounds=150,
        quantile_params={**common, "learning_rate": 0.08, "num_leaves": 31, "min_data_in_leaf": 200, "lambda_l2": 2,
                         "bagging_fraction": 0.5, "max_bin": 63},
    )  # fmt: skip
    weekly = Recipe(
        frequency=WEEKLY, log=True, rows=weekly_rows, spans=((2, 130), (3, 260)), needs=30,
        rounds=200,
        params={**common, "learning_rate": 0.04, "num_leaves": 63, "min_data_in_leaf": 100, "lambda_l2": 5,
                "bagging_fraction": 0.5, "max_bin": 127},
        quantile_rounds=150,
        quantile_params={**common, "learning_rate": 0.05, "num_leaves": 31, "min_data_in_leaf": 200, "lambda_l2": 5,
                         "bagging_fraction": 0.5, "max_bin": 63},
    )  # fmt: skip
    return hourly, weekly
