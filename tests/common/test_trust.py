"""mlsys audit verify, mlsys rotate-key: what a person reads."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from common.cli import main
from common.clock import WallClock
from common.registry.keys import Keys
from common.registry.registry import Registry


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLSYS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLSYS_KEYS", str(tmp_path / "keys"))
    return tmp_path / "home"


@pytest.fixture
def key(home: Path) -> str:
    """Of a registry where three promotions were recorded."""
    keys = Keys(home.parent / "keys")
    with Registry(home, WallClock(), keys) as registry:
        for content in "aba":
            made = home.parent / content
            made.mkdir(exist_ok=True)
            (made / "trees.txt").write_text(f"tree\n{content}\n")
            version = registry.publish("fraud", made, {"metrics": {}}, {}, [])
            registry.promote("fraud", version.name, who="ann", why="better")
    return keys.sign(b"").key


def tamper(home: Path, statement: str) -> None:
    with closing(sqlite3.connect(home / "registry.db", isolation_level=None)) as db:
        db.execute(statement)


def test_a_trail_that_is_whole_is_said_with_rows_digest_and_key(
    home: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "verify"]) == 0
    out, err = capsys.readouterr()
    assert f"3 rows, all as they were recorded; signed by key {key}" in out
    assert err == ""
    assert main(["audit", "verify", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["rows"], document["key"]) == (3, key)
    assert f"--known 3:{document['digest']}" in out


@pytest.mark.parametrize(
    ("statement", "line"),
    [
        ("UPDATE audit SET why = 'worse' WHERE row = 2", "audit row 2: is not what was recorded"),
        ("DELETE FROM audit WHERE row = 2", "audit row 2: must exist, the next one is row 3"),
        ("UPDATE audit SET row = 5 - row WHERE row > 1", "audit row 2: is not what was recorded"),
        ("DELETE FROM audit WHERE row = 3", "audit row 3: must exist, 3 were signed"),
    ],
    ids=["edited", "deleted", "reordered", "cut off"],
)
def test_a_trail_that_was_tampered_with_is_one_clear_line(
    home: Path, key: str, statement: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "5 - row" in statement:  # by way of a number that is free
        tamper(home, "UPDATE audit SET row = 9 WHERE row = 2")
        tamper(home, "UPDATE audit SET row = 2 WHERE row = 3")
        statement = "UPDATE audit SET row = 3 WHERE row = 9"
    tamper(home, statement)
    for command in (["audit", "verify"], ["versions", "fraud"], ["rotate-key"]):
        assert main(command) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith(f"mlsys: {line}")


def test_an_older_registry_in_its_place_is_told_by_what_was_known(
    home: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old = (home / "registry.db").read_bytes()
    with Registry(home, WallClock(), Keys(home.parent / "keys")) as registry:
        registry.rollback("fraud", who="eve", why="to be forgotten")
        head = registry.verify_audit()
    assert head is not None
    known = ["audit", "verify", "--known", f"4:{head.digest}"]
    assert main(known) == 0
    (home / "registry.db").write_bytes(old)
    assert main(["audit", "verify"]) == 0
    capsys.readouterr()
    assert main(known) == 1
    assert "audit row 4: must exist, it was known; an older registry was put in its place" in capsys.readouterr().err
    assert main(["audit", "verify", "--known", f"3:{head.digest}"]) == 1
    assert "audit row 3: digest must be" in capsys.readouterr().err
    for bad in ("", "3", "0:" + "0" * 64, "3:abc", "x:y"):
        assert main(["audit", "verify", "--known", bad]) == 2
        assert "--known: must be ROW:DIGEST" in capsys.readouterr().err


def test_nothing_published_is_nothing_to_verify(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "verify"]) == 0
    assert capsys.readouterr().out == "nothing was published yet, so there is nothing to verify\n"


def test_a_rotated_key_signs_and_what_was_live_stays_so(
    home: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rotate-key", "--json"]) == 0
    new = json.loads(capsys.readouterr().out)["key"]
    assert new != key
    assert main(["audit", "verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["key"] == new
    assert main(["rollback", "fraud"]) == 0


def test_a_lost_signing_key_is_one_clear_line_and_is_made_anew_on_request(
    home: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (home.parent / "keys/signing.pem").unlink()
    assert main(["rollback", "fraud"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "signing.pem: is gone, but" in err
    assert "mlsys rotate-key" in err
    assert main(["rotate-key"]) == 0
    assert main(["rollback", "fraud"]) == 0


def test_keys_in_the_state_folder_are_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLSYS_KEYS", str(home / "keys"))
    for command in (["list"], ["audit", "verify"], ["rotate-key"]):
        assert main(command) == 2
        assert capsys.readouterr().err.startswith("mlsys: MLSYS_KEYS: must lie outside MLSYS_HOME")
