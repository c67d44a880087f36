"""What the store keeps of an audit: its record, and the images of its pictures."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator
from torch import Tensor, nn

from brittle.auditing import audit
from brittle.auditing.suite import BUDGETS
from brittle.data import Data
from brittle.errors import unknown
from brittle.progress import Progress
from brittle.study.kinds.attack.cell import of_each_row
from brittle.study.kinds.network.cell import loaded
from brittle.study.kinds.table import ModelTable
from brittle.study.kinds.work import Counts, Function, Needs, Work
from brittle.study.store.cell import Cell, Context, Outcome, Parents
from brittle.study.store.store import Store, Stored

NAME = "audits"  # of its tables in a study, of its part of a study's record and of results.json
OPTIONS = ("norm", "eps", "rows", "budget", "seed")


class Table(ModelTable):
    """An audit of the models; see `brittle.audit`."""

    BESIDE: ClassVar[Mapping[str, str]] = {"reference": "are beside"}

    norm: Literal["linf", "l2", "l0"] = "linf"
    eps: float | None = Field(default=None, gt=0, allow_inf_nan=False)  # the usual one when not given
    rows: int = Field(default=1000, ge=1)  # of the test split, at most
    budget: str = "standard"
    reference: str | None = None  # the model, by name, that is undefended, of the same seed

    @field_validator("budget", mode="after")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in BUDGETS:
            raise unknown("budget", value, BUDGETS)
        return value

    def beside(self, name: str) -> dict[str, str]:
        """The reference, unless it is the model itself."""
        return {role: other for role, other in super().beside(name).items() if other != name}


@dataclass(frozen=True)
class Audited:
    """What an audit of a model found; see `brittle.auditing.Audit`."""

    name: str
    record: Mapping[str, Any]  # as `record_of` has it
    reference: str | None  # the title of the undefended network's cell

    @classmethod
    def of(cls, name: str, stored: Stored, store: Store) -> Self:
        """As a finished cell has it, of a table of this name."""
        key = stored.record["parents"].get("reference")
        reference = store.get(key) if key else None
        return cls(name, record_of(stored), reference.title.removeprefix("train ") if reference else None)

    def as_json(self) -> dict[str, Any]:
        """The record without its images."""
        return {"audit": self.name, **without_images(self.record)}


Result = Audited


def audited(
    model: nn.Module,
    reference: nn.Module | None,
    data: Data,
    params: Mapping[str, Any],
    folder: Path,
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """An audit on the test split.

    Args:
        model, reference: see `brittle.audit`.
        data: its test split is attacked.
        params: OPTIONS, as `brittle.audit` has them.
        folder: for what is done, so that an audit that is killed goes on from there.
        progress: told attacks.

    Returns:
        `Audit.record()` as 'audit', and `Audit.images()` as the tensors 'pictures'.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, on copying an exported graph
        found = audit(
            model,
            data.test,
            reference=reference,
            checkpoint=folder / "audit.safetensors",
            progress=progress,
            **{name: params[name] for name in OPTIONS},
        )
    return {"audit": found.record()}, {"pictures": found.images()}


def record_of(stored: Stored) -> dict[str, Any]:
    """The record of a stored audit, each picture with its images, 'clean' and 'adversarial', (C, H, W)."""
    record, images = stored.scalars["audit"], stored.tensors("pictures")
    pairs = zip(record["pictures"], images["clean"], images["adversarial"], strict=True)
    pictures = [{**told, "clean": clean, "adversarial": adversarial} for told, clean, adversarial in pairs]
    return {**record, "pictures": pictures}


def without_images(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as JSON takes it."""
    images = ("clean", "adversarial")
    pictures = [{name: value for name, value in one.items() if name not in images} for one in record["pictures"]]
    return {**record, "pictures": pictures}


def run(cell: Cell, parents: Parents, context: Context) -> Outcome:
    """Whether the model is robust; see `audited`."""
    data = context.data(cell.place, cell.digest)
    model = loaded("model", cell, parents, context)
    reference = loaded("reference", cell, parents, context) if "reference" in parents else None
    return Outcome(*audited(model, reference, data, cell.params, context.folder(), context.progress))


def cost(cell: Cell, counts: Counts) -> Needs:
    """Of a model that falls to the first attacks, as those of the study quickstart do.

    In L-infinity and L2 these are the baseline attack, at length and at each bound of a curve; walks at the bounds
    below eps, which do not fool most rows; and checks of 100 rows in turn and of single ones. In L0 it is Carlini and
    Wagner's attack, once and for half of the rows again.
    """
    params, budget = cell.params, BUDGETS[cell.params["budget"]]
    rows, steps = min(params["rows"], len(counts.data.test)), budget.steps
    bounds = 4 if budget.probe else 7  # of the curves
    if params["norm"] == "l0":
        found = of_each_row(counts, "carlini_l0", {"max_iterations": 30, "restarts": 0}, None, False) * 1.5
        work = (found + Work(forwards=20, flips=counts.changes)) * rows
    else:
        gradients = steps * (4 * rows + bounds * rows + min(rows, 100) + min(rows, 16))
        work = Work(forwards=20 * rows, gradients=gradients)
    needs = [(cell.parents["model"], work)]
    if "reference" in cell.parents:  # undefended, so that a walk ends after a third of its steps
        needs.append((cell.parents["reference"], Work(gradients=steps * bounds * rows / 3)))
    return needs


FUNCTIONS = {"audit": Function(5, run, cost)}
