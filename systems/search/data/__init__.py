"""A shop and those who search it, simulated so that nothing needs downloading; the world knows what is relevant."""

from systems.search.data.events import EXAMPLES, Facet, Feedback, Hit, Product, Query, Results, normalise, redacted
from systems.search.data.own import LAYOUT
from systems.search.data.world import ShopWorld, world

__all__ = [
    "EXAMPLES",
    "LAYOUT",
    "Facet",
    "Feedback",
    "Hit",
    "Product",
    "Query",
    "Results",
    "ShopWorld",
    "normalise",
    "redacted",
    "world",
]
