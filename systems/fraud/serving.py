"""From a probability to an action, by expected cost; and the rule that answers when no model can."""

from collections.abc import Sequence

import numpy as np

from common.clock import DAY
from common.features.view import Array
from common.system import Losses
from systems.fraud.config import Config
from systems.fraud.data import CardWorld, Decision, Payment
from systems.fraud.model import Scored, costs, review_price

ACTIONS = ("approve", "review", "block")


def decide(config: Config, payment: Payment, scored: Scored, luck: float) -> Decision:
    """The cheapest action. A small share of what would be blocked is let through: only so is its outcome seen."""
    approve, review, block = costs(config, scored.probability, payment.amount)
    prices = (approve, review + scored.review_price, block)
    action = ACTIONS[prices.index(min(prices))]
    return _answer(config, action, scored.probability, scored.reasons, luck)


def rule(config: Config, payment: Payment, luck: float) -> Decision:
    """What banks did before models: refuse large amounts. It needs nothing and cannot fail."""
    if payment.amount > config.rule_amount:
        return _answer(config, "block", config.rule_probability, ("LARGE_AMOUNT",), luck)
    return _answer(config, "approve", config.base_rate, (), luck)


def _answer(config: Config, action: str, probability: float, reasons: tuple[str, ...], luck: float) -> Decision:
    propensity = 1.0
    if action == "block":
        lucky = luck < config.let_through
        action, propensity = ("approve", config.let_through) if lucky else ("block", 1 - config.let_through)
    return Decision.model_validate(
        {"action": action, "probability": probability, "reasons": reasons, "propensity": propensity}
    )


def losses(config: Config, payments: Sequence[Payment], decisions: Sequence[Decision], p: Array) -> Losses:
    """EUR, given P(fraud) or what is known of it, (n,): of what was decided, and of the cheapest decision.

    A review costs what its place in the analysts' day is worth, too, so that nobody looks good by asking for more of
    them than there are. A payment that was let through to see its outcome counts as the block that it would have been.
    """
    amount = np.array([payment.amount for payment in payments])
    days = (payments[-1].event_timestamp - payments[0].event_timestamp) / DAY if payments else 1.0
    approve, review, block = costs(config, p, amount)
    q = config.let_through
    prices = np.stack(
        [
            approve,
            np.full(len(p), review + review_price(config, p, amount, max(days, 1.0))),
            (1 - q) * block + q * approve,
        ]
    )
    blocked = [decision.action == "block" or decision.propensity == q for decision in decisions]
    chosen = np.where(blocked, 2, np.array([ACTIONS.index(decision.action) for decision in decisions], np.int64))
    return Losses(prices[chosen, np.arange(len(p))], prices.min(axis=0))


def regret(config: Config, world: CardWorld, payments: Sequence[Payment], decisions: Sequence[Decision]) -> Losses:
    """EUR, given the best that can be known of each payment."""
    return losses(config, payments, decisions, world.ceiling(payments))


def hides(decision: Decision) -> bool:
    """A blocked payment never happened: nobody will report it."""
    return decision.action == "block"


def redact(payment: Payment) -> Payment:
    """Payments hold pseudonyms only: card numbers never come this far."""
    return payment
