"""An answer is given again to the same question, to the same version, for a while, and to nobody else."""

import math
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from common.clock import SimulatedClock
from common.schema import Event
from common.serving.cache import AnswerCache, Key, key

VERSIONS = ["v1", "v2", "v3"]
keys = st.tuples(st.sampled_from(VERSIONS), st.binary(min_size=1, max_size=1).map(lambda b: bytes([b[0] % 2])))
features = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=3))


class Visit(Event):
    user: str
    amount: float


def visit(user: str = "a", amount: float = 1.0, event_id: str = "e", at: int = 0) -> Visit:
    return Visit(event_id=event_id, event_timestamp=at, user=user, amount=amount)


class Model(RuleBasedStateMachine):
    """Against a dict that looks at everything each time."""

    @initialize(rows=st.integers(0, 5), lifetime=st.integers(1, 6))
    def begin(self, rows: int, lifetime: int) -> None:
        self.clock = SimulatedClock(0)
        self.rows, self.lifetime = rows, lifetime
        self.cache: AnswerCache[int] = AnswerCache(rows, lifetime, self.clock.now)
        self.model: OrderedDict[Key, tuple[int, int]] = OrderedDict()  # least recently used first
        self.hits = self.misses = self.puts = 0

    @rule(us=st.integers(0, 3))
    def time_passes(self, us: int) -> None:
        self.clock.advance(self.clock.now() + us)

    @rule(key=keys)
    def put(self, key: Key) -> None:
        self.puts += 1
        self.cache.put(key, self.puts)
        self.model.pop(key, None)
        self.model[key] = self.clock.now(), self.puts
        while len(self.model) > self.rows:
            self.model.popitem(last=False)

    @rule(key=keys)
    def get(self, key: Key) -> None:
        at, answer = self.model.pop(key, (-math.inf, None))
        if self.clock.now() - at >= self.lifetime:
            answer = None
        if answer is None:
            self.misses += 1
        else:
            self.hits += 1
            self.model[key] = int(at), answer
        assert self.cache.get(key) == answer

    @rule(version=st.sampled_from(VERSIONS))
    def drop(self, version: str) -> None:
        self.cache.drop(version)
        self.model = OrderedDict((k, v) for k, v in self.model.items() if k[0] != version)

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "cache"):
            assert len(self.cache) == len(self.model) <= self.rows
            assert (self.cache.hits, self.cache.misses) == (self.hits, self.misses)


TestCache = Model.TestCase


def test_an_answer_lives_no_longer_than_its_lifetime_and_reading_it_does_not_prolong_it() -> None:
    clock = SimulatedClock(0)
    cache: AnswerCache[int] = AnswerCache(9, 10, clock.now)
    cache.put(("v1", b"a"), 1)
    clock.advance(9)
    assert cache.get(("v1", b"a")) == 1
    clock.advance(10)
    assert cache.get(("v1", b"a")) is None
    assert len(cache) == 0


def test_what_was_asked_for_longest_ago_makes_room() -> None:
    cache: AnswerCache[int] = AnswerCache(2, 10, SimulatedClock(0).now)
    for i, digest in enumerate((b"a", b"b")):
        cache.put(("v1", digest), i)
    assert cache.get(("v1", b"a")) == 0
    cache.put(("v1", b"c"), 2)
    assert [cache.get(("v1", digest)) for digest in (b"a", b"b", b"c")] == [0, None, 2]


def test_dropping_a_version_looks_at_no_other() -> None:
    cache: AnswerCache[int] = AnswerCache(100, 10, SimulatedClock(0).now)
    for version in VERSIONS:
        for i in range(10):
            cache.put((version, bytes([i])), i)
    cache.drop("v2")
    assert len(cache) == 20
    assert [cache.get((version, b"\x03")) for version in VERSIONS] == [3, None, 3]
    cache.drop("never heard of")


@given(features, features, st.sampled_from("ab"), st.sampled_from("ab"), st.sampled_from(VERSIONS))
def test_two_questions_share_a_key_only_when_they_are_the_same(
    x: np.ndarray, y: np.ndarray, a: str, b: str, version: str
) -> None:
    same = (a, "v1", x.shape, x.tobytes()) == (b, version, y.shape, y.tobytes())
    assert (key("v1", visit(a), x) == key(version, visit(b), y)) == same


@given(features)
def test_who_asks_and_when_makes_no_difference(x: np.ndarray) -> None:
    assert key("v1", visit(event_id="e", at=1), x) == key("v1", visit(event_id="f", at=2), x.copy())
    assert key("v1", visit(amount=1.0), x) != key("v1", visit(amount=1.5), x)


def test_a_missing_value_is_the_same_question_each_time() -> None:
    x = np.array([[math.nan, 1.0]])
    assert key("v1", visit(), x) == key("v1", visit(), x.copy())
    assert key("v1", visit(), x) != key("v1", visit(), np.array([[0.0, 1.0]]))


@pytest.mark.parametrize("view", [lambda x: x[:, ::2], lambda x: x.T, lambda x: x[::-1]])
def test_the_layout_in_memory_is_not_part_of_the_question(view) -> None:  # type: ignore[no-untyped-def]
    x = view(np.arange(12.0).reshape(3, 4))
    assert key("v1", visit(), x) == key("v1", visit(), np.ascontiguousarray(x))
