"""What a study stores of brackets: of each test image the proved radius and the nearest adversarial image found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from brittle.certify import bracket
from brittle.certify.bracket import meets
from brittle.data import Data
from brittle.progress import Progress
from brittle.study.kinds.network.cell import loaded
from brittle.study.kinds.table import ModelTable
from brittle.study.kinds.work import Counts, Function, Needs, Work
from brittle.study.store.cell import Cell, Context, Outcome, Parents
from brittle.study.store.store import Store, Stored

NAME = "brackets"  # of its tables in a study, of its part of a study's record and of results.json
_PROOFS = 4  # balls in which bounds are computed, of an image
_VALUE = 0.15  # gradients that take as long as the bounds of one value of a network in one ball


class Table(ModelTable):
    """Brackets of the models; see `brittle.certify.bracket`."""

    norm: Literal["linf", "l2", "l1"] = "linf"
    images: int = Field(default=100, ge=1)  # of the test split, at most
    slopes: Literal["adaptive", "optimised"] = "adaptive"
    precision: float = Field(default=0.01, gt=0, le=1)  # of a radius
    evaluations: int = Field(default=1000, ge=1)  # of the attack, for an image
    shard_images: int = Field(default=20, ge=1)  # of a cell

    def params(self, model: Cell, data: Data) -> dict[str, Any]:
        """How images are taken together is seen in the parts."""
        return {name: value for name, value in super().params(model, data).items() if name not in _OF_PARTS}

    def parts(self, data: Data) -> Sequence[tuple[Mapping[str, Any], str]]:
        """A cell for each `shard_images` images."""
        count = min(self.images, len(data.test))
        ends = [(start, min(start + self.shard_images, count)) for start in range(0, count, self.shard_images)]
        return [({"start": start, "stop": stop}, f", images {start}..{stop - 1}") for start, stop in ends]


_OF_PARTS = ("images", "shard_images")


@dataclass(frozen=True)
class Bracketed:
    """Brackets of some test images of a model; see `brittle.certify.Bracket`."""

    name: str
    norm: str
    method: str
    start: int  # the first of the test images
    proved: Tensor  # (B,)
    found: Tensor  # (B,), inf where no adversarial image was found
    correct: Tensor  # (B,) bool

    @classmethod
    def of(cls, name: str, stored: Stored, store: Store) -> Self:
        """As a finished cell has it, of a table of this name."""
        params, tensors = stored.record["params"], stored.tensors("brackets")
        ends = {each: tensors[each] for each in ("proved", "found", "correct")}
        return cls(name, params["norm"], stored.scalars["method"], params["start"], **ends)

    def as_json(self) -> dict[str, Any]:
        """Both ends of each image; the upper one is null where no adversarial image was found."""
        return {
            "brackets": self.name,
            "norm": self.norm,
            "method": self.method,
            "first_image": self.start,
            "correct": self.correct.tolist(),
            "proved": self.proved,
            "found": [value if math.isfinite(value) else None for value in self.found.tolist()],
        }


Result = Bracketed


def in_words(parts: Sequence[Bracketed]) -> str:
    """What the brackets of a model come to, in a few sentences."""
    proved, found, right = (torch.cat([getattr(one, end) for one in parts]) for end in ("proved", "found", "correct"))
    said = f"{int(right.sum())} of {len(right)} images are classified correctly."
    if right.any():
        middle, known = float(proved[right].median()), float(found[right].median())
        upper = f"{known:.4g}" if math.isfinite(known) else "none was found"
        said += (
            f" Median proved radius: {middle:.4g} ({parts[0].norm}). Median distance of the nearest adversarial image "
        )
        said += f"found: {upper}. Both ends meet for {int(meets(proved, found)[right].sum())} images."
    return said


def brackets(
    model: nn.Module, data: Data, params: Mapping[str, Any], progress: Progress
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Brackets of the test images from `params["start"]` to `params["stop"]`.

    Returns:
        Scalars: 'method' and 'images'. Tensors 'brackets': 'proved', 'found', 'correct' (B,) and 'adversarial'
        (B, C, H, W).
    """
    some = slice(params["start"], params["stop"])
    options = {name: params[name] for name in ("norm", "slopes", "precision", "evaluations")}
    found = bracket(model, data.test.images[some], data.test.labels[some], progress=progress, **options)
    ends = {"proved": found.proved, "found": found.found, "correct": found.correct}
    scalars = {"method": found.certificate.method, "images": len(found.proved)}
    return scalars, {"brackets": {**ends, "adversarial": found.adversarial}}


def run(cell: Cell, parents: Parents, context: Context) -> Outcome:
    """How far no image fools the model, and which one does; see `brackets`."""
    data = context.data(cell.place, cell.digest)
    return Outcome(*brackets(loaded("model", cell, parents, context).cpu(), data, cell.params, context.progress))


def cost(cell: Cell, counts: Counts) -> Needs:
    """What the attack may take, and the bounds of all values in some balls, of each image."""
    params, model = cell.params, cell.parents["model"]
    values = sum(math.prod(shape) for shape in counts.outputs(model).values())
    each = params["evaluations"] + _PROOFS * _VALUE * values
    return [(model, Work(gradients=(params["stop"] - params["start"]) * each))]


FUNCTIONS = {"bracket": Function(1, run, cost)}
