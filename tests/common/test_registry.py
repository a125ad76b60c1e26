import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.clock import SimulatedClock
from common.errors import BadBundle, BadSetting, Conflict, GateFailed, NotFound
from common.registry.gates import Gate, Verdict
from common.registry.registry import Registry, Version

GATE = Gate("auc", 0.8, better="higher")
PASSED, FAILED = GATE.check({"auc": 0.9}, {}), GATE.check({"auc": 0.7}, {})
SAID: dict[str, Any] = {"who": "ada", "why": "it is better"}


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock(1_000)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def registry(home: Path, clock: SimulatedClock) -> Iterator[Registry]:
    with Registry(home, clock) as registry:
        yield registry


def folder(home: Path, content: str) -> Path:
    made = home.parent / f"made-{content}"
    (made / "deep").mkdir(parents=True, exist_ok=True)
    (made / "trees.txt").write_text(content)
    (made / "deep/settings.json").write_text("{}")
    return made


@pytest.fixture
def versions(registry: Registry, home: Path) -> list[Version]:
    """Three of one system; the last one missed its gate."""
    verdicts = {"a": PASSED, "b": PASSED, "c": FAILED}
    return [registry.publish("search", folder(home, n), {"auc": 0.9}, {"seed": n}, [v]) for n, v in verdicts.items()]


def spoil(home: Path, version: Version) -> None:
    (home / "bundles" / version.digest / "trees.txt").write_text("spoilt")


def test_a_published_version_is_what_was_said_of_it(registry: Registry, home: Path) -> None:
    made = folder(home, "a")
    report = {"metrics": {"auc": 0.9}, "rows": 7}
    version = registry.publish("search", made, report, {"seed": 1, "snapshots": ["ab"]}, [PASSED, FAILED])
    assert version == Version(
        "search", version.digest[:12], version.digest, 1_000, report, {"seed": 1, "snapshots": ["ab"]}, (PASSED, FAILED)
    )
    assert registry.get("search", version.name) == version
    assert registry.versions("search") == [version]
    assert registry.versions("fraud") == []
    path = registry.path(version)
    assert path == home / "bundles" / version.digest
    assert (path / "trees.txt").read_text() == "a"
    assert (path / "deep/settings.json").read_text() == "{}"
    assert not (made / "manifest.json").exists()


def test_the_same_files_are_the_same_version_recorded_once(
    registry: Registry, home: Path, clock: SimulatedClock
) -> None:
    first = registry.publish("search", folder(home, "a"), {"auc": 0.9}, {"seed": 1}, [PASSED])
    clock.advance(2_000)
    again = registry.publish("search", folder(home, "a"), {"auc": 0.7}, {"seed": 2}, [FAILED])
    assert (again.name, again.created, again.verdicts) == (first.name, first.created, (FAILED,))
    assert registry.versions("search") == [again]
    other = registry.publish("fraud", folder(home, "a"), {}, {}, [])
    assert (other.digest, other.created) == (first.digest, 2_000)
    assert [path.name for path in (home / "bundles").iterdir()] == [first.digest]


def test_a_file_that_no_bundle_may_hold_publishes_nothing(registry: Registry, home: Path) -> None:
    made = folder(home, "a")
    (made / "model.pkl").write_bytes(b"")
    with pytest.raises(BadBundle, match=r"model\.pkl: suffix must be"):
        registry.publish("search", made, {}, {}, [])
    (made / "model.pkl").unlink()
    (made / "link.txt").symlink_to("/etc/passwd")
    with pytest.raises(BadBundle, match=r"link\.txt: must be a plain file"):
        registry.publish("search", made, {}, {}, [])
    assert registry.versions("search") == []
    assert list((home / "bundles").iterdir()) == []


def test_concurrent_publishers_of_one_bundle_agree(registry: Registry, home: Path) -> None:
    made = folder(home, "a")
    with ThreadPoolExecutor(8) as pool:
        published = list(pool.map(lambda _: registry.publish("search", made, {}, {}, []), range(16)))
    assert published == [published[0]] * 16
    assert [path.name for path in (home / "bundles").iterdir()] == [published[0].digest]


def test_a_bundle_is_verified_on_every_call(registry: Registry, home: Path, versions: list[Version]) -> None:
    registry.path(versions[0])
    spoil(home, versions[0])
    with pytest.raises(BadBundle, match=r"trees\.txt: SHA-256 must be"):
        registry.path(versions[0])
    with pytest.raises(BadBundle, match=r"trees\.txt: SHA-256 must be"):
        registry.publish("search", folder(home, "a"), {}, {}, [])


def test_four_digits_name_a_version_and_what_there_is_is_listed(registry: Registry, versions: list[Version]) -> None:
    a, b, c = (version.name for version in versions)
    assert registry.get("search", a[:4]).name == a
    for name in (a[:3], "", "ffff", "%", f"{a}0"):
        with pytest.raises(NotFound) as caught:
            registry.get("search", name)
        assert str(caught.value) == f"search: no version {name!r}; there are: {a}, {b}, {c}"
    with pytest.raises(NotFound, match="fraud: no version 'ffff'; there are: none"):
        registry.get("fraud", "ffff")


def test_digits_that_several_versions_begin_with_are_refused(
    registry: Registry, home: Path, versions: list[Version]
) -> None:
    with closing(sqlite3.connect(home / "registry.db")) as db:
        for i, version in enumerate(versions[:2]):
            db.execute("UPDATE version SET name = ? WHERE name = ?", (f"abcd{i}", version.name))
        db.commit()
    with pytest.raises(NotFound, match="search: several versions 'abcd'; there are: abcd0, abcd1"):
        registry.get("search", "abcd")
    assert registry.get("search", "abcd1").name == "abcd1"


def test_a_verdict_against_a_champion_that_is_gone_is_none(registry: Registry, home: Path) -> None:
    a, b = (
        registry.publish("search", folder(home, name), {}, {"champion": None}, [PASSED]).name for name in ("a", "b")
    )
    registry.promote("search", a, who="ann", why="first")
    with pytest.raises(GateFailed, match=f"was judged against no champion, not {a}; train again"):
        registry.promote("search", b, who="ann", why="it cleared its gates, once")
    assert registry.alias("search", "champion") == a
    registry.promote("search", b, who="ann", why="I know better", force=True)
    assert registry.audit("search")[-1].what == "promote, forced"


def test_promotion_moves_the_champion_to_previous(
    registry: Registry, versions: list[Version], clock: SimulatedClock
) -> None:
    a, b, _ = (version.name for version in versions)
    assert registry.revision("search") == 0
    assert registry.aliases("search") == {}
    assert registry.promote("search", a, **SAID) == 1
    assert registry.aliases("search") == {"champion": a}
    clock.advance(5_000)
    assert registry.promote("search", b[:6], who="bob", why="newer", expected=1) == 2
    assert registry.aliases("search") == {"champion": b, "previous": a}
    assert registry.alias("search", "champion") == b
    assert registry.alias("search", "challenger") is None
    first, second = registry.audit("search")
    assert (first.row, first.who, first.what, first.was, first.became) == (1, "ada", "promote", None, a)
    assert (second.row, second.created, second.who, second.what) == (2, 5_000, "bob", "promote")
    assert (second.why, second.was, second.became) == ("newer", a, b)


def test_systems_have_aliases_and_revisions_of_their_own(
    registry: Registry, home: Path, versions: list[Version]
) -> None:
    other = registry.publish("fraud", folder(home, "a"), {}, {}, [])
    registry.promote("search", versions[1].name, **SAID)
    assert registry.revision("fraud") == 0
    registry.promote("fraud", other.name, **SAID, expected=0)
    assert registry.aliases("fraud") == {"champion": other.name}
    assert [row.system for row in registry.audit()] == ["search", "fraud"]
    assert [row.row for row in registry.audit("fraud")] == [2]
    registry.verify_audit()


def test_promoting_the_champion_again_changes_nothing(registry: Registry, versions: list[Version]) -> None:
    a, b, _ = (version.name for version in versions)
    registry.promote("search", a, **SAID)
    registry.promote("search", b, **SAID)
    assert registry.promote("search", b, **SAID, expected=2) == 2
    assert registry.aliases("search") == {"champion": b, "previous": a}
    assert len(registry.audit()) == 2


def test_a_decision_on_an_old_revision_is_a_conflict(registry: Registry, versions: list[Version]) -> None:
    a, b, _ = (version.name for version in versions)
    registry.promote("search", a, **SAID, expected=0)
    with pytest.raises(Conflict, match="search: aliases were at revision 0 and are now at 1; look again"):
        registry.promote("search", b, **SAID, expected=0)
    with pytest.raises(Conflict):
        registry.promote("search", a, **SAID, expected=0)
    with pytest.raises(Conflict):
        registry.rollback("search", **SAID, expected=0)
    with pytest.raises(Conflict):
        registry.set_alias("search", "challenger", b, **SAID, expected=0)
    assert registry.aliases("search") == {"champion": a}


def test_of_those_who_decide_on_one_revision_one_wins(
    registry: Registry, home: Path, clock: SimulatedClock, versions: list[Version]
) -> None:
    def decide(i: int) -> bool:
        with Registry(home, clock) as mine:
            try:
                mine.promote("search", versions[i % 2].name, **SAID, expected=0)
            except Conflict:
                return False
            return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(decide, range(8))) == 1
    assert registry.revision("search") == 1
    registry.verify_audit()


def test_what_missed_a_gate_is_promoted_only_by_force_and_the_audit_says_so(
    registry: Registry, versions: list[Version]
) -> None:
    c = versions[2].name
    with pytest.raises(GateFailed, match=f"search {c}: auc: must be >= 0.8, got 0.7"):
        registry.promote("search", c, **SAID)
    assert registry.aliases("search") == {}
    registry.promote("search", c, **SAID, force=True)
    registry.promote("search", versions[0].name, **SAID, force=True)
    assert [row.what for row in registry.audit()] == ["promote, forced", "promote"]


def test_rollback_brings_the_previous_champion_back_once(registry: Registry, versions: list[Version]) -> None:
    a, b, _ = (version.name for version in versions)
    with pytest.raises(NotFound, match="search: no previous champion to go back to"):
        registry.rollback("search", **SAID)
    registry.promote("search", a, **SAID)
    registry.promote("search", b, **SAID)
    assert registry.rollback("search", who="eve", why="it is worse", expected=2) == 3
    assert registry.aliases("search") == {"champion": a}
    row = registry.audit()[-1]
    assert (row.who, row.what, row.why, row.was, row.became) == ("eve", "rollback", "it is worse", b, a)
    with pytest.raises(NotFound, match="search: no previous champion to go back to"):
        registry.rollback("search", **SAID)


def test_a_spoilt_bundle_becomes_neither_champion_nor_challenger(
    registry: Registry, home: Path, versions: list[Version]
) -> None:
    a, b, _ = (version.name for version in versions)
    registry.promote("search", a, **SAID)
    registry.promote("search", b, **SAID)
    spoil(home, versions[0])
    with pytest.raises(BadBundle, match=r"trees\.txt"):
        registry.rollback("search", **SAID)
    with pytest.raises(BadBundle, match=r"trees\.txt"):
        registry.promote("search", a, **SAID)
    with pytest.raises(BadBundle, match=r"trees\.txt"):
        registry.set_alias("search", "challenger", a, **SAID)
    assert registry.aliases("search") == {"champion": b, "previous": a}
    assert registry.revision("search") == 2


def test_a_challenger_is_named_dropped_and_no_longer_one_when_promoted(
    registry: Registry, versions: list[Version]
) -> None:
    a, b, c = (version.name for version in versions)
    assert registry.set_alias("search", "challenger", c[:8], **SAID) == 1
    assert registry.set_alias("search", "challenger", c, **SAID) == 1
    assert registry.alias("search", "challenger") == c
    assert registry.set_alias("search", "challenger", None, **SAID) == 2
    assert registry.aliases("search") == {}
    registry.set_alias("search", "challenger", b, **SAID)
    registry.promote("search", a, **SAID)
    assert registry.aliases("search") == {"champion": a, "challenger": b}
    registry.promote("search", b, **SAID)
    assert registry.aliases("search") == {"champion": b, "previous": a}
    assert [(row.what, row.was, row.became) for row in registry.audit()][:2] == [
        ("challenger", None, c),
        ("challenger", c, None),
    ]
    with pytest.raises(BadSetting, match="alias: must be challenger; .* got 'champion'"):
        registry.set_alias("search", "champion", a, **SAID)


TAMPERING = [
    ("UPDATE audit SET who = 'nobody' WHERE row = 2", "audit row 2: is not what was recorded"),
    ("UPDATE audit SET why = '' WHERE row = 4", "audit row 4: is not what was recorded"),
    ("UPDATE audit SET was = NULL WHERE row = 3", "audit row 3: is not what was recorded"),
    ("UPDATE audit SET created = created + 1 WHERE row = 1", "audit row 1: is not what was recorded"),
    ("DELETE FROM audit WHERE row = 3", "audit row 3: must exist, the next one is row 4"),
    ("DELETE FROM audit WHERE row = 1", "audit row 1: must exist, the next one is row 2"),
    (
        "DELETE FROM audit WHERE row = 3; UPDATE audit SET row = 3 WHERE row = 4",
        "audit row 3: is not what was recorded",
    ),
    (
        "UPDATE audit SET row = 9 WHERE row = 2; UPDATE audit SET row = 2 WHERE row = 3; "
        "UPDATE audit SET row = 3 WHERE row = 9",
        "audit row 2: is not what was recorded",
    ),
]


@pytest.mark.parametrize(("change", "message"), TAMPERING)
def test_an_audit_row_that_was_edited_deleted_or_moved_is_named(
    registry: Registry, home: Path, versions: list[Version], change: str, message: str
) -> None:
    a, b, _ = (version.name for version in versions)
    for name in (a, b, a, b):
        registry.promote("search", name, **SAID)
    registry.verify_audit()
    with closing(sqlite3.connect(home / "registry.db")) as db:
        db.executescript(change)
    with pytest.raises(BadBundle, match=message):
        registry.verify_audit()


def test_an_edited_audit_row_with_a_digest_to_match_breaks_the_next_one(
    registry: Registry, home: Path, versions: list[Version]
) -> None:
    a, b, _ = (version.name for version in versions)
    for name in (a, b, a):
        registry.promote("search", name, **SAID)
    first, second, _ = registry.audit()
    forged = replace(second, who="nobody")
    with closing(sqlite3.connect(home / "registry.db")) as db:
        digest = forged.chained(first.digest)
        db.execute("UPDATE audit SET who = 'nobody', digest = ? WHERE row = 2", (digest,))
        db.commit()
    with pytest.raises(BadBundle, match="audit row 3: is not what was recorded"):
        registry.verify_audit()


def test_a_registry_is_found_again_in_its_folder(
    registry: Registry, home: Path, clock: SimulatedClock, versions: list[Version]
) -> None:
    registry.promote("search", versions[0].name, **SAID)
    with Registry(home, clock) as again:
        assert again.versions("search") == versions
        assert again.aliases("search") == {"champion": versions[0].name}
        assert again.versions("search")[2].verdicts == (Verdict(GATE, False, 0.7, 0.8, FAILED.message),)
        assert again.audit() == registry.audit()
        again.verify_audit()
