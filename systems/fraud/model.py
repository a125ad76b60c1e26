"""P(fraud) by gradient-boosted trees, calibrated on days that were held out, with exact reasons; beside it a logistic
regression, which is the baseline to beat and the simpler model to fall back on. Files: LightGBM text, JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self, TypeVar

import lightgbm as lgb
import numpy as np
import optuna
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from common.clock import DAY
from common.errors import BadSetting
from common.features.view import Array
from common.schema import to_table
from common.system import Examples, Params, RowError, Rows
from systems.fraud.config import Config
from systems.fraud.data import Payment
from systems.fraud.features import reason

N = TypeVar("N", float, Array)
HELD_OUT = 5  # every fifth day is kept to stop early and to calibrate
PRICED = 28 * DAY  # reviews are priced on the latest payments
MOST_REASONS = 3
SMALLEST = 1e-6  # a probability of 0 or 1 would be a certainty that no data can give


@dataclass(frozen=True)
class Scored:
    """What the model says of one payment."""

    probability: float  # of fraud
    review_price: float  # EUR, what a place in the analysts' day is worth
    reasons: tuple[str, ...]  # codes of what spoke most for fraud, the weightiest first; none for a plain approval


@dataclass(frozen=True)
class Line:
    """A logistic regression on standardised features; missing ones are average, long tails are drawn in."""

    mean: list[float]
    scale: list[float]
    weights: list[float]
    intercept: float

    @classmethod
    def fit(cls, x: Array, y: Array, weights: Array) -> Self:
        z = np.sign(x) * np.log1p(np.abs(x))
        mean, scale = np.nanmean(z, 0), np.nanstd(z, 0)
        scale[~(scale > 0)] = 1.0
        z = np.nan_to_num((z - mean) / scale)
        model = LogisticRegression(C=0.1, max_iter=1_000).fit(z, y, sample_weight=weights)
        return cls(np.nan_to_num(mean).tolist(), scale.tolist(), model.coef_[0].tolist(), float(model.intercept_[0]))

    def probability(self, x: Array) -> Array:
        """(n, n_features) -> (n,)"""
        z = np.nan_to_num((np.sign(x) * np.log1p(np.abs(x)) - np.array(self.mean)) / np.array(self.scale))
        return np.asarray(expit(z @ np.array(self.weights) + self.intercept))


@dataclass(frozen=True)
class Calibration:
    """Platt 1999: a line in log odds, never falling."""

    slope: float
    intercept: float

    @classmethod
    def fit(cls, margin: Array, y: Array, weights: Array) -> Self:
        line = LogisticRegression(C=1e6).fit(margin[:, None], y, sample_weight=weights)
        return cls(max(float(line.coef_[0, 0]), 0.0), float(line.intercept_[0]))

    def probability(self, margin: Array) -> Array:
        return np.asarray(np.clip(expit(self.slope * margin + self.intercept), SMALLEST, 1 - SMALLEST))


def start(config: Config) -> Params:
    """Where tuning starts, in LightGBM's names."""
    names = ("learning_rate", "num_leaves", "min_data_in_leaf", "feature_fraction", "lambda_l2")
    return {name: getattr(config, name) for name in names}


def space(trial: optuna.Trial) -> Params:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 0.02, 0.2, log=True),
        "num_leaves": trial.suggest_int("num_leaves", 7, 63, log=True),
        "min_data_in_leaf": trial.suggest_int("min_data_in_leaf", 10, 200, log=True),
        "feature_fraction": trial.suggest_float("feature_fraction", 0.3, 1.0),
        "lambda_l2": trial.suggest_float("lambda_l2", 0.1, 50.0, log=True),
    }


@dataclass(frozen=True)
class Scorer:
    config: Config
    booster: lgb.Booster
    names: tuple[str, ...]
    calibration: Calibration
    line: Line
    review_price: float  # EUR

    def rows(self, requests: Sequence[Payment]) -> Rows:
        return Rows(to_table(Payment, requests), np.arange(len(requests) + 1))

    def probability(self, x: Array, threads: int = 0) -> Array:
        """(n, n_features) -> (n,); by 0 threads: as many as there are cores."""
        margin = self.booster.predict(x, raw_score=True, num_threads=threads)
        return self.calibration.probability(np.asarray(margin))

    def predict(self, requests: Sequence[Payment], rows: Rows, x: Array) -> Sequence[Scored | RowError]:
        """Whoever is not simply approved is owed reasons: Shapley values (Lundberg et al. 2020), which add up to the
        margin. They cost a hundred times what the margin does, so the others go without."""
        probability = self.probability(x, threads=1)  # for so few rows, two would only wait for each other
        amount = np.array([payment.amount for payment in requests])
        doubted = np.flatnonzero(best_action(self.config, probability, amount, self.review_price))
        reasons: list[tuple[str, ...]] = [()] * len(requests)
        if len(doubted):
            shares = np.asarray(
                self.booster.predict(x[doubted], pred_contrib=True, num_threads=1)
            )  # (n, n_features + 1): and a base
            for i, share in zip(doubted.tolist(), shares[:, :-1], strict=True):
                reasons[i] = self._reasons(share)
        return [Scored(p, self.review_price, why) for p, why in zip(probability.tolist(), reasons, strict=True)]

    def _reasons(self, share: Array) -> tuple[str, ...]:
        weight: dict[str, float] = {}
        for i in np.flatnonzero(share > 0):
            code = reason(self.names[i])
            weight[code] = weight.get(code, 0.0) + float(share[i])
        return tuple(sorted(weight, key=lambda code: (-weight[code], code))[:MOST_REASONS])

    def save(self, folder: Path) -> None:
        self.booster.save_model(folder / "trees.txt")
        rest = {"names": self.names, "review_price": self.review_price}
        rest |= {"calibration": asdict(self.calibration), "line": asdict(self.line)}
        (folder / "model.json").write_text(json.dumps(rest, allow_nan=False))


def load(config: Config, folder: Path) -> Scorer:
    rest = json.loads((folder / "model.json").read_text())
    return Scorer(
        config,
        lgb.Booster(model_file=folder / "trees.txt"),
        tuple(rest["names"]),
        Calibration(**rest["calibration"]),
        Line(**rest["line"]),
        rest["review_price"],
    )


def fit(config: Config, examples: Examples[Payment], params: Params) -> Scorer:
    """Trees on four days of five; the fifth ones stop them and calibrate them, the latest price the analysts' time.

    Whole days all over the span: were only the latest held out, the trees would never see the newest tactics, and a
    model that is made because these have changed would not know them. What may leak between neighbouring days stays in
    here: a model is judged on later ones. Not fitted again on all days: nothing would be left to calibrate it on, and
    decisions by expected cost need the probability more than the rank.
    """
    known = examples.weights > 0
    x, y, weights, as_of = examples.x[known], examples.labels[known], examples.weights[known], examples.as_of[known]
    late = as_of // DAY % HELD_OUT == HELD_OUT - 1
    options = {
        **params, "objective": "binary", "verbosity": -1, "seed": config.seed,
        "bagging_fraction": 0.8, "bagging_freq": 1, "metric": "binary_logloss",
        "deterministic": True, "force_row_wise": True, "num_threads": config.threads, "max_bin": config.max_bin,
    }  # fmt: skip
    if min(len(np.unique(part)) for part in (y[~late], y[late])) < 2:
        raise BadSetting(f"train: must have frauds and honest payments in both of its parts, got {int(y.sum())} frauds")
    names = [name.replace(".", "__") for name in examples.names]  # LightGBM allows no dots in JSON
    early = lgb.Dataset(x[~late], y[~late], weight=weights[~late], feature_name=names)
    booster = lgb.train(
        options, early, num_boost_round=config.trees,
        valid_sets=[early.create_valid(x[late], y[late], weight=weights[late])],
        callbacks=[lgb.early_stopping(config.patience, verbose=False)],
    )  # fmt: skip
    booster = lgb.Booster(model_str=booster.model_to_string())  # what is judged is what will be loaded
    margin = np.asarray(booster.predict(x[late], raw_score=True))
    calibration = Calibration.fit(margin, y[late], weights[late])
    since = max(as_of[0], as_of[-1] - PRICED)
    asked = examples.as_of >= since  # those of unknown outcome want to be looked at too
    p = calibration.probability(np.asarray(booster.predict(examples.x[asked], raw_score=True)))
    days = max(1.0, (as_of[-1] - since) / DAY)
    price = review_price(config, p, examples.rows.columns["amount"].to_numpy()[asked], days)
    return Scorer(config, booster, examples.names, calibration, Line.fit(x, y, weights), price)


def costs(config: Config, p: N, amount: N) -> tuple[N, float, N]:
    """Expected EUR of approving, reviewing, blocking, of one or (n,). An analyst finds the truth and stops a fraud."""
    return p * (amount + config.chargeback_fee), config.review_cost, (1 - p) * config.friction_cost


def review_price(config: Config, p: Array, amount: Array, days: float) -> float:
    """The least price of a review at which the analysts' daily budget is enough: its shadow price, in EUR."""
    approve, review, block = costs(config, p, amount)
    gain = np.sort(np.minimum(approve, block) - review)[::-1]
    places = int(config.reviews_per_day * days)
    return float(max(0.0, gain[places])) if places < len(gain) else 0.0


def best_action(config: Config, p: Array, amount: Array, price: float) -> NDArray[np.int64]:
    """0 approve, 1 review, 2 block: the least expected cost, (n,)."""
    approve, review, block = costs(config, p, amount)
    return np.asarray(np.argmin(np.stack([approve, np.full(len(p), review + price), block]), 0))
