"""A user's own images: a folder or an .npz file becomes a data set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from brittle.data.classes import numbered, relabelled
from brittle.data.draw import SEED, SHARES, in_no_order, split_rows
from brittle.data.folder import Photos, left_out_said, list_files, part_folders, read_photos, unreadable
from brittle.data.geometry import Geometry
from brittle.data.npz import read_npz
from brittle.data.split import Data, Split, digest_of
from brittle.errors import InputError
from brittle.progress import Progress

SPLITS = ("evaluation", "all", *SHARES)


@dataclass(frozen=True)
class Wanted:
    """How a user's own images are to be read; see `load`.

    `mapped` says that the classes are mapped to outputs afterwards: until then labels are 0..K-1 in the order of the
    classes, whatever their names or numbers.
    """

    geometry: Geometry
    channels: int | None
    split: str | None
    count: int | None
    exif: bool
    skip_bad: bool
    seed: int
    mapped: bool


def own_folder(path: Path, wanted: Wanted, progress: Progress) -> Data:
    """The data set of a folder of class folders.

    Raises:
        InputError: if folders or images are not as `load` says.
    """
    if wanted.channels == 4:
        raise InputError("channels must be 1 or 3 for a folder of images, got 4")
    parts = part_folders(path)
    if wanted.split in (None, "evaluation") and "validation" in parts and "test" not in parts:
        parts["test"] = parts.pop("validation")  # as ImageNet has it
    read_parts = _parts_to_read(path, parts, wanted.split)
    files = list_files(path, parts, read_parts, 1 if wanted.mapped else 2)
    name, bad = path.resolve().name, {}
    while True:  # once, and once more if some files are unreadable and may be left out
        rows, said = _rows(files.labels, files.parts, files.classes, wanted, name)
        order = np.concatenate(rows)
        read = read_photos([files.paths[row] for row in order], wanted.geometry, wanted.channels, wanted.exif, progress)
        bad |= {files.paths[order[place]]: why for place, why in read.bad.items()}
        if bad and (not wanted.skip_bad or len(read.bad) == len(order)):
            raise unreadable([bad[path] for path in files.paths if path in bad])
        if not read.bad:
            break
        files = files.without(order[list(read.bad)].tolist())
    hashes = dict(zip(order.tolist(), read.hashes, strict=True))
    contents = [hashes[row] for row in sorted(hashes)]
    digest = digest_of("own", *contents, files.labels, *files.classes, *rows, *_changes(read, wanted))
    where = f" in {', '.join(f'{parts[part].name}/' for part in read_parts)}" if parts and wanted.split else ""
    told = [f"{len(order)} images of {len(files.classes)} classes{where}, {_sizes(read.sizes, wanted)}", said]
    told += [f"{read.turned} turned upright as their EXIF orientation says"] if read.turned else []
    told += [f"{read.deep} of 16 bits, divided by 65535"] if read.deep else []
    told += [left_out_said(files, len(bad))]
    source = f"local folder of images: {'; '.join(filter(None, told))}"
    found = _data(name, read.pixels, files.labels[order], rows, files.classes, digest, source)
    outputs = None if wanted.mapped else numbered(files.classes)
    if outputs is None or outputs == list(range(len(outputs))):
        return found
    return replace(relabelled(found, outputs), source=f"{source}; folder names are taken for the model's outputs")


def own_npz(path: Path, wanted: Wanted, layout: str | None) -> Data:
    """The data set of an .npz file.

    Raises:
        InputError: if the arrays are not as `load` says.
    """
    read, note = read_npz(path, layout), ""
    if read.images.shape[1] == 4 and wanted.channels != 4:
        read, note = replace(read, images=read.images[:, :3]), "; transparency dropped"
    present, labels = np.unique(read.labels, return_inverse=True)
    classes = tuple(read.classes[label] for label in present)
    rows, said = _rows(labels, np.full(len(labels), ""), classes, wanted, path.stem)
    order = np.concatenate(rows)
    pixels = torch.from_numpy(read.images[order])
    digest = digest_of("own", read.images, labels.astype(np.int64), *classes, *rows)
    height, width = read.images.shape[2:]
    told = f"{len(order)} images of {len(classes)} classes, {width} x {height} pixels; {said}{note}"
    found = _data(path.stem, pixels, labels[order], rows, classes, digest, f"local .npz file: {told}")
    return found if wanted.mapped else relabelled(found, present.tolist(), read.classes)


def _parts_to_read(path: Path, parts: Mapping[str, Path], split: str | None) -> list[str]:
    """Which of the folder's parts are to be listed."""
    if split is None or split == "all" or not parts:
        return [part for part in ("train", "test", "validation") if part in parts]
    wanted = next(part for part in ("test", "train") if part in parts) if split == "evaluation" else split
    if wanted not in parts:
        raise InputError(f"{path}: has no folder for split={split!r}, only {', '.join(f.name for f in parts.values())}")
    return [wanted]


def _rows(
    labels: np.ndarray, parts: np.ndarray, classes: Sequence[str], wanted: Wanted, name: str
) -> tuple[list[np.ndarray], str]:
    """The rows of train, validation and test, and what was done, in a phrase."""
    if wanted.split is None:
        rows, said = _training_rows(labels, parts, classes, wanted.seed, name)
    elif wanted.split in SHARES and (parts == "").all():
        rows = split_rows(labels, classes, tuple(SHARES.values()), name, wanted.seed)
        rows = [rows[0][:0], rows[0][:0], rows[list(SHARES).index(wanted.split)]]
        said = f"the {wanted.split} images of a split at random by class"
    else:
        rows = [np.arange(0), np.arange(0), in_no_order(labels, wanted.seed)]
        said = "all are test images"
    if wanted.count is not None and len(rows[2]) > wanted.count:
        said += f", {wanted.count} of {len(rows[2])} drawn at random"
        rows[2] = rows[2][: wanted.count]
    return rows, said


def _training_rows(
    labels: np.ndarray, parts: np.ndarray, classes: Sequence[str], seed: int, name: str
) -> tuple[list[np.ndarray], str]:
    if "test" not in parts:
        rows = split_rows(labels, classes, tuple(SHARES.values()), name, seed)
        return rows, f"split {_counts(rows)} at random by class"
    random = np.random.RandomState(SEED + seed)
    train, validation, test = (random.permutation(np.flatnonzero(parts == part)) for part in SHARES)
    if len(train) == 0:
        return [train, validation, test], "all are test images" if len(
            validation
        ) == 0 else "its own validation and test"
    if len(validation) == 0:
        kept, held_out = split_rows(labels[train], classes, (0.85, 0.15), f"{name}/train", seed)
        rows = [train[kept], train[held_out], test]
        return rows, f"its own train and test; {_counts(rows)} with validation images drawn from train at random"
    rows = [train, validation, test]
    return rows, f"its own train, validation and test; {_counts(rows)}"


def _counts(rows: Sequence[np.ndarray]) -> str:
    return " / ".join(str(len(part)) for part in rows)


def _changes(read: Photos, wanted: Wanted) -> list[str]:
    """What was done to the images, as the digest counts it; nothing where they are as their files have them."""
    done = [str(wanted.geometry)] if wanted.geometry else []
    done += [f"{read.pixels.shape[1]} channels"] if wanted.channels else []
    return [*done, *(["turned by EXIF"] if read.turned else [])]


def _sizes(sizes: Sequence[tuple[int, int]], wanted: Wanted) -> str:
    """The sizes of the photos, width x height as usual for photos, and what was made of them."""
    ends = dict.fromkeys((min(sizes, key=math.prod), max(sizes, key=math.prod)))
    said = " to ".join(f"{width} x {height}" for height, width in ends) + " pixels"
    return f"{said}, {wanted.geometry}" if wanted.geometry else said


def _data(
    name: str,
    pixels: Tensor,
    labels: np.ndarray,
    rows: Sequence[np.ndarray],
    classes: tuple[str, ...],
    digest: str,
    source: str,
) -> Data:
    """The data set whose pixels lie in the order of its rows: train, validation, test."""
    whole, sizes = Split(pixels, torch.from_numpy(labels.astype(np.int64))), [len(part) for part in rows]
    starts = np.cumsum([0, *sizes]).tolist()
    train, validation, test = (whole[start : start + size] for start, size in zip(starts, sizes, strict=False))
    plain = name.encode(errors="replace").decode()  # the name of a folder need not be UTF-8
    return Data(plain, train, validation, test, classes, digest, source)
