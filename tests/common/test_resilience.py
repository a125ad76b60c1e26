"""What a slow or dead part may cost, and that it is let back in. No test sleeps: time is a number that they advance."""

import heapq
import threading
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext, suppress
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common.clock import HOUR, MILLISECOND, SECOND, SimulatedClock
from common.errors import BadRecord, DeadlineExceeded, Overloaded, Unavailable
from common.serving.resilience import Breaker, Bulkhead, Deadline, Limiter, RetryBudget, State, retry


def fails() -> None:
    raise Unavailable("down")


def test_a_deadline_counts_down_and_stays_over() -> None:
    clock = SimulatedClock(100)
    deadline = Deadline.after(50, clock.now)
    assert (deadline.left(), deadline.expired) == (50, False)
    clock.advance(149)
    assert (deadline.left(), deadline.expired) == (1, False)
    clock.advance(500)
    assert (deadline.left(), deadline.expired) == (0, True)


# --- breaker


def test_a_circuit_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker("redis", failures=2, now=SimulatedClock(0).now)
    for work in (fails, int, fails):
        with pytest.raises(Unavailable) if work is fails else nullcontext():
            breaker.call(work)
    assert breaker.state == "closed"
    with pytest.raises(Unavailable, match="down"):
        breaker.call(fails)
    with pytest.raises(Unavailable, match=r"redis: circuit open, next probe in 1\.0 s"):
        breaker.call(int)


def test_an_error_that_is_not_a_failure_is_an_answer() -> None:
    breaker = Breaker("redis", failures=1, now=SimulatedClock(0).now)

    def refuses() -> None:
        raise BadRecord("amount: must be > 0")

    for _ in range(3):
        with pytest.raises(BadRecord):
            breaker.call(refuses)
    assert breaker.state == "closed"


def test_the_pause_doubles_up_to_its_bound_and_starts_over_after_a_success() -> None:
    clock = SimulatedClock(0)
    breaker = Breaker("redis", failures=1, pause=10, longest=35, now=clock.now)
    for pause in (10, 20, 35, 35):
        with pytest.raises(Unavailable, match="down"):
            breaker.call(fails)
        clock.advance(clock.now() + pause - 1)
        with pytest.raises(Unavailable, match="circuit open"):
            breaker.call(int)
        clock.advance(clock.now() + 1)
    breaker.call(int)
    with pytest.raises(Unavailable, match="down"):
        breaker.call(fails)
    clock.advance(clock.now() + 10)
    assert breaker.call(lambda: 7) == 7


def test_a_success_that_began_before_the_circuit_opened_does_not_close_it() -> None:
    clock = SimulatedClock(0)
    breaker = Breaker("redis", failures=1, pause=10, now=clock.now)

    def overtaken() -> None:
        with pytest.raises(Unavailable, match="down"):
            breaker.call(fails)

    breaker.call(overtaken)
    assert breaker.state == "open"
    with pytest.raises(Unavailable, match="circuit open"):
        breaker.call(int)


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_cancelled_probe_leaves_its_place_to_the_next(end: type[BaseException]) -> None:
    clock = SimulatedClock(0)
    breaker = Breaker("redis", failures=1, pause=10, now=clock.now)
    with pytest.raises(Unavailable):
        breaker.call(fails)
    clock.advance(10)

    def cancelled() -> None:
        raise end

    with pytest.raises(end):
        breaker.call(cancelled)
    assert breaker.call(lambda: 7) == 7
    assert breaker.state == "closed"


def test_changes_are_told_in_order_and_a_listener_that_fails_stops_nothing() -> None:
    clock, told = SimulatedClock(0), list[State]()

    def listen(state: State) -> None:
        told.append(state)
        raise ValueError

    breaker = Breaker("redis", failures=1, pause=10, now=clock.now, on_change=listen)
    with pytest.raises(Unavailable):
        breaker.call(fails)
    clock.advance(10)
    breaker.call(int)
    assert told == ["open", "half-open", "closed"]


def test_of_many_threads_one_probes_and_the_others_are_refused_at_once() -> None:
    clock = SimulatedClock(0)
    breaker = Breaker("redis", failures=1, pause=10, now=clock.now)
    with pytest.raises(Unavailable):
        breaker.call(fails)
    clock.advance(10)
    probing, go, together = threading.Event(), threading.Event(), threading.Barrier(8)
    probes, refused = list[int](), list[str]()

    def probe() -> None:
        probes.append(1)
        probing.set()
        go.wait()

    def caller() -> None:
        together.wait()
        try:
            breaker.call(probe)
        except Unavailable as error:
            refused.append(str(error))
            if len(refused) == 7:
                go.set()

    threads = [threading.Thread(target=caller) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(probes) == 1
    assert refused == ["redis: circuit open, a probe is under way"] * 7
    assert breaker.state == "closed"


class Circuit(RuleBasedStateMachine):
    """Calls that overlap in any way, against what the breaker says of itself in one page."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = SimulatedClock(0)
        self.told: list[State] = []
        self.breaker = Breaker("it", failures=3, pause=10, longest=35, now=self.clock.now, on_change=self.told.append)
        self.state: State = "closed"
        self.failures, self.pause, self.until, self.changes = 0, 10, 0, 0
        self.under_way: list[tuple[int, bool, Any]] = []  # changes of state when it began, whether it probes, itself

    def become(self, state: State) -> None:
        self.state = state
        self.changes += 1

    @rule(us=st.integers(1, 40))
    def time_passes(self, us: int) -> None:
        self.clock.advance(self.clock.now() + us)

    @precondition(lambda self: len(self.under_way) < 5)
    @rule()
    def begins(self) -> None:
        call = _Overlapping(self.breaker)
        may = self.state == "closed" or (self.state == "open" and self.clock.now() >= self.until)
        assert call.begun == may
        if may:
            if self.state == "open":
                self.become("half-open")
            self.under_way.append((self.changes, self.state == "half-open", call))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), end=st.sampled_from([None, Unavailable("down"), BadRecord("bad"), KeyboardInterrupt()]))
    def ends(self, data: st.DataObject, end: BaseException | None) -> None:
        i = data.draw(st.integers(0, len(self.under_way) - 1))
        era, probes, call = self.under_way.pop(i)
        call.end(end)
        if era != self.changes:
            return
        if isinstance(end, Unavailable):
            self.failures += 1
            if probes or self.failures == 3:
                self.pause = min(2 * self.pause, 35) if probes else self.pause
                self.until = self.clock.now() + self.pause
                self.become("open")
        elif isinstance(end, KeyboardInterrupt):
            if probes:
                self.become("open")
        else:
            self.failures = 0
            if probes:
                self.pause = 10
                self.become("closed")

    @invariant()
    def agrees(self) -> None:
        assert self.breaker.state == self.state
        assert len(self.told) == self.changes
        assert sum(probes for era, probes, _ in self.under_way if era == self.changes) <= 1

    def teardown(self) -> None:
        for _, _, call in self.under_way:
            call.end(None)


class _Overlapping:
    """A call in a thread of its own, which ends when and how it is told."""

    def __init__(self, breaker: Breaker) -> None:
        self.begun = False
        self._entered, self._go = threading.Event(), threading.Event()
        self._how: BaseException | None = None
        self._raised: BaseException | None = None
        self._thread = threading.Thread(target=self._call, args=(breaker,))
        self._thread.start()
        self._entered.wait()

    def _call(self, breaker: Breaker) -> None:
        try:
            breaker.call(self._work)
        except BaseException as error:
            self._raised = error
        self._entered.set()

    def _work(self) -> None:
        self.begun = True
        self._entered.set()
        self._go.wait()
        if self._how is not None:
            raise self._how

    def end(self, how: BaseException | None) -> None:
        self._how = how
        self._go.set()
        self._thread.join()
        assert self._raised is how


TestCircuit = Circuit.TestCase


# --- bulkhead


def test_a_bulkhead_passes_on_what_work_returns_or_raises() -> None:
    bulkhead = Bulkhead("redis")
    assert bulkhead.run(lambda: threading.current_thread().name, HOUR) == "redis"
    with pytest.raises(BadRecord, match="bad"):
        bulkhead.run(_raise(BadRecord("bad")), HOUR)
    with pytest.raises(SystemExit):
        bulkhead.run(_raise(SystemExit()), HOUR)
    assert bulkhead.run(lambda: 7, HOUR) == 7
    bulkhead.close()
    with pytest.raises(Unavailable, match="redis: closed"):
        bulkhead.run(int, HOUR)


def test_without_time_nothing_is_called() -> None:
    called: list[int] = []
    with pytest.raises(DeadlineExceeded):
        Bulkhead("redis").run(lambda: called.append(1), 0)
    assert not called


@pytest.mark.parametrize("late", [lambda: 3, lambda: fails()])
def test_a_frozen_call_costs_one_thread_and_its_late_end_is_thrown_away(late: Callable[[], object]) -> None:
    bulkhead, thaw, before = Bulkhead("redis"), threading.Event(), set(threading.enumerate())

    def frozen() -> object:
        thaw.wait()
        return late()

    with pytest.raises(DeadlineExceeded, match="redis: must answer within 1 ms"):
        bulkhead.run(frozen, MILLISECOND)
    for _ in range(20):
        with pytest.raises(Unavailable, match="still busy"):
            bulkhead.run(int, HOUR)
    # Which are new, not how many there are: threads of earlier tests may be ending meanwhile.
    assert [thread.name for thread in threading.enumerate() if thread not in before] == ["redis"]
    thaw.set()
    assert _until_served(bulkhead, lambda: 7) == 7
    bulkhead.close()


def test_those_who_wait_behind_a_frozen_call_are_let_go_when_it_is_given_up() -> None:
    bulkhead, thaw, began, said = Bulkhead("redis"), threading.Event(), threading.Event(), list[str]()

    def frozen() -> None:
        began.set()
        thaw.wait()

    def caller(work: Callable[[], object], timeout: int) -> None:
        try:
            bulkhead.run(work, timeout)
        except (Unavailable, DeadlineExceeded) as error:
            said.append(str(error))

    first = threading.Thread(target=caller, args=(frozen, SECOND // 5))
    first.start()
    began.wait()
    others = [threading.Thread(target=caller, args=(int, HOUR)) for _ in range(3)]
    for thread in others:
        thread.start()
    for thread in (first, *others):
        thread.join()
    assert "redis: must answer within 200 ms" in said
    assert len(said) == 4
    assert thaw.is_set() is False
    bulkhead.close()
    thaw.set()


def test_a_caller_who_gave_up_in_the_queue_is_never_served_and_blocks_nobody() -> None:
    bulkhead, go, began, called = Bulkhead("redis"), threading.Event(), threading.Event(), list[str]()

    def slow() -> None:
        began.set()
        go.wait()

    first = threading.Thread(target=bulkhead.run, args=(slow, HOUR))
    first.start()
    began.wait()
    with pytest.raises(DeadlineExceeded):
        bulkhead.run(lambda: called.append("given up"), MILLISECOND)
    go.set()
    first.join()
    bulkhead.run(lambda: called.append("next"), HOUR)
    assert called == ["next"]
    bulkhead.close()


def test_threads_that_share_a_bulkhead_each_get_their_own_answer_one_at_a_time() -> None:
    bulkhead, inside, wrong = Bulkhead("redis"), list[int](), list[object]()

    def work(i: int) -> int:
        inside.append(i)
        wrong.extend(inside[:-1])
        return inside.pop()

    def caller(start: int) -> None:
        for i in range(start, start + 200):
            if bulkhead.run(lambda i=i: work(i), HOUR) != i:  # type: ignore[misc]
                wrong.append(i)

    threads = [threading.Thread(target=caller, args=(1_000 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    bulkhead.close()


def _raise(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def _until_served(bulkhead: Bulkhead, work: Callable[[], int]) -> int:
    """Once what was given up has ended; nobody is told when."""
    while True:
        try:
            return bulkhead.run(work, HOUR)
        except Unavailable:
            threading.Event().wait(0.001)


# --- retries


@given(st.lists(st.booleans()), st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0]), st.integers(0, 5), st.integers(1, 5))
def test_retries_are_never_more_than_their_share_of_the_calls(
    outcomes: list[bool], ratio: float, most: int, attempts: int
) -> None:
    budget, clock = RetryBudget(ratio, most), SimulatedClock(0)
    ends, calls, asked = iter(outcomes), 0, 0

    def work() -> None:
        nonlocal asked
        asked += 1
        if not next(ends, True):
            raise Unavailable("down")

    while asked < len(outcomes):
        calls += 1
        with suppress(Unavailable):
            retry(work, Deadline.after(HOUR, clock.now), budget, attempts=attempts, sleep=lambda us: None)
        assert asked - calls <= most + ratio * calls + 1e-9


def test_a_retry_waits_longer_each_time_and_never_past_the_deadline() -> None:
    clock, slept = SimulatedClock(0), list[int]()

    def sleep(us: int) -> None:
        slept.append(us)
        clock.advance(clock.now() + us)

    budget = RetryBudget(most=100)
    with pytest.raises(Unavailable):
        retry(fails, Deadline.after(75, clock.now), budget, attempts=9, backoff=10, jitter=lambda: 1.0, sleep=sleep)
    assert slept == [10, 20, 40]
    with pytest.raises(DeadlineExceeded):
        retry(fails, Deadline.after(0, clock.now), budget)


def test_only_what_is_unavailable_is_tried_again() -> None:
    asked: list[int] = []

    def refuses() -> None:
        asked.append(1)
        raise DeadlineExceeded("late")

    with pytest.raises(DeadlineExceeded, match="late"):
        retry(refuses, Deadline.after(HOUR), RetryBudget())
    assert asked == [1]


# --- limiter

TARGET = 50 * MILLISECOND
ROWS = 2.5  # per request, on average


class Server:
    """A discrete-event model: one worker that takes what waits, as micro-batches; clients open and closed loop."""

    def __init__(self, *, setup: int = 2_000, row: int = 90, batch: int = 256, adaptive: bool = True) -> None:
        """A batch takes `setup` us and `row` us for each row, of which there are `batch` at most."""
        self.now, self.random, self.slowness = 0, Random(1), 1
        least, most = (16, 100_000) if adaptive else (10**9, 10**9)
        self.limiter = Limiter(TARGET, least=least, most=most, jitter=self.random.random, now=lambda: self.now)
        self.capacity = batch / (setup + batch * row) * SECOND  # rows / s
        self._setup, self._row, self._batch = setup, row, batch
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._waiting: deque[tuple[int, int, Callable[[float | None], None]]] = deque()
        self._count, self._is_busy = 0, False
        self._answered: list[tuple[int, int, int]] = []  # at, rows, latency

    def at(self, when: int, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, what))

    def run(self, until: int) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            what()
        self.now = until

    def poisson(self, load: float, start: int, end: int) -> None:
        """Clients who do not care how others fare, `load` times what the server can do."""

        def arrive() -> None:
            if self.now < end:
                self._ask(lambda retry_after: None)
                self.at(self.now + int(self.random.expovariate(load * self.capacity / ROWS) * SECOND) + 1, arrive)

        self.at(start, arrive)

    def clients(self, load: float, end: int) -> None:
        """Those who think for about a second after an answer, and stay away as long as they are told."""

        def ask() -> None:
            if self.now < end:
                self._ask(then)

        def then(retry_after: float | None) -> None:
            wait = self.random.expovariate(1) if retry_after is None else max(1.0, retry_after)
            self.at(self.now + int(wait * SECOND), ask)

        for _ in range(int(load * self.capacity / ROWS)):
            self.at(self.random.randrange(SECOND), ask)

    def goodput(self, start: int, end: int) -> float:
        """Rows answered within the target, as a share of all that full batches could."""
        good = sum(rows for at, rows, latency in self._answered if start <= at < end and latency <= TARGET)
        return good / self.capacity / (end - start) * SECOND

    def _ask(self, then: Callable[[float | None], None]) -> None:
        rows = self.random.randint(1, 4)
        try:
            self.limiter.admit(rows)
        except Overloaded as error:
            then(error.retry_after)
            return
        self._waiting.append((self.now, rows, then))
        if not self._is_busy:
            self._begin()

    def _begin(self) -> None:
        batch, size = [], 0
        while self._waiting and size + self._waiting[0][1] <= self._batch:
            batch.append(self._waiting.popleft())
            size += batch[-1][1]
        self._is_busy = bool(batch)
        if batch:
            self.at(self.now + self.slowness * (self._setup + size * self._row), lambda: self._end(batch))

    def _end(self, batch: list[tuple[int, int, Callable[[float | None], None]]]) -> None:
        for came, rows, _ in batch:
            self.limiter.done(rows, self.now - came, True)
            self._answered.append((self.now, rows, self.now - came))
        self._begin()
        for _, _, then in batch:
            then(None)


SERVERS = [{}, {"setup": 1_000, "row": 450, "batch": 64}, {"setup": 1_000, "row": 2_000, "batch": 8}]


@pytest.mark.parametrize("size", SERVERS)
def test_overload_costs_no_goodput(size: dict[str, int]) -> None:
    reached = {}
    for load in (0.5, 1, 2, 5):
        server = Server(**size)  # type: ignore[arg-type]
        server.poisson(load, 0, 10 * SECOND)
        server.run(10 * SECOND)
        reached[load] = server.goodput(3 * SECOND, 10 * SECOND)
    assert reached[0.5] > 0.45
    assert min(reached[2], reached[5]) >= 0.75 * max(1.0, *reached.values())


def test_without_a_limit_the_same_overload_leaves_nothing() -> None:
    server = Server(adaptive=False)
    server.poisson(2, 0, 10 * SECOND)
    server.run(10 * SECOND)
    assert server.goodput(3 * SECOND, 10 * SECOND) == 0


@pytest.mark.parametrize("size", SERVERS)
def test_after_a_burst_it_is_soon_as_if_nothing_had_been(size: dict[str, int]) -> None:
    server = Server(**size)  # type: ignore[arg-type]
    server.poisson(0.5, 0, 30 * SECOND)
    server.poisson(4.5, 5 * SECOND, 15 * SECOND)
    server.run(30 * SECOND)
    before = server.goodput(0, 5 * SECOND)
    assert server.goodput(10 * SECOND, 15 * SECOND) >= 0.75
    assert server.goodput(20 * SECOND, 30 * SECOND) == pytest.approx(before, abs=0.05)


@pytest.mark.parametrize("size", SERVERS)
def test_clients_who_come_back_when_told_keep_the_server_busy(size: dict[str, int]) -> None:
    server = Server(**size)  # type: ignore[arg-type]
    server.clients(5, 10 * SECOND)
    server.run(10 * SECOND)
    assert server.goodput(3 * SECOND, 10 * SECOND) >= 0.9


@pytest.mark.parametrize("size", SERVERS[:2])
def test_a_server_that_slows_down_admits_less_until_it_recovers(size: dict[str, int]) -> None:
    server = Server(**size)  # type: ignore[arg-type]
    server.poisson(2, 0, 30 * SECOND)
    server.at(10 * SECOND, lambda: setattr(server, "slowness", 2))
    server.at(20 * SECOND, lambda: setattr(server, "slowness", 1))
    server.run(30 * SECOND)
    whole = server.goodput(5 * SECOND, 10 * SECOND)
    assert server.goodput(12 * SECOND, 20 * SECOND) >= 0.75 * whole / 2
    assert server.goodput(23 * SECOND, 30 * SECOND) == pytest.approx(whole, abs=0.05)


def test_whoever_is_alone_gets_in_however_large() -> None:
    limiter = Limiter(TARGET, least=4, now=SimulatedClock(0).now)
    limiter.admit(1_000)
    with pytest.raises(Overloaded):
        limiter.admit(1)
    limiter.done(1_000, 1, True)
    limiter.admit(1)


def test_a_shed_caller_is_told_when_what_is_in_flight_has_drained() -> None:
    clock, luck = SimulatedClock(0), [0.5]
    limiter = Limiter(TARGET, least=100, most=100, jitter=lambda: luck[0], now=clock.now)
    for _ in range(1_000):  # 1 row each 100 us
        limiter.admit(1)
        clock.advance(clock.now() + 100)
        limiter.done(1, 100, True)
        clock.advance(clock.now() + SECOND)  # idle
    limiter.admit(100)
    for luck[0], factor in ((0.5, 1), (0.0, 0.75), (1.0, 1.25)):
        with pytest.raises(Overloaded) as shed:
            limiter.admit(1)
        assert shed.value.retry_after == pytest.approx(0.01 * factor)


def test_until_the_first_cut_a_round_trip_may_double_the_limit() -> None:
    limiter = Limiter(TARGET, least=16, now=SimulatedClock(0).now)
    limiter.admit(16)
    limiter.done(16, 0, True)
    assert limiter.limit == 32


def test_the_limit_is_cut_once_for_all_who_were_admitted_before_the_cut() -> None:
    clock = SimulatedClock(0)
    limiter = Limiter(TARGET, least=1, most=1_000, now=clock.now)
    limiter.limit = 1_000
    for _ in range(100):
        limiter.admit(1)
    clock.advance(SECOND)
    limiter.admit(1)
    for _ in range(100):
        limiter.done(1, SECOND, True)
    assert limiter.limit == 500
    clock.advance(2 * SECOND)
    limiter.admit(1)
    limiter.done(1, SECOND, True)
    assert limiter.limit == 450
    clock.advance(clock.now() + 1)
    limiter.admit(1)
    clock.advance(clock.now() + 1)
    limiter.done(1, 1, False)
    assert limiter.limit == 405


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 10**6), st.booleans())))
def test_rows_that_came_in_go_out_and_the_limit_keeps_its_bounds(calls: list[tuple[int, int, bool]]) -> None:
    clock = SimulatedClock(0)
    limiter, admitted = Limiter(TARGET, least=8, most=200, now=clock.now), deque[tuple[int, int]]()
    for rows, us, ok in calls:
        if admitted and limiter.in_flight + rows > limiter.limit:
            with pytest.raises(Overloaded):
                limiter.admit(rows)
        else:
            limiter.admit(rows)
            admitted.append((rows, clock.now()))
        clock.advance(clock.now() + us)
        if admitted and us % 2:
            done, came = admitted.popleft()
            limiter.done(done, clock.now() - came, ok)
        assert limiter.in_flight == sum(rows for rows, _ in admitted)
        assert 8 <= limiter.limit <= 200
