"""How long work says how far it is."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, Protocol, TypeVar

DELAY = 2.0  # seconds that work takes before a bar is shown

P = ParamSpec("P")
R = TypeVar("R")


class Progress(Protocol):
    """Called now and then by anything that may take more than two seconds."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps are finished; `note` is a few words such as 'loss 0.12'."""
        ...


def silent(done: int, total: int, note: str = "") -> None:
    """Shows nothing."""


def part(progress: Progress, begin: int, end: int, whole: int) -> Progress:
    """The progress of a piece of work that goes from `begin` to `end` of a `whole`."""
    return lambda done, total, note="": progress(begin + (end - begin) * done // max(1, total), whole, note)


def barred(title: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function whose keyword `progress` may be None: it then gets a `bar` for as long as it works."""

    def decorate(work: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(work)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            if kwargs.get("progress") is not None:
                return work(*args, **kwargs)
            with bar(title) as shown:
                kwargs["progress"] = shown
                return work(*args, **kwargs)

        return run

    return decorate


@contextmanager
def bar(title: str) -> Iterator[Progress]:
    """A bar on stderr, shown once the work has taken `DELAY` seconds, and gone when the context ends.

    It is shown on a terminal and in a notebook. Anywhere else (a pipe, a log file, pytest) nothing is.
    """
    in_notebook = type(sys.stderr).__module__.startswith("ipykernel")
    if not (in_notebook or sys.stderr.isatty()):
        yield silent
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    # A notebook's cell takes a terminal's carriage return; rich's own way there needs ipywidgets.
    console = Console(stderr=True, force_terminal=in_notebook or None, force_jupyter=False)
    columns = (BarColumn(24), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn(compact=True))
    bars = Bars(
        TextColumn("{task.description}"), *columns, TextColumn("{task.fields[note]}"), console=console, transient=True
    )
    task, started = bars.add_task(escape(title), total=None, note=""), time.monotonic()

    def tell(done: int, total: int, note: str = "") -> None:
        bars.update(task, completed=done, total=total, note=escape(note))
        if not bars.live.is_started and time.monotonic() - started > DELAY:
            bars.start()

    try:
        yield tell
    finally:
        if bars.live.is_started:
            bars.stop()
