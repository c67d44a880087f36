"""The verdict: robust, masked, broken or inconclusive, and why.

The rules, in their order. `common` is the accuracy under the baseline attack, `left` that under all attacks together,
the robust accuracy:

1. A model no better than a constant answer, or whose answer to an image depends on the rest of the batch, has nothing
   that could be attacked: inconclusive. Where it is never right, nothing is run.
2. Under the baseline attack 20 % or more of the images are right, 10 points more than under all attacks, and a cause
   was seen: masked. Without a cause it takes 20 points, and half of `common`: more search finds some more images of an
   undefended network too. In L0 no verdict is masked: the baseline attack and the others are different attacks there,
   and their difference says nothing of a cause.
3. `left` is less than half of the clean accuracy: broken.
4. Every needed check passed, the gap is under 10 points, at least 100 images were attacked, the whole interval of
   `left` is above half of the clean accuracy, and an undefended network does not do as well: robust. Where there is a
   reference, that is `left` 10 points above it on the same images, with its whole paired interval above 0. Where there
   is none, eps must be the usual one: those are so large that undefended networks lose most images. At smaller ones
   they keep many (at 8/255, small networks of digits keep 80 %).
5. Anything else is inconclusive, with the reasons and what to run next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from brittle.auditing.checks import Check, worth_of
from brittle.auditing.gradients import MATERIAL, Gradients
from brittle.auditing.sanity import ONE_CLASS, ModelFacts
from brittle.auditing.suite import Step
from brittle.measures import Paired, Share

CAUSES = {
    "scale": "the logits are so large that the loss and its gradient underflow",
    "precision": "numbers inside the model are too coarse to carry the gradient",
    "loss": "the loss that the baseline attack follows says little about the label's lead",
    "shattered": "a step inside the model blocks or bends the gradient",
    "stochastic": "the model answers differently each time, which hides the gradient in noise",
    "budget": "the baseline attack is too short, or stuck",
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
ENOUGH = 100  # images: Wilson's interval is then at most 10 points to either side
USUAL = 0.9  # of the usual eps: 0.031, which is often written for 8/255, is the usual one
FRACTIONS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth", 10: "a tenth"}


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
    door: ModelFacts,
    steps: Sequence[Step],
    common: Share,
    left: Share,
    beside: Paired | None,
    gradients: Gradients | None,
    checks: Sequence[Check],
    bound: str,
    eps: float,
    usual: float,
) -> Verdict:
    """The rules at the head of this file, applied.

    Args:
        door: what was found at the door.
        steps: the suite's.
        common: images right under the baseline attack alone.
        left: images right under all attacks.
        beside: these, paired with those that an undefended network has right; None without one.
        gradients: what they look like; None for L0.
        checks: all of them.
        bound: the bound in words, such as 'L-infinity 0.3'.
        eps: the bound; usual: what is usual for such images.
    """
    failed = [one for one in checks if not one.passed and one.needed]
    gap = common.value - left.value
    wide = gap >= MATERIAL and common.count - left.count >= 6  # 6 of 6: p < 0.05 by McNemar's exact test
    seen = any(one.name in SIGNS for one in failed)
    lost = wide and common.value >= 2 * MATERIAL and (seen or gap >= max(2 * MATERIAL, common.value / 2))
    causes: tuple[str, ...] = ()
    after: list[str] = []
    if not door.accuracy.count:
        kind, after = "inconclusive", ["check the order of the labels, the mapping of classes and the preprocessing"]
        said = [f"The model classifies none of the {door.accuracy.total} images correctly: nothing was attacked."]
    elif not door.learned and (door.chance == 1 or door.accuracy.value >= (1 + door.chance) / 2):
        kind, after = "inconclusive", [ONE_CLASS if door.chance == 1 else "audit more images"]
        said = [
            f"The images are too few, or of too few classes, to tell the model from a constant answer: clean accuracy "
            f"{interval(door.accuracy)}, a constant answer has {door.chance:.0%}."
        ]
    elif not door.learned:
        kind, after = "inconclusive", ["train it, or check the weights, the order of the labels and the preprocessing"]
        said = [
            f"This network has not learned: clean accuracy {interval(door.accuracy)}, a constant answer has "
            f"{door.chance:.0%}."
        ]
    elif not door.independent:
        kind, after = "inconclusive", [one.next for one in failed if one.name == "one image alone"]
        said = [
            "The model's answer to an image depends on the other images of the batch, so an image has no one answer."
        ]
    elif lost and gradients is not None:
        kind, causes = "masked", named(steps, gap, gradients)
        said = [
            f"At {bound} accuracy under the baseline attack is {common.value:.1%}; robust accuracy is {left.value:.1%}."
        ]
        said += [f"Cause: {cause}; {CAUSES[cause]}." for cause in causes]
    elif left.value < HELD * door.accuracy.value:
        kind = "broken"
        said = [f"At {bound} robust accuracy is {interval(left)}; clean accuracy is {door.accuracy.value:.1%}."]
    elif reasons := [*_doubts(failed, common if wide else None), *_too_little(door, left, beside, eps, usual)]:
        kind, after = "inconclusive", [advice for _, advice in reasons if advice]
        said = [f"Robust accuracy is {left.value:.1%}, but this is not shown to hold.", *(why for why, _ in reasons)]
    else:
        kind = "robust"
        said = [f"At {bound} every check passed, and robust accuracy is {interval(left)}."]
    return Verdict(kind, causes, tuple(said), tuple(dict.fromkeys(after)))


def interval(share: Share) -> str:
    """'80.0% (71.1% to 86.7%)'."""
    low, high = share.interval
    return f"{share.value:.1%} ({low:.1%} to {high:.1%})"


def compared(eps: float, usual: float) -> str:
    """How a bound compares with the usual one: 'the usual one', 'a tenth of the usual 0.3'."""
    for count, words in FRACTIONS.items():
        if math.isclose(eps * count, usual, rel_tol=0.06):
            return f"{words} of the usual {usual:.3g}"
    if math.isclose(eps, usual, rel_tol=0.02):
        return "the usual one"
    return (
        f"{eps / usual:.2g} times the usual {usual:.3g}"
        if eps > usual
        else f"{eps / usual:.0%} of the usual {usual:.3g}"
    )


def _doubts(failed: Sequence[Check], common: Share | None) -> list[tuple[str, str]]:
    """Why the robust accuracy may be too high, each with what to do: checks that failed, a baseline far above it."""
    said = [(f"{one.name}: {one.sentence}", one.next) for one in failed]
    return said if common is None else [*said, (f"The baseline attack alone reports {common.value:.1%}.", "")]


def _too_little(
    door: ModelFacts, left: Share, beside: Paired | None, eps: float, usual: float
) -> list[tuple[str, str]]:
    """Why the robust accuracy, if right, is not evidence enough, each with what to do."""
    said = []
    if left.total < ENOUGH:
        said.append(
            (f"The word robust takes {ENOUGH} images; there are {left.total}.", f"audit at least {ENOUGH} images")
        )
    if left.interval[0] <= HELD * door.accuracy.value:
        said.append(
            ("There are too few images to tell whether half of the clean accuracy is kept.", "audit more images")
        )
    if beside is None and eps < USUAL * usual:
        said.append(
            (
                f"eps {eps:.3g} is {compared(eps, usual)}: an undefended network may pass as well.",
                "give --reference MODEL: at this eps an undefended network may pass as well",
            )
        )
    if beside is not None and not (beside.difference.interval[0] > 0 and beside.difference.value >= MATERIAL):
        low, high = (100 * end for end in beside.difference.interval)
        undefended = Share(beside.both + beside.other, left.total)
        said.append(
            (
                f"An undefended network has {undefended.value:.1%} on the same images: the difference is "
                f"{100 * beside.difference.value:.0f} points ({low:.0f} to {high:.0f}), and robust takes "
                f"{100 * MATERIAL:.0f} and an interval above 0.",
                "audit at a larger eps, or more images",
            )
        )
    return said


def named(steps: Sequence[Step], gap: float, gradients: Gradients | None) -> tuple[str, ...]:
    """The causes whose fix was worth 10 points or half of the gap, the one worth most first.

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
