"""Original class by target class, as Carlini and Wagner show their targeted attacks (2017, figures 3 to 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from brittle.drawing import text
from brittle.drawing.image_grid import Line, Tile, grid, picture
from brittle.drawing.text import legible
from brittle.study.kinds.attack.result import Attack
from brittle.study.kinds.attack.sizes import NORMS
from brittle.study.store.results import Model, Report

CLASSES = 10  # more do not fit side by side: ten tiles and the names beside them are 942 px wide


@dataclass(frozen=True)
class Matrix:
    """The images of one targeted attack on one model: one of the report for each original class."""

    model: Model
    attack: Attack
    arithmetic: str
    classes: tuple[int, ...]  # down and across
    rows: Mapping[int, int]  # by original class; a class without an image is missing


def matrices(report: Report) -> list[Matrix]:
    """One for each targeted attack, on the first model of the first seed that has results of it."""
    if report.images is None or report.labels is None:
        return []
    found = []
    for label in report.attacks:
        attacked = [(model, a) for model in report.models for a in model.attacks if a.label == label and a.targeted]
        if attacked:
            first = min(attacked, key=lambda one: one[0].seed != report.models[0].seed)
            found.append(_matrix(report, *first))
    return found


def _matrix(report: Report, model: Model, attack: Attack) -> Matrix:
    assert report.labels is not None
    found = attack.found[attack.last]
    wrong = set(attack.rows[found.trivial].tolist())
    rows: dict[int, int] = {}
    for row in attack.rows.tolist():
        one = int(report.labels[row])
        if one not in rows or (rows[one] in wrong and row not in wrong):
            rows[one] = row
    targets = {int(one) for one in found.packed["targets"]}
    return Matrix(model, attack, attack.last, tuple(sorted(targets | set(rows)))[:CLASSES], rows)


def drawn(report: Report, matrix: Matrix) -> str:
    """An <svg>: original class down, target class across, the original itself on the diagonal.

    Below each image the size of its perturbation, where the attack has a norm; faded where the attack failed and the
    original is shown.
    """
    names = {one: legible(report.class_name(one), 11) for one in matrix.classes}
    heads = [(-1, 1, "original", "quiet"), (0, 0, "made into", "quiet")]
    heads += [(place, 1, name, "strong") for place, name in enumerate(names.values())]
    lines = [
        Line([_tile(report, matrix, one, target) for target in matrix.classes], name)
        for one, name in names.items()
        if one in matrix.rows
    ]
    words = f"Images of each class made into each other by {matrix.attack.label} on {matrix.model.title}"
    return grid(words, lines, heads=heads, tile=78, gap=10, left=72, foot=24, fit=(0.8, 1.1))


def _tile(report: Report, matrix: Matrix, one: int, target: int) -> Tile:
    assert report.images is not None
    row, attack = matrix.rows[one], matrix.attack
    names = report.class_name(one), report.class_name(target)
    if target == one:
        return Tile(picture(report.images[row]), spoken=f"original, {names[0]}", frame="frame own")
    result = attack.result(matrix.arithmetic, row, report, target)
    if result is None:
        return Tile(None, ("not done",), frame="")
    if not result.success.item():
        spoken = f"{names[0]} could not be made into {names[1]}"
        return Tile(picture(report.images[row]), ("failed",), faded=True, spoken=spoken)
    below, spoken = "", f"{names[0]} made into {names[1]}"
    if attack.norm is not None:
        size = float(result.norm(attack.norm).item())
        below = f"{size:.0f}" if attack.norm == 0 else text.size(size)
        spoken = f"{spoken}, {NORMS[attack.norm]} {below}"
    return Tile(picture(result.adversarial[0]), (below,), spoken=spoken)
