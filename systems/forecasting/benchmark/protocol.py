"""How the M4 competition judges forecasts, and the methods that its scores are relative to.

Arrays of series are (n, T), NaN before a series begins, the newest value last; forecasts and what came are (n, h).
Makridakis, Spiliotis and Assimakopoulos 2020, International Journal of Forecasting 36:54; code of the organisers.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from scipy.stats import norm

from systems.forecasting.benchmark.dataset import Frequency, Values

ALPHA: Final = 0.05  # of the intervals
CRITICAL: Final = 1.645  # of the test for seasonality, 90 %
RESAMPLED: Final = 10_000
ALPHAS: Final = np.linspace(0.01, 1, 100)  # of exponential smoothing


def smape(actual: Values, forecast: Values) -> Values:
    """%, of each series, (n,)"""
    return np.asarray((200 * np.abs(actual - forecast) / (np.abs(actual) + np.abs(forecast))).mean(1))


def scale(y: Values, season: int) -> Values:
    """The mean absolute error of the seasonal naive forecast of one step in the series itself, (n,)."""
    return np.asarray(np.nanmean(np.abs(y[:, season:] - y[:, :-season]), 1))


def mase(actual: Values, forecast: Values, scales: Values) -> Values:
    """Of each series, (n,)"""
    return np.asarray(np.abs(actual - forecast).mean(1) / scales)


def msis(actual: Values, lower: Values, upper: Values, scales: Values) -> Values:
    """Of each series, (n,): widths, and 2 / alpha for each unit outside (Gneiting and Raftery 2007)."""
    outside = np.maximum(lower - actual, 0) + np.maximum(actual - upper, 0)
    return np.asarray((upper - lower + 2 / ALPHA * outside).mean(1) / scales)


def acd(actual: Values, lower: Values, upper: Values) -> float:
    """Absolute difference between coverage and nominal coverage."""
    return float(abs(((actual >= lower) & (actual <= upper)).mean() - (1 - ALPHA)))


def owa(smapes: Values, mases: Values, naive2: tuple[Values, Values]) -> float:
    """Relative to Naive2, whose sMAPE and MASE of each series these are."""
    return float((smapes.mean() / naive2[0].mean() + mases.mean() / naive2[1].mean()) / 2)


def interval(smapes: Values, mases: Values, naive2: tuple[Values, Values], seed: int = 0) -> dict[str, float]:
    """OWA and where 95 % of it lie by bootstrap over series, each drawn together with its Naive2."""
    drawn = np.random.default_rng(seed).integers(0, len(smapes), (RESAMPLED, len(smapes)))
    over, under = ([values[drawn].mean(1) for values in some] for some in ((smapes, mases), naive2))
    low, high = np.quantile((over[0] / under[0] + over[1] / under[1]) / 2, [0.025, 0.975])
    return {"owa": owa(smapes, mases, naive2), "low": float(low), "high": float(high)}


def naive(y: Values, horizon: int) -> Values:
    return np.repeat(y[:, -1:], horizon, 1)


def seasonal_naive(y: Values, horizon: int, season: int) -> Values:
    return np.asarray(y[:, y.shape[1] - season + np.arange(horizon) % season])


def is_seasonal(y: Values, season: int) -> bool:
    """Whether the autocorrelation of one series, (T,), at its season is beyond a 90 % limit."""
    if season == 1 or len(y) < 3 * season:
        return False
    x = y - y.mean()
    r = np.array([x[lag:] @ x[:-lag] for lag in range(1, season + 1)]) / (x @ x)
    limit = CRITICAL / np.sqrt(len(y)) * np.sqrt(1 + 2 * (r[:-1] ** 2).sum())
    return bool(abs(r[-1]) > limit)


def seasonal_indices(y: Values, season: int) -> Values:
    """By classical multiplicative decomposition of one series, (T,); the first is that of its first value."""
    weights = np.r_[0.5, np.ones(season - 1), 0.5] if season % 2 == 0 else np.ones(season)
    trend = np.convolve(y, weights / season, "valid")
    ratio = np.full(len(y), np.nan)
    ratio[season // 2 : season // 2 + len(trend)] = y[season // 2 : season // 2 + len(trend)] / trend
    found = np.array([np.nanmean(ratio[i::season]) for i in range(season)])
    return np.asarray(found / found.mean())


def indices(y: Values, horizon: int, season: int) -> Values:
    """Of each series at each of its steps and of the horizon, (n, T + h): 1 where it is not seasonal."""
    out = np.ones((len(y), y.shape[1] + horizon))
    for row, to in zip(y, out, strict=True):
        begins = int(np.isnan(row).sum())
        known = row[begins:]
        if is_seasonal(known, season):
            to[begins:] = np.resize(seasonal_indices(known, season), len(known) + horizon)
    return out


def naive2(y: Values, horizon: int, season: int) -> Values:
    """Naive of the series without its season."""
    found = indices(y, horizon, season)
    t = y.shape[1]
    return np.asarray(y[:, -1:] / found[:, t - 1 : t] * found[:, t:])


def theta(y: Values, horizon: int, season: int) -> Values:
    """Assimakopoulos and Nikolopoulos 2000, of the series without its season."""
    found = indices(y, horizon, season)
    t = y.shape[1]
    x = y / found[:, :t]
    time = np.arange(t + horizon, dtype=float)
    known = ~np.isnan(x)
    count = known.sum(1, keepdims=True)
    centre = np.where(known, time[:t], 0).sum(1, keepdims=True) / count
    mean = np.nanmean(x, 1, keepdims=True)
    deviation = np.where(known, time[:t] - centre, 0)
    slope = (deviation * np.where(known, x - mean, 0)).sum(1, keepdims=True) / (deviation**2).sum(1, keepdims=True)
    line = mean + slope * (time - centre)  # (n, T + h)
    level = smoothed(2 * x - line[:, :t])
    return np.asarray(np.maximum((level[:, None] + line[:, t:]) / 2, 0) * found[:, t:])


def smoothed(x: Values) -> Values:
    """The last level of simple exponential smoothing, (n,), by the constant with the least squared errors."""
    start = np.isnan(x).sum(1)
    level = np.full((len(x), len(ALPHAS)), np.nan)
    loss = np.zeros_like(level)
    for t, now in enumerate(x.T[:, :, None]):
        error = np.where((t > start)[:, None], now - level, 0)
        loss += error**2
        level = np.where((t > start)[:, None], level + ALPHAS * error, now)
    return np.asarray(np.take_along_axis(level, loss.argmin(1)[:, None], 1)[:, 0])


def naive_interval(y: Values, horizon: int) -> tuple[Values, Values]:
    """Of a random walk with normal steps."""
    spread = np.sqrt(np.nanmean(np.diff(y, axis=1) ** 2, 1, keepdims=True) * np.arange(1, horizon + 1))
    half = norm.ppf(1 - ALPHA / 2) * spread
    middle = naive(y, horizon)
    return middle - half, middle + half


def baselines(y: Values, frequency: Frequency) -> Mapping[str, Values]:
    """The competition's own, by their published names."""
    h, m = frequency.horizon, frequency.season
    return {
        "Naive": naive(y, h),
        "sNaive": seasonal_naive(y, h, m),
        "Naive2": naive2(y, h, m),
        "Theta": theta(y, h, m),
    }
