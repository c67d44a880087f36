"""THE table, for a terminal: each model's accuracy, and what each attack does to it in float32 and exactly."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from brittle.measures import Share
from brittle.report import sizes
from brittle.report.contents import BOTH, Report
from brittle.report.lineage import Group, groups
from brittle.report.sizes import NORMS
from brittle.report.verdicts import bounds, higher, percent, stated, verdict_sentences

WIDE = 4  # attacks that fit side by side in 100 columns; more are listed one below the other
_NOTE = "Below each share, its 95 % interval. One-hot: test images whose float32 softmax is one 1 and zeros."
_SIZES = " In L2, L∞ or pixels: mean smallest change that fooled an image, and the share fooled if not all were."


def table(report: Report) -> Table:
    """One row a model, or all its seeds where they are many, with 95 % intervals.

    Accuracy, saturation, and of each attack its success in float32 -> exact, or the mean size of the smallest change.
    Red: exact is higher than float32, and the intervals do not overlap. Below: what it means, in plain sentences.
    """
    labels = sizes.shown_first(report)
    note = _NOTE + (_SIZES if sizes.labels(report) else "")
    first, *others = verdict_sentences(report)
    below = "".join(f"\n{line}" for line in [*others, report.unfinished] if line)
    shown = Table(
        title=Text(report.title, style="bold"),
        caption=Text.assemble(("\n" + first, "bold"), below, (f"\n{note}", "dim")),
        caption_justify="left",
        caption_style="",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    shown.add_column(Text("model"))
    shown.add_column(Text("accuracy"), justify="right")
    shown.add_column(Text("one-hot\nsoftmax"), justify="right")
    if len(labels) <= WIDE:
        for label in labels:
            shown.add_column(Text(f"{label}\n{_heading(report, label)}"), justify="right")
    else:
        shown.add_column(Text("attack"))
        some = "fooled, or\nmean size" if sizes.labels(report) else "fooled\nfloat32→exact"
        shown.add_column(Text(some), justify="right")
    for group in groups(report):
        _add(shown, group, labels, report)
    return shown


def _heading(report: Report, label: str) -> str:
    """What stands below an attack's name: a norm, or whether it was made in both arithmetics or knows only one."""
    attacks = [a for model in report.models for a in model.attacks if a.label == label]
    if any(attack.sized for attack in attacks):
        return f"mean {NORMS[attacks[0].norm]}"
    known = [set(attack.found) for attack in attacks]
    return "fooled" if any("result" in names for names in known) else "float32→exact"


def claims_table(report: Report) -> Table | None:
    """One row a claim of the study's paper: its number, ours in both arithmetics, the verdict; None without a paper."""
    rows = stated(report)
    if report.paper is None:
        return None
    shown = Table(title=Text("What the paper says", style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    shown.show_edge = False
    shown.add_column("claim", min_width=30)
    for column in ("published", "float32", "exact", ""):
        shown.add_column(column)
    styles = {"holds": "green", "artefact of float32": "bold red", "does not hold": "yellow", "not tested": "dim"}
    for claim in rows:
        numbers = ["" if number is None else str(number) for number in (claim.float32, claim.exact)]
        shown.add_row(claim.says, claim.published, *numbers, Text(claim.verdict, style=styles[claim.verdict]))
    return shown


def _add(shown: Table, group: Group, labels: tuple[str, ...], report: Report) -> None:
    """One row, or one for each attack where they do not fit side by side."""
    start = [Text(group.title), _share(group.accuracy), _share(group.saturated)]
    cells = [_success(group, label) for label in labels]
    if len(labels) <= WIDE:
        shown.add_row(*start, *cells)
        return
    for place, (label, cell) in enumerate(zip(labels, cells, strict=True)):
        heading = _heading(report, label)
        norm = heading.removeprefix("mean") if heading.startswith("mean") else ""
        shown.add_row(*(start if place == 0 else ["", "", ""]), Text(label + norm), cell)


def _share(share: Share | None) -> Text:
    if share is None:
        return Text("not done", style="dim")
    return Text.assemble(f"{percent(share)} %", "\n", ("–".join(bounds(share)), "dim"))


def _success(group: Group, label: str) -> Text:
    """'6 → 100 %', its intervals below."""
    attacks = group.attacks(label)
    if not attacks:
        return Text("not done", style="dim")
    partly = f"\nfirst {group.rows(label)} rows" if group.rows(label) else ""
    if all(attack.sized for attack in attacks):
        return _size(group, label, partly)
    shares = {name: group.success(label, name) for name in attacks[0].found}
    float32, exact = (shares.get(name) for name in BOTH)
    if float32 is None or exact is None:
        name, share = next(iter(shares.items()))
        return Text.assemble("" if name == "result" else f"{name} ", _share(share), (partly, "dim"))
    style = "bold red" if higher(exact, float32) else ""
    intervals = f"{'–'.join(bounds(float32))} → {'–'.join(bounds(exact))}"
    return Text.assemble(
        f"{percent(float32)} → ", (f"{percent(exact)} %", style), "\n", (intervals, "dim"), (partly, "dim")
    )


def _size(group: Group, label: str, partly: str) -> Text:
    """'1.17', its interval below, and the share that was fooled if it was not all."""
    found = sizes.of(group.models, label)
    mean, success = sizes.together(found), group.success(label, found[0][1])
    low, high = sizes.bounds(mean)
    fooled = "" if success is None or success.count == success.total else f"\n{percent(success)} % fooled"
    return Text.assemble(sizes.written(mean.value), "\n", (f"{low}–{high}{fooled}{partly}", "dim"))
