"""A study -> its cells: every point of every grid, parents before children."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brittle.data import Data
from brittle.errors import InputError
from brittle.study.kinds import TABLES, table
from brittle.study.kinds.attack import plan as attack
from brittle.study.kinds.measure import cell as measure
from brittle.study.kinds.network import plan as network
from brittle.study.kinds.plan import Base, Point, label
from brittle.study.kinds.rows import cell as rows
from brittle.study.schema import Study
from brittle.study.store.cell import Cell

MOST = 100_000  # cells of a study


@dataclass(frozen=True)
class Plan:
    """A study's cells, model by model, parents before children, and the record by which a report finds them again."""

    cells: tuple[Cell, ...]
    record: Mapping[str, Any]


def expand(study: Study, data: Data, *, device: str, dtype: str, given: Mapping[str, Cell] | None = None) -> Plan:
    """All cells of a study.

    Args:
        study: what to do.
        data: the data set that `study.data` names; only its digest, its sizes and its test labels are used.
        device: kind of device, 'cpu' or 'cuda'.
        dtype: of training, 'float32' or 'bfloat16'.
        given: models that exist already, by their name in the study: `train` or `adopt` cells.

    Raises:
        InputError: if there are more than MOST cells, or more than GENERATIONS networks that learn from each other.
    """
    base = Base(study, data, device, dtype, given or {})
    _check_count(base)
    select = rows.planned(base)
    cells, models = [select], []
    for seed in study.seeds:
        points = network.planned(base, seed, select)
        for point in (point for name in study.models for point in points[name]):
            entry, asked = _about(point)
            models.append(entry)
            cells += asked
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


def _about(point: Point) -> tuple[dict[str, Any], list[Cell]]:
    """What a report must know of a trained model, and the cells about it, those of the last kind first."""
    measured, attacks = measure.planned(point), list(attack.planned(point))
    cells = [measured, *(shard for _, shards in attacks for shard in shards)]
    entry = {
        "name": point.name,
        "label": label(point.name, point.axes),
        "axes": dict(point.axes),
        "seed": point.seed,
        "temperature": point.temperature,
        "teacher": point.base.study.models[point.name].teacher,
        "train": point.network.key,
        "measure": measured.key,
        "attacks": [told for told, _ in attacks],
    }
    for kind in TABLES:
        asked = list(table.planned(kind, point))
        entry[kind.NAME] = [{"name": name, "cell": cell.key} for name, cell in asked]
        cells = [*(cell for _, cell in asked), *cells]
    return entry, cells


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


def _check_count(base: Base) -> None:
    """Raises InputError for more than MOST cells, before any is made."""
    cells = 1
    for name, points in network.counts(base).items():
        tables = (one for kind in TABLES for one in getattr(base.study, kind.NAME).values())
        asked = attack.count(base, name) + sum(
            len(one.parts(base.data)) for one in tables if name in (one.models or [name])
        )
        cells += points * (3 + asked)  # it is trained, from labels or not, and measured
    cells *= len(base.study.seeds)
    if cells > MOST:
        raise InputError(f"the study has about {cells:,} cells, and at most {MOST:,} are planned: make grids smaller")
