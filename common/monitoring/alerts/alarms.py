"""Rules, and the state of their alarms: inactive, pending, firing, resolved."""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self, TypeAlias, get_args

from common.clock import Clock
from common.errors import BadDefinition, Damaged
from common.monitoring.alerts.conditions import Absent, Condition, Reading, duration
from common.monitoring.alerts.series import Labels, Series

Severity: TypeAlias = Literal["page", "ticket", "info"]
State: TypeAlias = Literal["pending", "firing", "resolved", "inactive"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One thing that is wrong, how it is seen, and where to look first. Raises BadDefinition."""

    name: str  # CamelCase
    summary: str
    look_at: str
    severity: Severity
    condition: Condition
    holds_for: int = 0  # us that the condition has to hold without a break before the alarm fires

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", self.name):
            raise BadDefinition(f"rule: name must be CamelCase, got {self.name!r}")
        if self.severity not in get_args(Severity):
            raise BadDefinition(f"{self.name}: severity must be one of {get_args(Severity)}, got {self.severity!r}")
        if not (self.summary + self.look_at).isprintable():
            raise BadDefinition(
                f"{self.name}: summary and look_at must be printable, got {self.summary + self.look_at!r}"
            )
        duration(self.holds_for)

    @property
    def labels(self) -> Labels:
        """Those that all of its alarms carry."""
        shared = set.intersection(*(set(signal.labels) for signal in self.condition.signals))
        return tuple(sorted(shared))


@dataclass(frozen=True, kw_only=True)
class Alert:
    """A change of an alarm, or where it stands. Times are us."""

    rule: str
    severity: str
    summary: str
    look_at: str
    labels: Labels
    value: float
    state: State
    since: int  # the condition has held from here on
    fired: int | None = None
    at: int  # it came into this state

    @property
    def key(self) -> tuple[str, Labels]:
        return self.rule, self.labels

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "labels": dict(self.labels)}

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Self:
        """What `to_json` made; raises Damaged."""
        try:
            alert = cls(**{**said, "labels": tuple(sorted((str(k), str(v)) for k, v in said["labels"].items()))})
            texts = (alert.rule, alert.severity, alert.summary, alert.look_at)
            times = (alert.since, alert.at, *([] if alert.fired is None else [alert.fired]))
            right = (
                all(isinstance(text, str) for text in texts)
                and all(type(time) is int for time in times)
                and isinstance(alert.value, int | float)
                and alert.state in get_args(State)
                and (alert.fired is None) == (alert.state in ("pending", "inactive"))
            )
        except (AttributeError, KeyError, TypeError):
            right = False
        if not right:
            raise Damaged(f"alert: must be as it was written, got {str(said)[:100]!r}")
        return alert


@dataclass
class _Alarm:
    alert: Alert
    seen: int  # us; of the newest sample that spoke for it


class Alarms:
    """The alarms of a set of rules, on the clock that it is given. Not for several threads.

    A missing signal leaves its alarm as it is, one that is pending goes on to fire, and raises the Absent rule of that
    signal, without which no rule is taken. `state` and `restore` carry the alarms over a restart: nothing is sent
    twice, nothing that fires is lost.
    """

    def __init__(self, rules: Sequence[Rule], clock: Clock) -> None:
        """Raises BadDefinition for rules that cannot be told apart, and for a signal whose absence nobody would see."""
        guarded = {signal for rule in rules if isinstance(rule.condition, Absent) for signal in rule.condition.signals}
        for i, rule in enumerate(rules):
            if lone := set(rule.condition.signals) - guarded:
                raise BadDefinition(f"{rule.name}: its signals must each have an Absent rule, got {min(lone)}")
            if any(other.name == rule.name and _may_meet(other.labels, rule.labels) for other in rules[:i]):
                raise BadDefinition(
                    f"{rule.name}: rules of one name must differ in a label, got {dict(rule.labels)} twice"
                )
        self._rules, self._clock = tuple(rules), clock
        self._alarms: dict[tuple[str, Labels], _Alarm] = {}

    def step(self, series: Series) -> tuple[Alert, ...]:
        """Judge all rules now; what changed, in the order of the rules, then of the labels."""
        now = self._clock.now()
        changed = [self._end(key, now) for key in sorted(self._alarms) if self._owner(*key) is None]
        for rule in self._rules:
            readings = rule.condition.value(series, now)
            held = [labels for name, labels in self._alarms if name == rule.name and set(rule.labels) <= set(labels)]
            for labels in sorted({*readings, *held}):
                changed += self._judge(rule, labels, readings.get(labels), now)
        return tuple(changed)

    def _judge(self, rule: Rule, labels: Labels, reading: Reading | None, now: int) -> Iterator[Alert]:
        key = rule.name, labels
        alarm = self._alarms.get(key)
        if reading is None:
            if alarm is not None and now - alarm.seen >= rule.condition.keep:
                yield self._end(key, now)
        elif reading.holds is False and alarm is not None:
            yield self._end(key, now)
        elif reading.holds or alarm is not None:
            value = max(-sys.float_info.max, min(sys.float_info.max, reading.value))  # JSON knows no infinity
            if alarm is None:
                alert = Alert(
                    rule=rule.name, severity=rule.severity, summary=rule.summary, look_at=rule.look_at,
                    labels=labels, value=value, state="pending", since=now, at=now,
                )  # fmt: skip
                alarm = self._alarms[key] = _Alarm(alert, reading.at)
                if rule.holds_for > 0:
                    yield alert
            if reading.holds:
                alarm.alert, alarm.seen = replace(alarm.alert, value=value), reading.at
            if alarm.alert.state == "pending" and now - alarm.alert.since >= rule.holds_for:
                alarm.alert = replace(alarm.alert, state="firing", fired=now, at=now)
                yield alarm.alert

    def _end(self, key: tuple[str, Labels], now: int) -> Alert:
        alert = self._alarms.pop(key).alert
        return replace(alert, state="resolved" if alert.state == "firing" else "inactive", at=now)

    def _owner(self, name: str, labels: Labels) -> Rule | None:
        return next((r for r in self._rules if r.name == name and set(r.labels) <= set(labels)), None)

    def anew(self, rule: str, **labels: str) -> None:
        """What is pending of a rule with these labels has to hold from now on: it is about something else."""
        wanted = set(labels.items())
        self._alarms = {
            key: alarm
            for key, alarm in self._alarms.items()
            if key[0] != rule or not wanted <= set(key[1]) or alarm.alert.state != "pending"
        }

    def active(self) -> tuple[Alert, ...]:
        """Those that are pending or firing, by rule and labels."""
        return tuple(self._alarms[key].alert for key in sorted(self._alarms))

    def state(self) -> str:
        """One JSON document; save it after what changed was sent: a crash in between sends again, and loses nothing."""
        held: Iterable[_Alarm] = (self._alarms[key] for key in sorted(self._alarms))
        return json.dumps([{"alert": a.alert.to_json(), "seen": a.seen} for a in held], allow_nan=False)

    def restore(self, state: str) -> None:
        """Go on from what `state` said; an alarm whose rule is gone is resolved at the next step. Raises Damaged."""
        try:
            alarms = [_Alarm(Alert.from_json(said["alert"]), said["seen"]) for said in json.loads(state)]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise Damaged(f"alarms: must be the state that was saved, got {state[:100]!r}") from None
        if not all(type(a.seen) is int and a.alert.state in ("pending", "firing") for a in alarms):
            raise Damaged(f"alarms: must be pending or firing, got {state[:100]!r}")
        self._alarms = {alarm.alert.key: alarm for alarm in alarms}


def _may_meet(one: Labels, other: Labels) -> bool:
    """Whether one alarm could belong to both."""
    a, b = dict(one), dict(other)
    return all(a[name] == b[name] for name in a.keys() & b.keys())


def windows(rules: Iterable[Rule]) -> dict[str, int]:
    """Metric -> us of samples that the rules need: what `Series` keeps."""
    longest: dict[str, int] = {}
    for rule in rules:
        for metric, window in rule.condition.windows.items():
            longest[metric] = max(window, longest.get(metric, 0))
    return longest
