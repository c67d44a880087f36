"""Lo and Ding's additive masks: one picture added to an image, or to all images, that makes the model err.

A linear mask W is the gradient of the target's output with respect to the input, and an image becomes x + eta W. The
paper does not say what eta counts. Here it counts as its range, 0 to 12,750, suggests: with pixels, and the inputs of
which the gradient is taken, in 0..255. In [0, 1], where images are here, the gradient is 255 times as large and the
step 255 times as small: eta / 65,025 times the gradient, at most 0.196 times. Nor does it say whether the output is
taken before or after the softmax; `of` offers both. Before it, gradients of all images are of one size, and one eta
can suit them all, as the paper finds.

The paper adds masks without regard to the range of pixels. `clip=False` does so: the adversarial images then may leave
[0, 1], and success is measured on them as they are, which no picture can be saved as.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brittle.attacks.goal import checked_where
from brittle.attacks.options import Count, Positive, Seed, Strengths, checked
from brittle.attacks.result import BATCH, AttackResult, Bound, Request, check_request, checked_images, frozen
from brittle.errors import InputError, unknown
from brittle.models.inference import answers, differentiated, logits_in_batches
from brittle.models.networks import input_gradient, logits_of, needed
from brittle.models.softmax import log_odds
from brittle.progress import Progress, part, silent

Output = Literal["logits", "softmax"]
ETAS = tuple(range(0, 12_751, 250))  # Lo and Ding, section IX-A; the steps are ours
ETA_SCALE = 255.0**2  # an eta of 0..255 pixels, over this, is that of [0, 1] pixels


# Attacks --------------------------------------------------------------------------------------------------------------


@checked
def linear_mask(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    where: Tensor | None = None,
    etas: Strengths = ETAS,
    of: Output = "logits",
    clip: bool = True,
    progress: Progress = silent,
) -> AttackResult:
    """Adds the gradient of the target's output, each image its own: Lo and Ding, section IX-A.

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K), K >= 2.
        images: (B, C, H, W), float, in [0, 1].
        labels: (B,), int64, in 0..K-1.
        targets: (B,), int64, classes to reach, none equal to its label. By default any class but the label will do,
            and what is added is the label's gradient with its sign turned.
        where: (H, W) or (B, 1, H, W), bool, the pixels that may change; all by default.
        etas: strengths of the mask, >= 0 and in 0..255 pixels, tried in turn until one does: x + eta / 65,025 times
            the gradient. One alone is what all rows get.
        of: which output's gradient: 'logits' or 'softmax'. The softmax's is exact up to what a float can hold; below
            1e-45 it is 0, and no eta in the range would make it a change that an image can hold.
        clip: keep the images in [0, 1]. The paper does not: see above.
        progress: told the rows tried, times etas.

    Returns:
        For each row the image with its mask; rows that are as wanted from the start have none.

    Raises:
        InputError: if an argument is not as above.
    """
    asked = check_request(model, images, labels, targets, where)
    return _searched(asked, _linear(asked, asked.model, asked.images, of), etas, clip, progress)


@checked
def transferred(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    source: nn.Module,
    targets: Tensor | None = None,
    where: Tensor | None = None,
    etas: Strengths = ETAS,
    of: Output = "logits",
    clip: bool = True,
    progress: Progress = silent,
) -> AttackResult:
    """Adds to each image the linear mask that another model, the `source`, has for it: Lo and Ding, section X-B.

    Arguments, result and errors as for `linear_mask`, except:
        source: whose gradient the masks are, with as many classes as `model`. Its evaluations are counted too.
        etas: the first that fools `model`, which an attacker finds who may ask it, but not differentiate it.
    """
    asked = check_request(model, images, labels, targets, where)
    outputs, expected = _outputs(source, asked.images), asked.clean.shape[1]
    if outputs != expected:
        raise InputError(f"source must have the model's {expected} classes, got {outputs}")
    return _searched(asked, _linear(asked, source, asked.images, of), etas, clip, progress)


@checked
def borrowed_mask(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    examples: Tensor,
    targets: Tensor | None = None,
    where: Tensor | None = None,
    etas: Strengths = ETAS,
    of: Output = "logits",
    clip: bool = True,
    progress: Progress = silent,
) -> AttackResult:
    """Adds to each image the linear mask of the example nearest to it in pixel space: Lo and Ding, section X-A.

    The model is differentiated at examples alone, so it may be done before the image is known.

    Arguments, result and errors as for `linear_mask`, except:
        examples: (N, C, H, W), float, in [0, 1], those of the training set. The nearest has the least Euclidean
            distance, the first of equals.
        etas: the paper has one, that which takes most examples to the target: `optimal_eta`.
    """
    asked = check_request(model, images, labels, targets, where)
    examples = checked_images("examples", examples).to(asked.images)
    if examples.shape[1:] != images.shape[1:]:
        expected = f"(N, {', '.join(map(str, images.shape[1:]))})"
        raise InputError(f"examples must be {expected}, as the images are, got {tuple(examples.shape)}")
    lenders = examples[nearest(asked.images, examples)]
    return _searched(asked, _linear(asked, asked.model, lenders, of), etas, clip, progress)


@checked
def class_mask(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor,
    where: Tensor | None = None,
    examples: Tensor | None = None,
    epochs: Count = 10,
    batch_size: Count = 128,
    learning_rate: Positive = 0.01,
    epsilon: Positive | None = None,
    seed: Seed = 0,
    clip: bool = True,
    progress: Progress = silent,
) -> AttackResult:
    """Adds one mask to all images with the same target, learned through the frozen model: Lo and Ding, section VIII-A.

    Args:
        targets: (B,), int64, classes to reach, none equal to its label; a mask is learned for each class among them.
        where: the pixels that may change; a mask is learned in those that may in any image with its target.
        examples: (N, C, H, W), float, in [0, 1], what each mask is learned on: the training set, or those of its images
            that are of one class; by default the images that share the target.

    `epochs`, `batch_size`, `learning_rate`, `epsilon` and `seed` are those of `learned_mask`. The other arguments,
    result and errors are those of `linear_mask`. A row's evaluations are its share of those that all masks took,
    rounded up, and one for the clean image.
    """
    asked = check_request(model, images, labels, targets, where)
    images, targets, waiting = asked.images, asked.goal.classes, asked.waiting
    changed, spent = images.clone(), 0
    wanted = targets.unique().tolist()
    for turn, target in enumerate(wanted):
        learnt_on = images[targets == target] if examples is None else examples
        mask = learned_mask(
            model,
            learnt_on,
            target,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            epsilon=epsilon,
            seed=seed,
            clip=clip,
            where=asked.where[targets == target].any(0)[0],
            progress=part(progress, turn, turn + 1, len(wanted)),
        )
        rows = waiting[targets[waiting] == target]
        changed[rows] = _added(images[rows], mask * asked.where[rows], 1.0, clip)
        spent += (epochs + 1) * len(learnt_on)
    each = math.ceil(spent / len(images))
    bound = None if epsilon is None else Bound(torch.inf, float(epsilon))
    return asked.measured(changed, forwards=1 + each, backwards=each, bound=bound)


# Their parts ----------------------------------------------------------------------------------------------------------


def target_gradient(model: nn.Module, images: Tensor, targets: Tensor, *, of: Output = "logits") -> Tensor:
    """The linear masks: (B, C, H, W), the gradient of each target's output with respect to the input in [0, 1].

    Arguments as for `linear_mask`. To see one as Lo and Ding's 0..255 pixels show it at a strength eta, multiply it by
    eta / 255.
    """
    if of not in get_args(Output):
        raise unknown("output", of, get_args(Output))
    parts = []
    for rows, wanted in zip(images.split(BATCH), targets.split(BATCH), strict=True):

        def output(logits: Tensor, part: slice, wanted: Tensor = wanted) -> Tensor:
            one = wanted[part]
            return logits.gather(1, one[:, None]) if of == "logits" else -log_odds(logits, one)

        with frozen(model):
            logits, gradient = differentiated(model, rows, output)
        gradient = needed(gradient)
        if of == "softmax":  # dF_t/dx = -F_t (1 - F_t) dm/dx
            odds = log_odds(logits, wanted)
            gradient = gradient * _wide((F.logsigmoid(odds) + F.logsigmoid(-odds)).exp()).to(gradient.dtype)
        parts.append(gradient)
    return torch.cat(parts)


def mask_curve(
    model: nn.Module,
    images: Tensor,
    masks: Tensor,
    targets: Tensor,
    *,
    etas: Sequence[float] = ETAS,
    clip: bool = True,
    progress: Progress = silent,
) -> Tensor:
    """Which images reach their target at each strength of their masks: (E, B) bool, Lo and Ding, figures 6 and 8.

    Args:
        masks: (B, C, H, W), what `target_gradient` gives, of these or of other images, of this or of another model.
        targets: (B,), int64.
        etas: E strengths of 0..255 pixels.

    The other arguments are those of `linear_mask`.
    """
    reached = torch.empty(len(etas), len(images), dtype=torch.bool, device=images.device)
    with frozen(model), torch.no_grad():
        for place, eta in enumerate(etas):
            for first in range(0, len(images), BATCH):
                rows = slice(first, first + BATCH)
                changed = _added(images[rows], masks[rows], eta / ETA_SCALE, clip)
                reached[place, rows] = answers(model, changed).argmax(1) == targets[rows]
            progress(place + 1, len(etas))
    return reached


def optimal_eta(reached: Tensor, etas: Sequence[float] = ETAS) -> float:
    """The eta that takes most images to their target, the least of equals, from what `mask_curve` gives, (E, B)."""
    return float(etas[int(reached.sum(1).argmax())])


@checked
def learned_mask(
    model: nn.Module,
    examples: Tensor,
    target: int,
    *,
    epochs: Count = 10,
    batch_size: Count = 128,
    learning_rate: Positive = 0.01,
    epsilon: Positive | None = None,
    seed: Seed = 0,
    clip: bool = True,
    where: Tensor | None = None,
    progress: Progress = silent,
) -> Tensor:
    """One mask (C, H, W), learned so that the model takes all examples for `target`: Lo and Ding, section VIII-A.

    The weights of a layer that adds the mask to the input are trained on the cross entropy towards the target, which
    has a gradient for as long as an image is not there. The paper does not say how. Adam is used, whose steps do not
    depend on the scale of the logits: through a model trained at T = 20, plain gradients are some twenty times larger.

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K), K >= 2.
        examples: (N, C, H, W), float, in [0, 1].
        target: in 0..K-1.
        epochs: passes over the examples, at least 1.
        batch_size: examples a step, at least 1.
        learning_rate: length of Adam's first steps in pixel units, > 0.
        epsilon: the largest change of a value that the mask may make, > 0, in pixel units; by default any, as in the
            paper.
        seed: of the order of the examples.
        clip: whether the images are kept in [0, 1], as they are to be when the mask is used.
        where: (H, W), bool, the pixels that the mask may change; all by default.
        progress: told steps.

    Raises:
        InputError: if an argument is not as above.
    """
    outputs = _outputs(model, examples)
    if not 0 <= target < outputs:
        raise InputError(f"target must lie in 0..{outputs - 1}, got {target}")
    examples = checked_images("examples", examples)
    allowed = checked_where(where, examples[:1])[0]
    mask = torch.zeros_like(examples[0]).requires_grad_(True)
    optimizer = torch.optim.Adam([mask], lr=learning_rate)
    steps = math.ceil(len(examples) / batch_size)
    random = torch.Generator().manual_seed(seed)
    with frozen(model), torch.enable_grad():
        for epoch in range(epochs):
            for step, rows in enumerate(
                torch.randperm(len(examples), generator=random).to(examples.device).split(batch_size)
            ):
                logits = logits_of(model, _added(examples[rows], mask[None], 1.0, clip))
                loss = F.cross_entropy(logits, torch.full((len(rows),), target, device=logits.device))
                mask.grad = input_gradient(loss, mask).nan_to_num(0, 0, 0) * allowed
                optimizer.step()
                if epsilon is not None:
                    mask.data.clamp_(-epsilon, epsilon)
                progress(epoch * steps + step + 1, epochs * steps)
    return mask.detach()


def nearest(images: Tensor, examples: Tensor) -> Tensor:
    """For each of (B, C, H, W) images the row of the nearest of (N, C, H, W) examples, (B,): 1-NN in pixel space.

    A matrix product ranks them, whose rounding may confuse those that are about equally near; so the nearest eight by
    it are compared once more by their differences.
    """
    examples = examples.to(images).flatten(1)
    found = []
    for rows in images.flatten(1).split(BATCH):
        about = (examples * examples).sum(1) - 2 * rows @ examples.T
        few = about.topk(min(8, len(examples)), dim=1, largest=False).indices.sort(1).values
        distance = (examples[few] - rows[:, None]).square().sum(2)
        found.append(few.gather(1, distance.argmin(1, keepdim=True)).squeeze(1))
    return torch.cat(found)


def _linear(asked: Request, model: nn.Module, images: Tensor, of: Output) -> Tensor:
    return -asked.goal.sign * target_gradient(model, images, asked.goal.classes, of=of)


def _outputs(model: nn.Module, images: Tensor) -> int:
    """K, of a model that takes these images."""
    return check_request(model, images, torch.zeros(len(images), dtype=torch.int64)).clean.shape[1]


def _added(images: Tensor, masks: Tensor, strength: float, clip: bool) -> Tensor:
    changed = images + strength * masks
    return changed.clamp(0, 1) if clip else changed


def _searched(asked: Request, masks: Tensor, etas: Sequence[float], clip: bool, progress: Progress) -> AttackResult:
    """The images with their masks at the first of `etas` that does; rows that are done leave.

    Rows that are as wanted from the start stay as they are.
    """
    changed, masks = asked.images.clone(), masks.nan_to_num(0, 0, 0) * asked.where
    spent = torch.full_like(asked.goal.labels, 2)  # the clean image's and the gradient's
    waiting = asked.waiting
    tried = [eta for eta in etas if eta > 0]
    for place, eta in enumerate(tried):
        if not len(waiting):
            break
        rest = []
        for rows in waiting.split(BATCH):
            changed[rows] = _added(asked.images[rows], masks[rows], eta / ETA_SCALE, clip)
            rest.append(rows[~asked.goal.reached(logits_in_batches(asked.model, changed[rows]), rows)])
        spent[waiting] += 1
        waiting = torch.cat(rest)
        progress((place + 1) * len(changed), len(tried) * len(changed))
    return asked.measured(changed, forwards=spent, backwards=1)


def _wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
