"""Charts as SVG, made with matplotlib's vector backend alone: no display, no global figure, the same bytes each time.

Text and axes take the colour of the text around them, models that of `--model-1` and so on where the page sets them.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from torch import Tensor

from brittle.drawing.text import escaped, legible
from brittle.measures import mean_of_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito 2008, without black and yellow: told apart by the colour-blind, and legible on light and on dark.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK = "#010203"  # stands for the colour of the text around
PAPER = "#fefdfc"  # stands for the page's ground
FLOAT32_TINY = -44.85  # log10 of 1.4e-45, the smallest positive float32
WIDTH = 9.6  # inches; the page shows it about 960 px wide
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "brittle",
    "text.parse_math": False,  # a model may be called '$'
    "font.size": 8.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}


def titled(titles: Sequence[str], height: float, margin: float, beside: str = "") -> tuple[Figure, list[Axes]]:
    """A panel under each title, at most three side by side.

    Args:
        titles: of the panels.
        height: of a row of panels, in inches.
        margin: of the figure, above them.
        beside: the label of the y axis that all then share.
    """
    across = min(3, len(titles))
    down = math.ceil(len(titles) / across)
    figure = Figure(figsize=(WIDTH, margin + height * down), layout="constrained")
    panels = figure.subplots(down, across, sharey=bool(beside), squeeze=False).flatten().tolist()
    for axes, title in zip(panels, titles, strict=False):
        axes.set_title(legible(title, 30))
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.5)
    for axes in panels[::across]:
        axes.set_ylabel(beside)
    for axes in panels[len(titles) :]:
        axes.remove()
    return figure, panels[: len(titles)]


def banded(
    axes: Axes,
    at: Sequence[float],
    percents: Tensor,
    colour: str,
    *,
    linestyle: Any = "solid",
    linewidth: float = 1.4,
    shade: float = 0.16,
) -> None:
    """The mean over seeds of (S, P) in percent as a line, and its 95 % interval as a band of opacity `shade`."""
    means = [mean_of_seeds(column) for column in percents.T.tolist()]
    low, high = np.array([mean.interval for mean in means]).clip(0, 100).T
    axes.fill_between(at, low, high, color=colour, alpha=shade, linewidth=0)
    axes.plot(at, [mean.value for mean in means], color=colour, linestyle=linestyle, linewidth=linewidth)


def svg_of(figure: Figure, salt: str, alternative: str) -> str:
    """The figure as an <svg> element to put into a page: no fixed size, no identifiers but its own."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a glyph that matplotlib's font lacks, and the reader's may not
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r' id="(?![mp][0-9a-f]{10})[^"]*"', "", svg)  # keep what is referred to: markers and clips
    svg = re.sub(r"font: ((?:bold |\d{3} )?)([\d.]+px) [^;\"]*", _font, svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    for place, colour in enumerate(COLOURS, 1):
        svg = svg.replace(f": {colour}", f": var(--model-{place}, {colour})")
    svg = svg.replace(INK, "currentColor").replace(PAPER, "var(--paper, #ffffff)")
    label = f'role="img" aria-label="{escaped(alternative)}"'
    return re.sub(r'<svg ([^>]*?)width="[^"]*"', rf"<svg {label} \1", svg, count=1).replace(
        ' height="', ' data-height="', 1
    )


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1].strip()}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}; font-family: inherit"
