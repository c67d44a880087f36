"""Charts of how many images attacks fool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from brittle.drawing.charts import COLOURS, FLOAT32_TINY, INK, PAPER, STYLE, WIDTH, svg_of
from brittle.drawing.text import legible, titled
from brittle.study.kinds.attack.result import BOTH
from brittle.study.kinds.attack.sizes import limit
from brittle.study.kinds.colours import colours
from brittle.study.kinds.lines import Group, chains, groups
from brittle.study.store.results import Model, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TELLING = 0.95  # success of an attack, above which it is the size of the change that says something


def success_bars(report: Report) -> str:
    """Success of each attack on each model, float32 and exact, with intervals; empty if no attack is done.

    Attacks that fool nearly every image of every model, as those that look for the smallest change do, are not drawn.
    """
    done = _telling(report)
    if not done:
        return ""
    colour = colours(report)
    with matplotlib.rc_context(STYLE):
        rows = groups(report)
        figure, drawn = panels(done, 0.75 + 0.3 * len(rows), share_y=True)
        for label, axes in drawn.items():
            for place, group in enumerate(rows):
                _dumbbell(axes, place, group, label, colour[group.models[0].label])
            axes.set(xlim=(-3, 103), ylim=(len(rows) - 0.5, -0.5), title=legible(label))
            axes.set_xticks([0, 25, 50, 75, 100])
            axes.set_yticks(range(len(rows)), [titled(group.models[0].label, group.title, 20) for group in rows])
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.5)
            axes.set_xlabel(f"images fooled, %{_within(report, label)}")
        return svg_of(figure, "success", "Share of images fooled by each attack, float32 beside exact arithmetic")


def _dumbbell(axes: Axes, place: int, group: Group, label: str, colour: str) -> None:
    """float32 as a ring, exact as a disc, a line between them, and intervals as bands; a diamond if alone."""
    known = ((name, group.success(label, name)) for name in (*BOTH, "result"))
    shares = {name: share for name, share in known if share is not None and share.total}
    if all(name in shares for name in BOTH):
        ends = [100 * shares[name].value for name in BOTH]
        axes.plot(ends, [place, place], color=colour, linewidth=1.1, zorder=2)
    for name, share in shares.items():
        low, high = share.interval
        band = [100 * low, 100 * high]
        axes.plot(band, [place, place], color=colour, linewidth=6, alpha=0.28, zorder=1, solid_capstyle="butt")
        inside = PAPER if name == "float32" else colour
        value = [100 * share.value]
        marker = "D" if name == "result" else "o"
        axes.plot(value, [place], marker, color=colour, markerfacecolor=inside, markersize=6, zorder=3, clip_on=False)


def success_curves(report: Report) -> str:
    """Success against the number of pixels allowed, a panel for each pixel attack; empty if there is none."""
    done = [label for label in _done(report) if any(one.curve is not None for _, one in _found(report, label))]
    if not done:
        return ""
    colour = colours(report)
    with matplotlib.rc_context(STYLE):
        figure, drawn = panels(done, 2.6, share_y=True)
        for label, axes in drawn.items():
            for model, one in _found(report, label):
                if one.curve is None or not one.success.total:
                    continue
                dashes = (0, (3.2, 1.8)) if one.arithmetic == "float32" else "solid"
                counts = np.arange(len(one.curve))
                axes.step(counts, 100 * one.curve.numpy(), where="post", color=colour[model.label], linestyle=dashes)
            axes.set(ylim=(0, 102), title=legible(label), xlabel="pixels changed, at most")
            axes.margins(x=0)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.5)
        next(iter(drawn.values())).set_ylabel("images fooled, %")
        return svg_of(figure, "curves", "Share of images fooled against the number of pixels changed, by attack")


def against_temperature(report: Report) -> str:
    """Success and gradients against the training temperature, every seed and their mean; empty below three of them.

    It is also empty where attacks that know both arithmetics fool nearly every image. In the first colour networks that
    learn from hard labels, in the second those that learn from another network.
    """
    temperatures = sorted({model.temperature for model in report.models})
    labels = [label for label in _telling(report) if any(one.arithmetic in BOTH for _, one in _found(report, label))]
    if len(temperatures) < 3 or not labels:
        return ""
    compared = [model for line in chains(report) for model in line.models] or report.models  # no control among them
    taught = [[model for model in compared if bool(model.teacher) == distilled] for distilled in (False, True)]
    with matplotlib.rc_context(STYLE):
        figure, drawn = panels([*labels, ""], 2.6, share_y=False)
        for label, axes in drawn.items():
            for models, colour in zip(taught, COLOURS, strict=False):
                if label:
                    _success_by_temperature(axes, models, label, colour)
                else:
                    _gradients_by_temperature(axes, models, colour)
            axes.set_xscale("log")
            axes.set_xticks(temperatures, [f"{t:g}" for t in temperatures])
            axes.minorticks_off()
            axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.5)
            axes.set_xlabel("trained at T")
            if label:
                axes.set(ylim=(-2, 102), title=legible(label), ylabel="images fooled, %")
        drawn[""].set(title="mean |dF/dx|", ylabel="log₁₀")
        drawn[""].axhline(FLOAT32_TINY, color=INK, linewidth=0.8, linestyle=(0, (1, 1.5)))
        return svg_of(
            figure, "temperature", "Success of each attack, and the gradients, against the training temperature"
        )


def _success_by_temperature(axes: Axes, models: Sequence[Model], label: str, colour: str) -> None:
    for arithmetic, dashes in (("float32", (0, (3.2, 1.8))), ("exact", "solid")):
        values = [
            (model.temperature, 100 * attack.found[arithmetic].success.value)
            for model in models
            for attack in model.attacks
            if attack.label == label and arithmetic in attack.found
        ]
        _by_temperature(axes, values, colour, dashes)


def _gradients_by_temperature(axes: Axes, models: Sequence[Model], colour: str) -> None:
    for kind, dashes in (("exact", "solid"), ("trained", (0, (1, 1.2)))):
        values = [
            (model.temperature, float(one[one.isfinite()].mean()))
            for model in models
            if model.measured
            for one in [model.measured.amplitudes.get(kind)]
            if one is not None and one.isfinite().any()
        ]
        _by_temperature(axes, values, colour, dashes)


def _by_temperature(axes: Axes, values: Sequence[tuple[float, float]], colour: str, dashes: Any) -> None:
    """A dot for each value, a line through their means."""
    if not values:
        return
    axes.plot(*zip(*values, strict=True), ".", color=colour, markersize=3.5, alpha=0.6, markeredgewidth=0)
    means = [(t, np.mean([y for x, y in values if x == t])) for t in sorted({x for x, _ in values})]
    axes.plot(*zip(*means, strict=True), color=colour, linestyle=dashes, linewidth=1.3)


# Parts --------------------------------------------------------------------------------------------------------------


def _done(report: Report) -> list[str]:
    """Attacks of which some result is there."""
    return [label for label in report.attacks if any(one.success.total for _, one in _found(report, label))]


def _telling(report: Report) -> list[str]:
    """Attacks whose success says something: all pixel attacks, and others where some model withstood them."""
    return [
        label
        for label in _done(report)
        if any(one.flips or (one.success.total and one.success.value < TELLING) for _, one in _found(report, label))
    ]


def _within(report: Report, label: str) -> str:
    """', L∞ ≤ 0.3': the budget of an attack that has one."""
    bounds = (a.bound for m in report.models for a in m.attacks if a.label == label and a.bound)
    return next((f" ({limit(bound)})" for bound in bounds), "")


def _found(report: Report, label: str) -> list:
    """Every model with every result of one attack."""
    return [
        (model, one)
        for model in report.models
        for attack in model.attacks
        if attack.label == label
        for one in attack.found.values()
    ]


def panels(labels: Sequence[str], height: float, *, share_y: bool) -> tuple[Figure, Mapping[str, Axes]]:
    """One panel for each label, at most four side by side."""
    across = min(4, max(len(labels), 2))
    down = -(-len(labels) // across)
    figure = Figure(figsize=(WIDTH, height * down), layout=ConstrainedLayoutEngine(wspace=0.06))
    axes = figure.subplots(down, across, sharey=share_y, squeeze=False).flatten()
    for unused in axes[len(labels) :]:
        unused.set_visible(False)
    return figure, dict(zip(labels, axes, strict=False))
