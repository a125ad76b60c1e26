"""Forecasts made ahead, part by part: what is in memory at once is a part, and parts may be worked on anywhere."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import numpy as np
import pyarrow as pa

from common.features.view import Array
from common.settings import Settings
from common.spread import spread
from systems.forecasting.data import HORIZON, LEVELS
from systems.forecasting.features import VIEWS
from systems.forecasting.model import panel
from systems.forecasting.model.panel import Panel, Plan, Usual

PART: Final = 500  # series


class Quantiles(Protocol):
    def quantiles(self, columns: pa.Table, x: Array, threads: int = 1) -> Array: ...


@dataclass(frozen=True)
class Part:
    """Some series with all that is needed to forecast them."""

    panel: Panel
    plan: Plan  # of one day
    usual: Usual
    known: Mapping[str, Array]  # values of the views that look beyond these series, by name


def parts(history: Panel, plan: Plan, size: int = PART) -> Iterator[Part]:
    usual = panel.of_groups(history, plan)
    wide = [view for view in VIEWS if len(view.entity) == 1]
    known = {view.name: panel.view_of(history, plan, view) for view in wide}
    series = np.array([history.find(*key) for key in zip(plan.store_id, plan.product_id, strict=True)], np.int64)
    for start in range(0, len(plan), size):
        which = slice(start, start + size)
        values = {name: block[which] for name, block in known.items()}
        yield Part(history.some(series[which]), plan.part(which), usual.part(which), values)


def forecast(model: Quantiles, part: Part) -> Array:
    """(series, HORIZON, len(LEVELS)) units."""
    rows = panel.rows(part.panel, part.plan, usual=part.usual)
    q = model.quantiles(rows.columns, panel.features(part.panel, part.plan, rows, part.known))
    return q.reshape(len(part.plan), HORIZON, len(LEVELS))


def everything(model: Quantiles, history: Panel, plan: Plan, size: int = PART) -> Array:
    """Of all series of a plan, (series, HORIZON, len(LEVELS)); by a Ray cluster where one is configured."""
    done = spread(partial(forecast, model), parts(history, plan, size), address=Settings().ray_address)
    return np.concatenate(list(done))
