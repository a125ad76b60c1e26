"""From a probability to an action, by expected cost; and the rule that answers when no model can."""

from systems.fraud.config import Config
from systems.fraud.data import Decision, Payment
from systems.fraud.model import Scored, costs

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


def hides(decision: Decision) -> bool:
    """A blocked payment never happened: nobody will report it."""
    return decision.action == "block"


def redact(payment: Payment) -> Payment:
    """Payments hold pseudonyms only: card numbers never come this far."""
    return payment
