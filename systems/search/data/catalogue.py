"""The shop: what it sells, in which words, since when and at which price; and what is wished of each kind of thing.

What the drift brings is drawn whether it comes or not, and listed only if it comes: nothing changes before its day.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.clock import DAY
from systems.search.config import CATEGORIES, Config
from systems.search.data.words import (
    ATTRIBUTES,
    BRAND,
    BUDGET,
    BUDGETS,
    COLOUR,
    COLOURS,
    FEATURE,
    MATERIAL,
    SIZE,
    forms,
    sections,
)
from systems.search.data.words import Kind as Thing

Array: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]

NEVER: Final = np.iinfo(np.int64).max
A: Final = len(ATTRIBUTES)
NICE: Final = np.array([1, 1.5, 2, 2.5, 3, 4, 5, 6, 8])  # prices that people think in, times powers of ten
TERCILE: Final = 0.43  # standard deviations
BEFORE, AFTER = range(2)  # the drift


def stream(seed: int, name: str) -> np.random.Generator:
    """Each step of drawing a world has its own, so that none disturbs another."""
    return np.random.default_rng([seed, *name.encode()])


def pick(cumulative: Array, u: Array) -> Ints:
    """The category that each uniform number falls into; cumulative: (n or 1, categories)."""
    index = (u[:, None] >= cumulative).sum(axis=1)
    return np.asarray(np.minimum(index, cumulative.shape[1] - 1), dtype=np.int64)


def say(said: Sequence[str], u: float, first: float) -> str:
    """One of the forms: the first one in a share of cases, else any of the others."""
    if u < first or len(said) == 1:
        return said[0]
    return said[1 + int((u - first) / (1 - first) * (len(said) - 1))]


@dataclass(frozen=True)
class Language:
    """What kinds there are, what they are called and what is wished of them: known to everybody in the world."""

    things: tuple[Thing, ...]  # K
    category: Ints  # (K,)
    values: tuple[tuple[str, ...], ...]  # by attribute, V of them, with all their forms
    sold: tuple[Flags, ...]  # by attribute, (K, V): whether such a thing has such a value, newcomers' brands included
    taste: tuple[Array, ...]  # by attribute, (2, K, V): share of the wishes; before and after the drift
    demand: Array  # (2, K) share of the queries, seasons and shoppers apart
    bounds: Array  # (K, 2) EUR, where the middle budget begins and ends
    words: tuple[str, ...]  # W
    word_share: Array  # (2, K, W) how often a kind is called so

    @property
    def brands(self) -> int:
        """The index of the first newcomer; brands are in order of category, newcomers last."""
        return len(self.values[BRAND]) - len(set(self.category.tolist()))


def language(config: Config, seed: int) -> Language:
    rng = stream(seed, "language")
    parts = [sections()[name] for name in CATEGORIES[: config.categories]]
    things = tuple(thing for part in parts for thing in part.kinds)
    category = np.repeat(np.arange(len(parts)), [len(part.kinds) for part in parts])
    told: list[list[tuple[str, ...]]] = [
        [COLOURS] * len(things),
        [parts[c].materials for c in category],
        [parts[c].features for c in category],
        [parts[c].brands for c in category],
        [thing.sizes for thing in things],
        [BUDGETS] * len(things),
    ]
    newcomers = [part.brands[-1] for part in parts]
    values = tuple(tuple(dict.fromkeys(value for own in of_kind for value in own)) for of_kind in told)
    brands = tuple(name for name in values[BRAND] if name not in newcomers)
    values = (*values[:BRAND], (*brands, *newcomers), *values[BRAND + 1 :])
    sold = tuple(
        np.array([[value in own for value in all_values] for own in of_kind])
        for of_kind, all_values in zip(told, values, strict=True)
    )
    taste = tuple(_tastes(config, rng, own, a, len(brands)) for a, own in enumerate(sold))

    new = np.array([thing.new for thing in things])
    weight = 1 / (1 + rng.permutation(len(things))) ** config.kind_zipf
    old = np.where(new, 0, weight) / weight[~new].sum()
    fresh = np.where(new, weight, 0) / weight[new].sum()
    demand = np.stack([old, (1 - config.wave_demand) * old + config.wave_demand * fresh])

    typical = np.array([thing.price for thing in things])
    spread = np.hypot(config.log_price_products, config.brand_log_price)
    low = _nice(typical * np.exp(-TERCILE * spread))
    high = np.maximum(_nice(typical * np.exp(TERCILE * spread)), _nice(low * 1.5))
    words, share = _calling(config, things)
    return Language(things, category, values, sold, taste, demand, np.stack([low, high], axis=1), words, share)


def _tastes(config: Config, rng: np.random.Generator, sold: Flags, attribute: int, brands: int) -> Array:
    """(2, K, V); the budget is split evenly, shoppers make the difference."""
    if attribute == BUDGET:
        return np.full((2, *sold.shape), 1 / sold.shape[1])
    known = sold.copy()
    if attribute == BRAND:
        known[:, brands:] = False
    drawn = np.where(known, rng.gamma(config.taste, 1.0, sold.shape) + 1e-3, 0)
    before = drawn / drawn.sum(axis=1, keepdims=True)
    if attribute != BRAND:
        return np.stack([before, before])
    after = (1 - config.newcomer_taste) * before + config.newcomer_taste * (sold & ~known)
    return np.stack([before, after])


def _nice(price: Array) -> Array:
    """The nearest price that people think in."""
    nice = (NICE * 10.0 ** np.arange(5)[:, None]).ravel()
    return np.asarray(nice[np.abs(np.log(price[:, None] / nice)).argmin(axis=1)])


def _calling(config: Config, things: Sequence[Thing]) -> tuple[tuple[str, ...], Array]:
    rows: list[tuple[int, int, str, float]] = []
    for k, thing in enumerate(things):
        groups = ((thing.name,), thing.synonyms, thing.shared, thing.uses)
        told = [(said, share) for said, share in zip(groups, config.word_share, strict=True) if said]
        total = sum(share for _, share in told)
        for epoch in (BEFORE, AFTER):
            wave = config.wave_share if thing.wave and epoch == AFTER else 0.0
            rows += [(epoch, k, w, (1 - wave) * share / total / len(said)) for said, share in told for w in said]
            if thing.wave and wave:
                rows.append((epoch, k, thing.wave, wave))
    words = tuple(dict.fromkeys(word for _, _, word, _ in rows))
    number, share = {word: i for i, word in enumerate(words)}, np.zeros((2, len(things), len(words)))
    for epoch, k, word, part in rows:
        share[epoch, k, number[word]] += part
    return words, share


@dataclass(frozen=True)
class Catalogue:
    """Every product that may ever be sold, P of them. What only the world knows comes last."""

    config: Config
    language: Language
    kind: Ints  # (P,)
    value: Ints  # (P, 6) by attribute; the budget is that of the first price
    price: Array  # (P, 2) EUR, before and after its sale begins
    budget: Ints  # (P, 2) likewise
    listed_at: Ints  # (P,) us; NEVER: not in this world
    sale_at: Ints  # (P,) us; NEVER: none
    gone_at: Ints  # (P,) us, sold out from then
    back_at: Ints  # (P,) us, until then
    titles: list[str]
    descriptions: list[str]

    looks: Array  # (P,) how much its picture multiplies clicks by
    quality: Array  # (P,) likewise of purchases

    def __len__(self) -> int:
        return len(self.kind)

    def available(self, rows: Ints, at: Ints) -> Flags:
        """Whether these can be had at those times."""
        gone = (self.gone_at[rows] <= at) & (at < self.back_at[rows])
        return np.asarray((self.listed_at[rows] <= at) & ~gone)

    def on_sale(self, rows: Ints, at: Ints) -> Ints:
        return np.asarray(self.sale_at[rows] <= at, dtype=np.int64)


def catalogue(config: Config, seed: int, drift_at: int) -> Catalogue:
    """All products; those of the drift are listed in the month from `drift_at` (us; NEVER: not at all)."""
    spoken, rng = language(config, seed), stream(seed, "products")
    old, wave = config.products, max(1, round(config.products * config.wave_products))
    n, new = old + wave, np.array([thing.new for thing in spoken.things])
    late = np.arange(n) >= old
    novel = late & (rng.uniform(size=n) < 0.6)
    share = [np.where(new, 0.0, 1.0) + 0.0, np.where(new, 1.0, 0.0)]
    draws = rng.uniform(size=n)
    kind = np.where(novel, *(pick(np.cumsum(s / s.sum())[None], draws) for s in reversed(share)))
    value = np.zeros((n, A), np.int64)
    for a in range(A - 1):
        known = spoken.sold[a].copy()
        if a == BRAND:
            known[:, spoken.brands :] = False
        offered = np.where(known, rng.gamma(config.supply, 1.0, known.shape) + 1e-3, 0)
        cumulative = np.cumsum(offered / offered.sum(axis=1, keepdims=True), axis=1)
        value[:, a] = pick(cumulative[kind], rng.uniform(size=n))
    newcomer = late & (rng.uniform(size=n) < 0.5)
    value[newcomer, BRAND] = spoken.brands + spoken.category[kind[newcomer]]

    brand = rng.normal(0, config.brand_log_price, len(spoken.values[BRAND]))[value[:, BRAND]]
    typical = np.log([thing.price for thing in spoken.things])[kind]
    price = np.exp(typical + brand + rng.normal(0, config.log_price_products, n))
    price = _tagged(np.stack([price, price * (1 - config.sale_cut)], axis=1))
    budget = (price[:, :, None] > spoken.bounds[kind][:, None]).sum(axis=2)
    value[:, BUDGET] = budget[:, 0]

    span = config.days * DAY
    fresh = rng.uniform(size=n) < config.new_products
    listed = config.start + np.where(fresh, (rng.uniform(size=n) * span).astype(np.int64), 0)
    since = (rng.uniform(size=n) * min(config.wave_days * DAY, span)).astype(np.int64)
    listed = np.where(late, NEVER if drift_at == NEVER else drift_at + since, listed)
    sale = _some_day(config, rng, rng.uniform(size=n) < config.sale_share, listed)
    gone = _some_day(config, rng, rng.uniform(size=n) < config.sold_out, listed)
    away = (rng.exponential(config.sold_out_days, n) * DAY).astype(np.int64)
    texts = [
        _text(config, spoken, int(k), v, u, bool(w))
        for k, v, u, w in zip(kind, value.tolist(), rng.uniform(size=(n, 20)).tolist(), late, strict=True)
    ]
    return Catalogue(
        config=config,
        language=spoken,
        kind=kind,
        value=value,
        price=price,
        budget=budget,
        listed_at=listed,
        sale_at=sale,
        gone_at=gone,
        back_at=np.where(gone == NEVER, NEVER, np.minimum(gone, NEVER - away) + away),
        titles=[title for title, _ in texts],
        descriptions=[description for _, description in texts],
        looks=np.exp(rng.normal(0, config.looks, n)),
        quality=np.exp(rng.normal(0, config.quality, n)),
    )


def _tagged(price: Array) -> Array:
    """As on a price tag: 12.99, 4.49; so none is a round number, which is where budgets end."""
    return np.asarray(np.maximum(np.where(price < 10, np.round(price * 2) / 2, np.round(price)), 1) - 0.01)


def _some_day(config: Config, rng: np.random.Generator, of: Flags, listed: Ints) -> Ints:
    """A moment between its listing and the end of the world, for those; NEVER for all others."""
    end, u = config.start + config.days * DAY, rng.uniform(size=len(of))
    of = of & (listed < end)
    begun = np.where(of, listed, config.start)
    return np.where(of, begun + 1 + (u * (end - begun)).astype(np.int64), NEVER)


def _text(config: Config, spoken: Language, kind: int, value: list[int], u: list[float], late: bool) -> tuple[str, str]:
    """Title and description; they name the thing, and what it is like, in words that may differ."""
    thing = spoken.things[kind]
    names = (thing.name, *thing.synonyms)
    word = say(names, u[0], 0.6)
    other = names[int(u[1] * len(names))]
    if late and thing.wave and u[2] < config.wave_titles:
        word = thing.wave
    colour, material, feature, brand, size = (
        forms(a, spoken.values[a][value[a]]) for a in (COLOUR, MATERIAL, FEATURE, BRAND, SIZE)
    )
    in_title = [u[3 + i] >= config.untold for i in range(3)] + [u[6] < 0.5]
    title = [
        brand[0],
        say(colour, u[7], 0.7) if in_title[0] else "",
        say(feature, u[8], 0.6) if in_title[3] else "",
        say(material, u[9], 0.7) if in_title[1] else "",
        word,
        say(size, u[10], 0.6) if in_title[2] else "",
    ]
    use, shared = thing.uses[int(u[11] * len(thing.uses))], thing.shared[int(u[12] * len(thing.shared))]
    told = [say(colour, u[13], 0.4), say(material, u[14], 0.4), say(feature, u[15], 0.4), say(size, u[16], 0.4)]
    order = (
        f"The {other} by {brand[0]} in {told[0]}.",
        f"Made with {told[1]}, {told[2]}.",
        f"Size: {told[3].removeprefix('size ')}.",
        f"Ideal for {use}." if u[17] < 0.6 else "",
        f"Found under {shared}." if u[18] < 0.5 else "",
    )
    if u[19] < 0.3:
        order = (order[3], *order[:3], order[4])
    return " ".join(filter(None, title)), " ".join(filter(None, order))
