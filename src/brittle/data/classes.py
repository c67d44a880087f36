"""Classes of the data and outputs of the model: which belongs to which."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brittle.data.split import Data, Split, digest_of
from brittle.errors import InputError, first_line

LARGEST = 100_000  # outputs that a model may have: ImageNet-21k has 21,843
_LARGEST_FILE = 1 << 24  # bytes of a file of names


def check_text(name: str, path: Path) -> None:
    """Refuses a class' name that cannot be written as UTF-8, as reports and digests need it."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: the class name {name!a} is not UTF-8 text: rename it") from error


def relabelled(data: Data, outputs: Sequence[int], names: Sequence[str] = ()) -> Data:
    """The data with the model's outputs for labels: class i is output `outputs[i]`.

    `names` are those of the outputs, as far as they are known; an output without a name is called by its number, and a
    class of the data keeps its own name.
    """
    whole = [*names, *map(str, range(len(names), max(outputs) + 1))]
    for output, name in zip(outputs, data.classes, strict=True):
        whole[output] = name
    if list(outputs) == list(range(len(whole))):
        return data
    label = torch.tensor(outputs)

    def of(split: Split) -> Split:
        return Split(split.pixels, label[split.labels])

    return replace(
        data,
        train=of(data.train),
        validation=of(data.validation),
        test=of(data.test),
        classes=tuple(whole),
        digest=digest_of("outputs", data.digest, np.array(outputs), str(len(whole))),
    )


def numbered(classes: Sequence[str]) -> list[int] | None:
    """The outputs that class names state, where all are numbers and no two the same; else None."""
    if not all(name.isascii() and name.isdecimal() and len(name) < 8 for name in classes):
        return None
    outputs = [int(name) for name in classes]
    return outputs if len(set(outputs)) == len(outputs) and max(outputs) < LARGEST else None


def mapped(data: Data, wanted: object) -> Data:
    """The data relabelled as a user asks for it: see `load`.

    Raises:
        InputError: if what is asked for does not name one output for each class.
    """
    outputs, names = _outputs(wanted, data.classes)
    for name, output in zip(data.classes, outputs, strict=True):
        if not 0 <= output < LARGEST:
            raise InputError(f"classes: the output of {name!r} must lie in 0..{LARGEST - 1:,}, got {output}")
        if outputs.count(output) > 1:
            same = [one for one, other in zip(data.classes, outputs, strict=True) if other == output]
            raise InputError(f"classes: {' and '.join(map(repr, same[:3]))} have the same output, {output}")
    found = relabelled(data, outputs, names)
    return replace(found, source=f"{data.source}; classes are the outputs {_listed(outputs)}")


def _listed(outputs: Sequence[int]) -> str:
    return ", ".join(map(str, outputs[:10])) + (f", ... ({len(outputs)})" if len(outputs) > 10 else "")


def _outputs(wanted: object, classes: Sequence[str]) -> tuple[list[int], list[str]]:
    """The output of each class, and the names of all outputs as far as they are told."""
    if isinstance(wanted, str | Path):
        wanted = _read(Path(wanted)) if os.path.isfile(wanted) else _split(str(wanted))
    if isinstance(wanted, Mapping):
        outputs = {str(name): _whole(name, output) for name, output in wanted.items()}
        return _looked_up(outputs, classes), _names(outputs)
    if not isinstance(wanted, Iterable):
        raise InputError(f"classes must be a list, a mapping or a file, got {wanted!r}")
    told = wanted.tolist() if isinstance(wanted, np.ndarray | Tensor) else list(wanted)
    if told and all(isinstance(one, int | np.integer) or (isinstance(one, str) and one.isdecimal()) for one in told):
        if len(told) != len(classes):
            raise InputError(f"classes: {len(told)} outputs for {len(classes)} classes, {_some(classes)}")
        return [int(one) for one in told], []
    if not told or not all(isinstance(one, str) for one in told):
        raise InputError(f"classes must be numbers of outputs or names of classes, got {_some(told)}")
    return _looked_up(_keys(told), classes), told


def _split(text: str) -> list[str]:
    if "," not in text:
        raise InputError(f"classes: {text!r} is not there: expected a file, or outputs with commas between")
    return [one.strip() for one in text.split(",")]


def _some(names: Sequence[object]) -> str:
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")


def _whole(name: object, output: object) -> int:
    if isinstance(output, bool) or not isinstance(output, int | np.integer):
        raise InputError(f"classes: the output of {name!r} must be a whole number, got {output!r}")
    return int(output)


def _looked_up(outputs: Mapping[str, int], classes: Sequence[str]) -> list[int]:
    """The output of each class, by its name; capitals do not count, and underscores are spaces."""
    plain = {_plain(name): output for name, output in outputs.items()}
    lacking = [name for name in classes if name not in outputs and _plain(name) not in plain]
    if lacking:
        raise InputError(f"classes: no output is named for {_some(lacking)}; there are {_some(list(outputs))}")
    return [outputs[name] if name in outputs else plain[_plain(name)] for name in classes]


def _names(outputs: Mapping[str, int]) -> list[str]:
    """The names of all outputs in their order; a number where there is none."""
    names = {output: name for name, output in outputs.items()}
    return [names.get(output, str(output)) for output in range(min(max(names, default=-1) + 1, LARGEST))]


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold().strip()


def _keys(names: Sequence[str]) -> dict[str, int]:
    """The outputs by their names, and by the WordNet number before a name that ImageNet's lists have."""
    found = {name: output for output, name in enumerate(names)}
    for output, name in enumerate(names):
        if match := re.match(r"(n\d{8})\s+(.*)", name):
            found |= {match[1]: output, match[2]: output}
    return found


def _read(path: Path) -> Any:
    """What a file says of the outputs: a mapping, or the names in their order."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise InputError(f"{path}: holds more than {_LARGEST_FILE:,} bytes, expected a list of classes")
        text = path.read_text("utf-8-sig")
        return _of_json(path, json.loads(text)) if path.suffix.lower() == ".json" else _of_lines(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or no JSON
        raise InputError(f"{path}: cannot be read: {first_line(error)}") from error


def _of_json(path: Path, told: Any) -> Any:
    """Of names by output (ImageNet's class index, a Hugging Face config's id2label), of outputs by name, or a list."""
    if isinstance(told, dict):
        told = told.get("id2label") or told.get("label2id") or told
    if isinstance(told, dict) and all(isinstance(key, str) and key.isdecimal() for key in told):
        names = {int(key): name if isinstance(name, list) else [name] for key, name in told.items()}
        return {str(name): output for output, all_names in names.items() for name in all_names}
    if not isinstance(told, dict | list):
        raise InputError(f"{path}: expected a list of names, or names and outputs, got {type(told).__name__}")
    return told


def _of_lines(text: str) -> Any:
    """A name a line in the order of the outputs; or on each line a name and its output, with a comma or tab between."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    pairs = [re.fullmatch(r"(.*\S)\s*[,;\t]\s*(\d+)|(\d+)\s*[,;:\t\s]\s*(\S.*)", line) for line in lines]
    if lines and all(pairs):
        return {pair[1] or pair[4]: int(pair[2] or pair[3]) for pair in pairs if pair}
    return lines
