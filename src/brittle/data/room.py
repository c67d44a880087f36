"""Room for the pixels of a data set: memory, or a file where memory is too small."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from pathlib import Path

import platformdirs
import torch
from torch import Tensor

from brittle.errors import InputError


def memory() -> float:
    """Bytes of memory that this process may use: the machine's, or its control group's where that is less."""
    there = math.inf
    if hasattr(os, "sysconf"):  # not on Windows
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no control groups, or no limit: "max"
        there = min(there, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return there


def check_memory(path: Path, needed: int) -> None:
    """Refuses what memory cannot hold."""
    if needed > memory():
        raise InputError(
            f"{path}: the images need {needed / 1e9:,.3g} GB of memory, {memory() / 1e9:,.3g} GB are here: use fewer "
            f"or smaller ones"
        )


def room(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An empty tensor; one of more than half of the memory lies in a file of the user's cache, gone when it is.

    Raises:
        InputError: if the disk has no room for that file.
    """
    numbers = math.prod(shape)
    needed = numbers * dtype.itemsize
    if needed <= memory() / 2:
        return torch.empty(shape, dtype=dtype)
    folder = Path(platformdirs.user_cache_dir("brittle"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix="pixels-", delete=False) as file:
            try:
                if hasattr(os, "posix_fallocate"):  # a page without a block on a full disk would kill the process
                    os.posix_fallocate(file.fileno(), 0, needed)
                return torch.from_file(file.name, shared=True, size=numbers, dtype=dtype).view(shape)
            finally:
                with contextlib.suppress(OSError):  # Windows keeps it for as long as it is mapped
                    os.unlink(file.name)
    except OSError as error:
        raise InputError(
            f"the images need {needed / 1e9:,.3g} GB, more than half of the memory, and {folder} cannot take them: "
            f"{error.strerror}; use fewer or smaller ones"
        ) from error
