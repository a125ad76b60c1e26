"""Which words of products are clicked after which words of queries: so a couch becomes a sofa, and it is learned what
sort of sofa is liked. Crossed words, as in the wide part of Cheng et al. 2016, by counts alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from common.clock import DAY
from common.features.view import Array, numbers
from common.system import Examples, Rows
from systems.search.data.events import Query
from systems.search.model.clicks import Examination
from systems.search.model.documents import Documents, Places
from systems.search.model.index import Index

FILE: Final = "affinity.npy"
BITS: Final = 20  # of a pair's place in the table; pairs that share one blur each other
ANY: Final = "*"  # said with every query: what is liked whatever was asked
MADE_UP: Final = 1.0  # clicks, as many as expected, so that few say little
FACTORS: Final = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)

Cells = NDArray[np.int64]


@dataclass(frozen=True)
class Affinity:
    weights: NDArray[np.float32]  # (2 ** BITS,) log of clicks over those expected, by pair of words

    def of(self, index: Index, requests: Sequence[Query], rows: Rows) -> Array:
        """Mean over the pairs of words of each row's query and product, (n_rows,)."""
        documents, terms = index.documents, index.terms([query.text for query in requests])
        ids = rows.columns["product_id"].to_pylist()
        out = np.zeros(len(ids))
        for i, said in enumerate(terms):
            first, last = rows.offsets[i : i + 2].tolist()
            cells, owner = crossed(documents, said, [documents.place[name] for name in ids[first:last]])
            out[first:last] = _mean(self.weights[cells], owner, last - first)
        return out

    def save(self, folder: Path) -> None:
        np.save(folder / FILE, self.weights)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Of a verified bundle."""
        return cls(np.load(folder / FILE))


def learn(index: Index, examples: Examples[Query], looks: Examination) -> tuple[Array, Affinity]:
    """Of each row what was known on the days before its own, (n_rows,), and what is known in the end.

    A click is expected where a look is, in proportion, of as many as its query has had.
    """
    rows, columns = examples.rows, examples.rows.columns
    clicked = np.nan_to_num(examples.labels)
    rank, is_phone = numbers(columns["rank"]), numbers(columns["is_phone"])
    look = np.where(examples.weights > 0, looks.chance(rank, is_phone), 0.0)
    n, owner = len(examples), rows.owner
    per_look = np.bincount(owner, clicked, n) / np.maximum(np.bincount(owner, look, n), 1e-9)
    expected = look * per_look[owner]

    seen, hoped, out = np.zeros(2**BITS), np.zeros(2**BITS), np.zeros(len(owner))
    documents, ids = index.documents, columns["product_id"].to_pylist()
    terms = index.terms([query.text for query in examples.requests])
    day = examples.as_of // DAY
    for today in np.unique(day).tolist():
        told = list[tuple[Cells, Array, Array]]()
        for i in np.flatnonzero(day == today).tolist():
            first, last = rows.offsets[i : i + 2].tolist()
            cells, of = crossed(documents, terms[i], [documents.place[name] for name in ids[first:last]])
            out[first:last] = _mean(_weights(seen[cells], hoped[cells]), of, last - first)
            if per_look[i] > 0:
                told.append((cells, clicked[first:last][of], expected[first:last][of]))
        for cells, was, might in told:  # only now: a day does not see itself
            np.add.at(seen, cells, was)
            np.add.at(hoped, cells, might)
    return out, Affinity(_weights(seen, hoped).astype(np.float32))


def crossed(documents: Documents, terms: Sequence[str], places: Sequence[int]) -> tuple[Cells, Cells]:
    """The place in the table of each pair of words, and which of the products it is of."""
    tokens, owner = documents.tokens(np.array(places, np.int64))
    said = np.array([crc32(term.encode()) for term in (*terms, ANY)], np.uint64)
    mixed = (said * FACTORS[0])[:, None] ^ (tokens.astype(np.uint64) * FACTORS[1])[None]
    cells = (mixed * FACTORS[0]) >> np.uint64(64 - BITS)
    return cells.ravel().astype(np.int64), np.tile(owner, len(said))


def _weights(seen: Array, hoped: Array) -> Array:
    return np.asarray(np.log((seen + MADE_UP) / (hoped + MADE_UP)))


def _mean(values: Array | NDArray[np.float32], owner: Places, n: int) -> Array:
    return np.asarray(np.bincount(owner, values, n) / np.maximum(np.bincount(owner, minlength=n), 1))
