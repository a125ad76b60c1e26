"""BM25 over the stems of several fields (Robertson and Zaragoza 2009); decision 0018 says why by bm25s."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import bm25s
import numpy as np
import Stemmer
from numpy.typing import NDArray

from common.errors import BadSetting

Scores = NDArray[np.float32]

WORD: Final = re.compile(r"[^\W_]+")
LONGEST: Final = 64  # characters of a word; what is longer is cut
STOP_WORDS: Final = frozenset({  # Lucene's
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not", "of",
    "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was", "will", "with",
})  # fmt: skip


class Analyser:
    """Text as the terms that an index knows. Not thread-safe: one for each thread."""

    def __init__(self, language: str = "english") -> None:
        self._stem = Stemmer.Stemmer(language).stemWord

    def words(self, text: str) -> list[str]:
        """In lower case, without accents, as written; stop words are among them."""
        plain = unicodedata.normalize("NFKD", text).casefold()
        return [word[:LONGEST] for word in WORD.findall("".join(c for c in plain if not unicodedata.combining(c)))]

    def terms(self, text: str) -> list[str]:
        """Stems of the words that are no stop words."""
        return [self._stem(word) for word in self.words(text) if word not in STOP_WORDS]


class LexicalIndex:
    """The scores of all documents for a query, eager: of each posting its share of BM25 is stored, not its count."""

    def __init__(self, index: bm25s.BM25, documents: int) -> None:
        self._index, self.documents = index, documents

    @classmethod
    def build(
        cls, documents: Iterable[Mapping[str, Sequence[str]]], repeats: Mapping[str, int], k1: float, b: float
    ) -> Self:
        """Of documents whose fields are terms; a term counts `repeats[field]` times where it is in that field."""
        if k1 <= 0 or not 0 <= b <= 1 or min(repeats.values(), default=0) < 0:
            raise BadSetting(f"k1, b, repeats: must be > 0, in 0..1, none < 0, got {k1}, {b}, {dict(repeats)}")
        texts = [[term for name, n in repeats.items() for term in list(d.get(name, ())) * n] for d in documents]
        index = bm25s.BM25(k1=k1, b=b, method="lucene")
        if any(texts):  # else bm25s has nothing to build from
            index.index(texts, show_progress=False)
        return cls(index, len(texts))

    def scores(self, terms: Sequence[str]) -> Scores:
        """BM25 of every document, (n_documents,); a term that no document has adds nothing."""
        known = self._ids(terms)
        if not known:
            return np.zeros(self.documents, np.float32)
        return np.asarray(self._index.get_scores_from_ids(known), np.float32)

    def knows(self, term: str) -> bool:
        return bool(self._ids([term]))

    def _ids(self, terms: Sequence[str]) -> list[int]:
        vocabulary: Mapping[str, int] = getattr(self._index, "vocab_dict", {})
        return [vocabulary[term] for term in terms if term in vocabulary and term]

    def save(self, folder: Path) -> None:
        """Arrays and JSON, in a folder of its own; one without any term writes nothing but its size."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "documents.npy", np.array([self.documents]))
        if hasattr(self._index, "vocab_dict"):
            self._index.save(folder, allow_pickle=False, show_progress=False)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Of a verified bundle."""
        documents = int(np.load(folder / "documents.npy")[0])
        if not (folder / "params.index.json").exists():
            return cls(bm25s.BM25(), documents)
        return cls(bm25s.BM25.load(folder, allow_pickle=False), documents)
