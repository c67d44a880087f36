"""Photos: one image file of any usual kind, read into an array."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from brittle.data.geometry import Geometry, planes
from brittle.errors import InputError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image  # imported where images are decoded: most data sets need no Pillow

IMAGE_SUFFIXES = (
    *(".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # not EPS, for which Pillow starts Ghostscript
LARGEST_IMAGE = 1 << 28  # bytes of an image's file
_ORIENTATION = 0x0112  # the EXIF tag: 1 is upright
_TURNED = (5, 6, 7, 8)  # the orientations that exchange height and width


@dataclass(frozen=True)
class Header:
    """What a photo's header says.

    Attributes:
        size: (height, width), upright where it is to be turned.
        channels: 1 for a grey image, else 3.
        deep: whether a channel has 16 bits.
        turned: whether its EXIF orientation says that it lies on a side, upside down or mirrored.
    """

    size: tuple[int, int]
    channels: int
    deep: bool
    turned: bool


@dataclass(frozen=True)
class Form:
    """What every photo of a folder becomes.

    Attributes:
        geometry: resizing and cropping.
        channels: 1 or 3.
        deep: whether the pixels are float32 in [0, 1], as 16 bits need it, or uint8.
        exif: whether photos are turned as their EXIF orientation says.
    """

    geometry: Geometry
    channels: int
    deep: bool
    exif: bool


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


def opened(path: Path, file: BinaryIO) -> Image:
    """The image in a file, not decoded yet: its size is known, its pixels are not.

    Raises:
        InputError: if it is no image of the kinds in IMAGE_SUFFIXES, or one of more than some 90 million pixels.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file, formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: not a readable image ({file.seek(0, io.SEEK_END):,} bytes)") from error
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


def read_header(path: Path, exif: bool) -> Header:
    """A photo's header; the pixels of one with a palette are looked at too, as its colours may all be grey.

    Raises:
        InputError: if it is no image that can be read, or holds pixels of another kind than 8 or 16 bits a channel.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path}: cannot be read: it is not a regular file")
    try:
        with path.open("rb") as file:
            if file.seek(0, io.SEEK_END) > LARGEST_IMAGE:
                raise InputError(f"{path}: holds more than {LARGEST_IMAGE:,} bytes, expected at most so many")
            file.seek(0)
            image = opened(path, file)
            deep = _is_deep(image)
            if image.mode in ("I", "F") and not deep:
                raise InputError(f"{path}: pixels are of Pillow's type {image.mode}, expected 8 or 16 bits a channel")
            turn = _orientation(image) if exif else 1
            size = (image.width, image.height) if turn in _TURNED else (image.height, image.width)
            return Header(size, 1 if deep or _is_grey(path, image) else 3, deep, turn != 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def read_photo(path: Path, form: Form) -> tuple[np.ndarray, str]:
    """A photo's pixels, (C, H, W), uint8 or float32 as its form has them, and the sha256 of its file.

    Transparency is dropped.

    Raises:
        InputError: if it is no whole image.
    """
    from PIL import ImageOps

    content = read_bytes(path, LARGEST_IMAGE)
    image = opened(path, io.BytesIO(content))
    decode(path, image)
    deep = _is_deep(image)
    try:
        if form.exif and _orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
        pixels = planes(_bands(image, deep, form), form.geometry, form.channels)
    except Exception as error:  # a conversion that Pillow does not have, such as of LAB
        raise InputError(f"{path}: not a readable image: {first_line(error)}") from error
    return pixels, hashlib.sha256(content).hexdigest()


def _is_deep(image: Image) -> bool:
    """Whether it has 16 bits a channel; of coloured ones Pillow keeps 8."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _is_grey(path: Path, image: Image) -> bool:
    if image.mode not in ("P", "PA"):
        return image.mode in ("1", "L", "LA", "La")
    decode(path, image)
    colours = np.asarray(_coloured(image))
    return bool((colours == colours[:, :, :1]).all())


def _orientation(image: Image) -> int:
    """1 to 8; of what cannot be read, 1. Pillow itself turns TIFF images when it decodes them."""
    if image.format == "TIFF":
        return 1
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data; the image may be whole
        return 1
    return found if found in range(1, 9) else 1


def _coloured(image: Image) -> Image:
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # first, because Pillow warns when a transparent palette becomes RGB at once
    return image.convert("RGB")


def _bands(image: Image, deep: bool, form: Form) -> list[Image]:
    """What `planes` takes: one image of 8 bits, or one of mode F for each channel, a single one if it is grey."""
    from PIL import Image

    if deep:
        return [Image.fromarray(np.asarray(image, np.float32) / np.float32(65_535))]
    grey = form.channels == 1 or image.mode in ("1", "L", "LA", "La")
    plain = (_coloured(image) if image.mode in ("P", "PA") else image).convert("L" if grey else "RGB")
    if not form.deep:
        return [plain]
    return [Image.fromarray(np.asarray(band, np.float32) / np.float32(255)) for band in plain.split()]
