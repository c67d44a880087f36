"""Bad inputs of every kind: each must end in one clear line and the right code, or do what was asked.

    python tests/stress/bad_inputs.py [--kinds arrays,weights] [--most 100] [--seed 0]

Everything is made from a seed. No input may end in a traceback, another exit code, an exception of Python that is no
`InputError`, a result that breaks the contract of attacks, code that runs unasked, or more than a minute.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from stress import bad_files, bad_requests
from stress.judged import Case, Judged, home, judge, some

KINDS: dict[str, tuple[str, Callable[[random.Random], list[Case]]]] = {
    "arrays": (".npz files", bad_files.arrays),
    "folders": ("folders of images", bad_files.folders),
    "published": ("files of MNIST, CIFAR-10 and the Yale faces", bad_files.published),
    "studies": ("study files, settings, sizes, grids", bad_requests.studies),
    "options": ("options of attacks and of training", bad_requests.options),
    "names": ("names, folders, unknown commands", bad_requests.names),
    "weights": ("safetensors files and pickles", bad_files.weights),
    "archives": (".pt2 archives", bad_files.archives),
    "audits": ("models and options of an audit", bad_requests.audits),
    "stores": ("records and files of a store", bad_requests.stores),
    "attacks": ("attacks on kinds of models, images, labels and options", bad_requests.attacks),
    "functions": ("arguments of the library's functions", bad_requests.functions),
}


def tried(kind: str, seed: int, most: int | None = None) -> Iterator[Judged]:
    """What became of the inputs of a kind, or of so many of them that are drawn."""
    draw = random.Random(f"{kind} {seed}")
    yield from map(judge, some(KINDS[kind][1](draw), most, draw))


def row(kind: str, found: Sequence[Judged], seconds: float) -> str:
    """A row of the table."""
    wrong = sum(bool(one.fault) for one in found)
    refused = sum(one.refused and not one.fault for one in found)
    return f"| {KINDS[kind][0]} | {len(found)} | {refused} | {len(found) - refused - wrong} | {wrong} | {seconds:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--most", type=int, help="inputs of a kind; all when not given")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    wrong: list[str] = []
    print("| inputs | tried | refused in a line | did what was asked | wrong | seconds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    with home():
        for kind in asked.kinds.split(","):
            started = time.monotonic()
            found = list(tried(kind, asked.seed, asked.most))
            print(row(kind, found, time.monotonic() - started), flush=True)
            wrong += [f"{kind}, {one.case.name}: {one.fault}" for one in found if one.fault]
    print("\n".join(["", *wrong]), end="\n" * bool(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
