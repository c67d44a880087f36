"""Images beside what attacks made of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from brittle.attacks.result import AttackResult
from brittle.drawing import text
from brittle.drawing.image_grid import Line, Tile, grid, picture
from brittle.drawing.text import legible
from brittle.study.kinds.attack.result import Attack
from brittle.study.kinds.attack.sizes import NORMS
from brittle.study.kinds.lines import shown_models
from brittle.study.store.results import Report


def shown_attack(report: Report) -> str | None:
    """The last attack that every shown model has results of; else the last that any has.

    One that aims at a class, or is made on other logits than the network's, is only shown where there is no other.
    """
    models = shown_models(report)
    odd = {a.label for model in models for a in model.attacks if a.targeted or a.over_temperature}
    done = [{attack.label for attack in model.attacks if attack.found} for model in models]
    for wanted in (set.intersection, set.union):
        labels = [label for label in report.attacks if done and label in wanted(*done)]
        if labels:
            return [label for label in labels if label not in odd or odd.issuperset(labels)][-1]
    return None


def sample_rows(report: Report, label: str) -> list[int]:
    """One image of each class that all shown models had right before the attack."""
    if report.labels is None:
        return []
    usable = torch.ones(report.rows, dtype=torch.bool)
    for attack in _attacks(report, label).values():
        for found in attack.found.values():
            right = torch.zeros(report.rows, dtype=torch.bool)
            right[attack.rows[~found.trivial]] = True
            usable &= right
    rows = usable.nonzero().flatten()
    return [int(rows[report.labels[rows] == one][0]) for one in report.labels[rows].unique()]


def _attacks(report: Report, label: str) -> dict[str, Attack]:
    """By the label of its model, what is there of an attack."""
    return {m.label: a for m in shown_models(report) for a in m.attacks if a.label == label and a.found}


def adversarial(report: Report, label: str, rows: Sequence[int]) -> str:
    """Each image, and beside it what each model was shown in the end, in float32 and exactly; empty without images."""
    if not rows:
        return ""
    assert report.images is not None
    assert report.labels is not None
    attacks = _attacks(report, label)
    columns = [(title, name) for title, attack in attacks.items() for name in attack.arithmetics]
    lines = []
    for row in rows:
        tiles = [original(report, row)]
        tiles += [_attacked(report, attacks[title], name, row, f"{title}, {name}") for title, name in columns]
        lines.append(Line(tiles))
    return by_model(f"Original images and what {label} made of them", columns, lines)


def original(report: Report, row: int) -> Tile:
    """An image as it is, with its class."""
    assert report.images is not None
    assert report.labels is not None
    name = report.class_name(int(report.labels[row]))
    return Tile(picture(report.images[row]), (legible(name, 13),), strong=True, spoken=f"original, {name}")


def by_model(alternative: str, columns: Sequence[tuple[str, str]], lines: Sequence[Line]) -> str:
    """A grid of originals and, for each model and arithmetic, a column: a header names each model over its columns."""
    heads = [(0, 1, "original", "quiet")]
    first = [place == 0 or columns[place - 1][0] != title for place, (title, _) in enumerate(columns)]
    for place, (title, arithmetic) in enumerate(columns):
        if first[place]:
            several = sum(name == title for name, _ in columns) > 1
            heads.append((place + 1, 0, legible(title, 22 if several else 15), "name"))
        heads.append((place + 1, 1, arithmetic.replace("result", ""), "quiet"))
    return grid(alternative, lines, heads=heads, gaps=[28 if new else 12 for new in [*first, True]])


def _attacked(report: Report, attack: Attack, arithmetic: str, row: int, spoken: str) -> Tile:
    result = attack.result(arithmetic, row, report)
    if result is None:
        return Tile(None, ("not done",), spoken=f"{spoken}: not done")
    before = report.class_name(int(result.labels))
    if not result.success.item():
        return Tile(picture(result.images[0]), ("not fooled",), faded=True, spoken=f"{spoken}: still {before}")
    after, size = report.class_name(int(result.prediction)), sized(result, attack.norm)
    raised, lowered = [], []
    if result.pixels is not None:
        pixels = result.pixels[0][result.pixels[0] >= 0].tolist()
        size = f"{len(pixels)} px"
        levels = result.adversarial[0, 0].flatten()[pixels].tolist()
        for pixel, level in zip(pixels, levels, strict=True):
            (raised if level >= 0.5 else lowered).append(divmod(pixel, result.images.shape[3]))
    became = f"{before} → {after}"
    if len(became) > 14:
        became = f"→ {legible(after, 11)}"
    return Tile(
        picture(result.adversarial[0]),
        (became, size),
        tuple(raised),
        tuple(lowered),
        strong=True,
        spoken=f"{spoken}: {before} → {after}{f', {size}' if size else ''}",
    )


def sized(result: AttackResult, norm: float | None) -> str:
    """'L2 1.17', 'L∞ 0.052', '12 px': the perturbation of a batch of one; empty without a norm to measure it in."""
    if norm is None:
        return ""
    size = float(result.norm(norm).item())
    return f"{size:.0f} px" if norm == 0 else f"{NORMS[norm]} {text.size(size)}"
