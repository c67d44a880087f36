"""The attack suite, cheapest attack first. Each attack runs on the images that no attack before it has fooled.

The order tells causes apart. The baseline attack comes first. Then it runs again with one fix at a time: the mean of
many runs, log-probabilities, rescaled logits, float64, another loss, straight-through gradients. Attacks without
gradients follow, and then the same attacks with a larger budget. What a step fools shows what its fix is worth.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from brittle.attacks.carlini import carlini_l0, carlini_l2, carlini_linf
from brittle.attacks.goal import Loss
from brittle.attacks.pgd import BallNorm, fgsm, pgd
from brittle.attacks.result import BATCH, AttackResult, answers, frozen, logits_of
from brittle.attacks.song import song_2, song_3
from brittle.attacks.square import noise, square
from brittle.auditing.best_found import BestFound, Norm
from brittle.auditing.gradients import Gradients, look_at
from brittle.auditing.sanity import ModelFacts
from brittle.auditing.wrappers import BPDA, EOT, LogProbabilities, Scaled, widened, works
from brittle.errors import InputError
from brittle.models.inference import at_once
from brittle.models.networks import input_gradient

ROWS = 200  # whose gradients are looked at
MINIMAL = ("Carlini and Wagner", "Carlini and Wagner's L0", "Carlini and Wagner's L0 straight through")
PROBE = 64  # rows on which an attack has to find something before it is made on the others


@dataclass(frozen=True)
class Budget:
    """How much is tried.

    Attributes:
        steps: of the walks that mend one thing each.
        strong: steps of the walks at length, `restarts` of them a row.
        rivals: classes that a row is driven towards one by one.
        queries: of the square attack; draws: of noise.
        carlini: rows given to the attack that looks for the smallest change.
        samples: runs averaged for a model that is not deterministic.
        probe: whether an attack that mends one thing, and finds nothing in 64 rows, is spared the others.
        autoattack: whether pyautoattack is run, where it is installed.
    """

    steps: int = 40
    strong: int = 80
    restarts: int = 1
    rivals: int = 3
    queries: int = 300
    draws: int = 50
    carlini: int = 50
    samples: int = 8
    probe: bool = True
    autoattack: bool = False


BUDGETS = {
    "quick": Budget(),
    "standard": Budget(
        strong=100, restarts=5, rivals=9, queries=2000, draws=1000, carlini=200, samples=16, probe=False
    ),
    "thorough": Budget(
        strong=200,
        restarts=10,
        rivals=9,
        queries=5000,
        draws=10_000,
        carlini=10_000,
        samples=32,
        probe=False,
        autoattack=True,
    ),
}


@dataclass(frozen=True)
class Step:
    """What one attack added to all before it.

    Attributes:
        name: of the attack.
        mends: what it mends, as a cause of `verdict.CAUSES`; None for the first, which mend nothing.
        tried: rows that it was given.
        broken: rows that it fooled, judged by the model itself.
        left: share of all rows that are still right after it.
        seconds: it took.
    """

    name: str
    mends: str | None
    tried: int
    broken: int
    left: float
    seconds: float


def median_lead(model: nn.Module, images: Tensor) -> float:
    """The median lead of the largest logit over the next, on some of the images; 1 where it is 0."""
    with frozen(model), torch.no_grad():
        top = answers(model, images[:BATCH]).topk(2, 1).values
    lead = (top[:, 0] - top[:, 1]).median().item()
    return lead if math.isfinite(lead) and lead > 0 else 1.0


Attack = Callable[[Tensor, Tensor], AttackResult]
T = TypeVar("T")


@dataclass
class Suite:
    """The attacks of an audit, and what became of them.

    Attributes:
        view: the model as it is attacked: averaged, its probabilities undone, over the median lead.
        passable: the view with gradients led through what has none; None if that does not run.
        best: the passable view where the gradients of the plain one lead nowhere, else the plain one.
        scale: what the view divides logits by.
        gradients: what they look like.
        steps: one for each attack, in their order.
    """

    model: nn.Module
    door: ModelFacts
    best_found: BestFound
    norm: Norm
    eps: float
    budget: Budget
    reference: nn.Module | None
    seed: int
    tell: Callable[[str, float], None]
    steps: list[Step] = field(default_factory=list)
    view: nn.Module = field(init=False)
    unscaled: nn.Module = field(init=False)
    scale: float = field(init=False)
    passable: nn.Module | None = field(init=False)
    best: nn.Module = field(init=False)
    gradients: Gradients = field(init=False)

    def __post_init__(self) -> None:
        plain = self.model if self.door.deterministic else EOT(self.model, self.budget.samples)
        self.view = plain
        if self.door.probabilities:  # float32 has lost what a saturated softmax said of the other classes
            wide = widened(plain)
            plain = LogProbabilities(wide if wide is not None and self._works(wide) else plain)
        self.unscaled = plain
        self.scale = median_lead(plain, self.best_found.images)
        self.view = Scaled(plain, self.scale)
        passable = Scaled(BPDA(plain), self.scale)
        self.passable = passable if self._works(passable) else None
        rows = (self.best_found.size > 0).nonzero().flatten()[:ROWS]
        images, labels = self.best_found.images[rows], self.best_found.labels[rows]
        reach = (self.eps if self.norm == "linf" else 0.3) / 30
        self.gradients = look_at(self.model, plain, self.scale, images, labels, reach=reach, seed=self.seed)
        self.best = self.passable if self.gradients.bad and self.passable is not None else self.view

    def _works(self, view: nn.Module) -> bool:
        return works(view, self.view, self.best_found.images[:PROBE], deterministic=self.door.deterministic)

    @property
    def ball(self) -> BallNorm:
        """The norm, in which there is a ball to walk in: not of L0."""
        assert self.norm != "l0"
        return self.norm

    @property
    def keep(self) -> str:
        """A model that varies is often fooled by luck before it is for good: then the end of a walk counts."""
        return "best" if self.door.deterministic else "last"

    def walk(
        self, view: nn.Module, loss: Loss, *, seed: int = 0, dtype: torch.dtype | None = None, **options
    ) -> Attack:
        """Projected gradient descent on a view, with the audit's eps, norm and seed unless told otherwise."""
        settings = {"norm": self.norm, "eps": self.eps, "keep": self.keep, "steps": self.budget.steps, **options}

        def attack(images: Tensor, labels: Tensor) -> AttackResult:
            return pgd(view, images.to(dtype or images.dtype), labels, loss=loss, seed=self.seed + seed, **settings)

        return attack

    def run(self, name: str, attack: Attack, *, mends: str | None = None, most: int | None = None) -> Step:
        """Makes an attack on the rows that are still right, judges what it found, and notes it as a step."""

        def made() -> dict[str, Any]:
            started = time.monotonic()
            rows = self.best_found.right(self.eps).nonzero().flatten()[:most]
            groups = [rows[:PROBE], rows[PROBE:]] if self.budget.probe and mends not in (None, "budget") else [rows]
            tried = broken = 0
            for group in groups:
                if not len(group) or (tried and not broken):
                    break
                found = attack(self.best_found.images[group], self.best_found.labels[group])
                self.best_found.record(name, found.adversarial, group, minimal=name in MINIMAL)
                tried, broken = tried + len(group), broken + int((~self.best_found.right(self.eps)[group]).sum())
            left = self.best_found.left(self.eps)
            return asdict(Step(name, mends, tried, broken, left, time.monotonic() - started))

        self.steps.append(Step(**self.cached_step(name, made)))
        return self.steps[-1]

    def note_the_rest(self) -> None:
        """Images that no attack at the audit's eps has fooled, but one made for the curves at another."""
        before, left = self.steps[-1].left, self.best_found.left(self.eps)
        total = len(self.best_found.labels)
        if left < before:
            tried, broken = round(before * total), round((before - left) * total)
            self.steps.append(Step("the same attacks at other eps", "budget", tried, broken, left, 0.0))

    def cached_step(self, name: str, work: Callable[[], T]) -> T:
        """Tells of it, and does it unless an audit that was killed has; see `BestFound.once`."""
        self.tell(name, self.best_found.left(self.eps))
        return self.best_found.cached_step(name, work)

    def common(self, eps: float, keep: str = "last") -> Attack:
        """What a common library runs: cross entropy in float32, 40 steps of eps / 16, one random start, its end."""
        if self.norm == "l0":
            return lambda images, labels: song_3(self.model, images, labels, max_pixels=int(eps), arithmetic="float32")
        return self.walk(self.model, "cross_entropy", eps=eps, steps=40, keep=keep)

    def run_all(self) -> None:
        """All attacks, in their order."""
        plan = self._pixels() if self.norm == "l0" else self._descents()
        for name, mends, attack, most in plan:
            self.run(name, attack, mends=mends, most=most)

    def _descents(self) -> Iterator[tuple[str, str | None, Attack, int | None]]:
        view, best, budget, norm = self.view, self.best, self.budget, self.norm
        ball: dict[str, Any] = {"norm": norm, "eps": self.eps}
        yield "PGD on cross entropy in float32", None, self.common(self.eps), None
        here: dict[str, Any] = {"random_start": False}  # another random start finds rows by luck, which is no mending
        if not self.door.deterministic:
            averaged = EOT(self.model, budget.samples)
            yield "PGD on the mean of many runs", "stochastic", self.walk(averaged, "cross_entropy", **here), None
        yield "FGSM", None, lambda x, y: fgsm(self.model, x, y, **ball), None
        if self.door.probabilities:
            logged = self.walk(self.unscaled, "cross_entropy", **here)
            yield "PGD on the logarithm of the outputs", "loss", logged, None
        yield "PGD on logits brought to scale", "scale", self.walk(view, "cross_entropy", **here), None
        wide = widened(self.unscaled)
        if wide is not None and self._works(wide):
            double = self.walk(wide, "cross_entropy", dtype=torch.float64, **here)
            yield "PGD in float64", "precision", double, None
        yield "PGD on the margin", "loss", self.walk(view, "margin", **here), None
        if self.passable is not None:
            through = self.walk(self.passable, "margin", decay=True, step_size=self.eps / 4)
            yield "PGD straight through steps", "shattered", through, None
        yield from self._without_gradients()
        settled: dict[str, Any] = {"decay": True, "steps": budget.strong, "step_size": self.eps / 4}
        at_length = self.walk(best, "margin", restarts=budget.restarts, seed=1, **settled)
        yield "PGD at length on the margin", "budget", at_length, None
        exact = self.walk(best, "exact", restarts=budget.restarts, seed=2, **settled)
        yield "PGD at length on the log-odds", "budget", exact, None
        count = min(budget.rivals, self.door.classes - 1)
        towards = self.walk(best, "margin", rivals=True, restarts=count, **settled)
        yield "PGD towards each class", "budget", towards, None
        if has_gradient(best, self.best_found.images):
            smallest = carlini_linf if norm == "linf" else carlini_l2
            yield "Carlini and Wagner", "budget", lambda x, y: smallest(best, x, y), budget.carlini
        if budget.autoattack and (outside := autoattack(best, norm, self.eps, self.seed)) is not None:
            yield "AutoAttack", "budget", outside, None

    def _without_gradients(self) -> Iterator[tuple[str, str | None, Attack, int | None]]:
        ball: dict[str, Any] = {"norm": self.norm, "eps": self.eps, "seed": self.seed}
        budget, unscaled = self.budget, self.unscaled
        yield "random noise", "shattered", lambda x, y: noise(unscaled, x, y, draws=budget.draws, **ball), None
        if (reference := self.reference) is not None:
            settings: dict[str, Any] = {"keep": "last", "decay": True, "step_size": self.eps / 4, "random_start": False}
            yield "transfer from the reference", "shattered", self.walk(reference, "margin", **settings), None
        yield "squares", "shattered", lambda x, y: square(unscaled, x, y, queries=budget.queries, **ball), None

    def _pixels(self) -> Iterator[tuple[str, str | None, Attack, int | None]]:
        """Attacks of pixels. Most of them follow a gradient; those of a model that has none are left out."""
        most, view, passable = int(self.eps), self.view, self.passable
        follows = has_gradient(self.model, self.best_found.images)
        if follows:
            yield "Song's algorithm 3 in float32", None, self.common(self.eps), None
        if follows and has_gradient(view, self.best_found.images):
            exact = "Song's algorithm 3 in exact arithmetic"
            yield exact, "scale", lambda x, y: song_3(view, x, y, max_pixels=most), None
            yield "Carlini and Wagner's L0", "budget", lambda x, y: carlini_l0(view, x, y), None
        changes = partial(song_2, self.unscaled, max_pixels=most)
        if not follows:  # algorithm 2 asks for outputs alone, and is then the baseline
            yield "Song's algorithm 2", None, changes, None
        if passable is not None and has_gradient(passable, self.best_found.images):
            through = "Carlini and Wagner's L0 straight through"
            yield through, "shattered", lambda x, y: carlini_l0(passable, x, y), None
        if follows:
            yield "Song's algorithm 2", "budget", changes, None


def has_gradient(model: nn.Module, images: Tensor) -> bool:
    """Whether autograd finds a way from the image to the logits."""
    with frozen(model), torch.enable_grad():
        image = images[:1].clone().requires_grad_(True)
        try:
            input_gradient(logits_of(model, image).sum(), image)
        except InputError:
            return False
    return True


def autoattack(model: nn.Module, norm: str, eps: float, seed: int) -> Attack | None:
    """AutoAttack's standard version by pyautoattack (Croce and Hein 2020), None where that is not installed.

    Of fewer than ten classes it aims at all others; of fewer than four it runs without its targeted APGD.
    """
    try:
        from pyautoattack import AutoAttack  # type: ignore[import-not-found]
    except ImportError:
        return None
    from brittle.attacks.result import measured

    def attack(images: Tensor, labels: Tensor) -> AttackResult:
        with frozen(model):
            made = AutoAttack(
                lambda points: logits_of(model, points).float(),
                norm={"linf": "Linf", "l2": "L2"}[norm],
                eps=eps,
                seed=seed,
                device=images.device,
            )
            made.verbose = False
            rivals = answers(model, images[:1]).shape[1] - 1
            made.fab.n_target_classes = min(9, rivals)
            made.apgd_targeted.n_target_classes = min(made.apgd_targeted.n_target_classes, rivals)
            if rivals < 3:  # the loss of apgd-t looks at the four largest logits
                made.attacks_to_run = [name for name in made.attacks_to_run if name != "apgd-t"]
            found, _ = made.run_standard_evaluation(images, labels, batch_size=at_once(model, images))
        return measured(model, images, labels, found, forwards=1, backwards=0)  # its evaluations are not told

    return attack
