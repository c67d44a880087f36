"""The page's section on units that carry an adversarial perturbation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib
import torch

from brittle.drawing.charts import COLOURS, INK, STYLE, banded, svg_of, titled
from brittle.drawing.text import over_seeds
from brittle.study.kinds.carriers.cell import Carriers
from brittle.study.kinds.units.cell import RANDOM

if TYPE_CHECKING:
    from brittle.study.store.results import Model, Report

COST = 0.05  # of the clean images that were right: what a defence may lose
COLOUR = {"carriers": COLOURS[1], "important": COLOURS[0], RANDOM: INK}


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
        line["fooled"] = over_seeds([100 * one.images / one.tried for one in each], 1)
        line["alike"] = over_seeds([one.agreement for one in each], 2)
        line |= {kind: over_seeds([100 * one.restored(kind, COST) for one in each], 1) for kind in orders(report)}
        lines.append(line)
    return lines


def curves(report: Report) -> str:
    """Clean and adversarial images that are right against the units that are gone; empty if no carriers are done."""
    rows = tables(report)
    if not rows:
        return ""
    with matplotlib.rc_context(STYLE):
        figure, drawn = titled([*rows], 2.5, 0.5, beside="right, %")
        for axes, seeds in zip(drawn, rows.values(), strict=True):
            for kind in orders(report):
                for side, dashes in (("clean", (0, (3.2, 1.8))), ("adversarial", "solid")):
                    shares = torch.stack([one.share(kind, side) for _, one in seeds])
                    banded(axes, seeds[0][1].gone, 100 * shares, COLOUR[kind], linestyle=dashes, shade=0.14)
            axes.set(xlabel="units gone", ylim=(-2, 102))
            axes.margins(x=0.01)
        return svg_of(figure, "carriers", "Clean and adversarial images that are right, against the units gone")


def section(report: Report) -> dict[str, Any]:
    """What section.html shows; empty if no carriers are done."""
    from markupsafe import Markup

    if not tables(report):
        return {}
    figures = {"curves": Markup(curves(report))}
    return {"figures": figures, "orders": orders(report), "table": defence(report), "cost": COST}
