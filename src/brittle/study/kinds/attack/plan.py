"""The attacks of a study: how its file asks for them, and their cells, each for a shard of the images."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, field_validator

from brittle.attacks.options import check_options
from brittle.errors import InputError
from brittle.models.softmax import check_arithmetic
from brittle.study import lookup
from brittle.study.kinds.attack.cell import FUNCTIONS
from brittle.study.kinds.plan import Base, Point, grid, label, listed, source
from brittle.study.kinds.rows.cell import first_of_each_class
from brittle.study.kinds.table import Keys, check_each_once, check_models, check_values
from brittle.study.store.cell import Cell

Seed = Annotated[int, Field(ge=0, lt=2**62)]  # a student's is larger than its teacher's, and torch's end at 2^63


class Attack(Keys):
    """An attack of the study; keys beside these are its options.

    A list of values of an option is a grid, unless the option itself is a list: then a list of lists is one.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    function: str
    arithmetic: str | list[str] | None = None
    rows: Annotated[int, Field(ge=1)] | Literal["one_a_class"] | None = None  # of the study's images, the first so many
    # or the first of each class; all of them when not given
    shard_rows: int | None = Field(default=None, ge=1)  # images a cell; the study's when not given
    models: list[str] | None = None  # by name, only these
    seeds: list[Seed] | None = None  # only these
    targets: Literal["every"] | None = None  # each image against all other classes in turn; when not given, untargeted
    over_temperature: bool = False  # logits are divided by the model's training temperature; not at 1, where it is moot

    @field_validator("arithmetic", mode="after")
    @classmethod
    def _arithmetics(cls, value: str | list[str] | None) -> str | list[str] | None:
        for one in listed(value or []):
            check_arithmetic(one)
        return value


KEYS = {  # of a study file
    "shard_rows": (int, Field(default=100, ge=1)),
    "attacks": (dict[str, Attack], Field(default_factory=dict)),
}


def axes_of(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The options whose values make a grid, each with its values."""
    try:
        hints = get_type_hints(inspect.unwrap(function), include_extras=True)
    except (NameError, TypeError, AttributeError):  # somebody else's annotations, which name what is not there
        hints = {}
    return {
        name: value
        for name, value in options.items()
        if isinstance(value, list)
        and (not _is_list(hints.get(name)) or (value and all(isinstance(one, list) for one in value)))
    }


def _is_list(hint: Any) -> bool:
    """Whether an annotation is of lists."""
    origin = get_origin(hint)
    if origin in (Annotated, Union, types.UnionType):
        return any(_is_list(one) for one in get_args(hint)[: 1 if origin is Annotated else None])
    kind = origin or hint
    return isinstance(kind, type) and issubclass(kind, Sequence) and not issubclass(kind, str | bytes)


def check(study: Any, where: str, trust: bool) -> None:
    """Raises InputError for an unknown model, a value that an option does not take, and an option that is missing."""
    for name, attack in study.attacks.items():
        _check(f"{where}: attacks.{name}", attack, trust)
        check_models(f"attack {name}", attack.models, study)


def _check(path: str, attack: Attack, trust: bool) -> None:
    function, options = lookup.attack(attack.function, trust), dict(attack.model_extra or {})
    if attack.arithmetic is not None:
        options["arithmetic"] = attack.arithmetic
    axes = axes_of(function, options)
    for name, value in options.items():
        try:
            check_each_once(axes.get(name, [value]))
            for each in axes.get(name, [value]):
                check_values(each, name, finite=True)
                check_options(function, {name: each}, given=inspect.signature(function).parameters)
        except InputError as error:
            raise InputError(f"{path}.{name}: {error}") from error
    given = ["targets"] if attack.targets == "every" else []
    try:
        check_options(function, {name: axes.get(name, [value])[0] for name, value in options.items()}, given=given)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


# Planning -----------------------------------------------------------------------------------------------------------


def planned(point: Point) -> Iterator[tuple[dict[str, Any], list[Cell]]]:
    """For each point of the grid of each attack on a model: what a report must know of it, and its cells."""
    for name, attack in point.base.study.attacks.items():
        if point.name not in (attack.models or [point.name]) or point.seed not in (attack.seeds or [point.seed]):
            continue
        if attack.over_temperature and point.temperature == 1:
            continue
        given = attack.model_extra or {}
        for options, axes in grid(given, axes_of(lookup.attack(attack.function, trust=True), given)):
            told = {
                "function": attack.function,
                "options": options,
                "arithmetic": None if attack.arithmetic is None else listed(attack.arithmetic),
            }
            params = told | source(attack.function, lookup.attack)
            if attack.targets:
                params["targets"] = attack.targets
            if attack.over_temperature:
                params["temperature"] = point.temperature
            named = {"name": name, "label": label(name, axes)}
            title = f"{named['label']} on {point.title}"
            parents = {"model": point.network, "rows": point.rows}
            cells = [
                point.base.cell(FUNCTIONS, title + note, "attack", params | rows, parents, data=False)
                for rows, note in _shards(point.base, attack)
            ]
            keys = [cell.key for cell in cells]
            yield named | told | {"over_temperature": attack.over_temperature, "cells": keys}, cells


def count(base: Base, model: str) -> int:
    """How many cells attack each point of a model's grid."""
    cells = 0
    for attack in base.study.attacks.values():
        if model in (attack.models or [model]):
            axes = axes_of(lookup.attack(attack.function, trust=True), attack.model_extra or {})
            cells += math.prod(map(len, axes.values())) * sum(1 for _ in _shards(base, attack))
    return cells


def _shards(base: Base, attack: Attack) -> Iterator[tuple[dict[str, Any], str]]:
    """Which images each cell of an attack is for, as its parameters have it and in words."""
    rows, test = base.study.rows, base.data.test
    count = len(test) if rows == "all" else min(int(rows), len(test))
    if attack.rows == "one_a_class":
        yield {"indices": first_of_each_class(test.labels[:count]).tolist()}, ", a row of each class"
        return
    stop_at = min(count, attack.rows or count)
    size = attack.shard_rows or base.study.shard_rows
    for start in range(0, stop_at, size):
        stop = min(start + size, stop_at)
        yield {"start": start, "stop": stop}, f", rows {start}..{stop - 1}" if stop_at > size else ""
