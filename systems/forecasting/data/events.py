"""What the service hears and says: what was sold, what a shelf holds and is planned for it, and what to order."""

from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from common.clock import DAY
from common.schema import Event, Record, Whole
from common.system import Answer

HORIZON: Final = 28  # days that are forecast, the day of the review the first of them
LAST_DAY: Final = 84_006  # 2200-01-01, in days since 1970-01-01: a later one is a mistake
PRINTABLE: Final = r"^[^\x00-\x1f\x7f-\x9f]+$"  # no control characters
MOST: Final = 1e12  # units, or EUR
LEVELS: Final = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)  # of the quantiles that are forecast
EDGES: Final = {"80": (1, 5), "95": (0, 6)}  # of the intervals, as places in LEVELS

Price: TypeAlias = Annotated[float, Field(gt=0, le=MOST)]  # EUR


class Actual(Event):
    """What was sold of a product in a store on one day; heard of the next morning, or days later.

    It carries the day's beginning as its time. An id per store, product and day makes a second report harmless.
    """

    store_id: str = Field(min_length=1, max_length=60, pattern=PRINTABLE)
    product_id: str = Field(min_length=1, max_length=60, pattern=PRINTABLE)
    category: str = Field(default="all", min_length=1, max_length=60, pattern=PRINTABLE)
    day: Whole = Field(ge=0, lt=LAST_DAY)  # days since 1970-01-01
    units: float = Field(ge=0, le=MOST)
    price: float = Field(gt=0, le=MOST, default=1.0)  # EUR
    promoted: bool = False
    sold_out: bool = False  # the shelf was empty before the day was over: the demand was that high, or higher

    @model_validator(mode="after")
    def _is_of_its_day(self) -> Self:
        if self.event_timestamp != self.day * DAY:
            raise ValueError(f"event_timestamp: must be the beginning of the day, {self.day * DAY}")
        return self


class Review(Event):
    """Somebody looks at a shelf and asks what to order. Forecasts begin with this day, whose sales nobody knows yet.

    Plans are known ahead: the last price of `prices` stays, beyond `promoted` there are no promotions.
    """

    store_id: str = Field(min_length=1, max_length=60, pattern=PRINTABLE)
    product_id: str = Field(min_length=1, max_length=60, pattern=PRINTABLE)
    category: str = Field(default="all", min_length=1, max_length=60, pattern=PRINTABLE)
    day: Whole = Field(ge=0, lt=LAST_DAY)  # days since 1970-01-01
    prices: tuple[Price, ...] = Field(default=(), max_length=HORIZON)  # EUR, of this day and those after it
    promoted: tuple[bool, ...] = Field(default=(), max_length=HORIZON)
    on_hand: float = Field(default=0.0, ge=0, le=MOST)  # units on the shelf
    on_order: float = Field(default=0.0, ge=0, le=MOST)  # units that were ordered before and have not come yet
    lead_time: Whole = Field(default=1, ge=1, le=HORIZON - 1)  # days from an order to the morning on which it comes
    short_cost: float = Field(default=0.6, gt=0, le=MOST)  # EUR per unit that was wanted and not there
    over_cost: float = Field(default=0.1, gt=0, le=MOST)  # EUR per unit left over: waste, space, capital
    order_cost: float = Field(default=0.0, ge=0, le=MOST)  # EUR per order, whatever its size


class Forecast(Record):
    """Of a day each, from the first one on."""

    first_day: int  # days since 1970-01-01
    mean: tuple[float, ...]
    median: tuple[float, ...]
    lower_80: tuple[float, ...]
    upper_80: tuple[float, ...]
    lower_95: tuple[float, ...]
    upper_95: tuple[float, ...]


class Order(Answer):
    """How much to order now, and the forecast that says so."""

    action: Literal["order", "wait"]
    quantity: float = Field(ge=0)  # units
    up_to: float = Field(ge=0)  # units on the shelf and on order, that the order fills up to
    service_level: float = Field(ge=0, le=1)  # P(no shortage) that pays best
    forecast: Forecast | None = None  # None: there was none


_DAY: Final = 20_454  # 2026-01-01, a Thursday
EXAMPLES = (
    Review(
        event_id="review-1", event_timestamp=_DAY * DAY, store_id="store-01", product_id="product-001",
        category="dairy", day=_DAY, prices=(2.0,), promoted=(False, False, True, True), on_hand=12.0, on_order=5.0,
        lead_time=2,
    ),
    Actual(
        event_id="store-01/product-001/20453", event_timestamp=(_DAY - 1) * DAY, store_id="store-01",
        product_id="product-001", category="dairy", day=_DAY - 1, units=9.0, price=2.0,
    ),
)  # fmt: skip
