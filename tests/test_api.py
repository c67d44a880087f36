"""Brittle as a Python library: what its functions take for images and labels, what they print, what they export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from brittle import data
from brittle.data import Data, Split, as_split
from brittle.errors import InputError

IMAGES = torch.arange(12 * 3 * 4 * 5).view(12, 3, 4, 5) % 256 / 255
LABELS = torch.arange(12) // 4
SPLIT = Split(IMAGES, LABELS)


def data_of(split: Split) -> Data:
    return Data("mine", split, split, split, ("a", "b", "c"), "0" * 64, "arrays")


class Stream(IterableDataset[Any]):
    def __iter__(self):
        return zip(IMAGES, LABELS, strict=True)


class Pairs(Dataset[Any]):
    def __init__(self, pairs: list[Any]):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Any:
        return self.pairs[index]


# What is taken for images and labels -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        SPLIT,
        data_of(SPLIT),
        (IMAGES, LABELS),
        [IMAGES.double().numpy().astype("f4"), LABELS.numpy()],
        ((IMAGES * 255).round().to(torch.uint8), LABELS.int()),
        ((IMAGES * 255).round().numpy().astype("u1"), LABELS.numpy().astype("u1")),
        (IMAGES.numpy().astype(">f4"), LABELS.numpy().astype(">i2")),
        (IMAGES.clone().requires_grad_(), LABELS.tolist()),
        TensorDataset(IMAGES, LABELS),
        Pairs([(image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]),
        Stream(),
        DataLoader(TensorDataset(IMAGES, LABELS), batch_size=5),
        DataLoader(TensorDataset(IMAGES, LABELS), batch_size=5, shuffle=True),
        DataLoader(Stream(), batch_size=5),
        DataLoader(TensorDataset(IMAGES, LABELS), batch_sampler=[[0, 3, 1], list(range(4, 12)), [2]]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_form_gives_the_same_images_and_labels(value: object):
    found = as_split(value)
    assert (found.images.dtype, found.labels.dtype) == (torch.float32, torch.int64)
    assert not found.images.requires_grad
    torch.testing.assert_close(found.images, IMAGES, atol=1e-7, rtol=0)
    assert torch.equal(found.labels, LABELS)


@pytest.mark.parametrize("wrap", [lambda i, y: (i, y), TensorDataset, lambda i, y: DataLoader(TensorDataset(i, y))])
def test_some_are_drawn_from_all_classes_and_always_the_same(wrap: Callable[..., Any]):
    """The images come class after class, as those of a folder do: the first 30 would be of one class alone."""
    images = torch.arange(100).view(100, 1, 1, 1) / 100
    labels = torch.arange(100) // 50
    found, again = as_split(wrap(images, labels), 30), as_split(wrap(images, labels), 30)
    assert len(found) == 30
    assert len(found.images.unique()) == 30
    assert torch.equal(found.images, again.images)
    assert torch.equal(found.labels, (found.images.flatten() >= 0.5).long())
    assert 5 < found.labels.sum() < 25
    assert len(as_split(wrap(images, labels), 1000)) == 100


def test_only_what_is_drawn_is_read():
    read = []

    class Watched(Pairs):
        def __getitem__(self, index: int) -> Any:
            read.append(index)
            return torch.zeros(1, 2, 2), 0

    assert len(as_split(Watched([None] * 1000), 7)) == 7
    assert len(read) == 7


def test_the_first_of_a_split_and_of_a_stream():
    for value in (SPLIT, data_of(SPLIT), Stream(), DataLoader(Stream(), batch_size=2)):
        assert torch.equal(as_split(value, 3).images, IMAGES[:3])


def test_roundings_are_clamped():
    found = as_split((IMAGES.double() * (1 + 5e-7) - 1e-8, LABELS))
    assert (found.images.min(), found.images.max()) == (0, 1)


DIVIDE = ": divide them by the largest value that a pixel can have, 255 where it has 8 bits"
FORMS = "expected images and labels as a Split, a Data, a pair (images, labels), a torch Dataset or a DataLoader, got "


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (IMAGES, FORMS + "Tensor"),
        (IMAGES.numpy(), FORMS + "ndarray"),
        ("digits", FORMS + "str"),
        (None, FORMS + "NoneType"),
        ((IMAGES,), FORMS + "tuple of length 1"),
        ((IMAGES, LABELS, LABELS), FORMS + "tuple of length 3"),
        ((IMAGES * 255, LABELS), "images must lie in [0, 1], got [0, 255]" + DIVIDE),
        ((IMAGES * 16, LABELS), "images must lie in [0, 1], got [0, 16]" + DIVIDE),
        (
            (IMAGES * 2 - 1, LABELS),
            "images must lie in [0, 1], got [-1, 1]: they look normalised; undo that, and let the model normalise "
            "them itself",
        ),
        ((IMAGES / 0, LABELS), "images must lie in [0, 1], got [nan, nan]"),
        ((IMAGES.round().to(torch.uint8), LABELS), "uint8 images must be in 0..255, got 0 and 1 alone: make them "),
        ((IMAGES.int(), LABELS), "images must be uint8 in 0..255 or floating point in [0, 1], got torch.int32"),
        ((IMAGES[0], LABELS), "images must be (N, C, H, W) with N >= 1, got shape (3, 4, 5)"),
        ((IMAGES[:0], LABELS[:0]), "images must be (N, C, H, W) with N >= 1, got shape (0, 3, 4, 5)"),
        (
            (torch.zeros(12, 8, 8, 3), LABELS),
            "images must be (N, C, H, W), got (12, 8, 8, 3), which looks like (N, H, W, C): permute the axes to "
            "(0, 3, 1, 2)",
        ),
        ((IMAGES, LABELS.float()), "labels must be N integers, (N,), got torch.float32 of shape (12,)"),
        ((IMAGES, np.eye(12, 3)), "labels must be N integers, (N,), got torch.float64 of shape (12, 3)"),
        ((IMAGES, LABELS > 0), "labels must be N integers, (N,), got torch.bool of shape (12,)"),
        ((IMAGES, LABELS[:7]), "12 images but 7 labels"),
        ((IMAGES, LABELS - 1), "labels must be 0..K-1, got -1"),
        ((IMAGES, ["a"] * 12), "labels must be a tensor or an array of numbers, got list"),
        (([[1, 2], [3]], LABELS), "images must be a tensor or an array of numbers: "),
        (TensorDataset(IMAGES), "each item must be a pair of an image and its label, got list of length 1"),
        (Pairs([{"image": IMAGES[0]}]), "each item must be a pair of an image and its label, got dict"),
        (Pairs([(object(), 0)]), "the images cannot be made one tensor: default_collate: batch must contain tensors"),
        (Pairs([(IMAGES[0], 0), (IMAGES[0, :, 1:], 0)]), "the images cannot be made one tensor: "),
        (Pairs([]), "expected at least one image, got an empty data set"),
    ],
)
def test_what_is_no_images_and_labels_is_refused_in_one_line(value: object, message: str):
    with pytest.raises(InputError) as caught:
        as_split(value)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_built_in_data_set_is_its_test_split():
    digits = data.load("digits")
    assert torch.equal(as_split(digits).images, digits.test.images)
