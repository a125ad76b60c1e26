"""Writers that are killed (kill -9) at random moments: is every acknowledged event there, and each only once?

Run: make bench-full, or python -m benchmarks.crash [--json] [TRIALS]
"""

import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from common.clock import WallClock
from common.data.log import EventLog
from common.schema import Event

TRIALS = 200
WRITERS = 4  # threads, so that groups are committed
AGAIN = 20  # ids that a new life begins with, per writer: its sender does not know what became of them
LONGEST = 0.12  # s that a life lasts after its first acknowledgement


class Payment(Event):
    amount: float


def main() -> None:
    trials = int(next((a for a in sys.argv[1:] if a.isdigit()), TRIALS))
    with tempfile.TemporaryDirectory() as folder:
        found = run(trials, Path(folder) / "crash" / "log.db", None)
    print(json.dumps({"crash": found}, indent=2))


def run(trials: int, path: Path, url: str | None, seed: int = 0) -> dict[str, int]:
    """Kill a process so often; after each death open its log, and compare it with what the dead one had said."""
    rng = random.Random(seed)
    said: set[str] = set()
    lost = 0
    starts = [0] * WRITERS
    for _ in range(trials):
        acknowledged = _life(path, url, starts, rng.uniform(0, LONGEST))
        said |= acknowledged
        with EventLog(path, WallClock(), [Payment], url=url) as log:
            there = log.read(Payment)["event_id"].to_pylist()
        lost += len(said - set(there))
        for event_id in acknowledged:
            writer, number = map(int, event_id.split("-"))
            starts[writer] = max(starts[writer], number - AGAIN)
    with EventLog(path, WallClock(), [Payment], url=url) as log:
        log.check()
        there = log.read(Payment)["event_id"].to_pylist()
    return {"kills": trials, "acknowledged": len(said), "lost": lost, "duplicates": len(there) - len(set(there))}


def _life(path: Path, url: str | None, starts: list[int], seconds: float) -> set[str]:
    """What a process said was acknowledged until it was killed."""
    command = [sys.executable, "-m", "benchmarks.crash", "--write", str(path), url or "", *map(str, starts)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    assert writer.stdout is not None
    heard = os.read(writer.stdout.fileno(), 1 << 16)
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([writer.stdout], [], [], left)[0]:
            heard += os.read(writer.stdout.fileno(), 1 << 16)
    writer.send_signal(signal.SIGKILL)
    heard += writer.communicate()[0]
    return set(heard.decode().split("\n")[:-1])  # what follows the last line end was cut off


def write(path: Path, url: str | None, starts: list[int]) -> None:
    """Append until somebody ends it; each id is said once it is acknowledged."""
    log = EventLog(path, WallClock(), [Payment], url=url)

    def one(writer: int, number: int) -> None:
        while True:
            event_id = f"{writer}-{number}"
            log.append([Payment(event_id=event_id, event_timestamp=number, amount=1.0)])
            os.write(1, f"{event_id}\n".encode())
            number += 1

    threads = [threading.Thread(target=one, args=(i, start)) for i, start in enumerate(starts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    if "--write" in sys.argv:
        _, _, path, url, *starts = sys.argv
        write(Path(path), url or None, [max(0, int(start)) for start in starts])
    else:
        main()
