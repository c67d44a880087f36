"""What the command line shows while it works: bars on a terminal, a line a cell anywhere else."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

if TYPE_CHECKING:
    from brittle.cells import Cell
    from brittle.progress import Progress

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
    """Shows a run: a bar for all of it, and one for each cell in work. A `brittle.engine.Watch`."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self._lines = verbose or not err.is_terminal  # a finished cell leaves a line
        self._quiet = quiet
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[note]}"),
            console=err,
            transient=True,
            disable=quiet or not err.is_terminal,
        )
        self._all = self._bars.add_task("all", total=None, note="")
        self._work: TaskID | None = None  # of what is no cell
        self._cells: dict[str, TaskID] = {}  # by key, of those in work
        self._counts: Counter[str] = Counter()
        self._started = time.monotonic()

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def plan(self, cells: Sequence[Cell]) -> None:
        """These will be brought into the store."""
        self._hide_work()
        self._started = time.monotonic()
        self._counts = Counter(total=len(cells))
        self._bars.update(self._all, description=f"{len(cells)} cells", total=len(cells), completed=0)

    def begin(self, cell: Cell) -> None:
        """A cell's work begins, or begins anew."""
        self._hide_work()
        self._ended(cell)
        self._cells[cell.key] = self._bars.add_task(shown(cell.title), total=None, note="")
        self._tell()

    def step(self, cell: Cell, done: int, total: int, note: str = "") -> None:
        """A cell has come this far."""
        self._bars.update(self._cells[cell.key], completed=done, total=total, note=shown(note))

    def end(self, cell: Cell, cached: bool, seconds: float = 0.0) -> None:
        """A cell is in the store, after so many seconds of work."""
        self._ended(cell)
        self._counts["cached" if cached else "done"] += 1
        if not cached:
            self._counts["rows"] += _rows(cell)
        self._tell()
        if self._lines and not cached and not self._quiet:
            err.print(f"{escape(cell.title)}: {seconds:.1f} s", highlight=False, soft_wrap=True)

    def fail(self, cell: Cell, why: str) -> None:
        """A cell cannot be done; the others go on."""
        self._ended(cell)
        self._counts["failed"] += 1
        self._tell()
        if self._lines and not self._quiet:
            err.print(f"{escape(cell.title)}: failed", highlight=False, soft_wrap=True)

    def say(self, sentence: str) -> None:
        """Something the user should know."""
        err.print(f"[yellow]note:[/] {escape(sentence)}", highlight=False, soft_wrap=True)

    def work(self, title: str) -> Progress:
        """A bar for work that is no cell, such as a download."""
        self._hide_work()
        bar = self._work = self._bars.add_task(shown(title), total=None, note="")

        def step(done: int, total: int, note: str = "") -> None:
            self._bars.update(bar, completed=done, total=total, note=shown(note))

        return step

    def _hide_work(self) -> None:
        if self._work is not None:
            self._bars.update(self._work, visible=False)
            self._work = None

    def _ended(self, cell: Cell) -> None:
        """Takes the cell's bar away."""
        if cell.key in self._cells:
            self._bars.remove_task(self._cells.pop(cell.key))

    def _tell(self) -> None:
        """The bar of the whole run."""
        counts, seconds = self._counts, max(time.monotonic() - self._started, 1e-3)
        said = [f"{counts['done']} done"]
        said += [f"{counts['cached']} from the store"] * (counts["cached"] > 0)
        said += [f"{len(self._cells)} in work"] * (len(self._cells) > 1)
        said += [f"{counts['failed']} failed"] * (counts["failed"] > 0)
        said += [f"{counts['rows'] / seconds:.3g} rows/s"] * (counts["rows"] > 0)
        ended = counts["done"] + counts["cached"] + counts["failed"]
        self._bars.update(self._all, completed=ended, note=", ".join(said))


def _rows(cell: Cell) -> int:
    """How many images an attack's cell is for."""
    params = cell.params
    return len(params["indices"]) if "indices" in params else params.get("stop", 0) - params.get("start", 0)
