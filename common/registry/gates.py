"""What a candidate must clear to be promoted."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from common.errors import BadDefinition, GateFailed

CHAMPION = "champion"


@dataclass(frozen=True)
class Gate:
    """A metric must reach a limit: absolute, or as a multiple of what a baseline or the champion reaches.

    A multiple of a negative number would ask for less where more was meant, so a margin is a share of its size:
    the bound is other + (limit - 1) * |other|. Where the other is 0 a margin vanishes, and only a strictly better
    value clears a gate that asks for one.
    """

    metric: str
    limit: float
    _: KW_ONLY
    better: Literal["higher", "lower"]
    against: str | None = None  # a baseline's name, or "champion": cleared as long as there is none
    needs_ceiling: bool = False  # measured against what only a world knows; elsewhere it cannot be asked

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise BadDefinition(f"gate {self.metric}: better: must be higher or lower, got {self.better!r}")
        if not math.isfinite(self.limit) or (self.against is not None and self.limit <= 0):
            rule = "finite" if self.against is None else "a multiple > 0"
            raise BadDefinition(f"gate {self.metric}: limit: must be {rule}, got {self.limit}")

    def check(self, metrics: Mapping[str, float], others: Mapping[str, Mapping[str, float]]) -> "Verdict":
        """A metric that is missing or not finite fails, here or in what it is measured against."""
        value = _finite(metrics, self.metric)
        if self.against == CHAMPION and CHAMPION not in others:
            return Verdict(self, value is not None, value, None, f"{self.metric}: {_text(value)}; no champion yet")
        if self.against is None:
            bound, strict, source = float(self.limit), False, ""
        else:
            other = _finite(others.get(self.against, {}), self.metric)
            if other is None:
                return Verdict(self, False, value, None, f"{self.metric}: {self.against} has no such number to beat")
            margin = (self.limit - 1) * abs(other)
            bound, source = other + margin, f", from {self.limit:g} x {self.against} ({_text(other)})"
            strict = margin == 0 and (self.limit > 1 if self.better == "higher" else self.limit < 1)
        sign = (">" if self.better == "higher" else "<") + ("" if strict else "=")
        passed = value is not None and (
            (value > bound if self.better == "higher" else value < bound) or (value == bound and not strict)
        )
        message = f"{self.metric}: must be {sign} {_text(bound)}{source}, got {_text(value)}"
        return Verdict(self, passed, value, bound, message)

    def unasked(self) -> "Verdict":
        """What is said of a gate that needs a ceiling where there is none."""
        return Verdict(self, True, None, None, f"{self.metric}: not asked; no ceiling: not a world")


@dataclass(frozen=True)
class Verdict:
    gate: Gate
    passed: bool
    value: float | None  # None: missing or not finite
    bound: float | None  # None: nothing to be measured against
    message: str


def require(
    gates: Iterable[Gate], metrics: Mapping[str, float], others: Mapping[str, Mapping[str, float]]
) -> tuple[Verdict, ...]:
    """Every gate's verdict; raises GateFailed, naming all that failed."""
    verdicts = tuple(gate.check(metrics, others) for gate in gates)
    failed = [v.message for v in verdicts if not v.passed]
    if failed:
        raise GateFailed("; ".join(failed))
    return verdicts


def _finite(metrics: Mapping[str, float], name: str) -> float | None:
    value = metrics.get(name)
    return None if value is None or not math.isfinite(value) else float(value)


def _text(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"
