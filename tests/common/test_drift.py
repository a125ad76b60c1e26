import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from scipy.stats import binom, wasserstein_distance

from common.errors import BadDefinition, Damaged
from common.monitoring import drift
from common.monitoring.drift import Reference, Shift, Watch
from common.monitoring.sketches import Categorical, Numeric, Sketch

Array = NDArray[np.float64]
DAYS, ROWS, COLUMNS = 60, 400, 20
MONTH = 28  # days: few, so that a limit which is fitted to them in place of new ones would be seen
NAMES = tuple(f"x{i}" for i in range(COLUMNS))
KINDS = ("a", "b", "c", "d")
counts = st.lists(st.integers(0, 50), min_size=4, max_size=4)
numbers = st.lists(st.floats(-100, 100) | st.sampled_from([0.0, 1.0, math.nan]), min_size=1).map(np.array)
checked = settings(max_examples=100, deadline=None)


def kinds(cells: list[int]) -> Categorical:
    return Categorical({"a": cells[0], "b": cells[1]}, cells[2], cells[3])


def one(a: Sketch, b: Sketch) -> dict[str, float]:
    return dict(zip(drift.DISTANCES, drift.distances({"x": a}, {"x": b})[0].tolist(), strict=True))


def days(n: int, rng: np.random.Generator, *, rho: float = 0.0, effect: float = 0.0) -> Array:
    """Rows of days whose means are an AR(1) series with standard deviation `effect`, (n, ROWS, COLUMNS)."""
    noise = rng.normal(size=(n, COLUMNS))
    means = noise.copy()
    for i in range(1, n):
        means[i] = rho * means[i - 1] + math.sqrt(1 - rho**2) * noise[i]
    return effect * means[:, None] + rng.normal(size=(n, ROWS, COLUMNS))


def filled(bins: Mapping[str, Sketch], x: Array) -> dict[str, Sketch]:
    return {name: sketch.empty_like().update(x[:, i]) for i, (name, sketch) in enumerate(bins.items())}


def calibrated(x: Array, **how: float) -> Reference:
    bins = {name: Numeric.of(x[..., i].ravel()) for i, name in enumerate(NAMES)}
    return drift.calibrate([filled(bins, day) for day in x], **{"chunk": 1, "rate": 0.05, "seed": 0} | how)


@pytest.fixture(scope="module")
def reference() -> Reference:
    """Twenty numbers, one with a few values missing, and a word, without any effect of days."""
    rng = np.random.default_rng(1)
    x = days(DAYS, rng)
    x[..., 1] = np.where(rng.uniform(size=x.shape[:2]) < 0.01, math.nan, x[..., 1])
    words = rng.choice(KINDS, p=(0.5, 0.3, 0.15, 0.05), size=(DAYS, ROWS)).tolist()
    bins: dict[str, Sketch] = {name: Numeric.of(x[..., i].ravel()) for i, name in enumerate(NAMES)}
    blocks: list[dict[str, Sketch]] = [
        filled(bins, day) | {"kind": Categorical.of(KINDS).empty_like().update(said)}
        for day, said in zip(x, words, strict=True)
    ]
    return drift.calibrate(blocks, chunk=1, rate=0.05, seed=0)


def chunk(
    reference: Reference, change: Callable[[Array], None] | None = None, p: tuple[float, ...] = (0.5, 0.3, 0.15, 0.05)
) -> dict[str, Sketch]:
    rng = np.random.default_rng(7)
    (x,) = days(1, rng)
    if change:
        change(x)
    words = rng.choice(KINDS, p=p, size=ROWS).tolist()
    return drift.sketch(reference, dict(zip(NAMES, x.T, strict=True)) | {"kind": words})


def exceeding(shifts: tuple[Shift, ...]) -> set[str]:
    return {shift.column for shift in shifts if shift.exceeds}


# distances


@checked
@given(counts, counts)
def test_jensen_shannon_is_that_of_scipy(a: list[int], b: list[int]) -> None:
    found = one(kinds(a), kinds(b))["jensen_shannon"]
    if not sum(a) or not sum(b):
        assert math.isnan(found)
        return
    p, q = (np.array(x) / sum(x) for x in (a, b))
    js = jensenshannon(p, q, base=2)
    assert found**2 == pytest.approx(0 if math.isnan(js) else js**2, abs=1e-12)  # scipy may take the root of -1e-17


@checked
@given(counts, counts)
def test_psi_is_its_definition_with_half_a_row_more_in_every_cell(a: list[int], b: list[int]) -> None:
    if not sum(a) or not sum(b):
        return
    p, q = ([(n + 0.5) / (sum(x) + 2) for n in x] for x in (a, b))
    psi = sum((v - u) * math.log(v / u) for u, v in zip(p, q, strict=True))
    assert one(kinds(a), kinds(b))["psi"] == pytest.approx(psi, abs=1e-12)


@checked
@given(numbers, numbers)
def test_wasserstein_is_that_of_scipy_between_the_middles_of_the_bins(values: Array, others: Array) -> None:
    a = Numeric.of(values)
    b = a.empty_like().update(others)
    found = one(a, b)["wasserstein"]
    if not a.n or not b.n or a.std == 0:
        assert math.isnan(found)
        return
    middles = drift.middles(a, b)
    assert found == pytest.approx(wasserstein_distance(middles, middles, a.counts, b.counts) / a.std, rel=1e-6)


def numeric(edges: list[float], counts: list[int], low: float, high: float) -> Numeric:
    return Numeric(tuple(edges), tuple(counts), 0, sum(counts), low, high, 0.0, float(sum(counts)))  # std 1


def test_wasserstein_of_few_values_is_exact() -> None:
    a = numeric([0, 2, 4, 6], [0, 1, 1, 2, 0], 0, 6)
    b = numeric([0, 2, 4, 6], [0, 3, 0, 0, 1], 0, 106)
    np.testing.assert_array_equal(drift.middles(a, b), [0, 1, 3, 5, 56])
    assert one(a, b)["wasserstein"] == 0.5 * 2 + 0.25 * 2 + 0.25 * 51  # two of four more below 3, one below 5, one less


@pytest.mark.parametrize("sign", [1, -1])
def test_rows_of_a_tail_are_taken_to_lie_near_its_bulk(sign: int) -> None:
    values = sign * np.random.default_rng(0).lognormal(size=100_000)
    a = Numeric.of(values)
    last, of = (-2, values >= a.edges[-2]) if sign > 0 else (1, values < a.edges[1])
    assert drift.middles(a, a)[last] == pytest.approx(values[of].mean(), rel=0.2)
    assert abs(drift.middles(a, a)[last]) < 0.2 * abs(values).max()


def test_beside_the_bin_of_one_value_rows_lie_half_way_through() -> None:
    for values, last in (([0.0, 1.0], -2), ([1.0, 0.0], -2), ([0.0, -1.0], 1)):
        a = Numeric.of(np.repeat(values, [990, 10] if values[0] == 0 else [10, 990]))
        assert drift.middles(a, a)[last] == 0.5 * sum(values)


def test_a_flag_set_half_the_time_is_as_far_as_half_of_its_values_apart() -> None:
    a = Numeric.of(np.repeat([0.0, 1.0], [900, 100]))
    b = a.empty_like().update(np.repeat([0.0, 1.0], [400, 600]))
    assert one(a, b)["wasserstein"] == pytest.approx(0.5 / a.std)


@pytest.mark.parametrize("draw", [np.random.Generator.standard_normal, np.random.Generator.standard_exponential])
def test_wasserstein_sees_how_far_a_distribution_moved(draw: Callable[..., Array]) -> None:
    rng = np.random.default_rng(0)
    values, others = draw(rng, 100_000), draw(rng, 100_000) + 0.5
    a = Numeric.of(values)
    found = one(a, a.empty_like().update(others))["wasserstein"]
    assert found == pytest.approx(wasserstein_distance(values, others) / values.std(), rel=0.1)


@checked
@given(numbers, numbers, numbers)
def test_distances_are_symmetric_never_negative_and_zero_to_itself(reference: Array, x: Array, y: Array) -> None:
    bins = Numeric.of(reference).empty_like()
    a, b = bins.update(x), bins.update(y)
    for distance, value in one(a, a).items():
        assert math.isnan(value) or value == pytest.approx(0, abs=1e-12), distance
    there, back = one(a, b), one(b, a)
    for distance, value in there.items():
        assert math.isnan(value) or value >= 0, distance
    assert there["psi"] == pytest.approx(back["psi"], nan_ok=True)
    assert there["jensen_shannon"] == pytest.approx(back["jensen_shannon"], nan_ok=True)
    if a.std > 0 and b.std > 0:
        assert there["wasserstein"] * a.std == pytest.approx(back["wasserstein"] * b.std, rel=1e-6)


@checked
@given(numbers, numbers, counts, counts)
def test_a_column_is_as_far_among_others_as_alone(x: Array, y: Array, a: list[int], b: list[int]) -> None:
    n = Numeric.of(x)
    gone = n.empty_like().update(np.array([math.nan]))
    reference: dict[str, Sketch] = {"gone": n, "kind": kinds(a), "number": n, "again": n}
    seen: dict[str, Sketch] = {"gone": gone, "kind": kinds(b), "number": n.empty_like().update(y), "again": n}
    together = drift.distances(reference, seen)
    for i, name in enumerate(reference):
        alone = drift.distances({name: reference[name]}, {name: seen[name]})[0]
        np.testing.assert_allclose(together[i], alone, rtol=1e-9, atol=1e-9 * max(1.0, np.nanmax(alone, initial=0)))


def test_the_missing_are_a_cell_of_their_own() -> None:
    values = np.arange(100.0)
    a = Numeric.of(values)
    found = one(a, a.empty_like().update(np.concatenate([values, np.full(100, math.nan)])))
    assert found["jensen_shannon"] == pytest.approx(jensenshannon([1, 0], [0.5, 0.5], base=2))
    assert found["psi"] > 1
    assert found["wasserstein"] == pytest.approx(0, abs=1e-12)


# thresholds


def false_alarms(rho: float, effect: float, *, references: int, chunks: int) -> tuple[int, int]:
    """Chunks in which anything exceeded, and chunks, of new days after references of undisturbed days."""
    found = 0
    for seed in range(references):
        rng = np.random.default_rng([seed, 5])
        x = days(MONTH + chunks, rng, rho=rho, effect=effect)
        reference = calibrated(x[:MONTH], seed=seed)
        for rows in x[MONTH:]:
            found += bool(exceeding(reference.judge(filled(reference.sketches, rows))))
    return found, references * chunks


@pytest.mark.parametrize(("rho", "effect"), [(0.0, 0.0), (0.5, 0.2)], ids=["independent rows", "days alike"])
def test_without_drift_any_of_60_distances_exceeds_at_about_the_stated_rate(rho: float, effect: float) -> None:
    found, n = false_alarms(rho, effect, references=16, chunks=15)
    sys.stdout.write(
        f"rho {rho}, day effect {effect} std: {found} of {n} chunks exceed, {found / n:.3f}, stated 0.05\n"
    )
    assert 0 < found <= binom.isf(0.001, n, 0.05)


def test_a_drawn_reference_holds_nothing_of_the_drawn_chunk() -> None:
    words = Categorical.of(["a", "b"]).empty_like()
    odd, usual = ({"kind": words.update([word] * 100)} for word in "ba")
    cells = drift._Cells(usual)
    counts = np.array([cells.counts(block) for block in (odd, *[usual] * 29)])
    starts, values, rows = drift._draw(cells, counts, 2, 6, 0)
    assert set(starts.tolist()) == set(range(29))
    assert (rows == 200).all()
    apart = jensenshannon([1, 0], [0.5, 0.5], base=2)
    np.testing.assert_allclose(values[starts == 0, 0, 1], apart)  # half of its rows are as no other's


def test_neighbouring_blocks_are_drawn_together() -> None:
    words = Categorical.of(["a", "b"]).empty_like()
    blocks = [{"kind": words.update([word] * 100)} for word in "a" * 15 + "b" * 15]
    cells = drift._Cells(blocks[0])
    counts = np.array([cells.counts(block) for block in blocks])
    together, apart = (drift._draw(cells, counts, 1, run, 0)[1][:, 0, 1].std() for run in (6, 1))
    assert together > 1.5 * apart


def test_a_rate_may_be_lower_than_one_in_as_many_blocks() -> None:
    x = days(MONTH, np.random.default_rng(0), effect=0.5)
    often, seldom = (calibrated(x, rate=rate).thresholds for rate in (0.02, 0.0005))
    ratio = np.mean([seldom[name]["wasserstein"] / often[name]["wasserstein"] for name in NAMES])
    assert ratio > 1.5


def test_a_lower_rate_is_kept_by_higher_thresholds() -> None:
    x = days(DAYS, np.random.default_rng(0))
    often, seldom = (calibrated(x, rate=rate).thresholds for rate in (0.2, 0.001))
    assert all(seldom[name][d] > often[name][d] for name in NAMES for d in drift.DISTANCES)


def test_days_that_differ_from_one_another_are_allowed_for() -> None:
    rng = np.random.default_rng(0)
    calm, moved = (calibrated(days(DAYS, rng, effect=effect)).thresholds for effect in (0.0, 0.5))
    assert all(moved[name][d] > 1.5 * calm[name][d] for name in NAMES for d in drift.DISTANCES)


def test_longer_chunks_are_judged_more_strictly() -> None:
    x = days(DAYS, np.random.default_rng(0))
    day, week = (calibrated(x, chunk=blocks).thresholds for blocks in (1, 7))
    assert np.mean([week[name]["psi"] / day[name]["psi"] for name in NAMES]) < 0.5


def test_a_seed_gives_the_same_thresholds_every_time() -> None:
    x = days(DAYS, np.random.default_rng(0))
    assert calibrated(x, seed=3) == calibrated(x, seed=3)
    assert calibrated(x, seed=3).thresholds != calibrated(x, seed=4).thresholds


def test_a_chunk_of_few_rows_is_not_held_to_the_limits_of_many(reference: Reference) -> None:
    rng = np.random.default_rng(3)
    few = [{name: rng.normal(size=10) for name in NAMES if name != "x1"} for _ in range(20)]
    assert sum(bool(exceeding(reference.judge(drift.sketch(reference, rows)))) for rows in few) <= 4
    few[0]["x3"] += 100
    assert exceeding(reference.judge(drift.sketch(reference, few[0]))) == {"x3"}


def test_what_never_varied_is_not_alarmed_by_one_odd_row() -> None:
    blocks: list[dict[str, Sketch]] = [{"flag": Numeric.of(np.zeros(ROWS))} for _ in range(DAYS)]
    reference = drift.calibrate(blocks, chunk=1, rate=0.05, seed=0)
    assert set(reference.thresholds["flag"]) == {"psi", "jensen_shannon"}  # a constant has no unit
    for odd, found in ((1, set()), (20, {"flag"})):
        flags = np.repeat([1.0, 0.0], [odd, ROWS - odd])
        assert exceeding(reference.judge(drift.sketch(reference, {"flag": flags}))) == found


def test_a_column_that_was_always_missing_is_seen_to_appear() -> None:
    blocks: list[dict[str, Sketch]] = [{"x": Numeric.of(np.full(ROWS, math.nan))} for _ in range(DAYS)]
    reference = drift.calibrate(blocks, chunk=1, rate=0.05, seed=0)
    assert exceeding(reference.judge(drift.sketch(reference, {"x": np.full(ROWS, math.nan)}))) == set()
    assert exceeding(reference.judge(drift.sketch(reference, {"x": np.ones(ROWS)}))) == {"x"}


def test_days_without_rows_are_left_out_of_the_draws() -> None:
    x = days(DAYS, np.random.default_rng(0))
    bins = {name: Numeric.of(x[..., i].ravel()) for i, name in enumerate(NAMES)}
    blocks = [filled(bins, day if i % 5 > 2 else day[:0]) for i, day in enumerate(x)]
    reference, whole = drift.calibrate(blocks, chunk=1, rate=0.05, seed=0), calibrated(x)
    assert set(reference.rows.values()) == {ROWS}
    found, expected = (np.mean([of.thresholds[name]["psi"] for name in NAMES]) for of in (reference, whole))
    assert found == pytest.approx(expected, rel=0.35)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"chunk": 0}, "blocks: must be at least"),
        ({"chunk": 20}, "blocks: must be at least 100 for chunks of 20, got 60"),
        ({"rate": 0.0}, "rate: must lie between 0 and 1, got 0.0"),
        ({"rate": 1.0}, "rate: must lie between 0 and 1, got 1.0"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused(how: dict[str, float], says: str) -> None:
    with pytest.raises(BadDefinition, match=says):
        calibrated(days(DAYS, np.random.default_rng(0)), **how)


def test_blocks_must_be_of_one_kind_and_have_rows() -> None:
    a, b, word = Numeric.of(np.arange(9.0)), Numeric.of(np.arange(8.0)), Categorical.of(["a"])
    for last, says in (
        ({"x": b}, "edges must be the same"),
        ({"x": word}, "x: must be Numeric, as in the reference, got Categorical"),
        ({"y": a}, r"blocks: columns must be the same, got \['x', 'y'\] in some"),
    ):
        with pytest.raises(BadDefinition, match=says):
            drift.calibrate([{"x": a}] * 30 + [last], chunk=1, rate=0.05, seed=0)
    with pytest.raises(BadDefinition, match="x: must have rows in at least two blocks"):
        drift.calibrate([{"x": a.empty_like()}] * 30 + [{"x": a}], chunk=1, rate=0.05, seed=0)


# power


def test_nothing_exceeds_where_nothing_moved(reference: Reference) -> None:
    shifts = reference.judge(chunk(reference))
    assert exceeding(shifts) == set()
    assert len(shifts) == 3 * COLUMNS + 2
    assert all(shift.ratio is not None and 0 < shift.ratio < 1 for shift in shifts)


def shifted(x: Array) -> None:
    x[:, 4] += 0.5


def in_cents(x: Array) -> None:
    x[:, 5] *= 100


def gone(x: Array) -> None:
    x[:, 6] = math.nan


@pytest.mark.parametrize(("change", "column"), [(shifted, "x4"), (in_cents, "x5"), (gone, "x6")])
def test_a_change_of_one_column_is_found_in_one_day(
    reference: Reference, change: Callable[[Array], None], column: str
) -> None:
    assert exceeding(reference.judge(chunk(reference, change))) == {column}


def test_a_changed_unit_is_told_by_how_far_the_values_went(reference: Reference) -> None:
    (found,) = (
        s for s in reference.judge(chunk(reference, in_cents)) if (s.column, s.distance) == ("x5", "wasserstein")
    )
    assert found.ratio is not None
    assert found.ratio > 100


def test_a_share_that_doubled_is_found(reference: Reference) -> None:
    assert exceeding(reference.judge(chunk(reference, p=(0.35, 0.3, 0.3, 0.05)))) == {"kind"}


# chunks


def test_servers_together_are_judged_as_one(reference: Reference) -> None:
    x = np.random.default_rng(2).normal(size=(300, COLUMNS))
    parts = [drift.sketch(reference, dict(zip(NAMES, part.T, strict=True))) for part in np.array_split(x, 7)]
    merged = {name: reduce(lambda a, b: a.merge(b), (part[name] for part in parts)) for name in NAMES}
    together = drift.sketch(reference, dict(zip(NAMES, x.T, strict=True)))
    assert {name: sketch.counts for name, sketch in merged.items()} == {n: s.counts for n, s in together.items()}
    assert reference.judge(merged) == reference.judge(together)


def test_what_was_not_seen_is_missing_not_quiet(reference: Reference) -> None:
    for empty in ({}, reference.empty(), drift.sketch(reference, {name: np.empty(0) for name in NAMES})):
        shifts = reference.judge(empty)
        assert len(shifts) == 3 * COLUMNS + 2
        assert {(shift.value, shift.ratio, shift.exceeds) for shift in shifts} == {(None, None, False)}
        assert all(shift.threshold > 0 for shift in shifts)
    without = chunk(reference)
    del without["x3"]
    assert {s.column for s in reference.judge(without) if s.value is None} == {"x3"}
    no_number = [s for s in reference.judge(chunk(reference, gone)) if s.column == "x6"]
    assert [(s.distance, s.value is None, s.exceeds) for s in no_number] == [
        ("psi", False, True),
        ("jensen_shannon", False, True),
        ("wasserstein", True, False),
    ]


def test_a_chunk_must_have_the_bins_and_kinds_of_the_reference(reference: Reference) -> None:
    for sketch, says in (
        (Numeric.of(np.arange(9.0)), "x3: bins must be those of the reference"),
        (Categorical.of(["a"]), "x3: must be Numeric, as in the reference, got Categorical"),
    ):
        with pytest.raises(BadDefinition, match=says):
            reference.judge({"x3": sketch})
    with pytest.raises(BadDefinition, match="kind: bins must be those of the reference"):
        reference.judge({"kind": Categorical.of(["a"])})
    with pytest.raises(BadDefinition, match="x3: must be numbers"):
        drift.sketch(reference, {"x3": ["a"]})


def test_columns_that_the_reference_does_not_know_are_left_out(reference: Reference) -> None:
    new = {"new": np.ones(3)}
    assert drift.sketch(reference, new) == {}
    assert reference.judge({"new": Numeric.of(new["new"])}) == reference.judge({})


# two in a row


def run_through(reference: Reference, ratios: list[tuple[float | None, float | None]]) -> list[tuple[str, ...]]:
    """What is alarmed after each chunk, given PSI and Wasserstein of one column, as ratios."""
    watch, said = Watch(reference), []
    for psi, work in ratios:
        watch, alarms = watch.after((Shift("x", "psi", psi, 1.0), Shift("x", "wasserstein", work, 1.0)))
        said.append(alarms)
    return said


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ([(2.0, 0.0)], [()]),
        ([(2.0, 0.0), (2.0, 0.0), (2.0, 0.0)], [(), ("x",), ("x",)]),
        ([(2.0, 2.0), (2.0, 2.0)], [(), ("x",)]),
        ([(2.0, 0.0), (0.0, 0.0), (2.0, 0.0)], [(), (), ()]),
        ([(2.0, 0.0), (0.0, 2.0), (2.0, 0.0)], [(), (), ()]),  # not by the same distance
        ([(2.0, 0.0), (None, None), (None, 0.0), (2.0, 0.0)], [(), (), (), ("x",)]),
        ([(None, None), (2.0, None), (1.0, 0.0)], [(), (), ()]),  # at the threshold is not beyond it
    ],
)
def test_an_alarm_is_the_same_distance_exceeded_twice_in_a_row(
    reference: Reference, ratios: list[tuple[float | None, float | None]], said: list[tuple[str, ...]]
) -> None:
    assert run_through(reference, ratios) == said


def test_two_columns_that_exceed_in_turn_are_no_alarm(reference: Reference) -> None:
    watch, _ = Watch(reference).after((Shift("x", "psi", 2.0, 1.0), Shift("y", "psi", 0.0, 1.0)))
    watch, alarms = watch.after((Shift("x", "psi", 0.0, 1.0), Shift("y", "psi", 2.0, 1.0)))
    assert alarms == ()
    assert watch.after((Shift("y", "psi", 2.0, 1.0),))[1] == ("y",)


# on disk


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**60))
def test_what_is_saved_judges_as_before(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder, rng = tmp_path_factory.mktemp("model"), np.random.default_rng(seed)
    blocks: list[dict[str, Sketch]] = [
        {"x": Numeric.of(np.arange(9.0)).update(rng.normal(size=9)), "é": Categorical.of(["ü", "\n"])}
        for _ in range(20)
    ]
    reference = drift.calibrate(blocks, chunk=2, rate=0.01, seed=seed)
    reference.save(folder)
    assert Reference.load(folder) == reference
    assert [path.name for path in folder.iterdir()] == ["reference.json"]
    assert Reference.load(folder).judge(blocks[3]) == reference.judge(blocks[3])


def test_a_damaged_file_is_told_in_one_line(reference: Reference, tmp_path: Path) -> None:
    with pytest.raises(Damaged, match=r"reference.json: must exist"):
        Reference.load(tmp_path)
    reference.save(tmp_path)
    path = tmp_path / "reference.json"
    whole = path.read_bytes()
    said = json.loads(whole)

    def broken(*where: str, value: object) -> bytes:
        document = json.loads(whole)
        *outer, last = where
        reduce(lambda part, key: part[key], outer, document)[last] = value
        return json.dumps(document).encode()

    counts = said["sketches"]["x0"]["counts"]
    broken_ones = [
        b"", b"\x80", b"{", b"[]", b"null", whole[:-9], whole[1:],
        broken("rate", value=2.0), broken("chunk", value=0), broken("seed", value="0"), broken("more", value=1),
        broken("thresholds", "x0", "psi", value=math.nan), broken("thresholds", "x0", "psi", value=0.0),
        broken("thresholds", "x0", "other", value=1.0), broken("thresholds", value={}), broken("rows", value={}),
        broken("rows", "x0", value=-1.0), broken("sketches", "x0", value={}), broken("sketches", value=None),
        broken("sketches", "x0", "counts", value=counts[1:]), broken("sketches", "x0", "missing", value=-1),
        broken("sketches", "x0", "counts", value=[1, *counts[1:]]), broken("sketches", "x0", "m2", value=-1.0),
        broken("sketches", "x0", "edges", value=said["sketches"]["x0"]["edges"][::-1]),
        broken("sketches", "x0", "mean", value=math.inf), broken("sketches", "x0", "edges", value=[math.nan] * 21),
        broken("sketches", "kind", "other", value=-1), broken("sketches", "kind", "counts", "a", value=0.5),
    ]  # fmt: skip
    for content in broken_ones:
        path.write_bytes(content)
        with pytest.raises(Damaged, match=r"reference.json: ") as caught:
            Reference.load(tmp_path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 2_000
    path.write_bytes(whole)
    assert Reference.load(tmp_path) == reference


def test_a_shift_is_a_value_over_its_threshold() -> None:
    shift = Shift("x", "psi", 3.0, 2.0)
    assert (shift.exceeds, shift.ratio) == (True, 1.5)
    assert not dataclasses.replace(shift, value=2.0).exceeds
