"""What was forecast, with its intervals, beside what was observed."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.report.drawing import (
    WIDTH,
    Box,
    boxes,
    cut,
    day,
    hatched,
    line,
    number,
    panel,
    render,
    scaled,
    width,
)
from common.report.look import LIGHT
from common.report.story import Fan

PANELS = 12  # at most so many are drawn; the page says how many are not
MARGIN, GAP, TOP = 52.0, 48.0, 30.0  # pt
WIDE, TALL, STEP = (WIDTH - MARGIN - GAP - 8) / 2, 112.0, 168.0
BANDS = (("95", "saved"), ("80", "inner"))  # the wider one first


def held(shown: Sequence[Fan], level: str) -> float | None:
    """The share of days that lay in their interval, of those that were forecast and observed; None: there is none."""
    days = [
        low <= value <= high
        for fan in shown
        for value, low, high in zip(
            fan.observed, getattr(fan, f"lower_{level}"), getattr(fan, f"upper_{level}"), strict=True
        )
        if value is not None and low is not None and high is not None
    ]
    return sum(days) / len(days) if days else None


def forecasts(shown: Sequence[Fan], value: str, drift_day: float | None) -> str:
    down = math.ceil(len(shown) / 2)

    def draw(figure: Figure) -> None:
        for k, fan in enumerate(shown):
            axes = panel(figure, TOP + 22 + STEP * (k // 2), TALL, MARGIN + (WIDE + GAP) * (k % 2), WIDE)
            # those of one unit have one scale, so that they can be compared
            scaled(axes, [v for other in shown if other.unit == fan.unit for v in _values(other)], ticks=4)
            _along(axes, fan, drift_day)
            _fan(axes, fan, f"fan-{k}")
            said = cut(f"{fan.why}, forecast on day {day(math.floor(fan.asked))}", 0.62 * WIDE)
            at = {"y": 1.0 + 8 / TALL, "transform": axes.transAxes, "va": "bottom"}
            unit = cut(fan.unit, WIDE - width(said) - 12)
            axes.text(0, s=unit, weight="bold", **at)  # type: ignore[arg-type]
            axes.text(1, s=said, ha="right", color=LIGHT["muted"], **at)  # type: ignore[arg-type]
            if k % 2 == 0:
                axes.set_ylabel(cut(value, TALL))
                axes.yaxis.set_label_coords(-34 / WIDE, 0.5)
        _key(figure, drift_day is not None)

    return render("fans-picture", TOP + STEP * down, draw)


def _values(fan: Fan) -> list[float | None]:
    return [0.0, *fan.observed, *fan.median, *fan.lower_95, *fan.upper_95, *fan.lower_80, *fan.upper_80]


def _along(axes: Axes, fan: Fan, drift_day: float | None) -> None:
    """The days since the simulated start, a day from its half before to its half after."""
    first, last = (fan.days[0], fan.days[-1]) if fan.days else (0.0, 1.0)
    axes.set_xlim(first - 0.5, last + 0.5)
    step = next((s * 7 for s in (1, 2, 4, 8, 16) if last - first < s * 7 * 6), (last - first) / 4)
    ticks = [i * step for i in range(math.ceil(first / step), math.floor(last / step) + 1)]
    axes.set_xticks(ticks, [f"day {number(t)}" if not i else number(t) for i, t in enumerate(ticks)])
    if drift_day is not None and first - 0.5 < drift_day - 0.5 < last + 0.5:
        axes.axvline(drift_day - 0.5, color=LIGHT["orange"], linewidth=1, zorder=1.8)


def _fan(axes: Axes, fan: Fan, name: str) -> None:
    x = np.array(fan.days, float)
    edges = np.stack([x - 0.5, x + 0.5], axis=1).ravel()
    for level, colour in BANDS:
        low, high = (np.repeat(np.array(getattr(fan, f"{side}_{level}"), float), 2) for side in ("lower", "upper"))
        band = axes.fill_between(edges, low, high, color=LIGHT[colour], linewidth=0, zorder=0.9)
        band.set_gid(f"{name}-{level}")
    bottom, top = axes.get_ylim()
    gaps: list[Box] = [
        (at - 0.5, bottom, at + 0.5, top) for at, value in zip(fan.days, fan.observed, strict=True) if value is None
    ]
    hatched(axes, gaps, f"{name}-missing")
    line(axes, fan.days, fan.median, f"{name}-median", "blue", linewidth=1.6)
    dots = {"marker": "o", "markersize": 2.2, "clip_on": False}
    line(axes, fan.days, fan.observed, f"{name}-observed", "ink", linewidth=1.0, **dots)


def _key(figure: Figure, has_drifted: bool) -> None:
    wide = WIDTH - MARGIN - 8
    axes = panel(figure, 4, 14, MARGIN, wide)
    axes.set_axis_off()
    axes.set_xlim(0, wide)
    axes.set_ylim(0, 14)
    names = ("median forecast", "80% interval", "95% interval", "observed", "missing", "drift")
    for i, name in enumerate(names[: 6 if has_drifted else 5]):
        x = 118.0 * i
        if name == "median forecast":
            axes.plot([x, x + 18], [7, 7], color=LIGHT["blue"], linewidth=1.6)
        elif name == "observed":
            axes.plot([x, x + 9, x + 18], [7, 7, 7], "o-", ms=2.2, color=LIGHT["ink"], linewidth=1.0)
        elif name == "missing":
            hatched(axes, [(x, 2, x + 18, 12)], "fan-key-missing")
        elif name == "drift":
            axes.plot([x + 9, x + 9], [1, 13], color=LIGHT["orange"], linewidth=1.0)
        else:
            boxes(axes, [(x, 2, x + 18, 12)], f"fan-key-{name[:2]}", facecolor=LIGHT[dict(BANDS)[name[:2]]])
        axes.text(x + 23, 7, name, color=LIGHT["muted"], va="center")
