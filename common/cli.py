"""mlsys: the platform's commands. Results go to stdout, progress to stderr; --json makes the result one document."""

import argparse
import getpass
import json
import math
import os
import resource
import signal
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np
from rich.console import Console
from rich.table import Table

from common.clock import DAY, SECOND, SimulatedClock, WallClock, stopwatch
from common.data.log import EventLog
from common.data.snapshots import Snapshots
from common.errors import BadSetting, PlatformError
from common.features.online import OnlineStore
from common.lifecycle.simulation import ByRule, ByService, live
from common.lifecycle.training import Trained, online_offline_gap, take, train, trials
from common.progress import Progress
from common.registry.gates import CHAMPION
from common.registry.registry import Registry
from common.schema import choices
from common.serving.service import Service
from common.settings import Settings
from common.system import Answer, Answered, AnySystem, World, find, names

Document: TypeAlias = Mapping[str, Any]
WIDTH = 160  # columns, where stdout is no terminal

EXAMPLES = """examples:
  mlsys list                          the systems and their live versions
  mlsys run {system}                     the whole loop once, narrated
  mlsys train {system} --tune 20         train after 20 trials, publish, do not promote
  mlsys trials {system}                  what was tried and what came of it
  mlsys versions {system}                what was published, what is live
  mlsys promote {system} 4f0c1a          make a version live, if it cleared its gates
  mlsys rollback {system}                make the version before it live again
  mlsys benchmark {system}               a public data set, beside the published numbers

State lies under MLSYS_HOME (default .mlsys), public data under MLSYS_DATA_DIR.
Exit status: 0, 1 when the work failed, 2 for wrong usage."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status; an error raised on purpose is one line, without a traceback."""
    start = stopwatch()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a world's folder is removed then, too
    try:
        settings = Settings()
        arguments = _parser(names(settings.systems)).parse_args(argv)
        document = arguments.run(_Desk(settings, arguments), arguments)
        if arguments.json:
            said = {**document, "seconds": round((stopwatch() - start) / SECOND, 3)}
            print(json.dumps(_without_nan(said), indent=2), flush=True)
    except BadSetting as error:
        return _fail(str(error), 2)
    except PlatformError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 1)
    except BrokenPipeError:  # whoever read the output has seen enough; Python must not try to flush the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, sqlite3.Error) as error:
        return _fail(f"{type(error).__name__}: {error}; MLSYS_HOME is {settings.home}", 1)
    return 0


class _Desk:
    """What the commands work with."""

    def __init__(self, settings: Settings, arguments: argparse.Namespace) -> None:
        self.settings, self.clock = settings, WallClock()
        width = None if sys.stdout.isatty() else WIDTH
        self.out = Console(quiet=arguments.json, highlight=False, width=width)
        self.progress = Progress()
        self.snapshots = Snapshots(settings.home / "snapshots")
        for name in ("database_url", "redis_url", "ray_address"):
            if getattr(settings, name) is not None:
                self.progress.say(f"MLSYS_{name.upper()} is not used yet: all state is embedded, under {settings.home}")

    @contextmanager
    def registry(self) -> Iterator[Registry]:
        with Registry(self.settings.home, self.clock) as registry:
            yield registry

    def system(self, arguments: argparse.Namespace) -> AnySystem:
        return find(self.settings.systems, arguments.system, getattr(arguments, "preset", "small"))

    def trials(self, system: str) -> Path:
        return self.settings.home / system / "trials.log"


@dataclass(frozen=True)
class _Simulation:
    """A world that has lived through its history, answered by the rule that needs no model."""

    world: World[Any, Any]
    log: EventLog
    folder: Path


@contextmanager
def _world(desk: _Desk, system: AnySystem, seed: int) -> Iterator[_Simulation]:
    """Its log lasts as long as the command: it can be had again from the seed, and training keeps its snapshots."""
    desk.settings.home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=desk.settings.home, prefix="world-") as folder:
        clock = SimulatedClock(system.history[0])
        with EventLog(Path(folder) / "log.db", clock, (*system.events, Answered)) as log:
            world = system.world(seed, None)
            rule = ByRule(system.degraded[-1])
            for _ in live(system, world, log, rule, system.history, batch=1_000, progress=desk.progress):
                pass
            yield _Simulation(world, log, Path(folder))


def _list(desk: _Desk, arguments: argparse.Namespace) -> Document:
    with desk.registry() as registry:
        systems = [
            {"name": name, "champion": registry.alias(name, CHAMPION), "versions": len(registry.versions(name))}
            for name in names(desk.settings.systems)
        ]
    table = Table("system", "live version", "versions")
    for s in systems:
        table.add_row(str(s["name"]), str(s["champion"] or "none"), str(s["versions"]))
    desk.out.print(table)
    return {"systems": systems}


def _train(desk: _Desk, arguments: argparse.Namespace) -> Document:
    system = desk.system(arguments)
    with _world(desk, system, arguments.seed) as simulated, desk.registry() as registry:
        trained = _trained(desk, system, simulated, registry, arguments)
    _show_report(desk, trained)
    return _trained_document(arguments, trained)


def _trained(
    desk: _Desk, system: AnySystem, simulated: _Simulation, registry: Registry, arguments: argparse.Namespace
) -> Trained:
    return train(
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


def _show_report(desk: _Desk, trained: Trained) -> None:
    report = trained.report
    table = Table("metric", "this model", *report.baselines, *(["ceiling"] if report.ceiling else []))
    for name, value in report.metrics.items():
        others = [b.get(name) for b in (*report.baselines.values(), *([report.ceiling] if report.ceiling else []))]
        table.add_row(name, *(_number(v) for v in (value, *others)))
    desk.out.print(table)
    if report.segments:
        columns = list(dict.fromkeys(name for segment in report.segments.values() for name in segment))
        table = Table("segment", *columns)
        for name, segment in report.segments.items():
            table.add_row(name, *(_number(segment.get(column)) for column in columns))
        desk.out.print(table)
    for verdict in trained.version.verdicts:
        desk.out.print(("[green]pass[/] " if verdict.passed else "[red]FAIL[/] ") + verdict.message)
    desk.out.print(f"published as {trained.version.name}, judged on {report.rows:,} requests")


def _run(desk: _Desk, arguments: argparse.Namespace) -> Document:
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
        registry.promote(system.name, name, who=_who(), why=why, expected=revision)
        out.print(f"[bold]4. It is promoted[/]: champion is {name}.")
        out.print("[bold]5. It answers[/] for a day, one request at a time, from the online features.")
        served = _serve_a_day(desk, system, simulated, registry, name)
    out.print("Look at it: mlsys versions, mlsys trials; take it back: mlsys rollback " + system.name)
    return {**_trained_document(arguments, trained), "champion": name, "served": served}


def _serve_a_day(desk: _Desk, system: AnySystem, simulated: _Simulation, registry: Registry, name: str) -> Document:
    """Answer online, then compute the same features offline: they must be the same numbers."""
    model = system.load(registry.path(registry.get(system.name, name)))
    log = simulated.log
    start = log.head().position
    with closing(OnlineStore(simulated.folder / "online.db", system.views)) as store:
        with desk.progress.step("online features from the log"):
            for kind in {view.source for view in system.views}:
                store.push(kind, log.read(kind))
        day = (system.history[1], system.history[1] + DAY)
        by_model = ByService(Service(system, model, name, store))
        batches = live(system, simulated.world, log, by_model, day, batch=1, progress=desk.progress)
        said = [answered for batch in batches for answered in batch]
    gap = online_offline_gap(system, take(system, log, desk.snapshots), name)
    counts = _show_answers(desk, system, said)
    desk.out.print(f"   Online and offline features differ by at most {gap:.1e}, relative to their size.")
    return {
        "requests": len(said),
        "answers": counts,
        "events": log.head().position - start,
        "online_offline_gap": gap,
    }


def _show_answers(desk: _Desk, system: AnySystem, said: Sequence[tuple[Any, Answer]]) -> dict[str, dict[str, int]]:
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


def _trials(desk: _Desk, arguments: argparse.Namespace) -> Document:
    found = trials(desk.trials(arguments.system))
    table = Table("study", "trial", "state", "value", "seconds", "parameters")
    for t in found:
        said = ", ".join(f"{k}={_number(v)}" for k, v in t["params"].items())
        table.add_row(t["study"], str(t["trial"]), t["state"], _number(t["value"]), _number(t["seconds"]), said)
    desk.out.print(table)
    return {"system": arguments.system, "trials": found}


def _versions(desk: _Desk, arguments: argparse.Namespace) -> Document:
    with desk.registry() as registry:
        registry.verify_audit()
        versions, aliases = registry.versions(arguments.system), registry.aliases(arguments.system)
        audit = registry.audit(arguments.system)
    said = {name: [alias for alias, at in aliases.items() if at == name] for name in (v.name for v in versions)}
    table = Table("version", "published", "is", "gates", *(["metrics"] if versions else []))
    for v in versions:
        passed = "passed" if all(x.passed for x in v.verdicts) else "missed " + ", ".join(
            x.gate.metric for x in v.verdicts if not x.passed
        )  # fmt: skip
        metrics = ", ".join(f"{name} {_number(value)}" for name, value in list(v.report["metrics"].items())[:3])
        table.add_row(v.name, _time(v.created), ", ".join(said[v.name]), passed, metrics)
    desk.out.print(table)
    for row in audit:
        change = f"{row.what} {row.was or 'nothing'} -> {row.became or 'nothing'}"
        desk.out.print(f"{_time(row.created)} {row.who}: {change}, {row.why}", markup=False)
    return {
        "system": arguments.system,
        "versions": [
            {
                "version": v.name,
                "digest": v.digest,
                "created": v.created,
                "aliases": said[v.name],
                "metrics": v.report["metrics"],
                "gates": [{"passed": x.passed, "message": x.message} for x in v.verdicts],
                "lineage": v.lineage,
            }
            for v in versions
        ],
        "audit": [asdict(row) for row in audit],
    }


def _promote(desk: _Desk, arguments: argparse.Namespace) -> Document:
    with desk.registry() as registry:
        revision = registry.revision(arguments.system)
        why = arguments.why or "promoted by hand"
        revision = registry.promote(
            arguments.system,
            arguments.version,
            who=_who(),
            why=why,
            expected=revision,
            force=arguments.force,
        )
        return _champion(desk, registry, arguments.system, revision)


def _rollback(desk: _Desk, arguments: argparse.Namespace) -> Document:
    with desk.registry() as registry:
        why = arguments.why or "rolled back by hand"
        revision = registry.rollback(arguments.system, who=_who(), why=why)
        return _champion(desk, registry, arguments.system, revision)


def _champion(desk: _Desk, registry: Registry, system: str, revision: int) -> Document:
    champion = registry.alias(system, CHAMPION)
    desk.out.print(f"{system}: champion is {champion}")
    return {"system": system, "champion": champion, "revision": revision}


def _benchmark(desk: _Desk, arguments: argparse.Namespace) -> Document:
    system = desk.system(arguments)
    with desk.progress.step(f"benchmark of {system.name}"):
        result = system.benchmark(desk.settings.data_dir)
    for protocol, methods in result.published.items():
        keys = [key for key in result.metrics if key.startswith(f"{protocol}/")]
        table = Table(protocol, *(key.removeprefix(f"{protocol}/") for key in keys))
        table.add_row("[bold]ours[/]", *(f"[bold]{result.metrics[key]:.3f}[/]" for key in keys))
        for method, metrics in methods.items():
            table.add_row(method, *(_number(metrics.get(key.removeprefix(f"{protocol}/"))) for key in keys))
        desk.out.print(table)
    return {
        "system": system.name,
        **asdict(result),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _who() -> str:
    """For the audit trail."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # in a container, the number may have no name
        return f"uid {os.getuid()}"


def _number(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 10_000 else f"{value:,.0f}"


def _time(us: int) -> str:
    return str(np.datetime64(us, "us").astype("datetime64[s]")).replace("T", " ")


def _without_nan(value: Any) -> Any:
    """JSON has no NaN; what is not a number is null."""
    if isinstance(value, Mapping):
        return {str(k): _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fail(line: str, status: int) -> int:
    print(f"mlsys: {' '.join(line.split())}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One clear line, as for every other mistake."""
        raise BadSetting(f"{message}; see {self.prog} --help")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 999999999, got {text[:20]!r}")
    return int(text)


def _parser(systems: Sequence[str]) -> argparse.ArgumentParser:
    system = next(iter(systems), "SYSTEM")  # in examples
    style: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = _Parser(
        prog="mlsys",
        description="Machine-learning systems on one platform.",
        epilog=EXAMPLES.format(system=system),
        **style,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[_Desk, argparse.Namespace], Document], summary: str, example: str) -> _Parser:
        sub: _Parser = commands.add_parser(
            name, help=summary, description=summary, epilog=f"example:\n  mlsys {name} {example}", **style
        )
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="one JSON document on stdout")
        if name != "list":
            sub.add_argument("system", choices=systems, metavar="SYSTEM", help=f"one of {', '.join(systems)}")
        return sub

    command("list", _list, "the systems, their live versions", "--json")
    for name, run, summary, tune in (
        ("run", _run, "the whole loop once, narrated", 5),
        ("train", _train, "train a version and publish it", 0),
    ):
        sub = command(name, run, summary, f"{system} --preset small --seed 1")
        sub.add_argument(
            "--preset", choices=("small", "full"), default="small", help="how large a world (default small)"
        )
        sub.add_argument("--seed", type=_count, default=0, help="of the world (default 0)")
        sub.add_argument("--tune", type=_count, default=tune, metavar="N", help=f"Optuna trials (default {tune})")
    command("trials", _trials, "what tuning tried, and what came of it", system)
    command("versions", _versions, "what was published, what is live, who changed it", f"{system} --json")
    sub = command("promote", _promote, "make a version live", f"{system} 4f0c1a --why 'better on new cards'")
    sub.add_argument("version", metavar="VERSION", help="its name, or the first 4 digits of it or more")
    sub.add_argument("--why", help="for the audit trail")
    sub.add_argument("--force", action="store_true", help="although it missed a gate; the audit trail says so")
    sub = command("rollback", _rollback, "make the version before it live again", system)
    sub.add_argument("--why", help="for the audit trail")
    command(
        "benchmark", _benchmark, "the public data set, beside the published numbers", "mlsys benchmark fraud --json"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
