"""How the store writes and reads files: sealed records, hashed tensors, everything synced before it counts.

Nothing here knows what a cell is. An OSError of something that was being written becomes a StoreError, one line.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brittle.errors import InputError, StoreError

if TYPE_CHECKING:
    from torch import Tensor

RECORD = "cell.json"


class DamagedError(Exception):
    """A file that is there and not what it was."""


# cell.json


def read_record(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """A cell's record without its seal, or None and what is wrong with it."""
    try:
        record = unsealed((folder / RECORD).read_bytes())
    except (OSError, DamagedError) as error:
        return None, f"{RECORD}: {reason(error)}"
    files = record.get("files")
    if not isinstance(files, dict) or not all(isinstance(one, dict) and "sha256" in one for one in files.values()):
        return None, f"{RECORD}: does not name its files"
    return record, None


def unsealed(text: bytes) -> dict[str, Any]:
    """The record that `sealed` wrote as this text, without its seal.

    Raises:
        DamagedError: if the text is not as it was written.
    """
    try:
        record = json.loads(text)
        whole = record.pop("seal") == _seal(record)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise DamagedError("not readable as a record") from None
    if not whole:
        raise DamagedError("its seal does not fit what it says")
    return record


def sealed(record: Mapping[str, Any]) -> bytes:
    """The text of a file that holds a record: with the sha256 of its canonical form."""
    return (json.dumps({**record, "seal": _seal(record)}, indent=1, allow_nan=False) + "\n").encode()


def _seal(record: Mapping[str, Any]) -> str:
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_record(record: Mapping[str, Any]) -> None:
    """Raises ValueError for a record that cannot be sealed."""
    for name in ("files", "seal"):
        if name in record:
            raise ValueError(f"the record of a cell must not hold {name!r}: the store writes that itself")
    check_json(dict(record), "record")


def check_json(value: object, where: str) -> None:
    """Raises ValueError at the first value that strict JSON cannot hold, and says where it is."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise ValueError(f"{where}: keys must be strings, got {name!r}")
            check_json(inner, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            check_json(inner, f"{where}[{place}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, which JSON cannot hold: store None or a string")
    elif value is not None and not isinstance(value, str | int):
        kind = type(value).__name__
        raise ValueError(f"{where} must be JSON (None, bool, int, float, str, list or dict), got {kind}")


# Files


def write_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Writes one file of tensors to the disk: its bytes and sha256."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = folder / f"{name}.safetensors"
    try:
        save_file(_separate(tensors), path)
    except SafetensorError as error:  # its words for a full disk too; OSError is not among its parents
        raise StoreError(f"cannot write to {folder.parent}: {name}.safetensors: {error}") from error
    with path.open("r+b") as file:
        told = {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        os.fsync(file.fileno())
    return told


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, no two in one storage: safetensors writes no others."""
    seen, separate = set(), {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        separate[name] = plain.clone() if storage in seen else plain
        seen.add(storage)
    return separate


def write(path: Path, text: bytes) -> None:
    """Writes a file and brings it to the disk."""
    with path.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Brings a folder's names to the disk: a file's own fsync does not."""
    if os.name == "nt":  # cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync no folders
            raise
    finally:
        os.close(handle)


def signature(path: Path, told: Mapping[str, Any]) -> tuple:
    """What must stay as it is for a file not to be hashed again."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, told["sha256"]


def check_file(path: Path, told: Mapping[str, Any]) -> None:
    """Raises DamagedError unless the file has the bytes and the sha256 that were told of it."""
    size = path.stat().st_size
    if size != told.get("bytes"):
        raise DamagedError(f"{size} bytes, not {told.get('bytes')}")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != told["sha256"]:
            raise DamagedError("sha256 differs")


def names(folder: Path) -> list[str]:
    """The names in a folder, sorted; none if it is absent or no folder."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"cannot read {folder}: {reason(error)}") from error


def bytes_of(path: Path) -> int:
    """Bytes of a file or of all files below a folder, as far as they are still there."""
    total = 0
    inner = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    for file in inner if path.is_dir() else [path]:
        with suppress(OSError):
            total += file.lstat().st_size
    return total


def erase(path: Path) -> int:
    """Deletes a file or a folder with all in it: the bytes it held. What is gone already is no error."""
    freed = bytes_of(path)
    while os.path.lexists(path):
        with suppress(FileNotFoundError):  # somebody else deletes it too: go on with what is left
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    return freed


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Says in one line where writing failed, and why."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write to {folder}: {reason(error)}") from error


def is_full(error: Exception) -> bool:
    """Whether an error of whatever wrote says that the disk, or the quota, is full, or read-only."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    told = any(f"(os error {code})" in str(error) for code in codes)  # safetensors and torch have only words
    return told or (isinstance(error, OSError) and error.errno in codes)


def reason(error: Exception) -> str:
    """Why something went wrong, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{error.strerror}: a file stands where a folder should be"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
