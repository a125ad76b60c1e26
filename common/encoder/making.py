"""Encoders made from published weights; the only part that needs the package onnx."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnxruntime as ort

from common.encoder import Encoder, graph
from common.encoder.graph import Sample
from common.encoder.weights import Checkpoint
from common.errors import BadData

SAMPLED: Final = 128  # texts; what is larger than all that they held is clipped
KEPT: Final = 2_048  # of their tokens, on which layers are compared


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


def _samples(checkpoint: Checkpoint, texts: Sequence[str]) -> dict[str, Sample]:
    """Of each dense layer for these texts."""
    tokens = float32(checkpoint).tokens(texts)
    every = 1 + sum(map(len, tokens)) // KEPT
    model = graph.build(checkpoint.weights, checkpoint.shape)
    names = graph.inputs(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[list[Sample]] = [[] for _ in names]
    for ids in tokens:
        for samples, (x,) in zip(found, session.run(names, {graph.TOKENS: np.array([ids])}), strict=True):
            samples.append(Sample(x.min(0), x.max(0), x[len(samples) % every :: every]))
    return {name: _together(samples) for name, samples in zip(names, found, strict=True)}


def _together(samples: Sequence[Sample]) -> Sample:
    low, high, x = zip(*samples, strict=True)
    return Sample(np.min(low, 0), np.max(high, 0), np.concatenate(x))
