"""What the command line shows while it works: bars on a terminal, a line a cell anywhere else."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

if TYPE_CHECKING:
    from brittle.cells import Cell
    from brittle.progress import Progress

out = Console()  # results: what a pipe should get
err = Console(stderr=True)  # everything else


class Bars:
    """Shows a run as two bars, that of the study and that of the cell in work. A `brittle.engine.Watch`."""

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
        self._one = self._bars.add_task("", total=None, note="", visible=False)
        self._cached = 0
        self._started = time.monotonic()

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, cell: Cell, number: int, total: int) -> None:
        """A cell's work begins."""
        self._started = time.monotonic()
        note = f"{self._cached} from the store" if self._cached else ""
        self._bars.update(self._all, description=f"cell {number} of {total}", total=total, note=note)
        self._bars.reset(self._one, description=escape(cell.title), total=None, visible=True, note="")

    def step(self, done: int, total: int, note: str = "") -> None:
        """The cell has come this far."""
        self._bars.update(self._one, completed=done, total=total, note=escape(note))

    def end(self, cell: Cell, cached: bool) -> None:
        """The cell is in the store."""
        self._bars.advance(self._all)
        self._cached += cached
        if self._lines and not cached and not self._quiet:
            seconds = time.monotonic() - self._started
            err.print(f"{escape(cell.title)}: {seconds:.1f} s", highlight=False, soft_wrap=True)

    def say(self, sentence: str) -> None:
        """Something the user should know."""
        err.print(f"[yellow]note:[/] {escape(sentence)}", highlight=False, soft_wrap=True)

    def work(self, title: str) -> Progress:
        """A bar for work that is no cell, such as a download."""
        self._bars.reset(self._one, description=escape(title), total=None, visible=True, note="")
        return self.step
