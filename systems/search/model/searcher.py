"""The whole of a version: an index, a ranker of what it finds, and what a click on each place counts for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from common.encoder import making, weights
from common.encoder.weights import Floats
from common.errors import NotFound
from common.features.view import Array, ints
from common.schema import from_table
from common.system import Answered, Examples, Params, RowError, Rows
from systems.search.config import SMALL, Config
from systems.search.data import Hit, Query, Results, redacted
from systems.search.data.catalogue import NEVER, catalogue
from systems.search.model.affinity import Affinity, learn
from systems.search.model.clicks import RANKS, assumed, estimate
from systems.search.model.index import Encodes, Index, Mute
from systems.search.model.ranker import Ranker
from systems.search.model.retrieval import NO_NOTE, Note

SAMPLED: Final = 128  # products of our own shop, by whose texts it is seen how large the encoder's numbers become
REMEMBERED: Final = 100_000  # vectors
THREADS: Final = 2  # of the encoder, while versions are made
UNKNOWN: Final = 0.5  # P(click) where nothing was learned


@dataclass(frozen=True)
class Found:
    """What a version says to one query."""

    order: tuple[int, ...]  # its rows, the best first, to the end of the page, at least of the usual first one
    hits: tuple[Hit, ...]  # of that page
    weights: tuple[float, ...]  # what a click on each place of that page counts for
    satisfaction: float  # P(a click on the page)
    note: Note


@dataclass(frozen=True)
class Searcher:
    config: Config
    index: Index
    affinity: Affinity
    ranker: Ranker

    def rows(self, requests: Sequence[Query]) -> Rows:
        return self.index.find([redacted(query) for query in requests])

    def hear(self, events: pa.Table) -> None:
        self.index.hear(events)

    def suggest(self, text: str) -> list[str]:
        return self.index.suggest(text)

    def predict(self, requests: Sequence[Query], rows: Rows, x: Array) -> Sequence[Found | RowError]:
        ranked = self.ranker.rank(self.widened(requests, rows, x), rows.offsets)
        pages = [self.ranker.weights(query.device, range(*_places(query))) for query in requests]
        return _found(self.index, requests, rows, ranked.scores, ranked.order, pages, ranked.satisfaction)

    def widened(self, requests: Sequence[Query], rows: Rows, x: Array) -> Array:
        """The features with what the model adds to them, (n_rows, n_features + 1)."""
        asked = [redacted(query) for query in requests]
        return np.column_stack([x, self.affinity.of(self.index, asked, rows)])

    def save(self, folder: Path) -> None:
        self.index.save(folder / "index")
        self.affinity.save(folder)
        self.ranker.save(folder)


def load(config: Config, folder: Path) -> Searcher:
    return Searcher(config, Index.load(config, folder / "index"), Affinity.load(folder), Ranker.load(folder))


@dataclass
class Plain:
    """How a shop searches that has learned nothing: by words alone. It answers the history of a new world."""

    config: Config
    _index: Index | None = None

    def rows(self, requests: Sequence[Query]) -> Rows:
        if self._index is None:
            return Rows(pa.table({}), np.zeros(len(requests) + 1, np.int64))
        return self._index.find([redacted(query) for query in requests])

    def hear(self, events: pa.Table) -> None:
        if self._index is None:
            self._index = Index.build(self.config, events, Mute())
        else:
            self._index.hear(events)

    def predict(self, requests: Sequence[Query], rows: Rows, x: Array) -> Sequence[Found | RowError]:
        if self._index is None:
            return [Found((), (), (), UNKNOWN, NO_NOTE) for _ in requests]
        looks = assumed(self.config)
        ranks = [np.arange(*_places(query), dtype=np.float64) + 1 for query in requests]
        phones = [np.full(query.page_size, query.device == "phone") for query in requests]
        pages = [looks.weights(rank, phone) for rank, phone in zip(ranks, phones, strict=True)]
        order = np.arange(rows.columns.num_rows)  # retrieval's
        scores = rows.columns["fused"].to_numpy()
        return _found(self._index, requests, rows, scores, order, pages, np.full(len(requests), UNKNOWN))

    def save(self, folder: Path) -> None:
        """It has learned nothing, so it is never a version."""
        raise NotImplementedError


def _places(query: Query) -> tuple[int, int]:
    """Of the page that was asked for, counted from 0."""
    return (query.page - 1) * query.page_size, query.page * query.page_size


def _found(
    index: Index,
    requests: Sequence[Query],
    rows: Rows,
    scores: Array,
    order: np.ndarray[Any, np.dtype[np.int64]],
    weights: Sequence[Array],
    satisfaction: Array,
) -> list[Found]:
    """scores, order: (n_rows,), the rows of each request in the order of their scores."""
    ids, prices = (rows.columns[name].to_numpy() for name in ("product_id", "price"))
    out = []
    for i, query in enumerate(requests):
        first, last = rows.offsets[i : i + 2].tolist()
        start, stop = _places(query)
        best = order[first:last][: max(stop, RANKS)]  # those of a short page would not say how satisfying it is
        page = best[start:stop]
        note = NO_NOTE if rows.notes is None else rows.notes[i]
        hits = index.hits(query, note, ids[page].tolist(), scores[page].tolist(), prices[page].tolist())
        found = tuple((best - first).tolist())
        out.append(Found(found, hits, tuple(weights[i][: len(hits)].tolist()), float(satisfaction[i]), note))
    return out


class Remembering:
    """An encoder that does not encode a product's text again for the next snapshot."""

    def __init__(self, encoder: Encodes) -> None:
        self._encoder, self._known = encoder, dict[str, Floats]()

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return self._encoder.tokens(texts)

    def encode(self, texts: Sequence[str]) -> Floats:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if len(self._known) + len(new) > REMEMBERED:
            self._known, new = {}, list(dict.fromkeys(texts))
        self._known |= zip(new, self._encoder.encode(new), strict=True)
        return np.stack([self._known[text] for text in texts]) if texts else self._encoder.encode([])

    def save(self, folder: Path) -> None:
        self._encoder.save(folder)


@dataclass
class Library:
    """What all versions of one process share: the encoder, and the index of the last snapshot, each made once."""

    config: Config
    _encoder: Encodes | None = None
    _of: tuple[int, int] | None = None  # products and queries told to the index
    _index: Index | None = field(default=None, repr=False)

    @property
    def encoder(self) -> Encodes:
        if self._encoder is None:
            shop = catalogue(replace(SMALL, products=SAMPLED), 0, NEVER)
            texts = [*shop.titles, *(f"{t}. {d}" for t, d in zip(shop.titles, shop.descriptions, strict=True))]
            self._encoder = Remembering(making.int8(weights.configured(), texts, THREADS))
        return self._encoder

    def index(self, products: pa.Table, queries: pa.Table) -> Index:
        """Of a snapshot's products, with what was asked until then; a copy that may hear of more. Raises NotFound."""
        if not products.num_rows:
            raise NotFound("search: the log holds no Product")
        of = (int(products["position"][-1].as_py()), queries.num_rows)
        if self._index is None or self._of != of:
            self._index, self._of = Index.build(self.config, products, self.encoder, queries), of
        return self._index.copy()

    def replay(self, asked: pa.Table, events: Mapping[str, pa.Table]) -> Rows:
        """The rows of logged queries as of their time, and which of them were shown where."""
        wanted = set(asked["event_id"].to_pylist())
        said = events[Answered.__name__].select(["request_id", "answer"]).to_pylist()
        shown: dict[str, dict[str, int]] = {}
        for row in said:
            if row["request_id"] in wanted:
                hits = Results.model_validate_json(row["answer"]).hits
                shown[row["request_id"]] = {hit.product_id: rank for rank, hit in enumerate(hits, 1)}
        queries = from_table(Query, asked)
        for query in queries:
            if query.page > 1 and query.event_id in shown:
                before = (query.page - 1) * query.page_size
                shown[query.event_id] = {name: rank + before for name, rank in shown[query.event_id].items()}
        products = events["Product"]
        index = self.index(products, events["Query"])
        of_each = [shown.get(query.event_id, {}) for query in queries]
        return index.replay(queries, ints(asked["created_timestamp"]), products, of_each)

    def fit(self, examples: Examples[Query], params: Params) -> Searcher:
        index = self.index(examples.events["Product"], examples.events["Query"])
        looks = estimate(self.config, examples)
        known, affinity = learn(index, examples, looks)
        wide = replace(examples, x=np.column_stack([examples.x, known]), names=(*examples.names, "affinity"))
        return Searcher(self.config, index, affinity, Ranker.taught(self.config, wide, params, looks))
