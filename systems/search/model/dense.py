"""Nearest neighbours among the vectors of documents, by FAISS (Douze et al. 2024)."""

from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from common.encoder.weights import Floats
from common.errors import BadData

Flags = NDArray[np.bool_]
Places = NDArray[np.int64]

_FAISS: Any = faiss  # its type hints know neither what is made in Python nor search parameters

FILE: Final = "dense.faiss"
LINKS: Final = 32  # of each vector in the graph
EFFORT_BUILDING: Final = 200  # candidates that are kept while links are sought
FEW: Final = 4_000  # vectors; to compare so many takes no longer than to follow the graph, which may miss some
EFFORT_SEARCHING: Final = 128  # the same while neighbours are; recall@10 against exact search is above 0.98 by it


class Neighbours(NamedTuple):
    """Of each query, the nearest first; -1 where there are fewer."""

    similarity: Floats  # (n_queries, k), dot products
    documents: NDArray[np.int64]  # (n_queries, k), places in the index


class DenseIndex:
    """A graph of near neighbours (Malkov and Yashunin 2018, HNSW) over vectors of length 1, which it holds as well.

    Later vectors, a few, are beside the graph and are compared with every query.
    """

    def __init__(self, index: Any, later: Floats | None = None) -> None:
        self._index = index
        self._index.hnsw.efSearch = EFFORT_SEARCHING
        self._view: Floats | None = None
        self._later = np.zeros((0, index.d), np.float32) if later is None else later

    @classmethod
    def build(cls, vectors: Floats) -> Self:
        """(n, dimensions); the same vectors give the same index, whatever the number of threads."""
        index = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = EFFORT_BUILDING
        made = cls(index)
        made.add(vectors)
        return made

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, vectors: Floats) -> None:
        """At the end; raises BadData for other dimensions or for a value that is no number."""
        if vectors.ndim != 2 or vectors.shape[1] != self._index.d or not np.isfinite(vectors).all():
            raise BadData(f"vectors: must be finite, of shape (n, {self._index.d}), got shape {vectors.shape}")
        self._view = None
        self._index.add(np.ascontiguousarray(vectors, np.float32))

    def search(self, queries: Floats, k: int) -> Neighbours:
        """(n_queries, dimensions) -> its k nearest of each query."""
        return Neighbours(*self._index.search(np.ascontiguousarray(queries, np.float32), k))

    def exact(self, queries: Floats, k: int) -> Neighbours:
        """The same by comparing with every vector."""
        similarity = queries @ self.vectors().T
        order = np.argsort(-similarity, 1, kind="stable")[:, :k]
        return Neighbours(np.take_along_axis(similarity, order, 1), order)

    def extended(self, vectors: Floats) -> "DenseIndex":
        """The same with more vectors behind the others; this one stays as it is."""
        return DenseIndex(self._index, np.concatenate([self._later, vectors]))

    def nearest(self, query: Floats, k: int, allowed: Flags, exact: bool) -> Places:
        """Of those allowed, the k nearest to one query, (dimensions,), the nearest first.

        Exact where it is asked for, and among few.
        """
        if exact or np.count_nonzero(allowed) <= FEW:
            places = np.flatnonzero(allowed)
            return places[best(self.similarity(places, query), k)]
        graph, later = allowed[: len(self)], np.flatnonzero(allowed[len(self) :])
        bits = np.packbits(graph, bitorder="little")
        chosen = _FAISS.IDSelectorBitmap(bits)
        effort = _FAISS.SearchParametersHNSW(sel=chosen, efSearch=max(EFFORT_SEARCHING, k))
        similarity, found = self._index.search(query[None], k, params=effort)
        similarity = np.concatenate([similarity[0][found[0] >= 0], self._later[later] @ query])
        places = np.concatenate([found[0][found[0] >= 0], later + len(self)])
        return places[best(similarity, k)]

    def similarity(self, places: Places, query: Floats) -> Floats:
        """Dot products of those places, (n,), with one query, (dimensions,)."""
        built = self.vectors()
        if len(places) > len(built) // 4:  # to copy so many would cost more than to compare with all
            return np.asarray(np.concatenate([built @ query, self._later @ query])[places])
        if not len(self._later):
            return np.asarray(built[places] @ query)
        old = places < len(built)
        found = np.empty(len(places), np.float32)
        found[old], found[~old] = built[places[old]] @ query, self._later[places[~old] - len(built)] @ query
        return found

    def similarities(self, queries: Floats) -> Floats:
        """Of all, (n_queries, n), also of those beside the graph."""
        return np.asarray(np.concatenate([queries @ self.vectors().T, queries @ self._later.T], axis=1))

    def later(self) -> Floats:
        """Those beside the graph, which `save` does not keep; (n, dimensions)."""
        return self._later

    def vectors(self) -> Floats:
        """(n, dimensions), a view that the next `add` may leave behind."""
        if self._view is None:
            storage: Any = faiss.downcast_index(self._index.storage)
            flat = np.asarray(faiss.rev_swig_ptr(storage.get_xb(), len(self) * self._index.d))
            self._view = flat.reshape(len(self), self._index.d)
        return self._view

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        faiss.write_index(self._index, str(folder / FILE))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Of a verified bundle: FAISS trusts what it reads."""
        return cls(faiss.read_index(str(folder / FILE)))


class NoVectors(DenseIndex):
    """In the place of a `DenseIndex` where words alone are searched; nothing is near to anything."""

    def __init__(self) -> None:
        self._later = np.zeros((0, 0), np.float32)

    def __len__(self) -> int:
        return 0

    def extended(self, vectors: Floats) -> "NoVectors":
        return self

    def nearest(self, query: Floats, k: int, allowed: Flags, exact: bool) -> Places:
        return np.zeros(0, np.int64)

    def similarity(self, places: Places, query: Floats) -> Floats:
        return np.zeros(len(places), np.float32)


def best(scores: NDArray[np.number], k: int) -> Places:
    """Places of the k highest, the highest first; of equal ones the first."""
    if len(scores) > k:
        least = -np.partition(-scores, k - 1)[k - 1]
        above, equal = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
        chosen = np.sort(np.concatenate([above, equal[: k - len(above)]]))
    else:
        chosen = np.arange(len(scores))
    return np.asarray(chosen[np.argsort(-scores[chosen], kind="stable")])


def recall(index: DenseIndex, queries: Floats, k: int = 10) -> float:
    """Share of the true k nearest neighbours that are found."""
    found, true = index.search(queries, k).documents, index.exact(queries, k).documents
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, true, strict=True)]))
