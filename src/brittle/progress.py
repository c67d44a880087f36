"""How long work says how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called now and then by anything that may take more than two seconds."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps are finished; `note` is a few words such as 'loss 0.12'."""
        ...


def silent(done: int, total: int, note: str = "") -> None:
    """Shows nothing: the default of every function that takes a Progress."""


def part(progress: Progress, begin: int, end: int, whole: int) -> Progress:
    """The progress of a piece of work that goes from `begin` to `end` of a `whole`."""
    return lambda done, total, note="": progress(begin + (end - begin) * done // max(1, total), whole, note)
