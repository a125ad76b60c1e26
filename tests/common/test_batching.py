"""Concurrent calls become micro-batches, and nobody notices but by the speed."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.clock import MILLISECOND, SECOND
from common.errors import BadRecord, DeadlineExceeded, Unavailable
from common.serving.batching import Batcher
from common.serving.resilience import Deadline

LONG = 60 * SECOND
ROWS = 8


class Asked(NamedTuple):
    number: int
    rows: int
    fails: bool = False


class Worker:
    """Answers a call with its number; remembers its batches. The first one waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[Asked]] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, calls: Sequence[Asked]) -> Sequence[int | Exception]:
        self.batches.append(list(calls))
        self.begun.set()
        assert self.go.wait(10)
        return [BadRecord(str(c.number)) if c.fails else c.number for c in calls]

    @property
    def worked_on(self) -> list[int]:
        return [call.number for batch in self.batches for call in batch]


def run(work: Callable[[Sequence[Asked]], Any], scene: Callable[[Batcher[Asked, int]], Any]) -> Any:
    async def main() -> Any:
        batcher = Batcher(work, ROWS, "batch", asyncio.get_running_loop())
        try:
            return await scene(batcher)
        finally:
            await asyncio.to_thread(batcher.close)

    return asyncio.run(main())


async def begun(worker: Worker, batcher: Batcher[Asked, int]) -> "asyncio.Task[int]":
    """A call that keeps the thread busy, so that all others wait."""
    first = asyncio.create_task(batcher.ask(Asked(-1, 1), 1, Deadline.after(LONG)))
    assert await asyncio.to_thread(worker.begun.wait, 10)
    return first


calls = st.lists(
    st.tuples(st.integers(1, 12), st.booleans(), st.sampled_from(["waits", "leaves", "is late"])), max_size=30
)


@settings(max_examples=50, deadline=None)
@given(calls)
def test_each_caller_hears_its_own_answer_whoever_leaves_fails_or_is_late(said: list[tuple[int, bool, str]]) -> None:
    worker = Worker()

    async def scene(batcher: Batcher[Asked, int]) -> list[Any]:
        first = await begun(worker, batcher)
        tasks = []
        for number, (rows, fails, fate) in enumerate(said):
            deadline = Deadline.after(0 if fate == "is late" else LONG)
            tasks.append(asyncio.create_task(batcher.ask(Asked(number, rows, fails), rows, deadline)))
        await asyncio.sleep(0)
        for task, (_, _, fate) in zip(tasks, said, strict=True):
            if fate == "leaves":
                task.cancel()
        await asyncio.sleep(0.001)
        worker.go.set()
        assert await first == -1
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = run(worker, scene)
    for number, ((_, fails, fate), answer) in enumerate(zip(said, answers, strict=True)):
        if fate == "leaves":
            assert isinstance(answer, asyncio.CancelledError)
        elif fate == "is late":
            assert isinstance(answer, DeadlineExceeded)
        elif fails:
            assert isinstance(answer, BadRecord)
            assert str(answer) == str(number)
        else:
            assert answer == number
    waited = [number for number, (_, _, fate) in enumerate(said) if fate == "waits"]
    assert worker.worked_on == [-1, *waited], "in order of arrival, and no work for whoever does not wait"
    for batch in worker.batches:
        assert len(batch) == 1 or sum(call.rows for call in batch) <= ROWS


def test_all_that_wait_are_the_next_batch() -> None:
    worker = Worker()

    async def scene(batcher: Batcher[Asked, int]) -> None:
        first = await begun(worker, batcher)
        rest = [asyncio.create_task(batcher.ask(Asked(i, 1), 1, Deadline.after(LONG))) for i in range(5)]
        await asyncio.sleep(0.001)
        worker.go.set()
        await asyncio.gather(first, *rest)

    run(worker, scene)
    assert [len(batch) for batch in worker.batches] == [1, 5]


def test_a_call_that_waits_in_the_queue_uses_up_its_deadline() -> None:
    worker = Worker()

    async def scene(batcher: Batcher[Asked, int]) -> None:
        first = await begun(worker, batcher)
        with pytest.raises(DeadlineExceeded, match="batch: the deadline is over"):
            await batcher.ask(Asked(0, 1), 1, Deadline.after(5 * MILLISECOND))
        worker.go.set()
        await first

    run(worker, scene)
    assert worker.worked_on == [-1]


def test_an_error_of_the_whole_batch_is_everybodys_and_the_next_batch_is_answered() -> None:
    broken = [True]

    def work(calls: Sequence[Asked]) -> Sequence[int]:
        if broken:
            broken.pop()
            raise KeyboardInterrupt
        return [call.number for call in calls]

    async def scene(batcher: Batcher[Asked, int]) -> int:
        with pytest.raises(Unavailable, match="batch: KeyboardInterrupt"):
            await batcher.ask(Asked(0, 1), 1, Deadline.after(LONG))
        return await batcher.ask(Asked(1, 1), 1, Deadline.after(LONG))

    assert run(work, scene) == 1


def test_what_waits_is_answered_before_it_closes_and_nothing_is_taken_after() -> None:
    worker = Worker()

    async def scene(batcher: Batcher[Asked, int]) -> list[int]:
        first = await begun(worker, batcher)
        waiting = asyncio.create_task(batcher.ask(Asked(0, 1), 1, Deadline.after(LONG)))
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        await asyncio.sleep(0.01)
        with pytest.raises(Unavailable, match="is closed"):
            await batcher.ask(Asked(1, 1), 1, Deadline.after(LONG))
        worker.go.set()
        await closing
        return [await first, await waiting]

    assert run(worker, scene) == [-1, 0]
