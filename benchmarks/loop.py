"""Ninety days of the loop in many worlds: false alarms, detection, what of a drift's cost is taken away, and faults.

Run: make bench-full, or python -m benchmarks.loop [--seeds N] [--json]   (10 seeds: half an hour of two cores)

The seeds begin at 100: worlds below were looked at while the loop was made.
"""

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from common.clock import DAY
from common.lifecycle import faults
from common.lifecycle.simulation import Regret, Simulation
from common.lifecycle.story import story
from common.progress import Progress
from common.system import find

SYSTEM, DRIFT, DAYS, DRIFT_DAY, FIRST = "fraud", "tactics", 90, 30, 100
Task = tuple[int, str | None, bool]  # seed, drift, with the loop


def lived(task: Task) -> dict[str, Any] | Regret:
    """One world to its end."""
    seed, drift, loop = task
    start, system = time.perf_counter(), find("systems", SYSTEM)
    with tempfile.TemporaryDirectory() as folder:
        with Simulation(
            system, Path(folder), seed=seed, days=DAYS, drift=drift, progress=Progress(quiet=True)
        ) as simulation:
            simulation.history()
            simulation.train()
            if loop:
                simulation.watch()
            for _ in simulation.serve(DAYS):
                pass
            if not loop:
                return simulation.regret()
            told = story(simulation, "small", None)
            return {**told, "regret_by_day": simulation.regret(), "seconds": time.perf_counter() - start}


def closed(told: dict[str, Any], without: Regret) -> tuple[float, float, float] | None:
    """Regret before the drift, and in the days from three weeks after the alarm on, with and without the loop."""
    if told["detection_delay"] is None:
        return None
    first = DRIFT_DAY + int(told["detection_delay"]) + 21
    mine: Regret = told["regret_by_day"]

    def per_1000(regret: Regret, days: slice) -> float:
        return float(1_000 * (regret.paid - regret.least)[days].sum() / regret.requests[days].sum())

    return (
        per_1000(without, slice(DRIFT_DAY)),
        per_1000(mine, slice(first, None)),
        per_1000(without, slice(first, None)),
    )


def measure(seeds: int) -> dict[str, Any]:
    chosen = range(FIRST, FIRST + seeds)
    drift = f"{DRIFT}@{DRIFT_DAY}"
    tasks: list[Task] = [
        task for seed in chosen for task in ((seed, None, True), (seed, drift, True), (seed, drift, False))
    ]
    tasks += [(FIRST, f"{kind}@{DRIFT_DAY}", True) for kind in faults.KINDS]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        found = {}
        for task, result in zip(tasks, pool.map(lived, tasks), strict=True):
            found[task] = result
            rang = [(of["name"], of["began"]) for of in result["alarms"]] if isinstance(result, dict) else "alone"
            print(f"{len(found)} of {len(tasks)} worlds: {task}: {rang}", file=sys.stderr)
    quiet, drifting, added, gone = {}, {}, 0.0, 0.0
    for seed in chosen:
        calm: Any = found[seed, None, True]
        quiet[seed] = {"false_alarms": calm["false_alarms"], "alarms": [alarm["name"] for alarm in calm["alarms"]]}
        told: Any = found[seed, drift, True]
        without: Any = found[seed, drift, False]
        drifting[seed] = {"false_alarms": told["false_alarms"], "detection_delay": told["detection_delay"]}
        if (regret := closed(told, without)) is not None:
            before, mine, alone = regret
            drifting[seed] |= {"before": before, "with_loop": mine, "without": alone}
            drifting[seed] |= {"closed": (alone - mine) / (alone - before) if alone > before else None}
            added, gone = added + alone - before, gone + alone - mine
    system = find("systems", SYSTEM)
    limit = system.label_delay / DAY + 5
    delays = [of["detection_delay"] for of in drifting.values()]
    wrong = {}
    for kind in faults.KINDS:
        of: Any = found[FIRST, f"{kind}@{DRIFT_DAY}", True]
        after = [alarm for alarm in of["alarms"] if alarm["began"] > DRIFT_DAY]
        bad = [event for event in of["events"] if event["kind"] == "promoted" and event["day"] > DRIFT_DAY]
        wrong[kind] = {
            "first": after[0]["name"] if after else None, "delay": after[0]["began"] - DRIFT_DAY if after else None,
            "promoted": len(bad),
        }  # fmt: skip
    return {
        "seeds": list(chosen),
        "limit_days": limit,
        "quiet_false_alarms": sum(of["false_alarms"] for of in quiet.values()),
        "found_in_time": sum(delay is not None and delay <= limit for delay in delays),
        "median_delay": sorted(delay if delay is not None else 999 for delay in delays)[len(delays) // 2],
        "closed": gone / added if added else None,
        "quiet": quiet,
        "drifting": drifting,
        "faults": wrong,
        "seconds": [found[task]["seconds"] for task in tasks if task[2]],  # type: ignore[index]
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }


def main() -> None:
    seeds = int(sys.argv[sys.argv.index("--seeds") + 1]) if "--seeds" in sys.argv else 10
    found = measure(seeds)
    if "--json" in sys.argv:
        print(json.dumps(found, indent=2))
        return
    print(f"{seeds} quiet worlds of {DAYS} days: {found['quiet_false_alarms']} false alarms")
    print(f"{seeds} worlds with a drift: {found['found_in_time']} found within {found['limit_days']:g} days")
    print(f"of what the drift added to the regret, gone three weeks after the alarm: {found['closed'] or 0:.0%}")
    for kind, of in found["faults"].items():
        print(f"{kind}: {of['first']} spoke first, after {of['delay']} days; {of['promoted']} models promoted since")


if __name__ == "__main__":
    main()
