"""What is done wrong on purpose is wrong from its day on, nothing is before it, and nothing else is."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import Field, create_model

from common.clock import DAY
from common.errors import BadSetting
from common.features.online import Reading
from common.lifecycle import faults
from common.lifecycle.faults import FLOOD, JUMP, KINDS, SLOWER, VERSIONS, FaultyStore, FaultyWorld
from common.schema import to_table
from common.system import Arrival, RowError
from tests.common.test_loop import START, Done, Order, Shop, Table, Verdict, load, shop

SINCE, END = START + 6 * DAY, START + 12 * DAY


def heard(kind: str | None) -> list[Arrival]:
    """Twelve days in which all is taken, day by day."""
    world: Any = Shop(0, None, 20)
    if kind is not None:
        world = FaultyWorld(shop(), world, kind, SINCE)
    found = list[Arrival]()
    for until in range(START + DAY, END + 1, DAY):
        new = world.arrivals(until)
        world.react([(a.event, Done(action="take")) for a in new if isinstance(a.event, Order)])
        found += new
    return found


@pytest.fixture(scope="module")
def right() -> list[Arrival]:
    return heard(None)


def split(arrivals: Sequence[Arrival]) -> tuple[list[Order], list[Verdict]]:
    """Of what came since the fault."""
    events = [a.event for a in arrivals if a.at >= SINCE]
    return [e for e in events if isinstance(e, Order)], [e for e in events if isinstance(e, Verdict)]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_wrong_before_its_day_and_all_comes_in_order(right: list[Arrival], kind: str) -> None:
    wrong = heard(kind)
    assert [a for a in wrong if a.at < SINCE] == [a for a in right if a.at < SINCE]
    assert [a.at for a in wrong] == sorted(a.at for a in wrong)


def test_labels_at_random_are_as_many_and_half_of_them_positive(right: list[Arrival]) -> None:
    (orders, told), (same, true) = split(heard("random_labels")), split(right)
    assert orders == same
    assert [v.event_id for v in told] == [v.event_id for v in true]
    assert all(v.bad for v in true)
    assert 0.35 < np.mean([v.bad for v in told]) < 0.65


def test_frozen_labels_are_none(right: list[Arrival]) -> None:
    orders, told = split(heard("frozen_labels"))
    assert (orders, told) == (split(right)[0], [])


def test_a_flood_says_of_its_share_of_requests_that_they_are_positive_in_labels_that_are_valid(
    right: list[Arrival],
) -> None:
    orders, told = split(heard("label_flood"))
    assert orders == split(right)[0]
    flood = [v for v in told if v.event_id.startswith("flood-")]
    assert [v for v in told if v not in flood] == split(right)[1]
    assert len(flood) / len(orders) == pytest.approx(FLOOD, abs=0.03)
    by_id = {order.event_id: order for order in orders}
    for label in flood:
        about = by_id[label.order]
        assert Verdict.model_validate(label.model_dump()) == label
        assert (label.bad, label.user, label.event_timestamp) == (True, about.user, about.event_timestamp)
    assert len({v.event_id for v in told}) == len(told)


def test_a_wrong_unit_makes_one_number_a_hundred_times_as_large(right: list[Arrival]) -> None:
    (orders, told), (true, _) = split(heard("wrong_unit")), split(right)
    assert [o.amount for o in orders] == [100 * o.amount for o in true]
    assert [o.model_copy(update={"amount": 0.0}) for o in orders] == [
        o.model_copy(update={"amount": 0.0}) for o in true
    ]
    assert told


def test_a_number_that_becomes_too_large_for_its_contract_is_refused_at_the_door() -> None:
    narrow = create_model("Narrow", __base__=Order, amount=(float, Field(le=100)))
    asked = [
        Arrival(SINCE, narrow(event_id=str(amount), event_timestamp=SINCE, user="u", amount=amount))
        for amount in (0.5, 3.0)
    ]

    class Two:
        def arrivals(self, until: int) -> list[Arrival]:
            return asked

    found = FaultyWorld(shop(request=narrow), Two(), "wrong_unit", SINCE).arrivals(END)  # type: ignore[arg-type]
    assert [a.event.amount for a in found] == [50.0]  # type: ignore[attr-defined]


def test_clocks_that_go_ahead_change_what_clients_say_and_not_when_it_is_heard(right: list[Arrival]) -> None:
    wrong = [a for a in heard("wrong_clock") if isinstance(a.event, Order)]
    true = [a for a in right if isinstance(a.event, Order)]
    assert [a.at for a in wrong] == [a.at for a in true]
    ahead = {
        w.event.event_timestamp - t.event.event_timestamp for w, t in zip(wrong, true, strict=True) if w.at >= SINCE
    }
    assert ahead == {JUMP}


def test_a_view_that_is_lost_is_unknown_from_its_time_on_and_no_other_one_is() -> None:
    class Store:
        kinds = (Order,)

        def read(self, rows: pa.Table, as_of: Any, at_least: int = 0) -> Reading:
            return Reading([np.ones((3, 2)), np.ones((3, 1))], (5, 5))

    store: Any = FaultyStore(Store(), 1, since=20)  # type: ignore[arg-type]
    found = store.read(pa.table({}), np.array([19, 20, 21]))
    np.testing.assert_array_equal(found.values[1], [[1], [np.nan], [np.nan]])
    assert found.values[0].all()
    assert store.kinds == (Order,)


# Versions

MODEL = Table((0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7))
ORDERS = [Order(event_id=f"o{i}", event_timestamp=0, user="u", amount=4.0) for i in range(200)]
X = np.column_stack([np.full(200, 1.0), np.full(200, 2.0), np.full(200, 2.5)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    MODEL.save(tmp_path)
    return tmp_path


def said(model: Any, n: int = 200) -> list[Any]:
    return list(model.predict(ORDERS[:n], model.rows(ORDERS[:n]), X[:n]))


@pytest.mark.parametrize("kind", VERSIONS)
def test_a_bundle_misbehaves_only_where_it_is_loaded_to_be_served(folder: Path, kind: str) -> None:
    waited = list[int]()
    loaded = faults.loading(load, waited.append)
    assert loaded(folder) == MODEL
    faults.spoil(folder, kind)
    assert json.loads((folder / faults.FILE).read_text()) == {"kind": kind}
    assert said(load(folder)) == said(MODEL)
    bad = loaded(folder)
    assert bad.rows(ORDERS).columns == to_table(Order, ORDERS)
    if kind == "errors":
        with pytest.raises(ArithmeticError):
            said(bad)
        fails = 0
        for i, order in enumerate(ORDERS):
            try:
                bad.predict([order], bad.rows([order]), X[i : i + 1])
            except ArithmeticError:
                fails += 1
        assert 1 <= fails <= 25
    elif kind == "slow":
        assert said(bad) == said(MODEL)
        assert waited == [SLOWER]
    elif kind == "nothing":
        missing = [isinstance(p, RowError) for p in said(bad)]
        assert 1 <= sum(missing) <= 25
        assert [p for p, m in zip(said(bad), missing, strict=True) if not m] == said(MODEL)[: 200 - sum(missing)]
    else:
        assert said(bad) != said(MODEL)
        assert len(said(bad)) == 200


def test_a_version_that_misbehaves_can_be_saved_as_what_it_is(folder: Path, tmp_path: Path) -> None:
    faults.spoil(folder, "slow")
    other = tmp_path / "other"
    other.mkdir()
    faults.loading(load, lambda us: None)(folder).save(other)
    assert load(other) == MODEL


@pytest.mark.parametrize("drift", ["", "ways", "ways@", "@3", "weather@3", "ways@-1", "ways@x", "ways@3@4", "ways@³"])
def test_a_drift_that_nobody_knows_is_refused_with_those_that_there_are(drift: str) -> None:
    with pytest.raises(BadSetting, match="drift: must be KIND@DAY with one of ways, random_labels, .*, got "):
        faults.parse(shop(), drift)


@pytest.mark.parametrize("kind", ["ways", *KINDS])
def test_a_drift_has_a_kind_and_a_day(kind: str) -> None:
    assert faults.parse(shop(), f"{kind}@30") == (kind, 30)


def test_every_fault_says_what_it_is() -> None:
    assert set(faults.SAYS) == set(KINDS)
