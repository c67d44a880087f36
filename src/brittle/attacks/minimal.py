"""The smallest perturbation that a budget of evaluations finds, in L0, L1, L2 or L-infinity.

No single search is best on every model, so several take turns. Each is one walk from the image, of a length that grows;
the first looks for any class, later ones for one class each, those first that a linear model has nearest (MALT,
Melamed et al. 2024). All walks of a norm share the best image so far, and begin with what it tells of the scale:

- L0: sigma-zero (Cina et al. 2025) on whole pixels, then pixels of the best image are dropped one by one while a few
  steps on the others make up for them. A later walk may take up pixels that were dropped.
- L1: steps of Adam, each followed by the proximal step of weight x |x' - x|_1 (as PDPGD's, Matyasko and Chau 2021, and
  EAD's, Chen et al. 2018), with a weight that rises while the row is as wanted and falls while it is not.
- L2: by turns steps along the gradient of the log-odds on a sphere that shrinks and grows (DDN, Rony et al. 2019), and
  Carlini and Wagner's objective with its c moving in the same way (`carlini_l2`).
- L-infinity: steps of Adam in a cube that shrinks and grows (`carlini_linf`).

At the end of a walk the best perturbation is made smaller by bisection.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from brittle.attacks.carlini import L2, Linf, finite
from brittle.attacks.minimal_norm import Aim, Best, Look, Norm, Plan, Runs, search, wide
from brittle.attacks.options import Count, Range, checked
from brittle.attacks.result import BATCH, AttackResult, answers, check_request, frozen
from brittle.progress import Progress, silent

AnyNorm = Annotated[Any, Range(lambda p: p in ("inf", 0, 1, 2, math.inf) and p is not True, "of 0, 1, 2 or inf")]
ROUNDING = 1e-5  # of the largest logit: a lead over the border that the rounding of another machine leaves
LENGTHS = (40, 50, 150)  # iterations of the first walk, of the second, and of all others
LONGER = 4.0  # times as long are the steps after a walk in vain
RIVALS = 9  # classes whose distance is estimated
BISECTIONS = 5


@checked
def minimal(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    where: Tensor | None = None,
    norm: AnyNorm = 2,
    evaluations: Count = 1000,
    values: bool = False,
    progress: Progress = silent,
) -> AttackResult:
    """The smallest perturbation in a norm that makes the model err, or reach a target: the strongest of brittle's.

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K), K >= 2.
        images: (B, C, H, W), float, in [0, 1].
        labels: (B,), int64, in 0..K-1. Rows that the model gets wrong already need no change.
        targets: (B,), int64, classes to reach, none equal to its label; by default any class but the label will do.
        where: (H, W) or (B, 1, H, W), bool, the pixels that may change; all by default.
        norm: 0, 1, 2 or inf.
        evaluations: of each row, at least 1: pairs of a forward and a backward pass, or of two forward passes. The one
            forward pass of the clean image comes on top.
        values: in L0, count the values that change, three for a pixel with three channels, rather than pixels.
        progress: told the evaluations of all rows.

    Returns:
        For each row the closest image found. It is as wanted by a lead of at least 1e-5 times the largest logit, so
        that rounding on another machine does not undo it.

    Raises:
        InputError: if an argument is not as above.
    """
    asked = check_request(model, images, labels, targets, where)
    aim, best, p = Aim.of(asked, surely=ROUNDING), Best.of(asked.images), float(norm)
    several = targets is None and asked.clean.shape[1] > 2
    nearest, total = asked.ranked(torch.arange(len(labels), device=asked.images.device)), 2 * evaluations
    left = total  # passes
    for turn, (walk, steps, rival) in enumerate(_walks(p, values)):
        if several and rival == 0 and left >= 4 * RIVALS:
            nearest = _nearest(aim, best, p, nearest[:, :RIVALS])
            left -= 2 * nearest.shape[1]
        steps = min(steps, left // 2 - 1)  # one evaluation to begin
        if steps < 1 or not len(asked.waiting):
            break
        one = aim
        if several and rival is not None:
            one = replace(aim, rivals=nearest[:, rival % nearest.shape[1]])
        search(one, walk, Plan(steps, longer=LONGER**turn), best, silent)
        left -= 2 * (steps + 1)
        if p and left >= BISECTIONS:
            _shrink(aim, best, p)
            left -= BISECTIONS
        progress(len(images) * (total - left), len(images) * total)
    progress(len(images) * total, len(images) * total)
    return best.measured(asked, p)


def _walks(p: float, values: bool) -> Iterator[tuple[Norm, int, int | None]]:
    """The searches that take turns, their iterations, and the place of the class that each goes towards if it does."""
    for turn in itertools.count():
        steps, rival = LENGTHS[min(turn, len(LENGTHS) - 1)], None if turn % 3 == 0 else turn - 1 - turn // 3
        if p == 0:
            yield _SigmaZero(values), steps * 2 // 3, rival
            yield _Drop(values, swap=turn % 2 == 1), steps // 3, None
        else:
            walk = {1: _Proximal(), 2: L2(None, None) if turn % 3 else _Sphere(), math.inf: Linf(None)}[p]
            yield walk, steps, rival


def _nearest(aim: Aim, best: Best, p: float, classes: Tensor) -> Tensor:
    """(B, R): classes (B, R) by how far a linear model has them; R evaluations of each row."""
    distance = torch.full(classes.shape, torch.inf, dtype=aim.images.dtype, device=classes.device)
    dual = {2: 2, math.inf: 1}.get(p, math.inf)
    with frozen(aim.model):
        for rows in aim.waiting.split(BATCH):
            for place in range(classes.shape[1]):
                toward = replace(aim, rivals=classes[:, place])
                lead, gradient, _ = toward.lead_and_gradient(aim.images[rows], rows, hinge=False)
                best.spent(rows)
                distance[rows, place] = lead / torch.linalg.vector_norm(gradient.flatten(1), ord=dual, dim=1)
    return classes.gather(1, distance.nan_to_num(math.inf).argsort(dim=1, stable=True))


def _shrink(aim: Aim, best: Best, p: float) -> None:
    """Makes the best perturbations smaller by up to a tenth, in a bisection of BISECTIONS forward passes."""
    found = aim.waiting[best.distance[aim.waiting].isfinite()]
    with frozen(aim.model):
        for rows in found.split(BATCH):
            clean, change = aim.images[rows], best.images[rows] - aim.images[rows]
            low, high = torch.full_like(best.distance[rows], 0.9), torch.ones_like(best.distance[rows])
            for _ in range(BISECTIONS):
                share = (low + high) / 2
                images = clean + _smaller(change, share, p)
                fits = aim.fits(answers(aim.model, images), rows)
                best.forwards[rows] += 1
                best.offer(rows, images, torch.linalg.vector_norm((images - clean).flatten(1), ord=p, dim=1), fits)
                low, high = torch.where(fits, low, share), torch.where(fits, share, high)


def _smaller(change: Tensor, share: Tensor, p: float) -> Tensor:
    """(n, C, H, W): in L2 the change times `share` (n,), else its large values cut, or all brought nearer to 0."""
    if p == 2:
        return change * wide(share)
    largest = change.flatten(1).abs().amax(1)
    if p == math.inf:
        return change.clamp(-wide(share * largest), wide(share * largest))
    return change.sign() * (change.abs() - wide((1 - share) * largest)).clamp(min=0)


# Searches -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sphere(Norm):
    """DDN: steps along the gradient, on a sphere that shrinks while the row is as wanted and grows while it is not."""

    p = 2
    odds = True
    change = 0.15  # of the radius, at first

    def begin(self, aim: Aim, rows: Tensor, best: Best) -> Runs:
        images, (lead, gradient, _) = aim.images[rows], aim.lead_and_gradient(aim.images[rows], rows)
        best.spent(rows)
        distance = lead / torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        return Runs.begin(rows, images, finite(distance), torch.ones_like(distance))

    def step(self, best: Best, live: Runs, look: Look, fading: Tensor) -> None:
        best.offer(live.row, look.seen, look.distance, look.fits)
        up = 1.01 + self.change * fading
        live.bound = live.bound * torch.where(look.fits, 1 / up, up)
        steep = torch.linalg.vector_norm(look.gradient.flatten(1), dim=1).clamp(min=1e-30)
        change = look.change - look.gradient * wide(live.bound * live.rate / steep)
        size = torch.linalg.vector_norm(change.flatten(1), dim=1).clamp(min=1e-30)
        live.image = (look.clean + change * wide(live.bound / size)).clamp(0, 1)


@dataclass(frozen=True)
class _Proximal(Norm):
    """Steps of Adam down the lead, each followed by the proximal step of weight x |x' - x|_1."""

    p = 1
    change = 0.2  # of the weight, by which it rises or falls at first
    least = 0.1  # of the steepest slope, is the weight at first
    pace = 0.3  # of the largest change of a value that a linear model needs: length of the first steps

    def begin(self, aim: Aim, rows: Tensor, best: Best) -> Runs:
        """A linear model is fooled by moving the values of the steepest slopes to 0 or 1, and the last one in part: its
        slope is the weight, at least a share of the steepest where all values together would not do."""
        images, (lead, gradient, _) = aim.images[rows], aim.lead_and_gradient(aim.images[rows], rows)
        best.spent(rows)
        steep, order = gradient.flatten(1).abs().sort(dim=1, descending=True)
        room = torch.where(gradient > 0, images, 1 - images).flatten(1).gather(1, order)
        last = ((steep * room).cumsum(1) < lead[:, None]).sum(1).clamp(max=steep.shape[1] - 1)
        weight = torch.maximum(steep.gather(1, last[:, None]).squeeze(1), self.least * steep[:, 0]).clamp(min=1e-30)
        return Runs.begin(rows, images, weight, self.pace * (lead / weight).clamp(0.01, 1))

    def step(self, best: Best, live: Runs, look: Look, fading: Tensor) -> None:
        best.offer(live.row, look.seen, look.change.flatten(1).abs().sum(1), look.fits)
        up = 1 + self.change * fading
        live.bound = live.bound * torch.where(look.fits, up, 1 / up)
        threshold = live.adam(look.gradient, live.rate * fading) * wide(live.bound)
        change = live.image - look.clean
        live.image = look.clean + change.sign() * (change.abs() - threshold).clamp(min=0)


@dataclass(frozen=True)
class _Fewest(Norm):
    """What is counted: pixels, or values."""

    values: bool
    p = 0

    def each(self, change: Tensor) -> Tensor:
        """(n, 1 or C, H, W) of (n, C, H, W): how much of each pixel, or value, is in squares."""
        return change * change if self.values else (change * change).sum(1, keepdim=True)


@dataclass(frozen=True)
class _SigmaZero(_Fewest):
    """Steps of Adam down the lead + sum of d^2 / (d^2 + sigma) over the pixels, where small changes are undone."""

    sigma = 1e-3
    threshold = 0.3  # below which a change is undone, at first
    change = 0.01  # by which the threshold rises while the row is as wanted, and falls while it is not

    def begin(self, aim: Aim, rows: Tensor, best: Best) -> Runs:
        one = torch.ones(len(rows), dtype=aim.images.dtype, device=rows.device)
        return Runs.begin(rows, aim.images[rows], self.threshold * one, one)

    def step(self, best: Best, live: Runs, look: Look, fading: Tensor) -> None:
        square = self.each(look.change)
        best.offer(live.row, look.seen, (square > 0).flatten(1).sum(1).to(best.distance.dtype), look.fits)
        slope = 2 * self.sigma * look.change / (square + self.sigma) ** 2 / square[0].numel()
        gradient = look.gradient + slope
        rate = live.rate * (0.1 + 0.9 * fading)
        live.adam(gradient / wide(gradient.flatten(1).abs().amax(1).clamp(min=1e-30)), rate)
        live.bound = (live.bound + self.change * rate * torch.where(look.fits, 1, -1)).clamp(0, 1)
        kept = self.each(live.image - look.clean) >= wide(live.bound) ** 2
        live.image = torch.where(kept, live.image, look.clean)


@dataclass
class _Dropping(Runs):
    """Runs that drop pixels of the best image, one at a time."""

    solution: Tensor  # (n, C, H, W), the image with the fewest
    order: Tensor  # (n, P), its changed pixels from the least important on, then the others
    place: Tensor  # (n,), of the one that is dropped now
    tries: Tensor  # (n,), steps that the others have made to make up for it
    free: Tensor  # (n, P) bool, those others


@dataclass(frozen=True)
class _Drop(_Fewest):
    """Drops one pixel after another, or two for one that is new, and takes a few steps on the others to make up."""

    swap: bool
    hinge = False
    steps = 4
    pace = 0.5  # length of a step

    def begin(self, aim: Aim, rows: Tensor, best: Best) -> _Dropping:
        images, none = best.images[rows], torch.zeros_like(rows)
        order = torch.zeros_like(self.each(images).flatten(1), dtype=torch.int64)
        runs = Runs.begin(rows, images, best.distance[rows], torch.ones_like(best.distance[rows]))
        return _Dropping(**vars(runs), solution=images, order=order, place=none, tries=none, free=order.bool())

    def step(self, best: Best, live: Runs, look: Look, fading: Tensor) -> None:
        assert isinstance(live, _Dropping)
        count = (self.each(look.change) > 0).flatten(1).sum(1).to(best.distance.dtype)
        fewer = look.fits & ((count < best.distance[live.row]) | (live.turn == 1))
        best.offer(live.row, look.seen, count, look.fits)
        live.solution = torch.where(wide(fewer), look.seen, live.solution)
        change = self.each(live.solution - look.clean).flatten(1)
        importance = (self.each(look.gradient).flatten(1) * change).masked_fill(change == 0, math.inf)
        live.order = torch.where(fewer[:, None], importance.argsort(dim=1, stable=True), live.order)
        again = ~fewer & (live.tries < self.steps) & (live.turn > 1)
        live.place = torch.where(fewer, 0, live.place + (~again).long())
        live.tries = torch.where(again, live.tries + 1, 0)
        live.free = torch.where(again[:, None], live.free, self._free(live, look, change > 0))
        steepest = look.gradient.flatten(1).abs().amax(1).clamp(min=1e-30)
        moved = (look.seen - self.pace * look.gradient / wide(steepest)).clamp(0, 1)
        start = torch.where(wide(again), moved, live.solution)
        new = live.free & (change == 0) & ~again[:, None]
        start = torch.where(new.view_as(self.each(start)), (look.gradient < 0).to(start.dtype), start)
        live.image = torch.where(live.free.view_as(self.each(start)), start, look.clean)
        live.turn = live.turn.masked_fill((live.place >= (change > 0).sum(1)) | live.bound.isinf(), 2**30)

    def _free(self, live: _Dropping, look: Look, changed: Tensor) -> Tensor:
        """(n, P) bool: the changed pixels but the one whose turn it is, or but two and with a new one."""
        last = changed.shape[1] - 1
        free = changed.scatter(1, live.order.gather(1, live.place[:, None].clamp(max=last)), False)
        if not self.swap:
            return free
        free = free.scatter(1, live.order.gather(1, (live.place[:, None] + 1).clamp(max=last)), False)
        room = torch.where(look.gradient > 0, look.clean, 1 - look.clean)
        steep = self.each((look.gradient * room).abs().sqrt()).flatten(1).masked_fill(changed, -1)
        return free.scatter(1, steep.argmax(1, keepdim=True), True)
