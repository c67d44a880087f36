"""How a model is asked: batches, memory, and what it answers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import convnet, pictures, predicted
from torch import Tensor, nn

from brittle import attacks
from brittle.auditing import audit
from brittle.auditing.wrappers import works
from brittle.data import Split
from brittle.errors import InputError
from brittle.models.inference import OutOfMemory, asking, at_once, differentiated, logits_in_batches
from brittle.models.networks import frozen


class Small(nn.Module):
    """A device that holds so many images of a network: what it says beyond is what torch says there."""

    def __init__(self, room: int, error: Callable[[str], Exception] = torch.OutOfMemoryError):
        super().__init__()
        self.network, self.room, self.error, self.seen = convnet(gain=3).double(), room, error, []

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        self.seen.append(len(images))
        if len(images) > self.room:
            raise self.error("CUDA out of memory. Tried to allocate 3.00 GiB.")
        return self.network(images)


IMAGES = pictures(20, dtype=torch.float64)
LABELS = predicted(convnet(gain=3).double(), IMAGES)
ATTACKS: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 5, "eps": 0.1},
    "carlini_l2": {"max_iterations": 10},
    "song_2": {"max_pixels": 3},
    "square": {"queries": 5},
    "linear_mask": {},
}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("name", ATTACKS)
def test_where_memory_runs_out_the_batch_is_halved_and_that_is_said_once(name: str, error: Callable[[str], Exception]):
    attack = getattr(attacks, name)
    roomy, small = Small(1000), Small(6, error)
    whole = attack(roomy, IMAGES, LABELS, **ATTACKS[name])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = attack(small, IMAGES, LABELS, **ATTACKS[name])
    assert [str(one.message) for one in said] == [
        "memory does not hold 20 images (1, 6, 6) in the model at once: it is asked for fewer"
    ]
    torch.testing.assert_close(found.adversarial, whole.adversarial, rtol=0, atol=1e-9)
    assert torch.equal(found.success, whole.success)
    assert max(small.seen[small.seen.index(5) :]) == 5  # 20, 10, 5


def test_memory_that_holds_no_image_is_said_and_never_taken_for_a_view_that_does_not_run():
    with warnings.catch_warnings(action="ignore"):
        with pytest.raises(InputError, match=r"^memory does not hold one image \(1, 6, 6\) in this model: CUDA out of"):
            attacks.pgd(Small(0), IMAGES, LABELS, eps=0.1)
        with pytest.raises(OutOfMemory):
            works(Small(0), Small(6), IMAGES, deterministic=True)
        assert works(Small(6), Small(6), IMAGES, deterministic=True)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_takes_a_batch_size_and_gives_the_same(name: str):
    attack, model = getattr(attacks, name), Small(1000)
    whole = attack(Small(1000), IMAGES, LABELS, **ATTACKS[name])
    found = attack(model, IMAGES, LABELS, batch_size=3, **ATTACKS[name])
    assert max(model.seen) == 3
    torch.testing.assert_close(found.adversarial, whole.adversarial, rtol=0, atol=1e-9)
    for wrong in (0, -1, 2.5, "8", True):
        with pytest.raises(InputError, match=r"^batch_size must be a whole number of at least 1"):
            attack(model, IMAGES, LABELS, batch_size=wrong, **ATTACKS[name])


def test_an_audit_takes_a_batch_size():
    model = Small(1000)
    audit(model, Split(IMAGES.float(), LABELS), eps=0.1, budget="quick", batch_size=4)
    assert max(model.seen) == 4


class Wide(nn.Module):
    """A layer whose output takes 64 MiB an image, with or without gradients."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        large = images.flatten(1).mean(1, keepdim=True).repeat(1, 2**24)
        return torch.cat([large[:, :2], images.flatten(1)[:, :2]], 1)


def test_as_many_images_as_fit_go_through_a_model_at_once():
    assert at_once(convnet(), IMAGES.float()) == 256
    assert at_once(Wide(), IMAGES.float()) == 15  # of 16, the images take room too
    with asking(7):
        assert at_once(Wide(), IMAGES.float()) == 7


def test_logits_and_gradients_in_parts_are_those_of_the_whole():
    model = convnet(gain=3).double()
    inputs = IMAGES.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(model(inputs).gather(1, LABELS[:, None]).sum(), inputs)
    with asking(6), frozen(model):
        logits, gradient = differentiated(model, IMAGES, lambda z, rows: z.gather(1, LABELS[rows, None]))
    assert gradient is not None
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(logits, model(IMAGES).detach())
    torch.testing.assert_close(logits_in_batches(model, IMAGES), logits)
