"""What is found about a champion, each day once, against weeks in which all was well; the unknown is missing."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from common.clock import DAY, HOUR
from common.features.view import Array
from common.lifecycle.journal import Journal
from common.lifecycle.watch import Findings, Watch, Watching, predictions, scores
from common.schema import Logged
from common.serving.service import Reply
from tests.common.test_loop import START, Done, Order, Table, Verdict, shop

EACH = 120  # requests of a day
LOW, HIGH = 0.02, 0.6  # P(bad)
FIRST = 45  # days before the champion begins
BEGAN = START + FIRST * DAY
CONFIG = Watching(settle=12 * DAY)


@dataclass(frozen=True)
class Day:
    """How a day differs from a usual one."""

    features: Callable[[Array], Array] = lambda x: x
    ahead: int = 0  # us that clients' clocks are
    bad: float = 1.0  # times as many of the low scores are bad
    checked: float | None = None  # share of labels, heard whatever they say, that are positive; None: as scores say
    denied: float = 0.0  # share of labels, heard because something happened, that say it did not


class Told:
    """A journal that somebody fills day by day."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.journal = Journal(shop())
        self.days = 0
        self._labels: list[tuple[int, Verdict]] = []

    def live(self, days: int, how: Day = Day()) -> "Told":
        for _ in range(days):
            self._day(how)
        return self

    @property
    def now(self) -> int:
        return START + self.days * DAY

    def _day(self, how: Day) -> None:
        rng, start = self.rng, self.now
        at = np.sort(rng.integers(start, start + DAY, EACH)).tolist()
        x = how.features(rng.normal(5.0, 1.0, (EACH, 3)))
        score = np.where(rng.random(EACH) < 0.9, LOW, HIGH)
        bad = rng.random(EACH) < np.where(score == LOW, np.minimum(LOW * how.bad, 1), HIGH)
        orders, replies = list[Order](), list[Reply[Done]]()
        for i in range(EACH):
            name = f"{self.days}.{i}"
            user = f"u{rng.integers(200)}"
            dated = at[i] + how.ahead
            orders.append(Order(event_id=name, event_timestamp=dated, user=user, amount=1.0))
            replies.append(
                Reply(Done(action="take"), "v", "champion", 1.0, None, x[i : i + 1], (0,), score=float(score[i]))
            )
            checked = bool(rng.random() < 0.2)
            if checked or bad[i]:
                lie = checked and how.checked is not None
                value = bool(rng.random() < (how.checked or 0)) if lie else bool(bad[i])
                value = value and (checked or how.denied == 0 or bool(rng.random() >= how.denied))
                wait = HOUR if checked else int(rng.integers(HOUR, 40 * HOUR))
                label = Verdict(
                    event_id=f"v{name}", event_timestamp=dated, order=name, user=user, bad=value, checked=checked
                )
                self._labels.append((at[i] + wait, label))
        places = [Logged(position=len(self.journal) + i, created_timestamp=t) for i, t in enumerate(at, 1)]
        self.journal.ask(orders, places, replies)
        self.days += 1
        self._labels.sort(key=lambda told: (told[0], told[1].event_id))
        due = [told for told in self._labels if told[0] < self.now]
        self._labels = self._labels[len(due) :]
        self.journal.tell([v for _, v in due], [Logged(position=0, created_timestamp=t) for t, _ in due])


def watched(told: Told, config: Watching = CONFIG) -> Watch:
    rows = told.journal.rows(told.now - config.reference, told.now)
    return Watch(told.journal, told.now, "v", rows, told.journal.columns.score[rows], config)


def days(told: Told, watch: Watch, n: int, how: Day = Day(), settle: bool = True) -> list[Findings]:
    found = []
    for _ in range(n):
        told.live(1, how)
        if settle:
            watch.settle(told.now)
        found.append(watch.day(told.now))
    return found


def worst(found: Findings) -> list[tuple[str, str]]:
    return [(f.column, f.kind) for f in (*found.data, *found.labels) if f.ratio is not None and f.ratio >= 1]


def columns(found: Findings) -> list[str]:
    return [flaw.column for flaw in found.labels]


def test_a_reference_that_is_too_short_leaves_drift_and_flaws_missing_and_not_quiet() -> None:
    told = Told().live(20)
    watch = watched(told)
    broken = Day(features=lambda x: np.full_like(x, np.nan))
    assert [(f.drift, f.data) for f in days(told, watch, 8, broken)] == [({}, ())] * 8


def test_once_there_is_enough_of_the_champions_own_time_that_becomes_the_reference_with_its_scores() -> None:
    told = Told().live(20)
    watch = watched(told, replace(CONFIG, reference=36 * DAY))
    before = days(told, watch, 35)
    assert not any(f.drift or f.data for f in before)
    after = days(told, watch, 8)
    assert after[1].data
    assert {column for column, _ in after[-1].drift} == {"user.n", "size", "score", "lag"}


def test_without_a_positive_in_the_reference_surprise_is_missing_until_there_are_some() -> None:
    told = Told().live(FIRST)
    rows = told.journal.rows(told.now - CONFIG.reference, told.now)
    watch = Watch(told.journal, told.now, "v", slice(rows.stop, rows.stop), np.empty(0), CONFIG)
    found = [f.surprise for f in days(told, watch, 14)]
    assert found[:11] == [None] * 11
    assert found[-1] is not None


def test_a_quiet_world_has_nothing_above_its_threshold() -> None:
    told = Told().live(FIRST)
    watch = watched(told)
    for found in days(told, watch, 28):
        assert worst(found) == []
        assert found.surprise is not None
        assert found.surprise < 1
        assert all(ratio is None or ratio < 1 for ratio in found.drift.values())


@pytest.mark.parametrize(
    ("how", "column", "kind"),
    [
        (Day(features=lambda x: np.where([True, False, False], np.nan, x)), "user.n", "missing"),
        (Day(features=lambda x: x * [1, 1, 100]), "size", "out_of_range"),
        (Day(features=lambda x: x * [0, 1, 1]), "user.n", "constant"),
        (Day(ahead=3 * DAY), "lag", "out_of_range"),
    ],
    ids=["missing", "a hundred times", "constant", "clock"],
)
def test_a_flaw_of_the_data_is_found_at_the_end_of_its_first_day(how: Day, column: str, kind: str) -> None:
    told = Told().live(FIRST)
    watch = watched(told)
    assert [worst(found) for found in days(told, watch, 2)] == [[], []]
    (found,) = days(told, watch, 1, how)
    assert (column, kind) in worst(found)
    assert {c for c, _ in worst(found)} == {column}
    assert worst(days(told, watch, 1)[0]) == [], "and is over a day after it is mended"


def test_a_chunk_is_judged_once_when_it_is_whole_and_stands_until_the_next_one_is() -> None:
    told = Told().live(FIRST)
    watch = watched(told)
    found = days(told, watch, 6) + days(told, watch, 1)
    assert [f.drift for f in found[:6]] == [{}] * 6
    assert found[6].drift
    assert watch.day(told.now).drift is found[6].drift
    moved = Day(features=lambda x: x + [2, 0, 0])
    later = days(told, watch, 7, moved)
    assert all(f.drift is found[6].drift for f in later[:6])
    assert max(ratio or 0 for ratio in found[6].drift.values()) < 1
    assert max(ratio or 0 for (column, _), ratio in later[6].drift.items() if column == "user.n") > 1
    assert max(ratio or 0 for (column, _), ratio in later[6].drift.items() if column != "user.n") < 1


def test_what_is_usual_of_labels_is_learned_once_and_not_before_its_time() -> None:
    told = Told().live(FIRST)
    watch = watched(told)
    assert [f.labels for f in days(told, watch, 11)] == [()] * 11
    (found,) = days(told, watch, 1)
    assert "labels" in columns(found)
    usual = watch.habits
    days(told, watch, 3, Day(checked=1.0))
    assert watch.habits is usual


def test_until_then_labels_are_judged_by_what_was_usual_under_the_champion_before() -> None:
    told = Told().live(FIRST)
    before = watched(told)
    days(told, before, 12)
    rows = told.journal.rows(told.now - CONFIG.reference, told.now)
    after = Watch(told.journal, told.now, "w", rows, told.journal.columns.score[rows], CONFIG, before.habits)
    (found,) = days(told, after, 1)
    assert "labels" in columns(found)
    assert after.habits is before.habits
    days(told, after, 11)
    assert after.habits is not before.habits


def test_where_something_is_wrong_nobody_settles_and_labels_stay_missing() -> None:
    told = Told().live(FIRST)
    watch = watched(told)
    assert [f.labels for f in days(told, watch, 14, settle=False)] == [()] * 14


def test_positives_where_the_scores_expected_none_are_a_surprise() -> None:
    told = Told().live(FIRST)
    watch = watched(told)
    found = [f.surprise or 0.0 for f in days(told, watch, 10, Day(bad=8))]
    assert found[-1] > 1
    delay = told.journal.system.early_delay // DAY
    assert max(found[:delay]) == 0, "nothing is old enough"


def test_a_surprise_is_of_requests_that_are_old_enough_alone() -> None:
    """What was told of younger ones makes no difference yet: not all that will be told of them early has been."""
    delay = shop().early_delay // DAY
    calm, stormy = Told().live(FIRST), Told().live(FIRST)
    here, there = watched(calm), watched(stormy)
    same = [f.surprise for f in days(calm, here, 5)]
    assert [f.surprise for f in days(stormy, there, 5)] == same
    after = [f.surprise for f in days(calm, here, delay + 3, Day(bad=1))]
    wild = [f.surprise for f in days(stormy, there, delay + 3, Day(bad=30))]
    assert wild[: delay - 1] == after[: delay - 1]
    assert wild[-1] != after[-1]


def test_what_is_expected_is_fitted_on_requests_whose_labels_had_time_to_come() -> None:
    delay = shop().early_delay // DAY
    calm, silent = Told().live(FIRST), Told().live(FIRST - delay).live(delay, Day(bad=0))
    fitted = [watched(told)._below for told in (calm, silent)]
    assert fitted[0]
    assert fitted[0] == fitted[1]


def test_labels_at_random_are_known_by_those_that_come_whatever_they_say() -> None:
    told = Told().live(FIRST)
    watch = watched(told)
    days(told, watch, 13)
    found = days(told, watch, 6, Day(checked=0.5))
    assert ("surplus", "random") in worst(found[-1])
    assert ("surplus", "random") not in worst(found[0])


def test_a_model_says_of_the_past_what_it_would_have_said() -> None:
    told = Told().live(3)
    model = Table((0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7))
    rows = told.journal.rows(START + DAY, START + 2 * DAY)
    assert (
        scores(told.journal, predictions(told.journal, model, rows)).tolist()
        == model.probability(told.journal.x[rows]).tolist()
    )


def test_labels_at_random_are_known_by_those_that_deny_what_they_came_for() -> None:
    told = Told().live(FIRST)
    watch = watched(told)
    assert not any(("denied", "random") in worst(f) for f in days(told, watch, 14))
    found = days(told, watch, 14, Day(denied=0.6))
    assert ("denied", "random") in worst(found[-1])
    assert ("denied", "random") not in worst(found[0])


def test_where_many_labels_denied_what_they_came_for_before_as_many_are_usual() -> None:
    often = Day(denied=0.4)
    told = Told().live(FIRST, often)
    watch = watched(told)
    assert not any(("denied", "random") in worst(found) for found in days(told, watch, 28, often))


def test_labels_that_are_surely_random_are_said_to_be_before_it_is_known_how_labels_come() -> None:
    told = Told().live(FIRST)
    found = days(told, watched(told), 11, Day(denied=0.9))
    assert found[0].labels == ()
    assert worst(found[-1]) == [("denied", "random")]


def test_how_labels_come_is_learned_in_a_drift_and_what_columns_are_like_is_not() -> None:
    told = Told().live(FIRST)
    watch = watched(told)
    for _ in range(43):
        told.live(1)
        watch.settle(told.now, is_drifting=True)
    assert watch.habits is not None
    assert not watch._has_scores


def test_habits_that_could_not_be_learned_are_learned_as_soon_as_they_can() -> None:
    told = Told().live(FIRST)
    watch = watched(told, replace(CONFIG, settle=3 * DAY))
    days(told, watch, 3)
    assert watch.habits is None
    days(told, watch, 9)
    assert watch.habits is not None


def test_a_small_surplus_that_lasts_is_found_though_the_detector_forgets() -> None:
    told = Told().live(FIRST)
    watch = watched(told)
    assert max(f.surprise or 0 for f in days(told, watch, 60, Day(bad=2.2))) > 1
