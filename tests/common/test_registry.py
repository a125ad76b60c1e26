import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.clock import SimulatedClock
from common.data.database import open_database
from common.errors import BadBundle, BadRecord, BadSetting, Conflict, Damaged, GateFailed, NotFound
from common.registry import bundle
from common.registry.gates import Gate, Verdict
from common.registry.keys import Keys
from common.registry.registry import Registry, State, Traffic, Version

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
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys")


Opened = Callable[[], Registry]
Tamper = Callable[[str], None]


@pytest.fixture
def opened(home: Path, clock: SimulatedClock, keys: Keys, database_url: str | None) -> Opened:
    """As another process would."""
    return lambda: Registry(home, clock, keys, database_url)


@pytest.fixture
def registry(opened: Opened) -> Iterator[Registry]:
    with opened() as registry:
        yield registry


@pytest.fixture
def tamper(home: Path, database_url: str | None) -> Tamper:
    """Statements past the registry, as whoever has the database but not the key would do them."""

    def run(statements: str) -> None:
        with closing(open_database(database_url, home / "registry.db", "tamper", "")) as db:
            for statement in statements.split(";"):
                db.execute(statement)

    return run


def folder(home: Path, content: str) -> Path:
    made = home.parent / f"made-{content}"
    (made / "deep").mkdir(parents=True, exist_ok=True)
    (made / "trees.txt").write_text(f"tree\n{content}\n")
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
    assert (path / "trees.txt").read_text() == "tree\na\n"
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
    assert [path.name for path in (home / "bundles").iterdir()] == [first.digest]


def test_what_one_system_published_is_no_version_of_another(registry: Registry, home: Path) -> None:
    first = registry.publish("search", folder(home, "a"), {}, {}, [])
    with pytest.raises(BadBundle, match=r"manifest\.json: system: must be fraud, got search"):
        registry.publish("fraud", folder(home, "a"), {}, {}, [])
    assert registry.versions("fraud") == []
    with pytest.raises(BadBundle, match=r"manifest\.json: system: must be fraud, got search"):
        registry.path(replace(first, system="fraud"))


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


def test_digits_that_several_versions_begin_with_are_refused(registry: Registry, home: Path) -> None:
    def digest(content: str) -> str:
        files = {"deep/settings.json": "{}", "trees.txt": f"tree\n{content}\n"}
        return hashlib.sha256(
            json.dumps(sorted((k, hashlib.sha256(v.encode()).hexdigest()) for k, v in files.items())).encode()
        ).hexdigest()

    seen: dict[str, str] = {}
    i = 0
    while (start := digest(str(i))[:4]) not in seen:
        seen[start] = str(i)
        i += 1
    one, two = (registry.publish("search", folder(home, n), {}, {}, []) for n in (seen[start], str(i)))
    assert one.digest == digest(seen[start])
    with pytest.raises(NotFound, match=f"search: several versions '{start}'; there are: {one.name}, {two.name}"):
        registry.get("search", start)
    assert registry.get("search", two.name) == two


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
    other = registry.publish("fraud", folder(home, "d"), {}, {}, [])
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
    registry: Registry, opened: Opened, versions: list[Version]
) -> None:
    def decide(i: int) -> bool:
        with opened() as mine:
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


@pytest.fixture
def split(registry: Registry, versions: list[Version]) -> Traffic:
    """A tenth of the units go to b, and the answers of c, which missed its gate, are logged."""
    a, b, c = (version.name for version in versions)
    registry.promote("search", a, **SAID)
    traffic = Traffic(canary=b, canary_share=0.1, shadow=(c,))
    assert registry.set_traffic("search", traffic, **SAID, expected=1) == 2
    return traffic


def test_a_traffic_is_part_of_the_state_and_of_the_trail(
    registry: Registry, opened: Opened, versions: list[Version], split: Traffic
) -> None:
    a, b, c = (version.name for version in versions)
    assert registry.state("search") == State(2, {"champion": a}, split)
    assert registry.traffic("search") == split
    assert registry.traffic("fraud") == Traffic()
    more = Traffic(canary=b, canary_share=0.3)
    assert registry.set_traffic("search", more, who="bob", why="it does well") == 3
    assert registry.set_traffic("search", more, **SAID) == 3
    assert registry.set_traffic("search", Traffic(), **SAID) == 4
    texts = [f'{{"canary":"{b}","canary_share":0.1,"shadow":["{c}"]}}', f'{{"canary":"{b}","canary_share":0.3}}']
    assert [(row.what, row.was, row.became) for row in registry.audit()][1:] == [
        ("traffic", None, texts[0]),
        ("traffic", texts[0], texts[1]),
        ("traffic", texts[1], None),
    ]
    assert (registry.audit()[2].who, registry.audit()[2].why) == ("bob", "it does well")
    with opened() as again:
        assert again.state("search") == State(4, {"champion": a}, Traffic())
        again.verify_audit()


def test_a_traffic_decided_on_an_old_revision_is_a_conflict(
    registry: Registry, versions: list[Version], split: Traffic
) -> None:
    with pytest.raises(Conflict, match="search: aliases were at revision 1 and are now at 2; look again"):
        registry.set_traffic("search", Traffic(), **SAID, expected=1)
    with pytest.raises(Conflict):
        registry.promote("search", versions[1].name, **SAID, expected=1)
    assert registry.traffic("search") == split


def test_of_those_who_set_a_traffic_on_one_revision_one_wins(
    registry: Registry, opened: Opened, versions: list[Version], split: Traffic
) -> None:
    b = versions[1].name

    def decide(i: int) -> bool:
        with opened() as mine:
            try:
                mine.set_traffic("search", Traffic(canary=b, canary_share=i / 10), **SAID, expected=2)
            except Conflict:
                return False
            return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(decide, range(2, 10))) == 1
    assert registry.revision("search") == 3
    registry.verify_audit()


@pytest.mark.parametrize("change", ["promote the canary", "promote another", "roll back"])
def test_with_another_champion_a_split_ends_in_the_same_moment(
    registry: Registry, versions: list[Version], change: str
) -> None:
    a, b, c = (version.name for version in versions)
    registry.promote("search", a, **SAID)
    registry.promote("search", c, **SAID, force=True)
    registry.set_traffic("search", Traffic(canary=b, canary_share=0.5, shadow=(a,)), **SAID)
    if change == "roll back":
        assert registry.rollback("search", **SAID) == 4
        assert registry.state("search") == State(4, {"champion": a})
    else:
        name = b if change == "promote the canary" else a
        assert registry.promote("search", name, **SAID) == 4
        assert registry.state("search") == State(4, {"champion": name, "previous": c})
    registry.verify_audit()
    other = Traffic(canary=c, canary_share=0.5)
    registry.set_traffic("search", other, **SAID, force=True)
    registry.verify_audit()


def test_a_challenger_may_come_and_go_beside_a_split(
    registry: Registry, versions: list[Version], split: Traffic
) -> None:
    registry.set_alias("search", "challenger", versions[1].name, **SAID)
    registry.promote("search", versions[0].name, **SAID)  # the champion again
    assert registry.traffic("search") == split
    registry.verify_audit()


def test_a_canary_and_an_arm_must_clear_their_gates_and_a_shadow_need_not(
    registry: Registry, versions: list[Version]
) -> None:
    a, b, c = (version.name for version in versions)
    registry.promote("search", a, **SAID)
    missed = (Traffic(canary=c, canary_share=0.01), Traffic(arms={b: 0.5, c: 0.1}))
    for traffic in missed:
        with pytest.raises(GateFailed, match=f"search {c}: auc: must be >= 0.8, got 0.7"):
            registry.set_traffic("search", traffic, **SAID)
    registry.set_traffic("search", Traffic(shadow=(c,)), **SAID)
    for traffic in missed:
        registry.set_traffic("search", traffic, **SAID, force=True)
    registry.set_traffic("search", Traffic(arms={b: 0.5}), **SAID, force=True)
    assert [row.what for row in registry.audit()][1:] == ["traffic", "traffic, forced", "traffic, forced", "traffic"]
    registry.verify_audit()


def test_a_canary_that_was_judged_against_another_champion_has_not_cleared_its_gates(
    registry: Registry, home: Path
) -> None:
    a, b = (registry.publish("search", folder(home, n), {}, {"champion": None}, [PASSED]).name for n in ("a", "b"))
    registry.promote("search", a, **SAID)
    with pytest.raises(GateFailed, match=f"search {b}: was judged against no champion, not {a}; train again"):
        registry.set_traffic("search", Traffic(canary=b, canary_share=0.1), **SAID)
    registry.set_traffic("search", Traffic(shadow=(b,)), **SAID)


def test_a_split_names_versions_that_are_there_whole_and_not_the_champion(
    registry: Registry, home: Path, versions: list[Version]
) -> None:
    a, b, _ = (version.name for version in versions)
    with pytest.raises(NotFound, match="search: no champion to share the traffic with; promote a version first"):
        registry.set_traffic("search", Traffic(shadow=(b,)), **SAID)
    registry.promote("search", a, **SAID)
    with pytest.raises(BadSetting, match=f"traffic: must not name the champion, which gets the rest, got {a}"):
        registry.set_traffic("search", Traffic(arms={a: 0.5}), **SAID)
    with pytest.raises(NotFound, match=f"search: traffic names a version in full: {b}, got '{b[:6]}'"):
        registry.set_traffic("search", Traffic(canary=b[:6]), **SAID)
    with pytest.raises(NotFound, match="search: no version 'ffffffffffff'"):
        registry.set_traffic("search", Traffic(shadow=("ffffffffffff",)), **SAID)
    with pytest.raises(BadRecord, match="canary_share: input should be less than or equal to 1, got '1.2'"):
        registry.set_traffic("search", Traffic(canary=b).model_copy(update={"canary_share": 1.2}), **SAID)
    spoil(home, versions[1])
    for traffic in (Traffic(canary=b), Traffic(arms={b: 0.1}), Traffic(shadow=(b,))):
        with pytest.raises(BadBundle, match=r"trees\.txt: SHA-256 must be"):
            registry.set_traffic("search", traffic, **SAID, force=True)
    assert registry.state("search") == State(1, {"champion": a})


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE alias SET name = replace(name, '0.1', '0.9') WHERE alias = 'traffic'",
        "DELETE FROM alias WHERE alias = 'traffic'",
        "UPDATE alias SET system = 'fraud' WHERE alias = 'traffic'",
        "UPDATE alias SET name = '{' WHERE alias = 'traffic'",
        "INSERT INTO alias (system, alias, name) VALUES ('fraud', 'traffic', '{}')",
    ],
)
def test_a_split_that_was_changed_past_the_registry_is_neither_read_nor_built_upon(
    registry: Registry, versions: list[Version], split: Traffic, tamper: Tamper, change: str
) -> None:
    tamper(change)
    for use in (
        lambda: registry.traffic("search"),
        lambda: registry.alias("fraud", "champion"),
        lambda: registry.set_traffic("search", Traffic(), **SAID),
        lambda: registry.rollback("search", **SAID),
    ):
        with pytest.raises(BadBundle, match="the aliases are not those that were signed"):
            use()
    with pytest.raises(BadBundle, match="traffic: is .* by the audit trail, but the registry says"):
        registry.verify_audit()


def test_a_split_of_an_older_time_does_not_fit_the_head_of_now(
    registry: Registry, versions: list[Version], split: Traffic, tamper: Tamper
) -> None:
    old = registry.audit()[-1].became
    registry.set_traffic("search", Traffic(), **SAID)
    tamper(f"INSERT INTO alias (system, alias, name) VALUES ('search', 'traffic', '{old}')")
    with pytest.raises(BadBundle, match="the aliases are not those that were signed"):
        registry.state("search")


def test_a_private_copy_is_whole_and_what_is_changed_later_does_not_reach_it(
    registry: Registry, home: Path, versions: list[Version]
) -> None:
    with registry.private(versions[0]) as copy:
        spoil(home, versions[0])
        assert (copy / "trees.txt").read_text() == "tree\na\n"
        assert (copy / "deep/settings.json").read_text() == "{}"
        assert not copy.is_relative_to(home)
    assert not copy.parent.exists()
    with pytest.raises(BadBundle, match=r"trees\.txt: SHA-256 must be"):
        with registry.private(versions[0]):
            pytest.fail("a spoilt version was handed out")
    with pytest.raises(BadBundle, match="its digest must begin so"):
        with registry.private(replace(versions[0], digest=versions[1].digest)):
            pytest.fail("another version was handed out")


EDITED = "is not what was recorded"
TAMPERING: dict[str, tuple[str, str]] = {
    "edited": ("UPDATE audit SET who = 'nobody' WHERE row = 2", f"audit row 2: {EDITED}"),
    "its reason edited": ("UPDATE audit SET why = '' WHERE row = 4", f"audit row 4: {EDITED}"),
    "its version edited": ("UPDATE audit SET was = NULL WHERE row = 3", f"audit row 3: {EDITED}"),
    "its time edited": ("UPDATE audit SET created = created + 1 WHERE row = 1", f"audit row 1: {EDITED}"),
    "deleted": ("DELETE FROM audit WHERE row = 3", "audit row 3: must exist, the next one is row 4"),
    "the first deleted": ("DELETE FROM audit WHERE row = 1", "audit row 1: must exist, the next one is row 2"),
    "deleted and closed up": (
        "DELETE FROM audit WHERE row = 3; UPDATE audit SET row = 3 WHERE row = 4", f"audit row 3: {EDITED}",
    ),
    "reordered": (
        "UPDATE audit SET row = 9 WHERE row = 2; UPDATE audit SET row = 2 WHERE row = 3; "
        "UPDATE audit SET row = 3 WHERE row = 9",
        f"audit row 2: {EDITED}",
    ),
    "the last cut off": ("DELETE FROM audit WHERE row = 4", "audit row 4: must exist, 4 were signed"),
    "the last two cut off": ("DELETE FROM audit WHERE row > 2", "audit row 3: must exist, 4 were signed"),
    "all cut off": ("DELETE FROM audit", "audit row 1: must exist, 4 were signed"),
    "all, the head too": ("DELETE FROM audit; DELETE FROM audit_head", "audit head: must exist, table alias is not"),
    "all, head and aliases too": (
        "DELETE FROM audit; DELETE FROM audit_head; DELETE FROM alias", "audit head: must exist, table version is not",
    ),
    "the head alone": ("DELETE FROM audit_head", "audit head: must exist, table audit is not empty"),
    "cut off, the head's count too": (
        "DELETE FROM audit WHERE row = 4; UPDATE audit_head SET row = 3", "audit row 3: is not the one that was signed",
    ),
    "cut off, the head's row too": (
        "DELETE FROM audit WHERE row = 4; UPDATE audit_head SET row = 3, digest = (SELECT digest FROM audit "
        "WHERE row = 3)",
        "audit head: signature: is not one of key",
    ),
    "the head's signature gone": ("UPDATE audit_head SET signature = ''", "audit head: signature: must be ed25519"),
    "a version's signature as the head's": (
        "UPDATE audit_head SET signature = (SELECT signature FROM version WHERE number = 1)",
        "audit head: signature: is not one of key",
    ),
    "an alias moved": (
        "UPDATE alias SET name = 'aaaaaaaaaaaa' WHERE alias = 'champion'",
        "search: champion: is [0-9a-f]{12} by the audit trail, but the registry says aaaaaaaaaaaa",
    ),
    "an alias dropped": (
        "DELETE FROM alias WHERE alias = 'previous'", "search: previous: is .* but the registry says none",
    ),
    "an alias added": (
        "INSERT INTO alias (system, alias, name) VALUES ('other', 'champion', 'aaaaaaaaaaaa')",
        "other: champion: is none by the audit trail, but the registry says aaaaaaaaaaaa",
    ),
}  # fmt: skip


@pytest.fixture
def trail(registry: Registry, versions: list[Version]) -> list[str]:
    a, b, _ = (version.name for version in versions)
    for name in (a, b, a, b):
        registry.promote("search", name, **SAID)
    return [a, b]


@pytest.mark.parametrize("what", TAMPERING)
def test_a_trail_that_was_tampered_with_is_found_and_the_row_named(
    registry: Registry, trail: list[str], tamper: Tamper, what: str
) -> None:
    change, message = TAMPERING[what]
    head = registry.verify_audit()
    assert head is not None
    assert head.row == 4
    tamper(change)
    with pytest.raises(BadBundle, match=message) as caught:
        registry.verify_audit()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", [what for what in TAMPERING if "cut off" in what or "head" in what])
def test_a_trail_that_lost_its_end_is_not_signed_anew(
    registry: Registry, home: Path, trail: list[str], tamper: Tamper, what: str
) -> None:
    tamper(TAMPERING[what][0])
    for write in (
        lambda: registry.promote("search", trail[0], **SAID),
        lambda: registry.rollback("search", **SAID),
        lambda: registry.set_alias("search", "challenger", trail[0], **SAID),
        lambda: registry.publish("search", folder(home, "z"), {}, {}, []),
        lambda: registry.rotate(),
    ):
        with pytest.raises(BadBundle, match="^audit "):
            write()
    with pytest.raises(BadBundle, match="^audit "):
        registry.verify_audit()


def test_an_edited_row_with_a_digest_to_match_breaks_the_next_one(
    registry: Registry, trail: list[str], tamper: Tamper
) -> None:
    first, second, *_ = registry.audit()
    digest = replace(second, who="nobody").chained(first.digest)
    tamper(f"UPDATE audit SET who = 'nobody', digest = '{digest}' WHERE row = 2")
    with pytest.raises(BadBundle, match="audit row 3: is not what was recorded"):
        registry.verify_audit()


def test_a_trail_written_anew_to_its_end_is_not_what_was_signed(
    registry: Registry, trail: list[str], tamper: Tamper
) -> None:
    before = ""
    for row in registry.audit():
        forged = replace(row, who="nobody")
        before = forged.chained(before or "0" * 64)
        tamper(f"UPDATE audit SET who = 'nobody', digest = '{before}' WHERE row = {row.row}")
    with pytest.raises(BadBundle, match="audit row 4: is not the one that was signed as the last"):
        registry.verify_audit()
    tamper(f"UPDATE audit_head SET digest = '{before}'")
    with pytest.raises(BadBundle, match="audit head: signature: is not one of key"):
        registry.verify_audit()


def test_a_row_added_past_the_registry_is_found(registry: Registry, trail: list[str], tamper: Tamper) -> None:
    last = registry.audit()[-1]
    row = replace(last, row=5, was=trail[1], became=trail[0])
    digest = row.chained(last.digest)
    tamper(f"INSERT INTO audit SELECT 5, system, created, who, what, why, '{row.was}', '{row.became}', '{digest}' "
           "FROM audit WHERE row = 4")  # fmt: skip
    with pytest.raises(BadBundle, match="audit row 5: must not exist, only 4 were signed"):
        registry.verify_audit()


def test_the_head_of_an_older_time_does_not_fit_the_rows_of_now(
    registry: Registry, trail: list[str], tamper: Tamper
) -> None:
    old = registry.verify_audit()
    assert old is not None
    registry.promote("search", trail[0], **SAID)
    tamper(f"UPDATE audit_head SET row = 4, digest = '{old.digest}', signature = '{old.signature}'")
    with pytest.raises(BadBundle, match="audit row 5: must not exist, only 4 were signed"):
        registry.verify_audit()


def test_a_trail_signed_by_somebody_else_is_refused(
    registry: Registry, home: Path, trail: list[str], clock: SimulatedClock, database_url: str | None, tmp_path: Path
) -> None:
    with Registry(home, clock, Keys(tmp_path / "others"), database_url) as stranger:
        with pytest.raises(BadBundle, match="audit head: signature: key .* is not trusted"):
            stranger.verify_audit()
        with pytest.raises(BadBundle, match=r"audit head: signature: key .* is not trusted"):
            stranger.rollback("search", **SAID)
        with pytest.raises(BadBundle, match="is not what was published: signature: key"):
            stranger.get("search", trail[0])
        with pytest.raises(BadBundle, match=r"manifest\.sig: signature: key .* is not trusted"):
            stranger.path(registry.get("search", trail[0]))
    registry.verify_audit()


def test_an_empty_registry_has_nothing_to_verify_and_makes_no_key(registry: Registry, keys: Keys) -> None:
    assert registry.verify_audit() is None
    assert not keys.folder.exists()


def test_after_a_rotation_all_is_still_believed_and_the_head_is_signed_anew(
    registry: Registry, home: Path, keys: Keys, trail: list[str]
) -> None:
    old = keys.sign(b"").key
    key = registry.rotate()
    head = registry.verify_audit()
    assert head is not None
    assert head.key == key != old
    registry.path(registry.get("search", trail[1]))
    assert registry.rollback("search", **SAID) == 5
    (keys.folder / f"trusted/{old}.pem").unlink()
    registry.verify_audit()
    with pytest.raises(BadBundle, match=f"signature: key {old} is not trusted"):
        registry.promote("search", trail[1], **SAID)
    new = registry.publish("search", folder(home, "new"), {}, {}, [PASSED])
    assert registry.promote("search", new.name, **SAID) == 6


def test_keys_inside_the_state_folder_are_refused(home: Path, clock: SimulatedClock) -> None:
    with pytest.raises(BadSetting, match="MLSYS_KEYS: must lie outside MLSYS_HOME"):
        Registry(home, clock, Keys(home / "keys"))
    assert not home.exists()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE version SET verdicts = '[]' WHERE number = 3",  # the gate that it missed
        "UPDATE version SET report = '{\"auc\": 1.0}' WHERE number = 3",
        "UPDATE version SET lineage = '{}' WHERE number = 3",
        "UPDATE version SET created = 7 WHERE number = 3",
        "UPDATE version SET digest = (SELECT digest FROM version WHERE number = 1) WHERE number = 3",
        "UPDATE version SET signature = (SELECT signature FROM version WHERE number = 1) WHERE number = 3",
        "UPDATE version SET signature = (SELECT signature FROM audit_head) WHERE number = 3",
        "UPDATE version SET report = '{' WHERE number = 3",
    ],
)
def test_what_was_said_of_a_version_cannot_be_edited(
    registry: Registry, versions: list[Version], tamper: Tamper, change: str
) -> None:
    a, _, c = (version.name for version in versions)
    registry.promote("search", a, **SAID)
    tamper(change)
    for write in (
        lambda: registry.promote("search", c, **SAID),
        lambda: registry.set_alias("search", "challenger", c, **SAID),
    ):
        with pytest.raises(BadBundle, match=f"search {c}: is not what was published: signature"):
            write()
    assert registry.aliases("search") == {"champion": a}
    registry.path(registry.get("search", a))


def test_a_version_that_cannot_be_read_is_one_clear_line(
    registry: Registry, versions: list[Version], tamper: Tamper
) -> None:
    tamper("UPDATE version SET report = '{' WHERE number = 2")
    with pytest.raises(Damaged, match=f"search {versions[1].name}: what was recorded of it cannot be read"):
        registry.versions("search")


def test_a_version_that_points_at_another_bundle_is_not_loaded(registry: Registry, versions: list[Version]) -> None:
    with pytest.raises(BadBundle, match="its digest must begin so"):
        registry.path(replace(versions[0], digest=versions[1].digest))


def spoil_signature(folder: Path) -> None:
    (folder / bundle.SIGNATURE).write_text(f"ed25519 {'0' * 16} {'0' * 128}")


def rename(folder: Path) -> None:
    (folder / "trees.txt").rename(folder / "forest.txt")


def link(folder: Path) -> None:
    (folder / "trees.txt").rename(folder.parent.parent / "trees.txt")
    (folder / "trees.txt").symlink_to("../../trees.txt")


def link_all(folder: Path) -> None:
    folder.rename(folder.parent.parent / "moved")
    folder.symlink_to(folder.parent.parent / "moved")


def forge(folder: Path) -> None:
    (folder / "trees.txt").write_text("tree\nforged\n")
    bundle.seal(folder, "search", {}, Keys(folder.parents[2] / "others"))


def disguise(folder: Path) -> None:
    (folder / "trees.txt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")


SPOILT: dict[str, Callable[[Path], object]] = {
    "changed": lambda folder: (folder / "trees.txt").write_text("tree\nspoilt\n"),
    "added": lambda folder: (folder / "more.json").write_text("{}"),
    "missing": lambda folder: (folder / "trees.txt").unlink(),
    "renamed": rename,
    "a link": link,
    "a link to a bundle": link_all,
    "gone": shutil.rmtree,
    "unsigned": lambda folder: (folder / bundle.SIGNATURE).unlink(),
    "wrongly signed": spoil_signature,
    "signed by another key": forge,
    "without manifest": lambda folder: (folder / bundle.MANIFEST).unlink(),
    "a pickle in disguise": disguise,
    "a pipe": lambda folder: os.mkfifo(folder / "pipe.txt"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_version_is_never_live_and_the_live_one_goes_on(
    registry: Registry, home: Path, versions: list[Version], how: str
) -> None:
    a, b, _ = (version.name for version in versions)
    registry.promote("search", a, **SAID)
    registry.promote("search", b, **SAID)
    SPOILT[how](home / "bundles" / versions[0].digest)
    for use in (
        lambda: registry.path(versions[0]),
        lambda: registry.private(versions[0]).__enter__(),
        lambda: registry.set_traffic("search", Traffic(canary=versions[0].name), **SAID),
        lambda: registry.rollback("search", **SAID),
        lambda: registry.promote("search", a, **SAID),
        lambda: registry.set_alias("search", "challenger", a, **SAID),
    ):
        with pytest.raises(BadBundle) as caught:
            use()
        assert "\n" not in str(caught.value)
    assert registry.state("search") == State(2, {"champion": b, "previous": a})
    assert (registry.path(registry.get("search", b)) / "trees.txt").read_text() == "tree\nb\n"
    registry.verify_audit()


def test_a_bundle_in_anothers_place_is_refused(registry: Registry, home: Path, versions: list[Version]) -> None:
    a, b = (home / "bundles" / version.digest for version in versions[:2])
    shutil.rmtree(a)
    b.rename(a)
    with pytest.raises(BadBundle, match=f"manifest.json: digest must be {versions[0].digest}"):
        registry.path(versions[0])


EMPTIED = "DELETE FROM version; DELETE FROM alias; DELETE FROM audit; DELETE FROM audit_head"


def test_a_registry_that_lost_all_is_not_taken_for_a_new_one(
    opened: Opened, home: Path, registry: Registry, trail: list[str], tamper: Tamper
) -> None:
    tamper(EMPTIED)
    with pytest.raises(Damaged, match=re.escape(f"has no audit head, but {home}/bundles holds versions; restore")):
        opened()


def test_a_bundle_left_by_a_publisher_that_was_killed_does_no_harm(
    opened: Opened, home: Path, registry: Registry, tamper: Tamper
) -> None:
    version = registry.publish("search", folder(home, "a"), {}, {}, [])
    tamper("DELETE FROM version")  # as if it had come no further than the bundle
    with opened() as again:
        assert again.versions("search") == []
        assert again.publish("search", folder(home, "a"), {}, {}, []).digest == version.digest
        again.verify_audit()


def wipe(path: Path) -> None:
    path.write_bytes(b"")


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def tear(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [wipe, zero, tear, lambda path: path.write_text("no database" * 500), Path.unlink])
def test_a_damaged_database_is_said_and_never_an_empty_registry(
    home: Path, clock: SimulatedClock, keys: Keys, damage: Callable[[Path], object]
) -> None:
    with Registry(home, clock, keys) as registry:
        version = registry.publish("search", folder(home, "a"), {}, {}, [PASSED])
        registry.promote("search", version.name, **SAID)
    damage(home / "registry.db")
    with pytest.raises(Damaged, match="restore a backup") as caught:
        with Registry(home, clock, keys) as registry:
            registry.verify_audit()
    assert "\n" not in str(caught.value)


def test_a_registry_is_found_again_in_its_folder(registry: Registry, opened: Opened, versions: list[Version]) -> None:
    registry.promote("search", versions[0].name, **SAID)
    with opened() as again:
        assert again.versions("search") == versions
        assert again.aliases("search") == {"champion": versions[0].name}
        assert again.versions("search")[2].verdicts == (Verdict(GATE, False, 0.7, 0.8, FAILED.message),)
        assert again.audit() == registry.audit()
        again.verify_audit()


def test_an_alias_that_was_moved_past_the_registry_is_neither_read_nor_built_upon(
    registry: Registry, versions: list[Version], tamper: Tamper
) -> None:
    registry.promote("search", versions[0].name, who="ann", why="first")
    tamper(f"UPDATE alias SET name = '{versions[1].name}'")
    for read in (lambda: registry.alias("search", "champion"), lambda: registry.revision("other")):
        with pytest.raises(BadBundle, match="the aliases are not those that were signed"):
            read()
    with pytest.raises(BadBundle, match="the aliases are not those that were signed"):
        registry.promote("search", versions[1].name, who="bob", why="second")
    with pytest.raises(BadBundle, match=f"champion: is {versions[0].name} by the audit trail"):
        registry.verify_audit()


@given(at=st.floats(0, 1, exclude_max=True), damage=st.sampled_from(["torn", "zeroed", "flipped"]))
@settings(deadline=None, max_examples=100)
def test_a_damaged_database_is_refused_or_says_what_it_said_before(
    whole: tuple[bytes, Callable[[], Registry]], at: float, damage: str
) -> None:
    content, reopened = whole
    place = int(at * len(content))
    damaged = {
        "torn": content[:place],
        "zeroed": content[:place] + bytes(len(content) - place),
        "flipped": content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :],
    }[damage]
    with reopened() as registry:
        expected = said_of(registry)
        path = registry._db.path  # type: ignore[attr-defined]
    path.write_bytes(damaged)
    try:
        with reopened() as registry:
            found = said_of(registry)
    except (Damaged, BadBundle, NotFound) as error:
        found = expected if "\n" not in str(error) else error
    finally:
        for name in ("", "-wal", "-shm"):
            Path(f"{path}{name}").unlink(missing_ok=True)
        path.write_bytes(content)
    assert found == expected


def said_of(registry: Registry) -> object:
    registry.verify_audit()
    versions = [registry.get("shop", version.name) for version in registry.versions("shop")]
    return versions, registry.aliases("shop"), registry.audit()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Callable[[], Registry]]:
    """A registry's file, and what opens it."""
    home, keys = tmp_path_factory.mktemp("home"), Keys(tmp_path_factory.mktemp("of") / "keys")

    def reopened() -> Registry:
        return Registry(home, SimulatedClock(1), keys)

    with reopened() as registry:
        for content in "abcdef":
            made = tmp_path_factory.mktemp("made")
            (made / "trees.txt").write_text(f"tree\n{content}")
            version = registry.publish("shop", made, {"metrics": {"x": 1.0}}, {"snapshots": {}}, [])
            registry.promote("shop", version.name, who="ann", why="because")
    return (home / "registry.db").read_bytes(), reopened
