"""Drawing for the report: lines on axes, as SVG that a page can hold.

Text that comes from data (names of rewards, metrics, stages) never enters an SVG: titles and keys are the page's.
Colours and fonts are classes, so that the page's style sheet decides them, in light and in dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

Values: TypeAlias = NDArray[np.float64]

WIDTH, HEIGHT = 360, 205  # points; about one CSS pixel each on a phone
MARGINS = {"left": 40, "right": 8, "top": 22, "bottom": 34}
DASHES = ("", "5 2.5", "1.5 2", "8 2.5 1.5 2.5")
MOST = 6  # lines in one plot
POINTS = 500  # more are thinned

# stand-ins that become classes: s-NAME strokes, f-NAME fills
_CLASSES = ("text", "grid", "axis", *(f"c{n}" for n in range(MOST)))
_STAND_INS = {f"#0000{i:02x}": name for i, name in enumerate(_CLASSES, 1)}
COLOUR = {name: colour for colour, name in _STAND_INS.items()}


@dataclass(frozen=True)
class Key:
    """A line's entry in the legend: what it shows, its colour's number and its dashes."""

    label: str
    colour: int
    dash: str


class Axis(NamedTuple):
    """The vertical axis: unit, whether it includes 0, whether fractions are shown as percent, lowest value shown."""

    unit: str
    zero: bool = False
    percent: bool = False
    floor: float = -np.inf


def render(across: str, up: str, draw: Callable[[Any], None], prefix: str) -> Markup:
    """An inline SVG of axes labelled `across` and `up` that `draw` has drawn on; its ids begin with `prefix`."""
    # rcParams are the only way to a fixed salt; the context leaves them, and a user's matplotlibrc, as they were
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "rlhf-core", "font.size": 10.5})
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
        FigureCanvasSVG(figure)
        left, right = MARGINS["left"] / WIDTH, 1 - MARGINS["right"] / WIDTH
        bottom, top = MARGINS["bottom"] / HEIGHT, 1 - MARGINS["top"] / HEIGHT
        axes = figure.add_axes((left, bottom, right - left, top - bottom))
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.spines["bottom"].set_color(COLOUR["axis"])
        axes.grid(axis="y", color=COLOUR["grid"], linewidth=0.7)
        axes.set_axisbelow(True)
        axes.margins(x=0.02, y=0.08)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        draw(axes)
        for axis in (axes.xaxis, axes.yaxis):
            _format(axis)
        axes.tick_params(bottom=False, left=False, labelcolor=COLOUR["text"], pad=4)
        figure.text(0, 1 - 4 / HEIGHT, up, ha="left", va="top", color=COLOUR["text"])
        figure.text(right, 4 / HEIGHT, across, ha="right", va="bottom", color=COLOUR["text"])
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True)
    return _inline(file.getvalue(), prefix)


def window(count: int) -> int:
    """Steps that a thick line averages over, an odd number; 1 for short runs, which are drawn as they are."""
    return 1 if count < 30 else 2 * max(1, count // 25) + 1


def line(axes: Any, steps: Values, values: Values, key: Key) -> None:
    """Single steps thin and their running mean thick; what was measured now and then only, and short runs, as it is."""
    colour = COLOUR[f"c{key.colour}"]
    known = np.isfinite(values)
    now_and_then = known.sum() <= len(values) // 2
    if now_and_then:
        steps, values = steps[known], values[known]
    elif (size := window(len(values))) > 1:
        axes.plot(*_thinned(steps, values), color=colour, linewidth=0.9, alpha=0.38)
        weights = np.ones(size)
        counts = np.convolve(known, weights, "same")
        sums = np.convolve(np.where(known, values, 0.0), weights, "same")
        every = max(1, len(steps) // POINTS)
        steps, values = steps[::every], np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)[::every]
    dots = {"marker": "o", "markersize": 4, "markeredgewidth": 0} if len(values) <= 20 else {}
    dashes = tuple(float(part) for part in key.dash.split())
    axes.plot(
        steps,
        values,
        color=colour,
        linewidth=1.8,
        linestyle=(0, dashes) if dashes else "-",
        solid_capstyle="round",
        solid_joinstyle="round",
        **dots,
    )


def _thinned(steps: Values, values: Values) -> tuple[Values, Values]:
    """Lowest and highest of every so many steps, so that spikes stay."""
    if len(steps) <= POINTS:
        return steps, values
    rows: list[int] = []
    for part in np.array_split(np.arange(len(steps)), POINTS // 2):
        if np.isfinite(values[part]).any():
            rows += sorted({int(part[np.nanargmin(values[part])]), int(part[np.nanargmax(values[part])])})
        else:
            rows.append(int(part[0]))
    return steps[rows], values[rows]


def whole_steps(axes: Any) -> None:
    """Ticks of the horizontal axis at whole steps only."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10]))


def limit(axes: Any, axis: Axis) -> None:
    """The range of the vertical axis, after the lines are drawn."""
    low, high = axes.get_ylim()
    if axis.zero:
        least, most = axes.dataLim.y0, axes.dataLim.y1
        low = 0.0 if least >= -0.02 * abs(most) else low  # estimates may fall a little below 0
        high = 0.0 if most <= 0 and low < 0 else high
        if least == most == 0:
            high = 5.0 if axis.percent else 1.0
    axes.set_ylim(max(low, axis.floor * 1.05), max(high, axis.floor * 1.05 + 1e-9))
    if axis.zero and low < 0 < high:
        axes.axhline(0, color=COLOUR["axis"], linewidth=0.8, zorder=0.6)


def _format(axis: Any) -> None:
    """Labels of an axis with the same decimals throughout, short enough for the margin, and a true minus."""
    ticks = [tick if abs(tick) > 1e-12 else 0.0 for tick in axis.get_majorticklocs()]
    texts = [f"{tick:.6g}" for tick in ticks]
    places = max((len(text.partition(".")[2]) for text in texts), default=0)
    plain = places <= 4 and not any("e" in text for text in texts) and max(map(abs, ticks), default=0.0) < 1e5

    def text(value: float, position: int | None = None) -> str:
        value = value if abs(value) > 1e-12 else 0.0
        label = f"{value:.{places}f}" if plain else re.sub(r"e\+?(-?)0*", r"e\1", f"{value:.3g}")
        return label.replace("-", "−")

    axis.set_major_formatter(FuncFormatter(text))


def _inline(text: str, prefix: str) -> Markup:
    """matplotlib's SVG without what a page does not need: its own styles, fonts, metadata, and ids nobody refers to.

    Styles become attributes (a strict content security policy allows no inline style) and stand-in colours classes.
    """
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes, classes = {}, []
        style = [part.split(":", 1) for part in element.attrib.pop("style", "").split(";") if ":" in part]
        for name, value in [*element.attrib.items(), *((n.strip(), v.strip()) for n, v in style)]:
            name = name.rpartition("}")[2]
            if value in _STAND_INS:
                classes.append(f"{name[0]}-{_STAND_INS[value]}")
            elif name == "id" and element.tag in ("path", "clipPath"):
                attributes[name] = prefix + value
            elif name in ("href", "clip-path"):
                attributes[name] = value.replace("#", f"#{prefix}")
            elif name not in ("id", "font-family") and not value.startswith("rotate(-0 "):
                attributes[name] = re.sub(r"\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}", value).replace("\n", "")
        element.attrib.clear()
        element.attrib.update(attributes | ({"class": " ".join(sorted(classes))} if classes else {}))
        element.text, element.tail = (element.text or "").strip(), ""
    root.attrib = {"viewBox": root.attrib["viewBox"], "aria-hidden": "true"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))
