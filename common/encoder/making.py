"""Encoders made from published weights; the only part that needs the package onnx."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnxruntime as ort

from common.encoder import Encoder, graph
from common.encoder.weights import Checkpoint, Floats
from common.errors import BadData

SAMPLED: Final = 64  # texts; more change nothing that can be seen
PASSED: Final = 2_048  # tokens of each dense layer's input that are kept


def float32(checkpoint: Checkpoint, threads: int = 1) -> Encoder:
    """As published."""
    model = graph.build(checkpoint.weights, checkpoint.shape)
    return Encoder(model.SerializeToString(), checkpoint.tokenizer, threads)


def int8(checkpoint: Checkpoint, texts: Sequence[str], threads: int = 1) -> Encoder:
    """In eight bits, for texts like these, short and long; raises BadData when there are none."""
    if not texts:
        raise BadData("encoder: texts: must be some like those to be encoded, got none")
    picked = [texts[i] for i in np.linspace(0, len(texts) - 1, min(SAMPLED, len(texts))).astype(int)]
    model = graph.build(checkpoint.weights, checkpoint.shape, _samples(checkpoint, picked))
    return Encoder(model.SerializeToString(), checkpoint.tokenizer, threads)


def _samples(checkpoint: Checkpoint, texts: Sequence[str]) -> dict[str, Floats]:
    """The input of each dense layer for these texts, (n_tokens, n_in)."""
    tokens = float32(checkpoint).tokens(texts)
    model = graph.build(checkpoint.weights, checkpoint.shape)
    names = graph.inputs(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[list[Floats]] = [[] for _ in names]
    for ids in tokens:
        for kept, value in zip(found, session.run(names, {graph.TOKENS: np.array([ids])}), strict=True):
            kept.append(value[0])
    samples = (np.concatenate(kept) for kept in found)
    return {
        name: x[:: max(1, len(x) // PASSED)]
        for name, x in zip(names, samples, strict=True)
    }  # fmt: skip
