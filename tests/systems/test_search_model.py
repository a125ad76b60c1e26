from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

for package in ("bm25s", "faiss", "Stemmer"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[search]'")

from common.errors import BadData, BadSetting  # noqa: E402
from systems.search.model import dense, fusion  # noqa: E402
from systems.search.model.dense import DenseIndex  # noqa: E402
from systems.search.model.lexical import LONGEST, STOP_WORDS, Analyser, LexicalIndex  # noqa: E402

K1, B = 1.5, 0.75
ANALYSER = Analyser()

# Terms


def test_terms_are_stems_without_accents_and_stop_words() -> None:
    assert ANALYSER.terms("The Crèmes of 3 RUNNING lamps, isn't it?") == ["crème".replace("è", "e"), "3", "run", "lamp",
                                                                        "isn", "t"]  # fmt: skip
    assert ANALYSER.words("The LAMPS") == ["the", "lamps"]


def test_text_in_other_scripts_with_marks_and_control_characters_gives_words() -> None:
    assert ANALYSER.words("e\u0301te\u0301\0\x1b lampe\u202e \ufb01ne") == ["ete", "lampe", "fine"]
    assert ANALYSER.words("مصباح أحمر") == ["مصباح", "احمر"]
    assert ANALYSER.terms("") == ANALYSER.terms("!?_ \0") == []


def test_an_endless_word_is_cut() -> None:
    assert [len(w) for w in ANALYSER.words("x" * 10_000)] == [LONGEST]


@given(st.text())
def test_any_text_gives_terms_that_are_no_stop_words(text: str) -> None:
    assert all(word == word.lower() for word in ANALYSER.words(text) if word.isascii())
    assert not set(ANALYSER.words(text)) & STOP_WORDS or len(ANALYSER.terms(text)) < len(ANALYSER.words(text))


# The lexical index

WORDS = st.lists(st.sampled_from(["red", "blue", "lamp", "sofa", "oak"]), max_size=6)
DOCUMENT = st.fixed_dictionaries({"title": WORDS, "text": WORDS})


def bm25(documents: list[dict[str, list[str]]], repeats: dict[str, int], query: list[str]) -> list[float]:
    """Robertson and Zaragoza 2009 with Lucene's weight of a term, one document and one term after the other."""
    texts = [[t for name, n in repeats.items() for t in d[name] * n] for d in documents]
    usual = sum(map(len, texts)) / len(texts)
    found = []
    for text in texts:
        score = 0.0
        for term in query:
            tf, df = text.count(term), sum(term in t for t in texts)
            if tf:
                idf = np.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
                score += idf * tf / (tf + K1 * (1 - B + B * len(text) / usual))
        found.append(float(score))
    return found


@given(st.lists(DOCUMENT, min_size=1, max_size=6), WORDS, st.integers(0, 3))
def test_scores_are_those_of_the_formula(documents: list[dict[str, list[str]]], query: list[str], title: int) -> None:
    repeats = {"title": title, "text": 1}
    index = LexicalIndex.build(documents, repeats, K1, B)
    expected = bm25(documents, repeats, query) if any(d["title"] * title + d["text"] for d in documents) else 0
    np.testing.assert_allclose(index.scores(query), np.broadcast_to(expected, len(documents)), atol=1e-5)


def test_terms_that_no_document_has_change_nothing() -> None:
    index = LexicalIndex.build([{"text": ["red", "lamp"]}, {"text": ["blue"]}], {"text": 1}, K1, B)
    assert index.scores(["lamp", "zebra", ""]).tolist() == index.scores(["lamp"]).tolist()
    assert index.scores([]).tolist() == index.scores(["zebra"]).tolist() == [0, 0]
    assert index.knows("lamp")
    assert not index.knows("zebra")
    assert not index.knows("")


@pytest.mark.parametrize("documents", [[{"text": ["red", "lamp"]}, {"text": ["blue"]}], [{"text": []}], []])
def test_a_saved_lexical_index_is_loaded_without_pickle(tmp_path: Path, documents: list[dict[str, list[str]]]) -> None:
    index = LexicalIndex.build(documents, {"text": 1}, K1, B)
    index.save(tmp_path / "index")
    again = LexicalIndex.load(tmp_path / "index")
    assert again.scores(["red", "zebra"]).tolist() == index.scores(["red", "zebra"]).tolist()
    assert again.documents == len(documents)
    assert {p.suffix for p in (tmp_path / "index").iterdir()} <= {".npy", ".json"}


@pytest.mark.parametrize(("k1", "b", "repeats"), [(0, 0.5, 1), (1.5, 1.1, 1), (1.5, -0.1, 1), (1.5, 0.5, -1)])
def test_a_parameter_out_of_its_range_is_refused(k1: float, b: float, repeats: int) -> None:
    with pytest.raises(BadSetting, match="k1, b, repeats: must be"):
        LexicalIndex.build([{"text": ["red"]}], {"text": repeats}, k1, b)


# The dense index


def vectors(n: int, seed: int = 0, dimensions: int = 32) -> dense.Floats:
    """In clusters, as those of texts are; of length 1."""
    rng = np.random.default_rng(seed)
    near = np.random.default_rng(99).normal(size=(20, dimensions))[rng.integers(0, 20, n)]
    found = near + 0.7 * rng.normal(size=(n, dimensions))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def test_nearly_all_true_neighbours_are_found() -> None:
    assert dense.recall(DenseIndex.build(vectors(3_000)), vectors(200, seed=1)) >= 0.98


def test_the_nearest_comes_first_and_a_vector_is_its_own() -> None:
    all_vectors = vectors(200)
    found = DenseIndex.build(all_vectors).search(all_vectors[:20], 5)
    assert found.documents[:, 0].tolist() == list(range(20))
    assert (np.diff(found.similarity, axis=1) <= 0).all()
    np.testing.assert_allclose(found.similarity[:, 0], 1, atol=1e-5)


def test_places_beyond_the_documents_are_marked() -> None:
    index = DenseIndex.build(vectors(3))
    assert index.search(vectors(1, seed=1), 5).documents[0, 3:].tolist() == [-1, -1]
    assert DenseIndex.build(vectors(0)).search(vectors(1), 2).documents.tolist() == [[-1, -1]]


def test_added_vectors_are_found_at_once() -> None:
    index, new = DenseIndex.build(vectors(100)), vectors(1, seed=7)
    index.add(new)
    assert index.search(new, 1).documents.tolist() == [[100]]
    np.testing.assert_array_equal(index.vectors()[-1], new[0])
    assert len(index) == 101


def test_a_saved_dense_index_says_the_same(tmp_path: Path) -> None:
    index = DenseIndex.build(vectors(500))
    index.save(tmp_path)
    again = DenseIndex.load(tmp_path)
    query = vectors(10, seed=1)
    assert again.search(query, 10).documents.tolist() == index.search(query, 10).documents.tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["dense.faiss"]


@pytest.mark.parametrize("wrong", [np.zeros((2, 31)), np.zeros(32), np.full((1, 32), np.nan)])
def test_vectors_of_another_shape_or_of_no_numbers_are_refused(wrong: dense.Floats) -> None:
    with pytest.raises(BadData, match=r"vectors: must be finite, of shape \(n, 32\)"):
        DenseIndex.build(vectors(3)).add(wrong)


# Fusion


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=8), st.floats(0.1, 10), st.floats(-5, 5))
def test_the_scale_of_a_retriever_does_not_matter(scores: list[int], scale: float, offset: float) -> None:
    part = np.array(scores, float)
    np.testing.assert_allclose(fusion.standardised(part * scale + offset), fusion.standardised(part), atol=1e-6)


def test_equal_scores_say_nothing() -> None:
    for value in (7.0, 0.1, 1e-9, 0.0):  # the mean of equal values may differ from them by rounding
        assert fusion.standardised(np.full((2, 3), value)).tolist() == [[0, 0, 0]] * 2


def test_weights_decide_between_retrievers() -> None:
    first, second = np.array([3.0, 2.0, 1.0]), np.array([10.0, 20.0, 30.0])
    assert fusion.weighted([first, second], [1, 0.5]).argmax() == 0
    assert fusion.weighted([first, second], [0.5, 1]).argmax() == 2
    with pytest.raises(BadSetting, match="weights: must be one for each of 2"):
        fusion.weighted([first, second], [1])


def test_reciprocal_ranks_are_as_published() -> None:
    found = fusion.reciprocal_rank([np.array([0.9, 0.5, 0.1]), np.array([1.0, 3.0, 2.0])])
    np.testing.assert_allclose(found, [1 / 61 + 1 / 63, 1 / 62 + 1 / 61, 1 / 63 + 1 / 62])
