"""The commands that look at versions and move them: list, trials, versions, promote, rollback, benchmark."""

import argparse
import resource
from dataclasses import asdict

from rich.table import Table

from common.cli.desk import Desk, Document, number, time, who
from common.lifecycle import training
from common.registry.gates import CHAMPION
from common.registry.registry import Registry
from common.system import names


def systems(desk: Desk, arguments: argparse.Namespace) -> Document:
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


def trials(desk: Desk, arguments: argparse.Namespace) -> Document:
    found = training.trials(desk.trials(arguments.system))
    table = Table("study", "trial", "state", "value", "seconds", "parameters")
    for t in found:
        said = ", ".join(f"{k}={number(v)}" for k, v in t["params"].items())
        table.add_row(t["study"], str(t["trial"]), t["state"], number(t["value"]), number(t["seconds"]), said)
    desk.out.print(table)
    return {"system": arguments.system, "trials": found}


def versions(desk: Desk, arguments: argparse.Namespace) -> Document:
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
        metrics = ", ".join(f"{name} {number(value)}" for name, value in list(v.report["metrics"].items())[:3])
        table.add_row(v.name, time(v.created), ", ".join(said[v.name]), passed, metrics)
    desk.out.print(table)
    for row in audit:
        change = f"{row.what} {row.was or 'nothing'} -> {row.became or 'nothing'}"
        desk.out.print(f"{time(row.created)} {row.who}: {change}, {row.why}", markup=False)
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


def promote(desk: Desk, arguments: argparse.Namespace) -> Document:
    with desk.registry() as registry:
        revision = registry.revision(arguments.system)
        why = arguments.why or "promoted by hand"
        revision = registry.promote(
            arguments.system,
            arguments.version,
            who=who(),
            why=why,
            expected=revision,
            force=arguments.force,
        )
        return _champion(desk, registry, arguments.system, revision)


def rollback(desk: Desk, arguments: argparse.Namespace) -> Document:
    with desk.registry() as registry:
        why = arguments.why or "rolled back by hand"
        revision = registry.rollback(arguments.system, who=who(), why=why)
        return _champion(desk, registry, arguments.system, revision)


def _champion(desk: Desk, registry: Registry, system: str, revision: int) -> Document:
    champion = registry.alias(system, CHAMPION)
    desk.out.print(f"{system}: champion is {champion}")
    return {"system": system, "champion": champion, "revision": revision}


def benchmark(desk: Desk, arguments: argparse.Namespace) -> Document:
    system = desk.system(arguments)
    with desk.progress.step(f"benchmark of {system.name}"):
        result = system.benchmark(desk.settings.data_dir)
    for protocol, methods in result.published.items():
        keys = [key for key in result.metrics if key.startswith(f"{protocol}/")]
        table = Table(protocol, *(key.removeprefix(f"{protocol}/") for key in keys))
        table.add_row("[bold]ours[/]", *(f"[bold]{result.metrics[key]:.3f}[/]" for key in keys))
        for method, metrics in methods.items():
            table.add_row(method, *(number(metrics.get(key.removeprefix(f"{protocol}/"))) for key in keys))
        desk.out.print(table)
    return {
        "system": system.name,
        **asdict(result),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
