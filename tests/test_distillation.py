"""Distillation against the same steps taken one by one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import Counting, IdentityLogits, bits, blobs, condition, convnet
from torch import nn

from brittle.errors import InputError
from brittle.models.distill import distill, soft_labels
from brittle.models.fit import fit
from brittle.models.networks import build

BLOBS = blobs()
TRAINING: dict[str, Any] = {"epochs": 2, "batch_size": 16, "dtype": "float32", "device": "cpu"}


def network() -> nn.Module:
    """Random weights from the ambient generator, which is what `distill` is to seed."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def test_soft_labels_are_the_softmax_at_the_temperature():
    shares = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.05, 0.9]])
    images = (shares.log() / 40 + 1).view(2, 1, 1, 3)  # logits 20 log F + 800, and the 800 does not matter
    torch.testing.assert_close(soft_labels(IdentityLogits(800), images, 20), shares, rtol=1e-4, atol=1e-4)


def test_soft_labels_come_in_the_order_of_the_images_whatever_the_batches():
    model, images = convnet(), torch.rand(600, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    found = soft_labels(counting := Counting(model), images, 2)
    assert max(counting.sizes) < 600
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.softmax(model(images) / 2, 1).detach())


def test_soft_labels_are_read_without_dropout_from_a_model_left_as_it_was():
    model = convnet(dropout=0.5)
    before = condition(model)
    first, second = (soft_labels(model, BLOBS.train.images, 1) for _ in range(2))
    assert torch.equal(first, second)
    assert condition(model) == before


def test_soft_labels_tell_how_far_they_are():
    told: list[tuple[int, int]] = []
    images = torch.zeros(300, 1, 6, 6)
    soft_labels(convnet(), images, 1, progress=lambda done, total, note="": told.append((done, total)))
    assert told == [(256, 300), (300, 300)]


@pytest.mark.parametrize("temperature", [20.0, (20.0, 5.0, 1.0)])
def test_each_generation_learns_the_labels_of_the_one_before(temperature: float | Sequence[float]):
    chain = distill(network, BLOBS, temperature=temperature, generations=3, seed=4, **TRAINING)
    temperatures = [temperature] * 3 if isinstance(temperature, float | int) else list(temperature)
    assert [fitted.temperature for fitted in chain] == temperatures
    labels = None
    for generation, (fitted, own) in enumerate(zip(chain, temperatures, strict=True)):
        seed = 4 + 1000 * generation
        expected = fit(build(network, seed=seed), BLOBS, temperature=own, labels=labels, seed=seed, **TRAINING)
        assert bits(fitted.model) == bits(expected.model)
        assert fitted.history == expected.history
        labels = soft_labels(expected.model, BLOBS.train.images, own)


def test_a_chain_of_one_is_a_teacher_on_hard_labels():
    (teacher,) = distill(network, BLOBS, temperature=3, generations=1, **TRAINING)
    assert bits(teacher.model) == bits(fit(build(network, seed=0), BLOBS, temperature=3, **TRAINING).model)


def test_a_student_learns_the_blobs_from_its_teacher():
    chain = distill(partial(convnet, classes=3), BLOBS, temperature=5, **{**TRAINING, "epochs": 12}, momentum=0.9)
    assert [fitted.history[-1].accuracy for fitted in chain] == [1, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"generations": 0}, "generations must be at least 1, got 0"),
        ({"temperature": [20.0, 1.0], "generations": 3}, "temperature must be one number or 3, got 2"),
        ({"temperature": 0.0}, r"temperature must be a positive finite number, got 0\.0"),
        ({"checkpoint": Path("one.safetensors")}, "each generation needs its own checkpoint"),
    ],
)
def test_a_request_that_cannot_be_met_says_what_came(wrong: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        distill(network, BLOBS, **{"temperature": 1.0, **TRAINING, **wrong})
