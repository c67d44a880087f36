"""Which images train, validate and test, drawn the same way on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from brittle.errors import InputError

SEED = 20_170_711  # of every split that the data set does not bring along, plus the user's
SHARES = {"train": 0.70, "validation": 0.15, "test": 0.15}  # of a user's own images


def in_no_order(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """All rows at random, but so that the first n, for any n, hold each class in proportion."""
    random = np.random.RandomState(SEED + seed)
    places = np.empty(len(labels))  # in [0, 1): the rows of a class lie at equal distances, from a random start
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        places[rows] = (np.arange(len(rows)) + random.random_sample()) / len(rows)
    return np.argsort(places, kind="stable")


def split_rows(
    labels: np.ndarray, classes: Sequence[str], shares: Sequence[float], where: str, seed: int = 0
) -> list[np.ndarray]:
    """Draws rows for each share, each class in proportion; in no order, so that the first rows are of many classes.

    The first share takes what the others leave, and no class is left out of any.
    """
    sizes = np.bincount(labels.astype(np.int64), minlength=len(classes))
    if sizes.min() < len(shares):
        few = int(sizes.argmin())
        raise InputError(
            f"{where}: class {classes[few]!r} is too small to be split: {sizes[few]} of at least {len(shares)} images, "
            f"one for each of {' and '.join(('train', 'validation', 'test')[: len(shares)])}"
        )
    random = np.random.RandomState(
        SEED + seed
    )  # not default_rng: only RandomState's stream is frozen for good (NEP 19)
    left, drawn = np.arange(len(labels)), []
    for share in reversed(shares[1:]):
        taken = _draw(labels, left, round(share * len(labels)), random)
        left = np.setdiff1d(left, taken)
        drawn.insert(0, taken)
    return [random.permutation(left), *drawn]


def _draw(labels: np.ndarray, rows: np.ndarray, count: int, random: np.random.RandomState) -> np.ndarray:
    """Draws `count` of `rows`, each class in proportion (by largest remainder) but at least one of each."""
    members = [random.permutation(rows[labels[rows] == label]) for label in np.unique(labels)]
    quotas = np.array([len(own) for own in members]) * count / len(rows)
    counts = np.maximum(quotas.astype(int), 1)
    spare = max(0, count - int(counts.sum()))
    counts[np.argsort(counts - quotas, kind="stable")[:spare]] += 1
    return random.permutation(np.concatenate([own[:n] for own, n in zip(members, counts, strict=True)]))
