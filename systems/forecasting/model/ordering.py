"""How much to order: as many units as it pays to have, and not more often than an order is worth."""

from typing import Final

import numpy as np

from common.features.view import Array
from systems.forecasting.model.distribution import Levels, total, total_moments
from systems.forecasting.model.local import Bools, Ints

RAREST: Final = 1e-6  # probability


def critical_ratio(short_cost: Array | float, over_cost: Array | float) -> Array:
    """The P(no shortage) that pays best: a unit more is worth it until over_cost * P equals short_cost * (1 - P)
    (newsvendor: Arrow, Harris & Marschak 1951). Both are above 0; no forecast knows what is rarer than RAREST."""
    return np.clip(short_cost / (short_cost + np.asarray(over_cost)), RAREST, 1 - RAREST)


def order_up_to(
    q: Array, days: Ints, levels: Levels, short_cost: Array, over_cost: Array, counts: Bools | bool = False,
    correlation: float = 0.0,
) -> Array:  # fmt: skip
    """The quantile at the critical ratio of the demand over the protection interval, (n,): over the first `days` of
    q (n, H, L), from today until what is ordered tomorrow can be here."""
    return total(q, days, levels, critical_ratio(short_cost, over_cost), counts, correlation)


def reorder(
    q: Array, days: Ints, levels: Levels, short_cost: Array, over_cost: Array, order_cost: Array,
    counts: Bools | bool = False, correlation: float = 0.0,
) -> tuple[Array, Array]:  # fmt: skip
    """(s, S), (n,) each: order up to S once the position is s or less (Scarf 1960).

    S - s is what one order should bring (Harris 1913): sqrt(2 K d / h) with d the mean demand of a day and
    h = over_cost / days for a unit kept for a day, as a unit left over was kept for the interval. Such a lot lasts for
    some more intervals, in which a unit of s is kept but not needed: s is the quantile at the critical ratio with
    so many over_costs (Hadley & Whitin 1963). Where an order costs nothing, s and S are `order_up_to`.
    """
    due = total_moments(q, days, levels, counts)[0]
    lot = np.sqrt(2 * order_cost * due / over_cost)
    lasts = lot / np.where(due > 0, due, 1.0)  # intervals
    s = order_up_to(q, days, levels, short_cost, over_cost * (1 + lasts), counts, correlation)
    return s, s + np.where(counts, np.round(lot), lot)


def order(position: Array, low: Array, up_to: Array, counts: Bools | bool = False) -> Array:
    """Units to order (n,) when `position` are on the shelf or on order, by s = low and S = up_to; whole for counts."""
    quantity = np.where(position <= low, np.maximum(up_to - position, 0.0), 0.0)
    return np.asarray(np.where(counts, np.ceil(quantity), quantity))
