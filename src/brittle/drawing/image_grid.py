"""Grids of images as SVG, each image a PNG inside it, with words above, beside and below."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from brittle.drawing.text import escaped

_RAISED, _LOWERED = "#ff3b30", "#2b9dff"  # outlines of pixels set to 1 and to 0


@dataclass(frozen=True)
class Tile:
    """One image of a grid and what stands below it."""

    image: np.ndarray | None  # (H, W, 3) uint8; None leaves it empty
    lines: tuple[str, ...] = ()
    raised: tuple[tuple[int, int], ...] = ()  # (row, column) of outlined pixels
    lowered: tuple[tuple[int, int], ...] = ()
    faded: bool = False
    strong: bool = False  # its first line says the outcome
    spoken: str = ""  # for a tooltip, and for those who cannot see it
    frame: str = "frame"  # class of the line around it; none if empty
    drawn: str = ""  # SVG in place of an image, from (0, 0) on
    high: int = 0  # px, of what is drawn


@dataclass(frozen=True)
class Line:
    """A line of tiles, and words beside and above it."""

    tiles: Sequence[Tile]
    name: str = ""  # in the margin on the left
    heads: Sequence[str] = ()  # over each tile; the first stands out


def picture(image: Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] -> (H, W, 3) uint8. One or two channels are grey, more than three are cut."""
    levels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return levels[..., :3] if levels.shape[2] >= 3 else levels[..., :1].repeat(3, 2)


def diverging(values: np.ndarray) -> np.ndarray:
    """(H, W) in [-1, 1] -> (H, W, 3) uint8: blue, white, red."""
    white, red, blue = np.array([250.0] * 3), np.array([178.0, 24.0, 43.0]), np.array([33.0, 102.0, 172.0])
    strength = np.abs(values)[..., None]
    return (white + strength * (np.where(values[..., None] > 0, red, blue) - white)).round().astype(np.uint8)


def data_uri(image: np.ndarray) -> str:
    """(H, W, 3) uint8 as a PNG that needs no file."""
    grey = bool((image == image[..., :1]).all())
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if grey else image).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def grid(
    alternative: str,
    lines: Sequence[Line],
    *,
    heads: Sequence[tuple[int, int, str, str]] = (),
    tile: int = 96,
    gap: int = 12,
    widths: Sequence[int] = (),
    gaps: Sequence[int] = (),
    left: int = 0,
    foot: int = 38,
    fit: tuple[float, float] = (0.8, 1.22),
) -> str:
    """Tiles in columns, as an <svg>.

    Args:
        alternative: what it shows, for those who cannot see it.
        lines: from top to bottom.
        heads: words at the top, as column (-1: the margin), line (0 or 1), text and class.
        tile, gap: px of a column and of what lies between two, where `widths` and `gaps` do not list them.
        left: px of the margin, in which the lines' names stand.
        foot: px for the words below a tile.
        fit: how much narrower and wider than drawn it may be shown.
    """
    columns = max(len(line.tiles) for line in lines)
    widths, gaps = widths or [tile] * columns, gaps or [gap] * columns
    lefts = [*accumulate(map(sum, zip(widths, gaps, strict=True)), initial=left)]
    top = max((20 + 22 * row for _, row, _, _ in heads), default=0)
    parts = [text(lefts[at] if at >= 0 else 0, 13 + 19 * row, words, kind) for at, row, words, kind in heads]
    for line in lines:
        if line.heads:
            kinds = ["strong"] + ["quiet"] * len(line.heads)
            parts += [text(x, top + 13, words, kind) for x, words, kind in zip(lefts, line.heads, kinds, strict=False)]
            top += 20
        sizes = [_height(one, wide) for one, wide in zip(line.tiles, widths, strict=False)]
        high = max(sizes) or tile
        parts.append(text(0, top + high // 2, line.name, "strong"))
        for one, x, wide, own in zip(line.tiles, lefts, widths, sizes, strict=False):
            parts.append(_tile(one, x, top, wide, own or high))
        top += high + foot
    across = lefts[-1] - gaps[-1]
    narrow, wide = (round(factor * across) for factor in fit)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escaped(alternative)}" class="grid" '
        f'viewBox="0 0 {across} {top}" style="min-width: {narrow}px; max-width: {wide}px">{"".join(parts)}</svg>'
    )


def _height(tile: Tile, wide: int) -> int:
    """Of a tile as its image's shape has it; 0 if it has no image."""
    return tile.high if tile.image is None else round(wide * tile.image.shape[0] / tile.image.shape[1])


def _tile(tile: Tile, left: int, top: int, wide: int, high: int) -> str:
    place = f'x="{left}" y="{top}" width="{wide}" height="{high}"'
    parts = [f"<title>{escaped(tile.spoken)}</title>"] if tile.spoken else []
    if tile.drawn:
        parts.append(f'<g transform="translate({left} {top})">{tile.drawn}</g>')
    if tile.image is not None:
        fade = ' opacity="0.3"' if tile.faded else ""
        style = 'preserveAspectRatio="none" style="image-rendering: pixelated"'
        parts.append(f'<image {place} {style}{fade} href="{data_uri(tile.image)}"/>')
        scale = f"translate({left} {top}) scale({wide / tile.image.shape[1]:.6g} {high / tile.image.shape[0]:.6g})"
        for places, colour in ((tile.raised, _RAISED), (tile.lowered, _LOWERED)):
            if places:
                squares = "".join(f"M{column} {row}h1v1h-1z" for row, column in places)
                parts.append(
                    f'<path transform="{scale}" d="{squares}" fill="none" stroke="{colour}" stroke-width="1" '
                    'vector-effect="non-scaling-stroke"/>'
                )
    if tile.frame:
        parts.append(f'<rect {place} class="{tile.frame}"/>')
    for number, line in enumerate(tile.lines):
        kind = "strong" if tile.strong and not number else "quiet"
        parts.append(text(left, top + high + 13 * (number + 1), line, kind))
    return f"<g>{''.join(parts)}</g>"


def text(x: float, y: float, words: str, kind: str) -> str:
    """An SVG text of a class; nothing if there are no words."""
    return f'<text x="{x}" y="{y}" class="{kind}">{escaped(words)}</text>' if words else ""
