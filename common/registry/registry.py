"""Versions of models: what they are, where they came from, which one is live, and who said so."""

import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any, Self

from common.clock import Clock
from common.data.log import connect, transaction
from common.data.snapshots import sync
from common.errors import BadBundle, BadSetting, Conflict, GateFailed, NotFound
from common.registry import bundle
from common.registry.gates import CHAMPION, Gate, Verdict

CHALLENGER, PREVIOUS = "challenger", "previous"
NAME = 12  # hex digits of a digest that name a version
PREFIX = 4  # hex digits that may stand for them
UPSERT = """
INSERT INTO version VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (system, name)
DO UPDATE SET report = excluded.report, lineage = excluded.lineage, verdicts = excluded.verdicts
"""  # the files are the same, the judgement may be a newer one
START = "0" * 64  # what the first audit row is chained to

TABLES = """
CREATE TABLE IF NOT EXISTS version (
    system TEXT NOT NULL,
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    created INTEGER NOT NULL,
    report TEXT NOT NULL,
    lineage TEXT NOT NULL,
    verdicts TEXT NOT NULL,
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
"""


@dataclass(frozen=True)
class Version:
    system: str
    name: str  # the first digits of its digest
    digest: str
    created: int  # us
    report: Mapping[str, Any]
    lineage: Mapping[str, Any]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class AuditRow:
    """One change of an alias. Its digest covers the row before it, so no row can be changed alone."""

    row: int  # 1, 2, 3, ...
    system: str
    created: int  # us
    who: str
    what: str  # "promote", "promote, forced", "rollback", "challenger"
    why: str
    was: str | None  # the version that the alias named before
    became: str | None
    digest: str

    def chained(self, before: str) -> str:
        """What the digest must be after a row with digest `before`."""
        return hashlib.sha256(json.dumps([before, *astuple(self)[:-1]]).encode()).hexdigest()


class Registry:
    """SQLite and a folder of bundles under one home; threads and processes may share it."""

    def __init__(self, home: Path, clock: Clock) -> None:
        self._bundles, self._clock = home / "bundles", clock
        self._lock = threading.RLock()
        self._db = connect(home / "registry.db", TABLES)

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

        Raises BadBundle for a file that no bundle may hold.
        """
        self._bundles.mkdir(parents=True, exist_ok=True)
        temporary = self._bundles / f".{uuid.uuid4().hex}"
        try:
            shutil.copytree(folder, temporary, symlinks=True)
            digest = bundle.seal(temporary, lineage)
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
        said = dict(report), dict(lineage), [asdict(verdict) for verdict in verdicts]
        with self._lock, transaction(self._db) as db:
            db.execute(
                UPSERT,
                (system, version.name, digest, version.created, *map(json.dumps, said)),
            )
            return self.get(system, version.name)

    def versions(self, system: str) -> list[Version]:
        """From the oldest to the newest."""
        with self._lock:
            rows = self._db.execute("SELECT * FROM version WHERE system = ? ORDER BY rowid", (system,)).fetchall()
        return [
            Version(system, name, digest, created, json.loads(report), json.loads(lineage), _verdicts(verdicts))
            for _, name, digest, created, report, lineage, verdicts in rows
        ]

    def get(self, system: str, name: str) -> Version:
        """A version by its name or the first digits of it; raises NotFound, listing what there is."""
        versions = self.versions(system)
        found = [v for v in versions if v.name.startswith(name) and len(name) >= PREFIX]
        if len(found) != 1:
            there = ", ".join(v.name for v in found or versions) or "none"
            raise NotFound(f"{system}: {'several versions' if found else 'no version'} {name!r}; there are: {there}")
        return found[0]

    def path(self, version: Version) -> Path:
        """The folder to load from, verified now; raises BadBundle."""
        folder = self._bundles / version.digest
        bundle.verify(folder, version.digest)
        return folder

    def alias(self, system: str, alias: str) -> str | None:
        """The name of the champion, the challenger or the previous champion."""
        return self.aliases(system).get(alias)

    def aliases(self, system: str) -> dict[str, str]:
        with self._lock:
            return dict(self._db.execute("SELECT alias, name FROM alias WHERE system = ?", (system,)).fetchall())

    def revision(self, system: str) -> int:
        """How often an alias of this system was changed: read it, decide, and pass it on as `expected`."""
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM audit WHERE system = ?", (system,)).fetchone()[0])

    def promote(
        self, system: str, name: str, *, who: str, why: str, expected: int | None = None, force: bool = False
    ) -> int:
        """Make a version the champion, the champion the previous one, and return the new revision.

        A challenger that is promoted is no longer the challenger. Promoting the champion again changes nothing.
        Raises Conflict when an alias was changed since revision `expected`; GateFailed when the version missed a gate,
        or was judged against another champion than there is (its lineage says), and is not forced; BadBundle when its
        files are not what was published.
        """
        version = self.get(system, name)
        self.path(version)
        failed = [v.message for v in version.verdicts if not v.passed]
        if failed and not force:
            raise GateFailed(f"{system} {version.name}: {'; '.join(failed)}")
        with self._lock, transaction(self._db):
            self._expect(system, expected)
            aliases = self.aliases(system)
            was = aliases.get(CHAMPION)
            against = version.lineage.get(CHAMPION, was)
            if was not in (None, version.name, against) and not force:
                judged = f"was judged against {against or 'no champion'}, not {was}"
                raise GateFailed(f"{system} {version.name}: {judged}; train again, or promote it with --force")
            if was != version.name:
                self._set(system, CHAMPION, version.name)
                self._set(system, PREVIOUS, was)
                if aliases.get(CHALLENGER) == version.name:
                    self._set(system, CHALLENGER, None)
                self._record(
                    system,
                    who,
                    "promote, forced" if failed or was not in (None, against) else "promote",
                    why,
                    was,
                    version.name,
                )
            return self.revision(system)

    def rollback(self, system: str, *, who: str, why: str, expected: int | None = None) -> int:
        """Make the previous champion the champion again and return the new revision.

        There is then no previous one: rolling back twice must not bring the bad version back. Raises NotFound when
        there is none, Conflict and BadBundle as `promote` does.
        """
        with self._lock, transaction(self._db):
            self._expect(system, expected)
            aliases = self.aliases(system)
            if PREVIOUS not in aliases:
                raise NotFound(f"{system}: no previous champion to go back to; promote a version by its name")
            self.path(self.get(system, aliases[PREVIOUS]))
            self._set(system, CHAMPION, aliases[PREVIOUS])
            self._set(system, PREVIOUS, None)
            self._record(system, who, "rollback", why, aliases.get(CHAMPION), aliases[PREVIOUS])
            return self.revision(system)

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
        with self._lock, transaction(self._db):
            self._expect(system, expected)
            was = self.alias(system, CHALLENGER)
            if was != became:
                self._set(system, CHALLENGER, became)
                self._record(system, who, "challenger", why, was, became)
            return self.revision(system)

    def audit(self, system: str | None = None) -> list[AuditRow]:
        """Who changed which alias, when, from what to what, and why; from the oldest to the newest."""
        with self._lock:
            rows = self._db.execute("SELECT * FROM audit ORDER BY row").fetchall()
        return [row for row in (AuditRow(*r) for r in rows) if system in (None, row.system)]

    def verify_audit(self) -> None:
        """Raises BadBundle naming the first row that was edited, moved, or follows one that was deleted."""
        before = START
        for i, row in enumerate(self.audit(), 1):
            if row.row != i:
                raise BadBundle(f"audit row {i}: must exist, the next one is row {row.row}")
            if row.digest != row.chained(before):
                raise BadBundle(f"audit row {i}: is not what was recorded: {row.what} by {row.who} of {row.system}")
            before = row.digest

    def _expect(self, system: str, expected: int | None) -> None:
        revision = self.revision(system)
        if expected not in (None, revision):
            raise Conflict(f"{system}: aliases were at revision {expected} and are now at {revision}; look again")

    def _set(self, system: str, alias: str, name: str | None) -> None:
        if name is None:
            self._db.execute("DELETE FROM alias WHERE system = ? AND alias = ?", (system, alias))
        else:
            self._db.execute("INSERT OR REPLACE INTO alias VALUES (?, ?, ?)", (system, alias, name))

    def _record(self, system: str, who: str, what: str, why: str, was: str | None, became: str | None) -> None:
        newest = "SELECT row, digest FROM audit ORDER BY row DESC LIMIT 1"
        count, before = self._db.execute(newest).fetchone() or (0, START)
        row = AuditRow(count + 1, system, self._clock.now(), who, what, why, was, became, "")
        row = replace(row, digest=row.chained(before))
        self._db.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", astuple(row))


def _verdicts(said: str) -> tuple[Verdict, ...]:
    return tuple(Verdict(**{**verdict, "gate": Gate(**verdict["gate"])}) for verdict in json.loads(said))
