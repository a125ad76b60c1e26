"""The fraud system's own promises: what an answer costs, when it is let through, why it was given."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import BadRecord
from common.features.view import feature_names
from systems.fraud import evaluation, model, serving
from systems.fraud.config import SMALL
from systems.fraud.data import Payment
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
