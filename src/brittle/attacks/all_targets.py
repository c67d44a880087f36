"""Every class as a target, and the best, the average and the worst case of an image among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from brittle.attacks.goal import checked_where
from brittle.attacks.result import AttackResult, check_request
from brittle.errors import InputError


def every_target(
    attack: Callable[..., AttackResult],
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    classes: int | None = None,
    **options: Any,
) -> AttackResult:
    """Each image against every class but its own, as a targeted attack.

    Carlini and Wagner 2017, section III-C, where best, average and worst case are told apart: `cases` does it.

    Args:
        attack: such as `carlini_l2`; called once, with `targets`.
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K), K >= 2.
        images: (N, C, H, W), float, in [0, 1].
        labels: (N,), int64, in 0..K-1.
        where: (H, W) or (N, 1, H, W), bool, the pixels that may change; all by default.
        classes: K, if it is known; else the model is asked with the first image, which is not counted.
        options: of the attack. Progress is told in rows of the result.

    Returns:
        N * (K - 1) rows: those of image 0 with its targets in ascending order, then those of image 1, and so on. A row
        that is on its target already needs no change, as in any targeted attack.

    Raises:
        InputError: if an argument is not as above, or the attack says so.
    """
    if classes is None:
        classes = check_request(model, images[:1], labels[:1]).clean.shape[1]
    if classes < 2:
        raise InputError(f"classes must be at least 2, got {classes}")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise InputError(
            f"labels must be int64 with one entry an image, ({len(images)},), got {tuple(labels.shape)} {labels.dtype}"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise InputError(f"labels must lie in 0..{classes - 1}, got {labels.min()}..{labels.max()}")
    others = classes - 1
    if where is not None:
        where = checked_where(where, images).repeat_interleave(others, dim=0)
    return attack(
        model,
        images.repeat_interleave(others, dim=0),
        labels.repeat_interleave(others),
        targets=_all_but(labels, classes).flatten(),
        **({} if where is None else {"where": where}),
        **options,
    )


@dataclass(frozen=True)
class Cases:
    """Of N images, how far their targets are."""

    best: Tensor  # (N,), distance of the target that is closest; inf where none was reached
    average: Tensor  # (N,), mean over the targets reached; NaN where none was
    worst: Tensor  # (N,), distance of the target that is farthest; inf where one was not reached
    failures: Tensor  # (N,), int64: targets not reached


def cases(found: AttackResult, p: float) -> Cases:
    """The best, average and worst case of every image in a result of `every_target`, in the norm p: 0, 1, 2 or inf.

    Raises:
        InputError: if the result is not one of `every_target`.
    """
    if found.targets is None:
        raise InputError("cases needs a result of every_target, got one without targets")
    others = int(torch.maximum(found.targets.max(), found.labels.max()))  # K - 1: each class is a target or a label
    whole = others > 0 and len(found.labels) % others == 0
    if not whole or not torch.equal(found.targets, _all_but(found.labels[::others], others + 1).flatten()):
        raise InputError("cases needs a result of every_target: for each image all classes but its label, ascending")
    reached = found.success.view(-1, others)
    distance = found.norm(p).to(found.images.dtype).view(-1, others)
    failed = distance.masked_fill(~reached, torch.inf)
    count = reached.sum(1)
    return Cases(
        best=failed.amin(1),
        average=distance.masked_fill(~reached, 0).sum(1) / count,
        worst=failed.amax(1),
        failures=others - count,
    )


def _all_but(labels: Tensor, classes: int) -> Tensor:
    """(N, K - 1): the classes in ascending order, without each row's label (N,)."""
    place = torch.arange(classes - 1, device=labels.device)
    return place + (place >= labels[:, None])
