"""What a user did wrong, said in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A request that cannot be met as it stands: the message says what came and what was expected.

    The command line prints it as one line and exits with code 2; everything else is a defect and keeps its traceback.
    """


class StoreError(InputError):
    """The store cannot be written: no cell that is left to do could be kept."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """An error for a name that is none of `known`, with the nearest of them first.

    >>> str(unknown("data set", "minst", ["digits", "mnist"]))
    "unknown data set 'minst': did you mean 'mnist'? (known: digits, mnist)"
    >>> str(unknown("data set", "faces", ["digits", "mnist"]))
    "unknown data set 'faces' (known: digits, mnist)"
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5) if isinstance(name, str) else []
    hint = f": did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return InputError(f"unknown {kind} {name!r}{hint} (known: {', '.join(known)})")
