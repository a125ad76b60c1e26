"""Words that nobody sells or asks for, as they were probably meant (Garbe 2012: by what is left without a letter)."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from typing import Final

SHORTEST: Final = 4  # letters of a word that may be meant; one may be left out
LONG: Final = 8  # letters of a word in which two slips are believed
RARER: Final = 20  # times that a slip is asked for less often than what was meant, at least


class Speller:
    """Corrects words; thread-safe."""

    def __init__(self, sold: Mapping[str, int], asked: Mapping[str, int], is_word: Callable[[str], bool]) -> None:
        """Words by how many products have them and by how many shoppers asked for them; is_word: it is a real one."""
        self.sold, self.asked, self._is_word = dict(sold), dict(asked), is_word
        self._without: dict[str, tuple[str, ...]] = {}
        self._enter(sold.keys() | asked.keys())

    def extended(self, sold: Mapping[str, int]) -> "Speller":
        """With words of more products; this one stays as it is."""
        speller = copy(self)
        speller.sold = {**self.sold, **{word: self.sold.get(word, 0) + count for word, count in sold.items()}}
        speller._without = dict(self._without)
        speller._enter(sold.keys() - self.sold.keys() - self.asked.keys())
        return speller

    def _enter(self, words: Iterable[str]) -> None:
        for word in words:
            if len(word) >= SHORTEST and word.isalpha():
                for part in _parts(word):
                    self._without[part] = (*self._without.get(part, ()), word)

    def correct(self, word: str, bold: bool = False) -> str | None:
        """The word that was meant, or None: this one, or nobody knows.

        What is sold is left alone, and so is what is asked for, unless another word that is hardly different is asked
        for far more often; if not bold, all real words are. The first letter is taken to be right.
        """
        if len(word) < SHORTEST - 1 or not word.isalpha() or word in self.sold:
            return None
        most = 2 if len(word) >= LONG else 1
        near = {found for part in _parts(word) for found in self._without.get(part, ())} - {word}
        known = [(distance(word, found), -self._uses(found), found) for found in near if found[0] == word[0]]
        best = min((entry for entry in known if entry[0] <= most), default=None)
        if best is None or (not bold and self._is_word(word)):
            return None
        own = self.asked.get(word, 0)
        return best[2] if not own or own * RARER < self.asked.get(best[2], 0) else None

    def _uses(self, word: str) -> int:
        return self.sold.get(word, 0) + self.asked.get(word, 0)


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


def _parts(word: str) -> set[str]:
    """It, and what is left of it without one letter, or two of a long one."""
    found = {word, *_without_one(word)}
    return found | {part for one in found for part in _without_one(one)} if len(word) >= LONG else found


def _without_one(word: str) -> Iterator[str]:
    return (word[:i] + word[i + 1 :] for i in range(len(word)))
