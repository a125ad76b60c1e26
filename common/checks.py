"""What every system must satisfy; tests/test_every_system.py runs these over all of them, in the small preset."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from common.clock import DAY, SimulatedClock
from common.data.log import EventLog
from common.data.snapshots import Snapshots
from common.features.online.sqlite import SqliteStore
from common.features.view import assemble
from common.lifecycle.simulation import before, live
from common.lifecycle.training import Snapshot, Trained, examples, features, learn, spans, take, train
from common.progress import Progress
from common.registry import bundle
from common.registry.gates import Verdict
from common.registry.keys import Keys
from common.registry.registry import Registry
from common.schema import from_table
from common.system import Answered, AnySystem, Examples, Model, Params, Rows, World

SEED = 0
CUTS = 12  # moments at which the log is cut off
REPLAYED = 300  # events pushed one by one to compare online with offline


@dataclass(frozen=True)
class Bench:
    """A system whose small world has lived through its history; what was learned from it is learned once."""

    system: AnySystem
    world: World[Any, Any]
    log: EventLog
    home: Path

    @cached_property
    def snapshot(self) -> Snapshot:
        return take(self.system, self.log, Snapshots(self.home / "snapshots"))

    @cached_property
    def examples(self) -> Examples[Any]:
        return examples(self.system, self.snapshot, self.world)

    @cached_property
    def parts(self) -> tuple[Examples[Any], Examples[Any]]:
        """Train and test, as training splits them."""
        final = spans(self.system, self.snapshot).final
        return self.examples.between(*final.train), self.examples.between(*final.test)

    @cached_property
    def saved(self) -> tuple[Trained, Model[Any, Any]]:
        """A version, and the model that was saved as it."""
        models = []

        def fit(train: Examples[Any], params: Params) -> Model[Any, Any]:
            models.append(self.system.fit(train, params))
            return models[-1]

        with self.registry("registry") as registry:
            made = learn(
                replace(self.system, fit=fit), self.snapshot, self.examples, registry,
                trials=self.home / "trials", tune=0, origin={}, progress=Progress(quiet=True),
            )  # fmt: skip
        return made, models[-1]

    @property
    def trained(self) -> Trained:
        return self.saved[0]

    def registry(self, name: str) -> Registry:
        return Registry(self.home / name, SimulatedClock(self.snapshot.at), self.keys)

    @property
    def keys(self) -> Keys:
        return Keys(self.home / "keys")

    def bundle(self) -> Path:
        return self.home / "registry" / "bundles" / self.trained.version.digest

    def verdicts(self, train: Examples[Any], test: Examples[Any]) -> list[Verdict]:
        """What the gates say of a candidate fitted on `train`."""
        report = self.system.evaluate(self.system.fit(train, self.system.params), test)
        return [gate.check(report.metrics, report.baselines) for gate in self.system.gates]


@contextmanager
def bench(system: AnySystem) -> Iterator[Bench]:
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        clock = SimulatedClock(system.history[0])
        log = stack.enter_context(EventLog(home / "log.db", clock, system.logged))
        world = system.world(SEED, None, None)
        for _ in live(system, world, log, before(system), system.history, batch=None, progress=Progress(quiet=True)):
            pass
        yield Bench(system, world, log, home)


def check_a_seed_makes_one_world(b: Bench) -> None:
    week = b.system.history[0] + 7 * DAY
    first, again = (b.system.world(SEED, None, None).arrivals(week) for _ in range(2))
    assert [a.event for a in first] == [a.event for a in again]
    assert first != b.system.world(SEED + 1, None, None).arrivals(week)


def check_arrivals_come_in_order_and_keep_their_contract(b: Bench) -> None:
    for kind in b.system.events:
        table = b.snapshot.of(kind)
        assert table.num_rows, f"a world without a single {kind.__name__}"
        from_table(kind, table)  # raises for the first record that breaks its schema
        assert np.all(np.diff(table["created_timestamp"].to_numpy()) >= 0)
        assert np.all(table["event_timestamp"].to_numpy() <= table["created_timestamp"].to_numpy())


def check_the_same_log_gives_the_same_bundle(b: Bench) -> None:
    with b.registry("again") as registry:
        again = train(
            b.system, b.log, Snapshots(b.home / "snapshots"), registry,
            trials=b.home / "trials", tune=0, world=b.world, origin={}, progress=Progress(quiet=True),
        )  # fmt: skip
    assert b.trained.version.digest == again.version.digest


def check_no_feature_sees_its_own_event_or_the_future(b: Bench) -> None:
    """What is known of a request's rows does not change when the log ends just before it."""
    requests = b.snapshot.of(b.system.request)
    for i in np.linspace(0, requests.num_rows - 1, CUTS).astype(int).tolist():
        request = requests.slice(i, 1)
        end = request["position"][0].as_py()
        tables = {name: table.filter(pc.less(table["position"], end)) for name, table in b.snapshot.tables.items()}
        first, last = b.examples.rows.offsets[[i, i + 1]].tolist()
        seen = features(b.system, tables, request, Rows(b.examples.rows.of(i), np.array([0, last - first])))
        np.testing.assert_allclose(seen, b.examples.x[first:last], rtol=1e-9, atol=1e-9)


def check_online_features_equal_offline_features(b: Bench) -> None:
    system, table = b.system, b.snapshot.of(b.system.request)
    start = table.num_rows - REPLAYED
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "online.db", system.views)
        position, seen = int(table["position"][start].as_py()) - 1, []
        store.push({kind: b.snapshot.of(kind) for kind in store.kinds}, 0, position)
        for i in range(start, table.num_rows):
            rows = b.examples.rows.of(i)
            as_of = np.repeat(table["created_timestamp"][i].as_py(), rows.num_rows)
            values = store.read(rows, as_of, position).values
            seen.append(assemble(system.request, system.views, system.on_demand, rows, values))
            until = int(table["position"][i + 1].as_py()) - 1 if i + 1 < table.num_rows else b.snapshot.head
            store.push({kind: b.log.read(kind, position, until) for kind in store.kinds}, position, until)
            position = until
        store.close()
    x = b.examples.x[b.examples.rows.offsets[start] :]
    np.testing.assert_allclose(np.concatenate(seen), x, rtol=1e-9, atol=1e-9)


def check_labels_are_known_only_when_mature(b: Bench) -> None:
    young = (b.examples.as_of > b.snapshot.at - b.system.label_delay)[b.examples.rows.owner]
    assert young.any()
    assert np.isnan(b.examples.labels[young]).all()
    assert (b.examples.weights[young] == 0).all()


def check_a_hidden_outcome_is_unknown_not_negative(b: Bench) -> None:
    said = b.snapshot.of(Answered)
    hidden = set(said.filter(said["hidden"])["request_id"].to_pylist())
    is_hidden = np.array([i in hidden for i in b.snapshot.of(b.system.request)["event_id"].to_pylist()])
    is_hidden = is_hidden[b.examples.rows.owner]
    if b.system.many is not None:
        is_hidden |= b.examples.rows.columns[b.system.many.seen].to_numpy() == 0
    assert is_hidden.any(), "the rule hides no outcome, so this check would pass whatever is done about it"
    assert np.isnan(b.examples.labels[is_hidden]).all()


def check_a_loaded_model_predicts_what_the_saved_one_did(b: Bench) -> None:
    _, test = b.parts
    some = test.between(int(test.as_of[0]), int(test.as_of[50]))
    (_, model), loaded = b.saved, b.system.load(b.bundle())
    assert model.predict(some.requests, some.rows, some.x) == loaded.predict(some.requests, some.rows, some.x)
    requests = list(some.requests)
    ours, theirs = model.rows(requests).columns, loaded.rows(requests).columns
    for name in ours.column_names:
        one, other = ours[name].to_numpy(), theirs[name].to_numpy()
        if one.dtype == float:
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)  # of vectors in single precision
        else:
            assert one.tolist() == other.tolist()


def check_the_published_version_clears_its_gates_and_beats_its_baselines(b: Bench) -> None:
    assert [v.message for v in b.trained.version.verdicts if not v.passed] == []
    ours = b.trained.report.metrics[b.system.objective]
    assert all(ours > other[b.system.objective] for other in b.trained.report.baselines.values())


def check_the_model_stays_below_the_ceiling(b: Bench) -> None:
    assert b.trained.report.metrics[b.system.objective] < b.trained.report.ceiling[b.system.objective]


def check_a_planted_leak_is_caught(b: Bench) -> None:
    def leaky(part: Examples[Any]) -> Examples[Any]:
        known = next(iter(part.truth.values()), np.nan_to_num(part.labels))  # what only the world knows of each row
        return replace(part, x=np.column_stack([part.x, known]), names=(*part.names, "leak"))

    failed = [v.gate.metric for v in b.verdicts(*map(leaky, b.parts)) if not v.passed]
    assert "above_ceiling" in failed


def check_a_worse_candidate_fails_its_gates(b: Bench) -> None:
    """It has learned from labels that were dealt out at random."""
    train, test = b.parts
    shuffled = train.labels.copy()
    known = ~np.isnan(shuffled)
    shuffled[known] = np.random.default_rng(SEED).permutation(shuffled[known])
    assert not all(v.passed for v in b.verdicts(replace(train, labels=shuffled), test))


def check_every_answer_names_its_propensity_and_the_last_resort_cannot_fail(b: Bench) -> None:
    for request in b.examples.requests[:1_000]:
        for answer in b.system.degraded:
            assert 0 < answer(request, 0.5).propensity <= 1


def check_a_version_says_where_it_came_from(b: Bench) -> None:
    lineage = json.loads(json.dumps(b.trained.version.lineage))
    assert set(lineage["snapshots"]) == set(b.snapshot.tables)
    assert {"code", "features", "params", "seed", "train", "test", "position"} <= set(lineage)
    assert (b.bundle() / "sketches.json").exists()
    bundle.verify(b.bundle(), b.system.name, b.keys, b.trained.version.digest)


ALL = [value for name, value in globals().items() if name.startswith("check_")]
