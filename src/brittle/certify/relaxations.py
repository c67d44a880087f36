"""Lines below and above an activation between two ends: CROWN's (Zhang et al. 2018).

Each function takes the ends (B, ...), low <= high, and gives slope below, slope above, constant below, constant above.
What rounding may do to a line is added by `Bent.relaxed`.
"""

from __future__ import annotations

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor, Tensor, Tensor]
_NARROW = 1e-7  # ends nearer than this: a chord's slope would be rounding alone


def relu(low: Tensor, high: Tensor) -> Pair:
    """Above, the chord. Below, 0 or x, whichever leaves the smaller triangle: any slope from 0 to 1 would hold."""
    open_ = (low < 0) & (high > 0)
    chord = high / torch.where(open_, high - low, 1)
    above = torch.where(open_, chord, (low >= 0).double())
    below = torch.where(open_, (high > -low).double(), above)
    return below, above, torch.zeros_like(low), torch.where(open_, -low * chord, 0)


def leaky_relu(low: Tensor, high: Tensor, slope: float) -> Pair:
    """slope x + (1 - slope) relu(x); with a slope above 1 the second part is turned over."""
    below, above, under, over = relu(low, high)
    if slope > 1:
        below, above, under, over = above, below, over, under
    rest = 1 - slope
    return slope + rest * below, slope + rest * above, rest * under, rest * over


def tanh(low: Tensor, high: Tensor) -> Pair:
    """Chords and tangents: below 0 tanh is convex, above it concave, and it is odd."""
    above, over = _above_tanh(low, high)
    below, under = _above_tanh(-high, -low)
    return below, above, -under, over


def _above_tanh(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and constant of a line above tanh.

    A tangent at d >= 0 lies above tanh on [low, high] where it does so at `low`: on the concave side always, on the
    convex side since it does at both of its ends. Where not even the tangent at `high` does, the chord lies above.
    """
    start, end = low.tanh(), high.tanh()
    narrow = high - low < _NARROW
    chord = (end - start) / torch.where(narrow, 1, high - low)

    def clears(d: Tensor) -> Tensor:
        value = d.tanh()
        return value + (1 - value**2) * (low - d) >= start

    near, far = low.clamp(min=0), high.clamp(min=0)
    for _ in range(30):
        middle = (near + far) / 2
        good = clears(middle)
        near, far = torch.where(good, near, middle), torch.where(good, middle, far)
    touch = torch.where(low >= 0, (low + high) / 2, far)
    value = touch.tanh()
    tangent = 1 - value**2
    straight = (high <= 0) | ~clears(touch)
    slope = torch.where(straight, chord, tangent)
    constant = torch.where(straight, start - chord * low, value - tangent * touch)
    return torch.where(narrow, 0, slope), torch.where(narrow, end, constant)
