"""What a study's audits said: the verdicts that its page opens with, their evidence, and a table for a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from brittle.report import audit
from brittle.report.contents import Audited, Model, Report

_LACKING = "This one is not set beside an undefended network."


def all_of(report: Report) -> list[tuple[Model, Audited]]:
    """Each finished audit with its model, in the order of the study."""
    return [(model, one) for model in report.models for one in model.audits]


def contents(report: Report) -> list[dict[str, Any]]:
    """What the page shows of each audit; empty where there is none."""
    about = {"classes": report.classes}
    return [
        {
            "id": f"audit-{place}",
            "model": _title(model, one, report),
            "section": audit.section(one.record, about, figure=f"audit-{place}", lacking=_LACKING),
            "about": f"The first {one.record['left']['total']} test images, budget {one.record['budget']}"
            + (f", beside {one.reference}." if one.reference else "."),
        }
        for place, (model, one) in enumerate(all_of(report))
    ]


def table(report: Report) -> Table | None:
    """The verdicts, for a terminal; None without an audit."""
    found = all_of(report)
    if not found:
        return None
    shown = Table("audit of", "verdict", "cause", box=None, header_style="bold")
    for head in ("clean", "common attack", "everything", "undefended"):
        shown.add_column(head, justify="right")
    for model, one in found:
        record, kind = one.record, one.record["verdict"]["kind"]
        shares = [record["door"]["accuracy"], record["common"], record["left"], record["reference"]]
        causes = ", ".join(record["verdict"]["causes"])
        verdict = f"[{audit.COLOURS[kind]}]{kind}[/]"
        shown.add_row(_title(model, one, report), verdict, causes, *(audit.percent(share) for share in shares))
    return shown


def _title(model: Model, one: Audited, report: Report) -> str:
    """The model; with the norm and the table where a model has several audits."""
    several = any(len(other.audits) > 1 for other in report.models)
    return f"{model.title}, {one.name}, {audit.NORMS[one.record['norm']]}" if several else model.title
