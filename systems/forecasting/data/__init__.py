"""A chain of stores, simulated so that nothing needs downloading; the world knows the distribution of demand."""

from systems.forecasting.data.events import EDGES, EXAMPLES, HORIZON, LEVELS, Actual, Forecast, Order, Review
from systems.forecasting.data.own import LAYOUT
from systems.forecasting.data.world import RetailWorld, world

__all__ = [
    "EDGES",
    "EXAMPLES",
    "HORIZON",
    "LAYOUT",
    "LEVELS",
    "Actual",
    "Forecast",
    "Order",
    "RetailWorld",
    "Review",
    "world",
]
