"""SciFact (Wadden et al. 2020) as a retrieval task, in BEIR's form (Thakur et al. 2021): which abstracts speak for or
against a claim."""

import csv
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.data import public
from common.errors import BadData

Judgements = Mapping[int, Mapping[int, int]]  # place of a query -> place of a document -> grade > 0

DATASET: Final = public.Dataset(
    name="SciFact in BEIR's form",
    folder="search",
    files={
        "corpus.jsonl.gz": "7062adb7fd2931f40c846cf0215f4b8ba877bac94dc3d334bb9c4d714fb6fc33",
        "queries.jsonl": "4816ec1e0b1e4a3beed2b701eee2ece822626128c17564f315279af1ad25cd23",
        "qrels/train.tsv": "ac0902d9b1cb717df182aaff1306175877fdb8f55bb5c3e8597ad694fc8e539f",
        "qrels/test.tsv": "68c0ac63f1c24b9e8ce497649694f09b2d0850bab7ec2b103cc66996f5f8b3a3",
    },
    how_to_get=(
        "https://huggingface.co/datasets/allenai/scifact (CC BY-NC 2.0): abstracts with their sentences joined by a "
        "space are the corpus, claims the queries, cited documents relevant; its validation part is BEIR's test part"
    ),
)


@dataclass(frozen=True)
class Collection:
    """Documents and queries of both parts; a place is an index into these lists."""

    documents: list[str]  # ids
    titles: list[str]
    texts: list[str]
    query_ids: list[str]
    queries: list[str]


def find(data_dir: Path | None) -> Path:
    """The data set's folder; raises NotFound and BadBundle as `public.find` does."""
    return public.find(DATASET, data_dir)


def read(folder: Path) -> Collection:
    """Without the judgements."""
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        documents = [json.loads(line) for line in file]
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text("utf-8").splitlines()]
    return Collection(
        [d["_id"] for d in documents],
        [d["title"] for d in documents],
        [d["text"] for d in documents],
        [q["_id"] for q in queries],
        [q["text"] for q in queries],
    )


def judgements(folder: Path, part: str, data: Collection) -> Judgements:
    """Of the part "train" or "test"; raises BadData for one that names an unknown query or document."""
    queries, documents = ({name: i for i, name in enumerate(ids)} for ids in (data.query_ids, data.documents))
    found: dict[int, dict[int, int]] = {}
    with (folder / "qrels" / f"{part}.tsv").open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file, delimiter="\t"):
            query, document, grade = line["query-id"], line["corpus-id"], int(line["score"])
            if query not in queries or document not in documents:
                raise BadData(f"{part}.tsv: must name known queries and documents, got {query} and {document}")
            if grade > 0:
                found.setdefault(queries[query], {})[documents[document]] = grade
    return found
