"""The world of a chain of stores: tells what was sold and asks what to order, fills shelves, and knows the truth."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.clock import DAY, MINUTE
from common.errors import BadSetting, NotFound
from common.system import Arrival, Rows
from systems.forecasting.config import CATEGORIES, DRIFTS, Config
from systems.forecasting.data.assortment import Assortment, Flags, assortment
from systems.forecasting.data.calendar import Array, Ints
from systems.forecasting.data.demand import NEVER, Demand, demand
from systems.forecasting.data.events import HORIZON, LEVELS, Actual, Order, Review
from systems.forecasting.data.shelves import Shelves
from systems.forecasting.data.stock import least_pinball, newsvendor_level, newsvendor_loss

LATEST: Final = 3 * DAY  # us that a report may be late
JITTER: Final = 40 * MINUTE  # us, each store has its own
NEW: Final = 56  # days since the launch, at most, of what counts as new
DELIVERY: Final = 1_000_000  # units of a product that a lorry takes
RARE: Final = 1.0  # units a day, what is expected to be sold less is intermittent
TOLD, REVIEWED = range(2)


def world(config: Config, seed: int, drift: str | None = None, days: int | None = None) -> "RetailWorld":
    """A world in which customers change their ways on a day, if drift names one: "break@30"."""
    config = config if days is None else replace(config, days=days)
    of = assortment(config, seed)
    return RetailWorld(of, demand(of, seed, NEVER if drift is None else _drift_day(config, drift)), seed)


def _drift_day(config: Config, drift: str) -> int:
    kind, _, day = drift.partition("@")
    if kind not in DRIFTS or not day.isascii() or not day.isdigit() or int(day) >= config.days:
        kinds = " or ".join(f"{k}@DAY" for k in DRIFTS)
        raise BadSetting(f"drift: must be {kinds} with a day from 0 to {config.days - 1}, got {drift!r}")
    return int(day)


class RetailWorld:
    """Demand as drawn; sales are what of it the shelves could serve, and shelves hold what the answers ordered.

    A store reports all its sales of a day together, the next morning or days later, and all its reviews of a day come
    together. The first answer to a review counts; a supplier delivers the nearest whole number of units.
    """

    def __init__(self, of: Assortment, demand: Demand, seed: int) -> None:
        self.config = of.config
        self._of, self._demand = of, demand
        self._shelves = Shelves(of, demand, seed)
        self._when, self._what, self._store, self._day = _schedule(of.config, seed)
        self._next = 0  # of these
        self._answered = np.zeros((len(of), of.days), bool)
        self._asked = np.zeros((len(of), of.days), bool)
        self._loss = np.full((len(of), of.days), np.nan)  # the least expected, where somebody has asked for it
        self._stores = [f"store-{i + 1:02d}" for i in range(of.config.stores)]
        self._products = [f"product-{i + 1:03d}" for i in range(of.config.products)]
        self._store_of = {name: i for i, name in enumerate(self._stores)}
        self._product_of = {name: i for i, name in enumerate(self._products)}

    def arrivals(self, until: int) -> list[Arrival]:
        """Reports and reviews in order of time, from the last `until` on, up to this one (us, exclusive)."""
        end = max(self._next, int(np.searchsorted(self._when, until)))
        part = slice(self._next, end)
        columns = (self._when[part], self._what[part], self._store[part], self._day[part])
        self._next, found = end, list[Arrival]()
        for at, what, store, day in zip(*(column.tolist() for column in columns), strict=True):
            if day + (what == TOLD) > self._shelves.day:
                self._shelves.advance(day + (what == TOLD))
            events = self._actuals(store, day) if what == TOLD else self._reviews(store, day, at)
            found += [Arrival(at, event) for event in events]
        return found

    def react(self, answered: Sequence[tuple[Review, Order]]) -> None:
        """What is ordered is on its way at once, and on the shelf in the morning after the lead time."""
        series, day = self._series([review for review, _ in answered])
        for s, t, (_, order) in zip(series.tolist(), day.tolist(), answered, strict=True):
            if not self._answered[s, t]:
                self._answered[s, t] = True
                self._shelves.order(np.array([s]), np.array([int(min(order.quantity, DELIVERY) + 0.5)]))

    def ceiling(self, requests: Sequence[Review]) -> Array:
        """The lowest pinball loss that a forecast can be expected to have, that of the true quantiles: in units,
        averaged over its days and LEVELS, (n,)."""
        series, day = self._series(requests)
        s, t = np.repeat(series, HORIZON), (day[:, None] + np.arange(HORIZON)).ravel()
        cells = np.unique((s * self._of.days + t)[np.isnan(self._loss[s, t])])
        i, j = np.divmod(cells, self._of.days)
        self._loss[i, j] = least_pinball(self._demand.mean[i, j].astype(np.float64), self._demand.dispersion[i], LEVELS)
        return np.asarray(self._loss[s, t].reshape(-1, HORIZON).mean(axis=1))

    def truth(self, requests: Sequence[Review], rows: Rows) -> Mapping[str, Array]:
        """Of each row, (n_rows,): the units that were or will be wanted, and the distribution that they come from,
        whose variance is mean + dispersion * mean^2."""
        stores, products = (
            pc.fill_null(pc.index_in(rows.columns[name], value_set=pa.array(names)), -1).to_numpy()
            for name, names in (("store_id", self._stores), ("product_id", self._products))
        )
        t = rows.columns["day"].to_numpy() - self._of.first
        unknown = np.flatnonzero((stores < 0) | (products < 0) | (t < 0) | (t >= self._of.days))
        if len(unknown):
            row = rows.columns.select(["store_id", "product_id", "day"]).slice(unknown[0], 1).to_pylist()[0]
            raise NotFound(f"rows: must be of series and days of this world, got {row}")
        series = stores.astype(np.int64) * self.config.products + products
        return {
            "demand": self._demand.units[series, t].astype(np.float64),
            "mean": self._demand.mean[series, t].astype(np.float64),
            "dispersion": self._demand.dispersion[series],
        }

    def segments(self, requests: Sequence[Review]) -> Mapping[str, Flags]:
        """Sold often, or rarely: by what is expected of the 28 days; new: not on sale for 56 days yet; promoted on
        one of the 28 days. (n,) each."""
        series, day = self._series(requests)
        ahead = day[:, None] + np.arange(HORIZON)
        rare = self._demand.mean[series[:, None], ahead].mean(axis=1) < RARE
        launch = self._of.launch[series]
        return {
            "smooth": ~rare,
            "intermittent": rare,
            "new": (launch > 0) & (day - launch < NEW),
            "promoted": self._of.promoted[series[:, None], ahead].any(axis=1),
        }

    def cost(self, reviews: Sequence[Review], quantities: Sequence[float] | Array) -> Array:
        """EUR that ordering so many units can be expected to cost until the next order could come, (n,): the order,
        demand that finds nothing, and what is left over."""
        return _cost(reviews, *self._protected(reviews), np.asarray(quantities, np.float64))

    def least(self, reviews: Sequence[Review]) -> Array:
        """The smallest such cost of any quantity, (n,)."""
        mean, variance = self._protected(reviews)
        ratio = np.array([review.short_cost / (review.short_cost + review.over_cost) for review in reviews])
        stock = np.array([review.on_hand + review.on_order for review in reviews])
        fills = np.maximum(newsvendor_level(mean, variance, ratio) - stock, 0)  # costs are convex in what is ordered
        return np.minimum(_cost(reviews, mean, variance, fills), _cost(reviews, mean, variance, np.zeros(len(reviews))))

    def _protected(self, reviews: Sequence[Review]) -> tuple[Array, Array]:
        """Mean and variance of demand from each review's day to the one on which an order comes, (n,)."""
        series, day = self._series(reviews)
        lead = np.array([review.lead_time for review in reviews], np.int64)
        ahead = np.arange(lead.max(initial=0) + 1)
        mean = self._demand.mean[series[:, None], day[:, None] + ahead] * (ahead <= lead[:, None]).astype(np.float64)
        return mean.sum(axis=1), (mean + self._demand.dispersion[series, None] * mean**2).sum(axis=1)

    def _series(self, reviews: Sequence[Review]) -> tuple[Ints, Ints]:
        """Places of their series, and days since the world's first, (n,) each."""
        rows = np.array([self._place(review) for review in reviews], np.int64).reshape(-1, 2)
        return rows[:, 0], rows[:, 1]

    def _place(self, review: Review) -> tuple[int, int]:
        store, product = self._store_of.get(review.store_id), self._product_of.get(review.product_id)
        t = review.day - self._of.first
        if store is not None and product is not None and 0 <= t < self._of.days:
            series = store * self.config.products + product
            if self._asked[series, t]:
                return series, t
        raise NotFound(f"event_id: must be a review that has arrived, got {review.event_id!r}")

    def _actuals(self, store: int, t: int) -> Iterator[Actual]:
        of, shelves, day = self._of, self._shelves, self._of.first + t
        series = self._on_sale(store, t)
        columns: list[NDArray[Any]] = [of.product[series], of.category[series], shelves.units[series, t]]
        columns += [of.price[series, t], of.promoted[series, t], shelves.sold_out[series, t]]
        store_id = self._stores[store]
        for product, category, units, price, promoted, sold_out in zip(*(c.tolist() for c in columns), strict=True):
            # the fields are right by construction, and validation would take most of the time
            yield Actual.model_construct(
                event_id=f"{store_id}/{self._products[product]}/{day}",
                event_timestamp=day * DAY,
                store_id=store_id,
                product_id=self._products[product],
                category=CATEGORIES[category],
                day=day,
                units=float(units),
                price=price,
                promoted=promoted,
                sold_out=sold_out,
            )

    def _reviews(self, store: int, t: int, at: int) -> Iterator[Review]:
        of, shelves, day = self._of, self._shelves, self._of.first + t
        series = self._on_sale(store, t)
        series = series[shelves.reviewed[series, t]]
        self._asked[series, t] = True
        prices, promoted = of.price[series, t : t + HORIZON], of.promoted[series, t : t + HORIZON]
        columns: list[NDArray[Any]] = [of.product[series], of.category[series], of.lead_time[series]]
        columns += [prices, _needed(prices != prices[:, -1:]) + 1, promoted, _needed(promoted)]
        columns += [shelves.on_hand[series], shelves.on_order[series]]
        columns += [terms[series] for terms in (of.short_cost, of.over_cost, of.order_cost)]
        store_id = self._stores[store]
        for product, category, lead, price, prices_to, promo, promo_to, on_hand, on_order, *costs in zip(
            *(c.tolist() for c in columns), strict=True
        ):
            yield Review.model_construct(
                event_id=f"review/{store_id}/{self._products[product]}/{day}",
                event_timestamp=at,
                store_id=store_id,
                product_id=self._products[product],
                category=CATEGORIES[category],
                day=day,
                prices=tuple(price[:prices_to]),
                promoted=tuple(promo[:promo_to]),
                on_hand=float(on_hand),
                on_order=float(on_order),
                lead_time=lead,
                short_cost=costs[0],
                over_cost=costs[1],
                order_cost=costs[2],
            )

    def _on_sale(self, store: int, t: int) -> Ints:
        series = store * self.config.products + np.arange(self.config.products)
        return series[self._of.launch[series] <= t]


def _schedule(config: Config, seed: int) -> tuple[Ints, Ints, Ints, Ints]:
    """When stores report and review (us), which of the two, the store, and the day it is about, in order of time."""
    draws = np.random.default_rng([seed, 6]).random((config.days, 2, config.stores))
    jitter = np.random.default_rng([seed, 7]).integers(0, JITTER, (2, config.stores))
    day = np.broadcast_to(np.arange(config.days)[:, None], (config.days, config.stores))
    begins = config.start + day * DAY
    waits = -np.log1p(-draws[:, 1]) * config.late_days * DAY  # exponential
    late = np.where(draws[:, 0] < config.late, waits, 0).astype(np.int64)
    told = begins + DAY + np.minimum(config.told + jitter[TOLD] + late, LATEST)
    reviewed = begins + config.reviewed + jitter[REVIEWED]
    when = np.concatenate([told.ravel(), reviewed.ravel()])
    order = np.argsort(when, kind="stable")
    what = np.repeat([TOLD, REVIEWED], day.size)
    store = np.tile(np.arange(config.stores), 2 * config.days)
    return when[order], what[order], store[order], np.tile(day.ravel(), 2)[order]


def _needed(different: Flags) -> Ints:
    """Up to which place each row has one, (n,)."""
    width = different.shape[1]
    return np.where(different.any(axis=1), width - np.argmax(different[:, ::-1], axis=1), 0)


def _cost(reviews: Sequence[Review], mean: Array, variance: Array, quantity: Array) -> Array:
    stock = np.array([review.on_hand + review.on_order for review in reviews]) + quantity
    short, over = newsvendor_loss(mean, variance, stock)
    terms = np.array([(review.short_cost, review.over_cost, review.order_cost) for review in reviews]).reshape(-1, 3)
    return np.asarray(terms[:, 0] * short + terms[:, 1] * over + terms[:, 2] * (quantity > 0))
