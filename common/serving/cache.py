"""What a version said before, for those who ask the same again."""

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import Generic, TypeAlias, TypeVar

from common.clock import stopwatch
from common.features.view import Array
from common.schema import Record

V = TypeVar("V")
Key: TypeAlias = tuple[str, bytes]  # version, digest of what it was asked
WHICH = {"event_id", "event_timestamp"}  # which request it was, not what it asked


def key(version: str, request: Record, x: Array) -> Key:
    """The same for the same question: all that a request says but its id and time, and the features' bit patterns.

    So -0.0 and 0.0, or two kinds of NaN, are different questions: they only miss.
    """
    found = blake2b(request.model_dump_json(exclude=WHICH).encode(), digest_size=16)
    found.update(f"{x.dtype.str}{x.shape}".encode())  # after self-delimiting JSON
    found.update(x.tobytes())
    return version, found.digest()


class AnswerCache(Generic[V]):
    """A bounded cache of answers, least recently used out first, each with a lifetime.

    For one thread only: that of the event loop or that of the batches.
    """

    def __init__(self, rows: int, lifetime: int, now: Callable[[], int] = stopwatch) -> None:
        """At most `rows` answers, each for less than `lifetime` us since it was put."""
        self.hits = self.misses = 0
        self._rows, self._lifetime, self._now = rows, lifetime, now
        self._entries: OrderedDict[Key, tuple[int, V]] = OrderedDict()  # put at, answer
        self._digests: dict[str, set[bytes]] = {}  # by version

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> V | None:
        """What was put there, or None."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        at, answer = entry
        if self._now() - at >= self._lifetime:
            del self._entries[key]
            self._forget(key)
            self.misses += 1
            return None
        self._entries.move_to_end(key)
        self.hits += 1
        return answer

    def put(self, key: Key, answer: V) -> None:
        version, digest = key
        self._entries[key] = self._now(), answer
        self._entries.move_to_end(key)
        self._digests.setdefault(version, set()).add(digest)
        if len(self._entries) > self._rows:
            self._forget(self._entries.popitem(last=False)[0])

    def drop(self, version: str) -> None:
        """All that a version said; takes as long as that is many."""
        for digest in self._digests.pop(version, ()):
            del self._entries[version, digest]

    def _forget(self, key: Key) -> None:
        version, digest = key
        digests = self._digests[version]
        digests.remove(digest)
        if not digests:
            del self._digests[version]
