"""The page's section on gradients, sensitivity and confidence."""

from __future__ import annotations

from typing import Any

from brittle.study.kinds.attack import chains
from brittle.study.kinds.colours import line_colours
from brittle.study.kinds.lines import shown_models
from brittle.study.kinds.measure import figures
from brittle.study.kinds.measure.gradients import splits
from brittle.study.kinds.measure.samples import samples
from brittle.study.store.results import Report

_FIRST = 4  # rows of images shown at once; the others are folded away


def section(report: Report) -> dict[str, Any]:
    """What section.html shows, figures as markup; empty if no model is measured."""
    from markupsafe import Markup

    measured = [model for model in report.models if model.measured]
    if not measured:
        return {}
    maps = list(range(figures.saliency_rows(report)))
    drawn = {
        "networks": chains.networks(report),
        "amplitudes": figures.amplitudes(report),
        "saliency": figures.saliency(report, maps[:_FIRST]),
        "more_saliency": figures.saliency(report, maps[_FIRST:]),
    }
    compared = len(report.models) > 1 or any(model.temperature != 1 for model in report.models)
    attacks = [attack for model in report.models for attack in model.attacks]
    return {
        "figures": {name: Markup(svg) for name, svg in drawn.items()},
        "generations": line_colours(report),
        "drawn": len(figures.histogrammed(report)),
        "more": len(maps[_FIRST:]),
        "gradients": splits(report) if compared else [],  # one network that is used as it was trained has only one
        "samples": [sample for sample in samples(report) if sample.model in shown_models(report)],
        "pixel_attacks": list(dict.fromkeys(a.label for a in attacks if any(one.flips for one in a.found.values()))),
        "models": measured,
    }
