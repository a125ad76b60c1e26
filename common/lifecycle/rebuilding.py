"""Everything that is derived from a log, made again from it: the log is the truth."""

from typing import NamedTuple

from common.clock import SECOND, stopwatch
from common.data.log import EventLog
from common.data.snapshots import Snapshots
from common.errors import BadBundle, NotFound
from common.features.online import OnlineStore, catch_up
from common.progress import Progress
from common.registry.registry import Registry
from common.schema import Event
from common.system import Answered, AnySystem


class Rebuilt(NamedTuple):
    events: int
    seconds: float  # that the online features took
    kept: int  # snapshots of published versions that were there, and whole
    made: int  # that were not, and are the same again
    elsewhere: int  # that are not there, and were taken of another log: of a world, or before it was erased from


def rebuild(
    system: AnySystem, log: EventLog, store: OnlineStore, snapshots: Snapshots, registry: Registry, progress: Progress
) -> Rebuilt:
    """Look at every event, then make the online features and the missing snapshots again.

    Raises Damaged at an event that is not what was acknowledged: then nothing is made from it.
    """
    with progress.step("look at every event"):
        log.check()
    start = stopwatch()
    with progress.step("online features"):
        store.clear()
        catch_up(store, log)
    seconds = (stopwatch() - start) / SECOND
    kept = made = elsewhere = 0
    with progress.step("snapshots"):
        kept_kinds: list[type[Event]] = [*system.events, Answered]
        kinds = {kind.__name__: kind for kind in kept_kinds}
        for version in registry.versions(system.name):
            for name, digest in version.lineage["snapshots"].items():
                try:
                    snapshots.read(digest, [])
                    kept += 1
                except (NotFound, BadBundle):
                    if "world_seed" in version.lineage["origin"] or name not in kinds:
                        elsewhere += 1
                        continue
                    again = snapshots.publish(log.read(kinds[name], until=version.lineage["position"]))
                    made += again == digest
                    elsewhere += again != digest
    return Rebuilt(log.head().position, seconds, kept, made, elsewhere)
