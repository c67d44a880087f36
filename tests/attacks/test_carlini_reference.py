"""The L0 attack against a plain version of the published procedure, one image at a time, on a trained network."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from brittle.attacks import carlini_l0
from brittle.models.networks import build, frozen

IMAGES, TRAINED = 24, 1300
pytestmark = pytest.mark.slow


# The procedure, as Carlini and Wagner 2017, section VI-A, and their l0_attack.py have it ------------------------------

SMALLEST, LARGEST = 1e-3, 1e2  # of c, which doubles until the target is reached; theirs goes on to 2e6, in vain here
SHARE, SMALL = 0.3, 0.01  # of the root of the pixels changed: how many are frozen at once; of |gradient x change|
ITERATIONS, LEARNING_RATE = 60, 0.05  # theirs are 1000 and 0.01; a step of 0.05 crosses the box in 20


def lead(logits: Tensor, target: int) -> Tensor:
    """Of the best of the other classes over the target, of logits (K,)."""
    return torch.cat([logits[:target], logits[target + 1 :]]).max() - logits[target]


def within(
    model: nn.Module, image: Tensor, target: int, start: Tensor, free: Tensor, const: float
) -> tuple[Tensor, float] | None:
    """The L2 attack on the pixels `free` (H, W): the first image on target from `start` on, and the c it took."""
    while const < LARGEST:
        changed, first, second = torch.where(free, start, image), torch.zeros_like(image), torch.zeros_like(image)
        for turn in range(1, ITERATIONS + 1):
            changed.requires_grad_(True)
            logits = model(changed[None])[0]
            if logits.argmax() == target:
                return changed.detach(), const
            loss = (changed - image).square().sum() + const * lead(logits, target)  # not on target: no hinge
            (gradient,) = torch.autograd.grad(loss, changed)
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient.square()  # Adam
            size = (second / (1 - 0.999**turn)).sqrt() + 1e-8
            moved = changed.detach() - LEARNING_RATE * first / (1 - 0.9**turn) / size
            changed = torch.where(free, moved, image).clamp(0, 1)  # their tanh hardly moves pixels at exactly 0 and 1
        const *= 2
    return None


def fewest_pixels(model: nn.Module, image: Tensor, target: int) -> Tensor | None:
    """(C, H, W): the last image found on target, before so much was frozen that none was."""
    free, const = torch.ones(image.shape[1:], dtype=torch.bool), SMALLEST
    last, start = None, image
    while found := within(model, image, target, start, free, const):
        start, const = found
        last, const = start, const / 2
        at = last.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(lead(model(at[None])[0], target), at)
        change = last - image
        importance = (gradient * change).abs().sum(0).flatten()
        most = SHARE * int((change.abs() > 1e-4).any(0).sum()) ** 0.5
        frozen_now = 0
        for pixel in importance.argsort().tolist():
            if free.view(-1)[pixel]:
                free.view(-1)[pixel] = False
                frozen_now += 1
                if importance[pixel] > SMALL or frozen_now >= most:
                    break
        if not frozen_now:
            break
    return last


# Against ours ---------------------------------------------------------------------------------------------------------


def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network that knows the digits of scikit-learn, and images that it gets right.

    In float64, so that no processor's rounding decides which pixel goes.
    """
    pixels, classes = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels / 16).float().view(-1, 1, 8, 8), torch.tensor(classes).long()
    model = build(
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
        ),
        seed=0,
    )
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(10):
        for rows in torch.randperm(TRAINED, generator=order).split(64):
            adam.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            adam.step()
    with torch.no_grad():
        right = model(images[TRAINED:]).argmax(1) == labels[TRAINED:]
    assert right.double().mean() > 0.9
    return model.eval().double(), images[TRAINED:][right][:IMAGES].double(), labels[TRAINED:][right][:IMAGES]


def test_the_published_procedure_finds_no_fewer_pixels():
    model, images, labels = trained()
    targets = (labels + 1) % 10
    found = carlini_l0(model, images, labels, targets=targets)
    assert found.success.all()
    counts = []
    with frozen(model):
        for image, target in zip(images, targets.tolist(), strict=True):
            published = fewest_pixels(model, image, target)
            assert published is not None
            assert model(published[None]).argmax() == target
            counts.append(int((published != image).any(0).sum()))
    assert max(counts) < 32  # of 64: it has worked
    assert found.norm(0).double().mean() <= sum(counts) / len(counts)
