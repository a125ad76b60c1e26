"""A model on disk: a folder of files in formats that run no code on load, verified before a byte of it is parsed."""

import errno
import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import JsonValue

from common.errors import BadBundle, BadRecord
from common.registry import formats
from common.registry.keys import Keys, Signature
from common.schema import Record

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
LIMITS = {MANIFEST: 4 << 20, SIGNATURE: 200}  # bytes
DEPTH = 8  # folders in folders
NAME = re.compile(r"\w[\w.-]*", re.ASCII)  # of a file or a folder: nothing hidden, nothing that climbs out
SIGNED_AS = b"mlsys bundle 1\n"  # so that no signature of something else serves for a manifest


class Manifest(Record):
    """What a bundle holds, whose it is and where it came from."""

    system: str
    files: dict[str, str]  # path, with slashes -> SHA-256
    digest: str  # of the files, see `digest`
    lineage: dict[str, JsonValue]


def digest(folder: Path) -> str:
    """SHA-256 of the sorted (path, SHA-256) list of a bundle's files, as JSON; manifest and signature are none."""
    return _digest(_files(folder))


def seal(folder: Path, system: str, lineage: Mapping[str, JsonValue], keys: Keys) -> str:
    """Write and sign the manifest of a folder that was just filled, and return the digest; BadBundle as in `verify`."""
    files = _files(folder)
    for name in files:
        _check_format(folder / name)
    manifest = Manifest(system=system, files=files, digest=_digest(files), lineage=dict(lineage))
    content = (json.dumps(manifest.model_dump(), indent=2, sort_keys=True) + "\n").encode()
    (folder / MANIFEST).write_bytes(content)
    (folder / SIGNATURE).write_text(f"{keys.sign(SIGNED_AS + content)}\n")
    return manifest.digest


def verify(folder: Path, system: str, keys: Keys, digest: str | None = None) -> Manifest:
    """The manifest of a folder that holds exactly the files that a trusted key has signed for a system.

    With a digest, they must be that version's. Raises BadBundle, naming the file and the rule. Nothing is parsed
    before it is known to be what was signed: neither the manifest nor a file. Who may write to the folder may still
    change it after that.
    """
    manifest = _manifest(folder, keys)
    if manifest.system != system:
        raise BadBundle(f"{folder}: {MANIFEST}: system: must be {system}, got {manifest.system}")
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
        _check_format(folder / name)
    return manifest


def _digest(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()


def _manifest(folder: Path, keys: Keys) -> Manifest:
    _check_folder(folder)
    content, signature = (_read(folder / name) for name in (MANIFEST, SIGNATURE))
    try:
        keys.verify(SIGNED_AS + content, Signature.parse(signature.decode("ascii", "replace")))
    except BadBundle as error:
        raise BadBundle(f"{folder}: {SIGNATURE}: {error}") from None
    try:
        return Manifest.parse(content)
    except BadRecord as error:
        raise BadBundle(f"{folder}: {MANIFEST}: {error}") from None


def _read(path: Path) -> bytes:
    try:
        with _open(path) as file:
            content = file.read(LIMITS[path.name] + 1)
    except FileNotFoundError:
        raise BadBundle(f"{path}: must exist") from None
    if len(content) > LIMITS[path.name]:
        raise BadBundle(f"{path}: must have at most {LIMITS[path.name]} bytes")
    return content


def _files(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of all files but manifest and signature; raises BadBundle for one that no bundle may hold."""
    files = {}
    for path in _walk(folder, folder):
        with _open(path) as file:
            files[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return files


def _walk(root: Path, folder: Path) -> Iterator[Path]:
    _check_folder(folder)
    if len(folder.relative_to(root).parts) > DEPTH:
        raise BadBundle(f"{root}: {folder.relative_to(root)}: must lie at most {DEPTH} folders deep")
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if not NAME.fullmatch(entry.name):
            raise BadBundle(f"{folder}: {entry.name!r}: a name must match {NAME.pattern}")
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(root, path)
        elif not entry.is_file(follow_symlinks=False):
            raise BadBundle(f"{folder}: {entry.name}: must be a plain file, not a link or a device")
        elif path in (root / MANIFEST, root / SIGNATURE):
            continue
        elif path.suffix not in formats.FORMATS:
            raise BadBundle(f"{folder}: {entry.name}: suffix must be one of {' '.join(sorted(formats.FORMATS))}")
        else:
            yield path


def _check_folder(folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():
        raise BadBundle(f"{folder}: must be a folder")


def _check_format(path: Path) -> None:
    with _open(path) as file:
        formats.check(path, file)


def _open(path: Path) -> io.BufferedReader:
    """A plain file for reading; neither waits for a pipe nor follows a link that was put there meanwhile."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise
        raise BadBundle(f"{path}: must be a plain file") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BadBundle(f"{path}: must be a plain file")
    return os.fdopen(handle, "rb")
