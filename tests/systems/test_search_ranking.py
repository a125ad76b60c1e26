"""Where shoppers look, what is learned from their clicks, and how rankings are judged."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

for package in ("bm25s", "faiss", "lightgbm", "Stemmer"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[search]'")

from common.clock import DAY, SimulatedClock  # noqa: E402
from common.data.log import EventLog  # noqa: E402
from common.data.snapshots import Snapshots  # noqa: E402
from common.encoder.weights import Floats  # noqa: E402
from common.errors import BadSetting, GateFailed  # noqa: E402
from common.experiments.propensity import by_interventions  # noqa: E402
from common.features.view import Array, feature_names  # noqa: E402
from common.lifecycle import training  # noqa: E402
from common.lifecycle.simulation import before, live  # noqa: E402
from common.progress import Progress  # noqa: E402
from common.registry.gates import require  # noqa: E402
from common.system import Answered, Examples, Report, Rows  # noqa: E402
from systems.search import evaluation, monitoring, system  # noqa: E402
from systems.search.config import SMALL  # noqa: E402
from systems.search.data import Query, ShopWorld  # noqa: E402
from systems.search.features import ON_DEMAND, VIEWS  # noqa: E402
from systems.search.model import Library  # noqa: E402
from systems.search.model.clicks import (  # noqa: E402
    RANKS,
    Examination,
    Ints,
    assumed,
    before_swaps,
    estimate,
    steepness,
    swap,
)
from systems.search.model.ranker import EVERYWHERE, Calibration, Ranker, ordered, ranks, start  # noqa: E402

NAMES = ("match", "place", "noise", "is_phone")
CANDIDATES = 30
T0 = SMALL.start
CONFIG = replace(SMALL, days=16, history_days=16, products=500, shoppers=200, queries_per_day=90.0, min_data_in_leaf=20)
TRUE = Examination(0.7, 1.1, 10.0)  # how shoppers look in what follows


def looked_at(seed: int, days: int = 20, of_day: int = 60, swapped: float = 0.1, told: bool = True) -> Examples[Query]:
    """Queries with 30 candidates each, 20 of them shown by a ranker that is half right; clicks by the model of places.

    What is relevant is told by `match`; `place` is that ranker's score, which is worth less than its clicks say.
    """
    source, n = np.random.default_rng(seed), days * of_day
    config = replace(SMALL, swapped=swapped)
    as_of = T0 + np.sort(source.integers(0, days * DAY, n))
    match, noise = source.normal(size=(n, CANDIDATES)), source.normal(size=(n, CANDIDATES))
    own = 0.6 * match + source.normal(size=(n, CANDIDATES))
    best = np.argsort(-own, axis=1)
    match, noise, own = (np.take_along_axis(v, best, axis=1) for v in (match, noise, own))
    relevance = np.digitize(match + 0.3 * source.normal(size=match.shape), (0.5, 1.2, 1.9))
    is_phone = (source.random(n) < 0.5).astype(float)
    rank, said = np.zeros((n, CANDIDATES)), []
    for i, luck in enumerate(source.random(n).tolist()):
        rank[i, :RANKS] = np.arange(1, RANKS + 1)
        if place := swap(config, luck, RANKS):
            rank[i, [0, place - 1]] = rank[i, [place - 1, 0]]
        said.append(json.dumps({"hits": [], "swapped": place}))
    chance = TRUE.chance(rank, is_phone[:, None]) * np.array(config.click)[relevance]
    clicked = (rank > 0) & (source.random(rank.shape) < chance)
    requests = [
        Query(
            event_id=f"q{i}", event_timestamp=int(at), shopper_id=f"s{source.integers(200)}", text="sofa",
            device="phone" if is_phone[i] else "desktop",
        )
        for i, at in enumerate(as_of.tolist())
    ]  # fmt: skip
    gain = 2.0**relevance - 1
    ideal = (-np.sort(-gain, axis=1)[:, :10]) @ (1 / np.log2(np.arange(10) + 2))
    columns = {
        "rank": rank, "shown": rank > 0, "is_phone": np.repeat(is_phone, CANDIDATES), "lexical": np.maximum(own, 0),
        "dense": own, "fused": own,
    }  # fmt: skip
    x = [match, own, noise, np.repeat(is_phone, CANDIDATES)]
    return Examples(
        requests=requests,
        rows=Rows(
            pa.table({name: np.asarray(v, float).ravel() for name, v in columns.items()}),
            np.arange(n + 1) * CANDIDATES,
        ),
        x=np.stack([np.asarray(v, float).ravel() for v in x], axis=1),
        names=NAMES,
        as_of=as_of,
        labels=np.where(rank > 0, clicked, np.nan).ravel(),
        weights=(rank > 0).astype(float).ravel(),
        ceiling=np.full(n, 0.9) if told else None,
        segments={"phones": is_phone > 0, "nobody": np.zeros(n, bool)},
        truth={
            "relevance": relevance.astype(float).ravel(),
            "ideal": np.repeat(ideal, CANDIDATES),
            "relevant": np.repeat((relevance > 0).sum(axis=1).astype(float), CANDIDATES),
        }
        if told
        else {},
        events={Answered.__name__: pa.table({"request_id": [q.event_id for q in requests], "answer": said})},
    )


def halves(examples: Examples[Query]) -> tuple[Examples[Query], Examples[Query]]:
    """To learn from, and to judge on."""
    middle = int(examples.as_of[len(examples) // 2])
    return examples.between(0, middle), examples.between(middle, int(examples.as_of[-1]) + 1)


@cache
def known(seed: int = 0) -> Examples[Query]:
    return looked_at(seed)


def taught(examples: Examples[Query], looks: Examination = TRUE) -> Ranker:
    config = replace(SMALL, min_data_in_leaf=20)
    return Ranker.taught(config, examples, start(config), looks)


@cache
def learned(looks: Examination = TRUE) -> Ranker:
    return taught(halves(known())[0], looks)


def ndcg(ranker: Ranker, examples: Examples[Query]) -> Array:
    everything = np.ones(len(examples.x), bool)
    return evaluation.judged(examples, TRUE, ranker.attraction(examples.x), everything)["ndcg_at_10"]


def report(ranker: Ranker, examples: Examples[Query]) -> Report:
    return evaluation.evaluate(SMALL, SimpleNamespace(ranker=ranker, widened=lambda requests, rows, x: x), examples)


# Where shoppers look


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 60))
def test_the_first_hit_changes_places_with_another_of_the_usual_page_or_with_none(luck: float, size: int) -> None:
    place = swap(SMALL, luck, size)
    assert place == 0 or 2 <= place <= min(size, RANKS)
    assert (place > 0) == (luck < SMALL.swapped and size > 1)


def test_a_share_of_pages_has_a_swap_and_places_are_tried_as_often_as_they_are_clicked() -> None:
    lots = (np.arange(200_000) + 0.5) / 200_000
    places = np.bincount([swap(SMALL, luck, 30) for luck in lots.tolist()], minlength=RANKS + 1)
    assert places[2:].sum() == pytest.approx(SMALL.swapped * len(lots), rel=1e-3)
    np.testing.assert_allclose(places[2:] * np.arange(2, RANKS + 1) / places[2], 2.0, rtol=0.01)


@given(st.integers(1, 40), st.integers(0, RANKS))
def test_a_swap_is_undone_by_the_same_swap(rank: int, swapped: int) -> None:
    swapped = 0 if swapped == 1 else swapped
    once = before_swaps(np.array([rank]), np.array([swapped]))
    assert before_swaps(once, np.array([swapped])).tolist() == [rank]
    assert (once[0] != rank) == (swapped > 0 and rank in (1, swapped))


def test_looks_fall_with_the_rank_and_what_few_see_counts_for_more_but_not_for_all() -> None:
    rank, phone = np.arange(1.0, 101), np.ones(100)
    chance, weight = TRUE.chance(rank, phone), TRUE.weights(rank, phone)
    assert chance[0] == weight[0] == 1
    assert (np.diff(chance) < 0).all()
    np.testing.assert_allclose(weight, np.minimum(1 / chance, 10.0))
    assert (TRUE.chance(rank[1:], phone[1:]) < TRUE.chance(rank[1:], 0 * phone[1:])).all()
    np.testing.assert_array_equal(learned().weights("phone", range(100)), weight)
    np.testing.assert_array_equal(learned().weights("desktop", range(20, 40)), TRUE.weights(rank, 0 * phone)[20:40])


def test_swaps_tell_how_steeply_looks_fall_on_each_device() -> None:
    found = [estimate(SMALL, looked_at(seed, days=60, of_day=100)) for seed in range(3)]
    assert np.mean([looks.desktop for looks in found]) == pytest.approx(TRUE.desktop, abs=0.07)
    assert np.mean([looks.phone for looks in found]) == pytest.approx(TRUE.phone, abs=0.07)
    assert all(looks.desktop < looks.phone for looks in found)


def test_without_swaps_or_clicks_what_was_thought_before_is_kept() -> None:
    assert estimate(SMALL, looked_at(0, swapped=0.0)) == assumed(SMALL)
    nobody = replace(known(), labels=np.where(known().weights > 0, 0.0, np.nan))
    assert estimate(SMALL, nobody) == assumed(SMALL)


def by_place(seed: int, n: int) -> tuple[Ints, Ints, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Places by the ranker, ranks after swaps and clicks of n pages; looks fall with steepness 0.9."""
    source, config = np.random.default_rng(seed), replace(SMALL, swapped=0.5)
    place, rank = (np.tile(np.arange(1, RANKS + 1), (n, 1)) for _ in range(2))
    for row, luck in zip(rank, source.random(n).tolist(), strict=True):
        if other := swap(config, luck, RANKS):
            row[[0, other - 1]] = row[[other - 1, 0]]
    clicked = source.random(rank.shape) < 0.5 * place**-0.3 * rank**-0.9
    return place.ravel(), rank.ravel(), clicked.ravel()


def test_a_line_through_what_interventions_tell_of_each_place_is_as_steep() -> None:
    place, rank, clicked = by_place(0, 20_000)
    free = by_interventions(place - 1, rank - 1, clicked, RANKS)
    line = -np.polyfit(np.log(np.arange(1, RANKS + 1)), np.log(free), 1)[0]
    found = steepness(SMALL, place, rank, clicked)
    assert found == pytest.approx(0.9, abs=0.05)
    assert line == pytest.approx(found, abs=0.1)


# What is learned


def test_who_asks_where_clicks_were_made_ranks_better_than_who_counts_them() -> None:
    _, later = halves(known())
    gap = ndcg(learned(TRUE), later) - ndcg(learned(EVERYWHERE), later)
    lots = np.random.default_rng(0).integers(0, len(gap), (1_000, len(gap)))
    assert np.quantile(gap[lots].mean(axis=1), 0.025) > 0


def test_a_ranker_learns_more_than_the_one_whose_pages_it_saw() -> None:
    _, later = halves(known())
    found = report(learned(), later)
    assert found.metrics["ndcg_at_10"] > found.baselines["fused"]["ndcg_at_10"] + 0.1


def test_the_same_clicks_give_the_same_ranker_and_a_loaded_one_says_the_same(tmp_path: Path) -> None:
    earlier, later = halves(known())
    one, same = learned(), taught(earlier)
    assert one.booster.model_to_string() == same.booster.model_to_string()
    one.save(tmp_path)
    loaded = Ranker.load(tmp_path)
    a, b = (ranker.rank(later.x, later.rows.offsets) for ranker in (one, loaded))
    for mine, theirs in zip(a, b, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(one.weights("phone", range(30)), loaded.weights("phone", range(30)))
    assert {path.name for path in tmp_path.iterdir()} == {"trees.txt", "ranker.json"}


def test_where_none_or_all_of_the_pages_were_clicked_nothing_can_be_learned() -> None:
    examples = known()
    for all_of_them, said in ((0.0, "got 0 clicks"), (1.0, "and held out (.*) such pages of \\1$")):
        same = replace(examples, labels=np.where(examples.weights > 0, all_of_them, np.nan))
        with pytest.raises(BadSetting, match=f"train: must have clicks, and .*{said}"):
            taught(same)


def test_what_became_of_a_page_that_is_not_known_yet_teaches_nothing() -> None:
    earlier, _ = halves(known())
    late = earlier.rows.owner >= len(earlier) - 200
    blind = replace(
        earlier, weights=np.where(late, 0.0, earlier.weights), labels=np.where(late, np.nan, earlier.labels)
    )
    other = replace(blind, x=np.where(late[:, None], -blind.x, blind.x))
    assert taught(blind).booster.model_to_string() == taught(other).booster.model_to_string()


def test_of_what_nobody_was_shown_only_what_is_far_behind_teaches_anything() -> None:
    earlier, _ = halves(known())
    config = replace(SMALL, min_data_in_leaf=20, passed_over=25)

    def trees(first: int, last: int) -> str:
        """With other features of those candidates."""
        place = np.arange(len(earlier.x)) % CANDIDATES
        x = np.where(((place >= first) & (place < last))[:, None], -earlier.x, earlier.x)
        return Ranker.taught(config, replace(earlier, x=x), start(config), TRUE).booster.model_to_string()

    assert trees(20, 25) == trees(0, 0) != trees(25, 30)


@given(st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=6))
def test_each_request_is_ordered_by_itself_and_equal_rows_stay_in_their_order(scores: list[list[int]]) -> None:
    offsets = np.cumsum([0, *map(len, scores)])
    order = ordered(np.array([s for part in scores for s in part], float), offsets)
    slow = [
        first + i
        for first, part in zip(offsets.tolist(), scores, strict=False)
        for i in sorted(range(len(part)), key=lambda i: -part[i])
    ]
    assert order.tolist() == slow
    place = ranks(order, offsets)
    assert all(
        sorted(place[a:b].tolist()) == list(range(1, b - a + 1)) for a, b in zip(offsets, offsets[1:], strict=False)
    )


def test_a_request_without_rows_is_no_trouble() -> None:
    ranked = learned().rank(np.zeros((0, len(NAMES))), np.array([0, 0, 0]))
    assert len(ranked.order) == len(ranked.scores) == 0
    assert ((ranked.satisfaction > 0) & (ranked.satisfaction < 0.5)).all()


def test_better_pages_are_more_likely_to_be_clicked_and_the_chance_is_calibrated() -> None:
    _, later = halves(known())
    rank, is_phone = (later.rows.columns[name].to_numpy() for name in ("rank", "is_phone"))
    scores = learned().attraction(later.x)
    said = learned().satisfaction(scores, rank, is_phone, later.rows.offsets)
    clicked = np.bincount(later.rows.owner, later.labels > 0) > 0
    assert said.mean() == pytest.approx(clicked.mean(), abs=0.06)
    high = said > np.median(said)
    assert clicked[high].mean() > clicked[~high].mean() + 0.15
    ranked = learned().rank(later.x, later.rows.offsets)
    worse = later.x.copy()
    worse[:, 0] -= 2.0
    assert (learned().rank(worse, later.rows.offsets).satisfaction < ranked.satisfaction).mean() > 0.95


def test_a_calibration_never_falls() -> None:
    p = np.linspace(0.1, 0.9, 200)
    assert Calibration.fit(p, p < 0.5).slope == 0
    right = Calibration.fit(p, np.random.default_rng(0).random(200) < p)
    assert (np.diff(right(p)) > 0).all()


# How rankings are judged


def slow_ndcg(relevance: Sequence[float], scores: Sequence[float], ideal: float) -> float:
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[:10]
    return float(sum((2 ** relevance[i] - 1) / np.log2(r + 2) for r, i in enumerate(best)) / ideal) if ideal else 0.0


def test_ndcg_is_that_of_each_query_by_itself() -> None:
    examples = known()
    scores = np.random.default_rng(1).random(len(examples.x)).round(1)
    found = evaluation.judged(examples, TRUE, scores, np.ones(len(scores), bool))
    for i in range(50):
        mine = slice(*examples.rows.offsets[i : i + 2])
        relevance = examples.truth["relevance"][mine]
        expected = slow_ndcg(relevance.tolist(), scores[mine].tolist(), examples.truth["ideal"][mine][0])
        assert found["ndcg_at_10"][i] == pytest.approx(expected)
        good = [relevance[j] >= 2 for j in np.argsort(-scores[mine], kind="stable")]
        assert found["mrr"][i] == pytest.approx(1 / (1 + good.index(True)) if any(good) else 0)
        assert found["recall_at_100"][i] == 1


def test_what_shares_no_word_with_the_query_is_not_found_by_bm25() -> None:
    examples = known()
    columns = examples.rows.columns
    silent = examples.rows.owner % 2 == 0
    lexical = np.where(silent, 0.0, columns["lexical"].to_numpy())
    at = columns.column_names.index("lexical")
    rows = replace(examples.rows, columns=columns.set_column(at, "lexical", pa.array(lexical)))
    found = report(learned(), replace(examples, rows=rows)).baselines
    assert found["bm25"]["zero_result_rate"] == pytest.approx(0.5)
    assert found["bm25"]["ndcg_at_10"] < 0.6 * found["fused"]["ndcg_at_10"]
    assert found["fused"]["zero_result_rate"] == found["dense"]["zero_result_rate"] == 0


def test_a_query_without_anything_relevant_counts_as_nothing_and_one_without_rows_as_well() -> None:
    examples = known().between(0, int(known().as_of[2]))
    keep = np.r_[0, 0, CANDIDATES]  # the first found nothing
    truth = {name: np.zeros(CANDIDATES) for name in examples.truth}
    rows = Rows(examples.rows.columns.slice(0, CANDIDATES), keep)
    few = replace(examples, rows=rows, x=examples.x[:CANDIDATES], truth=truth)
    found = evaluation.judged(few, TRUE, np.zeros(CANDIDATES), np.ones(CANDIDATES, bool))
    assert found["ndcg_at_10"].tolist() == found["mrr"].tolist() == [0, 0]
    assert found["zero_result_rate"].tolist() == [1, 0]
    assert np.isnan(found["recall_at_100"]).all()


def test_without_a_truth_clicks_judge_each_by_its_place_and_agree_on_who_is_better() -> None:
    _, later = halves(looked_at(0, told=False))
    _, truth = halves(known())
    found = report(learned(), later)
    assert "above_ceiling" not in found.metrics
    assert not found.ceiling
    assert not {"recall_at_100", "mrr"} & set(found.metrics)
    for judge in (found, report(learned(), truth)):
        assert judge.metrics["ndcg_at_10"] > judge.baselines["fused"]["ndcg_at_10"]


def test_by_clicks_what_was_not_shown_is_in_nobodys_way() -> None:
    _, later = halves(looked_at(0, told=False))
    scores, everything = learned().attraction(later.x), np.ones(len(later.x), bool)
    first = np.where(later.weights > 0, scores, 2.0)
    one, other = (evaluation.judged(later, TRUE, s, everything)["ndcg_at_10"] for s in (scores, first))
    np.testing.assert_array_equal(one, other)


def test_clicks_in_the_order_of_their_weights_are_the_best_ranking_by_clicks() -> None:
    _, later = halves(looked_at(0, told=False))
    rank, is_phone = (later.rows.columns[name].to_numpy() for name in ("rank", "is_phone"))
    weight = np.where(later.labels > 0, TRUE.weights(rank, is_phone), 0.0)
    found = evaluation.judged(later, TRUE, weight, np.ones(len(weight), bool))["ndcg_at_10"]
    no_click = np.bincount(later.rows.owner, later.labels > 0) == 0
    assert np.nanmean(found) == pytest.approx(1)
    assert np.isnan(found[no_click]).all()


def test_segments_are_told_apart_and_an_empty_one_is_left_out() -> None:
    _, later = halves(known())
    found = report(learned(), later).segments
    assert set(found) == {"phones"}
    assert found["phones"]["queries"] == later.segments["phones"].sum()
    assert {"ndcg_at_10", "mrr", "zero_result_rate"} <= set(found["phones"])


def others(found: Report) -> dict[str, dict[str, float]]:
    return {name: dict(metrics) for name, metrics in found.baselines.items()}


def test_a_ranker_that_learned_clears_the_gates_of_a_new_and_of_a_hurried_one() -> None:
    _, later = halves(known())
    found = report(learned(), later)
    require(evaluation.gates(SMALL), found.metrics, others(found))
    require(evaluation.retrain_gates(SMALL), found.metrics, others(found) | {"champion": dict(found.metrics)})


def test_clicks_dealt_at_random_teach_nothing_that_clears_the_gates() -> None:
    earlier, later = halves(known())
    seen = np.flatnonzero(earlier.weights > 0)
    labels = earlier.labels.copy()
    labels[seen] = np.random.default_rng(0).permutation(labels[seen])
    found = report(taught(replace(earlier, labels=labels)), later)
    with pytest.raises(GateFailed, match="ndcg_at_10: must be >= .* x fused"):
        require(evaluation.gates(SMALL), found.metrics, others(found))


def test_a_feature_that_knows_what_is_relevant_lifts_a_ranker_above_the_ceiling() -> None:
    whole = known()
    leaked = replace(whole, x=np.column_stack([whole.x, whole.truth["relevance"]]), names=(*NAMES, "leak"))
    earlier, later = halves(leaked)
    found = report(taught(earlier), later)
    assert found.metrics["above_ceiling"] > 0
    with pytest.raises(GateFailed, match="above_ceiling: must be <= 0"):
        require(evaluation.gates(SMALL), found.metrics, others(found))
    assert report(learned(), halves(known())[1]).metrics["above_ceiling"] < 0


# The world of a shop


class Letters:
    """An encoder by which texts are near that share beginnings of words."""

    def encode(self, texts: Sequence[str]) -> Floats:
        found = np.full((len(texts), 64), 0.01, np.float32)
        for row, text in zip(found, texts, strict=True):
            for word in text.lower().split():
                row[crc32(word[:4].encode()) % 64] += 1
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return [[0, 0, 0, 0] for _ in texts]

    def save(self, folder: Path) -> None:
        raise NotImplementedError


@cache
def lived() -> tuple[Examples[Query], ShopWorld]:
    made = system.build(CONFIG)
    library = Library(CONFIG, Letters())
    assert made.many is not None
    shop = replace(made, fit=library.fit, many=replace(made.many, replay=library.replay))
    with tempfile.TemporaryDirectory() as folder:
        clock = SimulatedClock(shop.history[0])
        with EventLog(Path(folder) / "log.db", clock, shop.logged) as log:
            world = shop.world(0, None, None)
            quiet = Progress(quiet=True)
            for _ in live(shop, world, log, before(shop), shop.history, batch=None, progress=quiet):
                pass
            snapshot = training.take(shop, log, Snapshots(Path(folder) / "snapshots"))
            assert isinstance(world, ShopWorld)
            return training.examples(shop, snapshot, world), world


def test_looks_are_as_steep_as_shoppers_of_the_world_look() -> None:
    examples, world = lived()
    looks = estimate(CONFIG, examples)
    for device, found in (("desktop", looks.desktop), ("phone", looks.phone)):
        query = next(q for q in examples.requests if q.device == device)
        true = -np.log(world.examination([query], [10])[0]) / np.log(10)
        assert found == pytest.approx(true, abs=0.25)


def test_rows_of_the_past_are_judged_as_the_world_judges_rankings() -> None:
    examples, world = lived()
    ranker = Ranker.taught(CONFIG, examples, start(CONFIG), estimate(CONFIG, examples))
    some = examples.between(0, int(examples.as_of[300]))
    ranked = ranker.rank(some.x, some.rows.offsets)
    ids = some.rows.columns["product_id"].to_numpy()
    pages = [ids[ranked.order[slice(*some.rows.offsets[i : i + 2])]].tolist() for i in range(len(some))]
    np.testing.assert_allclose(ndcg(ranker, some), world.ndcg(list(some.requests), pages))
    assert some.names == feature_names(VIEWS, ON_DEMAND)
    found = report(ranker, some)
    assert 0.3 < found.metrics["click_through"] < 0.9
    assert found.ceiling["ndcg_at_10"] > found.metrics["ndcg_at_10"] > 0.3


def test_clicks_that_were_told_before_a_query_are_among_what_is_known_of_it() -> None:
    examples, _ = lived()
    told = examples.events["Feedback"]
    pair, product, asked = (
        examples.x[:, examples.names.index(name)]
        for name in ("pair.sum_weight_90d", "product.sum_weight_90d", "asked.count_90d")
    )
    assert (pair <= product + 1e-9).all()
    owner = examples.rows.owner
    first_day = (examples.as_of < CONFIG.start + DAY // 24)[owner]
    assert not product[first_day].any()
    i = len(examples) - 1
    mine = np.flatnonzero(owner == i)
    products, weight, created = (told[name].to_pylist() for name in ("product_id", "weight", "created_timestamp"))
    expected: dict[str, float] = {}
    for name, worth, at in zip(products, weight, created, strict=True):
        if at < examples.as_of[i]:
            expected[name] = expected.get(name, 0.0) + worth
    ids = examples.rows.columns["product_id"].to_pylist()
    np.testing.assert_allclose(product[mine], [expected.get(ids[row], 0.0) for row in mine])
    texts = [q.text for q in examples.requests]
    assert asked[mine[0]] == texts[:i].count(texts[i])


def test_what_is_watched_is_a_number_of_the_query_that_the_ranker_has() -> None:
    examples, _ = lived()
    owner = examples.rows.owner
    for monitor in monitoring.MONITORS:
        if monitor.column != "score":
            value = examples.x[:, examples.names.index(monitor.column)]
            first = np.full(len(examples), np.nan)
            first[owner[::-1]] = value[::-1]
            np.testing.assert_array_equal(value, first[owner])
