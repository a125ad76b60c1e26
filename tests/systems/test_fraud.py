"""The fraud system's own promises: what an answer costs, when it is let through, why it was given."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.clock import DAY
from common.errors import BadRecord, BadSetting
from common.features.view import feature_names
from common.registry.gates import CHAMPION
from common.schema import to_table
from common.system import Examples, Rows
from systems.fraud import evaluation, model, serving
from systems.fraud.config import SMALL
from systems.fraud.data import Decision, Payment
from systems.fraud.features import ON_DEMAND, VIEWS, reason
from systems.fraud.model import Scored

PAYMENT = Payment(
    event_id="p", event_timestamp=0, card_id="c", device_id="d", merchant_id="m", terminal_id="t",
    category="fuel", channel="terminal", amount=50.0, x_km=0.0, y_km=0.0, card_age_days=10.0,
)  # fmt: skip


def payment(**said: object) -> Payment:
    return PAYMENT.model_copy(update=said)


def scored(probability: float, price: float = 0.0) -> Scored:
    return Scored(probability, price, ())


@given(st.floats(1e-6, 1 - 1e-6), st.floats(0.01, 1e5), st.floats(0, 100))
def test_the_action_is_the_cheapest_of_the_three(p: float, amount: float, price: float) -> None:
    approve, review, block = model.costs(SMALL, p, amount)
    chosen = model.best_action(SMALL, np.array([p]), np.array([amount]), price)[0]
    assert (approve, review + price, block)[chosen] == min(approve, review + price, block)


def test_a_certain_fraud_is_blocked_an_unlikely_one_approved_and_doubt_is_looked_into() -> None:
    config = replace(SMALL, let_through=0.0)
    assert serving.decide(config, payment(amount=500.0), scored(0.9), 0.5).action == "block"
    assert serving.decide(config, payment(amount=20.0), scored(1e-4), 0.5).action == "approve"
    assert serving.decide(config, payment(amount=200.0), scored(0.3), 0.5).action == "review"


def test_a_dear_review_makes_room_for_those_that_need_it_more() -> None:
    assert serving.decide(SMALL, payment(amount=200.0), scored(0.03, price=0.0), 0.5).action == "review"
    assert serving.decide(SMALL, payment(amount=200.0), scored(0.03, price=50.0), 0.5).action == "approve"


def test_of_what_would_be_blocked_the_stated_share_is_let_through_and_says_so() -> None:
    config = replace(SMALL, let_through=0.05)
    lucky, unlucky = (serving.decide(config, payment(amount=500.0), scored(0.99), luck) for luck in (0.0499, 0.05))
    assert (lucky.action, lucky.propensity) == ("approve", 0.05)
    assert (unlucky.action, unlucky.propensity) == ("block", 0.95)
    assert serving.rule(config, payment(amount=500.0), 0.0499).propensity == 0.05


def test_every_feature_has_a_reason_code() -> None:
    assert all(reason(name) for name in feature_names(VIEWS, ON_DEMAND))


def test_the_price_of_a_review_lets_in_just_what_the_analysts_can_look_at() -> None:
    rng = np.random.default_rng(0)
    p, amount = rng.beta(0.2, 5, 10_000), rng.lognormal(4, 1, 10_000)
    price = model.review_price(SMALL, p, amount, days=30)
    wanted = (model.best_action(SMALL, p, amount, price) == 1).sum()
    assert price > 0
    assert 0.98 * 30 * SMALL.reviews_per_day <= wanted <= 30 * SMALL.reviews_per_day + 1


def judged(fraud: list[float], amount: list[float] | None = None, day: list[int] | None = None) -> evaluation.Judged:
    n = len(fraud)
    return evaluation.Judged(
        np.array([f"c{i}" for i in range(n)], object), np.array(amount or [100.0] * n),
        np.array(day or [0] * n), np.array(fraud), np.ones(n),
    )  # fmt: skip


def test_the_truth_prices_each_action() -> None:
    config = replace(SMALL, let_through=0.0)
    got = evaluation.spent(config, judged([1, 1, 1, 0, 0, 0]), np.array([0, 1, 2, 0, 1, 2]))
    assert got.tolist() == [100 + SMALL.chargeback_fee, SMALL.review_cost, 0, 0, SMALL.review_cost, SMALL.friction_cost]


def test_analysts_look_at_no_more_than_they_can_in_a_day() -> None:
    n = SMALL.reviews_per_day + 5
    both = judged([0.0] * 2 * n, day=[0] * n + [1] * n)
    action = evaluation.within_budget(SMALL, both, np.full(2 * n, 0.03), np.ones(2 * n, np.int64))
    assert (action[:n] == 1).sum() == (action[n:] == 1).sum() == SMALL.reviews_per_day
    assert (action[SMALL.reviews_per_day : n] == 0).all()  # cheaper than blocking at 3 %


def test_a_perfectly_stated_probability_has_no_calibration_error_and_a_doubled_one_has() -> None:
    fraud = ([1.0] + [0.0] * 99) * 100
    assert evaluation.calibration_error(judged(fraud), np.full(10_000, 0.01)) == pytest.approx(0, abs=2e-3)
    assert evaluation.calibration_error(judged(fraud), np.full(10_000, 0.02)) == pytest.approx(0.01, abs=2e-3)


def test_a_model_that_knows_the_answers_is_above_any_ceiling_and_an_honest_one_is_not() -> None:
    rng = np.random.default_rng(0)
    best = rng.beta(0.3, 3, 2_000)
    fraud = (rng.uniform(size=2_000) < best).astype(float)
    assert evaluation.above(judged(fraud.tolist()), fraud, best) > 0
    assert evaluation.above(judged(fraud.tolist()), best + rng.normal(0, 0.05, 2_000), best) < 0


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("amount", "-5", "greater than 0"),
        ("amount", "NaN", "finite number"),
        ("amount", '"50"', "valid number"),
        ("category", '"boats"', "'groceries'"),
        ("card_id", '""', "at least 1 character"),
        ("iban", '"x"', "not permitted"),
    ],
)
def test_a_bad_payment_is_refused_with_field_rule_and_value(field: str, value: str, rule: str) -> None:
    fields = {k: f'"{v}"' if isinstance(v, str) else str(v) for k, v in PAYMENT.model_dump().items()} | {field: value}
    body = "{" + ", ".join(f'"{k}": {v}' for k, v in fields.items()) + "}"
    with pytest.raises(BadRecord) as refused:
        Payment.parse(body)
    message = str(refused.value)
    assert field in message
    assert rule in message
    assert value.strip('"') in message.replace("nan", "NaN")


def decision(action: str, propensity: float = 1.0) -> Decision:
    return Decision.model_validate({"action": action, "probability": 0.5, "propensity": propensity})


def test_each_decision_costs_what_its_outcome_makes_of_it_and_the_least_is_the_cheapest() -> None:
    config = replace(SMALL, let_through=0.0)
    paid, least = serving.losses(
        config, [payment(amount=100.0)] * 6, [decision(a) for a in ("approve", "review", "block") * 2],
        np.array([1.0, 1, 1, 0, 0, 0]),
    )  # fmt: skip
    fee, review, friction = SMALL.chargeback_fee, SMALL.review_cost, SMALL.friction_cost
    assert paid.tolist() == [100 + fee, review, 0, 0, review, friction]
    assert least.tolist() == [0.0] * 6


def test_a_payment_that_was_let_through_counts_as_the_block_that_it_would_have_been() -> None:
    q = SMALL.let_through
    answers = [decision("block", 1 - q), decision("approve", q), decision("approve")]
    paid, _ = serving.losses(SMALL, [payment(amount=100.0)] * 3, answers, np.ones(3))
    assert paid[0] == paid[1] == pytest.approx(q * (100 + SMALL.chargeback_fee))
    assert paid[2] == 100 + SMALL.chargeback_fee


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(1, 1e4), st.sampled_from(["approve", "review", "block"])), max_size=30
    )
)
def test_no_decision_costs_less_than_the_least(made: list[tuple[float, float, str]]) -> None:
    paid, least = serving.losses(
        SMALL, [payment(amount=amount) for _, amount, _ in made],
        [decision(action, 1 - SMALL.let_through if action == "block" else 1.0) for *_, action in made],
        np.array([p for p, *_ in made]),
    )  # fmt: skip
    assert len(paid) == len(least) == len(made)
    assert (least >= 0).all()
    assert (paid >= least - 1e-9).all()


def test_who_asks_for_more_reviews_than_there_are_pays_for_their_places() -> None:
    n = 20 * SMALL.reviews_per_day
    payments = [payment(amount=300.0, event_timestamp=i * DAY // n) for i in range(n)]
    paid, _ = serving.losses(SMALL, payments, [decision("review")] * n, np.full(n, 0.03))
    assert (paid > SMALL.review_cost).all()


def test_a_model_that_is_made_in_a_hurry_is_asked_to_beat_the_champion_and_not_to_be_broken() -> None:
    gates = evaluation.retrain_gates(SMALL)
    good = {"cost_per_1000": 90.0, "average_precision": 0.5, "calibration_error": 0.001, "reviews_wanted_per_day": 5.0}
    champion = {CHAMPION: {"cost_per_1000": 100.0, "average_precision": 0.4}}
    assert all(gate.check(good, champion).passed for gate in gates)
    for worse in (
        {"cost_per_1000": 101.0}, {"average_precision": 0.39}, {"calibration_error": 0.1},
        {"reviews_wanted_per_day": 100.0}, {"average_precision": float("nan")},
    ):  # fmt: skip
        verdicts = [gate.check({**good, **worse}, champion) for gate in gates]
        assert [v.gate.metric for v in verdicts if not v.passed] == list(worse)
    assert all(not gate.needs_ceiling and gate.against in (None, CHAMPION) for gate in gates)


def learnable(days: int, newest: float = 0.0) -> Examples[Payment]:
    """Fraud where the only feature is high; on the newest two days where it is `newest`, if that is given."""
    rng, each = np.random.default_rng(0), 200
    as_of = np.sort(rng.integers(0, days * DAY, days * each))
    x = rng.uniform(0, 1, (len(as_of), 1))
    y = (x[:, 0] > 0.95).astype(float)
    if newest:
        late = as_of >= (days - 2) * DAY
        y[late] = (np.abs(x[late, 0] - newest) < 0.1).astype(float)
    payments = [payment(event_id=f"p{i}") for i in range(len(as_of))]
    rows = Rows(to_table(Payment, payments), np.arange(len(as_of) + 1))
    return Examples(payments, rows, x, ("card.count_1d",), as_of, y, np.ones(len(as_of)))


def test_days_all_over_the_span_are_held_out_so_that_the_trees_see_the_newest_ones() -> None:
    made = model.fit(
        replace(SMALL, trees=200), learnable(21, newest=0.3), {"min_data_in_leaf": 5, "learning_rate": 0.2}
    )
    p = made.probability(np.array([[0.3], [0.6]]))
    assert p[0] > 5 * p[1], "it is of the last two days only"


def test_what_is_held_out_stops_and_calibrates_and_teaches_the_trees_nothing() -> None:
    known = learnable(20)
    held = known.as_of // DAY % model.HELD_OUT == model.HELD_OUT - 1
    wild = replace(known, x=np.where(held[:, None], known.x + 1_000, known.x))
    same, other = (model.fit(replace(SMALL, trees=1), e, {"min_data_in_leaf": 5}) for e in (known, wild))
    trees = [m.booster.model_to_string().split("feature_infos")[1].split("parameters")[0] for m in (same, other)]
    assert trees[0] == trees[1]


@pytest.mark.parametrize("which", [True, False], ids=["held out", "learned from"])
def test_a_span_without_a_fraud_in_both_of_its_parts_is_refused(which: bool) -> None:
    known = learnable(20)
    held = known.as_of // DAY % model.HELD_OUT == model.HELD_OUT - 1
    with pytest.raises(BadSetting, match="train: must have frauds and honest payments in both of its parts"):
        model.fit(SMALL, replace(known, labels=np.where(held == which, 0.0, known.labels)), {})
