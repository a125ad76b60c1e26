"""Methods that need no learning across series: autoregression, and what a look-alike did next.

Series are (n, T), NaN before a series begins, all values above 0; forecasts are (n, h).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from systems.forecasting.benchmark.dataset import Values

HISTORY: Final = 700  # newest steps that an autoregression is fitted on
BEYOND: Final = 0.1  # share of the range of the logarithms by which a recursion may leave it


def autoregression(y: Values, horizon: int, lags: Sequence[int], ridge: float) -> Values:
    """Of each series' logarithm on its own lags, by ridge regression, and step by step into the future."""
    z = np.log(y[:, -HISTORY:])
    back = np.asarray(lags)
    longest, steps = int(back.max()), z.shape[1]
    mean = np.nanmean(z, 1, keepdims=True)
    x = np.stack([z[:, longest - lag : steps - lag] for lag in lags], 2) - mean[:, :, None]  # (n, T - longest, lags)
    target = z[:, longest:] - mean
    known = ~np.isnan(x).any(2) & ~np.isnan(target)
    x[~known], target[~known] = 0, 0
    penalty = ridge * ((target**2).sum(1) / np.maximum(known.sum(1), 1) + 1e-12)
    gram = np.matmul(x.transpose(0, 2, 1), x) + penalty[:, None, None] * np.eye(len(lags))
    weights = np.linalg.solve(gram, np.matmul(x.transpose(0, 2, 1), target[:, :, None]))[:, :, 0]
    path = np.concatenate([np.nan_to_num(z - mean), np.zeros((len(z), horizon))], 1)
    for step in range(steps, steps + horizon):
        path[:, step] = (path[:, step - back] * weights).sum(1)
    low, high = np.nanmin(z, 1, keepdims=True), np.nanmax(z, 1, keepdims=True)
    room = BEYOND * (high - low)
    return np.asarray(np.exp(np.clip(path[:, steps:] + mean, low - room, high + room)))


def look_alike(y: Values, horizon: int, window: int) -> tuple[Values, Values]:
    """What came after the stretch, of any series, whose log changes correlate best with a series' newest `window`.

    Returns forecasts and these correlations, (n,), -1 where a series is shorter than the window. Ingel et al. 2020
    (International Journal of Forecasting 36:121) forecast M4's daily series so.
    """
    z = np.log(y)
    change = np.diff(z, axis=1)
    newest = change[:, -window:] if change.shape[1] >= window else np.full((len(y), window), np.nan)
    asked = np.flatnonzero(~np.isnan(newest).any(1))
    mean = newest[asked].mean(1, keepdims=True)
    query = newest[asked] - mean
    size = np.linalg.norm(query, axis=1) + 1e-12
    best, future = np.full(len(y), -1.0), np.zeros((len(y), horizon))
    steps = np.arange(1, horizon + 1)
    for row in change:
        known = row[~np.isnan(row)]
        if len(known) < window + horizon or not len(asked):
            continue
        stretches = sliding_window_view(known, window)[:-horizon]  # what came after each is known
        means = stretches.mean(1)
        centred = stretches - means[:, None]
        sizes = np.linalg.norm(centred, axis=1) + 1e-12
        correlation = centred @ query.T / sizes[:, None] / size  # (n_stretches, n_asked)
        at = correlation.argmax(0)
        found = correlation[at, np.arange(len(asked))]
        for i in np.flatnonzero(found > best[asked]):
            after = np.cumsum(known[at[i] + window : at[i] + window + horizon]) - steps * means[at[i]]
            future[asked[i]] = found[i] * size[i] / sizes[at[i]] * after + steps * mean[i, 0]
            best[asked[i]] = found[i]
    return np.exp(z[:, -1:] + future), best
