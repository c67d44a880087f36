"""The audit: is a classifier robust, or does it only look so, and why."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from brittle.attacks.result import logits_in_batches, predictions
from brittle.auditing import checks
from brittle.auditing.best_found import BestFound, Norm, within
from brittle.auditing.checks import Check
from brittle.auditing.gradients import Gradients
from brittle.auditing.sanity import ModelFacts, check_outputs, sanity_check
from brittle.auditing.suite import BUDGETS, Step, Suite, median_lead
from brittle.auditing.verdict import CAUSES, Verdict, compared, decide, interval
from brittle.auditing.wrappers import Scaled
from brittle.data import Data, Split, as_split
from brittle.data.arguments import typed
from brittle.errors import InputError, unknown
from brittle.measures import Paired, Share, accuracy, paired, share
from brittle.models.classifier import as_classifier
from brittle.models.inference import asking
from brittle.models.networks import seeded
from brittle.progress import Progress, barred, silent

__all__ = [
    "CAUSES",
    "Audit",
    "Check",
    "Curve",
    "Gradients",
    "ModelFacts",
    "Picture",
    "Step",
    "Verdict",
    "audit",
    "usual_eps",
]

NORMS = get_args(Norm)
TURNS = 32  # attacks that progress is told of, about
WORDS = {"linf": "L-infinity", "l2": "L2", "l0": "L0"}
LARGE_SIDE = 64  # pixels; from more on, images are as those of ImageNet
SMALL = {"linf": 0.3, "l2": 1.5, "l0": 10}  # MNIST: Madry et al. 2018; L2: Croce and Hein 2020, L0: ours, see usual_eps
LARGE = {"linf": 8 / 255, "l2": 0.5, "l0": 10}  # CIFAR-10: RobustBench's, Croce et al. 2021
LARGEST = {"linf": 4 / 255, "l2": 3.0, "l0": 10}  # ImageNet: RobustBench's; L2: Salman et al. 2020


@dataclass(frozen=True)
class Curve:
    """Accuracy under attack by eps, over all images of the audit.

    Attributes:
        name: 'baseline attack', 'all attacks' or 'undefended reference'. 'all attacks' is nowhere above the baseline,
            as it counts what the baseline finds, and what is fooled at a smaller eps as fooled at a larger.
        eps: the bounds, rising; the last is no bound at all.
        left: the accuracy at each.
        rows: how many images were attacked.
    """

    name: str
    eps: tuple[float, ...]
    left: tuple[float, ...]
    rows: int


@dataclass(frozen=True, eq=False)
class Picture:
    """The smallest perturbation known for one image.

    Attributes:
        row: in the split.
        label: the right class.
        prediction: the model's class for the changed image.
        size: of the change, in the audit's norm.
        attack: that found it.
        minimal: whether this attack looks for the smallest perturbation; others look for any within a fixed eps.
        clean: (C, H, W).
        adversarial: (C, H, W).
    """

    row: int
    label: int
    prediction: int
    size: float
    attack: str
    minimal: bool
    clean: Tensor
    adversarial: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Audit:
    """All that an audit found. `summary()` says it in a few lines, `write(folder)` makes its page.

    Attributes:
        verdict: what it comes to.
        norm: 'linf', 'l2' or 'l0'; eps: the bound.
        compared: how eps compares with the usual one for such images, such as 'a tenth of the usual 0.3'.
        chosen: how the images were chosen, such as 'the first 100 of 359'.
        budget: its name; seed: of all random draws.
        door: what was asked before the attacks, with the clean accuracy.
        common: images right under the baseline attack alone: PGD on cross entropy in float32, as common libraries run
            it.
        left: images right under all attacks: the robust accuracy.
        reference: images that the undefended reference has right under attack, None without one.
        beside: the robust accuracy paired with that of the reference on the same images, None without one.
        steps: the attacks in their order, and what each added.
        curves: by eps.
        checks: all of them.
        gradients: what was measured of them; None for L0.
        pictures: adversarial images, of some images the one with the smallest known perturbation.
    """

    verdict: Verdict
    norm: str
    eps: float
    compared: str
    chosen: str
    budget: str
    seed: int
    door: ModelFacts
    common: Share
    left: Share
    reference: Share | None
    beside: Paired | None
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

    def __repr__(self) -> str:
        return (
            f"<Audit: {self.verdict.kind}; robust accuracy {interval(self.left)}, "
            f"clean accuracy {interval(self.door.accuracy)}, {self.norm}, eps {self.eps:.4g}, "
            f"{self.left.total} images, budget {self.budget}>"
        )

    def summary(self) -> str:
        """The verdict and what it rests on in a few lines, as the command line prints it, without colour."""
        from brittle.study.kinds.audit import page as report

        return report.plain([self.record()])

    def write(self, folder: Path | str, *, classes: Sequence[str] = (), name: str = "model") -> Path:
        """Writes the page, audit.html, and audit.json into a folder, which is made if need be; the page's path.

        Args:
            folder: what it held of these names is replaced.
            classes: the names of the classes, in the order of the labels.
            name: what the page calls the model.

        Raises:
            InputError: if the folder cannot be written.
        """
        from brittle.study.kinds.audit import page as report

        record = self.record()
        pairs = zip(record["pictures"], self.pictures, strict=True)
        record["pictures"] = [{**told, "clean": one.clean, "adversarial": one.adversarial} for told, one in pairs]
        return report.write_audit([record], report.about_python(record, classes, name), folder)

    def _repr_html_(self) -> str:
        from brittle.study.kinds.audit import page as report

        return report.small_table(self.record())


@typed
@barred("auditing")
def audit(
    model: nn.Module | Callable[[Tensor], Any],
    split: Split | Data | tuple[Any, Any] | Dataset[Any] | DataLoader[Any],
    *,
    norm: Norm = "linf",
    eps: float | None = None,
    rows: int = 1000,
    budget: str = "standard",
    reference: nn.Module | Callable[[Tensor], Any] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Attacks a model in every way it can, and says whether it is robust, masked, broken, or cannot tell.

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K), K >= 2, or one output (B,) or (B, 1) for two classes;
            a module or any callable. Attacked where its weights are, in evaluation mode, and left as it was.
        split: images that the model was not trained on, and their labels, in any form that `data.as_split` takes.
        norm: of the perturbations: 'linf', 'l2' or 'l0', which counts pixels.
        eps: the largest perturbation allowed, > 0; in L-infinity at most 1. `usual_eps` when not given.
        rows: how many images at most, at least 1: see `data.as_split` for which. The verdict robust takes 100.
        budget: 'quick', 'standard' or 'thorough'.
        reference: an undefended network of the same shape and training length. It says what an undefended network has
            right under attack, and adversarial images are carried over from it. One that has not learned is not used.
            Below the usual eps the verdict robust takes one.
        seed: of all random draws.
        batch_size: images that go through the model at once, at most; as many as fit into memory when not given. The
            numbers do not depend on it, but for rounding.
        checkpoint: a file written after each attack. If it is there and was made for these images and options, the
            audit goes on from it, to the same end; of another model it must not be. The caller removes it.
        progress: told the attacks made, with the robust accuracy so far; a bar on a terminal when not given.

    Returns:
        The verdict, and the evidence for it.

    Raises:
        InputError: if an argument is not as above, or the model does not give finite logits.
    """
    progress = progress or silent
    _check_request(norm, eps, rows, budget)
    chosen, split = _chosen(model, split, rows)
    model = as_classifier(model, split.images)
    reference = None if reference is None else as_classifier(reference, split.images)
    usual = usual_eps(split.images, norm)
    eps = usual if eps is None else float(eps)
    with seeded(seed), asking(batch_size) as asked, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the model's outputs look like probabilities")  # the door says it once
        door = sanity_check(model, split)
        asked.known = True
        reference, door = _useful(reference, door, split)
        plan = BUDGETS[budget]
        request = f"{eps} {budget} {reference is not None}"
        best_found = BestFound(model, split.images, split.labels, norm, door.deterministic, seed, checkpoint, request)
        done = itertools.count()

        def tell(name: str, left: float) -> None:
            progress(min(next(done), TURNS - 1), TURNS, f"{name}, {left:.1%} left")

        suite = Suite(model, door, best_found, norm, eps, plan, reference, seed, tell)
        if door.accuracy.count:
            suite.run_all()
            made, gradients, curves, undefended = (_l0_checks if norm == "l0" else _all_checks)(suite)
            suite.note_the_rest()
        else:  # nothing is left to attack
            made, gradients, curves, undefended = _door_checks(door), None, [], None
        right = best_found.right(eps)
        common = Share(round(suite.steps[0].left * len(split)), len(split)) if suite.steps else share(right)
        left = share(right)
        beside = None if undefended is None else paired(right, undefended)
        verdict = decide(
            door=door,
            steps=suite.steps,
            common=common,
            left=left,
            beside=beside,
            gradients=gradients,
            checks=made,
            bound=f"{WORDS[norm]} {eps:.4g}",
            eps=eps,
            usual=usual,
        )
        pictures = _pictures(suite)
    progress(TURNS, TURNS, verdict.kind)
    return Audit(
        verdict=verdict,
        norm=norm,
        eps=eps,
        compared=compared(eps, usual),
        chosen=chosen,
        budget=budget,
        seed=seed,
        door=door,
        common=common,
        left=left,
        reference=None if undefended is None else share(undefended),
        beside=beside,
        steps=tuple(suite.steps),
        curves=tuple(curves),
        checks=tuple(made),
        gradients=gradients,
        pictures=pictures,
    )


def usual_eps(images: Tensor, norm: str) -> float:
    """The bound that the field uses for images (N, C, H, W) of this shape.

    L-infinity: 0.3 for one channel of at most 28 x 28 (MNIST, Madry et al. 2018), 4/255 for more than 64 pixels a side
    (ImageNet), else 8/255. L2: 1.5, 3 and 0.5, as AutoAttack's and RobustBench's tables have it. L0 has no such usage:
    10 pixels, a tenth of Song's limit of 100.
    """
    side = max(images.shape[2:])
    if images.shape[1] == 1 and side <= 28:
        return SMALL[norm]
    return (LARGEST if side > LARGE_SIDE else LARGE)[norm]


def _check_request(norm: str, eps: float | None, rows: int, budget: str) -> None:
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


def _chosen(model: nn.Module | Callable[[Tensor], Any], given: Any, rows: int) -> tuple[str, Split]:
    """How the images were chosen, in words; and the images, where the model is."""
    whole = given.test if isinstance(given, Data) else given
    split = as_split(given, rows)
    if not isinstance(whole, Split) or whole.class_by_class:
        chosen = f"all {len(split)} given" if len(split) < rows else f"{rows} drawn at random, with a fixed seed"
    else:
        chosen = f"all {len(whole)} given" if len(split) == len(whole) else f"the first {len(split)} of {len(whole)}"
    weights = model.parameters() if isinstance(model, nn.Module) else ()
    device = next((p.device for p in weights), split.labels.device)
    return chosen, split.to(device)


def _useful(reference: nn.Module | None, door: ModelFacts, split: Split) -> tuple[nn.Module | None, ModelFacts]:
    """The reference, unless it has not learned: then none, and the door says so."""
    if reference is None:
        return None, door
    check_outputs("the reference", reference, split.images, split.labels)
    right = accuracy(logits_in_batches(reference, split.images), split.labels)
    if right.interval[0] > door.chance:
        return reference, door
    said = f"The reference was not used, as it has not learned: its clean accuracy is {interval(right)}."
    return None, replace(door, remedies=(*door.remedies, said))


def _door_checks(door: ModelFacts) -> list[Check]:
    return [checks.accuracy(door), checks.determinism(door), checks.alone(door), checks.outputs(door)]


def _all_checks(suite: Suite) -> tuple[list[Check], Gradients, list[Curve], Tensor | None]:
    """The checks in L-infinity and L2, the curves, and the images that the reference has right under attack.

    Where no image is left, no attack can be too weak: checks that attack again to find out are left out.
    """
    door = suite.door
    gradients = suite.gradients
    made = [*_door_checks(door), checks.finite(suite), checks.one_step(suite)]
    if suite.best_found.left(suite.eps):
        way = checks.trace(suite)
        made += [checks.converged(suite), checks.settled(way), checks.silent_success(way)]
        made += [checks.black_box(suite), checks.binarization(suite)]
    worth = (checks.mending(suite.steps, cause) for cause in ("stochastic", "scale", "precision", "loss", "shattered"))
    made += [one for one in worth if one is not None]
    made += [checks.vanishing(gradients), checks.blocked(gradients), checks.foretelling(gradients)]
    made += [checks.repeatable(gradients)]
    grid, most, grey = _grid(suite)
    asked = tuple(one for one in grid if one == suite.eps or one != grey)  # grey images are `large_eps`'s question
    curves = [_common_curve(suite, asked), _whole_curve(suite, grid)]
    left = dict(zip(grid, curves[1].left, strict=True))
    made += [checks.monotone(list(curves[0].left)), checks.unbounded(left[most])]
    made.append(checks.large_eps(left[grey], door, grey))
    if (rounded := checks.rounding(suite)) is not None:
        made.append(rounded)
    undefended = None
    if suite.reference is not None:
        undefended, curve = _reference(suite, suite.reference, grid)
        curves.append(curve)
    return made, gradients, curves, undefended


def _l0_checks(suite: Suite) -> tuple[list[Check], None, list[Curve], Tensor | None]:
    """The checks in L0, and one curve."""
    door, best_found = suite.door, suite.best_found
    made = [*_door_checks(door), checks.finite(suite)]
    worth = (checks.mending(suite.steps, cause) for cause in ("scale", "shattered"))
    made += [one for one in worth if one is not None]
    pixels = best_found.images[0, 0].numel()
    made += [checks.unbounded(best_found.left(pixels)), checks.pixels_alone()]
    grid = sorted({1.0, 2.0, 5.0, suite.eps, 2 * suite.eps, 5 * suite.eps, float(pixels)})
    left = tuple(best_found.left(eps) for eps in grid)
    return made, None, [Curve("all attacks", tuple(grid), left, len(best_found.labels))], None


def _grid(suite: Suite) -> tuple[tuple[float, ...], float, float]:
    """The bounds of the curves; the largest that means anything; and the least at which every image can be grey."""
    eps, values = suite.eps, suite.best_found.images[0].numel()
    most, grey = (1.0, 0.5) if suite.norm == "linf" else (math.sqrt(values), math.sqrt(values) / 2)
    factors = (1 / 2, 1, 2) if suite.budget.probe else (1 / 8, 1 / 4, 1 / 2, 1, 2, 4)
    wanted = {*(eps * factor for factor in factors), grey, most}
    return tuple(sorted(one for one in wanted if one <= most)), most, grey


def _common_curve(suite: Suite, grid: tuple[float, ...]) -> Curve:
    """The baseline attack at every eps; at the audit's, as the first step has it.

    Once it leaves no image, it is not made again at a larger eps: what it found lies in the larger ball too.
    """
    best_found = suite.best_found
    rows = (best_found.size > 0).nonzero().flatten()

    def right(eps: float) -> float:
        if not len(rows):
            return 0.0
        found = suite.common(eps)(best_found.images[rows], best_found.labels[rows]).adversarial
        fooled = best_found.record("PGD on cross entropy in float32", found, rows)
        fooled &= best_found.sizes_of(found, rows) <= within(eps)
        return int((~fooled).sum()) / len(best_found.labels)

    left = {suite.eps: suite.steps[0].left}
    for eps in grid:
        none = any(at <= eps and not value for at, value in left.items())
        if eps != suite.eps:
            left[eps] = 0.0 if none else suite.cached_step(f"baseline attack at {eps:.3g}", partial(right, eps))
    return Curve("baseline attack", grid, tuple(left[eps] for eps in grid), len(best_found.labels))


def _whole_curve(suite: Suite, grid: tuple[float, ...]) -> Curve:
    """Accuracy under all attacks: from eps down for the images that were fooled, and up for those that were not."""
    best_found = suite.best_found
    down = [eps for eps in reversed(grid) if eps < suite.eps]
    up = [eps for eps in grid if eps > suite.eps]

    def walked(eps: float) -> None:
        fell = (best_found.size > eps) & (best_found.size.isfinite() if eps < suite.eps else True)
        rows = fell.nonzero().flatten()
        if len(rows):
            attack = suite.walk(suite.best, "margin", eps=eps, decay=True, step_size=eps / 4)
            best_found.record(
                "PGD on the margin", attack(best_found.images[rows], best_found.labels[rows]).adversarial, rows
            )

    for eps in down + up:
        suite.cached_step(f"margin at {eps:.3g}", partial(walked, eps))
    return Curve("all attacks", grid, tuple(best_found.left(eps) for eps in grid), len(best_found.labels))


def _reference(suite: Suite, reference: nn.Module, grid: tuple[float, ...]) -> tuple[Tensor, Curve]:
    """(N,) bool: what an undefended network has right at the audit's eps; and the curve.

    Its logits are brought to scale and the margin is followed, from one eps to the next larger on what is still right.
    """
    images, labels = suite.best_found.images, suite.best_found.labels
    view = Scaled(reference, median_lead(reference, images))
    right, at, left = torch.ones_like(labels, dtype=torch.bool), torch.zeros_like(labels, dtype=torch.bool), []

    def fooled(eps: float) -> list[int]:
        rows = right.nonzero().flatten()
        if not len(rows):
            return []
        attack = suite.walk(view, "margin", eps=eps, step_size=eps / 4, decay=True, keep="best")
        return rows[attack(images[rows], labels[rows]).success].tolist()

    for eps in grid:
        right[suite.cached_step(f"the reference at {eps:.3g}", partial(fooled, eps))] = False
        left.append(int(right.sum()) / len(labels))
        at = right.clone() if eps == suite.eps else at
    return at, Curve("undefended reference", grid, tuple(left), len(labels))


def _pictures(suite: Suite, count: int = 8) -> tuple[Picture, ...]:
    best_found = suite.best_found
    rows = ((best_found.size > 0) & best_found.size.isfinite()).nonzero().flatten()[:count]
    if not len(rows):
        return ()
    predicted = predictions(suite.model, best_found.adversarial[rows])
    return tuple(
        Picture(
            row=row,
            label=int(best_found.labels[row]),
            prediction=prediction,
            size=best_found.size[row].item(),
            attack=best_found.by[row],
            minimal=bool(best_found.minimal[row]),
            clean=best_found.images[row].cpu(),
            adversarial=best_found.adversarial[row].cpu(),
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
