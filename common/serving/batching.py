"""Gathers concurrent calls into micro-batches: one thread works, an event loop waits."""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from common.clock import MILLISECOND, SECOND, stopwatch
from common.errors import DeadlineExceeded, Unavailable
from common.serving.resilience import Deadline

C = TypeVar("C")
R = TypeVar("R")
PATIENCE = 2 * MILLISECOND  # at most, with those who were answered last


@dataclass(eq=False)
class _Waiting(Generic[C, R]):
    call: C
    rows: int
    deadline: Deadline
    answer: "asyncio.Future[R]" = field(repr=False)


class Batcher(Generic[C, R]):
    """Calls wait while the thread works; when it is done, all that wait are the next batch, up to `rows` of rows.

    Caller i hears answer i, or the error that stands in its place. A caller who has gone, or whose deadline is over
    before its batch begins, costs no work. A call with more than `rows` is a batch of its own.
    """

    def __init__(
        self,
        work: Callable[[Sequence[C]], Sequence[R | Exception]],
        rows: int,
        name: str,
        loop: asyncio.AbstractEventLoop,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        """`work` answers each call of a batch, in order; an error that it raises is everybody's. `loop` waits.

        `settle` is what the thread does once the callers have been told.
        """
        self._work, self._rows, self._name, self._settle = work, rows, name, settle
        self._waiting: queue.SimpleQueue[_Waiting[C, R] | None] = queue.SimpleQueue()
        self._kept: _Waiting[C, R] | None = None  # did not fit into the batch before
        self._loop = loop
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def ask(self, call: C, rows: int, deadline: Deadline) -> R:
        """Raises what `work` says of this call, DeadlineExceeded, and Unavailable once it is closed."""
        if self._is_closed:
            raise Unavailable(f"{self._name}: is closed")
        answer: asyncio.Future[R] = self._loop.create_future()
        self._waiting.put(_Waiting(call, rows, deadline, answer))
        timer = self._loop.call_later(deadline.left() / SECOND, _expire, answer, self._name)
        try:
            return await answer
        finally:
            timer.cancel()

    def close(self) -> None:
        """What waits is answered first."""
        self._is_closed = True
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_last, expected, took = False, 1, 0
        while not is_last:
            batch, is_last = self._gather(expected, took)
            if not batch:
                continue
            start = stopwatch()
            try:
                answers = self._work([one.call for one in batch])
            except BaseException as error:  # without its only thread, nobody would ever be answered again
                wrong = error if isinstance(error, Exception) else Unavailable(f"{self._name}: {error!r}")
                answers = [wrong] * len(batch)
            took = min(stopwatch() - start, PATIENCE)
            expected = len(batch) + self._waiting.qsize()
            self._loop.call_soon_threadsafe(_deliver, batch, answers)
            with suppress(Exception):  # nobody is left to hear of it
                self._settle()

    def _gather(self, expected: int, patience: int) -> tuple[list[_Waiting[C, R]], bool]:
        """Those that wait, and those who were answered last, if they ask again before `patience` us are over."""
        batch: list[_Waiting[C, R]] = []
        rows, until = 0, 0
        while rows < self._rows:
            if batch and len(batch) >= expected and self._waiting.empty():
                break
            one: _Waiting[C, R] | None
            if self._kept is not None:
                one, self._kept = self._kept, None
            else:
                try:
                    one = self._waiting.get(timeout=max(0, until - stopwatch()) / SECOND if batch else None)
                except queue.Empty:
                    break
                if one is None:
                    return batch, True
            if one.answer.done() or not one.deadline.left():
                continue  # its timer answers
            if batch and rows + one.rows > self._rows:
                self._kept = one
                break
            until = until or stopwatch() + patience
            batch.append(one)
            rows += one.rows
        return batch, False


def _deliver(batch: Sequence[_Waiting[C, R]], answers: Sequence[R | Exception]) -> None:
    for one, answer in zip(batch, answers, strict=True):
        if one.answer.done():
            continue
        if isinstance(answer, Exception):
            one.answer.set_exception(answer)
        else:
            one.answer.set_result(answer)


def _expire(answer: "asyncio.Future[R]", name: str) -> None:
    if not answer.done():
        answer.set_exception(DeadlineExceeded(f"{name}: the deadline is over: retry, with the same ids"))
