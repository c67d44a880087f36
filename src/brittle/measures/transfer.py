"""Whether what fools one model fools another: a matrix for any set of models and any attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from brittle.attacks.result import AttackResult, check_request, logits_in_batches
from brittle.errors import InputError
from brittle.measures import Share, share
from brittle.progress import Progress, part, silent


@dataclass(frozen=True)
class Transfer:
    """Images crafted on one model (rows) and tried on another (columns), each share with Wilson's 95 % interval.

    An image fools a model if it reaches its target or, without one, is not taken for its label. Images whose clean
    version does so already, on the model they were crafted on or on the one they are tried on, are left out.

    Attributes:
        crafted: names of the models that the images were crafted on, R.
        tried: names of the models that they were tried on, C.
        carried: R x C, of the images that fooled the model they were crafted on, those that fool the other too; on
            the diagonal all of them.
        fooled: R x C, the same of all images: those that failed hold their clean image and fool nobody.
    """

    crafted: tuple[str, ...]
    tried: tuple[str, ...]
    carried: tuple[tuple[Share, ...], ...]
    fooled: tuple[tuple[Share, ...], ...]


def transfer(
    found: Mapping[str, AttackResult], models: Mapping[str, nn.Module], *, progress: Progress = silent
) -> Transfer:
    """Tries what attacks found on some models on all `models`.

    Args:
        found: what an attack found, by the name of the model that it attacked. Attacks may differ, and so may images.
        models: by name; those that were attacked may be among them.
        progress: told the pairs tried.

    Raises:
        InputError: if there is nothing to try, or the images or classes do not fit a model.
    """
    if not found or not models:
        raise InputError(f"expected results and models, got {len(found)} results and {len(models)} models")
    carried, fooled = [], []
    for turn, result in enumerate(found.values()):
        pairs = []
        for place, model in enumerate(models.values()):
            pairs.append(_tried(result, model))
            progress(turn * len(models) + place + 1, len(found) * len(models))
        carried.append(tuple(one for one, _ in pairs))
        fooled.append(tuple(other for _, other in pairs))
    return Transfer(tuple(found), tuple(models), tuple(carried), tuple(fooled))


def transfer_matrix(
    attack: Callable[..., AttackResult],
    models: Mapping[str, nn.Module],
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Transfer:
    """Attacks each model and tries on all of them what was found.

    Args:
        attack: of brittle's kind.
        models: by name, each from images in [0, 1] to logits, (B, C, H, W) -> (B, K).
        images: (B, C, H, W), float, in [0, 1].
        labels: (B,), int64, in 0..K-1.
        targets: (B,), int64, none equal to its label, for a targeted attack.
        progress: told the models attacked and tried.
        **options: of the attack.

    Raises:
        InputError: as the attack does, or if there are no models.
    """
    found = {}
    for name, model in models.items():
        found[name] = attack(model, images, labels, targets=targets, **options)
        progress(len(found), 2 * len(models))
    return transfer(found, models, progress=part(progress, len(models), 2 * len(models), 2 * len(models)))


def _tried(found: AttackResult, model: nn.Module) -> tuple[Share, Share]:
    """Of one result on one model, `Transfer`'s two shares."""
    asked = check_request(model, found.images, found.labels, found.targets)
    counted = ~found.trivial & ~asked.goal.reached(asked.clean)
    fools = found.success & asked.goal.reached(logits_in_batches(model, found.adversarial))
    return share(fools[counted & found.success]), share(fools[counted])
