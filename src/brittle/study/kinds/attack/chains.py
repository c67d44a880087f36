"""Charts of chains teacher -> assistant -> student: against the temperature, and against the generation.

They are Mandal and Guo's figures 3 to 8. Each network outside of the chains, such as a control, is a line or a diamond
of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from brittle import measures
from brittle.drawing.charts import INK, PAPER, STYLE, WIDTH, svg_of
from brittle.drawing.text import legible
from brittle.measures import Share
from brittle.study.kinds.attack import sizes
from brittle.study.kinds.attack.result import Attack
from brittle.study.kinds.attack.sizes import NORMS
from brittle.study.kinds.colours import colours, heat, line_colours
from brittle.study.kinds.lines import Line, chains, lines, swept
from brittle.study.store.results import Model, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DASHED = (0, (3.2, 1.8))
_STEPS = 200  # of a survival curve


@dataclass(frozen=True)
class Point:
    """One number of several seeds, at a temperature or a generation."""

    at: float
    each: tuple[float, ...]  # by seed
    low: float = math.nan  # 95 % interval of their mean, where it is known
    high: float = math.nan

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.each))


Measure = Callable[[Sequence[Model]], tuple[Sequence[float], tuple[float, float]]]


def by_temperature(line: Line, measure: Measure) -> list[Point]:
    """What a measure says of a line's models at each temperature, all seeds of one together."""
    grouped = ((t, [model for model in line.models if model.temperature == t]) for t in line.temperatures)
    points = ((t, *measure(models)) for t, models in grouped)
    return [Point(t, tuple(each), *interval) for t, each, interval in points if len(each)]


# What is measured ---------------------------------------------------------------------------------------------------


def accuracy(models: Sequence[Model]) -> tuple[list[float], tuple[float, float]]:
    """Percent; Wilson's interval of all seeds' images together."""
    return _shares([model.measured.accuracy for model in models if model.measured])


def small_gradients(arithmetic: str) -> Measure:
    """Percent of images whose gradient looks like zero."""

    def of(models: Sequence[Model]) -> tuple[list[float], tuple[float, float]]:
        known = [model.measured.sensitivity for model in models if model.measured]
        return _shares([one[arithmetic] for one in known if arithmetic in one])

    return of


def _shares(shares: Sequence[Share]) -> tuple[list[float], tuple[float, float]]:
    low, high = Share(sum(one.count for one in shares), sum(one.total for one in shares)).interval
    return [100 * one.value for one in shares if one.total], (100 * low, 100 * high)


def confidence(models: Sequence[Model]) -> tuple[list[float], tuple[float, float]]:
    """Percent; with an interval if there is one seed only."""
    means = [model.measured.confidence for model in models if model.measured]
    low, high = means[0].interval if len(means) == 1 else (math.nan, math.nan)
    return [100 * mean.value for mean in means], (100 * low, 100 * high)


def mean_size(label: str) -> Measure:
    """The mean smallest change that an attack finds, with its interval over seeds and rows."""

    def of(models: Sequence[Model]) -> tuple[list[float], tuple[float, float]]:
        found = _fooling(models, label)
        each = [attack.robustness[name].mean.value for attack, name in found]
        return each, sizes.together(found).interval if found else (math.nan, math.nan)

    return of


def largest_size(label: str) -> Measure:
    """The largest of the smallest changes, of each seed."""

    def of(models: Sequence[Model]) -> tuple[list[float], tuple[float, float]]:
        found = _fooling(models, label)
        return [attack.robustness[name].maximum.value for attack, name in found], (math.nan, math.nan)

    return of


def _fooling(models: Sequence[Model], label: str) -> list[tuple[Attack, str]]:
    return [(attack, name) for attack, name in sizes.of(models, label) if attack.robustness[name].mean.rows]


# Against the temperature --------------------------------------------------------------------------------------------


def networks(report: Report) -> str:
    """Accuracy, confidence and sensitivity against the temperature, a line for each generation: figures 3, 6 and 4.

    Empty unless some generation has two temperatures that are measured.
    """
    measured = {model.temperature for model in report.models if model.measured}
    if not swept(report) or len(measured) < 2:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.7), layout=ConstrainedLayoutEngine(wspace=0.06))
        left, middle, right = figure.subplots(1, 3)
        for axes, title, measure in (
            (left, "accuracy, %", accuracy),
            (middle, "confidence, %", confidence),
            (right, "gradients close to zero, %", small_gradients("exact")),
        ):
            _draw_lines(axes, report, measure)
            axes.set_title(title)
        _draw_lines(right, report, small_gradients("float32"), DASHED)
        right.set_ylim(-3, 103)
        return svg_of(figure, "networks", "Accuracy, confidence and share of small gradients against the temperature")


def robustness(report: Report) -> str:
    """Mean and largest smallest change against the temperature, a column for each attack: figures 5 and 8, left.

    Dashed: the same attack on the logits over the temperature. Empty unless some generation has two temperatures.
    """
    columns = attacks(report)
    if not swept(report) or not columns:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.6), layout=ConstrainedLayoutEngine(wspace=0.06))
        across = max(2, len(columns))
        panels = figure.subplots(2, across, squeeze=False, sharex="col")
        for place in range(across):
            if place >= len(columns):
                for axes in panels[:, place]:
                    axes.set_visible(False)
                continue
            upper, lower = panels[:, place]
            for attack in columns[place]:
                dashes = DASHED if attack.over_temperature and len(columns[place]) > 1 else "solid"
                _draw_lines(upper, report, mean_size(attack.label), dashes)
                _draw_lines(lower, report, largest_size(attack.label), dashes)
            name, unit = legible(columns[place][0].label, 24), _norm(columns[place][0])
            upper.set(title=name, ylabel=f"mean, {unit}", xlabel="")
            lower.set_ylabel(f"largest, {unit}")
        return svg_of(figure, "robustness", "Mean and largest smallest change against the temperature, by attack")


def attacks(report: Report) -> list[list[Attack]]:
    """Those that look for the smallest change: one of each label, those of the same function and norm together.

    One on logits over T that is not there for all seeds of the one on the logits is left out: means of other networks
    cannot stand beside it.
    """
    columns: dict[Any, list[Attack]] = {}
    for label in sizes.labels(report):
        attack = next(a for model in report.models for a in model.attacks if a.label == label and a.sized)
        others = columns.setdefault((attack.function, attack.minimises), [])
        if any(one.over_temperature == attack.over_temperature for one in others):  # other options: its own column
            columns[label] = [attack]
        else:
            others.append(attack)
    ordered = [sorted(column, key=lambda attack: attack.over_temperature) for column in columns.values()]
    return [[one for one in column if _seeds(report, one) == _seeds(report, column[0])] for column in ordered]


def _norm(attack: Attack) -> str:
    assert attack.minimises is not None
    return NORMS[attack.minimises]


def _sizes(attack: Attack, arithmetic: str) -> torch.Tensor:
    """(R,) in the norm that the attack minimises."""
    assert attack.minimises is not None
    return attack.found[arithmetic].sizes[attack.minimises]


def _seeds(report: Report, attack: Attack) -> set[int]:
    """Those of the networks that an attack of this label has been made on."""
    return {model.seed for model in report.models for one in model.attacks if one.label == attack.label and one.found}


def _draw_lines(axes: Axes, report: Report, measure: Measure, dashes: Any = "solid") -> None:
    """A line for each generation, over temperatures at equal distances; each beside the others, not upon them."""
    temperatures = sorted({model.temperature for model in report.models})
    colour, shown = line_colours(report), lines(report)
    for number, line in enumerate(shown):
        aside = 0.07 * (number - (len(shown) - 1) / 2)
        points = by_temperature(line, measure)
        marker = "D" if line.generation is None and len(line.temperatures) == 1 else "o"
        _draw(axes, [(temperatures.index(p.at) + aside, p) for p in points], colour[line.name], dashes, marker)
    axes.set_xticks(range(len(temperatures)), [f"{t:g}" for t in temperatures])
    axes.set_xlabel("trained at T")
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.5)


def _draw(
    axes: Axes, points: Iterable[tuple[float, Point]], colour: str, dashes: Any = "solid", marker: str = "o"
) -> None:
    """Intervals as bars, seeds as dots where there are several, and a line through their means."""
    points = list(points)
    if not points:
        return
    for at, point in points:
        if math.isfinite(point.low) and dashes == "solid":
            axes.plot([at, at], [point.low, point.high], color=colour, linewidth=3.2, alpha=0.3, solid_capstyle="butt")
        if len(point.each) > 1:
            axes.plot([at] * len(point.each), point.each, "o", color=colour, markersize=2, alpha=0.8, mew=0)
    inside = PAPER if dashes != "solid" else colour
    axes.plot(
        *zip(*((at, point.mean) for at, point in points), strict=True),
        color=colour,
        linestyle=dashes,
        linewidth=1.3,
        marker=marker,
        markersize=5 if marker == "D" else 3.4,
        markerfacecolor=inside,
        markeredgewidth=0.9,
    )


# Against the generation ---------------------------------------------------------------------------------------------


def generations(report: Report) -> str:
    """Accuracy and mean smallest change against the generation, a line for each temperature: figures 7 and 8, right.

    Empty unless two temperatures are those of two generations, or one is that of three.
    """
    shown = chains(report)
    steps = [{line.generation for line in shown if t in line.temperatures} for t in heat(report)]
    if max(map(len, steps), default=0) < 3 and sum(len(one) > 1 for one in steps) < 2:
        return ""
    columns = [column[0] for column in attacks(report)]
    drawn = [("accuracy, %", "", accuracy), *((a.label, f"mean, {_norm(a)}", mean_size(a.label)) for a in columns)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.7), layout=ConstrainedLayoutEngine(wspace=0.06))
        for axes, (title, unit, measure) in zip(
            figure.subplots(1, max(2, len(drawn)), squeeze=False)[0], drawn, strict=False
        ):
            _over_generations(axes, report, shown, measure)
            axes.set(title=legible(title, 24), ylabel=unit)
        for axes in figure.axes[len(drawn) :]:
            axes.set_visible(False)
        return svg_of(figure, "generations", "Accuracy and mean smallest change against the generation, by temperature")


def over_generations(shown: Sequence[Line], measure: Measure) -> tuple[dict[float, list[Point]], list[Point]]:
    """By temperature a point for each generation, and their means over the temperatures that every generation has."""
    found: dict[float, list[Point]] = {}
    for line in shown:
        assert line.generation is not None
        for point in by_temperature(line, measure):
            placed = Point(line.generation, point.each, point.low, point.high)
            found.setdefault(point.at, []).append(placed)
    steps = sorted({line.generation for line in shown if line.generation is not None})
    whole = [points for points in found.values() if {point.at for point in points} == set(steps)]
    averages = [
        Point(step, (float(np.mean([p.mean for points in whole for p in points if p.at == step])),))
        for step in steps
        if whole
    ]
    return found, averages


def _over_generations(axes: Axes, report: Report, shown: Sequence[Line], measure: Measure) -> None:
    colour = heat(report)
    by_heat, averages = over_generations(shown, measure)
    for temperature, points in sorted(by_heat.items()):
        _draw(axes, [(point.at, Point(point.at, (point.mean,))) for point in points], colour[temperature])
    if len(by_heat) > 1 and averages:
        values = [(point.at, point.mean) for point in averages]
        axes.plot(*zip(*values, strict=True), color=INK, linewidth=2.2, zorder=5)
    steps = sorted({line.generation for line in shown if line.generation is not None})
    named = len(steps) == len(shown) <= 4 and all(len(line.name) <= 10 for line in shown)
    axes.set_xticks(steps, [legible(line.name) for line in shown] if named else [str(step) for step in steps])
    axes.set_xlabel("" if named else "generation")
    axes.margins(x=0.08)
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.5)


# Survival -----------------------------------------------------------------------------------------------------------


def survival(report: Report) -> str:
    """Share of images still right against the size of the change allowed, a column for each attack.

    With temperatures there is a row for each line of models, and the temperature is the colour; else a colour is a
    model. What has one temperature and stands outside of the chains is drawn in every row. Seeds of a model are taken
    together. Dashed: the same attack on the logits over the temperature.
    """
    columns = attacks(report)
    if not columns:
        return ""
    beside = outside(report)
    rows = [line for line in lines(report) if line not in beside] if swept(report) else [Line("", None, report.models)]
    with matplotlib.rc_context(STYLE):
        across = max(2, len(columns))
        figure = Figure(figsize=(WIDTH, 0.5 + 1.75 * len(rows)), layout=ConstrainedLayoutEngine(wspace=0.06))
        panels = figure.subplots(len(rows), across, squeeze=False, sharex="col", sharey=True)
        for axes in panels[:, len(columns) :].flatten():
            axes.set_visible(False)
        for place, column in enumerate(columns):
            top = _reach(report, column)
            for line, axes in zip(rows, panels[:, place], strict=True):
                _survivals(axes, report, line, column, top)
                for other in beside:
                    _survivals(axes, report, other, column, top, line_colours(report)[other.name])
            panels[0, place].set_title(legible(column[0].label, 24))
            panels[-1, place].set_xlabel(f"change allowed, {_norm(column[0])}")
        for line, axes in zip(rows, panels[:, 0], strict=True):
            axes.set_ylabel(f"{legible(line.name, 16)}\nstill right, %" if line.name else "still right, %")
        return svg_of(figure, "survival", "Share of images still right against the size of the change allowed")


def outside(report: Report) -> list[Line]:
    """Lines of one temperature outside of the chains, such as a control, where something else has several."""
    return [line for line in lines(report) if line.generation is None and len(line.temperatures) == 1 and swept(report)]


def surviving(models: Sequence[Model], label: str, at: torch.Tensor) -> torch.Tensor | None:
    """(S,) share of all attacked images of all seeds still right at changes of size `at` (S,); None if none is done."""
    found = [_sizes(*one) for one in sizes.of(models, label)]
    return measures.survival(torch.cat(found), at) if found and sum(map(len, found)) else None


def _survivals(
    axes: Axes, report: Report, line: Line, column: Sequence[Attack], top: float, one_colour: str | None = None
) -> None:
    colour = colours(report) if not line.name else {m.label: heat(report)[m.temperature] for m in line.models}
    at = torch.linspace(0, top, _STEPS + 1, dtype=torch.float64)
    for attack in column:
        dashes = DASHED if attack.over_temperature and len(column) > 1 else "solid"
        for label in dict.fromkeys(model.label for model in line.models):
            share = surviving([model for model in line.models if model.label == label], attack.label, at)
            if share is not None:
                axes.plot(
                    at.numpy(),
                    100 * share.numpy(),
                    color=one_colour or colour[label],
                    linestyle=dashes,
                    lw=0.8 if dashes == DASHED else 1.2,
                )
    axes.set(ylim=(0, 102), xlim=(0, top))
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.5)


def _reach(report: Report, column: Sequence[Attack]) -> float:
    """How far the axis goes: past all but one in a hundred of the changes, for a single far one would flatten all."""
    labels = [attack.label for attack in column]
    found = [one for label in labels for one in sizes.of(report.models, label)]
    values = torch.cat([_sizes(*one) for one in found])
    values = values[values.isfinite()]
    return 1.05 * float(values.quantile(0.99)) if len(values) and values.max() > 0 else 1.0
