"""Forecasts made ahead: of every series, every store, every category and all of them, which add up."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import ndtri

from common.errors import BadBundle
from common.features.view import Array, numbers
from systems.forecasting.data import HORIZON, LEVELS
from systems.forecasting.model import aggregates, distribution, local
from systems.forecasting.model.panel import Panel, Plan

FILE: Final = "forecasts.parquet"
Key = tuple[str, str, str]  # store, product, category; "": all of them
QUANTILES: Final = tuple(f"q{level:g}" for level in LEVELS)
LOOK_BACK: Final = 365  # days that the aggregates' models learn from
MOST: Final = 2.0  # by which a forecast may be changed so that all add up, as a factor
HALF: Final = 0.5  # what jittering adds to a count, in the mean
NORMAL: Final = ndtri(np.array(LEVELS))  # quantiles


@dataclass(frozen=True)
class Stored:
    """Of one series or sum of series."""

    mean: Array  # (HORIZON,) units
    quantiles: Array  # (HORIZON, len(LEVELS))
    price: Array  # (HORIZON,) of the plan, EUR; NaN: as it was
    promoted: Array  # (HORIZON,) of the plan


@dataclass(frozen=True)
class Table:
    first_day: int
    keys: dict[Key, int]  # row of each
    mean: Array  # (n, HORIZON)
    quantiles: Array  # (n, HORIZON, len(LEVELS))
    price: Array  # (n, HORIZON)
    promoted: Array  # (n, HORIZON)

    def find(self, key: Key) -> Stored | None:
        row = self.keys.get(key)
        if row is None:
            return None
        return Stored(self.mean[row], self.quantiles[row], self.price[row], self.promoted[row])

    @classmethod
    def of(cls, panel: Panel, plan: Plan, quantiles: Array, is_count: bool) -> Self:
        """From the quantiles of a plan's series, (n, HORIZON, len(LEVELS)); `plan` is of one day."""
        n = len(plan)
        day = int(plan.day[0])
        series = np.array([panel.find(*key) for key in zip(plan.store_id, plan.product_id, strict=True)])
        hierarchy = aggregates.Hierarchy.of({"store": plan.store_id, "category": plan.category})
        days = min(LOOK_BACK, day - panel.first)  # before the first of all reports nothing was sold that is known
        y = local.filled(panel.demand(series, plan.day, days), panel.season)  # sums of what was wanted, too
        sums = hierarchy.matrix() @ np.nan_to_num(y)
        ahead = aggregates.ets(sums, HORIZON, panel.season)
        back = aggregates.ets(sums[:, :-HORIZON], HORIZON, panel.season)  # one backtest tells how wrong they are
        errors = np.mean((sums[:, -HORIZON:] - back) ** 2, axis=1)
        bottom = distribution.mean(quantiles, LEVELS, is_count)
        spread = np.mean(((quantiles[..., -1] - quantiles[..., 0]) / (NORMAL[-1] - NORMAL[0])) ** 2, axis=1)
        base = np.concatenate([ahead, bottom])
        weights = np.maximum(np.concatenate([errors, spread]), 1e-9)
        mean = aggregates.reconcile(base, hierarchy, weights)
        factor = np.clip(mean[-n:] / np.maximum(bottom, 1e-9), 1 / MOST, MOST)[:, :, None]
        added = HALF * is_count  # by the jitter, which does not grow with the demand
        width = np.sqrt(errors)[:, None, None] * NORMAL
        of_sums = np.maximum(mean[:-n, :, None] + width, 0.0)
        keys = [_key(*name) for name in hierarchy.names]
        nothing = np.full((len(keys), HORIZON), np.nan)
        keys = [*keys, *((s, p, "") for s, p in zip(plan.store_id, plan.product_id, strict=True))]
        return cls(
            day, {key: row for row, key in enumerate(keys)}, mean,
            np.concatenate([of_sums, np.maximum((quantiles - added) * factor + added, 0.0)]),
            np.concatenate([nothing, plan.price]), np.concatenate([nothing, plan.promoted]),
        )  # fmt: skip

    def save(self, folder: Path) -> None:
        """One row for each key and day."""
        owner = np.repeat(np.arange(len(self.keys)), HORIZON)
        names = np.array(list(self.keys))
        columns = {name: pa.array(names[owner, i]) for i, name in enumerate(("store_id", "product_id", "category"))}
        columns["day"] = pa.array(np.tile(self.first_day + np.arange(HORIZON), len(self.keys)))
        columns |= {name: pa.array(getattr(self, name).ravel()) for name in ("mean", "price", "promoted")}
        columns |= {name: pa.array(self.quantiles[..., i].ravel()) for i, name in enumerate(QUANTILES)}
        pq.write_table(pa.table(columns), folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        table = pq.read_table(folder / FILE)
        if table.num_rows % HORIZON or not {"day", "mean", *QUANTILES} <= set(table.column_names):
            raise BadBundle(f"{FILE}: must have {HORIZON} rows for each series, with day, mean and quantiles")
        first = table.take(pa.array(range(0, table.num_rows, HORIZON), pa.int64()))
        keys = zip(*(first[name].to_pylist() for name in ("store_id", "product_id", "category")), strict=True)
        mean, price, promoted = (numbers(table[name]).reshape(-1, HORIZON) for name in ("mean", "price", "promoted"))
        quantiles = np.stack([numbers(table[name]).reshape(-1, HORIZON) for name in QUANTILES], axis=2)
        return cls(first["day"][0].as_py(), {k: i for i, k in enumerate(keys)}, mean, quantiles, price, promoted)


def _key(level: str, label: str) -> Key:
    return (label, "", "") if level == "store" else ("", "", label)
