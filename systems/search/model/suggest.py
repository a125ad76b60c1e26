"""How what is being typed may go on: as many have asked before, as things, brands and categories are called."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from string import ascii_lowercase
from typing import Final

import numpy as np
import pyarrow as pa

from systems.search.data.events import LONGEST, normalise

LAST: Final = "\U0010ffff"  # behind every other character
GUESSED: Final = range(3, 21)  # letters of an unfinished word in which a slip is looked for


class Completer:
    """Texts that begin in a way, the weightiest first."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        known = sorted((normalise(text), -weight, text) for text, weight in weights.items())
        self._keys, self._texts = [key for key, _, _ in known], [text for _, _, text in known]
        order = sorted(range(len(known)), key=lambda i: known[i][1])
        self._by_rank = order
        self._rank = np.empty(len(known), np.int64)
        self._rank[order] = np.arange(len(known))

    def __call__(self, start: str, n: int) -> list[str]:
        ranks = self._rank[bisect_left(self._keys, start) : bisect_left(self._keys, start + LAST)]
        if len(ranks) > n:
            ranks = np.partition(ranks, n - 1)[:n]
        return [self._texts[self._by_rank[rank]] for rank in np.sort(ranks).tolist()]


class Suggester:
    """Thread-safe."""

    def __init__(
        self, asked: Mapping[str, int], names: Iterable[str], titles: Iterable[str], words: Mapping[str, int]
    ) -> None:
        """asked: normalised texts by how many shoppers asked for them; words: by how often they are used."""
        self.asked = dict(asked)
        weights: dict[str, float] = dict.fromkeys(titles, 0.0) | dict.fromkeys(names, 0.5)
        weights = {text: weight for text, weight in weights.items() if normalise(text) not in asked}
        self._texts, self._words = Completer({**weights, **asked}), Completer(words)
        self._starts = {word[:i] for word in words for i in range(GUESSED[0], min(len(word), GUESSED[-1]) + 1)}

    def __call__(self, typed: str, n: int, correct: Callable[[str], str | None]) -> list[str]:
        """At most n; where nothing goes on like that, word by word, then as if there were a slip in it."""
        start = normalise(typed[:LONGEST]) + " " * typed[:LONGEST].endswith(" ")
        if found := self._texts(start.lstrip(" "), n):
            return found
        *before, last = start.split(" ")
        if not last:
            return []
        head = "".join(f"{correct(word) or word} " for word in before)
        for end in (last, *(near for near in _near(last) if near in self._starts)):
            if found := self._texts(head + end, n) or [head + word for word in self._words(end, n)]:
                return found
        return []


def asked_often(queries: pa.Table, least: int) -> dict[str, int]:
    """Normalised texts by how many different shoppers asked for them, if so many did: one's own text stays private."""
    shoppers: dict[str, set[str]] = defaultdict(set)
    for text, shopper in zip(queries["text"].to_pylist(), queries["shopper_id"].to_pylist(), strict=True):
        shoppers[normalise(text)].add(shopper)
    return {text: len(who) for text, who in shoppers.items() if len(who) >= least}


def _near(word: str) -> Iterator[str]:
    """With two letters swapped, one more, one less, another one; the first is taken to be right."""
    if len(word) not in GUESSED:
        return
    for i in range(1, len(word)):
        yield word[:i] + word[i + 1 : i + 2] + word[i] + word[i + 2 :]
        yield word[:i] + word[i + 1 :]
        for letter in ascii_lowercase:
            yield word[:i] + letter + word[i + 1 :]
            yield word[:i] + letter + word[i:]
