"""What a person types: one clear line for a mistake, one document for a machine."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from common.cli import main, parser, simulating
from common.clock import WallClock
from common.lifecycle import faults
from common.registry.keys import Keys
from common.registry.registry import Registry
from common.schema import Event
from common.system import Answered, names
from tests.common.test_loop import shop


@pytest.fixture
def _little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bank in which whole runs are cheap."""
    monkeypatch.setenv("MLSYS_SYSTEMS", "tests.little")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLSYS_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "status", "line"),
    [
        (["train", "frod"], 2, "argument SYSTEM: invalid choice: 'frod' (choose from"),
        (["tarin", "fraud"], 2, "invalid choice: 'tarin'"),
        (["train"], 2, "the following arguments are required: SYSTEM"),
        ([], 2, "the following arguments are required: COMMAND"),
        (["train", "fraud", "--tnue", "3"], 2, "unrecognized arguments: --tnue 3"),
        (
            ["train", "fraud", "--tune", "-3"],
            2,
            "--tune: must be a whole number from 0 to 999999999, got '-3'",
        ),
        (
            ["train", "fraud", "--tune", "many"],
            2,
            "--tune: must be a whole number from 0 to 999999999, got 'many'",
        ),
        (["train", "fraud", "--preset", "tiny"], 2, "argument --preset: invalid choice: 'tiny'"),
        (["simulate", "fraud", "--days", "0"], 2, "--days: must be from 1 to 1000 days, got 0"),
        (
            ["simulate", "fraud", "--drift", "weather@3"],
            2,
            "drift: must be KIND@DAY with one of tactics, random_labels",
        ),
        (["simulate", "fraud", "--drift", "tactics@x"], 2, "got 'tactics@x'"),
        (["simulate", "fraud", "--drift", ""], 2, "drift: must be KIND@DAY"),
        (["simulate", "fraud", "--days", "9", "--drift", "tactics@9"], 2, "drift: must begin within the 9 days"),
        (["promote", "fraud", "4f0c1a"], 1, "fraud: no version '4f0c1a'; there are: none"),
        (["rollback", "fraud"], 1, "fraud: no previous champion to go back to"),
    ],
)
def test_a_mistake_is_one_clear_line(
    argv: list[str], status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mlsys: ")
    assert line in err
    assert err.count("\n") == 1


def test_a_missing_data_set_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLSYS_DATA_DIR", str(tmp_path))
    assert main(["benchmark", "fraud"]) == 1
    err = capsys.readouterr().err
    assert "MLSYS_DATA_DIR" in err
    assert "Traceback" not in err


def test_a_bad_setting_names_the_variable(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLSYS_SYSTEMS", "no_such_package")
    assert main(["list"]) == 1
    assert capsys.readouterr().err == "mlsys: MLSYS_SYSTEMS: no package 'no_such_package' can be imported\n"


def test_what_a_cluster_is_used_for_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["list"]) == 0
    assert "RAY" not in capsys.readouterr().err
    monkeypatch.setenv("MLSYS_RAY_ADDRESS", "head:6379")
    assert main(["list"]) == 0
    assert (
        capsys.readouterr().err == "MLSYS_RAY_ADDRESS is used where forecasts are made ahead, all else is done here\n"
    )


def test_a_state_folder_that_is_none_is_one_clear_line(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").write_text("")
    (home / "registry.db").write_text("not a database, but long enough to be taken for one" * 50)
    for place in (home / "file", home):
        monkeypatch.setenv("MLSYS_HOME", str(place))
        assert main(["list"]) == 1
        err = capsys.readouterr().err
        assert err.startswith("mlsys: ")
        assert err.count("\n") == 1
        assert str(place) in err


def test_a_command_that_is_told_to_stop_leaves_no_half_a_world(home: Path) -> None:
    command = [sys.executable, "-m", "common.cli", "train", "fraud"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        while running.poll() is None and not list(home.glob("world-*/log.db")):
            time.sleep(0.01)
        running.terminate()
        _, err = running.communicate(timeout=60)
    assert running.returncode == 1
    assert err.endswith("mlsys: interrupted\n")
    assert list(home.glob("world-*")) == []


def test_an_audit_trail_that_was_edited_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Registry(home, WallClock(), Keys(Path(os.environ["MLSYS_KEYS"]))) as registry:
        folder = home / "made"
        folder.mkdir()
        (folder / "trees.txt").write_text("tree\n")
        version = registry.publish("fraud", folder, {"metrics": {}}, {}, [])
        registry.promote("fraud", version.name, who="ann", why="first")
    assert main(["versions", "fraud"]) == 0
    with sqlite3.connect(home / "registry.db") as db:
        db.execute("UPDATE audit SET who = 'bob'")
    db.close()
    capsys.readouterr()
    assert main(["versions", "fraud"]) == 1
    assert "audit row 1: is not what was recorded" in capsys.readouterr().err


def test_help_shows_examples_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert f"mlsys run {names('systems')[0]}" in capsys.readouterr().out


@pytest.mark.usefixtures("_little")
def test_the_whole_loop_promotes_and_can_be_taken_back(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, days in (("RUN_DAYS", 4), ("BAD_DAY", 2), ("DRIFT_DAY", 3)):  # months of it are another test's
        monkeypatch.setattr(simulating, name, days)

    def said(*argv: str) -> dict[str, object]:
        assert main([*argv, "--json"]) == 0
        document: dict[str, object] = json.loads(capsys.readouterr().out)
        return document

    run = said("run", "fraud", "--tune", "1")
    first = run["version"]
    assert run["champion"] == first
    served = run["served"]
    assert isinstance(served, dict)
    assert served["online_offline_gap"] < 1e-9
    assert served["requests"] > 0
    loop = run["loop"]
    assert isinstance(loop, dict)
    assert [event["kind"] for event in loop["events"]][0] == "canary"
    assert "drift" in [event["kind"] for event in loop["events"]]
    assert (loop["drift"], loop["days"], sum(loop["answers"].values())) == (
        "tactics@3",
        4,
        loop["requests"] - served["requests"],
    )
    assert loop["page"] == "fraud/simulation.html"
    assert loop["unanswered"] == 0
    assert sum(loop["rungs"].values()) == sum(loop["answers"].values())
    assert loop["rungs"]["full"] == loop["answers"]["full"]

    second = said("train", "fraud", "--seed", "1")["version"]
    assert said("versions", "fraud")["versions"][0]["aliases"] == ["champion"]  # type: ignore[index]
    # it may miss a gate: in another world the champion knows as much
    assert said("promote", "fraud", str(second)[:6], "--why", "another world", "--force")["champion"] == second
    assert said("rollback", "fraud")["champion"] == first
    audit = [row["what"].removesuffix(", forced") for row in said("versions", "fraud")["audit"]]  # type: ignore[index]
    assert audit == ["promote", "promote", "rollback"]
    listed = said("list")["systems"]
    assert {"name": "fraud", "champion": first, "versions": 2} in listed  # type: ignore[operator]
    assert len(said("trials", "fraud")["trials"]) == 1  # type: ignore[arg-type]


@pytest.mark.usefixtures("_little")
def test_months_are_simulated_into_one_document_and_a_page_and_leave_nothing_else(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = home / "pages" / "two days.html"
    argv = ["simulate", "fraud", "--days", "2", "--drift", "wrong_unit@0", "--report", str(page), "--json"]
    assert main(argv) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["days"], said["drift"], said["seed"], said["page"]) == (2, "wrong_unit@0", 0, str(page))
    assert said["requests"] == sum(week["requests"] for week in said["weeks"]) > 0
    assert said["detection_delay"] == 1
    assert said["weeks"][0]["regret_without"] == said["weeks"][0]["regret"], "nothing was changed in two days"
    assert page.read_text().startswith("<!doctype html>")
    assert list(home.glob("world-*")) == []
    assert main(["versions", "fraud", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"] == [], "it all happened in a world of its own"


@pytest.mark.parametrize(("page", "said"), [("file/page.html", "must be in a folder"), ("", "must be a file, got the")])
def test_a_page_that_cannot_be_written_is_said_before_anything_is_simulated(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, page: str, said: str
) -> None:
    home.mkdir(exist_ok=True)
    (home / "file").touch()
    monkeypatch.setattr(simulating.Simulation, "history", lambda self: pytest.fail("it has begun"))
    assert main(["simulate", "fraud", "--report", str(home / page)]) == 2
    assert f"report: {said}" in capsys.readouterr().err


def test_a_request_without_an_answer_that_can_be_read_is_counted() -> None:
    class Log:
        """Two requests; one answer that is none."""

        def read(self, kind: type[Event], after: int) -> pa.Table:
            if kind is Answered:
                return pa.table({"request_id": ["a", "b"], "answer": ['{"action": "take"}', "{}"]})
            return pa.table({"event_id": ["a", "b", "c"]})

    lived = SimpleNamespace(log=Log(), system=shop())
    assert simulating._unanswered(lived, 0) == 2  # type: ignore[arg-type]


def test_what_can_be_simulated_is_said_with_an_example_that_can_be_parsed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["simulate", "--help"])
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(kind in shown for kind in faults.KINDS)
    example = shown.split("example: ")[1].split()
    assert example[:2] == ["mlsys", "simulate"]
    assert parser(names("systems")).parse_args(example[1:]).days == 90
