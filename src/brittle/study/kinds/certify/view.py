"""The page's section on brackets: of each image the proved radius and the nearest adversarial image found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import torch
from torch import Tensor

from brittle.certify.bracket import meets
from brittle.drawing.charts import COLOURS, INK, STYLE, svg_of, titled
from brittle.measures import Share, share
from brittle.study.kinds.certify.cell import Bracketed

if TYPE_CHECKING:
    from brittle.study.store.results import Report

WORDS = {"linf": "L∞", "l2": "L2", "l1": "L1"}
COLOUR = {"proved": COLOURS[2], "found": COLOURS[1]}


@dataclass(frozen=True)
class Line:
    """The brackets of a model in one table, those of all its cells that are done."""

    model: str
    norm: str
    method: str
    proved: Tensor
    found: Tensor
    correct: Tensor

    @property
    def meets(self) -> Tensor:
        """(B,) bool, as `Bracket.meets` has it."""
        return meets(self.proved, self.found)

    def proved_at(self, eps: float) -> Share:
        """The share of all images that nothing within eps fools, as is proved."""
        return share(self.correct & (self.proved >= eps))

    def survived_at(self, eps: float) -> Share:
        """The share of all images that nothing found within eps fools."""
        return share(self.correct & (self.found > eps))


def lines(report: Report) -> list[Line]:
    """A line for each model, seed and table, with the images of all its cells that are done."""
    found = []
    for model in report.models:
        tables: dict[str, list[Bracketed]] = {}
        for one in model.results_of(Bracketed):
            tables.setdefault(one.name, []).append(one)
        for name, parts in tables.items():
            label = model.title if len(tables) == 1 else f"{model.title}, {name}"
            ends = (torch.cat([getattr(one, end) for one in parts]) for end in ("proved", "found", "correct"))
            found.append(Line(label, parts[0].norm, parts[0].method, *ends))
    return found


def table(report: Report) -> list[dict[str, str]]:
    """A line of words for each of `lines`."""
    rows = []
    for line in lines(report):
        right = line.correct
        middle = {name: f"{float(getattr(line, name)[right].median()):.4g}" if right.any() else "" for name in COLOUR}
        rows.append(
            {
                "model": line.model,
                "norm": WORDS[line.norm],
                "method": line.method,
                "right": f"{int(right.sum())} of {len(right)}",
                "meets": f"{int(line.meets[right].sum())}",
                **{name: value.replace("inf", "none found") for name, value in middle.items()},
            }
        )
    return rows


def pictures(report: Report) -> str:
    """Both ends of each image that is right, sorted by the nearest adversarial image found; empty if none is done."""
    drawn = [line for line in lines(report) if line.correct.any()]
    if not drawn:
        return ""
    with matplotlib.rc_context(STYLE):
        figure, panels = titled([line.model for line in drawn], 2.5, 0.4)
        for axes, line in zip(panels, drawn, strict=True):
            right = line.correct
            found, order = line.found[right].sort()
            proved = line.proved[right][order]
            known = found.isfinite()
            top = float(torch.cat([found[known], proved]).max())
            places = torch.arange(len(found))
            upper = torch.where(known, found, 1.08 * top)
            axes.vlines(places, proved, upper, color=INK, alpha=0.25, linewidth=max(0.6, min(3, 150 / len(found))))
            axes.plot(places[known], found[known], ".", color=COLOUR["found"], markersize=3)
            axes.plot(places[~known], upper[~known], "^", color=COLOUR["found"], markersize=3)
            axes.plot(places, proved, ".", color=COLOUR["proved"], markersize=3)
            axes.set(xlabel="images, sorted", ylim=(0, 1.14 * top or 1))
            axes.set_ylabel(f"{WORDS[line.norm]} distance")
        return svg_of(figure, "brackets", "Of each image the proved radius and the nearest adversarial image found")


def curves(report: Report) -> str:
    """The share of images that is proved, and that survived, against eps; empty if none is done."""
    drawn = lines(report)
    if not drawn:
        return ""
    with matplotlib.rc_context(STYLE):
        figure, panels = titled([line.model for line in drawn], 2.3, 0.4, beside="images, %")
        for axes, line in zip(panels, drawn, strict=True):
            ends = torch.cat([line.proved, line.found])
            top = float(ends[ends.isfinite()].max()) * 1.05 or 1.0
            at = torch.linspace(0, top, 120, dtype=torch.float64).tolist()
            proved, survived = ([100 * of(eps).value for eps in at] for of in (line.proved_at, line.survived_at))
            axes.fill_between(at, proved, survived, color=INK, alpha=0.08, linewidth=0)
            axes.plot(at, proved, color=COLOUR["proved"])
            axes.plot(at, survived, color=COLOUR["found"])
            axes.set(xlabel=f"ε, {WORDS[line.norm]}", ylim=(-2, 102), xlim=(0, top))
        return svg_of(figure, "shares", "Share of images that is proved and that survived, against eps")


def section(report: Report) -> dict[str, Any]:
    """What section.html shows; empty if no brackets are done."""
    from markupsafe import Markup

    if not lines(report):
        return {}
    figures = {"pictures": Markup(pictures(report)), "curves": Markup(curves(report))}
    return {"figures": figures, "table": table(report), "colours": COLOUR}
