"""The L0 attack against a plain version of the published procedure, one image at a time, on a trained network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from brittle.attacks import carlini_l0
from brittle.models.networks import build

IMAGES, TRAINED = 24, 1300
pytestmark = pytest.mark.slow


# The procedure, as Carlini and Wagner 2017, section VI-A, and their l0_attack.py have it ------------------------------

SMALLEST, LARGEST = 1e-3, 1e2  # of c, which doubles until the target is reached; theirs goes on to 2e6, in vain here
SHARE, SMALL = 0.3, 0.01  # of the root of the pixels changed: how many are frozen at once; of |gradient x change|
ITERATIONS, LEARNING_RATE = 60, 0.05  # theirs are 1000 and 0.01; a step of 0.05 crosses the box in 20


class Dense:
    """A network of dense layers with ReLU between them, in numpy: this side shares no code with the other."""

    def __init__(self, network: nn.Module):
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
        self.layers = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in layers]

    def logits(self, image: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """(K,), and which units of each hidden layer are above 0."""
        values, active = image, []
        for place, (weight, bias) in enumerate(self.layers):
            if place:
                active.append(values > 0)
                values = values * active[-1]
            values = weight @ values + bias
        return values, active

    def gradient_of_lead(self, logits: np.ndarray, active: list[np.ndarray], target: int) -> np.ndarray:
        """By the image: of the lead of the best of the other classes over the target."""
        others = logits.copy()
        others[target] = -np.inf
        gradient = np.zeros_like(logits)
        gradient[others.argmax()], gradient[target] = 1, -1
        for place in reversed(range(len(self.layers))):
            gradient = gradient @ self.layers[place][0]
            if place:
                gradient = gradient * active[place - 1]
        return gradient


def within(
    model: Dense, image: np.ndarray, target: int, start: np.ndarray, free: np.ndarray, const: float
) -> tuple[np.ndarray, float] | None:
    """The L2 attack on the pixels `free`: the first image on target from `start` on, and the c it took."""
    while const < LARGEST:
        changed, first, second = np.where(free, start, image), np.zeros_like(image), np.zeros_like(image)
        for turn in range(1, ITERATIONS + 1):
            logits, active = model.logits(changed)
            if logits.argmax() == target:
                return changed, const
            # of |change|^2 + c lead: the target is not reached, so the hinge is open
            gradient = 2 * (changed - image) + const * model.gradient_of_lead(logits, active, target)
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2  # Adam
            size = np.sqrt(second / (1 - 0.999**turn)) + 1e-8
            moved = changed - LEARNING_RATE * first / (1 - 0.9**turn) / size
            changed = np.where(free, moved, image).clip(0, 1)  # their tanh hardly moves pixels at exactly 0 and 1
        const *= 2
    return None


def fewest_pixels(model: Dense, image: np.ndarray, target: int) -> np.ndarray | None:
    """The last image found on target, before so much was frozen that none was."""
    free, const = np.ones(image.shape, bool), SMALLEST
    last, start = None, image
    while found := within(model, image, target, start, free, const):
        start, const = found
        last, const = start, const / 2
        change = last - image
        importance = np.abs(model.gradient_of_lead(*model.logits(last), target) * change)
        most = SHARE * int((np.abs(change) > 1e-4).sum()) ** 0.5
        frozen_now = 0
        for pixel in importance.argsort():
            if free[pixel]:
                free[pixel] = False
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
    dense, counts = Dense(model), []
    for image, target in zip(images, targets.tolist(), strict=True):
        clean = image.flatten().numpy()
        published = fewest_pixels(dense, clean, target)
        assert published is not None
        assert model(torch.from_numpy(published).view(1, 1, 8, 8)).argmax() == target
        counts.append(int((published != clean).sum()))
    assert max(counts) < 32  # of 64: it has worked
    assert found.norm(0).double().mean() <= sum(counts) / len(counts)
