"""Additive masks: how many images they take to each class by their strength, and what they look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from brittle.attacks.masks import ETA_SCALE
from brittle.drawing.charts import COLOURS, INK, STYLE, WIDTH, banded, svg_of
from brittle.drawing.image_grid import Line, Tile, grid, picture
from brittle.drawing.text import legible
from brittle.study.kinds.masks.cell import WAYS, Masks

if TYPE_CHECKING:
    from brittle.study.store.results import Model, Report

_TITLES = {
    "trained": "training images",
    "held out": "held-out images",
    "borrowed": "nearest image's mask",
    "transferred": "on the other model",
}
COLOUR = {"as published, unclipped": COLOURS[1], "kept in [0, 1]": COLOURS[0]}


def tables(report: Report) -> list[tuple[Model, Masks]]:
    """The seeds of the first table of masks."""
    found = [(model, masks) for model in report.models for masks in model.results_of(Masks)]
    return [
        (model, one)
        for model, one in found
        if (model.label, one.name, one.etas) == (found[0][0].label, found[0][1].name, found[0][1].etas)
    ]


def success(masks: Sequence[Masks], way: str, *, clipped: bool = False) -> Tensor:
    """(S, E) share of images that are taken for the target, of each seed the mean over targets."""
    return torch.stack([one.success(way, clipped=clipped).nanmean(0) for one in masks])


def curves(report: Report) -> str:
    """Lo and Ding, figures 6 and 8: success against the strength, a panel for each way to come by a mask.

    Thin lines are targets, unclipped, means over seeds; strong ones the mean over targets and seeds, with Student's
    95 % interval over seeds. Empty if no masks are done.
    """
    masks = [one for _, one in tables(report)]
    if not masks:
        return ""
    ways = [way for way in WAYS if masks[0].total[WAYS.index(way)].any()]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
        drawn = figure.subplots(1, len(ways), sharey=True, squeeze=False)[0]
        for axes, way in zip(drawn, ways, strict=True):
            each = torch.stack([one.success(way) for one in masks]).nanmean(0)
            axes.plot(masks[0].etas, 100 * each.T.numpy(), color=COLOURS[1], linewidth=0.6, alpha=0.35)
            for clipped, colour in zip((False, True), COLOUR.values(), strict=True):
                percents = 100 * success(masks, way, clipped=clipped)
                banded(axes, masks[0].etas, percents, colour, linewidth=1.8, shade=0.18)
            axes.set(title=_TITLES[way], xlabel="η, of 0..255 pixels", ylim=(0, 102))
            axes.set_xticks([0, 5000, 10_000], ["0", "5 000", "10 000"])
            axes.margins(x=0.01)
            axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.5)
        drawn[0].set_ylabel("taken for the target, %")
        return svg_of(figure, "eta", "Share of images taken for the target against the strength of their masks")


def histograms(report: Report) -> str:
    """Lo and Ding, figure 5 b: the gradients of the target's output with respect to the pixels of three images."""
    seeds = tables(report)
    if not seeds:
        return ""
    _, masks = seeds[0]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.9), layout="constrained")
        drawn = figure.subplots(1, len(masks.masks), sharey=True, squeeze=False)[0]
        for axes, values, label, target in zip(drawn, masks.masks, masks.labels, masks.targets, strict=True):
            channels = values.flatten(1)
            reach = float(channels.abs().quantile(0.999))
            colours = ("#c4529d", "#009e73", "#0072b2") if len(channels) == 3 else (INK,)
            for channel, colour in zip(channels, colours, strict=False):
                axes.hist(channel.numpy(), bins=list(np.linspace(-reach, reach, 60)), histtype="step", color=colour)
            names = (legible(report.class_name(int(one)), 12) for one in (label, target))
            axes.set_title(" → ".join(names))
            axes.axvline(0, color=INK, linewidth=0.6)
            axes.set_yticks([])
            axes.set_xlabel("gradient of the target's output")
        return svg_of(figure, "gradients", "Histograms of the gradients with respect to pixels, by colour")


def examples(report: Report) -> str:
    """Lo and Ding, figures 4 and 7: images, their masks, both together; and the mask that all images share."""
    seeds = tables(report)
    if not seeds:
        return ""
    _, masks = seeds[0]
    heads = ("image", "its mask", "together", "shared mask", "together")
    lines = []
    for place, image in enumerate(masks.images):
        target = int(masks.targets[place])
        eta = masks.etas[int(masks.best()[target])]
        change, shared = masks.masks[place] * (eta / ETA_SCALE), masks.learned[target]
        name, towards = (legible(report.class_name(int(one)), 12) for one in (masks.labels[place], target))
        below = (name, f"towards {towards}", f"η = {eta:g}", f"towards {towards}", "")
        images = (image, 0.5 + change, image + change, 0.5 + shared, image + shared)
        tiles = [
            Tile(picture(one.clamp(0, 1)), (note,), spoken=f"{head}: {note}", frame="")
            for one, note, head in zip(images, below, heads, strict=True)
        ]
        lines.append(Line(tiles))
    tops = [(place, 0, head, "quiet") for place, head in enumerate(heads)]
    return grid("Images, their masks and both together", lines, heads=tops, tile=110, gap=14, foot=24, fit=(0, 1.2))


def section(report: Report) -> dict[str, Any]:
    """What section.html shows, figures as markup; empty if no masks are done."""
    from markupsafe import Markup

    if not tables(report):
        return {}
    figures = {"curves": curves(report), "examples": examples(report), "histograms": histograms(report)}
    return {"figures": {name: Markup(svg) for name, svg in figures.items()}, "colours": COLOUR}
