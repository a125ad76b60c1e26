"""The benchmark of the search system runs to its end, in a tiny shop, and says what was asked."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest

pytest.importorskip("faiss", reason="needs the extra `search`")

from benchmarks import interleaving, search
from systems.search.config import FULL, SMALL
from systems.search.model import Library

SHOP = replace(
    FULL, products=120, categories=1, shoppers=20, new_products=0.0, queries_per_day=30.0, history_days=12, days=13,
    test_days=2, validation_days=2, trees=3,
)  # fmt: skip
CLICKS = replace(
    SMALL, products=100, categories=1, shoppers=30, queries_per_day=30.0, history_days=12, days=13, test_days=3,
    validation_days=2, trees=3,
)  # fmt: skip
PHASES = search.Phases(warm=0.3, steady=0.5, step=0.2, swap=2.0, told=1)


@pytest.fixture(scope="module", autouse=True)
def one_encoder() -> Iterator[None]:
    """To make one takes longer than all the rest."""
    made = Library(SMALL).encoder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Library, "encoder", made)
        yield


def test_a_served_shop_is_measured_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "WORKERS", (1,))
    monkeypatch.setattr(search, "TEXTS", 20)
    monkeypatch.setattr(search, "RATES", (10, 20))
    monkeypatch.setattr(search, "RATE", 10)
    found = search.speed(SHOP, asking=30.0, phases=PHASES)
    assert found["asked"].keys() <= {*found, *found["workers_1"]}
    assert 0 < found["products_live"] <= found["products"] == SHOP.products
    assert 0 < found["load_bundle_seconds"] < found["workers_1"]["ready_seconds"]
    assert found["recall_at_10"] > 0.98
    assert found["workers_1"]["cpu_ms_per_query"] > 0
    assert 0 < found["found_seconds"] <= found["found_seconds_max"]
    assert found["rates"].keys() == {"10", "20"}
    assert found["offered_while_promoted"] > 0


def test_all_rankers_learn_from_the_same_clicks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interleaving, "TESTS", 10)
    found = search.clicks(CLICKS, seeds=(0,))
    run = found["seeds"]["0"]
    assert run["ndcg_at_10"].keys() == {
        "bm25", "dense", "fused", "lambdamart_naive", "lambdamart_ips", "lambdamart_position", "likelihood_naive",
        "likelihood_debiased",
    }  # fmt: skip
    assert all(0 < value <= run["ceiling"] for value in run["ndcg_at_10"].values())
    assert len(set(run["ndcg_at_10"].values())) == 8
    gain = run["ndcg_at_10"]["likelihood_debiased"] - run["ndcg_at_10"]["likelihood_naive"]
    assert run["debiased_minus_naive"] == found["debiased_minus_naive"]  # of the only seed
    assert run["debiased_minus_naive"]["mean"] == pytest.approx(gain)
    assert run["interleaving"]["won"] + run["interleaving"]["lost"] <= 1


def test_a_part_that_was_not_run_stays_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "search.json"
    search.put(file, {"speed": {"p50_ms": 1.0}, "clicks": {"queries": 1}})
    search.put(file, {"clicks": {"queries": 2}})
    assert json.loads(file.read_text()) == {"speed": {"p50_ms": 1.0}, "clicks": {"queries": 2}}


def test_queries_are_sent_in_turn_and_never_end(tmp_path: Path) -> None:
    shop = search.Shop(tmp_path, "", ("a", "b"), tmp_path, cycle([{"text": "a"}, {"text": "b"}, {"text": "c"}]))
    sent = [[query["text"] for query in json.loads(shop.payloads(2).read_text())] for _ in range(2)]
    assert sent == [["a", "b"], ["c", "a"]]


def test_what_is_asked_stands_beside_the_figure(capsys: pytest.CaptureFixture[str]) -> None:
    search.show({"speed": {"asked": {"p50_ms": "<= 15"}, "workers_1": {"p50_ms": 12.0}}}, {})
    assert "12.0000  asked: <= 15" in capsys.readouterr().out
