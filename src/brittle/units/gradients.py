"""Gradients of outputs with respect to units, and rankings by them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F

from brittle.errors import InputError, unknown
from brittle.models.inference import at_once
from brittle.models.networks import frozen, logits_of
from brittle.models.softmax import LN10, SignedLog, check_temperature, log_odds
from brittle.progress import Progress, barred, silent
from brittle.units.hooks import door, each_class, replaced, same_shape
from brittle.units.unit import Ranked, Unit

Output = Literal["softmax", "logits"]


@barred("gradients of units")
def prediction_gradient(
    model: nn.Module,
    images: Tensor,
    layers: Sequence[str],
    *,
    classes: Tensor | int | None = None,
    of: Output = "softmax",
    temperature: float = 1.0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> dict[str, SignedLog]:
    """dy_i/do for every unit o of the named layers: Lo and Ding, equation (1).

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K), K >= 2.
        images: (N, C, H, W), float, in [0, 1].
        layers: names of layers whose output is one tensor (B, units, ...).
        classes: i of each image, (N,) int64, or one for all; None for every class.
        of: what y is: 'softmax', exact, or 'logits'.
        temperature: at which the softmax is read, > 0; of no account to logits.
        batch_size: images at a time, at most; fewer where they do not fit into memory.
        progress: told the images done; by default a bar is shown on a terminal and in a notebook.

    Returns:
        For each layer (N, *units), or (N, K, *units) for every class.

        One class costs one forward and one backward pass for all layers. Another class whose share of m is under the
        float's rounding then adds nothing; for every class, by K backward passes, each is told apart whatever its size.

    Raises:
        InputError: if a layer does not exist, is not used, or gives something other than a tensor; if images, classes
            or an option are not as above, or the images do not fit the model.
    """
    progress = progress or silent
    outputs = door(model, images, layers, batch_size=batch_size)
    _check_options(of, temperature)
    wanted = None if classes is None else each_class(classes, images, outputs)
    batch_size = min(batch_size, at_once(model, images))
    parts: list[dict[str, SignedLog]] = []
    for start in range(0, len(images), batch_size):
        rows = images[start : start + batch_size]
        if wanted is None:
            parts.append(_every_class(model, rows, layers, of, temperature))
        else:
            values, log = _one_class(model, rows, wanted[start : start + batch_size], layers, of, temperature)
            parts.append({name: SignedLog.of(value, _wide(log, value.ndim)) for name, value in values.items()})
        progress(start + len(rows), len(images))
    return {name: SignedLog.cat([part[name] for part in parts]) for name in layers}


@barred("gradients of units")
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
    batch_size: int = 32,
    progress: Progress | None = None,
) -> dict[str, SignedLog]:
    """The mean of dy_t/do over the images of each class t: Lo and Ding, equation (3), its element t.

    Args:
        labels: (N,), int64, in 0..K-1.
        classes: those that are wanted; by default all that have images, in ascending order, and those that have none
            are said. Images of others cost nothing.
        of_maps: average the images' convolutional gradients instead of their gradients. Gradients of opposite signs
            then do not cancel.

    The other arguments and errors are those of `prediction_gradient`.

    Returns:
        For each layer (R, *units), or (R, units) `of_maps`, one row for each of the R classes that are wanted. One
        forward and one backward pass for all images and layers; memory does not grow with the number of images.

    Raises:
        InputError: also if a class that was asked for has no images.

    Warns:
        UserWarning: if classes are left out, as they have no images.
    """
    progress = progress or silent
    outputs = door(model, images, layers, batch_size=batch_size)
    _check_options(of, temperature)
    labels = each_class(labels, images, outputs)
    wanted = _with_images(labels, outputs) if classes is None else list(classes)
    rows, place = _members(labels, wanted, outputs)
    batch_size = min(batch_size, at_once(model, images))
    means = _Means(len(wanted), images.device)
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        values, log = _one_class(model, images[some], labels[some], layers, of, temperature)
        if of_maps:
            values = {name: norm_of_maps(value) for name, value in values.items()}
        means.add(values, log, place[start : start + batch_size])
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


# The request ----------------------------------------------------------------------------------------------------------


def _check_options(of: str, temperature: float) -> None:
    if of not in get_args(Output):
        raise unknown("output", of, get_args(Output))
    check_temperature(temperature)


def _with_images(labels: Tensor, outputs: int) -> list[int]:
    """The classes that have images, ascending."""
    found = labels.unique().tolist()
    if len(found) < outputs:
        missing = [str(each) for each in range(outputs) if each not in {*found}]
        few = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        warnings.warn(f"{len(missing)} of {outputs} classes have no images and are left out: {few}", stacklevel=4)
    return found


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
            same_shape(name, first.setdefault(name, output), output)
            if not output.requires_grad:
                output = output.detach().requires_grad_().clone()
            elif output._is_view():  # what works in place on a view makes it another place
                output = output.clone()
            places.append((name, get_gradient_edge(output)))
            return output

        return run

    with frozen(model), torch.enable_grad():
        with replaced(model, {name: kept(name) for name in layers}):
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


def norm_of_maps(values: Tensor) -> Tensor:
    """(b, maps, ...) -> (b, maps), over positions; of dense units their magnitudes."""
    return values.abs() if values.ndim == 2 else torch.linalg.vector_norm(values, dim=tuple(range(2, values.ndim)))


def _wide(values: Tensor, ndim: int) -> Tensor:
    """The same numbers with dimensions of 1 after them, `ndim` in all."""
    return values.view(*values.shape, *[1] * (ndim - values.ndim))
