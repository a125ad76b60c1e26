"""Two rankings shown as one: every user compares both, so their own habits cancel out.

Team-draft interleaving: Radlinski, Kurup, Joachims 2008, How does clickthrough data reflect retrieval quality? CIKM.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

D = TypeVar("D", bound=Hashable)


class Interleaved(NamedTuple, Generic[D]):
    """What is shown, and whose each item is: -1 the first ranking's, 1 the second's, 0 of both alike."""

    ranking: list[D]
    teams: list[int]


def team_draft(a: Sequence[D], b: Sequence[D], size: int, luck: Callable[[], float]) -> Interleaved[D]:
    """As captains pick teams: in every round both take the best that is left, and a coin says who begins.

    Where both would take the same, it is shown and a click on it decides nothing (Chapelle et al. 2012, Large-scale
    validation and analysis of interleaved search evaluation, TOIS 30:6). luck: draws from [0, 1), one per round at
    most. A side that has nothing left is passed over. Items of a ranking must differ.
    """
    ranking: list[D] = []
    teams: list[int] = []
    taken: set[D] = set()

    def show(item: D, team: int) -> None:
        ranking.append(item)
        teams.append(team)
        taken.add(item)

    lists, at = (a, b), [0, 0]
    while len(ranking) < size:
        for side, own in enumerate(lists):
            while at[side] < len(own) and own[at[side]] in taken:
                at[side] += 1
        left = [own[at[side]] if at[side] < len(own) else None for side, own in enumerate(lists)]
        if left[0] is None and left[1] is None:
            break
        if left[0] == left[1] and left[0] is not None:
            show(left[0], 0)
            continue
        first = int(None not in left and luck() < 0.5)
        for side in (first, 1 - first):
            pick = left[side]
            if pick is not None and len(ranking) < size:
                show(pick, 2 * side - 1)
    return Interleaved(ranking, teams)


def winner(teams: Sequence[int], clicked: Sequence[bool]) -> int:
    """1: the second ranking got more of a query's clicks, -1: the first one did, 0: neither."""
    votes = sum(team for team, click in zip(teams, clicked, strict=True) if click)
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
