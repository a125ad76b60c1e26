"""The products of the shop as they can be found now: by words, by meaning, with filters.

Files of a saved index: Parquet, NumPy arrays, JSON, FAISS; the encoder, ONNX and JSON, is in a folder of its own.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Final, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.encoder import Encoder
from common.encoder.weights import Floats
from common.features.view import Times, ints, numbers
from common.system import Rows
from systems.search.config import Config
from systems.search.data.events import Hit, Query, normalise
from systems.search.model.dense import DenseIndex, Flags, NoVectors, Places, best
from systems.search.model.documents import TOLD, Documents, Lists, Shelf, words_of
from systems.search.model.lexical import Analyser, LexicalIndex
from systems.search.model.retrieval import Near, Note, Part, Stock, search, table, understood
from systems.search.model.spelling import Speller
from systems.search.model.suggest import Suggester, asked_often

REMEMBERED: Final = 4_096  # vectors of texts
TOGETHER: Final = 256  # queries that are compared with all vectors at once
MARKED: Final = 3  # tokens of a word that the encoder knows as a whole: it, and the marks of beginning and end


class Encodes(Protocol):
    def tokens(self, texts: Sequence[str]) -> list[list[int]]: ...
    def encode(self, texts: Sequence[str]) -> Floats: ...
    def save(self, folder: Path) -> None: ...


class Mute:
    """An encoder without vectors: words alone are searched."""

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return [[] for _ in texts]

    def encode(self, texts: Sequence[str]) -> Floats:
        return np.zeros((len(texts), 0), np.float32)

    def save(self, folder: Path) -> None:
        """There is nothing to save."""


class Index:
    """Thread-safe; what is heard is seen by the next search as a whole."""

    def __init__(self, config: Config, encoder: Encodes, stock: Stock, asked: Mapping[str, int]) -> None:
        """asked: normalised texts that may be suggested, by how many shoppers asked for them."""
        self.config, self._encoder, self._stock = config, encoder, stock
        documents, live = stock.documents, pa.array(stock.shelf.live)
        names = [*documents.categories[1], *documents.brands[1].names]
        titles = documents.table["title"].filter(live).to_pylist()
        words = Counter(stock.speller.sold) + Counter(stock.speller.asked)
        self._suggester = Suggester(asked, names, titles, words)
        self._writing = Lock()
        self._vectors = Vectors(encoder)

    @classmethod
    def build(cls, config: Config, products: pa.Table, encoder: Encodes, queries: pa.Table | None = None) -> Self:
        """Of logged products, in the order of the log; of queries it is learnt what may be suggested and is no slip."""
        none = Documents.none()
        last, listed_at = _latest(products)
        documents = none.extended(last).prepared()
        shelf = Shelf.bare(documents.categories[0], listed_at)
        shelf.put(np.arange(len(documents)), numbers(last["price"]), _flags(last["available"]))
        asked = {} if queries is None else asked_often(queries, config.asked_by)
        speller = _speller(words_of(last), {} if queries is None else _words_asked(config, queries), _knows(encoder))
        lexical = LexicalIndex.build(documents.terms(range(len(documents))), _repeats(config), config.k1, config.b)
        vectors = encoder.encode(documents.texts())
        dense = DenseIndex.build(vectors) if vectors.shape[1] else NoVectors()
        stock, analyser = Stock(documents, lexical, dense, shelf, speller), Analyser()
        right = {text: n for text, n in asked.items() if understood(stock, analyser, text).corrected is None}
        return cls(config, encoder, stock, right)

    def copy(self) -> "Index":
        """One that knows the same, and may hear of more."""
        return Index(self.config, self._encoder, self._stock, self._suggester.asked)

    def __len__(self) -> int:
        """Products that can be found."""
        return int(self._stock.shelf.live.sum())

    def hear(self, products: pa.Table) -> None:
        """Later products, in the order of the log. The last word on each counts: to hear it again does no harm."""
        with self._writing:
            self._stock = self._after(self._stock, products)

    def _after(self, stock: Stock, products: pa.Table) -> Stock:
        last, listed_at = _latest(products)
        known = [stock.documents.place.get(name, -1) for name in last["product_id"].to_pylist()]
        before = np.array(known, np.int64)
        same = before >= 0
        old = stock.documents.table.take(pa.array(before[same])).to_pylist()
        told = last.select(TOLD).filter(pa.array(same)).to_pylist()
        same[same] = [a == b for a, b in zip(old, told, strict=True)]
        fresh = last.filter(pa.array(~same))
        listed_at[before >= 0] = stock.shelf.listed_at[before[before >= 0]]

        documents, lexical, dense, speller = stock.documents, stock.lexical, stock.dense, stock.speller
        if fresh.num_rows:
            n = len(documents)
            documents = documents.extended(fresh).prepared()
            lexical = lexical.extended(documents.terms(range(n, len(documents))), _repeats(self.config))
            dense = dense.extended(self._encoder.encode(documents.texts(n)))
            speller = speller.extended(words_of(fresh))
        shelf = stock.shelf.grown(documents.categories[0], np.r_[stock.shelf.listed_at, listed_at[~same]])
        replaced = before[(before >= 0) & ~same]
        shelf.put(replaced, shelf.price[replaced], np.zeros(len(replaced), bool))
        places = before.copy()
        places[~same] = np.arange(len(documents) - fresh.num_rows, len(documents))
        shelf.put(places, numbers(last["price"]), _flags(last["available"]))
        return Stock(documents, lexical, dense, shelf, speller)

    def find(self, queries: Sequence[Query]) -> Rows:
        """The candidates of each query in the first order, with a Note each."""
        stock, analyser = self._stock, Analyser()
        said = [understood(stock, analyser, normalise(query.text)) for query in queries]
        vectors = self._vectors([one.text for one in said if one.terms])

        def near(text: str, keep: Flags, is_filtered: bool) -> tuple[Floats, Places]:
            vector = vectors[text] if text in vectors else self._vectors([text])[text]
            return vector, stock.dense.nearest(vector, self.config.candidates, keep, is_filtered)

        pairs = zip(queries, said, strict=True)
        parts = [search(self.config, stock, analyser, query, one, near, facets=True) for query, one in pairs]
        return _rows(stock, queries, parts, [part.note for part in parts])

    @property
    def documents(self) -> Documents:
        return self._stock.documents

    def terms(self, texts: Sequence[str]) -> list[tuple[str, ...]]:
        """Of each text, as it is searched for."""
        stock, analyser, known = self._stock, Analyser(), dict[str, tuple[str, ...]]()
        for text in dict.fromkeys(texts):
            known[text] = understood(stock, analyser, normalise(text)).terms
        return [known[text] for text in texts]

    def hits(
        self, query: Query, note: Note, ids: Sequence[str], scores: Sequence[float], prices: Sequence[float]
    ) -> tuple[Hit, ...]:
        """Of the products of a page; those that came after the candidates have no score of their own."""
        stock, analyser = self._stock, Analyser()
        told = {analyser.stem(word): word for word in analyser.words(note.corrected or query.text)}
        said = [(told.get(term, term), stock.documents.vocabulary.get(term, -1)) for term in note.terms]
        room = query.page_size - len(ids)
        later = note.deeper[:room]
        places = [stock.documents.place[name] for name in (*ids, *later)]
        costs = [*prices, *stock.shelf.price[places[len(ids) :]].tolist()]
        return tuple(
            stock.documents.hit(place, score, price, said)
            for place, score, price in zip(places, [*scores, *[0.0] * len(later)], costs, strict=True)
        )

    def suggest(self, prefix: str, n: int = 8) -> list[str]:
        """How it may go on. Products that were heard of later are not among it."""
        return self._suggester(prefix, n, self._stock.speller.correct)

    def replay(
        self,
        queries: Sequence[Query],
        as_of: Times,
        products: pa.Table,
        shown: Sequence[Mapping[str, int]] | None = None,
    ) -> Rows:
        """The rows as if each query had been asked at its time (us), with the prices and the products of that time.

        The statistics of words, the spelling and the texts are those of all that this index knows and of the products
        given, for it is by them that the index will serve. Near vectors are found exactly. shown: of each query, which
        products were shown and where, 1 being the first of the first page.
        """
        stock, analyser = self._after(self._stock, products), Analyser()
        shelf = Shelf.bare(stock.shelf.category, stock.shelf.listed_at)
        stock = replace(stock, shelf=shelf)
        order = np.argsort(as_of, kind="stable")
        said = [understood(stock, analyser, normalise(query.text)) for query in queries]
        vectors = dict(zip(texts := list({s.text: None for s in said}), self._encoder.encode(texts), strict=True))
        places = np.array([stock.documents.place[name] for name in products["product_id"].to_pylist()], np.int64)
        price, live = numbers(products["price"]), _flags(products["available"])
        told = np.searchsorted(ints(products["created_timestamp"]), as_of, side="right")
        known = 0  # of the products' events
        parts: dict[int, Part] = {}
        for start in range(0, len(order), TOGETHER):
            batch = order[start : start + TOGETHER].tolist()
            row = {text: i for i, text in enumerate({said[q].text: None for q in batch})}
            similarity = stock.dense.similarities(np.stack([vectors[text] for text in row]))

            near = self._exactly(stock, vectors, {text: similarity[i] for text, i in row.items()})
            for q in batch:
                if known < told[q]:
                    new = slice(known, known := int(told[q]))
                    shelf.put(places[new], price[new], live[new])
                parts[q] = search(self.config, stock, analyser, queries[q], said[q], near, facets=False)
        found = _rows(stock, queries, [parts[q] for q in range(len(queries))], None)
        return found if shown is None else replace(found, columns=_with_shown(found, shown))

    def _exactly(self, stock: Stock, vectors: Mapping[str, Floats], similarity: Mapping[str, Floats]) -> Near:
        def near(text: str, keep: Flags, _: bool) -> tuple[Floats, Places]:
            if text not in similarity:  # a bolder spelling
                vector = self._vectors([text])[text]
                return vector, stock.dense.nearest(vector, self.config.candidates, keep, exact=True)
            left = np.flatnonzero(keep)
            return vectors[text], left[best(similarity[text][left], self.config.candidates)]

        return near

    def save(self, folder: Path) -> None:
        stock, shelf = self._stock, self._stock.shelf
        folder.mkdir(parents=True, exist_ok=True)
        documents = stock.documents
        columns = {"price": shelf.price, "live": shelf.live, "listed_at": shelf.listed_at}
        kept = documents.table
        for name, column in columns.items():
            kept = kept.append_column(name, pa.array(column))
        pq.write_table(kept, folder / "products.parquet")
        np.savez(folder / "terms.npz", *documents.titles, *documents.others)
        np.save(folder / "later.npy", stock.dense.later())
        about = {
            "vocabulary": list(documents.vocabulary),
            "sold": stock.speller.sold,
            "words_asked": stock.speller.asked,
            "asked": self._suggester.asked,
        }
        (folder / "index.json").write_text(json.dumps(about), "utf-8")
        stock.lexical.save(folder / "lexical")
        stock.dense.save(folder)
        (folder / "encoder").mkdir(exist_ok=True)
        self._encoder.save(folder / "encoder")

    @classmethod
    def load(cls, config: Config, folder: Path) -> Self:
        """Of a verified bundle."""
        encoder = Encoder.load(folder / "encoder")
        kept = pq.read_table(folder / "products.parquet")
        about = json.loads((folder / "index.json").read_text("utf-8"))
        with np.load(folder / "terms.npz") as arrays:
            titles, others = Lists(arrays["arr_0"], arrays["arr_1"]), Lists(arrays["arr_2"], arrays["arr_3"])
        vocabulary = {term: i for i, term in enumerate(about["vocabulary"])}
        documents = Documents(kept.select(TOLD), vocabulary, titles, others).prepared()
        built = DenseIndex.load(folder)
        lexical = LexicalIndex.load(folder / "lexical")
        lexical = lexical.extended(documents.terms(range(len(built), len(documents))), _repeats(config))
        shelf = Shelf.bare(documents.categories[0], ints(kept["listed_at"]))
        shelf.put(np.arange(len(documents)), numbers(kept["price"]), _flags(kept["live"]))
        speller = Speller(about["sold"], about["words_asked"], _knows(encoder))
        dense = built.extended(np.load(folder / "later.npy"))
        return cls(config, encoder, Stock(documents, lexical, dense, shelf, speller), about["asked"])


class Vectors:
    """Of texts, the latest ones remembered; thread-safe."""

    def __init__(self, encoder: Encodes) -> None:
        self._encoder, self._known, self._changing = encoder, dict[str, Floats](), Lock()

    def __call__(self, texts: Sequence[str]) -> dict[str, Floats]:
        with self._changing:
            found = {text: self._known[text] for text in texts if text in self._known}
        if new := [text for text in dict.fromkeys(texts) if text not in found]:
            found |= zip(new, self._encoder.encode(new), strict=True)
        with self._changing:
            for text in found:  # behind the others, for the first are forgotten
                self._known.pop(text, None)
            self._known |= found
            for text in list(self._known)[: max(len(self._known) - REMEMBERED, 0)]:
                del self._known[text]
        return found


def _latest(products: pa.Table) -> tuple[pa.Table, NDArray[np.int64]]:
    """The last event of each product, and when each was first listed (us)."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for row, name in enumerate(products["product_id"].to_pylist()):
        first.setdefault(name, row)
        last[name] = row
    rows, firsts = (np.array([which[name] for name in first], np.int64) for which in (last, first))
    return products.take(pa.array(rows)), ints(products["event_timestamp"])[firsts]


def _words_asked(config: Config, queries: pa.Table) -> dict[str, int]:
    """By how many different shoppers, if they are many."""
    analyser = Analyser()
    pairs = zip(queries["text"].to_pylist(), queries["shopper_id"].to_pylist(), strict=True)
    shoppers = Counter(word for word, _ in {(w, who) for text, who in pairs for w in analyser.words(normalise(text))})
    return {word: count for word, count in shoppers.items() if count >= config.left_alone}


def _speller(sold: Mapping[str, int], asked: Mapping[str, int], is_word: Callable[[str], bool]) -> Speller:
    """A slip that many make is no word to be corrected to."""
    first = Speller(sold, asked, is_word)
    return Speller(sold, {word: n for word, n in asked.items() if first.correct(word) is None}, is_word)


def _knows(encoder: Encodes) -> Callable[[str], bool]:
    return lambda word: len(encoder.tokens([word])[0]) == MARKED


def _repeats(config: Config) -> dict[str, int]:
    return {"title": config.title_repeats, "other": 1}


def _flags(column: pa.ChunkedArray) -> Flags:
    return np.asarray(column.to_numpy(), bool)


def _rows(stock: Stock, queries: Sequence[Query], parts: Sequence[Part], notes: Sequence[Note] | None) -> Rows:
    offsets = np.cumsum([0, *(len(part.places) for part in parts)], dtype=np.int64)
    return Rows(table(stock, queries, parts), offsets, notes)


def _with_shown(rows: Rows, shown: Sequence[Mapping[str, int]]) -> pa.Table:
    ids = rows.columns["product_id"].to_pylist()
    owner = np.repeat(np.arange(len(shown)), np.diff(rows.offsets)).tolist()
    position = np.array([shown[q].get(name, 0) for q, name in zip(owner, ids, strict=True)], np.float64)
    columns = rows.columns
    for name, column in (("shown", (position > 0).astype(np.float64)), ("rank", position)):
        columns = columns.set_column(columns.column_names.index(name), name, pa.array(column))
    return columns
