"""From a few quantiles a whole distribution, of one day and of the sum of several; and how good they were.

Quantiles q are (..., L), not falling along the last axis, at `levels` (L,). As a function of the log-odds of its level
a quantile is a polygon: straight between two of them, and on beyond the outermost, which makes both tails
exponential. What would lie below 0 lies at 0. Counts are forecast as jittered (see `conformal.jitter`): `counts`
(...) says which are, and moments and sums are then those of the counts themselves.
"""

from collections.abc import Sequence
from functools import cache
from typing import Final

import numpy as np
from scipy.special import expit, gammaincinv, logit
from scipy.stats import nbinom

from common.features.view import Array
from systems.forecasting.model.local import Bools, Ints

Levels = Sequence[float]
NODES: Final = 5  # of the quadrature, between two levels and in each tail
CHANCE: Final = 1e-6  # of the mean, above it in variance: nearer to a Poisson distribution numbers get inexact


def cdf(q: Array, levels: Levels, v: Array) -> Array:
    """P(demand <= v); v broadcasts against q without its last axis."""
    v, odds, steps = np.asarray(v), logit(levels), np.diff(q, axis=-1)
    over = v[..., None] - q
    with np.errstate(all="ignore"):  # where quantiles are equal, or nearly
        share = np.where(steps > 0, over[..., :-1] / steps, np.where(over[..., :-1] >= 0, np.inf, -np.inf))
        inside = odds[0] + (np.diff(odds) * np.clip(share, 0, 1)).sum(axis=-1)
        below, above = np.minimum(share[..., 0], 0), np.maximum(share[..., -1] - 1, 0)
        out = expit(inside + below * (odds[1] - odds[0]) + above * (odds[-1] - odds[-2]))
    return np.asarray(np.where(v < 0, 0.0, out))


def ppf(q: Array, levels: Levels, p: Array | float) -> Array:
    """The quantile at level p, 0 < p < 1, which broadcasts against q without its last axis."""
    return np.asarray(np.maximum((q * _weights(levels, np.asarray(p))).sum(axis=-1), 0.0))


def moments(q: Array, levels: Levels, counts: Bools | bool = False) -> tuple[Array, Array]:
    """Mean and variance, (...) each."""
    mix, weights = _nodes(tuple(levels))
    values = np.maximum(q @ mix, 0.0)
    mean = values @ weights
    variance = (values - mean[..., None]) ** 2 @ weights
    less = np.asarray(counts, float)  # the mean and variance of what was added
    return np.maximum(mean - less / 2, 0.0), np.maximum(variance - less / 12, 0.0)


def mean(q: Array, levels: Levels, counts: Bools | bool = False) -> Array:
    return moments(q, levels, counts)[0]


def total_moments(
    q: Array, days: Ints, levels: Levels, counts: Bools | bool = False, correlation: float = 0.0
) -> tuple[Array, Array]:
    """Mean and variance (n,) of the sum of the first `days` (n,) of the days q (n, H, L).

    correlation: of the errors of any two of these days, as a backtest finds it. At 0 days are independent.
    """
    mean, variance = moments(q, levels, np.broadcast_to(np.asarray(counts)[..., None], q.shape[:2]))
    inside = np.arange(q.shape[1]) < days[:, None]
    together = (np.sqrt(variance) * inside).sum(axis=1) ** 2
    return (mean * inside).sum(axis=1), (1 - correlation) * (variance * inside).sum(axis=1) + correlation * together


def total(
    q: Array, days: Ints, levels: Levels, p: Array | float, counts: Bools | bool = False, correlation: float = 0.0
) -> Array:
    """The quantile at level p (n,) of the sum of the first `days` (n,) of the days q (n, H, L); whole for counts.

    By the sum's mean and variance: negative binomial where counts vary more than they would by chance (a gamma
    distribution is off by a unit there, which costs when few are sold), else gamma, for counts with half a unit of
    continuity.
    """
    m, v = total_moments(q, days, levels, counts, correlation)
    p, counts = np.broadcast_to(p, m.shape), np.broadcast_to(counts, m.shape)
    out = np.zeros(m.shape)
    wide = counts & (v > m * (1 + CHANCE)) & (m > 0)
    out[wide] = nbinom.ppf(p[wide], m[wide] ** 2 / (v[wide] - m[wide]), m[wide] / v[wide])
    rest = ~wide & (m > 0)
    mm, vv = m[rest], np.maximum(v[rest], 1e-9 * m[rest] ** 2)
    smooth = vv / mm * gammaincinv(mm**2 / vv, p[rest])
    out[rest] = np.where(counts[rest], np.maximum(np.ceil(smooth - 0.5), 0.0), smooth)
    return out


def pinball(z: Array, q: Array, levels: Levels) -> Array:
    """Loss of each quantile (..., L) for outcomes z (...): least, on average, at the true ones (Koenker 2005)."""
    over = z[..., None] - q
    return np.maximum(np.asarray(levels) * over, (np.asarray(levels) - 1) * over)


@cache
def _nodes(levels: tuple[float, ...]) -> tuple[Array, Array]:
    """What makes of q its values at the nodes of a quadrature, (L, nodes), and the nodes' weights: Gauss-Legendre
    between the levels, Gauss-Laguerre in the tails."""
    tau, half = np.asarray(levels), np.diff(levels)[:, None] / 2
    x, w = np.polynomial.legendre.leggauss(NODES)
    s, u = np.polynomial.laguerre.laggauss(NODES)
    low, high = tau[0], 1 - tau[-1]
    nodes = np.concatenate((low * np.exp(-s), (tau[:-1, None] + half * (x + 1)).ravel(), 1 - high * np.exp(-s)))
    return _weights(levels, nodes).T, np.concatenate((low * u, (half * w).ravel(), high * u))


def _weights(levels: Levels, p: Array) -> Array:
    """Of the quantiles at `levels` in the one at p: (..., L)."""
    odds, x = logit(levels), logit(p)
    first = np.clip(np.searchsorted(odds, x) - 1, 0, len(odds) - 2)
    share = (x - odds[first]) / (odds[first + 1] - odds[first])
    place = np.arange(len(odds)) - first[..., None]
    return np.asarray(np.where(place == 0, 1 - share[..., None], np.where(place == 1, share[..., None], 0.0)))
