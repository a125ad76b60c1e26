"""How a ranking is judged, as trec_eval does, and how one is chosen without looking at the test part."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from systems.search.benchmark.dataset import Judgements

Floats = NDArray[np.floating]
Index = NDArray[np.int64]
Values = NDArray[np.float64]

FOLDS: Final = 5
RESAMPLED: Final = 10_000


def ranked(scores: Floats, ids: Sequence[str], k: int) -> Index:
    """Places of the k best documents, (n_documents,) -> (k,); of equal scores, the greater id first, as trec_eval."""
    worst = np.partition(scores, -k)[-k] if k < len(scores) else -np.inf
    kept = np.flatnonzero(scores >= worst)
    return np.array(sorted(kept.tolist(), key=lambda i: (scores[i], ids[i]), reverse=True)[:k], np.int64)


def ndcg(ranking: Sequence[int] | Index, grades: Mapping[int, int], k: int = 10) -> float:
    """Järvelin and Kekäläinen 2002, with the grade as gain."""
    discount = 1 / np.log2(np.arange(k) + 2)
    gains = [grades.get(int(place), 0) for place in ranking[:k]]
    best = sorted(grades.values(), reverse=True)[:k]
    return float(gains @ discount[: len(gains)] / (best @ discount[: len(best)]))


def recall(ranking: Sequence[int] | Index, grades: Mapping[int, int], k: int = 100) -> float:
    return sum(int(place) in grades for place in ranking[:k]) / len(grades)


def judge(scores: Floats, ids: Sequence[str], judged: Judgements) -> tuple[Values, Values]:
    """nDCG@10 and recall@100 of each judged query; scores are (n_judged, n_documents), in the order of `judged`."""
    rankings = [ranked(row, ids, 100) for row in scores]
    pairs = list(zip(rankings, judged.values(), strict=True))
    return np.array([ndcg(*pair) for pair in pairs]), np.array([recall(*pair) for pair in pairs])


def folds(judged: Judgements, seed: int = 0) -> Iterator[tuple[Index, Index]]:
    """Of the judged queries, by their order: those to learn from and those held out.

    Queries that share a relevant document are in the same fold: else a method could remember which documents are ever
    relevant, and look better here than it is.
    """
    relevant = [list(grades) for grades in judged.values()]
    n, documents = len(relevant), 1 + max(d for row in relevant for d in row)
    query = np.repeat(np.arange(n), [len(row) for row in relevant])
    document = np.concatenate([np.array(row) for row in relevant])
    edges = coo_array((np.ones(len(query)), (query, n + document)), shape=(n + documents, n + documents))
    group = connected_components(edges, directed=False)[1][:n]
    names, group, size = np.unique(group, return_inverse=True, return_counts=True)
    held, filled = np.zeros(len(names), np.int64), np.zeros(FOLDS)
    for name in sorted(np.random.default_rng(seed).permutation(len(names)).tolist(), key=lambda g: -size[g]):
        held[name] = filled.argmin()
        filled[held[name]] += size[name]
    for fold in range(FOLDS):
        yield np.flatnonzero(held[group] != fold), np.flatnonzero(held[group] == fold)


def interval(values: Values, seed: int = 0) -> dict[str, float]:
    """The mean and, by bootstrap over queries, where 95 % of means lie (Sakai 2006)."""
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLED, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}
