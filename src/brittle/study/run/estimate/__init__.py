"""What cells cost before they are run: time and operations.

Counted are the images that a cell puts through its network, and those that it takes back to the pixels or the weights;
over the rates that were measured on this machine that is its time. Where the store holds cells that are alike, made
here with as many threads, it is corrected by how much longer these took.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from brittle.data import Data
from brittle.errors import InputError
from brittle.study.kinds import FUNCTIONS
from brittle.study.kinds.network.cell import untrained
from brittle.study.kinds.work import Counts
from brittle.study.run.estimate.rates import Rates, measured, named, trained_as
from brittle.study.run.scheduler import recall
from brittle.study.store.cell import Cell
from brittle.study.store.store import Store

__all__ = ["Cost", "Rates", "estimate", "longest", "measured", "total"]

CELL, EPOCH = 0.02, 0.01  # seconds that any cell takes, and an epoch of training beside its images: a checkpoint
VARIED = {  # parameters that do not change what a unit of work takes
    "seed", "temperature", "epochs", "learning_rate", "learning_rate_decay", "weight_decay",
    "rows", "start", "stop", "indices",
}  # fmt: skip


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
