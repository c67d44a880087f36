"""The built-in data sets: digits, MNIST, CIFAR-10 and the Yale faces."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from brittle.data import download
from brittle.data.download import Published, Remote
from brittle.data.draw import split_rows
from brittle.data.photos import LARGEST_IMAGE, decode, opened, read_bytes
from brittle.data.split import Data, Split, digest_of
from brittle.errors import InputError, unknown
from brittle.progress import Progress, silent

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


def load(name: str, root: Path | None, progress: Progress) -> Data:
    """A built-in data set, downloaded if no data root has it."""
    if name == "digits":
        return _digits()
    return _KNOWN[name].build(download.find_or_fetch(_KNOWN[name].published, root, progress))


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


def _digits() -> Data:
    """The embedded 8 x 8 digits, enlarged to MNIST's 28 x 28; split 60 / 20 / 20."""
    # The file alone, as `sklearn.datasets.load_digits` reads it: to import scikit-learn takes a second.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(file), np.int64, delimiter=",")
    small, labels = table[:, :-1].reshape(-1, 1, 8, 8).astype(np.uint8), table[:, -1]  # 0..16
    large = F.interpolate(torch.from_numpy(small / np.float32(16)), size=(28, 28), mode="bilinear", align_corners=False)
    classes = tuple("0123456789")
    rows = split_rows(labels, classes, (0.6, 0.2, 0.2), "digits")
    return Data(
        "digits",
        *(_split(large.numpy().clip(0, 1), labels, part) for part in rows),
        classes=classes,
        digest=digest_of("digits, bilinear to 28 x 28", small, labels, *rows),
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
        digest=digest_of("mnist, 50000 / 10000 / 10000", *_MNIST_SHA256.values()),
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
        digest=digest_of("cifar10, 45000 / 5000 / 10000", *contents),
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
    rows = split_rows(labels, _YALE_PEOPLE, (109 / 165, 15 / 165, 41 / 165), "yale-faces")
    return Data(
        "yale-faces",
        *(_split(np.stack(pixels)[:, None], labels, part) for part in rows),
        classes=_YALE_PEOPLE,
        digest=digest_of("yale-faces, bilinear to 60 x 60", *contents, *rows),
        source="Yale face database, local folder, not checked against the published archive",
    )


def _yale_file(path: Path) -> tuple[tuple[bytes, np.ndarray], str]:
    from PIL import Image

    content = read_bytes(path, LARGEST_IMAGE)
    face = opened(path, io.BytesIO(content))
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


def _split(images: np.ndarray, labels: np.ndarray, rows: np.ndarray | slice = slice(None)) -> Split:
    """The images, uint8 or float32, and labels of `rows`."""
    return Split(torch.from_numpy(np.array(images[rows], order="C")), torch.from_numpy(labels[rows].astype(np.int64)))
