import gzip
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

for package in ("bm25s", "onnxruntime", "tokenizers", "safetensors", "onnx", "Stemmer"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[search]'")

from common.encoder.weights import Floats  # noqa: E402
from common.errors import BadBundle, BadData, NotFound  # noqa: E402
from systems.search import benchmark as room  # noqa: E402
from systems.search.benchmark import dataset, protocol, ranking  # noqa: E402
from systems.search.benchmark.dataset import Collection  # noqa: E402
from systems.search.benchmark.ranking import Pool  # noqa: E402

DATA_DIR = os.environ.get("MLSYS_DATA_DIR")
real_data = pytest.mark.skipif(not DATA_DIR, reason="MLSYS_DATA_DIR is not set: it names the folder with search/")

# Metrics


def test_ndcg_is_that_of_a_hand_computed_list() -> None:
    grades = {1: 2, 2: 1, 3: 1}
    # ranks 1 and 3 hold grades 1 and 2; the ideal order is 2, 1, 1
    expected = (1 + 2 / math.log2(4)) / (2 + 1 / math.log2(3) + 1 / math.log2(4))
    assert protocol.ndcg([2, 9, 1, 8], grades) == pytest.approx(expected)
    assert protocol.ndcg([1, 3, 2], grades) == 1
    assert protocol.ndcg([7, 8], grades) == 0


def test_what_comes_after_the_tenth_place_does_not_count() -> None:
    assert protocol.ndcg([*range(10), 99], {99: 1}) == 0
    assert protocol.ndcg([*range(9), 99], {99: 1}) == pytest.approx(1 / math.log2(11))
    many = dict.fromkeys(range(20), 1)
    assert protocol.ndcg(list(range(10)), many) == 1


def test_recall_is_the_share_of_relevant_documents_among_the_first_hundred() -> None:
    assert protocol.recall([*range(99), 500, 501], {500: 1, 501: 1, 3: 1, 700: 1}) == 0.5


def test_of_equal_scores_the_greater_id_comes_first_as_in_trec_eval() -> None:
    scores, ids = np.array([1.0, 2.0, 1.0, 1.0]), ["5", "1", "40", "7"]
    assert protocol.ranked(scores, ids, 4).tolist() == [1, 3, 0, 2]
    assert protocol.ranked(scores, ids, 2).tolist() == [1, 3]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 40))
def test_the_first_k_are_those_of_sorting_everything(scores: list[int], k: int) -> None:
    ids = [str(i * 7 % 31) for i in range(len(scores))]
    slow = sorted(range(len(scores)), key=lambda i: (scores[i], ids[i]), reverse=True)[:k]
    assert protocol.ranked(np.array(scores, float), ids, k).tolist() == slow


@given(st.integers(0, 10_000))
def test_the_pool_scores_a_weighting_as_the_slow_metric_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = {name: rng.normal(size=(4, 30)) for name in ("a", "b", "c")}
    judged = {q: {int(d): int(rng.integers(1, 3)) for d in rng.choice(30, 3, replace=False)} for q in range(4)}
    weights = {"a": 0.5, "c": 2.0}
    ids = [str(i) for i in range(30)]
    slow = protocol.judge(ranking.combined(parts, weights), ids, judged)[0]
    np.testing.assert_allclose(Pool.of(parts, judged).ndcg(np.array([0.5, 0, 2.0])), slow)


def test_the_interval_holds_the_mean_and_narrows_with_more_queries() -> None:
    rng = np.random.default_rng(0)
    few, many = (protocol.interval(rng.uniform(size=n)) for n in (20, 2_000))
    assert few["low"] < few["mean"] < few["high"]
    assert many["high"] - many["low"] < 0.2 * (few["high"] - few["low"])
    assert protocol.interval(np.ones(5)) == {"mean": 1, "low": 1, "high": 1}


# Folds


@given(st.lists(st.sets(st.integers(0, 40), min_size=1, max_size=3), min_size=10, max_size=40))
def test_no_relevant_document_is_in_two_folds_and_each_query_is_held_out_once(relevant: list[set[int]]) -> None:
    judged = {10 * q: dict.fromkeys(documents, 1) for q, documents in enumerate(relevant)}
    held: list[int] = []
    for learn, hold in protocol.folds(judged):
        assert sorted([*learn, *hold]) == list(range(len(relevant)))
        known = set().union(*(relevant[q] for q in learn)) if len(learn) else set()
        assert all(not known & relevant[q] for q in hold)
        held += hold.tolist()
    assert sorted(held) == list(range(len(relevant)))


# Weights


def test_the_signal_that_tells_gets_the_weight() -> None:
    rng = np.random.default_rng(0)
    judged = {q: {int(rng.integers(50)): 1} for q in range(40)}
    truth = np.array([[d in grades for d in range(50)] for grades in judged.values()], float)
    parts = {"noise": rng.normal(size=(40, 50)), "sign": truth * 3 + rng.normal(size=(40, 50)), "more": -truth}
    found = ranking.ascend(Pool.of(parts, judged), list(parts), ["sign", "more"], {"noise": 1.0})
    assert found["sign"] >= 3
    assert "more" not in found


def test_passages_are_a_few_sentences_each_and_know_their_document() -> None:
    data = Collection(["a", "b"], ["Title", "Empty"], ["One. Two? Three. Four. Five", ""], [], [])
    texts, owner = ranking.passages(data)
    assert texts == ["One. Two. Three", "Four. Five", "Empty"]
    assert owner.tolist() == [0, 0, 1]


# The whole, on a small set


class Bag:
    """An encoder that knows eight letters."""

    def encode(self, texts: Sequence[str]) -> Floats:
        counts = np.array([[1 + text.count(letter) for letter in "aeioulrt"] for text in texts], np.float32)
        return np.asarray(counts / np.linalg.norm(counts, axis=1, keepdims=True), np.float32)


def small(folder: Path, documents: int = 130) -> Path:
    """Claims that repeat some of an abstract's words; the first third of the queries is the test part."""
    rng = np.random.default_rng(0)
    words = [f"{a}{b}{c}" for a in "bcdfglmnprst" for b in "aeiou" for c in ("lot", "rin", "tak")]
    texts = [" ".join(rng.choice(words, 40)) for _ in range(documents)]
    with gzip.open(folder / "corpus.jsonl.gz", "wt", encoding="utf-8") as file:
        for i, text in enumerate(texts):
            file.write(json.dumps({"_id": f"d{i}", "title": text[:15], "text": text}) + "\n")
    about = rng.integers(0, documents, 60)
    asked = [" ".join(rng.choice(texts[d].split(), 4)) for d in about]
    queries = (json.dumps({"_id": f"q{i}", "text": text}) for i, text in enumerate(asked))
    (folder / "queries.jsonl").write_text("\n".join(queries) + "\n")
    (folder / "qrels").mkdir()
    for part, these in (("test", range(20)), ("train", range(20, 60))):
        lines = [f"q{i}\td{about[i]}\t1" for i in these]
        (folder / "qrels" / f"{part}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return folder


def test_a_small_set_runs_from_end_to_end(tmp_path: Path) -> None:
    folder = small(tmp_path)
    found = room.run(folder, dataset.read(folder), Bag())
    assert found.metrics.keys() == {"test/ndcg_at_10", "test/recall_at_100"}
    assert found.metrics["test/ndcg_at_10"] > 0.8
    assert found.rows == 130
    assert {"bm25", "dense", "fused", found.details["system"]} == found.details["test"].keys()
    assert found.details["test"][found.details["system"]]["ndcg_at_10"] == found.metrics["test/ndcg_at_10"]
    low, high = (found.details["intervals"]["ndcg_at_10"][edge] for edge in ("low", "high"))
    assert low <= found.metrics["test/ndcg_at_10"] <= high
    assert found.details["choices"].keys() == room.SYSTEMS.keys()
    assert (found.details["training_queries"], found.details["test_queries"]) == (40, 20)
    json.dumps(found.details)


def test_test_judgements_change_no_choice(tmp_path: Path) -> None:
    folder = small(tmp_path)
    before = room.run(folder, dataset.read(folder), Bag())
    lines = (folder / "qrels" / "test.tsv").read_text().splitlines()
    (folder / "qrels" / "test.tsv").write_text("\n".join([lines[0], "q3\td5\t1"]) + "\n")
    after = room.run(folder, dataset.read(folder), Bag())
    for name in ("choices", "system"):
        assert before.details[name] == after.details[name]
    assert before.metrics != after.metrics


def test_a_judgement_of_an_unknown_document_is_refused(tmp_path: Path) -> None:
    folder = small(tmp_path)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td999\t1\n")
    with pytest.raises(BadData, match="test.tsv: must name known queries and documents, got q1 and d999"):
        dataset.judgements(folder, "test", dataset.read(folder))


def test_a_judgement_of_grade_0_is_none(tmp_path: Path) -> None:
    folder = small(tmp_path)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td9\t0\nq2\td9\t1\n")
    assert dataset.judgements(folder, "test", dataset.read(folder)) == {2: {9: 1}}


# The files


def test_without_the_data_it_says_where_to_get_it() -> None:
    with pytest.raises(NotFound, match=r"SciFact.*MLSYS_DATA_DIR.*allenai/scifact"):
        room.benchmark(None)


@real_data
@pytest.mark.parametrize("name", ["corpus.jsonl.gz", "queries.jsonl", "qrels/train.tsv", "qrels/test.tsv"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    source = dataset.find(Path(str(DATA_DIR)))
    for each in dataset.DATASET.files:
        (tmp_path / "search" / each).parent.mkdir(parents=True, exist_ok=True)
        content = (source / each).read_bytes()
        (tmp_path / "search" / each).write_bytes(content[:-1] if each == name else content)
    with pytest.raises(BadBundle, match=f"{name}: SHA-256 must be"):
        room.benchmark(tmp_path)


@real_data
def test_the_files_hold_what_beir_counts() -> None:
    folder = dataset.find(Path(str(DATA_DIR)))
    data = dataset.read(folder)
    assert (len(data.documents), len(data.queries)) == (5_183, 1_109)
    train, test = (dataset.judgements(folder, part, data) for part in ("train", "test"))
    assert (len(train), sum(map(len, train.values()))) == (809, 919)
    assert (len(test), sum(map(len, test.values()))) == (300, 339)
    assert not train.keys() & test.keys()
