"""Bad files: arrays, folders of images, published data sets, weights, pickles and archives."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from stress.judged import RAN, Case, flipped, mutated
from torch import nn

import brittle
from brittle import data
from brittle.errors import InputError
from brittle.models.networks import build, mlp
from brittle.study.load_model import load_model

SUFFIXES = ("png", "jpg", "gif", "bmp", "tif", "webp", "ppm")
IMAGES = np.arange(12 * 25).reshape(12, 5, 5).astype(np.uint8)
LABELS = np.arange(12) % 2


# Arrays -------------------------------------------------------------------------------------------------------------


def npz(arrays: Mapping[str, Any], compressed: bool = False) -> bytes:
    """The content of an .npz file."""
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def load_npz(content: bytes) -> data.Data:
    """Reads the content as a user's own arrays."""
    Path("mine.npz").write_bytes(content)
    return data.load("mine.npz")


def _npy(shape: object, kind: str = "|u1", size: int = 300) -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(size)


def _zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def arrays(draw: random.Random) -> list[Case]:
    """Files of arrays."""
    floats, count = IMAGES / 255, len(LABELS)
    good: dict[str, dict[str, Any]] = {
        "bytes": {"images": IMAGES, "labels": LABELS},
        "float64": {"images": floats, "labels": LABELS},
        "float16": {"images": floats.astype("f2"), "labels": LABELS},
        "another byte order": {"images": floats.astype(">f4"), "labels": LABELS.astype(">i2")},
        "labels of bytes": {"images": IMAGES, "labels": LABELS.astype("u1")},
        "a key more": {"images": IMAGES, "labels": LABELS, "more": np.zeros(3)},
        "names of classes": {"images": IMAGES, "labels": LABELS, "classes": np.array(["a", "b"])},
        "two classes of one name, as ImageNet has": {
            "images": IMAGES,
            "labels": LABELS,
            "classes": np.array(["a", "a"]),
        },
        "labels with a gap": {"images": IMAGES, "labels": LABELS * 2},
        "names of outputs without an image": {"images": IMAGES, "labels": LABELS, "classes": np.array(["a", "b", "c"])},
        "Fortran's order": {"images": np.asfortranarray(IMAGES), "labels": LABELS},
    }
    bad_images: dict[str, np.ndarray] = {
        "one dimension": IMAGES.flatten()[:count],
        "two dimensions": IMAGES[:, 0],
        "five dimensions": IMAGES[:, None, None],
        "no dimension": np.array(3),
        "no image": IMAGES[:0],
        "no pixel": IMAGES[:, :0],
        "seven channels": np.repeat(IMAGES[:, None], 7, 1),
        "whole numbers": IMAGES.astype("i8"),
        "truths": IMAGES > 3,
        "complex numbers": IMAGES.astype("c8"),
        "texts": IMAGES.astype("U3"),
        "objects": IMAGES.astype(object),
        "dates": IMAGES.astype("M8[s]"),
        "of 0 to 255, floating": IMAGES.astype("f4"),
        "below 0": floats - 0.1,
        "NaN": np.where(IMAGES == 7, np.nan, floats),
        "infinite": np.where(IMAGES == 7, np.inf, floats),
        "too few": IMAGES[:5],
        "records": np.zeros(count, [("a", "u1"), ("b", "f4")]),
    }
    bad_labels: dict[str, np.ndarray] = {
        "floating": LABELS + 0.5,
        "whole, but floating": LABELS.astype("f4") * np.nan,
        "negative": LABELS - 1,
        "one class": LABELS * 0,
        "two dimensions": LABELS[:, None],
        "one hot": np.eye(2)[LABELS],
        "none": LABELS[:0],
        "texts": LABELS.astype("U1"),
        "objects": LABELS.astype(object),
        "huge": LABELS * 2**62,
        "one a class": np.arange(count),
    }
    bad_classes = [np.array(["a"]), np.array([["a", "b"]]), np.array(3)]
    cases = [
        Case(f"{name}, {how}", functools.partial(load_npz, npz(made, how == "compressed")), "taken")
        for name, made in good.items()
        for how in ("plain", "compressed")
    ]
    bad = {f"images: {name}": {"images": one, "labels": LABELS} for name, one in bad_images.items()}
    bad |= {f"labels: {name}": {"images": IMAGES, "labels": one} for name, one in bad_labels.items()}
    bad |= {
        f"classes {number}": {"images": IMAGES, "labels": LABELS, "classes": one}
        for number, one in enumerate(bad_classes)
    }
    bad |= {"no labels": {"images": IMAGES}, "no images": {"labels": LABELS}, "other keys": {"x": IMAGES, "y": LABELS}}
    cases += [Case(name, functools.partial(load_npz, npz(made)), "refused") for name, made in bad.items()]
    whole = npz(good["names of classes"])
    labels = io.BytesIO()
    np.save(labels, LABELS)
    contents = {
        "empty": b"",
        "text": b"images",
        "an array alone": labels.getvalue(),
        "a zip of nothing": _zipped(),
        "no arrays": _zipped(images=b"text", labels=b"text"),
    }
    for shape in (f"({10**12}, 5, 5)", f"({10**26}, 5, 5)", "(-6, 5, 5)", "(12, 5, 6)", "(True, 5)", "'x'", "(5"):
        contents[f"a header of {shape}"] = _zipped(images=_npy(shape), labels=labels.getvalue())
    for kind in ("|O", "|V9", "<f3", "", "<M8", "[('a', '<i4')]"):
        contents[f"a header of type {kind}"] = _zipped(images=_npy("(12, 5, 5)", kind), labels=labels.getvalue())
    cases += [Case(name, functools.partial(load_npz, one), "refused") for name, one in contents.items()]
    for number in range(80):
        source = npz(good["names of classes"], True) if number % 2 else whole
        cases.append(Case(f"flipped {number}", functools.partial(load_npz, flipped(source, draw))))
    return cases


# Folders of images --------------------------------------------------------------------------------------------------


def image(suffix: str, size: tuple[int, int] = (6, 5), mode: str = "L", seed: int = 0) -> bytes:
    """The content of an image's file."""
    file = io.BytesIO()
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, *channels), dtype=np.uint8)
    kind = {"jpg": "jpeg", "tif": "tiff", "ppm": "ppm"}.get(suffix, suffix)
    Image.fromarray(pixels, mode).convert("RGB" if kind == "jpeg" and mode == "RGBA" else mode).save(file, kind)
    return file.getvalue()


def folder(root: str = "mine", suffix: str = "png", classes: Sequence[str] = ("a", "b"), count: int = 8) -> Path:
    """Class folders that are as they should be."""
    for place, name in enumerate(classes):
        Path(root, name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            content = image(suffix, seed=100 * place + number)
            Path(root, name, f"{number}.{suffix}").write_bytes(content)
    return Path(root)


def _with(change: Callable[[Path], object], suffix: str = "png") -> data.Data:
    """Reads class folders after a change to them."""
    made = folder(suffix=suffix)
    change(made)
    return data.load(made)


def _emptied(root: Path) -> None:
    for file in (root / "b").iterdir():
        file.unlink()


def _replaced(content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / "b" / "3.png").write_bytes(content)


def _linked(target: str) -> Callable[[Path], object]:
    return lambda root: (root / "b" / "x.png").symlink_to(target)


def _deep_image() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((6, 5), np.int32)).save(file, "tiff")
    return file.getvalue()


def folders(draw: random.Random) -> list[Case]:
    """Folders of images."""
    bad: dict[str, Callable[[Path], object]] = {
        "an empty class": _emptied,
        "an empty file": _replaced(b""),
        "text": _replaced(b"no image"),
        "another size": _replaced(image("png", (7, 5))),
        "32 bits": _replaced(_deep_image()),
        "half an image": _replaced(image("png")[:40]),
        "a folder named like an image": lambda root: (root / "b" / "x.png").mkdir(),
        "a pipe": lambda root: os.mkfifo(root / "b" / "x.png"),
        "/dev/zero": _linked("/dev/zero"),
        "a link to nothing": _linked("nothing.png"),
        "a link to itself": _linked("x.png"),
        "a class that is no text": lambda root: os.mkdir(os.fsencode(root) + b"/caf\xe9"),
        "EPS named PNG": _replaced(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n"),
        "SVG named PNG": _replaced(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        "train without test": lambda root: folder(str(root / "train")),
        "splits of other classes": lambda root: [folder(str(root / n), classes=c) for n, c in SPLITS.items()],
    }
    alone: dict[str, Callable[[], object]] = {
        "an empty folder": lambda: data.load(_made("mine")),
        "one class": lambda: data.load(folder(classes=("a",))),
        "images without classes": lambda: data.load(folder() / "a"),
        "a file": lambda: data.load(_written("mine", b"text")),
        "nothing": lambda: data.load("nothing/at/all"),
        "a name with NUL": lambda: data.load("a\0b"),
        "a long name": lambda: data.load("x" * 5000),
        "a pipe for data": lambda: data.load(_pipe("mine.npz")),
        "a device": lambda: data.load("/dev/zero"),
        "a user who is not there": lambda: data.load("~nobody-here/x"),
    }
    cases = [Case(name, functools.partial(_with, change), "refused") for name, change in bad.items()]
    cases += [Case(name, run, "refused") for name, run in alone.items()]
    cases += [
        Case(f"whole, {s}", functools.partial(lambda s: data.load(folder(suffix=s)), s), "taken") for s in SUFFIXES
    ]
    for number in range(210):
        suffix = SUFFIXES[number % len(SUFFIXES)]
        content = flipped(image(suffix, seed=number), draw)
        change = functools.partial(lambda root, s, c: (root / "a" / f"0.{s}").write_bytes(c), s=suffix, c=content)
        cases.append(Case(f"flipped {suffix} {number}", functools.partial(_with, change, suffix)))
    return cases


SPLITS = {"train": ("a", "b"), "test": ("a", "c")}


def _made(path: str) -> Path:
    Path(path).mkdir(parents=True)
    return Path(path)


def _written(path: str, content: bytes) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content)
    return Path(path)


def _pipe(path: str) -> Path:
    os.mkfifo(path)
    return Path(path)


# Published data sets ------------------------------------------------------------------------------------------------


def _published(name: str, files: Mapping[str, bytes | None]) -> data.Data:
    """Reads a data set of which these files are here: None is a folder in a file's place."""
    for path, content in files.items():
        if content is None:
            Path("root", path).mkdir(parents=True)
        else:
            _written(f"root/{path}", content)
    Path("root").mkdir(exist_ok=True)
    return data.load(name, Path("root"))


def published(draw: random.Random) -> list[Case]:
    """MNIST, CIFAR-10 and the Yale faces, damaged or not here."""
    idx = struct.pack(">IIII", 2051, 60000, 28, 28) + bytes(10_000)
    names = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
    contents: dict[str, bytes | None] = {
        "empty": b"",
        "cut short": idx,
        "another magic number": b"\0\0\x08\x09" + idx[4:],
        "noise": draw.randbytes(5000),
        "a folder": None,
    }
    packed: dict[str, bytes] = {
        "noise": draw.randbytes(5000),
        "half a .gz": gzip.compress(idx)[:50],
        "a bomb": gzip.compress(bytes(60_000_000)),
        "a .gz of nothing": gzip.compress(b""),
        "a flipped .gz": flipped(gzip.compress(idx), draw),
    }
    sets: dict[str, tuple[str, dict[str, bytes | None]]] = {}
    for kind, content in contents.items():
        sets[f"mnist, {kind}"] = "mnist", {f"mnist/{name}": content for name in names}
        cifar = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
        sets[f"cifar10, {kind}"] = "cifar10", {f"cifar-10-batches-bin/{name}": content for name in cifar}
        faces = [f"subject{person:02d}.{how}" for person in range(1, 16) for how in FACES]
        sets[f"yale-faces, {kind}"] = "yale-faces", {f"yalefaces/{name}": content for name in faces}
    for kind, content in packed.items():
        sets[f"mnist, {kind} for .gz"] = "mnist", {f"mnist/{name}.gz": content for name in names}
    for name in ("mnist", "cifar10", "yale-faces"):
        sets[f"{name}, not here"] = name, {}
    cifar_row = {f"cifar-10-batches-bin/data_batch_{n}.bin": bytes([200]) * 3073 * 10_000 for n in (1,)}
    sets["cifar10, a label of 200"] = "cifar10", cifar_row  # type: ignore[assignment]
    return [Case(kind, functools.partial(_published, *one), "refused") for kind, one in sets.items()]


FACES = [
    *("centerlight", "glasses", "happy", "leftlight", "noglasses", "normal"),
    *("rightlight", "sad", "sleepy", "surprised", "wink"),
]


# Weights ------------------------------------------------------------------------------------------------------------


class Runs:
    """A pickle that calls a function where it is loaded without care."""

    def __init__(self, function: Any, *arguments: Any):
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


class Mine:
    """A class that is not torch's."""


@functools.cache
def digits() -> data.Data:
    return brittle.data.load("digits")


@functools.cache
def state() -> dict[str, torch.Tensor]:
    """The weights of a network for the digits."""
    return build(mlp, seed=0, channels=1, classes=10, size=28).state_dict()


def opened(path: str, content: bytes, trust: bool = False, network: str | None = "mlp") -> None:
    """Opens a file of this content as a model, and asks it for logits."""
    Path(path).write_bytes(content)
    model = load_model(path, data=digits(), device=torch.device("cpu"), network=network, trust=trust)
    try:
        logits = model(digits().test.images[:2])
    except Exception as error:  # a command asks, and says so in a line
        raise InputError("the model does not take the images") from error
    assert logits.shape == (2, 10)


def _pickled(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def weights(draw: random.Random) -> list[Case]:
    """Files of weights, and pickles that are none."""
    good, cases = state(), []
    for name, value in {
        "plain": good,
        "nested": {"state_dict": good},
        "in a checkpoint": {"model": good, "e": 3},
    }.items():
        cases.append(Case(f".pt, {name}", functools.partial(opened, "w.pt", _pickled(value)), "taken"))
    cases.append(Case(".safetensors", functools.partial(opened, "w.safetensors", save(good)), "taken"))
    first = next(iter(good))
    changed: dict[str, Any] = {
        "a key that lacks": {key: value for key, value in good.items() if key != first},
        "a key more": {**good, "x": torch.zeros(3)},
        "another shape": {**good, first: good[first][:5]},
        "whole numbers": {key: value.long() for key, value in good.items()},
        "truths": {key: value > 0 for key, value in good.items()},
        "complex numbers": {key: value.to(torch.complex64) for key, value in good.items()},
        "NaN": {key: value * torch.nan for key, value in good.items()},
        "infinite": {key: value / 0 for key, value in good.items()},
    }
    for name, value in changed.items():
        held = {key: one.contiguous() for key, one in value.items()}
        ends = "either" if name in ("NaN", "infinite") else "refused"  # the audit says it of the first logits
        cases.append(Case(f".safetensors, {name}", functools.partial(opened, "w.safetensors", save(held)), ends))
        cases.append(Case(f".pt, {name}", functools.partial(opened, "w.pt", _pickled(value)), ends))
    odd: dict[str, Any] = {
        "numbers for keys": dict(enumerate(good.values())),
        "sparse": {key: value.to_sparse() for key, value in good.items()},
        "meta": {key: value.to("meta") for key, value in good.items()},
        "empty": {},
        "a list": [*good.values()],
        "a number": 3,
        "text": "x",
        "none": None,
        "a tensor": torch.zeros(3),
        "numbers": dict.fromkeys(good, 3),
        "nested in a circle": _circle(),
        "a class of one's own": {"x": Mine()},
        "a whole network": nn.Linear(3, 3),
        "a set": {1, 2},
    }
    cases += [Case(f".pt, {n}", functools.partial(opened, "w.pt", _pickled(v)), "refused") for n, v in odd.items()]
    hostile: dict[str, Any] = {
        "os.mkdir": Runs(os.mkdir, RAN),
        "os.system": Runs(os.system, f"mkdir {RAN}"),
        "eval": Runs(eval, f"__import__('os').mkdir({RAN!r})"),
        "exec": Runs(exec, f"import os; os.mkdir({RAN!r})"),
        "getattr": Runs(getattr, "x", "upper"),
        "print": Runs(print, "x"),
        "os._exit": Runs(os._exit, 0),
    }
    for name, value in hostile.items():
        for suffix in ("pt", "pth", "bin", "ckpt", "pkl"):
            content = _pickled({"x": value})
            cases.append(
                Case(f".{suffix} that calls {name}", functools.partial(opened, f"w.{suffix}", content), "refused")
            )
    for suffix, source in (("safetensors", save(good)), ("pt", _pickled(good))):
        for name, content in {"empty": b"", "text": b"weights", "noise": draw.randbytes(300)}.items():
            cases.append(Case(f".{suffix}, {name}", functools.partial(opened, f"w.{suffix}", content), "refused"))
        for number in range(40):
            content = flipped(source[: len(source) if number % 2 else 600], draw)
            cases.append(Case(f".{suffix}, flipped {number}", functools.partial(opened, f"w.{suffix}", content)))
    return cases


def _circle() -> dict[str, Any]:
    made: dict[str, Any] = {}
    made["state_dict"] = made
    return made


# Archives -----------------------------------------------------------------------------------------------------------


@functools.cache
def archive() -> bytes:
    """A whole torch.export archive."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    file = io.BytesIO()
    torch.export.save(torch.export.export(network, (torch.zeros(2, 1, 28, 28),), dynamic_shapes=({0: batch},)), file)
    return file.getvalue()


def _graph_changed(draw: random.Random) -> bytes:
    """The archive with one value of one of its JSON records changed."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive())) as whole, zipfile.ZipFile(file, "w") as changed:
        records = {name: whole.read(name) for name in whole.namelist()}
        chosen = draw.choice([name for name in records if name.endswith(".json")])
        records[chosen] = json.dumps(mutated(json.loads(records[chosen]), draw)).encode()
        for name, content in records.items():
            changed.writestr(name, content)
    return file.getvalue()


def archives(draw: random.Random) -> list[Case]:
    """Archives of torch.export: without trust none is read; with trust, a bad one is refused in a line."""
    made = {"whole": archive(), "empty": b"", "text": b"model", "half": archive()[:500], "a zip": _zipped(x=b"")}
    made |= {f"flipped {number}": flipped(archive(), draw) for number in range(30)}
    made |= {f"a record changed {number}": _graph_changed(draw) for number in range(30)}
    cases = []
    for name, content in made.items():
        run = functools.partial(opened, "m.pt2", content, network=None)
        cases.append(Case(f"{name}, without trust", run, "refused", "--trust"))
        ends = "taken" if name == "whole" else "either"
        cases.append(Case(f"{name}, with trust", functools.partial(run, trust=True), ends))
    return cases
