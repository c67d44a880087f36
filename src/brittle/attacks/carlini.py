"""Carlini and Wagner's attacks (2017): the smallest change that makes a model err.

Their objective is kept: a distance, plus c times the lead of the class that is to lose (their f_6, of logits, so that
no softmax can saturate). Four things differ from their code:

- The trade-off is searched while the image moves, not in runs one after another: in L2, c rises while the row is not as
  wanted and falls while it is; in L-infinity so does tau, the largest change allowed; both by less and less.
- The search begins, unless it is told, where it would end for a linear model, and Adam's steps are in proportion.
  Logits of a network trained at T = 20 are twenty times larger; from a fixed c half of a search goes into the scale.
- Images stay in [0, 1] by projection, not by x = (tanh(w) + 1) / 2. There a pixel at exactly 0 or 1, as most of MNIST's
  are, has its gradient multiplied by 1e-6, and hundreds of steps pass before it moves.
- Every row has its own c or tau, best image, Adam state and end. A row that is done leaves the batch, and the next
  takes its place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from brittle.attacks.minimal_norm import Aim, Best, Look, Norm, Plan, Runs, closest, wide
from brittle.attacks.options import Count, Natural, NonNegative, Positive, Seed, checked
from brittle.attacks.result import AttackResult, check_request
from brittle.attacks.streams import Streams
from brittle.progress import Progress, silent


@checked
def carlini_l2(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    where: Tensor | None = None,
    confidence: NonNegative = 0.0,
    learning_rate: Positive | None = None,
    max_iterations: Count = 200,
    binary_search_steps: Count = 2,
    initial_const: Positive | None = None,
    abort_early: bool = False,
    quantize: bool = False,
    restarts: Natural = 0,
    seed: Seed = 0,
    progress: Progress = silent,
) -> AttackResult:
    """The smallest change in L2 that makes the model err, or reach a target.

    Carlini and Wagner 2017, section V: minimises |x' - x|_2^2 + c f(x') by Adam, f the lead of the class that is to
    lose, for the least c with which it loses.

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K), K >= 2.
        images: (B, C, H, W), float, in [0, 1].
        labels: (B,), int64, in 0..K-1. Rows that the model gets wrong already need no change.
        targets: (B,), int64, classes to reach, none equal to its label; by default any class but the label will do.
        where: (H, W) or (B, 1, H, W), bool, the pixels that may change; all by default.
        confidence: kappa, by how much the winning logit must lead, >= 0.
        learning_rate: length of Adam's first steps in pixel units, > 0; it falls to a hundredth along a cosine. By
            default each row's distance, as a linear model would have it and later its best, over the root of the
            number of its values; and four times as long after each run that leaves a row without any image.
        max_iterations: of a run, at least 1.
        binary_search_steps: runs for each row, at least 1. Each begins at the image, with the c of the one before. By
            the default learning rate, as many that leave a row without any image are not counted.
        initial_const: c of the first run, > 0; by default that of a linear model with the row's lead and gradient.
        abort_early: end a run of a row that has come no closer by 1e-4 of its distance in a fifth of the run.
        quantize: look for images whose values are whole 255ths, which rounding to 8 bits leaves as they are. The
            images given must be such.
        restarts: further runs from random points as far away as the best image so far, at least 0.
        seed: of the random points, which depend on it and on the image, not on the batch.
        progress: told the number of rows finished.

    Returns:
        For each row the closest image found that is as wanted.

    Raises:
        InputError: if an argument is not as above.
    """
    asked = check_request(model, images, labels, targets, where, confidence=confidence)
    aim = Aim.of(asked, quantize=quantize)
    plan = Plan(max_iterations, binary_search_steps, abort_early, restarts, seed)
    return closest(aim, L2(learning_rate, initial_const), plan, progress)


@checked
def carlini_linf(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    where: Tensor | None = None,
    confidence: NonNegative = 0.0,
    learning_rate: Positive | None = None,
    max_iterations: Count = 200,
    binary_search_steps: Count = 2,
    abort_early: bool = False,
    quantize: bool = False,
    restarts: Natural = 0,
    seed: Seed = 0,
    progress: Progress = silent,
) -> AttackResult:
    """The smallest change in L-infinity that makes the model err, or reach a target.

    Carlini and Wagner 2017, section VI-B: minimises c f(x') + sum (|x' - x| - tau)^+ for a tau that shrinks. Here the
    penalty is taken to its limit, where it does not depend on c: what exceeds tau is cut off. And tau grows again while
    the row is not as wanted, where theirs gives up.

    Arguments, result and errors as for `carlini_l2`, except:
        learning_rate: length of Adam's first steps in pixel units; by default 0.3 tau.
        binary_search_steps: runs for each row. Each begins at the image, with the least tau so far.
    """
    asked = check_request(model, images, labels, targets, where, confidence=confidence)
    aim = Aim.of(asked, quantize=quantize)
    plan = Plan(max_iterations, binary_search_steps, abort_early, restarts, seed)
    return closest(aim, Linf(learning_rate), plan, progress)


@checked
def carlini_l0(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    where: Tensor | None = None,
    confidence: NonNegative = 0.0,
    learning_rate: Positive | None = None,
    max_iterations: Count = 30,
    initial_const: Positive | None = None,
    patience: Count = 5,
    quantize: bool = False,
    restarts: Natural = 0,
    seed: Seed = 0,
    progress: Progress = silent,
) -> AttackResult:
    """The fewest pixels that have to change for the model to err, or to reach a target.

    Carlini and Wagner 2017, section VI-A: the L2 attack, again and again, each time on the pixels that the last
    solution changed, but for those of the least |gradient x change|, which are frozen at their own values. A pixel is
    all of its channels, and their shares are added without their signs: opposite changes do not cancel. At first 30 %
    of the pixels are frozen at once; where the rest is not enough, the last solution is taken up again and half as many
    are tried, then single ones.

    Arguments, result and errors as for `carlini_l2`, except:
        max_iterations: of a round, for one set of pixels, at least 1.
        patience: single pixels, from the least important on, whose freezing has to fail before a row is done, at
            least 1.
        restarts: further searches from all pixels down, each from a random point as far away in L2 as the best image
            so far, at least 0. One costs what twice the iterations would, and gains more.
    """
    asked = check_request(model, images, labels, targets, where, confidence=confidence)
    aim = Aim.of(asked, quantize=quantize)
    plan = Plan(max_iterations, runs=1, abort_early=False, restarts=restarts, seed=seed)
    return closest(aim, _L0(L2(learning_rate, initial_const), patience), plan, progress)


@dataclass(frozen=True)
class L2(Norm):
    """Carlini and Wagner's objective in L2, with a c that moves."""

    learning_rate: float | None
    initial_const: float | None
    p = 2
    change = 0.2  # of c, by which it rises or falls at first
    longer = 4.0  # times, are the steps after a run in vain: small ones can end before a target that is far

    def begin(self, aim: Aim, rows: Tensor, best: Best) -> Runs:
        """A linear model with this lead and gradient is fooled at a distance f / |grad f|, by c = 2 f / |grad f|^2."""
        images = aim.images[rows]
        lead, gradient, _ = aim.lead_and_gradient(images, rows)
        best.spent(rows)
        length = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        distance = finite((lead + aim.goal.confidence) / length)
        const = finite(2 * distance / length)
        distance = torch.where(best.distance[rows].isfinite(), best.distance[rows], distance)
        if self.initial_const is not None:
            const = torch.full_like(const, self.initial_const)
        return Runs.begin(rows, images, const, self.rate_for(distance, images))

    def rate_for(self, distance: Tensor, images: Tensor) -> Tensor:
        """(n,): by default the change of one value when all share a distance (n,) equally."""
        if self.learning_rate is not None:
            return torch.full_like(distance, self.learning_rate)
        return distance / math.sqrt(math.prod(images.shape[1:]))

    def step(self, best: Best, live: Runs, look: Look, fading: Tensor) -> None:
        """One of Adam's."""
        best.offer(live.row, look.seen, look.distance, look.fits)
        live.adam(self.descent(live, look, fading), live.rate * fading)

    def descent(self, live: Runs, look: Look, fading: Tensor) -> Tensor:
        """(n, C, H, W): the gradient of |x' - x|^2 + c f with the next c.

        Over c, so that Adam's moments do not follow the scale of c.
        """
        up = 1 + self.change * fading
        live.bound = live.bound * torch.where(look.fits, 1 / up, up)
        return look.change * wide(2 / live.bound) + look.gradient

    def again(self, aim: Aim, best: Best, live: Runs, over: Tensor, plan: Plan, streams: Streams) -> Tensor:
        """From the image again, or from elsewhere, with steps for what has been found."""
        found = best.distance[live.row]
        if self.learning_rate is None:
            vain, closer = over & found.isinf(), over & found.isfinite()
            live.rate = torch.where(vain, self.longer * live.rate, live.rate)
            live.rate = torch.where(closer, self.rate_for(found, live.image), live.rate)
            uncounted = vain & (live.vain < plan.runs)
            live.vain, live.run = live.vain + uncounted, live.run - uncounted.long()
        return live.from_the_start(aim, best, over, plan, streams)


@dataclass(frozen=True)
class Linf(Norm):
    """Their objective in L-infinity, with a tau that moves."""

    learning_rate: float | None
    p = torch.inf
    change = 0.1  # of tau, by which it falls or rises at first
    pace = 0.3  # of tau: length of the first steps

    def begin(self, aim: Aim, rows: Tensor, best: Best) -> Runs:
        """Twice what a linear model with this lead and gradient would need, f / |grad f|_1."""
        images = aim.images[rows]
        lead, gradient, _ = aim.lead_and_gradient(images, rows)
        best.spent(rows)
        tau = finite(2 * (lead + aim.goal.confidence) / gradient.flatten(1).abs().sum(1)).clamp(max=1)
        tau = torch.minimum(tau, best.distance[rows])
        return Runs.begin(rows, images, tau, torch.full_like(tau, self.learning_rate or 0.0))

    def step(self, best: Best, live: Runs, look: Look, fading: Tensor) -> None:
        """One of Adam's, in a cube that has shrunk or grown."""
        best.offer(live.row, look.seen, look.change.flatten(1).abs().amax(1), look.fits)
        found = best.distance[live.row]
        up = 1 + self.change * fading
        closer, further = torch.minimum(live.bound, found) / up, torch.minimum(live.bound * up, found)
        live.bound = torch.where(look.fits, closer, further).clamp(max=1)
        rate = self.pace * live.bound if self.learning_rate is None else live.rate
        steepest = look.gradient.flatten(1).abs().amax(1).clamp(min=1e-30)
        live.adam(look.gradient / wide(steepest), rate * fading)
        tau = wide(live.bound)
        live.image = look.clean + (live.image - look.clean).clamp(-tau, tau)

    def again(self, aim: Aim, best: Best, live: Runs, over: Tensor, plan: Plan, streams: Streams) -> Tensor:
        """From the image again, or from elsewhere, in the smallest cube so far."""
        live.bound = torch.where(over, best.distance[live.row].clamp(max=1), live.bound)
        return live.from_the_start(aim, best, over, plan, streams)


@dataclass
class _Fewest(Runs):
    """Runs on fewer and fewer pixels."""

    allowed: Tensor  # (n, H * W) bool, what this round may change
    changed: Tensor  # (n, H * W) bool, what the last solution changes
    order: Tensor  # (n, H * W), those pixels from the least important on, then the others
    share: Tensor  # (n,), of those pixels that are frozen at once
    needed: Tensor  # (n,), how many of the least important have turned out to be
    solution: Tensor  # (n, C, H, W), the closest image that is as wanted, of this round or of the last that had one
    closest: Tensor  # (n,), its L2; inf while this round has none
    restarts: Tensor  # (n,), how many have been made


@dataclass(frozen=True)
class _L0(Norm):
    l2: L2
    patience: int
    p = 0
    share = 0.3
    first_rounds = 10  # on all pixels, one going on from the other, for a first solution; hard targets need several

    def begin(self, aim: Aim, rows: Tensor, best: Best) -> _Fewest:
        runs = self.l2.begin(aim, rows, best)
        pixels = aim.where[rows].flatten(1)
        return _Fewest(
            **{field.name: getattr(runs, field.name) for field in fields(runs)},
            allowed=pixels,
            changed=pixels,
            order=(~pixels).long().argsort(dim=1, stable=True),
            share=torch.full_like(runs.bound, self.share),
            needed=torch.zeros_like(rows),
            solution=runs.image,
            closest=torch.full_like(runs.bound, torch.inf),
            restarts=torch.zeros_like(rows),
        )

    def step(self, best: Best, live: Runs, look: Look, fading: Tensor) -> None:
        assert isinstance(live, _Fewest)
        closer = look.fits & (look.distance < live.closest)
        live.solution = torch.where(wide(closer), look.seen, live.solution)
        live.closest = torch.where(closer, look.distance, live.closest)
        free = live.allowed.view(-1, 1, *look.seen.shape[2:])
        live.adam(self.l2.descent(live, look, fading) * free, live.rate * fading)

    def again(self, aim: Aim, best: Best, live: Runs, over: Tensor, plan: Plan, streams: Streams) -> Tensor:
        assert isinstance(live, _Fewest)
        none = best.distance[live.row].isinf() & live.closest.isinf()  # not even all pixels have been enough so far
        onward = over & none & (live.run < self.first_rounds)
        live.restart(onward, live.image)
        over = over & ~onward
        hit, missed = over & live.closest.isfinite(), over & live.closest.isinf()
        single = live.share * live.changed.sum(1) < 2
        live.needed = live.needed + (missed & single)
        live.share = torch.where(missed & ~single, live.share / 2, live.share)
        self._rank(aim, best, live, hit.nonzero().flatten())
        count = live.changed.sum(1)
        done = over & (
            none | (live.needed >= torch.minimum(count, torch.full_like(count, self.patience))) | (count <= 1)
        )
        frozen_at_once = (live.share * count).long().clamp(min=1)
        place = torch.arange(live.order.shape[1], device=over.device)
        freeze = (place >= live.needed[:, None]) & (place < (live.needed + frozen_at_once)[:, None])
        allowed = live.changed & ~torch.zeros_like(freeze).scatter(1, live.order, freeze)
        live.allowed = torch.where(over[:, None], allowed, live.allowed)
        images = aim.images[live.row]
        live.restart(over, torch.where(live.allowed.view(-1, 1, *images.shape[2:]), live.solution, images))
        live.closest = live.closest.masked_fill(over, torch.inf)
        anew = done & ~none & (live.restarts < plan.restarts)
        if anew.any():
            self._anew(aim, best, live, anew, streams)
        return done & ~anew

    def _anew(self, aim: Aim, best: Best, live: _Fewest, anew: Tensor, streams: Streams) -> None:
        """Lets the rows `anew` (n,) bool change all pixels again, from a random point on."""
        live.restart(anew, torch.where(wide(anew), live.elsewhere(aim, best, streams, live.restarts), live.image))
        live.restarts = live.restarts + anew
        pixels = aim.where[live.row].flatten(1) & anew[:, None]
        live.allowed, live.changed = live.allowed | pixels, live.changed | pixels
        live.share, live.needed = live.share.masked_fill(anew, self.share), live.needed.masked_fill(anew, 0)
        live.rate = torch.where(anew, self.l2.rate_for(live.farness(aim, best), live.image), live.rate)

    def _rank(self, aim: Aim, best: Best, live: _Fewest, places: Tensor) -> None:
        """Takes the solutions of the rows at `places` (m,), and ranks the pixels that they change."""
        if not len(places):
            return
        rows, solution = live.row[places], live.solution[places]
        _, gradient, _ = aim.lead_and_gradient(solution, rows, hinge=False)
        best.spent(rows)
        change = solution - aim.images[rows]
        changed = (change != 0).any(1).flatten(1)
        best.offer(rows, solution, changed.sum(1).to(best.distance.dtype), torch.ones_like(rows, dtype=torch.bool))
        importance = (gradient * change).abs().sum(1).flatten(1).masked_fill(~changed, torch.inf)
        live.order[places] = importance.argsort(dim=1, stable=True)
        live.changed = live.changed.clone()
        live.changed[places] = changed
        live.needed = live.needed.index_fill(0, places, 0)
        left = changed.sum(1).clamp(min=1)
        live.rate[places] = self.l2.rate_for(live.closest[places], solution) * (changed.shape[1] / left).sqrt()


def finite(values: Tensor) -> Tensor:
    """(n,): positive numbers, 1 where a vanished gradient leaves none."""
    return values.nan_to_num(nan=1.0, posinf=1.0).clamp(1e-12, 1e12)
