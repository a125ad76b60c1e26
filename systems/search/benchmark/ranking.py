"""What is known of each document for a query, and the weights by which that becomes one order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from common.encoder.weights import Floats
from systems.search.benchmark.dataset import Collection, Judgements
from systems.search.benchmark.protocol import Index, Values
from systems.search.model.fusion import standardised
from systems.search.model.lexical import Analyser, LexicalIndex

Signals = Mapping[str, NDArray[np.float64]]  # name -> (n_queries, n_documents), standardised for each query
Weights = dict[str, float]

K1, B, TITLE_REPEATS = 1.5, 0.75, 3  # nDCG@10 on the training queries hardly depends on them: .694 to .704
WINDOW: Final = 3  # sentences of a passage; each begins where the last ended
FED_BACK: Final = 5  # documents whose mean is a second query
FIRST: Final = 3.0  # weight of the vectors, to 1 of BM25, by which these documents are found
POOL: Final = 100  # best of each signal
STEPS: Final = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
ROUNDS: Final = 4  # of coordinate ascent, at most


class Encodes(Protocol):
    def encode(self, texts: Sequence[str]) -> Floats: ...


@dataclass(frozen=True)
class Vectors:
    """By the encoder, of length 1."""

    queries: Floats
    documents: Floats  # title and text
    titles: Floats
    passages: Floats
    owner: Index  # (n_passages,) the document of each


def whole(data: Collection) -> list[str]:
    return [f"{title} {text}".strip() for title, text in zip(data.titles, data.texts, strict=True)]


def passages(data: Collection) -> tuple[list[str], Index]:
    """A few sentences each, and whose they are; a document without text is a passage of its title."""
    found: list[str] = []
    owner: list[int] = []
    for place, (title, text) in enumerate(zip(data.titles, data.texts, strict=True)):
        sentences = text.replace("? ", ". ").split(". ")
        parts = [". ".join(sentences[at : at + WINDOW]) for at in range(0, len(sentences), WINDOW)]
        found += [part for part in parts if part] or [title]
        owner += [place] * (len(found) - len(owner))
    return found, np.array(owner, np.int64)


def encode(encoder: Encodes, data: Collection, queries: Sequence[str]) -> Vectors:
    parts, owner = passages(data)
    return Vectors(
        encoder.encode(queries), encoder.encode(whole(data)), encoder.encode(data.titles), encoder.encode(parts), owner
    )


def lexical(data: Collection, queries: Sequence[str]) -> dict[str, Floats]:
    """BM25 of titles and texts together, of each alone, and of pairs of neighbouring terms; (n_queries, n) each."""
    analyser = Analyser()
    titles, texts = ([analyser.terms(text) for text in some] for some in (data.titles, data.texts))
    asked = [analyser.terms(query) for query in queries]

    def scores(of: Sequence[list[str]], documents: Sequence[Mapping[str, list[str]]], **repeats: int) -> Floats:
        index = LexicalIndex.build(documents, repeats, K1, B)
        return np.stack([index.scores(terms) for terms in of])

    terms = [{"title": title, "text": text} for title, text in zip(titles, texts, strict=True)]
    pairs = [{"pair": _pairs(title) + _pairs(text)} for title, text in zip(titles, texts, strict=True)]
    return {
        "bm25": scores(asked, terms, title=TITLE_REPEATS, text=1),
        "bm25 title": scores(asked, terms, title=1),
        "bm25 text": scores(asked, terms, text=1),
        "bm25 pairs": scores([_pairs(t) for t in asked], pairs, pair=1),
    }


def _pairs(terms: Sequence[str]) -> list[str]:
    return [" ".join(pair) for pair in pairwise(terms)]


def signals(found: Mapping[str, Floats], vectors: Vectors) -> Signals:
    """Of lexical scores and vectors of the same queries.

    Feedback (Rocchio 1971): what is near to the documents that BM25 and the vectors together put first, each by its
    share of a softmax over their scores.
    """
    near = vectors.queries @ vectors.passages.T
    starts = np.flatnonzero(np.diff(vectors.owner, prepend=-1))
    best = np.maximum.reduceat(near, starts, axis=1)  # each document's best passage
    out = {name: standardised(scores) for name, scores in found.items()} | {
        "dense": standardised(vectors.queries @ vectors.documents.T),
        "dense title": standardised(vectors.queries @ vectors.titles.T),
        "dense passage": standardised(best),
    }
    first = out["bm25"] + FIRST * out["dense"]
    top = np.argsort(-first, 1, kind="stable")[:, :FED_BACK]  # (n_queries, FED_BACK)
    score = np.take_along_axis(first, top, 1)
    share = np.exp(score - score.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    fed_back = (vectors.documents[top] * share[..., None]).sum(1)  # (n_queries, dimensions)
    return out | {"feedback": standardised(fed_back @ vectors.documents.T)}


def combined(parts: Signals, weights: Mapping[str, float]) -> Values:
    """(n_queries, n_documents)"""
    return np.asarray(sum(weight * parts[name] for name, weight in weights.items()), np.float64)


@dataclass(frozen=True)
class Pool:
    """The documents of each query that may get among the first: the best by any signal; padded with what never does."""

    values: NDArray[np.float64]  # (n_signals, n_queries, n_pooled)
    gains: NDArray[np.float64]  # (n_queries, n_pooled)
    ideal: Values  # (n_queries,)

    @classmethod
    def of(cls, parts: Signals, judged: Judgements) -> "Pool":
        names = list(parts)
        size = min(POOL, next(iter(parts.values())).shape[1])
        chosen = [
            np.unique(np.concatenate([np.argpartition(-parts[name][q], size - 1)[:size] for name in names]))
            for q in range(len(judged))
        ]
        width = max(map(len, chosen))
        values = np.full((len(names), len(judged), width), -1e3)
        gains = np.zeros((len(judged), width))
        ideal = np.zeros(len(judged))
        discount = 1 / np.log2(np.arange(10) + 2)
        for q, (places, grades) in enumerate(zip(chosen, judged.values(), strict=True)):
            for s, name in enumerate(names):
                values[s, q, : len(places)] = parts[name][q, places]
            gains[q, : len(places)] = [grades.get(int(place), 0) for place in places]
            best = sorted(grades.values(), reverse=True)[:10]
            ideal[q] = best @ discount[: len(best)]
        return cls(values, gains, ideal)

    def ndcg(self, weights: Values) -> Values:
        """nDCG@10 of each query for a weight of each signal, (n_queries,)."""
        score = np.tensordot(weights, self.values, 1)  # (n_queries, n_pooled)
        k = min(10, score.shape[1])
        top = np.argpartition(-score, k - 1, 1)[:, :k]
        order = np.take_along_axis(top, np.argsort(-np.take_along_axis(score, top, 1), 1, kind="stable"), 1)
        return np.asarray(np.take_along_axis(self.gains, order, 1) @ (1 / np.log2(np.arange(k) + 2)) / self.ideal)

    def some(self, queries: Index) -> "Pool":
        return Pool(self.values[:, queries], self.gains[queries], self.ideal[queries])


def ascend(pool: Pool, names: Sequence[str], used: Sequence[str], start: Mapping[str, float]) -> Weights:
    """Weights of the signals used by coordinate ascent on the mean nDCG@10 (Metzler and Croft 2007)."""
    weights = np.array([start.get(name, 0.0) for name in names])
    best = pool.ndcg(weights).mean()
    for _ in range(ROUNDS):
        before = best
        for name in used:
            at = names.index(name)
            for step in STEPS:
                tried = weights.copy()
                tried[at] = step
                if tried.any() and (found := pool.ndcg(tried).mean()) > best + 1e-4:  # not for one query's sake
                    best, weights = found, tried
        if best <= before:
            break
    return {name: float(w) for name, w in zip(names, weights, strict=True) if w}
