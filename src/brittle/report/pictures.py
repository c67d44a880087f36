"""Images beside what became of them, and saliency maps: SVG built by hand, each image a PNG inside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from brittle.attacks.result import AttackResult
from brittle.models.softmax import SignedLog
from brittle.report.contents import BOTH, Attack, Model, Report
from brittle.report.lineage import chains, plain
from brittle.report.sizes import NORMS, written

MODELS = 4  # side by side on a page
_TILE, _NEAR, _FAR, _TOP, _FOOT = 96, 12, 28, 42, 38  # sizes and gaps in px
_RAISED, _LOWERED = "#ff3b30", "#2b9dff"  # outlines of pixels set to 1 and to 0


@dataclass(frozen=True)
class Tile:
    """One image of a grid and what stands below it."""

    image: np.ndarray | None  # (H, W, 3) uint8; None leaves an empty frame
    lines: tuple[str, ...]
    raised: tuple[tuple[int, int], ...] = ()  # (row, column) of outlined pixels
    lowered: tuple[tuple[int, int], ...] = ()
    faded: bool = False
    strong: bool = False  # its first line says the outcome
    spoken: str = ""  # for a tooltip, and for those who cannot see it


def escaped(text: str) -> str:
    """For XML, in text and in attributes; characters that XML forbids are replaced."""
    return escape("".join(c if c.isprintable() else "�" for c in text))


def legible(text: str, length: int = 32) -> str:
    """A name that may be long, cut to fit, and without characters that cannot be shown."""
    text = "".join(c if c.isprintable() else "�" for c in text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def titled(label: str, title: str, length: int) -> str:
    """A model's title, its label cut to fit; the seed stays."""
    return legible(label, length) + title.removeprefix(label)


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
    return _grid(columns, lines, f"Original images and what {label} made of them")


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


def picture(image: Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] -> (H, W, 3) uint8. One or two channels are grey, more than three are cut."""
    levels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return levels[..., :3] if levels.shape[2] >= 3 else levels[..., :1].repeat(3, 2)


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
    return _grid(columns, lines, "Gradient of the loss with respect to each pixel, by model")


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


def scientific(sign: int, log10: float) -> str:
    """'-2.3e-08', '3.1e-143', '0', 'NaN'."""
    if np.isnan(log10):
        return "NaN"
    if sign == 0 or log10 == -np.inf:
        return "0"
    exponent = int(np.floor(log10))
    mantissa = f"{10 ** (log10 - exponent):.1f}"
    if mantissa == "10.0":
        mantissa, exponent = "1.0", exponent + 1
    return f"{'−' if sign < 0 else ''}{mantissa}e{'−' if exponent < 0 else '+'}{abs(exponent):02d}"


def diverging(values: np.ndarray) -> np.ndarray:
    """(H, W) in [-1, 1] -> (H, W, 3) uint8: blue, white, red."""
    white, red, blue = np.array([250.0] * 3), np.array([178.0, 24.0, 43.0]), np.array([33.0, 102.0, 172.0])
    strength = np.abs(values)[..., None]
    return (white + strength * (np.where(values[..., None] > 0, red, blue) - white)).round().astype(np.uint8)


# The grid -----------------------------------------------------------------------------------------------------------


def _grid(columns: Sequence[tuple[str, str]], lines: Sequence[Sequence[Tile]], alternative: str) -> str:
    """A header naming each model over its columns, then a line of tiles for each row."""
    shape = next(tile.image.shape for tile in lines[0] if tile.image is not None)
    high = round(_TILE * shape[0] / shape[1])
    lefts = [0]
    for place, (title, _) in enumerate(columns):
        same = place > 0 and columns[place - 1][0] == title
        lefts.append(lefts[-1] + _TILE + (_NEAR if same else _FAR))
    width, height = lefts[-1] + _TILE, _TOP + len(lines) * (high + _FOOT)
    widths = f"min-width: {round(0.8 * width)}px; max-width: {round(1.22 * width)}px"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escaped(alternative)}" '
        f'class="grid" viewBox="0 0 {width} {height}" style="{widths}">',
        text(0, 32, "original", "quiet"),
    ]
    for place, (title, arithmetic) in enumerate(columns):
        left = lefts[place + 1]
        if place == 0 or columns[place - 1][0] != title:
            wide = sum(name == title for name, _ in columns) > 1
            parts.append(text(left, 13, legible(title, 22 if wide else 15), "name"))
        parts.append(text(left, 32, "" if arithmetic == "result" else arithmetic, "quiet"))
    for number, line in enumerate(lines):
        top = _TOP + number * (high + _FOOT)
        parts += [_tile(tile, left, top, high) for tile, left in zip(line, lefts, strict=True)]
    return "".join([*parts, "</svg>"])


def _tile(tile: Tile, left: int, top: int, high: int) -> str:
    parts = ["<g>", f"<title>{escaped(tile.spoken)}</title>"]
    if tile.image is not None:
        fade = ' opacity="0.3"' if tile.faded else ""
        parts.append(
            f'<image x="{left}" y="{top}" width="{_TILE}" height="{high}" preserveAspectRatio="none"{fade} '
            f'style="image-rendering: pixelated" href="{data_uri(tile.image)}"/>'
        )
        scale = f"translate({left} {top}) scale({_TILE / tile.image.shape[1]:.6g} {high / tile.image.shape[0]:.6g})"
        for places, colour in ((tile.raised, _RAISED), (tile.lowered, _LOWERED)):
            if places:
                squares = "".join(f"M{column} {row}h1v1h-1z" for row, column in places)
                parts.append(
                    f'<path transform="{scale}" d="{squares}" fill="none" stroke="{colour}" stroke-width="1" '
                    'vector-effect="non-scaling-stroke"/>'
                )
    parts.append(f'<rect x="{left}" y="{top}" width="{_TILE}" height="{high}" class="frame"/>')
    for number, line in enumerate(tile.lines):
        style = "strong" if tile.strong and not number else "quiet"
        parts.append(text(left, top + high + 13 + 13 * number, line, style))
    return "".join([*parts, "</g>"])


def text(x: float, y: float, words: str, classes: str) -> str:
    """An SVG text; nothing if there are no words."""
    return f'<text x="{x}" y="{y}" class="{classes}">{escaped(words)}</text>' if words else ""


def data_uri(image: np.ndarray) -> str:
    """(H, W, 3) uint8 as a PNG that needs no file."""
    grey = bool((image == image[..., :1]).all())
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if grey else image).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
