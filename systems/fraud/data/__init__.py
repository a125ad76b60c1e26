"""Payments, simulated so that nothing needs downloading, in a world that knows which ones are fraud."""

from systems.fraud.data.events import EXAMPLES, Decision, Outcome, Payment
from systems.fraud.data.own import LAYOUT
from systems.fraud.data.world import CardWorld, world

__all__ = ["EXAMPLES", "LAYOUT", "CardWorld", "Decision", "Outcome", "Payment", "world"]
