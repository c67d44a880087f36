"""A store made by hand: 12 images of 6 x 6, two models, two attacks in two shards; every number is known."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from brittle.attacks.packing import pack
from brittle.attacks.result import AttackResult
from brittle.study.store.store import Store

HOSTILE = "<script>alert(1)</script>"
CLASSES = [HOSTILE, "a class whose name goes on and on", "=1+1"]
ROWS, SHARD, SIDE = 12, 6, 6

# Flips that each row needed, None where it withstood; row 0 is wrong before the attack in every model.
EVERY: list[int | None] = [0, *range(1, 12)]
NONE: list[int | None] = [0, *[None] * 11]
NEEDED: Mapping[tuple[str, str, str], list[int | None]] = {
    ("plain", "first", "float32"): EVERY,
    ("plain", "first", "exact"): EVERY,
    ("plain", "second", "float32"): EVERY,
    ("plain", "second", "exact"): EVERY,
    (HOSTILE, "first", "float32"): NONE,
    (HOSTILE, "first", "exact"): EVERY,
    (HOSTILE, "second", "float32"): [0, 2, *[None] * 10],
    (HOSTILE, "second", "exact"): [0, None, *range(2, 12)],
}


def key(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def result(images: Tensor, labels: Tensor, needed: Sequence[int | None]) -> AttackResult:
    """Rows that needed n flips had their first n pixels set to 1, 0, 1, ..."""
    most = max(1, *(count or 0 for count in needed))
    pixels = torch.full((len(images), most), -1)
    adversarial = images.clone()
    for row, count in enumerate(needed):
        for pixel in range(count or 0):
            pixels[row, pixel] = pixel
            adversarial[row].flatten(1)[:, pixel] = float(pixel % 2 == 0)
    success = torch.tensor([count is not None for count in needed])
    return AttackResult(
        images=images,
        labels=labels,
        targets=None,
        adversarial=adversarial,
        success=success,
        prediction=torch.where(success, (labels + 1) % 3, labels),
        forwards=torch.full((len(images),), 7),
        backwards=torch.full((len(images),), 1),
        pixels=pixels,
    )


def steps(labels: Tensor, needed: Sequence[int | None]) -> dict[str, Tensor]:
    """Rows 0, 1, 2: the label's logit falls from 2 to -1, the next class's rises from -1 to 2."""
    counts = [count or 0 for count in needed[:3]]
    logits = torch.full((3, max(counts) + 1, 3), torch.nan)
    for row, count in enumerate(counts):
        for step in range(count + 1):
            gone = step / count if count else 0.0
            logits[row, step] = 0
            logits[row, step, labels[row]] = 2 - 3 * gone
            logits[row, step, (labels[row] + 1) % 3] = 3 * gone - 1
    return {"rows": torch.arange(3), "logits": logits}


@pytest.fixture(scope="session")
def build_in() -> Callable[..., Store]:
    """Makes such a store in a folder; `skip`: cells to leave out, by key parts; `soft`: add an attack on all pixels,
    whose cells hold `scalars`."""

    def made(
        folder: Path,
        *,
        seeds: Sequence[int] = (0,),
        channels: int = 1,
        skip: Collection[tuple] = (),
        soft: bool = False,
        scalars: Mapping[str, Any] | None = None,
    ) -> Store:
        return _Maker(Store(folder), channels, set(skip), soft, scalars or {}).study(seeds)

    return made


@pytest.fixture
def build(build_in: Callable[..., Store], tmp_path: Path) -> Callable[..., Store]:
    """`build_in` a folder of the test's own."""
    return partial(build_in, tmp_path / "store")


class _Maker:
    def __init__(self, store: Store, channels: int, skip: set[tuple], soft: bool, scalars: Mapping[str, Any]) -> None:
        self.store, self.skip, self.soft = store, skip, soft
        self.scalars = {"minimises": None, "bound": None, **scalars}  # of the attack on all pixels
        self.images = torch.rand((ROWS, channels, SIDE, SIDE), generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
        self.labels = torch.arange(ROWS) % 3

    def put(
        self,
        parts: tuple,
        scalars: Mapping[str, Any],
        tensors: Mapping[str, Mapping[str, Tensor]],
        params: Mapping[str, Any] | None = None,
        parents: Mapping[str, str] | None = None,
    ) -> str:
        record = {
            "title": " ".join(map(str, parts)),
            "function": parts[0],
            "params": dict(params or {}),
            "parents": dict(parents or {}),
            "environment": {"device": "cpu", "dtype": "float32"},
            "scalars": dict(scalars),
            "provenance": {
                "brittle": "0.1.0",
                "torch": "2.0" if parts[0] == "train" else "2.1",
                "threads": 1,
                "started": "2026-01-02T03:04:05+00:00",
                "seconds": 1.5,
            },
        }
        if parts not in self.skip:
            self.store.put(key(*parts), record, tensors)
        return key(*parts)

    def study(self, seeds: Sequence[int]) -> Store:
        rows = self.put(
            ("select",),
            {"rows": ROWS, "data": "made <i>up</i>", "source": "by hand", "classes": CLASSES},
            {"rows": {"images": self.images, "labels": self.labels}},
        )
        record = {
            "name": "tiny",
            "title": f"A study of {HOSTILE}",
            "about": "Numbers & <b>names</b>.",
            "study": {"data": "made up"},
            "digest": "d" * 64,
            "rows": rows,
            "models": [self.model(name, seed) for seed in seeds for name in ("plain", HOSTILE)],
        }
        self.store.write_study("tiny", record)
        return self.store

    def model(self, name: str, seed: int) -> dict[str, Any]:
        label = self.put(("label", name, seed), {}, {"tensors": {"labels": torch.zeros(2)}})
        train = self.put(
            ("train", name, seed),
            {"loss": [2.0, 1.0], "validation_accuracy": [0.5, None]},
            {"weights": {"w": torch.zeros(1)}},
            {"network": "mylab.network", "epochs": 2},
            {"labels": label} if name != "plain" else {},
        )
        return {
            "name": name,
            "label": name,
            "axes": {},
            "seed": seed,
            "temperature": 1.0 if name == "plain" else 20.0,
            "teacher": None if name == "plain" else "plain",
            "train": train,
            "measure": self.measure(name, seed),
            "attacks": [self.attack(name, seed, attack) for attack in ("first", "second")]
            + ([self.soft_attack(name, seed)] if self.soft else []),
        }

    def measure(self, name: str, seed: int) -> str:
        small = 0.0 if name == "plain" else -400.0
        shape = (3, *self.images.shape[1:])
        exact = torch.linspace(-12, -2, ROWS, dtype=torch.float64) + small
        float32 = exact if name == "plain" else torch.full_like(exact, -torch.inf)
        sign = torch.ones(shape, dtype=torch.int8)
        sign[:, :, 0, 0] = -1
        return self.put(
            ("measure", name, seed),
            {
                "accuracy": {"count": 11, "total": 12},
                "saturated": {"count": 0 if name == "plain" else 12, "total": 12},
                "confidence": {"value": 0.9, "interval": [0.8, 0.95], "rows": 12},
                "sensitivity": {"exact": {"count": 3, "total": 12}, "float32": {"count": 4, "total": 12}},
            },
            {
                "amplitudes": {"exact": exact, "float32": float32, "trained": exact - small - int(name != "plain")},
                "logits": {"test": (1 - small) * torch.nn.functional.one_hot(self.labels, 3), "labels": self.labels},
                "saliency": {
                    "rows": torch.arange(3),
                    "sign": sign,
                    "log10": torch.full(shape, -5.0 + small, dtype=torch.float64),
                    "float32": torch.full(shape, 1e-5 if name == "plain" else 0.0),
                },
            },
        )

    def attack(self, name: str, seed: int, attack: str) -> dict[str, Any]:
        cells = []
        for start in range(0, ROWS, SHARD):
            span = slice(start, start + SHARD)
            tensors = {
                arithmetic: pack(
                    result(self.images[span], self.labels[span], NEEDED[name, attack, arithmetic][span]),
                )
                for arithmetic in ("float32", "exact")
            }
            if start == 0:
                for arithmetic in ("float32", "exact"):
                    tensors[f"{arithmetic}.steps"] = steps(self.labels[span], NEEDED[name, attack, arithmetic][span])
            params = {"start": start, "stop": start + SHARD}
            cells.append(
                self.put(
                    ("attack", name, seed, attack, start),
                    {"rows": SHARD, "minimises": 0, "bound": None},
                    tensors,
                    params,
                )
            )
        return {
            "name": attack,
            "label": attack,
            "function": f"mylab.{attack}",
            "options": {"max_pixels": 20},
            "arithmetic": ["float32", "exact"],
            "cells": cells,
        }

    def soft_attack(self, name: str, seed: int) -> dict[str, Any]:
        """Darkens every pixel by 0.05; fools the even rows, and has no choice of arithmetic."""
        fooled = torch.arange(ROWS) % 2 == 0
        found = AttackResult(
            images=self.images,
            labels=self.labels,
            targets=None,
            adversarial=torch.where(fooled.view(-1, 1, 1, 1), self.images - 0.05, self.images),
            success=fooled,
            prediction=torch.where(fooled, (self.labels + 1) % 3, self.labels),
            forwards=torch.full((ROWS,), 9),
            backwards=torch.full((ROWS,), 9),
        )
        params = {"start": 0, "stop": ROWS}
        cell = self.put(("attack", name, seed, "soft"), {"rows": ROWS, **self.scalars}, {"result": pack(found)}, params)
        return {
            "name": "soft",
            "label": "soft",
            "function": "mylab.soft",
            "options": {"steps": 3},
            "arithmetic": None,
            "cells": [cell],
        }
