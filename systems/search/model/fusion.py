"""One order out of several retrievers' scores."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.errors import BadSetting

Floats = NDArray[np.floating]


def standardised(scores: Floats) -> NDArray[np.float64]:
    """Each query's scores with mean 0 and standard deviation 1 over its documents, (..., n) -> (..., n).

    What one retriever calls much another calls little; equal scores become 0.
    """
    wide = np.asarray(scores, np.float64)
    spread = wide.std(-1, keepdims=True)
    spread[spread <= 1e-12 * np.abs(wide).max(-1, keepdims=True)] = 0  # rounding alone
    centred = wide - wide.mean(-1, keepdims=True)
    return np.asarray(np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0))


def weighted(parts: Sequence[Floats], weights: Sequence[float]) -> NDArray[np.float64]:
    """Sum of standardised scores (Bruch, Gai and Ingber 2023: better than ranks, once weights are learnt)."""
    if len(parts) != len(weights) or not parts:
        raise BadSetting(f"weights: must be one for each of {len(parts)} > 0 retrievers, got {list(weights)}")
    return np.asarray(sum(w * standardised(part) for part, w in zip(parts, weights, strict=True)), np.float64)


def reciprocal_rank(parts: Sequence[Floats], k: int = 60) -> NDArray[np.float64]:
    """Sum of 1 / (k + rank), which needs no weights (Cormack, Clarke and Buettcher 2009); (..., n) each."""
    ranks = [np.argsort(np.argsort(-np.asarray(part), -1, kind="stable"), -1) + 1 for part in parts]
    return np.asarray(sum(1 / (k + rank) for rank in ranks), np.float64)
