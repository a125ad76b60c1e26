"""Forecasts and intervals of a frequency from its training part alone; backtests in it choose every number."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np

from systems.forecasting.benchmark import local, protocol
from systems.forecasting.benchmark.dataset import Values
from systems.forecasting.benchmark.trees import DAILY_LAGS, DAY, YEAR, Recipe, Trees, hourly_base

SEEDS: Final = 2  # of the trees of the final forecast
SHARES: Final = tuple(np.linspace(0, 1, 11).tolist())  # of the trees in the combination
THRESHOLDS: Final = (2.0, 0.99, 0.97, 0.95, 0.93, 0.9, 0.85)  # of the correlation; 2: nobody is a look-alike
LIKE: Final = (0.5, 0.75, 1.0)  # share of a look-alike above the threshold
BLENDS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)  # share of the quantile trees in the width of intervals
FACTORS: Final = tuple(np.geomspace(0.4, 4, 47).tolist())  # of the width
ORIGINS: Final = 4  # at which autoregressions are compared with what came
WINDOW: Final = 2 * YEAR  # weeks that a look-alike must be like
LEVELS: Final = (protocol.ALPHA / 2, 1 - protocol.ALPHA / 2)


@dataclass(frozen=True)
class Way:
    """How a frequency is forecast."""

    recipe: Recipe
    local: Callable[[Values], tuple[Values, Values]]  # of (n, T): forecasts beside the trees; likeness, (n,), or 2
    spread: Callable[[Values], Values]  # of (n, T): how far a forecast's logarithm may be off, (n, h), up to a factor
    thresholds: tuple[float, ...]
    shares: tuple[float, ...]  # of the trees where the likeness is above the threshold
    backtests: int  # origins, h apart


@dataclass(frozen=True)
class Forecasts:
    """Of all series, (n, h) each, made without the test part."""

    point: Values
    lower: Values
    upper: Values
    components: Mapping[str, Values]
    chosen: Mapping[str, Any]


@dataclass(frozen=True)
class Parts:
    """What is combined, at one origin."""

    trees: Values
    local: Values
    likeness: Values
    lower: Values  # half-widths in logarithms, by the quantile trees
    upper: Values
    spread: Values

    @classmethod
    def of(cls, y: Values, way: Way, seeds: int) -> "Parts":
        some = [Trees(y, way.recipe, *span) for span in way.recipe.spans]
        point = np.exp(np.mean([_log(trees.point(seed)) for trees in some for seed in range(seeds)], 0))
        low, high = (_log(some[0].quantile(level)) for level in LEVELS)
        return cls(point, *way.local(y), low, high, way.spread(y))

    def combined(self, threshold: float, share: float) -> Values:
        mixed = np.exp(share * _log(self.trees) + (1 - share) * _log(self.local))
        return np.where((self.likeness >= threshold)[:, None], mixed, self.trees)

    def interval(self, point: Values, blend: float, factor: float) -> tuple[Values, Values]:
        """By half-widths that are geometric means of those of the quantile trees and of the series' own spread."""
        middle = _log(point)
        below, above = np.maximum(middle - self.lower, 1e-6), np.maximum(self.upper - middle, 1e-6)
        own = np.maximum(self.spread, 1e-6) ** (1 - blend) * factor
        return np.exp(middle - below**blend * own), np.exp(middle + above**blend * own)


def hourly(recipe: Recipe) -> Way:
    def beside(y: Values) -> tuple[Values, Values]:
        return hourly_base(y), np.full(len(y), 2.0)

    return Way(recipe, beside, hourly_spread, (1.0,), SHARES, 2)


def weekly(recipe: Recipe) -> Way:
    def beside(y: Values) -> tuple[Values, Values]:
        return local.look_alike(y, recipe.frequency.horizon, WINDOW)

    return Way(recipe, beside, weekly_spread, THRESHOLDS, tuple(1 - share for share in LIKE), 3)


def hourly_spread(y: Values, horizon: int = 48) -> Values:
    """By autoregressions at the last origins: of the series, of its hours, and of steps ahead in all series."""
    t = y.shape[1]
    ends = [t - horizon * j for j in range(1, ORIGINS + 1)]
    found = [local.autoregression(y[:, :end], horizon, DAILY_LAGS, 0.01) for end in ends]
    error = np.stack([np.log(y[:, end : end + horizon] / f) for end, f in zip(ends, found, strict=True)]) ** 2
    series = np.sqrt(error.mean((0, 2)))[:, None] + 1e-6
    hours = np.sqrt(error.reshape(ORIGINS, len(y), -1, DAY).mean((0, 2)))  # (n, 24)
    ahead = np.sqrt((error / series**2).mean((0, 1)))  # (h,)
    return np.asarray(np.sqrt(series * np.tile(hours, horizon // DAY)) * ahead)


def weekly_spread(y: Values, horizon: int = 13) -> Values:
    """By the steps of as many weeks in the last two years."""
    z = np.log(y[:, -2 * YEAR - horizon :])
    steps = [np.nanmean((z[:, k:] - z[:, :-k]) ** 2, 1) for k in range(1, horizon + 1)]
    return np.asarray(np.sqrt(np.stack(steps, 1)))


def forecast(y: Values, way: Way) -> Forecasts:
    """Of what comes after the last column of y, (n, T)."""
    h, season = way.recipe.frequency.horizon, way.recipe.frequency.season
    past = [(y[:, : y.shape[1] - h * j], y[:, y.shape[1] - h * j :][:, :h]) for j in range(1, way.backtests + 1)]
    parts = [Parts.of(known, way, seeds=1) for known, _ in past]
    scales = [protocol.scale(known, season) for known, _ in past]
    some = [scale > 0 for scale in scales]  # a young series may have been constant
    base = [protocol.naive2(known, h, season) for known, _ in past]

    def owa(found: list[Values]) -> list[float]:
        out = []
        for (_, actual), point, naive2, scale, use in zip(past, found, base, scales, some, strict=True):
            both = [
                (protocol.smape(actual[use], f[use]), protocol.mase(actual[use], f[use], scale[use]))
                for f in (point, naive2)
            ]
            out.append(protocol.owa(*both[0], both[1]))
        return out

    tried = {
        (threshold, share): owa([part.combined(threshold, share) for part in parts])
        for threshold, share in product(way.thresholds, way.shares)
    }
    threshold, share = min(tried, key=lambda key: float(np.mean(tried[key])))
    points = [part.combined(threshold, share) for part in parts]

    def msis(blend: float, factor: float) -> list[float]:
        out = []
        for (_, actual), part, point, scale, use in zip(past, parts, points, scales, some, strict=True):
            lower, upper = part.interval(point, blend, factor)
            out.append(float(protocol.msis(actual[use], lower[use], upper[use], scale[use]).mean()))
        return out

    widths = {(blend, factor): msis(blend, factor) for blend, factor in product(BLENDS, FACTORS)}
    best = {b: min((key for key in widths if key[0] == b), key=lambda key: float(np.mean(widths[key]))) for b in BLENDS}
    blend, factor = min(best.values(), key=lambda key: float(np.mean(widths[key])))

    final = Parts.of(y, way, SEEDS)
    point = final.combined(threshold, share)
    return Forecasts(
        point,
        *final.interval(point, blend, factor),
        components={"trees": final.trees, "combination": point},
        chosen={
            "likeness_threshold": threshold,
            "share_of_trees": share,
            "share_of_quantile_trees": blend,
            "width_factor": factor,
            "series_with_local_part": int((final.likeness >= threshold).sum()),
            "backtest_owa": {
                "combination": tried[threshold, share],
                "trees": owa([part.trees for part in parts]),
                "Theta": owa([protocol.theta(known, h, season) for known, _ in past]),
                "seasonal naive": owa([protocol.seasonal_naive(known, h, season) for known, _ in past]),
            },
            "backtest_msis": {
                "combination": widths[blend, factor],
                "quantile trees": widths[best[1.0]],
                "own spread": widths[best[0.0]],
            },
        },
    )


def _log(values: Values) -> Values:
    """A forecast that is not above 0 has none; the series are."""
    return np.log(np.maximum(values, 1e-3))
