"""How relevant each product is to each query, and the best that anybody could do who has only read the query.

A product of the kind that is meant has relevance 3 if it fits all wishes, 2 if it fits all of two or more but one, else
1; any other product 0. What is meant is not all said, so a ranking is judged by the wishes that the shopper has, and
the ceiling is that of a ranker which knows how this world works, who asks and when, but not what was left unsaid.
"""

from functools import cached_property
from typing import Final

import numpy as np

from systems.search.data.catalogue import Array, Catalogue, Flags, Ints
from systems.search.data.intents import FILTERABLE, HIGH, LOW, MIDDLE, NUMBER, Intents, purse, set_share
from systems.search.data.words import BUDGET

AT: Final = 10  # of nDCG
DISCOUNT: Final = 1 / np.log2(np.arange(AT) + 2)
GAIN: Final = np.array([0.0, 1.0, 3.0, 7.0])  # 2 ** relevance - 1
GRADES: Final = np.array([[3, 0, 0, 0], [3, 1, 0, 0], [3, 2, 1, 0], [3, 2, 1, 1]])  # by wishes, and those not met
_REACH: Final = np.r_[0, np.cumsum(DISCOUNT)]  # of the first 0, 1, ... 10 places


def grade(fits: Flags, wished: Flags) -> Ints:
    """Relevance 1, 2, 3 of products of the right kind; fits, wished: (..., 6)."""
    missed, size = (wished & ~fits).sum(axis=-1), wished.sum(axis=-1)
    return np.asarray(GRADES[size, missed])


def best_dcg(grades: Ints) -> Array:
    """The DCG@10 of all of them in the best order; grades: (h, u) -> (h,)."""
    found, total = np.zeros(len(grades), np.int64), np.zeros(len(grades))
    for relevance in (3, 2, 1):
        more = np.minimum(found + (grades == relevance).sum(axis=1), AT)
        total += GAIN[relevance] * (_REACH[more] - _REACH[found])
        found = more
    return total


class Truth:
    """Judges rankings. Rows are those of the intents (q) and of the catalogue (p)."""

    def __init__(self, catalogue: Catalogue, intents: Intents) -> None:
        self.catalogue, self.intents = catalogue, intents
        self._sets = set_share(intents.config)
        self._ceiling = np.full(len(intents), np.nan)

    def relevance(self, q: Ints, p: Ints) -> Ints:
        """Of pairs, (n,)."""
        intents, shop = self.intents, self.catalogue
        wish = intents.wish[q]
        known = grade(self._values(p, intents.time[q]) == wish, wish >= 0)
        right = (shop.kind[p] == intents.kind[q]) & shop.available(p, intents.time[q])
        return np.where(right, known, 0)

    def ndcg(self, q: int, p: Ints) -> float:
        """nDCG@10 of one ranking; 0 where nothing is relevant that passes the filters."""
        found = GAIN[self.relevance(np.full(len(p[:AT]), q), p[:AT])]
        best = float(best_dcg(self.relevant(q)[1][None])[0])
        return float(found @ DISCOUNT[: len(found)]) / best if best else 0.0

    def relevant(self, q: int) -> tuple[Ints, Ints]:
        """The products that are relevant to a query and pass its filters, and how much."""
        rows = self._candidates(q, int(self.intents.kind[q]))
        return rows, self.relevance(np.full(len(rows), q), rows)

    def ceiling(self, q: int) -> float:
        """The highest expected nDCG@10 of any ranking."""
        if np.isnan(self._ceiling[q]):
            expected = np.sort(self.expected(q)[1])[::-1][:AT]
            self._ceiling[q] = expected @ DISCOUNT[: len(expected)]
        return float(self._ceiling[q])

    def expected(self, q: int) -> tuple[Ints, Array]:
        """Products that may be relevant and E[gain / best DCG] of each, given what can be read.

        nDCG is a sum of that over the places of a ranking, so the order of these is the best one. Typos are taken to be
        read right.
        """
        of_kind = self._kinds(q)
        found = [self._expected(q, k) for k in np.flatnonzero(of_kind).tolist()]
        rows = np.concatenate([rows for rows, _, _ in found])
        weight = np.array([weight for _, _, weight in found]) * of_kind[of_kind > 0]
        shares = (weight / weight.sum()).tolist()
        return rows, np.concatenate([share * gains for share, (_, gains, _) in zip(shares, found, strict=True)])

    def _kinds(self, q: int) -> Array:
        """(K,) P(kind, what is said of it), up to a factor."""
        intents, spoken = self.intents, self.intents.language
        epoch = int(intents.epoch(np.array([q]))[0])
        likely = intents.demand(np.array([q]))[0] * spoken.word_share[epoch, :, intents.word[q]]
        wish, said = intents.wish[q], intents.said[q]
        for a in np.flatnonzero(said).tolist():
            likely = likely * self._taste(q, a, epoch)[:, wish[a]]
        if intents.by_category[q]:
            likely = likely * (spoken.category == spoken.category[intents.kind[q]])
        if said[BUDGET] and (intents.filtered[q, BUDGET] or intents.in_eur[q]):  # its ends are told, in EUR
            ends = {LOW: [0], MIDDLE: [0, 1], HIGH: [1]}[int(wish[BUDGET])]
            likely = likely * (spoken.bounds[:, ends] == spoken.bounds[intents.kind[q], ends]).all(axis=1)
        return np.asarray(likely)

    def _taste(self, q: int, attribute: int, epoch: int) -> Array:
        intents, taste = self.intents, self.intents.language.taste[attribute][epoch]
        own = intents.shoppers.purse[intents.shopper[q]]
        return purse(intents.config, taste, own) if attribute == BUDGET else taste

    def _expected(self, q: int, kind: int) -> tuple[Ints, Array, float]:
        """Products of a kind, E[gain / best DCG] of each given that kind, P(what is said of wishes | those values).

        The wishes are those that were said and at most one more.
        """
        intents, config = self.intents, self.intents.config
        epoch = int(intents.epoch(np.array([q]))[0])
        rows = self._candidates(q, kind)
        value = self._values(rows, intents.time[[q]])
        said, wish = np.flatnonzero(intents.said[q]), intents.wish[q]
        missed = (value[:, said] != wish[said]).sum(axis=1)

        grades = [GRADES[len(said)][missed][None]]
        silent = 1 - config.unsaid if len(said) else 1.0
        weights = [np.array([self._sets[NUMBER[tuple(said.tolist())]] * silent])]
        for a in np.flatnonzero(~intents.said[q]).tolist() if len(said) < 3 else []:
            taste = self._taste(q, a, epoch)[kind]
            values = np.flatnonzero(taste)
            grades.append(GRADES[len(said) + 1][missed + (value[:, a] != values[:, None])])
            share = self._sets[NUMBER[tuple(sorted((*said.tolist(), a)))]]
            weights.append(share * config.unsaid / (len(said) + 1) * taste[values])
        grade, weight = np.concatenate(grades), np.concatenate(weights)
        best = best_dcg(grade)
        gains = (weight / np.where(best > 0, best, 1)) @ GAIN[grade]
        return rows, gains / weight.sum(), float(weight.sum())

    def _values(self, p: Ints, at: Ints) -> Ints:
        """(n, 6) with the budgets of that time."""
        shop = self.catalogue
        value = shop.value[p]
        value[:, BUDGET] = shop.budget[p, shop.on_sale(p, at)]
        return value

    def _candidates(self, q: int, kind: int) -> Ints:
        """Products of a kind that can be had and pass the filters."""
        intents = self.intents
        rows, at = self._of_kind[kind], intents.time[[q]]
        rows = rows[self.catalogue.available(rows, at)]
        filtered = intents.filtered[q]
        if filtered.any():
            value = self._values(rows, at)
            for a in FILTERABLE:
                if filtered[a]:
                    keep = value[:, a] == intents.wish[q, a]
                    rows, value = rows[keep], value[keep]
        return rows

    @cached_property
    def _of_kind(self) -> list[Ints]:
        kind = self.catalogue.kind
        return [np.flatnonzero(kind == k) for k in range(len(self.catalogue.language.things))]
