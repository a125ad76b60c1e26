"""Who asks for what, when, and in which words: every query of the world, drawn once."""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np

from common.clock import DAY, HOUR
from systems.search.config import CATEGORIES, Config
from systems.search.data.catalogue import AFTER, BEFORE, A, Array, Flags, Ints, Language, pick, say, stream
from systems.search.data.words import (
    BRAND,
    BUDGET,
    BUDGETS,
    CHEAP,
    COLOUR,
    DEAR,
    FILLERS,
    MIDDLING,
    SIZE,
    UNDER,
    forms,
    mistype,
    sections,
)

# Queries by hour of the day, and by weekday from Monday; each averages 1.
_HOURS = np.array([2, 1, 1, 1, 1, 2, 4, 6, 8, 9, 10, 10, 12, 11, 10, 10, 11, 13, 16, 20, 22, 19, 12, 6], dtype=float)
HOURS: Final = _HOURS / _HOURS.mean()
WEEKDAYS: Final = np.array([1.05, 0.95, 0.9, 0.9, 0.85, 1.05, 1.3])
LOW, MIDDLE, HIGH = range(len(BUDGETS))
FILTERABLE: Final = (COLOUR, BRAND, BUDGET)

# What may be wished for beside the kind: sets of up to three attributes
SETS: Final = tuple(chosen for size in range(4) for chosen in combinations(range(A), size))
MASKS: Final = np.array([[a in chosen for a in range(A)] for chosen in SETS])  # (42, 6)
NUMBER: Final = {chosen: i for i, chosen in enumerate(SETS)}


def set_share(config: Config) -> Array:
    """(42,) how often each set is wished."""
    weight = np.prod(np.where(MASKS, config.wish_weight, 1.0), axis=1)
    size = MASKS.sum(axis=1)
    return np.asarray(weight / np.bincount(size, weight)[size] * np.array(config.wishes)[size])


def season(config: Config, day: Ints) -> Array:
    """(n, categories) how much is wanted on those days of the world, relative to the year."""
    told = [sections()[name] for name in CATEGORIES[: config.categories]]
    date = (config.start // DAY + day) % 365.25  # the epoch was a first of January
    peak, swing = np.array([s.peak for s in told]), np.array([s.swing for s in told])
    return np.asarray(swing ** np.cos(2 * np.pi * (date[:, None] - peak) / 365.25))


@dataclass(frozen=True)
class Shoppers:
    """S of them."""

    activity: Array  # (S,) share of all queries
    lift: Array  # (S, categories) by how much the demand for favourites is higher
    purse: Ints  # (S,) the budget that is theirs
    phone: Ints  # (S,) 1: they search on a phone
    slips: Array  # (S,) chance of a typo


@dataclass(frozen=True)
class Intents:
    """What is behind each query, in order of time: n of them."""

    config: Config
    language: Language
    shoppers: Shoppers
    drift_at: int  # us
    time: Ints  # (n,) us
    shopper: Ints
    said: Flags  # (n, 6) wishes that are said, in words or as a filter
    filtered: Flags  # (n, 6) as a filter
    by_category: Flags  # (n,) its category is a filter, too
    in_eur: Flags  # (n,) "under 50"
    word: Ints  # (n,) what the thing is called
    text: list[str]
    clean: list[str]  # without its typo, if any

    kind: Ints  # (n,)
    wish: Ints  # (n, 6) the value of each attribute that is wished, -1: any

    def __len__(self) -> int:
        return len(self.time)

    def epoch(self, rows: Ints) -> Ints:
        return np.where(self.time[rows] >= self.drift_at, AFTER, BEFORE)

    def demand(self, rows: Ints) -> Array:
        """(n, K) how probable each kind is, given who asks and when."""
        return demand(self.config, self.language, self.shoppers, self.time[rows], self.shopper[rows], self.epoch(rows))

    def groups(self) -> dict[str, Flags]:
        """Head, torso and tail by how often a text is asked for while the world lasts, and typos; (n,) each."""
        times = Counter(self.clean)
        count = np.array([times[text] for text in self.clean])
        ordered = [size for _, size in times.most_common()]
        least = ordered[int(np.searchsorted(np.cumsum(ordered), self.config.head_share * len(self)))] if times else 0
        tail = count <= self.config.tail_count
        head = (count >= least) & ~tail
        typo = np.array([a != b for a, b in zip(self.text, self.clean, strict=True)], bool)
        return {"head": head, "torso": ~head & ~tail, "tail": tail, "typo": typo}


def demand(config: Config, spoken: Language, people: Shoppers, time: Ints, shopper: Ints, epoch: Ints) -> Array:
    of_category = season(config, (time - config.start) // DAY) * people.lift[shopper]
    weight = spoken.demand[epoch] * of_category[:, spoken.category]
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))


def purse(config: Config, taste: Array, own: Ints | int) -> Array:
    """Wishes for budgets, (..., 3), of shoppers with those purses."""
    weight = taste * np.where(np.arange(len(BUDGETS)) == np.asarray(own)[..., None], config.purse_lift, 1.0)
    return np.asarray(weight / weight.sum(axis=-1, keepdims=True))


def _people(config: Config, seed: int) -> Shoppers:
    rng, n = stream(seed, "people"), config.shoppers
    activity = rng.gamma(config.activity_shape, 1.0, n)
    liked = rng.integers(0, config.categories, (n, config.favourites))
    lift = np.ones((n, config.categories))
    lift[np.arange(n)[:, None], liked] = config.favourite_lift
    return Shoppers(
        activity=activity / activity.sum(),
        lift=lift,
        purse=rng.integers(0, len(BUDGETS), n),
        phone=(rng.uniform(size=n) < config.phones).astype(np.int64),
        slips=np.minimum(rng.gamma(2.0, config.typos / 2, n), 0.5),
    )


def intents(config: Config, seed: int, spoken: Language, drift_at: int) -> Intents:
    people, rng = _people(config, seed), stream(seed, "intents")
    weekday = (config.start // DAY + 3 + np.arange(config.days)) % 7  # the epoch was a Thursday
    day = np.repeat(np.arange(config.days), rng.poisson(config.queries_per_day * WEEKDAYS[weekday]))
    n = len(day)
    hour = pick(np.cumsum(HOURS / 24)[None], rng.uniform(size=n))
    time = np.sort(config.start + day * DAY + hour * HOUR + rng.integers(1, HOUR, n))
    shopper = pick_sorted(np.cumsum(people.activity), rng.uniform(size=n))
    epoch = np.where(time >= drift_at, AFTER, BEFORE)

    u = rng.uniform(size=n)
    kind = np.concatenate(
        [
            pick(np.cumsum(demand(config, spoken, people, time[p], shopper[p], epoch[p]), axis=1), u[p])
            for p in np.array_split(np.arange(n), 1 + n // 10_000)
        ]
    )
    wished = MASKS[pick(np.cumsum(set_share(config))[None], rng.uniform(size=n))]
    wish = np.full((n, A), -1)
    for a in range(A):
        taste = spoken.taste[a][epoch, kind]
        taste = purse(config, taste, people.purse[shopper]) if a == BUDGET else taste
        wish[:, a] = np.where(wished[:, a], pick(np.cumsum(taste, axis=1), rng.uniform(size=n)), -1)
    size = wished.sum(axis=1)
    dropped = (rng.uniform(size=n) * np.maximum(size, 1)).astype(np.int64)  # of the wishes, in their order
    silent = (rng.uniform(size=n) < config.unsaid) & (size > 0)
    said = wished & ~(silent[:, None] & (np.cumsum(wished, axis=1) - 1 == dropped[:, None]))
    filtered = said & np.isin(np.arange(A), FILTERABLE) & (rng.uniform(size=(n, A)) < config.by_filter)
    by_category = rng.uniform(size=n) < config.category_filter
    in_eur = said[:, BUDGET] & ~filtered[:, BUDGET] & (wish[:, BUDGET] == LOW) & (rng.uniform(size=n) < config.under)
    word = pick(np.cumsum(spoken.word_share[epoch, kind], axis=1), rng.uniform(size=n))

    chances = rng.uniform(size=(n, A + 2))
    told = np.where(said & ~filtered, wish, -1)
    lows = np.where(in_eur, spoken.bounds[kind, 0], 0.0)
    clean = [
        _wording(config, spoken, spoken.words[w], values, chance, low)
        for w, values, chance, low in zip(word.tolist(), told.tolist(), chances.tolist(), lows.tolist(), strict=True)
    ]
    slips = rng.uniform(size=(n, 4))
    text = list(clean)
    known = _vocabulary(spoken)
    for i in np.flatnonzero(slips[:, 0] < people.slips[shopper]).tolist():
        wrong = mistype(clean[i], (slips[i, 1], slips[i, 2], slips[i, 3]))
        if not set(wrong.split(" ")) - set(clean[i].split(" ")) & known:  # else it would be another word
            text[i] = wrong
    return Intents(
        config, spoken, people, drift_at, time, shopper, said, filtered, by_category, in_eur, word, text, clean, kind,
        wish,
    )  # fmt: skip


def _vocabulary(spoken: Language) -> set[str]:
    """Every word that a query may hold."""
    told = [
        form for a, values in enumerate(spoken.values) if a != BUDGET for value in values for form in forms(a, value)
    ]
    return set(" ".join((*spoken.words, *told, *CHEAP, *MIDDLING, *DEAR, *FILLERS)).lower().split())


def pick_sorted(cumulative: Array, u: Array) -> Ints:
    """As `pick`, of many categories; cumulative: (categories,)."""
    return np.minimum(np.searchsorted(cumulative, u, side="right"), len(cumulative) - 1)


def _wording(config: Config, spoken: Language, word: str, values: list[int], u: list[float], low: float) -> str:
    """values: those that are put into words, -1: not; low: EUR, 0: the budget is not said in EUR."""
    parts = {
        a: say(forms(a, spoken.values[a][v]), u[a], config.first_form)
        for a, v in enumerate(values)
        if v >= 0 and a != BUDGET
    }
    budget, after = "", ""
    if low:
        after = UNDER.format(f"{low:g}")
    elif values[BUDGET] >= 0:
        budget = say((CHEAP, MIDDLING, DEAR)[values[BUDGET]], u[BUDGET], config.first_form)
    front = " ".join(filter(None, [parts.get(a, "") for a in range(A) if a != SIZE]))
    size = parts.get(SIZE, "")
    kind_first = u[A] < config.shuffled
    filler = FILLERS[int(u[A + 1] / config.filler * len(FILLERS))] if u[A + 1] < config.filler else ""
    order = (filler, budget, word, front, size, after) if kind_first else (filler, budget, front, word, size, after)
    return " ".join(filter(None, order)).lower()
