"""Hands: several processes of this machine, each at a cell of its own. They end with the process that began them."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from brittle.cells import Cell
from brittle.engine import TRIES
from brittle.errors import InputError
from brittle.working import End, Say, Step, Workplace

_OFTEN = 0.1  # seconds between two steps that a process tells of


class Processes:
    """So many processes at a workplace. One that dies is replaced, and its cell is lost to it."""

    def __init__(self, place: Workplace, count: int) -> None:
        self._hands = [_Hand(place) for _ in range(count)]

    @property
    def free(self) -> int:
        """How many have nothing to do."""
        return sum(hand.cell is None for hand in self._hands)

    def take(self, cell: Cell) -> None:
        """Gives a cell to one that has nothing to do."""
        next(hand for hand in self._hands if hand.cell is None).begin(cell)

    def heard(self, tell: Callable[[Step | Say], None], timeout: float) -> Sequence[End]:
        """Waits for a word of any."""
        wait([source for hand in self._hands for source in (hand.pipe, hand.process.sentinel)], timeout)
        return [end for hand in self._hands for end in hand.heard(tell)]

    def close(self) -> None:
        """Stops all, at once: the system frees their locks."""
        for hand in self._hands:
            hand.process.terminate()
        for hand in self._hands:
            hand.process.join()


class _Hand:
    """One process, and what it has in work; and how many have died in a row before they said anything."""

    def __init__(self, place: Workplace) -> None:
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
        except OSError:  # it died meanwhile: `heard` will notice
            return

    def heard(self, tell: Callable[[Step | Say], None]) -> list[End]:
        ends = []
        try:
            while self.pipe.poll():
                news = self.pipe.recv()
                self._vain = 0
                if isinstance(news, End):
                    self.cell = None
                    ends.append(news)
                elif news is not None:
                    tell(news)
        except (EOFError, OSError):
            ends += self._lost()
        return ends

    def _lost(self) -> list[End]:
        self.process.join()
        code, cell = self.process.exitcode or 0, self.cell
        why = f"its process was killed by signal {-code}" if code < 0 else f"its process ended with exit code {code}"
        self.cell, self._vain = None, self._vain + 1
        if self._vain == TRIES:
            raise InputError(f"a worker cannot be started: {why}")
        self.pipe, self.process = self._start()
        return [] if cell is None else [End(cell.key, "lost", why)]


def _work(pipe: Connection, place: Workplace) -> None:
    """What a process does until nobody listens any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; who began them decides
    last = 0.0

    def tell(news: Step | Say | End | None) -> None:
        try:
            pipe.send(news)
        except OSError:
            sys.exit(1)

    def warn(message: Warning | str, *_: object, **__: object) -> None:
        tell(Say(str(message)))

    warnings.simplefilter("default", UserWarning)
    warnings.showwarning = warn
    worker = place.open()
    tell(None)  # it has started
    while True:
        try:
            cell = pipe.recv()
        except (EOFError, OSError):
            return

        def step(done: int, total: int, note: str = "", cell: Cell = cell) -> None:
            nonlocal last
            if done == 0 or time.monotonic() - last > _OFTEN:
                last = time.monotonic()
                tell(Step(cell.key, done, total, note))

        tell(worker.do(cell, step))
