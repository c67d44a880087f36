"""Images beside what became of them, and saliency maps: SVG built by hand, each image a PNG inside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from brittle.attacks.result import AttackResult
from brittle.drawing.image_grid import Tile, diverging, grid, legible, picture, scientific
from brittle.models.softmax import SignedLog
from brittle.report.contents import BOTH, Attack, Model, Report
from brittle.report.lineage import chains, plain
from brittle.report.sizes import NORMS, written

MODELS = 4  # side by side on a page
# Which --------------------------------------------------------------------------------------------------------------


def shown_models(report: Report) -> list[Model]:
    """The first models of the first seed; of more, in chains, the plain one and the hottest of some generations."""
    models = [model for model in report.models if model.seed == report.models[0].seed]
    generations = chains(report)
    if len(models) <= MODELS or not generations:
        return models[:MODELS]
    hottest = [
        max((model for model in line.models if model in models), key=lambda model: model.temperature)
        for line in (*generations[: MODELS - 2], generations[-1])
        if any(model in models for model in line.models)
    ]
    return [model for model in models if model.label == plain(report) or model in hottest][:MODELS]


def shown_attack(report: Report) -> str | None:
    """The last attack that every shown model has results of; else the last that any has.

    One that aims at a class, or is made on other logits than the network's, is only shown where there is no other.
    """
    models = shown_models(report) if report.models else []
    odd = {a.label for model in models for a in model.attacks if a.targeted or a.over_temperature}
    done = [{attack.label for attack in model.attacks if attack.found} for model in models]
    for wanted in (set.intersection, set.union):
        labels = [label for label in report.attacks if done and label in wanted(*done)]
        if labels:
            return [label for label in labels if label not in odd or odd.issuperset(labels)][-1]
    return None


def sample_rows(report: Report, label: str) -> list[int]:
    """One row of each class that all shown models had right before the attack."""
    if report.labels is None:
        return []
    usable = torch.ones(report.rows, dtype=torch.bool)
    for attack in _attacks(report, label):
        for found in attack.found.values():
            right = torch.zeros(report.rows, dtype=torch.bool)
            right[attack.rows[~found.trivial]] = True
            usable &= right
    rows = usable.nonzero().flatten()
    return [int(rows[report.labels[rows] == one][0]) for one in report.labels[rows].unique()]


def _attacks(report: Report, label: str) -> list[Attack]:
    return [a for model in shown_models(report) for a in model.attacks if a.label == label and a.found]


# Adversarial images -------------------------------------------------------------------------------------------------


def adversarial(report: Report, label: str, rows: Sequence[int]) -> str:
    """Each row's original, and beside it what each model was shown in the end, in float32 and exactly."""
    assert report.images is not None
    assert report.labels is not None
    attacks = {m.label: a for m in shown_models(report) for a in m.attacks if a.label == label and a.found}
    columns = [(title, name) for title, attack in attacks.items() for name in _arithmetics(attack)]
    lines = []
    for row in rows:
        name = report.class_name(int(report.labels[row]))
        original = Tile(picture(report.images[row]), (legible(name, 13),), strong=True, spoken=f"original, {name}")
        lines.append([original, *(_attacked(report, attacks[t], a, row, f"{t}, {a}") for t, a in columns)])
    return grid(columns, lines, f"Original images and what {label} made of them")


def _arithmetics(attack: Attack) -> list[str]:
    return [name for name in BOTH if name in attack.found] or list(attack.found)


def _attacked(report: Report, attack: Attack, arithmetic: str, row: int, spoken: str) -> Tile:
    result = attack.result(arithmetic, row, report)
    if result is None:
        return Tile(None, ("not done",), spoken=f"{spoken}: not done")
    before = report.class_name(int(result.labels))
    if not result.success.item():
        return Tile(picture(result.images[0]), ("not fooled",), faded=True, spoken=f"{spoken}: still {before}")
    after = report.class_name(int(result.prediction))
    if result.pixels is None:
        size = sized(result, attack.norm)
        raised, lowered = (), ()
    else:
        pixels = result.pixels[0][result.pixels[0] >= 0].tolist()
        size = f"{len(pixels)} px"
        width = result.images.shape[3]
        levels = result.adversarial[0, 0].flatten()[pixels]
        places = [divmod(pixel, width) for pixel in pixels]
        raised = tuple(place for place, level in zip(places, levels, strict=True) if level >= 0.5)
        lowered = tuple(place for place, level in zip(places, levels, strict=True) if level < 0.5)
    became = f"{before} → {after}"
    if len(became) > 14:
        became = f"→ {legible(after, 11)}"
    return Tile(
        picture(result.adversarial[0]),
        (became, size) if size else (became,),
        raised,
        lowered,
        strong=True,
        spoken=f"{spoken}: {before} → {after}{f', {size}' if size else ''}",
    )


def sized(result: AttackResult, norm: float | None) -> str:
    """'L2 1.17', 'L∞ 0.052', '12 px': the perturbation of a batch of one; empty without a norm to measure it in."""
    if norm is None:
        return ""
    size = float(result.norm(norm).item())
    return f"{size:.0f} px" if norm == 0 else f"{NORMS[norm]} {written(size)}"


# Saliency -----------------------------------------------------------------------------------------------------------


def saliency(report: Report, places: Sequence[int]) -> str:
    """dCE/dx of the sample rows at these places: for each model as float32 has it and exactly."""
    assert report.images is not None
    assert report.labels is not None
    shown = [(m.label, m.measured.saliency) for m in shown_models(report) if m.measured and m.measured.saliency]
    columns = [(label, name) for label, _ in shown for name in BOTH]
    lines = []
    for place in places:
        row = int(shown[0][1].rows[place])
        name = report.class_name(int(report.labels[row]))
        line = [Tile(picture(report.images[row]), (legible(name, 13),), strong=True, spoken=f"original, {name}")]
        for label, maps in shown:
            of_float32 = SignedLog.of(maps.float32[place])
            exact = SignedLog(maps.sign[place], maps.log10[place])
            line += [_gradient(of_float32, f"{label}, float32"), _gradient(exact, f"{label}, exact")]
        lines.append(line)
    return grid(columns, lines, "Gradient of the loss with respect to each pixel, by model")


def saliency_rows(report: Report) -> int:
    """How many rows have saliency maps of every shown model."""
    if report.images is None or not report.models:
        return 0
    maps = [model.measured.saliency for model in shown_models(report) if model.measured]
    return min((len(one.rows) for one in maps if one), default=0)


def _gradient(values: SignedLog, spoken: str) -> Tile:
    """Red raises the loss, blue lowers it, white does nothing; scaled by its own largest."""
    top = values.log10.max()
    if top == -torch.inf or top.isnan():  # NaN: in float32, of an image so wrong that its loss is infinite
        words = "not a number" if top.isnan() else "all zeros"
        height, width = values.log10.shape[1:]
        return Tile(np.full((height, width, 3), 250, np.uint8), (words,), strong=True, spoken=f"{spoken}: {words}")
    scaled = values.sign * 10.0 ** (values.log10 - top)
    strongest = scaled.abs().argmax(0, keepdim=True)  # of a pixel's channels
    flat = scaled.gather(0, strongest)[0].numpy()
    lines = (f"mean {scientific(*mean_of(values))}", f"max {scientific(*largest_of(values))}")
    return Tile(diverging(flat), lines, spoken=f"{spoken}: {', '.join(lines)}")


def mean_of(values: SignedLog) -> tuple[int, float]:
    """Sign and log10 of the mean, without underflow."""
    flat = SignedLog(values.sign.flatten(), values.log10.flatten())
    total = flat.sum(0)
    return int(total.sign), float(total.log10) - float(np.log10(flat.sign.numel()))


def largest_of(values: SignedLog) -> tuple[int, float]:
    """Sign and log10 of the largest number, as numpy's max would find it if it could."""
    sign, log10 = values.sign.flatten(), values.log10.flatten()
    if (sign > 0).any():
        return 1, float(log10[sign > 0].max())
    return (0, -np.inf) if (sign == 0).any() else (-1, float(log10.min()))
