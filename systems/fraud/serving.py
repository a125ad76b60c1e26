"""From a probability to an action, by expected cost; and the rule that answers when no model can."""

import hashlib

import numpy as np

from systems.fraud.config import Config
from systems.fraud.data import Decision, Payment
from systems.fraud.model import Scored, best_action

ACTIONS = ("approve", "review", "block")


def decide(config: Config, payment: Payment, scored: Scored) -> Decision:
    """The cheapest action. A small share of what would be blocked is let through: only so is its outcome seen."""
    p, amount = np.array([scored.probability]), np.array([payment.amount])
    action = ACTIONS[int(best_action(config, p, amount, scored.review_price)[0])]
    return _answer(config, payment, action, scored.probability, scored.reasons)


def rule(config: Config, payment: Payment) -> Decision:
    """What banks did before models: refuse large amounts. It needs nothing and cannot fail."""
    if payment.amount > config.rule_amount:
        return _answer(config, payment, "block", config.rule_probability, ("LARGE_AMOUNT",))
    return _answer(config, payment, "approve", config.base_rate, ())


def _answer(config: Config, payment: Payment, action: str, probability: float, reasons: tuple[str, ...]) -> Decision:
    propensity = 1.0
    if action == "block":
        lucky = _uniform(payment.event_id) < config.let_through
        action, propensity = ("approve", config.let_through) if lucky else ("block", 1 - config.let_through)
    return Decision.model_validate(
        {"action": action, "probability": probability, "reasons": reasons, "propensity": propensity}
    )


def _uniform(event_id: str) -> float:
    """The same number in [0, 1) for the same payment: a retry gets the same answer."""
    return int.from_bytes(hashlib.blake2b(event_id.encode(), digest_size=8, person=b"let through").digest()) / 2**64


def hides(decision: Decision) -> bool:
    """A blocked payment never happened: nobody will report it."""
    return decision.action == "block"


def redact(payment: Payment) -> Payment:
    """Payments hold pseudonyms only: card numbers never come this far."""
    return payment
