"""A model on disk: a folder of files in formats that run no code on load, verified before a byte of it is parsed."""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np
from pydantic import JsonValue

from common.errors import BadBundle, BadRecord
from common.schema import Record

MANIFEST = "manifest.json"
MANIFEST_LIMIT = 4 << 20  # bytes
ALLOWED = frozenset(  # .txt: LightGBM
    (".txt", ".onnx", ".safetensors", ".json", ".npy", ".npz", ".parquet", ".faiss")
)
NAME = re.compile(r"\w[\w.-]*", re.ASCII)  # of a file or a folder: nothing hidden, nothing that climbs out


class Manifest(Record):
    """What a bundle holds and where it came from."""

    files: dict[str, str]  # path, with slashes -> SHA-256
    digest: str  # of the files, see `digest`
    lineage: dict[str, JsonValue]


def digest(folder: Path) -> str:
    """SHA-256 of the sorted (path, SHA-256) list of a bundle's files, as JSON; the manifest is not one of them."""
    return _digest(_files(folder))


def seal(folder: Path, lineage: Mapping[str, JsonValue]) -> str:
    """Write the manifest of a folder that was just filled, and return the digest; BadBundle as in `verify`."""
    files = _files(folder)
    for name in files:
        _check_arrays(folder / name)
    manifest = Manifest(files=files, digest=_digest(files), lineage=dict(lineage))
    (folder / MANIFEST).write_text(json.dumps(manifest.model_dump(), indent=2, sort_keys=True) + "\n")
    return manifest.digest


def verify(folder: Path, digest: str | None = None) -> Manifest:
    """The manifest of a folder that holds exactly the files that were sealed: no more, no fewer, no others.

    With a digest, they must be that version's. Raises BadBundle, naming the file and the rule.
    """
    manifest = _manifest(folder)
    files = _files(folder)
    for name in sorted(files.keys() | manifest.files.keys()):
        if name not in files:
            raise BadBundle(f"{folder}: {name}: listed in the manifest, must exist")
        if name not in manifest.files:
            raise BadBundle(f"{folder}: {name}: not listed in the manifest, must not exist")
        if files[name] != manifest.files[name]:
            raise BadBundle(f"{folder}: {name}: SHA-256 must be {manifest.files[name]}, got {files[name]}")
    expected = manifest.digest if digest is None else digest
    for source, found in ((MANIFEST, manifest.digest), ("files", _digest(files))):
        if found != expected:
            raise BadBundle(f"{folder}: {source}: digest must be {expected}, got {found}")
    for name in files:
        _check_arrays(folder / name)
    return manifest


def _digest(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()


def _manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise BadBundle(f"{folder}: {MANIFEST}: must exist and be a plain file")
    with path.open("rb") as file:
        content = file.read(MANIFEST_LIMIT + 1)
    if len(content) > MANIFEST_LIMIT:
        raise BadBundle(f"{folder}: {MANIFEST}: must have at most {MANIFEST_LIMIT} bytes")
    try:
        return Manifest.parse(content)
    except BadRecord as error:
        raise BadBundle(f"{folder}: {MANIFEST}: {error}") from None


def _files(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of all files but the manifest; raises BadBundle for one that no bundle may hold."""
    files = {}
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST:
            with path.open("rb") as file:
                files[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return files


def _walk(folder: Path) -> Iterator[Path]:
    if folder.is_symlink() or not folder.is_dir():
        raise BadBundle(f"{folder}: must be a folder")
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if not NAME.fullmatch(entry.name):
            raise BadBundle(f"{folder}: {entry.name!r}: a name must match {NAME.pattern}")
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(path)
        elif not entry.is_file(follow_symlinks=False):
            raise BadBundle(f"{folder}: {entry.name}: must be a plain file, not a link or a device")
        elif path.suffix not in ALLOWED:
            raise BadBundle(f"{folder}: {entry.name}: suffix must be one of {' '.join(sorted(ALLOWED))}")
        else:
            yield path


def _check_arrays(path: Path) -> None:
    """An array of Python objects is a pickle, which runs code when it is loaded; its header says so."""
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                _check_header(file)
        elif path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    with archive.open(member) as part:
                        _check_header(part)
    except (ValueError, EOFError, OSError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise BadBundle(f"{path}: must hold NumPy arrays without Python objects: {error}") from None


def _check_header(file: IO[bytes]) -> None:
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in read:
        raise ValueError(f"format version must be 1.0 or 2.0, got {version}")
    dtype = read[version](file)[2]
    if dtype.hasobject:
        raise ValueError(f"dtype is {dtype}")
