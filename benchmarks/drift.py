"""How fast 100,000 rows of 20 columns are judged against a reference, and how often without drift anything exceeds.

Run: make bench, or python -m benchmarks.drift [--json]
"""

import json
import math
import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np

from common.monitoring import drift
from common.monitoring.drift import Reference, Watch
from common.monitoring.sketches import Numeric

ROWS, COLUMNS, DAYS = 100_000, 20, 60
TIMES = 7
EVIDENTLY = 6.0  # s, Evidently 0.7.23 for as many rows and columns, on a machine like this; 6 to 8
RATE = 0.05
REFERENCES, CHUNKS, ROWS_A_DAY = 60, 20, 400
NAMES = tuple(f"x{i}" for i in range(COLUMNS))


def days(n: int, rows: int, rng: np.random.Generator, rho: float = 0.0, effect: float = 0.0) -> np.ndarray:
    """Normal rows of days whose means are an AR(1) series with standard deviation `effect`, (n, rows, COLUMNS)."""
    noise = rng.normal(size=(n, COLUMNS))
    means = noise.copy()
    for i in range(1, n):
        means[i] = rho * means[i - 1] + math.sqrt(1 - rho**2) * noise[i]
    return effect * means[:, None] + rng.normal(size=(n, rows, COLUMNS))


def reference(x: np.ndarray, chunk: int, seed: int) -> Reference:
    empty = {name: Numeric.of(x[..., i].ravel()).empty_like() for i, name in enumerate(NAMES)}
    blocks = [{name: empty[name].update(day[:, i]) for i, name in enumerate(NAMES)} for day in x]
    return drift.calibrate(blocks, chunk=chunk, rate=RATE, seed=seed)


def seconds(work: Callable[[], object]) -> float:
    took = []
    for _ in range(TIMES):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return median(took)


def speed() -> dict[str, float]:
    rng = np.random.default_rng(0)
    x = days(DAYS, ROWS // DAYS, rng)
    empty = {name: Numeric.of(x[..., i].ravel()).empty_like() for i, name in enumerate(NAMES)}
    blocks = [{name: empty[name].update(day[:, i]) for i, name in enumerate(NAMES)} for day in x]
    known = drift.calibrate(blocks, chunk=1, rate=RATE, seed=0)
    columns = dict(zip(NAMES, rng.normal(size=(ROWS, COLUMNS)).T, strict=True))
    sketches = drift.sketch(known, columns)
    took = seconds(lambda: known.judge(drift.sketch(known, columns)))
    return {
        "rows": ROWS, "columns": COLUMNS, "seconds": took, "target_seconds": 0.3, "rows_per_second": ROWS / took,
        "times_evidently": EVIDENTLY / took, "judge_alone_seconds": seconds(lambda: known.judge(sketches)),
        "calibrate_seconds": seconds(lambda: drift.calibrate(blocks, chunk=1, rate=RATE, seed=0)),
        "calibrate_draws": drift.DRAWS,
    }  # fmt: skip


def false_alarms(rho: float, effect: float, chunk: int, rows: int) -> dict[str, float]:
    """Shares of chunks in which any column exceeds, and of those that alarm as second in a row, without drift."""
    exceeded = alarmed = 0
    for seed in range(REFERENCES):
        rng = np.random.default_rng([seed, chunk])
        x = days(DAYS + CHUNKS * chunk, rows, rng, rho, effect)
        watch = Watch(reference(x[:DAYS], chunk, seed))
        for part in x[DAYS:].reshape(CHUNKS, -1, COLUMNS):
            seen = drift.sketch(watch.reference, dict(zip(NAMES, part.T, strict=True)))
            shifts = watch.reference.judge(seen)
            watch, alarms = watch.after(shifts)
            exceeded += any(shift.exceeds for shift in shifts)
            alarmed += bool(alarms)
    n = REFERENCES * CHUNKS
    return {
        "chunks": n, "stated_rate": RATE, "exceeding": exceeded / n, "two_in_a_row": alarmed / n,
        "standard_error": math.sqrt(max(exceeded, 1) / n * (1 - exceeded / n) / n),
    }  # fmt: skip


def main() -> None:
    found = {
        "speed": speed(),
        "independent_rows": false_alarms(0.0, 0.0, 1, ROWS_A_DAY),
        "days_alike": false_alarms(0.5, 0.2, 1, ROWS_A_DAY),
        "days_alike_judged_by_week": false_alarms(0.5, 0.2, 7, ROWS_A_DAY // 4),
    }
    if "--json" in sys.argv:
        print(json.dumps(found, indent=2))
        return
    for name, figures in found.items():
        print(name)
        for key, value in figures.items():
            print(f"  {key:24} {value:14,.4f}")


if __name__ == "__main__":
    main()
