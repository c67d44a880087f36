"""The exact smallest L-infinity perturbation of a small piecewise linear network, by mixed-integer programming."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from brittle.attacks.goal import Goal
from brittle.attacks.options import Positive, checked
from brittle.attacks.result import check_request, logits_in_batches
from brittle.certify.balls import Ball
from brittle.certify.bounds import Problem, Proof
from brittle.certify.bracket import closest, stepped
from brittle.certify.operations import Bent, MaxPool, Rows
from brittle.certify.radius import radius
from brittle.certify.reading import Network
from brittle.errors import InputError
from brittle.models.networks import frozen
from brittle.progress import Progress, barred, silent

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# HiGHS holds constraints to 1e-6 and takes binaries for whole within 1e-6: its bound is lowered by that.
TOLERANCE = 1e-6
SURELY = 1e-5  # a lead that this tolerance does not take back


@dataclass(frozen=True, repr=False)
class Exact:
    """Of each image the ends between which its L-infinity distance from the nearest adversarial image lies."""

    lower: Tensor  # (B,), float64: nothing nearer fools the model, to the solver's tolerance; inf where nothing does
    upper: Tensor  # (B,), float64: the distance of `adversarial`, inf where none was found
    adversarial: Tensor  # (B, C, H, W), in [0, 1], seen to fool the model; the image itself where none was found
    correct: Tensor  # (B,) bool: whether the model is right on the image itself; both ends are 0 where it is not
    solved: Tensor  # (B,) bool: whether the search ended before its time
    seconds: Tensor  # (B,), float64: that it took
    failures: tuple[str, ...]  # what the solver said where it failed, '' elsewhere

    def __repr__(self) -> str:
        return f"<Exact: {len(self.lower)} images, {int(self.solved.sum())} of them solved>"


@barred("exact distances")
@checked
def exact(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    time_limit: Positive = 60.0,
    progress: Progress | None = None,
) -> Exact:
    """The smallest L-infinity perturbation within [0, 1] that fools a model, of each image.

    Tjeng et al. 2019: for each rival the least eps such that some image within eps gives it a logit no smaller than the
    label's, with a binary variable for each ReLU that may be on either side within the distance of the best adversarial
    image known. Rivals that linear relaxation excludes there are not searched.

    Args:
        model: as for `bounds`, of linear layers, ReLU, LeakyReLU of a slope below 1, and maximum pooling.
        images: (B, C, H, W), float, in [0, 1]; labels: (B,), int64.
        time_limit: seconds for an image, > 0, of the solver's own work. Both ends are told when they have passed.
        progress: told images; by default a bar is shown on a terminal and in a notebook.

    Raises:
        InputError: as for `bounds`, or if the model has a layer that is not piecewise linear, which is named.
    """
    told = progress or silent
    asked = check_request(model, images, labels)
    problem = Problem.of(asked, "linf")
    for one in problem.network.operations:
        if isinstance(one, Bent) and not (one.kinks and _slope(one) <= 1):
            raise InputError(f"exact distances need a piecewise linear network, and {one.name} is not one of its kind")
    adversarial = closest(model, asked.images, asked.goal.labels, norm="linf", evaluations=200)
    correct = ~Goal(asked.goal.labels).reached(asked.clean)
    proved = radius(model, images, labels).radius
    found = []
    for number in range(len(images)):
        search = _Search(
            model,
            problem,
            torch.tensor([number]),
            asked.images[number : number + 1],
            float(time_limit),
            float(proved[number]),
        )
        with torch.no_grad():
            found.append(search.run(adversarial[number : number + 1], bool(correct[number])))
        told(number + 1, len(images))
    lower, upper, solved, seconds = (torch.tensor(each) for each in list(zip(*found, strict=True))[:4])
    return Exact(
        lower=lower.double(),
        upper=upper.double(),
        adversarial=torch.cat([one[4] for one in found]),
        correct=correct,
        solved=solved,
        seconds=seconds.double(),
        failures=tuple(one[5] for one in found),
    )


def _slope(one: Bent) -> float:
    """Of a ReLU's kind, the slope below 0."""
    return float(-one.function(torch.tensor(-1.0, dtype=torch.float64)))


def _bound(answer: Any) -> float:
    """The eps below which HiGHS found that there is no solution; inf where there is none within reach."""
    if answer.status == 2:
        return torch.inf
    told = answer.fun if answer.status == 0 else getattr(answer, "mip_dual_bound", None)
    return 0.0 if told is None or not np.isfinite(told) else max(0.0, float(told) - TOLERANCE)


@dataclass
class _Search:
    """The nearest adversarial image of one image."""

    model: nn.Module
    problem: Problem
    which: Tensor  # (1,)
    image: Tensor  # (1, C, H, W), as the model takes it
    time_limit: float
    proved: float  # what linear relaxation says

    def run(self, adversarial: Tensor, correct: bool) -> tuple[float, float, bool, float, Tensor, str]:
        """The ends, whether it is solved, seconds, the adversarial image, and why the solver failed."""
        if not correct:
            return 0.0, 0.0, True, 0.0, self.image, ""
        label = self.problem.labels[self.which]
        best = self.image
        upper = float((adversarial.double() - self.image.double()).abs().max())
        if Goal(label).reached(logits_in_batches(self.model, adversarial)).item():
            best = adversarial
        else:
            upper = torch.inf
        farthest = float(torch.maximum(self.image, 1 - self.image).max())
        reach = torch.tensor([min(upper, farthest)], dtype=torch.float64)
        leads = self.problem.leads(self.which, reach)[0]
        rivals = [int(k) for k in leads.argsort() if leads[k] <= 0]
        lower, solved, failure, begun = upper, True, "", time.monotonic()
        for place, rival in enumerate(rivals):
            left = (self.time_limit - (time.monotonic() - begun)) / (len(rivals) - place)
            program = _Program.of(self.problem, self.which, min(upper, farthest))
            answer = program.nearest(rival, int(label), max(left, 1e-2))
            solved &= answer.status in (0, 2)
            failure = failure if answer.status in (0, 1, 2) else f"{answer.message}".strip()
            lower = min(lower, _bound(answer))
            for margin in (0.0, SURELY):  # where the rival's region ends in a tip, the tip itself cannot be verified
                if margin:
                    answer = program.nearest(rival, int(label), max(left, 1e-2), margin)
                if answer.x is None:
                    break
                point, size = self._verified(answer.x, rival, label)
                if size < upper:
                    best, upper = point, size
                if size <= answer.fun + TOLERANCE:
                    break
        return min(max(lower, self.proved), upper), upper, solved, time.monotonic() - begun, best, failure

    def _verified(self, solution: np.ndarray, rival: int, label: Tensor) -> tuple[Tensor, float]:
        """The solver's image, or the nearest one to the original beyond the border that it lies on; inf if none fools.

        It lies on the border to the rival, to the solver's tolerance on either side.
        """
        values = torch.from_numpy(solution[: self.image.numel()]).view_as(self.image)
        point = values.clamp(0, 1).to(self.image.dtype)
        with frozen(self.model):
            moved, size = stepped(self.model, self.image, label, torch.tensor([rival]), point, "linf")
        own = float((point.double() - self.image.double()).abs().max())
        if Goal(label).reached(logits_in_batches(self.model, point)).item() and own < float(size):
            return point, own
        return moved, float(size)


@dataclass
class _Program:
    """A network over a ball as a mixed-integer program: variables are the image, eps, and what bends give."""

    network: Network
    proof: Proof
    columns: int
    start: dict[int, int] = field(default_factory=dict)  # of each tensor that is a variable, its first column
    low: list[np.ndarray] = field(default_factory=list)
    high: list[np.ndarray] = field(default_factory=list)
    whole: list[np.ndarray] = field(default_factory=list)
    rows: list[tuple[Any, np.ndarray, np.ndarray]] = field(default_factory=list)  # columns' coefficients, ends

    @classmethod
    def of(cls, problem: Problem, which: Tensor, reach: float) -> _Program:
        """All of it but for the rival, for images within `reach` of the image `which`."""
        image = problem.images[which]
        proof = Proof(problem.network, Ball(image, torch.tensor([reach], dtype=torch.float64), "linf"))
        proof.prepare()
        program = cls(problem.network, proof, 0)
        program._variables(0, *(end.flatten().numpy() for end in proof.ends[0]))
        eps = program._variables(-1, np.zeros(1), np.array([reach]))
        clean, size = image.flatten().numpy(), image.numel()
        identity = (np.arange(size), np.arange(size), np.ones(size))
        for sign in (1.0, -1.0):  # sign (x - clean) <= eps
            far = (np.arange(size), np.full(size, eps), np.full(size, -sign))
            ends = (np.full(size, -np.inf), clean) if sign > 0 else (clean, np.full(size, np.inf))
            program._rows(size, [identity, far], *ends)
        for number, one in enumerate(problem.network.operations, 1):
            if isinstance(one, MaxPool):
                program._largest(number, one)
            elif isinstance(one, Bent):
                program._bent(number, one)
        return program

    def nearest(self, rival: int, label: int, seconds: float, margin: float = 0.0) -> Any:
        """What HiGHS says of the least eps with z_rival >= z_label + margin."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        values = torch.zeros(1, self.network.shapes[-1][0], dtype=torch.float64)
        values[0, rival], values[0, label] = 1, -1
        lead, constant = self._form(len(self.network.operations), Rows(values))
        parts = [*self.rows, (lead, margin - constant, np.full(1, np.inf))]
        data, lines, places, begin = [], [], [], 0
        for entries, ends, _ in parts:
            for line, column, value in entries:
                lines.append(line + begin)
                places.append(column)
                data.append(value)
            begin += len(ends)
        matrix: csr_array = csr_array(
            (np.concatenate(data), (np.concatenate(lines), np.concatenate(places))), shape=(begin, self.columns)
        )
        cost = np.zeros(self.columns)
        cost[self.start[-1]] = 1
        low, high = (np.concatenate([part[side] for part in parts]) for side in (1, 2))
        ends: list[Any] = [np.concatenate(self.low), np.concatenate(self.high)]  # scipy's stubs know numbers alone
        limits: list[Any] = [low, high]
        bounds, rows = Bounds(*ends), LinearConstraint(matrix, *limits)
        return milp(
            cost,
            integrality=np.concatenate(self.whole),
            bounds=bounds,
            constraints=rows,
            options={"time_limit": seconds, "mip_rel_gap": 0.0},
        )

    def _variables(self, name: int, low: np.ndarray, high: np.ndarray, *, whole: bool = False) -> int:
        begin = self.columns
        self.start[name] = begin
        self.columns += len(low)
        self.low.append(low)
        self.high.append(high)
        self.whole.append(np.full(len(low), int(whole)))
        return begin

    def _rows(self, count: int, entries: list[tuple[Any, Any, Any]], low: Any, high: Any) -> None:
        self.rows.append((entries, np.broadcast_to(low, count), np.broadcast_to(high, count)))

    def _form(self, place: int, rows: Rows) -> tuple[list[tuple[Any, Any, Any]], np.ndarray]:
        """Linear functions of a tensor in the variables: (line, column, coefficient), and constants (n,)."""
        waiting, entries = {place: rows}, []
        constant = torch.zeros(len(rows.values), dtype=torch.float64)
        for number in range(place, -1, -1):
            if number not in waiting:
                continue
            rows = waiting.pop(number)
            if number in self.start:
                found = rows.whole(self.network.shapes[number]).values.flatten(1)
                line, column = found.nonzero(as_tuple=True)
                entries.append((line.numpy(), column.numpy() + self.start[number], found[line, column].numpy()))
                continue
            one = self.network.operations[number - 1]
            back, added = one.back(rows, [self.network.shapes[i] for i in one.inputs])
            constant = constant + added
            for i, taken in zip(one.inputs, back, strict=True):
                waiting[i] = waiting[i].plus(taken, self.network.shapes[i]) if i in waiting else taken
        return entries, constant.numpy()

    def _units(self, place: int, which: Tensor) -> tuple[list[tuple[Any, Any, Any]], np.ndarray]:
        """The values `which` (n,) of a tensor, flat, in the variables."""
        values = torch.zeros(len(which), int(np.prod(self.network.shapes[place])), dtype=torch.float64)
        values[torch.arange(len(which)), which] = 1
        return self._form(place, Rows(values.view(len(which), *self.network.shapes[place])))

    def _bent(self, number: int, one: Bent) -> None:
        """y = x above 0 and s x below: by its sides, or with a binary b where both are possible.

        y >= x, y >= s x, y <= s x + (1 - s) u b, y <= x - (1 - s) l (1 - b).
        """
        (place,) = one.inputs
        low, high = (end.flatten() for end in self.proof.ends[place])
        slope = _slope(one)
        ends = [end.flatten().numpy() for end in self.proof.ends[number]]
        begin = self._variables(number, *ends)
        for which, steep in ((low >= 0, 1.0), ((high <= 0) & (low < 0), slope)):
            self._tied(place, begin, which.nonzero().flatten(), steep, 0.0, 0.0)
        which = ((low < 0) & (high > 0)).nonzero().flatten()
        if not len(which):
            return
        binary = self._variables(-1 - 2 * number, np.zeros(len(which)), np.ones(len(which)), whole=True)
        at = (np.arange(len(which)), binary + np.arange(len(which)))
        up, down = (1 - slope) * high[which].numpy(), (1 - slope) * low[which].numpy()
        for steep in (1.0, slope):
            self._tied(place, begin, which, steep, 0.0, np.inf)
        self._tied(place, begin, which, slope, -np.inf, 0.0, (*at, -up))
        self._tied(place, begin, which, 1.0, -np.inf, -down, (*at, -down))

    def _tied(
        self, place: int, begin: int, which: Tensor, steep: float, low: Any, high: Any, *more: tuple[Any, Any, Any]
    ) -> None:
        """low <= y - steep x + more <= high, of the values `which` (n,) of x."""
        if len(which):
            form, constant = self._units(place, which)
            own = (np.arange(len(which)), begin + which.numpy(), np.ones(len(which)))
            entries = [own, *((line, column, -steep * value) for line, column, value in form), *more]
            self._rows(len(which), entries, low + steep * constant, high + steep * constant)

    def _largest(self, number: int, one: MaxPool) -> None:
        """y >= x_i, y <= x_i + (u - l_i) (1 - b_i), the b_i sum to 1; of the values that can be the largest."""
        (place,) = one.inputs
        lows, highs = (one.taps(end)[:, 0].flatten(1) for end in self.proof.ends[place])
        shape = self.network.shapes[place]
        numbers = torch.arange(int(np.prod(shape)), dtype=torch.float64).view(1, *shape)
        sources = one.taps(numbers)[:, 0].flatten(1)
        begin = self._variables(number, *(end.flatten().numpy() for end in self.proof.ends[number]))
        can = highs >= lows.amax(0)
        tap, output = can.nonzero(as_tuple=True)
        which, count = sources[tap, output].long(), len(tap)
        binary = self._variables(-1 - 2 * number, np.zeros(count), np.ones(count), whole=True)
        form, constant = self._units(place, which)
        minus = [(line, column, -value) for line, column, value in form]
        own = (np.arange(count), begin + output.numpy(), np.ones(count))
        room = (highs.amax(0)[output] - lows[tap, output]).numpy()
        self._rows(count, [own, *minus], constant, np.inf)
        chosen = (np.arange(count), binary + np.arange(count), room)
        self._rows(count, [own, *minus, chosen], -np.inf, constant + room)
        self._rows(lows.shape[1], [(output.numpy(), binary + np.arange(count), np.ones(count))], 1.0, 1.0)
