"""Song's algorithms 1 to 4: a map says which pixels matter, and they are set to 0 or 1 until the prediction changes.

All share one loop. A saliency map gives each row an order of its pixels and a level for each; the row is done at the
first prefix of that order that changes the prediction. Algorithm 4 goes through the loop once a pixel, with a new map
each time. Ties go to the lower pixel index, as with numpy's argmax in the author's code, and no pixel is set twice. A
pixel is set in all its channels; its saliency is that of moving all of them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from brittle.attacks.options import Count, Temperature, checked
from brittle.attacks.pixel_flips import flip_values
from brittle.attacks.result import (
    BATCH,
    AttackResult,
    Request,
    answers,
    check_request,
    frozen,
    logits_in_batches,
)
from brittle.models.softmax import (
    LN10,
    Arithmetic,
    SignedLog,
    cross_entropy,
    cross_entropy_float32,
    log_odds,
    log_odds_gradient,
    loss_gradient_float32,
)
from brittle.progress import Progress, part, silent


@checked
def song_1(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    where: Tensor | None = None,
    max_pixels: Count = 100,
    temperature: Temperature = 1.0,
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
        where: (H, W) or (B, 1, H, W), bool, the pixels that may change; all by default.
        max_pixels: trials for each row, at least 1; no more than H * W are made.
        temperature: at which the softmax is read, from 1e-30 to 1e30.
        arithmetic: 'exact' orders pixels by the gradient of the log-odds, which has the order of the loss gradient
            and never underflows; 'float32' computes the loss as published, so that a saturated softmax gives a map of
            zeros and pixels in the order of their index.
        progress: told the number of rows finished.

    Returns:
        For each row the image at the first change of prediction, with `pixels` in the order they were set.

    Raises:
        InputError: if an argument is not as above.
    """
    asked = check_request(model, images, labels, targets, where)
    slopes = _gradient_map(asked, temperature, arithmetic)
    return _set_pixels(asked, _Fixed(slopes, torch.ones_like(slopes)), max_pixels, max_pixels, progress, backwards=1)


@checked
def song_2(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    where: Tensor | None = None,
    max_pixels: Count = 100,
    temperature: Temperature = 1.0,
    arithmetic: Arithmetic = "exact",
    signed: bool = False,
    darken: bool = True,
    flips: tuple[Tensor, Tensor] | None = None,
    progress: Progress = silent,
) -> AttackResult:
    """Tries every pixel at 0 and at 1, then sets those that change the loss most, one after another.

    Song 2017, algorithm 2, as its text has it: the difference counts by its size, whatever its sign. No pixel is
    chosen twice, which the text forgets and the author's code does.

    Arguments, result and errors as for `song_1`, except:
        arithmetic: 'exact' compares the differences by their logarithms, which never underflow; 'float32' takes them
            as published, and they are zeros when the softmax saturates.
        signed: take the largest rise of the loss (towards a target: the largest fall) instead of the largest change,
            as the author's code does.
        darken: whether pixels may be set to 0. The author's code only sets them to 1: signed=True, darken=False.
        flips: what `flip_logits` gives for these images, where several attacks share it; computed when not given.
    """
    asked = check_request(model, images, labels, targets, where)
    maps = _Differences(asked, flips, temperature, arithmetic, signed, darken)
    return _set_pixels(asked, maps, max_pixels, max_pixels, progress)


@checked
def song_3(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    where: Tensor | None = None,
    max_pixels: Count = 100,
    temperature: Temperature = 1.0,
    arithmetic: Arithmetic = "exact",
    progress: Progress = silent,
) -> AttackResult:
    """Sets the pixels of the largest gradient magnitude to 1 where the gradient is positive, to 0 elsewhere.

    Song 2017, algorithm 3. Arguments, result and errors as for `song_1`.
    """
    asked = check_request(model, images, labels, targets, where)
    slopes = _gradient_map(asked, temperature, arithmetic)
    return _set_pixels(asked, _Fixed(slopes.abs(), slopes > 0), max_pixels, max_pixels, progress, backwards=1)


@checked
def song_4(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    where: Tensor | None = None,
    max_pixels: Count = 100,
    temperature: Temperature = 1.0,
    arithmetic: Arithmetic = "exact",
    signed: bool = False,
    darken: bool = True,
    refresh_every: Count = 1,
    stop_at_zeros: bool = False,
    flips: tuple[Tensor, Tensor] | None = None,
    progress: Progress = silent,
) -> AttackResult:
    """Algorithm 2 with its map made anew, at the changed image, after each pixel that is set.

    Song 2017, algorithm 4. A map costs about as many evaluations as the image has pixels, so this attack costs up to
    `max_pixels` times as much as algorithm 2.

    Arguments, result and errors as for `song_2`, except:
        refresh_every: pixels set between one map and the next, at least 1; with `max_pixels` it is algorithm 2.
        stop_at_zeros: give a row up, as failed, at a map in which no pixel changes the loss, rather than go on by
            index. In float32 that is what becomes of a saturated network's maps, one after another and at full cost;
            the paper sets such samples aside as underflowed.
    """
    asked = check_request(model, images, labels, targets, where)
    maps = _Differences(asked, flips, temperature, arithmetic, signed, darken)
    return _set_pixels(asked, maps, max_pixels, refresh_every, progress, stop_at_zeros=stop_at_zeros)


# Maps ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Map:
    """What is known of some rows' pixels."""

    saliency: Tensor  # (n, H * W), the more the sooner
    levels: Tensor  # (n, H * W), what each would be set to
    zeros: Tensor  # (n,) bool: whether no pixel changes the loss
    forwards: Tensor  # (n,) spent on it

    def of(self, rows: Tensor) -> _Map:
        """The same for some of its rows (m,)."""
        return _Map(self.saliency[rows], self.levels[rows], self.zeros[rows], self.forwards[rows])


class _Maps(Protocol):
    """Makes maps for `_set_pixels`."""

    share: float  # of the time that a map and the pixels set by it take, what the map takes

    def __call__(self, rows: Tensor, images: Tensor, free: Tensor, progress: Progress) -> _Map:
        """The map of `rows` (n,), whose images have come to be `images`, with the pixels (n, H * W) still to be set."""
        ...


@dataclass(frozen=True)
class _Fixed(_Maps):
    """A map that is made once, of all rows."""

    saliency: Tensor
    levels: Tensor
    share = 0.0

    def __call__(self, rows: Tensor, images: Tensor, free: Tensor, progress: Progress) -> _Map:
        saliency = self.saliency[rows]
        return _Map(saliency, self.levels[rows], (saliency == 0).all(1), torch.zeros_like(rows))


def _free(asked: Request) -> Tensor:
    """(B, H * W) bool: the pixels that may be set."""
    return asked.where.flatten(1)


def _gradient_map(asked: Request, temperature: float, arithmetic: Arithmetic) -> Tensor:
    """(B, H * W): the gradient of the loss that is to be raised, summed over channels."""
    gradient = log_odds_gradient if arithmetic == "exact" else loss_gradient_float32
    maps = [
        gradient(asked.model, batch, of, temperature).sum(1).flatten(1)
        for batch, of in zip(asked.images.split(BATCH), asked.goal.classes.split(BATCH), strict=True)
    ]
    return asked.goal.sign * torch.cat(maps).nan_to_num()


@dataclass(frozen=True)
class _Differences(_Maps):
    """How much the loss changes with each pixel alone at 0 and at 1: `song_2` and `song_4` have the options."""

    asked: Request
    flips: tuple[Tensor, Tensor] | None  # of the clean images
    temperature: float
    arithmetic: Arithmetic
    signed: bool
    darken: bool
    share = 0.75

    def __call__(self, rows: Tensor, images: Tensor, free: Tensor, progress: Progress) -> _Map:
        untouched = torch.equal(free, _free(self.asked)[rows])
        current = self.asked.clean[rows] if untouched else logits_in_batches(self.asked.model, images)
        aim = self.asked.goal.classes[rows]

        def change_of(logits: Tensor, place: Tensor) -> Tensor:
            return self._change(logits, current[place], aim[place])

        if self.flips is not None and untouched:
            logits, evaluations = (one[rows] for one in self.flips)
            place = torch.arange(len(rows), device=rows.device).repeat_interleave(logits[0, ..., 0].numel())
            change = change_of(logits.flatten(0, 2), place).view(logits.shape[:3])
        else:
            wanted = torch.stack([free & self.darken, free], 1)
            told = {"wanted": wanted, "progress": progress}
            change, evaluations = flip_values(self.asked.model, images, current, change_of, **told)
        none = -torch.inf if self.arithmetic == "exact" and not self.signed else 0.0
        zeros = (change == none).flatten(1).all(1)
        to_zero, to_one = change.unbind(1)
        if not self.darken:
            to_zero = torch.full_like(to_zero, -torch.inf)
        return _Map(torch.maximum(to_zero, to_one), to_one >= to_zero, zeros, evaluations + int(not untouched))

    def _change(self, logits: Tensor, current: Tensor, aim: Tensor) -> Tensor:
        """(n,): what flips with logits (n, K) make of the loss of class `aim` (n,) of images with logits (n, K)."""
        sign = self.asked.goal.sign
        if self.arithmetic == "float32":
            before = cross_entropy_float32(current, aim, self.temperature)
            change = cross_entropy_float32(logits, aim, self.temperature) - before
            change = sign * change if self.signed else change.abs()
            return change.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        if self.signed:  # the loss rises and falls with the log-odds
            return sign * (log_odds(logits, aim, self.temperature) - log_odds(current, aim, self.temperature))
        before = cross_entropy(current, aim, self.temperature)
        return _log_change(cross_entropy(logits, aim, self.temperature), before)


def _log_change(after: SignedLog, before: SignedLog) -> Tensor:
    """log10 |after - before| of two losses, (n,) each: -inf where they are equal.

    Not the difference of the log-odds, whose size would rank a fall of the loss from 1e-40 to 1e-80, which is nothing,
    with a rise from 1e-40 to 1.
    """
    gap = (after.log10 - before.log10).abs() * LN10
    return torch.maximum(after.log10, before.log10) + (-torch.expm1(-gap)).log10()


# The loop -----------------------------------------------------------------------------------------------------------


def _set_pixels(
    asked: Request,
    maps: _Maps,
    max_pixels: int,
    refresh_every: int,
    progress: Progress,
    *,
    backwards: int = 0,
    stop_at_zeros: bool = False,
) -> AttackResult:
    """Sets pixels one by one until the prediction is as wanted: `refresh_every` by one map, then by the next."""
    images = asked.images.clone()
    count, free = len(images), _free(asked)
    limit = min(max_pixels, max(1, int(free.sum(1).max())))
    rows = torch.arange(count, device=images.device)
    pixels = torch.full((count, limit), -1, device=images.device)
    forwards = torch.ones_like(rows)  # the clean image's
    waiting = asked.waiting
    for start in range(0, limit, refresh_every):
        if not len(waiting):
            break
        trials = min(refresh_every, limit - start)
        begin = (count - len(waiting)) * limit + len(waiting) * start
        mapped, end = begin + int(maps.share * len(waiting) * trials), begin + len(waiting) * trials
        found = maps(waiting, images[waiting], free[waiting], part(progress, begin, mapped, count * limit))
        forwards[waiting] += found.forwards
        if stop_at_zeros:
            told = (~found.zeros).nonzero().flatten()
            waiting, found = waiting[told], found.of(told)
        # what cannot change the loss, exactly -inf, still goes before what has been set already or may not be
        saliency = found.saliency.clamp(min=torch.finfo(found.saliency.dtype).min)
        saliency = saliency.masked_fill(~free[waiting], -torch.inf)
        order = saliency.argsort(dim=1, descending=True, stable=True)[:, :trials]
        may = free[waiting].gather(1, order)
        sequence = _Sequence.of(images[waiting], order, may, found.levels.gather(1, order))
        needed, spent = _first_success(asked, waiting, sequence, part(progress, mapped, end, count * limit))
        images[waiting] = sequence.after(torch.arange(len(waiting), device=rows.device), needed.clamp(max=trials))
        position = torch.arange(trials, device=rows.device)
        pixels[waiting, start : start + trials] = torch.where(may & (position < needed[:, None]), order, -1)
        free = free.index_put((waiting[:, None], order), torch.zeros_like(may))
        forwards[waiting] += spent
        waiting = waiting[needed > trials]
    progress(count * limit, count * limit)
    return asked.measured(images, forwards=forwards, backwards=backwards, pixels=pixels, minimises=0)


@dataclass(frozen=True)
class _Sequence:
    """Images with the pixels that are to be set one after another."""

    images: Tensor  # (n, C, H, W)
    turn: Tensor  # (n, H * W): the trial at which a pixel is set, from 1; more than there are trials if it never is
    level: Tensor  # (n, H * W), to what
    trials: int

    @classmethod
    def of(cls, images: Tensor, order: Tensor, may: Tensor, levels: Tensor) -> _Sequence:
        """Pixels `order` (n, trials), those that `may` (n, trials) bool, to be set to `levels` (n, trials)."""
        trials = order.shape[1]
        nothing = torch.zeros_like(images[:, 0].flatten(1))
        numbers = torch.arange(1, trials + 1, device=order.device).where(may, trials + 1)
        turn = torch.full_like(nothing, trials + 1, dtype=torch.int64).scatter(1, order, numbers)
        return cls(images, turn, nothing.scatter(1, order, levels.to(images.dtype)), trials)

    def after(self, row: Tensor, trial: Tensor) -> Tensor:
        """(m, C, H, W): images `row` (m,) after their first `trial` (m,) pixels."""
        flat = self.images.flatten(2)[row]
        changed = torch.where((self.turn[row] <= trial[:, None])[:, None], self.level[row][:, None], flat)
        return changed.view(-1, *self.images.shape[1:])


def _first_success(asked: Request, rows: Tensor, sequence: _Sequence, progress: Progress) -> tuple[Tensor, Tensor]:
    """After how many trials each of `rows` (n,) is where it is wanted, or trials + 1; and the evaluations spent.

    Rows that are done leave the batch; as they do, those that remain look several trials ahead, so that every forward
    pass holds about BATCH images.
    """
    count, trials = len(rows), sequence.trials
    needed = torch.full_like(rows, trials + 1)
    spent = torch.zeros_like(rows)
    waiting = torch.arange(count, device=rows.device)
    trial = 0
    with frozen(asked.model), torch.no_grad():
        while len(waiting) and trial < trials:
            ahead = min(trials - trial, max(1, BATCH // len(waiting)))
            row = waiting.repeat_interleave(ahead)
            steps = torch.arange(trial + 1, trial + ahead + 1, device=rows.device).repeat(len(waiting))
            pairs = zip(row.split(BATCH), steps.split(BATCH), strict=True)
            logits = torch.cat([answers(asked.model, sequence.after(r, s)) for r, s in pairs])
            hit = asked.goal.reached(logits, rows[row]).view(len(waiting), ahead)
            found = hit.any(1)
            needed[waiting[found]] = trial + 1 + hit[found].int().argmax(1)  # argmax of equals: the first
            spent[waiting] += ahead
            waiting, trial = waiting[~found], trial + ahead
            progress((count - len(waiting)) * trials + len(waiting) * trial, count * trials)
    return needed, spent
