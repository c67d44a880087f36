"""What a study stores of a network's units: their gradients, how well these agree, and what goes when units go.

Units are whole maps or dense units, numbered from 0 through all layers that were asked for, in their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from brittle.data import Data
from brittle.errors import unknown
from brittle.models.inference import logits_in_batches
from brittle.models.softmax import SignedLog
from brittle.progress import Progress, part, silent
from brittle.study.kinds.network.cell import loaded, untrained
from brittle.study.kinds.table import ModelTable
from brittle.study.kinds.work import Counts, Function, Needs, Work
from brittle.study.store.cell import Cell, Context, Outcome, Parents
from brittle.study.store.store import Store, Stored
from brittle.units import (
    KnockoutCurve,
    Unit,
    activity,
    class_gradient,
    convolutional_gradient,
    knockout_curves,
    knockout_orders,
    outputs,
    prediction_gradient,
    rank_agreement,
    rank_units,
    telling_layers,
)

NAME = "units"  # of its tables in a study, of its part of a study's record and of results.json
KINDS = ("strongest", "weakest", "least active")  # of knockout curves, in the order in which they are stored; random
# ones follow
RANDOM = "random"  # beside KINDS, units that go in no order
SCOPES = ("within", "overall", "within, held out", "overall, held out")  # which images an error is of
SEEN, MAPS = 3, 6  # held-out images of a class whose feature maps are kept, and of how many units
_AT_ONCE = 64  # images whose gradients are held before they are made norms: 17 MB of `lo_ding_faces`


class Table(ModelTable):
    """Which units of the models matter: their gradients, and what goes when units go; see `units`."""

    layers: Annotated[list[str], Field(min_length=1)] | None = None  # by name, as `get_submodule` has them; of
    # convolutions whole maps; when not given, `units.telling_layers`
    of: Literal["softmax", "logits"] = "softmax"  # what is differentiated
    classes: list[str] | None = None  # by name, whose strongest and weakest units go; all when not given
    random: int = Field(default=10, ge=0)  # draws of units that go in no order
    points: int | None = Field(default=None, ge=2)  # of a curve, from none gone to all; when not given every number
    images: int = Field(default=1000, ge=1)  # of each split, at most: those of the test split are held out

    def params(self, model: Cell, data: Data) -> dict[str, Any]:
        """Layers and classes that are not given are those of the model and the data."""
        layers = self.layers or layers_of(model, data)
        return super().params(model, data) | {"layers": layers, "classes": _classes(self.classes, data)}


def layers_of(model: Cell, data: Data) -> list[str]:
    """Those worth asking about, of a model for which none are named."""
    return telling_layers(untrained(model, data), data.train[:1].images)


def _classes(names: Sequence[str] | None, data: Data) -> list[int]:
    """The places of classes among those of the data; of all when not given."""
    for name in names or []:
        if name not in data.classes:
            raise unknown(f"class of {data.name}", name, data.classes)
    return [data.classes.index(name) for name in names or data.classes]


@dataclass(frozen=True)
class Units:
    """How much each unit of a model matters, and what goes when units go; see `units`.

    U units, those of all layers side by side; N images, those that are held out last and in the report's order; R
    classes whose units go; D random draws; P points of a curve.
    """

    name: str
    layers: Mapping[str, int]  # the units of each
    output: str  # what was differentiated: 'softmax' or 'logits'
    classes: tuple[int, ...]  # R
    profile: Tensor  # (K, U) log10 of the norm of the class gradient
    each: Tensor  # (N, U) log10 of the norm of an image's gradient of its own class
    labels: Tensor  # (N,) int64
    held_out: Tensor  # (N,) bool
    agreement: Tensor  # (K, K) mean Kendall's tau of two images' rankings, by their classes
    gone: tuple[int, ...]  # P, how many units
    wrong: Tensor  # (R, len(KINDS) + D, len(SCOPES), P) images that are wrong once so many units have gone
    total: Tensor  # (R, len(SCOPES)), of so many
    moves: Tensor  # (R, P, K, K): the strongest gone, how many images of each class are taken for each class
    maps: Mapping[str, Tensor]  # what the strongest feature maps of each class show, see `units`

    @classmethod
    def of(cls, name: str, stored: Stored, store: Store) -> Self:
        """As a finished cell has it, of a table of this name."""
        units, knockout, params = stored.tensors("units"), stored.tensors("knockout"), stored.record["params"]
        return cls(
            name=name,
            layers=dict(stored.scalars["layers"]),
            output=params["of"],
            classes=tuple(params["classes"]),
            gone=tuple(stored.scalars["gone"]),
            maps=stored.tensors("maps"),
            **{each: units[each] for each in ("profile", "each", "labels", "held_out", "agreement")},
            **{each: knockout[each] for each in ("wrong", "total", "moves")},
        )

    def as_json(self) -> dict[str, Any]:
        """Gradients by class, and curves: the share of wrong images after so many units, the mean over the classes."""
        return {
            "units": self.name,
            "layers": self.layers,
            "of": self.output,
            "classes": self.classes,
            "log10_gradients": self.profile,
            "gone": self.gone,
            "wrong": {kind: {scope: self.errors(kind, scope).nanmean(0) for scope in SCOPES} for kind in self.kinds},
            "needed": {kind: self.needed(kind) for kind in self.kinds},
        }

    @property
    def kinds(self) -> tuple[str, ...]:
        """The orders in which units went: KINDS, and 'random' if there were draws."""
        return (*KINDS, RANDOM) if self.wrong.shape[1] > len(KINDS) else KINDS

    def errors(self, kind: str, scope: str) -> Tensor:
        """(R, P) share of wrong images, the mean over the draws for 'random'; NaN where there are none."""
        place = SCOPES.index(scope)
        which = slice(len(KINDS), None) if kind == RANDOM else slice(KINDS.index(kind), KINDS.index(kind) + 1)
        return self.wrong[:, which, place].double().mean(1) / self.total[:, place, None]

    def needed(self, kind: str) -> float:
        """Units that go until half of a class's images are wrong, mean over the classes; all if they never are."""
        lost = self.errors(kind, "within") >= 0.5
        first = torch.where(lost.any(1), lost.int().argmax(1), len(self.gone) - 1)
        return float(torch.tensor(self.gone)[first].double().mean())

    def unit(self, place: int) -> tuple[str, int]:
        """The layer of a unit, and its number there, from 0."""
        for layer, count in self.layers.items():
            if place < count:
                return layer, place
            place -= count
        raise IndexError(place)


Result = Units


def units(
    model: nn.Module, data: Data, params: Mapping[str, Any], device: torch.device, progress: Progress
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Gradients, rank agreement and knockout of the units of some layers.

    Args:
        model: (B, C, H, W) in [0, 1] -> (B, K).
        data: of each split the first `params["images"]` images are looked at; those of test are held out.
        params: 'layers', 'of', 'classes' (R of them, those whose units go), 'random' (D draws), 'seed' of the draws,
            'points' of the curves (P; None: U + 1).
        device: to compute on.
        progress: told in three parts: gradients, each image's gradients, knockouts.

    Returns:
        Scalars 'layers' and 'gone', and tensors, as `Units` has them: 'wrong', 'total' and 'moves' as 'knockout', the
        others as 'units', with 'activity' (U,).
        Tensors 'maps', of the first SEEN held-out images of each class and its MAPS strongest feature maps: 'places'
        (R, MAPS), which units, -1 where there are no more; 'rows' (R, SEEN), of the test split, -1 likewise; 'outputs'
        (R, SEEN, MAPS, H, W), with NaN beside maps that are smaller than the largest.
    """
    images, labels, held_out = (each.to(device) for each in _looked_at(data, params["images"]))
    layers, of = params["layers"], params["of"]
    told = part(progress, 0, 1, 10)
    profile = _of_all_classes(
        model, images, labels, class_gradient(model, images, labels, layers, of=of, progress=told)
    )
    active = activity(model, images, layers, progress=silent)
    each = _each(model, images, labels, layers, of, part(progress, 1, 2, 10))
    orders = _orders(profile, active, params["classes"], params["random"], params["seed"])
    told = part(progress, 2, 10, 10)
    curves = knockout_curves(model, images, labels, orders, points=params["points"], progress=told)
    scalars = {
        "layers": {name: gradient.log10.shape[1] for name, gradient in profile.items()},
        "images": len(images),
        "gone": list(next(iter(curves.values())).gone),
    }
    stored = {
        "profile": flat(profile),
        "activity": flat(active)[0].mul(torch.log(torch.tensor(10.0))).exp(),
        "each": flat(each),
        "labels": labels,
        "held_out": held_out,
        "agreement": _by_class(rank_agreement(each), labels, len(data.classes)),
    }
    knocked = _counted(curves, params["classes"], params["random"], held_out)
    maps = _maps(model, images[held_out], labels[held_out], stored["profile"], layers, params["classes"])
    return scalars, {"units": stored, "knockout": knocked, "maps": maps}


def _of_all_classes(
    model: nn.Module, images: Tensor, labels: Tensor, found: Mapping[str, SignedLog]
) -> dict[str, SignedLog]:
    """For each layer (K, units), the convolutional gradients found: 0 of classes without images."""
    classes, own = logits_in_batches(model, images[:1]).shape[1], labels.unique()
    whole = {}
    for name, values in convolutional_gradient(found).items():
        empty = torch.full((classes, values.log10.shape[1]), -torch.inf, dtype=torch.float64, device=images.device)
        sign = torch.zeros_like(empty, dtype=torch.int8).index_copy(0, own, values.sign)
        whole[name] = SignedLog(sign, empty.index_copy(0, own, values.log10))
    return whole


def _looked_at(data: Data, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and which are held out, those last, in the order of the test split."""
    splits = [data.train, data.validation, data.test]
    images = torch.cat([split[:most].images for split in splits])
    labels = torch.cat([split.labels[:most] for split in splits])
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[len(labels) - min(most, len(data.test)) :] = True
    return images, labels, held_out


def _each(
    model: nn.Module, images: Tensor, labels: Tensor, layers: Sequence[str], of: Any, progress: Progress
) -> dict[str, SignedLog]:
    """For each layer (N, units): each image's convolutional gradient of its own class."""
    parts = []
    for rows in torch.arange(len(images), device=images.device).split(_AT_ONCE):
        gradient = prediction_gradient(model, images[rows], layers, classes=labels[rows], of=of, progress=silent)
        parts.append(convolutional_gradient(gradient))
        progress(int(rows[-1]) + 1, len(images))
    return {name: SignedLog.cat([one[name] for one in parts]) for name in layers}


def _maps(
    model: nn.Module, images: Tensor, labels: Tensor, profile: Tensor, layers: Sequence[str], classes: Sequence[int]
) -> dict[str, Tensor]:
    """What the strongest maps of each class put out for its first images, of the held-out ones (n, C, H, W)."""
    chosen = [(labels == one).nonzero().flatten()[:SEEN] for one in classes]
    put_out = outputs(model, images[torch.cat(chosen)], layers)
    units = [(name, number) for name, each in put_out.items() for number in range(each.shape[1])]
    mapped = torch.tensor([put_out[name].ndim == 4 for name, _ in units])
    sides = [each.shape[2:] for each in put_out.values() if each.ndim == 4] or [(0, 0)]
    high, wide = (max(side) for side in zip(*sides, strict=True))
    places = torch.full((len(classes), MAPS), -1)
    rows = torch.full((len(classes), SEEN), -1)
    seen = torch.full((len(classes), SEEN, MAPS, high, wide), torch.nan)
    begin = 0
    for line, (one, own) in enumerate(zip(classes, chosen, strict=True)):
        rows[line, : len(own)] = own.cpu()
        order = profile[one].cpu().sort(descending=True, stable=True).indices
        for rank, place in enumerate(order[mapped[order]][:MAPS].tolist()):
            name, number = units[place]
            shown = put_out[name][begin : begin + len(own), number]
            places[line, rank] = place
            seen[line, : len(own), rank, : shown.shape[1], : shown.shape[2]] = shown.float()
        begin += len(own)
    return {"places": places, "rows": rows, "outputs": seen}


def flat(gradients: Mapping[str, SignedLog]) -> Tensor:
    """(R, U) log10, all layers side by side."""
    return torch.cat([gradient.log10 for gradient in gradients.values()], 1)


def _orders(
    profile: Mapping[str, SignedLog], active: Mapping[str, SignedLog], classes: Sequence[int], random: int, seed: int
) -> dict[str, tuple[Unit, ...]]:
    """By 'kind class', and random ones, which are the same for all classes, by their own name."""
    by_activity = rank_units(active)
    orders: dict[str, tuple[Unit, ...]] = {}
    for one in classes:
        drawn = 0 if orders else random
        found = knockout_orders(rank_units(profile, one), by_activity, random=drawn, seed=seed)
        orders |= {f"{name} {one}" if name in KINDS else name: units for name, units in found.items()}
    return orders


def _counted(
    curves: Mapping[str, KnockoutCurve], classes: Sequence[int], random: int, held_out: Tensor
) -> dict[str, Tensor]:
    wrong, total, moves = [], [], []
    for one in classes:
        names = [*(f"{kind} {one}" for kind in KINDS), *(f"random {draw + 1}" for draw in range(random))]
        labels = curves[names[0]].labels
        every, own = torch.ones_like(held_out), labels == one
        scopes = [own, every, own & held_out, held_out]
        errors = [[[each.count for each in curves[name].errors(rows)] for rows in scopes] for name in names]
        wrong.append(torch.tensor(errors, dtype=torch.int32))
        total.append(torch.stack([rows.sum() for rows in scopes]).int().cpu())
        moves.append(curves[names[0]].moves().int())
    return {"wrong": torch.stack(wrong), "total": torch.stack(total), "moves": torch.stack(moves)}


def _by_class(agreement: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(N, N) of pairs of images -> (K, K), the mean over pairs of different images; NaN where there are none."""
    pairs = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device) & agreement.isfinite()
    members = torch.nn.functional.one_hot(labels, classes).to(agreement)
    sums = members.T @ agreement.nan_to_num().mul(pairs) @ members
    return sums / (members.T @ pairs.to(agreement) @ members)


def run(cell: Cell, parents: Parents, context: Context) -> Outcome:
    """Which units matter, and what breaks when they go; see `units`."""
    data = context.data(cell.place, cell.digest)
    model = loaded("model", cell, parents, context)
    return Outcome(*units(model, data, cell.params, context.device, context.progress))


def cost(cell: Cell, counts: Counts) -> Needs:
    """Two gradients an image, and each image without each set of units that goes."""
    params, model, data = cell.params, cell.parents["model"], counts.data
    images = sum(min(params["images"], len(split)) for split in (data.train, data.validation, data.test))
    knocked = knockouts(cell, counts, len(params["classes"]) * len(KINDS) + params["random"])
    return [(model, Work(forwards=images * (1 + knocked), gradients=2 * images))]


def knockouts(cell: Cell, counts: Counts, curves: int) -> int:
    """Distinct sets of units that go along so many curves: all share the first, none of them, and the last."""
    outputs = counts.outputs(cell.parents["model"])
    units = sum(outputs.get(name, (1,))[0] for name in cell.params["layers"])
    points = min(cell.params["points"] or units + 1, units + 1)
    return curves * (points - 2) + 2


FUNCTIONS = {"units": Function(2, run, cost)}
