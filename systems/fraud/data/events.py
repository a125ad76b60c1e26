"""What the service hears and says: a payment, its outcome, the decision."""

from typing import Literal

from pydantic import Field

from common.schema import Event
from common.system import Answer
from systems.fraud.config import Category, Channel


class Payment(Event):
    """A card is about to pay."""

    card_id: str = Field(min_length=1, max_length=100)
    device_id: str = Field(min_length=1, max_length=100)
    merchant_id: str = Field(min_length=1, max_length=100)
    terminal_id: str = Field(min_length=1, max_length=100)
    category: Category
    channel: Channel
    amount: float = Field(gt=0, le=1e6)  # EUR
    x_km: float = Field(ge=-10_000, le=10_000)  # where the terminal stands; online: as guessed from the address
    y_km: float = Field(ge=-10_000, le=10_000)
    card_age_days: float = Field(ge=0)  # since the card was first issued


class Outcome(Event):
    """Whether a payment was fraud; carries that payment's time, and is heard of hours to weeks later.

    An honest payment that nobody inspects has none: silence until the label delay means honest.
    """

    payment_id: str = Field(min_length=1, max_length=200)
    card_id: str
    device_id: str
    merchant_id: str
    terminal_id: str
    amount: float = Field(gt=0, le=1e6)  # EUR
    fraud: bool
    source: Literal["chargeback", "inspection"]


EXAMPLES = (
    Payment(
        event_id="payment-1", event_timestamp=1_767_225_600_000_000, card_id="card-1", device_id="device-1",
        merchant_id="merchant-1", terminal_id="terminal-1", category="groceries", channel="terminal", amount=24.9,
        x_km=3.2, y_km=-1.5, card_age_days=412.0,
    ),
    Outcome(
        event_id="payment-1.chargeback", event_timestamp=1_767_225_600_000_000, payment_id="payment-1",
        card_id="card-1", device_id="device-1", merchant_id="merchant-1", terminal_id="terminal-1", amount=24.9,
        fraud=True, source="chargeback",
    ),
)  # fmt: skip


class Decision(Answer):
    """What the service does about a payment, and why."""

    action: Literal["approve", "review", "block"]
    probability: float = Field(ge=0, le=1)  # of fraud
    reasons: tuple[str, ...] = ()  # codes, the weightiest first
