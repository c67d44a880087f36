"""A data set in memory: images and labels, in the splits that training and evaluation need."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from brittle.data.summary import as_html, as_text
from brittle.errors import InputError


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Some of a data set's images, in no order: where only some are used, they are the first.

    Bytes stay bytes until they are used: `split[:100]`, `split[rows]` and `split.batches()` make no floats of the
    other images. Images that memory cannot hold lie in a file that the system pages in.

    Attributes:
        pixels: (N, C, H, W) as they are kept: uint8 in 0..255, or floating point in [0, 1].
        labels: (N,), int64, in 0..K-1.
    """

    pixels: Tensor
    labels: Tensor

    @cached_property
    def images(self) -> Tensor:
        """(N, C, H, W), floating point, in [0, 1]: of all images, and kept, which takes four bytes a value."""
        if self.pixels.dtype != torch.uint8:
            return self.pixels
        # by a tensor on the device: there, a division by a Python number multiplies by its rounded reciprocal
        return self.pixels.float().div_(torch.tensor(255.0, device=self.pixels.device))

    @property
    def class_by_class(self) -> bool:
        """Whether the images of each class lie together, as in a folder, so that the first ones are of few classes."""
        runs = 1 + int((self.labels[1:] != self.labels[:-1]).sum())
        return 1 < runs == len(self.labels.unique()) < len(self)

    def __len__(self) -> int:
        """N."""
        return len(self.labels)

    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray | Tensor) -> Split:
        """The images and labels of a slice, or of a list, array or tensor of rows."""
        if isinstance(rows, int):  # Python would take a class that counts its items for a list of them
            raise InputError(f"a split gives a slice or a list of rows, [{rows}] or [{rows}:{rows + 1}], got {rows}")
        return Split(self.pixels[rows], self.labels[rows])

    def batches(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """The images, floating point in [0, 1], and labels of `size` rows at a time."""
        for start in range(0, len(self), size):
            batch = self[start : start + size]
            yield batch.images, batch.labels

    def to(self, device: torch.device | str) -> Split:
        """The same images and labels on `device`."""
        return Split(self.pixels.to(device), self.labels.to(device))

    def __repr__(self) -> str:
        return f"Split({len(self)} images of {_by(self.pixels.shape[1:])})"

    def summary(self) -> str:
        """A few lines: how many images, of what size, of which classes."""
        return as_text("Images and labels", self._facts())

    def _repr_html_(self) -> str:
        return as_html("Images and labels", self._facts())

    def _facts(self) -> dict[str, object]:
        counts = [count for count in self.labels.bincount().tolist() if count]
        spread = f", {min(counts)} to {max(counts)} images each" if counts else ""
        return {
            "images": f"{len(self)} of {_by(self.pixels.shape[1:])}, {self.pixels.dtype}, {self.pixels.device}",
            "classes": f"{len(counts)}{spread}",
        }


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A data set, read once.

    Attributes:
        name: what it is called in tables.
        train: what models are fitted to.
        validation: what is looked at while fitting.
        test: what is attacked and measured.
        classes: the K names, in the order of the labels.
        digest: hexadecimal sha256 of what was read and how it was split; the same on every machine.
        source: a phrase saying where it came from and what was checked.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    digest: str
    source: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.test.pixels.shape[1:]
        return channels, height, width

    def __repr__(self) -> str:
        parts = " / ".join(str(len(split)) for split in (self.train, self.validation, self.test))
        return f"Data({self.name!r}: {parts} images of {_by(self.image_shape)}, {len(self.classes)} classes)"

    def summary(self) -> str:
        """A few lines: how many images each split has, their size, the classes, where they came from."""
        return as_text(self.name, self._facts())

    def _repr_html_(self) -> str:
        return as_html(self.name, self._facts())

    def _facts(self) -> dict[str, object]:
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        present = torch.cat([self.train.labels, self.validation.labels, self.test.labels]).unique().tolist()
        named = [self.classes[label] for label in present]
        outputs = f" of {len(self.classes)}" if len(present) < len(self.classes) else ""
        more = ", ..." if len(named) > 10 else ""
        return {
            **{name: f"{len(split)} images" for name, split in splits.items()},
            "shape": _by(self.image_shape),
            "classes": f"{len(named)}{outputs}: {', '.join(named[:10])}{more}",
            "source": self.source,
        }


def digest_of(*parts: str | bytes | np.ndarray) -> str:
    """The sha256 of all parts and their bounds; arrays count by shape and value, whatever the machine's byte order."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            integer = part.dtype.kind in "iu" and part.dtype != np.uint8
            plain = np.ascontiguousarray(part, "<i8" if integer else part.dtype.newbyteorder("<"))
            sha.update(f"array {plain.shape} {plain.dtype.str} ".encode())
            sha.update(plain.data)
        else:
            content = part.encode() if isinstance(part, str) else part
            sha.update(f"bytes {len(content)} ".encode())
            sha.update(content)
    return sha.hexdigest()
