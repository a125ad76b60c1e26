"""What the service hears and says: queries, their results, products as they are and change, clicks and purchases."""

import re
import unicodedata
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from common.schema import Event, Record, Whole
from common.system import Answer
from systems.search.config import Device

LONGEST = 200  # characters of a query
MOST_NORMALISED = 20 * LONGEST  # one character may become 18
PRINTABLE: Final = r"^[^\x00-\x1f\x7f-\x9f]*$"  # no control characters
SAID: Final = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"  # and not blank
MAX_PRICE = 1e6  # EUR
PRIVATE: Final = re.compile(r"\S+@\S+\.\S+|\d(?:[ -]?\d){14,18}")


def normalise(text: str) -> str:
    """What is the same query: one form of each character, no capitals, single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def without_private(text: str) -> str:
    """Without what people paste by mistake: mail addresses, the numbers of cards, in whatever form of characters."""
    same = normalise(text)
    return PRIVATE.sub("#", same)[:LONGEST] if PRIVATE.search(same) else text


class Query(Event):
    """A shopper asks. Filters only take away: what is left has that value, or a price within both ends."""

    shopper_id: str = Field(min_length=1, max_length=100, pattern=PRINTABLE)
    text: str = Field(min_length=1, max_length=LONGEST, pattern=SAID)
    device: Device = "desktop"
    category: str | None = Field(default=None, min_length=1, max_length=100, pattern=PRINTABLE)
    brand: str | None = Field(default=None, min_length=1, max_length=100, pattern=PRINTABLE)
    colour: str | None = Field(default=None, min_length=1, max_length=100, pattern=PRINTABLE)
    price_min: float | None = Field(default=None, ge=0, le=MAX_PRICE)  # EUR
    price_max: float | None = Field(default=None, ge=0, le=MAX_PRICE)  # EUR
    page: Whole = Field(default=1, ge=1, le=50)
    page_size: Whole = Field(default=20, ge=1, le=50)

    @model_validator(mode="after")
    def _ends_in_order(self) -> Self:
        if self.price_min is not None and self.price_max is not None and self.price_min > self.price_max:
            raise ValueError("price_max: must be price_min or more")
        return self


def redacted(query: Query) -> Query:
    text = without_private(query.text)
    return query if text == query.text else query.model_copy(update={"text": text})


class Product(Event):
    """A product as it is from now on: listed for the first time, or changed."""

    product_id: str = Field(min_length=1, max_length=100, pattern=PRINTABLE)
    title: str = Field(min_length=1, max_length=300, pattern=SAID)
    description: str = Field(default="", max_length=5_000)
    category: str = Field(min_length=1, max_length=100, pattern=PRINTABLE)
    brand: str = Field(min_length=1, max_length=100, pattern=PRINTABLE)
    colour: str = Field(min_length=1, max_length=100, pattern=PRINTABLE)
    price: float = Field(gt=0, le=MAX_PRICE)  # EUR
    attributes: tuple[str, ...] = ()  # "name: value"
    available: bool = True  # if not, nobody is to find it


class Feedback(Event):
    """A click on a product among the results of a query, or a purchase after it; carries that query's time.

    It is heard of seconds to hours later. Its keys are those that views group by: the product, the pair of query and
    product, the category.
    """

    query_id: str = Field(min_length=1, max_length=200)
    shopper_id: str = Field(min_length=1, max_length=100, pattern=PRINTABLE)
    query_text: Annotated[
        str, Field(min_length=1, max_length=MOST_NORMALISED), AfterValidator(without_private)
    ]  # normalised
    product_id: str = Field(min_length=1, max_length=100, pattern=PRINTABLE)
    category: str = Field(min_length=1, max_length=100, pattern=PRINTABLE)  # of the product
    purchase: bool = False
    rank: Whole = Field(ge=1)  # among all results, from the first page on
    weight: float = Field(gt=0, default=1.0)  # as the answer gave it to this hit


class Hit(Record):
    """A product found, as it was then."""

    product_id: str
    title: str = ""
    category: str = ""
    brand: str = ""
    colour: str = ""
    price: float | None = None  # EUR
    score: float
    why: tuple[str, ...] = ()  # words that matched
    weight: float = Field(gt=0, default=1.0)  # of a click here: 1 / estimated propensity of being examined


class Facet(Record):
    """How many of all results have a value."""

    field: Literal["category", "brand", "colour", "price"]
    value: str
    count: int = Field(ge=0)


class Results(Answer):
    """One page of what was found, the best first."""

    hits: tuple[Hit, ...]
    total: int = Field(ge=0)  # on all pages
    corrected: str | None = None  # the text that was searched for instead
    rescue: str | None = None  # what was given up because nothing was found: words, or filters
    facets: tuple[Facet, ...] = ()
    swapped: int = Field(ge=0, default=0)  # rank of a hit that changed places with the first; 0: none did


EXAMPLES = (
    Query(
        event_id="query-1", event_timestamp=1_767_225_600_000_000, shopper_id="shopper-1", text="gray leather couch",
        category="furniture", price_max=900.0,
    ),
    Product(
        event_id="product-1@1", event_timestamp=1_767_225_600_000_000, product_id="product-1",
        title="Norvik grey leather sofa 180 cm",
        description="A comfortable couch for the living room, stain resistant.", category="furniture", brand="Norvik",
        colour="grey", price=649.0, attributes=("material: leather", "size: 180 cm"),
    ),
    Feedback(
        event_id="query-1.click.product-1", event_timestamp=1_767_225_600_000_000, query_id="query-1",
        shopper_id="shopper-1", query_text="gray leather couch", product_id="product-1", category="furniture",
        rank=3,
    ),
)  # fmt: skip
