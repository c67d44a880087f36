"""How widely models spread their work over units, and which units carry an adversarial change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure

from brittle.measures import mean_of_seeds
from brittle.models.softmax import SignedLog
from brittle.report import knockouts
from brittle.report.contents import Model, Report
from brittle.report.figures import COLOURS, INK, STYLE, WIDTH, banded, svg_of
from brittle.report.pictures import legible
from brittle.study.kinds.carriers.cell import Carriers
from brittle.study.kinds.units.cell import RANDOM, Units
from brittle.units import rank_agreement

COST = 0.05  # of the clean images that were right: what a defence may lose
COLOUR = {"carriers": COLOURS[1], "important": COLOURS[0], RANDOM: INK}


# How widely the work is spread --------------------------------------------------------------------------------------


def effective(units: Units) -> float:
    """Over how many units a class's gradient is spread, the mean over the classes: (sum g)^2 / sum g^2, from 1 to U."""
    shares = 10 ** (units.profile - units.profile.amax(1, keepdim=True))
    return float((shares.sum(1) ** 2 / (shares**2).sum(1)).nanmean())


def likeness(one: Units, other: Units) -> float:
    """Kendall's tau of two networks' rankings of their units for a class, the mean over the classes."""
    found = []
    for mine, theirs in zip(one.profile, other.profile, strict=True):
        both = torch.stack([mine, theirs])
        found.append(rank_agreement({"units": SignedLog(torch.isfinite(both).to(torch.int8), both)})[0, 1])
    return float(torch.stack(found).nanmean())


def spread(report: Report) -> list[dict[str, Any]]:
    """A line for each model whose units are done, where there are several: means over seeds, as words."""
    found = knockouts.tables(report)
    if len(found) < 2:
        return []
    first = {model.seed: units for model, units in next(iter(found.values()))}
    lines = []
    for (label, _), seeds in found.items():
        alike = [
            likeness(first[model.seed], units)
            for model, units in seeds
            if model.seed in first and first[model.seed] is not units and first[model.seed].layers == units.layers
        ]
        line: dict[str, Any] = {"model": label, "units": seeds[0][1].profile.shape[1]}
        line["effective"] = _said([effective(units) for _, units in seeds], 1)
        line["alike"] = _said(alike, 2) if alike else "–"
        line |= {kind: _said([units.needed(kind) for _, units in seeds], 1) for kind in ("strongest", "weakest")}
        lines.append(line)
    return lines


# What carries an adversarial change ----------------------------------------------------------------------------------


def tables(report: Report) -> dict[str, list[tuple[Model, Carriers]]]:
    """The seeds of each model and table of carriers, by both names; those without a fooled image are left out."""
    found: dict[str, list[tuple[Model, Carriers]]] = {}
    for model in report.models:
        carriers = model.results_of(Carriers)
        for one in carriers:
            seeds = found.setdefault(model.label if len(carriers) == 1 else f"{model.label}, {one.name}", [])
            if one.images and (not seeds or seeds[0][1].gone == one.gone):
                seeds.append((model, one))
    return {label: seeds for label, seeds in found.items() if seeds}


def orders(report: Report) -> dict[str, str]:
    """The colour of each order in which units went."""
    drawn = any(len(one.right) > 2 for seeds in tables(report).values() for _, one in seeds)
    return {kind: colour for kind, colour in COLOUR.items() if drawn or kind != RANDOM}


def defence(report: Report) -> list[dict[str, Any]]:
    """A line for each model: what knocking units out makes right again, means over seeds, as words."""
    lines = []
    for label, seeds in tables(report).items():
        each = [one for _, one in seeds]
        line: dict[str, Any] = {"model": label, "eps": f"{each[0].eps:g}"}
        line["fooled"] = _said([100 * one.images / one.tried for one in each], 1)
        line["alike"] = _said([one.agreement for one in each], 2)
        line |= {kind: _said([100 * one.restored(kind, COST) for one in each], 1) for kind in orders(report)}
        lines.append(line)
    return lines


def curves(report: Report) -> str:
    """Clean and adversarial images that are right against the units that are gone; empty if no carriers are done."""
    rows = tables(report)
    if not rows:
        return ""
    with matplotlib.rc_context(STYLE):
        across = min(3, len(rows))
        down = math.ceil(len(rows) / across)
        figure = Figure(figsize=(WIDTH, 0.5 + 2.5 * down), layout="constrained")
        drawn = figure.subplots(down, across, sharey=True, squeeze=False).flatten()
        for axes, (label, seeds) in zip(drawn, rows.items(), strict=False):
            for kind in orders(report):
                for side, dashes in (("clean", (0, (3.2, 1.8))), ("adversarial", "solid")):
                    shares = torch.stack([one.share(kind, side) for _, one in seeds])
                    banded(axes, seeds[0][1].gone, 100 * shares, COLOUR[kind], linestyle=dashes, shade=0.14)
            axes.set(title=legible(label, 30), xlabel="units gone", ylim=(-2, 102))
            axes.margins(x=0.01)
            axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.5)
        for axes in drawn[::across]:
            axes.set_ylabel("right, %")
        for axes in drawn[len(rows) :]:
            axes.remove()
        return svg_of(figure, "carriers", "Clean and adversarial images that are right, against the units gone")


def _said(values: Sequence[float], digits: int) -> str:
    """'7.3 (6.9 to 7.8)': the mean over seeds and its 95 % interval, where there are several."""
    mean = mean_of_seeds(values)
    low, high = mean.interval
    return f"{mean.value:.{digits}f}" + (f" ({low:.{digits}f} to {high:.{digits}f})" if len(values) > 1 else "")
