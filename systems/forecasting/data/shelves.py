"""What stands on each shelf: goods come in the morning, customers take them, some of the rest goes bad at night."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from systems.forecasting.config import Config
from systems.forecasting.data.assortment import Assortment, Flags
from systems.forecasting.data.calendar import Array, Ints
from systems.forecasting.data.demand import Demand

WEEKS: Final = 4  # that the store's own routine looks back on
LIFT: Final = 2.2  # of demand, that it expects of a promotion
CAUTION: Final = 1.6  # standard deviations that it orders beyond what it expects


class Shelves:
    """Sales of all series day by day; until shelves are `real`, some days are said to be sold out at random.

    From then on a shelf holds what was ordered for it. On a day without a review the store's own routine orders, up to
    what it expects of the days until the next order can come, from its sales on the same weekdays and in the last four
    weeks, and some more. On a day with a review it leaves that to the answer.
    """

    def __init__(self, of: Assortment, demand: Demand, seed: int) -> None:
        config = of.config
        self._of, self._demand = of, demand
        self.reviewed = _reviewed(config, of.launch, of.days)
        self.real = min(max(config.history_days - config.review_days, 0), config.days)  # since this day
        self.units, self.sold_out = _before(of, demand, seed, self.real)
        self.day = self.real  # the one that is open: its goods have come, its sales are not over
        self.on_hand = np.zeros(len(of), np.int64)
        self._coming = np.zeros((len(of), int(of.lead_time.max()) + 1), np.int64)  # by day, round and round
        self._open()

    @property
    def on_order(self) -> Ints:
        on_order: Ints = self._coming.sum(axis=1)
        return on_order

    def advance(self, day: int) -> None:
        """Close all days before this one."""
        while self.day < day:
            self._close()
            self.day += 1
            self._open()

    def order(self, series: Ints, quantity: Ints) -> None:
        """On the open day; comes in the morning after the lead time. No series twice."""
        self._coming[series, (self.day + self._of.lead_time[series]) % self._coming.shape[1]] += quantity

    def _open(self) -> None:
        of, today = self._of, self.day % self._coming.shape[1]
        self.on_hand += self._coming[:, today]
        self._coming[:, today] = 0
        level = self._routine()
        new = of.launch == self.day if self.day > self.real else of.launch <= self.day
        self.on_hand[new] = level[new]
        mine = np.flatnonzero((of.launch <= self.day) & ~self.reviewed[:, self.day])
        self.order(mine, np.maximum(level - self.on_hand - self.on_order, 0)[mine])

    def _close(self) -> None:
        t = self.day
        wanted = self._demand.units[:, t]
        units = np.minimum(wanted, self.on_hand)
        self.units[:, t], self.sold_out[:, t] = units, wanted > self.on_hand
        left = self.on_hand - units
        self.on_hand = left - np.rint(self._of.waste * left).astype(np.int64)

    def _routine(self) -> Ints:
        """What the routine orders up to, (series,)."""
        of, t = self._of, self.day
        past, ahead = np.arange(t - 7 * WEEKS, t), t + np.arange(self._coming.shape[1])
        known = (past >= 0) & (past >= of.launch[:, None])
        past = np.maximum(past, 0)
        usual = np.where(known, self.units[:, past] / self._lift(past), self._demand.planned[:, None])
        of_weekday = usual.reshape(len(of), WEEKS, 7).mean(axis=1)[:, : len(ahead)]
        daily = (of_weekday + usual.mean(axis=1, keepdims=True)) / 2
        expected = daily * self._lift(ahead) * (ahead - t <= of.lead_time[:, None])
        total = expected.sum(axis=1)
        level = np.ceil(total + CAUTION * np.sqrt(total + 0.2 * total**2))
        return np.asarray(np.maximum(level, 1), np.int64)

    def _lift(self, days: Ints) -> Array:
        return np.where(self._of.promoted[:, days], LIFT, 1.0)


def _reviewed(config: Config, launch: Ints, days: int) -> Flags:
    """Which series are under review on which day, (series, days): first now and then, each on a day of its own, later
    every day, if they ever are."""
    t, series = np.arange(days), np.arange(len(launch))[:, None]
    daily = config.history_days - config.daily_days if config.daily_days else config.days
    due = (t >= daily) | ((t - series) % config.review_every == 0)
    begun = t >= np.maximum(launch[:, None], config.history_days - config.review_days)
    return np.asarray(due & begun & (t < config.days))


def _before(of: Assortment, demand: Demand, seed: int, until: int) -> tuple[NDArray[np.int64], Flags]:
    """Units and whether they were sold out, (series, days), of the days before shelves are real; then zeros."""
    config, series = of.config, len(of)
    draws = np.random.default_rng([seed, 5]).random((until, 2, series))
    chance = np.where(of.promoted[:, :until], config.sold_out_promoted, config.sold_out)
    wanted = demand.units[:, :until]
    units, sold_out = np.zeros((series, of.days), np.int64), np.zeros((series, of.days), bool)
    luck, part = draws.transpose(1, 2, 0)
    sold_out[:, :until] = (luck < chance) & (wanted > 0)
    part = np.floor(wanted * (0.3 + 0.65 * part))
    units[:, :until] = np.where(sold_out[:, :until], part, wanted)
    return units, sold_out
