"""Files of images and labels, read into arrays: a folder of class folders, an .npz file, one image."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from brittle.errors import InputError, first_line
from brittle.progress import Progress

if TYPE_CHECKING:
    from PIL.Image import Image  # imported where images are decoded: most data sets need no Pillow

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # not EPS, for which Pillow starts Ghostscript
LARGEST_IMAGE = 1 << 28  # bytes of an image's file
LAYOUTS = ("NCHW", "NHWC")
ROUNDING = 1e-6  # how far outside [0, 1] a pixel may lie and still be a rounding, not an error


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images and labels as they were read.

    Attributes:
        images: (N, C, H, W), uint8, or float32 in [0, 1].
        labels: (N,), integers that use all of 0..K-1.
        classes: the K names.
        parts: (N,), "train", "validation" or "test", or "" where the files do not say.
        contents: what identifies the images: their files' sha256, or the arrays themselves.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    parts: np.ndarray
    contents: tuple[str | np.ndarray, ...]


def read_bytes(path: Path, most: int) -> bytes:
    """A file's content of at most so many bytes, decompressed if its name ends in .gz.

    Raises:
        InputError: if it is larger, cannot be read, or is no whole .gz file though its name says so.
    """
    if not os.path.isfile(path):  # a pipe never ends, nor does /dev/zero
        raise InputError(f"{path}: cannot be read: it is not a regular file")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(most + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be decompressed, expected a whole .gz file: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > most:
        raise InputError(f"{path}: holds more than {most:,} bytes, expected at most so many")
    return content


def opened(path: Path, content: bytes) -> Image:
    """The image whose file at `path` holds `content`, not decoded yet: its size is known, its pixels are not.

    Raises:
        InputError: if it is no image of the kinds in IMAGE_SUFFIXES, or one of more than some 90 million pixels.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(content), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: not a readable image ({len(content):,} bytes)") from error
    except Exception as error:  # Pillow's readers let out whatever a broken file leads them to
        raise InputError(f"{path}: not a readable image: {first_line(error)}") from error


def decode(path: Path, image: Image) -> None:
    """Reads the pixels of an image that was `opened`; of a moving one, its first picture.

    Raises:
        InputError: if they are not whole.
    """
    try:
        image.load()
    except Exception as error:  # see above
        raise InputError(f"{path}: not a readable image: {first_line(error)}") from error


def read_folder(path: Path, progress: Progress) -> Labelled:
    """Reads class folders of images: in `path`, or in train/, test/ and perhaps validation/ or val/ inside it.

    Raises:
        InputError: if folders or images are not as expected; the message names the first that is not.
    """
    folders = _part_folders(path)
    first = folders.get("train", path)
    classes = tuple(folder.name for folder in _subfolders(first))
    if len(classes) < 2:
        found = f"only one class folder, {classes[0]}/" if classes else "no class folders"
        raise InputError(f"{first}: holds {found}; expected at least 2, each with its images")
    for name in classes:
        _check_text(name, first)
    files: list[Path] = []
    labels: list[int] = []
    parts: list[str] = []
    for part, folder in folders.items():
        for label, images in enumerate(_images_by_class(folder, classes)):
            files += images
            labels += [label] * len(images)
            parts += [part] * len(images)
    pixels, hashes = _read_images(files, progress)
    return Labelled(pixels, np.array(labels), classes, np.array(parts), tuple(hashes))


def read_npz(path: Path, layout: str | None) -> Labelled:
    """Reads `images`, `labels` and perhaps `classes` from an .npz file; never unpickles.

    Raises:
        InputError: if the arrays are not there or not as expected; the message names the file and the array.
    """
    arrays = _stored_arrays(path)
    images, labels = _checked_images(arrays["images"], layout, path), arrays["labels"]
    count = _checked_label_count(labels, len(images), path)
    classes = _checked_classes(arrays.get("classes"), count, path)
    return Labelled(images, labels, classes, np.full(len(labels), ""), (images,))


def way_into_range(low: float, high: float) -> str:
    """How to bring images in [low, high] into [0, 1], as the end of a message; nothing where that is not plain."""
    if low >= 0 and 2 <= high <= 65_535:
        return ": divide them by the largest value that a pixel can have, 255 where it has 8 bits"
    if -20 < low < 0 and high < 20:
        return ": they look normalised; undo that, and let the model normalise them itself"
    return ""


def _part_folders(path: Path) -> dict[str, Path]:
    inner = {folder.name: folder for folder in _subfolders(path)}
    nested = [name for name in ("train", "test") if name in inner and _subfolders(inner[name])]
    if not nested:
        return {"": path}
    if len(nested) == 1:
        lacking = "test" if nested == ["train"] else "train"
        raise InputError(
            f"{path}: holds class folders in {nested[0]}/ but none in {lacking}/; expected both or neither"
        )
    folders = {"train": inner["train"], "test": inner["test"]}
    if "validation" in inner and "val" in inner:
        raise InputError(f"{path}: holds both validation/ and val/, expected at most one")
    if held_out := inner.get("validation") or inner.get("val"):
        folders["validation"] = held_out
    return folders


def _subfolders(path: Path) -> list[Path]:
    return [inner for inner in _entries(path) if inner.is_dir()]


def _entries(path: Path) -> list[Path]:
    """What lies in a folder and is not hidden, sorted by name."""
    try:
        found = sorted(inner for inner in path.iterdir() if not inner.name.startswith("."))
        for inner in found:
            inner.is_dir()  # raises where the folder may be listed but not entered
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    return found


def _images_by_class(folder: Path, classes: Sequence[str]) -> Iterator[list[Path]]:
    """The image files of each class, sorted by name."""
    here = {inner.name for inner in _subfolders(folder)}
    if lacking := sorted(set(classes) - here):
        raise InputError(f"{folder}: lacks the class folders {', '.join(lacking)}, which train/ has")
    if added := sorted(here - set(classes)):
        raise InputError(f"{folder}: has the class folders {', '.join(added)}, which train/ lacks")
    for name in classes:
        images = [file for file in _entries(folder / name) if file.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise InputError(f"{folder / name}: holds no images, expected files ending in {', '.join(IMAGE_SUFFIXES)}")
        yield images


def _read_images(files: list[Path], progress: Progress) -> tuple[np.ndarray, list[str]]:
    """Images of one size, (N, C, H, W) uint8, C = 1 if all are grey and else 3; and each file's sha256."""
    pixels: list[np.ndarray] = []
    hashes: list[str] = []
    size = (0, 0)
    for done, file in enumerate(files, start=1):
        content = read_bytes(file, LARGEST_IMAGE)
        image = opened(file, content)
        if not pixels:
            size = image.size
            _check_memory(file.parent.parent, len(files) * math.prod(size))
        if image.size != size:
            raise InputError(
                f"images of mixed sizes: {files[0]} is {size[0]} x {size[1]} and {file} is {image.width} x "
                f"{image.height} pixels; resize them to one size"
            )
        hashes.append(hashlib.sha256(content).hexdigest())
        decode(file, image)
        pixels.append(_pixels(file, image))
        progress(done, len(files), "images")
    stacked = np.empty((len(pixels), max(len(image) for image in pixels), *pixels[0].shape[1:]), np.uint8)
    for row, image in zip(stacked, pixels, strict=True):
        row[:] = image  # a grey image among coloured ones fills all three channels
    return stacked, hashes


def _check_memory(path: Path, numbers: int) -> None:
    """Refuses what the machine's memory cannot hold as float32."""
    if not hasattr(os, "sysconf"):  # Windows
        return
    needed, there = 4 * numbers, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise InputError(
            f"{path}: the images need {needed / 1e9:,.0f} GB of memory, {there / 1e9:,.0f} GB are here: use fewer or "
            f"smaller ones"
        )


def _check_text(name: str, path: Path) -> None:
    """Refuses a class' name that cannot be written as UTF-8, as reports and digests need it."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: the class name {name!a} is not UTF-8 text: rename it") from error


def _pixels(path: Path, image: Image) -> np.ndarray:
    """(1, H, W) of a grey image, (3, H, W) of a coloured one."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):  # Pillow would clip them to 8 bits
        raise InputError(f"{path}: pixels are of Pillow's type {image.mode}, expected 8 bits a channel")
    if image.mode in ("1", "L", "LA", "La"):
        return np.asarray(image.convert("L"))[None]
    has_palette = image.mode in ("P", "PA")
    if has_palette:
        image = image.convert("RGBA")  # first, because Pillow warns when a transparent palette becomes RGB at once
    coloured = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    return coloured[:1] if has_palette and (coloured == coloured[:1]).all() else coloured


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
        _check_memory(path, math.prod(shape))


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
    fits = [known for known, axis in zip(LAYOUTS, (1, 3), strict=True) if images.shape[axis] in (1, 3)]
    if layout is None and len(fits) != 1:
        reading = "could be either layout" if fits else "has neither 1 nor 3 channels in either layout"
        raise InputError(f"{path}: images of shape {images.shape} {reading}: state layout='NCHW' or layout='NHWC'")
    return images if (layout or fits[0]) == "NCHW" else images.transpose(0, 3, 1, 2)


def _checked_label_count(labels: np.ndarray, rows: int, path: Path) -> int:
    """K, if `labels` are (rows,) integers that use all of 0..K-1."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"{path}: labels must be integers of shape (N,), got {labels.dtype} of shape {labels.shape}")
    if len(labels) != rows:
        raise InputError(f"{path}: {rows} images but {len(labels)} labels")
    if labels.min() < 0:
        raise InputError(f"{path}: labels must be 0..K-1, got {labels.min()} in row {labels.argmin()}")
    present = np.unique(labels)
    count = int(present[-1]) + 1
    if len(present) < count:
        gap = next(label for label, found in enumerate(present) if label != found)
        raise InputError(f"{path}: labels run to {count - 1} but none is {gap}; expected all of 0..K-1")
    if count < 2:
        raise InputError(f"{path}: all labels are 0, expected at least 2 classes")
    return count


def _checked_classes(names: np.ndarray | None, count: int, path: Path) -> tuple[str, ...]:
    if names is None:
        return tuple(str(label) for label in range(count))
    if names.dtype.kind != "U" or names.shape != (count,):
        raise InputError(f"{path}: classes must be {count} strings, got {names.dtype} of shape {names.shape}")
    for name in names.tolist():
        _check_text(name, path)
    return tuple(names.tolist())
