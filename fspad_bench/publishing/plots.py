"""Pictures of a page as inline SVG: small panels with a line a decoder, deterministic.

- Text stays text, in the page's own font, and colours are the page's own variables: a picture
  follows the reader's light or dark.
- Every name in an SVG begins with the panel's own, so that many can stand in one page.
- Labels are strangers' text: they are shortened, and not read as formulas.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fspad_bench.util.terminal import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# what is drawn in a colour on the left takes the page's variable on the right
INK = "#000001"
MUTED = "#000002"
RULE = "#000003"
ACCENT = "#000004"
HOLLOW = "#000005"
PARTS = ("#000011", "#000012", "#000013", "#000014", "#000015", "#000016")
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    ACCENT: "--accent",
    HOLLOW: "--page",
} | {colour: f"--part-{number}" for number, colour in enumerate(PARTS, start=1)}
WIDTH = 3.5  # inches, a phone's width
LINE = 0.21  # inches a decoder
ABOVE = 0.24  # inches, for the title
BELOW = 0.27  # inches, for the numbers of an axis
UNIT = 0.16  # inches, for their unit
RIGHT = 0.14  # inches, for half a number
CHARACTER = 0.069  # inches of a decoder's name
LONGEST_NAME = 22  # characters of a decoder's name
SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "axes.spines.left": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "ytick.major.size": 0,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
}

NEEDLESS = (
    re.compile(r"<metadata>.*?</metadata>|<!--.*?-->", re.S),
    re.compile(r"<defs>\s*<style.*?</style>\s*</defs>", re.S),
    re.compile(r"(?<=<g) id=\"[^\"]*\""),
    re.compile(r"font-family: [^;\"]*; "),
    re.compile(r" transform=\"rotate\(-0 [^\"]*\""),
    re.compile(r" (?:width|height)=\"[\d.]+pt\""),
)


class Dot(NamedTuple):
    """A figure with its interval, whose ends are nan where they are not known; `hollow`: the same
    figure without outputs that loop.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    hollow: float = math.nan


def dots(
    name: str, title: str, names: Sequence[str], figures: Sequence[Dot], limits: tuple[float, float]
) -> str:
    """Return a panel of figures with intervals, a line a decoder, vanilla's own at 1."""

    def draw(axes: Axes) -> None:
        axes.axvline(1, color=MUTED, linewidth=0.8, linestyle=(0, (3, 2)))
        for line, dot in enumerate(figures):
            if not math.isnan(dot.low):
                axes.plot([dot.low, dot.high], [line, line], color=ACCENT, linewidth=1.6)
            if not math.isnan(dot.hollow):
                style: Any = {"mfc": HOLLOW, "mec": ACCENT, "linestyle": ""}
                axes.plot([dot.hollow], [line], marker="o", markersize=4.5, **style)
            axes.plot([dot.value], [line], marker="o", markersize=4.5, color=ACCENT)
        axes.set_xlim(*limits)
        axes.grid(axis="x", color=RULE, linewidth=0.6)

    return _panel(name, title, names, draw)


def bars(
    name: str, title: str, names: Sequence[str], parts: Sequence[Sequence[float]], unit: str
) -> str:
    """Return a panel of bars whose parts lie side by side, a line a decoder."""

    def draw(axes: Axes) -> None:
        for line, widths in enumerate(parts):
            start = 0.0
            for number, width in enumerate(widths):
                colour = PARTS[min(number, len(PARTS) - 1)]
                axes.barh(line, width, left=start, height=0.68, color=colour, linewidth=0)
                start += width
        axes.set_xlim(0, max((sum(widths) for widths in parts), default=0) or 1)
        axes.set_xlabel(unit)

    return _panel(name, title, names, draw, below=BELOW + UNIT)


def _panel(
    name: str,
    title: str,
    names: Sequence[str],
    draw: Callable[[Axes], None],
    *,
    below: float = BELOW,
) -> str:
    """Draw a panel and return it as an SVG element, labelled by its title."""
    import matplotlib
    from matplotlib.figure import Figure

    shown = [_short(text) for text in names]
    lines = LINE * max(1, len(names))
    left = 0.1 + CHARACTER * max(map(len, shown), default=0)
    height = ABOVE + lines + below
    place = (left / WIDTH, below / height, 1 - (left + RIGHT) / WIDTH, lines / height)
    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a label's characters may lack in the font that measures
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_axes(place)
        draw(axes)
        axes.set_yticks(range(len(names)), shown)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_title(_short(title))
        axes.set_axisbelow(True)
        return _inline(name, title, _svg(figure))


def _short(text: str) -> str:
    text = visible(text)
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(
        out,
        format="svg",
        transparent=True,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    return out.getvalue()


def _inline(name: str, title: str, svg: str) -> str:
    """Return an SVG file's element for a page of many: named apart, in the page's colours."""
    from markupsafe import escape

    svg = svg[svg.index("<svg") :]
    for needless in NEEDLESS:
        svg = needless.sub("", svg)
    svg = re.sub(r"\b(id=\"|href=\"#|url\(#)", rf"\g<1>{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(visible(title))}"', 1)
