"""What the cells of a study are planned from: its file, its data, and each of its models in turn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brittle.data import Data
from brittle.models import users_code
from brittle.study.kinds.work import Function, cell_of
from brittle.study.store.cell import Cell


@dataclass(frozen=True)
class Base:
    """What all cells of a study have in common.

    Attributes:
        study: a `schema.Study`.
        data: the data set that it names; only its digest, its sizes and its test labels are used.
        device: kind of device, 'cpu' or 'cuda'.
        dtype: of training.
        given: networks that exist already, by the model's name.
    """

    study: Any
    data: Data
    device: str
    dtype: str
    given: Mapping[str, Cell]

    def cell(
        self,
        functions: Mapping[str, Function],
        title: str,
        function: str,
        params: Mapping[str, Any],
        parents: Mapping[str, Cell] | None = None,
        *,
        data: bool = True,
        device: bool = True,
        dtype: bool = False,
    ) -> Cell:
        """A cell of the study; the flags say what its function depends on."""
        environment = ({"device": self.device} if device else {}) | ({"dtype": self.dtype} if dtype else {})
        place = {"digest": self.data.digest, "place": self.study.data} if data else {}
        return cell_of(functions, title, function, params, parents, environment=environment, **place)


@dataclass(frozen=True)
class Point:
    """One point of a model's grid, from one seed: a network, about which kinds of cells are asked.

    Attributes:
        base: what it shares with all others.
        name: of the model; axes: its values in the grid.
        seed: of the study; temperature: of its training; generation: teachers before it.
        network: the cell that makes it; rows: the one that chooses the images.
        others: the points of all models of its seed, by name.
    """

    base: Base
    name: str
    axes: Mapping[str, Any]
    seed: int
    temperature: float
    generation: int
    network: Cell
    rows: Cell
    others: Mapping[str, Sequence[Point]]

    @property
    def title(self) -> str:
        """'tempered T=20, seed 0'."""
        return f"{label(self.name, self.axes)}, seed {self.seed}"


def label(name: str, axes: Mapping[str, Any]) -> str:
    """'tempered T=20': a name, and where it stands in its grid."""
    short = {"temperature": "T"}
    values = (
        (short.get(axis, axis), f"{value:g}" if isinstance(value, float) else value) for axis, value in axes.items()
    )
    return " ".join([name, *(f"{axis}={value}" for axis, value in values)])


def grid(settings: Mapping[str, Any], axes: Mapping[str, list[Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every combination of the values of the axes: all settings, and those that vary."""
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        yield {**settings, **point}, point


def source(path: str, resolve: Callable[..., Any]) -> dict[str, str]:
    """A foreign function's files are part of the key of what it makes; the path was checked with the study."""
    digest = users_code.source_digest(resolve(path, trust=True))
    return {"code": digest} if digest else {}


def listed(value: Any) -> list[Any]:
    """A value of a grid's axis as the list of one that it is."""
    return value if isinstance(value, list) else [value]
