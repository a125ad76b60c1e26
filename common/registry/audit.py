"""Who changed which alias or traffic, when and why: rows in a hash chain, and a head that is signed."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Self

from common.errors import BadBundle
from common.registry.gates import CHAMPION
from common.registry.keys import Keys, Signature

CHALLENGER, PREVIOUS = "challenger", "previous"
TRAFFIC = "traffic"  # kept as an alias, of a text in place of a version: signed, replayed and copied like the others
START = "0" * 64  # what the first row is chained to
Aliases = dict[str, str]  # alias -> version


@dataclass(frozen=True)
class AuditRow:
    """One change of an alias. Its digest covers the row before it, so no row can be changed alone."""

    row: int  # 1, 2, 3, ...
    system: str
    created: int  # us
    who: str
    what: str  # "promote", "promote, forced", "rollback", "challenger", "traffic", "traffic, forced"
    why: str
    was: str | None  # the version that the alias named before; of traffic, what it was, as JSON
    became: str | None
    digest: str

    def chained(self, before: str) -> str:
        """What the digest must be after a row with digest `before`."""
        return hashlib.sha256(json.dumps([before, *astuple(self)[:-1]]).encode()).hexdigest()


@dataclass(frozen=True)
class Head:
    """How many rows there are, the digests of the last one and of all aliases, signed: what was cut off is missed."""

    row: int  # 0: none yet
    digest: str
    aliases: str
    signature: str

    @classmethod
    def sign(cls, row: int, digest: str, aliases: str, keys: Keys) -> Self:
        return cls(row, digest, aliases, str(keys.sign(_content(row, digest, aliases))))

    @property
    def key(self) -> str:
        return Signature.parse(self.signature).key

    def verify(self, row: int, digest: str, keys: Keys) -> None:
        """Raises BadBundle unless it is that of a trail that ends with this row."""
        if self.row != row:
            last = f"the last one is row {row}"
            raise BadBundle(
                f"audit row {row + 1}: must exist, {self.row} were signed and {last}"
                if row < self.row
                else f"audit row {self.row + 1}: must not exist, only {self.row} were signed and {last}"
            )
        if self.digest != digest:
            raise BadBundle(f"audit row {row}: is not the one that was signed as the last")
        self.verify_signature(keys)

    def verify_signature(self, keys: Keys) -> None:
        """Raises BadBundle."""
        try:
            keys.verify(_content(self.row, self.digest, self.aliases), Signature.parse(self.signature))
        except BadBundle as error:
            raise BadBundle(f"audit head: {error}") from None


def verify(rows: Sequence[AuditRow], head: Head, aliases: Mapping[str, Aliases], keys: Keys) -> None:
    """Raises BadBundle, naming the first row that was edited, moved, cut off or follows one that was deleted.

    `aliases` of each system must be those that the rows lead to.
    """
    before = START
    for i, row in enumerate(rows, 1):
        if row.row != i:
            raise BadBundle(f"audit row {i}: must exist, the next one is row {row.row}")
        if row.digest != row.chained(before):
            raise BadBundle(f"audit row {i}: is not what was recorded: {row.what} by {row.who} of {row.system}")
        before = row.digest
    head.verify(len(rows), before, keys)
    replayed = replay(rows)
    for system in sorted(replayed.keys() | aliases.keys()):
        for alias in (CHAMPION, PREVIOUS, CHALLENGER, TRAFFIC):
            by_rows, found = (of.get(system, {}).get(alias) or "none" for of in (replayed, aliases))
            if by_rows != found:
                raise BadBundle(f"{system}: {alias}: is {by_rows} by the audit trail, but the registry says {found}")


def replay(rows: Sequence[AuditRow]) -> dict[str, Aliases]:
    """The aliases of each system that its rows lead to; raises BadBundle for a row that does not follow."""
    systems: dict[str, dict[str, str | None]] = {}
    for row in rows:
        aliases = systems.setdefault(row.system, {})
        what = row.what.removesuffix(", forced")
        moved = what if what in (CHALLENGER, TRAFFIC) else CHAMPION
        if row.was != aliases.get(moved) or (row.what == "rollback" and row.became != aliases.get(PREVIOUS)):
            raise BadBundle(f"audit row {row.row}: does not follow from the rows before it: {row.what} of {row.system}")
        aliases[moved] = row.became
        if moved == CHAMPION:
            aliases[PREVIOUS] = None if row.what == "rollback" else row.was
            aliases[TRAFFIC] = None  # it was a split with another champion
            if row.what != "rollback" and aliases.get(CHALLENGER) == row.became:
                aliases[CHALLENGER] = None
    return {system: {a: name for a, name in aliases.items() if name} for system, aliases in systems.items()}


def digest(aliases: Iterable[Sequence[str]]) -> str:
    """Of all (system, alias, version) that there are."""
    return hashlib.sha256(json.dumps(sorted(map(list, aliases))).encode()).hexdigest()


def _content(row: int, digest: str, aliases: str) -> bytes:
    """It says what it is, so that no signature of something else serves for a head."""
    return f"mlsys audit head 2\n{row} {digest} {aliases}\n".encode()
