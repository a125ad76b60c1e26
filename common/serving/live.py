"""The versions of a system that can answer now: made ready beside those that answer, then swapped by one reference."""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from common.clock import Clock
from common.errors import BadBundle
from common.features.view import definition_digest
from common.monitoring import sketches
from common.registry.audit import PREVIOUS
from common.registry.gates import CHAMPION
from common.registry.registry import Registry, State
from common.serving.routing import Routing
from common.system import AnySystem, Model

KEPT = 1_000  # swaps

AnyModel: TypeAlias = Model[Any, Any]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A version in memory."""

    name: str
    model: AnyModel
    digest: str
    usual: Mapping[str, float] = field(default_factory=dict)  # median by feature, when it learned


@dataclass(frozen=True)
class View:
    """Who can answer, at one moment; a micro-batch takes one and ends with it, whatever comes meanwhile."""

    revision: int = 0
    routing: Routing | None = None  # None: no champion, so a degraded answer is all there is
    models: Mapping[str, Loaded] = field(default_factory=dict)  # all that routing may choose, previous, and shadows
    previous: Loaded | None = None  # a step of the ladder
    shadow: tuple[Loaded, ...] = ()  # their answers are logged, never returned

    @property
    def champion(self) -> Loaded | None:
        return None if self.routing is None else self.models[self.routing.champion]

    @property
    def answering(self) -> Mapping[str, Loaded]:
        """Those that a caller may ask for by name: a shadow answers nobody, its gates were never asked."""
        return {name: loaded for name, loaded in self.models.items() if loaded not in self.shadow}


@dataclass(frozen=True)
class Swap:
    """From then on this view was the current one."""

    at: int  # us
    revision: int
    names: tuple[str, ...]  # of the versions that it held


class Live:
    """Follows what the registry says of one system; threads may share it.

    A champion that cannot be loaded changes nothing: the view before it stays, `problem` says why, and the next
    refresh tries again. Where any other version cannot be loaded, the champion answers in its place.
    """

    def __init__(
        self,
        system: AnySystem,
        registry: Registry,
        key: bytes,
        clock: Clock,
        *,
        warm: Callable[[AnyModel], None],
        say: Callable[[str], None],
    ) -> None:
        """`warm` makes a first prediction with a model; `say` hears of each swap and, once, of each problem."""
        self._system, self._registry, self._key, self._clock = system, registry, key, clock
        self._warm, self._say = warm, say
        self._features = definition_digest(system.request, system.views, system.on_demand)
        self._view, self._problem = View(), ""
        self._followed: State | None = None  # what the view shows in full
        self._swaps: deque[Swap] = deque(maxlen=KEPT)
        self._refreshing = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def current(self) -> View:
        return self._view

    @property
    def problem(self) -> str | None:
        """Why the view is not what the registry says; None when it is."""
        return self._problem or None

    def live_at(self, at: int) -> Swap | None:
        """What was swapped in last, at or before a time; of the last 1,000 swaps."""
        return next((swap for swap in reversed(tuple(self._swaps)) if swap.at <= at), None)

    def refresh(self) -> bool:
        """Follow the registry; whether the view was swapped. Raises nothing: see `problem`."""
        with self._refreshing:
            try:
                state = self._registry.state(self._system.name)
            except Exception as error:  # whatever it is, the versions in memory can go on
                self._tell(_said(error))
                return False
            if state == self._followed:
                self._tell("")
                return False
            return self._follow(state)

    def watch(self, interval_s: float) -> None:
        """Refresh in a thread until `close`; call it once."""

        def run() -> None:
            while not self._closed.wait(interval_s):
                self.refresh()

        self._thread = threading.Thread(target=run, name=f"live-{self._system.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching, when a refresh that is under way has ended: the registry may be closed then."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _follow(self, state: State) -> bool:
        old, models, problems = self._view, dict[str, Loaded](), list[str]()

        def load(name: str | None) -> Loaded | None:
            if name is not None and name not in models:
                try:
                    models[name] = old.models.get(name) or self._load(name)
                except Exception as error:  # a model may raise anything; one that cannot be used must stop no other
                    problems.append(f"version {name}: {_said(error)}")
            return models.get(name or "")

        champion = load(state.aliases.get(CHAMPION))
        if problems and old.routing is not None:
            self._tell(f"{problems[0]}; {old.routing.champion} stays the champion here")
            return False
        previous, routing, shadow = load(state.aliases.get(PREVIOUS)), None, list[Loaded | None]()
        if champion is not None:
            missing = frozenset(name for name in state.traffic.answering if load(name) is None)
            shadow = [load(name) for name in state.traffic.shadow]
            routing = Routing(champion.name, state.traffic, self._key, missing)
        view = View(state.revision, routing, models, previous, tuple(s for s in shadow if s is not None))
        self._followed = None if problems else state
        if swapped := view != old:
            self._view = view
            self._swaps.append(Swap(self._clock.now(), view.revision, tuple(sorted(models))))
            self._say(f"{self._system.name}: revision {view.revision}, {_named(view)}")
        self._tell("; ".join(problems))
        return swapped

    def _load(self, name: str) -> Loaded:
        version = self._registry.get(self._system.name, name)
        if version.lineage.get("features", self._features) != self._features:
            raise BadBundle("features: it was fitted on other definitions than are computed here; train again")
        with self._registry.private(version) as folder:
            model, usual = self._system.load(folder), _usual(folder)
        self._warm(model)
        return Loaded(version.name, model, version.digest, usual)

    def _tell(self, problem: str) -> None:
        if problem != self._problem:
            self._say(f"{self._system.name}: {problem or 'is what the registry says again'}")
        self._problem = problem


def _usual(folder: Path) -> dict[str, float]:
    """From the sketches that training saved beside the model."""
    if not (folder / sketches.FILE).exists():
        return {}
    found = sketches.load(folder).items()
    return {name: sketch.median for name, sketch in found if isinstance(sketch, sketches.Numeric)}


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _named(view: View) -> str:
    if view.routing is None:
        return "no champion"
    said = [f"champion {view.routing.champion}"]
    said += [f"{name} {share:.3g} of the units" for name, share in view.routing.traffic.answering.items()]
    return ", ".join(said + [f"shadow {loaded.name}" for loaded in view.shadow])
