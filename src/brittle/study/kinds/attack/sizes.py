"""What attacks minimise or are bound by, and how large the smallest perturbations are over several seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from brittle.attacks.result import Bound
from brittle.measures import Mean
from brittle.study.kinds.attack.result import Attack
from brittle.study.store.results import Model, Report

NORMS: dict[float | None, str] = {0.0: "pixels", 1.0: "L1", 2.0: "L2", math.inf: "L∞", None: "–"}
_RESAMPLES = 2000


def limit(bound: Bound) -> str:
    """'L∞ ≤ 0.3', '≤ 10 pixels': the budget of an attack."""
    return f"≤ {bound.eps:g} pixels" if bound.norm == 0 else f"{NORMS[bound.norm]} ≤ {bound.eps:.3g}"


def aim(attack: Attack) -> str:
    """'smallest L2', 'L∞ ≤ 0.3': what an attack minimises, or its budget; a dash if it says neither."""
    if attack.bound is not None:
        return limit(attack.bound)
    return "–" if attack.minimises is None else f"smallest {NORMS[attack.minimises]}"


def labels(report: Report) -> tuple[str, ...]:
    """Attacks that minimise the size of the perturbation and may lead to any class: not pixel attacks."""
    attacks = [attack for model in report.models for attack in model.attacks]
    return tuple(one for one in report.attacks if any(a.label == one and a.sized and not a.targeted for a in attacks))


def shown_first(report: Report) -> tuple[str, ...]:
    """Attacks that the first tables have room for: on the network's own logits, to any class, if there are such."""
    odd = {a.label for model in report.models for a in model.attacks if a.targeted or a.over_temperature}
    return tuple(label for label in report.attacks if label not in odd) or report.attacks


def of(models: Sequence[Model], label: str) -> list[tuple[Attack, str]]:
    """Of each model the attack of this label, and its last arithmetic, the exact one if there is a choice."""
    attacks = [attack for model in models for attack in model.attacks if attack.label == label and attack.found]
    return [(attack, attack.last) for attack in attacks]


def together(found: Sequence[tuple[Attack, str]]) -> Mean:
    """The mean smallest perturbation over a network's seeds, each row that was right before and fooled counted once.

    With one seed it is the attack's own. With several its interval is that of drawing seeds and rows anew, each by
    itself (Owen 2007, the pigeonhole bootstrap), since all seeds were attacked on the same rows.
    """
    if len(found) == 1:
        attack, arithmetic = found[0]
        return attack.robustness[arithmetic].mean
    rows = max((int(attack.rows.max()) + 1 for attack, _ in found if len(attack.rows)), default=0)
    sizes = torch.zeros(len(found), rows, dtype=torch.float64)
    for seed, (attack, arithmetic) in enumerate(found):
        assert attack.minimises is not None
        sizes[seed, attack.rows] = attack.found[arithmetic].sizes[attack.minimises]
    counted = (sizes > 0) & sizes.isfinite()
    total = int(counted.sum())
    if not total:
        return Mean(math.nan, (math.nan, math.nan), 0)
    values = sizes.where(counted, 0).T.numpy()
    seeds = np.random.default_rng(1).multinomial(len(found), [1 / len(found)] * len(found), _RESAMPLES)
    drawn = _drawn(rows)
    with np.errstate(invalid="ignore"):
        means = (seeds * (drawn @ values)).sum(1) / (seeds * (drawn @ counted.T.double().numpy())).sum(1)
    low, high = np.nanquantile(means, [0.025, 0.975])
    return Mean(float(values.sum()) / total, (float(low), float(high)), total)


@lru_cache(maxsize=1)
def _drawn(rows: int) -> np.ndarray:
    """(resamples, rows): how often each row is drawn."""
    random = np.random.default_rng(0)
    counts = [np.bincount(random.integers(0, rows, rows), minlength=rows) for _ in range(_RESAMPLES)]
    return np.stack(counts).astype(np.float64)


def apart(one: Mean, other: Mean) -> int:
    """1 if the interval of `one` lies wholly above that of `other`, -1 if below, 0 if they overlap or are unknown."""
    if one.interval[0] > other.interval[1]:
        return 1
    return -1 if one.interval[1] < other.interval[0] else 0
