"""One life of a state, on the embedded backends and on servers: the same versions, digests and figures."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.csv
import pytest

from common.checks import Bench
from common.cli import main
from common.system import Answered
from systems.fraud.data import Outcome, Payment
from tests.servers import private_redis, schema

Say = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLSYS_SYSTEMS", "tests.little")


@pytest.fixture(scope="module")
def own(benches: Callable[[str, str], Bench], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bank's files, as its systems may have exported them."""
    folder = tmp_path_factory.mktemp("own")
    payments, outcomes, answers = (
        benches("tests.little", "fraud").log.read(kind) for kind in (Payment, Outcome, Answered)
    )
    pyarrow.csv.write_csv(payments.drop(["position", "created_timestamp"]), folder / "payments.csv")
    reported = outcomes.select(["payment_id", "fraud", "source"])
    reported = reported.append_column("reported_timestamp", outcomes["created_timestamp"])
    pyarrow.csv.write_csv(reported, folder / "outcomes.csv")
    actions = [json.loads(answer)["action"] for answer in answers["answer"].to_pylist()]
    decided = answers.select(["request_id", "propensity"]).rename_columns(["payment_id", "propensity"])
    pyarrow.csv.write_csv(decided.append_column("action", [actions]), folder / "decisions.csv")
    return folder


@pytest.fixture(params=["embedded", "servers"])
def backend(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], None]]:
    """What takes the state away: the folder is deleted, and the servers are empty ones."""
    monkeypatch.setenv("MLSYS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLSYS_DATABASE_URL", raising=False)
    monkeypatch.delenv("MLSYS_REDIS_URL", raising=False)
    with ExitStack() as stack:

        def new() -> None:
            shutil.rmtree(tmp_path / "home", ignore_errors=True)
            if request.param == "servers":
                monkeypatch.setenv("MLSYS_DATABASE_URL", stack.enter_context(schema()))

        if request.param == "servers":
            monkeypatch.setenv("MLSYS_REDIS_URL", stack.enter_context(private_redis(tmp_path)).url)
        new()
        yield new


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def run(*argv: str) -> dict[str, Any]:
        status = main([*argv, "--json"])
        out, err = capsys.readouterr()
        assert status == 0, err
        document: dict[str, Any] = json.loads(out)
        document.pop("seconds")
        return document

    return run


digests: dict[str, str] = {}  # by what they are of: the same on every backend


def same(what: str, digest: str) -> None:
    assert digests.setdefault(what, digest) == digest


def test_own_data_backup_restore_and_rebuild_on_every_backend(
    own: Path, backend: Callable[[], None], say: Say, tmp_path: Path
) -> None:
    trained = say("train", "fraud", "--data", str(own))
    same("the model", trained["digest"])
    events = sum(trained["examples"].values())
    assert events > 10_000
    say("promote", "fraud", trained["version"], "--force", "--why", "the first")

    copied = say("backup", str(tmp_path / "backup"))
    same("the log", copied["logs"]["fraud"]["digest"])
    before, audit = say("versions", "fraud"), say("audit", "verify")

    backend()
    assert say("restore", str(tmp_path / "backup")) == copied
    assert say("versions", "fraud") == before
    assert say("audit", "verify") == audit

    shutil.rmtree(tmp_path / "home" / "snapshots")
    rebuilt = say("rebuild", "fraud")
    assert (rebuilt["kept"], rebuilt["made"], rebuilt["elsewhere"]) == (0, 3, 0)
    assert rebuilt["events"] == copied["logs"]["fraud"]["rows"]

    again = say("train", "fraud", "--data", str(own))
    assert again["appended"]["new"] == 0
    assert again["digest"] == trained["digest"]
    assert say("list")["systems"][0]["champion"] == trained["version"]


def test_the_way_from_embedded_to_servers_is_a_backup(
    own: Path, say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLSYS_HOME", str(tmp_path / "home"))
    with schema() as url:
        monkeypatch.delenv("MLSYS_DATABASE_URL", raising=False)
        monkeypatch.delenv("MLSYS_REDIS_URL", raising=False)
        say("train", "fraud", "--data", str(own))
        copied = say("backup", str(tmp_path / "backup"))
        before = say("versions", "fraud")
        monkeypatch.setenv("MLSYS_HOME", str(tmp_path / "elsewhere"))
        monkeypatch.setenv("MLSYS_DATABASE_URL", url)
        assert say("restore", str(tmp_path / "backup")) == copied
        assert not list((tmp_path / "elsewhere").glob("**/*.db"))
        assert say("versions", "fraud") == before
        assert say("rebuild", "fraud")["events"] == copied["logs"]["fraud"]["rows"]
