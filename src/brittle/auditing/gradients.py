"""What the gradients of a model look like, as it came and mended."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brittle.attacks.goal import Goal, Loss
from brittle.attacks.result import answers, frozen
from brittle.auditing.wrappers import Scaled
from brittle.errors import InputError
from brittle.measures import NEGLIGIBLE
from brittle.models.inference import differentiated
from brittle.models.networks import seeded
from brittle.models.softmax import log_odds, loss_gradient

MATERIAL = 0.10  # Croce and Hein 2020, abstract: re-attacked defences lose "often more than 10 %"
FLOAT32 = -37.0  # log10 of the least number that float32 holds at full precision


@dataclass(frozen=True)
class Gradients:
    """The gradient of the loss with respect to the image, over up to 200 rows.

    Attributes:
        zero: share of rows where that of cross entropy in float32 is zero or not finite.
        negligible: share where its mean magnitude is under 1e-10.
        log10: median over rows of log10 of the mean magnitude, computed without underflow; None if it is zero.
        lost_inside: of the rows at zero, the share where float32 could hold the loss's gradient at the logits: it was
            lost inside the model.
        blocked: share of rows where the margin of the mended model has no gradient.
        agreement: share of rows where that gradient foretells the change of the margin within a factor of two.
        cosine: mean cosine between the gradients of two runs.
    """

    zero: float
    negligible: float
    log10: float | None
    lost_inside: float
    blocked: float
    agreement: float
    cosine: float

    @property
    def bad(self) -> bool:
        """Whether following the gradient, mended, leads nowhere on many rows, for another reason than randomness."""
        random = self.cosine < 0.99  # then the finite differences are random too
        return self.blocked > MATERIAL or (self.agreement < 1 - 2 * MATERIAL and not random)


def look_at(
    model: nn.Module, unscaled: nn.Module, scale: float, images: Tensor, labels: Tensor, *, reach: float, seed: int
) -> Gradients:
    """Looks at the gradients on images (n, C, H, W) that the model gets right.

    Args:
        model: as it came.
        unscaled: mended, but for its scale.
        scale: what brings the logits of `unscaled` to a median lead of 1.
        images: clean.
        labels: (n,).
        reach: change of each pixel, both ways, by which the gradient is tried.
        seed: of what the model draws.
    """
    if not len(images):
        return Gradients(math.nan, math.nan, None, 0.0, math.nan, math.nan, math.nan)
    view = Scaled(unscaled, scale)
    with seeded(seed):
        raw, logits = gradient_of(model, images, labels, "cross_entropy")
        again, _ = gradient_of(model, images, labels, "cross_entropy")
        margin, _ = gradient_of(view, images, labels, "margin")
    size = raw.flatten(1).double().abs().mean(1)
    zero = ~((size > 0) & size.isfinite())
    held = F.logsigmoid(log_odds(logits, labels)) / math.log(10) > FLOAT32
    cosine = F.cosine_similarity(_unit(raw), _unit(again), dim=1)[~zero]
    return Gradients(
        zero=zero.double().mean().item(),
        negligible=(~(size >= NEGLIGIBLE)).double().mean().item(),
        log10=_median_log10(unscaled, images, labels),
        lost_inside=(held & zero).sum().item() / max(1, int(zero.sum())),
        blocked=(~(margin.flatten(1).abs().sum(1) > 0)).double().mean().item(),
        agreement=_foretold(view, images, labels, margin, reach, seed),
        cosine=cosine.mean().item() if len(cosine) else math.nan,
    )


def gradient_of(model: nn.Module, images: Tensor, labels: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """The gradient of a loss of `attacks.descent`, and the logits."""
    goal, every = Goal(labels), torch.arange(len(images), device=images.device)
    with frozen(model):
        logits, gradient = differentiated(model, images, lambda z, rows: goal.loss(z, every[rows], loss))
    return torch.zeros_like(images) if gradient is None else gradient, logits


def _unit(gradient: Tensor) -> Tensor:
    flat = gradient.flatten(1).double().nan_to_num(0, 0, 0)
    return flat / flat.abs().amax(1, keepdim=True).clamp(min=1e-300)


def _median_log10(unscaled: nn.Module, images: Tensor, labels: Tensor) -> float | None:
    try:
        median = loss_gradient(unscaled, images, labels).mean_magnitude((1, 2, 3)).median().item()
    except InputError:  # no gradient at all
        return None
    return median if math.isfinite(median) else None


def _foretold(view: nn.Module, images: Tensor, labels: Tensor, gradient: Tensor, reach: float, seed: int) -> float:
    """Along the gradient's signs: the change of the margin that is expected, and that is seen."""
    direction = gradient.sign()
    centre = images.clamp(reach, 1 - reach)
    expected = 2 * reach * gradient.flatten(1).double().abs().sum(1)
    goal = Goal(labels)
    margins = []
    with frozen(view), torch.no_grad():
        for side in (1, -1):
            with seeded(seed + 1):  # the same noise on both sides
                margins.append(goal.lead(answers(view, centre + side * reach * direction)).double())
    ratio = (margins[0] - margins[1]) / expected
    return ((ratio > 0.5) & (ratio < 2)).double().mean().item()
