"""One cell brought into the store: by whatever process was asked to, with what it needs and nothing that is there."""

from __future__ import annotations

import math
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

Status = Literal["done", "cached", "busy", "missing_parent", "failed", "lost", "stop"]


@dataclass(frozen=True)
class CellProgress:
    """How far a cell's computation is; the first one says that it has begun."""

    key: str
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True)
class Message:
    """Something that the user should know."""

    sentence: str


@contextmanager
def telling_warnings(tell: Callable[[Message], None]) -> Iterator[None]:
    """Warnings are told, in place of printed."""

    def warn(message: Warning | str, *_: object, **__: object) -> None:
        tell(Message(str(message)))

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = warn
        yield


def telling_steps(key: str, tell: Callable[[CellProgress], None], often: float) -> Progress:
    """Tells of a cell's progress when it begins, and then at most once in `often` seconds."""
    last = -math.inf

    def step(done: int, total: int, note: str = "") -> None:
        nonlocal last
        if done == 0 or time.monotonic() - last > often:
            last = time.monotonic()
            tell(CellProgress(key, done, total, note))

    return step


@dataclass(frozen=True)
class Finished:
    """The end of a cell's computation.

    Attributes:
        key: of the cell.
        status: 'done'; 'cached', as it was in the store; 'busy', as another process computes it; 'missing_parent', as
            a parent is not in the store; 'failed'; 'lost', as its process has died; 'stop', as the store cannot be
            written.
        why: one line; of 'missing_parent' the parent's key.
        seconds: that the computation took.
        trace: of a failure that is no mistake in the request.
    """

    key: str
    status: Status
    why: str = ""
    trace: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Worker:
    """Computes cells in this process.

    Attributes:
        store: where they go.
        load: data set by name or path.
        device: to compute on.
    """

    store: Store
    load: Callable[[str], Data]
    device: torch.device

    def compute(self, cell: Cell, progress: Progress) -> Finished:
        """Brings a cell into the store, unless it is there, in work elsewhere, or lacks a parent. Never raises for it.

        `progress` is told once when the work begins, and then by the cell's own function.
        """
        try:
            if self.store.get(cell.key) is not None:
                return Finished(cell.key, "cached")
            with self.store.lock(cell.key, wait=False) as held:
                return self._locked(cell, progress) if held else Finished(cell.key, "busy")
        except StoreError as error:
            return Finished(cell.key, "stop", str(error))
        except InputError as error:
            return Finished(cell.key, "failed", str(error))
        except SystemExit as error:  # of the model's code: it would take the process and its other cells along
            return Finished(cell.key, "failed", f"the model's code ended the program: {users_code.reason(error)}")
        except Exception as error:  # a defect, here or in the user's own function: the other cells go on
            if files.is_full(error):
                return Finished(cell.key, "stop", f"cannot write to {self.store.root}: {first_line(error)}")
            return Finished(cell.key, "failed", f"{type(error).__name__}: {first_line(error)}", traceback.format_exc())

    def _locked(self, cell: Cell, progress: Progress) -> Finished:
        if self.store.get(cell.key) is not None:
            return Finished(cell.key, "cached")
        parents: dict[str, Stored] = {}
        for role, parent in cell.parents.items():
            stored = self.store.get(parent.key)
            if stored is None:
                return Finished(cell.key, "missing_parent", parent.key)
            parents[role] = stored
        progress(0, 1)
        context = Context(self.device, lambda: self.store.scratch(cell.key), self._data, progress)
        try:
            made = compute_and_store(cell, self.store, self.device, lambda: kinds.run(cell, parents, context))
        except FileNotFoundError:  # of a parent that somebody has removed since it was found
            gone = [parent.key for parent in cell.parents.values() if self.store.get(parent.key) is None]
            if not gone:
                raise
            return Finished(cell.key, "missing_parent", gone[0])
        return Finished(cell.key, "done", seconds=made.record["provenance"]["seconds"])

    def _data(self, place: str, digest: str) -> Data:
        found = self.load(place)
        if found.digest != digest:
            raise InputError(f"data set {place} has changed since the study was planned; run it again")
        return found


@dataclass(frozen=True)
class WorkerConfig:
    """What another process has to know to do cells: paths and names, no tensors.

    Attributes:
        store: the store's folder.
        data_root: see `brittle.data.load`; layout: likewise.
        device: 'auto', 'cpu' or 'cuda[:N]'.
        threads: that the process computes with; torch's own choice when None. Results have the same bits where this
            is the same, and agree in distribution only where it is not.
        path: folders that the process looks for the user's own modules in.
        code: these modules, for a machine that has no such folders, see `users_code.shipped`.
    """

    store: Path
    data_root: Path | None = None
    layout: Literal["NCHW", "NHWC"] | None = None
    device: str = "auto"
    threads: int | None = None
    path: tuple[str, ...] = ()
    code: tuple[tuple[str, bytes], ...] = ()

    def open(self) -> Worker:
        """A worker in this process; each data set is read once."""
        sys.path[:] = [*sys.path, *(folder for folder in self.path if folder not in sys.path)]
        users_code.unpack(self.code)
        if self.threads is not None:
            torch.set_num_threads(self.threads)

        @lru_cache(maxsize=2)
        def load(place: str) -> Data:
            return data.load(place, self.data_root, layout=self.layout, progress=silent)

        return Worker(Store(self.store), load, resolve_device(self.device))


def compute_and_store(cell: Cell, store: Store, device: torch.device, work: Callable[[], Outcome]) -> Stored:
    """Stores what `work` computes, on a device, of a cell whose lock is held."""
    started, clock = datetime.now(UTC), time.monotonic()
    outcome = work()
    record = {
        **request_record(cell),
        "scalars": dict(outcome.scalars),
        "provenance": provenance(device)
        | {"started": started.isoformat(timespec="seconds"), "seconds": round(time.monotonic() - clock, 3)},
    }
    return store.put(cell.key, record, outcome.tensors)


def request_record(cell: Cell) -> dict[str, Any]:
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
