"""A user's own images: folders and arrays come back as they were put in, and bad ones are named."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from brittle import data
from brittle.data.npz import read_npz
from brittle.data.photos import read_bytes
from brittle.errors import InputError

# Folders ---------------------------------------------------------------------------------------------------------


def picture(value: int, size: tuple[int, int] = (6, 4), mode: str = "L") -> Image.Image:
    return Image.new(mode, size, value if mode in ("1", "L", "P") else (value, value // 2, 0))


def class_folder(folder: Path, count: int, first: int = 0, mode: str = "L", suffix: str = ".png") -> None:
    folder.mkdir(parents=True)
    for value in range(first, first + count):
        picture(value, mode=mode).save(folder / f"{value:03d}{suffix}")


def values(split: data.Split) -> list[tuple[int, int]]:
    """(label, first pixel in 0..255) of each row: what identifies a picture here."""
    return [
        (int(label), round(255 * float(image[0, 0, 0])))
        for label, image in zip(split.labels, split.images, strict=True)
    ]


def test_folder_is_split_by_class(tmp_path: Path):
    class_folder(tmp_path / "own" / "zebra", 40, first=100)
    class_folder(tmp_path / "own" / "ant", 20)
    (tmp_path / "own" / "zebra" / "notes.txt").write_text("not an image")
    (tmp_path / "own" / ".hidden").mkdir()
    seen: list[tuple[int, int, str]] = []
    read = data.load(tmp_path / "own", progress=lambda done, total, note="": seen.append((done, total, note)))
    assert (read.name, read.classes, read.image_shape) == ("own", ("ant", "zebra"), (1, 4, 6))
    said = "60 images of 2 classes, 6 x 4 pixels; split 42 / 9 / 9 at random by class; left out: 1 .txt"
    assert read.source == f"local folder of images: {said}"
    assert [split.labels.bincount().tolist() for split in (read.train, read.validation, read.test)] == [
        [14, 28],
        [3, 6],
        [3, 6],
    ]
    rows = values(read.train) + values(read.validation) + values(read.test)
    assert sorted(rows) == [(0, value) for value in range(20)] + [(1, value) for value in range(100, 140)]
    assert seen[-1] == (60, 60, "images")


def test_folder_with_its_own_splits(tmp_path: Path):
    for part, first in (("train", 0), ("val", 50), ("test", 100)):
        class_folder(tmp_path / part / "a", 3, first)
        class_folder(tmp_path / part / "b", 2, first + 10)
    read = data.load(tmp_path)
    assert read.classes == ("a", "b")
    for split, first in ((read.train, 0), (read.validation, 50), (read.test, 100)):
        assert sorted(values(split)) == [(0, first), (0, first + 1), (0, first + 2), (1, first + 10), (1, first + 11)]


def test_folder_without_validation_holds_some_of_train_out(tmp_path: Path):
    for part, first in (("train", 0), ("test", 100)):
        class_folder(tmp_path / part / "a", 20, first)
        class_folder(tmp_path / part / "b", 20, first + 50)
    read = data.load(tmp_path)
    assert read.validation.labels.bincount().tolist() == [3, 3]
    assert sorted(values(read.test)) == [*((0, 100 + i) for i in range(20)), *((1, 150 + i) for i in range(20))]
    assert sorted(values(read.train) + values(read.validation)) == [
        *((0, i) for i in range(20)),
        *((1, 50 + i) for i in range(20)),
    ]


def test_folder_digest_follows_pictures_and_classes(tmp_path: Path):
    digests = set()
    for name, first, classes in (("a", 0, "xy"), ("b", 0, "xy"), ("c", 1, "xy"), ("d", 0, "xz")):
        for label, folder in enumerate(classes):
            class_folder(tmp_path / name / folder, 5, first + 50 * label)
        digests.add(data.load(tmp_path / name).digest)
    assert len(digests) == 3  # a and b hold the same


def test_folder_digest_follows_labels(tmp_path: Path):
    """The same files in the same order, but the last of class a moved to class b."""
    for part in ("train", "validation", "test"):
        class_folder(tmp_path / part / "a", 3)
        class_folder(tmp_path / part / "b", 2, first=10)
    before = data.load(tmp_path)
    (tmp_path / "test" / "a" / "002.png").rename(tmp_path / "test" / "b" / "002.png")
    after = data.load(tmp_path)
    assert torch.equal(before.test.images, after.test.images)
    assert before.digest != after.digest


@pytest.mark.parametrize(
    ("mode", "suffix", "channels"),
    [
        ("1", ".png", 1),
        ("L", ".jpg", 1),
        ("L", ".gif", 1),
        ("L", ".BMP", 1),
        ("RGB", ".png", 3),
        ("RGB", ".webp", 3),
        ("RGBA", ".png", 3),
        ("P", ".gif", 3),
    ],
)
def test_grey_and_coloured_images(tmp_path: Path, mode: str, suffix: str, channels: int):
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(3):
            image = Image.new("RGBA", (5, 5), (200, 100, 0, 128)) if mode == "RGBA" else picture(200, (5, 5), mode)
            if mode == "P":
                image = Image.new("RGB", (5, 5), (200, 100, 0)).quantize(4)
            image.save(tmp_path / name / f"{index}{suffix}")
    read = data.load(tmp_path)
    assert read.image_shape == (channels, 5, 5)
    if channels == 3:
        expected = torch.tensor([200, 100, 0]) / 255
        assert (read.train.images - expected.view(3, 1, 1)).abs().max() < 0.02  # webp rounds
    else:
        assert read.train.images.min() == read.train.images.max()


def test_one_coloured_image_makes_all_coloured(tmp_path: Path):
    class_folder(tmp_path / "a", 4, first=200)
    class_folder(tmp_path / "b", 4, first=200, mode="RGB")
    read = data.load(tmp_path)
    assert read.image_shape == (3, 4, 6)
    grey = read.train.images[read.train.labels == 0]
    assert torch.equal(grey, grey[:, :1].expand_as(grey))


def test_transparent_palette(tmp_path: Path):
    """Pillow warns when such an image is converted at once; warnings are errors here."""
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(3):
            image = Image.new("RGB", (5, 5), (200, 200, 200)).quantize(4)
            image.save(tmp_path / name / f"{index}.png", transparency=b"\x80\xff\xff\xff")
    assert data.load(tmp_path).image_shape == (1, 5, 5)


def refuses(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        data.load(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_images_of_mixed_sizes(tmp_path: Path):
    class_folder(tmp_path / "a", 3)
    class_folder(tmp_path / "b", 3)
    picture(0, (7, 4)).save(tmp_path / "b" / "001.png")
    first, other = tmp_path / "a" / "000.png", tmp_path / "b" / "001.png"
    refuses(tmp_path, f"mixed sizes: {first} is 6 x 4 and {other} is 7 x 4 pixels; resize")


@pytest.mark.parametrize(("kept", "words"), [(0, "not a readable image (0 bytes)"), (60, "not a readable image")])
def test_broken_image(tmp_path: Path, kept: int, words: str):
    class_folder(tmp_path / "a", 3)
    class_folder(tmp_path / "b", 3)
    broken = tmp_path / "b" / "002.png"
    noise = np.random.default_rng(0).integers(0, 256, (4, 6), np.uint8)
    Image.fromarray(noise).save(broken)
    broken.write_bytes(broken.read_bytes()[:kept])
    refuses(tmp_path, f"{broken}: {words}")


def test_image_that_cannot_be_read(tmp_path: Path):
    class_folder(tmp_path / "a", 3)
    class_folder(tmp_path / "b", 3)
    (tmp_path / "b" / "folder.png").mkdir()
    refuses(tmp_path, f"{tmp_path / 'b' / 'folder.png'}: cannot be read: ")


def test_images_of_more_than_8_bits(tmp_path: Path):
    class_folder(tmp_path / "a", 3)
    class_folder(tmp_path / "b", 3)
    Image.fromarray(np.full((4, 6), 40_000, np.uint16)).save(tmp_path / "b" / "000.png")
    read = data.load(tmp_path, split="all")
    assert (read.test.pixels.dtype, read.image_shape) == (torch.float32, (1, 4, 6))
    assert sorted(read.test.images[:, 0, 0, 0].tolist()) == pytest.approx(
        [0, 1 / 255, 1 / 255, 2 / 255, 2 / 255, 40_000 / 65_535]
    )
    assert "1 of 16 bits, divided by 65535" in read.source
    odd = tmp_path / "b" / "001.tif"
    Image.new("F", (6, 4), 0.5).save(odd)
    refuses(tmp_path, f"{odd}: pixels are of Pillow's type F, expected 8 or 16 bits a channel")


def test_folders_that_are_not_class_folders(tmp_path: Path):
    refuses(tmp_path, f"{tmp_path}: holds no class folders; expected at least 2")
    class_folder(tmp_path / "a", 3)
    refuses(tmp_path, f"{tmp_path}: holds only one class folder, a/; expected at least 2")
    (tmp_path / "b").mkdir()
    refuses(tmp_path, f"{tmp_path / 'b'}: holds no images, expected files ending in .bmp, .gif, ")
    class_folder(tmp_path / "c", 2)
    (tmp_path / "b").rmdir()
    refuses(
        tmp_path,
        "class 'c' is too small to be split: 2 of at least 3 images, one for each of train and validation and test",
    )


def test_parts_that_do_not_agree(tmp_path: Path):
    class_folder(tmp_path / "train" / "a", 3)
    class_folder(tmp_path / "train" / "b", 3)
    class_folder(tmp_path / "test" / "a", 3)
    class_folder(tmp_path / "test" / "c", 3)
    refuses(tmp_path, f"{tmp_path / 'test'}: has the class folders c, which train/ lacks")
    class_folder(tmp_path / "train" / "c", 1)
    refuses(
        tmp_path,
        "train: class 'c' is too small to be split: 1 of at least 2 images, one for each of train and validation",
    )
    class_folder(tmp_path / "validation" / "a", 1)
    class_folder(tmp_path / "val" / "a", 1)
    refuses(tmp_path, f"{tmp_path}: holds both val/ and validation/")


def test_an_unsplit_folder_may_be_all_test_images(tmp_path: Path):
    class_folder(tmp_path / "ant", 30)
    class_folder(tmp_path / "zebra", 30, first=100)
    read, split = data.load(tmp_path, split="all"), data.load(tmp_path)
    assert [len(part) for part in (read.train, read.validation, read.test)] == [0, 0, 60]
    assert (read.image_shape, read.classes) == ((1, 4, 6), ("ant", "zebra"))
    assert read.source == "local folder of images: 60 images of 2 classes, 6 x 4 pixels; all are test images"
    assert sorted(values(read.test)) == sorted(values(split.train) + values(split.validation) + values(split.test))
    assert all(int(read.test.labels[:n].sum()) in (n // 2, (n + 1) // 2) for n in range(60))  # in proportion
    assert torch.equal(read.test.images, data.load(tmp_path, split="evaluation").test.images)
    assert read.digest != split.digest


def test_an_evaluation_needs_no_class_large_enough_to_be_split(tmp_path: Path):
    class_folder(tmp_path / "a", 1)
    class_folder(tmp_path / "b", 2)
    assert len(data.load(tmp_path, split="evaluation").test) == 3


def test_splits_of_ones_own_stay_and_are_said(tmp_path: Path):
    for part, first in (("train", 0), ("val", 50), ("test", 100)):
        class_folder(tmp_path / part / "a", 3, first)
        class_folder(tmp_path / part / "b", 2, first + 10)
    whole = "local folder of images: 15 images of 2 classes, 6 x 4 pixels"
    assert data.load(tmp_path).source == f"{whole}; its own train, validation and test; 5 / 5 / 5"
    shutil.rmtree(tmp_path / "val")
    said = "10 images of 2 classes, 6 x 4 pixels; its own train and test; 3 / 2 / 5 with validation images drawn from "
    assert data.load(tmp_path).source == f"local folder of images: {said}train at random"


# Files that are not what they seem -----------------------------------------------------------------------------------


def two_classes(folder: Path) -> Path:
    """Two class folders of three images; and the last image, in place of which something else may lie."""
    class_folder(folder / "a", 3)
    class_folder(folder / "b", 3)
    return folder / "b" / "002.png"


def png_of(width: int, height: int) -> bytes:
    """A PNG of a size, without pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    checked = header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + checked + struct.pack(">I", 100) + b"IDAT"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (lambda file: os.mkfifo(file), "cannot be read: it is not a regular file"),
        (lambda file: file.symlink_to("/dev/zero"), "cannot be read: it is not a regular file"),
        (lambda file: file.symlink_to("nowhere"), "cannot be read: it is not a regular file"),
        (lambda file: file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n"), "not a readable image ("),
        (lambda file: file.write_bytes(png_of(30_000, 30_000)), "not a readable image: Image size (900000000 pixels)"),
        (lambda file: file.write_bytes(png_of(12_000, 8_000)), "not a readable image: Image size (96000000 pixels)"),
        (lambda file: file.write_bytes(png_of(0, 4)), "not a readable image"),
    ],
)
def test_what_is_no_image_is_not_read(tmp_path: Path, place: Callable[[Path], object], message: str):
    file = two_classes(tmp_path)
    file.unlink()
    place(file)
    refuses(tmp_path, f"{file}: {message}")


def test_sizes_are_compared_before_pixels_are_decoded(tmp_path: Path):
    file = two_classes(tmp_path)
    file.write_bytes(png_of(9_000, 9_000))
    refuses(tmp_path, f"{file} is 9000 x 9000 pixels; resize them, such as with resize=256, crop=224")


def test_large_files_are_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = two_classes(tmp_path)
    monkeypatch.setattr("brittle.data.photos.LARGEST_IMAGE", 1000)
    file.write_bytes(b"x" * 1001)
    refuses(tmp_path, f"{file}: holds more than 1,000 bytes")
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(bytes(10_000_000)))
    with pytest.raises(InputError, match=f"{bomb}: holds more than 1,000 bytes"):
        read_bytes(bomb, 1000)


def test_arrays_that_memory_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine of 400 bytes: 6 images of 5 x 5 need 150 as bytes and 600 as float32."""
    monkeypatch.setattr("brittle.data.room.memory", lambda: 400)
    assert len(data.load(npz(tmp_path, images=IMAGES, labels=labels_of(6))).test) == 2
    path = npz(tmp_path, images=np.float32(IMAGES), labels=labels_of(6))
    refuses(path, f"{path}: the images need 6e-07 GB of memory, 4e-07 GB are here: use fewer or smaller ones")


@pytest.mark.parametrize("unreadable", ["", "b"])
def test_folders_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unreadable: str):
    two_classes(tmp_path)
    whole = Path.iterdir

    def iterdir(path: Path):
        if path == tmp_path / unreadable:
            raise PermissionError(13, "Permission denied")
        return whole(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    refuses(tmp_path, f"{tmp_path / unreadable}: cannot be read: Permission denied")


def test_class_names_that_are_no_text(tmp_path: Path):
    two_classes(tmp_path / "mine")
    (tmp_path / "mine" / "b").rename(os.fsdecode(os.fsencode(tmp_path / "mine") + b"/caf\xe9"))
    refuses(tmp_path / "mine", f"{tmp_path / 'mine'}: the class name 'caf\\udce9' is not UTF-8 text: rename it")
    path = npz(tmp_path, images=IMAGES, labels=labels_of(6), classes=np.array(["a", "\udce9"]))
    refuses(path, f"{path}: the class name '\\udce9' is not UTF-8 text: rename it")


def test_a_folder_whose_name_is_no_text(tmp_path: Path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    two_classes(odd)
    assert data.load(odd).name == "caf?"


FLIPPED = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=3)


def flipped(content: bytes, flips: list[tuple[float, int]]) -> bytes:
    changed = bytearray(content)
    for place, bit in flips:
        changed[int(place * len(changed))] ^= 1 << bit
    return bytes(changed)


def loads_or_is_refused(path: Path) -> None:
    said = ""
    try:
        data.load(path)
    except InputError as error:
        said = str(error)
    assert "\n" not in said


@settings(max_examples=150, deadline=None)
@given(flips=FLIPPED, compressed=st.booleans())
def test_damaged_arrays_are_loaded_or_refused(flips: list[tuple[float, int]], compressed: bool):
    content = io.BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(content, images=IMAGES, labels=labels_of(6), classes=np.array(["a", "b"]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.npz"
        path.write_bytes(flipped(content.getvalue(), flips))
        loads_or_is_refused(path)


@settings(max_examples=100, deadline=None)
@given(flips=FLIPPED, suffix=st.sampled_from([".png", ".jpg", ".gif", ".bmp", ".tif", ".webp", ".ppm"]))
def test_damaged_images_are_loaded_or_refused(flips: list[tuple[float, int]], suffix: str):
    with tempfile.TemporaryDirectory() as folder:
        for name in "ab":
            class_folder(Path(folder) / name, 3, suffix=suffix)
        file = Path(folder) / "a" / f"000{suffix}"
        file.write_bytes(flipped(file.read_bytes(), flips))
        loads_or_is_refused(Path(folder))


# Arrays ----------------------------------------------------------------------------------------------------------


def labels_of(count: int, classes: int = 2) -> np.ndarray:
    return np.arange(count) % classes


def npz(folder: Path, **arrays: object) -> Path:
    path = folder / "mine.npz"
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    return path


def refuses_arrays(folder: Path, message: str, **arrays: object) -> None:
    path = npz(folder, **arrays)
    with pytest.raises(InputError) as caught:
        data.load(path)
    assert str(caught.value) == f"{path}: {message}"


IMAGES = np.zeros((6, 5, 5), np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 4),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    dtype=st.sampled_from(["u1", "<f4", ">f4", "f2", "f8"]),
    seed=st.integers(0, 99),
)
def test_arrays_come_back_in_either_layout(
    count: int, channels: int, height: int, width: int, layout: str, dtype: str, seed: int
):
    """Recognised where only one axis can be the channels, refused where both can, right where it is stated."""
    whole = np.random.default_rng(seed).integers(0, 256, (count, channels, height, width))
    images = whole.astype(dtype) if dtype == "u1" else (whole / 255).astype(dtype)
    stored = images if layout == "NCHW" else images.transpose(0, 2, 3, 1)
    both = stored.shape[1] in (1, 3) and stored.shape[3] in (1, 3)
    with tempfile.TemporaryDirectory() as folder:
        path = npz(Path(folder), images=stored, labels=np.array([*range(count), count]))
        with pytest.raises(InputError, match=f"{count} images but {count + 1} labels"):
            read_npz(path, layout)
        path = npz(Path(folder), images=np.repeat(stored, 2, axis=0), labels=np.arange(2 * count))
        if both:
            with pytest.raises(InputError, match="could be either layout: state layout='NCHW' or layout='NHWC'"):
                read_npz(path, None)
        read = read_npz(path, layout if both else None)
    expected = images if dtype == "u1" else images.astype(np.float32)
    np.testing.assert_array_equal(read.images, np.repeat(expected, 2, axis=0))
    np.testing.assert_array_equal(read.labels, np.arange(2 * count))


def test_arrays_are_split_by_class(tmp_path: Path):
    images = np.arange(100, dtype=np.uint8)[:, None, None] * np.ones((1, 5, 4), np.uint8)
    names = np.array(["cat", "dog"])
    read = data.load(npz(tmp_path, images=images, labels=labels_of(100).astype(np.uint8), classes=names))
    assert (read.name, read.classes, read.image_shape) == ("mine", ("cat", "dog"), (1, 5, 4))
    assert (
        read.source == "local .npz file: 100 images of 2 classes, 4 x 5 pixels; split 70 / 15 / 15 at random by class"
    )
    assert [sorted(split.labels.bincount().tolist()) for split in (read.train, read.validation, read.test)] == [
        [35, 35],
        [7, 8],
        [7, 8],
    ]
    rows = values(read.train) + values(read.validation) + values(read.test)
    assert sorted(rows, key=lambda row: row[1]) == [(value % 2, value) for value in range(100)]


def test_a_small_class_is_in_every_split(tmp_path: Path):
    labels = np.array([0] * 97 + [1] * 3)
    read = data.load(npz(tmp_path, images=np.zeros((100, 4, 4), np.uint8), labels=labels))
    assert [int((split.labels == 1).sum()) for split in (read.train, read.validation, read.test)] == [1, 1, 1]


def test_array_digest_follows_values_and_labels_not_layout(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 5, 4), np.uint8)
    labels = labels_of(8)
    first = data.load(npz(tmp_path, images=images, labels=labels)).digest
    same = data.load(npz(tmp_path, images=images.transpose(0, 2, 3, 1), labels=labels.astype(np.uint8))).digest
    swapped = data.load(npz(tmp_path, images=images, labels=labels.astype(">i2"))).digest
    other = data.load(npz(tmp_path, images=images, labels=labels[::-1])).digest
    images[3, 0, 0, 0] ^= 1
    changed = data.load(npz(tmp_path, images=images, labels=labels)).digest
    assert first == same == swapped
    assert len({first, other, changed}) == 3


def test_rounding_outside_the_range_is_clamped(tmp_path: Path):
    images = np.full((6, 4, 4), 1 + 5e-7)
    images[0] = -3e-8
    read = data.load(npz(tmp_path, images=images, labels=labels_of(6)))
    every = torch.cat([read.train.images, read.validation.images, read.test.images])
    assert (every.min(), every.max()) == (0, 1)


def test_images_that_are_not_as_expected(tmp_path: Path):
    labels = labels_of(6)
    wrong = "images must lie in [0, 1] or be uint8, got "
    refuses_arrays(
        tmp_path,
        wrong + "float64 in [0, 255]: divide them by the largest value that a pixel can have, 255 where it has 8 bits",
        images=np.eye(6)[:, None] * 255.0 * np.ones((1, 6, 1)),
        labels=labels,
    )
    refuses_arrays(
        tmp_path,
        wrong + "float32 in [-0.5, 0]: they look normalised; undo that, and let the model normalise them itself",
        images=np.float32(IMAGES) - 0.5 * (np.arange(5) == 2).astype("f4"),
        labels=labels,
    )
    refuses_arrays(
        tmp_path,
        wrong + "float32 in [1, 1.00001]",
        images=np.float32(IMAGES) + 1 + np.float32(1e-5) * (np.arange(5) == 2),
        labels=labels,
    )
    infinite = np.ones((6, 5, 5), np.float32)
    infinite[2, 2, 2] = np.inf
    refuses_arrays(tmp_path, wrong + "float32 in [1, inf]", images=infinite, labels=labels)
    infinite[3, 1, 1:3] = np.nan
    refuses_arrays(
        tmp_path, "images hold 2 values that are not a number, first in row 3", images=infinite, labels=labels
    )
    types = "images must be uint8 in 0..255 or floating point in [0, 1], got "
    refuses_arrays(tmp_path, types + "int64", images=IMAGES.astype(np.int64), labels=labels)
    refuses_arrays(tmp_path, types + "bool", images=IMAGES.astype(bool), labels=labels)
    shapes = "images must be (N, H, W), (N, C, H, W) or (N, H, W, C), got "
    refuses_arrays(tmp_path, shapes + "(6, 25)", images=IMAGES.reshape(6, 25), labels=labels)
    refuses_arrays(tmp_path, shapes + "(0, 5, 5)", images=IMAGES[:0], labels=labels[:0])
    refuses_arrays(
        tmp_path,
        "images of shape (6, 2, 5, 5) have neither 1, 3 nor 4 channels in either layout: "
        "state layout='NCHW' or layout='NHWC'",
        images=np.zeros((6, 2, 5, 5), np.uint8),
        labels=labels,
    )


def test_labels_that_are_not_as_expected(tmp_path: Path):
    types = "labels must be integers of shape (N,), got "
    for labels, message in (
        (labels_of(6) * 1.0, types + "float64 of shape (6,)"),
        (np.eye(6, dtype=int), types + "int64 of shape (6, 6)"),
        (labels_of(5), "6 images but 5 labels"),
        (np.array([0, 1, 0, -1, 0, 1]), "labels must lie in 0..99999, got -1 in row 3"),
        (np.array([0, 0, 0, 1, 1, 2**63], np.uint64), f"labels must lie in 0..99999, got {2**63} in row 5"),
        (np.zeros(6, int), "all labels are 0, expected at least 2 classes"),
    ):
        refuses_arrays(tmp_path, message, images=IMAGES, labels=labels)


def test_classes_that_are_not_as_expected(tmp_path: Path):
    for names in (np.array(["a"]), np.array([1, 2]), np.array("a")):
        message = f"classes must be 2 strings, got {names.dtype} of shape {names.shape}"
        refuses_arrays(tmp_path, message, images=IMAGES, labels=labels_of(6), classes=names)


def test_a_class_too_small_to_be_split(tmp_path: Path):
    path = npz(tmp_path, images=IMAGES, labels=np.array([0, 0, 0, 0, 1, 1]))
    refuses(path, "mine: class '1' is too small to be split: 2 of at least 3 images")


def test_keys_that_are_lacking(tmp_path: Path):
    refuses_arrays(tmp_path, "lacks images, holds x, labels; expected images and labels", x=IMAGES, labels=labels_of(6))
    refuses_arrays(tmp_path, "lacks images and labels, holds x; expected images and labels", x=IMAGES)


def test_objects_are_refused(tmp_path: Path):
    """Reading them would run code out of the file."""
    message = "cannot be read: it stores Python objects, expected plain numbers and strings"
    refuses_arrays(tmp_path, message, images=IMAGES, labels=np.array(list("001100"), object))


def npy_that_says(shape: str, dtype: str = "|u1", content: bytes = bytes(150)) -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (
            npy_that_says(f"({10**12}, 5, 5)"),
            "images says it is (1000000000000, 5, 5) uint8, 25,000,000,000,000 bytes, ",
        ),
        (
            npy_that_says(f"({10**26}, 5)"),
            f"images says it is ({10**26}, 5) uint8, {5 * 10**26:,} bytes, but holds 150",
        ),
        (npy_that_says("(-6, 5, 5)"), "images says it is (-6, 5, 5) uint8, -150 bytes, but holds 150"),
        (npy_that_says("(5, 5, 5)"), "images says it is (5, 5, 5) uint8, 125 bytes, but holds 150"),
        (npy_that_says("(6, 5, 5)", "<f8"), "images says it is (6, 5, 5) float64, 1,200 bytes, but holds 150"),
        (npy_that_says("(6, 5, 5)", "|O"), "cannot be read: it stores Python objects, expected plain numbers and str"),
        (npy_that_says("(6, 5, 5"), "the header of images is damaged, expected what numpy.save writes"),
        (npy_that_says("(6, 5, 5)", "|u1 "), "the header of images is damaged"),
        (b"\x93NUMPY\x09\x00" + bytes(200), "the header of images is damaged"),
        (b"\x93NUM", "images is not an array as numpy stores them"),
    ],
)
def test_headers_are_read_before_arrays(tmp_path: Path, member: bytes, message: str):
    path = tmp_path / "mine.npz"
    labels = io.BytesIO()
    np.save(labels, labels_of(6))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", member)
        archive.writestr("labels.npy", labels.getvalue())
    refuses(path, f"{path}: {message}")
    with pytest.raises(InputError) as caught:
        data.load(path)
    assert "allow_pickle" not in str(caught.value)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = npz(tmp_path, images=IMAGES, labels=labels_of(6))

    def denied(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(Path, "open", denied)
    refuses(path, f"{path}: cannot be read: Permission denied")


def test_files_that_are_no_npz(tmp_path: Path):
    path = tmp_path / "mine.npz"
    single = io.BytesIO()
    np.save(single, IMAGES)
    whole = npz(tmp_path, images=IMAGES, labels=labels_of(6)).read_bytes()
    for content in (b"", b"text", single.getvalue(), whole[:-100]):
        path.write_bytes(content)
        refuses(path, f"{path}: not a whole .npz file; expected one with images and labels")
    damaged = bytearray(whole)
    damaged[250] ^= 1
    path.write_bytes(damaged)
    refuses(path, f"{path}: cannot be read: Bad CRC-32 for file 'images.npy'")
    with zipfile.ZipFile(path, "w") as archive:  # of this, numpy complains in several lines
        archive.writestr("images.npy", b"\x93NUMPY\x02\x00" + (20_000).to_bytes(4, "little") + b" " * 20_000)
        archive.writestr("labels.npy", b"no array")
    refuses(path, f"{path}: the header of images has 20,000 characters, expected at most 10,000")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"no array")
        archive.writestr("labels.npy", b"no array")
    refuses(path, f"{path}: images is not an array as numpy stores them")
