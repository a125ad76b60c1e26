"""BM25 over the stems of several fields (Robertson and Zaragoza 2009); decision 0018 says why by bm25s."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import bm25s
import numpy as np
import Stemmer
from numpy.typing import NDArray

from common.errors import BadSetting

Scores = NDArray[np.float32]
Document = Mapping[str, Sequence[str]]  # field -> terms
Postings = tuple[NDArray[np.int64], Scores]  # the documents that have a term, and its share of their scores

WORD: Final = re.compile(r"[^\W_]+")
LONGEST: Final = 64  # characters of a word; what is longer is cut
STOP_WORDS: Final = frozenset({  # Lucene's
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not", "of",
    "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was", "will", "with",
})  # fmt: skip


def plain(text: str) -> str:
    """In lower case and without accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", text).casefold() if not unicodedata.combining(c))


class Analyser:
    """Text as the terms that an index knows. Not thread-safe: one for each thread."""

    def __init__(self, language: str = "english") -> None:
        self._stem = Stemmer.Stemmer(language).stemWord

    def words(self, text: str) -> list[str]:
        """In lower case, without accents, as written; stop words are among them."""
        return [word[:LONGEST] for word in WORD.findall(plain(text))]

    def terms(self, text: str) -> list[str]:
        """Stems of the words that are no stop words."""
        return [self._stem(word) for word in self.words(text) if word not in STOP_WORDS]

    def stem(self, word: str) -> str:
        """The term of a word, as `words` gives it, that is no stop word."""
        return str(self._stem(word))


class LexicalIndex:
    """The scores of all documents for a query, eager: of each posting its share of BM25 is stored, not its count.

    The statistics of words are those of the documents that it was built from; later ones are scored by them.
    """

    def __init__(
        self, index: bm25s.BM25, documents: int, mean_length: float, later: Mapping[str, Postings], count: int
    ) -> None:
        self._index, self._built, self._mean_length = index, documents, mean_length
        self._later, self.documents = later, count

    @classmethod
    def build(cls, documents: Iterable[Document], repeats: Mapping[str, int], k1: float, b: float) -> Self:
        """Of documents whose fields are terms; a term counts `repeats[field]` times where it is in that field."""
        if k1 <= 0 or not 0 <= b <= 1 or min(repeats.values(), default=0) < 0:
            raise BadSetting(f"k1, b, repeats: must be > 0, in 0..1, none < 0, got {k1}, {b}, {dict(repeats)}")
        texts = [_repeated(d, repeats) for d in documents]
        index = bm25s.BM25(k1=k1, b=b, method="lucene")
        if any(texts):  # else bm25s has nothing to build from
            index.index(texts, show_progress=False)
        return cls(index, len(texts), float(np.mean([len(t) for t in texts])) if any(texts) else 1.0, {}, len(texts))

    def extended(self, documents: Iterable[Document], repeats: Mapping[str, int]) -> "LexicalIndex":
        """The same with more documents behind the others; this one stays as it is."""
        later, place, k1, b = dict(self._later), self.documents, self._index.k1, self._index.b
        for document in documents:
            counts = Counter(_repeated(document, repeats))
            norm = k1 * (1 - b + b * counts.total() / self._mean_length)
            for term, count in counts.items():
                places, shares = later.get(term, _NONE)
                share = np.float32(self._rarity(term) * count / (count + norm))
                later[term] = np.append(places, place), np.append(shares, share)
            place += 1
        return LexicalIndex(self._index, self._built, self._mean_length, later, place)

    def scores(self, terms: Sequence[str]) -> Scores:
        """BM25 of every document, (n_documents,); a term that no document has adds nothing."""
        found = np.zeros(self.documents, np.float32)
        if known := self._ids(terms):
            found[: self._built] = self._index.get_scores_from_ids(known)
        for term in terms:
            places, shares = self._later.get(term, _NONE)
            found[places] += shares
        return found

    def knows(self, term: str) -> bool:
        return bool(self._ids([term])) or term in self._later

    def _rarity(self, term: str) -> float:
        """Lucene's weight of a term."""
        known = self._ids([term])
        having = int(np.diff(self._index.scores["indptr"][known[0] : known[0] + 2])[0]) if known else 0
        return float(np.log(1 + (self._built - having + 0.5) / (having + 0.5)))

    def _ids(self, terms: Sequence[str]) -> list[int]:
        vocabulary: Mapping[str, int] = getattr(self._index, "vocab_dict", {})
        return [vocabulary[term] for term in terms if term in vocabulary and term]

    def save(self, folder: Path) -> None:
        """Arrays and JSON, in a folder of its own, of what it was built from; without any term, nothing but its size.

        Documents that came later are not kept.
        """
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "documents.npy", np.array([self._built, self._mean_length]))
        if hasattr(self._index, "vocab_dict"):
            self._index.save(folder, allow_pickle=False, show_progress=False)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Of a verified bundle."""
        documents, mean_length = np.load(folder / "documents.npy").tolist()
        is_empty = not (folder / "params.index.json").exists()
        index = bm25s.BM25() if is_empty else bm25s.BM25.load(folder, allow_pickle=False)
        return cls(index, int(documents), mean_length, {}, int(documents))


def _repeated(document: Document, repeats: Mapping[str, int]) -> list[str]:
    return [term for name, n in repeats.items() for term in list(document.get(name, ())) * n]


_NONE: Final[Postings] = (np.zeros(0, np.int64), np.zeros(0, np.float32))
