"""mlsys watch: the champion's life is judged from the log alone, as the loop judges it while it answers."""

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.cli import watching
from common.cli.desk import Desk
from common.clock import DAY, SimulatedClock
from common.errors import NotFound
from common.lifecycle.journal import Columns, Journal
from common.lifecycle.simulation import Simulation
from common.progress import Progress
from common.settings import Settings
from systems.fraud.config import SMALL
from systems.fraud.system import build

DAYS = 9
SYSTEM = build(replace(SMALL, cards=300, trees=30))


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    folder = tmp_path_factory.mktemp("lived")
    with Simulation(
        SYSTEM, folder, seed=3, days=DAYS, drift="missing_feature@6", progress=Progress(quiet=True)
    ) as made:
        made.history()
        made.train()
        made.watch()
        for _ in made.serve(DAYS):
            pass
        yield made


@pytest.fixture
def desk(lived: Simulation, tmp_path: Path) -> Desk:
    """At the end of the simulated days, in a state folder as `mlsys serve` leaves it."""
    home = tmp_path / "home"
    shutil.copytree(lived.folder / "home", home)
    (home / "fraud").mkdir()
    for path in lived.folder.glob("log.db*"):
        shutil.copy(path, home / "fraud" / path.name)
    desk = Desk(Settings(home=home, keys=lived.folder / "keys"), argparse.Namespace(json=True))
    desk.clock = SimulatedClock(lived.clock.now() + DAY // 3)  # type: ignore[assignment]
    desk.system_named = lambda name: SYSTEM  # type: ignore[method-assign]
    return desk


def arguments(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"system": "fraud", "webhook": None, "alertmanager": None, "metrics": None} | given)


def test_a_journal_read_from_the_log_is_the_one_that_was_kept(lived: Simulation) -> None:
    read, kept = Journal.read(SYSTEM, lived.log, 0), lived.journal
    for name in Columns.__dataclass_fields__:
        ours, theirs = getattr(read.columns, name), getattr(kept.columns, name)
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    assert (read.told_at, read.heard) == (kept.told_at, kept.heard)
    assert (read.answers, read.positions) == (kept.answers, kept.positions)
    np.testing.assert_array_equal(read.labels(lived.clock.now(), DAY)[0], kept.labels(lived.clock.now(), DAY)[0])


def test_the_command_finds_on_each_day_what_the_loop_found(lived: Simulation, desk: Desk) -> None:
    document = watching.watch(desk, arguments())
    assert lived.loop is not None
    _, found = lived.loop.findings[-1]
    signals = {(s["metric"], s.get("column"), s.get("kind")): s["value"] for s in document["signals"]}
    for flaw in found.data:
        if flaw.ratio is not None:
            assert signals["ml_data_flaw_ratio", flaw.column, flaw.kind] == pytest.approx(flaw.ratio), flaw
    assert signals.get(("ml_label_surprise", None, None)) == pytest.approx(found.surprise)
    assert {alert["rule"] for alert in document["firing"]} == {"DataFlaw"}
    assert all(alert["labels"]["column"] == "card_device.count_90d" for alert in document["firing"])


def test_the_signals_are_exported_for_prometheus(desk: Desk, tmp_path: Path) -> None:
    watching.watch(desk, arguments(metrics=tmp_path / "fraud.prom"))
    lines = (tmp_path / "fraud.prom").read_text().splitlines()
    assert any(
        line.startswith('ml_data_flaw_ratio{column="lag",kind="out_of_range",system="fraud"} ') for line in lines
    )
    assert [path.name for path in tmp_path.glob("*.prom*")] == ["fraud.prom"]


def test_without_a_champion_or_a_whole_day_there_is_nothing_to_watch(lived: Simulation, desk: Desk) -> None:
    desk.clock = SimulatedClock(lived.start + DAY // 2)  # type: ignore[assignment]
    with pytest.raises(NotFound, match="has not answered for a whole day yet"):
        watching.watch(desk, arguments())
    desk.settings = Settings(home=desk.settings.home.parent / "other", keys=desk.settings.keys)
    with pytest.raises(NotFound, match="no champion to watch; train and promote one"):
        watching.watch(desk, arguments())


def test_the_document_is_json(desk: Desk) -> None:
    assert json.loads(json.dumps(watching.watch(desk, arguments())))["system"] == "fraud"
