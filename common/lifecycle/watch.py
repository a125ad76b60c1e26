"""What is known of a champion in production: drift, surprise, flaws of data and labels, quality; once a day.

Everything is measured against a reference: the weeks before it became champion, in which labels had time to come and
nothing was wrong. What cannot be known yet is missing, not quiet.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.clock import DAY, SECOND
from common.errors import BadData, BadDefinition
from common.features.view import Array
from common.lifecycle.journal import NEVER, SCORE, Journal
from common.monitoring import drift, quality, sketches
from common.monitoring.quality import Flaw, LabelHabits, Surprise, Told
from common.registry.registry import Registry
from common.system import RowError

CLUSTERED = 2.0  # variance of a day's positives over their mean, at least: one theft is several of them
SURER = 1.2  # times the evidence that is enough; what was seen beyond that is forgotten
MIDDLE = 0.5  # of a lot that nobody drew
Metric: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]

LAG = "lag"  # s, from when a request happened, as the client says, to when it was logged


@dataclass(frozen=True)
class Watching:
    """How closely, and at which rates of false alarms."""

    reference: int = 42 * DAY  # us before the champion began
    settle: int = 21 * DAY  # us after which the champion's own time says which labels are usual
    chunk: int = 7  # days that are compared for drift; it alarms when two in a row exceed
    drift_rate: float = 1e-5  # of false alarms, per chunk, over all columns and distances; slow growth is none
    surprise_rate: float = 1e-4  # one false alarm in so many days
    surprise_slack: float = 0.1  # more positives by this share are no surprise
    flaw_rate: float = 1e-6  # per day, over all columns
    flaw_margin: float = 0.02  # share of rows
    label_window: int = 7  # days of labels that are judged together
    label_rate: float = 1e-4  # per day, of taking good labels for random ones
    label_slack: float = 0.5  # more positives by this share than scores say are no sign of that
    denied: float = 0.05  # share of labels that came because something happened, which may say that it did not


@dataclass(frozen=True)
class Below:
    """Surprise among the requests that scored below a level: positives that nobody had expected there.

    Above it, a model that is fooled looks no worse than before: it only finds fewer of them.
    """

    level: float
    ratio: float  # of positives that are known early, to summed scores, as high as chance may have hidden
    surprise: Surprise


@dataclass(frozen=True)
class Findings:
    """Of one day. Ratios are to thresholds: above 1 is too much; None is missing."""

    drift: dict[tuple[str, str], float | None]  # by column and distance, of the last whole chunk
    surprise: float | None
    data: tuple[Flaw, ...]
    labels: tuple[Flaw, ...]


class Watch:
    """Of one champion, from the day on which it begins."""

    def __init__(
        self,
        journal: Journal,
        began: int,
        champion: str,
        rows: slice,
        scores: Array,
        config: Watching,
        habits: LabelHabits | None = None,
        told: Array | None = None,
    ) -> None:
        """`scores` of the champion for requests of the reference, (n,), that it has not learned from; `told`: what
        outcomes say of what it would have answered to them, where that depends on the answer.

        `habits` of labels under the champion before it, until there are its own; None: they cannot be judged before.
        """
        self.journal, self.began, self.champion, self.config = journal, began, champion, config
        self._reference = self._calibrate(began)
        self.habits, self._are_own = habits, False
        self._even = self._denied = Surprise(dispersion=CLUSTERED, slack=config.label_slack)
        denied, n = _denials(self._told(began - config.reference, began))
        self._denies = max(config.denied, (denied + 1) / (n + 2))
        self._below = self._fit_surprise(rows, scores, began, told)
        self._judged = journal.system.early_delay + began
        self._shifts: dict[tuple[str, str], float | None] = {}
        self._chunk_from = began

    def settle(self, now: int, is_drifting: bool = False) -> None:
        """Learn what is usual from the champion's own time, once there is enough of it and if nothing is suspect.

        Labels and scores depend on what it decides, so the time before says nothing of them. A drift is learned as
        little as a flaw, but how labels come is: nothing is trained before that is known.
        """
        if not self._are_own and now - self.began >= self.config.settle:
            own = self._fit_habits(now)
            self._are_own, self.habits = own is not None, own or self.habits
        if is_drifting:
            return
        if not self._below and now - self.began >= self.config.settle:
            rows = self.journal.rows(self.began, now)
            self._below, self._judged = self._fit_surprise(rows, self.journal.columns.score[rows], now), now
        if not self._has_scores and now - self.began >= self.config.reference:
            self._reference, self._chunk_from = self._calibrate(now), now

    def day(self, now: int) -> Findings:
        """What is found at the end of a day; `now`, us."""
        if self._reference is not None and now - self._chunk_from >= self.config.chunk * DAY:
            chunk = self._sketched(self.journal.rows(self._chunk_from, now))
            self._shifts = {(s.column, s.distance): s.ratio for s in self._reference.judge(chunk)}
            self._chunk_from = now
        return Findings(self._shifts, self._surprise(now), self._flaws(now), self._labels(now))

    def _columns(self, rows: slice) -> dict[str, Array]:
        c = self.journal.columns
        lag = (c.as_of[rows] - c.asked[rows]) / SECOND
        named = dict(zip(self.journal.watched, c.watched[rows].T, strict=True))
        return {**named, SCORE: c.score[rows], LAG: lag}

    def _sketched(self, rows: slice) -> dict[str, sketches.Sketch]:
        assert self._reference is not None
        return drift.sketch(self._reference, self._columns(rows))

    def _calibrate(self, now: int) -> drift.Reference | None:
        """By blocks of a day; None: the reference is too short. Usual scores are those of a champion all that time."""
        rows = self.journal.rows(now - self.config.reference, now)
        columns = self._columns(rows)
        self._has_scores = now - self.began >= self.config.reference
        if not self._has_scores:
            del columns[SCORE]
        whole = {name: sketches.Numeric.of(values) for name, values in columns.items()}
        day = (self.journal.columns.as_of[rows] - now) // DAY
        self._blocks = [
            {name: whole[name].empty_like().update(values[day == d]) for name, values in columns.items()}
            for d in np.unique(day)
        ]
        try:
            return drift.calibrate(self._blocks, chunk=self.config.chunk, rate=self.config.drift_rate, seed=0)
        except BadDefinition:
            return None

    def _flaws(self, now: int) -> tuple[Flaw, ...]:
        """Of the last day."""
        if self._reference is None:
            return ()
        usual = {name: sketch for name, sketch in self._reference.sketches.items() if name != SCORE}
        chunk = self._sketched(self.journal.rows(now - DAY, now))
        return quality.flaws(
            usual, chunk, rate=self.config.flaw_rate, margin=self.config.flaw_margin, blocks=self._blocks
        )  # fmt: skip

    def _told(self, start: int, end: int) -> Told:
        journal, c = self.journal, self.journal.columns
        # an outcome that is about no request and no answer is no label: as many come, however few ask
        heard = [h for h in journal.heard_between(start, end) if h.row >= 0 or not math.isnan(h.value)]
        row = np.array([h.row for h in heard], np.int64)
        known, at = row >= 0, np.maximum(row, 0)
        is_even = np.array([h.is_even for h in heard], bool)
        value = np.array([h.value for h in heard])
        score = np.where(known & is_even & ~np.isnan(value), c.score[at], np.nan)
        due = journal.rows(start, end)
        return Told(
            request=np.where(known, row, -1 - np.arange(len(row))), known=known, asked=c.asked[at],
            dated=np.array([h.dated for h in heard], np.int64), heard=np.array([h.at for h in heard], np.int64),
            value=value, score=score, is_even=is_even, due=due.stop - due.start,
        )  # fmt: skip

    def _fit_habits(self, now: int) -> LabelHabits | None:
        """How labels came, day by day, once those of the champion before have become few."""
        days = range(self.began + self.journal.system.early_delay, now, DAY)
        try:
            habits = LabelHabits.fit([self._told(day, day + DAY) for day in days], rate=self.config.flaw_rate)
        except BadData:
            return None
        return habits

    def _labels(self, now: int) -> tuple[Flaw, ...]:
        """Of the last day, on which much is seen at once, and of the last days.

        Without habits only what is surely wrong; else it would look as if all had been judged.
        """
        found = self._random(now)
        if self.habits is None:
            return tuple(flaw for flaw in found if flaw.exceeds)
        for days in (1, self.config.label_window):
            found += quality.labels_health(self.habits, self._told(now - days * DAY, now))
        return tuple(found)

    def _random(self, now: int) -> list[Flaw]:
        """Labels that say what they should not, evidence over enough.

        surplus: those that come whatever they say are positive more often than scores say. A drift that the champion
        does not see makes them rarer; labels at random make half of them positive. denied: those that come because
        something happened say more often than before that it did not.
        """
        told, enough = self._told(now - DAY, now), -math.log(self.config.label_rate)
        even = ~np.isnan(told.score)
        self._even = self._even.after(float(told.value[even].sum()), float(told.score[even].sum()))
        self._even = self._even.forgetting(_excess(self._even.detection, enough))
        denied, n = _denials(told)
        self._denied = self._denied.after(denied, self._denies * n)
        self._denied = self._denied.forgetting(_excess(self._denied.detection, enough))
        return [
            Flaw(name, "random", max(seen.detection, 0.0) / enough, 0.0, 1.0)
            for name, seen in (("surplus", self._even), ("denied", self._denied))
        ]

    def _fit_surprise(self, rows: slice, scores: Array, now: int, told: Array | None = None) -> list[Below]:
        """From requests that the champion did not learn from and whose outcomes had time to come; []: too few.

        `told`: what outcomes say of its answers, where others were given.
        """
        journal, delay = self.journal, self.journal.system.early_delay
        label, fits = self._early(rows, told)
        c = journal.columns
        as_of = c.as_of[rows]
        fits &= (as_of < now - delay) & np.isfinite(scores)
        if not label[fits].any():
            return []
        found = []
        for share in journal.system.surprise.below:
            positives = scores[fits & (label == 1)]
            level = float(np.quantile(positives, share)) if share < 1 else math.inf
            low = fits & (scores < level)
            if not label[low].any():
                continue
            n, ratio = float(label[low].sum()), float(label[low].sum() / scores[low].sum())
            expected = np.minimum(scores[low] * ratio, 1)
            try:
                surprise = Surprise.fit(
                    expected, label[low], c.unit[rows][low], as_of[low] // DAY, slack=self.config.surprise_slack
                )  # fmt: skip
            except BadData:
                continue
            dispersion = max(surprise.dispersion, journal.system.surprise.dispersion)
            doubt = dispersion / n  # squared standard error of the ratio, as a share of it
            surprise = replace(surprise, dispersion=dispersion)
            found.append(Below(level, ratio * (1 + math.sqrt(doubt) + doubt / 2), surprise))
        return found

    def _early(self, rows: slice, told: Array | None = None) -> tuple[Array, NDArray[np.bool_]]:
        """Whether a positive was told within the early delay, and where that can be known, (n,) each."""
        journal, c = self.journal, self.journal.columns
        told_at = np.array(journal.told_at[rows])
        told = np.array(journal.told[rows]) if told is None else told
        in_time = (told_at != NEVER) & (told_at <= c.as_of[rows] + journal.system.early_delay)
        is_known = ~c.is_hidden[rows]
        if journal.system.outcome.silence is None:
            is_known &= in_time & ~np.isnan(told)
        return np.where(in_time & (told == 1), 1.0, 0.0), is_known

    def _surprise(self, now: int) -> float | None:
        """Evidence over what is enough, with the requests that have just become old enough."""
        if not self._below:
            return None
        c, delay = self.journal.columns, self.journal.system.early_delay
        rows = self.journal.rows(self._judged - delay, now - delay)
        self._judged = max(self._judged, now)
        label, fits = self._early(rows)
        score = c.score[rows]
        fits &= np.isfinite(score)
        for i, below in enumerate(self._below):
            low = fits & (score < below.level)
            expected = np.minimum(score[low] * below.ratio, 1)
            sums = below.surprise.sums(expected, label[low], c.unit[rows][low], c.as_of[rows][low] // DAY)
            for _, observed, hoped in zip(*sums, strict=True):
                self._below[i] = below = replace(below, surprise=below.surprise.after(float(observed), float(hoped)))
        logs = np.array([below.surprise.detection for below in self._below])
        found = float(np.logaddexp.reduce(logs) - math.log(len(logs)))  # the mean of e-detectors is one
        enough = -math.log(self.config.surprise_rate)
        if excess := _excess(found, enough):
            self._below = [replace(below, surprise=below.surprise.forgetting(excess)) for below in self._below]
        return max(found - excess, 0.0) / enough


def _excess(found: float, enough: float) -> float:
    return max(found - SURER * enough, 0.0)


def _denials(told: Told) -> tuple[float, float]:
    """Labels that came because something happened: how many say that it did not, and how many there are."""
    prompted = ~told.is_even & ~np.isnan(told.value)
    return float((told.value[prompted] == 0).sum()), float(prompted.sum())


def begin(
    journal: Journal,
    registry: Registry,
    champion: str,
    now: int,
    config: Watching,
    habits: LabelHabits | None = None,
    prepare: Callable[[Any], object] = lambda model: None,
) -> Watch:
    """The watch of a champion that begins now, with what it would have said in the weeks before.

    `prepare` is called with its model, loaded from its files.
    """
    version = registry.get(journal.system.name, champion)
    rows = journal.rows(max(now - config.reference, int(version.lineage["train"][1])), now)
    with registry.private(version) as folder:
        model = journal.system.load(folder)
    prepare(model)
    said = predictions(journal, model, rows)
    return Watch(journal, now, champion, rows, scores(journal, said), config, habits, _retold(journal, said, rows))


def _retold(journal: Journal, said: Sequence[Any], rows: slice) -> Array | None:
    """What outcomes say of the answers that would have been given; None where that does not depend on the answer."""
    system = journal.system
    if system.many is None or system.many.watched is None:
        return None
    answers = [
        None if isinstance(p, RowError) else system.decide(request, p, MIDDLE)
        for request, p in zip(journal.requests(rows), said, strict=True)
    ]
    return journal.retold(rows, answers)


def gauges(system: str, found: Findings, now: int) -> dict[Metric, float]:
    """What a day's findings are to the alarm rules, and to Prometheus; what is missing has none."""
    samples: dict[Metric, float | None] = {
        metric("ml_monitoring_last_run_timestamp_seconds", system=system): now / SECOND,
        metric("ml_label_surprise", system=system): found.surprise,
    }
    for (column, distance), ratio in found.drift.items():
        samples[metric("ml_feature_drift_ratio", system=system, column=column, distance=distance)] = ratio
    for flaw in found.data:
        samples[metric("ml_data_flaw_ratio", system=system, column=flaw.column, kind=flaw.kind)] = flaw.ratio
    worst: dict[str, float] = {}
    for flaw in found.labels:
        if flaw.ratio is not None:
            worst[flaw.kind] = max(worst.get(flaw.kind, 0.0), flaw.ratio)
    samples |= {metric("ml_label_flaw_ratio", system=system, kind=kind): ratio for kind, ratio in worst.items()}
    return {name: value for name, value in samples.items() if value is not None}


def metric(name: str, /, **labels: str) -> Metric:
    return name, tuple(sorted(labels.items()))


def predictions(journal: Journal, model: Any, rows: slice) -> Sequence[Any]:
    """What a model says of requests that others have answered."""
    said: Sequence[Any] = model.predict(journal.requests(rows), *journal.seen(range(rows.start, rows.stop)))
    return said


def scores(journal: Journal, said: Sequence[Any]) -> Array:
    """Of predictions, (n,); NaN: nothing."""
    return np.array([math.nan if isinstance(p, RowError) else journal.system.score(p) for p in said])
