"""A folder of class folders of photos."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from brittle.data.classes import check_text
from brittle.data.geometry import Geometry
from brittle.data.photos import IMAGE_SUFFIXES, Form, Header, read_header, read_photo
from brittle.data.room import room
from brittle.errors import InputError
from brittle.progress import Progress

PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_MACOSX = "__MACOSX"  # what macOS adds to archives
_SHOWN = 10  # unreadable files that an error names

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Files:
    """The photos of a folder, not read yet, in one order on every machine.

    Attributes:
        paths: of N photos.
        labels: (N,), int64, in 0..K-1.
        parts: (N,), "train", "validation" or "test", or "" where the folder does not say.
        classes: the K names, sorted.
        left_out: how many other files there are, by their kind.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    parts: np.ndarray
    classes: tuple[str, ...]
    left_out: Counter[str]

    def without(self, bad: Sequence[int]) -> Files:
        """The same files but these, by their places."""
        kept = np.setdiff1d(np.arange(len(self.paths)), bad)
        paths = tuple(self.paths[place] for place in kept)
        return Files(paths, self.labels[kept], self.parts[kept], self.classes, self.left_out)


# What is there ---------------------------------------------------------------------------------------------------


def part_folders(path: Path) -> dict[str, Path]:
    """The folders of parts, "train", "validation" and "test", that hold class folders; none where `path` does itself.

    A folder that has images of its own is a class, whatever its name.
    """
    found: dict[str, Path] = {}
    for inner in _subfolders(path):
        part = PARTS.get(inner.name.lower())
        if part is None or not _subfolders(inner) or any(_is_image(file) for file in _entries(inner)):
            continue
        if part in found:
            raise InputError(f"{path}: holds both {found[part].name}/ and {inner.name}/, expected at most one")
        found[part] = inner
    beside = [one.name for one in _subfolders(path) if one not in found.values() and any(map(_is_image, _entries(one)))]
    if len(found) == 1 and beside:
        [part] = found.values()
        raise InputError(
            f"{path}: holds class folders in {part.name}/, and beside it folders of images, {', '.join(beside[:5])}: "
            f"name the folder that is meant"
        )
    return found


def list_files(path: Path, parts: dict[str, Path], wanted: Sequence[str], fewest: int) -> Files:
    """The photos of the class folders in `path`, or in its `parts`, as far as they are `wanted`.

    The classes are those of train/, or of test/ where there is none; a folder of another part may lack some.

    Raises:
        InputError: if there are fewer than `fewest` classes, one holds no images, or a part has others than the first.
    """
    folders = parts or {"": path}
    first = next(folders[part] for part in ("train", "test", "validation", "") if part in folders)
    classes = tuple(folder.name for folder in _subfolders(first))
    if len(classes) < fewest:
        found = f"only one class folder, {classes[0]}/" if classes else "no class folders"
        raise InputError(f"{first}: holds {found}; expected at least {fewest}, each with its images")
    for name in classes:
        check_text(name, first)
    paths: list[Path] = []
    labels: list[int] = []
    of_part: list[str] = []
    left_out: Counter[str] = Counter()
    for other in set(_subfolders(path)) - set(parts.values()) if parts else ():
        left_out[f"in {other.name}/"] += sum(map(_is_image, _below(other)))
    for part in wanted if parts else [""]:
        folder = folders[part]
        here = [inner.name for inner in _subfolders(folder)]
        if added := sorted(set(here) - set(classes)):
            raise InputError(f"{folder}: has the class folders {', '.join(added)}, which {first.name}/ lacks")
        left_out["outside the class folders"] += sum(_is_image(file) for file in _entries(folder))
        for name in here:
            images = _images(folder / name, left_out)
            paths += images
            labels += [classes.index(name)] * len(images)
            of_part += [part] * len(images)
    return Files(tuple(paths), np.array(labels, np.int64), np.array(of_part), classes, +left_out)


def _subfolders(path: Path) -> list[Path]:
    return [inner for inner in _entries(path) if inner.is_dir() and inner.name != _MACOSX]


def _entries(path: Path) -> list[Path]:
    """What lies in a folder and is not hidden, sorted by name."""
    try:
        found = sorted((one for one in path.iterdir() if not one.name.startswith(".")), key=lambda one: one.name)
        for inner in found:
            inner.is_dir()  # raises where the folder may be listed but not entered
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    return found


def _images(folder: Path, left_out: Counter[str]) -> list[Path]:
    """The images of a class, also in folders inside its own, sorted by path."""
    images: list[Path] = []
    others: Counter[str] = Counter()
    for file in _below(folder):
        if _is_image(file):
            images.append(file)
        else:
            others[file.suffix.lower() or "without a suffix"] += 1
    if not images:
        found = f", found {_counted(others)}" if others else ""
        raise InputError(f"{folder}: holds no images, expected files ending in {', '.join(IMAGE_SUFFIXES)}{found}")
    left_out.update(others)
    return sorted(images, key=lambda file: file.relative_to(folder).parts)


def _below(folder: Path) -> Iterator[Path]:
    """All files in a folder and in the folders inside it; not in linked ones, as links may go in circles."""
    for inner in _entries(folder):
        if inner.is_dir() and not _is_image(inner):
            if inner.name != _MACOSX and not inner.is_symlink():
                yield from _below(inner)
        else:
            yield inner


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def left_out_said(files: Files, unreadable: int) -> str:
    """What was not read, in a phrase; empty if all was."""
    kinds = files.left_out + Counter({"unreadable": unreadable})
    return f"left out: {_counted(kinds)}" if kinds else ""


# Reading it ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Photos:
    """Photos that were read.

    Attributes:
        pixels: (N, C, H, W), uint8, or float32 in [0, 1] where any has 16 bits; those that could not be read are noise.
        hashes: the sha256 of each file.
        sizes: the (height, width) of each before resizing.
        turned: how many were turned as their EXIF orientation says.
        deep: how many have 16 bits a channel.
        bad: the places of those that could not be read, and why.
    """

    pixels: Tensor
    hashes: list[str]
    sizes: list[tuple[int, int]]
    turned: int
    deep: int
    bad: dict[int, str]


def read_photos(
    paths: Sequence[Path], geometry: Geometry, channels: int | None, exif: bool, progress: Progress
) -> Photos:
    """Reads photos into one tensor, in their order.

    Raises:
        InputError: if they do not come out at one size.
    """
    headers = _each(lambda path: read_header(path, exif), paths, progress, "headers")
    bad = {place: str(found) for place, found in enumerate(headers) if isinstance(found, InputError)}
    good = {place: found for place, found in enumerate(headers) if isinstance(found, Header)}
    height, width = _one_size(paths, good, geometry)
    grey = all(header.channels == 1 for header in good.values())
    form = Form(geometry, channels or (1 if grey else 3), any(header.deep for header in good.values()), exif)
    shape = (len(paths), form.channels, height, width)
    pixels = room(shape, torch.float32 if form.deep else torch.uint8)
    rows, hashes = pixels.numpy(), [""] * len(paths)

    def read(place: int) -> None:
        rows[place], hashes[place] = read_photo(paths[place], form)

    for place, found in zip(good, _each(read, list(good), progress, "images"), strict=True):
        if isinstance(found, InputError):
            bad[place] = str(found)
    sizes = [header.size for header in good.values()]
    turned, deep = (sum(getattr(header, name) for header in good.values()) for name in ("turned", "deep"))
    return Photos(pixels, hashes, sizes, turned, deep, dict(sorted(bad.items())))


def unreadable(bad: Sequence[str]) -> InputError:
    """An error that names the first of the files that cannot be read."""
    shown = "; ".join(bad[:_SHOWN])
    more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    files = "1 file cannot" if len(bad) == 1 else f"{len(bad)} files cannot"
    return InputError(f"{files} be read: {shown}{more}: skip_bad=True, or --skip-bad, leaves such files out")


def _each(work: Callable[[T], R], items: Sequence[T], progress: Progress, note: str) -> list[R | InputError]:
    """What `work` makes of each item, or the error that it raises, with a thread for each processor."""

    def tried(item: T) -> R | InputError:
        try:
            return work(item)
        except InputError as error:
            return error

    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    made = []
    with ThreadPoolExecutor(min(8, processors)) as pool:  # Pillow decodes and resizes without Python's lock
        try:
            for one in pool.map(tried, items):
                made.append(one)
                progress(len(made), len(items), note)
        except BaseException:  # such as Ctrl-C: what has not begun is not begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return made


def _one_size(paths: Sequence[Path], headers: dict[int, Header], geometry: Geometry) -> tuple[int, int]:
    """The (height, width) of all images after resizing and cropping."""
    sizes = {place: geometry.resized(*header.size) for place, header in headers.items()}
    if geometry.crop:
        for place, (height, width) in sizes.items():
            if height < geometry.crop[0] or width < geometry.crop[1]:
                raise InputError(
                    f"{paths[place]} has {width} x {height} pixels, from which crop={geometry.crop[1]} x "
                    f"{geometry.crop[0]} cannot be cut: give a larger resize=, or --resize"
                )
        return geometry.crop
    first = next(iter(sizes), None)
    if first is None:
        return 1, 1
    for place, (height, width) in sizes.items():
        if (height, width) != sizes[first]:
            raise InputError(
                f"images of mixed sizes: {paths[first]} is {sizes[first][1]} x {sizes[first][0]} and {paths[place]} is "
                f"{width} x {height} pixels; resize them, such as with resize=256, crop=224 (--resize 256 --crop 224)"
            )
    return sizes[first]
