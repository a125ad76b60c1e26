"""Both kernels equal the reference on any history, and each way in which they were broken on purpose is noticed."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from pydantic import Field

from common.errors import BadDefinition, OutOfOrder
from common.features import offline, reference, state
from common.features.online import OnlineStore
from common.features.online.sqlite import SqliteStore
from common.features.view import Aggregation, FeatureView, OnDemand, assemble, definition_digest, runs
from common.schema import Event, Logged, arrow_schema
from tests.servers import REDIS_URL, redis_names


class Sale(Event):
    shop: str
    till: int
    amount: float | None = Field(allow_inf_nan=True)
    goods: str | None
    returned: bool


KINDS = ("count", "sum", "mean", "min", "max", "std", "last", "distinct", "time_since")
COLUMNS = {"distinct": ("goods", "amount", "till"), "count": (None,), "time_since": (None,)}
NUMBERS = ("amount", "till", "returned", "event_timestamp")

times = st.integers(0, 60)
sales = st.fixed_dictionaries(
    {
        "late": st.sampled_from([0, 0, 0, 0, 1, 5, 30, -3]),  # us between event_timestamp and its log entry
        "gap": st.sampled_from([0, 0, 1, 1, 2, 7, 1000]),  # us since the last log entry: equal times, long silences
        "shop": st.sampled_from("ab"),
        "till": st.integers(0, 1),
        "amount": st.one_of(
            st.sampled_from([None, float("nan"), 0.0, -0.0, 1e-3]), st.floats(-1e9, 1e9), st.integers(0, 3).map(float)
        ),
        "goods": st.sampled_from([None, "x", "y", "z"]),
        "returned": st.booleans(),
        "twice": st.sampled_from([False, False, False, True]),  # the same again, under another id
    }
)


@st.composite
def aggregations(draw: Any) -> Aggregation:
    kind = draw(st.sampled_from(KINDS))
    return Aggregation(
        name=f"f{draw(st.integers(0, 10**9))}",
        kind=kind,
        column=draw(st.sampled_from(COLUMNS.get(kind, NUMBERS))),
        window=draw(st.sampled_from([1, 3, 10, 100, 10**6])),
        delay=draw(st.sampled_from([0, 0, 2, 10])),
        tile=draw(st.sampled_from([0, 0, 1, 4, 50])),
    )


views = st.builds(
    lambda entity, found: FeatureView(name="v", source=Sale, entity=entity, aggregations=tuple(found)),
    st.sampled_from([("shop",), ("shop", "till"), ("till",)]),
    st.lists(aggregations(), min_size=1, max_size=4, unique_by=lambda a: a.name),
)
histories = st.lists(sales, max_size=25)
SCHEMA = pa.unify_schemas([arrow_schema(Sale), arrow_schema(Logged)])


def log(history: list[dict[str, Any]]) -> pa.Table:
    """What the log would hold: every event is also the request that came with it."""
    rows, now = [], 1_000
    for sale in history:
        now += sale["gap"]
        for _ in range(1 + sale["twice"]):
            fields = {k: v for k, v in sale.items() if k in Sale.model_fields}
            stamps = {"event_timestamp": now - sale["late"], "created_timestamp": now, "position": 2 * len(rows) + 1}
            rows.append({**fields, **stamps, "event_id": str(len(rows))})
    return pa.Table.from_pylist(rows, SCHEMA)


def sale(**said: Any) -> dict[str, Any]:
    plain = {
        "late": 0,
        "gap": 1,
        "shop": "a",
        "till": 0,
        "amount": 1.0,
        "goods": None,
        "returned": False,
        "twice": False,
    }
    return {**plain, **said}


def counting(window: int) -> FeatureView:
    aggregation = Aggregation(name="n", kind="count", window=window)
    return FeatureView(name="v", source=Sale, entity=("shop",), aggregations=(aggregation,))


def tolerance(events: pa.Table) -> float:
    return 1e-9 * max(1.0, float(np.nansum(np.abs(events["amount"].to_numpy().astype(float)))))


def agree(got: np.ndarray, wanted: np.ndarray, events: pa.Table) -> bool:
    close = np.abs(got - wanted) <= tolerance(events)
    return bool(np.all(close | (np.isnan(got) & np.isnan(wanted))))


Stores = Callable[[FeatureView], AbstractContextManager[OnlineStore]]


@contextmanager
def in_a_file(view: FeatureView) -> Iterator[OnlineStore]:
    with tempfile.TemporaryDirectory() as folder, closing(SqliteStore(Path(folder) / "online.db", [view])) as opened:
        yield opened


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def stores(request: pytest.FixtureRequest) -> Iterator[Stores]:
    """Each is new and empty."""
    if request.param == "sqlite":
        yield in_a_file
        return
    with redis_names() as name:
        from common.features.online.redis import RedisStore

        yield lambda view: closing(RedisStore(REDIS_URL, name(), [view]))


def push(s: OnlineStore, events: pa.Table, after: int = 0) -> int:
    until = events["position"][-1].as_py() if events.num_rows else after
    s.push({Sale: events}, after, until)
    return int(until)


def replayed(view: FeatureView, events: pa.Table, batch: int = 1, stores: Stores = in_a_file) -> np.ndarray:
    """Read then push, a batch at a time; each push brings all that came before once more, and comes twice."""
    out, head = [], 0
    with stores(view) as s:
        for i in range(0, events.num_rows, batch):
            part = events.slice(i, batch)
            out.append(s.read(part, part["created_timestamp"].to_numpy(), head).values[0])
            for _ in range(2):
                head = push(s, events.slice(0, i + batch))
    return np.concatenate(out) if out else np.empty((0, len(view.aggregations)))


def offline_agrees(view: FeatureView, events: pa.Table) -> bool:
    return agree(offline.compute(view, events, events), reference.compute(view, events, events), events)


def online_agrees(view: FeatureView, events: pa.Table, stores: Stores = in_a_file) -> bool:
    return agree(replayed(view, events, stores=stores), reference.compute(view, events, events), events)


@given(views, histories)
@settings(max_examples=250, deadline=None)
def test_offline_equals_the_reference(view: FeatureView, history: list[dict[str, Any]]) -> None:
    assert offline_agrees(view, log(history))


@given(views, histories)
@settings(max_examples=200, deadline=None)
def test_online_equals_the_reference(stores: Stores, view: FeatureView, history: list[dict[str, Any]]) -> None:
    assert online_agrees(view, log(history), stores)


@given(views, histories, st.integers(2, 9))
@settings(max_examples=100, deadline=None)
def test_requests_of_one_micro_batch_do_not_see_each_other(
    stores: Stores, view: FeatureView, history: list[dict[str, Any]], batch: int
) -> None:
    events = log(history)
    before = events["position"].to_numpy()[np.arange(events.num_rows) // batch * batch]
    requests = events.set_column(events.column_names.index("position"), "position", pa.array(before, pa.int64()))
    wanted = np.concatenate(
        [reference.compute(view, events, requests.slice(i, batch)) for i in range(0, max(1, events.num_rows), batch)]
    )
    assert agree(replayed(view, events, batch, stores), wanted, events)


@given(views, histories, st.lists(st.integers(0, 300), max_size=5))
@settings(max_examples=100, deadline=None)
def test_a_bulk_load_answers_like_the_reference_at_any_later_moment(
    stores: Stores, view: FeatureView, history: list[dict[str, Any]], later: list[int]
) -> None:
    events = log(history)
    end = max([1_000, *events["created_timestamp"].to_pylist()])
    asked = [
        {"shop": s, "till": t, "created_timestamp": end + at} for at in sorted(later) for s in "ab" for t in (0, 1)
    ]
    schema = pa.schema([SCHEMA.field(c) for c in ("shop", "till", "created_timestamp", "position")])
    requests = pa.Table.from_pylist([{**r, "position": 10**6 + i} for i, r in enumerate(asked)], schema)
    wanted = reference.compute(view, events, requests)
    with stores(view) as s:
        push(s, events)
        for i in range(requests.num_rows):
            one = requests.slice(i, 1)
            assert agree(s.read(one, one["created_timestamp"].to_numpy()).values[0], wanted[i : i + 1], events)
    assert agree(offline.compute(view, events, requests), wanted, events)


def sees_itself(patch: pytest.MonkeyPatch) -> None:
    def first(self: Any, delay: int) -> Any:
        return self.place(np.searchsorted(self.log_as_of, self.event_timestamp + delay))

    patch.setattr(offline._Timeline, "first", first)


def counts_from_the_first_moment_on(patch: pytest.MonkeyPatch) -> None:
    """An event that came late is taken for one that was known all along."""
    place = offline._Timeline.place
    patch.setattr(offline._Timeline, "place", lambda self, rank: place(self, np.maximum(rank - 1, 0)))


def merges_only_the_means(patch: pytest.MonkeyPatch) -> None:
    def merged(a: Any, b: Any) -> Any:
        n = a[:, 0] + b[:, 0]
        return np.column_stack([n, (a[:, 0] * a[:, 1] + b[:, 0] * b[:, 1]) / np.maximum(n, 1), a[:, 2] + b[:, 2]])

    patch.setattr(offline, "_merge_moments", merged)


def includes_the_far_edge(patch: pytest.MonkeyPatch) -> None:
    made = state.Plan.__init__

    def longer(self: Any, view: FeatureView) -> None:
        made(self, view)
        self.length = [length + 1 for length in self.length]

    patch.setattr(state.Plan, "__init__", longer)


def drops_too_early(patch: pytest.MonkeyPatch) -> None:
    made = state.Plan.__init__

    def shorter(self: Any, view: FeatureView) -> None:
        made(self, view)
        self.keep -= 1

    patch.setattr(state.Plan, "__init__", shorter)


def ignores_the_tile(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(state.Plan, "expiry", lambda self, span, event_timestamp: event_timestamp + self.length[span])


def applies_a_push_twice(patch: pytest.MonkeyPatch) -> None:
    push = state.Plan.push

    def forgetful(self: Any, keys: Any, events: Any, states: Any) -> Any:
        return push(self, keys, events, {k: s._replace(position=0) for k, s in states.items()})

    patch.setattr(state.Plan, "push", forgetful)


@pytest.mark.parametrize(
    ("broken", "agrees"),
    [
        (sees_itself, offline_agrees),
        (counts_from_the_first_moment_on, offline_agrees),
        (merges_only_the_means, offline_agrees),
        (includes_the_far_edge, online_agrees),
        (drops_too_early, online_agrees),
        (ignores_the_tile, online_agrees),
        (applies_a_push_twice, online_agrees),
    ],
)
def test_a_broken_kernel_is_caught_within_200_examples(
    broken: Any, agrees: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    once = settings(max_examples=200, deadline=None, database=None, derandomize=True, phases=[Phase.generate])
    view, history = find(st.tuples(views, histories), lambda both: not agrees(both[0], log(both[1])), settings=once)
    assert not agrees(view, log(history))


def test_a_large_value_that_has_left_the_window_leaves_nothing_behind() -> None:
    view = FeatureView(
        name="v", source=Sale, entity=("shop",),
        aggregations=tuple(Aggregation(name=k, kind=k, column="amount", window=10) for k in ("sum", "mean", "std")),
    )  # fmt: skip
    events = log([sale(amount=1e15), sale(gap=20, amount=0.1), sale(gap=20, amount=0.1), sale(gap=5, amount=0.3)])
    assert offline.compute(view, events, events)[3].tolist() == pytest.approx([0.1, 0.1, 0.0], abs=1e-12)
    assert replayed(view, events)[3].tolist() == pytest.approx([0.1, 0.1, 0.0], abs=1e-12)


def test_with_a_tile_the_state_of_a_busy_entity_is_bounded() -> None:
    window, tile = 10_000, 500
    view = FeatureView(
        name="v", source=Sale, entity=("shop",),
        aggregations=(Aggregation(name="std", kind="std", column="amount", window=window, tile=tile),),
    )  # fmt: skip
    events = log([sale()] * 15_000)
    with tempfile.TemporaryDirectory() as folder, closing(SqliteStore(Path(folder) / "online.db", [view])) as s:
        head = 0
        for i in range(0, events.num_rows, 1_000):
            head = push(s, events.slice(i, 1_000), head)
        s.flush()
        ((body,),) = s._db.execute("SELECT body FROM state").fetchall()
    kept = state.Plan(view).unpack(body)
    assert kept.series == (b"",)
    assert len(kept.cells) // state.CELL.itemsize <= window // tile + 1


@given(views, histories, st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_rows_with_one_entity_and_time_have_the_features_of_one(
    view: FeatureView, history: list[dict[str, Any]], counts: list[int]
) -> None:
    """As the days of a forecast have."""
    events = log(history)
    again = np.repeat(np.arange(events.num_rows), np.resize(counts, events.num_rows))
    repeated = offline.compute(view, events, events.take(pa.array(again, pa.int64())))
    assert agree(repeated, offline.compute(view, events, events)[again], events)


def test_rows_begin_anew_where_any_column_changes_or_is_not_there() -> None:
    columns = [pa.chunked_array([["a", "a"], ["a", "b", None, None]]), pa.chunked_array([[1, 1, 2, 2, 2], [2]])]
    first, of = runs(columns)
    assert (first.tolist(), of.tolist()) == ([0, 2, 3, 4, 5], [0, 0, 1, 2, 3, 4])
    assert [part.tolist() for part in runs([column.slice(0, 0) for column in columns])] == [[], []]


def test_entities_of_several_columns_are_never_taken_for_one_another() -> None:
    pairs = [("a", "bc"), ("ab", "c"), ("", "abc"), ("1:a", "bc"), ("a1:", "bc"), ("a", "1:bc")]
    view = FeatureView(
        name="v", source=Sale, entity=("shop", "event_id"),
        aggregations=(Aggregation(name="n", kind="count", window=1),),
    )  # fmt: skip
    rows = pa.table({"shop": [a for a, _ in pairs], "event_id": [b for _, b in pairs]})
    assert len(set(state.Plan(view).keys(state.Entities(rows)))) == len(pairs)


@given(st.lists(st.lists(st.integers(0, 50), max_size=8), min_size=1, max_size=6), st.integers(1, 60))
def test_views_read_together_are_as_each_read_alone(ages: list[list[int]], window: int) -> None:
    """One reduction serves all views and rows: none may leak into its neighbour."""
    views = [
        FeatureView(
            name=f"v{i}", source=Sale, entity=("shop",),
            aggregations=tuple(
                Aggregation(name=kind, kind=kind, column=COLUMNS.get(kind, ("till",))[-1], window=window + i, tile=tile)
                for kind in KINDS
            ),
        )
        for i, tile in enumerate((0, 0, 7))
    ]  # fmt: skip
    plans = [state.Plan(view) for view in views]
    events = log([sale(shop=str(i), till=age, late=age, gap=1) for i, some in enumerate(ages) for age in some])
    arrived = state.Arrived(events)
    names = pa.table({"shop": [str(i) for i in range(len(ages))]})
    states = []
    for plan in plans:
        pushed = plan.push(plan.keys(arrived.entities), arrived, {})
        states.append([pushed.get(key, plan.empty) for key in plan.keys(state.Entities(names))])
    as_of = np.arange(len(ages)) + 1_060
    together = state.Reader(plans).read(states, as_of)
    for plan, of_view, values in zip(plans, states, together, strict=True):
        for i, one in enumerate(of_view):
            alone = state.Reader([plan]).read([[one]], as_of[i : i + 1])[0]
            np.testing.assert_array_equal(values[i : i + 1], alone)


def test_no_requests_get_no_values(stores: Stores) -> None:
    view = FeatureView(
        name="v", source=Sale, entity=("shop",),
        aggregations=tuple(
            Aggregation(name=kind, kind=kind, window=9, column=COLUMNS.get(kind, NUMBERS)[0]) for kind in KINDS
        ),
    )  # fmt: skip
    nothing = log([])
    assert offline.compute(view, nothing, nothing).shape == (0, len(KINDS))
    with stores(view) as s:
        push(s, nothing)
        assert s.read(nothing, nothing["created_timestamp"].to_numpy()).values[0].shape == (0, len(KINDS))


def test_events_that_are_not_in_the_order_of_the_log_are_refused_and_change_nothing(stores: Stores) -> None:
    events = log([sale()] * 3)
    with stores(counting(100)) as s:
        with pytest.raises(OutOfOrder, match="position: events must be pushed in the order of the log"):
            s.push({Sale: events.take([1, 0])}, 0, 9)
        assert s.head() == 0
        push(s, events)
        assert s.read(events.slice(2), events.slice(2)["created_timestamp"].to_numpy()).values[0].tolist() == [[3.0]]


def test_requests_whose_times_run_backwards_are_refused() -> None:
    view = counting(1)
    events = log([sale(gap=5)] * 2)
    backwards = events.set_column(
        events.column_names.index("created_timestamp"), "created_timestamp", pa.array([9, 5], pa.int64())
    )
    with pytest.raises(OutOfOrder, match="created_timestamp must not decrease with position"):
        offline.compute(view, backwards, backwards)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "median"}, "kind: must be one of count, sum"),
        ({"window": 0}, "window must be > 0"),
        ({"delay": -1}, "delay and tile >= 0 us, got"),
        ({"column": None}, "column: sum takes one, got None"),
        ({"kind": "count"}, "column: count takes none, got 'amount'"),
        ({"column": "price"}, "Sale has no column 'price'"),
        ({"column": "goods"}, "sum needs a number, 'goods' is none"),
    ],
)
def test_a_definition_that_cannot_work_is_refused_when_it_is_made(wrong: dict[str, Any], message: str) -> None:
    right = {"name": "a", "kind": "sum", "window": 1, "column": "amount"}
    with pytest.raises(BadDefinition, match=message):
        FeatureView(name="v", source=Sale, entity=("shop",), aggregations=(Aggregation(**{**right, **wrong}),))


def test_on_demand_functions_build_on_features_columns_and_each_other() -> None:
    view = counting(1)
    on_demand = (
        OnDemand(name="twice", inputs=("v.n",), version=1, compute=lambda c: 2 * c["v.n"]),
        OnDemand(name="sum", inputs=("twice", "till"), version=1, compute=lambda c: c["twice"] + c["till"]),
    )
    rows = pa.table({"till": [1, 2]})
    x = assemble(Sale, [view], on_demand, rows, [np.array([[1.0], [2.0]])])
    assert x.tolist() == [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]
    wrong = OnDemand(name="f", inputs=("amuont",), version=1, compute=lambda c: c["amuont"])
    with pytest.raises(BadDefinition, match="inputs: no column or feature 'amuont'"):
        assemble(Sale, [view], (wrong,), rows, [np.ones((2, 1))])


def test_the_digest_of_definitions_changes_with_each_part_of_them() -> None:
    def view(window: int) -> FeatureView:
        return FeatureView(
            name="v", source=Sale, entity=("shop",), aggregations=(Aggregation(name="n", kind="count", window=window),)
        )

    def demand(version: int) -> OnDemand:
        return OnDemand(name="f", inputs=("till",), version=version, compute=lambda c: c["till"])

    digests = {definition_digest(Sale, [view(w)], [demand(v)]) for w in (1, 2) for v in (1, 2)}
    assert len(digests) == 4
    assert definition_digest(Sale, [view(1)], [demand(1)]) in digests
