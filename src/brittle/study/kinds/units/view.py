"""The page's section on units: their gradients, knockout, and how widely models spread their work over units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from brittle.drawing.text import over_seeds
from brittle.models.softmax import SignedLog
from brittle.study.kinds.units import knockouts, profiles
from brittle.study.kinds.units.cell import Units
from brittle.units import rank_agreement

if TYPE_CHECKING:
    from brittle.study.store.results import Report


def section(report: Report) -> dict[str, Any]:
    """What section.html shows, figures as markup; empty if no units are done."""
    from markupsafe import Markup

    if not knockouts.tables(report):
        return {}
    figures = {
        "profiles": profiles.profiles(report),
        "networks": profiles.networks(report),
        "maps": profiles.maps(report, slice(1)),
        "more_maps": profiles.maps(report, slice(1, None)),
        "knockout": knockouts.curves(report),
        "by_class": knockouts.by_class(report),
        "moves": knockouts.moves(report),
    }
    return {
        "figures": {name: Markup(svg) for name, svg in figures.items()},
        "orders": knockouts.legend(report),
        "classes": knockouts.class_colours(report),
        "ranked": profiles.ranked(report),
        "agreement": profiles.sentence(report),
        "spread": spread(report),
    }


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
        line["effective"] = over_seeds([effective(units) for _, units in seeds], 1)
        line["alike"] = over_seeds(alike, 2) if alike else "–"
        line |= {kind: over_seeds([units.needed(kind) for _, units in seeds], 1) for kind in ("strongest", "weakest")}
        lines.append(line)
    return lines
