"""What files a folder holds and what their rows become. A system declares it; the rules are those of its records."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.data.folder.contract import Fault
from common.schema import Event, Record


@dataclass(frozen=True, kw_only=True)
class Shaped:
    """A file's rows as the contract names them, though the file may have another form."""

    rows: pa.Table  # columns as in a file, or of the contract's types already
    places: NDArray[np.int64]  # (n_rows,) the row of the file that each comes from
    faults: Mapping[int, Fault]  # by place in `rows`: known already, and not checked again
    ignored: tuple[str, ...]  # columns of the file
    notes: tuple[str, ...]  # what people must be told of the file, a line each


@dataclass(frozen=True, kw_only=True)
class Derived:
    """Events of another kind that follow from all rows of a file together.

    They are what the service would have made of that file, so those that an older one led to stay as they are in the
    log, and none is made of a time that is over there.
    """

    event: type[Event]
    make: Callable[[pa.Table, int], pa.Table]  # the rows that kept the contract, and now in us; heard as they happen


@dataclass(frozen=True, kw_only=True)
class UserTable:
    """One file: NAME.csv or NAME.parquet.

    `row` is the contract of its rows: a field with a default may be left out, a column of whole numbers whose name
    ends in `_timestamp` is a time. `make` gets the rows and, for each that `about` names, line by line the first event
    that the row is about; it gives the columns of the event and works on whole tables.
    Where it gives no event_id, nothing happened yet: such a row is no event, but `derive` sees it. `shape` gets the
    whole file as it stands, its name, and now in us; it raises BadData for a header that it cannot use.
    """

    name: str
    row: type[Record]
    event: type[Event]
    make: Callable[..., pa.Table] | None = None  # None: the rows are the events
    about: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    # by column: the earlier required table, and the column of its events, whose values are the only ones allowed
    heard: str | None = None  # the column with the time when the service heard of it; None: when it happened
    required: bool = True
    shape: Callable[[pa.Table, str, int], Shaped] | None = None  # None: the columns of the file are those of `row`
    derive: tuple[Derived, ...] = ()


Layout: TypeAlias = tuple[UserTable, ...]  # where two were heard of at the same time, the earlier table comes first
