"""The page's section on how networks were trained."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from brittle.drawing.charts import INK, STYLE, WIDTH, svg_of
from brittle.study.kinds.colours import colours
from brittle.study.store.results import Model, Report


def section(report: Report) -> dict[str, Any]:
    """What section.html shows: the models, seeds that were trained alike in one row, and the course of training."""
    from markupsafe import Markup

    rows: dict[tuple, list[Model]] = {}
    for model in report.models:
        trained = model.trained and (model.trained.network, model.trained.params.get("epochs", ""))
        rows.setdefault((model.label, model.temperature, model.teacher, trained), []).append(model)
    return {"models": list(rows.values()), "training": Markup(training(report))} if rows else {}


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
