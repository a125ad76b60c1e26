"""The whole loop on a simulated clock: a world lives, somebody answers, the log remembers, the loop keeps watch."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from threadpoolctl import threadpool_limits

from common.clock import DAY, HOUR, SECOND, SimulatedClock
from common.data.log import EventLog
from common.data.snapshots import Snapshots
from common.errors import BadSetting
from common.features.online import catch_up
from common.features.online.sqlite import SqliteStore
from common.features.view import Array, Times
from common.lifecycle import faults, training
from common.lifecycle.journal import Journal
from common.lifecycle.loop import Happened, Loop
from common.lifecycle.training import Trained
from common.progress import Progress
from common.registry.bundle import MANIFEST, SIGNATURE
from common.registry.gates import CHAMPION, Verdict
from common.registry.keys import Keys
from common.registry.registry import Registry, Version
from common.schema import Event, Logged, logged_table
from common.serving.following import bring
from common.serving.live import Live
from common.serving.routing import uniform
from common.serving.service import LUCK, NOTHING, RULE, AnyService, Reply, Service, remember
from common.system import Answer, AnySystem, Arrival, Model, Params, World, find

WHO = "simulation"
STEP = 2 * HOUR  # us that the world does not hear of what is answered
SPARE = 1  # days that a world lasts beyond what is simulated


class Answers(Protocol):
    """Whoever answers, and is told of what happened."""

    def answer(self, requests: Sequence[Any], as_of: Times) -> Sequence[Reply[Any]]: ...
    def heard(self, events: Sequence[Event], logged: Sequence[Logged]) -> None:
        """New events, with their places at the end of the log."""


class ByRule:
    """What answers before there is a model."""

    def __init__(self, rule: Callable[[Any, float], Answer]) -> None:
        self._rule = rule

    def answer(self, requests: Sequence[Any], as_of: Times) -> Sequence[Reply[Any]]:
        answers = [self._rule(request, uniform(b"", LUCK, request.event_id)) for request in requests]
        return [Reply(answer, RULE, "rule", 1.0, None, NOTHING, ()) for answer in answers]

    def heard(self, events: Sequence[Event], logged: Sequence[Logged]) -> None:
        pass


class ByModel:
    """What answers before a model has been learned: one that needs no features."""

    def __init__(self, system: AnySystem, model: Model[Any, Any]) -> None:
        self._system, self._model = system, model

    def answer(self, requests: Sequence[Any], as_of: Times) -> Sequence[Reply[Any]]:
        system, rows = self._system, self._model.rows(requests)
        said = self._model.predict(requests, rows, np.empty((rows.columns.num_rows, 0)))
        return [
            Reply(
                system.decide(request, p, uniform(b"", LUCK, request.event_id)), RULE, "rule", 1.0, None, NOTHING, ()
            )
            for request, p in zip(requests, said, strict=True)
        ]  # fmt: skip

    def heard(self, events: Sequence[Event], logged: Sequence[Logged]) -> None:
        tell(self._system, [self._model], events, logged)


def tell(system: AnySystem, models: Sequence[Any], events: Sequence[Event], logged: Sequence[Logged]) -> None:
    """Let models hear of new events, if they do."""
    kind = system.hears
    if kind is None:
        return
    mine = [(event, at) for event, at in zip(events, logged, strict=True) if isinstance(event, kind)]
    if mine:
        table = logged_table(kind, *zip(*mine, strict=True))
        for model in models:
            model.hear(table)


def before(system: AnySystem) -> Answers:
    """Who answers in the history of a new world."""
    return ByRule(system.degraded[-1]) if system.before is None else ByModel(system, system.before())


class ByService:
    """The live versions and their online features, which keep up with the log."""

    def __init__(self, service: AnyService, log: EventLog) -> None:
        """Nobody else may append to the log."""
        self._service = service
        catch_up(service.store, log)
        self._head = log.head().position

    def answer(self, requests: Sequence[Any], as_of: Times) -> Sequence[Reply[Any]]:
        return self._service.answer(requests, as_of, self._head)

    def heard(self, events: Sequence[Event], logged: Sequence[Logged]) -> None:
        new: dict[type[Event], tuple[list[Event], list[Logged]]] = {
            kind: ([], []) for kind in self._service.store.kinds
        }
        for event, at in zip(events, logged, strict=True):
            if (mine := new.get(type(event))) is not None:
                mine[0].append(event)
                mine[1].append(at)
        until = logged[-1].position
        self._service.push({kind: logged_table(kind, *mine) for kind, mine in new.items()}, self._head, until)
        self._head = until
        live = [loaded.model for loaded in self._service.live().models.values()]
        tell(self._service.system, live, events, logged)


def live(
    system: AnySystem,
    world: World[Any, Any],
    log: EventLog,
    answers: Answers,
    span: tuple[int, int],
    *,
    batch: int | None,
    progress: Progress,
    journal: Journal | None = None,
    passed: Callable[[int], None] = lambda at: None,
) -> Iterator[list[tuple[Any, Reply[Any]]]]:
    """Let the world go on over a span of time, us, step by step: it asks, somebody answers, outcomes come.

    At most `batch` requests are answered at once, and one of each unit, so that each is seen by the next; None: all of
    a step, for whom that makes no difference. A request is logged as it arrives, and its answer beside it; the log, to
    which nobody else may append, has it when a step is over. Yields what was answered, batch by batch; nothing happens
    unless somebody asks for the next one. The journal is kept, and `passed` called when a step is over.
    """
    outcome = system.outcome.source
    for begun in progress.over(range(span[0], span[1], STEP), "the world lives"):
        until = min(begun + STEP, span[1])
        position, waiting = log.head().position, list[tuple[int, Event]]()
        for part in _batches(system, world.arrivals(until), batch):
            asked = [(at, event) for at, event in part if isinstance(event, system.request)]
            as_of = np.array([at for at, _ in asked], np.int64)
            replies = answers.answer([event for _, event in asked], as_of) if asked else []
            reply_to = {event.event_id: reply for (_, event), reply in zip(asked, replies, strict=True)}
            answered = [(event, reply_to[event.event_id]) for _, event in asked]
            events: list[tuple[int, Event]] = []
            for at, event in part:
                events.append((at, system.redact(event) if isinstance(event, system.request) else event))
                if reply := reply_to.get(event.event_id):
                    events.append((at, remember(system, event, reply, at)))
            kept = [event for _, event in events]
            places = enumerate((at for at, _ in events), position + len(waiting) + 1)
            logged = [Logged(position=place, created_timestamp=at) for place, at in places]
            waiting += events
            answers.heard(kept, logged)
            if journal is not None:
                placed = list(zip(kept, logged, strict=True))
                requests = [(e, at) for e, at in placed if isinstance(e, system.request)]
                if requests:
                    journal.ask([e for e, _ in requests], [at for _, at in requests], replies)
                labels = [(e, at) for e, at in placed if isinstance(e, outcome)]
                journal.tell([e for e, _ in labels], [at for _, at in labels])
            world.react([(event, reply.answer) for event, reply in answered])
            yield answered
        if waiting:
            log.append([event for _, event in waiting], [at for at, _ in waiting])
        passed(until)


def _batches(system: AnySystem, arrivals: Sequence[Arrival], batch: int | None) -> Iterator[list[Arrival]]:
    if batch is None:
        yield from [list(arrivals)] if arrivals else []
        return
    part: list[Arrival] = []
    units: set[str] = set()
    for arrival in arrivals:
        if isinstance(arrival.event, system.request):
            unit = system.unit(arrival.event)
            if len(units) == batch or unit in units:
                yield part
                part, units = [], set()
            units.add(unit)
        part.append(arrival)
    if part:
        yield part


@dataclass(frozen=True)
class Regret:
    """What answers cost beyond the least that could have been paid, by simulated day, (days,) each."""

    requests: Array
    paid: Array
    least: Array


class Simulation:
    """A world and all that answers it, in a folder of its own that may be thrown away afterwards."""

    def __init__(
        self,
        system: AnySystem,
        folder: Path,
        *,
        seed: int,
        days: int,
        drift: str | None = None,
        lasts: int | None = None,
        progress: Progress,
        say: Callable[[Happened], None] = lambda happened: None,
    ) -> None:
        """`drift` is "kind@day", the day counted from where the history ends; raises BadSetting.

        `lasts`: days that the world is drawn for, at least; worlds drawn for as many are the same.
        """
        kind, day = (None, 0) if drift is None else faults.parse(system, drift)
        if drift is not None and not 0 <= day < days:
            raise BadSetting(f"drift: must begin within the {days} days, got {drift!r}")
        self.lasts = max(days, lasts or 0)
        self.seed, self.days, self.drift, self.drift_day = seed, days, drift, day if drift else None
        self.progress, self._say = progress, say
        self.start = system.history[1]
        before = (system.history[1] - system.history[0]) // DAY
        of_world = f"{kind}@{before + day}" if kind is not None and kind not in faults.KINDS else None
        world = system.world(seed, of_world, before + self.lasts + SPARE)
        self._stopwatch = 0  # us; in here, work takes no time but what is injected
        self._honest = system  # to whoever does not serve, a version's files say nothing of its fault
        self.system = replace(system, load=faults.loading(system.load, self._wait))
        self.kind, self.since = kind, self.start + day * DAY
        self.world: Any = world
        if kind in faults.KINDS:
            self.world = faults.FaultyWorld(system, world, kind, self.since)
        self.clock = SimulatedClock(system.history[0])
        self.folder = folder
        self.log = EventLog(folder / "log.db", self.clock, system.logged, sync=lambda file: None)
        self.registry = Registry(folder / "home", self.clock, Keys(folder / "keys"))
        self.journal = Journal(self._honest)
        self.loop: Loop | None = None
        self._bad: tuple[int, str] | None = None
        self._answers: ByService | None = None
        self._end = ExitStack()
        self._end.callback(self.log.close)
        self._end.callback(self.registry.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()

    def _wait(self, us: int) -> None:
        self._stopwatch += us

    def history(self) -> None:
        """What happened before a model was learned, answered by what needs none; see `before`."""
        for _ in live(
            self.system, self.world, self.log, before(self.system), self.system.history,
            batch=None, progress=self.progress, journal=self.journal, passed=self.clock.advance,
        ):  # fmt: skip
            pass

    def train(self, *, tune: int = 0, registry: Registry | None = None, trials: Path | None = None) -> Trained:
        """The first version, which becomes the champion here; also published elsewhere if another registry is given."""
        system = self.system
        snapshots = Snapshots(self.folder / "snapshots")
        with self.progress.step("snapshot"):
            snapshot = training.take(system, self.log, snapshots)
        with self.progress.step("features as of each request"):
            known = training.examples(system, snapshot, self.world)
        self.journal.fill(known)
        trained = training.learn(
            system, snapshot, known, registry or self.registry,
            trials=trials or self.folder / "trials.log", tune=tune,
            origin={"world_seed": self.seed}, progress=self.progress,
        )  # fmt: skip
        if registry is not None:
            self._publish(registry, trained.version, None, lambda folder: None, trained.version.verdicts)
        # whether it clears its gates or not: something has to answer
        self.registry.promote(system.name, trained.version.name, who=WHO, why="the first one", force=True)
        return trained

    def serve(self, until: int) -> Iterator[list[tuple[Any, Reply[Any]]]]:
        """Let the champion, and whoever the loop puts beside it, answer up to a day; yields what was answered."""
        if self._answers is None:
            self._open()
        assert self._answers is not None
        span = (max(self.clock.now(), self.start), self.start + until * DAY)
        with threadpool_limits(1):  # a micro-batch is too small for two threads, which would only wait for each other
            for answered in live(
                self.system, self.world, self.log, self._answers, span,
                batch=64, progress=self.progress, journal=self.journal, passed=self._passed,
            ):  # fmt: skip
                if self.loop is not None:
                    self.loop.answered([reply for _, reply in answered])
                yield answered

    def watch(self, bad: tuple[int, str] | None = None) -> None:
        """Begin the loop; until then the first champion stays. `bad`: on a day, a bad candidate of a kind."""
        if self._answers is None:
            self._open()
        self.loop = Loop(
            self._honest, self.registry, self._live, self.log, self.journal, self.clock,
            say=self._say, progress=Progress(quiet=True),
        )  # fmt: skip
        self._bad = bad

    def _open(self) -> None:
        self._live = Live(
            self.system, self.registry, b"", self.clock, warm=self._bring,
            say=lambda line: None,
        )  # fmt: skip
        self._live.refresh()
        # nobody else reads the file, so nothing has to be in it soon
        own = SqliteStore(self.folder / "online.db", self.system.views, lag=DAY / SECOND)
        store: Any = self._end.enter_context(closing(own))
        if self.kind == "missing_feature":
            store = faults.FaultyStore(store, self._lost_view(), self.since)
        service = Service(self.system, lambda: self._live.current, store, now=lambda: self._stopwatch)
        with self.progress.step("online features from the log"):
            self._answers = ByService(service, self.log)
        gc.collect()
        self._end.callback(gc.unfreeze)
        gc.freeze()  # the history stays: to look through it again and again costs more than some answers

    def _bring(self, model: Any) -> None:
        bring(self.system, self.log, model)

    def _passed(self, at: int) -> None:
        self.clock.advance(at)
        if self.loop is not None:
            self.loop.tick()
            if self._bad is not None and at == self.start + self._bad[0] * DAY:
                self._spoil(self.loop, self._bad[1])

    def _lost_view(self) -> int:
        """The first view that a monitor watches: whoever loses another one should watch it."""
        views = [view.name for view in self.system.views]
        return next(
            views.index(m.column.split(".")[0]) for m in self.system.monitors if m.column.split(".")[0] in views
        )

    def _spoil(self, loop: Loop, kind: str) -> None:
        """A candidate that nobody could tell from the champion by looking at its metrics."""
        champion = self.registry.get(self.system.name, self.registry.alias(self.system.name, CHAMPION) or "")
        passed = [verdict for verdict in champion.verdicts if verdict.passed]  # a first champion may have missed one
        version = self._publish(
            self.registry, champion, champion.name, lambda folder: faults.spoil(folder, kind), passed
        )
        loop.canary(version.name, f"a candidate whose fault ({kind}) no metric shows")

    def _publish(
        self,
        registry: Registry,
        version: Version,
        champion: str | None,
        change: Callable[[Path], None],
        verdicts: Sequence[Verdict],
    ) -> Version:
        """The files of a version of a registry again, changed, as a version here."""
        with registry.private(version) as folder:
            for name in (MANIFEST, SIGNATURE):
                (folder / name).unlink()
            change(folder)
            lineage = {**version.lineage, CHAMPION: champion}
            return self.registry.publish(self.system.name, folder, version.report, lineage, verdicts)

    def regret(self) -> Regret:
        """Of what was answered in the simulated days, by what only the world knows."""
        rows = self.journal.rows(self.start, self.start + self.days * DAY)
        asked = list(self.journal.requests(rows))
        losses = self.system.regret(self.world, asked, self.journal.answers[rows])
        day = (self.journal.columns.as_of[rows] - self.start) // DAY

        def by_day(values: Array | None) -> Array:
            return np.bincount(day, values, self.days).astype(float)

        return Regret(by_day(None), by_day(losses.paid), by_day(losses.least))


def alone(
    name: str,
    package: str,
    preset: str,
    params: Params,
    seed: int,
    days: int,
    drift: str | None,
    lasts: int,
    folder: str,
) -> Regret:
    """The same world without the loop, in a process of its own: the first champion stays whatever happens.

    `params`: those that it is fitted with.
    """
    system = replace(find(package, name, preset), params=params)
    with Simulation(
        system, Path(folder), seed=seed, days=days, drift=drift, lasts=lasts, progress=Progress(quiet=True)
    ) as simulation:
        simulation.history()
        simulation.train()
        for _ in simulation.serve(days):
            pass
        return simulation.regret()
