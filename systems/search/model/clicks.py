"""Where shoppers look. A click says as much about the place of a product as about the product."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.features.view import Array, numbers
from common.system import Examples
from systems.search.config import Config
from systems.search.data.events import Query

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

RANKS: Final = 20  # of the usual page: places that are compared with the first one
SWAPPED: Final = r'"swapped":\s*(?P<rank>\d+)'  # in the JSON of an answer, where to read all of it takes long
LOG_RANK: Final = np.log(np.arange(1, RANKS + 1))
_SHARE: Final = np.cumsum(1 / np.arange(2, RANKS + 1))  # how often each place changes with the first, up to a factor
ROUNDS: Final = 50  # of Newton's method; a handful is enough


@dataclass(frozen=True)
class Examination:
    """Rank r is looked at with chance r ** -steepness, relative to the first (Joachims et al. 2017)."""

    desktop: float
    phone: float
    most_weight: float  # of a click, as a multiple of one at the first rank: no single one is to decide

    def chance(self, rank: Array, is_phone: Array) -> Array:
        """rank: 1 is the first of all pages; (n,) each -> (n,)."""
        return np.asarray(np.maximum(rank, 1) ** -np.where(is_phone > 0, self.phone, self.desktop))

    def weights(self, rank: Array, is_phone: Array) -> Array:
        """What a click there counts for, (n,): 1 / chance, clipped."""
        return np.asarray(np.minimum(1 / self.chance(rank, is_phone), self.most_weight))


def assumed(config: Config) -> Examination:
    """Before any click has told."""
    return Examination(config.steepness, config.steepness, config.most_weight)


def swap(config: Config, luck: float, size: int) -> int:
    """The place of the hit that changes places with the first one; 0: none does. luck: uniform, of [0, 1).

    Places that are clicked less are tried less: 1 / place of a share of the pages. So one estimate from 6,000 queries
    has a standard error of 0.03 to 0.05; neighbours that change places, as often, give 0.3 to 0.5.
    """
    places = min(size, RANKS) - 1
    if places < 1 or luck >= config.swapped:
        return 0
    drawn = luck / config.swapped * _SHARE[places - 1]
    return 2 + min(int(np.searchsorted(_SHARE, drawn, side="right")), places - 1)


def estimate(config: Config, examples: Examples[Query]) -> Examination:
    """From the pages of which clicks are known."""
    columns = examples.rows.columns
    rank = numbers(columns["rank"]).astype(np.int64)
    usable = (examples.weights > 0) & (rank >= 1) & (rank <= RANKS)
    place = before_swaps(rank, _swapped(examples)[examples.rows.owner])
    clicked, is_phone = examples.labels > 0, numbers(columns["is_phone"]) > 0
    desktop, phone = (
        steepness(config, *(values[usable & (is_phone == device)] for values in (place, rank, clicked)))
        for device in (False, True)
    )
    return Examination(desktop, phone, config.most_weight)


def steepness(config: Config, place: Ints, rank: Ints, clicked: Flags) -> float:
    """Of what stood at a rank by the lot, by the place that the ranker had given it; both from 1, all (n,).

    What had the same place is as attractive on average wherever the lot put it, so its clicks are spread over ranks as
    showings times the chance of a look: a multinomial law whose one unknown is the steepness. Taken where the law is
    highest, times a normal prior.
    """
    shown, clicks = np.zeros((RANKS, RANKS)), np.zeros((RANKS, RANKS))
    inside = place <= RANKS
    np.add.at(shown, (place[inside] - 1, rank[inside] - 1), 1)
    np.add.at(clicks, (place[inside] - 1, rank[inside] - 1), clicked[inside])
    of_place, certainty = clicks.sum(axis=1), 1 / config.steepness_spread**2
    found = config.steepness
    for _ in range(ROUNDS):
        share = shown * np.exp(-found * LOG_RANK)
        share /= np.maximum(share.sum(axis=1, keepdims=True), 1e-300)
        mean = share @ LOG_RANK
        variance = share @ LOG_RANK**2 - mean**2
        slope = of_place @ mean - clicks.sum(axis=0) @ LOG_RANK - certainty * (found - config.steepness)
        step = slope / (of_place @ variance + certainty)
        found += step
        if abs(step) < 1e-9:
            break
    return max(float(found), 0.0)


def before_swaps(rank: Ints, swapped: Ints) -> Ints:
    """The places that the ranker gave; swapped: what changed places with the first, 0: nothing; (n_rows,) each."""
    return np.where(swapped == 0, rank, np.where(rank == 1, swapped, np.where(rank == swapped, 1, rank)))


def _swapped(examples: Examples[Query]) -> Ints:
    """(n_requests,)"""
    said = examples.events["Answered"]
    found = pc.struct_field(pc.extract_regex(said["answer"], SWAPPED), "rank").to_pylist()
    of_request = {request: int(rank or 0) for request, rank in zip(said["request_id"].to_pylist(), found, strict=True)}
    return np.array([of_request.get(query.event_id, 0) for query in examples.requests], np.int64)
