"""A shop's own data: which files, and what their rows become.

There is no file of judgements: a judged collection is a log as well. Each query's judged products are what was `shown`
for it, and each one that is relevant is a row of `feedback`. What is not judged is then not known, as it should be.
"""

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, ValidationInfo, field_validator

from common.data.folder import Layout, UserTable
from common.schema import Record, arrow_schema
from common.system import ANSWERED, Answered
from systems.search.config import Device
from systems.search.data.events import (
    LONGEST,
    MAX_PRICE,
    PRINTABLE,
    SAID,
    Feedback,
    Hit,
    Product,
    Query,
    Results,
    normalise,
)

PAGE: Final = 50  # products, the largest that a query may ask for
WORD: Final = r"^[^\x00-\x20\x7f-\x9f]*$"  # no space, no control character
UNKNOWN: Final = "unknown"  # the brand or colour of a product that has none


class Asked(Record):
    """A query; an empty filter is not set."""

    event_id: str = Field(min_length=1, max_length=80, pattern=WORD)
    event_timestamp: int = Field(ge=0, lt=2**62)  # us
    shopper_id: str = Field(min_length=1, max_length=100)
    text: str = Field(min_length=1, max_length=LONGEST, pattern=SAID)
    device: Device = "desktop"
    category: str = Field(default="", max_length=100, pattern=PRINTABLE)
    brand: str = Field(default="", max_length=100, pattern=PRINTABLE)
    colour: str = Field(default="", max_length=100, pattern=PRINTABLE)
    price_min: float = Field(default=0.0, ge=0, le=MAX_PRICE)  # EUR
    price_max: float = Field(default=MAX_PRICE, ge=0, le=MAX_PRICE)  # EUR
    page: int = Field(default=1, ge=1, le=50)
    page_size: int = Field(default=20, ge=1, le=PAGE)

    @field_validator("price_max")
    @classmethod
    def _ends_in_order(cls, price_max: float, info: ValidationInfo) -> float:
        if price_max < info.data.get("price_min", 0.0):
            raise ValueError("must be price_min or more")
        return price_max


class Listed(Record):
    """A product as it is from then on; a later row with the same product_id is a change of it."""

    product_id: str = Field(min_length=1, max_length=90, pattern=WORD)
    listed_timestamp: int = Field(ge=0, lt=2**62)  # us
    title: str = Field(min_length=1, max_length=300, pattern=SAID)
    description: str = Field(default="", max_length=5_000)
    category: str = Field(min_length=1, max_length=100, pattern=PRINTABLE)
    brand: str = Field(default=UNKNOWN, max_length=100, pattern=PRINTABLE)
    colour: str = Field(default=UNKNOWN, max_length=100, pattern=PRINTABLE)
    price: float = Field(gt=0, le=MAX_PRICE)  # EUR
    attributes: str = Field(default="", max_length=5_000)  # "material: leather; size: 180 cm"
    available: bool = True


class Shown(Record):
    """What was shown for a query, on the page that it asked for."""

    query_id: str = Field(min_length=1, max_length=80)
    products: str = Field(min_length=1, max_length=5_000)  # product_ids, the first one on top, a space between two

    @field_validator("products")
    @classmethod
    def _is_a_page(cls, products: str) -> str:
        ids = products.split(" ")
        if not all(0 < len(name) <= 90 for name in ids):
            raise ValueError("must be product_ids with one space between two")
        if len(ids) > PAGE or len(set(ids)) < len(ids):
            raise ValueError(f"must be at most {PAGE} different products")
        return products


class Heard(Record):
    """A click on a product, or a purchase after it: one row for each."""

    query_id: str = Field(min_length=1, max_length=80)
    product_id: str = Field(min_length=1, max_length=90, pattern=WORD)
    rank: int = Field(ge=1)  # among all results, from the first page on
    clicked_timestamp: int = Field(ge=0, lt=2**62)  # us, when it was heard of
    purchase: bool = False


def queries(asked: pa.Table) -> pa.Table:
    columns = {name: asked[name] for name in arrow_schema(Query).names}
    for name, unset in (("category", ""), ("brand", ""), ("colour", ""), ("price_min", 0.0), ("price_max", MAX_PRICE)):
        columns[name] = pc.if_else(pc.equal(asked[name], unset), None, asked[name])
    return pa.table(columns)


def products(listed: pa.Table) -> pa.Table:
    when = listed["listed_timestamp"].cast(pa.string())
    parts = [[part.strip() for part in said.split(";")] for said in listed["attributes"].to_pylist()]
    columns = {
        **{name: listed[name] for name in arrow_schema(Product).names if name in listed.column_names},
        "event_id": pc.binary_join_element_wise(listed["product_id"], when, "@"),
        "event_timestamp": listed["listed_timestamp"],
        "attributes": pa.array([list(filter(None, said)) for said in parts], pa.list_(pa.string())),
    }
    return pa.table(columns)


def answers(shown: pa.Table, asked: pa.Table) -> pa.Table:
    """As the platform logs an answer."""
    n = shown.num_rows
    columns = {
        "event_id": pc.binary_join_element_wise(shown["query_id"], ANSWERED, ""),
        "event_timestamp": asked["event_timestamp"],
        "request_id": shown["query_id"],
        "version": pa.repeat("own data", n),
        "role": pa.repeat("rule", n),
        "share": pa.repeat(1.0, n),
        "routed": pa.repeat("own data", n),
        "fault": pa.nulls(n, pa.string()),
        "took": pa.repeat(0, n),
        "score": pa.nulls(n, pa.float64()),
        "degraded": pa.nulls(n, pa.string()),
        "propensity": pa.repeat(1.0, n),
        "hidden": pa.repeat(False, n),
        "answer": pa.array(map(_page, shown["products"].to_pylist()), pa.string()),
        "features": _nothing(n, pa.float64()),
        "positions": _nothing(n, pa.int64()),
        "rows": pa.nulls(n, pa.string()),
    }
    return pa.table(columns)


def _page(products: str) -> str:
    """Results as JSON; how the shop scored them is not known, and not needed."""
    hits = tuple(Hit(product_id=name, score=0.0) for name in products.split(" "))
    return Results(hits=hits, total=len(hits)).model_dump_json()


def _nothing(n: int, kind: pa.DataType) -> pa.ListArray:
    """Empty lists, n of them."""
    return pa.ListArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), n + 1), pa.array([], kind))


def feedback(heard: pa.Table, asked: pa.Table, listed: pa.Table) -> pa.Table:
    """One click and one purchase per query and product."""
    kind = pc.if_else(heard["purchase"], "purchase", "click")
    columns = {
        **{name: heard[name] for name in ("query_id", "product_id", "purchase", "rank")},
        "event_id": pc.binary_join_element_wise(heard["query_id"], kind, heard["product_id"], "."),
        "event_timestamp": asked["event_timestamp"],
        "shopper_id": asked["shopper_id"],
        "category": listed["category"],
        "query_text": pa.array(map(normalise, asked["text"].to_pylist()), pa.string()),
        "weight": pa.repeat(1.0, heard.num_rows),
    }
    return pa.table(columns)


QUERY: Final = {"query_id": ("queries", "event_id")}
PRODUCT: Final = {"product_id": ("products", "product_id")}
LAYOUT: Layout = (
    UserTable(name="queries", row=Asked, event=Query, make=queries),
    UserTable(name="products", row=Listed, event=Product, make=products),
    UserTable(name="shown", row=Shown, event=Answered, make=answers, about=QUERY),
    UserTable(
        name="feedback", row=Heard, event=Feedback, make=feedback, about=QUERY | PRODUCT, heard="clicked_timestamp"
    ),
)
