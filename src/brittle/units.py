"""Which units of a network matter: gradients of its outputs with respect to any unit, and what goes when units go.

Lo and Ding, sections III and V. A layer is named as `model.get_submodule` names it, and a unit by its place in that
layer's output. A convolutional layer's unit is a whole map, or one position of it; a dense layer's is one number. A
layer that the model uses several times has the same units each time: their gradients are added up, and they are knocked
out together.

The softmax's gradients are exact: a network trained at T = 20 and read at T = 1 has some of 1e-40, and what a float
cannot hold comes as a `SignedLog`, its sign and the log10 of its magnitude. With m the log-odds against class i
(`softmax.log_odds`), F_i = sigmoid(-m), so that

    dF_i/do = -F_i (1 - F_i) dm/do,

where dm/do keeps its scale and the factor is known by its logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F

from brittle.errors import InputError, unknown
from brittle.measures import Share, share
from brittle.networks import frozen, logits_of, parameter_dtype
from brittle.progress import Progress, silent
from brittle.softmax import LN10, SignedLog, check_temperature, log_odds

Output = Literal["softmax", "logits"]


@dataclass(frozen=True)
class Unit:
    """A unit by its layer's name and its place in the layer's output, from 0: (map,), (map, row, column) or (unit,)."""

    layer: str
    index: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.layer}[{', '.join(map(str, self.index))}]"


@dataclass(frozen=True)
class Ranked:
    """A unit and what it was ranked by."""

    unit: Unit
    log10: float  # of the magnitude; -inf if it is 0

    @property
    def value(self) -> float:
        """The magnitude; 0 below about 5e-324."""
        return 10.0**self.log10


# Gradients ------------------------------------------------------------------------------------------------------------


def prediction_gradient(
    model: nn.Module,
    images: Tensor,
    layers: Sequence[str],
    *,
    classes: Tensor | int | None = None,
    of: Output = "softmax",
    temperature: float = 1.0,
    batch: int = 32,
    progress: Progress = silent,
) -> dict[str, SignedLog]:
    """dy_i/do for every unit o of the named layers: Lo and Ding, equation (1).

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K), K >= 2.
        images: (N, C, H, W), float, in [0, 1].
        layers: names of layers whose output is one tensor (B, units, ...).
        classes: i of each image, (N,) int64, or one for all; None for every class.
        of: what y is: 'softmax', exact, or 'logits'.
        temperature: at which the softmax is read, > 0; of no account to logits.
        batch: images at a time.
        progress: told the images done.

    Returns:
        For each layer (N, *units), or (N, K, *units) for every class.

        One class costs one forward and one backward pass for all layers. Another class whose share of m is under the
        float's rounding then adds nothing; for every class, by K backward passes, each is told apart whatever its size.

    Raises:
        InputError: if a layer does not exist, is not used, or gives something other than a tensor; if images, classes
            or an option are not as above, or the images do not fit the model.
    """
    outputs = _door(model, images, layers)
    _check_options(of, temperature)
    wanted = None if classes is None else _each(classes, images, outputs)
    parts: list[dict[str, SignedLog]] = []
    for start in range(0, len(images), batch):
        rows = images[start : start + batch]
        if wanted is None:
            parts.append(_every_class(model, rows, layers, of, temperature))
        else:
            values, log = _one_class(model, rows, wanted[start : start + batch], layers, of, temperature)
            parts.append({name: SignedLog.of(value, _wide(log, value.ndim)) for name, value in values.items()})
        progress(start + len(rows), len(images))
    return {name: _joined([part[name] for part in parts]) for name in layers}


def class_gradient(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    layers: Sequence[str],
    *,
    classes: Sequence[int] | None = None,
    of: Output = "softmax",
    temperature: float = 1.0,
    of_maps: bool = False,
    batch: int = 32,
    progress: Progress = silent,
) -> dict[str, SignedLog]:
    """The mean of dy_t/do over the images of each class t: Lo and Ding, equation (3), its element t.

    Args:
        labels: (N,), int64, in 0..K-1.
        classes: those that are wanted, all K by default; images of others cost nothing.
        of_maps: average the images' convolutional gradients instead of their gradients. Gradients of opposite signs
            then do not cancel.

    The other arguments and errors are those of `prediction_gradient`.

    Returns:
        For each layer (R, *units), or (R, units) `of_maps`, one row for each of the R classes that are wanted. One
        forward and one backward pass for all images and layers; memory does not grow with the number of images.

    Raises:
        InputError: also if a class has no images.
    """
    outputs = _door(model, images, layers)
    _check_options(of, temperature)
    labels = _each(labels, images, outputs)
    wanted = list(range(outputs) if classes is None else classes)
    rows, place = _members(labels, wanted, outputs)
    means = _Means(len(wanted), images.device)
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        values, log = _one_class(model, images[some], labels[some], layers, of, temperature)
        if of_maps:
            values = {name: _norm_of_maps(value) for name, value in values.items()}
        means.add(values, log, place[start : start + batch])
        progress(start + len(some), len(rows))
    return means.result()


def convolutional_gradient(gradients: Mapping[str, SignedLog]) -> dict[str, SignedLog]:
    """The Frobenius norm of each map's gradients, (R, maps, ...) -> (R, maps): Lo and Ding, section III-D.

    A dense layer's (R, units) become magnitudes.
    """
    found = {}
    for name, gradient in gradients.items():
        log = gradient.log10 * LN10
        if log.ndim > 2:
            log = torch.logsumexp(2 * log.flatten(2), 2) / 2
        found[name] = SignedLog((log > -torch.inf).to(torch.int8), log / LN10)
    return found


def activity(
    model: nn.Module, images: Tensor, layers: Sequence[str], *, batch: int = 32, progress: Progress = silent
) -> dict[str, SignedLog]:
    """How much each map or dense unit puts out: the mean of |o| over images and positions.

    Arguments and errors are those of `prediction_gradient`.

    Returns:
        For each layer (1, units), which `rank_units` takes.
    """
    _door(model, images, layers)
    totals: dict[str, Tensor] = {}
    numbers = dict.fromkeys(layers, 0)

    def watched(name: str) -> Callable[[Tensor], Tensor]:
        def run(output: Tensor) -> Tensor:
            sizes = output.abs().sum((0, *range(2, output.ndim))).double()
            totals[name] = sizes + (_same_shape(name, totals[name], sizes) if name in totals else 0)
            numbers[name] += output[:, 0].numel()
            return output

        return run

    with frozen(model), torch.no_grad(), _replaced(model, {name: watched(name) for name in layers}):
        for start in range(0, len(images), batch):
            logits_of(model, images[start : start + batch])
            progress(min(start + batch, len(images)), len(images))
    return {name: SignedLog.of((totals[name] / numbers[name])[None]) for name in layers}


def outputs(model: nn.Module, images: Tensor, layers: Sequence[str], *, batch: int = 32) -> dict[str, Tensor]:
    """What the units put out: for each layer (N, units, ...), on the CPU; of one that is used again, the last.

    Arguments and errors are those of `prediction_gradient`.
    """
    _door(model, images, layers)
    parts: list[dict[str, Tensor]] = []

    def kept(name: str) -> Callable[[Tensor], Tensor]:
        def run(output: Tensor) -> Tensor:
            parts[-1][name] = output.cpu()
            return output

        return run

    with frozen(model), torch.no_grad(), _replaced(model, {name: kept(name) for name in layers}):
        for some in images.split(batch):
            parts.append({})
            logits_of(model, some)
    return {name: torch.cat([part[name] for part in parts]) for name in layers}


def telling_layers(model: nn.Module, image: Tensor) -> list[str]:
    """Layers worth asking about: the activations after convolutions; if there are none, all; if there are none, all
    convolutions and dense layers but the last.

    Args:
        model: images in [0, 1] to logits.
        image: (1, C, H, W).

    Returns:
        Names in the order in which they are called, each once.

    Raises:
        InputError: if the model cannot take the image, or has no such layer.
    """
    called: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def run(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim >= 2 and output.is_floating_point():
                called.setdefault(name, output)

        return run

    leaves = {name: layer for name, layer in model.named_modules() if name and not any(True for _ in layer.children())}
    handles = [layer.register_forward_hook(note(name)) for name, layer in leaves.items()]
    try:
        _door(model, image, (), some=False)
    finally:
        for handle in handles:
            handle.remove()
    active = [name for name in called if type(leaves[name]).__module__ == "torch.nn.modules.activation"]
    maps = [name for name in active if called[name].ndim == 4]
    weighted = [name for name in called if isinstance(leaves[name], nn.Conv2d | nn.Linear)][:-1]
    if not (maps or active or weighted):
        raise InputError(f"the model has no layer to ask about among {', '.join(called) or 'none'}: name some")
    return maps or active or weighted


def rank_units(gradients: Mapping[str, SignedLog], row: int = 0) -> list[Ranked]:
    """All units by the magnitude of their gradient, the strongest first; of equals those of earlier layers.

    Args:
        gradients: for each layer (R, ...): what `convolutional_gradient` gives, to rank maps; what `class_gradient`
            gives, to rank single positions; or what `activity` gives.
        row: of the R, from 0.

    Raises:
        InputError: if there is no such row.
    """
    units: list[Unit] = []
    sizes: list[Tensor] = []
    for name, gradient in gradients.items():
        if not 0 <= row < len(gradient.log10):
            raise InputError(f"row must lie in 0..{len(gradient.log10) - 1}, got {row}")
        log10 = gradient.log10[row].cpu()
        units += [Unit(name, tuple(index)) for index in torch.ones_like(log10).nonzero().tolist()]
        sizes.append(log10.flatten())
    if not units:
        return []
    order = torch.cat(sizes).sort(descending=True, stable=True)
    return [Ranked(units[at], size) for at, size in zip(order.indices.tolist(), order.values.tolist(), strict=True)]


def rank_agreement(gradients: Mapping[str, SignedLog]) -> Tensor:
    """Kendall's tau-b between the rankings of all units by each two of R rows: (R, R) float64, in [-1, 1].

    Takes what `rank_units` takes. NaN where all units of a row are equal. Memory grows with the square of the units.
    """
    sizes = torch.cat([gradient.log10.flatten(1) for gradient in gradients.values()], 1)
    one, other = torch.triu_indices(sizes.shape[1], sizes.shape[1], 1)
    order = torch.sign(sizes[:, one] - sizes[:, other]).nan_to_num().double()  # -inf - -inf: two zeros are equal
    untied = order.abs().sum(1)
    return order @ order.T / (untied[:, None] * untied).sqrt()


# Knockout -------------------------------------------------------------------------------------------------------------


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


def predictions_without(
    model: nn.Module,
    images: Tensor,
    sets: Sequence[Collection[Unit]],
    *,
    batch: int = 256,
    progress: Progress = silent,
) -> Tensor:
    """The class that the model gives each image without each of S sets of units: (S, N) int64.

    Sets that are the same are tried once. Several are tried in one forward pass, on copies of the images, and where
    the model is an `nn.Sequential` what lies ahead of a set's first layer is computed once for all sets.

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K), K >= 2.
        images: (N, C, H, W), float, in [0, 1].
        sets: of units to be knocked out together; an empty one is the whole model.
        batch: images a forward pass, copies counted.
        progress: told the images done, times sets.

    Raises:
        InputError: as `knockout` does, or if the images are not as above or do not fit the model.
    """
    distinct = list(dict.fromkeys(frozenset(each) for each in sets))
    layers = list(dict.fromkeys(unit.layer for each in distinct for unit in each))
    _door(model, images, layers, some=False)
    stages, begin = _stages(model, layers)
    starts = [min((begin[unit.layer] for unit in each), default=len(stages)) for each in distinct]
    order = sorted(range(len(distinct)), key=starts.__getitem__)
    found = torch.empty(len(distinct), len(images), dtype=torch.int64, device=images.device)
    with frozen(model), torch.no_grad():
        for first in range(0, len(images), batch):
            rows = slice(first, min(first + batch, len(images)))
            current, at = images[rows].to(parameter_dtype(model), copy=True), 0
            for start, group in groupby(order, key=starts.__getitem__):
                current, at = _through(stages[at:start], current), start
                members = list(group)
                together = max(1, batch // len(current))
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


def knockout_curves(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    orders: Mapping[str, Sequence[Unit]],
    *,
    points: int | None = None,
    batch: int = 256,
    progress: Progress = silent,
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
    outputs = _door(model, images, [], some=False)
    labels = _each(labels, images, outputs)
    gone = {name: _spread(len(order), points) for name, order in orders.items()}
    sets = [tuple(order)[:count] for name, order in orders.items() for count in gone[name]]
    found = predictions_without(model, images, sets, batch=batch, progress=progress)
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


# The request ----------------------------------------------------------------------------------------------------------


def _door(model: nn.Module, images: Tensor, layers: Sequence[str], *, some: bool = True) -> int:
    """Checks a request, with one image put through the model, and gives K."""
    if images.ndim != 4 or not images.is_floating_point() or len(images) == 0:
        raise InputError(f"images must be (N, C, H, W), floating and some, got {tuple(images.shape)} {images.dtype}")
    low, high = images.min().item(), images.max().item()
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # written so that NaN fails it
        raise InputError(f"images must lie in [0, 1], got [{low:.3g}, {high:.3g}]")
    if isinstance(layers, str) or (some and not layers):
        raise InputError(f"layers must be the names of at least one layer, got {layers!r}")
    try:
        with frozen(model), torch.no_grad(), _replaced(model, dict.fromkeys(layers, lambda output: output)):
            logits = logits_of(model, images[:1])
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise InputError(f"the model cannot take images of shape {tuple(images.shape[1:])}: {first}") from error
    if logits.ndim != 2 or len(logits) != 1 or logits.shape[1] < 2:
        raise InputError(f"the model must return logits (1, K) with K >= 2 for an image, got {tuple(logits.shape)}")
    return logits.shape[1]


def _check_options(of: str, temperature: float) -> None:
    if of not in get_args(Output):
        raise unknown("output", of, get_args(Output))
    check_temperature(temperature)


def _each(classes: Tensor | int, images: Tensor, outputs: int) -> Tensor:
    """(N,) int64: the class of each image, on its device."""
    if isinstance(classes, int):
        classes = torch.full((len(images),), classes)
    if classes.dtype != torch.int64 or classes.shape != images.shape[:1]:
        expected = f"int64 with one entry an image, ({len(images)},)"
        raise InputError(f"classes must be {expected}, got {tuple(classes.shape)} {classes.dtype}")
    low, high = classes.min().item(), classes.max().item()
    if not 0 <= low <= high < outputs:
        raise InputError(f"classes must lie in 0..{outputs - 1}, as the model has {outputs} outputs, got {low}..{high}")
    return classes.to(images.device)


def _members(labels: Tensor, classes: Sequence[int], outputs: int) -> tuple[Tensor, Tensor]:
    """The images of the wanted classes, (n,), class after class; and the place of each one's among them, (n,)."""
    if not classes or len(set(classes)) < len(classes) or not all(0 <= each < outputs for each in classes):
        raise InputError(f"classes must be different ones in 0..{outputs - 1}, got {list(classes)}")
    places = torch.full((outputs,), -1, device=labels.device)
    places[list(classes)] = torch.arange(len(classes), device=labels.device)
    for each, number in zip(classes, torch.bincount(labels, minlength=outputs)[list(classes)].tolist(), strict=True):
        if number == 0:
            raise InputError(f"class {each} has none of the {len(labels)} images")
    order = places[labels].argsort(stable=True)
    rows = order[int((places[labels] < 0).sum()) :]
    return rows, places[labels[rows]]


# Hooks ----------------------------------------------------------------------------------------------------------------


@contextmanager
def _replaced(model: nn.Module, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Each named layer's output is what `changes` make of it, for as long as the context lasts."""
    layers = {name: layer for name, layer in model.named_modules(remove_duplicate=False) if name}
    used: dict[str, None] = {}
    rows: list[int] = []

    def begin(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        used.clear()
        rows[:] = [len(inputs[0])]

    def end(_module: nn.Module, _inputs: object, _output: object) -> None:
        if unused := [name for name in changes if name not in used]:
            raise InputError(f"layer {unused[0]!r} is not called by the model: name one that is")

    def changed(name: str) -> Callable[[nn.Module, tuple[object, ...], object], Tensor]:
        def run(module: nn.Module, inputs: tuple[object, ...], output: object) -> Tensor:
            used[name] = None
            tensor = _tensor(name, output, rows)
            shared = any(tensor is given for given in inputs) or any(True for _ in module.children())
            # What Identity gives, or a block with a way around, is used elsewhere too: gradients tell it apart
            return changes[name](tensor.clone() if shared and torch.is_grad_enabled() else tensor)

        return run

    handles = []
    try:
        for name in changes:
            if name not in layers:
                raise unknown("layer", name, layers)
            handles.append(layers[name].register_forward_hook(changed(name)))
        handles += [model.register_forward_pre_hook(begin), model.register_forward_hook(end)]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensor(name: str, output: object, rows: Sequence[int]) -> Tensor:
    expected = "a tensor (B, units, ...) of floating numbers; name a layer that does"
    if not isinstance(output, Tensor):
        raise InputError(f"layer {name!r} returns a {type(output).__name__}, not {expected}")
    if output.ndim < 2 or not output.is_floating_point() or (rows and len(output) != rows[0]):
        raise InputError(f"layer {name!r} returns {tuple(output.shape)} {output.dtype}, not {expected}")
    return output


def _same_shape(name: str, before: Tensor, now: Tensor) -> Tensor:
    """`before`, if a layer that is used again has units of the same shape."""
    if before.shape != now.shape:
        shapes = f"{tuple(before.shape)} and {tuple(now.shape)}"
        raise InputError(f"layer {name!r} is used several times, with outputs {shapes}: name the layers ahead of it")
    return before


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

    with _replaced(model, {name: silenced(name) for name in layers}):
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
    named = {name: model.get_submodule(name) for name in layers}

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


# Arithmetic -----------------------------------------------------------------------------------------------------------


def _backward(
    model: nn.Module, images: Tensor, layers: Sequence[str], wanted: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """The logits, (b, K), and the gradient of each number that is `wanted` of them for each layer's output.

    A layer's place in the graph is kept, not its output, so that one that goes on in place changes nothing; one that is
    used again has several places. The weights take no gradient, and nothing ahead of the first layer is gone through.
    """
    first: dict[str, Tensor] = {}  # for its shape
    places: list[tuple[str, GradientEdge]] = []

    def kept(name: str) -> Callable[[Tensor], Tensor]:
        def run(output: Tensor) -> Tensor:
            _same_shape(name, first.setdefault(name, output), output)
            if not output.requires_grad:
                output = output.detach().requires_grad_().clone()
            elif output._is_view():  # what works in place on a view makes it another place
                output = output.clone()
            places.append((name, get_gradient_edge(output)))
            return output

        return run

    with frozen(model), torch.enable_grad():
        with _replaced(model, {name: kept(name) for name in layers}):
            logits = logits_of(model, images.detach().requires_grad_())
        if not logits.requires_grad:
            raise InputError(f"the logits do not depend on {', '.join(layers)} in a way that can be differentiated")
        numbers = wanted(logits)
        found = []
        for number in numbers:
            edges = [edge for _, edge in places]
            gradients = torch.autograd.grad(number, edges, retain_graph=number is not numbers[-1], allow_unused=True)
            found.append(_added_up(first, [name for name, _ in places], gradients))
    return logits.detach(), found


def _added_up(
    outputs: Mapping[str, Tensor], names: Sequence[str], gradients: Sequence[Tensor | None]
) -> dict[str, Tensor]:
    """Each layer's gradients, of all its uses; zeros where nothing depends on them."""
    found: dict[str, Tensor] = {}
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is not None:
            found[name] = found[name] + gradient if name in found else gradient
    return {name: found.get(name, torch.zeros_like(output, requires_grad=False)) for name, output in outputs.items()}


def _one_class(
    model: nn.Module, images: Tensor, classes: Tensor, layers: Sequence[str], of: Output, temperature: float
) -> tuple[dict[str, Tensor], Tensor]:
    """For each layer (b, *units), to be multiplied by exp of what comes second, (b,) float64."""

    def wanted(logits: Tensor) -> tuple[Tensor]:
        if of == "logits":
            return (logits.gather(1, classes[:, None]).sum(),)
        return (-log_odds(logits, classes, temperature).sum(),)

    logits, (values,) = _backward(model, images, layers, wanted)
    if of == "logits":
        return values, torch.zeros(len(images), dtype=torch.float64, device=images.device)
    odds = log_odds(logits, classes, temperature)
    return values, F.logsigmoid(odds) + F.logsigmoid(-odds)  # F_i (1 - F_i)


def _every_class(
    model: nn.Module, images: Tensor, layers: Sequence[str], of: Output, temperature: float
) -> dict[str, SignedLog]:
    """For each layer (b, K, *units): of the softmax as `softmax.jacobian`, summed in logarithms."""
    logits, rows = _backward(model, images, layers, lambda logits: tuple(logits.sum(0)))
    log_f = torch.log_softmax(logits.double() / temperature, 1)
    found = {}
    for name in layers:
        each = torch.stack([row[name] for row in rows], 1)
        if of == "logits":
            found[name] = SignedLog.of(each)
            continue
        weights = _wide(log_f, each.ndim)
        sums = []
        for i in range(logits.shape[1]):
            terms = SignedLog.of(each[:, i : i + 1] - each, weights)
            sums.append(terms.sum(1).times(_wide(log_f[:, i], each.ndim - 1) - math.log(temperature)))
        found[name] = SignedLog(torch.stack([s.sign for s in sums], 1), torch.stack([s.log10 for s in sums], 1))
    return found


class _Means:
    """Means by class of rows times exp(log), each at the scale of its own largest factor."""

    def __init__(self, classes: int, device: torch.device):
        self.scale = torch.full((classes,), -torch.inf, dtype=torch.float64, device=device)
        self.counts = torch.zeros_like(self.scale)
        self.totals: dict[str, Tensor] = {}  # (R, *units) float64, over exp(scale)

    def add(self, values: Mapping[str, Tensor], log: Tensor, place: Tensor) -> None:
        """Rows (b, *units) with factors exp(log) (b,), of the classes `place` (b,): few, where rows come by class."""
        scale = self.scale.scatter_reduce(0, place, log, "amax")
        shrink = (self.scale - scale).exp().nan_to_num()  # -inf - -inf: a class without rows so far
        weights = (log - scale[place]).exp()
        self.counts += torch.bincount(place, minlength=len(scale))
        for each in place.unique().tolist():
            some = weights * (place == each)
            for name, value in values.items():
                if name not in self.totals:
                    empty = torch.zeros(len(scale), *value.shape[1:], dtype=torch.float64, device=value.device)
                    self.totals[name] = empty
                self.totals[name][each].mul_(shrink[each]).add_(_weighted_sum(some.to(value.dtype), value))
        self.scale = scale

    def result(self) -> dict[str, SignedLog]:
        """For each layer (R, *units)."""
        log = self.scale - self.counts.log()
        return {name: SignedLog.of(total, _wide(log, total.ndim)) for name, total in self.totals.items()}


def _weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """(b,), (b, ...) -> (...): without a copy where channels come last in memory."""
    if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        return (weights @ values.permute(0, 2, 3, 1).flatten(1)).view(*values.shape[2:], -1).permute(2, 0, 1)
    return (weights @ values.flatten(1)).view(values.shape[1:])


def _norm_of_maps(values: Tensor) -> Tensor:
    """(b, maps, ...) -> (b, maps)."""
    return values.abs() if values.ndim == 2 else torch.linalg.vector_norm(values, dim=tuple(range(2, values.ndim)))


def _joined(parts: Sequence[SignedLog]) -> SignedLog:
    return SignedLog(torch.cat([part.sign for part in parts]), torch.cat([part.log10 for part in parts]))


def _wide(values: Tensor, ndim: int) -> Tensor:
    """The same numbers with dimensions of 1 after them, `ndim` in all."""
    return values.view(*values.shape, *[1] * (ndim - values.ndim))
