"""Two rankings shown as one: every user compares both, so their own habits cancel out.

Team-draft interleaving: Radlinski, Kurup, Joachims 2008, How does clickthrough data reflect retrieval quality? CIKM.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

D = TypeVar("D", bound=Hashable)


class Interleaved(NamedTuple, Generic[D]):
    """What is shown, and whose each item is: 0 is the first ranking's, 1 the second's."""

    ranking: list[D]
    teams: list[int]


def team_draft(a: Sequence[D], b: Sequence[D], size: int, rng: np.random.Generator) -> Interleaved[D]:
    """As captains pick teams: in every round both take the best that is left, and a coin says who begins.

    A side that has nothing left is passed over. Items within a ranking must differ.
    """
    ranking: list[D] = []
    teams: list[int] = []
    taken: set[D] = set()
    rest = [iter(a), iter(b)]
    while len(ranking) < size:
        before = len(ranking)
        first = int(rng.random() < 0.5)
        for team in (first, 1 - first):
            pick = next((item for item in rest[team] if item not in taken), None)
            if pick is not None and len(ranking) < size:
                ranking.append(pick)
                teams.append(team)
                taken.add(pick)
        if len(ranking) == before:
            break
    return Interleaved(ranking, teams)


def winner(teams: Sequence[int], clicked: Sequence[bool]) -> int:
    """1: the second ranking got more of a query's clicks, -1: the first one did, 0: neither."""
    votes = sum(2 * team - 1 for team, click in zip(teams, clicked, strict=True) if click)
    return (votes > 0) - (votes < 0)


class Preference(NamedTuple):
    """Of queries: how many each side won, and how surely that is no accident."""

    first: int
    second: int
    ties: int
    p_value: float  # two-sided sign test, for a number of queries that was fixed beforehand
    e_value: float  # anytime-valid: stop when it reaches 1 / alpha, whenever that is

    @property
    def share(self) -> float:
        """Of the queries that either won, those that the second one won; 0.5 where none was."""
        return self.second / (self.first + self.second) if self.first + self.second else 0.5


def preference(winners: Sequence[int] | NDArray[np.int64]) -> Preference:
    """From `winner` of each query."""
    votes = np.asarray(winners)
    first, second = int((votes < 0).sum()), int((votes > 0).sum())
    ties = len(votes) - first - second
    return Preference(first, second, ties, sign_test(first, second), evidence(first, second))


def sign_test(first: int, second: int) -> float:
    """Two-sided p-value of so many wins if either were as likely (exact)."""
    n, most = first + second, max(first, second)
    k = np.arange(most, n + 1)
    choose = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k.tolist()])
    return min(1.0, 2 * float(np.exp(choose - n * math.log(2)).sum()))


def evidence(first: int, second: int) -> float:
    """The likelihood of so many wins, the chance of each being any number alike, over that of even chances.

    A test martingale if the chances are even, so it ever reaches 1 / alpha with a chance of at most alpha, however
    often one looks (Ville 1939; the mixture: Robbins 1970, Ann. Math. Stat. 41:1397).
    """
    n = first + second
    log = math.lgamma(first + 1) + math.lgamma(second + 1) - math.lgamma(n + 2) + n * math.log(2)
    return math.exp(min(log, 700.0))
