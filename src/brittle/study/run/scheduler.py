"""Runs the cells of a plan in dependency order and skips stored ones. A failure skips only the cells that depend on it.

Which cell comes next is decided here, in one place; an `Executor` computes it: this process (`InProcess`), several
(`local_pool`) or those of a Ray cluster (`ray_pool`). Other processes may run the same cells on the same store at the
same time: a cell that one of them is computing waits here until it is stored or free again. The executor changes
nothing about a cell but its number of threads: the same number gives the same bits, another number gives results that
agree in distribution only.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from brittle.errors import InputError, StoreError
from brittle.study import lookup
from brittle.study.kinds import FUNCTIONS, new_cell
from brittle.study.kinds.network.cell import GENERATIONS, NETWORKS, check_trusted
from brittle.study.run.worker import CellProgress, Finished, Message, Worker
from brittle.study.store.cell import Cell
from brittle.study.store.store import Store

POLL = 0.2  # seconds that a cell rests which another process has in work, and between looks where nothing is heard
TRIES = 3  # of a cell whose process dies


class Executor(Protocol):
    """What computes cells."""

    @property
    def capacity(self) -> int:
        """How many more cells it takes now."""
        ...

    def submit(self, cell: Cell) -> None:
        """Starts the computation of a cell; returns at once."""

    def poll(self, tell: Callable[[CellProgress | Message], None], timeout: float) -> Sequence[Finished]:
        """The cells that have finished since the last call; waits at most `timeout` seconds for one."""
        ...

    def shutdown(self) -> None:
        """Stops all computations."""


class Watch(Protocol):
    """Told what happens; see `Quiet` for one that shows nothing."""

    def plan(self, cells: Sequence[Cell]) -> None:
        """These will be brought into the store."""

    def begin(self, cell: Cell) -> None:
        """Work on a cell begins."""

    def step(self, cell: Cell, done: int, total: int, note: str = "") -> None:
        """A cell that is in work has come this far."""

    def end(self, cell: Cell, cached: bool, seconds: float = 0.0) -> None:
        """The cell is in the store, after so many seconds of work; `cached`: it already was."""

    def fail(self, cell: Cell, why: str) -> None:
        """The cell cannot be done."""

    def say(self, sentence: str) -> None:
        """Something the user should know, such as that a damaged cell is done again."""


class Quiet(Watch):
    """Shows nothing."""


@dataclass(frozen=True)
class Failure:
    """A cell that could not be done.

    Attributes:
        cell: it.
        why: one line.
        trace: where it happened, of what is no mistake in the request; else empty.
    """

    cell: Cell
    why: str
    trace: str = ""


@dataclass(frozen=True)
class Ran:
    """What became of a run.

    Attributes:
        done: cells computed; cached: cells that were in the store.
        seconds: it took.
        failed: cells that could not be done.
        left: cells that need one of these.
    """

    done: int
    cached: int
    seconds: float
    failed: tuple[Failure, ...] = ()
    left: tuple[Cell, ...] = ()


@dataclass
class Schedule:
    """Which cells can be begun, in the order of the plan.

    A cell is ready once its parents in the plan are done; a parent that is not in the plan is believed to be there.
    """

    cells: Sequence[Cell]
    clock: Callable[[], float] = time.monotonic
    running: set[str] = field(init=False, default_factory=set)
    failed: dict[str, Finished] = field(init=False, default_factory=dict)
    left: dict[str, Cell] = field(init=False, default_factory=dict)  # that need a failed one

    def __post_init__(self) -> None:
        self._places = {cell.key: place for place, cell in enumerate(self.cells)}
        self._lacking = {
            cell.key: {parent.key for parent in cell.parents.values() if parent.key in self._places}
            for cell in self.cells
        }
        self._children: dict[str, list[str]] = {key: [] for key in self._places}
        for key, parents in self._lacking.items():
            for parent in parents:
                self._children[parent].append(key)
        self._ready = [place for key, place in self._places.items() if not self._lacking[key]]  # a heap of places
        self._resting: list[tuple[float, int]] = []  # a heap of when to look again, and places
        self._lost: Counter[str] = Counter()
        self._open = set(self._places)  # neither done, nor failed, nor left

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return not self._open

    @property
    def waits(self) -> bool:
        """Whether all that is left is in work in other processes, or needs what is."""
        return bool(self._resting) and not self.running and not self._ready

    def next(self) -> Cell | None:
        """A cell to begin, None while there is none."""
        while self._resting and self._resting[0][0] <= self.clock():
            heapq.heappush(self._ready, heapq.heappop(self._resting)[1])
        while self._ready:
            cell = self.cells[heapq.heappop(self._ready)]
            if cell.key in self._open and cell.key not in self.running and not self._lacking[cell.key]:
                self.running.add(cell.key)
                return cell
        return None

    def end(self, end: Finished) -> None:
        """A cell that was begun has ended so."""
        self.running.discard(end.key)
        if end.status == "lost":
            self._lost[end.key] += 1
        if end.status in ("done", "cached"):
            self.done(end.key)
        elif end.status == "busy":
            heapq.heappush(self._resting, (self.clock() + POLL, self._places[end.key]))
        elif end.status == "missing_parent" and end.why in self._places:
            self._again(end.why)
        elif end.status == "lost" and self._lost[end.key] < TRIES:
            heapq.heappush(self._ready, self._places[end.key])
        else:
            self._fail(end)

    def done(self, key: str) -> None:
        """A cell is in the store."""
        self._open.discard(key)
        for child in self._children[key]:
            self._lacking[child].discard(key)
            if not self._lacking[child] and child in self._open:
                heapq.heappush(self._ready, self._places[child])

    def _again(self, key: str) -> None:
        """A cell that was in the store has gone or been damaged: it is to be done, and its children wait for it."""
        self._open.add(key)
        for child in self._children[key]:
            if child in self._open:
                self._lacking[child].add(key)
        if not self._lacking[key] and key not in self.running:
            heapq.heappush(self._ready, self._places[key])

    def _fail(self, end: Finished) -> None:
        if end.status == "missing_parent":
            end = Finished(
                end.key, "failed", f"cell {end.why[:8]}, which it needs, is not in the store or damaged; run again"
            )
        elif end.status == "lost":
            end = Finished(end.key, "failed", f"{end.why}, {TRIES} times")
        self.failed[end.key] = end
        self._open.discard(end.key)
        below = list(self._children[end.key])
        while below:
            key = below.pop()
            if key in self._open:
                self._open.discard(key)
                self.left[key] = self.cells[self._places[key]]
                below += self._children[key]


class InProcess:
    """This process, a cell at a time."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._cell = worker, None

    @property
    def capacity(self) -> int:
        """One, or none."""
        return int(self._cell is None)

    def submit(self, cell: Cell) -> None:
        """Notes the cell; it is done when it is asked what was heard."""
        self._cell = cell

    def poll(self, tell: Callable[[CellProgress | Message], None], timeout: float) -> Sequence[Finished]:
        """Does the cell."""
        if self._cell is None:
            return []
        cell, self._cell = self._cell, None
        return [
            self._worker.compute(cell, lambda done, total, note="": tell(CellProgress(cell.key, done, total, note)))
        ]

    def shutdown(self) -> None:
        """Nothing is in work."""


def run(plan: Sequence[Cell], store: Store, executor: Executor, watch: Watch | None = None) -> Ran:
    """Brings every cell of `plan` into the store, as far as that can be.

    Args:
        plan: cells, parents before children.
        store: where finished cells lie; cells that are there and whole are not done again.
        executor: computes the others, in this store. It is shut down at the end, however that comes.
        watch: told of progress.

    Raises:
        StoreError: if the store cannot be written. Cells finished before stay.
    """
    watch, started = watch or Quiet(), time.monotonic()
    cells, schedule = {cell.key: cell for cell in plan}, Schedule(plan)
    watch.plan(plan)
    done = 0
    for cell in plan:
        if store.get(cell.key) is not None:
            schedule.done(cell.key)
            watch.end(cell, cached=True)
        elif damage := store.damage(cell.key):
            watch.say(f"{cell.title}: stored cell {cell.key[:8]} is damaged ({damage}); computing it again")
    begun: set[str] = set()

    def tell(news: CellProgress | Message) -> None:
        if isinstance(news, Message):
            watch.say(news.sentence)
        elif news.key in begun:
            watch.step(cells[news.key], news.done, news.total, news.note)
        else:
            begun.add(news.key)
            watch.begin(cells[news.key])

    told = False
    try:
        while not schedule.over:
            while executor.capacity and (cell := schedule.next()) is not None:
                executor.submit(cell)
            ends = executor.poll(tell, POLL)
            for end in ends:
                if end.status == "stop":
                    raise StoreError(end.why)
                begun.discard(end.key)
                schedule.end(end)
                cell = cells[end.key]
                if end.status in ("done", "cached"):
                    done += end.status == "done"
                    watch.end(cell, cached=end.status == "cached", seconds=end.seconds)
                elif end.key in schedule.failed:
                    watch.fail(cell, schedule.failed[end.key].why)
                elif end.status == "lost":
                    watch.say(f"{cell.title}: {end.why}; computing it again")
            if schedule.waits and not told:
                watch.say("waiting: another process is computing the remaining cells")
                told = True
            if not ends and not schedule.running:
                time.sleep(POLL)
    finally:
        executor.shutdown()
    failures = tuple(Failure(cells[key], end.why, end.trace) for key, end in schedule.failed.items())
    cached = len(cells) - done - len(failures) - len(schedule.left)
    return Ran(done, cached, time.monotonic() - started, failures, tuple(schedule.left.values()))


def forget(plan: Sequence[Cell], store: Store) -> None:
    """Throws the plan's cells away, and what is left of unfinished ones.

    A cell that another process has in work stays: it is being computed anew.
    """
    for cell in plan:
        with store.lock(cell.key, wait=False) as held:
            if held:
                store.discard(cell.key)
                store.remove_scratch(cell.key)


_MADE_FROM = {"title", "function", "params", "parents", "data", "environment"}


def recall(store: Store, key: str, made: dict[str, Cell] | None = None, *, trust: bool = False) -> Cell:
    """The cell, with its parents, that a stored one was made from.

    Args:
        store: where it lies.
        key: of the cell.
        made: cells that were recalled before, by their key; those that this call finds are added.
        trust: whether the cell may name code from outside brittle.

    Raises:
        InputError: if it or a parent is not in the store, is no cell of a study, was made by another version of its
            function, has a record that does not belong to its key, or names code from outside brittle without `trust`.
    """
    made = {} if made is None else made
    wanted = [] if key in made else [key]
    while wanted:
        at = wanted[-1]
        stored = store.get(at)
        if stored is None:
            raise InputError(f"cell {at[:8]} is not in the store {store.root}: {store.damage(at) or 'absent'}")
        record = stored.record
        if _MADE_FROM - record.keys():
            raise InputError(f"cell {at[:8]} does not say what it was made from")
        try:
            lacking = [parent for parent in record["parents"].values() if parent not in made]
            if len(wanted) > 4 * GENERATIONS:  # two cells a network, and what is made of the last
                raise InputError(f"cell {key[:8]} is made from more than {GENERATIONS} networks in a row")
            if lacking:
                wanted += lacking[:1]
            else:
                made[wanted.pop()] = _recalled(at, record, made, trust)
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f"cell {at[:8]} has a record that brittle did not write") from error
    return made[key]


def _recalled(key: str, record: Mapping[str, Any], made: Mapping[str, Cell], trust: bool) -> Cell:
    """The cell of one record. Its key is compared before any name in it is resolved."""
    another = InputError(f"cell {key[:8]} ({record['title']}) was made by another version of brittle; make it again")
    if record["function"] not in FUNCTIONS:
        raise another
    cell = new_cell(
        record["title"],
        record["function"],
        record["params"],
        {role: made[parent] for role, parent in record["parents"].items()},
        digest=record["data"],
        environment=record["environment"],
    )
    if cell.key != key:
        raise another
    if cell.function in NETWORKS:
        check_trusted(cell.params, trust)
    if cell.function == "attack":
        lookup.attack(cell.params["function"], trust)
    return cell


def recall_network(store: Store, text: str, *, trust: bool = False) -> Cell:
    """The `train` or `adopt` cell whose key begins with `text`; errors as of `recall`, and if it is no network."""
    cell = recall(store, store.find(text), trust=trust)
    if cell.function not in NETWORKS:
        raise InputError(f"cell {cell.key[:8]} is no network: it is '{cell.title}'")
    return cell
