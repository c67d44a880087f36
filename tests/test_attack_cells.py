"""What an attack cell keeps of what its attack was for."""

from __future__ import annotations

import functools
import json
import math
from typing import Any

import pytest
import torch
from problems import convnet, pictures, predicted

from brittle import attacks
from brittle.attacks import packing
from brittle.attacks.result import measured


def mine(model: Any, images: torch.Tensor, labels: torch.Tensor) -> attacks.AttackResult:
    """An attack of somebody else's, which says nothing of norms."""
    return measured(model, images, labels, 1 - images, forwards=1, backwards=0)


@pytest.mark.parametrize(
    ("attack", "stored"),
    [
        (functools.partial(attacks.carlini_linf, max_iterations=2), {"minimises": "inf", "bound": None}),
        (functools.partial(attacks.carlini_l2, max_iterations=2), {"minimises": 2, "bound": None}),
        (functools.partial(attacks.song_3, max_pixels=4), {"minimises": 0, "bound": None}),
        (attacks.fgsm, {"minimises": None, "bound": {"norm": "inf", "eps": 0.3}}),
        (
            functools.partial(attacks.noise, norm="l2", eps=1, draws=2),
            {"minimises": None, "bound": {"norm": 2, "eps": 1.0}},
        ),
        (mine, {"minimises": None, "bound": None}),
    ],
)
def test_norm_and_bound_are_stored_as_json_and_come_back(attack: Any, stored: dict[str, Any]):
    model, images = convnet(gain=3), pictures(4)
    labels = predicted(model, images)
    found = attack(model, images, labels)
    said = packing.aims(found)
    assert said == stored
    again = packing.unpack(packing.pack(found), images, labels, json.loads(json.dumps(said)))
    assert (again.minimises, again.bound) == (found.minimises, found.bound)
    assert torch.equal(again.adversarial, found.adversarial)
    if said["minimises"] == "inf":
        assert again.minimises == math.inf
