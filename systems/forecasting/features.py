"""What is known of a shelf's day an instant before it is forecast.

The views are lags and windows over what was sold, of this product here, of all products of the store, of this product
in all stores. An `Actual` carries the beginning of its day as its time, so that a window of a day with a delay of k
days holds the day k days before, at whatever hour is asked. The rest comes with the rows: calendar, plan, and what
local methods make of the series (`model.panel`).
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from common.clock import DAY
from common.features.view import Aggregation, Array, FeatureView, Kind, OnDemand
from systems.forecasting.data import Actual

LAGS: Final = range(1, 8)  # days


def _lag(k: int) -> Aggregation:
    return Aggregation(name=f"lag_{k}", kind="mean", column="units", window=DAY, delay=k * DAY)


def _over(kind: Kind, column: str, days: int) -> Aggregation:
    """Over the days before the request's, named after them: "mean_units_28d"."""
    return Aggregation(name=f"{kind}_{column}_{days}d", kind=kind, column=column, window=days * DAY, delay=DAY)


VIEWS = (
    FeatureView(
        name="shelf", source=Actual, entity=("store_id", "product_id"),
        aggregations=(
            *map(_lag, LAGS),
            *(_over("mean", "units", days) for days in (7, 28, 91, 364)),
            _over("std", "units", 28), _over("mean", "promoted", 28), _over("mean", "sold_out", 28),
            _over("mean", "price", 91),
            Aggregation(name="since_last", kind="time_since", window=91 * DAY),
        ),
    ),
    FeatureView(
        name="store", source=Actual, entity=("store_id",),
        aggregations=(_over("mean", "units", 7), _over("mean", "units", 28)),
    ),
    FeatureView(
        name="product", source=Actual, entity=("product_id",),
        aggregations=(_over("mean", "units", 7), _over("mean", "units", 28)),
    ),
)  # fmt: skip

Columns = Mapping[str, Array]


def _ratio(a: Array, b: Array) -> Array:
    """a / b of numbers of units, drawn to 1 where both are small."""
    return np.asarray((a + 1) / (b + 1))


def same_weekday(c: Columns) -> Array:
    """The newest day of the target's weekday, as a multiple of the level."""
    lags = np.stack([c[f"shelf.lag_{k}"] for k in LAGS])  # (7, n)
    back = (-c["horizon"].astype(np.int64)) % 7  # horizon 7 is the weekday of the day before the first one
    return _ratio(lags[back, np.arange(lags.shape[1])], c["level"])


def yesterday(c: Columns) -> Array:
    return _ratio(c["shelf.lag_1"], c["level"])


def momentum(c: Columns) -> Array:
    """The last week against the last four."""
    return _ratio(c["shelf.mean_units_7d"], c["shelf.mean_units_28d"])


def slow_momentum(c: Columns) -> Array:
    return _ratio(c["shelf.mean_units_28d"], c["shelf.mean_units_91d"])


def year_momentum(c: Columns) -> Array:
    return _ratio(c["shelf.mean_units_28d"], c["shelf.mean_units_364d"])


def store_momentum(c: Columns) -> Array:
    return _ratio(c["store.mean_units_7d"], c["store.mean_units_28d"])


def product_momentum(c: Columns) -> Array:
    return _ratio(c["product.mean_units_7d"], c["product.mean_units_28d"])


def share_of_product(c: Columns) -> Array:
    """The level here against that of all stores."""
    return _ratio(c["level"], c["product.mean_units_28d"])


def spread(c: Columns) -> Array:
    return np.asarray(c["shelf.std_units_28d"] / (c["level"] + 1))


def tracking_signal(c: Columns) -> Array:
    """Of forecasting each day of the last week by the mean of the last four: the summed error over the mean absolute
    one, bounded by the seven days (Trigg 1964)."""
    errors = np.stack([c[f"shelf.lag_{k}"] for k in LAGS]) - c["shelf.mean_units_28d"]
    return np.asarray(np.nansum(errors, axis=0) / (np.nansum(np.abs(errors), axis=0) / len(LAGS) + 0.1))


def days_late(c: Columns) -> Array:
    """Days of which nothing has been reported yet, beyond the last one."""
    return np.asarray(np.floor(c["shelf.since_last"] / 86_400) - 1)


def _same(name: str) -> OnDemand:
    """A column as it is."""

    def column(c: Columns) -> Array:
        return c[name]

    return OnDemand(name=name, inputs=(name,), version=1, compute=column)


def _on_demand(compute: Callable[[Columns], Array], *inputs: str) -> OnDemand:
    return OnDemand(name=compute.__name__, inputs=inputs, version=1, compute=compute)


_LAGGED: Final = tuple(f"shelf.lag_{k}" for k in LAGS)

ON_DEMAND = (
    *map(
        _same,
        (
            "horizon", "weekday", "year_sin", "year_cos", "to_holiday", "since_holiday", "next_holiday",
            "last_holiday", "price_ratio", "is_promoted",
            "was_promoted", "promotion_day", "promotion_lift", "level", "age", "zero_share", "noise", "weekday_ratio",
            "year_ratio", "naive_ratio", "theta_ratio", "croston_ratio", "profile_ratio",
        ),
    ),
    _on_demand(same_weekday, *_LAGGED, "horizon", "level"),
    _on_demand(yesterday, "shelf.lag_1", "level"),
    _on_demand(momentum, "shelf.mean_units_7d", "shelf.mean_units_28d"),
    _on_demand(slow_momentum, "shelf.mean_units_28d", "shelf.mean_units_91d"),
    _on_demand(year_momentum, "shelf.mean_units_28d", "shelf.mean_units_364d"),
    _on_demand(store_momentum, "store.mean_units_7d", "store.mean_units_28d"),
    _on_demand(product_momentum, "product.mean_units_7d", "product.mean_units_28d"),
    _on_demand(share_of_product, "level", "product.mean_units_28d"),
    _on_demand(spread, "shelf.std_units_28d", "level"),
    _on_demand(tracking_signal, *_LAGGED, "shelf.mean_units_28d"),
    _on_demand(days_late, "shelf.since_last"),
)  # fmt: skip
