"""Products as documents: their terms and what they are; and the shelf, which is what changes from hour to hour."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple, Self
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.schema import arrow_schema
from systems.search.data.events import Hit, Product
from systems.search.model.lexical import Analyser, Document

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Places = NDArray[np.int64]

TOLD: Final = ("product_id", "title", "description", "category", "brand", "colour", "attributes")
BANDS: Final = (10, 25, 50, 100, 250, 500, 1_000)  # EUR, where bands of prices end


class Lists(NamedTuple):
    """Lists of numbers, one behind the other."""

    flat: Places
    starts: Places  # (n + 1,)

    @classmethod
    def of(cls, lists: Iterable[Sequence[int]]) -> Self:
        whole = list(lists)
        flat = [value for one in whole for value in one]
        return cls(np.array(flat, np.int64), np.cumsum([0, *map(len, whole)], dtype=np.int64))

    def joined(self, other: "Lists") -> "Lists":
        return Lists(np.concatenate([self.flat, other.flat]), np.r_[self.starts, other.starts[1:] + self.starts[-1]])

    def take(self, rows: Places) -> tuple[Places, Places]:
        """The values of those lists, and to which of the rows each belongs, 0, 1, ..."""
        counts = self.starts[rows + 1] - self.starts[rows]
        owner = np.repeat(np.arange(len(rows)), counts)
        at = np.arange(len(owner)) + np.repeat(self.starts[rows] - (np.cumsum(counts) - counts), counts)
        return self.flat[at], owner

    def row(self, i: int) -> Places:
        return self.flat[self.starts[i] : self.starts[i + 1]]


class Names:
    """Brands, colours, values of attributes: each is said by a text that has all its terms."""

    def __init__(self, names: Sequence[str], analyser: Analyser) -> None:
        self.names = list(names)
        self.number = {name: i for i, name in enumerate(self.names)}
        self._by_term: dict[str, list[tuple[int, frozenset[str]]]] = defaultdict(list)
        for i, name in enumerate(self.names):
            if terms := analyser.terms(name):
                self._by_term[terms[0]].append((i, frozenset(terms)))

    def said(self, terms: Set[str]) -> list[int]:
        return [i for term in terms for i, needed in self._by_term.get(term, ()) if needed <= terms]


@dataclass(frozen=True)
class Documents:
    """What a product is, in n places. A changed text has a place of its own; nobody finds the old one again."""

    table: pa.Table  # TOLD, n rows
    vocabulary: Mapping[str, int]  # term -> number
    titles: Lists  # of terms
    others: Lists  # of the terms of all other text

    @classmethod
    def none(cls) -> Self:
        schema = pa.schema([arrow_schema(Product).field(name) for name in TOLD])
        return cls(schema.empty_table(), {}, Lists.of([]), Lists.of([]))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def extended(self, products: pa.Table) -> "Documents":
        """With the products of a table behind the others."""
        analyser, vocabulary = Analyser(), dict(self.vocabulary)
        told = products.select(TOLD)
        fields = [_fields(row, analyser) for row in told.to_pylist()]
        titles, others = (
            Lists.of([vocabulary.setdefault(t, len(vocabulary)) for t in d[name]] for d in fields)
            for name in ("title", "other")
        )
        table = pa.concat_tables([self.table, told.cast(self.table.schema)]).combine_chunks()
        return Documents(table, vocabulary, self.titles.joined(titles), self.others.joined(others))

    def prepared(self) -> Self:
        """With all that follows from it worked out, so that no search waits for that."""
        for name, part in vars(type(self)).items():
            if isinstance(part, cached_property):
                getattr(self, name)
        return self

    def terms(self, places: Iterable[int]) -> list[Document]:
        """Fields `title` and `other`."""
        words = list(self.vocabulary)
        return [
            {"title": [words[t] for t in self.titles.row(p)], "other": [words[t] for t in self.others.row(p)]}
            for p in places
        ]

    def texts(self, start: int = 0) -> list[str]:
        """What the encoder is told, of the places from `start` on."""
        told = self.table.select(["title", "description"]).slice(start).to_pylist()
        return [f"{row['title']}. {row['description']}".strip() for row in told]

    def shares(self, places: Places, terms: Sequence[str]) -> tuple[Array, Array]:
        """The share of the terms, all different, that each title has, and that each whole text has; (n_places,)."""
        if not terms:
            return np.zeros(len(places)), np.zeros(len(places))
        title, whole = (np.zeros((len(places), len(terms)), bool) for _ in range(2))
        for lists, found in ((self.titles, (title, whole)), (self.others, (whole,))):
            values, owner = lists.take(places)
            for j, term in enumerate(terms):
                having = owner[values == self.vocabulary.get(term, -1)]
                for flags in found:
                    flags[having, j] = True
        return title.mean(1), whole.mean(1)

    def named_share(self, places: Places, said: Sequence[int]) -> Array:
        """The share of each product's attributes whose value is said, (n_places,); 0 where it has none."""
        values, owner = self.values.take(places)
        is_said = (values[:, None] == np.array(said, np.int64)).any(axis=1)
        hits = np.bincount(owner[is_said], minlength=len(places))
        return np.asarray(hits / np.maximum(self.values.starts[places + 1] - self.values.starts[places], 1))

    def tokens(self, places: Places) -> tuple[Places, Places]:
        """What each product is: words of its title, brand, colour, attributes; and which of the places has each."""
        titles, of_title = self.titles.take(places)
        values, of_value = self.values.take(places)
        words, attributes, brands, colours = self._hashed
        each = np.arange(len(places))
        found = [words[titles], attributes[values], brands[self.brands[0][places]], colours[self.colours[0][places]]]
        return np.concatenate(found), np.concatenate([of_title, of_value, each, each])

    @cached_property
    def _hashed(self) -> tuple[Places, Places, Places, Places]:
        values = _coded(_whole(self.table["attributes"]).flatten())[1]
        brands, colours = (
            [f"{kind}: {n}" for n in names]
            for kind, names in (("brand", self.brands[1].names), ("colour", self.colours[1].names))
        )
        return tuple(  # type: ignore[return-value]
            np.array([crc32(name.encode()) for name in names], np.int64)
            for names in (self.vocabulary, values, brands, colours)
        )

    def hit(self, place: int, score: float, price: float, said: Sequence[tuple[str, int]]) -> Hit:
        """said: the words of a query, each with the number of its term."""
        has = {*self.titles.row(place).tolist(), *self.others.row(place).tolist()}
        why = tuple(word for word, term in said if term in has)
        title, category, brand, colour = (column[place] for column in self._shown)
        return Hit(
            product_id=self.ids[place], title=title, category=category, brand=brand, colour=colour, price=price,
            score=score, why=why,
        )  # fmt: skip

    @cached_property
    def _shown(self) -> list[list[str]]:
        return [self.table[name].to_pylist() for name in ("title", "category", "brand", "colour")]

    @cached_property
    def keys(self) -> dict[str, pa.Array]:
        """The columns that rows are known by."""
        return {name: _whole(self.table[name]) for name in ("product_id", "category")}

    @cached_property
    def ids(self) -> list[str]:
        return list(self.table["product_id"].to_pylist())

    @cached_property
    def place(self) -> dict[str, int]:
        """The latest place of each product."""
        return {name: i for i, name in enumerate(self.ids)}

    @cached_property
    def title_words(self) -> Array:
        return np.array([len(title.split()) for title in self.table["title"].to_pylist()], np.float64)

    @cached_property
    def categories(self) -> tuple[Places, list[str]]:
        return _coded(self.table["category"])

    @cached_property
    def brands(self) -> tuple[Places, Names]:
        codes, names = _coded(self.table["brand"])
        return codes, Names(names, Analyser())

    @cached_property
    def colours(self) -> tuple[Places, Names]:
        codes, names = _coded(self.table["colour"])
        return codes, Names(names, Analyser())

    @cached_property
    def values(self) -> Lists:
        column = _whole(self.table["attributes"])
        return Lists(_coded(column.flatten())[0], np.asarray(column.offsets, np.int64))

    @cached_property
    def attributes(self) -> Names:
        names = _coded(_whole(self.table["attributes"]).flatten())[1]
        return Names([name.partition(": ")[2] or name for name in names], Analyser())


@dataclass(frozen=True)
class Shelf:
    """What can be had and for how much, in the places of documents."""

    category: Places  # (n,) numbers
    live: Flags  # (n,) it can be found
    price: Array  # (n,) EUR
    listed_at: Places  # (n,) us, first of all
    rank: Array  # (n,) of its price among those of its category that are live, 0..1

    @classmethod
    def bare(cls, category: Places, listed_at: Places) -> Self:
        n = len(category)
        return cls(category, np.zeros(n, bool), np.zeros(n), listed_at, np.zeros(n))

    def grown(self, category: Places, listed_at: Places) -> "Shelf":
        """A copy for more places, of which none is live yet."""
        old = len(self.category)
        grown = Shelf.bare(category, listed_at)
        grown.live[:old], grown.price[:old], grown.rank[:old] = self.live, self.price, self.rank
        return grown

    def put(self, places: Places, price: Array, live: Flags) -> None:
        """In place: for whoever made this shelf and has not shown it to others yet."""
        self.price[places], self.live[places] = price, live
        for category in np.unique(self.category[places]).tolist():
            of_it = np.flatnonzero((self.category == category) & self.live)
            prices = np.sort(self.price[of_it])
            below, up_to = (np.searchsorted(prices, self.price[of_it], side) for side in ("left", "right"))
            self.rank[of_it] = (below + up_to) / (2 * max(len(of_it), 1))

    def bands(self, places: Places) -> Places:
        return np.digitize(self.price[places], BANDS)


def band_names() -> list[str]:
    """As "25-50", EUR; the last has no end."""
    return [f"{low}-{high}" for low, high in zip((0, *BANDS), (*BANDS, ""), strict=True)]


def words_of(products: pa.Table) -> Counter[str]:
    """How many of the products have each word in their text."""
    analyser = Analyser()
    rows = products.select(TOLD).to_pylist()
    return Counter(word for row in rows for word in {*analyser.words(row["title"]), *analyser.words(_other(row))})


def _fields(row: Mapping[str, Any], analyser: Analyser) -> Document:
    return {"title": analyser.terms(row["title"]), "other": analyser.terms(_other(row))}


def _other(row: Mapping[str, Any]) -> str:
    values = [value.partition(": ")[2] or value for value in row["attributes"]]
    return " ".join((row["description"], row["category"], row["brand"], row["colour"], *values))


def _coded(column: pa.ChunkedArray | pa.Array) -> tuple[Places, list[str]]:
    """Numbers in the order in which the values come up, and the values."""
    coded = pc.dictionary_encode(_whole(column))
    return np.asarray(coded.indices.to_numpy(zero_copy_only=False), np.int64), coded.dictionary.to_pylist()


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole
