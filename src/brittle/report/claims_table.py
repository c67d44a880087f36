"""What a paper says and what became of it, as a table for a terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from brittle.drawing.text import begun
from brittle.report.claims import Claim
from brittle.report.sentences import stated
from brittle.study.store.results import Report

_STYLES = {"holds": "green", "contradicted": "bold red", "undecided": "yellow", "not judged": "dim"}


def claims_table(report: Report) -> Table | None:
    """One row a claim of the study's paper: the verdict, the claim, its number and ours; None without a paper."""
    rows = stated(report)
    if report.paper is None:
        return None
    shown = Table(title=Text("What the paper says", style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    shown.show_edge = False
    shown.add_column("verdict", no_wrap=True, min_width=max(map(len, _STYLES)))
    shown.add_column("claim", overflow="fold")
    shown.add_column("numbers", overflow="fold")
    for claim in rows:
        shown.add_row(_verdict(claim), _claim(claim), _numbers(claim))
    return shown


def _verdict(claim: Claim) -> Text:
    """The verdict, and that of float32 where it is another."""
    other = claim.in_float32 if claim.in_float32 != claim.verdict else None
    return Text.assemble((claim.verdict, _STYLES[claim.verdict]), (f"\n{other}\nin float32" if other else "", "dim"))


def _claim(claim: Claim) -> Text:
    return Text.assemble(claim.says, (f"\n{begun(claim.lacking)}." if claim.lacking else "", "dim"))


def _numbers(claim: Claim) -> Text:
    names = ("float32", "exact" if claim.float32 else "ours")
    ours = [f"{name}: {number}" for name, number in zip(names, (claim.float32, claim.exact), strict=True) if number]
    return Text("\n".join([f"paper: {claim.published}", *ours]))
