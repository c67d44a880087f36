"""One attack on some of a study's rows."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from brittle.attacks.all_targets import every_target
from brittle.attacks.packing import aims, pack
from brittle.attacks.pixel_flips import LEVELS, flip_logits
from brittle.attacks.result import AttackResult, logits_in_batches
from brittle.models.networks import Scaled
from brittle.study import lookup
from brittle.study.kinds.network.cell import loaded
from brittle.study.kinds.rows.cell import first_of_each_class
from brittle.study.kinds.work import Counts, Function, Needs, Work, options_of
from brittle.study.store.cell import Cell, Context, Outcome, Parents

UNKNOWN = 100  # gradients a row of an attack that is not brittle's own

SHARED = 2**28  # logits of one-pixel changes that are kept for all arithmetics: 1 GiB


def attack(cell: Cell, parents: Parents, context: Context) -> Outcome:
    """One attack on some of the rows, in every arithmetic that is asked for.

    An attack that takes `flips` gets the logits of all one-pixel changes, computed once for all arithmetics, unless
    there are too many to be kept; one that takes `progress` is listened to. The first shard of a pixel attack also
    keeps the logits after each pixel, of one row a class, so that a page can show how a prediction gives way.
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
        if len(LEVELS) * clean.numel() * images[0, 0].numel() <= SHARED:
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


def cost(cell: Cell, counts: Counts) -> Needs:
    """What the attack does for each of its rows, in each arithmetic."""
    params, model = cell.params, cell.parents["model"]
    taken = options_of(params["function"])
    given = {name: value for name, value in taken.items() if value is not inspect.Parameter.empty}
    options = {**given, **params["options"]}
    home, _, name = params["function"].rpartition(".")
    own = name if home in ("", "brittle.attacks") else ""  # somebody else's has no name here
    shard = len(attacked_rows(params))
    rows = shard * (counts.classes - 1 if params.get("targets") == "every" else 1)
    tempered = model.params.get("temperature", 1.0) > 1 and "temperature" not in params
    work = Work(flips=shard * counts.changes) if "flips" in taken else Work()
    for arithmetic in params["arithmetic"] or [options.get("arithmetic")]:
        blind = arithmetic == "float32" and tempered
        work += of_each_row(counts, own, options, arithmetic, blind) * rows
        if (
            "max_pixels" in options and params.get("start") == 0 and rows == shard
        ):  # pixel by pixel, a row of each class
            work += Work(forwards=counts.classes * _trials(counts, options, arithmetic, blind))
    return [(model, work)]


def _trials(counts: Counts, options: Mapping[str, Any], arithmetic: str | None, blind: bool) -> float:
    """Pixels that Song's attacks set in a row, of `max_pixels`: in the study song-2017."""
    share = 0.95 if blind else 0.65 if arithmetic == "float32" else 0.45
    return share * min(options["max_pixels"], counts.pixels)


def of_each_row(counts: Counts, name: str, options: Mapping[str, Any], arithmetic: str | None, blind: bool) -> Work:
    """What an attack does for a row, in one arithmetic; `blind`: in float32, on a network that saturates.

    Maps of `song_4` are those of the studies song-2017 and song-2017-code, rounds of `carlini_l0` of mandal-guo.
    """
    if name in ("song_1", "song_2", "song_3"):
        return Work(forwards=_trials(counts, options, arithmetic, blind), gradients=name != "song_2")
    if name == "song_4":
        maps = 12.0 if options["signed"] else 7.0
        if arithmetic == "float32" and not options["signed"]:
            most = min(options["max_pixels"], counts.pixels)
            maps = (1.0 if blind else 4.0) if options["stop_at_zeros"] else (0.95 if blind else 0.2) * most
        anew = max(0.0, maps / options["refresh_every"] - 1)  # the first is shared by all arithmetics
        return Work(forwards=2 * maps, flips=anew * counts.changes)
    if name == "carlini_l0":
        return Work(gradients=18 * options["max_iterations"] * (1 + options["restarts"]))
    if name in ("carlini_l2", "carlini_linf"):
        return Work(gradients=options["max_iterations"] * (options["binary_search_steps"] + options["restarts"]))
    if name in ("fgsm", "pgd"):
        return Work(forwards=2, gradients=options.get("steps", 1) * options.get("restarts", 1))
    if name in ("square", "noise"):
        return Work(forwards=options["queries" if name == "square" else "draws"])
    if name in ("linear_mask", "borrowed_mask", "transferred"):
        return Work(forwards=len(options["etas"]), gradients=1)
    if name == "class_mask":
        return Work(forwards=2, gradients=options["epochs"])
    return Work(gradients=UNKNOWN)


VERSIONS = {"brittle.attacks.carlini_l0": 6, "brittle.attacks.carlini_l2": 7, "brittle.attacks.carlini_linf": 6}
FUNCTIONS = {"attack": Function(5, attack, cost, versions=VERSIONS)}
