"""An executor on a Ray cluster of one machine or many. All of them must see the store.

A cell is one Ray task. Keys and parameters travel to it, and words of how far it is and how it ended travel back;
tensors go through the store. Ray does a task anew, elsewhere, whose process or machine has died.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from brittle.errors import InputError, first_line
from brittle.study.run.scheduler import TRIES
from brittle.study.run.worker import (
    CellProgress,
    Finished,
    Message,
    Worker,
    WorkerConfig,
    telling_steps,
    telling_warnings,
)
from brittle.study.store.cell import Cell

_OFTEN = 0.5  # seconds between two steps that a cell tells of, and between looks at what was told
_LOOK = 2.0  # seconds between looks at what the cluster has
# Where Ray is started here, it listens on loopback only (by the variable that makes it do so on Windows), and asks for
# a token that nobody but its own processes has.
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}


class Ray:
    """Does cells as tasks of Ray.

    Args:
        place: where each process works, with one thread unless it says otherwise.
        address: of a cluster, 'HOST:PORT' or 'auto'; without one, Ray is started here and ends with this process.
        workers: processors of the Ray that is started here; all of the machine when not given.
        gpus_per_cell: part of a GPU that a cell is given.

    Raises:
        InputError: if ray is not installed, or there is no cluster at the address.
    """

    def __init__(
        self,
        place: WorkerConfig,
        *,
        address: str | None = None,
        workers: int | None = None,
        gpus_per_cell: float = 0.0,
    ) -> None:
        self._ray = ray = _connected(address, workers)
        self._gpus = gpus_per_cell
        self._place = ray.put(place)
        self._news = ray.remote(num_cpus=0, max_restarts=-1)(_News).remote()
        self._task = ray.remote(num_cpus=1, num_gpus=gpus_per_cell, max_retries=TRIES - 1)(_do)
        self._work: dict[Any, Cell] = {}  # by the reference to what will come back
        self._asked = 0.0
        self._look()
        if not self._places:
            self.shutdown()
            what = f"{gpus_per_cell:g} of a GPU" if gpus_per_cell else "a processor"
            raise InputError(f"the Ray at {address or 'this machine'} has no {what} for a cell")

    @property
    def capacity(self) -> int:
        """As many as can be done at a time, and as many again that wait at the cluster: else it waits for them."""
        if time.monotonic() - self._looked > _LOOK:
            self._look()
        return 2 * self._places - len(self._work)

    def submit(self, cell: Cell) -> None:
        """Gives a cell to the cluster."""
        self._work[self._task.options(name=cell.title).remote(self._place, cell, self._news)] = cell

    def poll(self, tell: Callable[[CellProgress | Message], None], timeout: float) -> Sequence[Finished]:
        """Waits for a task to end."""
        if not self._work:
            return []
        over, _ = self._ray.wait(list(self._work), num_returns=1, timeout=timeout)
        if over:
            over, _ = self._ray.wait(list(self._work), num_returns=len(self._work), timeout=0)
        if over or time.monotonic() - self._asked > _OFTEN:
            self._tell(tell)
        return [self._ended(reference) for reference in over]

    def shutdown(self) -> None:
        """Cancels what is in work; a Ray that was started here ends."""
        for reference in self._work:
            self._ray.cancel(reference, force=True)
        self._work.clear()
        self._ray.kill(self._news)
        self._ray.shutdown()

    def _look(self) -> None:
        """How many cells the cluster has places for."""
        self._looked = time.monotonic()
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        gpus = [node.get("GPU", 0.0) / self._gpus if self._gpus else math.inf for node in nodes]
        self._places = sum(int(min(node.get("CPU", 0.0), most)) for node, most in zip(nodes, gpus, strict=True))

    def _ended(self, reference: Any) -> Finished:
        cell = self._work.pop(reference)
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:  # Ray has tried it as often as it may
            return Finished(cell.key, "lost", first_line(error))

    def _tell(self, tell: Callable[[CellProgress | Message], None]) -> None:
        self._asked = time.monotonic()
        keys = {cell.key for cell in self._work.values()}
        try:
            news = self._ray.get(self._news.drain.remote(), timeout=_LOOK)
        except self._ray.exceptions.RayError:  # it died with its machine, and is started elsewhere
            return
        for one in news:
            if isinstance(one, Message) or one.key in keys:
                tell(one)


class _News:
    """What cells have told of, until it is asked for: the latest step of each."""

    def __init__(self) -> None:
        self._steps: dict[str, CellProgress] = {}
        self._said: list[Message] = []

    def put(self, news: CellProgress | Message) -> None:
        if isinstance(news, Message):
            self._said.append(news)
        else:
            self._steps[news.key] = news

    def drain(self) -> list[CellProgress | Message]:
        found = [*self._said, *self._steps.values()]
        self._said, self._steps = [], {}
        return found


@lru_cache(maxsize=1)
def _worker(place: WorkerConfig) -> Worker:
    """What a process of the cluster keeps from one cell to the next: the data sets that it has read."""
    return place.open()


def _do(place: WorkerConfig, cell: Cell, news: Any) -> Finished:
    """A cell, in a process of the cluster."""
    with telling_warnings(news.put.remote):
        return _worker(place).compute(cell, telling_steps(cell.key, news.put.remote, _OFTEN))


def _connected(address: str | None, workers: int | None) -> Any:
    """The module `ray`, connected to a cluster."""
    if address is None:  # Ray reads these when it is imported, its processes when they are started
        if sys.modules.get("ray") and any(os.environ.get(name) != value for name, value in ALONE.items()):
            told = " ".join(f"{name}={value}" for name, value in ALONE.items())
            raise InputError(f"ray was imported before it could be told to listen on loopback only: set {told} first")
        os.environ.update(ALONE)
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
    except ImportError as error:
        raise InputError("the engine ray needs the package ray: pip install 'brittle[ray]'") from error
    here = {"num_cpus": workers, "include_dashboard": False} if address is None else {}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **here)
    except Exception as error:  # a ConnectionError, a RuntimeError, a ValueError, as it finds
        raise InputError(f"no Ray at {address or 'this machine'}: {first_line(error)}") from error
    return ray
