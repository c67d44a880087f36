"""One gradient step, or many: the attacks that most papers report, and the stronger ones that an audit needs.

All stay in a ball of radius `eps` around the image, cut to [0, 1], and go down one of three losses. Cross entropy is
computed as common libraries do, so its gradient is 0 once the softmax has saturated. The log-odds ('exact') rise where
cross entropy rises and never vanish; the margin looks at the label and its strongest rival alone.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from brittle.attacks.goal import Loss
from brittle.attacks.options import Count, Positive, Seed, checked
from brittle.attacks.result import BATCH, AttackResult, Bound, Request, answers, check_request, frozen
from brittle.attacks.streams import Streams
from brittle.errors import InputError
from brittle.models.inference import asked_how, differentiated
from brittle.models.networks import NO_GRADIENT
from brittle.progress import Progress, silent

BallNorm = Literal["linf", "l2"]
Keep = Literal["best", "last"]
LAST = 0.01  # share of the step that is left at the end of a walk that decays


@checked
def fgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    where: Tensor | None = None,
    norm: BallNorm = "linf",
    eps: Positive = 0.3,
    loss: Loss = "cross_entropy",
    progress: Progress = silent,
) -> AttackResult:
    """One step of length `eps` against the gradient, from the image: Goodfellow et al. 2015, section 4.

    Arguments, result and errors as for `pgd`.
    """
    return pgd(
        model,
        images,
        labels,
        targets=targets,
        where=where,
        norm=norm,
        eps=eps,
        steps=1,
        step_size=eps,
        random_start=False,
        loss=loss,
        progress=progress,
    )


@checked
def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    where: Tensor | None = None,
    norm: BallNorm = "linf",
    eps: Positive = 0.3,
    steps: Count = 40,
    step_size: Positive | None = None,
    decay: bool = False,
    restarts: Count = 1,
    random_start: bool = True,
    loss: Loss = "cross_entropy",
    rivals: bool = False,
    keep: Keep = "best",
    seed: Seed = 0,
    progress: Progress = silent,
) -> AttackResult:
    """Projected gradient descent inside a ball: Madry et al. 2018, section 2.1.

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K), K >= 2.
        images: (B, C, H, W), float, in [0, 1].
        labels: (B,), int64, in 0..K-1. Rows that the model gets wrong already need no change.
        targets: (B,), int64, classes to reach, none equal to its label; by default any class but the label will do.
        where: (H, W) or (B, 1, H, W), bool, the pixels that may change; all by default.
        norm: 'linf', steps along the sign of the gradient; or 'l2', along the gradient.
        eps: radius of the ball in pixel units, > 0.
        steps: gradient steps of a walk, at least 1.
        step_size: in pixel units, > 0; 2.5 eps / steps when not given, twice that if it decays: a walk can cross the
            ball.
        decay: let the step fall along a cosine to a hundredth of itself, which settles on the border of the ball.
        restarts: walks, at least 1; the rows that are fooled make no more.
        random_start: begin each walk at a point drawn evenly from the ball, not at the image. Without it all walks
            are the same, unless they have rivals.
        loss: 'cross_entropy' in the precision of the logits, as published; 'exact', the log-odds, which have its
            direction and never underflow; or 'margin', the lead of the label over its strongest rival.
        rivals: let walk k raise the class that is k-th most likely on the clean image over the label, rather than the
            one that leads (Gowal et al. 2019). Goes with the margin and without targets.
        keep: 'best' ends a row's walk at the first point that is as wanted. 'last' judges the end of each walk alone,
            as the common libraries do: where it finds less, points on the way were lost. A model that varies is judged
            at the end of the first walk.
        seed: of the random starts, which depend on it and on the image, not on the batch.
        progress: told the number of rows finished.

    Returns:
        For each row a point of the ball that is as wanted, if one was met.

    Raises:
        InputError: if an argument is not as above.
    """
    if rivals and (loss != "margin" or targets is not None):
        raise InputError("rivals goes with loss='margin' and without targets")
    asked = check_request(model, images, labels, targets, where)
    images = asked.images
    ball, found = Ball(images, norm, eps, asked.where), Found.of(asked)
    size = step_size or (5.0 if decay else 2.5) * eps / steps
    walk = _Walk(asked, ball, loss, rivals, steps, size, decay, keep)
    streams = Streams.of(images, seed)
    with frozen(model):
        for turn in range(restarts):
            rows = (~found.done).nonzero().flatten()
            for begin in range(0, len(rows), BATCH):
                batch = rows[begin : begin + BATCH]
                start = ball.of(batch).draw(streams.of_rows(batch), turn) if random_start else images[batch]
                walk.go(found, batch, start, turn)
                later = len(rows[begin + BATCH :])
                progress(len(images) - later if turn + 1 == restarts else int(found.done.sum()), len(images))
    progress(len(images), len(images))
    return found.measured(asked, ball)


@dataclass(frozen=True)
class Ball:
    """All images of [0, 1] within `eps` of each of `images`, in L-infinity or L2, and like it elsewhere."""

    images: Tensor  # (N, C, H, W)
    norm: BallNorm
    eps: float
    where: Tensor | None = None  # (N, 1, H, W), bool: the pixels that may change; all by default

    def only(self, change: Tensor, rows: Tensor | None = None) -> Tensor:
        """A change of `rows` (n,), all by default, in the pixels that may change."""
        if self.where is None:
            return change
        return change * (self.where if rows is None else self.where[rows])

    def into(self, points: Tensor, rows: Tensor) -> Tensor:
        """The nearest points of the balls of `rows` (n,), nearest but for the corners where ball and box meet."""
        centre = self.images[rows]
        change = self.only(points - centre, rows)
        if self.norm == "linf":
            change = change.clamp(-self.eps, self.eps)
        else:
            change = change * (self.eps / length(change).clamp(min=self.eps))
        return (centre + change).clamp(0, 1)  # the centre lies in the box: cutting only brings it nearer

    def of(self, rows: Tensor) -> Ball:
        """The balls of `rows` (n,)."""
        return Ball(self.images[rows], self.norm, self.eps, None if self.where is None else self.where[rows])

    @property
    def bound(self) -> Bound:
        """As a result has it."""
        return Bound(torch.inf if self.norm == "linf" else 2, float(self.eps))

    def draw(self, streams: Streams, draw: int) -> Tensor:
        """A point for every row, spread evenly over its ball, cut to the box: (N, C, H, W)."""
        shape, dtype = tuple(self.images.shape[1:]), self.images.dtype
        if self.norm == "linf":
            change = self.only(2 * streams.uniform(shape, draw, dtype) - 1)
            return (self.images + self.eps * change).clamp(0, 1)
        change = self.only(streams.normal(shape, 2 * draw, dtype))
        size = streams.uniform((1, 1, 1), 2 * draw + 1, dtype) ** (1 / math.prod(shape))
        return (self.images + change / length(change) * self.eps * size).clamp(0, 1)

    def step(self, gradient: Tensor, size: float) -> Tensor:
        """The change of length `size` that follows a gradient (n, C, H, W) of any scale most."""
        gradient = gradient.nan_to_num(0, 0, 0)
        if self.norm == "linf":
            return size * gradient.sign()
        largest = gradient.flatten(1).abs().amax(1).clamp(min=torch.finfo(gradient.dtype).tiny)
        gradient = gradient / wide(largest)  # squares of small gradients would underflow
        return size * gradient / length(gradient).clamp(min=1e-30)


def length(change: Tensor) -> Tensor:
    """The L2 of each row, (n, C, H, W) -> (n, 1, 1, 1)."""
    return wide(torch.linalg.vector_norm(change.flatten(1), dim=1))


def wide(values: Tensor) -> Tensor:
    """(n,) -> (n, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


@dataclass
class Found:
    """Of every row what has been found, and what that has cost."""

    done: Tensor  # (N,) bool
    points: Tensor  # (N, C, H, W)
    forwards: Tensor  # (N,), with the one for the clean image
    backwards: Tensor

    @classmethod
    def of(cls, asked: Request) -> Found:
        """Nothing yet: the rows for which there is nothing to search are done."""
        nothing = torch.zeros_like(asked.goal.labels)
        return cls((nothing + 1).bool().index_fill(0, asked.waiting, False), asked.images.clone(), nothing + 1, nothing)

    def take(self, rows: Tensor, points: Tensor, fits: Tensor) -> None:
        """Keeps those of the points (n, C, H, W) that fit (n,) bool."""
        self.points[rows[fits]] = points[fits]
        self.done[rows[fits]] = True

    def measured(self, asked: Request, ball: Ball) -> AttackResult:
        """The result."""
        return asked.measured(self.points, forwards=self.forwards, backwards=self.backwards, bound=ball.bound)


def fading(step: int, steps: int) -> float:
    """What a walk that decays makes of its step's length: 1 at its beginning, LAST at its end, along a cosine."""
    return LAST + (1 - LAST) * (1 + math.cos(math.pi * step / steps)) / 2


@dataclass(frozen=True)
class _Walk:
    asked: Request
    ball: Ball
    loss: Loss
    rivals: bool
    steps: int
    step_size: float
    decay: bool
    keep: Keep

    def go(self, found: Found, rows: Tensor, points: Tensor, turn: int) -> None:
        """Walks `rows` (n,) from `points` (n, C, H, W), one batch."""
        early = self.keep == "best" and not self.asked.varies  # one run of a model that varies says little
        for step in range(self.steps + 1):
            ends = step == self.steps  # the last turn only looks at where the last step led
            logits, gradient = self._look(points, rows, turn, ends)
            found.forwards[rows] += 1
            reached = self.asked.goal.reached(logits, rows)
            if early or ends:
                found.take(rows, points, reached | self.asked.varies)
            if ends:
                return
            assert gradient is not None
            found.backwards[rows] += 1
            points = self.ball.into(points - self.ball.step(gradient, self._size(step)), rows)
            if early and reached.any():
                rows, points = rows[~reached], points[~reached]
                if not len(rows):
                    return

    def _look(self, points: Tensor, rows: Tensor, turn: int, ends: bool) -> tuple[Tensor, Tensor | None]:
        if ends:
            return answers(self.asked.model, points), None
        logits, gradient = differentiated(self.asked.model, points, lambda z, part: self._falls(z, rows[part], turn))
        if gradient is None:
            if not asked_how().known:
                warnings.warn(f"{NO_GRADIENT}: the only points tried are where the walks begin", stacklevel=2)
            return logits, torch.zeros_like(points)
        return logits, self.ball.only(gradient, rows)

    def _falls(self, logits: Tensor, rows: Tensor, turn: int) -> Tensor:
        """(n,): falls as the rows come nearer, in walk `turn`."""
        goal = self.asked.goal
        if not self.rivals:
            return goal.loss(logits, rows, self.loss)
        return goal.lead_over(self.asked.ranked(rows)[:, turn % (logits.shape[1] - 1)], logits, rows)

    def _size(self, step: int) -> float:
        return self.step_size * (fading(step, self.steps) if self.decay else 1.0)
