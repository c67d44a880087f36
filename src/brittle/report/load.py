"""A study's finished cells -> a Report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from brittle.errors import InputError
from brittle.study.kinds import TABLES, table
from brittle.study.kinds.attack import result as attack
from brittle.study.kinds.measure import result as measure
from brittle.study.kinds.network import cell as network
from brittle.study.kinds.rows import cell as rows
from brittle.study.kinds.table import Name, Named
from brittle.study.store.results import Model, Reader, Report
from brittle.study.store.store import Store, printable

# What a study's record holds ----------------------------------------------------------------------------------------


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


_LISTS: dict[str, Any] = {kind.NAME: (list[Named], []) for kind in TABLES}
_Tables = create_model("_Tables", __base__=_Part, **_LISTS)


class _Model(_Tables):
    name: Name
    label: Name
    axes: dict[str, Any]
    seed: int
    temperature: float
    teacher: Name | None
    train: str
    measure: str
    attacks: list[attack.Entry]


class _Asked(_Part):
    """What the study's own file asked for, as far as a report needs it."""

    data: Name = "unknown"
    claims: str | None = None


class _Study(_Part):
    name: Name
    title: Name
    about: Name = ""
    study: _Asked = _Asked()
    digest: str = ""
    rows: str
    models: list[_Model]
    again: Name | None = None


def _checked(name: str, record: Mapping[str, Any]) -> _Study:
    try:
        return _Study.model_validate({"name": name, "title": name, **record})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"the file of study {name!r} is damaged: {where}: {first['msg'].lower()}") from error


# Cells --------------------------------------------------------------------------------------------------------------


def gather(store: Store, name: str, record: Mapping[str, Any] | None = None) -> Report:
    """Collects what the store holds of a study. Missing and damaged cells are listed in the report; they do not raise.

    Args:
        store: where the study's cells lie. Nothing is written to it.
        name: of the study.
        record: of the study; read from the store when not given.

    Raises:
        InputError: if the store has no such study, or its file is damaged.
    """
    study = _checked(name, store.read_study(name) if record is None else record)
    reader = Reader(store)
    chosen = rows.read(reader, study.rows)
    about = chosen.about if chosen else {}
    data = printable(about.get("data", study.study.data))
    models = tuple(_model(reader, entry, study, chosen) for entry in study.models)
    return Report(
        name=study.name,
        title=study.title,
        about=study.about,
        paper=study.study.claims,
        data=data,
        source=printable(about.get("source", "")),
        classes=tuple(map(printable, about.get("classes", ()))),
        images=chosen.images if chosen else None,
        labels=chosen.labels if chosen else None,
        models=_called(models, data),
        cells=len(reader.used),
        lost=tuple(reader.lost.values()),
        provenance=reader.provenance(study.digest),
        again=study.again,
    )


def _called(models: tuple[Model, ...], data: str) -> tuple[Model, ...]:
    """A network that is alone in its study is called by what it is: its function and its data."""
    (first, *others) = models or (None,)
    if first is None or first.trained is None or any(other.label != first.label for other in others):
        return models
    path = first.trained.network or first.label
    label = f"{path.rpartition('.')[2]} on {data}"
    return tuple(replace(one, label=label, title=one.title.replace(first.label, label, 1)) for one in models)


def _generation(name: str, teachers: Mapping[str, str | None]) -> int:
    """How many teachers stand before a model; a damaged file may have them in a circle."""
    count, teacher = 0, teachers.get(name)
    while teacher is not None and count < len(teachers):
        count, teacher = count + 1, teachers.get(teacher)
    return count


def _model(reader: Reader, entry: _Model, study: _Study, chosen: rows.Rows | None) -> Model:
    title = f"{entry.label}, seed {entry.seed}"
    several = len({model.seed for model in study.models}) > 1
    return Model(
        name=entry.name,
        label=entry.label,
        title=title if several else entry.label,
        seed=entry.seed,
        axes=entry.axes,
        temperature=entry.temperature,
        teacher=entry.teacher,
        generation=_generation(entry.name, {model.name: model.teacher for model in study.models}),
        trained=network.read(reader, entry.train, title),
        measured=measure.read(reader, entry.measure, title),
        attacks=attack.read(reader, entry.attacks, title, chosen),
        results=tuple(one for kind in TABLES for one in table.read(kind, reader, getattr(entry, kind.NAME), title)),
    )
