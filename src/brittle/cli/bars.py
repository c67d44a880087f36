"""What the command line shows while it works: bars on a terminal, lines anywhere else."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

if TYPE_CHECKING:
    from brittle.progress import Progress
    from brittle.study.store.cell import Cell

SOON = 2.0  # s: nothing is silent for longer
SELDOM = 60.0  # s between lines on one piece of work, at most
_HIDDEN = [code for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"]
_VISIBLE = dict.fromkeys(_HIDDEN, "\N{REPLACEMENT CHARACTER}")


class Terminal(Console):
    """A console that shows control characters instead of sending them, and outlives a reader that goes away."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich has it; a file name that holds an escape sequence must not reach the terminal as one."""
        return super().render_str(text.translate(_VISIBLE), **options)

    def on_broken_pipe(self) -> None:
        """`brittle ... | head`: what is printed from here on is dropped, and the exit code stays what it is."""
        let_go()


def shown(text: str) -> str:
    """A user's text as rich's markup: nothing in it is markup, or a control character."""
    return escape(text.translate(_VISIBLE))


def let_go() -> None:
    """Drops whatever is still to be written to standard output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


out = Terminal()  # results: what a pipe should get
err = Terminal(stderr=True)  # everything else


class Bars:
    """Shows a run. A `brittle.study.run.scheduler.Watch`.

    A terminal gets a bar for the whole run and one for each cell at work. A log file gets a line when a cell of two
    seconds or more begins, lines while it runs, and a line when it ends.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self._quiet = quiet
        self._lines = (verbose or not err.is_terminal) and not quiet
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=err,
            transient=True,
            disable=quiet or not err.is_terminal,
        )
        self._all = self._bars.add_task("all", total=None, note="")
        self._work: TaskID | None = None  # of what is no cell
        self._cells: dict[str, TaskID] = {}  # by key, of those at work
        self._counts: Counter[str] = Counter()
        self._left: dict[str, float] = {}  # by key, seconds that a cell still takes, as was estimated
        self._workers = 1
        self._news: Callable[[Cell], str | None] = lambda _: None
        self._pace = Pace()
        self._spoke: dict[str, tuple[float, float]] = {}  # by work: when it spoke last, and how long it then waits

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def expect(self, seconds: Mapping[str, float], workers: int, news: Callable[[Cell], str | None]) -> None:
        """What each cell is expected to take, by key; how many run side by side; and what a finished one says."""
        self._left, self._workers, self._news = dict(seconds), workers, news

    def plan(self, cells: Sequence[Cell]) -> None:
        """These will be brought into the store."""
        self._hide_work()
        self._counts = Counter(total=len(cells))
        self._bars.update(self._all, description=f"{len(cells)} steps", total=len(cells), completed=0)

    def begin(self, cell: Cell) -> None:
        """A cell's work begins, or begins anew."""
        self._hide_work()
        self._ended(cell)
        self._cells[cell.key] = self._bars.add_task(shown(cell.title), total=None, note="")
        self._tell()
        expected = self._left.get(cell.key, 0.0) * self._pace.factor
        if expected >= SOON:
            self._line(f"{self._step()}: {cell.title}, about {duration(expected)} ({self._time_left()})")
        self._spoke[cell.key] = (time.monotonic(), SOON)

    def step(self, cell: Cell, done: int, total: int, note: str = "") -> None:
        """A cell has come this far."""
        self._bars.update(self._cells[cell.key], completed=done, total=total, note=shown(note))
        self._now_and_then(cell.key, cell.title, done, total, note)

    def end(self, cell: Cell, cached: bool, seconds: float = 0.0) -> None:
        """A cell is in the store, after so many seconds of work."""
        self._ended(cell)
        expected = self._left.pop(cell.key, 0.0)
        self._counts["cached" if cached else "done"] += 1
        if not cached:
            self._pace.add(expected, seconds)
        self._tell()
        if not cached:
            ended = self._ended_count()
            self._line(f"step {ended} of {self._counts['total']}: {cell.title}: {seconds:.1f} s")
            if not self._quiet and (sentence := self._news(cell)):
                err.print(escape(sentence), highlight=False, soft_wrap=True)

    def fail(self, cell: Cell, why: str) -> None:
        """A cell failed; the others go on."""
        self._ended(cell)
        self._left.pop(cell.key, None)
        self._counts["failed"] += 1
        self._tell()
        self._line(f"{cell.title}: failed")

    def say(self, sentence: str) -> None:
        """Something the user should know."""
        err.print(f"[yellow]note:[/] {escape(sentence)}", highlight=False, soft_wrap=True)

    def work(self, title: str) -> Progress:
        """A bar for work that is no cell, such as a download."""
        self._hide_work()
        bar = self._work = self._bars.add_task(shown(title), total=None, note="")
        self._spoke[title] = (time.monotonic(), SOON)

        def step(done: int, total: int, note: str = "") -> None:
            self._bars.update(bar, completed=done, total=total, note=shown(note))
            self._now_and_then(title, title, done, total, note)

        return step

    def _line(self, text: str) -> None:
        """A line of a log file."""
        if self._lines:
            err.print(escape(text), highlight=False, soft_wrap=True)

    def _now_and_then(self, work: str, title: str, done: int, total: int, note: str) -> None:
        """A line on work that goes on: after two seconds, then four, and so on to one a minute."""
        then, wait = self._spoke[work]
        now = time.monotonic()
        if now - then >= wait:
            self._spoke[work] = (now, min(2 * wait, SELDOM))
            self._line(f"  {title}: {100 * done // max(1, total)} %" + (f", {note}" if note else ""))

    def _hide_work(self) -> None:
        if self._work is not None:
            self._bars.update(self._work, visible=False)
            self._work = None

    def _ended(self, cell: Cell) -> None:
        """Takes the cell's bar away."""
        if cell.key in self._cells:
            self._bars.remove_task(self._cells.pop(cell.key))

    def _ended_count(self) -> int:
        return self._counts["done"] + self._counts["cached"] + self._counts["failed"]

    def _step(self) -> str:
        """'step 3 of 20', of the cell that began last."""
        return f"step {self._ended_count() + len(self._cells)} of {self._counts['total']}"

    def _time_left(self) -> str:
        """For the whole run, with the estimates corrected by what the cells so far have taken."""
        return f"about {duration(sum(self._left.values()) * self._pace.factor / self._workers)} left"

    def _tell(self) -> None:
        """The bar of the whole run."""
        counts = self._counts
        said = [self._step()] if self._cells else []
        said += [self._time_left()] * bool(self._left)
        said += [f"{counts['cached']} from the store"] * (counts["cached"] > 0)
        said += [f"{len(self._cells)} at work"] * (len(self._cells) > 1)
        said += [f"{counts['failed']} failed"] * (counts["failed"] > 0)
        self._bars.update(self._all, completed=self._ended_count(), note=", ".join(said))


class Pace:
    """By what factor cells take longer than was estimated."""

    def __init__(self) -> None:
        self.expected, self.took = 0.0, 0.0

    def add(self, expected: float, took: float) -> None:
        """A cell has ended; one without an estimate says nothing."""
        if expected > 0:
            self.expected, self.took = self.expected + expected, self.took + took

    @property
    def factor(self) -> float:
        """1 until two seconds were expected and have passed, as short cells say little."""
        return self.took / self.expected if self.expected >= SOON else 1.0


def duration(seconds: float) -> str:
    """'0.4 s', '12 s', '3.5 min', '2.1 h', '15 days'."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (unit != "days" and seconds >= size):
            return f"{seconds / size:.2g} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
