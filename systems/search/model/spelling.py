"""Words that nobody sells or asks for, as they were probably meant (Garbe 2012: by what is left without a letter)."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Final

SHORTEST: Final = 4  # letters of a word that is corrected
LONG: Final = 8  # letters of a word in which two slips are believed


class Speller:
    """Corrects words; thread-safe."""

    def __init__(self, counts: Mapping[str, int], is_word: Callable[[str], bool]) -> None:
        """counts: how often each word that may be meant is used; is_word: the word is a real one, sold or not."""
        self.counts, self._is_word = dict(counts), is_word
        self._without: dict[str, list[str]] = defaultdict(list)
        self._enter(self.counts)

    def extended(self, counts: Mapping[str, int]) -> "Speller":
        """With more uses of words; this one stays as it is."""
        speller = Speller.__new__(Speller)
        speller.counts, speller._is_word = dict(self.counts), self._is_word
        speller._without = defaultdict(list, self._without)
        for word, count in counts.items():
            speller.counts[word] = speller.counts.get(word, 0) + count
        speller._enter({word: 0 for word in counts if word not in self.counts})
        return speller

    def _enter(self, words: Mapping[str, int]) -> None:
        for word in words:
            if len(word) >= SHORTEST and word.isalpha():
                for part in {word, *_without_one(word)} | (set(_without_two(word)) if len(word) >= LONG else set()):
                    self._without[part] = [*self._without.get(part, ()), word]  # a copy: older spellers share it

    def correct(self, word: str, bold: bool = False) -> str | None:
        """The word that was meant, or None: this one, or nobody knows.

        What is sold, asked often or real is left alone; if bold, only what is sold or asked often. The first letter is
        taken to be right.
        """
        if len(word) < SHORTEST or not word.isalpha() or word in self.counts:
            return None
        most = 2 if len(word) >= LONG else 1
        near = {found for part in _parts(word, most) for found in self._without.get(part, ()) if found[0] == word[0]}
        known = [(distance(word, found), -self.counts[found], found) for found in near]
        best = min((entry for entry in known if entry[0] <= most), default=None)
        return best[2] if best and (bold or not self._is_word(word)) else None


def distance(a: str, b: str) -> int:
    """Letters put in, left out, exchanged or swapped with the next (Damerau 1964, each place touched once)."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, other in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


def _parts(word: str, most: int) -> set[str]:
    return {word, *_without_one(word)} | (set(_without_two(word)) if most > 1 else set())


def _without_one(word: str) -> Iterator[str]:
    return (word[:i] + word[i + 1 :] for i in range(len(word)))


def _without_two(word: str) -> Iterator[str]:
    return (part for one in _without_one(word) for part in _without_one(one))
