"""THE table: each model's accuracy, and what each attack does to it in float32 and exactly. For pages and terminals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box, console
from rich.table import Table
from rich.text import Text

from brittle.drawing import text
from brittle.measures import Share
from brittle.report.sentences import higher, not_learned, verdict_sentences
from brittle.study.kinds.attack import sizes
from brittle.study.kinds.attack.result import BOTH, Attack
from brittle.study.kinds.attack.sizes import NORMS
from brittle.study.kinds.lines import Group, groups
from brittle.study.store.results import Report

WIDE = 3  # attacks that fit side by side in 80 columns; more are listed one below the other
_NOTE = "Below each number, its 95 % interval. One-hot: test images whose float32 softmax is one 1 and zeros."
_SIZES = " Mean L1, L2, L∞ or pixels: size of the smallest perturbations found, and the share fooled if not all were."


# What it says -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A number of the table, as words."""

    value: str
    low: str = ""
    high: str = ""
    percent: bool = True
    fooled: str = ""  # where it is a size that not all images have
    worse: bool = False  # whether it is clearly less robust than the same in float32
    rows: int = 0  # images so far; 0 if the attack is complete
    missing: str = ""  # why there is no number

    @classmethod
    def of(cls, share: Share, *, worse: bool = False, rows: int = 0) -> Cell:
        """A share in percent."""
        missing = "" if share.total else "none was\nright before"
        return cls(text.percent(share), *text.ends(share), worse=worse, rows=rows, missing=missing)


@dataclass(frozen=True)
class Column:
    """An attack of the table, and what is said of it."""

    label: str
    arithmetics: tuple[str, ...]  # that it has anywhere
    quantity: str  # which way a more robust network differs
    attack: Attack  # one of this label

    @property
    def heads(self) -> list[str]:
        """The arithmetics as words."""
        return [name.replace("result", "") for name in self.arithmetics]


def columns(report: Report) -> list[Column]:
    """The attacks that the table has room for."""
    found = []
    for label in sizes.shown_first(report):
        attacks = report.attacks_of(label)
        one = next((attack for attack in attacks if attack.found), attacks[0])
        names = {name for attack in attacks for name in attack.found}
        ordered = tuple(name for name in (*BOTH, "result") if name in names) or ("result",)
        quantity = "fooled: lower is more robust"
        if one.sized:
            quantity = f"mean smallest {NORMS[one.norm]}: higher is more robust"
        elif one.bounded and one.bound:
            quantity = f"robust accuracy, {sizes.limit(one.bound)}: higher is more robust"
        found.append(Column(label, ordered, quantity, one))
    return found


def cell(group: Group, label: str, name: str) -> Cell | None:
    """Robust accuracy within a budget, the mean smallest perturbation, or the share fooled; None if not done."""
    success = group.success(label, name)
    if success is None:
        return None
    rows = group.rows(label)
    attacks = [attack for attack in group.attacks(label) if name in attack.found]
    robust = group.robust(label, name)
    if robust is None and all(attack.sized for attack in attacks):
        mean = sizes.together([(attack, name) for attack in attacks])
        fooled = "" if success.count == success.total else f"{text.percent(success)} % fooled"
        missing = "" if math.isfinite(mean.value) else "none was\nfooled" if success.total else "none was\nright before"
        return Cell(text.size(mean.value), *text.ends(mean), False, fooled, rows=rows, missing=missing)
    float32 = group.success(label, "float32") if robust is None else group.robust(label, "float32")
    share, worse = success if robust is None else robust, False
    if name == "exact" and float32 is not None:
        worse = higher(share, float32) if robust is None else higher(float32, share)
    return Cell.of(share, worse=worse, rows=rows)


# In a terminal ------------------------------------------------------------------------------------------------------


def table(report: Report) -> console.Group:
    """One row a model, or all its seeds where they are many, with 95 % intervals; what it means stands below.

    Accuracy, saturation, and of each attack what it is reported by: the robust accuracy within its budget, the mean
    size that it minimises, or the share that it fooled, in float32 -> exact where it was made in both. Red: exact is
    less robust than float32, and the intervals do not overlap. Networks that have not learned are named first.
    """
    asked = columns(report)
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    shown.add_column(Text("network"), overflow="fold")
    shown.add_column(Text("accuracy"), justify="right")
    shown.add_column(Text("one-hot\nsoftmax"), justify="right")
    if len(asked) <= WIDE:
        for column in asked:
            shown.add_column(Text("\n".join((column.label, *_heading(column)))), justify="right", overflow="fold")
    else:
        shown.add_column(Text("attack"), overflow="fold")
        shown.add_column(Text("result"), justify="right", no_wrap=True)
    for group in groups(report):
        _add(shown, group, asked)
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


def _heading(column: Column) -> tuple[str, ...]:
    """What stands below an attack's name: what it is reported by, which direction is more robust, the arithmetics."""
    attack = column.attack
    both = ("float32 → exact",) if "result" not in column.arithmetics or not attack.found else ()
    if attack.sized:
        return f"mean {NORMS[attack.norm]},", "higher is", "better"
    if attack.bounded and attack.bound is not None:
        return "accuracy at", f"{sizes.limit(attack.bound)},", "higher is", "better", *both
    return "fooled, lower", "is better", *both


def _add(shown: Table, group: Group, asked: Sequence[Column]) -> None:
    """One row, or one for each attack where they do not fit side by side."""
    start = [Text(group.title), _share(group.accuracy), _share(group.saturated)]
    results = [_result(group, column) for column in asked]
    if len(asked) <= WIDE:
        shown.add_row(*start, *results)
        return
    for place, (column, result) in enumerate(zip(asked, results, strict=True)):
        named = Text.assemble(column.label, "\n", (" ".join(_heading(column)), "dim"))
        shown.add_row(*(start if place == 0 else ["", "", ""]), named, result)


def _share(share: Share | None) -> Text:
    return Text("not done", style="dim") if share is None else _one(Cell.of(share))


def _one(one: Cell) -> Text:
    """'83 %', its interval below, and the share that was fooled if it was not all."""
    if one.missing:
        return Text(one.missing, style="dim")
    below = f"{one.low}–{one.high}" + (f"\n{one.fooled}" if one.fooled else "")
    return Text.assemble(one.value + " %" * one.percent, "\n", (below, "dim"))


def _result(group: Group, column: Column) -> Text:
    """'6 → 100 %', its intervals below."""
    found = [(name, one) for name in column.arithmetics if (one := cell(group, column.label, name)) is not None]
    if not found:
        return Text("not done", style="dim")
    partly = (f"\nfirst {found[0][1].rows} images" if found[0][1].rows else "", "dim")
    if len(found) == 2 and not any(one.missing for _, one in found):
        (_, float32), (_, exact) = found
        intervals = f"{float32.low}–{float32.high} → {exact.low}–{exact.high}"
        value = (f"{exact.value} %", "bold red" if exact.worse else "")
        return Text.assemble(f"{float32.value} → ", value, "\n", (intervals, "dim"), partly)
    name, one = found[0]
    return Text.assemble("" if name == "result" or not one.percent else f"{name} ", _one(one), partly)
