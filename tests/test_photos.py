"""Photos as people have them: of every size and kind, in every usual layout of folders, for any model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from brittle import data
from brittle.data.room import room
from brittle.errors import InputError

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
ORIENTATION = 0x0112


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def flat(value: int) -> Image.Image:
    return Image.new("L", (4, 4), value)


def two_classes(folder: Path, count: int = 3) -> Path:
    """cat/ and dog/, whose images are of one value each: 0, 1, ... and 100, 101, ..."""
    for first, name in ((0, "cat"), (100, "dog")):
        (folder / name).mkdir(parents=True)
        for value in range(count):
            flat(first + value).save(folder / name / f"{value:03d}.png")
    return folder


def values(split: data.Split) -> list[int]:
    return split.pixels[:, 0, 0, 0].tolist()


def one_photo(folder: Path, image: Image.Image, name: str = "a.png", **saved: Any) -> Path:
    """A folder whose only image that is not from `two_classes` is the one of class a."""
    (folder / "a").mkdir(parents=True)
    image.save(folder / "a" / name, **saved)
    return folder


def loaded(folder: Path, **asked: Any) -> torch.Tensor:
    """The one image of a folder, (C, H, W)."""
    return data.load(folder, split="all", classes=[0], **asked).test.pixels[0]


def refused(message: str, *asked: Any, **options: Any) -> None:
    with pytest.raises(InputError) as caught:
        data.load(*asked, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# Sizes and channels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "expected"),
    [  # as torchvision's Resize and CenterCrop: the longer side is cut to whole pixels, halves go to the even pixel
        ({"resize": 32}, lambda photo: photo.resize((42, 32), BILINEAR)),
        ({"resize": 32, "crop": 21}, lambda photo: photo.resize((42, 32), BILINEAR).crop((10, 6, 31, 27))),
        ({"resize": 32, "crop": (20, 30)}, lambda photo: photo.resize((42, 32), BILINEAR).crop((6, 6, 36, 26))),
        ({"crop": 30}, lambda photo: photo.crop((25, 15, 55, 45))),
        ({"size": 24}, lambda photo: photo.resize((24, 24), BILINEAR)),
        ({"size": (10, 24)}, lambda photo: photo.resize((24, 10), BILINEAR)),
        ({"size": 24, "interpolation": "bicubic"}, lambda photo: photo.resize((24, 24), BICUBIC)),
        ({"resize": 90}, lambda photo: photo.resize((120, 90), BILINEAR)),
    ],
)
def test_photos_are_resized_and_cropped(tmp_path: Path, asked: dict[str, Any], expected: Callable[..., Image.Image]):
    photo = noise(80, 60)
    read = loaded(one_photo(tmp_path, photo), **asked)
    assert read.permute(1, 2, 0).tolist() == np.asarray(expected(photo)).tolist()


def test_photos_of_mixed_sizes(tmp_path: Path):
    for place, size in enumerate([(80, 60), (60, 80), (100, 50), (64, 64)]):
        (tmp_path / "ab"[place % 2]).mkdir(exist_ok=True)
        noise(*size).save(tmp_path / "ab"[place % 2] / f"{place}.jpg")
    refused("pixels; resize them, such as with resize=256, crop=224 (--resize 256 --crop 224)", tmp_path, split="all")
    refused("mixed sizes: ", tmp_path, split="all", resize=32)
    refused(
        "100 x 50 pixels, from which crop=60 x 60 cannot be cut: give a larger resize=", tmp_path, crop=60, split="all"
    )
    read = data.load(tmp_path, split="all", resize=32, crop=28)
    assert (read.image_shape, len(read.test), read.test.pixels.dtype) == ((3, 28, 28), 4, torch.uint8)
    done = "shorter side resized to 32, centre crop of 28 x 28, bilinear"
    assert f"4 images of 2 classes, 64 x 64 to 100 x 50 pixels, {done}" in read.source
    digests = {data.load(tmp_path, split="all", size=size).digest for size in (28, 29)}
    assert len({read.digest, *digests}) == 3


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"size": 28, "crop": 28}, "size is the exact height and width: it goes without resize and crop"),
        ({"size": 0}, "size must be a whole number of pixels in 1..20,000, got 0"),
        ({"crop": (3, 4, 5)}, "crop must be a number of pixels or a pair (height, width), got (3, 4, 5)"),
        ({"resize": 2.5}, "resize must be a whole number of pixels in 1..20,000, got 2.5"),
        ({"resize": 10**9}, "resize must be a whole number of pixels"),
        ({"interpolation": "cubic"}, "unknown interpolation 'cubic': did you mean 'bicubic'"),
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"split": "tests"}, "unknown split 'tests': did you mean 'test'"),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"seed": -1}, "seed must be a whole number"),
    ],
)
def test_what_cannot_be_asked_for(tmp_path: Path, asked: dict[str, Any], message: str):
    refused(message, two_classes(tmp_path), **asked)


RED = (200, 100, 0)
GREY_OF_RED = Image.new("RGB", (1, 1), RED).convert("L").getpixel((0, 0))


@pytest.mark.parametrize(
    ("photo", "name", "channels", "expected"),
    [
        (Image.new("L", (4, 4), 77), "a.png", None, [77]),
        (Image.new("L", (4, 4), 77), "a.png", 3, [77, 77, 77]),
        (Image.new("RGB", (4, 4), RED), "a.png", None, [*RED]),
        (Image.new("RGB", (4, 4), RED), "a.png", 1, [GREY_OF_RED]),
        (Image.new("RGBA", (4, 4), (*RED, 9)), "a.png", None, [*RED]),
        (Image.new("LA", (4, 4), (77, 9)), "a.png", 3, [77, 77, 77]),
        (Image.new("CMYK", (4, 4), (55, 155, 255, 0)), "a.tif", None, [*RED]),
        (Image.new("CMYK", (4, 4), (55, 155, 255, 0)), "a.jpg", None, [*RED]),
        (Image.new("RGB", (4, 4), RED).quantize(4), "a.png", None, [*RED]),
        (Image.new("RGB", (4, 4), (77, 77, 77)).quantize(4), "a.gif", None, [77]),
        (Image.new("1", (4, 4), 1), "a.png", None, [255]),
        (Image.new("RGB", (4, 4), RED), "a.jfif", None, [*RED]),
        (Image.new("RGB", (4, 4), RED), "a.JPEG", None, [*RED]),
    ],
)
def test_kinds_of_photos(tmp_path: Path, photo: Image.Image, name: str, channels: int | None, expected: list[int]):
    kind = "JPEG" if name.lower().endswith((".jpg", ".jfif", ".jpeg")) else None
    read = loaded(one_photo(tmp_path, photo, name, format=kind), channels=channels)
    assert read.dtype == torch.uint8
    assert read.shape == (len(expected), 4, 4)
    assert read[:, 1, 1].tolist() == pytest.approx(expected, abs=3 if kind else 0)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
@pytest.mark.parametrize("channels", [None, 3])
def test_16_bits_are_kept(tmp_path: Path, name: str, channels: int | None):
    photo = Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4) * 4000)
    read = data.load(one_photo(tmp_path, photo, name), split="all", classes=[0], channels=channels).test.images[0]
    assert read.shape == (channels or 1, 4, 4)
    assert read[-1].flatten().tolist() == pytest.approx([4000 * level / 65535 for level in range(16)], abs=1e-7)


def test_8_bits_beside_16_bits(tmp_path: Path):
    two_classes(tmp_path)
    Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(tmp_path / "cat" / "deep.png")
    Image.new("RGB", (4, 4), RED).save(tmp_path / "dog" / "red.png")
    read = data.load(tmp_path, split="all", size=4)
    found = sorted(tuple(image[:, 0, 0].tolist()) for image in read.test.images)
    expected = sorted(
        [*[(v / 255,) * 3 for v in (0, 1, 2, 100, 101, 102)], (30_000 / 65_535,) * 3, (200 / 255, 100 / 255, 0)]
    )
    assert np.array(found) == pytest.approx(np.array(expected), abs=1e-7)


# What EXIF calls the orientation: the place of the stored image's four corners in the upright one ------------------

STORED = np.array([[10, 20], [30, 40], [50, 60]], np.uint8)
UPRIGHT = {
    1: STORED,
    2: STORED[:, ::-1],
    3: STORED[::-1, ::-1],
    4: STORED[::-1],
    5: STORED.T,
    6: STORED[::-1].T,
    7: STORED[::-1, ::-1].T,
    8: STORED.T[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_photos_are_turned_as_exif_says(tmp_path: Path, orientation: int):
    photo, exif = Image.fromarray(STORED), Image.Exif()
    exif[ORIENTATION] = orientation
    folder = one_photo(tmp_path, photo, exif=exif)
    assert loaded(folder)[0].tolist() == UPRIGHT[orientation].tolist()
    assert loaded(folder, exif=False)[0].tolist() == STORED.tolist()
    turned, as_stored = (data.load(folder, split="all", classes=[0], exif=exif) for exif in (True, False))
    assert ("1 turned upright as their EXIF orientation says" in turned.source) == (orientation != 1)
    assert (turned.digest == as_stored.digest) == (orientation == 1)


# Folders -------------------------------------------------------------------------------------------------------------


def test_nested_hidden_and_other_files(tmp_path: Path):
    two_classes(tmp_path, 2)
    deep = tmp_path / "cat" / "2024" / "may"
    deep.mkdir(parents=True)
    flat(50).save(deep / "x.jfif", "JPEG")
    for name in ("__MACOSX/cat", ".cache"):
        (tmp_path / name).mkdir(parents=True)
        flat(99).save(tmp_path / name / "._a.png")
    (tmp_path / "cat" / "__MACOSX").mkdir()
    flat(99).save(tmp_path / "cat" / "__MACOSX" / "a.png")
    flat(99).save(tmp_path / "dog" / "._001.png")
    (tmp_path / "dog" / "phone.heic").write_bytes(b"")
    (tmp_path / "cat" / "notes").write_text("")
    flat(99).save(tmp_path / "loose.png")
    (tmp_path / "cat" / "circle").symlink_to(tmp_path / "cat")
    read = data.load(tmp_path, split="all")
    assert sorted(values(read.test)) == [0, 1, 50, 100, 101]
    assert read.classes == ("cat", "dog")
    assert read.source.endswith("; left out: 1 .heic, 1 outside the class folders, 1 without a suffix")


def test_a_class_of_other_files_alone(tmp_path: Path):
    two_classes(tmp_path)
    (tmp_path / "eel").mkdir()
    (tmp_path / "eel" / "a.heic").write_bytes(b"")
    refused(f"{tmp_path / 'eel'}: holds no images, expected files ending in .bmp, ", tmp_path, split="all")
    refused(", found 1 .heic", tmp_path, split="all")


def test_all_unreadable_files_are_listed_at_once(tmp_path: Path):
    """Empty ones are known by their headers, truncated ones only when they are decoded."""
    two_classes(tmp_path, 20)
    for place in range(6):
        empty, cut = (tmp_path / name / f"{place:03d}.png" for name in ("cat", "dog"))
        empty.write_bytes(b"")
        noise(4, 4).save(cut)
        cut.write_bytes(cut.read_bytes()[:60])
    with pytest.raises(InputError) as caught:
        data.load(tmp_path, split="all")
    said = str(caught.value)
    assert said.startswith(f"12 files cannot be read: {tmp_path / 'cat' / '000.png'}: not a readable image (0 bytes); ")
    assert said.count(str(tmp_path)) == 10
    assert said.endswith("; and 2 more: skip_bad=True, or --skip-bad, leaves such files out")
    read = data.load(tmp_path, split="all", skip_bad=True)
    assert sorted(values(read.test)) == [*range(6, 20), *range(106, 120)]
    assert read.source.endswith("; left out: 12 unreadable")
    for place in range(6):
        (tmp_path / "cat" / f"{place:03d}.png").unlink()
        (tmp_path / "dog" / f"{place:03d}.png").unlink()
    clean = data.load(tmp_path, split="all")
    assert (read.digest, values(read.test)) == (clean.digest, values(clean.test))


def test_a_folder_of_unreadable_files_alone(tmp_path: Path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"")
    refused("2 files cannot be read", tmp_path, split="all", skip_bad=True)


@pytest.mark.parametrize(
    ("parts", "split", "expected"),
    [  # which part's images are in train, validation and test; "drawn" from train where there is no validation
        ("", "all", ["", "", "flat"]),
        ("", "evaluation", ["", "", "flat"]),
        ("test", None, ["", "", "test"]),
        ("test", "evaluation", ["", "", "test"]),
        ("val", None, ["", "", "val"]),
        ("val", "evaluation", ["", "", "val"]),
        ("val", "validation", ["", "", "val"]),
        ("train", "evaluation", ["", "", "train"]),
        ("train val", None, ["train", "train", "val"]),
        ("train val", "evaluation", ["", "", "val"]),
        ("train val", "train", ["", "", "train"]),
        ("train val", "all", ["", "", "train val"]),
        ("train test", None, ["train", "train", "test"]),
        ("train test", "evaluation", ["", "", "test"]),
        ("Train Test", "evaluation", ["", "", "Test"]),
        ("train valid test", None, ["train", "valid", "test"]),
        ("train valid test", "evaluation", ["", "", "test"]),
        ("train valid test", "validation", ["", "", "valid"]),
        ("training validation testing", "all", ["", "", "training testing validation"]),
        ("test val", None, ["", "val", "test"]),
    ],
)
def test_layouts_of_folders(tmp_path: Path, parts: str, split: str | None, expected: list[str]):
    for place, part in enumerate(parts.split() or ["flat"]):
        for label, name in enumerate("ab"):
            folder = tmp_path / name if part == "flat" else tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(3):
                flat(60 * place + 20 * label + number).save(folder / f"{number}.png")
    read = data.load(tmp_path, split=split)
    if parts and split:
        assert f" in {'/, '.join(expected[2].split())}/, 4 x 4 pixels" in read.source
    for found, wanted in zip((read.train, read.validation, read.test), expected, strict=True):
        of = {(parts.split() or ["flat"])[value // 60] for value in values(found)}
        assert of == set(wanted.split())
        assert [value // 20 % 3 for value in values(found)] == found.labels.tolist()
    held = [value for one in (read.train, read.validation, read.test) for value in values(one)]
    assert len(held) == len(set(held)) == 6 * len(" ".join(dict.fromkeys(expected)).split())


def test_parts_that_are_not_there(tmp_path: Path):
    two_classes(tmp_path / "train")
    two_classes(tmp_path / "val")
    refused(f"{tmp_path}: has no folder for split='test', only train, val", tmp_path, split="test")
    two_classes(tmp_path / "old", 2)
    assert data.load(tmp_path, split="evaluation").source.endswith("; all are test images; left out: 4 in old/")


def test_a_class_may_be_called_train_and_lie_beside_others(tmp_path: Path):
    two_classes(tmp_path)
    (tmp_path / "train" / "old").mkdir(parents=True)
    flat(7).save(tmp_path / "train" / "a.png")
    assert data.load(tmp_path, split="all").classes == ("cat", "dog", "train")
    (tmp_path / "train" / "a.png").rename(tmp_path / "train" / "old" / "a.png")
    refused(f"{tmp_path}: holds class folders in train/, and beside it folders of images, cat, dog: ", tmp_path)


def test_a_part_may_lack_classes_of_the_training(tmp_path: Path):
    """Labels are those that a model has learned from train/, whatever test/ holds."""
    two_classes(tmp_path / "train")
    (tmp_path / "test" / "dog").mkdir(parents=True)
    flat(200).save(tmp_path / "test" / "dog" / "a.png")
    read = data.load(tmp_path, split="evaluation")
    assert (read.classes, read.test.labels.tolist()) == (("cat", "dog"), [1])


def test_parts_of_a_flat_folder_are_those_of_the_training(tmp_path: Path):
    whole = data.load(two_classes(tmp_path, 20))
    for name in ("train", "validation", "test"):
        assert values(data.load(tmp_path, split=name).test) == values(getattr(whole, name))


def test_the_same_folder_is_in_the_same_order_on_every_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    two_classes(tmp_path, 9)
    before, whole = data.load(tmp_path, split="all"), Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(sorted(whole(path), reverse=True)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(5), raising=False)
    after = data.load(tmp_path, split="all")
    assert (before.digest, values(before.test)) == (after.digest, values(after.test))
    assert values(before.test)[:6] == [100, 0, 106, 7, 104, 8]
    other = data.load(tmp_path, split="all", seed=1)
    assert values(other.test) != values(before.test)
    assert sorted(values(other.test)) == sorted(values(before.test))


def test_only_so_many_are_read_and_each_class_in_proportion(tmp_path: Path):
    """The others are no images at all."""
    two_classes(tmp_path, 30)
    drawn = values(data.load(tmp_path, split="all").test)[:10]
    for name, first in (("cat", 0), ("dog", 100)):
        for value in range(30):
            if first + value not in drawn:
                (tmp_path / name / f"{value:03d}.png").write_bytes(b"")
    read = data.load(tmp_path, split="all", count=10)
    assert values(read.test) == drawn
    assert read.test.labels.bincount().tolist() == [5, 5]
    assert "all are test images, 10 of 60 drawn at random" in read.source


# Memory --------------------------------------------------------------------------------------------------------------


def test_what_memory_cannot_hold_lies_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    two_classes(tmp_path / "own", 20)
    before = data.load(tmp_path / "own")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("brittle.data.room.memory", lambda: 1000)
    made = []
    monkeypatch.setattr(torch, "from_file", lambda *asked, **how: made.append(how) or torch.zeros(how["size"]).byte())
    data.load(tmp_path / "own")
    assert [how["size"] for how in made] == [40 * 16]
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("brittle.data.room.memory", lambda: 1000)
    after = data.load(tmp_path / "own")
    for name in ("train", "validation", "test"):
        assert torch.equal(getattr(before, name).images, getattr(after, name).images)
    assert before.digest == after.digest
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("brittle.data.room.memory", lambda: 1000)
    with pytest.raises(
        InputError, match=r"the images need 1e\+09 GB, more than half of the memory, and .* cannot take"
    ):
        room((10**9, 10**9), torch.uint8)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# Classes and outputs -------------------------------------------------------------------------------------------------

INDEX = {"0": ["n01", "tench"], "3": ["n02", "Dog"], "7": ["n03", "cat"]}
FILES: dict[str, str] = {
    "lines.txt": "tench\nshark\n\nDog\ncat\n",
    "pairs.txt": "cat, 7\ndog\t3\n",
    "first.txt": "3 dog\n7: cat\n5 eel",
    "wordnet.txt": "n00000001 tench\nn00000002 dog\nn00000003 cat",
    "index.json": json.dumps(INDEX),
    "config.json": json.dumps({"model_type": "vit", "id2label": {"0": "eel", "1": "Cat", "2": "DOG"}}),
    "outputs.json": json.dumps({"cat": 5, "dog": 2}),
    "names.json": json.dumps(["dog", "eel", "cat"]),
    "numbers.txt": "967\n285",
}


@pytest.mark.parametrize(
    ("classes", "cat", "dog", "outputs"),
    [
        ([285, 967], 285, 967, 968),
        (np.array([1, 0]), 1, 0, 2),
        (torch.tensor([2, 1]), 2, 1, 3),
        ("285,967", 285, 967, 968),
        (["dog", "eel", "cat", "fox"], 2, 0, 4),
        ({"dog": 4, "cat": 9, "eel": 10}, 9, 4, 11),
        ("lines.txt", 3, 2, 4),
        ("pairs.txt", 7, 3, 8),
        ("first.txt", 7, 3, 8),
        ("wordnet.txt", 2, 1, 3),
        ("index.json", 7, 3, 8),
        ("config.json", 1, 2, 3),
        ("outputs.json", 5, 2, 6),
        ("names.json", 2, 0, 3),
        ("numbers.txt", 967, 285, 968),
    ],
)
def test_classes_are_mapped_to_outputs(tmp_path: Path, classes: Any, cat: int, dog: int, outputs: int):
    if classes in [*FILES] if isinstance(classes, str) else False:
        (tmp_path / classes).write_text(FILES[classes])
        classes = tmp_path / classes
    plain, read = data.load(two_classes(tmp_path / "own"), split="all"), None
    for given in (classes, str(classes)) if isinstance(classes, Path) else (classes,):
        read = data.load(tmp_path / "own", split="all", classes=given)
        assert read.test.labels.tolist() == [dog if label else cat for label in plain.test.labels.tolist()]
        assert (read.classes[cat], read.classes[dog], len(read.classes)) == ("cat", "dog", outputs)
    assert read is not None
    assert (read.digest == plain.digest) == ((cat, dog, outputs) == (0, 1, 2))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([1, 2, 3], "classes: 3 outputs for 2 classes, cat, dog"),
        ([1, 1], "classes: 'cat' and 'dog' have the same output, 1"),
        ([-1, 0], "classes: the output of 'cat' must lie in 0..99,999, got -1"),
        ([10**9, 0], "classes: the output of 'cat' must lie in 0..99,999, got 1000000000"),
        (["dog", "eel"], "classes: no output is named for cat; there are dog, eel"),
        ({"cat": "x", "dog": 1}, "classes: the output of 'cat' must be a whole number, got 'x'"),
        ("nowhere.txt", "classes: 'nowhere.txt' is not there: expected a file, or outputs with commas between"),
        ([], "classes must be numbers of outputs or names of classes"),
        ([None, 1], "classes must be numbers of outputs or names of classes, got None, 1"),
        (7, "classes must be a list, a mapping or a file, got 7"),
        (b"[1, 2", "cannot be read: "),
        (b"\xff\xfe\xff", "cannot be read: "),
        (b"3", "expected a list of names, or names and outputs, got int"),
        (b"[" * 5000, "cannot be read: "),
    ],
)
def test_classes_that_are_not_mapped(tmp_path: Path, classes: Any, message: str):
    if isinstance(classes, bytes):
        (tmp_path / "x.json").write_bytes(classes)
        classes = tmp_path / "x.json"
    refused(message, two_classes(tmp_path / "own"), classes=classes)


def test_folders_named_by_numbers_are_outputs(tmp_path: Path):
    """Sorted as text 10 is before 9; the model's outputs are 9 and 10 all the same."""
    levels = {9: 40, 10: 80, 285: 120, 967: 160}
    for output, level in levels.items():
        (tmp_path / str(output)).mkdir()
        for number in range(3):
            flat(level).save(tmp_path / str(output) / f"{number}.png")
    read = data.load(tmp_path, split="all")
    assert [levels[label] for label in read.test.labels.tolist()] == values(read.test)
    assert (len(read.classes), read.classes[967], read.classes[3]) == (968, "967", "3")
    assert read.source.endswith("; folder names are taken for the model's outputs")
    assert "4 of 968: 9, 10, 285, 967" in read.summary()
    sorted_as_text = data.load(tmp_path, split="all", classes=range(4))
    assert [[80, 120, 40, 160][label] for label in sorted_as_text.test.labels] == values(sorted_as_text.test)


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "mine.npz", **arrays)
    return folder / "mine.npz"


SPARSE = np.array([3, 207, 985] * 4)


@pytest.mark.parametrize(
    ("names", "called", "outputs"),
    [(None, "207", 986), (["a", "b", "c"], "b", 986), ([f"name {i}" for i in range(1000)], "name 207", 1000)],
)
def test_sparse_labels_of_arrays_stay(tmp_path: Path, names: list[str] | None, called: str, outputs: int):
    images = np.arange(12, dtype=np.uint8)[:, None, None] + np.zeros((1, 4, 4), np.uint8)
    named = {} if names is None else {"classes": np.array(names)}
    read = data.load(npz(tmp_path, images=images, labels=SPARSE, **named), split="all")
    assert read.test.labels.tolist() == SPARSE[values(read.test)].tolist()
    assert (read.classes[207], len(read.classes)) == (called, outputs)
    mapped = data.load(tmp_path / "mine.npz", split="all", classes=[5, 1, 0])
    assert set(mapped.test.labels.tolist()) == {0, 1, 5}


def test_arrays_are_resized_and_keep_their_order_of_channels(tmp_path: Path):
    photos = [np.asarray(noise(8, 6, seed)) for seed in range(4)]
    read = data.load(npz(tmp_path, images=np.stack(photos), labels=np.arange(4) % 2), split="all", size=3)
    expected = {np.asarray(Image.fromarray(photo).resize((3, 3), BILINEAR)).tobytes() for photo in photos}
    assert {image.permute(1, 2, 0).numpy().tobytes() for image in read.test.pixels} == expected
    floats = np.stack(photos).astype(np.float32) / 255
    close = data.load(npz(tmp_path, images=floats, labels=np.arange(4) % 2), split="all", size=3)
    assert (close.test.images - read.test.images).abs().max() < 1.01 / 255


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_transparency_of_arrays_is_dropped(tmp_path: Path, layout: str):
    images = np.random.default_rng(0).integers(0, 256, (4, 4, 5, 6), np.uint8)
    stored = images if layout == "NCHW" else images.transpose(0, 2, 3, 1)
    path = npz(tmp_path, images=stored, labels=np.arange(4) % 2)
    read = data.load(path, split="all")
    assert (read.image_shape, read.source.endswith("; transparency dropped")) == ((3, 5, 6), True)
    assert data.load(path, split="all", channels=4).image_shape == (4, 5, 6)
    assert data.load(path, split="all", channels=1).image_shape == (1, 5, 6)


# The built-in ones ---------------------------------------------------------------------------------------------------


def test_built_in_data_in_other_forms():
    plain = data.load("digits")
    read = data.load("digits", size=32, channels=3, split="validation")
    assert (read.image_shape, len(read.test), read.digest != plain.digest) == ((3, 32, 32), 359, True)
    assert torch.equal(read.test.images[:, 0], read.test.images[:, 2])
    assert (
        read.source
        == "scikit-learn load_digits; test images are those of validation; resized to 32 x 32, bilinear, 3 channels"
    )
    assert data.load("digits", channels=1, split="evaluation").digest == plain.digest
    assert len(data.load("digits", split="all").test) == 1797
    train = data.load("digits", split="train")
    assert (len(train.test), len(train.train), torch.equal(train.test.images, plain.train.images)) == (1079, 0, True)
    assert (
        data.load("digits", classes=[*range(1, 10), 0]).test.labels.tolist() == ((plain.test.labels + 1) % 10).tolist()
    )
    refused("crop=(30, 30) cannot be cut from 28 x 28 pixels: resize first", "digits", crop=30)
