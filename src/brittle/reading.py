"""Files of images and labels, read into arrays: a folder of class folders, an .npz file, one image."""

from __future__ import annotations

import gzip
import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brittle.errors import InputError
from brittle.progress import Progress

if TYPE_CHECKING:
    from PIL.Image import Image  # imported where images are decoded: most data sets need no Pillow

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
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


def read_bytes(path: Path) -> bytes:
    """A file's content, decompressed if its name ends in .gz.

    Raises:
        InputError: if it cannot be read, or is no whole .gz file though its name says so.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be decompressed, expected a whole .gz file: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def decode(path: Path, content: bytes) -> Image:
    """The image whose file at `path` holds `content`; of a moving one, its first picture.

    Raises:
        InputError: if it is no whole image of a kind that Pillow knows.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: not a readable image ({len(content):,} bytes)") from error
    except Exception as error:  # Pillow's readers let out whatever a broken file leads them to
        raise InputError(f"{path}: not a readable image: {error}") from error
    return image


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
    return sorted(inner for inner in path.iterdir() if inner.is_dir() and not inner.name.startswith("."))


def _images_by_class(folder: Path, classes: Sequence[str]) -> Iterator[list[Path]]:
    """The image files of each class, sorted by name."""
    here = {inner.name for inner in _subfolders(folder)}
    if lacking := sorted(set(classes) - here):
        raise InputError(f"{folder}: lacks the class folders {', '.join(lacking)}, which train/ has")
    if added := sorted(here - set(classes)):
        raise InputError(f"{folder}: has the class folders {', '.join(added)}, which train/ lacks")
    for name in classes:
        inside = sorted((folder / name).iterdir())
        images = [file for file in inside if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")]
        if not images:
            raise InputError(f"{folder / name}: holds no images, expected files ending in {', '.join(IMAGE_SUFFIXES)}")
        yield images


def _read_images(files: list[Path], progress: Progress) -> tuple[np.ndarray, list[str]]:
    """Images of one size, (N, C, H, W) uint8, C = 1 if all are grey and else 3; and each file's sha256."""
    pixels: list[np.ndarray] = []
    hashes = []
    for done, file in enumerate(files, start=1):
        content = read_bytes(file)
        hashes.append(hashlib.sha256(content).hexdigest())
        pixels.append(_pixels(file, content))
        (height, width), (first_height, first_width) = pixels[-1].shape[1:], pixels[0].shape[1:]
        if (height, width) != (first_height, first_width):
            raise InputError(
                f"images of mixed sizes: {files[0]} is {first_width} x {first_height} and {file} is {width} x {height} "
                f"pixels; resize them to one size"
            )
        progress(done, len(files), "images")
    stacked = np.empty((len(pixels), max(len(image) for image in pixels), *pixels[0].shape[1:]), np.uint8)
    for row, image in zip(stacked, pixels, strict=True):
        row[:] = image  # a grey image among coloured ones fills all three channels
    return stacked, hashes


def _pixels(path: Path, content: bytes) -> np.ndarray:
    """(1, H, W) of a grey image, (3, H, W) of a coloured one."""
    image = decode(path, content)
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
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not a whole .npz file; expected one with images and labels, or a folder of images")
    try:
        with np.load(path, allow_pickle=False) as stored:
            if lacking := [name for name in ("images", "labels") if name not in stored.files]:
                found = ", ".join(stored.files) or "nothing"
                raise InputError(f"{path}: lacks {' and '.join(lacking)}, holds {found}; expected images and labels")
            arrays = {name: stored[name] for name in ("images", "labels", "classes") if name in stored.files}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())  # numpy's may run over several lines
        if "Object arrays" in reason:  # numpy's own words advise allow_pickle, which would run the file's code
            reason = "it stores Python objects, expected plain numbers and strings"
        raise InputError(f"{path}: cannot be read: {reason}") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy gives the bytes of a member that is no array
            raise InputError(f"{path}: {name} is not an array as numpy stores them")
    return arrays


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
    return tuple(names.tolist())
