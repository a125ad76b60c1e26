"""What a run says in words: the headline, the key figures, and one finding over each picture."""

from collections.abc import Iterator

from common.report import fans, shares, timelines
from common.report.drawing import day, number, percent
from common.report.story import Fans, Story
from common.report.tables import plural

Section = tuple[str, str, str, str, str]  # id, kicker, finding, how to read it or why it is missing, picture or ""


def _name(drift: str) -> str:
    return drift.rpartition("@")[0] or drift


def headline(run: Story) -> str:
    if not run.drift:
        return "A run without drift and without a false alarm" if run.false_alarms == 0 else _quiet(run)
    noticed = f"noticed after {_lasting(run.detection_delay)}" if run.detection_delay is not None else "not noticed"
    closed = f", and {_closed(run.closed)}" if run.closed is not None else ""
    return f"The drift was {noticed}{closed}"


def _quiet(run: Story) -> str:
    if run.false_alarms is None:
        return "A run without drift"
    return f"A run without drift, and {plural(run.false_alarms, 'false alarm')}"


def _lasting(days: float) -> str:
    return f"{day(days)} {'day' if days == 1 else 'days'}"


def _closed(share: float) -> str:
    if share < 0:
        return f"the loop added {percent(-share)} to its regret"
    return f"the loop closed {percent(share)} of its regret"


def sentence(run: Story) -> str:
    """The story in one sentence."""
    asked = "an unknown number of requests" if run.requests is None else plural(run.requests, "request")
    told = f"In {_lasting(run.days)} {run.system} answered {asked} (preset {run.preset}, seed {run.seed})"
    if not run.drift:
        told += "; no drift was switched on"
    else:
        since = f" on day {day(run.drift_day)}" if run.drift_day is not None else ""
        told += f"; the drift “{_name(run.drift)}” began{since}"
        rang = run.detection_delay is not None
        told += f" and was noticed {_lasting(run.detection_delay or 0)} later" if rang else " and was not noticed"
    ends = [event.kind for event in run.events]
    for kind in ("promoted", "rejected", "rolled back", "removed"):
        if n := ends.count(kind):
            told += f"; {plural(n, 'version')} {'was' if n == 1 else 'were'} {kind}"
    return told + "."


def figures(run: Story) -> Iterator[tuple[str, str, str]]:
    """The four key figures: name, value, note."""
    if not run.drift:
        yield "Detection delay", "no drift", "there was nothing to detect"
    elif run.detection_delay is None:
        yield "Detection delay", "missing", "the drift was not noticed in this run"
    else:
        yield "Detection delay", _lasting(run.detection_delay), "from the drift to the first alarm"
    alarms = "missing" if run.false_alarms is None else f"{run.false_alarms:,}"
    yield "False alarms", alarms, "before the drift began" if run.drift else "in a world that did not change"
    if run.closed is None and not run.drift:
        yield "Regret closed by the loop", "no drift", "there was no regret of a drift to close"
    elif run.closed is None:
        alone = any(week.regret_without is not None for week in run.weeks)
        why = "the document gives no share" if alone else "the run without the loop was not measured"
        yield "Regret closed by the loop", "missing", why
    else:
        yield "Regret closed by the loop", percent(run.closed), "share of the regret that the drift caused"
    last = run.weeks[-1] if run.weeks else None
    loop, without = (last.regret, last.regret_without) if last else (None, None)
    yield "Regret in the last week", number(loop), f"{run.unit} per 1,000 requests; without the loop {number(without)}"


def sections(run: Story) -> Iterator[Section]:
    yield _regret(run)
    yield _drift(run)
    yield _canaries(run)
    yield _quality(run)
    if run.fans is not None:
        yield _fans(run.fans, run.drift_day)
    yield _calibration(run)
    yield _reasons(run)


def _regret(run: Story) -> Section:
    head = "regret", "Regret by week"
    if all(w.regret is None and w.regret_without is None for w in run.weeks):
        why = "no request was answered" if run.requests == 0 else "the document gives regret for no week"
        return *head, "Regret was not measured", f"No week can be drawn: {why}.", ""
    both = [(w.regret, w.regret_without) for w in run.weeks]
    pairs = [(a, b) for a, b in both if a is not None and b is not None]
    how = (
        f"Loss above the best possible answer, in {run.unit} per 1,000 requests, one point a week. Shaded: the "
        "difference that the loop made."
    )
    if hidden := sum(row >= timelines.FLAGS for *_, row in timelines.flagged(run)):
        how += f" {plural(hidden, 'event')} without a label: see the log of the loop."
    if not pairs:
        how += " The run without the loop is missing: it was not measured."
        return *head, "Regret with the loop; without it, it was not measured", how, timelines.regret(run)
    a, b = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
    finding = f"The loop {'lowered' if a < b else 'raised'} weekly regret from {number(b)} to {number(a)} on average"
    if abs(a - b) <= 0.005 * max(abs(a), abs(b)):
        finding = f"The loop made no difference: {number(a)} {run.unit} of regret per 1,000 requests on average"
    return *head, finding, how, timelines.regret(run)


def _drift(run: Story) -> Section:
    head = "drift", "Drift by feature"
    columns = timelines.worst(run.drift_by_feature)
    if not columns or not run.drift_by_feature.days:
        return (
            *head,
            "Drift was not measured",
            "The document holds no column or no day: no reference to compare to.",
            "",
        )
    over = [(name, first) for name, first, _ in columns if first is not None]
    finding = f"None of {plural(len(columns), 'column')} went over its threshold"
    if over and over[0][1] is not None:
        finding = f"{len(over)} of {plural(len(columns), 'column')} went over their threshold, "
        finding += f"{over[0][0]} first, on day {day(over[0][1])}"
    how = "Distance to the reference as a ratio to its threshold; above 1 it is exceeded, and outlined."
    if run.drift_day is not None:
        how += " The line is the day on which the drift began."
    if len(columns) > timelines.ROWS:
        drawn = timelines.ROWS
        how += f" The {drawn} columns that exceeded first or came nearest; {len(columns) - drawn} more are not drawn."
    return *head, finding, how, timelines.features(run)


def _canaries(run: Story) -> Section:
    head = "canaries", "Canaries"
    if not run.canaries:
        kinds = {event.kind for event in run.events}
        why = "no candidate was ready for traffic"
        if not run.alarms and "alarm" not in kinds:
            why = "nothing alarmed"
        elif "rejected" in kinds:
            why = "what was trained was rejected before it got traffic"
        return *head, "No canary was started", f"No canary was started: {why}.", ""
    ends = [canary.end for canary in run.canaries]
    told = ", ".join(f"{ends.count(end)} {end}" for end in dict.fromkeys(ends))
    how = "Share of the units that the new version answered, in steps; the same days as above."
    if len(ends) > timelines.LANES:
        how += f" The last {timelines.LANES} are drawn."
    return *head, f"{plural(len(ends), 'canary').replace('canarys', 'canaries')}: {told}", how, timelines.canaries(run)


def _quality(run: Story) -> Section:
    q = run.quality
    head = "quality", "Quality"
    if all(v is None for v in (*q.estimated, *q.realised)):
        why = "No day can be judged: there was no estimate, and no label had matured."
        return *head, "Quality is not known", why, ""
    both = [(e, r) for e, r in zip(q.estimated, q.realised, strict=True) if e is not None and r is not None]
    finding = f"{q.metric} was realised, but not estimated" if any(q.realised) else f"{q.metric} is only estimated"
    if both:
        apart = sum(abs(e - r) for e, r in both) / len(both)
        finding = f"Estimated and realised {q.metric} were {number(apart)} apart on average"
    how = f"{q.metric}: estimated before labels are there, realised when they have matured. Shaded: the interval."
    if doubted := [(at, why) for at, why in zip(q.days, q.doubts, strict=True) if why is not None]:
        how += f" {plural(len(doubted), 'estimate')} cannot be trusted, from day {day(doubted[0][0])}: {doubted[0][1]}."
    return *head, finding, how, timelines.quality(run)


def _fans(said: Fans, drift_day: float | None) -> Section:
    head = "fans", "Forecasts"
    if not said.shown:
        why = "The document shows none: nothing was forecast and observed on the days that were looked at."
        return *head, "No forecast can be shown", why, ""
    shown = said.shown[: fans.PANELS]
    inside = {level: fans.held(shown, level) for level in ("80", "95")}
    finding = "No day that was forecast has been observed"
    if None not in inside.values():
        finding = f"The 80% interval held {percent(inside['80'])} of the days, the 95% one {percent(inside['95'])}"
    before, after = (
        fans.held([fan for fan in shown if drift_day is not None and (fan.asked < drift_day) == is_before], "80")
        for is_before in (True, False)
    )
    if before is not None and after is not None:
        finding = f"The 80% interval held {percent(before)} of the days forecast before the drift"
        finding += f", {percent(after)} of those forecast after it"
    series = len({fan.unit for fan in shown})
    how = f"{series:,} series: what was answered on a day, and what was observed before and since."
    how += " Nothing has been told of a hatched day, or not yet."
    if drift_day is not None:
        how += " The line is the day on which the drift began."
    if hidden := len(said.shown) - len(shown):
        how += f" {plural(hidden, 'forecast')} more are not drawn."
    return *head, finding, how, fans.forecasts(shown, said.value, drift_day)


def _calibration(run: Story) -> Section:
    head = "calibration", "Calibration"
    shown = [c for c in run.calibration if any(v is not None for v in c.observed)]
    if not shown:
        return *head, "Calibration is not known", "No version has predictions whose labels have matured.", ""
    bins = [b for c in shown for b in zip(c.predicted, c.observed, c.low, c.high, strict=True)]
    judged = [low <= x <= high for x, y, low, high in bins if None not in (x, y, low, high)]  # type: ignore[operator]
    finding = f"Predictions lie in the interval of what was observed in {sum(judged)} of {plural(len(judged), 'bin')}"
    finding = finding if judged else "Predicted and observed, without intervals"
    how = (
        "Each dot is a bin of predictions, with the interval of what was observed; on the line they agree. "
        "Hollow: no interval. A triangle: nothing was observed there."
    )
    absent = sum(x is None for x, *_ in bins)
    how += f" {plural(absent, 'bin')} missing." if absent else ""
    how += f" The last {shares.PANELS} of {len(shown)} versions." if len(shown) > shares.PANELS else ""
    return *head, finding, how, shares.calibration(shown[-shares.PANELS :])


def _reasons(run: Story) -> Section:
    head = "reasons", "Reasons given"
    rows = shares.changed(run.reasons)
    if not rows:
        return (
            *head,
            "No reason was given",
            "The document gives no reason, before or after: no request was doubted.",
            "",
        )
    moved = [(after - before, name, before, after) for name, before, after in rows if None not in (before, after)]  # type: ignore[operator]
    finding = "What doubted requests were doubted for"
    if moved:
        step, name, before, after = max(moved, key=lambda m: (abs(m[0]), m[1]))
        way = "rose" if step > 0 else "fell" if step < 0 else "stayed"
        finding = f"{name} {way} from {percent(before)} to {percent(after)} of the doubted requests"
        finding = finding if step else f"Reasons stayed as they were, {name} at {percent(after)}"
    change = "the drift" if run.drift else "the change"
    how = f"Share of the doubted requests that were given each reason, before and after {change}."
    if len(rows) > shares.BARS:
        how += f" The {shares.BARS} most frequent; {len(rows) - shares.BARS} more are not drawn."
    return *head, finding, how, shares.reasons(run)
