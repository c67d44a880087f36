"""Accuracy, saturation, sensitivity, confidence, success, robustness: each a number with its interval or its spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from brittle.attacks.result import AttackResult
from brittle.errors import InputError
from brittle.models.inference import ROOM, asking, at_once, logits_in_batches
from brittle.models.softmax import Arithmetic, check_arithmetic, jacobian, jacobian_float32
from brittle.progress import Progress, silent

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point
JACOBIANS = 6  # numbers of float64 that an entry of a Jacobian takes on its way
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
class Robustness:
    """How large the smallest changes found are: over the rows that were right before and were fooled.

    Rows that were wrong before have 0 by definition, and rows that withstood have no number: both are counted apart.
    As an attack finds no change smaller than the smallest, these are upper bounds of the model's robustness.

    Attributes:
        mean, median, maximum: of the change, each with its 95 % percentile bootstrap interval (a maximum's has no
            more than the maximum as its upper end); NaN if no row was fooled.
        over_all: the mean with a 0 for each row that was wrong before, as Mandal and Guo average over the test set.
        trivial: rows that were wrong before.
        failures: rows that withstood; a mean without them is too small.
    """

    mean: Mean
    median: Mean
    maximum: Mean
    over_all: Mean
    trivial: int
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
    at_once = max(1, 250_000 // len(numbers))  # draws: 2 MB of numbers stay in the cache
    sizes = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    draws = [numbers[random.integers(0, len(numbers), (size, len(numbers)))].mean(1) for size in sizes]
    return Mean(float(numbers.mean()), _between(np.concatenate(draws)), len(numbers))


def _between(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def _median_and_maximum(values: Tensor, resamples: int, seed: int) -> tuple[Mean, Mean]:
    """Both of (N,) values. The k-th of N draws with replacement is the value at N times a Beta(k, N + 1 - k)."""
    ordered = np.sort(values.double().cpu().numpy())
    rows = len(ordered)
    if not rows:
        nothing = Mean(math.nan, (math.nan, math.nan), 0)
        return nothing, nothing
    random = np.random.default_rng(seed)
    k = (rows + 1) // 2
    lower = random.beta(k, rows + 1 - k, resamples)
    upper = lower if rows % 2 else lower + (1 - lower) * random.beta(1, rows - k, resamples)  # the (k + 1)-th
    last = random.beta(rows, 1, resamples)
    drawn = [ordered[np.minimum(rows * at, rows - 1).astype(int)] for at in (lower, upper, last)]
    return (
        Mean(float(np.median(ordered)), _between((drawn[0] + drawn[1]) / 2), rows),
        Mean(float(ordered[-1]), _between(drawn[2]), rows),
    )


def mean_of_seeds(values: Sequence[float]) -> Mean:
    """The mean of one number a seed, with Student's 95 % interval: what another seed's networks may have.

    With one seed the interval is NaN, for nothing is known of others.
    """
    count = len(values)
    if not count:
        return Mean(math.nan, (math.nan, math.nan), 0)
    middle = math.fsum(values) / count
    if count == 1:
        return Mean(middle, (math.nan, math.nan), 1)
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    error = math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (count - 1) / count)
    reach = float(stdtrit(count - 1, 0.975)) * error
    return Mean(middle, (middle - reach, middle + reach), count)


def paired(one: Tensor, other: Tensor, *, resamples: int = 10_000, seed: int = 0) -> Paired:
    """Compares two outcomes of the same rows, (N,) bool each.

    McNemar 1947, exact; Newcombe 1998, method 10, which has an interval even where one share is 0 or 1.

    Raises:
        InputError: if the two are not of the same rows, or not bool.
    """
    if one.shape != other.shape or one.ndim != 1 or not one.dtype == other.dtype == torch.bool:
        came = " and ".join(f"{tuple(values.shape)} of {values.dtype}" for values in (one, other))
        raise InputError(f"paired outcomes must be (N,) of bool each, got {came}")
    counts = [int(rows.sum()) for rows in (one & other, one & ~other, ~one & other, ~one & ~other)]
    both, first, second, _ = counts
    total = len(one)
    if not total:
        nothing = Mean(math.nan, (math.nan, math.nan), 0)
        return Paired(0, 0, 0, 0, nothing, nothing, math.nan)
    from scipy.special import bdtr

    p = min(1.0, 2 * bdtr(min(first, second), first + second, 0.5))
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


def why_not_learned(accuracy: Share, labels: Tensor) -> str:
    """Why a network has not learned: one clause with both numbers; empty if it has learned.

    It has not learned where the 95 % interval of its test accuracy reaches the share of the commonest class, which a
    network that always gives the same answer has right.

    Args:
        accuracy: test images that the network classifies correctly.
        labels: (N,) int64, of those test images.
    """
    commonest = share(labels == labels.mode().values) if len(labels) else Share(0, 0)
    low, high = accuracy.interval
    if low > commonest.value:
        return ""
    return (
        f"its test accuracy is {accuracy.value:.1%} ({low:.1%} to {high:.1%}), and the commonest class makes up "
        f"{commonest.value:.1%} of the test images"
    ).replace("%", " %")


def learned(accuracy: Share, labels: Tensor) -> bool:
    """Whether a network has learned; see `why_not_learned`."""
    return not why_not_learned(accuracy, labels)


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
    labels: Tensor | None = None,
    temperature: float = 1.0,
    arithmetic: Arithmetic = "exact",
    batch_size: int | None = None,
    progress: Progress = silent,
) -> Tensor:
    """log10 of each row's mean |dF_i/dx_j| over all classes i and inputs j: Mandal and Guo, section V-B.

    Of K classes it takes K ways back through the model, and time and memory that grow with K^2.

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K).
        images: (N, C, H, W), in [0, 1].
        labels: (N,), int64: the class i of each row, of which alone the mean is taken, by one way back.
        temperature: at which the softmax is read.
        arithmetic: 'exact', or 'float32' as published, where a saturated row gives -inf.
        batch_size: rows at a time, at most; as many as fit into memory, and 64 at most, when not given.
        progress: told the rows done.

    Returns:
        (N,) float64.
    """
    check_arithmetic(arithmetic)
    exact, found = arithmetic == "exact", []
    with asking(batch_size):
        classes = logits_in_batches(model, images[:1]).shape[1] if labels is None else 1
        most = max(1, ROOM // (JACOBIANS * 8 * classes * images[0].numel()))
        for rows in torch.arange(len(images)).split(min(batch_size or 64, most, at_once(model, images))):
            some, of = images[rows], None if labels is None else labels[rows]
            if exact:
                found.append(jacobian(model, some, temperature, classes=of).mean_magnitude((1, 2, 3, 4)))
            else:
                values = jacobian_float32(model, some, temperature, classes=of)
                found.append(values.double().abs().mean((1, 2, 3, 4)).log10())
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


def distances(found: AttackResult, p: float) -> Tensor:
    """(N,) float64 size of each row's change, p in 0, 1, 2, inf: 0 where the row was wrong before, inf where it
    withstood."""
    return found.norm(p).double().masked_fill(~found.success, torch.inf)


def robustness(found: AttackResult, p: float = 2) -> Robustness:
    """The smallest changes that fool a model, in the norm p: Mandal and Guo, equations (12) and (13)."""
    return robustness_of(distances(found, p))


def robustness_of(sizes: Tensor, *, resamples: int = 2000, seed: int = 0) -> Robustness:
    """The same of the `distances` (N,) themselves."""
    fooled = sizes[(sizes > 0) & sizes.isfinite()]
    median, maximum = _median_and_maximum(fooled, resamples, seed)
    return Robustness(
        mean=mean(fooled, resamples=resamples, seed=seed),
        median=median,
        maximum=maximum,
        over_all=mean(sizes[sizes.isfinite()], resamples=resamples, seed=seed),
        trivial=int((sizes == 0).sum()),
        failures=int(sizes.isinf().sum()),
    )


def survival(sizes: Tensor, at: Tensor) -> Tensor:
    """(S,) share of rows, of `distances` (N,), that are still right when changes of size `at` (S,) are allowed."""
    ordered = sizes.double().sort().values
    return 1 - torch.searchsorted(ordered, at.double(), right=True).double() / max(1, len(ordered))


def success_curve(found: AttackResult, trials: int) -> Tensor:
    """(trials + 1,) share of rows fooled by at most 0, 1, ..., `trials` flips, of those right before the attack."""
    rows = ~found.trivial
    needed = torch.where(found.success, found.flips, trials + 1)[rows]
    counts = torch.bincount(needed.clamp(max=trials + 1), minlength=trials + 2)[: trials + 1]
    return counts.cumsum(0).double() / max(1, int(rows.sum()))
