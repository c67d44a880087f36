"""Data sets by name or path."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from brittle.data import builtin
from brittle.data.builtin import names
from brittle.data.classes import mapped
from brittle.data.geometry import Geometry, fitted, geometry_of
from brittle.data.npz import LAYOUTS
from brittle.data.own import SPLITS, Wanted, own_folder, own_npz
from brittle.data.split import Data, Split, digest_of
from brittle.errors import InputError, unknown
from brittle.progress import Progress, barred, silent


@barred("reading data")
def load(
    name_or_path: str | Path,
    root: Path | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    resize: int | None = None,
    crop: int | tuple[int, int] | None = None,
    interpolation: str = "bilinear",
    channels: int | None = None,
    layout: str | None = None,
    classes: Any = None,
    split: str | None = None,
    count: int | None = None,
    exif: bool = True,
    skip_bad: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Data:
    """Reads a data set: a built-in name, a folder of class folders of images, or an .npz file.

    `digits` comes with scikit-learn; `mnist` and `cifar10` are downloaded when no data root holds them; `yale-faces`
    must be placed by hand. A folder named like one of these is read as `./mnist`.

    A folder holds one folder of images for each class, or such class folders in some of train/, test/ and validation/
    (also val/ and valid/). Images may lie in folders inside those of their class; hidden files, __MACOSX and files of
    other kinds are left out. They become grey if all are grey and else RGB; transparency is dropped; 16-bit grey is
    divided by 65535. Bytes stay bytes in memory, and what is larger than half of it lies in a file that the system
    pages in.

    An .npz file holds `images`, (N, H, W), (N, C, H, W) or (N, H, W, C), uint8 in 0..255 or floating point in [0, 1];
    `labels`, (N,), integers, which stay as they are; and perhaps `classes`, a name for each output or for each label
    that is there.

    `Data.source` says what was read, what was done to it and what was left out.

    Args:
        name_or_path: one of `names()`, or a path.
        root: searched before BRITTLE_DATA and the user's cache, and where downloads go.
        size: the exact height and width, or one number for both; the proportions change.
        resize: the shorter side; the longer side keeps the proportions. `crop`: height and width cut out of the centre
            afterwards. Both as torchvision's Resize and CenterCrop do on Pillow's images.
        interpolation: of resizing: "bilinear", "bicubic" or "nearest".
        channels: 1 or 3; in an .npz file also 4, which is otherwise taken for colour with transparency.
        layout: of an .npz file's images, "NCHW" or "NHWC", where their shape leaves it open.
        classes: which output of the model each class is. Numbers, one for each class in the sorted order of the
            folders; or the names of all outputs in their order, among which each folder is looked up; or a mapping
            from names to outputs; or a file of one of these: a name a line, a name and its output a line, or JSON
            such as ImageNet's class index or a Hugging Face config. Folder names that are numbers are outputs anyway.
        split: None for what training needs: a folder or file that is not split yet is split 70 / 15 / 15, or 85 / 15
            where only validation images are lacking, each class in proportion; validation/ is the test split where
            there is no test/. Otherwise `test` holds what is asked for, and train and validation are empty:
            "evaluation" is what a model should be judged on, test/, else validation/, else all images; "all" is all of
            them; "train", "validation" and "test" are these parts. Of a built-in data set "evaluation" changes nothing.
        count: of a folder or file of your own, how many test images at most. They are drawn at random, each class in
            proportion; of a folder only these are read.
        exif: whether photos are turned as their EXIF orientation says.
        skip_bad: whether unreadable files of a folder are left out; else they are an error that lists them.
        seed: of what is drawn at random. Test images are in no order, so that the first ones have all classes.
        progress: told of downloads (bytes) and of reading a folder (images); by default a bar is shown on a terminal
            and in a notebook.

    Raises:
        InputError: if it is unknown, not there, or not as expected; the message names the file.
    """
    geometry = geometry_of(size, resize, crop, interpolation)
    _check(channels, layout, split, count, seed)
    for name, value in (("exif", exif), ("skip_bad", skip_bad)):
        if not isinstance(value, bool):
            raise InputError(f"{name} must be true or false, got {value!r}")
    wanted = Wanted(geometry, channels, split, count, exif, skip_bad, seed, classes is not None)
    found = _found(name_or_path, root, wanted, layout, progress or silent)
    return found if classes is None else mapped(found, classes)


def _check(channels: object, layout: object, split: object, count: object, seed: object) -> None:
    if channels is not None and not (type(channels) is int and channels in (1, 3, 4)):
        raise InputError(f"channels must be 1 or 3, got {channels!r}")
    if layout is not None and layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)  # pyright: ignore[reportArgumentType]
    if split is not None and split not in SPLITS:
        raise unknown("split", split, SPLITS)  # pyright: ignore[reportArgumentType]
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise InputError(f"count must be at least 1, got {count!r}")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        raise InputError(f"seed must be a whole number in 0..{2**31 - 1}, got {seed!r}")


def _found(name_or_path: str | Path, root: Path | None, wanted: Wanted, layout: str | None, progress: Progress) -> Data:
    if not isinstance(name_or_path, str | Path):
        raise InputError(f"a data set is named by a text or a path, got {type(name_or_path).__name__}")
    if len(str(name_or_path)) > 1000:
        raise InputError(f"{str(name_or_path)[:60]!r}... has {len(str(name_or_path)):,} characters: expected a name")
    name = name_or_path if isinstance(name_or_path, str) else ""  # Path("mnist") is a path
    path = Path(os.path.expanduser(name_or_path))  # of a user who is not there Path.expanduser makes a RuntimeError
    is_array_file = name not in names() and os.path.isfile(path)  # False where the system refuses the name
    if layout is not None and not is_array_file:
        raise InputError(f"layout={layout!r} only goes with an .npz file, got {str(name_or_path)!r}")
    if name in names():
        return _reshaped(_part_of(builtin.load(name, root, progress), wanted.split), wanted.geometry, wanted.channels)
    if is_array_file:
        return _reshaped(own_npz(path, wanted, layout), wanted.geometry, wanted.channels)
    if name_or_path != "" and os.path.isdir(path):
        return own_folder(path, wanted, progress)
    if name_or_path != "" and os.path.exists(path):
        raise InputError(f"{path} is neither a folder nor a regular file: expected class folders or an .npz file")
    if isinstance(name_or_path, Path) or path.suffix or path.parent != Path():
        raise InputError(f"{path} is not there: expected a folder, an .npz file or one of {', '.join(names())}")
    raise unknown("data set or folder", name, names())


def _part_of(data: Data, split: str | None) -> Data:
    """A built-in data set whose test split is the part that is asked for."""
    if split in (None, "evaluation", "test"):
        return data
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    wanted = list(parts.values()) if split == "all" else [parts[split]]
    test = Split(torch.cat([part.pixels for part in wanted]), torch.cat([part.labels for part in wanted]))
    none = data.test[:0]
    digest, source = digest_of("part", data.digest, split), f"{data.source}; test images are those of {split}"
    return replace(data, train=none, validation=none, test=test, digest=digest, source=source)


def _reshaped(data: Data, geometry: Geometry, channels: int | None) -> Data:
    """The data with other sizes or channels."""
    if channels == data.image_shape[0]:
        channels = None
    if not geometry and channels is None:
        return data
    if channels == 4 or (channels and data.image_shape[0] not in (1, 3)):
        raise InputError(f"{data.name}: images of {data.image_shape[0]} channels cannot become ones of {channels}")
    height, width = geometry.resized(*data.image_shape[1:])
    if geometry.crop and (geometry.crop[0] > height or geometry.crop[1] > width):
        raise InputError(
            f"{data.name}: crop={geometry.crop} cannot be cut from {width} x {height} pixels: resize first"
        )

    def of(split: Split) -> Split:
        return Split(torch.from_numpy(fitted(split.pixels.numpy(), geometry, channels)), split.labels)

    done = ", ".join(filter(None, (str(geometry) if geometry else "", f"{channels} channels" if channels else "")))
    return replace(
        data,
        train=of(data.train),
        validation=of(data.validation),
        test=of(data.test),
        digest=digest_of("reshaped", data.digest, done),
        source=f"{data.source}; {done}",
    )
