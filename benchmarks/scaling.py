"""What it costs to have many cells: overhead of an empty one, what a second worker is worth, a store of 10,000.

    python benchmarks/scaling.py [overhead] [speedup] [store]

Each line ends with the target that it is held against. Times are of the clock: run it on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import brittle
from brittle.errors import InputError
from brittle.report import gather, write
from brittle.study import schema
from brittle.study.expand import Plan, expand
from brittle.study.kinds import new_cell
from brittle.study.run import scheduler
from brittle.study.run.local_pool import LocalPool
from brittle.study.run.scheduler import Executor
from brittle.study.run.worker import Worker, WorkerConfig
from brittle.study.store.cell import Cell
from brittle.study.store.store import Store

DATA = brittle.data.load("digits")
TURNS = 3


def place(store: Store) -> WorkerConfig:
    return WorkerConfig(store.root, device="cpu", threads=1)


def here(store: Store) -> Executor:
    torch.set_num_threads(1)
    return scheduler.InProcess(Worker(store, lambda _: DATA, torch.device("cpu")))


def on_ray(store: Store) -> Executor:
    from brittle.study.run.ray_pool import Ray

    return Ray(place(store), workers=2)


def took(cells: list[Cell] | tuple[Cell, ...], executor: Callable[[Store], Executor]) -> float:
    """Seconds that the cells take in an empty store, once the executor is there."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        warm = empty(4, "warm")
        made = executor(store)
        shutdown, made.shutdown = made.shutdown, lambda: None  # type: ignore[method-assign]
        try:
            scheduler.run(warm, store, made)
            started = time.monotonic()
            ran = scheduler.run(cells, store, made)
            seconds = time.monotonic() - started
        finally:
            shutdown()
        assert ran.done == len(cells), ran.failed
        return seconds


def empty(count: int, name: str = "empty") -> list[Cell]:
    """Cells that keep one image and do nothing else."""
    return [
        new_cell(f"{name} {i}", "select", {"rows": 1, name: i}, digest=DATA.digest, place="digits")
        for i in range(count)
    ]


# Overhead -----------------------------------------------------------------------------------------------------------


def overhead(count: int = 200) -> None:
    print(f"overhead of an empty cell, median of {TURNS} runs of {count}; a cell is two files and their fsync")
    ways: dict[str, tuple[Callable[[Store], Executor], float]] = {
        "in this process": (here, 20),
        "two processes": (lambda store: LocalPool(place(store), 2), 20),
        "Ray, two workers": (on_ray, 50),
    }
    for name, (executor, target) in ways.items():
        try:
            each = statistics.median(took(empty(count), executor) / count for _ in range(TURNS))
        except InputError as error:
            print(f"  {name:20} {error}")
            continue
        print(f"  {name:20} {1000 * each:6.1f} ms (target: under {target})")


# A second worker ----------------------------------------------------------------------------------------------------

TABLES: dict[str, Any] = {
    "name": "speedup",
    "title": "What a second worker is worth",
    "data": "digits",
    "rows": 200,
    "shard_rows": 10,
    "training": {"epochs": 8, "batch_size": 32},
    "models": {"plain": {}},
}


def speedup() -> None:
    print(f"two one-thread workers over one, median of {TURNS} runs each")
    training = planned(TABLES | {"seeds": [*range(8)]})
    trainings = [cell for cell in training.cells if cell.function == "train"]
    show("eight trainings", trainings)
    song = {"function": "brittle.attacks.song_2", "arithmetic": ["float32", "exact"], "max_pixels": 100}
    attacked = planned(TABLES | {"attacks": {"song_2": song}, "training": {"epochs": 0}})
    show("an attack in twenty shards", [cell for cell in attacked.cells if cell.function != "measure"])


def planned(tables: dict[str, Any]) -> Plan:
    return expand(schema.check(tables, "speedup"), DATA, device="cpu", dtype="float32")


def show(name: str, cells: list[Cell]) -> None:
    def seconds(count: int) -> float:
        return statistics.median(took(cells, lambda store: LocalPool(place(store), count)) for _ in range(TURNS))

    one, two = seconds(1), seconds(2)
    print(f"  {name:28} {one:6.1f} s and {two:6.1f} s: {one / two:.2f} times (target: at least 1.7)")


# A store of 10,000 cells --------------------------------------------------------------------------------------------


def store(count: int = 10_000, shards: int = 98) -> None:
    """A study of networks with many shards each, its cells copies of real ones."""
    with tempfile.TemporaryDirectory() as folder:
        made = Store(folder)
        tables = TABLES | {"rows": 20, "training": {"epochs": 0}}
        song = {"function": "brittle.attacks.song_1", "arithmetic": ["float32", "exact"], "max_pixels": 20}
        plan = planned(tables | {"attacks": {"song_1": song}})
        scheduler.run(plan.cells, made, here(made))
        filled(made, plan, count, shards)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        print(f"a store of {len(made.keys())} cells, {size / len(made.keys()) / 1000:.1f} kB a cell")
        started = time.monotonic()
        found = gather(Store(folder), "many")
        opened = time.monotonic() - started
        write(found, Path(folder) / "page")
        whole = time.monotonic() - started
        print(f"  opened in {opened:.1f} s, opened and reported in {whole:.1f} s (target: under 10)")


def filled(made: Store, plan: Plan, count: int, shards: int) -> None:
    """Puts copies of the plan's one network and its two shards into the store, under a study of `count` cells.

    Only the first shard of an attack has files of single steps.
    """
    entry, sync = plan.record["models"][0], os.fsync
    os.fsync = lambda handle: None  # of a benchmark's own store nothing has to outlive the machine
    try:
        models = []
        for number in range((count - 1) // (shards + 2)):
            key = {role: copied(made, entry[role], f"{number} {role}") for role in ("train", "measure")}
            attack = entry["attacks"][0]
            cells = [copied(made, attack["cells"][shard > 0], f"{number} shard {shard}") for shard in range(shards)]
            models.append(entry | key | {"seed": number, "attacks": [attack | {"cells": cells}]})
    finally:
        os.fsync = sync
    made.write_study("many", {**plan.record, "name": "many", "models": models})


def copied(made: Store, key: str, name: str) -> str:
    stored = made.get(key)
    assert stored is not None
    other = new_cell(name, "select", {"copy": name}).key
    record = {label: value for label, value in stored.record.items() if label != "files"}
    made.put(other, record, {Path(file).stem: stored.tensors(Path(file).stem) for file in stored.record["files"]})
    return other


def main() -> None:
    parser = argparse.ArgumentParser()
    parts = {"overhead": overhead, "speedup": speedup, "store": store}
    parser.add_argument("parts", nargs="*", choices=[[], *parts])
    asked = parser.parse_args().parts or list(parts)
    for name in asked:
        parts[name]()


if __name__ == "__main__":
    main()
