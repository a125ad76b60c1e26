import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.clock import DAY, HOUR, MINUTE
from common.errors import BadData, BadDefinition
from common.monitoring.objectives import FACTOR, Objective, Sample, increase

AVAILABLE = Objective("availability", 0.999)
EVERY = MINUTE  # us between samples
PER_SAMPLE = 1_000  # requests


def samples(*shares: float) -> list[Sample]:
    """One a minute from 0 on; between two of them 1,000 requests, of which these shares are bad."""
    out = [Sample(0, 0.0, 0.0)]
    for share in shares:
        last = out[-1]
        out.append(Sample(last.at + EVERY, last.bad + share * PER_SAMPLE, last.total + PER_SAMPLE))
    return out


def test_errors_at_the_allowed_rate_burn_at_one() -> None:
    assert AVAILABLE.burn(1, 1_000) == pytest.approx(1)
    assert Objective("latency", 0.99).burn(30, 1_000) == pytest.approx(3)
    assert AVAILABLE.burn(0, 10) == 0


def test_no_traffic_is_missing_and_not_quiet() -> None:
    assert AVAILABLE.burn(0, 0) is None
    silent = [Sample(i * EVERY, 5.0, 10.0) for i in range(90)]
    judged = AVAILABLE.judge(silent, 89 * EVERY)
    assert set(judged.rates.values()) == {None}
    assert judged.alarms is None
    assert AVAILABLE.judge([], 0).alarms is None


def test_one_sample_in_the_window_says_nothing() -> None:
    assert increase(samples(0.1, 0.1), EVERY, 2 * EVERY) is None
    assert increase(samples(0.1, 0.1), 0, 2 * EVERY) == pytest.approx((100, 1_000))


def test_the_window_excludes_its_start_and_includes_its_end() -> None:
    counted = samples(1.0, 0.0, 0.0, 1.0)
    assert increase(counted, -1, 4 * EVERY) == (2_000, 4_000)
    assert increase(counted, 0, 4 * EVERY) == (1_000, 3_000)
    assert increase(counted, -1, 4 * EVERY - 1) == (1_000, 3_000)


def test_an_outage_alarms_once_it_weighs_on_the_hour_and_ends_soon_after_its_cause() -> None:
    quiet, outage = [0.0] * 90, [0.5] * 20
    counted = samples(*quiet, *outage, *quiet)
    alarms = [minute for minute in range(70, 200) if AVAILABLE.judge(counted, minute * EVERY).alarms]
    # 14.4 x 0.1 % of the hour's 59 intervals are 0.85 of an interval; of half errors that takes two
    assert alarms[0] == 92
    # errors of at least one of the four intervals in the last five minutes
    assert alarms == list(range(92, 90 + 20 + 4))


def test_a_blip_alarms_over_five_minutes_only() -> None:
    judged = AVAILABLE.judge(samples(*[0.0] * 88, 0.1, 0.1), 90 * EVERY)
    assert judged.rates[5 * MINUTE] == pytest.approx(50)
    assert judged.rates[HOUR] == pytest.approx(0.2 / 59 / 0.001)
    assert judged.alarms is False


def test_what_is_over_alarms_over_the_hour_only() -> None:
    judged = AVAILABLE.judge(samples(*[0.1] * 30, *[0.0] * 30), 60 * EVERY)
    assert (judged.rates[HOUR] or 0) > FACTOR
    assert judged.rates[5 * MINUTE] == 0
    assert judged.alarms is False


def test_a_service_that_fell_silent_is_missing_even_if_its_hour_was_good() -> None:
    judged = AVAILABLE.judge(samples(*[0.0] * 50), 60 * EVERY)
    assert judged.rates == {HOUR: 0, 5 * MINUTE: None}
    assert judged.alarms is None


def test_the_limit_itself_does_not_alarm() -> None:
    half = Objective("coin", 0.5)  # 14.4 x 0.5 cannot be reached
    assert half.judge(samples(*[1.0] * 70), 70 * EVERY).alarms is False


def test_a_counter_that_fell_has_grown_by_what_it_shows() -> None:
    restarted = [Sample(1, 10, 100), Sample(2, 12, 150), Sample(3, 1, 20), Sample(4, 4, 30)]
    assert increase(restarted, 0, 4) == (2 + 1 + 3, 50 + 20 + 10)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.booleans()), min_size=1, max_size=30),
    st.integers(0, 1_000),
)
def test_restarts_lose_only_what_was_counted_before_the_next_sample(
    steps: list[tuple[int, int, bool]], before: int
) -> None:
    """Each step: bad and good ones since the last sample; whether it restarts right after that sample."""
    counted, bad, total = [Sample(0, before, 2 * before)], before, 2 * before
    truth = [0, 0]
    for i, (worse, fine, restarts) in enumerate(steps, start=1):
        if restarts and worse < bad and worse + fine < total:  # else nobody can see that it did
            bad = total = 0
        bad, total = bad + worse, total + worse + fine
        truth = [truth[0] + worse, truth[1] + worse + fine]
        counted.append(Sample(i, bad, total))
    assert increase(counted, -1, len(steps)) == tuple(truth)


def test_the_budget_that_is_left_shrinks_with_errors_and_can_be_overspent() -> None:
    assert AVAILABLE.left(samples(0.0, 0.001, 0.0, 0.0, 0.0), 5 * EVERY) == pytest.approx(1 - 1 / 5)
    assert AVAILABLE.left(samples(0.0, 0.1, 0.1), 3 * EVERY) == pytest.approx(1 - 200 / 3)
    assert AVAILABLE.left([], DAY) is None


def test_the_factor_spends_two_percent_of_a_month_in_an_hour() -> None:
    assert pytest.approx(0.02) == FACTOR * HOUR / (30 * DAY)


@pytest.mark.parametrize("target", [0.0, 1.0, 99.9, math.nan])
def test_a_target_is_a_share_that_can_be_missed(target: float) -> None:
    with pytest.raises(BadDefinition, match="target: must be above 0 and below 1"):
        Objective("availability", target)


@pytest.mark.parametrize(("bad", "total"), [(2, 1), (-1, 1), (math.nan, 1), (1, math.inf)])
def test_bad_is_a_part_of_the_total(bad: float, total: float) -> None:
    with pytest.raises(BadData, match="bad must be from 0 to total"):
        AVAILABLE.burn(bad, total)


def test_counters_read_a_moment_apart_do_not_stop_the_evaluation() -> None:
    assert AVAILABLE.over([Sample(1, 0, 0), Sample(2, 11, 10)], 2, 5) == pytest.approx(1_000)


def test_samples_are_counters_in_order_of_time() -> None:
    with pytest.raises(BadData, match="at must not run backwards"):
        AVAILABLE.judge([Sample(2, 0, 1), Sample(1, 0, 2)], 3)
    with pytest.raises(BadData, match="counts must be >= 0"):
        AVAILABLE.judge([Sample(1, math.nan, 1), Sample(2, 0, 2)], 3)
