"""Versions of models: what they are, where they came from, which one is live, and who said so."""

import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, replace
from math import fsum
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from common.clock import Clock
from common.data.database import open_database
from common.data.snapshots import sync
from common.errors import BadBundle, BadSetting, Conflict, Damaged, GateFailed, NotFound
from common.registry import audit, bundle
from common.registry.audit import CHALLENGER, PREVIOUS, TRAFFIC, Aliases, AuditRow, Head
from common.registry.gates import CHAMPION, Gate, Verdict
from common.registry.keys import Keys, Signature
from common.schema import Record

NAME = 12  # hex digits of a digest that name a version
PREFIX = 4  # hex digits that may stand for them

TABLES = """
CREATE TABLE IF NOT EXISTS version (
    number INTEGER NOT NULL UNIQUE,
    system TEXT NOT NULL,
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    created INTEGER NOT NULL,
    report TEXT NOT NULL,
    lineage TEXT NOT NULL,
    verdicts TEXT NOT NULL,
    signature TEXT NOT NULL,
    PRIMARY KEY (system, name)
) STRICT;
CREATE TABLE IF NOT EXISTS alias (
    system TEXT NOT NULL,
    alias TEXT NOT NULL,
    name TEXT NOT NULL,
    PRIMARY KEY (system, alias)
) STRICT;
CREATE TABLE IF NOT EXISTS audit (
    row INTEGER PRIMARY KEY,
    system TEXT NOT NULL,
    created INTEGER NOT NULL,
    who TEXT NOT NULL,
    what TEXT NOT NULL,
    why TEXT NOT NULL,
    was TEXT,
    became TEXT,
    digest TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS audit_head (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    row INTEGER NOT NULL,
    digest TEXT NOT NULL,
    aliases TEXT NOT NULL,
    signature TEXT NOT NULL
) STRICT;
"""
VERSION = "system, name, digest, created, report, lineage, verdicts"  # what is signed of it
INSERT = f"""
INSERT INTO version (number, {VERSION}, signature) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (system, name) DO UPDATE SET
    report = excluded.report, lineage = excluded.lineage, verdicts = excluded.verdicts, signature = excluded.signature
"""  # the files are the same, the judgement may be a newer one
STATE = """
SELECT revision.number, head.row, head.digest, head.aliases, head.signature, alias.system, alias.alias, alias.name
FROM (SELECT count(*) AS number FROM audit WHERE system = ?) AS revision
LEFT JOIN audit_head AS head ON 1 = 1 LEFT JOIN alias ON 1 = 1
"""  # one statement sees one moment


@dataclass(frozen=True)
class Version:
    system: str
    name: str  # the first digits of its digest
    digest: str
    created: int  # us
    report: Mapping[str, Any]
    lineage: Mapping[str, Any]
    verdicts: tuple[Verdict, ...]


class Traffic(Record):
    """How a system's units are split among versions, by their full names; the champion gets what is left."""

    canary: str | None = None
    canary_share: float = Field(default=0.0, ge=0, le=1)  # of the units
    arms: dict[str, Annotated[float, Field(gt=0, le=1)]] = {}  # A/B: version -> share of the units
    shadow: tuple[str, ...] = ()  # their answers are logged, never returned

    @property
    def answering(self) -> dict[str, float]:
        """The share of the units of every version but the champion."""
        return self.arms if self.canary is None else {self.canary: self.canary_share}

    @field_validator("canary_share")
    @classmethod
    def _with_a_canary(cls, share: float, info: ValidationInfo) -> float:
        if share and info.data.get("canary") is None:
            raise PydanticCustomError("traffic", "must be 0 without a canary")
        return share

    @field_validator("arms")
    @classmethod
    def _instead_of_a_canary(cls, arms: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        if arms and info.data.get("canary") is not None:
            raise PydanticCustomError("traffic", "must be empty beside a canary")
        if fsum(arms.values()) > 1:
            raise PydanticCustomError("traffic", "shares must sum to at most 1")
        return arms

    @field_validator("shadow")
    @classmethod
    def _answers_nobody(cls, shadow: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        taken = {info.data.get("canary"), *info.data.get("arms", ())}
        if len(set(shadow)) < len(shadow) or taken & set(shadow):
            raise PydanticCustomError("traffic", "must name each version once, and none that is canary or arm")
        return shadow


@dataclass(frozen=True)
class State:
    """What the aliases and the traffic of a system are, and how often one was changed."""

    revision: int
    aliases: Aliases
    traffic: Traffic = Traffic()


class Registry:
    """Versions and aliases in a database, bundles in a folder under home; threads and processes may share it.

    Whatever is loaded or promoted was signed by a key that is trusted now. Raises Unavailable when the disk is full or
    the database is away.
    """

    def __init__(self, home: Path, clock: Clock, keys: Keys, url: str | None = None) -> None:
        """SQLite under home, or PostgreSQL; raises Damaged for one that has lost what its bundles belong to."""
        keys.check_outside(home)
        self._bundles, self._clock, self._keys = home / "bundles", clock, keys
        left = self._bundles.is_dir() and any(re.fullmatch("[0-9a-f]{64}", name) for name in os.listdir(self._bundles))
        self._db = open_database(url, home / "registry.db", "registry", TABLES)
        try:
            if left and self._head() is None:  # read after the folder: a head is stored before the first bundle
                where = home / "registry.db" if url is None else "MLSYS_DATABASE_URL"
                raise Damaged(f"{where}: has no audit head, but {self._bundles} holds versions; restore a backup")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def publish(
        self,
        system: str,
        folder: Path,
        report: Mapping[str, Any],
        lineage: Mapping[str, Any],
        verdicts: Sequence[Verdict],
    ) -> Version:
        """Copy a folder in as a version, durable on return; the same files again are the same version, judged anew.

        Raises BadBundle for a file that no bundle may hold, and for files that another system has published.
        """
        with self._db.transaction():
            self._check_head()
            if self._head() is None:  # before the first bundle: see __init__
                self._sign(0, audit.START)
        self._bundles.mkdir(parents=True, exist_ok=True)
        temporary = self._bundles / f".{uuid.uuid4().hex}"
        try:
            shutil.copytree(folder, temporary, symlinks=True)
            digest = bundle.seal(temporary, system, lineage, self._keys)
            for parent, _, files in os.walk(temporary):
                for name in files:
                    sync(Path(parent, name))
                sync(Path(parent))
            try:
                os.rename(temporary, self._bundles / digest)
            except OSError:  # the same files are there already, and are verified below
                if not (self._bundles / digest).is_dir():
                    raise
            sync(self._bundles)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        version = Version(system, digest[:NAME], digest, self._clock.now(), report, lineage, tuple(verdicts))
        self.path(version)
        said = map(json.dumps, (dict(report), dict(lineage), [asdict(verdict) for verdict in verdicts]))
        with self._db.transaction():
            found = self._db.execute(
                "SELECT number, created FROM version WHERE system = ? AND name = ?", (system, version.name)
            )
            ((last,),) = self._db.execute("SELECT coalesce(max(number), 0) FROM version")
            number, created = found[0] if found else (last + 1, version.created)
            row = (system, version.name, digest, created, *said)
            self._db.execute(INSERT, (number, *row, str(self._keys.sign(_content(row)))))
            return self.get(system, version.name)

    def versions(self, system: str) -> list[Version]:
        """From the oldest to the newest, as recorded; `get` verifies that, `path` the files."""
        return [_version(row) for row in self._rows(system)]

    def get(self, system: str, name: str) -> Version:
        """A version by its name or the first digits of it; raises NotFound, listing what there is.

        Raises BadBundle when what was said of it (metrics, gates, lineage) is not what was signed.
        """
        rows = self._rows(system)
        found = [row for row in rows if row[1].startswith(name) and len(name) >= PREFIX]
        if len(found) != 1:
            there = ", ".join(row[1] for row in found or rows) or "none"
            raise NotFound(f"{system}: {'several versions' if found else 'no version'} {name!r}; there are: {there}")
        try:
            self._keys.verify(_content(found[0][:-1]), Signature.parse(found[0][-1]))
        except BadBundle as error:
            raise BadBundle(f"{system} {found[0][1]}: is not what was published: {error}") from None
        return _version(found[0])

    def path(self, version: Version) -> Path:
        """The folder to load from, verified now; raises BadBundle."""
        if not version.name or not version.digest.startswith(version.name):
            raise BadBundle(f"{version.system} {version.name}: its digest must begin so, got {version.digest}")
        folder = self._bundles / version.digest
        bundle.verify(folder, version.system, self._keys, version.digest)
        return folder

    @contextmanager
    def private(self, version: Version) -> Iterator[Path]:
        """A copy of the folder that nobody else can change between its verification and its loading; raises BadBundle.

        It goes on leaving: a model may keep files of it open, but must not come back for more.
        """
        with tempfile.TemporaryDirectory(prefix="mlsys-") as temporary:
            folder = Path(temporary, version.digest)
            shutil.copytree(self.path(version), folder, symlinks=True)  # verified first: it may be anything
            bundle.verify(folder, version.system, self._keys, version.digest)
            yield folder

    def state(self, system: str) -> State:
        """All of one moment; raises BadBundle for aliases or a traffic that are not those that were signed."""
        rows = self._db.execute(STATE, (system,))
        revision, *head = rows[0][:5]
        aliases = [row[5:] for row in rows if row[5] is not None]
        if head[0] is None:
            if revision or aliases:
                raise BadBundle("audit head: must exist, aliases were moved")
        else:
            said = Head(*head)
            said.verify_signature(self._keys)
            if said.aliases != audit.digest(aliases):
                raise BadBundle("registry: the aliases are not those that were signed; see mlsys audit verify")
        mine = {alias: name for of, alias, name in aliases if of == system}
        traffic = Traffic.parse(mine.pop(TRAFFIC, "{}"))
        return State(revision, mine, traffic)

    def alias(self, system: str, alias: str) -> str | None:
        """The name of the champion, the challenger or the previous champion."""
        return self.aliases(system).get(alias)

    def aliases(self, system: str) -> Aliases:
        return self.state(system).aliases

    def traffic(self, system: str) -> Traffic:
        return self.state(system).traffic

    def revision(self, system: str) -> int:
        """How often an alias or the traffic was changed: read it, decide, and pass it on as `expected`."""
        return self.state(system).revision

    def promote(
        self, system: str, name: str, *, who: str, why: str, expected: int | None = None, force: bool = False
    ) -> int:
        """Make a version the champion, the champion the previous one, and return the new revision.

        A challenger that is promoted is no longer the challenger; a canary, arms and shadows end, whoever they are.
        Promoting the champion again changes nothing.
        Raises Conflict when an alias was changed since revision `expected`; GateFailed when the version missed a gate,
        or was judged against another champion than there is (its lineage says), and is not forced; BadBundle when its
        files are not what was published.
        """
        version = self.get(system, name)
        self.path(version)
        with self._changing(system, expected) as state:
            was = state.aliases.get(CHAMPION)
            forced = _clears(version, was, force)
            if was == version.name:
                return state.revision
            self._set(system, CHAMPION, version.name)
            self._set(system, PREVIOUS, was)
            if state.aliases.get(CHALLENGER) == version.name:
                self._set(system, CHALLENGER, None)
            self._set(system, TRAFFIC, None)
            self._record(system, who, "promote" + forced, why, was, version.name)
            return state.revision + 1

    def rollback(self, system: str, *, who: str, why: str, expected: int | None = None) -> int:
        """Make the previous champion the champion again and return the new revision.

        There is then no previous one: rolling back twice must not bring the bad version back. The traffic ends as it
        does when `promote` is called. Raises NotFound when there is none, Conflict and BadBundle as `promote` does.
        """
        with self._changing(system, expected) as state:
            name = state.aliases.get(PREVIOUS)
            if name is None:
                raise NotFound(f"{system}: no previous champion to go back to; promote a version by its name")
            self.path(self.get(system, name))
            self._set(system, CHAMPION, name)
            self._set(system, PREVIOUS, None)
            self._set(system, TRAFFIC, None)
            self._record(system, who, "rollback", why, state.aliases.get(CHAMPION), name)
            return state.revision + 1

    def set_alias(
        self, system: str, alias: str, name: str | None, *, who: str, why: str, expected: int | None = None
    ) -> int:
        """Name the challenger, or none, and return the new revision; raises as `promote` does, but asks no gate."""
        if alias != CHALLENGER:
            raise BadSetting(f"alias: must be {CHALLENGER}; promote and rollback move the others, got {alias!r}")
        became = None
        if name is not None:
            version = self.get(system, name)
            self.path(version)
            became = version.name
        with self._changing(system, expected) as state:
            was = state.aliases.get(CHALLENGER)
            if was == became:
                return state.revision
            self._set(system, CHALLENGER, became)
            self._record(system, who, CHALLENGER, why, was, became)
            return state.revision + 1

    def set_traffic(
        self,
        system: str,
        traffic: Traffic,
        *,
        who: str,
        why: str,
        expected: int | None = None,
        force: bool = False,
    ) -> int:
        """Split the units among versions, and return the new revision; raises as `promote` does.

        A canary and an arm must clear their gates, a shadow need not. Raises NotFound where there is no champion to
        share with, BadSetting for the champion in another role, BadRecord.
        """
        traffic = Traffic.parse(traffic.model_dump_json())  # a copy with changes was never validated
        versions = {name: self.get(system, name) for name in (*traffic.answering, *traffic.shadow)}
        for name, version in versions.items():
            if name != version.name:
                raise NotFound(f"{system}: traffic names a version in full: {version.name}, got {name!r}")
            self.path(version)
        with self._changing(system, expected) as state:
            champion = state.aliases.get(CHAMPION)
            if versions and champion is None:
                raise NotFound(f"{system}: no champion to share the traffic with; promote a version first")
            if champion in versions:
                raise BadSetting(f"traffic: must not name the champion, which gets the rest, got {champion}")
            forced = [_clears(versions[name], champion, force) for name in sorted(traffic.answering)]
            if traffic == state.traffic:
                return state.revision
            was, became = (None if t == Traffic() else _compact(t) for t in (state.traffic, traffic))
            self._set(system, TRAFFIC, became)
            self._record(system, who, TRAFFIC + max(forced, default=""), why, was, became)
            return state.revision + 1

    def audit(self, system: str | None = None) -> list[AuditRow]:
        """Who changed which alias or traffic, when, from what to what, and why; from the oldest to the newest."""
        rows = self._db.execute(
            "SELECT row, system, created, who, what, why, was, became, digest FROM audit ORDER BY row"
        )
        return [row for row in (AuditRow(*r) for r in rows) if system in (None, row.system)]

    def verify_audit(self) -> Head | None:
        """The head of the trail, None when nothing was ever published.

        Raises BadBundle naming the first row that was edited, moved, cut off, or follows one that was deleted, and
        when the aliases are not those that the rows lead to. A registry that was replaced by an older one as a whole
        is not noticed: compare row and digest with those of an earlier call.
        """
        with self._db.transaction():
            return self._verified()

    def rotate(self) -> str:
        """Make a new signing key, sign the head with it, and return its id; raises as `verify_audit` does."""
        with self._db.transaction():
            head = self._verified()
            key = self._keys.rotate()
            if head is not None:
                self._sign(head.row, head.digest)
            return key

    def _verified(self) -> Head | None:
        rows, head = self.audit(), self._head()
        aliases: dict[str, Aliases] = {}
        for system, alias, name in self._db.execute("SELECT system, alias, name FROM alias"):
            aliases.setdefault(system, {})[alias] = name
        if head is None:
            self._check_empty()
        else:
            audit.verify(rows, head, aliases, self._keys)
        return head

    @contextmanager
    def _changing(self, system: str, expected: int | None) -> Iterator[State]:
        """One at a time; all that is written in it, or nothing."""
        with self._db.transaction():
            self._check_head()
            state = self.state(system)
            if expected not in (None, state.revision):
                now = f"aliases were at revision {expected} and are now at {state.revision}"
                raise Conflict(f"{system}: {now}; look again")
            yield state

    def _set(self, system: str, alias: str, name: str | None) -> None:
        self._db.execute("DELETE FROM alias WHERE system = ? AND alias = ?", (system, alias))
        if name is not None:
            self._db.execute("INSERT INTO alias (system, alias, name) VALUES (?, ?, ?)", (system, alias, name))

    def _record(self, system: str, who: str, what: str, why: str, was: str | None, became: str | None) -> None:
        count, before = self._last()
        row = AuditRow(count + 1, system, self._clock.now(), who, what, why, was, became, "")
        row = replace(row, digest=row.chained(before))
        self._db.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", astuple(row))
        self._sign(row.row, row.digest)

    def _sign(self, row: int, digest: str) -> None:
        aliases = audit.digest(self._db.execute("SELECT system, alias, name FROM alias"))
        self._db.execute("DELETE FROM audit_head")
        head = Head.sign(row, digest, aliases, self._keys)
        self._db.execute("INSERT INTO audit_head VALUES (1, ?, ?, ?, ?)", astuple(head))

    def _head(self) -> Head | None:
        rows = self._db.execute("SELECT row, digest, aliases, signature FROM audit_head")
        return Head(*rows[0]) if rows else None

    def _last(self) -> tuple[int, str]:
        rows = self._db.execute("SELECT row, digest FROM audit ORDER BY row DESC LIMIT 1")
        return rows[0] if rows else (0, audit.START)

    def _check_head(self) -> None:
        """A trail that was tampered with must not be signed anew."""
        head = self._head()
        if head is None:
            self._check_empty()
        else:
            head.verify(*self._last(), self._keys)

    def _check_empty(self) -> None:
        for table in ("audit", "alias", "version"):
            if self._db.execute(f"SELECT 1 FROM {table} LIMIT 1"):
                raise BadBundle(f"audit head: must exist, table {table} is not empty")

    def _rows(self, system: str) -> list[tuple[Any, ...]]:
        return self._db.execute(f"SELECT {VERSION}, signature FROM version WHERE system = ? ORDER BY number", (system,))


def _clears(version: Version, champion: str | None, force: bool) -> str:
    """What the audit trail adds where a version that missed a gate is forced; raises GateFailed where it is not."""
    missed = [verdict.message for verdict in version.verdicts if not verdict.passed]
    against = version.lineage.get(CHAMPION, champion)
    if champion not in (None, version.name, against):
        judged = f"was judged against {against or 'no champion'}, not {champion}"
        missed.append(f"{judged}; train again, or take it with --force")
    if missed and not force:
        raise GateFailed(f"{version.system} {version.name}: {'; '.join(missed)}")
    return ", forced" if missed else ""


def _compact(traffic: Traffic) -> str:
    return traffic.model_dump_json(exclude_defaults=True)


def _version(row: Sequence[Any]) -> Version:
    system, name, digest, created, report, lineage, verdicts, _ = row
    try:
        judged = tuple(Verdict(**{**verdict, "gate": Gate(**verdict["gate"])}) for verdict in json.loads(verdicts))
        return Version(system, name, digest, created, json.loads(report), json.loads(lineage), judged)
    except (ValueError, TypeError, KeyError):
        raise Damaged(f"{system} {name}: what was recorded of it cannot be read; restore a backup") from None


def _content(row: Sequence[Any]) -> bytes:
    """It says what it is, so that no signature of something else serves for a version."""
    return b"mlsys version 1\n" + json.dumps(list(row)).encode()
