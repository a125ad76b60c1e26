"""What keeps a model good: watch the champion, alarm, retrain, roll out by canary, and never learn from rubbish.

Once a day the champion is judged by its `Watch`; what is found becomes the samples that the alarm rules read. A drift
or a surprise sets off retraining, now and in the weeks that follow, since the labels of the new days come late. While
an alarm says that data or labels are not what they seem, nothing is trained, and what was asked meanwhile is left out
for good; a canary goes no further. A candidate that clears its gates becomes a canary; the rest is the rollout's. What
others do in the registry is told, and the champion that they chose is watched.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from common.clock import DAY, HOUR, SECOND, Clock
from common.data.log import EventLog
from common.data.splits import Split
from common.errors import BadSetting, GateFailed
from common.lifecycle.evidence import Evidence, Observation
from common.lifecycle.journal import FAULTS, SCORE, Journal
from common.lifecycle.parity import rescored
from common.lifecycle.rollout import Rollout, Step, Steps
from common.lifecycle.training import Snapshot, examples, make
from common.lifecycle.watch import Findings, Metric, Watching, begin, gauges, metric
from common.monitoring.alerts import Alarms, Alert, Series, rules, windows
from common.monitoring.sinks import Sink
from common.progress import Progress
from common.registry.audit import TRAFFIC
from common.registry.gates import CHAMPION
from common.registry.registry import Registry
from common.schema import Event
from common.serving.following import bring
from common.serving.live import Live
from common.serving.service import Reply
from common.system import Answered, AnySystem, Examples, Model

WHO = "loop"
TRIGGERS = ("LabelSurprise", "FeatureDrift")  # the model no longer fits
SUSPECT = ("DataFlaw", "LabelFlaw", "LabelsSilent")  # what it would learn from is not right
UNSEEN = "FeatureDriftRatioMissing"
FAST = 0.25  # s


@dataclass(frozen=True)
class Policy:
    retrain_every: int = 7 * DAY  # us, once something has set it off
    retrainings: int = 4  # so many: the labels of the first days after a change come weeks later
    newest: int = 75 * DAY  # us of requests that are learned from then: most of what is older is no longer true
    look: int = 12 * HOUR  # us between two looks at a canary
    checked: int = 25  # of its newest requests, each time: their scores are computed again offline
    steps: Steps = field(
        default_factory=lambda: Steps(
            # `power` asks for more; few are asked for here, so that what is fine does not wait for one step
            least_units=5,
            least_requests=30,
            least_time=12 * HOUR,
            needs=("gap",),
            evidence=Evidence(silence=12 * HOUR),
        )  # fmt: skip
    )
    watching: Watching = Watching()


class Happened(NamedTuple):
    at: int  # us
    kind: str  # alarm, cleared, held, retrained, rejected, waiting, canary, advanced, promoted, rolled back, removed
    what: str
    version: str | None


@dataclass
class _Canary:
    name: str
    since: int  # us
    first: int  # row of the journal
    model: Model[Any, Any]  # from its bundle, as training would load it
    gaps: dict[int, float] = field(default_factory=dict)  # by row
    heard: int = 0  # position of the log up to which its model was told
    is_held: bool = False


class Loop:
    """Of one system, on the clock that it is given; call `tick` as time goes on, midnights included."""

    def __init__(
        self,
        system: AnySystem,
        registry: Registry,
        live: Live,
        log: EventLog,
        journal: Journal,
        clock: Clock,
        *,
        policy: Policy = Policy(),
        sinks: Sequence[Sink] = (),
        say: Callable[[Happened], None],
        progress: Progress,
    ) -> None:
        """The champion is there, and the journal reaches back for its reference."""
        self.system, self.registry, self.live, self.log, self.journal = system, registry, live, log, journal
        self.clock, self.policy, self.sinks, self._say, self._progress = clock, policy, sinks, say, progress
        self.happened: list[Happened] = []
        self.findings: list[tuple[int, Findings]] = []
        self.alerts: list[Alert] = []
        standard = rules(
            system.name, system.monitors, drift_for=policy.watching.chunk * DAY, keep=2 * DAY,
            grace=policy.watching.reference + 2 * policy.watching.chunk * DAY, windows=(DAY, 6 * HOUR),
        )  # fmt: skip
        self._series = Series(windows(standard), lookback=2 * DAY)
        self._alarms = Alarms(standard, clock)
        self._rollout = Rollout(registry, system.name, config=policy.steps, who=WHO)
        self._counts: Counter[Metric] = Counter()
        self._canary: _Canary | None = None
        self._waiting: tuple[str, str] | None = None  # a version, and why it is to be tried
        self._events: dict[type, pa.Table] = {}
        self._due: list[int] = []  # us, retrainings
        self._retrained = -policy.retrain_every  # us
        self._reason = ""
        self._spans: list[tuple[int, int]] = []  # us, of requests from which nothing is learned
        self._unheard: list[tuple[int, int]] = []  # us, in which nothing was heard that can be believed
        self._is_held = False
        champion = registry.alias(system.name, CHAMPION)
        if champion is None:
            raise BadSetting(f"{system.name}: must have a champion to watch, has none")
        self._champion = champion
        self._watch = begin(
            journal, registry, champion, clock.now(), policy.watching, prepare=partial(bring, system, log)
        )

    def answered(self, replies: Sequence[Reply[Any]]) -> None:
        """Count what callers were given."""
        for reply in replies:
            outcome = "full" if reply.degraded is None else "degraded"
            self._counts[metric("ml_answers_total", system=self.system.name, outcome=outcome)] += 1
            self._counts[metric("ml_prediction_latency_seconds_count", system=self.system.name)] += 1
            fast = reply.took <= FAST * SECOND
            self._counts[metric("ml_prediction_latency_seconds_bucket", system=self.system.name, le="0.25")] += fast

    def tick(self) -> None:
        """Some time is over, a part of a day."""
        now = self.clock.now()
        self._notice()
        self._counts[metric("ml_labels_total", system=self.system.name)] = len(self.journal.heard)
        samples: dict[Metric, float] = dict(self._counts)
        if now % DAY == 0:
            samples |= self._judge(now)
        self._series.add(now, samples)
        changed = self._alarms.step(self._series)
        self.alerts += changed
        for sink in self.sinks:
            sink.send(changed)
        for alert in changed:
            if alert.state in ("firing", "resolved"):
                kind = "alarm" if alert.state == "firing" else "cleared"
                about = ", ".join(value for name, value in alert.labels if name != "system")
                self._tell(kind, f"{alert.rule}{f' ({about})' if about else ''}: {alert.summary}")
        # after the alarms: they may hold it
        if self._canary is not None and now % self.policy.look == 0:
            self._look(now, self._canary)
        if self._canary is None and self._waiting is not None and not self._firing(SUSPECT):
            self.canary(*self._waiting)
        if now % DAY == 0:
            self._decide(now)

    def _firing(self, rules: Sequence[str]) -> list[Alert]:
        return [alert for alert in self._alarms.active() if alert.state == "firing" and alert.rule in rules]

    def _tell(self, kind: str, what: str, version: str | None = None) -> None:
        happened = Happened(self.clock.now(), kind, what, version)
        self.happened.append(happened)
        self._say(happened)

    # Watching

    def _begin(self, champion: str) -> None:
        """Judge another champion from now on, against the weeks before."""
        now, habits = self.clock.now(), self._watch.habits
        self._champion = champion
        self._watch = begin(
            self.journal, self.registry, champion, now, self.policy.watching, habits,
            prepare=partial(bring, self.system, self.log),
        )  # fmt: skip
        self._alarms.anew(UNSEEN, column=SCORE)  # which needs a reference of its own first
        self._alarms.anew("FeatureDrift")  # two chunks in a row of one champion

    def _notice(self) -> None:
        """That others have made another version the champion."""
        champion = self.registry.alias(self.system.name, CHAMPION)
        if champion is None or champion == self._champion:
            return
        moves = [row for row in self.registry.audit(self.system.name) if row.what.startswith(("promote", "rollback"))]
        by = f"by {moves[-1].who}: {moves[-1].why}"
        ended, self._canary = self._canary, None
        self.live.refresh()
        if ended is not None and ended.name != champion:
            self._tell("removed", f"{champion} was promoted {by}", ended.name)
        if self._waiting is not None and self._waiting[0] == champion:
            self._waiting = None
        self._tell("promoted", by, champion)
        self._begin(champion)

    def _judge(self, now: int) -> dict[Metric, float]:
        """The samples of a day; what is missing has none."""
        if not self._firing(SUSPECT):  # else that would become usual
            self._watch.settle(now, is_drifting=bool(self._firing(TRIGGERS)))
        found = self._watch.day(now)
        self.findings.append((now, found))
        samples = gauges(self.system.name, found, now)
        share = self.registry.traffic(self.system.name).canary_share
        return {**samples, metric("ml_canary_share", system=self.system.name): share}

    # Retraining

    def _decide(self, now: int) -> None:
        suspect, trigger = self._firing(SUSPECT), next(iter(self._firing(TRIGGERS)), None)
        for alert in suspect:
            since = alert.since - DAY
            if alert.rule != "DataFlaw":
                since -= self.policy.watching.label_window * DAY
                self._unheard.append((since, now))  # whatever it is about
                since -= self.system.early_delay  # these requests' silence says nothing either
            self._spans.append((since, now))
        answered = self._canary is not None  # it may be what ends the alarm
        if trigger is not None and not self._due and not answered and self._watch.began <= trigger.since:
            first = max(now, self._retrained + self.policy.retrain_every)
            self._due = [first + i * self.policy.retrain_every for i in range(self.policy.retrainings)]
            self._reason = trigger.rule
        if not self._due or now < self._due[0] or self._canary is not None:
            return
        why = f"while {suspect[0].rule} says: {suspect[0].summary}" if suspect else None
        if self._watch.habits is None:
            why = "before it is known how labels usually come"
        if why is not None:
            if not self._is_held:
                self._tell("held", f"nothing is trained {why}")
            self._is_held = True
            return
        self._is_held = False
        self._due, self._retrained = [at for at in self._due if at > now], now
        self._retrain(now)

    def _retrain(self, now: int) -> None:
        """Learn from all that is known by now, be judged on the newest days of it."""
        system, delay = self.system, self.system.early_delay
        champion = self.registry.get(system.name, self._champion)
        end, oldest = now - delay, max(int(self.journal.columns.as_of[0]), now - self.policy.newest)
        split = Split((oldest, end - system.retrain_span), (end - system.retrain_span, end))
        if system.many is None:
            known = self.journal.examples(now, delay, self._spans, self._unheard)
        else:
            known = self._replayed(now, oldest)
        origin = {"position": self.log.head().position, "origin": {"loop": self._reason}}
        try:
            trained = make(
                system, self.registry, known, split, champion.lineage["params"], system.retrain_gates, origin,
                self._progress,
            )  # fmt: skip
        except BadSetting as error:
            self._tell("held", f"too little is known: {error}")
            return
        name = trained.version.name
        self._tell("retrained", f"on {trained.rows['train']:,} requests, because of {self._reason}", name)
        missed = [verdict.message for verdict in trained.version.verdicts if not verdict.passed]
        if missed:
            self._tell("rejected", missed[0], name)
            return
        self.canary(name, f"cleared its gates on {trained.report.rows:,} requests")

    def _replayed(self, now: int, oldest: int) -> Examples[Any]:
        """The requests since a time, us, their rows named anew: those that were not shown have not been kept."""
        system, log = self.system, self.log
        kinds: list[type[Event]] = [*system.events, Answered]
        snapshot = Snapshot({kind.__name__: log.read(kind) for kind in kinds}, {}, log.head().position, now)
        early = replace(system, label_delay=system.early_delay)
        known = examples(early, snapshot, wanted=[(oldest, now)])
        as_of = known.as_of[known.rows.owner]
        for start, end in (*self._spans, *self._unheard):
            known.weights[(start <= as_of) & (as_of < end)] = 0
        known.labels[known.weights == 0] = np.nan
        return known

    # Rolling out

    def canary(self, version: str, why: str) -> None:
        """Give a version its first units as soon as nobody else is tried; the newest that waits is the one that is."""
        try:
            step = self._rollout.start(version, why)
        except GateFailed as error:  # the champion is another one than it was judged against
            step = Step("none", 0.0, str(error))
        before, self._waiting = self._waiting, None
        if step.kind == "hold":
            self._waiting = version, why
        if before is not None and before[0] != version:
            self._tell("rejected", f"{version} is newer", before[0])
        if step.kind == "hold":
            if before is None or before[0] != version:
                self._tell("waiting", step.why, version)
            return
        if step.kind == "advanced":
            found = self.registry.get(self.system.name, version)
            with self.registry.private(found) as folder:
                model = self.system.load(folder)
            self._canary = _Canary(version, self.clock.now(), len(self.journal), model)
        self._follow(step, version, {"advanced": "canary", "none": "rejected"}.get(step.kind, step.kind))

    def _look(self, now: int, canary: _Canary) -> None:
        """What the canary has shown so far, and what follows from it."""
        suspect = self._firing(SUSPECT)
        wait = f"it goes no further while {suspect[0].rule} says: {suspect[0].summary}" if suspect else None
        step = self._rollout.step(self._observed(canary, now), now, wait=wait)
        if wait is not None and step.kind == "hold" and not canary.is_held:
            self._tell("held", wait, canary.name)
        canary.is_held = wait is not None
        if step.kind == "hold":
            return
        if step.kind != "advanced":
            self._canary = None
        if step.kind == "none":
            changes = [row for row in self.registry.audit(self.system.name) if row.what.startswith(TRAFFIC)]
            step = replace(step, why=f"by {changes[-1].who}: {changes[-1].why}")
        self._follow(step, canary.name, "removed" if step.kind == "none" else step.kind)

    def _follow(self, step: Step, version: str, kind: str) -> None:
        self.live.refresh()
        share = f"{step.share:.0%} of the units: " if kind in ("canary", "advanced") else ""
        self._tell(kind, share + step.why, version)
        if step.kind == "promoted":
            self._begin(version)

    def _observed(self, canary: _Canary, now: int) -> list[Observation]:
        journal, c = self.journal, self.journal.columns
        rows = range(canary.first, len(journal))
        mine = [row for row in rows if c.routed[row] == canary.name]
        # where it failed, the score is another version's
        own = [row for row in mine if c.version[row] == canary.name and journal.positions[row]]
        new = [row for row in own if row not in canary.gaps and np.isfinite(c.score[row])]
        for row, gap in zip(new[-self.policy.checked :], self._gaps(canary, new[-self.policy.checked :]), strict=True):
            canary.gaps[row] = gap
        labels, _ = journal.labels(now, self.system.early_delay)
        known = [row for row in rows if np.isfinite(labels[row])]
        paid: Mapping[int, float] = {}
        if known:
            asked = [journal.requests(slice(row, row + 1))[0] for row in known]
            losses = self.system.losses(asked, [journal.answers[row] for row in known], labels[known])
            paid = dict(zip(known, losses.paid.tolist(), strict=True))
        routed = {canary.name, self._champion}
        return [
            Observation(
                unit=c.unit[row], canary=c.routed[row] == canary.name, at=int(c.as_of[row]),
                failed=FAULTS[c.fault[row]] == "failed", missing=FAULTS[c.fault[row]] == "missing",
                # only of a canary is it asked whether it scores like its bundle: the champion was one
                took=int(c.took[row]), gap=canary.gaps.get(row) if c.routed[row] == canary.name else 0.0,
                loss=paid.get(row),
            )
            for row in rows
            if c.routed[row] in routed
        ]  # fmt: skip

    def _gaps(self, canary: _Canary, rows: Sequence[int]) -> Sequence[float]:
        """|live - offline score| of requests, with features computed anew from the log."""
        if not rows:
            return ()
        for kind in {view.source for view in self.system.views}:
            held = self._events.get(kind)
            new = self.log.read(kind, held["position"][-1].as_py() if held is not None and held.num_rows else 0)
            self._events[kind] = new if held is None else pa.concat_tables([held, new])
        canary.heard = bring(self.system, self.log, canary.model, canary.heard)
        asked = self.journal.table.take(pa.array(rows))
        positions = [self.journal.positions[row] for row in rows]
        seen = None if self.system.many is None else self.journal.seen(rows)[0]
        again = rescored(self.system, canary.model, asked, positions, self._events, seen)
        return np.abs(self.journal.columns.score[list(rows)] - again).tolist()  # type: ignore[no-any-return]
