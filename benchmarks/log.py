"""How many events a second the log acknowledges, beside what the disk and the interpreter allow.

Run: make bench, or python -m benchmarks.log [--json]
"""

import json
import os
import queue
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median

from common.clock import WallClock
from common.data.log import EventLog
from common.schema import Event

WRITERS = 16  # threads
IN_FLIGHT = 8  # calls of one event that each writer has on their way
SECONDS = 3.0
PAGE = 4096  # bytes
SLOW = 0.002  # s, a sync of a network disk


class Payment(Event):
    card_id: str
    amount: float


def median_sync(folder: Path, times: int = 1_000) -> float:
    """Seconds for the least that an event needs: a page at the end of a file, and a sync."""
    file = os.open(folder / "sync", os.O_RDWR | os.O_CREAT)
    took = []
    for i in range(times):
        os.pwrite(file, bytes(PAGE), i * PAGE)
        start = time.perf_counter()
        os.fdatasync(file)
        took.append(time.perf_counter() - start)
    os.close(file)
    return median(took)


def acknowledged(log: EventLog, in_flight: int) -> float:
    """Events per second."""

    def write(which: int, stop: float) -> int:
        waiting: deque[Callable[[], object]] = deque()
        count = 0
        while time.perf_counter() < stop:
            event = Payment(event_id=f"{which}-{stop}-{count}", event_timestamp=count, card_id="card-42", amount=12.5)
            count += 1
            if in_flight == 1:
                log.append([event])
                continue
            waiting.append(log.submit([event]).result)
            if len(waiting) == in_flight:
                waiting.popleft()()
        for result in waiting:
            result()
        return count

    return _per_second(write)


def interpreter(folder: Path) -> float:
    """Calls per second of as many threads that wait for one which does nothing but sync once for all of them."""
    calls: queue.SimpleQueue[threading.Lock] = queue.SimpleQueue()
    file = os.open(folder / "bare", os.O_RDWR | os.O_CREAT)

    def sync() -> None:
        size = 0
        while True:
            group = [calls.get()]
            try:
                while len(group) < WRITERS:
                    group.append(calls.get(timeout=0.001))
            except queue.Empty:
                pass
            os.pwrite(file, bytes(PAGE), size)
            size += PAGE
            os.fdatasync(file)
            for call in group:
                call.release()

    def write(which: int, stop: float) -> int:
        count = 0
        while time.perf_counter() < stop:
            call = threading.Lock()
            call.acquire()
            calls.put(call)
            call.acquire()
            count += 1
        return count

    threading.Thread(target=sync, daemon=True).start()
    return _per_second(write)


def _per_second(write: Callable[[int, float], int]) -> float:
    counts = [0] * WRITERS
    start = time.perf_counter()

    def run(which: int) -> None:
        counts[which] = write(which, start + SECONDS)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


class SlowDisk:
    def __init__(self) -> None:
        self.took: list[float] = []

    def __call__(self, file: int) -> None:
        start = time.perf_counter()
        os.fdatasync(file)
        time.sleep(max(0.0, start + SLOW - time.perf_counter()))
        self.took.append(time.perf_counter() - start)


def measure() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sync = median_sync(folder)
        with EventLog(folder / "fast" / "log.db", WallClock(), [Payment]) as log:
            one, many = acknowledged(log, 1), acknowledged(log, IN_FLIGHT)
        disk = SlowDisk()
        with EventLog(folder / "slow" / "log.db", WallClock(), [Payment], sync=disk) as log:
            slow = acknowledged(log, 1)
        bare = interpreter(folder)
        sync = median([sync, median_sync(folder)])
    return {
        "fdatasync_us_p50": sync * 1e6,
        "writers": WRITERS,
        "one_in_flight_per_second": one,
        "share_of_disk_limit": one * sync / WRITERS,
        "target_share_of_disk_limit": 0.7,
        "threads_and_sync_alone_per_second": bare,
        "slow_disk_fdatasync_us_p50": median(disk.took) * 1e6,
        "slow_disk_per_second": slow,
        "slow_disk_share_of_limit": slow * median(disk.took) / WRITERS,
        "eight_in_flight_per_second": many,
        "target_eight_in_flight_per_second": 10_000,
    }


def main() -> None:
    found = measure()
    if "--json" in sys.argv:
        print(json.dumps({"log": found}, indent=2))
        return
    print("log")
    for key, value in found.items():
        print(f"  {key:36} {value:12,.3f}")


if __name__ == "__main__":
    main()
