"""How images are brought to the size and the number of channels that a model takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from brittle.errors import InputError, unknown

if TYPE_CHECKING:
    from PIL.Image import Image  # imported where images are decoded: most data sets need no Pillow

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
LARGEST_SIDE = 20_000  # pixels that a side may be asked to have


@dataclass(frozen=True)
class Geometry:
    """Resizing and cropping as torchvision's transforms do it on Pillow's images.

    Attributes:
        size: exact (height, width), without regard to the proportions.
        resize: of the shorter side; the longer side keeps the proportions, rounded down.
        crop: (height, width) cut out of the centre, after `resize`.
        interpolation: one of INTERPOLATIONS; where an image becomes smaller, Pillow smooths it.
    """

    size: tuple[int, int] | None = None
    resize: int | None = None
    crop: tuple[int, int] | None = None
    interpolation: str = "bilinear"

    def __bool__(self) -> bool:
        return bool(self.size or self.resize or self.crop)

    def __str__(self) -> str:
        said = [f"resized to {self.size[0]} x {self.size[1]}"] if self.size else []
        said += [f"shorter side resized to {self.resize}"] if self.resize else []
        said += [f"centre crop of {self.crop[0]} x {self.crop[1]}"] if self.crop else []
        return ", ".join([*said, *([self.interpolation] if self.size or self.resize else [])])

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The height and width after resizing, before the crop."""
        if self.size:
            return self.size
        if not self.resize:
            return height, width
        longer = int(self.resize * max(height, width) / min(height, width))
        return (self.resize, longer) if height <= width else (longer, self.resize)

    def result(self, height: int, width: int) -> tuple[int, int]:
        """The height and width of what an image of this size becomes."""
        return self.crop or self.resized(height, width)

    def applied(self, image: Image) -> Image:
        """The image resized and cropped."""
        from PIL.Image import Resampling

        height, width = self.resized(image.height, image.width)
        if (height, width) != (image.height, image.width):
            image = image.resize((width, height), Resampling[self.interpolation.upper()])
        if self.crop and self.crop != (height, width):
            top, left = round((height - self.crop[0]) / 2), round((width - self.crop[1]) / 2)
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        return image


def geometry_of(size: object, resize: object, crop: object, interpolation: object) -> Geometry:
    """The geometry that a user asks for: sides are a number of pixels, or a pair (height, width).

    Raises:
        InputError: if a side is no whole number of at least 1, or `size` comes with one of the others.
    """
    if size is not None and not resize is crop is None:
        raise InputError("size is the exact height and width: it goes without resize and crop")
    if interpolation not in INTERPOLATIONS:
        raise unknown("interpolation", interpolation, INTERPOLATIONS)  # pyright: ignore[reportArgumentType]
    shorter = None if resize is None else _side("resize", resize)
    return Geometry(_sides("size", size), shorter, _sides("crop", crop), str(interpolation))


def _sides(name: str, value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    both = value if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2:
        raise InputError(f"{name} must be a number of pixels or a pair (height, width), got {value!r}")
    return _side(name, both[0]), _side(name, both[1])


def _side(name: str, value: object) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not 1 <= value <= LARGEST_SIDE:
        raise InputError(f"{name} must be a whole number of pixels in 1..{LARGEST_SIDE:,}, got {value!r}")
    return int(value)


def planes(images: Iterable[Image], geometry: Geometry, channels: int) -> np.ndarray:
    """(channels, H, W): images of mode L, F or RGB, one after the other; a single grey one fills all channels."""
    shaped = [np.asarray(geometry.applied(image)) for image in images]
    stacked = np.concatenate([one[None] if one.ndim == 2 else one.transpose(2, 0, 1) for one in shaped])
    if stacked.dtype != np.uint8:
        stacked = stacked.clip(0, 1)  # the bicubic filter overshoots
    return np.broadcast_to(stacked, (channels, *stacked.shape[1:]))


def fitted(images: np.ndarray, geometry: Geometry, channels: int | None) -> np.ndarray:
    """Images (N, C, H, W), uint8 or float32, of another size or number of channels (1 or 3).

    Grey is Pillow's, ITU-R 601: 0.299 red, 0.587 green, 0.114 blue.
    """
    wanted: int = channels or images.shape[1]
    out = np.empty((len(images), wanted, *geometry.result(*images.shape[2:])), images.dtype)
    for row, image in zip(out, images, strict=True):
        row[:] = planes(_as_pillow(image, wanted), geometry, wanted)
    return out


def _as_pillow(image: np.ndarray, channels: int) -> list[Image]:
    from PIL import Image

    if image.dtype == np.uint8:
        whole = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
        return [whole.convert("L" if channels == 1 else "RGB")]
    if channels == 1 and len(image) == 3:
        image = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), image, 1)[None]
    return [Image.fromarray(plane) for plane in image]
