"""Images and labels in an .npz file."""

from __future__ import annotations

import math
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from brittle.data.classes import LARGEST, check_text
from brittle.data.room import check_memory
from brittle.errors import InputError, first_line

LAYOUTS = ("NCHW", "NHWC")
ROUNDING = 1e-6  # how far outside [0, 1] a pixel may lie and still be a rounding, not an error


@dataclass(frozen=True, eq=False)
class Arrays:
    """Images and labels as they were read.

    Attributes:
        images: (N, C, H, W), uint8, or float32 in [0, 1].
        labels: (N,), integers in 0..K-1, not all of which need be there.
        classes: the K names.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


def read_npz(path: Path, layout: str | None) -> Arrays:
    """Reads `images`, `labels` and perhaps `classes` from an .npz file; never unpickles.

    Raises:
        InputError: if the arrays are not there or not as expected; the message names the file and the array.
    """
    arrays = _stored_arrays(path)
    images, labels = _checked_images(arrays["images"], layout, path), arrays["labels"]
    _check_labels(labels, len(images), path)
    return Arrays(images, labels, _checked_classes(arrays.get("classes"), labels, path))


def way_into_range(low: float, high: float) -> str:
    """How to bring images in [low, high] into [0, 1], as the end of a message; nothing where that is not plain."""
    if low >= 0 and 2 <= high <= 65_535:
        return ": divide them by the largest value that a pixel can have, 255 where it has 8 bits"
    if -20 < low < 0 and high < 20:
        return ": they look normalised; undo that, and let the model normalise them itself"
    return ""


def _stored_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, warnings.catch_warnings(action="error"):
            if not zipfile.is_zipfile(file):
                wanted = "expected one with images and labels, or a folder of images"
                raise InputError(f"{path}: not a whole .npz file; {wanted}")
            file.seek(0)
            arrays = _members(path, file)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # zipfile and numpy let out whatever a broken file leads them to
        raise InputError(f"{path}: cannot be read: {first_line(error)}") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy gives the bytes of a member that is no array
            raise InputError(f"{path}: {name} is not an array as numpy stores them")
    return arrays


def _members(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as stored:
        if lacking := [name for name in ("images", "labels") if name not in stored.files]:
            found = ", ".join(stored.files) or "nothing"
            raise InputError(f"{path}: lacks {' and '.join(lacking)}, holds {found}; expected images and labels")
        wanted = [name for name in ("images", "labels", "classes") if name in stored.files]
        for name in wanted:
            _check_header(path, stored.zip, name)
        return {name: stored[name] for name in wanted}


def _check_header(path: Path, archive: zipfile.ZipFile, name: str) -> None:
    """Refuses an array whose header does not go with its size, before memory is taken for it."""
    member = next(file for file in (f"{name}.npy", name) if file in archive.namelist())
    with archive.open(member) as file:
        if file.read(6) != b"\x93NUMPY":
            return  # no array: said below
        version = file.read(2)
        length = int.from_bytes(file.read(2 if version[0] == 1 else 4), "little")
        if length > 10_000:
            raise InputError(f"{path}: the header of {name} has {length:,} characters, expected at most 10,000")
        file.seek(0)
        np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        try:
            shape, _, dtype = read(file)
        except Exception as error:  # as above
            raise InputError(f"{path}: the header of {name} is damaged, expected what numpy.save writes") from error
        if dtype.hasobject:
            raise InputError(f"{path}: cannot be read: it stores Python objects, expected plain numbers and strings")
        needed, there = math.prod(shape) * dtype.itemsize, archive.getinfo(member).file_size - file.tell()
    if needed != there:
        raise InputError(f"{path}: {name} says it is {shape} {dtype}, {needed:,} bytes, but holds {there:,}")
    if name == "images":
        check_memory(path, math.prod(shape) * (1 if dtype == np.uint8 else 4))


def _checked_images(images: np.ndarray, layout: str | None, path: Path) -> np.ndarray:
    """(N, C, H, W), uint8 or float32 in [0, 1]."""
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise InputError(f"{path}: images must be uint8 in 0..255 or floating point in [0, 1], got {images.dtype}")
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise InputError(f"{path}: images must be (N, H, W), (N, C, H, W) or (N, H, W, C), got {images.shape}")
    images = images[:, None] if images.ndim == 3 else _channels_first(images, layout, path)
    if images.dtype == np.uint8:
        return images
    if nans := np.count_nonzero(np.isnan(images)):
        row = np.isnan(images).any((1, 2, 3)).argmax()
        raise InputError(f"{path}: images hold {nans} values that are not a number, first in row {row}")
    low, high = float(images.min()), float(images.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise InputError(
            f"{path}: images must lie in [0, 1] or be uint8, got {images.dtype} in [{low:.7g}, {high:.7g}]"
            f"{way_into_range(low, high)}"
        )
    return images.astype(np.float32).clip(0, 1)


def _channels_first(images: np.ndarray, layout: str | None, path: Path) -> np.ndarray:
    axes = dict(zip(LAYOUTS, (1, 3), strict=True))
    fits = [known for known, axis in axes.items() if images.shape[axis] in (1, 3)]
    fits = fits or [known for known, axis in axes.items() if images.shape[axis] == 4]  # with transparency
    if layout is None and len(fits) != 1:
        reading = "could be either layout" if fits else "have neither 1, 3 nor 4 channels in either layout"
        raise InputError(f"{path}: images of shape {images.shape} {reading}: state layout='NCHW' or layout='NHWC'")
    return images if (layout or fits[0]) == "NCHW" else images.transpose(0, 3, 1, 2)


def _check_labels(labels: np.ndarray, rows: int, path: Path) -> None:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"{path}: labels must be integers of shape (N,), got {labels.dtype} of shape {labels.shape}")
    if len(labels) != rows:
        raise InputError(f"{path}: {rows} images but {len(labels)} labels")
    if labels.min() < 0 or labels.max() >= LARGEST:
        place = labels.argmin() if labels.min() < 0 else labels.argmax()
        raise InputError(f"{path}: labels must lie in 0..{LARGEST - 1}, got {labels[place]} in row {place}")
    if (labels == labels[0]).all():
        raise InputError(f"{path}: all labels are {labels[0]}, expected at least 2 classes")


def _checked_classes(names: np.ndarray | None, labels: np.ndarray, path: Path) -> tuple[str, ...]:
    """The names of the outputs 0..K-1, where the file has one for each label that is there or for each output."""
    count, present = int(labels.max()) + 1, np.unique(labels)
    whole = [str(label) for label in range(count)]
    if names is None:
        return tuple(whole)
    if names.dtype.kind != "U" or names.ndim != 1 or (len(names) < count and len(names) != len(present)):
        raise InputError(f"{path}: classes must be {count} strings, got {names.dtype} of shape {names.shape}")
    for name in names.tolist():
        check_text(name, path)
    if len(names) >= count:
        return tuple(names.tolist())
    for label, name in zip(present.tolist(), names.tolist(), strict=True):
        whole[label] = name
    return tuple(whole)
