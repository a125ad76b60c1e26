"""What changes over the days of a run. Whatever is missing is hatched and says so; nothing is drawn across it."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.report.drawing import (
    LEFT,
    PLOT,
    RIGHT,
    SIZE,
    Box,
    at_the_end,
    boxes,
    cut,
    day,
    flags,
    hatched,
    line,
    missing,
    number,
    over_time,
    panel,
    percent,
    render,
    upwards,
    width,
)
from common.report.look import LIGHT
from common.report.story import WEEK, Canary, Drift, Event, Quality, Story, gaps

MARKED = {"drift": "orange", "alarm": "orange", "retrained": "muted", "rejected": "muted", "promoted": "blue"}
MARKED |= {"rolled back": "orange", "removed": "orange"}
LESSER = ("retrained", "rejected")  # left out where there is no room for all
STEPS = (0.25, 0.5, 1.0, 2.0, 4.0)  # a heat map's classes: ratios to the threshold
ROWS, LANES, FLAGS = 30, 24, 12  # at most so many are drawn; the page says how many are not
ENDS = {"promoted": "blue", "rolled back": "orange", "removed": "orange"}


def flagged(story: Story) -> list[tuple[float, str, str, int]]:
    """Events to be marked (day, text, colour, row of the flag); several of a kind within a week, in a row, are one."""
    shown = sorted((e for e in story.events if e.kind in MARKED and 0 <= e.day <= story.days), key=lambda e: e.day)
    groups: list[list[Event]] = []
    for event in shown:
        if groups and groups[-1][0].kind == event.kind and event.day - groups[-1][0].day < WEEK:
            groups[-1].append(event)
        else:
            groups.append([event])
    if len(groups) > FLAGS:
        groups = [group for group in groups if group[0].kind not in LESSER]
    times = [f" ×{len(group)}" if len(group) > 1 else "" for group in groups]
    texts = [f"{g[0].kind}{more}, day {g[0].day:.0f}" for g, more in zip(groups, times, strict=True)]
    rows = flags([(g[0].day / story.days * PLOT, width(text) + 8) for g, text in zip(groups, texts, strict=True)])
    return [(g[0].day, text, MARKED[g[0].kind], row) for g, text, row in zip(groups, texts, rows, strict=True)]


def regret(story: Story) -> str:
    weeks = story.every_week
    x = [(week.week + 0.5) * WEEK for week in weeks]
    loop, alone = [week.regret for week in weeks], [week.regret_without for week in weeks]
    marks = flagged(story)
    top = 14.0 * min(max((row + 1 for *_, row in marks), default=0), FLAGS) + 10

    def draw(figure: Figure) -> None:
        axes = panel(figure, top, 230)
        over_time(axes, story.days)
        upwards(axes, [*loop, *alone, 0.0], f"{story.unit} per 1,000 requests")
        low, high = axes.get_ylim()
        for part in _both(x, loop, alone):
            when, ours, theirs = (np.array(side) for side in zip(*part, strict=True))
            for fill, where in (("saved", theirs >= ours), ("lost", theirs <= ours)):
                axes.fill_between(when, ours, theirs, where.tolist(), interpolate=True, color=LIGHT[fill], linewidth=0)
        series = {"with the loop": loop}
        if any(v is not None for v in alone):
            series = {"without the loop": alone, "with the loop": loop}
        missing(axes, x, series, "regret-missing")
        labels = []
        for (name, values), colour in zip(series.items(), ("orange", "blue")[-len(series) :], strict=True):
            line(axes, x, values, f"regret-{name.split()[0]}", colour, linewidth=2.4 if colour == "blue" else 1.8)
            known = [v for v in values if v is not None]
            labels += [(known[-1], f"{name}: {number(known[-1])}", colour)] if known else []
        at_the_end(axes, labels)
        unit = high - low
        for at, text, colour, row in marks:
            rise = high + (14.0 * row + 16) / 230 * unit if row < FLAGS else high
            axes.plot([at, at], [low, rise], color=LIGHT[colour], linewidth=0.8, clip_on=False, zorder=1.5)
            if row < FLAGS:
                axes.text(at + 4 / PLOT * story.days, rise, text, color=LIGHT[colour], va="top", clip_on=False)

    return render("regret-picture", top + 230 + 26, draw)


def _both(
    x: Sequence[float], a: Sequence[float | None], b: Sequence[float | None]
) -> Iterator[list[tuple[float, float, float]]]:
    """Stretches of at least two points at which both are known."""
    part: list[tuple[float, float, float]] = []
    for at, u, v in zip(x, a, b, strict=True):
        if u is not None and v is not None:
            part.append((at, u, v))
            continue
        if len(part) > 1:
            yield part
        part = []
    if len(part) > 1:
        yield part


def worst(drift: Drift) -> list[tuple[str, float | None, float | None]]:
    """Columns (name, day on which it first exceeded, its peak): those that exceeded first are on top."""
    found = []
    for name, ratios in drift.columns.items():
        known = [(r, at) for r, at in zip(ratios, drift.days, strict=True) if r is not None]
        over = [at for r, at in known if r > 1]
        found.append((name, over[0] if over else None, max((r for r, _ in known), default=None)))
    return sorted(found, key=lambda f: (f[1] is None, f[1] or 0.0, f[2] is None, -(f[2] or 0.0), f[0]))


def features(story: Story) -> str:
    drift = story.drift_by_feature
    top, tall = 40.0, 17.0
    shown = worst(drift)[:ROWS]
    steps = sorted(b - a for a, b in zip(drift.days[:-1], drift.days[1:], strict=True))
    step = steps[len(steps) // 2] if steps else min(1.0, story.days)
    # a measurement covers the step that ends with it, or begins with it where the first one is at the start
    begin = drift.days[0] - step if drift.days[0] >= 0.99 * step else drift.days[0]
    cell = {at: (at - drift.days[0] + begin, at - drift.days[0] + begin + step) for at in drift.days}

    def draw(figure: Figure) -> None:
        axes = panel(figure, top, tall * len(shown))
        over_time(axes, story.days)
        axes.set_ylim(len(shown), 0)
        # the ground is "missing": only what was measured covers it
        hatched(axes, [(0, row + 0.06, story.days, row + 0.94) for row in range(len(shown))], "drift-missing")
        cells: dict[int, list[Box]] = {}
        outline: list[Box] = []
        for row, (name, _, _) in enumerate(shown):
            cover = 0.0
            values = list(zip(drift.days, drift.columns[name], strict=True))
            for level, run in groupby(values, key=lambda v: None if v[1] is None else sum(v[1] > s for s in STEPS)):
                part = [at for at, _ in run]
                if level is not None:
                    cells.setdefault(level, []).extend(_joined([cell[at] for at in part], row))
            for over, run in groupby(values, key=lambda v: v[1] is not None and v[1] > 1):
                if over:
                    outline += _joined([cell[at] for at, _ in run], row)
            measured = [cell[at] for at, ratio in values if ratio is not None]
            for a, b in [*measured, (story.days, story.days)]:
                if (a - cover) / story.days * PLOT > width("missing", 8) + 8:
                    ground = {"facecolor": LIGHT["surface"], "edgecolor": "none", "pad": 1.0}
                    middle = (a + cover) / 2, row + 0.52
                    axes.text(*middle, "missing", color=LIGHT["muted"], size=8, ha="center", va="center", bbox=ground)
                cover = max(cover, b)
        for level, where in sorted(cells.items()):
            boxes(axes, where, f"drift-level{level}", facecolor=LIGHT[f"heat{level}"])
        boxes(axes, outline, "drift-exceeded", facecolor="none", edgecolor=LIGHT["ink"], linewidth=0.9)
        _drift_line(axes, story)
        axes.set_yticks([row + 0.5 for row in range(len(shown))], [cut(name, LEFT - 14) for name, _, _ in shown])
        for row, (_, first, peak) in enumerate(shown):
            absent = sum(ratio is None for ratio in drift.columns[shown[row][0]])
            said = "missing" if peak is None else f"{peak:.2g}× at most" if peak < 100 else f"{number(peak)}× at most"
            said = f"{said.split()[0]}, over on day {day(first)}" if first is not None else said
            said += f", {absent} missing" if absent and peak is not None else ""
            colour = LIGHT["ink" if first is not None else "muted"]
            axes.text(story.days * (1 + 8 / PLOT), row + 0.5, cut(said, RIGHT - 8), color=colour, va="center")
        _key(figure)

    return render("drift-picture", top + tall * len(shown) + 26, draw)


def _joined(cells: Sequence[tuple[float, float]], row: int) -> list[Box]:
    """Cells of one row, those that touch as one."""
    out: list[Box] = []
    for begin, end in cells:
        if out and begin - out[-1][2] <= (end - begin) / 50:
            out[-1] = (out[-1][0], row + 0.06, end, row + 0.94)
        else:
            out.append((begin, row + 0.06, end, row + 0.94))
    return out


def _drift_line(axes: Axes, story: Story) -> None:
    at = story.drift_day
    if at is not None and 0 <= at <= story.days:
        axes.axvline(at, color=LIGHT["orange"], linewidth=1, zorder=4)
        rise = {
            "xy": (at, 1.0),
            "xycoords": axes.get_xaxis_transform(),
            "xytext": (0, 3),
            "textcoords": "offset points",
        }
        axes.annotate("drift", **rise, color=LIGHT["orange"], ha="center", size=8)  # type: ignore[arg-type]


def _key(figure: Figure) -> None:
    axes = panel(figure, 4, 14)
    axes.set_axis_off()
    axes.set_xlim(0, PLOT)
    axes.set_ylim(0, 14)
    names = [f"≤ {STEPS[0]:g}", *(f"≤ {s:g}" for s in STEPS[1:]), f"> {STEPS[-1]:g}"]
    for i, name in enumerate(names):
        x = 66.0 * i
        over = i > STEPS.index(1.0)
        boxes(axes, [(x, 2, x + 18, 12)], f"key-{i}", facecolor=LIGHT[f"heat{i}"])
        if over:
            boxes(axes, [(x, 2, x + 18, 12)], f"key-{i}-over", facecolor="none", edgecolor=LIGHT["ink"], linewidth=0.9)
        axes.text(x + 23, 7, name, color=LIGHT["ink" if over else "muted"], va="center")
    x = 66.0 * len(names)
    hatched(axes, [(x, 2, x + 18, 12)], "key-missing")
    axes.text(x + 23, 7, "missing", color=LIGHT["muted"], va="center")


def canaries(story: Story) -> str:
    shown = story.canaries[-LANES:]
    tall, top = 46.0, 14.0

    def draw(figure: Figure) -> None:
        axes = panel(figure, top, tall * len(shown))
        over_time(axes, story.days)
        axes.set_ylim(len(shown), 0)
        axes.set_yticks([i + 0.62 for i in range(len(shown))], [cut(c.version, LEFT - 14) for c in shown])
        for i, canary in enumerate(shown):
            ended = story.days if canary.ended is None else canary.ended
            colour = LIGHT[ENDS.get(canary.end, "hatch")]
            steps = canary.steps or ()
            ends = [*(at for at, _ in steps[1:]), ended]
            floor = i + 0.92
            axes.plot([0, story.days], [floor, floor], color=LIGHT["grid"], linewidth=0.8, zorder=1)
            blocks = [
                (at, floor - 0.6 * share, max(at, end), floor) for (at, share), end in zip(steps, ends, strict=False)
            ]
            boxes(axes, blocks, f"canary-{i}", facecolor=colour)
            if not steps:
                hatched(axes, [(canary.began, floor - 0.6, max(ended, canary.began), floor)], f"canary-{i}-missing")
            _said(axes, story, canary, i, ended)
        _drift_line(axes, story)

    return render("canaries-picture", top + tall * len(shown) + 26, draw)


def _said(axes: Axes, story: Story, canary: Canary, row: int, ended: float) -> None:
    """What became of a canary, beside it: to the right if there is room, otherwise to the left."""
    when = f" on day {day(canary.ended)}" if canary.ended is not None else ""
    shares = " → ".join(percent(share) for _, share in canary.steps) or "shares missing"
    right = (1 - ended / story.days) * PLOT + RIGHT - 12
    left = canary.began / story.days * PLOT - 12
    room, at, side = (right, ended, "left") if right >= left else (left, canary.began, "right")
    shift = (6 if side == "left" else -6) / PLOT * story.days
    colour = LIGHT[ENDS.get(canary.end, "muted")]
    said = cut(f"{canary.end}{when}: {shares}", room)
    ground = {"facecolor": LIGHT["surface"], "edgecolor": "none", "pad": 1.0}
    axes.text(at + shift, row + 0.5, said, color=colour, ha=side, va="center", weight="bold", bbox=ground, zorder=5)
    why = cut(canary.why, room, SIZE - 0.5)
    axes.text(
        at + shift, row + 0.76, why, color=LIGHT["muted"], ha=side, va="center", size=SIZE - 0.5, bbox=ground, zorder=5
    )


def quality(story: Story) -> str:
    q: Quality = story.quality
    x, (estimated, realised, low, high) = gaps(q.days, story.days, q.estimated, q.realised, q.low, q.high)

    def draw(figure: Figure) -> None:
        axes = panel(figure, 14, 200)
        over_time(axes, story.days)
        upwards(axes, [*estimated, *realised, *low, *high], q.metric)
        for part in _both(x, low, high):
            at, bottom, top = zip(*part, strict=True)
            axes.fill_between(at, bottom, top, color=LIGHT["band"], linewidth=0)
        missing(axes, x, {"estimated": estimated, "realised": realised}, "quality-missing")
        labels = []
        for name, values, colour in (("estimated", estimated, "blue"), ("realised", realised, "ink")):
            line(axes, x, values, f"quality-{name}", colour, linewidth=1.8)
            known = [v for v in values if v is not None]
            labels += [(known[-1], f"{name}: {number(known[-1])}", colour)] if known else []
        at_the_end(axes, labels)
        _drift_line(axes, story)

    return render("quality-picture", 14 + 200 + 26, draw)
