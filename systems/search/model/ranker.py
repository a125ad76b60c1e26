"""P(a product is clicked, once it is looked at) by gradient-boosted trees, and P(a page gets a click).

Files: LightGBM text, JSON."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self

import lightgbm as lgb
import numpy as np
import optuna
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from common.clock import DAY
from common.errors import BadSetting
from common.features.view import Array, numbers
from common.system import Examples, Params
from systems.search.config import Config, Device
from systems.search.data.events import Query
from systems.search.model.clicks import RANKS, Examination

Ints = NDArray[np.int64]

HELD_OUT: Final = 5  # every fifth day is kept to stop early and to calibrate
SMALLEST: Final = 1e-6  # a probability of 0 or 1 would be a certainty that no data can give
EVERYWHERE: Final = Examination(0.0, 0.0, 1.0)  # as if shoppers looked at all that they are shown


class Ranked(NamedTuple):
    order: Ints  # (n_rows,) row numbers, the rows of each request from the best on, one request after the other
    scores: Array  # (n_rows,) P(click, once looked at), of each row
    satisfaction: Array  # (n_requests,) P(a click on the usual first page), in that order


@dataclass(frozen=True)
class Calibration:
    """Platt 1999: a line in log odds, never falling."""

    slope: float
    intercept: float

    @classmethod
    def fit(cls, p: Array, clicked: NDArray[np.bool_]) -> Self:
        line = LogisticRegression(C=1e6).fit(_log_odds(p)[:, None], clicked)
        return cls(max(float(line.coef_[0, 0]), 0.0), float(line.intercept_[0]))

    def __call__(self, p: Array) -> Array:
        return np.asarray(np.clip(expit(self.slope * _log_odds(p) + self.intercept), SMALLEST, 1 - SMALLEST))


def start(config: Config) -> Params:
    """Where tuning starts, in LightGBM's names."""
    names = ("learning_rate", "num_leaves", "min_data_in_leaf", "feature_fraction", "lambda_l2")
    return {name: getattr(config, name) for name in names}


def space(trial: optuna.Trial) -> Params:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 0.03, 0.2, log=True),
        "num_leaves": trial.suggest_int("num_leaves", 7, 63, log=True),
        "min_data_in_leaf": trial.suggest_int("min_data_in_leaf", 20, 400, log=True),
        "feature_fraction": trial.suggest_float("feature_fraction", 0.2, 1.0),
        "lambda_l2": trial.suggest_float("lambda_l2", 0.1, 100.0, log=True),
    }


@dataclass(frozen=True)
class Ranker:
    booster: lgb.Booster
    names: tuple[str, ...]
    usual: float  # log odds of a click, once looked at: where the trees begin
    examination: Examination
    calibration: Calibration

    def rank(self, x: Array, offsets: Ints, threads: int = 1) -> Ranked:
        """x: (n_rows, n_features), the rows of each request in retrieval's order, which decides between equal ones."""
        scores = self.attraction(x, threads)
        order = ordered(scores, offsets)
        rank = ranks(order, offsets).astype(float)
        return Ranked(order, scores, self.satisfaction(scores, rank, self._is_phone(x), offsets))

    def attraction(self, x: Array, threads: int = 1) -> Array:
        """P(click, once looked at), (n_rows,); by 0 threads: as many as there are cores."""
        if not len(x):
            return np.zeros(0)
        return np.asarray(expit(self.usual + np.asarray(self.booster.predict(x, num_threads=threads))))

    def satisfaction(self, scores: Array, rank: Array, is_phone: Array, offsets: Ints) -> Array:
        """P(a click on the usual first page), (n_requests,), of rows that stand at those ranks; 0: not shown."""
        chance = clicks(self.examination, scores, rank, is_phone)
        return self.calibration(_any(chance, offsets))

    def weights(self, device: Device, places: Iterable[int]) -> Array:
        """What a click at those places of all pages counts for; the first is 0."""
        rank = np.array([place + 1.0 for place in places])
        return self.examination.weights(rank, np.full(len(rank), device == "phone"))

    def _is_phone(self, x: Array) -> Array:
        return x[:, self.names.index("is_phone")]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.booster.save_model(folder / "trees.txt")
        rest = {"names": self.names, "usual": self.usual}
        rest |= {"examination": asdict(self.examination), "calibration": asdict(self.calibration)}
        (folder / "ranker.json").write_text(json.dumps(rest, allow_nan=False))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Of a verified bundle."""
        rest = json.loads((folder / "ranker.json").read_text())
        return cls(
            lgb.Booster(model_file=folder / "trees.txt"), tuple(rest["names"]), rest["usual"],
            Examination(**rest["examination"]), Calibration(**rest["calibration"]),
        )  # fmt: skip

    @classmethod
    def taught(cls, config: Config, examples: Examples[Query], params: Params, looks: Examination) -> Self:
        """By the position-based model: P(click) = P(look at the rank) x P(click, once looked at), the last by trees.

        Its likelihood is highest where clicks are explained by both, so no click has to be weighted by 1 / propensity,
        which makes the few from deep places loud (Wang et al. 2018 fit the same model with looks that are not known).
        What retrieval puts far behind and nobody was shown counts as not clicked at the end of the page, where few
        look: trees that never saw such products would put some of them first. What it puts near the front is left out:
        that the page did not show it says nothing against it.
        Trees grow on four days of five; the fifth ones stop them and calibrate the page's probability.
        """
        rows = _learnable(config, examples)
        columns = examples.rows.columns
        is_phone, position = (numbers(columns[name]) for name in ("is_phone", "rank"))
        clicked = np.nan_to_num(examples.labels[rows])
        look = looks.chance(np.where(position > 0, position, RANKS + 1), is_phone)[rows]
        late = (examples.as_of // DAY % HELD_OUT == HELD_OUT - 1)[examples.rows.owner]
        is_late = late[rows]
        judged = late & (examples.weights > 0)
        shown, hit = (
            np.bincount(examples.rows.owner[which], minlength=len(examples)) > 0
            for which in (judged, judged & (examples.labels > 0))
        )
        if not clicked[~is_late].any() or not 0 < hit.sum() < shown.sum():
            raise BadSetting(
                "train: must have clicks, and on held-out days pages with one and without one, got "
                f"{int(clicked.sum())} clicks, and held out {int(hit.sum())} such pages of {int(shown.sum())}"
            )
        p = float(np.clip(clicked.sum() / look.sum(), SMALLEST, 0.5))
        usual = float(logit(p))
        booster = _boosted(config, params, examples, rows, clicked, look, is_late, usual)
        scores = expit(usual + np.asarray(booster.predict(examples.x)))
        page = _any(clicks(looks, scores, np.where(judged, position, 0), is_phone), examples.rows.offsets)
        calibration = Calibration.fit(page[shown], hit[shown])
        return cls(booster, examples.names, usual, looks, calibration)


def ordered(scores: Array, offsets: Ints) -> Ints:
    """Row numbers, (n_rows,), the rows of each request from the highest score on; of equal ones the first."""
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return np.lexsort((np.arange(len(scores)), -scores, owner))


def ranks(order: Ints, offsets: Ints) -> Ints:
    """Of each row, its rank within its request; 1 is the first."""
    found = np.empty(len(order), np.int64)
    found[order] = np.arange(1, len(order) + 1) - np.repeat(offsets[:-1], np.diff(offsets))
    return found


def clicks(looks: Examination, scores: Array, rank: Array, is_phone: Array) -> Array:
    """P(click) of each row on the usual first page, (n_rows,); rank 0: not shown."""
    on_page = (rank >= 1) & (rank <= RANKS)
    return np.where(on_page, looks.chance(rank, is_phone) * scores, 0.0)


def _any(chance: Array, offsets: Ints) -> Array:
    """P(at least one) of each request, (n_requests,)."""
    none = np.r_[0.0, np.cumsum(np.log1p(-np.minimum(chance, 1 - SMALLEST)))]
    return np.asarray(-np.expm1(none[offsets[1:]] - none[offsets[:-1]]))


def _learnable(config: Config, examples: Examples[Query]) -> Ints:
    """Rows that were shown and whose clicks are known, and those far behind that were not, of the same requests."""
    owner, offsets = examples.rows.owner, examples.rows.offsets
    known = examples.weights > 0
    asked = np.bincount(owner[known], minlength=len(examples)) > 0
    place = np.arange(len(owner)) - offsets[owner]
    unseen = (numbers(examples.rows.columns["shown"]) == 0) & (place >= config.passed_over)
    return np.flatnonzero(asked[owner] & (known | unseen))


def _boosted(
    config: Config,
    params: Params,
    examples: Examples[Query],
    rows: Ints,
    clicked: Array,
    look: Array,
    late: NDArray[np.bool_],
    usual: float,
) -> lgb.Booster:
    """clicked, look, late: of those rows."""

    def loss(margin: Array, data: lgb.Dataset) -> tuple[Array, Array]:
        """Gradient and expected curvature of the negative log likelihood."""
        y, chance = looks_at(data)
        attraction = expit(margin)
        p = np.minimum(chance * attraction, 1 - SMALLEST)
        slope = (1 - attraction) / (1 - p)
        return (p - y) * slope, p * (1 - attraction) * slope

    def looks_at(data: lgb.Dataset) -> tuple[Array, Array]:
        part = late if data.reference is not None else ~late
        return clicked[part], look[part]

    def surprise(margin: Array, data: lgb.Dataset) -> tuple[str, float, bool]:
        y, chance = looks_at(data)
        p = np.clip(chance * expit(margin), SMALLEST, 1 - SMALLEST)
        return "surprise", float(-(y * np.log(p) + (1 - y) * np.log1p(-p)).mean()), False

    options = {
        **params, "objective": loss, "metric": "none", "verbosity": -1, "seed": config.seed, "max_bin": config.max_bin,
        "deterministic": True, "force_row_wise": True, "num_threads": config.threads,
    }  # fmt: skip
    names = [name.replace(".", "__") for name in examples.names]  # LightGBM allows no dots in JSON
    early, held = rows[~late], rows[late]
    data = lgb.Dataset(examples.x[early], clicked[~late], init_score=np.full(len(early), usual), feature_name=names)
    booster = lgb.train(
        options, data, num_boost_round=config.trees,
        valid_sets=[data.create_valid(examples.x[held], clicked[late], init_score=np.full(len(held), usual))],
        feval=surprise, callbacks=[lgb.early_stopping(config.patience, verbose=False)],
    )  # fmt: skip
    return lgb.Booster(model_str=booster.model_to_string())  # what is judged is what will be loaded


def _log_odds(p: Array) -> Array:
    return np.asarray(logit(np.clip(p, SMALLEST, 1 - SMALLEST)))
