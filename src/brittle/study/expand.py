"""A study -> its cells: every point of every grid, parents before children."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brittle.data import Data
from brittle.errors import InputError
from brittle.models import users_code
from brittle.models.distill import generation_seed
from brittle.study import lookup
from brittle.study.kinds import TABLES, new_cell
from brittle.study.kinds.network.cell import GENERATIONS
from brittle.study.kinds.rows.cell import first_of_each_class
from brittle.study.schema import Attack, Study, axes_of, chosen, listed, tables_of
from brittle.study.store.cell import Cell

MOST = 100_000  # cells of a study


@dataclass(frozen=True)
class Plan:
    """A study's cells, model by model, parents before children, and the record by which a report finds them again."""

    cells: tuple[Cell, ...]
    record: Mapping[str, Any]


@dataclass(frozen=True)
class _Variant:
    """One point of a model's grid: its values along the axes, and its cell."""

    axes: Mapping[str, Any]
    generation: int
    temperature: float
    cell: Cell


def expand(study: Study, data: Data, *, device: str, dtype: str, given: Mapping[str, Cell] | None = None) -> Plan:
    """All cells of a study.

    Args:
        study: what to do.
        data: the data set that `study.data` names; only its digest and its test labels are used.
        device: kind of device, 'cpu' or 'cuda'.
        dtype: of training, 'float32' or 'bfloat16'.
        given: models that exist already, by their name in the study: `train` or `adopt` cells.

    Raises:
        InputError: if there are more than MOST cells, or more than GENERATIONS networks that learn from each other.
    """
    given = given or {}
    order = _teachers_first(study, given)
    _check_count(study, order, data)
    environment = {"device": device}
    trained = {"device": device, "dtype": dtype}
    select = new_cell("select rows", "select", {"rows": study.rows}, digest=data.digest, place=study.data)
    cells: list[Cell] = [select]
    models: list[dict[str, Any]] = []
    for seed in study.seeds:
        variants: dict[str, list[_Variant]] = {}
        for name in order:
            if name in given:
                temperature = float(given[name].params.get("temperature", 1.0))
                variants[name] = [_Variant({}, 0, temperature, given[name])]
            else:
                variants[name] = list(_variants(study, name, seed, variants, data.digest, trained))
        for name in study.models:
            for variant in variants[name]:
                entry, measure, attacks = _follow(study, name, variant, seed, select, data, environment)
                asked = _asked(study, name, variant, seed, variants, data, environment)
                models.append(entry | {kind: _listed(tables) for kind, tables in asked.items()})
                *others, audits = asked.values()  # a verdict as early as can be
                cells += [*audits.values(), measure, *attacks, *(cell for tables in others for cell in tables.values())]
    record = {
        "name": study.name,
        "title": study.title,
        "about": study.about,
        "study": study.model_dump(mode="json", exclude_defaults=True),
        "digest": data.digest,
        "rows": select.key,
        "models": models,
    }
    return Plan(tuple(_parents_first(cells)), record)


def _parents_first(cells: Sequence[Cell]) -> list[Cell]:
    """Each cell once, in the given order, but after those that it needs.

    So the models come one after another, each with all that is asked of it, and a run has its first results early.
    """
    placed: dict[str, Cell] = {}
    waiting = list(reversed(cells))
    while waiting:
        cell = waiting[-1]
        lacking = [parent for parent in cell.parents.values() if parent.key not in placed]
        if lacking and cell.key not in placed:
            waiting += reversed(lacking)
        else:
            placed.setdefault(cell.key, waiting.pop())
    return list(placed.values())


def _follow(
    study: Study,
    name: str,
    variant: _Variant,
    seed: int,
    select: Cell,
    data: Data,
    environment: Mapping[str, str],
) -> tuple[dict[str, Any], Cell, list[Cell]]:
    """What is done with a trained model: what a report must know of it, and the cells that measure and attack it."""
    label = _label(name, variant.axes)
    measure = new_cell(
        f"measure {label}, seed {seed}",
        "measure",
        {"temperature": variant.temperature},
        {"model": variant.cell, "rows": select},
        digest=data.digest,
        place=study.data,
        environment=environment,
    )
    attacks = list(_attacks(study, name, variant, seed, select, data, environment))
    entry = {
        "name": name,
        "label": label,
        "axes": dict(variant.axes),
        "seed": seed,
        "temperature": variant.temperature,
        "teacher": study.models[name].teacher,
        "train": variant.cell.key,
        "measure": measure.key,
        "attacks": [attack | {"cells": [shard.key for shard in shards]} for attack, shards in attacks],
    }
    return entry, measure, [shard for _, shards in attacks for shard in shards]


def _listed(tables: Mapping[str, Cell]) -> list[dict[str, str]]:
    """What a report must know of cells by the name of their table."""
    return [{"name": table, "cell": cell.key} for table, cell in tables.items()]


def _teachers_first(study: Study, given: Mapping[str, Cell]) -> list[str]:
    """Model names with every teacher before its students."""
    order: dict[str, int] = {}  # and the networks in a row that each one ends
    for name in study.models:
        path: list[str] = []
        at: str | None = name
        while at is not None and at not in order:
            if at in path:
                raise InputError(f"models teach each other in a circle: {' -> '.join((*path[path.index(at) :], at))}")
            path.append(at)
            at = study.models[at].teacher
        row = 0 if at is None else order[at]
        for one in reversed(path):
            row = order[one] = _in_a_row(given[one]) if one in given else row + 1
            if row > GENERATIONS:
                raise InputError(f"model {one} is the last of {row} that learn from each other: at most {GENERATIONS}")
    return list(order)


def _in_a_row(cell: Cell) -> int:
    """How many networks learn from each other up to this one."""
    row = 1
    while "labels" in cell.parents:
        cell, row = cell.parents["labels"].parents["teacher"], row + 1
    return row


def _check_count(study: Study, order: Sequence[str], data: Data) -> None:
    """Raises InputError for more than MOST cells, before any is made."""
    axes: dict[str, dict[str, list[Any]]] = {}  # of each model's grid, with those that it has of its teacher
    cells = 1
    for name in order:
        model = study.models[name]
        own = {axis: values for axis, values in chosen(study, model).items() if isinstance(values, list)}
        taught = axes[model.teacher] if model.teacher else {}
        shared = {axis: [one for one in own[axis] if one in taught[axis]] for axis in own if axis in taught}
        for axis, values in shared.items():
            if not values:
                raise InputError(
                    f"model {name} has no {axis} in common with its teacher {model.teacher}, so no network is trained: "
                    f"{own[axis]} and {taught[axis]}"
                )
        axes[name] = {**taught, **own, **shared}
        cells += math.prod(map(len, axes[name].values())) * _follow_count(study, name, data)
    cells *= len(study.seeds)
    if cells > MOST:
        raise InputError(f"the study has about {cells:,} cells, and at most {MOST:,} are planned: make grids smaller")


def _follow_count(study: Study, name: str, data: Data) -> int:
    """Cells of a point of a model's grid: it is trained, from labels or not, measured, attacked and looked at."""
    count = 3
    for attack in study.attacks.values():
        if name in (attack.models or [name]):
            axes = axes_of(lookup.attack(attack.function, trust=True), attack.model_extra or {})
            count += math.prod(map(len, axes.values())) * sum(1 for _ in _shards(study, attack, data))
    return count + sum(name in (table.models or [name]) for _, _, table in tables_of(study))


def _variants(
    study: Study,
    name: str,
    seed: int,
    known: Mapping[str, list[_Variant]],
    digest: str,
    environment: Mapping[str, str],
) -> Iterator[_Variant]:
    """Every point of a model's grid. A student joins its teacher's grid on the axes that they share."""
    model = study.models[name]
    settings = chosen(study, model)
    lists = {axis: values for axis, values in settings.items() if isinstance(values, list)}
    for teacher in known[model.teacher] if model.teacher else [None]:
        for point, axes in _grid(settings, lists):
            if teacher and any(point.get(axis, value) != value for axis, value in teacher.axes.items() if axis in axes):
                continue
            axes = {**(teacher.axes if teacher else {}), **axes}
            generation = teacher.generation + 1 if teacher else 0
            label = f"{_label(name, axes)}, seed {seed}"
            parents = {}
            if teacher:
                parents["labels"] = new_cell(
                    f"label for {label}",
                    "label",
                    {"temperature": teacher.temperature},
                    {"teacher": teacher.cell},
                    digest=digest,
                    place=study.data,
                    environment={"device": environment["device"]},
                )
            params = {**point, **_source(point["network"], lookup.network), "seed": generation_seed(seed, generation)}
            cell = new_cell(
                f"train {label}", "train", params, parents, digest=digest, place=study.data, environment=environment
            )
            yield _Variant(axes, generation, float(point["temperature"]), cell)


def _source(path: str, resolve: Any) -> dict[str, str]:
    """A foreign function's files are part of the key of what it makes; the path was checked with the study."""
    digest = users_code.source_digest(resolve(path, trust=True))
    return {"code": digest} if digest else {}


def _grid(
    settings: Mapping[str, Any], axes: Mapping[str, list[Any]]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every combination of the values of the axes: all settings, and those that vary."""
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        yield {**settings, **point}, point


def _label(name: str, axes: Mapping[str, Any]) -> str:
    short = {"temperature": "T"}
    return " ".join(
        [
            name,
            *(
                f"{short.get(axis, axis)}={value:g}" if isinstance(value, float) else f"{short.get(axis, axis)}={value}"
                for axis, value in axes.items()
            ),
        ]
    )


def _attacks(
    study: Study, name: str, variant: _Variant, seed: int, select: Cell, data: Data, environment: Mapping[str, str]
) -> Iterator[tuple[dict[str, Any], list[Cell]]]:
    """For each point of the grid of each attack on a model: what a report must know of it, and its cells."""
    for label, attack in study.attacks.items():
        if name not in (attack.models or [name]) or seed not in (attack.seeds or [seed]):
            continue
        if attack.over_temperature and variant.temperature == 1:
            continue
        given = attack.model_extra or {}
        for options, axes in _grid(given, axes_of(lookup.attack(attack.function, trust=True), given)):
            told = {
                "function": attack.function,
                "options": options,
                "arithmetic": None if attack.arithmetic is None else listed(attack.arithmetic),
            }
            entry = {"name": label, "label": _label(label, axes), **told, "over_temperature": attack.over_temperature}
            params = {**told, **_source(attack.function, lookup.attack)}
            if attack.targets:
                params["targets"] = attack.targets
            if attack.over_temperature:
                params["temperature"] = variant.temperature
            title = f"{entry['label']} on {_label(name, variant.axes)}, seed {seed}"
            shards = [
                new_cell(
                    title + note,
                    "attack",
                    params | rows,
                    {"model": variant.cell, "rows": select},
                    environment=environment,
                )
                for rows, note in _shards(study, attack, data)
            ]
            yield entry, shards


def _shards(study: Study, attack: Attack, data: Data) -> Iterator[tuple[dict[str, Any], str]]:
    """Which rows each cell of an attack is for, as its parameters have it and in words."""
    count = len(data.test) if study.rows == "all" else min(int(study.rows), len(data.test))
    if attack.rows == "one_a_class":
        yield {"indices": first_of_each_class(data.test.labels[:count]).tolist()}, ", a row of each class"
        return
    stop_at = min(count, attack.rows or count)
    size = attack.shard_rows or study.shard_rows
    for start in range(0, stop_at, size):
        stop = min(start + size, stop_at)
        yield {"start": start, "stop": stop}, f", rows {start}..{stop - 1}" if stop_at > size else ""


def _asked(
    study: Study,
    name: str,
    variant: _Variant,
    seed: int,
    variants: Mapping[str, Sequence[_Variant]],
    data: Data,
    environment: Mapping[str, str],
) -> dict[str, dict[str, Cell]]:
    """By the kinds of `kinds.TABLES`, and by the tables' names, the cells that are asked for about a model."""
    found: dict[str, dict[str, Cell]] = {kind.NAME: {} for kind in TABLES}
    for kind, label, table in tables_of(study):
        if name not in (table.models or [name]):
            continue
        (function,) = kind.FUNCTIONS
        parents = {"model": variant.cell}
        for role, other in table.beside(name).items():
            parents[role] = _only(f"{kind.NAME} {label} {table.BESIDE[role]}", other, variants)
        found[kind.NAME][label] = new_cell(
            f"{function} {label} of {_label(name, variant.axes)}, seed {seed}",
            function,
            table.params(variant.cell, data) | {"seed": seed},
            parents,
            digest=data.digest,
            place=study.data,
            environment=environment,
        )
    return found


def _only(what: str, name: str, variants: Mapping[str, Sequence[_Variant]]) -> Cell:
    """The one cell of a model that is no grid."""
    if len(variants[name]) > 1:
        raise InputError(f"{what} one model, {name} is a grid of several")
    return variants[name][0].cell
