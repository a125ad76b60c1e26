"""A canary goes on when it has shown enough, comes back when it is worse, and never stops half way.

    python -m tests.common.test_rollout HOME KEYS COUNT

is a controller that takes canaries of as many systems to their ends, to be killed.
"""

import asyncio
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.rollout import BETTER, DEARER, ends
from common.clock import DAY, HOUR, SimulatedClock, WallClock, stopwatch
from common.errors import BadSetting, GateFailed, NotFound
from common.lifecycle.evidence import Evidence, Observation
from common.lifecycle.rollout import Rollout, Step, Steps
from common.registry.audit import PREVIOUS
from common.registry.gates import CHAMPION, Gate
from common.registry.keys import Keys
from common.registry.registry import Registry, State, Traffic

# So little is asked here that most faults could not have been noticed
CONFIG = Steps(least_units=5, least_requests=20, least_time=HOUR, power=0.0, evidence=Evidence(settle=0, silence=DAY))
UNITS, EACH = 100, 4  # requests of each unit in a step
PATIENCE = 60  # s


@dataclass
class House:
    """A registry with a champion and candidates."""

    folder: Path
    system: str = "shop"
    clock: SimulatedClock = field(default_factory=lambda: SimulatedClock(DAY))

    def open(self) -> None:
        self.registry = Registry(self.folder / "home", self.clock, Keys(self.folder / "keys"))
        self.old, self.new, self.other = (self.publish(content) for content in "abc")
        self.registry.promote(self.system, self.old, who="ada", why="first")

    def publish(self, content: str, lineage: dict[str, Any] | None = None, passed: bool = True) -> str:
        made = self.folder / f"{self.system}-{content}-{len(list(self.folder.iterdir()))}"
        made.mkdir()
        (made / "trees.txt").write_text(f"tree\n{self.system} {content}\n")
        verdict = Gate("f1", 0.5, better="higher").check({"f1": float(passed)}, {})
        return self.registry.publish(self.system, made, {}, lineage or {}, [verdict]).name

    def rollout(self, registry: Any = None, config: Steps = CONFIG) -> Rollout:
        return Rollout(registry or self.registry, self.system, config=config, who="rollout")

    @property
    def state(self) -> State:
        return self.registry.state(self.system)

    def later(self, us: int = HOUR) -> int:
        self.clock.advance(self.clock.now() + us)
        return self.clock.now()

    def split(self, who: str = "ada", **said: Any) -> None:
        self.registry.set_traffic(self.system, Traffic(**said), who=who, why="by hand")

    def seen(self, **fault: Any) -> list[Observation]:
        return observed(self.registry, self.system, self.new, self.clock.now(), **fault)

    def look(self, rollout: Rollout | None = None, **fault: Any) -> Step:
        """An hour later."""
        self.later()
        return (rollout or self.rollout()).step(self.seen(**fault), self.clock.now())

    def audited(self) -> list[tuple[str, str, str]]:
        self.registry.verify_audit()
        return [(row.who, row.what, row.why) for row in self.registry.audit(self.system)]


def observed(registry: Registry, system: str, version: str, now: int, **fault: Any) -> list[Observation]:
    """What the log would hold since the canary began, from the audit trail; `fault` is the canary's."""
    begun = []
    for row in registry.audit(system):
        traffic = Traffic.parse(row.became) if row.what == "traffic" and row.became else Traffic()
        if traffic.canary == version:
            begun.append((row.created, traffic.canary_share))
    seen = []
    for (start, share), end in zip(begun, [*(at for at, _ in begun[1:]), now], strict=True):
        for k in range(UNITS * EACH):
            unit = k * 37 % UNITS
            canary = unit < share * UNITS
            fine = Observation(
                f"u{unit}", canary, start + 1 + k * (end - start - 1) // (UNITS * EACH), False, False, 1, 0.0, 0.0
            )
            seen.append(replace(fine, **fault) if canary else fine)
    return seen


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    house.open()
    with house.registry:
        yield house


@pytest.mark.parametrize("shares", [(), (0.1, 0.5), (0.5, 0.1, 1.0), (0.0, 1.0), (0.5, 0.5, 1.0), (0.5, 2.0)])
def test_shares_rise_to_all_units(shares: tuple[float, ...]) -> None:
    with pytest.raises(BadSetting, match=r"^shares: must rise from above 0 to 1, got "):
        Steps(shares=shares)


def test_only_tests_that_there_are_can_be_needed() -> None:
    with pytest.raises(BadSetting, match="^needs: must be of errors, missing, latency, gap, loss, got beauty$"):
        Steps(needs=("beauty", "gap"))


def test_a_good_canary_gets_10_25_50_percent_and_then_is_the_champion(house: House) -> None:
    rollout = house.rollout()
    step = rollout.start(house.new, "it is better")
    assert (step.kind, step.share) == ("advanced", 0.1)
    assert house.state.traffic == Traffic(canary=house.new, canary_share=0.1)
    kinds = [(step.kind, step.share, house.state.traffic.canary_share) for step in (house.look() for _ in range(4))]
    assert kinds == [("advanced", 0.25, 0.25), ("advanced", 0.5, 0.5), ("promoted", 1.0, 0.0), ("none", 0.0, 0.0)]
    assert house.state.aliases == {CHAMPION: house.new, PREVIOUS: house.old}
    whos = [(who, what) for who, what, _ in house.audited()]
    assert whos == [("ada", "promote"), *[("rollout", "traffic")] * 3, ("rollout", "promote")]


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize(
    ("test", "fault"),
    [
        ("errors", {"failed": True}),
        ("missing", {"missing": True}),
        ("latency", {"took": 10**6}),
        ("gap", {"gap": 0.1}),
    ],
)
def test_a_bad_canary_is_taken_out_by_one_change_that_says_why(
    house: House, at: int, test: str, fault: dict[str, Any]
) -> None:
    """It breaks in any of its steps."""
    config = replace(CONFIG, evidence=replace(CONFIG.evidence, rate=0.05))  # the last step has few units that are new
    rollout = house.rollout(config=config)
    rollout.start(house.new, "it is better")
    for _ in range(at):
        assert house.look(rollout).kind == "advanced"
    revision = house.state.revision
    house.later()
    began = house.registry.audit(house.system)[-1].created
    seen = [replace(o, **fault) if o.canary and o.at > began else o for o in house.seen()]
    step = rollout.step(seen, house.clock.now())
    assert (step.kind, step.share) == ("rolled back", 0.0)
    assert (house.state.revision, house.state.traffic, house.state.aliases) == (
        revision + 1,
        Traffic(),
        {CHAMPION: house.old},
    )
    who, what, why = house.audited()[-1]
    assert (who, what, why) == ("rollout", "traffic", step.why)
    assert step.verdict is not None
    assert step.verdict.bad == test
    e_value = step.verdict.tests[test]
    assert why.startswith(f"{test}: e-value {e_value:.3g} >= 20 after {step.verdict.canary_requests} requests of ")
    assert house.look(rollout).kind == "none"


def test_a_bad_canary_is_taken_out_before_its_time_and_counts(house: House) -> None:
    rollout = house.rollout(config=replace(CONFIG, least_time=DAY, least_requests=10**6))
    rollout.start(house.new, "it is better")
    assert house.look(rollout, failed=True).kind == "rolled back"


def test_without_answers_of_both_arms_it_holds(house: House) -> None:
    rollout = house.rollout()
    rollout.start(house.new, "it is better")
    now = house.later()
    for arms, said in [
        ((), "answers of the canary: there are none"),
        ((True,), "answers of the champion: there are none"),
        ((False,), "answers of the canary: there are none"),
    ]:
        step = rollout.step([o for o in house.seen() if o.canary in arms], now)
        assert (step.kind, step.share, step.why) == ("hold", 0.1, said)
    assert house.state.traffic == Traffic(canary=house.new, canary_share=0.1)
    assert house.look(rollout).kind == "advanced"
    now = house.later()
    before = [o for o in house.seen() if o.at < now - HOUR]
    assert rollout.step(before, now).why == "answers of the canary: there are none", "in this step"


@pytest.mark.parametrize("arm", [True, False])
def test_when_metrics_go_in_the_middle_it_holds(house: House, arm: bool) -> None:
    rollout = house.rollout(config=replace(CONFIG, evidence=Evidence(settle=0, silence=HOUR)))
    rollout.start(house.new, "it is better")
    now = house.later(4 * HOUR)
    gone = [o for o in house.seen() if o.canary != arm or o.at < now - 2 * HOUR]
    step = rollout.step(gone, now)
    name, last = "canary" if arm else "champion", max(o.at for o in gone if o.canary == arm)
    assert (step.kind, step.why) == (
        "hold",
        f"answers of the {name}: there were none for {(now - last) / DAY:.3g} days",
    )
    assert rollout.step(house.seen(), now).kind == "advanced"


def test_a_signal_that_is_needed_must_be_there(house: House) -> None:
    rollout = house.rollout(config=replace(CONFIG, needs=("gap", "loss")))
    rollout.start(house.new, "it is better")
    now = house.later()
    bare = [replace(o, gap=None, loss=None) for o in house.seen()]
    assert rollout.step(bare, now).why == "gap of the canary: there are none"
    assert rollout.step([replace(o, gap=0.0) for o in bare], now).why == "loss of the canary: there are none"
    one = [replace(o, loss=0.0 if o.canary else None) for o in house.seen()]
    assert rollout.step(one, now).why == "loss of the champion: there are none"
    assert rollout.step(house.seen(), now).kind == "advanced"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"least_units": 11}, "canary: 40 requests of 10 units; must be 20 requests of 11 units"),
        ({"least_requests": 41}, "canary: 40 requests of 10 units; must be 41 requests of 5 units"),
        ({"least_time": 2 * HOUR}, "time: 0.0417 of 0.0833 days"),
    ],
)
def test_with_less_than_a_step_must_show_it_holds(house: House, changed: dict[str, Any], said: str) -> None:
    rollout = house.rollout(config=replace(CONFIG, **changed))
    rollout.start(house.new, "it is better")
    step = house.look(rollout)
    assert (step.kind, step.share, step.why) == ("hold", 0.1, said)
    assert house.look(house.rollout()).kind == "advanced"


def test_nothing_is_promoted_before_trouble_would_have_been_noticed(house: House) -> None:
    config = replace(CONFIG, power=0.95)
    rare = house.rollout(config=replace(config, evidence=replace(CONFIG.evidence, trouble=0.01)))
    rare.start(house.new, "it is better")
    assert [house.look(rare).kind for _ in range(2)] == ["advanced", "advanced"]
    step = house.look(rare)
    assert (step.kind, step.share) == ("hold", 0.5)
    said = r"errors: trouble would have been noticed with probability 0\.\d\d; must be 0\.95"
    assert re.fullmatch(said, step.why), step.why
    assert house.look(house.rollout(config=config)).kind == "promoted", "one request in twenty would have been"


def test_what_earlier_steps_have_shown_counts_for_none_of_the_later(house: House) -> None:
    rollout = house.rollout(config=replace(CONFIG, least_requests=101))
    house.rollout().start(house.new, "it is better")
    house.look()
    assert house.look(rollout).why == "canary: 100 requests of 25 units; must be 101 requests of 5 units"


def test_who_has_few_champion_units_left_holds(house: House) -> None:
    house.rollout().start(house.new, "it is better")
    house.later()
    few = [o for o in house.seen() if o.canary or o.unit == "u99"]
    step = house.rollout().step(few, house.clock.now())
    assert step.why == "champion: 4 requests of 1 units; must be 20 requests of 5 units"


def test_only_a_version_that_cleared_its_gates_against_this_champion_begins(house: House) -> None:
    for name in (
        house.publish("missed", passed=False),
        house.publish("against another", {CHAMPION: house.other}),
    ):
        with pytest.raises(GateFailed):
            house.rollout().start(name, "it is better")
    with pytest.raises(NotFound):
        house.rollout().start("0123456789ab", "it is better")
    assert house.state.traffic == Traffic()
    assert house.rollout().start(house.publish("against it", {CHAMPION: house.old}), "well").kind == "advanced"


def test_to_begin_again_changes_nothing(house: House) -> None:
    house.rollout().start(house.new, "it is better")
    house.look()
    revision = house.state.revision
    assert house.rollout().start(house.new, "it is better") == Step("hold", 0.25, f"{house.new} has begun")
    assert house.state.revision == revision


def test_one_canary_after_the_other(house: House) -> None:
    for said in ({"canary": house.other, "canary_share": 0.5}, {"arms": {house.other: 0.5}}):
        house.split(**said)
        assert house.rollout().start(house.new, "it is better") == Step("hold", 0.0, f"{house.other} must end first")
        assert house.state.traffic == Traffic(**said)


def test_the_champion_is_no_canary(house: House) -> None:
    assert house.rollout().start(house.old, "again").kind == "none"
    assert house.state.traffic == Traffic()


def test_a_version_that_was_taken_out_does_not_begin_again(house: House) -> None:
    rollout = house.rollout()
    rollout.start(house.new, "it is better")
    taken = house.look(rollout, failed=True)
    assert rollout.start(house.new, "it is better") == Step(
        "none", 0.0, f"{house.new} was taken out by rollout: {taken.why}"
    )
    assert house.state.traffic == Traffic()
    assert rollout.start(house.other, "it is better").kind == "advanced"


def test_a_challenger_that_was_a_shadow_becomes_the_canary_and_other_shadows_stay_to_the_end(house: House) -> None:
    house.split(shadow=(house.new, house.other))
    house.rollout().start(house.new, "it is better")
    assert house.state.traffic == Traffic(canary=house.new, canary_share=0.1, shadow=(house.other,))
    house.look()
    assert house.state.traffic == Traffic(canary=house.new, canary_share=0.25, shadow=(house.other,))
    house.look(failed=True)
    assert house.state.traffic == Traffic(shadow=(house.other,))


def test_a_damaged_shadow_does_not_keep_a_bad_canary_in(house: House) -> None:
    house.split(shadow=(house.other,))
    house.rollout().start(house.new, "it is better")
    damage(house, house.other)
    assert house.look(failed=True).kind == "rolled back"
    assert house.state.traffic == Traffic()


def damage(house: House, name: str) -> None:
    digest = house.registry.get(house.system, name).digest
    file = house.folder / "home" / "bundles" / digest / "trees.txt"
    file.chmod(0o600)
    file.write_text("tree\nanother\n")


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("spoilt", ["judged anew", "damaged"])
def test_a_canary_that_no_longer_clears_or_is_damaged_is_taken_out(house: House, steps: int, spoilt: str) -> None:
    """At 10 % on the way to 25, and at 50 % on the way to promotion."""
    house.rollout().start(house.new, "it is better")
    for _ in range(steps):
        assert house.look().kind == "advanced"
    if spoilt == "damaged":
        damage(house, house.new)
    else:
        assert house.publish("b", passed=False) == house.new
    step = house.look()
    assert (step.kind, step.share) == ("rolled back", 0.0)
    assert house.audited()[-1] == ("rollout", "traffic", step.why)
    assert house.new in step.why
    assert (house.state.traffic, house.state.aliases) == (Traffic(), {CHAMPION: house.old})


def test_what_a_person_changes_stays(house: House) -> None:
    house.rollout().start(house.new, "it is better")
    house.split()
    revision = house.state.revision
    assert house.look() == Step("none", 0.0, "there is no canary")
    assert house.rollout().start(house.new, "again").why == f"{house.new} was taken out by ada: by hand"
    assert house.state.revision == revision


def test_a_canary_of_somebody_else_is_not_touched(house: House) -> None:
    house.split(canary=house.new, canary_share=0.1)
    assert house.look(failed=True) == Step("none", 0.1, f"{house.new} is the canary of ada")
    assert house.state.traffic == Traffic(canary=house.new, canary_share=0.1)
    house.split()
    house.rollout().start(house.other, "it is better")
    house.split(canary=house.new, canary_share=0.1)
    assert house.look(failed=True).kind == "none"


@pytest.mark.parametrize("change", ["promote", "rollback"])
def test_a_promotion_or_rollback_by_a_person_ends_a_canary(house: House, change: str) -> None:
    house.registry.promote(house.system, house.other, who="ada", why="second")
    house.rollout().start(house.new, "it is better")
    if change == "promote":
        house.registry.promote(house.system, house.old, who="ada", why="third")
    else:
        house.registry.rollback(house.system, who="ada", why="bad")
    assert house.look() == Step("none", 0.0, "there is no canary")
    assert house.state.aliases[CHAMPION] == house.old


def test_a_share_that_a_person_set_is_watched_but_goes_no_further(house: House) -> None:
    house.rollout().start(house.new, "it is better")
    house.look()
    house.split(canary=house.new, canary_share=0.3)
    step = house.look()
    assert (step.kind, step.share, step.why) == ("hold", 0.3, "its share was set to 0.3 by ada")
    assert house.look(failed=True).kind == "rolled back"


def test_changed_shadows_begin_no_step(house: House) -> None:
    house.rollout().start(house.new, "it is better")
    house.later()
    house.split(canary=house.new, canary_share=0.1, shadow=(house.other,))
    seen = observed(house.registry, house.system, house.new, house.clock.now())
    began = min(o.at for o in seen)
    assert house.rollout().step([replace(o, at=max(o.at, began)) for o in seen], house.later(1)).kind == "advanced"


class Meddled:
    """A registry where something happens before or after a call, which counts its calls."""

    def __init__(self, registry: Registry, at: int, before: Callable[[], object], after: Callable[[], object]) -> None:
        self._registry, self._at, self._before, self._after, self.calls = registry, at, before, after, 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._registry, name)

        def call(*args: Any, **said: Any) -> Any:
            self.calls += 1
            now = self.calls == self._at
            if now:
                self._before()
            result = method(*args, **said)
            if now:
                self._after()
            return result

        return call


class Killed(BaseException):
    pass


def killed() -> None:
    raise Killed


def nothing() -> None:
    pass


def to_the_end(house: House, registry: Any, **fault: Any) -> None:
    """As whoever runs it does, after every start."""
    rollout = house.rollout(registry)
    rollout.start(house.new, "it is better")
    for _ in range(10):
        if house.look(rollout, **fault).kind in ("promoted", "rolled back", "none"):
            return


@pytest.mark.parametrize("fault", [{}, {"failed": True}])
def test_a_controller_that_is_killed_before_or_after_any_call_ends_as_if_it_was_not(
    tmp_path: Path, fault: dict[str, bool]
) -> None:
    def ended(name: str, at: int, *when: Callable[[], None]) -> tuple[Any, int]:
        (tmp_path / name).mkdir()
        house = House(tmp_path / name)
        house.open()
        with house.registry:
            meddled = Meddled(house.registry, at, *when)
            try:
                to_the_end(house, meddled, **fault)
            except Killed:
                to_the_end(house, house.registry, **fault)
            state = house.state
            return (state.aliases, state.traffic, [what for _, what, _ in house.audited()]), meddled.calls

    usual, calls = ended("usual", 0, nothing, nothing)
    assert usual[1] == Traffic()
    assert calls >= (6 if fault else 12)
    for at in range(1, calls + 1):
        for name, when in {"before": (killed, nothing), "after": (nothing, killed)}.items():
            assert ended(f"{name}{at}", at, *when)[0] == usual, (name, at)


@pytest.mark.parametrize("fault", [{}, {"failed": True}])
def test_of_two_controllers_one_wins_and_the_other_holds(house: House, fault: dict[str, bool]) -> None:
    """The second one acts between the first one's look and its change."""
    other = house.rollout()
    first = house.rollout(Meddled(house.registry, 3, lambda: other.start(house.new, "it is better"), nothing))
    assert first.start(house.new, "it is better").kind == "hold"
    for at, kind in enumerate(("rolled back",) if fault else ("advanced", "advanced", "promoted")):
        now = house.later()
        seen, found = house.seen(**fault), list[Step]()
        first = house.rollout(Meddled(house.registry, 3, lambda: found.append(other.step(seen, now)), nothing))  # noqa: B023
        step = first.step(seen, now)
        assert (step.kind, found[0].kind) == ("hold", kind), at
        assert "look again" in step.why
    assert len(house.audited()) == (3 if fault else 5)


def test_threads_that_control_at_once_make_each_step_once(house: House) -> None:
    house.rollout().start(house.new, "it is better")
    for _ in range(3):
        now, ready = house.later(), threading.Barrier(4)
        seen, kinds = house.seen(), list[str]()

        def look(ready: threading.Barrier, seen: Sequence[Observation], now: int, kinds: list[str]) -> None:
            ready.wait()
            kinds.append(house.rollout().step(seen, now).kind)

        threads = [threading.Thread(target=look, args=(ready, seen, now, kinds)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(kinds) == 4
        assert sum(kind in ("advanced", "promoted") for kind in kinds) == 1
        assert set(kinds) <= {"advanced", "promoted", "hold", "none"}
    assert house.state.aliases[CHAMPION] == house.new


def test_controllers_that_are_killed_again_and_again_bring_each_canary_to_its_end(tmp_path: Path) -> None:
    count, kills, rng = 8, 0, random.Random(0)
    folder, keys = tmp_path / "home", Keys(tmp_path / "keys")
    candidates = []
    with Registry(folder, SimulatedClock(DAY), keys) as registry:
        for i in range(count):
            house = House(tmp_path, f"shop-{i}")
            house.registry = registry
            old, new = (house.publish(content) for content in "ab")
            registry.promote(house.system, old, who="ada", why="first")
            candidates.append((old, new))
    command = [sys.executable, "-m", "tests.common.test_rollout", str(folder), str(keys.folder)]
    command += [f"{old}:{new}" for old, new in candidates]
    while True:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            try:
                process.wait(rng.uniform(0.005, 0.02) * 1.2**kills)  # soon at first; a slow machine gets there, too
                break
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
            assert kills < 60
    assert process.returncode == 0
    assert kills >= 3
    with Registry(folder, SimulatedClock(DAY), keys) as registry:
        registry.verify_audit()
        for i, (old, new) in enumerate(candidates):
            state, whats = registry.state(f"shop-{i}"), [row.what for row in registry.audit(f"shop-{i}")]
            assert state.traffic == Traffic()
            assert state.aliases[CHAMPION] == (old if i % 2 else new)
            assert whats == ["promote", "traffic", "traffic", *(["promote"] if not i % 2 else [])] or whats == [
                "promote", *["traffic"] * 3, "promote",
            ]  # fmt: skip


def main(home: str, keys: str, *candidates: str) -> None:
    clock = SimulatedClock(DAY)
    with Registry(Path(home), clock, Keys(Path(keys))) as registry:
        clock.advance(max(row.created for row in registry.audit()) + 1)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        for i, names in enumerate(candidates):
            new, system = names.partition(":")[2], f"shop-{i}"
            rollout = Rollout(registry, system, config=CONFIG, who="rollout")
            step = rollout.start(new, "it is better")
            while step.kind not in ("promoted", "rolled back", "none"):
                clock.advance(clock.now() + HOUR)
                fault = {"failed": True} if i % 2 else {}
                step = rollout.step(observed(registry, system, new, clock.now(), **fault), clock.now())


def test_of_all_that_is_asked_while_a_failing_canary_is_taken_out_nothing_fails(tmp_path: Path) -> None:
    """Through the application: its routing, its ladder, and a registry that another thread changes."""
    from tests.common.test_app import started  # here: a controller that is to be killed must start soon
    from tests.common.test_inference import SHOP, Times

    class Failing(Times):
        """Cannot answer."""

        def predict(self, requests: Sequence[Any], rows: Any, x: Any) -> Sequence[float]:
            if any(request.minutes >= 0 for request in requests):
                raise ZeroDivisionError
            return super().predict(requests, rows, x)

    def load(folder: Path) -> Times:
        factor = json.loads((folder / "factor.json").read_text())["factor"]
        return Failing(factor) if factor == 2.0 else Times(factor)

    warm = SHOP.examples[0].model_copy(update={"minutes": -1.0})  # it breaks after its first prediction
    shop = replace(SHOP, load=load, examples=(warm, *SHOP.examples[1:]))
    home, keys = tmp_path / "home", Keys(tmp_path / "keys")
    config = replace(CONFIG, shares=(0.25, 1.0), evidence=Evidence(settle=0))
    with Registry(home, WallClock(), keys) as registry:
        names = []
        for factor in (1.0, 2.0):
            (tmp_path / str(factor)).mkdir()
            Times(factor).save(tmp_path / str(factor))
            names.append(registry.publish("shop", tmp_path / str(factor), {}, {}, []).name)
        champion, canary = names
        registry.promote("shop", champion, who="ada", why="first")
        rollout = Rollout(registry, "shop", config=config, who="rollout")
        with started(home, keys.folder, [shop], rate_limit="1000000/second") as client:
            key, clock = client.key("score"), WallClock()
            live = client.app.state.runtime.served["shop"].live
            statuses: list[int] = []
            seen: list[Observation] = []
            steps = [rollout.start(canary, "it is better")]
            live.refresh()
            assert canary in live.current.models

            async def caller(number: int, done: "asyncio.Task[None]") -> None:
                asked = 0
                while not done.done():
                    unit = f"{number}.{asked}"
                    body = {**SHOP.examples[0].model_dump(), "event_id": unit, "user": unit}
                    arm = live.current.routing.route(unit).role == "canary"
                    start = stopwatch()
                    answer = await client.asking("POST", "/v1/shop/score", body, key)
                    statuses.append(answer.status)
                    failed = bool(answer.json["degraded"])
                    seen.append(Observation(unit, arm, clock.now(), failed, False, stopwatch() - start, None, None))
                    asked += 1

            async def control() -> None:
                end = time.monotonic() + PATIENCE
                while steps[-1].kind != "rolled back" and time.monotonic() < end:
                    await asyncio.sleep(0.05)
                    steps.append(await asyncio.to_thread(rollout.step, list(seen), clock.now()))
                await asyncio.to_thread(live.refresh)

            async def scene() -> None:
                done = asyncio.create_task(control())
                await asyncio.gather(done, *(caller(i, done) for i in range(8)))

            client.run(scene())
            assert steps[-1].kind == "rolled back"
            assert steps[-1].verdict is not None
            assert steps[-1].verdict.bad == "errors"
            assert set(statuses) == {200}
            assert sum(o.failed for o in seen) > 5, "the ladder answered for the canary"
            assert all(o.canary for o in seen if o.failed)
            after = client.ask(
                "POST", "/v1/shop/score", {**SHOP.examples[0].model_dump(), "event_id": "z", "user": "z"}, key
            )
            assert (after.status, after.json["version"], after.json["degraded"]) == (200, champion, None)
            assert canary not in live.current.models


def test_a_better_candidate_is_promoted_and_one_that_costs_more_is_taken_out() -> None:
    assert ends(BETTER, 6)["promoted"] == 6
    assert ends(DEARER, 6)["rolled back"] >= 5


def test_where_metrics_are_gone_no_candidate_is_promoted() -> None:
    assert ends(BETTER, 3, gone=1) == {"hold": 3}


if __name__ == "__main__":
    main(*sys.argv[1:])
