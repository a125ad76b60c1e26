"""Whether what a model sees differs by more than chance from what it saw in its reference: on sketches, not rows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from common.errors import BadDefinition, BadRecord, Damaged
from common.monitoring.sketches import Categorical, Numeric, Sketch
from common.schema import Record

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Distance: TypeAlias = Literal["psi", "jensen_shannon", "wasserstein"]
DISTANCES: tuple[Distance, ...] = ("psi", "jensen_shannon", "wasserstein")
FILE = "reference.json"
DRAWS = 2_000  # of the bootstrap
PARTS = 20  # that they are worked through in, which bounds the memory
SMOOTH = 0.5  # rows added to every cell for PSI, which has no value at an empty one (Krichevsky & Trofimov 1981)

# Without drift, with u = 1/rows + 1/(rows of the reference), PSI is near u chi2(k), Jensen-Shannon near the root of
# u chi2(k) / (8 ln 2), and Wasserstein much like the root of u chi2. The cube root of a chi2 is near normal (Wilson &
# Hilferty 1931): on that scale one limit, in standard deviations, fits all of them.
OF_U = np.array([1, 0.5, 0.5])  # the power of u that each distance grows by
ONE = np.array([1, 1 / math.sqrt(8 * math.log(2)), 1])  # each distance where u chi2 is 1
ROOT = 1 / (3 * OF_U)


@dataclass(frozen=True)
class Shift:
    """How far one column of a chunk is from the reference by one distance; no value where there is nothing to compare.

    PSI is in nats, Jensen-Shannon within [0, 1], Wasserstein in standard deviations of the reference.
    """

    column: str
    distance: Distance
    value: float | None
    threshold: float

    @property
    def exceeds(self) -> bool:
        return self.value is not None and self.value > self.threshold

    @property
    def ratio(self) -> float | None:
        return None if self.value is None else self.value / self.threshold


@dataclass(frozen=True)
class Reference:
    """What columns look like without drift, and how far chance takes a chunk from that; see `calibrate`."""

    sketches: Mapping[str, Sketch]  # of all blocks together
    thresholds: Mapping[str, Mapping[Distance, float]]  # of each column, for a chunk of the usual rows
    rows: Mapping[str, float]  # that a chunk usually has, of each column
    chunk: int  # blocks in a chunk
    rate: float  # of chunks in which anything exceeds, without drift
    seed: int

    def empty(self) -> dict[str, Sketch]:
        """Sketches with the bins of the reference, to fill."""
        return {name: sketch.empty_like() for name, sketch in self.sketches.items()}

    def judge(self, chunk: Mapping[str, Sketch]) -> tuple[Shift, ...]:
        """One shift per column and distance; raises BadDefinition when the bins are not those of the reference.

        A chunk of fewer rows than usual is allowed as much more as chance gives to so few.
        """
        seen = self.empty() | {name: sketch for name, sketch in chunk.items() if name in self.sketches}
        values = distances(self.sketches, seen)
        allowed = _allowance(
            np.array([_rows(sketch) for sketch in seen.values()]),
            np.array([_rows(sketch) for sketch in self.sketches.values()]),
            np.array([self.rows[name] for name in self.sketches]),
        )
        return tuple(
            Shift(
                name, distance, None if math.isnan(values[i, j]) else float(values[i, j]), float(limit * allowed[i, j])
            )
            for i, name in enumerate(self.sketches)
            for j, distance in enumerate(DISTANCES)
            if (limit := self.thresholds[name].get(distance)) is not None
        )

    def save(self, folder: Path) -> None:
        """Write it beside the model that it belongs to."""
        (folder / FILE).write_text(_File(**vars(self)).model_dump_json())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises Damaged when the file is not one that `save` writes."""
        path = folder / FILE
        try:
            found = _File.parse(path.read_bytes())
            _check(found)
        except FileNotFoundError:
            raise Damaged(f"{path}: must exist") from None
        except (BadRecord, BadDefinition) as error:
            raise Damaged(f"{path}: {error}") from None
        return cls(**dict(found))


@dataclass(frozen=True)
class Watch:
    """Chunk after chunk: an alarm is a column that exceeds by the same distance in two chunks in a row.

    A chunk in which the column is missing neither clears nor counts. When chunks are independent, two in a row alarm
    without drift at most at the square of the reference's rate: 0.05 becomes one chunk in 400. When neighbours are
    alike, as days are, or share the luck of their reference, it lies between that square and the rate.
    """

    reference: Reference
    last: tuple[Shift, ...] = ()  # of each column and distance, where it was seen last

    def after(self, shifts: Sequence[Shift]) -> tuple[Self, tuple[str, ...]]:
        """The watch with one more chunk, and the columns that alarm."""
        last = {(shift.column, shift.distance): shift for shift in self.last}
        exceeded = {key for key, shift in last.items() if shift.exceeds}
        alarms = dict.fromkeys(s.column for s in shifts if s.exceeds and (s.column, s.distance) in exceeded)
        last |= {(shift.column, shift.distance): shift for shift in shifts if shift.value is not None}
        return type(self)(self.reference, tuple(last.values())), tuple(alarms)


def sketch(reference: Reference, columns: Mapping[str, Array | Sequence[str | None]]) -> dict[str, Sketch]:
    """Sketches of a chunk's columns, (n,) each, with the bins of the reference; others are left out."""
    found: dict[str, Sketch] = {}
    for name, empty in reference.empty().items():
        if name not in columns:
            continue
        if isinstance(empty, Categorical):
            found[name] = empty.update([None if value is None else str(value) for value in columns[name]])
            continue
        try:
            found[name] = empty.update(np.asarray(columns[name], np.float64))
        except (TypeError, ValueError):
            raise BadDefinition(f"{name}: must be numbers, as in the reference") from None
    return found


def distances(reference: Mapping[str, Sketch], chunk: Mapping[str, Sketch]) -> Array:
    """By all DISTANCES, (columns, 3), of a chunk that has all columns of a reference, with the same bins.

    The missing are a cell of their own in PSI and Jensen-Shannon, and left out of Wasserstein, which is of numbers.
    NaN where either side has no rows, for Wasserstein no numbers, and where its unit, the standard deviation of the
    reference, is 0. Raises BadDefinition when bins differ.
    """
    cells = _Cells(reference)
    return cells.distances(cells.counts(reference), cells.counts(chunk), cells.gaps(chunk))


def calibrate(blocks: Sequence[Mapping[str, Sketch]], *, chunk: int, rate: float, seed: int) -> Reference:
    """The reference of consecutive blocks, such as days, whose sketches have the bins of the whole.

    `chunk` is how many blocks a monitored chunk holds, `rate` the probability that without drift any column exceeds by
    any distance. DRAWS times, a chunk of neighbouring blocks is compared with a reference that is drawn from the other
    blocks in runs of neighbours (circular block bootstrap, Politis & Romano 1992): the luck of the reference counts,
    and so do good and bad days. Each distance is put on a scale where it is near normal, with the centre and spread
    that it has in chunks far from the drawn one (a new chunk has no part in them either), and the limit is the
    quantile of the largest of all (Westfall & Young 1993, max-T). Ranks would not do: of 60 days the largest is passed
    by 1 new day in 61, in each of 20 columns. The quantile is that of the draws or of a Gumbel distribution with their
    moments, whichever is larger, so that it may lie beyond the largest that was seen.

    The rate is kept to about its double from eight chunks on, closely from 30. Raises BadDefinition for blocks that
    differ in columns or bins, or are too few.
    """
    run = max(chunk, math.ceil(math.sqrt(len(blocks))))  # blocks that are kept together
    if chunk < 1 or len(blocks) < 3 * chunk + 2 * run:
        raise BadDefinition(f"blocks: must be at least {3 * chunk + 2 * run} for chunks of {chunk}, got {len(blocks)}")
    if not 0 < rate < 1:
        raise BadDefinition(f"rate: must lie between 0 and 1, got {rate}")
    whole = _whole(blocks)
    cells = _Cells(whole)
    starts, values, rows = _draw(cells, np.array([cells.counts(block) for block in blocks]), chunk, run, seed)
    usual = np.array([np.median(of[of > 0]) for of in rows.T])
    total = np.array([_rows(sketch) for sketch in whole.values()])
    scores = (values / _allowance(rows, total, usual)) ** ROOT  # (draws, columns, 3)

    one = (ONE * ((1 / usual + 1 / total)[:, None] ** OF_U)) ** ROOT
    freedom = np.maximum(cells.sums(cells.counts(whole) > 0) - 1, 1)[:, None]
    least = one * math.sqrt(2 / 9) * freedom ** (-1 / 6)  # the spread that chance alone gives, by Wilson & Hilferty
    far = abs(np.subtract.outer(*2 * [np.arange(len(blocks) - chunk + 1)])) >= chunk + run
    centre, spread = _moments(scores, starts, far)
    extreme = np.fmax.reduce((scores - centre[starts]) / np.fmax(spread, least)[starts], axis=(1, 2))
    extreme = extreme[np.isfinite(extreme)]
    if not len(extreme):
        raise BadDefinition("blocks: must have rows, got none in most of them")
    gumbel = extreme.mean() - extreme.std() * math.sqrt(6) / math.pi * (np.euler_gamma + math.log(-math.log1p(-rate)))
    limit = max(
        gumbel,
        float(np.quantile(extreme, 1 - rate, method="higher")),
        NormalDist().inv_cdf(1 - rate / scores[0].size),  # of so many normal ones; where little varies, draws know less
    )

    (centre,), (spread,) = _moments(scores, starts, np.ones((1, far.shape[1]), bool))
    # what never varied would exceed with a single row
    thresholds = (np.fmax(centre, one * 7 / 9) + limit * np.fmax(spread, least)) ** (1 / ROOT)
    return Reference(
        whole,
        {
            name: {
                d: float(t)
                for d, t, seen in zip(DISTANCES, thresholds[i], centre[i], strict=True)
                if not math.isnan(seen)
            }
            for i, name in enumerate(whole)
        },
        dict(zip(whole, usual.tolist(), strict=True)),
        chunk,
        rate,
        seed,
    )


def _whole(blocks: Sequence[Mapping[str, Sketch]]) -> dict[str, Sketch]:
    whole = dict(blocks[0])
    for block in blocks[1:]:
        if block.keys() != whole.keys():
            raise BadDefinition(f"blocks: columns must be the same, got {sorted(block.keys() ^ whole.keys())} in some")
        for name, sketch in block.items():
            _check_kind(name, whole[name], sketch)
            whole[name] = whole[name].merge(sketch)  # type: ignore[arg-type]
    for name in whole:
        if sum(_rows(block[name]) > 0 for block in blocks) < 2:
            raise BadDefinition(f"{name}: must have rows in at least two blocks")
    return whole


def _draw(cells: "_Cells", counts: Array, chunk: int, run: int, seed: int) -> tuple[Ints, Array, Array]:
    """Where each drawn chunk starts, (draws,), its distances, (draws, columns, 3), and rows, (draws, columns)."""
    rng = np.random.default_rng(seed)
    n = len(counts)
    starts = np.arange(DRAWS) % (n - chunk + 1)
    offsets = rng.integers(0, n - chunk - run + 1, (DRAWS, -(-n // run)))  # of runs in the blocks after the chunk's
    drawn = (starts[:, None, None] + chunk + offsets[:, :, None] + np.arange(run)) % n
    times = np.zeros((DRAWS, n))
    np.add.at(times, (np.arange(DRAWS)[:, None], drawn.reshape(DRAWS, -1)[:, :n]), 1)
    after = np.arange(n) - starts[:, None]
    seen = ((after >= 0) & (after < chunk)) @ counts
    gaps = cells.gaps(cells.sketches)
    pairs = zip(np.array_split(times @ counts, PARTS), np.array_split(seen, PARTS), strict=True)
    values = np.concatenate([cells.distances(a, b, gaps) for a, b in pairs])
    return starts, values, cells.sums(seen)


def _moments(scores: Array, starts: Ints, of: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Mean and standard deviation of the scores that are not NaN, over draws whose start a row of `of` names."""
    known = np.isfinite(scores)
    sums = np.zeros((3, of.shape[1], *scores.shape[1:]))
    for i, power in enumerate((known, np.where(known, scores, 0), np.where(known, scores**2, 0))):
        np.add.at(sums[i], starts, power)
    n, first, second = np.tensordot(of.astype(float), sums, (1, 1)).swapaxes(0, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return first / n, np.sqrt(np.maximum(second / n - (first / n) ** 2, 0))


def _allowance(rows: Array, total: Array, usual: Array) -> Array:
    """By how much each distance may be larger in chunks of so few rows, (..., columns, 3)."""
    more = (1 / np.maximum(rows, 1) + 1 / total) / (1 / usual + 1 / total)
    allowed: Array = np.maximum(more, 1)[..., None] ** OF_U
    return allowed


def _rows(sketch: Sketch) -> int:
    return sketch.n + sketch.missing


def middles(reference: Numeric, chunk: Numeric) -> Array:
    """Where the rows below, in and above the bins are taken to lie, (bins + 2,): half-way through.

    An open bin ends at the extreme of both. Half-way through the first and the last bin of a tail few rows lie: there
    it is the mean of an exponential tail that is as steep as the bin beside it, if that is nearer.
    """
    edges = np.array(reference.edges)
    extremes = [value for s in (reference, chunk) for value in (s.min, s.max) if value is not None]
    ends = np.array([min(extremes), *edges, max(extremes)])
    found: Array = (ends[1:] + ends[:-1]) / 2
    widths = np.diff(edges)
    inner = widths > 2 * abs(np.spacing(edges[:-1]))  # more than the bin of one value
    if len(widths) > 1 and inner[1]:
        found[1] = max(found[1], edges[1] - widths[1] / math.log(2))
    if len(widths) > 1 and inner[-2]:
        found[-2] = min(found[-2], edges[-2] + widths[-2] / math.log(2))
    return found


class _Cells:
    """The cells of all columns in one row: bins or values, what lies outside of them, the missing as the last."""

    def __init__(self, sketches: Mapping[str, Sketch]) -> None:
        self.sketches = sketches
        self._sizes = np.array([len(s.counts) + (1 if isinstance(s, Numeric) else 2) for s in sketches.values()])
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._is_number = np.repeat([isinstance(s, Numeric) for s in sketches.values()], self._sizes)
        self._is_number[self._starts + self._sizes - 1] = False
        self._has_unit = np.array([isinstance(s, Numeric) and 0 < s.std < math.inf for s in sketches.values()])

    def counts(self, sketches: Mapping[str, Sketch]) -> Array:
        """(cells,); raises BadDefinition when a column's bins or values differ."""
        found: list[int] = []
        for name, own in self.sketches.items():
            other = sketches[name]
            _check_kind(name, own, other)
            if isinstance(own, Numeric) and isinstance(other, Numeric) and own.edges == other.edges:
                found += (*other.counts, other.missing)
            elif (
                isinstance(own, Categorical)
                and isinstance(other, Categorical)
                and own.counts.keys() == other.counts.keys()
            ):
                found += (*(other.counts[value] for value in own.counts), other.other, other.missing)
            else:
                raise BadDefinition(f"{name}: bins must be those of the reference")
        return np.array(found, np.float64)

    def gaps(self, chunk: Mapping[str, Sketch]) -> Array:
        """From the middle of each bin to the next, in standard deviations, (cells,)."""
        gaps = np.zeros(self._sizes.sum())
        for start, unit, (name, own) in zip(self._starts, self._has_unit, self.sketches.items(), strict=True):
            other = chunk[name]
            if unit and isinstance(own, Numeric) and isinstance(other, Numeric):
                gaps[start : start + len(own.edges)] = np.diff(middles(own, other)) / own.std
        return gaps

    def sums(self, cells: Array | NDArray[np.bool_]) -> Array:
        """Over the cells of each column, (..., columns)."""
        return np.add.reduceat(cells, self._starts, axis=-1, dtype=np.float64)

    def _shares(self, counts: Array) -> Array:
        sums = np.repeat(self.sums(counts), self._sizes, axis=-1)
        return np.divide(counts, sums, out=np.zeros_like(counts), where=sums > 0)

    def distances(self, a: Array, b: Array, gaps: Array) -> Array:
        """Of counts (..., cells) from counts of the same shape: (..., columns, 3), see the function `distances`."""
        p, q = self._shares(a + SMOOTH), self._shares(b + SMOOTH)
        psi = self.sums((q - p) * np.log(q / p))
        p, q = self._shares(a), self._shares(b)
        middle = (p + q) / 2
        bits = [x * np.log2(np.divide(x, middle, out=np.ones_like(x), where=x > 0)) for x in (p, q)]
        js = np.sqrt(np.clip(self.sums(bits[0] + bits[1]) / 2, 0, 1))
        p, q = self._shares(a * self._is_number), self._shares(b * self._is_number)
        comparable = (self.sums(p) > 0) & (self.sums(q) > 0) & self._has_unit
        # shares of a column sum to 1 on both sides: one running sum over all columns is 0 again where each one starts
        apart = np.cumsum((q - p) * np.repeat(comparable, self._sizes, axis=-1), axis=-1)
        work = self.sums(abs(apart) * gaps)
        rows = np.minimum(self.sums(a), self.sums(b))
        known = np.stack([rows > 0, rows > 0, comparable], axis=-1)
        return np.where(known, np.stack([psi, js, work], axis=-1), math.nan)


def _check_kind(name: str, own: Sketch, other: Sketch) -> None:
    if type(own) is not type(other):
        raise BadDefinition(f"{name}: must be {type(own).__name__}, as in the reference, got {type(other).__name__}")


Positive = Annotated[float, Field(gt=0)]


class _File(Record):
    sketches: dict[str, Numeric | Categorical]
    thresholds: dict[str, dict[Distance, Positive]]
    rows: dict[str, Positive]
    chunk: int = Field(ge=1)
    rate: float = Field(gt=0, lt=1)
    seed: int


def _check(file: _File) -> None:
    """What types do not say; raises BadDefinition."""
    if not list(file.sketches) == list(file.thresholds) == list(file.rows):
        raise BadDefinition("thresholds, rows: columns must be those of the sketches")
    for name, sketch in file.sketches.items():
        if isinstance(sketch, Numeric):
            counts: Sequence[int] = (*sketch.counts, sketch.missing)
            fits = len(sketch.counts) == len(sketch.edges) + 1 and sum(sketch.counts) == sketch.n
            fits = fits and list(sketch.edges) == sorted(sketch.edges) and sketch.m2 >= 0
        else:
            counts, fits = (*sketch.counts.values(), sketch.other, sketch.missing), True
        if not fits or min(counts) < 0:
            raise BadDefinition(f"sketches.{name}: counts must be as many as its cells, none below 0, and sum to n")
