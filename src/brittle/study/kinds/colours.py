"""The colours of models, temperatures and generations on a page."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex

from brittle.drawing.charts import COLOURS, INK
from brittle.study.kinds.lines import lines, swept
from brittle.study.store.results import Report

# From cold to hot, for temperatures in order: none is so dark or so light that either ground would swallow it.
_HEAT = LinearSegmentedColormap.from_list("heat", ["#2f7fd0", "#8167cf", "#c4529d", "#dc5a42", "#e09a1f"])


def colours(report: Report) -> dict[str, str]:
    """A colour for each model label; seeds of a model share it.

    More models than there are colours, of several temperatures, are coloured by temperature.
    """
    labels = list(dict.fromkeys(model.label for model in report.models))
    if len(labels) <= len(COLOURS):
        return dict(zip(labels, COLOURS, strict=False))
    if swept(report):
        colour = heat(report)
        return {model.label: colour[model.temperature] for model in report.models}
    shades = matplotlib.colormaps["viridis"](np.linspace(0.1, 0.85, len(labels)))
    return {label: to_hex(shade) for label, shade in zip(labels, shades, strict=True)}


def key(report: Report) -> dict[str, str]:
    """What a page's legend says: the colour of each model, or of each temperature where that is what they tell."""
    if len({model.label for model in report.models}) > len(COLOURS) and swept(report):
        return {f"T = {temperature:g}": colour for temperature, colour in heat(report).items()}
    return colours(report)


def heat(report: Report) -> dict[float, str]:
    """A colour for each temperature, from cold to hot."""
    temperatures = sorted({model.temperature for model in report.models})
    shades = _HEAT(np.linspace(0, 1, max(2, len(temperatures))))
    return {temperature: to_hex(shade) for temperature, shade in zip(temperatures, shades, strict=False)}


def line_colours(report: Report) -> dict[str, str]:
    """A colour for each generation of the chains; what stands outside of them has that of the text."""
    inside = [line for line in lines(report) if line.generation is not None]
    outside = [line for line in lines(report) if line.generation is None]
    many = [to_hex(shade) for shade in matplotlib.colormaps["viridis"](np.linspace(0.2, 0.85, len(inside)))]
    chosen = COLOURS if len(inside) + len(outside) <= len(COLOURS) else many
    found = {line.name: colour for line, colour in zip(inside, chosen, strict=False)}
    if len(outside) == 1 and inside:
        return found | {outside[0].name: INK}
    rest = [colour for colour in COLOURS if colour not in found.values()] or list(COLOURS)
    return found | {line.name: rest[place % len(rest)] for place, line in enumerate(outside)}
