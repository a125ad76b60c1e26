"""Which version answers a request: by lot among the units, and always the same one for the same unit."""

import hashlib
from collections.abc import Set
from dataclasses import dataclass
from functools import cached_property
from math import fsum, nextafter

from common.registry.registry import Traffic
from common.system import Role

BELOW_ONE = nextafter(1.0, 0.0)


def uniform(key: bytes, purpose: str, text: str) -> float:
    """A number in [0, 1) that is the same for the same text; nobody without the key can foresee or steer it.

    It is independent between purposes (at most 16 bytes each). Keyed BLAKE2b (RFC 7693), key of at most 64 bytes.
    """
    drawn = hashlib.blake2b(text.encode(), digest_size=8, person=purpose.encode(), key=key).digest()
    return min(int.from_bytes(drawn) / 2**64, BELOW_ONE)  # the highest 2**10 integers would round to 1


@dataclass(frozen=True)
class Choice:
    """The version that answers, why it does, and the share of the units that it gets."""

    version: str
    role: Role
    propensity: float


@dataclass(frozen=True)
class Routing:
    """A champion, and how the units are split between it and others.

    While a canary's share grows, units move from the champion to it and none moves back. Another canary, or another
    set of arms, draws anew.
    """

    champion: str
    traffic: Traffic
    key: bytes
    missing: Set[str] = frozenset()  # cannot answer: the champion does in their place, and no other unit moves

    def route(self, unit: str) -> Choice:
        """Who answers all requests of this unit."""
        if not self._bounds:
            return self._champion
        drawn = uniform(self.key, self._purpose, f"{self._salt}\n{unit}")
        return next((choice for bound, choice in self._bounds if drawn < bound), self._champion)

    @cached_property
    def _champion(self) -> Choice:
        others = fsum(share for name, share in self.traffic.answering.items() if name not in self.missing)
        return Choice(self.champion, "champion", 1 - others)

    @cached_property
    def _bounds(self) -> list[tuple[float, Choice]]:
        """Who gets the units that are drawn below each bound, and not below the one before."""
        shares = sorted(self.traffic.answering.items())
        role: Role = "arm" if self.traffic.arms else "canary"
        bounds = [fsum(share for _, share in shares[: i + 1]) for i in range(len(shares))]
        return [
            (bound, self._champion if name in self.missing else Choice(name, role, share))
            for bound, (name, share) in zip(bounds, shares, strict=True)
        ]

    @cached_property
    def _purpose(self) -> str:
        return "arms" if self.traffic.arms else "canary"

    @cached_property
    def _salt(self) -> str:
        return ",".join(sorted(self.traffic.answering))
