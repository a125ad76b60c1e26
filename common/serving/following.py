"""Live models that hear of events, such as an index of new products: each process follows the log."""

import threading
from collections.abc import Callable
from typing import Any

from common.data.log import EventLog
from common.errors import PlatformError
from common.serving.live import Live
from common.system import AnySystem

OFTEN = 0.2  # s, between two looks at the log: what is told is to be found within a second
PART = 2_000  # positions of the log that are told at once
REST = 0.05  # s, after each part that a version is told while others answer


def bring(system: AnySystem, log: EventLog, model: Any, after: int = 0, rest: Callable[[], None] = lambda: None) -> int:
    """Tell a model what the log holds behind a position; returns up to which position it now knows.

    `rest` is called again and again, so that others are not kept from their work.
    """
    head = log.head().position
    while system.hears is not None and after < head:
        until = min(after + PART, head)
        new = log.read(system.hears, after, until)
        if new.num_rows:
            model.hear(new)
            rest()
        after = until
    return head


class Follower:
    """Tells every live version what is new, in a thread of its own; one of a system that hears nothing does nothing."""

    def __init__(self, system: AnySystem, log: EventLog, say: Callable[[str], None]) -> None:
        self._system, self._log, self._say = system, log, say
        self._heads: dict[int, int] = {}  # position up to which a model knows the log, by its identity
        self._problem = ""
        self._new, self._rest, self._closed = threading.Event(), threading.Event(), False
        self._thread: threading.Thread | None = None

    def adopt(self, model: Any) -> None:
        """Before it answers, a model is told all there is; to be told a part of it again does no harm."""

        def rest() -> None:
            if self._thread is not None:  # else nobody is at work here yet
                self._rest.wait(REST)

        self._heads[id(model)] = bring(self._system, self._log, model, rest=rest)

    def watch(self, live: Live) -> None:
        """Until `close`; call it once."""
        if self._system.hears is not None:
            self._thread = threading.Thread(
                target=self._run, args=[live], name=f"{self._system.name} follower", daemon=True
            )
            self._thread.start()

    def notice(self) -> None:
        """There is something new, for those who do not want to wait until it is looked for."""
        self._new.set()

    def close(self) -> None:
        self._closed = True
        self._new.set()
        self._rest.set()
        if self._thread is not None:
            self._thread.join()

    def step(self, live: Live) -> None:
        """Tell each live version what it has not heard; raises what one of them raises, when all have been told."""
        models = {id(loaded.model): loaded.model for loaded in live.current.models.values()}
        heads = {key: self._heads.get(key, 0) for key in models}
        problem: Exception | None = None
        for key, model in models.items():
            try:
                heads[key] = bring(self._system, self._log, model, heads[key])
            except Exception as error:  # whatever it is, the others are to hear
                problem = error
        self._heads = heads
        if problem is not None:
            raise problem

    def try_step(self, live: Live) -> None:
        """The same; whatever happens is said once, and tried again."""
        problem = ""
        try:
            self.step(live)
        except Exception as error:  # whatever it is, what is told later is to be heard
            problem = f"{error}" if isinstance(error, PlatformError) else repr(error)
        if problem != self._problem:
            self._say(f"{self._system.name}: {problem or 'versions hear what is new again'}")
        self._problem = problem

    def _run(self, live: Live) -> None:
        while not self._closed:
            self.try_step(live)
            self._new.wait(OFTEN)
            self._new.clear()
