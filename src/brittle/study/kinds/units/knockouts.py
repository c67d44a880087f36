"""What goes when units go: errors of several seeds with intervals, and how predictions move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from brittle.drawing.charts import COLOURS, INK, STYLE, WIDTH, banded, svg_of
from brittle.drawing.text import legible
from brittle.study.kinds.units.cell import RANDOM, Units

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from brittle.study.store.results import Model, Report

COLOUR = {"strongest": COLOURS[1], "weakest": COLOURS[0], RANDOM: INK, "least active": COLOURS[2]}
_DASHES = {RANDOM: (0, (3.2, 1.8)), "least active": (0, (1, 1.2))}
_PANELS = {
    "within": "the class itself",
    "overall": "all classes",
    "within, held out": "the class, held-out images",
    "overall, held out": "all, held-out images",
}


def tables(report: Report) -> dict[tuple[str, str], list[tuple[Model, Units]]]:
    """The seeds of each model and table of units, by both names; those that asked for other units are left out."""
    found: dict[tuple[str, str], list[tuple[Model, Units]]] = {}
    for model in report.models:
        for units in model.results_of(Units):
            seeds = found.setdefault((model.label, units.name), [])
            if not seeds or _alike(seeds[0][1]) == _alike(units):
                seeds.append((model, units))
    return found


def _alike(units: Units) -> tuple[object, ...]:
    return units.layers, units.classes, units.gone


def over_classes(units: Sequence[Units], kind: str, scope: str) -> Tensor:
    """(S, P) error of each of S seeds, the mean over the classes whose units go and that have images."""
    return torch.stack([one.errors(kind, scope).nanmean(0) for one in units])


def curves(report: Report) -> str:
    """Error against the number of units gone, by the order in which they go; empty if no units are done.

    A panel for each of the images that errors are of, a row for each model. Lines are means over classes and seeds,
    bands Student's 95 % intervals over seeds.
    """
    rows = tables(report)
    if not rows:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.5 * len(rows)), layout="constrained")
        drawn = figure.subplots(len(rows), len(_PANELS), sharey=True, sharex="row", squeeze=False)
        for place, (line, ((label, _), seeds)) in enumerate(zip(drawn, rows.items(), strict=True)):
            for axes, (scope, title) in zip(line, _PANELS.items(), strict=True):
                for kind in seeds[0][1].kinds:
                    errors = over_classes([units for _, units in seeds], kind, scope)
                    dashes = _DASHES.get(kind, "solid")
                    banded(axes, seeds[0][1].gone, 100 * errors, COLOUR[kind], linestyle=dashes)
                _finish(axes, title if place == 0 else "")
            line[0].set_ylabel(f"{legible(label, 18)}\nwrong, %" if len(rows) > 1 else "wrong, %")
        return svg_of(figure, "knockout", "Error against the number of units knocked out, by their order")


def _finish(axes: Axes, title: str) -> None:
    axes.set(title=title, xlabel="units gone", ylim=(-2, 102))
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.5)


# By class -----------------------------------------------------------------------------------------------------------


def class_colours(report: Report) -> dict[str, str]:
    """A colour for each class whose units go, by name."""
    found = next(iter(tables(report).values()), [])
    classes = found[0][1].classes if found else ()
    return {
        legible(report.class_name(one), 16): colour for one, colour in zip(classes, _shades(len(classes)), strict=True)
    }


def _shades(count: int) -> list[str]:
    """Colours that can be told apart: of ten classes Tableau's, of more from all around."""
    if count <= 10:
        return [to_hex(shade) for shade in matplotlib.colormaps["tab10"].colors[:count]]  # pyright: ignore
    return [to_hex(shade) for shade in matplotlib.colormaps["turbo"](np.linspace(0.08, 0.95, count))]


def by_class(report: Report) -> str:
    """Lo and Ding, figure 2: for each class its strongest and its weakest units gone; empty if no units are done.

    Means over the seeds of the first model.
    """
    seeds = next(iter(tables(report).values()), [])
    if not seeds:
        return ""
    titles = {
        ("strongest", "within"): "strongest gone: error within the class",
        ("weakest", "within"): "weakest gone: within the class",
    }
    titles |= {
        ("strongest", "overall"): "strongest gone: error among all",
        ("weakest", "overall"): "weakest gone: among all",
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
        drawn = figure.subplots(2, 2, sharex=True, sharey=True).flatten()
        for axes, ((kind, scope), title) in zip(drawn, titles.items(), strict=True):
            errors = 100 * torch.stack([units.errors(kind, scope) for _, units in seeds])
            for place, colour in enumerate(_shades(errors.shape[1])):
                axes.plot(seeds[0][1].gone, errors[:, place].mean(0).numpy(), color=colour, linewidth=1.3)
            _finish(axes, title)
        for axes in drawn[::2]:
            axes.set_ylabel("wrong, %")
        return svg_of(figure, "by-class", "Error as the strongest and the weakest units of each class are knocked out")


# Predictions --------------------------------------------------------------------------------------------------------


def moves(report: Report) -> str:
    """Lo and Ding, figure 3: what each class is mostly taken for as the first class' strongest units go.

    Of the first network; empty if no units are done.
    """
    seeds = next(iter(tables(report).values()), [])
    if not seeds:
        return ""
    model, units = seeds[0]
    taken = units.moves[0].argmax(2)  # (P, K), the first of equals
    known = units.moves[0, 0].sum(1) > 0
    shown = dict(zip(units.classes, _shades(len(units.classes)), strict=True))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1 + 0.34 * min(20, len(known))), layout="constrained")
        axes = figure.subplots()
        for one in known.nonzero().flatten().tolist():
            offset = (one / max(1, len(known) - 1) - 0.5) * 0.76  # lines that run together stay apart
            colour = shown.get(one, INK)
            line = {"linewidth": 1.6, "zorder": 2} if one in shown else {"linewidth": 0.8, "alpha": 0.4, "zorder": 1}
            axes.plot(units.gone, taken[:, one].numpy() + offset, color=colour, drawstyle="steps-mid", **line)
        axes.set_yticks(range(len(known)), [legible(report.class_name(one), 12) for one in range(len(known))])
        axes.set(xlabel="strongest units gone", title=legible(f"{report.class_name(units.classes[0])}, {model.title}"))
        axes.invert_yaxis()
        axes.margins(x=0.01)
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        return svg_of(figure, "moves", "What each class is mostly taken for as units are knocked out")


def legend(report: Report) -> Mapping[str, str]:
    """The colour of each order in which units went."""
    names = {kind for seeds in tables(report).values() for kind in seeds[0][1].kinds}
    return {kind: colour for kind, colour in COLOUR.items() if kind in names}
