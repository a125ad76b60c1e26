"""Nearest neighbours among the vectors of documents, by FAISS (Douze et al. 2024)."""

from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from common.encoder.weights import Floats
from common.errors import BadData

FILE: Final = "dense.faiss"
LINKS: Final = 32  # of each vector in the graph
EFFORT_BUILDING: Final = 200  # candidates that are kept while links are sought
EFFORT_SEARCHING: Final = 128  # the same while neighbours are; recall@10 against exact search is above 0.98 by it


class Neighbours(NamedTuple):
    """Of each query, the nearest first; -1 where there are fewer."""

    similarity: Floats  # (n_queries, k), dot products
    documents: NDArray[np.int64]  # (n_queries, k), places in the index


class DenseIndex:
    """A graph of near neighbours (Malkov and Yashunin 2018, HNSW) over vectors of length 1, which it holds as well."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self._index.hnsw.efSearch = EFFORT_SEARCHING

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
        self._index.add(np.ascontiguousarray(vectors, np.float32))

    def search(self, queries: Floats, k: int) -> Neighbours:
        """(n_queries, dimensions) -> its k nearest of each query."""
        return Neighbours(*self._index.search(np.ascontiguousarray(queries, np.float32), k))

    def exact(self, queries: Floats, k: int) -> Neighbours:
        """The same by comparing with every vector."""
        similarity = queries @ self.vectors().T
        order = np.argsort(-similarity, 1, kind="stable")[:, :k]
        return Neighbours(np.take_along_axis(similarity, order, 1), order)

    def vectors(self) -> Floats:
        """(n, dimensions), a view that the next `add` may leave behind."""
        storage: Any = faiss.downcast_index(self._index.storage)
        return np.asarray(faiss.rev_swig_ptr(storage.get_xb(), len(self) * self._index.d)).reshape(len(self), -1)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        faiss.write_index(self._index, str(folder / FILE))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Of a verified bundle: FAISS trusts what it reads."""
        return cls(faiss.read_index(str(folder / FILE)))


def recall(index: DenseIndex, queries: Floats, k: int = 10) -> float:
    """Share of the true k nearest neighbours that are found."""
    found, true = index.search(queries, k).documents, index.exact(queries, k).documents
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, true, strict=True)]))
