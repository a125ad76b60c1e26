"""The commands that look at versions and move them: list, trials, versions, promote, rollback, traffic, benchmark."""

import argparse
import json
import resource
from dataclasses import asdict
from math import fsum

from rich.table import Table

from common.cli.desk import Desk, Document, number, time, who
from common.errors import BadRecord, BadSetting
from common.lifecycle import training
from common.registry.gates import CHAMPION
from common.registry.registry import Registry, Traffic
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


def traffic(desk: Desk, arguments: argparse.Namespace) -> Document:
    system = arguments.system
    with desk.registry() as registry:
        asked = _traffic(registry, arguments)
        if asked is not None:
            why = arguments.why or "set by hand"
            registry.set_traffic(system, asked, who=who(), why=why, force=arguments.force)
        state = registry.state(system)
    champion, traffic = state.aliases.get(CHAMPION), state.traffic
    table = Table("version", "is", "share of units")
    if champion is not None:
        table.add_row(champion, CHAMPION, f"{1 - fsum(traffic.answering.values()):.4g}")
    for name, share in traffic.answering.items():
        table.add_row(name, "arm" if traffic.arms else "canary", f"{share:.4g}")
    for name in traffic.shadow:
        table.add_row(name, "shadow", "answers nobody")
    desk.out.print(table)
    return {"system": system, "revision": state.revision, "champion": champion, "traffic": traffic.model_dump()}


def _traffic(registry: Registry, arguments: argparse.Namespace) -> Traffic | None:
    """What was asked for, as a whole; None where nothing was."""
    named = [name for name, _ in arguments.arm] + arguments.shadow + [arguments.canary] * (arguments.canary is not None)
    if arguments.reset and named:
        raise BadSetting(f"--reset: must stand alone, got {named[0]} too")
    if (arguments.canary is None) != (arguments.share is None):
        raise BadSetting("--canary and --share: must be given together")
    if not named:
        return Traffic() if arguments.reset else None
    full = {name: registry.get(arguments.system, name).name for name in named}
    if len(set(full.values())) < len(named):
        raise BadSetting(f"traffic: must name each version once, got {', '.join(named)}")
    row = {"arms": {full[name]: share for name, share in arguments.arm}, "shadow": [full[n] for n in arguments.shadow]}
    if arguments.canary is not None:
        row |= {"canary": full[arguments.canary], "canary_share": arguments.share}
    try:
        return Traffic.parse(json.dumps(row))
    except BadRecord as error:
        raise BadSetting(f"traffic: {error}") from None


def arm(text: str) -> tuple[str, float]:
    name, _, share = text.partition("=")
    try:
        return name, float(share)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be VERSION=SHARE, such as 4f0c1a=0.5, got {text[:40]!r}") from None


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
