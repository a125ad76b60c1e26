"""What is known of a product for a query an instant before it is answered.

Retrieval tells how well they match; the views tell what shoppers did before. There is no event for a product that was
merely shown, so clicks are counted by their weight, 1 / the chance that anybody looked, and set against how often was
asked.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from common.clock import DAY
from common.features.view import Aggregation, Array, FeatureView, Kind, OnDemand
from systems.search.data import Feedback, Query

PRIOR: Final = 5.0  # of queries, or clicks, that are made up so that few say little


def _over(kind: Kind, column: str | None, *days: int) -> tuple[Aggregation, ...]:
    """One aggregation per window, named after it: "count_30d"."""
    what = f"{kind}_{column}" if column else kind
    return tuple(Aggregation(name=f"{what}_{d}d", kind=kind, column=column, window=d * DAY, tile=DAY) for d in days)


VIEWS = (
    FeatureView(
        name="pair", source=Feedback, entity=("query_text", "product_id"),
        aggregations=(*_over("sum", "weight", 30, 90), *_over("sum", "purchase", 90)),
    ),
    FeatureView(
        name="product", source=Feedback, entity=("product_id",),
        aggregations=(*_over("sum", "weight", 7, 30, 90), *_over("sum", "purchase", 90)),
    ),
    FeatureView(name="asked", source=Query, entity=("text",), aggregations=_over("count", None, 90)),
)  # fmt: skip

Columns = Mapping[str, Array]


def lexical_share(c: Columns) -> Array:
    """Of the best BM25 of the query."""
    return np.asarray(c["lexical"] / np.maximum(c["best_lexical"], 1e-9))


def dense_gap(c: Columns) -> Array:
    return np.asarray(c["dense"] - c["best_dense"])


def click_rate(c: Columns) -> Array:
    """Clicks on the product per time that the text was asked."""
    return c["pair.sum_weight_90d"] / (c["asked.count_90d"] + PRIOR)


def bought_rate(c: Columns) -> Array:
    """Purchases of the product per click on it."""
    return c["product.sum_purchase_90d"] / (c["product.sum_weight_90d"] + PRIOR)


def _same(name: str) -> OnDemand:
    """A column as it is."""

    def column(c: Columns) -> Array:
        return c[name]

    return OnDemand(name=name, inputs=(name,), version=1, compute=column)


def _on_demand(compute: Callable[[Columns], Array], *inputs: str, version: int = 1) -> OnDemand:
    return OnDemand(name=compute.__name__, inputs=inputs, version=version, compute=compute)


ON_DEMAND = (
    *map(
        _same,
        (
            "lexical", "lexical_title", "lexical_all", "dense", "fused", "brand_said", "colour_said", "attribute_said",
            "other_brand_said", "other_colour_said", "price", "price_rank", "age_days", "title_words", "query_words",
            "unknown_words", "is_corrected", "filters", "best_lexical", "best_dense", "results", "is_phone",
        ),
    ),
    _on_demand(lexical_share, "lexical", "best_lexical"),
    _on_demand(dense_gap, "dense", "best_dense"),
    _on_demand(click_rate, "pair.sum_weight_90d", "asked.count_90d"),
    _on_demand(bought_rate, "product.sum_purchase_90d", "product.sum_weight_90d"),
)  # fmt: skip
