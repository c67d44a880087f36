"""Whether an image fools a model for good: one that answers differently each time, or that errs by a hair.

A model that varies is wrong on some run for almost any image. An image fools it where more than half of fresh runs are
wrong, and significantly more of them than of the clean image. And the smallest perturbations end at the border between
two classes, where another machine's rounding may decide: they are made longer until the lead is larger than that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from brittle.attacks.goal import Goal
from brittle.errors import InputError
from brittle.models.inference import answers, logits_in_batches
from brittle.models.networks import frozen

RUNS = 21  # of which more than half must be wrong before more are made
FRESH = 100  # runs that decide
SIGMAS = 3.0  # by which the share of wrong runs must exceed that of the clean image
PROBED = 8  # images that are asked for again
SPREAD = 1e-4  # relative difference of two runs: the order of sums on several threads or a GPU gives about 1e-6
APART = 0.01  # relative difference alone and in a batch: this lets 16-bit rounding through
LEAD = 1e-5  # of the largest logit: sums of float32 in another order differ by about 1e-6
NEAR = 0.01  # of the largest logit: who is farther behind was not on the border
LONGER = tuple(1e-5 * 1.5**step for step in range(29))  # times a perturbation, tried in turn: up to 0.85

Nature = Literal["plain", "varies", "by batch"]
Reached = Callable[[Tensor, Tensor], Tensor]  # from logits (n, K) and rows (n,) to (n,) bool: as wanted


def nature(model: nn.Module, images: Tensor, logits: Tensor) -> Nature:
    """Whether a model varies from run to run, or answers an image by the other images of its batch.

    Args:
        images: (N, C, H, W).
        logits: (N, K), finite, what the model has said of them in a batch.
    """
    few = max(1, min(len(images), 2 * PROBED) // 2)
    try:
        with frozen(model):
            one, other, alone = (answers(model, images[:count]) for count in (few, few, 1))
    except InputError:  # it was exported for batches of one size, and cannot be asked for others
        return "plain"
    if not ((one - other).abs().amax() <= SPREAD * one.abs().amax()):  # written so that NaN fails it
        return "varies"
    return "by batch" if max(apart(one, logits[:few]), apart(alone, logits[:1])) > APART else "plain"


def apart(alone: Tensor, together: Tensor) -> float:
    """How far two sets of logits (n, K) are apart, relative to the larger; what all classes share tells none apart."""
    first, second = (logits.double() - logits.double().mean(1, keepdim=True) for logits in (alone, together))
    size = torch.maximum(first.abs().amax(1), second.abs().amax(1)).clamp(min=1e-30)
    return ((first - second).abs().amax(1) / size).max().item()


def mean_logits(model: nn.Module, images: Tensor) -> Tensor:
    """(N, K): the mean of RUNS runs."""
    return torch.stack([logits_in_batches(model, images) for _ in range(RUNS)]).mean(0)


@dataclass(frozen=True)
class Votes:
    """What many runs have said of images."""

    share: Tensor  # (n,), of the runs that are as wanted
    classes: Tensor  # (n, K), how many runs named each class

    @classmethod
    def of(cls, model: nn.Module, images: Tensor, rows: Tensor, reached: Reached, runs: int = FRESH) -> Votes:
        """Of so many fresh runs on images (n, C, H, W), at least one, of `rows` (n,)."""
        wanted, classes = [], []
        for _ in range(runs):
            logits = logits_in_batches(model, images)
            named = torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1])
            wanted.append(reached(logits, rows))
            classes.append(named * logits.isfinite().all(1, keepdim=True))
        return cls(torch.stack(wanted).double().mean(0), torch.stack(classes).sum(0))


def for_good(model: nn.Module, images: Tensor, rows: Tensor, reached: Reached, clean: Tensor) -> Tensor:
    """(n,) bool: whether images (n, C, H, W) of `rows` (n,) are as wanted for a model that varies.

    Args:
        clean: (n,), the share of runs on the clean images that are.
    """
    found = torch.zeros(len(rows), dtype=torch.bool, device=images.device)
    if not len(rows):
        return found
    likely = (Votes.of(model, images, rows, reached, RUNS).share > 0.5).nonzero().flatten()
    if len(likely):
        share, before = Votes.of(model, images[likely], rows[likely], reached).share, clean[likely]
        error = ((share * (1 - share) + before * (1 - before)) / FRESH).sqrt()
        found[likely] = (share > 0.5) & (share - before > SIGMAS * error)
    return found


def led(model: nn.Module, images: Tensor, adversarial: Tensor, logits: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
    """Adversarial images (N, C, H, W) made longer where a model's lead is within rounding, and its logits (N, K).

    Images of whole 255ths stay as they are: their next are far.

    Args:
        images: (N, C, H, W), clean.
        logits: (N, K), of the adversarial images.
        goal: what is wanted of them.
    """
    change = adversarial - images
    every = torch.arange(len(images), device=images.device)

    def share(logits: Tensor, rows: Tensor) -> Tensor:
        return -goal.lead(logits, rows) / logits.abs().amax(1).clamp(min=1e-30)

    whole = ((adversarial * 255).round() / 255 == adversarial).flatten(1).all(1)
    near = share(logits, every)
    thin = ((near < LEAD) & (near > -NEAR) & ~whole & (change != 0).flatten(1).any(1)).nonzero().flatten()
    adversarial, logits = adversarial.clone(), logits.clone()
    for more in LONGER:
        if not len(thin):
            break
        tried = (images[thin] + (1 + more) * change[thin]).clamp(0, 1)
        said = logits_in_batches(model, tried)
        sure = share(said, thin) >= LEAD
        adversarial[thin[sure]], logits[thin[sure]] = tried[sure], said[sure]
        thin = thin[~sure]
    return adversarial, logits
