"""The benchmark of the forecasting system runs to its end, in a tiny chain, and says what was asked."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pytest

for package in ("lightgbm", "statsmodels"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[forecasting]'")

from benchmarks import forecasting  # noqa: E402
from benchmarks.forecasting import Chain, Phases  # noqa: E402
from systems.forecasting.config import SMALL  # noqa: E402
from systems.forecasting.data import HORIZON  # noqa: E402
from systems.forecasting.model.panel import Panel  # noqa: E402

TINY: Final = replace(
    SMALL, history_days=430, days=440, stores=2, categories=2, products=6, review_days=240, trees=3, rows=20_000
)  # fmt: skip
SHORT: Final = Phases(warm=0.2, stored=(20.0, 0.5), what_if=(5.0, 0.5), order=(5.0, 0.5), told=2)


def test_a_chain_is_forecast_step_by_step() -> None:
    found = forecasting.speed(TINY, origins=4)
    inside = [found[f"{name}_seconds"] for name in ("panel", "theta", "rows", "fit", "forecast", "reconcile")]
    assert found["total_seconds"] == pytest.approx(sum(inside))
    assert min(inside) > 0
    assert (found["series"], found["sums"]) == (12, 1 + 2 + 2)
    assert found["rows_fitted"] <= found["rows"] <= 4 * 12 * HORIZON
    assert found["peak_rss_mb"] > 50


def test_what_was_sold_is_told_of_every_day_since_the_launch() -> None:
    chain = Chain.make(TINY, 0, "there/")
    table, plan = chain.actuals(), chain.plan()
    history = Panel.of(TINY, table)
    assert table.num_rows == int((TINY.history_days - chain.of.launch).clip(0).sum())
    assert history.last + 1 == plan.day[0]
    assert all(store.startswith("there/store-") for store, _ in history.place)
    series = np.array([history.find(*key) for key in zip(plan.store_id, plan.product_id, strict=True)])
    yesterday = history.window("units", series, plan.day, 1)[:, 0]
    sold = chain.of.launch < TINY.history_days
    assert yesterday.tolist() == chain.shelves.units[sold, TINY.history_days - 1].tolist()


def test_a_served_chain_is_measured_to_the_end() -> None:
    found = forecasting.serving(TINY, SHORT, workers=(1,))["workers_1"]
    for name in ("stored", "what_if", "order"):
        assert 0 < found[f"{name}_p50_ms"] <= found[f"{name}_p99_ms"]
    assert found["ready_seconds"] > 0
    assert 0 < found["heard_seconds"] <= found["heard_seconds_max"]


def test_all_chunks_are_forecast_and_written() -> None:
    found = forecasting.scale(TINY, sizes=(1, 3), chunk=1, shared=(), run=forecasting.scaled)
    one, three = (found["sizes"][size] for size in ("1", "3"))
    assert one["series"] < three["series"] <= 3 * found["series_in_chunk"]
    assert three["seconds_per_1000"] == pytest.approx(1_000 * three["seconds"] / three["series"])


def test_a_part_that_was_not_run_stays_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "forecasting.json"
    forecasting.put(file, {"speed": {"fit_seconds": 1.0}, "scale": {"exponent": 1.0}})
    forecasting.put(file, {"scale": {"exponent": 1.1}})
    assert json.loads(file.read_text()) == {"speed": {"fit_seconds": 1.0}, "scale": {"exponent": 1.1}}


def test_what_is_asked_stands_beside_the_figure(capsys: pytest.CaptureFixture[str]) -> None:
    forecasting.show({"serving": {"workers_1": {"stored_p99_ms": 4.0}}}, {})
    assert "4.0000  asked: <= 5" in capsys.readouterr().out
