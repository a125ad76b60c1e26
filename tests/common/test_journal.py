"""What a loop learns from: each label as it was known, in time, once; and the same as training finds in the log."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.clock import DAY, HOUR
from common.data.snapshots import Snapshots
from common.errors import NotFound
from common.lifecycle import training
from common.lifecycle.journal import NEVER, Journal
from common.lifecycle.parity import rescored
from common.lifecycle.simulation import Simulation
from common.schema import Logged
from common.serving.service import NOTHING, Reply
from tests.common.test_loop import START, Done, Order, Table, Verdict, lived, served, shop

FEATURES = np.array([[1.0, 2.0, 3.0]])


def order(name: str, at: int, user: str = "ann") -> Order:
    return Order(event_id=name, event_timestamp=at, user=user, amount=4.0)


def verdict(name: str, at: int, bad: bool, dated: int = 0, checked: bool = False) -> Verdict:
    return Verdict(event_id=f"{name} {at}", event_timestamp=dated, order=name, user="ann", bad=bad, checked=checked)


def reply(action: str = "take", **said: Any) -> Reply[Done]:
    propensity = said.pop("propensity", 1.0)
    answer = Done.model_validate({"action": action, "propensity": propensity})
    return replace(Reply(answer, "v", "champion", 1.0, None, FEATURES, (0,), score=0.5), **said)


def journal(
    asked: Sequence[tuple[Order, Reply[Done]]], labels: Sequence[tuple[int, Verdict]] = (), **of: Any
) -> Journal:
    """Requests that were logged as they happened, then labels with when they were heard."""
    made = Journal(shop(**of))
    for place, (request, said) in enumerate(asked, 1):
        made.ask([request], [Logged(position=place, created_timestamp=request.event_timestamp)], [said])
    for place, (at, label) in enumerate(labels, len(asked) + 1):
        made.tell([label], [Logged(position=place, created_timestamp=at)])
    return made


def test_silence_speaks_once_the_delay_is_over_and_not_before() -> None:
    made = journal([(order("a", DAY), reply())])
    assert made.labels(3 * DAY - 1, 2 * DAY)[0].tolist() == pytest.approx([np.nan], nan_ok=True)
    labels, weights = made.labels(3 * DAY, 2 * DAY)
    assert (labels.tolist(), weights.tolist()) == ([0.0], [1.0])


def test_where_silence_says_nothing_a_request_stays_unknown() -> None:
    quiet = replace(shop().outcome, silence=None)
    labels, weights = journal([(order("a", DAY), reply())], outcome=quiet).labels(9 * DAY, 2 * DAY)
    assert np.isnan(labels).all()
    assert weights.tolist() == [0]


def test_a_label_that_comes_early_counts_when_the_delay_is_over_as_all_others_do() -> None:
    made = journal([(order("a", DAY), reply())], [(DAY + HOUR, verdict("a", DAY, True))])
    assert np.isnan(made.labels(2 * DAY, 2 * DAY)[0]).all()
    assert made.labels(3 * DAY, 2 * DAY)[0].tolist() == [1.0]


def test_of_several_labels_the_last_word_within_the_label_delay_counts() -> None:
    said = [(2 * DAY, verdict("a", 1, True)), (3 * DAY, verdict("a", 2, False)), (6 * DAY + 1, verdict("a", 3, True))]
    for n, label in ((1, 1.0), (2, 0.0), (3, 0.0)):  # the third one is a microsecond too late
        made = journal([(order("a", DAY), reply())], said[:n])
        assert made.labels(20 * DAY, 5 * DAY)[0].tolist() == [label]
        assert len(made.heard) == n
    in_time = journal([(order("a", DAY), reply())], [(6 * DAY, verdict("a", 3, True))])
    assert in_time.labels(20 * DAY, 5 * DAY)[0].tolist() == [1.0]


def test_a_label_that_was_not_yet_heard_is_not_known() -> None:
    made = journal([(order("a", DAY), reply())], [(5 * DAY, verdict("a", 1, True))])
    assert made.labels(4 * DAY, 2 * DAY)[0].tolist() == [0.0]
    assert made.labels(5 * DAY, 2 * DAY)[0].tolist() == [1.0]


def test_what_an_answer_hides_is_unknown_and_what_is_rarely_seen_weighs_more() -> None:
    asked = [(order("a", DAY), reply("stop", propensity=0.75)), (order("b", DAY), reply(propensity=0.25))]
    labels, weights = journal(asked, [(2 * DAY, verdict("a", 1, True))]).labels(9 * DAY, 2 * DAY)
    np.testing.assert_array_equal(labels, [np.nan, 0.0])
    assert weights.tolist() == [0.0, 4.0]


def test_a_label_about_nothing_that_was_asked_is_heard_and_labels_nothing() -> None:
    made = journal([(order("a", DAY), reply())], [(2 * DAY, verdict("stranger", 1, True))])
    assert made.labels(9 * DAY, 2 * DAY)[0].tolist() == [0.0]
    assert [label.row for label in made.heard] == [-1]


def test_labels_are_heard_from_a_time_on_and_before_another() -> None:
    said = [(at, verdict("a", at, True, dated=7, checked=at == 2)) for at in (1, 2, 2, 3)]
    made = journal(
        [(order("a", 0), reply())], [(at, v.model_copy(update={"event_id": str(i)})) for i, (at, v) in enumerate(said)]
    )
    assert [label.at for label in made.heard_between(2, 3)] == [2, 2]
    assert [label.at for label in made.heard_between(0, 9)] == [1, 2, 2, 3]
    assert [(label.dated, label.is_even) for label in made.heard_between(2, 9)] == [(7, True), (7, True), (7, False)]


def test_the_spans_in_which_something_was_wrong_count_nothing() -> None:
    made = journal([(order(str(day), day * DAY), reply()) for day in range(1, 6)])
    known = made.examples(20 * DAY, DAY, [(2 * DAY, 3 * DAY), (4 * DAY, 5 * DAY)])
    np.testing.assert_array_equal(known.labels, [0, np.nan, 0, np.nan, 0])
    assert known.weights.tolist() == [1, 0, 1, 0, 1]
    assert len(known.requests) == len(known.rows.columns) == len(known.x) == 5


def test_a_request_that_was_answered_without_features_has_unknown_ones_and_no_score() -> None:
    made = journal([(order("a", DAY), reply(features=NOTHING, score=None, fault="failed", routed="w", took=7))])
    assert np.isnan(made.x).all()
    c = made.columns
    assert (c.version[0], c.routed[0], c.fault[0], c.took[0]) == ("v", "w", 1, 7)
    assert np.isnan(c.score[0])


def test_features_that_are_computed_later_take_the_place_of_those_that_were_missing() -> None:
    made = journal([(order("a", DAY), reply(features=NOTHING)), (order("b", DAY), reply(features=NOTHING))])
    made.fill(replace(made.examples(9 * DAY, DAY), x=np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])))
    made.ask([order("c", 2 * DAY)], [Logged(position=9, created_timestamp=2 * DAY)], [reply()])
    assert made.x[:, 0].tolist() == [1, 4, 1]
    assert made.columns.watched.tolist() == [[1, 3], [4, 6], [1, 3]]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=50, deadline=None)
def test_rows_of_a_span_are_those_that_were_logged_in_it(days: list[int], start: int, length: int) -> None:
    made = journal([(order(str(i), day), reply()) for i, day in enumerate(sorted(days))])
    found = made.rows(start, start + length)
    assert made.columns.as_of[found].tolist() == [day for day in sorted(days) if start <= day < start + length]
    assert [request.event_id for request in made.requests(found)] == [str(i) for i in range(len(days))][found]


# Beside the log


@dataclass(frozen=True)
class Kept:
    simulation: Simulation
    snapshot: training.Snapshot
    offline: Any  # examples


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """A week in which a model answers, and a bit, so that time does not stand at the last event."""
    folder = tmp_path_factory.mktemp("kept")
    with lived(folder, days=8) as made:
        served(made, 7)
        snapshot = training.take(made.system, made.log, Snapshots(folder / "again"))
        yield Kept(made, snapshot, training.examples(made.system, snapshot))


def test_labels_and_weights_are_those_that_training_finds_in_the_log(kept: Kept) -> None:
    made = kept.simulation
    known = made.journal.examples(kept.snapshot.at, made.system.label_delay)
    assert known.requests[5] == kept.offline.requests[5]
    np.testing.assert_array_equal(known.as_of, kept.offline.as_of)
    np.testing.assert_array_equal(known.labels, kept.offline.labels)
    np.testing.assert_allclose(known.weights, kept.offline.weights, rtol=1e-12)
    assert 0 < np.nansum(known.labels) < len(known)
    assert np.isnan(known.labels).sum() > 0
    assert known.names == kept.offline.names
    assert known.rows.columns.equals(kept.offline.rows.columns)


def test_the_features_of_what_was_answered_are_those_of_the_log_positions_that_it_saw(kept: Kept) -> None:
    made, journal = kept.simulation, kept.simulation.journal
    rows = journal.rows(made.start, made.clock.now())
    asked = journal.table.slice(rows.start, rows.stop - rows.start)

    class Seen(Table):
        """Says each feature in turn, so that all are compared."""

        def predict(self, requests: Any, rows: Any, x: Any) -> Any:
            return x[:, self.chances[0]].tolist()  # type: ignore[call-overload]

    events = {Order: made.log.read(Order)}
    for column in range(len(journal.names)):
        again = rescored(made.system, Seen((column,)), asked, journal.positions[rows], events)
        np.testing.assert_allclose(journal.x[rows, column], again, rtol=1e-9)
    assert len(again) > 3_000


def test_a_user_is_asked_for_once_in_a_batch_so_that_the_features_are_those_of_training_too(kept: Kept) -> None:
    np.testing.assert_allclose(kept.simulation.journal.x, kept.offline.x, rtol=1e-9)


def test_read_from_the_log_again_it_is_the_same_journal(kept: Kept) -> None:
    made = kept.simulation
    again = Journal.read(made._honest, made.log, START)
    here, there = made.journal.columns, again.columns
    assert len(again) == len(made.journal)
    for name in ("as_of", "asked", "unit", "version", "routed", "fault", "took", "score", "is_hidden", "propensity"):
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name), err_msg=name)
    np.testing.assert_allclose(made.journal.x, again.x, rtol=1e-9)
    assert (again.told_at, again.heard) == (made.journal.told_at, made.journal.heard)
    np.testing.assert_array_equal(again.told, made.journal.told)
    assert again.answers == made.journal.answers
    assert any(at != NEVER for at in again.told_at)


def test_a_log_without_answers_is_no_journal(kept: Kept, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="shop: no request was answered"):
        Journal.read(kept.simulation._honest, kept.simulation.log, kept.simulation.clock.now() + 1)
