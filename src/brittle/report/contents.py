"""What a report knows: a study's numbers, its rows, and what is not there yet."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from brittle.attacks.packing import unpack
from brittle.attacks.result import AttackResult, Bound
from brittle.measures import Flips, Mean, Robustness, Share, learned, robustness_of

_T = TypeVar("_T")
BOTH = ("float32", "exact")  # the two arithmetics, in the order in which they are shown


@dataclass(frozen=True)
class Steps:
    """How the logits of some images change with each pixel that an attack sets."""

    rows: Tensor  # (R,) int64: which of the report's rows
    logits: Tensor  # (R, S + 1, K) at first and after each pixel; NaN after a row's last, and at once where it failed


@dataclass(frozen=True)
class Found:
    """What one attack in one arithmetic did to one model, over the rows whose cells are finished."""

    arithmetic: str  # 'float32', 'exact', or 'result' for an attack that has no choice of arithmetic
    success: Share  # of the rows that the model got right before the attack
    robust: Share  # test images still classified correctly after the attack, of all that were attacked
    flips: Flips | None  # pixel attacks only
    curve: Tensor | None  # (trials + 1,): share fooled by at most so many pixels; pixel attacks only
    sizes: Mapping[float, Tensor]  # by norm, 0, 1, 2 and inf: (R,) as `measures.distances` has them
    forwards: float  # images put through the model, mean a row
    backwards: float  # gradients taken, mean a row
    trivial: Tensor  # (R,) bool: wrong before the attack
    packed: Mapping[str, Tensor]  # as `attacks.packing.pack` stores it, all shards together
    steps: Steps | None  # pixel attacks only, once the first shard is done


@dataclass(frozen=True)
class Attack:
    """One attack on one model."""

    name: str
    label: str
    function: str
    options: Mapping[str, Any]
    minimises: float | None  # 0, 1, 2 or inf: the norm whose size it makes small; None if it makes none small
    bound: Bound | None  # the budget that it works within; None if it has none
    over_temperature: bool  # of the logits divided by the temperature that the model was trained at
    rows: Tensor  # (R,) int64: which of the report's rows are done; each as often as it has targets
    found: Mapping[str, Found]  # by arithmetic; empty if nothing is finished
    complete: bool  # every shard was there

    @property
    def norm(self) -> float | None:
        """The norm that it makes small or that bounds it; None if it says neither."""
        return self.minimises if self.bound is None else self.bound.norm

    @cached_property
    def robustness(self) -> Mapping[str, Robustness]:
        """By arithmetic, how large the smallest perturbations are in the norm that it minimises; computed once."""
        if self.minimises is None:
            return {}
        return {name: robustness_of(found.sizes[self.minimises]) for name, found in self.found.items()}

    @property
    def targeted(self) -> bool:
        """Whether it aimed at classes; False while nothing is finished."""
        return any("targets" in found.packed for found in self.found.values())

    @property
    def sized(self) -> bool:
        """Whether it is reported by the sizes that it minimises: not a pixel attack, which counts its flips."""
        flips = any(found.flips is not None for found in self.found.values())
        return bool(self.found) and self.minimises is not None and not flips

    @property
    def bounded(self) -> bool:
        """Whether it is reported by the robust accuracy within its budget."""
        return bool(self.found) and self.bound is not None and not self.targeted

    def result(self, arithmetic: str, row: int, report: Report, target: int | None = None) -> AttackResult | None:
        """What became of one of the report's rows, a batch of one: the first, or that with this target; None if it is
        not done."""
        if arithmetic not in self.found or report.images is None or report.labels is None:
            return None
        packed = self.found[arithmetic].packed
        wanted = self.rows == row
        if target is not None:
            wanted = wanted & (packed["targets"] == target if "targets" in packed else torch.tensor(False))
        places = wanted.nonzero().flatten().tolist()
        if not places:
            return None
        one = {name: values[places[0]][None] for name, values in packed.items()}
        return unpack(one, report.images[row][None], report.labels[row][None])


@dataclass(frozen=True)
class Saliency:
    """dCE/dx on one row of each class."""

    rows: Tensor  # (S,) int64
    sign: Tensor  # (S, C, H, W)
    log10: Tensor  # (S, C, H, W), float64, exact
    float32: Tensor  # (S, C, H, W), as published


@dataclass(frozen=True)
class Measured:
    """A model's numbers without an attack."""

    accuracy: Share
    saturated: Share
    confidence: Mean
    sensitivity: Mapping[str, Share]  # by arithmetic
    amplitudes: Mapping[str, Tensor]  # (R,) log10 of a row's mean |dF/dx|, -inf where it is 0: 'float32' and 'exact' as
    # the network is used, at T = 1; 'trained' exactly, at its own temperature
    logits: Tensor  # (N, K) of the test images
    labels: Tensor  # (N,) of the test images
    saliency: Saliency | None


@dataclass(frozen=True)
class Trained:
    """How a model was trained, and how that went."""

    params: Mapping[str, Any]
    dtype: str
    loss: tuple[float, ...]  # an entry an epoch
    validation_accuracy: tuple[float, ...]  # NaN where there was nothing to validate on


@dataclass(frozen=True)
class Model:
    """One model of the study, from one seed."""

    name: str
    label: str  # with its place in the grid
    title: str  # the label, and the seed where there are several
    seed: int
    axes: Mapping[str, Any]
    temperature: float
    teacher: str | None
    generation: int  # 0: learns from hard labels; 1: from a network that does; and so on
    trained: Trained | None  # None: not done
    measured: Measured | None
    attacks: tuple[Attack, ...]
    results: tuple[object, ...] = ()  # of the cells that are finished and that the study asked for by tables

    @cached_property
    def learned(self) -> bool | None:
        """See `measures.learned`; None if the model is not measured."""
        return learned(self.measured.accuracy, self.measured.labels) if self.measured else None

    def results_of(self, kind: type[_T]) -> tuple[_T, ...]:
        """The finished results of one kind of cell, by the class that it has for them."""
        return tuple(one for one in self.results if isinstance(one, kind))


@dataclass(frozen=True)
class Lost:
    """A cell that the report has to do without."""

    title: str
    why: str  # 'not done yet', or what is wrong with it


@dataclass(frozen=True)
class Provenance:
    """What the numbers were made with: the distinct values that the cells name, and their time together."""

    values: Mapping[str, tuple[str, ...]]
    seconds: float
    started: str  # the earliest, ISO 8601; empty if nothing is done
    digest: str  # of the data


@dataclass(frozen=True)
class Report:
    """Everything that tables, figures and the page need of a study."""

    name: str
    title: str
    about: str
    paper: str | None  # whose claims are set beside the results
    data: str
    source: str
    classes: tuple[str, ...]
    images: Tensor | None  # (N, C, H, W): the rows that were attacked; None if they are not there
    labels: Tensor | None
    models: tuple[Model, ...]
    cells: int  # finished and whole
    lost: tuple[Lost, ...]
    provenance: Provenance
    again: str | None = None  # the command that does it again, as it was typed; None if it is not known
    kept: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)  # see `remembered`

    @property
    def rows(self) -> int:
        """How many rows were chosen to be attacked; 0 while that is not known."""
        return 0 if self.images is None else len(self.images)

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds, sorted."""
        return tuple(sorted({model.seed for model in self.models}))

    @property
    def attacks(self) -> tuple[str, ...]:
        """Labels of all attacks, in the order of the study."""
        return tuple(dict.fromkeys(attack.label for model in self.models for attack in model.attacks))

    def class_name(self, index: int) -> str:
        """A class's name; its number if it has none."""
        return self.classes[index] if 0 <= index < len(self.classes) else str(index)

    @property
    def unfinished(self) -> str:
        """One sentence on what is not there; empty if nothing is missing."""
        if not self.lost:
            return ""
        damaged = sum(lost.why != NOT_DONE for lost in self.lost)
        total = self.cells + len(self.lost)
        note = f", {damaged} of them damaged" if damaged else ""
        return f"This study is not finished: {len(self.lost)} of its {total} cells are missing{note}."


def remembered(make: Callable[[Report], _T]) -> Callable[[Report], _T]:
    """What `make` computes of a report is kept with it: table, page and results ask for the same."""

    @functools.wraps(make)
    def kept(report: Report) -> _T:
        if make not in report.kept:
            report.kept[make] = make(report)
        return report.kept[make]

    return kept


NOT_DONE = "not done yet"
