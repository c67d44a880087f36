"""One attack on some of a study's rows."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from brittle.attacks.all_targets import every_target
from brittle.attacks.packing import aims, pack
from brittle.attacks.pixel_flips import flip_logits
from brittle.attacks.result import AttackResult, logits_in_batches
from brittle.models.networks import Scaled
from brittle.study import lookup
from brittle.study.kinds.network.cell import loaded
from brittle.study.kinds.rows.cell import first_of_each_class
from brittle.study.store.cell import Cell, Context, Function, Outcome, Parents


def attack(cell: Cell, parents: Parents, context: Context) -> Outcome:
    """One attack on some of the rows, in every arithmetic that is asked for.

    An attack that takes `flips` gets the logits of all one-pixel changes, computed once for all arithmetics; one that
    takes `progress` is listened to. The first shard of a pixel attack also keeps the logits after each pixel, of one
    row a class, so that a page can show how a prediction gives way.
    """
    params = cell.params
    function = lookup.attack(params["function"], trust=True)
    model = loaded("model", cell, parents, context)
    if "temperature" in params:
        model = nn.Sequential(model, Scaled(1 / params["temperature"])).eval()
    rows = parents["rows"].tensors("rows")
    shard = attacked_rows(params)
    images, labels = rows["images"][shard].to(context.device), rows["labels"][shard].to(context.device)
    options = dict(params["options"])
    if lookup.takes(function, "progress"):
        options["progress"] = context.progress
    if lookup.takes(function, "flips"):
        clean = logits_in_batches(model, images)
        options["flips"] = flip_logits(model, images, clean, progress=context.progress)
    if params.get("targets") == "every":
        function = functools.partial(every_target, function)
    tensors, said = {}, {}
    for arithmetic in params["arithmetic"] or [None]:
        chosen = {} if arithmetic is None else {"arithmetic": arithmetic}
        found = function(model, images, labels, **options, **chosen)
        tensors[arithmetic or "result"], said = pack(found), aims(found)
        if found.pixels is not None and found.targets is None and params.get("start") == 0:
            tensors[f"{arithmetic or 'result'}.steps"] = _steps(model, found, first_of_each_class(labels))
    return Outcome({"rows": len(images)} | said, tensors)


def attacked_rows(params: Mapping[str, Any]) -> Tensor:
    """(n,) int64: which of the selected rows an attack cell with these parameters is for."""
    return torch.tensor(params["indices"] if "indices" in params else range(params["start"], params["stop"]))


def _steps(model: nn.Module, found: AttackResult, rows: Tensor) -> dict[str, Tensor]:
    """Rows (R,) and their logits (R, S + 1, K) at first and after each of their pixels, NaN when they have no more."""
    assert found.pixels is not None
    flips, pixels = found.flips[rows], found.pixels[rows]
    image, final = found.images[rows].flatten(2), found.adversarial[rows].flatten(2)
    each = [logits_in_batches(model, image.view_as(found.images[rows]))]
    for step in range(int(flips.max())):
        live = (step < flips).nonzero().flatten()
        pixel = pixels[live, step]
        image = image.clone()
        image[live, :, pixel] = final[live, :, pixel]
        logits = torch.full_like(each[0], torch.nan)
        logits[live] = logits_in_batches(model, image[live].view(-1, *found.images.shape[1:]))
        each.append(logits)
    return {"rows": rows, "logits": torch.stack(each, 1)}


FUNCTIONS = {"attack": Function(5, attack, versions={"brittle.attacks.carlini_l2": 6})}
