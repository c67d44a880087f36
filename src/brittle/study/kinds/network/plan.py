"""The networks of a study: how its file asks for them, and the cells that train them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from brittle.attacks.options import check_options
from brittle.errors import InputError, unknown
from brittle.models.distill import generation_seed
from brittle.models.fit import LATER, check_choice, check_setting
from brittle.study import lookup
from brittle.study.kinds.network.cell import FUNCTIONS, GENERATIONS
from brittle.study.kinds.plan import Base, Point, grid, label, listed, source
from brittle.study.kinds.table import Table, check_values
from brittle.study.store.cell import Cell

Numbers = float | list[float]
Integers = int | list[int]
_CHOICES = ("decay_on", "schedule", "loss_scale")


class Training(Table):
    """How every model of the study is trained, unless its own table says otherwise. See `brittle.fit`."""

    network: str | list[str] = "brittle.networks.papernot_mnist"
    network_options: dict[str, Any] = Field(default_factory=dict)
    temperature: Numbers = 1.0
    epochs: Integers = 50
    batch_size: Integers = 128
    learning_rate: Numbers = 0.1
    learning_rate_decay: Numbers = 0.0
    schedule: str | list[str] = "constant"
    warmup: Numbers = 0.0
    momentum: Numbers = 0.5
    nesterov: bool | list[bool] = False
    clip_norm: Numbers = math.inf
    weight_decay: Numbers = 0.0
    decay_on: str | list[str] = "weights"
    loss_scale: str | list[str] = "1"
    adversarial: Numbers = 0.0
    certified: Numbers = 0.0

    @field_validator("*", mode="after")
    @classmethod
    def _in_range(cls, value: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        for one in listed(value) if name not in ("network", "network_options", "nesterov", "teacher") else ():
            (check_choice if name in _CHOICES else check_setting)(name, one)
        return value


class Model(Training):
    """A model of the study: `teacher` names the model whose soft labels it learns from; none means hard labels."""

    teacher: str | None = None


KEYS = {"training": (Training, Training()), "models": (dict[str, Model], Field(min_length=1))}  # of a study file


def chosen(study: Any, model: Model) -> dict[str, Any]:
    """The model's training settings: its own where it has them, else the study's."""
    own = model.model_dump(exclude_unset=True, exclude={"teacher"})
    chosen = study.training.model_dump() | own
    return {name: value for name, value in chosen.items() if name not in LATER or value != LATER[name]}


def check(study: Any, where: str, trust: bool) -> None:
    """Raises InputError for an unknown teacher, options that a network does not take, and settings that do not fit."""
    for name, model in study.models.items():
        if model.teacher is not None and model.teacher not in study.models:
            raise unknown(f"teacher of model {name},", model.teacher, study.models)
        path, settings = f"{where}: models.{name}", chosen(study, model)
        options = settings["network_options"]
        for key, values in settings.items():
            if isinstance(values, list):
                check_values(values, f"{path}.{key}", finite=True)  # a report writes down each point of a grid
        check_values(options, f"{path}.network_options", finite=True)
        for network in listed(settings["network"]):
            function = lookup.network(network, trust)
            lookup.check_options("network", network, function, options)
            try:
                check_options(function, options, given=inspect.signature(function).parameters)
            except InputError as error:
                raise InputError(f"{path}.network_options: {error}") from error
        if True in listed(settings["nesterov"]) and 0 in listed(settings["momentum"]):
            raise InputError(f"{path}: nesterov needs a momentum above 0, got 0")


# Planning -----------------------------------------------------------------------------------------------------------


def planned(base: Base, seed: int, rows: Cell) -> dict[str, list[Point]]:
    """Every point of every model's grid, from one seed."""
    points: dict[str, list[Point]] = {}
    for name in teachers_first(base):
        if name in base.given:
            network = base.given[name]
            temperature = float(network.params.get("temperature", 1.0))
            points[name] = [Point(base, name, {}, seed, temperature, 0, network, rows, points)]
        else:
            points[name] = list(_points(base, name, seed, rows, points))
    return points


def _points(base: Base, name: str, seed: int, rows: Cell, known: dict[str, list[Point]]) -> Iterator[Point]:
    """Every point of a model's grid. A student joins its teacher's grid on the axes that they share."""
    model = base.study.models[name]
    settings = chosen(base.study, model)
    lists = {axis: values for axis, values in settings.items() if isinstance(values, list)}
    for teacher in known[model.teacher] if model.teacher else [None]:
        for point, axes in grid(settings, lists):
            if teacher and any(point.get(axis, value) != value for axis, value in teacher.axes.items() if axis in axes):
                continue
            axes = {**(teacher.axes if teacher else {}), **axes}
            generation = teacher.generation + 1 if teacher else 0
            title = f"{label(name, axes)}, seed {seed}"
            parents = {}
            if teacher:
                asked = {"temperature": teacher.temperature}
                parents["labels"] = base.cell(
                    FUNCTIONS, f"label for {title}", "label", asked, {"teacher": teacher.network}
                )
            params = {**point, **source(point["network"], lookup.network), "seed": generation_seed(seed, generation)}
            cell = base.cell(FUNCTIONS, f"train {title}", "train", params, parents, dtype=True)
            yield Point(base, name, axes, seed, float(point["temperature"]), generation, cell, rows, known)


def teachers_first(base: Base) -> list[str]:
    """Model names with every teacher before its students.

    Raises:
        InputError: if models teach each other in a circle, or more than GENERATIONS in a row.
    """
    order: dict[str, int] = {}  # and the networks in a row that each one ends
    for name in base.study.models:
        path: list[str] = []
        at: str | None = name
        while at is not None and at not in order:
            if at in path:
                raise InputError(f"models teach each other in a circle: {' -> '.join((*path[path.index(at) :], at))}")
            path.append(at)
            at = base.study.models[at].teacher
        row = 0 if at is None else order[at]
        for one in reversed(path):
            row = order[one] = _in_a_row(base.given[one]) if one in base.given else row + 1
            if row > GENERATIONS:
                raise InputError(f"model {one} is the last of {row} that learn from each other: at most {GENERATIONS}")
    return list(order)


def _in_a_row(cell: Cell) -> int:
    """How many networks learn from each other up to this one."""
    row = 1
    while "labels" in cell.parents:
        cell, row = cell.parents["labels"].parents["teacher"], row + 1
    return row


def counts(base: Base) -> Mapping[str, int]:
    """How many points each model's grid has, before any is made."""
    axes: dict[str, dict[str, list[Any]]] = {}  # of each model's grid, with those that it has of its teacher
    for name in teachers_first(base):
        model = base.study.models[name]
        own = {axis: values for axis, values in chosen(base.study, model).items() if isinstance(values, list)}
        taught = axes[model.teacher] if model.teacher else {}
        shared = {axis: [one for one in own[axis] if one in taught[axis]] for axis in own if axis in taught}
        for axis, values in shared.items():
            if not values:
                raise InputError(
                    f"model {name} has no {axis} in common with its teacher {model.teacher}, so no network is trained: "
                    f"{own[axis]} and {taught[axis]}"
                )
        axes[name] = {**taught, **own, **shared}
    return {name: math.prod(map(len, grids.values())) for name, grids in axes.items()}
