"""The canary controller: more units step by step, or back, by one compare-and-swap each.

Nothing is kept here. The traffic says who is the canary and at which share, the audit trail since when and by whom,
the log what became of the requests; so a controller that was killed anywhere is replaced by starting another one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from common.clock import DAY
from common.errors import BadBundle, BadSetting, Conflict, GateFailed
from common.lifecycle.evidence import TESTS, Evidence, Observation, Seen, Timetable, Verdict
from common.registry.audit import TRAFFIC, AuditRow
from common.registry.gates import CHAMPION
from common.registry.registry import Registry, State, Traffic


@dataclass(frozen=True)
class Steps:
    """The shares, and what a step must have shown before the next one."""

    shares: tuple[float, ...] = (0.10, 0.25, 0.50, 1.0)  # of the units; 1 is the promotion, with the old one at hand
    least_units: int = 30  # of each arm in a step
    least_requests: int = 500  # likewise
    least_time: int = DAY  # us, of a step: all hours of a day
    needs: tuple[str, ...] = ()  # tests that both arms must have shown something for, such as "gap"
    power: float = 0.95  # P(evidence by now, had it been bad), for each test that knows something: to be promoted
    evidence: Evidence = Evidence()

    def __post_init__(self) -> None:
        if not self.shares or list(self.shares) != sorted({s for s in self.shares if 0 < s <= 1} | {1.0}):
            raise BadSetting(f"shares: must rise from above 0 to 1, got {self.shares}")
        if unknown := set(self.needs) - set(TESTS):
            raise BadSetting(f"needs: must be of {', '.join(TESTS)}, got {', '.join(sorted(unknown))}")


@dataclass(frozen=True)
class Step:
    """What a look at a canary came to."""

    kind: Literal["hold", "advanced", "promoted", "rolled back", "none"]
    share: float  # of the units that the canary has now; 1: it is the champion
    why: str
    verdict: Verdict | None = None


@dataclass(frozen=True)
class _Canary:
    version: str
    share: float
    timetable: Timetable  # since it began
    who: str  # began it
    last: str  # who set the share


class Rollout:
    """The canaries of a system that were begun by one name; any number of processes may run it at once.

    What somebody else changed stays: a canary of theirs is not touched, one that they took out is not put back, and
    one whose share they set is watched, but goes no further by itself.
    """

    def __init__(self, registry: Registry, system_name: str, *, config: Steps, who: str) -> None:
        self._registry, self._system, self._config, self._who = registry, system_name, config, who

    def start(self, version: str, why: str) -> Step:
        """Give a version, by its full name, the first share of the units; again, it changes nothing.

        Raises GateFailed for one that missed a gate or was judged against another champion, NotFound and BadBundle.
        """
        state, rows = self._now()
        traffic, share = state.traffic, self._config.shares[0]
        if state.aliases.get(CHAMPION) == version:
            return Step("none", 1.0, f"{version} is the champion")
        if traffic.canary == version:
            return Step("hold", traffic.canary_share, f"{version} has begun")
        if traffic.answering:
            return Step("hold", 0.0, f"{', '.join(traffic.answering)} must end first")
        if ended := [row for row in rows if _of(row.was).canary == version and row.what.startswith(TRAFFIC)]:
            return Step("none", 0.0, f"{version} was taken out by {ended[-1].who}: {ended[-1].why}")
        shadow = tuple(name for name in traffic.shadow if name != version)
        try:
            if share == 1:
                return self._promote(state, version, why, None)
            self._set(state, Traffic(canary=version, canary_share=share, shadow=shadow), why)
        except Conflict as error:
            return Step("hold", 0.0, str(error))
        return Step("advanced", share, why)

    def step(self, observations: Sequence[Observation] | Seen, now: int, wait: str | None = None) -> Step:
        """Look at the canary, and go on, hold, or take it out; `observations`: all since it began, in any order.

        `wait`: why it may not go on.

        Raises Unavailable and BadBundle as the registry does; the next call finds out how it ended.
        """
        state, rows = self._now()
        canary = _canary(state, rows)
        if canary is None:
            return Step("none", 0.0, "there is no canary")
        if canary.who != self._who:
            return Step("none", canary.share, f"{canary.version} is the canary of {canary.who}")
        config, seen = self._config, Seen.of(observations)
        verdict = config.evidence.judge(seen, canary.timetable, now)
        try:
            if verdict.bad is not None:
                said = f"{verdict.tests[verdict.bad]:.3g} >= {config.evidence.enough:g}"
                found = f"{verdict.canary_requests} requests of {verdict.canary_units} units"
                return self._take_out(state, f"{verdict.bad}: e-value {said} after {found}", verdict)
            if short := wait or self._short(seen, canary, now):
                return Step("hold", canary.share, short, verdict)
            highest = max(((e or 0.0), test) for test, e in verdict.tests.items())
            why = (
                f"no evidence against it: highest e-value {highest[0]:.3g} ({highest[1]}) of {config.evidence.enough:g}"
            )
            share = next((share for share in config.shares if share > canary.share), 1.0)
            if share == 1 and (weak := self._weak(seen, canary, now)):
                return Step("hold", canary.share, weak, verdict)
            try:
                if share == 1:
                    return self._promote(state, canary.version, why, verdict)
                self._set(state, state.traffic.model_copy(update={"canary_share": share}), why)
                return Step("advanced", share, why, verdict)
            except (GateFailed, BadBundle) as error:  # judged anew, or its files were changed, since it began
                return self._take_out(state, str(error), verdict)
        except Conflict as error:
            return Step("hold", canary.share, str(error), verdict)

    def _now(self) -> tuple[State, list[AuditRow]]:
        state = self._registry.state(self._system)
        return state, self._registry.audit(self._system)[: state.revision]

    def _short(self, seen: Seen, canary: _Canary, now: int) -> str | None:
        """What a step has not shown yet."""
        config, (began, share) = self._config, canary.timetable[-1]
        if canary.last != self._who:
            return f"its share was set to {share:g} by {canary.last}"
        since = began + config.evidence.settle
        arms = {"canary": seen.canary, "champion": ~seen.canary}
        for test in (None, *config.needs):
            told = "answers" if test is None else test
            known = (seen.at >= since) & (seen.at <= now) & (True if test is None else seen.known(test))
            for name, arm in arms.items():
                times = seen.at[known & arm]
                if not len(times):
                    return f"{told} of the {name}: there are none"
                if now - times[-1] > config.evidence.silence:
                    return f"{told} of the {name}: there were none for {(now - times[-1]) / DAY:.3g} days"
        if now - began < config.least_time:
            return f"time: {(now - began) / DAY:.3g} of {config.least_time / DAY:.3g} days"
        for name, arm in arms.items():
            chosen = (seen.at >= since) & (seen.at <= now) & arm
            units, requests = len(np.unique(seen.unit[chosen])), int(chosen.sum())
            if units < config.least_units or requests < config.least_requests:
                least = f"{config.least_requests} requests of {config.least_units} units"
                return f"{name}: {requests} requests of {units} units; must be {least}"
        return None

    def _weak(self, seen: Seen, canary: _Canary, now: int) -> str | None:
        """What could not have been noticed yet."""
        config = self._config
        for test, power in config.evidence.power(seen, canary.timetable, now).items():
            if power < config.power:
                return f"{test}: trouble would have been noticed with probability {power:.2f}; must be {config.power:g}"
        return None

    def _set(self, state: State, traffic: Traffic, why: str) -> None:
        self._registry.set_traffic(self._system, traffic, who=self._who, why=why, expected=state.revision)

    def _promote(self, state: State, version: str, why: str, verdict: Verdict | None) -> Step:
        self._registry.promote(self._system, version, who=self._who, why=why, expected=state.revision)
        return Step("promoted", 1.0, why, verdict)

    def _take_out(self, state: State, why: str, verdict: Verdict) -> Step:
        """Its shadows stay, unless one of them cannot be had: nothing may stand in the way of this."""
        try:
            self._set(state, Traffic(shadow=state.traffic.shadow), why)
        except BadBundle:
            self._set(state, Traffic(), why)
        return Step("rolled back", 0.0, why, verdict)


def _canary(state: State, rows: Sequence[AuditRow]) -> _Canary | None:
    """Who is the canary now, and what the audit trail tells of it."""
    version, found = state.traffic.canary, list[tuple[AuditRow, float]]()
    if version is None:
        return None
    for row in reversed(rows):
        if not row.what.startswith(TRAFFIC):
            if row.what.startswith(("promote", "rollback")):
                break
            continue
        traffic = _of(row.became)
        if traffic.canary != version:
            break
        found.append((row, traffic.canary_share))
    found.reverse()
    changes = [(row, share) for i, (row, share) in enumerate(found) if i == 0 or share != found[i - 1][1]]
    timetable = [(row.created, share) for row, share in changes]
    return _Canary(version, state.traffic.canary_share, timetable, changes[0][0].who, changes[-1][0].who)


def _of(text: str | None) -> Traffic:
    return Traffic.parse(text or "{}") if (text or "{}").startswith("{") else Traffic()
