"""An executor of several processes of this machine, one cell each. They end with the process that started them."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from brittle.errors import InputError
from brittle.study.run.scheduler import TRIES
from brittle.study.run.threads import available_cores
from brittle.study.run.worker import CellProgress, Finished, Message, WorkerConfig, telling_steps, telling_warnings
from brittle.study.store.cell import Cell

WORKER = 600_000_000  # bytes of a process that computes cells, beside the data set
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_OFTEN = 0.1  # seconds between two steps that a process tells of


def most_workers(data: int = 0) -> int:
    """How many processes this machine has a core and the memory for: at least one.

    Args:
        data: bytes of the data set that each of them reads.
    """
    return max(1, min(available_cores(), math.floor(_memory() / (WORKER + data))))


def _memory() -> float:
    """Bytes that this machine has left, and its control group allows; more than enough where neither says so."""
    enough = 1e15
    told = [enough]
    for path in _LIMITS:
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        told.append(float(text) if text.isdigit() else enough)  # 'max' is no limit
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        told += [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    except OSError:
        if hasattr(os, "sysconf"):
            told.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    return min(told)


class LocalPool:
    """Up to so many processes at a workplace, each started when there is a cell for it.

    One that dies is replaced, and its cell is lost to it.

    Args:
        place: where each process works.
        count: the most of them at a time. More than `most_workers` are not started, and a warning says so.
        data: bytes of the data set that each of them reads.
    """

    def __init__(self, place: WorkerConfig, count: int, data: int = 0) -> None:
        self._place, self._count = place, min(count, most_workers(data))
        if count > self._count:
            plural = "s" * (self._count > 1)
            warnings.warn(
                f"{self._count} worker{plural} instead of {count}: this machine has {available_cores()} cores and "
                f"{_memory() / 1e9:.1f} GB of memory free, of which each worker needs {(WORKER + data) / 1e9:.1f} GB",
                stacklevel=2,
            )
        self._workers: list[_WorkerProcess] = []

    @property
    def capacity(self) -> int:
        """How many more cells they would take now."""
        return self._count - sum(worker.cell is not None for worker in self._workers)

    def submit(self, cell: Cell) -> None:
        """Gives a cell to one that has nothing to do; starts one if all have."""
        worker = next((worker for worker in self._workers if worker.cell is None), None)
        if worker is None:
            worker = _WorkerProcess(self._place)
            self._workers.append(worker)
        worker.begin(cell)

    def poll(self, tell: Callable[[CellProgress | Message], None], timeout: float) -> Sequence[Finished]:
        """Waits for a word of any."""
        wait([source for worker in self._workers for source in (worker.pipe, worker.process.sentinel)], timeout)
        return [end for worker in self._workers for end in worker.poll(tell)]

    def shutdown(self) -> None:
        """Stops all, at once: the system frees their locks."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()


class _WorkerProcess:
    """One process, and what it has in work; and how many have died in a row before they said anything."""

    def __init__(self, place: WorkerConfig) -> None:
        self._place, self.cell, self._vain = place, None, 0
        self.pipe, self.process = self._start()

    def _start(self) -> tuple[Connection, BaseProcess]:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, self._place), daemon=True)
        process.start()
        there.close()
        return here, process

    def begin(self, cell: Cell) -> None:
        self.cell = cell
        try:
            self.pipe.send(cell)
        except OSError:  # it died meanwhile: `poll` will notice
            return

    def poll(self, tell: Callable[[CellProgress | Message], None]) -> list[Finished]:
        ends = []
        try:
            while self.pipe.poll():
                news = self.pipe.recv()
                self._vain = 0
                if isinstance(news, Finished):
                    self.cell = None
                    ends.append(news)
                elif news is not None:
                    tell(news)
        except (EOFError, OSError):
            ends += self._lost()
        return ends

    def _lost(self) -> list[Finished]:
        self.process.join()
        code, cell = self.process.exitcode or 0, self.cell
        why = f"its process was killed by signal {-code}" if code < 0 else f"its process ended with exit code {code}"
        self.cell, self._vain = None, self._vain + 1
        if self._vain == TRIES:
            raise InputError(f"a worker cannot be started: {why}")
        self.pipe, self.process = self._start()
        return [] if cell is None else [Finished(cell.key, "lost", why)]


def _work(pipe: Connection, place: WorkerConfig) -> None:
    """What a process does until nobody listens any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; who began them decides

    def tell(news: CellProgress | Message | Finished | None) -> None:
        try:
            pipe.send(news)
        except OSError:
            sys.exit(1)

    with telling_warnings(tell):
        worker = place.open()
        tell(None)  # it has started
        while True:
            try:
                cell = pipe.recv()
            except (EOFError, OSError):
                return
            tell(worker.compute(cell, telling_steps(cell.key, tell, _OFTEN)))
