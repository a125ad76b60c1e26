"""What files a folder holds and what their rows become. A system declares it; the rules are those of its records."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import pyarrow as pa

from common.schema import Event, Record


@dataclass(frozen=True, kw_only=True)
class UserTable:
    """One file: NAME.csv or NAME.parquet.

    `row` is the contract of its rows: a field with a default may be left out, a column of whole numbers whose name
    ends in `_timestamp` is a time. `make` gets the rows and, for each that `about` names, line by line the first event
    that the row is about; it gives the columns of the event and works on whole tables.
    """

    name: str
    row: type[Record]
    event: type[Event]
    make: Callable[..., pa.Table] | None = None  # None: the rows are the events
    about: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    # by column: the earlier required table, and the column of its events, whose values are the only ones allowed
    heard: str | None = None  # the column with the time when the service heard of it; None: when it happened
    required: bool = True


Layout: TypeAlias = tuple[UserTable, ...]  # where two were heard of at the same time, the earlier table comes first
