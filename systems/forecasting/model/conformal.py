"""Quantiles that keep their word: each is moved until, in a backtest, as many outcomes lay below it as it says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from common.errors import BadSetting
from common.features.view import Array
from systems.forecasting.model.local import Bools, Ints

GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
FACTORS: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


@dataclass(frozen=True)
class Shifts:
    """Per bucket (of horizon and kind of series, say) and level, how far a quantile moves, in units of `scale`."""

    buckets: Ints  # (b,), sorted
    shifts: Array  # (b, L)
    rest: Array  # (L,), of all rows: for buckets with too few

    @classmethod
    def fit(cls, z: Array, q: Array, scale: Array, bucket: Ints, levels: Sequence[float]) -> Self:
        """From outcomes z (n,), their quantile forecasts q (n, L) and scales (n,): split conformal prediction, as in
        Romano, Patterson & Candes 2019, with a shift for each level.

        Of n scores, level tau takes the one of rank ceil((n + 1) tau), below the median floor((n + 1) tau): so an
        exchangeable outcome lies under an upper bound with P in [tau, tau + 1/(n + 1)], under a lower one with P in
        [tau - 1/(n + 1), tau]. A bucket in which a rank is not one of 1..n takes the shift of all rows. Rows whose
        outcome is NaN are left out.
        """
        known = ~np.isnan(z)
        if not known.any():
            raise BadSetting(f"z: must hold a known outcome, got {len(z)} rows")
        scores, bucket = ((z[:, None] - q) / scale[:, None])[known], bucket[known]
        tau = np.asarray(levels)
        least = 1 / np.minimum(tau, 1 - tau).min() - 1
        names, counts = np.unique(bucket, return_counts=True)
        names = names[counts >= least - 1e-9]
        shifts = [_quantiles(scores[bucket == name], tau) for name in names]
        return cls(names, np.array(shifts).reshape(len(names), len(tau)), _quantiles(scores, tau))

    def apply(self, q: Array, scale: Array, bucket: Ints) -> Array:
        """Moved quantiles (n, L), sorted: they never cross."""
        if not len(self.buckets):
            moved = np.broadcast_to(self.rest, q.shape)
        else:
            place = np.minimum(np.searchsorted(self.buckets, bucket), len(self.buckets) - 1)
            moved = np.where((self.buckets[place] == bucket)[:, None], self.shifts[place], self.rest)
        return np.sort(q + moved * scale[:, None], axis=1)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"buckets": self.buckets.tolist(), "shifts": self.shifts.tolist(), "rest": self.rest.tolist()}

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Self:
        rest, buckets = np.array(said["rest"], float), np.array(said["buckets"], np.int64)
        return cls(buckets, np.array(said["shifts"], float).reshape(len(buckets), len(rest)), rest)


def jitter(y: Array, series: Ints, day: Ints) -> Array:
    """y + u with u uniform in [0, 1), the same for the same series and day: counts with a continuous distribution,
    whose quantiles are well defined (Machado & Santos Silva 2005, JASA 100:1226). The three broadcast.

    u is SplitMix64 of the two numbers (Steele, Lea & Flood 2014); below 2**52 no count reaches the next one.
    """
    mixed = _mixed(_mixed(np.asarray(series, np.int64)) + np.asarray(day, np.int64).view(np.uint64))
    return np.minimum(y + (mixed >> np.uint64(11)) * 2.0**-53, np.nextafter(y + 1, y))


def whole(q: Array) -> Array:
    """Quantiles of counts, from those of jittered counts: ceil(q - 1), never below 0."""
    return np.maximum(np.ceil(q - 1), 0.0)


def is_count(y: Array) -> Bools:
    """Whether all that is known of a row is whole and not below 0, (..., T) -> (...)."""
    return np.asarray((np.isnan(y) | ((y >= 0) & (y == np.floor(y)))).all(axis=-1))


def _quantiles(scores: Array, tau: Array) -> Array:
    n = len(scores)
    rank = np.where(tau < 0.5, np.floor((n + 1) * tau + 1e-9), np.ceil((n + 1) * tau - 1e-9))
    place = np.clip(rank.astype(np.int64) - 1, 0, n - 1)
    return np.asarray(np.take_along_axis(np.sort(scores, axis=0), place[None], axis=0)[0])


def _mixed(x: NDArray[Any]) -> NDArray[np.uint64]:
    x = x.view(np.uint64) + GOLDEN
    x = (x ^ (x >> np.uint64(30))) * FACTORS[0]
    x = (x ^ (x >> np.uint64(27))) * FACTORS[1]
    return np.asarray(x ^ (x >> np.uint64(31)))
