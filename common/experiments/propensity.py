"""How probably each position of a ranking is looked at, learned from clicks.

Under the position-based model a click is a look, which depends on the position alone, times an attraction, which
depends on the item alone (here: a query and a document). Items that were seen at several positions tell the two apart.
`item`, `position` and `clicked` are (n,) each, one row per item shown, both counted from 0. The first position is 1.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import BadSetting

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


def by_interventions(item: Ints, position: Ints, clicked: Flags, positions: int) -> Array:
    """(positions,) relative to the first; NaN where no chain of items links a position to it.

    Each two positions are compared by the items shown at both (Agarwal et al. 2019, Estimating position bias without
    intrusive interventions, WSDM), and all comparisons are fitted at once, each weighted by its clicks. Where an item
    stands must be an accident: pairs swapped at random (Joachims, Swaminathan, Schnabel 2017, WSDM), or rankers that
    answered the same query at random. A ranker that improves by what was clicked is no accident.
    """
    shown, clicks = _counts(item, position, clicked, positions)
    log_ratio, weight = np.zeros((positions, positions)), np.zeros((positions, positions))
    for k in range(positions):
        for j in range(k + 1, positions):
            both = (shown[:, k] > 0) & (shown[:, j] > 0)
            n_k, n_j, c_k, c_j = shown[both, k], shown[both, j], clicks[both, k], clicks[both, j]
            share = n_k * n_j / (n_k + n_j)  # how surely this item tells; it says nothing about its clicks
            a, b = float((share * c_k / n_k).sum()), float((share * c_j / n_j).sum())
            if a > 0 and b > 0:
                log_ratio[j, k] = np.log(b / a)
                noise = (share**2 * c_k / n_k**2).sum() / a**2 + (share**2 * c_j / n_j**2).sum() / b**2
                weight[j, k] = 1 / noise
    linked = _linked(weight + weight.T > 0)
    rows, columns = np.nonzero(weight)
    design = np.zeros((len(rows), positions))
    design[np.arange(len(rows)), rows], design[np.arange(len(rows)), columns] = 1, -1
    root = np.sqrt(weight[rows, columns])
    log, *_ = np.linalg.lstsq(design[:, 1:] * root[:, None], log_ratio[rows, columns] * root, rcond=None)
    return np.where(linked, np.exp(np.r_[0.0, log]), np.nan)


class Fitted(NamedTuple):
    """The position-based model of some clicks."""

    examination: Array  # (positions,) relative to the first
    attraction: Array  # (items,) P(click | looked at), as far as the first position is always looked at


def by_em(item: Ints, position: Ints, clicked: Flags, positions: int, rounds: int = 200, prior: float = 1.0) -> Fitted:
    """By expectation maximisation, which needs no accident but enough clicks on each item at several positions.

    As Wang et al. 2018, Position bias estimation for unbiased learning to rank in personal search, WSDM, with a table
    of attractions in place of their regression. Where most items were seen once or twice, luck passes for attraction
    and all positions seem alike: let `item` number groups of them, such as the place where the ranker would have put
    them. prior: looks at each item that are made up, clicked at the mean rate.
    """
    shown, clicks = _counts(item, position, clicked, positions)
    used = shown.sum(axis=0) > 0
    missed, mean = shown - clicks, max(float(clicks.sum() / max(shown.sum(), 1)), 1e-6)
    looks, attraction = np.full(positions, 0.5), np.full(len(shown), mean)
    for _ in range(rounds):
        no_click = 1 - np.outer(attraction, looks)
        looked = clicks + missed * looks * (1 - attraction)[:, None] / no_click
        liked = clicks + missed * attraction[:, None] * (1 - looks) / no_click
        attraction = (liked.sum(axis=1) + prior * mean) / (shown.sum(axis=1) + prior)
        attraction = np.clip(attraction, 1e-6, 1 - 1e-6)
        looks = np.clip(looked.sum(axis=0) / np.maximum(shown.sum(axis=0), 1), 1e-6, 1 - 1e-6)
    return Fitted(np.where(used, looks / looks[0], np.nan), np.minimum(attraction * looks[0], 1.0))


def weights(examination: Array, at_most: float) -> Array:
    """(positions,) what a click there counts for: 1 / propensity, clipped so that no single click decides."""
    return np.asarray(np.minimum(1 / np.maximum(np.nan_to_num(examination), 1e-12), at_most))


def _counts(item: Ints, position: Ints, clicked: Flags, positions: int) -> tuple[Array, Array]:
    """How often each item was shown and clicked at each position, (items, positions) each."""
    if len(position) and not 0 <= position.min() <= position.max() < positions:
        raise BadSetting(f"position: must be 0 to {positions - 1}, got {position.min()} to {position.max()}")
    items = int(item.max(initial=-1)) + 1
    cell = item * positions + position
    shown = np.bincount(cell, minlength=items * positions).astype(float)
    clicks = np.bincount(cell, weights=clicked, minlength=items * positions).astype(float)
    return shown.reshape(items, positions), clicks.reshape(items, positions)


def _linked(edges: Flags) -> Flags:
    """Which can be reached from the first."""
    reached = np.zeros(len(edges), bool)
    reached[0] = True
    for _ in range(len(edges)):
        reached |= (edges & reached).any(axis=1)
    return reached
