"""What everybody may know of the world: where the shops are, when people pay, how fraudsters go about it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.clock import DAY, HOUR
from systems.fraud.config import CATEGORIES, Config, PerCategory

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

STAGES = ("test", "drain", "takeover", "clone", "ring")  # fields of Tactics
TEST, DRAIN, TAKEOVER, CLONE, RING = range(5)
K = len(CATEGORIES)

# Payments by hour of the day for those who work by day, the evening people, the night people; each averages 1.
_HOURS = np.array([
    [1, 0, 0, 0, 0, 1, 4, 8, 9, 9, 10, 12, 14, 12, 10, 10, 12, 15, 14, 10, 7, 5, 3, 2],
    [2, 1, 0, 0, 0, 0, 2, 4, 5, 5, 6, 8, 9, 8, 7, 8, 11, 16, 19, 20, 17, 13, 8, 4],
    [9, 7, 5, 4, 3, 2, 2, 2, 3, 4, 5, 6, 7, 7, 7, 8, 9, 11, 12, 13, 14, 14, 13, 11],
], dtype=float) + 0.5  # fmt: skip
HOUR_PROFILES = _HOURS / _HOURS.mean(axis=1, keepdims=True)  # (types, 24)
HOUR_TYPES = np.array([0.5, 0.35, 0.15])  # share of cards
_WEEKDAYS = np.array([0.9, 0.9, 0.95, 1.0, 1.15, 1.25, 0.85])  # from Monday; averages 1


def shares(weights: PerCategory) -> Array:
    array: Array = np.asarray(weights, dtype=float)
    return np.asarray(array / array.sum())


def day_weights(config: Config) -> Array:
    """(days,) how much is paid on each day, relative to a day without salaries."""
    day = np.arange(config.days)
    weekday = (config.start // DAY + 3 + day) % 7  # the epoch was a Thursday
    lift = np.where(day % config.payday_every < 3, config.payday_lift, 1.0)
    return np.asarray(_WEEKDAYS[weekday] * lift)


@dataclass(frozen=True)
class Places:
    """Terminals are numbered by town, category and counter; after them, by category, those online."""

    config: Config
    towns: Array  # (towns, 2) km
    positions: Array  # (physical, 2) km

    @property
    def physical(self) -> int:
        return self.config.towns * K * self.config.terminals

    @property
    def terminals(self) -> int:
        return self.physical + K * self.config.online_shops

    @property
    def merchants(self) -> int:
        return self.physical // 2 + K * self.config.online_shops

    def at(self, town: Ints, category: Ints, u: Array) -> Ints:
        """One of the terminals there, by a uniform number."""
        return (town * K + category) * self.config.terminals + (u * self.config.terminals).astype(np.int64)

    def online(self, category: Ints, u: Array) -> Ints:
        return self.physical + category * self.config.online_shops + (u * self.config.online_shops).astype(np.int64)

    def town(self, terminal: Ints) -> Ints:
        """-1 online."""
        return np.where(terminal < self.physical, terminal // (K * self.config.terminals), -1)

    def category(self, terminal: Ints) -> Ints:
        online = (terminal - self.physical) // self.config.online_shops
        return np.where(terminal < self.physical, terminal // self.config.terminals % K, online)

    def merchant(self, terminal: Ints) -> Ints:
        return np.where(terminal < self.physical, terminal // 2, terminal - self.physical // 2)

    def counters(self, merchant: Ints) -> Ints:
        """How many terminals a merchant has."""
        return np.where(merchant < self.physical // 2, 2, 1)

    def terminal_of(self, merchant: Ints, u: Array) -> Ints:
        shop = merchant * 2 + (u * 2).astype(np.int64)
        return np.where(merchant < self.physical // 2, shop, merchant + self.physical // 2)


@dataclass(frozen=True)
class TacticTable:
    """The tactics as arrays (2: before and after the drift, 5: stage)."""

    gap: Array  # days
    relative: Flags
    log_amount: Array
    log_spread: Array
    goes_on: Array
    near_home: Array
    spoofed: Flags
    round_amounts: Array
    night: Array
    categories: Array  # (2, 5, K) shares

    @classmethod
    def of(cls, config: Config) -> "TacticTable":
        rows = [[getattr(tactics, stage) for stage in STAGES] for tactics in (config.usual, config.drifted)]

        def column(name: str) -> Array:
            return np.array([[getattr(tactic, name) for tactic in row] for row in rows])

        weights = column("categories")
        return cls(
            gap=column("gap") * HOUR / DAY,
            relative=column("relative").astype(bool),
            log_amount=column("log_amount"),
            log_spread=column("log_spread"),
            goes_on=column("goes_on"),
            near_home=column("near_home"),
            spoofed=column("spoofed").astype(bool),
            round_amounts=column("round_amounts"),
            night=column("night"),
            categories=weights / weights.sum(axis=2, keepdims=True),
        )

    def start_profile(self, epoch: Ints, hour: Ints, stage: int) -> Array:
        """How often campaigns begin at that hour, relative to the day's mean."""
        night = self.night[epoch, stage]
        return np.asarray(np.where(hour < 6, night * 24 / 6, (1 - night) * 24 / 18))
