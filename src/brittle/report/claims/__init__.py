"""What a paper says, and what a study of it found: one row a claim, with intervals and a verdict.

A study names its paper's claims, `claims = "song-2017"`; they are the function `claims` of the module here of that
name, from a report to a list. Every claim says that a number lies in a range, its `Rule`, and one burden of proof
holds for all:

- holds: the whole 95 % interval of our number lies in the range;
- contradicted: the whole interval lies outside of it, on one side;
- undecided: the interval reaches over an end of the range;
- not judged: there is no number with an interval, or it comes from a run that is too far from the paper's (`lacking`).

A claim that gives a value, "the accuracy is 99.57 %", stands for the range within a margin around it, which the rule
states: a narrow interval that covers the value holds, one that lies wholly away from it is contradicted, and a wide one
is undecided. A claim with several parts holds if each does, and is contradicted if any is. Numbers in exact arithmetic
decide; those in float32 only where there are no others. `in_float32` is what float32 alone would have said.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from brittle.errors import unknown
from brittle.measures import Mean, Share
from brittle.study.store.results import Model, Report

Verdict = Literal["holds", "contradicted", "undecided", "not judged"]
LEAST_EPOCHS = 0.5  # of the paper's: networks that were trained for less do not judge it
LEAST_IMAGES = 100  # under attack: fewer have intervals that decide nothing


@dataclass(frozen=True)
class Number:
    """A quantity with its 95 % interval."""

    value: float
    low: float
    high: float
    unit: str = ""  # '%', 'points', 'times', 'pixels', or none
    digits: int = 1

    @classmethod
    def percent(cls, share: Share) -> Number:
        """A share in percent, with Wilson's interval."""
        low, high = share.interval
        return cls(100 * share.value, 100 * low, 100 * high, "%", 1 if share.total <= 2000 else 2)

    @classmethod
    def of(cls, mean: Mean, unit: str, *, scale: float = 1.0, digits: int = 1) -> Number:
        """A mean, or what was estimated like one, `scale` times."""
        low, high = mean.interval
        return cls(scale * mean.value, scale * low, scale * high, unit, digits)

    def __str__(self) -> str:
        value, low, high = (_number(x, self.digits) for x in (self.value, self.low, self.high))
        unit = f" {self.unit}" if self.unit else ""
        if not self.known:
            return "–"
        return f"more than {low}{unit}" if math.isinf(self.value) else f"{value}{unit} ({low} to {high})"

    @property
    def known(self) -> bool:
        """Whether there is a number, and an interval that says how sure it is."""
        return not any(map(math.isnan, (self.value, self.low, self.high)))


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".replace(",", " ").replace("-", "−")


@dataclass(frozen=True)
class Rule:
    """What a claim says of a number: that it lies from `low` to `high`, ends included; and the same in words."""

    low: float
    high: float
    words: str  # after 'holds if the 95 % interval lies'

    def __call__(self, number: Number | None) -> Verdict:
        """The verdict on a number, by its interval alone."""
        if number is None or not number.known:
            return "not judged"
        if self.low <= number.low and number.high <= self.high:
            return "holds"
        return "contradicted" if number.high < self.low or number.low > self.high else "undecided"


def above(value: float, unit: str = "") -> Rule:
    """More than a value."""
    return Rule(math.nextafter(value, math.inf), math.inf, f"above {_said(value)} {unit}".rstrip())


def below(value: float, unit: str = "") -> Rule:
    """Less than a value."""
    return Rule(-math.inf, math.nextafter(value, -math.inf), f"below {_said(value)} {unit}".rstrip())


def between(low: float, high: float, unit: str = "") -> Rule:
    """From one value to another."""
    return Rule(low, high, f"between {_said(low)} and {_said(high)} {unit}".rstrip())


def near(value: float, margin: float, unit: str = "") -> Rule:
    """A published value, give or take a margin."""
    return Rule(value - margin, value + margin, f"within {_said(margin)} of {_said(value)} {unit}".rstrip())


def _said(value: float) -> str:
    return f"{value:,.10g}".replace(",", " ").replace("-", "−")


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, in our words, and what became of it."""

    says: str
    where: str  # in the paper
    published: str
    float32: Number | None
    exact: Number | None
    verdict: Verdict
    in_float32: Verdict | None  # None where there is no number in float32
    lacking: str  # why it is not judged; empty if it is
    why: str  # what was compared, over how many images and seeds, and the rule


Part = tuple[Rule, Number | None, Number | None]  # the number in float32, and computed exactly


def claim(
    says: str,
    where: str,
    published: str,
    rule: Rule,
    compared: str,
    *,
    exact: Number | None,
    float32: Number | None = None,
    also: Sequence[Part] = (),
    lacking: str = "",
) -> Claim:
    """Judges a claim.

    Args:
        says, where, published: the claim, its place in the paper, and the paper's number.
        rule: what it says of our number.
        compared: what our number is, as the beginning of a sentence.
        exact: our number, computed exactly or where no arithmetic of the attack bears on it.
        float32: the same in float32, where an attack was made in both.
        also: other numbers that have to obey rules of their own for the claim to hold.
        lacking: why the run is too far from the paper's; see `far_from`.
    """
    parts = [(rule, float32, exact), *also]
    in_float32 = _together([rule(number) for rule, number, _ in parts])
    in_exact = _together([rule(number) for rule, _, number in parts])
    verdict = in_float32 if exact is None and float32 is not None else in_exact
    if verdict == "not judged":
        alone = exact is not None and not math.isnan(exact.value)
        lacking = "one seed gives no interval" if alone else "this study has no number for it"
    rules = f"holds if the 95 % interval lies {rule.words}"
    return Claim(
        says,
        where,
        published,
        *(number if number and number.known else None for number in (float32, exact)),
        verdict="not judged" if lacking else verdict,
        in_float32=None if lacking or in_float32 == "not judged" else in_float32,
        lacking=lacking,
        why=f"{f'Not judged: {lacking}. ' if lacking else ''}{compared}; {rules}.",
    )


def _together(verdicts: Sequence[Verdict]) -> Verdict:
    """That on a claim, by those on its parts: the first of these that any has."""
    order: tuple[Verdict, ...] = ("not judged", "contradicted", "undecided", "holds")
    return min(verdicts, key=order.index)


class Both(TypedDict):
    """The same number in float32 and computed exactly."""

    float32: Number | None
    exact: Number | None


def both(number: Callable[[str], Number | None]) -> Both:
    """What `number` gives in each arithmetic."""
    return {"float32": number("float32"), "exact": number("exact")}


def far_from(models: Sequence[Model], epochs: float, images: int | None = None) -> str:
    """Why networks cannot stand for a paper's; empty if they can.

    Args:
        models: those that a claim is judged by.
        epochs: for how many the paper trains.
        images: how many are under attack, where that matters.
    """
    trained = [float(m.trained.params["epochs"]) for m in models if m.trained and "epochs" in m.trained.params]
    least = min(trained, default=epochs)
    reasons = []
    if least < LEAST_EPOCHS * epochs:
        reasons.append(f"{least:g} epoch{'s' if least != 1 else ''} where the paper has {epochs:g}")
    untaught = list(dict.fromkeys(model.title for model in models if model.learned is False))
    reasons += [f"{title} has not learned" for title in untaught]
    if images is not None and images < LEAST_IMAGES:
        reasons.append(f"{images} images where at least {LEAST_IMAGES} are needed")
    return "; ".join(reasons)


def seeds(count: int) -> str:
    """'3 seeds'."""
    return f"{count} seed{'s' if count != 1 else ''}"


def names() -> list[str]:
    """The papers whose claims are known."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def of(name: str) -> Callable[[Report], list[Claim]]:
    """The claims of a paper, by its study's name.

    Raises:
        InputError: if there are none of that name.
    """
    if name not in names():
        raise unknown("claims", name, names())
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}").claims
