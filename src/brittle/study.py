"""A study file -> cells.

A study file says what to train, on what, and how to attack it; any value may be a list, and the study is then the grid
of all of them. Here files are read and checked and grids expanded; what a cell does stands in `cells`.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from brittle import naming
from brittle.cells import Cell
from brittle.data import Data
from brittle.distillation import generation_seed
from brittle.errors import InputError, unknown
from brittle.softmax import check_arithmetic
from brittle.training import check_decay_on, check_setting

Numbers = float | list[float]
Integers = int | list[int]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Training(_Table):
    """How every model of the study is trained, unless its own table says otherwise. See `brittle.fit`."""

    network: str | list[str] = "brittle.networks.papernot_mnist"
    network_options: dict[str, Any] = Field(default_factory=dict)
    temperature: Numbers = 1.0
    epochs: Integers = 50
    batch_size: Integers = 128
    learning_rate: Numbers = 0.1
    momentum: Numbers = 0.5
    nesterov: bool | list[bool] = False
    weight_decay: Numbers = 0.0
    decay_on: str | list[str] = "weights"

    @field_validator("temperature", "epochs", "batch_size", "learning_rate", "momentum", "weight_decay", mode="after")
    @classmethod
    def _in_range(cls, value: Any, info: ValidationInfo) -> Any:
        for one in _listed(value):
            check_setting(str(info.field_name), one)
        return value

    @field_validator("decay_on", mode="after")
    @classmethod
    def _decays(cls, value: str | list[str]) -> str | list[str]:
        for one in _listed(value):
            check_decay_on(one)
        return value


class Model(Training):
    """A model of the study: `teacher` names the model whose soft labels it learns from; none means hard labels."""

    teacher: str | None = None


class Attack(BaseModel):
    """An attack of the study; keys beside these are its options."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    function: str
    arithmetic: str | list[str] | None = None
    rows: int | None = Field(default=None, ge=1)  # the first so many of the study's; all of them when not given
    shard_rows: int | None = Field(default=None, ge=1)  # rows a cell; the study's when not given

    @field_validator("arithmetic", mode="after")
    @classmethod
    def _arithmetics(cls, value: str | list[str] | None) -> str | list[str] | None:
        for one in _listed(value or []):
            check_arithmetic(one)
        return value


class Study(_Table):
    """A whole study file."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")
    title: str
    about: str = ""
    claims: str | None = None  # the paper whose claims the report sets beside the results
    data: str
    layout: Literal["NCHW", "NHWC"] | None = None
    rows: int | Literal["all"] = 100
    shard_rows: int = Field(default=100, ge=1)
    seeds: list[int] = Field(default=[0], min_length=1)
    training: Training = Training()
    models: dict[str, Model] = Field(min_length=1)
    attacks: dict[str, Attack] = Field(default_factory=dict)

    @field_validator("rows", mode="after")
    @classmethod
    def _rows(cls, value: int | str) -> int | str:
        if value != "all" and int(value) < 1:
            raise InputError(f"rows must be at least 1 or 'all', got {value}")
        return value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# Reading ------------------------------------------------------------------------------------------------------------


def built_in() -> dict[str, str]:
    """Name and text of each study that comes with brittle."""
    folder = resources.files("brittle") / "studies"
    return {f.name.removesuffix(".toml"): f.read_text() for f in folder.iterdir() if f.name.endswith(".toml")}


def read(name_or_path: str, settings: Sequence[str] = ()) -> Study:
    """A study by the name of a built-in one or by the path of a file, with `a.b=c` settings put over it.

    Raises:
        InputError: if there is no such study, or its text is not TOML or not a study: every wrong key with its path.
    """
    known = built_in()
    if name_or_path in known:
        text, where = known[name_or_path], f"study {name_or_path}"
    elif name_or_path.endswith(".toml"):
        where = name_or_path
        try:
            text = Path(name_or_path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"study file {name_or_path} cannot be read: {error}") from error
    else:
        raise unknown("study", name_or_path, known)
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where} is not TOML: {error}") from error
    for setting in settings:
        put(tables, setting)
    return check(tables, where)


def check(tables: Mapping[str, Any], where: str) -> Study:
    """The study that `tables` describe.

    Raises:
        InputError: naming every key that is unknown or ill-typed, each with its path.
    """
    try:
        study = Study.model_validate(tables)
    except ValidationError as error:
        raise InputError(f"{where}: " + "; ".join(_sentences(error))) from error
    for label, attack in study.attacks.items():
        function = naming.attack(attack.function)
        options = dict(attack.model_extra or {})
        if attack.arithmetic is not None:
            options["arithmetic"] = attack.arithmetic
        naming.check_options(f"attack {label},", attack.function, function, options)
    for label, model in study.models.items():
        if model.teacher is not None and model.teacher not in study.models:
            raise unknown(f"teacher of model {label},", model.teacher, study.models)
        for network in _listed(_chosen(study, model)["network"]):
            naming.check_options("network", network, naming.network(network), _chosen(study, model)["network_options"])
    return study


def _sentences(error: ValidationError) -> Iterator[str]:
    """One short sentence for each wrong key."""
    seen: dict[str, list[str]] = {}
    for problem in error.errors():
        steps = [str(s) for s in problem["loc"] if not str(s).startswith(("list[", "literal[")) and s not in _BRANCHES]
        if problem["type"] == "extra_forbidden":
            sentence = "unknown key"
        elif problem["type"] == "value_error":
            sentence = problem["msg"].removeprefix("Value error, ")
        elif problem["type"] == "missing":
            sentence = "missing"
        else:
            sentence = f"{problem['msg'][0].lower()}{problem['msg'][1:]}, got {problem['input']!r}"
        found = seen.setdefault(".".join(steps) or "study", [])
        if problem["type"] != "list_type" or not found:  # that a value may also be a list helps nobody here
            found.append(sentence)
    for path, sentences in seen.items():
        yield f"{path}: {' or '.join(dict.fromkeys(sentences))}"


_BRANCHES = {"int", "float", "bool", "str"}  # pydantic puts the tried branch of a union into the path


def put(tables: dict[str, Any], setting: str, flag: str = "--set") -> None:
    """Puts `a.b=c` over the tables; c is read as a TOML value, or as a string where it is none."""
    path, equals, text = setting.partition("=")
    steps = [step.strip() for step in path.split(".")]
    if not equals or not all(steps):
        raise InputError(f"{flag} needs KEY=VALUE with a dotted key such as training.epochs=3, got {setting!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = tables
    for step in steps[:-1]:
        table = table.setdefault(step, {})
        if not isinstance(table, dict):
            raise InputError(f"{flag} {setting}: {step} is a value, not a table")
    table[steps[-1]] = value


# Expanding ----------------------------------------------------------------------------------------------------------


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
        data: the data set that `study.data` names; only its digest and the number of its test images are used.
        device: kind of device, 'cpu' or 'cuda'.
        dtype: of training, 'float32' or 'bfloat16'.
        given: models that exist already, by their name in the study: `train` or `adopt` cells.
    """
    given = given or {}
    environment = {"device": device}
    trained = {"device": device, "dtype": dtype}
    select = Cell("select rows", "select", {"rows": study.rows}, digest=data.digest, place=study.data)
    count = len(data.test) if study.rows == "all" else min(int(study.rows), len(data.test))
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
                entry, follow = _follow(study, name, variant, seed, select, count, data.digest, environment)
                models.append(entry)
                cells += follow
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


_STAGES = {"select": 0, "train": 1, "adopt": 1, "label": 1, "measure": 2, "attack": 3}


def _follow(
    study: Study,
    name: str,
    variant: _Variant,
    seed: int,
    select: Cell,
    count: int,
    digest: str,
    environment: Mapping[str, str],
) -> tuple[dict[str, Any], list[Cell]]:
    """What is done with a trained model: what a report must know of it, and the cells that measure and attack it."""
    label = _label(name, variant.axes)
    measure = Cell(
        f"measure {label}, seed {seed}",
        "measure",
        {"temperature": variant.temperature},
        {"model": variant.cell, "rows": select},
        digest=digest,
        place=study.data,
        environment=environment,
    )
    attacks = list(_attacks(study, variant.cell, select, f"{label}, seed {seed}", count, environment))
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
    return entry, [measure, *(shard for _, shards in attacks for shard in shards)]


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


def _chosen(study: Study, model: Model) -> dict[str, Any]:
    """The model's training settings: its own where it has them, else the study's."""
    own = model.model_dump(exclude_unset=True, exclude={"teacher"})
    chosen = study.training.model_dump() | own
    if chosen["decay_on"] == "weights":  # unsaid, so that cells from before there was a choice keep their keys
        del chosen["decay_on"]
    return chosen


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
    settings = _chosen(study, model)
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
    """A foreign function's file is part of the key of what it makes."""
    digest = naming.source_digest(resolve(path))
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
    study: Study, model: Cell, select: Cell, label: str, count: int, environment: Mapping[str, str]
) -> Iterator[tuple[dict[str, Any], list[Cell]]]:
    """For each point of each attack's grid: what a report must know of it, and its cells, a shard of rows each."""
    for name, attack in study.attacks.items():
        arithmetic = None if attack.arithmetic is None else _listed(attack.arithmetic)
        stop_at = min(count, attack.rows or count)
        size = attack.shard_rows or study.shard_rows
        for options, axes in _grid(attack.model_extra or {}):
            entry = {
                "name": name,
                "label": _label(name, axes),
                "function": attack.function,
                "options": options,
                "arithmetic": arithmetic,
            }
            params = {
                "function": attack.function,
                **_source(attack.function, naming.attack),
                "options": options,
                "arithmetic": arithmetic,
            }
            shards = [
                Cell(
                    f"{entry['label']} on {label}" + (f", rows {start}..{stop - 1}" if stop_at > size else ""),
                    "attack",
                    {**params, "start": start, "stop": stop},
                    {"model": model, "rows": select},
                    environment=environment,
                )
                for start in range(0, stop_at, size)
                for stop in [min(start + size, stop_at)]
            ]
            yield entry, shards
