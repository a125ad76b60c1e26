"""The fraud system: how fast its service answers, and how fast ten million of a bank's own rows are read and checked.

Run: make bench-full, or python -m benchmarks.fraud [--json] [ROWS]
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow.csv import CSVWriter, WriteOptions, write_csv

from common.checks import bench
from common.clock import DAY, SECOND, WallClock
from common.data import folder
from common.features.online import catch_up, open_store
from common.schema import from_table
from common.serving.service import Service, fixed
from common.system import find
from systems.fraud.config import CATEGORIES
from systems.fraud.data import LAYOUT

ROWS = 10_000_000
PART = 500_000  # rows written at a time
START = 1_704_067_200 * SECOND  # 2024-01-01
SPAN = 180 * DAY
BATCHES = ((1, 500), (16, 200))  # requests, times


def write(where: Path, rows: int) -> None:
    """A bank's payments, one in a hundred reported."""
    rng = np.random.default_rng(0)

    def names(prefix: str, numbers: np.ndarray) -> pa.Array:
        return pa.array(np.char.add(prefix, np.char.zfill(numbers.astype(str), 8)))

    writer = None
    for start in range(0, rows, PART):
        n = min(PART, rows - start)
        number = np.arange(start, start + n)
        card = rng.integers(0, 200_000, n)
        table = pa.table(
            {
                "event_id": names("payment-", number),
                "event_timestamp": START + number * (SPAN // rows),
                "card_id": names("card-", card),
                "device_id": names("device-", card),
                "merchant_id": names("merchant-", rng.integers(0, 3_000, n)),
                "terminal_id": names("terminal-", rng.integers(0, 5_000, n)),
                "category": pa.array(np.array(CATEGORIES)[rng.integers(0, len(CATEGORIES), n)]),
                "channel": pa.array(np.where(rng.random(n) < 0.3, "online", "terminal")),
                "amount": np.round(rng.lognormal(3, 1, n) + 0.01, 2),
                "x_km": np.round(rng.uniform(0, 300, n), 3),
                "y_km": np.round(rng.uniform(0, 300, n), 3),
                "card_age_days": np.round(rng.uniform(0, 1_000, n), 3),
            }
        )
        writer = writer or CSVWriter(
            where / "payments.csv", table.schema, write_options=WriteOptions(quoting_style="none")
        )
        writer.write_table(table)
    assert writer is not None
    writer.close()
    number = np.sort(rng.choice(rows, rows // 100, replace=False))
    outcomes = {
        "payment_id": names("payment-", number),
        "fraud": pa.array(rng.random(len(number)) < 0.5),
        "reported_timestamp": START + number * (SPAN // rows) + 3 * DAY,
    }
    write_csv(pa.table(outcomes), where / "outcomes.csv")


def own_data(rows: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), rows)
        size = (Path(name) / "payments.csv").stat().st_size
        start = time.perf_counter()
        parts = folder.read(
            LAYOUT, Path(name), Path(name) / "out", most=0.01, now=WallClock().now(), say=lambda line: None
        )
        seconds = time.perf_counter() - start
        assert parts[0].rows == rows
    return {
        "rows": rows,
        "megabytes": size / 1e6,
        "seconds": seconds,
        "rows_per_second": rows / seconds,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def service() -> dict[str, float]:
    """From requests to answers, with the features of the small world's history; no HTTP, no log."""
    system = find("systems", "fraud")
    out = {}
    with bench(system) as lived, tempfile.TemporaryDirectory() as name:
        store = open_store(None, Path(name) / "online.db", system.name, system.views)
        head = catch_up(store, lived.log)
        answering = Service(system, fixed("v", system.load(lived.bundle())), store)
        table = lived.snapshot.of(system.request)
        for batch, times in BATCHES:
            took = []
            for i in range(times):
                requests = from_table(system.request, table.slice(table.num_rows - (i + 1) * batch, batch))
                as_of = np.full(batch, lived.snapshot.at + 1)
                start = time.perf_counter()
                answering.answer(requests, as_of, head)
                took.append((time.perf_counter() - start) * 1e3)
            out[f"batch_{batch}_ms_p50"], out[f"batch_{batch}_ms_p99"] = np.quantile(took, [0.5, 0.99]).tolist()
        store.close()
    return out


def main() -> None:
    rows = int(next((a for a in sys.argv[1:] if a.isdigit()), ROWS))
    found = {"own_data": own_data(rows), "service": service()}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
