"""One of several processes that move one system's aliases at once; says on stdout what it was told.

    python -m tests.promoter HOME KEYS URL WHO REVISION VERSION...

It promotes one version after the other until the aliases are at a revision; as `reader` it only looks, and fails when
what it sees at one moment is not what the audit trail up to then leads to.
"""

import random
import sys
import time
from pathlib import Path

from common.clock import WallClock
from common.errors import Conflict, Unavailable
from common.registry import audit
from common.registry.gates import CHAMPION
from common.registry.keys import Keys
from common.registry.registry import Registry

SYSTEM = "search"
PAUSE = 0.05  # s, when the database is away


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def look(registry: Registry) -> int:
    state = registry.state(SYSTEM)
    rows = registry.audit(SYSTEM)[: state.revision]
    assert len(rows) == state.revision, "a revision without its row"
    assert audit.replay(rows).get(SYSTEM, {}) == state.aliases, f"half a promotion at revision {state.revision}"
    return state.revision


def promote(registry: Registry, who: str, names: list[str], until: int) -> int:
    state = registry.state(SYSTEM)
    if state.revision < until:
        name = random.choice([name for name in names if name != state.aliases.get(CHAMPION)])
        revision = registry.promote(SYSTEM, name, who=who, why="it is my turn", expected=state.revision)
        say(f"acknowledged {revision} {name}")
        return revision
    return state.revision


def main(home: str, keys: str, url: str, who: str, revision: str, *names: str) -> None:
    until, at = int(revision), 0
    with Registry(Path(home), WallClock(), Keys(Path(keys)), url or None) as registry:
        say("ready")
        sys.stdin.readline()  # until all are
        while at < until:
            try:
                at = look(registry) if who == "reader" else promote(registry, who, list(names), until)
            except Conflict:
                say("conflict")
            except Unavailable as error:
                say("unavailable, outcome " + ("unknown" if "not known" in str(error) else "nothing kept"))
                time.sleep(PAUSE)


if __name__ == "__main__":
    main(*sys.argv[1:])
