"""bm25s and tantivy on SciFact: the same documents, the training queries, quality and speed; see decision 0018.

Run: python -m benchmarks.lexical [--json]. Needs MLSYS_DATA_DIR, the extra search, and tantivy, else unused here.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
import tantivy
from numpy.typing import NDArray

from common.settings import Settings
from systems.search.benchmark import dataset, protocol, ranking
from systems.search.benchmark.dataset import Collection, Judgements
from systems.search.model.lexical import Analyser, LexicalIndex

BOOSTS = (0.3, 0.5, 1.0, 2.0)  # of a title in tantivy
FOUND = 100

Scores = Callable[[str], NDArray[np.floating]]


def judged(scores: Scores, data: Collection, train: Judgements) -> dict[str, float]:
    took, found = [], []
    for query in train:
        start = time.perf_counter()
        found.append(scores(data.queries[query]))
        took.append((time.perf_counter() - start) * 1e6)
    ndcg, recall = protocol.judge(np.stack(found), data.documents, train)
    return {
        "query_us_p50": float(np.median(took)),
        "train_ndcg_at_10": float(ndcg.mean()),
        "train_recall_at_100": float(recall.mean()),
    }


def by_bm25s(data: Collection, train: Judgements) -> dict[str, float]:
    """All documents' scores."""
    analyser = Analyser()
    start = time.perf_counter()
    documents = [
        {"title": analyser.terms(title), "text": analyser.terms(text)}
        for title, text in zip(data.titles, data.texts, strict=True)
    ]
    repeats = {"title": ranking.TITLE_REPEATS, "text": 1}
    index = LexicalIndex.build(documents, repeats, ranking.K1, ranking.B)
    built = time.perf_counter() - start
    return {"build_seconds": built, **judged(lambda q: index.scores(analyser.terms(q)), data, train)}


def by_tantivy(data: Collection, train: Judgements) -> dict[str, float]:
    """The best hundred, by the boost of the title that is best for the training queries."""
    fields = tantivy.SchemaBuilder()
    for name in ("title", "text"):
        fields.add_text_field(name, tokenizer_name="en_stem")
    fields.add_integer_field("place", stored=True, fast=True)
    with tempfile.TemporaryDirectory() as folder:
        index = tantivy.Index(fields.build(), path=folder)

        def add(documents: Sequence[tuple[int, str, str]]) -> float:
            start = time.perf_counter()
            writer = index.writer(50_000_000, 1)
            for place, title, text in documents:
                writer.add_document(tantivy.Document(place=place, title=title, text=text))
            writer.commit()
            writer.wait_merging_threads()
            index.reload()
            return time.perf_counter() - start

        built = add(list(zip(range(len(data.titles)), data.titles, data.texts, strict=True)))
        searcher, analyser = index.searcher(), Analyser()

        def scores(query: str, boost: float) -> NDArray[np.floating]:
            asked = index.parse_query(
                " ".join(analyser.words(query)), ["title", "text"], field_boosts={"title": boost, "text": 1.0}
            )
            out = np.zeros(len(data.documents))
            for score, address in searcher.search(asked, FOUND).hits:
                out[searcher.doc(address)["place"][0]] = score
            return out

        tried = (judged(lambda q, b=boost: scores(q, b), data, train) | {"title_boost": boost} for boost in BOOSTS)
        best = max(tried, key=lambda found: found["train_ndcg_at_10"])
        return {"build_seconds": built, "add_one_seconds": add([(0, "one", "more")]), **best}


def main() -> None:
    folder = dataset.find(Settings().data_dir)
    data = dataset.read(folder)
    train = dataset.judgements(folder, "train", data)
    found = {"bm25s": by_bm25s(data, train), "tantivy": by_tantivy(data, train)}
    if "--json" in sys.argv:
        print(json.dumps(found, indent=2))
        return
    for name, figures in found.items():
        print(name)
        for key, value in figures.items():
            print(f"  {key:24} {value:14,.4f}")


if __name__ == "__main__":
    main()
