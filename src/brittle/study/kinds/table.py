"""What the tables of a study file have in common."""

from __future__ import annotations

import functools
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, field_validator

from brittle.data import Data
from brittle.errors import InputError, unknown
from brittle.study.kinds.plan import Point
from brittle.study.store.cell import Cell
from brittle.study.store.results import Reader
from brittle.study.store.store import printable

DEEPEST = 20  # tables and lists within each other
Name = Annotated[str, AfterValidator(printable)]  # which may be shown anywhere


class Keys(BaseModel):
    """Keys of a study file; a list in it has at least one value, and none twice."""

    @field_validator("*", mode="after")
    @classmethod
    def _each_once(cls, value: Any) -> Any:
        if isinstance(value, list):
            check_each_once(value)
        return value


class Table(Keys):
    """A table of a study file, which has no other keys than these."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelTable(Table):
    """A table that asks for a cell about each of some models.

    Attributes:
        models: by name, only these; all when not given.
        BESIDE: keys that name one other model, which the cell needs as a parent of that role; and how an error says so.
    """

    BESIDE: ClassVar[Mapping[str, str]] = {}

    models: list[str] | None = None

    def beside(self, name: str) -> dict[str, str]:
        """The models that a cell about the model `name` needs beside it, by their roles."""
        return {role: other for role in self.BESIDE if (other := getattr(self, role)) is not None}

    def params(self, model: Cell, data: Data) -> dict[str, Any]:
        """The parameters of the cell about a trained model, but for its seed."""
        return self.model_dump(exclude={"models", *self.BESIDE})

    def parts(self, data: Data) -> Sequence[tuple[Mapping[str, Any], str]]:
        """Of each cell about a model the parameters that the others have otherwise, and these in words: one cell."""
        return [({}, "")]


def check_each_once(values: Sequence[Any]) -> None:
    """Raises InputError for a list that is empty, or holds a value twice: a cell would be lost, or stand twice."""
    if not values:
        raise InputError("the list is empty: give at least one value")
    seen = set()
    for value in values:
        told = repr(value) if isinstance(value, list | dict) else value
        if told in seen:
            raise InputError(f"{value!r} comes twice in {reprlib.repr(values)}")
        seen.add(told)


def check_values(value: Any, path: str, *, finite: bool = False, depth: int = 0) -> None:
    """Raises InputError for what a cell's parameters cannot hold: dates, and, if `finite`, NaN and infinity."""
    if depth > DEEPEST:
        raise InputError(f"{path} is nested more than {DEEPEST} deep")
    if isinstance(value, dict | list):
        inside = value.items() if isinstance(value, dict) else ((None, one) for one in value)
        for key, one in inside:
            check_values(one, path if key is None else f"{path}.{key}", finite=finite, depth=depth + 1)
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise InputError(f"{path} must be a number, a text, true, false, a list or a table, got {value}")
    elif finite and isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{path} must be finite, got {value}")


# Cells that are asked for by tables ---------------------------------------------------------------------------------


class Named(BaseModel):
    """What a study's record says of a cell: the name of its table, and its key."""

    name: Name
    cell: str


def planned(kind: ModuleType, point: Point) -> Iterator[tuple[str, Cell]]:
    """By the names of a kind's tables, the cells that are asked for about a model."""
    (function,) = kind.FUNCTIONS
    for name, table in getattr(point.base.study, kind.NAME).items():
        if point.name not in (table.models or [point.name]):
            continue
        parents = {"model": point.network}
        for role, other in table.beside(point.name).items():
            if len(point.others[other]) > 1:
                what = f"{kind.NAME} {name} {table.BESIDE[role]}"
                raise InputError(f"{what} one model, {other} is a grid of several")
            parents[role] = point.others[other][0].network
        for part, note in table.parts(point.base.data):
            params = table.params(point.network, point.base.data) | part | {"seed": point.seed}
            title = f"{function} {name} of {point.title}{note}"
            yield name, point.base.cell(kind.FUNCTIONS, title, function, params, parents)


def check(kind: ModuleType, study: Any) -> None:
    """Raises InputError for a table of the kind that names a model which the study does not have."""
    for name, table in getattr(study, kind.NAME).items():
        check_models(f"{kind.NAME} {name}", [*(table.models or []), *table.beside("").values()], study)


def check_models(what: str, names: Sequence[str] | None, study: Any) -> None:
    """Raises InputError, with the nearest names, for a model that the study does not have."""
    for name in names or []:
        if name not in study.models:
            raise unknown(f"model of {what},", name, study.models)


def read(kind: ModuleType, reader: Reader, entries: Sequence[Named], model: str) -> Iterator[object]:
    """The results of a kind's finished cells about a model."""
    (function,) = kind.FUNCTIONS
    for one in entries:
        take = functools.partial(kind.Result.of, one.name, store=reader.store)
        found = reader.read(f"{function} {one.name} of {model}", one.cell, take)
        if found is not None:
            yield found
