"""One cell brought into the store: by whatever process was asked to, with what it needs and nothing that is there."""

from __future__ import annotations

import platform
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from brittle import __version__, data
from brittle.data import Data
from brittle.errors import InputError, StoreError, first_line
from brittle.models import users_code
from brittle.models.fit import resolve_device
from brittle.progress import Progress, silent
from brittle.study import kinds
from brittle.study.store import files
from brittle.study.store.cell import Cell, Context, Outcome
from brittle.study.store.store import Store, Stored

How = Literal["done", "cached", "busy", "lacks", "failed", "lost", "stop"]


@dataclass(frozen=True)
class Step:
    """A cell that is in work has come this far; the first says that it has begun."""

    key: str
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True)
class Say:
    """Something that the user should know."""

    sentence: str


@dataclass(frozen=True)
class End:
    """What became of a cell that was taken in work.

    Attributes:
        key: of the cell.
        how: 'done'; 'cached', as it was in the store; 'busy', as another process has it in work; 'lacks', as a parent
            is not there; 'failed'; 'lost', as the process that did it has gone; 'stop', as no cell can be stored.
        why: one line; of 'lacks' the parent's key.
        seconds: that the work took.
        trace: of a failure that is no mistake in the request.
    """

    key: str
    how: How
    why: str = ""
    trace: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Worker:
    """Does cells in this process.

    Attributes:
        store: where they go.
        load: data set by name or path.
        device: to compute on.
    """

    store: Store
    load: Callable[[str], Data]
    device: torch.device

    def do(self, cell: Cell, progress: Progress) -> End:
        """Brings a cell into the store, unless it is there, in work elsewhere, or lacks a parent. Never raises for it.

        `progress` is told once when the work begins, and then by the cell's own function.
        """
        try:
            if self.store.get(cell.key) is not None:
                return End(cell.key, "cached")
            with self.store.lock(cell.key, wait=False) as held:
                return self._locked(cell, progress) if held else End(cell.key, "busy")
        except StoreError as error:
            return End(cell.key, "stop", str(error))
        except InputError as error:
            return End(cell.key, "failed", str(error))
        except SystemExit as error:  # of the model's code: it would take the process and its other cells along
            return End(cell.key, "failed", f"the model's code ended the program: {users_code.reason(error)}")
        except Exception as error:  # a defect, here or in the user's own function: the other cells go on
            if files.is_full(error):
                return End(cell.key, "stop", f"cannot write to {self.store.root}: {first_line(error)}")
            return End(cell.key, "failed", f"{type(error).__name__}: {first_line(error)}", traceback.format_exc())

    def _locked(self, cell: Cell, progress: Progress) -> End:
        if self.store.get(cell.key) is not None:
            return End(cell.key, "cached")
        parents: dict[str, Stored] = {}
        for role, parent in cell.parents.items():
            stored = self.store.get(parent.key)
            if stored is None:
                return End(cell.key, "lacks", parent.key)
            parents[role] = stored
        progress(0, 1)
        context = Context(self.device, lambda: self.store.work(cell.key), self._data, progress)
        try:
            made = keep(cell, self.store, self.device, lambda: kinds.run(cell, parents, context))
        except FileNotFoundError:  # of a parent that somebody has removed since it was found
            gone = [parent.key for parent in cell.parents.values() if self.store.get(parent.key) is None]
            if not gone:
                raise
            return End(cell.key, "lacks", gone[0])
        return End(cell.key, "done", seconds=made.record["provenance"]["seconds"])

    def _data(self, place: str, digest: str) -> Data:
        found = self.load(place)
        if found.digest != digest:
            raise InputError(f"data set {place} has changed since the study was planned; run it again")
        return found


@dataclass(frozen=True)
class Workplace:
    """What another process has to know to do cells: paths and names, no tensors.

    Attributes:
        store: the store's folder.
        data_root: see `brittle.data.load`; layout: likewise.
        device: 'auto', 'cpu' or 'cuda[:N]'.
        threads: that the process computes with; torch's own choice when None. Results have the same bits where this
            is the same, and agree in distribution only where it is not.
        path: folders that the process looks for the user's own modules in.
    """

    store: Path
    data_root: Path | None = None
    layout: Literal["NCHW", "NHWC"] | None = None
    device: str = "auto"
    threads: int | None = None
    path: tuple[str, ...] = ()

    def open(self) -> Worker:
        """A worker in this process; each data set is read once."""
        sys.path[:] = [*sys.path, *(folder for folder in self.path if folder not in sys.path)]
        if self.threads is not None:
            torch.set_num_threads(self.threads)

        @lru_cache(maxsize=2)
        def load(place: str) -> Data:
            return data.load(place, self.data_root, layout=self.layout, progress=silent)

        return Worker(Store(self.store), load, resolve_device(self.device))


def keep(cell: Cell, store: Store, device: torch.device, work: Callable[[], Outcome]) -> Stored:
    """Stores what `work` computes, on a device, of a cell whose lock is held."""
    started, clock = datetime.now(UTC), time.monotonic()
    outcome = work()
    record = {
        **told(cell),
        "scalars": dict(outcome.scalars),
        "provenance": provenance(device)
        | {"started": started.isoformat(timespec="seconds"), "seconds": round(time.monotonic() - clock, 3)},
    }
    return store.put(cell.key, record, outcome.tensors)


def told(cell: Cell) -> dict[str, Any]:
    """What a record says of how its cell was asked for."""
    return {
        "title": cell.title,
        "function": cell.function,
        "version": cell.version,
        "params": dict(cell.params),
        "parents": {role: parent.key for role, parent in cell.parents.items()},
        "data": cell.digest,
        "environment": dict(cell.environment),
    }


def provenance(device: torch.device) -> dict[str, Any]:
    """Versions, machine and number of threads: what a cell's key does not name, and its bits may depend on."""
    return {
        "brittle": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }


@lru_cache(maxsize=1)
def processor() -> str:
    """The CPU's name and its widest instructions for tensors."""
    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
