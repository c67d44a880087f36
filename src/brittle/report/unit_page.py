"""The page's sections on units and on additive masks."""

from __future__ import annotations

from typing import Any

from brittle.report import carrying, eta_curves, knockouts, profiles
from brittle.report.contents import Report


def contents(report: Report) -> dict[str, Any]:
    """What `units.html` shows, figures as markup; each part is empty where the study has none."""
    from markupsafe import Markup

    units, carriers, masks = {}, {}, {}
    if knockouts.tables(report):
        figures = {
            "profiles": profiles.profiles(report),
            "networks": profiles.networks(report),
            "maps": profiles.maps(report, slice(1)),
            "more_maps": profiles.maps(report, slice(1, None)),
            "knockout": knockouts.curves(report),
            "by_class": knockouts.by_class(report),
            "moves": knockouts.moves(report),
        }
        units = {
            "figures": {name: Markup(svg) for name, svg in figures.items()},
            "orders": knockouts.legend(report),
            "classes": knockouts.class_colours(report),
            "ranked": profiles.ranked(report),
            "agreement": profiles.sentence(report),
            "spread": carrying.spread(report),
        }
    if carrying.tables(report):
        carriers = {
            "figures": {"curves": Markup(carrying.curves(report))},
            "orders": carrying.orders(report),
            "table": carrying.defence(report),
            "cost": carrying.COST,
        }
    if eta_curves.tables(report):
        figures = {
            "curves": eta_curves.curves(report),
            "examples": eta_curves.examples(report),
            "histograms": eta_curves.histograms(report),
        }
        masks = {"figures": {name: Markup(svg) for name, svg in figures.items()}, "colours": eta_curves.COLOUR}
    return {"units": units, "carriers": carriers, "masks": masks}
