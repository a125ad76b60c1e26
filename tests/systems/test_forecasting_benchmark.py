import gzip
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("lightgbm", reason="lightgbm is not installed: pip install -e '.[forecasting]'")

from common.errors import BadBundle, BadData, NotFound
from systems.forecasting import benchmark as room
from systems.forecasting.benchmark import combine, dataset, local, protocol, trees
from systems.forecasting.benchmark.dataset import HOURLY, WEEKLY, Frequency, Panel, Values

DATA_DIR = os.environ.get("MLSYS_DATA_DIR")
FEW = settings(max_examples=30)
real_data = pytest.mark.skipif(not DATA_DIR, reason="MLSYS_DATA_DIR is not set: it names the folder with forecasting/")


def row(*values: float) -> Values:
    return np.array([values])


# Measures


def test_smape_is_that_of_a_hand_computed_forecast() -> None:
    # 200 * 1/3 and 200 * 2/6
    assert protocol.smape(row(1, 4), row(2, 2)) == pytest.approx([200 / 3])


def test_mase_scales_by_the_seasonal_naive_error_in_the_series_itself() -> None:
    y = row(1, 5, 2, 8)  # of season 2: |2-1|, |8-5|
    assert protocol.scale(y, 2) == pytest.approx([2])
    assert protocol.scale(y, 1) == pytest.approx([(4 + 3 + 6) / 3])
    assert protocol.mase(row(1, 3), row(2, 6), np.array([2.0])) == pytest.approx([1])


def test_what_a_series_does_not_have_counts_for_nothing() -> None:
    y = np.array([[np.nan, np.nan, 3, 4, 6], [1, 2, 3, 4, 5]])
    assert protocol.scale(y, 1) == pytest.approx([1.5, 1])


def test_msis_is_the_width_and_forty_times_what_lies_outside() -> None:
    lower, upper = row(0, 0, 0), row(2, 2, 2)
    assert protocol.msis(row(1, 3, -0.5), lower, upper, np.array([2.0])) == pytest.approx([(2 + 42 + 22) / 3 / 2])


def test_acd_is_the_distance_of_coverage_from_95_percent() -> None:
    inside = np.ones((1, 20))
    assert protocol.acd(inside, 0 * inside, 2 * inside) == pytest.approx(0.05)
    inside[0, 0] = 3
    assert protocol.acd(inside, np.zeros((1, 20)), np.full((1, 20), 2.0)) == pytest.approx(0)


def test_owa_is_a_ratio_of_means_not_a_mean_of_ratios() -> None:
    one, other = np.array([1.0, 3.0]), np.array([2.0, 2.0])
    assert protocol.owa(one, other, (np.array([4.0, 4.0]), np.array([1.0, 3.0]))) == pytest.approx((0.5 + 1) / 2)


@FEW
@given(st.integers(0, 10_000), st.floats(0.01, 1_000))
def test_measures_do_not_depend_on_the_unit(seed: int, unit: float) -> None:
    rng = np.random.default_rng(seed)
    y, actual, point = (rng.uniform(1, 9, (3, n)) for n in (30, 4, 4))
    lower, upper = point - 1, point + 1
    for one, other in (
        (protocol.smape(actual, point), protocol.smape(unit * actual, unit * point)),
        (
            protocol.mase(actual, point, protocol.scale(y, 4)),
            protocol.mase(unit * actual, unit * point, protocol.scale(unit * y, 4)),
        ),
        (
            protocol.msis(actual, lower, upper, protocol.scale(y, 4)),
            protocol.msis(unit * actual, unit * lower, unit * upper, protocol.scale(unit * y, 4)),
        ),
    ):
        np.testing.assert_allclose(one, other)
    np.testing.assert_allclose(unit * protocol.naive2(y, 4, 4), protocol.naive2(unit * y, 4, 4))


@FEW
@given(st.integers(0, 10_000))
def test_smape_lies_between_0_and_200_and_takes_either_side_for_the_forecast(seed: int) -> None:
    a, b = np.random.default_rng(seed).uniform(0.01, 50, (2, 5, 7))
    assert ((protocol.smape(a, b) >= 0) & (protocol.smape(a, b) <= 200)).all()
    np.testing.assert_array_equal(protocol.smape(a, b), protocol.smape(b, a))
    assert not protocol.smape(a, a).any()


@FEW
@given(st.integers(0, 10_000))
def test_msis_is_least_at_the_quantiles_of_what_comes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    actual = rng.normal(50, 4, (1, 2_000))
    low, high = np.quantile(actual, [0.025, 0.975])

    def of(shift: float) -> float:
        edges = np.full_like(actual, low - shift), np.full_like(actual, high + shift)
        return float(protocol.msis(actual, *edges, np.ones(1))[0])

    assert of(0) < min(of(3), of(-3))


def test_the_interval_of_naive2_against_itself_is_1() -> None:
    errors = np.random.default_rng(0).uniform(1, 9, (2, 40))
    found = protocol.interval(errors[0], errors[1], (errors[0], errors[1]))
    assert found == pytest.approx({"owa": 1, "low": 1, "high": 1})
    half = protocol.interval(errors[0] / 2, errors[1][::-1], (errors[0], errors[1]))
    assert half["low"] < half["owa"] < half["high"]


# The competition's own methods


def test_the_seasonal_naive_repeats_the_last_season() -> None:
    assert protocol.seasonal_naive(row(1, 2, 3, 4, 5), 5, 3).tolist() == [[3, 4, 5, 3, 4]]
    assert protocol.naive(row(1, 2), 3).tolist() == [[2, 2, 2]]


@FEW
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_naive2_is_exact_for_a_level_times_a_season(seed: int, season: int) -> None:
    rng = np.random.default_rng(seed)
    pattern = rng.permutation(np.linspace(0.4, 1.6, season))
    y = np.resize(pattern, 12 * season + 2 + 5)[None] * 70
    np.testing.assert_allclose(protocol.naive2(y[:, :-5], 5, season), y[:, -5:])


def test_a_series_that_is_not_seasonal_is_forecast_by_naive() -> None:
    y = np.random.default_rng(0).uniform(10, 20, (1, 100))
    assert not protocol.is_seasonal(y[0], 12)
    np.testing.assert_array_equal(protocol.naive2(y, 6, 12), protocol.naive(y, 6))
    assert not protocol.is_seasonal(np.resize([1.0, 9.0], 5), 2)  # fewer than three seasons


@FEW
@given(st.floats(-3, 3), st.floats(100, 200))
def test_theta_follows_half_the_slope_of_a_line(slope: float, level: float) -> None:
    y = level + slope * np.arange(30.0)[None]
    # the line itself, and the smoothed double of what is left of it, which is the line again
    expected = level + slope * (29 + np.arange(1, 4) / 2)
    np.testing.assert_allclose(protocol.theta(y, 3, 1)[0], expected, rtol=1e-3, atol=0.1)


@FEW
@given(st.integers(0, 10_000))
def test_smoothing_with_a_late_start_is_that_of_the_series_alone(seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=12)
    padded = np.stack([np.r_[np.full(5, np.nan), x], np.arange(17.0)])
    np.testing.assert_allclose(protocol.smoothed(padded)[0], protocol.smoothed(x[None])[0])


# Local methods


@FEW
@given(st.lists(st.floats(1, 1_000), min_size=3, max_size=3), st.integers(0, 6))
def test_an_autoregression_continues_what_repeats_itself(pattern: list[float], missing: int) -> None:
    y = np.resize(pattern, 47)[None]
    known = y[:, :42].copy()
    known[:, : 3 * missing] = np.nan  # whole periods, so that the mean stays
    np.testing.assert_allclose(local.autoregression(known, 5, (1, 3), 1e-9), y[:, 42:], rtol=1e-3)


def test_a_look_alike_is_found_in_another_series_whatever_its_level() -> None:
    rng = np.random.default_rng(0)
    walk = np.exp(np.cumsum(rng.normal(0, 0.05, 90)))
    y = np.full((3, 90), np.nan)
    y[0] = 3 * walk
    y[1] = np.exp(np.cumsum(rng.normal(0, 0.05, 90)))
    y[2, -60:] = 80 * walk[10:70]  # 20 steps behind the first
    found, likeness = local.look_alike(y, 8, 30)
    assert likeness[2] == pytest.approx(1)
    np.testing.assert_allclose(found[2], 80 * walk[70:78])
    assert likeness[0] < 0.9


def test_a_series_shorter_than_the_window_has_no_look_alike() -> None:
    y = np.exp(np.random.default_rng(0).normal(size=(2, 60)))
    y[1, :40] = np.nan
    found, likeness = local.look_alike(y, 3, 30)
    assert likeness[1] == -1
    assert likeness[0] > -1
    np.testing.assert_allclose(found[1], y[1, -1])


# What the trees see


@pytest.mark.parametrize("frequency", [HOURLY, WEEKLY])
def test_rows_at_an_origin_know_nothing_after_it(frequency: Frequency) -> None:
    rows = trees.hourly_rows if frequency is HOURLY else trees.weekly_rows
    y = np.random.default_rng(0).uniform(5, 9, (3, 600))
    before = rows(y[:, :500].copy(), frequency.horizon)
    later = y.copy()
    later[:, 500:] = 1e6
    after = rows(later[:, :500], frequency.horizon)
    np.testing.assert_array_equal(before.x, after.x)
    np.testing.assert_array_equal(before.base, after.base)
    assert before.x.shape[:2] == before.base.shape == (3, frequency.horizon)


# The whole, on small files


def write(path: Path, ids: Sequence[str], rows: Sequence[Values]) -> None:
    width = max(map(len, rows))
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(",".join(f'"V{i}"' for i in range(1, width + 2)) + "\n")
        for name, values in zip(ids, rows, strict=True):
            cells = [f"{v:.3f}" for v in values] + ["NA"] * (width - len(values))
            file.write(",".join([f'"{name}"', *cells]) + "\n")


def small(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    hours = np.arange(600 + 48)
    daily = [
        200 + 60 * np.sin(2 * np.pi * (hours + shift) / 24) + 30 * (hours // 24 % 7 > 4) + rng.normal(0, 4, len(hours))
        for shift in (0, 3, 9, 14)
    ]
    weeks = np.arange(200 + 13)
    yearly = [
        500 + 100 * np.sin(2 * np.pi * (weeks + shift) / 52) + np.cumsum(rng.normal(0, 5, len(weeks)))
        for shift in (0, 5, 20, 40)
    ]
    for name, series, h in (("Hourly", daily, 48), ("Weekly", yearly, 13)):
        ids = [f"{name[0]}{i}" for i in range(len(series))]
        cut = [s[100:] if i == 1 and name == "Weekly" else s for i, s in enumerate(series)]  # one is younger
        write(folder / f"{name}-train.csv.gz", ids, [s[:-h] for s in cut])
        write(folder / f"{name}-test.csv.gz", ids, [s[-h:] for s in cut])
    return folder


def quick() -> tuple[combine.Way, ...]:
    return tuple(
        replace(
            way,
            backtests=1,
            recipe=replace(
                way.recipe, rounds=8, quantile_rounds=8, spans=((20, 60),),
                params={**way.recipe.params, "min_data_in_leaf": 5, "num_leaves": 7},
            ),
        )
        for way in room.ways()
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("m4"))


@pytest.fixture(scope="module")
def made(folder: Path) -> room.BenchmarkResult:
    return room.run(folder, quick(), check=False)


def test_a_small_set_runs_from_end_to_end(made: room.BenchmarkResult) -> None:
    names = {f"{part}/{metric}" for part in ("hourly", "weekly") for metric in ("owa", "smape", "mase", "msis")}
    assert made.metrics.keys() == names
    assert made.metrics["hourly/owa"] < 1
    assert made.rows == 8
    for part in ("hourly", "weekly"):
        test = made.details[part]["test"]
        assert test.keys() >= {"Naive", "sNaive", "Naive2", "Theta", "trees", "combination"}
        assert test["Naive2"]["owa"] == pytest.approx(1)
        assert test["combination"]["owa"] == made.metrics[f"{part}/owa"]
        edges = test["combination"]["owa_interval"]
        assert edges["low"] <= edges["owa"] <= edges["high"]
        assert 0 <= test["combination"]["coverage"] <= 1
    json.dumps(made.details)


def test_the_same_files_give_the_same_numbers(folder: Path, made: room.BenchmarkResult) -> None:
    assert room.run(folder, quick(), check=False) == made


def test_the_test_part_changes_scores_and_no_choice(
    folder: Path, made: room.BenchmarkResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    for name in ("Hourly", "Weekly"):
        (tmp_path / f"{name}-train.csv.gz").write_bytes((folder / f"{name}-train.csv.gz").read_bytes())
    opened: list[str] = []
    forecast = combine.forecast

    def then_write(y: Values, way: combine.Way) -> combine.Forecasts:
        found = forecast(y, way)  # there is no test file yet
        opened.append(way.recipe.frequency.name)
        if len(opened) == 2:
            for name, h in (("Hourly", 48), ("Weekly", 13)):
                rows = list(rng.uniform(50, 900, (4, h)))
                write(tmp_path / f"{name}-test.csv.gz", [f"{name[0]}{i}" for i in range(4)], rows)
        return found

    monkeypatch.setattr(combine, "forecast", then_write)
    other = room.run(tmp_path, quick(), check=False)
    for part in ("hourly", "weekly"):
        assert other.details[part]["chosen"] == made.details[part]["chosen"]
        assert other.metrics[f"{part}/owa"] != made.metrics[f"{part}/owa"]


def test_other_numbers_than_the_published_ones_are_refused(folder: Path) -> None:
    panel = dataset.train(folder, HOURLY)
    with pytest.raises(BadData, match="hourly Naive smape: must be 43.003, got"):
        room.reproduce(HOURLY, panel, dataset.test(folder, HOURLY, panel))


# The files


def test_a_younger_series_begins_later_and_ends_with_the_others(folder: Path) -> None:
    panel = dataset.train(folder, WEEKLY)
    assert panel.y.shape == (4, 200)
    assert np.isnan(panel.y).sum(1).tolist() == [0, 100, 0, 0]
    assert not np.isnan(panel.y[:, -1]).any()


@pytest.mark.parametrize(
    ("cell", "says"),
    [("x", "W1 must hold numbers"), ("-1", "W1 must hold finite values above 0"), ("inf", "W1 must hold finite")],
)
def test_a_value_that_cannot_be_is_refused(tmp_path: Path, cell: str, says: str) -> None:
    with gzip.open(tmp_path / "Weekly-train.csv.gz", "wt") as file:
        file.write(f'"V1","V2","V3"\n"W1","5","{cell}"\n')
    with pytest.raises(BadData, match=f"Weekly-train.csv.gz: {says}"):
        dataset.train(tmp_path, WEEKLY)


def test_a_test_file_of_other_series_or_another_horizon_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "Weekly-test.csv.gz", ["W1"], [np.ones(12)])
    with pytest.raises(BadData, match="W1 must have 13 values, got 12"):
        dataset.test(tmp_path, WEEKLY, Panel(["W1"], np.ones((1, 20))))
    with pytest.raises(BadData, match="must be of the series of the training file"):
        dataset.test(tmp_path, WEEKLY, Panel(["W2"], np.ones((1, 20))))


def test_without_the_data_it_says_where_to_get_it() -> None:
    with pytest.raises(NotFound, match=r"M4 Hourly and Weekly.*MLSYS_DATA_DIR.*M4-methods"):
        room.benchmark(None)


@real_data
@pytest.mark.parametrize("name", list(dataset.DATASET.files))
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    source = dataset.find(Path(str(DATA_DIR)))
    (tmp_path / "forecasting").mkdir()
    for each in dataset.DATASET.files:
        content = (source / each).read_bytes()
        (tmp_path / "forecasting" / each).write_bytes(content[:-1] if each == name else content)
    with pytest.raises(BadBundle, match=f"{name}: SHA-256 must be"):
        room.benchmark(tmp_path)


@real_data
@pytest.mark.parametrize(("frequency", "series", "longest"), [(HOURLY, 414, 960), (WEEKLY, 359, 2_597)])
def test_the_published_naive_scores_are_reproduced(frequency: Frequency, series: int, longest: int) -> None:
    folder = dataset.find(Path(str(DATA_DIR)))
    panel = dataset.train(folder, frequency)
    assert panel.y.shape == (series, longest)
    actual = dataset.test(folder, frequency, panel)
    room.reproduce(frequency, panel, actual)
    theta = protocol.theta(panel.y, frequency.horizon, frequency.season)  # smoothed by another optimiser
    published = room.PUBLISHED[frequency.name]["Theta"]
    assert protocol.smape(actual, theta).mean() == pytest.approx(published["smape"], rel=0.005)
    scale = protocol.scale(panel.y, frequency.season)
    assert protocol.mase(actual, theta, scale).mean() == pytest.approx(published["mase"], rel=0.005)
