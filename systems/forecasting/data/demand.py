"""What customers want of each series on each day: its expected value, its distribution, and what was drawn from it."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from systems.forecasting.data.assortment import Assortment
from systems.forecasting.data.calendar import HOLIDAYS, YEAR, Array, Ints, holiday, weekday, year_day

NEVER: Final = 2**40  # a day beyond every world

# After a break, by category in turn: customers come, or leave; they care for promotions and prices much less, or more
JUMP: Final = (0.47, -0.4)  # of the log of demand: + 60 %, - a third
RESPONSE: Final = (0.1, 1.7)  # times lift and elasticity
SHIFT: Final = 3  # days, of the weekly profile

EVES: Final = 8  # days before a holiday on which it is felt, more and more
CLOSED: Final = 0.5  # demand on a holiday, relative to any other day


@dataclass(frozen=True)
class Demand:
    """Units are negative binomial around the mean, each day and series by itself."""

    mean: NDArray[np.float32]  # (series, days); 0 before the launch
    dispersion: Array  # (series,): variance = mean + dispersion * mean^2
    units: NDArray[np.int32]  # (series, days)
    planned: Array  # (series,) units a day that the buyers expect of it, roughly right


def demand(of: Assortment, seed: int, break_at: int = NEVER) -> Demand:
    """`break_at`: the day, from the world's first, on which customers change. Days before it are as without it."""
    config, rng = of.config, np.random.default_rng([seed, 2])
    stores, products, series = config.stores, config.products, len(of)
    level = config.level_spread * rng.normal(size=products)[of.product]
    level += np.log(np.where(of.slow, config.slow_level, config.level))
    level += config.store_spread * rng.normal(size=stores)[of.store] + config.series_spread * rng.normal(size=series)
    level = np.maximum(level, np.log(config.least_level))
    dispersion = config.dispersion * np.exp(config.dispersion_spread * rng.normal(size=series))
    planned = np.exp(level + 0.25 * rng.normal(size=series))
    lift = of.kinds("lift") * rng.uniform(0.6, 1.4, products)[of.product]
    elasticity = of.kinds("elasticity") * rng.uniform(0.7, 1.3, products)[of.product]
    trend = config.trend * rng.normal(size=series)

    t, calendar = np.arange(of.days), of.calendar
    after = (t >= break_at).astype(np.float32)
    odd = of.category % 2

    def changes(before: Array, factor: Array) -> NDArray[np.float32]:
        """A trait that is another one after the break, (series, days)."""
        return (before[:, None] * (1 + np.outer(factor - 1, after))).astype(np.float32)

    log = (level[:, None] + np.outer(trend, (t - config.history_days / 2) / YEAR)).astype(np.float32)
    log += np.outer(np.array(JUMP)[odd], after).astype(np.float32)
    log += _weekly(of, rng, weekday(calendar), t >= break_at)
    log += _yearly(of, rng, year_day(calendar))
    log += _holidays(of, rng, calendar)
    response = np.array(RESPONSE)[odd]
    log -= changes(elasticity, response) * np.log(of.price / of.usual[:, None]).astype(np.float32)
    log += changes(lift, response) * of.promoted
    log -= _cannibalised(of, np.exp(level))
    log += _life(of, rng, t)
    mean = np.where(t >= of.launch[:, None], np.maximum(np.exp(log), 0.01), 0).astype(np.float32)
    return Demand(mean, dispersion, _draw(mean, dispersion, seed), planned)


def _weekly(of: Assortment, rng: np.random.Generator, day: Ints, broken: NDArray[np.bool_]) -> NDArray[np.float32]:
    """By category, store and product, (series, days); each profile's mean is 1."""
    profile = np.log(of.kinds("weekly")) + 0.08 * rng.normal(size=(of.config.products, 7))[of.product]
    profile += 0.2 * rng.normal(size=of.config.stores)[of.store, None] * (np.arange(7) >= 5)
    profile -= np.log(np.exp(profile).mean(axis=1, keepdims=True))
    return profile[:, (day + SHIFT * broken) % 7].astype(np.float32)


def _yearly(of: Assortment, rng: np.random.Generator, day: Ints) -> NDArray[np.float32]:
    size = of.kinds("season") * rng.uniform(0.7, 1.3, of.config.products)[of.product]
    peak = of.kinds("peak") + rng.normal(0, 8, of.config.products)[of.product]
    return (size[:, None] * np.cos(2 * np.pi / YEAR * (day - peak[:, None]))).astype(np.float32)


def _holidays(of: Assortment, rng: np.random.Generator, calendar: Ints) -> NDArray[np.float32]:
    """More and more in the days before each holiday, little on the day itself."""
    around = holiday(calendar)
    eve = np.where(around.until > 0, np.maximum(1 - (around.until - 1) / EVES, 0), 0)
    felt = eve * np.eye(len(HOLIDAYS))[:, around.next]  # (holidays, days)
    size = of.kinds("holidays") * rng.uniform(0.6, 1.4, of.config.products)[of.product, None]
    black_friday = HOLIDAYS.index("black friday")
    sale = np.where((around.last == black_friday) & (around.since < 3), 1.0, 0.0)  # the weekend is a part of it
    closed = np.where((around.until == 0) & (around.next != black_friday), np.log(CLOSED), 0.0)
    return (size @ felt + np.outer(size[:, black_friday], sale) + closed).astype(np.float32)


def _cannibalised(of: Assortment, level: Array) -> NDArray[np.float32]:
    """What promotions take from the others of their category in the store, the more, the more these are bought."""
    config = of.config
    shape = (config.stores, config.products, of.days)
    weight = np.where(np.arange(of.days) >= of.launch[:, None], level[:, None], 0).astype(np.float32).reshape(shape)
    promoted = weight * of.promoted.reshape(shape)
    lost = np.zeros(shape, np.float32)
    category = of.category[: config.products]
    for c in range(config.categories):
        mine = category == c
        others = promoted[:, mine].sum(axis=1, keepdims=True) - promoted[:, mine]
        everything = weight[:, mine].sum(axis=1, keepdims=True) - weight[:, mine]
        lost[:, mine] = config.cannibalised * others / np.maximum(everything, 1e-9)
    return lost.reshape(len(of), of.days)


def _life(of: Assortment, rng: np.random.Generator, t: Ints) -> NDArray[np.float32]:
    """A new product is tried out, then found by more and more."""
    weeks = rng.uniform(2, 6, of.config.products)[of.product]
    age = np.maximum(t - of.launch[:, None], 0)
    found = np.log(1 - 0.85 * np.exp(-age / (7 * weeks[:, None])))
    return np.where(of.launch[:, None] > 0, found, 0).astype(np.float32)


def _draw(mean: NDArray[np.float32], dispersion: Array, seed: int) -> NDArray[np.int32]:
    """Day after day from streams of their own: what changes later changes nothing before."""
    luck = np.random.default_rng([seed, 3]).standard_gamma(1 / dispersion, mean.T.shape)
    units = np.random.default_rng([seed, 4]).poisson(luck * dispersion * mean.T)
    return np.ascontiguousarray(units.T, np.int32)
