"""What the chain sells: products by category, what they cost, and the plan of prices and promotions, known ahead."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.clock import DAY
from systems.forecasting.config import CATEGORIES, Config
from systems.forecasting.data.calendar import Array, Ints, weekday
from systems.forecasting.data.events import HORIZON

Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What products of a category have in common."""

    weekly: tuple[float, ...]  # demand from Monday to Sunday, relative to one another
    season: float  # of the log of demand, half of the way from trough to peak
    peak: int  # day of the year
    holidays: tuple[float, ...]  # log of demand on the eve, by HOLIDAYS
    price: float  # EUR, median
    elasticity: float  # demand goes with price to the power of minus this
    lift: float  # log of demand that a promotion adds to what its price does
    waste: float = 0.0  # share of what is left over that is thrown away each night
    ordering: float = 0.0  # what an order costs, whatever its size, in units that were wanted and not there


KINDS: Final[Mapping[str, Kind]] = {
    "dairy": Kind(
        weekly=(0.95, 0.9, 0.9, 1.0, 1.2, 1.35, 0.7), season=0.08, peak=20, holidays=(0.2, 0.4, 0.15, 0.2, 0.0, 0.45),
        price=1.8, elasticity=1.3, lift=0.45, waste=0.06,
    ),
    "garden": Kind(
        weekly=(0.7, 0.7, 0.75, 0.9, 1.25, 1.8, 0.9), season=1.0, peak=125, holidays=(0.0, 0.5, 0.5, 0.4, 0.0, -0.4),
        price=9.0, elasticity=1.5, lift=0.6, ordering=0.25,
    ),
    "drinks": Kind(
        weekly=(0.8, 0.8, 0.85, 0.95, 1.3, 1.55, 0.75), season=0.35, peak=200, holidays=(0.8, 0.3, 0.5, 0.4, 0.1, 0.6),
        price=1.4, elasticity=1.8, lift=0.7, ordering=0.2,
    ),
    "toys": Kind(
        weekly=(0.75, 0.75, 0.85, 0.9, 1.2, 1.75, 0.8), season=0.5, peak=345, holidays=(-0.3, 0.5, 0.0, 0.1, 0.9, 1.1),
        price=14.0, elasticity=1.6, lift=0.6, ordering=0.25,
    ),
    "bakery": Kind(
        weekly=(0.9, 0.85, 0.9, 0.95, 1.1, 1.4, 0.9), season=0.05, peak=340, holidays=(0.3, 0.6, 0.2, 0.3, 0.0, 0.6),
        price=2.4, elasticity=1.0, lift=0.4, waste=0.15,
    ),
    "snacks": Kind(
        weekly=(0.85, 0.85, 0.9, 0.95, 1.25, 1.4, 0.8), season=0.12, peak=330, holidays=(0.6, 0.4, 0.2, 0.2, 0.2, 0.5),
        price=2.2, elasticity=1.9, lift=0.75,
    ),
    "household": Kind(
        weekly=(1.0, 0.95, 0.95, 1.0, 1.1, 1.3, 0.7), season=0.08, peak=90, holidays=(0.0, 0.2, 0.0, 0.0, 0.5, 0.15),
        price=4.5, elasticity=1.4, lift=0.65, ordering=0.25,
    ),
    "stationery": Kind(
        weekly=(1.2, 1.1, 1.05, 1.05, 1.0, 1.0, 0.6), season=0.6, peak=240, holidays=(0.1, 0.1, 0.0, 0.0, 0.3, 0.5),
        price=3.2, elasticity=1.2, lift=0.5, ordering=0.25,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Assortment:
    """A series is a product in a store, store by store; days are counted from the world's first, `first`.

    The plan covers the days of the world and those that the last review looks ahead to.
    """

    config: Config
    first: int  # days since 1970-01-01
    days: int  # of the plan
    store: Ints  # (series,)
    product: Ints
    category: Ints  # place in CATEGORIES
    slow: Flags  # it is sold rarely
    launch: Ints  # the day on which it is first sold; 0: it always was
    lead_time: Ints  # days
    usual: Array  # price before all changes, EUR
    price: Array  # (series, days) EUR
    promoted: Flags  # (series, days)
    short_cost: Array  # EUR; (series,), and so on
    over_cost: Array
    order_cost: Array
    waste: Array

    def __len__(self) -> int:
        return len(self.store)

    @property
    def calendar(self) -> Ints:
        """The days of the plan since 1970-01-01."""
        return self.first + np.arange(self.days)

    def kinds(self, name: str) -> Array:
        """A trait of each series' kind, (series,) or, where kinds have many, (series, many)."""
        return np.array([getattr(KINDS[c], name) for c in CATEGORIES], np.float64)[self.category]


def assortment(config: Config, seed: int) -> Assortment:
    """The same for a seed whatever is answered and whether there is a drift."""
    rng = np.random.default_rng([seed, 0])
    stores, products = config.stores, config.products
    store, product = np.divmod(np.arange(stores * products), products)
    category = np.arange(products) % config.categories
    kinds = [KINDS[CATEGORIES[c]] for c in category.tolist()]
    median = np.array([kind.price for kind in kinds])
    usual = np.maximum(np.round(median * np.exp(0.4 * rng.normal(size=products)), 2), 0.2)
    unit_cost = np.round(usual * rng.uniform(0.55, 0.7, products), 2)
    short_cost = np.round(usual - unit_cost, 2)
    waste = np.array([kind.waste for kind in kinds])
    slow = rng.permutation(products) < round(config.slow * products)
    ordering = np.array([kind.ordering for kind in kinds]) * np.where(slow, 0.1, 1.0)
    launch = _launches(config, rng)[product]
    launch += np.where(launch > 0, rng.integers(0, 7, len(launch)), 0)  # not in all stores at once
    first, days = config.start // DAY, config.days + HORIZON
    factor, cut, promoted = _plan(config, seed, first + np.arange(days))
    price = np.asarray(np.round(usual[:, None] * factor * np.where(promoted, 1 - cut, 1.0), 2), np.float64)
    return Assortment(
        config=config,
        first=first,
        days=days,
        store=store,
        product=product,
        category=category[product],
        slow=slow[product],
        launch=launch,
        lead_time=1 + store % 3,
        usual=usual[product],
        price=price.reshape(len(store), days),
        promoted=promoted.reshape(len(store), days),
        short_cost=short_cost[product],
        over_cost=np.round((0.02 + waste) * unit_cost, 3)[product],
        order_cost=np.round(ordering * short_cost, 2)[product],
        waste=waste[product],
    )


def _launches(config: Config, rng: np.random.Generator) -> Ints:
    """The day on which each product is first sold, (products,): a third of the new ones come well before the end of
    the history, the others around it. They are spread evenly, so that even few are some of each.
    """
    new, end = round(config.new_products * config.products), config.history_days
    early, late = new // 3, new - new // 3
    launch = np.zeros(config.products, np.int64)
    launch[rng.permutation(config.products)[:new]] = np.concatenate(
        [
            end * (0.35 + 0.4 * (np.arange(early) + rng.random(early)) / max(early, 1)),
            np.maximum(end - 100 + 160 * (np.arange(late) + rng.random(late)) / max(late, 1), 1),
        ]
    )
    return launch


def _plan(config: Config, seed: int, calendar: Ints) -> tuple[Array, Array, Flags]:
    """Prices relative to the usual one and what a promotion cuts off them, (products, days) each, and which
    (stores, products, days) are promoted. Prices change on Mondays; promotions last one week or two, not on Sundays."""
    week = (calendar + 3) // 7
    week -= week[0]
    draws = np.random.default_rng([seed, 1]).random((int(week[-1]) + 1, config.products, 5 + config.stores))
    begins, second = draws[:, :, 0] < config.promotion, np.zeros(draws.shape[:2], bool)
    second[1:] = begins[:-1] & (draws[:-1, :, 1] < 0.4) & ~begins[1:]
    source = np.arange(len(draws))[:, None] - second  # of a second week, the first one
    of_source = draws[source, np.arange(config.products)]  # (weeks, products, draws)
    part = (begins | second)[:, :, None] & (of_source[:, :, 5:] < config.taking_part)
    step = np.where(draws[:, :, 3] < config.price_change, 0.2 * draws[:, :, 4] - 0.08, 0.0)
    factor = np.exp(np.clip(np.cumsum(step, axis=0), -0.3, 0.3))
    cut = 0.1 + 0.25 * of_source[:, :, 2]
    promoted = part[week].transpose(2, 1, 0) & (weekday(calendar) < 6)
    return factor[week].T, cut[week].T, promoted
