"""Images and labels in the forms that PyTorch users hold them in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from brittle.data.arguments import typed
from brittle.data.draw import SEED, in_no_order
from brittle.data.npz import ROUNDING, way_into_range
from brittle.data.split import Data, Split
from brittle.errors import InputError, first_line


@typed
def as_split(value: object, count: int | None = None) -> Split:
    """Images and labels in any of the forms that PyTorch users hold them in.

    Images are (N, C, H, W). Floating ones must lie in [0, 1]; uint8 ones are in 0..255, stay bytes in memory, and are
    divided by 255 where they are used. Labels are N integers of any width.

    Args:
        value: a `Split`; a `Data`, whose test split is taken; a pair of images and labels (tensors or numpy arrays); a
            torch `Dataset` that gives (image, label); or a `DataLoader` that gives (images, labels). Items may also
            be dicts with one of the names that Hugging Face's data sets use for each.
        count: how many images are wanted, all of them by default. The first of a `Split` or `Data`, which are in no
            order; of one that is class by class, and of everything else, as many are drawn at random, always the same,
            since a folder of images is often sorted by class. Where the labels are there already, each class is drawn
            in proportion. Only what is drawn is read. Of a stream (`IterableDataset`) the first are taken.

    Raises:
        InputError: if it is something else, or images or labels are not as above.
    """
    if count is not None and count < 1:
        raise InputError(f"count must be at least 1, got {count}")
    if isinstance(value, Data):
        value = value.test
    if isinstance(value, Split) and not value.class_by_class:
        return _checked_split(value.pixels[:count], value.labels[:count])
    if isinstance(value, Split):
        value = (value.pixels, value.labels)
    if isinstance(value, Dataset):
        value = DataLoader(value, batch_size=64)
    if isinstance(value, DataLoader):
        return _checked_split(*_loaded(value, count))
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise InputError(f"expected images and labels as {_FORMS}, got {_described(value)}")
    whole = _checked_split(*value)
    return whole if count is None or count >= len(whole) else whole[in_no_order(whole.labels.numpy(force=True))[:count]]


_FORMS = "a Split, a Data, a pair (images, labels), a torch Dataset or a DataLoader"


def _drawn(size: int, count: int | None) -> list[int]:
    """At most `count` of 0..size-1, drawn with a fixed seed; all in their order where that is all of them."""
    if count is None or count >= size:
        return list(range(size))
    return np.random.RandomState(SEED).permutation(size)[:count].tolist()


def _loaded(loader: DataLoader[Any], count: int | None) -> tuple[Tensor, Tensor]:
    """The images and labels that a loader gives, in the order of its data set whether it shuffles or not."""
    parts: list[tuple[Tensor, Tensor]] = []
    try:
        for batch in _drawn_loader(loader, count):
            batch = _pair(batch)
            images, labels = (_tensor(name, part) for name, part in zip(("images", "labels"), batch, strict=True))
            parts.append((images, labels) if labels.ndim else (images[None], labels[None]))  # one that makes no batches
            if count is not None and sum(len(labels) for _, labels in parts) >= count:
                break
        images, labels = (torch.cat(part)[:count] for part in zip(*parts, strict=True)) if parts else _NONE
    except (TypeError, RuntimeError) as error:  # pictures of Pillow, sizes that differ, a data set without a length
        raise InputError(f"the data set cannot be read into tensors: {first_line(error)}") from error
    return images, labels


def _pair(item: object) -> tuple[object, object] | list[object]:
    """An image and its label, or images and their labels, of an item of a data set."""
    if isinstance(item, Mapping):
        found = [[name for name in names if name in item] for names in (_IMAGE, _LABEL)]
        if all(len(one) == 1 for one in found):
            return item[found[0][0]], item[found[1][0]]
        raise InputError(
            f"a dict must hold an image and a label, such as {_IMAGE[0]!r} and {_LABEL[0]!r}, got {[*item]}"
        )
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise InputError(f"each item must be a pair of an image and its label, got {_described(item)}")
    return item


_IMAGE = ("image", "images", "img", "pixel_values")
_LABEL = ("label", "labels", "fine_label")
_NONE = torch.empty(0, 0, 0, 0), torch.empty(0, dtype=torch.int64)


def _drawn_loader(loader: DataLoader[Any], count: int | None) -> DataLoader[Any]:
    """A loader of the items that are drawn; a stream as it is."""
    if isinstance(loader.dataset, IterableDataset):
        return loader
    batches = loader.batch_sampler or [[index] for index in loader.sampler]
    rows = sorted(index for batch in batches for index in batch)
    return DataLoader(
        loader.dataset,
        batch_size=None if loader.batch_sampler is None else loader.batch_size or 64,
        sampler=[rows[place] for place in _drawn(len(rows), count)],
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
    )


def _described(value: object) -> str:
    return f"{type(value).__name__}" + (f" of length {len(value)}" if isinstance(value, tuple | list) else "")


def _tensor(name: str, value: object) -> Tensor:
    """A tensor that takes no gradient, of a tensor or whatever numpy takes for numbers."""
    if isinstance(value, Tensor):
        return value.detach()
    try:
        array = np.array(value)
    except ValueError as error:
        raise InputError(f"{name} must be a tensor or an array of numbers: {first_line(error)}") from error
    if array.dtype.kind not in "buif":
        raise InputError(f"{name} must be a tensor or an array of numbers, got {type(value).__name__}")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def _checked_split(images: object, labels: object) -> Split:
    """A split of floating images in [0, 1] and int64 labels, on the images' device."""
    images, labels = _tensor("images", images), _tensor("labels", labels)
    if images.ndim != 4 or 0 in images.shape:
        raise InputError(f"images must be (N, C, H, W) with N >= 1, got shape {tuple(images.shape)}")
    if min(images.shape[1:3]) > 4 >= images.shape[3]:
        raise InputError(
            f"images must be (N, C, H, W), got {tuple(images.shape)}, which looks like (N, H, W, C): "
            f"permute the axes to (0, 3, 1, 2)"
        )
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"labels must be N integers, (N,), got {labels.dtype} of shape {tuple(labels.shape)}")
    if len(images) != len(labels):
        raise InputError(f"{len(images)} images but {len(labels)} labels")
    if (lowest := int(labels.min())) < 0:
        raise InputError(f"labels must be 0..K-1, got {lowest}")
    labels = labels.to(images.device, torch.int64)
    if images.dtype == torch.uint8:
        if images.max() == 1:
            raise InputError("uint8 images must be in 0..255, got 0 and 1 alone: make them floating, images.float()")
        return Split(images, labels)
    if not images.is_floating_point():
        raise InputError(f"images must be uint8 in 0..255 or floating point in [0, 1], got {images.dtype}")
    low, high = float(images.min()), float(images.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # written so that NaN fails it
        raise InputError(f"images must lie in [0, 1], got [{low:.7g}, {high:.7g}]{way_into_range(low, high)}")
    if low < 0 or high > 1:
        images = images.clamp(0, 1)
    images = images.float() if images.dtype != torch.float64 else images
    return Split(images, labels)
