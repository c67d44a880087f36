"""Lower bounds of how much a model's label leads its rivals, for all images of a ball: CROWN, alpha-CROWN.

Each activation is put between two lines, whose slopes depend on what its input lies between; then a linear function of
the logits is taken back to the image, with the line below or above at each value as its coefficient's sign wants, and
its least over the ball is known (Zhang et al. 2018). What the inputs of activations lie between is found in the same
way, layer by layer; intervals alone (Gowal et al. 2018) say first which of them are worth it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from brittle.attacks.options import Count, Range, checked
from brittle.attacks.result import Request, check_request
from brittle.certify.balls import Ball, Norm, least
from brittle.certify.operations import EPS, Bent, Interval, Lines, MaxPool, Rows, Scale
from brittle.certify.reading import Network, read
from brittle.progress import Progress, silent

MEMORY = 100e6  # bytes of what is known of the images that are bounded at once
_CACHED = 2e6  # bytes of the coefficients that are taken back at once: three times faster than where they leave caches
_RATE = 0.1  # of Adam, on slopes
_HALVINGS = 48
_HELD = 16  # numbers held for each value of each tensor
Slopes = Literal["adaptive", "optimised"]
Radius = Annotated[float, Range(lambda value: value > 0, "above 0")]


@checked
def bounds(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: Radius,
    norm: Norm = "linf",
    slopes: Slopes = "adaptive",
    steps: Count = 20,
    progress: Progress = silent,
) -> Tensor:
    """Proved lower bounds of z_y - z_k, the lead of the label over each rival, for all images within `eps`.

    What is proved is so of the network in exact arithmetic, for every image of the ball that lies in [0, 1]. Rounding
    in the proof is covered; that of the model itself, in float32 about 1e-6 of its logits, is not.

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K), K >= 2, of known layers (`reading.KNOWN`); bounded in
            evaluation mode, and left as it was. Of a model that ends in a softmax the leads are those of its logits.
        images: (B, C, H, W), float, in [0, 1].
        labels: (B,), int64, in 0..K-1.
        eps: radius of the ball in pixel units, > 0.
        norm: 'linf', 'l2' or 'l1', over all values of an image.
        slopes: 'adaptive' takes CROWN's line below each ReLU; 'optimised' looks for the slopes with the highest bounds
            by gradient steps (alpha-CROWN; Xu et al. 2021): tighter, some `steps` times slower.
        steps: gradient steps, where slopes are optimised.
        progress: told images.

    Returns:
        (B, K), float64; inf for the label itself. An image whose least entry is above 0 is fooled nowhere in the ball.

    Raises:
        InputError: if an argument is not as above, or the model has a layer that cannot be bounded, which is named.
    """
    problem = Problem.of(check_request(model, images, labels), norm)
    found = []
    with torch.no_grad():
        for which in problem.batches():
            radii = torch.full((len(which),), float(eps), dtype=torch.float64)
            found.append(problem.leads(which, radii, steps if slopes == "optimised" else 0))
            progress(int(which[-1]) + 1, len(images))
    return torch.cat(found)


@dataclass(frozen=True)
class Problem:
    """The images whose labels' leads are to be bounded."""

    network: Network
    images: Tensor  # (B, C, H, W), float64
    labels: Tensor  # (B,)
    norm: Norm
    classes: int

    @classmethod
    def of(cls, asked: Request, norm: Norm) -> Problem:
        """As it was asked for, on the CPU, where float64 is what it is."""
        images, logits = asked.images.cpu(), asked.clean.cpu()
        network = read(asked.model, images, logits)
        return cls(network, images.double(), asked.goal.labels.cpu(), norm, logits.shape[1])

    def batches(self) -> Sequence[Tensor]:
        """The numbers of the images, as many at a time as fit into MEMORY."""
        numbers = sum(math.prod(shape) for shape in self.network.shapes)
        return torch.arange(len(self.images)).split(max(1, int(MEMORY / (8 * _HELD * numbers))))

    def leads(self, which: Tensor, eps: Tensor, steps: int = 0) -> Tensor:
        """Lower bounds (n, K) of the leads of images `which` (n,) within eps (n,), inf for the label.

        Args:
            which: numbers of images.
            eps: of each.
            steps: by which slopes are optimised; 0 for none.
        """
        found = torch.full((len(which), self.classes), torch.inf, dtype=torch.float64)
        image, rival, functions = self._functions(which, self._proof(which, eps), steps)
        found[image, rival] = functions.at(eps[image])
        return found

    def reach(self, which: Tensor, eps: Tensor, most: Tensor, steps: int = 0) -> Tensor:
        """(n,): the largest radius, at most `most` (n,), at which the lines in balls of eps (n,) have positive leads.

        Proved where it is at most eps: lines hold in every ball within theirs.
        """
        image, _, functions = self._functions(which, self._proof(which, eps), steps)
        reach = torch.full_like(most, torch.inf).scatter_reduce(0, image, functions.root(most[image]), "amin")
        return torch.minimum(reach, most)

    def _proof(self, which: Tensor, eps: Tensor) -> Proof:
        proof = Proof(self.network, Ball(self.images[which], eps, self.norm))
        proof.prepare()
        return proof

    def _functions(self, which: Tensor, proof: Proof, steps: int) -> tuple[Tensor, Tensor, Functions]:
        """Lower bounds of all leads as functions of the image; which image each is of, and which rival."""
        image = torch.arange(len(which)).repeat_interleave(self.classes - 1)
        rivals = torch.arange(self.classes).expand(len(which), -1)
        rival = rivals[rivals != self.labels[which, None]]
        values = torch.zeros(len(image), self.classes, dtype=torch.float64)
        values.scatter_(1, self.labels[which][image, None], 1.0).scatter_(1, rival[:, None], -1.0)
        last = len(self.network.operations)
        chosen = proof.climbed(last, Rows(values), image, steps) if steps else None
        return image, rival, proof.functions(last, Rows(values), image, chosen)


@dataclass(frozen=True)
class Functions:
    """n linear functions of images, lower bounds of something in balls around them."""

    slopes: Tensor  # (n, D)
    value: Tensor  # (n,), at the image itself, with what rounding may do to all taken off
    room: Tensor  # (n, D), how far a value of the image can go against the sign of its slope
    norm: Norm

    def at(self, eps: Tensor) -> Tensor:
        """(n,): the least in balls of eps (n,)."""
        return self.value + least(self.slopes, self.room, eps, self.norm)

    def root(self, most: Tensor) -> Tensor:
        """(n,): the largest eps up to `most` (n,) at which the least is still positive; 0 if it is at none."""
        low, high = torch.zeros_like(most), most.clone()
        fits = self.at(most) > 0
        low = torch.where(fits, most, low)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            good = self.at(middle) > 0
            low, high = torch.where(good, middle, low), torch.where(good, high, middle)
        return low


@dataclass
class Proof:
    """What is known of all tensors of a network over a ball around each image."""

    network: Network
    ball: Ball
    ends: list[Interval] = field(default_factory=list)  # of each tensor
    sizes: list[Tensor] = field(default_factory=list)  # (B,), of each tensor: the largest |W| |h| + |c| that made it
    lines: dict[int, Lines] = field(default_factory=dict)  # of what is not linear, by the number of its tensor
    widest: int = 0  # numbers of a row, at most, as seen so far

    def prepare(self, last: int | None = None) -> None:
        """Bounds all tensors up to `last` and lays the lines, in the order of the network."""
        self.ends.append(self.ball.interval())
        self.sizes.append(torch.ones(len(self.ball.images), dtype=torch.float64))
        # tensors whose values vary each by itself in L-infinity: an interval of what one step makes of them is exact
        boxes = {0} if self.ball.norm == "linf" else set()
        for number, one in enumerate(self.network.operations[:last], 1):
            inputs = [self.ends[i] for i in one.inputs]
            if isinstance(one, Bent | MaxPool):
                (place,) = one.inputs
                made = self.network.operations[place - 1] if place else None
                known = (
                    made is None
                    or isinstance(made, Bent | MaxPool)
                    or (made.inputs[0] in boxes and len(made.inputs) == 1)
                )
                if not known:
                    self._tighten(place, one.loose(*self.ends[place]))
                self.lines[number] = lines = one.relaxed(*self.ends[place])
                self.ends.append(one.interval(self.ends[place]))
                self.sizes.append(lines.largest(_largest(self.ends[place])))
            else:
                self.ends.append(one.interval(*inputs))
                self.sizes.append(one.size(*inputs).flatten(1).amax(1) + _largest(self.ends[-1]))
                if isinstance(one, Scale) and one.inputs[0] in boxes:
                    boxes.add(number)

    def _tighten(self, place: int, loose: Tensor) -> None:
        """Takes the ends of a tensor back to the image, at its values that are `loose` (B, *shape) bool."""
        image, *where = loose.nonzero(as_tuple=True)
        if len(image):
            low, high = (end.clone() for end in self.ends[place])
            low[loose] = torch.maximum(low[loose], self._units(place, image, where, 1.0))
            high[loose] = torch.minimum(high[loose], -self._units(place, image, where, -1.0))
            self.ends[place] = (low, high)

    def _units(self, place: int, image: Tensor, where: Sequence[Tensor], sign: float) -> Tensor:
        """(n,): lower bounds of sign * the values at `where` of the tensor `place`."""
        shape, found, begin = self.network.shapes[place], [], 0
        while begin < len(image):
            room = int(_CACHED / (8 * self.widest)) if self.widest else 16
            part = slice(begin, begin + max(1, room))
            functions = self.functions(place, _unit_rows(shape, [w[part] for w in where], sign), image[part])
            found.append(functions.at(self.ball.eps[image[part]]))
            begin += len(found[-1])
        return torch.cat(found)

    def functions(self, place: int, rows: Rows, image: Tensor, chosen: dict[int, Tensor] | None = None) -> Functions:
        """Linear functions of the tensor `place`, taken back to the images: lower bounds in their balls.

        Args:
            place: number of the tensor.
            rows: of n functions.
            image: (n,), which of the ball's images each is about.
            chosen: slopes of the lines below, for each row its own (n, *shape), by the number of the tensor.
        """
        waiting = {place: rows}
        constant = torch.zeros(len(image), dtype=torch.float64)
        slack = torch.zeros_like(constant)
        for number in range(place, 0, -1):
            if number not in waiting:
                continue
            rows, one = waiting.pop(number), self.network.operations[number - 1]
            shapes = [self.network.shapes[i] for i in one.inputs]
            self.widest = max(self.widest, rows.values[0].numel())
            slack = slack + EPS * one.terms * rows.total() * self.sizes[number][image]
            if isinstance(one, Bent | MaxPool):
                own = None if chosen is None else chosen.get(number)
                back, added = self._bent(one, rows, image, self.lines[number], own, shapes[0])
            else:
                back, added = one.back(rows, shapes)
            constant = constant + added
            for i, taken in zip(one.inputs, back, strict=True):
                waiting[i] = waiting[i].plus(taken, self.network.shapes[i]) if i in waiting else taken
        if 0 not in waiting:
            waiting[0] = Rows(torch.zeros(len(image), *self.network.shapes[0], dtype=torch.float64))
        rows = waiting[0]
        clean = rows.gathered(image, self.ball.images)
        room = torch.where(rows.values > 0, clean, 1 - clean).flatten(1)
        # of the sums over the image, in `Functions.at` too, where a value and its change are at most 1
        slack = slack + 4 * EPS * (rows.values[0].numel() + 16) * rows.total()
        value = constant + (rows.values * clean).flatten(1).sum(1)
        value = value - slack - 4 * EPS * (constant.abs() + value.abs())
        return Functions(rows.values.flatten(1), value, room, self.ball.norm)

    def _bent(
        self,
        one: Bent | MaxPool,
        rows: Rows,
        image: Tensor,
        lines: Lines,
        chosen: Tensor | None,
        shape: Sequence[int],
    ) -> tuple[list[Rows], Tensor]:
        """The lines below where a coefficient is positive, above where it is negative."""
        values, up = rows.values, rows.values > 0
        lows = [rows.gathered(image, low) for low in lines.low] if chosen is None else [chosen]
        highs = [rows.gathered(image, high) for high in lines.high]
        taps = [values * torch.where(up, low, high) for low, high in zip(lows, highs, strict=True)]
        if lines.below is None:
            added = values.clamp(max=0) * rows.gathered(image, lines.above)
        else:
            added = values * torch.where(up, rows.gathered(image, lines.below), rows.gathered(image, lines.above))
        back = one.spread(rows, torch.stack(taps), shape) if isinstance(one, MaxPool) else Rows(taps[0], rows.corner)
        return [back], added.flatten(1).sum(1)

    # Optimised slopes -------------------------------------------------------------------------------------------------

    def climbed(self, place: int, rows: Rows, image: Tensor, steps: int) -> dict[int, Tensor]:
        """Slopes (n, *shape) of the lines below open ReLUs with higher bounds for each row: alpha-CROWN's last pass.

        Below an open ReLU lies any line through 0 with a slope from 0 to 1, so that what the steps find is sound
        wherever they end. What activations' inputs lie between is left as it is.
        """
        bends = {number: self.network.operations[number - 1] for number in self.lines}
        kinks = {number: one for number, one in bends.items() if isinstance(one, Bent) and one.kinks}
        chosen = {number: self.lines[number].low[0][image].requires_grad_(True) for number in kinks}
        if not chosen:
            return {}
        open_ = {number: one.loose(*self.ends[one.inputs[0]])[image] for number, one in kinks.items()}
        first = {number: slopes.detach().clone() for number, slopes in chosen.items()}
        kept, best = first, torch.full((len(image),), -torch.inf, dtype=torch.float64)
        optimiser = torch.optim.Adam(chosen.values(), lr=_RATE, maximize=True)
        for _ in range(steps):
            with torch.enable_grad():
                low = self.functions(place, rows, image, chosen).at(self.ball.eps[image])
                optimiser.zero_grad()
                low.sum().backward()
            better = low.detach() > best
            best = torch.where(better, low.detach(), best)
            kept = {
                number: torch.where(better.view(-1, *[1] * (slopes.ndim - 1)), slopes.detach(), kept[number])
                for number, slopes in chosen.items()
            }
            optimiser.step()
            for number, slopes in chosen.items():
                flat = kinks[number].function(slopes.new_tensor(-1.0)).abs().clamp(max=1)  # of a leaky ReLU below 0
                slopes.data = torch.where(open_[number], slopes.data.clamp(float(flat), 1), first[number])
        return kept


def _largest(ends: Interval) -> Tensor:
    """(B,): the largest absolute value."""
    low, high = ends
    return torch.maximum(low.abs(), high.abs()).flatten(1).amax(1)


def _unit_rows(shape: Sequence[int], where: Sequence[Tensor], sign: float) -> Rows:
    """Functions that are single values of a tensor, as windows of one place where it has places."""
    if len(shape) == 3:
        channel, down, right = where
        values = torch.zeros(len(channel), 1, 1, shape[0], dtype=torch.float64)
        values[torch.arange(len(channel)), 0, 0, channel] = sign
        return Rows(values, torch.stack([down, right], 1))
    values = torch.zeros(len(where[0]), *shape, dtype=torch.float64)
    values[(torch.arange(len(where[0])), *where)] = sign
    return Rows(values)
