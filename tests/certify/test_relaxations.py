"""Lines below and above every activation hold at every point between the ends, and a change of any of them is seen."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from brittle.certify import relaxations
from brittle.certify.operations import Bent, Lines, MaxPool

LEAKY = nn.functional.leaky_relu
BENT = {
    "relu": (torch.relu, relaxations.relu, True),
    "leaky relu": (partial(LEAKY, negative_slope=0.1), partial(relaxations.leaky_relu, slope=0.1), True),
    "steep leaky relu": (partial(LEAKY, negative_slope=1.7), partial(relaxations.leaky_relu, slope=1.7), True),
    "tanh": (torch.tanh, relaxations.tanh, False),
}
POOL = MaxPool((0,), (1, 1, 1), "pool", (2, 2), (2, 2), (0, 0), (1, 1))


def ends(rows: int = 400, values: int = 1) -> tuple[Tensor, Tensor]:
    """Ends on one side of 0, on both, next to each other, far apart and of 0 itself."""
    generator = torch.Generator().manual_seed(0)
    middle = torch.randn(rows, values, generator=generator, dtype=torch.float64) * 2
    width = torch.rand(rows, values, generator=generator, dtype=torch.float64) ** 3 * 6
    width[:20] = 0
    width[20:40] = 1e-9
    low, high = middle - width / 2, middle + width / 2
    low[40:60], high[60:80] = 0, 0
    return torch.minimum(low, high), torch.maximum(low, high)


def off(name: str, lines: Lines, low: Tensor, high: Tensor) -> float:
    """By how much a line crosses the function somewhere between the ends, at most; below 0 if none does."""
    share = torch.linspace(0, 1, 41, dtype=torch.float64)
    if name == "max pool":
        generator = torch.Generator().manual_seed(1)
        share = torch.rand(len(low), 300, 4, generator=generator, dtype=torch.float64)
        share[:, :150] = share[:, :150].round()
        points = low[:, None] + share * (high - low)[:, None]
        values = points.amax(2)
        under, over = ((points * slopes.view(4, -1).T[:, None]).sum(2) for slopes in (lines.low, lines.high))
    else:
        points = low + share * (high - low)
        values = BENT[name][0](points)
        under, over = lines.low[0] * points, lines.high[0] * points
    below, above = shift(lines).view(-1, 1), lines.above.view(-1, 1)
    return max(float((under + below - values).max()), float((values - over - above).max()))


def shift(lines: Lines) -> Tensor:
    """The constants of the lines below."""
    return torch.zeros_like(lines.above) if lines.below is None else lines.below


def relaxed(name: str) -> tuple[Lines, Tensor, Tensor]:
    """The lines of an activation between `ends`."""
    if name == "max pool":
        low, high = ends(values=4)
        return POOL.relaxed(low.view(-1, 1, 2, 2), high.view(-1, 1, 2, 2)), low, high
    function, lines, kinks = BENT[name]
    low, high = ends()
    return Bent((0,), (1,), name, function, lines, kinks).relaxed(low, high), low, high


CHANGES = {
    "slope below, steeper": lambda lines: replace(lines, low=lines.low * 1.05 + 0.01),
    "slope below, flatter": lambda lines: replace(lines, low=lines.low * 0.95 - 0.01),
    "slope above, steeper": lambda lines: replace(lines, high=lines.high * 1.05 + 0.01),
    "slope above, flatter": lambda lines: replace(lines, high=lines.high * 0.95 - 0.01),
    "constant below": lambda lines: replace(lines, below=shift(lines) + 1e-6),
    "constant above": lambda lines: replace(lines, above=lines.above - 1e-6),
    "wrong sides": lambda lines: replace(lines, low=lines.high, high=lines.low, below=lines.above, above=shift(lines)),
}


@pytest.mark.parametrize("name", [*BENT, "max pool"])
def test_lines_hold_between_their_ends_and_every_change_of_them_is_seen(name):
    lines, low, high = relaxed(name)
    assert off(name, lines, low, high) <= 0
    for change in CHANGES.values():
        assert off(name, change(lines), low, high) > 1e-7


@pytest.mark.parametrize("name", [*BENT, "max pool"])
def test_where_the_ends_are_one_so_are_the_lines(name):
    lines, low, high = relaxed(name)
    narrow = (high - low).amax(1) < 1e-12
    at = low[narrow]
    under, over = ((at * slopes.view(len(slopes), -1).T[narrow]).sum(1) for slopes in (lines.low, lines.high))
    gap = over + lines.above.flatten()[narrow] - under - shift(lines).flatten()[narrow]
    assert gap.abs().max() < 1e-12
