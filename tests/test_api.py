"""Brittle as a Python library: what its functions take for images and labels, what they print, what they export."""

from __future__ import annotations

import dataclasses
import html
import inspect
import io
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import brittle
from brittle import data
from brittle.data import Data, Split, as_split
from brittle.errors import InputError
from brittle.models.fit import Epoch, Fitted, fit
from brittle.progress import Progress, barred, silent

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
        DataLoader(Stream(), batch_size=None),
        DataLoader(TensorDataset(IMAGES, LABELS), batch_size=None),
        DataLoader(Pairs([(IMAGES[:7], LABELS[:7]), (IMAGES[7:], LABELS[7:])]), batch_size=None),
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
    mixed = Split(IMAGES, LABELS.roll(2))
    for value in (mixed, data_of(mixed), Stream(), DataLoader(Stream(), batch_size=2)):
        assert torch.equal(as_split(value, 3).images, IMAGES[:3])


@pytest.mark.parametrize("value", [SPLIT, data_of(SPLIT), (IMAGES, LABELS), Split(IMAGES, 2 - LABELS)])
@pytest.mark.parametrize("count", [3, 6, 11])
def test_of_images_class_by_class_each_class_is_drawn_in_proportion(value: Any, count: int):
    found = as_split(value, count)
    assert set(found.labels.bincount().tolist()) <= {count // 3, count // 3 + 1}
    places = [int((image == IMAGES).flatten(1).all(1).nonzero()) for image in found.images]
    assert len(set(places)) == count
    assert [int(label) for label in found.labels] == [int(as_split(value).labels[place]) for place in places]


def test_bytes_stay_bytes():
    whole = (IMAGES * 255).round().to(torch.uint8)
    for value in ((whole, LABELS), TensorDataset(whole, LABELS), Split(whole, LABELS)):
        found = as_split(value)
        assert found.pixels.dtype == torch.uint8
        assert torch.equal(found.images, whole.float() / 255)
        assert torch.equal(found[[3, 1]].images, whole[[3, 1]].float() / 255)
        assert [len(labels) for _, labels in found.batches(5)] == [5, 5, 2]
        assert torch.equal(torch.cat([images for images, _ in found.batches(5)]), found.images)
    with pytest.raises(InputError, match=r"a split gives a slice or a list of rows, \[3\] or \[3:4\], got 3"):
        found[3]  # pyright: ignore[reportArgumentType]


def test_items_may_be_dicts():
    for image, label in (("image", "label"), ("pixel_values", "labels")):
        found = as_split(Pairs([{image: one, label: of, "id": 7} for one, of in zip(IMAGES, LABELS, strict=True)]))
        assert torch.equal(found.images, IMAGES)
        assert torch.equal(found.labels, LABELS)


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
        (
            Pairs([{"image": IMAGES[0]}]),
            "a dict must hold an image and a label, such as 'image' and 'label', got ['image']",
        ),
        (Pairs([(object(), 0)]), "the data set cannot be read into tensors: default_collate: batch must contain tens"),
        (Pairs([(IMAGES[0], 0), (IMAGES[0, :, 1:], 0)]), "the data set cannot be read into tensors: "),
        (Dataset(), "the data set cannot be read into tensors: object of type 'Dataset' has no len()"),
        (Pairs([]), "images must be (N, C, H, W) with N >= 1, got shape (0, 0, 0, 0)"),
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


# What is printed ---------------------------------------------------------------------------------------------------

FITTED = Fitted(torch.nn.Sequential(torch.nn.Linear(3, 2)), 20.0, (Epoch(0.5, 0.25), Epoch(0.125, 0.75)))
MARKED = replace(data_of(SPLIT), name="<b>", classes=("<i>", *(f"class {i}" for i in range(30))))


@pytest.mark.parametrize(
    ("value", "line", "lines"),
    [
        (SPLIT, "Split(12 images of 3 x 4 x 5)", ["12 of 3 x 4 x 5, torch.float32, cpu", "3, 4 to 4 images each"]),
        (Split(IMAGES[:0], LABELS[:0]), "Split(0 images of 3 x 4 x 5)", ["0 of 3 x 4 x 5, torch.float32, cpu"]),
        (
            MARKED,
            "Data('<b>': 12 / 12 / 12 images of 3 x 4 x 5, 31 classes)",
            ["validation  12 images", "3 of 31: <i>, class 0, class 1", "arrays"],
        ),
        (
            FITTED,
            "Fitted(Sequential, T = 20, 2 epochs, validation accuracy 75.0%)",
            ["Sequential, 8 parameters", "0.125 nats", "75.0%"],
        ),
        (Fitted(torch.nn.Linear(3, 2), 1.0, ()), "Fitted(Linear, T = 1, 0 epochs)", ["8 parameters"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_results_print_in_a_line_and_summarise_in_a_few(value: Any, line: str, lines: list[str]):
    assert repr(value) == line
    summary = value.summary()
    assert len(summary.splitlines()) < 10
    assert "tensor(" not in summary
    for part in lines:
        assert part in summary
        assert html.escape(part.split("  ")[-1]) in value._repr_html_()
    assert "<b>" not in value._repr_html_()
    assert "<i>" not in value._repr_html_()


# What is exported --------------------------------------------------------------------------------------------------


def test_public_names_are_there_and_come_without_torch():
    code = (
        "import sys, brittle; names = dir(brittle); brittle.InputError; "
        "assert 'torch' not in sys.modules and 'rich' not in sys.modules; print(*names)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"InputError", "Split", "Data", "Audit", "AttackResult", "audit", "fit", "distill", "data"} <= set(said)
    assert brittle.InputError is InputError
    assert (brittle.Split, brittle.Data) == (Split, Data)
    assert dataclasses.is_dataclass(brittle.Audit)
    assert dataclasses.is_dataclass(brittle.AttackResult)


def test_the_first_lines_of_help_run(monkeypatch: pytest.MonkeyPatch):
    """With a network of one layer, one epoch and an audit that only takes what it is given."""

    def audit(model: torch.nn.Module, images: object, **options: object) -> str:
        return repr(as_split(images))

    def small() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))

    def trained(network: torch.nn.Module, given: Data, *, epochs: int, batch_size: int) -> Fitted:
        return fit(network, given, epochs=1, batch_size=256)

    monkeypatch.setattr("brittle.networks.papernot_mnist", small)
    monkeypatch.setitem(brittle.__dict__, "audit", audit)
    monkeypatch.setitem(brittle.__dict__, "fit", trained)
    assert brittle.__doc__ is not None
    snippet = brittle.__doc__.split("\n\n", 1)[1].split("\n\nA model")[0]
    told: dict[str, Any] = {}
    exec(textwrap.dedent(snippet), told)
    assert len(told["found"].success) == 100


def test_types_are_shipped():
    assert (Path(brittle.__file__).parent / "py.typed").is_file()


# Bars --------------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


Notebook = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})


@barred("working [hard]")
def work(*, progress: Progress | None = None) -> Progress:
    assert progress is not None
    progress(1, 2, "loss [0.5]")
    return progress


@pytest.mark.parametrize(
    ("stream", "delay", "shown"),
    [(Terminal, 0, True), (Notebook, 0, True), (io.StringIO, 0, False), (Terminal, 2, False)],
)
def test_a_bar_is_shown_where_somebody_looks_and_work_takes_long(
    stream: type[io.StringIO], delay: float, shown: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stderr", stream())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(brittle.progress, "DELAY", delay)
    work()
    said = sys.stderr.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    if shown:
        assert "working [hard]" in said
        assert "50%" in said
        assert "loss [0.5]" in said
        assert said.rstrip().endswith("\x1b[2K")  # and is gone
    else:
        assert said == ""


def test_a_progress_that_is_given_is_used():
    assert work(progress=silent) is silent


@pytest.mark.parametrize(
    "function",
    [
        brittle.fit,
        brittle.distill,
        brittle.soft_labels,
        brittle.data.load,
        brittle.units.prediction_gradient,
        brittle.units.class_gradient,
        brittle.units.activity,
        brittle.units.predictions_without,
        brittle.units.knockout_curves,
    ],
)
def test_long_functions_show_a_bar_by_default(function: Callable[..., Any]):
    assert inspect.signature(function).parameters["progress"].default is None
    assert hasattr(function, "__wrapped__")  # barred


def test_distilling_runs_under_one_bar(monkeypatch: pytest.MonkeyPatch):
    """What it calls shows no bars of its own: rich can show one at a time."""
    opened = []
    whole = brittle.progress.bar

    def watched(title: str):
        opened.append(title)
        return whole(title)

    monkeypatch.setattr(brittle.progress, "bar", watched)
    chain = brittle.distill(
        lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60, 3)), data_of(SPLIT), temperature=2, epochs=1
    )
    assert len(chain) == 2
    assert opened == ["distilling"]


# Units -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": lambda images: images}, "the model must be a torch.nn.Module, got function"),
        ({"images": IMAGES.numpy()}, "images must be a tensor (N, C, H, W), got ndarray"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer of at least 1, got 2.5"),
        ({"labels": LABELS.numpy()}, "classes must be a tensor (12,) of int64, got ndarray"),
        ({"labels": LABELS.int()}, "classes must be int64 with one entry an image, (12,), got (12,) torch.int32"),
    ],
)
def test_units_are_asked_for_with_tensors(changed: dict[str, Any], message: str):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60, 3))
    asked = {"model": model, "images": IMAGES, "labels": LABELS, "layers": ["1"], "batch_size": 4} | changed
    with pytest.raises(InputError) as caught:
        brittle.units.class_gradient(**asked)
    assert str(caught.value) == message
