"""What files a folder holds and what their rows become. A system declares it; the rules are those of its records."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa

from common.schema import Event, Record


@dataclass(frozen=True, kw_only=True)
class UserTable:
    """One file: NAME.csv or NAME.parquet.

    `row` is the contract of its rows: a field with a default may be left out, a column of whole numbers whose name
    ends in `_timestamp` is a time. `make` gets the rows and, line by line, those of the first table that `about`
    names, and gives the columns of the event; it works on whole tables.
    """

    name: str
    row: type[Record]
    event: type[Event]
    make: Callable[[pa.Table, pa.Table], pa.Table] | None = None  # None: the rows are the events
    about: str | None = None  # the column that holds an event_id of the first table
    heard: str | None = None  # the column with the time when the service heard of it; None: when it happened
    required: bool = True


Layout: TypeAlias = tuple[UserTable, ...]  # where two were heard of at the same time, the earlier table comes first
