"""The world of a shop: tells what is listed and asked, reacts to the results that it is shown, and knows the truth."""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, cast

import numpy as np
from scipy.special import ndtri

from common.clock import DAY, HOUR, MINUTE, SECOND
from common.errors import BadRecord, BadSetting, NotFound
from common.system import Arrival, Rows
from systems.search.config import CATEGORIES, DEVICES, DRIFTS, Config, Device
from systems.search.data.catalogue import NEVER, Array, Catalogue, Flags, Ints, catalogue
from systems.search.data.events import Feedback, Product, Query, Results, normalise
from systems.search.data.intents import HIGH, LOW, MIDDLE, Intents, intents
from systems.search.data.truth import AT, Truth, best_dcg
from systems.search.data.words import BRAND, BUDGET, COLOUR, FEATURE, MATERIAL, SIZE, forms

_ID: Final = "query-"
U_CLICK, U_LOOK, U_PURCHASE, U_DECIDE = range(4)  # streams of what shoppers do
CHANGES: Final = ("listed", "sale", "gone", "back")


def world(config: Config, seed: int, drift: str | None = None, days: int | None = None) -> "ShopWorld":
    """A world in which new words and things come up on a day, if drift names one: "vocabulary@30"."""
    config = config if days is None else replace(config, days=days)
    drift_at = NEVER if drift is None else config.start + _drift_day(config, drift) * DAY
    shop = catalogue(config, seed, drift_at)
    return ShopWorld(shop, intents(config, seed, shop.language, drift_at), seed)


def _drift_day(config: Config, drift: str) -> int:
    kind, _, day = drift.partition("@")
    if kind not in DRIFTS or not day.isascii() or not day.isdigit() or int(day) >= config.days:
        kinds = " or ".join(f"{k}@DAY" for k in DRIFTS)
        raise BadSetting(f"drift: must be {kinds} with a day from 0 to {config.days - 1}, got {drift!r}")
    return int(day)


class ShopWorld:
    """Products as they are listed and change, queries as drawn, clicks on results that were shown and purchases.

    What is asked does not depend on what is answered. Shoppers look at rank r with a chance that falls with r, whatever
    is there, and click on what they look at by its relevance to what they want and by how it looks. Feedback is never
    heard of before the `until` of the `arrivals` that came before the answer.
    """

    def __init__(self, shop: Catalogue, asked: Intents, seed: int) -> None:
        self.config = asked.config
        self._shop, self._asked, self._seed = shop, asked, seed
        self._truth = Truth(shop, asked)
        self._now = 0  # us, the last `until`
        self._next = 0  # query
        self._answered = np.zeros(len(asked), bool)
        self._pending: list[tuple[int, str, Feedback]] = []
        self._products = [_product_id(i) for i in range(len(shop))]
        self._row_of = {name: i for i, name in enumerate(self._products)}
        when = np.stack([shop.listed_at, shop.sale_at, shop.gone_at, shop.back_at], axis=1)
        when = np.where(when < shop.listed_at[:, None], NEVER, when)
        rows, changes = np.nonzero(when < asked.config.start + asked.config.days * DAY)
        order = np.lexsort((rows, when[rows, changes]))
        self._changes = rows[order], changes[order], when[rows, changes][order]
        self._changed = 0  # the next of them

    def arrivals(self, until: int) -> list[Arrival]:
        """Products, queries and feedback in order of time, from the last `until` on, up to this one (us, exclusive)."""
        due = []
        while self._pending and self._pending[0][0] < until:
            at, _, feedback = heapq.heappop(self._pending)
            due.append(Arrival(at, feedback))
        at_query = max(self._next, int(np.searchsorted(self._asked.time, until)))
        at_change = max(self._changed, int(np.searchsorted(self._changes[2], until)))
        queries = [Arrival(q.event_timestamp, q) for q in self._queries(self._next, at_query)]
        products = [Arrival(p.event_timestamp, p) for p in self._product_events(self._changed, at_change)]
        self._next, self._changed, self._now = at_query, at_change, max(self._now, until)
        return list(heapq.merge(products, queries, due, key=lambda arrival: arrival.at))

    def react(self, answered: Sequence[tuple[Query, Results]]) -> None:
        """Clicks come seconds later, purchases minutes to hours after them. The first answer to a query counts."""
        config, asked = self.config, self._asked
        pairs: list[tuple[int, int, int, int, float]] = []  # query, product, place on the page, page, weight
        texts: dict[int, Query] = {}
        for q, (query, results) in zip(self._rows([q for q, _ in answered]).tolist(), answered, strict=True):
            if self._answered[q]:
                continue
            self._answered[q], texts[q] = True, query
            seen = dict.fromkeys(hit.product_id for hit in results.hits)
            if len(seen) < len(results.hits):
                raise BadRecord(f"hits: must be different products, got {len(results.hits) - len(seen)} twice")
            of_page = zip(self._product_rows(list(seen)).tolist(), results.hits, strict=True)
            pairs += [(q, p, i, query.page, hit.weight) for i, (p, hit) in enumerate(of_page)]
        if not pairs:
            return
        q, p, place, page = (np.array([pair[i] for pair in pairs], np.int64) for i in range(4))
        size = np.array([texts[i].page_size for i in q.tolist()])
        position = (page - 1) * size + place + 1
        chance = self._examined(q, position, page) * self._attraction(q, p)
        clicked = np.flatnonzero(self._draw(U_CLICK, q, p) < chance)
        q, p, position = q[clicked], p[clicked], position[clicked]
        looked = position * config.look_seconds * SECOND * (0.5 + self._draw(U_LOOK, q, p))
        click_at = asked.time[q] + 1 + looked.astype(np.int64)
        relevance = self._truth.relevance(q, p)
        wanted = np.minimum(np.array(config.purchase)[relevance] * self._shop.quality[p], 1.0)
        buys = self._draw(U_PURCHASE, q, p) < wanted
        thought = np.exp(config.decision_spread * ndtri(self._draw(U_DECIDE, q, p))) * config.decision_minutes * MINUTE
        latest = asked.time[q] + int(config.latest_hours * HOUR)
        click_at = np.minimum(click_at, latest - 1)
        buy_at = np.minimum(click_at + 1 + thought.astype(np.int64), latest)
        columns = (q, p, position, click_at, buy_at, buys, clicked)
        for i, product, rank, at, later, bought, pair in zip(*(c.tolist() for c in columns), strict=True):
            self._expect(at, texts[i], product, rank, pairs[pair][4], purchase=False)
            if bought:
                self._expect(later, texts[i], product, rank, pairs[pair][4], purchase=True)

    def ceiling(self, requests: Sequence[Query]) -> Array:
        """The highest nDCG@10 that a ranking can be expected to have, from the query alone, (n,); see `Truth`."""
        return np.array([self._truth.ceiling(q) for q in self._rows(requests).tolist()])

    def best(self, requests: Sequence[Query], size: int = AT) -> list[list[str]]:
        """The rankings that reach it."""
        found = []
        for q in self._rows(requests).tolist():
            rows, expected = self._truth.expected(q)
            order = np.argsort(-expected, kind="stable")[:size]
            found.append([self._products[p] for p in rows[order].tolist()])
        return found

    def relevance(self, requests: Sequence[Query], products: Sequence[Sequence[str]]) -> list[Ints]:
        """0 to 3, of each of the products to what the shopper wants, said or not; one array per query."""
        rows = [self._product_rows(ids) for ids in products]
        q = self._rows(requests)
        sizes = np.array([len(ids) for ids in rows], np.int64)
        joined = np.concatenate([np.zeros(0, np.int64), *rows])
        return np.split(self._truth.relevance(np.repeat(q, sizes), joined), np.cumsum(sizes)[:-1])

    def relevant(self, requests: Sequence[Query]) -> list[dict[str, int]]:
        """All products that pass each query's filters and have a relevance above 0, with it."""
        found = [self._truth.relevant(q) for q in self._rows(requests).tolist()]
        return [{self._products[p]: g for p, g in zip(p.tolist(), g.tolist(), strict=True)} for p, g in found]

    def truth(self, requests: Sequence[Query], rows: Rows) -> Mapping[str, Array]:
        """Of each row, (n_rows,): the relevance of its product, and of its query the highest DCG@10 that can be had and
        how many products have a relevance above 0."""
        counts = np.diff(rows.offsets)
        products = self._product_rows(rows.columns["product_id"].to_pylist())
        q = self._rows(requests)
        grades = [self._truth.relevant(i)[1] for i in q.tolist()]
        ideal = np.array([best_dcg(found[None])[0] for found in grades])
        relevant = np.array([len(found) for found in grades], np.float64)
        relevance = self._truth.relevance(np.repeat(q, counts), products)
        return {
            "relevance": relevance.astype(np.float64),
            "ideal": np.repeat(ideal, counts),
            "relevant": np.repeat(relevant, counts),
        }

    def ndcg(self, requests: Sequence[Query], rankings: Sequence[Sequence[str]]) -> Array:
        """nDCG@10 of each, (n,), against the best order of all products that pass the filters."""
        q = self._rows(requests).tolist()
        return np.array([self._truth.ndcg(i, self._product_rows(r)) for i, r in zip(q, rankings, strict=True)])

    def examination(self, requests: Sequence[Query], positions: Sequence[int]) -> Array:
        """The chance that each shopper looks at that position (1 is the first), (n,)."""
        page = [1 + (at - 1) // query.page_size for query, at in zip(requests, positions, strict=True)]
        return self._examined(self._rows(requests), np.array(positions), np.array(page))

    def attraction(self, requests: Sequence[Query], products: Sequence[str]) -> Array:
        """The chance that each shopper clicks on that product once they look at it, (n,)."""
        return self._attraction(self._rows(requests), self._product_rows(products))

    def segments(self, requests: Sequence[Query]) -> Mapping[str, Flags]:
        """Head, torso, tail; typo; new product: a fifth or more of what fits best was listed lately. (n,) each."""
        rows = self._rows(requests)
        groups = {name: flags[rows] for name, flags in self._groups.items()}
        return {**groups, "new product": np.array([self._wants_new(q) for q in rows.tolist()], bool)}

    @property
    def _groups(self) -> dict[str, Flags]:
        if not hasattr(self, "_known_groups"):
            self._known_groups = self._asked.groups()
        return self._known_groups

    def _wants_new(self, q: int) -> bool:
        rows, relevance = self._truth.relevant(q)
        fits = self._shop.listed_at[rows[relevance == relevance.max(initial=0)]]
        oldest = max(self._asked.time[q] - int(self.config.new_days * DAY), self.config.start + 1)
        return bool(len(fits) and (fits >= oldest).mean() >= 0.2)

    def _examined(self, q: Ints, position: Ints, page: Ints) -> Array:
        steepness = np.array(self.config.examined)[self._asked.shoppers.phone[self._asked.shopper[q]]]
        return np.asarray(position**-steepness * self.config.next_page ** (page - 1))

    def _attraction(self, q: Ints, p: Ints) -> Array:
        usual = np.array(self.config.click)[self._truth.relevance(q, p)]
        return np.asarray(np.minimum(usual * self._shop.looks[p], 0.95))

    def _draw(self, kind: int, q: Ints, p: Ints) -> Array:
        """A uniform number for each query and product: the same whatever else is asked or shown (Steele 2014)."""
        x = np.full(len(q), self._seed * 4 + kind, np.uint64)
        for part in (q, p):
            x = _mix(x + np.uint64(0x9E3779B97F4A7C15) * (part.astype(np.uint64) + np.uint64(1)))
        return np.asarray(((x >> np.uint64(11)) + np.uint64(1)) / 2.0**53 * (1 - 1e-12))

    def _expect(self, at: int, query: Query, product: int, position: int, weight: float, *, purchase: bool) -> None:
        feedback = Feedback(
            event_id=f"{query.event_id}.{'purchase' if purchase else 'click'}.{self._products[product]}",
            event_timestamp=query.event_timestamp,
            query_id=query.event_id,
            purchase=purchase,
            shopper_id=query.shopper_id,
            query_text=normalise(query.text),
            product_id=self._products[product],
            category=CATEGORIES[self._shop.language.category[self._shop.kind[product]]],
            rank=position,
            weight=weight,
        )
        heapq.heappush(self._pending, (max(at, self._now), feedback.event_id, feedback))

    def _rows(self, requests: Sequence[Query]) -> Ints:
        rows = np.array([_row(query.event_id) for query in requests], dtype=np.int64)
        unknown = np.flatnonzero(rows >= self._next)
        if len(unknown):
            raise NotFound(f"event_id: must be a query that has arrived, got {requests[unknown[0]].event_id!r}")
        return rows

    def _product_rows(self, ids: Sequence[str]) -> Ints:
        try:
            return np.array([self._row_of[name] for name in ids], dtype=np.int64)
        except KeyError as error:
            raise NotFound(f"product_id: must be a product of this world, got {error.args[0]!r}") from None

    def _queries(self, start: int, end: int) -> Iterator[Query]:
        asked, spoken = self._asked, self._asked.language
        for i in range(start, end):
            wish, filtered, kind = asked.wish[i], asked.filtered[i], asked.kind[i]
            low, high = spoken.bounds[kind].tolist()
            budget = int(wish[BUDGET]) if filtered[BUDGET] else -1
            category = CATEGORIES[spoken.category[kind]] if asked.by_category[i] else None
            yield Query(
                event_id=f"{_ID}{i:08d}",
                event_timestamp=int(asked.time[i]),
                shopper_id=f"shopper-{asked.shopper[i]:05d}",
                text=asked.text[i],
                device=cast(Device, DEVICES[asked.shoppers.phone[asked.shopper[i]]]),
                category=category,
                brand=spoken.values[BRAND][wish[BRAND]] if filtered[BRAND] else None,
                colour=forms(COLOUR, spoken.values[COLOUR][wish[COLOUR]])[0] if filtered[COLOUR] else None,
                price_min=low if budget == MIDDLE else high if budget == HIGH else None,
                price_max=low if budget == LOW else high if budget == MIDDLE else None,
            )

    def _product_events(self, start: int, end: int) -> Iterator[Product]:
        shop = self._shop
        rows, changes, times = (column[start:end] for column in self._changes)
        on_sale, available = shop.on_sale(rows, times), shop.available(rows, times)
        spoken = shop.language
        for i, (p, change, at) in enumerate(zip(rows.tolist(), changes.tolist(), times.tolist(), strict=True)):
            value = [forms(a, told[v])[0] for a, (told, v) in enumerate(zip(spoken.values, shop.value[p], strict=True))]
            told = (("material", MATERIAL), ("feature", FEATURE), ("size", SIZE))
            yield Product(
                event_id=f"{self._products[p]}.{CHANGES[change]}",
                event_timestamp=at,
                product_id=self._products[p],
                title=shop.titles[p],
                description=shop.descriptions[p],
                category=CATEGORIES[spoken.category[shop.kind[p]]],
                brand=value[BRAND],
                colour=value[COLOUR],
                price=round(float(shop.price[p, on_sale[i]]), 2),
                attributes=tuple(f"{name}: {value[a]}" for name, a in told),
                available=bool(available[i]),
            )


def _mix(x: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """The finaliser of SplitMix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _product_id(number: int) -> str:
    """Scattered (Knuth 1973, 6.4), for a number would tell what comes with the drift."""
    return f"product-{number * 2654435761 % 2**32:08x}"


def _row(event_id: str) -> int:
    number = event_id.removeprefix(_ID)
    return int(number) if event_id.startswith(_ID) and number.isascii() and number.isdigit() else NEVER
