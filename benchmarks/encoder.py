"""The text encoder in eight bits against the same weights in PyTorch: speed, and whether neighbours stay neighbours.

Run: python -m benchmarks.encoder [--json] [--documents N]; N limits the corpus and with it the time, but all documents
are needed for an overlap worth quoting. Texts are SciFact's, under MLSYS_DATA_DIR. Needs the extras search and
encoder-reference.

Speed is of encoding alone, tokens included, on the same documents and threads; the three take turns, and each one's
median counts, so that a machine that is busy for a while slows them alike.
"""

import json
import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from common.encoder import graph, making, weights
from common.encoder.weights import Floats
from common.settings import Settings
from systems.search.benchmark import dataset, ranking
from systems.search.model import dense
from systems.search.model.dense import DenseIndex

TIMED = 128  # documents
TURNS = 5
NEIGHBOURS = 10
CALIBRATION = (64, 64)  # documents, queries; none of the queries' judgements is seen


def speed(texts: list[str], sample: list[str], threads: int) -> dict[str, float]:
    """Documents per second."""
    torch.set_num_threads(threads)
    checkpoint = weights.read(weights.published(), weights.SHA256)
    reference = SentenceTransformer(str(weights.published()), device="cpu")
    plain, small = making.float32(checkpoint, threads), making.int8(checkpoint, sample, threads)
    ways: dict[str, Callable[[], object]] = {
        "pytorch": lambda: reference.encode(texts, batch_size=32, normalize_embeddings=True, show_progress_bar=False),
        "onnx_float32": lambda: plain.encode(texts),
        "onnx_int8": lambda: small.encode(texts),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS + 1):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            if turn:  # the first one warms up
                took[name].append(time.perf_counter() - start)
    rates = {name: len(texts) / median(found) for name, found in took.items()}
    return {
        "threads": threads,
        "documents": len(texts),
        **{f"{name}_per_second": rate for name, rate in rates.items()},
        "float32_times_pytorch": rates["onnx_float32"] / rates["pytorch"],
        "int8_times_pytorch": rates["onnx_int8"] / rates["pytorch"],
        "target_times_pytorch": 3.0,
    }


def overlap(queries: tuple[Floats, Floats], documents: tuple[Floats, Floats]) -> float:
    """Mean share of the ten nearest documents by the first encoder that the second one has among its ten."""
    first, second = (
        np.argpartition(-q @ d.T, NEIGHBOURS, 1)[:, :NEIGHBOURS] for q, d in zip(queries, documents, strict=True)
    )
    return float(np.mean([len(np.intersect1d(a, b)) / NEIGHBOURS for a, b in zip(first, second, strict=True)]))


def fidelity(documents: list[str], queries: list[str], sample: list[str]) -> dict[str, float]:
    """Of eight bits to 32, on the whole corpus; with it, the recall of the approximate index over these vectors."""
    checkpoint = weights.read(weights.published(), weights.SHA256)
    plain, small = making.float32(checkpoint, 2), making.int8(checkpoint, sample, 2)
    q, d = ((plain.encode(texts), small.encode(texts)) for texts in (queries, documents))
    likeness = (d[0] * d[1]).sum(1)
    return {
        "documents": len(documents),
        "queries": len(queries),
        "top_10_overlap": overlap(q, d),
        "top_10_overlap_queries_float32": overlap((q[0], q[0]), d),
        "target_top_10_overlap": 0.98,
        "cosine_mean": float(likeness.mean()),
        "cosine_min": float(likeness.min()),
        "index_recall_at_10": dense.recall(DenseIndex.build(d[1]), q[1]),
        "target_index_recall_at_10": 0.98,
    }


def steps(texts: list[str], sample: list[str]) -> dict[str, float]:
    """Mean cosine to 32 bits when one of the means against rounding errors is left out."""
    checkpoint = weights.read(weights.published(), weights.SHA256)
    exact = making.float32(checkpoint).encode(texts)

    def cosine() -> float:
        return float((making.int8(checkpoint, sample).encode(texts) * exact).sum(1).mean())

    found, kept = {"all": cosine()}, (graph.SMOOTHING, graph.OUTLIERS, graph.quantised)
    graph.SMOOTHING = (0.0,)  # type: ignore[misc]
    found["without_smoothing"] = cosine()
    graph.SMOOTHING, graph.OUTLIERS = kept[0], 0  # type: ignore[misc]
    found["without_outliers"] = cosine()
    graph.OUTLIERS = kept[1]  # type: ignore[misc]

    def uncorrected(sample: graph.Sample, w: Floats, b: Floats) -> graph.Dense:
        layer = kept[2](sample, w, b)
        rounded = np.ones(len(w), bool)
        rounded[layer.outliers] = False
        return layer._replace(bias=b + layer.middle[rounded] @ w[rounded])

    graph.quantised = uncorrected
    found["without_correction_of_the_mean"] = cosine()
    graph.quantised = kept[2]
    return found


def main() -> None:
    data = dataset.read(dataset.find(Settings().data_dir))
    limit = int(sys.argv[sys.argv.index("--documents") + 1]) if "--documents" in sys.argv else len(data.documents)
    documents = ranking.whole(data)
    sample = [*documents[: CALIBRATION[0]], *data.queries[: CALIBRATION[1]]]
    timed = documents[-min(TIMED, limit) :]
    found = {
        "one_thread": speed(timed, sample, 1),
        "two_threads": speed(timed, sample, 2),
        "fidelity": fidelity(documents[-limit:], data.queries, sample),
        "steps": steps(timed, sample),
    }
    if "--json" in sys.argv:
        print(json.dumps(found, indent=2))
        return
    for name, figures in found.items():
        print(name)
        for key, value in figures.items():
            print(f"  {key:32} {value:14,.4f}")


if __name__ == "__main__":
    main()
