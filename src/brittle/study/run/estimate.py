"""What cells cost before they are run: time and operations.

Counted are the images that a cell puts through its network, and those that it takes back to the pixels or the weights;
over the rates that are measured on this machine that is its time. Where the store holds cells that are alike, made
here with as many threads, it is corrected by how much longer these took.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brittle.attacks.pixel_flips import flip_logits
from brittle.attacks.result import logits_in_batches
from brittle.data import Data
from brittle.errors import InputError
from brittle.models.networks import channels_last, frozen, logits_of, seeded
from brittle.models.softmax import SignedLog
from brittle.progress import Progress, silent
from brittle.study.kinds import FUNCTIONS
from brittle.study.kinds.network.cell import untrained
from brittle.study.kinds.work import Counts, operations
from brittle.study.run.scheduler import recall
from brittle.study.run.worker import provenance
from brittle.study.store.cell import Cell
from brittle.study.store.store import Store

CELL, EPOCH = 0.02, 0.01  # seconds that any cell takes, and an epoch of training beside its images: a checkpoint
VARIED = {  # parameters that do not change what a unit of work takes
    "seed", "temperature", "epochs", "learning_rate", "learning_rate_decay", "weight_decay",
    "rows", "start", "stop", "indices",
}  # fmt: skip
ROWS = 64  # images at a time while rates are measured, as exact arithmetic takes them
RUNS, LOOK = 3, 0.2  # a rate is the median of at least so many runs, and of so many seconds


@dataclass(frozen=True)
class Cost:
    """What a cell takes.

    Attributes:
        seconds: by the clock.
        operations: of floating point, a multiply-add is two; those of layers, not of what is done element by element.
    """

    seconds: float
    operations: float


def total(costs: Iterable[Cost]) -> Cost:
    """Of cells one after another."""
    every = list(costs)
    return Cost(sum(one.seconds for one in every), sum(one.operations for one in every))


def longest(cells: Sequence[Cell], costs: Mapping[str, Cost]) -> float:
    """Seconds of the longest chain of cells that need each other, parents first: no number of workers is faster."""
    until: dict[str, float] = {}
    for cell in cells:
        before = max((until.get(parent.key, 0.0) for parent in cell.parents.values()), default=0.0)
        until[cell.key] = before + costs[cell.key].seconds
    return max(until.values(), default=0.0)


def estimate(cells: Sequence[Cell], data: Data, rates: Sequence[Rates], store: Store | None = None) -> dict[str, Cost]:
    """What each cell costs, by its key; of those too that are in the store.

    Rows that a network has wrong from the start are counted, and a walk that may end early, as that of `pgd`, to its
    end. An audit's model is taken to be one that is not robust: a robust one takes several times as long. An attack
    that is not brittle's own is taken to need UNKNOWN gradients a row in each arithmetic.

    Args:
        cells: of one data set.
        data: that data set; what counts are its sizes, and how many pixels of its test images lie at 0 and at 1.
        rates: what `measured` gives for these cells.
        store: whose cells of the same function and settings, on the same data, made on the same processor with as many
            threads, are asked by what factor they took longer than estimated: the median is taken. Seeds, rows,
            temperatures, epochs and learning rates may differ.

    Raises:
        ValueError: if the rates of a cell's network are not among `rates`.
    """
    counts = Counts(data, untrained)
    known = {named(one.network, one.options, one.batch_size, {"dtype": one.dtype}): one for one in rates}
    slower = {} if store is None or not rates else _slower(cells, counts, known, store)
    return {cell.key: _cost(cell, counts, known, slower.get(_alike(cell), 1.0) if slower else 1.0) for cell in cells}


def _cost(cell: Cell, counts: Counts, rates: Mapping[str, Rates], slower: float = 1.0) -> Cost:
    """Of a cell that takes so many times as long as counted."""
    seconds = CELL + EPOCH * cell.params.get("epochs", 0) * (cell.function == "train")
    done = 0.0
    for maker, work in FUNCTIONS[cell.function].cost(cell, counts):
        name = trained_as(maker)
        if name not in rates:
            raise ValueError(f"no rates of {name} among {', '.join(rates) or 'none'}")
        here, forward = rates[name], counts.forward(maker)
        done += counts.operations(maker, work)
        amounts = {
            "forward": work.forwards * forward,
            "gradient": work.gradients * 2 * forward,
            "training": work.steps * 3 * forward,
            "flips": work.flips,
            "logarithms": work.logarithms,
        }
        seconds += sum(amount / getattr(here, rate) for rate, amount in amounts.items() if amount)
    return Cost(seconds * slower, done)


def _slower(cells: Sequence[Cell], counts: Counts, rates: Mapping[str, Rates], store: Store) -> dict[str, float]:
    """By kind of cell, how many times the estimated time those in the store took."""
    here = next(iter(rates.values()))
    wanted, functions = {_alike(cell) for cell in cells}, {cell.function for cell in cells}
    recalled: dict[str, Cell] = {}
    found = defaultdict(list)
    for key in store.keys():  # noqa: SIM118
        stored = store.get(key)
        if stored is None or stored.record.get("function") not in functions:
            continue
        made = stored.record.get("provenance", {})
        if (made.get("processor"), made.get("threads")) != (here.processor, here.threads):
            continue
        try:
            cell = recall(store, key, recalled)
        except InputError:  # of another version, or a parent has gone
            continue
        if _alike(cell) in wanted:
            found[_alike(cell)].append(max(made["seconds"], 1e-3) / _cost(cell, counts, rates).seconds)
    return {kind: statistics.median(factors) for kind, factors in found.items()}


def _alike(cell: Cell) -> str:
    """What cells have in common that take as long for as much work."""
    params = {name: value for name, value in cell.params.items() if name not in VARIED}
    networks = {role: trained_as(one) for role, one in cell.parents.items() if "network" in one.params}
    told = [cell.function, cell.version, params, networks, _digest(cell), dict(cell.environment)]
    return json.dumps(told, sort_keys=True)


def _digest(cell: Cell) -> str:
    """Of the data set that it is about, or else those are that it is made from."""
    return cell.digest or next(filter(None, map(_digest, cell.parents.values())), "")


# Rates ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """How fast a network is on a machine. JSON by `dataclasses.asdict`, and back by `Rates(**told)`.

    Attributes:
        network: import path; options: as its cell has them.
        batch_size, dtype: of its training; 0 and '' for weights that were trained elsewhere.
        processor, threads: what it was measured on.
        forward, gradient, training: operations a second of images that go through it; through it and back to the
            pixels, counted as two forward passes; through a step of training, counted as three, 0 where there is none.
        flips: one-pixel changes a second by `pixel_flips`; 0 where no cell needs them.
        logarithms: numbers a second that exact arithmetic sums by their logarithms.
    """

    network: str
    options: Mapping[str, Any]
    batch_size: int
    dtype: str
    processor: str
    threads: int
    forward: float
    gradient: float
    training: float
    flips: float
    logarithms: float


def measured(
    plan_cells: Sequence[Cell], data: Data, device: torch.device, *, progress: Progress = silent
) -> tuple[Rates, ...]:
    """Times each distinct network of the cells, a second or two each, with torch's present number of threads.

    Args:
        plan_cells: cells; those that they are made from need not be among them.
        data: the data set of all of them.
        device: where they are to run.
        progress: told the networks done.

    Returns:
        One for each network, its options, and the batch size and dtype of its training.
    """
    alike: dict[tuple, Cell] = {}  # one cell for each way to use the same networks: thousands differ in seeds and rows
    distinct: dict[str, Cell] = {}
    for cell in plan_cells:
        used = {trained_as(one): one for one in (cell, *cell.parents.values()) if "network" in one.params}
        alike.setdefault((cell.function, cell.params.get("function"), *used), cell)
        distinct |= used
    counts = Counts(data, untrained)
    needs = (need for cell in alike.values() for need in FUNCTIONS[cell.function].cost(cell, counts))
    flipped = {trained_as(maker) for maker, work in needs if work.flips}
    found = []
    for name, cell in distinct.items():
        progress(len(found), len(distinct), cell.params["network"].rpartition(".")[2])
        with seeded(0):  # dropout draws
            found.append(_rates(cell, data, device, flips=name in flipped))
    progress(len(distinct), len(distinct))
    return tuple(found)


def _rates(cell: Cell, data: Data, device: torch.device, *, flips: bool) -> Rates:
    model = channels_last(untrained(cell, data).to(device))
    images = data.test[:ROWS].images.to(device)
    numbers = torch.randn(len(images), len(data.classes), images[0].numel(), device=device)
    machine = provenance(device)

    def forward() -> None:
        logits_in_batches(model, images)

    def gradient() -> None:
        inputs = images.clone().requires_grad_(True)
        with frozen(model), torch.enable_grad():
            torch.autograd.grad(logits_of(model, inputs).sum(), inputs)

    def logarithms() -> None:
        SignedLog.of(numbers, torch.zeros_like(numbers[:, :, :1], dtype=torch.float64)).sum(1)

    whole, training = operations(model, images), 0.0
    found = {"forward": whole / _seconds(forward, device), "gradient": 2 * whole / _seconds(gradient, device)}
    found["logarithms"] = numbers.numel() / _seconds(logarithms, device)
    found["flips"] = _flips_a_second(model, images[:1], device) if flips else 0.0
    if cell.function == "train":
        training = _trained_a_second(model, cell, data, device) * 3 * whole / len(images)
    return Rates(
        network=cell.params["network"],
        options=cell.params["network_options"],
        batch_size=cell.params.get("batch_size", 0),
        dtype=cell.environment.get("dtype", ""),
        processor=machine["processor"],
        threads=machine["threads"],
        training=training,
        **found,
    )


def _trained_a_second(model: nn.Module, cell: Cell, data: Data, device: torch.device) -> float:
    """Images a second in steps as `training.fit` makes them."""
    size, autocast = cell.params["batch_size"], cell.environment["dtype"] == "bfloat16"
    images, labels = data.train[:size].images.to(device), data.train.labels[:size].to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=cell.params["momentum"])
    model.train()

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return len(images) / _seconds(step, device)


def _flips_a_second(model: nn.Module, images: Tensor, device: torch.device) -> float:
    clean = logits_in_batches(model, images)
    _, spent = flip_logits(model, images, clean)
    return max(1, int(spent.sum())) / _seconds(lambda: flip_logits(model, images, clean), device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median time of `work`, after a first run that is not counted."""
    work()
    spent: list[float] = []
    while len(spent) < RUNS or (sum(spent) < LOOK and len(spent) < 100):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - started)
    return max(statistics.median(spent), 1e-9)


def trained_as(cell: Cell) -> str:
    """What rates of a `train` or `adopt` cell's network depend on."""
    params = cell.params
    return named(params["network"], params["network_options"], params.get("batch_size", 0), cell.environment)


def named(network: str, options: Mapping[str, Any], batch_size: int, environment: Mapping[str, str]) -> str:
    """The same in words."""
    return json.dumps([network, dict(options), batch_size, environment.get("dtype", "")], sort_keys=True)
