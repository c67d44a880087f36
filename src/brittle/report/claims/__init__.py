"""What a paper says, and what a study of it found: one row a claim, with intervals and a verdict.

A study names its paper's claims, `claims = "song-2017"`; they are the function `claims` of the module here of that
name, from a report to a list. A claim is judged by intervals alone, in either arithmetic:

- holds: computed exactly, what the paper says is so;
- artefact of float32: in float32 it is so, computed exactly it is not;
- does not hold: in neither;
- not tested: what it needs has not been computed.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from brittle.errors import unknown
from brittle.measures import Mean, Share
from brittle.report.contents import BOTH, Report

Verdict = Literal["holds", "artefact of float32", "does not hold", "not tested"]


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

    def meets(self, low: float, high: float) -> bool:
        """Whether its interval and that from `low` to `high` have a number in common."""
        return self.low <= high and self.high >= low

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "–"
        value, low, high = (_number(x, self.digits) for x in (self.value, self.low, self.high))
        sign = " " if self.unit else ""
        return f"{value}{sign}{self.unit} ({low} to {high})"


def _number(value: float, digits: int) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:,.{digits}f}".replace(",", " ").replace("-", "−")


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, in our words, and what became of it."""

    says: str
    where: str  # in the paper
    published: str
    float32: Number | None
    exact: Number | None
    verdict: Verdict
    why: str  # what was compared, over how many rows and seeds


def judged(float32: bool | None, exact: bool | None) -> Verdict:
    """The verdict on something that is, or is not, so in float32 and computed exactly; None where it was not tried."""
    if float32 is None and exact is None:
        return "not tested"
    if exact is None:
        return "holds" if float32 else "does not hold"
    if exact:
        return "holds"
    return "artefact of float32" if float32 else "does not hold"


def both(test: Callable[[str], tuple[Number, bool] | None]) -> tuple[Number | None, Number | None, Verdict]:
    """What a test finds in float32 and exactly, and the verdict."""
    float32, exact = (test(arithmetic) for arithmetic in BOTH)
    verdict = judged(float32 and float32[1], exact and exact[1])
    return float32 and float32[0], exact and exact[0], verdict


def once(number: Number | None, holds: Callable[[Number], bool]) -> tuple[None, Number | None, Verdict]:
    """A quantity that no arithmetic of the attack bears on, and the verdict."""
    known = number is not None and not math.isnan(number.value)
    return None, number, judged(None, holds(number) if known and number else None)


def p_value(p: float) -> str:
    """'0.03', 'below 0.001'."""
    return "–" if math.isnan(p) else "below 0.001" if p < 0.001 else f"{p:.3f}"


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
