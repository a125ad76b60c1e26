"""What was sold, by series and day, as far as it was heard of; and the rows of reviews, with what local methods say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.special import log_ndtr

from common.clock import DAY
from common.errors import BadBundle
from common.features import offline
from common.features.view import Array, FeatureView, assemble, ints, numbers
from common.schema import from_table
from common.system import Rows
from systems.forecasting.config import Config
from systems.forecasting.data import HORIZON, Actual, Review
from systems.forecasting.data.calendar import holiday
from systems.forecasting.data.own import calendar
from systems.forecasting.features import ON_DEMAND, VIEWS
from systems.forecasting.model import local, seasons

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

FILE: Final = "panel.parquet"
NEVER: Final = 2**62  # a position of the log that is never reached
MONTH, QUARTER, YEAR = 28, 91, 364  # days, whole weeks
SLACK: Final = 64  # days and series of room, so that not every day needs new arrays
CHUNK: Final = 2_000  # reviews whose history is looked at together
FEW: Final = 7  # days of the last 28 that say how much is sold
NEAR: Final = 3  # days before and after the same day a year ago
ROUNDS: Final = 2  # of guessing what was wanted on days that were sold out
ROOT: Final = np.sqrt(2 * np.pi)
LOCAL: Final = ("naive", "theta", "croston", "profile")
NUMBERS: Final = (
    "horizon", "weekday", "year_sin", "year_cos", "to_holiday", "since_holiday", "next_holiday", "last_holiday",
    "price_ratio", "is_promoted", "was_promoted", "promotion_day", "promotion_lift", "level", "age", "zero_share",
    "noise", "scale", "weekday_ratio", "year_ratio", "naive_ratio", "theta_ratio", "croston_ratio", "profile_ratio",
)  # fmt: skip


@dataclass
class Panel:
    """Series by day; the first report of a day counts."""

    config: Config
    season: int = 7  # days
    first: int = 0  # day of column 0
    last: int = -1  # the newest day that was heard of
    place: dict[tuple[str, str], int] = field(default_factory=dict)  # row of a series, by store and product
    groups: dict[str, int] = field(default_factory=dict)  # number of a category
    group: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # of each series
    units: Array = field(default_factory=lambda: np.zeros((0, 0)))  # (n, days), NaN: not known
    price: Array = field(default_factory=lambda: np.zeros((0, 0)))  # EUR
    promoted: Array = field(default_factory=lambda: np.zeros((0, 0)))
    sold_out: Array = field(default_factory=lambda: np.zeros((0, 0)))
    position: Ints = field(default_factory=lambda: np.zeros((0, 0), np.int64))  # of the log, where it was heard
    usual: dict[tuple[int, int], tuple[float, Array]] = field(default_factory=dict)  # by day and group; see `of_groups`

    @classmethod
    def of(cls, config: Config, actuals: pa.Table, season: int = 7) -> Self:
        panel = cls(config, season)
        panel.hear(actuals)
        return panel

    def hear(self, actuals: pa.Table) -> None:
        """More of them, in log order. A day that had not begun when it was told of is passed over, and so is one
        that is too long ago."""
        day = ints(actuals["day"])
        new = day * DAY < ints(actuals["created_timestamp"])
        newest = max(self.last, int(day[new].max(initial=-1)))
        new &= day > newest - self.config.most_days
        if not new.any():
            return
        actuals, day = actuals.filter(pa.array(new)), day[new]
        row = self._rows(actuals)
        self._reach(int(day.min()), newest)
        cell = row * self.units.shape[1] + day - self.first
        at = _first(_codes(cell))
        at = at[np.isnan(self.units.ravel()[cell[at]])]
        for name in ("units", "price", "promoted", "sold_out"):
            getattr(self, name).ravel()[cell[at]] = numbers(actuals[name])[at]
        self.position.ravel()[cell[at]] = ints(actuals["position"])[at]
        self.usual = {}  # another one: who is at work on the old one knows less

    def _rows(self, actuals: pa.Table) -> Ints:
        """The rows of their series, new ones among them, (n,)."""
        stores, products = (actuals[name].combine_chunks().dictionary_encode() for name in ("store_id", "product_id"))
        place = np.asarray(stores.indices.to_numpy(), np.int64) * len(products.dictionary)
        of = _codes(place + products.indices.to_numpy())
        first = pa.array(_first(of))
        keys = zip(*(actuals[name].take(first).to_pylist() for name in ("store_id", "product_id")), strict=True)
        groups, rows = list(self.group), np.empty(len(first), np.int64)
        for i, (key, category) in enumerate(zip(keys, actuals["category"].take(first).to_pylist(), strict=True)):
            if key not in self.place:
                groups.append(self.groups.setdefault(category, len(self.groups)))
            rows[i] = self.place.setdefault(key, len(self.place))
        self.group = np.array(groups, np.int64)
        return rows[of]

    def _reach(self, first: int, last: int) -> None:
        """Room for all series and for days from `first` to `last`, those that are remembered."""
        n, days = self.units.shape
        begin = first if not days else min(self.first, first)
        begin = max(begin, last - self.config.most_days + 1)
        if not days or len(self.place) > n or begin < self.first or last >= self.first + days:
            shape = len(self.place) + SLACK * (n > 0), last - begin + 1 + SLACK
            kept = min(max(self.last + 1 - begin, 0), days)
            skip = max(begin - self.first, 0) if days else 0
            to = max(self.first - begin, 0) if days else 0
            for name in ("units", "price", "promoted", "sold_out", "position"):
                old: Array = getattr(self, name)
                wide = np.zeros(shape, np.int64) if name == "position" else np.full(shape, np.nan)
                part = old[:, skip : skip + kept]
                wide[:n, to : to + part.shape[1]] = part[:, : shape[1] - to]
                setattr(self, name, wide)
            self.first = begin
        self.last = max(self.last, last)

    def some(self, rows: Ints) -> "Panel":
        """Of some of its series alone."""
        keys = list(self.place)
        part = Panel(
            self.config, self.season, self.first, self.last, {keys[row]: i for i, row in enumerate(rows.tolist())}
        )
        part.groups, part.group = dict(self.groups), self.group[rows]
        for name in ("units", "price", "promoted", "sold_out", "position"):
            setattr(part, name, getattr(self, name)[rows])
        return part

    def copy(self) -> "Panel":
        """Another one that may hear of more."""
        arrays = {name: getattr(self, name).copy() for name in ("group", "units", "price", "promoted", "sold_out")}
        return Panel(
            self.config, self.season, self.first, self.last, dict(self.place), dict(self.groups),
            position=self.position.copy(), **arrays,
        )  # fmt: skip

    def find(self, store_id: str, product_id: str) -> int:
        """The row of a series; -1: never heard of."""
        return self.place.get((store_id, product_id), -1)

    def has(self, review: Review) -> bool:
        return (review.store_id, review.product_id) in self.place

    def window(self, name: str, rows: Ints, day: Ints, length: int, heads: Ints | None = None) -> Array:
        """What was known of a column in the days before `day`, (n, length), the newest last; NaN: nothing.

        `heads`: log positions, (n,): what was heard from there on is not known.
        """
        at = day[:, None] - self.first + np.arange(-length, 0)
        inside = (at >= 0) & (at < self.units.shape[1]) & (rows >= 0)[:, None]
        cell = np.where(inside, rows[:, None] * self.units.shape[1] + at, 0)
        if not self.units.size:
            return np.full(cell.shape, np.nan)
        if heads is not None:
            inside &= self.position.ravel()[cell] < heads[:, None]
        return np.where(inside, getattr(self, name).ravel()[cell], np.nan)

    def demand(self, rows: Ints, day: Ints, length: int, heads: Ints | None = None) -> Array:
        """Units as far as they say what was wanted: of days on which it was sold out that is guessed for the newest of
        them, see `unconstrained`, and not known for the others."""
        units = self.window("units", rows, day, length, heads)
        sold_out = self.window("sold_out", rows, day, length, heads) > 0
        return unconstrained(units, sold_out, self.season)

    def table(self, of: Ints | None = None, since: int = 0) -> pa.Table:
        """As events, each told of when its day was over; of some series, by their rows, and of days from `since` on."""
        keys, names, start = list(self.place), list(self.groups), max(since - self.first, 0)
        of = np.arange(len(keys)) if of is None else of
        at, column = np.nonzero(~np.isnan(self.units[of, start:]))
        row, column, taken = of[at], column + start, pa.array(at)
        stores, products = ([keys[i][place] for i in of.tolist()] for place in (0, 1))
        categories = [names[g] for g in self.group[of].tolist()]
        day = column + self.first
        return pa.table(
            {
                "store_id": pa.array(stores, pa.string()).take(taken),
                "product_id": pa.array(products, pa.string()).take(taken),
                "category": pa.array(categories, pa.string()).take(taken),
                "day": day,
                "event_timestamp": day * DAY,
                "created_timestamp": (day + 1) * DAY,
                "position": self.position[row, column],
                "units": self.units[row, column],
                "price": self.price[row, column],
                "promoted": self.promoted[row, column] > 0,
                "sold_out": self.sold_out[row, column] > 0,
            }
        )

    def save(self, folder: Path) -> None:
        pq.write_table(self.table(), folder / FILE)

    @classmethod
    def load(cls, config: Config, folder: Path, season: int) -> Self:
        table = pq.read_table(folder / FILE)
        if not {"store_id", "product_id", "category", "day", "units"} <= set(table.column_names):
            raise BadBundle(f"{FILE}: must have the columns of a panel, has {', '.join(table.column_names)}")
        return cls.of(config, table, season)


@dataclass(frozen=True)
class Plan:
    """Reviews as columns, (n,) and (n, HORIZON)."""

    store_id: list[str]
    product_id: list[str]
    category: list[str]
    day: Ints
    price: Array  # EUR, NaN: as it was
    promoted: Array  # 0 or 1

    @classmethod
    def of(cls, reviews: Sequence[Review]) -> Self:
        price = np.full((len(reviews), HORIZON), np.nan)
        promoted = np.zeros((len(reviews), HORIZON))
        for i, review in enumerate(reviews):
            if review.prices:
                price[i, : len(review.prices)] = review.prices
                price[i, len(review.prices) :] = review.prices[-1]
            promoted[i, : len(review.promoted)] = review.promoted
        return cls(
            [review.store_id for review in reviews], [review.product_id for review in reviews],
            [review.category for review in reviews], np.array([review.day for review in reviews], np.int64),
            price, promoted,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.day)

    def from_day(self, day: int) -> "Plan":
        """The same plans, later on, all from one day."""
        at = np.arange(HORIZON) + day - self.day[:, None]
        inside = (at >= 0) & (at < HORIZON)
        rows = np.arange(len(self))[:, None]
        return Plan(
            self.store_id, self.product_id, self.category, np.full(len(self), day),
            self.price[rows, np.clip(at, 0, HORIZON - 1)],
            np.where(inside, self.promoted[rows, np.clip(at, 0, HORIZON - 1)], 0.0),
        )  # fmt: skip

    def joined(self, other: "Plan") -> "Plan":
        return Plan(
            self.store_id + other.store_id, self.product_id + other.product_id, self.category + other.category,
            np.append(self.day, other.day), np.concatenate([self.price, other.price]),
            np.concatenate([self.promoted, other.promoted]),
        )  # fmt: skip

    def part(self, which: slice) -> "Plan":
        return Plan(
            self.store_id[which], self.product_id[which], self.category[which], self.day[which], self.price[which],
            self.promoted[which],
        )  # fmt: skip


def replay(config: Config, asked: pa.Table, events: Mapping[str, pa.Table]) -> Rows:
    """The rows of logged reviews as they were named, from what had been heard before each; `known` is 0 where a day was
    sold out later, so that nobody knows how much was wanted but that it was `at_least` so much."""
    season = seasons.of(calendar(events[Review.__name__]))
    panel = Panel.of(config, events[Actual.__name__], season)
    return rows(panel, Plan.of(from_table(Review, asked)), ints(asked["position"]))


def prices(panel: Panel, plan: Plan) -> Array:
    """As planned, or as they were, (n, HORIZON) EUR; NaN: never heard of."""
    series = np.array([panel.find(*key) for key in zip(plan.store_id, plan.product_id, strict=True)], np.int64)
    newest = _newest(panel.window("price", series, plan.day, QUARTER))
    return np.where(np.isnan(plan.price), newest[:, None], plan.price)


def rows(panel: Panel, plan: Plan, heads: Ints | None = None, usual: "Usual | None" = None) -> Rows:
    """HORIZON rows for each review; `usual`: what is usual in its group, where that is known."""
    parts = []
    for start in range(0, max(len(plan), 1), CHUNK):
        which = slice(start, start + CHUNK)
        some, seen = plan.part(which), None if heads is None else heads[which]
        parts.append(_part(panel, some, seen, of_groups(panel, some, seen) if usual is None else usual.part(which)))
    return Rows(pa.concat_tables(parts), np.arange(len(plan) + 1) * HORIZON)


def _part(panel: Panel, plan: Plan, heads: Ints | None, usual: "Usual") -> pa.Table:
    n, season = len(plan), panel.season
    series = np.array([panel.find(*key) for key in zip(plan.store_id, plan.product_id, strict=True)], np.int64)
    day = plan.day[:, None] + np.arange(HORIZON)  # (n, HORIZON)
    y = panel.demand(series, plan.day, panel.config.memory, heads)
    level = _level(y, usual.level)
    promoted = panel.window("promoted", series, plan.day, panel.config.memory, heads)
    price = panel.window("price", series, plan.day, QUARTER, heads)
    planned = np.where(np.isnan(plan.price), _newest(price)[:, None], plan.price)
    said = {
        "naive": local.seasonal_naive(y, HORIZON, season),
        "theta": local.theta(y, HORIZON, season),
        "croston": local.croston(y, HORIZON),
        "profile": level[:, None] * usual.profile[:, np.arange(HORIZON) % season],
    }
    around = holiday(day)
    told = ~np.isnan(y)
    quarter = y[:, -QUARTER:]
    numbers_of = {
        "horizon": np.broadcast_to(np.arange(1, HORIZON + 1), day.shape),
        "weekday": day % season,
        "year_sin": np.sin(2 * np.pi * day / 365.25),
        "year_cos": np.cos(2 * np.pi * day / 365.25),
        "to_holiday": around.until,
        "since_holiday": around.since,
        "next_holiday": around.next,
        "last_holiday": around.last,
        "price_ratio": planned / _mean(price)[:, None],
        "is_promoted": plan.promoted,
        "was_promoted": np.broadcast_to(_mean(promoted[:, -7:])[:, None], day.shape),
        "promotion_day": _run(np.concatenate([np.nan_to_num(promoted[:, -7:]), plan.promoted], axis=1))[:, 7:],
        "promotion_lift": np.broadcast_to(_lift(y, promoted)[:, None], day.shape),
        "level": np.broadcast_to(level[:, None], day.shape),
        "age": np.broadcast_to(np.where(told.any(1), y.shape[1] - told.argmax(1), 0)[:, None], day.shape),
        "zero_share": np.broadcast_to(_mean(np.where(np.isnan(quarter), np.nan, quarter == 0))[:, None], day.shape),
        "noise": np.broadcast_to((local.scale(quarter, season) / (level + 1))[:, None], day.shape),
        "scale": np.broadcast_to(_scale(y, level, season)[:, None], day.shape),
        "weekday_ratio": _phases(y[:, -12 * season :], season)[:, np.arange(HORIZON) % season],
        "year_ratio": _year(y),
        **{f"{name}_ratio": (value + 1) / (level[:, None] + 1) for name, value in said.items()},
    }
    owner = pa.array(np.repeat(np.arange(n), HORIZON))
    sold_out = panel.window("sold_out", series, plan.day + HORIZON, HORIZON)  # what came of these days, if it is known
    units = panel.window("units", series, plan.day + HORIZON, HORIZON)
    return pa.table(
        {
            "store_id": pa.array(plan.store_id, pa.string()).take(owner),
            "product_id": pa.array(plan.product_id, pa.string()).take(owner),
            "day": day.ravel(),
            **{name: np.asarray(numbers_of[name], np.float64).ravel() for name in NUMBERS},
            "known": np.where(sold_out > 0, 0.0, 1.0).ravel(),
            "at_least": np.where(sold_out > 0, units, np.nan).ravel(),
        }
    )


@dataclass(frozen=True)
class Usual:
    """What is usual in the groups of reviews: for series too short to speak for themselves."""

    level: Array  # (n,) units a day
    profile: Array  # (n, season), from the day of the review on, as a multiple of the level

    def part(self, which: slice) -> "Usual":
        return Usual(self.level[which], self.profile[which])


def of_groups(panel: Panel, plan: Plan, heads: Ints | None = None) -> Usual:
    """Of a day's reviews together, by what had been heard before the first of them."""
    season, day = panel.season, plan.day
    group = np.array([panel.groups.get(name, -1) for name in plan.category], np.int64)
    level, profile = np.ones(len(day)), np.ones((len(day), season))
    for today in np.unique(day).tolist():
        mine = np.flatnonzero(day == today)
        known = panel.usual if heads is None else {}
        wanted = [of for of in np.unique(group[mine]).tolist() if (today, of) not in known]
        series = np.flatnonzero(np.isin(panel.group, wanted))
        head = None if heads is None else np.full(len(series), heads[mine].min())
        y = panel.demand(series, np.full(len(series), today), 12 * season, head)
        phases, means, groups = _phases(y, season), _mean(y[:, -MONTH:]), panel.group[series]
        for of in wanted:
            inside = (groups == of) & ~np.isnan(means)
            known[today, of] = (1.0, np.ones(season))
            if inside.any():
                known[today, of] = (float(np.median(means[inside])), phases[inside].mean(axis=0))
        for of in np.unique(group[mine]).tolist():
            rows = mine[group[mine] == of]
            level[rows], profile[rows] = known[today, of]
    return Usual(level, profile)


def unconstrained(units: Array, sold_out: Flags, season: int) -> Array:
    """Demand, (n, days), where days that were sold out say only that it was as high or higher.

    Of the newest QUARTER days these become what is expected of a normal law that is at least that high, its mean by
    the phase of the season, its mean and variance estimated with them, twice over (EM: Salch 1997; Weatherford & Poelt
    2002, Journal of Revenue and Pricing Management 1:234). Older ones become NaN. Leaving all of them out would take
    the best days for missing by chance, and what is ordered by such forecasts sells out again.
    """
    out = np.where(sold_out, np.nan, units)
    rows = np.flatnonzero(sold_out[:, -QUARTER:].any(axis=1))
    if not len(rows):
        return out
    part, hidden = units[rows, -QUARTER:], sold_out[rows, -QUARTER:]
    guess = np.where(hidden, np.maximum(part, _mean(out[rows, -QUARTER:])[:, None]), part)
    phase = np.arange(-part.shape[1], 0) % season
    for _ in range(ROUNDS):
        mean = _mean(guess)[:, None]
        expected = (_phases(guess, season)[:, phase] * (mean + 1)) - 1
        spread = np.sqrt(np.maximum(_mean((guess - expected) ** 2), _mean(guess) + 1e-9))[:, None]
        gap = (part - expected) / spread
        guess = np.where(
            hidden, np.maximum(part, expected + spread * np.exp(-(gap**2) / 2 - log_ndtr(-gap)) / ROOT), part
        )
    out[rows, -QUARTER:] = guess
    return out


def _level(y: Array, usual: Array) -> Array:
    """Units a day: of the last four weeks, of a longer time if they say little, of the group if nothing does; (n,)."""
    month = y[:, -MONTH:]
    level = np.where((~np.isnan(month)).sum(1) >= FEW, _mean(month), _mean(y[:, -QUARTER:]))
    return np.where(np.isnan(level), usual, level)


def _scale(y: Array, level: Array, season: int) -> Array:
    """By what errors of a series are divided, (n,): those of the same day of a season before; of a series too short to
    have made them, the standard deviation that counts have by chance."""
    short = (~np.isnan(y)).sum(1) < MONTH
    return np.where(short, np.sqrt(level + 1), local.scale(y, season))


def _codes(values: Ints) -> Ints:
    """Each value's number, in the order in which they come, (n,); by hashing, for sorting millions takes seconds."""
    return np.asarray(pa.array(values).dictionary_encode().indices.to_numpy(), np.int64)


def _first(codes: Ints) -> Ints:
    """Where each of such numbers comes first."""
    return np.flatnonzero(np.diff(np.maximum.accumulate(codes), prepend=-1))


def _mean(y: Array) -> Array:
    """Over what is known of each row; NaN: nothing is."""
    known = ~np.isnan(y)
    nothing = np.full(len(y), np.nan)
    return np.asarray(np.divide(np.where(known, y, 0).sum(1), known.sum(1), out=nothing, where=known.any(1)))


def _newest(y: Array) -> Array:
    """What is known last of each row, (n,)."""
    known = ~np.isnan(y)
    at = y.shape[1] - 1 - known[:, ::-1].argmax(1)
    return np.asarray(y[np.arange(len(y)), at])


def _phases(y: Array, season: int) -> Array:
    """Each phase's mean against the mean of all, (n, season), the first one that of the day after the last column."""
    usual = _mean(y)
    phases = np.stack([_mean(y[:, (np.arange(y.shape[1]) - y.shape[1]) % season == k]) for k in range(season)], axis=1)
    return np.nan_to_num((phases + 1) / (usual[:, None] + 1), nan=1.0)


def _lift(y: Array, promoted: Array) -> Array:
    """Units on promoted days against those on others, drawn to 1 by a week of each, (n,)."""
    inside, usual = np.where(promoted > 0, y, np.nan), np.where(promoted == 0, y, np.nan)
    days = (~np.isnan(inside)).sum(1)
    mean = np.nan_to_num(_mean(usual)) + 1
    lifted = np.where(days > 0, np.nan_to_num(_mean(inside)) + 1, mean)
    return np.asarray((days * lifted / mean + FEW) / (days + FEW))


def _run(promoted: Array) -> Array:
    """For how many days a promotion has lasted, this one included, (n, days)."""
    lasted = np.zeros(promoted.shape)
    for k in range(promoted.shape[1]):
        lasted[:, k] = np.where(promoted[:, k] > 0, (lasted[:, k - 1] if k else 0) + 1, 0)
    return lasted


def _year(y: Array) -> Array:
    """The days around the same one a year ago against the four weeks before the review's, (n, HORIZON)."""
    if y.shape[1] < YEAR + MONTH:
        return np.full((len(y), HORIZON), np.nan)
    end = y.shape[1] - YEAR  # the column of a year before the review
    then = _mean(y[:, end - MONTH : end])[:, None]
    near = np.stack([_mean(y[:, end + k - NEAR : end + k + NEAR + 1]) for k in range(HORIZON)], axis=1)
    return np.asarray((near + 1) / (then + 1))


def features(panel: Panel, plan: Plan, of: Rows, known: Mapping[str, Array] = MappingProxyType({})) -> Array:
    """The features of rows from what the panel has heard, (n_rows, n_features): for whoever has no feature store.

    `known`: the values of some views, (n, n_aggregations), by name.
    """
    values = [known[view.name] if view.name in known else view_of(panel, plan, view) for view in VIEWS]
    repeated = [block[of.owner] for block in values]
    return assemble(Review, VIEWS, ON_DEMAND, of.columns, repeated)


def view_of(panel: Panel, plan: Plan, view: FeatureView) -> Array:
    """A view's values as of each review's day, (n, n_aggregations)."""
    if len(view.entity) > 1:
        found = {panel.find(*key) for key in zip(plan.store_id, plan.product_id, strict=True)} - {-1}
    else:
        asked = set(getattr(plan, view.entity[0]))
        place = ("store_id", "product_id").index(view.entity[0])
        found = {row for row, key in enumerate(list(panel.place)) if key[place] in asked}
    near = np.array(sorted(found), np.int64)
    keys = pa.table(
        {
            "store_id": plan.store_id, "product_id": plan.product_id, "position": np.full(len(plan), NEVER),
            "created_timestamp": plan.day * DAY,
        }
    )  # fmt: skip
    span = max(a.delay + a.window for a in view.aggregations) // DAY
    return offline.compute(view, panel.table(near, int(plan.day.min()) - span - 1), keys)
