"""What became of a simulated run, as one document: for machines, and for the page of pictures."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.clock import DAY
from common.features.view import Array
from common.lifecycle import faults
from common.lifecycle.fans import fans
from common.lifecycle.loop import TRIGGERS, Loop
from common.lifecycle.simulation import Regret, Simulation
from common.monitoring import quality
from common.system import Answer

WEEK = 7  # days
CLOSED_AFTER = 21  # days after the alarm: by then the regret that the drift added should be gone
BINS = 8  # of a calibration
FEWEST = 30  # positives that a calibration needs
REASONS = "reasons"  # the field of answers that says why, where there is one


def story(simulation: Simulation, preset: str, without: Regret | None) -> dict[str, Any]:
    """`without`: what the same world cost without the loop. Times are days since the simulated start."""
    system, loop, regret = simulation.system, simulation.loop, simulation.regret()
    alarmed = _alarmed(simulation)
    drift_day = simulation.drift_day
    after = [day for day in alarmed if drift_day is not None and day > drift_day]
    drawn = fans(simulation)
    return {
        "system": system.name,
        "summary": system.summary,
        "preset": preset,
        "seed": simulation.seed,
        "days": simulation.days,
        "drift": simulation.drift,
        "unit": system.unit_of_loss,
        "detection_delay": after[0] - drift_day if after and drift_day is not None else None,
        "false_alarms": len(alarmed) - len(after),
        "closed": _closed(regret, without, drift_day, after[0] if after else None),
        "requests": int(regret.requests.sum()),
        "weeks": [_week(week, regret, without) for week in range(-(-simulation.days // WEEK))],
        "events": _events(simulation),
        "drift_by_feature": _drift(simulation, loop),
        "quality": _quality(simulation),
        "canaries": _canaries(simulation),
        "calibration": list(_calibrations(simulation)),
        "reasons": _reasons(simulation),
        "versions": _versions(simulation),
        "alarms": _alarms(simulation),
        **({} if drawn is None else {"fans": drawn}),
    }


def _day(simulation: Simulation, at: int) -> float:
    return round((at - simulation.start) / DAY, 3)


def _alarmed(simulation: Simulation) -> list[float]:
    """The days on which something was said to be wrong; a signal that is missing says nothing of the kind."""
    kinds = TRIGGERS if simulation.kind not in (None, *faults.KINDS) else None
    found = []
    for alert in simulation.loop.alerts if simulation.loop else ():
        if alert.state == "firing" and not alert.rule.endswith("Missing"):
            day = _day(simulation, alert.at)
            # a drift is found by what can see it
            if kinds is None or alert.rule in kinds or day <= (simulation.drift_day or 0):
                found.append(day)
    return found


def _per_1000(values: Array, requests: Array) -> float | None:
    return float(1_000 * values.sum() / requests.sum()) if requests.sum() else None


def _week(week: int, regret: Regret, without: Regret | None) -> dict[str, Any]:
    days = slice(week * WEEK, (week + 1) * WEEK)
    n, paid, least = regret.requests[days], regret.paid[days], regret.least[days]
    return {
        "week": week,
        "requests": int(n.sum()),
        "loss": _per_1000(paid, n),
        "ceiling": _per_1000(least, n),
        "regret": _per_1000(paid - least, n),
        "regret_without": None if without is None else _mean(without, days),
    }


def _mean(regret: Regret, days: slice) -> float | None:
    return _per_1000((regret.paid - regret.least)[days], regret.requests[days])


def _closed(regret: Regret, without: Regret | None, drift_day: int | None, alarm: float | None) -> float | None:
    """Of what the drift added to the regret, the share that is gone three weeks after the alarm and later."""
    if without is None or alarm is None or not drift_day:
        return None
    late = slice(int(np.ceil(alarm)) + CLOSED_AFTER, None)
    before, with_loop, alone = _mean(without, slice(drift_day)), _mean(regret, late), _mean(without, late)
    if before is None or with_loop is None or alone is None or alone <= before:
        return None
    return (alone - with_loop) / (alone - before)


def _events(simulation: Simulation) -> list[dict[str, Any]]:
    found = []
    if simulation.drift is not None and simulation.drift_day is not None:
        what = faults.SAYS.get(simulation.kind or "", simulation.drift)
        found.append({"day": float(simulation.drift_day), "kind": "drift", "what": what, "version": None})
    for at, kind, what, version in simulation.loop.happened if simulation.loop else ():
        found.append({"day": _day(simulation, at), "kind": kind, "what": what, "version": version})
    return sorted(found, key=lambda event: event["day"])


def _drift(simulation: Simulation, loop: Loop | None) -> dict[str, Any]:
    columns = [monitor.column for monitor in simulation.system.monitors]
    days, ratios = [], []
    for at, found in loop.findings if loop else ():
        days.append(round(_day(simulation, at)))
        worst: dict[str, float] = {}
        for (column, _), ratio in found.drift.items():
            if ratio is not None:
                worst[column] = max(worst.get(column, 0.0), ratio)
        ratios.append(worst)
    return {"days": days, "columns": {name: [worst.get(name) for worst in ratios] for name in columns}}


def _known(simulation: Simulation, rows: slice) -> tuple[NDArray[np.bool_], Array, Array]:
    """Which requests have a score and may have an outcome; labels and weights as known in the end."""
    journal = simulation.journal
    labels, weights = journal.labels(simulation.clock.now(), simulation.system.label_delay)
    c = journal.columns
    return np.isfinite(c.score[rows]) & ~c.is_hidden[rows], labels[rows], weights[rows]


def _quality(simulation: Simulation) -> dict[str, Any]:
    """By week: log loss as it could be estimated at once, and as it turned out, with its 95 % interval."""
    names = ("days", "estimated", "realised", "low", "high", "doubts")
    out: dict[str, Any] = {name: [] for name in names} | {"metric": "log_loss"}
    c = simulation.journal.columns
    for week in range(simulation.days // WEEK):
        start = simulation.start + week * WEEK * DAY
        rows = simulation.journal.rows(start, start + WEEK * DAY)
        usable, labels, weights = _known(simulation, rows)
        out["days"].append((week + 1) * WEEK)
        estimate = quality.estimate(c.score[rows][usable], **_doubts(simulation, start, start + WEEK * DAY))
        out["estimated"].append(estimate.metrics.get("log_loss"))
        out["doubts"].append(estimate.why)
        mature = usable & (weights > 0)
        found = None
        if mature.any() and start + WEEK * DAY <= simulation.clock.now() - simulation.system.label_delay:
            of = c.score[rows][mature], labels[mature], weights[mature], c.unit[rows][mature]
            found = quality.realised(*of).get("log_loss")
        for name in ("value", "low", "high"):
            out["realised" if name == "value" else name].append(None if found is None else getattr(found, name))
    return out


def _doubts(simulation: Simulation, start: int, end: int) -> dict[str, Any]:
    """What the watch found in a span that speaks against an estimate."""
    found = [findings for at, findings in simulation.loop.findings if start < at <= end] if simulation.loop else []
    surprise = [f.surprise for f in found if f.surprise is not None]
    outside = [flaw.share for f in found for flaw in f.data if flaw.kind == "out_of_range" and flaw.share is not None]
    rang = [a for a in _alarms(simulation) if a["name"].startswith("FeatureDrift (")]
    first, last = _day(simulation, start), _day(simulation, end)
    drifted = {a["name"] for a in rang if a["began"] <= last and (a["ended"] is None or a["ended"] > first)}
    return {
        "surprised": max(surprise) >= 1 if surprise else None,
        "outside": max(outside, default=None),
        "drifted": drifted,
    }


def _canaries(simulation: Simulation) -> list[dict[str, Any]]:
    """By version: its shares of the units, and how it ended."""
    out: dict[str, dict[str, Any]] = {}
    for event in _events(simulation):
        name, kind, day = event["version"], event["kind"], event["day"]
        if kind == "canary":
            share = simulation.loop.policy.steps.shares[0] if simulation.loop else 0.0
            out[name] = {"version": name, "began": day, "ended": None, "steps": [[day, share]], "end": "running"}
        elif name in out and kind == "advanced":
            shares = simulation.loop.policy.steps.shares if simulation.loop else ()
            out[name]["steps"].append([day, shares[len(out[name]["steps"])]])
        elif name in out and kind in ("promoted", "rolled back", "removed"):
            out[name] |= {"ended": day, "end": kind}
            if kind == "promoted":
                out[name]["steps"].append([day, 1.0])
        if name in out:
            out[name]["why"] = event["what"]
    return list(out.values())


def _calibrations(simulation: Simulation) -> Iterator[dict[str, Any]]:
    """Of each version that answered enough: what it said, and what came of it, with 95 % intervals (Wilson 1927)."""
    rows = simulation.journal.rows(simulation.start, simulation.clock.now())
    usable, labels, weights = _known(simulation, rows)
    c = simulation.journal.columns
    score, version = c.score[rows], c.version[rows]
    for name in dict.fromkeys(version.tolist()):
        mine = np.flatnonzero(usable & (weights > 0) & (version == name))
        if labels[mine].sum() < FEWEST:
            continue
        mine = mine[np.argsort(score[mine], kind="stable")]
        # as many expected positives in each bin: bins of equal size would all but one hold none
        mass = np.cumsum(score[mine] * weights[mine])
        part = np.minimum((mass / mass[-1] * BINS).astype(np.int64), BINS - 1)
        n = np.bincount(part, weights[mine], BINS)
        p, y = (np.bincount(part, v * weights[mine], BINS) / np.maximum(n, 1e-12) for v in (score[mine], labels[mine]))
        z, full = 1.96, n > 0
        middle, wide = (y + z**2 / (2 * n.clip(1))), z * np.sqrt(y * (1 - y) / n.clip(1) + z**2 / (4 * n.clip(1) ** 2))
        shrink = 1 + z**2 / n.clip(1)
        bounds = np.clip((middle - wide) / shrink, 0, 1), np.clip((middle + wide) / shrink, 0, 1)
        columns = {"predicted": p, "observed": y, "low": bounds[0], "high": bounds[1]}
        yield {
            "version": name,
            **{key: values[full].tolist() for key, values in columns.items()},
            "count": np.bincount(part, minlength=BINS)[full].tolist(),
        }


def _reasons(simulation: Simulation) -> dict[str, dict[str, float]]:
    """How often each reason was given, of the requests that were given any: before the drift, and since."""
    if REASONS not in simulation.system.answer.model_fields:
        return {"before": {}, "after": {}}
    change = simulation.start + (simulation.drift_day or simulation.days // 2) * DAY
    end = simulation.start + simulation.days * DAY
    spans = {"before": (simulation.start, change), "after": (change, end)}
    counts = {name: _shares(simulation.journal.answers[simulation.journal.rows(*s)]) for name, s in spans.items()}
    codes = sorted({code for shares in counts.values() for code in shares})
    return {name: {code: shares.get(code, 0.0) for code in codes} for name, shares in counts.items()}


def _shares(answers: list[Answer]) -> Mapping[str, float]:
    given = [why for answer in answers if (why := getattr(answer, REASONS))]
    codes = sorted({code for why in given for code in why})
    return {code: sum(code in why for why in given) / len(given) for code in codes}


def _versions(simulation: Simulation) -> list[dict[str, Any]]:
    """Each version, why it was made, and what became of it."""
    events = [event for event in _events(simulation) if event["version"]]
    out = []
    for version in simulation.registry.versions(simulation.system.name):
        mine = [event for event in events if event["version"] == version.name]
        ended = [event for event in mine if event["kind"] in ("rejected", "promoted", "rolled back", "removed")]
        made = next((event for event in mine if event["kind"] == "retrained"), None)
        fate = "promoted: the first one" if not mine else "a canary still"
        if ended:
            fate = f"{ended[-1]['kind']}: {ended[-1]['what']}"
        why = made["what"] if made else (mine[0]["what"] if mine else "the first one")
        out.append(
            {
                "name": version.name, "day": _day(simulation, version.created), "why": why, "fate": fate,
                "metrics": {name: _finite(value) for name, value in version.report["metrics"].items()},
            }
        )  # fmt: skip
    return out


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _alarms(simulation: Simulation) -> list[dict[str, Any]]:
    """Each alarm that rang, until when, and what to look at first."""
    out: dict[Any, dict[str, Any]] = {}
    rang = []
    for alert in simulation.loop.alerts if simulation.loop else ():
        if alert.state == "firing":
            about = [value for name, value in alert.labels if name != "system"]
            name = f"{alert.rule} ({', '.join(about)})" if about else alert.rule
            out[alert.key] = {
                "name": name, "began": _day(simulation, alert.at), "ended": None, "look_at": alert.look_at
            }  # fmt: skip
            rang.append(out[alert.key])
        elif alert.state == "resolved" and alert.key in out:
            out.pop(alert.key)["ended"] = _day(simulation, alert.at)
    return rang
