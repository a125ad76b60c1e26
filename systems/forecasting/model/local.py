"""What one series says of itself: classical forecasts of all series at once.

`y` is (n, T): a row per series, a column per day, NaN where nothing is known: not yet sold (leading), sold out
(single days), not yet reported (trailing). Step 1 of a forecast is the day after the last column; forecasts are
(n, h). A series of which nothing is known is forecast as 0.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from common.features.view import Array

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

LEAST_SEASONS: Final = 3  # known, before a series may have a season of its own
SEASONAL: Final = 1.645  # standard deviations of the autocorrelation: 90 % two-sided
LEAST_ALPHA: Final = 0.01
ALPHAS: Final = 12  # tried at once
REFINED: Final = 4  # times, the last one in steps of 0.0006
WILD: Final = 10  # times the largest day: no forecast goes further
ALONE: Final = 8  # series, up to which each is better worked on by itself
FLOOR: Final = 0.05  # of the mean; no series counts as easier to forecast than that


def filled(y: Array, m: int) -> Array:
    """y without gaps: an unknown day is the last one of its phase that is known, else the next one, else the mean.

    Days before the first known one stay NaN; so there is one gap at most, a leading one.
    """
    unknown = np.isnan(y)
    out = y.copy()
    rows = np.flatnonzero((unknown & ~_leading(unknown)).any(axis=1))
    if not rows.size:
        return out
    part = y[rows]
    phases = _phases(part, m)
    known = ~np.isnan(phases)
    place = np.maximum.accumulate(np.where(known, np.arange(phases.shape[1])[:, None], -1), axis=1)
    place = np.where(place >= 0, place, known.argmax(axis=1)[:, None])
    values = np.take_along_axis(phases, place, axis=1).reshape(len(rows), -1)[:, -y.shape[1] :]
    values = np.where(np.isnan(values), _mean(part)[:, None], values)
    out[rows] = np.where(_leading(unknown[rows]), np.nan, values)
    return out


def seasonal_naive(y: Array, h: int, m: int) -> Array:
    """The last known value of the same phase; where its phase is unknown, the last known value."""
    phases = _phases(y, m)
    known = ~np.isnan(phases)
    newest = phases.shape[1] - 1 - known[:, ::-1].argmax(axis=1)
    values = np.take_along_axis(phases, newest[:, None], axis=1)[:, 0]  # (n, m)
    return np.where(np.isnan(values), _last(y)[:, None], values)[:, np.arange(h) % m]


def theta(y: Array, h: int, m: int) -> Array:
    """The Theta method (Assimakopoulos & Nikolopoulos 2000), as exponential smoothing with half of the linear trend
    as drift (Hyndman & Billah 2003, IJF 19(2):287).

    A season that shows in the autocorrelation (90 %) is taken out by classical decomposition: multiplicative where
    all is above 0, else additive. Never below 0 where the series never was.
    """
    x = np.ascontiguousarray(filled(y, m).T)  # (T, n): recursions run over whole rows
    known = ~np.isnan(x)
    count = known.sum(axis=0)
    least = np.where(known, x, np.inf).min(axis=0, initial=np.inf)
    most = WILD * np.where(known, np.abs(x), 0.0).max(axis=0, initial=0.0)
    factor, summand = _season(x, known, m, least > 0)
    for p in range(m):
        mine = slice((p + len(x)) % m, None, m)
        x[mine] = (x[mine] - summand[p]) / factor[p]
    slope = _slope(x, known)
    last, alpha = _smoothed(x)
    steps = np.arange(h)[:, None]
    out = last + 0.5 * slope * (steps + (1 - (1 - alpha) ** count) / alpha)  # (h, n)
    ahead = np.arange(h) % m
    out = factor[ahead] * out + summand[ahead]
    return np.asarray(np.clip(out, np.where(least >= 0, 0.0, -most), most).T)


def croston(y: Array, h: int, alpha: float = 0.1) -> Array:
    """Croston's mean demand per day, size over interval, with the correction of Syntetos & Boylan (2005, IJF 21:303).

    Size and interval are smoothed on days with demand; both begin with the first one's. Unknown days take no time.
    """
    n = len(y)
    if n <= ALONE:
        return np.repeat([_croston(row, alpha) for row in y.tolist()], h).reshape(n, h)
    size, interval, since = np.zeros(n), np.ones(n), np.zeros(n)
    for today in np.ascontiguousarray(y.T):
        since += ~np.isnan(today)
        sold = today > 0
        weight = np.where(size == 0, 1.0, alpha) * sold
        size += weight * (np.where(sold, today, 0.0) - size)
        interval += weight * (since - interval)
        since[sold] = 0
    return np.repeat(((1 - alpha / 2) * size / interval)[:, None], h, axis=1)


def _croston(y: list[float], alpha: float) -> float:
    """The same of one series: numpy takes longer for a day of a few than all of this."""
    size, interval, since = 0.0, 1.0, 0.0
    for today in y:
        since += today == today
        if today > 0:
            weight = alpha if size else 1.0
            size += weight * (today - size)
            interval += weight * (since - interval)
            since = 0.0
    return (1 - alpha / 2) * size / interval


def scale(y: Array, m: int) -> Array:
    """How hard a series is: its mean |y_t - y_{t-m}|, what MASE divides by (Hyndman & Koehler 2006, IJF 22:679).

    At least 5 % of the mean |y|, and 1 where all that is known is 0: so it can always be divided by.
    """
    least = FLOOR * _mean(np.abs(y))
    moved = _mean(np.abs(y[:, m:] - y[:, :-m])) if y.shape[1] > m else np.full(len(y), np.nan)
    out = np.fmax(moved, least)
    return np.where(out > 0, out, 1.0)


def _leading(unknown: Bools) -> Bools:
    return np.asarray(np.logical_and.accumulate(unknown, axis=1))


def _mean(y: Array) -> Array:
    """Of what is known, (n,); NaN where that is nothing."""
    known = (~np.isnan(y)).sum(axis=1)
    return np.where(known > 0, np.nansum(y, axis=1) / np.maximum(known, 1), np.nan)


def _last(y: Array) -> Array:
    known = ~np.isnan(y)
    if not y.size:
        return np.zeros(len(y))
    newest = y.shape[1] - 1 - known[:, ::-1].argmax(axis=1)
    return np.asarray(np.nan_to_num(y[np.arange(len(y)), newest]))


def _phases(y: Array, m: int) -> Array:
    """(n, seasons, m), the first season with NaN in front: step j of a forecast has phase (j - 1) % m."""
    n, days = y.shape
    seasons = max(-(-days // m), 1)
    out = np.full((n, seasons * m), np.nan)
    out[:, seasons * m - days :] = y
    return out.reshape(n, seasons, m)


def _season(x: Array, known: Bools, m: int, multiplicative: Bools) -> tuple[Array, Array]:
    """Factor and summand of each phase, (m, n), by classical decomposition; 1 and 0 for a series without season."""
    factor, summand = np.ones((m, x.shape[1])), np.zeros((m, x.shape[1]))
    days = len(x) - m // 2 * 2  # that have half a season on either side
    if m == 1 or len(x) < LEAST_SEASONS * m:
        return factor, summand
    count, value = np.maximum(known.sum(axis=0), 1), np.where(known, x, 0.0)
    weights = np.ones(m + 1 - m % 2)
    if m % 2 == 0:
        weights[[0, -1]] = 0.5
    trend = np.zeros((days, x.shape[1]))
    for k, weight in enumerate(weights.tolist()):
        trend += weight / m * value[k : k + days]
    inside, moved = known[:days], value[m // 2 : m // 2 + days]
    moved = np.where(multiplicative & inside, moved / np.where(trend > 0, trend, 1.0), moved - trend)
    moved = np.where(inside, moved, 0.0)
    index = np.zeros_like(factor)
    for p in range(m):
        mine = slice((p + len(x) - m // 2) % m, None, m)
        index[p] = moved[mine].sum(axis=0) / np.maximum(inside[mine].sum(axis=0), 1)
    mean = index.mean(axis=0)

    centred = np.where(known, value - value.sum(axis=0) / count, 0.0)
    products = np.array([np.einsum("ti,ti->i", centred[k:], centred[: len(x) - k]) for k in range(m + 1)])
    rho = products[1:] / np.where(products[0] > 0, products[0], 1.0)
    limit = SEASONAL * np.sqrt((1 + 2 * (rho[:-1] ** 2).sum(axis=0)) / count)
    seasonal = (count >= LEAST_SEASONS * m) & (np.abs(rho[-1]) > limit)
    factor = np.where(seasonal & multiplicative, index / np.where(multiplicative & (mean > 0), mean, 1.0), factor)
    return factor, np.where(seasonal & ~multiplicative, index - mean, summand)


def _slope(x: Array, known: Bools) -> Array:
    """Of the least-squares line through each column, (n,)."""
    count = np.maximum(known.sum(axis=0), 1)
    t = np.where(known, np.arange(len(x))[:, None] - (len(x) - (count + 1) / 2), 0.0)  # 0 on average: the gap leads
    return np.asarray(np.einsum("ti,ti->i", t, np.where(known, x, 0.0)) / np.maximum((t**2).sum(axis=0), 1.0))


def _smoothed(x: Array) -> tuple[Array, Array]:
    """Last level and alpha, (n,) each, of exponential smoothing that begins with the first value.

    alpha has the least squared error one day ahead: of a grid, then of a finer one about its best, and again.
    """
    moves = np.nan_to_num(np.diff(x, axis=0))
    low, high = np.full(x.shape[1], LEAST_ALPHA), np.ones(x.shape[1])
    for _ in range(REFINED):
        alpha = np.linspace(low, high, ALPHAS)  # (ALPHAS, n)
        rest = 1 - alpha
        error, squares, total = np.zeros((3, *alpha.shape))
        # y_t - l_{t-1} = y_t - y_{t-1} + (1 - alpha) (y_{t-1} - l_{t-2})
        for move in moves if x.shape[1] > ALONE else ():
            error *= rest
            error += move
            np.multiply(error, error, out=squares)
            total += squares
        for i in range(x.shape[1] if len(moves) and x.shape[1] <= ALONE else 0):
            for k in range(ALPHAS):  # the same recursion; numpy takes longer for a day of a few than it does for all
                errors = lfilter([1.0], [1.0, -rest[k, i]], moves[:, i])
                error[k, i], total[k, i] = errors[-1], np.cumsum(errors * errors)[-1]  # added in the same order
        best = total.argmin(axis=0)
        own = np.arange(x.shape[1])
        chosen, width = alpha[best, own], (high - low) / (ALPHAS - 1)
        low, high = np.maximum(chosen - width, LEAST_ALPHA), np.minimum(chosen + width, 1.0)
    last = x[-1] if len(x) else np.zeros(x.shape[1])
    return np.nan_to_num(last - (1 - chosen) * error[best, own]), chosen
