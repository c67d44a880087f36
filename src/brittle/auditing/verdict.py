"""The verdict: robust, masked, broken or inconclusive, and why.

The rules, in their order. `common` is what the common attack leaves, `left` what everything together leaves:

1. No clean image to lose: a model no better than a constant answer is inconclusive.
2. The common attack leaves 20 points or more, of which 10 are not there, and a cause was seen: masked. Without a cause
   it takes 20 points, and half of what the common attack leaves: an undefended network, too, loses some to more search.
3. Less than half of the clean accuracy is left: broken.
4. Every needed check passed, the gap is under 10 points, the whole interval of `left` is above half of the clean
   accuracy and, where there is a reference, above the interval of what that has left: robust at eps.
5. Anything else is inconclusive, with the checks that failed and what to run next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from brittle.auditing.battery import Step
from brittle.auditing.checks import Check, worth_of
from brittle.auditing.door import Door
from brittle.auditing.gradients import MATERIAL, Gradients
from brittle.measures import Share

CAUSES = {
    "scale": "the logits are so large that the loss and its gradient underflow",
    "precision": "numbers inside the model are too coarse to carry the gradient",
    "loss": "the loss that the common attack follows says little about the label's lead",
    "shattered": "a step inside the model blocks or bends the gradient",
    "stochastic": "the model answers differently each time, which hides the gradient in noise",
    "budget": "the common attack is too short, or stuck",
}
SIGNS = (
    "determinism",
    "outputs",
    "randomness",
    "scale",
    "precision",
    "loss",
    "blocked gradients",
    "vanishing gradients",
    "blocked gradients on the way",
    "gradients against finite differences",
    "gradients of two runs",
)
HELD = 0.5  # of the clean accuracy: what a model keeps that is called robust


@dataclass(frozen=True)
class Verdict:
    """What the audit says.

    Attributes:
        kind: 'robust', 'masked', 'broken' or 'inconclusive'.
        causes: of a masked model, of `CAUSES`, the one worth most first.
        sentences: the verdict in words, the most important first.
        next: what to run or to change, where it is inconclusive.
    """

    kind: str
    causes: tuple[str, ...]
    sentences: tuple[str, ...]
    next: tuple[str, ...]


def decide(
    *,
    door: Door,
    steps: Sequence[Step],
    common: Share,
    left: Share,
    reference: Share | None,
    gradients: Gradients | None,
    checks: Sequence[Check],
    bound: str,
) -> Verdict:
    """The rules at the head of this file, applied.

    Args:
        door: what was found at the door.
        steps: the battery's.
        common: rows right after the common attack alone.
        left: rows right after everything.
        reference: rows that an undefended network has left, if there is one.
        gradients: what they look like; None for L0.
        checks: all of them.
        bound: the bound in words, such as 'L-infinity 0.3'.
    """
    failed = [one for one in checks if not one.passed and one.needed]
    kept = HELD * door.accuracy.value
    gap = common.value - left.value
    wide = gap >= MATERIAL and common.count - left.count >= 6  # 6 of 6: p < 0.05 by McNemar's exact test
    seen = [one.name for one in failed if one.name in SIGNS]
    worse = reference is not None and left.interval[0] <= reference.interval[1]
    said: list[str] = []
    causes: tuple[str, ...] = ()
    after: list[str] = []
    if door.accuracy.interval[0] <= door.chance:
        kind, after = "inconclusive", ["check the labels' order and the preprocessing"]
        said.append(f"The model is right on {door.accuracy.value:.1%} of the clean images: there is nothing to lose.")
    elif wide and common.value >= 2 * MATERIAL and (seen or gap >= max(2 * MATERIAL, common.value / 2)):
        kind, causes = "masked", named(steps, gap, gradients)
        said.append(
            f"At {bound} a common attack leaves {common.value:.1%} of the images right; under everything "
            f"{left.value:.1%} are left."
        )
        said += [f"Cause: {cause}; {CAUSES[cause]}." for cause in causes]
    elif left.value < kept:
        kind = "broken"
        said.append(f"At {bound} only {left.value:.1%} of the images stay right, of {door.accuracy.value:.1%}.")
    elif not failed and not wide and left.interval[0] > kept and not worse:
        kind = "robust"
        low, high = left.interval
        said.append(
            f"At {bound} every check passed, and {left.value:.1%} of the images stay right ({low:.1%} to {high:.1%})."
        )
    else:
        kind = "inconclusive"
        said.append(f"At {bound} {left.value:.1%} of the images stay right, but that is not shown to hold:")
        said += [f"{one.name}: {one.sentence}" for one in failed]
        after = [one.next for one in failed if one.next]
        if wide:
            said.append(f"a common attack reports {common.value:.1%}.")
        if left.interval[0] <= kept:
            said.append("too few rows to tell whether half of the clean accuracy is kept.")
            after.append("audit more rows")
    if reference is not None:
        said.append(f"An undefended network has {reference.value:.1%} left.")
        if kind == "inconclusive" and worse:
            said.append("That is no less: at this eps nothing can be told from undefended networks.")
            after.append("audit at a larger eps")
    return Verdict(kind, causes, tuple(said), tuple(dict.fromkeys(after)))


def named(steps: Sequence[Step], gap: float, gradients: Gradients | None) -> tuple[str, ...]:
    """The causes whose mending was worth 10 points or half of the gap, the one worth most first.

    Where the gradients lead nowhere, what more and other searching finds is laid to that, not to the budget; where
    they are sound, what is found without them could have been found with more of them.
    """
    worth: dict[str, float] = {}
    for cause, value in worth_of(list(steps)).items():
        if cause in ("shattered", "budget"):
            cause = "shattered" if gradients is not None and gradients.bad else "budget"
        elif cause == "scale" and gradients is not None and gradients.lost_inside >= 0.5:
            cause = "precision"
        worth[cause] = worth.get(cause, 0.0) + value
    if worth.get("scale", 0) >= MATERIAL and gradients is not None and gradients.lost_inside < 0.5:
        worth["scale"] += worth.pop("precision", 0.0)  # wider numbers hold what is too large for float32
    large = [cause for cause, value in worth.items() if value >= min(MATERIAL, gap / 2)]
    return tuple(sorted(large, key=lambda cause: -worth[cause])) or ("budget",)
