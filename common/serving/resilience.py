"""What keeps a slow or dead part from taking the rest with it: deadline, breaker, bulkhead, retry budget, limiter.

They wrap one another from the outside in: `Breaker.call`, then `retry`, then `Bulkhead.run`: a circuit that is open is
not worth asking again, and one that waits for its probe needs the probe to end.
"""

import math
import queue
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, Literal, Self, TypeAlias, TypeVar

from common.clock import MILLISECOND, SECOND, stopwatch
from common.errors import DeadlineExceeded, Overloaded, Unavailable

T = TypeVar("T")
Now: TypeAlias = Callable[[], int]  # monotonic us
State: TypeAlias = Literal["closed", "open", "half-open"]

CUT = 0.9  # of the limit, each time it proved too high; 0.5 the first time, since it doubled until then
ROOM = 0.8  # of the target: between the two the limit rests, otherwise half of the answers come just too late
MEMORY = SECOND  # of busy time, that the drain rate is measured over
LONGEST = 30 * SECOND  # that a shed caller is told to stay away
TOKEN = 1_000  # thousandths are exact where sums of 0.1 are not


@dataclass(frozen=True, slots=True)
class Deadline:
    """When an answer is worth nothing any more; it travels with its request."""

    at: int  # us, by the clock that made it: it means nothing in another process
    _now: Now = stopwatch

    @classmethod
    def after(cls, us: int, now: Now = stopwatch) -> Self:
        start = cls(0, now)
        return cls(start._now() + us, now)

    def left(self) -> int:
        """us, 0 once it is over."""
        return max(0, self.at - self._now())

    @property
    def expired(self) -> bool:
        return not self.left()


class Breaker:
    """Stops asking a dependency that keeps failing, and lets one caller at a time find out whether it is back.

    Circuit breaker (Nygard 2007, Release It!). Threads may share it. Only a call's own era counts: one that began
    before the last change of state changes nothing when it ends.
    """

    def __init__(
        self,
        name: str,
        *,
        failures: int = 3,
        pause: int = SECOND,
        longest: int = 5 * SECOND,
        catch: tuple[type[Exception], ...] = (Unavailable, DeadlineExceeded, OSError),
        on_change: Callable[[State], None] | None = None,
        now: Now = stopwatch,
    ) -> None:
        """Opens after so many `failures` in a row, for `pause` us, doubled by each failed probe up to `longest`.

        Only what `catch` names is a failure: any other exception is an answer. `on_change` hears of each state in
        order, under the breaker's lock: it must be quick and not call the breaker.
        """
        self.name = name
        self._most, self._first, self._longest = failures, pause, longest
        self._catch, self._on_change, self._now = catch, on_change, now
        self._lock = threading.Lock()
        self._state: State = "closed"
        self._era = 0  # changes of state
        self._failures = 0  # in a row
        self._pause = pause
        self._until = 0

    @property
    def state(self) -> State:
        """Half-open only while a probe is under way; open until somebody asks after the pause."""
        return self._state

    def call(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises; raises Unavailable without calling it while the circuit is open."""
        era = self._enter()
        try:
            answer = work()
        except self._catch:
            self._leave(era, self._fail)
            raise
        except Exception:
            self._leave(era, self._succeed)
            raise
        except BaseException:
            self._leave(era, self._forget)
            raise
        self._leave(era, self._succeed)
        return answer

    def _enter(self) -> int:
        with self._lock:
            if self._state == "closed":
                return self._era
            left = self._until - self._now()
            if self._state == "open" and left <= 0:
                self._become("half-open")
                return self._era
            probing = self._state == "half-open"
        why = "a probe is under way" if probing else f"next probe in {left / SECOND:.1f} s"
        raise Unavailable(f"{self.name}: circuit open, {why}")

    def _leave(self, era: int, settle: Callable[[], None]) -> None:
        with self._lock:
            if era == self._era:
                settle()

    def _succeed(self) -> None:
        self._failures = 0
        if self._state == "half-open":
            self._pause = self._first
            self._become("closed")

    def _fail(self) -> None:
        self._failures += 1
        if self._state == "half-open":
            self._pause = min(2 * self._pause, self._longest)
        elif self._failures < self._most:
            return
        self._until = self._now() + self._pause
        self._become("open")

    def _forget(self) -> None:
        """A caller who was cancelled learned nothing: the next one may probe at once."""
        if self._state == "half-open":
            self._become("open")

    def _become(self, state: State) -> None:
        self._state = state
        self._era += 1
        if self._on_change is not None:
            with suppress(Exception):  # a metric that cannot be counted must not leave a probe behind
                self._on_change(state)


class _Job(Generic[T]):
    __slots__ = ("answer", "done", "error", "given_up", "work")
    answer: T

    def __init__(self, work: Callable[[], T]) -> None:
        self.work = work
        self.error: BaseException | None = None
        self.given_up = False
        self.done = threading.Lock()  # held until it ended; a tenth of what a Future costs
        self.done.acquire()


class Bulkhead:
    """Runs blocking calls in one thread of its own, so that a frozen dependency costs that thread and nobody's wait."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job[object] | None] = queue.SimpleQueue()
        self._running: _Job[object] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def run(self, work: Callable[[], T], timeout: int) -> T:
        """What `work` returns or raises, at most `timeout` us from now; callers are served in order of arrival.

        Raises DeadlineExceeded when that is over: what had begun goes on, and what becomes of it is thrown away.
        Raises Unavailable at once while such a call is still going on, and after `close`.
        """
        if timeout <= 0:
            raise DeadlineExceeded(f"{self.name}: no time was left, not called")
        job = _Job(work)
        with self._lock:
            if self._closed:
                raise Unavailable(f"{self.name}: closed")
            if self._running is not None and self._running.given_up:
                raise Unavailable(f"{self.name}: still busy with a call that was given up")
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
                self._thread.start()
            self._jobs.put(job)  # type: ignore[arg-type]
        if not job.done.acquire(timeout=timeout / SECOND):
            self._give_up(job, timeout)
        if job.error is not None:
            raise job.error
        return job.answer

    def close(self) -> None:
        """Refuse further calls; the thread ends after those that wait."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)

    def _give_up(self, job: _Job[T], timeout: int) -> None:
        with self._lock:
            if job.done.acquire(blocking=False):  # it ended meanwhile
                return
            job.given_up = True
            if job is self._running:
                with suppress(queue.Empty):
                    while True:
                        if (waiting := self._jobs.get_nowait()) is not None:
                            waiting.error = Unavailable(f"{self.name}: the call before it was given up")
                            waiting.done.release()
                if self._closed:
                    self._jobs.put(None)
        raise DeadlineExceeded(f"{self.name}: must answer within {timeout / MILLISECOND:g} ms")

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            with self._lock:
                if job.given_up:
                    continue
                self._running = job
            try:
                job.answer = job.work()
            except BaseException as error:
                job.error = error
            with self._lock:
                self._running = None
                job.done.release()


class RetryBudget:
    """Keeps retries a small share of the traffic: when most calls fail, more calls are no help.

    Token bucket, full at first (retry throttling in gRPC, proposal A6; Finagle's RetryBudget). Threads may share it.
    """

    def __init__(self, ratio: float = 0.1, most: int = 10) -> None:
        """`ratio` (to three digits) retries for each success, and at most `most` saved up."""
        self._gain, self._most = round(ratio * TOKEN), most * TOKEN
        self._tokens = self._most
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        with self._lock:
            self._tokens = min(self._tokens + self._gain, self._most)

    def take(self) -> bool:
        """Whether there may be one retry."""
        with self._lock:
            may = self._tokens >= TOKEN
            self._tokens -= TOKEN if may else 0
        return may


def _sleep(us: int) -> None:
    threading.Event().wait(us / SECOND)


def retry(
    work: Callable[[], T],
    deadline: Deadline,
    budget: RetryBudget,
    *,
    attempts: int = 3,
    backoff: int = 5 * MILLISECOND,
    jitter: Callable[[], float] = random.random,
    sleep: Callable[[int], None] = _sleep,
) -> T:
    """What `work` returns, tried again while it raises Unavailable and there are time, attempts and budget for it.

    Waits from 0 to `backoff` us, doubled each time ("full jitter"). Raises what the last attempt did, or
    DeadlineExceeded where no time was left for another.
    """
    for attempt in range(attempts):
        if deadline.expired:
            break
        try:
            answer = work()
        except Unavailable:
            pause = int(jitter() * backoff * 2**attempt)
            if attempt + 1 == attempts or pause >= deadline.left() or not budget.take():
                raise
            sleep(pause)
        else:
            budget.succeeded()
            return answer
    raise DeadlineExceeded("deadline: no time was left to call")


class Limiter:
    """Admits so many rows in flight that they are answered within a target, and sheds the rest early.

    Additive increase, multiplicative decrease (Chiu & Jain 1989), after a slow start as in TCP (RFC 5681), steered by
    latency as in Vegas (Brakmo 1994) and Netflix's concurrency-limits. For the thread of one event loop only: there is
    no lock.
    """

    def __init__(
        self,
        target: int,
        *,
        least: int = 16,
        most: int = 100_000,
        jitter: Callable[[], float] = random.random,
        now: Now = stopwatch,
    ) -> None:
        """`target`: us from admission to answer; the limit starts at `least` rows and stays within `most`."""
        self.limit = float(least)
        self.in_flight = 0  # rows
        self._target, self._least, self._most = target, least, most
        self._jitter, self._now = jitter, now
        self._starting = True
        self._cut = self._last = self._now()
        self._drained = self._busy = 0.0  # rows, us; the older, the less they weigh

    @property
    def is_full(self) -> bool:
        """Whether nobody would be let in."""
        return self.in_flight > 0 and self.in_flight >= self.limit

    def admit(self, rows: int) -> None:
        """Count a request in; raises Overloaded where it would wait too long. Whoever is alone always gets in."""
        if not self.in_flight:
            self._last = self._now()  # idle time says nothing about how fast it drains
        elif self.in_flight + rows > self.limit:
            raise Overloaded(
                f"rows in flight: must be <= {self.limit:.0f}, got {self.in_flight} and {rows} more",
                self.retry_after() / SECOND,
            )
        self.in_flight += rows

    def done(self, rows: int, latency: int, ok: bool) -> None:
        """Count an admitted request out, `latency` us later; not `ok`: time or room ran out, not that it was bad."""
        at = self._now()
        is_used = 2 * self.in_flight >= self.limit
        self.in_flight -= rows
        keep = math.exp((self._last - at) / MEMORY)
        self._drained = keep * self._drained + rows
        self._busy = keep * self._busy + at - self._last
        self._last = at
        if at - latency < self._cut:  # admitted before the last cut, so it cannot tell whether that was enough
            return
        if not ok or latency > self._target:
            self.limit = max(self._least, self.limit * (0.5 if self._starting else CUT))
            self._cut = at
            self._starting = False
        elif is_used and latency <= ROOM * self._target:  # one that nobody meets must not drift from what was tried
            step = rows if self._starting else min(1.0, rows / self.limit) * math.sqrt(self.limit) / 2
            self.limit = min(self._most, self.limit + step)

    def retry_after(self) -> float:
        """us until what is in flight has drained, +-25 % so that those who are shed do not come back together."""
        drain = self.in_flight * self._busy / self._drained if self._drained else self._target
        return min(drain, LONGEST) * (0.75 + 0.5 * self._jitter())
