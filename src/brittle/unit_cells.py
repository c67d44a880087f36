"""What a study stores of a network's units: their gradients, how well these agree, and what goes when units go.

Units are whole maps or dense units, numbered from 0 through all layers that were asked for, in their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from brittle.data import Data
from brittle.progress import Progress, part
from brittle.softmax import SignedLog
from brittle.units import (
    KnockoutCurve,
    Unit,
    activity,
    class_gradient,
    convolutional_gradient,
    knockout_curves,
    knockout_orders,
    prediction_gradient,
    rank_agreement,
    rank_units,
)

KINDS = ("strongest", "weakest", "least active")  # of knockout curves, in the order in which they are stored; random
# ones follow
SCOPES = ("within", "overall", "within, held out", "overall, held out")  # which images an error is of
_AT_ONCE = 64  # images whose gradients are held before they are made norms: 17 MB of `lo_ding_faces`


def units(
    model: nn.Module, data: Data, params: Mapping[str, Any], device: torch.device, progress: Progress
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Gradients, rank agreement and knockout of the units of some layers.

    Args:
        model: (B, C, H, W) in [0, 1] -> (B, K).
        data: of each split the first `params["images"]` images are looked at; those of test are held out.
        params: 'layers', 'of', 'classes' (R of them, those whose units go), 'random' (D draws), 'seed' of the draws.
        device: to compute on.
        progress: told in three parts: gradients, each image's gradients, knockouts.

    Returns:
        Scalars: 'layers', the number of units of each.
        Tensors 'units', of N images, U units: 'profile' (K, U), log10 of the norm of a class's gradient; 'activity'
        (U,); 'each' (N, U), log10 of the norm of an image's gradient of its own class; 'labels' and 'held_out' (N,);
        'agreement' (K, K), the mean of Kendall's tau between the rankings of two images, of a class and another.
        Tensors 'knockout': 'wrong' (R, 3 + D, 4, U + 1), how many images are wrong after 0, 1, ... units have gone,
        by KINDS and then draws, and by SCOPES; 'total' (R, 4); 'moves' (R, U + 1, K, K), of the strongest, how many
        images of each class are taken for each class.
    """
    images, labels, held_out = (each.to(device) for each in _looked_at(data, params["images"]))
    layers, of = params["layers"], params["of"]
    told = part(progress, 0, 1, 10)
    profile = convolutional_gradient(class_gradient(model, images, labels, layers, of=of, progress=told))
    active = activity(model, images, layers)
    each = _each(model, images, labels, layers, of, part(progress, 1, 2, 10))
    orders = _orders(profile, active, params["classes"], params["random"], params["seed"])
    curves = knockout_curves(model, images, labels, orders, progress=part(progress, 2, 10, 10))
    scalars = {"layers": {name: gradient.log10.shape[1] for name, gradient in profile.items()}, "images": len(images)}
    stored = {
        "profile": _flat(profile),
        "activity": _flat(active)[0].mul(torch.log(torch.tensor(10.0))).exp(),
        "each": _flat(each),
        "labels": labels,
        "held_out": held_out,
        "agreement": _by_class(rank_agreement(each), labels, len(data.classes)),
    }
    return scalars, {"units": stored, "knockout": _counted(curves, params["classes"], params["random"], held_out)}


def _looked_at(data: Data, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and which are held out, those last, in the order of the test split."""
    splits = [data.train, data.validation, data.test]
    images = torch.cat([split.images[:most] for split in splits])
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
        gradient = prediction_gradient(model, images[rows], layers, classes=labels[rows], of=of)
        parts.append(convolutional_gradient(gradient))
        progress(int(rows[-1]) + 1, len(images))
    return {
        name: SignedLog(torch.cat([one[name].sign for one in parts]), torch.cat([one[name].log10 for one in parts]))
        for name in layers
    }


def _flat(gradients: Mapping[str, SignedLog]) -> Tensor:
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
