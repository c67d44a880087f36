"""A whole study on 1 to 1,000 GPUs, by the engine's own schedule on a clock that is made up.

    python benchmarks/simulation.py [mandal-guo] [--size full] [--driver 0.01] [--faster 25]

What each cell takes is estimated from rates measured on this machine (`brittle study run --dry-run`) and divided by how
many times faster a GPU is taken to be than one of its cores. The driver hands out one cell after another.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from brittle import data
from brittle.study import schema
from brittle.study.expand import expand
from brittle.study.run.estimate import Cost, estimate, longest, measured, total
from brittle.study.run.scheduler import Schedule
from brittle.study.run.worker import End
from brittle.study.store.cell import Cell

START, CELL = 10.0, 0.05  # seconds until a process of a GPU is there, and that it takes for any cell beside its work


@dataclass(frozen=True)
class Simulated:
    """A run: its length, and the shares of it that the GPUs and the driver were at work; seconds each."""

    length: float
    busy: float
    driver: float


def simulated(cells: Sequence[Cell], costs: Mapping[str, Cost], gpus: int, driver: float) -> Simulated:
    """A run of the cells, of which each takes its seconds of a GPU, and `driver` seconds of the driver."""
    now, free_from = 0.0, START  # the driver's clock is the world's
    schedule = Schedule(cells, clock=lambda: now)
    ends: list[tuple[float, str]] = []
    handed = 0
    while not schedule.over:
        while len(ends) < gpus and (cell := schedule.next()) is not None:
            free_from = max(free_from, now) + driver
            handed += 1
            heapq.heappush(ends, (free_from + costs[cell.key].seconds, cell.key))
        now, key = heapq.heappop(ends)
        schedule.end(End(key, "done"))
    work = total(costs.values()).seconds
    return Simulated(now, work / gpus / now, handed * driver / now)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", nargs="?", default="mandal-guo")
    parser.add_argument("--size", default="full")
    parser.add_argument("--driver", type=float, default=0.01, help="seconds of the driver a cell")
    parser.add_argument("--faster", type=float, default=25.0, help="a GPU over one of this machine's cores")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    wanted = schema.read(asked.name, size=asked.size)
    images = data.load(wanted.data)
    cells = expand(wanted, images, device="cpu", dtype="bfloat16").cells
    costs = estimate(cells, images, measured(cells, images, torch.device("cpu")))
    costs = {key: replace(cost, seconds=cost.seconds / asked.faster + CELL) for key, cost in costs.items()}
    whole, slowest = total(costs.values()), max(cells, key=lambda cell: costs[cell.key].seconds)
    hours = whole.seconds * asked.faster / 3600
    print(f"{wanted.name}: {len(cells)} cells, {hours:.0f} h of one core, {whole.operations:.1e} operations,")
    print(f"one GPU is taken to be {asked.faster:g} cores.")
    minutes = longest(cells, costs) / 60, costs[slowest.key].seconds / 60
    print(f"The longest chain takes {minutes[0]:.1f} min, the longest cell {minutes[1]:.1f} ({slowest.title}).")
    print("| GPUs | time, h | GPUs at work | driver at work |\n| ---: | ---: | ---: | ---: |")
    for gpus in (1, 8, 64, 1000):
        run = simulated(cells, costs, gpus, asked.driver)
        print(f"| {gpus} | {run.length / 3600:.2f} | {run.busy:.0%} | {run.driver:.1%} |", flush=True)


if __name__ == "__main__":
    main()
