"""Histograms small enough to be saved with a version and merged across servers and days."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.errors import BadDefinition

Array = NDArray[np.float64]
FILE = "sketches.json"
BINS = 20
TOP = 50


@dataclass(frozen=True)
class Numeric:
    """A histogram whose bins hold about equal shares of the reference, with the moments of what it saw.

    A value that alone is more than a share has a bin of its own. NaN and infinity are missing. Means and squares merge
    as in Chan, Golub & LeVeque 1979.
    """

    edges: tuple[float, ...]  # ascending; bin i is [edges[i], edges[i + 1]), the last one includes its end
    counts: tuple[int, ...]  # below the first edge, in each bin, above the last edge
    missing: int
    n: int  # without the missing
    min: float | None
    max: float | None
    mean: float
    m2: float  # sum of squared distances from the mean

    @classmethod
    def of(cls, values: Array) -> Self:
        """The sketch of a reference, (n,), with bins of its own."""
        present = values[np.isfinite(values)]
        shares = np.linspace(0, 1, BINS + 1)
        found = np.quantile(present, shares, method="lower") if len(present) else present
        edges, times = np.unique(found, return_counts=True)
        # or 0 would share a bin with all that a flag or a count can be but its largest
        edges = np.unique(np.concatenate([edges, np.nextafter(edges[times > 1], np.inf)]))
        return cls._empty(tuple(edges.tolist())).update(values)

    @classmethod
    def _empty(cls, edges: tuple[float, ...]) -> Self:
        return cls(edges, (0,) * (len(edges) + 1), 0, 0, None, None, 0.0, 0.0)

    def empty_like(self) -> Self:
        """The same bins, nothing seen."""
        return self._empty(self.edges)

    def update(self, values: Array) -> Self:
        """With more values, (n,)."""
        present = values[np.isfinite(values)]
        if not len(present):
            return replace(self, missing=self.missing + len(values))
        edges = np.array(self.edges)
        edges[-1:] = np.nextafter(edges[-1:], np.inf)
        counts = np.bincount(np.searchsorted(edges, present, side="right"), minlength=len(edges) + 1)
        mean = float(present.mean())
        return self.merge(
            replace(
                self,
                counts=tuple(counts.tolist()),
                missing=len(values) - len(present),
                n=len(present),
                min=float(present.min()),
                max=float(present.max()),
                mean=mean,
                m2=float(np.square(present - mean).sum()),
            )
        )

    def merge(self, other: Self) -> Self:
        """Both together; raises BadDefinition when their bins differ."""
        if self.edges != other.edges:
            raise BadDefinition(f"sketches: edges must be the same, got {self.edges} and {other.edges}")
        n = self.n + other.n
        apart = other.mean - self.mean
        return replace(
            self,
            counts=tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
            missing=self.missing + other.missing,
            n=n,
            min=min((m for m in (self.min, other.min) if m is not None), default=None),
            max=max((m for m in (self.max, other.max) if m is not None), default=None),
            mean=(self.n * self.mean + other.n * other.mean) / n if n else 0.0,
            m2=self.m2 + other.m2 + (apart * apart * (self.n * other.n / n) if n else 0.0),
        )

    @property
    def std(self) -> float:
        """With ddof = 0; NaN when nothing was seen."""
        return math.sqrt(self.m2 / self.n) if self.n else math.nan

    @property
    def median(self) -> float:
        """To the width of a bin; of the reference itself, exact. NaN when nothing was seen."""
        if not self.n:
            return math.nan
        i = int(np.searchsorted(np.cumsum(self.counts), self.n / 2, side="right"))
        return self.edges[max(0, min(i, len(self.edges)) - 1)]


@dataclass(frozen=True)
class Categorical:
    """Counts of the reference's most frequent values; all others are counted together."""

    counts: Mapping[str, int]
    other: int
    missing: int

    @classmethod
    def of(cls, values: Sequence[str | None]) -> Self:
        """The sketch of a reference."""
        seen = Counter(value for value in values if value is not None)
        top = sorted(seen, key=lambda value: (-seen[value], value))[:TOP]
        return cls(dict.fromkeys(sorted(top), 0), 0, 0).update(values)

    @property
    def n(self) -> int:
        return sum(self.counts.values()) + self.other

    def empty_like(self) -> Self:
        """The same values to count, nothing seen."""
        return type(self)(dict.fromkeys(self.counts, 0), 0, 0)

    def update(self, values: Sequence[str | None]) -> Self:
        """With more values."""
        seen = Counter(values)
        missing = seen.pop(None, 0)
        counts = {value: seen.pop(value, 0) for value in self.counts}
        return self.merge(type(self)(counts, seen.total(), missing))

    def merge(self, other: Self) -> Self:
        """Both together; raises BadDefinition when they count different values."""
        if self.counts.keys() != other.counts.keys():
            raise BadDefinition(f"sketches: values must be the same, got {list(self.counts)} and {list(other.counts)}")
        counts = {value: count + other.counts[value] for value, count in self.counts.items()}
        return type(self)(counts, self.other + other.other, self.missing + other.missing)


Sketch: TypeAlias = Numeric | Categorical


def build(names: Sequence[str], x: Array) -> dict[str, Numeric]:
    """A sketch of each column of a reference, (n, len(names)): the features, or the score."""
    return {name: Numeric.of(column) for name, column in zip(names, x.T, strict=True)}


def update(sketches: Mapping[str, Numeric], names: Sequence[str], x: Array) -> dict[str, Numeric]:
    """The sketches of the named columns of x, (n, len(names)), with its values added."""
    return {name: sketches[name].update(column) for name, column in zip(names, x.T, strict=True)}


def to_json(sketch: Sketch) -> dict[str, Any]:
    return {"kind": "numeric" if isinstance(sketch, Numeric) else "categorical", **asdict(sketch)}


def from_json(said: Mapping[str, Any]) -> Sketch:
    fields = {name: value for name, value in said.items() if name != "kind"}
    if said["kind"] == "categorical":
        return Categorical(**fields)
    return Numeric(**{**fields, "edges": tuple(fields["edges"]), "counts": tuple(fields["counts"])})


def save(sketches: Mapping[str, Sketch], folder: Path) -> None:
    """Write them beside the model that they belong to."""
    content = {name: to_json(sketch) for name, sketch in sketches.items()}
    (folder / FILE).write_text(json.dumps(content, allow_nan=False))


def load(folder: Path) -> dict[str, Sketch]:
    content = json.loads((folder / FILE).read_text())
    return {name: from_json(said) for name, said in content.items()}
