"""Gradients drawn: how small they are, and where in an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from brittle.drawing.charts import FLOAT32_TINY, INK, STYLE, WIDTH, svg_of
from brittle.drawing.image_grid import Line, Tile, diverging
from brittle.drawing.text import power, scientific, titled
from brittle.measures import NEGLIGIBLE
from brittle.models.softmax import SignedLog
from brittle.study.kinds.attack.pictures import by_model, original
from brittle.study.kinds.attack.result import BOTH
from brittle.study.kinds.colours import colours
from brittle.study.kinds.lines import shown_models
from brittle.study.kinds.measure.samples import largest_of, mean_of
from brittle.study.store.results import Model, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HISTOGRAMS = 16  # more would be a tower


def amplitudes(report: Report) -> str:
    """How small gradients are: for each of the models, a histogram of log10 mean |dF/dx|.

    Empty if there is none, and where float32 rounds no gradient of any image of these models to 0.
    """
    models = histogrammed(report)
    if not any(_rounded(model) != 0 for model in models):
        return ""
    values = [model.measured.amplitudes["exact"].numpy() for model in models if model.measured]
    finite = np.concatenate([one[np.isfinite(one)] for one in values])
    low = min(float(finite.min(initial=0)), -60) * 1.03
    bins = np.linspace(low, max(2.0, float(finite.max(initial=0))), 70)
    colour = colours(report)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.95 + 0.72 * len(models)), layout="constrained")
        ratios = [0.2] + [1.0] * len(models)
        head, *rows = figure.subplots(len(models) + 1, 1, sharex=True, height_ratios=ratios)
        _marks(head, bins[-1] - bins[0])
        for axes, model, numbers in zip(rows, models, values, strict=True):
            axes.hist(numbers[np.isfinite(numbers)], bins=list(bins), color=colour[model.label])
            axes.axvspan(low, FLOAT32_TINY, color=INK, alpha=0.07, linewidth=0)
            axes.axvline(np.log10(NEGLIGIBLE), color=INK, linewidth=0.8, linestyle=(0, (1, 1.5)))
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            axes.set_xlim(bins[0], bins[-1])
            axes.set_title(titled(model.label, model.title, 32), pad=3)
            axes.set_title(_rounded_to_zero(model), loc="right", fontsize=8.5, fontweight="normal", pad=3)
        ticks = [tick for tick in range(-5000, 1, _step(low)) if tick >= low]
        rows[-1].set_xticks(ticks, [power(tick) for tick in ticks])
        rows[-1].set_xlabel("mean |dF/dx| of an image, computed exactly")
        return svg_of(figure, "amplitudes", "Histograms of the mean gradient of each image, by model")


def histogrammed(report: Report) -> list[Model]:
    """Models whose gradients are drawn: all that are measured, or the first of the first seed if they are many."""
    models = [model for model in report.models if model.measured and len(model.measured.amplitudes.get("exact", ()))]
    if len(models) > HISTOGRAMS:
        models = [model for model in models if model.seed == models[0].seed]
    return models[:HISTOGRAMS]


def _marks(axes: Axes, span: float) -> None:
    """A line of words over the panels: what lies left of each mark, where there is room."""
    axes.axis("off")
    axes.text(FLOAT32_TINY, 0, "exactly 0 in float32 ◂ ", ha="right", va="bottom")
    if (np.log10(NEGLIGIBLE) - FLOAT32_TINY) / span > 0.12:
        axes.text(np.log10(NEGLIGIBLE), 0, "“close to zero” ◂ ", ha="right", va="bottom")


def _rounded(model: Model) -> int | None:
    """Images whose gradients float32 makes 0; None where float32 was not tried."""
    values = model.measured.amplitudes.get("float32") if model.measured else None
    return None if values is None else int((values == -np.inf).sum())


def _rounded_to_zero(model: Model) -> str:
    """What float32 makes of these gradients, and how many are zero even when exact."""
    assert model.measured is not None
    values = model.measured.amplitudes
    exact = values["exact"]
    zeros = int((exact == -np.inf).sum())
    note = f"; {zeros} are 0 exactly and not drawn" if zeros else ""
    lost = _rounded(model)
    if lost is None:
        return note.removeprefix("; ")
    return f"float32 gives exactly 0 for {lost} of {len(exact)} images{note}"


def _step(low: float) -> int:
    return next((step for step in (10, 20, 25, 50, 100, 200) if -low / step <= 9), 500)


def saliency(report: Report, places: Sequence[int]) -> str:
    """dCE/dx of the sample rows at these places: for each model as float32 has it and exactly."""
    if not places:
        return ""
    shown = [(m.label, m.measured.saliency) for m in shown_models(report) if m.measured and m.measured.saliency]
    columns = [(label, name) for label, _ in shown for name in BOTH]
    lines = []
    for place in places:
        tiles = [original(report, int(shown[0][1].rows[place]))]
        for label, maps in shown:
            of_float32 = SignedLog.of(maps.float32[place])
            exact = SignedLog(maps.sign[place], maps.log10[place])
            tiles += [_gradient(of_float32, f"{label}, float32"), _gradient(exact, f"{label}, exact")]
        lines.append(Line(tiles))
    return by_model("Gradient of the loss with respect to each pixel, by model", columns, lines)


def saliency_rows(report: Report) -> int:
    """How many rows have saliency maps of every shown model."""
    if report.images is None:
        return 0
    maps = [model.measured.saliency for model in shown_models(report) if model.measured]
    return min((len(one.rows) for one in maps if one), default=0)


def _gradient(values: SignedLog, spoken: str) -> Tile:
    """Red raises the loss, blue lowers it, white does nothing; scaled by its own largest."""
    top = values.log10.max()
    if top == -torch.inf or top.isnan():  # NaN: in float32, of an image so wrong that its loss is infinite
        words = "not a number" if top.isnan() else "all zeros"
        height, width = values.log10.shape[1:]
        return Tile(np.full((height, width, 3), 250, np.uint8), (words,), strong=True, spoken=f"{spoken}: {words}")
    scaled = values.sign * 10.0 ** (values.log10 - top)
    strongest = scaled.abs().argmax(0, keepdim=True)  # of a pixel's channels
    flat = scaled.gather(0, strongest)[0].numpy()
    lines = (f"mean {scientific(*mean_of(values))}", f"max {scientific(*largest_of(values))}")
    return Tile(diverging(flat), lines, spoken=f"{spoken}: {', '.join(lines)}")
