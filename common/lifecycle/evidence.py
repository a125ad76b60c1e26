"""Is a canary worse than the champion beside it? Watched all the time, by unit, at a stated false-rollback rate.

Routing draws by unit who meets the canary, with a known probability. So where the version makes no difference, whoever
has trouble next is a canary unit with just that probability, whatever units, hours, tails and laws are like: this
lot is all that is assumed. A bet on the canary multiplies its stake by q / share when the unit that is in trouble is
the canary's and by (1 - q) / (1 - share) when it is not. Under the null the stake is a nonnegative martingale of mean
1, so it ever reaches 1 / alpha with probability alpha at most (Ville 1939; Ramdas, Gruenwald, Vovk & Shafer 2023,
Statistical Science 38:576). Stakes are averaged over fixed ratios of the two rates, as in the safe test of two
proportions (Turner, Ly & Gruenwald 2024, Journal of Statistical Planning and Inference 230:106116). The highest stake
so far counts, so what was bad once stays bad.

By unit: in a round a unit counts once per test, when it first has trouble. The first round is the canary's whole life,
so that what a few requests of each step show adds up: a unit that had no trouble yet is the canary's with the share of
the step that is on. Later rounds are a step, or a day of it, after the first. Each begins anew at alpha / (r (r + 1)),
because the same unfortunate units are the canary's every day and must not add up, while a version that breaks on its
third day must be seen. Margins are charged to the champion: as if a share of its good
answers, drawn by lot, were trouble too, averaged over these draws; so the null is a canary that is worse by up to the
margin. A canary whose units have trouble later, or less, only lowers the stake. Losses differ: see `Evidence.lost`.

The lot is fair given when the steps began. They begin after counts and times, and so depend on who is in the canary
by way of how much its units ask; `benchmarks.rollout` measures what comes of all that.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.clock import DAY, HOUR, MILLISECOND, MINUTE

ERRORS, MISSING, LATENCY, GAP, LOSS = TESTS = "errors", "missing", "latency", "gap", "loss"
TROUBLE = ERRORS, MISSING, LATENCY, GAP  # the tests of which it is asked what they would notice
WEIGHTS = {ERRORS: 0.3, MISSING: 0.3, LATENCY: 0.1, GAP: 0.1, LOSS: 0.2}  # of the rate; rare trouble needs most
RATIOS = np.array([2, 4, 12, 50])  # how much more often the canary is in trouble, that is betted on
STAKES = np.array([0.03, 0.1, 0.2, 0.4, 0.8])  # lost where a champion's unit is at the cap
_LOST = "unit", "canary", "loss"
QUANTILE = 0.9  # of the champion's latencies
DRAWS = 400  # of what a bad canary would have shown
FIRST = 200  # answers of a round that show what latencies are usual
CAP = 10  # times the mean over all units, at which a unit's mean loss is clipped

Flags: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]
Timetable: TypeAlias = Sequence[tuple[int, float]]  # from when on (us) the canary got which share of the units


@dataclass(frozen=True)
class Observation:
    """What became of one request, by the version that routing gave its unit."""

    unit: str
    canary: bool
    at: int  # us
    failed: bool  # the version raised
    missing: bool  # no answer, or NaN
    took: int  # us that the version needed
    gap: float | None  # |live score - the same bundle's offline score on the same request|; None: not checked
    loss: float | None  # cost of the decision, >= 0, once its label is known; None: not known


@dataclass(frozen=True, eq=False)
class Seen:
    """Observations as columns of length n, in order of time, equal times in an order that no arm has a part in."""

    unit: NDArray[np.uint64]
    canary: Flags
    at: NDArray[np.int64]  # us
    failed: Flags
    missing: Flags
    took: NDArray[np.int64]  # us
    gap: Floats  # NaN: not checked
    loss: Floats  # NaN: not known

    def in_order(self) -> Self:
        order = np.lexsort((self.unit, self.at))
        return type(self)(*(column[order] for column in vars(self).values()))

    @classmethod
    def of(cls, observations: "Sequence[Observation] | Seen") -> "Seen":
        if isinstance(observations, Seen):
            return observations
        numbers = {unit: _number(unit) for unit in {o.unit for o in observations}}
        return cls(
            np.array([numbers[o.unit] for o in observations], np.uint64),
            np.array([o.canary for o in observations], np.bool_),
            np.array([o.at for o in observations], np.int64),
            np.array([o.failed for o in observations], np.bool_),
            np.array([o.missing for o in observations], np.bool_),
            np.array([o.took for o in observations], np.int64),
            np.array([np.nan if o.gap is None else o.gap for o in observations], np.float64),
            np.array([np.nan if o.loss is None else o.loss for o in observations], np.float64),
        ).in_order()

    def where(self, chosen: Flags | slice) -> Self:
        return type(self)(*(column[chosen] for column in vars(self).values()))

    def known(self, test: str) -> Flags:
        """Of which answers there is what a test looks at, (n,)."""
        if test not in (GAP, LOSS):
            return np.ones(len(self.at), np.bool_)
        return ~np.isnan(self.gap if test == GAP else self.loss)


@dataclass(frozen=True)
class Verdict:
    bad: str | None  # the test that says so
    tests: Mapping[str, float | None]  # weighted e-values, to compare with `Evidence.enough`; None: not known
    canary_units: int
    canary_requests: int


@dataclass(frozen=True)
class Evidence:
    """What is too much, and how sure one must be of it."""

    rate: float = 0.005  # of false rollbacks, over all tests and the whole life of a canary
    margin: float = 0.001  # of its requests, that the canary may fail, leave without answer or score off, beyond it
    slower: int = 20 * MILLISECOND  # us that it may be slower
    tolerance: float = 1e-6  # of |live - offline score|
    dearer: float = 0.05  # of a unit's loss, that it may cost more
    span: int = DAY  # us, of a round: a unit counts once in it
    settle: int = MINUTE  # us after a change of shares, until all servers have heard of it
    silence: int = HOUR  # us; of an arm that was silent for longer nothing is known: it shows no trouble, nor that none
    # what a canary could have done that `power` is asked of:
    trouble: float = 0.05  # of its requests failed, or got no answer;
    late: int = 100 * MILLISECOND  # us, all were slower;
    unlike: float = 0.5  # of its requests scored unlike offline

    @property
    def enough(self) -> float:
        """An e-value that has reached this is evidence."""
        return 1 / self.rate

    def judge(self, observations: Sequence[Observation] | Seen, timetable: Timetable, now: int) -> Verdict:
        """All since the canary began, and its timetable; the same for the same input, whoever looked before.

        However often one looks, errors, missing, latency and gap are exact. Losses are looked at once a day; labels
        that come later than that move what such a look finds.
        """
        seen = Seen.of(observations)
        rounds = list(self._rounds(seen, timetable, now))
        evidence = {test: self._weighed(test, rounds) for test in TESTS}
        worst = max(TESTS, key=lambda test: evidence[test] or 0.0)
        bad = worst if (evidence[worst] or 0.0) >= self.enough else None
        units = len(np.unique(seen.unit[seen.canary]))
        return Verdict(bad, evidence, units, int(seen.canary.sum()))

    def power(self, observations: Sequence[Observation] | Seen, timetable: Timetable, now: int) -> dict[str, float]:
        """P(evidence from its whole life by now, had the canary been bad) of each test that knows of both arms.

        Given who asked, and what befell the champion; each of the canary's requests has trouble by a lot of its own,
        in `DRAWS` draws. That the stake may have been higher on the way is left out.
        """
        rounds = list(self._rounds(Seen.of(observations), timetable, now))
        if not rounds:
            return {}
        seen, share = _together(rounds)
        return {test: self._noticed(test, seen, share) for test in TROUBLE if _both(test, seen)}

    def _noticed(self, test: str, seen: Seen, share: Floats) -> float:
        needed = 2 * self.enough / WEIGHTS[test]
        if test == LATENCY:
            champion, canary = (float(np.median(seen.took[arm])) for arm in (~seen.canary, seen.canary))
            later = self.late + max(0, round(champion - canary))  # than the champion
            late = replace(seen, took=seen.took + later * seen.canary)
            return float((self._slow(late, share) or 0.0) >= needed)
        known = seen.known(test)
        seen, share, bad = seen.where(known), share[known], self._bad(test, seen)[known]
        gained, of, could = _bets(seen, bad & ~seen.canary, share, self.margin)
        _, start, count = np.unique(of, return_index=True, return_counts=True)
        usual = float(bad[~seen.canary].mean())  # it has the champion's trouble, and its own
        chance = 1 - (1 - usual) * (1 - (self.unlike if test == GAP else self.trouble))
        rng, noticed, without = np.random.default_rng(0), 0, gained.sum(axis=0)
        for _ in range(DRAWS):
            first = rng.geometric(chance, len(count))  # of a unit's requests, that has trouble
            hit = could[np.minimum(start + first - 1, len(could) - 1)] * (first <= count)[:, None]
            noticed += bool(_average(without + hit.sum(axis=0)) >= needed)
        return noticed / DRAWS

    def _bad(self, test: str, seen: Seen) -> Flags:
        return {ERRORS: seen.failed, MISSING: seen.missing, GAP: ~(seen.gap <= self.tolerance)}[test]

    def _weighed(self, test: str, rounds: Sequence["Round"]) -> float | None:
        """The highest e-value so far; None: not known."""
        if test == LOSS:
            found = [(part.number, self.lost(rounds[: i + 1])) for i, part in enumerate(rounds)]
        else:
            found = [(part.number, self._tried(test, part.seen, part.share)) for part in rounds[1:]]
            found += [(1, self._tried(test, *_together(rounds)))] if rounds else []
        weighed = [e * WEIGHTS[test] / (number * (number + 1)) for number, e in found if e is not None]
        return max(weighed, default=None)

    def _rounds(self, seen: Seen, timetable: Timetable, now: int) -> Iterator["Round"]:
        number = 0
        for (start, share), end in zip(timetable, [*(at for at, _ in timetable[1:]), None], strict=True):
            for begin in range(start, max(now if end is None else end, start + 1), self.span):
                number += 1
                until = begin + self.span if end is None else min(begin + self.span, end)
                low, high = np.searchsorted(seen.at, [max(begin, start + self.settle), until])
                if 0 < share < 1:
                    part = self._comparable(seen.where(slice(low, high)))
                    yield Round(number, start, share, until <= now, part)

    def _comparable(self, seen: Seen) -> Seen:
        """One arm per unit, its first; and of the canary only what happened while the champion was heard of."""
        _, first, of = np.unique(seen.unit, return_index=True, return_inverse=True)
        near = np.concatenate([[-(2**62)], seen.at[~seen.canary], [2**62]])
        after = np.searchsorted(near, seen.at)
        heard = np.minimum(near[after] - seen.at, seen.at - near[after - 1]) <= self.silence
        return seen.where((seen.canary == seen.canary[first][of]) & (heard | ~seen.canary))

    def _tried(self, test: str, seen: Seen, share: float | Floats) -> float | None:
        """The e-value of a round; None where it cannot be told."""
        if not _both(test, seen):
            return None
        shares, known = np.broadcast_to(share, len(seen.at)), seen.known(test)
        if test == LATENCY:
            return self._slow(seen, shares)
        return bets(seen.where(known), self._bad(test, seen)[known], shares[known], self.margin)

    def _slow(self, seen: Seen, share: Floats) -> float | None:
        """By the quantile of both arms that is the champion's 0.9 where all of the canary is slower: of neither arm."""
        if len(seen.at) < FIRST:
            return None
        took = seen.took + np.where(seen.canary, 0, self.slower)
        return bets(seen, took > np.quantile(took[:FIRST], QUANTILE * (1 - share[0])), share, 0.0)

    def lost(self, rounds: Sequence["Round"]) -> float | None:
        """The e-value at the end of the last round, by each unit's mean loss in a step, clipped at 10 x that of all.

        A bet on the canary's part of the losses (Waudby-Smith & Ramdas 2024, JRSS B 86:1). It grows over steps, as
        each draws anew among the units that were the champion's: with the chance that is left, given what was seen.
        Those that were the canary's before are no news.
        """
        if not rounds[-1].over:
            return None
        units = np.unique(np.concatenate([part.seen.unit for part in rounds]))
        was_canary, above = np.zeros(len(units), np.bool_), np.zeros(len(units))  # what is known of each one's draw
        stakes, told = np.zeros(len(STAKES)), np.zeros(2, np.bool_)
        for _, group in groupby(rounds, lambda part: part.start):
            step = list(group)
            unit, arm, loss = (np.concatenate([getattr(p.seen, name) for p in step]) for name in _LOST)
            who, known, share = np.searchsorted(units, unit), ~np.isnan(loss), step[0].share
            count = np.bincount(who[known], minlength=len(units))
            mean = np.bincount(who[known], np.maximum(loss[known], 0.0), len(units)) / np.maximum(count, 1)
            canary, here = np.zeros(len(units), np.bool_), np.zeros(len(units), np.bool_)
            canary[who], here[who] = arm, True
            chance = (share - above) / (1 - above)
            news = (count > 0) & (chance > 0) & ~was_canary
            if (cap := CAP * mean[news].sum() / max(news.sum(), 1)) > 0:
                lost = np.minimum(np.where(canary[news], 1.0, 1 + self.dearer) * mean[news] / cap, 1.0)
                gain = np.where(canary[news], 1 / chance[news] - 1, -1.0) * lost
                stakes += np.log1p(np.multiply.outer(gain, STAKES)).sum(axis=0)
            told |= [(news & canary).any(), (news & ~canary).any()]
            was_canary |= canary
            above[here & ~canary] = np.maximum(above[here & ~canary], share)
        return float(_average(stakes)) if told.all() else None


@dataclass(frozen=True, eq=False)
class Round:
    """A step, or a day of it."""

    number: int  # 1, 2, 3, ...
    start: int  # us, of the step
    share: float
    over: bool
    seen: Seen


def _together(rounds: Sequence[Round]) -> tuple[Seen, Floats]:
    """What all of them saw, and the canary's share at each request."""
    columns = zip(*(vars(part.seen).values() for part in rounds), strict=True)
    share = np.repeat([part.share for part in rounds], [len(part.seen.at) for part in rounds])
    return Seen(*(np.concatenate(column) for column in columns)), share


def _both(test: str, seen: Seen) -> bool:
    """Whether a test knows something of both arms."""
    known = seen.known(test)
    return bool((known & seen.canary).any() and (known & ~seen.canary).any())


def bets(seen: Seen, bad: Flags, share: float | Floats, margin: float) -> float:
    """The highest stake on the way, by the first trouble of each unit; `share` of all, or of each request, (n,)."""
    gained, _, _ = _bets(seen, bad, share, margin)
    return max(1.0, float(_average(np.cumsum(gained, axis=0)).max()))


def _bets(seen: Seen, bad: Flags, share: float | Floats, margin: float) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Logarithms, by ratio, of what each request that counts multiplies the stake by.

    And of what it would be by trouble of the canary's units, whose requests come by unit, with the units.
    """
    _, of, counts = np.unique(seen.unit, return_inverse=True, return_counts=True)
    place = np.arange(len(of))
    first = np.full(len(counts), len(of))
    first[of[bad][::-1]] = place[bad][::-1]  # the earliest one is written last
    counted = np.flatnonzero(place <= first[of])
    of, canary, trouble, share = (
        of[counted],
        seen.canary[counted],
        (place == first[of])[counted],
        np.broadcast_to(share, len(place))[counted, None],
    )
    q = share * RATIOS / (share * RATIOS + 1 - share)
    up, down = q / share, (1 - q) / (1 - share)
    # Of a champion's unit, the part of the draws in which it is not charged yet, and the stakes of the others
    good = ~canary & ~trouble
    free = (1 - margin) ** _before(of, good[:, None].astype(float))
    charge = np.where(good[:, None], free * margin * down, 0.0)
    charged = _before(of, charge)
    after = charged + charge + free * np.where(good[:, None], 1 - margin, 1.0)
    after[trouble] = (charged + free * np.where(canary[:, None], up, down))[trouble]
    gained = np.log(after) - np.log(charged + free)
    mine = np.flatnonzero(canary)[np.argsort(of[canary], kind="stable")]
    could = np.log(charged + free * up)[mine] - np.log(charged + free)[mine]
    return gained, of[mine], could


def _before(of: NDArray[np.int64], values: Floats) -> Floats:
    """The sum over earlier rows of the same unit, (n, k) as the values are."""
    order = np.argsort(of, kind="stable")
    sums = np.cumsum(values[order], axis=0) - values[order]
    start = np.searchsorted(of[order], of[order])
    found = np.empty_like(sums)
    found[order] = sums - sums[start]
    return found


def _average(logarithms: Floats) -> Floats:
    """Over the last axis; cut off where numbers end."""
    averaged: Floats = np.exp(np.minimum(logarithms, 700.0)).mean(axis=-1)
    return averaged


def _number(unit: str) -> int:
    return int.from_bytes(hashlib.blake2b(unit.encode(), digest_size=8).digest())
