"""The tables of a run: versions with their fate, alarms with what to look at first, and all that happened."""

from collections.abc import Sequence
from html import escape

from common.report.drawing import day, number
from common.report.story import Story

Table = tuple[str, str, str, str]  # id, kicker, finding, body


def versions(run: Story) -> Table:
    promoted = sum(v.fate.startswith("promoted") for v in run.versions)
    finding = f"{plural(len(run.versions), 'version')} made, {promoted} promoted"
    if not run.versions:
        return "versions", "Versions", "No version was made", none("No version was made in this run.")
    names = list(dict.fromkeys(name for v in run.versions for name in v.metrics))
    head = ["Version", "Made", "Why", "Fate", *names]
    rows = [
        [escape(v.name), _day(v.day), escape(v.why), _fate(v.fate), *(_cell(v.metrics.get(name)) for name in names)]
        for v in run.versions
    ]
    return "versions", "Versions", finding, _table(head, rows, numbers=4)


def alarms(run: Story) -> Table:
    if not run.alarms:
        why = "No alarm rang"
        why += f", although the drift began on day {day(run.drift_day)}" if run.drift_day is not None else ""
        unseen = not run.drift_by_feature.days and not run.quality.days
        why += ", but neither drift nor quality was measured: silence is no proof" if unseen else ""
        return "alarms", "Alarms", "No alarm rang", none(f"{why}.")
    still = sum(alarm.ended is None for alarm in run.alarms)
    finding = f"{plural(len(run.alarms), 'alarm')} rang, {still or 'none'} still {'rings' if still == 1 else 'ring'}"
    finding = finding.replace("none still ring", "all have ended")
    rows = [
        [
            escape(alarm.name),
            _day(alarm.began),
            '<span class="bad">still rings</span>' if alarm.ended is None else _day(alarm.ended),
            escape(alarm.look_at) or word("missing"),
        ]
        for alarm in run.alarms
    ]
    return "alarms", "Alarms", finding, _table(["Alarm", "Began", "Ended", "Look first at"], rows)


def events(run: Story) -> Table:
    if not run.events:
        return "events", "Log of the loop", "Nothing happened", none("The loop logged no event in this run.")
    rows = [
        [_day(e.day), escape(e.kind), escape(e.what), "" if e.version is None else escape(e.version)]
        for e in sorted(run.events, key=lambda e: e.day)
    ]
    finding = f"{plural(len(run.events), 'event')} of the loop"
    return "events", "Log of the loop", finding, _table(["When", "What", "In words", "Version"], rows)


def plural(n: int, thing: str) -> str:
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def absent(why: str) -> str:
    return f'<p class="missing"><span><b>missing</b> {escape(why)}</span></p>'


def none(why: str) -> str:
    """What did not happen is not missing."""
    return f'<p class="none">{escape(why)}</p>'


def word(text: str) -> str:
    """Escaped; `missing` stands on a ground of its own."""
    return "<span>missing</span>" if text == "missing" else escape(text)


def _day(value: float | None) -> str:
    if value is None:
        return '<span class="missing"><span>missing</span></span>'
    return "before the start" if value < 0 else f"day {day(value)}"


def _cell(value: float | None) -> str:
    return '<span class="missing"><span>missing</span></span>' if value is None else number(value)


def _fate(fate: str) -> str:
    kind = "good" if fate.startswith("promoted") else "bad" if fate.startswith("rolled back") else ""
    return f'<span class="{kind}">{escape(fate)}</span>' if kind else escape(fate)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: int | None = None) -> str:
    """`rows` are HTML; the columns from `numbers` on are numbers."""
    kind = [' class="number"' if numbers is not None and i >= numbers else "" for i in range(len(head))]
    top = "".join(f'<th scope="col"{k}>{escape(name)}</th>' for name, k in zip(head, kind, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f"<td{k}>{cell}</td>" for cell, k in zip(row, kind, strict=True)) + "</tr>" for row in rows
    )
    return f'<div class="wide" tabindex="0"><table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>'
