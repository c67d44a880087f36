"""Types of arguments of the library's functions: refused in one line before any work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from problems import blobs
from torch import Tensor, nn

import brittle
from brittle.data import as_split
from brittle.data.arguments import typed
from brittle.errors import InputError
from brittle.models.distill import distill, soft_labels
from brittle.models.fit import fit
from brittle.models.networks import build, mlp, seeded


@typed
def asked(
    model: nn.Module | None = None,
    *,
    count: int = 1,
    size: float | None = None,
    flag: bool = False,
    word: Literal["a", "b"] = "a",
    file: Path | None = None,
    values: float | Sequence[float] = 1.0,
    images: Tensor | None = None,
    anything: object = None,
    **more: Any,
) -> str:
    return word


@pytest.mark.parametrize(
    "good",
    [
        {"count": np.int64(3), "size": 2, "flag": True},
        {"size": float("inf"), "word": "c", "file": "x"},  # what a number or a word may be, the function says
        {"size": np.float32(3), "file": Path("x")},
        {"values": [1.0, 2.0], "images": torch.zeros(3), "anything": {}, "other": []},
        {"values": np.ones(3), "size": None},
    ],
)
def test_what_fits_is_passed_on(good: dict[str, Any]):
    assert asked(None, **good) == good.get("word", "a")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"model": print}, r"^model must be a network \(torch.nn.Module\) or none, got <built-in function print>$"),
        ({"count": 2.5}, r"^count must be a whole number, got 2\.5$"),
        ({"count": True}, "^count must be a whole number, got True$"),
        ({"size": "3"}, "^size must be a number or none, got '3'$"),
        ({"size": True}, "^size must be a number or none, got True$"),
        ({"flag": 1}, "^flag must be true or false, got 1$"),
        ({"word": 3}, "^word must be text, got 3$"),
        ({"file": 3}, "^file must be a path or none, got 3$"),
        ({"values": None}, "^values must be a number or a list, got None$"),
        ({"images": [1]}, r"^images must be a tensor or none, got \[1\]$"),
        ({"count": torch.zeros(2)}, r"^count must be a whole number, got a tensor \(2,\) torch.float32$"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(bad: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        asked(**bad)


NETWORK = build(mlp, seed=0, channels=1, classes=3, size=6)
IMAGES = blobs().test.images[:4], blobs().test.labels[:4]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: fit(NETWORK, blobs(), epochs="3"), "epochs must be a whole number, got '3'"),  # type: ignore[arg-type]
        (lambda: brittle.audit(NETWORK, IMAGES, rows=2.5), "rows must be a whole number"),  # type: ignore[arg-type]
        (lambda: brittle.audit(NETWORK, IMAGES, seed=10**30), "seed must fit into 64 bits"),
        (lambda: distill(mlp, blobs(), temperature=None), "temperature must be a number or a list"),  # type: ignore[arg-type]
        (lambda: soft_labels(NETWORK, [1], 1.0), r"images must be a tensor, got \[1\]"),  # type: ignore[arg-type]
        (lambda: soft_labels(NETWORK, torch.zeros(3), 1.0), r"images must be \(N, C, H, W\) and floating, got \(3,\)"),
        (lambda: as_split(IMAGES, 0), "count must be at least 1, got 0"),
        (lambda: brittle.data.load("digits", layout=3), "unknown layout 3"),  # type: ignore[arg-type]
        (lambda: fit(Pair(), blobs(), epochs=1), "must return one tensor of logits, got a tuple"),
        (lambda: fit(Raises(), blobs(), epochs=1), r"the network cannot take images of shape \(1, 6, 6\): 'a'"),
    ],
)
def test_the_functions_of_the_library_refuse_them(call: Any, said: str):
    with pytest.raises(InputError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


class Pair(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images, images


class Raises(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, images: Tensor) -> Tensor:
        return {}["a"]


def test_the_largest_seeds_are_seeds():
    for seed in (-(2**63), 2**64 - 1):
        with seeded(seed):
            torch.rand(1)


def test_a_temperature_may_be_a_large_whole_number():
    assert soft_labels(NETWORK, IMAGES[0], 10**30).shape == (4, 3)
