"""How well predictions came true, and for which reasons requests were doubted."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.report.drawing import SIZE, WIDTH, boxes, cut, hatched, number, panel, percent, render
from common.report.look import LIGHT
from common.report.story import Calibration, Reasons, Story

PANELS, BARS = 8, 16  # at most so many are drawn; the page says how many are not


def calibration(shown: Sequence[Calibration]) -> str:
    side, across = 155.0, 40.0
    down = math.ceil(len(shown) / 4)
    known = [v for c in shown for v in (*c.predicted, *c.observed) if v]
    rare = bool(known) and min(known) < 0.02
    floor = 10.0 ** math.floor(math.log10(max(1e-9, min(known)))) if rare else 0.0

    def draw(figure: Figure) -> None:
        for k, version in enumerate(shown):
            axes = panel(figure, 24 + (side + 58) * (k // 4), side, 50 + (side + across) * (k % 4), side)
            if rare:
                axes.set_xscale("log")
                axes.set_yscale("log")
            axes.set_xlim(floor, 1)
            axes.set_ylim(floor, 1)
            ticks = [10.0**p for p in range(round(math.log10(floor)), 1)] if rare else [0, 0.25, 0.5, 0.75, 1.0]
            ticks = ticks[:: 1 + len(ticks) // 6]
            axes.set_xticks(ticks, [percent(t) for t in ticks])
            axes.set_yticks(ticks, [percent(t) if k % 4 == 0 else "" for t in ticks])
            axes.minorticks_off()
            axes.grid()
            axes.plot([floor, 1], [floor, 1], color=LIGHT["muted"], linewidth=0.8)
            _bins(axes, version, floor, f"calibration-{k}")
            counted = sum(n for n in version.count if n is not None)
            title = f"{cut(version.version, side - 84)}, {number(float(counted))} labels"
            axes.set_title(title, size=SIZE, weight="bold", loc="left", pad=8)
            if k + 4 >= len(shown):
                axes.set_xlabel("predicted")
            if k % 4 == 0:
                axes.set_ylabel("observed")

    return render("calibration-picture", 24 + (side + 58) * down, draw)


def _bins(axes: Axes, version: Calibration, floor: float, name: str) -> None:
    """Dots with their intervals; where nothing was observed, a logarithmic scale has a triangle at its bottom."""
    bins = zip(version.predicted, version.observed, version.low, version.high, strict=True)
    for i, (x, y, low, high) in enumerate(bins):
        if x is None:
            continue  # it has no place; the page counts it
        at = max(x, floor)
        if y is None:
            a, b = (at / 1.15, at * 1.15) if floor else (at - 0.02, at + 0.02)
            hatched(axes, [(a, floor, b, 1)], f"{name}-missing-{i}")
            axes.text(at, 0.5, "missing", transform=axes.get_xaxis_transform(), color=LIGHT["muted"], rotation=90,
                      ha="center", va="center", rotation_mode="anchor", size=8,
                      bbox={"facecolor": LIGHT["surface"], "edgecolor": "none", "pad": 1.0})  # fmt: skip
            continue
        if low is not None and high is not None:
            axes.plot([at, at], [max(low, floor), max(high, floor)], color=LIGHT["blue"], linewidth=1.2)
        hollow = LIGHT["surface"] if low is None or high is None else LIGHT["blue"]
        shape = "v" if y < floor or (floor and not y) else "o"
        dot = axes.plot([at], [max(y, floor)], shape, ms=5, mfc=hollow, mec=LIGHT["blue"], mew=1.2, clip_on=False)
        dot[0].set_gid(f"{name}-bin-{i}")


def changed(reasons: Reasons) -> list[tuple[str, float | None, float | None]]:
    """Reasons (name, share before, share after), the most frequent now on top."""
    names = [*reasons.after, *(name for name in reasons.before if name not in reasons.after)]
    rows = [(name, reasons.before.get(name), reasons.after.get(name)) for name in names]
    return sorted(rows, key=lambda r: (-(r[2] if r[2] is not None else r[1] or 0.0), r[0]))


def reasons(story: Story) -> str:
    rows = changed(story.reasons)[:BARS]
    left, tall = 230.0, 38.0
    wide = WIDTH - left - 110
    most = max([v for _, *pair in rows for v in pair if v is not None] or [1.0]) or 1.0

    def draw(figure: Figure) -> None:
        axes = panel(figure, 0, tall * len(rows), left, wide)
        axes.set_xlim(0, most)
        axes.set_ylim(len(rows), 0)
        axes.spines["bottom"].set_visible(False)
        axes.set_xticks([])
        axes.set_yticks([i + 0.5 for i in range(len(rows))], [cut(name, left - 14) for name, _, _ in rows])
        axes.tick_params(axis="y", labelcolor=LIGHT["ink"])
        axes.axvline(0, color=LIGHT["muted"], linewidth=0.8)
        for i, (_, before, after) in enumerate(rows):
            for value, y, colour, word in ((before, i + 0.14, "hatch", "before"), (after, i + 0.5, "blue", "after")):
                name = f"reason-{i}-{word}"
                if value is None:
                    hatched(axes, [(0, y, most * 0.12, y + 0.34)], f"{name}-missing")
                else:
                    boxes(axes, [(0, y, value, y + 0.34)], name, facecolor=LIGHT[colour])
                end = most * 0.12 if value is None else value
                ink = LIGHT["blue" if colour == "blue" else "muted"]
                said = f"{word}: {percent(value)}" if i == 0 or value is None else percent(value)
                axes.text(end + most * 8 / wide, y + 0.18, said, color=ink, va="center")

    return render("reasons-picture", tall * len(rows) + 4, draw)
