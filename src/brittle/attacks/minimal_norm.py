"""A search for the closest image of every row that is as wanted, many rows at a time, each at its own pace.

A norm says what a run is and how it goes on; here are the rows: what is wanted of them, the best of each so far, and a
batch of runs in which a row that is done makes room for the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from brittle.attacks.result import BATCH, AttackResult, Request, frozen
from brittle.attacks.streams import Streams
from brittle.errors import InputError
from brittle.models.inference import differentiated
from brittle.models.networks import needed
from brittle.progress import Progress

MOMENTS = (0.9, 0.999)  # Adam's
LAST = 0.01  # share of the first steps' length, and of the first changes of c and tau, that is left at the end of a run
STALLED = 1e-4  # of its distance: a row that comes no closer than this in a fifth of a run may be given up


@dataclass(frozen=True)
class Plan:
    """How long is searched."""

    max_iterations: int
    runs: int = 1
    abort_early: bool = False
    restarts: int = 0
    seed: int = 0
    longer: float = 1.0  # times as long are the steps of rows for which nothing has been found


def closest(aim: Aim, norm: Norm, plan: Plan, progress: Progress) -> AttackResult:
    """The result of a search for the closest image of every row."""
    if aim.quantize and (aim.seen(aim.images) != aim.images).any():
        raise InputError("quantize needs images of whole 255ths: round them first, (images * 255).round() / 255")
    best = Best.of(aim.images)
    search(aim, norm, plan, best, progress)
    return best.measured(aim, norm.p)


def search(aim: Aim, norm: Norm, plan: Plan, best: Best, progress: Progress) -> None:
    """Searches for the closest image of every row, and offers all that it meets to `best`."""
    images, waiting = aim.images, aim.waiting
    streams = Streams.of(images, plan.seed)
    if not len(waiting):
        return

    def begun(rows: Tensor) -> Runs:
        runs = norm.begin(aim, rows, best)
        runs.rate = torch.where(best.distance[rows].isinf(), plan.longer * runs.rate, runs.rate)
        return runs

    with frozen(aim.model):
        live = begun(waiting[:BATCH])
        waiting = waiting[BATCH:]
        while len(waiting) or len(live.row):
            room = BATCH - len(live.row)
            if room and len(waiting):
                live = live.joined(begun(waiting[:room]))
                waiting = waiting[room:]
            live.turn = live.turn + 1
            norm.step(best, live, Look.at(aim, best, live, norm), live.fading(plan.max_iterations))
            over = live.turn >= plan.max_iterations
            if plan.abort_early:
                over |= live.stalls(best, plan.max_iterations)
            if over.any():
                live.run = live.run + over
                live = live.kept(~norm.again(aim, best, live, over, plan, streams))
                progress(len(images) - len(waiting) - len(live.row), len(images))
    progress(len(images), len(images))


# What is wanted -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Aim(Request):
    """A request, and how its images are searched."""

    quantize: bool = False  # by images of whole 255ths
    surely: float = 0.0  # share of the largest logit by which an image must be past the border to count
    rivals: Tensor | None = None  # (B,), int64, the class that is raised over the label; else the one that leads

    @classmethod
    def of(cls, asked: Request, **how: Any) -> Aim:
        """The request as it was checked."""
        return cls(**vars(asked), **how)

    def lead(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(n,): by how much the class that is to lose leads, over the rival of `rows` (n,) if they have one."""
        if self.rivals is None:
            return self.goal.lead(logits, rows)
        return self.goal.lead_over(self.rivals[rows], logits, rows)

    def fits(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(n,) bool: whether logits (n, K) of `rows` (n,) are as wanted, by more than rounding may take back."""
        there = self.goal.reached(logits, rows)
        if not self.surely:
            return there
        return there & (self.goal.lead(logits, rows) <= -self.surely * logits.abs().amax(1))

    def seen(self, images: Tensor) -> Tensor:
        """What the model is shown: the images, or the nearest whose values are whole 255ths."""
        return (images * 255).round() / 255 if self.quantize else images

    def lead_and_gradient(
        self, images: Tensor, rows: Tensor, *, hinge: bool = True, odds: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The lead, its gradient where the hinge lets it through, and whether the rows are as wanted.

        Where the model answers with NaN or more than a float holds, the gradient is 0: the search must not take it in.
        """

        def objective(logits: Tensor, part: slice) -> Tensor:
            if odds:
                return self.goal.loss(logits, rows[part], "exact")
            lead = self.lead(logits, rows[part])
            return lead.clamp(min=-self.goal.confidence) if hinge else lead

        logits, gradient = differentiated(self.model, images, objective)
        gradient = needed(gradient).nan_to_num(0, 0, 0) * self.where[rows]
        return self.lead(logits, rows).to(images.dtype), gradient, self.fits(logits, rows)


@dataclass
class Best:
    """Of every row, the closest image so far and what the search has cost."""

    images: Tensor
    distance: Tensor  # (N,), inf while there is none
    forwards: Tensor
    backwards: Tensor

    @classmethod
    def of(cls, images: Tensor) -> Best:
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

    def measured(self, asked: Request, p: float) -> AttackResult:
        """The result, of an attack that minimises the norm p."""
        return asked.measured(self.images, forwards=self.forwards + 1, backwards=self.backwards, minimises=p)


# The runs of a batch ------------------------------------------------------------------------------------------------


@dataclass
class Runs:
    """The rows of a batch, each in a run of its own."""

    row: Tensor  # (n,), of the request
    image: Tensor  # (n, C, H, W), where it has come to
    first: Tensor  # (n, C, H, W), Adam's moments
    second: Tensor
    turn: Tensor  # (n,), iterations of this run
    run: Tensor  # (n,), runs finished
    vain: Tensor  # (n,), of the first runs, those that left the row without any image and are not counted
    bound: Tensor  # (n,), what is searched: c, or tau
    rate: Tensor  # (n,), length of the first steps
    checked: Tensor  # (n,), the best distance at the last check

    @classmethod
    def begin(cls, rows: Tensor, images: Tensor, bound: Tensor, rate: Tensor) -> Runs:
        """The first runs of `rows` (n,), from their own images (n, C, H, W)."""
        whole, nothing = torch.zeros_like(rows), torch.zeros_like(images)
        return cls(rows, images, nothing, nothing, whole, whole, whole, bound, rate, torch.full_like(bound, torch.inf))

    def joined(self, others: Runs) -> Runs:
        """These and those."""
        return self._each(lambda name: torch.cat([getattr(self, name), getattr(others, name)]))

    def kept(self, which: Tensor) -> Runs:
        """Those of them (n,) bool."""
        return self._each(lambda name: getattr(self, name)[which])

    def _each(self, make: Callable[[str], Tensor]) -> Runs:
        return replace(self, **{field.name: make(field.name) for field in fields(self)})

    def fading(self, max_iterations: int) -> Tensor:
        """(n,): 1 at the beginning of a run, LAST at its end."""
        turn = self.turn.to(self.bound.dtype)
        return LAST + (1 - LAST) * (1 + torch.cos(turn * math.pi / max_iterations)) / 2

    def adam(self, gradient: Tensor, rate: Tensor) -> Tensor:
        """A step of length `rate` (n,) down the gradient (n, C, H, W), inside the box; the step of each value for a
        gradient of 1."""
        decay, slow = MOMENTS
        turn = wide(self.turn).to(gradient.dtype)
        self.first = decay * self.first + (1 - decay) * gradient
        self.second = slow * self.second + (1 - slow) * gradient * gradient
        size = (self.second / (1 - slow**turn)).sqrt() + torch.finfo(gradient.dtype).tiny
        self.image = (self.image - wide(rate) * self.first / (1 - decay**turn) / size).clamp(0, 1)
        return wide(rate) / size

    def stalls(self, best: Best, max_iterations: int) -> Tensor:
        """(n,) bool: rows that have come no closer since their last check, where one is due."""
        due = self.turn % max(1, max_iterations // 5) == 0
        now = best.distance[self.row]
        stalled = due & now.isfinite() & (now > (1 - STALLED) * self.checked)
        self.checked = torch.where(due, now, self.checked)
        return stalled

    def from_the_start(self, aim: Aim, best: Best, over: Tensor, plan: Plan, streams: Streams) -> Tensor:
        """Puts the rows `over` (n,) bool back to their own image or, once all runs from there are made, to a random
        point as far away as their best; (n,) bool: the rows for which that has been done often enough."""
        start, anew = aim.images[self.row], over & (self.run >= plan.runs)
        if anew.any():
            start = torch.where(wide(anew), self.elsewhere(aim, best, streams, self.run), start)
        self.restart(over, start)
        return self.run >= plan.runs + plan.restarts

    def elsewhere(self, aim: Aim, best: Best, streams: Streams, draw: Tensor) -> Tensor:
        """(n, C, H, W): for each row a random point as far away as its best, another at each `draw` (n,)."""
        clean = aim.images[self.row]
        noise = aim.where[self.row] * streams.of_rows(self.row).normal(tuple(clean.shape[1:]), draw, clean.dtype)
        radius = self.farness(aim, best) / torch.linalg.vector_norm(noise.flatten(1), dim=1)
        return (clean + wide(radius) * noise).clamp(0, 1)

    def farness(self, aim: Aim, best: Best) -> Tensor:
        """(n,): the L2 of each row's best."""
        return torch.linalg.vector_norm((best.images[self.row] - aim.images[self.row]).flatten(1), dim=1)

    def restart(self, which: Tensor, start: Tensor) -> None:
        """Begins a new run of rows (n,) bool from `start` (n, C, H, W)."""
        self.image = torch.where(wide(which), start, self.image)
        self.first, self.second = (moment.masked_fill(wide(which), 0) for moment in (self.first, self.second))
        self.turn = self.turn.masked_fill(which, 0)
        self.checked = self.checked.masked_fill(which, torch.inf)


@dataclass(frozen=True)
class Look:
    """What one evaluation of a batch has shown."""

    clean: Tensor  # (n, C, H, W), the rows' own images
    seen: Tensor  # (n, C, H, W), what the model was shown
    gradient: Tensor  # (n, C, H, W), of the lead, where the hinge lets it through
    fits: Tensor  # (n,) bool, whether it is as wanted

    @classmethod
    def at(cls, aim: Aim, best: Best, live: Runs, norm: Norm) -> Look:
        """At where the runs have come to, counted."""
        seen = aim.seen(live.image)
        _, gradient, fits = aim.lead_and_gradient(seen, live.row, hinge=norm.hinge, odds=norm.odds)
        best.spent(live.row)
        return cls(aim.images[live.row], seen, gradient, fits)

    @property
    def change(self) -> Tensor:
        """(n, C, H, W)."""
        return self.seen - self.clean

    @property
    def distance(self) -> Tensor:
        """(n,): its L2."""
        return torch.linalg.vector_norm(self.change.flatten(1), dim=1)


def wide(values: Tensor) -> Tensor:
    """(n,) -> (n, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


# A norm ---------------------------------------------------------------------------------------------------------------


class Norm(Protocol):
    """What is searched in a run, and how."""

    p: float  # 0, 1, 2 or inf
    hinge = True  # whether a row that is as wanted has no gradient
    odds = False  # whether the gradient is that of the log-odds, which heeds all classes, rather than the lead's

    def begin(self, aim: Aim, rows: Tensor, best: Best) -> Runs:
        """The first runs of `rows` (n,)."""
        ...

    def step(self, best: Best, live: Runs, look: Look, fading: Tensor) -> None:
        """One iteration of all runs."""
        ...

    def again(self, aim: Aim, best: Best, live: Runs, over: Tensor, plan: Plan, streams: Streams) -> Tensor:
        """Prepares the next run of the rows `over` (n,) bool, whose run is; (n,) bool: those that are done."""
        return over
