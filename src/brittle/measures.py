"""Accuracy, saturation, sensitivity, confidence and success: each a number with its interval or its spread."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from brittle.attacks.result import AttackResult
from brittle.progress import Progress, silent
from brittle.softmax import Arithmetic, check_arithmetic, jacobian, jacobian_float32

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point
NEGLIGIBLE = 1e-10  # Mandal and Guo, section V-B: a mean gradient amplitude below this is "close to zero"


@dataclass(frozen=True)
class Share:
    """`count` of `total` rows, with Wilson's 95 % interval; all NaN if there are no rows."""

    count: int
    total: int

    @property
    def value(self) -> float:
        """count / total, in [0, 1]."""
        return self.count / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 1927: unlike the textbook interval it is never empty at 0 or 1."""
        n, z2 = self.total, Z95 * Z95
        if not n:
            return math.nan, math.nan
        centre = (self.count + z2 / 2) / (n + z2)
        half = Z95 / (n + z2) * math.sqrt(self.count * (n - self.count) / n + z2 / 4)
        # At the ends the formula gives exactly 0 and 1, up to rounding.
        return 0.0 if self.count == 0 else centre - half, 1.0 if self.count == n else centre + half


@dataclass(frozen=True)
class Mean:
    """A mean over rows with its 95 % percentile bootstrap interval; all NaN if there are no rows."""

    value: float
    interval: tuple[float, float]
    rows: int


@dataclass(frozen=True)
class Flips:
    """How many pixels had to be set, over the rows that were fooled; those that were not are counted beside it.

    Attributes:
        mean, median, quartiles, maximum: pixels, over `successes` rows; NaN if there are none.
        successes: rows the model got right at first and got wrong in the end.
        failures: rows that withstood every pixel tried.
    """

    mean: float
    median: float
    quartiles: tuple[float, float]
    maximum: float
    successes: int
    failures: int


@dataclass(frozen=True)
class Paired:
    """Two yes-or-no outcomes of the same rows, such as whether each of two models was fooled; NaN if no rows.

    Attributes:
        both, one, other, neither: rows by outcome; `one` and `other` alone are those that tell the two apart.
        difference: share of the one less that of the other, in [-1, 1], with Newcombe's 95 % interval.
        ratio: share of the one over that of the other, with its 95 % percentile bootstrap interval.
        p: of McNemar's exact test that the two shares are the same.
    """

    both: int
    one: int
    other: int
    neither: int
    difference: Mean
    ratio: Mean
    p: float


def share(rows: Tensor) -> Share:
    """The share of rows that are true: (N,) bool."""
    return Share(int(rows.sum()), len(rows))


def mean(values: Tensor, *, resamples: int = 2000, seed: int = 0) -> Mean:
    """The mean of (N,) values, its interval from `resamples` bootstrap draws of the rows."""
    numbers = values.double().cpu().numpy()
    if not len(numbers):
        return Mean(math.nan, (math.nan, math.nan), 0)
    random = np.random.default_rng(seed)
    draws = [numbers[random.integers(0, len(numbers), len(numbers))].mean() for _ in range(resamples)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Mean(float(numbers.mean()), (float(low), float(high)), len(numbers))


def paired(one: Tensor, other: Tensor, *, resamples: int = 10_000, seed: int = 0) -> Paired:
    """Compares two outcomes of the same rows, (N,) bool each.

    McNemar 1947, exact; Newcombe 1998, method 10, which has an interval even where one share is 0 or 1.
    """
    counts = [int(rows.sum()) for rows in (one & other, one & ~other, ~one & other, ~one & ~other)]
    both, first, second, _ = counts
    total = len(one)
    if not total:
        nothing = Mean(math.nan, (math.nan, math.nan), 0)
        return Paired(0, 0, 0, 0, nothing, nothing, math.nan)
    from scipy.stats import binomtest

    p = binomtest(first, first + second).pvalue if first + second else 1.0
    random = np.random.default_rng(seed)
    draws = random.multinomial(total, np.array(counts) / total, resamples)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (draws[:, 0] + draws[:, 1]) / (draws[:, 0] + draws[:, 2])
        ratio = float(np.divide(both + first, both + second))
    low, high = (
        np.nanquantile(ratios, [0.025, 0.975], method="nearest") if np.isfinite(ratios).any() else (math.nan,) * 2
    )
    return Paired(
        *counts,
        difference=Mean((first - second) / total, _newcombe(*counts), total),
        ratio=Mean(ratio, (float(low), float(high)), total),
        p=float(p),
    )


def _newcombe(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    total = both + first + second + neither
    one, other = Share(both + first, total), Share(both + second, total)
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    excess = both * neither - first * second
    if excess > 0:
        excess = max(0.0, excess - total / 2)  # continuity
    phi = excess / math.sqrt(margins) if margins else 0.0
    gap = one.value - other.value

    def reach(up: float, down: float) -> float:
        return math.sqrt(max(0.0, up * up - 2 * phi * up * down + down * down))

    low = reach(one.value - one.interval[0], other.interval[1] - other.value)
    high = reach(one.interval[1] - one.value, other.value - other.interval[0])
    return gap - low, gap + high


def accuracy(logits: Tensor, labels: Tensor) -> Share:
    """Rows whose largest logit is the label's: (N, K), (N,)."""
    return share(logits.argmax(1) == labels)


def saturated(logits: Tensor) -> Share:
    """Rows whose float32 softmax is exactly one-hot: their published gradients are exactly zero."""
    probabilities = torch.softmax(logits.float(), 1)
    return share(((probabilities == 0) | (probabilities == 1)).all(1))


def confidence(logits: Tensor, labels: Tensor) -> Mean:
    """The largest probability of rows that are right, 0 for the others, averaged.

    Mandal and Guo, equation (14), with max where it prints arg max.
    """
    right = logits.argmax(1) == labels
    return mean(torch.softmax(logits.double(), 1).amax(1) * right)


def gradient_amplitudes(
    model: nn.Module,
    images: Tensor,
    *,
    temperature: float = 1.0,
    arithmetic: Arithmetic = "exact",
    batch: int = 64,
    progress: Progress = silent,
) -> Tensor:
    """log10 of each row's mean |dF_i/dx_j| over all classes i and inputs j: Mandal and Guo, section V-B.

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K).
        images: (N, C, H, W), in [0, 1].
        temperature: at which the softmax is read.
        arithmetic: 'exact', or 'float32' as published, where a saturated row gives -inf.
        batch: rows at a time.
        progress: told the rows done.

    Returns:
        (N,) float64.
    """
    check_arithmetic(arithmetic)
    found = []
    for rows in images.split(batch):
        if arithmetic == "exact":
            found.append(jacobian(model, rows, temperature).mean_magnitude((1, 2, 3, 4)))
        else:
            found.append(jacobian_float32(model, rows, temperature).double().abs().mean((1, 2, 3, 4)).log10())
        progress(sum(map(len, found)), len(images))
    return torch.cat(found)


def sensitivity(amplitudes: Tensor, threshold: float = NEGLIGIBLE) -> Share:
    """The share of rows whose gradient looks like zero: (N,) log10 amplitudes below log10 `threshold`."""
    return share(amplitudes < math.log10(threshold))


def success_rate(found: AttackResult) -> Share:
    """Rows that were fooled, of those that the model got right before the attack."""
    return share(found.success[~found.trivial])


def flips_needed(found: AttackResult) -> Flips:
    """Pixels set until the prediction changed, for a pixel attack; trivial rows are left out."""
    counted = found.success & ~found.trivial
    failures = int((~found.success).sum())
    flips = found.flips[counted].double()
    if not len(flips):
        return Flips(math.nan, math.nan, (math.nan, math.nan), math.nan, 0, failures)
    low, median, high = torch.quantile(flips, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return Flips(flips.mean().item(), median, (low, high), flips.max().item(), len(flips), failures)


def success_curve(found: AttackResult, trials: int) -> Tensor:
    """(trials + 1,) share of rows fooled by at most 0, 1, ..., `trials` flips, of those right before the attack."""
    rows = ~found.trivial
    needed = torch.where(found.success, found.flips, trials + 1)[rows]
    counts = torch.bincount(needed.clamp(max=trials + 1), minlength=trials + 2)[: trials + 1]
    return counts.cumsum(0).double() / max(1, int(rows.sum()))
