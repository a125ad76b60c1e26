"""What a model's decisions cost, against what banks did before, a simpler model, and the best that is possible."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from common.clock import DAY
from common.errors import BadSetting
from common.features.view import Array
from common.registry.gates import CHAMPION, Gate
from common.system import Examples, Report
from systems.fraud.config import Config
from systems.fraud.data import Payment
from systems.fraud.model import Scorer, best_action, costs

BINS = 10  # of the calibration error
REPEATS = 200  # of the bootstrap
LOW = 0.005  # its lower end
FLOOD = 2  # times the analysts' budget: more would be lost on them


@dataclass(frozen=True)
class Judged:
    """Test payments whose outcome is known, as columns of length n."""

    card: NDArray[np.object_]
    amount: Array  # EUR
    day: NDArray[np.int64]
    fraud: Array  # 0 or 1
    weight: Array  # 1 / propensity

    def only(self, keep: NDArray[np.bool_]) -> "Judged":
        return Judged(self.card[keep], self.amount[keep], self.day[keep], self.fraud[keep], self.weight[keep])


def evaluate(config: Config, model: Scorer, examples: Examples[Payment]) -> Report:
    """By payment whose outcome is known, weighted by 1 / the chance to know it; card precision is not weighted."""
    known = examples.weights > 0
    columns = examples.rows.columns
    amount = columns["amount"].to_numpy()[known]
    judged = Judged(
        columns["card_id"].to_numpy()[known].astype(object), amount, (examples.as_of[known] - examples.as_of[0]) // DAY,
        examples.labels[known], examples.weights[known],
    )  # fmt: skip
    frauds = int(judged.fraud.sum())
    if not 0 < frauds < len(amount):
        raise BadSetting(f"test: must have frauds and honest payments, got {frauds} frauds of {len(amount)}")
    x = examples.x[known]
    p, simpler = model.probability(x), model.line.probability(x)

    def measure(p: Array) -> dict[str, float]:
        return metrics(config, judged, p, best_action(config, p, amount, model.review_price))

    found = measure(p)
    baselines = {
        "approve_all": metrics(config, judged, np.full(len(p), config.base_rate), np.zeros(len(p), np.int64)),
        "amount_rule": metrics(config, judged, amount / 1e6, np.where(amount > config.rule_amount, 2, 0)),
        "logistic_regression": measure(simpler),
    }
    ceiling = {}
    groups = {
        "new cards": columns["card_age_days"].to_numpy()[known] < 30,
        "high amounts": amount > np.quantile(amount, 0.95),
        **{name: group[known] for name, group in examples.segments.items()},
    }
    segments = {
        name: _segment(config, judged, p, model.review_price, group) for name, group in groups.items() if group.any()
    }
    if examples.ceiling is not None:
        best = examples.ceiling[known]
        ceiling = measure(best)
        found["above_ceiling"] = above(judged, p, best)
    return Report(metrics=found, baselines=baselines, ceiling=ceiling, segments=segments, rows=len(p))


def metrics(config: Config, judged: Judged, p: Array, action: NDArray[np.int64]) -> dict[str, float]:
    """p: (n,) sorts and is judged as a probability; action: (n,) 0 approve, 1 review, 2 block."""
    days = len(np.unique(judged.day))
    wanted = float((judged.weight * (action == 1)).sum() / days)
    action = within_budget(config, judged, p, action)
    n = judged.weight.sum()
    two_classes = 0 < judged.fraud.sum() < len(judged.fraud)
    honest, stolen = judged.weight * (1 - judged.fraud), judged.weight * judged.fraud
    k = config.cards_per_day
    return {
        "cost_per_1000": float(1_000 * (judged.weight * spent(config, judged, action)).sum() / n),  # EUR
        "average_precision": float(average_precision_score(judged.fraud, p, sample_weight=judged.weight)),
        "auc_roc": float(roc_auc_score(judged.fraud, p, sample_weight=judged.weight)) if two_classes else float("nan"),
        f"card_precision_at_{k}": card_precision(judged.card, judged.day, judged.fraud, p, k),
        "calibration_error": calibration_error(judged, p),
        "reviews_wanted_per_day": wanted,  # the analysts' budget allows fewer on some days
        "honest_blocked": float((honest * (action == 2)).sum() * (1 - config.let_through) / honest.sum()),  # share
        "fraud_stopped": float((stolen * stops(config, action)).sum() / max(stolen.sum(), 1)),  # share
    }


def within_budget(config: Config, judged: Judged, p: Array, action: NDArray[np.int64]) -> NDArray[np.int64]:
    """The analysts look at the first so many of a day; for the rest, the cheaper of approving and blocking."""
    reviewed = np.flatnonzero(action == 1)
    day = judged.day[reviewed]
    nth = np.arange(len(day)) - np.searchsorted(day, day)  # of its day; days ascend
    late = reviewed[nth >= config.reviews_per_day]
    approve, _, block = costs(config, p[late], judged.amount[late])
    action = action.copy()
    action[late] = np.where(block < approve, 2, 0)
    return action


def spent(config: Config, judged: Judged, action: NDArray[np.int64]) -> Array:
    """EUR per payment, once the truth is known; of what is blocked, the usual share is let through."""
    stolen = judged.fraud * (judged.amount + config.chargeback_fee)
    q = config.let_through
    blocked = (1 - q) * (1 - judged.fraud) * config.friction_cost + q * stolen
    return np.choose(action, [stolen, np.full(len(stolen), config.review_cost), blocked])


def stops(config: Config, action: NDArray[np.int64]) -> Array:
    """The chance that an action keeps a fraud from happening, (n,)."""
    return np.choose(action, [0.0, 1.0, 1 - config.let_through])


def card_precision(card: NDArray[np.object_], day: NDArray[np.int64], fraud: Array, p: Array, k: int) -> float:
    """Of the k most suspicious cards of a day, the share with a fraud that day; a card once found is not counted again.

    Mean over days. Le Borgne et al. 2022, Reproducible Machine Learning for Credit Card Fraud Detection, chapter 4.
    """
    found: set[object] = set()
    shares = []
    for today in np.unique(day):
        here = np.flatnonzero(day == today)
        score: dict[object, float] = {}
        is_fraud: dict[object, float] = {}
        for who, how_much, bad in zip(card[here].tolist(), p[here].tolist(), fraud[here].tolist(), strict=True):
            if who not in found:
                score[who] = max(score.get(who, 0.0), how_much)
                is_fraud[who] = max(is_fraud.get(who, 0.0), bad)
        top = sorted(score, key=lambda who: -score[who])[:k]
        hits = {who for who in top if is_fraud[who]}
        found |= hits
        shares.append(len(hits) / k)
    return float(np.mean(shares))


def calibration_error(judged: Judged, p: Array) -> float:
    """Mean distance of stated and true share of fraud over bins of equal mass of stated fraud (Naeini et al. 2015).

    Bins of equal numbers of payments would put all that matters into the last one.
    """
    order = np.argsort(p, kind="stable")
    mass = np.cumsum((judged.weight * p)[order])
    bins = np.minimum((mass / mass[-1] * BINS).astype(np.int64), BINS - 1)
    n, said, true = (
        np.bincount(bins, v[order], BINS) for v in (judged.weight, judged.weight * p, judged.weight * judged.fraud)
    )
    return float(np.abs(said - true).sum() / n.sum())


def above(judged: Judged, p: Array, best: Array) -> float:
    """How far the model's average precision is above the ceiling's, at the lower end of a bootstrap over cards.

    Above 0 the model knows something that cannot be known: a leak.
    """
    rng = np.random.default_rng(0)
    _, card = np.unique(judged.card.astype(str), return_inverse=True)
    gaps = []
    for _ in range(REPEATS):
        times = np.bincount(rng.integers(0, card.max() + 1, card.max() + 1), minlength=card.max() + 1)[card]
        drawn = times > 0
        weight = (judged.weight * times)[drawn]
        if judged.fraud[drawn].any():
            gaps.append(
                average_precision_score(judged.fraud[drawn], p[drawn], sample_weight=weight)
                - average_precision_score(judged.fraud[drawn], best[drawn], sample_weight=weight)
            )
    return float(np.quantile(gaps, LOW))


def _segment(config: Config, judged: Judged, p: Array, price: float, group: NDArray[np.bool_]) -> dict[str, float]:
    part, p = judged.only(group), p[group]
    action = within_budget(config, part, p, best_action(config, p, part.amount, price))
    stolen = part.weight * part.fraud
    out = {
        "payments": float(group.sum()),
        "frauds": float(part.fraud.sum()),
        "cost_per_1000": float(1_000 * (part.weight * spent(config, part, action)).sum() / part.weight.sum()),
        "fraud_stopped": float((stolen * stops(config, action)).sum() / max(stolen.sum(), 1)),
    }
    if 0 < part.fraud.sum() < len(p):
        out["average_precision"] = float(average_precision_score(part.fraud, p, sample_weight=part.weight))
    return out


def gates(config: Config) -> tuple[Gate, ...]:
    return (
        Gate(metric="cost_per_1000", limit=0.8, better="lower", against="amount_rule"),
        # not its cost: in a few weeks that hangs on a handful of large frauds, the ranking on all of them
        Gate(metric="average_precision", limit=1.1, better="higher", against="logistic_regression"),
        Gate(metric="cost_per_1000", limit=1.02, better="lower", against=CHAMPION),
        # a wave of fraud surprises every model, but beyond this an expected cost means nothing
        Gate(metric="calibration_error", limit=2 * config.base_rate, better="lower"),
        Gate(metric="reviews_wanted_per_day", limit=FLOOD * config.reviews_per_day, better="lower"),
        Gate(metric="above_ceiling", limit=0.0, better="lower", needs_ceiling=True),
    )


def retrain_gates(config: Config) -> tuple[Gate, ...]:
    """Better than the champion that no longer fits, and not broken; what was asked before may now be out of reach."""
    return (
        Gate(metric="cost_per_1000", limit=1.0, better="lower", against=CHAMPION),
        Gate(metric="average_precision", limit=1.0, better="higher", against=CHAMPION),
        Gate(metric="calibration_error", limit=2 * config.base_rate, better="lower"),
        Gate(metric="reviews_wanted_per_day", limit=FLOOD * config.reviews_per_day, better="lower"),
    )
