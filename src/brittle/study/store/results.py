"""A study read back: its models, what is finished of each, and what is not there yet. `report.gather` makes it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from brittle.measures import learned
from brittle.study.store.store import Store, Stored

if TYPE_CHECKING:
    from brittle.study.kinds.attack.result import Attack
    from brittle.study.kinds.measure.result import Measured
    from brittle.study.kinds.network.cell import Trained

_T = TypeVar("_T")
NOT_DONE = "not done yet"
_VALUES = ("brittle", "torch", "python", "platform", "processor", "threads", "device")


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
    results: tuple[object, ...] = ()  # of the finished cells that the study asked for by tables

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
    images: Tensor | None  # (N, C, H, W): the images that were attacked; None if they are not there
    labels: Tensor | None
    models: tuple[Model, ...]
    cells: int  # finished and whole
    lost: tuple[Lost, ...]
    provenance: Provenance
    again: str | None = None  # the command that does it again, as it was typed; None if it is not known
    kept: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)  # see `remembered`

    @property
    def rows(self) -> int:
        """How many images were chosen to be attacked; 0 while that is not known."""
        return 0 if self.images is None else len(self.images)

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds, sorted."""
        return tuple(sorted({model.seed for model in self.models}))

    @property
    def attacks(self) -> tuple[str, ...]:
        """Labels of all attacks, in the order of the study."""
        return tuple(dict.fromkeys(attack.label for model in self.models for attack in model.attacks))

    def attacks_of(self, label: str) -> list[Attack]:
        """The attacks of this label, one a model."""
        return [attack for model in self.models for attack in model.attacks if attack.label == label]

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


class Reader:
    """Reads finished cells, and remembers which were there and which were not."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.used: dict[str, Stored] = {}
        self.lost: dict[str, Lost] = {}

    def read(self, title: str, key: str, take: Callable[[Stored], _T]) -> _T | None:
        """What `take` makes of a cell; None if there is no whole cell that it can read."""
        stored = self.store.get(key)
        if stored is None:
            damage = self.store.damage(key)
            self.lost[key] = Lost(title, f"damaged ({damage})" if damage else NOT_DONE)
            return None
        try:
            taken = take(stored)
        except FileNotFoundError:  # another process removed the cell since it was looked for
            self.lost[key] = Lost(title, NOT_DONE)
            return None
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AssertionError) as error:
            self.lost[key] = Lost(title, f"damaged (written by another version? {type(error).__name__}: {error})")
            return None
        self.used[key] = stored
        return taken

    def parents(self, key: str) -> None:
        """Counts the cells that a finished cell was made from and that the study's record does not name."""
        for role, parent in self.used[key].record.get("parents", {}).items():
            if parent not in self.used and parent not in self.lost:
                self.read(f"{role} for {self.used[key].title}", parent, lambda stored: stored)

    def provenance(self, digest: str) -> Provenance:
        """What the cells that were read were made with; `digest` is of their data."""
        made = [stored.record.get("provenance", {}) for stored in self.used.values()]
        values = {name: tuple(sorted({str(one[name]) for one in made if name in one})) for name in _VALUES}
        dtypes = {stored.record.get("environment", {}).get("dtype") for stored in self.used.values()}
        return Provenance(
            values={name: seen for name, seen in values.items() if seen}
            | {"training precision": tuple(sorted(filter(None, dtypes)))},
            seconds=float(sum(one.get("seconds", 0) for one in made)),
            started=min((str(one["started"]) for one in made if "started" in one), default=""),
            digest=digest,
        )
