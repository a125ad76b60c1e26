"""From a query to rows: what was said, candidates by words and by vectors, their first order, what is known of each.

Online and offline ask the same functions; they differ in who finds near vectors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from common.clock import DAY
from common.encoder.weights import Floats
from systems.search.config import Config
from systems.search.data.events import Facet, Query, normalise
from systems.search.model.dense import DenseIndex, best
from systems.search.model.documents import Array, Documents, Flags, Places, Shelf, band_names
from systems.search.model.fusion import weighted
from systems.search.model.lexical import STOP_WORDS, WORD, Analyser, LexicalIndex, plain
from systems.search.model.spelling import Speller

MOST_FACETS: Final = 10  # values of a field
FILTERS: Final = ("colour", "brand", "price", "category")  # the one that is given up first is first
NUMBERS: Final = (
    "lexical", "lexical_title", "lexical_all", "dense", "fused", "brand_said", "colour_said", "attribute_said",
    "other_brand_said", "other_colour_said", "price", "price_rank", "age_days", "title_words", "query_words",
    "unknown_words", "is_corrected", "filters", "best_lexical", "best_dense", "results", "is_phone", "shown",
    "rank",
)  # fmt: skip


@dataclass(frozen=True)
class Note:
    """What retrieval found of a query beside its rows."""

    corrected: str | None  # the text that was searched for instead
    total: int  # products found
    facets: tuple[Facet, ...]
    rescue: str | None  # what was done because nothing was found: "spelling", "dense", "filters: colour, brand"
    deeper: tuple[str, ...]  # ids of the products of this page that come after the candidates
    terms: tuple[str, ...]  # of the query


NO_NOTE: Final = Note(None, 0, (), None, (), ())


@dataclass(frozen=True)
class Stock:
    """All that a search reads, up to one event of the log; never changed, so whoever holds it sees one moment."""

    documents: Documents
    lexical: LexicalIndex
    dense: DenseIndex
    shelf: Shelf
    speller: Speller


class Said(NamedTuple):
    """A text as it is searched for."""

    text: str
    terms: tuple[str, ...]  # all different
    corrected: str | None


class Found(NamedTuple):
    """Candidates in the first order, and all that matches."""

    places: Places  # (n,)
    lexical: Array  # (n,) BM25
    dense: Array  # (n,) cosine
    fused: Array  # (n,)
    rest: Places  # what matches beside them, in its order


NOTHING: Final = Found(np.zeros(0, np.int64), np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, np.int64))


class Part(NamedTuple):
    """The rows of one query."""

    places: Places
    numbers: Mapping[str, Array | float]
    note: Note


# The vector of a text, and the places of the products nearest to it among those allowed; whether there is a filter
Near = Callable[[str, Flags, bool], tuple[Floats, Places]]


def understood(stock: Stock, analyser: Analyser, text: str, bold: bool = False) -> Said:
    """text: normalised."""
    fixes = {}
    for word in analyser.words(text):
        if word in STOP_WORDS or stock.lexical.knows(analyser.stem(word)):
            continue
        if (right := stock.speller.correct(word, bold)) is not None:
            fixes[word] = right
    corrected = WORD.sub(lambda match: fixes.get(match[0], match[0]), plain(text)) if fixes else None
    searched = corrected or text
    return Said(searched, tuple(dict.fromkeys(analyser.terms(searched))), corrected)


def allowed(stock: Stock, query: Query, ignored: Sequence[str] = ()) -> Flags:
    """Of each place, whether it can be found and passes the filters that are not ignored; (n,)."""
    documents, shelf = stock.documents, stock.shelf
    keep = shelf.live
    if query.category is not None and "category" not in ignored:
        codes, names = documents.categories
        keep = keep & (codes == (names.index(query.category) if query.category in names else -1))
    if query.brand is not None and "brand" not in ignored:
        codes, brands = documents.brands
        keep = keep & (codes == brands.number.get(query.brand, -1))
    if query.colour is not None and "colour" not in ignored:
        codes, colours = documents.colours
        keep = keep & (codes == colours.number.get(query.colour, -1))
    if "price" not in ignored:
        if query.price_min is not None:
            keep = keep & (shelf.price >= query.price_min)
        if query.price_max is not None:
            keep = keep & (shelf.price <= query.price_max)
    return keep


def filters(query: Query) -> list[str]:
    """Those that are set, in the order in which they are given up."""
    is_set = {name: getattr(query, name) is not None for name in ("colour", "brand", "category")}
    is_set["price"] = query.price_min is not None or query.price_max is not None
    return [name for name in FILTERS if is_set[name]]


def found(config: Config, stock: Stock, said: Said, keep: Flags, near: Near, is_filtered: bool, floor: float) -> Found:
    """floor: the least cosine of what no word matches."""
    if not said.terms:
        return NOTHING
    scores = stock.lexical.scores(said.terms)
    matching = np.flatnonzero((scores > 0) & keep)
    by_words = matching[best(scores[matching], config.candidates)]
    vector, nearest = near(said.text, keep, is_filtered)
    joined = np.union1d(by_words, nearest)
    cosine = stock.dense.similarity(joined, vector)
    lexical = scores[joined]
    near_enough = (cosine >= floor) | (lexical > 0)
    joined, cosine, lexical = joined[near_enough], cosine[near_enough], lexical[near_enough]
    if not len(joined):
        return NOTHING
    fused = weighted([lexical, cosine], [config.lexical_weight, 1 - config.lexical_weight])
    order = np.argsort(-fused, kind="stable")
    first, after = order[: config.candidates], order[config.candidates :]
    others = matching[~np.isin(matching, joined, kind="table")]
    rest = np.concatenate([joined[after], others[np.argsort(-scores[others], kind="stable")]])
    return Found(joined[first], lexical[first].astype(np.float64), cosine[first].astype(np.float64), fused[first], rest)


def search(
    config: Config, stock: Stock, analyser: Analyser, query: Query, said: Said, near: Near, facets: bool
) -> Part:
    """One query. Where nothing is found, a bolder spelling is tried, then vectors alone, then without filters."""
    typed, rescue, is_set = normalise(query.text), None, filters(query)
    keep, floor, live = allowed(stock, query), config.similarity_floor, int(stock.shelf.live.sum())
    hits = found(config, stock, said, keep, near, bool(is_set), floor)
    if not len(hits.places) and said.terms:
        bolder = understood(stock, analyser, typed, bold=True)
        if bolder != said:
            hits = found(config, stock, bolder, keep, near, bool(is_set), floor)
            if len(hits.places):
                said, rescue = bolder, "spelling"
        if not len(hits.places):
            rescue, hits = "dense", found(config, stock, said, keep, near, bool(is_set), -1.0)
        for i in range(1, len(is_set) + 1):
            if len(hits.places):
                break
            keep, rescue = allowed(stock, query, is_set[:i]), f"filters: {', '.join(is_set[:i])}"
            hits = found(config, stock, said, keep, near, i < len(is_set), floor)
        rescue = rescue if len(hits.places) else None
    numbers = _numbers(stock, analyser, query, typed, said, hits)
    everything = np.concatenate([hits.places, hits.rest])
    note = Note(
        corrected=said.corrected,
        total=len(everything),
        facets=_facets(stock, everything) if facets else (),
        rescue=rescue,
        deeper=_deeper(stock, query, hits),
        terms=said.terms,
    )
    return Part(hits.places, {**numbers, "filters": len(is_set), "results": len(everything) / max(live, 1)}, note)


def _numbers(
    stock: Stock, analyser: Analyser, query: Query, typed: str, said: Said, hits: Found
) -> dict[str, Array | float]:
    documents, shelf, places = stock.documents, stock.shelf, hits.places
    in_title, in_all = documents.shares(places, said.terms)
    terms = frozenset(said.terms)
    brands, colours = documents.brands, documents.colours
    brand_said, other_brand = _named(brands[0][places], brands[1].said(terms))
    colour_said, other_colour = _named(colours[0][places], colours[1].said(terms))
    words = analyser.words(typed)
    telling = [word for word in words if word not in STOP_WORDS]
    unknown = sum(not stock.lexical.knows(analyser.stem(word)) for word in telling)
    return {
        "lexical": hits.lexical,
        "lexical_title": in_title,
        "lexical_all": in_all,
        "dense": hits.dense,
        "fused": hits.fused,
        "brand_said": brand_said,
        "colour_said": colour_said,
        "attribute_said": documents.named_share(places, documents.attributes.said(terms)),
        "other_brand_said": other_brand,
        "other_colour_said": other_colour,
        "price": shelf.price[places],
        "price_rank": shelf.rank[places],
        "age_days": np.maximum(query.event_timestamp - shelf.listed_at[places], 0) / DAY,
        "title_words": documents.title_words[places],
        "query_words": len(words),
        "unknown_words": unknown / len(telling) if telling else 0.0,
        "is_corrected": said.corrected is not None,
        "best_lexical": hits.lexical.max(initial=0.0),
        "best_dense": hits.dense.max(initial=-1.0),
        "is_phone": query.device == "phone",
        "shown": 0.0,
        "rank": 0.0,
    }


def _named(codes: Places, said: Sequence[int]) -> tuple[Array, Array]:
    """Of each code, whether it is said, and whether another one is."""
    own = (codes[:, None] == np.array(said, np.int64)).any(axis=1)
    return own.astype(np.float64), (len(said) - own > 0).astype(np.float64)


def _deeper(stock: Stock, query: Query, hits: Found) -> tuple[str, ...]:
    start, end = (max(at * query.page_size - len(hits.places), 0) for at in (query.page - 1, query.page))
    return tuple(stock.documents.ids[place] for place in hits.rest[start:end].tolist())


def _facets(stock: Stock, places: Places) -> tuple[Facet, ...]:
    """The most frequent values of all that was found; bands of prices from the lowest on."""
    documents, out = stock.documents, []
    fields: tuple[tuple[Any, Places, list[str]], ...] = (
        ("category", *documents.categories),
        ("brand", documents.brands[0], documents.brands[1].names),
        ("colour", documents.colours[0], documents.colours[1].names),
    )
    for field, codes, names in fields:
        counts = np.bincount(codes[places], minlength=len(names))
        top = best(counts, MOST_FACETS)
        out += [Facet(field=field, value=names[i], count=int(counts[i])) for i in top.tolist() if counts[i]]
    bands = np.bincount(stock.shelf.bands(places), minlength=len(band_names()))
    named = zip(band_names(), bands.tolist(), strict=True)
    return (*out, *(Facet(field="price", value=name, count=count) for name, count in named if count))


def table(stock: Stock, queries: Sequence[Query], parts: Sequence[Part]) -> pa.Table:
    """The rows of all queries, one after the other."""
    sizes = [len(part.places) for part in parts]
    places = np.concatenate([np.zeros(0, np.int64), *(part.places for part in parts)])
    owner = pa.array(np.repeat(np.arange(len(parts)), sizes))
    of_query = {
        "event_id": pa.array([query.event_id for query in queries], pa.string()),
        "event_timestamp": pa.array([query.event_timestamp for query in queries], pa.int64()),
        "text": pa.array([query.text for query in queries], pa.string()),
        "query_text": pa.array([normalise(query.text) for query in queries], pa.string()),
    }
    columns = {name: values.take(owner) for name, values in of_query.items()}
    columns |= {name: stock.documents.keys[name].take(pa.array(places)) for name in ("product_id", "category")}
    values, at = np.empty((len(NUMBERS), len(places))), 0
    for part, size in zip(parts, sizes, strict=True):
        for row, name in zip(values, NUMBERS, strict=True):
            row[at : at + size] = part.numbers[name]
        at += size
    return pa.table(columns | dict(zip(NUMBERS, map(pa.array, values), strict=True)))
