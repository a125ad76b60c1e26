"""Alerts, defined once: judged here, generated as Prometheus rules, sent to sinks."""

from common.monitoring.alerts.alarms import Alarms, Alert, Rule, Severity, State, windows
from common.monitoring.alerts.conditions import Above, Absent, Below, Burning, Condition, Older, Reading, Silent
from common.monitoring.alerts.prometheus import prometheus
from common.monitoring.alerts.series import Labels, Series, Signal, signal
from common.monitoring.alerts.standard import Watched, rules

__all__ = [
    "Above",
    "Absent",
    "Alarms",
    "Alert",
    "Below",
    "Burning",
    "Condition",
    "Labels",
    "Older",
    "Reading",
    "Rule",
    "Series",
    "Severity",
    "Signal",
    "Silent",
    "State",
    "Watched",
    "prometheus",
    "rules",
    "signal",
    "windows",
]
