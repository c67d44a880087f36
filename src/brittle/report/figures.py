"""The charts of a study's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from brittle.drawing.charts import COLOURS, INK, PAPER, STYLE, WIDTH, power, svg_of
from brittle.drawing.image_grid import legible, titled
from brittle.measures import NEGLIGIBLE
from brittle.report.contents import BOTH, Model, Report
from brittle.report.lineage import Group, chains, groups, lines, swept
from brittle.report.sizes import limit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# From cold to hot, for temperatures in order: none is so dark or so light that either ground would swallow it.
_HEAT = LinearSegmentedColormap.from_list("heat", ["#2f7fd0", "#8167cf", "#c4529d", "#dc5a42", "#e09a1f"])
HISTOGRAMS = 16  # more would be a tower
TELLING = 0.95  # success of an attack, above which it is the size of the change that says something
FLOAT32_TINY = -44.85  # log10 of 1.4e-45, the smallest positive float32


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


def training(report: Report) -> str:
    """Loss and validation accuracy by epoch; empty if no model was trained here."""
    models = [model for model in report.models if model.trained and model.trained.loss]
    if not models:
        return ""
    colour = colours(report)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        for model in models:
            assert model.trained is not None
            for axes, numbers in ((left, model.trained.loss), (right, model.trained.validation_accuracy)):
                scale = 1 if axes is left else 100
                epochs = np.arange(1, len(numbers) + 1)
                axes.plot(epochs, scale * np.array(numbers), color=colour[model.label], linewidth=1.2)
        left.set(title="training loss", xlabel="epoch")
        right.set(title="validation accuracy, %", xlabel="epoch", ylim=(0, 102))
        left.set_ylim(bottom=0)
        for axes in (left, right):
            axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.5)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return svg_of(figure, "training", "Training loss and validation accuracy by epoch, by model")


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


def _step(low: float) -> int:
    return next((step for step in (10, 20, 25, 50, 100, 200) if -low / step <= 9), 500)
