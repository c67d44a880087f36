"""How fast networks are on this machine."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brittle.attacks.pixel_flips import flip_logits
from brittle.attacks.result import logits_in_batches
from brittle.data import Data
from brittle.models.networks import channels_last, frozen, logits_of, seeded
from brittle.models.softmax import SignedLog
from brittle.progress import Progress, silent
from brittle.study.kinds import FUNCTIONS
from brittle.study.kinds.network.cell import untrained
from brittle.study.kinds.work import Counts, operations
from brittle.study.run.worker import provenance
from brittle.study.store.cell import Cell

ROWS = 64  # images at a time while rates are measured, as exact arithmetic takes them
RUNS, LOOK = 3, 0.2  # a rate is the median of at least so many runs, and of so many seconds


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
    used = (one for cell in plan_cells for one in (cell, *cell.parents.values()) if "network" in one.params)
    distinct = {trained_as(cell): cell for cell in used}
    counts = Counts(data, untrained)
    needs = (need for cell in plan_cells for need in FUNCTIONS[cell.function].cost(cell, counts))
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
    images = data.test.images[:ROWS].to(device)
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

    whole = operations(model, images)
    rates = Rates(
        network=cell.params["network"],
        options=cell.params["network_options"],
        batch_size=cell.params.get("batch_size", 0),
        dtype=cell.environment.get("dtype", ""),
        processor=machine["processor"],
        threads=machine["threads"],
        forward=whole / _seconds(forward, device),
        gradient=2 * whole / _seconds(gradient, device),
        training=0.0,
        flips=_flips_a_second(model, images[:1], device) if flips else 0.0,
        logarithms=numbers.numel() / _seconds(logarithms, device),
    )
    if cell.function != "train":
        return rates
    return replace(rates, training=_trained_a_second(model, cell, data, device) * 3 * whole / len(images))


def _trained_a_second(model: nn.Module, cell: Cell, data: Data, device: torch.device) -> float:
    """Images a second in steps as `training.fit` makes them."""
    size, autocast = cell.params["batch_size"], cell.environment["dtype"] == "bfloat16"
    images, labels = data.train.images[:size].to(device), data.train.labels[:size].to(device)
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
