"""What a study stores of the units that carry an adversarial change, and of what is left of it when they go.

Units are whole maps or dense units, numbered from 0 through all layers that were asked for, in their order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from brittle.attacks import pgd
from brittle.data import Data
from brittle.models.softmax import SignedLog
from brittle.progress import Progress, part, silent
from brittle.study.kinds.network.cell import loaded
from brittle.study.kinds.table import ModelTable
from brittle.study.kinds.units.cell import RANDOM, flat, knockouts, layers_of
from brittle.study.kinds.work import Counts, Function, Needs, Work
from brittle.study.store.cell import Cell, Context, Outcome, Parents
from brittle.study.store.store import Store, Stored
from brittle.units import knockout_curves, prediction_gradient, rank_agreement, rank_units
from brittle.units.gradients import norm_of_maps

NAME = "carriers"  # of its tables in a study, of its part of a study's record and of results.json
ORDERS = ("carriers", "important")  # in which units go, as they are stored; random ones follow
SIDES = ("clean", "adversarial")  # the images that are counted
_AT_ONCE = 64  # images whose gradients are held at once


class Table(ModelTable):
    """Which units of the models carry an adversarial change; see `carriers`."""

    layers: Annotated[list[str], Field(min_length=1)] | None = None  # as in [units]
    eps: float = Field(default=0.3, gt=0, le=1)  # of the change, L-infinity
    images: int = Field(default=200, ge=1)  # of the test split, at most
    random: int = Field(default=5, ge=0)  # draws of units that go in no order
    points: int | None = Field(default=None, ge=2)  # as in [units]

    def params(self, model: Cell, data: Data) -> dict[str, Any]:
        """Layers that are not given are those of the model."""
        return super().params(model, data) | {"layers": self.layers or layers_of(model, data)}


@dataclass(frozen=True)
class Carriers:
    """Which units carry an adversarial change to a model, and what is left of it when they go; see `carriers`.

    P points of a curve; D random draws.
    """

    name: str
    eps: float
    layers: Mapping[str, int]  # the units of each
    images: int  # that the model had right and the change fooled it on
    tried: int  # that the model had right
    agreement: float  # Kendall's tau of the order by what units carry and by how important they are; NaN if unknown
    gone: tuple[int, ...]  # P, how many units
    right: Tensor  # (len(ORDERS) + D, len(SIDES), P) of so many images

    @classmethod
    def of(cls, name: str, stored: Stored, store: Store) -> Self:
        """As a finished cell has it, of a table of this name."""
        scalars = stored.scalars
        agreement = math.nan if scalars["agreement"] is None else float(scalars["agreement"])
        told = {each: scalars[each] for each in ("layers", "images", "tried")}
        right, gone = stored.tensors("carriers")["right"], tuple(scalars["gone"])
        return cls(name, stored.record["params"]["eps"], **told, agreement=agreement, gone=gone, right=right)

    def as_json(self) -> dict[str, Any]:
        """Curves: the share of clean and of adversarial images that are right after so many units."""
        orders = (*ORDERS, RANDOM) if len(self.right) > len(ORDERS) else ORDERS
        return {
            "carriers": self.name,
            "eps": self.eps,
            "layers": self.layers,
            "fooled": self.images,
            "tried": self.tried,
            "agreement": self.agreement,
            "gone": self.gone,
            "right": {order: {side: self.share(order, side) for side in SIDES} for order in orders},
        }

    def share(self, order: str, side: str) -> Tensor:
        """(P,) share of the images that are right, the mean over the draws for 'random'; NaN where there are none."""
        which = slice(len(ORDERS), None) if order == RANDOM else slice(ORDERS.index(order), ORDERS.index(order) + 1)
        return self.right[which, SIDES.index(side)].double().mean(0) / self.images

    def restored(self, order: str, cost: float) -> float:
        """The largest share of adversarial images made right again while at most `cost` of the clean ones are lost."""
        affordable = self.share(order, "clean") >= 1 - cost
        return float(self.share(order, "adversarial")[affordable].max())


Result = Carriers


def carriers(
    model: nn.Module, data: Data, params: Mapping[str, Any], device: torch.device, progress: Progress
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Which units an adversarial change goes through, and whether knocking them out undoes it.

    Images that the model has right are moved by projected gradient descent on the margin, to the end of its walk: a
    change that stops at the border would be undone by anything. A unit carries as much as the gradient of the flipped
    decision, z_wrong - z_label at the adversarial image, has there, over positions and then in the mean over images;
    it is as important as the gradient of z_label at the clean image.

    Args:
        model: (B, C, H, W) in [0, 1] -> (B, K).
        data: the first `params["images"]` images of the test split are looked at.
        params: 'layers', 'eps' (L-infinity), 'random' (D draws), 'seed' of them and of the walk, 'points' of the curves
            (P).
        device: to compute on.
        progress: told in three parts: the walk, gradients, knockouts.

    Returns:
        Scalars: 'layers', the number of units of each; 'gone' (P,); 'images', n that the model had right and the walk
        fooled, of 'tried'; 'agreement', Kendall's tau of the two rankings, None where no image was fooled.
        Tensors 'carriers': 'carriers' and 'important' (U,), log10; 'right' (2 + D, 2, P), how many of the n images the
        model has right when so many units are gone, by ORDERS and then draws, and by SIDES.
    """
    test = data.test[: params["images"]].to(device)
    images, labels = test.images, test.labels
    told = part(progress, 0, 3, 10)
    walked = pgd(
        model, images, labels, eps=params["eps"], loss="margin", keep="last", seed=params["seed"], progress=told
    )
    took = walked.success & ~walked.trivial
    images, moved, labels = images[took], walked.adversarial[took], labels[took]
    scalars: dict[str, Any] = {"images": len(images), "tried": int((~walked.trivial).sum()), "agreement": None}
    if not len(images):
        nothing = torch.zeros(len(ORDERS) + params["random"], len(SIDES), 0, dtype=torch.int32)
        return scalars | {"layers": {}, "gone": []}, {"carriers": {"right": nothing}}
    told = part(progress, 3, 5, 10)
    flip, own = _gradients(model, images, moved, labels, walked.prediction[took], params["layers"], told)
    orders = {"carriers": flip, "important": own} | _random(own, params["random"], params["seed"])
    curves = knockout_curves(
        model,
        torch.cat([images, moved]),
        torch.cat([labels, labels]),
        {name: [each.unit for each in rank_units(values)] for name, values in orders.items()},
        points=params["points"],
        progress=part(progress, 5, 10, 10),
    )
    right = [(curve.predictions == curve.labels).unflatten(1, (2, -1)).sum(2).T for curve in curves.values()]
    both = {name: SignedLog.cat([flip[name], own[name]]) for name in flip}
    scalars |= {
        "layers": {name: values.log10.shape[1] for name, values in flip.items()},
        "gone": list(curves["carriers"].gone),
        "agreement": float(rank_agreement(both)[0, 1]),
    }
    stored = {"carriers": flat(flip)[0], "important": flat(own)[0], "right": torch.stack(right).int().cpu()}
    return scalars, {"carriers": stored}


def _gradients(
    model: nn.Module,
    images: Tensor,
    moved: Tensor,
    labels: Tensor,
    wrong: Tensor,
    layers: Sequence[str],
    progress: Progress,
) -> tuple[dict[str, SignedLog], dict[str, SignedLog]]:
    """For each layer (1, units), means over images: of the flipped decision, and of the own logit before."""
    flip = {name: torch.zeros(()) for name in layers}
    own = dict(flip)
    for rows in torch.arange(len(images), device=images.device).split(_AT_ONCE):
        for_wrong, for_own, at_first = (
            prediction_gradient(model, of_images[rows], layers, classes=classes[rows], of="logits", progress=silent)
            for of_images, classes in ((moved, wrong), (moved, labels), (images, labels))
        )
        for name in layers:
            flip[name] = flip[name] + norm_of_maps(for_wrong[name].float() - for_own[name].float()).sum(0, keepdim=True)
            own[name] = own[name] + norm_of_maps(at_first[name].float()).sum(0, keepdim=True)
        progress(int(rows[-1]) + 1, len(images))
    flipped, before = ({name: SignedLog.of(sums[name] / len(images)) for name in layers} for sums in (flip, own))
    return flipped, before


def _random(like: Mapping[str, SignedLog], draws: int, seed: int) -> dict[str, dict[str, SignedLog]]:
    """Units ranked by chance."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"random {draw + 1}": {
            name: SignedLog.of(torch.rand(values.log10.shape, generator=generator)) for name, values in like.items()
        }
        for draw in range(draws)
    }


def run(cell: Cell, parents: Parents, context: Context) -> Outcome:
    """Which units carry an adversarial change; see `carriers`."""
    data = context.data(cell.place, cell.digest)
    model = loaded("model", cell, parents, context)
    return Outcome(*carriers(model, data, cell.params, context.device, context.progress))


def cost(cell: Cell, counts: Counts) -> Needs:
    """A walk of 40 steps and three gradients an image, then images before and after without each set of units."""
    images = min(cell.params["images"], len(counts.data.test))
    knocked = knockouts(cell, counts, len(ORDERS) + cell.params["random"])
    return [(cell.parents["model"], Work(forwards=len(SIDES) * images * knocked, gradients=(40 + 3) * images))]


FUNCTIONS = {"carriers": Function(2, run, cost)}
