"""Structured logs: one JSON object a line, never what a caller sent, and never so many that they are the load."""

import json
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from common.clock import SECOND, Clock, stopwatch

PER_SECOND = 50  # lines; the rest is counted


class Logs:
    """Threads may share it."""

    def __init__(self, clock: Clock, to: TextIO | None = None, now: Callable[[], int] = stopwatch) -> None:
        self._clock, self._to, self._now = clock, to or sys.stderr, now
        self._lock = threading.Lock()
        self._window, self._said, self._dropped = 0, 0, 0

    def say(self, event: str, **fields: str | int | float | None) -> None:
        """One line; above 50 a second they are counted, and the next line that is written says how many."""
        with self._lock:
            window = self._now() // SECOND
            if window != self._window:
                self._window, self._said = window, 0
            if self._said >= PER_SECOND:
                self._dropped += 1
                return
            self._said += 1
            line = {"timestamp": self._clock.now(), "event": event, **fields}
            if self._dropped:
                line["dropped"], self._dropped = self._dropped, 0
            with suppress(OSError, ValueError):  # nobody reads it any more: no reason to stop answering
                print(json.dumps(line), file=self._to, flush=True)
