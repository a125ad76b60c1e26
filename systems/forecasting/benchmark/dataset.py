"""The Hourly and Weekly series of the M4 competition (Makridakis, Spiliotis and Assimakopoulos 2020)."""

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.data import public
from common.errors import BadData

Values = NDArray[np.float64]

DATASET: Final = public.Dataset(
    name="M4 Hourly and Weekly",
    folder="forecasting",
    files={
        "Hourly-train.csv.gz": "4d56abb6310bc349657607a9ab0fed833985c7558f5c3e246818057e51667e2a",
        "Hourly-test.csv.gz": "e766b6f2f51c485c8f3c7128be7eed5c5ae788954327547dfe59002ab1f16b03",
        "Weekly-train.csv.gz": "88fc9c6c579cfb7de0e4d179502de55f71257eb6865e92e13cae06b607fb4f12",
        "Weekly-test.csv.gz": "f65c787eef18d015e0f9ce2dfd321ca0a9a2b1377e2addb5c293ae4930a921c0",
    },
    how_to_get=(
        "https://github.com/Mcompetitions/M4-methods (no licence file; the Monash archive's copy is CC BY 4.0): "
        "Dataset/Train and Dataset/Test, {Hourly,Weekly}-{train,test}.csv, each compressed by gzip"
    ),
)


@dataclass(frozen=True)
class Frequency:
    """A part of the competition."""

    name: str
    horizon: int  # h, steps that are forecast
    season: int  # m, of the measures: steps


HOURLY: Final = Frequency("hourly", 48, 24)
WEEKLY: Final = Frequency("weekly", 13, 1)


@dataclass(frozen=True)
class Panel:
    """Series of a frequency, the newest value of each in the last column."""

    ids: list[str]
    y: Values  # (n, T), NaN before a series begins


def find(data_dir: Path | None) -> Path:
    """The data set's folder; raises NotFound and BadBundle as `public.find` does."""
    return public.find(DATASET, data_dir)


def train(folder: Path, frequency: Frequency) -> Panel:
    """Raises BadData for a value that is not a number above 0: sMAPE and scales need it."""
    rows = _read(folder / f"{frequency.name.title()}-train.csv.gz")
    y = np.full((len(rows), max(len(values) for _, values in rows)), np.nan)
    for row, (_, values) in zip(y, rows, strict=True):
        row[len(row) - len(values) :] = values
    return Panel([name for name, _ in rows], y)


def test(folder: Path, frequency: Frequency, panel: Panel) -> Values:
    """What came after the panel's last column, (n, h); raises BadData for other series, or another length."""
    path = folder / f"{frequency.name.title()}-test.csv.gz"
    rows = _read(path)
    if [name for name, _ in rows] != panel.ids:
        raise BadData(f"{path.name}: must be of the series of the training file, in its order, got {rows[0][0]} first")
    for name, values in rows:
        if len(values) != frequency.horizon:
            raise BadData(f"{path.name}: {name} must have {frequency.horizon} values, got {len(values)}")
    return np.stack([values for _, values in rows])


def _read(path: Path) -> list[tuple[str, Values]]:
    found = []
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for name, *cells in list(csv.reader(file))[1:]:
            try:
                values = np.array([float(cell) for cell in cells if cell not in ("", "NA")])
            except ValueError as error:
                raise BadData(f"{path.name}: {name} must hold numbers, {error}") from None
            if not len(values) or not (np.isfinite(values) & (values > 0)).all():
                raise BadData(f"{path.name}: {name} must hold finite values above 0")
            found.append((name, values))
    if not found:
        raise BadData(f"{path.name}: must hold series, got none")
    return found
