"""The audit: is a classifier robust, or does it only look so, and why."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from brittle.auditing import checks
from brittle.auditing.battery import BUDGETS, Battery, Step, median_lead
from brittle.auditing.checks import Check
from brittle.auditing.door import Door, look_in
from brittle.auditing.gradients import Gradients
from brittle.auditing.ledger import Ledger, Norm
from brittle.auditing.verdict import CAUSES, Verdict, decide
from brittle.auditing.views import Scaled
from brittle.data import Split
from brittle.errors import InputError, unknown
from brittle.measures import Share, share
from brittle.networks import frozen, logits_of, seeded
from brittle.progress import Progress, silent

__all__ = ["CAUSES", "Audit", "Check", "Curve", "Door", "Gradients", "Picture", "Step", "Verdict", "audit", "usual_eps"]

NORMS = get_args(Norm)
TURNS = 32  # attacks that progress is told of, about
WORDS = {"linf": "L-infinity", "l2": "L2", "l0": "L0"}
SMALL = {"linf": 0.3, "l2": 1.5, "l0": 10}  # MNIST: Madry et al. 2018; L2: Croce and Hein 2020, L0: ours, see usual_eps
LARGE = {"linf": 8 / 255, "l2": 0.5, "l0": 10}  # CIFAR-10: RobustBench's, Croce et al. 2021


@dataclass(frozen=True)
class Curve:
    """The share of rows that stay right, by eps.

    Attributes:
        name: 'common attack', 'everything' or 'undefended reference'.
        eps: the bounds, rising; the last is no bound at all.
        left: the share at each.
        rows: how many were attacked.
    """

    name: str
    eps: tuple[float, ...]
    left: tuple[float, ...]
    rows: int


@dataclass(frozen=True, eq=False)
class Picture:
    """The smallest change found for one row.

    Attributes:
        row: in the split.
        label: the right class.
        prediction: the model's class for the changed image.
        size: of the change, in the audit's norm.
        attack: that found it.
        clean: (C, H, W).
        adversarial: (C, H, W).
    """

    row: int
    label: int
    prediction: int
    size: float
    attack: str
    clean: Tensor
    adversarial: Tensor


@dataclass(frozen=True, eq=False)
class Audit:
    """All that an audit found.

    Attributes:
        verdict: what it comes to.
        norm: 'linf', 'l2' or 'l0'; eps: the bound.
        budget: its name; seed: of all random draws.
        door: what was asked before the attacks.
        common: rows right after PGD on cross entropy in float32 alone, as common libraries report it.
        left: rows right after everything.
        reference: rows that the undefended reference has left, None without one.
        steps: the attacks in their order, and what each added.
        curves: by eps.
        checks: all of them.
        gradients: what was measured of them; None for L0.
        pictures: the smallest changes of some rows.
    """

    verdict: Verdict
    norm: str
    eps: float
    budget: str
    seed: int
    door: Door
    common: Share
    left: Share
    reference: Share | None
    steps: tuple[Step, ...]
    curves: tuple[Curve, ...]
    checks: tuple[Check, ...]
    gradients: Gradients | None
    pictures: tuple[Picture, ...]

    def record(self) -> dict[str, Any]:
        """All of it but the images, as JSON takes it: strings, numbers, lists; None for NaN.

        A `Share` has its value and interval beside its counts.
        """
        return _plain(self)

    def images(self) -> dict[str, Tensor]:
        """The images of the pictures: 'clean' and 'adversarial', (n, C, H, W); n may be 0."""
        none = torch.empty(0)
        return {
            name: torch.stack([getattr(one, name) for one in self.pictures]) if self.pictures else none
            for name in ("clean", "adversarial")
        }


def audit(
    model: nn.Module,
    split: Split,
    *,
    norm: Norm = "linf",
    eps: float | None = None,
    rows: int = 1000,
    budget: str = "standard",
    reference: nn.Module | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress = silent,
) -> Audit:
    """Attacks a model in every way it can, and says whether it is robust, masked, broken, or cannot tell.

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K), K >= 2. Attacked where its weights are, in
            evaluation mode, and left as it was.
        split: images that the model was not trained on, and their labels.
        norm: of the changes: 'linf', 'l2' or 'l0', which counts pixels.
        eps: the largest change allowed, > 0; in L-infinity at most 1. `usual_eps` when not given.
        rows: the first so many of the split, at least 1.
        budget: 'quick', 'standard' or 'thorough'.
        reference: an undefended network of the same shape and training length. It says what an undefended network has
            left, and adversarial images are carried over from it.
        seed: of all random draws.
        checkpoint: a file written after each attack. If it is there and was made for these images and options, the
            audit goes on from it, to the same end; of another model it must not be. The caller removes it.
        progress: told the attacks made, with the share of rows left.

    Returns:
        The verdict, and the evidence for it.

    Raises:
        InputError: if an argument is not as above, or the model does not give finite logits.
    """
    split = _checked(model, split, norm, eps, rows, budget)
    eps = usual_eps(split.images, norm) if eps is None else float(eps)
    with seeded(seed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the model's outputs look like probabilities")  # the door says it once
        door = look_in(model, split)
        plan = BUDGETS[budget]
        request = f"{eps} {budget} {reference is not None}"
        ledger = Ledger(model, split.images, split.labels, norm, door.deterministic, seed, checkpoint, request)
        done = itertools.count()

        def tell(name: str, left: float) -> None:
            progress(min(next(done), TURNS - 1), TURNS, f"{name}, {left:.1%} left")

        battery = Battery(model, door, ledger, norm, eps, plan, reference, seed, tell)
        battery.fire()
        common = share(torch.arange(len(split)) < round(battery.steps[0].left * len(split)))
        made, gradients, curves, undefended = (_l0_checks if norm == "l0" else _all_checks)(battery)
        left = share(ledger.right(eps))
        verdict = decide(
            door=door,
            steps=battery.steps,
            common=common,
            left=left,
            reference=undefended,
            gradients=gradients,
            checks=made,
            bound=f"{WORDS[norm]} {eps:.4g}",
        )
        pictures = _pictures(battery)
    progress(TURNS, TURNS, verdict.kind)
    return Audit(
        verdict=verdict,
        norm=norm,
        eps=eps,
        budget=budget,
        seed=seed,
        door=door,
        common=common,
        left=left,
        reference=undefended,
        steps=tuple(battery.steps),
        curves=tuple(curves),
        checks=tuple(made),
        gradients=gradients,
        pictures=pictures,
    )


def usual_eps(images: Tensor, norm: str) -> float:
    """The bound that the field uses for images (N, C, H, W) of this shape.

    L-infinity: 0.3 for one channel of at most 28 x 28 (MNIST, Madry et al. 2018), else 8/255. L2: 1.5 and 0.5, as
    AutoAttack's and RobustBench's tables have it. L0 has no such usage: 10 pixels, a tenth of Song's limit of 100.
    """
    small = images.shape[1] == 1 and max(images.shape[2:]) <= 28
    return (SMALL if small else LARGE)[norm]


def _checked(model: nn.Module, split: Split, norm: str, eps: float | None, rows: int, budget: str) -> Split:
    """The rows to attack, where the model is."""
    if norm not in NORMS:
        raise unknown("norm", norm, NORMS)
    if budget not in BUDGETS:
        raise unknown("budget", budget, BUDGETS)
    if eps is not None and not (isinstance(eps, int | float) and math.isfinite(eps) and eps > 0):
        raise InputError(f"eps must be positive and finite, got {eps}")
    if eps is not None and norm == "linf" and eps > 1:
        raise InputError(f"eps must be at most 1 in L-infinity, as images lie in [0, 1], got {eps}")
    if eps is not None and norm == "l0" and eps != int(eps):
        raise InputError(f"eps must be a whole number of pixels in L0, got {eps}")
    if rows < 1:
        raise InputError(f"rows must be at least 1, got {rows}")
    if not len(split):
        raise InputError("the split must hold at least one image, got none")
    device = next((p.device for p in model.parameters()), split.images.device)
    return Split(split.images[:rows], split.labels[:rows]).to(device)


def _all_checks(battery: Battery) -> tuple[list[Check], Gradients, list[Curve], Share | None]:
    """The checks in L-infinity and L2, the curves, and what the reference has left."""
    door = battery.door
    gradients = battery.gradients
    made = [checks.accuracy(door), checks.determinism(door), checks.outputs(door)]
    way = checks.trace(battery)
    made += [checks.converged(battery), checks.settled(way), checks.silent_success(way)]
    made += [checks.one_step(battery), checks.black_box(battery), checks.binarization(battery)]
    worth = (
        checks.mending(battery.steps, cause) for cause in ("stochastic", "scale", "precision", "loss", "shattered")
    )
    made += [one for one in worth if one is not None]
    made += [checks.vanishing(gradients), checks.blocked(gradients), checks.foretelling(gradients)]
    made += [checks.repeatable(gradients), checks.rounding(battery)]
    grid, most, grey = _grid(battery)
    curves = [_common_curve(battery, grid), _whole_curve(battery, grid)]
    left = dict(zip(grid, curves[1].left, strict=True))
    made += [checks.monotone(list(curves[0].left)), checks.unbounded(left[most])]
    made.append(checks.large_eps(left[grey], door, grey))
    undefended = None
    if battery.reference is not None:
        undefended, curve = _reference(battery, battery.reference, grid)
        curves.append(curve)
    return made, gradients, curves, undefended


def _l0_checks(battery: Battery) -> tuple[list[Check], None, list[Curve], Share | None]:
    """The checks in L0, and one curve."""
    door, ledger = battery.door, battery.ledger
    made = [checks.accuracy(door), checks.determinism(door), checks.outputs(door)]
    worth = (checks.mending(battery.steps, cause) for cause in ("scale", "loss", "shattered"))
    made += [one for one in worth if one is not None]
    pixels = ledger.images[0, 0].numel()
    made += [checks.unbounded(ledger.left(pixels)), checks.pixels_alone()]
    grid = sorted({1.0, 2.0, 5.0, battery.eps, 2 * battery.eps, 5 * battery.eps, float(pixels)})
    left = tuple(ledger.left(eps) for eps in grid)
    return made, None, [Curve("everything", tuple(grid), left, len(ledger.labels))], None


def _grid(battery: Battery) -> tuple[tuple[float, ...], float, float]:
    """The bounds of the curves; the largest that means anything; and the least at which every image can be grey."""
    eps, values = battery.eps, battery.ledger.images[0].numel()
    most, grey = (1.0, 0.5) if battery.norm == "linf" else (math.sqrt(values), math.sqrt(values) / 2)
    wanted = {*(eps * factor for factor in (1 / 8, 1 / 4, 1 / 2, 1, 2, 4)), grey, most}
    return tuple(sorted(one for one in wanted if one <= most)), most, grey


def _common_curve(battery: Battery, grid: tuple[float, ...]) -> Curve:
    """The common attack made anew at every eps."""
    rows = torch.arange(_few(battery), device=battery.ledger.labels.device)
    images, labels = battery.ledger.images[rows], battery.ledger.labels[rows]

    def right(eps: float) -> float:
        found = battery.common(eps)(images, labels)
        fooled = battery.ledger.offer("PGD on cross entropy in float32", found.adversarial, rows)
        return 1 - fooled.double().mean().item()

    left = [battery.once(f"common attack at {eps:.3g}", partial(right, eps)) for eps in grid]
    return Curve("common attack", grid, tuple(left), len(rows))


def _whole_curve(battery: Battery, grid: tuple[float, ...]) -> Curve:
    """What is left under everything: from eps down for the rows that fell, and up for those that did not."""
    ledger = battery.ledger
    down = [eps for eps in reversed(grid) if eps < battery.eps]
    up = [eps for eps in grid if eps > battery.eps]

    def walked(eps: float) -> None:
        fell = (ledger.size > eps) & (ledger.size.isfinite() if eps < battery.eps else True)
        rows = fell.nonzero().flatten()
        if len(rows):
            attack = battery.walk(battery.best, "margin", eps=eps, decay=True, step_size=eps / 4)
            ledger.offer("PGD on the margin", attack(ledger.images[rows], ledger.labels[rows]).adversarial, rows)

    for eps in down + up:
        battery.once(f"margin at {eps:.3g}", partial(walked, eps))
    return Curve("everything", grid, tuple(ledger.left(eps) for eps in grid), len(ledger.labels))


def _reference(battery: Battery, reference: nn.Module, grid: tuple[float, ...]) -> tuple[Share, Curve]:
    """What an undefended network has left: its logits brought to scale, the margin, at every eps."""
    few = _few(battery)
    images, labels = battery.ledger.images, battery.ledger.labels
    view = Scaled(reference, median_lead(reference, images))
    settings = {"decay": True, "keep": "best"}

    def right(eps: float, rows: int) -> int:
        attack = battery.walk(view, "margin", eps=eps, step_size=eps / 4, **settings)
        return int((~attack(images[:rows], labels[:rows]).success).sum())

    left = [battery.once(f"the reference at {eps:.3g}", partial(right, eps, few)) / few for eps in grid]
    undefended = Share(battery.once("the reference", partial(right, battery.eps, len(labels))), len(labels))
    return undefended, Curve("undefended reference", grid, tuple(left), few)


def _few(battery: Battery) -> int:
    return min(len(battery.ledger.labels), 64 if battery.budget.probe else 1000)


def _pictures(battery: Battery, count: int = 8) -> tuple[Picture, ...]:
    ledger = battery.ledger
    rows = ((ledger.size > 0) & ledger.size.isfinite()).nonzero().flatten()[:count]
    if not len(rows):
        return ()
    with frozen(battery.model), torch.no_grad():
        predicted = logits_of(battery.model, ledger.adversarial[rows]).argmax(1)
    return tuple(
        Picture(
            row=row,
            label=int(ledger.labels[row]),
            prediction=prediction,
            size=ledger.size[row].item(),
            attack=ledger.by[row],
            clean=ledger.images[row].cpu(),
            adversarial=ledger.adversarial[row].cpu(),
        )
        for row, prediction in zip(rows.tolist(), predicted.tolist(), strict=True)
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Share):
        return {**_plain(asdict(value)), "value": _plain(value.value), "interval": _plain(value.interval)}
    if is_dataclass(value):
        told = {name: getattr(value, name) for name in value.__dataclass_fields__}
        return {name: _plain(one) for name, one in told.items() if not isinstance(one, Tensor)}
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
