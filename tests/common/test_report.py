"""A page for each run: whole, harmless, the same every time, and silent about nothing that is missing."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import BadRecord
from common.report import page, write
from common.report.drawing import flags, number, percent, spread, width
from common.report.look import PALETTE

Document = dict[str, Any]
SVG = "{http://www.w3.org/2000/svg}"
ROOT = Path(__file__).parents[2]


def example(seed: int = 0) -> Document:
    """A run in which the loop notices a drift, retrains, and is not always right; some of it is missing."""
    rng = np.random.default_rng(seed)
    days = 90
    weeks = []
    for week in range(13):
        since = max(0.0, week - 4)
        alone = 95 + rng.normal(0, 8) + (260 + 40 * since) * (week >= 5) + 130 * (week == 4)
        loop = alone if week < 7 else 118 + 190 * (week == 7) + rng.normal(0, 10)
        weeks.append({"week": week, "requests": 5000, "loss": 300 + loop, "ceiling": 300.0, "regret": round(loop, 1),
                      "regret_without": round(alone, 1)})  # fmt: skip
    weeks[2]["regret"] = weeks[2]["regret_without"] = None
    weeks[12]["regret_without"] = None
    names = ["amount", "payments_1h", "payments_1d", "amount_mean_30d", "distance_km", "hour", "merchant_risk",
             "device_age_d", "new_device", "country_changes_7d", "chargebacks_90d", "amount_ratio"]  # fmt: skip
    columns: dict[str, list[float | None]] = {}
    for i, name in enumerate(names):
        ratio = np.abs(rng.normal(0.35, 0.15, days))
        if i in (0, 4, 8, 11):
            ratio[30 + 3 * i :] += [1.6, 0, 0, 0, 0.9, 0, 0, 0, 4.2, 0, 0, 0.6][i] * np.minimum(
                1, np.arange(60 - 3 * i) / 12
            )
        columns[name] = [round(float(r), 3) for r in ratio]
    columns["chargebacks_90d"][:30] = [None] * 30
    columns["device_age_d"][52:55] = [None] * 3
    estimated = [round(float(0.021 + 0.002 * np.sin(d / 6) + rng.normal(0, 0.0006) + 0.012 * (30 < d < 48)), 5)
                 for d in range(days)]  # fmt: skip
    realised = [round(float(e + rng.normal(0.001, 0.0012) + 0.004 * (30 < d < 48)), 5) if d < 76 else None
                for d, e in enumerate(estimated)]  # fmt: skip
    edges = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.03, 0.08, 0.2, 0.5, 0.85]
    calibration = []
    for version, bias in (("c41f0a9be210", 1.0), ("8811994a3d75", 1.15), ("02be77d1f6aa", 0.6)):
        count = [20000, 14000, 9000, 5000, 2600, 1100, 500, 260, 130, 60]
        hit = [
            int(rng.poisson(n * min(1, p * bias)) if p < 0.4 else rng.binomial(n, min(1, p)))
            for n, p in zip(count, edges, strict=True)
        ]
        hit[0] = 0 if version == "02be77d1f6aa" else hit[0]
        share = [min(1.0, h / n) for h, n in zip(hit, count, strict=True)]
        error = [1.96 * float(np.sqrt((s * (1 - s) + 1 / n) / n)) for s, n in zip(share, count, strict=True)]
        calibration.append({"version": version, "predicted": edges, "observed": share, "count": count,
                            "low": [max(0.0, s - e) for s, e in zip(share, error, strict=True)],
                            "high": [min(1.0, s + e) for s, e in zip(share, error, strict=True)]})  # fmt: skip
    calibration[2]["observed"][4] = None
    event = [
        (30.0, "drift", "tactics: more small payments from new devices", None),
        (41.0, "alarm", "LabelSurprise: more labels than predicted", None),
        (42.0, "retrained", "because LabelSurprise rang", "8811994a3d75"),
        (42.5, "canary", "10 % of the units", "8811994a3d75"),
        (43.5, "advanced", "to 25 %", "8811994a3d75"),
        (44.5, "advanced", "to 50 %", "8811994a3d75"),
        (46.0, "promoted", "no worse on any guardrail", "8811994a3d75"),
        (58.0, "alarm", "Drift: new_device", None),
        (59.0, "retrained", "because Drift rang", "02be77d1f6aa"),
        (59.5, "canary", "10 % of the units", "02be77d1f6aa"),
        (61.0, "rolled back", "cost per 1,000 above the champion's", "02be77d1f6aa"),
        (64.0, "cleared", "LabelSurprise", None),
        (75.0, "retrained", "scheduled", "5d00aa41c9e2"),
        (75.2, "rejected", "gate: average_precision 0.61 < 0.64", "5d00aa41c9e2"),
        (87.0, "canary", "10 % of the units", "f3aa01bb5c77"),
    ]
    return {
        "system": "parcels", "summary": "stop parcels that will not arrive", "preset": "small", "seed": seed,
        "days": days, "drift": "tactics@30", "unit": "EUR", "detection_delay": 11.0, "false_alarms": 0,
        "closed": 0.78, "requests": 65000, "weeks": weeks,
        "events": [{"day": d, "kind": k, "what": w, "version": v} for d, k, w, v in event],
        "drift_by_feature": {"days": list(range(1, days + 1)), "columns": columns},
        "quality": {"days": [d + 1 for d in range(days)], "estimated": estimated, "realised": realised,
                    "low": [e - 0.003 for e in estimated], "high": [e + 0.003 for e in estimated],
                    "doubts": [None] * len(estimated),
                    "metric": "log_loss"},
        "canaries": [
            {"version": "8811994a3d75", "began": 42.5, "ended": 46.0, "end": "promoted",
             "steps": [[42.5, 0.1], [43.5, 0.25], [44.5, 0.5], [45.5, 1.0]], "why": "no worse on any guardrail"},
            {"version": "02be77d1f6aa", "began": 59.5, "ended": 61.0, "end": "rolled back",
             "steps": [[59.5, 0.1]], "why": "cost per 1,000 above the champion's"},
            {"version": "f3aa01bb5c77", "began": 87.0, "ended": None, "end": "running",
             "steps": [[87.0, 0.1], [88.5, 0.25]], "why": "not decided yet"},
        ],
        "calibration": calibration,
        "reasons": {"before": {"UNUSUAL_AMOUNT": 0.34, "NEW_DEVICE": 0.12, "FAR_AWAY": 0.22, "RISKY_SHOP": None},
                    "after": {"UNUSUAL_AMOUNT": 0.19, "NEW_DEVICE": 0.41, "FAR_AWAY": 0.2, "RISKY_SHOP": 0.08}},
        "versions": [
            {"name": "c41f0a9be210", "day": -1.0, "why": "first", "fate": "promoted",
             "metrics": {"cost_per_1000": 1014.4, "average_precision": 0.71}},
            {"name": "8811994a3d75", "day": 42.0, "why": "LabelSurprise rang", "fate": "promoted",
             "metrics": {"cost_per_1000": 988.1, "average_precision": 0.69}},
            {"name": "02be77d1f6aa", "day": 59.0, "why": "Drift rang", "fate": "rolled back: cost_per_1000",
             "metrics": {"cost_per_1000": 1003.0, "average_precision": None}},
            {"name": "5d00aa41c9e2", "day": 75.0, "why": "scheduled", "fate": "rejected: gate average_precision",
             "metrics": {"cost_per_1000": 1120.2, "average_precision": 0.61}},
        ],
        "alarms": [
            {"name": "LabelSurprise", "began": 41.0, "ended": 64.0,
             "look_at": "reasons of the missed ones, then the columns that drifted first"},
            {"name": "Drift: new_device", "began": 58.0, "ended": None, "look_at": "share of devices seen first"},
        ],
    }  # fmt: skip


def quiet() -> Document:
    """Nothing happened, and nothing was measured."""
    return {
        "system": "parcels", "summary": "", "preset": "small", "seed": 0, "days": 7, "drift": None, "unit": "EUR",
        "detection_delay": None, "false_alarms": 0, "closed": None, "requests": 0, "weeks": [], "events": [],
        "drift_by_feature": {"days": [], "columns": {}},
        "quality": {
            "days": [], "estimated": [], "realised": [], "low": [], "high": [], "doubts": [], "metric": "log_loss",
        },
        "canaries": [], "calibration": [], "reasons": {"before": {}, "after": {}}, "versions": [], "alarms": [],
    }  # fmt: skip


def forecasts() -> Document:
    """What two series were forecast before and after the drift; of the second one's last days nothing was told."""
    shown = []
    for unit, level in (("store-03/product-011", 40.0), ("store-02/product-007", 0.5)):
        for asked, grown in ((23.3, 1.0), (37.3, 2.0)):
            days = [float(day) for day in range(int(asked) - 28, int(asked) + 28)]
            truth = [level * (1 + 0.3 * float(np.sin(day * 2 * np.pi / 7))) * (1 + (day >= 30)) for day in days]
            said = [None] * 28 + [v / (1 + (day >= 30)) * grown for day, v in zip(days[28:], truth[28:], strict=True)]
            fan = {"unit": unit, "why": "the largest", "asked": asked, "days": days, "median": said}
            fan["observed"] = [*truth[:-3], *[None] * 3] if unit.startswith("store-02") else truth
            for name, part in (("lower_95", 0.6), ("lower_80", 0.75), ("upper_80", 1.25), ("upper_95", 2.5)):
                fan[name] = [None if v is None else part * v for v in said]
            shown.append(fan)
    return {"value": "units", "shown": shown}


@cache
def usual() -> str:
    return page(example())


class Seen(HTMLParser):
    """What a browser would see: tags with their attributes, and the text of each section."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {"": ""}
        self._where = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("section", "footer"):
            self._where = str(dict(attrs).get("id", tag))
            self.text[self._where] = ""

    def handle_data(self, data: str) -> None:
        self.text[self._where] += data


def pictures(html: str) -> dict[str, ElementTree.Element]:
    found = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.S)]
    return {picture.attrib["id"].removesuffix("-picture"): picture for picture in found}


def points(picture: ElementTree.Element, name: str) -> list[list[tuple[float, float]]]:
    """Strokes of a named shape, each a list of points."""
    shape = picture.find(f".//{SVG}g[@id='{name}']/{SVG}path")
    if shape is None:
        return []
    strokes: list[list[tuple[float, float]]] = []
    for command, x, y in re.findall(r"([ML]) (\S+) (\S+)", shape.attrib["d"]):
        if command == "M":
            strokes.append([])
        strokes[-1].append((float(x), float(y)))
    return strokes


def ids(picture: ElementTree.Element) -> set[str]:
    return {element.attrib["id"] for element in picture.iter() if "id" in element.attrib}


def texts(value: Any, change: Callable[[str], str], path: str = "") -> Any:
    """The document with every text of its author changed; kinds, ends and the like keep their meaning."""
    if isinstance(value, dict):
        columns = path in ("columns", "before", "after", "metrics")
        return {change(k) if columns else k: texts(v, change, k) for k, v in value.items()}
    if isinstance(value, list):
        return [texts(item, change, path) for item in value]
    return change(value) if isinstance(value, str) and path not in ("kind", "end") else value


@pytest.fixture(scope="module")
def html() -> str:
    return usual()


def test_a_page_loads_nothing_and_runs_nothing(html: str) -> None:
    tags = Seen(html).tags
    assert not {tag for tag, _ in tags} & {"script", "iframe", "object", "embed", "img", "image", "base", "form"}
    for tag, attributes in tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert re.match(r"#|data:", attributes.get(name) or "#"), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert "://" not in html.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"@import|url\((?!#)", html)


def test_every_id_is_there_once_and_every_reference_leads_to_one(html: str) -> None:
    named = [attributes["id"] for _, attributes in Seen(html).tags if "id" in attributes]
    assert len(named) == len(set(named))
    referred = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"|aria-labelledby="([^"]+)"', html)
    assert referred
    assert {name for found in referred for name in found if name} <= set(named)


@pytest.mark.parametrize("bad", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onload='x", "a & b"])
def test_a_text_stays_a_text(bad: str, html: str) -> None:
    whole = page(texts(example(), lambda text: f"{bad}{text}"))
    seen = Seen(whole)
    tags = {tag for tag, _ in seen.tags}
    assert not tags & {"script", "img"}
    assert not [a for _, attributes in seen.tags for a in attributes if a.startswith("on")]
    assert tags == {tag for tag, _ in Seen(html).tags}
    assert bad in seen.text["versions"]
    assert bad in seen.text["events"]
    assert pictures(whole).keys() == pictures(html).keys()


def test_a_dollar_is_a_dollar_and_a_control_character_breaks_no_picture() -> None:
    story = example()
    story["drift_by_feature"]["columns"] = {"$a_1$": [1.0] * 90, "nul\x00\x1b\ud800": [0.1] * 90, "中文": [0.1] * 90}
    whole = page(story)
    labels = {element.text for element in pictures(whole)["drift"].iter(f"{SVG}text")}
    assert {"$a_1$", "nul\ufffd\ufffd\ufffd", "中文"} <= labels
    whole.encode()


def test_the_same_run_is_the_same_page_in_every_process(html: str, tmp_path: Path) -> None:
    (tmp_path / "story.json").write_text(json.dumps(example()))
    (tmp_path / "matplotlibrc").write_text("xtick.major.pad: 30\naxes.spines.bottom: False\nsvg.fonttype: path\n")
    code = "import json, sys; from common.report import page; print(page(json.load(open(sys.argv[1]))), end='')"
    for seed in ("1", "2"):  # a user's own settings of matplotlib do not matter either
        environment = os.environ | {"PYTHONHASHSEED": seed, "MATPLOTLIBRC": str(tmp_path), "PYTHONUTF8": "1"}
        told = subprocess.run([sys.executable, "-c", code, str(tmp_path / "story.json")], cwd=ROOT, env=environment,
                              capture_output=True, check=True)  # fmt: skip
        assert told.stdout.decode() == html
        assert told.stderr == b""


def test_a_missing_week_breaks_the_line_and_is_not_zero() -> None:
    missing, zero = example(), example()
    zero["weeks"][2]["regret"] = zero["weeks"][2]["regret_without"] = 0.0
    broken, whole = (pictures(page(story))["regret"] for story in (missing, zero))
    assert [len(stroke) for stroke in points(broken, "regret-with")] == [2, 10]
    assert [len(stroke) for stroke in points(whole, "regret-with")] == [13]
    bottom = max(y for _, y in points(whole, "regret-with")[0])
    assert all(y < bottom - 10 for stroke in points(broken, "regret-with") for _, y in stroke)
    assert len(points(broken, "regret-missing")) == 2
    assert len(points(whole, "regret-missing")) == 1
    assert "missing" in {element.text for element in broken.iter(f"{SVG}text")}


def test_a_week_that_the_document_leaves_out_is_missing() -> None:
    story = example()
    del story["weeks"][8:10]
    del story["weeks"][-1]
    picture = pictures(page(story))["regret"]
    assert [len(stroke) for stroke in points(picture, "regret-with")] == [2, 5, 2]
    assert len(points(picture, "regret-missing")) == 3


def test_a_value_between_two_missing_ones_is_a_dot() -> None:
    story = example()
    story["weeks"][0]["regret"] = None
    assert "regret-with-alone" in ids(pictures(page(story))["regret"])
    assert "regret-with-alone" not in ids(pictures(page(example()))["regret"])


@pytest.mark.parametrize(("value", "covered"), [(None, 60), (0.0, 90), (0.7, 90)])
def test_a_missing_cell_is_left_to_the_hatched_ground(value: float | None, covered: int) -> None:
    story = example()
    story["drift_by_feature"]["columns"] = {"amount": [value] * 30 + [0.1] * 60}
    picture = pictures(page(story))["drift"]
    [ground] = points(picture, "drift-missing")
    day = (ground[2][0] - ground[0][0]) / 90
    cells = [stroke for level in range(6) for stroke in points(picture, f"drift-level{level}")]
    assert sum(stroke[2][0] - stroke[0][0] for stroke in cells) / day == pytest.approx(covered, abs=0.1)


def test_a_cell_is_outlined_when_it_is_above_its_threshold() -> None:
    story = example()
    story["drift_by_feature"]["columns"] = {"a": [1.0] * 90, "b": [0.5] * 40 + [1.01] * 20 + [None] * 30}
    picture = pictures(page(story))["drift"]
    assert len(points(picture, "drift-exceeded")) == 1
    assert "1 of 2 columns went over their threshold, b first, on day 41" in Seen(page(story)).text["drift"]


def test_days_left_out_of_quality_are_missing_and_not_bridged() -> None:
    story = example()
    quality = story["quality"]
    for name in ("days", "estimated", "realised", "low", "high", "doubts"):
        del quality[name][40:50]
    quality["realised"][10] = None
    picture = pictures(page(story))["quality"]
    assert [len(stroke) for stroke in points(picture, "quality-estimated")] == [40, 40]
    assert [len(stroke) for stroke in points(picture, "quality-realised")] == [10, 29, 26]
    assert len(points(picture, "quality-missing")) == 3
    said = {element.text for element in picture.iter(f"{SVG}text")}
    assert {"missing", "missing: realised"} <= said


def band(picture: ElementTree.Element, name: str) -> tuple[float, float, float, float]:
    """Its left and right end, and its highest and lowest point."""
    group = picture.find(f".//{SVG}g[@id='{name}']")
    assert group is not None
    corners = [
        found for path in group.iter(f"{SVG}path") for found in re.findall(r"[ML] (\S+) (\S+)", path.attrib["d"])
    ]
    x, y = ([float(corner[i]) for corner in corners] for i in (0, 1))
    return min(x), max(x), min(y), max(y)


@cache
def forecast() -> str:
    return page(quiet() | {"drift": "ways@30", "fans": forecasts()})


def test_forecasts_are_drawn_with_both_intervals_and_what_was_observed_before_and_since() -> None:
    picture, told = pictures(forecast())["fans"], Seen(forecast()).text["fans"]
    for k in range(4):
        observed, [median] = points(picture, f"fan-{k}-observed"), points(picture, f"fan-{k}-median")
        assert len(median) == 28
        assert sum(map(len, observed)) == (56 if k < 2 else 53)
        outer, inner = (band(picture, f"fan-{k}-{level}") for level in ("95", "80"))
        assert outer[:2] == inner[:2]
        assert outer[2] < inner[2] < inner[3] < outer[3]
    said = {element.text for element in picture.iter(f"{SVG}text")}
    assert {"80% interval", "95% interval", "observed", "store-02/product-007", "drift"} <= said
    assert "the largest, forecast on day 23" in said
    assert "held 26% of the days forecast before the drift, 100% of those forecast after it" in told
    assert "2 series" in told
    assert "fans" not in Seen(usual()).text


def test_days_that_were_not_observed_are_hatched_and_bands_begin_where_a_forecast_does() -> None:
    story = quiet() | {"fans": forecasts()}
    fan = story["fans"]["shown"][0]
    fan["observed"][10:13] = [None] * 3
    fan["observed"][40] = None
    picture = pictures(page(story))["fans"]
    assert [len(stroke) for stroke in points(picture, "fan-0-observed")] == [10, 27, 15]
    assert len(points(picture, "fan-0-missing")) == 4
    assert points(picture, "fan-1-missing") == []
    first = points(picture, "fan-0-observed")[0][0][0]
    last = points(picture, "fan-0-observed")[-1][-1][0]
    assert band(picture, "fan-0-95")[0] == pytest.approx(first + (last - first) * 27.5 / 55, abs=0.1)


def test_both_forecasts_of_a_series_have_one_scale() -> None:
    early, late = (points(pictures(forecast())["fans"], f"fan-{k}-observed")[0] for k in (0, 1))
    assert [y for _, y in early[14:]] == pytest.approx([y for _, y in late[:42]], abs=0.1), "the same days"


def test_a_run_of_which_nothing_can_be_shown_says_so() -> None:
    none = page(quiet() | {"fans": {"value": "units", "shown": []}})
    assert "No forecast can be shown" in Seen(none).text["fans"]
    assert "missing" in Seen(none).text["fans"]
    story = quiet() | {"fans": forecasts()}
    assert "The 80% interval held 6" in Seen(page(story)).text["fans"]
    for fan in story["fans"]["shown"]:
        fan["observed"] = [0.0] * 56
    assert "The 80% interval held 0% of the days, the 95% one 0%" in Seen(page(story)).text["fans"]
    for fan in story["fans"]["shown"]:
        fan["observed"] = [None] * 56
    assert "No day that was forecast has been observed" in Seen(page(story)).text["fans"]
    story["fans"]["shown"] *= 4
    assert "4 forecasts more are not drawn" in Seen(page(story)).text["fans"]


def test_a_bin_without_labels_is_no_dot(html: str) -> None:
    found = ids(pictures(html)["calibration"])
    assert "calibration-2-missing-4" in found
    assert "calibration-2-bin-4" not in found
    assert {f"calibration-2-bin-{i}" for i in (0, 1, 2, 3, 5)} <= found


@pytest.mark.parametrize("absent", [True, False])
def test_a_missing_share_has_no_bar(absent: bool) -> None:
    story = example()
    if absent:
        del story["reasons"]["before"]["RISKY_SHOP"]
    picture = pictures(page(story))["reasons"]
    assert "reason-3-before-missing" in ids(picture)
    assert "reason-3-before" not in ids(picture)
    assert "before: missing" in {element.text for element in picture.iter(f"{SVG}text")}


def test_a_missing_figure_and_a_missing_metric_say_so() -> None:
    story = example() | {"detection_delay": None, "closed": None, "false_alarms": None}
    story["weeks"][-1]["regret"] = None
    seen = Seen(re.sub(r"<style>.*?</style>", "", page(story), flags=re.S))
    assert seen.text[""].count("missing") == 5  # four figures, and last week's without the loop
    assert "The drift was not noticed" in seen.text[""]
    assert re.search(r"1,003\s*missing", seen.text["versions"])


def test_figures_of_a_run_are_those_of_the_document(html: str) -> None:
    told = Seen(html).text[""]
    for figure in ("11 days", "78%", "65,000 requests", "“tactics” began on day 30", "seed 0", "preset small"):
        assert figure in told


def test_every_event_appears_and_those_of_the_loop_are_marked(html: str) -> None:
    log = Seen(html).text["events"]
    for event in example()["events"]:
        assert event["kind"] in log
        assert event["what"] in log
        assert (event["version"] or "") in log
    flagged = {element.text for element in pictures(html)["regret"].iter(f"{SVG}text")}
    assert {"drift, day 30", "alarm, day 41", "retrained, day 42", "promoted, day 46", "rolled back, day 61"} <= flagged


def test_events_of_one_kind_in_a_row_share_a_flag_and_too_many_are_told() -> None:
    story = example()
    story["events"] = [{"day": d, "kind": "alarm", "what": "", "version": None} for d in (10.0, 11.0, 16.5, 20.0)]
    flagged = {element.text for element in pictures(page(story))["regret"].iter(f"{SVG}text")}
    assert {"alarm ×3, day 10", "alarm, day 20"} <= flagged
    kinds = ("alarm", "promoted")
    story["events"] = [{"day": 10 + i / 9, "kind": kinds[i % 2], "what": "", "version": None} for i in range(20)]
    assert "8 events without a label" in Seen(page(story)).text["regret"]


def test_a_canary_is_drawn_in_its_steps(html: str) -> None:
    blocks = points(pictures(html)["canaries"], "canary-0")
    tall = [block[0][1] - block[1][1] for block in blocks]
    assert [round(t / tall[-1], 2) for t in tall] == pytest.approx([0.1, 0.25, 0.5, 1.0], abs=0.02)
    assert "3 canaries: 1 promoted, 1 rolled back, 1 running" in Seen(html).text["canaries"]


def test_a_quiet_run_says_what_is_missing_and_why() -> None:
    whole = page(quiet())
    told = Seen(whole).text
    assert pictures(whole) == {}
    assert "A run without drift and without a false alarm" in told[""]
    assert "no drift was switched on" in told[""]
    assert "no request was answered" in told["regret"]
    assert "No canary was started: nothing alarmed." in told["canaries"]
    assert "No alarm rang, but neither drift nor quality was measured" in told["alarms"]
    measured = {"regret", "drift", "quality", "calibration", "reasons"}
    assert {name for name in told if name and "missing" in told[name]} - {
        "footer"
    } == measured  # nothing happened is not missing
    assert set(told) == set(Seen(page(example())).text)


def test_no_canary_after_an_alarm_has_another_reason() -> None:
    story = example() | {"canaries": []}
    assert "nothing alarmed" not in Seen(page(story)).text["canaries"]
    assert "rejected" in Seen(page(story)).text["canaries"]


def test_without_a_world_alone_the_other_line_is_not_drawn() -> None:
    story = example() | {"closed": None}
    for week in story["weeks"]:
        week["regret_without"] = None
    whole = page(story)
    assert points(pictures(whole)["regret"], "regret-without") == []
    assert "the run without the loop was not measured" in Seen(whole).text[""]
    assert "The run without the loop is missing" in Seen(whole).text["regret"]


def test_whatever_is_wide_scrolls_in_a_frame_of_its_own(html: str) -> None:
    assert re.search(r"\.wide \{ overflow-x: auto", html)
    assert html.count("<svg") == html.count('<figure class="wide" tabindex="0"><svg') == 6
    assert html.count("<table") == html.count('<div class="wide" tabindex="0"><table') == 3
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in html
    assert not re.search(r'<svg[^>]* (width|height)="', html)


def test_a_page_follows_a_dark_ground_and_paper(html: str) -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, re.S))
    assert not re.search(r"(?:fill|stroke)\S*\s*#[0-9a-f]{3}", drawn)
    assert set(re.findall(r"var\(--(\w+)\)", drawn)) - {"sans"} <= set(PALETTE)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def contrast(a: str, b: str) -> float:
    """Of WCAG 2.2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("ground", [0, 1])
def test_text_can_be_read_and_heat_gets_stronger_on_both_grounds(ground: int) -> None:
    surface = PALETTE["surface"][ground]
    for name in ("ink", "muted", "blue", "orange"):
        assert contrast(PALETTE[name][ground], surface) >= 4.5, name
    heat = [contrast(PALETTE[f"heat{i}"][ground], surface) for i in range(6)]
    assert heat[:3] == sorted(heat[:3])
    assert heat[3:] == sorted(heat[3:])
    assert len({pair[ground] for pair in PALETTE.values()}) == len(PALETTE)


def test_a_long_name_is_cut_in_a_picture_and_whole_in_a_table() -> None:
    long = "x" * 300
    story = texts(example() | {"fans": forecasts()}, lambda text: text + long)
    whole = page(story)
    for name, picture in pictures(whole).items():
        right_end = float(picture.attrib["viewBox"].split()[2])
        upright = [e for e in picture.iter(f"{SVG}text") if "rotate(-90" not in e.attrib.get("transform", "")]
        assert upright
        for element in (e for e in upright if "x" in e.attrib):  # lines of a unit have a transform alone
            said, x, look = element.text or "", float(element.attrib["x"]), element.attrib["style"]
            wide = width(said, float(re.findall(r"font-size: ([\d.]+)", look)[0]))
            left = x - wide * (0.5 if "middle" in look else 1 if "text-anchor: end" in look else 0)
            assert -6 <= left <= left + wide <= right_end + 6, (name, said)
    assert long in Seen(whole).text["versions"]


def test_a_year_of_many_columns_stays_below_a_megabyte() -> None:
    story = example()
    rng = np.random.default_rng(0)
    days = list(range(1, 366))
    story["days"] = 365
    story["drift_by_feature"] = {
        "days": days,
        "columns": {f"c{i}": rng.exponential(1, 365).tolist() for i in range(60)},
    }
    story["events"] = [{"day": float(d), "kind": "alarm", "what": "x" * 80, "version": "8811994a3d75"} for d in days]
    whole = page(story)
    assert len(whole.encode()) < 1_000_000
    assert "30 more are not drawn" in Seen(whole).text["drift"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"days": 0}, "days: input should be greater than 0, got 0"),
        ({"closed": float("nan")}, "closed: input should be a finite number, got nan"),
        ({"reasons": {"before": {"A": 1.5}, "after": {}}}, "reasons.before.A: input should be less than or equal to 1"),
        ({"drift_by_feature": {"days": [2, 1], "columns": {}}}, "drift_by_feature.days: value error, must ascend"),
        ({"drift_by_feature": {"days": [1], "columns": {"a": []}}}, "columns.a: must have one value for each of days"),
        ({"weeks": [*example()["weeks"], example()["weeks"][0]]}, "must ascend"),
        ({"canaries": None}, "canaries: input should be a valid tuple, got None"),
        (
            {"fans": {"value": "", "shown": [forecasts()["shown"][0] | {"observed": []}]}},
            "observed: must have one value for each of days, got 0",
        ),
    ],
)
def test_a_document_of_another_shape_is_refused_with_field_rule_and_value(change: Document, told: str) -> None:
    with pytest.raises(BadRecord) as error:
        page(example() | change)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_lists_of_one_table_have_one_length() -> None:
    story = example()
    story["quality"]["low"].pop()
    with pytest.raises(BadRecord, match="low: must have one value for each of days, got 89"):
        page(story)


def test_a_page_is_written_whole_or_not_at_all(html: str, tmp_path: Path) -> None:
    file = tmp_path / "run.html"
    write(example(), file)
    assert file.read_text(encoding="utf-8") == html
    with file.open(encoding="utf-8") as reader:
        write(quiet(), file)
        assert reader.read() == html  # who has it open keeps the old one
    write(example(), file)
    with pytest.raises(BadRecord):
        write(example() | {"days": -1}, file)
    with pytest.raises(OSError, match="directory"):
        write(quiet(), tmp_path)
    assert file.read_text(encoding="utf-8") == html
    assert list(tmp_path.iterdir()) == [file]
    assert [p for p in tmp_path.parent.iterdir() if p.name.startswith(f".{tmp_path.name}")] == []


@given(st.lists(st.tuples(st.floats(0, 500), st.floats(1, 120)), max_size=15))
@settings(max_examples=200, deadline=None)
def test_no_flag_covers_another_flag_or_its_pole(places: list[tuple[float, float]]) -> None:
    places = sorted(places, key=lambda p: p[0])
    rows = flags(places)
    for i, (x, wide) in enumerate(places):
        for j in range(i + 1, len(places)):
            if places[j][0] < x + wide:
                assert rows[j] < rows[i]  # its pole ends below


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.01, 0.1))
@settings(max_examples=200, deadline=None)
def test_labels_at_the_end_keep_their_order_and_distance(places: list[float], gap: float) -> None:
    out = spread(places, gap)
    order = sorted(range(len(places)), key=lambda i: places[i])
    assert all(out[b] - out[a] >= gap - 1e-9 for a, b in zip(order, order[1:], strict=False))
    assert max(out, default=0.0) <= 1.0 + 1e-9
    apart = all(places[b] - places[a] >= gap for a, b in zip(order, order[1:], strict=False))
    assert not apart or out == places


def test_numbers_are_short_and_small_shares_are_not_zero() -> None:
    assert [number(v) for v in (None, 0.0, 0.0012345, 12.34, 1234.5, -1e6, 3e9)] == [
        "missing", "0", "0.00123", "12.3", "1,234", "-1,000,000", "3e+09",
    ]  # fmt: skip
    assert [percent(v) for v in (None, 0.0, 0.0004, 0.1, 0.785, 1.0, -0.25)] == [
        "missing", "0%", "0.04%", "10%", "78%", "100%", "-25%",
    ]  # fmt: skip


words = st.text(max_size=8) | st.sampled_from(["<b>", "&amp;", "$x$", "]]>", "--", "a" * 90])
numbers = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e100, max_value=1e100) | st.floats(0, 3)
measured = st.none() | numbers
times = st.floats(-1, 120) | st.integers(0, 90).map(float)
shares = st.floats(0, 1)
unknown = st.none() | shares


def some(strategy: st.SearchStrategy[Any], size: int = 4) -> st.SearchStrategy[list[Any]]:
    return st.lists(strategy, max_size=size)


def table(key: st.SearchStrategy[Any], n: int, *names: str) -> st.SearchStrategy[Document]:
    return st.fixed_dictionaries({name: st.lists(key, min_size=n, max_size=n) for name in names})


@st.composite
def stories(draw: st.DrawFn) -> Document:
    days = draw(st.lists(times, unique=True, max_size=6).map(sorted))
    n = len(days)
    week = st.fixed_dictionaries(
        {"requests": st.integers(0, 9), "loss": measured, "ceiling": measured, "regret": measured,
         "regret_without": measured})  # fmt: skip
    weeks = draw(st.dictionaries(st.integers(0, 14), week, max_size=5))
    kinds = st.sampled_from(
        ["drift", "alarm", "cleared", "retrained", "rejected", "held", "promoted", "rolled back", "waiting", "removed"]
    )
    bins = draw(st.integers(0, 4))
    calibration = st.builds(
        dict,
        table(unknown, bins, "predicted", "observed", "low", "high"),
        version=words,
        count=st.just([9] * bins),
    )
    fan = table(measured, n, "observed", "median", "lower_80", "upper_80", "lower_95", "upper_95").flatmap(
        lambda columns: st.fixed_dictionaries({"unit": words, "why": words, "asked": times}).map(
            lambda rest: {"days": days, **columns, **rest}
        )
    )
    document: dict[str, st.SearchStrategy[Any]] = {
        "system": words, "summary": words, "preset": words, "seed": st.integers(0, 9), "unit": words,
        "days": st.floats(0.01, 1e4), "drift": st.none() | words, "detection_delay": st.none() | times,
        "false_alarms": st.none() | st.integers(0, 5), "closed": measured, "requests": st.integers(0, 10**9),
        "weeks": st.just([{"week": w, **weeks[w]} for w in sorted(weeks)]),
        "events": some(st.fixed_dictionaries(
            {"day": times, "kind": kinds | words, "what": words, "version": st.none() | words}), 8),
        "drift_by_feature": st.fixed_dictionaries({"days": st.just(days), "columns": st.dictionaries(
            words, st.lists(measured, min_size=n, max_size=n), max_size=4)}),
        "quality": table(measured, n, "estimated", "realised", "low", "high").map(
            lambda t: {"days": days, "metric": "m", "doubts": [draw(st.none() | words) for _ in days], **t}),
        "canaries": some(st.fixed_dictionaries(
            {"version": words, "began": times, "ended": st.none() | times, "steps": some(st.tuples(times, shares)),
             "end": st.sampled_from(["promoted", "rolled back", "running", "removed"]), "why": words})),
        "calibration": some(calibration),
        "reasons": st.fixed_dictionaries({side: st.dictionaries(words, unknown, max_size=4)
                                          for side in ("before", "after")}),
        "versions": some(st.fixed_dictionaries(
            {"name": words, "day": st.none() | times, "why": words, "fate": words,
             "metrics": st.dictionaries(words, measured, max_size=3)})),
        "alarms": some(st.fixed_dictionaries(
            {"name": words, "began": times, "ended": st.none() | times, "look_at": words})),
        "fans": st.none() | st.fixed_dictionaries({"value": words, "shown": some(fan, 2)}),
    }  # fmt: skip
    return draw(st.fixed_dictionaries(document))


def test_estimates_whose_assumptions_failed_are_said_to_be_doubtful() -> None:
    run = example()
    assert "cannot be trusted" not in page(run)
    run["quality"]["doubts"][40:42] = ["matured labels contradict the probabilities"] * 2
    assert "2 estimates cannot be trusted, from day 41: matured labels contradict the probabilities." in page(run)


@given(stories())
@settings(max_examples=25, deadline=None)
def test_every_story_is_a_page_of_well_formed_pictures(story: Document) -> None:
    whole = page(story)
    for picture in pictures(whole).values():
        assert all(np.isfinite(float(n)) for n in re.findall(r"(?<![\w#.-])-?\d+\.?\d*", picture.attrib["viewBox"]))
        assert not re.search(r"\b(nan|inf)\b", " ".join(e.attrib.get("d", "") for e in picture.iter()))
    assert {tag for tag, _ in Seen(whole).tags} <= {tag for tag, _ in Seen(usual()).tags} | {"b"}
    whole.encode()
