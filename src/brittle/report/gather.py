"""A study's finished cells -> a Report."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, TypeVar

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, create_model
from torch import Tensor
from torch.nn import functional as F

from brittle import measures
from brittle.attacks.packing import unpack
from brittle.attacks.result import Bound
from brittle.errors import InputError
from brittle.measures import Mean, Share
from brittle.report.contents import (
    NOT_DONE,
    Attack,
    Found,
    Lost,
    Measured,
    Model,
    Provenance,
    Report,
    Saliency,
    Steps,
    Trained,
)
from brittle.study.kinds import TABLES
from brittle.study.kinds.attack.cell import attacked_rows
from brittle.study.store.store import Store, Stored, printable

_T = TypeVar("_T")
_VALUES = ("brittle", "torch", "python", "platform", "processor", "threads", "device")


# What a study's file holds -------------------------------------------------------------------------------------------

_Name = Annotated[str, AfterValidator(printable)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Cell(_Part):
    name: _Name
    cell: str


class _Attacked(_Part):
    name: _Name
    label: _Name
    function: _Name
    options: dict[str, Any]
    arithmetic: list[str] | None
    over_temperature: bool = False
    cells: list[str]


# The finished cells of the tables, in a list for each kind.
_LISTS: dict[str, Any] = {kind.NAME: (list[_Cell], []) for kind in TABLES}
_Tables = create_model("_Tables", __base__=_Part, **_LISTS)


class _Network(_Tables):
    name: _Name
    label: _Name
    axes: dict[str, Any]
    seed: int
    temperature: float
    teacher: _Name | None
    train: str
    measure: str
    attacks: list[_Attacked]


class _Asked(_Part):
    """What the study's own file asked for, as far as a report needs it."""

    data: _Name = "unknown"
    claims: str | None = None


class _Study(_Part):
    name: _Name
    title: _Name
    about: _Name = ""
    study: _Asked = _Asked()
    digest: str = ""
    rows: str
    models: list[_Network]
    again: _Name | None = None


def _checked(name: str, record: Mapping[str, Any]) -> _Study:
    try:
        return _Study.model_validate({"name": name, "title": name, **record})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"the file of study {name!r} is damaged: {where}: {first['msg'].lower()}") from error


# Cells ---------------------------------------------------------------------------------------------------------------


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
    reader = _Reader(store)
    chosen = reader.read("select rows", study.rows, _rows)
    scalars, images, labels = chosen or ({}, None, None)
    several = len({model.seed for model in study.models}) > 1
    teachers = {model.name: model.teacher for model in study.models}
    data = printable(scalars.get("data", study.study.data))
    models = tuple(
        _model(reader, model, several, _generation(model.name, teachers), images, labels) for model in study.models
    )
    return Report(
        name=study.name,
        title=study.title,
        about=study.about,
        paper=study.study.claims,
        data=data,
        source=printable(scalars.get("source", "")),
        classes=tuple(map(printable, scalars.get("classes", ()))),
        images=images,
        labels=labels,
        models=_called(models, data),
        cells=len(reader.used),
        lost=tuple(reader.lost.values()),
        provenance=_provenance(reader.used, study.digest),
        again=study.again,
    )


def _called(models: tuple[Model, ...], data: str) -> tuple[Model, ...]:
    """A network that is alone in its study is called by what it is: its function and its data."""
    (first, *others) = models or (None,)
    if first is None or first.trained is None or any(other.label != first.label for other in others):
        return models
    path = printable(first.trained.params.get("network", first.label))
    label = f"{path.rpartition('.')[2]} on {data}"
    return tuple(replace(one, label=label, title=one.title.replace(first.label, label, 1)) for one in models)


def _generation(name: str, teachers: Mapping[str, str | None]) -> int:
    """How many teachers stand before a model; a damaged file may have them in a circle."""
    count, teacher = 0, teachers.get(name)
    while teacher is not None and count < len(teachers):
        count, teacher = count + 1, teachers.get(teacher)
    return count


class _Reader:
    """Reads cells, and remembers which were there and which were not."""

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


def _rows(stored: Stored) -> tuple[Mapping[str, Any], Tensor, Tensor]:
    rows = stored.tensors("rows")
    return stored.scalars, rows["images"], rows["labels"]


def _model(
    reader: _Reader,
    entry: _Network,
    several: bool,
    generation: int,
    images: Tensor | None,
    labels: Tensor | None,
) -> Model:
    title = f"{entry.label}, seed {entry.seed}"
    trained = reader.read(f"train {title}", entry.train, _trained)
    if trained is not None:
        reader.parents(entry.train)
    return Model(
        name=entry.name,
        label=entry.label,
        title=title if several else entry.label,
        seed=entry.seed,
        axes=entry.axes,
        temperature=entry.temperature,
        teacher=entry.teacher,
        generation=generation,
        trained=trained,
        measured=reader.read(f"measure {title}", entry.measure, _measured),
        attacks=tuple(_attack(reader, attack, title, images, labels) for attack in entry.attacks),
        results=tuple(_results(reader, entry, title)),
    )


def _results(reader: _Reader, entry: _Network, model: str) -> Iterator[object]:
    """What is finished of that which the study asked for by tables, kind after kind."""
    for kind in TABLES:
        (function,) = kind.FUNCTIONS
        for one in getattr(entry, kind.NAME):
            take = functools.partial(kind.Result.of, one.name, store=reader.store)
            found = reader.read(f"{function} {one.name} of {model}", one.cell, take)
            if found is not None:
                yield found


def _trained(stored: Stored) -> Trained:
    scalars = stored.scalars
    return Trained(
        params=stored.record["params"],
        dtype=str(stored.record.get("environment", {}).get("dtype", "")),
        loss=tuple(map(_number, scalars.get("loss", ()))),
        validation_accuracy=tuple(map(_number, scalars.get("validation_accuracy", ()))),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _measured(stored: Stored) -> Measured:
    scalars = stored.scalars
    confidence = scalars["confidence"]
    low, high = map(_number, confidence["interval"])
    saliency, test = stored.tensors("saliency"), stored.tensors("logits")
    return Measured(
        accuracy=Share(**scalars["accuracy"]),
        saturated=Share(**scalars["saturated"]),
        confidence=Mean(_number(confidence["value"]), (low, high), confidence["rows"]),
        sensitivity={name: Share(**values) for name, values in scalars["sensitivity"].items()},
        amplitudes=dict(sorted(stored.tensors("amplitudes").items())),
        logits=test["test"],
        labels=test["labels"],
        saliency=Saliency(saliency["rows"], saliency["sign"], saliency["log10"], saliency["float32"]),
    )


# Attacks ------------------------------------------------------------------------------------------------------------


def _attack(reader: _Reader, entry: _Attacked, model: str, images: Tensor | None, labels: Tensor | None) -> Attack:
    """An attack over those of its shards that are finished, in order."""
    arithmetics = tuple(entry.arithmetic or ["result"])
    keys = entry.cells
    places, shards, steps = [], [], {}
    aims: set[tuple[float | None, Bound | None]] = set()
    for number, key in enumerate(keys, 1):
        part = f", shard {number} of {len(keys)}" if len(keys) > 1 else ""
        shard = reader.read(f"{entry.label} on {model}{part}", key, lambda stored: _shard(stored, arithmetics))
        if shard is not None and images is not None:
            places.append(shard[0])
            shards.append(shard[1])
            steps |= shard[2]
            aims.add(shard[3])
    rows = torch.cat(places) if places else torch.empty(0).long()
    found = {}
    if shards and images is not None and labels is not None:
        for arithmetic in arithmetics:
            packed = _joined([shard[arithmetic] for shard in shards])
            found[arithmetic] = _found(arithmetic, packed, images[rows], labels[rows], entry.options, steps)
    minimises, bound = aims.pop() if len(aims) == 1 else (None, None)
    return Attack(
        name=entry.name,
        label=entry.label,
        function=entry.function,
        options=entry.options,
        minimises=minimises,
        bound=bound,
        over_temperature=entry.over_temperature,
        rows=rows,
        found=found,
        complete=len(shards) == len(keys),
    )


def _aim(scalars: Mapping[str, Any]) -> tuple[float | None, Bound | None]:
    """The norm that an attack minimises, and the budget that it works within; None where it says nothing of it."""
    minimises, bound = scalars.get("minimises"), scalars.get("bound")
    return (
        None if minimises is None else float(minimises),  # 0, 1, 2 or "inf"
        None if bound is None else Bound(float(bound["norm"]), float(bound["eps"])),
    )


def _shard(
    stored: Stored, arithmetics: Sequence[str]
) -> tuple[Tensor, dict[str, dict[str, Tensor]], dict[str, Steps], tuple[float | None, Bound | None]]:
    """Which rows, what was found of them by arithmetic, the steps of some of them, and what the attack aims at."""
    rows = attacked_rows(stored.record["params"])
    packed = {arithmetic: stored.tensors(arithmetic) for arithmetic in arithmetics}
    targets = max(1, len(packed[arithmetics[0]]["success"]) // len(rows))  # of each row
    for tensors in packed.values():
        for name in ("success", "prediction", "forwards", "backwards"):
            if len(tensors[name]) != len(rows) * targets:
                raise ValueError(f"{name} has {len(tensors[name])} entries for {len(rows)} rows")
    steps = {}
    for arithmetic in arithmetics:
        if f"{arithmetic}.steps.safetensors" in stored.record["files"]:
            kept = stored.tensors(f"{arithmetic}.steps")
            steps[arithmetic] = Steps(rows[kept["rows"]], kept["logits"])
    return rows.repeat_interleave(targets), packed, steps, _aim(stored.scalars)


def _joined(shards: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Shards as one; their lists of pixels are as long as their longest, so the shorter ones are padded."""
    padding = {"pixels": -1, "levels": 0}
    joined = {}
    for name in shards[0]:
        parts = [shard[name] for shard in shards]
        if name in padding:
            width = max(part.shape[1] for part in parts)
            parts = [F.pad(part, (0, width - part.shape[1]), value=padding[name]) for part in parts]
        joined[name] = torch.cat(parts)
    return joined


def _found(
    arithmetic: str,
    packed: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    options: Mapping[str, Any],
    steps: Mapping[str, Steps],
) -> Found:
    result = unpack(packed, images, labels)
    flips = curve = None
    if result.pixels is not None:
        flips = measures.flips_needed(result)
        trials = options.get("max_pixels")
        curve = measures.success_curve(result, trials if isinstance(trials, int) else int(result.flips.max()))
    return Found(
        arithmetic=arithmetic,
        success=measures.success_rate(result),
        robust=measures.share(result.prediction == labels),
        flips=flips,
        curve=curve,
        sizes={p: measures.distances(result, p) for p in (0, 1, 2, math.inf)},
        forwards=_mean(result.forwards),
        backwards=_mean(result.backwards),
        trivial=result.trivial,
        packed=packed,
        steps=steps.get(arithmetic),
    )


def _mean(values: Tensor) -> float:
    return values.double().mean().item() if len(values) else math.nan


# Provenance ---------------------------------------------------------------------------------------------------------


def _provenance(used: Mapping[str, Stored], digest: str) -> Provenance:
    made = [stored.record.get("provenance", {}) for stored in used.values()]
    values = {name: tuple(sorted({str(one[name]) for one in made if name in one})) for name in _VALUES}
    dtypes = {stored.record.get("environment", {}).get("dtype") for stored in used.values()}
    return Provenance(
        values={name: seen for name, seen in values.items() if seen}
        | {"training precision": tuple(sorted(filter(None, dtypes)))},
        seconds=float(sum(one.get("seconds", 0) for one in made)),
        started=min((str(one["started"]) for one in made if "started" in one), default=""),
        digest=digest,
    )
