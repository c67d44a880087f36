"""What a report knows: a study's numbers, its rows, and what is not there yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from brittle.attacks.result import AttackResult
from brittle.cells import unpack
from brittle.measures import Flips, Mean, Share

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
    flips: Flips | None  # pixel attacks only
    curve: Tensor | None  # (trials + 1,): share fooled by at most so many pixels; pixel attacks only
    sizes: Mapping[str, float]  # mean L0, L2 and L-infinity of the change, over the rows that were fooled
    forwards: float  # images put through the model, mean a row
    backwards: float  # gradients taken, mean a row
    trivial: Tensor  # (R,) bool: wrong before the attack
    packed: Mapping[str, Tensor]  # as `brittle.cells.pack` stores it, all shards together
    steps: Steps | None  # pixel attacks only, once the first shard is done


@dataclass(frozen=True)
class Attack:
    """One attack on one model."""

    name: str
    label: str
    function: str
    options: Mapping[str, Any]
    rows: Tensor  # (R,) int64: which of the report's rows are done
    found: Mapping[str, Found]  # by arithmetic; empty if nothing is finished
    complete: bool  # every shard was there

    def result(self, arithmetic: str, row: int, report: Report) -> AttackResult | None:
        """What became of one of the report's rows, a batch of one; None if it is not done."""
        places = (self.rows == row).nonzero().flatten().tolist()
        if arithmetic not in self.found or not places or report.images is None or report.labels is None:
            return None
        packed = {name: values[places[0]][None] for name, values in self.found[arithmetic].packed.items()}
        return unpack(packed, report.images[row][None], report.labels[row][None])


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
    trained: Trained | None  # None: not done
    measured: Measured | None
    attacks: tuple[Attack, ...]


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


NOT_DONE = "not done yet"
