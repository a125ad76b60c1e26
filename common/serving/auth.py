"""Who may ask, for what, and how often: API keys with scopes, deny by default."""

import hashlib
import hmac
import secrets
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from common.clock import DAY, SECOND, Clock
from common.data.database import open_database
from common.errors import BadSetting, Forbidden, NotFound, Unauthenticated
from common.registry.keys import Keys

# What a key allows, each by itself: admin does not imply the others
Scope: TypeAlias = Literal["score", "label", "read", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

PREFIX = "mlsys_"
ID = slice(len(PREFIX), len(PREFIX) + 12)  # where in a key its id is
LONGEST = 200  # characters that are looked at; a key has 62
LONGEST_NAME = 100  # characters
HIGHEST_RATE, LONGEST_WINDOW = 10**9, 360 * DAY // SECOND  # hits; s
CROWDED = 1_000  # counters, beyond those in use
MARGIN = 0.001  # s, so that who waits as told is not a rounding error too early

MISSING = "API key: there is none; send it as the header Authorization: Bearer <key>"
REFUSED = "API key: must be one that was created here and is neither expired nor revoked"  # which of these: not said

TABLES = """
CREATE TABLE IF NOT EXISTS api_key (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    scopes TEXT NOT NULL,
    rate TEXT,
    created INTEGER NOT NULL,
    expires INTEGER,
    revoked INTEGER
) STRICT;
"""


@dataclass(frozen=True)
class ApiKey:
    """What may be known of a key: neither the key nor its digest."""

    id: str  # 12 hex digits, which the key begins with
    name: str
    scopes: frozenset[str]
    rate: str | None  # such as 500/second; None: the default of whoever serves
    created: int  # us
    expires: int | None  # us
    revoked: int | None  # us


class ApiKeys:
    """API keys in a database that processes share, of which each has a copy in memory as of its last `refresh`.

    Stored are digests keyed with the secret of the installation: whoever reads the database learns no key, and cannot
    test guesses. Raises Unavailable when the disk is full or the server is away.
    """

    def __init__(self, home: Path, clock: Clock, keys: Keys, url: str | None = None) -> None:
        """SQLite under home, or PostgreSQL."""
        keys.check_outside(home)
        self._clock = clock
        self._blank = hashlib.blake2b(key=keys.secret("api keys"), digest_size=32)
        nobody = ApiKey("", "", frozenset(), None, created=0, expires=0, revoked=0)
        self._nobody = (nobody, secrets.token_hex(32).encode())  # an unknown id costs the same work
        self._known: dict[str, tuple[ApiKey, bytes]] = {}
        self._db = open_database(url, home / "access.db", "access", TABLES)
        try:
            self._known = self._read()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._db.close()

    def create(self, name: str, scopes: Collection[Scope], *, expires: int | None, rate: str | None) -> str:
        """Returns the key, which cannot be had again; `expires` in us, None: never. Raises BadSetting."""
        if not (name.isprintable() and name.strip() and len(name) <= LONGEST_NAME):
            raise BadSetting(f"name: must have 1 to {LONGEST_NAME} printable characters, got {name[:120]!r}")
        if not scopes or not set(scopes) <= set(SCOPES):
            raise BadSetting(f"scopes: must be one or more of {', '.join(SCOPES)}, got {', '.join(scopes) or 'none'}")
        now = self._clock.now()
        if expires is not None and expires <= now:
            raise BadSetting(f"expires: must be later than now, {now} us, got {expires}")
        if rate is not None:
            parse_rate(rate)
        identity = secrets.token_hex(6)
        key = f"{PREFIX}{identity}_{secrets.token_urlsafe(32)}"
        row = (identity, name, self._digest(key).decode(), " ".join(sorted(set(scopes))), rate, now, expires, None)
        with self._db.transaction():
            self._db.execute("INSERT INTO api_key VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        self.refresh()
        return key

    def revoke(self, identity: str) -> None:
        """For good, everywhere, as soon as each process has refreshed. Raises NotFound."""
        with self._db.transaction():
            there = sorted(found for (found,) in self._db.execute("SELECT id FROM api_key"))
            if identity not in there:
                raise NotFound(f"id: no API key {identity[:12]!r}; there are: {', '.join(there) or 'none'}")
            self._db.execute(
                "UPDATE api_key SET revoked = ? WHERE id = ? AND revoked IS NULL", (self._clock.now(), identity)
            )
        self.refresh()

    def list(self) -> Sequence[ApiKey]:
        """All there ever were, the oldest first, as they are in the database now."""
        return [key for key, _ in self._read().values()]

    def refresh(self) -> bool:
        """Obey what other processes have created and revoked meanwhile; to be called about every second.

        False when the database is away: then what was known still holds, and every key expires as it would have.
        """
        try:
            self._known = self._read()
        except Exception:  # whatever it is, who refreshes must go on: a later revocation has to be obeyed
            return False
        return True

    def caller(self, presented: str | None) -> ApiKey:
        """Whose key this is. Raises Unauthenticated, which tells neither what was wrong with it nor what came."""
        if presented is None:
            raise Unauthenticated(MISSING)
        if len(presented) > LONGEST or not presented.isascii():
            raise Unauthenticated(REFUSED)
        key, digest = self._known.get(presented[ID], self._nobody)
        if (
            not hmac.compare_digest(self._digest(presented), digest)
            or key.revoked is not None
            or (key.expires is not None and key.expires <= self._clock.now())
        ):
            raise Unauthenticated(REFUSED)
        return key

    def allow(self, key: ApiKey, scope: Scope) -> None:
        """Raises Forbidden."""
        if scope not in key.scopes:
            raise Forbidden(f"scope: API key {key.id} must have {scope}, it has {', '.join(sorted(key.scopes))}")

    def _digest(self, key: str) -> bytes:
        digest = self._blank.copy()  # half the time of a new one
        digest.update(key.encode())
        return digest.hexdigest().encode()

    def _read(self) -> dict[str, tuple[ApiKey, bytes]]:
        rows = self._db.execute(
            "SELECT id, name, scopes, rate, created, expires, revoked, digest FROM api_key ORDER BY created, id"
        )
        return {
            identity: (ApiKey(identity, name, frozenset(scopes.split()), *rest), digest.encode())
            for identity, name, scopes, *rest, digest in rows
        }


@lru_cache(maxsize=1024)
def parse_rate(text: str) -> RateLimitItem:
    """One rate in the notation of the library `limits`, such as 500/second or 20/5minutes; raises BadSetting."""
    try:
        (rate,) = parse_many(text)
        if 1 <= rate.amount <= HIGHEST_RATE and rate.get_expiry() <= LONGEST_WINDOW:
            return rate
    except ValueError:
        pass
    raise BadSetting(
        f"rate: must be like 500/second or 20/5minutes, 1 to {HIGHEST_RATE} within a year, got {text[:40]!r}"
    )


class _Asleep(threading.Timer):
    """Stands where the library would start a thread 100 times a second to drop old counters: some hits took 5 ms."""

    def is_alive(self) -> bool:
        return True


class RateLimits:
    """How often each key may ask, counted in the memory of this process: n workers let n times as much through.

    A sliding window counter: a few integers per key, and no burst of twice the rate where two windows meet. What was
    refused does not count. Threads may not share it.
    """

    def __init__(self, default: str) -> None:
        """`default` is the rate of keys that have none; raises BadSetting."""
        parse_rate(default)
        self._default = default
        self._storage = MemoryStorage()
        self._storage.timer = _Asleep(0, lambda: None)
        self._crowded = CROWDED
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)

    def hit(self, key: ApiKey, cost: int = 1) -> float | None:
        """None when this is allowed, else after how many seconds it would be, if nothing else came meanwhile.

        Raises Forbidden for a cost above the whole rate, which no waiting helps.
        """
        rate = parse_rate(key.rate or self._default)
        if self._limiter.hit(rate, key.id, cost=cost):
            if len(self._storage.expirations) > self._crowded:
                self._drop_old()
            return None
        if cost > rate.amount:
            raise Forbidden(f"rate: one request of API key {key.id} may cost at most {rate.amount}, got {cost}")
        return self._wait(rate, key, cost)

    def _drop_old(self) -> None:
        for counter in list(self._storage.expirations):
            self._storage.get(counter)  # drops it when its time is over
        self._crowded = CROWDED + 2 * len(self._storage.expirations)

    def _wait(self, rate: RateLimitItem, key: ApiKey, cost: int) -> float:
        """Until before * (what is left of this window) / window + now, which is what the library counts, < room."""
        window = rate.get_expiry()  # s
        before, left, now, now_left = self._storage.get_sliding_window(rate.key_for(key.id), window)
        room = rate.amount - cost + 1
        if now >= room:  # only the next window has room, when enough of this one is a window away
            wait = now_left - window + window * (1 - room / now)
        else:
            wait = left - (room - now) * window / before if before else 0  # none: a window has ended meanwhile
        return max(wait, 0) + MARGIN
