"""Quantiles of what will be sold: global gradient-boosted trees and a local method, weighed against each other in
backtests, made honest by conformal shifts. Files: LightGBM text, JSON, Parquet."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import RLock
from typing import Any, Final
from zlib import crc32

import lightgbm as lgb
import numpy as np
import optuna
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import ndtri

from common.errors import BadSetting
from common.features.view import Array, ints, numbers
from common.schema import from_table
from common.system import Examples, Params, RowError, Rows
from systems.forecasting.config import Config
from systems.forecasting.data import EDGES, HORIZON, LEVELS, Actual, Review
from systems.forecasting.data.own import calendar as calendar_of
from systems.forecasting.data.steps import Calendar
from systems.forecasting.model import conformal, distribution, local, panel, seasons
from systems.forecasting.model.ahead import everything
from systems.forecasting.model.panel import LOCAL, Panel, Plan
from systems.forecasting.model.table import Table

Ints = NDArray[np.int64]

SEGMENTS: Final = ("smooth", "intermittent", "new")
WEEKS: Final = (7, 14)  # horizons at which the errors of local methods change most
INTERMITTENT: Final = 0.25  # share of days without a sale, from which on
NEW: Final = 56  # days of history, below which
STEPS: Final = np.linspace(0, 1, 11)  # weights that are tried
FEWEST: Final = 500  # rows that trees are fitted on
CELLS: Final = len(SEGMENTS) * (len(WEEKS) + 1)
TOGETHER: Final = 4  # days whose errors are compared
SURE: Final = (0.001, 0.999)
NO_SHIFTS: Final = conformal.Shifts(np.zeros(0, np.int64), np.zeros((0, len(LEVELS))), np.zeros(len(LEVELS)))
MOST_HIDDEN: Final = 0.98  # no day is more surprising than that
PARTED: Final = 200  # rows of a segment and horizon, from which on it has weights of its own
NORMAL: Final = ndtri(np.array(LEVELS))  # quantiles
ROUGH: Final = 2.0  # variance of the errors of a rule of thumb, over its forecast
OUTSIDE: Final = (1e-4, 0.5)  # no certainty that a day stays inside its interval, or that it does not


@dataclass(frozen=True)
class Predicted:
    """What a version says to one review."""

    first_day: int
    quantiles: tuple[tuple[float, ...], ...]  # of each day, at LEVELS; units
    outside: float  # P(the first day is outside its interval of 80 %)
    is_count: bool
    correlation: float  # of the errors of two days
    protected: int  # days that an order made now has to last for


def start(config: Config) -> Params:
    """Where tuning starts, in LightGBM's names."""
    names = ("learning_rate", "num_leaves", "min_data_in_leaf", "feature_fraction", "lambda_l2")
    return {name: getattr(config, name) for name in names}


def space(trial: optuna.Trial) -> Params:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 0.03, 0.2, log=True),
        "num_leaves": trial.suggest_int("num_leaves", 7, 63, log=True),
        "min_data_in_leaf": trial.suggest_int("min_data_in_leaf", 20, 200, log=True),
        "feature_fraction": trial.suggest_float("feature_fraction", 0.3, 1.0),
        "lambda_l2": trial.suggest_float("lambda_l2", 0.1, 50.0, log=True),
    }


@dataclass(frozen=True)
class Trees:
    """One model per level, of units against the level of the series; global: all series teach it."""

    boosters: tuple[lgb.Booster, ...]

    @classmethod
    def fit(cls, config: Config, x: Array, z: Array, scale: Array, names: Sequence[str], params: Params) -> "Trees":
        if len(z) < FEWEST:
            raise BadSetting(f"train: must have {FEWEST} days of known demand or more, has {len(z)}")
        # by lot: every n-th row would be of some of the 28 days ahead alone
        some = np.sort(np.random.default_rng(config.seed).permutation(len(z))[: config.rows])
        data = lgb.Dataset(
            x[some], z[some] / scale[some], feature_name=[name.replace(".", "__") for name in names],
            params={"max_bin": config.max_bin, "verbosity": -1}, free_raw_data=False,
        )  # fmt: skip
        options = {
            **params, "objective": "quantile", "verbosity": -1, "seed": config.seed, "deterministic": True,
            "force_row_wise": True, "num_threads": config.threads, "max_bin": config.max_bin, "bagging_fraction": 0.7,
            "bagging_freq": 1,
        }  # fmt: skip
        fitted = (lgb.train({**options, "alpha": level}, data, config.trees) for level in LEVELS)
        return cls(tuple(lgb.Booster(model_str=booster.model_to_string()) for booster in fitted))

    def quantiles(self, x: Array, scale: Array, threads: int) -> Array:
        """(n, n_features) -> (n, len(LEVELS)), in units."""
        said = [np.asarray(booster.predict(x, num_threads=threads)) for booster in self.boosters]
        return np.sort(np.stack(said, axis=1), axis=1) * scale[:, None]


@dataclass(frozen=True)
class Blend:
    """Of each segment and horizon: the local method, the weight of the trees beside it, and what makes both honest."""

    method: tuple[str, ...]  # (cells,)
    weight: tuple[float, ...]  # (cells,) of the trees
    spread: Mapping[str, conformal.Shifts]  # by local method: from its point to its quantiles
    shifts: conformal.Shifts  # of the blend
    correlation: float  # of the errors of two days of the same forecast

    @classmethod
    def fit(cls, columns: pa.Table, trees: Array, z: Array) -> "Blend":
        """By backtests: on reviews that the trees had not learned from."""
        cell, scale = cells(columns), numbers(columns["scale"])
        points = {name: _points(columns, name) for name in LOCAL}
        spread = {name: conformal.Shifts.fit(z, _tiled(point), scale, cell, LEVELS) for name, point in points.items()}
        local = {name: spread[name].apply(_tiled(point), scale, cell) for name, point in points.items()}
        method, weight = [LOCAL[0]] * CELLS, [1.0] * CELLS
        whole = np.ones(len(z), bool)
        for c in range(CELLS):
            mine = cell == c if (cell == c).sum() >= PARTED else whole
            loss = {
                (name, float(w)): _loss(z[mine], w * trees[mine] + (1 - w) * local[name][mine], scale[mine])
                for name in LOCAL
                for w in STEPS
            }
            method[c], weight[c] = min(loss, key=lambda key: loss[key])
        made = cls(tuple(method), tuple(weight), spread, NO_SHIFTS, 0.0)
        made = replace(made, shifts=conformal.Shifts.fit(z, made._mixed(columns, trees), scale, cell, LEVELS))
        return replace(made, correlation=_correlation(columns, made.quantiles(columns, trees), z))

    def _mixed(self, columns: pa.Table, trees: Array) -> Array:
        cell, scale = cells(columns), numbers(columns["scale"])
        weight = np.array(self.weight)[cell][:, None]
        local = np.zeros(trees.shape)
        for name in set(self.method):
            mine = np.array([m == name for m in self.method])[cell]
            if mine.any():
                point = _points(columns, name)[mine]
                local[mine] = self.spread[name].apply(_tiled(point), scale[mine], cell[mine])
        return np.asarray(weight * trees + (1 - weight) * local)

    def simple(self, columns: pa.Table, method: str) -> Array:
        """What a local method says alone, (n, len(LEVELS)) units: its point, with conformal intervals."""
        point = _tiled(_points(columns, method))
        return _sorted(self.spread[method].apply(point, numbers(columns["scale"]), cells(columns)))

    def quantiles(self, columns: pa.Table, trees: Array) -> Array:
        """(n, len(LEVELS)) units, never below 0."""
        mixed = self._mixed(columns, trees)
        return _sorted(self.shifts.apply(mixed, numbers(columns["scale"]), cells(columns)))

    def document(self) -> dict[str, Any]:
        return {
            "method": self.method, "weight": self.weight, "shifts": self.shifts.to_dict(),
            "spread": {name: shifts.to_dict() for name, shifts in self.spread.items()},
            "correlation": self.correlation,
        }  # fmt: skip

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> "Blend":
        spread = {name: conformal.Shifts.from_dict(shifts) for name, shifts in said["spread"].items()}
        shifts = conformal.Shifts.from_dict(said["shifts"])
        return cls(tuple(said["method"]), tuple(said["weight"]), spread, shifts, said["correlation"])


def _correlation(columns: pa.Table, q: Array, z: Array) -> float:
    """Of the errors of any two of the first days of a review, as normal scores: a level that is wrong is wrong for all
    of them, and their sum is less certain than that of independent days."""
    score = ndtri(np.clip(distribution.cdf(q, LEVELS, z), *SURE))
    first = numbers(columns["horizon"]) <= TOGETHER
    day, score = ints(columns["day"])[first] - numbers(columns["horizon"])[first].astype(np.int64), score[first]
    series = _numbers(columns["store_id"]) * 2**20 + _numbers(columns["product_id"])
    _, review = np.unique(np.stack([series[first], day]), axis=1, return_inverse=True)
    whole = np.bincount(review.ravel()) == TOGETHER
    sums = np.bincount(review.ravel(), score)[whole]
    if len(sums) < PARTED:
        return 0.0
    excess = float(np.var(sums) / np.var(score) / TOGETHER - 1)  # variance of a sum is k (1 + (k - 1) rho)
    return min(max(excess / (TOGETHER - 1), 0.0), 1.0)


def segments(columns: pa.Table) -> Ints:
    """Places in SEGMENTS, (n_rows,)."""
    intermittent = numbers(columns["zero_share"]) > INTERMITTENT
    return np.where(numbers(columns["age"]) < NEW, 2, intermittent.astype(np.int64))


def cells(columns: pa.Table) -> Ints:
    """The segment and the weeks ahead of rows, as one number, (n_rows,)."""
    week = np.searchsorted(WEEKS, numbers(columns["horizon"]))
    return np.asarray(segments(columns) * (len(WEEKS) + 1) + week)


def _points(columns: pa.Table, method: str) -> Array:
    return np.asarray(numbers(columns[f"{method}_ratio"]) * (numbers(columns["level"]) + 1) - 1)


def _sorted(q: Array) -> Array:
    return np.sort(np.maximum(q, 0.0), axis=1)


def _tiled(point: Array) -> Array:
    return np.repeat(point[:, None], len(LEVELS), axis=1)


def _loss(z: Array, q: Array, scale: Array) -> float:
    return float((distribution.pinball(z, q, LEVELS).mean(axis=-1) / scale).mean())


@dataclass(frozen=True)
class Core:
    """From rows and features to quantiles: all that has been learned."""

    trees: Trees
    blend: Blend

    def quantiles(self, columns: pa.Table, x: Array, threads: int = 1) -> Array:
        """Of rows, (n_rows, len(LEVELS)), in units; those of counts are of the jittered ones."""
        return self.blend.quantiles(columns, self.trees.quantiles(x, numbers(columns["level"]) + 1, threads))


@dataclass(frozen=True)
class Forecaster:
    config: Config
    names: tuple[str, ...]  # of the features
    core: Core
    is_count: bool
    panel: Panel
    calendar: Calendar | None  # what days stand for; None: days
    plan: Plan | None  # of all series, for the forecasts that are made ahead; None: they have been made
    table: Table | None = None
    lock: RLock = field(default_factory=RLock, repr=False, compare=False)  # who hears of actuals is another thread

    def rows(self, requests: Sequence[Review]) -> Rows:
        with self.lock:
            return panel.rows(self.panel, Plan.of(requests))

    def hear(self, events: pa.Table) -> None:
        with self.lock:
            self.panel.hear(events)

    @property
    def blend(self) -> Blend:
        return self.core.blend

    def quantiles(self, columns: pa.Table, x: Array, threads: int = 1) -> Array:
        return self.core.quantiles(columns, x, threads)

    def predict(self, requests: Sequence[Review], rows: Rows, x: Array) -> Sequence[Predicted | RowError]:
        q = self.quantiles(rows.columns, self._remembered(requests, rows, x))
        return predictions(requests, rows, q, self.is_count, self.core.blend.correlation)

    def _remembered(self, requests: Sequence[Review], rows: Rows, x: Array) -> Array:
        """The features, those of the shelf from the version's own history where the store has none at all: a server
        whose log begins today is asked about shelves that the version knows."""
        lags = [i for i, name in enumerate(self.names) if name.startswith("shelf.lag_")]
        empty = np.flatnonzero(np.isnan(x[rows.offsets[:-1]][:, lags]).all(axis=1)).tolist()
        known = [i for i in empty if self.panel.has(requests[i])]
        if not known:
            return x
        mine = np.isin(rows.owner, known)
        counts = np.append(0, np.cumsum(np.diff(rows.offsets)[known]))
        part = Rows(rows.columns.filter(pa.array(mine)), counts)
        with self.lock:
            found = panel.features(self.panel, Plan.of([requests[i] for i in known]), part)
        x = x.copy()
        x[mine, : found.shape[1]] = found
        return x

    def save(self, folder: Path) -> None:
        for level, booster in zip(LEVELS, self.core.trees.boosters, strict=True):
            booster.save_model(folder / f"trees_{level:g}.txt")
        rest = {"names": self.names, "blend": self.core.blend.document(), "is_count": self.is_count}
        rest["calendar"] = None if self.calendar is None else asdict(self.calendar)
        (folder / "model.json").write_text(json.dumps(rest, allow_nan=False))
        self.panel.save(folder)
        self.ahead().save(folder)

    def ahead(self) -> Table:
        """The forecasts of all series from the first day on that nothing has been heard of."""
        if self.plan is None:
            assert self.table is not None  # a version that was read has one
            return self.table
        return Table.of(self.panel, self.plan, everything(self.core, self.panel, self.plan), self.is_count)


def load(config: Config, folder: Path) -> Forecaster:
    rest = json.loads((folder / "model.json").read_text())
    boosters = tuple(lgb.Booster(model_file=folder / f"trees_{level:g}.txt") for level in LEVELS)
    calendar = None if rest["calendar"] is None else Calendar(**rest["calendar"])
    return Forecaster(
        config, tuple(rest["names"]), Core(Trees(boosters), Blend.read(rest["blend"])), rest["is_count"],
        Panel.load(config, folder, seasons.of(calendar)), calendar, None, Table.load(folder),
    )  # fmt: skip


def predictions(
    requests: Sequence[Review], rows: Rows, q: Array, is_count: bool, correlation: float
) -> list[Predicted]:
    """Of each request, from the quantiles of its rows, (n_rows, len(LEVELS))."""
    first = rows.offsets[:-1]
    day = ints(rows.columns["day"])[first].tolist() if len(first) else []
    outside = chance_outside(q[first], is_count).tolist()
    said = np.round(q, 4).tolist()
    spans = zip(rows.offsets[:-1].tolist(), rows.offsets[1:].tolist(), strict=True)
    return [
        Predicted(day[i], tuple(map(tuple, said[a:b])), outside[i], is_count, correlation, requests[i].lead_time + 1)
        for i, (a, b) in enumerate(spans)
    ]


def whole(q: Array, is_count: bool) -> Array:
    """Quantiles as they are told."""
    return conformal.whole(q) if is_count else q


def chance_outside(q: Array, is_count: bool) -> Array:
    """P(outside the interval of 80 % as it is told), (n,); that of a count holds more than it has to."""
    low, high = (whole(q[:, place], is_count) for place in EDGES["80"])
    inside = distribution.cdf(q, LEVELS, high + is_count) - distribution.cdf(q, LEVELS, low)
    return np.asarray(np.clip(1 - inside, *OUTSIDE))


@dataclass
class Library:
    """What all fits of one snapshot share: its panel, made once, and the plan for what comes after it."""

    config: Config
    _of: tuple[int, int] = (-1, -1)  # how many events it was made from, and the position of the last one
    _panel: Panel | None = field(default=None, repr=False)
    _plan: Plan | None = field(default=None, repr=False)
    _calendar: Calendar | None = None

    def fit(self, examples: Examples[Review], params: Params) -> Forecaster:
        actuals, reviews = (examples.events[kind.__name__] for kind in (Actual, Review))
        of = actuals.num_rows, int(actuals["position"][-1].as_py()) if actuals.num_rows else 0
        if self._panel is None or self._plan is None or self._of != of:
            self._of, self._calendar = of, calendar_of(reviews)
            self._panel = Panel.of(self.config, actuals, seasons.of(self._calendar))
            self._plan = _next(self._panel, reviews)
        return fit(self.config, examples, params, self._panel.copy(), self._calendar, self._plan)

    def replay(self, asked: pa.Table, events: Mapping[str, pa.Table]) -> Rows:
        return panel.replay(self.config, asked, events)


def _next(history: Panel, reviews: pa.Table) -> Plan:
    """For every series that was ever reviewed, what its last review planned, from the first day on of which nothing
    has been heard."""
    keys = pa.table({name: reviews[name] for name in ("store_id", "product_id")})
    keys = keys.append_column("row", pa.array(np.arange(reviews.num_rows)))
    last = keys.group_by(["store_id", "product_id"], use_threads=False).aggregate([("row", "max")])
    known = [review for review in from_table(Review, reviews.take(last["row_max"])) if history.has(review)]
    return Plan.of(known).from_day(history.last + 1)


def fit(
    config: Config, examples: Examples[Review], params: Params, history: Panel, calendar: Calendar | None, plan: Plan
) -> Forecaster:
    """Trees on what was known when the newest of the reviews was made; what their backtests teach, from the reviews of
    the last weeks, which other trees had not seen."""
    columns, z, origin = known(examples)
    day, scale = ints(columns["day"]), numbers(columns["level"]) + 1
    usable = ~np.isnan(z) & (day < origin.max())  # later days are those that a model is judged on
    least = np.nan_to_num(numbers(columns["at_least"]), nan=-1.0)
    hidden = (least >= 0) & (day < origin.max())
    span = int(origin.max() - origin.min())
    held = int(origin.max()) - min(config.held_out, span // 3)
    early, late = usable & (day < held), (usable | hidden) & (origin >= held)
    if not late.any():
        raise BadSetting("train: must have reviews with known demand in its last weeks, has none")
    before = Trees.fit(config, examples.x[early], z[early], scale[early], examples.names, params)
    is_count = bool(conformal.is_count(examples.labels))
    told = before.quantiles(examples.x[hidden], scale[hidden], config.threads)
    z[hidden] = at_least(told, least[hidden], np.random.default_rng(config.seed))
    said = before.quantiles(examples.x[late], scale[late], config.threads)
    blend = Blend.fit(columns.filter(pa.array(late)), said, z[late])
    usable |= hidden
    trees = Trees.fit(config, examples.x[usable], z[usable], scale[usable], examples.names, params)
    return Forecaster(config, examples.names, Core(trees, blend), is_count, history, calendar, plan)


def known(examples: Examples[Review]) -> tuple[pa.Table, Array, Ints]:
    """The rows, what was sold on each one's day, made continuous, NaN: not known; and the day of each one's review;
    (n_rows,) each."""
    columns, labels = examples.rows.columns, np.where(examples.weights > 0, examples.labels, np.nan)
    origin = ints(columns["day"])[examples.rows.offsets[:-1]][examples.rows.owner]
    return columns, continuous(columns, labels), origin


def at_least(q: Array, least: Array, rng: np.random.Generator) -> Array:
    """Draws from distributions, given that they are so high or higher, (n,): what may have been wanted of what was sold
    out. A best guess would be too sure of it (multiple imputation, Rubin 1987)."""
    below = np.minimum(distribution.cdf(q, LEVELS, least), MOST_HIDDEN)
    drawn = distribution.ppf(q, LEVELS, below + rng.random(len(q)) * (1 - below))
    return np.maximum(drawn, least)


def continuous(columns: pa.Table, y: Array) -> Array:
    """Counts are jittered, so that their quantiles are well defined; (n_rows,)."""
    if not conformal.is_count(y):
        return y
    series = sum(_numbers(columns[name]) * factor for name, factor in (("store_id", 2**20), ("product_id", 1)))
    return conformal.jitter(y, np.asarray(series), ints(columns["day"]))


def _numbers(names: pa.ChunkedArray) -> Ints:
    """The same number for the same name, wherever it stands."""
    coded = names.combine_chunks().dictionary_encode()
    digests = [crc32(name.encode()) for name in coded.dictionary.to_pylist()]
    return np.asarray(np.array(digests, np.int64)[coded.indices.to_numpy()])


@dataclass
class Plain:
    """How a chain orders that has learned nothing: by the same day a week ago. It answers a new world's history."""

    config: Config
    _panel: Panel | None = None

    def rows(self, requests: Sequence[Review]) -> Rows:
        plan, season = Plan.of(requests), seasons.WEEK
        day = (plan.day[:, None] + np.arange(HORIZON)).ravel()
        offsets = np.arange(len(plan) + 1) * HORIZON
        point = np.ones((len(plan), HORIZON))
        if self._panel is not None:
            keys = zip(plan.store_id, plan.product_id, strict=True)
            series = np.array([self._panel.find(*key) for key in keys], np.int64)
            y = self._panel.window("units", series, plan.day, 4 * season)
            point = local.seasonal_naive(y, HORIZON, season)
        return Rows(pa.table({"day": day, "naive": point.ravel()}), offsets)

    def hear(self, events: pa.Table) -> None:
        if self._panel is None:
            self._panel = Panel(self.config)
        self._panel.hear(events)

    def predict(self, requests: Sequence[Review], rows: Rows, x: Array) -> Sequence[Predicted | RowError]:
        point = numbers(rows.columns["naive"])[:, None]
        q = np.maximum(point + NORMAL * np.sqrt(ROUGH * (point + 1)), 0.0)
        return predictions(requests, rows, q, is_count=True, correlation=0.0)

    def save(self, folder: Path) -> None:
        """It has learned nothing, so it is never a version."""
        raise NotImplementedError
