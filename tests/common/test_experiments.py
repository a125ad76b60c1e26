import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import BadSetting
from common.experiments.ab import difference, units_needed
from common.experiments.interleaving import Interleaved, evidence, preference, sign_test, team_draft, winner
from common.experiments.propensity import Array, Flags, Ints, by_em, by_interventions, weights

RANKINGS = st.lists(st.integers(0, 15), unique=True, max_size=12)
TRUE = 1 / np.arange(1, 11) ** 0.9  # P(looked at), by position


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(RANKINGS, RANKINGS, st.integers(0, 20), st.integers(0, 1_000))
def test_an_interleaved_ranking_holds_each_item_once_and_all_that_there_is_room_for(
    a: list[int], b: list[int], size: int, seed: int
) -> None:
    ranking, teams = team_draft(a, b, size, rng(seed).random)
    assert len(set(ranking)) == len(ranking) == len(teams) == min(size, len(set(a) | set(b)))
    for team, own in ((-1, a), (1, b)):
        mine = [own.index(item) for item, whose in zip(ranking, teams, strict=True) if whose in (team, 0)]
        assert mine == sorted(mine)


@given(st.permutations(range(8)), st.permutations(range(8)), st.integers(1, 8), st.integers(0, 1_000))
def test_no_side_is_ever_more_than_one_item_ahead(a: list[int], b: list[int], size: int, seed: int) -> None:
    _, teams = team_draft(a, b, size, rng(seed).random)
    assert np.abs(np.cumsum(teams)).max() <= 1


@given(st.permutations(range(8)), st.integers(1, 8), st.integers(0, 1_000))
def test_where_both_agree_that_is_what_is_shown_and_it_is_nobodys(a: list[int], size: int, seed: int) -> None:
    assert team_draft(a, a, size, rng(seed).random) == (a[:size], [0] * size)


def test_each_side_gets_each_place_as_often() -> None:
    source, places, times = rng(), Counter[tuple[int, int]](), 4_000
    for _ in range(times):
        places.update(enumerate(team_draft("abcdef", "abfxdyz", 6, source.random).teams))
    for place in range(6):
        first, second = places[place, -1], places[place, 1]
        assert first + second == (times if place > 1 else 0)
        assert abs(first - second) < 4 * math.sqrt(times), place


@given(RANKINGS, RANKINGS, st.integers(0, 12))
def test_who_is_called_first_and_who_second_makes_no_difference(a: list[int], b: list[int], size: int) -> None:
    """Over all throws of the coin: the same drafts, with the sides exchanged."""
    lots = list(product((0.0, 0.9), repeat=6))
    one = Counter(str(team_draft(a, b, size, iter(lot).__next__)) for lot in lots)
    other = [team_draft(b, a, size, iter(lot).__next__) for lot in lots]
    assert one == Counter(str(Interleaved(r, [-team for team in teams])) for r, teams in other)


def test_equals_tie_in_expectation_and_the_better_one_wins() -> None:
    source, relevant = rng(), {"a", "b"}
    votes: dict[str, list[int]] = {"bacdef": [], "efcdab": []}
    for _ in range(3_000):
        for second, found in votes.items():
            ranking, teams = team_draft("abcdef", second, 6, source.random)
            looked = source.random(6) < TRUE[:6]
            clicked = [bool(look) and item in relevant for look, item in zip(looked, ranking, strict=True)]
            found.append(winner(teams, clicked))
    equal, worse = (preference(found) for found in votes.values())
    assert equal.p_value > 0.01
    assert equal.e_value < 20 < worse.e_value
    assert worse.first > 2 * worse.second
    assert worse.p_value < 1e-6


def test_a_query_is_won_by_more_clicks_and_by_nobody_without_any() -> None:
    assert winner([-1, 1, 1], [False, True, True]) == 1
    assert winner([-1, 1, 0], [True, False, True]) == -1
    assert winner([-1, 1, 0], [True, True, True]) == winner([-1, 1, 0], [False, False, True]) == 0
    told = preference([1, 1, -1, 0])
    assert (told.first, told.second, told.ties, told.share) == (1, 2, 1, 2 / 3)


@pytest.mark.parametrize(("wins", "p"), [((5, 5), 1.0), ((0, 5), 0.0625), ((1, 9), 22 / 1024), ((0, 0), 1.0)])
def test_the_sign_test_is_the_binomial_one(wins: tuple[int, int], p: float) -> None:
    assert sign_test(*wins) == pytest.approx(p) == sign_test(*reversed(wins))


@given(st.integers(0, 200), st.integers(0, 200))
def test_evidence_is_a_fair_bet_on_the_next_query(first: int, second: int) -> None:
    expected = (evidence(first + 1, second) + evidence(first, second + 1)) / 2
    assert expected == pytest.approx(evidence(first, second), rel=1e-9)


def test_looking_after_every_query_raises_no_more_false_alarms_than_were_allowed() -> None:
    alarms = 0
    for seed in range(200):
        second = np.cumsum(rng(seed).random(400) < 0.5)
        alarms += any(evidence(n + 1 - int(second[n]), int(second[n])) >= 20 for n in range(400))
    assert alarms / 200 <= 0.05
    assert evidence(0, 0) == 1 < 20 < evidence(10, 40)


def test_a_difference_of_means_is_found_and_its_interval_covers() -> None:
    covered = 0
    for seed in range(300):
        source = rng(seed)
        found = difference(source.normal(1.0, 1.0, 200), source.normal(1.3, 3.0, 600))
        assert found.low < found.mean < found.high
        assert (found.p_value < 0.05) == (not found.low < 0 < found.high)
        covered += found.low < 0.3 < found.high
    assert 0.91 < covered / 300 < 0.985


def test_so_many_units_find_the_difference_as_often_as_was_asked() -> None:
    n = units_needed(0.2, 1.0, alpha=0.05, power=0.8) // 2
    samples = [rng(seed).normal([[0.0], [0.2]], 1.0, (2, n)) for seed in range(300)]
    assert 0.72 < np.mean([difference(a, b).p_value < 0.05 for a, b in samples]) < 0.88


def simulated(seed: int, n: int, swap: bool, items: int = 300) -> tuple[Ints, Ints, Flags, Array]:
    """n rankings of ten of a query's items: by attraction with the first one swapped, or with noise."""
    source = rng(seed)
    attraction = source.uniform(0.05, 0.9, (items // 10, 10))
    attraction.sort(axis=1)
    query = source.integers(0, items // 10, n)
    order = np.tile(np.arange(10)[::-1], (n, 1))  # the most attractive first
    if swap:
        other, swapped = source.integers(0, 10, n), source.random(n) < 0.5
        first, there = order[:, 0].copy(), order[np.arange(n), other]
        order[:, 0] = np.where(swapped, there, first)
        order[np.arange(n), other] = np.where(swapped, first, there)
    else:
        order = np.argsort(source.normal(-np.arange(10), 3.0, (n, 10)), axis=1)
    item = query[:, None] * 10 + order
    chance = TRUE * attraction.ravel()[item]
    clicked = source.random(chance.shape) < chance
    return item.ravel(), np.tile(np.arange(10), n), clicked.ravel(), attraction.ravel()


def test_swaps_of_pairs_at_random_tell_who_looks_where() -> None:
    item, position, clicked, _ = simulated(0, 40_000, swap=True)
    assert np.abs(by_interventions(item, position, clicked, 10) / TRUE - 1).max() < 0.15
    naive = np.bincount(position, clicked) / np.bincount(position)
    assert np.abs(naive / naive[0] / TRUE - 1).max() > 0.3  # what clicks say to who does not ask where they were


@pytest.mark.parametrize("swap", [True, False])
def test_expectation_maximisation_tells_positions_from_items(swap: bool) -> None:
    item, position, clicked, attraction = simulated(1, 40_000, swap)
    fitted = by_em(item, position, clicked, 10)
    assert np.abs(fitted.examination / TRUE - 1).max() < 0.15
    assert np.corrcoef(fitted.attraction, attraction)[0, 1] > 0.95


def test_items_seen_once_each_need_a_number_that_they_share() -> None:
    source, n = rng(), 40_000
    place = np.tile(np.arange(10), (n, 1))  # where the ranker would have put it
    other, swapped = source.integers(0, 10, n), source.random(n) < 0.5
    place[:, 0] = np.where(swapped, other, 0)
    place[np.arange(n), other] = np.where(swapped, 0, other)
    clicked = source.random((n, 10)) < TRUE * source.beta(1, 1 + place / 3)
    position = np.tile(np.arange(10), n)
    by_place = by_em(place.ravel(), position, clicked.ravel(), 10).examination
    some = slice(20_000)
    by_itself = by_em(np.arange(20_000), position[some], clicked.ravel()[some], 10).examination
    assert np.abs(by_place / TRUE - 1).max() < 0.15 < 0.5 < np.abs(by_itself / TRUE - 1).max()


@given(st.integers(0, 50), st.integers(2, 6))
def test_noiseless_clicks_give_the_exact_propensities(seed: int, positions: int) -> None:
    """Every item at every position, so often that shares are exact: with counts in place of draws."""
    source, looks = rng(seed), np.linspace(1, 0.2, positions)
    chances = np.outer(source.choice([0.2, 0.5, 1.0], 5), looks)  # (5, positions)
    clicks = np.round(chances * 1_000).astype(int)
    item, position, clicked = [], [], []
    for (i, k), c in np.ndenumerate(clicks):
        item += [i] * 1_000
        position += [k] * 1_000
        clicked += [True] * c + [False] * (1_000 - c)
    found = by_interventions(np.array(item), np.array(position), np.array(clicked), positions)
    np.testing.assert_allclose(found, looks, rtol=0.02)


def test_a_position_that_no_item_shares_is_unknown() -> None:
    item, position = np.array([0, 0, 0, 1]), np.array([0, 1, 1, 2])
    found = by_interventions(item, position, np.array([True, True, False, True]), 4)
    np.testing.assert_allclose(found, [1.0, 0.5, np.nan, np.nan])
    np.testing.assert_allclose(weights(found, at_most=5.0), [1.0, 2.0, 5.0, 5.0])


def test_a_position_beyond_those_asked_for_is_refused() -> None:
    with pytest.raises(BadSetting, match="position: must be 0 to 2, got 0 to 3"):
        by_em(np.array([0, 0]), np.array([0, 3]), np.array([True, False]), 3)
