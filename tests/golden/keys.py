"""The key of every cell of every study that comes with brittle, and of small.toml: none may change unseen.

    python tests/golden/keys.py              compares with keys.json; exit code 1 if a plan is not as it was
    python tests/golden/keys.py OUT.json     does so, and writes every key, title and record: made before and after a
                                             step, two such files can be read with diff
    python tests/golden/keys.py --renew      writes keys.json anew: where a key is meant to change, and nowhere else

Every study is planned in each of its sizes, for each dtype and kind of device, on made-up data: keys name the data by a
digest, so no file is read. The `brittle` that plans is the one that python finds, which is named in the last line:
`PYTHONPATH=src` makes it that of this checkout.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

# All that this harness takes from inside brittle. When files move, these lines follow; nothing else here does.
import brittle
from brittle import Data, Split
from brittle.study.expand import Plan, expand
from brittle.study.kinds import FUNCTIONS, new_cell
from brittle.study.schema import Study, built_in, read
from brittle.study.store.cell import Cell

KINDS = frozenset(FUNCTIONS)  # of cells

HERE = Path(__file__).parent
SMALL = HERE / "small.toml"
REFERENCE = HERE / "keys.json"
DTYPES = ("float32", "bfloat16")
DEVICES = ("cpu", "cuda")
DIGITS = tuple("0123456789")
DATA = {  # shape of an image, and classes
    "digits": ((1, 28, 28), DIGITS),
    "mnist": ((1, 28, 28), DIGITS),
    "cifar10": ((3, 32, 32), tuple("abcdefghij")),
    "yale-faces": ((1, 60, 60), tuple(f"subject{number:02d}" for number in range(1, 16))),
}


def made(name: str) -> Data:
    """A data set of random images that has a real one's name, shape and number of classes."""
    shape, classes = DATA[name]
    generator = torch.Generator().manual_seed(0)
    train, validation, test = (
        Split(torch.rand((rows, *shape), generator=generator), torch.arange(rows) % len(classes))
        for rows in (60, 30, 45)
    )
    digest = hashlib.sha256(name.encode()).hexdigest()
    return Data(name, train, validation, test, classes, digest, "made")


Given = Mapping[str, Cell]  # networks from outside, by the name of the model that each one is


def small() -> Study:
    """The study that asks for every kind of cell."""
    return read(str(SMALL))


def adopted() -> Given:
    """A network from outside in place of the small study's first, as a command makes it that is given one."""
    options = {"channels": 1, "classes": len(DIGITS), "size": 28, "hidden": 40}
    params = {"network": "brittle.networks.mlp", "network_options": options, "sha256": digest("weights")}
    return {"standard": new_cell("adopt weights", "adopt", params)}


def studies() -> Iterator[tuple[str, Study, Given]]:
    """Every study, in each of its sizes where it has some: those name no data of their own. Then the small one."""
    for name, text in sorted(built_in().items()):
        for size in tomllib.loads(text).get("sizes") or (None,):
            study = read(name, size=size)
            yield study.name, study, {}
    yield SMALL.name, small(), {}
    yield f"{SMALL.name}, one adopted", small(), adopted()


def plan(study: Study, given: Given, device: str = "cpu", dtype: str = "float32") -> Plan:
    """A study's cells."""
    return expand(study, made(study.data), device=device, dtype=dtype, given=given)


def plans() -> dict[str, Plan]:
    """The plan of every study, by study, device and dtype."""
    return {
        f"{name} {device} {dtype}": plan(study, given, device, dtype)
        for name, study, given in studies()
        for device in DEVICES
        for dtype in DTYPES
    }


def summary(planned: Plan) -> dict[str, Any]:
    """What keys.json has of a plan: the number of cells, and a hash of their keys, their titles and the record.

    Their order is not in it: cells may be done in another one and find the same.
    """
    titles = {cell.key: cell.title for cell in planned.cells}
    return {
        "cells": len(planned.cells),
        "keys": digest(sorted(titles)),
        "titles": digest(titles),
        "record": digest(planned.record),
    }


def digest(value: Any) -> str:
    """sha256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def listing(planned: Plan) -> dict[str, Any]:
    """Everything that a plan's summary is made of."""
    return {"cells": sorted(f"{cell.title}: {cell.key}" for cell in planned.cells), "record": planned.record}


def reference() -> dict[str, dict[str, Any]]:
    """The summaries as they must be."""
    return json.loads(REFERENCE.read_text(encoding="utf-8"))


def differences(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each plan that is not as it was."""
    known = reference()
    lines = [f"{name} is new" for name in found if name not in known]
    lines += [f"{name} is gone" for name in known if name not in found]
    for name in known.keys() & found.keys():
        changed = [what for what, value in known[name].items() if found[name].get(what) != value]
        lines += [f"{name}: changed are {', '.join(changed)}"] if changed else []
    return sorted(lines)


def write(file: Path, value: Mapping[str, Any], indent: int | None) -> None:
    """A JSON object, a line for each key at least."""
    lines = (f"{json.dumps(name)}: {json.dumps(one, indent=indent, sort_keys=True)}" for name, one in value.items())
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares the keys of all cells of all studies with keys.json.")
    parser.add_argument("out", type=Path, nargs="?", help="where every key, title and record is written")
    parser.add_argument("--renew", action="store_true", help="write keys.json anew")
    asked = parser.parse_args()
    planned = plans()
    found = {name: summary(one) for name, one in planned.items()}
    if asked.out is not None:
        write(asked.out, {name: listing(one) for name, one in planned.items()}, 1)
    if asked.renew:
        write(REFERENCE, found, None)
    lines = differences(found)
    for line in lines:
        print(line)
    cells = sum(one["cells"] for one in found.values())
    print(f"{cells} cells in {len(found)} plans by {Path(brittle.__file__).parent}: {len(lines)} plans differ")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
