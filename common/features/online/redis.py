"""Online features in Redis."""

import os
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ConnectionError, RedisError
from redis.retry import Retry

from common.errors import BadSetting, Conflict, Damaged, Stale, Unavailable
from common.features.online import END, Arrivals, Reading, arrivals, require
from common.features.state import Entities, Plan, Reader, State, checksum
from common.features.view import FeatureView, Times, ints
from common.schema import Event

TIMEOUT = 1.0  # s, to connect and to wait for an answer
ATTEMPTS = 20  # of a push that finds each time that another worker was faster
KNOWN = 50_000  # states of a view kept in memory, about 1 kB each
STATES = 400_000  # that one push writes in one go; more go in parts, each with its head
FIELD = "head"  # every other field of a view begins with a separator
HEAD = struct.Struct("<q8s")  # log position; which life of the view this is, so that no two are taken for one
SEAL = struct.Struct("<I")  # checksum, before a packed state
UNBORN = b""

# A compare-and-swap: all heads are those that the states were computed from, or nothing is written.
# KEYS: a hash per view. ARGV: their old heads, their new heads, for each how many arguments follow, then these:
# field, state, field, state, ...
PUSH = """
for i = 1, #KEYS do
    if (redis.call('HGET', KEYS[i], 'head') or '') ~= ARGV[i] then return 0 end
end
local at = 3 * #KEYS + 1
for i = 1, #KEYS do
    local last = at + tonumber(ARGV[2 * #KEYS + i]) - 1
    redis.call('HSET', KEYS[i], 'head', ARGV[#KEYS + i])
    while at <= last do
        local stop = math.min(last, at + 999)
        redis.call('HSET', KEYS[i], unpack(ARGV, at, stop))
        at = stop + 1
    end
end
return 1
"""


class RedisStore:
    """One hash per view: a state per entity, and the view's head.

    Redis evicts, expires, deletes and restores a hash as a whole, so no state can be lost without its head; only an
    HDEL by hand could do that. A read is one round trip, a push is one more: it is computed from states that this
    process knows, and the script writes them only if nobody has moved the heads since. Nothing is read from what is
    known here. A view has to fit into one Redis, it is not spread over a cluster.
    """

    notes: Sequence[str] = ()
    is_remote = True

    def __init__(self, url: str, name: str, views: Sequence[FeatureView]) -> None:
        """Raises BadSetting for an url or a server that cannot be used, Unavailable for one that does not answer."""
        self.kinds = frozenset(view.source for view in views)
        self._plans = [Plan(view) for view in views]
        self._reader = Reader(self._plans)
        self._prefix = f"mlsys:{name}:"
        self._names = [self._prefix + plan.prefix for plan in self._plans]
        retry = Retry(NoBackoff(), 1, (ConnectionError,))  # a server that was restarted has closed what we had open
        try:
            self._redis: Any = Redis.from_url(
                url, decode_responses=False, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT, retry=retry
            )
        except (ValueError, TypeError):
            raise BadSetting("MLSYS_REDIS_URL: must be redis[s]://[user:password@]host[:port][/database]") from None
        where = self._redis.connection_pool.connection_kwargs
        self._place = where.get("path") or f"{where.get('host', 'localhost')}:{where.get('port', 6379)}"
        self._script = self._redis.register_script(PUSH)
        self._lock = threading.Lock()
        self._heads = [UNBORN] * len(views)
        self._known: list[dict[str, State]] = [{} for _ in views]  # of exactly these heads
        with self._guarded():
            _refuse_eviction(self._place, self._redis.info("memory"))
            self._redis.script_load(PUSH)

    def head(self) -> int:
        return self._head(self._fetch([[] for _ in self._plans])[0])

    def read(self, rows: pa.Table, as_of: Times, at_least: int = 0) -> Reading:
        entities = Entities(rows)
        keys = [plan.keys(entities) for plan in self._plans]
        heads, states = self._fetch([list(dict.fromkeys(of_view)) for of_view in keys])
        if self._lock.acquire(blocking=False):  # a push under way need not be waited for
            self._remember(heads, states)
            self._trim()
            self._lock.release()
        positions = tuple(_life(head)[0] for head in heads)
        require(min(positions, default=END), at_least)
        asked = [[found[key] for key in of_view] for of_view, found in zip(keys, states, strict=True)]
        return Reading(self._reader.read(asked, as_of), positions)

    def push(self, logged: Mapping[type[Event], pa.Table], after: int, until: int) -> None:
        """More than fits into one command goes in parts: each is there as a whole, with its head, or not at all."""
        for part, start, stop in self._parts(logged, after, until):
            coming = arrivals(self._plans, part, stop)
            with self._lock:
                if not any(self._swap(coming, start, stop) for _ in range(ATTEMPTS)):
                    raise Conflict(f"redis at {self._place}: others were faster {ATTEMPTS} times; push again")
                self._trim()

    def clear(self) -> None:
        with self._guarded():
            for key in self._redis.scan_iter(match=f"{self._prefix}*", count=10_000):
                self._redis.unlink(key)

    def close(self) -> None:
        self._redis.close()

    def _fetch(self, keys: Sequence[Sequence[str]]) -> tuple[list[bytes], list[dict[str, State]]]:
        """The views' heads and, by view, the states of these keys, in one round trip."""
        with self._guarded():
            pipeline = self._redis.pipeline(transaction=False)
            for name, plan, of_view in zip(self._names, self._plans, keys, strict=True):
                pipeline.hmget(name, [FIELD, *_fields(plan, of_view)])
            found = pipeline.execute()
        states = []
        for name, plan, of_view, (head, *packed) in zip(self._names, self._plans, keys, found, strict=True):
            try:
                _life(head)
                states.append(
                    {k: _unseal(plan, k, p) if p else plan.empty for k, p in zip(of_view, packed, strict=True)}
                )
            except Damaged as error:
                with self._guarded():
                    self._redis.unlink(name)
                raise Stale(f"redis at {self._place}: {error}; the view is removed: catch up from the log") from None
        return [head or UNBORN for head, *_ in found], states

    def _swap(self, coming: Sequence[Arrivals], after: int, until: int) -> bool:
        """Whether it was done; if not, the next attempt knows more."""
        missing = self._missing(coming)
        if any(missing) or self._head(self._heads) < after:
            self._remember(*self._fetch(missing))
            require(self._head(self._heads), after)
            if any(self._missing(coming)):  # somebody moved a head: what was known of its view is not any more
                return False
        heads, changed = [], []
        for (plan, keys, events), head, known in zip(coming, self._heads, self._known, strict=True):
            position, life = _life(head)
            changed.append(plan.push(keys, events, known) if position < until else {})
            heads.append(HEAD.pack(max(position, until), life))
        states = [
            part
            for plan, of_view in zip(self._plans, changed, strict=True)
            for field, (key, state) in zip(_fields(plan, of_view), of_view.items(), strict=True)
            for part in (field, _seal(plan, key, state))
        ]
        with self._guarded():
            done = self._script(self._names, [*self._heads, *heads, *(2 * len(c) for c in changed), *states])
        if not done:
            self._remember(*self._fetch([list(dict.fromkeys(part.keys)) for part in coming]))
            return False
        self._heads = heads
        for known, of_view in zip(self._known, changed, strict=True):
            known.update(of_view)
        return True

    def _missing(self, coming: Sequence[Arrivals]) -> list[list[str]]:
        return [
            list(dict.fromkeys(key for key in part.keys if key not in known))
            for part, known in zip(coming, self._known, strict=True)
        ]

    def _remember(self, heads: Sequence[bytes], states: Sequence[Mapping[str, State]]) -> None:
        for i, (head, found) in enumerate(zip(heads, states, strict=True)):
            if head != self._heads[i]:
                self._heads[i], self._known[i] = head, {}
            self._known[i].update(found)

    def _trim(self) -> None:
        for known in self._known:
            if len(known) > KNOWN:
                known.clear()

    def _parts(
        self, logged: Mapping[type[Event], pa.Table], after: int, until: int
    ) -> Iterator[tuple[Mapping[type[Event], pa.Table], int, int]]:
        size = STATES // max(1, len(self._plans))  # events
        if sum(table.num_rows for table in logged.values()) > size:
            positions = np.sort(np.concatenate([ints(table["position"]) for table in logged.values()]))
            for stop in positions[(positions > after) & (positions < until)][size - 1 :: size].tolist():
                yield {kind: _between(table, after, stop) for kind, table in logged.items()}, after, stop
                after = stop
            logged = {kind: _between(table, after, until) for kind, table in logged.items()}
        yield logged, after, until

    def _head(self, heads: Sequence[bytes]) -> int:
        return min((_life(head)[0] for head in heads), default=END)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise BadSetting(f"MLSYS_REDIS_URL: {self._place} must know the user and password: {error}") from None
        except RedisError as error:
            raise Unavailable(f"redis at {self._place}: {error}") from None


def _refuse_eviction(place: str, memory: Mapping[str, Any]) -> None:
    """A view that was evicted is rebuilt, and evicted again; policies other than allkeys take only keys that expire."""
    policy, limit = str(memory.get("maxmemory_policy")), int(memory.get("maxmemory", 0))
    if limit and policy.startswith("allkeys"):
        raise BadSetting(f"redis at {place}: maxmemory-policy: must not evict, as noeviction does, got {policy}")


def _fields(plan: Plan, keys: Iterable[str]) -> list[str]:
    start = len(plan.prefix)  # the hash has the view's name already
    return [key[start:] for key in keys]


def _life(head: bytes | None) -> tuple[int, bytes]:
    """The position of a head, and which life of the view it is of; an unborn view gets one. Raises Damaged."""
    if not head:
        return 0, os.urandom(8)
    if len(head) != HEAD.size:
        raise Damaged(f"head: must have {HEAD.size} bytes, got {len(head)}")
    position, life = HEAD.unpack(head)
    return int(position), bytes(life)


def _seal(plan: Plan, key: str, state: State) -> bytes:
    body = plan.pack(state)
    return SEAL.pack(checksum(key, body)) + body


def _unseal(plan: Plan, key: str, sealed: bytes) -> State:
    """Raises Damaged for what was not sealed under this key."""
    body = sealed[SEAL.size :]
    if len(sealed) < SEAL.size or SEAL.unpack_from(sealed)[0] != checksum(key, body):
        raise Damaged(f"{key!r}: its checksum must be that of its bytes")
    return plan.unpack(body)


def _between(events: pa.Table, after: int, until: int) -> pa.Table:
    position = events["position"]
    return events.filter(pc.and_(pc.greater(position, after), pc.less_equal(position, until)))
