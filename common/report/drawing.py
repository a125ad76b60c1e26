"""What the pictures share: one ground plan, labels that do not overlap, and matplotlib's SVG made fit for a page."""

import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from textwrap import wrap

import matplotlib.style
import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from common.report.look import LIGHT

WIDTH, LEFT, RIGHT = 800.0, 132.0, 168.0  # pt; every picture over time has these, so that days stand below each other
PLOT = WIDTH - LEFT - RIGHT
SIZE = 9.0  # pt, of text
STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud, and is small
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that the picture is the same on every machine
    "font.size": SIZE,
    "text.parse_math": False,  # a dollar is a dollar
    "path.simplify": False,
    "text.color": LIGHT["ink"],
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.8,
    "hatch.color": LIGHT["hatch"],
    "hatch.linewidth": 0.7,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}
_TAG = re.compile(r"<[^>]*>")  # matplotlib escapes < and > in text, so a tag is a tag
_COLOUR = re.compile("|".join(LIGHT.values()))
_VARIABLE = {light: f"var(--{name})" for name, light in LIGHT.items()}
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in data


def render(name: str, height: float, draw: Callable[[Figure], None]) -> str:
    """A picture as inline SVG: the same bytes for the same input; its ids begin with `name`.

    `height` is in pt. Colours become the page's variables, so that a picture follows a dark ground and paper.
    """
    with matplotlib.style.context(STYLE | {"svg.hashsalt": name}, after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the reader's fonts draw it, not matplotlib's
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        draw(figure)
        out = StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    drawn = out.getvalue()
    drawn = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", drawn[drawn.index("<svg") :], flags=re.S)
    return _TAG.sub(lambda tag: _for_a_page(tag[0], name), drawn).strip()


def _for_a_page(tag: str, name: str) -> str:
    if tag.startswith("<svg"):
        tag = re.sub(r' (xmlns:xlink|width|height|version)="[^"]*"', "", tag)
        return tag[:-1] + f' id="{name}" role="img" aria-labelledby="{name}-finding">'
    tag = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", tag)  # matplotlib's counters would repeat in the next picture
    tag = re.sub(r"font-family: '[^;\"]*'", "font-family: var(--sans)", tag.replace("xlink:href", "href"))
    tag = re.sub(r"(\.\d\d)\d+", r"\1", tag.replace("\n", " "))  # a hundredth of a point is enough
    return _COLOUR.sub(lambda colour: _VARIABLE[colour[0]], tag)


def number(value: float | None) -> str:
    """For people: three digits, thousands apart."""
    if value is None:
        return "missing"
    if 1000 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value else "0"


def percent(value: float | None) -> str:
    """Of a share."""
    if value is None:
        return "missing"
    return f"{value:.0%}" if not value or 0.1 <= abs(value) < 1e4 else f"{100 * value:.2g}%"


def day(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def width(text: str, size: float = SIZE) -> float:
    """In pt, rather too wide than too narrow: the reader's font is not known."""
    return size * sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.58 for c in text)


def cut(text: str, room: float, size: float = SIZE) -> str:
    """A text that fits into so many pt; what does not fit is an ellipsis."""
    if width(text, size) <= room:
        return text
    while text and width(text + "…", size) > room:
        text = text[:-1]
    return text.rstrip() + "…"


def panel(figure: Figure, top: float, height: float, left: float = LEFT, wide: float = PLOT) -> Axes:
    """Axes at a place in pt from the top left corner."""
    tall = figure.get_figheight() * 72
    return figure.add_axes((left / WIDTH, 1 - (top + height) / tall, wide / WIDTH, height / tall))


def over_time(axes: Axes, days: float, label: bool = True) -> None:
    """The days since the simulated start, from the first to the last."""
    axes.set_xlim(0, days)
    steps = [s * 10.0**p for p in range(-2, 5) for s in (1, 2, 5)] + [7.0, 14.0, 30.0, 60.0]
    step = min((s for s in steps if days / s <= 10), default=1e5)
    ticks = [i * step for i in range(int(days / step) + 1)]
    axes.set_xticks(ticks, [f"day {t:g}" if not i and label else f"{t:g}" for i, t in enumerate(ticks)])


def upwards(axes: Axes, values: Sequence[float | None], unit: str) -> None:
    """A vertical scale with its unit beside it."""
    scaled(axes, values)
    lines = "\n".join(cut(part, LEFT - 50) for part in wrap(unit, int((LEFT - 50) / (0.58 * SIZE))))
    axes.text(-46 / PLOT, 0.5, lines, color=LIGHT["muted"], ha="right", va="center", transform=axes.transAxes)


def scaled(axes: Axes, values: Sequence[float | None], ticks: int = 5) -> None:
    """A vertical scale with room for the values, and from zero if that does not hide what varies."""
    known = [v for v in values if v is not None] or [0.0]
    low, high = min(known), max(known)
    low = 0.0 if 0 <= low <= 0.3 * high else low
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_ylim(low - (room if low else 0), high + room)
    axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda v, _: number(v)))
    axes.grid(axis="y")


def boxes(axes: Axes, where: Sequence[Box], name: str, **look: object) -> None:
    """Many rectangles as one path, which keeps a page small."""
    if where:
        corners = [[(a, b), (a, d), (c, d), (c, b), (a, b)] for a, b, c, d in where]
        paths = [Path(p, [Path.MOVETO, *[Path.LINETO] * 3, Path.CLOSEPOLY]) for p in corners]
        patch = PathPatch(Path.make_compound_path(*paths), **{"linewidth": 0, **look})
        patch.set_gid(name)
        axes.add_patch(patch)


def hatched(axes: Axes, where: Sequence[Box], name: str) -> None:
    boxes(axes, where, name, facecolor="none", edgecolor=LIGHT["hatch"], hatch="////")


def line(axes: Axes, x: Sequence[float], y: Sequence[float | None], name: str, colour: str, **look: object) -> None:
    """A line that ends where a value is missing; a value alone is a dot."""
    known = [v is not None for v in y]
    alone = [i for i, k in enumerate(known) if k and not (i and known[i - 1]) and not (i + 1 < len(y) and known[i + 1])]
    drawn = axes.plot(x, [float("nan") if v is None else v for v in y], color=LIGHT[colour], **look)  # type: ignore[arg-type]
    drawn[0].set_gid(name)
    if alone:
        dots = axes.plot([x[i] for i in alone], [y[i] for i in alone], "o", ms=4, mew=0, color=LIGHT[colour])  # type: ignore[arg-type]
        dots[0].set_gid(f"{name}-alone")


def missing(axes: Axes, x: Sequence[float], series: Mapping[str, Sequence[float | None]], name: str) -> None:
    """A hatched band, with the word, wherever one of several series has no value."""
    edges = [*(x[:1]), *((a + b) / 2 for a, b in zip(x[:-1], x[1:], strict=True)), *(x[-1:])]
    if len(x) > 1:
        edges[0], edges[-1] = x[0] - (edges[1] - x[0]), x[-1] + (x[-1] - edges[-2])
    elif x:
        edges = [x[0] - 0.5, x[0] + 0.5]
    bottom, top = axes.get_ylim()
    absent = [tuple(n for n, values in series.items() if values[i] is None) for i in range(len(x))]
    bands: list[tuple[float, float, tuple[str, ...]]] = []
    for i, names in enumerate(absent):
        if names and bands and i and absent[i - 1] == names:
            bands[-1] = (bands[-1][0], edges[i + 1], names)
        elif names:
            bands.append((edges[i], edges[i + 1], names))
    hatched(axes, [(a, bottom, b, top) for a, b, _ in bands], name)
    first, last = axes.get_xlim()
    for a, b, names in bands:
        said = "missing" if len(names) == len(series) else f"missing: {', '.join(names)}"
        a, b = max(a, first), min(b, last)
        room = (b - a) / (last - first) * PLOT
        if room >= 1.3 * SIZE:
            turned = width(said) + 8 > room
            there = [
                v
                for values in series.values()
                for at, v in zip(x, values, strict=True)
                if a <= at <= b and v is not None
            ]
            low = bool(there) and sum(there) / len(there) > (top + bottom) / 2  # away from the lines
            place = (a + b) / 2, bottom + (0.05 if low else 0.95) * (top - bottom)
            side = ("left" if low else "right") if turned else "center"
            _on_ground(axes, *place, said, rotation=90 if turned else 0, ha=side, va="center")


def _on_ground(axes: Axes, x: float, y: float, text: str, **look: object) -> None:
    ground = {"facecolor": LIGHT["surface"], "edgecolor": "none", "pad": 2.0}
    look = {"color": LIGHT["muted"], "bbox": ground, "rotation_mode": "anchor", **look}
    axes.text(x, y, text, **look)  # type: ignore[arg-type]


def at_the_end(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Names of lines beside their last values (value, text, colour), pushed apart where they would overlap."""
    bottom, top = axes.get_ylim()
    tall = axes.get_position().height * axes.figure.get_figheight() * 72  # type: ignore[union-attr]
    gap = 1.35 * SIZE / tall
    places = spread([(value - bottom) / (top - bottom) for value, _, _ in labels], gap)
    for place, (_, text, colour) in zip(places, labels, strict=True):
        said = cut(text, RIGHT - 12)
        axes.text(
            1 + 8 / PLOT,
            place,
            said,
            color=LIGHT[colour],
            transform=axes.transAxes,
            va="center",
            weight="bold",
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Places as near as possible to those wanted, in the same order, and at least `gap` apart."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    out = list(places)
    for before, i in zip(order, order[1:], strict=False):
        out[i] = max(out[i], out[before] + gap)
    lift = max((out[order[-1]] - max(1.0, places[order[-1]])) if order else 0.0, 0.0)
    return [place - lift for place in out]


def flags(places: Sequence[tuple[float, float]]) -> list[int]:
    """Row of each flag (x of its pole, width of its cloth to the right): no cloth overlaps another cloth or pole.

    A flag stands above all whose poles its cloth would cover; x ascends.
    """
    rows = [0] * len(places)
    for i in reversed(range(len(places))):
        x, wide = places[i]
        rows[i] = max((rows[j] + 1 for j in range(i + 1, len(places)) if places[j][0] < x + wide), default=0)
    return rows
