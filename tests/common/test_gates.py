import math
from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import BadDefinition, GateFailed
from common.registry.gates import Gate, Verdict, require

HIGHER = Gate("auc", 0.8, better="higher")
LOWER = Gate("rmse", 2.0, better="lower")
BEATS_RULE = Gate("auc", 1.05, better="higher", against="rule")
NO_WORSE = Gate("rmse", 1.02, better="lower", against="champion")
positive = st.floats(1e-6, 1e6)
better: st.SearchStrategy[Literal["higher", "lower"]] = st.sampled_from(["higher", "lower"])


@pytest.mark.parametrize(
    ("gate", "value", "passed"),
    [(HIGHER, 0.8, True), (HIGHER, 0.7999, False), (LOWER, 2.0, True), (LOWER, 2.0001, False)],
)
def test_an_absolute_gate_is_cleared_at_its_limit(gate: Gate, value: float, passed: bool) -> None:
    verdict = gate.check({gate.metric: value}, {})
    assert (verdict.passed, verdict.value, verdict.bound) == (passed, value, gate.limit)


@given(positive, positive, st.floats(0.5, 2.0), better)
def test_a_relative_gate_is_a_multiple_of_a_positive_number(
    value: float, other: float, limit: float, better: Literal["higher", "lower"]
) -> None:
    verdict = Gate("m", limit, better=better, against="rule").check({"m": value}, {"rule": {"m": other}})
    assert verdict.bound is not None
    assert verdict.bound == pytest.approx(limit * other)
    assert verdict.passed == (value >= verdict.bound if better == "higher" else value <= verdict.bound)


@given(st.floats(-1e6, 1e6), st.floats(0, 0.99))
def test_a_gate_that_asks_for_more_than_a_baseline_never_passes_less(other: float, more: float) -> None:
    others = {"rule": {"m": other}}
    higher = Gate("m", 1 + more, better="higher", against="rule").check({"m": other - 1e-6 - abs(other) * 1e-9}, others)
    lower = Gate("m", 1 - more, better="lower", against="rule").check({"m": other + 1e-6 + abs(other) * 1e-9}, others)
    assert not higher.passed
    assert not lower.passed


@pytest.mark.parametrize(
    ("limit", "other", "value", "passed"),
    [
        (1.05, -10.0, -9.5, True),  # 5 % of its size better, not 5 % more of a loss
        (1.05, -10.0, -10.5, False),
        (0.95, -10.0, -10.5, True),  # may be 5 % worse
        (0.95, -10.0, -10.6, False),
        (1.05, 0.0, 0.0, False),  # as bad as a baseline that scores nothing
        (1.05, 0.0, 0.001, True),
        (1.0, 0.0, 0.0, True),
        (0.95, 0.0, 0.0, True),
    ],
)
def test_a_margin_on_a_baseline_of_zero_or_less_is_a_share_of_its_size(
    limit: float, other: float, value: float, passed: bool
) -> None:
    gate = Gate("profit", limit, better="higher", against="rule")
    assert gate.check({"profit": value}, {"rule": {"profit": other}}).passed is passed


@pytest.mark.parametrize("metrics", [{}, {"auc": math.nan}, {"auc": math.inf}])
@pytest.mark.parametrize("gate", [HIGHER, BEATS_RULE, Gate("auc", 1.0, better="higher", against="champion")])
def test_a_metric_that_is_missing_or_not_finite_fails(gate: Gate, metrics: dict[str, float]) -> None:
    verdict = gate.check(metrics, {"rule": {"auc": 0.5}})
    assert (verdict.passed, verdict.value) == (False, None)


@pytest.mark.parametrize("others", [{}, {"rule": {}}, {"rule": {"auc": math.nan}}])
def test_a_baseline_that_is_missing_fails(others: dict[str, dict[str, float]]) -> None:
    verdict = BEATS_RULE.check({"auc": 0.9}, others)
    assert (verdict.passed, verdict.bound) == (False, None)
    assert verdict.message == "auc: rule has no such number to beat"


def test_the_first_candidate_has_no_champion_to_beat() -> None:
    assert NO_WORSE.check({"rmse": 9.0}, {}).passed
    assert not NO_WORSE.check({"rmse": 9.0}, {"champion": {"rmse": 8.0}}).passed
    assert not NO_WORSE.check({"rmse": 9.0}, {"champion": {}}).passed


def test_all_that_failed_is_named_with_value_and_bound() -> None:
    with pytest.raises(GateFailed) as caught:
        require([HIGHER, LOWER, BEATS_RULE], {"auc": 0.7, "rmse": 1.0}, {"rule": {"auc": 0.75}})
    assert str(caught.value) == (
        "auc: must be >= 0.8, got 0.7; auc: must be >= 0.7875, from 1.05 x rule (0.75), got 0.7"
    )


def test_what_cleared_all_gates_gets_their_verdicts() -> None:
    assert require([LOWER], {"rmse": 1.0}, {}) == (Verdict(LOWER, True, 1.0, 2.0, "rmse: must be <= 2, got 1"),)


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (lambda: Gate("m", math.nan, better="lower"), "gate m: limit: must be finite, got nan"),
        (lambda: Gate("m", 0.0, better="lower", against="rule"), "gate m: limit: must be a multiple > 0, got 0"),
        (lambda: Gate("m", 1.0, better="up"), "gate m: better: must be higher or lower, got 'up'"),  # type: ignore[arg-type]
    ],
)
def test_a_gate_that_cannot_work_is_refused(gate: Callable[[], Gate], message: str) -> None:
    with pytest.raises(BadDefinition, match=message):
        gate()


def test_a_gate_that_needs_a_ceiling_is_not_asked_where_there_is_none() -> None:
    gate = Gate("above_ceiling", 0.0, better="lower", needs_ceiling=True)
    assert not gate.check({}, {}).passed  # in a world, a missing number is a failure as everywhere
    assert gate.unasked() == Verdict(gate, True, None, None, "above_ceiling: not asked; no ceiling: not a world")
