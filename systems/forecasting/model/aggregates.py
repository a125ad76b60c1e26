"""Sums of series are smoother than their parts: forecast on their own, then made to add up with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_array
from statsmodels.tsa.exponential_smoothing.ets import ETSModel

from common.errors import BadSetting
from common.features.view import Array
from systems.forecasting.model.local import LEAST_SEASONS, WILD, Ints, filled, theta

LEAST: Final = 20  # known days, before a series is worth its own parameters


def ets(y: Array, h: int, m: int) -> Array:
    """Exponential smoothing with damped trend and season (Hyndman et al. 2008), (n, T) -> (n, h), for few series:
    each is fitted by maximum likelihood, which takes about 0.1 s.

    The season multiplies where all is above 0 (busy days of a growing chain grow with it), else it adds. A series
    that is too short, does not vary or runs away is forecast by `theta`. Never below 0 where the series never was.
    """
    out = theta(y, h, m)
    for i, row in enumerate(filled(y, m)):
        known = row[~np.isnan(row)]
        if len(known) < max(LEAST, LEAST_SEASONS * m) or known.min() == known.max():
            continue
        unit = np.abs(known).mean()
        with np.errstate(all="ignore"):  # of a likelihood that is tried where it has no value
            fitted = ETSModel(
                known / unit, trend="add", damped_trend=True, seasonal_periods=m if m > 1 else None,
                seasonal=None if m == 1 else "mul" if known.min() > 0 else "add", initialization_method="heuristic",
            ).fit(disp=False, warn_convergence=False)  # fmt: skip
            ahead = unit * np.asarray(fitted.forecast(h))
        if (np.abs(ahead) <= WILD * np.abs(known).max()).all():
            out[i] = np.maximum(ahead, 0.0) if known.min() >= 0 else ahead
    return out


@dataclass(frozen=True)
class Hierarchy:
    """Which series add up to what. Arrays of all nodes hold the sums first, as `names` says, then the n series."""

    names: tuple[tuple[str, str], ...]  # of the sums: (level, label)
    members: tuple[Ints, ...]  # per level, the place in `names` of each series' sum, (n,)

    @classmethod
    def of(cls, labels: Mapping[str, Sequence[str]]) -> Self:
        """labels: per level, such as store and category, each series' own; the total comes of itself."""
        sizes = {level: len(values) for level, values in labels.items()}
        if not sizes or len(set(sizes.values())) > 1:
            raise BadSetting(f"labels: each level must have one per series, got {sizes}")
        names, members = [("total", "")], [np.zeros(min(sizes.values()), np.int64)]
        for level, values in labels.items():
            found, place = np.unique(np.asarray(values, object).astype(str), return_inverse=True)
            members.append(len(names) + place.astype(np.int64))
            names += [(level, label) for label in found.tolist()]
        return cls(tuple(names), tuple(members))

    @property
    def n(self) -> int:
        return len(self.members[0])

    def matrix(self) -> Any:
        """Of the sums alone, sparse (sums, n)."""
        place, levels = np.concatenate(self.members), len(self.members)
        cells = (place, np.tile(np.arange(self.n), levels))
        return csr_array((np.ones(len(place)), cells), shape=(len(self.names), self.n))

    def add(self, bottom: Array) -> Array:
        """The series' values (n, h) under all their sums, (n_all, h)."""
        return np.concatenate((self.matrix() @ bottom, bottom))


def reconcile(base: Array, hierarchy: Hierarchy, weights: Array) -> Array:
    """Forecasts of all nodes (n_all, h), each made on its own, as near ones that add up: MinT with a diagonal matrix
    (Wickramasuriya, Athanasopoulos & Hyndman 2019, JASA 114:804).

    weights: (n_all,) variance of each node's errors; who errs more gives way more. S (S'W^-1 S)^-1 S'W^-1 y equals
    y - WC'(CWC')^-1 Cy with C = [I, -sums], which is only as large as there are sums. A series that falls below 0
    becomes 0, and the sums are taken after that (Di Fonzo & Girolimetto 2023, Solar Energy 251:13), so they hold.
    """
    sums, matrix = len(hierarchy.names), hierarchy.matrix()
    if base.shape[:1] != (sums + hierarchy.n,) or weights.shape != base.shape[:1]:
        raise BadSetting(
            f"base, weights: must have {sums} sums and {hierarchy.n} series, got {base.shape}, {weights.shape}"
        )
    if not ((weights > 0) & np.isfinite(weights)).all():
        raise BadSetting(f"weights: must be above 0 and finite, got {weights.min()} to {weights.max()}")
    above, below = weights[:sums], weights[sums:, None]
    bottom = base[sums:]
    gap = base[:sums] - matrix @ bottom
    inner = (matrix * below.T) @ matrix.T
    pull = cho_solve(cho_factor(inner.toarray() + np.diag(above)), gap)
    return hierarchy.add(np.maximum(bottom + below * (matrix.T @ pull), 0.0))
