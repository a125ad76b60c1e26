"""The rules that any system has."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from common.clock import DAY, HOUR, MINUTE, SECOND
from common.monitoring.alerts.alarms import Rule
from common.monitoring.alerts.conditions import FACTOR, KEEP, Above, Absent, Below, Burning, Older, Silent
from common.monitoring.alerts.series import signal


class Watched(Protocol):
    """What `rules` needs of a system's monitor."""

    @property
    def column(self) -> str:
        """Of the features, or the score."""

    @property
    def look_at(self) -> str:
        """What to look at first."""


def rules(
    system: str,
    monitors: Sequence[Watched],
    *,
    floors: Mapping[str, float] | None = None,  # metric of ml_model_quality -> it must not be below
    ceilings: Mapping[str, float] | None = None,  # metric -> it must not be above
    chunk: int = DAY,  # us; monitoring runs once in so long
    drift_for: int | None = None,  # us; None: 9/8 of a chunk; a chunk if rules are judged right after each run
    keep: int = KEEP,  # us that the last value of a gauge counts when no newer one comes
    grace: int = 15 * MINUTE,  # us that a signal may be away
    windows: tuple[int, ...] = (HOUR, 5 * MINUTE),  # us, of the service levels; counters move in the first one
    availability: float = 0.999,  # share of answers that did not fail
    latency: float = 0.99,  # share of answers within 250 ms
    quiet: int = 3 * DAY,  # us that labels may stay away while answers are given
    stuck: int = 14 * DAY,  # us that a canary may take to be promoted or rolled back
) -> tuple[Rule, ...]:
    """Drift, quality, labels, data, service levels, canary, monitoring itself, and the absence of each signal."""
    answers = signal("ml_answers_total", system=system)
    failed = signal("ml_answers_total", system=system, outcome="failed")
    count = signal("ml_prediction_latency_seconds_count", system=system)
    fast = signal("ml_prediction_latency_seconds_bucket", system=system, le="0.25")
    labels = signal("ml_labels_total", system=system)
    ran = signal("ml_monitoring_last_run_timestamp_seconds", system=system)
    twice = chunk + chunk // 8 if drift_for is None else drift_for  # two chunks in a row, the second one a bit late
    speaking = (
        Rule(
            name="AvailabilityBurn", severity="page",
            summary=f"Answers fail {FACTOR:g} times as often as {availability:.2%} availability allows.",
            look_at="ml_errors_total by kind; then the version that was promoted last, and its rollback",
            condition=Burning(total=answers, bad=failed, target=availability, windows_us=windows),
        ),
        Rule(
            name="LatencyBurn", severity="page",
            summary=f"Answers take over 250 ms {FACTOR:g} times as often as {latency:.2%} in time allows.",
            look_at="ml_concurrency_limit_rows and ml_breaker_open; then the latency of the canary",
            condition=Burning(total=count, good=fast, target=latency, windows_us=windows),
        ),
        Rule(
            name="NoAnswers", severity="ticket", holds_for=grace,
            summary="Nothing is asked any more, so service levels cannot be judged.",
            look_at="whether callers reach the service; then ml_shed_total",
            condition=Silent(counter=answers, over=windows[0]),
        ),
        *(
            Rule(
                name="FeatureDrift", severity="ticket", holds_for=twice,
                summary=f"The distribution of {column} is unlike the reference's.", look_at=look_at,
                condition=Above(signal("ml_feature_drift_ratio", system=system, column=column), 1.0, keep),
            )
            for column, look_at in {monitor.column: monitor.look_at for monitor in monitors}.items()
        ),
        *(
            Rule(
                name="ModelQualityLow" if kind is Below else "ModelQualityHigh", severity="ticket",
                summary=f"The {metric} of a version is {'below' if kind is Below else 'above'} {limit:g}.",
                look_at="drift of the features and of the score; then labels, before a model is blamed for them",
                condition=kind(signal("ml_model_quality", system=system, metric=metric), limit, keep),
            )
            for kind, limits in ((Below, floors or {}), (Above, ceilings or {}))
            for metric, limit in limits.items()
        ),
        Rule(
            name="LabelSurprise", severity="ticket",
            summary="Positive labels come more often than the probabilities say.",
            look_at="what the newest positives have in common; the model may no longer know what it looks for",
            condition=Above(signal("ml_label_surprise", system=system), 1.0, keep),
        ),
        Rule(
            name="DataFlaw", severity="ticket",
            summary="A column is missing, out of range, unseen, constant or stale more than usual.",
            look_at="the producer of this column; then the online features' position",
            condition=Above(signal("ml_data_flaw_ratio", system=system), 1.0, keep),
        ),
        Rule(
            name="LabelFlaw", severity="ticket",
            summary="Labels are a flood, frozen, random or early: nothing should be trained on them.",
            look_at="who sends the labels; retraining waits until this is over",
            condition=Above(signal("ml_label_flaw_ratio", system=system), 1.0, keep),
        ),
        Rule(
            name="LabelsSilent", severity="ticket", holds_for=quiet,
            summary="No label was heard though answers were given.",
            look_at="who sends the labels; quality is not known meanwhile",
            condition=Silent(counter=labels, against=answers, over=windows[0]),
        ),
        Rule(
            name="CanaryStuck", severity="info", holds_for=stuck,
            summary="A canary was neither promoted nor rolled back.",
            look_at="what the rollout is waiting for: units, requests, or metrics that are gone",
            condition=Above(signal("ml_canary_share", system=system), 0.0, keep),
        ),
        Rule(
            name="MonitoringStopped", severity="ticket",
            summary="Monitoring has not run when it should have: what it says is old.",
            look_at="the loop's log, its last error first",
            condition=Older(ran, (chunk + chunk // 2) / SECOND, keep),
        ),
    )  # fmt: skip
    return speaking + _absences(speaking, grace)


def _absences(speaking: Sequence[Rule], grace: int) -> tuple[Rule, ...]:
    """One rule for each metric that must be there."""
    signals = dict.fromkeys(found for rule in speaking for found in rule.condition.signals)
    metrics = dict.fromkeys(found.metric for found in signals)
    return tuple(
        Rule(
            name=_camel(metric) + "Missing", severity="ticket", holds_for=grace,
            summary=f"{metric} is missing: what is judged by it stays as it was.",
            look_at="whether the process that exports it runs and is scraped",
            condition=Absent(tuple(found for found in signals if found.metric == metric)),
        )
        for metric in metrics
    )  # fmt: skip


def _camel(metric: str) -> str:
    """ml_label_surprise -> LabelSurprise"""
    return "".join(word.capitalize() for word in metric.removeprefix("ml_").split("_"))
