"""How many queries tell two rankers of known quality apart: both shown as one, or each to half of the shoppers.

In the world of search: the rankings of highest expected nDCG against the same in a disturbed order. Whom a query is won
by, and what is clicked, has a law that the world knows (all drafts, all clicks), so that tests of any size are drawn
from it. A verdict is a two-sided test at 5 %. What is needed is the least number of queries, of a grid, at which four
of five tests find the better ranker; at that number the same test is run on equal rankers, too. The A/B tests count any
click, clicks, or 1 / rank of the first click, of each query by itself, as if no shopper asked twice: that is to their
advantage.

Run: make bench-full, or python -m benchmarks.interleaving [--json]
"""

import json
import sys
import time
from collections.abc import Callable
from itertools import product
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.clock import DAY
from common.experiments import interleaving
from common.experiments.ab import difference, units_needed
from systems.search.config import SMALL
from systems.search.data import Query, ShopWorld, world

SEEDS = (0, 1, 2)
DISTURBED = (1.5, 4.0)  # standard deviation of what is added to ranks: two sizes of difference
SIZE = 10  # results shown
QUERIES = 1_500  # of the world, drawn from with replacement
TESTS = 400
ALPHA, POWER = 0.05, 0.8
GRID = np.round(64 * 2 ** (np.arange(49) / 4)).astype(int)  # queries, to a quarter of a million

Array = NDArray[np.float64]
Ranking = list[str]


class Law(NamedTuple):
    """What a query may say, and how often it does."""

    values: Array
    shares: Array

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        return np.repeat(self.values, rng.multinomial(n, self.shares))

    @property
    def mean(self) -> float:
        return float(self.values @ self.shares)

    @property
    def variance(self) -> float:
        return float((self.values - self.mean) ** 2 @ self.shares)


def drafts(shop: ShopWorld, query: Query, a: Ranking, b: Ranking) -> Array:
    """(3,) the chances that the first ranking wins a query, neither, the second; over all drafts and clicks."""
    lots = [iter(lot) for lot in product((0.0, 0.9), repeat=SIZE // 2)]
    found = [interleaving.team_draft(a, b, SIZE, lot.__next__) for lot in lots]
    items = list(dict.fromkeys((*a, *b)))
    liked = dict(zip(items, shop.attraction([query] * len(items), items).tolist(), strict=True))
    looked = shop.examination([query] * SIZE, range(1, SIZE + 1))
    p = looked * np.array([[liked[item] for item in draft.ranking] for draft in found])  # (32, SIZE)
    teams = np.array([draft.teams for draft in found])[:, :, None]
    votes = np.zeros((len(found), 2 * SIZE + 1))  # -SIZE to SIZE
    votes[:, SIZE] = 1
    for i in range(SIZE):
        after = np.where(teams[:, i] > 0, np.roll(votes, 1, axis=1), np.roll(votes, -1, axis=1))
        after = np.where(teams[:, i] == 0, votes, after)
        votes = (1 - p[:, [i]]) * votes + p[:, [i]] * after
    share = votes.mean(axis=0)
    return np.array([share[:SIZE].sum(), share[SIZE], share[SIZE + 1 :].sum()])


def alone(shop: ShopWorld, query: Query, ranking: Ranking) -> tuple[Array, Array]:
    """(SIZE + 1,) each: the chances of 0, 1, ... clicks, and of the first one at rank 1, 2, ..., never."""
    p = shop.examination([query] * SIZE, range(1, SIZE + 1)) * shop.attraction([query] * SIZE, ranking)
    count = np.zeros(SIZE + 1)
    count[0] = 1
    for chance in p:
        count = (1 - chance) * count + chance * np.r_[0, count[:-1]]
    none_before = np.cumprod(np.r_[1, 1 - p])
    return count, np.r_[none_before[:-1] * p, none_before[-1]]


def laws(shop: ShopWorld, asked: list[Query], rankings: list[Ranking]) -> dict[str, Law]:
    """By what an A/B test may count."""
    pairs = [alone(shop, query, ranking) for query, ranking in zip(asked, rankings, strict=True)]
    count, first = (np.mean([pair[i] for pair in pairs], axis=0) for i in range(2))
    return {
        "any_click": Law(np.array([0.0, 1.0]), np.array([count[0], 1 - count[0]])),
        "clicks": Law(np.arange(SIZE + 1.0), count),
        "reciprocal_rank": Law(np.r_[1 / np.arange(1, SIZE + 1), 0], first),
    }


def interleaved(shop: ShopWorld, asked: list[Query], a: list[Ranking], b: list[Ranking]) -> Law:
    shares = np.mean([drafts(shop, *those) for those in zip(asked, a, b, strict=True)], axis=0)
    return Law(np.array([-1.0, 0.0, 1.0]), shares)


def by_interleaving(law: Law, n: int, rng: np.random.Generator) -> int:
    """The side that a test of n queries decides for, -1 or 1; 0: it does not."""
    found = interleaving.preference(law.draw(n, rng))
    return 0 if found.p_value > ALPHA else 1 if found.share > 0.5 else -1


def by_groups(a: Law, b: Law, n: int, rng: np.random.Generator) -> int:
    found = difference(a.draw(n // 2, rng), b.draw(n // 2, rng))
    return 0 if found.p_value > ALPHA else 1 if found.mean > 0 else -1


def share(verdict: Callable[[], int], *those: int) -> float:
    return sum(verdict() in those for _ in range(TESTS)) / TESTS


def needed(verdict: Callable[[int], int]) -> int | None:
    """By bisection, as power grows with the number of queries; None: more than the grid has."""
    low, high = 0, len(GRID)
    while low < high:
        middle = (low + high) // 2
        enough = share(lambda: verdict(int(GRID[middle])), -1) >= POWER  # noqa: B023
        low, high = (low, middle) if enough else (middle + 1, high)
    return int(GRID[low]) if low < len(GRID) else None


def anytime(law: Law, rng: np.random.Generator) -> int:
    """Queries until the evidence suffices for whoever looks after every one of them, median."""
    stops = []
    for _ in range(TESTS // 4):
        drawn = rng.permutation(law.draw(int(GRID[-1]), rng))
        first, second = np.cumsum(drawn < 0), np.cumsum(drawn > 0)
        at = 1
        while at < len(drawn) - 1 and interleaving.evidence(int(first[at]), int(second[at])) < 1 / ALPHA:
            at = min(at + 1 + at // 50, len(drawn) - 1)
        stops.append(at + 1)
    return int(median(stops))


def compare(seed: int, disturbed: float) -> dict[str, object]:
    rng, shop = np.random.default_rng([seed, int(10 * disturbed)]), world(SMALL, seed)
    arrived = [a.event for a in shop.arrivals(SMALL.start + SMALL.history_days * DAY)]
    every = [event for event in arrived if isinstance(event, Query)]
    every = [every[i] for i in rng.choice(len(every), QUERIES, replace=False)]
    full = [(q, ranking) for q, ranking in zip(every, shop.best(every, 2 * SIZE), strict=True) if len(ranking) > SIZE]
    asked, good = [q for q, _ in full], [ranking[:SIZE] for _, ranking in full]
    worse = [[r[i] for i in np.argsort(np.arange(len(r)) + rng.normal(0, disturbed, len(r)))][:SIZE] for _, r in full]

    won = interleaved(shop, asked, good, worse)
    even = (won.shares + won.shares[::-1]) / 2  # of two as good as each other that differ as often
    queries = needed(lambda n: by_interleaving(won, n, rng))
    assert queries is not None, "the difference is too small for the grid"
    methods: dict[str, dict[str, float | None]] = {
        "interleaving": {
            "queries": queries,
            "false_alarms": share(lambda: by_interleaving(Law(won.values, even), queries, rng), -1, 1),
            "anytime_queries": anytime(won, rng),
        }
    }
    of_good, of_worse = (laws(shop, asked, ranked) for ranked in (good, worse))
    for name, a in of_good.items():
        b = of_worse[name]
        mine = needed(lambda n: by_groups(a, b, n, rng))  # noqa: B023
        methods[f"ab_{name}"] = {
            "queries": mine,
            "false_alarms": share(lambda: by_groups(a, a, mine or int(GRID[-1]), rng), -1, 1),  # noqa: B023
            "by_formula": units_needed(b.mean - a.mean, (a.variance + b.variance) / 2, ALPHA, POWER),
        }
    fewest = min(of["by_formula"] for name, of in methods.items() if name != "interleaving")
    return {
        "seed": seed,
        "disturbed": disturbed,
        "ndcg_at_10": {"good": float(shop.ndcg(asked, good).mean()), "worse": float(shop.ndcg(asked, worse).mean())},
        "methods": methods,
        "times_fewer_queries": fewest / queries,  # than the best of the A/B tests
    }


def main() -> None:
    start = time.perf_counter()
    runs = [compare(seed, disturbed) for disturbed in DISTURBED for seed in SEEDS]
    fewer = {
        f"disturbed_{d:g}": median(r["times_fewer_queries"] for r in runs if r["disturbed"] == d) for d in DISTURBED
    }
    seconds = round(time.perf_counter() - start, 1)
    if "--json" in sys.argv:
        print(json.dumps({"alpha": ALPHA, "power": POWER, "fewer": fewer, "runs": runs, "seconds": seconds}, indent=2))
        return
    for run in runs:
        quality = " against ".join(f"{value:.4f}" for value in run["ndcg_at_10"].values())
        print(f"seed {run['seed']}, nDCG@10 {quality}: {run['times_fewer_queries']:.1f} times fewer queries")
        for name, found in run["methods"].items():
            print(f"  {name:20}", *(f"{key} {value}" for key, value in found.items()))
    print(f"median by size of the difference: {fewer}; {seconds} s")


if __name__ == "__main__":
    main()
