"""Attacks that need no gradient: random squares, and plain noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brittle.attacks.options import Count, Portion, Positive, Seed, checked
from brittle.attacks.pgd import Ball, BallNorm, Found, length
from brittle.attacks.result import BATCH, AttackResult, answers, check_request, frozen
from brittle.attacks.streams import Streams
from brittle.progress import Progress, silent

HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # of the queries, when the squares' area is halved


@checked
def square(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    where: Tensor | None = None,
    norm: BallNorm = "linf",
    eps: Positive = 0.3,
    queries: Count = 1000,
    area: Portion = 0.8,
    seed: Seed = 0,
    progress: Progress = silent,
) -> AttackResult:
    """Random search by squares on the border of the ball: Andriushchenko et al. 2020, algorithms 1 to 3.

    It begins with stripes (L-infinity) or a mesh of little hills (L2) and keeps each change of a square that does not
    raise the margin. A change that leaves it as it is is kept too, unlike theirs: on a plateau, such as that of a model
    that returns labels alone, the search wanders rather than stands still.

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K), K >= 2. No gradient is taken.
        images: (B, C, H, W), float, in [0, 1].
        labels: (B,), int64, in 0..K-1. Rows that the model gets wrong already need no change.
        targets: (B,), int64, classes to reach, none equal to its label; by default any class but the label will do.
        where: (H, W) or (B, 1, H, W), bool, the pixels that may change; all by default.
        norm: 'linf' or 'l2'.
        eps: radius of the ball in pixel units, > 0.
        queries: points tried for each row, at least 1.
        area: share of the image that the first squares cover, in (0, 1]; the authors' p.
        seed: of the squares, which depend on it and on the image, not on the batch. In L2 all images have theirs at
            the same places, as the authors' have.
        progress: told the number of rows finished.

    Returns:
        For each row the first point that was as wanted.

    Raises:
        InputError: if an argument is not as above.
    """
    asked = check_request(model, images, labels, targets, where)
    images, goal, found = asked.images, asked.goal, Found.of(asked)
    ball = Ball(images, norm, eps, asked.where)
    search = (_SquaresLinf if norm == "linf" else _SquaresL2)(ball, Streams.of(images, seed), seed)
    waiting = (~found.done).nonzero().flatten()
    with frozen(model), torch.no_grad():
        for begin in range(0, len(waiting), BATCH):
            rows = waiting[begin : begin + BATCH]
            change = search.fitted(search.begin(rows), rows)
            least = torch.full((len(rows),), torch.inf, device=images.device, dtype=torch.float64)
            for query in range(queries):
                if query:
                    side = math.sqrt(area * images[0, 0].numel() / 2 ** sum(query > at * queries for at in HALVINGS))
                    tried = search.fitted(search.change(change, rows, round(side), query), rows)
                else:
                    tried = change
                points = ball.into(images[rows] + tried, rows)
                logits = answers(model, points)
                found.forwards[rows] += 1
                reached, height = goal.reached(logits, rows), goal.lead(logits, rows).double()
                found.take(rows, points, reached)
                kept = height <= least
                change, least = torch.where(kept.view(-1, 1, 1, 1), tried, change), torch.where(kept, height, least)
                if reached.any():
                    rows, change, least = rows[~reached], change[~reached], least[~reached]
                if not len(rows):
                    break
            progress(len(images) - len(waiting[begin + BATCH :]), len(images))
    progress(len(images), len(images))
    return found.measured(asked, ball)


@dataclass(frozen=True)
class _Squares:
    ball: Ball
    streams: Streams
    seed: int

    def _signs(self, rows: Tensor, shape: tuple[int, ...], draw: int) -> Tensor:
        return self.streams.of_rows(rows).signs(shape, draw, self.ball.images.dtype)


@dataclass(frozen=True)
class _SquaresLinf(_Squares):
    def begin(self, rows: Tensor) -> Tensor:
        """Upright stripes, one pixel wide: (n, C, H, W)."""
        _, channels, height, width = self.ball.images.shape
        return self.ball.eps * self._signs(rows, (channels, 1, width), 0).expand(-1, -1, height, -1)

    def change(self, change: Tensor, rows: Tensor, side: int, query: int) -> Tensor:
        """A square of each row, somewhere, set to plus or minus eps in each channel."""
        _, channels, height, width = change.shape
        side = min(max(side, 1), height, width)
        inside = []
        for axis, size in enumerate((height, width)):
            at = self.streams.of_rows(rows).below(size - side + 1, (1,), 3 * query + axis)
            place = torch.arange(size, device=change.device)
            inside.append((place >= at) & (place < at + side))
        mask = (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
        return torch.where(mask, self.ball.eps * self._signs(rows, (channels, 1, 1), 3 * query + 2), change)

    def fitted(self, change: Tensor, rows: Tensor) -> Tensor:
        """The change, which `Ball.into` cuts to where it may be."""
        return change


@dataclass(frozen=True)
class _SquaresL2(_Squares):
    def begin(self, rows: Tensor) -> Tensor:
        """Hills and valleys in a mesh of five by five: (n, C, H, W)."""
        _, channels, height, width = self.ball.images.shape
        side = max(1, min(height, width) // 5)
        change = torch.zeros(len(rows), channels, height, width, dtype=self.ball.images.dtype, device=rows.device)
        hill = _hill(side, side).to(change)
        signs = self._signs(rows, (channels, height // side, width // side, 1, 1), 0)
        for down in range(height // side):
            for across in range(width // side):
                place = slice(down * side, (down + 1) * side), slice(across * side, (across + 1) * side)
                change[:, :, place[0], place[1]] = hill * signs[:, :, down, across]
        return change

    def change(self, change: Tensor, rows: Tensor, side: int, query: int) -> Tensor:
        """One square flattened, and what it held given to a new hill and valley in another."""
        _, channels, height, width = change.shape
        side = min(max(side, 3) | 1, height, width)  # the authors take odd sides from 3 on
        drawn = Streams.numbered(1, self.seed).uniform((5,), query)[0].tolist()
        tops = [int(at * (height - side + 1)) for at in drawn[:2]]
        lefts = [int(at * (width - side + 1)) for at in drawn[2:4]]
        grown, flattened = (
            (slice(None), slice(None), slice(top, top + side), slice(left, left + side))
            for top, left in zip(tops, lefts, strict=True)
        )
        either = torch.zeros_like(change[:1, :1])
        either[grown], either[flattened] = 1, 1

        def size(values: Tensor) -> Tensor:  # of each channel
            return torch.linalg.vector_norm(values, dim=(2, 3), keepdim=True)

        room = (self.ball.eps**2 - length(change) ** 2).clamp(min=0) / channels + size(change * either) ** 2
        upper = _hill(side // 2, side)
        pair = torch.cat([upper, -_hill(side - side // 2, side)]).to(change)
        pair = pair / pair.norm()
        pair = pair if drawn[4] < 0.5 else pair.T
        new = pair * self._signs(rows, (channels, 1, 1), query) + change[grown] / size(change[grown]).clamp(min=1e-10)
        new = new / size(new).clamp(min=1e-10) * room.sqrt()
        tried = change.clone()
        tried[flattened] = 0
        tried[grown] = new
        return tried

    def fitted(self, change: Tensor, rows: Tensor) -> Tensor:
        """The change, where it may be, on the border of the ball."""
        change = self.ball.only(change, rows)
        return change * self.ball.eps / length(change).clamp(min=1e-10)


def _hill(height: int, width: int) -> Tensor:
    """(height, width): steps that fall off from the middle as 1 / n^2, of length 1."""
    hill = torch.zeros(height, width)
    top, left = height // 2, width // 2
    for ring in range(max(top, left) + 1):
        rows = slice(max(top - ring, 0), min(top + ring + 1, height))
        hill[rows, max(left - ring, 0) : min(left + ring + 1, width)] += 1 / (ring + 1) ** 2
    return hill / hill.norm()


@checked
def noise(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    where: Tensor | None = None,
    norm: BallNorm = "linf",
    eps: Positive = 0.3,
    draws: Count = 100,
    seed: Seed = 0,
    progress: Progress = silent,
) -> AttackResult:
    """Random points of the ball, by turns spread evenly over it and on its border (in L-infinity: its corners).

    Carlini et al. 2019, section 5.3: what noise finds, a search must find too.

    Arguments, result and errors as for `square`, except:
        draws: points tried for each row, at least 1.
    """
    asked = check_request(model, images, labels, targets, where)
    found, streams = Found.of(asked), Streams.of(asked.images, seed)
    whole = Ball(asked.images, norm, eps, asked.where)
    with frozen(model), torch.no_grad():
        for draw in range(draws):
            waiting = (~found.done).nonzero().flatten()
            for begin in range(0, len(waiting), BATCH):
                rows = waiting[begin : begin + BATCH]
                ball, own = whole.of(rows), streams.of_rows(rows)
                points = _border(ball, own, draw) if draw % 2 else ball.draw(own, draw)
                found.forwards[rows] += 1
                found.take(rows, points, asked.goal.reached(answers(model, points), rows))
            progress(len(labels) * draw // draws, len(labels))
    progress(len(labels), len(labels))
    return found.measured(asked, whole)


def _border(ball: Ball, streams: Streams, draw: int) -> Tensor:
    drawn = ball.only(streams.normal(tuple(ball.images.shape[1:]), 2 * draw, ball.images.dtype))
    if ball.norm == "linf":
        return (ball.images + ball.eps * drawn.sign()).clamp(0, 1)
    return (ball.images + ball.eps * drawn / length(drawn)).clamp(0, 1)
