"""The largest radius around each image within which nothing fools a model, as far as linear relaxation proves it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brittle.attacks.options import Count, Portion, checked
from brittle.attacks.result import check_request
from brittle.certify.balls import ORDER, Norm
from brittle.certify.bounds import Problem, Slopes
from brittle.errors import InputError
from brittle.progress import Progress, part, silent

_ROUNDS = 30
# The model computes its logits in float32, and images are rounded to it: this share of a radius is given away, so that
# an image which rounding alone takes out of the ball is within what is proved.
_ROUNDED = 2**-23


@dataclass(frozen=True)
class Certificate:
    """What is proved of each image."""

    radius: Tensor  # (B,), float64: no image of [0, 1] that is nearer fools the model; 0 where it is wrong already
    correct: Tensor  # (B,) bool: whether the model is right on the image itself
    norm: Norm
    method: str  # 'CROWN' or 'alpha-CROWN'
    evaluations: Tensor  # (B,), int64: balls for which bounds were computed

    def __repr__(self) -> str:
        known = self.radius[self.correct]
        middle = f", median radius {known.median():.4g}" if len(known) else ""
        wrong = int((~self.correct).sum())
        return f"<Certificate: {len(self.radius)} images, {wrong} of them wrong already, {self.norm}{middle}>"


@checked
def radius(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: Norm = "linf",
    slopes: Slopes = "adaptive",
    steps: Count = 20,
    precision: Portion = 1e-3,
    within: Tensor | None = None,
    progress: Progress = silent,
) -> Certificate:
    """The largest radius of each image for which all its label's leads are proved to be positive.

    Lines that hold in a ball hold in every smaller one. So each evaluation, of the lines in a ball of radius h, gives
    the largest radius g(h) at which the bounds of these very lines are still positive: proved where it is no larger
    than h. g falls with h, and the radius that is looked for is where g(h) = h: between h and g(h), for any h. It is
    found by the secant method, in about five evaluations to a thousandth.

    Args:
        model: as for `bounds`, and so are images, labels, norm, slopes and steps.
        precision: of a radius, by which a larger one may be provable; what the relaxation leaves open is far more.
        within: (B,), float: distances at which an adversarial image is known; no radius above them is tried.
        progress: told images.

    Returns:
        A radius of 0 where the model is wrong already, which `correct` says apart from one where nothing is proved.

    Raises:
        InputError: as for `bounds`.
    """
    asked = check_request(model, images, labels)
    problem = Problem.of(asked, norm)
    most = torch.linalg.vector_norm(
        torch.maximum(problem.images, 1 - problem.images).flatten(1), ord=ORDER[norm], dim=1
    )
    if within is not None:
        if within.shape != asked.goal.labels.shape:
            raise InputError(f"within must have one distance an image, ({len(images)},), got {tuple(within.shape)}")
        most = torch.minimum(most, within.double().cpu())
    correct = (asked.clean.argmax(1) == asked.goal.labels).cpu()
    proved = torch.zeros_like(most)
    evaluations = torch.zeros(len(most), dtype=torch.int64)
    with torch.no_grad():
        for which in problem.batches():
            right = which[correct[which]]
            proved[right], evaluations[right] = _searched(
                problem,
                right,
                most[right],
                1e-3 if within is None else 0.1,
                precision,
                steps if slopes == "optimised" else 0,
                part(progress, int(which[0]), int(which[-1]) + 1, len(images)),
            )
    method = "CROWN" if slopes == "adaptive" else "alpha-CROWN"
    return Certificate(proved * (1 - _ROUNDED), correct, norm, method, evaluations)


def _searched(
    problem: Problem, which: Tensor, most: Tensor, first: float, precision: float, steps: int, told: Progress
) -> tuple[Tensor, Tensor]:
    """The proved radii (n,) of images `which` (n,), at most `most` (n,), and for how many balls bounds were computed.

    The first ball has `first` of `most`.
    """
    evaluations = torch.zeros_like(which)
    low, high = torch.zeros_like(most), most.clone()  # low is proved; the radius is at most high, if g falls
    before, excess = torch.zeros_like(most), torch.full_like(most, torch.nan)  # the h before, and g(h) - h there
    h = most * first
    live = most > 0
    for _ in range(_ROUNDS):
        at = live.nonzero().flatten()
        if not len(at):
            break
        reach = problem.reach(which[at], h[at], most[at], steps)
        evaluations[at] += 1
        low[at] = torch.maximum(low[at], torch.minimum(reach, h[at]))
        high[at] = torch.maximum(torch.minimum(high[at], torch.maximum(reach, h[at])), low[at])
        now = reach - h[at]
        line = h[at] - now * (h[at] - before[at]) / (now - excess[at])
        width = high[at] - low[at]
        inside = (line > low[at]) & (line < high[at] + precision * width)  # NaN, of the first round, is not
        before[at], excess[at] = h[at], now
        h[at] = torch.where(inside, line, low[at] + width / 2)
        live &= high - low > precision * high
        told(int((~live).sum()), len(live))
    return low, evaluations
