"""Balls in L1, L2 and L-infinity within the box [0, 1]: least values, and nearest points of half spaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2", "l1"]
ORDER: dict[str, float] = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}


@dataclass(frozen=True)
class Ball:
    """Of each image x all x + d with |d|_p <= eps and x + d in [0, 1]."""

    images: Tensor  # (B, C, H, W), float64
    eps: Tensor  # (B,), float64
    norm: Norm

    def of(self, which: Tensor) -> Ball:
        """The balls of the images `which` (n,)."""
        return Ball(self.images[which], self.eps[which], self.norm)

    def interval(self) -> tuple[Tensor, Tensor]:
        """What each value lies between, (B, C, H, W) twice."""
        eps = self.eps.view(-1, 1, 1, 1)
        return (self.images - eps).clamp(min=0), (self.images + eps).clamp(max=1)


def least(slopes: Tensor, room: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """A lower bound of a . d over |d|_p <= eps with |d_i| at most the room that the box leaves it; tight.

    For any multiplier m >= 0 of the norm, a . d >= -sum of max over t in [0, room_i] of (|a_i| t - m f(t)) - m f(eps),
    with f(t) = t in L1 and t^2 / 2 in L2. So a multiplier that is rounded gives a lower bound all the same.

    Args:
        slopes: a, (n, D), float64.
        room: (n, D), how far each value can go against the sign of its slope, >= 0.
        eps: (n,).
        norm: of d.

    Returns:
        (n,), <= 0.
    """
    steep = slopes.abs()
    if norm == "linf":
        return -(steep * torch.minimum(room, eps[:, None])).sum(1)
    if norm == "l1":  # the steepest values go as far as they can, as long as the budget lasts
        ordered, places = steep.sort(dim=1, descending=True)
        spent = room.gather(1, places).cumsum(1)
        last = (spent < eps[:, None]).sum(1)  # values that it pays for in full
        more = torch.cat([ordered, torch.zeros_like(ordered[:, :1])], 1)
        multiplier = more.gather(1, last[:, None]).squeeze(1)
        return -((steep - multiplier[:, None]).clamp(min=0) * room).sum(1) - multiplier * eps
    multiplier = _multiplier(steep, room, eps)
    wide = multiplier[:, None]
    step = torch.minimum(steep / wide.clamp(min=1e-300), room)
    return -(steep * step - wide * step**2 / 2).sum(1) - multiplier * eps**2 / 2


def _multiplier(steep: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """(n,): m for which min(|a_i| / m, room_i) has the L2 norm eps; 0 where all the room is within it.

    Begins without the room, which makes m too large, and holds values at their room that would pass it: more and more.
    """
    multiplier = torch.linalg.vector_norm(steep, dim=1) / eps
    for _ in range(64):
        full = steep > multiplier[:, None] * room
        left = eps**2 - (room**2 * full).sum(1)
        free = (steep**2 * ~full).sum(1)
        better = torch.where(left > 0, (free / left.clamp(min=1e-300)).sqrt(), 0.0)
        if (multiplier - better <= 1e-14 * multiplier).all():
            break
        multiplier = torch.minimum(multiplier, better)
    return multiplier


def nearest(slopes: Tensor, room: Tensor, lead: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """The smallest d with a . d <= -lead that the box leaves room for: exact.

    Args:
        slopes: a, (n, D).
        room: (n, D), as for `least`.
        lead: (n,), >= 0.
        norm: whose d is smallest.

    Returns:
        d (n, D), as far as the room goes where that is not enough; and its norm (n,), inf there.
    """
    steep = slopes.abs()
    reach = (steep * room).sum(1)
    if norm == "l1":
        order = steep.argsort(dim=1, descending=True)
        gain = (steep * room).gather(1, order)
        before = gain.cumsum(1) - gain
        share = ((lead[:, None] - before) / gain.clamp(min=1e-300)).clamp(0, 1)
        step = torch.zeros_like(steep).scatter(1, order, share * room.gather(1, order))
        size = step.sum(1)
    else:  # min(t w_i, room_i), with w of equal values in L-infinity and as steep as the slopes in L2; t by its breaks
        pace = torch.ones_like(steep) if norm == "linf" else steep
        breaks, order = torch.where(pace > 0, room / pace.clamp(min=1e-300), torch.inf).sort(dim=1)
        full = (steep * room).gather(1, order).cumsum(1)
        rest = (steep * pace).gather(1, order)
        rest = rest.flip(1).cumsum(1).flip(1) - rest  # of the values that have not come to their room
        reached = full + torch.where(rest > 0, rest * breaks, 0)
        place = (reached < lead[:, None]).sum(1).clamp(max=steep.shape[1] - 1)[:, None]
        done = torch.where(place > 0, full.gather(1, (place - 1).clamp(min=0)), 0.0)
        pull = (steep * pace).gather(1, order).gather(1, place) + rest.gather(1, place)
        time = (lead[:, None] - done) / pull.clamp(min=1e-300)
        step = torch.minimum(time * pace, room)
        size = torch.linalg.vector_norm(step, ord=ORDER[norm], dim=1)
    return -slopes.sign() * step, torch.where(reach >= lead, size, torch.inf)
