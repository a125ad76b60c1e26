"""Public benchmark sets: never downloaded for you, found where you put them, and verified on every use."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import BadBundle, NotFound


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The exact files of a published data set."""

    name: str
    folder: str  # under MLSYS_DATA_DIR
    files: Mapping[str, str]  # relative path -> SHA-256
    how_to_get: str  # home page, licence and command, in one line


def find(dataset: Dataset, data_dir: Path | None) -> Path:
    """The data set's folder; raises NotFound when a file is absent, BadBundle when one is not the published file."""
    if data_dir is None:
        raise NotFound(f"{dataset.name}: set MLSYS_DATA_DIR to the folder that holds it; {dataset.how_to_get}")
    folder = data_dir / dataset.folder
    for name, expected in dataset.files.items():
        path = folder / name
        if not path.is_file():
            raise NotFound(f"{dataset.name}: no file {path} (MLSYS_DATA_DIR is {data_dir}); {dataset.how_to_get}")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise BadBundle(f"{path}: SHA-256 must be {expected}, got {found}; {dataset.how_to_get}")
    return folder
