"""How good the forecasts are, against simpler ones and against the true distribution where a world tells it; and what
the orders cost that follow from them."""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.features.view import Array, numbers
from common.registry.gates import CHAMPION, Gate
from common.system import Examples, Report
from systems.forecasting.config import Config
from systems.forecasting.data import EDGES, LEVELS, Review
from systems.forecasting.data.stock import newsvendor_level, newsvendor_loss
from systems.forecasting.model import distribution, forecaster
from systems.forecasting.model.forecaster import Blend
from systems.forecasting.serving import orders

Flags = NDArray[np.bool_]

BASELINES: Final = {"seasonal_naive": "naive", "theta": "theta"}
WEEKS: Final = {"days_1-7": (1, 7), "days_8-14": (8, 14), "days_15-28": (15, 28)}
REPEATS: Final = 200  # of the bootstrap
LOW: Final = 0.005  # its lower end
PER: Final = 1_000  # reviews, that costs are told of


class Forecasts(Protocol):
    @property
    def blend(self) -> Blend: ...
    @property
    def is_count(self) -> bool: ...
    def quantiles(self, columns: pa.Table, x: Array, threads: int = 1) -> Array: ...


def evaluate(config: Config, model: Forecasts, examples: Examples[Review]) -> Report:
    """By days ahead, each counted once. A world tells what was wanted, also where it was sold out; else such a day
    counts nothing.

    skill is by how much less the pinball loss is than that of the seasonal naive forecast with conformal intervals,
    each day's loss against the scale of its series (Hewamalage, Bergmeir & Bandara 2021).
    """
    columns = examples.rows.columns
    y = examples.truth["demand"] if examples.truth else examples.labels
    told = ~np.isnan(y)
    q = model.quantiles(columns, examples.x, config.threads)
    simple = {name: model.blend.simple(columns, method) for name, method in BASELINES.items()}
    usual = losses(columns, y, simple["seasonal_naive"], model.is_count)
    found = measures(columns, y, q, model.is_count)
    cost = costs(examples, model, q)
    metrics = summed(found, usual, told) | cost
    ceiling: dict[str, float] = {}
    if examples.ceiling is not None:
        owner = examples.rows.owner
        best = (examples.ceiling / numbers(columns["scale"])[examples.rows.offsets[:-1]])[owner]
        ceiling = {"pinball": float(best.mean()), "skill": float(1 - best.mean() / usual.mean())}
        ceiling |= least(examples)
        metrics["above_ceiling"] = above(examples, best - found["pinball"])
    groups = {name: (a <= horizon(columns)) & (horizon(columns) <= b) for name, (a, b) in WEEKS.items()}
    groups |= {name: group[examples.rows.owner] for name, group in examples.segments.items()}
    return Report(
        metrics=metrics,
        baselines={
            name: summed(measures(columns, y, said, model.is_count), usual, told) | costs(examples, model, said)
            for name, said in simple.items()
        },
        ceiling=ceiling,
        segments={
            name: {"days": float((group & told).sum())} | summed(found, usual, group & told)
            for name, group in groups.items()
            if (group & told).any()
        },
        rows=len(examples),
    )


def horizon(columns: pa.Table) -> Array:
    return numbers(columns["horizon"])


def losses(columns: pa.Table, y: Array, q: Array, is_count: bool) -> Array:
    """Pinball loss against the scale of the series, mean over LEVELS, (n_rows,)."""
    said = forecaster.whole(q, is_count)
    return np.asarray(distribution.pinball(y, said, LEVELS).mean(axis=-1) / numbers(columns["scale"]))


def measures(columns: pa.Table, y: Array, q: Array, is_count: bool) -> dict[str, Array]:
    """By name, of each row, (n_rows,)."""
    median = forecaster.whole(q, is_count)[:, len(LEVELS) // 2]
    mean = distribution.mean(q, LEVELS, is_count)
    z = forecaster.continuous(columns, y) if is_count else y
    both = np.abs(y) + np.abs(median)
    return {
        "pinball": losses(columns, y, q, is_count),
        "mase": np.abs(y - median) / numbers(columns["scale"]),
        "smape": np.divide(200 * np.abs(y - median), both, out=np.where(np.isnan(y), np.nan, 0.0), where=both > 0),
        "error": mean - y,
        "units": y,
        **{
            f"coverage_{name}": np.where(np.isnan(z), np.nan, (q[:, low] <= z) & (z < q[:, high]))
            for name, (low, high) in EDGES.items()
        },
    }


def summed(found: Mapping[str, Array], usual: Array, which: Flags) -> dict[str, float]:
    """The metrics of some rows."""
    some = {name: values[which] for name, values in found.items()}
    coverage = {name: float(some[name].mean()) for name in some if name.startswith("coverage")}
    return {
        "skill": float(1 - some["pinball"].mean() / usual[which].mean()),
        "pinball": float(some["pinball"].mean()),
        "mase": float(some["mase"].mean()),
        "smape": float(some["smape"].mean()),
        "bias": float(some["error"].sum() / max(some["units"].sum(), 1e-9)),
        **coverage,
        "coverage_error": max(abs(value - float(name[-2:]) / 100) for name, value in coverage.items()),
    }


def costs(examples: Examples[Review], model: Forecasts, q: Array) -> dict[str, float]:
    """EUR per 1,000 reviews, of the orders that follow from these quantiles: expected where a world tells the
    distribution of demand, else by what was sold, where all protected days were known."""
    total, n = 0.0, 0
    for reviews, rows in _protected(examples):
        quantity, _ = orders(reviews, q[rows], model.is_count, model.blend.correlation)
        short, over, counted = _apart(examples, reviews, rows, quantity)
        fee = np.array([review.order_cost for review in reviews]) * (quantity > 0)
        price = np.array([[review.short_cost, review.over_cost] for review in reviews])
        paid = fee + price[:, 0] * short + price[:, 1] * over
        total, n = total + float(paid[counted].sum()), n + int(counted.sum())
    return {"cost": PER * total / n} if n else {}


def _protected(examples: Examples[Review]) -> list[tuple[list[Review], NDArray[np.int64]]]:
    """Reviews whose orders have to last as long, with the rows of these days, (n, days) each."""
    days = np.array([review.lead_time + 1 for review in examples.requests])
    found = []
    for length in np.unique(days).tolist():
        mine = np.flatnonzero(days == length)
        rows = examples.rows.offsets[mine][:, None] + np.arange(length)
        found.append(([examples.requests[i] for i in mine.tolist()], rows))
    return found


def _apart(
    examples: Examples[Review], reviews: Sequence[Review], rows: NDArray[np.int64], quantity: Array
) -> tuple[Array, Array, Flags]:
    """Units short and units left over, (n,) each, and where that can be told."""
    level = quantity + np.array([review.on_hand + review.on_order for review in reviews])
    if examples.truth:
        mean, dispersion = examples.truth["mean"][rows], examples.truth["dispersion"][rows]
        short, over = newsvendor_loss(mean.sum(1), (mean + dispersion * mean**2).sum(1), level)
        return short, over, np.ones(len(level), bool)
    demand = examples.labels[rows].sum(1)
    counted = ~np.isnan(demand)
    demand = np.nan_to_num(demand)
    return np.maximum(demand - level, 0), np.maximum(level - demand, 0), counted


def least(examples: Examples[Review]) -> dict[str, float]:
    """EUR per 1,000 reviews, of the orders that are best by the true distribution."""
    total = 0.0
    for reviews, rows in _protected(examples):
        mean, dispersion = examples.truth["mean"][rows], examples.truth["dispersion"][rows]
        mean, variance = mean.sum(1), (mean + dispersion * mean**2).sum(1)
        costs = np.array([[r.short_cost, r.over_cost, r.order_cost, r.on_hand + r.on_order] for r in reviews])
        short, over, fee, position = costs.T
        best = np.maximum(newsvendor_level(mean, variance, short / (short + over)), position)
        paid = [
            short * missing + over * left for missing, left in
            (newsvendor_loss(mean, variance, level) for level in (position, best))
        ]  # fmt: skip
        total += float(np.minimum(paid[0], fee + paid[1]).sum())
    return {"cost": PER * total / len(examples)}


def above(examples: Examples[Review], gap: Array) -> float:
    """How far the mean loss is below the lowest that can be expected, at the lower end of a bootstrap over series.

    Above 0 the model knows something that cannot be known: a leak.
    """
    names = [f"{review.store_id}\x1f{review.product_id}" for review in examples.requests]
    _, series = np.unique(names, return_inverse=True)
    owner = series[examples.rows.owner]
    n = int(series.max()) + 1
    total, count = np.bincount(owner, gap, n), np.bincount(owner, minlength=n)
    drawn = np.random.default_rng(0).integers(0, n, (REPEATS, n))
    return float(np.quantile(total[drawn].sum(axis=1) / count[drawn].sum(axis=1), LOW))


def gates(config: Config) -> tuple[Gate, ...]:
    return (
        Gate(metric="pinball", limit=0.98, better="lower", against="seasonal_naive"),
        Gate(metric="pinball", limit=1.0, better="lower", against="theta"),
        Gate(metric="pinball", limit=1.01, better="lower", against=CHAMPION),
        Gate(metric="cost", limit=1.0, better="lower", against="seasonal_naive"),
        Gate(metric="coverage_error", limit=0.04, better="lower"),
        Gate(metric="above_ceiling", limit=0.0, better="lower", needs_ceiling=True),
    )


def retrain_gates(config: Config) -> tuple[Gate, ...]:
    """Better than the champion that no longer fits, and not broken."""
    return (
        Gate(metric="pinball", limit=1.0, better="lower", against=CHAMPION),
        Gate(metric="pinball", limit=1.0, better="lower", against="seasonal_naive"),
        Gate(metric="coverage_error", limit=0.15, better="lower"),
    )
