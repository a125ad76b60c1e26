"""What safety costs: group commit, a million events looked at, backed up, restored; and writers that are killed.

Run: make bench-full, or python -m benchmarks.trust [--json]
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import crash, log
from benchmarks.log import Payment
from common.clock import WallClock
from common.data.log import EventLog
from common.lifecycle.backup import backup, restore

EVENTS = 1_000_000
PART = 20_000  # events of one call


def million(folder: Path) -> dict[str, float]:
    """Seconds for each thing that is done to a whole log."""
    home = folder / "home"
    path = home / "shop" / "log.db"
    took: dict[str, float] = {"events": EVENTS}
    start = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        now = time.perf_counter()
        took[f"{name}_seconds"], start = now - start, now

    with EventLog(path, WallClock(), [Payment]) as events:
        for i in range(0, EVENTS, PART):
            events.append(
                [
                    Payment(event_id=f"payment-{j:08d}", event_timestamp=j, card_id=f"card-{j % 9_973}", amount=j / 7)
                    for j in range(i + 1, i + PART + 1)
                ]
            )
        lap("append")
        events.read(Payment)
        lap("read")
        events.check()
        lap("check")
    took["megabytes"] = path.stat().st_size / 1e6
    start = time.perf_counter()
    contents = backup(home, None, ["shop"], WallClock(), folder / "backup")
    lap("backup")
    shutil.rmtree(home)
    start = time.perf_counter()
    assert restore(folder / "backup", home, None) == contents
    lap("restore")
    return took


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "log": log.measure(),
            "million": million(Path(folder)),
            "crash": crash.run(crash.TRIALS, Path(folder) / "crash" / "log.db", None),
        }
    print(json.dumps(found, indent=2 if "--json" in sys.argv else 1))


if __name__ == "__main__":
    main()
