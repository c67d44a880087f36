"""Runs cells in this process: what is in the store is not done again, what is killed goes on where it was.

Other processes may run the same cells at the same time: what one of them has in work is passed over, until it is done
or free again.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from brittle import __version__, cells
from brittle.cells import Cell, Context, Outcome
from brittle.data import Data
from brittle.errors import InputError
from brittle.store import Store, Stored

_POLL = 0.2  # seconds between looks at what other processes have in work


class Watch(Protocol):
    """Told what happens; see `Quiet` for one that shows nothing."""

    def begin(self, cell: Cell, number: int, total: int) -> None:
        """Work on `cell`, the `number`th of `total`, begins."""

    def step(self, done: int, total: int, note: str = "") -> None:
        """The cell that is being worked on has come this far."""

    def end(self, cell: Cell, cached: bool) -> None:
        """The cell is in the store; `cached`: it already was."""

    def say(self, sentence: str) -> None:
        """Something the user should know, such as that a damaged cell is done again."""


class Quiet(Watch):
    """Shows nothing."""


@dataclass(frozen=True)
class Ran:
    """What became of a run."""

    done: int  # cells computed
    cached: int  # cells that were in the store
    seconds: float


def forget(plan: Sequence[Cell], store: Store) -> None:
    """Throws the plan's cells away, and what is left of unfinished ones."""
    for cell in plan:
        store.discard(cell.key)
        store.clear_work(cell.key)


def run(
    plan: Sequence[Cell],
    store: Store,
    *,
    load: Callable[[str], Data],
    device: torch.device,
    watch: Watch | None = None,
) -> Ran:
    """Brings every cell of `plan` into the store.

    Args:
        plan: cells, parents before children.
        store: where finished cells lie; cells that are there and whole are not done again.
        load: data set by name or path.
        device: to compute on; its kind must be that in the cells' environments.
        watch: told of progress.

    Raises:
        InputError: if the store cannot be written, the data has changed since the plan was made, or a cell's own work
            raises one. Cells finished before stay.
    """
    watch = watch or Quiet()
    started = time.monotonic()

    @lru_cache(maxsize=2)
    def data(place: str, digest: str) -> Data:
        found = load(place)
        if found.digest != digest:
            raise InputError(f"data set {place} has changed since the study was planned; run it again")
        return found

    waiting, done, told = list(enumerate(plan, 1)), 0, False
    while waiting:
        turns = [(place, _turn(*place, len(plan), store, data, device, watch)) for place in waiting]
        done += sum(turn == "done" for _, turn in turns)
        waiting = [place for place, turn in turns if turn == "later"]
        if len(waiting) == len(turns):  # all that is left is in work elsewhere, or needs what is
            _check_parents([cell for _, cell in waiting], store)
            if not told:
                watch.say(f"{waiting[0][1].title}: waiting for another process that is doing it")
            told = True
            time.sleep(_POLL)
    return Ran(done, len(plan) - done, time.monotonic() - started)


def _check_parents(waiting: Sequence[Cell], store: Store) -> None:
    """Raises InputError if a cell waits for one that was in the store, and that nobody will do again."""
    keys = {cell.key for cell in waiting}
    for cell in waiting:
        for parent in cell.parents.values():
            if parent.key not in keys and store.get(parent.key) is None:
                raise InputError(
                    f"{cell.title}: its stored cell {parent.key[:8]} has gone or been damaged meanwhile; run again"
                )


def _turn(
    number: int,
    cell: Cell,
    total: int,
    store: Store,
    data: Callable[[str, str], Data],
    device: torch.device,
    watch: Watch,
) -> Literal["done", "cached", "later"]:
    """Brings a cell into the store, unless another process has it in work, or a cell that it needs."""
    if store.get(cell.key) is not None:
        watch.end(cell, cached=True)
        return "cached"
    parents = {role: store.get(parent.key) for role, parent in cell.parents.items()}
    whole = {role: parent for role, parent in parents.items() if parent is not None}
    if len(whole) < len(parents):
        return "later"
    with store.lock(cell.key, wait=False) as held:
        if not held:
            return "later"
        if store.get(cell.key) is not None:
            watch.end(cell, cached=True)
            return "cached"
        if damage := store.damage(cell.key):
            watch.say(f"{cell.title}: stored cell {cell.key[:8]} is damaged ({damage}); doing it again")
        watch.begin(cell, number, total)
        context = Context(device, lambda: store.work(cell.key), data, watch.step)
        keep(cell, store, device, lambda: cells.run(cell, whole, context))
        watch.end(cell, cached=False)
        return "done"


def keep(cell: Cell, store: Store, device: torch.device, work: Callable[[], Outcome]) -> Stored:
    """Stores what `work` computes, on a device, of a cell whose lock is held."""
    started, clock = datetime.now(UTC), time.monotonic()
    outcome = work()
    record = {
        "title": cell.title,
        "function": cell.function,
        "version": cell.version,
        "params": dict(cell.params),
        "parents": {role: parent.key for role, parent in cell.parents.items()},
        "data": cell.digest,
        "environment": dict(cell.environment),
        "scalars": dict(outcome.scalars),
        "provenance": provenance(device)
        | {"started": started.isoformat(timespec="seconds"), "seconds": round(time.monotonic() - clock, 3)},
    }
    return store.put(cell.key, record, outcome.tensors)


def recall(store: Store, key: str) -> Cell:
    """The cell, with its parents, that a stored one was made from.

    Raises:
        InputError: if it or a parent is not in the store, or was made by another version of its function.
    """
    stored = store.get(key)
    if stored is None:
        raise InputError(f"cell {key[:8]} is not in the store {store.root}: {store.damage(key) or 'absent'}")
    record = stored.record
    cell = Cell(
        record["title"],
        record["function"],
        record["params"],
        {role: recall(store, parent) for role, parent in record["parents"].items()},
        digest=record["data"],
        environment=record["environment"],
    )
    if cell.key != key:
        raise InputError(f"cell {key[:8]} ({cell.title}) was made by another version of brittle; make it again")
    return cell


def provenance(device: torch.device) -> dict[str, Any]:
    """Versions, machine and number of threads: what the last bits of a result may depend on."""
    return {
        "brittle": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }


def _processor() -> str:
    """The CPU's name and its widest instructions for tensors."""
    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
