"""THE table, for a terminal: each model's accuracy, and what each attack does to it in float32 and exactly."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from brittle.measures import Share
from brittle.report import claims
from brittle.report.contents import BOTH, Attack, Model, Report
from brittle.report.verdicts import bounds, higher, percent, verdict_sentences

WIDE = 4  # attacks that fit side by side in 100 columns; more are listed one below the other
_NOTE = "Below each share, its 95 % interval. One-hot: test images whose float32 softmax is one 1 and zeros."


def table(report: Report) -> Table:
    """One row a model: accuracy, saturation, and success of each attack in float32 -> exact, with 95 % intervals.

    Red: exact is higher than float32, and the intervals do not overlap. Below: what it means, in plain sentences.
    """
    labels = report.attacks
    first, *others = verdict_sentences(report)
    below = "".join(f"\n{line}" for line in [*others, report.unfinished] if line)
    shown = Table(
        title=Text(report.title, style="bold"),
        caption=Text.assemble(("\n" + first, "bold"), below, (f"\n{_NOTE}", "dim")),
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
        shown.add_column(Text("fooled\nfloat32→exact"), justify="right")
    for model in report.models:
        _add(shown, model, labels)
    return shown


def _heading(report: Report, label: str) -> str:
    """What stands below an attack's name: whether it was made in both arithmetics or knows only one."""
    known = [set(a.found) for model in report.models for a in model.attacks if a.label == label]
    return "fooled" if any("result" in names for names in known) else "float32→exact"


def claims_table(report: Report) -> Table | None:
    """One row a claim of the study's paper: its number, ours in both arithmetics, the verdict; None without a paper."""
    if report.paper is None:
        return None
    shown = Table(title=Text("What the paper says", style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    shown.show_edge = False
    for column in ("claim", "published", "float32", "exact", ""):
        shown.add_column(column)
    styles = {"holds": "green", "artefact of float32": "bold red", "does not hold": "yellow", "not tested": "dim"}
    for claim in claims.of(report.paper)(report):
        numbers = ["" if number is None else str(number) for number in (claim.float32, claim.exact)]
        shown.add_row(claim.says, claim.published, *numbers, Text(claim.verdict, style=styles[claim.verdict]))
    return shown


def _add(shown: Table, model: Model, labels: tuple[str, ...]) -> None:
    """One row, or one for each attack where they do not fit side by side."""
    attacks = {attack.label: attack for attack in model.attacks}
    start = [Text(model.title), *_measured(model)]
    cells = [_success(attacks.get(label)) for label in labels]
    if len(labels) <= WIDE:
        shown.add_row(*start, *cells)
        return
    for place, (label, cell) in enumerate(zip(labels, cells, strict=True)):
        shown.add_row(*(start if place == 0 else ["", "", ""]), Text(label), cell)


def _measured(model: Model) -> list[Text]:
    if model.measured is None:
        return [Text("not done", style="dim")] * 2
    return [_share(model.measured.accuracy), _share(model.measured.saturated)]


def _share(share: Share) -> Text:
    return Text.assemble(f"{percent(share)} %", "\n", ("–".join(bounds(share)), "dim"))


def _success(attack: Attack | None) -> Text:
    """'6 → 100 %', its intervals below."""
    if attack is None or not attack.found:
        return Text("not done", style="dim")
    partly = "" if attack.complete else f"\nfirst {len(attack.rows)} rows"
    if not all(name in attack.found for name in BOTH):
        name, found = next(iter(attack.found.items()))
        note = "" if name == "result" else f"{name} "
        return Text.assemble(note, _share(found.success), (partly, "dim"))
    float32, exact = (attack.found[name].success for name in BOTH)
    style = "bold red" if higher(exact, float32) else ""
    intervals = f"{'–'.join(bounds(float32))} → {'–'.join(bounds(exact))}"
    return Text.assemble(
        f"{percent(float32)} → ", (f"{percent(exact)} %", style), "\n", (intervals, "dim"), (partly, "dim")
    )
