"""The functions that compute cells, and what they cost: how often the networks of a cell do what takes time."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from brittle.attacks.pixel_flips import LEVELS, flip_logits
from brittle.attacks.result import BATCH, logits_in_batches
from brittle.data import Data
from brittle.study import lookup
from brittle.study.store.cell import Cell, Context, Outcome, Parents


@dataclass(frozen=True)
class Work:
    """How often a network does what takes time."""

    forwards: float = 0.0  # images put through it
    gradients: float = 0.0  # images put through it and back to the pixels
    steps: float = 0.0  # images that it is trained on
    flips: float = 0.0  # one-pixel changes
    logarithms: float = 0.0  # numbers that exact arithmetic sums by their logarithms

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __mul__(self, times: float) -> Work:
        return Work(*(getattr(self, each.name) * times for each in fields(self)))


Needs = list[tuple[Cell, Work]]  # the work of a cell, by the cells of the networks that do it


@dataclass(frozen=True)
class Function:
    """What computes the cells of one function.

    Attributes:
        version: raise it when a change to the function, or to what it calls, changes what it computes.
        run: gives what is to be stored.
        cost: the work of a cell.
        versions: those of some values of the parameter 'function', where these have others.
    """

    version: int
    run: Callable[[Cell, Parents, Context], Outcome]
    cost: Callable[[Cell, Counts], Needs]
    versions: Mapping[str, int] = field(default_factory=dict)


def cell_of(
    functions: Mapping[str, Function],
    title: str,
    function: str,
    params: Mapping[str, Any],
    parents: Mapping[str, Cell] | None = None,
    **more: Any,
) -> Cell:
    """A cell with the version that its function has now among these; `more`: digest, place, environment of `Cell`."""
    known = functions[function]
    version = known.versions.get(params.get("function", ""), known.version)
    return Cell(title, function, version, params, parents or {}, **more)


class Counts:
    """The sizes that work is counted from.

    Args:
        data: the data set of all cells.
        build: a network of the shape that a `train` or `adopt` cell has.

    Attributes:
        data: as above.
        classes: their number; values: of an image; pixels: of an image, all channels are one.
        changes: one-pixel changes of an image, as `song_2` tries them, in the mean.
    """

    def __init__(self, data: Data, build: Callable[[Cell, Data], nn.Module]) -> None:
        self.data, self._build = data, build
        self.classes, self.values = len(data.classes), math.prod(data.image_shape)
        self.pixels = math.prod(data.image_shape[1:])
        some = data.test[:BATCH].images.flatten(2)
        self.changes = sum((some != level).any(1).double().sum(1).mean().item() for level in LEVELS)
        self._forward: dict[str, float] = {}
        self._flip: dict[str, float] = {}
        self._outputs: dict[str, Mapping[str, tuple[int, ...]]] = {}

    def rows(self, select: Cell) -> int:
        """How many rows a `select` cell chooses."""
        there, rows = len(self.data.test), select.params["rows"]
        return there if rows == "all" else min(rows, there)

    def forward(self, maker: Cell) -> float:
        """Floating-point operations of an image's way through a network, those of layers; a multiply-add is two."""
        return _once(self._forward, maker, lambda: operations(self._network(maker), self.data.test[:1].images))

    def operations(self, maker: Cell, work: Work) -> float:
        """Operations of a network's work."""
        flip = _once(self._flip, maker, lambda: self._of_a_flip(maker)) if work.flips else 0.0
        return (work.forwards + 2 * work.gradients + 3 * work.steps) * self.forward(maker) + work.flips * flip

    def outputs(self, maker: Cell) -> Mapping[str, tuple[int, ...]]:
        """The shape of what each layer of a network puts out for an image."""
        return _once(self._outputs, maker, lambda: _outputs(self._network(maker), self.data.test[:1].images))

    def _network(self, maker: Cell) -> nn.Module:
        return self._build(maker, self.data)

    def _of_a_flip(self, maker: Cell) -> float:
        model, image = self._network(maker), self.data.test[:1].images
        clean = logits_in_batches(model, image)
        with FlopCounterMode(display=False) as counted:
            _, spent = flip_logits(model, image, clean)
        return counted.get_total_flops() / max(1, int(spent.sum()))


def _once(kept: dict[str, Any], maker: Cell, count: Callable[[], Any]) -> Any:
    name = json.dumps([maker.params["network"], dict(maker.params["network_options"])], sort_keys=True)
    if name not in kept:
        kept[name] = count()
    return kept[name]


def operations(model: nn.Module, images: Tensor) -> float:
    """Floating-point operations of one forward pass of images (B, C, H, W), a multiply-add is two."""
    logits_in_batches(model, images[:1])  # the first time a model is asked, what one image takes is looked at
    with FlopCounterMode(display=False) as counted:
        logits_in_batches(model, images)
    return float(counted.get_total_flops())


def _outputs(model: nn.Module, image: Tensor) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def run(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                shapes[name] = tuple(output.shape[1:])

        return run

    handles = [layer.register_forward_hook(note(name)) for name, layer in model.named_modules()]
    logits_in_batches(model, image)
    for handle in handles:
        handle.remove()
    return shapes


@lru_cache(maxsize=1000)  # thousands of cells have the same few attacks
def options_of(attack: str) -> Mapping[str, Any]:
    """What an attack may be asked for, each option with its default, `inspect.Parameter.empty` where it has none."""
    return {one.name: one.default for one in inspect.signature(lookup.attack(attack, trust=True)).parameters.values()}
