"""The command that makes a model: train."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from common.cli.desk import Desk, Document, number
from common.clock import SimulatedClock
from common.data import folder
from common.data.log import EventLog
from common.errors import BadSetting
from common.lifecycle import training
from common.lifecycle.simulation import before, live
from common.lifecycle.training import Trained
from common.registry.registry import Registry
from common.system import AnySystem, World


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
            for _ in live(system, world, log, before(system), system.history, batch=None, progress=desk.progress):
                pass
            yield Simulation(world, log, Path(folder))


def train(desk: Desk, arguments: argparse.Namespace) -> Document:
    system = desk.system(arguments)
    if arguments.data is not None:
        return _train_on_folder(desk, system, arguments)
    with _world(desk, system, arguments.seed) as simulated, desk.registry() as registry:
        trained = _trained(desk, system, simulated, registry, arguments)
    show_report(desk, trained)
    return trained_document(arguments, trained)


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
    show_report(desk, trained)
    return {**trained_document(arguments, trained), "seed": None, "data": said, "appended": appended._asdict()}


def _trained(
    desk: Desk, system: AnySystem, simulated: Simulation, registry: Registry, arguments: argparse.Namespace
) -> Trained:
    return training.train(
        system, simulated.log, desk.snapshots, registry,
        trials=desk.trials(system.name), tune=arguments.tune, world=simulated.world,
        origin={"preset": arguments.preset, "world_seed": arguments.seed}, progress=desk.progress,
    )  # fmt: skip


def trained_document(arguments: argparse.Namespace, trained: Trained) -> Document:
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


def show_report(desk: Desk, trained: Trained) -> None:
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
