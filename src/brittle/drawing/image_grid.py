"""Grids of images as SVG built by hand, each image a PNG inside it; names and numbers as text."""

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


def picture(image: Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] -> (H, W, 3) uint8. One or two channels are grey, more than three are cut."""
    levels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return levels[..., :3] if levels.shape[2] >= 3 else levels[..., :1].repeat(3, 2)


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


def grid(columns: Sequence[tuple[str, str]], lines: Sequence[Sequence[Tile]], alternative: str) -> str:
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
