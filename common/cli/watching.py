"""The command that judges the champion by what the log knows: watch."""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from rich.table import Table

from common.cli.desk import Desk, Document, number, time
from common.clock import DAY, SimulatedClock
from common.errors import NotFound
from common.lifecycle.journal import Journal
from common.lifecycle.watch import Metric, Watching, begin, gauges, metric
from common.monitoring.alerts import Alarms, Rule, Series, rules, windows
from common.monitoring.logs import Logs
from common.monitoring.sinks import Alertmanager, Sink, Webhook
from common.registry.audit import CHALLENGER
from common.registry.gates import CHAMPION
from common.serving.following import bring
from common.system import AnySystem

JUDGED = ("FeatureDrift", "LabelSurprise", "DataFlaw", "LabelFlaw", "MonitoringStopped")


def watch(desk: Desk, arguments: argparse.Namespace) -> Document:
    """The champion's whole life up to the last midnight, day by day, so that nothing has to be kept between two calls.

    What changed on the last day is sent. Run it daily, after midnight UTC.
    """
    system, config = desk.system_named(arguments.system), Watching()
    with desk.registry() as registry, desk.log(system) as log:
        champion = registry.alias(system.name, CHAMPION)
        moved = [row for row in registry.audit(system.name) if row.became == champion and row.what != CHALLENGER]
        if champion is None or not moved:
            raise NotFound(f"{system.name}: no champion to watch; train and promote one")
        first = -(-moved[-1].created // DAY) * DAY  # its first whole day begins here
        last = desk.clock.now() // DAY * DAY
        if last <= first:
            raise NotFound(f"{system.name}: champion {champion} has not answered for a whole day yet")
        with desk.progress.step("answers and outcomes from the log"):
            journal = Journal.read(system, log, first - config.reference)
        clock, share = SimulatedClock(first), registry.traffic(system.name).canary_share
        watched = begin(journal, registry, champion, first, config, prepare=partial(bring, system, log))
        standard = _rules(system, config)
        series, alarms = Series(windows(standard), lookback=2 * DAY), Alarms(standard, clock)
        for day in range(first + DAY, last + DAY, DAY):
            clock.advance(day)
            if not any(alert.state == "firing" for alert in alarms.active()):  # else that would become usual
                watched.settle(day)
            found = watched.day(day)
            samples = gauges(system.name, found, day)
            samples[metric("ml_canary_share", system=system.name)] = share
            series.add(day, samples)
            changed = alarms.step(series)
    logs = Logs(desk.clock)
    sinks: list[Sink] = []
    if arguments.webhook is not None:
        sinks.append(Webhook(arguments.webhook, desk.clock, logs))
    if arguments.alertmanager is not None:
        sinks.append(Alertmanager(arguments.alertmanager, desk.clock, logs))
    for sink in sinks:
        sink.send(changed)
    if arguments.metrics is not None:
        _export(arguments.metrics, samples)
    firing = [alert for alert in alarms.active() if alert.state == "firing"]
    table = Table("signal", "of", "ratio to its threshold")
    for (name, labels), value in samples.items():
        about = ", ".join(text for label, text in labels if label != "system")
        if not name.endswith("seconds"):
            table.add_row(name.removeprefix("ml_"), about, number(value))
    desk.out.print(f"champion {champion}, watched from {time(first)} to {time(last)}; above 1 is too much")
    desk.out.print(table)
    for alert in firing:
        desk.out.print(f"[red]{alert.rule}[/] since {time(alert.at)}: {alert.summary} Look at: {alert.look_at}")
    if not firing:
        desk.out.print("nothing alarms")
    return {
        "system": system.name,
        "champion": champion,
        "from": first,
        "until": last,
        "signals": [{"metric": name, **dict(labels), "value": value} for (name, labels), value in samples.items()],
        "firing": [alert.to_json() for alert in firing],
    }


def _rules(system: AnySystem, config: Watching) -> list[Rule]:
    """Those that speak of the log; the others are for whoever scrapes the service."""
    grace = config.reference + 2 * config.chunk * DAY
    standard = rules(system.name, system.monitors, drift_for=config.chunk * DAY, keep=2 * DAY, grace=grace)
    speaking = [rule for rule in standard if rule.name in JUDGED]
    known = {signal for rule in speaking for signal in rule.condition.signals}
    return [rule for rule in standard if known.issuperset(rule.condition.signals)]


def _export(path: Path, samples: Mapping[Metric, float]) -> None:
    """In Prometheus' text format, for the textfile collector of its node exporter; whole or not at all."""
    lines = []
    for (name, labels), value in sorted(samples.items()):
        about = ",".join(f'{label}="{text}"' for label, text in labels)
        lines.append(f"{name}{{{about}}} {value!r}\n")
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text("".join(lines))
    temporary.replace(path)
