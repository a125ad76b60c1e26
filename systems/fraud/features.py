"""What the bank knows about a payment an instant before it answers.

`card` sees habits and pace, the pairs see what is new for the card, `terminal`, `merchant` and `device` see what a
single card cannot; the outcome views see frauds as they are reported, never before.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from common.clock import DAY, HOUR
from common.features.view import Aggregation, Array, FeatureView, Kind, OnDemand
from systems.fraud.data import Outcome, Payment

UNITS: Final = {"h": HOUR, "d": DAY}


def _over(kind: Kind, column: str | None, *windows: str) -> tuple[Aggregation, ...]:
    """One aggregation per window, such as "1h" or "30d", named after it."""
    what = f"{kind}_{column}" if column else kind
    return tuple(
        Aggregation(name=f"{what}_{w}", kind=kind, column=column, window=int(w[:-1]) * UNITS[w[-1]]) for w in windows
    )


def _view(
    name: str, source: type[Payment | Outcome], entity: tuple[str, ...], *found: tuple[Aggregation, ...]
) -> FeatureView:
    return FeatureView(name=name, source=source, entity=entity, aggregations=tuple(a for group in found for a in group))


VIEWS = (
    _view(
        "card", Payment, ("card_id",),
        _over("count", None, "1h", "6h", "1d", "7d", "30d"), _over("sum", "amount", "6h", "1d", "7d"),
        _over("mean", "amount", "30d", "90d"), _over("std", "amount", "90d"), _over("max", "amount", "1d", "90d"),
        _over("min", "amount", "6h"), _over("time_since", None, "90d"), _over("distinct", "merchant_id", "1d", "7d"),
        _over("last", "x_km", "30d"), _over("last", "y_km", "30d"),
        _over("mean", "x_km", "90d"), _over("mean", "y_km", "90d"), _over("distinct", "device_id", "7d"),
        _over("last", "amount", "30d"),
    ),
    _view(
        "card_channel", Payment, ("card_id", "channel"),
        _over("count", None, "6h", "90d"), _over("time_since", None, "90d"), _over("mean", "amount", "90d"),
        _over("last", "x_km", "90d"), _over("last", "y_km", "90d"),
        _over("mean", "x_km", "90d"), _over("mean", "y_km", "90d"),
        _over("std", "x_km", "90d"), _over("std", "y_km", "90d"),
    ),
    _view(
        "card_device", Payment, ("card_id", "device_id"),
        _over("count", None, "6h", "90d"), _over("min", "event_timestamp", "90d"), _over("sum", "amount", "6h"),
    ),
    _view("card_terminal", Payment, ("card_id", "terminal_id"), _over("count", None, "90d")),
    _view(
        "card_merchant", Payment, ("card_id", "merchant_id"),
        _over("count", None, "6h", "90d"), _over("mean", "amount", "90d"),
    ),
    _view(
        "card_category", Payment, ("card_id", "category"),
        _over("count", None, "6h", "90d"), _over("mean", "amount", "90d"),
    ),
    _view("terminal", Payment, ("terminal_id",), _over("count", None, "6h", "1d", "30d"), _over("sum", "amount", "1d")),
    _view(
        "merchant", Payment, ("merchant_id",),
        _over("count", None, "6h", "1d", "30d"), _over("mean", "amount", "1d", "30d"), _over("std", "amount", "30d"),
    ),
    _view("card_fraud", Outcome, ("card_id",), _over("sum", "fraud", "7d", "90d"), _over("count", None, "7d")),
    _view(
        "terminal_fraud", Outcome, ("terminal_id",),
        _over("sum", "fraud", "7d", "30d", "90d"), _over("time_since", None, "90d"),
    ),
    _view(
        "merchant_fraud", Outcome, ("merchant_id",),
        _over("sum", "fraud", "7d", "30d", "90d"), _over("time_since", None, "90d"),
    ),
)  # fmt: skip


Columns = Mapping[str, Array]


def log_amount(c: Columns) -> Array:
    return np.asarray(np.log(c["amount"]))


def hour(c: Columns) -> Array:
    """0 to 24, UTC."""
    return c["event_timestamp"] % DAY / HOUR


def weekday(c: Columns) -> Array:
    return np.asarray((c["event_timestamp"] // DAY + 4) % 7)  # the epoch was a Thursday; 0 is Sunday


def amount_to_card(c: Columns) -> Array:
    """How many times the card's usual amount."""
    return c["amount"] / c["card.mean_amount_90d"]


def amount_deviation(c: Columns) -> Array:
    """In standard deviations of the card's amounts; one EUR more keeps a card of one price finite."""
    return (c["amount"] - c["card.mean_amount_90d"]) / (c["card.std_amount_90d"] + 1)


def amount_to_most(c: Columns) -> Array:
    return c["amount"] / c["card.max_amount_90d"]


def amount_to_category(c: Columns) -> Array:
    return c["amount"] / c["card_category.mean_amount_90d"]


def amount_to_merchant(c: Columns) -> Array:
    return c["amount"] / c["merchant.mean_amount_30d"]


def is_round(c: Columns) -> Array:
    return np.asarray(c["amount"] % 10 == 0, np.float64)


def km_from_last(c: Columns) -> Array:
    return np.hypot(c["x_km"] - c["card.last_x_km_30d"], c["y_km"] - c["card.last_y_km_30d"])


def km_from_usual(c: Columns) -> Array:
    return np.hypot(c["x_km"] - c["card.mean_x_km_90d"], c["y_km"] - c["card.mean_y_km_90d"])


def km_per_hour(c: Columns) -> Array:
    """What the card must have travelled at since its last payment."""
    return c["km_from_last"] / (c["card.time_since_90d"] / 3_600 + 0.1)


def km_in_channel(c: Columns) -> Array:
    """From the card's last payment of the same kind: terminals move with the customer, addresses do not."""
    return np.hypot(c["x_km"] - c["card_channel.last_x_km_90d"], c["y_km"] - c["card_channel.last_y_km_90d"])


def place_deviation(c: Columns) -> Array:
    """From where the card pays in this channel, in its own spread; one km more keeps a card of one place finite."""
    x = (c["x_km"] - c["card_channel.mean_x_km_90d"]) / (c["card_channel.std_x_km_90d"] + 1)
    y = (c["y_km"] - c["card_channel.mean_y_km_90d"]) / (c["card_channel.std_y_km_90d"] + 1)
    return np.hypot(x, y)


def device_age(c: Columns) -> Array:
    """Hours since the card was first seen on this device; NaN for a new one."""
    return (c["event_timestamp"] - c["card_device.min_event_timestamp_90d"]) / HOUR


def share_on_device(c: Columns) -> Array:
    """Of the card's payments this month, seen on this device in three; 0 for a new one."""
    return c["card_device.count_90d"] / (c["card.count_30d"] + 1)


def share_in_category(c: Columns) -> Array:
    return c["card_category.count_90d"] / (c["card.count_30d"] + 1)


def pace(c: Columns) -> Array:
    """Payments in six hours, as a multiple of the card's month."""
    return c["card.count_6h"] / (c["card.count_30d"] / 120 + 0.1)


def spent_to_usual(c: Columns) -> Array:
    """What a day's payments with this one come to, in usual payments."""
    return (c["card.sum_amount_1d"] + c["amount"]) / c["card.mean_amount_90d"]


def merchant_risk(c: Columns) -> Array:
    """Reported frauds per payment of the month, shrunk towards none."""
    return c["merchant_fraud.sum_fraud_30d"] / (c["merchant.count_30d"] + 20)


def terminal_risk(c: Columns) -> Array:
    return c["terminal_fraud.sum_fraud_30d"] / (c["terminal.count_30d"] + 20)


def _on_demand(compute: Callable[[Columns], Array], *inputs: str, version: int = 1) -> OnDemand:
    return OnDemand(name=compute.__name__, inputs=inputs, version=version, compute=compute)


ON_DEMAND = (
    _on_demand(log_amount, "amount"),
    _on_demand(hour, "event_timestamp"),
    _on_demand(weekday, "event_timestamp"),
    OnDemand(name="category", inputs=("category",), version=1, compute=lambda c: c["category"]),
    OnDemand(name="channel", inputs=("channel",), version=1, compute=lambda c: c["channel"]),
    OnDemand(name="card_age_days", inputs=("card_age_days",), version=1, compute=lambda c: c["card_age_days"]),
    _on_demand(amount_to_card, "amount", "card.mean_amount_90d"),
    _on_demand(amount_deviation, "amount", "card.mean_amount_90d", "card.std_amount_90d"),
    _on_demand(amount_to_most, "amount", "card.max_amount_90d"),
    _on_demand(amount_to_category, "amount", "card_category.mean_amount_90d"),
    _on_demand(amount_to_merchant, "amount", "merchant.mean_amount_30d"),
    _on_demand(is_round, "amount"),
    _on_demand(km_from_last, "x_km", "y_km", "card.last_x_km_30d", "card.last_y_km_30d"),
    _on_demand(km_from_usual, "x_km", "y_km", "card.mean_x_km_90d", "card.mean_y_km_90d"),
    _on_demand(km_per_hour, "km_from_last", "card.time_since_90d"),
    _on_demand(km_in_channel, "x_km", "y_km", "card_channel.last_x_km_90d", "card_channel.last_y_km_90d"),
    _on_demand(
        place_deviation,
        "x_km",
        "y_km",
        "card_channel.mean_x_km_90d",
        "card_channel.mean_y_km_90d",
        "card_channel.std_x_km_90d",
        "card_channel.std_y_km_90d",
    ),
    _on_demand(device_age, "event_timestamp", "card_device.min_event_timestamp_90d"),
    _on_demand(share_on_device, "card_device.count_90d", "card.count_30d"),
    _on_demand(share_in_category, "card_category.count_90d", "card.count_30d"),
    _on_demand(pace, "card.count_6h", "card.count_30d"),
    _on_demand(spent_to_usual, "card.sum_amount_1d", "amount", "card.mean_amount_90d"),
    _on_demand(merchant_risk, "merchant_fraud.sum_fraud_30d", "merchant.count_30d"),
    _on_demand(terminal_risk, "terminal_fraud.sum_fraud_30d", "terminal.count_30d"),
)

# What a customer and an analyst are told when a feature spoke for fraud. First match by the name's beginning.
REASONS: Mapping[str, str] = {
    "card_fraud": "FRAUD_REPORTED_ON_CARD",
    "terminal": "SUSPICIOUS_TERMINAL",
    "merchant": "SUSPICIOUS_MERCHANT",
    "device_age": "UNUSUAL_DEVICE",
    "card_device": "UNUSUAL_DEVICE",
    "card_terminal": "UNUSUAL_MERCHANT",
    "card_channel.last": "UNUSUAL_PLACE",
    "card_channel.mean_x": "UNUSUAL_PLACE",
    "card_channel.mean_y": "UNUSUAL_PLACE",
    "card_channel.std": "UNUSUAL_PLACE",
    "card_channel": "UNUSUAL_CHANNEL",
    "place_deviation": "UNUSUAL_PLACE",
    "share_on_device": "UNUSUAL_DEVICE",
    "card_merchant": "UNUSUAL_MERCHANT",
    "card_category": "UNUSUAL_CATEGORY",
    "share_in_category": "UNUSUAL_CATEGORY",
    "category": "UNUSUAL_CATEGORY",
    "km_": "UNUSUAL_PLACE",
    "card.last_x": "UNUSUAL_PLACE",
    "card.last_y": "UNUSUAL_PLACE",
    "card.last_amount": "UNUSUAL_AMOUNT",
    "card.mean_x": "UNUSUAL_PLACE",
    "card.mean_y": "UNUSUAL_PLACE",
    "hour": "UNUSUAL_TIME",
    "weekday": "UNUSUAL_TIME",
    "card.count": "MANY_PAYMENTS",
    "card.distinct": "MANY_PAYMENTS",
    "card.time_since": "MANY_PAYMENTS",
    "pace": "MANY_PAYMENTS",
    "card_age": "NEW_CARD",
    "channel": "UNUSUAL_CHANNEL",
    "card.sum": "UNUSUAL_AMOUNT",
    "card.m": "UNUSUAL_AMOUNT",
    "card.std": "UNUSUAL_AMOUNT",
    "amount": "UNUSUAL_AMOUNT",
    "log_amount": "UNUSUAL_AMOUNT",
    "is_round": "UNUSUAL_AMOUNT",
    "spent": "UNUSUAL_AMOUNT",
}


def reason(feature: str) -> str:
    return next(code for start, code in REASONS.items() if feature.startswith(start))
