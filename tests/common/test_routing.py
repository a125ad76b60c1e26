"""Which version answers: sticky, in the shares that were set, foreseeable by nobody."""

import hashlib
import json
import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cli import main
from common.clock import WallClock
from common.errors import BadRecord
from common.registry.gates import Gate
from common.registry.keys import Keys
from common.registry.registry import Registry, Traffic
from common.serving.routing import BELOW_ONE, Choice, Routing, uniform

UNITS = [f"card-{i}" for i in range(20_000)]
KEY = b"a key of the service"
SIGMAS = 5  # of a binomial; a right share fails once in two million

shares = st.floats(0, 1)
names = st.text("0123456789abcdef", min_size=1, max_size=12)


@st.composite
def traffics(draw: st.DrawFn) -> Traffic:
    named = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    if draw(st.booleans()):
        return Traffic(canary=named[0], canary_share=draw(shares))
    weights = [draw(st.floats(0.01, 1)) for _ in named]
    whole = math.fsum(weights) * draw(st.floats(1.001, 3))
    return Traffic(arms={name: w / whole for name, w in zip(named, weights, strict=True)})


def versions(traffic: Traffic, key: bytes = KEY) -> list[str]:
    routing = Routing("live", traffic, key)
    return [routing.route(unit).version for unit in UNITS]


def agrees(count: int, share: float, of: int) -> bool:
    return abs(count - of * share) <= SIGMAS * math.sqrt(of * share * (1 - share))


@given(st.text(), st.sampled_from(["let through", "canary", "", "sixteen bytes ok"]))
def test_without_a_key_a_draw_is_the_plain_hash_of_its_text(text: str, purpose: str) -> None:
    plain = hashlib.blake2b(text.encode(), digest_size=8, person=purpose.encode()).digest()
    assert uniform(b"", purpose, text) == min(int.from_bytes(plain) / 2**64, BELOW_ONE)
    assert 0 <= uniform(KEY, purpose, text) < 1


def test_draws_are_even_and_change_with_the_key_and_with_the_purpose() -> None:
    for one, other in [((KEY, "canary"), (b"another", "canary")), ((KEY, "canary"), (KEY, "let through"))]:
        cells = Counter((int(4 * uniform(*one, unit)), int(4 * uniform(*other, unit))) for unit in UNITS)
        assert len(cells) == 16
        assert all(agrees(count, 1 / 16, len(UNITS)) for count in cells.values())


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99, 1.0])
def test_a_canary_gets_its_share_of_the_units(share: float) -> None:
    count = versions(Traffic(canary="new", canary_share=share)).count("new")
    assert agrees(count, share, len(UNITS))


def test_arms_get_their_shares_and_the_champion_the_rest() -> None:
    counts = Counter(versions(Traffic(arms={"a": 0.2, "b": 0.05, "c": 0.5})))
    for name, share in {"a": 0.2, "b": 0.05, "c": 0.5, "live": 0.25}.items():
        assert agrees(counts[name], share, len(UNITS))


@given(traffics(), st.text())
def test_a_unit_has_one_version_and_the_propensities_sum_to_one(traffic: Traffic, unit: str) -> None:
    routing = Routing("live", traffic, KEY)
    assert routing.route(unit) == Routing("live", traffic, KEY).route(unit)
    every = {routing.route(unit) for unit in UNITS[:500]}
    by_version = {choice.version: choice.propensity for choice in every}
    assert len(by_version) == len(every)
    for choice in every - {routing.route("")}:
        assert choice.propensity == traffic.answering.get(choice.version, choice.propensity)
        assert choice.role == ("champion" if choice.version == "live" else "arm" if traffic.arms else "canary")
    rest = 1 - math.fsum(traffic.answering.values())
    assert by_version.get("live", rest) == rest >= 0


@given(names, shares, shares, st.binary(max_size=64), st.lists(st.text(), max_size=50))
def test_a_growing_canary_takes_units_and_gives_none_back(
    canary: str, a: float, b: float, key: bytes, units: list[str]
) -> None:
    before, after = (Routing("live", Traffic(canary=canary, canary_share=share), key) for share in sorted((a, b)))
    for unit in units + UNITS[:200]:
        if before.route(unit).role == "canary":
            assert after.route(unit).role == "canary"


def test_who_got_one_canary_is_no_more_likely_to_get_the_next_one_or_an_arm() -> None:
    first = versions(Traffic(canary="one", canary_share=0.3))
    for second in (Traffic(canary="two", canary_share=0.3), Traffic(arms={"one": 0.3})):
        both = Counter(zip(first, versions(second), strict=True))
        taken = first.count("one")
        assert agrees(sum(n for (a, b), n in both.items() if a == "one" and b != "live"), 0.3, taken)


def test_without_the_key_an_assignment_cannot_be_foreseen() -> None:
    traffic = Traffic(canary="new", canary_share=0.5)
    right = sum(a == b for a, b in zip(versions(traffic), versions(traffic, b"guessed"), strict=True))
    assert agrees(right, 0.5, len(UNITS))


def test_the_order_in_which_arms_are_named_means_nothing() -> None:
    assert versions(Traffic(arms={"a": 0.2, "b": 0.3})) == versions(Traffic(arms={"b": 0.3, "a": 0.2}))


@given(traffics())
def test_the_champion_answers_for_a_version_that_cannot_and_no_other_unit_moves(traffic: Traffic) -> None:
    gone = min(traffic.answering)
    whole, rest = Routing("live", traffic, KEY), Routing("live", traffic, KEY, frozenset({gone}))
    for unit in UNITS[:200]:
        before, after = whole.route(unit), rest.route(unit)
        assert after.version == ("live" if before.version == gone else before.version)
    others = math.fsum(share for name, share in traffic.answering.items() if name != gone)
    assert all(c.propensity == 1 - others for c in map(rest.route, UNITS[:200]) if c.version == "live")


def test_without_a_split_all_go_to_the_champion() -> None:
    assert Routing("live", Traffic(), KEY).route("anybody") == Choice("live", "champion", 1.0)
    assert Routing("live", Traffic(shadow=("s",)), KEY).route("anybody") == Choice("live", "champion", 1.0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"canary": "a", "canary_share": 1.5}, "canary_share: input should be less than or equal to 1, got '1.5'"),
        ({"canary": "a", "canary_share": -0.1}, "canary_share: input should be greater than or equal to 0"),
        ({"canary_share": 0.1}, "canary_share: must be 0 without a canary, got '0.1'"),
        ({"arms": {"a": 0}}, "arms.a: input should be greater than 0, got '0'"),
        ({"arms": {"a": 0.6, "b": 0.5}}, "arms: shares must sum to at most 1, got"),
        ({"canary": "a", "canary_share": 0.1, "arms": {"b": 0.1}}, "arms: must be empty beside a canary, got"),
        ({"arms": {"a": 0.5}, "shadow": ["a"]}, "shadow: must name each version once, and none that is canary or arm"),
        ({"canary": "a", "shadow": ["a"]}, "shadow: must name each version once"),
        ({"shadow": ["a", "a"]}, "shadow: must name each version once"),
        ({"champion": "a"}, "champion: extra inputs are not permitted"),
    ],
)
def test_a_split_that_makes_no_sense_is_one_clear_line(row: dict[str, object], message: str) -> None:
    with pytest.raises(BadRecord) as caught:
        Traffic.parse(json.dumps(row))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@given(traffics())
def test_a_traffic_is_read_back_as_it_was_written(traffic: Traffic) -> None:
    text = traffic.model_dump_json(exclude_defaults=True)
    assert Traffic.parse(text) == traffic
    assert Traffic.parse(text).model_dump_json(exclude_defaults=True) == text


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A champion, two that cleared their gate and one that missed it."""
    monkeypatch.setenv("MLSYS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLSYS_KEYS", str(tmp_path / "keys"))
    gate = Gate("auc", 0.8, better="higher")
    made: list[str] = []
    with Registry(tmp_path / "home", WallClock(), Keys(tmp_path / "keys")) as registry:
        for i, auc in enumerate([0.9, 0.9, 0.9, 0.7]):
            folder = tmp_path / f"made-{i}"
            folder.mkdir()
            (folder / "trees.txt").write_text(f"tree\n{i}\n")
            report = {"metrics": {"auc": auc}}
            made.append(registry.publish("fraud", folder, report, {}, [gate.check({"auc": auc}, {})]).name)
        registry.promote("fraud", made[0], who="ada", why="first")
    return made


def test_the_command_sets_shows_and_ends_a_split(published: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def said(*argv: str) -> dict[str, object]:
        assert main(["traffic", "fraud", *argv, "--json"]) == 0
        document: dict[str, object] = json.loads(capsys.readouterr().out)
        return document

    a, b, c, d = published
    none = {"canary": None, "canary_share": 0.0, "arms": {}, "shadow": []}
    assert said()["traffic"] == none
    tried = said("--canary", b[:6], "--share", "0.1", "--shadow", d[:6], "--why", "looks good")
    assert tried["traffic"] == {**none, "canary": b, "canary_share": 0.1, "shadow": [d]}
    assert (tried["champion"], tried["revision"]) == (a, 2)
    assert said()["traffic"] == tried["traffic"]
    assert main(["traffic", "fraud"]) == 0
    out = capsys.readouterr().out
    assert [name in out for name in (a, b, c, d)] == [True, True, False, True]
    assert "0.9" in out
    assert said("--arm", f"{b}=0.25", "--arm", f"{c}=0.5")["traffic"] == {**none, "arms": {b: 0.25, c: 0.5}}
    assert said("--reset")["traffic"] == none
    assert main(["versions", "fraud"]) == 0
    assert f'traffic nothing -> {{"canary":"{b}"' in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("argv", "status", "line"),
    [
        (["--canary", "{b}"], 2, "--canary and --share: must be given together"),
        (["--share", "0.1"], 2, "--canary and --share: must be given together"),
        (["--canary", "{b}", "--share", "2"], 2, "traffic: canary_share: input should be less than or equal to 1"),
        (["--canary", "{b}", "--share", "nan"], 2, "traffic: canary_share: input should be a finite number"),
        (["--canary", "{b}", "--share", "x"], 2, "argument --share: invalid float value: 'x'"),
        (["--arm", "{b}"], 2, "argument --arm: must be VERSION=SHARE, such as 4f0c1a=0.5, got '{b}'"),
        (["--arm", "{b}=0.5", "--arm", "{b}=0.2"], 2, "traffic: must name each version once"),
        (["--arm", "{b}=0.9", "--arm", "{c}=0.2"], 2, "traffic: arms: shares must sum to at most 1"),
        (["--canary", "{b}", "--share", "0", "--arm", "{c}=0.2"], 2, "traffic: arms: must be empty beside a canary"),
        (["--reset", "--shadow", "{b}"], 2, "--reset: must stand alone, got {b} too"),
        (["--shadow", "{a}"], 2, "traffic: must not name the champion, which gets the rest, got {a}"),
        (["--shadow", "ffff"], 1, "fraud: no version 'ffff'"),
        (["--canary", "{d}", "--share", "0.1"], 1, "fraud {d}: auc: must be >= 0.8, got 0.7"),
    ],
)
def test_a_mistake_in_the_command_is_one_clear_line_and_changes_nothing(
    published: list[str], argv: list[str], status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    named = dict(zip("abcd", published, strict=True))
    assert main(["traffic", "fraud", *(word.format(**named) for word in argv)]) == status
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"mlsys: {line.format(**named)}")
    assert main(["traffic", "fraud", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["revision"] == 1


def test_the_command_forces_a_canary_that_missed_a_gate(
    published: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["traffic", "fraud", "--canary", published[3], "--share", "0.1", "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["traffic"]["canary"] == published[3]
