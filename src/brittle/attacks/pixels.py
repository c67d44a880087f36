"""Song's algorithms 1 to 3: a map says which pixels matter, and they are set to 0 or 1 until the prediction changes.

All share one loop. A saliency map gives each row an order of its pixels and a level for each; the row is done at the
first prefix of that order that changes the prediction. Ties go to the lower pixel index, as with numpy's argmax in the
author's code. A pixel is set in all its channels; its saliency is that of moving all of them together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brittle.attacks.flips import flip_logits
from brittle.attacks.result import BATCH, AttackResult, door, frozen, logits_of, measured
from brittle.errors import InputError
from brittle.progress import Progress, silent
from brittle.softmax import (
    LN10,
    Arithmetic,
    SignedLog,
    check_arithmetic,
    check_temperature,
    cross_entropy,
    cross_entropy_float32,
    log_odds_gradient,
    loss_gradient_float32,
)


def song_1(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    max_pixels: int = 100,
    temperature: float = 1.0,
    arithmetic: Arithmetic = "exact",
    progress: Progress = silent,
) -> AttackResult:
    """Sets the pixels of the largest loss gradient to 1, one after another.

    Song 2017, algorithm 1. The gradient is taken once, at the clean image; its sign counts, so pixels that would have
    to be darkened are never chosen, and a pixel that is 1 already still uses up a trial.

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K), K >= 2.
        images: (B, C, H, W), float, in [0, 1].
        labels: (B,), int64, in 0..K-1. Rows that the model gets wrong already need no pixel.
        targets: (B,), int64, classes to reach, none equal to its label; by default any class but the label will do.
        max_pixels: trials for each row, at least 1; no more than H * W are made.
        temperature: at which the softmax is read, > 0.
        arithmetic: 'exact' orders pixels by the gradient of the log-odds, which has the order of the loss gradient
            and never underflows; 'float32' computes the loss as published, so that a saturated softmax gives a map of
            zeros and pixels in the order of their index.
        progress: told the number of rows finished.

    Returns:
        For each row the image at the first change of prediction, with `pixels` in the order they were set.

    Raises:
        InputError: if an argument is not as above.
    """
    clean, signed = _gradient_map(model, images, labels, targets, max_pixels, temperature, arithmetic)
    order = signed.argsort(dim=1, descending=True, stable=True)[:, :max_pixels]
    levels = torch.ones_like(order, dtype=images.dtype)
    return _set_in_order(model, images, labels, targets, clean, order, levels, progress, backwards=1)


def song_2(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    max_pixels: int = 100,
    temperature: float = 1.0,
    arithmetic: Arithmetic = "exact",
    flips: tuple[Tensor, Tensor] | None = None,
    progress: Progress = silent,
) -> AttackResult:
    """Tries every pixel at 0 and at 1, then sets those that change the loss most, one after another.

    Song 2017, algorithm 2, as its text has it: the difference counts by its size, whatever its sign. No pixel is
    chosen twice, which the text forgets and the author's code does.

    Arguments, result and errors as for `song_1`, except:
        arithmetic: 'exact' compares the differences by their logarithms, which never underflow; 'float32' takes them
            as published, and they are zeros when the softmax saturates.
        flips: what `flip_logits` gives for these images, where several attacks share it; computed when not given.
    """
    clean = _checked(model, images, labels, targets, max_pixels, temperature, arithmetic)
    logits, spent = flip_logits(model, images, clean, progress=progress) if flips is None else flips
    aim = labels if targets is None else targets

    aims = aim[:, None, None].expand(logits.shape[:3])
    if arithmetic == "exact":
        change = _log_change(cross_entropy(logits, aims, temperature), cross_entropy(clean, aim, temperature))
    else:
        before = cross_entropy_float32(clean, aim, temperature)[:, None, None]
        change = (cross_entropy_float32(logits, aims, temperature) - before).abs().nan_to_num(nan=0.0, posinf=torch.inf)
    to_zero, to_one = change.unbind(1)
    order = torch.maximum(to_zero, to_one).argsort(dim=1, descending=True, stable=True)[:, :max_pixels]
    levels = (to_one >= to_zero).gather(1, order).to(images.dtype)
    return _set_in_order(model, images, labels, targets, clean, order, levels, progress, forwards=spent)


def song_3(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    max_pixels: int = 100,
    temperature: float = 1.0,
    arithmetic: Arithmetic = "exact",
    progress: Progress = silent,
) -> AttackResult:
    """Sets the pixels of the largest gradient magnitude to 1 where the gradient is positive, to 0 elsewhere.

    Song 2017, algorithm 3. Arguments, result and errors as for `song_1`.
    """
    clean, signed = _gradient_map(model, images, labels, targets, max_pixels, temperature, arithmetic)
    order = signed.abs().argsort(dim=1, descending=True, stable=True)[:, :max_pixels]
    levels = (signed > 0).gather(1, order).to(images.dtype)
    return _set_in_order(model, images, labels, targets, clean, order, levels, progress, backwards=1)


def _log_change(after: SignedLog, before: SignedLog) -> Tensor:
    """log10 |after - before| of two losses, (B, 2, P) and (B,): (B, 2, P), -inf where they are equal.

    Not the difference of the log-odds, whose size would rank a fall of the loss from 1e-40 to 1e-80, which is nothing,
    with a rise from 1e-40 to 1.
    """
    start = before.log10[:, None, None]
    gap = (after.log10 - start).abs() * LN10
    return torch.maximum(after.log10, start) + (-torch.expm1(-gap)).log10()


def _checked(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    max_pixels: int,
    temperature: float,
    arithmetic: str,
) -> Tensor:
    """The clean logits of a request that makes sense."""
    if max_pixels < 1:
        raise InputError(f"max_pixels must be at least 1, got {max_pixels}")
    check_temperature(temperature)
    check_arithmetic(arithmetic)
    return door(model, images, labels, targets)


def _gradient_map(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    max_pixels: int,
    temperature: float,
    arithmetic: Arithmetic,
) -> tuple[Tensor, Tensor]:
    """The clean logits, and (B, H * W) the gradient of the loss to be raised, summed over channels."""
    clean = _checked(model, images, labels, targets, max_pixels, temperature, arithmetic)
    gradient = log_odds_gradient if arithmetic == "exact" else loss_gradient_float32
    aim, sign = (labels, 1) if targets is None else (targets, -1)  # towards a target is down its loss
    maps = [
        gradient(model, batch, classes, temperature).sum(1).flatten(1)
        for batch, classes in zip(images.split(BATCH), aim.split(BATCH), strict=True)
    ]
    return clean, sign * torch.cat(maps).nan_to_num()


def _set_in_order(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    clean: Tensor,
    order: Tensor,
    levels: Tensor,
    progress: Progress,
    *,
    forwards: Tensor | int = 0,
    backwards: int = 0,
) -> AttackResult:
    """Sets pixels `order` (B, P) to `levels` (B, P) one by one until the prediction is as wanted.

    Rows that are done leave the batch; as they do, those that remain look several trials ahead, so that every forward
    pass holds about BATCH images.
    """
    rows, trials = order.shape
    flat = images.flatten(2)
    # turn: the trial at which a pixel is set, so that the image after k trials is one torch.where away from the clean
    turn = torch.full_like(flat[:, 0], trials + 1, dtype=torch.int64)
    turn.scatter_(1, order, torch.arange(1, trials + 1, device=order.device).expand(rows, -1))
    level = torch.zeros_like(flat[:, 0]).scatter_(1, order, levels)

    def after(row: Tensor, trial: Tensor) -> Tensor:
        changed = torch.where((turn[row] <= trial[:, None])[:, None], level[row][:, None], flat[row])
        return changed.view(-1, *images.shape[1:])

    def reached(prediction: Tensor, row: Tensor) -> Tensor:
        return prediction != labels[row] if targets is None else prediction == targets[row]

    everyone = torch.arange(rows, device=images.device)
    needed = torch.zeros(rows, dtype=torch.int64, device=images.device)  # trials until success; 0: none yet, or trivial
    spent = torch.ones_like(needed)  # the door's forward
    waiting = everyone[~reached(clean.argmax(1), everyone)]
    trial = 0
    with frozen(model), torch.no_grad():
        while len(waiting) and trial < trials:
            ahead = min(trials - trial, max(1, BATCH // len(waiting)))
            row = waiting.repeat_interleave(ahead)
            steps = torch.arange(trial + 1, trial + ahead + 1, device=images.device).repeat(len(waiting))
            pairs = zip(row.split(BATCH), steps.split(BATCH), strict=True)
            prediction = torch.cat([logits_of(model, after(r, s)).argmax(1) for r, s in pairs])
            hit = reached(prediction, row).view(len(waiting), ahead)
            found = hit.any(1)
            needed[waiting[found]] = trial + 1 + hit[found].int().argmax(1)  # argmax of equals: the first
            spent[waiting] += ahead
            waiting, trial = waiting[~found], trial + ahead
            progress(rows - len(waiting), rows)
    progress(rows, rows)
    position = torch.arange(trials, device=images.device)
    return measured(
        model,
        images,
        labels,
        after(everyone, needed),
        forwards=spent + forwards,
        backwards=backwards,
        targets=targets,
        pixels=torch.where(position < needed[:, None], order, -1),
    )
