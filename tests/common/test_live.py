"""New versions come in beside the old ones; what goes wrong with them stops nobody."""

import gc
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.clock import SimulatedClock
from common.monitoring import sketches
from common.registry.keys import Keys
from common.registry.registry import Registry, Traffic
from common.serving.live import AnyModel, Live, View
from common.serving.routing import Choice
from common.system import AnySystem, find, names
from tests.cluster import cluster

SAID: dict[str, Any] = {"who": "ada", "why": "it is better"}
UNITS = [f"card-{i}" for i in range(200)]
PATIENCE = 60  # s


class Tree:
    """A model that only knows what was in its file."""

    def __init__(self, text: str) -> None:
        self.text = text


@dataclass
class House:
    """A registry with three versions, and a live view of it."""

    home: Path
    keys: Keys
    url: str | None = None
    clock: SimulatedClock = field(default_factory=lambda: SimulatedClock(1_000))
    loaded: list[str] = field(default_factory=list)
    warmed: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    refuse: str = ""  # the text of a model that cannot be warmed
    on_load: Callable[[Path], None] = lambda folder: None

    def open(self) -> None:
        self.registry = Registry(self.home, self.clock, self.keys, self.url)
        self.names = []
        for content in "abc":
            made = self.home.parent / content
            made.mkdir()
            (made / "trees.txt").write_text(f"tree\n{content}\n")
            self.names.append(self.registry.publish(self.system.name, made, {}, {}, []).name)
        self.live = self.new()

    @property
    def system(self) -> AnySystem:
        return replace(find("systems", names("systems")[0]), name="shop", load=self.load)

    def new(self) -> Live:
        return Live(self.system, self.registry, b"key", self.clock, warm=self.warm, say=self.said.append)

    def load(self, folder: Path) -> Any:
        self.on_load(folder)
        text = (folder / "trees.txt").read_text()
        self.loaded.append(text.split()[1])
        return Tree(text.split()[1])

    def warm(self, model: AnyModel) -> None:
        assert isinstance(model, Tree)
        self.warmed.append(model.text)
        if model.text == self.refuse:
            raise RuntimeError("no prediction\ncan be made")

    def promote(self, name: str) -> None:
        self.registry.promote("shop", name, **SAID)

    def split(self, traffic: Traffic) -> None:
        self.registry.set_traffic("shop", traffic, **SAID)

    def tree(self, name: str) -> Path:
        return self.home / "bundles" / self.registry.get("shop", name).digest / "trees.txt"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "home", Keys(tmp_path / "keys"))
    house.open()
    with house.registry:
        yield house
        house.live.close()


def texts(view: View) -> dict[str, str]:
    """By name, what each model in a view is."""
    return {name: loaded.model.text for name, loaded in view.models.items()}  # type: ignore[attr-defined]


def answering(view: View) -> set[str]:
    assert view.routing is not None
    return {view.routing.route(unit).version for unit in UNITS}


def test_without_a_champion_nobody_answers_and_nothing_is_wrong(house: House) -> None:
    assert not house.live.refresh()
    view = house.live.current
    assert (view.routing, view.champion, view.previous, house.live.problem) == (None, None, None, None)
    assert house.loaded == []


def test_a_version_is_loaded_and_warm_before_it_answers(house: House) -> None:
    a, b, _ = house.names
    house.promote(a)
    assert house.live.refresh()
    first = house.live.current
    seen: list[View] = []
    house.on_load = lambda folder: seen.append(house.live.current)
    house.promote(b)
    assert house.live.refresh()
    assert seen == [first]
    assert house.warmed == ["a", "b"]
    champion = house.live.current.champion
    assert champion is not None
    assert (champion.name, champion.digest[:12], champion.model.text) == (b, b, "b")  # type: ignore[attr-defined]
    assert first.champion is not None
    assert first.champion.name == a  # whoever took it ends with it
    assert answering(first) == {a}


def test_what_is_in_memory_is_not_loaded_again_and_nothing_happens_while_nothing_changes(house: House) -> None:
    a, b, _ = house.names
    house.promote(a)
    house.live.refresh()
    house.promote(b)
    house.live.refresh()
    view = house.live.current
    assert not house.live.refresh()
    assert house.live.current is view
    house.registry.rollback("shop", **SAID)
    house.live.refresh()
    assert house.loaded == ["a", "b"]
    assert texts(house.live.current) == {a: "a"}


def test_a_view_holds_champion_previous_canary_and_shadow_and_drops_what_nobody_names(house: House) -> None:
    a, b, c = house.names
    house.promote(a)
    house.live.refresh()
    dropped = weakref.ref(house.live.current.models[a].model)
    house.promote(b)
    house.split(Traffic(canary=a, canary_share=0.5, shadow=(c,)))
    house.live.refresh()
    view = house.live.current
    assert texts(view) == {a: "a", b: "b", c: "c"}
    assert view.revision == 3
    assert view.previous is view.models[a]
    assert view.shadow == (view.models[c],)
    assert answering(view) == {a, b}
    house.split(Traffic(arms={c: 0.3}))
    house.live.refresh()
    assert answering(house.live.current) == {b, c}
    assert house.live.current.shadow == ()
    house.promote(c)
    house.live.refresh()
    assert texts(house.live.current) == {b: "b", c: "c"}
    assert answering(house.live.current) == {c}
    assert house.loaded == ["a", "b", "c"]
    del view
    gc.collect()
    assert dropped() is None


def spoil(house: House, name: str) -> Callable[[], None]:
    house.tree(name).write_text("tree\nspoilt\n")
    return lambda: (house.tree(name).write_text("tree\nb\n"), None)[1]


def take_away(house: House, name: str) -> Callable[[], None]:
    folder = house.tree(name).parent
    shutil.move(folder, house.home / "away")
    return lambda: (shutil.move(house.home / "away", folder), None)[1]


def break_warming(house: House, name: str) -> Callable[[], None]:
    house.refuse = "b"
    return lambda: setattr(house, "refuse", "")


def break_loading(house: House, name: str) -> Callable[[], None]:
    def on_load(folder: Path) -> None:
        if "\nb\n" in (folder / "trees.txt").read_text():
            raise KeyError("no such tree")

    house.on_load = on_load
    return lambda: setattr(house, "on_load", lambda folder: None)


BREAKAGES = {
    spoil: "BadBundle: .*trees.txt: SHA-256 must be",
    take_away: "BadBundle: .*must be a folder",
    break_warming: "RuntimeError: no prediction can be made",
    break_loading: "KeyError: 'no such tree'",
}


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.__name__)
def test_a_champion_that_cannot_be_loaded_changes_nothing_until_it_can(
    house: House, breakage: Callable[[House, str], Callable[[], None]]
) -> None:
    a, b, c = house.names
    house.promote(a)
    house.split(Traffic(canary=c, canary_share=0.2))
    house.live.refresh()
    view = house.live.current
    house.promote(b)
    mend = breakage(house, b)
    house.said.clear()
    for _ in range(3):
        assert not house.live.refresh()
        assert house.live.current is view
    assert len(house.said) == 1
    assert house.live.problem is not None
    assert house.said == [f"shop: {house.live.problem}"]
    pytest.raises(RuntimeError, raiser(house.live.problem)).match(f"version {b}: {BREAKAGES[breakage]}")
    assert house.live.problem.endswith(f"; {a} stays the champion here")
    assert "\n" not in house.live.problem
    mend()
    assert house.live.refresh()
    assert answering(house.live.current) == {b}
    assert house.live.problem is None
    assert not house.live.refresh()


def raiser(message: str) -> Callable[[], None]:
    def fail() -> None:
        raise RuntimeError(message)

    return fail


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.__name__)
def test_for_a_canary_that_cannot_be_loaded_the_champion_answers(
    house: House, breakage: Callable[[House, str], Callable[[], None]]
) -> None:
    a, b, _ = house.names
    house.promote(a)
    house.split(Traffic(canary=b, canary_share=0.5))
    mend = breakage(house, b)
    assert house.live.refresh()
    view = house.live.current
    assert view.routing is not None
    assert {view.routing.route(unit) for unit in UNITS} == {Choice(a, "champion", 1.0)}
    assert house.live.problem is not None
    assert house.live.problem.startswith(f"version {b}: ")
    assert not house.live.refresh()
    assert house.live.current is view
    mend()
    assert house.live.refresh()
    assert answering(house.live.current) == {a, b}
    assert house.live.problem is None


def test_a_shadow_that_cannot_be_loaded_stops_no_other(house: House) -> None:
    a, b, c = house.names
    house.promote(a)
    house.split(Traffic(arms={c: 0.5}, shadow=(b,)))
    spoil(house, b)
    assert house.live.refresh()
    assert answering(house.live.current) == {a, c}
    assert house.live.current.shadow == ()
    assert (house.live.problem or "").startswith(f"version {b}: BadBundle")


def test_a_service_that_starts_with_a_bad_champion_still_has_the_previous_one(house: House) -> None:
    a, b, _ = house.names
    house.promote(a)
    house.promote(b)
    spoil(house, b)
    live = house.new()
    assert live.refresh()
    assert (live.current.routing, live.current.champion) == (None, None)
    assert live.current.previous is not None
    assert live.current.previous.name == a
    assert (live.problem or "").startswith(f"version {b}: BadBundle")
    assert not live.refresh()
    house.tree(b).write_text("tree\nb\n")
    assert live.refresh()
    assert answering(live.current) == {b}
    assert house.loaded == ["a", "b"]


def test_a_bundle_that_is_changed_after_it_was_verified_is_not_what_is_loaded(house: House) -> None:
    a, _, _ = house.names
    house.promote(a)
    house.on_load = lambda folder: (house.tree(a).write_text("tree\nevil\n"), None)[1]
    assert house.live.refresh()
    assert house.loaded == ["a"]
    with pytest.raises(Exception, match="SHA-256 must be"):
        house.registry.path(house.registry.get("shop", a))


def test_a_registry_that_cannot_be_believed_is_said_once_and_followed_again_when_it_can(house: House) -> None:
    a, b, _ = house.names
    house.promote(a)
    house.live.refresh()
    house.said.clear()
    trusted = next((house.keys.folder / "trusted").iterdir())
    pem = trusted.read_bytes()
    house.promote(b)
    trusted.unlink()
    for _ in range(3):
        assert not house.live.refresh()
    assert len(house.said) == 1
    assert "BadBundle: audit head: signature: key" in house.said[0]
    assert answering(house.live.current) == {a}
    trusted.write_bytes(pem)
    trusted.chmod(0o644)
    assert house.live.refresh()
    assert house.live.problem is None
    assert answering(house.live.current) == {b}


def test_a_problem_that_went_away_while_nothing_changed_is_a_problem_no_longer(house: House) -> None:
    house.promote(house.names[0])
    house.live.refresh()
    trusted = next((house.keys.folder / "trusted").iterdir())
    trusted.chmod(0o666)
    house.live.refresh()
    assert "nobody but its owner may write it" in (house.live.problem or "")
    trusted.chmod(0o644)
    assert not house.live.refresh()
    assert house.live.problem is None
    assert house.said[-1] == "shop: is what the registry says again"


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"did not come true in {PATIENCE} s")
        time.sleep(0.002)


def test_a_watcher_follows_outlives_errors_and_ends_when_it_is_closed(house: House) -> None:
    a, b, _ = house.names
    house.live.watch(0.001)
    house.promote(a)
    wait_until(lambda: house.live.current.champion is not None)
    house.refuse = "b"
    house.promote(b)
    wait_until(lambda: house.live.problem is not None)
    house.refuse = ""
    wait_until(lambda: answering(house.live.current) == {b})
    house.live.close()
    assert not any(thread.name == "live-shop" for thread in threading.enumerate())


def test_a_database_that_goes_away_and_comes_back_stops_no_answer_and_no_watcher(tmp_path: Path) -> None:
    with cluster() as server:
        house = House(tmp_path / "home", Keys(tmp_path / "keys"), server.url)
        house.open()
        a, b, _ = house.names
        house.promote(a)
        house.live.watch(0.01)
        wait_until(lambda: house.live.current.champion is not None)
        server.stop()
        wait_until(lambda: house.live.problem is not None)
        assert "Unavailable: PostgreSQL at" in (house.live.problem or "")
        assert answering(house.live.current) == {a}
        server.start()
        wait_until(lambda: house.live.problem is None)
        house.promote(b)
        wait_until(lambda: answering(house.live.current) == {b})
        house.live.close()
        house.registry.close()


def test_every_view_that_a_thread_can_see_is_whole(house: House) -> None:
    a, b, c = house.names
    house.promote(a)
    house.live.refresh()
    house.live.watch(0.001)
    stop, seen, torn = threading.Event(), set[int](), list[object]()

    def answer() -> None:
        while not stop.wait(0.0001):  # s; four that never pause leave the watcher no turn
            view = house.live.current
            seen.add(view.revision)
            assert view.routing is not None
            for unit in UNITS[:20]:
                choice = view.routing.route(unit)
                if texts(view).get(choice.version) is None or choice.propensity <= 0:
                    torn.append((view.revision, choice))

    threads = [threading.Thread(target=answer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(10):
        house.promote((b, a)[i % 2])
        house.split(Traffic(canary=c, canary_share=0.5))
        wait_until(lambda: house.live.current.revision == house.registry.revision("shop"))
    stop.set()
    for thread in threads:
        thread.join()
    assert torn == []
    assert max(seen) > 2


def test_what_was_live_at_a_time_can_be_asked_later(house: House) -> None:
    a, b, _ = house.names
    house.promote(a)
    house.live.refresh()
    house.clock.advance(5_000)
    house.promote(b)
    house.live.refresh()
    assert house.live.live_at(999) is None
    first, second = house.live.live_at(4_999), house.live.live_at(5_000)
    assert first is not None
    assert second is not None
    assert (first.at, first.revision, first.names) == (1_000, 1, (a,))
    assert (second.at, second.revision, second.names) == (5_000, 2, tuple(sorted((a, b))))
    for i in range(1_001):
        house.clock.advance(10_000 + i)
        house.promote((a, b)[i % 2])
        house.live.refresh()
    assert house.live.live_at(9_999) is None
    assert house.live.live_at(10_001) is not None
    assert house.loaded == ["a", "b"]


def test_what_was_usual_when_a_version_learned_comes_with_it(house: House) -> None:
    house.promote(house.names[0])
    house.live.refresh()
    assert house.live.current.models[house.names[0]].usual == {}
    made = house.home.parent / "a"
    kinds = {"kind": sketches.Categorical.of(["x", "y"])}
    sketches.save(sketches.build(("amount",), np.array([[1.0], [2.0], [9.0]])) | kinds, made)
    name = house.registry.publish("shop", made, {}, {}, []).name
    house.promote(name)
    house.live.refresh()
    assert house.live.current.models[name].usual == {"amount": 2.0}


def test_a_swap_is_said_in_one_line(house: House) -> None:
    a, b, c = house.names
    house.promote(a)
    house.split(Traffic(canary=b, canary_share=0.1, shadow=(c,)))
    house.live.refresh()
    assert house.said == [f"shop: revision 2, champion {a}, {b} 0.1 of the units, shadow {c}"]
