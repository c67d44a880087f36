"""Which units matter to which class: gradient profiles, the network drawn as circles, and how rankings agree."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from brittle.drawing.charts import STYLE, WIDTH, svg_of
from brittle.drawing.image_grid import Line, Tile, diverging, grid, picture
from brittle.drawing.text import escaped, legible, over_seeds
from brittle.study.kinds.units.cell import Units
from brittle.study.kinds.units.knockouts import tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from brittle.study.store.results import Report

RANKED = 8  # strongest and weakest units of a class in the table, as in Lo and Ding, table III
_IMAGES = 3  # of each class in the diagrams, as in their table II
_STEP, _RADIUS = 10, 3.9  # px of a circle: four networks of 16 units a line are as wide as the page
_SHADES = ((38, 255), (42, 236), (50, 170))  # red, green and blue of the weakest and of the strongest unit
MOST, LARGEST = 16, 512  # units on a line of a diagram, and of a layer that it has room for


def relative(log10: Tensor) -> Tensor:
    """(..., U) share, in [0, 1], of the largest in the network: Lo and Ding normalise their diagrams so."""
    return (10 ** (log10 - log10.amax(-1, keepdim=True))).nan_to_num()


# Agreement ----------------------------------------------------------------------------------------------------------


def tau(units: Units) -> tuple[float, float]:
    """Mean Kendall's tau of two images' rankings: of one class, and of two; NaN where there are no such pairs."""
    same = torch.eye(len(units.agreement), dtype=torch.bool)
    return float(units.agreement[same].nanmean()), float(units.agreement[~same].nanmean())


def sentence(report: Report) -> str:
    """How alike units are ranked for images of one class and of two; empty if no units are done."""
    seeds = next(iter(tables(report).values()), [])
    if not seeds:
        return ""
    within, between = (over_seeds(values, 2) for values in zip(*(tau(units) for _, units in seeds), strict=True))
    return (
        f"Kendall’s τ between the rankings of two images is {within} where they are of one class and {between} where "
        "they are not."
    )


# Figures ------------------------------------------------------------------------------------------------------------


def profiles(report: Report) -> str:
    """Each class's convolutional gradients, and how well rankings agree, of the first network; empty if not done."""
    seeds = next(iter(tables(report).values()), [])
    if not seeds:
        return ""
    units = seeds[0][1]
    names = [legible(report.class_name(one), 12) for one in range(len(units.profile))]
    with matplotlib.rc_context(STYLE):
        height = 1.1 + 0.17 * min(40, len(names))
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.9, 1])
        shown = left.imshow(100 * relative(units.profile).numpy(), aspect="auto", cmap="magma", vmin=0, vmax=100)
        _by_layer(left, units)
        left.set_yticks(range(len(names)), names)
        left.set_title("gradient of each map, % of the class's largest")
        figure.colorbar(shown, ax=left, pad=0.02)
        seen = torch.stack([one.agreement for _, one in seeds]).nanmean(0).numpy()
        shown = right.imshow(seen, cmap="viridis", vmin=min(0.0, float(np.nanmin(seen))), vmax=1, aspect="auto")
        right.set_yticks([])
        right.set_xticks([0, len(names) - 1], [names[0], names[-1]])
        right.set_title("Kendall's τ between images, by class")
        figure.colorbar(shown, ax=right, pad=0.02)
        return svg_of(figure, "profiles", "Gradient of each feature map by class, and agreement of the rankings")


def _by_layer(axes: Axes, units: Units) -> None:
    """Layers named below their units, and a line between them."""
    ends = np.cumsum([0, *units.layers.values()])
    axes.set_xticks((ends[:-1] + ends[1:]) / 2 - 0.5, [legible(name, 14) for name in units.layers])
    axes.tick_params(axis="x", length=0)
    for end in ends[1:-1]:
        axes.axvline(end - 0.5, color="white", linewidth=1.5)


def networks(report: Report) -> str:
    """Lo and Ding, tables II and III: images, and the network's units as circles, brighter for stronger.

    Held-out images that the report has; last of each class its mean gradient. Of the first network; empty if it or its
    images are not there, or a layer has more than LARGEST units.
    """
    seeds = next(iter(tables(report).values()), [])
    if not seeds or report.images is None or max(seeds[0][1].layers.values()) > LARGEST:
        return ""
    units, held = seeds[0][1], int((~seeds[0][1].held_out).sum())
    names = {one: legible(report.class_name(one), 13) for one in units.classes}
    lines = []
    for one, name in names.items():
        tiles = []
        for row in _shown(report, units, one):
            tiles += [Tile(picture(report.images[row]), frame=""), _circles(units, units.each[held + row])]
        nothing = [Tile(None, frame="")] * (2 * _IMAGES - len(tiles))
        lines.append(Line([*tiles, *nothing, _circles(units, units.profile[one])], name))
    across = min(MOST, max(units.layers.values())) * _STEP + 6
    return grid(
        "Images, and the network with brighter circles for units of stronger gradients",
        lines,
        heads=[(2 * _IMAGES, 0, "class gradient", "quiet")],
        widths=[*[56, across] * _IMAGES, across],
        gaps=[*[6, 14] * _IMAGES, 0],
        left=8 + round(6.2 * max(map(len, names.values()))),
        foot=26,
        fit=(0.7, 1.1),
    )


def _shown(report: Report, units: Units, one: int) -> list[int]:
    """The first images of the report that are of a class and were looked at."""
    assert report.labels is not None
    rows = (report.labels[: int(units.held_out.sum())] == one).nonzero().flatten()
    return rows[:_IMAGES].tolist()


def _circles(units: Units, log10: Tensor) -> Tile:
    """Rows of circles for each layer, on a dark ground; of a layer of many units several."""
    brightness, across = relative(log10), min(MOST, max(units.layers.values())) * _STEP + 6
    high = sum(map(_lines, units.layers.values())) * _STEP + 6
    parts = [f'<rect width="{across}" height="{high}" rx="4" fill="#14161a"/>']
    place = first = 0
    for layer, count in units.layers.items():
        begin = (across - min(MOST, count) * _STEP) / 2 + _STEP / 2
        for number in range(count):
            value = float(brightness[place]) ** 2  # most lie above a third: told apart better
            shade = "".join(f"{round(low + (high - low) * value):02x}" for low, high in _SHADES)
            parts.append(
                f'<circle cx="{begin + number % MOST * _STEP:g}" '
                f'cy="{3 + _STEP / 2 + (first + number // MOST) * _STEP:g}" r="{_RADIUS}" fill="#{shade}">'
                f"<title>{escaped(f'{layer} {number + 1}: {10 ** float(log10[place]):.3g}')}</title></circle>"
            )
            place += 1
        first += _lines(count)
    return Tile(None, frame="", drawn="".join(parts), high=high)


def _lines(count: int) -> int:
    """On how many lines a layer's units are drawn."""
    return math.ceil(count / MOST)


def maps(report: Report, which: slice = slice(None)) -> str:
    """What the strongest feature maps of each class show, for its first held-out images; of the first network.

    Each map to its own scale, the same for all images of a class: white is 0. Empty if no units are done, the images
    are not there, no layer has maps, or none of the classes at the places `which` has.
    """
    seeds = next(iter(tables(report).values()), [])
    if not seeds or report.images is None or not (seeds[0][1].maps["places"] >= 0).any():
        return ""
    units = seeds[0][1]
    lines = []
    for place in range(len(units.classes))[which]:
        chosen = [each for each in units.maps["places"][place].tolist() if each >= 0]
        named = [f"{layer} {unit + 1}" for layer, unit in map(units.unit, chosen)]
        heads = [legible(one, 13) for one in (report.class_name(units.classes[place]), *named)]
        for number, row in enumerate(units.maps["rows"][place].tolist()):
            if 0 <= row < report.rows:
                shown = [picture(report.images[row]), *_maps(units.maps["outputs"][place, :, : len(chosen)], number)]
                lines.append(Line([Tile(image, frame="") for image in shown], heads=heads))
                heads = []
    words = "Images, and what the strongest feature maps of their class put out"
    columns = 1 + units.maps["places"].shape[1]
    widths = [84] * columns
    return grid(words, lines, widths=widths, gaps=[12, *[7] * (columns - 1)], foot=7, fit=(0.8, 1.22)) if lines else ""


def _maps(outputs: Tensor, number: int) -> Iterator[np.ndarray]:
    """The maps of one image of several, (images, maps, H, W) with NaN beside smaller ones, to the scale of all."""
    for rank in range(outputs.shape[1]):
        values = outputs[:, rank]
        largest = values.abs().nan_to_num().amax().clamp(min=1e-30)
        known = ~values[number].isnan()
        whole = values[number][: int(known.any(1).sum()), : int(known.any(0).sum())]
        yield diverging((whole / largest).numpy())


# Tables -------------------------------------------------------------------------------------------------------------


def ranked(report: Report) -> list[dict]:
    """Lo and Ding, table III: the strongest and the weakest units of each class, of the first network, from 1."""
    seeds = next(iter(tables(report).values()), [])
    lines = []
    for one in seeds[0][1].classes if seeds else ():
        units = seeds[0][1]
        order = units.profile[one].sort(descending=True, stable=True).indices.tolist()
        count = min(RANKED, len(order) // 2)
        for place in range(count):
            pair = (order[place], order[-1 - place])
            lines.append({"class": report.class_name(one), "pair": [_named(units, one, each) for each in pair]})
    return lines


def _named(units: Units, one: int, place: int) -> dict:
    layer, number = units.unit(place)
    return {"layer": layer, "unit": number + 1, "gradient": f"{10 ** float(units.profile[one, place]):.2g}"}
