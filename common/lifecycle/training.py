"""From a log to a version: snapshot, features as of each request's time, tune, fit, judge, publish."""

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
from numpy.typing import NDArray
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from common.data.log import EventLog
from common.data.snapshots import Snapshots
from common.data.splits import Forward, Span, Split, forward
from common.errors import BadSetting, Damaged, NotFound
from common.features import offline
from common.features.view import Array, Times, assemble, definition_digest, feature_names, ints, numbers
from common.monitoring import sketches
from common.progress import Progress
from common.registry.gates import CHAMPION, Gate
from common.registry.registry import Registry, Version
from common.schema import Event, Records
from common.system import Answered, AnySystem, Examples, Params, Report, RowError, Rows, World

SEED = 0  # of tuning; what else is drawn is drawn by the seeds of the configuration
SCORED = 2_000  # requests whose scores are the reference
MOST = 1_000_000  # requests of one span, the newest: so many are learned from, and so many judged on


@dataclass(frozen=True)
class Snapshot:
    """All that the log knew, as immutable tables by kind of event."""

    tables: Mapping[str, pa.Table]
    digests: Mapping[str, str]
    head: int  # position of the last event in it
    at: int  # us, its created_timestamp

    def of(self, kind: type[Event]) -> pa.Table:
        return self.tables[kind.__name__]


def take(system: AnySystem, log: EventLog, snapshots: Snapshots) -> Snapshot:
    """A snapshot of the log as it is now."""
    head = log.head()
    if not head.position:
        raise NotFound(f"{system.name}: the log is empty; there is nothing to learn from")
    kinds: list[type[Event]] = [*system.events, Answered]
    digests = {kind.__name__: snapshots.publish(log.read(kind, until=head.position)) for kind in kinds}
    tables = {name: snapshots.read(digest) for name, digest in digests.items()}
    return Snapshot(tables, digests, head.position, head.created_timestamp)


def examples(
    system: AnySystem,
    snapshot: Snapshot,
    world: World[Any, Any] | None = None,
    wanted: Sequence[Span] | None = None,
) -> Examples[Any]:
    """The requests of a snapshot, all or those of some spans of time: features as of each one's time, and what was
    known of its outcome at the end.

    A label is what was told within the label delay, and is known once that is over, also if it came early: those that
    come early are not like the others. Where outcomes name no request, it is what was told by the end: that of a row
    which is 20 days ahead comes 20 days later. An outcome that our own answer hid has weight 0.
    """
    table = snapshot.of(system.request)
    if wanted is not None:
        table = table.filter(pa.array(_inside(ints(table["created_timestamp"]), wanted)))
    requests = Records(system.request, table)
    rows = Rows(table, np.arange(len(requests) + 1))
    if system.many is not None:
        rows = system.many.replay(table, snapshot.tables)
    as_of = ints(table["created_timestamp"])
    labels, weights = _labels(system, snapshot, table) if system.many is None else _each(system, snapshot, table, rows)
    return Examples(
        requests=requests,
        rows=rows,
        x=features(system, snapshot.tables, table, rows),
        names=feature_names(system.views, system.on_demand),
        as_of=as_of,
        labels=labels,
        weights=weights,
        ceiling=None if world is None else world.ceiling(requests),
        segments={} if world is None else world.segments(requests),
        truth={} if world is None else world.truth(requests, rows),
        events=snapshot.tables,
    )


def features(system: AnySystem, tables: Mapping[str, pa.Table], asked: pa.Table, rows: Rows) -> Array:
    """Of rows of logged requests, as of when each request was logged, (n_rows, n_features)."""
    owner = pa.array(rows.owner)
    places = {name: asked[name].take(owner) for name in ("position", "created_timestamp")}
    values = []
    for view in system.views:
        keys = pa.table({name: rows.columns[name] for name in view.entity} | places)
        values.append(offline.compute(view, tables[view.source.__name__], keys))
    return assemble(system.request, system.views, system.on_demand, rows.columns, values)


def _labels(system: AnySystem, snapshot: Snapshot, table: pa.Table) -> tuple[Array, Array]:
    """Of a table of requests: labels, NaN where not known, and 1 / propensity of seeing them; (n_requests,) each."""
    outcome = system.outcome
    said, told = snapshot.of(Answered), snapshot.of(outcome.source)
    place = {event_id: i for i, event_id in enumerate(table["event_id"].to_pylist())}
    created = np.asarray(table["created_timestamp"].to_numpy(), np.int64)
    labels = np.full(len(place), np.nan if outcome.silence is None else outcome.silence)
    assert outcome.request is not None  # System has checked it
    heard = zip(
        told[outcome.request].to_pylist(),
        np.ones(told.num_rows) if outcome.value is None else numbers(told[outcome.value]).tolist(),
        told["created_timestamp"].to_pylist(),
        strict=True,
    )
    for request, value, at in heard:
        if request in place and at <= created[place[request]] + system.label_delay:  # the last word counts
            labels[place[request]] = value
    weights = _weights(said, place)
    labels[created > snapshot.at - system.label_delay] = np.nan
    labels[weights == 0] = np.nan
    return labels, np.where(np.isnan(labels), 0.0, weights)


def _weights(said: pa.Table, place: Mapping[str, int]) -> Array:
    """1 / propensity of seeing what becomes of requests, (n_requests,); 0: the answer hid it."""
    weights = np.ones(len(place))
    answers = zip(
        said["request_id"].to_pylist(), said["hidden"].to_pylist(), said["propensity"].to_pylist(), strict=True
    )
    for request, hidden, propensity in answers:
        if request in place:
            weights[place[request]] = 0.0 if hidden else 1 / propensity
    return weights


def _each(system: AnySystem, snapshot: Snapshot, table: pa.Table, rows: Rows) -> tuple[Array, Array]:
    """As `_labels`, of each row, (n_rows,) each: known of those whose outcome could be seen."""
    outcome, many = system.outcome, system.many
    assert many is not None
    created, owner = ints(table["created_timestamp"])[rows.owner], rows.owner
    seen = np.flatnonzero(numbers(rows.columns[many.seen]) > 0)
    labels = np.full(len(owner), np.nan)
    labels[seen] = np.nan if outcome.silence is None else outcome.silence
    told = snapshot.of(outcome.source)
    values = np.ones(told.num_rows) if outcome.value is None else numbers(told[outcome.value])
    if outcome.request is None:
        last = _last(many.joined, told, rows.columns)[seen]
        met = last >= 0
        labels[seen[met]] = values[last[met]]
    else:
        ids = table["event_id"].take(pa.array(owner[seen])).to_pylist()
        keys = rows.columns[many.key].take(pa.array(seen)).to_pylist()
        place = dict(zip(zip(ids, keys, strict=True), seen.tolist(), strict=True))
        heard = zip(
            told[outcome.request].to_pylist(), told[many.key].to_pylist(), values.tolist(),
            told["created_timestamp"].to_pylist(), strict=True,
        )  # fmt: skip
        for request, key, value, at in heard:
            row = place.get((request, key))
            if row is not None and at <= created[row] + system.label_delay:
                labels[row] = np.fmax(labels[row], value)  # the largest counts
    asked = {event_id: i for i, event_id in enumerate(table["event_id"].to_pylist())}
    weights = _weights(snapshot.of(Answered), asked)[owner]
    labels[(created > snapshot.at - system.label_delay) | (weights == 0)] = np.nan
    return labels, np.where(np.isnan(labels), 0.0, weights)


def _last(joined: tuple[str, ...], told: pa.Table, rows: pa.Table) -> NDArray[np.int64]:
    """Of each row the last event, in log order, that has its values in the joined columns, (n_rows,); -1: none has."""
    code, wanted = offline.entities(joined, told, rows)
    last = np.full(max(code.max(initial=-1), wanted.max(initial=-1)) + 1, -1)
    last[code] = np.arange(len(code))  # of several for one place the last is kept
    return last[wanted]


@dataclass(frozen=True)
class Trained:
    version: Version
    report: Report
    params: Params
    rows: Mapping[str, int]


def train(
    system: AnySystem,
    log: EventLog,
    snapshots: Snapshots,
    registry: Registry,
    *,
    trials: Path,
    tune: int,
    world: World[Any, Any] | None,
    origin: Mapping[str, str | int],
    progress: Progress,
) -> Trained:
    """Train on a snapshot of the log and publish what came out, whether it clears the gates or not.

    `tune` Optuna trials choose the parameters on a validation span inside the training part; the test span is
    looked at once. The model that is judged is the model that is published. `origin` says in the lineage where the
    log came from.
    """
    with progress.step("snapshot"):
        snapshot = take(system, log, snapshots)
    whole = spans(system, snapshot)
    tuning, final = (_newest(system, snapshot, split) for split in whole)
    wanted = None
    if (tuning, final) != whole:
        progress.say(f"  more than {MOST:,} requests to learn from or to judge on: the newest are taken")
        wanted = [*final, *(tuning if tune else ())]
    with progress.step("features as of each request"):
        known = examples(system, snapshot, world, wanted)
    return learn(
        system, snapshot, known, registry, trials=trials, tune=tune, origin=origin, progress=progress,
    )  # fmt: skip


def learn(
    system: AnySystem,
    snapshot: Snapshot,
    known: Examples[Any],
    registry: Registry,
    *,
    trials: Path,
    tune: int,
    origin: Mapping[str, str | int],
    progress: Progress,
) -> Trained:
    """As `train`, from the examples of a snapshot."""
    tuning, final = (_newest(system, snapshot, split) for split in spans(system, snapshot))
    params = dict(system.params)
    study = None
    if tune:
        study = _tune(system, known, tuning, trials, tune, progress)
        params |= study.best_params
    lineage = {
        "snapshots": dict(snapshot.digests),
        "position": snapshot.head,
        "study": study.study_name if study else None,
        "origin": dict(origin),
    }
    return make(system, registry, known, final, params, system.gates, lineage, progress)


def make(
    system: AnySystem,
    registry: Registry,
    known: Examples[Any],
    split: Split,
    params: Params,
    gates: Sequence[Gate],
    origin: Mapping[str, object],
    progress: Progress,
) -> Trained:
    """Fit on one part of the examples, judge on the other by these gates, and publish.

    `origin` says in the lineage where the examples came from.
    """
    features = definition_digest(system.request, system.views, system.on_demand)
    champion = _comparable(system, registry, features, progress)
    train, test = _part(system, known, split, 0), _part(system, known, split, 1)
    with progress.step("fit"):
        model = system.fit(train, params)
    with progress.step("judge on what came after"):
        report = system.evaluate(model, test)
        others = dict(report.baselines)
        if champion is not None:
            rival: Any = system.load(registry.path(champion))
            if system.hears is not None:
                rival.hear(known.events[system.hears.__name__])  # as it has, where it is live
            others[CHAMPION] = system.evaluate(rival, test).metrics
    verdicts = [
        gate.check(report.metrics, others) if report.ceiling or not gate.needs_ceiling else gate.unasked()
        for gate in gates
    ]
    lineage = {
        **origin,
        "code": _code_revision(),
        "features": features,
        "names": list(known.names),
        "params": dict(params),
        "seed": SEED,
        "train": list(split.train),
        "test": list(split.test),
        CHAMPION: champion.name if champion else None,  # that it was judged against
    }
    with progress.step("publish"), tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder))
        sample = test.between(int(test.as_of[0]), int(test.as_of[min(SCORED, len(test)) - 1]))
        scores = [
            system.score(p)
            for p in model.predict(sample.requests, sample.rows, sample.x)
            if not isinstance(p, RowError)
        ]
        seen = sketches.build(known.names, train.x) | sketches.build(("score",), np.array(scores)[:, None])
        sketches.save(seen, Path(folder))
        version = registry.publish(system.name, Path(folder), asdict(report), lineage, verdicts)
    return Trained(version, report, params, {"train": len(train), "test": len(test)})


def spans(system: AnySystem, snapshot: Snapshot) -> Forward:
    """What is learned from and what is judged on; raises BadSetting when the log is too short for it."""
    requests = snapshot.of(system.request)
    if not requests.num_rows:
        raise NotFound(f"{system.name}: the log holds no {system.request.__name__}")
    return forward(
        requests["created_timestamp"][0].as_py(), snapshot.at - system.label_delay,
        label_delay=system.label_delay, test_span=system.test_span, validation_span=system.validation_span,
    )  # fmt: skip


def _newest(system: AnySystem, snapshot: Snapshot, split: Split) -> Split:
    """The split, each span cut to its newest MOST requests: these are contiguous, as days and budgets need them."""
    as_of = ints(snapshot.of(system.request)["created_timestamp"])
    cut = []
    for start, end in split:
        first, last = np.searchsorted(as_of, [start, end]).tolist()
        cut.append((int(as_of[last - MOST]), end) if last - first > MOST else (start, end))
    return Split(*cut)


def _inside(as_of: Times, wanted: Sequence[Span]) -> NDArray[np.bool_]:
    return np.asarray(np.any([(start <= as_of) & (as_of < end) for start, end in wanted], axis=0), bool)


def _comparable(system: AnySystem, registry: Registry, features: str, progress: Progress) -> Version | None:
    """The champion, verified, if it can be judged on the features of the day."""
    name = registry.alias(system.name, CHAMPION)
    if name is None:
        return None
    champion = registry.get(system.name, name)
    registry.path(champion)
    if champion.lineage["features"] == features:
        return champion
    progress.say(f"  champion {name} was fitted on other features and cannot be compared")
    return None


def _part(system: AnySystem, known: Examples[Any], split: Split, which: int) -> Examples[Any]:
    part = known.between(*split[which])
    if not part.weights.any():
        raise BadSetting(f"{system.name}: {('train', 'test')[which]}: must have requests with known outcomes, has none")
    return part


def _tune(
    system: AnySystem, known: Examples[Any], split: Split, trials: Path, n: int, progress: Progress
) -> optuna.Study:
    """Every trial is kept: that is the experiment tracking."""
    train, validation = _part(system, known, split, 0), _part(system, known, split, 1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials.parent.mkdir(parents=True, exist_ok=True)
    storage = _journal(trials)
    study = optuna.create_study(
        study_name=f"{system.name}-{len(optuna.get_all_study_names(storage)) + 1}",
        storage=storage,
        sampler=optuna.samplers.TPESampler(seed=SEED),
        direction="maximize",
    )
    study.enqueue_trial(dict(system.params))  # tuning may not end below where it started

    def objective(trial: optuna.Trial) -> float:
        chosen = {**system.params, **system.space(trial)}
        return system.evaluate(system.fit(train, chosen), validation).metrics[system.objective]

    for _ in progress.over(range(n), "tune"):
        study.optimize(objective, n_trials=1)
    return study


def _journal(path: Path) -> JournalStorage:
    """Optuna passes over a last line that was cut off, and would write behind it; raises Damaged."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            is_whole = line.endswith(b"\n") and isinstance(json.loads(line), dict)
        except ValueError:
            is_whole = False
        if not is_whole:
            raise Damaged(f"{path}: line {number} is not what was written; remove it, or move the file away")
    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"{path}: must be an Optuna journal; move it away to start a new one") from None


def trials(path: Path) -> list[dict[str, Any]]:
    """Every trial of every study, oldest first."""
    if not path.exists():
        return []
    storage = _journal(path)
    return [
        {
            "study": study.study_name,
            "trial": t.number,
            "state": t.state.name.lower(),
            "value": t.value,
            "params": t.params,
            "seconds": t.duration.total_seconds() if t.duration else None,
        }
        for study in optuna.get_all_study_summaries(storage, include_best_trial=False)
        for t in optuna.load_study(study_name=study.study_name, storage=storage).trials
    ]


def _code_revision() -> str:
    """The commit that ran, "+" when the tree differs from it."""
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return out.stdout.strip()
