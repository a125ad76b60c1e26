"""How forecasts are made: what a panel knows and when, what backtests choose, what adds up, and what is ordered."""

import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

for package in ("lightgbm", "statsmodels"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[forecasting]'")

from common.checks import Bench, bench  # noqa: E402
from common.clock import DAY, HOUR, WallClock  # noqa: E402
from common.errors import BadRecord, NotFound  # noqa: E402
from common.features.view import ints, numbers  # noqa: E402
from common.registry.keys import Keys  # noqa: E402
from common.registry.registry import Registry  # noqa: E402
from common.schema import from_table  # noqa: E402
from common.system import Rows  # noqa: E402
from systems.forecasting import serving  # noqa: E402
from systems.forecasting.config import SMALL  # noqa: E402
from systems.forecasting.data import EXAMPLES, HORIZON, LEVELS, Actual, Order, Review  # noqa: E402
from systems.forecasting.features import LAGS, VIEWS  # noqa: E402
from systems.forecasting.model import forecaster, panel  # noqa: E402
from systems.forecasting.model.ahead import forecast, parts  # noqa: E402
from systems.forecasting.model.forecaster import Blend, Forecaster, Trees, at_least  # noqa: E402
from systems.forecasting.model.panel import Panel, Plan, unconstrained  # noqa: E402
from systems.forecasting.system import build  # noqa: E402
from tests.serving import serving as server  # noqa: E402

CONFIG: Final = replace(
    SMALL, history_days=430, days=470, stores=2, categories=2, products=6, review_days=240, trees=30, rows=20_000
)  # fmt: skip
LATER: Final = ("known", "at_least")  # columns of rows that say what came of them


@dataclass(frozen=True)
class Lived:
    bench: Bench
    model: Forecaster


@pytest.fixture(scope="module")
def lived() -> Iterator[Lived]:
    with bench(build(CONFIG)) as b:
        b.trained  # noqa: B018
        yield Lived(b, b.system.load(b.bundle()))


def actuals(*days: tuple[int, float, bool], told: int = 6 * HOUR, store: str = "s") -> pa.Table:
    """Of one series: day, units, sold out; each heard of the next morning."""
    rows = [
        {
            "store_id": store, "product_id": "p", "category": "c", "day": day, "units": units, "price": 2.0,
            "promoted": False, "sold_out": sold_out, "created_timestamp": (day + 1) * DAY + told, "position": i + 1,
        }
        for i, (day, units, sold_out) in enumerate(days)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows)


def test_the_first_report_of_a_day_counts_and_a_day_that_has_not_begun_cannot_be_told() -> None:
    known = Panel.of(CONFIG, actuals((100, 5.0, False), (101, 6.0, False), (100, 9.0, False)))
    assert known.window("units", np.array([0]), np.array([102]), 3).tolist()[0][1:] == [5.0, 6.0]
    known.hear(actuals((102, 7.0, False), told=-30 * HOUR))
    assert known.last == 101
    known.hear(actuals((100, 1.0, False), (103, 4.0, False)))
    assert known.window("units", np.array([0]), np.array([104]), 4).tolist()[0][0] == 5.0
    assert np.isnan(known.window("units", np.array([0]), np.array([104]), 4)[0, 2])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 20)), min_size=1, max_size=60), st.integers(1, 10))
def test_a_panel_is_the_same_however_its_history_was_cut_into_parts(days: list[tuple[int, int]], size: int) -> None:
    table = pa.concat_tables(
        [actuals((day, float(units), units % 3 == 0), store=f"s{units % 2}") for day, units in days]
    )
    one, other = Panel.of(CONFIG, table), Panel(CONFIG)
    for start in range(0, table.num_rows, size):
        other.hear(table.slice(start, size))
    assert (one.place, one.last, one.first) == (other.place, other.last, other.first)
    order = [("store_id", "ascending"), ("day", "ascending")]
    assert one.table().sort_by(order) == other.table().sort_by(order)
    assert one.table() == Panel.of(CONFIG, one.table()).table()


def test_what_is_long_ago_is_forgotten() -> None:
    config = replace(CONFIG, most_days=10)
    known = Panel.of(config, actuals((100, 5.0, False), (120, 6.0, False)))
    assert ints(known.table()["day"]).tolist() == [120]
    known.hear(actuals((105, 5.0, False)))
    assert known.last - known.first < config.most_days + panel.SLACK


def test_sold_out_days_are_guessed_to_be_as_high_or_higher() -> None:
    rng = np.random.default_rng(0)
    demand = rng.poisson(8, (200, 91)).astype(float)
    stock = rng.integers(4, 14, demand.shape)
    units, sold_out = np.minimum(demand, stock), demand > stock
    guess = unconstrained(units, sold_out, 7)
    assert (guess >= units).all()
    assert (guess[~sold_out] == units[~sold_out]).all()
    left_out = np.where(sold_out, np.nan, units)
    assert abs(guess.mean() - 8) < 0.3 < abs(np.nanmean(left_out) - 8)


def test_a_new_series_takes_its_groups_level_and_season() -> None:
    """Of a product that nobody has sold yet: the median level of its category, and its week."""
    week = np.array([0.5, 0.5, 1.0, 1.0, 1.0, 1.5, 1.5])
    days = [
        (100 + day, float(scale * week[day % 7]), f"s{i}")
        for day in range(84) for i, scale in enumerate((100, 200, 900))
    ]  # fmt: skip
    known = Panel.of(
        CONFIG, pa.concat_tables([actuals((day, units, False), store=store) for day, units, store in days])
    )
    plan = Plan.of([review(store_id="new", product_id="p", category="c", day=184)])
    columns = panel.rows(known, plan).columns
    assert numbers(columns["level"])[0] == pytest.approx(200, rel=0.01)
    said = numbers(columns["profile_ratio"]) * 201 - 1
    np.testing.assert_allclose(said, 200 * week[(84 + np.arange(HORIZON)) % 7], rtol=0.03)
    strange = Plan.of([review(store_id="new", product_id="p", category="never sold", day=184)])
    assert numbers(panel.rows(known, strange).columns["level"])[0] == 1


def test_rows_are_of_what_was_known_before_the_review(lived: Lived) -> None:
    """Cut the log off where the review came: its rows stay as they are, but for what came of them."""
    b, library = lived.bench, lived.bench.system.many
    assert library is not None
    asked = b.snapshot.of(Review)
    for i in np.linspace(0, asked.num_rows - 1, 8).astype(int).tolist():
        review = asked.slice(i, 1)
        end = review["position"][0].as_py()
        cut = {name: table.filter(pc.less(table["position"], end)) for name, table in b.snapshot.tables.items()}
        seen, whole = library.replay(review, cut).columns, b.examples.rows.of(i)
        for name in set(seen.column_names) - set(LATER):
            if pa.types.is_floating(seen[name].type):
                np.testing.assert_allclose(numbers(seen[name]), numbers(whole[name]), err_msg=name)
            else:
                assert seen[name].to_pylist() == whole[name].to_pylist()


def test_rows_and_features_live_are_those_of_training(lived: Lived) -> None:
    b = lived.bench
    asked = b.snapshot.of(Review)
    for i in np.linspace(asked.num_rows - 40, asked.num_rows - 1, 4).astype(int).tolist():
        end = asked["position"][i].as_py()
        heard = b.snapshot.of(Actual)
        history = Panel.of(CONFIG, heard.filter(pc.less(heard["position"], end)))
        plan = Plan.of(from_table(Review, asked.slice(i, 1)))
        rows = panel.rows(history, plan)
        for name in set(rows.columns.column_names) - set(LATER):
            assert rows.columns[name].to_pylist() == pytest.approx(b.examples.rows.of(i)[name].to_pylist(), nan_ok=True)
        first = b.examples.rows.offsets[i]
        x = panel.features(history, plan, rows)
        differ = ~np.isclose(x, b.examples.x[first : first + HORIZON], equal_nan=True).all(axis=0)
        # by the hour of the request, not by the day
        assert {b.examples.names[j] for j in np.flatnonzero(differ)} <= {"shelf.since_last"}


def test_a_lag_is_that_many_days_ago_at_whatever_hour(lived: Lived) -> None:
    b = lived.bench
    i = b.snapshot.of(Review).num_rows // 2
    review = from_table(Review, b.snapshot.of(Review).slice(i, 1))[0]
    heard = b.snapshot.of(Actual)
    position = b.snapshot.of(Review)["position"][i].as_py()
    mine = heard.filter(
        pc.and_(
            pc.and_(pc.equal(heard["store_id"], review.store_id), pc.equal(heard["product_id"], review.product_id)),
            pc.less(heard["position"], position),
        )
    )
    sold = dict(zip(mine["day"].to_pylist(), mine["units"].to_pylist(), strict=True))
    row = b.examples.x[b.examples.rows.offsets[i]]
    for k in LAGS:
        seen = row[b.examples.names.index(f"shelf.lag_{k}")]
        assert seen == sold.get(review.day - k) or (np.isnan(seen) and review.day - k not in sold)


def test_censored_days_are_drawn_above_what_was_sold() -> None:
    q = np.tile(np.array([1.0, 2, 4, 6, 8, 10, 12]), (500, 1))
    drawn = at_least(q, np.full(500, 9.0), np.random.default_rng(0))
    assert (drawn >= 9).all()
    assert len(np.unique(drawn)) > 400  # draws, not one guess
    free = at_least(q, np.zeros(500), np.random.default_rng(0))
    assert abs(np.median(free) - 6) < 0.6


def test_backtests_give_no_weight_to_trees_that_know_nothing(lived: Lived) -> None:
    part, columns = lived.bench.parts[0], lived.bench.parts[0].rows.columns
    known = ~np.isnan(part.labels)
    z = forecaster.continuous(columns, part.labels)[known]
    rubbish = np.sort(np.random.default_rng(0).uniform(0, 200, (int(known.sum()), len(LEVELS))), axis=1)
    blend = Blend.fit(columns.filter(pa.array(known)), rubbish, z)
    assert max(blend.weight) <= 0.1
    ideal = np.repeat(z[:, None], len(LEVELS), axis=1)
    assert min(Blend.fit(columns.filter(pa.array(known)), ideal, z).weight) == 1.0


def test_errors_of_days_that_go_together_are_found_out(lived: Lived) -> None:
    columns = lived.bench.parts[0].rows.columns
    n = columns.num_rows
    rng = np.random.default_rng(0)
    q = np.tile(np.arange(len(LEVELS), dtype=float) + 10, (n, 1))
    shared = np.repeat(rng.normal(13, 2, n // HORIZON), HORIZON)
    alone = rng.normal(13, 2, n)
    assert forecaster._correlation(columns, q, shared) > 0.8
    assert forecaster._correlation(columns, q, alone) < 0.1


def test_intervals_hold_what_they_say(lived: Lived) -> None:
    """On weeks that came a month after all that was learned."""
    metrics = lived.bench.trained.report.metrics
    assert abs(metrics["coverage_80"] - 0.8) < 0.06
    assert abs(metrics["coverage_95"] - 0.95) < 0.04


def test_forecasts_made_ahead_add_up(lived: Lived) -> None:
    table = lived.model.ahead()
    series = [key for key in table.keys if key[1]]
    assert len(series) == len(lived.model.panel.place)

    def mean(key: tuple[str, str, str]) -> Any:
        found = table.find(key)
        assert found is not None
        return found.mean

    everything = sum(mean(key) for key in series)
    np.testing.assert_allclose(mean(("", "", "")), everything, rtol=1e-9)
    stores = {store for store, _, _ in series}
    np.testing.assert_allclose(sum(mean((store, "", "")) for store in stores), everything, rtol=1e-9)
    np.testing.assert_allclose(sum(mean(("", "", c)) for c in lived.model.panel.groups), everything, rtol=1e-9)
    for key in series:
        found = table.find(key)
        assert found is not None
        assert (np.diff(found.quantiles, axis=1) >= 0).all()
        assert (found.quantiles >= 0).all()


def test_parts_of_any_size_are_forecast_alike(lived: Lived) -> None:
    model = lived.model
    plan = Plan.of(latest(lived)).from_day(model.panel.last + 1)
    whole = [np.concatenate([forecast(model.core, p) for p in parts(model.panel, plan, size)]) for size in (3, 500)]
    np.testing.assert_array_equal(*whole)


def latest(lived: Lived) -> list[Review]:
    reviews = from_table(Review, lived.bench.snapshot.of(Review))
    return list({(r.store_id, r.product_id): r for r in reviews}.values())


def test_a_version_read_again_says_the_same(lived: Lived, tmp_path: Path) -> None:
    lived.model.save(tmp_path)
    again = lived.bench.system.load(tmp_path)
    assert again.table is not None
    np.testing.assert_array_equal(again.table.mean, lived.model.ahead().mean)
    rows = lived.model.rows(latest(lived)[:3])
    x = panel.features(lived.model.panel, Plan.of(latest(lived)[:3]), rows)
    np.testing.assert_array_equal(again.quantiles(rows.columns, x), lived.model.quantiles(rows.columns, x))


def test_where_the_store_knows_nothing_of_a_shelf_the_version_remembers_it(lived: Lived) -> None:
    model, asked = lived.model, [r.model_copy(update={"day": lived.model.panel.last + 1}) for r in latest(lived)]
    rows = model.rows(asked)
    x = panel.features(model.panel, Plan.of(asked), rows)
    cold = x.copy()
    views = [i for i, name in enumerate(model.names) if "." in name]
    cold[: 3 * HORIZON, views] = np.nan  # of the first three
    assert model.predict(asked, rows, cold) == model.predict(asked, rows, x)
    nobody = asked[0].model_copy(update={"store_id": "moon"})
    assert len(model.predict([nobody], model.rows([nobody]), np.full((HORIZON, len(model.names)), np.nan))) == 1


def test_a_promotion_or_a_lower_price_sells_more(lived: Lived) -> None:
    more = [
        serving.what_if(
            lived.model,
            serving.WhatIf(store_id=review.store_id, product_id=review.product_id, promoted=(True,) * 7),
        ).units
        - serving.what_if(
            lived.model, serving.WhatIf(store_id=review.store_id, product_id=review.product_id)
        ).units
        for review in latest(lived)
    ]  # fmt: skip
    assert np.mean(np.array(more) > 0) > 0.7
    assert sum(more) > 0


def test_what_if_and_stored_refuse_what_they_do_not_know(lived: Lived) -> None:
    with pytest.raises(NotFound, match="must have been sold"):
        serving.what_if(lived.model, serving.WhatIf(store_id="moon", product_id="x"))
    with pytest.raises(BadRecord, match="prices.0: input should be greater than 0, got '0.0'"):
        serving.WhatIf.parse('{"store_id": "store-01", "product_id": "product-001", "prices": [0.0]}')
    with pytest.raises(NotFound, match="must be a store and a product of it"):
        serving.stored(lived.model, serving.Which(store_id="moon"))
    total = serving.stored(lived.model, serving.Which())
    assert len(total.forecast.mean) == HORIZON


def review(**changes: Any) -> Review:
    return EXAMPLES[0].model_copy(update={"on_hand": 0.0, "on_order": 0.0, **changes})  # type: ignore[return-value]


def steady(*levels: float) -> Any:
    """The quantiles of days that are all alike."""
    return np.tile(np.array(levels), (1, HORIZON, 1))


def test_orders_fill_up_to_what_pays_best() -> None:
    q = steady(1, 3, 5, 7, 9, 12, 15)
    little, much = (
        serving.orders([review(short_cost=short, lead_time=2)], q, True, 0.0)[0][0] for short in (0.05, 5.0)
    )
    assert 0 < little < much
    assert serving.orders([review(on_hand=1_000.0)], q, True, 0.0)[0][0] == 0
    longer = serving.orders([review(lead_time=6)], q, True, 0.0)[0][0]
    assert longer > serving.orders([review(lead_time=1)], q, True, 0.0)[0][0]
    sure, unsure = (serving.orders([review(lead_time=6, short_cost=5.0)], q, True, rho)[0][0] for rho in (0.0, 0.9))
    assert unsure > sure  # errors that go together do not cancel out


def test_an_order_with_a_price_comes_seldom_and_brings_more() -> None:
    q = steady(1, 3, 5, 7, 9, 12, 15)
    free, dear = (serving.orders([review(order_cost=fee)], q, True, 0.0)[0][0] for fee in (0.0, 20.0))
    assert dear > free
    stock = serving.orders([review(order_cost=0.0)], q, True, 0.0)[1][0] - 1
    assert serving.orders([review(on_hand=stock, order_cost=0.0)], q, True, 0.0)[0][0] > 0
    assert serving.orders([review(on_hand=stock, order_cost=20.0)], q, True, 0.0)[0][0] == 0


def answer(lower: float, upper: float) -> Order:
    made = serving.told(0, steady(lower, lower + 1, 5, 7, 8, upper + 1, upper + 1)[0], is_count=True)
    return Order(action="wait", quantity=0.0, up_to=0.0, service_level=0.5, forecast=made)


@pytest.mark.parametrize(
    ("units", "sold_out", "label"),
    [(7.0, False, 0.0), (1.0, False, 1.0), (30.0, False, 1.0), (30.0, True, 1.0), (7.0, True, None), (0.0, True, None)],
)
def test_an_answer_is_watched_by_whether_its_first_day_was_outside(
    units: float, sold_out: bool, label: float | None
) -> None:
    actual = EXAMPLES[1].model_copy(update={"units": units, "sold_out": sold_out})
    assert serving.watched(answer(2, 12), actual) == label  # type: ignore[arg-type]
    assert serving.watched(serving.rule(review(), 0.5), actual) is None  # type: ignore[arg-type]


def test_an_interval_that_is_wider_or_misses_costs_more() -> None:
    asked = [review()] * 2
    for p in (0.0, 1.0):
        narrow, wide = serving.losses(asked, [answer(4, 9), answer(0, 30)], np.full(2, p)).paid
        assert 0 <= narrow < wide
    missed = serving.losses(asked, [answer(4, 9)] * 2, np.array([0.0, 1.0])).paid
    assert missed[0] < missed[1]


def test_the_rule_orders_nothing_and_needs_nothing() -> None:
    said = serving.rule(review(on_hand=3.0), 0.0)
    assert (said.action, said.quantity, said.forecast) == ("wait", 0.0, None)


def test_actuals_change_what_is_known_of_a_live_version(lived: Lived) -> None:
    model = replace(lived.model, panel=lived.model.panel.copy())
    (store, product), day = next(iter(model.panel.place)), model.panel.last + 1
    asked = latest(lived)[0].model_copy(update={"store_id": store, "product_id": product, "day": day + 1})
    before = model.rows([asked]).columns
    new = actuals((day, 500.0, False), store=store).drop_columns(["product_id"])
    new = new.append_column("product_id", pa.array([product]))
    model.hear(new)
    model.hear(new)  # to be told twice does no harm
    after = model.rows([asked]).columns
    assert numbers(after["level"])[0] > numbers(before["level"])[0]
    assert len(lived.model.panel.place) == len(model.panel.place)


def test_who_asks_sees_all_of_what_was_heard_or_nothing(lived: Lived) -> None:
    """Another thread tells; neither begins before the other one is done."""
    model = replace(lived.model, panel=lived.model.panel.copy())
    (store, product), day = next(iter(model.panel.place)), model.panel.last + 1
    asked = latest(lived)[0].model_copy(update={"store_id": store, "product_id": product, "day": day + 1})
    new = actuals((day, 5.0, False), store=store).drop_columns(["product_id"])
    new = new.append_column("product_id", pa.array([product]))
    with ThreadPoolExecutor(2) as pool:
        with model.lock:
            both = [pool.submit(model.hear, new), pool.submit(model.rows, [asked])]
            assert wait(both, timeout=0.3).done == set()
            assert model.panel.last == day - 1
        for one in both:
            one.result()
    assert model.panel.last == day


def test_it_is_served_over_http(lived: Lived, tmp_path: Path) -> None:
    """A forecast that is stored, a question of what would be, an order, and what was sold since."""
    b = lived.bench
    home, keys = tmp_path / "home", tmp_path / "keys"
    with Registry(home, WallClock(), Keys(keys)) as registry:
        version = registry.publish(
            "forecasting", unsealed(b.bundle(), tmp_path / "again"), {}, dict(b.trained.version.lineage), [],
        )  # fmt: skip
        registry.promote("forecasting", version.name, who="test", why="test", force=True)
    (store, product), day = next(iter(lived.model.panel.place)), lived.model.panel.last + 1
    with server(home, "forecasting", MLSYS_KEYS=str(keys)) as serves:

        def call(path: str, body: Any = None) -> Any:
            request = urllib.request.Request(
                f"http://127.0.0.1:{serves.port}/v1/forecasting/{path}",
                data=None if body is None else json.dumps(body).encode(),
                headers={"authorization": f"Bearer {serves.said['key']}"},
            )
            with urllib.request.urlopen(request, timeout=30) as reply:
                return json.loads(reply.read())

        stored = call(f"forecast?store_id={store}&product_id={product}")
        assert stored["forecast"]["first_day"] == day
        assert len(call("forecast")["forecast"]["mean"]) == HORIZON
        asked = call("what-if", {"store_id": store, "product_id": product, "promoted": [True] * 7})
        assert asked["units"] == pytest.approx(sum(asked["asked"]["mean"]) - sum(asked["planned"]["mean"]), abs=0.1)
        sold = EXAMPLES[1].model_copy(
            update={"store_id": store, "product_id": product, "day": day, "event_timestamp": day * DAY, "units": 900.0}
        )
        call("actuals", sold.model_dump())
        said = call(
            "score", review(store_id=store, product_id=product, day=day + 1).model_dump() | {"event_id": "r-1"}
        )  # fmt: skip
        assert said["answer"]["forecast"]["first_day"] == day + 1


def unsealed(folder: Path, to: Path) -> Path:
    """The files of a version, to be published again."""
    to.mkdir()
    for path in folder.iterdir():
        if path.name not in ("manifest.json", "manifest.sig", "sketches.json"):
            (to / path.name).write_bytes(path.read_bytes())
    return to


def test_views_look_back_from_the_day_before() -> None:
    assert all(a.delay >= DAY for view in VIEWS for a in view.aggregations if a.kind != "time_since")


def test_trees_need_enough_days() -> None:
    few = np.ones(10)
    with pytest.raises(Exception, match="must have 500 days"):
        Trees.fit(CONFIG, few[:, None], few, few, ["a"], {})


@pytest.mark.parametrize("kind", [Review, Actual])
def test_a_day_that_no_calendar_has_is_refused_with_field_and_rule(kind: type[Any]) -> None:
    said = next(e for e in EXAMPLES if isinstance(e, kind)).model_dump() | {"day": 10**9}
    with pytest.raises(BadRecord, match="day: input should be less than 84006, got '1000000000'"):
        kind.parse(json.dumps(said))


def test_a_plan_of_a_later_day_has_the_promotions_that_are_left() -> None:
    plan = Plan.of([review(day=100, prices=(2.0, 3.0), promoted=(True, False, True))])
    later = plan.from_day(102)
    assert later.promoted[0, :2].tolist() == [1.0, 0.0]
    assert later.price[0, 0] == 3.0
    assert Rows(pa.table({"a": [1]}), np.array([0, 1])).owner.tolist() == [0]
