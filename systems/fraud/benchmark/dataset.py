"""The handbook's simulated payments as a log of two kinds of events: payments, and chargebacks of the frauds.

Le Borgne, Siblini, Lebichot and Bontempi 2022, Reproducible Machine Learning for Credit Card Fraud Detection, chapter
3: six months of payments by 5,000 customers, one card each, at 10,000 terminals; 0.84 % are frauds.
"""

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from common.clock import DAY, SECOND
from common.data import public
from common.errors import BadBundle
from common.features.view import ints
from common.schema import Event, arrow_schema

START: Final = 1_522_540_800 * SECOND  # 2018-04-01, a Sunday
LABEL_DELAY: Final = 7 * DAY  # a fraud is known exactly so long after its payment
TRANSACTIONS: Final = "transactions.csv.gz"
WINDOW: Final = "window_2018-07-25_2018-08-14_features.csv.gz"
OVERTAKEN: Final = 1_240_489  # the published features count 1,240,490, of the same card and second, before this payment
THREADS: Final = 2

DATASET: Final = public.Dataset(
    name="Fraud Detection Handbook, simulated transactions",
    folder="fraud",
    files={
        TRANSACTIONS: "986c9cda09cd4e0a6dd7ccd17a7bb8cc0d6f59d0f70a91daa95b422c46af9846",
        WINDOW: "0153c1ac2ce7b150492881169599366ea03ac194ff12ac0b3c77c28692690b06",
    },
    how_to_get=(
        "clone https://github.com/Fraud-Detection-Handbook/simulated-data-transformed at commit "
        "6e3ca5849b4681430388056d3f1dcfb41d4e8269 (183 daily pickles; no licence file, cite the handbook), then run "
        "python -m systems.fraud.benchmark.prepare CHECKOUT $MLSYS_DATA_DIR/fraud"
    ),
)
CONTENT: Final = {  # SHA-256 of the same files before compression
    TRANSACTIONS: "9347924186196e0ccdd09104e6efc64ca3d1dc8381675090b6ffd6868415c084",
    WINDOW: "10d1d4e8c3606532d913c21ab073c288b0567af5e8b7e19bdd4965ffd48adf81",
}


class Transaction(Event):
    """A card payment at a terminal."""

    customer_id: int
    terminal_id: int
    amount: float = Field(ge=0)


class Chargeback(Event):
    """A payment was a fraud. Its time is the payment's; it is logged LABEL_DELAY later."""

    customer_id: int
    terminal_id: int
    amount: float = Field(ge=0)


@dataclass(frozen=True)
class History:
    """The log. Both tables carry `position` and `created_timestamp` besides the columns of their schema."""

    transactions: pa.Table  # n, in the order of time
    chargebacks: pa.Table
    fraud: NDArray[np.bool_]  # (n,) of each transaction: the truth, to be learnt from only where it was known


def find(data_dir: Path | None, files: public.Dataset = DATASET, content: Mapping[str, str] = CONTENT) -> Path:
    """The data set's folder. Programs compress the same file differently, so what counts is its content.

    Raises NotFound and BadBundle as `public.find` does.
    """
    try:
        return public.find(files, data_dir)
    except BadBundle:
        assert data_dir is not None  # or it would have been NotFound
        folder = data_dir / files.folder
        if any(_content_digest(folder / name) != digest for name, digest in content.items()):
            raise
        return folder


def _content_digest(path: Path) -> str | None:
    """SHA-256 of what a gzip file holds; None when it is none or is cut off."""
    try:
        with gzip.open(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, EOFError, zlib.error):
        return None


def read(folder: Path) -> History:
    """The whole log of the data set."""
    with duckdb.connect(config={"threads": THREADS}) as database:
        table = database.sql(
            """
            select cast(TRANSACTION_ID as varchar) as event_id, $start + TX_TIME_SECONDS * $second as event_timestamp,
                   CUSTOMER_ID as customer_id, TERMINAL_ID as terminal_id, TX_AMOUNT as amount, TX_FRAUD = 1 as fraud
            from read_csv($path, types = {'TX_AMOUNT': 'DOUBLE'})
            order by event_timestamp, TRANSACTION_ID = $overtaken, TRANSACTION_ID
            """,
            params={"path": str(folder / TRANSACTIONS), "start": START, "second": SECOND, "overtaken": OVERTAKEN},
        ).to_arrow_table()
    fraud = np.asarray(table["fraud"].to_numpy(), bool)
    return log(table.select(arrow_schema(Transaction).names), fraud)


def log(transactions: pa.Table, fraud: NDArray[np.bool_]) -> History:
    """One log of the payments and of the chargebacks that follow from them.

    Of one second, chargebacks come first, as the handbook's windows of delayed labels include their edge; then payments
    in the order of the table, each seeing those before it.
    """
    paid = ints(transactions["event_timestamp"])  # (n,)
    charged = np.flatnonzero(fraud)  # (m,)
    created = np.concatenate([paid, paid[charged] + LABEL_DELAY])
    is_payment = np.arange(len(created)) < len(paid)
    position = np.empty(len(created), np.int64)
    position[np.lexsort((is_payment, created))] = np.arange(1, len(created) + 1)  # stable: then in order of the table
    n = len(paid)
    return History(
        _logged(transactions, created[:n], position[:n]),
        _logged(transactions.take(charged), created[n:], position[n:]),
        fraud,
    )


def _logged(table: pa.Table, created: NDArray[np.int64], position: NDArray[np.int64]) -> pa.Table:
    return table.append_column("created_timestamp", pa.array(created)).append_column("position", pa.array(position))
