"""The commands that make a model: run, train."""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from common.cli.desk import Desk, Document, number, who
from common.clock import DAY, SimulatedClock
from common.data import folder
from common.data.log import EventLog
from common.errors import BadSetting
from common.features.online import open_store
from common.lifecycle import training
from common.lifecycle.parity import parity
from common.lifecycle.simulation import ByRule, ByService, live
from common.lifecycle.training import Trained
from common.registry.registry import Registry
from common.schema import choices
from common.serving.service import Service, fixed
from common.system import Answer, AnySystem, World


@dataclass(frozen=True)
class Simulation:
    """A world that has lived through its history, answered by the rule that needs no model."""

    world: World[Any, Any]
    log: EventLog
    folder: Path


@contextmanager
def _world(desk: Desk, system: AnySystem, seed: int) -> Iterator[Simulation]:
    """Its log lasts as long as the command: it can be had again from the seed, and training keeps its snapshots."""
    desk.settings.home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=desk.settings.home, prefix="world-") as folder:
        clock = SimulatedClock(system.history[0])
        with EventLog(Path(folder) / "log.db", clock, system.logged) as log:
            world = system.world(seed, None, None)
            rule = ByRule(system.degraded[-1])
            for _ in live(system, world, log, rule, system.history, batch=1_000, progress=desk.progress):
                pass
            yield Simulation(world, log, Path(folder))


def train(desk: Desk, arguments: argparse.Namespace) -> Document:
    system = desk.system(arguments)
    if arguments.data is not None:
        return _train_on_folder(desk, system, arguments)
    with _world(desk, system, arguments.seed) as simulated, desk.registry() as registry:
        trained = _trained(desk, system, simulated, registry, arguments)
    _show_report(desk, trained)
    return _trained_document(arguments, trained)


def _train_on_folder(desk: Desk, system: AnySystem, arguments: argparse.Namespace) -> Document:
    """The user's own rows go into the system's log, once; then it is trained on that log."""
    if not system.layout:
        raise BadSetting(f"--data: {system.name} takes no data of one's own")
    with desk.progress.step("read and check"):
        parts = folder.read(
            system.layout, arguments.data, desk.settings.home / system.name / "quarantine",
            most=desk.settings.max_quarantined, now=desk.clock.now(), say=desk.progress.say,
        )  # fmt: skip
    said = {part.file: part.document() for part in parts}
    origin = {"preset": arguments.preset, "data": ", ".join(f"{part.file} {part.digest}" for part in parts)}
    with desk.log(system) as log, desk.registry() as registry:
        appended = folder.append(log, parts, desk.progress)
        desk.progress.say(f"  {appended.new:,} events are new, {appended.there:,} were in the log already")
        parts.clear()  # their tables are no longer needed, and there is a model to be made
        trained = training.train(
            system, log, desk.snapshots, registry,
            trials=desk.trials(system.name), tune=arguments.tune, world=None, origin=origin, progress=desk.progress,
        )  # fmt: skip
    _show_report(desk, trained)
    return {**_trained_document(arguments, trained), "seed": None, "data": said, "appended": appended._asdict()}


def _trained(
    desk: Desk, system: AnySystem, simulated: Simulation, registry: Registry, arguments: argparse.Namespace
) -> Trained:
    return training.train(
        system, simulated.log, desk.snapshots, registry,
        trials=desk.trials(system.name), tune=arguments.tune, world=simulated.world,
        origin={"preset": arguments.preset, "world_seed": arguments.seed}, progress=desk.progress,
    )  # fmt: skip


def _trained_document(arguments: argparse.Namespace, trained: Trained) -> Document:
    return {
        "system": arguments.system,
        "preset": arguments.preset,
        "seed": arguments.seed,
        "version": trained.version.name,
        "digest": trained.version.digest,
        "examples": trained.rows,
        "params": trained.params,
        **asdict(trained.report),
        "gates": [{"passed": v.passed, "message": v.message} for v in trained.version.verdicts],
    }


def _show_report(desk: Desk, trained: Trained) -> None:
    report = trained.report
    table = Table("metric", "this model", *report.baselines, *(["ceiling"] if report.ceiling else []))
    for name, value in report.metrics.items():
        others = [b.get(name) for b in (*report.baselines.values(), *([report.ceiling] if report.ceiling else []))]
        table.add_row(name, *(number(v) for v in (value, *others)))
    desk.out.print(table)
    if report.segments:
        columns = list(dict.fromkeys(name for segment in report.segments.values() for name in segment))
        table = Table("segment", *columns)
        for name, segment in report.segments.items():
            table.add_row(name, *(number(segment.get(column)) for column in columns))
        desk.out.print(table)
    for verdict in trained.version.verdicts:
        desk.out.print(("[green]pass[/] " if verdict.passed else "[red]FAIL[/] ") + verdict.message)
    desk.out.print(f"published as {trained.version.name}, judged on {report.rows:,} requests")


def run(desk: Desk, arguments: argparse.Namespace) -> Document:
    system, out = desk.system(arguments), desk.out
    out.print(f"[bold]1. A world lives[/]: we shall {system.summary}. There is no model yet, so a rule answers.")
    with _world(desk, system, arguments.seed) as simulated, desk.registry() as registry:
        out.print(f"   The log holds {simulated.log.head().position:,} events.")
        out.print(f"[bold]2. A model is trained[/] on what was known at each moment, after {arguments.tune} trials.")
        revision = registry.revision(system.name)  # whoever promotes meanwhile wins
        trained = _trained(desk, system, simulated, registry, arguments)
        out.print("[bold]3. It is judged[/] on later weeks, against what it must beat and the best that is possible.")
        _show_report(desk, trained)
        name = trained.version.name
        why = f"cleared its gates on {trained.report.rows} requests"
        registry.promote(system.name, name, who=who(), why=why, expected=revision)
        out.print(f"[bold]4. It is promoted[/]: champion is {name}.")
        out.print("[bold]5. It answers[/] for a day, one request at a time, from the online features.")
        served = _serve_a_day(desk, system, simulated, registry, name)
    out.print("Look at it: mlsys versions, mlsys trials; take it back: mlsys rollback " + system.name)
    return {**_trained_document(arguments, trained), "champion": name, "served": served}


def _serve_a_day(desk: Desk, system: AnySystem, simulated: Simulation, registry: Registry, name: str) -> Document:
    """Answer online, then compute the same features offline: they must be the same numbers."""
    model = system.load(registry.path(registry.get(system.name, name)))
    log = simulated.log
    start = log.head().position
    of_this_log = f"{system.name}.{simulated.folder.name}"  # it ends with the command, and so do its features
    path = simulated.folder / "online.db"
    with closing(open_store(desk.settings.redis_url, path, of_this_log, system.views)) as store, ExitStack() as end:
        end.callback(store.clear)
        with desk.progress.step("online features from the log"):
            by_model = ByService(Service(system, fixed(name, model), store), log)
        day = (system.history[1], system.history[1] + DAY)
        batches = live(system, simulated.world, log, by_model, day, batch=1, progress=desk.progress)
        said = [(request, reply.answer) for batch in batches for request, reply in batch]
    gap = parity(system, log, {name: model}).gap
    counts = _show_answers(desk, system, said)
    desk.out.print(f"   Online and offline features differ by at most {gap:.1e}, relative to their size.")
    return {
        "requests": len(said),
        "answers": counts,
        "events": log.head().position - start,
        "online_offline_gap": gap,
    }


def _show_answers(desk: Desk, system: AnySystem, said: Sequence[tuple[Any, Answer]]) -> dict[str, dict[str, int]]:
    """How often each choice was made, and the last example of it."""
    counts: dict[str, dict[str, int]] = {}
    kind: type[Answer] = system.answer
    for name in (field for field in kind.model_fields if choices(kind, field)):
        counts[name] = Counter(str(getattr(answer, name)) for _, answer in said)
        desk.out.print(f"   {name}: " + ", ".join(f"{n} {choice}" for choice, n in counts[name].items()))
        for choice in counts[name]:
            request, answer = next((r, a) for r, a in reversed(said) if str(getattr(a, name)) == choice)
            shown = f"   {request.model_dump_json()}\n   -> {answer.model_dump_json()}"
            desk.out.print(shown, markup=False)
    return counts
