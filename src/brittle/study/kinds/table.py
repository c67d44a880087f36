"""What the tables of a study file have in common."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, field_validator

from brittle.data import Data
from brittle.errors import InputError
from brittle.study.store.cell import Cell


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
