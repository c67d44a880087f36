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
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from brittle.attacks.result import BATCH, AttackResult, door, frozen, logits_of, measured
from brittle.errors import InputError
from brittle.progress import Progress, silent

MOMENTS = (0.9, 0.999)  # Adam's
LAST = 0.01  # share of the first steps' length, and of the first changes of c and tau, that is left at the end of a run
STALLED = 1e-4  # of its distance: a row that comes no closer than this in a fifth of a run may be given up


def carlini_l2(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    confidence: float = 0.0,
    learning_rate: float | None = None,
    max_iterations: int = 200,
    binary_search_steps: int = 2,
    initial_const: float | None = None,
    abort_early: bool = False,
    quantize: bool = False,
    restarts: int = 0,
    seed: int = 0,
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
        confidence: kappa, by how much the winning logit must lead, >= 0.
        learning_rate: length of Adam's first steps in pixel units, > 0; it falls to a hundredth along a cosine. By
            default each row's distance, as a linear model would have it and later its best, over the root of the
            number of its values.
        max_iterations: of a run, at least 1.
        binary_search_steps: runs for each row, at least 1. Each begins at the image, with the c of the one before.
        initial_const: c of the first run, > 0; by default that of a linear model with the row's lead and gradient.
        abort_early: end a run of a row that has come no closer by 1e-4 of its distance in a fifth of the run.
        quantize: look for images whose values are whole 255ths, which rounding to 8 bits leaves as they are.
        restarts: further runs from random points as far away as the best image so far, at least 0.
        seed: of the random points.
        progress: told the number of rows finished.

    Returns:
        For each row the closest image found that is as wanted.

    Raises:
        InputError: if an argument is not as above.
    """
    _check("initial_const", initial_const, initial_const is None or initial_const > 0, "positive")
    aim = _Aim(model, images, labels, targets, confidence, quantize)
    plan = _Plan(learning_rate, max_iterations, binary_search_steps, abort_early, restarts, seed)
    return _closest(aim, _L2(learning_rate, initial_const), plan, progress)


def carlini_linf(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    confidence: float = 0.0,
    learning_rate: float | None = None,
    max_iterations: int = 200,
    binary_search_steps: int = 2,
    abort_early: bool = False,
    quantize: bool = False,
    restarts: int = 0,
    seed: int = 0,
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
    aim = _Aim(model, images, labels, targets, confidence, quantize)
    plan = _Plan(learning_rate, max_iterations, binary_search_steps, abort_early, restarts, seed)
    return _closest(aim, _Linf(learning_rate), plan, progress)


def carlini_l0(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    confidence: float = 0.0,
    learning_rate: float | None = None,
    max_iterations: int = 60,
    initial_const: float | None = None,
    patience: int = 5,
    quantize: bool = False,
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
    """
    _check("initial_const", initial_const, initial_const is None or initial_const > 0, "positive")
    _check("patience", patience, patience >= 1, "at least 1")
    aim = _Aim(model, images, labels, targets, confidence, quantize)
    plan = _Plan(learning_rate, max_iterations, runs=1, abort_early=False, restarts=0, seed=0)
    return _closest(aim, _L0(_L2(learning_rate, initial_const), patience), plan, progress)


@dataclass(frozen=True)
class _Plan:
    """How long is searched, checked."""

    learning_rate: float | None
    max_iterations: int
    runs: int
    abort_early: bool
    restarts: int
    seed: int

    def __post_init__(self) -> None:
        _check("learning_rate", self.learning_rate, self.learning_rate is None or self.learning_rate > 0, "positive")
        _check("max_iterations", self.max_iterations, self.max_iterations >= 1, "at least 1")
        _check("binary_search_steps", self.runs, self.runs >= 1, "at least 1")
        _check("restarts", self.restarts, self.restarts >= 0, "at least 0")


def _check(name: str, value: float | None, fits: bool, expected: str) -> None:
    if not fits or (value is not None and not math.isfinite(value)):
        raise InputError(f"{name} must be {expected}, got {value}")


def _closest(aim: _Aim, norm: _Norm, plan: _Plan, progress: Progress) -> AttackResult:
    """The result of a search for the closest image of every row."""
    _check("confidence", aim.confidence, aim.confidence >= 0, "at least 0")
    images = aim.images
    clean = door(aim.model, images, aim.labels, aim.targets)
    random = torch.Generator(images.device).manual_seed(plan.seed)
    best = _Best.of(images)
    rows = torch.arange(len(images), device=images.device)
    waiting = rows[~aim.reached(clean, rows)]
    with frozen(aim.model):
        live = norm.begin(aim, waiting[:BATCH], best)
        waiting = waiting[BATCH:]
        while len(waiting) or len(live.row):
            room = BATCH - len(live.row)
            if room and len(waiting):
                live = live.joined(norm.begin(aim, waiting[:room], best))
                waiting = waiting[room:]
            live.turn = live.turn + 1
            norm.step(aim, best, live, live.fading(plan.max_iterations))
            over = live.turn >= plan.max_iterations
            if plan.abort_early:
                over |= live.stalls(best, plan.max_iterations)
            if over.any():
                live.run = live.run + over
                live = live.kept(~norm.again(aim, best, live, over, plan, random))
                progress(len(images) - len(waiting) - len(live.row), len(images))
    progress(len(images), len(images))
    return measured(
        aim.model,
        images,
        aim.labels,
        best.images,
        forwards=best.forwards + 1,
        backwards=best.backwards,
        targets=aim.targets,
    )


# What is wanted -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Aim:
    """Which class is to lose or to win, and by how much."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    targets: Tensor | None
    confidence: float
    quantize: bool

    def reached(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(n,) bool: whether `rows` (n,), with logits (n, K), are as wanted."""
        prediction = logits.argmax(1)
        there = prediction != self.labels[rows] if self.targets is None else prediction == self.targets[rows]
        return there & (self.lead(logits, rows) <= -self.confidence)

    def lead(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(n,): by how much the class that is to lose leads. C&W's f_6 before the hinge."""
        one = (self.labels if self.targets is None else self.targets)[rows, None]
        own = logits.gather(1, one).squeeze(1)
        others = logits.scatter(1, one, -torch.inf).amax(1)
        return own - others if self.targets is None else others - own

    def seen(self, images: Tensor) -> Tensor:
        """What the model is shown: the images, or the nearest whose values are whole 255ths."""
        return (images * 255).round() / 255 if self.quantize else images

    def lead_and_gradient(self, images: Tensor, rows: Tensor, *, hinge: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """The lead, its gradient where the hinge lets it through, and whether the rows are as wanted."""
        inputs = images.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = logits_of(self.model, inputs)
            lead = self.lead(logits, rows)
            objective = lead.clamp(min=-self.confidence) if hinge else lead
            (gradient,) = torch.autograd.grad(objective.sum(), inputs)
        return lead.detach().to(images.dtype), gradient, self.reached(logits.detach(), rows)


@dataclass
class _Best:
    """Of every row, the closest image so far and what the search has cost."""

    images: Tensor
    distance: Tensor  # (N,), inf while there is none
    forwards: Tensor
    backwards: Tensor

    @classmethod
    def of(cls, images: Tensor) -> _Best:
        """Nothing found yet."""
        count = len(images)
        nothing = torch.zeros(count, dtype=torch.int64, device=images.device)
        distance = torch.full((count,), torch.inf, dtype=images.dtype, device=images.device)
        return cls(images.clone(), distance, nothing, nothing.clone())

    def offer(self, rows: Tensor, images: Tensor, distance: Tensor, fits: Tensor) -> None:
        """Takes those of the images (n, C, H, W) that fit and are closer."""
        closer = fits & (distance < self.distance[rows])
        self.images[rows[closer]] = images[closer]
        self.distance[rows[closer]] = distance[closer]

    def spent(self, rows: Tensor) -> None:
        """Counts a forward and a backward of each row."""
        self.forwards[rows] += 1
        self.backwards[rows] += 1


# The runs of a batch ------------------------------------------------------------------------------------------------


@dataclass
class _Runs:
    """The rows of a batch, each in a run of its own."""

    row: Tensor  # (n,), of the request
    image: Tensor  # (n, C, H, W), where it has come to
    first: Tensor  # (n, C, H, W), Adam's moments
    second: Tensor
    turn: Tensor  # (n,), iterations of this run
    run: Tensor  # (n,), runs finished
    bound: Tensor  # (n,), what is searched: c, or tau
    rate: Tensor  # (n,), length of the first steps
    checked: Tensor  # (n,), the best distance at the last check

    @classmethod
    def begin(cls, rows: Tensor, images: Tensor, bound: Tensor, rate: Tensor) -> _Runs:
        """The first runs of `rows` (n,), from their own images (n, C, H, W)."""
        whole, nothing = torch.zeros_like(rows), torch.zeros_like(images)
        return cls(rows, images, nothing, nothing, whole, whole, bound, rate, torch.full_like(bound, torch.inf))

    def joined(self, others: _Runs) -> _Runs:
        """These and those."""
        return self._each(lambda name: torch.cat([getattr(self, name), getattr(others, name)]))

    def kept(self, which: Tensor) -> _Runs:
        """Those of them (n,) bool."""
        return self._each(lambda name: getattr(self, name)[which])

    def _each(self, make: Callable[[str], Tensor]) -> _Runs:
        return replace(self, **{field.name: make(field.name) for field in fields(self)})

    def fading(self, max_iterations: int) -> Tensor:
        """(n,): 1 at the beginning of a run, LAST at its end."""
        turn = self.turn.to(self.bound.dtype)
        return LAST + (1 - LAST) * (1 + torch.cos(turn * math.pi / max_iterations)) / 2

    def adam(self, gradient: Tensor, rate: Tensor) -> None:
        """A step of length `rate` (n,) down the gradient (n, C, H, W), inside the box."""
        decay, slow = MOMENTS
        turn = _wide(self.turn).to(gradient.dtype)
        self.first = decay * self.first + (1 - decay) * gradient
        self.second = slow * self.second + (1 - slow) * gradient * gradient
        size = (self.second / (1 - slow**turn)).sqrt() + torch.finfo(gradient.dtype).tiny
        self.image = (self.image - _wide(rate) * self.first / (1 - decay**turn) / size).clamp(0, 1)

    def stalls(self, best: _Best, max_iterations: int) -> Tensor:
        """(n,) bool: rows that have come no closer since their last check, where one is due."""
        due = self.turn % max(1, max_iterations // 5) == 0
        now = best.distance[self.row]
        stalled = due & now.isfinite() & (now > (1 - STALLED) * self.checked)
        self.checked = torch.where(due, now, self.checked)
        return stalled

    def from_the_start(self, aim: _Aim, best: _Best, over: Tensor, plan: _Plan, random: torch.Generator) -> Tensor:
        """Puts the rows `over` (n,) bool back to their own image or, once all runs from there are made, to a random
        point as far away as their best; (n,) bool: the rows for which that has been done often enough."""
        start, anew = aim.images[self.row], over & (self.run >= plan.runs)
        if anew.any():
            noise = torch.randn(start.shape, generator=random, device=start.device, dtype=start.dtype)
            found = (best.images[self.row] - start).flatten(1)
            radius = torch.linalg.vector_norm(found, dim=1) / torch.linalg.vector_norm(noise.flatten(1), dim=1)
            start = torch.where(_wide(anew), (start + _wide(radius) * noise).clamp(0, 1), start)
        self.restart(over, start)
        return self.run >= plan.runs + plan.restarts

    def restart(self, which: Tensor, start: Tensor) -> None:
        """Begins a new run of rows (n,) bool from `start` (n, C, H, W)."""
        self.image = torch.where(_wide(which), start, self.image)
        self.first, self.second = (moment.masked_fill(_wide(which), 0) for moment in (self.first, self.second))
        self.turn = self.turn.masked_fill(which, 0)
        self.checked = self.checked.masked_fill(which, torch.inf)


def _wide(values: Tensor) -> Tensor:
    """(n,) -> (n, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


# The norms ----------------------------------------------------------------------------------------------------------


class _Norm(Protocol):
    """What is searched in a run, and how."""

    def begin(self, aim: _Aim, rows: Tensor, best: _Best) -> _Runs:
        """The first runs of `rows` (n,)."""
        ...

    def step(self, aim: _Aim, best: _Best, live: _Runs, fading: Tensor) -> None:
        """One iteration of all runs."""
        ...

    def again(self, aim: _Aim, best: _Best, live: _Runs, over: Tensor, plan: _Plan, random: torch.Generator) -> Tensor:
        """Prepares the next run of the rows `over` (n,) bool, whose run is; (n,) bool: those that are done."""
        ...


@dataclass(frozen=True)
class _L2(_Norm):
    learning_rate: float | None
    initial_const: float | None
    change = 0.2  # of c, by which it rises or falls at first

    def begin(self, aim: _Aim, rows: Tensor, best: _Best) -> _Runs:
        """A linear model with this lead and gradient is fooled at a distance f / |grad f|, by c = 2 f / |grad f|^2."""
        images = aim.images[rows]
        lead, gradient, _ = aim.lead_and_gradient(images, rows)
        best.spent(rows)
        length = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        distance = _finite((lead + aim.confidence) / length)
        const = _finite(2 * distance / length)
        if self.initial_const is not None:
            const = torch.full_like(const, self.initial_const)
        return _Runs.begin(rows, images, const, self.rate_for(distance, images))

    def rate_for(self, distance: Tensor, images: Tensor) -> Tensor:
        """(n,): by default the change of one value when all share a distance (n,) equally."""
        if self.learning_rate is not None:
            return torch.full_like(distance, self.learning_rate)
        return distance / math.sqrt(math.prod(images.shape[1:]))

    def step(self, aim: _Aim, best: _Best, live: _Runs, fading: Tensor) -> None:
        seen = aim.seen(live.image)
        _, gradient, fits = aim.lead_and_gradient(seen, live.row)
        best.spent(live.row)
        change = seen - aim.images[live.row]
        best.offer(live.row, seen, torch.linalg.vector_norm(change.flatten(1), dim=1), fits)
        up = 1 + self.change * fading
        live.bound = live.bound * torch.where(fits, 1 / up, up)
        # the gradient of |x' - x|^2 + c f, over c, so that Adam's moments do not follow the scale of c
        live.adam(change * _wide(2 / live.bound) + gradient, live.rate * fading)

    def again(self, aim: _Aim, best: _Best, live: _Runs, over: Tensor, plan: _Plan, random: torch.Generator) -> Tensor:
        found = best.distance[live.row]
        live.rate = torch.where(over & found.isfinite(), self.rate_for(found, live.image), live.rate)
        return live.from_the_start(aim, best, over, plan, random)


@dataclass(frozen=True)
class _Linf(_Norm):
    learning_rate: float | None
    change = 0.1  # of tau, by which it falls or rises at first
    pace = 0.3  # of tau: length of the first steps

    def begin(self, aim: _Aim, rows: Tensor, best: _Best) -> _Runs:
        """Twice what a linear model with this lead and gradient would need, f / |grad f|_1."""
        images = aim.images[rows]
        lead, gradient, _ = aim.lead_and_gradient(images, rows)
        best.spent(rows)
        tau = _finite(2 * (lead + aim.confidence) / gradient.flatten(1).abs().sum(1)).clamp(max=1)
        return _Runs.begin(rows, images, tau, torch.full_like(tau, self.learning_rate or 0.0))

    def step(self, aim: _Aim, best: _Best, live: _Runs, fading: Tensor) -> None:
        seen, images = aim.seen(live.image), aim.images[live.row]
        _, gradient, fits = aim.lead_and_gradient(seen, live.row)
        best.spent(live.row)
        best.offer(live.row, seen, (seen - images).flatten(1).abs().amax(1), fits)
        found = best.distance[live.row]
        up = 1 + self.change * fading
        live.bound = torch.where(fits, torch.minimum(live.bound, found) / up, torch.minimum(live.bound * up, found))
        live.bound = live.bound.clamp(max=1)
        rate = self.pace * live.bound if self.learning_rate is None else live.rate
        live.adam(gradient / _wide(gradient.flatten(1).abs().amax(1).clamp(min=1e-30)), rate * fading)
        tau = _wide(live.bound)
        live.image = images + (live.image - images).clamp(-tau, tau)

    def again(self, aim: _Aim, best: _Best, live: _Runs, over: Tensor, plan: _Plan, random: torch.Generator) -> Tensor:
        live.bound = torch.where(over, best.distance[live.row].clamp(max=1), live.bound)
        return live.from_the_start(aim, best, over, plan, random)


@dataclass
class _Fewest(_Runs):
    """Runs on fewer and fewer pixels."""

    allowed: Tensor  # (n, H * W) bool, what this round may change
    changed: Tensor  # (n, H * W) bool, what the best image so far changes
    order: Tensor  # (n, H * W), those pixels from the least important on, then the others
    share: Tensor  # (n,), of those pixels that are frozen at once
    needed: Tensor  # (n,), how many of the least important have turned out to be
    solution: Tensor  # (n, C, H, W), the closest image of this round that is as wanted
    closest: Tensor  # (n,), its L2; inf while there is none


@dataclass(frozen=True)
class _L0(_Norm):
    l2: _L2
    patience: int
    share = 0.3

    def begin(self, aim: _Aim, rows: Tensor, best: _Best) -> _Fewest:
        runs = self.l2.begin(aim, rows, best)
        pixels = torch.ones(len(rows), aim.images[0, 0].numel(), dtype=torch.bool, device=rows.device)
        return _Fewest(
            **{field.name: getattr(runs, field.name) for field in fields(runs)},
            allowed=pixels,
            changed=pixels,
            order=pixels.long().cumsum(1) - 1,
            share=torch.full_like(runs.bound, self.share),
            needed=torch.zeros_like(rows),
            solution=runs.image,
            closest=torch.full_like(runs.bound, torch.inf),
        )

    def step(self, aim: _Aim, best: _Best, live: _Runs, fading: Tensor) -> None:
        assert isinstance(live, _Fewest)
        seen, images = aim.seen(live.image), aim.images[live.row]
        _, gradient, fits = aim.lead_and_gradient(seen, live.row)
        best.spent(live.row)
        change = seen - images
        distance = torch.linalg.vector_norm(change.flatten(1), dim=1)
        closer = fits & (distance < live.closest)
        live.solution = torch.where(_wide(closer), seen, live.solution)
        live.closest = torch.where(closer, distance, live.closest)
        up = 1 + self.l2.change * fading
        live.bound = live.bound * torch.where(fits, 1 / up, up)
        free = live.allowed.view(-1, 1, *images.shape[2:])
        live.adam((change * _wide(2 / live.bound) + gradient) * free, live.rate * fading)

    def again(self, aim: _Aim, best: _Best, live: _Runs, over: Tensor, plan: _Plan, random: torch.Generator) -> Tensor:
        assert isinstance(live, _Fewest)
        hit, missed = over & live.closest.isfinite(), over & live.closest.isinf()
        single = live.share * live.changed.sum(1) < 2
        live.needed = live.needed + (missed & single)
        live.share = torch.where(missed & ~single, live.share / 2, live.share)
        self._rank(aim, best, live, hit.nonzero().flatten())
        count = live.changed.sum(1)
        none = best.distance[live.row].isinf()  # not even all pixels were enough
        done = over & (
            none | (live.needed >= torch.minimum(count, torch.full_like(count, self.patience))) | (count <= 1)
        )
        frozen_at_once = (live.share * count).long().clamp(min=1)
        place = torch.arange(live.order.shape[1], device=over.device)
        freeze = (place >= live.needed[:, None]) & (place < (live.needed + frozen_at_once)[:, None])
        allowed = live.changed & ~torch.zeros_like(freeze).scatter(1, live.order, freeze)
        live.allowed = torch.where(over[:, None], allowed, live.allowed)
        images, found = aim.images[live.row], best.images[live.row]
        live.restart(over, torch.where(live.allowed.view(-1, 1, *images.shape[2:]), found, images))
        live.closest = live.closest.masked_fill(over, torch.inf)
        return done

    def _rank(self, aim: _Aim, best: _Best, live: _Fewest, places: Tensor) -> None:
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


def _finite(values: Tensor) -> Tensor:
    """(n,): positive numbers, 1 where a vanished gradient leaves none."""
    return values.nan_to_num(nan=1.0, posinf=1.0).clamp(1e-12, 1e12)
