"""Forecasts made ahead over a cluster are the same, whoever dies meanwhile."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pytest

for package in ("lightgbm", "statsmodels"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[forecasting]'")

from common.clock import DAY  # noqa: E402
from common.errors import BadSetting  # noqa: E402
from common.features.view import Array, numbers  # noqa: E402
from common.spread import spread  # noqa: E402
from systems.forecasting.config import SMALL  # noqa: E402
from systems.forecasting.data import HORIZON, LEVELS, Review  # noqa: E402
from systems.forecasting.model import panel  # noqa: E402
from systems.forecasting.model.ahead import everything  # noqa: E402
from systems.forecasting.model.forecaster import Blend, Core, Trees, start  # noqa: E402
from systems.forecasting.model.panel import Panel, Plan  # noqa: E402
from tests.nodes import PATIENCE, ROOT, cluster, known, until, wait_for_the_end  # noqa: E402

CONFIG: Final = replace(SMALL, memory=84, trees=5)
SERIES, SIZE, FIRST, DAYS = 42, 3, 20_000, 120
WORKER_DIES, NODE_DIES = 2, 6  # parts of so many series each


@cache
def chain() -> tuple[Core, Panel, Plan]:
    """What was sold of many products in one store, and what a version learned from it."""
    rng = np.random.default_rng(0)
    level = rng.gamma(2.0, 4.0, SERIES)
    days = np.arange(FIRST, FIRST + DAYS)
    units = rng.poisson(level[:, None] * (1 + 0.4 * np.sin(2 * np.pi * days / 7)))
    day = np.tile(days, SERIES)
    history = Panel.of(
        CONFIG,
        pa.table(
            {
                "store_id": ["s"] * len(day),
                "product_id": [name_of(i) for i in range(SERIES) for _ in range(DAYS)],
                "category": ["c"] * len(day), "day": day, "units": units.ravel().astype(float),
                "price": np.full(len(day), 2.0), "promoted": rng.random(len(day)) < 0.1,
                "sold_out": np.zeros(len(day), bool), "created_timestamp": (day + 1) * DAY,
                "position": np.arange(len(day)) + 1,
            }
        ),
    )  # fmt: skip
    past = plan(FIRST + DAYS - HORIZON)
    rows = panel.rows(history, past)
    x, z, scale = panel.features(history, past, rows), units[:, -HORIZON:].ravel(), numbers(rows.columns["level"]) + 1
    names = [f"f{i}" for i in range(x.shape[1])]
    trees = Trees.fit(CONFIG, x, z.astype(float), scale, names, start(CONFIG))
    blend = Blend.fit(rows.columns, trees.quantiles(x, scale, 1), z.astype(float))
    return Core(trees, blend), history, plan(FIRST + DAYS)


def name_of(series: int) -> str:
    return f"{series:03d}"


def plan(day: int) -> Plan:
    return Plan.of(
        [
            Review(
                event_id=f"{day}/{i}", event_timestamp=day * DAY, store_id="s", product_id=name_of(i), category="c",
                day=day, prices=(2.0, 1.8), promoted=(False, i % 2 == 0),
            )
            for i in range(SERIES)
        ]
    )  # fmt: skip


@dataclass(frozen=True)
class Mortal:
    """The same model, but one part waits for the end of its worker, and one on the second node for that node's."""

    core: Core
    folder: Path
    second: int  # session of that node

    def quantiles(self, columns: pa.Table, x: Array, threads: int = 1) -> Array:
        part = int(columns["product_id"][0].as_py()) // SIZE
        if part == WORKER_DIES:
            wait_for_the_end(self.folder / "worker", os.getpid())
        if part >= NODE_DIES:
            if os.getsid(0) == self.second:
                wait_for_the_end(self.folder / "node", os.getppid())
            until((self.folder / "node").exists)  # so that the first node does not do it all
        return self.core.quantiles(columns, x, threads)


def drive(folder: str, second: int) -> None:
    """What the test runs in a process of its own: Ray leaves traces in whoever speaks to it."""
    core, history, planned = chain()
    np.save(Path(folder) / "forecasts.npy", everything(Mortal(core, Path(folder), second), history, planned, SIZE))


def test_a_killed_worker_and_a_lost_node_of_a_cluster_change_no_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    token = secrets.token_hex(32)
    with cluster(token, 2) as (address, (_, second)), tempfile.TemporaryDirectory() as name:
        known(monkeypatch, token)
        folder = Path(name)
        call = f"from tests.systems.test_forecasting_ray import drive; drive({name!r}, {second})"
        driver = subprocess.Popen(
            [sys.executable, "-c", call], cwd=ROOT, env=os.environ | {"MLSYS_RAY_ADDRESS": address},
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            for victim in (folder / "worker", folder / "node"):
                until(lambda at=victim: driver.poll() is not None or at.exists() and at.read_text().endswith("\n"))
                assert driver.poll() is None, driver.stderr and driver.stderr.read()
                os.kill(int(victim.read_text()), signal.SIGKILL)
            _, said = driver.communicate(timeout=PATIENCE)
        finally:
            driver.kill()
        assert driver.returncode == 0, said
        assert (folder / "worker.again").exists()
        there, here = np.load(folder / "forecasts.npy"), everything(*chain())
        assert there.shape == (SERIES, HORIZON, len(LEVELS))
        assert np.array_equal(there, here)
        assert len(np.unique(here[:, 0, 3])) > SERIES / 2  # they are forecasts, and not all alike

        monkeypatch.setenv("RAY_AUTH_TOKEN", "guessed")
        with pytest.raises(BadSetting, match=f"^RAY_AUTH_TOKEN: must be the token of the cluster at {address}, or"):
            next(spread(abs, [1], address=address))
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        monkeypatch.setenv("HOME", name)  # where it might lie, too
        with pytest.raises(BadSetting, match="^RAY_AUTH_TOKEN: must be"):
            next(spread(abs, [1], address=address))
