"""Log lines: one JSON object each, bounded, and no reason to stop when nobody reads them."""

import io
import json

from common.clock import SECOND, SimulatedClock
from common.monitoring.logs import PER_SECOND, Logs


class Closed(io.StringIO):
    tried = 0

    def write(self, text: str) -> int:
        self.tried += 1
        raise BrokenPipeError


def test_a_line_is_one_json_object_with_its_time() -> None:
    out = io.StringIO()
    Logs(SimulatedClock(7), out).say("note", system="shop", message="two\nlines")
    assert json.loads(out.getvalue()) == {"timestamp": 7, "event": "note", "system": "shop", "message": "two\nlines"}
    assert out.getvalue().count("\n") == 1


def test_a_flood_is_counted_and_not_written() -> None:
    out, now = io.StringIO(), [0]
    logs = Logs(SimulatedClock(0), out, lambda: now[0])
    for _ in range(10 * PER_SECOND):
        logs.say("refused")
    assert out.getvalue().count("\n") == PER_SECOND
    now[0] += SECOND
    logs.say("refused")
    assert json.loads(out.getvalue().splitlines()[-1])["dropped"] == 9 * PER_SECOND


def test_nobody_who_reads_is_no_reason_to_stop() -> None:
    out = Closed()
    logs = Logs(SimulatedClock(0), out)
    logs.say("note")
    logs.say("note")
    assert out.tried == 2
