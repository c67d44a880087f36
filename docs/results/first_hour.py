"""Makes docs/results/first-hour.md: what a new user types in the first hour, what is printed, and how long it takes.

    python docs/results/first_hour.py              # on Linux, on an otherwise idle machine with two cores

Each situation has a store of its own, in a folder that is removed at the end.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).parent
MODEL = """\
import torch
from torch import nn


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
"""
WEIGHTS = """\
import brittle, mymodel
from safetensors.torch import save_file

fitted = brittle.fit(mymodel.net(), brittle.data.load("digits"), epochs=10, learning_rate=0.1)
save_file(fitted.model.state_dict(), "mymodel.safetensors")
"""
AUDIT = "brittle audit mymodel:net --weights mymodel.safetensors --data digits --rows 100 --budget quick"
WRONG = (
    "brittle audit mymodel:net --data digits --eps 8",
    "brittle audit mymodel:nett --data digits",
    "brittle attack 3f2a --attack pgd",
    "brittle study run nosuch",
)


@dataclass(frozen=True)
class Typed:
    """A command, what it printed, how it ended, and when it first said a verdict (None if it never did)."""

    command: str
    printed: str
    code: int
    seconds: float
    verdict: float | None

    def __str__(self) -> str:
        said = f", first verdict after {self.verdict:.0f} s" if self.verdict is not None else ""
        shown = f"```console\n$ {self.command}\n{self.printed.strip()}\n```\n"
        return f"{shown}\nExit code {self.code}, {self.seconds:.1f} s{said}.\n"


def typed(command: str, folder: Path, cores: set[int]) -> Typed:
    """Runs a command on these cores, with a store in the folder."""
    brittle = [sys.executable, "-m", "brittle"] if command.startswith("brittle ") else [sys.executable]
    environment = os.environ | {"BRITTLE_HOME": str(folder / "store"), "COLUMNS": "80"}
    started, verdict, lines = time.monotonic(), None, []
    with subprocess.Popen(
        [*brittle, *shlex.split(command)[1:]],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if verdict is None and re.search(r"^audit .*: (Broken|Masked|Robust|Inconclusive)", line):
                verdict = time.monotonic() - started
        code = process.wait()
    printed = "".join(lines).replace(str(folder), "~")
    return Typed(command, printed, code, time.monotonic() - started, verdict)


@contextmanager
def busy() -> Iterator[None]:
    """A process that keeps one core busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def hour(folder: Path, cores: set[int]) -> Iterator[Typed]:
    """What a new user types, in order; what a command offers as the next is typed as printed."""
    yield typed("brittle --help", folder, cores)
    yield typed("brittle demo", folder, cores)
    yield typed("brittle demo", folder, cores)
    trained = typed("brittle train --data digits --network mlp --epochs 10 --name mine", folder, cores)
    yield trained
    for offered in re.findall(r"^ *(brittle (?:audit|attack|explain) .*)$", trained.printed, re.MULTILINE):
        yield typed(offered, folder, cores)
    (folder / "mymodel.py").write_text(MODEL, encoding="utf-8")
    (folder / "train.py").write_text(WEIGHTS, encoding="utf-8")
    yield typed("python train.py", folder, cores)
    yield typed(AUDIT, folder, cores)
    yield typed("brittle store list", folder, cores)
    for command in WRONG:
        yield typed(command, folder, cores)


def demo(folder: Path, cores: set[int]) -> Iterator[Typed]:
    """The demo alone."""
    yield typed("brittle demo", folder, cores)


def main() -> None:
    every = os.sched_getaffinity(0)
    two, one = set(sorted(every)[:2]), set(sorted(every)[:1])
    situations = (
        ("Two idle cores", two, nullcontext(), hour),
        ("One core", one, nullcontext(), demo),
        (
            "Two cores, one of them busy",
            two,
            busy(),
            demo,
        ),
    )
    text = [
        "# The first hour, as a new user types it\n",
        f"Made by `python docs/results/first_hour.py`. torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}. Nothing is left out of what was printed.\n",
    ]
    for title, cores, beside, commands in situations:
        text.append(f"## {title}\n")
        with tempfile.TemporaryDirectory() as folder, beside:
            for result in commands(Path(folder), cores):
                print(f"{title}: {result.command}: {result.code}, {result.seconds:.1f} s, {result.verdict}", flush=True)
                text.append(str(result))
    (HERE / "first-hour.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
