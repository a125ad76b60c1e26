"""API keys: who is let in, who is not, and what is told to whom."""

import hashlib
import json
import os
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.cli import main
from common.clock import DAY, SECOND, SimulatedClock
from common.data.database import Sqlite
from common.errors import BadSetting, Forbidden, NotFound, Unauthenticated, Unavailable
from common.registry.keys import Keys
from common.serving.auth import MISSING, REFUSED, SCOPES, ApiKey, ApiKeys, RateLimits, Scope

START = 1_800_000_000 * SECOND


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock(START)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys")


@pytest.fixture
def embedded(tmp_path: Path, clock: SimulatedClock, keys: Keys) -> Iterator[ApiKeys]:
    with closing(ApiKeys(tmp_path / "home", clock, keys)) as api_keys:
        yield api_keys


@pytest.fixture
def opened(
    tmp_path: Path, clock: SimulatedClock, keys: Keys, database_url: str | None
) -> Iterator[Callable[[], ApiKeys]]:
    """As another process would, on either backend."""
    made: list[ApiKeys] = []

    def another() -> ApiKeys:
        made.append(ApiKeys(tmp_path / "home", clock, keys, database_url))
        return made[-1]

    yield another
    for api_keys in made:
        api_keys.close()


@pytest.fixture
def api_keys(opened: Callable[[], ApiKeys]) -> ApiKeys:
    return opened()


def created(api_keys: ApiKeys, *scopes: Scope, expires: int | None = None, rate: str | None = None) -> str:
    return api_keys.create("shop", scopes or ("score",), expires=expires, rate=rate)


def refused(api_keys: ApiKeys, presented: str | None, message: str = REFUSED) -> None:
    with pytest.raises(Unauthenticated) as caught:
        api_keys.caller(presented)
    assert str(caught.value) == message


def test_a_key_is_its_callers_with_all_that_was_given_to_it(api_keys: ApiKeys) -> None:
    key = api_keys.create("shop", ["score", "label"], expires=START + DAY, rate="5/second")
    found = api_keys.caller(key)
    expected = ApiKey(found.id, "shop", frozenset({"score", "label"}), "5/second", START, START + DAY, None)
    assert found == expected
    assert list(api_keys.list()) == [expected]
    assert key.startswith(f"mlsys_{found.id}_")
    assert len(key) == 62


def test_nobody_is_let_in_without_a_key_and_is_told_which_header(embedded: ApiKeys) -> None:
    refused(embedded, None, MISSING)
    assert "Authorization: Bearer" in MISSING


def test_whatever_is_wrong_with_a_key_the_answer_is_the_same(
    embedded: ApiKeys, clock: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, revoked = created(embedded), created(embedded)
    embedded.revoke(embedded.caller(revoked).id)
    unknown = f"mlsys_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"
    for presented in ("", "mlsys_", "x" * 62, "Bearer " + live, live + "\n", live[:18], unknown, revoked, "\0" * 62):
        refused(embedded, presented)
    embedded.caller(live)

    def hashed(*_: object) -> bytes:
        raise AssertionError("was hashed")

    monkeypatch.setattr(ApiKeys, "_digest", hashed)
    for presented in ("x" * 201, live + "x" * 200, live[:-1] + "é", "\ud800" * 62, "x" * 10_000_000):
        refused(embedded, presented)


def test_a_key_ends_at_its_expiry_to_the_microsecond(embedded: ApiKeys, clock: SimulatedClock) -> None:
    key, forever = created(embedded, expires=START + DAY), created(embedded)
    clock.advance(START + DAY - 1)
    embedded.caller(key)
    clock.advance(START + DAY)
    refused(embedded, key)
    clock.advance(START + 100_000 * DAY)
    embedded.caller(forever)


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_key_that_differs_in_anything_is_refused(embedded: ApiKeys, data: st.DataObject) -> None:
    embedded.refresh()
    key = data.draw(st.sampled_from([created(embedded), created(embedded)]))
    at = data.draw(st.integers(0, len(key) - 1))
    mutated = data.draw(
        st.one_of(
            st.characters(max_codepoint=0x250).map(lambda c: key[:at] + c + key[at + 1 :]),
            st.just(key[:at]),
            st.text(st.characters(max_codepoint=0x250), min_size=1, max_size=150).map(lambda more: key + more),
            st.text(min_size=1, max_size=3).map(lambda more: more + key),
            st.sampled_from([key.swapcase(), key.upper(), key.lower(), key[:at] + key[at:].swapcase(), key[::-1]]),
            st.sampled_from([key[:at] + key[at + 1 :], key[:at] + key[at] + key[at:], f" {key}", f"{key} "]),
        ).filter(lambda other: other != key)
    )
    refused(embedded, mutated)
    embedded.caller(key)


def test_the_secret_of_one_key_is_worth_nothing_with_the_id_of_another(embedded: ApiKeys) -> None:
    a, b = created(embedded, "score"), created(embedded, "admin")
    refused(embedded, b[:19] + a[19:])


def test_each_scope_is_given_by_itself_and_admin_implies_none(embedded: ApiKeys) -> None:
    for scope in SCOPES:
        key = embedded.caller(created(embedded, scope))
        embedded.allow(key, scope)
        for other in set(SCOPES) - {scope}:
            with pytest.raises(Forbidden, match=f"^scope: API key {key.id} must have {other}, it has {scope}$"):
                embedded.allow(key, other)


def test_a_key_revoked_elsewhere_is_refused_after_a_refresh(
    api_keys: ApiKeys, opened: Callable[[], ApiKeys], clock: SimulatedClock
) -> None:
    key, other = created(api_keys), created(api_keys)
    elsewhere = opened()
    identity = elsewhere.caller(key).id
    clock.advance(START + DAY)
    elsewhere.revoke(identity)
    refused(elsewhere, key)
    api_keys.caller(key)
    assert api_keys.refresh()
    refused(api_keys, key)
    api_keys.caller(other)
    clock.advance(START + 2 * DAY)
    api_keys.revoke(identity)
    assert [found.revoked for found in api_keys.list() if found.id == identity] == [START + DAY]


def test_a_key_made_elsewhere_is_let_in_after_a_refresh(api_keys: ApiKeys, opened: Callable[[], ApiKeys]) -> None:
    key = created(opened())
    refused(api_keys, key)
    assert api_keys.refresh()
    api_keys.caller(key)


def test_revoking_what_is_not_there_lists_what_is(api_keys: ApiKeys) -> None:
    with pytest.raises(NotFound, match="^id: no API key 'feed'; there are: none$"):
        api_keys.revoke("feed")
    key = created(api_keys)
    identity = api_keys.caller(key).id
    with pytest.raises(NotFound, match=f"there are: {identity}$") as caught:
        api_keys.revoke(key)  # by mistake
    assert key[19:] not in str(caught.value)
    api_keys.caller(key)


@pytest.mark.parametrize(
    ("name", "scopes", "expires", "rate", "message"),
    [
        ("", ("score",), None, None, "name: must have 1 to 100 printable characters, got ''"),
        ("  ", ("score",), None, None, "name: "),
        ("n" * 101, ("score",), None, None, "name: "),
        ("a\nb", ("score",), None, None, "name: "),
        ("a\u202eb", ("score",), None, None, "name: "),
        ("shop", (), None, None, "scopes: must be one or more of score, label, read, admin, got none"),
        ("shop", ("score", "root"), None, None, "scopes: .*got score, root"),
        ("shop", ("score",), START, None, f"expires: must be later than now, {START} us, got {START}"),
        ("shop", ("score",), None, "", "rate: must be like 500/second .*, got ''"),
        ("shop", ("score",), None, "fast", "rate: "),
        ("shop", ("score",), None, "5/fortnight", "rate: "),
        ("shop", ("score",), None, "0/second", "rate: "),
        ("shop", ("score",), None, "-1/second", "rate: "),
        ("shop", ("score",), None, "1/second;9/minute", "rate: "),
        ("shop", ("score",), None, f"{10**10}/second", "rate: "),
        ("shop", ("score",), None, f"{'9' * 5000}/second", "rate: "),
        ("shop", ("score",), None, "5/2years", "rate: "),
    ],
)
def test_a_key_that_cannot_be_is_not_made(
    embedded: ApiKeys, name: str, scopes: tuple[Scope, ...], expires: int | None, rate: str | None, message: str
) -> None:
    with pytest.raises(BadSetting, match=f"^{message}") as caught:
        embedded.create(name, scopes, expires=expires, rate=rate)
    assert "\n" not in str(caught.value)
    assert list(embedded.list()) == []


def test_keys_made_with_another_installations_secret_are_refused(
    api_keys: ApiKeys, tmp_path: Path, clock: SimulatedClock, database_url: str | None
) -> None:
    key = created(api_keys)
    with closing(ApiKeys(tmp_path / "home", clock, Keys(tmp_path / "others"), database_url)) as elsewhere:
        assert len(elsewhere.list()) == 1
        refused(elsewhere, key)
        refused(api_keys, created(elsewhere))
        api_keys.refresh()
        assert len(api_keys.list()) == 2
        refused(api_keys, created(elsewhere))
        api_keys.caller(key)


def test_the_database_holds_neither_a_key_nor_a_digest_that_others_can_make(tmp_path: Path, embedded: ApiKeys) -> None:
    key = created(embedded)
    content = b"".join(path.read_bytes() for path in (tmp_path / "home").iterdir())
    assert embedded.caller(key).id.encode() in content  # the right files are looked at
    for told in (key, key[19:]):
        assert told.encode() not in content
        for digest in (
            hashlib.sha256(told.encode()),
            hashlib.blake2b(told.encode()),
            hashlib.blake2b(told.encode(), digest_size=32),
            hashlib.blake2s(told.encode()),
        ):
            assert digest.digest() not in content
            assert digest.hexdigest().encode() not in content
    assert not (tmp_path / "home/secret").exists()


def test_nothing_that_is_shown_of_keys_shows_a_secret(
    embedded: ApiKeys, tmp_path: Path, clock: SimulatedClock, keys: Keys
) -> None:
    key = created(embedded)
    found = embedded.caller(key)
    with closing(sqlite3.connect(tmp_path / "home/access.db")) as db:
        ((digest,),) = db.execute("SELECT digest FROM api_key")
    shown = [repr(found), str(found), repr(vars(found)), repr(embedded), str(embedded), repr(embedded.list())]
    for wrong in (key[:-1], key + "x", key.upper(), f"Bearer {key}"):
        with pytest.raises(Unauthenticated) as refusal:
            embedded.caller(wrong)
        shown += [str(refusal.value), repr(refusal.value), repr(refusal.value.__context__)]
    for text in shown:
        assert key[19:40] not in text
        assert digest not in text
    assert keys.secret("api keys").hex() not in "".join(shown)


def test_the_secret_never_lies_in_the_state(tmp_path: Path, clock: SimulatedClock) -> None:
    with pytest.raises(BadSetting, match="MLSYS_KEYS: must lie outside MLSYS_HOME"):
        ApiKeys(tmp_path, clock, Keys(tmp_path / "keys"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_known_holds_while_the_database_is_away_but_no_key_outlives_its_expiry(
    embedded: ApiKeys, clock: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, brief, revoked = created(embedded), created(embedded, expires=START + DAY), created(embedded)
    embedded.revoke(embedded.caller(revoked).id)

    def away(*_: object) -> None:
        raise Unavailable("away")

    monkeypatch.setattr(Sqlite, "execute", away)
    clock.advance(START + DAY - 1)
    assert not embedded.refresh()
    embedded.caller(key)
    embedded.caller(brief)
    refused(embedded, revoked)
    clock.advance(START + DAY)
    assert not embedded.refresh()
    refused(embedded, brief)
    embedded.caller(key)
    monkeypatch.undo()
    assert embedded.refresh()


def test_a_key_is_there_for_other_processes_once_it_was_returned(tmp_path: Path, embedded: ApiKeys) -> None:
    key = created(embedded)
    code = (
        "import sys; from pathlib import Path; from common.clock import WallClock;"
        "from common.registry.keys import Keys; from common.serving.auth import ApiKeys;"
        "home, keys, key = sys.argv[1:]; found = ApiKeys(Path(home), WallClock(), Keys(Path(keys)));"
        "found.revoke(found.caller(key).id); found.close()"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "home", tmp_path / "keys", key], check=True, timeout=60)
    embedded.refresh()
    refused(embedded, key)


KEY = ApiKey("0" * 12, "shop", frozenset({"score"}), "10/second", START, None, None)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> SimulatedClock:
    """The time as the library sees it, which takes no clock."""
    clock = SimulatedClock(START)
    monkeypatch.setattr("limits.storage.memory.time", SimpleNamespace(time=lambda: clock.now() / SECOND))
    return clock


def test_who_floods_is_held_back_and_leaves_the_others_alone(watch: SimulatedClock) -> None:
    limits = RateLimits("3/minute")
    other, third = replace(KEY, id="1" * 12), replace(KEY, id="2" * 12, rate=None)
    waits = [limits.hit(KEY) for _ in range(1000)]
    assert waits[:10] == [None] * 10
    assert all(wait is not None and 0 < wait <= 2.001 for wait in waits[10:])
    assert [limits.hit(other) for _ in range(10)] == [None] * 10
    assert [limits.hit(third) is None for _ in range(4)] == [True, True, True, False]


def test_what_was_refused_does_not_count(watch: SimulatedClock) -> None:
    limits = RateLimits("1/second")
    assert limits.hit(KEY, 6) is None
    assert limits.hit(KEY, 5) is not None
    assert limits.hit(KEY, 4) is None


def test_no_burst_of_twice_the_rate_where_two_windows_meet(watch: SimulatedClock) -> None:
    limits = RateLimits("1/second")
    watch.advance(START + SECOND - 1)
    assert limits.hit(KEY, 10) is None
    watch.advance(START + SECOND + 1)
    assert limits.hit(KEY, 10) is not None


def test_old_counters_go_without_a_thread(watch: SimulatedClock, monkeypatch: pytest.MonkeyPatch) -> None:
    limits, slow = RateLimits("1/second"), replace(KEY, id="1" * 12, rate="2/day")
    assert limits.hit(slow, 2) is None
    monkeypatch.delattr("threading.Thread.start")
    for second in range(5_000):
        watch.advance(START + second * SECOND)
        assert limits.hit(KEY, 5) is None
    assert len(limits._storage.storage) < 1_100
    assert len(limits._storage.locks) < 1_100
    assert limits.hit(slow) is not None


def test_a_cost_above_the_whole_rate_is_refused_for_good(watch: SimulatedClock) -> None:
    with pytest.raises(Forbidden, match=f"^rate: one request of API key {KEY.id} may cost at most 10, got 11$"):
        RateLimits("1/second").hit(KEY, 11)


@given(
    rate=st.sampled_from(["1/second", "10/second", "7/3minutes", "1000/day", "1000000000/second"]),
    hits=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_who_waits_as_told_is_let_in_and_who_comes_much_earlier_is_not(
    watch: SimulatedClock, rate: str, hits: list[tuple[float, float]]
) -> None:
    amount = int(rate.split("/")[0])
    window = {"second": SECOND, "3minutes": 180 * SECOND, "day": DAY}[rate.split("/")[1]]
    limits, key = RateLimits("1/second"), replace(KEY, rate=rate)
    for gap, share in hits:
        watch.advance(watch.now() + int(gap * window))
        cost = max(1, int(share * amount))
        wait = limits.hit(key, cost)
        if wait is None:
            continue
        assert 0 < wait <= 2 * window / SECOND + 0.01
        if wait > 0.003:
            watch.advance(watch.now() + int((wait - 0.002) * SECOND))
            assert limits.hit(key, cost) is not None
            watch.advance(watch.now() + int(0.002 * SECOND) + 1)
        else:
            watch.advance(watch.now() + int(wait * SECOND) + 1)
        assert limits.hit(key, cost) is None


def test_a_default_rate_that_cannot_be_is_refused_at_once() -> None:
    with pytest.raises(BadSetting, match="rate: must be like 500/second"):
        RateLimits("fast")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLSYS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLSYS_KEYS", str(tmp_path / "keys"))
    return tmp_path / "home"


def test_a_key_is_shown_once_when_it_is_created_then_listed_then_revoked(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*argv: str) -> str:
        assert main(["keys", *argv]) == 0
        return capsys.readouterr().out

    out = said("create", "the [red] shop", "--scope", "score", "--scope", "label", "--rate", "500/second")
    key, how, until = out.splitlines()
    assert "Authorization: Bearer <key>" in how
    assert out.count(key) == 1
    assert until.startswith("it expires 2")
    listed = said("list")
    for shown in (key[6:18], "the [red] shop", "label, score", "500/second", "live"):
        assert shown in listed
    texts = [listed, said("list", "--json")]
    (found,) = json.loads(texts[1])["keys"]
    assert found["expires"] - found["created"] == pytest.approx(90 * DAY, abs=60 * SECOND)
    assert "for good" in said("revoke", key[6:18])
    texts += [said("list"), said("list", "--json")]
    assert [row["is"] for row in json.loads(texts[-1])["keys"]] == ["revoked"]
    for text in texts:
        assert key[19:40] not in text
        assert "digest" not in text


def test_a_created_key_lets_in_whoever_has_it(
    home: Path, capsys: pytest.CaptureFixture[str], clock: SimulatedClock
) -> None:
    assert main(["keys", "create", "ops", "--scope", "admin", "--expires", "never", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    with closing(ApiKeys(home, clock, Keys(Path(os.environ["MLSYS_KEYS"])))) as api_keys:
        found = api_keys.caller(document["key"])
    assert (found.id, found.name, found.scopes, found.expires) == (document["id"], "ops", frozenset({"admin"}), None)
    assert document["scopes"] == ["admin"]


def test_a_key_lives_as_long_as_was_asked(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, seconds in (("30m", 1800), ("12h", 43200), ("90d", 7776000)):
        assert main(["keys", "create", "x", "--scope", "read", "--expires", text, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["expires"] - document["created"]) / SECOND == pytest.approx(seconds, abs=60)


@pytest.mark.parametrize(
    ("argv", "status", "line"),
    [
        ([], 2, "the following arguments are required: COMMAND; see mlsys keys --help"),
        (["create", "shop"], 2, "the following arguments are required: --scope"),
        (["create", "--scope", "score"], 2, "the following arguments are required: NAME"),
        (["create", "shop", "--scope", "root"], 2, "argument --scope: invalid choice: 'root' (choose from"),
        (["create", "shop", "--scope", "score", "--rate", "fast"], 2, "rate: must be like 500/second"),
        (["create", "a\nb", "--scope", "score"], 2, "name: must have 1 to 100 printable characters"),
        (["create", "shop", "--scope", "score", "--expires", "0d"], 2, "--expires: must be like 30m, 12h or 90d, or"),
        (["create", "shop", "--scope", "score", "--expires", "90"], 2, "--expires: must be like 30m, 12h or 90d, or"),
        (["revoke", "mlsys_0123456789ab_hush"], 2, "argument ID: must be 12 hex digits, as mlsys keys list shows them"),
        (["revoke", "0123456789ab"], 1, "id: no API key '0123456789ab'; there are: none"),
    ],
)
def test_a_mistake_is_one_clear_line(
    home: Path, argv: list[str], status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "list"]) == 0  # the secret is made, which is said
    capsys.readouterr()
    assert main(["keys", *argv]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mlsys: ")
    assert line in err
    assert err.count("\n") == 1
    assert "hush" not in err


def test_an_unknown_id_costs_the_same_work(embedded: ApiKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: one digest, one comparison of the same lengths."""
    compared: list[tuple[int, int]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return a == b

    key = created(embedded)
    monkeypatch.setattr("common.serving.auth.hmac", SimpleNamespace(compare_digest=compare))
    refused(embedded, key[:-1] + "_")
    refused(embedded, "mlsys_000000000000" + key[18:])
    assert compared == [(64, 64)] * 2
