"""From a ranking to a page of results; what is answered when no ranking can be had; the ways in of a shop."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from common.features.view import Array
from common.schema import Record
from common.system import Intake, Lookup, Losses, Page, Route, Text
from systems.search.config import Config
from systems.search.data import Product, Query, Results, ShopWorld
from systems.search.model import Found, Searcher, swap

PAGE: Final = Path(__file__).parent / "page.html"


def decide(config: Config, query: Query, found: Found, luck: float) -> Results:
    """The page that was asked for. On a share of the first pages the first hit changes places with another: only so is
    it seen what a place is worth, whatever stands there. A click counts for 1 / the chance that its place is looked at.
    """
    hits = list(found.hits)
    swapped = swap(config, luck, len(hits)) if query.page == 1 else 0
    if swapped:
        hits[0], hits[swapped - 1] = hits[swapped - 1], hits[0]
    weighted = (hit.model_copy(update={"weight": w}) for hit, w in zip(hits, found.weights, strict=True))
    return Results(
        hits=tuple(weighted), total=found.note.total, corrected=found.note.corrected, rescue=found.note.rescue,
        facets=found.note.facets, swapped=swapped,
    )  # fmt: skip


def rule(query: Query, luck: float) -> Results:
    """An empty page, which says that it is not the answer. It needs nothing and cannot fail."""
    return Results(hits=(), total=0, rescue="search is away")


def losses(queries: Sequence[Query], answers: Sequence[Results], p: Array) -> Losses:
    """Queries without a click, given P(click) or whether there was one, (n,)."""
    return Losses(1 - p, np.zeros(len(p)))


def regret(world: ShopWorld, queries: Sequence[Query], answers: Sequence[Results]) -> Losses:
    """What was missing of nDCG@10, and what is missing of the best ranking that can be had from the queries alone."""
    shown = [[hit.product_id for hit in answer.hits] for answer in answers]
    return Losses(1 - world.ndcg(queries, shown), 1 - world.ceiling(queries))


def hides(answer: Results) -> bool:
    """No answer: of what it does not show nothing is heard, row by row."""
    return False


class Suggestions(Record):
    """What a text could become."""

    suggestions: tuple[str, ...]


def suggest(searcher: Searcher, asked: Text) -> Suggestions:
    return Suggestions(suggestions=tuple(searcher.suggest(asked.text)))


ROUTES: tuple[Route, ...] = (
    Intake(name="products", summary="Products that are new or have changed, searchable within a second", event=Product),
    Lookup(
        name="suggest", summary="How a text could go on", find=suggest, answer=Suggestions, example=Text(text="leath")
    ),
    Page(name="search", summary="A page to try it", html=lambda: PAGE.read_text("utf-8")),
)
