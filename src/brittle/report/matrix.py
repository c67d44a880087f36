"""Original class by target class, as Carlini and Wagner show their targeted attacks (2017, figures 3 to 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from brittle.drawing.image_grid import data_uri, escaped, legible, picture, text
from brittle.report.contents import Attack, Model, Report
from brittle.report.sizes import NORMS, written

CLASSES = 10  # more do not fit side by side
_TILE, _GAP, _LEFT, _TOP, _FOOT = 78, 10, 72, 40, 24  # px: ten tiles and the names beside them are 952 wide


@dataclass(frozen=True)
class Matrix:
    """The images of one targeted attack on one model: one row of the report for each original class."""

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
    arithmetic = "exact" if "exact" in attack.found else list(attack.found)[-1]
    found = attack.found[arithmetic]
    wrong = set(attack.rows[found.trivial].tolist())
    rows: dict[int, int] = {}
    for row in attack.rows.tolist():
        one = int(report.labels[row])
        if one not in rows or (rows[one] in wrong and row not in wrong):
            rows[one] = row
    targets = {int(one) for one in found.packed["targets"]}
    return Matrix(model, attack, arithmetic, tuple(sorted(targets | set(rows)))[:CLASSES], rows)


def drawn(report: Report, matrix: Matrix) -> str:
    """An <svg>: original class down, target class across, the original itself on the diagonal.

    Below each image the size of its perturbation, where the attack has a norm; faded where the attack failed and the
    original is shown.
    """
    assert report.images is not None
    height, width = report.images.shape[2:]
    high = round(_TILE * height / width)
    names = [legible(report.class_name(one), 11) for one in matrix.classes]
    down = [one for one in matrix.classes if one in matrix.rows]
    across = _LEFT + len(names) * (_TILE + _GAP)
    words = f"Images of each class made into each other by {matrix.attack.label} on {matrix.model.title}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escaped(words)}" class="grid" '
        f'viewBox="0 0 {across} {_TOP + len(down) * (high + _FOOT)}" '
        f'style="min-width: {round(0.8 * across)}px; max-width: {round(1.1 * across)}px">',
        text(0, 32, "original", "quiet"),
        text(_LEFT, 13, "made into", "quiet"),
    ]
    parts += [text(_LEFT + place * (_TILE + _GAP), 32, name, "strong") for place, name in enumerate(names)]
    for place, one in enumerate(down):
        top = _TOP + place * (high + _FOOT)
        parts.append(text(0, top + high // 2, legible(report.class_name(one), 11), "strong"))
        for number, target in enumerate(matrix.classes):
            parts.append(_tile(report, matrix, one, target, _LEFT + number * (_TILE + _GAP), top, high))
    return "".join([*parts, "</svg>"])


def _tile(report: Report, matrix: Matrix, one: int, target: int, left: int, top: int, high: int) -> str:
    assert report.images is not None
    row = matrix.rows[one]
    names = report.class_name(one), report.class_name(target)
    image, below, spoken, fade = report.images[row], "", f"original, {names[0]}", ""
    if target != one:
        result = matrix.attack.result(matrix.arithmetic, row, report, target)
        if result is None:
            return text(left, top + high + 13, "not done", "quiet")
        if result.success.item():
            norm = matrix.attack.norm
            image, spoken = result.adversarial[0], f"{names[0]} made into {names[1]}"
            if norm is not None:
                size = float(result.norm(norm).item())
                below = f"{size:.0f}" if norm == 0 else written(size)
                spoken = f"{spoken}, {NORMS[norm]} {below}"
        else:
            below, fade, spoken = "failed", ' opacity="0.3"', f"{names[0]} could not be made into {names[1]}"
    frame = "frame own" if target == one else "frame"
    place = f'x="{left}" y="{top}" width="{_TILE}" height="{high}"'
    return (
        f'<g><title>{escaped(spoken)}</title><image {place} preserveAspectRatio="none"{fade} '
        f'style="image-rendering: pixelated" href="{data_uri(picture(image))}"/><rect {place} class="{frame}"/>'
        f"{text(left, top + high + 13, below, 'quiet')}</g>"
    )
