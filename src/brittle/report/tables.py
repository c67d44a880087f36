"""THE table, for a terminal: each model's accuracy, and what each attack does to it in float32 and exactly."""

from __future__ import annotations

import math

from rich import box, console
from rich.table import Table
from rich.text import Text

from brittle.measures import Share
from brittle.report import sizes
from brittle.report.claims import Claim
from brittle.report.contents import BOTH, Attack, Report
from brittle.report.lineage import Group, groups
from brittle.report.sizes import NORMS
from brittle.report.verdicts import begun, bounds, higher, not_learned, percent, stated, verdict_sentences

WIDE = 3  # attacks that fit side by side in 80 columns; more are listed one below the other
_NOTE = "Below each number, its 95 % interval. One-hot: test images whose float32 softmax is one 1 and zeros."
_SIZES = " Mean L1, L2, L∞ or pixels: size of the smallest perturbations found, and the share fooled if not all were."
_STYLES = {"holds": "green", "contradicted": "bold red", "undecided": "yellow", "not judged": "dim"}


def table(report: Report) -> console.Group:
    """One row a model, or all its seeds where they are many, with 95 % intervals; what it means stands below.

    Accuracy, saturation, and of each attack what it is reported by: the robust accuracy within its budget, the mean
    size that it minimises, or the share that it fooled, in float32 -> exact where it was made in both. Red: exact is
    higher than float32, and the intervals do not overlap. Networks that have not learned are named first.
    """
    labels = sizes.shown_first(report)
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    shown.add_column(Text("network"), overflow="fold")
    shown.add_column(Text("accuracy"), justify="right")
    shown.add_column(Text("one-hot\nsoftmax"), justify="right")
    if len(labels) <= WIDE:
        for label in labels:
            shown.add_column(Text("\n".join((label, *_heading(report, label)))), justify="right", overflow="fold")
    else:
        shown.add_column(Text("attack"), overflow="fold")
        shown.add_column(Text("result"), justify="right", no_wrap=True)
    for group in groups(report):
        _add(shown, group, labels, report)
    unlearned = not_learned(report)
    first, *others = [line for line in verdict_sentences(report) if line not in unlearned] or [""]
    note = _NOTE + (_SIZES if sizes.labels(report) else "")
    below = "".join(f"\n{line}" for line in [*others, report.unfinished] if line)
    return console.Group(
        Text(report.title, style="bold"),
        *(Text(line, style="bold red") for line in unlearned),
        shown,
        Text.assemble(("\n" + first, "bold"), below, (f"\n{note}", "dim")),
    )


def _heading(report: Report, label: str) -> tuple[str, ...]:
    """What stands below an attack's name: what it is reported by, which direction is more secure, the arithmetics."""
    attacks = [a for model in report.models for a in model.attacks if a.label == label]
    both = ("float32 → exact",) if all(set(attack.found) <= set(BOTH) for attack in attacks) else ()
    one = next((attack for attack in attacks if attack.found), attacks[0])
    if one.sized and one.minimises is not None:
        return f"mean {NORMS[one.minimises]},", "higher is", "better"
    if one.bounded and one.bound is not None:
        return "accuracy at", f"{sizes.limit(one.bound)},", "higher is", "better", *both
    return "fooled, lower", "is better", *both


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


def _add(shown: Table, group: Group, labels: tuple[str, ...], report: Report) -> None:
    """One row, or one for each attack where they do not fit side by side."""
    start = [Text(group.title), _share(group.accuracy), _share(group.saturated)]
    cells = [_result(group, label) for label in labels]
    if len(labels) <= WIDE:
        shown.add_row(*start, *cells)
        return
    for place, (label, cell) in enumerate(zip(labels, cells, strict=True)):
        named = Text.assemble(label, "\n", (" ".join(_heading(report, label)), "dim"))
        shown.add_row(*(start if place == 0 else ["", "", ""]), named, cell)


def _share(share: Share | None) -> Text:
    if share is None:
        return Text("not done", style="dim")
    if not share.total:
        return Text("none was\nright before", style="dim")
    return Text.assemble(f"{percent(share)} %", "\n", ("–".join(bounds(share)), "dim"))


def _result(group: Group, label: str) -> Text:
    """'6 → 100 %', its intervals below."""
    attacks = group.attacks(label)
    if not attacks:
        return Text("not done", style="dim")
    partly = (f"\nfirst {rows} images" if (rows := group.rows(label)) else "", "dim")
    if all(attack.sized for attack in attacks):
        return Text.assemble(_size(group, label), partly)
    return Text.assemble(_shares(group, attacks, label), partly)


def _shares(group: Group, attacks: list[Attack], label: str) -> Text:
    """Robust accuracy within a budget, else the share fooled; in both arithmetics where there are both."""
    bounded = all(attack.bounded for attack in attacks)
    shares = {name: (group.robust if bounded else group.success)(label, name) for name in attacks[0].found}
    float32, exact = (shares.get(name) for name in BOTH)
    if float32 is None or exact is None or not (float32.total and exact.total):
        name, share = next(iter(shares.items()))
        return Text.assemble("" if name == "result" else f"{name} ", _share(share))
    worse = higher(float32, exact) if bounded else higher(exact, float32)
    intervals = f"{'–'.join(bounds(float32))} → {'–'.join(bounds(exact))}"
    return Text.assemble(
        f"{percent(float32)} → ", (f"{percent(exact)} %", "bold red" if worse else ""), "\n", (intervals, "dim")
    )


def _size(group: Group, label: str) -> Text:
    """'1.17', its interval below, and the share that was fooled if it was not all."""
    found = sizes.of(group.models, label)
    mean, success = sizes.together(found), group.success(label, found[0][1])
    if success is None or not success.total or math.isnan(mean.value):
        return Text("none was\nfooled", style="dim") if success and success.total else _share(success)
    low, high = sizes.bounds(mean)
    fooled = "" if success.count == success.total else f"\n{percent(success)} % fooled"
    return Text.assemble(sizes.written(mean.value), "\n", (f"{low}–{high}{fooled}", "dim"))
