"""One bad input, and whether brittle ended as it says: in one clear line and the right code, or with what was asked."""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from typer.testing import CliRunner

from brittle.cli.main import BAD_INPUT, app
from brittle.errors import InputError

LIMIT = 60  # seconds after which an input counts as one that hangs
LONGEST = 2000  # characters of a clear line
RAN = "ran"  # the folder that hostile files make where they run
NOTES = ("warning: ", "note: ", "failed: ")  # lines that may come before an error's


class Wrong(Exception):
    """Brittle ended as it must not."""


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        name: in a few words.
        run: gives the input to brittle, in an empty folder that is the current one.
        ends: 'refused' or 'taken', where it is known what must become of it.
        said: what the refusal must contain.
    """

    name: str
    run: Callable[[], object]
    ends: Literal["refused", "taken", "either"] = "either"
    said: str = ""


@dataclass(frozen=True)
class Judged:
    """What became of an input: `fault` is empty where it was right."""

    case: Case
    refused: bool
    fault: str


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises TimeoutError inside after so many seconds."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    rest = signal.alarm(seconds)  # of another alarm, as pytest-timeout sets one
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.alarm(rest)


@contextmanager
def written() -> Iterator[Path]:
    """A file to which everything goes that is written to standard error inside, by whatever means."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.NamedTemporaryFile(delete=False) as file:
        os.dup2(file.fileno(), 2)
    try:
        yield Path(file.name)
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def judge(case: Case) -> Judged:
    """Runs a case in a folder of its own."""
    refused, fault = False, ""
    with tempfile.TemporaryDirectory() as folder, chdir(folder), limited(LIMIT), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with written() as file:
            try:
                case.run()
            except InputError as error:
                refused, fault = True, _fault_of_line(case, str(error))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                fault = f"{type(error).__name__}: {error}"[:500]
        said = file.read_text(errors="replace")
        file.unlink()
        if "Traceback" in said and not fault:
            fault = f"a traceback on standard error: {said[:300]!r}"
        if Path(folder, RAN).exists():
            fault = f"it ran code; {fault}"
    if not fault and case.ends != "either" and refused != (case.ends == "refused"):
        fault = f"it was to be {case.ends}"
    return Judged(case, refused, fault)


def _fault_of_line(case: Case, line: str) -> str:
    if "\n" in line or not line.strip():
        return f"not one line: {line!r}"[:500]
    if len(line) > LONGEST:
        return f"a line of {len(line)} characters: {line[:100]}"
    return "" if case.said in line else f"{case.said!r} is not in {line!r}"[:500]


def command(*arguments: object, codes: Sequence[int] = (0,)) -> str:
    """Runs a command line in this process: its standard output, where it ends with one of the codes.

    Raises:
        InputError: with the line of its error, where it ends with the code of bad input.
        Wrong: if it ends otherwise.
    """
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    if "Traceback" in done.output or not isinstance(done.exception, SystemExit | None):
        raise Wrong(f"a traceback, exit code {done.exit_code}: {done.output[-300:]} {done.exception!r}")
    lines = done.stderr.splitlines()
    if done.exit_code == BAD_INPUT:
        if not lines or not lines[-1].startswith("error: ") or not all(one.startswith(NOTES) for one in lines[:-1]):
            raise Wrong(f"not one line: {done.stderr[-300:]!r}")
        raise InputError(lines[-1].removeprefix("error: "))
    if done.exit_code not in codes:
        raise Wrong(f"exit code {done.exit_code}: {done.stderr[-300:]}")
    return done.stdout


@contextmanager
def home() -> Iterator[Path]:
    """A store of the user's own, no downloads and lines that are not cut, as long as the cases last."""
    kept = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"BRITTLE_HOME": folder, "BRITTLE_OFFLINE": "1", "COLUMNS": "200"}
        try:
            yield Path(folder)
        finally:
            os.environ.clear()
            os.environ.update(kept)


# Making bad inputs --------------------------------------------------------------------------------------------------

ODD: list[Any] = [None, True, -1, 0, 10**30, 1.5, "", "x", "../../x", "\x1b[31m", "os.system", [], {}, [[]], ["x"]]


def flipped(content: bytes, draw: random.Random) -> bytes:
    """The content with one to three of its bits flipped, or cut short."""
    changed = bytearray(content)
    if draw.random() < 0.2:
        return bytes(changed[: draw.randrange(len(changed))])
    for _ in range(draw.randint(1, 3)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def mutated(value: Any, draw: random.Random, odd: Sequence[Any] = ODD) -> Any:
    """A copy of tables and lists in which one value, at any depth, is another, has gone, or has moved to a new key."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.15:
        return draw.choice(odd)
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    place = draw.choice([*copy]) if isinstance(copy, dict) else draw.randrange(len(copy))
    how = draw.random()
    if how < 0.15:
        del copy[place]
    elif how < 0.2 and isinstance(copy, dict):
        copy[draw.choice(["x", "", "models", "nan"])] = copy.pop(place)
    else:
        copy[place] = mutated(copy[place], draw, odd)
    return copy


def some(cases: Sequence[Case], most: int | None, draw: random.Random) -> list[Case]:
    """So many of them, drawn at random; all when not given."""
    return list(cases) if most is None or most >= len(cases) else draw.sample(list(cases), most)
