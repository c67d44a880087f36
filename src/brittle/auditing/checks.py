"""The checks: each a quantity against a threshold with its source, passed or not, and one sentence.

They ask whether the attacks could have seen what there is to see. A check that fails does not say that a model is
weak; it says that its strength has not been shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from brittle.attacks.goal import Goal
from brittle.attacks.pgd import Ball, fading, pgd
from brittle.attacks.result import frozen
from brittle.attacks.streams import Streams
from brittle.auditing.gradients import MATERIAL, Gradients, gradient_of
from brittle.auditing.sanity import ModelFacts
from brittle.auditing.suite import Step, Suite
from brittle.models.inference import in_parts
from brittle.models.networks import seeded

ROWS = 200  # looked at where every row would add little
STARTS = 5  # of the walk in a two-class problem, at least
WITHOUT_GRADIENTS = ("random noise", "transfer from the reference", "squares", "Song's algorithm 2")


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: a few words.
        quantity: what was measured.
        threshold: what it is held against.
        source: where the check, or the threshold, comes from.
        passed: whether the quantity is on the right side.
        needed: whether a failure keeps the verdict from being robust.
        sentence: what was found, in words.
        next: what to run or to change if it failed; empty if it passed.
    """

    name: str
    quantity: float
    threshold: float
    source: str
    passed: bool
    needed: bool
    sentence: str
    next: str = ""


def check(
    name: str,
    quantity: float,
    bound: str,
    threshold: float,
    *,
    source: str,
    sentence: str,
    remedy: str = "",
    needed: bool = True,
    unmeasured: str = "There was no image to measure this on.",
) -> Check:
    """A check that passes if the quantity is 'at most' or 'at least' the threshold.

    NaN fails: nothing was measured, and `unmeasured` says why.
    """
    sentence = unmeasured if math.isnan(quantity) else sentence
    passed = quantity <= threshold if bound == "at most" else quantity >= threshold
    return Check(name, quantity, threshold, source, passed, needed, sentence, "" if passed else remedy)


# At the door ----------------------------------------------------------------------------------------------------------


def accuracy(door: ModelFacts) -> Check:
    """Whether the model has learned anything: an untrained one has nothing to lose."""
    return check(
        "accuracy",
        door.accuracy.interval[0],
        "at least",
        door.chance,
        source="Carlini et al. 2019, section 4.1: state the accuracy on clean images",
        sentence=f"{door.accuracy.value:.1%} of the clean images are right; a constant answer has {door.chance:.1%}.",
        remedy="check the labels' order and the preprocessing",
    )


def determinism(door: ModelFacts) -> Check:
    """Whether five runs agree."""
    said = "agree" if door.deterministic else f"differ, in {door.disagreement:.1%} of the predictions"
    return check(
        "determinism",
        0.0 if door.deterministic else max(door.disagreement, 1e-9),
        "at most",
        0.0,
        source="Athalye et al. 2018, section 3.1: stochastic gradients",
        sentence=f"Five runs on the same images {said}.",
        remedy="switch the randomness off, or audit the mean of many runs as a model of its own",
    )


def alone(door: ModelFacts) -> Check:
    """Whether an image alone gets the answer that it gets in a batch."""
    said = "the same as in a batch" if door.independent else f"up to {door.neighbours:.0%} off what it is in a batch"
    return check(
        "one image alone",
        door.neighbours,
        "at most",
        0.01,
        source="ours; the threshold lets 16-bit rounding through",
        sentence=f"The answer to an image alone is {said}.",
        remedy="switch batch normalisation, or whatever looks at the whole batch, to fixed statistics",
    )


def finite(suite: Suite) -> Check:
    """Whether the model's answers are numbers near the clean images too: the corners of the ball, and what was tried.

    An answer of NaN is no error of the model, but it hides the model from whatever follows its answers.
    """
    best_found = suite.best_found

    def met() -> int:
        images, eps = best_found.images[:ROWS], suite.eps
        values, pixels = images[0].numel(), images[0, 0].numel()
        change = torch.randn_like(images).sign() * {"linf": eps, "l2": eps / math.sqrt(values), "l0": 1}[suite.norm]
        if suite.norm == "l0":
            change *= torch.rand_like(images[:, :1]) < eps / pixels
        for sign in (1, -1):
            best_found.fooled((images + sign * change).clamp(0, 1), torch.arange(len(images), device=images.device))
        return int(best_found.unfit.sum())

    share = suite.cached_step("finite outputs", met) / len(best_found.labels)
    return check(
        "finite outputs",
        share,
        "at most",
        0.0,
        source="ours: an answer of NaN or infinity names no class",
        sentence=f"The model answers perturbed images with finite numbers{' alone' * (not share)}"
        + (f", but for {share:.1%} of the images, where it has answered NaN or infinity." if share else "."),
        remedy="find the operation that overflows or divides by 0, and make it finite",
    )


def outputs(door: ModelFacts) -> Check:
    """Whether the model returns logits."""
    said = "probabilities, of which a loss takes the softmax again" if door.probabilities else "logits"
    return check(
        "outputs",
        float(door.probabilities),
        "at most",
        0.0,
        source="Carlini and Wagner 2016; Carlini et al. 2019, section 4.9",
        sentence=f"The model returns {said}.",
        remedy="return the logits",
    )


# What mending was worth -----------------------------------------------------------------------------------------------

_MENDED = {
    "stochastic": ("randomness", "averaging the gradient over runs", "Athalye et al. 2018, section 4.3"),
    "scale": ("scale", "dividing the logits by their median lead", "Carlini and Wagner 2016"),
    "precision": ("precision", "computing in float64", "Carlini and Wagner 2016"),
    "loss": ("loss", "the margin in place of cross entropy", "Croce and Hein 2020, section 4"),
    "shattered": ("blocked gradients", "going through or round the gradients", "Athalye et al. 2018, section 4.1"),
}


def mending(steps: list[Step], cause: str) -> Check | None:
    """What share of the rows fell only once one thing was mended; None if that was not tried."""
    if all(step.mends != cause for step in steps):
        return None
    name, what, source = _MENDED[cause]
    worth = worth_of(steps).get(cause, 0.0)
    fell = f"{worth:.1%} of the images were fooled only by {what}" if worth else f"No image was fooled by {what} alone"
    return check(
        name,
        worth,
        "at most",
        MATERIAL,
        source=f"{source}; threshold: Croce and Hein 2020",
        sentence=f"{fell}.",
        remedy="report the numbers of the corrected attack",
    )


def worth_of(steps: list[Step]) -> dict[str, float]:
    """The share of all rows that fell to each mending; FGSM, after the same loss in many steps, mends the budget."""
    worth: dict[str, float] = {}
    for before, step in pairwise(steps):
        cause = step.mends or "budget"
        worth[cause] = worth.get(cause, 0.0) + before.left - step.left
    return worth


# Gradients ------------------------------------------------------------------------------------------------------------


def vanishing(found: Gradients) -> Check:
    """Whether the gradient that the common attack follows is there."""
    exact = "" if found.log10 is None else f", where exact arithmetic has a median of 1e{found.log10:.0f}"
    return check(
        "vanishing gradients",
        found.zero,
        "at most",
        0.01,
        source="Carlini and Wagner 2016; under 1e-10: Mandal and Guo, section V-B",
        sentence=f"In float32 the gradient of cross entropy is zero on {found.zero:.1%} of the images and under 1e-10 "
        f"on {found.negligible:.1%}{exact}.",
        remedy="divide the logits by a constant, and attack the log-odds or the margin",
    )


def blocked(found: Gradients) -> Check:
    """Whether the mended model passes a gradient on."""
    return check(
        "blocked gradients on the way",
        found.blocked,
        "at most",
        0.01,
        source="Athalye et al. 2018, section 3.1: shattered gradients",
        sentence=f"The margin has no gradient at all on {found.blocked:.1%} of the images.",
        remedy="attack with a differentiable stand-in for the step that blocks it",
    )


def foretelling(found: Gradients) -> Check:
    """Whether small steps along the gradient do what it says."""
    return check(
        "gradients against finite differences",
        found.agreement,
        "at least",
        1 - 2 * MATERIAL,
        source="Athalye et al. 2018, section 3.1; factor and share are ours",
        sentence=f"On {found.agreement:.1%} of the images the gradient predicts the change of the margin within a "
        "factor of two.",
        remedy="attack with a differentiable stand-in, and without gradients at more queries",
    )


def repeatable(found: Gradients) -> Check:
    """Whether two runs give the same gradient."""
    return check(
        "gradients of two runs",
        1.0 if math.isnan(found.cosine) else found.cosine,
        "at least",
        0.99,
        source="Athalye et al. 2018, section 3.1: stochastic gradients",
        sentence="No two gradients to compare."
        if math.isnan(found.cosine)
        else f"The gradients of two runs have a mean cosine of {found.cosine:.3f}.",
        remedy="average the gradient over many runs",
    )


# Budget ---------------------------------------------------------------------------------------------------------------


def converged(suite: Suite) -> Check:
    """Whether twice the steps, from other starts, find more."""
    steps, restarts = 2 * suite.budget.strong, max(2, suite.budget.restarts)
    settings = {"decay": True, "steps": steps, "step_size": suite.eps / 4, "restarts": restarts}
    step = suite.run("twice the steps", suite.walk(suite.best, "margin", seed=3, **settings), mends="budget")
    gain = step.broken / len(suite.best_found.labels)
    return check(
        "twice the budget",
        gain,
        "at most",
        0.01,
        source="Carlini et al. 2019, section 4.5: more iterations must not help",
        sentence=f"{steps} steps from {restarts} starts fooled another {gain:.1%} of the images.",
        remedy="audit again with a larger budget",
    )


def settled(way: Tensor) -> Check:
    """Whether the margin has stopped falling when a walk ends, by the `trace` of rows (S + 1, n)."""
    fall = way[0] - way.amin(0)
    late = way[: math.ceil(0.9 * len(way))].amin(0) - way.amin(0)
    share = (late / fall.clamp(min=1e-12)).mean().item()
    return check(
        "falling at the end",
        share,
        "at most",
        0.05,
        source="Pintor et al. 2022, indicator of incomplete optimisation; the threshold is ours",
        sentence=f"{share:.1%} of what the margin fell by, it fell in the last tenth of the steps.",
        remedy="audit again with a larger budget",
    )


def silent_success(way: Tensor) -> Check:
    """Whether the end of a walk is worse than a point on its way, by the `trace` of rows (S + 1, n)."""
    lost = ((way.amin(0) < 0) & (way[-1] >= 0)).double().mean().item()
    return check(
        "silent success",
        lost,
        "at most",
        0.01,
        source="Pintor et al. 2022, indicator of silent success",
        sentence=f"{lost:.1%} of the images were fooled during a walk but not at its end.",
        remedy="keep the best point on the way, and let the steps decay",
    )


def trace(suite: Suite) -> Tensor:
    """(S + 1, n): the margin on the way of a walk with decaying steps, from images that the model gets right."""
    rows = (suite.best_found.size > 0).nonzero().flatten()[: ROWS // 2]
    clean, labels, steps = suite.best_found.images[rows], suite.best_found.labels[rows], suite.budget.steps
    ball = Ball(clean, suite.ball, suite.eps)
    goal, every = Goal(labels), torch.arange(len(rows), device=rows.device)
    points, way = clean, []
    with seeded(suite.seed):
        for step in range(steps + 1):
            gradient, logits = gradient_of(suite.best, points, labels, "margin")
            way.append(goal.lead(logits))
            points = ball.into(points - ball.step(gradient, fading(step, steps) * suite.eps / 4), every)
    walked = torch.stack(way)
    finite = walked.isfinite().all(0)  # where the model answers NaN, there is no margin to look at
    suite.best_found.unfit[rows[~finite]] = True
    return walked[:, finite]


# Ordering -------------------------------------------------------------------------------------------------------------


def one_step(suite: Suite) -> Check:
    """Whether one step finds what many have not."""
    gain = sum(step.broken for step in suite.steps if step.name == "FGSM") / len(suite.best_found.labels)
    return check(
        "many steps against one",
        gain,
        "at most",
        0.02,
        source="Athalye et al. 2018, section 3.1: one-step attacks perform better than iterative ones",
        sentence=f"{gain:.1%} of the images were fooled by one step after 40 steps on the same loss had failed.",
        remedy="distrust the gradients; look at the other checks",
    )


def black_box(suite: Suite) -> Check:
    """Whether attacks without gradients find what those with gradients cannot."""
    best_found = suite.best_found

    def unexplained() -> int:
        only = [
            i for i, name in enumerate(best_found.by) if name in WITHOUT_GRADIENTS and best_found.size[i] <= suite.eps
        ]
        if not only:
            return 0
        rows = torch.tensor(only, device=best_found.labels.device)
        settings = {"decay": True, "steps": suite.budget.strong, "step_size": suite.eps / 4, "restarts": 2}
        found = suite.walk(suite.best, "margin", seed=4, **settings)(best_found.images[rows], best_found.labels[rows])
        return int((~best_found.fooled(found.adversarial, rows)).sum())

    gap = suite.cached_step("gradients where squares found more", unexplained) / len(best_found.labels)
    return check(
        "with gradients against without",
        gap,
        "at most",
        0.02,
        source="Athalye et al. 2018, section 3.1: black-box attacks are better than white-box attacks",
        sentence=f"{gap:.1%} of the images were fooled by noise, transfer or squares and not by gradients.",
        remedy="attack with a differentiable stand-in for what breaks the gradients",
    )


def monotone(common: list[float]) -> Check:
    """Whether more room leaves fewer rows, under the common attack."""
    rise = max([0.0, *(later - earlier for earlier, later in pairwise(common))])
    return check(
        "more room against less",
        rise,
        "at most",
        0.02,
        source="Carlini et al. 2019, section 4.7",
        sentence=f"From one eps to the next larger, accuracy under the baseline attack rises by {rise:.1%} at most.",
        remedy="distrust the baseline attack; look at the robust accuracy",
    )


def unbounded(left: float) -> Check:
    """Whether an attack without a bound fools everything, as it can."""
    return check(
        "no bound at all",
        left,
        "at most",
        0.01,
        source="Athalye et al. 2018, section 3.1: unbounded attacks do not reach 100 % success",
        sentence=f"With no bound on the perturbation {left:.1%} of the images are not fooled.",
        remedy="find out why the attack cannot fool these images",
    )


def large_eps(left: float, door: ModelFacts, eps: float) -> Check:
    """Whether a change that can wipe out every image leaves no more than chance."""
    return check(
        "a bound that allows a grey image",
        left,
        "at most",
        door.chance,
        source="Carlini et al. 2019, section 4.7: accuracy falls to chance at large bounds",
        sentence=f"At eps {eps:.3g}, where every image can be made grey, {left:.1%} of the images are not fooled.",
        remedy="find out why the attack cannot fool these images",
    )


def pixels_alone() -> Check:
    """In L0 there are no checks of gradients, budget or ordering, so that nothing is called robust there."""
    return check(
        "checks made in L0",
        0.0,
        "at least",
        1.0,
        source="ours",
        sentence="Gradients, budget and ordering are not checked in L0.",
        remedy="audit in L-infinity and L2 as well",
    )


# Binarization ---------------------------------------------------------------------------------------------------------


def binarization(suite: Suite, *, rows: int = 16) -> Check:
    """Whether the walk finds an adversarial image that exists by construction.

    A linear readout of the model's last features is made to tell one point on the border of the ball from 200 points
    within half its radius; an attack from the image must cross what lies between. Zimmermann et al. 2022, section 3,
    with fewer points. The walk has several starts, as the walks of the suite have together: a single one misses one in
    eight on an adversarially trained network of MNIST.
    """
    best_found = suite.best_found
    chosen = (best_found.size > 0).nonzero().flatten()[:rows]

    def solved() -> tuple[int, int]:
        made = hit = 0
        with _tapped(suite.view) as features, frozen(suite.view):
            for row in chosen.tolist():
                readout = _readout(suite, features, best_found.images[row : row + 1])
                if readout is None:
                    continue
                found = pgd(
                    readout,
                    best_found.images[row : row + 1],
                    torch.zeros(1, dtype=torch.int64, device=best_found.labels.device),
                    norm=suite.ball,
                    eps=suite.eps,
                    loss="margin",
                    decay=True,
                    step_size=suite.eps / 4,
                    steps=suite.budget.strong,
                    restarts=max(STARTS, suite.budget.restarts),
                    seed=suite.seed,
                )
                made, hit = made + 1, hit + int(found.success.item())
        return made, hit

    made, hit = suite.cached_step("binarization", solved)
    share = hit / made if made else math.nan
    return check(
        "binarization",
        share,
        "at least",
        0.9,
        source="Zimmermann et al. 2022; the threshold is ours",
        sentence=f"The attack solved {hit} of {made} two-class problems that have a solution by construction.",
        remedy="fix the attack until it solves them" if made else "audit at a larger eps",
        unmeasured="No two-class problem could be made within this eps: the model's features hardly differ there.",
    )


class _Readout(nn.Module):
    def __init__(self, features: Callable[[Tensor], Tensor], weight: Tensor, bias: Tensor):
        super().__init__()
        self.features, self.weight, self.bias = features, weight, bias

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2)."""
        said = self.features(images).double() @ self.weight - self.bias
        return torch.stack([torch.zeros_like(said), said], 1)


def _readout(suite: Suite, features: Callable[[Tensor], Tensor], image: Tensor) -> nn.Module | None:
    """The two-class problem around one image (1, C, H, W); None where a linear readout cannot tell the points apart."""
    norm = suite.ball
    random = torch.Generator(image.device).manual_seed(suite.seed)
    each = Streams.numbered(200, suite.seed, image.device)
    inner = Ball(image.expand(200, -1, -1, -1), norm, suite.eps / 2).draw(each, 0)
    drawn = torch.randn(image.shape, generator=random, device=image.device)
    border = Ball(image, norm, suite.eps).into(
        image + (suite.eps * drawn.sign() if norm == "linf" else suite.eps * drawn / drawn.norm()),
        torch.zeros(1, dtype=torch.int64, device=image.device),
    )
    points = torch.cat([image, inner, border])
    with torch.no_grad():
        seen = torch.cat(in_parts(suite.view, points, lambda rows: features(points[rows]).double()))
    inside, outside = seen[:-1], seen[-1]
    spread = inside - inside.mean(0)
    covariance = spread.T @ spread / len(inside)
    ridge = 1e-3 * covariance.diagonal().mean().clamp(min=1e-12) * torch.eye(len(outside), device=image.device)
    weight = torch.linalg.solve(covariance + ridge, outside - inside.mean(0))
    highest, there = (inside @ weight).max(), outside @ weight
    if not there > highest + 1e-9 * highest.abs():
        return None
    scale = (there - highest).item()
    return _Readout(features, weight / scale, (highest + 0.9 * (there - highest)) / scale)


@contextmanager
def _tapped(view: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """What goes into the last linear layer, or comes out of the view if it has none: (B, C, H, W) -> (B, d)."""
    seen: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append((module, inputs[0]))

    hooks = [m.register_forward_pre_hook(note) for m in view.modules() if isinstance(m, nn.Linear)]

    def features(images: Tensor) -> Tensor:
        seen.clear()
        logits = view(images)
        if not seen:
            return logits
        last = seen[-1][0]
        return torch.stack([value.flatten(1) for module, value in seen if module is last]).mean(0)

    try:
        yield features
    finally:
        for hook in hooks:
            hook.remove()


# What survives rounding -----------------------------------------------------------------------------------------------


def rounding(suite: Suite) -> Check | None:
    """How many of the images found are still adversarial as 8-bit files; None if none was found."""
    best_found = suite.best_found

    def survivors() -> tuple[int, int]:
        rows = ((best_found.size > 0) & ~best_found.right(suite.eps)).nonzero().flatten()
        return len(rows), int(best_found.fooled((best_found.adversarial[rows] * 255).round() / 255, rows).sum())

    found, kept = suite.cached_step("8-bit images", survivors)
    if not found:
        return None
    share = kept / found
    return check(
        "8-bit images",
        share,
        "at least",
        0.5,
        source="Carlini and Wagner 2017, section VIII-D; the threshold is ours",
        sentence=f"{share:.1%} of the {found} adversarial images still fool the model once rounded to whole 255ths.",
        remedy="look for images of whole 255ths: carlini_linf(..., quantize=True)",
        needed=False,
    )
