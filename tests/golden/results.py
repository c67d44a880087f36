"""Runs every kind of cell with one thread, and keeps all that comes of it: cells, pages, and what is printed.

A restructuring must change none of it. Bits differ between machines, so no result is committed: both runs, of the
commit before a step and of the one after it, are made on one machine, and compared.

    git worktree add --detach OLDER COMMIT
    python tests/golden/results.py BEFORE --source OLDER/src
    python tests/golden/results.py AFTER
    python tests/golden/compare.py BEFORE AFTER

Without --source, the `brittle` that runs is that of the checkout which this file lies in, whichever is installed. It is
run by its command line alone, so nothing here has to change when files move.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "src"
INPUTS = ("small.toml", "given.py")
GIVEN = ("given:network", "--data", "digits")
COMMANDS = {
    "study": ("study", "run", "small.toml", "--dtype", "float32"),
    "attack": ("attack", *GIVEN, "--attack", "song_1", "--attack", "song_3", "--rows", "12"),
    "pgd": ("attack", *GIVEN, "--attack", "pgd", "--option", "norm=linf", "--option", "eps=8/255", "--rows", "12"),
    "explain": ("explain", *GIVEN, "--images", "30", "--random", "1", "--points", "4"),
    "audit": ("audit", *GIVEN, "--budget", "quick", "--rows", "12"),
}
VERDICTS = (0, 1, 3)  # exit codes of an audit that was done
SETTINGS = ("BRITTLE_HOME", "BRITTLE_DATA")


def environment(source: Path) -> dict[str, str]:
    """One thread, the brittle that lies in `source`, and nothing that the user has set."""
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    fixed = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "120", "BRITTLE_OFFLINE": "1"}
    return kept | fixed | {"PYTHONPATH": str(source)}


def run(folder: Path, name: str, source: Path) -> None:
    """One command, in the folder: it sees relative paths only, so that what it writes does not depend on the place.

    Raises:
        RuntimeError: if it fails.
    """
    more = ("--store", "store", "--output", f"pages/{name}", "--threads", "1", "--device", "cpu")
    line = [sys.executable, "-m", "brittle", *COMMANDS[name], *more]
    ran = subprocess.run(line, cwd=folder, env=environment(source), capture_output=True, text=True, check=False)
    if ran.returncode not in (VERDICTS if name == "audit" else (0,)):
        raise RuntimeError(f"{' '.join(line)} ended with exit code {ran.returncode}:\n{ran.stderr}")
    (folder / "printed" / f"{name}.txt").write_text(ran.stdout, encoding="utf-8")


def run_all(folder: Path, source: Path = SOURCE) -> None:
    """All commands, into a folder that is new: `store`, `pages` and `printed` lie there afterwards."""
    (folder / "printed").mkdir(parents=True)
    for name in INPUTS:
        shutil.copy(HERE / name, folder / name)
    for name in COMMANDS:
        started = time.monotonic()
        run(folder, name, source)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs every kind of cell and keeps all that comes of it.")
    parser.add_argument("folder", type=Path, help="a folder that does not exist yet, or is empty")
    parser.add_argument("--source", type=Path, default=SOURCE, help="the folder in which the package brittle lies")
    asked = parser.parse_args()
    folder, source = asked.folder, asked.source.resolve()
    if not (source / "brittle").is_dir():
        parser.error(f"there is no package brittle in {source}")
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"{folder} must be new or empty: cells that are in it already would not be computed")
    run_all(folder, source)
    cells = sum(1 for _ in folder.glob("store/cells/*/cell.json"))
    print(f"{cells} cells, computed by {source}")


if __name__ == "__main__":
    main()
