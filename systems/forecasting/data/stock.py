"""What stock can be expected to miss and to leave over, and the loss of the best forecasts, for negative binomials.

Demand is given by mean and variance; at a variance not above its mean it is Poisson's. All arrays broadcast.
"""

from typing import Final

import numpy as np
from scipy.special import betainc, gammainc

from systems.forecasting.data.calendar import Array

TOGETHER: Final = 500  # distributions in a table


def newsvendor_loss(mean: Array, variance: Array, level: Array) -> tuple[Array, Array]:
    """E[(D - level)+] and E[(level - D)+], exactly; `level` >= 0 need not be whole."""
    mean, variance, level = (np.asarray(a, np.float64) for a in (mean, variance, level))
    whole = np.floor(level)
    # E[D; D > k] = mean * P(D' >= k), where D' has one more in its shape
    wanted = mean * _above(mean, variance, whole - 1, more=1)
    short = np.maximum(wanted - level * _above(mean, variance, whole), 0)
    return short, np.maximum(level - mean + short, 0)


def newsvendor_level(mean: Array, variance: Array, ratio: Array) -> Array:
    """The smallest whole k with P(D <= k) >= ratio, which is below 1: the best stock where that ratio is
    short_cost / (short_cost + over_cost)."""
    mean, variance, ratio = np.broadcast_arrays(*(np.asarray(a, np.float64) for a in (mean, variance, ratio)))
    low = np.full(mean.shape, -1.0)
    # Cantelli: P(D >= mean + z sd) <= 1 / (1 + z^2)
    high = np.ceil(mean + np.sqrt(np.maximum(variance, mean) * ratio / (1 - ratio)))
    while np.any(high - low > 1):  # P(D <= low) < ratio <= P(D <= high)
        middle = np.where(high - low > 1, np.floor((low + high) / 2), high)
        enough = 1 - _above(mean, variance, middle) >= ratio
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high


def least_pinball(mean: Array, dispersion: Array, levels: tuple[float, ...]) -> Array:
    """The expected pinball loss of the true quantiles at these levels, averaged over them, in units; (n,).

    Variance is mean + dispersion * mean^2, with a dispersion above 0. For means up to some thousands.
    """
    mean, dispersion = np.asarray(mean, np.float64), np.asarray(dispersion, np.float64)
    z = np.sqrt(max(levels) / (1 - max(levels)))  # as above
    size = np.ceil(mean + z * np.sqrt(mean + dispersion * mean**2)).astype(np.int64) + 2
    loss, order = np.empty(len(mean)), np.argsort(size)
    for start in range(0, len(order), TOGETHER):  # of about the same size
        part = order[start : start + TOGETHER]
        loss[part] = _least(mean[part], dispersion[part], int(size[part[-1]]), levels)
    return loss


def _least(mean: Array, dispersion: Array, size: int, levels: tuple[float, ...]) -> Array:
    p, k = dispersion * mean / (1 + dispersion * mean), np.arange(1, size)
    table = np.empty((len(mean), size))
    table[:, 0] = np.exp(-np.log1p(dispersion * mean) / dispersion)
    table[:, 1:] = (k - 1 + 1 / dispersion[:, None]) / k * p[:, None]  # P(k) / P(k - 1)
    below = np.cumsum(np.cumprod(table, axis=1), axis=1)  # P(D <= k)
    left = np.cumsum(below, axis=1)  # E[(k + 1 - D)+]
    loss = np.zeros(len(mean))
    for level in levels:
        best = np.minimum((below < level).sum(axis=1), size - 1)
        over = np.where(best > 0, left[np.arange(len(mean)), best - 1], 0.0)
        loss += level * (mean - best) + over  # = level * short + (1 - level) * over
    return loss / len(levels)


def _above(mean: Array, variance: Array, k: Array, more: int = 0) -> Array:
    """P(D > k) for whole k >= -1, where the shape of D is greater by `more`."""
    extra, at = np.maximum(variance - mean, 0), np.maximum(k + 1, 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shape = mean * mean / extra
        spread = betainc(at, shape + more, extra / np.maximum(variance, mean))
    is_poisson = ~(np.isfinite(shape) & (shape < 1e9))
    chance = np.where(is_poisson, np.where(mean > 0, gammainc(np.maximum(at, 1e-9), mean), 0.0), spread)
    return np.where(at == 0, 1.0, chance)
