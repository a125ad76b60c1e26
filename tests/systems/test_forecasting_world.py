from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, nbinom, poisson

from common.clock import DAY, HOUR, SECOND
from common.errors import BadSetting, NotFound
from common.schema import Event, from_rows
from common.system import Arrival, Rows
from systems.forecasting.config import CATEGORIES, FULL, SMALL
from systems.forecasting.data import HORIZON, LEVELS, Actual, Order, RetailWorld, Review, world
from systems.forecasting.data.assortment import KINDS, assortment
from systems.forecasting.data.calendar import HOLIDAYS, easter, holiday, holidays, weekday, year_day
from systems.forecasting.data.demand import demand
from systems.forecasting.data.events import LAST_DAY
from systems.forecasting.data.stock import least_pinball, newsvendor_level, newsvendor_loss

E = TypeVar("E", bound=Event)
Policy = Callable[[Sequence[Review], Sequence[Actual]], Sequence[float]]
CONFIG = replace(SMALL, stores=2, products=12, history_days=90, review_days=40, daily_days=14, days=110)
START, FIRST = CONFIG.start, CONFIG.start // DAY
KEPT = replace(
    CONFIG, stores=3, products=4, history_days=20, review_days=8, daily_days=8, days=28, new_products=0.0
)  # each shelf is reviewed on each day since there are real ones


def of_kind(kind: type[E], arrivals: Sequence[Arrival]) -> list[E]:
    return [a.event for a in arrivals if isinstance(a.event, kind)]


def order(quantity: float) -> Order:
    return Order(action="order", quantity=quantity, up_to=0.0, service_level=0.5)


def by_mean(reviews: Sequence[Review], past: Sequence[Actual]) -> list[float]:
    """Up to what was sold lately in as many days, and some more: what anybody would do who has no forecast."""
    recent: dict[tuple[str, str], list[float]] = {}
    for actual in past:
        recent.setdefault((actual.store_id, actual.product_id), []).append(actual.units)
    found = []
    for review in reviews:
        sold = recent.get((review.store_id, review.product_id), [3.0])
        total = (review.lead_time + 1) * sum(sold) / len(sold)
        up_to = np.ceil(total + 1.6 * np.sqrt(1.5 * total + 0.3 * total**2))
        found.append(max(0.0, float(up_to) - review.on_hand - review.on_order))
    return found


def live(chain: RetailWorld, until: int, policy: Policy | None, step: int = DAY) -> list[Arrival]:
    """All arrivals up to a day, each review answered at the end of its step, or none."""
    heard, recent = list[Arrival](), list[list[Actual]]()
    for at in range(chain.config.start + step, chain.config.start + until * DAY + 1, step):
        arrivals = chain.arrivals(at)
        heard += arrivals
        recent = [*recent[-27:], of_kind(Actual, arrivals)]
        reviews = of_kind(Review, arrivals)
        if policy is not None and reviews:
            quantities = policy(reviews, [actual for day in recent for actual in day])
            chain.react([(r, order(q)) for r, q in zip(reviews, quantities, strict=True)])
    return heard


@cache
def lived() -> tuple[RetailWorld, list[Arrival]]:
    chain = world(SMALL, 0)
    return chain, live(chain, SMALL.history_days + 3, by_mean)


@cache
def unanswered() -> tuple[RetailWorld, list[Arrival]]:
    chain = world(CONFIG, 0)
    return chain, chain.arrivals(START + (CONFIG.days + 4) * DAY)


def rows(events: Sequence[Actual | Review], days: int = 1) -> Rows:
    columns = {
        "store_id": [e.store_id for e in events for _ in range(days)],
        "product_id": [e.product_id for e in events for _ in range(days)],
        "day": [e.day + i for e in events for i in range(days)],
    }
    return Rows(pa.table(columns), np.arange(len(events) + 1, dtype=np.int64) * days)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    one, same, other = (world(CONFIG, seed).arrivals(START + 60 * DAY) for seed in (0, 0, 1))
    assert [a.event.model_dump_json() for a in one] == [a.event.model_dump_json() for a in same]
    assert [a.event.model_dump_json() for a in one] != [a.event.model_dump_json() for a in other]


def test_slicing_of_arrivals_does_not_matter() -> None:
    sliced, (_, whole) = world(CONFIG, 0), unanswered()
    until = START + (CONFIG.days + 4) * DAY
    assert [a for t in range(START, until + 1, 7 * HOUR) for a in sliced.arrivals(t)] + sliced.arrivals(until) == whole


def test_a_longer_world_begins_like_a_shorter_one() -> None:
    _, whole = unanswered()
    until = START + (CONFIG.days - 1) * DAY
    assert world(CONFIG, 0, days=CONFIG.days + 50).arrivals(until) == [a for a in whole if a.at < until]


def test_what_is_wanted_does_not_depend_on_what_is_ordered() -> None:
    (chain, arrivals), other = unanswered(), world(CONFIG, 0)
    heard = of_kind(Actual, live(other, CONFIG.days, by_mean))
    np.testing.assert_array_equal(chain.truth([], rows(heard))["demand"], other.truth([], rows(heard))["demand"])
    assert sum(a.units for a in heard) > sum(a.units for a in of_kind(Actual, arrivals))


def test_a_drift_changes_nothing_before_its_day_and_no_plan_but_what_is_wanted_after_it() -> None:
    broken, same = world(CONFIG, 0, "break@80"), world(CONFIG, 0)
    one, other = live(broken, CONFIG.days, by_mean), live(same, CONFIG.days, by_mean)
    until = START + 81 * DAY  # what was sold on the day is heard of later
    assert [a for a in one if a.at < until] == [a for a in other if a.at < until]
    plans = [[(r.event_id, r.prices, r.promoted) for r in of_kind(Review, heard)] for heard in (one, other)]
    assert plans[0] == plans[1]
    late = [a for a in of_kind(Actual, other) if a.day >= FIRST + 80]
    ours, theirs = (chain.truth([], rows(late))["mean"] for chain in (broken, same))
    jumps = np.array([CATEGORIES.index(a.category) % 2 == 0 for a in late])
    assert ours[jumps].sum() > 1.3 * theirs[jumps].sum()
    assert ours[~jumps].sum() < 0.85 * theirs[~jumps].sum()


@pytest.mark.parametrize("drift", ["break", "break@", "break@-1", "break@110", "mood@3", "break@٣"])
def test_an_unknown_drift_is_refused_with_the_choice(drift: str) -> None:
    with pytest.raises(BadSetting, match=r"drift: must be break@DAY with a day from 0 to 109"):
        world(CONFIG, 0, drift)


def test_events_keep_their_schema() -> None:
    for _, arrivals in (unanswered(), lived()):
        for kind in (Actual, Review):
            events = of_kind(kind, arrivals)
            assert from_rows(kind, [event.model_dump() for event in events[::9]]) == events[::9]
            assert max(len(event.event_id) for event in events) <= 60


def test_nobody_hears_of_a_day_before_it_is_over_nor_of_a_review_before_its_day() -> None:
    _, arrivals = lived()
    assert all(a.at <= b.at for a, b in zip(arrivals, arrivals[1:], strict=False))
    ids = [a.event.event_id for a in arrivals]
    assert len(set(ids)) == len(ids)
    late = []
    for at, event in arrivals:
        if isinstance(event, Actual):
            assert event.event_timestamp == event.day * DAY
            assert SMALL.told <= at - (event.day + 1) * DAY <= 3 * DAY
            late.append(at - (event.day + 1) * DAY > SMALL.told + HOUR)
        else:
            assert isinstance(event, Review)
            assert event.event_timestamp == at
            assert SMALL.reviewed <= at - event.day * DAY < SMALL.reviewed + HOUR
    assert 0.02 < np.mean(late) < 0.04


def test_the_last_of_28_days_is_heard_of_before_labels_count_as_mature() -> None:
    assert SMALL.label_delay + SMALL.reviewed > (HORIZON + 3) * DAY
    assert SMALL.early_delay + SMALL.reviewed > (1 + 2) * DAY  # of the first day most is, what is late two days too


def test_shelves_are_reviewed_now_and_then_and_later_every_day() -> None:
    for config, days in ((CONFIG, (50, 76)), (replace(CONFIG, daily_days=0), (50, 110))):
        chain = world(config, 0)
        reviews = of_kind(Review, chain.arrivals(START + config.days * DAY))
        by_series: dict[tuple[str, str], list[int]] = {}
        for review in reviews:
            by_series.setdefault((review.store_id, review.product_id), []).append(review.day - FIRST)
        gaps = [np.diff(known) for known in by_series.values()]
        weekly = [b - a for known in by_series.values() for a, b in zip(known, known[1:], strict=False) if b < days[1]]
        assert set(weekly) == {7}
        assert min(review.day for review in reviews) == FIRST + days[0]
        assert len({known[0] for known in by_series.values()}) > 5  # not all on the same day
        assert any((gap == 1).any() for gap in gaps) == (config.daily_days > 0)
        assert max(review.day for review in reviews) == FIRST + config.days - 1


def test_a_plan_is_what_happens_and_no_longer_than_needed() -> None:
    _, arrivals = lived()
    prices = {(a.store_id, a.product_id, a.day): (a.price, a.promoted) for a in of_kind(Actual, arrivals)}
    changes = 0
    for review in of_kind(Review, arrivals)[::10]:
        assert len(review.prices) == 1 or review.prices[-1] != review.prices[-2]
        assert not review.promoted or review.promoted[-1]
        changes += len(review.prices) > 1
        for i in range(HORIZON):
            known = prices.get((review.store_id, review.product_id, review.day + i))
            planned = (review.prices[min(i, len(review.prices) - 1)], i < len(review.promoted) and review.promoted[i])
            assert known is None or known == planned
    assert changes > 100


def test_demand_has_the_distribution_that_the_world_says_it_has() -> None:
    of = assortment(SMALL, 0)
    drawn = demand(of, 0)
    sold = np.arange(of.days) >= of.launch[:, None]
    assert not drawn.units[~sold].any()
    k, mean = drawn.units[sold], drawn.mean[sold].astype(float)
    dispersion = np.broadcast_to(drawn.dispersion[:, None], sold.shape)[sold]
    law = nbinom(1 / dispersion, 1 / (1 + dispersion * mean))
    u = law.cdf(k - 1) + np.random.default_rng(0).random(len(k)) * law.pmf(k)  # uniform, if the law is right
    counts = np.histogram(u, 50, (0, 1))[0]
    assert chi2.sf(((counts - len(u) / 50) ** 2 / (len(u) / 50)).sum(), 49) > 1e-4
    variance = mean + dispersion * mean**2
    assert abs(((k - mean) / np.sqrt(variance)).sum()) < 4 * np.sqrt(len(k))
    for group in (mean < 1, mean > 10):
        assert np.mean((k - mean)[group] ** 2 / variance[group]) == pytest.approx(1, abs=0.05)


def test_promotions_lift_a_product_and_take_from_its_neighbours_only() -> None:
    of, without = assortment(CONFIG, 0), assortment(replace(CONFIG, promotion=0.0), 0)
    assert not without.promoted.any()
    drawn, base = demand(of, 0), demand(without, 0).mean
    ratio = np.divide(drawn.mean, base, out=np.ones_like(base), where=base > 0)
    sold = (base > 0.05) & (drawn.mean > 0.05)
    neighbours = np.zeros(of.promoted.shape, int)
    for store in range(CONFIG.stores):
        for category in range(CONFIG.categories):
            mine = (of.store == store) & (of.category == category)
            live = of.promoted[mine] & (base[mine] > 0)
            neighbours[mine] = live.sum(axis=0) - live
    alone = sold & (neighbours == 0)
    np.testing.assert_allclose(ratio[alone & ~of.promoted], 1, rtol=1e-5)
    assert ratio[alone & of.promoted].min() > 1.2
    hurt = sold & (neighbours > 0) & ~of.promoted
    assert hurt.sum() > 100
    assert ratio[hurt].max() < 1
    gained = drawn.units[alone & of.promoted].sum() / base[alone & of.promoted].sum()
    assert 1.5 < gained < 5
    assert drawn.units[hurt].sum() < base[hurt].sum()


def test_promotions_cut_prices_from_monday_to_saturday_of_one_week_or_two() -> None:
    config = replace(SMALL, start=1_714_348_800 * SECOND)  # 2024-04-29, a Monday
    of, without = assortment(config, 0), assortment(replace(config, promotion=0.0), 0)
    np.testing.assert_array_equal(of.price == without.price, ~of.promoted)
    cut = of.price[of.promoted] / without.price[of.promoted]
    assert 0.6 < cut.min() < cut.max() < 0.95
    assert not of.promoted[:, weekday(of.calendar) == 6].any()
    weeks = of.promoted[:, weekday(of.calendar) == 0]
    np.testing.assert_array_equal(
        np.repeat(weeks, 6, axis=1)[:, :600], of.promoted[:, :700].reshape(-1, 100, 7)[:, :, :6].reshape(-1, 600)
    )
    assert 0.06 < weeks.mean() < 0.14
    assert 0.3 < weeks[:, 1:][weeks[:, :-1]].mean() < 0.6  # by chance alone it would be one in ten


def test_holidays_garden_and_weekends_are_felt() -> None:
    config = replace(FULL, stores=2, products=80, days=400, history_days=400, new_products=0.0)
    of = assortment(config, 0)
    mean = demand(of, 0).mean
    day, week, around = year_day(of.calendar), weekday(of.calendar), holiday(of.calendar)
    garden = mean[of.category == CATEGORIES.index("garden")].mean(axis=0)
    assert garden[(day > 100) & (day < 150)].mean() > 3 * garden[(day > 300) & (day < 350)].mean()
    toys = mean[of.category == CATEGORIES.index("toys")].mean(axis=0)
    christmas = around.next == HOLIDAYS.index("christmas")
    assert toys[christmas & (around.until == 1)].min() > 1.5 * toys[(day > 300) & (day < 320)].mean()
    every = mean.mean(axis=0)
    assert every[week == 5].mean() > 1.2 * every[week == 1].mean()
    assert every[christmas & (around.until == 0)] < 0.8 * every.mean()


def test_some_days_are_sold_out_whoever_orders_more_of_them_when_promoted() -> None:
    chain, arrivals = lived()
    heard = of_kind(Actual, arrivals)
    day = np.array([a.day for a in heard]) - FIRST
    sold_out, promoted = np.array([a.sold_out for a in heard]), np.array([a.promoted for a in heard])
    real, daily = SMALL.history_days - SMALL.review_days, SMALL.history_days - SMALL.daily_days
    for start, end in ((0, real), (real, daily), (daily, SMALL.history_days)):
        part = (start <= day) & (day < end)
        assert 0.02 < sold_out[part].mean() < 0.08
        assert sold_out[part & promoted].mean() > 1.5 * sold_out[part & ~promoted].mean()
    units, wanted = np.array([a.units for a in heard]), chain.truth([], rows(heard))["demand"]
    np.testing.assert_array_equal(units[~sold_out], wanted[~sold_out])
    assert (units[sold_out] < wanted[sold_out]).all()


def test_new_products_are_not_heard_of_before_their_launch_and_some_come_while_the_world_is_live() -> None:
    chain, arrivals = lived()
    actuals, reviews = of_kind(Actual, arrivals), of_kind(Review, arrivals)
    begins: dict[tuple[str, str], int] = {}
    for actual in actuals:
        series = (actual.store_id, actual.product_id)
        begins[series] = min(begins.get(series, LAST_DAY), actual.day - FIRST)
    launched = assortment(SMALL, 0).launch
    assert sorted(begins.values()) == sorted(launched[launched <= SMALL.history_days + 1].tolist())
    assert SMALL.history_days < launched.max() < SMALL.days
    assert sum(0 < day < SMALL.history_days - 120 for day in begins.values()) >= SMALL.stores
    new = chain.segments(reviews)["new"]
    for review, is_new in zip(reviews, new.tolist(), strict=True):
        begin = begins.get((review.store_id, review.product_id), SMALL.history_days)
        assert review.day - FIRST >= begin
        assert is_new == (begin > 0 and review.day - FIRST - begin < 56)
    early = np.array([review.day for review in reviews]) < FIRST + SMALL.history_days
    assert 0 < new[early].mean() < 0.1


def test_segments_say_how_often_a_product_is_sold_and_whether_it_will_be_promoted() -> None:
    chain, arrivals = lived()
    reviews = of_kind(Review, arrivals)[::50]
    found = chain.segments(reviews)
    assert (found["smooth"] != found["intermittent"]).all()
    mean = chain.truth(reviews, rows(reviews, HORIZON))["mean"].reshape(-1, HORIZON).mean(axis=1)
    np.testing.assert_array_equal(found["intermittent"], mean < 1)
    assert 0.15 < found["intermittent"].mean() < 0.4
    np.testing.assert_array_equal(found["promoted"], [any(review.promoted) for review in reviews])
    assert {name: len(group) for name, group in chain.segments([]).items()} == dict.fromkeys(found, 0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.0, 1.0, 8.0, 1e9]), twice=st.booleans())
def test_a_shelf_holds_what_came_less_what_was_sold_and_what_went_bad(seed: int, scale: float, twice: bool) -> None:
    rng, chain = np.random.default_rng(seed), world(KEPT, seed % 7)
    shelf: dict[str, list[Review]] = {}
    ordered: dict[tuple[str, int], float] = {}
    heard = list[Actual]()
    for at in range(START + 10 * HOUR, START + (KEPT.days + 4) * DAY, DAY):
        arrivals = chain.arrivals(at)
        heard += of_kind(Actual, arrivals)
        for review in of_kind(Review, arrivals):
            name = f"{review.store_id}/{review.product_id}"
            shelf.setdefault(name, []).append(review)
            quantity = float(rng.poisson(scale)) if rng.random() < 0.8 else 0.0
            ordered[name, review.day] = quantity
            if quantity:
                chain.react([(review, order(quantity))] + [(review, order(quantity + 3))] * twice)
    sold = {(f"{a.store_id}/{a.product_id}", a.day): a for a in heard}
    wanted = chain.truth([], rows(heard))["demand"]
    of_day = {(f"{a.store_id}/{a.product_id}", a.day): d for a, d in zip(heard, wanted.tolist(), strict=True)}
    for name, reviews in shelf.items():
        assert [r.day for r in reviews] == list(range(FIRST + 12, FIRST + KEPT.days))
        for today, tomorrow in zip(reviews, reviews[1:], strict=False):
            day, actual = today.day, sold[name, today.day]
            assert min(today.on_hand, today.on_order) >= 0
            assert actual.units == min(of_day[name, day], today.on_hand)
            assert actual.sold_out == (of_day[name, day] > today.on_hand)
            taken = [min(ordered.get((name, d), 0.0), 1e6) for d in range(day - today.lead_time + 1, day + 1)]
            assert tomorrow.on_order == sum(taken[1:])
            left = today.on_hand - actual.units
            bad = np.rint(KINDS[today.category].waste * left)
            assert tomorrow.on_hand == left - bad + today.on_order + taken[-1] - tomorrow.on_order


def test_an_order_that_nobody_gave_is_not_delivered() -> None:
    chain = world(KEPT, 0)
    last = of_kind(Review, chain.arrivals(START + KEPT.days * DAY))[-KEPT.products :]
    assert sum(review.on_order for review in last) == 0


def test_a_late_answer_counts_from_when_it_is_given() -> None:
    chain = world(KEPT, 0)
    first = next(r for r in of_kind(Review, chain.arrivals(START + 13 * DAY)) if r.lead_time == 1)
    chain.arrivals(START + 20 * DAY + 10 * HOUR)
    chain.react([(first, order(7.4))])
    then = next(
        review for review in of_kind(Review, chain.arrivals(START + 22 * DAY))
        if (review.store_id, review.product_id) == (first.store_id, first.product_id)
    )  # fmt: skip
    assert (then.day, then.on_order) == (FIRST + 21, 0)
    assert then.on_hand >= 7


def test_reviews_that_have_not_arrived_and_rows_of_other_worlds_are_refused() -> None:
    chain, (_, arrivals) = world(CONFIG, 0), unanswered()
    review = of_kind(Review, arrivals)[0]
    with pytest.raises(NotFound, match="event_id: must be a review that has arrived"):
        chain.ceiling([review])
    stranger = review.model_copy(update={"store_id": "store-99"})
    with pytest.raises(NotFound, match="got 'review/store-"):
        chain.react([(stranger, order(1.0))])
    with pytest.raises(NotFound, match="rows: must be of series and days of this world, got .*store-99"):
        chain.truth([stranger], rows([stranger]))
    with pytest.raises(NotFound, match="rows"):
        chain.truth([review], rows([review.model_copy(update={"day": FIRST - 1})]))


def test_the_ceiling_is_what_the_true_quantiles_pay() -> None:
    chain, arrivals = lived()
    reviews = [r for r in of_kind(Review, arrivals) if (r.day - FIRST) % HORIZON == 24]  # no two of the same days
    truth = chain.truth(reviews, rows(reviews, HORIZON))
    shape, p = 1 / truth["dispersion"], 1 / (1 + truth["dispersion"] * truth["mean"])
    y = truth["demand"][:, None]

    def pinball(shift: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        q = nbinom.ppf(np.array(LEVELS), shape[:, None], p[:, None]) * shift
        loss = np.maximum((y - q) * LEVELS, (q - y) * (1 - np.array(LEVELS)))
        return np.asarray(loss.reshape(len(reviews), -1).mean(axis=1))

    ceiling = chain.ceiling(reviews)
    np.testing.assert_array_equal(ceiling, chain.ceiling(reviews))
    off = pinball(1.0) - ceiling
    assert len(reviews) > 300
    assert abs(off.mean()) < 4 * off.std() / np.sqrt(len(reviews))
    assert pinball(1.15).mean() > 1.01 * ceiling.mean()
    assert pinball(0.85).mean() > 1.01 * ceiling.mean()
    assert len(chain.ceiling([])) == 0


QUANTITIES = st.floats(0, 300)


@settings(max_examples=40, deadline=None)
@given(
    which=st.integers(0, 1_000), quantity=QUANTITIES, on_hand=st.integers(0, 60), lead=st.integers(1, 27),
    short=st.floats(0.01, 20), over=st.floats(0.001, 5), fixed=st.sampled_from([0.0, 0.3, 12.0]),
)  # fmt: skip
def test_no_order_costs_less_than_the_least_and_the_best_one_costs_just_that(
    which: int, quantity: float, on_hand: int, lead: int, short: float, over: float, fixed: float
) -> None:
    chain, arrivals = unanswered()
    reviews = of_kind(Review, arrivals)
    terms = {
        "on_hand": float(on_hand), "lead_time": lead, "short_cost": short, "over_cost": over, "order_cost": fixed,
    }  # fmt: skip
    review = reviews[which % len(reviews)].model_copy(update=terms)
    least = chain.least([review])[0]
    assert least >= 0
    whole = np.arange(0, 3_000.0)
    costs = chain.cost([review] * 3_000, whole)
    assert costs.min() == pytest.approx(least, rel=1e-9, abs=1e-9)
    assert chain.cost([review], [quantity])[0] >= least - 1e-9
    free = review.model_copy(update={"order_cost": 0.0})
    paid = chain.cost([review] * 2, [0.0, 5.0]) - chain.cost([free] * 2, [0.0, 5.0])
    assert paid.tolist() == pytest.approx([0, fixed], abs=1e-6)  # who waits pays for no order


def test_costs_are_those_of_demand_as_it_is_drawn() -> None:
    """Against a sum over the distribution of what is wanted on the two days before an order can come."""
    chain, arrivals = unanswered()
    reviews = [r for r in of_kind(Review, arrivals) if r.lead_time == 1][::40]
    truth = chain.truth(reviews, rows(reviews, 2))
    k = np.arange(3_000)
    for i, review in enumerate(reviews):
        laws = [
            nbinom.pmf(k, 1 / truth["dispersion"][j], 1 / (1 + truth["dispersion"][j] * truth["mean"][j]))
            for j in (2 * i, 2 * i + 1)
        ]
        both = np.convolve(*laws)
        at, stock = np.arange(len(both)), review.on_hand + review.on_order + 3
        short, over = (np.maximum(at - stock, 0) * both).sum(), (np.maximum(stock - at, 0) * both).sum()
        cost = chain.cost([review], [3.0])[0]
        # two days together are matched by their mean and variance
        assert cost == pytest.approx(review.order_cost + review.short_cost * short + review.over_cost * over, rel=0.02)


@settings(max_examples=40, deadline=None)
@given(mean=st.floats(0.01, 200), dispersion=st.floats(0, 1.5), level=st.floats(0, 500), ratio=st.floats(0.01, 0.99))
def test_the_newsvendor_loss_is_the_sum_over_the_distribution(
    mean: float, dispersion: float, level: float, ratio: float
) -> None:
    dispersion = dispersion if dispersion > 1e-6 else 0.0
    variance = mean + dispersion * mean**2
    law = nbinom(1 / dispersion, 1 / (1 + dispersion * mean)) if dispersion else poisson(mean)
    k = np.arange(20_000)
    p = law.pmf(k)
    short, over = newsvendor_loss(np.array([mean]), np.array([variance]), np.array([level]))
    assert short[0] == pytest.approx((np.maximum(k - level, 0) * p).sum(), abs=1e-6, rel=1e-6)
    assert over[0] == pytest.approx((np.maximum(level - k, 0) * p).sum(), abs=1e-6, rel=1e-6)
    best = newsvendor_level(np.array([mean]), np.array([variance]), np.array([ratio]))[0]
    assert law.cdf(best) >= ratio - 1e-9
    assert best == 0 or law.cdf(best - 1) <= ratio + 1e-9


def test_nothing_that_is_surely_wanted_is_neither_missed_nor_left_over() -> None:
    short, over = newsvendor_loss(np.zeros(2), np.zeros(2), np.array([0.0, 4.0]))
    assert short.tolist() == [0, 0]
    assert over.tolist() == [0, 4]
    assert newsvendor_level(np.zeros(1), np.zeros(1), np.array([0.99])).tolist() == [0]


def test_the_least_pinball_loss_is_that_of_the_quantiles_whatever_the_mean() -> None:
    rng = np.random.default_rng(0)
    mean, dispersion = np.exp(rng.uniform(-5, 7, 1_200)), np.exp(rng.uniform(-4, 0.5, 1_200))
    expected = np.zeros(len(mean))
    for level in LEVELS:
        best = nbinom.ppf(level, 1 / dispersion, 1 / (1 + dispersion * mean))
        short, over = newsvendor_loss(mean, mean + dispersion * mean**2, best)
        expected += (level * short + (1 - level) * over) / len(LEVELS)
    np.testing.assert_allclose(least_pinball(mean, dispersion, LEVELS), expected, rtol=1e-7)


def days(*dates: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.array(dates, "datetime64[D]").astype(np.int64)


def test_moving_holidays_are_right_in_known_years() -> None:
    years = np.array([1961, 2000, 2008, 2019, 2024, 2025, 2026, 2038])
    known = days(
        "1961-04-02", "2000-04-23", "2008-03-23", "2019-04-21", "2024-03-31", "2025-04-20", "2026-04-05", "2038-04-25"
    )
    np.testing.assert_array_equal(easter(years), known)
    assert holidays(np.array([2024]))[0].tolist() == list(
        days("2024-01-01", "2024-03-31", "2024-05-01", "2024-05-19", "2024-11-29", "2024-12-25")
    )
    assert holidays(np.array([2023, 2018]))[:, HOLIDAYS.index("black friday")].tolist() == list(
        days("2023-11-24", "2018-11-23")
    )


def test_the_week_and_the_year_begin_where_they_do() -> None:
    assert weekday(days("2024-01-01", "2024-01-07", "1970-01-01")).tolist() == [0, 6, 3]
    assert year_day(days("2024-01-01", "2024-12-31", "2023-12-31", "1969-12-31")).tolist() == [0, 365, 364, 364]


@given(st.lists(st.one_of(st.integers(-100_000, 100_000), st.integers(0, LAST_DAY - 1)), min_size=1, max_size=20))
def test_the_next_and_the_last_holiday_are_holidays_and_nothing_lies_between(of: list[int]) -> None:
    day = np.array(of)
    around = holiday(day)
    assert (around.until >= 0).all()
    assert (around.since >= 0).all()
    at_next, at_last = holiday(day + around.until), holiday(day - around.since)
    assert not at_next.until.any()
    assert not at_last.since.any()
    np.testing.assert_array_equal(at_next.next, around.next)
    np.testing.assert_array_equal(at_last.last, around.last)
    np.testing.assert_array_equal(around.until == 0, around.since == 0)
    eve = holiday(day + around.until - 1)
    assert ((eve.until == 1) | (around.until == 0)).all()
    assert ((around.until == 0) | (eve.last == around.last)).all()
