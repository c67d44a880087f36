"""The built-in data sets against what is published of them, and what is said of files that are damaged."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from brittle import data
from brittle.data import Data, Split, builtin
from brittle.errors import InputError

MNIST_TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
MNIST_TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
DIGITS_DIGEST = "c4af02177a73b719270e65c0eef0b9d1eb5ce24265cc0e80e6015f1ccb90e5a8"

pytestmark = pytest.mark.usefixtures("empty_roots")


@pytest.fixture(scope="module")
def digits() -> Data:
    return data.load("digits")


@pytest.fixture(scope="module")
def mnist(data_root: Path) -> Data:
    return data.load("mnist", data_root)


@pytest.fixture(scope="module")
def faces(data_root: Path) -> Data:
    return data.load("yale-faces", data_root)


def counts(split: Split) -> list[int]:
    return split.labels.bincount().tolist()


def rows_of(*splits: Split) -> np.ndarray:
    return np.concatenate([split.images.flatten(1).numpy() for split in splits])


def is_in_unit_range(split: Split) -> bool:
    return bool(split.images.min() >= 0 and split.images.max() <= 1) and split.images.dtype == torch.float32


# digits ----------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_each_in_one_split(digits: Data):
    """Bilinear enlargement keeps each image's mean, so means identify the source images with their labels."""
    pixels, labels = load_digits(return_X_y=True)
    splits = (digits.train, digits.validation, digits.test)
    assert [len(split) for split in splits] == [1079, 359, 359]
    assert digits.image_shape == (1, 28, 28)
    assert digits.classes == tuple("0123456789")
    assert all(is_in_unit_range(split) for split in splits)
    ours = sorted(zip(np.concatenate([s.labels for s in splits]), rows_of(*splits).mean(1), strict=True))
    theirs = sorted(zip(labels, (pixels / 16).mean(1), strict=True))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_digits_enlarge_bilinearly(digits: Data):
    """Pillow's bilinear enlargement as an independent one: the same but for borders and Pillow's rounding."""
    pixels, _ = load_digits(return_X_y=True)
    large = [
        np.asarray(Image.fromarray((image / 16).astype(np.float32)).resize((28, 28), Image.Resampling.BILINEAR)).ravel()
        for image in pixels.reshape(-1, 8, 8)
    ]
    ours = rows_of(digits.train, digits.validation, digits.test)
    np.testing.assert_allclose(ours[np.lexsort(ours.T)].sum(0), np.sum(large, 0), atol=0.05)


def test_digits_are_split_by_class(digits: Data):
    whole = np.bincount(load_digits(return_X_y=True)[1])
    for split, share in ((digits.train, 0.6), (digits.validation, 0.2), (digits.test, 0.2)):
        assert np.abs(np.array(counts(split)) - share * whole).max() < 2


def test_digits_come_in_no_order(digits: Data):
    for split in (digits.train, digits.validation, digits.test):
        assert len(split.labels[:100].unique()) == 10


def test_digits_never_change(digits: Data):
    """The digest names the split too: cells stored under it must mean the same images everywhere, for ever."""
    assert digits.digest == DIGITS_DIGEST
    assert digits.source == "scikit-learn load_digits"


def test_split_moves_to_a_device(digits: Data):
    moved = digits.test.to("meta")
    assert (moved.images.device.type, moved.labels.device.type) == ("meta", "meta")
    assert len(moved) == len(digits.test)


# MNIST -----------------------------------------------------------------------------------------------------------


def read_idx(path: Path) -> np.ndarray:
    """An independent reader of LeCun's format: 0, 0, type, dimensions; then each size; then values."""
    raw = gzip.decompress(path.read_bytes())
    zeros, kind, dimensions = struct.unpack(">HBB", raw[:4])
    assert (zeros, kind) == (0, 8)
    sizes = struct.unpack(f">{dimensions}I", raw[4 : 4 + 4 * dimensions])
    return np.array(list(raw[4 + 4 * dimensions :]), np.uint8).reshape(sizes)


def test_mnist_has_the_published_counts(mnist: Data):
    assert counts(mnist.test) == MNIST_TEST_COUNTS
    assert [a + b for a, b in zip(counts(mnist.train), counts(mnist.validation), strict=True)] == MNIST_TRAIN_COUNTS
    assert [len(split) for split in (mnist.train, mnist.validation, mnist.test)] == [50_000, 10_000, 10_000]
    assert mnist.image_shape == (1, 28, 28)
    assert all(is_in_unit_range(split) for split in (mnist.train, mnist.validation, mnist.test))
    assert mnist.source == "MNIST, checked against the published files"


def test_mnist_is_read_as_an_independent_reader_does(mnist: Data, data_root: Path):
    images = read_idx(data_root / "mnist" / "t10k-images-idx3-ubyte.gz")
    np.testing.assert_array_equal((mnist.test.images[:, 0] * 255).numpy(), images.astype(np.float32))
    labels = read_idx(data_root / "mnist" / "train-labels-idx1-ubyte.gz")
    np.testing.assert_array_equal(mnist.train.labels, labels[:50_000])
    np.testing.assert_array_equal(mnist.validation.labels, labels[50_000:])


def test_mnist_may_lie_in_the_root_itself_and_uncompressed(mnist: Data, data_root: Path, tmp_path: Path):
    for file in (data_root / "mnist").glob("*.gz"):
        (tmp_path / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    again = data.load("mnist", tmp_path)
    assert again.digest == mnist.digest
    assert torch.equal(again.validation.images, mnist.validation.images)


@pytest.fixture
def mnist_copy(data_root: Path, tmp_path: Path) -> Path:
    (tmp_path / "mnist").mkdir()
    for file in (data_root / "mnist").glob("*.gz"):
        shutil.copy(file, tmp_path / "mnist")
    for file in (tmp_path / "mnist").iterdir():
        file.chmod(0o644)
    return tmp_path


def test_damaged_mnist_is_refused(mnist_copy: Path):
    file = mnist_copy / "mnist" / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[100] ^= 1
    file.write_bytes(gzip.compress(content))
    with pytest.raises(
        InputError, match=rf"^{file}: content has sha256 \w{{12}} \(10,008 bytes\), expected the published ff7bcfd416de"
    ):
        data.load("mnist", mnist_copy)
    checks = {check.path.name: check for check in data.check("mnist", mnist_copy)}
    assert [name for name, check in checks.items() if not check.ok] == [file.name]
    assert checks[file.name].note.startswith("content has sha256")
    assert checks["t10k-images-idx3-ubyte.gz"].note == "as published"


def test_truncated_mnist_is_refused(mnist_copy: Path):
    file = mnist_copy / "mnist" / "train-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(InputError, match=rf"^{file}: cannot be decompressed, expected a whole \.gz file: Compressed"):
        data.load("mnist", mnist_copy)
    with pytest.raises(InputError, match="cannot be decompressed"):  # it lies there, so it is not downloaded again
        data.fetch("mnist", mnist_copy)


def test_mnist_without_one_file_is_not_here(
    mnist_copy: Path, monkeypatch: pytest.MonkeyPatch, empty_roots: Path, tmp_path: Path
):
    monkeypatch.setenv("BRITTLE_OFFLINE", "1")
    monkeypatch.setenv("BRITTLE_DATA", str(tmp_path / "named"))
    (mnist_copy / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError) as caught:
        data.load("mnist", mnist_copy)
    assert str(caught.value) == (
        f"mnist is not here: looked in {mnist_copy}, {tmp_path / 'named'}, {empty_roots} for "
        f"mnist/train-images-idx3-ubyte and 3 more files; {mnist_copy / 'mnist'} lacks t10k-labels-idx1-ubyte; "
        f"BRITTLE_OFFLINE forbids downloading it"
    )
    checks = data.check("mnist", mnist_copy)
    assert [(check.path.name, check.note) for check in checks if not check.ok] == [
        ("t10k-labels-idx1-ubyte", "not there")
    ]


def test_roots_are_searched_in_turn(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, empty_roots: Path, tmp_path: Path
):
    assert data.status("mnist") == "not here; can be downloaded (12 MB)"
    empty_roots.parent.mkdir(parents=True)
    empty_roots.symlink_to(data_root)
    assert data.status("mnist", tmp_path) == f"found at {empty_roots / 'mnist'}"
    monkeypatch.setenv("BRITTLE_DATA", str(data_root))
    assert data.status("mnist", tmp_path) == f"found at {data_root / 'mnist'}"
    (tmp_path / "own").symlink_to(data_root)
    assert data.status("mnist", tmp_path / "own") == f"found at {tmp_path / 'own' / 'mnist'}"


# CIFAR-10 --------------------------------------------------------------------------------------------------------


def test_cifar10_is_read_plane_by_plane(data_root: Path):
    cifar = data.load("cifar10", data_root)
    assert [len(split) for split in (cifar.train, cifar.validation, cifar.test)] == [45_000, 5_000, 10_000]
    assert cifar.image_shape == (3, 32, 32)
    assert is_in_unit_range(cifar.test)
    assert counts(cifar.test) == [1000] * 10
    assert [a + b for a, b in zip(counts(cifar.train), counts(cifar.validation), strict=True)] == [5000] * 10
    folder = data_root / "cifar-10-batches-bin"
    for split, row, file, place in (
        (cifar.train, 0, "data_batch_1.bin", 0),
        (cifar.train, 44_999, "data_batch_5.bin", 4_999),
        (cifar.validation, 7, "data_batch_5.bin", 5_007),
        (cifar.test, 9_999, "test_batch.bin", 9_999),
    ):
        raw = (folder / file).read_bytes()[place * 3073 :][:3073]
        assert split.labels[row] == raw[0]
        channel, height, width = 2, 5, 30
        assert split.images[row, channel, height, width] * 255 == raw[1 + channel * 1024 + height * 32 + width]


def cifar_of(folder: Path, labels: int = 9) -> Path:
    """The six files with random content, in a data root."""
    rng = np.random.default_rng(0)
    inside = folder / "cifar-10-batches-bin"
    inside.mkdir()
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        rows = rng.integers(0, 256, (10_000, 3073), np.uint8)
        rows[:, 0] = rng.integers(0, labels + 1, 10_000)
        rows.tofile(inside / name)
    return inside


def test_cifar10_is_checked_against_the_published_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the checksums of random files in place of the published ones, those are as published."""
    folder = cifar_of(tmp_path)
    assert data.load("cifar10", tmp_path).source == "CIFAR-10, a local folder that differs from the published files"
    assert {check.note[:40] for check in data.check("cifar10", tmp_path)} == {
        "well formed, but not the published file:"
    }
    monkeypatch.setattr(
        builtin, "_CIFAR_MD5", {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}
    )
    assert data.load("cifar10", tmp_path).source == "CIFAR-10, checked against the published files"
    assert {check.note for check in data.check("cifar10", tmp_path)} == {"as published"}


def test_damaged_cifar10_is_refused(tmp_path: Path):
    file = cifar_of(tmp_path) / "data_batch_3.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=rf"^{file}: 30,729,999 bytes, expected 30,730,000: 10,000 rows"):
        data.load("cifar10", tmp_path)
    file.write_bytes(whole[: 3073 * 5] + b"\x0a" + whole[3073 * 5 + 1 :])
    with pytest.raises(InputError, match=rf"^{file}: holds the label 10, expected 0\.\.9"):
        data.load("cifar10", tmp_path)


# Yale faces ------------------------------------------------------------------------------------------------------


def test_yale_faces_are_split_as_lo_and_ding_do(faces: Data):
    assert [len(split) for split in (faces.train, faces.validation, faces.test)] == [109, 15, 41]
    assert faces.image_shape == (1, 60, 60)
    assert counts(faces.validation) == [1] * 15
    assert set(counts(faces.test)) == {2, 3}
    whole = [sum(each) for each in zip(*map(counts, (faces.train, faces.validation, faces.test)), strict=True)]
    assert whole == [11] * 15
    assert all(is_in_unit_range(split) for split in (faces.train, faces.validation, faces.test))
    assert faces.classes[3] == "subject04"


def test_yale_faces_are_each_in_one_split(faces: Data, data_root: Path):
    """Every file's face, reduced by Pillow here too, is in the splits as often as in the folder, under its label."""
    expected = []
    for file in (data_root / "yalefaces").glob("subject*"):
        with Image.open(file) as face:
            grey = face.convert("L").resize((60, 60), Image.Resampling.BILINEAR)
        expected.append((int(file.stem[-2:]) - 1, np.asarray(grey).tobytes()))
    splits = (faces.train, faces.validation, faces.test)
    found = [
        (int(label), np.rint(image.numpy() * 255).astype(np.uint8).tobytes())
        for split in splits
        for label, image in zip(split.labels, split.images, strict=True)
    ]
    assert sorted(found) == sorted(expected)


def test_yale_faces_must_be_placed_by_hand(tmp_path: Path):
    with pytest.raises(InputError) as caught:
        data.load("yale-faces", tmp_path)
    assert "yalefaces/subject01.centerlight and 164 more files; its licence forbids" in str(caught.value)
    with pytest.raises(InputError, match="licence"):
        data.fetch("yale-faces", tmp_path)
    assert data.status("yale-faces", tmp_path).startswith(
        f"not here; must be placed by hand in {tmp_path / 'yalefaces'}: its licence"
    )


def test_damaged_yale_faces_are_refused(data_root: Path, tmp_path: Path):
    folder = tmp_path / "yalefaces"
    shutil.copytree(data_root / "yalefaces", folder)
    face = folder / "subject07.sad"
    whole = face.read_bytes()
    face.write_bytes(whole[:2000])
    with pytest.raises(InputError, match=rf"^{face}: not a readable image"):
        data.load("yale-faces", tmp_path)
    Image.new("L", (32, 24)).save(face, format="GIF")
    with pytest.raises(InputError, match=rf"^{face}: 32 x 24 pixels, expected 320 x 243"):
        data.load("yale-faces", tmp_path)
    assert [check.path for check in data.check("yale-faces", tmp_path) if not check.ok] == [face]


# Names -----------------------------------------------------------------------------------------------------------


def test_names():
    assert data.names() == ["digits", "mnist", "cifar10", "yale-faces"]
    assert data.status("digits") == "built in"
    assert data.check("digits") == []
    with pytest.raises(InputError, match="digits is built in: there is nothing to download"):
        data.fetch("digits")


def test_unknown_names_are_told_the_nearest():
    message = "unknown data set or folder 'minst': did you mean 'mnist'? (known: cifar10, digits, mnist, yale-faces)"
    with pytest.raises(InputError) as caught:
        data.load("minst")
    assert str(caught.value) == message
    for ask in (data.check, data.fetch, data.status):
        with pytest.raises(InputError, match="unknown data set 'minst': did you mean 'mnist'"):
            ask("minst")
    with pytest.raises(
        InputError, match=r"unknown data set or folder '' \(known: cifar10, "
    ):  # no colon before nothing
        data.load("")


@pytest.mark.parametrize("path", ["faces/mine", "mine.npz", Path("mine"), Path("mnist")])
def test_paths_that_are_not_there(path: str | Path):
    with pytest.raises(InputError, match=rf"^{path} is not there: expected a folder, an \.npz file or one of digits, "):
        data.load(path)


def test_layout_is_for_arrays_only():
    with pytest.raises(InputError, match=r"layout='NCHW' only goes with an \.npz file, got 'digits'"):
        data.load("digits", layout="NCHW")
    with pytest.raises(InputError, match=r"unknown layout 'NHCW': did you mean .*'NHWC'"):
        data.load("digits", layout="NHCW")


def test_fetch_reads_what_it_got(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file of the right name and the wrong content is not passed over because it is there."""
    mnist = builtin._KNOWN["mnist"]
    alone = replace(mnist, published=replace(mnist.published, files=("t10k-labels-idx1-ubyte",)))
    monkeypatch.setitem(builtin._KNOWN, "mnist", alone)
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte: content has sha256 \w+ \(7 bytes\)"):
        data.fetch("mnist", tmp_path)


@pytest.mark.parametrize("name", ["x" * 5000, "y/" + "x" * 5000, Path("x" * 5000), "x" * 300, "~nobody-here/x", "a\0b"])
def test_names_that_the_system_refuses(name: str | Path):
    with pytest.raises(InputError) as caught:
        data.load(name)
    assert len(str(caught.value)) < 600


def test_a_root_that_the_system_refuses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BRITTLE_OFFLINE", "1")
    with pytest.raises(InputError, match="mnist is not here"):
        data.load("mnist", Path("x" * 5000))
    assert data.status("mnist", Path("~nobody-here")).startswith("not here")


@pytest.mark.parametrize("name", [None, 3, ["digits"]])
def test_names_are_texts(name: object):
    with pytest.raises(InputError, match="a data set is named by a text or a path, got "):
        data.load(name)  # pyright: ignore[reportArgumentType]


def test_a_device_is_no_data_set():
    with pytest.raises(InputError, match="/dev/zero is neither a folder nor a regular file"):
        data.load("/dev/zero")


def test_a_file_that_expands_without_end_is_not_expanded(mnist_copy: Path):
    """60 MB of zeros in place of labels; the largest file of the data set has 47 MB."""
    file = mnist_copy / "mnist" / "t10k-labels-idx1-ubyte.gz"
    file.write_bytes(gzip.compress(bytes(60_000_000), 1))
    with pytest.raises(InputError, match=f"^{file}: holds more than 47,040,016 bytes, expected at most so many$"):
        data.load("mnist", mnist_copy)
    assert not all(check.ok for check in data.check("mnist", mnist_copy))
