"""What a folder held goes into the log, once: the log is the truth, and what it holds does not change."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.data.folder.reading import Part
from common.data.log import EventLog
from common.errors import BadData
from common.progress import Progress
from common.schema import Event, arrow_schema, from_table

CHUNK = 50_000  # events made and appended at a time


class Appended(NamedTuple):
    new: int
    there: int  # were in the log already; of derived events also those that come too late for it


def append(log: EventLog, parts: Sequence[Part], progress: Progress) -> Appended:
    """Make the events durable, in the order of hearing; those that the log has already keep their place.

    Looks at all of them before the first is appended. Raises BadData for an id that stands for something else in the
    log, and for events that should have come before the log's newest one.
    """
    newest = log.head().created_timestamp
    fresh = [_new(log, part, newest) for part in parts]
    heard = np.concatenate([np.empty(0, np.int64), *(heard for _, heard in fresh)])
    part_of = np.repeat(np.arange(len(parts)), [len(heard) for _, heard in fresh])
    place = np.concatenate([np.empty(0, np.int64), *(np.arange(len(heard)) for _, heard in fresh)])
    order = np.lexsort((place, part_of, heard))
    for start in progress.over(range(0, len(order), CHUNK), "append to the log"):
        chunk = order[start : start + CHUNK]
        events: list[Event | None] = [None] * len(chunk)
        for i, (part, (table, _)) in enumerate(zip(parts, fresh, strict=True)):
            mine = np.flatnonzero(part_of[chunk] == i)
            made = from_table(part.kind, table.take(pa.array(place[chunk[mine]])))
            for where, event in zip(mine.tolist(), made, strict=True):
                events[where] = event
        log.append([event for event in events if event is not None], heard[chunk].tolist())
    return Appended(len(order), sum(part.events.num_rows for part in parts) - len(order))


def _new(log: EventLog, part: Part, newest: int) -> tuple[pa.Table, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """The events of a part that the log does not have, and when each was heard of."""
    there = log.read(part.kind)
    if not there.num_rows and not newest:
        return part.events, part.heard
    place = pc.index_in(part.events["event_id"], there["event_id"])
    known = pc.is_valid(place)
    if part.derived:
        fresh = np.asarray(pc.invert(known).to_numpy(zero_copy_only=False), bool) & (part.heard >= newest)
        return part.events.filter(pa.array(fresh)), part.heard[fresh]
    mine, its = part.events.filter(known), there.take(place.drop_null())
    for field in arrow_schema(part.kind):
        if mine[field.name].equals(its[field.name]):
            continue
        nested = pa.types.is_list(field.type)
        i = 0 if nested else np.flatnonzero(pc.not_equal(mine[field.name], its[field.name]).fill_null(True))[0]
        there_, here = (str(table[field.name][i])[:80] for table in (its, mine))
        raise BadData(
            f"{part.file}: {field.name}: must stay as it is in the log, which does not change: "
            f"{mine['event_id'][i].as_py()!r} has {there_!r} there, got {here!r}; use another MLSYS_HOME to start anew"
        )
    new = pc.invert(known)
    events, heard = part.events.filter(new), part.heard[np.asarray(new.to_numpy(zero_copy_only=False), bool)]
    late = np.flatnonzero(heard < newest)
    if len(late):
        raise BadData(
            f"{part.file}: {len(late)} rows are new but older than the log's newest event, and a log only grows at its "
            f"end; the first is {events['event_id'][late[0]].as_py()!r}; use another MLSYS_HOME to start anew"
        )
    return events, heard
