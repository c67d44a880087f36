"""The rows of the test split that a study attacks."""

from __future__ import annotations

import torch
from torch import Tensor

from brittle.study.kinds.work import Counts, Function, Needs
from brittle.study.store.cell import Cell, Context, Outcome, Parents


def select(cell: Cell, _parents: Parents, context: Context) -> Outcome:
    """The first rows of the test split, kept so that a report can show them without the data set."""
    data = context.data(cell.place, cell.digest)
    rows = cell.params["rows"]
    count = len(data.test) if rows == "all" else min(rows, len(data.test))
    images, labels = data.test.images[:count].clone(), data.test.labels[:count].clone()
    scalars = {"rows": count, "data": data.name, "source": data.source, "classes": list(data.classes)}
    return Outcome(scalars, {"rows": {"images": images, "labels": labels}})


def first_of_each_class(labels: Tensor) -> Tensor:
    """(classes,) int64: the first row of each class that is there, in the order of the classes."""
    return torch.stack([(labels == label).nonzero()[0, 0] for label in labels.unique()])


def cost(_cell: Cell, _counts: Counts) -> Needs:
    """No network is asked."""
    return []


FUNCTIONS = {"select": Function(1, select, cost)}
