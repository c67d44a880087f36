"""What a study's audits said: the verdicts that its page opens with, their evidence, and a table for a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from brittle.study.kinds.audit import page
from brittle.study.kinds.audit.cell import Audited
from brittle.study.store.results import Model, Report

_LACKING = "This one is not set beside an undefended network."


def all_of(report: Report) -> list[tuple[Model, Audited]]:
    """Each finished audit with its model, in the order of the study."""
    return [(model, one) for model in report.models for one in model.results_of(Audited)]


def section(report: Report) -> dict[str, Any]:
    """What section.html shows of each audit; empty where there is none."""
    about, audits = {"classes": report.classes}, []
    for place, (model, one) in enumerate(all_of(report)):
        title, beside = _title(model, one, report), f" Beside {one.reference}." if one.reference else ""
        shown = page.section(one.record, about, figure=f"audit-{place}", lacking=_LACKING, name=title)
        audits.append(
            {"id": f"audit-{place}", "model": title, "section": shown, "about": page.basis(one.record) + beside}
        )
    return {"audits": audits, "words": page.WORDS} if audits else {}


def table(report: Report) -> Table | None:
    """The verdicts, for a terminal; None without an page."""
    found = all_of(report)
    if not found:
        return None
    said = dict.fromkeys(_asked(one.record) for _, one in found)
    shown = Table(box=None, header_style="bold", caption="\n".join(said), caption_justify="left")
    shown.add_column("audit of", overflow="fold")
    shown.add_column("verdict", min_width=max(map(len, page.WORDS)))
    shown.add_column("cause", overflow="fold")
    for head in ("clean", "baseline\nattack", "all\nattacks", "unde-\nfended"):
        shown.add_column(head, justify="right", min_width=max(map(len, head.split("\n"))))
    for model, one in found:
        record, kind = one.record, one.record["verdict"]["kind"]
        shares = [record["door"]["accuracy"], record["common"], record["left"], record["reference"]]
        causes = ", ".join(record["verdict"]["causes"])
        verdict = f"[{page.COLOURS[kind]}]{kind}[/]"
        shown.add_row(_title(model, one, report), verdict, causes, *(page.percent(share) for share in shares))
    return shown


def _asked(record: page.Record) -> str:
    """What a verdict in the table rests on, the same for most rows."""
    return (
        f"{page.NORMS[record['norm']]}, eps {record['eps']:.4g}: {record['compared']}. {record['left']['total']} test "
        f"images: {record['chosen']}. Budget {record['budget']}."
    )


def _title(model: Model, one: Audited, report: Report) -> str:
    """The model; with the norm and the table where a model has several audits."""
    several = any(len(other.results_of(Audited)) > 1 for other in report.models)
    return f"{model.title}, {one.name}, {page.NORMS[one.record['norm']]}" if several else model.title
