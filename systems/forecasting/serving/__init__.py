"""From a forecast to an order; what is ordered when no forecast can be had; the ways in of a chain."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from pydantic import Field

from common.errors import NotFound
from common.features.view import Array
from common.schema import Record
from common.system import Intake, Lookup, Losses, Route
from systems.forecasting.config import Config
from systems.forecasting.data import EDGES, HORIZON, LEVELS, Actual, Forecast, Order, RetailWorld, Review
from systems.forecasting.data.events import PRINTABLE, Price
from systems.forecasting.model import Forecaster, Predicted, distribution, forecaster, ordering, panel
from systems.forecasting.model.panel import Plan

BEYOND: Final = 0.185  # of an interval of 80 %: by how much what is outside is outside, if errors were normal


def decide(config: Config, review: Review, predicted: Predicted, luck: float) -> Order:
    """Fill up to the quantile of the demand until the next order comes at which a unit more costs as much as one less
    (newsvendor, Arrow, Harris & Marschak 1951); where an order has a price of its own, seldom and more at once."""
    q = np.array(predicted.quantiles)
    quantity, up_to = orders([review], q[None], predicted.is_count, predicted.correlation)
    return Order(
        action="order" if quantity[0] > 0 else "wait",
        quantity=float(quantity[0]),
        up_to=float(up_to[0]),
        service_level=review.short_cost / (review.short_cost + review.over_cost),
        forecast=told(predicted.first_day, q, predicted.is_count),
    )


def orders(reviews: Sequence[Review], q: Array, is_count: bool, correlation: float) -> tuple[Array, Array]:
    """How much to order and up to what, (n,) each; q: the quantiles of the days ahead, (n, days, len(LEVELS))."""
    short, over, fee, on_hand, on_order = (
        np.array([getattr(review, name) for review in reviews])
        for name in ("short_cost", "over_cost", "order_cost", "on_hand", "on_order")
    )
    days = np.array([review.lead_time + 1 for review in reviews], np.int64)
    low, up_to = ordering.reorder(q, days, LEVELS, short, over, fee, is_count, correlation)
    return ordering.order(on_hand + on_order, low, up_to, is_count), up_to


def told(first_day: int, q: Array, is_count: bool) -> Forecast:
    """As it is answered; q: (days, len(LEVELS))."""
    mean = distribution.mean(q, LEVELS, is_count)
    seen = np.round(forecaster.whole(q, is_count), 3)
    columns = {"mean": np.round(mean, 3), "median": seen[:, len(LEVELS) // 2]}
    for name, (low, high) in EDGES.items():
        columns |= {f"lower_{name}": seen[:, low], f"upper_{name}": seen[:, high]}
    return Forecast(first_day=first_day, **{name: tuple(column.tolist()) for name, column in columns.items()})


def rule(review: Review, luck: float) -> Order:
    """Nothing is ordered that nobody has forecast; the shelf lasts a day or the next review sees it. Cannot fail."""
    return Order(action="wait", quantity=0.0, up_to=review.on_hand + review.on_order, service_level=0.0)


def watched(order: Order, actual: Actual) -> float | None:
    """Whether the day was outside of its interval of 80 %. Sold out below its upper end, nobody knows."""
    if order.forecast is None:
        return None
    if actual.units > order.forecast.upper_80[0]:
        return 1.0
    return None if actual.sold_out else float(actual.units < order.forecast.lower_80[0])


def losses(reviews: Sequence[Review], answers: Sequence[Order], p: Array) -> Losses:
    """EUR of the first day: what is held in case it is wanted, and what is missing if demand is outside its interval,
    given P(outside) or whether it was, (n,)."""
    found = np.zeros(len(reviews))
    for i, (review, answer) in enumerate(zip(reviews, answers, strict=True)):
        if answer.forecast is not None:
            median, low, high = (getattr(answer.forecast, name)[0] for name in ("median", "lower_80", "upper_80"))
            missing = BEYOND * (high - low + 1) * float(p[i])
            found[i] = review.over_cost * (high - median) + review.short_cost * missing
    return Losses(found, np.zeros(len(reviews)))


def regret(world: RetailWorld, reviews: Sequence[Review], answers: Sequence[Order]) -> Losses:
    """What the orders can be expected to cost by the true distribution of demand, and the least that any could."""
    return Losses(world.cost(reviews, np.array([answer.quantity for answer in answers])), world.least(reviews))


def hides(answer: Order) -> bool:
    """No order hides what is sold; that a shelf was sold out is said by the day's report, not by the answer."""
    return False


class Which(Record):
    """One series, or a sum: of a store, of a category, of all where nothing is named."""

    store_id: str = Field(default="", max_length=60)
    product_id: str = Field(default="", max_length=60)
    category: str = Field(default="", max_length=60)


class Stored(Record):
    """As it was made ahead, when the version was; sums add up."""

    store_id: str
    product_id: str
    category: str
    steps: tuple[str, ...]  # what the days stand for: dates, or the stamps of one's own data
    forecast: Forecast


class WhatIf(Record):
    """Of one series, other plans than those that are known, for the days after the last one that was reported."""

    store_id: str = Field(min_length=1, max_length=60, pattern=PRINTABLE)
    product_id: str = Field(min_length=1, max_length=60, pattern=PRINTABLE)
    prices: tuple[Price, ...] = Field(default=(), max_length=HORIZON)  # EUR; the last one stays
    promoted: tuple[bool, ...] = Field(default=(), max_length=HORIZON)


class Compared(Record):
    """What was planned, what is asked, and what that changes over all days."""

    steps: tuple[str, ...]  # what the days stand for: dates, or the stamps of one's own data
    planned: Forecast
    asked: Forecast
    units: float  # more than planned
    revenue: float | None  # EUR more than planned; None: no price is known


def stored(model: Forecaster, which: Which) -> Stored:
    table = model.ahead()
    found = table.find((which.store_id, which.product_id, which.category))
    if found is None:
        raise NotFound(
            "store_id, product_id, category: must be a store and a product of it, a store, a category, or none, got"
            f" {which.store_id!r}, {which.product_id!r}, {which.category!r}"
        )
    q, is_count = found.quantiles, model.is_count and bool(which.product_id)
    forecast = told(table.first_day, q, is_count).model_copy(update={"mean": tuple(np.round(found.mean, 3).tolist())})
    return Stored(**which.model_dump(), steps=steps(model, table.first_day), forecast=forecast)


def steps(model: Forecaster, first_day: int) -> tuple[str, ...]:
    """Names of the days from the first one on."""
    days = range(first_day, first_day + HORIZON)
    if model.calendar is not None:
        return tuple(model.calendar.label(day) for day in days)
    return tuple(str(np.datetime64(day, "D")) for day in days)


def what_if(model: Forecaster, asked: WhatIf) -> Compared:
    """By the version's own history of the series, forecast twice."""
    with model.lock:  # so that both are of the same history
        return _compared(model, asked)


def _compared(model: Forecaster, asked: WhatIf) -> Compared:
    history = model.panel
    series = history.find(asked.store_id, asked.product_id)
    if series < 0:
        raise NotFound(f"store_id, product_id: must have been sold, got {asked.store_id!r}, {asked.product_id!r}")
    category = list(history.groups)[int(history.group[series])]
    day = history.last + 1
    table = model.ahead()
    known = table.find((asked.store_id, asked.product_id, ""))
    review = Review(
        event_id="what-if", event_timestamp=0, store_id=asked.store_id, product_id=asked.product_id, category=category,
        day=day, prices=asked.prices, promoted=asked.promoted,
    )  # fmt: skip
    plan = Plan.of([review])
    if known is not None:
        before = Plan(
            plan.store_id, plan.product_id, plan.category, np.array([table.first_day]), known.price[None],
            known.promoted[None],
        ).from_day(day)  # fmt: skip
    else:
        before = Plan.of([review.model_copy(update={"prices": (), "promoted": ()})])
    both = before.joined(plan)
    rows = panel.rows(history, both)
    q = model.quantiles(rows.columns, panel.features(history, both, rows)).reshape(2, HORIZON, len(LEVELS))
    planned, wanted = (told(day, of, model.is_count) for of in q)
    price = panel.prices(history, both)
    revenue = [float(p @ np.array(f.mean)) for p, f in zip(price, (planned, wanted), strict=True)]
    more = revenue[1] - revenue[0]
    return Compared(
        steps=steps(model, day), planned=planned, asked=wanted, units=round(sum(wanted.mean) - sum(planned.mean), 3),
        revenue=round(more, 2) if np.isfinite(more) else None,
    )  # fmt: skip


ROUTES: tuple[Route, ...] = (
    Lookup(
        name="forecast", summary="What was forecast ahead, of a series or a sum", find=stored, asks=Which,
        answer=Stored,
    ),
    Lookup(
        name="what-if", summary="How other prices or promotions would change it", find=what_if, asks=WhatIf,
        answer=Compared, method="POST",
        example=WhatIf(store_id="store-01", product_id="product-001", prices=(1.5,), promoted=(True, True, True)),
    ),
    Intake(name="actuals", summary="What was sold, day by day; versions know it within a second", event=Actual),
)  # fmt: skip
