"""The rows of the test split that a study attacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator
from torch import Tensor

from brittle.errors import InputError
from brittle.study.kinds.plan import Base
from brittle.study.kinds.work import Counts, Function, Needs
from brittle.study.store.cell import Cell, Context, Outcome, Parents
from brittle.study.store.results import Reader
from brittle.study.store.store import Stored


def _at_least_one(value: int | str) -> int | str:
    if value != "all" and int(value) < 1:
        raise InputError(f"rows must be at least 1 or 'all', got {value}")
    return value


KEYS = {"rows": (Annotated[int | Literal["all"], AfterValidator(_at_least_one)], 100)}  # of a study file


@dataclass(frozen=True)
class Rows:
    """The images that a study attacks, and what they are of."""

    images: Tensor  # (N, C, H, W)
    labels: Tensor  # (N,)
    about: Mapping[str, Any]  # 'data', 'source' and 'classes'


def read(reader: Reader, key: str) -> Rows | None:
    """The images that the cell of this key chose; None if it is not done."""

    def take(stored: Stored) -> Rows:
        rows = stored.tensors("rows")
        return Rows(rows["images"], rows["labels"], stored.scalars)

    return reader.read("select rows", key, take)


def select(cell: Cell, _parents: Parents, context: Context) -> Outcome:
    """The first rows of the test split, kept so that a report can show them without the data set."""
    data = context.data(cell.place, cell.digest)
    rows = cell.params["rows"]
    count = len(data.test) if rows == "all" else min(rows, len(data.test))
    images, labels = data.test[:count].images.clone(), data.test.labels[:count].clone()
    scalars = {"rows": count, "data": data.name, "source": data.source, "classes": list(data.classes)}
    return Outcome(scalars, {"rows": {"images": images, "labels": labels}})


def planned(base: Base) -> Cell:
    """The cell that chooses the images of a study."""
    return base.cell(FUNCTIONS, "select rows", "select", {"rows": base.study.rows}, device=False)


def first_of_each_class(labels: Tensor) -> Tensor:
    """(classes,) int64: the first row of each class that is there, in the order of the classes."""
    return torch.stack([(labels == label).nonzero()[0, 0] for label in labels.unique()])


def cost(_cell: Cell, _counts: Counts) -> Needs:
    """No network is asked."""
    return []


FUNCTIONS = {"select": Function(1, select, cost)}
