"""The same rules as a file that Prometheus loads."""

import json
from collections.abc import Sequence

from common.monitoring.alerts.alarms import Rule
from common.monitoring.alerts.conditions import duration
from common.monitoring.alerts.series import Signal


def prometheus(rules: Sequence[Rule]) -> str:
    """A rules file in YAML: one group for each system in the order of `rules`, an alerting rule for each rule."""
    groups: dict[str, list[Rule]] = {}
    for rule in rules:
        groups.setdefault(dict(rule.labels).get("system", "ml"), []).append(rule)
    lines = ["# Generated from common/monitoring/alerts. Do not edit.", "groups:"]
    for name, members in groups.items():
        lines += [f"  - name: {_text(name)}", "    rules:"]
        for rule in members:
            lines += [
                f"      - alert: {rule.name}",
                f"        expr: {_raw(expression(rule))}",
                f"        for: {duration(rule.holds_for)}",
                "        labels:",
                *(f"          {_text(key)}: {_text(_plain(value))}" for key, value in _labels(rule)),
                "        annotations:",
                f"          summary: {_text(_plain(rule.summary))}",
                f"          look_at: {_text(_plain(rule.look_at))}",
            ]
    return "\n".join(lines) + "\n"


def expression(rule: Rule) -> str:
    """PromQL of a rule, with what keeps its alarm as it is while the signal is missing."""
    expr, known = rule.condition.expr(), rule.condition.known()
    if known is None:
        return expr
    labels = tuple(sorted([("alertname", rule.name), *rule.labels]))
    same = f"max by ({', '.join(name for name, _ in rule.labels)}) ({Signal('ALERTS', labels)})"
    return f"{expr} or ({same} unless ({known}))"


def _labels(rule: Rule) -> list[tuple[str, str]]:
    return [("severity", rule.severity), *rule.labels]


def _plain(text: str) -> str:
    """Text that Prometheus' templates leave alone."""
    return text.replace("{{", '{{ "{{" }}')


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _raw(text: str) -> str:
    """In single quotes, in which PromQL's own quotes can be read."""
    return "'" + text.replace("'", "''") + "'"
