"""Knockout: what a model says without some of its units."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from brittle.errors import InputError
from brittle.measures import Share, share
from brittle.models.inference import at_once
from brittle.models.networks import frozen, parameter_dtype
from brittle.progress import Progress, barred, silent
from brittle.units.hooks import door, each_class, layer_of, named_layers, replaced
from brittle.units.unit import Ranked, Unit


@contextmanager
def knockout(model: nn.Module, units: Iterable[Unit]) -> Iterator[nn.Module]:
    """The same model, whose `units` put out 0 for as long as the context lasts: Lo and Ding, section V-C.

    Hooks do it: weights, modes and gradients stay as they are, and the hooks go whatever happens.

    Raises:
        InputError: if a layer does not exist; when the model is called, if a layer is not used or its output is no
            tensor, or if a unit is out of range.
    """
    with _silenced(model, [frozenset(units)]):
        yield model


@barred("knockout")
def predictions_without(
    model: nn.Module,
    images: Tensor,
    sets: Sequence[Collection[Unit]],
    *,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Tensor:
    """The class that the model gives each image without each of S sets of units: (S, N) int64.

    Sets that are the same are tried once. Several are tried in one forward pass, on copies of the images, and where
    the model is an `nn.Sequential` what lies ahead of a set's first layer is computed once for all sets.

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K), K >= 2.
        images: (N, C, H, W), float, in [0, 1].
        sets: of units to be knocked out together; an empty one is the whole model.
        batch_size: images a forward pass, copies counted.
        progress: told the images done, times sets; by default a bar is shown on a terminal and in a notebook.

    Raises:
        InputError: as `knockout` does, or if the images are not as above or do not fit the model.
    """
    progress = progress or silent
    distinct = list(dict.fromkeys(frozenset(each) for each in sets))
    layers = list(dict.fromkeys(unit.layer for each in distinct for unit in each))
    door(model, images, layers, some=False, batch_size=batch_size)
    batch_size = min(batch_size, at_once(model, images))
    stages, begin = _stages(model, layers)
    starts = [min((begin[unit.layer] for unit in each), default=len(stages)) for each in distinct]
    order = sorted(range(len(distinct)), key=starts.__getitem__)
    found = torch.empty(len(distinct), len(images), dtype=torch.int64, device=images.device)
    with frozen(model), torch.no_grad():
        for first in range(0, len(images), batch_size):
            rows = slice(first, min(first + batch_size, len(images)))
            current, at = images[rows].to(parameter_dtype(model), copy=True), 0
            for start, group in groupby(order, key=starts.__getitem__):
                current, at = _through(stages[at:start], current), start
                members = list(group)
                together = max(1, batch_size // len(current))
                for some in (members[i : i + together] for i in range(0, len(members), together)):
                    copies = current.repeat(len(some), *[1] * (current.ndim - 1))  # layers may work in place
                    with _silenced(model, [distinct[i] for i in some]):
                        found[some, rows] = _through(stages[start:], copies).argmax(1).view(len(some), -1)
            progress(rows.stop * len(sets), len(images) * len(sets))
    place = {each: i for i, each in enumerate(distinct)}
    return found[[place[frozenset(each)] for each in sets]]


@dataclass(frozen=True)
class KnockoutCurve:
    """What a model says of N images while its units go, one after another."""

    units: tuple[Unit, ...]  # in the order in which they go
    gone: tuple[int, ...]  # P numbers of units, from 0 to all
    labels: Tensor  # (N,) int64
    predictions: Tensor  # (P, N) int64, after so many units have gone
    classes: int  # K

    def errors(self, rows: Tensor | None = None) -> tuple[Share, ...]:
        """P shares of wrong images, of all or of `rows` (N,) bool: `labels == 6`, those held out, or both."""
        counted = torch.ones_like(self.labels, dtype=torch.bool) if rows is None else rows
        return tuple(share(wrong[counted]) for wrong in self.predictions != self.labels)

    def moves(self) -> Tensor:
        """(P, K, K) int64: how many images of each class (row) the model takes for each class (column).

        Its argmax over columns is what Lo and Ding, figure 3, draw: each class' most frequent prediction.
        """
        pairs = self.labels * self.classes + self.predictions
        counts = [torch.bincount(each, minlength=self.classes**2) for each in pairs]
        return torch.stack(counts).view(-1, self.classes, self.classes)


@barred("knockout")
def knockout_curves(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    orders: Mapping[str, Sequence[Unit]],
    *,
    points: int | None = None,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> dict[str, KnockoutCurve]:
    """Knocks units out one after another, those gone before staying out: Lo and Ding, sections V-C and V-D.

    Args:
        labels: (N,), int64, in 0..K-1.
        orders: for each curve the units in the order in which they go, such as `knockout_orders` gives.
        points: of each curve at most, at least 2, from none gone to all, closer together where few are gone; by
            default every number.

    The other arguments and errors are those of `predictions_without`.

    Returns:
        A curve for each order. Model and images are gone through once for all of them.
    """
    if points is not None and points < 2:
        raise InputError(f"points must be at least 2, from none gone to all, got {points}")
    outputs = door(model, images, [], some=False, batch_size=batch_size)
    labels = each_class(labels, images, outputs)
    gone = {name: _spread(len(order), points) for name, order in orders.items()}
    sets = [tuple(order)[:count] for name, order in orders.items() for count in gone[name]]
    found = predictions_without(model, images, sets, batch_size=batch_size, progress=progress)
    parts = found.split([len(each) for each in gone.values()])
    return {
        name: KnockoutCurve(tuple(order), gone[name], labels, part, outputs)
        for (name, order), part in zip(orders.items(), parts, strict=True)
    }


def _spread(last: int, points: int | None) -> tuple[int, ...]:
    """0..last, or at most so many of these numbers, with the first and the last; steps grow evenly."""
    if points is None or points > last:
        return tuple(range(last + 1))
    return tuple(sorted({round(last * (place / (points - 1)) ** 2) for place in range(points)}))


def knockout_orders(
    ranked: Sequence[Ranked], active: Sequence[Ranked], *, count: int | None = None, random: int = 1, seed: int = 0
) -> dict[str, tuple[Unit, ...]]:
    """The orders in which units go: Lo and Ding's two, and the controls that they lack.

    Args:
        ranked: units by their gradients, as `rank_units` gives them.
        active: the same units by their `activity`.
        count: units that go in each order, at least 1; all of them by default.
        random: how many random orders, at least 0; seed: of them.

    Returns:
        'strongest', 'weakest', 'least active', and 'random 1' and so on.

    Raises:
        InputError: if count or random is out of range, or `active` are other units than `ranked`.
    """
    units, by_activity = [each.unit for each in ranked], [each.unit for each in active]
    if set(units) != set(by_activity):
        raise InputError(f"expected the activity of the same {len(units)} units, got {len(by_activity)} that differ")
    if count is not None and not 1 <= count <= len(units):
        raise InputError(f"count must lie in 1..{len(units)}, got {count}")
    if random < 0:
        raise InputError(f"random must be at least 0, got {random}")
    orders = {"strongest": units, "weakest": units[::-1], "least active": by_activity[::-1]}
    generator = torch.Generator().manual_seed(seed)
    for number in range(1, random + 1):
        orders[f"random {number}"] = [units[i] for i in torch.randperm(len(units), generator=generator).tolist()]
    return {name: tuple(order[:count]) for name, order in orders.items()}


# Hooks ----------------------------------------------------------------------------------------------------------------


@contextmanager
def _silenced(model: nn.Module, sets: Sequence[frozenset[Unit]]) -> Iterator[None]:
    """The first of S equal parts of each batch goes through the model without the first set of units, and so on."""
    layers: dict[str, list[list[tuple[int, ...]]]] = {}
    for place, units in enumerate(sets):
        for unit in units:
            layers.setdefault(unit.layer, [[] for _ in sets])[place].append(unit.index)

    def silenced(name: str) -> Callable[[Tensor], Tensor]:
        def run(output: Tensor) -> Tensor:
            mask = _mask(name, layers[name], output)
            return output.unflatten(0, (len(sets), -1)).masked_fill(mask[:, None], 0).flatten(0, 1)

        return run

    with replaced(model, {name: silenced(name) for name in layers}):
        yield


def _mask(name: str, sets: Sequence[Sequence[tuple[int, ...]]], output: Tensor) -> Tensor:
    """(S, *units) bool, which units of a layer go in each set; (S, units, 1, ...) if all are whole maps."""
    shape = output.shape[1:]
    longest = max(len(index) for indices in sets for index in indices)
    mask = torch.zeros(len(sets), *shape[:longest], *[1] * (len(shape) - longest), dtype=torch.bool)
    for place, indices in enumerate(sets):
        for index in indices:
            if not 1 <= len(index) <= len(shape) or not all(0 <= i < n for i, n in zip(index, shape, strict=False)):
                raise InputError(f"unit {Unit(name, index)} is not there: layer {name!r} has units {tuple(shape)}")
            mask[(place, *index)] = True
    return mask.to(output.device)


def _stages(model: nn.Module, layers: Sequence[str]) -> tuple[list[nn.Module], dict[str, int]]:
    """Modules that, called one after another, are the model; and the first of them that uses each layer.

    A Sequential is taken apart unless something other than its parts hangs on its call: its own hooks, or ours.
    """
    named = {name: layer_of(named_layers(model), name) for name in layers}

    def apart(module: nn.Module) -> list[nn.Module]:
        hooked = module._forward_hooks or module._forward_pre_hooks or any(module is one for one in named.values())
        if type(module) is not nn.Sequential or hooked:
            return [module]
        return [stage for part in module for stage in apart(part)]

    stages = apart(model)
    within = [set(stage.modules()) for stage in stages]
    return stages, {name: next(i for i, parts in enumerate(within) if layer in parts) for name, layer in named.items()}


def _through(stages: Sequence[nn.Module], values: Tensor) -> Tensor:
    for stage in stages:
        values = stage(values)
    return values
