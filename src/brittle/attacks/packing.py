"""What is stored of an attack's result beside its clean images, and how it is read back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from brittle.attacks.result import AttackResult, Bound


def aims(found: AttackResult) -> dict[str, Any]:
    """What a result says of its attack, as a cell's scalars: norms are 0, 1, 2 or the text 'inf'."""

    def norm(p: float) -> int | str:
        return "inf" if math.isinf(p) else int(p)

    bound = None if found.bound is None else {"norm": norm(found.bound.norm), "eps": found.bound.eps}
    return {"minimises": None if found.minimises is None else norm(found.minimises), "bound": bound}


def pack(found: AttackResult) -> dict[str, Tensor]:
    """What must be stored of a result beside its clean images: a pixel attack's few pixels, or the whole images."""
    packed = {
        "success": found.success,
        "prediction": found.prediction,
        "forwards": found.forwards.int(),
        "backwards": found.backwards.int(),
    }
    if found.targets is not None:
        packed["targets"] = found.targets
    if found.pixels is None:
        return packed | {"adversarial": found.adversarial}
    pixels = found.pixels[:, : max(1, int(found.flips.max()))]
    levels = found.adversarial.flatten(2)[:, 0].gather(1, pixels.clamp(min=0))
    return packed | {"pixels": pixels.int(), "levels": levels.to(torch.uint8)}


def unpack(
    packed: Mapping[str, Tensor], images: Tensor, labels: Tensor, scalars: Mapping[str, Any] | None = None
) -> AttackResult:
    """The result that `pack` took apart, given its clean images and labels, and the cell's scalars for its aims."""
    told = scalars or {}
    minimises, bound = told.get("minimises"), told.get("bound")
    pixels, adversarial = packed.get("pixels"), packed.get("adversarial")
    if pixels is not None:
        pixels = pixels.long()
        flat = images.flatten(2).clone()
        row, place = (pixels >= 0).nonzero(as_tuple=True)
        flat[row, :, pixels[row, place]] = packed["levels"][row, place, None].to(flat.dtype)
        adversarial = flat.view_as(images)
    assert adversarial is not None
    return AttackResult(
        images=images,
        labels=labels,
        targets=packed.get("targets"),
        adversarial=adversarial,
        success=packed["success"],
        prediction=packed["prediction"],
        forwards=packed["forwards"].long(),
        backwards=packed["backwards"].long(),
        pixels=pixels,
        minimises=None if minimises is None else float(minimises),
        bound=None if bound is None else Bound(float(bound["norm"]), bound["eps"]),
    )
