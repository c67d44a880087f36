"""A cell: one step of a study, named by what it is made from.

A cell's key is a hash of its function and version, its parameters, its parents' keys, the data's digest, and the
precision and kind of device it runs at. Paths and titles are not in it, as they do not change what is computed. The
number of threads is not in it either: the same number of threads gives the same bits, another number gives results that
agree in distribution only. A record's provenance says how many there were.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brittle.data import Data
from brittle.progress import Progress
from brittle.study.store.store import Stored


@dataclass(frozen=True)
class Cell:
    """One step of a study, before it is run. `kinds.new_cell` makes one.

    Who makes one has checked the import paths in `params`, as `schema.check` and `scheduler.recall` do: they are
    imported.
    """

    title: str  # for people: 'train tempered, seed 0'
    function: str  # one of `kinds.FUNCTIONS`
    version: int  # of that function
    params: Mapping[str, Any]  # JSON
    parents: Mapping[str, Cell] = field(default_factory=dict)
    digest: str = ""  # of the data set, where the function reads it
    place: str = ""  # where that data set, or the file it reads, lies; not in the key
    environment: Mapping[str, str] = field(default_factory=dict)  # device kind and dtype

    @cached_property
    def key(self) -> str:
        """32 hexadecimal characters."""
        made_from = {
            "function": self.function,
            "version": self.version,
            "params": self.params,
            "parents": {role: parent.key for role, parent in self.parents.items()},
            "data": self.digest,
            "environment": self.environment,
        }
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Context:
    """What a cell's function is given besides its parameters and parents."""

    device: torch.device
    folder: Callable[[], Path]  # scratch that survives a kill until the cell is finished
    data: Callable[[str, str], Data]  # (name or path, digest) -> the data set
    progress: Progress


@dataclass(frozen=True)
class Outcome:
    """What a cell's function gives back to be stored."""

    scalars: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]]


Parents = Mapping[str, Stored]
