"""The Jacobian-based saliency map attack: two values at a time, towards a target."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from brittle.attacks.minimal_norm import wide
from brittle.attacks.options import Portion, Range, checked
from brittle.attacks.result import BATCH, AttackResult, Request, answers, check_request, frozen
from brittle.models.inference import differentiated
from brittle.models.networks import needed
from brittle.models.softmax import Arithmetic, log_odds
from brittle.progress import Progress, silent

Theta = Annotated[float, Range(lambda theta: 0 < abs(theta) <= 1, "from -1 to 1 and not 0")]
Output = Literal["softmax", "logits"]
ROOM = 2**22  # pairs that are compared at once


@checked
def jsma(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor,
    where: Tensor | None = None,
    theta: Theta = 1.0,
    gamma: Portion = 0.145,
    output: Output = "softmax",
    arithmetic: Arithmetic = "exact",
    progress: Progress = silent,
) -> AttackResult:
    """Changes the pair of values that raises the target most and lowers all other classes, again and again.

    Papernot et al. 2016 (EuroS&P), algorithms 2 and 3. Of all pairs p, q with a = a_p + a_q > 0 and b = b_p + b_q < 0
    the one with the largest -a b is taken, where a_p is the derivative of the target's output by value p and b_p that
    of the sum of all other outputs. Values that have reached 0 or 1 are not taken again.

    Softmax outputs add up to 1, so that b = -a: the pair is then that of the two largest derivatives. Defensive
    distillation was published with this attack on softmax outputs (Papernot et al. 2016, S&P).

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K), K >= 2.
        images: (B, C, H, W), float, in [0, 1].
        labels: (B,), int64, in 0..K-1.
        targets: (B,), int64, classes to reach, none equal to its label.
        where: (H, W) or (B, 1, H, W), bool, the pixels that may change; all by default.
        theta: the change of a value, from -1 to 1 and not 0: above 0 values are raised, below 0 lowered.
        gamma: the share of an image's values that may change, in (0, 1]; 14.5 % are the published 112 of MNIST's 784.
        output: whose derivatives are taken, 'softmax' or 'logits'.
        arithmetic: of the softmax: 'exact' has the order of its derivatives where they underflow; 'float32' computes
            them as published, and a row is given up where all are 0.
        progress: told the number of rows finished.

    Returns:
        For each row the first image on its target.

    Raises:
        InputError: if an argument is not as above.
    """
    asked = check_request(model, images, labels, targets, where)
    changed, forwards = asked.images.clone(), torch.ones_like(asked.goal.labels)
    backwards = torch.zeros_like(forwards)
    pairs = max(1, int(gamma * changed[0].numel()) // 2)
    waiting = asked.waiting
    with frozen(model):
        for rows in waiting.split(BATCH):
            allowed = asked.where[rows].expand(-1, changed.shape[1], -1, -1)
            for _ in range(pairs):
                if not len(rows):
                    break
                rise, others = _derivatives(asked, changed[rows], rows, output, arithmetic)
                backwards[rows] += 1 + (output == "logits")
                forwards[rows] += 1 + (output == "logits")
                free = allowed & ((changed[rows] < 1) if theta > 0 else (changed[rows] > 0))
                sign = 1 if theta > 0 else -1
                pair, possible = _pair(sign * rise.flatten(1), sign * others.flatten(1), free.flatten(1))
                chosen = torch.zeros_like(free).flatten(1).scatter(1, pair, True).view_as(free) & wide(possible)
                changed[rows] = (changed[rows] + theta * chosen).clamp(0, 1)
                rest = possible & ~asked.goal.reached(answers(model, changed[rows]), rows)
                forwards[rows] += 1
                rows, allowed = rows[rest], allowed[rest]
            progress(len(images) - len(waiting), len(images))
    progress(len(images), len(images))
    return asked.measured(changed, forwards=forwards, backwards=backwards, minimises=0)


def _derivatives(
    asked: Request, images: Tensor, rows: Tensor, output: Output, arithmetic: Arithmetic
) -> tuple[Tensor, Tensor]:
    """(n, C, H, W) each: of the target's output, and of the sum of all others; scaled alike."""
    targets = asked.goal.classes[rows]

    def of_target(logits: Tensor, part: slice) -> Tensor:
        if output == "softmax" and arithmetic == "exact":
            return -log_odds(logits, targets[part])  # dF/dx = F (1 - F) times its derivative
        outputs = logits.softmax(1) if output == "softmax" else logits
        return outputs.gather(1, targets[part, None]).squeeze(1)

    rise = needed(differentiated(asked.model, images, of_target)[1]).nan_to_num(0, 0, 0)
    if output == "softmax":
        return rise, -rise
    whole = needed(differentiated(asked.model, images, lambda logits, _: logits.sum(1))[1]).nan_to_num(0, 0, 0)
    return rise, whole - rise


def _pair(rise: Tensor, others: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """The best pair of values (n, 2), and whether there is one (n,), of derivatives (n, d) and the `free` (n, d).

    A part of the pairs is looked at at a time, so that memory grows with d and not with its square.
    """
    count, values = rise.shape
    best, pair = torch.zeros_like(rise[:, 0]), torch.zeros(count, 2, dtype=torch.int64, device=rise.device)
    scale = torch.maximum(rise.abs(), others.abs()).amax(1, keepdim=True).clamp(min=torch.finfo(rise.dtype).tiny)
    rise, others = rise / scale, others / scale  # products of small derivatives would underflow
    place = torch.arange(values, device=rise.device)
    for first in place.split(max(1, ROOM // (count * values))):
        a, b = rise[:, first, None] + rise[:, None], others[:, first, None] + others[:, None]
        allowed = free[:, first, None] & free[:, None] & (first[:, None] < place) & (a > 0) & (b < 0)
        score, index = (-a * b).masked_fill(~allowed, 0).flatten(1).max(1)
        found = torch.stack([first[index // values], index % values], 1)
        better = score > best
        best, pair = torch.where(better, score, best), torch.where(better[:, None], found, pair)
    return pair, best > 0
