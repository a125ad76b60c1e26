"""How good the rankings are: by the truth where a world tells it, else by clicks, each counted for its place."""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import log_loss

from common.features.view import Array, numbers
from common.registry.gates import CHAMPION, Gate
from common.system import Examples, Report, Rows
from systems.search.config import Config
from systems.search.data import Query
from systems.search.model.clicks import Examination, estimate
from systems.search.model.ranker import Ranker, ordered, ranks

Flags = NDArray[np.bool_]

AT: Final = 10  # of nDCG
FOUND: Final = 100  # of recall
GOOD: Final = 2  # relevance that the reciprocal rank looks for: at most one wish is not met
BINS: Final = 10  # of the calibration error
REPEATS: Final = 200  # of the bootstrap
LOW: Final = 0.005  # its lower end


class Ranks(Protocol):
    @property
    def ranker(self) -> Ranker: ...
    def widened(self, requests: Sequence[Query], rows: Rows, x: Array) -> Array: ...


def evaluate(config: Config, model: Ranks, examples: Examples[Query]) -> Report:
    """By query, each counted once. BM25 finds only what shares a word with the query.

    A query for which nothing is relevant, or nothing is found, has an nDCG of 0, as its ceiling has. Without a truth
    only queries with a click can be judged, and of them the order of what was shown (condensed lists, Sakai 2007): a
    ranker that would have shown something else must not lose because nobody could click on it.
    """
    offsets, columns = examples.rows.offsets, examples.rows.columns
    ranker = model.ranker
    scores = ranker.attraction(model.widened(examples.requests, examples.rows, examples.x), threads=config.threads)
    everything = np.ones(len(scores), bool)
    lexical, dense, fused = (numbers(columns[name]) for name in ("lexical", "dense", "fused"))
    looks = estimate(config, examples)  # the same for all that are compared
    found = judged(examples, looks, scores, everything)
    metrics = means(found) | satisfied(examples, ranker, scores)
    if examples.ceiling is not None:
        metrics["above_ceiling"] = above(examples, found["ndcg_at_10"])
    return Report(
        metrics=metrics,
        baselines={
            "bm25": means(judged(examples, looks, lexical, lexical > 0)),
            "dense": means(judged(examples, looks, dense, everything)),
            "fused": means(judged(examples, looks, fused, everything)),
        },
        ceiling={} if examples.ceiling is None else {"ndcg_at_10": float(examples.ceiling.mean())},
        segments={
            name: {"queries": float(group.sum())} | means({metric: v[group] for metric, v in found.items()})
            for name, group in examples.segments.items()
            if group.any()
        },
        rows=len(offsets) - 1,
    )


def judged(examples: Examples[Query], looks: Examination, scores: Array, is_found: Flags) -> dict[str, Array]:
    """By metric, of each query, (n_requests,); NaN where it says nothing. Equal scores stay in retrieval's order."""
    offsets, owner, n = examples.rows.offsets, examples.rows.owner, len(examples)
    ideal = np.zeros(n)
    counted = is_found if examples.truth else is_found & (examples.weights > 0)
    rank = ranks(ordered(np.where(counted, scores, -np.inf), offsets), offsets)
    discount = np.where(counted & (rank <= AT), 1 / np.log2(rank + 1), 0.0)
    if examples.truth:
        relevance = examples.truth["relevance"]
        ideal[owner] = examples.truth["ideal"]
        relevant = np.zeros(n)
        relevant[owner] = examples.truth["relevant"]
        dcg = np.bincount(owner, (2**relevance - 1) * discount, n)
        ndcg = np.divide(dcg, ideal, out=np.zeros(n), where=ideal > 0)
        kept = np.bincount(owner[is_found & (rank <= FOUND) & (relevance > 0)], minlength=n)
        recall = np.divide(kept, relevant, out=np.full(n, np.nan), where=relevant > 0)
        first, good = np.full(n, np.inf), counted & (relevance >= GOOD)
        np.minimum.at(first, owner[good], rank[good].astype(float))
        reciprocal = 1 / first
    else:
        is_phone, position = (numbers(examples.rows.columns[name]) for name in ("is_phone", "rank"))
        clicked = examples.labels > 0
        gain = np.where(clicked, looks.weights(position, is_phone), 0.0)
        best = ranks(ordered(gain, offsets), offsets)
        ideal[:] = np.bincount(owner, np.where(best <= AT, gain / np.log2(best + 1), 0.0), n)
        told = ideal > 0
        # by that of the mean query: by its own, the weight of an only click would cancel out
        ndcg = np.where(
            told, np.bincount(owner, gain * discount, n) / max(ideal.sum() / max(told.sum(), 1), 1e-9), np.nan
        )
        reciprocal = recall = np.full(n, np.nan)
    some = np.bincount(owner[is_found], minlength=n) > 0
    return {
        f"ndcg_at_{AT}": ndcg,
        "mrr": reciprocal,
        f"recall_at_{FOUND}": recall,
        "zero_result_rate": (~some).astype(float),
    }


def means(found: Mapping[str, Array]) -> dict[str, float]:
    """Over the queries that say something; a metric of which none does is left out."""
    return {name: float(np.nanmean(v)) for name, v in found.items() if not np.isnan(v).all()}


def satisfied(examples: Examples[Query], ranker: Ranker, scores: Array) -> dict[str, float]:
    """What is said of a click on the page that was shown, against whether there was one."""
    offsets, owner, n = examples.rows.offsets, examples.rows.owner, len(examples)
    position, is_phone = (numbers(examples.rows.columns[name]) for name in ("rank", "is_phone"))
    seen = examples.weights > 0
    asked = np.bincount(owner[seen], minlength=n) > 0
    if not asked.any():
        return {}
    clicked = (np.bincount(owner[examples.labels > 0], minlength=n) > 0)[asked].astype(float)
    p = ranker.satisfaction(scores, np.where(seen, position, 0), is_phone, offsets)[asked]
    return {
        "click_through": float(clicked.mean()),
        "calibration_error": calibration_error(p, clicked),
        "log_loss": float(log_loss(clicked, p, labels=[0, 1])),
    }


def calibration_error(p: Array, y: Array) -> float:
    """Mean distance of stated and true share over bins of equal size (Naeini et al. 2015)."""
    parts = np.array_split(np.argsort(p, kind="stable"), min(BINS, len(p)))
    return float(sum(abs(p[part].sum() - y[part].sum()) for part in parts) / len(p))


def above(examples: Examples[Query], ndcg: Array) -> float:
    """How far the mean nDCG@10 is above its ceiling, at the lower end of a bootstrap over shoppers.

    Above 0 the model knows something that cannot be known: a leak.
    """
    assert examples.ceiling is not None  # asked only where a world tells
    _, shopper = np.unique([query.shopper_id for query in examples.requests], return_inverse=True)
    n = int(shopper.max()) + 1
    gap, count = np.bincount(shopper, ndcg - examples.ceiling, n), np.bincount(shopper, minlength=n)
    drawn = np.random.default_rng(0).integers(0, n, (REPEATS, n))
    return float(np.quantile(gap[drawn].sum(axis=1) / count[drawn].sum(axis=1), LOW))


def gates(config: Config) -> tuple[Gate, ...]:
    return (
        Gate(metric="ndcg_at_10", limit=1.02, better="higher", against="bm25"),
        Gate(metric="ndcg_at_10", limit=1.0, better="higher", against="fused"),
        Gate(metric="ndcg_at_10", limit=0.99, better="higher", against=CHAMPION),
        Gate(metric="zero_result_rate", limit=0.05, better="lower"),
        Gate(metric="calibration_error", limit=0.1, better="lower"),
        Gate(metric="above_ceiling", limit=0.0, better="lower", needs_ceiling=True),
    )


def retrain_gates(config: Config) -> tuple[Gate, ...]:
    """Better than the champion that no longer fits, and not broken."""
    return (
        Gate(metric="ndcg_at_10", limit=1.0, better="higher", against=CHAMPION),
        Gate(metric="ndcg_at_10", limit=1.0, better="higher", against="bm25"),
        Gate(metric="zero_result_rate", limit=0.1, better="lower"),
        Gate(metric="calibration_error", limit=0.15, better="lower"),
    )
