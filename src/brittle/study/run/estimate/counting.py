"""What cells do: the images that they put through a network and take back, the bytes that they hold and leave.

What depends on how hard a network is to fool is taken from the studies that come with brittle. Those numbers stand in
`_trials`, `_of_each_row` and `_audit`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from inspect import Parameter
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from brittle import attacks
from brittle.attacks.pixel_flips import LEVELS, flip_logits
from brittle.attacks.result import BATCH, logits_in_batches
from brittle.auditing.suite import BUDGETS
from brittle.data import Data
from brittle.study.kinds.carriers.cell import ORDERS, SIDES
from brittle.study.kinds.masks.cell import CLIPPED, WAYS
from brittle.study.kinds.network.cell import untrained
from brittle.study.kinds.units.cell import KINDS, MAPS, SCOPES, SEEN
from brittle.study.run.estimate.rates import ROWS, Rates, named, operations, options_of, takes_flips, trained_as
from brittle.study.store.cell import Cell

PROCESS = 270e6  # bytes of a process that has imported torch and brittle
CELL, EPOCH = 0.02, 0.01  # seconds that any cell takes, and an epoch of training beside its images: a checkpoint
RECORD = 1000  # bytes of a cell.json beside its parameters
UNKNOWN = 100  # gradients a row of an attack that is not brittle's own
BOUNDS = 7  # of an audit's curves


@dataclass(frozen=True)
class Cost:
    """What a cell takes.

    Attributes:
        seconds: by the clock.
        operations: of floating point, a multiply-add is two; those of layers, not of what is done element by element.
        memory: bytes, the most that the process holds while the cell runs, the data set too.
        disk: bytes that the cell leaves in the store.
    """

    seconds: float
    operations: float
    memory: float
    disk: float


@dataclass(frozen=True)
class Work:
    """How often a network does what takes time."""

    forwards: float = 0.0  # images put through it
    gradients: float = 0.0  # images put through it and back to the pixels
    steps: float = 0.0  # images that it is trained on
    flips: float = 0.0  # one-pixel changes
    logarithms: float = 0.0  # numbers that exact arithmetic sums by their logarithms

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __mul__(self, times: float) -> Work:
        return Work(*(getattr(self, field.name) * times for field in fields(self)))


@dataclass(frozen=True)
class Needs:
    """What a cell does, by the cells of the networks that do it; what it holds beside the data, and leaves: bytes."""

    work: Sequence[tuple[Cell, Work]]
    memory: float
    disk: float


@dataclass(frozen=True)
class Network:
    """What is counted of a network."""

    operations: float  # of an image's forward pass
    flip: float  # of a one-pixel change
    weights: float  # bytes
    held: float  # bytes that its layers put out for an image
    outputs: Mapping[str, tuple[int, ...]]  # shape of what each layer puts out for an image


def _looked_at(model: nn.Module, image: Tensor, *, flips: bool) -> Network:
    """What is counted of a model, by an image (1, C, H, W)."""
    outputs: dict[str, tuple[int, ...]] = {}
    held = 0.0

    def note(name: str, leaf: bool) -> Callable[[nn.Module, object, object], None]:
        def run(_module: nn.Module, _inputs: object, output: object) -> None:
            nonlocal held
            if isinstance(output, Tensor):
                outputs[name] = tuple(output.shape[1:])
                held += output.numel() * output.element_size() * leaf

        return run

    layers = [(name, layer, not any(True for _ in layer.children())) for name, layer in model.named_modules()]
    handles = [layer.register_forward_hook(note(name, leaf)) for name, layer, leaf in layers]
    clean = logits_in_batches(model, image)
    for handle in handles:
        handle.remove()
    flip = 0.0
    if flips:
        with FlopCounterMode(display=False) as counted:
            _, spent = flip_logits(model, image, clean)
        flip = counted.get_total_flops() / max(1, int(spent.sum()))
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    return Network(operations(model, image), flip, weights, held, outputs)


class Counting:
    """Counts what cells do, on one data set."""

    def __init__(self, data: Data, rates: Sequence[Rates]):
        self.data = data
        self.rates = {named(one.network, one.options, one.batch_size, {"dtype": one.dtype}): one for one in rates}
        self.networks: dict[str, Network] = {}
        self.classes, self.values = len(data.classes), math.prod(data.image_shape)
        self.image, self.pixels = 4.0 * self.values, math.prod(data.image_shape[1:])  # bytes; a pixel is all channels
        some = data.test.images[:BATCH].flatten(2)
        self.changes = sum((some != level).any(1).double().sum(1).mean().item() for level in LEVELS)  # flips an image
        self.loaded = PROCESS + self.image * sum(map(len, (data.train, data.validation, data.test)))

    def cost(self, cell: Cell, slower: float = 1.0) -> Cost:
        """Of a cell that takes so many times as long as counted."""
        needs = self.needs(cell)
        seconds, operations = CELL + EPOCH * cell.params.get("epochs", 0) * (cell.function == "train"), 0.0
        for maker, work in needs.work:
            rates, network = self._rates(maker), self.network(maker)
            counted = {
                "forward": work.forwards * network.operations,
                "gradient": work.gradients * 2 * network.operations,
                "training": work.steps * 3 * network.operations,
            }
            operations += sum(counted.values()) + work.flips * network.flip
            counted |= {"flips": work.flips, "logarithms": work.logarithms}
            seconds += sum(amount / getattr(rates, name) for name, amount in counted.items() if amount)
        record = RECORD + len(json.dumps(dict(cell.params)))
        return Cost(seconds * slower, operations, self.loaded + needs.memory, record + needs.disk)

    def _rates(self, maker: Cell) -> Rates:
        if trained_as(maker) not in self.rates:
            raise ValueError(f"no rates of {trained_as(maker)} among {', '.join(self.rates) or 'none'}")
        return self.rates[trained_as(maker)]

    def network(self, maker: Cell) -> Network:
        """Of a `train` or `adopt` cell."""
        name = trained_as(maker)
        if name not in self.networks:
            flips = self._rates(maker).flips > 0
            self.networks[name] = _looked_at(untrained(maker, self.data), self.data.test.images[:1], flips=flips)
        return self.networks[name]

    def needs(self, cell: Cell) -> Needs:
        """By the cell's function."""
        of: dict[str, Callable[[Cell], Needs]] = {
            "select": self._select,
            "train": self._train,
            "adopt": self._train,
            "label": self._label,
            "measure": self._measure,
            "attack": self._attack,
            "units": self._units,
            "carriers": self._carriers,
            "masks": self._masks,
            "audit": self._audit,
        }
        return of[cell.function](cell)

    def _through(self, maker: Cell) -> float:
        """Bytes while a batch goes through a network: each layer's output goes once the next is there."""
        network = self.network(maker)
        return network.weights + BATCH * network.held / 2

    def _back(self, maker: Cell, rows: float) -> float:
        """Bytes while so many images at once go through a network and back."""
        network = self.network(maker)
        return network.weights + 2 * min(rows, BATCH) * network.held

    # Models

    def _select(self, cell: Cell) -> Needs:
        rows = self._rows(cell)
        return Needs([], rows * self.image, rows * (self.image + 8))

    def _rows(self, select: Cell) -> int:
        there, rows = len(self.data.test), select.params["rows"]
        return there if rows == "all" else min(rows, there)

    def _train(self, cell: Cell) -> Needs:
        """Each epoch a step for each training image; one for validation goes without the way back, a third of it."""
        network, epochs = self.network(cell), cell.params.get("epochs", 0)
        work = Work(steps=epochs * (len(self.data.train) + len(self.data.validation) / 3))
        memory = 5 * network.weights + max(self._back(cell, cell.params.get("batch_size", 1)), self._through(cell))
        return Needs([(cell, work)], memory, network.weights + 45 * epochs)  # an epoch's loss and accuracy, as text

    def _label(self, cell: Cell) -> Needs:
        images, teacher = len(self.data.train), cell.parents["teacher"]
        return Needs([(teacher, Work(forwards=images))], self._through(teacher), 4 * self.classes * images)

    def _measure(self, cell: Cell) -> Needs:
        """Logits of the test split, and Jacobians of the rows: one in float32, two exactly, K ways back each."""
        rows, model, test = self._rows(cell.parents["rows"]), cell.parents["model"], len(self.data.test)
        jacobians = Work(gradients=3 * rows * (1 + self.classes) / 2)  # a gradient goes once through and once back
        exactly = Work(logarithms=2 * rows * self.classes**2 * self.values)
        work = Work(forwards=test) + jacobians + exactly
        tables = 12 * 8 * self.classes * self.values * min(rows, ROWS)  # a dozen in double precision
        saliency = self.classes * self.values * (1 + 8 + 4)
        stored = test * (4 * self.classes + 8) + 3 * 8 * rows + saliency
        return Needs([(model, work)], self._through(model) + self._back(model, min(rows, ROWS)) + tables, stored)

    # Attacks

    def _attack(self, cell: Cell) -> Needs:
        params, model = cell.params, cell.parents["model"]
        given = {name: value for name, value in options_of(params["function"]).items() if value is not Parameter.empty}
        options = {**given, **params["options"]}
        home, _, name = params["function"].rpartition(".")
        if home not in ("", attacks.__name__):
            name = ""  # somebody else's
        shard = len(params["indices"]) if "indices" in params else params["stop"] - params["start"]
        rows = shard * (self.classes - 1 if params.get("targets") == "every" else 1)
        tempered = model.params.get("temperature", 1.0) > 1 and "temperature" not in params
        memory = self._back(model, rows) + 10 * rows * self.image
        work, stored = Work(), 0.0
        if takes_flips(cell):
            work += Work(flips=shard * self.changes)
            memory += shard * len(LEVELS) * self.pixels * self.classes * 4 * 8  # four tables in double precision
        for arithmetic in params["arithmetic"] or [options.get("arithmetic")]:
            blind = arithmetic == "float32" and tempered
            work += self._of_each_row(name, options, arithmetic, blind) * rows
            stored += rows * (1 + 8 + 4 + 4 + 8 * (rows > shard))
            if "max_pixels" not in options:  # the whole images are stored
                stored += rows * self.image
                continue
            most = min(options["max_pixels"], self.pixels) / (1 if arithmetic == "float32" else 2)  # of any row
            stored += rows * most * (4 + 1)
            if params.get("start") == 0 and rows == shard:  # pixel by pixel, of a row of each class
                work += Work(forwards=self.classes * self._trials(options, arithmetic, blind))
                stored += self.classes * (8 + (most + 1) * self.classes * 4)
        return Needs([(model, work)], memory, stored)

    def _trials(self, options: Mapping[str, Any], arithmetic: str | None, blind: bool) -> float:
        """Pixels that Song's attacks set in a row, of `max_pixels`: in the study song-2017."""
        share = 0.95 if blind else 0.65 if arithmetic == "float32" else 0.45
        return share * min(options["max_pixels"], self.pixels)

    def _of_each_row(self, name: str, options: Mapping[str, Any], arithmetic: str | None, blind: bool) -> Work:
        """What an attack does for a row, in one arithmetic; `blind`: in float32, on a network that saturates.

        Maps of `song_4` are those of the studies song-2017 and song-2017-code, rounds of `carlini_l0` of mandal-guo.
        """
        if name in ("song_1", "song_2", "song_3"):
            return Work(forwards=self._trials(options, arithmetic, blind), gradients=name != "song_2")
        if name == "song_4":
            maps = 12.0 if options["signed"] else 7.0
            if arithmetic == "float32" and not options["signed"]:
                most = min(options["max_pixels"], self.pixels)
                maps = (1.0 if blind else 4.0) if options["stop_at_zeros"] else (0.95 if blind else 0.2) * most
            anew = max(0.0, maps / options["refresh_every"] - 1)  # the first is shared by all arithmetics
            return Work(forwards=2 * maps, flips=anew * self.changes)
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

    # Units and masks

    def _units(self, cell: Cell) -> Needs:
        """Two gradients an image, and each image without each set of units that goes."""
        params, model, classes = cell.params, cell.parents["model"], self.classes
        data, asked = self.data, len(params["classes"])
        images = sum(min(params["images"], len(split)) for split in (data.train, data.validation, data.test))
        units, points = self._points(cell)
        sets = self._sets(cell, asked * len(KINDS) + params["random"])
        work = Work(forwards=images * (1 + sets), gradients=2 * images)
        pairs = 3 * 8 * images * units * (units - 1) / 2  # whose order is compared, in double precision
        shapes = [shape for name, shape in self.network(model).outputs.items() if name in params["layers"]]
        largest = max((math.prod(shape[1:]) for shape in shapes if len(shape) == 3), default=0)
        stored = 8 * units * (classes + 1 + images) + 9 * images + 8 * classes**2
        stored += 4 * asked * (len(KINDS) + params["random"]) * len(SCOPES) * points + 4 * asked * points * classes**2
        stored += asked * (8 * (MAPS + SEEN) + 4 * SEEN * MAPS * largest)
        memory = 2 * self._through(model) + self._back(model, ROWS) + images * self.image + pairs
        return Needs([(model, work)], memory, stored)

    def _points(self, cell: Cell) -> tuple[int, int]:
        """Units of the layers that a cell asks about, and points of a curve along which they go."""
        outputs = self.network(cell.parents["model"]).outputs
        units = sum(outputs.get(name, (1,))[0] for name in cell.params["layers"])
        return units, min(cell.params["points"] or units + 1, units + 1)

    def _sets(self, cell: Cell, curves: int) -> int:
        """Distinct sets of units that go: all curves share the first, none of them, and the last."""
        return curves * (self._points(cell)[1] - 2) + 2

    def _carriers(self, cell: Cell) -> Needs:
        """A walk of 40 steps and three gradients an image, then images before and after without each set of units."""
        params, model = cell.params, cell.parents["model"]
        images = min(params["images"], len(self.data.test))
        units, points = self._points(cell)
        curves = len(ORDERS) + params["random"]
        work = Work(forwards=len(SIDES) * images * self._sets(cell, curves), gradients=(40 + 3) * images)
        memory = 2 * self._through(model) + self._back(model, images) + 4 * images * self.image
        return Needs([(model, work)], memory, 2 * 8 * units + 4 * len(SIDES) * curves * points)

    def _masks(self, cell: Cell) -> Needs:
        """For each class gradients of three kinds of images, their curves, and a mask that is learned."""
        params, model, data = cell.params, cell.parents["model"], self.data
        train, test = (min(params["images"], len(split)) for split in (data.train, data.test))
        tried = len(CLIPPED) * len(params["etas"])  # of each image that is not of the class
        linear, learned = (self.classes - 1) * (train + 2 * test), self.classes * train * params["epochs"]
        works = [(model, Work(forwards=linear * tried + 2 * self.classes * train, gradients=linear + learned))]
        if "other" in cell.parents:
            works.append((cell.parents["other"], Work(forwards=(self.classes - 1) * train * tried)))
        nearest = len(data.train) * (self.image + 3 * 4 * min(BATCH, test))  # squares of all images, and distances
        memory = self._back(model, BATCH) + nearest + 10 * (train + test) * self.image
        return Needs(works, memory, 8 * self.classes * len(WAYS) * tried + (self.classes + 6) * self.image)

    # Audits

    def _audit(self, cell: Cell) -> Needs:
        """Of a model that falls to the first attacks, as those of the study quickstart do.

        In L-infinity and L2 these are the common attack, at length and at each bound of a curve; walks at the three
        bounds below eps, which do not fool most rows; and checks of 100 rows in turn and of single ones. In L0 it is
        Carlini and Wagner's attack, once and for half of the rows again.
        """
        params, model = cell.params, cell.parents["model"]
        budget, rows = BUDGETS[params["budget"]], min(params["rows"], len(self.data.test))
        steps = budget.steps
        if params["norm"] == "l0":
            found = self._of_each_row("carlini_l0", {"max_iterations": 30, "restarts": 0}, None, False) * 1.5
            work = (found + Work(forwards=20, flips=self.changes)) * rows
        else:
            work = Work(
                forwards=20 * rows, gradients=steps * (4 * rows + BOUNDS * rows + min(rows, 100) + min(rows, 16))
            )
        works = [(model, work)]
        if "reference" in cell.parents:  # undefended, so that a walk ends after a third of its steps
            works.append((cell.parents["reference"], Work(gradients=steps * BOUNDS * rows / 3)))
        memory = 2 * self._through(model) + self._back(model, rows) + 10 * rows * self.image
        return Needs(works, memory, 12_000 + 16 * self.image)  # what it says, and eight pairs of pictures
