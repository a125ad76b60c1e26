"""Two groups of users, one ranking or model each: how much better is one of them, and is it an accident?"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Difference(NamedTuple):
    """Of the second mean from the first one, with a confidence interval."""

    mean: float
    low: float
    high: float
    p_value: float  # two-sided


def difference(a: Array, b: Array, alpha: float = 0.05) -> Difference:
    """Of means, without assuming equal variances (Welch 1947, Biometrika 34:28); a, b: (n,), (m,), each some dozens.

    One number per unit that was assigned: where a user asks often, take their mean, not their queries.
    """
    error = math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    mean, normal = float(b.mean() - a.mean()), NormalDist()
    reach = normal.inv_cdf(1 - alpha / 2) * error
    p_value = 2 * normal.cdf(-abs(mean) / error) if error else float(mean == 0)
    return Difference(mean, mean - reach, mean + reach, p_value)


def units_needed(effect: float, variance: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Of both groups together, for a two-sided test that finds a true difference with that probability."""
    normal = NormalDist()
    z = normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)
    return math.ceil(4 * variance * (z / effect) ** 2)
