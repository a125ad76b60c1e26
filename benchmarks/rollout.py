"""How many bad canaries are taken out, how soon, and how many good ones are taken out with them.

Run: python -m benchmarks.rollout [--json]
"""

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.clock import DAY, MILLISECOND, SimulatedClock
from common.lifecycle.evidence import Evidence, Flags, Floats, Seen
from common.lifecycle.loop import Policy
from common.lifecycle.rollout import Rollout, Step, Steps
from common.registry.keys import Keys
from common.registry.registry import Registry

UNITS = 900
PER_DAY = 12_000  # requests
SHARES = Steps().shares[:-1]
FAULTS = {"errors": "5 % errors", "latency": "+100 ms", "missing": "NaN for 5 %", "gap": "scores live unlike offline"}
BETTER, DEARER = 0.7, 5.0  # times the champion's loss
TRIALS, SAME = 100, 500  # canaries of a kind; of those that are no different
BUDGET = 500  # requests that a bad canary may answer
FEW = 200, 700, 2_000  # requests a day, under the loop's policy
SYSTEM = "shop"


class Traffic:
    """Units of which few ask often, few are slow, and few make any version fail; drawn by lot who meets the canary."""

    def __init__(self, seed: int, per_day: int = PER_DAY) -> None:
        self.per_day = per_day
        self.rng = np.random.default_rng(seed)
        activity = self.rng.permutation(1 / np.arange(1, UNITS + 1))
        self.activity = activity / activity.sum()
        self.names = self.rng.integers(2**63, size=UNITS, dtype=np.uint64)
        self.lot = self.rng.random(UNITS)
        self.slowness, self.cost = self.rng.normal(0, 0.3, UNITS), self.rng.gamma(1.0, 1.0, UNITS)
        self.fails, self.misses = self._bad(), self._bad()

    def day(self, start: int, share: float, fault: str | None, loss: float = 1.0) -> Seen:
        """A day of requests; `fault` is the canary's, and so is the factor of the losses."""
        rng, n = self.rng, self.per_day
        unit = rng.choice(UNITS, n, p=self.activity)
        canary = self.lot[unit] < share
        at = start + np.sort(rng.integers(DAY, size=n))

        def worse(name: str, share: float = 0.05) -> Flags:
            return canary & (fault == name) & (rng.random(n) < share)

        took = np.exp(np.log(20 * MILLISECOND) + self.slowness[unit] + rng.normal(0, 0.5, n))
        took += 100 * MILLISECOND * worse("latency", 1.0)
        off = worse("gap", 1.0) | (rng.random(n) < 0.0002)
        gap = np.where(off, np.abs(rng.normal(0, 0.01, n)), 1e-12)
        gap[rng.random(n) < 0.2] = np.nan  # not checked
        cost = (rng.random(n) < 0.2) * self.cost[unit] * rng.lognormal(0, 1.5, n) * np.where(canary, loss, 1.0)
        cost[rng.random(n) < 0.3] = np.nan  # not known yet
        failed = worse("errors") | (rng.random(n) < self.fails[unit])
        missing = worse("missing") | (rng.random(n) < self.misses[unit])
        return Seen(self.names[unit], canary, at, failed, missing, took.astype(np.int64), gap, cost).in_order()

    def _bad(self) -> Floats:
        """0.1 to 0.5 % of all requests fail, all of them of five units."""
        chosen, chance = self.rng.choice(UNITS, 5, replace=False), np.zeros(UNITS)
        chance[chosen] = min(1.0, self.rng.uniform(0.001, 0.005) / self.activity[chosen].sum())
        return chance


def together(days: Sequence[Seen]) -> Seen:
    return Seen(*(np.concatenate(columns) for columns in zip(*(vars(day).values() for day in days), strict=True)))


def same(seed: int) -> tuple[str | None, int, float]:
    """A canary that is no different, to the end of its life: the test that took it out, requests, highest e-value.

    The evidence is the highest ever, so one look at the end is a look after every request.
    """
    traffic, timetable = Traffic(seed), [(i * DAY, share) for i, share in enumerate(SHARES)]
    seen = together([traffic.day(at, share, None) for at, share in timetable])
    verdict = Evidence().judge(seen, timetable, len(SHARES) * DAY)
    return verdict.bad, verdict.canary_requests, max(e or 0.0 for e in verdict.tests.values())


def until_noticed(seed: int, fault: str) -> tuple[str | None, int]:
    """The test that took it out, and how many requests a canary had answered by then, looking after every tenth."""
    day, timetable = Traffic(seed).day(0, SHARES[0], fault), [(0, SHARES[0])]
    answered = np.cumsum(day.canary)
    for n in range(10, BUDGET + 1, 10):
        seen = day.where(answered <= n)
        if bad := Evidence().judge(seen, timetable, int(seen.at[-1])).bad:
            return bad, n
    return None, BUDGET


def lived(seed: int, per_day: int, fault: str | None) -> tuple[Step, float, int]:
    """A canary of the loop where little is asked: how it ended, after how many days and of its requests."""
    policy = Policy()
    config, traffic, parts, now = policy.steps, Traffic(seed, per_day * policy.look // DAY), list[Seen](), 0
    with tempfile.TemporaryDirectory() as name:
        house = House(Path(name))
        rollout = Rollout(house.registry, SYSTEM, config=config, who="rollout")
        step = rollout.start(house.publish("1"), "a candidate")
        while step.kind not in ("promoted", "rolled back") and now < 60 * DAY:
            part = traffic.day(0, step.share, fault)
            at, gap = now + part.at * policy.look // DAY, np.where(part.canary, np.nan, 0.0)
            checked = np.flatnonzero(part.canary)[-policy.checked :]
            gap[checked] = 0.01 if fault == "gap" else 0.0
            parts.append(replace(part, at=at, gap=gap))
            now += policy.look
            house.clock.advance(now)
            step = rollout.step(together(parts), now)
        house.registry.close()
    return step, now / DAY, sum(int(part.canary.sum()) for part in parts)


class House:
    """A registry with a champion, for canaries one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder, SimulatedClock(0)
        self.registry = Registry(folder / "home", self.clock, Keys(folder / "keys"))
        self.registry.promote(SYSTEM, self.publish("0"), who="ada", why="first")

    def publish(self, content: str) -> str:
        made = self.folder / content
        made.mkdir()
        (made / "trees.txt").write_text(f"tree\n{content}\n")
        return self.registry.publish(SYSTEM, made, {}, {}, []).name

    def canary(self, seed: int, loss: float, fault: str | None = None, days: int = 4, gone: int = 99) -> Step:
        """From its start to its end, or so many days; from day `gone` on nothing is seen of it."""
        rollout = Rollout(self.registry, SYSTEM, config=Steps(), who="rollout")
        traffic, seen, now = Traffic(seed), list[Seen](), self.clock.now()
        step = rollout.start(self.publish(f"{seed} {loss} {fault} {gone}"), "a candidate")
        for day in range(days):
            more = traffic.day(now, step.share, fault, loss)
            seen.append(more if day < gone else more.where(~more.canary))
            now += DAY
            self.clock.advance(now)
            step = rollout.step(together(seen), now)
            if step.kind in ("promoted", "rolled back"):
                break
        return step


def ends(loss: float, count: int, gone: int = 99) -> Counter[str]:
    with tempfile.TemporaryDirectory() as name:
        house = House(Path(name))
        found: Counter[str] = Counter()
        for seed in range(count):
            step = house.canary(seed, loss, gone=gone)
            found[step.kind] += 1
            if step.kind == "hold":  # for the next one
                state = house.registry.state(SYSTEM)
                house.registry.set_traffic(SYSTEM, type(state.traffic)(), who="ada", why="next")
        house.registry.close()
    return found


def p50(values: Sequence[float]) -> float:
    return float(np.median(values))


def measure() -> dict[str, float]:
    found: dict[str, float] = {}
    for fault in FAULTS:
        noticed = [until_noticed(seed, fault) for seed in range(TRIALS)]
        found[f"{fault}_rolled_back"] = sum(bad is not None for bad, _ in noticed)
        found[f"{fault}_by_that_test"] = sum(bad == fault for bad, _ in noticed)
        found[f"{fault}_canary_requests_p50"] = float(np.median([n for _, n in noticed]))
        found[f"{fault}_canary_requests_max"] = max(n for _, n in noticed)
    found["bad_trials"], found["target_rolled_back"], found["target_canary_requests"] = TRIALS, 95, BUDGET
    start = time.perf_counter()
    lives = [same(10_000 + seed) for seed in range(SAME)]
    found["same_seconds"] = time.perf_counter() - start
    found["same_trials"], found["target_same_rolled_back"] = SAME, SAME // 100
    found["same_rolled_back"] = sum(bad is not None for bad, _, _ in lives)
    found["same_canary_requests_min"] = min(n for _, n, _ in lives)
    found["same_highest_e_value"] = max(e for _, _, e in lives)
    found["e_value_that_rolls_back"] = Evidence().enough
    better, dearer, gone = ends(BETTER, TRIALS), ends(DEARER, TRIALS), ends(BETTER, 20, gone=1)
    found["few_trials"], found["target_few_rolled_back"] = TRIALS, 95
    for per_day in FEW:
        for kind in (*FAULTS, None):
            name, lives_ = f"few_{per_day}_{kind or 'same'}", [lived(s, per_day, kind) for s in range(TRIALS)]
            for kind_ in ("rolled back", "promoted"):
                found[f"{name}_{kind_.replace(' ', '_')}"] = sum(step.kind == kind_ for step, _, _ in lives_)
            found[f"{name}_days_p50"], found[f"{name}_days_max"] = (f([d for _, d, _ in lives_]) for f in (p50, max))
            found[f"{name}_canary_requests_p50"] = p50([n for _, _, n in lives_])
    found["better_trials"], found["better_promoted"], found["target_better_promoted"] = TRIALS, better["promoted"], 95
    found["dearer_trials"], found["dearer_rolled_back"] = TRIALS, dearer["rolled back"]
    found["gone_trials"], found["gone_held"] = 20, gone["hold"]
    return found


def main() -> None:
    found = measure()
    if "--json" in sys.argv:
        print(json.dumps({"rollout": found}, indent=2))
        return
    print("rollout")
    for key, value in found.items():
        print(f"  {key:36} {value:12,.3f}")


if __name__ == "__main__":
    main()
