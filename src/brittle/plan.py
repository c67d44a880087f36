"""A study -> its cells: every point of every grid, parents before children."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brittle import naming
from brittle.cells import Cell, first_of_each_class, untrained
from brittle.data import Data
from brittle.distillation import generation_seed
from brittle.errors import InputError, unknown
from brittle.study import Attack, Carriers, Study, Units, chosen, listed
from brittle.units import telling_layers


@dataclass(frozen=True)
class Plan:
    """A study's cells, parents before children, and the record by which a report finds them again."""

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
    """
    given = given or {}
    environment = {"device": device}
    trained = {"device": device, "dtype": dtype}
    select = Cell("select rows", "select", {"rows": study.rows}, digest=data.digest, place=study.data)
    cells: list[Cell] = [select]
    models: list[dict[str, Any]] = []
    for seed in study.seeds:
        variants: dict[str, list[_Variant]] = {}
        for name in _teachers_first(study):
            if name in given:
                temperature = float(given[name].params.get("temperature", 1.0))
                variants[name] = [_Variant({}, 0, temperature, given[name])]
                cells.append(given[name])
                continue
            variants[name] = list(_variants(study, name, seed, variants, data.digest, trained))
            cells += [cell for v in variants[name] for cell in (*v.cell.parents.values(), v.cell)]
        for name in study.models:
            for variant in variants[name]:
                entry, follow = _follow(study, name, variant, seed, select, data, environment)
                masks = dict(_masks(study, name, variant, seed, variants, data, environment))
                audits = dict(_audits(study, name, variant, seed, variants, data, environment))
                models.append(entry | {"masks": _listed(masks), "audits": _listed(audits)})
                cells += [*follow, *masks.values(), *audits.values()]
    record = {
        "name": study.name,
        "title": study.title,
        "about": study.about,
        "study": study.model_dump(mode="json", exclude_defaults=True),
        "digest": data.digest,
        "rows": select.key,
        "models": models,
    }
    unique = {cell.key: cell for cell in cells}
    ordered = sorted(unique.values(), key=lambda cell: _STAGES[cell.function])  # stable: parents stay before children
    return Plan(tuple(ordered), record)


_STAGES = {
    "select": 0,
    "train": 1,
    "adopt": 1,
    "label": 1,
    "measure": 2,
    "attack": 3,
    "units": 3,
    "carriers": 3,
    "masks": 3,
    "audit": 4,
}


def _follow(
    study: Study,
    name: str,
    variant: _Variant,
    seed: int,
    select: Cell,
    data: Data,
    environment: Mapping[str, str],
) -> tuple[dict[str, Any], list[Cell]]:
    """What is done with a trained model: what a report must know of it, and the cells that measure and attack it."""
    label = _label(name, variant.axes)
    measure = Cell(
        f"measure {label}, seed {seed}",
        "measure",
        {"temperature": variant.temperature},
        {"model": variant.cell, "rows": select},
        digest=data.digest,
        place=study.data,
        environment=environment,
    )
    attacks = list(_attacks(study, name, variant, seed, select, data, environment))
    units, carriers = (_units(each, study, name, variant, seed, data, environment) for each in ("units", "carriers"))
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
        "units": _listed(units),
        "carriers": _listed(carriers),
    }
    shards = (shard for _, shards in attacks for shard in shards)
    return entry, [measure, *shards, *units.values(), *carriers.values()]


def _listed(tables: Mapping[str, Cell]) -> list[dict[str, str]]:
    """What a report must know of cells by the name of their table."""
    return [{"name": table, "cell": cell.key} for table, cell in tables.items()]


def _teachers_first(study: Study) -> list[str]:
    """Model names with every teacher before its students."""
    order: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise InputError(f"models teach each other in a circle: {' -> '.join((*path, name))}")
        teacher = study.models[name].teacher
        if teacher is not None:
            visit(teacher, (*path, name))
        if name not in order:
            order.append(name)

    for name in study.models:
        visit(name, ())
    return order


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
    for teacher in known[model.teacher] if model.teacher else [None]:
        for point, axes in _grid(settings):
            if teacher and any(point.get(axis, value) != value for axis, value in teacher.axes.items() if axis in axes):
                continue
            axes = {**(teacher.axes if teacher else {}), **axes}
            generation = teacher.generation + 1 if teacher else 0
            label = f"{_label(name, axes)}, seed {seed}"
            parents = {}
            if teacher:
                parents["labels"] = Cell(
                    f"label for {label}",
                    "label",
                    {"temperature": teacher.temperature},
                    {"teacher": teacher.cell},
                    digest=digest,
                    place=study.data,
                    environment={"device": environment["device"]},
                )
            params = {**point, **_source(point["network"], naming.network), "seed": generation_seed(seed, generation)}
            cell = Cell(f"train {label}", "train", params, parents, digest, study.data, environment)
            yield _Variant(axes, generation, float(point["temperature"]), cell)


def _source(path: str, resolve: Any) -> dict[str, str]:
    """A foreign function's files are part of the key of what it makes; the path was checked with the study."""
    digest = naming.source_digest(resolve(path, trust=True))
    return {"code": digest} if digest else {}


def _grid(settings: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every combination of the values that are lists: all settings, and those that vary."""
    axes = [key for key, value in settings.items() if isinstance(value, list)]
    for values in itertools.product(*(settings[axis] for axis in axes)):
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
        for options, axes in _grid(attack.model_extra or {}):
            told = {
                "function": attack.function,
                "options": options,
                "arithmetic": None if attack.arithmetic is None else listed(attack.arithmetic),
            }
            entry = {"name": label, "label": _label(label, axes), **told, "over_temperature": attack.over_temperature}
            params = {**told, **_source(attack.function, naming.attack)}
            if attack.targets:
                params["targets"] = attack.targets
            if attack.over_temperature:
                params["temperature"] = variant.temperature
            title = f"{entry['label']} on {_label(name, variant.axes)}, seed {seed}"
            shards = [
                Cell(
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


def _units(
    function: str, study: Study, name: str, variant: _Variant, seed: int, data: Data, environment: Mapping[str, str]
) -> dict[str, Cell]:
    """The cell of each table of 'units' or of 'carriers' that is for this model, by the table's name."""
    tables: Mapping[str, Units | Carriers] = getattr(study, function)
    found = {}
    for table, asked in tables.items():
        if name in (asked.models or [name]):
            params = asked.model_dump(exclude={"models"}) | {"seed": seed}
            params["layers"] = asked.layers or _layers(variant, data)
            if isinstance(asked, Units):
                params["classes"] = _classes(asked.classes, data)
            title = f"{function} {table} of {_label(name, variant.axes)}, seed {seed}"
            parents = {"model": variant.cell}
            found[table] = Cell(title, function, params, parents, data.digest, study.data, environment)
    return found


def _layers(variant: _Variant, data: Data) -> list[str]:
    """Those worth asking about, of a model for which none are named."""
    return telling_layers(untrained(variant.cell, data), data.train.images[:1])


def _masks(
    study: Study,
    name: str,
    variant: _Variant,
    seed: int,
    variants: Mapping[str, Sequence[_Variant]],
    data: Data,
    environment: Mapping[str, str],
) -> Iterator[tuple[str, Cell]]:
    """The cell of each table of masks that is for this model; the other model must be one, and no grid."""
    for table, masks in study.masks.items():
        if name not in masks.models:
            continue
        parents = {"model": variant.cell}
        if masks.other:
            parents["other"] = _only(f"masks {table} are tried on", masks.other, variants)
        params = masks.model_dump(exclude={"models", "other"}) | {"seed": seed}
        title = f"masks {table} of {_label(name, variant.axes)}, seed {seed}"
        yield table, Cell(title, "masks", params, parents, data.digest, study.data, environment)


def _only(what: str, name: str, variants: Mapping[str, Sequence[_Variant]]) -> Cell:
    """The one cell of a model that is no grid."""
    if len(variants[name]) > 1:
        raise InputError(f"{what} one model, {name} is a grid of several")
    return variants[name][0].cell


def _audits(
    study: Study,
    name: str,
    variant: _Variant,
    seed: int,
    variants: Mapping[str, Sequence[_Variant]],
    data: Data,
    environment: Mapping[str, str],
) -> Iterator[tuple[str, Cell]]:
    """The cell of each table of audits that is for this model; the reference, if not itself, is one and no grid."""
    for table, audits in study.audits.items():
        if name not in (audits.models or [name]):
            continue
        parents = {"model": variant.cell}
        if audits.reference and audits.reference != name:
            parents["reference"] = _only(f"audits {table} are beside", audits.reference, variants)
        params = audits.model_dump(exclude={"models", "reference"}) | {"seed": seed}
        title = f"audit {table} of {_label(name, variant.axes)}, seed {seed}"
        yield table, Cell(title, "audit", params, parents, data.digest, study.data, environment)


def _classes(names: Sequence[str] | None, data: Data) -> list[int]:
    """The places of classes among those of the data; of all when not given."""
    for name in names or []:
        if name not in data.classes:
            raise unknown(f"class of {data.name}", name, data.classes)
    return [data.classes.index(name) for name in names or data.classes]
