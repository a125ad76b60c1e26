"""A copy of everything that cannot be had again, made while others write; and the way back.

A backup is a folder in one format, whatever the backends: the logs and the registry as SQLite files, bundles,
snapshots and trials as they are, and a list of them all with their digests, which is written last. So it also leads
from the embedded backends to PostgreSQL, and back. Online features are not in it: they are made again from the log.
Keys are not in it either, neither those that sign nor those that callers have: whoever has both can sign or ask.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeAlias

from common.clock import Clock
from common.data.database import open_database
from common.data.log import copy, open_storage
from common.data.snapshots import sync
from common.errors import BadRecord, BadSetting, Conflict, Damaged, NotFound
from common.registry.registry import TABLES
from common.schema import Record

CONTENTS = "backup.json"
CONTENTS_LIMIT = 64 << 20  # bytes
LOG, REGISTRY = "log.db", "registry.db"
KEPT = ("bundles", "snapshots")  # folders of which every file is part of a backup
Place: TypeAlias = tuple[Path, str | None]  # the file; the url, where PostgreSQL stands for it
ROWS = {"version": "number", "alias": "system, alias", "audit": "row", "audit_head": "one"}  # table -> order


class Copied(Record):
    """A table or a log, by content: the same on every backend."""

    rows: int
    digest: str


class Contents(Record):
    """What a backup holds."""

    created: int  # us
    logs: dict[str, Copied]  # by system
    registry: dict[str, Copied]  # by table
    files: dict[str, str]  # path -> SHA-256


def backup(home: Path, url: str | None, systems: Sequence[str], clock: Clock, folder: Path) -> Contents:
    """Copy the state while others write: every event that was acknowledged before, every version that was published.

    Durable on return. Raises BadSetting for a folder that is there already, NotFound where there is no state, Damaged
    for state that is not whole.
    """
    home, folder = home.absolute(), folder.absolute()
    if folder.exists():
        raise BadSetting(f"DIR: must not exist, the backup makes it; there is {folder}")
    if folder.resolve().is_relative_to(home.resolve()):
        raise BadSetting(f"DIR: must lie outside MLSYS_HOME, {home}; got {folder}")
    if url is None and not home.is_dir():
        raise NotFound(f"MLSYS_HOME: there is no state in {home}, so there is nothing to back up")
    with _appearing(folder) as temporary:
        registry = {}
        if url is not None or (home / REGISTRY).exists():
            registry = _copy_registry((home / REGISTRY, url), (temporary / REGISTRY, None))
        logs = {}  # after the registry: what a version was learned from is in them
        for name in _logs(home, url, systems):
            logs[name] = _copy_log((home / name / LOG, url), (temporary / name / LOG, None))
        for path in _others(home):
            _copy_file(path, temporary / path.relative_to(home))
        files = {
            path.relative_to(temporary).as_posix(): _digest(path)
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        contents = Contents(created=clock.now(), logs=logs, registry=registry, files=files)
        (temporary / CONTENTS).write_text(contents.model_dump_json(indent=2) + "\n")
    return contents


def restore(folder: Path, home: Path, url: str | None) -> Contents:
    """Put a backup in the place of a state that is gone, and compare what is there then with what was copied.

    All or nothing where the state is embedded. Raises Damaged for a backup that is not what was written, Conflict
    where there is a state.
    """
    home, folder = home.absolute(), folder.absolute()
    contents = _contents(folder)
    if home.exists() and any(home.iterdir()):
        raise Conflict(f"MLSYS_HOME: must be empty or absent, {home} holds a state; move it away first")
    with _appearing(home) as temporary:
        for name, expected in contents.files.items():
            _copy_file(folder / name, temporary / name)
            if (found := _digest(temporary / name)) != expected:
                raise Damaged(f"{folder}: {name}: SHA-256 must be {expected}, got {found}; take another backup")
        if url is not None:
            _into_servers(temporary, url, contents)
    return contents


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes this one as a whole, durable, or never."""
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for parent, _, files in os.walk(temporary):
            for name in files:
                sync(Path(parent, name))
            sync(Path(parent))
        temporary.rename(folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _into_servers(folder: Path, url: str, contents: Contents) -> None:
    """The databases of a backup, into PostgreSQL; their files go, for they are no part of such a state."""
    for name in contents.logs:
        with closing(open_storage(folder / name / LOG, url)) as log:
            if log.head()[0]:
                raise Conflict(f"log: must be empty to be copied into, that of {name} holds {log.head()[0]:,} events")
    copied = {}
    if contents.registry:
        copied_registry = _copy_registry((folder / REGISTRY, None), (folder / REGISTRY, url))
        _compare("registry", contents.registry, copied_registry)
    for name in contents.logs:
        copied[name] = _copy_log((folder / name / LOG, None), (folder / name / LOG, url))
    _compare("logs", contents.logs, copied)
    for name in (REGISTRY, *(f"{name}/{LOG}" for name in contents.logs)):
        for path in folder.glob(name.removesuffix(".db") + ".*"):
            path.unlink()


def _compare(what: str, expected: dict[str, Copied], found: dict[str, Copied]) -> None:
    for name in expected:
        if found.get(name) != expected[name]:
            raise Damaged(f"{what}: {name}: must be {expected[name]}, got {found.get(name)}; take another backup")


def _copy_log(source: Place, target: Place) -> Copied:
    with closing(open_storage(*source)) as a, closing(open_storage(*target)) as b:
        digest = copy(a, b)
        return Copied(rows=b.head()[0], digest=digest)


def _copy_registry(source: Place, target: Place) -> dict[str, Copied]:
    with (
        closing(open_database(source[1], source[0], "registry", TABLES)) as a,
        closing(open_database(target[1], target[0], "registry", TABLES)) as b,
    ):
        with a.transaction():  # one moment
            tables = {name: a.execute(f"SELECT * FROM {name} ORDER BY {order}") for name, order in ROWS.items()}
        with b.transaction():
            for name, rows in tables.items():
                if b.execute(f"SELECT 1 FROM {name} LIMIT 1"):
                    raise Conflict(f"registry: must be empty to be copied into, its table {name} holds rows")
                if rows:
                    b.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(rows[0]))})", rows)
    return {
        name: Copied(rows=len(rows), digest=hashlib.sha256(repr(rows).encode()).hexdigest())
        for name, rows in tables.items()
    }


def _contents(folder: Path) -> Contents:
    try:
        with (folder / CONTENTS).open("rb") as file:
            contents = Contents.parse(file.read(CONTENTS_LIMIT))
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"DIR: no backup in {folder}, it has no {CONTENTS}") from None
    except BadRecord as error:
        raise Damaged(f"{folder}: {CONTENTS}: {error}") from None
    for name in (*contents.files, *(f"{name}/{LOG}" for name in contents.logs)):
        path = folder / name
        inside = ".." not in Path(name).parts and path.is_relative_to(folder)
        if not inside or name not in contents.files or path.is_symlink() or not path.is_file():
            raise Damaged(f"{folder}: {name!r}: must be a plain file of this backup; take another backup")
    return contents


def _logs(home: Path, url: str | None, systems: Sequence[str]) -> list[str]:
    """By system; in files there may be some of a system that is not installed any more."""
    if url is not None:
        return list(systems)
    return sorted(path.parent.name for path in home.glob(f"*/{LOG}") if not path.parent.name.startswith("world-"))


def _others(home: Path) -> Iterator[Path]:
    """All files of a state but its databases, what stands beside those, and what can be made again.

    Temporary ones come and go meanwhile: their names begin with a dot or, of folders, with "world-".
    """
    for parent, folders, files in os.walk(home):
        at = Path(parent).relative_to(home).parts
        folders[:] = sorted(name for name in folders if not name.startswith("." if at else (".", "world-")))
        databases = ("registry.", "access.") if not at else ("log.", "online.")
        for name in sorted(files):
            if at[:1] in [(folder,) for folder in KEPT] or not name.startswith(databases):
                path = Path(parent, name)
                if not name.startswith(".") and not name.endswith(".partial") and not path.is_symlink():
                    yield path


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target, follow_symlinks=False)
    if source.suffix == ".log":  # somebody may be in the middle of a line
        content = target.read_bytes()
        os.truncate(target, content.rfind(b"\n") + 1)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
