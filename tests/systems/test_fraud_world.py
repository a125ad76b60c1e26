"""The world of card payments keeps its promises."""

from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest

from common.clock import DAY, HOUR
from common.errors import BadRecord, BadSetting, NotFound
from common.schema import from_rows
from common.system import Arrival
from systems.fraud.config import SCENARIOS, SMALL, USUAL, Tactics
from systems.fraud.data import CardWorld, Decision, Outcome, Payment, world

CONFIG = replace(SMALL, days=60, history_days=40, cards=300)
PAYMENT = {
    "event_id": "payment-1",
    "event_timestamp": 0,
    "card_id": "card-1",
    "device_id": "device-1",
    "merchant_id": "merchant-1",
    "terminal_id": "terminal-1",
    "category": "fuel",
    "channel": "terminal",
    "amount": 12.5,
    "x_km": 0.0,
    "y_km": 0.0,
    "card_age_days": 3.0,
}


def answer(action: str) -> Decision:
    return Decision.model_validate({"action": action, "probability": 0.5})


def payments(arrivals: list[Arrival]) -> list[Payment]:
    return [a.event for a in arrivals if isinstance(a.event, Payment)]


def live(card_world: CardWorld, days: int, action: Callable[[Payment], str]) -> list[Arrival]:
    """All arrivals of so many days, each payment answered at the end of its day."""
    heard = []
    for day in range(1, days + 1):
        arrivals = card_world.arrivals(CONFIG.start + day * DAY)
        card_world.react([(p, answer(action(p))) for p in payments(arrivals)])
        heard += arrivals
    return heard


def approve(payment: Payment) -> str:
    return "approve"


@cache
def approved(seed: int) -> tuple[CardWorld, list[Arrival]]:
    card_world = world(CONFIG, seed)
    return card_world, live(card_world, CONFIG.days, approve)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    until = CONFIG.start + 20 * DAY
    one, same, other = (world(CONFIG, seed).arrivals(until) for seed in (0, 0, 1))
    assert [a.event.model_dump_json() for a in one] == [a.event.model_dump_json() for a in same]
    assert [a.event.model_dump_json() for a in one] != [a.event.model_dump_json() for a in other]


def test_slicing_of_arrivals_does_not_matter() -> None:
    whole, sliced = world(CONFIG, 0), world(CONFIG, 0)
    until = CONFIG.start + 20 * DAY
    parts = [a for t in range(CONFIG.start, until + 1, 7 * HOUR) for a in sliced.arrivals(t)] + sliced.arrivals(until)
    assert parts == whole.arrivals(until)


def test_what_arrives_is_in_order_valid_and_unique() -> None:
    _, heard = approved(0)
    times = [a.at for a in heard]
    assert times == sorted(times)
    assert all(a.at == a.event.event_timestamp for a in heard if isinstance(a.event, Payment))
    assert len({a.event.event_id for a in heard}) == len(heard)
    assert from_rows(Payment, [p.model_dump() for p in payments(heard)]) == payments(heard)


def test_every_scenario_happens_and_fraud_is_rare() -> None:
    card_world, heard = approved(0)
    truth, scenario = card_world.is_fraud(payments(heard)), card_world.scenario(payments(heard))
    assert set(scenario) == set(SCENARIOS)
    assert 0.002 < truth.mean() < 0.02
    assert ((scenario != "honest") == truth).all()


def test_an_outcome_carries_its_payment_and_the_payments_time() -> None:
    _, heard = approved(0)
    by_id = {p.event_id: p for p in payments(heard)}
    outcomes = [a for a in heard if isinstance(a.event, Outcome)]
    assert len(outcomes) > 50
    for at, event in outcomes:
        assert isinstance(event, Outcome)
        payment = by_id[event.payment_id]
        assert event.event_timestamp == payment.event_timestamp < at
        assert (event.card_id, event.device_id, event.amount) == (payment.card_id, payment.device_id, payment.amount)


def test_chargebacks_come_for_most_frauds_before_the_label_delay_and_never_for_honest_payments() -> None:
    card_world, heard = approved(0)
    reports = [a for a in heard if isinstance(a.event, Outcome)]
    reported = {a.event.payment_id for a in reports if isinstance(a.event, Outcome)}
    old = [p for p in payments(heard) if p.event_timestamp < CONFIG.start + CONFIG.days * DAY - CONFIG.label_delay]
    truth = card_world.is_fraud(old)
    known = np.array([p.event_id in reported for p in old])
    assert not known[~truth].any()
    assert 0.85 < known[truth].mean() < 1
    assert np.mean([at - event.event_timestamp < CONFIG.label_delay for at, event in reports]) > 0.95


def test_a_blocked_payment_has_no_outcome_and_blocks_end_campaigns() -> None:
    knows = world(CONFIG, 0)
    heard = live(knows, CONFIG.days, lambda p: "block" if knows.is_fraud([p])[0] else "approve")
    assert not [a for a in heard if isinstance(a.event, Outcome)]
    _, untouched = approved(0)
    assert len(payments(heard)) < len(payments(untouched))
    assert {p.event_id for p in payments(heard)} != {p.event_id for p in payments(untouched)}


def test_a_payment_that_was_never_answered_has_no_outcome() -> None:
    heard = world(CONFIG, 0).arrivals(CONFIG.start + 2 * CONFIG.days * DAY)
    assert len(payments(heard)) == len(heard)


def test_an_inspection_tells_the_truth_within_a_day() -> None:
    card_world = world(CONFIG, 0)
    first = payments(card_world.arrivals(CONFIG.start + DAY // 8))
    card_world.react([(p, answer("review")) for p in first])
    later = [a for a in card_world.arrivals(CONFIG.start + 10 * DAY) if isinstance(a.event, Outcome)]
    told = {a.event.payment_id: a for a in later if isinstance(a.event, Outcome)}
    assert set(told) == {p.event_id for p in first}
    for payment, fraud in zip(first, card_world.is_fraud(first).tolist(), strict=True):
        at, event = told[payment.event_id]
        assert isinstance(event, Outcome)
        assert (event.fraud, event.source) == (fraud, "inspection")
        assert 0 < at - payment.event_timestamp <= DAY


def test_the_drift_changes_nothing_before_its_day_and_much_after() -> None:
    calm, drifting = world(CONFIG, 0), world(CONFIG, 0, "tactics@30")
    day = CONFIG.start + 30 * DAY
    assert calm.arrivals(day) == drifting.arrivals(day)
    end = CONFIG.start + CONFIG.days * DAY
    amounts = []
    for w in (calm, drifting):
        after = payments(w.arrivals(end))
        amounts.append(np.median(np.array([p.amount for p in after])[w.is_fraud(after)]))
    assert amounts[1] < 0.8 * amounts[0]


def test_how_long_a_campaign_goes_on_is_that_of_the_tactics_of_its_day() -> None:
    short = Tactics(**{f.name: replace(getattr(USUAL, f.name), goes_on=0.05) for f in fields(Tactics)})
    config = replace(CONFIG, drifted=short)
    calm, drifting = world(config, 0), world(config, 0, "tactics@30")
    day = CONFIG.start + 30 * DAY
    assert calm.arrivals(day) == drifting.arrivals(day)
    sizes = []
    for w in (calm, drifting):
        end = CONFIG.start + CONFIG.days * DAY
        mine = w._ledger.campaign[(w._ledger.campaign >= 0) & (w._ledger.time >= day) & (w._ledger.time < end)]
        sizes.append(len(mine) / len(np.unique(mine)))
    assert sizes[1] < 0.75 * sizes[0]


def test_a_world_lasts_as_many_days_as_are_asked_for() -> None:
    one, other = world(CONFIG, 0, None, 20), world(replace(CONFIG, days=20), 0)
    late = CONFIG.start + 100 * DAY
    heard = one.arrivals(late)
    assert heard == other.arrivals(late)
    assert CONFIG.start + 19 * DAY < max(a.at for a in heard) < CONFIG.start + 20 * DAY
    longer = payments(world(CONFIG, 0, "tactics@69", 70).arrivals(late))
    assert max(p.event_timestamp for p in longer) > CONFIG.start + 69 * DAY
    with pytest.raises(BadSetting, match="with a day from 0 to 19, got "):
        world(CONFIG, 0, "tactics@20", 20)


@pytest.mark.parametrize("drift", ["tactics", "tactics@", "tactics@-1", "tactics@60", "weather@3", "@3", "tactics@x"])
def test_a_drift_that_does_not_exist_is_refused_with_those_that_do(drift: str) -> None:
    with pytest.raises(BadSetting, match="drift: must be tactics@DAY with a day from 0 to 59, got "):
        world(CONFIG, 0, drift)


@pytest.mark.parametrize("event_id", ["payment-99999999", "payment-x", "nothing"])
def test_a_payment_that_never_arrived_is_not_judged(event_id: str) -> None:
    card_world, heard = approved(0)
    stranger = payments(heard)[0].model_copy(update={"event_id": event_id})
    with pytest.raises(NotFound, match=event_id):
        card_world.ceiling([stranger])


def test_the_ceiling_is_calibrated() -> None:
    """By decile of expected frauds, within what campaigns, which come in bunches, allow."""
    predicted, true = [], []
    for seed in range(3):
        card_world, heard = approved(seed)
        predicted.append(card_world.ceiling(payments(heard)))
        true.append(card_world.is_fraud(payments(heard)))
    p, y = np.concatenate(predicted), np.concatenate(true)
    order = np.argsort(p)
    decile = np.minimum((np.cumsum(p[order]) / p.sum() * 10).astype(int), 9)
    for d in range(10):
        mine = order[decile == d]
        tolerance = 0.05 + 4 * np.sqrt(p[mine].mean() / len(mine))
        assert abs(p[mine].mean() - y[mine].mean()) < tolerance, (d, p[mine].mean(), y[mine].mean())
    assert abs(p.sum() - y.sum()) < 0.2 * y.sum()


def test_the_ceiling_does_not_look_ahead() -> None:
    long, heard = approved(0)
    short = world(CONFIG, 0)
    early = payments(live(short, 30, approve))
    assert early == payments(heard)[: len(early)]
    np.testing.assert_allclose(long.ceiling(early), short.ceiling(early), rtol=1e-6, atol=1e-9)


def test_the_ceiling_does_not_look_at_the_truth_but_through_labels() -> None:
    """With the hidden columns wiped out it says the same."""
    honest = world(CONFIG, 0)
    heard = payments(honest.arrivals(CONFIG.start + 30 * DAY))
    blind = world(CONFIG, 0)
    ledger = blind._ledger
    none = np.zeros(len(ledger), dtype=np.int64)
    blind._ledger = replace(ledger, scenario=none, reported_at=none - 1, inspected_at=none, campaign=ledger.campaign)
    blind.arrivals(CONFIG.start + 30 * DAY)
    np.testing.assert_array_equal(honest.ceiling(heard), blind.ceiling(heard))


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("amount", -1.0, "greater than 0"),
        ("amount", 2e6, "less than or equal to 1000000"),
        ("amount", float("nan"), "finite"),
        ("category", "yachts", "groceries"),
        ("channel", "fax", "terminal"),
        ("card_id", "", "at least 1"),
        ("card_age_days", -1.0, "greater than or equal to 0"),
        ("x_km", 1e9, "less than or equal to 10000"),
    ],
)
def test_a_bad_payment_is_refused_with_field_rule_and_value(field: str, value: object, rule: str) -> None:
    with pytest.raises(BadRecord) as error:
        from_rows(Payment, [PAYMENT | {field: value}])
    message = str(error.value)
    assert f"{field}: " in message
    assert rule in message
    assert f"got {str(value)!r}" in message
