"""The FULL world of payments: how long a hundred and eighty days of a small bank take to live through.

Run: make bench, or python -m benchmarks.world
"""

import json
import resource
import time

from common.clock import DAY
from systems.fraud.config import FULL
from systems.fraud.data import Payment, world


def main() -> None:
    start = time.perf_counter()
    made = world(FULL, 0)
    drawn = time.perf_counter() - start
    payments = 0
    for day in range(FULL.days):
        payments += sum(isinstance(a.event, Payment) for a in made.arrivals(FULL.start + (day + 1) * DAY))
    seconds = time.perf_counter() - start
    figures = {
        "payments": payments,
        "days": FULL.days,
        "drawn_seconds": round(drawn, 1),
        "seconds": round(seconds, 1),
        "target_seconds": 60,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(json.dumps({"world": figures}, indent=2))


if __name__ == "__main__":
    main()
