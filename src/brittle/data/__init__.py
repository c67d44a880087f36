"""Images in [0, 1] and their labels: digits, MNIST, CIFAR-10, Yale faces, your own folder or arrays."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from brittle.data import download
from brittle.data.arguments import typed
from brittle.data.download import Published, Remote
from brittle.data.own import (
    LARGEST_IMAGE,
    LAYOUTS,
    ROUNDING,
    Labelled,
    decode,
    opened,
    read_bytes,
    read_folder,
    read_npz,
    way_into_range,
)
from brittle.data.summary import as_html, as_text
from brittle.errors import InputError, first_line, unknown
from brittle.progress import Progress, barred, silent

SEED = 20_170_711  # of every split that the data set does not bring along

_MNIST_SHA256 = {  # of the decompressed content: a .gz may have been compressed again
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_MNIST_LARGEST = 16 + 60_000 * 28 * 28  # bytes, of the training images: after magic, N, H and W
_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_MNIST = Published(
    name="mnist",
    folder="mnist",
    files=tuple(_MNIST_SHA256),
    remotes=tuple(
        Remote(f"{file}.gz", size, md5, _MNIST_MIRRORS, gives=(file,))
        for file, size, md5 in (
            ("train-images-idx3-ubyte", 9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            ("train-labels-idx1-ubyte", 28_881, "d53e105ee54ea40749a09fcbcd1e9432"),
            ("t10k-images-idx3-ubyte", 1_648_877, "9fb629c4189551a2d022fa330f9573f3"),
            ("t10k-labels-idx1-ubyte", 4_542, "ec29112dd5afa0611ce80d1b7f02629c"),
        )
    ),
)

_CIFAR_MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
_CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR_ROW = 1 + 3 * 32 * 32  # a label, then red, green and blue planes
_CIFAR = Published(
    name="cifar10",
    folder="cifar-10-batches-bin",
    files=tuple(_CIFAR_MD5),
    remotes=(
        Remote(
            "cifar-10-binary.tar.gz",
            170_052_171,
            "c32a1d4ab5d03f1284b67883e8d87530",
            ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/"),
            gives=tuple(_CIFAR_MD5),
        ),
    ),
)

_YALE_PEOPLE = tuple(f"subject{person:02d}" for person in range(1, 16))
_YALE_CONDITIONS = (
    *("centerlight", "glasses", "happy", "leftlight", "noglasses", "normal"),
    *("rightlight", "sad", "sleepy", "surprised", "wink"),
)
_YALE = Published(
    name="yale-faces",
    folder="yalefaces",
    files=tuple(f"{person}.{condition}" for person in _YALE_PEOPLE for condition in _YALE_CONDITIONS),
    by_hand="its licence forbids passing it on, so ask Yale for it and place its files there",
)


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Some of a data set's images, in no order: where only some are used, they are the first.

    Attributes:
        images: (N, C, H, W), float32, in [0, 1].
        labels: (N,), int64, in 0..K-1.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """N."""
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        """The same images and labels on `device`."""
        return Split(self.images.to(device), self.labels.to(device))

    def __repr__(self) -> str:
        return f"Split({len(self)} images of {_by(self.images.shape[1:])})"

    def summary(self) -> str:
        """A few lines: how many images, of what size, of which classes."""
        return as_text("Images and labels", self._facts())

    def _repr_html_(self) -> str:
        return as_html("Images and labels", self._facts())

    def _facts(self) -> dict[str, object]:
        counts = [count for count in self.labels.bincount().tolist() if count]
        spread = f", {min(counts)} to {max(counts)} images each" if counts else ""
        return {
            "images": f"{len(self)} of {_by(self.images.shape[1:])}, {self.images.dtype}, {self.images.device}",
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
        channels, height, width = self.train.images.shape[1:]
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
        more = ", ..." if len(self.classes) > 10 else ""
        return {
            **{name: f"{len(split)} images" for name, split in splits.items()},
            "shape": _by(self.image_shape),
            "classes": f"{len(self.classes)}: {', '.join(self.classes[:10])}{more}",
            "source": self.source,
        }


@dataclass(frozen=True)
class FileCheck:
    """What became of checking one file.

    Attributes:
        path: the file.
        ok: whether `load` can use it.
        note: what was found; where it is not ok, what was expected too.
    """

    path: Path
    ok: bool
    note: str


@barred("reading data")
def load(
    name_or_path: str | Path,
    root: Path | None = None,
    *,
    layout: str | None = None,
    split: bool = True,
    progress: Progress | None = None,
) -> Data:
    """Reads a data set: a built-in name, a folder of class folders of images, or an .npz file.

    `digits` comes with scikit-learn; `mnist` and `cifar10` are downloaded when no data root holds them; `yale-faces`
    must be placed by hand. A folder named like one of these is read as `./mnist`.

    A folder holds one folder of images for each class, or such class folders in train/ and test/ and perhaps
    validation/ (or val/). The images are of one size; they become grey if all are grey and else RGB; transparency is
    dropped. An .npz file holds `images`, (N, H, W), (N, C, H, W) or (N, H, W, C), uint8 in 0..255 or floating point
    in [0, 1]; `labels`, (N,), integers that use all of 0..K-1; and perhaps `classes`, K names.

    What is not split yet is split 70 / 15 / 15, or 85 / 15 where only validation images are lacking: each class in
    proportion, the same rows every time, in no order.

    Args:
        name_or_path: one of `names()`, or a path.
        root: searched before BRITTLE_DATA and the user's cache, and where downloads go.
        layout: of an .npz file's images, "NCHW" or "NHWC", where their shape leaves it open.
        split: whether a folder or file of your own that is not split yet is split, as training needs it. With False
            all its images are test images, in no order, as an evaluation needs it; train and validation are empty.
            `Data.source` says what was done.
        progress: told of downloads (bytes) and of reading a folder (images); by default a bar is shown on a terminal
            and in a notebook.

    Raises:
        InputError: if it is unknown, not there, or not as expected; the message names the file.
    """
    progress = progress or silent
    if layout is not None and layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    if not isinstance(name_or_path, str | Path):
        raise InputError(f"a data set is named by a text or a path, got {_described(name_or_path)}")
    if len(str(name_or_path)) > 1000:
        raise InputError(f"{str(name_or_path)[:60]!r}... has {len(str(name_or_path)):,} characters: expected a name")
    name = name_or_path if isinstance(name_or_path, str) else ""  # Path("mnist") is a path
    path = Path(os.path.expanduser(name_or_path))  # of a user who is not there Path.expanduser makes a RuntimeError
    is_array_file = name not in names() and os.path.isfile(path)  # False where the system refuses the name
    if layout is not None and not is_array_file:
        raise InputError(f"layout={layout!r} only goes with an .npz file, got {str(name_or_path)!r}")
    if name == "digits":
        return _digits()
    if name in _KNOWN:
        return _KNOWN[name].build(download.find_or_fetch(_KNOWN[name].published, root, progress))
    if is_array_file:
        return _own(path.stem, read_npz(path, layout), "local .npz file", split)
    if name_or_path != "" and os.path.isdir(path):
        return _own(path.resolve().name, read_folder(path, progress), "local folder of images", split)
    if name_or_path != "" and os.path.exists(path):
        raise InputError(f"{path} is neither a folder nor a regular file: expected class folders or an .npz file")
    if isinstance(name_or_path, Path) or path.suffix or path.parent != Path():
        raise InputError(f"{path} is not there: expected a folder, an .npz file or one of {', '.join(names())}")
    raise unknown("data set or folder", name, names())


def names() -> list[str]:
    """The names that `load` knows."""
    return ["digits", *_KNOWN]


def check(name: str, root: Path | None = None) -> list[FileCheck]:
    """Reads every file that a built-in data set needs, as `load` does; empty for digits, which needs none.

    Raises:
        InputError: if the name is unknown.
    """
    if _named(name) is None:
        return []
    known = _KNOWN[name]
    places = download.roots(root)
    folder = download.find(known.published, places) or places[0] / known.published.folder
    checks = []
    for file in known.published.files:
        path = download.locate(folder, file)
        if path is None:
            checks.append(FileCheck(folder / file, False, "not there"))
            continue
        try:
            checks.append(FileCheck(path, True, known.read(path)[1]))
        except InputError as error:
            checks.append(FileCheck(path, False, str(error).removeprefix(f"{path}: ")))
    return checks


def fetch(name: str, root: Path | None = None, progress: Progress = silent) -> Path:
    """Downloads what is lacking of a built-in data set into `root`, else BRITTLE_DATA, else the user's cache.

    Returns:
        The folder that holds it, every file read and found good.

    Raises:
        InputError: if there is nothing to download, no mirror gives the right files, or one that lay there is bad.
    """
    published = _named(name)
    if published is None:
        raise InputError(f"{name} is built in: there is nothing to download")
    folder = download.fetch(published, root, progress)
    for file in published.files:
        _KNOWN[name].read(_inside(folder, file))
    return folder


def status(name: str, root: Path | None = None) -> str:
    """Where a built-in data set is, or how to get it, in a phrase.

    Raises:
        InputError: if the name is unknown.
    """
    published = _named(name)
    if published is None:
        return "built in"
    places = download.roots(root)
    if found := download.find(published, places):
        return f"found at {found}"
    if published.remotes:
        return f"not here; can be downloaded ({sum(remote.size for remote in published.remotes) / 1e6:.0f} MB)"
    return f"not here; must be placed by hand in {places[0] / published.folder}: {published.by_hand}"


def _named(name: str) -> Published | None:
    if name not in names():
        raise unknown("data set", name, names())
    return None if name == "digits" else _KNOWN[name].published


def _inside(folder: Path, file: str) -> Path:
    return download.locate(folder, file) or folder / file


# What users hold -----------------------------------------------------------------------------------------------


@typed
def as_split(value: object, count: int | None = None) -> Split:
    """Images and labels in any of the forms that PyTorch users hold them in.

    Images are (N, C, H, W). Floating ones must lie in [0, 1]; uint8 ones are in 0..255 and are divided by 255. Labels
    are N integers of any width.

    Args:
        value: a `Split`; a `Data`, whose test split is taken; a pair of images and labels (tensors or numpy arrays); a
            torch `Dataset` that gives (image, label); or a `DataLoader` that gives (images, labels).
        count: how many images are wanted, all of them by default. The first of a `Split` or `Data`, which are in no
            order; of everything else as many are drawn at random, always the same, since a folder of images is often
            sorted by class. Only what is drawn is read. Of a stream (`IterableDataset`) the first are taken.

    Raises:
        InputError: if it is something else, or images or labels are not as above.
    """
    if count is not None and count < 1:
        raise InputError(f"count must be at least 1, got {count}")
    if isinstance(value, Data):
        value = value.test
    if isinstance(value, Split):
        return _checked_split(value.images[:count], value.labels[:count])
    if isinstance(value, Dataset):
        value = DataLoader(value, batch_size=64)
    if isinstance(value, DataLoader):
        return _checked_split(*_loaded(value, count))
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise InputError(f"expected images and labels as {_FORMS}, got {_described(value)}")
    whole = _checked_split(*value)
    rows = _drawn(len(whole), count)
    return whole if len(rows) == len(whole) else Split(whole.images[rows], whole.labels[rows])


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
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise InputError(f"each item must be a pair of an image and its label, got {_described(batch)}")
            images, labels = (_tensor(name, part) for name, part in zip(("images", "labels"), batch, strict=True))
            parts.append((images, labels) if labels.ndim else (images[None], labels[None]))  # one that makes no batches
            if count is not None and sum(len(labels) for _, labels in parts) >= count:
                break
        images, labels = (torch.cat(part)[:count] for part in zip(*parts, strict=True)) if parts else _NONE
    except (TypeError, RuntimeError) as error:  # pictures of Pillow, sizes that differ, a data set without a length
        raise InputError(f"the data set cannot be read into tensors: {first_line(error)}") from error
    return images, labels


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
    if images.dtype == torch.uint8:
        if images.max() == 1:
            raise InputError("uint8 images must be in 0..255, got 0 and 1 alone: make them floating, images.float()")
        images = images.float() / 255
    if not images.is_floating_point():
        raise InputError(f"images must be uint8 in 0..255 or floating point in [0, 1], got {images.dtype}")
    low, high = float(images.min()), float(images.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # written so that NaN fails it
        raise InputError(f"images must lie in [0, 1], got [{low:.7g}, {high:.7g}]{way_into_range(low, high)}")
    if low < 0 or high > 1:
        images = images.clamp(0, 1)
    images = images.float() if images.dtype != torch.float64 else images
    return Split(images, labels.to(images.device, torch.int64))


# The built-in data sets ------------------------------------------------------------------------------------------


def _digits() -> Data:
    """The embedded 8 x 8 digits, enlarged to MNIST's 28 x 28; split 60 / 20 / 20."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    small = pixels.reshape(-1, 1, 8, 8).astype(np.uint8)  # 0..16
    large = F.interpolate(torch.from_numpy(small / np.float32(16)), size=(28, 28), mode="bilinear", align_corners=False)
    classes = tuple("0123456789")
    rows = _split_rows(labels, classes, (0.6, 0.2, 0.2), "digits")
    return Data(
        "digits",
        *(_split(large.numpy().clip(0, 1), labels, part) for part in rows),
        classes=classes,
        digest=_digest("digits, bilinear to 28 x 28", small, labels, *rows),
        source="scikit-learn load_digits",
    )


def _mnist(folder: Path) -> Data:
    """MNIST; the last 10,000 training images validate, as in Song 2017."""
    content = {file: _mnist_file(_inside(folder, file))[0] for file in _MNIST_SHA256}

    def pixels(file: str) -> np.ndarray:
        return np.frombuffer(content[file], np.uint8, offset=16).reshape(-1, 1, 28, 28)  # after magic, N, H and W

    def digits(file: str) -> np.ndarray:
        return np.frombuffer(content[file], np.uint8, offset=8)  # after magic and N

    images, labels = pixels("train-images-idx3-ubyte"), digits("train-labels-idx1-ubyte")
    return Data(
        "mnist",
        _split(images[:50_000], labels[:50_000]),
        _split(images[50_000:], labels[50_000:]),
        _split(pixels("t10k-images-idx3-ubyte"), digits("t10k-labels-idx1-ubyte")),
        classes=tuple("0123456789"),
        digest=_digest("mnist, 50000 / 10000 / 10000", *_MNIST_SHA256.values()),
        source="MNIST, checked against the published files",
    )


def _mnist_file(path: Path) -> tuple[bytes, str]:
    content, expected = read_bytes(path, _MNIST_LARGEST), _MNIST_SHA256[path.name.removesuffix(".gz")]
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        what = f"content has sha256 {found[:12]} ({len(content):,} bytes), expected the published {expected[:12]}"
        raise InputError(f"{path}: {what}; remove it to download it again")
    return content, "as published"


def _cifar10(folder: Path) -> Data:
    """CIFAR-10, the binary version; the last 5,000 training images validate."""
    contents, notes = zip(*(_cifar_file(_inside(folder, file)) for file in _CIFAR_MD5), strict=True)
    rows = [np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_ROW) for content in contents]
    train, test = np.concatenate(rows[:5]), rows[5]

    def split(part: np.ndarray) -> Split:
        return _split(part[:, 1:].reshape(-1, 3, 32, 32), part[:, 0])

    faithful = all(note == "as published" for note in notes)
    return Data(
        "cifar10",
        split(train[:45_000]),
        split(train[45_000:]),
        split(test),
        classes=_CIFAR_CLASSES,
        digest=_digest("cifar10, 45000 / 5000 / 10000", *contents),
        source=f"CIFAR-10, {'checked against' if faithful else 'a local folder that differs from'} the published files",
    )


def _cifar_file(path: Path) -> tuple[bytes, str]:
    size = 10_000 * _CIFAR_ROW
    content = read_bytes(path, size)
    if len(content) != size:
        raise InputError(f"{path}: {len(content):,} bytes, expected {size:,}: 10,000 rows of a label and 3,072 pixels")
    if (highest := max(content[::_CIFAR_ROW])) > 9:
        raise InputError(f"{path}: holds the label {highest}, expected 0..9; it is corrupt or no CIFAR-10 file")
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    expected = _CIFAR_MD5[path.name.removesuffix(".gz")]
    differs = f"well formed, but not the published file: md5 {found[:12]}, published {expected[:12]}"
    return content, "as published" if found == expected else differs


def _yale_faces(folder: Path) -> Data:
    """The Yale faces at 60 x 60, as in Lo and Ding: 41 of the 165 test.

    Of the other 124, one of each person validates: 109 / 15 / 41. Nine pairs of files are the same image (person 4's
    `sad` is a copy of `normal`, say Yale themselves), so a test face may have its twin in the training set.
    """
    paths = [_inside(folder, file) for file in _YALE.files]
    contents, pixels = zip(*(_yale_file(path)[0] for path in paths), strict=True)
    labels = np.repeat(np.arange(15), len(_YALE_CONDITIONS))
    rows = _split_rows(labels, _YALE_PEOPLE, (109 / 165, 15 / 165, 41 / 165), "yale-faces")
    return Data(
        "yale-faces",
        *(_split(np.stack(pixels)[:, None], labels, part) for part in rows),
        classes=_YALE_PEOPLE,
        digest=_digest("yale-faces, bilinear to 60 x 60", *contents, *rows),
        source="Yale face database, local folder, not checked against the published archive",
    )


def _yale_file(path: Path) -> tuple[tuple[bytes, np.ndarray], str]:
    from PIL import Image

    content = read_bytes(path, LARGEST_IMAGE)
    face = opened(path, content)
    if face.size != (320, 243):
        raise InputError(f"{path}: {face.width} x {face.height} pixels, expected 320 x 243")
    decode(path, face)
    small = face.convert("L").resize((60, 60), Image.Resampling.BILINEAR)
    return (content, np.asarray(small)), "readable, 320 x 243"


@dataclass(frozen=True)
class _Known:
    published: Published
    build: Callable[[Path], Data]  # from the folder that holds its files
    # what is in one of its files, and a note on it; an InputError if `build` would refuse it
    read: Callable[[Path], tuple[Any, str]]


_KNOWN = {
    "mnist": _Known(_MNIST, _mnist, _mnist_file),
    "cifar10": _Known(_CIFAR, _cifar10, _cifar_file),
    "yale-faces": _Known(_YALE, _yale_faces, _yale_file),
}


# Your own ------------------------------------------------------------------------------------------------------


def _own(name: str, read: Labelled, source: str, split: bool) -> Data:
    """A user's own images, split where they are not split yet and a split is wanted."""
    rows, said = _own_rows(read, name, split)
    return Data(
        name.encode(errors="replace").decode(),  # a folder's name need not be UTF-8
        *(_split(read.images, read.labels, part) for part in rows),
        classes=read.classes,
        digest=_digest("own", *read.contents, read.labels.astype(np.int64), *read.classes, *rows),
        source=f"{source}: {said}",
    )


def _own_rows(read: Labelled, name: str, split: bool) -> tuple[list[np.ndarray], str]:
    """The rows of train, validation and test, and what was done, in a phrase."""
    random = np.random.RandomState(SEED)
    if "test" not in read.parts:
        total = len(read.labels)
        if not split:
            none = np.arange(0)
            return [none, none, random.permutation(total)], f"all {total} images are test images"
        rows = _split_rows(read.labels, read.classes, (0.70, 0.15, 0.15), name)
        return rows, f"{total} images; split {_counts(rows)} at random by class"
    train, validation, test = (
        random.permutation(np.flatnonzero(read.parts == part)) for part in ("train", "validation", "test")
    )
    if len(validation) == 0:
        kept, held_out = _split_rows(read.labels[train], read.classes, (0.85, 0.15), f"{name}/train")
        rows = [train[kept], train[held_out], test]
        return rows, f"its own train and test; {_counts(rows)} with validation images drawn from train at random"
    rows = [train, validation, test]
    return rows, f"its own train, validation and test; {_counts(rows)}"


def _counts(rows: Sequence[np.ndarray]) -> str:
    return " / ".join(str(len(part)) for part in rows)


# Splits ----------------------------------------------------------------------------------------------------------


def _split(images: np.ndarray, labels: np.ndarray, rows: np.ndarray | slice = slice(None)) -> Split:
    """The images and labels of `rows`; bytes are divided by 255, floats stay."""
    pixels = torch.from_numpy(np.array(images[rows], order="C")).to(torch.float32)  # faster than numpy's astype
    if images.dtype == np.uint8:
        pixels /= 255
    return Split(pixels, torch.from_numpy(labels[rows].astype(np.int64)))


def _split_rows(labels: np.ndarray, classes: Sequence[str], shares: Sequence[float], where: str) -> list[np.ndarray]:
    """Draws rows for each share, each class in proportion; in no order, so that the first rows are of many classes.

    The first share takes what the others leave, and no class is left out of any.
    """
    sizes = np.bincount(labels.astype(np.int64), minlength=len(classes))
    if sizes.min() < len(shares):
        few = int(sizes.argmin())
        raise InputError(
            f"{where}: class {classes[few]!r} is too small to be split: {sizes[few]} of at least {len(shares)} images, "
            f"one for each of {' and '.join(('train', 'validation', 'test')[: len(shares)])}"
        )
    random = np.random.RandomState(SEED)  # not default_rng: only RandomState's stream is frozen for good (NEP 19)
    left, drawn = np.arange(len(labels)), []
    for share in reversed(shares[1:]):
        taken = _draw(labels, left, round(share * len(labels)), random)
        left = np.setdiff1d(left, taken)
        drawn.insert(0, taken)
    return [random.permutation(left), *drawn]


def _draw(labels: np.ndarray, rows: np.ndarray, count: int, random: np.random.RandomState) -> np.ndarray:
    """Draws `count` of `rows`, each class in proportion (by largest remainder) but at least one of each."""
    members = [random.permutation(rows[labels[rows] == label]) for label in np.unique(labels)]
    quotas = np.array([len(own) for own in members]) * count / len(rows)
    counts = np.maximum(quotas.astype(int), 1)
    spare = max(0, count - int(counts.sum()))
    counts[np.argsort(counts - quotas, kind="stable")[:spare]] += 1
    return random.permutation(np.concatenate([own[:n] for own, n in zip(members, counts, strict=True)]))


def _digest(*parts: str | bytes | np.ndarray) -> str:
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
