"""Sentences as vectors: a small BERT on ONNX Runtime, in eight bits, on the processor.

On disk it is a graph, `encoder.onnx`, and a tokenizer, `tokenizer.json`: nothing that runs code. `making.py` makes one
from published weights, which `weights.py` verifies; `graph.py` holds the model itself.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from common.encoder.weights import Floats

GRAPH, TOKENIZER = "encoder.onnx", "tokenizer.json"
MOST_TOKENS: Final = 256  # of a text; what comes after them is not read, as the published model has it
BATCH_TOKENS: Final = 512  # of a batch; more would not stay in a core's cache


class Encoder:
    """Thread-safe; `threads` is how many cores one call may use."""

    def __init__(self, graph: bytes, tokenizer: str, threads: int = 1) -> None:
        self._graph, self._tokenizer = graph, Tokenizer.from_str(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MOST_TOKENS)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a waiting thread leaves its core
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.dimensions = int(self._session.get_outputs()[0].shape[1])

    @classmethod
    def load(cls, folder: Path, threads: int = 1) -> Self:
        """Of a verified bundle."""
        return cls((folder / GRAPH).read_bytes(), (folder / TOKENIZER).read_text("utf-8"), threads)

    def save(self, folder: Path) -> None:
        (folder / GRAPH).write_bytes(self._graph)
        (folder / TOKENIZER).write_text(self._tokenizer.to_str(), "utf-8")

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """WordPiece, with the marks of beginning and end; at most MOST_TOKENS of each text."""
        whole = [text.encode("utf-8", "replace").decode() for text in texts]  # half a surrogate pair is no text
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(whole)]

    def encode(self, texts: Sequence[str]) -> Floats:
        """Vectors of length 1, (n, dimensions); their dot product is the similarity of two texts.

        Texts of the same number of tokens go through the graph together, so none is padded, and a text's vector does
        not depend on the others.
        """
        tokens = self.tokens(texts)
        vectors = np.empty((len(texts), self.dimensions), np.float32)
        lengths = np.array([len(t) for t in tokens], np.int64)
        for length in np.unique(lengths):
            same = np.flatnonzero(lengths == length)
            size = max(1, BATCH_TOKENS // int(length))
            for at in range(0, len(same), size):
                batch = same[at : at + size]
                vectors[batch] = self._session.run(None, {"tokens": np.array([tokens[i] for i in batch])})[0]
        return vectors
