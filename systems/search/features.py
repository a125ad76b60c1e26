"""What is known of a product for a query an instant before it is answered.

Retrieval tells how well they match; the views tell what shoppers did before. There is no event for a product that was
shown, so clicks are counted by their weight, 1 / the chance that anybody looked, and set against how often was asked.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from common.clock import DAY
from common.features.view import Aggregation, Array, FeatureView, Kind, OnDemand
from systems.search.data import Feedback, Query


def _over(kind: Kind, column: str | None, *days: int) -> tuple[Aggregation, ...]:
    """One aggregation per window, named after it: "count_30d"."""
    what = f"{kind}_{column}" if column else kind
    return tuple(Aggregation(name=f"{what}_{d}d", kind=kind, column=column, window=d * DAY) for d in days)


VIEWS = (
    FeatureView(
        name="pair", source=Feedback, entity=("query_text", "product_id"),
        aggregations=(*_over("sum", "weight", 30, 90), *_over("sum", "purchase", 90)),
    ),
    FeatureView(
        name="product", source=Feedback, entity=("product_id",),
        aggregations=(*_over("sum", "weight", 7, 30, 90), *_over("sum", "purchase", 90)),
    ),
    FeatureView(
        name="aisle", source=Feedback, entity=("query_text", "category"), aggregations=_over("sum", "weight", 90)
    ),
    FeatureView(name="query", source=Feedback, entity=("query_text",), aggregations=_over("sum", "weight", 90)),
    FeatureView(name="asked", source=Query, entity=("text",), aggregations=_over("count", None, 30, 90)),
)  # fmt: skip
