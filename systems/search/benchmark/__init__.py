"""SciFact by BEIR's protocol: 5,183 abstracts ranked for 300 claims, nDCG@10 and recall@100, beside published numbers.

The full system: BM25 of several fields, vectors of whole documents, titles and passages by the encoder as published,
with 22 million parameters, and feedback, summed by weights. Nothing of the encoder is learnt here. Weights are learnt
on the 809 training queries; each choice between systems is made by cross-validation on them. The test judgements are
read once, after everything else is done.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from common.encoder import making, weights
from common.system import BenchmarkResult
from systems.search.benchmark import dataset, protocol, ranking
from systems.search.benchmark.dataset import Collection, Judgements
from systems.search.benchmark.protocol import Values
from systems.search.benchmark.ranking import Encodes, Pool, Signals, Weights

THREADS: Final = 2
METRICS: Final = ("ndcg_at_10", "recall_at_100")
PUBLISHED: Final = {
    "test": {
        "BM25 (Anserini, flat)": {"ndcg_at_10": 0.6789, "recall_at_100": 0.9253},
        "BM25 (BEIR, Thakur et al. 2021)": {"ndcg_at_10": 0.665},
        "BGE-base-en-v1.5 (109 million parameters; Anserini)": {"ndcg_at_10": 0.741, "recall_at_100": 0.967},
    }
}
RIVAL: Final = 0.741  # nDCG@10 of BGE-base-en-v1.5
SYSTEMS: Final[Mapping[str, tuple[str, ...]]] = {  # name -> its signals
    "bm25": ("bm25",),
    "dense": ("dense",),
    "fused": ("bm25", "dense"),
    "fused with feedback": ("bm25", "dense", "feedback"),
    "with passages": ("bm25", "dense", "feedback", "dense passage"),
    "all": ("bm25", "dense", "feedback", "dense passage", "dense title", "bm25 title", "bm25 text", "bm25 pairs"),
}


def benchmark(data_dir: Path | None) -> BenchmarkResult:
    """On the data set under `data_dir`; raises NotFound or BadBundle when it is not there, MissingExtra without the
    encoder's weights."""
    folder = dataset.find(data_dir)
    data = dataset.read(folder)
    checkpoint = weights.read(weights.published(), weights.SHA256)
    sample = [*ranking.whole(data)[:64], *data.queries[:64]]
    return run(folder, data, making.int8(checkpoint, sample, THREADS))


def run(folder: Path, data: Collection, encoder: Encodes) -> BenchmarkResult:
    """On the files in the folder, whatever they hold."""
    lexical, vectors = ranking.lexical(data, data.queries), ranking.encode(encoder, data, data.queries)
    parts = ranking.signals(lexical, vectors)

    train = dataset.judgements(folder, "train", data)
    chosen = choose(_of(parts, train), train)
    final = max(chosen, key=lambda name: chosen[name]["validation"]["mean"])

    test = dataset.judgements(folder, "test", data)
    known = _of(parts, test)
    judged = {
        name: protocol.judge(ranking.combined(known, found["weights"]), data.documents, test)
        for name, found in chosen.items()
        if name in {"bm25", "dense", "fused", final}
    }
    best = judged[final][0]
    return BenchmarkResult(
        dataset=dataset.DATASET.name,
        metrics={f"test/{metric}": float(found.mean()) for metric, found in zip(METRICS, judged[final], strict=True)},
        published=PUBLISHED,
        rows=len(data.documents),
        details={
            "test": {
                name: {metric: float(found.mean()) for metric, found in zip(METRICS, values, strict=True)}
                for name, values in judged.items()
            },
            "system": final,
            "intervals": {
                "ndcg_at_10": protocol.interval(best),
                "ndcg_at_10_minus_bm25": protocol.interval(best - judged["bm25"][0]),
                # its scores of single queries are not published, so this is not paired
                "ndcg_at_10_minus_bge_base": protocol.interval(best - RIVAL),
            },
            "choices": chosen,
            "parameters": {
                "k1": ranking.K1, "b": ranking.B, "title_repeats": ranking.TITLE_REPEATS,
                "passage_sentences": ranking.WINDOW, "fed_back": ranking.FED_BACK,
                "vectors_to_bm25_before_feedback": ranking.FIRST,
            },
            "training_queries": len(train),
            "test_queries": len(test),
            "encoder": {"sha256": weights.SHA256, "precision": "int8"},
        },
    )  # fmt: skip


def _of(parts: Signals, judged: Judgements) -> Signals:
    rows = list(judged)
    return {name: scores[rows] for name, scores in parts.items()}


def choose(parts: Signals, train: Judgements) -> dict[str, Any]:
    """Of each system its weights, and how well queries are answered by weights learnt without them."""
    pool, names = Pool.of(parts, train), list(parts)
    splits = list(protocol.folds(train))
    found = {}
    for name, used in SYSTEMS.items():
        held_out = np.zeros(len(train))
        for learn, hold in splits:
            held_out[hold] = _score(pool.some(hold), names, _fit(pool.some(learn), names, used))
        found[name] = {"weights": _fit(pool, names, used), "validation": protocol.interval(held_out)}
    return found


def _fit(pool: Pool, names: Sequence[str], used: Sequence[str]) -> Weights:
    start = dict.fromkeys(used[:2], 1.0)
    return ranking.ascend(pool, list(names), used[1:], start) if len(used) > 1 else start


def _score(pool: Pool, names: Sequence[str], learnt: Weights) -> Values:
    return pool.ndcg(np.array([learnt.get(name, 0.0) for name in names]))
